//! What Kubo does with a datastore, call by call.

#![allow(clippy::unwrap_used)]

use basalt_blockstore::{Durability, Multihash, store::Env};
use basalt_datastore::{BatchOp, Datastore, ErrorKind, Key, Layout, Options, Query};
use tempfile::TempDir;

fn layout(dir: &TempDir, shards: usize) -> Layout {
    let shards = (0..shards).map(|id| (dir.path().join(format!("shard-{id}")), 1)).collect();
    Layout { shards, keyspace: dir.path().join("keyspace"), ring_key: [7; 16] }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn block(number: u8) -> Key {
    let digest = [number.wrapping_mul(37), number, 3, 4, 5, 6, 7, 8];
    Key::of_block(&Multihash::parse(&[&[0x12, 8][..], &digest].concat()).unwrap())
}

fn get(store: &Datastore, key: &Key) -> Option<Vec<u8>> {
    let mut value = vec![1, 2, 3];
    match store.get(key, &mut value) {
        Ok(()) => Some(value),
        Err(err) => {
            assert_eq!(err.kind(), ErrorKind::NotFound);
            None
        }
    }
}

fn keys(store: &Datastore, query: Query) -> Vec<String> {
    let mut cursor = store.query(query).unwrap();
    let mut all = Vec::new();
    loop {
        let page = cursor.next_page(3, 1 << 20).unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page.into_iter().map(|entry| entry.key.as_str().to_string()));
    }
}

#[test]
fn blocks_and_metadata_come_back_in_every_class() {
    for durability in [Durability::Strict, Durability::Ordered, Durability::Relaxed] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { durability, ..Options::default() };
        let store = Datastore::open(&layout(&dir, 3), &Env::real(), options).unwrap();
        store.put(&block(1), b"one").unwrap();
        store.put(&key("/local/filesroot"), b"root").unwrap();
        store.submit_put(&key("/pins/x"), b"pin", None).unwrap().wait().unwrap();
        store
            .batch(vec![
                BatchOp::Put(block(2), b"two".to_vec()),
                BatchOp::Put(key("/pins/y"), b"old".to_vec()),
                BatchOp::Put(block(3), b"three".to_vec()),
                BatchOp::Delete(block(3)),
                BatchOp::Put(key("/pins/y"), b"new".to_vec()),
            ])
            .unwrap();
        assert_eq!(get(&store, &block(1)).as_deref(), Some(&b"one"[..]));
        assert_eq!(get(&store, &block(2)).as_deref(), Some(&b"two"[..]));
        assert_eq!(get(&store, &block(3)), None);
        assert_eq!(get(&store, &key("/pins/y")).as_deref(), Some(&b"new"[..]));
        assert_eq!(store.size(&block(2)).unwrap(), Some(3));
        assert_eq!(store.size(&key("/absent")).unwrap(), None);
        let mut found = keys(&store, Query { prefix: "/".into(), keys_only: true, ..Query::default() });
        found.sort();
        let mut wanted: Vec<String> = [block(1), block(2), key("/local/filesroot"), key("/pins/x"), key("/pins/y")]
            .iter()
            .map(|key| key.as_str().to_string())
            .collect();
        wanted.sort();
        assert_eq!(found, wanted);
        let metadata_bytes = "/local/filesroot/pins/x/pins/y".len() + 4 + 3 + 3;
        assert_eq!(store.disk_usage(), 6 + metadata_bytes as u64);
        store.delete(&block(1)).unwrap();
        store.submit_delete(&block(2)).unwrap().wait().unwrap();
        assert_eq!(store.disk_usage(), metadata_bytes as u64);
        store.sync().unwrap();
        store.close().unwrap();
    }
}
