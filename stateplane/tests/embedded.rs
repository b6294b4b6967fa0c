//! The embedded engine and the model, held to what every ledger promises, and to what only an engine on disk does.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod suite;

use std::{sync::Arc, time::Duration};

use basalt_stateplane::{Class, Embedded, EmbeddedOptions, Model, PinLedger};
use proptest::{prelude::*, test_runner::Config};
use suite::{Scene, engine_and_model_agree, histories};

fn open(dir: &tempfile::TempDir) -> Embedded {
    Embedded::open(dir.path(), &EmbeddedOptions::default()).unwrap()
}

async fn embedded() -> (Arc<dyn PinLedger>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Arc::new(open(&dir)), dir)
}

promises!(embedded);

mod model {
    use super::*;

    async fn model() -> (Arc<dyn PinLedger>, ()) {
        (Arc::new(Model::new()), ())
    }

    promises!(model);
}

proptest! {
    #![proptest_config(Config { cases: 64, ..Config::default() })]

    #[test]
    fn any_history_ends_as_in_the_model(history in histories(60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (ledger, _kept) = embedded().await;
            engine_and_model_agree(ledger, history).await
        })?;
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(Arc::new(open(&dir)));
    let pin = scene.pin(1);
    scene.ledger.put(pin.clone()).await.unwrap();
    let key = scene.ledger.key().await.unwrap();
    drop(scene);
    let ledger = open(&dir);
    assert_eq!(ledger.pin(&pin.key).await.unwrap(), Some(pin.clone()));
    assert_eq!(ledger.key().await.unwrap(), key, "the hash key is another");
}

#[tokio::test]
async fn a_second_process_is_told_that_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(&dir);
    let err = Embedded::open(dir.path(), &EmbeddedOptions::default()).unwrap_err();
    assert!(err.class() == Class::Config && err.to_string().contains("another process"), "{err}");
}

#[tokio::test]
async fn an_acknowledged_change_survives_kill_9() {
    // This program again, as a child that puts pins for ever and prints those that are acknowledged.
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "puts_until_it_is_killed", "--ignored", "--nocapture"])
        .env("BASALT_TEST_LEDGER", dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut acknowledged = Vec::new();
    while acknowledged.len() < 200 {
        let line = lines.next().expect("the child ended").unwrap();
        if let Some(key) = line.strip_prefix("put ") {
            acknowledged.push(data_encoding::HEXLOWER.decode(key.as_bytes()).unwrap());
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines.map_while(Result::ok) {
        if let Some(key) = line.strip_prefix("put ").filter(|key| key.len() == 68) {
            acknowledged.push(data_encoding::HEXLOWER.decode(key.as_bytes()).unwrap());
        }
    }
    let ledger = open(&dir);
    for multihash in &acknowledged {
        let multihash = basalt_stateplane::Multihash::from_bytes(multihash).unwrap();
        let found = ledger.pins_of(&multihash, None, 10).await.unwrap().items;
        assert_eq!(found.len(), 1, "{multihash} was acknowledged");
        let owned = ledger.pins_of_owner(&found[0].key.owner, None, 10_000).await.unwrap().items;
        assert!(owned.contains(&found[0]), "{multihash} is not found by its owner");
    }
}

#[tokio::test]
#[ignore = "the child of an_acknowledged_change_survives_kill_9"]
async fn puts_until_it_is_killed() {
    let dir = std::env::var_os("BASALT_TEST_LEDGER").unwrap();
    let ledger = Embedded::open(dir.as_ref(), &EmbeddedOptions::default()).unwrap();
    let scene = Scene::new(Arc::new(ledger));
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    for n in 0.. {
        assert!(std::time::Instant::now() < deadline, "nobody killed it");
        scene.ledger.put(scene.pin(n)).await.unwrap();
        println!("put {}", data_encoding::HEXLOWER.encode(scene.multihash(n).as_bytes()));
    }
}
