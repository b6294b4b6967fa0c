//! What a store promises beside the crash search: damage is told from a cut, a lost index comes back, space comes back, formats stay.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use basalt_blockstore::{
    Durability, ErrorKind, OnCorrupt, Options,
    disk::{
        Disk,
        sim::{Fault, Loss, SimDisk, SimRng},
    },
    ground::{Ground, PlainGround},
    index::sim::{IndexLoss, SimEngine},
    store::{Env, Op, Rot, Store, format},
};

const DIR: &str = "/shard";

struct World {
    disk: SimDisk,
    index: SimEngine,
    options: Options,
    ground: Arc<dyn Ground>,
}

impl World {
    fn new() -> World {
        let disk = SimDisk::new();
        let index = SimEngine::new(disk.clone());
        let options =
            Options { segment_bytes: 64 << 10, reserve_bytes: 0, punch_bytes_min: 8192, ..Options::default() };
        World { disk, index, options, ground: Arc::new(PlainGround) }
    }

    fn env(&self) -> Env {
        Env {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(self.disk.clone()),
            index: Arc::new(self.index.clone()),
            ground: self.ground.clone(),
            random: Arc::new(self.disk.clone()),
            sequence: Arc::new(AtomicU64::new(1)),
            unflushed: Arc::default(),
        }
    }

    fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> basalt_blockstore::Result<Store> {
        Store::open(Path::new(DIR), &self.env(), self.options.clone())
    }

    fn lose_index(&self) {
        self.index.crash(&mut SimRng::new(1), IndexLoss::Everything);
    }

    fn power_cut(&self, loss: Loss) {
        self.disk.restart(&mut SimRng::new(1), loss);
        self.index.crash(&mut SimRng::new(1), IndexLoss::Prefix);
    }

    fn segment(&self, id: u64) -> PathBuf {
        Path::new(DIR).join(format!("seg-{id:08x}.log"))
    }

    fn segments(&self) -> usize {
        (1..64).filter(|id| self.disk.contents(&self.segment(*id)).is_some()).count()
    }

    /// Offset of a value's bytes in a segment.
    fn place_of(&self, segment: u64, value: &[u8]) -> u64 {
        let contents = self.disk.contents(&self.segment(segment)).unwrap();
        contents.windows(value.len()).position(|window| window == value).unwrap() as u64
    }
}

fn key(number: u32) -> Vec<u8> {
    format!("key-{number:04}").into_bytes()
}

fn value(number: u32, len: usize) -> Vec<u8> {
    let mut rng = SimRng::new(u64::from(number));
    (0..len).map(|_| rng.next_u64() as u8).collect()
}

fn put(store: &Store, number: u32, len: usize) {
    store.write(&[Op::PutIfAbsent { key: &key(number), value: &value(number, len) }], false).unwrap();
}

fn delete(store: &Store, number: u32) {
    store.write(&[Op::Delete { key: &key(number) }], false).unwrap();
}

fn get(store: &Store, number: u32) -> Result<Vec<u8>, ErrorKind> {
    let mut buffer = Vec::new();
    store.get(&key(number), &mut buffer).map(|_| buffer).map_err(|err| err.kind())
}

#[test]
fn put_if_absent_of_what_is_there_writes_nothing_and_keeps_the_first_value() {
    let world = World::new();
    let store = world.open();
    put(&store, 1, 100);
    let steps = world.disk.steps();
    store.write(&[Op::PutIfAbsent { key: &key(1), value: b"other" }], false).unwrap();
    assert_eq!(world.disk.steps(), steps, "no write and no flush");
    assert_eq!(get(&store, 1).unwrap(), value(1, 100));
}

#[test]
fn a_flip_in_a_durable_payload_is_damage_of_that_block_alone() {
    for corrupt in [OnCorrupt::Refetch, OnCorrupt::Error] {
        let mut world = World::new();
        world.options.corrupt = corrupt;
        let store = world.open();
        (0..5).for_each(|number| put(&store, number, 500));
        assert!(world.disk.flip(&world.segment(1), world.place_of(1, &value(2, 500)) + 7, 3));
        let seen = get(&store, 2).unwrap_err();
        assert_eq!(seen, if corrupt == OnCorrupt::Error { ErrorKind::Corrupt } else { ErrorKind::NotFound });
        for number in [0, 1, 3, 4] {
            assert_eq!(get(&store, number).unwrap(), value(number, 500));
        }
        // Counted and enumerated still, else nobody could collect it; and a put mends it.
        assert_eq!(store.stats().count, 5);
        assert_eq!(store.stats().quarantined, 1);
        assert_eq!(store.scan(b"", None, 10, false).unwrap().len(), 5);
        assert_eq!(store.verify(None, 10).unwrap().damaged.len(), 1);
        put(&store, 2, 500);
        assert_eq!(get(&store, 2).unwrap(), value(2, 500));
        assert_eq!(store.stats().count, 5);
    }
}

#[test]
fn a_flip_in_a_header_below_the_mark_loses_that_record_and_nothing_behind_it() {
    let world = World::new();
    let store = world.open();
    (0..6).for_each(|number| put(&store, number, 300));
    drop(store);
    let header = world.place_of(1, &key(2)) - 8;
    assert!(world.disk.flip(&world.segment(1), header, 0));
    world.lose_index();
    let store = world.open();
    assert_eq!(get(&store, 2), Err(ErrorKind::NotFound));
    for number in [0, 1, 3, 4, 5] {
        assert_eq!(get(&store, number).unwrap(), value(number, 300), "block {number}");
    }
}

#[test]
fn both_header_pages_are_needed_to_lose_a_segment() {
    let world = World::new();
    let store = world.open();
    put(&store, 1, 300);
    store.close().unwrap();
    assert!(world.disk.flip(&world.segment(1), 30, 0));
    let store = world.open();
    assert_eq!(get(&store, 1).unwrap(), value(1, 300));
    store.close().unwrap();
    assert!(world.disk.flip(&world.segment(1), 4096 + 30, 0));
    world.lose_index();
    let err = world.try_open().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    assert!(err.to_string().contains("seg-00000001.log"), "{err}");
}

#[test]
fn a_lost_index_is_rebuilt_with_what_was_deleted_still_gone() {
    let world = World::new();
    let store = world.open();
    (0..200).for_each(|number| put(&store, number, 1000));
    (0..200).filter(|number| number % 3 == 0).for_each(|number| delete(&store, number));
    store.reclaim().unwrap();
    (200..220).for_each(|number| put(&store, number, 1000));
    store.sync().unwrap();
    let before = store.stats();
    drop(store);
    world.lose_index();
    let store = world.open();
    assert_eq!((store.stats().count, store.stats().bytes), (before.count, before.bytes));
    for number in 0..220 {
        let expected = if number < 200 && number % 3 == 0 { Err(ErrorKind::NotFound) } else { Ok(value(number, 1000)) };
        assert_eq!(get(&store, number), expected, "block {number}");
    }
}

#[test]
fn an_index_of_another_log_is_not_believed() {
    let (one, two) = (World::new(), World::new());
    let mut bytes = [0; 3];
    basalt_blockstore::disk::Entropy::fill(&two.disk, &mut bytes);
    let store = one.open();
    (0..5).for_each(|number| put(&store, number, 100));
    store.close().unwrap();
    let store = two.open();
    (5..9).for_each(|number| put(&store, number, 100));
    store.close().unwrap();
    // The log of the second under the index of the first.
    one.disk.install(&one.segment(1), two.disk.contents(&two.segment(1)).unwrap());
    let store = one.open();
    assert_eq!(store.stats().count, 4);
    assert_eq!(get(&store, 1), Err(ErrorKind::NotFound));
    assert_eq!(get(&store, 6).unwrap(), value(6, 100));
}

#[test]
fn opening_for_reading_writes_nothing_and_sees_the_tail() {
    let world = World::new();
    let store = world.open();
    (0..5).for_each(|number| put(&store, number, 700));
    delete(&store, 1);
    store.sync().unwrap();
    drop(store);
    world.power_cut(Loss::Process);
    for lost_index in [false, true] {
        if lost_index {
            world.lose_index();
        }
        let steps = world.disk.steps();
        let store = Store::open_read_only(Path::new(DIR), &world.env(), world.options.clone()).unwrap();
        assert_eq!(store.stats().count, 4);
        assert_eq!(get(&store, 0).unwrap(), value(0, 700));
        assert_eq!(get(&store, 1), Err(ErrorKind::NotFound));
        assert_eq!(store.scan(b"key", None, 10, true).unwrap().len(), 4);
        let refused = store.submit(&[Op::Delete { key: &key(0) }], false).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnly);
        store.close().unwrap();
        assert_eq!(world.disk.steps(), steps, "no operation that changes the disk");
    }
}

#[test]
fn opening_a_snapshot_replays_the_tail_alone_however_long_the_log() {
    let mut world = World::new();
    world.options.replay_records_max = 16;
    let store = world.open();
    for number in 0..300u32 {
        put(&store, number, 700);
        store.step();
        if number % 37 != 0 {
            continue;
        }
        // What a snapshot of this instant has, without stopping the store.
        store.sync().unwrap();
        let steps = world.disk.steps();
        let snapshot = Store::open_read_only(Path::new(DIR), &world.env(), world.options.clone()).unwrap();
        assert_eq!(snapshot.stats().count, u64::from(number) + 1);
        assert!(snapshot.stats().replayed <= 17, "{} of {number} records", snapshot.stats().replayed);
        drop(snapshot);
        assert_eq!(world.disk.steps(), steps);
    }
    drop(store);
    world.power_cut(Loss::Process);
    let reopened = world.open();
    assert!((1..=17).contains(&reopened.stats().replayed), "{}", reopened.stats().replayed);
    reopened.close().unwrap();
    assert_eq!(world.open().stats().replayed, 0, "after a clean close there is no tail");
    world.lose_index();
    assert!(world.open().stats().replayed >= 300, "without an index it is all of the log");
}

#[test]
fn space_comes_back_by_holes_compaction_and_whole_segments() {
    let world = World::new();
    let store = world.open();
    (0..40).for_each(|number| put(&store, number, 20_000));
    (40..200).for_each(|number| put(&store, number, 400));
    let full = store.stats();
    (0..40).filter(|number| number % 2 == 0).for_each(|number| delete(&store, number));
    assert_eq!(store.stats().bytes, full.bytes - 20 * 20_000, "falls at once");
    let freed = store.reclaim().unwrap();
    let half = store.stats();
    assert!(freed >= 20 * 12_000, "{freed}");
    assert!(half.allocated_bytes < full.allocated_bytes * 8 / 10, "{half:?} of {full:?}");
    (0..200).for_each(|number| delete(&store, number));
    store.reclaim().unwrap();
    store.reclaim().unwrap();
    let empty = store.stats();
    assert_eq!((empty.count, empty.bytes), (0, 0));
    assert!(empty.allocated_bytes < 150 << 10, "{empty:?}");
    assert!(world.segments() <= 2, "{} segments", world.segments());
}

#[test]
fn a_hole_is_not_taken_for_the_end_of_the_log_when_the_index_is_lost() {
    let mut world = World::new();
    world.options.durability = Durability::Ordered;
    let store = world.open();
    // Written before the first flush: no record says that anything is durable.
    put(&store, 1, 20_000);
    put(&store, 2, 100);
    delete(&store, 1);
    store.sync().unwrap();
    assert!(store.reclaim().unwrap() > 0, "nothing was punched");
    drop(store);
    world.power_cut(Loss::Nothing);
    world.lose_index();
    let store = world.open();
    assert_eq!(get(&store, 1), Err(ErrorKind::NotFound));
    assert_eq!(get(&store, 2).unwrap(), value(2, 100));
}

#[test]
fn a_spent_segment_is_kept_for_recycling_unless_it_has_holes() {
    let world = World::new();
    let store = world.open();
    let is_kept = |id: u64| world.disk.contents(&Path::new(DIR).join(format!("spent-{id:08x}.log"))).is_some();
    let newest = || (1..64).filter(|id| world.disk.contents(&world.segment(*id)).is_some()).max().unwrap();
    // Small records are never punched out...
    (0..300).for_each(|number| put(&store, number, 400));
    (0..300).for_each(|number| delete(&store, number));
    store.reclaim().unwrap();
    assert!(is_kept(1));
    // ...and large ones always: space that may not be there any more must not count as free.
    let first = newest() + 1;
    (300..310).for_each(|number| put(&store, number, 20_000));
    let last = newest();
    assert!(first < last);
    (300..310).for_each(|number| delete(&store, number));
    store.reclaim().unwrap();
    for id in first..last {
        assert!(world.disk.contents(&world.segment(id)).is_none(), "segment {id} is not freed");
        assert!(!is_kept(id), "segment {id} has holes");
    }
}

#[test]
fn a_rebuild_reads_headers_many_at_a_time_and_no_payloads() {
    for (records, len) in [(200, 50_000), (4000, 300)] {
        let mut world = World::new();
        world.options.segment_bytes = 1 << 20;
        let store = world.open();
        (0..records).for_each(|number| put(&store, number, len));
        store.close().unwrap();
        world.lose_index();
        let before = world.disk.reads();
        let store = world.open();
        let (reads, bytes) = (world.disk.reads().0 - before.0, world.disk.reads().1 - before.1);
        assert_eq!(store.stats().count, u64::from(records));
        let all = u64::from(records) * len as u64;
        assert!(bytes < all * 7 / 10, "{bytes} bytes of {all} were read");
        assert!(len < 10_000 || bytes < all / 10, "{bytes} bytes of {all} were read");
        assert!(reads < u64::from(records) * 8 / 10, "{reads} reads for {records} records");
    }
}

#[test]
fn what_open_replays_is_bounded_however_long_the_log_is() {
    let read_by_open = |records: u32| {
        let mut world = World::new();
        world.options.replay_records_max = 50;
        world.options.segment_bytes = 8 << 20;
        let store = world.open();
        for number in 0..records {
            put(&store, number, 1000);
            store.step();
        }
        drop(store);
        world.power_cut(Loss::Everything);
        let before = world.disk.reads().1;
        let store = world.open();
        assert_eq!(store.stats().count, u64::from(records));
        world.disk.reads().1 - before
    };
    let (short, long) = (read_by_open(150), read_by_open(1500));
    assert!(long < short * 2, "{short} bytes for 150 records, {long} for 1500");
}

#[test]
fn each_life_has_an_incarnation_of_its_own_and_no_segment_id_comes_twice() {
    let world = World::new();
    let existing =
        || -> BTreeSet<u64> { (1..200).filter(|id| world.disk.contents(&world.segment(*id)).is_some()).collect() };
    let (mut incarnations, mut ever) = (BTreeSet::new(), BTreeSet::new());
    for life in 0..6 {
        let before = existing();
        let store = world.open();
        (0..80).for_each(|number| put(&store, number, 2000));
        let mut of_life = BTreeSet::new();
        for id in existing().difference(&before) {
            let bytes = world.disk.contents(&world.segment(*id)).unwrap();
            of_life.insert(format::SegmentHeader::decode(&bytes).unwrap().unwrap().incarnation);
            assert!(ever.insert(*id), "segment id {id} comes twice");
        }
        assert_eq!(of_life.len(), 1, "life {life}");
        assert!(incarnations.insert(*of_life.first().unwrap()), "life {life} has the incarnation of another");
        // All of it goes, the segment with the highest id too, so that only memory or the log could know which ids were used.
        (0..80).for_each(|number| delete(&store, number));
        store.reclaim().unwrap();
        ever.extend(existing());
        if life % 2 == 0 {
            store.close().unwrap();
        } else {
            drop(store);
            world.power_cut(Loss::Process);
        }
    }
}

#[test]
fn where_snapshots_are_not_known_reclaim_only_unlinks() {
    #[derive(Debug)]
    struct Unknown;
    impl Ground for Unknown {
        fn newest_snapshot_unix_ns(&self) -> Option<u64> {
            None
        }
    }
    let mut world = World::new();
    world.ground = Arc::new(Unknown);
    let store = world.open();
    (0..20).for_each(|number| put(&store, number, 20_000));
    (0..20).filter(|number| number % 2 == 0).for_each(|number| delete(&store, number));
    assert_eq!(store.reclaim().unwrap(), 0);
    (0..20).for_each(|number| delete(&store, number));
    assert!(store.reclaim().unwrap() > 0);
}

#[test]
fn under_a_snapshot_nothing_is_punched_or_moved_but_dead_segments_go() {
    #[derive(Debug)]
    struct Snapshotted;
    impl Ground for Snapshotted {
        fn newest_snapshot_unix_ns(&self) -> Option<u64> {
            Some(u64::MAX)
        }
    }
    let mut world = World::new();
    world.ground = Arc::new(Snapshotted);
    let store = world.open();
    (0..20).for_each(|number| put(&store, number, 20_000));
    (0..20).filter(|number| number % 2 == 0).for_each(|number| delete(&store, number));
    assert_eq!(store.reclaim().unwrap(), 0);
    (0..20).for_each(|number| delete(&store, number));
    assert!(store.reclaim().unwrap() > 0);
}

#[test]
fn a_full_disk_refuses_puts_by_name_takes_deletes_and_serves_on() {
    let mut world = World::new();
    world.options.reserve_bytes = 1 << 20;
    world.disk.set_available(Some((1 << 20) + 50_000));
    let store = world.open();
    put(&store, 1, 10_000);
    world.disk.set_available(Some(1 << 20));
    let mut refused = None;
    for number in 2..100 {
        let op = Op::PutIfAbsent { key: &key(number), value: &value(number, 10_000) };
        if let Err(err) = store.write(&[op], false) {
            refused = Some(err);
            break;
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    assert!(refused.to_string().contains("reserve_bytes"), "{refused}");
    assert_eq!(get(&store, 1).unwrap(), value(1, 10_000));
    put(&store, 1, 10_000); // There already, so it needs no space.
    delete(&store, 1);
    world.disk.set_available(None);
    put(&store, 50, 10_000);
}

#[test]
fn a_disk_that_says_full_in_mid_write_loses_nothing_acknowledged() {
    let world = World::new();
    let store = world.open();
    put(&store, 1, 1000);
    world.disk.inject(world.disk.steps() + 1, Fault::Error(std::io::ErrorKind::StorageFull));
    let refused = store.write(&[Op::PutIfAbsent { key: &key(2), value: b"x" }], false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    assert_eq!(store.stats().count, 1);
    put(&store, 2, 1000);
    drop(store);
    world.power_cut(Loss::Everything);
    let store = world.open();
    assert_eq!(get(&store, 1).unwrap(), value(1, 1000));
    assert_eq!(get(&store, 2).unwrap(), value(2, 1000));
}

#[test]
fn space_that_others_take_is_seen_after_a_second() {
    let mut world = World::new();
    world.options.reserve_bytes = 1 << 20;
    let store = world.open();
    put(&store, 1, 100);
    world.disk.set_available(Some(0));
    world.disk.advance_ns(1_000_000_000);
    let refused = store.write(&[Op::PutIfAbsent { key: &key(2), value: b"x" }], false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
}

#[test]
fn segments_kept_for_recycling_are_given_up_before_a_put_is_refused() {
    let mut world = World::new();
    world.options.reserve_bytes = 1 << 20;
    let store = world.open();
    (0..300).for_each(|number| put(&store, number, 400));
    (0..300).for_each(|number| delete(&store, number));
    store.reclaim().unwrap();
    let spent = || world.disk.list(Path::new(DIR)).unwrap().iter().filter(|name| name.starts_with("spent-")).count();
    assert!(spent() > 0);
    world.disk.set_available(Some(1 << 20));
    world.disk.advance_ns(1_000_000_000);
    store.write(&[Op::PutIfAbsent { key: &key(301), value: b"x" }], false).unwrap_err();
    assert_eq!(spent(), 0);
    world.disk.set_available(None);
    (301..600).for_each(|number| put(&store, number, 400));
}

#[test]
fn what_waits_for_its_flush_is_flushed_before_a_put_is_refused() {
    let mut world = World::new();
    world.options.reserve_bytes = 1 << 20;
    world.options.durability = Durability::Ordered;
    world.options.segment_bytes = 1 << 20;
    let store = world.open();
    // Unflushed, recovery might have to copy it: 300 KB are kept for that, of which the flush makes room.
    (0..15).for_each(|number| put(&store, number, 20_000));
    world.disk.set_available(Some((1 << 20) + 300_000));
    world.disk.advance_ns(1_000_000_000);
    put(&store, 15, 20_000);
    world.power_cut(Loss::Everything);
    drop(store);
    let store = world.open();
    assert!((0..15).all(|number| get(&store, number) == Ok(value(number, 20_000))), "it was not flushed");
}

#[test]
fn a_delete_that_finds_no_room_at_all_has_what_is_kept_back_lifted() {
    #[derive(Debug)]
    struct KeptBack(AtomicU64);
    impl Ground for KeptBack {
        fn lift_reserve(&self) -> basalt_blockstore::Result<bool> {
            Ok(self.0.fetch_add(1, Ordering::SeqCst) == 0)
        }
    }
    let mut world = World::new();
    let ground = Arc::new(KeptBack(AtomicU64::new(0)));
    let lifted = || ground.0.load(Ordering::SeqCst);
    world.ground = ground.clone();
    let store = world.open();
    (0..3).for_each(|number| put(&store, number, 1000));
    let is_full = || world.disk.inject(world.disk.steps() + 1, Fault::Error(std::io::ErrorKind::QuotaExceeded));
    // A put never has it lifted...
    is_full();
    let refused = store.write(&[Op::PutIfAbsent { key: &key(9), value: b"x" }], false).unwrap_err();
    assert_eq!((refused.kind(), lifted()), (ErrorKind::NoSpace, 0));
    // ...a delete does, and goes through.
    put(&store, 3, 1000);
    is_full();
    delete(&store, 1);
    assert_eq!((get(&store, 1), lifted()), (Err(ErrorKind::NotFound), 1));
    // Where nothing is left to lift, it is refused by name.
    put(&store, 4, 1000);
    is_full();
    let refused = store.write(&[Op::Delete { key: &key(2) }], false).unwrap_err();
    assert_eq!((refused.kind(), lifted()), (ErrorKind::NoSpace, 2));
    assert_eq!(get(&store, 2).unwrap(), value(2, 1000));
}

#[test]
fn where_no_file_can_be_made_deletes_go_on() {
    let mut world = World::new();
    world.options.segment_bytes = 1 << 20;
    let store = world.open();
    put(&store, 0, 10_000);
    world.disk.set_no_inodes(true);
    let refused = (1..1000).find_map(|number| {
        let op = Op::PutIfAbsent { key: &key(number), value: &value(number, 10_000) };
        store.write(&[op], false).err().map(|err| (number, err))
    });
    let (count, refused) = refused.unwrap();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    (0..count).for_each(|number| delete(&store, number));
    assert_eq!(store.stats().count, 0);
    world.disk.set_no_inodes(false);
    put(&store, 1000, 10_000);
}

#[test]
fn on_zfs_holes_are_whole_records_and_segments_a_quarter_dead_are_copied_together() {
    const RECORD: u64 = 8192;
    #[derive(Debug)]
    struct Zfs;
    impl Ground for Zfs {
        fn overwrites_in_place(&self) -> bool {
            false
        }
        fn hole_bytes(&self) -> u64 {
            RECORD
        }
    }
    let mut world = World::new();
    world.ground = Arc::new(Zfs);
    let store = world.open();
    // Large ones are punched out as far as whole records go.
    (0..12).for_each(|number| put(&store, number, 20_000));
    delete(&store, 1);
    world.disk.record_trace(true);
    store.reclaim().unwrap();
    let trace = world.disk.trace();
    let holes: Vec<(u64, u64)> = trace
        .iter()
        .filter_map(|line| line.split_once("punch ")?.1.split_once('@'))
        .map(|(len, offset)| {
            let offset: String = offset.chars().take_while(char::is_ascii_digit).collect();
            (len.parse().unwrap(), offset.parse().unwrap())
        })
        .collect();
    assert!(!holes.is_empty(), "{trace:?}");
    assert!(holes.iter().all(|(len, offset)| len % RECORD == 0 && offset % RECORD == 0), "{holes:?}");
    // Small ones are never; where a third of a segment is dead of them it is copied, though the option says half.
    let first_small = world.segments() as u64 + 1;
    (100..500).for_each(|number| put(&store, number, 400));
    (100..500).filter(|number| number % 3 == 0).for_each(|number| delete(&store, number));
    store.reclaim().unwrap();
    assert!(world.disk.contents(&world.segment(first_small)).is_none(), "segment {first_small} is still there");
    assert!((100..500).all(|number| get(&store, number).is_ok() == (number % 3 != 0)));
}

#[test]
fn no_compaction_takes_the_room_that_deletes_need() {
    let world = World::new();
    let store = world.open();
    (0..400).for_each(|number| put(&store, number, 400));
    (0..400).filter(|number| number % 3 != 0).for_each(|number| delete(&store, number));
    world.disk.set_available(Some(20_000));
    assert_eq!(store.reclaim().unwrap(), 0);
    world.disk.set_available(None);
    assert!(store.reclaim().unwrap() > 0);
}

#[test]
fn a_segment_that_finds_no_room_leaves_no_file_behind() {
    for step in 1..=6 {
        let world = World::new();
        let store = world.open();
        world.disk.inject(world.disk.steps() + step, Fault::Error(std::io::ErrorKind::StorageFull));
        let _ = store.write(&[Op::PutIfAbsent { key: &key(1), value: b"x" }], false);
        let names = world.disk.list(Path::new(DIR)).unwrap();
        assert!(!names.iter().any(|name| name.starts_with("new-")), "step {step}: {names:?}");
        world.disk.clear_faults();
        put(&store, 2, 100);
        assert_eq!(get(&store, 2).unwrap(), value(2, 100));
    }
}

#[test]
fn an_index_that_takes_no_more_writes_is_opened_anew_with_all_that_it_had_forgotten() {
    let mut failed = 0;
    for step in 1..60 {
        let world = World::new();
        let store = world.open();
        // In the index and flushed, then overwritten, deleted and added to, which is not.
        (0..100).for_each(|number| put(&store, number, 2000));
        (0..20).for_each(|number| delete(&store, number));
        store.reclaim().unwrap();
        (20..90).for_each(|number| delete(&store, number));
        (200..230).for_each(|number| put(&store, number, 2000));
        world.disk.inject(world.disk.steps() + step, Fault::Error(std::io::ErrorKind::StorageFull));
        let there = |number: u32| (90..100).contains(&number) || (200..230).contains(&number);
        let holds = |store: &Store, when: &str| {
            for number in 0..230 {
                assert_eq!(get(store, number).is_ok(), there(number), "step {step}, {when}: {number}");
            }
            assert_eq!((store.stats().count, store.stats().bytes), (40, 80_000), "step {step}, {when}");
            assert_eq!(store.scan(b"", None, 1000, false).unwrap().len(), 40, "step {step}, {when}");
        };
        if store.reclaim().is_err() {
            failed += 1;
            holds(&store, "refused");
            store.reclaim().unwrap();
        }
        world.disk.clear_faults();
        holds(&store, "after");
        store.close().unwrap();
        holds(&world.open(), "opened again");
    }
    assert!(failed > 1, "no step hit a flush of the index");
}

#[test]
fn a_failed_flush_is_mended_in_a_new_segment_and_twice_fences() {
    let world = World::new();
    let store = world.open();
    put(&store, 1, 1000);
    // The write is one step, the flush the next.
    world.disk.inject(world.disk.steps() + 2, Fault::Error(std::io::ErrorKind::Other));
    put(&store, 2, 1000);
    assert_eq!(world.segments(), 2);
    for step in 2..6 {
        world.disk.inject(world.disk.steps() + step, Fault::Error(std::io::ErrorKind::Other));
    }
    let failed = store.write(&[Op::PutIfAbsent { key: &key(3), value: b"x" }], false).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    assert!(store.fenced().is_some());
    assert_eq!(get(&store, 3), Err(ErrorKind::Unavailable), "never present, never absent");
    assert_eq!(get(&store, 2).unwrap(), value(2, 1000));
    assert_eq!(store.sync().unwrap_err().kind(), ErrorKind::Unavailable);
    drop(store);
    world.disk.clear_faults();
    world.power_cut(Loss::Everything);
    let store = world.open();
    assert_eq!(get(&store, 1).unwrap(), value(1, 1000));
    assert_eq!(get(&store, 2).unwrap(), value(2, 1000));
}

#[test]
fn a_clean_close_goes_on_in_the_same_segment() {
    let world = World::new();
    for number in 0..5 {
        let store = world.open();
        put(&store, number, 300);
        store.close().unwrap();
    }
    assert_eq!(world.segments(), 1);
    let steps = world.disk.steps();
    let store = world.open();
    store.close().unwrap();
    assert!(world.disk.steps() - steps <= 1, "opening and closing without a write costs nothing");
}

#[test]
fn sync_disabled_opens_as_relaxed_alone() {
    #[derive(Debug)]
    struct Unsynced(Option<bool>);
    impl Ground for Unsynced {
        fn honours_sync(&self) -> Option<bool> {
            self.0
        }
    }
    for honours in [Some(false), None] {
        let mut world = World::new();
        world.ground = Arc::new(Unsynced(honours));
        for durability in [Durability::Strict, Durability::Ordered] {
            world.options.durability = durability;
            assert!(world.try_open().unwrap_err().to_string().contains("sync=standard"));
        }
        world.options.durability = Durability::Relaxed;
        world.open();
    }
}

#[test]
fn keys_and_values_above_their_limits_are_refused_by_the_limits_name() {
    let mut world = World::new();
    (world.options.key_bytes_max, world.options.value_bytes_max) = (10, 100);
    let store = world.open();
    for (key, value, named) in [(&[1u8; 11][..], &[0u8; 1][..], "key_bytes_max"), (b"k", &[0; 101], "value_bytes_max")]
    {
        let err = store.submit(&[Op::PutIfAbsent { key, value }], false).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::TooLarge);
        assert!(err.to_string().contains(named), "{err}");
    }
    assert_eq!(store.submit(&[Op::Delete { key: b"" }], false).unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(store.stats().count, 0);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let world = World::new();
    let store = world.open();
    put(&store, 1, 10);
    store.close().unwrap();
    let mut bytes = world.disk.contents(&world.segment(1)).unwrap();
    let header = format::SegmentHeader::decode(&bytes[..format::HEADER_BYTES]).unwrap().unwrap();
    let mut newer = header.encode_as(format::VERSION + 1);
    newer.extend_from_slice(&bytes.split_off(newer.len()));
    world.disk.install(&world.segment(1), newer.clone());
    let err = world.try_open().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Format);
    assert!(err.to_string().contains(&format!("version {}", format::VERSION + 1)), "{err}");
    assert_eq!(world.disk.contents(&world.segment(1)).unwrap(), newer);
}

/// A small store as this version writes it: puts, an overwrite, a tombstone, an atomic batch, an expiry, a flipped bit and the quarantine that says so, a
/// mark, a clean close.
fn golden_world() -> World {
    let world = World::new();
    let store = world.open();
    store.write(&[Op::PutIfAbsent { key: b"block", value: b"first value" }], false).unwrap();
    store.write(&[Op::Put { key: b"pin", value: b"one", expires_unix_ms: 0 }], true).unwrap();
    store
        .write(
            &[
                Op::Put { key: b"pin", value: b"two", expires_unix_ms: 0 },
                Op::Put { key: b"name", value: b"expires", expires_unix_ms: 4_000_000_000_000 },
                Op::Delete { key: b"block" },
            ],
            true,
        )
        .unwrap();
    store.write(&[Op::PutIfAbsent { key: b"rotten", value: b"bytes that will rot" }], false).unwrap();
    assert!(world.disk.flip(&world.segment(1), world.place_of(1, b"bytes that will rot"), 0));
    assert!(store.get(b"rotten", &mut Vec::new()).unwrap_err().is_not_found());
    store.close().unwrap();
    world
}

#[test]
fn segment_bytes_are_those_of_the_golden_file() {
    let bytes = golden_world().disk.contents(Path::new("/shard/seg-00000001.log")).unwrap();
    let golden = golden_file(2);
    if std::env::var_os("BASALT_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden, &bytes).unwrap();
    }
    assert!(
        std::fs::read(&golden).unwrap() == bytes,
        "the format has changed: raise its version, and keep reading the old one"
    );
}

fn golden_file(version: u16) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/segment-v{version}.bin"))
}

#[test]
fn golden_segments_of_all_versions_are_read() {
    for version in 1..=format::VERSION {
        let world = World::new();
        world.disk.install(&world.segment(1), std::fs::read(golden_file(version)).unwrap());
        let store = world.open();
        let found = store.scan(b"", None, 10, true).unwrap();
        let seen: Vec<_> = found.iter().filter_map(|one| Some((one.key.as_slice(), one.value.as_deref()?))).collect();
        assert_eq!(seen, [(&b"name"[..], &b"expires"[..]), (b"pin", b"two")]);
        assert_eq!(found[0].meta.expires_unix_ms, 4_000_000_000_000);
        let quarantined = store.quarantined(None, 10).unwrap();
        assert_eq!(quarantined.len(), usize::from(version > 1), "version {version}");
        if let [one] = quarantined.as_slice() {
            assert_eq!((one.key.as_slice(), one.size, one.rot), (&b"rotten"[..], 19, Rot::Payload));
        }
    }
}

#[test]
fn many_threads_on_the_real_disk_and_index_find_everything_after_a_kill() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let options = Options { segment_bytes: 1 << 20, ..Options::default() };
    for round in 0..3u32 {
        let store = Store::open(dir.path(), &Env::real(), options.clone()).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..8u32 {
                let store = &store;
                scope.spawn(move || {
                    for i in 0..60 {
                        let number = round * 1000 + writer * 100 + i;
                        put(store, number, 3000);
                        if i % 4 == 0 {
                            delete(store, number);
                        }
                    }
                });
            }
        });
        store.sync().unwrap();
        if round == 1 {
            store.reclaim().unwrap();
        }
        // Dropped without a close.
        drop(store);
        let store = Store::open(dir.path(), &Env::real(), options.clone()).unwrap();
        assert_eq!(store.stats().count, u64::from(round + 1) * 8 * 45);
        for round in 0..=round {
            for writer in 0..8 {
                for i in 0..60 {
                    let number = round * 1000 + writer * 100 + i;
                    let expected = if i % 4 == 0 { Err(ErrorKind::NotFound) } else { Ok(value(number, 3000)) };
                    assert_eq!(get(&store, number), expected);
                }
            }
        }
        if round == 0 {
            // The real index, lost.
            drop(store);
            std::fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
    }
}
