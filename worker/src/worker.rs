//! The worker itself: takes work from the bus and the ledger, drives each piece through its steps with the real parts, and stops in good order.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use basalt_kubo::Cid;
use basalt_stateplane::{Clock, Generation, Multihash, Owner, PAGE_MAX, Peer, PinLedger, Placement, metrics};
use bytes::Bytes;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    bus::{Answer, Bus, Delivery},
    failpoint,
    job::{self, Action, Event, Job, Obstacle, Origin, Patience},
    journal::{Journal, JournalError},
    message::{Assignment, DeadLetter, Kind, Op, Priority, dead_subject, status_subject},
    pinner::{Pinner, Reached},
    queue::{Limits, Queue, Queued, SHARE_TAKEN_MAX, SHARE_TAKEN_PAUSE},
};

/// How a worker works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerOptions {
    /// Bounds of the queue.
    pub limits: Limits,
    /// Bounds of patience.
    pub patience: Patience,
    /// The bus delivers a message again that was not heard of for so long. A third of it is the pause between progress answers.
    pub ack_wait: Duration,
    /// Time between two looks at the ledger for what is not as wanted.
    pub ledger_interval: Duration,
    /// How long work under way may take to end when the worker stops.
    pub drain: Duration,
}

impl Default for WorkerOptions {
    fn default() -> WorkerOptions {
        WorkerOptions {
            limits: Limits { running_max: 16, owner_running_max: 8, window: 512, owner_window: 384 },
            patience: Patience::default(),
            ack_wait: Duration::from_secs(30),
            ledger_interval: Duration::from_secs(60),
            drain: Duration::from_secs(10),
        }
    }
}

/// What a worker stands on.
#[derive(Clone)]
pub struct Parts {
    /// Whose worker it is.
    pub peer: Peer,
    /// Who wants what, and who is told.
    pub ledger: Arc<dyn PinLedger>,
    /// Who pins.
    pub pinner: Arc<dyn Pinner>,
    /// What was done.
    pub journal: Arc<dyn Journal>,
    /// Who brings assignments; none: the ledger alone does.
    pub bus: Option<Arc<dyn Bus>>,
    /// Of all observations of this peer.
    pub clock: Arc<Clock>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// A worker. Cloned, it is the same one.
#[derive(Clone, Debug)]
pub struct Worker {
    inner: Arc<Inner>,
}

/// How it stands with a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerStanding {
    /// Waiting and under way.
    pub depth: usize,
    /// Under way.
    pub running: usize,
    /// Why Kubo can't be asked.
    pub kubo_away: Option<String>,
}

struct Inner {
    parts: Parts,
    options: WorkerOptions,
    began: Instant,
    queue: Mutex<Queue<Held>>,
    wake: Notify,
    kicked: Notify,
    /// Why Kubo can't be asked; nothing begins meanwhile.
    away: Mutex<Option<String>>,
    tries: Mutex<HashMap<(Multihash, Generation), Tried>>,
    live: Mutex<HashMap<Multihash, Reached>>,
    answers: Mutex<HashMap<u64, Arc<dyn Answer>>>,
    next_answer: AtomicU64,
    /// Records were left untold by work that could not go on.
    leftover: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Tried {
    times: u32,
    not_before: Instant,
}

/// Entries of the memory of tries; beyond that it begins anew, which costs tries, no more.
const TRIED_MAX: usize = 65_536;
/// How long work from the ledger that was given up is left alone.
const GIVEN_UP_PAUSE: Duration = Duration::from_secs(3600);
/// Time between two questions whether Kubo is back.
const KUBO_POLL: Duration = Duration::from_secs(1);
/// Time after which the ledger is looked through again where that failed.
const LEDGER_AGAIN: Duration = Duration::from_secs(1);
/// Time between two tries to tell what was left untold.
const UNTOLD_POLL: Duration = Duration::from_secs(5);
/// Time between two looks whether there is room for more.
const ROOM_POLL: Duration = Duration::from_millis(20);
/// Records told at a time.
const UNTOLD_AT_A_TIME: usize = 256;
/// Codecs by which a multihash may be pinned where nothing says which: raw, dag-pb, dag-cbor, dag-json.
const CODECS: &[u64] = &[0x55, 0x70, 0x71, 0x129];

/// Work with what it came in.
struct Held {
    job: Job,
    payload: Bytes,
    answer: Option<InHand>,
    came: Instant,
}

/// A message in hand: the bus is told now and then that it still is.
struct InHand {
    inner: Arc<Inner>,
    number: u64,
    answer: Arc<dyn Answer>,
}

impl Drop for InHand {
    fn drop(&mut self) {
        lock(&self.inner.answers).remove(&self.number);
    }
}

impl Queued for Held {
    fn multihash(&self) -> &Multihash {
        &self.job.assignment.multihash
    }
    fn owner(&self) -> &Owner {
        &self.job.assignment.owner
    }
    fn priority(&self) -> Priority {
        self.job.assignment.priority
    }
}

/// Takes its work off the queue's account however it ends.
struct Running {
    inner: Arc<Inner>,
    multihash: Multihash,
    owner: Owner,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Also where the task is given up at a stop: only a process that ends in it leaves it without an end.
        if let Err(err) = self.inner.parts.journal.end(&self.multihash) {
            tracing::warn!(%err, "the end of a piece of work could not be noted");
        }
        lock(&self.inner.queue).done(&self.multihash, &self.owner);
        lock(&self.inner.live).remove(&self.multihash);
        self.inner.count();
        self.inner.wake.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("peer", &self.parts.peer).finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker that does nothing yet.
    pub fn new(parts: Parts, options: WorkerOptions) -> Worker {
        let queue = Mutex::new(Queue::new(options.limits));
        let inner = Inner {
            parts,
            options,
            began: Instant::now(),
            queue,
            wake: Notify::new(),
            kicked: Notify::new(),
            away: Mutex::default(),
            tries: Mutex::default(),
            live: Mutex::default(),
            answers: Mutex::default(),
            next_answer: AtomicU64::new(0),
            leftover: AtomicBool::new(true),
        };
        Worker { inner: Arc::new(inner) }
    }

    /// Whose worker it is.
    pub fn peer(&self) -> &Peer {
        &self.inner.parts.peer
    }

    /// Looks at the ledger now: something there has changed.
    pub fn kick(&self) {
        self.inner.kicked.notify_one();
    }

    /// How far the pin of a multihash is, while it is under way.
    pub fn reached(&self, multihash: &Multihash) -> Option<Reached> {
        lock(&self.inner.live).get(multihash).copied()
    }

    /// How it stands.
    pub fn standing(&self) -> WorkerStanding {
        let queue = lock(&self.inner.queue);
        WorkerStanding { depth: queue.len(), running: queue.running(), kubo_away: lock(&self.inner.away).clone() }
    }

    /// Works until it is stopped. Then what has not begun goes back to the bus, and what is under way gets `drain` to end; what is left is
    /// given back too. Killed instead, it loses nothing.
    pub async fn run(&self, stop: CancellationToken) {
        let inner = &self.inner;
        let mut around = JoinSet::new();
        if inner.parts.bus.is_some() {
            around.spawn(inner.clone().take_in());
            around.spawn(inner.clone().tell_progress());
        }
        around.spawn(inner.clone().watch_ledger());
        around.spawn(inner.clone().watch_kubo());
        around.spawn(inner.clone().tell_leftovers());
        let mut running = JoinSet::new();
        loop {
            while let Some(held) = inner.take() {
                running.spawn(inner.clone().work(held));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = inner.wake.notified() => {}
                Some(ended) = running.join_next() => {
                    if let Err(err) = ended {
                        tracing::error!(%err, "a piece of work ended unforeseen; its message comes again");
                        metrics::failure("panic");
                    }
                }
            }
        }
        around.shutdown().await;
        let waiting = lock(&inner.queue).drain();
        tracing::info!(waiting = waiting.len(), under_way = running.len(), "the worker stops");
        for held in waiting {
            inner.give_back(&held.answer, Duration::from_secs(1)).await;
        }
        let drained = tokio::time::timeout(inner.options.drain, async { while running.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!(under_way = running.len(), "work that did not end in time is given up; it comes again");
            running.shutdown().await;
            let left: Vec<_> = lock(&inner.answers).values().cloned().collect();
            for answer in left {
                let _ = answer.postpone(Duration::from_secs(1)).await;
            }
        }
    }
}

impl Inner {
    fn count(&self) {
        let queue = lock(&self.queue);
        metrics::queue_depth(queue.len() as u64);
    }

    fn take(&self) -> Option<Held> {
        if lock(&self.away).is_some() {
            return None;
        }
        lock(&self.queue).pop()
    }

    #[allow(clippy::result_large_err, reason = "what comes back is used at once")]
    fn push(self: &Arc<Inner>, held: Held) -> Result<(), Held> {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let pushed = lock(&self.queue).push(held, now_ms);
        self.count();
        self.wake.notify_one();
        pushed
    }

    fn tries(&self, assignment: &Assignment) -> Option<Tried> {
        lock(&self.tries).get(&(assignment.multihash.clone(), assignment.generation)).copied()
    }

    fn tried(&self, job: &Job, pause: Duration) {
        let mut tries = lock(&self.tries);
        if tries.len() >= TRIED_MAX {
            tries.clear();
        }
        let tried = Tried { times: job.tries, not_before: Instant::now() + pause };
        tries.insert((job.assignment.multihash.clone(), job.assignment.generation), tried);
    }

    async fn give_back(&self, answer: &Option<InHand>, pause: Duration) {
        if let Some(hand) = answer
            && let Err(err) = hand.answer.postpone(pause).await
        {
            tracing::debug!(%err, "a message could not be given back; it comes again all the same");
        }
    }

    /// Messages, as long as there is room and Kubo is there.
    async fn take_in(self: Arc<Inner>) {
        let Some(bus) = self.parts.bus.clone() else { return };
        loop {
            while lock(&self.away).is_some() || lock(&self.queue).room() == 0 {
                tokio::time::sleep(ROOM_POLL).await;
            }
            match bus.next().await {
                Ok(delivery) => self.received(delivery).await,
                Err(err) => {
                    metrics::failure("bus");
                    tracing::warn!(%err, "no assignments can be had");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn received(self: &Arc<Inner>, delivery: Delivery) {
        metrics::event("received");
        failpoint::reached("worker.received");
        let number = self.next_answer.fetch_add(1, Ordering::Relaxed);
        lock(&self.answers).insert(number, delivery.answer.clone());
        let hand = InHand { inner: self.clone(), number, answer: delivery.answer };
        match Assignment::parse(&delivery.payload, now_us()) {
            Ok(assignment) => {
                let origin = Origin::Message { delivered: delivery.delivered };
                let tries = self.tries(&assignment).map_or(0, |tried| tried.times);
                let job = Job::new(assignment, origin, tries, self.parts.peer.clone(), self.options.patience.clone());
                let held = Held { job, payload: delivery.payload, answer: Some(hand), came: Instant::now() };
                if let Err(held) = self.push(held) {
                    metrics::event("postponed");
                    let times = u32::try_from(delivery.delivered).unwrap_or(u32::MAX).clamp(1, SHARE_TAKEN_MAX);
                    self.give_back(&held.answer, SHARE_TAKEN_PAUSE * times).await;
                }
            }
            // It may be this host's clock that is wrong, and be set right.
            Err(why) if why.kind == Kind::Ahead && delivery.delivered < u64::from(self.options.patience.tries_max) => {
                metrics::failure(why.kind.name());
                let tries = u32::try_from(delivery.delivered).unwrap_or(u32::MAX);
                tracing::warn!(%why, "an assignment waits");
                self.give_back(&Some(hand), self.options.patience.pause(tries, &[])).await;
            }
            Err(why) => {
                tracing::warn!(%why, kind = why.kind.name(), "a message is put aside");
                let letter = DeadLetter::new(&self.parts.peer, why, delivery.delivered, &delivery.payload);
                if self.bury(&letter).await
                    && let Err(err) = hand.answer.confirm().await
                {
                    tracing::debug!(%err, "a message that was put aside comes again");
                }
            }
        }
    }

    async fn bury(&self, letter: &DeadLetter) -> bool {
        metrics::failure(letter.kind.name());
        let Some(bus) = &self.parts.bus else { return true };
        // By the bytes, so that a message that comes again after a crash is one letter.
        let id = format!("{}/{}/{:016x}", letter.peer, letter.kind.name(), checksum(letter.message.as_bytes()));
        match bus.publish(&dead_subject(&self.parts.peer), &id, letter.to_bytes()).await {
            Ok(()) => {
                metrics::event("dead_letter");
                true
            }
            Err(err) => {
                tracing::warn!(%err, "a dead letter could not be published; the message stays where it is");
                false
            }
        }
    }

    /// Says of every message in hand that it still is.
    async fn tell_progress(self: Arc<Inner>) {
        loop {
            tokio::time::sleep(self.options.ack_wait / 3).await;
            let answers: Vec<_> = lock(&self.answers).values().cloned().collect();
            for answer in answers {
                if let Err(err) = answer.progress().await {
                    tracing::debug!(%err, "progress could not be told");
                }
            }
        }
    }

    /// Asks whether Kubo is there: always at first, then while it is away.
    async fn watch_kubo(self: Arc<Inner>) {
        loop {
            match self.parts.pinner.ready().await {
                Ok(()) => {
                    if lock(&self.away).take().is_some() {
                        tracing::info!("Kubo is back");
                        self.wake.notify_one();
                        self.kicked.notify_one();
                    }
                    while lock(&self.away).is_none() {
                        tokio::time::sleep(KUBO_POLL).await;
                    }
                }
                Err(why) => {
                    self.is_away(&why);
                    tokio::time::sleep(KUBO_POLL).await;
                }
            }
        }
    }

    fn is_away(&self, why: &str) {
        if lock(&self.away).replace(why.to_owned()).is_none() {
            tracing::warn!(why, "Kubo can't be asked; work waits until it is back");
            metrics::failure("away");
        }
    }

    /// What was done in Kubo and not told: by an earlier life, or while the ledger was away.
    async fn tell_leftovers(self: Arc<Inner>) {
        loop {
            if self.leftover.swap(false, Ordering::SeqCst) {
                match self.leftovers().await {
                    Ok(0) => {}
                    Ok(told) => tracing::info!(told, "what was done before is told now"),
                    Err(why) => {
                        self.leftover.store(true, Ordering::SeqCst);
                        tracing::warn!(why, "what was done can't be told yet");
                    }
                }
            }
            tokio::time::sleep(UNTOLD_POLL).await;
        }
    }

    async fn leftovers(&self) -> Result<u64, String> {
        let mut told = 0;
        loop {
            let untold =
                self.journaled(|journal| journal.untold(UNTOLD_AT_A_TIME)).await.map_err(|err| err.to_string())?;
            let last = untold.len() < UNTOLD_AT_A_TIME;
            for record in untold {
                let changes = job::changes(&record, &self.parts.peer, true);
                self.parts.ledger.apply(&changes).await.map_err(|err| err.to_string())?;
                if let Some(bus) = &self.parts.bus {
                    let status = job::status(&record, &self.parts.peer);
                    let id = status.message_id(&record.multihash);
                    let subject = status_subject(&self.parts.peer);
                    bus.publish(&subject, &id, status.to_bytes()).await.map_err(|err| err.to_string())?;
                }
                let (multihash, generation) = (record.multihash, record.have_generation);
                let settled = self.journaled(move |journal| journal.told(&multihash, generation)).await;
                settled.map_err(|err| err.to_string())?;
                metrics::event("recovered");
                told += 1;
            }
            if last {
                return Ok(told);
            }
        }
    }

    async fn journaled<T, F>(&self, work: F) -> Result<T, JournalError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Journal) -> Result<T, JournalError> + Send + 'static,
    {
        let journal = self.parts.journal.clone();
        match tokio::task::spawn_blocking(move || work(&*journal)).await {
            Ok(done) => done,
            Err(err) => Err(JournalError::ended(&err)),
        }
    }

    /// Now and then, and when it is told: what the ledger wants here and is not so.
    async fn watch_ledger(self: Arc<Inner>) {
        loop {
            let mut pause = self.options.ledger_interval;
            let began = Instant::now();
            if lock(&self.away).is_none() {
                match self.look_at_ledger().await {
                    // A look that takes long is taken less often.
                    Ok(()) => pause = pause.max(began.elapsed() * 20),
                    Err(err) => {
                        tracing::debug!(%err, "the ledger could not be looked through");
                        pause = pause.min(LEDGER_AGAIN);
                    }
                }
            }
            let _ = tokio::time::timeout(pause, self.kicked.notified()).await;
        }
    }

    async fn look_at_ledger(self: &Arc<Inner>) -> basalt_stateplane::Result<()> {
        let mut after = None;
        loop {
            let page =
                self.parts.ledger.placements_of_peer(&self.parts.peer, None, after.as_ref(), PAGE_MAX / 10).await?;
            for placement in page.items {
                if job::is_due(&placement) {
                    self.from_ledger(placement).await?;
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn from_ledger(self: &Arc<Inner>, placement: Placement) -> basalt_stateplane::Result<()> {
        let Some(want) = placement.want else { return Ok(()) };
        let multihash = placement.multihash;
        if lock(&self.queue).has(&multihash) {
            return Ok(());
        }
        let pins = self.parts.ledger.pins_of(&multihash, None, PAGE_MAX / 10).await?.items;
        let Ok(hash) = Cid::try_from(cid_v1(0x55, multihash.as_bytes()).as_slice()).map(|cid| *cid.hash()) else {
            return Ok(());
        };
        let known = pins.first();
        let codec = match (known, want.wanted) {
            (Some(pin), _) => pin.key.codec,
            // By whichever codec: all of them are tried.
            (None, false) => CODECS.first().copied().unwrap_or(0x55),
            // The pin that this belongs to is on its way, or gone.
            (None, true) => return Ok(()),
        };
        let owner = known.map(|pin| pin.key.owner.clone()).or_else(|| "ledger".parse().ok());
        let Some(owner) = owner else { return Ok(()) };
        let Ok(mut assignment) = Assignment::new(Op::of(want.wanted), Cid::new_v1(codec, hash), want.generation, owner)
        else {
            return Ok(());
        };
        assignment.name = known.and_then(|pin| pin.name.clone());
        let tried = self.tries(&assignment);
        if tried.is_some_and(|tried| Instant::now() < tried.not_before) {
            return Ok(());
        }
        let tries = tried.map_or(0, |tried| tried.times);
        let mut job =
            Job::new(assignment, Origin::Ledger, tries, self.parts.peer.clone(), self.options.patience.clone());
        job.more = match want.wanted {
            true => Vec::new(),
            false => CODECS.iter().map(|codec| Cid::new_v1(*codec, hash)).collect(),
        };
        let mut held = Held { job, payload: Bytes::new(), answer: None, came: Instant::now() };
        // Unlike messages these wait outside for room, of which half is kept for messages: what was delivered must not lie about unseen.
        loop {
            if lock(&self.queue).room() * 2 > self.options.limits.window {
                match self.push(held) {
                    Ok(()) => return Ok(()),
                    Err(back) => held = back,
                }
            }
            tokio::time::sleep(ROOM_POLL).await;
        }
    }

    /// Drives one piece of work to its end.
    async fn work(self: Arc<Inner>, mut held: Held) {
        let assignment = held.job.assignment.clone();
        let _running =
            Running { inner: self.clone(), multihash: assignment.multihash.clone(), owner: assignment.owner.clone() };
        self.count();
        let multihash = assignment.multihash.clone();
        match self.journaled(move |journal| journal.begin(&multihash)).await {
            Ok(times) => held.job.begun = times,
            Err(err) => {
                self.done("journal", Err(err));
                return self.give_back(&held.answer, self.options.patience.delay).await;
            }
        }
        let mut event = Event::Begin;
        loop {
            let action = held.job.next(std::mem::replace(&mut event, Event::Failed));
            event = match action {
                Action::End => break,
                Action::Look => self.look(&assignment).await,
                Action::Change { op, cids, name } => {
                    let event = self.change(&assignment.multihash, op, &cids, name.as_ref().map(|n| n.as_str())).await;
                    if let Event::Changed { outcome: Ok(_), .. } = &event {
                        let took = held.came.elapsed().as_secs_f64();
                        metrics::assign_to_pinned(op.name(), took);
                    }
                    failpoint::reached("worker.changed");
                    event
                }
                Action::Journal(record) => {
                    let done = self.journaled(move |journal| journal.put(&record)).await;
                    failpoint::reached("worker.journaled");
                    self.done("journal", done)
                }
                Action::Tell(changes) => {
                    let done = self.parts.ledger.apply(&changes).await;
                    failpoint::reached("worker.told");
                    if done.is_err() {
                        self.leftover.store(true, Ordering::SeqCst);
                    }
                    self.done("ledger", done)
                }
                Action::Report(status) => {
                    let done = self.report(&held, &status).await;
                    failpoint::reached("worker.reported");
                    self.done("bus", done)
                }
                Action::Bury(why) => {
                    let letter = held.job.dead_letter(why, &held.payload);
                    if self.bury(&letter).await { Event::Done } else { Event::Failed }
                }
                Action::Settle(record) => {
                    let (multihash, generation) = (record.multihash, record.have_generation);
                    let done = self.journaled(move |journal| journal.told(&multihash, generation)).await;
                    failpoint::reached("worker.settled");
                    self.done("journal", done)
                }
                Action::Acknowledge => match &held.answer {
                    None => Event::Done,
                    Some(hand) => {
                        let done = hand.answer.confirm().await;
                        failpoint::reached("worker.acknowledged");
                        // Unheard, it comes again and finds all of it done.
                        self.done("bus", done)
                    }
                },
                Action::Postpone(pause) => {
                    metrics::event("postponed");
                    self.tried(&held.job, pause);
                    self.give_back(&held.answer, pause).await;
                    return;
                }
            };
        }
        self.over(&held);
    }

    fn over(&self, held: &Held) {
        let Some(record) = held.job.record() else { return };
        let status = job::status(record, &self.parts.peer);
        metrics::event(status.state.name());
        if record.generation != held.job.assignment.generation {
            metrics::event("superseded");
        }
        let key = (record.multihash.clone(), held.job.assignment.generation);
        if let Some(error) = &record.error {
            tracing::warn!(cid = status.cid, error, "given up");
            metrics::failure("given_up");
            self.tried(&held.job, GIVEN_UP_PAUSE);
        } else {
            lock(&self.tries).remove(&key);
            let seconds = now_us().saturating_sub(record.generation.get()).max(0) as f64 / 1e6;
            let source = if held.answer.is_some() { "nats" } else { "ledger" };
            metrics::end_to_end(source, record.op.name(), seconds);
        }
    }

    fn done<E: fmt::Display>(&self, kind: &str, done: Result<(), E>) -> Event {
        match done {
            Ok(()) => Event::Done,
            Err(err) => {
                metrics::failure(kind);
                tracing::warn!(%err, "a piece of work can't go on; it comes again");
                Event::Failed
            }
        }
    }

    async fn look(&self, assignment: &Assignment) -> Event {
        let multihash = assignment.multihash.clone();
        let record = match self.journaled(move |journal| journal.get(&multihash)).await {
            Ok(record) => record,
            Err(err) => return self.done("journal", Err(err)),
        };
        let placement = match self.parts.ledger.placement(&assignment.multihash, &self.parts.peer).await {
            Ok(placement) => Some(placement),
            Err(err) => {
                // The journal fences what this worker has done; what others want is seen when the ledger is back.
                tracing::debug!(%err, "the ledger can't be asked");
                None
            }
        };
        if let Some(have) =
            placement.as_ref().and_then(|placed| placed.as_ref()).and_then(|placed| placed.have.as_ref())
        {
            self.parts.clock.saw(have.generation);
        }
        if let Some(record) = &record {
            self.parts.clock.saw(record.have_generation);
        }
        failpoint::reached("worker.looked");
        Event::Looked { record, placement }
    }

    async fn change(&self, multihash: &Multihash, op: Op, cids: &[Cid], name: Option<&str>) -> Event {
        let mut outcome = Ok(None);
        let progress = |reached: Reached| {
            lock(&self.live).insert(multihash.clone(), reached);
        };
        for cid in cids {
            outcome = match op {
                Op::Pin => self.parts.pinner.pin(cid, name, &progress).await,
                Op::Unpin => self.parts.pinner.unpin(cid).await.map(|()| None),
            };
            if let Err(obstacle) = &outcome {
                match obstacle {
                    Obstacle::Away(why) => self.is_away(why),
                    Obstacle::Failed(why) | Obstacle::Never(why) => {
                        metrics::failure("failed");
                        tracing::info!(%cid, why, "{} did not work", op.name());
                    }
                }
                break;
            }
        }
        let at_ms = u64::try_from(now_us() / 1000).unwrap_or(0);
        Event::Changed { outcome, generation: self.parts.clock.next(), at_ms }
    }

    async fn report(&self, held: &Held, status: &crate::message::Status) -> Result<(), crate::bus::BusError> {
        let Some(bus) = &self.parts.bus else { return Ok(()) };
        let id = status.message_id(&held.job.assignment.multihash);
        let published = bus.publish(&status_subject(&self.parts.peer), &id, status.to_bytes()).await;
        match published {
            Err(err) if held.answer.is_none() => {
                // Found in the ledger, and told there: the bus may be away for days.
                tracing::debug!(%err, "a status is not published");
                Ok(())
            }
            other => other,
        }
    }
}

/// A CID's bytes, from a multihash's.
fn cid_v1(codec: u8, multihash: &[u8]) -> Vec<u8> {
    [&[1, codec], multihash].concat()
}

/// FNV-1a: tells letters apart, no more.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
