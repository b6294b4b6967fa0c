//! What is durable before what is written (STORE 11 to 13), seen on the disk: every write and flush of the stores goes through one that
//! keeps a diary.

#![allow(clippy::unwrap_used)]

mod ground;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use basalt_blockstore::{
    Durability,
    disk::{Disk, File, OsDisk},
};
use basalt_datastore::{BatchOp, Datastore, Options, Query, Ticket};
use ground::{Ground, block_key, entries, get, key, small};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Write,
    Sync,
    Read,
}

/// What was done to the files of a store, the folder's name of which is kept.
type Diary = Arc<Mutex<Vec<(String, What)>>>;

#[derive(Debug)]
struct DiaryDisk {
    root: PathBuf,
    diary: Diary,
}

impl DiaryDisk {
    fn of(&self, path: &Path, file: Arc<dyn File>) -> Arc<dyn File> {
        let store = path.strip_prefix(&self.root).unwrap().iter().next().unwrap().to_string_lossy().into_owned();
        Arc::new(DiaryFile { store, file, diary: self.diary.clone() })
    }
}

impl Disk for DiaryDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.of(path, OsDisk.create(path)?))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        Ok(self.of(path, OsDisk.open(path, write)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsDisk.list(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.create_dir(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.sync_dir(dir)
    }
    fn available(&self, dir: &Path) -> io::Result<u64> {
        OsDisk.available(dir)
    }
}

#[derive(Debug)]
struct DiaryFile {
    store: String,
    file: Arc<dyn File>,
    diary: Diary,
}

impl DiaryFile {
    fn note(&self, what: What) {
        self.diary.lock().unwrap().push((self.store.clone(), what));
    }
}

impl File for DiaryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.note(What::Read);
        self.file.read_at(buffer, offset)
    }
    fn read_two_at(&self, head: &mut [u8], body: &mut [u8], offset: u64) -> io::Result<usize> {
        self.note(What::Read);
        self.file.read_two_at(head, body, offset)
    }
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        // Before it is done, a flush after it is done: the strictest reading of "before".
        self.note(What::Write);
        self.file.write_at(parts, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        self.note(What::Sync);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.reserve(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.allocated_bytes()
    }
}

struct Watched {
    diary: Diary,
    store: Datastore,
    shards: usize,
    _ground: Ground,
}

impl Watched {
    /// A node whose stores flush only when they are asked to.
    fn open(shards: usize, durability: Durability) -> Watched {
        let mut options = Options { durability, ..small() };
        options.store.flush_delay = Duration::from_secs(3600);
        options.store.idle_mark_delay = Duration::from_secs(3600);
        let mut ground = Ground::new(shards, options);
        let diary = Diary::default();
        let disk = DiaryDisk { root: ground.dir.path().into(), diary: diary.clone() };
        ground.disk = Some(Arc::new(disk));
        let store = ground.open();
        let watched = Watched { diary, store, shards, _ground: ground };
        // The first write of a log flushes its segment's header; that is done now.
        watched.put_blocks(9);
        watched.store.put(&key("/first"), b"").unwrap();
        watched.store.sync().unwrap();
        watched.done();
        watched
    }

    /// What was done since the last call.
    fn done(&self) -> Vec<(String, What)> {
        std::mem::take(&mut self.diary.lock().unwrap())
    }

    /// A block of that shard, one of several.
    fn block_in(&self, shard: usize, number: usize) -> basalt_datastore::Key {
        let keys = (0..=255u8).map(block_key);
        let in_shard = |key: &basalt_datastore::Key| {
            let name = key.as_str().strip_prefix("/blocks/").unwrap();
            let hash = basalt_blockstore::Multihash::parse_base32(name).unwrap();
            usize::from(self.store.shards().place(&hash)) == shard
        };
        keys.filter(in_shard).nth(number).unwrap()
    }

    /// A block in every shard.
    fn put_blocks(&self, number: usize) {
        for shard in 0..self.shards {
            self.store.put(&self.block_in(shard, number), b"block").unwrap();
        }
    }
}

fn shard(id: usize) -> String {
    format!("shard-{id}")
}

fn count(done: &[(String, What)], store: &str, what: What) -> usize {
    done.iter().filter(|one| **one == (store.to_string(), what)).count()
}

fn first(done: &[(String, What)], store: &str, what: What) -> Option<usize> {
    done.iter().position(|one| *one == (store.to_string(), what))
}

fn last(done: &[(String, What)], store: &str, what: What) -> Option<usize> {
    done.iter().rposition(|one| *one == (store.to_string(), what))
}

/// Whether some try flushes nothing. A flush that was asked for earlier may come late, by the store's own thread, so one try proves nothing; but what
/// waits for a flush has one every time.
fn ever_quiet(mut tries: impl FnMut(usize) -> Vec<(String, What)>) -> bool {
    (10..30).any(|number| tries(number).iter().all(|(_, what)| *what != What::Sync))
}

/// Whether `store` was flushed behind its last write so far, before that of another one at `before`.
fn flushed_before(done: &[(String, What)], store: &str, before: usize) -> bool {
    let done = &done[..before];
    last(done, store, What::Write) < last(done, store, What::Sync)
}

/// The ways in which a caller waits: here, or by a callback.
const WAYS: [fn(&Datastore, Vec<BatchOp>); 2] = [
    |store, ops| store.batch(ops).unwrap(),
    |store, ops| {
        let (sender, receiver) = mpsc::channel();
        let submitted: Vec<Ticket> = ops
            .into_iter()
            .map(|op| match op {
                BatchOp::Put(key, value) => store.submit_put(&key, &value, None).unwrap(),
                BatchOp::Delete(key) => store.submit_delete(&key).unwrap(),
            })
            .collect();
        Ticket::all(submitted).then(move |outcome| sender.send(outcome).unwrap());
        receiver.recv().unwrap().unwrap();
    },
];

fn put(text: &str) -> Vec<BatchOp> {
    vec![BatchOp::Put(key(text), b"value".to_vec())]
}

#[test]
fn strict_flushes_every_write_before_it_returns() {
    let watched = Watched::open(2, Durability::Strict);
    watched.store.put(&watched.block_in(1, 0), b"block").unwrap();
    let done = watched.done();
    assert!(first(&done, &shard(1), What::Write).unwrap() < last(&done, &shard(1), What::Sync).unwrap(), "{done:?}");
    for way in WAYS {
        way(&watched.store, put("/pins/x"));
        let done = watched.done();
        assert!(last(&done, "keyspace", What::Write).unwrap() < last(&done, "keyspace", What::Sync).unwrap());
        // A pin that is removed must not come back: its blocks go next.
        way(&watched.store, vec![BatchOp::Delete(key("/pins/x"))]);
        let done = watched.done();
        assert!(last(&done, "keyspace", What::Write).unwrap() < last(&done, "keyspace", What::Sync).unwrap());
    }
}

#[test]
fn a_duplicate_put_costs_neither_write_nor_flush() {
    for durability in [Durability::Strict, Durability::Ordered, Durability::Relaxed] {
        let watched = Watched::open(1, durability);
        watched.put_blocks(0);
        watched.store.sync().unwrap();
        watched.done();
        for _ in 0..3 {
            watched.put_blocks(0);
            watched.store.batch(vec![BatchOp::Put(watched.block_in(0, 0), b"block".to_vec())]).unwrap();
        }
        assert_eq!(watched.done(), [], "{durability}");
    }
}

#[test]
fn ordered_acknowledges_blocks_unflushed_and_flushes_them_all_before_metadata_is_written() {
    for way in WAYS {
        let watched = Watched::open(3, Durability::Ordered);
        assert!(ever_quiet(|number| {
            watched.put_blocks(number);
            watched.done()
        }));
        for round in 0..3 {
            watched.put_blocks(round);
            way(&watched.store, put("/pins/x"));
            let done = watched.done();
            let written = first(&done, "keyspace", What::Write).unwrap();
            for id in 0..3 {
                assert!(flushed_before(&done, &shard(id), written), "shard {id}: {done:?}");
            }
            assert!(written < last(&done, "keyspace", What::Sync).unwrap(), "{done:?}");
        }
    }
}

#[test]
fn ordered_flushes_only_dirty_shards_and_none_twice() {
    for way in WAYS {
        let watched = Watched::open(3, Durability::Ordered);
        watched.store.put(&watched.block_in(1, 0), b"block").unwrap();
        way(&watched.store, put("/pins/x"));
        let done = watched.done();
        assert_eq!(count(&done, &shard(0), What::Sync) + count(&done, &shard(2), What::Sync), 0, "{done:?}");
        assert!(count(&done, &shard(1), What::Sync) > 0, "{done:?}");
        way(&watched.store, put("/pins/y"));
        let done = watched.done();
        assert!(done.iter().all(|(store, _)| store == "keyspace"), "nothing is dirty any more: {done:?}");
    }
}

#[test]
fn ordered_lets_bookkeeping_through_without_barrier_and_flush() {
    for way in WAYS {
        let watched = Watched::open(2, Durability::Ordered);
        watched.put_blocks(0);
        assert!(ever_quiet(|_| {
            watched.done();
            for text in ["/providers/x", "/provider/keystore", "/dht/pk/x", "/local/temp_bootstrap_peers"] {
                way(&watched.store, put(text));
            }
            watched.done()
        }));
        // One key of another kind in a batch makes all of it wait.
        watched.put_blocks(1);
        let ops = ["/providers/x", "/pins/x"].map(|text| BatchOp::Put(key(text), b"v".to_vec()));
        watched.store.batch(ops.into()).unwrap();
        let done = watched.done();
        let written = first(&done, "keyspace", What::Write).unwrap();
        assert!(flushed_before(&done, &shard(0), written) && flushed_before(&done, &shard(1), written), "{done:?}");
    }
}

#[test]
fn a_batch_writes_blocks_then_metadata_then_block_deletes() {
    for durability in [Durability::Strict, Durability::Ordered, Durability::Relaxed] {
        let watched = Watched::open(2, durability);
        let (old, new) = (watched.block_in(0, 0), watched.block_in(1, 0));
        watched.store.put(&old, b"old").unwrap();
        watched.store.sync().unwrap();
        watched.done();
        let ops = vec![
            BatchOp::Delete(old.clone()),
            BatchOp::Put(key("/pins/a"), b"pin".to_vec()),
            BatchOp::Delete(key("/pins/b")),
            BatchOp::Put(new.clone(), b"new".to_vec()),
        ];
        watched.store.batch(ops).unwrap();
        let done = watched.done();
        let blocks = first(&done, &shard(1), What::Write).unwrap();
        let metadata = first(&done, "keyspace", What::Write).unwrap();
        let deletes = first(&done, &shard(0), What::Write).unwrap();
        assert!(blocks < metadata && metadata < deletes, "{durability}: {done:?}");
        assert_eq!(count(&done, "keyspace", What::Write), 1, "one record, so that it is atomic: {done:?}");
        assert!(first(&done, "keyspace", What::Sync).unwrap() < deletes, "{durability}: {done:?}");
        if durability != Durability::Relaxed {
            assert!(first(&done, &shard(1), What::Sync).unwrap() < metadata, "{durability}: {done:?}");
        }
        assert_eq!((get(&watched.store, &old), get(&watched.store, &new).unwrap()), (None, b"new".to_vec()));
    }
}

#[test]
fn relaxed_flushes_nothing_but_metadata_before_a_block_is_deleted() {
    for way in WAYS {
        let watched = Watched::open(2, Durability::Relaxed);
        assert!(ever_quiet(|number| {
            watched.put_blocks(number);
            way(&watched.store, put("/pins/x"));
            way(&watched.store, vec![BatchOp::Delete(key("/pins/x"))]);
            watched.done()
        }));
        watched.put_blocks(0);
        watched.done();
        way(&watched.store, put("/pins/x"));
        way(&watched.store, vec![BatchOp::Delete(watched.block_in(0, 0))]);
        let done = watched.done();
        let deleted = first(&done, &shard(0), What::Write).unwrap();
        assert!(flushed_before(&done, "keyspace", deleted), "{done:?}");
        // Once: Kubo's gc deletes one by one.
        assert!(ever_quiet(|number| {
            way(&watched.store, put("/providers/x"));
            way(&watched.store, vec![BatchOp::Delete(watched.block_in(1, number))]);
            watched.done()
        }));
    }
}

#[test]
fn sync_flushes_every_dirty_store() {
    for durability in [Durability::Ordered, Durability::Relaxed] {
        let watched = Watched::open(2, durability);
        watched.put_blocks(0);
        watched.store.put(&key("/providers/x"), b"x").unwrap();
        watched.store.sync().unwrap();
        let done = watched.done();
        for store in [shard(0), shard(1), "keyspace".into()] {
            assert!(flushed_before(&done, &store, done.len()), "{store}: {done:?}");
        }
    }
}

#[test]
fn only_who_asks_for_values_reads_the_logs() {
    let watched = Watched::open(2, Durability::Ordered);
    for number in 10..30 {
        watched.put_blocks(number);
        watched.store.put(&key(&format!("/m/{number}")), &vec![1; 20_000]).unwrap();
    }
    watched.store.sync().unwrap();
    watched.done();
    let sorted = vec![basalt_datastore::Order::KeyDescending];
    let keys = Query { keys_only: true, returns_sizes: true, offset: 3, limit: 50, ..Query::default() };
    let filters = vec![basalt_datastore::Filter::KeyPrefix("/blocks/C".into())];
    for query in [
        keys.clone(),
        Query { orders: sorted, ..keys.clone() },
        Query { filters: filters.clone(), ..keys },
        Query { filters: vec![basalt_datastore::Filter::KeyPrefix("/none".into())], ..Query::default() },
        Query { offset: 63, ..Query::default() },
    ] {
        entries(&watched.store, query, 7, 1 << 20);
    }
    watched.store.disk_usage();
    watched.store.stats();
    for number in 0..40 {
        watched.store.has(&block_key(number)).unwrap();
        watched.store.size(&key(&format!("/m/{number}"))).unwrap();
    }
    let done = watched.done();
    assert!(done.iter().all(|(_, what)| *what != What::Read), "{done:?}");
    let found = entries(&watched.store, Query { offset: 58, ..Query::default() }, 100, 1 << 20);
    assert_eq!(found.len(), 5);
    let done = watched.done();
    let read: usize = [shard(0), shard(1)].iter().map(|store| count(&done, store, What::Read)).sum();
    assert!((1..=10).contains(&read), "the five that are given, not those that are skipped: {done:?}");
}
