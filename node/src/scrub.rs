//! The scrub in the background: when a pass is due, how fast it goes, what is done about what it finds.
//!
//! One thread for the node takes one store at a time, so that no two shards are scrubbed at once. It reads at most so many bytes a second, and before each
//! read stands back a moment for reads of others that are under way. Where it is survives a restart. At the end of a pass it tries to heal what is
//! quarantined: from the block's own bytes, where the disk gives them again, and from whoever the host has named as [`Healer`].

use std::{
    fmt::Debug,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use basalt_blockstore::{
    Error, ErrorKind, Multihash, Result, Store,
    store::{ScrubReader, ScrubState},
};
use basalt_datastore::Datastore;
use basalt_proto::v1::{self, control_scrub_request::Action};

/// What an operator chose about the scrub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Bytes that it reads in a second, of all stores together; 0 for never.
    pub rate_bytes: u64,
    /// Time between two passes over a store; zero for passes only when asked.
    pub interval: Duration,
    /// Whether blocks are hashed against their multihashes too.
    pub hash: bool,
}

/// Has another copy of blocks: a replica, a backup.
pub trait Healer: Send + Sync + Debug {
    /// Bytes that may be those of a block. They are hashed before they are believed, so a wrong answer does no harm. `None`: it has none now.
    fn candidate(&self, block: &Multihash) -> Result<Option<Vec<u8>>>;
}

/// A pass that is due begins so long after the node was opened at the earliest: a command that opens it for a moment has no use for it.
const START_DELAY: Duration = Duration::from_secs(60);
/// How often the thread looks for something to do.
const IDLE: Duration = Duration::from_secs(5);
/// How often the place is made durable while a pass runs.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// How long a store whose scrub failed is left alone.
const FAILED_DELAY: Duration = Duration::from_secs(60);
/// Bytes of a step, so that pauses, yields and the rate have a grain.
const STEP_BYTES: u64 = 256 << 10;
/// The longest that one step stands back for the reads of others...
const YIELD_MAX: Duration = Duration::from_millis(20);
/// ...looking so often whether they are through.
const YIELD_POLL: Duration = Duration::from_micros(500);
/// Passes of a store begin within this share of the interval around its end, so that stores and nodes don't stay in step.
const JITTER_PERCENT: u64 = 10;
/// The store that holds no blocks.
const KEYSPACE: &str = "keyspace";
/// Keys of a page of what is quarantined.
const PAGE: usize = 256;

/// The scrub of an open node.
#[derive(Debug)]
pub(crate) struct Scrubber {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    datastore: Arc<Datastore>,
    options: ScrubOptions,
    /// Tells nodes apart in the jitter.
    node_id: String,
    opened: Instant,
    control: Mutex<Control>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Control {
    end: bool,
    /// Chosen for the passes that were asked for.
    rate_bytes: Option<u64>,
    hash: bool,
    healer: Option<Arc<dyn Healer>>,
    /// Counts what was asked, so that a wait ends at once.
    asked: u64,
}

impl Scrubber {
    pub(crate) fn start(datastore: Arc<Datastore>, options: ScrubOptions, node_id: &str) -> Result<Scrubber> {
        let shared = Arc::new(Shared {
            datastore,
            options,
            node_id: node_id.to_owned(),
            opened: Instant::now(),
            control: Mutex::default(),
            changed: Condvar::new(),
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new()
            .name("basalt-scrub".to_owned())
            .spawn(move || worker.run())
            .map_err(|err| Error::io("start the thread of the scrub", err))?;
        Ok(Scrubber { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the thread; the place of a pass under way is durable then.
    pub(crate) fn end(&self) {
        lock(&self.shared.control).end = true;
        self.shared.changed.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            // A pass that panicked has said so already.
            let _ = thread.join();
        }
    }

    pub(crate) fn set_healer(&self, healer: Arc<dyn Healer>) {
        lock(&self.shared.control).healer = Some(healer);
    }

    /// Does what an operator asks.
    pub(crate) fn control(&self, request: &v1::ControlScrubRequest) -> Result<()> {
        let shared = &self.shared;
        match request.action() {
            Action::Unspecified => return Ok(()),
            Action::Start => {
                if request.rate_bytes == 0 && shared.options.rate_bytes == 0 {
                    let message = "[scrub] rate_bytes is 0, so the scrub is off: name a rate for this pass (--rate), or change the config";
                    return Err(Error::new(ErrorKind::InvalidValue, message));
                }
                for (_, store) in shared.stores() {
                    store.pause_scrub(false);
                    store.begin_scrub()?;
                    store.save_scrub()?;
                }
                let mut control = lock(&shared.control);
                control.rate_bytes = Some(request.rate_bytes).filter(|rate| *rate != 0);
                control.hash = request.hash;
            }
            Action::Stop => {
                for (_, store) in shared.stores() {
                    store.stop_scrub();
                    store.pause_scrub(false);
                    store.save_scrub()?;
                }
                let mut control = lock(&shared.control);
                (control.rate_bytes, control.hash) = (None, false);
            }
            Action::Pause | Action::Resume => {
                for (_, store) in shared.stores() {
                    store.pause_scrub(request.action() == Action::Pause);
                    store.save_scrub()?;
                }
            }
        }
        lock(&shared.control).asked += 1;
        shared.changed.notify_all();
        Ok(())
    }

    pub(crate) fn status(&self) -> v1::ScrubStatus {
        let shared = &self.shared;
        let (rate_bytes, hash) = shared.pace();
        let states: Vec<_> = shared.stores().map(|(name, store)| (name, store.scrub_state())).collect();
        let state = match () {
            () if states.iter().any(|(_, state)| state.paused) => "paused",
            () if rate_bytes == 0 => "off",
            () if states.iter().any(|(_, state)| state.active) => "running",
            () => "idle",
        };
        let stores = states.into_iter().map(|(name, state)| v1::scrub_status::Store {
            due_unix_ms: if state.active { 0 } else { shared.due_unix_ms(&name, &state).unwrap_or(0) },
            name,
            active: state.active,
            started_unix_ms: state.started_unix_ms,
            finished_unix_ms: state.finished_unix_ms,
            bytes_done: state.bytes,
            bytes_left: state.bytes_left,
            records: state.records,
            damaged: state.damaged,
            rescued: state.rescued,
            unreadable: state.unreadable,
            dead_ranges: state.dead_ranges,
        });
        v1::ScrubStatus {
            state: state.to_owned(),
            rate_bytes,
            interval_ms: u64::try_from(shared.options.interval.as_millis()).unwrap_or(u64::MAX),
            hash,
            stores: stores.collect(),
        }
    }
}

/// All stores of a node by their names.
pub(crate) fn stores(datastore: &Datastore) -> impl Iterator<Item = (String, &Store)> {
    let shards = datastore.shards().iter().enumerate().map(|(id, shard)| (format!("shard {id}"), shard.store()));
    shards.chain(std::iter::once_with(|| (KEYSPACE.to_owned(), datastore.keyspace())))
}

impl Shared {
    fn stores(&self) -> impl Iterator<Item = (String, &Store)> {
        stores(&self.datastore)
    }

    /// Bytes a second, and whether blocks are hashed.
    fn pace(&self) -> (u64, bool) {
        let control = lock(&self.control);
        (control.rate_bytes.unwrap_or(self.options.rate_bytes), control.hash || self.options.hash)
    }

    fn run(&self) {
        let mut reader = ScrubReader::default();
        let mut failed: Option<(String, Instant)> = None;
        loop {
            self.retry_unreadable();
            if failed.as_ref().is_some_and(|(_, at)| at.elapsed() >= FAILED_DELAY) {
                failed = None;
            }
            let skip = failed.as_ref().map(|(name, _)| name.as_str());
            let Some((name, store)) = self.next_store(skip) else {
                reader = ScrubReader::default();
                if self.wait(IDLE) {
                    break;
                }
                continue;
            };
            if let Err(err) = self.scrub(&name, store, &mut reader) {
                tracing::warn!(store = name, %err, "the scrub stopped here; it goes on in a minute");
                failed = Some((name, Instant::now()));
            }
            if lock(&self.control).end {
                break;
            }
        }
    }

    /// The store to scrub now: one whose pass is under way, else one whose next pass is due, which is begun.
    fn next_store(&self, skip: Option<&str>) -> Option<(String, &Store)> {
        if self.pace().0 == 0 {
            return None;
        }
        let stores: Vec<_> = self.stores().filter(|(name, _)| Some(name.as_str()) != skip).collect();
        if let Some(active) = stores.iter().find(|(_, store)| is_running(store)) {
            return Some(active.clone());
        }
        if self.opened.elapsed() < START_DELAY {
            return None;
        }
        let due = |name: &str, store: &Store| {
            let state = store.scrub_state();
            self.due_unix_ms(name, &state).filter(|_| !state.paused)
        };
        let (at, name, store) = stores
            .into_iter()
            .filter_map(|(name, store)| Some((due(&name, store)?, name, store)))
            .min_by_key(|due| due.0)?;
        if at > unix_ms() {
            return None;
        }
        match store.begin_scrub() {
            Ok(()) => Some((name, store)),
            Err(err) => {
                tracing::warn!(store = name, %err, "a pass of the scrub could not begin");
                None
            }
        }
    }

    /// When the next pass of a store is due; `None` for only when asked.
    fn due_unix_ms(&self, name: &str, state: &ScrubState) -> Option<u64> {
        let interval = u64::try_from(self.options.interval.as_millis()).unwrap_or(u64::MAX);
        if interval == 0 || self.options.rate_bytes == 0 {
            return None;
        }
        if state.finished_unix_ms == 0 {
            return Some(unix_ms());
        }
        let span = (interval / 100).saturating_mul(2 * JITTER_PERCENT).max(1);
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let jitter = hasher.hash_one((&self.node_id, name, state.finished_unix_ms)) % span;
        Some(state.finished_unix_ms.saturating_add(interval - span / 2).saturating_add(jitter))
    }

    /// Goes on with the pass of one store until it ends, or is told otherwise.
    fn scrub(&self, name: &str, store: &Store, reader: &mut ScrubReader) -> Result<()> {
        let mut saved = Instant::now();
        let mut retried = Instant::now();
        let outcome = loop {
            if !is_running(store) || self.pace().0 == 0 {
                break Ok(());
            }
            self.stand_back();
            let begin = Instant::now();
            let (rate_bytes, hash) = self.pace();
            let step = match store.scrub_step(reader, STEP_BYTES, hash) {
                Ok(step) => step,
                Err(err) => break Err(err),
            };
            for (key, rot) in &step.quarantined {
                tracing::error!(store = name, key = %show(key), "scrub: {}", rot.about());
            }
            if step.done {
                self.finished(name, store);
                break Ok(());
            }
            if saved.elapsed() >= SAVE_EVERY {
                store.save_scrub()?;
                saved = Instant::now();
            }
            if retried.elapsed() >= IDLE {
                self.retry_unreadable();
                retried = Instant::now();
            }
            let fair = Duration::from_secs_f64(step.bytes as f64 / rate_bytes.max(1) as f64);
            if self.wait(fair.saturating_sub(begin.elapsed())) {
                break Ok(());
            }
        };
        *reader = ScrubReader::default();
        store.save_scrub()?;
        outcome
    }

    fn finished(&self, name: &str, store: &Store) {
        let state = store.scrub_state();
        if state.active {
            return;
        }
        tracing::info!(
            store = name,
            bytes = state.bytes,
            records = state.records,
            damaged = state.damaged,
            rescued = state.rescued,
            unreadable = state.unreadable,
            "scrubbed"
        );
        if let Err(err) = self.heal(store, name != KEYSPACE) {
            tracing::warn!(store = name, %err, "healing stopped; it is tried again after the next pass");
        }
        if self.stores().all(|(_, store)| !store.scrub_state().active) {
            let mut control = lock(&self.control);
            (control.rate_bytes, control.hash) = (None, false);
        }
    }

    /// Tries to heal what is quarantined in a store.
    fn heal(&self, store: &Store, holds_blocks: bool) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = store.quarantined(after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            for one in page {
                if lock(&self.control).end {
                    return Ok(());
                }
                if store.recheck(&one.key)? {
                    continue;
                }
                let healer = lock(&self.control).healer.clone().filter(|_| holds_blocks);
                let (Some(healer), Ok(block)) = (healer, Multihash::parse(&one.key)) else { continue };
                match healer.candidate(&block) {
                    Ok(Some(value)) => match store.heal(&one.key, &value) {
                        Err(err) if err.kind() == ErrorKind::InvalidValue => {
                            tracing::warn!(%err, "a copy was refused as a cure")
                        }
                        other => {
                            other?;
                        }
                    },
                    Ok(None) => {}
                    Err(err) => tracing::warn!(block = %block.raw_cid(), %err, "no copy could be had"),
                }
            }
        }
    }

    fn retry_unreadable(&self) {
        for (name, store) in self.stores() {
            match store.retry_unreadable() {
                Err(err) if !matches!(err.kind(), ErrorKind::Closed | ErrorKind::ReadOnly) => {
                    tracing::warn!(store = name, %err, "what could not be read could not be tried again");
                }
                _ => {}
            }
        }
    }

    /// Waits a moment while others read.
    fn stand_back(&self) {
        let begin = Instant::now();
        while begin.elapsed() < YIELD_MAX && self.stores().any(|(_, store)| store.reads_under_way() > 0) {
            std::thread::sleep(YIELD_POLL);
        }
    }

    /// Waits, or until something is asked; whether to end.
    fn wait(&self, time: Duration) -> bool {
        let control = lock(&self.control);
        let asked = control.asked;
        let waited = self.changed.wait_timeout_while(control, time, |control| !control.end && control.asked == asked);
        waited.unwrap_or_else(PoisonError::into_inner).0.end
    }
}

fn is_running(store: &Store) -> bool {
    let state = store.scrub_state();
    state.active && !state.paused
}

fn show(key: &[u8]) -> String {
    match Multihash::parse(key) {
        Ok(block) => block.raw_cid(),
        Err(_) => String::from_utf8_lossy(key).into_owned(),
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
