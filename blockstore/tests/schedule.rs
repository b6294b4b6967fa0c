//! Concurrent writers under a deterministic scheduler: every order of locks is a run, and a failing one is printed with its schedule.

#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use basalt_blockstore::{
    Durability, Options,
    disk::sim::{Fault, Loss, SimDisk, SimRng},
    ground::PlainGround,
    index::sim::{IndexLoss, SimEngine},
    store::{Env, Op, Store},
};
use shuttle::{sync::Mutex, thread};

fn env(disk: &SimDisk, index: &SimEngine) -> Env {
    Env {
        disk: Arc::new(disk.clone()),
        clock: Arc::new(disk.clone()),
        index: Arc::new(index.clone()),
        ground: Arc::new(PlainGround),
        random: Arc::new(disk.clone()),
        sequence: Arc::new(AtomicU64::new(1)),
        unflushed: Arc::default(),
    }
}

fn options(durability: Durability) -> Options {
    Options { durability, segment_bytes: 12 << 10, reserve_bytes: 0, ..Options::default() }
}

fn value(key: u8) -> Vec<u8> {
    vec![key; 300 + usize::from(key) * 40]
}

/// Three writers with keys of their own and one that all of them put; the power may go at some step; then every acknowledged put is there.
fn writers(durability: Durability, runs: usize, faults: bool) {
    let run = AtomicU64::new(0);
    shuttle::check_random(
        move || {
            let seed = run.fetch_add(1, Ordering::Relaxed);
            let mut rng = SimRng::new(seed);
            let disk = SimDisk::new();
            let index = SimEngine::new(disk.clone());
            let store = Arc::new(Store::open(Path::new("/shard"), &env(&disk, &index), options(durability)).unwrap());
            if faults {
                let fault = [Fault::PowerCut, Fault::Error(std::io::ErrorKind::Other)][rng.below(2) as usize];
                disk.inject(disk.steps() + 1 + rng.below(30), fault);
            }
            let acknowledged = Arc::new(Mutex::new(Vec::new()));
            let threads: Vec<_> = (0..3u8)
                .map(|writer| {
                    let (store, acknowledged) = (store.clone(), acknowledged.clone());
                    thread::spawn(move || {
                        for key in [writer * 8, 100, writer * 8 + 1, writer * 8 + 2] {
                            let done = store.write(&[Op::PutIfAbsent { key: &[key], value: &value(key) }], false);
                            if done.is_ok() {
                                acknowledged.lock().unwrap().push(key);
                            }
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            let synced = store.sync().is_ok();
            if !faults {
                assert!(synced);
                assert_eq!(acknowledged.lock().unwrap().len(), 12);
                assert_eq!(store.stats().count, 10);
            }
            drop(store);
            let must_be_there = durability == Durability::Strict || synced;
            disk.restart(&mut rng, if seed % 2 == 0 { Loss::Random } else { Loss::Everything });
            index.crash(&mut rng, IndexLoss::Prefix);
            let store = Store::open(Path::new("/shard"), &env(&disk, &index), options(durability)).unwrap();
            let mut there = 0;
            for key in 0..=100 {
                let mut buffer = Vec::new();
                match store.get(&[key], &mut buffer) {
                    Ok(_) => {
                        assert_eq!(buffer, value(key), "wrong bytes for {key}");
                        there += 1;
                    }
                    Err(err) => {
                        assert!(err.is_not_found(), "{err:?}");
                        let lost = must_be_there && acknowledged.lock().unwrap().contains(&key);
                        assert!(!lost, "key {key} was acknowledged and is lost");
                    }
                }
            }
            assert_eq!(store.stats().count, there);
        },
        runs,
    );
}

#[test]
fn strict_writers_side_by_side_lose_nothing() {
    writers(Durability::Strict, 400, false);
}

#[test]
fn strict_writers_lose_nothing_when_an_operation_fails_or_the_power_goes() {
    writers(Durability::Strict, 1500, true);
}

#[test]
fn ordered_writers_side_by_side_lose_nothing_once_synced() {
    writers(Durability::Ordered, 1000, true);
}
