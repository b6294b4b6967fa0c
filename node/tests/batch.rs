//! Batches: applied whole at the commit, and not at all without one.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod support;

use std::time::Duration;

use basalt_blockstore::ErrorKind;
use basalt_node::client::Data;
use basalt_proto::v1::{self, batch_operation::Operation};
use support::{Served, block, get, kind, put, until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

fn put_op(key: &str, value: &[u8]) -> v1::BatchOperation {
    v1::BatchOperation { key: key.into(), operation: Some(Operation::Put(value.to_vec().into())) }
}

fn delete_op(key: &str) -> v1::BatchOperation {
    v1::BatchOperation { key: key.into(), operation: Some(Operation::Delete(true)) }
}

fn chunk(operations: Vec<v1::BatchOperation>, commit: bool) -> v1::BatchRequest {
    v1::BatchRequest { operations, commit }
}

async fn has(data: &mut Data, key: &str) -> bool {
    data.has(v1::HasRequest { key: key.into() }).await.unwrap().into_inner().exists
}

#[tokio::test]
async fn the_last_operation_of_a_key_wins_and_blocks_and_metadata_go_together() {
    let served = Served::start("");
    let mut data = served.data().await;
    data.put(put("/old", b"x")).await.unwrap();
    let (_, name) = block(b"in a batch");
    let operations = vec![
        put_op("/pin", b"first"),
        put_op(&name, b"in a batch"),
        delete_op("/old"),
        put_op("/gone", b"x"),
        delete_op("/gone"),
        put_op("/pin", b"last"),
    ];
    let chunks: Vec<_> =
        operations.into_iter().map(|operation| chunk(vec![operation], false)).chain([chunk(vec![], true)]).collect();
    data.batch(tokio_stream::iter(chunks)).await.unwrap();
    assert_eq!(data.get(get("/pin")).await.unwrap().into_inner().value, "last".as_bytes());
    assert_eq!(data.get(get(&name)).await.unwrap().into_inner().value, "in a batch".as_bytes());
    assert!(!has(&mut data, "/old").await && !has(&mut data, "/gone").await);
}

#[tokio::test]
async fn twenty_mebibytes_go_in_chunks_of_one() {
    let served = Served::start("");
    let mut data = served.data().await;
    let blocks: Vec<_> = (0..80u8).map(|i| vec![i; 256 << 10]).collect();
    let mut chunks: Vec<_> = blocks
        .chunks(4)
        .map(|blocks| chunk(blocks.iter().map(|value| put_op(&block(value).1, value)).collect(), false))
        .collect();
    chunks.last_mut().unwrap().commit = true;
    data.batch(tokio_stream::iter(chunks)).await.unwrap();
    for value in &blocks {
        assert_eq!(data.get(get(&block(value).1)).await.unwrap().into_inner().value, value);
    }
    assert_eq!(data.disk_usage(v1::DiskUsageRequest {}).await.unwrap().into_inner().bytes, 20 << 20);
}

#[tokio::test]
async fn a_batch_without_a_commit_leaves_no_trace() {
    let served = Served::start("");
    let mut data = served.data().await;
    let refused = data.batch(tokio_stream::iter([chunk(vec![put_op("/a", b"x")], false)])).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Cancelled);
    assert!(!has(&mut data, "/a").await);
    data.batch(tokio_stream::iter([chunk(vec![], true)])).await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_in_mid_batch_leaves_no_trace() {
    let served = Served::start("");
    let mut going = served.data().await;
    let (send, chunks) = mpsc::channel(1);
    let call = tokio::spawn(async move { going.batch(ReceiverStream::new(chunks)).await });
    for i in 0..8u8 {
        send.send(chunk(vec![put_op(&format!("/t/{i}"), &vec![i; 1 << 20])], false)).await.unwrap();
    }
    assert_eq!(served.node.clients().list().len(), 1);
    call.abort();
    until("the client has gone", async || served.node.clients().list().is_empty()).await;

    let mut data = served.data().await;
    for i in 0..8 {
        assert!(!has(&mut data, &format!("/t/{i}")).await);
    }
    data.put(put("/serving", b"on")).await.unwrap();
}

#[tokio::test]
async fn a_bad_operation_refuses_the_whole_batch() {
    let served = Served::start("[limits]\nvalue_bytes_max = \"4 MiB\"");
    let mut data = served.data().await;
    let bad = [
        v1::BatchOperation { key: "/b".into(), operation: None },
        v1::BatchOperation { key: "/b".into(), operation: Some(Operation::Delete(false)) },
        put_op("", b"x"),
        put_op("/b", &vec![0; (4 << 20) + 1]),
    ];
    for bad in bad {
        let chunks = [chunk(vec![put_op("/a", b"x"), bad], true)];
        let refused = data.batch(tokio_stream::iter(chunks)).await.unwrap_err();
        assert!(
            matches!(kind(&refused), ErrorKind::InvalidValue | ErrorKind::InvalidKey | ErrorKind::TooLarge),
            "{refused:?}"
        );
        assert!(!has(&mut data, "/a").await && !has(&mut data, "/b").await);
    }
}

#[tokio::test]
async fn a_batch_above_its_limit_is_refused_while_it_is_being_sent() {
    let served = Served::start("[limits]\nbatch_bytes_max = \"2 MiB\"");
    let mut data = served.data().await;
    let chunks: Vec<_> = (0..8).map(|i| chunk(vec![put_op(&format!("/t/{i}"), &[7; 1 << 20])], i == 7)).collect();
    let refused = data.batch(tokio_stream::iter(chunks)).await.unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::TooLarge);
    assert!(refused.message().contains("batch_bytes_max"), "{refused:?}");
    assert!(!has(&mut data, "/t/0").await);
}

#[tokio::test]
async fn batches_share_a_memory_that_is_given_back() {
    let served = Served::start("[limits]\nbatch_memory_bytes = \"4 MiB\"");
    let mut data = served.data().await;
    let slow_client = served.data().await;
    let start_slow = async || {
        let (send, chunks) = mpsc::channel(1);
        let mut slow = slow_client.clone();
        let call = tokio::spawn(async move { slow.batch(ReceiverStream::new(chunks)).await });
        send.send(chunk(vec![put_op("/slow", &vec![7; 3 << 20])], false)).await.unwrap();
        (send, call)
    };
    let big = || tokio_stream::iter([chunk(vec![put_op("/fast", &vec![7; 2 << 20])], true)]);
    // Whichever of the two arrives while the other is there is refused: the slow one gets time to be the first.
    let begin = std::time::Instant::now();
    let (mut send, mut call) = start_slow().await;
    let refused = loop {
        assert!(begin.elapsed() < Duration::from_secs(10), "both batches went through");
        if tokio::time::timeout(Duration::from_millis(50), &mut call).await.is_ok() {
            (send, call) = start_slow().await;
            continue;
        }
        if let Err(refused) = data.batch(big()).await {
            break refused;
        }
    };
    assert_eq!(kind(&refused), ErrorKind::NoSpace);
    assert!(refused.message().contains("batch_memory_bytes"), "{refused:?}");
    send.send(chunk(vec![], true)).await.unwrap();
    call.await.unwrap().unwrap();
    data.batch(big()).await.unwrap();
}
