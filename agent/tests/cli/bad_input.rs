//! Wrong input gets an error that names it and the remedy, the documented exit code, and changes nothing.

use std::fs;

use crate::sandbox::Sandbox;

#[test]
fn a_wrong_config_value_is_named_with_file_line_and_remedy() {
    let sandbox = Sandbox::with_node();
    let path = sandbox.write("node/basalt.toml", "# mine\n[log]\nlevel = \"loud\"\n");
    let at = format!("{}:3: ", path.display());
    let remedy = "write one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"";
    sandbox.basalt(&["config", "check"]).fails(1, &[&at, "\"loud\"", remedy]);
    sandbox.basalt(&["agent"]).fails(2, &[&at, "\"loud\"", remedy]);
    sandbox.basalt(&["doctor"]).fails(1, &[]);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    let sandbox = Sandbox::with_node();
    sandbox.write("mine.toml", "[agent]\nidle_exit_msec = 5\n");
    let file = sandbox.path("mine.toml");
    sandbox
        .basalt(&["config", "check", file.to_str().unwrap()])
        .fails(1, &["mine.toml:2: ", "idle_exit_msec", "did you mean 'idle_exit_ms'?"]);
    sandbox.basalt(&["agent", "--config", file.to_str().unwrap()]).fails(2, &["did you mean"]);
    sandbox.basalt(&["agent", "--set", "agent.nonsense=1"]).fails(2, &["agent.nonsense", "config reference"]);
    sandbox.basalt(&["agent", "--set", "agent.idle_exit_ms=soon"]).fails(2, &["idle_exit_ms", "soon", "whole number"]);
}

#[test]
fn a_config_that_is_named_must_be_there() {
    let sandbox = Sandbox::with_node();
    sandbox.basalt(&["agent", "--config", "/nowhere/basalt.toml"]).fails(2, &["/nowhere/basalt.toml"]);
}

#[test]
fn config_show_says_who_set_what() {
    let sandbox = Sandbox::with_node();
    sandbox.write("node/basalt.toml", "[log]\nlevel = \"warn\"\n[agent]\nidle_exit_ms = 3\nhandover_ms = 200\n");
    let mut command = sandbox.command(&["config", "show", "--json", "--set", "agent.handover_ms=300"]);
    let said: crate::sandbox::Said = command.env("BASALT_AGENT_IDLE_EXIT_MS", "4").output().unwrap().into();
    let shown = said.json();
    let find = |section: &str, key: &str| {
        let all = shown["settings"].as_array().unwrap();
        let row = all.iter().find(|row| row["section"] == section && row["key"] == key).unwrap();
        (row["value"].as_str().unwrap().to_string(), row["from"].as_str().unwrap().to_string())
    };
    assert!(find("log", "level").1.ends_with("node/basalt.toml:2"));
    assert_eq!(find("agent", "idle_exit_ms"), ("4".into(), "environment BASALT_AGENT_IDLE_EXIT_MS".into()));
    assert_eq!(find("agent", "handover_ms"), ("300".into(), "command line".into()));
    assert_eq!(find("log", "format"), ("\"text\"".into(), "default".into()));
}

#[test]
fn a_missing_node_is_exit_code_3_and_says_how_to_make_one() {
    let sandbox = Sandbox::empty();
    for command in [&["status"][..], &["agent"], &["verify"], &["flush"], &["export", "car", "x.car"]] {
        sandbox.basalt(command).fails(3, &[sandbox.node().to_str().unwrap(), "basalt init"]);
    }
    assert!(!sandbox.node().exists());
    sandbox.basalt(&["doctor"]).fails(1, &[]);
}

#[test]
fn a_foreign_folder_is_refused_and_left_alone() {
    let sandbox = Sandbox::empty();
    sandbox.write("node/letter.txt", "dear");
    sandbox.basalt(&["init"]).fails(1, &["letter.txt"]);
    sandbox.basalt(&["agent"]).fails(3, &["not a Basalt node"]);
    assert_eq!(fs::read_dir(sandbox.node()).unwrap().count(), 1);
}

#[test]
fn a_newer_format_is_refused_by_its_number() {
    let sandbox = Sandbox::with_node();
    let file = sandbox.node().join("node.json");
    let text = fs::read_to_string(&file).unwrap().replace("\"format\": 1", "\"format\": 9");
    fs::write(&file, &text).unwrap();
    for command in [&["agent"][..], &["status"], &["verify"]] {
        sandbox.basalt(command).fails(1, &["format 9"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn flush_where_nobody_serves_is_exit_code_3() {
    let sandbox = Sandbox::with_node();
    sandbox.basalt(&["flush"]).fails(3, &["nobody serves"]);
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let sandbox = Sandbox::empty();
    sandbox.basalt(&["fly"]).fails(2, &["fly"]);
    sandbox.basalt(&["init", "--durability", "eternal"]).fails(2, &["eternal", "strict"]);
    sandbox.basalt(&["init", "--shards", "2", "--path", "/a"]).fails(2, &["contradict"]);
}

#[test]
fn an_id_that_is_none_makes_no_node() {
    let sandbox = Sandbox::empty();
    sandbox.basalt(&["init", "--node-id", "me"]).fails(1, &["'me'"]);
    assert!(!sandbox.node().join("node.json").exists());
    let id = "0123456789abcdef0123456789abcdef";
    sandbox.basalt(&["init", "--node-id", id]).ok();
    assert_eq!(sandbox.status()["node_id"], id);
}

#[test]
fn doctor_finds_nothing_wrong_with_a_new_node_but_says_that_memory_is_no_disk() {
    let sandbox = Sandbox::with_node();
    let report = sandbox.basalt(&["doctor", "--json"]).json();
    assert_eq!(report["problems"], 0);
    let findings = report["findings"].as_array().unwrap();
    if sandbox.node().starts_with("/dev/shm") {
        let tmpfs = findings.iter().find(|finding| finding["check"] == "filesystem").unwrap();
        assert_eq!(tmpfs["severity"], "warning");
        assert!(tmpfs["remedy"].as_str().unwrap().contains("disk"));
    }
    // A shard whose disk is not mounted is a problem that names the folder.
    fs::rename(sandbox.node().join("shards/00"), sandbox.path("gone")).unwrap();
    let said = sandbox.basalt(&["doctor"]).fails(1, &["1 problem"]);
    assert!(said.out.contains("shards/00"), "{said:?}");
}

#[test]
fn a_missing_car_is_named_with_the_remedy_and_no_node_is_touched() {
    let sandbox = Sandbox::with_node();
    sandbox
        .basalt(&["import", "car", "nowhere.car"])
        .fails(3, &["nowhere.car: there is no such file", "ipfs dag export"]);
    assert_eq!(sandbox.status()["blocks"], 0);
}

#[test]
fn a_reader_that_has_heard_enough_is_no_failure() {
    let sandbox = Sandbox::with_node();
    sandbox.write("node/basalt.toml", "");
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["verify"],
        &["reclaim"],
        &["config", "check"],
        &["config", "show"],
        &["config", "reference"],
        &["init", "other"],
    ] {
        let mut child = sandbox.command(command).current_dir(sandbox.path("")).spawn().unwrap();
        drop(child.stdout.take());
        let said: crate::sandbox::Said = child.wait_with_output().unwrap().into();
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{command:?}");
    }
    // Nor one of the standard error.
    let mut child = sandbox.command(&["config", "check", "nowhere.toml"]).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn what_could_not_be_printed_is_a_failure() {
    let sandbox = Sandbox::with_node();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let said: crate::sandbox::Said = sandbox.command(&["status"]).stdout(full).output().unwrap().into();
    said.fails(1, &["write to the standard output: No space left"]);
}

#[test]
fn what_a_command_prints_it_prints_as_json_too() {
    let sandbox = Sandbox::with_node();
    let read = |said: &crate::sandbox::Said| serde_json::from_str::<serde_json::Value>(&said.out).unwrap();
    for command in ["status", "doctor", "verify", "reclaim"] {
        let said = sandbox.basalt(&[command, "--json"]);
        assert!(read(&said).is_object(), "{said:?}");
    }
    let agent = sandbox.agent(&[]);
    assert_eq!(sandbox.basalt(&["flush", "--json"]).json()["durable"], true);
    drop(agent);
    assert_eq!(sandbox.basalt(&["config", "check", "--json"]).json()["right"], true);
    sandbox.write("node/basalt.toml", "[log]\nlevel = \"loud\"\n[nonsense]\n");
    let wrong = sandbox.basalt(&["config", "check", "--json"]).fails(1, &[]);
    assert_eq!((read(&wrong)["right"].as_bool(), wrong.err.as_str()), (Some(false), ""));
    assert!(read(&wrong)["mistakes"][0].as_str().unwrap().contains("basalt.toml:2: "), "{wrong:?}");
}

#[test]
fn a_snapshot_of_a_node_that_is_not_on_zfs_says_how_to_make_one_that_is() {
    let sandbox = Sandbox::with_node();
    for command in [&["take"][..], &["list"], &["prune"], &["diff", "latest"], &["restore", "latest", "--yes"]] {
        let command: Vec<&str> = ["snapshot"].iter().chain(command).copied().collect();
        sandbox.basalt(&command).fails(1, &["is not on ZFS", "basalt init --zfs"]);
    }
    sandbox.basalt(&["snapshot", "take", "--dataset", "a b@c"]).fails(2, &["--dataset", "a b@c"]);
}
