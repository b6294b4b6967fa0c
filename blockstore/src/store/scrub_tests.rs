//! What scrub and quarantine promise, on the simulated disk: every damaged block is found and no other, none is ever given out, what is quarantined stays
//! so through cuts and a lost index, and is healed by nothing but its own bytes.
//!
//! `SEED=0x… cargo test scrub` replays one seed of the search, `SEEDS=n` searches further.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use sha2::{Digest as _, Sha256};

use super::{
    Env, Op, Rot, ScrubReader, Store,
    format::{RECORD_HEADER_BYTES, record_bytes},
    location::Location,
    segment::file_name,
};
use crate::{
    ErrorKind, Multihash, OnCorrupt, Options, Shard,
    disk::{
        Disk, File,
        sim::{Fault, Loss, SimDisk, SimRng},
    },
    ground::PlainGround,
    index::sim::{IndexLoss, SimEngine},
};

const DIR: &str = "/shard";

/// A simulated disk whose sectors can go bad: reading them fails, or reads past the page cache see other bits.
#[derive(Clone, Debug)]
struct BadDisk {
    disk: SimDisk,
    bad: Arc<Mutex<Bad>>,
}

#[derive(Debug, Default)]
struct Bad {
    /// Ranges that can't be read, by file.
    unreadable: Vec<(PathBuf, u64, u64)>,
    /// No read succeeds.
    dead: bool,
    /// Bytes that are flipped on the platter and right in the page cache.
    flipped: Vec<(PathBuf, u64)>,
}

#[derive(Debug)]
struct BadFile {
    file: Arc<dyn File>,
    path: PathBuf,
    bad: Arc<Mutex<Bad>>,
    direct: bool,
}

impl Disk for BadDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = self.disk.create(path)?;
        // A new file is named later; what goes bad is looked for by the name that it will have.
        let path = PathBuf::from(path.to_string_lossy().replace("new-", "seg-").replace(".tmp", ".log"));
        Ok(Arc::new(BadFile { file, path, bad: self.bad.clone(), direct: false }))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        let file = self.disk.open(path, write)?;
        Ok(Arc::new(BadFile { file, path: path.to_owned(), bad: self.bad.clone(), direct: false }))
    }
    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = self.disk.open(path, false)?;
        Ok(Arc::new(BadFile { file, path: path.to_owned(), bad: self.bad.clone(), direct: true }))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn available(&self, dir: &Path) -> io::Result<u64> {
        self.disk.available(dir)
    }
}

impl BadFile {
    fn check(&self, buffer: &mut [u8], offset: u64, got: usize) -> io::Result<usize> {
        let bad = self.bad.lock().unwrap();
        let to = offset + got as u64;
        if bad.dead || bad.unreadable.iter().any(|(path, a, b)| *path == self.path && *a < to && offset < *b) {
            return Err(io::Error::from_raw_os_error(5));
        }
        for (_, at) in
            bad.flipped.iter().filter(|(path, at)| self.direct && *path == self.path && (offset..to).contains(at))
        {
            buffer[(at - offset) as usize] ^= 1;
        }
        Ok(got)
    }
}

impl File for BadFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.direct {
            let aligned = |value: usize| value.is_multiple_of(crate::disk::DIRECT_BYTES);
            assert!(aligned(offset as usize) && aligned(buffer.len()) && aligned(buffer.as_ptr() as usize));
        }
        let got = self.file.read_at(buffer, offset)?;
        self.check(buffer, offset, got)
    }
    fn read_two_at(&self, head: &mut [u8], body: &mut [u8], offset: u64) -> io::Result<usize> {
        let got = self.file.read_two_at(head, body, offset)?;
        self.check(&mut [], offset, got)
    }
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.file.write_at(parts, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
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

struct World {
    disk: SimDisk,
    bad: Arc<Mutex<Bad>>,
    index: SimEngine,
    options: Options,
}

impl World {
    fn new() -> World {
        let disk = SimDisk::new();
        let index = SimEngine::new(disk.clone());
        let options = Options {
            segment_bytes: 32 << 10,
            reserve_bytes: 0,
            punch_bytes_min: 4096,
            compact_dead_percent: 40,
            recycle_segments_max: 2,
            ..Options::default()
        };
        World { disk, bad: Arc::default(), index, options }
    }

    fn env(&self) -> Env {
        Env {
            disk: Arc::new(BadDisk { disk: self.disk.clone(), bad: self.bad.clone() }),
            clock: Arc::new(self.disk.clone()),
            index: Arc::new(self.index.clone()),
            ground: Arc::new(PlainGround),
            random: Arc::new(self.disk.clone()),
            sequence: Arc::new(AtomicU64::new(1)),
            unflushed: Arc::default(),
        }
    }

    fn open(&self) -> Shard {
        Shard::open(Path::new(DIR), &self.env(), self.options.clone()).unwrap()
    }

    fn power_cut(&self, rng: &mut SimRng, index: IndexLoss) {
        self.disk.restart(rng, Loss::Everything);
        self.index.crash(rng, index);
    }

    /// Flips a bit of the record of a key, `at` bytes from its start.
    fn flip(&self, shard: &Shard, key: &Multihash, at: u64) {
        let location = place(shard.store(), key.as_bytes()).unwrap().0;
        assert!(self.disk.flip(&path_of(location), location.offset() + at, 2));
    }

    fn flip_payload(&self, shard: &Shard, key: &Multihash) {
        self.flip(shard, key, (RECORD_HEADER_BYTES + key.as_bytes().len()) as u64 + 3);
    }
}

fn path_of(location: Location) -> PathBuf {
    Path::new(DIR).join(file_name(location.segment()))
}

/// Where the record of a live key stands, with the size of its value.
fn place(store: &Store, key: &[u8]) -> Option<(Location, u32)> {
    let core = &store.core;
    let stripe = core.stripe(core.stripe_of(key));
    core.newest(&stripe, key).unwrap().map(|(live, _)| (live.location(), live.size))
}

fn block(number: u64, len: usize) -> (Multihash, Vec<u8>) {
    let mut rng = SimRng::new(number ^ 0xb10c);
    let value: Vec<u8> = (0..len.max(8)).map(|_| rng.next_u64() as u8).collect();
    let key = Multihash::parse(&[&[0x12, 32], &Sha256::digest(&value)[..]].concat()).unwrap();
    (key, value)
}

fn get(shard: &Shard, key: &Multihash) -> Result<Vec<u8>, ErrorKind> {
    let mut value = Vec::new();
    shard.get(key, &mut value).map(|()| value).map_err(|err| err.kind())
}

/// A whole pass; returns the keys that it quarantined.
fn scrub(store: &Store) -> Vec<Vec<u8>> {
    store.begin_scrub().unwrap();
    finish(store, 4096)
}

fn finish(store: &Store, limit: u64) -> Vec<Vec<u8>> {
    let mut reader = ScrubReader::default();
    let mut found = Vec::new();
    loop {
        let step = store.scrub_step(&mut reader, limit, false).unwrap();
        found.extend(step.quarantined.into_iter().map(|(key, _)| key));
        if step.done {
            return found;
        }
    }
}

fn listed(store: &Store) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = store.quarantined(after.as_deref(), 3).unwrap();
        after = page.last().map(|one| one.key.clone());
        let ended = page.len() < 3;
        all.extend(page.into_iter().map(|one| one.key));
        if ended {
            assert_eq!(store.stats().quarantined, all.len() as u64);
            return all;
        }
    }
}

/// A seed's life of a store: writes, flips below the mark, a scrub that is stopped, resumed, cut off and lost, then cuts, a lost index and cures.
fn search(seed: u64) -> usize {
    let mut rng = SimRng::new(seed);
    let world = World::new();
    let mut shard = world.open();
    let mut blocks: BTreeMap<Multihash, Vec<u8>> = BTreeMap::new();
    for number in 0..20 + rng.below(60) {
        match rng.below(10) {
            0..=6 => {
                let (key, value) = block(seed << 16 | number, rng.below(3000) as usize);
                shard.put(&key, &value).unwrap();
                blocks.insert(key, value);
            }
            7 => {
                if let Some(key) = blocks.keys().nth(rng.below(blocks.len().max(1) as u64) as usize).cloned() {
                    shard.delete(&key).unwrap();
                    blocks.remove(&key);
                }
            }
            8 => {
                shard.store().reclaim().unwrap();
            }
            _ => {
                world.disk.advance_ns(2_000_000_000);
                shard.store().step();
            }
        }
    }
    shard.sync().unwrap();
    // What neither the index nor a summary has told is known by its header alone: a header that rots before that, and a cut before anyone looks,
    // leave a gap without a name.
    shard.store().core.flush_index().unwrap();
    let fail = |what: &str| -> ! { panic!("SEED={seed:#x}: {what}") };

    // Bits rot: in live records, anywhere in them, and now and then where nothing lives.
    let mut rotten: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut flipped = BTreeSet::new();
    for _ in 0..1 + rng.below(6) {
        let Some((key, value)) = blocks.iter().nth(rng.below(blocks.len().max(1) as u64) as usize) else { break };
        let (location, _) = place(shard.store(), key.as_bytes()).unwrap();
        let (whole, padded) = (
            (RECORD_HEADER_BYTES + key.as_bytes().len() + value.len()) as u64,
            record_bytes(key.as_bytes().len(), value.len()),
        );
        let at = match rng.below(4) {
            0 => rng.below(RECORD_HEADER_BYTES as u64 + 34),
            1 => rng.below(padded),
            _ => RECORD_HEADER_BYTES as u64 + 34 + rng.below(value.len() as u64),
        };
        if !flipped.insert((location, at)) {
            continue;
        }
        assert!(world.disk.flip(&path_of(location), location.offset() + at, rng.below(8) as u8));
        if at < whole {
            rotten.insert(key.as_bytes().to_vec());
        }
    }

    // A read may come before the scrub.
    let mut found: BTreeSet<Vec<u8>> = BTreeSet::new();
    if rng.one_in(3)
        && let Some(key) = rotten.iter().next()
    {
        if get(&shard, &Multihash::parse(key).unwrap()) != Err(ErrorKind::NotFound) {
            fail("a rotten block was given out");
        }
        found.insert(key.clone());
    }
    shard.store().begin_scrub().unwrap();
    let mut reader = ScrubReader::default();
    loop {
        let step = shard.store().scrub_step(&mut reader, 1 + rng.below(20_000), rng.one_in(2)).unwrap();
        for (key, _) in step.quarantined {
            if !found.insert(key) {
                fail("a block was found twice");
            }
        }
        if step.done {
            break;
        }
        match rng.below(8) {
            0 => reader = ScrubReader::default(),
            1 => shard.store().save_scrub().unwrap(),
            2 => {
                // Restarted well, or cut off: it goes on where it was last saved.
                reader = ScrubReader::default();
                if rng.one_in(2) {
                    shard.store().save_scrub().unwrap();
                    shard.close().unwrap();
                    drop(shard);
                } else {
                    drop(shard);
                    world.power_cut(&mut rng, IndexLoss::Prefix);
                }
                shard = world.open();
                if !shard.store().scrub_state().active {
                    shard.store().begin_scrub().unwrap();
                }
            }
            3 => {
                let (key, value) = block(rng.next_u64(), 500);
                shard.put(&key, &value).unwrap();
                blocks.insert(key, value);
            }
            4 => {
                let sound = blocks.keys().find(|key| !rotten.contains(key.as_bytes())).cloned();
                if let Some(key) = sound {
                    shard.delete(&key).unwrap();
                    shard.sync().unwrap();
                    blocks.remove(&key);
                    shard.store().reclaim().unwrap();
                }
            }
            _ => {}
        }
    }
    // Reclaim finds rot too, in what it moves.
    if !found.is_subset(&rotten) || listed(shard.store()) != rotten {
        fail(&format!(
            "found {} of {} rotten blocks, {} listed",
            found.len(),
            rotten.len(),
            listed(shard.store()).len()
        ));
    }

    // It holds through whatever comes, and nothing else has changed.
    for round in 0..3 {
        let stats = shard.live();
        if (stats.count, stats.bytes) != (blocks.len() as u64, blocks.values().map(|value| value.len() as u64).sum()) {
            let there = shard.enumerate(None, 1000).unwrap();
            let extra: Vec<_> = there.iter().filter(|(key, _)| !blocks.contains_key(key)).collect();
            let lost: Vec<_> = blocks.keys().filter(|key| there.iter().all(|(other, _)| other != *key)).collect();
            fail(&format!(
                "round {round}: {stats:?} are counted of {}; {extra:?} too many, {lost:?} lost",
                blocks.len()
            ));
        }
        if listed(shard.store()) != rotten {
            fail(&format!(
                "round {round}: {} are quarantined, {} are rotten",
                listed(shard.store()).len(),
                rotten.len()
            ));
        }
        for (key, value) in &blocks {
            let expected = if rotten.contains(key.as_bytes()) { Err(ErrorKind::NotFound) } else { Ok(value.clone()) };
            if get(&shard, key) != expected || shard.has(key).unwrap() != expected.is_ok() {
                fail(&format!("round {round}: block {key} is not what it should be"));
            }
        }
        let loss = if round == 0 { IndexLoss::Prefix } else { IndexLoss::Everything };
        shard.store().reclaim().unwrap();
        drop(shard);
        world.power_cut(&mut rng, loss);
        shard = world.open();
    }
    if !scrub(shard.store()).is_empty() {
        fail("what was known is found again");
    }

    // Healed by their own bytes, or deleted.
    for (i, key) in rotten.iter().enumerate() {
        let key = Multihash::parse(key).unwrap();
        if i % 3 == 2 {
            shard.delete(&key).unwrap();
            blocks.remove(&key);
        } else {
            shard.put(&key, &blocks[&key]).unwrap();
        }
    }
    shard.sync().unwrap();
    for loss in [IndexLoss::Prefix, IndexLoss::Everything] {
        if !listed(shard.store()).is_empty() {
            fail("a cured block is still quarantined");
        }
        for (key, value) in &blocks {
            if get(&shard, key).as_ref() != Ok(value) {
                fail(&format!("block {key} does not read back after its cure"));
            }
        }
        if shard.live().count != blocks.len() as u64 {
            fail("the count is wrong after the cures");
        }
        drop(shard);
        world.power_cut(&mut rng, loss);
        shard = world.open();
    }
    flipped.len()
}

#[test]
fn every_flipped_block_is_found_quarantined_for_good_and_healed() {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
    };
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(150),
    };
    let flips: usize = seeds.map(search).sum();
    println!("{flips} flips, every one found, 0 wrong bytes");
    assert!(flips > 0);
}

#[test]
fn a_read_that_finds_rot_has_quarantined_it_durably_when_it_answers() {
    for corrupt in [OnCorrupt::Refetch, OnCorrupt::Error] {
        let mut world = World::new();
        world.options.corrupt = corrupt;
        let shard = world.open();
        let (key, value) = block(1, 700);
        shard.put(&key, &value).unwrap();
        world.flip_payload(&shard, &key);
        let answer = if corrupt == OnCorrupt::Error { ErrorKind::Corrupt } else { ErrorKind::NotFound };
        assert_eq!(get(&shard, &key), Err(answer));
        drop(shard);
        world.power_cut(&mut SimRng::new(1), IndexLoss::Everything);
        let shard = world.open();
        // Told by the log: nothing has read it.
        let quarantined = shard.store().quarantined(None, 10).unwrap();
        assert_eq!((quarantined.len(), quarantined[0].rot, quarantined[0].size), (1, Rot::Payload, 700));
        match corrupt {
            OnCorrupt::Refetch => assert!(!shard.has(&key).unwrap()),
            OnCorrupt::Error => assert_eq!(shard.has(&key).unwrap_err().kind(), ErrorKind::Corrupt),
        }
        // Counted, enumerated and deletable, else nobody could collect it.
        assert_eq!((shard.live().count, shard.enumerate(None, 10).unwrap().len()), (1, 1));
        shard.delete(&key).unwrap();
        assert_eq!((shard.live().count, listed(shard.store()).len()), (0, 0));
    }
}

#[test]
fn a_cut_in_the_midst_of_a_quarantine_leaves_it_whole_or_to_be_found_again() {
    let mut cuts = 0;
    for cut in 1.. {
        let world = World::new();
        let shard = world.open();
        let (key, value) = block(1, 700);
        let (other, other_value) = block(2, 300);
        shard.put(&key, &value).unwrap();
        shard.put(&other, &other_value).unwrap();
        world.flip_payload(&shard, &key);
        let before = world.disk.steps();
        world.disk.inject(before + cut, Fault::PowerCut);
        let answer = get(&shard, &key);
        let struck = world.disk.is_cut();
        assert!(answer.is_err());
        drop(shard);
        for loss in [Loss::Everything, Loss::Random, Loss::Nothing] {
            world.disk.restart(&mut SimRng::new(cut), loss);
            world.index.crash(&mut SimRng::new(cut), IndexLoss::Everything);
            let shard = world.open();
            assert!(struck || listed(shard.store()).len() == 1, "answered, and so durable");
            assert_eq!(get(&shard, &key), Err(ErrorKind::NotFound));
            assert_eq!(get(&shard, &other).unwrap(), other_value);
            assert_eq!((shard.live().count, listed(shard.store()).len()), (2, 1));
        }
        if !struck {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 0);
}

#[test]
fn a_quarantine_outlives_the_segment_that_tells_it() {
    let world = World::new();
    let shard = world.open();
    let (key, value) = block(1, 9000);
    shard.put(&key, &value).unwrap();
    // The next segment holds the quarantine, and nothing that lives.
    let fill = |from: u64| (from..from + 12).map(|number| block(number, 3000)).collect::<Vec<_>>();
    let first = fill(100);
    first.iter().for_each(|(key, value)| shard.put(key, value).unwrap());
    world.flip_payload(&shard, &key);
    assert_eq!(get(&shard, &key), Err(ErrorKind::NotFound));
    let more = fill(200);
    more.iter().for_each(|(key, value)| shard.put(key, value).unwrap());
    first.iter().chain(&more).for_each(|(key, _)| shard.delete(key).unwrap());
    for _ in 0..3 {
        shard.store().reclaim().unwrap();
    }
    let segments = shard.stats().segments;
    assert!(segments <= 3, "the one with the rotten record, and what is written now: {segments}");
    drop(shard);
    world.power_cut(&mut SimRng::new(1), IndexLoss::Everything);
    let shard = world.open();
    assert_eq!(listed(shard.store()).len(), 1);
    shard.put(&key, &value).unwrap();
    shard.store().reclaim().unwrap();
    drop(shard);
    world.power_cut(&mut SimRng::new(1), IndexLoss::Everything);
    let shard = world.open();
    assert_eq!((listed(shard.store()).len(), get(&shard, &key)), (0, Ok(value)));
}

#[test]
fn only_what_the_multihash_names_heals() {
    let world = World::new();
    let shard = world.open();
    let (key, value) = block(1, 700);
    // A function that is not known here: murmur3.
    let unknown = Multihash::parse(&[&[0x22, 32][..], &[7; 32]].concat()).unwrap();
    shard.put(&key, &value).unwrap();
    shard.put(&unknown, b"who knows").unwrap();
    for key in [&key, &unknown] {
        assert!(!shard.heal(key, b"anything").unwrap(), "it is not quarantined");
        world.flip_payload(&shard, key);
        assert_eq!(get(&shard, key), Err(ErrorKind::NotFound));
    }
    for refused in [shard.put(&key, b"forged"), shard.heal(&key, b"forged").map(|_| ())] {
        let err = refused.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidValue);
        assert!(err.to_string().contains(&key.raw_cid()), "{err}");
    }
    assert!(shard.put(&unknown, b"who knows").is_err(), "nothing proves it");
    assert!(shard.heal(&unknown, b"who knows").is_err());
    assert_eq!(listed(shard.store()).len(), 2);
    assert!(shard.heal(&key, &value).unwrap());
    assert!(!shard.heal(&key, &value).unwrap(), "it is healed");
    shard.delete(&unknown).unwrap();
    shard.put(&unknown, b"who knows").unwrap();
    drop(shard);
    world.power_cut(&mut SimRng::new(1), IndexLoss::Everything);
    let shard = world.open();
    assert_eq!((get(&shard, &key), listed(shard.store()).len()), (Ok(value), 0));
    assert_eq!(get(&shard, &unknown).unwrap(), b"who knows");
}

#[test]
fn a_block_that_does_not_hash_to_its_key_is_found_where_hashing_is_asked_for() {
    let world = World::new();
    let shard = world.open();
    let (key, _) = block(1, 700);
    shard.put(&key, b"it came wrong").unwrap();
    assert!(scrub(shard.store()).is_empty(), "its checksum is right");
    shard.store().begin_scrub().unwrap();
    let step = shard.store().scrub_step(&mut ScrubReader::default(), u64::MAX, true).unwrap();
    assert_eq!(step.quarantined, [(key.as_bytes().to_vec(), Rot::Digest)]);
    assert_eq!(get(&shard, &key), Err(ErrorKind::NotFound));
    assert!(!shard.store().recheck(key.as_bytes()).unwrap());
}

#[test]
fn segments_that_are_compacted_and_used_again_meanwhile_are_no_damage() {
    let world = World::new();
    let shard = world.open();
    let blocks: Vec<_> = (0..60).map(|number| block(number, 2500)).collect();
    blocks.iter().for_each(|(key, value)| shard.put(key, value).unwrap());
    shard.store().begin_scrub().unwrap();
    let mut reader = ScrubReader::default();
    let mut next = blocks.iter();
    let mut number = 1000;
    loop {
        let step = shard.store().scrub_step(&mut reader, 1, false).unwrap();
        assert!(step.quarantined.is_empty());
        if step.done {
            break;
        }
        // Behind, under and ahead of the reader.
        next.by_ref().take(3).for_each(|(key, _)| shard.delete(key).unwrap());
        shard.store().reclaim().unwrap();
        let (key, value) = block(number, 2500);
        shard.put(&key, &value).unwrap();
        number += 1;
    }
    let state = shard.store().scrub_state();
    assert_eq!((state.damaged, state.dead_ranges, state.unreadable), (0, 0, 0));
    assert_eq!(state.finished_unix_ms, state.started_unix_ms);
}

#[test]
fn a_pass_ends_where_the_log_was_when_it_began() {
    let world = World::new();
    let shard = world.open();
    (0..30).map(|number| block(number, 2500)).for_each(|(key, value)| shard.put(&key, &value).unwrap());
    shard.store().begin_scrub().unwrap();
    let mut steps = 0;
    let mut reader = ScrubReader::default();
    while !shard.store().scrub_step(&mut reader, 1, false).unwrap().done {
        steps += 1;
        let (key, value) = block(1000 + steps, 12_000);
        shard.put(&key, &value).unwrap();
        assert!(steps < 100, "it runs after the writers");
    }
    assert!(!shard.store().scrub_state().active);
}

#[test]
fn what_memory_still_has_right_is_written_anew_before_it_is_lost() {
    let world = World::new();
    let shard = world.open();
    let (key, value) = block(1, 700);
    shard.put(&key, &value).unwrap();
    let (location, _) = place(shard.store(), key.as_bytes()).unwrap();
    world.bad.lock().unwrap().flipped.push((path_of(location), location.offset() + 120));
    assert!(scrub(shard.store()).is_empty());
    assert_eq!(shard.store().scrub_state().rescued, 1);
    assert!(place(shard.store(), key.as_bytes()).unwrap().0 > location);
    // The page cache goes.
    assert!(world.disk.flip(&path_of(location), location.offset() + 120, 0));
    for _ in 0..2 {
        assert_eq!(get(&shard, &key).unwrap(), value);
        shard.sync().unwrap();
        world.index.crash(&mut SimRng::new(1), IndexLoss::Prefix);
    }
    drop(shard);
    world.power_cut(&mut SimRng::new(1), IndexLoss::Everything);
    assert_eq!(get(&world.open(), &key).unwrap(), value);
}

#[test]
fn a_value_that_the_index_has_too_is_written_anew_from_there() {
    let mut world = World::new();
    (world.options.inline_bytes_max, world.options.corrupt) = (64, OnCorrupt::Error);
    for header in [false, true] {
        let store = Store::open(Path::new(DIR), &world.env(), world.options.clone()).unwrap();
        let pin: &[u8] = if header { b"/pins/header" } else { b"/pins/payload" };
        let op = Op::Put { key: pin, value: b"recursive", expires_unix_ms: 4_000_000_000_000 };
        store.write(&[op], true).unwrap();
        store.core.apply_ready();
        let location = place(&store, pin).unwrap().0;
        let at = if header { 20 } else { RECORD_HEADER_BYTES + pin.len() + 1 };
        assert!(world.disk.flip(&path_of(location), location.offset() + at as u64, 1));
        assert!(scrub(&store).is_empty());
        assert_eq!(store.scrub_state().rescued, 1);
        drop(store);
        world.power_cut(&mut SimRng::new(1), IndexLoss::Everything);
        let store = Store::open(Path::new(DIR), &world.env(), world.options.clone()).unwrap();
        let mut value = Vec::new();
        assert_eq!(store.get(pin, &mut value).unwrap().expires_unix_ms, 4_000_000_000_000);
        assert_eq!(value, b"recursive");
        store.close().unwrap();
    }
}

#[test]
fn a_read_error_is_no_rot_until_it_persists_for_one_record_while_the_file_reads_elsewhere() {
    let world = World::new();
    let shard = world.open();
    let blocks: Vec<_> = (0..6).map(|number| block(number, 9000)).collect();
    blocks.iter().for_each(|(key, value)| shard.put(key, value).unwrap());
    let bad = &blocks[1];
    let (location, _) = place(shard.store(), bad.0.as_bytes()).unwrap();
    let sector = (path_of(location), location.offset() + 5000, location.offset() + 5512);

    // A bad sector that comes back: an error for the reader, and nothing else.
    world.bad.lock().unwrap().unreadable.push(sector.clone());
    assert_eq!(get(&shard, &bad.0), Err(ErrorKind::Io));
    assert!(shard.has(&bad.0).unwrap());
    world.bad.lock().unwrap().unreadable.clear();
    world.disk.advance_ns(11_000_000_000);
    assert_eq!(shard.store().retry_unreadable().unwrap(), 0);
    assert_eq!(get(&shard, &bad.0).unwrap(), bad.1);

    // The whole disk is away, however long: nobody's block is declared rotten.
    world.bad.lock().unwrap().dead = true;
    for (key, _) in &blocks {
        assert_eq!(get(&shard, key), Err(ErrorKind::Io));
    }
    for _ in 0..10 {
        world.disk.advance_ns(11_000_000_000);
        assert_eq!(shard.store().retry_unreadable().unwrap(), blocks.len());
    }
    world.bad.lock().unwrap().dead = false;
    world.disk.advance_ns(11_000_000_000);
    assert_eq!(shard.store().retry_unreadable().unwrap(), 0);
    assert_eq!(listed(shard.store()).len(), 0);

    // A bad sector that stays: the scrub goes on behind it, and it is quarantined once it has failed three times.
    world.bad.lock().unwrap().unreadable.push(sector);
    assert!(scrub(shard.store()).is_empty());
    assert_eq!(shard.store().scrub_state().unreadable, 1);
    for left in [1, 0] {
        assert_eq!(listed(shard.store()).len(), 0);
        world.disk.advance_ns(11_000_000_000);
        assert_eq!(shard.store().retry_unreadable().unwrap(), left);
    }
    assert_eq!(shard.store().quarantined(None, 9).unwrap()[0].rot, Rot::Unreadable);
    assert_eq!(get(&shard, &bad.0), Err(ErrorKind::NotFound));
    assert!(!shard.store().recheck(bad.0.as_bytes()).unwrap(), "as bad as before");
    // The sector comes back after all.
    world.bad.lock().unwrap().unreadable.clear();
    assert!(shard.store().recheck(bad.0.as_bytes()).unwrap());
    assert_eq!((get(&shard, &bad.0).as_ref(), listed(shard.store()).len()), (Ok(&bad.1), 0));
}

#[test]
fn an_unreadable_header_hides_no_block_behind_it() {
    let world = World::new();
    let shard = world.open();
    let blocks: Vec<_> = (0..5).map(|number| block(number, 6000)).collect();
    blocks.iter().for_each(|(key, value)| shard.put(key, value).unwrap());
    let (location, _) = place(shard.store(), blocks[1].0.as_bytes()).unwrap();
    world.bad.lock().unwrap().unreadable.push((path_of(location), location.offset() + 8, location.offset() + 9));
    world.flip_payload(&shard, &blocks[3].0);
    assert_eq!(scrub(shard.store()), [blocks[3].0.as_bytes()]);
    assert!(shard.store().scrub_state().unreadable >= 1);
}

#[test]
fn blocks_of_a_segment_file_that_is_gone_are_quarantined_and_come_back_with_it() {
    let world = World::new();
    let shard = world.open();
    let blocks: Vec<_> = (0..30).map(|number| block(number, 2500)).collect();
    blocks.iter().for_each(|(key, value)| shard.put(key, value).unwrap());
    let lost = path_of(Location::new(1, 8192));
    let in_it = blocks.iter().filter(|(key, _)| place(shard.store(), key.as_bytes()).unwrap().0.segment() == 1).count();
    shard.close().unwrap();
    drop(shard);
    let bytes = world.disk.contents(&lost).unwrap();
    world.disk.remove(&lost).unwrap();
    let shard = world.open();
    scrub(shard.store());
    assert_eq!(listed(shard.store()).len(), in_it);
    assert_eq!(shard.store().scrub_state().damaged, in_it as u64);
    assert_eq!(shard.store().quarantined(None, 1).unwrap()[0].rot, Rot::Missing);
    shard.close().unwrap();
    drop(shard);
    world.disk.install(&lost, bytes);
    let shard = world.open();
    for one in shard.store().quarantined(None, 100).unwrap() {
        assert!(shard.store().recheck(&one.key).unwrap());
    }
    assert_eq!(listed(shard.store()).len(), 0);
    for (key, value) in &blocks {
        assert_eq!(get(&shard, key).as_ref(), Ok(value));
    }
}

/// Where a block's record stands in its file.
fn part_of(shard: &Shard, key: &Multihash, value: &[u8]) -> (String, std::ops::Range<u64>) {
    let location = place(shard.store(), key.as_bytes()).unwrap().0;
    let record = record_bytes(key.as_bytes().len(), value.len());
    (file_name(location.segment()), location.offset()..location.offset() + record)
}

#[test]
fn a_part_of_a_segment_that_is_named_is_checked_and_no_other() {
    let world = World::new();
    let shard = world.open();
    // More than a segment, so that one is sealed and one is not.
    let blocks: Vec<_> = (0..24).map(|number| block(number, 2000)).collect();
    blocks.iter().for_each(|(key, value)| shard.put(key, value).unwrap());
    shard.sync().unwrap();
    for at in [2, 22] {
        let (key, value) = &blocks[at];
        let (file, part) = part_of(&shard, key, value);
        world.flip_payload(&shard, key);
        world.flip_payload(&shard, &blocks[at - 2].0);
        let middle = part.start + 500..part.start + 501;
        let checked = shard.store().check_part(&file, middle, false).unwrap().unwrap();
        assert_eq!((checked.records, checked.quarantined), (1, vec![(key.as_bytes().to_vec(), Rot::Payload)]));
        assert_eq!(get(&shard, key), Err(ErrorKind::NotFound));
    }
    let (file, _) = part_of(&shard, &blocks[0].0, &blocks[0].1);
    let rest = shard.store().check_part(&file, 0..u64::MAX, false).unwrap().unwrap();
    assert_eq!(rest.quarantined, [(blocks[0].0.as_bytes().to_vec(), Rot::Payload)]);
    assert_eq!(listed(shard.store()).len(), 3);
    for none in ["seg-0000ffff.log", "scrub", "../seg-00000001.log"] {
        assert_eq!(shard.store().check_part(none, 0..u64::MAX, true).unwrap(), None);
    }
}

#[test]
fn what_no_copy_is_left_of_is_quarantined_at_once_and_what_may_come_back_is_not() {
    let world = World::new();
    let shard = world.open();
    let blocks: Vec<_> = (0..24).map(|number| block(number, 2000)).collect();
    blocks.iter().for_each(|(key, value)| shard.put(key, value).unwrap());
    shard.sync().unwrap();
    let (key, value) = &blocks[3];
    let (file, part) = part_of(&shard, key, value);
    let (from, to) = (part.start + 1024, part.end);
    world.bad.lock().unwrap().unreadable.push((Path::new(DIR).join(&file), from, to));
    let checked = shard.store().check_part(&file, part.clone(), false).unwrap().unwrap();
    assert_eq!((checked.unreadable, checked.quarantined.len()), (1, 0));
    let checked = shard.store().check_part(&file, part.clone(), true).unwrap().unwrap();
    assert_eq!((checked.unreadable, checked.quarantined), (0, vec![(key.as_bytes().to_vec(), Rot::Unreadable)]));
    assert_eq!(get(&shard, key), Err(ErrorKind::NotFound));
    // What memory still has is written anew, where the disk is whole.
    let (kept, value) = &blocks[9];
    let (file, part) = part_of(&shard, kept, value);
    let checked = shard.store().check_part(&file, part.clone(), true).unwrap().unwrap();
    assert_eq!((checked.records, checked.rescued, checked.quarantined.len()), (1, 1, 0));
    world.bad.lock().unwrap().unreadable.push((Path::new(DIR).join(&file), part.start, part.end));
    assert_eq!(get(&shard, kept).as_ref(), Ok(value));
    assert_eq!(shard.store().check_part(&file, part, true).unwrap().unwrap().quarantined, []);
    // A disk that gives nothing at all is no rot.
    let (other, value) = &blocks[4];
    let (file, part) = part_of(&shard, other, value);
    world.bad.lock().unwrap().dead = true;
    let outcome = shard.store().check_part(&file, part, true);
    assert!(outcome.is_err() || outcome.unwrap().unwrap().quarantined.is_empty());
    world.bad.lock().unwrap().dead = false;
    assert_eq!(get(&shard, other).as_ref(), Ok(value));
}
