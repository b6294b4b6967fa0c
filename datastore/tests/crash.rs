//! Crash search over a whole node: two shards and the keyspace on one disk that forgets.
//!
//! A seed gives a workload of blocks, pins that name them, unpinning and collection; the power goes before every one of its disk
//! operations. Afterwards every pin that is there has all of its blocks, and everything acknowledged is what its class promised.
//! `SEED=0x… cargo test -p basalt-datastore --test crash` replays one seed, `SEEDS=n` searches further.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use basalt_blockstore::{
    Durability, Multihash, Options as StoreOptions,
    disk::sim::{Fault, Loss, SimDisk, SimRng},
    ground::PlainGround,
    index::sim::{IndexLoss, SimEngine},
    store::Env,
};
use basalt_datastore::{BatchOp, Datastore, Key, Layout, Options, Result};

const BLOCKS: u64 = 12;
const PINS: u64 = 4;

fn block_key(number: u8) -> Key {
    let mut multihash = vec![0x12, 32];
    multihash.extend([number; 32]);
    Key::new(&format!("/blocks/{}", Multihash::parse(&multihash).unwrap().to_base32())).unwrap()
}

fn block_value(number: u8) -> Vec<u8> {
    let len = [40, 700, 5000, 1][number as usize % 4];
    let mut rng = SimRng::new(u64::from(number));
    (0..len).map(|_| rng.next_u64() as u8).collect()
}

/// Keys of metadata that name blocks: pins, and the root that is overwritten all the time.
fn meta_key(number: u8) -> Key {
    match number {
        0 => Key::new("/local/filesroot").unwrap(),
        _ => Key::new(&format!("/pins/pin/{number}")).unwrap(),
    }
}

/// The states that a key may have after a crash; the last one is what it is now.
#[derive(Clone, Debug)]
struct States<T>(Vec<Option<T>>);

impl<T: Clone + PartialEq> States<T> {
    fn now(&self) -> Option<&T> {
        self.0.last().and_then(Option::as_ref)
    }

    fn acknowledge(&mut self, state: Option<T>, durable: bool) {
        if durable {
            self.0.clear();
        }
        self.0.push(state);
    }

    /// Neither done nor undone: both may be.
    fn attempt(&mut self, state: Option<T>) {
        self.0.insert(0, state);
    }

    fn synced(&mut self) {
        self.0.drain(..self.0.len() - 1);
    }
}

struct World {
    seed: u64,
    disk: SimDisk,
    index: SimEngine,
    layout: Layout,
    options: Options,
    blocks: BTreeMap<u8, States<()>>,
    metas: BTreeMap<u8, States<Vec<u8>>>,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64, durability: Durability) -> World {
        let disk = SimDisk::new();
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
            reserve_bytes: 0,
            ..StoreOptions::default()
        };
        let options = Options { durability, store, ..Options::default() };
        let blocks = (0..BLOCKS as u8).map(|number| (number, States(vec![None]))).collect();
        let metas = (0..PINS as u8).map(|number| (number, States(vec![None]))).collect();
        World { seed, disk, index, layout, options, blocks, metas, log: Vec::new() }
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

    fn strict(&self) -> bool {
        self.options.durability == Durability::Strict
    }

    fn fail(&self, what: &str) -> ! {
        panic!("seed {:#x}: {what}\n  {}", self.seed, self.log.join("\n  "));
    }

    fn present(&self) -> Vec<u8> {
        self.blocks.iter().filter(|(_, states)| states.now().is_some()).map(|(number, _)| *number).collect()
    }

    fn pinned(&self) -> BTreeSet<u8> {
        self.metas.values().filter_map(States::now).flatten().copied().collect()
    }

    fn put_block(&mut self, store: &Datastore, number: u8) -> Result<()> {
        self.log.push(format!("put block {number}"));
        let outcome = store.put(&block_key(number), &block_value(number));
        let durable = self.strict();
        let states = self.blocks.get_mut(&number).unwrap();
        match outcome {
            Ok(()) => states.acknowledge(Some(()), durable),
            Err(_) => states.attempt(Some(())),
        }
        outcome
    }

    fn put_meta(&mut self, store: &Datastore, number: u8, blocks: Option<Vec<u8>>) -> Result<()> {
        self.log.push(format!("set {} to {blocks:?}", meta_key(number).as_str()));
        let outcome = match &blocks {
            Some(blocks) => store.put(&meta_key(number), blocks),
            None => store.delete(&meta_key(number)),
        };
        self.told_meta(number, blocks, &outcome);
        outcome
    }

    fn told_meta(&mut self, number: u8, blocks: Option<Vec<u8>>, outcome: &Result<()>) {
        let durable = self.options.durability != Durability::Relaxed;
        let states = self.metas.get_mut(&number).unwrap();
        match outcome {
            Ok(()) => states.acknowledge(blocks, durable),
            Err(_) => states.attempt(blocks),
        }
    }

    fn operate(&mut self, store: &Datastore, rng: &mut SimRng) -> Result<()> {
        match rng.below(16) {
            0..=4 => self.put_block(store, rng.below(BLOCKS) as u8),
            5..=7 => {
                let mut blocks = self.present();
                blocks.retain(|_| rng.one_in(2));
                self.put_meta(store, rng.below(PINS) as u8, Some(blocks))
            }
            8 => {
                // Blocks and the pin that names them, in one batch.
                let blocks: Vec<u8> = (0..3).map(|_| rng.below(BLOCKS) as u8).collect();
                let pin = rng.below(PINS) as u8;
                self.log.push(format!("batch: blocks {blocks:?} and {}", meta_key(pin).as_str()));
                let mut ops: Vec<BatchOp> =
                    blocks.iter().map(|number| BatchOp::Put(block_key(*number), block_value(*number))).collect();
                ops.push(BatchOp::Put(meta_key(pin), blocks.clone()));
                let outcome = store.batch(ops);
                let durable = self.strict();
                for number in &blocks {
                    let states = self.blocks.get_mut(number).unwrap();
                    match outcome {
                        Ok(()) => states.acknowledge(Some(()), durable),
                        Err(_) => states.attempt(Some(())),
                    }
                }
                self.told_meta(pin, Some(blocks), &outcome);
                outcome
            }
            9 => self.put_meta(store, rng.below(PINS) as u8, None),
            10 | 11 => {
                // What Kubo's collection does: lone deletes of what nothing names.
                let pinned = self.pinned();
                for number in self.present().into_iter().filter(|number| !pinned.contains(number)) {
                    self.log.push(format!("collect block {number}"));
                    let outcome = store.delete(&block_key(number));
                    let states = self.blocks.get_mut(&number).unwrap();
                    match outcome {
                        Ok(()) => states.acknowledge(None, false),
                        Err(_) => states.attempt(None),
                    }
                    outcome?;
                }
                Ok(())
            }
            12 => {
                self.log.push("bookkeeping".into());
                store.put(&Key::new("/providers/x").unwrap(), b"when")
            }
            13 => {
                self.log.push("sync".into());
                store.sync()?;
                self.blocks.values_mut().for_each(States::synced);
                self.metas.values_mut().for_each(States::synced);
                Ok(())
            }
            14 => {
                self.log.push("a quiet moment".into());
                self.disk.advance_ns(2_000_000_000);
                store.step();
                Ok(())
            }
            _ => {
                self.log.push("collect garbage".into());
                store.collect_garbage()
            }
        }
    }

    /// What is there is allowed, whole, and no pin lacks a block; it is durable from now on.
    fn check(&mut self, store: &Datastore) {
        let read = |key: &Key| {
            let mut value = Vec::new();
            match store.get(key, &mut value) {
                Ok(()) => Some(value),
                Err(err) if err.is_not_found() => None,
                Err(err) => self.fail(&format!("get {}: {err:?}", key.as_str())),
            }
        };
        let mut present = BTreeSet::new();
        let mut found = BTreeMap::new();
        for (number, states) in &self.blocks {
            let value = read(&block_key(*number));
            if value.as_ref().is_some_and(|value| *value != block_value(*number)) {
                self.fail(&format!("block {number} has wrong bytes"));
            }
            let state = value.map(|_| ());
            if !states.0.contains(&state) {
                self.fail(&format!("block {number} is {state:?}, allowed {:?}", states.0));
            }
            if state.is_some() {
                present.insert(*number);
            }
            found.insert(*number, States(vec![state]));
        }
        let mut metas = BTreeMap::new();
        for (number, states) in &self.metas {
            let value = read(&meta_key(*number));
            if !states.0.contains(&value) {
                self.fail(&format!("{} is {value:?}, allowed {:?}", meta_key(*number).as_str(), states.0));
            }
            if self.options.durability != Durability::Relaxed
                && let Some(missing) = value.iter().flatten().find(|block| !present.contains(block))
            {
                self.fail(&format!("{} names block {missing}, which is lost", meta_key(*number).as_str()));
            }
            metas.insert(*number, States(vec![value]));
        }
        let blocks = store.stats().shards.iter().map(|stats| stats.count).sum::<u64>();
        if blocks != present.len() as u64 {
            self.fail(&format!("{blocks} blocks are counted, {} are there", present.len()));
        }
        (self.blocks, self.metas) = (found, metas);
    }

    fn restart(&mut self, rng: &mut SimRng) {
        let loss = [Loss::Process, Loss::Everything, Loss::Nothing, Loss::Random, Loss::Random][rng.below(5) as usize];
        let index = if rng.one_in(6) { IndexLoss::Everything } else { IndexLoss::Prefix };
        self.log.push(format!("crash: {loss:?}, index {index:?}"));
        self.disk.restart(rng, loss);
        self.index.crash(rng, index);
    }
}

/// Runs a seed's workload with the power going before disk operation `cut` (0: at the end). Returns how many operations there were.
fn run(seed: u64, durability: Durability, cut: u64) -> u64 {
    let mut world = World::new(seed, durability);
    let mut rng = SimRng::new(seed);
    let store = world.open().unwrap();
    if cut > 0 {
        world.disk.inject(world.disk.steps() + cut, Fault::PowerCut);
    }
    let first = world.disk.steps();
    for _ in 0..15 + rng.below(15) {
        if let Err(err) = world.operate(&store, &mut rng) {
            if !world.disk.is_cut() {
                world.fail(&format!("{err:?}"));
            }
            break;
        }
        if world.disk.is_cut() {
            break;
        }
    }
    let steps = world.disk.steps() - first;
    drop(store);
    for _ in 0..2 {
        world.restart(&mut rng);
        let store = world.open().unwrap_or_else(|err| world.fail(&format!("open: {err:?}")));
        world.check(&store);
        world.disk.inject(world.disk.steps() + 1 + rng.below(20), Fault::PowerCut);
        for _ in 0..8 {
            let _ = world.operate(&store, &mut rng);
            if world.disk.is_cut() {
                break;
            }
        }
        world.disk.clear_faults();
    }
    world.restart(&mut rng);
    let store = world.open().unwrap_or_else(|err| world.fail(&format!("open: {err:?}")));
    world.check(&store);
    steps
}

fn search(durability: Durability) {
    let number = |name: &str| std::env::var(name).ok();
    let seeds = match number("SEED") {
        Some(seed) => {
            let seed = u64::from_str_radix(seed.trim_start_matches("0x"), 16).unwrap();
            seed..seed + 1
        }
        None => 0..number("SEEDS").and_then(|seeds| seeds.parse().ok()).unwrap_or(15),
    };
    let mut points = 0;
    for seed in seeds {
        for cut in 1..=run(seed, durability, 0) {
            run(seed, durability, cut);
            points += 1;
        }
    }
    println!("{points} crash points");
    assert!(points > 0);
}

#[test]
fn ordered_pin_never_lacks_a_block_after_a_cut_before_any_disk_operation() {
    search(Durability::Ordered);
}

#[test]
fn strict_blocks_and_pins_survive_a_cut_before_any_disk_operation() {
    search(Durability::Strict);
}

#[test]
fn relaxed_blocks_and_pins_are_whole_and_durable_after_sync() {
    search(Durability::Relaxed);
}
