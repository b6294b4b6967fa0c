//! The fast lane: that it answers as gRPC does, in any order, and that whoever breaks its rules harms only himself.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod support;

use std::{
    io::{Read, Write},
    net::Shutdown,
    time::Duration,
};

use basalt_blockstore::ErrorKind;
use basalt_fuzz::{
    hold, hostile,
    proptest::{prelude::*, sample::select},
};
use basalt_node::lane::{
    FEATURE,
    frame::{Asked, FLAG_COMMIT, FLAG_GIVE_UP, FLAG_TTL, Head, PREFACE, outcome_number},
};
use basalt_proto::v1;
use prost::Message;
use support::{
    Served, block, get,
    lane::{Lane, frame, operation},
    put, until,
};

fn number(kind: ErrorKind) -> u8 {
    outcome_number(Err(kind))
}

fn open(served: &Served) -> Lane {
    Lane::open(&served.node.sockets().unwrap().data)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_show_the_same_node() {
    let served = Served::start("");
    let mut grpc = served.data().await;
    let mut lane = open(&served);
    let (_, name) = block(b"by the lane");
    assert_eq!(lane.ask(Asked::Put, &name, b"by the lane"), Ok(vec![]));
    assert_eq!(grpc.get(get(&name)).await.unwrap().into_inner().value, b"by the lane"[..]);
    grpc.put(put("/local/a", b"by gRPC")).await.unwrap();
    assert_eq!(lane.ask(Asked::Get, "/local/a", b""), Ok(b"by gRPC".to_vec()));
    assert_eq!(lane.ask(Asked::Has, &name, b""), Ok(vec![1]));
    assert_eq!(lane.ask(Asked::Has, "/nothing", b""), Ok(vec![0]));
    assert_eq!(lane.ask(Asked::GetSize, "/local/a", b""), Ok(7u64.to_le_bytes().to_vec()));
    assert_eq!(lane.ask(Asked::GetSize, "/nothing", b""), Err(number(ErrorKind::NotFound)));
    let keys = [&8u16.to_le_bytes()[..], b"/local/a", &8u16.to_le_bytes(), b"/nothing"].concat();
    let sizes = [7u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
    assert_eq!(lane.ask(Asked::GetSizes, "", &keys), Ok(sizes));
    assert_eq!(lane.ask(Asked::Delete, &name, b""), Ok(vec![]));
    assert_eq!(lane.ask(Asked::Get, &name, b""), Err(number(ErrorKind::NotFound)));
    // It stands in `status`, and its calls are counted as what they are.
    assert!(
        served.node.clients().list().iter().any(|client| client.introduction.as_ref().unwrap().name == "lane test")
    );
    let gets = served.node.calls().snapshot().into_iter().find(|stats| stats.method == "Get").unwrap();
    assert_eq!(gets.outcomes, [("ok", 2), ("NotFound", 1)]);
}

#[test]
fn errors_are_those_of_grpc() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = runtime.block_on(async { Served::start("[limits]\nvalue_bytes_max = \"4 MiB\"") });
    let mut lane = open(&served);
    assert_eq!(lane.ask(Asked::Put, "", b"x"), Err(number(ErrorKind::InvalidKey)));
    assert_eq!(lane.ask(Asked::Get, "/a\0b", b""), Err(number(ErrorKind::InvalidKey)));
    assert_eq!(lane.ask(Asked::Put, "/big", &vec![0; (4 << 20) + 1]), Err(number(ErrorKind::TooLarge)));
    let (_, name) = block(b"no ttl for blocks");
    lane.send(Asked::Put, FLAG_TTL, 9, &name, &[&60_000u64.to_le_bytes()[..], b"no ttl for blocks"].concat());
    assert_eq!(lane.receive().unwrap().outcome, number(ErrorKind::Unsupported));
    lane.send(Asked::Put, FLAG_TTL, 10, "/ttl", &[&60_000u64.to_le_bytes()[..], b"v"].concat());
    assert_eq!(lane.receive().unwrap().outcome, 0);
    assert_eq!(lane.ask(Asked::Get, "/ttl", b""), Ok(b"v".to_vec()));
}

#[test]
fn a_batch_is_applied_as_a_whole_or_not_at_all() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = runtime.block_on(async { Served::start("") });
    let mut lane = open(&served);
    let (_, name) = block(b"in a batch");
    let batch =
        |lane: &mut Lane, number, flags, ops: &[Vec<u8>]| lane.send(Asked::Batch, flags, number, "", &ops.concat());
    lane.ask(Asked::Put, "/gone", b"x").unwrap();
    // Two at a time, part by part, with other requests between.
    batch(&mut lane, 1, 0, &[operation(&name, Some(b"in a batch"))]);
    batch(&mut lane, 2, 0, &[operation("/given-up", Some(b"x"))]);
    assert_eq!(lane.ask(Asked::Has, &name, b""), Ok(vec![0]));
    batch(&mut lane, 1, FLAG_COMMIT, &[operation("/gone", None), operation("/a", Some(b""))]);
    assert_eq!(lane.receive().map(|answer| (answer.number, answer.outcome)), Some((1, 0)));
    batch(&mut lane, 2, FLAG_GIVE_UP, &[]);
    assert_eq!(lane.receive().map(|answer| (answer.number, answer.outcome)), Some((2, 0)));
    for (key, there) in [(name.as_str(), 1), ("/a", 1), ("/gone", 0), ("/given-up", 0)] {
        assert_eq!(lane.ask(Asked::Has, key, b""), Ok(vec![there]), "{key}");
    }
    // One bad operation, and nothing of it is there.
    batch(&mut lane, 3, 0, &[operation("/b", Some(b"x")), operation("", Some(b"x"))]);
    batch(&mut lane, 3, FLAG_COMMIT, &[operation("/c", Some(b"x"))]);
    assert_eq!(lane.receive().unwrap().outcome, number(ErrorKind::InvalidKey));
    assert_eq!(lane.ask(Asked::Has, "/b", b""), Ok(vec![0]));
    // Nor of one whose lane ends.
    batch(&mut lane, 4, 0, &[operation("/b", Some(b"x"))]);
    drop(lane);
    assert_eq!(open(&served).ask(Asked::Has, "/b", b""), Ok(vec![0]));
}

#[test]
fn a_delete_that_is_asked_for_again_spares_what_was_put_since() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = runtime.block_on(async { Served::start("") });
    let socket = served.node.sockets().unwrap().data;
    let open_as = |client: u8| {
        let mut lane = Lane::connect(&socket);
        lane.stream.write_all(&PREFACE).unwrap();
        lane.hello(v1::HandshakeRequest { client_id: vec![client; 16].into(), ..Default::default() });
        assert_eq!(lane.receive().unwrap().outcome, 0);
        lane
    };
    let delete = |lane: &mut Lane, number| {
        lane.send(Asked::Delete, 0, number, "/a", b"");
        assert_eq!(lane.receive().map(|answer| (answer.number, answer.outcome)), Some((number, 0)));
    };
    let mut lane = open_as(1);
    lane.ask(Asked::Put, "/a", b"old").unwrap();
    delete(&mut lane, 1000);
    drop(lane);
    let mut lane = open_as(1);
    lane.ask(Asked::Put, "/a", b"new").unwrap();
    delete(&mut lane, 1000);
    assert_eq!(lane.ask(Asked::Get, "/a", b""), Ok(b"new".to_vec()));
    // Another number, or another client, means another Delete.
    delete(&mut lane, 1001);
    assert_eq!(lane.ask(Asked::Has, "/a", b""), Ok(vec![0]));
    lane.ask(Asked::Put, "/a", b"newer").unwrap();
    delete(&mut open_as(2), 1000);
    assert_eq!(lane.ask(Asked::Has, "/a", b""), Ok(vec![0]));
}

#[test]
fn many_requests_are_under_way_on_one_lane() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = runtime.block_on(async { Served::start("") });
    let mut lane = open(&served);
    let mut writer = Lane { stream: lane.stream.try_clone().unwrap() };
    // More than may be under way: the node reads on as answers go.
    let send = std::thread::spawn(move || {
        for number in 1..=3000u64 {
            let key = format!("/many/{}", number % 500);
            match number % 3 {
                0 => writer.send(Asked::Get, 0, number, &key, b""),
                _ => writer.send(Asked::Put, 0, number, &key, key.as_bytes()),
            }
        }
    });
    let mut answered = std::collections::HashSet::new();
    for _ in 0..3000 {
        let answer = lane.receive().unwrap();
        let key = format!("/many/{}", answer.number % 500);
        match (answer.number % 3, answer.outcome) {
            (0, 0) => assert_eq!(answer.payload, key.as_bytes()),
            (0, outcome) => assert_eq!(outcome, number(ErrorKind::NotFound)),
            (_, outcome) => assert_eq!(outcome, 0),
        }
        assert!(answered.insert(answer.number), "answered twice: {}", answer.number);
    }
    send.join().unwrap();
    let (_, large) = block(&vec![5; 1 << 20]);
    lane.ask(Asked::Put, &large, &vec![5; 1 << 20]).unwrap();
    assert_eq!(lane.ask(Asked::Get, &large, b"").unwrap(), vec![5; 1 << 20]);
}

#[test]
fn who_breaks_the_rules_is_told_and_closed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = runtime.block_on(async { Served::start("") });
    let socket = served.node.sockets().unwrap().data;
    let refused = |bytes: &[u8], why: &str| {
        let mut lane = open(&served);
        lane.stream.write_all(bytes).unwrap();
        let answer = lane.receive().unwrap();
        assert_eq!((answer.number, answer.outcome), (0, number(ErrorKind::InvalidValue)), "{answer:?}");
        let text = String::from_utf8(answer.payload).unwrap();
        assert!(text.contains(why), "{text}");
        assert_eq!(lane.receive(), None);
    };
    let head = |what, bytes, key_bytes, number| Head { bytes, what, flags: 0, key_bytes, number }.encode();
    refused(&head(99, 0, 0, 1), "asks for 99");
    refused(&head(2, 0, 0, 0), "number 0");
    refused(&head(2, 1, 2, 1), "has a key of 2");
    refused(&head(6, u32::MAX, 2, 1), "larger than");
    refused(&frame(Asked::Get, 0, 1, "/a", b"more"), "no use for");
    refused(&frame(Asked::Put, FLAG_TTL, 1, "/a", b"short"), "no room for its time to live");
    refused(&frame(Asked::GetSizes, 0, 1, "", b"\x09\x00/a"), "end in the middle");
    refused(&frame(Asked::Batch, 0, 1, "/a", b""), "a key of its own");
    refused(&frame(Asked::Batch, 0, 1, "", b"\x01\x00\xff\xff\xff\xff\xff\xff"), "longer than its frame");
    refused(&frame(Asked::Batch, 0, 1, "", &operation("/a", Some(b""))[..5]), "in the middle of an operation");
    let many: Vec<u8> = (1..=65).flat_map(|n| frame(Asked::Batch, 0, n, "", b"")).collect();
    refused(&many, "more than 64 batches");
    // Before the handshake nothing is answered but that.
    let mut lane = Lane::connect(&socket);
    lane.stream.write_all(&PREFACE).unwrap();
    lane.send(Asked::Get, 0, 1, "/a", b"");
    assert!(String::from_utf8(lane.receive().unwrap().payload).unwrap().contains("no Hello"));
    // A client of another node is refused by name.
    let mut lane = Lane::connect(&socket);
    lane.stream.write_all(&PREFACE).unwrap();
    lane.hello(v1::HandshakeRequest { expect_node_id: "another".into(), ..Default::default() });
    let answer = lane.receive().unwrap();
    assert_eq!(answer.outcome, number(ErrorKind::Format));
    assert!(String::from_utf8(answer.payload).unwrap().contains("another"));
    assert_eq!(lane.receive(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_serves_both_however_slowly_a_client_begins() {
    let served = Served::start("");
    let socket = served.node.sockets().unwrap().data;
    let mut slow = Lane::connect(&socket);
    for byte in PREFACE {
        slow.stream.write_all(&[byte]).unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    slow.hello(v1::HandshakeRequest::default());
    assert_eq!(slow.receive().unwrap().outcome, 0);
    served.data().await.put(put("/a", b"x")).await.unwrap();
    assert_eq!(slow.ask(Asked::Get, "/a", b""), Ok(b"x".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_says_nothing_is_closed_in_time() {
    let served = Served::start("[sockets]\nhandshake_deadline_ms = 100");
    for said in [&PREFACE[..3], &PREFACE[..]] {
        let mut lane = Lane::connect(&served.node.sockets().unwrap().data);
        lane.stream.write_all(said).unwrap();
        assert_eq!(lane.stream.read(&mut [0; 8]).unwrap_or(0), 0);
    }
    until("nobody is connected", async || served.node.clients().list().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_lane_left_has_grpc() {
    let served = Served::start("[sockets]\nlanes_max = 1");
    let first = open(&served);
    let mut second = Lane::connect(&served.node.sockets().unwrap().data);
    second.stream.write_all(&PREFACE).unwrap();
    assert_eq!(second.receive(), None);
    served.data().await.put(put("/a", b"x")).await.unwrap();
    drop(first);
    until("the lane is free again", async || served.node.clients().list().is_empty()).await;
    assert_eq!(open(&served).ask(Asked::Get, "/a", b""), Ok(b"x".to_vec()));
    // Where there are none at all the handshake says so, and what looks like one is no HTTP/2 either.
    let without = Served::start("[sockets]\nlanes_max = 0");
    let features = |served: &Served| served.node.shake_hands(&v1::HandshakeRequest::default()).unwrap().features;
    assert_eq!((features(&served), features(&without)), (vec![FEATURE.to_owned()], vec![]));
    let mut refused = Lane::connect(&without.node.sockets().unwrap().data);
    refused.stream.write_all(&PREFACE).unwrap();
    // It may be closed by then.
    let _ = refused.stream.write_all(&frame(Asked::Hello, 0, 9, "", &v1::HandshakeRequest::default().encode_to_vec()));
    assert!(!matches!(refused.receive(), Some(answer) if answer.number == 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_is_cut_off_and_others_go_on() {
    let served = Served::start("[sockets]\nstall_deadline_ms = 200");
    let value = vec![7; 1 << 20];
    let (_, name) = block(&value);
    served.data().await.put(put(&name, &value)).await.unwrap();
    let mut stalled = open(&served);
    for number in 1..=8 {
        stalled.send(Asked::Get, 0, number, &name, b"");
    }
    assert_eq!(open(&served).ask(Asked::Get, &name, b"").unwrap().len(), 1 << 20);
    until("it is gone", async || served.node.clients().list().is_empty()).await;
    assert_eq!(served.node.clients().held_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_is_answered_while_the_node_closes() {
    let mut served = Served::start("");
    let mut lane = open(&served);
    for number in 1..=100u64 {
        lane.send(Asked::Put, 0, number, &format!("/closing/{number}"), b"x");
    }
    lane.send(Asked::Has, 0, 1000, "/a", b"");
    let mut done = 0;
    let mut is_done = |answer: support::lane::Answer| done += usize::from(answer.number <= 100 && answer.outcome == 0);
    // Requests are read in order: once this one is answered, the puts are under way.
    loop {
        match lane.receive().unwrap() {
            answer if answer.number == 1000 => break,
            answer => is_done(answer),
        }
    }
    served.stop().await;
    while let Some(answer) = lane.receive() {
        is_done(answer);
    }
    assert_eq!(done, 100, "each has its answer");
    let again = basalt_node::Node::open(served.path(), support::config(""), basalt_node::Host::Agent).unwrap();
    let there = (1..=100)
        .filter(|n| again.datastore().has(&basalt_datastore::Key::new(&format!("/closing/{n}")).unwrap()).unwrap());
    assert_eq!(there.count(), 100);
    again.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_nobody_uses_does_not_hold_the_node_up() {
    let mut served = Served::start("[node]\ndrain_deadline_ms = 60000");
    let mut lane = open(&served);
    let begin = std::time::Instant::now();
    served.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert_eq!(lane.receive(), None);
}

#[test]
fn hostile_frames_harm_nobody_else() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = runtime.block_on(async { Served::start("[node]\ndurability = \"relaxed\"") });
    let socket = served.node.sockets().unwrap().data;
    let honest = std::cell::RefCell::new(open(&served));
    let victims: Vec<(String, Vec<u8>)> = (0..20u8).map(|n| (format!("/held/{n}"), vec![n; 1000])).collect();
    for (key, value) in &victims {
        honest.borrow_mut().ask(Asked::Put, key, value).unwrap();
    }
    let (_, name) = block(b"some block");
    let sizes = [&9u16.to_le_bytes()[..], b"/fuzz/key"].concat();
    let ops = [operation(&name, Some(b"some block")), operation("/fuzz/a", None)].concat();
    let hello = v1::HandshakeRequest { client: "c".into(), protocol_max: 3, ..Default::default() }.encode_to_vec();
    let sane = vec![
        frame(Asked::Get, 0, 1, &name, b""),
        frame(Asked::Has, 0, 2, "/fuzz/key", b""),
        frame(Asked::GetSize, 0, 3, "/fuzz/key", b""),
        frame(Asked::GetSizes, 0, 4, "", &sizes),
        frame(Asked::Put, 0, 5, "/fuzz/key", b"value"),
        frame(Asked::Put, FLAG_TTL, 6, "/fuzz/key", b"\x60\xea\0\0\0\0\0\0value"),
        frame(Asked::Delete, 0, 7, "/fuzz/key", b""),
        frame(Asked::Batch, 0, 8, "", &ops),
        frame(Asked::Batch, FLAG_COMMIT, 8, "", &ops),
        frame(Asked::Hello, 0, 9, "", &hello),
    ];
    let says_hello = select(vec![true, true, true, false]);
    let frames = prop::collection::vec(hostile(select(sane)), 1..5);
    hold("frames of the lane", 600, (says_hello, frames), |(says_hello, frames)| {
        let mut lane = if says_hello { Lane::open(&socket) } else { Lane::connect(&socket) };
        if !says_hello {
            let _ = lane.stream.write_all(&PREFACE);
        }
        for frame in &frames {
            // It may be closed by then.
            if lane.stream.write_all(frame).is_err() {
                break;
            }
        }
        let _ = lane.stream.shutdown(Shutdown::Write);
        while lane.receive().is_some() {}
        let mut rest = Vec::new();
        // It ends: a frame that never comes whole does not hold the node.
        let _ = lane.stream.read_to_end(&mut rest);
        prop_assert_eq!(honest.borrow_mut().ask(Asked::Has, "/held/0", b""), Ok(vec![1]));
        Ok(())
    });
    for (key, value) in &victims {
        assert_eq!(honest.borrow_mut().ask(Asked::Get, key, b"").unwrap(), *value);
    }
    runtime.block_on(until("only the honest one is left", async || served.node.clients().list().len() == 1));
    assert_eq!(served.node.clients().held_bytes(), 0);
}
