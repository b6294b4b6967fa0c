//! What the agent shows over HTTP.

use std::net::{SocketAddr, TcpListener};

use crate::sandbox::{Sandbox, block, car, eventually, http};

/// An address that nobody listens on just now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn metrics_and_health_are_on_loopback() {
    let sandbox = Sandbox::with_node();
    let address = free_address();
    let _agent = sandbox.agent(&["--http-listen", &address.to_string()]);
    let file = sandbox.write("blocks.car", car(&(0..9).map(block).collect::<Vec<_>>()));
    sandbox.basalt(&["import", "car", file.to_str().unwrap()]).ok();

    let health = eventually("HTTP answers", || http(address, "/healthz"));
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let ready = http(address, "/readyz").unwrap();
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let metrics = http(address, "/metrics").unwrap();
    for part in [
        "basalt_blocks{shard=\"0\"} 9\n",
        "basalt_state{state=\"serving\"} 1\n",
        "process_resident_memory_bytes ",
        "basalt_requests_total{service=\"Admin\",method=\"ImportBlocks\",outcome=\"ok\"} 2\n",
    ] {
        assert!(metrics.contains(part), "{part} is not in {metrics}");
    }
}

#[test]
fn a_node_that_a_migration_fills_is_not_ready_and_says_why() {
    let sandbox = Sandbox::with_node();
    basalt_node::set_state(&sandbox.node(), basalt_node::State::Migrating).unwrap();
    let address = free_address();
    let _agent = sandbox.agent(&["--http-listen", &address.to_string()]);
    let ready = eventually("HTTP answers", || http(address, "/readyz"));
    assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("the node is migrating\n"), "{ready}");
    assert!(http(address, "/healthz").unwrap().starts_with("HTTP/1.1 200"));
    let page = sandbox.basalt(&["status"]).ok().out;
    assert!(page.contains("migrating") && page.contains("basalt-migrate"), "{page}");
}

#[test]
fn an_address_in_use_ends_the_agent_and_lets_go_of_the_node() {
    let sandbox = Sandbox::with_node();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    sandbox.basalt(&["agent", "--http-listen", &address]).fails(1, &[&address, "[http] listen"]);
    let _agent = sandbox.agent(&[]);
}
