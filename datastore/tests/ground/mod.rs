//! What the tests stand on: a node in a temporary folder, with a clock that a test moves.

#![allow(dead_code)]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use basalt_blockstore::{
    Multihash,
    disk::{Clock, Disk},
    store::Env,
};
use basalt_datastore::{Datastore, Entry, ErrorKind, Key, Layout, Options, Query};
use tempfile::TempDir;

/// A clock whose date stands still until it is moved; threads and the monotonic clock are real.
#[derive(Debug)]
pub struct MovedClock {
    real: Arc<dyn Clock>,
    unix_ms: AtomicU64,
}

impl MovedClock {
    pub fn advance(&self, ms: u64) {
        self.unix_ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for MovedClock {
    fn monotonic_ns(&self) -> u64 {
        self.real.monotonic_ns()
    }
    fn unix_ms(&self) -> u64 {
        self.unix_ms.load(Ordering::SeqCst)
    }
    fn threads(&self) -> bool {
        true
    }
}

/// A node's folder, and what opens it.
pub struct Ground {
    pub dir: TempDir,
    pub clock: Arc<MovedClock>,
    /// In place of the real one.
    pub disk: Option<Arc<dyn Disk>>,
    pub layout: Layout,
    pub options: Options,
}

pub const START_UNIX_MS: u64 = 1_800_000_000_000;

impl Ground {
    pub fn new(shards: usize, options: Options) -> Ground {
        // In memory where that is offered: these tests are about order and meaning, and flush often.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let clock = Arc::new(MovedClock { real: Env::real().clock, unix_ms: AtomicU64::new(START_UNIX_MS) });
        let shards = (0..shards).map(|id| (dir.path().join(format!("shard-{id}")), 1)).collect();
        let layout = Layout { shards, keyspace: dir.path().join("keyspace"), ring_key: [7; 16] };
        Ground { dir, clock, disk: None, layout, options }
    }

    pub fn open(&self) -> Datastore {
        Datastore::open(&self.layout, &self.env(), self.options.clone()).unwrap()
    }

    pub fn open_read_only(&self) -> Datastore {
        Datastore::open_read_only(&self.layout, &self.env(), self.options.clone()).unwrap()
    }

    /// As in a new process: nothing but the disk is carried over, and the clock.
    pub fn env(&self) -> Env {
        let mut env = Env { clock: self.clock.clone(), ..Env::real() };
        env.disk = self.disk.clone().unwrap_or(env.disk);
        env
    }
}

/// Options with bounds that fit a test.
pub fn small() -> Options {
    let mut options = Options::default();
    options.store.segment_bytes = 1 << 20;
    options.store.reserve_bytes = 0;
    options.store.index_memory_bytes = 1 << 20;
    options
}

pub fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// A block's key; numbers are spread over the shards, and over the whole alphabet of base32.
pub fn block_key(number: u8) -> Key {
    Key::of_block(&block_hash(number))
}

pub fn block_hash(number: u8) -> Multihash {
    let mixed = number.wrapping_mul(151).rotate_left(3);
    let mut digest = [number; 12];
    digest[0] = mixed;
    Multihash::parse(&[&[0x12, 12][..], &digest].concat()).unwrap()
}

pub fn get(store: &Datastore, key: &Key) -> Option<Vec<u8>> {
    let mut value = b"what was there before".to_vec();
    match store.get(key, &mut value) {
        Ok(()) => Some(value),
        Err(err) => {
            assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");
            None
        }
    }
}

/// All entries of a query, pulled in pages of such a size.
pub fn entries(store: &Datastore, query: Query, entries_max: usize, bytes_max: usize) -> Vec<Entry> {
    let mut cursor = store.query(query).unwrap();
    let mut all = Vec::new();
    loop {
        let page = cursor.next_page(entries_max, bytes_max).unwrap();
        assert!(page.len() <= entries_max.max(1));
        if page.is_empty() {
            assert_eq!(cursor.next_page(1, 1).unwrap(), [], "the end is the end");
            return all;
        }
        all.extend(page);
    }
}

pub fn all_keys(store: &Datastore) -> Vec<String> {
    let query = Query { keys_only: true, ..Query::default() };
    entries(store, query, 100, 1 << 20).into_iter().map(|entry| entry.key.as_str().into()).collect()
}
