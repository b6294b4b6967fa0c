//! The listener of metrics and health.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    honest::{Honest, Most, open_files},
    sandbox::{Sandbox, eventually, http},
};

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn health_is_answered_under_garbage_and_half_requests() {
    let sandbox = Sandbox::with_node();
    let address = free_address();
    let agent = sandbox.agent_with(&[], &[("BASALT_HTTP_LISTEN", &address.to_string())]);
    let honest = Honest::begin(&sandbox);
    let before = open_files(&agent);
    let most = Most::watch(&agent);
    let mut held = Vec::new();
    for n in 0..1000u32 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let said: Vec<u8> = match n % 5 {
            0 => Vec::new(),
            1 => b"GET /metr".to_vec(),
            2 => (0..2000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
            // A header that never ends.
            3 => [&b"GET /healthz HTTP/1.1\r\nx: "[..], &[b'a'; 60_000]].concat(),
            // Many requests, no answer read.
            _ => b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(500),
        };
        let _ = stream.write_all(&said);
        held.push(stream);
        if n % 100 == 99 {
            let begin = Instant::now();
            let health = http(address, "/healthz").unwrap();
            assert!(health.starts_with("HTTP/1.1 200"), "{health}");
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        }
    }
    // Those that made room are closed by their own tasks, in a moment.
    eventually("no more than 64 connections are kept", || (open_files(&agent) <= before + 80).then_some(()));
    let grew = most.grew("1,000 HTTP connections");
    assert!(grew < 50 << 20, "{} MiB", grew >> 20);
    assert!(http(address, "/metrics").unwrap().contains("basalt_blocks"));
    drop(held);
    eventually("all descriptors are back", || (open_files(&agent) <= before + 2).then_some(()));
    honest.was_served();
}

#[test]
fn what_a_client_says_of_itself_cant_break_the_metrics() {
    let sandbox = Sandbox::with_node();
    let address = free_address();
    let _agent = sandbox.agent_with(&[], &[("BASALT_HTTP_LISTEN", &address.to_string())]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let role = "\"} 1\nbasalt_blocks{shard=\"0\"} 666\n# ";
    let sockets = basalt_node::Config::default().sockets;
    let _client = runtime.block_on(basalt_node::client::data(&sandbox.node(), &sockets, "a\u{1b}[2Jb", role)).unwrap();
    let metrics = http(address, "/metrics").unwrap();
    assert!(!metrics.lines().any(|line| line == "basalt_blocks{shard=\"0\"} 666"), "{metrics}");
    // Nor the terminal of who looks, nor the log.
    let page = sandbox.basalt(&["status"]).ok();
    assert!(!page.out.contains('\u{1b}'), "{page:?}");
    assert!(!_agent.log().contains("\u{1b}[2J"), "{}", _agent.log());
    let mut rest = String::new();
    TcpStream::connect(address).unwrap().take(0).read_to_string(&mut rest).unwrap();
}
