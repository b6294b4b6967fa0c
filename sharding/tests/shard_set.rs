//! Promises of the shards as one.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use basalt_blockstore::{
    ErrorKind, Multihash, Options, Result,
    disk::sim::{Fault, Loss, SimDisk, SimRng},
    ground::PlainGround,
    index::sim::{IndexLoss, SimEngine},
    store::Env,
};
use basalt_sharding::{RECORD_DIR, ShardSet};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const KEY: [u8; 16] = [5; 16];

fn layout(dir: &TempDir, weights: &[u32]) -> Vec<(PathBuf, u32)> {
    weights.iter().enumerate().map(|(id, weight)| (dir.path().join(format!("shard-{id}")), *weight)).collect()
}

fn home(dir: &TempDir) -> PathBuf {
    dir.path().join("keyspace")
}

fn open(dir: &TempDir, weights: &[u32]) -> Result<ShardSet> {
    open_at(&layout(dir, weights), &home(dir), KEY)
}

fn open_at(shards: &[(PathBuf, u32)], home: &Path, key: [u8; 16]) -> Result<ShardSet> {
    ShardSet::open(shards, home, key, &Env::real(), &Options::default())
}

fn block(number: u32) -> (Multihash, Vec<u8>) {
    let value = number.to_le_bytes().repeat(1 + number as usize % 5);
    let key = [&[0x12, 32][..], &Sha256::digest(&value)].concat();
    (Multihash::parse(&key).unwrap(), value)
}

fn put(set: &ShardSet, blocks: &[(Multihash, Vec<u8>)]) {
    let blocks: Vec<(&Multihash, &[u8])> = blocks.iter().map(|(key, value)| (key, value.as_slice())).collect();
    set.submit_put(&blocks).unwrap().wait().unwrap();
}

#[test]
fn a_batch_goes_to_every_shard_and_sums_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    let set = open(&dir, &[1, 1, 2, 4]).unwrap();
    let blocks: Vec<_> = (0..500).map(block).collect();
    put(&set, &blocks);
    for (key, value) in &blocks {
        let mut read = Vec::new();
        set.get(key, &mut read).unwrap();
        assert_eq!(&read, value);
        assert_eq!(set.size(key).unwrap(), Some(value.len() as u32));
    }
    assert!(!set.has(&block(1000).0).unwrap());
    assert_eq!(set.get(&block(1000).0, &mut Vec::new()).unwrap_err().kind(), ErrorKind::NotFound);
    let each = set.stats_each();
    assert!(each.iter().all(|stats| stats.count > 0), "{each:?}");
    let sum = set.stats();
    assert_eq!(sum.count, 500);
    assert_eq!(sum.bytes, blocks.iter().map(|(_, value)| value.len() as u64).sum::<u64>());
    let gone: Vec<&Multihash> = blocks[..200].iter().map(|(key, _)| key).collect();
    set.submit_delete(&gone).unwrap().wait().unwrap();
    set.delete(&blocks[200].0).unwrap();
    set.delete(&block(1000).0).unwrap();
    assert_eq!(set.stats().count, 299);
    set.sync().unwrap();
    set.close().unwrap();
}

#[test]
fn enumeration_is_merged_in_byte_order_whatever_the_page() {
    let dir = tempfile::tempdir().unwrap();
    for weights in [&[1][..], &[1, 1, 1], &[1; 9]] {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let set = open(&dir, weights).unwrap();
        let blocks: Vec<_> = (0..700).map(block).collect();
        put(&set, &blocks);
        let wanted: BTreeMap<Multihash, u32> =
            blocks.iter().map(|(key, value)| (key.clone(), value.len() as u32)).collect();
        let wanted: Vec<(Multihash, u32)> = wanted.into_iter().collect();
        for limit in [1, 7, 64, 699, 700, 5000] {
            let mut all = Vec::new();
            loop {
                let page = set.enumerate(all.last().map(|(key, _)| key), limit).unwrap();
                let ended = page.len() < limit;
                all.extend(page);
                if ended {
                    break;
                }
            }
            assert_eq!(all, wanted, "limit {limit}");
        }
        let mut walk = set.walk(Some(&wanted[99].0));
        let mut rest = walk.next_page(50).unwrap();
        rest.extend(walk.next_page(usize::MAX).unwrap());
        assert_eq!(rest, wanted[100..]);
        assert_eq!(walk.next_page(10).unwrap(), []);
    }
}

#[test]
fn a_walk_gives_blocks_that_stay_exactly_once_while_others_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let set = open(&dir, &[1, 1, 1]).unwrap();
    let stay: Vec<_> = (0..400).map(block).collect();
    let go: Vec<_> = (1000..1400).map(block).collect();
    put(&set, &stay);
    put(&set, &go);
    let mut walk = set.walk(None);
    let mut seen = Vec::new();
    for round in 0.. {
        let page = walk.next_page(23).unwrap();
        if page.is_empty() {
            break;
        }
        seen.extend(page.into_iter().map(|(key, _)| key));
        if let Some((key, _)) = go.get(round) {
            set.delete(key).unwrap();
        }
        put(&set, &[block(2000 + round as u32)]);
    }
    assert!(seen.is_sorted());
    for (key, _) in &stay {
        assert_eq!(seen.iter().filter(|found| *found == key).count(), 1);
    }
}

#[test]
fn a_node_opens_again_as_it_was_made() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir, &[1, 3]).unwrap().close().unwrap();
    let set = open(&dir, &[1, 3]).unwrap();
    assert_eq!(set.epoch().number, 1);
    assert_eq!(set.epoch().shards[1].weight, 3);
}

fn refused(outcome: Result<ShardSet>, words: &[&str]) {
    let err = outcome.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Format, "{err}");
    for word in words {
        assert!(err.to_string().contains(word), "'{word}' is not in: {err}");
    }
}

#[test]
fn another_layout_than_the_node_was_made_with_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir, &[1, 1, 1]).unwrap().close().unwrap();
    refused(open(&dir, &[1, 1]), &["made with 3 shards", "lists 2"]);
    refused(open(&dir, &[1, 1, 2]), &["shard 2", "weight 1", "weight back"]);
    refused(open_at(&layout(&dir, &[1; 3]), &home(&dir), [6; 16]), &["belongs to another node"]);
    let mut swapped = layout(&dir, &[1; 3]);
    swapped.swap(0, 1);
    refused(open_at(&swapped, &home(&dir), KEY), &["is shard 1", "as shard 0", "put the paths back"]);
    open(&dir, &[1, 1, 1]).unwrap();
}

#[test]
fn a_fourth_shard_creates_nothing_when_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir, &[1, 1, 1]).unwrap().close().unwrap();
    let shards = layout(&dir, &[1; 4]);
    refused(open_at(&shards, &home(&dir), KEY), &["made with 3 shards"]);
    assert!(!shards[3].0.exists());
}

#[test]
fn a_folder_whose_disk_is_not_mounted_is_refused_and_stays_empty() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir, &[1, 1]).unwrap().close().unwrap();
    let lost = dir.path().join("shard-1");
    std::fs::rename(&lost, dir.path().join("unmounted")).unwrap();
    std::fs::create_dir(&lost).unwrap();
    refused(open(&dir, &[1, 1]), &["shard 1", "shard-1", "mounted?"]);
    assert_eq!(std::fs::read_dir(&lost).unwrap().count(), 0);
}

#[test]
fn blocks_without_the_home_record_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let set = open(&dir, &[1, 1]).unwrap();
    put(&set, &[block(1)]);
    set.close().unwrap();
    std::fs::remove_dir_all(home(&dir)).unwrap();
    refused(open(&dir, &[1, 1]), &["holds blocks", "keyspace"]);
    assert!(!home(&dir).join(RECORD_DIR).exists());
}

#[test]
fn an_init_that_was_cut_short_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir, &[1, 1]).unwrap().close().unwrap();
    // The home copy is written last, and a shard's copy may not have been written either.
    std::fs::remove_dir_all(home(&dir)).unwrap();
    std::fs::remove_dir_all(dir.path().join("shard-1").join(RECORD_DIR)).unwrap();
    open(&dir, &[1, 1]).unwrap().close().unwrap();
    open(&dir, &[1, 1]).unwrap();
}

#[test]
fn reading_only_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let shards = layout(&dir, &[1, 1]);
    let options = Options::default();
    let read_only = || ShardSet::open_read_only(&shards, &home(&dir), KEY, &Env::real(), &options);
    refused(read_only(), &["no node was made there"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let set = open(&dir, &[1, 1]).unwrap();
    put(&set, &[block(1)]);
    set.close().unwrap();
    let set = read_only().unwrap();
    assert!(set.has(&block(1).0).unwrap());
}

#[test]
fn blocks_are_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let blocks: Vec<_> = (0..100).map(block).collect();
    let set = open(&dir, &[1, 1, 1]).unwrap();
    put(&set, &blocks);
    set.close().unwrap();
    let set = open(&dir, &[1, 1, 1]).unwrap();
    assert_eq!(set.stats().count, 100);
    assert!(blocks.iter().all(|(key, _)| set.has(key).unwrap()));
}

/// What a killed process wrote reads back from memory; what is built on it must not fall with it.
#[test]
fn a_node_whose_making_was_killed_anywhere_stays_through_a_power_cut() {
    let shards = [(PathBuf::from("/shard-0"), 1), (PathBuf::from("/shard-1"), 1)];
    for kill in 1.. {
        let disk = SimDisk::new();
        let index = SimEngine::new(disk.clone());
        let open = || {
            let env = Env {
                disk: Arc::new(disk.clone()),
                clock: Arc::new(disk.clone()),
                index: Arc::new(index.clone()),
                ground: Arc::new(PlainGround),
                random: Arc::new(disk.clone()),
                sequence: Arc::new(AtomicU64::new(1)),
                unflushed: Arc::default(),
            };
            ShardSet::open(&shards, Path::new("/keyspace"), KEY, &env, &Options::default())
        };
        let mut rng = SimRng::new(kill);
        disk.inject(kill, Fault::PowerCut);
        let made = open();
        let was_killed = disk.is_cut();
        assert_eq!(made.is_err(), was_killed);
        drop(made);
        disk.restart(&mut rng, Loss::Process);
        let set = open().unwrap();
        let blocks: Vec<_> = (0..8).map(block).collect();
        put(&set, &blocks);
        drop(set);
        disk.restart(&mut rng, Loss::Everything);
        index.crash(&mut rng, IndexLoss::Everything);
        let set = open().unwrap_or_else(|err| panic!("killed at {kill}: {err}"));
        assert!(blocks.iter().all(|(key, _)| set.has(key).unwrap()), "killed at {kill}");
        if !was_killed {
            return;
        }
    }
}
