//! The agent's life: one owner at a time, handed over, gone when idle, closed well when told to stop.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use basalt_proto::v1;
use nix::sys::signal::Signal;

use crate::sandbox::{Kubo, Said, Sandbox, block, car, eventually};

#[test]
fn sigterm_drains_syncs_and_leaves_no_socket_and_no_owner() {
    let sandbox = Sandbox::with_node();
    let mut agent = sandbox.agent(&[]);
    let socket = sandbox.node().join("run/data.sock");
    assert!(socket.exists());
    agent.signal(Signal::SIGTERM);
    assert!(agent.ended().success(), "{}", agent.log());
    assert!(!socket.exists());
    assert!(agent.log().contains("by SIGTERM") && agent.log().contains("node closed"), "{}", agent.log());
    let status = sandbox.status();
    assert_eq!(status["served"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_does_not_hold_up_a_stop() {
    let sandbox = Sandbox::with_node();
    let mut agent = sandbox.agent(&["--set", "node.drain_deadline_ms=600000"]);
    let _kubo = Kubo::connect(&sandbox).await;
    agent.signal(Signal::SIGTERM);
    assert!(agent.ended().success(), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_says_what_the_stop_waits_for() {
    let sandbox = Sandbox::with_node();
    let mut agent = sandbox.agent(&["--set", "node.drain_deadline_ms=600000"]);
    let mut kubo = Kubo::connect(&sandbox).await;
    // A batch that has begun and is not committed.
    let (chunks, stream) = tokio::sync::mpsc::channel(4);
    chunks.send(v1::BatchRequest::default()).await.unwrap();
    let batch = tokio::spawn(async move {
        kubo.client.batch(tokio_stream::wrappers::ReceiverStream::new(stream)).await.map(|_| ())
    });
    let is_under_way = || agent.log().contains("client connected").then_some(());
    eventually("the client is there", is_under_way);
    chunks.send(v1::BatchRequest::default()).await.unwrap();
    eventually("the node reads the batch", || (chunks.capacity() == 4).then_some(()));
    agent.signal(Signal::SIGTERM);
    eventually("the stop has begun", || agent.log().contains("stopping").then_some(()));
    agent.signal(Signal::SIGTERM);
    eventually("it says what it waits for", || {
        agent.log().contains("still waiting for requests under way").then_some(())
    });
    assert!(agent.is_running());
    let operation = v1::BatchOperation {
        key: "/x".into(),
        operation: Some(v1::batch_operation::Operation::Put(b"y".to_vec().into())),
    };
    chunks.send(v1::BatchRequest { operations: vec![operation], commit: true }).await.unwrap();
    drop(chunks);
    assert!(batch.await.unwrap().is_ok(), "what was under way was not let finish");
    assert!(agent.ended().success());
}

#[test]
fn what_was_imported_is_there_after_a_restart() {
    let sandbox = Sandbox::with_node();
    let mut agent = sandbox.agent(&[]);
    let blocks: Vec<_> = (0..50).map(block).collect();
    let file = sandbox.write("blocks.car", car(&blocks));
    sandbox.basalt(&["import", "car", file.to_str().unwrap()]).ok();
    agent.signal(Signal::SIGINT);
    assert!(agent.ended().success());
    let _again = sandbox.agent(&[]);
    assert_eq!(sandbox.status()["blocks"], 50);
}

#[test]
fn a_second_agent_is_refused_with_the_pid_of_the_first() {
    let sandbox = Sandbox::with_node();
    let mut first = sandbox.agent(&[]);
    let pid = format!("pid {}", first.pid());
    sandbox.basalt(&["agent"]).fails(1, &[&pid, "served by agent already"]);
    assert!(first.is_running());
    assert_eq!(sandbox.served_by(), Some(first.pid().into()));
}

#[test]
fn a_locked_node_whose_owner_does_not_answer_names_its_pid() {
    let sandbox = Sandbox::with_node();
    let agent = sandbox.agent(&[]);
    // As if somebody had removed the sockets of a running agent.
    fs::remove_file(sandbox.node().join("run/data.sock")).unwrap();
    fs::remove_file(sandbox.node().join("run/admin.sock")).unwrap();
    let pid = format!("pid {}", agent.pid());
    sandbox.basalt(&["agent", "--set", "agent.handover_ms=200"]).fails(1, &[&pid]);
    sandbox.basalt(&["import", "car", "-"]).fails(1, &[]);
    let said = sandbox.basalt(&["doctor"]).fails(1, &[]);
    assert!(said.out.contains(&pid) && said.out.contains("does not answer"), "{said:?}");
}

#[test]
fn a_socket_that_a_killed_agent_left_is_taken_over() {
    let sandbox = Sandbox::with_node();
    let mut first = sandbox.agent(&[]);
    first.signal(Signal::SIGKILL);
    first.ended();
    assert!(sandbox.node().join("run/data.sock").exists());
    let second = sandbox.agent(&[]);
    assert_eq!(sandbox.served_by(), Some(second.pid().into()));
}

#[test]
fn an_idle_agent_closes_its_node_and_ends() {
    let sandbox = Sandbox::with_node();
    let begin = Instant::now();
    let said: Said = sandbox
        .command(&["agent", "--exit-when-idle"])
        .env("BASALT_AGENT_IDLE_EXIT_MS", "300")
        .output()
        .unwrap()
        .into();
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(begin.elapsed() >= Duration::from_millis(300));
    let log = fs::read_to_string(sandbox.node().join("run/agent.log")).unwrap();
    assert!(log.contains("idle for 300 ms") && log.contains("node closed"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_client_is_not_idle() {
    let sandbox = Sandbox::with_node();
    let mut agent = sandbox.agent_with(&["--exit-when-idle"], &[("BASALT_AGENT_IDLE_EXIT_MS", "2000")]);
    let kubo = Kubo::connect(&sandbox).await;
    assert_eq!(kubo.greeting.node_id, sandbox.status()["node_id"]);
    let status = sandbox.status();
    assert_eq!(status["host"], "agent (autostarted)");
    let clients = status["clients"].as_array().unwrap();
    assert!(clients.iter().any(|client| client["role"] == "root" && client["name"] == "test 1"), "{clients:?}");
    // Longer than the agent would stay alone.
    let until = Instant::now() + Duration::from_millis(3500);
    eventually("the time is over", || (Instant::now() >= until).then_some(()));
    assert!(agent.is_running());
    drop(kubo);
    assert!(agent.ended().success());
}

#[test]
fn an_autostarted_agent_opens_no_tcp_port() {
    let sandbox = Sandbox::with_node();
    // This address can't be listened on, and an operator's agent would say so.
    let address = ("BASALT_HTTP_LISTEN", "203.0.113.1:1");
    let agent = sandbox.agent_with(&["--exit-when-idle"], &[address, ("BASALT_AGENT_IDLE_EXIT_MS", "5000")]);
    assert_eq!(sandbox.served_by(), Some(agent.pid().into()));
    drop(agent);
    let mut command = sandbox.command(&["agent"]);
    let said: Said = command.env(address.0, address.1).output().unwrap().into();
    said.fails(1, &["203.0.113.1:1", "[http] listen"]);
}

#[test]
fn of_agents_that_race_one_serves_and_the_others_end_well() {
    let sandbox = Sandbox::with_node();
    let spawn = |_| {
        let mut command = sandbox.command(&["agent", "--exit-when-idle"]);
        command.env("BASALT_AGENT_IDLE_EXIT_MS", "2000").spawn().unwrap()
    };
    let mut agents: Vec<_> = (0..5).map(spawn).collect();
    let serving = eventually("one serves", || sandbox.served_by());
    let mut ended = 0;
    eventually("four have ended", || {
        agents.retain_mut(|agent| match agent.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success());
                ended += 1;
                false
            }
            None => true,
        });
        (ended == 4).then_some(())
    });
    assert_eq!(u64::from(agents[0].id()), serving);
    assert!(agents[0].wait().unwrap().success());
}

#[test]
fn an_autostarted_agent_hands_over_to_an_operators_agent() {
    let sandbox = Sandbox::with_node();
    let blocks: Vec<_> = (0..20).map(block).collect();
    let file = sandbox.write("blocks.car", car(&blocks));
    let mut first = sandbox.agent_with(&["--exit-when-idle"], &[("BASALT_AGENT_IDLE_EXIT_MS", "60000")]);
    sandbox.basalt(&["import", "car", file.to_str().unwrap()]).ok();
    let second = sandbox.agent(&[]);
    assert!(first.ended().success());
    assert_eq!(sandbox.served_by(), Some(second.pid().into()));
    assert_eq!(sandbox.status()["host"], "agent");
    assert_eq!(sandbox.status()["blocks"], 20);
    let log = fs::read_to_string(sandbox.node().join("run/agent.log")).unwrap();
    assert!(log.contains(&format!("pid {}", second.pid())), "{log}");
    // And one that Kubo starts now finds it and goes.
    sandbox.basalt(&["agent", "--exit-when-idle"]).ok();
    assert_eq!(sandbox.served_by(), Some(second.pid().into()));
}

#[test]
fn sighup_changes_the_log_level_and_says_what_needs_a_restart() {
    let sandbox = Sandbox::with_node();
    let agent = sandbox.agent(&[]);
    sandbox.write("node/basalt.toml", "[node]\ndurability = \"strict\"\n[log]\nlevel = \"debug\"\n");
    agent.signal(Signal::SIGHUP);
    eventually("both are said", || {
        let log = agent.log();
        (log.contains("[log] level is \"debug\" now") && log.contains("[node] durability = \"strict\" needs a restart"))
            .then_some(())
    });
    sandbox.write("node/basalt.toml", "[log]\nlevel = \"loud\"\n");
    agent.signal(Signal::SIGHUP);
    eventually("the mistake is said", || agent.log().contains("nothing was changed").then_some(()));
    assert_eq!(sandbox.served_by(), Some(agent.pid().into()));
}

#[test]
fn systemd_hears_when_the_agent_is_ready_and_when_it_stops() {
    let sandbox = Sandbox::with_node();
    let path = sandbox.path("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(crate::sandbox::DEADLINE)).unwrap();
    let mut agent = sandbox.agent_with(&[], &[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")]);
    let heard = |what: &str| {
        eventually(what, || {
            let mut buffer = [0; 300];
            let len = manager.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..len]).contains(what).then_some(())
        });
    };
    heard("READY=1");
    heard("WATCHDOG=1");
    agent.signal(Signal::SIGTERM);
    heard("STOPPING=1");
    assert!(agent.ended().success());
}

#[test]
fn logs_are_json_where_that_is_asked_for() {
    let sandbox = Sandbox::with_node();
    let mut agent = sandbox.agent(&["--set", "log.format=json"]);
    agent.signal(Signal::SIGTERM);
    agent.ended();
    let lines: Vec<serde_json::Value> = agent.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.iter().any(|line| line["fields"]["message"] == "node opened" && line["level"] == "INFO"),
        "{lines:?}"
    );
}

#[test]
fn status_says_whether_somebody_serves() {
    let sandbox = Sandbox::with_node();
    sandbox.basalt(&["status", "--served"]).fails(3, &["nobody serves"]);
    let page = sandbox.basalt(&["status"]).ok().out;
    assert!(page.contains("nobody"), "{page}");
    let agent = sandbox.agent(&[]);
    let page = sandbox.basalt(&["status", "--served"]).ok().out;
    assert!(
        page.contains(&format!("pid {}", agent.pid()))
            && page.contains("relaxed: what was written before the last Sync"),
        "{page}"
    );
    let said = sandbox.basalt(&["flush"]).ok();
    assert!(said.out.contains("stable storage"));
    sandbox.basalt(&["reclaim"]).ok();
}

#[test]
fn a_node_is_marked_when_an_agent_that_hands_over_has_let_go_and_no_other_is_sent_away() {
    let sandbox = Sandbox::empty();
    sandbox.basalt(&["init", "--migrating"]).ok();
    let state = || basalt_node::NodeFile::read(&sandbox.node()).unwrap().state;
    assert_eq!(state(), basalt_node::State::Migrating);

    let operators = sandbox.agent(&[]);
    sandbox.basalt(&["mark", "ready"]).fails(1, &["stop it", &operators.pid().to_string()]);
    sandbox.basalt(&["mark", "migrating"]).ok();
    assert_eq!(state(), basalt_node::State::Migrating);
    drop(operators);

    let mut autostarted = sandbox.agent(&["--exit-when-idle"]);
    sandbox.basalt(&["mark", "ready"]).ok();
    assert!(autostarted.ended().success(), "{}", autostarted.log());
    assert_eq!(state(), basalt_node::State::Ready);
}

#[test]
fn an_agent_that_can_write_no_log_serves_all_the_same() {
    let sandbox = Sandbox::with_node();
    fs::create_dir_all(sandbox.node().join("run/agent.log")).unwrap();
    let agent = sandbox.agent(&["--exit-when-idle"]);
    assert_eq!(sandbox.served_by(), Some(agent.pid().into()));
}
