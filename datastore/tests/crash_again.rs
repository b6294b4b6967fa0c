//! Crash search in several lives: what one recovery leaves is itself crashed upon, from making the node on.
//!
//! Beside `crash.rs`, which asks what one power cut may leave, this one asks whether what was durable once stays so: kills and power cuts take
//! turns, in the middle of recoveries too, so that what reads back from memory alone is lost later. Sums and listings must agree every time. The
//! workload is Kubo's, by both ways of waiting. `SEED=0x… cargo test -p basalt-datastore --test crash_again` replays one seed, with `CUT=n` one
//! cut of it and prints every disk operation; `SEEDS=n` searches longer.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use basalt_blockstore::{
    Durability, Multihash,
    disk::sim::{Fault, Loss, SimDisk, SimRng},
    ground::PlainGround,
    index::sim::{IndexLoss, SimEngine},
    store::Env,
};
use basalt_datastore::{BatchOp, Datastore, Key, Layout, Options, Query, Result, Ticket};
use sha2::{Digest, Sha256};

const BLOCKS: u64 = 10;
const PINS: u64 = 4;

/// The blocks that a pin holds; its value, byte by byte.
type Pin = Option<Vec<u8>>;

struct World {
    seed: u64,
    cut: u64,
    durability: Durability,
    disk: SimDisk,
    index: SimEngine,
    layout: Layout,
    options: Options,
    /// What each pin is, and what else it may be after a crash.
    pins: BTreeMap<u8, (Pin, Vec<Pin>)>,
    /// Blocks that are there now, as far as was acknowledged.
    present: BTreeSet<u8>,
    /// Blocks whose put is known durable, and whose tombstone is not written.
    durable: BTreeSet<u8>,
    /// Blocks whose delete was under way at the crash.
    deleting: BTreeSet<u8>,
    /// A pin is written more than once with the same blocks; this tells its values apart.
    version: u8,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64, durability: Durability, cut: u64) -> World {
        let disk = SimDisk::new();
        let mut options = Options { durability, ..Options::default() };
        options.store.segment_bytes = 24 << 10;
        options.store.value_bytes_max = 16 << 10;
        options.store.replay_records_max = 16;
        options.store.punch_bytes_min = 4096;
        options.store.reserve_bytes = 0;
        options.store.idle_mark_delay = Duration::from_secs(1);
        let shards = (0..2).map(|id| (PathBuf::from(format!("/shard-{id}")), 1)).collect();
        World {
            seed,
            cut,
            durability,
            index: SimEngine::new(disk.clone()),
            disk,
            layout: Layout { shards, keyspace: "/keyspace".into(), ring_key: [3; 16] },
            options,
            pins: BTreeMap::new(),
            present: BTreeSet::new(),
            durable: BTreeSet::new(),
            deleting: BTreeSet::new(),
            version: 0,
            log: Vec::new(),
        }
    }

    fn open(&self) -> Result<Datastore> {
        let env = Env {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(self.disk.clone()),
            index: Arc::new(self.index.clone()),
            ground: Arc::new(PlainGround),
            random: Arc::new(self.disk.clone()),
            sequence: Arc::new(AtomicU64::new(1)),
            unflushed: Arc::default(),
        };
        Datastore::open(&self.layout, &env, self.options.clone())
    }

    fn fail(&self, what: &str) -> ! {
        let trace = self.disk.trace().join("\n  ");
        panic!(
            "seed {:#x}, cut {}, {}: {what}\n  {}\n{trace}",
            self.seed,
            self.cut,
            self.durability,
            self.log.join("\n  ")
        );
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    /// One operation of Kubo's. An error is a crash here: it leaves what it touched open.
    fn operate(&mut self, store: &Datastore, rng: &mut SimRng) -> Result<()> {
        match rng.below(16) {
            0..=4 => {
                let number = rng.below(BLOCKS) as u8;
                self.note(format!("put block {number}"));
                if rng.one_in(2) {
                    store.put(&block_key(number), &block_value(number))?;
                } else {
                    wait(store.submit_put(&block_key(number), &block_value(number), None))?;
                }
                self.acknowledge_blocks(&[number]);
                Ok(())
            }
            5 | 6 => {
                let pin = rng.below(PINS) as u8;
                let value = self.pin_value(&self.present.clone(), rng);
                self.note(format!("pin {pin} = {value:?}"));
                let ops = vec![BatchOp::Put(pin_key(pin), value.clone())];
                self.change_pins(store, ops, &[], vec![(pin, Some(value))], rng)
            }
            7 | 8 => {
                // As one batch: blocks, two pins that hold them, and old blocks that nothing holds.
                let new: Vec<u8> = (0..1 + rng.below(3)).map(|_| rng.below(BLOCKS) as u8).collect();
                let all: BTreeSet<u8> = self.present.iter().chain(&new).copied().collect();
                let mut changes = Vec::new();
                let mut ops: Vec<BatchOp> =
                    new.iter().map(|number| BatchOp::Put(block_key(*number), block_value(*number))).collect();
                for pin in [0, 1 + rng.below(PINS - 1) as u8] {
                    let value = self.pin_value(&all, rng);
                    ops.push(BatchOp::Put(pin_key(pin), value.clone()));
                    changes.push((pin, Some(value)));
                }
                self.note(format!("batch: blocks {new:?}, pins {changes:?}"));
                self.change_pins(store, ops, &new, changes, rng)
            }
            9 | 10 => {
                let pin = rng.below(PINS) as u8;
                self.note(format!("unpin {pin}"));
                self.change_pins(store, vec![BatchOp::Delete(pin_key(pin))], &[], vec![(pin, None)], rng)
            }
            11 | 12 => self.collect_garbage(store, rng),
            13 => {
                self.note("sync".into());
                store.sync()?;
                self.all_durable();
                Ok(())
            }
            14 => {
                self.note("bookkeeping".into());
                store.put(&Key::new("/providers/x").unwrap(), &[self.version])
            }
            _ => {
                self.note("a quiet moment".into());
                self.disk.advance_ns(2_000_000_000);
                store.step();
                Ok(())
            }
        }
    }

    fn pin_value(&mut self, of: &BTreeSet<u8>, rng: &mut SimRng) -> Vec<u8> {
        self.version = self.version.wrapping_add(1);
        let held = of.iter().filter(|_| rng.one_in(2)).copied();
        // The first byte only tells values apart.
        std::iter::once(self.version).chain(held).collect()
    }

    fn acknowledge_blocks(&mut self, numbers: &[u8]) {
        self.present.extend(numbers);
        if self.durability == Durability::Strict {
            self.durable.extend(numbers);
        }
    }

    fn change_pins(
        &mut self,
        store: &Datastore,
        ops: Vec<BatchOp>,
        blocks: &[u8],
        changes: Vec<(u8, Pin)>,
        rng: &mut SimRng,
    ) -> Result<()> {
        let outcome = match ops.as_slice() {
            [BatchOp::Put(key, value)] if rng.one_in(2) => store.put(key, value),
            [BatchOp::Put(key, value)] => wait(store.submit_put(key, value, None)),
            [BatchOp::Delete(key)] if rng.one_in(2) => store.delete(key),
            [BatchOp::Delete(key)] => wait(store.submit_delete(key)),
            _ => wait(store.submit_batch(ops)),
        };
        for (pin, value) in changes {
            let (now, also) = self.pins.entry(pin).or_default();
            match &outcome {
                Err(_) => also.push(value),
                Ok(()) => {
                    also.push(std::mem::replace(now, value));
                    if self.durability != Durability::Relaxed {
                        also.clear();
                    }
                }
            }
        }
        outcome?;
        self.acknowledge_blocks(blocks);
        if self.durability == Durability::Ordered {
            // The barrier.
            self.durable.extend(&self.present);
        }
        Ok(())
    }

    /// Deletes what no pin holds, one by one, as Kubo does.
    fn collect_garbage(&mut self, store: &Datastore, rng: &mut SimRng) -> Result<()> {
        let held: BTreeSet<u8> =
            self.pins.values().filter_map(|(now, _)| now.as_ref()).flat_map(|pin| &pin[1..]).copied().collect();
        let garbage: Vec<u8> = self.present.difference(&held).copied().collect();
        self.note(format!("collect {garbage:?}"));
        if rng.one_in(3) {
            self.deleting.extend(&garbage);
            let ops = garbage.iter().map(|number| BatchOp::Delete(block_key(*number))).collect();
            store.batch(ops)?;
        }
        for number in garbage {
            self.deleting.insert(number);
            if rng.one_in(2) {
                store.delete(&block_key(number))?;
            } else {
                wait(store.submit_delete(&block_key(number)))?;
            }
            self.deleting.remove(&number);
            self.present.remove(&number);
            self.durable.remove(&number);
            // Before the tombstone was written, all metadata changed before became durable.
            self.pins.values_mut().for_each(|(_, also)| also.clear());
        }
        Ok(())
    }

    fn all_durable(&mut self) {
        self.durable.extend(&self.present);
        self.pins.values_mut().for_each(|(_, also)| also.clear());
    }

    /// Every promise, of what reads after a crash. What is seen is how it goes on.
    fn check(&mut self, store: &Datastore) {
        let mut present = BTreeSet::new();
        for number in 0..BLOCKS as u8 {
            match read(store, &block_key(number)) {
                Ok(None) if self.durable.contains(&number) && !self.deleting.contains(&number) => {
                    self.fail(&format!("block {number} was durable and is gone"))
                }
                Ok(None) => {}
                Ok(Some(value)) if value == block_value(number) => _ = present.insert(number),
                Ok(Some(_)) => self.fail(&format!("block {number} has other bytes")),
                Err(err) => self.fail(&format!("block {number}: {err:?}")),
            }
        }
        for pin in 0..PINS as u8 {
            let found = match read(store, &pin_key(pin)) {
                Ok(found) => found,
                Err(err) => self.fail(&format!("pin {pin}: {err:?}")),
            };
            let (now, also) = self.pins.entry(pin).or_default();
            if found != *now && !also.contains(&found) {
                let message = format!("pin {pin} reads {found:?}, and may be {now:?} or {also:?}");
                self.fail(&message);
            }
            let held: BTreeSet<u8> = found.iter().flat_map(|pin| &pin[1..]).copied().collect();
            // In `relaxed` a pin may be ahead of new blocks, but never behind the delete of durable ones.
            let promised: BTreeSet<u8> = match self.durability {
                Durability::Relaxed => held.intersection(&self.durable).copied().collect(),
                _ => held,
            };
            if let Some(missing) = promised.difference(&present).next() {
                self.fail(&format!("pin {pin} is {found:?}, and its block {missing} is gone"));
            }
        }
        let seen = self.pins.keys().map(|pin| (*pin, (read(store, &pin_key(*pin)).unwrap(), Vec::new()))).collect();
        self.pins = seen;
        self.check_listing(store, &present);
        (self.durable, self.present) = (present.clone(), present);
        self.deleting.clear();
    }

    /// A query lists what Get finds, and the sums agree.
    fn check_listing(&self, store: &Datastore, present: &BTreeSet<u8>) {
        let mut listed = BTreeSet::new();
        let mut cursor = store.query(Query { keys_only: true, ..Query::default() }).unwrap();
        loop {
            let page = cursor.next_page(4, 1000).unwrap();
            if page.is_empty() {
                break;
            }
            for entry in page {
                if !listed.insert(entry.key.clone()) {
                    self.fail(&format!("{} is listed twice", entry.key));
                }
            }
        }
        listed.remove(&Key::new("/providers/x").unwrap());
        let pins = self.pins.iter().filter(|(_, (now, _))| now.is_some()).map(|(pin, _)| pin_key(*pin));
        let wanted: BTreeSet<Key> = present.iter().map(|number| block_key(*number)).chain(pins).collect();
        if listed != wanted {
            self.fail(&format!("listed are {listed:?}, and there are {wanted:?}"));
        }
        let stats = store.shards().stats();
        let bytes: usize = present.iter().map(|number| block_value(*number).len()).sum();
        if (stats.count, stats.bytes) != (present.len() as u64, bytes as u64) {
            self.fail(&format!(
                "counted are {} blocks of {} bytes, and there are {}, {bytes}",
                stats.count,
                stats.bytes,
                present.len()
            ));
        }
    }

    fn restart(&mut self, rng: &mut SimRng) {
        let loss = match rng.below(6) {
            0 => Loss::Process,
            1 => Loss::Everything,
            2 => Loss::Nothing,
            _ => Loss::Random,
        };
        self.disk.restart(rng, loss);
        let index = if rng.one_in(6) { IndexLoss::Everything } else { IndexLoss::Prefix };
        self.index.crash(rng, index);
        self.note(format!("crash: {loss:?}, index {index:?}"));
    }

    /// Opens after a crash, with more of them on the way.
    fn recover(&mut self, rng: &mut SimRng) -> Datastore {
        for _ in 0..3 {
            if rng.one_in(2) {
                let at = self.disk.steps() + 1 + rng.below(30);
                self.disk.inject(at, Fault::PowerCut);
            }
            match self.open() {
                Ok(store) if !self.disk.is_cut() => {
                    self.disk.clear_faults();
                    return store;
                }
                Err(err) if !self.disk.is_cut() => self.fail(&format!("open: {err:?}")),
                _ => self.restart(rng),
            }
        }
        self.open().unwrap_or_else(|err| self.fail(&format!("open: {err:?}")))
    }
}

fn wait(submitted: Result<Ticket>) -> Result<()> {
    submitted?.wait()
}

fn read(store: &Datastore, key: &Key) -> Result<Option<Vec<u8>>> {
    let mut value = Vec::new();
    match store.get(key, &mut value) {
        Ok(()) => Ok(Some(value)),
        Err(err) if err.is_not_found() => Ok(None),
        Err(err) => Err(err),
    }
}

fn block_value(number: u8) -> Vec<u8> {
    let bytes = [0, 1, 200, 700, 4096, 9000][usize::from(number) % 6];
    let mut rng = SimRng::new(u64::from(number));
    std::iter::once(number).chain((0..bytes).map(|_| rng.next_u64() as u8)).collect()
}

fn block_key(number: u8) -> Key {
    let hash = [&[0x12, 32][..], &Sha256::digest(block_value(number))].concat();
    Key::of_block(&Multihash::parse(&hash).unwrap())
}

fn pin_key(pin: u8) -> Key {
    Key::new(&format!("/pins/pin/{pin}")).unwrap()
}

/// Runs a seed's workload with the power going before disk operation `cut` (0: at its end). Returns how many operations there were.
fn run(seed: u64, durability: Durability, cut: u64) -> u64 {
    let mut world = World::new(seed, durability, cut);
    if std::env::var_os("CUT").is_some() {
        world.disk.record_trace(true);
    }
    let mut rng = SimRng::new(seed);
    if cut > 0 {
        world.disk.inject(cut, Fault::PowerCut);
    }
    let operations = 8 + rng.below(16);
    match world.open() {
        Err(err) if !world.disk.is_cut() => world.fail(&format!("make: {err:?}")),
        Err(_) => {}
        Ok(store) => {
            for _ in 0..operations {
                let outcome = world.operate(&store, &mut rng);
                if world.disk.is_cut() {
                    break;
                }
                if let Err(err) = outcome {
                    world.fail(&format!("no fault was injected: {err:?}"));
                }
            }
        }
    }
    let steps = world.disk.steps();
    // A few lives, so that what a recovery leaves is itself crashed upon.
    for _ in 0..3 {
        world.restart(&mut rng);
        let store = world.recover(&mut rng);
        world.check(&store);
        let at = world.disk.steps() + 1 + rng.below(20);
        world.disk.inject(at, Fault::PowerCut);
        for _ in 0..rng.below(6) {
            let _ = world.operate(&store, &mut rng);
            if world.disk.is_cut() {
                break;
            }
        }
    }
    steps
}

fn search(durability: Durability) {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed = u64::from_str_radix(seed.trim_start_matches("0x"), 16).unwrap();
            seed..seed + 1
        }
        Err(_) => 0..std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(4),
    };
    let mut points = 0;
    for seed in seeds {
        if let Ok(cut) = std::env::var("CUT") {
            run(seed, durability, cut.parse().unwrap());
            continue;
        }
        let steps = run(seed, durability, 0);
        (1..=steps).for_each(|cut| _ = run(seed, durability, cut));
        points += steps;
    }
    println!("{durability}: {points} crash points");
    assert!(points > 0 || std::env::var_os("CUT").is_some());
}

#[test]
fn strict_keeps_what_it_acknowledged_through_many_crashes() {
    search(Durability::Strict);
}

#[test]
fn ordered_never_has_a_pin_that_misses_a_block_through_many_crashes() {
    search(Durability::Ordered);
}

#[test]
fn relaxed_brings_no_pin_back_without_its_blocks_through_many_crashes() {
    search(Durability::Relaxed);
}
