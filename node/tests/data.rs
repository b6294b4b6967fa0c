//! Every rpc of the data service, over a socket.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod support;

use basalt_blockstore::ErrorKind;
use basalt_node::client::Data;
use basalt_proto::v1;
use support::{Served, block, drain, get, kind, put};
use tonic::Code;

#[tokio::test]
async fn what_was_put_is_got_and_what_was_deleted_is_not() {
    let served = Served::start("");
    let mut data = served.data().await;
    let (_, block) = block(b"a block");
    for key in [block.as_str(), "/pins/state/dirty"] {
        data.put(put(key, b"a block")).await.unwrap();
        assert_eq!(data.get(get(key)).await.unwrap().into_inner().value, "a block".as_bytes());
        assert_eq!(data.get_size(v1::GetSizeRequest { key: key.into() }).await.unwrap().into_inner().size, 7);
        assert!(data.has(v1::HasRequest { key: key.into() }).await.unwrap().into_inner().exists);
        data.delete(v1::DeleteRequest { key: key.into() }).await.unwrap();
        let gone = data.get(get(key)).await.unwrap_err();
        assert_eq!((gone.code(), kind(&gone)), (Code::NotFound, ErrorKind::NotFound));
        let gone = data.get_size(v1::GetSizeRequest { key: key.into() }).await.unwrap_err();
        assert_eq!(kind(&gone), ErrorKind::NotFound);
        assert!(!data.has(v1::HasRequest { key: key.into() }).await.unwrap().into_inner().exists);
        data.delete(v1::DeleteRequest { key: key.into() }).await.unwrap();
    }
}

#[tokio::test]
async fn an_empty_value_is_a_value() {
    let served = Served::start("");
    let mut data = served.data().await;
    data.put(put("/empty", b"")).await.unwrap();
    assert_eq!(data.get(get("/empty")).await.unwrap().into_inner().value.len(), 0);
    assert_eq!(data.get_size(v1::GetSizeRequest { key: "/empty".into() }).await.unwrap().into_inner().size, 0);
}

#[tokio::test]
async fn sizes_of_many_keys_come_in_their_order() {
    let served = Served::start("");
    let mut data = served.data().await;
    data.put(put("/a", b"1")).await.unwrap();
    data.put(put("/c", b"333")).await.unwrap();
    let keys = ["/c", "/b", "/a"].map(String::from).to_vec();
    assert_eq!(data.get_sizes(v1::GetSizesRequest { keys }).await.unwrap().into_inner().sizes, [3, -1, 1]);
}

#[tokio::test]
async fn bad_keys_are_refused_by_name() {
    let served = Served::start("");
    let mut data = served.data().await;
    for bad in [String::new(), "/a\0b".to_owned(), format!("/{}", "k".repeat(100_000))] {
        let refused = data.put(put(&bad, b"x")).await.unwrap_err();
        assert!(matches!(kind(&refused), ErrorKind::InvalidKey | ErrorKind::TooLarge), "{refused:?}");
        let refused = data.get(get(&bad)).await.unwrap_err();
        assert!(matches!(kind(&refused), ErrorKind::InvalidKey | ErrorKind::NotFound), "{refused:?}");
    }
    data.put(put("/good", b"x")).await.unwrap();
}

#[tokio::test]
async fn a_value_above_the_limit_is_refused_and_the_connection_serves_on() {
    let served = Served::start("[limits]\nvalue_bytes_max = \"4 MiB\"");
    let mut data = served.data().await;
    data.put(put("/fits", &vec![7; 4 << 20])).await.unwrap();
    // Just above: refused by the store, which names the limit. Far above: by the transport's limit, with the same kind.
    let refused = data.put(put("/big", &vec![7; (4 << 20) + 1])).await.unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::TooLarge);
    assert!(refused.message().contains("value_bytes_max"), "{refused:?}");
    let refused = data.put(put("/huge", &vec![7; 16 << 20])).await.unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::TooLarge);
    assert!(!data.has(v1::HasRequest { key: "/big".into() }).await.unwrap().into_inner().exists);
    assert_eq!(data.get(get("/fits")).await.unwrap().into_inner().value.len(), 4 << 20);
}

#[tokio::test]
async fn time_to_live_is_for_the_keyspace_only() {
    let served = Served::start("");
    let mut data = served.data().await;
    let (_, block) = block(b"for ever");
    let refused = data.put(v1::PutRequest { ttl_ms: 60_000, ..put(&block, b"for ever") }).await.unwrap_err();
    assert_eq!((refused.code(), kind(&refused)), (Code::Unimplemented, ErrorKind::Unsupported));
    assert!(!data.has(v1::HasRequest { key: block.clone() }).await.unwrap().into_inner().exists, "nothing is stored");

    data.put(v1::PutRequest { ttl_ms: 60_000, ..put("/lease", b"x") }).await.unwrap();
    let expires = |key: &str| v1::GetExpirationRequest { key: key.into() };
    let first = data.get_expiration(expires("/lease")).await.unwrap().into_inner().expires_unix_ms;
    assert!(first > 0);
    data.set_ttl(v1::SetTtlRequest { key: "/lease".into(), ttl_ms: 3_600_000 }).await.unwrap();
    assert!(data.get_expiration(expires("/lease")).await.unwrap().into_inner().expires_unix_ms > first);
    data.put(put("/stays", b"x")).await.unwrap();
    assert_eq!(data.get_expiration(expires("/stays")).await.unwrap().into_inner().expires_unix_ms, 0);

    let refused = data.set_ttl(v1::SetTtlRequest { key: "/none".into(), ttl_ms: 1 }).await.unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::NotFound);
    let refused = data.set_ttl(v1::SetTtlRequest { key: "/lease".into(), ttl_ms: -1 }).await.unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::InvalidValue);
}

#[tokio::test]
async fn housekeeping_calls_answer() {
    let served = Served::start("");
    let mut data = served.data().await;
    let before = data.disk_usage(v1::DiskUsageRequest {}).await.unwrap().into_inner().bytes;
    let (_, name) = block(&[7; 1000]);
    data.put(put(&name, &[7; 1000])).await.unwrap();
    assert_eq!(data.disk_usage(v1::DiskUsageRequest {}).await.unwrap().into_inner().bytes, before + 1000);
    data.sync(v1::SyncRequest { prefix: "/".into() }).await.unwrap();
    data.sync(v1::SyncRequest { prefix: String::new() }).await.unwrap();
    data.check(v1::CheckRequest {}).await.unwrap();
    data.scrub(v1::ScrubRequest {}).await.unwrap();
    data.collect_garbage(v1::CollectGarbageRequest {}).await.unwrap();
}

async fn query(data: &mut Data, query: v1::QueryRequest) -> Vec<v1::Entry> {
    let (chunks, end) = drain(data.query(query).await.unwrap().into_inner()).await;
    assert!(end.is_none(), "{end:?}");
    let complete: Vec<_> = chunks.iter().map(|chunk| chunk.complete).collect();
    assert_eq!(
        complete.iter().position(|complete| *complete),
        Some(complete.len() - 1),
        "only the last chunk is complete"
    );
    chunks.into_iter().flat_map(|chunk| chunk.entries).collect()
}

fn keys(entries: &[v1::Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

#[tokio::test]
async fn query_applies_filters_orders_offset_and_limit() {
    let served = Served::start("");
    let mut data = served.data().await;
    for (key, value) in [("/q/a", "3"), ("/q/b", "1"), ("/q/c", "2"), ("/q/d", "9"), ("/other", "0")] {
        data.put(put(key, value.as_bytes())).await.unwrap();
    }
    let all = v1::QueryRequest { prefix: "/q".into(), ..Default::default() };
    assert_eq!(keys(&query(&mut data, all.clone()).await), ["/q/a", "/q/b", "/q/c", "/q/d"]);

    let not_d = v1::filter::KeyCompare { op: v1::Compare::NotEqual.into(), key: "/q/d".into() };
    let filters = vec![v1::Filter { filter: Some(v1::filter::Filter::KeyCompare(not_d)) }];
    let by_value = v1::QueryRequest { filters, orders: vec![v1::Order::ByValueDescending.into()], ..all.clone() };
    let found = query(&mut data, by_value.clone()).await;
    assert_eq!(keys(&found), ["/q/a", "/q/c", "/q/b"]);
    assert_eq!((found[0].value.as_ref(), found[0].size), (&b"3"[..], 1));
    let part = v1::QueryRequest { offset: 1, limit: 1, ..by_value };
    assert_eq!(keys(&query(&mut data, part).await), ["/q/c"]);

    let keys_only = v1::QueryRequest { keys_only: true, ..all.clone() };
    let found = query(&mut data, keys_only.clone()).await;
    assert!(found.iter().all(|entry| entry.value.is_empty() && entry.size == -1));
    let sized = v1::QueryRequest { returns_sizes: true, ..keys_only };
    assert!(query(&mut data, sized).await.iter().all(|entry| entry.value.is_empty() && entry.size == 1));
    let none = v1::QueryRequest { prefix: "/none".into(), ..all };
    assert!(query(&mut data, none).await.is_empty());
}

#[tokio::test]
async fn query_goes_on_after_the_last_key_seen() {
    let served = Served::start("");
    let mut data = served.data().await;
    for i in 0..50u32 {
        data.put(put(&block(&i.to_le_bytes()).1, &i.to_le_bytes())).await.unwrap();
        data.put(put(&format!("/meta/{i}"), b"x")).await.unwrap();
    }
    let all = v1::QueryRequest { keys_only: true, ..Default::default() };
    let whole = query(&mut data, all.clone()).await;
    assert_eq!(whole.len(), 100);
    let mut resumed = Vec::new();
    for cut in [0, 1, 49, 50, 51, 99] {
        let after = Some(whole[cut].key.clone());
        resumed.push(query(&mut data, v1::QueryRequest { after, ..all.clone() }).await);
        assert_eq!(keys(resumed.last().unwrap()), keys(&whole[cut + 1..]), "after {cut}");
    }
}

#[tokio::test]
async fn query_with_a_filter_that_is_not_understood_is_refused() {
    let served = Served::start("");
    let mut data = served.data().await;
    let strange = [
        v1::QueryRequest { filters: vec![v1::Filter { filter: None }], ..Default::default() },
        v1::QueryRequest { orders: vec![99], ..Default::default() },
        v1::QueryRequest { after: Some("/a".into()), limit: 1, ..Default::default() },
        v1::QueryRequest {
            filters: vec![v1::Filter {
                filter: Some(v1::filter::Filter::KeyCompare(v1::filter::KeyCompare { op: 7, key: "/a".into() })),
            }],
            ..Default::default()
        },
    ];
    for strange in strange {
        let refused = match data.query(strange.clone()).await {
            Err(refused) => refused,
            Ok(answer) => drain(answer.into_inner()).await.1.unwrap(),
        };
        assert_eq!(kind(&refused), ErrorKind::InvalidValue, "{strange:?}");
    }
}

#[tokio::test]
async fn query_of_large_values_comes_in_chunks_below_the_message_limit() {
    let served = Served::start("");
    let mut data = served.data().await;
    for i in 0..24 {
        data.put(put(&format!("/v/{i:02}"), &vec![i; 512 << 10])).await.unwrap();
    }
    let request = v1::QueryRequest { prefix: "/v".into(), ..Default::default() };
    let (chunks, end) = drain(data.query(request).await.unwrap().into_inner()).await;
    assert!(end.is_none());
    assert!(chunks.len() >= 8, "{} chunks", chunks.len());
    let largest = chunks.iter().map(|chunk| chunk.entries.iter().map(|entry| entry.value.len()).sum::<usize>()).max();
    assert!(largest.unwrap() <= 2 << 20, "{largest:?}");
    assert_eq!(chunks.iter().map(|chunk| chunk.entries.len()).sum::<usize>(), 24);
}

#[tokio::test]
async fn a_query_that_nobody_reads_holds_up_neither_others_nor_its_own_connection() {
    let served = Served::start("[limits]\nqueries_max = 2");
    let mut data = served.data().await;
    for i in 0..16 {
        data.put(put(&format!("/v/{i:02}"), &vec![i; 2 << 20])).await.unwrap();
    }
    let request = v1::QueryRequest { prefix: "/v".into(), ..Default::default() };
    let unread = data.query(request.clone()).await.unwrap();
    let mut other = served.data().await;
    assert_eq!(query(&mut other, request.clone()).await.len(), 16);
    assert_eq!(data.get(get("/v/00")).await.unwrap().into_inner().value.len(), 2 << 20);
    // Its slot is free again once it is given up: two more run side by side.
    drop(unread);
    let (a, b) = (served.data().await, served.data().await);
    let both = [a, b].map(|mut data| {
        let request = request.clone();
        tokio::spawn(async move { query(&mut data, request).await.len() })
    });
    for one in both {
        assert_eq!(one.await.unwrap(), 16);
    }
}
