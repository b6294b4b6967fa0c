//! A node on a simulated disk and index, with real threads and a clock that a test moves.

#![allow(dead_code)]

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use basalt_blockstore::{
    Durability, Multihash, Options as StoreOptions, disk::sim::SimDisk, ground::PlainGround, index::sim::SimEngine,
    store::Env,
};
use basalt_datastore::{Datastore, Key, Layout, Options};
use sha2::{Digest, Sha256};

/// Longer than any of these tests needs where it does not hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    pub disk: SimDisk,
    pub index: SimEngine,
    pub layout: Layout,
    pub options: Options,
}

impl World {
    pub fn new(durability: Durability) -> World {
        let disk = SimDisk::new();
        disk.set_threads(true);
        let layout = Layout {
            shards: (0..2).map(|id| (PathBuf::from(format!("/node/shard-{id}")), 1)).collect(),
            keyspace: PathBuf::from("/node/keyspace"),
            ring_key: [7; 16],
        };
        let store = StoreOptions {
            flush_deadline: Duration::from_secs(30),
            segment_bytes: 64 << 10,
            ..StoreOptions::default()
        };
        let options = Options { durability, store, ..Options::default() };
        World { index: SimEngine::new(disk.clone()), disk, layout, options }
    }

    pub fn open(&self) -> Arc<Datastore> {
        let env = Env {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(self.disk.clone()),
            index: Arc::new(self.index.clone()),
            ground: Arc::new(PlainGround),
            random: Arc::new(self.disk.clone()),
            sequence: Arc::new(AtomicU64::new(1)),
            unflushed: Arc::default(),
        };
        Arc::new(Datastore::open(&self.layout, &env, self.options.clone()).unwrap())
    }

    /// As long as a call may be out, and a little longer; then the watch looks.
    pub fn deadline_passes(&self, store: &Datastore) {
        self.disk.advance_ns(31_000_000_000);
        for _ in 0..3 {
            store.watch();
        }
    }
}

pub fn value(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(100)
}

pub fn multihash(number: u32) -> Multihash {
    Multihash::parse(&[&[0x12, 32][..], &Sha256::digest(value(number))].concat()).unwrap()
}

pub fn key(number: u32) -> Key {
    Key::of_block(&multihash(number))
}
