//! The datastore against a model, in every durability class: whatever is done, in whatever order, it answers as the model does, and so
//! it does when it is opened again.

#![allow(clippy::unwrap_used)]

mod ground;

use std::collections::BTreeMap;

use basalt_blockstore::Durability;
use basalt_datastore::{BatchOp, Datastore, ErrorKind, Key, Options, Query};
use ground::{Ground, START_UNIX_MS, block_key, entries, get, key, small};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Put(u8, Vec<u8>),
    SubmitPut(u8, Vec<u8>),
    PutWithTtl(u8, Vec<u8>, u64),
    SetTtl(u8, u64),
    Delete(u8),
    SubmitDelete(u8),
    Batch(Vec<(u8, Option<Vec<u8>>)>),
    Advance(u64),
    Sweep(usize),
    Sync,
    CollectGarbage,
    Scrub,
    Reopen,
}

/// Few keys, so that steps meet: blocks, ordinary keys, keys that need no order, and one that only looks like a block.
fn key_of(number: u8) -> Key {
    match number % 16 {
        n @ 0..=7 => block_key(n * 31),
        8 => key("/pins/state/dirty"),
        9 => key("/pins/pin/a"),
        10 => key("/local/filesroot"),
        11 => key("/providers/x"),
        12 => key("/dht/pk/y"),
        13 => key("/blocks/notabase32"),
        14 => key("/"),
        _ => key("/Pins/Pin/A"),
    }
}

fn is_block(number: u8) -> bool {
    number % 16 < 8
}

fn any_step() -> impl Strategy<Value = Step> {
    let value = || prop::collection::vec(any::<u8>(), 0..40);
    let ttl = || 1u64..1000;
    prop_oneof![
        6 => (any::<u8>(), value()).prop_map(|(key, value)| Step::Put(key, value)),
        3 => (any::<u8>(), value()).prop_map(|(key, value)| Step::SubmitPut(key, value)),
        3 => (any::<u8>(), value(), ttl()).prop_map(|(key, value, ttl)| Step::PutWithTtl(key, value, ttl)),
        2 => (any::<u8>(), ttl()).prop_map(|(key, ttl)| Step::SetTtl(key, ttl)),
        3 => any::<u8>().prop_map(Step::Delete),
        2 => any::<u8>().prop_map(Step::SubmitDelete),
        4 => prop::collection::vec((any::<u8>(), prop::option::weighted(0.7, value())), 0..12).prop_map(Step::Batch),
        3 => (1u64..600).prop_map(Step::Advance),
        2 => (1usize..8).prop_map(Step::Sweep),
        1 => Just(Step::Sync),
        1 => Just(Step::CollectGarbage),
        1 => Just(Step::Scrub),
        1 => Just(Step::Reopen),
    ]
}

/// What is stored, with when it expires (0: never). Expired keys take space until they are swept, overwritten or deleted.
#[derive(Default)]
struct Model {
    stored: BTreeMap<Key, (Vec<u8>, u64)>,
    now: u64,
}

impl Model {
    fn live(&self, key: &Key) -> Option<&(Vec<u8>, u64)> {
        self.stored.get(key).filter(|(_, expires)| *expires == 0 || *expires > self.now)
    }

    fn put(&mut self, number: u8, value: &[u8], expires: u64) {
        let stored = (value.to_vec(), expires);
        if is_block(number) {
            self.stored.entry(key_of(number)).or_insert(stored);
        } else {
            self.stored.insert(key_of(number), stored);
        }
    }
}

fn step(ground: &Ground, store: &mut Datastore, model: &mut Model, step: &Step) {
    match step {
        Step::Put(number, value) => {
            store.put(&key_of(*number), value).unwrap();
            model.put(*number, value, 0);
        }
        Step::SubmitPut(number, value) => {
            store.submit_put(&key_of(*number), value, None).unwrap().wait().unwrap();
            model.put(*number, value, 0);
        }
        Step::PutWithTtl(number, value, ttl) => {
            let outcome = store.submit_put(&key_of(*number), value, Some(*ttl)).and_then(|ticket| ticket.wait());
            if is_block(*number) {
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unsupported);
            } else {
                outcome.unwrap();
                model.put(*number, value, model.now + ttl);
            }
        }
        Step::SetTtl(number, ttl) => {
            let key = key_of(*number);
            let outcome = store.submit_set_ttl(&key, *ttl).and_then(|ticket| ticket.wait());
            if is_block(*number) {
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unsupported);
            } else if let Some((value, _)) = model.live(&key).cloned() {
                outcome.unwrap();
                model.stored.insert(key, (value, model.now + ttl));
            } else {
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
            }
        }
        Step::Delete(number) => {
            store.delete(&key_of(*number)).unwrap();
            model.stored.remove(&key_of(*number));
        }
        Step::SubmitDelete(number) => {
            store.submit_delete(&key_of(*number)).unwrap().wait().unwrap();
            model.stored.remove(&key_of(*number));
        }
        Step::Batch(ops) => {
            let batch = ops.iter().map(|(number, value)| match value {
                Some(value) => BatchOp::Put(key_of(*number), value.clone()),
                None => BatchOp::Delete(key_of(*number)),
            });
            store.batch(batch.collect()).unwrap();
            // The last operation of every key counts, and no other.
            let last: BTreeMap<u8, &Option<Vec<u8>>> = ops.iter().map(|(number, value)| (number % 16, value)).collect();
            for (number, value) in last {
                match value {
                    Some(value) => model.put(number, value, 0),
                    None => _ = model.stored.remove(&key_of(number)),
                }
            }
        }
        Step::Advance(ms) => {
            ground.clock.advance(*ms);
            model.now += ms;
        }
        Step::Sweep(limit) => {
            let before = model.stored.len() as u64;
            // So many calls that it has come round, wherever it was.
            let swept: u64 = (0..20).map(|_| store.sweep_expired(*limit).unwrap()).sum();
            let now = model.now;
            model.stored.retain(|_, (_, expires)| *expires == 0 || *expires > now);
            assert_eq!(swept, before - model.stored.len() as u64);
        }
        Step::Sync => store.sync().unwrap(),
        Step::CollectGarbage => store.collect_garbage().unwrap(),
        // The values of these blocks are no preimages of their keys, which are too short to prove anything: only checksums are looked at.
        Step::Scrub => store.scrub().unwrap(),
        Step::Reopen => {
            store.close().unwrap();
            *store = ground.open();
        }
    }
}

fn compare(store: &Datastore, model: &Model) {
    for number in 0..16 {
        let key = key_of(number);
        let live = model.live(&key);
        assert_eq!(get(store, &key).as_ref(), live.map(|(value, _)| value), "get {key}");
        assert_eq!(store.size(&key).unwrap(), live.map(|(value, _)| value.len() as u64), "size of {key}");
        assert_eq!(store.has(&key).unwrap(), live.is_some(), "has {key}");
        match (store.expiration(&key), live) {
            (Ok(at), Some((_, expires))) => assert_eq!(at, Some(*expires).filter(|at| *at != 0), "expiration of {key}"),
            (Err(err), None) => assert_eq!(err.kind(), ErrorKind::NotFound),
            (found, wanted) => panic!("expiration of {key}: {found:?}, not {wanted:?}"),
        }
    }
    let mut found: Vec<(Key, Vec<u8>, u64)> = entries(store, Query::default(), 5, 100)
        .into_iter()
        .map(|entry| (entry.key, entry.value, entry.expires_unix_ms))
        .collect();
    found.sort();
    let wanted: Vec<(Key, Vec<u8>, u64)> = model
        .stored
        .keys()
        .filter_map(|key| model.live(key).map(|(value, expires)| (key.clone(), value.clone(), *expires)))
        .collect();
    assert_eq!(found, wanted);
    let is_metadata = |key: &Key| !(0..8).any(|number| key_of(number) == *key);
    let usage = |(key, (value, _)): (&Key, &(Vec<u8>, u64))| {
        value.len() + if is_metadata(key) { key.as_str().len() } else { 0 }
    };
    assert_eq!(store.disk_usage(), model.stored.iter().map(usage).sum::<usize>() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn answers_as_the_model_does(
        shards in 1usize..4,
        durability in prop::sample::select(vec![Durability::Strict, Durability::Ordered, Durability::Relaxed]),
        steps in prop::collection::vec(any_step(), 1..60),
    ) {
        let ground = Ground::new(shards, Options { durability, ..small() });
        let mut store = ground.open();
        let mut model = Model { now: START_UNIX_MS, ..Model::default() };
        for one in &steps {
            step(&ground, &mut store, &mut model, one);
            compare(&store, &model);
        }
        store.check().unwrap();
        store.close().unwrap();
    }
}
