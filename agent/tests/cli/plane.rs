//! The plane in the agent: nothing waits for it, and commands reach it.

use crate::sandbox::{Sandbox, block, car, eventually, http};

#[test]
fn a_ledger_that_is_away_makes_the_agent_degraded_and_nothing_else() {
    let sandbox = Sandbox::with_node();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Nobody is there, and a connection takes its time to be given up.
    let config = "[plane]\nengine = \"cql\"\n[cql]\ncontact_points = [\"127.0.0.1:1\"]\n";
    std::fs::write(sandbox.node().join("basalt.toml"), config).unwrap();
    let _agent = sandbox.agent(&["--http-listen", &address.to_string()]);
    let file = sandbox.write("blocks.car", car(&(0..9).map(block).collect::<Vec<_>>()));
    sandbox.basalt(&["import", "car", file.to_str().unwrap()]).ok();
    let ready = eventually("the agent says that it is degraded", || {
        http(address, "/readyz").filter(|page| page.contains("degraded: the ledger is away"))
    });
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("127.0.0.1:1"), "{ready}");
    let page = sandbox.basalt(&["status"]).ok().out;
    assert!(page.contains("ledger cql, away for"), "{page}");
    assert_eq!(sandbox.basalt(&["status", "--json"]).ok().json()["plane"]["state"], "away");
    let metrics = http(address, "/metrics").unwrap();
    assert!(metrics.contains("plane_ledger_away 1\n"), "{metrics}");
    // What is asked of the ledger itself fails at once, with the reason.
    sandbox.basalt(&["plane", "nodes"]).fails(1, &["127.0.0.1:1"]);
}

#[test]
fn the_embedded_ledger_is_reached_through_the_agent_and_without_one() {
    let sandbox = Sandbox::with_node();
    let exported = sandbox.path("ledger.export");
    let export = ["plane", "export", exported.to_str().unwrap()];
    {
        let _agent = sandbox.agent(&[]);
        eventually("the ledger is open", || {
            sandbox.basalt(&["status"]).ok().out.contains("ledger embedded, open").then_some(())
        });
        let page = sandbox.basalt(&["plane", "nodes"]).ok().out;
        assert!(page.contains("no node is registered"), "{page}");
        sandbox.basalt(&export).ok();
        sandbox.basalt(&["plane", "drift"]).fails(2, &["[kubo] api", "--peer"]);
        let page = sandbox.basalt(&["plane", "drift", "--peer", "12D3KooW"]).ok().out;
        assert!(page.contains("0 placements at 12D3KooW"), "{page}");
    }
    sandbox.basalt(&["plane", "nodes"]).ok();
    sandbox.basalt(&["plane", "import", "--dry-run", exported.to_str().unwrap()]).ok();
    sandbox.basalt(&["plane", "import", exported.to_str().unwrap()]).ok();
    // Whole already.
    let again = sandbox.basalt(&export).ok();
    assert!(again.err.contains("whole already"), "{}", again.err);
    let other = sandbox.write("other", "something else");
    sandbox.basalt(&["plane", "export", other.to_str().unwrap()]).fails(1, &["other", "does not begin"]);
    assert_eq!(std::fs::read(&other).unwrap(), b"something else", "it was written over");
}

#[test]
fn a_kubo_that_is_away_is_said_and_a_node_without_a_plane_has_none() {
    let sandbox = Sandbox::with_node();
    let config = |text: &str| std::fs::write(sandbox.node().join("basalt.toml"), text).unwrap();
    config("[kubo]\napi = \"http://127.0.0.1:1\"\n");
    {
        let _agent = sandbox.agent(&[]);
        eventually("the agent says that Kubo is away", || {
            let page = sandbox.basalt(&["status"]).ok().out;
            (page.contains("not registered") && page.contains("127.0.0.1:1")).then_some(())
        });
    }
    config("[plane]\nengine = \"none\"\n");
    let _agent = sandbox.agent(&[]);
    assert!(!sandbox.basalt(&["status"]).ok().out.contains("PLANE"));
    sandbox.basalt(&["plane", "nodes"]).fails(2, &["no ledger"]);
}
