//! One shard of a Basalt node: an append-only log of blocks with a compact index.
//!
//! Blocks are immutable and content-addressed, so there is nothing to update in place: the log is the truth, and the index can
//! always be rebuilt from it. `docs/format.md` gives every byte, and what is durable when.
//!
//! - [`Shard`] keeps blocks by [`Multihash`]: put if absent, get, delete, enumerate.
//! - [`Store`] is the log-structured store beneath it, for keys of any kind; the keyspace of `basalt-datastore` stands on it too,
//!   so there is one recovery, one order and one crash search for blocks and pins.
//! - [`disk`] is the only way to files, threads and clocks, so that a test can fail or lose any operation.
//!
//! No async, no ZFS: what the store must know of its ground comes through [`ground::Ground`].

pub mod disk;
pub mod ground;
pub mod index;
pub mod store;

mod digest;
mod error;
mod multihash;
mod options;
mod shard;

pub use digest::{Digest, verify_digest};
pub use error::{Error, ErrorKind, Result};
pub use multihash::{MULTIHASH_BYTES_MAX, Multihash};
pub use options::{Durability, OnCorrupt, Options};
pub use shard::Shard;
pub use store::Store;

mod interim {
    //! INTERIM, until the log lands: enough of the real disk and clock for the rooms above; no index.
    use std::{fs, io, os::unix::fs::FileExt, path::Path, sync::Arc, time::Duration};

    use crate::{disk::*, index::*, store::Env};

    #[derive(Debug)]
    struct OsFile(fs::File);

    impl File for OsFile {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let mut done = 0;
            while done < buffer.len() {
                match self.0.read_at(&mut buffer[done..], offset + done as u64)? {
                    0 => break,
                    n => done += n,
                }
            }
            Ok(done)
        }
        fn read_two_at(&self, head: &mut [u8], body: &mut [u8], offset: u64) -> io::Result<usize> {
            let first = self.read_at(head, offset)?;
            if first < head.len() { Ok(first) } else { Ok(first + self.read_at(body, offset + first as u64)?) }
        }
        fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
            self.0.write_all_at(&parts.concat(), offset)
        }
        fn sync(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn length(&self) -> io::Result<u64> {
            Ok(self.0.metadata()?.len())
        }
        fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn allocated_bytes(&self) -> io::Result<u64> {
            self.length()
        }
    }
    impl Disk for OsDisk {
        fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            Ok(Arc::new(OsFile(fs::File::options().read(true).write(true).create_new(true).open(path)?)))
        }
        fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
            Ok(Arc::new(OsFile(fs::File::options().read(true).write(write).open(path)?)))
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            fs::rename(from, to)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            fs::remove_file(path)
        }
        fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
            fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        }
        fn create_dir(&self, dir: &Path) -> io::Result<()> {
            fs::create_dir_all(dir)
        }
        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            fs::File::open(dir)?.sync_all()
        }
        fn available(&self, _: &Path) -> io::Result<u64> {
            Ok(1 << 40)
        }
    }
    impl Clock for OsClock {
        fn monotonic_ns(&self) -> u64 {
            self.unix_ms() * 1_000_000
        }
        fn unix_ms(&self) -> u64 {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64)
        }
        fn threads(&self) -> bool {
            true
        }
        fn sleep(&self, time: Duration) {
            std::thread::sleep(time);
        }
    }
    #[derive(Debug)]
    struct NoIndex;
    impl IndexEngine for NoIndex {
        fn open(&self, _: &Path, _: bool) -> crate::Result<Arc<dyn Index>> {
            Err(crate::Error::not_found())
        }
        fn destroy(&self, _: &Path) -> crate::Result<()> {
            Ok(())
        }
    }
    pub(crate) fn env() -> Env {
        Env {
            disk: Arc::new(OsDisk),
            clock: Arc::new(OsClock),
            index: Arc::new(NoIndex),
            ground: Arc::new(crate::ground::PlainGround),
            sequence: Arc::default(),
        }
    }
}
