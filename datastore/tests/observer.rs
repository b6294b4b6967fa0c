//! Who looks on is told of what was acknowledged, and of nothing else.

#![allow(clippy::unwrap_used)]

mod ground;

use std::sync::{Arc, Mutex};

use basalt_blockstore::Durability;
use basalt_datastore::{BatchOp, Key, KeyObserver, Options};
use ground::{Ground, block_key, key, small};

#[derive(Debug, Default)]
struct Noted(Mutex<Vec<(String, Option<Vec<u8>>)>>);

impl KeyObserver for Noted {
    fn changed(&self, key: &Key, value: Option<&[u8]>) {
        self.0.lock().unwrap().push((key.as_str().to_owned(), value.map(<[u8]>::to_vec)));
    }
}

impl Noted {
    fn taken(&self) -> Vec<(String, Option<Vec<u8>>)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[test]
fn changes_beneath_the_prefix_are_told_however_they_are_made() {
    for durability in [Durability::Strict, Durability::Ordered, Durability::Relaxed] {
        let ground = Ground::new(2, Options { durability, ..small() });
        let store = ground.open();
        let noted = Arc::new(Noted::default());
        assert!(store.observe(&key("/pins"), noted.clone()));
        assert!(!store.observe(&key("/other"), noted.clone()), "there is one already");
        let put = |text: &str, value: &str| (text.to_owned(), Some(value.as_bytes().to_vec()));
        store.put(&key("/pins/a"), b"1").unwrap();
        store.submit_put(&key("/pins/b"), b"2", None).unwrap().wait().unwrap();
        assert_eq!(noted.taken(), [put("/pins/a", "1"), put("/pins/b", "2")], "{durability:?}");
        // With blocks that are not durable yet, the change goes another way.
        store.submit_put(&block_key(1), b"block", None).unwrap().wait().unwrap();
        store.submit_put(&key("/pins/c"), b"3", None).unwrap().wait().unwrap();
        store.submit_delete(&key("/pins/a")).unwrap().wait().unwrap();
        store.delete(&key("/pins/b")).unwrap();
        let gone = |text: &str| (text.to_owned(), None);
        assert_eq!(noted.taken(), [put("/pins/c", "3"), gone("/pins/a"), gone("/pins/b")], "{durability:?}");
        let ops = || {
            vec![
                BatchOp::Put(block_key(2), b"block".to_vec()),
                BatchOp::Put(key("/pins/d"), b"4".to_vec()),
                BatchOp::Put(key("/pinsnot"), b"5".to_vec()),
                BatchOp::Delete(key("/pins/c")),
            ]
        };
        store.submit_batch(ops()).unwrap().wait().unwrap();
        let mut told = noted.taken();
        told.sort();
        assert_eq!(told, [gone("/pins/c"), put("/pins/d", "4")], "{durability:?}");
        store.batch(ops()).unwrap();
        assert_eq!(noted.taken().len(), 2, "{durability:?}");
        store.put(&key("/local/x"), b"6").unwrap();
        store.put(&block_key(3), b"block").unwrap();
        assert_eq!(noted.taken(), []);
    }
}

#[test]
fn a_change_that_was_refused_is_not_told() {
    let mut options = small();
    options.store.value_bytes_max = 10;
    let ground = Ground::new(1, options);
    let store = ground.open();
    let noted = Arc::new(Noted::default());
    store.observe(&key("/pins"), noted.clone());
    assert!(store.put(&key("/pins/a"), &[0; 11]).is_err());
    assert!(store.batch(vec![BatchOp::Put(key("/pins/a"), vec![0; 11])]).is_err());
    assert_eq!(noted.taken(), []);
}
