//! Crash search over a whole node: the power goes before every disk operation of a generated workload, and what is there afterwards is held
//! against what the durability class promised.
//!
//! One seed gives the whole run: the durability class, the kind of disk, the writers and what they do (Kubo's: blocks, pins that name them, batches of
//! both, unpinning and collection), the order in which their threads run, the faults, what the crash leaves, and the crashes during recovery. Blocks of
//! one writer are its own to delete; some blocks are put by all. Writers, background work and reclaim run side by side.
//!
//! `SEED=0x… make crash-search` replays one seed, with `CUT=n` one cut of it with its trace; `SEEDS=n` searches n of them.

#![allow(clippy::unwrap_used)]

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    io,
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use basalt_blockstore::{
    Durability, Multihash, Options as StoreOptions,
    disk::sim::{Fault, Loss, SimDisk, SimRng},
    ground::PlainGround,
    index::sim::{IndexLoss, SimEngine},
    store::Env,
};
use basalt_datastore::{BatchOp, Datastore, ErrorKind, Key, Layout, Options, Query, Result, Ticket};
use sha2::{Digest, Sha256};
use shuttle::{Config, FailurePersistence, Runner, scheduler::RandomScheduler, sync::Mutex, thread};

/// Blocks that each writer puts and deletes; none of another.
const OWN_BLOCKS: u8 = 7;
/// Blocks from this number on are put by every writer and deleted by none.
const SHARED: u8 = 100;
const SHARED_BLOCKS: u8 = 4;
/// Blocks from this number on are put and deleted by every writer, as is one other key: they may be there or not, and the sums must know.
const CONTESTED: u8 = 110;
const CONTESTED_BLOCKS: u8 = 2;
/// Pins of each writer; the first is overwritten all the time, as the root of Kubo's files.
const PINS: u8 = 3;

/// What is wrong after a crash.
#[derive(Clone, Debug)]
enum Finding {
    /// Something acknowledged is not there.
    Lost(String),
    /// A value is not what was put.
    Wrong(String),
    /// Anything else: a count, a listing, an error where there should be none.
    Broken(String),
}

/// What a seed decides before anything runs.
#[derive(Clone, Copy, Debug)]
struct Shape {
    durability: Durability,
    zfs: bool,
    /// Disk operations fail, beside the crash.
    faults: bool,
    /// The disk stops answering, until the watch has seen it. Then it answers, or the power goes.
    stuck: bool,
    writers: u8,
    /// Stores have their background threads; else one step of them comes now and then.
    threads: bool,
    operations: u64,
}

impl Shape {
    fn of(seed: u64) -> Shape {
        let mut rng = SimRng::new(seed ^ 0x5ba9e);
        Shape {
            durability: [Durability::Strict, Durability::Ordered, Durability::Ordered, Durability::Relaxed]
                [rng.below(4) as usize],
            zfs: rng.one_in(4),
            faults: rng.one_in(3),
            writers: 1 + rng.below(3) as u8,
            threads: rng.one_in(2),
            operations: 4 + rng.below(8),
            stuck: rng.one_in(5),
        }
    }

    /// Whether operations may fail though the power stays.
    fn fails(self) -> bool {
        self.faults || self.stuck
    }
}

/// What a key may be after a crash.
#[derive(Clone, Debug)]
struct States<T> {
    now: Option<T>,
    /// What it was since it was last known durable.
    before: Vec<Option<T>>,
    /// What failed writes may have made of it.
    attempted: Vec<Option<T>>,
}

impl<T> Default for States<T> {
    fn default() -> States<T> {
        States { now: None, before: Vec::new(), attempted: Vec::new() }
    }
}

impl<T: Clone + PartialEq> States<T> {
    fn told(&mut self, state: Option<T>, outcome: &Result<()>, durable: bool) {
        match outcome {
            Err(_) => self.attempted.push(state),
            Ok(()) => {
                self.before.push(std::mem::replace(&mut self.now, state));
                if durable {
                    self.before.clear();
                    // They are older in the log.
                    self.attempted.clear();
                }
            }
        }
    }

    /// What it is now is durable. A write that failed may be so too.
    fn settled(&mut self) {
        self.before.clear();
    }

    fn allows(&self, state: &Option<T>) -> bool {
        self.now == *state || self.before.contains(state) || self.attempted.contains(state)
    }

    /// What reads now, after an error that was no crash, is how it goes on; nothing is known to be durable.
    fn reads(&mut self, state: Option<T>) {
        if state != self.now {
            self.before.push(std::mem::replace(&mut self.now, state));
        }
    }
}

/// One client of the node, with what it was told.
#[derive(Clone, Debug, Default)]
struct Writer {
    number: u8,
    version: u8,
    blocks: BTreeMap<u8, States<()>>,
    /// The value's first byte only tells values apart; the others are the blocks that it holds.
    pins: BTreeMap<u8, States<Vec<u8>>>,
    /// Blocks whose delete has begun and not returned.
    deleting: BTreeSet<u8>,
}

/// The blocks that all writers put: whether an acknowledgement made them durable.
type Shared = BTreeMap<u8, bool>;

struct World {
    seed: u64,
    shape: Shape,
    disk: SimDisk,
    index: SimEngine,
    layout: Layout,
    options: Options,
    shared: Mutex<Shared>,
    /// Outside the scheduler, so that it can be read after a panic.
    log: Arc<std::sync::Mutex<Vec<String>>>,
    /// The first thing that was wrong while the node ran.
    finding: Mutex<Option<Finding>>,
}

fn block_value(number: u8) -> Vec<u8> {
    let bytes = [0, 40, 200, 700, 4096, 9000][usize::from(number) % 6];
    let mut rng = SimRng::new(u64::from(number));
    std::iter::once(number).chain((0..bytes).map(|_| rng.next_u64() as u8)).collect()
}

fn block_key(number: u8) -> Key {
    let hash = [&[0x12, 32][..], &Sha256::digest(block_value(number))].concat();
    Key::of_block(&Multihash::parse(&hash).unwrap())
}

fn pin_key(writer: u8, pin: u8) -> Key {
    match pin {
        0 => Key::new(&format!("/local/filesroot{writer}")).unwrap(),
        _ => Key::new(&format!("/pins/pin/{writer}-{pin}")).unwrap(),
    }
}

fn contested_key() -> Key {
    Key::new("/local/contested").unwrap()
}

fn contested_value(key: &Key) -> Vec<u8> {
    (0..CONTESTED_BLOCKS)
        .map(|number| block_value(CONTESTED + number))
        .find(|value| block_key(value[0]) == *key)
        .unwrap()
}

/// Reads a key; `None` where the node can't say at the moment.
fn read(store: &Datastore, key: &Key) -> std::result::Result<Option<Vec<u8>>, ErrorKind> {
    let mut value = Vec::new();
    match store.get(key, &mut value) {
        Ok(()) => Ok(Some(value)),
        Err(err) if err.is_not_found() => Ok(None),
        Err(err) => Err(err.kind()),
    }
}

fn wait(submitted: Result<Ticket>) -> Result<()> {
    submitted?.wait()
}

/// By a callback, as the servers do.
fn call_back(submitted: Result<Ticket>) -> Result<()> {
    let outcome = Arc::new((Mutex::new(None), shuttle::sync::Condvar::new()));
    let told = outcome.clone();
    submitted?.then(move |how| {
        *told.0.lock().unwrap() = Some(how);
        told.1.notify_all();
    });
    let mut slot = outcome.0.lock().unwrap();
    while slot.is_none() {
        slot = outcome.1.wait(slot).unwrap();
    }
    slot.take().unwrap()
}

impl World {
    fn new(seed: u64, log: Arc<std::sync::Mutex<Vec<String>>>) -> World {
        let shape = Shape::of(seed);
        let disk = if shape.zfs { SimDisk::zfs(seed) } else { SimDisk::new() };
        let index = SimEngine::new(disk.clone());
        let layout = Layout {
            shards: (0..2).map(|id| (PathBuf::from(format!("/node/shard-{id}")), 1)).collect(),
            keyspace: PathBuf::from("/node/keyspace"),
            ring_key: [7; 16],
        };
        let store = StoreOptions {
            segment_bytes: 20 << 10,
            replay_records_max: 30,
            punch_bytes_min: 4096,
            compact_dead_percent: 30,
            recycle_segments_max: if shape.zfs { 0 } else { 2 },
            reserve_bytes: 0,
            unflushed_bytes_max: 24 << 10,
            ..StoreOptions::default()
        };
        let options = Options { durability: shape.durability, store, ..Options::default() };
        // Called in any case: it is a step of the scheduler, and the replay must have the same.
        disk.record_trace(std::env::var_os("CUT").is_some());
        World { seed, shape, disk, index, layout, options, shared: Mutex::default(), log, finding: Mutex::default() }
    }

    fn note(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }

    fn found(&self, finding: Finding) {
        self.note(format!("FOUND {finding:?}"));
        self.finding.lock().unwrap().get_or_insert(finding);
    }

    /// What a snapshot of its file systems would hold now, as a world of its own. Whatever was acknowledged is in it, flushed or not.
    fn snapshot(&self) -> World {
        let disk = self.disk.snapshot();
        World {
            seed: self.seed,
            shape: self.shape,
            index: self.index.snapshot(disk.clone()),
            disk,
            layout: self.layout.clone(),
            options: self.options.clone(),
            shared: Mutex::new(self.shared.lock().unwrap().keys().map(|number| (*number, true)).collect()),
            log: self.log.clone(),
            finding: Mutex::default(),
        }
    }

    fn open(&self) -> Result<Datastore> {
        Datastore::open(&self.layout, &self.env(), self.options.clone())
    }

    fn env(&self) -> Env {
        self.disk.set_threads(self.shape.threads);
        Env {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(self.disk.clone()),
            index: Arc::new(self.index.clone()),
            ground: Arc::new(PlainGround),
            random: Arc::new(self.disk.clone()),
            sequence: Arc::new(AtomicU64::new(1)),
            unflushed: Arc::default(),
        }
    }

    fn strict(&self) -> bool {
        self.shape.durability == Durability::Strict
    }

    /// What the power leaves.
    fn restart(&self, rng: &mut SimRng) {
        let loss = match rng.below(6) {
            0 => Loss::Process,
            1 => Loss::Everything,
            2 => Loss::Nothing,
            _ => Loss::Random,
        };
        let index = match rng.below(12) {
            0 | 1 => IndexLoss::Everything,
            2 => IndexLoss::Damaged,
            _ => IndexLoss::Prefix,
        };
        self.note(format!("crash: {loss:?}, index {index:?}"));
        self.disk.restart(rng, loss);
        self.index.crash(rng, index);
    }

    /// Opens after a crash, with more of them on the way.
    fn recover(&self, rng: &mut SimRng) -> std::result::Result<Datastore, Finding> {
        for _ in 0..3 {
            if rng.one_in(2) {
                let at = self.disk.steps() + 1 + rng.below(30);
                self.note(format!("open, with a cut at step {at}"));
                self.disk.inject(at, Fault::PowerCut);
            } else if self.shape.faults && rng.one_in(2) {
                self.note("open, with a read that fails".into());
                self.disk.fail_read(rng.below(20), io::ErrorKind::Other);
                match self.open() {
                    Ok(store) => {
                        self.disk.clear_faults();
                        return Ok(store);
                    }
                    // Tried again by the operator, on a disk that reads again.
                    Err(_) => self.disk.clear_faults(),
                }
            }
            match self.open() {
                Ok(store) if !self.disk.is_cut() => {
                    self.disk.clear_faults();
                    return Ok(store);
                }
                Err(err) if !self.disk.is_cut() => return Err(Finding::Broken(format!("open: {err:?}"))),
                _ => self.restart(rng),
            }
        }
        self.note("open".into());
        self.open().map_err(|err| Finding::Broken(format!("open: {err:?}")))
    }

    /// Everything that must hold, of what reads after a crash. What is seen is how it goes on.
    fn check(&self, store: &Datastore, writers: &mut [Writer]) -> std::result::Result<(), Finding> {
        let mut present = BTreeSet::new();
        let mut keys: BTreeMap<Key, u64> = BTreeMap::new();
        let look = |keys: &mut BTreeMap<Key, u64>, key: Key| match read(store, &key) {
            Ok(value) => {
                keys.extend(value.as_ref().map(|value| (key, value.len() as u64)));
                Ok(value)
            }
            Err(kind) => Err(Finding::Lost(format!("{key} does not read: {kind:?}"))),
        };
        let mut block = |keys: &mut BTreeMap<Key, u64>, number: u8| -> std::result::Result<Option<()>, Finding> {
            let value = look(keys, block_key(number))?;
            if value.as_ref().is_some_and(|value| *value != block_value(number)) {
                return Err(Finding::Wrong(format!("block {number} has other bytes")));
            }
            if value.is_some() {
                present.insert(number);
            }
            Ok(value.map(|_| ()))
        };
        look(&mut keys, contested_key())?;
        for number in CONTESTED..CONTESTED + CONTESTED_BLOCKS {
            block(&mut keys, number)?;
        }
        let mut shared = self.shared.lock().unwrap();
        for number in SHARED..SHARED + SHARED_BLOCKS {
            if block(&mut keys, number)?.is_some() {
                shared.insert(number, true);
            } else if shared.remove(&number) == Some(true) {
                return Err(Finding::Lost(format!("block {number}, which all put, was durable and is gone")));
            }
        }
        for writer in &mut *writers {
            let mut overtaken = None;
            for number in writer.own() {
                let state = block(&mut keys, number)?;
                let states = writer.blocks.entry(number).or_default();
                if !states.allows(&state) {
                    let finding = format!("block {number} is {state:?}, allowed is {states:?}");
                    return Err(if state.is_none() { Finding::Lost(finding) } else { Finding::Broken(finding) });
                }
                if state.is_none()
                    && writer.deleting.contains(&number)
                    && states.before.is_empty()
                    && states.now.is_some()
                {
                    overtaken = Some(number);
                }
                *states = States { now: state, ..States::default() };
            }
            writer.deleting.clear();
            for pin in 0..PINS {
                let found = look(&mut keys, pin_key(writer.number, pin))?;
                let states = writer.pins.entry(pin).or_default();
                if !states.allows(&found) {
                    return Err(Finding::Lost(format!(
                        "pin {}-{pin} is {found:?}, allowed is {states:?}",
                        writer.number
                    )));
                }
                if let Some(number) = overtaken
                    && states.now != found
                    && !states.attempted.contains(&found)
                {
                    let pin = format!("pin {}-{pin}, changed before, is {found:?} again, of {states:?}", writer.number);
                    return Err(Finding::Lost(format!("the delete of block {number} is durable and {pin}")));
                }
                *states = States { now: found, ..States::default() };
            }
        }
        if self.shape.durability != Durability::Relaxed {
            for (writer, pin, value) in writers.iter().flat_map(Writer::held) {
                if let Some(missing) = value.iter().find(|number| !present.contains(*number)) {
                    return Err(Finding::Lost(format!(
                        "pin {writer}-{pin} holds {value:?}, and block {missing} is gone"
                    )));
                }
            }
        }
        drop(shared);
        self.check_listing(store, &keys, &present)
    }

    /// A query lists what Get finds, the sums agree, and every record that the index names reads back.
    fn check_listing(
        &self,
        store: &Datastore,
        keys: &BTreeMap<Key, u64>,
        present: &BTreeSet<u8>,
    ) -> std::result::Result<(), Finding> {
        let broken = |what: String| Err(Finding::Broken(what));
        let mut listed = BTreeMap::new();
        let mut cursor = store.query(Query { keys_only: true, returns_sizes: true, ..Query::default() }).unwrap();
        loop {
            let page = cursor.next_page(4, 1000).unwrap();
            if page.is_empty() {
                break;
            }
            for entry in page {
                if listed.insert(entry.key.clone(), entry.size).is_some() {
                    return broken(format!("{} is listed twice", entry.key));
                }
            }
        }
        let counted = store.keyspace().stats().count;
        let others = listed.keys().filter(|key| !key.as_str().starts_with("/blocks/")).count() as u64;
        if counted != others {
            return broken(format!("counted are {counted} other keys, and there are {others}"));
        }
        listed.remove(&Key::new("/providers/x").unwrap());
        if !listed.keys().eq(keys.keys()) {
            return broken(format!("listed are {listed:?}, and there are {keys:?}"));
        }
        let stats = store.shards().stats();
        let bytes: u64 = present.iter().map(|number| block_value(*number).len() as u64).sum();
        if (stats.count, stats.bytes) != (present.len() as u64, bytes) {
            let counted = format!("{} blocks of {} bytes", stats.count, stats.bytes);
            return broken(format!("counted are {counted}, and there are {}, {bytes}", present.len()));
        }
        store.scrub().or_else(|err| broken(format!("scrub: {err:?}")))
    }
}

impl Writer {
    fn own(&self) -> std::ops::Range<u8> {
        self.number * OWN_BLOCKS..(self.number + 1) * OWN_BLOCKS
    }

    /// The blocks in each pin that is there.
    fn held(&self) -> impl Iterator<Item = (u8, u8, Vec<u8>)> {
        let held =
            |(pin, states): (&u8, &States<Vec<u8>>)| Some((self.number, *pin, states.now.as_ref()?[1..].to_vec()));
        self.pins.iter().filter_map(held)
    }

    fn present(&self) -> Vec<u8> {
        self.blocks.iter().filter(|(_, states)| states.now.is_some()).map(|(number, _)| *number).collect()
    }

    /// Own blocks that no pin holds, nor one that a failed write may have made.
    fn garbage(&self) -> Vec<u8> {
        let mut held: BTreeSet<u8> = BTreeSet::new();
        for states in self.pins.values() {
            for value in states.attempted.iter().chain([&states.now]).flatten() {
                held.extend(&value[1..]);
            }
        }
        self.present().into_iter().filter(|number| !held.contains(number)).collect()
    }

    fn pin_value(&mut self, of: &[u8], rng: &mut SimRng) -> Vec<u8> {
        self.version = self.version.wrapping_add(1);
        std::iter::once(self.version).chain(of.iter().filter(|_| rng.one_in(2)).copied()).collect()
    }

    /// What this writer may name in a pin: its own blocks and those of all, acknowledged before.
    fn nameable(&self, world: &World) -> Vec<u8> {
        let shared = world.shared.lock().unwrap();
        self.present().into_iter().chain(shared.keys().copied()).collect()
    }

    fn told_blocks(&mut self, world: &World, numbers: &[u8], outcome: &Result<()>) {
        for number in numbers {
            if *number >= SHARED {
                if outcome.is_ok() {
                    *world.shared.lock().unwrap().entry(*number).or_default() |= world.strict();
                }
            } else {
                self.blocks.entry(*number).or_default().told(Some(()), outcome, world.strict());
            }
        }
    }

    /// A change of pins returned. In `ordered` everything that was acknowledged to this writer before is durable then.
    fn told_pins(&mut self, world: &World, changes: Vec<(u8, Option<Vec<u8>>)>, outcome: &Result<()>) {
        for (pin, value) in changes {
            self.pins.entry(pin).or_default().told(value, outcome, world.shape.durability != Durability::Relaxed);
        }
        if outcome.is_ok() && world.shape.durability == Durability::Ordered {
            self.blocks.values_mut().filter(|states| states.now.is_some()).for_each(States::settled);
        }
    }

    /// A Sync returned, or what bounds the delay has flushed.
    fn all_durable(&mut self) {
        self.blocks.values_mut().for_each(States::settled);
        self.pins.values_mut().for_each(States::settled);
    }

    fn any_block(&self, rng: &mut SimRng) -> u8 {
        if rng.one_in(3) {
            return SHARED + rng.below(u64::from(SHARED_BLOCKS)) as u8;
        }
        self.number * OWN_BLOCKS + rng.below(u64::from(OWN_BLOCKS)) as u8
    }

    fn operate(&mut self, world: &World, store: &Datastore, rng: &mut SimRng) -> Result<()> {
        let me = self.number;
        let finish = if rng.one_in(2) { wait } else { call_back };
        match rng.below(19) {
            0..=5 => {
                let number = self.any_block(rng);
                world.note(format!("{me}: put block {number}"));
                let outcome = match rng.below(2) {
                    0 => store.put(&block_key(number), &block_value(number)),
                    _ => finish(store.submit_put(&block_key(number), &block_value(number), None)),
                };
                self.told_blocks(world, &[number], &outcome);
                outcome
            }
            6 | 7 => {
                let pin = rng.below(u64::from(PINS)) as u8;
                let value = self.pin_value(&self.nameable(world), rng);
                world.note(format!("{me}: pin {pin} = {value:?}"));
                let key = pin_key(me, pin);
                let outcome = match rng.below(2) {
                    0 => store.put(&key, &value),
                    _ => finish(store.submit_put(&key, &value, None)),
                };
                self.told_pins(world, vec![(pin, Some(value))], &outcome);
                outcome
            }
            8 | 9 => {
                // As one batch: blocks, two pins that hold them, and a block that nothing holds goes.
                let new: BTreeSet<u8> = (0..1 + rng.below(3)).map(|_| self.any_block(rng)).collect();
                let new: Vec<u8> = new.into_iter().collect();
                let all: BTreeSet<u8> = self.nameable(world).into_iter().chain(new.clone()).collect();
                let all: Vec<u8> = all.into_iter().collect();
                let gone: Vec<u8> = self.garbage().into_iter().filter(|number| !new.contains(number)).take(1).collect();
                let all: Vec<u8> = all.into_iter().filter(|number| !gone.contains(number)).collect();
                let mut ops: Vec<BatchOp> =
                    new.iter().map(|number| BatchOp::Put(block_key(*number), block_value(*number))).collect();
                let mut changes = Vec::new();
                for pin in [0, 1 + rng.below(u64::from(PINS) - 1) as u8] {
                    let value = self.pin_value(&all, rng);
                    ops.push(BatchOp::Put(pin_key(me, pin), value.clone()));
                    changes.push((pin, Some(value)));
                }
                ops.extend(gone.iter().map(|number| BatchOp::Delete(block_key(*number))));
                world.note(format!("{me}: batch: blocks {new:?}, pins {changes:?}, without {gone:?}"));
                self.deleting.extend(&gone);
                let outcome = if rng.one_in(2) { store.batch(ops) } else { finish(store.submit_batch(ops)) };
                self.told_blocks(world, &new, &outcome);
                self.told_pins(world, changes, &outcome);
                for number in gone {
                    self.told_delete(number, &outcome);
                }
                outcome
            }
            10 => {
                let pin = rng.below(u64::from(PINS)) as u8;
                world.note(format!("{me}: unpin {pin}"));
                let key = pin_key(me, pin);
                let outcome = if rng.one_in(2) { store.delete(&key) } else { finish(store.submit_delete(&key)) };
                self.told_pins(world, vec![(pin, None)], &outcome);
                outcome
            }
            11 | 12 => {
                // What Kubo's collection does: lone deletes of what nothing holds.
                for number in self.garbage() {
                    world.note(format!("{me}: collect block {number}"));
                    let key = block_key(number);
                    self.deleting.insert(number);
                    let outcome = if rng.one_in(2) { store.delete(&key) } else { finish(store.submit_delete(&key)) };
                    self.told_delete(number, &outcome);
                    outcome?;
                }
                Ok(())
            }
            13 => {
                world.note(format!("{me}: bookkeeping"));
                store.put(&Key::new("/providers/x").unwrap(), &[self.version])
            }
            14 => {
                world.note(format!("{me}: sync"));
                store.sync()?;
                self.all_durable();
                Ok(())
            }
            15 => {
                world.note(format!("{me}: a quiet moment"));
                world.disk.advance_ns(2_000_000_000);
                store.step();
                if world.shape.writers == 1 && !world.shape.threads && !world.shape.fails() && !world.disk.is_cut() {
                    // As long as the bound on the delay, with nobody else's flush under way.
                    self.all_durable();
                }
                Ok(())
            }
            16 | 17 => {
                let key = match rng.below(u64::from(CONTESTED_BLOCKS) + 1) as u8 {
                    CONTESTED_BLOCKS => contested_key(),
                    number => block_key(CONTESTED + number),
                };
                let value = if key == contested_key() { vec![me, self.version] } else { contested_value(&key) };
                world.note(format!("{me}: puts or deletes {key}"));
                if rng.one_in(2) { store.put(&key, &value) } else { store.delete(&key) }
            }
            _ => {
                world.note(format!("{me}: reclaim"));
                store.collect_garbage()
            }
        }
    }

    fn told_delete(&mut self, number: u8, outcome: &Result<()>) {
        self.blocks.entry(number).or_default().told(None, outcome, false);
        if outcome.is_ok() {
            self.deleting.remove(&number);
            // The tombstone was written only after all metadata changed before was durable.
            self.pins.values_mut().for_each(States::settled);
        }
    }

    /// Whoever is told that a block is there won't put it: it is as good as put, and in `strict` durable.
    fn look_at_shared(&self, world: &World, store: &Datastore) {
        for number in SHARED..SHARED + SHARED_BLOCKS {
            if store.has(&block_key(number)).is_ok_and(|is_there| is_there) && !world.disk.is_cut() {
                *world.shared.lock().unwrap().entry(number).or_default() |= world.strict();
            }
        }
    }

    /// After an error that was no crash: what reads now is right, and how it goes on.
    fn look(&mut self, world: &World, store: &Datastore) {
        for number in self.own() {
            let Ok(value) = read(store, &block_key(number)) else { continue };
            if value.as_ref().is_some_and(|value| *value != block_value(number)) {
                world.found(Finding::Wrong(format!("block {number} has other bytes after an error")));
            }
            let (state, states) = (value.map(|_| ()), self.blocks.entry(number).or_default());
            if !states.allows(&state) {
                world
                    .found(Finding::Lost(format!("block {number} is {state:?} after an error, allowed is {states:?}")));
            }
            states.reads(state);
        }
        for pin in 0..PINS {
            let Ok(value) = read(store, &pin_key(self.number, pin)) else { continue };
            let states = self.pins.entry(pin).or_default();
            if !states.allows(&value) {
                world.found(Finding::Lost(format!("pin {pin} is {value:?} after an error, allowed is {states:?}")));
            }
            states.reads(value);
        }
    }

    /// Until it has done enough, or the node can't go on.
    fn work(&mut self, world: &World, store: &Datastore, mut rng: SimRng, operations: u64) {
        for _ in 0..operations {
            if world.shape.faults && rng.one_in(4) {
                let kinds = [io::ErrorKind::Other, io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
                let kind = kinds[rng.below(3) as usize];
                if rng.one_in(4) {
                    world.note(format!("a read will fail: {kind}"));
                    world.disk.fail_read(rng.below(4), kind);
                } else {
                    let at = world.disk.steps() + 1 + rng.below(6);
                    world.note(format!("step {at} will fail: {kind}"));
                    world.disk.inject(at, Fault::Error(kind));
                }
            }
            let outcome = self.operate(world, store, &mut rng);
            self.look_at_shared(world, store);
            if world.disk.is_cut() {
                return;
            }
            let Err(err) = outcome else { continue };
            world.note(format!("{}: -> {err:?}", self.number));
            if !world.shape.fails() {
                world.found(Finding::Broken(format!("no fault was injected: {err:?}")));
                return;
            }
            if store.check().is_err() {
                return;
            }
            self.look(world, store);
        }
    }
}

/// All writers side by side, and the clock.
fn live(
    world: &Arc<World>,
    store: &Arc<Datastore>,
    writers: Vec<Writer>,
    rng: &mut SimRng,
    operations: u64,
) -> Vec<Writer> {
    let threads: Vec<_> = writers
        .into_iter()
        .map(|mut writer| {
            let (world, store, rng) = (world.clone(), store.clone(), SimRng::new(rng.next_u64()));
            thread::spawn(move || {
                writer.work(&world, &store, rng, operations);
                writer
            })
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let watch = world.shape.stuck.then(|| {
        let at = world.disk.steps() + 1 + rng.below(40);
        world.note(format!("step {at} will be stuck"));
        world.disk.inject(at, Fault::Stuck);
        let (world, store, done, cut) = (world.clone(), store.clone(), done.clone(), rng.one_in(2));
        thread::spawn(move || {
            if world.disk.await_stuck(|| done.load(Ordering::SeqCst)) {
                world.note("the disk is stuck".into());
                world.disk.advance_ns(2 * world.options.store.flush_deadline.as_nanos() as u64);
                for _ in 0..3 {
                    store.watch();
                }
                world.note(if cut { "the power goes" } else { "the disk answers" }.into());
                world.disk.answer(cut);
            }
        })
    });
    let writers = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    done.store(true, Ordering::SeqCst);
    world.disk.wake();
    if let Some(watch) = watch {
        watch.join().unwrap();
    }
    writers
}

/// Runs a seed with the power going before disk operation `cut` (0: at its end). Returns how many operations there were.
fn run_world(world: &Arc<World>, cut: u64) -> std::result::Result<u64, Finding> {
    let mut rng = SimRng::new(world.seed);
    if cut > 0 {
        world.note(format!("cut at step {cut}"));
        world.disk.inject(cut, Fault::PowerCut);
    }
    let mut writers: Vec<Writer> =
        (0..world.shape.writers).map(|number| Writer { number, ..Writer::default() }).collect();
    match world.open() {
        Err(err) if !world.disk.is_cut() => return Err(Finding::Broken(format!("make: {err:?}"))),
        Err(_) => {}
        Ok(store) => {
            let store = Arc::new(store);
            writers = live(world, &store, writers, &mut rng, world.shape.operations);
            if !world.disk.is_cut() && rng.one_in(3) {
                world.disk.clear_faults();
                world.note("close".into());
                match store.close() {
                    Ok(()) => writers.iter_mut().for_each(Writer::all_durable),
                    Err(err) if !world.shape.fails() && !world.disk.is_cut() => {
                        return Err(Finding::Broken(format!("close: {err:?}")));
                    }
                    Err(_) => {}
                }
            }
        }
    }
    let steps = world.disk.steps();
    // A few lives, so that what a recovery leaves is itself crashed upon.
    for life in 0..3 {
        world.restart(&mut rng);
        let store = Arc::new(world.recover(&mut rng)?);
        world.check(&store, &mut writers)?;
        if life == 2 {
            break;
        }
        let at = world.disk.steps() + 1 + rng.below(25);
        world.note(format!("cut at step {at}"));
        world.disk.inject(at, Fault::PowerCut);
        let operations = rng.below(5);
        writers = live(world, &store, writers, &mut rng, operations);
    }
    match world.finding.lock().unwrap().take() {
        Some(finding) => Err(finding),
        None => Ok(steps),
    }
}

/// Runs a seed up to disk operation `cut`, and opens a snapshot of that instant: for reading only, where not a byte may be written, then as a clone that is
/// written to, with crashes.
fn run_snapshot(world: &Arc<World>, cut: u64) -> std::result::Result<u64, Finding> {
    let mut rng = SimRng::new(world.seed);
    world.note(format!("a snapshot before step {cut}"));
    if cut > 0 {
        // All stands still there.
        world.disk.inject(cut, Fault::PowerCut);
    }
    let writers = (0..world.shape.writers).map(|number| Writer { number, ..Writer::default() }).collect();
    let mut writers: Vec<Writer> = match world.open() {
        Ok(store) => live(world, &Arc::new(store), writers, &mut rng, world.shape.operations),
        // Not made yet.
        Err(_) if world.disk.is_cut() => return Ok(0),
        Err(err) => return Err(Finding::Broken(format!("make: {err:?}"))),
    };
    let steps = world.disk.steps();
    writers.iter_mut().for_each(Writer::all_durable);
    let image = world.snapshot();
    let store = Datastore::open_read_only(&image.layout, &image.env(), image.options.clone())
        .map_err(|err| Finding::Broken(format!("open the snapshot for reading: {err:?}")))?;
    image.check(&store, &mut writers.clone())?;
    drop(store);
    if image.disk.steps() > 0 {
        return Err(Finding::Broken(format!("reading a snapshot wrote: {:?}", image.disk.trace())));
    }
    let clone = world.snapshot();
    let store = Arc::new(clone.recover(&mut rng)?);
    clone.check(&store, &mut writers)?;
    match world.finding.lock().unwrap().take() {
        Some(finding) => Err(finding),
        None => Ok(steps),
    }
}

/// What one run came to, with its trace where it was asked for.
struct Outcome {
    result: std::result::Result<u64, Finding>,
    log: Vec<String>,
    trace: Vec<String>,
}

/// What is done with a world and a cut.
type How = fn(&Arc<World>, u64) -> std::result::Result<u64, Finding>;

/// [`run_world`] or its like under the scheduler: the seed gives the order of threads too.
fn run(seed: u64, cut: u64, how: How) -> Outcome {
    let outcome = Arc::new(std::sync::Mutex::new(None));
    let told = outcome.clone();
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    config.stack_size = 512 << 10;
    let (log, trace) = (Arc::new(std::sync::Mutex::new(Vec::new())), Arc::new(std::sync::Mutex::new(Vec::new())));
    let (keep_log, keep_trace) = (log.clone(), trace.clone());
    let body = move || {
        let world = Arc::new(World::new(seed, keep_log.clone()));
        let result = how(&world, cut);
        *keep_trace.lock().unwrap() = world.disk.trace();
        *told.lock().unwrap() = Some(result);
    };
    let scheduler = RandomScheduler::new_from_seed(seed, 1);
    let panic = std::panic::catch_unwind(AssertUnwindSafe(|| Runner::new(scheduler, config).run(body))).err();
    let result = match (outcome.lock().unwrap().take(), panic) {
        (Some(result), None) => result,
        (_, panic) => Err(Finding::Broken(format!("a panic: {}", message(panic)))),
    };
    let (log, trace) = (log.lock().unwrap().clone(), trace.lock().unwrap().clone());
    Outcome { result, log, trace }
}

fn message(panic: Option<Box<dyn Any + Send>>) -> String {
    let Some(panic) = panic else { return "no outcome".into() };
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name}={text} is no number: write 12 or 0xc")))
}

#[derive(Default)]
struct Tally {
    points: AtomicU64,
    lost: AtomicU64,
    wrong: AtomicU64,
    broken: AtomicU64,
}

impl Tally {
    fn findings(&self) -> u64 {
        [&self.lost, &self.wrong, &self.broken].iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    fn record(&self, seed: u64, cut: u64, outcome: Outcome) -> u64 {
        self.points.fetch_add(1, Ordering::Relaxed);
        let finding = match outcome.result {
            Ok(steps) => return steps,
            Err(finding) => finding,
        };
        let (counter, what) = match &finding {
            Finding::Lost(what) => (&self.lost, what),
            Finding::Wrong(what) => (&self.wrong, what),
            Finding::Broken(what) => (&self.broken, what),
        };
        let before = self.findings();
        counter.fetch_add(1, Ordering::Relaxed);
        if before < 3 || std::env::var_os("CUT").is_some() {
            println!("SEED={seed:#x} CUT={cut} ({:?}): {what}", Shape::of(seed));
            println!("  {}\n{}", outcome.log.join("\n  "), outcome.trace.join("\n"));
        }
        0
    }
}

/// What is wrong is often wrong at many cuts: a search ends after so many findings.
const FINDINGS_MAX: u64 = 50;

/// Every cut of every seed; two threads share the seeds.
fn search(seeds: &[u64], points_min: u64, how: How) -> Tally {
    let tally = Tally::default();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let seed = match seeds.get(at as usize) {
                        Some(seed) => *seed,
                        None if seeds.is_empty() && tally.points.load(Ordering::Relaxed) < points_min => at,
                        None => return,
                    };
                    if let Some(cut) = number("CUT") {
                        let outcome = run(seed, cut, how);
                        println!("{}", outcome.log.join("\n"));
                        tally.record(seed, cut, outcome);
                        continue;
                    }
                    let steps = tally.record(seed, 0, run(seed, 0, how));
                    for cut in 1..=steps {
                        if tally.findings() >= FINDINGS_MAX {
                            return;
                        }
                        tally.record(seed, cut, run(seed, cut, how));
                    }
                }
            });
        }
    });
    tally
}

/// Crash points in an ordinary test run.
const POINTS: u64 = 10_000;
/// Seeds whose every step is snapshotted in an ordinary test run.
const SNAPSHOT_SEEDS: u64 = 40;

fn wanted() -> Vec<u64> {
    match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(seeds)) => (0..seeds).collect(),
        (None, None) => Vec::new(),
    }
}

#[test]
fn what_a_node_acknowledged_survives_a_cut_before_any_disk_operation() {
    conclude(&search(&wanted(), POINTS, run_world), "crash points");
}

/// A snapshot isn't a cut of the power: it has what was written and not flushed as well, in every class of durability.
#[test]
fn a_snapshot_before_any_disk_operation_opens_as_a_node_with_all_that_was_acknowledged() {
    let seeds: Vec<u64> = match wanted() {
        seeds if seeds.is_empty() => (0..SNAPSHOT_SEEDS).collect(),
        seeds => seeds,
    };
    // Where disks fail, what was acknowledged is another promise.
    let seeds: Vec<u64> = seeds.into_iter().filter(|seed| !Shape::of(*seed).fails()).collect();
    conclude(&search(&seeds, 0, run_snapshot), "snapshots");
}

fn conclude(tally: &Tally, what: &str) {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (points, broken) = (count(&tally.points), count(&tally.broken));
    if broken > 0 {
        println!("{broken} other faults");
    }
    println!("{points} {what}, {} acknowledged lost, {} wrong bytes", count(&tally.lost), count(&tally.wrong));
    assert!(points > 0, "nothing was searched");
    assert_eq!(tally.findings(), 0, "see above");
}

/// Seeds of long searches that have found a loss, as the workloads are drawn today.
const FOUND: [u64; 1] = [0x22e];

#[test]
fn survives_what_long_searches_have_found() {
    let tally = search(&FOUND, 0, run_world);
    assert!(tally.points.load(Ordering::Relaxed) > 0, "nothing was searched");
    assert_eq!(tally.findings(), 0, "see above");
}

#[test]
fn one_seed_gives_one_trace() {
    for seed in [3, 4, 11] {
        let trace = || {
            let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
            let keep = kept.clone();
            let mut config = Config::new();
            config.failure_persistence = FailurePersistence::None;
            config.stack_size = 512 << 10;
            Runner::new(RandomScheduler::new_from_seed(seed, 1), config).run(move || {
                let world = Arc::new(World::new(seed, Arc::default()));
                world.disk.record_trace(true);
                let _ = run_world(&world, 40);
                *keep.lock().unwrap() = world.disk.trace();
            });
            kept.lock().unwrap().clone()
        };
        let first = trace();
        assert!(first.len() > 30, "only {} steps", first.len());
        assert_eq!(first, trace(), "seed {seed}");
    }
}
