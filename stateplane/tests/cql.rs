//! The CQL engine, held to what every ledger promises, and to what only one that is shared does. Needs the server that BASALT_TEST_CQL names
//! (`testbed/cql-up env`); `make test-plane` starts it and runs these, with one node and three, plain and with auth and TLS.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod suite;

use std::{
    collections::BTreeMap,
    env,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use basalt_stateplane::{
    Class, Conditional, PinLedger,
    cql::{CqlLedger, CqlOptions, Dialect, Password, Tls, migrate, status},
};
use proptest::{prelude::*, test_runner::Config};
use suite::{Scene, engine_and_model_agree, histories};
use tokio::sync::OnceCell;

/// The server under test, and a keyspace of this process's own.
fn options() -> CqlOptions {
    let nodes = env::var("BASALT_TEST_CQL").expect("BASALT_TEST_CQL names no server; `make test-plane` starts one");
    let contact_points: Vec<String> = nodes.split(',').map(str::to_owned).collect();
    let replicas = contact_points.len().min(3) as u8;
    let var = |name: &str| env::var(name).ok();
    let client =
        var("BASALT_TEST_CQL_CERT").zip(var("BASALT_TEST_CQL_KEY")).map(|(cert, key)| (cert.into(), key.into()));
    CqlOptions {
        contact_points,
        keyspace: format!("basalt_{}", std::process::id()),
        replication: BTreeMap::from([("dc1".to_owned(), replicas)]),
        login: var("BASALT_TEST_CQL_USER").zip(var("BASALT_TEST_CQL_PASSWORD").map(Password)),
        tls: var("BASALT_TEST_CQL_CA").map(|ca| Tls { ca_file: ca.into(), client }),
        // The machine that runs the tests runs the servers too.
        point_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(10),
        claim_timeout: Duration::from_secs(10),
        tries: 6,
        ..CqlOptions::default()
    }
}

/// A keyspace that no test has used.
fn fresh() -> CqlOptions {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let keyspace = format!("basalt_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
    CqlOptions { keyspace, ..options() }
}

async fn cql() -> (Arc<dyn PinLedger>, ()) {
    static MIGRATED: OnceCell<()> = OnceCell::const_new();
    MIGRATED.get_or_init(|| async { migrate(&options()).await.map(drop).unwrap() }).await;
    (Arc::new(CqlLedger::open(&options()).await.unwrap()), ())
}

promises!(cql, #[ignore = "needs a CQL server: make test-plane"]);

proptest! {
    #![proptest_config(Config { cases: 16, max_shrink_iters: 64, ..Config::default() })]

    #[test]
    #[ignore = "needs a CQL server: make test-plane"]
    fn any_history_ends_as_in_the_model(history in histories(40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (ledger, ()) = cql().await;
            engine_and_model_agree(ledger, history).await
        })?;
    }
}

#[tokio::test]
#[ignore = "needs a CQL server: make test-plane"]
async fn nodes_that_migrate_at_the_same_time_migrate_once() {
    let options = fresh();
    let err = CqlLedger::open(&options).await.unwrap_err();
    assert!(err.class() == Class::Schema && err.to_string().contains("basalt plane migrate"), "{err}");
    let mut migrators = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let options = options.clone();
        migrators.spawn(async move { migrate(&options).await.unwrap() });
    }
    let made: usize = migrators.join_all().await.iter().map(Vec::len).sum();
    assert_eq!(made, 2, "each migration is made once");
    assert_eq!(migrate(&options).await.unwrap(), Vec::<&str>::new());
    let status = status(&options).await.unwrap();
    assert_eq!((status.applied.len(), status.pending.len()), (2, 0));
    status.check().unwrap();
    let scene = Scene::new(Arc::new(CqlLedger::open(&options).await.unwrap()));
    scene.ledger.put(scene.pin(1)).await.unwrap();
    // All see the same hash key.
    let other = CqlLedger::open(&options).await.unwrap();
    assert_eq!(other.key().await.unwrap(), scene.ledger.key().await.unwrap());
    assert_eq!(
        other.dialect(),
        Dialect::Cassandra,
        "these tests run on Cassandra; on ScyllaDB this line is all that fails"
    );
}

#[tokio::test]
#[ignore = "needs a CQL server: make test-plane"]
async fn a_schema_that_took_away_what_this_build_needs_is_refused() {
    let options = fresh();
    migrate(&options).await.unwrap();
    let mut builder = scylla::client::session_builder::SessionBuilder::new().known_nodes(&options.contact_points);
    if options.tls.is_some() {
        return plain_only("a_schema_that_took_away_what_this_build_needs_is_refused");
    }
    if let Some((user, Password(password))) = &options.login {
        builder = builder.user(user, password);
    }
    let session = builder.build().await.unwrap();
    let later = |oldest| {
        format!(
            "INSERT INTO {}.schema_migrations (version, name, oldest_build) VALUES (99, 'later', {oldest})",
            options.keyspace
        )
    };
    // One that only adds is fine.
    session.query_unpaged(later(1), ()).await.unwrap();
    CqlLedger::open(&options).await.unwrap();
    session.query_unpaged(later(99), ()).await.unwrap();
    let err = CqlLedger::open(&options).await.unwrap_err();
    assert!(err.class() == Class::Schema && err.to_string().contains("upgrade this agent"), "{err}");
}

/// Said, so that nobody takes it for run.
fn plain_only(test: &str) {
    println!("{test}: not run with TLS; it runs on the plain server");
}

#[tokio::test]
#[ignore = "needs a CQL server: make test-plane"]
async fn nobody_there_is_told_within_seconds() {
    let began = Instant::now();
    let nowhere = CqlOptions { contact_points: vec!["127.0.0.1:1".to_owned()], ..options() };
    let err = CqlLedger::open(&nowhere).await.unwrap_err();
    assert!(err.class() == Class::Unavailable && err.to_string().contains("127.0.0.1:1"), "{err}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let elsewhere =
        CqlOptions { datacenter: "dc9".to_owned(), replication: [("dc9".to_owned(), 1)].into(), ..options() };
    let err = CqlLedger::open(&elsewhere).await.unwrap_err();
    assert!(
        err.class() == Class::Config && err.to_string().contains("no node is in datacenter 'dc9'; they are in: dc1"),
        "{err}"
    );
}

/// Only with `--auth` and TLS.
mod secured {
    use super::*;

    async fn fails(what: &str, options: CqlOptions, class: Class) {
        let began = Instant::now();
        let err = CqlLedger::open(&options).await.unwrap_err();
        println!("{what}: {:?}: {err}", began.elapsed());
        assert_eq!(err.class(), class, "{what}: {err}");
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}", began.elapsed());
        assert!(!format!("{err} {err:?} {options:?}").contains("hunter2"), "{what}: it tells the password");
    }

    #[tokio::test]
    #[ignore = "needs a CQL server with auth and mutual TLS: make test-plane"]
    async fn wrong_credentials_and_certificates_are_told_by_their_name() {
        let right = options();
        let (user, tls) = (right.login.clone().unwrap().0, right.tls.clone().unwrap());
        let login = Some((user, Password("hunter2".to_owned())));
        fails("a wrong password", CqlOptions { login, ..right.clone() }, Class::Denied).await;
        fails("no login", CqlOptions { login: None, ..right.clone() }, Class::Denied).await;
        // Our own certificate is no CA of the servers'.
        let foreign = foreign_ca();
        let wrong = Tls { ca_file: foreign.path().into(), ..tls.clone() };
        fails("a wrong CA", CqlOptions { tls: Some(wrong), ..right.clone() }, Class::Config).await;
        let missing = Tls { ca_file: "/nowhere/ca.pem".into(), ..tls.clone() };
        fails("a CA that is not there", CqlOptions { tls: Some(missing), ..right.clone() }, Class::Config).await;
        let bare = Tls { client: None, ..tls };
        fails("no certificate of ours", CqlOptions { tls: Some(bare), ..right.clone() }, Class::Config).await;
        fails("no TLS", CqlOptions { tls: None, ..right }, Class::Unavailable).await;
    }

    fn foreign_ca() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=other",
                "-keyout",
                "/dev/null",
                "-out",
            ])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        file
    }
}

/// Only with three nodes; BASALT_TEST_CQL_UP is the tool that kills and starts them.
mod fleet {
    use super::*;

    fn node(action: &str, number: u32) {
        let tool = env::var("BASALT_TEST_CQL_UP").expect("BASALT_TEST_CQL_UP names no cql-up; `make test-plane` does");
        let done = Command::new(tool).args(["node", action, &number.to_string()]).output().unwrap();
        assert!(done.status.success(), "node {action} {number}: {done:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs three CQL nodes: make test-plane"]
    async fn no_acknowledged_write_is_lost_and_none_is_doubled_while_nodes_die_and_freeze() {
        let options = CqlOptions { tries: 12, ..options() };
        assert!(options.contact_points.len() >= 3, "three nodes are needed");
        let (ledger, ()) = cql().await;
        drop(ledger);
        let scene = Arc::new(Scene::new(Arc::new(CqlLedger::open(&options).await.unwrap())));
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8_u64 {
            let (scene, stop) = (Arc::clone(&scene), Arc::clone(&stop));
            writers.spawn(async move {
                let (mut acknowledged, mut refused, mut made) = (Vec::new(), 0, 0);
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let pin = scene.pin(writer * 1_000_000 + n);
                    match scene.ledger.put(pin.clone()).await {
                        Ok(()) => acknowledged.push(pin),
                        Err(err) => {
                            assert!(err.class().passes(), "{err}");
                            refused += 1;
                        }
                    }
                    // And one that all writers want to make, each round.
                    let shared = scene.pin(9_000_000 + n / 4);
                    if n % 4 == 0
                        && matches!(
                            scene.ledger.apply_if(None, &basalt_stateplane::Change::Put(shared)).await,
                            Ok(Conditional::Applied)
                        )
                    {
                        made += 1;
                    }
                }
                (acknowledged, refused, made)
            });
        }
        tokio::task::spawn_blocking(|| {
            let pause = |seconds| std::thread::sleep(Duration::from_secs(seconds));
            pause(2);
            node("kill", 2);
            pause(4);
            node("start", 2);
            pause(2);
            node("pause", 3);
            pause(5);
            node("cont", 3);
            pause(2);
        })
        .await
        .unwrap();
        stop.store(true, Ordering::SeqCst);
        let (mut total, mut refusals, mut shared) = (0, 0, 0);
        for (acknowledged, refused, made) in writers.join_all().await {
            total += acknowledged.len();
            refusals += refused;
            shared += made;
            for pin in acknowledged {
                assert_eq!(scene.ledger.pin(&pin.key).await.unwrap().as_ref(), Some(&pin), "acknowledged and lost");
            }
        }
        let owner = scene.owner(0);
        let ledger = &scene.ledger;
        let listed = suite::all(1000, |after, limit| {
            let owner = owner.clone();
            async move { ledger.pins_of_owner(&owner, after.as_ref(), limit).await }
        });
        let listed = listed.await.unwrap();
        let distinct: std::collections::BTreeSet<_> = listed.iter().map(|pin| pin.key.clone()).collect();
        assert_eq!(distinct.len(), listed.len(), "a list shows a pin twice");
        let conditional = listed.iter().filter(|pin| pin.key.multihash >= scene.multihash(9_000_000)).count();
        assert!(shared <= conditional, "{shared} conditional puts were made, and there are {conditional} pins of them");
        assert!(total > 100 && listed.len() >= total, "{total} acknowledged, {} listed", listed.len());
        println!(
            "fleet: {total} puts acknowledged and there, {refusals} refused, {shared} of {conditional} conditional ones answered"
        );
    }
}
