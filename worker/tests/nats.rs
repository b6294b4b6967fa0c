//! The worker on a real JetStream, which it loses and which is hostile to it; Kubo is played. `tools/test-plane` runs these.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

#[path = "real/nats_server.rs"]
mod nats_server;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use async_nats::jetstream;
use async_trait::async_trait;
use basalt_kubo::Cid;
use basalt_stateplane::{Clock, Generation, Model, Multihash, Owner, Peer, PinLedger};
use basalt_worker::{
    Limits, MemoryJournal, Obstacle, Parts, Patience, Pinner, Reached, Worker, WorkerOptions,
    assign::{self, Request},
    message::{Assignment, DeadLetter, Kind, Op, Status, assign_subject},
    nats::{ASSIGN_STREAM, DEAD_STREAM, Login, Nats, NatsClass, NatsOptions, Publisher, STATUS_STREAM},
};
use futures_util::StreamExt;
use nats_server::Server;
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn cid(number: u32) -> Cid {
    let digest = [&[0x12, 0x20][..], &[0; 28], &number.to_be_bytes()].concat();
    Cid::try_from([&[1, 0x55][..], &digest].concat().as_slice()).unwrap()
}

fn multihash(cid: &Cid) -> Multihash {
    Multihash::from_bytes(&cid.hash().to_bytes()).unwrap()
}

/// A Kubo that is told how to be.
#[derive(Debug, Default)]
struct Played {
    pins: Mutex<BTreeSet<Cid>>,
    asked: Mutex<BTreeMap<Cid, u32>>,
    broken: Mutex<BTreeSet<Cid>>,
    /// While it is shut pins don't end.
    shut: Mutex<bool>,
    opened: Notify,
}

impl Played {
    fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.opened.notify_waiters();
    }

    fn asked(&self, cid: &Cid) -> u32 {
        self.asked.lock().unwrap().get(cid).copied().unwrap_or(0)
    }

    fn under_way(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait]
impl Pinner for Played {
    async fn pin(
        &self,
        cid: &Cid,
        _name: Option<&str>,
        progress: &(dyn Fn(Reached) + Send + Sync),
    ) -> Result<Option<u64>, Obstacle> {
        *self.asked.lock().unwrap().entry(*cid).or_default() += 1;
        progress(Reached { blocks: 1, bytes: 2 });
        loop {
            let opened = self.opened.notified();
            if !*self.shut.lock().unwrap() {
                break;
            }
            opened.await;
        }
        if self.broken.lock().unwrap().contains(cid) {
            return Err(Obstacle::Failed("no such block".into()));
        }
        self.pins.lock().unwrap().insert(*cid);
        Ok(Some(7))
    }

    async fn unpin(&self, cid: &Cid) -> Result<(), Obstacle> {
        self.pins.lock().unwrap().remove(cid);
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

struct Rig {
    peer: Peer,
    ledger: Arc<Model>,
    kubo: Arc<Played>,
    journal: Arc<MemoryJournal>,
    clock: Arc<Clock>,
    options: NatsOptions,
    stop: CancellationToken,
    running: Option<JoinHandle<()>>,
}

fn worker_options(nats: &NatsOptions) -> WorkerOptions {
    WorkerOptions {
        limits: Limits { running_max: 4, owner_running_max: 4, window: 64, owner_window: 64 },
        patience: Patience { tries_max: 3, delay: Duration::from_millis(100), ..Patience::default() },
        ack_wait: nats.ack_wait,
        ledger_interval: Duration::from_secs(3600),
        drain: Duration::from_millis(200),
    }
}

impl Rig {
    fn new(options: NatsOptions) -> Rig {
        Rig {
            peer: "12D3KooWtest".parse().unwrap(),
            ledger: Arc::new(Model::new()),
            kubo: Arc::default(),
            journal: Arc::default(),
            clock: Arc::new(Clock::new()),
            options,
            stop: CancellationToken::new(),
            running: None,
        }
    }

    fn start(&mut self, change: impl FnOnce(&mut WorkerOptions)) {
        let mut options = worker_options(&self.options);
        change(&mut options);
        let parts = Parts {
            peer: self.peer.clone(),
            ledger: self.ledger.clone(),
            pinner: self.kubo.clone(),
            journal: self.journal.clone(),
            bus: Some(Arc::new(Nats::new(self.options.clone(), self.peer.clone()))),
            clock: self.clock.clone(),
        };
        self.stop = CancellationToken::new();
        let (worker, stop) = (Worker::new(parts, options), self.stop.clone());
        self.running = Some(tokio::spawn(async move { worker.run(stop).await }));
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap();
    }

    /// Kills it between two steps: nothing is given back or drained.
    async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        running.abort();
        let _ = running.await;
    }

    async fn publisher(&self) -> Publisher {
        Publisher::connect(&self.options).await.unwrap()
    }

    async fn add(&self, publisher: &Publisher, cid: Cid) {
        let request = Request {
            cid,
            owner: owner(),
            name: None,
            tags: BTreeSet::new(),
            replicas: 1,
            expires: None,
            priority: Default::default(),
        };
        let at = std::slice::from_ref(&self.peer);
        let placed = assign::add(&*self.ledger, &self.clock, &request, at, &[]).await.unwrap();
        for (peer, assignment) in &placed.assignments {
            let (subject, id) = (assign_subject(peer).unwrap(), assignment.message_id(peer));
            publisher.publish(&subject, &id, assignment.to_bytes()).await.unwrap();
        }
    }

    async fn raw(&self, publisher: &Publisher, id: &str, payload: &[u8]) {
        publisher.publish(&assign_subject(&self.peer).unwrap(), id, payload.to_vec()).await.unwrap();
    }

    async fn held(&self, cid: &Cid) -> bool {
        let placed = self.ledger.placement(&multihash(cid), &self.peer).await.unwrap();
        placed.and_then(|placed| placed.have).is_some_and(|have| have.held)
    }

    async fn stream(&self, name: &str) -> jetstream::stream::Stream {
        let client = self.options.connect().await.unwrap();
        jetstream::new(client).get_stream(name).await.unwrap()
    }

    /// Waits until no message is left to be worked on.
    async fn worked_off(&self) {
        let stream = self.stream(ASSIGN_STREAM).await;
        eventually("the stream of assignments is empty", || async {
            (stream.get_info().await.unwrap().state.messages == 0).then_some(())
        })
        .await;
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Vec<T> {
        let stream = self.stream(name).await;
        let count = stream.get_info().await.unwrap().state.messages;
        let config = jetstream::consumer::pull::Config::default();
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut found = Vec::new();
        let mut messages = consumer.messages().await.unwrap().take(usize::try_from(count).unwrap());
        while let Some(message) = messages.next().await {
            found.push(serde_json::from_slice(&message.unwrap().payload).unwrap());
        }
        found
    }
}

fn owner() -> Owner {
    "me".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: tools/test-plane"]
async fn assignments_are_done_told_and_leave_the_stream() {
    let server = Server::start(&[]);
    let mut rig = Rig::new(server.options());
    let publisher = rig.publisher().await;
    for number in 0..50 {
        rig.add(&publisher, cid(number)).await;
    }
    rig.start(|_| {});
    rig.worked_off().await;
    for number in 0..50 {
        assert!(rig.held(&cid(number)).await);
        assert_eq!(rig.kubo.asked(&cid(number)), 1);
    }
    let statuses: Vec<Status> = rig.read(STATUS_STREAM).await;
    assert_eq!(statuses.len(), 50);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: tools/test-plane"]
async fn a_server_killed_with_work_unconfirmed_brings_it_back_and_all_of_it_happens_once() {
    let server = Server::start(&[]);
    let mut rig = Rig::new(server.options());
    let publisher = rig.publisher().await;
    for number in 0..20 {
        rig.add(&publisher, cid(number)).await;
    }
    *rig.kubo.shut.lock().unwrap() = true;
    rig.start(|_| {});
    eventually("pins are under way", || async { (rig.kubo.under_way() >= 4).then_some(()) }).await;
    server.kill();
    rig.kubo.open();
    // Four pins end while there is no server: their reports and confirmations go nowhere.
    eventually("pins are held", || async { (rig.kubo.pins.lock().unwrap().len() >= 4).then_some(()) }).await;
    server.up();
    rig.worked_off().await;
    for number in 0..20 {
        assert!(rig.held(&cid(number)).await, "{number}");
        assert_eq!(rig.kubo.asked(&cid(number)), 1, "{number} was pinned a second time");
    }
    let statuses: Vec<Status> = rig.read(STATUS_STREAM).await;
    let distinct: BTreeSet<_> = statuses.iter().map(|status| status.cid.clone()).collect();
    assert_eq!((statuses.len(), distinct.len()), (20, 20), "each is told once");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: tools/test-plane"]
async fn hostile_messages_are_put_aside_with_the_reason_and_the_rest_goes_on() {
    let server = Server::start(&[]);
    let mut rig = Rig::new(server.options());
    let publisher = rig.publisher().await;
    rig.start(|_| {});
    let now = i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros()).unwrap();
    let assignment = |generation: i64| {
        let made = Assignment::new(Op::Pin, cid(9), Generation::new(generation).unwrap(), owner()).unwrap();
        made.to_bytes()
    };
    let hostile: [(&[u8], Kind); 8] = [
        (b"", Kind::Poison),
        (b"\xff\xfe\x00", Kind::Poison),
        (br#"{"v":1}"#, Kind::Poison),
        (br#"{"v":1,"op":"pin","cid":"../../etc/passwd","generation":1,"owner":"x"}"#, Kind::Poison),
        (br#"{"v":7,"op":"reboot"}"#, Kind::Version),
        (&[b'['; 30_000], Kind::Oversized),
        (&assignment(now + 3_600_000_000), Kind::Ahead),
        (&assignment(now - 12 * 86_400_000_000), Kind::Old),
    ];
    for (at, (payload, _)) in hostile.iter().enumerate() {
        rig.raw(&publisher, &format!("hostile-{at}"), payload).await;
    }
    rig.add(&publisher, cid(1)).await;
    rig.worked_off().await;
    assert!(rig.held(&cid(1)).await && !rig.held(&cid(9)).await);
    let letters: Vec<DeadLetter> = rig.read(DEAD_STREAM).await;
    let mut kinds: Vec<&str> = letters.iter().map(|letter| letter.kind.name()).collect();
    let mut wanted: Vec<&str> = hostile.iter().map(|(_, kind)| kind.name()).collect();
    kinds.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(kinds, wanted);
    assert!(letters.iter().all(|letter| !letter.why.is_empty() && letter.message.len() <= 24 << 10));
    assert!(letters.iter().any(|letter| letter.why.contains("set the clocks")));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: tools/test-plane"]
async fn a_pin_that_takes_many_times_the_servers_patience_is_delivered_once() {
    let server = Server::start(&[]);
    let mut rig = Rig::new(NatsOptions { ack_wait: Duration::from_millis(600), ..server.options() });
    let publisher = rig.publisher().await;
    *rig.kubo.shut.lock().unwrap() = true;
    rig.start(|_| {});
    // More than run at a time: what waits for its turn is spoken for as well.
    for number in 0..8 {
        rig.add(&publisher, cid(number)).await;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let consumer: jetstream::consumer::PullConsumer =
        rig.stream(ASSIGN_STREAM).await.get_consumer(&format!("agent-{}", rig.peer)).await.unwrap();
    let redelivered = consumer.get_info().await.unwrap().num_redelivered;
    rig.kubo.open();
    rig.worked_off().await;
    assert_eq!(redelivered, 0);
    assert!((0..8).all(|number| rig.kubo.asked(&cid(number)) == 1));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: tools/test-plane"]
async fn what_fails_comes_again_later_and_later_and_is_then_given_up_with_the_reason() {
    let server = Server::start(&[]);
    let mut rig = Rig::new(server.options());
    let publisher = rig.publisher().await;
    rig.kubo.broken.lock().unwrap().insert(cid(3));
    rig.start(|_| {});
    rig.add(&publisher, cid(3)).await;
    rig.add(&publisher, cid(4)).await;
    rig.worked_off().await;
    assert_eq!(rig.kubo.asked(&cid(3)), 3);
    assert!(rig.held(&cid(4)).await);
    let letters: Vec<DeadLetter> = rig.read(DEAD_STREAM).await;
    assert_eq!((letters.len(), letters[0].kind), (1, Kind::Failed));
    assert!(letters[0].why.contains("given up after 3 tries: no such block"), "{letters:?}");
    let have = rig.ledger.placement(&multihash(&cid(3)), &rig.peer).await.unwrap().unwrap().have.unwrap();
    assert_eq!((have.held, have.error.as_deref()), (false, Some("no such block")));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: tools/test-plane"]
async fn a_worker_that_stops_gives_back_and_the_next_one_goes_on() {
    let server = Server::start(&[]);
    let mut rig = Rig::new(server.options());
    let publisher = rig.publisher().await;
    *rig.kubo.shut.lock().unwrap() = true;
    rig.start(|_| {});
    for number in 0..30 {
        rig.add(&publisher, cid(number)).await;
    }
    eventually("pins are under way", || async { (rig.kubo.under_way() >= 4).then_some(()) }).await;
    rig.stop().await;
    assert!(rig.kubo.pins.lock().unwrap().is_empty());
    rig.kubo.open();
    let began = Instant::now();
    rig.start(|_| {});
    rig.worked_off().await;
    assert!(began.elapsed() < Duration::from_secs(30), "given back, they come at once");
    for number in 0..30 {
        assert!(rig.held(&cid(number)).await);
    }
    // Killed, it gives nothing back; the server notices.
    *rig.kubo.shut.lock().unwrap() = true;
    rig.add(&publisher, cid(77)).await;
    eventually("the pin is under way", || async { (rig.kubo.asked(&cid(77)) == 1).then_some(()) }).await;
    rig.kill().await;
    rig.kubo.open();
    rig.start(|_| {});
    rig.worked_off().await;
    assert!(rig.held(&cid(77)).await);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: tools/test-plane"]
async fn without_a_server_the_ledger_alone_brings_work_and_messages_come_once_it_is_there() {
    let server = Server::start(&[]);
    let mut rig = Rig::new(server.options());
    let publisher = rig.publisher().await;
    rig.add(&publisher, cid(1)).await;
    server.kill();
    rig.start(|options| options.ledger_interval = Duration::from_millis(50));
    eventually("the ledger's work is done", || async { rig.held(&cid(1)).await.then_some(()) }).await;
    server.up();
    rig.worked_off().await;
    assert_eq!(rig.kubo.asked(&cid(1)), 1, "its message found it done");
    rig.stop().await;
}

fn class(outcome: Result<(), basalt_worker::nats::NatsError>) -> (NatsClass, String) {
    let err = outcome.unwrap_err();
    (err.class, err.to_string())
}

/// Whatever is wrong with who we are, it is told in words within seconds.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: tools/test-plane"]
async fn wrong_credentials_are_told_within_seconds_and_right_ones_work() {
    for auth in ["user", "nkey", "jwt"] {
        let server = Server::start(&["--auth", auth]);
        let right = server.options();
        right.check().await.unwrap();
        let began = Instant::now();
        let nobody = NatsOptions { login: Login::None, ..right.clone() };
        let (kind, why) = class(nobody.check().await);
        assert_eq!(kind, NatsClass::Denied, "{auth}: {why}");
        // Whole and well formed, and another server's.
        let elsewhere = Server::start(&["--auth", auth]);
        let other = match elsewhere.options().login {
            Login::User(user, _) => Login::User(user, server.write("wrong", "hunter2")),
            other => other,
        };
        let (kind, why) = class(NatsOptions { login: other, ..right.clone() }.check().await);
        assert_eq!(kind, NatsClass::Denied, "{auth}: {why}");
        assert!(why.contains("authorization violation") && why.contains("credentials"), "{auth}: {why}");
        assert!(!why.contains("hunter2") && !format!("{why:?}").contains("SUA"), "{auth}: {why}");
        assert!(began.elapsed() < Duration::from_secs(10), "{auth}: it took {:?}", began.elapsed());
        for login in [Login::Nkey(server.write("junk", "junk")), Login::Credentials(server.write("junk", "junk"))] {
            let (kind, why) = class(NatsOptions { login, ..right.clone() }.check().await);
            assert!(kind == NatsClass::Config && why.contains("junk"), "{why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a NATS server: tools/test-plane"]
async fn wrong_authorities_and_certificates_are_told_within_seconds_and_right_ones_work() {
    let server = Server::start(&["--mtls", "--auth", "jwt"]);
    let other = Server::start(&["--mtls"]);
    let right = server.options();
    right.check().await.unwrap();
    let began = Instant::now();
    let wrong = [
        ("another authority", NatsOptions { ca_file: other.options().ca_file, ..right.clone() }),
        ("no certificate of ours", NatsOptions { client: None, ..right.clone() }),
        ("another's certificate", NatsOptions { client: other.options().client, ..right.clone() }),
        ("no authority", NatsOptions { ca_file: None, client: None, ..right.clone() }),
    ];
    for (what, options) in wrong {
        let (kind, why) = class(options.check().await);
        assert_eq!(kind, NatsClass::Tls, "{what}: {why}");
        assert!(why.contains("tls_ca_file"), "{what}: {why}");
    }
    assert!(began.elapsed() < Duration::from_secs(16), "it took {:?}", began.elapsed());
    let (kind, why) = class(NatsOptions { servers: vec!["nats://127.0.0.1:1".into()], ..right }.check().await);
    assert!(kind == NatsClass::Away && why.contains("is it running"), "{why}");
}
