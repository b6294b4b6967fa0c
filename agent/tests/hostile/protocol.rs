//! HTTP/2 used against its server, and plain garbage.

use std::path::PathBuf;

use basalt_proto::v1::{HandshakeRequest, PutRequest};
use prost::Message;

use crate::{
    honest::{Honest, Most, open_files},
    sandbox::{Sandbox, eventually},
    wire::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, Wire, call_headers, frame, header, message, setting,
    },
};

/// More memory than any of these may cost the agent.
const MEMORY: u64 = 100 << 20;
/// What the agent may have on its way to and from clients; four of the largest messages are the least.
const TRANSFER: u64 = 136 << 20;

fn sockets(sandbox: &Sandbox) -> [PathBuf; 2] {
    ["run/data.sock", "run/admin.sock"].map(|name| sandbox.node().join(name))
}

/// Numbers from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// What a client might have said, and then something else.
fn garbage(random: &mut Random) -> Vec<u8> {
    let request = HandshakeRequest { client: "x".into(), ..HandshakeRequest::default() }.encode_to_vec();
    let put = PutRequest { key: "/garbage".into(), value: random.bytes(40).into(), ttl_ms: 0 }.encode_to_vec();
    let mut sane = vec![
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &setting(4, 1 << 20)),
        frame(HEADERS, END_HEADERS, 1, &call_headers("/basalt.v1.Datastore/Handshake")),
        frame(DATA, END_STREAM, 1, &message(&request)),
        frame(WINDOW_UPDATE, 0, 0, &1000u32.to_be_bytes()),
        frame(HEADERS, END_HEADERS, 3, &call_headers("/basalt.v1.Datastore/Put")),
        frame(DATA, END_STREAM, 3, &message(&put)),
        frame(PING, 0, 0, &[1; 8]),
    ];
    match random.below(6) {
        0 => {
            let len = random.below(3000);
            random.bytes(len)
        }
        1 => {
            let len = random.below(3000);
            [PREFACE.to_vec(), random.bytes(len)].concat()
        }
        // Frames of any kind with any payload.
        2 => {
            for _ in 0..random.below(30) {
                let len = random.below(64);
                let (kind, flags, stream) = (random.below(12) as u8, random.next() as u8, random.below(8) as u32);
                let payload = random.bytes(len);
                sane.insert(2, frame(kind, flags, stream, &payload));
            }
            sane.concat()
        }
        // Sane frames in another order, twice, or not at all.
        3 => {
            for _ in 0..4 {
                let (from, to) = (random.below(8) as usize, random.below(8) as usize);
                sane[from] = sane[to].clone();
            }
            sane.concat()
        }
        // Flipped bits, behind the preface.
        4 => {
            let mut bytes = sane.concat();
            for _ in 0..=random.below(4) {
                let at = 24 + random.below(bytes.len() as u64 - 24) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
            bytes
        }
        // Cut off.
        _ => {
            let mut bytes = sane.concat();
            bytes.truncate(random.below(bytes.len() as u64) as usize);
            bytes
        }
    }
}

#[test]
fn garbage_harms_nobody() {
    let sandbox = Sandbox::with_node();
    let mut agent = sandbox.agent(&["--set", "sockets.handshake_deadline_ms=1000"]);
    let honest = Honest::begin(&sandbox);
    let before = open_files(&agent);
    let most = Most::watch(&agent);
    let seed = std::env::var("SEED").ok().and_then(|seed| {
        let seed = seed.trim();
        seed.strip_prefix("0x").map_or_else(|| seed.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
    });
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20);
    let connections: u64 = std::env::var("GARBAGE").ok().and_then(|count| count.parse().ok()).unwrap_or(600);
    println!("SEED={seed:#x} replays it");
    let mut random = Random(seed);
    let mut held = Vec::new();
    for n in 0..connections {
        let mut wire = Wire::dial(&sockets(&sandbox)[random.below(2) as usize]);
        let _ = wire.send(&garbage(&mut random));
        if n % 4 == 0 {
            held.push(wire);
        }
        held.drain(..held.len().saturating_sub(100));
    }
    println!("{connections} cases: connections with garbage");
    honest.goes_on(100);
    let grew = most.grew("connections with garbage");
    assert!(grew < MEMORY, "{} MiB", grew >> 20);
    drop(held);
    eventually("all descriptors are back", || (open_files(&agent) <= before + 2).then_some(()));
    honest.was_served();
    assert!(agent.is_running());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

/// Sends `flood` again and again on some connections, without reading; how many bytes of it the node took.
fn flooded(
    what: &str,
    connections: usize,
    times: usize,
    mut flood: impl FnMut(&mut Wire, usize) -> std::io::Result<()>,
) {
    let sandbox = Sandbox::with_node();
    let agent = sandbox.agent(&["--set", &format!("limits.transfer_memory_bytes={TRANSFER}")]);
    let honest = Honest::begin(&sandbox);
    let before = open_files(&agent);
    let most = Most::watch(&agent);
    let [data, _] = sockets(&sandbox);
    let mut ended = 0;
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut wire = Wire::greeted(&data, &[]);
        if (0..times).any(|n| flood(&mut wire, n).is_err()) {
            ended += 1;
        }
        held.push(wire);
    }
    honest.goes_on(50);
    println!("{what}: {ended} of {connections} connections were ended or not read to the end");
    let grew = most.grew(what);
    assert!(grew < TRANSFER + MEMORY, "{} MiB", grew >> 20);
    drop(held);
    eventually("all descriptors are back", || (open_files(&agent) <= before + 2).then_some(()));
    println!("{:?}", honest.was_served());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[test]
fn a_flood_of_resets_is_bounded() {
    let mut stream = 3;
    flooded("rapid reset", 10, 5_000, |wire, n| {
        stream = 3 + 2 * n as u32;
        let call = frame(HEADERS, END_HEADERS, stream, &call_headers("/basalt.v1.Datastore/Has"));
        wire.send(&[call, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat())
    });
}

#[test]
fn a_flood_of_continuations_is_bounded() {
    flooded("continuation flood", 10, 5_000, |wire, n| match n {
        0 => wire.send(&frame(HEADERS, 0, 3, &call_headers("/basalt.v1.Datastore/Has"))),
        _ => {
            let mut more = Vec::new();
            header(&format!("x-{n}"), &[b'a'; 1000], &mut more);
            wire.send(&frame(CONTINUATION, 0, 3, &more))
        }
    });
}

#[test]
fn a_flood_of_empty_continuations_is_bounded() {
    flooded("empty continuation flood", 10, 20_000, |wire, n| match n {
        0 => wire.send(&frame(HEADERS, 0, 3, &call_headers("/basalt.v1.Datastore/Has"))),
        _ => wire.send(&frame(CONTINUATION, 0, 3, &[])),
    });
}

#[test]
fn a_flood_of_settings_is_bounded() {
    flooded("settings flood", 10, 20_000, |wire, n| wire.send(&frame(SETTINGS, 0, 0, &setting(4, n as u32))));
}

#[test]
fn a_flood_of_pings_is_bounded() {
    flooded("ping flood", 10, 50_000, |wire, n| wire.send(&frame(PING, 0, 0, &(n as u64).to_be_bytes())));
}

#[test]
fn a_flood_of_empty_data_is_bounded() {
    flooded("empty data flood", 10, 20_000, |wire, n| match n {
        0 => wire.send(&frame(HEADERS, END_HEADERS, 3, &call_headers("/basalt.v1.Datastore/Put"))),
        _ => wire.send(&frame(DATA, 0, 3, &[])),
    });
}

#[test]
fn large_headers_are_bounded() {
    // As many calls at a time as a connection may have, each with as many headers as a call may have.
    flooded("calls with large headers that never end", 20, 1_000, |wire, n| {
        let mut headers = call_headers("/basalt.v1.Datastore/Put");
        for i in 0..7 {
            header(&format!("x-{i}"), &[b'a'; 900], &mut headers);
        }
        wire.send(&frame(HEADERS, END_HEADERS, 3 + 2 * n as u32, &headers))
    });
}

#[test]
fn goaway_and_silence_end_well() {
    flooded("goaway", 50, 1, |wire, _| wire.send(&frame(GOAWAY, 0, 0, &[0; 8])));
}
