//! The scrub as an operator steers it, and what it found, everywhere that an operator looks.

use std::net::TcpListener;

use crate::sandbox::{Sandbox, block, car, cid, eventually, http};

#[test]
fn what_a_pass_finds_is_named_by_every_command_and_metric() {
    let sandbox = Sandbox::with_node();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _agent = sandbox.agent(&["--http-listen", &address.to_string()]);
    let blocks: Vec<_> = (0..30).map(block).collect();
    let source = sandbox.write("in.car", car(&blocks));
    sandbox.basalt(&["import", "car", source.to_str().unwrap()]).ok();
    let name = cid(&blocks[7].0);
    assert_eq!(sandbox.basalt(&["verify", "--quarantined"]).ok().out, "0 quarantined\n");
    sandbox.rot(&blocks[7].1);

    sandbox.basalt(&["scrub", "--rate", "1GiB"]).fails(2, &["go with start"]);
    sandbox.basalt(&["scrub", "start", "--rate", "fast"]).fails(2, &["64MiB"]);
    sandbox.basalt(&["scrub", "start", "--rate", "1GiB"]).ok();
    let scrub = eventually("the pass ends", || {
        let scrub = sandbox.basalt(&["scrub", "--json"]).json();
        (scrub["state"] == "idle").then_some(scrub)
    });
    assert_eq!((&scrub["stores"][0]["damaged"], &scrub["stores"][0]["name"]), (&1.into(), &"shard 0".into()));

    let said = sandbox.basalt(&["verify", "--quarantined"]).fails(1, &["1 damaged", "ipfs block get"]);
    assert!(said.out.contains(&name) && said.out.contains("checksum"), "{said:?}");
    let said = sandbox.basalt(&["verify"]).fails(1, &["1 damaged"]);
    assert!(said.out.contains(&name), "{said:?}");
    let status = sandbox.basalt(&["status"]).ok().out;
    for part in ["\nscrub        idle, last through ", "\nQUARANTINED\n", &name, "warning: damaged"] {
        assert!(status.contains(part), "{part:?} is not in {status}");
    }
    let metrics = eventually("HTTP answers", || http(address, "/metrics"));
    for part in [
        "basalt_quarantined{store=\"shard 0\"} 1\n",
        &format!("basalt_quarantined_block{{cid=\"{name}\",store=\"shard 0\"}} 1\n"),
        "basalt_scrub_state{state=\"idle\"} 1\n",
        "basalt_scrub_damaged{store=\"shard 0\"} 1\n",
    ] {
        assert!(metrics.contains(part), "{part} is not in {metrics}");
    }

    // An import is a healing put: each of its blocks is hashed.
    sandbox.basalt(&["import", "car", source.to_str().unwrap(), "--restart"]).ok();
    sandbox.basalt(&["verify", "--hash"]).ok();
    assert_eq!(sandbox.basalt(&["verify", "--quarantined"]).ok().out, "0 quarantined\n");
}

#[test]
fn a_pause_holds_over_a_restart() {
    let sandbox = Sandbox::with_node();
    let mut agent = sandbox.agent(&[]);
    sandbox.basalt(&["scrub", "pause"]).ok();
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    agent.ended();
    sandbox.basalt(&["scrub"]).fails(3, &[]);
    let _agent = sandbox.agent(&[]);
    assert!(sandbox.basalt(&["scrub"]).ok().out.contains("scrub      paused"));
    assert!(sandbox.basalt(&["scrub", "resume"]).ok().out.contains("scrub      idle"));
}
