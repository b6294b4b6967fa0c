//! The log-structured store: keys to values, with the log as truth.
//!
//! `format` has the bytes, `segment` the files, `write` the way in, `commit` group commit and segment changes, `recovery` what opening
//! does, `reclaim` how space comes back, `core` the state they share and the reads.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    buffer::Buffer,
    disk::{Clock, Disk, Entropy, OsClock, OsDisk, OsEntropy},
    error::{Error, ErrorKind, Result},
    ground::{Ground, PlainGround},
    index::{IndexEngine, RocksEngine},
    options::{Durability, Options},
    sync::{Mutex, MutexGuard, thread},
};

mod commit;
mod core;
#[cfg(test)]
mod crash_tests;
mod entry;
pub mod format;
#[cfg(test)]
mod hostile_tests;
mod location;
mod quarantine;
mod reclaim;
mod recovery;
mod reindex;
mod scrub;
#[cfg(test)]
mod scrub_tests;
mod segment;
mod space;
mod ticket;
mod watch;
mod write;

use self::core::Core;
pub(crate) use self::core::Verifier;
pub use format::Rot;
pub use quarantine::Quarantined;
pub use scrub::{PartChecked, ScrubReader, ScrubState, ScrubStep};
pub use ticket::{Completer, Ticket};

/// What all stores of one node share: its disk, clock and index engine, and its one counter of sequence numbers.
#[derive(Clone, Debug)]
pub struct Env {
    /// Files and folders.
    pub disk: Arc<dyn Disk>,
    /// Time and background threads.
    pub clock: Arc<dyn Clock>,
    /// What makes an index in a folder.
    pub index: Arc<dyn IndexEngine>,
    /// What is known of the file system.
    pub ground: Arc<dyn Ground>,
    /// Ids and nonces.
    pub random: Arc<dyn Entropy>,
    /// The next sequence number; opened stores raise it above the highest that they found.
    pub sequence: Arc<AtomicU64>,
    /// Bytes of all logs that are written and not known durable.
    pub unflushed: Arc<AtomicU64>,
}

impl Env {
    /// The real disk, clock and RocksDB.
    pub fn real() -> Env {
        Env::with_index_memory(Options::default().index_memory_bytes)
    }

    /// [`Env::real`] whose indexes share a block cache of `bytes`.
    pub fn with_index_memory(bytes: usize) -> Env {
        Env {
            disk: Arc::new(OsDisk),
            clock: Arc::new(OsClock::default()),
            index: Arc::new(RocksEngine::new(bytes)),
            ground: Arc::new(PlainGround),
            random: Arc::new(OsEntropy),
            sequence: Arc::new(AtomicU64::new(1)),
            unflushed: Arc::default(),
        }
    }
}

/// One operation of a write.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// Stores a value unless the key is there.
    PutIfAbsent {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// Stores a value, whatever was there.
    Put {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// When it is gone by itself, in milliseconds since the Unix epoch; 0 for never.
        expires_unix_ms: u64,
    },
    /// Removes a key; absent is fine.
    Delete {
        /// The key.
        key: &'a [u8],
    },
}

impl<'a> Op<'a> {
    fn parts(&self) -> (&'a [u8], &'a [u8]) {
        match *self {
            Op::PutIfAbsent { key, value } | Op::Put { key, value, .. } => (key, value),
            Op::Delete { key } => (key, b""),
        }
    }

    fn is_delete(&self) -> bool {
        matches!(self, Op::Delete { .. })
    }

    fn expires_unix_ms(&self) -> u64 {
        match self {
            Op::Put { expires_unix_ms, .. } => *expires_unix_ms,
            _ => 0,
        }
    }
}

/// What is known of a live key without reading its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Size of the value in bytes.
    pub size: u32,
    /// When it is gone by itself, in milliseconds since the Unix epoch; 0 for never.
    pub expires_unix_ms: u64,
}

/// A key that a scan found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The key.
    pub key: Vec<u8>,
    /// What is known of it.
    pub meta: Meta,
    /// Its value, where the scan asked for values.
    pub value: Option<Vec<u8>>,
}

/// Gauges of a store; `count` and `bytes` are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Live keys.
    pub count: u64,
    /// Bytes of live values.
    pub bytes: u64,
    /// Bytes of live keys.
    pub key_bytes: u64,
    /// Bytes that the segment files hold on disk.
    pub allocated_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of dead records that have not been given back.
    pub dead_bytes: u64,
    /// Bytes written and not yet known durable.
    pub unflushed_bytes: u64,
    /// Keys whose bytes were found damaged, exact.
    pub quarantined: u64,
    /// Records of the log that the last open had to tell the index of: the tail behind its checkpoint, or all where it was rebuilt.
    pub replayed: u64,
}

/// A log with its index in one folder. Every method may be called from many threads at once. Dropping it without [`Store::close`] is a
/// crash that the next open mends.
#[derive(Debug)]
pub struct Store {
    core: Arc<Core>,
    threads: Mutex<Option<[thread::JoinHandle<()>; 2]>>,
}

impl Store {
    /// Opens or creates the store in `dir`: replays the tail of its log, adopts what survived a crash, rebuilds the index where it is lost.
    pub fn open(dir: &Path, env: &Env, options: Options) -> Result<Store> {
        Store::open_with(dir, env, options, None)
    }

    pub(crate) fn open_with(dir: &Path, env: &Env, options: Options, verifier: Option<Verifier>) -> Result<Store> {
        if options.durability != Durability::Relaxed && env.ground.honours_sync() != Some(true) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the file system under {} does not honour sync (sync=disabled, or not known), so {} would be an empty promise: \
                     set sync=standard, or choose durability = relaxed",
                    dir.display(),
                    options.durability
                ),
            ));
        }
        let core = recovery::open(dir, env, options, verifier, false)?;
        let threads = if env.clock.threads() { Some(background(&core)?) } else { None };
        Ok(Store { core, threads: Mutex::new(threads) })
    }

    /// Opens for reading only; see [`crate::Shard::open_read_only`].
    pub fn open_read_only(dir: &Path, env: &Env, options: Options) -> Result<Store> {
        Store::open_read_only_with(dir, env, options, None)
    }

    pub(crate) fn open_read_only_with(
        dir: &Path,
        env: &Env,
        options: Options,
        verifier: Option<Verifier>,
    ) -> Result<Store> {
        Ok(Store { core: recovery::open(dir, env, options, verifier, true)?, threads: Mutex::default() })
    }

    /// Writes operations, last one wins for a key that comes twice. With `atomic` a crash leaves all of them or none. The ticket waits
    /// for what the durability class promises of puts; deletes alone are acknowledged once they are written.
    pub fn submit(&self, ops: &[Op<'_>], atomic: bool) -> Result<Ticket> {
        self.core.submit(ops, atomic, false)
    }

    /// Like [`Store::submit`], with a ticket that waits for stable storage whatever the class (`ordered`: metadata).
    pub fn submit_durable(&self, ops: &[Op<'_>], atomic: bool) -> Result<Ticket> {
        self.core.submit(ops, atomic, true)
    }

    /// Writes operations and waits. What failed only because another write did is tried again (STORE 11).
    pub fn write(&self, ops: &[Op<'_>], atomic: bool) -> Result<()> {
        const TRIES: usize = 8;
        for _ in 1..TRIES {
            match self.submit(ops, atomic).and_then(Ticket::wait) {
                Err(err) if err.is_superseded() => {}
                other => return other,
            }
        }
        self.submit(ops, atomic)?.wait()
    }

    /// Reads a value into `buffer` (replaced); `NotFound` where the key is absent or has expired, `TooLarge` where the buffer has no room.
    pub fn get(&self, key: &[u8], buffer: &mut dyn Buffer) -> Result<Meta> {
        self.core.get(key, buffer)
    }

    /// What is known of a key without reading its value.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Meta>> {
        self.core.meta(key)
    }

    /// Up to `limit` keys in byte order that start with `prefix` and are above `after`; fewer only at the end.
    pub fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize, values: bool) -> Result<Vec<Found>> {
        self.core.scan(prefix, after, limit, values)
    }

    /// Looks at up to `limit` keys above `after` in byte order for those that have expired but still take space. What sweeps the keyspace.
    pub fn scan_expired(&self, after: Option<&[u8]>, limit: usize) -> Result<Expired> {
        self.core.scan_expired(after, limit)
    }

    /// Makes everything that was written before the call durable.
    pub fn sync(&self) -> Result<()> {
        self.submit_sync()?.wait()
    }

    /// Starts what [`Store::sync`] does.
    pub fn submit_sync(&self) -> Result<Ticket> {
        self.core.submit_sync()
    }

    /// Whether something written is not yet known durable.
    pub fn is_dirty(&self) -> bool {
        self.core.is_dirty()
    }

    /// Holds reclaim until what this returns is dropped (STORE 22). Waits for a pass that is under way.
    pub fn hold_reclaim(&self) -> MutexGuard<'_, ()> {
        self.core.reclaiming.lock()
    }

    /// Compacts and frees now what pays, until nothing is left to do; returns the bytes given back.
    pub fn reclaim(&self) -> Result<u64> {
        self.core.reclaim()
    }

    /// Reads the records of up to `limit` keys above `after` back and checks them; returns the last key and what is damaged.
    pub fn verify(&self, after: Option<&[u8]>, limit: usize) -> Result<Verified> {
        self.core.verify(after, limit)
    }

    /// Up to `limit` quarantined keys above `after` in byte order; fewer only at the end. O(quarantined), not O(keys).
    pub fn quarantined(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<Quarantined>> {
        self.core.quarantined(after, limit)
    }

    /// Quarantines a key whose value, as it was read, does not hash to it: durable on return. For whoever hashes what it reads.
    pub fn quarantine_digest(&self, key: &[u8]) -> Result<()> {
        self.core.quarantine_digest(key)
    }

    /// Begins a pass of the scrub over everything that is durable now, instead of the one under way. Drive it by [`Store::scrub_step`].
    pub fn begin_scrub(&self) -> Result<()> {
        self.core.begin_scrub()
    }

    /// Checks the next `limit` bytes or a little more of the pass under way, with `hash` blocks against their multihashes too. What it finds damaged is
    /// quarantined when it returns. An error leaves the pass where it was.
    pub fn scrub_step(&self, reader: &mut ScrubReader, limit: u64, hash: bool) -> Result<ScrubStep> {
        self.core.scrub_step(reader, limit, hash)
    }

    /// Checks what stands in a part of one of the store's segment files, by its name in the store's folder, hashes too; what is damaged is quarantined when it
    /// returns. `persists` says that whoever named the part knows that the disk has no good copy of it: what can't be read is then not tried again first, and what
    /// is still read, from memory, is written anew.
    /// `None`: the store has no such segment (any more).
    pub fn check_part(&self, file: &str, part: Range<u64>, persists: bool) -> Result<Option<PartChecked>> {
        match segment::id_of_file_name(file) {
            Some(id) => self.core.check_part(id, part, persists),
            None => Ok(None),
        }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.core.dir
    }

    /// Ends the pass under way; the next one begins at the beginning.
    pub fn stop_scrub(&self) {
        self.core.stop_scrub();
    }

    /// Notes that the operator has the scrub wait, or no longer. Whoever drives it keeps to it.
    pub fn pause_scrub(&self, paused: bool) {
        self.core.pause_scrub(paused);
    }

    /// Where the scrub is.
    pub fn scrub_state(&self) -> ScrubState {
        self.core.scrub_state()
    }

    /// Makes the place of the scrub durable: after a restart it goes on there. Two small flushes.
    pub fn save_scrub(&self) -> Result<()> {
        self.core.save_scrub()
    }

    /// Tries again to read what the disk refused to read, if it is time; returns how many keys are left to be tried. What persists is quarantined.
    pub fn retry_unreadable(&self) -> Result<usize> {
        self.core.retry_unreadable()
    }

    /// Reads of values that are under way now.
    pub fn reads_under_way(&self) -> u64 {
        self.core.files.reading()
    }

    /// Offers a value for a quarantined key; `false` where it is not quarantined. See [`crate::Shard::heal`].
    pub fn heal(&self, key: &[u8], value: &[u8]) -> Result<bool> {
        self.core.heal(key, value)
    }

    /// Reads a quarantined key once more from where it was, and ends the quarantine if its bytes are there again and proven; `false` where not.
    pub fn recheck(&self, key: &[u8]) -> Result<bool> {
        self.core.recheck(key)
    }

    /// Live keys, bytes and key bytes, exact; O(1). The gauges are 0.
    pub fn live(&self) -> Stats {
        self.core.live()
    }

    /// All gauges; looks at every segment's row, never at blocks.
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// Why the store no longer takes writes, if so.
    pub fn fenced(&self) -> Option<Error> {
        self.core.log.lock().fenced.clone()
    }

    /// Looks whether the disk has kept a call for longer than `flush_deadline`, and fences the store at the third look in a row that finds so (STORE 14): everyone who waits is told, reads are
    /// refused until it answers. Never waits for the disk; for a thread of the host that does nothing else, every second or so.
    pub fn watch(&self) {
        self.core.watch();
    }

    /// Whether a write would wait at this moment, before it has a ticket: for the disk, or for the index. For callers that must not be held.
    pub fn writes_wait(&self) -> bool {
        self.core.writes_wait()
    }

    /// One round of the background work: what is due by the clock. Threads do it where the clock has any; a simulation calls it.
    pub fn step(&self) {
        self.core.step_log();
        self.core.step_space();
    }

    /// Syncs, writes a mark, flushes the index and closes. Later calls are `Closed`. Where the disk does not answer it waits for ever: the host has a deadline.
    pub fn close(&self) -> Result<()> {
        let outcome = self.core.close();
        self.let_go();
        outcome
    }

    /// Ends the background thread and lets go of the index, so that the folder can be opened again. Waits for a call
    /// that the disk does not answer.
    fn let_go(&self) {
        self.core.set_closed();
        let threads = self.threads.lock().take();
        for thread in threads.into_iter().flatten() {
            if thread.join().is_err() {
                tracing::error!(store = %self.core.dir.display(), "a background thread of the store panicked");
            }
        }
        self.core.release_index();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// How often background work looks at the clock.
const STEP: Duration = Duration::from_millis(100);

/// Starts the store's two threads: one for the log, which nothing else may hold up, and one for what may take long, the index and reclaim.
fn background(core: &Arc<Core>) -> Result<[thread::JoinHandle<()>; 2]> {
    let log = thread_of(core, "basalt-log", |core| {
        let asked = {
            let mut work = core.work.lock();
            if !work.flush && !core.closed.load(Ordering::Acquire) {
                work = core.work_to_do.wait_for(work, STEP);
            }
            std::mem::take(&mut work.flush)
        };
        if asked {
            core.lead_flush();
        } else {
            core.step_log();
        }
    })?;
    let space = thread_of(core, "basalt-space", |core| {
        let work = core.work.lock();
        if !core.closed.load(Ordering::Acquire) {
            drop(core.ended.wait_for(work, STEP));
        }
        core.step_space();
    })?;
    Ok([log, space])
}

/// A thread that does `round` after `round` until the store is closed.
fn thread_of(core: &Arc<Core>, name: &str, round: fn(&Arc<Core>)) -> Result<thread::JoinHandle<()>> {
    let weak: Weak<Core> = Arc::downgrade(core);
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            while let Some(core) = weak.upgrade() {
                if core.closed.load(Ordering::Acquire) {
                    return;
                }
                round(&core);
            }
        })
        .map_err(|err| Error::io("start the background threads of a store", err))
}

/// How often reclaim looks for something to do, in nanoseconds.
const RECLAIM_EVERY_NS: u64 = 10_000_000_000;
/// The same while puts are refused for want of space.
const PRESSED_EVERY_NS: u64 = 1_000_000_000;

impl Core {
    fn is_at_work(&self) -> bool {
        !self.read_only && !self.closed.load(Ordering::Acquire)
    }

    /// What is due of the log: flushes that bound the delay, marks, and telling the index where nobody else does.
    fn step_log(self: &Arc<Self>) {
        if !self.is_at_work() {
            return;
        }
        let now = self.env.clock.monotonic_ns();
        let (due, idle) = {
            let log = self.log.lock();
            let Some(active) = log.active.as_ref().filter(|_| log.fenced.is_none()) else { return };
            let age = Duration::from_nanos(now.saturating_sub(log.oldest_unflushed_ns));
            let quiet = Duration::from_nanos(now.saturating_sub(log.last_append_ns));
            (
                active.prefix > active.durable && age >= self.options.flush_delay,
                active.head > active.marked && quiet >= self.options.idle_mark_delay,
            )
        };
        if due || idle {
            self.lead_flush();
        }
        if idle && let Err(err) = self.append_mark() {
            tracing::warn!(store = %self.dir.display(), %err, "no mark could be written");
        } else if idle {
            self.lead_flush();
        }
        if let Some(applied) = self.applying.try_lock() {
            self.apply_ready_to(applied);
        }
    }

    /// What is due of the index and of reclaim.
    fn step_space(self: &Arc<Self>) {
        if !self.is_at_work() {
            return;
        }
        let behind = {
            let applied = self.applying.lock();
            applied.bytes_since_flush >= self.options.replay_bytes_max
                || applied.records_since_flush >= self.options.replay_records_max
        };
        if behind && let Err(err) = self.flush_index() {
            tracing::error!(store = %self.dir.display(), %err, "the index could not be flushed; it is tried again");
            if err.kind() == ErrorKind::NoSpace
                && let Err(err) = self.lift_reserve()
            {
                tracing::error!(store = %self.dir.display(), %err, "there is no room for the index");
            }
        }
        let now = self.env.clock.monotonic_ns();
        let last = self.last_reclaim_ns.load(Ordering::Relaxed);
        let pressed = self.is_pressed();
        if now.saturating_sub(last) >= if pressed { PRESSED_EVERY_NS } else { RECLAIM_EVERY_NS } {
            self.last_reclaim_ns.store(now, Ordering::Relaxed);
            if self.reclaim_pays(pressed)
                && let Err(err) = self.reclaim()
            {
                tracing::warn!(store = %self.dir.display(), %err, "reclaim stopped; it is tried again");
            }
        }
    }

    fn close(self: &Arc<Self>) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let outcome = if self.read_only { Ok(()) } else { self.close_log() };
        self.set_closed();
        outcome
    }

    fn set_closed(&self) {
        {
            // Under the lock, so that no background thread begins to wait in between.
            let _work = self.work.lock();
            self.closed.store(true, Ordering::Release);
        }
        self.work_to_do.notify_all();
        self.ended.notify_all();
    }

    fn close_log(self: &Arc<Self>) -> Result<()> {
        self.submit_sync()?.wait()?;
        let marked = self.log.lock().active.as_ref().is_none_or(|active| active.head == active.marked);
        if !marked {
            self.append_mark()?;
        }
        let clean = loop {
            self.submit_sync()?.wait()?;
            let mut log = self.log.lock();
            if log.rolling || log.flushing {
                drop(self.changed.wait(log));
                continue;
            }
            let clean = match &log.active {
                Some(active) if active.durable < active.end() || !active.in_flight.is_empty() => continue,
                // What a broken segment holds above its end must not be written over.
                Some(active) if active.broken.is_some() => None,
                Some(active) => Some(recovery::Clean {
                    segment: active.segment.id,
                    end: active.head,
                    last_summary: active.summary.previous(),
                    records: active.records,
                }),
                None => None,
            };
            let written = !log.clean_file;
            log.fenced = Some(Error::new(
                ErrorKind::Closed,
                format!("the store {} is closed: open it again", self.dir.display()),
            ));
            break clean.filter(|_| written);
        };
        self.flush_index()?;
        match clean {
            Some(clean) => clean.write(self),
            None => Ok(()),
        }
    }
}

/// What [`Store::scan_expired`] found.
#[derive(Clone, Debug, Default)]
pub struct Expired {
    /// The last key that was looked at; `None` at the end.
    pub last: Option<Vec<u8>>,
    /// Keys that have expired and still take space.
    pub keys: Vec<Vec<u8>>,
}

/// What [`Store::verify`] found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// The last key that was looked at; `None` at the end.
    pub last: Option<Vec<u8>>,
    /// Keys and bytes that were read back.
    pub keys: u64,
    /// Bytes of values that were read back.
    pub bytes: u64,
    /// Keys that don't read back, and why.
    pub damaged: Vec<(Vec<u8>, crate::Error)>,
}
