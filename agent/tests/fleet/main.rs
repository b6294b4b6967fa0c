//! Agents with real Kubos, a real NATS and a real ledger: what is pinned at the end is read from Kubo's own pin/ls. `tools/test-plane` runs these.

#![allow(clippy::unwrap_used, missing_docs)]

mod parts;

use std::{collections::BTreeSet, time::Duration};

use parts::{Agent, Kubo, Ledger, Nats, cids_of, eventually};

/// Each step of the worker at which the agent is killed, once while it pins and once while it unpins.
const POINTS: &[&str] = &["received", "looked", "changed", "journaled", "told", "reported", "settled", "acknowledged"];

#[test]
#[ignore = "needs Kubo and NATS: tools/test-plane"]
fn an_agent_killed_at_each_step_of_its_worker_ends_in_the_same_state() {
    let nats = Nats::start();
    let kubo = Kubo::start();
    let agent = Agent::new(&kubo, &nats, &Ledger::Embedded);
    let before = kubo.pins();
    for point in POINTS {
        let cids = kubo.add(3, point);
        for (verb, held) in [("add", true), ("rm", false)] {
            // Said while no worker runs, so that all of it is there when the one that will be killed begins.
            let idle = agent.start(&[("BASALT_KUBO_API", "")]);
            let peer: &[&str] = if held { &["--peer", &kubo.peer] } else { &[] };
            agent.basalt(&[&["pin", verb], peer, &cids_of(&cids)].concat());
            idle.stop();

            let killed = agent.start(&[("BASALT_FAILPOINT", &format!("worker.{point}:2"))]);
            assert!(killed.ends_by_a_signal(), "{point}, {verb}: the failpoint was not reached");

            let after = agent.start(&[]);
            for cid in &cids {
                let wanted = if held { "pinned" } else { "unpinned" };
                eventually("the ledger says so", || (agent.state_of(cid, &kubo.peer) == wanted).then_some(()));
            }
            let mut wanted = before.clone();
            wanted.extend(cids.iter().filter(|_| held).cloned());
            assert_eq!(kubo.pins(), wanted, "{point}, {verb}");
            eventually("no message is left", || (nats.messages("PIN_ASSIGN") == 0).then_some(()));
            after.stop();
        }
    }
    // One status for each of 3 CIDs, pinned and unpinned, however often it was told.
    assert_eq!(nats.messages("PIN_STATUS"), POINTS.len() as u64 * 6);
    assert_eq!(nats.messages("PIN_DLQ"), 0);
}

#[test]
#[ignore = "needs Kubo: tools/test-plane"]
fn without_nats_an_agent_works_from_its_ledger_and_says_what_it_gave_up() {
    let kubo = Kubo::start_offline();
    let agent = Agent::without_nats(&kubo, &Ledger::Embedded);
    let running = agent.start(&[("BASALT_WORKER_TRIES", "2"), ("BASALT_WORKER_LEDGER_INTERVAL_MS", "200")]);
    let cids = kubo.add(5, "ledger");
    let said = agent.basalt(&[&["pin", "add", "--wait"], &cids_of(&cids)[..]].concat());
    assert!(said.err.contains("5 of 5 placements done, 0 failed"), "{said:?}");
    assert!(cids.iter().all(|cid| kubo.pins().contains(cid)));
    let elsewhere = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    let said = agent.try_basalt(&["pin", "add", "--wait", "--timeout-s", "60", elsewhere]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("1 of 1 placements were given up") && said.err.contains("not found"), "{said:?}");
    assert_eq!(agent.state_of(elsewhere, &kubo.peer), "failed");
    agent.basalt(&[&["pin", "rm", "--wait"], &cids_of(&cids)[..]].concat());
    assert!(cids.iter().all(|cid| !kubo.pins().contains(cid)));
    assert_eq!(agent.try_basalt(&["pin", "status", &kubo.add(1, "unknown")[0]]).code, 3);
    running.stop();
}

#[test]
#[ignore = "needs Kubo and NATS: tools/test-plane"]
fn a_pin_of_another_owner_keeps_what_one_owner_removes() {
    let nats = Nats::start();
    let kubo = Kubo::start();
    let agent = Agent::new(&kubo, &nats, &Ledger::Embedded);
    let running = agent.start(&[]);
    let cid = &kubo.add(1, "shared")[0];
    for owner in ["one", "two"] {
        agent.basalt(&["pin", "add", "--wait", "--owner", owner, "--peer", &kubo.peer, cid]);
    }
    agent.basalt(&["pin", "rm", "--wait", "--owner", "one", cid]);
    assert!(kubo.pins().contains(cid));
    agent.basalt(&["pin", "rm", "--wait", "--owner", "two", cid]);
    assert!(!kubo.pins().contains(cid));
    running.stop();
}

#[test]
#[ignore = "needs Kubo and NATS: tools/test-plane"]
fn wrong_credentials_are_named_by_the_check_and_by_readiness_and_hold_nothing_up() {
    let nats = Nats::start_with(&["--auth", "user"]);
    let kubo = Kubo::start();
    let agent = Agent::new(&kubo, &nats, &Ledger::Embedded);
    let said = agent.try_basalt(&["plane", "check"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("authorization violation"), "{said:?}");
    let running = agent.start(&[("BASALT_WORKER_LEDGER_INTERVAL_MS", "200")]);
    eventually("readiness names it", || agent.http("/readyz").contains("authorization violation").then_some(()));
    let told = agent.http("/readyz");
    assert!(told.lines().next().unwrap().contains(" 200 "), "the node serves all the same: {told}");
    let cid = &kubo.add(1, "alone")[0];
    agent.basalt(&["pin", "add", "--wait", "--peer", &kubo.peer, cid]);
    assert!(kubo.pins().contains(cid));
    running.stop();
}

#[test]
#[ignore = "needs Kubo, NATS and a CQL server: tools/test-plane"]
fn three_agents_pin_a_thousand_at_two_nodes_each_though_one_is_killed_in_the_middle() {
    let count = std::env::var("BASALT_FLEET_PINS").map_or(1000, |count| count.parse().unwrap());
    let nats = Nats::start();
    let ledger = Ledger::cql();
    let kubos = [Kubo::start(), Kubo::start(), Kubo::start()];
    kubos[1].connect(&kubos[0]);
    kubos[2].connect(&kubos[0]);
    kubos[2].connect(&kubos[1]);
    let before: Vec<BTreeSet<String>> = kubos.iter().map(Kubo::pins).collect();
    let agents = [0, 1, 2].map(|at| Agent::new(&kubos[at], &nats, &ledger));
    agents[0].basalt(&["plane", "migrate"]);
    let running = [0, 1, 2].map(|at| Some(agents[at].start(&[])));
    let [mut first, mut second, mut third] = running;
    eventually("all three are registered", || (agents[0].registered() == 3).then_some(()));
    // All blocks are at one of them; the others fetch theirs.
    let cids = kubos[0].add(count, "fleet");
    let mut wanted = before.clone();
    for (at, share) in cids.chunks(count.div_ceil(3)).enumerate() {
        let said = agents[2 * (at % 2)].basalt_with(&["pin", "add", "-", "--replicas", "2"], &share.join("\n"));
        let mut placed = 0;
        for line in said.out.lines() {
            let (cid, peers) = line.split_once("  to be held by ").unwrap();
            for peer in peers.split(' ') {
                let node = kubos.iter().position(|kubo| kubo.peer == peer).unwrap();
                placed += usize::from(wanted[node].insert(cid.to_owned()));
            }
        }
        assert_eq!(placed, 2 * share.len(), "each at two nodes");
        if at == 0 {
            // In the middle of its work, and of the others'.
            eventually("some are pinned", || (kubos[1].pins().len() > before[1].len() + count / 20).then_some(()));
            second.take().unwrap().kill();
        }
    }
    let done = |node: usize| (kubos[node].pins() == wanted[node]).then_some(());
    parts::within(Duration::from_secs(180), "the others are done", || done(0).and(done(2)));
    assert!(done(1).is_none(), "the killed one has work left");
    second = Some(agents[1].start(&[]));
    parts::within(Duration::from_secs(180), "the killed one is done", || done(1));
    // Kubo's own word, node by node; then what the ledger and the streams say.
    for node in 0..3 {
        assert_eq!(kubos[node].pins(), wanted[node], "node {node}");
    }
    eventually("no message is left", || (nats.messages("PIN_ASSIGN") == 0).then_some(()));
    for cid in cids.iter().step_by(count.div_ceil(20)) {
        let states = agents[2].states_of(cid);
        assert_eq!(states, ["pinned", "pinned"], "{cid}");
    }
    assert_eq!(nats.messages("PIN_STATUS"), 2 * count as u64, "each is told once");
    assert_eq!(nats.messages("PIN_DLQ"), 0);
    // And away again.
    let gone: Vec<String> = cids.iter().step_by(10).cloned().collect();
    agents[0].basalt_with(&["pin", "rm", "-", "--wait", "--timeout-s", "120"], &gone.join("\n"));
    for (node, wanted) in wanted.iter_mut().enumerate() {
        gone.iter().for_each(|cid| {
            wanted.remove(cid);
        });
        assert_eq!(kubos[node].pins(), *wanted, "node {node}, after the removal");
    }
    [first.take(), second.take(), third.take()].into_iter().flatten().for_each(parts::Running::stop);
}
