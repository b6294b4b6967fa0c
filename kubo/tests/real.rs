//! The client against a real Kubo: what the scripted server says is only what we believe of it.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

#[path = "real/daemon.rs"]
mod daemon;

use std::{collections::BTreeSet, time::Duration};

use basalt_kubo::{Auth, Cid, Class, Client, End, Options, PinKind, PinOptions, PinStep, Step, Unpinned};
use daemon::Daemon;

/// Sound, and stored nowhere.
const ELSEWHERE: &str = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), what).await.expect("it never ended")
}

async fn pins(client: &Client, kind: PinKind, names: bool) -> BTreeSet<(String, String, Option<String>)> {
    let mut pins = client.pin_ls(kind, names).await.unwrap();
    let mut found = BTreeSet::new();
    loop {
        match pins.next().await {
            Step::Item(pin) => assert!(found.insert((pin.cid.to_string(), pin.kind, pin.name))),
            Step::End(end) => {
                end.complete().unwrap();
                return found;
            }
        }
    }
}

#[tokio::test]
async fn kubo_says_who_it_is_by_tcp_and_by_unix_socket() {
    let daemon = Daemon::start(&[]);
    for client in [daemon.client(), daemon.client_by_unix_socket()] {
        let identity = within(client.id()).await.unwrap();
        assert_eq!(identity.id, daemon.ipfs(&["id", "-f", "<id>"]));
        assert!(identity.agent_version.starts_with("kubo/"), "{identity:?}");
        let version = within(client.version()).await.unwrap();
        assert!(version.version.starts_with("0."), "{version:?}");
        let stat = within(client.repo_stat()).await.unwrap();
        assert!(stat.repo_bytes > 0 && stat.storage_bytes_max > stat.repo_bytes, "{stat:?}");
    }
}

#[tokio::test]
async fn pins_come_change_and_go() {
    let daemon = Daemon::start(&[]);
    let client = daemon.client();
    let before = pins(&client, PinKind::Recursive, true).await;
    let first: Cid = daemon.add(300_000, &["--pin=false"]).parse().unwrap();
    let second: Cid = daemon.add(300_001, &["--pin=false", "--cid-version=1"]).parse().unwrap();
    assert_eq!(within(client.pin_of(&first, PinKind::All)).await.unwrap(), None);
    assert_eq!(within(client.pin_rm(&first, true)).await.unwrap(), Unpinned::WasNot);

    let named = PinOptions { name: Some("a name & more".to_owned()), ..PinOptions::default() };
    within(async { client.pin_add(&first, &named).await.unwrap().finish().await }).await.unwrap();
    let pin = within(client.pin_of(&first, PinKind::Recursive)).await.unwrap().unwrap();
    assert_eq!((pin.cid, pin.kind.as_str(), pin.name.as_deref()), (first, "recursive", Some("a name & more")));
    // Again: it is a set.
    within(async { client.pin_add(&first, &named).await.unwrap().finish().await }).await.unwrap();
    let mut wanted = before.clone();
    wanted.insert((first.to_string(), "recursive".to_owned(), Some("a name & more".to_owned())));
    assert_eq!(pins(&client, PinKind::Recursive, true).await, wanted);

    within(client.pin_update(&first, &second, true)).await.unwrap();
    assert_eq!(within(client.pin_of(&first, PinKind::Recursive)).await.unwrap(), None);
    assert!(within(client.pin_of(&second, PinKind::Recursive)).await.unwrap().is_some());
    assert_eq!(within(client.pin_rm(&second, true)).await.unwrap(), Unpinned::Removed);
    assert_eq!(within(client.pin_rm(&second, true)).await.unwrap(), Unpinned::WasNot);

    let direct = PinOptions { recursive: false, ..PinOptions::default() };
    within(async { client.pin_add(&first, &direct).await.unwrap().finish().await }).await.unwrap();
    assert_eq!(pins(&client, PinKind::Direct, false).await, [(first.to_string(), "direct".to_owned(), None)].into());
    // Pinned, but not so: that is no success.
    let err = within(client.pin_rm(&second, true)).await;
    assert_eq!(err, Ok(Unpinned::WasNot));
    assert_eq!(within(client.pin_rm(&first, false)).await.unwrap(), Unpinned::Removed);
    assert_eq!(pins(&client, PinKind::Recursive, true).await, before);
}

#[tokio::test]
async fn a_block_has_a_size_and_what_is_not_here_is_a_failure() {
    let daemon = Daemon::start(&[]);
    let client = daemon.client();
    let cid: Cid = daemon.add(1000, &["--pin=false", "--raw-leaves"]).parse().unwrap();
    let stat = within(client.block_stat(&cid, true)).await.unwrap();
    assert_eq!((stat.cid, stat.size), (cid, 1000));
    let err = within(client.block_stat(&ELSEWHERE.parse().unwrap(), true)).await.unwrap_err();
    assert_eq!(err.class(), Class::Failed, "{err}");
}

#[tokio::test]
async fn a_pin_that_fails_after_its_ticks_fails_by_the_trailer() {
    // One that is on a network would look there for ever.
    let daemon = Daemon::start_offline();
    let client = daemon.client();
    // Kubo ticks every half second; how many leaves take it longer than that to walk depends on the machine.
    let mut leaves = 40_000;
    let (root, mut pin) = loop {
        let size = 64 * leaves;
        let root: Cid = daemon.add(size, &["--pin=false", "--chunker=size-64", "--raw-leaves"]).parse().unwrap();
        let walked = daemon.ipfs(&["refs", "-r", "--unique", &root.to_string()]);
        daemon.ipfs(&["block", "rm", walked.lines().last().unwrap()]);
        match within(client.pin_add(&root, &PinOptions::default())).await {
            Ok(pin) => break (root, pin),
            Err(err) => assert!(leaves < 1_000_000, "it fails before its first tick, of {leaves} leaves too: {err}"),
        }
        leaves *= 3;
    };
    let mut ticks = 0;
    let end = loop {
        match within(pin.next()).await {
            PinStep::Progress { .. } => ticks += 1,
            PinStep::End(end) => break end,
        }
    };
    assert!(ticks > 0);
    let End::Failed(err) = end else { panic!("it ended as {end:?}") };
    assert_eq!(err.class(), Class::Failed);
    assert!(err.message().contains("not found"), "{err}");
    assert_eq!(within(client.pin_of(&root, PinKind::Recursive)).await.unwrap(), None);
}

#[tokio::test]
async fn a_kubo_killed_while_it_pins_leaves_a_truncated_answer() {
    let daemon = Daemon::start(&[]);
    let client = daemon.client();
    let mut pin = within(client.pin_add(&ELSEWHERE.parse().unwrap(), &PinOptions::default())).await.unwrap();
    assert!(matches!(within(pin.next()).await, PinStep::Progress { blocks: 0, .. }));
    daemon.kill();
    let end = loop {
        if let PinStep::End(end) = within(pin.next()).await {
            break end;
        }
    };
    assert!(matches!(&end, End::Truncated(err) if err.class() == Class::Truncated), "{end:?}");
    assert_eq!(within(client.id()).await.unwrap_err().class(), Class::Unreachable);
}

#[tokio::test]
async fn a_pin_that_is_dropped_is_given_up_by_kubo() {
    let daemon = Daemon::start(&[]);
    let client = daemon.client();
    let elsewhere: Cid = ELSEWHERE.parse().unwrap();
    let stall = PinOptions { progress_stall: Some(Duration::from_millis(700)), ..PinOptions::default() };
    let err = within(async { client.pin_add(&elsewhere, &stall).await.unwrap().finish().await }).await.unwrap_err();
    assert_eq!(err.class(), Class::Stalled, "{err}");
    // Kubo lists the commands under way; ours leaves the list.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while daemon.ipfs(&["diag", "cmds"]).lines().any(|line| line.contains("pin/add") && line.contains("true")) {
        assert!(std::time::Instant::now() < deadline, "Kubo still pins: {}", daemon.ipfs(&["diag", "cmds"]));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn only_who_has_the_secret_is_let_in() {
    let daemon = Daemon::start(&[(
        "API.Authorizations",
        r#"{"agent":{"AuthSecret":"bearer:hunter2","AllowedPaths":["/api/v0/id","/api/v0/pin"]},"other":{"AuthSecret":"basic:me:hunter3","AllowedPaths":["/api/v0"]}}"#,
    )]);
    let with = |secret: &str| Client::new(daemon.endpoint(), &secret.parse().unwrap(), Options::default()).unwrap();
    within(with("bearer:hunter2").id()).await.unwrap();
    within(with("basic:me:hunter3").repo_stat()).await.unwrap();
    // Kubo tells its version to all.
    for (client, what) in [
        (with("bearer:hunter2"), "a path that is not allowed"),
        (with("bearer:wrong"), "a wrong secret"),
        (Client::new(daemon.endpoint(), &Auth::None, Options::default()).unwrap(), "none"),
    ] {
        let err = within(client.repo_stat()).await.unwrap_err();
        assert_eq!(err.class(), Class::Denied, "{what}: {err}");
        assert!(err.to_string().contains("AllowedPaths") && !err.to_string().contains("hunter"), "{err}");
    }
}
