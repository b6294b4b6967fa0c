//! Hostile keys, times to live, batches and queries: refused by name or done right, never a panic, and never in proportion to a number that somebody
//! only says.

#![allow(clippy::unwrap_used)]

mod ground;

use std::collections::BTreeMap;

use basalt_datastore::{BatchOp, Compare, Filter, Key, Order, Query};
use basalt_fuzz::{
    hold, hostile_text,
    proptest::{prelude::*, sample::Index},
    within,
};
use ground::{Ground, START_UNIX_MS, all_keys, block_key, get, key, small};

/// Text of a key as clients write it.
fn any_key_text() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "pins", "blocks", "..", ".", "", "größe", "CIQ", "A:b", " "]);
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.join("/"))
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..5, Just(u64::MAX), Just(u64::MAX - 1), Just(1 << 63), any::<u64>()]
}

#[test]
fn hostile_keys_are_refused_or_clean() {
    hold("keys", 3000, hostile_text(any_key_text()), |text| {
        let limit = 4096 + 4 * text.len();
        let Ok(key) = within(limit, || Key::new(&text))? else { return Ok(()) };
        let clean = key.as_str();
        prop_assert!(clean.starts_with('/') && clean.len() <= text.len() + 1);
        prop_assert!(clean == "/" || !clean.ends_with('/'));
        prop_assert!(!clean.contains("//") && !clean.contains('\0'));
        prop_assert!(
            clean.split('/').skip(1).all(|part| part != "." && part != ".." && (clean == "/" || !part.is_empty()))
        );
        prop_assert_eq!(Key::new(clean).unwrap(), key);
        Ok(())
    });
}

#[test]
fn whatever_is_put_under_a_hostile_key_is_under_that_key_alone() {
    let ground = Ground::new(2, small());
    let store = ground.open();
    let held = block_key(1);
    store.put(&held, b"held").unwrap();
    store.put(&key("/pins/held"), b"held").unwrap();
    let cases = (hostile_text(any_key_text()), number(), prop::collection::vec(any::<u8>(), 0..60));
    hold("values under hostile keys", 300, cases, |(text, ttl_ms, value)| {
        let Ok(key) = Key::new(&text) else { return Ok(()) };
        if [&held, &Key::new("/pins/held").unwrap()].contains(&&key) {
            return Ok(());
        }
        let before = all_keys(&store);
        if store.submit_put(&key, &value, None).and_then(|ticket| ticket.wait()).is_ok() {
            prop_assert_eq!(get(&store, &key), Some(value.clone()));
            prop_assert_eq!(all_keys(&store).len(), before.len() + 1);
            // A time to live of any length ends in the future and does not wrap around; 0 is over at once.
            if store.submit_set_ttl(&key, ttl_ms).and_then(|ticket| ticket.wait()).is_ok() {
                match store.expiration(&key) {
                    Ok(expires) => prop_assert!(expires.is_some_and(|at| at > START_UNIX_MS), "{:?}", expires),
                    Err(_) => prop_assert_eq!(ttl_ms, 0),
                }
                prop_assert_eq!(get(&store, &key).is_some(), ttl_ms > 0);
            }
            store.delete(&key).unwrap();
        }
        prop_assert_eq!(all_keys(&store), before);
        prop_assert_eq!(get(&store, &held), Some(b"held".to_vec()));
        Ok(())
    });
}

fn any_query() -> impl Strategy<Value = Query> {
    let compare = prop::sample::select(vec![
        Compare::Equal,
        Compare::NotEqual,
        Compare::Greater,
        Compare::GreaterOrEqual,
        Compare::Less,
        Compare::LessOrEqual,
    ]);
    let filter = prop_oneof![
        (compare.clone(), any_key_text()).prop_map(|(compare, text)| Filter::Key(compare, text)),
        (compare, prop::collection::vec(any::<u8>(), 0..4)).prop_map(|(compare, bytes)| Filter::Value(compare, bytes)),
        any_key_text().prop_map(Filter::KeyPrefix),
    ];
    let order = prop::sample::select(vec![Order::Key, Order::KeyDescending, Order::Value, Order::ValueDescending]);
    (
        hostile_text(any_key_text()),
        prop::collection::vec(filter, 0..4),
        prop::collection::vec(order, 0..4),
        number(),
        number(),
        any::<bool>(),
        any::<bool>(),
        prop::option::weighted(0.3, any_key_text()),
    )
        .prop_map(|(prefix, filters, orders, limit, offset, keys_only, returns_sizes, after)| Query {
            prefix,
            filters,
            orders,
            limit,
            offset,
            keys_only,
            returns_sizes,
            after: after.and_then(|text| Key::new(&text).ok()),
        })
}

#[test]
fn hostile_queries_give_entries_that_are_there_or_an_error() {
    let ground = Ground::new(2, small());
    let store = ground.open();
    let mut there = BTreeMap::new();
    for n in 0..40u8 {
        let key = if n % 2 == 0 { block_key(n) } else { key(&format!("/pins/{n}")) };
        store.put(&key, &vec![n; usize::from(n)]).unwrap();
        there.insert(key, vec![n; usize::from(n)]);
    }
    hold("queries", 1500, any_query(), |query| {
        // Offsets and limits are numbers that somebody says.
        let entries = within(256 << 10, || {
            let mut cursor = store.query(query.clone())?;
            let mut entries = Vec::new();
            loop {
                let page = cursor.next_page(7, 64)?;
                if page.is_empty() {
                    return Ok::<_, basalt_datastore::Error>(entries);
                }
                entries.extend(page);
            }
        })?;
        let Ok(entries) = entries else { return Ok(()) };
        prop_assert!(query.limit == 0 || entries.len() as u64 <= query.limit);
        prop_assert!(entries.len() as u64 <= (there.len() as u64).saturating_sub(query.offset));
        let mut seen = std::collections::BTreeSet::new();
        for entry in entries {
            let value = there.get(&entry.key);
            prop_assert!(value.is_some(), "{} is not there", entry.key);
            prop_assert!(query.keys_only || value == Some(&entry.value));
            prop_assert!(seen.insert(entry.key));
        }
        Ok(())
    });
}

#[test]
fn a_listing_resumes_behind_any_key() {
    let ground = Ground::new(2, small());
    let store = ground.open();
    for n in 0..30u8 {
        store.put(&if n % 2 == 0 { block_key(n) } else { key(&format!("/pins/{n}")) }, b"x").unwrap();
    }
    let list = |after: Option<Key>| {
        let mut cursor = store.query(Query { keys_only: true, after, ..Query::default() }).unwrap();
        let mut keys = Vec::new();
        loop {
            let page = cursor.next_page(5, 1 << 20).unwrap();
            if page.is_empty() {
                return keys;
            }
            keys.extend(page.into_iter().map(|entry| entry.key));
        }
    };
    let all = list(None);
    hold("cursors", 300, (any::<Index>(), hostile_text(any_key_text())), |(at, text)| {
        let at = at.index(all.len());
        prop_assert_eq!(&list(Some(all[at].clone()))[..], &all[at + 1..]);
        // A key that is not there: some end of the listing, in its order.
        if let Ok(after) = Key::new(&text) {
            prop_assert!(all.ends_with(&list(Some(after))));
        }
        Ok(())
    });
}

#[test]
fn batches_of_hostile_keys_are_applied_whole_or_not_at_all() {
    let ground = Ground::new(2, small());
    let store = ground.open();
    let op = (hostile_text(any_key_text()), prop::option::of(prop::collection::vec(any::<u8>(), 0..20)));
    hold("batches", 300, prop::collection::vec(op, 0..12), |ops| {
        let mut expected = BTreeMap::new();
        let mut batch = Vec::new();
        for (text, value) in ops {
            let Ok(key) = Key::new(&text) else { continue };
            expected.insert(key.clone(), value.clone());
            batch.push(match value {
                Some(value) => BatchOp::Put(key, value),
                None => BatchOp::Delete(key),
            });
        }
        let before = all_keys(&store);
        match store.batch(batch) {
            Ok(()) => {
                for (key, value) in &expected {
                    prop_assert_eq!(&get(&store, key), value);
                }
            }
            Err(_) => prop_assert_eq!(all_keys(&store), before),
        }
        for key in expected.keys() {
            store.delete(key).unwrap();
        }
        Ok(())
    });
}
