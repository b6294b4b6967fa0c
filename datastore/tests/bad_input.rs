//! What is wrong gets an error that names it and says what to do, and leaves everything as it was.

#![allow(clippy::unwrap_used)]

mod ground;

use basalt_blockstore::{Durability, Multihash};
use basalt_datastore::{BatchOp, Datastore, ErrorKind, Key, Options, Result};
use ground::{Ground, all_keys, block_key, get, key, small};
use sha2::{Digest, Sha256};

fn limited() -> Options {
    let mut options = Options { batch_bytes_max: 300, ..small() };
    options.store.value_bytes_max = 100;
    options.store.key_bytes_max = 60;
    options
}

fn refused<T: std::fmt::Debug>(outcome: Result<T>, kind: ErrorKind, words: &[&str]) {
    let err = outcome.unwrap_err();
    assert_eq!(err.kind(), kind, "{err}");
    for word in words {
        assert!(err.to_string().contains(word), "'{word}' is not in: {err}");
    }
}

#[test]
fn a_value_key_or_batch_above_its_limit_is_refused_by_the_limits_name() {
    let ground = Ground::new(2, limited());
    let store = ground.open();
    for key in [block_key(1), key("/pins/x")] {
        let text = key.as_str();
        refused(store.put(&key, &[0; 101]), ErrorKind::TooLarge, &[text, "101", "100", "value_bytes_max"]);
        refused(store.submit_put(&key, &[0; 101], None), ErrorKind::TooLarge, &["value_bytes_max"]);
        refused(store.batch(vec![BatchOp::Put(key.clone(), vec![0; 101])]), ErrorKind::TooLarge, &["value_bytes_max"]);
        store.put(&key, &[0; 100]).unwrap();
        store.delete(&key).unwrap();
    }
    let long = key(&"x".repeat(60));
    refused(store.put(&long, b""), ErrorKind::TooLarge, &["61 bytes", "60", "key_bytes_max"]);
    assert_eq!(get(&store, &long), None);
    store.delete(&long).unwrap();
    store.batch(vec![BatchOp::Delete(long)]).unwrap();
    store.put(&key(&"x".repeat(59)), b"").unwrap();
    store.delete(&key(&"x".repeat(59))).unwrap();
    let batch = (0..4).map(|i| BatchOp::Put(key(&format!("/{i}")), vec![0; 80])).collect();
    refused(store.batch(batch), ErrorKind::TooLarge, &["328 bytes", "300", "batch_bytes_max", "in parts"]);
    assert_eq!(all_keys(&store), [] as [String; 0]);
}

#[test]
fn the_key_of_a_block_may_be_longer_than_keys_of_the_keyspace_may() {
    let ground = Ground::new(2, limited());
    let store = ground.open();
    let longest = Key::of_block(&Multihash::parse(&[&[0x13, 64][..], &[3; 64]].concat()).unwrap());
    assert!(longest.as_str().len() > 60);
    store.put(&longest, b"value").unwrap();
    assert_eq!(get(&store, &longest).as_deref(), Some(&b"value"[..]));
}

#[test]
fn a_block_has_no_time_to_live_and_nothing_is_stored() {
    let ground = Ground::new(1, small());
    let store = ground.open();
    refused(
        store.submit_put(&block_key(1), b"x", Some(1000)),
        ErrorKind::Unsupported,
        &["block", "nothing was stored"],
    );
    assert!(!store.has(&block_key(1)).unwrap());
    store.put(&block_key(1), b"x").unwrap();
    refused(store.submit_set_ttl(&block_key(1), 1000), ErrorKind::Unsupported, &["block"]);
    assert_eq!(store.expiration(&block_key(1)).unwrap(), None);
}

#[test]
fn a_time_to_live_without_end_is_for_ever() {
    let ground = Ground::new(1, small());
    let store = ground.open();
    store.submit_put(&key("/a"), b"x", Some(u64::MAX)).unwrap().wait().unwrap();
    assert_eq!(store.expiration(&key("/a")).unwrap(), Some(u64::MAX));
    assert!(store.has(&key("/a")).unwrap());
    store.submit_put(&key("/a"), b"x", Some(0)).unwrap().wait().unwrap();
    assert!(!store.has(&key("/a")).unwrap(), "a time to live of nothing ends at once");
}

#[test]
fn malformed_names_under_blocks_are_ordinary_keys() {
    let ground = Ground::new(2, small());
    let store = ground.open();
    let block = block_key(9);
    let names =
        [block.as_str().to_lowercase(), format!("{block}/x"), "/blocks/A".into(), "/blocks".into(), "/blocks/é".into()];
    for name in &names {
        store.put(&key(name), name.as_bytes()).unwrap();
        assert_eq!(get(&store, &key(name)).as_deref(), Some(name.as_bytes()));
    }
    assert_eq!(store.shards().stats().count, 0);
    assert_eq!(store.stats().keyspace.count, names.len() as u64);
    let mut wanted: Vec<String> = names.into();
    wanted.sort();
    assert_eq!(all_keys(&store), wanted);
}

#[test]
fn an_empty_batch_and_absent_deletes_are_fine() {
    for durability in [Durability::Strict, Durability::Ordered, Durability::Relaxed] {
        let ground = Ground::new(2, Options { durability, ..small() });
        let store = ground.open();
        store.batch(vec![]).unwrap();
        store.batch(vec![BatchOp::Delete(key("/a")), BatchOp::Delete(block_key(1))]).unwrap();
        store.delete(&key("/a")).unwrap();
        store.delete(&block_key(1)).unwrap();
        assert_eq!(store.disk_usage(), 0);
    }
}

#[test]
fn a_closed_datastore_says_so_and_closing_twice_is_fine() {
    let ground = Ground::new(2, small());
    let store = ground.open();
    store.close().unwrap();
    store.close().unwrap();
    refused(store.put(&key("/a"), b""), ErrorKind::Closed, &["closed"]);
    refused(store.put(&block_key(1), b""), ErrorKind::Closed, &[]);
    refused(store.get(&key("/a"), &mut vec![]), ErrorKind::Closed, &[]);
    refused(store.size(&block_key(1)), ErrorKind::Closed, &[]);
    refused(store.delete(&block_key(1)), ErrorKind::Closed, &[]);
    refused(store.batch(vec![]), ErrorKind::Closed, &[]);
    refused(store.sync(), ErrorKind::Closed, &[]);
    refused(store.check(), ErrorKind::Closed, &[]);
    refused(store.scrub(), ErrorKind::Closed, &[]);
    refused(store.collect_garbage(), ErrorKind::Closed, &[]);
}

#[test]
fn a_datastore_opened_for_reading_refuses_every_write() {
    let ground = Ground::new(2, small());
    let written = ground.open();
    written.put(&block_key(2), b"two").unwrap();
    written.close().unwrap();
    let store = ground.open_read_only();
    // Nothing is to be written for a block that is there; Kubo puts the empty folder at every start.
    store.put(&block_key(2), b"two").unwrap();
    store.submit_put(&block_key(2), b"two", None).unwrap().wait().unwrap();
    let read_only = |outcome: Result<()>| refused(outcome, ErrorKind::ReadOnly, &["reading only"]);
    read_only(store.put(&key("/a"), b""));
    read_only(store.put(&block_key(1), b""));
    read_only(store.delete(&key("/a")));
    read_only(store.batch(vec![]));
    read_only(store.submit_set_ttl(&key("/a"), 1).map(|_| ()));
    read_only(store.sweep_expired(1).map(|_| ()));
    read_only(store.collect_garbage());
    store.sync().unwrap();
    store.check().unwrap();
    assert_eq!(get(&store, &key("/a")), None);
}

#[test]
fn a_node_that_was_never_made_is_not_opened_for_reading() {
    let ground = Ground::new(2, small());
    let opened = Datastore::open_read_only(&ground.layout, &ground.env(), small());
    refused(opened, ErrorKind::Format, &["no node was made there"]);
    assert_eq!(std::fs::read_dir(ground.dir.path()).unwrap().count(), 0);
}

#[test]
fn scrub_finds_a_block_that_does_not_hash_to_its_key() {
    let ground = Ground::new(2, small());
    let store = ground.open();
    let of =
        |value: &[u8]| Key::of_block(&Multihash::parse(&[&[0x12, 32][..], &Sha256::digest(value)].concat()).unwrap());
    for value in [b"one", b"two", b"six"] {
        store.put(&of(value), value).unwrap();
    }
    store.put(&key("/pins/x"), b"anything").unwrap();
    store.scrub().unwrap();
    store.put(&of(b"what it should be"), b"something else").unwrap();
    let bad = of(b"what it should be");
    refused(store.scrub(), ErrorKind::Corrupt, &["damaged keys: 1", bad.as_str(), "hash to", "replica"]);
}
