//! Clients that want the node to keep more than it can.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use basalt_node::client;
use basalt_proto::v1::{
    BatchOperation, BatchRequest, GetRequest, GetSizesRequest, PutRequest, QueryRequest, batch_operation::Operation,
};
use prost::Message;

use crate::{
    honest::{Honest, Most, resident_bytes},
    sandbox::{Agent, Sandbox, eventually},
    wire::{DATA, END_STREAM, SETTING_INITIAL_WINDOW_SIZE, WINDOW_UPDATE, Wire, frame, message, setting},
};

/// What the agent of these tests may have on its way to and from clients.
const TRANSFER: u64 = 160 << 20;
/// What it may take beside that: a message that is decoded, buffers of the index, what the allocator keeps.
const BESIDE: u64 = 160 << 20;

fn agent(sandbox: &Sandbox, more: &[&str]) -> Agent {
    let limit = format!("limits.transfer_memory_bytes={TRANSFER}");
    let mut args = vec!["--set", &limit];
    args.extend(more);
    sandbox.agent(&args)
}

fn data_socket(sandbox: &Sandbox) -> PathBuf {
    sandbox.node().join("run/data.sock")
}

/// Values to ask for: as many keys of that many bytes each.
fn fill(sandbox: &Sandbox, keys: usize, bytes: usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let sockets = basalt_node::Config::default().sockets;
        let (mut data, _) = client::data(&sandbox.node(), &sockets, "fill", "root").await.unwrap();
        for n in 0..keys {
            let request = PutRequest { key: format!("/big/{n}"), value: vec![n as u8; bytes].into(), ttl_ms: 0 };
            data.put(request).await.unwrap();
        }
    });
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    let sandbox = Sandbox::with_node();
    let agent = agent(&sandbox, &[]);
    fill(&sandbox, 4, 2 << 20);
    let honest = Honest::begin(&sandbox);
    let most = Most::watch(&agent);
    let get = GetRequest { key: "/big/1".into() }.encode_to_vec();
    let mut held = Vec::new();
    // 30 clients, 200 Gets of 2 MiB each: 12 GiB, if it were kept. Half of them close their windows, half just don't read.
    for n in 0..30 {
        let settings = if n % 2 == 0 {
            setting(SETTING_INITIAL_WINDOW_SIZE, 0)
        } else {
            setting(SETTING_INITIAL_WINDOW_SIZE, 1 << 30)
        };
        let mut wire = Wire::greeted(&data_socket(&sandbox), &settings);
        let _ = wire.send(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes()));
        for _ in 0..200 {
            if wire.call("/basalt.v1.Datastore/Get", &get).is_err() {
                break;
            }
        }
        held.push(wire);
        honest.goes_on(1);
    }
    honest.goes_on(100);
    let grew = most.grew("12 GiB of answers that nobody reads");
    assert!(grew < TRANSFER + BESIDE, "{} MiB", grew >> 20);
    drop(held);
    println!("{:?}", honest.was_served());
}

#[test]
fn requests_that_never_end_are_bounded() {
    let sandbox = Sandbox::with_node();
    let agent = agent(&sandbox, &[]);
    let honest = Honest::begin(&sandbox);
    let most = Most::watch(&agent);
    let mut held = Vec::new();
    // 20 clients, each with 40 Puts of 8 MiB that lack their last byte: 6 GiB, if it were kept.
    let whole = message(&vec![7; 8 << 20]);
    'clients: for _ in 0..20 {
        let mut wire = Wire::greeted(&data_socket(&sandbox), &[]);
        for _ in 0..40 {
            let Ok(stream) = wire.begin("/basalt.v1.Datastore/Put", 0) else { continue 'clients };
            for part in whole[..whole.len() - 1].chunks(1 << 14) {
                if wire.data(stream, part).is_err() {
                    continue 'clients;
                }
            }
        }
        held.push(wire);
    }
    honest.goes_on(100);
    let grew = most.grew("6 GiB of requests that never end");
    assert!(grew < TRANSFER + BESIDE, "{} MiB", grew >> 20);
    assert!(agent.log().contains("[limits] transfer_memory_bytes"), "{}", agent.log());
    drop(held);
    println!("{:?}", honest.was_served());
}

#[test]
fn queries_that_nobody_reads_make_room_and_never_seem_complete() {
    let sandbox = Sandbox::with_node();
    let agent = agent(&sandbox, &["--set", "limits.queries_max=4"]);
    fill(&sandbox, 16, 2 << 20);
    let honest = Honest::begin(&sandbox);
    let most = Most::watch(&agent);
    let query = QueryRequest { prefix: "/big".into(), ..QueryRequest::default() }.encode_to_vec();
    let mut held: Vec<Wire> = (0..4).map(|_| Wire::greeted(&data_socket(&sandbox), &[])).collect();
    for wire in &mut held {
        for _ in 0..20 {
            wire.call("/basalt.v1.Datastore/Query", &query).unwrap();
        }
    }
    // A slow client of the library, whose stream is one of those that must make room, or one that got its turn.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let begin = Instant::now();
    runtime.block_on(async {
        let sockets = basalt_node::Config::default().sockets;
        let (data, _) = client::data(&sandbox.node(), &sockets, "lister", "root").await.unwrap();
        let request = || QueryRequest { prefix: "/big".into(), keys_only: true, ..QueryRequest::default() };
        for round in 0..3 {
            let mut data = data.clone();
            let listing = async move {
                let mut stream = data.query(request()).await.unwrap().into_inner();
                let mut entries = 0;
                while let Some(chunk) = stream.message().await.unwrap() {
                    entries += chunk.entries.len();
                    if chunk.complete {
                        return entries;
                    }
                }
                panic!("a listing ended without its end");
            };
            // It waits until one of the others has had its time.
            let listed = tokio::time::timeout(Duration::from_secs(20), listing).await;
            assert_eq!(listed.unwrap_or_else(|_| panic!("round {round}: the listing waits for ever")), 16);
        }
    });
    println!("three listings behind 80 queries that nobody reads: {:?}", begin.elapsed());
    let grew = most.grew("80 queries that nobody reads");
    assert!(grew < TRANSFER + BESIDE, "{} MiB", grew >> 20);
    drop(held);
    honest.was_served();
}

#[test]
fn a_query_that_made_room_says_so() {
    let sandbox = Sandbox::with_node();
    let _agent = agent(&sandbox, &["--set", "limits.queries_max=1"]);
    fill(&sandbox, 16, 2 << 20);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let sockets = basalt_node::Config::default().sockets;
        let (mut slow, _) = client::data(&sandbox.node(), &sockets, "slow", "root").await.unwrap();
        let (mut quick, _) = client::data(&sandbox.node(), &sockets, "quick", "root").await.unwrap();
        let all = QueryRequest { prefix: "/big".into(), ..QueryRequest::default() };
        let mut slow = slow.query(all).await.unwrap().into_inner();
        let keys = QueryRequest { prefix: "/big".into(), keys_only: true, ..QueryRequest::default() };
        let mut quick = quick.query(keys).await.unwrap().into_inner();
        assert_eq!(quick.message().await.unwrap().unwrap().entries.len(), 16);
        let ended = loop {
            match slow.message().await {
                Ok(Some(chunk)) => assert!(!chunk.complete),
                Ok(None) => panic!("it seems to be at its end"),
                Err(status) => break status,
            }
        };
        assert!(ended.message().contains("broken off"), "{ended:?}");
    });
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    let sandbox = Sandbox::with_node();
    let agent = agent(&sandbox, &["--set", "sockets.stall_deadline_ms=1000"]);
    fill(&sandbox, 2, 2 << 20);
    let honest = Honest::begin(&sandbox);
    let mut wire = Wire::greeted(&data_socket(&sandbox), &setting(SETTING_INITIAL_WINDOW_SIZE, 1 << 30));
    wire.send(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())).unwrap();
    for _ in 0..4 {
        wire.call("/basalt.v1.Datastore/Get", &GetRequest { key: "/big/1".into() }.encode_to_vec()).unwrap();
    }
    eventually("it is cut off", || agent.log().contains("takes nothing of what is sent").then_some(()));
    honest.was_served();
}

#[test]
fn small_things_in_great_number_are_refused_before_they_fill_the_memory() {
    let sandbox = Sandbox::with_node();
    let agent = agent(&sandbox, &["--set", "limits.batch_memory_bytes=64 MiB"]);
    let honest = Honest::begin(&sandbox);
    let most = Most::watch(&agent);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let sockets = basalt_node::Config::default().sockets;
        let (mut data, _) = client::data(&sandbox.node(), &sockets, "small", "root").await.unwrap();
        // 12 million keys of one byte.
        let sizes = GetSizesRequest { keys: vec!["/".into(); 4_000_000] };
        let refused = data.get_sizes(sizes).await.unwrap_err();
        assert_eq!(client::error(&refused).kind(), basalt_blockstore::ErrorKind::TooLarge, "{refused:?}");
        // A batch of deletes of "/a", again and again: two bytes of keys each.
        let delete = BatchOperation { key: "/a".into(), operation: Some(Operation::Delete(true)) };
        let chunk = BatchRequest { operations: vec![delete; 200_000], commit: false };
        let endless = tokio_stream::iter(std::iter::repeat_n(chunk, 200));
        let refused = data.batch(endless).await.unwrap_err();
        assert!(refused.message().contains("batch_memory_bytes"), "{refused:?}");
    });
    let grew = most.grew("40 million operations in a batch");
    assert!(grew < (64 << 20) + BESIDE, "{} MiB", grew >> 20);
    honest.was_served();
}

#[test]
fn memory_comes_back_when_the_clients_are_gone() {
    let sandbox = Sandbox::with_node();
    let agent = agent(&sandbox, &[]);
    let honest = Honest::begin(&sandbox);
    let whole = message(&vec![7; 1 << 20]);
    let mut highest = Vec::new();
    for _ in 0..5 {
        let mut held = Vec::new();
        for _ in 0..20 {
            let mut wire = Wire::greeted(&data_socket(&sandbox), &[]);
            let stream = wire.begin("/basalt.v1.Datastore/Put", 0).unwrap();
            for part in whole[..whole.len() - 1].chunks(1 << 14) {
                wire.data(stream, part).unwrap();
            }
            held.push(wire);
        }
        honest.goes_on(50);
        highest.push(resident_bytes(&agent));
        // Slow, but honest in the end.
        let mut last = held.pop().unwrap();
        last.send(&frame(DATA, END_STREAM, 3, &whole[whole.len() - 1..])).unwrap();
        last.until_answered(3).unwrap();
    }
    assert!(highest[0] > 20 << 20, "nothing was under way: {highest:?}");
    println!("five times 20 MiB of requests under way: {:?} MiB", highest.iter().map(|b| b >> 20).collect::<Vec<_>>());
    // What one round took serves the next one; the allocator may keep as much again.
    assert!(highest[4] < highest[0] + (40 << 20), "{highest:?}");
    honest.was_served();
}
