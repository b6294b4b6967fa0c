//! Commands on a node that nobody serves open it themselves, and leave it as a closed one.

use std::{fs, path::Path};

use crate::sandbox::{Sandbox, block, car, cid, eventually};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn blocks_go_in_and_out_without_an_agent() {
    let sandbox = Sandbox::with_node();
    let blocks: Vec<_> = (0..120).map(block).collect();
    let source = sandbox.write("in.car", car(&blocks));
    sandbox.basalt(&["import", "car", text(&source)]).ok();
    let status = sandbox.status();
    assert_eq!((&status["served"], &status["blocks"]), (&false.into(), &120.into()));
    let report = sandbox.basalt(&["verify", "--hash", "--json"]).json();
    assert_eq!(report["blocks"], 120);
    let target = sandbox.path("out.car");
    sandbox.basalt(&["export", "car", text(&target)]).ok();
    let mut sorted = blocks;
    sorted.sort();
    assert!(fs::read(&target).unwrap() == car(&sorted));
    sandbox.basalt(&["reclaim"]).ok();
    let mut agent = sandbox.agent(&[]);
    assert_eq!(sandbox.status()["blocks"], 120);
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    agent.ended();
}

#[test]
fn what_a_killed_agent_had_made_durable_is_seen_without_one() {
    let sandbox = Sandbox::with_node();
    let mut agent = sandbox.agent(&[]);
    let source = sandbox.write("in.car", car(&(0..40).map(block).collect::<Vec<_>>()));
    sandbox.basalt(&["import", "car", text(&source)]).ok();
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    agent.ended();
    // Looking changes nothing: the next owner still recovers by itself.
    assert_eq!(sandbox.status()["blocks"], 40);
    sandbox.basalt(&["verify", "--hash"]).ok();
    let _agent = sandbox.agent(&[]);
    assert_eq!(sandbox.status()["blocks"], 40);
}

#[test]
fn a_command_at_work_keeps_an_agent_out_until_it_ends() {
    let sandbox = Sandbox::with_node();
    // An import that waits for its input holds the node.
    let mut import = sandbox.command(&["import", "car", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut input = import.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &car(&[block(1)])).unwrap();
    let pid = format!("pid {}", import.id());
    eventually("the import has the node", || {
        fs::read_to_string(sandbox.node().join("lock")).is_ok_and(|text| text.contains(&pid)).then_some(())
    });
    sandbox
        .basalt(&["agent", "--set", "agent.handover_ms=100"])
        .fails(1, &[&format!("({pid}, basalt import): it ends by itself")]);
    drop(input);
    assert!(import.wait().unwrap().success());
    let _agent = sandbox.agent(&[]);
    assert_eq!(sandbox.status()["blocks"], 1);
}

#[test]
fn verify_names_the_block_that_has_rotted() {
    let sandbox = Sandbox::with_node();
    let blocks: Vec<_> = (0..30).map(block).collect();
    let source = sandbox.write("in.car", car(&blocks));
    sandbox.basalt(&["import", "car", text(&source)]).ok();
    let (multihash, value) = &blocks[7];
    sandbox.rot(value);
    let said = sandbox.basalt(&["verify"]).fails(1, &["1 damaged"]);
    assert!(said.out.contains(&cid(multihash)), "{said:?}");
    let _agent = sandbox.agent(&[]);
    let said = sandbox.basalt(&["verify", "--hash"]).fails(1, &["1 damaged"]);
    assert!(said.out.contains(&cid(multihash)), "{said:?}");
    // Nothing is left out silently: all others come out, the damaged one is named, and the exit code says so.
    let target = sandbox.path("out.car");
    sandbox.basalt(&["export", "car", text(&target)]).fails(1, &["1 blocks of the node are damaged", &cid(multihash)]);
    let folder = sandbox.path("out");
    sandbox
        .basalt(&["export", "flatfs", text(&folder)])
        .fails(1, &["1 blocks of the node are damaged", &cid(multihash)]);
    let mut others: Vec<_> = blocks.iter().filter(|block| block.0 != *multihash).cloned().collect();
    others.sort();
    assert!(fs::read(&target).unwrap() == car(&others));
    let root = cid(multihash);
    sandbox.basalt(&["export", "car", text(&sandbox.path("dag.car")), "--root", &root]).fails(1, &[&root, "damaged"]);
}

#[test]
fn an_idle_agent_is_small() {
    let sandbox = Sandbox::with_node();
    let agent = sandbox.agent(&[]);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(kib < 64 << 10, "{kib} KiB");
}
