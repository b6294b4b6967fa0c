//! A disk that does not answer (STORE 14): who waits is told, the other disks serve, nothing acknowledged is lost.

#![allow(clippy::unwrap_used)]
#![cfg(not(feature = "shuttle"))]

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use basalt_blockstore::{
    Durability,
    disk::sim::{Calls, Loss, SimRng},
    index::sim::IndexLoss,
};
use basalt_datastore::{Datastore, ErrorKind, Key, Result};

mod sim;
use sim::{PATIENCE, World, key, multihash, value};

/// Numbers of the first blocks that belong to a shard.
fn first_of(store: &Datastore, shard: u16, count: usize) -> Vec<u32> {
    (0..).filter(|number| store.shards().place(&multihash(*number)) == shard).take(count).collect()
}

/// Runs something that must end although a disk does not answer.
fn ends<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(what()));
    ended.recv_timeout(PATIENCE).unwrap()
}

/// A put on a thread of its own; the outcome comes by the channel.
fn put(store: &Arc<Datastore>, number: u32) -> mpsc::Receiver<Result<()>> {
    let (done, outcome) = mpsc::channel();
    let store = store.clone();
    thread::spawn(move || done.send(store.put(&key(number), &value(number))));
    outcome
}

/// A put that nobody waits for; a callback tells.
fn submit(store: &Datastore, number: u32) -> mpsc::Receiver<Result<()>> {
    let (done, outcome) = mpsc::channel();
    let ticket = store.submit_put(&key(number), &value(number), None).unwrap();
    ticket.then(move |told| done.send(told).unwrap());
    outcome
}

fn unavailable(outcome: Result<()>, mentions: &str) {
    let err = outcome.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unavailable, "{err}");
    assert!(err.to_string().contains(mentions), "{err}");
}

#[test]
fn who_waits_for_a_flush_that_does_not_return_is_told_and_the_other_shard_serves() {
    let world = World::new(Durability::Strict);
    let store = world.open();
    let mut here = first_of(&store, 0, 8);
    let there = first_of(&store, 1, 3);
    store.put(&key(here[0]), &value(here[0])).unwrap();
    world.disk.stick(Path::new("/node/shard-0"), Calls::Flushes);
    // The store's own thread is the one that is out; all others wait.
    let first = submit(&store, here[1]);
    world.disk.await_waiting(1);
    let waiting: Vec<_> = here.drain(2..6).map(|number| put(&store, number)).collect();
    let called: Vec<_> = here.drain(2..).map(|number| submit(&store, number)).collect();
    store.put(&key(there[0]), &value(there[0])).unwrap();
    for outcome in [&first].into_iter().chain(&called) {
        assert!(outcome.try_recv().is_err(), "nobody knows yet");
    }

    world.deadline_passes(&store);
    for outcome in [first].into_iter().chain(waiting).chain(called) {
        unavailable(outcome.recv_timeout(PATIENCE).unwrap(), "outcome unknown");
    }
    // At once from now on, and without a look at that disk.
    let (late, read) = (here[1], here[0]);
    let (store_of_thread, there_now) = (store.clone(), there[1]);
    ends(move || {
        let store = store_of_thread;
        unavailable(store.put(&key(late), &value(late)), "has not answered");
        unavailable(store.get(&key(read), &mut Vec::new()), "does not answer");
        unavailable(store.sync(), "has not answered");
        assert!(store.check().is_err());
        store.put(&key(there_now), &value(there_now)).unwrap();
        let mut read = Vec::new();
        store.get(&key(there_now), &mut read).unwrap();
        assert_eq!(read, value(there_now));
    });

    // It answers again: what is there reads, writes want a new open.
    world.disk.answer(false);
    let mut read = Vec::new();
    for _ in 0..200 {
        store.watch();
        if store.get(&key(here[0]), &mut read).is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(read, value(here[0]));
    unavailable(store.put(&key(late), &value(late)), "has not answered");
    assert!(store.close().is_err());
    drop(store);
    let store = world.open();
    for number in [here[0], there[0], there[1]] {
        store.get(&key(number), &mut read).unwrap();
        assert_eq!(read, value(number));
    }
    store.put(&key(late), &value(late)).unwrap();
    store.close().unwrap();
}

#[test]
fn pins_and_sync_wait_no_longer_than_the_deadline_for_a_shard_that_does_not_answer() {
    let world = World::new(Durability::Ordered);
    let store = world.open();
    let here = first_of(&store, 0, 2);
    // A first one, which has its segment made.
    store.put(&key(here[0]), &value(here[0])).unwrap();
    store.sync().unwrap();
    world.disk.stick(Path::new("/node/shard-0"), Calls::Flushes);
    store.put(&key(here[1]), &value(here[1])).unwrap();
    let pin = Key::new("/pins/pin/1").unwrap();
    let (done, outcome) = mpsc::channel();
    let ticket = store.submit_put(&pin, b"pin", None).unwrap();
    ticket.then(move |told| done.send(told).unwrap());
    let (done, synced) = mpsc::channel();
    let of_thread = store.clone();
    thread::spawn(move || done.send(of_thread.sync()));
    world.disk.await_waiting(1);
    assert!(outcome.try_recv().is_err());
    world.deadline_passes(&store);
    unavailable(outcome.recv_timeout(PATIENCE).unwrap(), "outcome unknown");
    // This one may lead the flush itself: who is in the kernel comes back with the disk.
    world.disk.answer(false);
    unavailable(synced.recv_timeout(PATIENCE).unwrap(), "outcome unknown");
    assert!(!store.has(&pin).unwrap(), "a pin went ahead of its blocks");
    drop(store);
}

#[test]
fn a_rollover_that_does_not_return_holds_no_reader_of_other_keys() {
    let world = World::new(Durability::Strict);
    let store = world.open();
    let here = first_of(&store, 0, 400);
    let (before, rest) = here.split_at(100);
    for number in before {
        store.put(&key(*number), &value(*number)).unwrap();
    }
    world.disk.stick(Path::new("/node/shard-0"), Calls::Flushes);
    // More than a segment holds: some of them come to roll it over, and all wait.
    let waiting: Vec<_> = rest.chunks(150).flat_map(|part| part.iter().map(|number| put(&store, *number))).collect();
    world.disk.await_waiting(1);
    let (of_thread, before) = (store.clone(), before.to_vec());
    ends(move || {
        let mut read = Vec::new();
        for number in before {
            of_thread.get(&key(number), &mut read).unwrap();
            assert_eq!(read, value(number));
        }
    });
    world.deadline_passes(&store);
    world.disk.answer(false);
    for outcome in waiting {
        if let Err(err) = outcome.recv_timeout(PATIENCE).unwrap() {
            assert_eq!(err.kind(), ErrorKind::Unavailable, "{err}");
        }
    }
    drop(store);
}

#[test]
fn an_index_that_does_not_return_fences_its_store_alone_and_loses_nothing() {
    let mut world = World::new(Durability::Strict);
    world.options.store.replay_records_max = 12;
    let store = world.open();
    let (here, there) = (first_of(&store, 0, 10), first_of(&store, 1, 1));
    world.disk.stick(Path::new("/node/shard-0/index"), Calls::All);
    for number in &here[..8] {
        store.put(&key(*number), &value(*number)).unwrap();
    }
    // The store's own thread flushes the index by now; the log goes on without.
    world.disk.await_waiting(1);
    store.put(&key(here[8]), &value(here[8])).unwrap();

    world.deadline_passes(&store);
    let (of_thread, late, there) = (store.clone(), here[9], there[0]);
    ends(move || {
        let fenced = of_thread.shards().fenced().unwrap();
        unavailable(Err(fenced), "the index");
        unavailable(of_thread.put(&key(late), &value(late)), "the index");
        of_thread.put(&key(there), &value(there)).unwrap();
    });
    world.disk.answer(true);
    drop(store);
    world.disk.restart(&mut SimRng::new(1), Loss::Everything);
    world.index.crash(&mut SimRng::new(1), IndexLoss::Prefix);
    let store = world.open();
    let mut read = Vec::new();
    for number in here[..9].iter().copied().chain([there]) {
        store.get(&key(number), &mut read).unwrap();
        assert_eq!(read, value(number));
    }
}
