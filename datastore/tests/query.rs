//! Queries mean what go-datastore's naive ones mean.

#![allow(clippy::unwrap_used)]

mod ground;

use std::{cmp::Ordering, collections::BTreeMap};

use basalt_blockstore::Multihash;
use basalt_datastore::{Compare, Datastore, Entry, ErrorKind, Filter, Key, Options, Order, Query};
use ground::{Ground, block_key, entries, key, small};
use proptest::prelude::*;

/// `NaiveQueryApply` of go-datastore v0.9.2, over the stores' own order: keys of the keyspace by text, then blocks by multihash.
fn naive(model: &BTreeMap<Key, Vec<u8>>, query: &Query) -> Vec<Entry> {
    let mut all: Vec<Entry> = model
        .iter()
        .map(|(key, value)| Entry {
            key: key.clone(),
            value: value.clone(),
            size: value.len() as u64,
            expires_unix_ms: 0,
        })
        .collect();
    all.sort_by_key(|entry| (block(&entry.key), entry.key.clone()));
    if let Some(after) = &query.after {
        let after = (block(after), after.clone());
        all.retain(|entry| (block(&entry.key), entry.key.clone()) > after);
    }
    let prefix = Key::new(&query.prefix).unwrap();
    if prefix.as_str() != "/" {
        all.retain(|entry| entry.key.as_str().starts_with(&format!("{}/", prefix.as_str())));
    }
    for filter in &query.filters {
        let holds = |compare: &Compare, ordering: Ordering| match compare {
            Compare::Equal => ordering == Ordering::Equal,
            Compare::NotEqual => ordering != Ordering::Equal,
            Compare::Greater => ordering == Ordering::Greater,
            Compare::GreaterOrEqual => ordering != Ordering::Less,
            Compare::Less => ordering == Ordering::Less,
            Compare::LessOrEqual => ordering != Ordering::Greater,
        };
        all.retain(|entry| match filter {
            Filter::Key(compare, text) => holds(compare, entry.key.as_str().cmp(text)),
            Filter::Value(compare, value) => holds(compare, entry.value.cmp(value)),
            Filter::KeyPrefix(text) => entry.key.as_str().starts_with(text),
        });
    }
    if !query.orders.is_empty() {
        all.sort_by(|a, b| {
            for order in &query.orders {
                let ordering = match order {
                    Order::Key => a.key.as_str().cmp(b.key.as_str()),
                    Order::KeyDescending => b.key.as_str().cmp(a.key.as_str()),
                    Order::Value => a.value.cmp(&b.value),
                    Order::ValueDescending => b.value.cmp(&a.value),
                };
                if ordering != Ordering::Equal {
                    return ordering;
                }
            }
            a.key.as_str().cmp(b.key.as_str())
        });
    }
    let limit = if query.limit == 0 { usize::MAX } else { query.limit as usize };
    let mut all: Vec<Entry> = all.into_iter().skip(query.offset as usize).take(limit).collect();
    if query.keys_only {
        all.iter_mut().for_each(|entry| entry.value.clear());
    }
    all
}

fn block(key: &Key) -> Option<Multihash> {
    Multihash::parse_base32(key.as_str().strip_prefix("/blocks/")?).ok()
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        6 => any::<u8>().prop_map(block_key),
        3 => "(/[aAzZ09_]{1,2}){1,3}".prop_map(|text| key(&text)),
        2 => "/(prefix|prefixed|Prefix|pre)(/sub|/subs|)(/[0-9]key|)".prop_map(|text| key(&text)),
        1 => "/blocks(/[a-z2]{1,3}|/CIQ|/[A-Z]{2}/x)".prop_map(|text| key(&text)),
        1 => "/".prop_map(|text| key(&text)),
    ]
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0u8..3, 0..4)
}

fn any_compare() -> impl Strategy<Value = Compare> {
    prop::sample::select(vec![
        Compare::Equal,
        Compare::NotEqual,
        Compare::Greater,
        Compare::GreaterOrEqual,
        Compare::Less,
        Compare::LessOrEqual,
    ])
}

fn any_filter() -> impl Strategy<Value = Filter> {
    prop_oneof![
        (any_compare(), any_key()).prop_map(|(compare, key)| Filter::Key(compare, key.as_str().into())),
        (any_compare(), any_value()).prop_map(|(compare, value)| Filter::Value(compare, value)),
        "(/|/p|/pre|/prefix/|/blocks/CI|/blocks/2|)".prop_map(Filter::KeyPrefix),
    ]
}

fn any_order() -> impl Strategy<Value = Order> {
    prop::sample::select(vec![Order::Key, Order::KeyDescending, Order::Value, Order::ValueDescending])
}

fn any_query() -> impl Strategy<Value = Query> {
    let prefix = prop_oneof![
        "(|/|//|/\\./|/prefix|/prefix/|prefix|/prefixed|/prefix/sub|/pre|/\\.\\./prefix|/blocks|/blocks/|/blocks/AA|/bad)",
        any_key().prop_map(|key| key.as_str().to_string()),
    ];
    (
        prefix,
        prop::collection::vec(any_filter(), 0..3),
        prop::collection::vec(any_order(), 0..3),
        prop_oneof![Just(0u64), 0u64..40],
        prop_oneof![Just(0u64), 0u64..40],
        any::<bool>(),
    )
        .prop_map(|(prefix, filters, orders, limit, offset, keys_only)| Query {
            prefix,
            filters,
            orders,
            limit,
            offset,
            keys_only,
            ..Query::default()
        })
}

fn filled(contents: &[(Key, Vec<u8>)], shards: usize, options: Options) -> (Ground, Datastore, BTreeMap<Key, Vec<u8>>) {
    let ground = Ground::new(shards, options);
    let store = ground.open();
    let mut model = BTreeMap::new();
    for (key, value) in contents {
        store.put(key, value).unwrap();
        if block(key).is_none() || !model.contains_key(key) {
            model.insert(key.clone(), value.clone());
        }
    }
    (ground, store, model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn results_are_the_naive_ones_in_pages_of_any_size(
        contents in prop::collection::vec((any_key(), any_value()), 0..120),
        shards in 1usize..4,
        queries in prop::collection::vec((any_query(), 1usize..50, 1usize..200), 1..12),
    ) {
        let (_ground, store, model) = filled(&contents, shards, small());
        for (query, entries_max, bytes_max) in queries {
            let found = entries(&store, query.clone(), entries_max, bytes_max);
            prop_assert_eq!(found, naive(&model, &query), "{:?}", query);
        }
    }

    #[test]
    fn a_query_resumes_behind_any_key(
        contents in prop::collection::vec((any_key(), any_value()), 0..80),
        shards in 1usize..4,
        prefix in "(|/prefix|/blocks)",
        filters in prop::collection::vec(any_filter(), 0..2),
        absent in any_key(),
    ) {
        let (_ground, store, model) = filled(&contents, shards, small());
        for after in model.keys().step_by(7).chain([&absent]) {
            let query = Query {
                prefix: prefix.clone(),
                filters: filters.clone(),
                after: Some(after.clone()),
                ..Query::default()
            };
            prop_assert_eq!(entries(&store, query.clone(), 7, 1000), naive(&model, &query), "{:?}", query);
        }
    }
}

fn some() -> (Ground, Datastore, BTreeMap<Key, Vec<u8>>) {
    some_with(small())
}

fn some_with(options: Options) -> (Ground, Datastore, BTreeMap<Key, Vec<u8>>) {
    let mut contents: Vec<(Key, Vec<u8>)> = (0..100).map(|i| (block_key(i), vec![i; 10])).collect();
    contents.extend((0..100).map(|i| (key(&format!("/m/{i}")), vec![255 - i; 10])));
    filled(&contents, 3, options)
}

#[test]
fn resuming_with_an_order_offset_or_limit_is_refused_with_the_reason() {
    let (_ground, store, _) = some();
    let after = Some(key("/m/1"));
    for query in [
        Query { after: after.clone(), orders: vec![Order::Key], ..Query::default() },
        Query { after: after.clone(), offset: 1, ..Query::default() },
        Query { after, limit: 1, ..Query::default() },
    ] {
        let err = store.query(query).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidValue);
        assert!(err.to_string().contains("resumes after a key only without"), "{err}");
    }
}

#[test]
fn a_sort_above_its_limit_names_the_limit_and_a_limit_on_the_query_makes_it_fit() {
    let (_ground, store, model) = some_with(Options { sort_entries_max: 150, ..small() });
    let query = Query { orders: vec![Order::KeyDescending], keys_only: true, ..Query::default() };
    let err = store.query(query.clone()).unwrap().next_page(10, 1000).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::TooLarge);
    assert!(err.to_string().contains("150 entries (sort_entries_max)"), "{err}");
    let query = Query { limit: 20, offset: 30, ..query };
    assert_eq!(entries(&store, query.clone(), 7, 1000), naive(&model, &query));
    // What is streamed has no limit.
    let query = Query { prefix: "/m".into(), orders: vec![Order::Key], ..Query::default() };
    let (_ground, store, model) = some_with(Options { sort_entries_max: 1, ..small() });
    assert_eq!(entries(&store, query.clone(), 7, 1000), naive(&model, &query));
}

#[test]
fn a_sort_by_value_holds_no_more_bytes_than_its_limit() {
    let (_ground, store, model) = some_with(Options { sort_bytes_max: 1000, ..small() });
    let query = Query { orders: vec![Order::Value], ..Query::default() };
    let err = store.query(query.clone()).unwrap().next_page(10, 1000).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::TooLarge);
    assert!(err.to_string().contains("sort_bytes_max"), "{err}");
    let query = Query { limit: 5, ..query };
    assert_eq!(entries(&store, query.clone(), 7, 1000), naive(&model, &query));
}

#[test]
fn a_page_is_bounded_in_bytes_and_never_empty_before_the_end() {
    let ground = Ground::new(2, small());
    let store = ground.open();
    for i in 0..20 {
        store.put(&block_key(i), &vec![i; 1000]).unwrap();
    }
    let mut cursor = store.query(Query::default()).unwrap();
    assert_eq!(cursor.next_page(100, 1).unwrap().len(), 1);
    assert_eq!(cursor.next_page(100, 5000).unwrap().len(), 5);
    assert_eq!(cursor.next_page(0, 5000).unwrap().len(), 1);
}

#[test]
fn what_goes_during_a_query_is_left_out_and_the_rest_comes() {
    let (_ground, store, _) = some();
    for orders in [vec![], vec![Order::KeyDescending]] {
        let mut cursor = store.query(Query { orders, ..Query::default() }).unwrap();
        let first = cursor.next_page(10, 1 << 20).unwrap();
        let seen: Vec<Key> = first.into_iter().map(|entry| entry.key).collect();
        let gone: Vec<Key> =
            [key("/m/55"), block_key(55), block_key(77)].into_iter().filter(|key| !seen.contains(key)).collect();
        gone.iter().for_each(|key| store.delete(key).unwrap());
        let mut keys = seen;
        loop {
            let page = cursor.next_page(10, 1 << 20).unwrap();
            if page.is_empty() {
                break;
            }
            keys.extend(page.into_iter().map(|entry| entry.key));
        }
        assert_eq!(keys.len() + gone.len(), 200);
        assert!(gone.iter().all(|key| !keys.contains(key)));
        gone.iter().for_each(|key| store.put(key, b"back").unwrap());
    }
}

#[test]
fn a_query_of_a_closed_datastore_is_an_error_and_no_short_list() {
    let (_ground, store, _) = some();
    let mut cursor = store.query(Query::default()).unwrap();
    cursor.next_page(10, 1 << 20).unwrap();
    store.close().unwrap();
    assert_eq!(cursor.next_page(10, 1 << 20).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(store.query(Query::default()).unwrap_err().kind(), ErrorKind::Closed);
}
