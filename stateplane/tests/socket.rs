//! A ledger through a socket, held to what every ledger promises, and to what only one that another process has does.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod suite;

use std::sync::Arc;

use basalt_stateplane::{
    Class, Deferred, Embedded, EmbeddedOptions, Error, Model, PinLedger, Result,
    socket::{Host, Remote, serve},
};
use proptest::{prelude::*, test_runner::Config};
use suite::{Scene, engine_and_model_agree, histories};
use tokio::{io::AsyncWriteExt, net::UnixListener};

struct Hosted(Arc<Deferred>);

#[async_trait::async_trait]
impl Host for Hosted {
    fn ledger(&self) -> Arc<dyn PinLedger> {
        Arc::clone(&self.0) as _
    }
    async fn standing(&self) -> String {
        "{}".to_owned()
    }
    async fn tell(&self, what: &str) -> Result<String> {
        Err(Error::new(what, Class::Argument, "there is nothing to tell"))
    }
}

fn hosted(ledger: Option<Arc<dyn PinLedger>>, dir: &tempfile::TempDir) -> std::path::PathBuf {
    let deferred = Arc::new(Deferred::new("test"));
    if let Some(ledger) = ledger {
        deferred.open(ledger);
    }
    let path = dir.path().join("plane.sock");
    tokio::spawn(serve(UnixListener::bind(&path).unwrap(), Arc::new(Hosted(deferred))));
    path
}

async fn served() -> (Arc<dyn PinLedger>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(&dir.path().join("ledger"), &EmbeddedOptions::default()).unwrap();
    let path = hosted(Some(Arc::new(embedded)), &dir);
    (Arc::new(Remote::connect(&path).await.unwrap()), dir)
}

promises!(served);

proptest! {
    #![proptest_config(Config { cases: 16, ..Config::default() })]

    #[test]
    fn any_history_ends_as_in_the_model(history in histories(40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (ledger, _kept) = served().await;
            engine_and_model_agree(ledger, history).await
        })?;
    }
}

#[tokio::test]
async fn a_ledger_that_is_not_open_yet_says_why_and_is_there_once_it_is() {
    let (dir, deferred) = (tempfile::tempdir().unwrap(), Arc::new(Deferred::new("test")));
    let path = dir.path().join("plane.sock");
    tokio::spawn(serve(UnixListener::bind(&path).unwrap(), Arc::new(Hosted(Arc::clone(&deferred)))));
    let scene = Scene::new(Arc::new(Remote::connect(&path).await.unwrap()));
    let err = scene.ledger.put(scene.pin(1)).await.unwrap_err();
    assert!(err.class() == Class::Unavailable && err.to_string().contains("being opened"), "{err}");
    deferred.refuse(Error::new("log in", Class::Denied, "the password is wrong"));
    let err = scene.ledger.put(scene.pin(1)).await.unwrap_err();
    assert!(err.class() == Class::Unavailable && err.to_string().contains("password is wrong"), "{err}");
    deferred.open(Arc::new(Model::new()));
    scene.ledger.put(scene.pin(1)).await.unwrap();
    assert_eq!(deferred.refused(), None);
}

#[tokio::test]
async fn what_makes_no_sense_ends_its_connection_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = hosted(Some(Arc::new(Model::new())), &dir);
    let remote = Remote::connect(&path).await.unwrap();
    for nonsense in [&[0xff, 0xff, 0xff, 0xff, 0][..], &[0, 0, 0, 2, 0xff, 0xff], &[0, 0, 1], &[0, 0, 0, 0]] {
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
        assert_eq!(rest, b"", "{nonsense:?}");
    }
    assert_eq!(remote.standing().await.unwrap(), "{}");
    let scene = Scene::new(Arc::new(remote));
    scene.ledger.put(scene.pin(1)).await.unwrap();
}
