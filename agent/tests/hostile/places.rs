//! Connections that take places and descriptors and give nothing.

use std::{
    io::Read,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use basalt_proto::v1::HandshakeRequest;
use prost::Message;

use crate::{
    honest::{Honest, Most, cpu_time, open_files},
    sandbox::{Sandbox, block, car, eventually},
    wire::{DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, Wire, call_headers, frame, message},
};

fn sockets(sandbox: &Sandbox) -> [PathBuf; 2] {
    ["run/data.sock", "run/admin.sock"].map(|name| sandbox.node().join(name))
}

/// A connection that stops somewhere before it has asked for anything.
fn half_open(path: &std::path::Path, how_far: usize) -> Wire {
    let mut wire = Wire::dial(path);
    let settings = frame(SETTINGS, 0, 0, &[]);
    let call = frame(HEADERS, END_HEADERS, 1, &call_headers("/basalt.v1.Datastore/Handshake"));
    let request = HandshakeRequest { client: "half".into(), ..Default::default() }.encode_to_vec();
    let body = frame(DATA, 0, 1, &message(&request));
    let said = match how_far % 6 {
        0 => Vec::new(),
        1 => PREFACE[..10].to_vec(),
        2 => PREFACE.to_vec(),
        3 => [PREFACE, &settings[..], &call[..7]].concat(),
        4 => [PREFACE, &settings[..], &call[..]].concat(),
        _ => [PREFACE, &settings[..], &call[..], &body[..body.len() - 3]].concat(),
    };
    let _ = wire.send(&said);
    wire
}

#[test]
fn half_open_connections_make_room_and_are_closed() {
    let sandbox = Sandbox::with_node();
    let agent = sandbox.agent(&["--set", "limits.connections_max=64", "--set", "sockets.handshake_deadline_ms=3000"]);
    let honest = Honest::begin(&sandbox);
    let before = open_files(&agent);
    let mut half: Vec<Wire> = Vec::new();
    for path in sockets(&sandbox) {
        // The admin socket has no handshake: half a call of any kind is a call. So what says least comes there.
        let kinds = if path.ends_with("data.sock") { 6 } else { 4 };
        half.extend((0..200).map(|n| half_open(&path, n % kinds)));
    }
    honest.goes_on(100);
    assert!(sandbox.status()["served"] == true, "a command line finds a place too");
    // Nobody closes them but the node.
    let closed = half.iter_mut().all(|wire| wire.is_closed_within(Duration::from_secs(20)));
    assert!(closed, "a half-open connection stays");
    // An honest client's own connections come and go.
    eventually("its descriptors are back", || (open_files(&agent) <= before + 2).then_some(()));
    honest.was_served();
}

#[test]
fn a_thousand_connections_cost_little_and_keep_nobody_out() {
    let sandbox = Sandbox::with_node();
    let agent = sandbox.agent(&[]);
    let honest = Honest::begin(&sandbox);
    let before = open_files(&agent);
    let most = Most::watch(&agent);
    let [data, admin] = sockets(&sandbox);
    // All at once: silent ones on both sockets, and as many that have shaken hands as the limit leaves.
    let silent: Vec<Wire> = (0..1000).flat_map(|n| [half_open(&data, n), half_open(&admin, n % 4)]).collect();
    honest.goes_on(100);
    let greeted: Vec<Wire> = (0..1000).map(|_| Wire::greeted(&data, &[])).collect();
    honest.goes_on(100);
    let grew = most.grew("2,000 silent connections, 1,000 that have shaken hands");
    assert!(grew < 200 << 20, "{} MiB", grew >> 20);
    drop((silent, greeted));
    eventually("all descriptors are back", || (open_files(&agent) <= before + 2).then_some(()));
    println!("{:?}", honest.was_served());
}

#[test]
fn connections_above_the_limit_are_refused_and_said_seldom() {
    let sandbox = Sandbox::with_node();
    let agent = sandbox.agent(&["--set", "limits.connections_max=8"]);
    let [data, _] = sockets(&sandbox);
    let greeted: Vec<Wire> = (0..8).map(|_| Wire::greeted(&data, &[])).collect();
    let begin = Instant::now();
    for _ in 0..500 {
        let mut refused = UnixStream::connect(&data).unwrap();
        refused.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert!(matches!(refused.read(&mut [0; 64]), Ok(0) | Err(_)));
    }
    let said = agent.log().matches("refused a connection").count();
    assert!(said >= 1 && said as u64 <= begin.elapsed().as_secs() + 2, "{said} lines");
    assert!(agent.log().contains("[limits] connections_max"), "{}", agent.log());
    drop(greeted);
    eventually("the places are free again", || {
        let clients = sandbox.status()["clients"].as_array().unwrap().clone();
        clients.iter().all(|client| client["name"] != "hostile").then_some(())
    });
    Honest::begin(&sandbox).was_served();
}

#[test]
fn without_descriptors_the_agent_goes_on_and_does_not_spin() {
    let sandbox = Sandbox::with_node();
    // Many segments, so that reads need descriptors.
    let blocks: Vec<_> = (0..400).map(block).collect();
    let file = sandbox.write("blocks.car", car(&blocks));
    sandbox.basalt(&["--node", sandbox.node().to_str().unwrap(), "import", "car", file.to_str().unwrap()]).ok();
    let agent = sandbox.agent_under("ulimit -n 160 && exec \"$0\" \"$@\"", &["agent"]);
    let honest = Honest::begin(&sandbox);
    let paths = sockets(&sandbox);
    let many: Vec<UnixStream> = (0..600).filter_map(|n| UnixStream::connect(&paths[n % 2]).ok()).collect();
    honest.goes_on(100);
    assert!(open_files(&agent) < 160, "descriptors are left for segments and the index");
    drop(many);
    let seen = honest.was_served();
    println!("{seen:?}");
    // Alone again it rests.
    eventually("the agent rests", || {
        let (begin, computed) = (Instant::now(), cpu_time(&agent));
        std::thread::sleep(Duration::from_millis(500));
        (cpu_time(&agent) - computed < begin.elapsed() / 10).then_some(())
    });
    let all = sandbox.basalt(&["verify", "--hash"]).ok();
    assert!(all.out.contains("400") || all.err.contains("400"), "{all:?}");
}

#[test]
fn a_full_table_of_descriptors_is_waited_out() {
    let sandbox = Sandbox::with_node();
    // So few that even a quarter each for the two sockets is more than there are, with what an open node has.
    let agent = sandbox.agent_under("ulimit -n 64 && exec \"$0\" \"$@\"", &["agent"]);
    let [data, admin] = sockets(&sandbox);
    let many: Vec<UnixStream> =
        (0..200).flat_map(|_| [&data, &admin]).filter_map(|path| UnixStream::connect(path).ok()).collect();
    let (begin, computed) = (Instant::now(), cpu_time(&agent));
    std::thread::sleep(Duration::from_secs(2));
    let spent = cpu_time(&agent) - computed;
    println!("64 descriptors, 400 connections: {spent:?} of processor time in {:?}", begin.elapsed());
    assert!(spent < begin.elapsed() / 2, "it spins: {spent:?} of processor time in {:?}", begin.elapsed());
    drop(many);
    Honest::begin(&sandbox).was_served();
}

#[test]
fn a_client_that_answers_no_ping_is_cut_off() {
    let sandbox = Sandbox::with_node();
    let agent = sandbox.agent(&["--set", "sockets.keepalive_ms=300"]);
    let honest = Honest::begin(&sandbox);
    let [data, _] = sockets(&sandbox);
    let mut silent = Wire::greeted(&data, &[]);
    assert!(silent.is_closed_within(Duration::from_secs(10)));
    assert_eq!(agent.log().matches("panicked").count(), 0);
    honest.was_served();
}

#[test]
fn a_client_that_dies_leaves_nothing_behind() {
    let sandbox = Sandbox::with_node();
    let agent = sandbox.agent(&[]);
    let [data, _] = sockets(&sandbox);
    let honest = Honest::begin(&sandbox);
    let before = open_files(&agent);
    for kind in ["Batch", "Put", "Query", "Get"] {
        let path = format!("/basalt.v1.Datastore/{kind}");
        // Killed with SIGKILL in the middle of a call, as the kernel then closes its socket.
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut wire = Wire::greeted(&data, &[]);
            let stream = wire.begin(&path, 0).unwrap();
            let part = [&message(&[0; 60_000])[..30_000], &[0; 10][..]].concat();
            wire.send(&frame(DATA, 0, stream, &part[..16_000])).unwrap();
            clients.push(wire);
        }
        let socket: std::os::fd::OwnedFd = clients.remove(0).socket.into();
        let mut child = std::process::Command::new("sleep").arg("60").stdin(Stdio::from(socket)).spawn().unwrap();
        drop(clients);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    eventually("all descriptors are back", || (open_files(&agent) <= before + 2).then_some(()));
    honest.was_served();
}
