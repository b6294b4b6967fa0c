//! The cases of the store, on the types that a node uses.

use std::path::{Path, PathBuf};

use basalt_blockstore::{Durability, Options, store::Env};
use basalt_sharding::ShardSet;
use tempfile::TempDir;

use crate::{
    Result,
    blocks::Blocks,
    rounds::{Sample, timed},
};

/// The folder on the disk that is measured.
pub struct Site(PathBuf);

impl Site {
    /// Makes the folder where it is missing.
    pub fn new(dir: &Path) -> Result<Site> {
        std::fs::create_dir_all(dir)?;
        Ok(Site(dir.to_path_buf()))
    }

    /// A new folder in it, removed when it is dropped.
    pub fn fresh(&self) -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("basalt-bench-").tempdir_in(&self.0)?)
    }
}

fn open(dir: &Path, shards: usize, durability: Durability) -> Result<ShardSet> {
    let options = Options { durability, ..Options::default() };
    let folders: Vec<_> = (0..shards).map(|i| (dir.join(format!("shard-{i:02}")), 1)).collect();
    Ok(ShardSet::open(&folders, &dir.join("keyspace"), [7; 16], &Env::real(), &options)?)
}

/// Stores all blocks in a new store, one Put each; ends with a Sync, which in `strict` has nothing to do.
pub fn put_all(site: &Site, blocks: &Blocks, shards: usize, writers: usize, durability: Durability) -> Result<Sample> {
    let folder = site.fresh()?;
    let set = open(folder.path(), shards, durability)?;
    let sample = timed(blocks.bytes(), blocks.all.len(), || {
        share(blocks.all.len(), writers, |mine| {
            for i in mine {
                let (key, value) = &blocks.all[i];
                set.put(key, value)?;
            }
            Ok(())
        })?;
        Ok(set.sync()?)
    })?;
    let stored = set.stats().count;
    if stored != blocks.all.len() as u64 {
        return Err(format!("{stored} blocks are stored, {} were put", blocks.all.len()).into());
    }
    set.close()?;
    Ok(sample)
}

/// A store that holds the blocks.
pub struct Filled {
    set: ShardSet,
    _folder: TempDir,
}

impl Filled {
    /// Stores the blocks.
    pub fn new(site: &Site, blocks: &Blocks, shards: usize, durability: Durability) -> Result<Filled> {
        let folder = site.fresh()?;
        let set = open(folder.path(), shards, durability)?;
        for part in blocks.all.chunks(256) {
            let part: Vec<_> = part.iter().map(|(key, value)| (key, value.as_slice())).collect();
            set.submit_put(&part)?.wait()?;
        }
        set.sync()?;
        Ok(Filled { set, _folder: folder })
    }

    /// Gets every block once, in no order that a read-ahead could guess, each into its reader's buffer.
    pub fn get_all(&self, blocks: &Blocks, readers: usize) -> Result<Sample> {
        timed(blocks.bytes(), blocks.all.len(), || {
            share(blocks.all.len(), readers, |mine| {
                let mut buffer = Vec::with_capacity(blocks.block_bytes);
                for i in mine {
                    self.set.get(&blocks.all[i].0, &mut buffer)?;
                    if buffer.len() != blocks.block_bytes {
                        return Err(format!("block {i} came back with {} bytes", buffer.len()).into());
                    }
                }
                Ok(())
            })
        })
    }

    /// Asks for every block once whether it is there.
    pub fn has_all(&self, blocks: &Blocks, expected: bool, readers: usize) -> Result<Sample> {
        timed(0, blocks.all.len(), || {
            share(blocks.all.len(), readers, |mine| {
                for i in mine {
                    if self.set.has(&blocks.all[i].0)? != expected {
                        return Err(format!("Has of block {i} is not {expected}").into());
                    }
                }
                Ok(())
            })
        })
    }
}

/// Lets `threads` threads work on the items 0 to `count`, each on every `threads`th one in an order that jumps about.
pub fn share(count: usize, threads: usize, work: impl Fn(Jumps) -> Result + Sync) -> Result {
    let work = &work;
    std::thread::scope(|scope| {
        let spawned: Vec<_> =
            (0..threads).map(|first| scope.spawn(move || work(Jumps::new(count, threads, first)))).collect();
        spawned
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// One thread's items.
pub struct Jumps {
    count: usize,
    stride: usize,
    threads: usize,
    next: usize,
}

impl Jumps {
    fn new(count: usize, threads: usize, first: usize) -> Jumps {
        // A stride without a divisor in common with the count visits every item once.
        let mut stride = (count as f64 * 0.618) as usize | 1;
        while gcd(stride, count.max(1)) != 1 {
            stride += 2;
        }
        Jumps { count, stride, threads, next: first }
    }
}

impl Iterator for Jumps {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.next >= self.count {
            return None;
        }
        let item = (self.next as u128 * self.stride as u128 % self.count as u128) as usize;
        self.next += self.threads;
        Some(item)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn threads_share_every_item_once() {
        for (count, threads) in [(1, 1), (1, 128), (10, 3), (1000, 16), (1024, 128), (100_000, 7)] {
            let seen = Mutex::new(vec![0; count]);
            share(count, threads, |mine| {
                mine.for_each(|i| seen.lock().unwrap()[i] += 1);
                Ok(())
            })
            .unwrap();
            assert!(seen.into_inner().unwrap().into_iter().all(|times| times == 1), "{count} items, {threads} threads");
        }
    }

    #[test]
    fn a_thread_that_fails_fails_the_case() {
        let outcome = share(10, 4, |mut mine| if mine.next() == Some(0) { Err("no".into()) } else { Ok(()) });
        assert!(outcome.is_err());
    }

    #[test]
    fn every_case_runs_in_small() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path()).unwrap();
        let blocks = Blocks::generate(20, 1000, 1);
        let absent = Blocks::generate(20, 1000, 2);
        put_all(&site, &blocks, 4, 3, Durability::Strict).unwrap();
        let filled = Filled::new(&site, &blocks, 1, Durability::Relaxed).unwrap();
        filled.get_all(&blocks, 3).unwrap();
        filled.has_all(&blocks, true, 3).unwrap();
        filled.has_all(&absent, false, 3).unwrap();
        assert!(filled.has_all(&absent, true, 1).is_err());
        crate::raw::append(&site, &blocks, 3000).unwrap();
        crate::raw::RawFile::write(&site, &blocks).unwrap().read_all(2).unwrap();
    }
}
