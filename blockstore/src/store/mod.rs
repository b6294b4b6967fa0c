//! The log-structured store: keys to values, with the log as truth.

use std::{
    fmt,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

use crate::{
    disk::{Clock, Disk},
    error::Result,
    ground::Ground,
    index::IndexEngine,
    options::Options,
};

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
    /// The next sequence number; opened stores raise it above the highest that they found.
    pub sequence: Arc<AtomicU64>,
}

impl Env {
    /// The real disk, clock and RocksDB.
    pub fn real() -> Env {
        crate::interim::env()
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
    /// Keys whose bytes were found damaged.
    pub quarantined: u64,
}

/// A write under way. Dropping it does not undo the write.
#[must_use = "a write that nobody waits for may fail unnoticed"]
pub struct Ticket(TicketState);

enum TicketState {
    Ready(Result<()>),
    Pending(Arc<Outcome>),
}

type Callback = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Default)]
struct Outcome {
    state: std::sync::Mutex<(Option<Result<()>>, Option<Callback>)>,
    known: std::sync::Condvar,
}

impl Outcome {
    fn set(&self, outcome: Result<()>) {
        let mut state = self.state.lock().unwrap_or_else(|err| err.into_inner());
        let callback = state.1.take();
        state.0 = Some(outcome.clone());
        drop(state);
        self.known.notify_all();
        if let Some(callback) = callback {
            callback(outcome);
        }
    }
}

/// The other end of [`Ticket::pending`]. Dropped without an outcome, its ticket says `Unavailable`.
#[must_use = "the ticket waits for it"]
pub struct Completer(Option<Arc<Outcome>>);

impl Completer {
    /// Gives the ticket its outcome, from any thread; its callback runs here.
    pub fn complete(mut self, outcome: Result<()>) {
        if let Some(shared) = self.0.take() {
            shared.set(outcome);
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            let message = "the write was given up before its outcome was known; look at the key";
            shared.set(Err(crate::Error::new(crate::ErrorKind::Unavailable, message)));
        }
    }
}

impl fmt::Debug for Completer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completer")
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

impl Ticket {
    /// A ticket whose outcome is known already.
    pub fn ready(outcome: Result<()>) -> Ticket {
        Ticket(TicketState::Ready(outcome))
    }

    /// A ticket for what another part completes.
    pub fn pending() -> (Ticket, Completer) {
        let shared = Arc::new(Outcome::default());
        (Ticket(TicketState::Pending(shared.clone())), Completer(Some(shared)))
    }

    /// Waits for what the durability class promises; the caller may lead the flush itself. In process callers use this.
    pub fn wait(self) -> Result<()> {
        match self.0 {
            TicketState::Ready(outcome) => outcome,
            TicketState::Pending(shared) => {
                let mut state = shared.state.lock().unwrap_or_else(|err| err.into_inner());
                loop {
                    match state.0.take() {
                        Some(outcome) => return outcome,
                        None => state = shared.known.wait(state).unwrap_or_else(|err| err.into_inner()),
                    }
                }
            }
        }
    }

    /// Calls `done` once, from whichever thread learns the outcome (this one, if it is known already). No thread waits meanwhile.
    pub fn then(self, done: impl FnOnce(Result<()>) + Send + 'static) {
        match self.0 {
            TicketState::Ready(outcome) => done(outcome),
            TicketState::Pending(shared) => {
                let mut state = shared.state.lock().unwrap_or_else(|err| err.into_inner());
                match state.0.take() {
                    None => state.1 = Some(Box::new(done)),
                    Some(outcome) => {
                        drop(state);
                        done(outcome);
                    }
                }
            }
        }
    }

    /// One ticket for many: done when all are, failed with the first failure in order.
    pub fn all(mut tickets: Vec<Ticket>) -> Ticket {
        if tickets.len() == 1
            && let Some(only) = tickets.pop()
        {
            return only;
        }
        let (ticket, completer) = Ticket::pending();
        let count = tickets.len();
        if count == 0 {
            return Ticket::ready(Ok(()));
        }
        let shared = Arc::new(std::sync::Mutex::new((vec![Ok(()); count], count, Some(completer))));
        for (place, part) in tickets.into_iter().enumerate() {
            let shared = shared.clone();
            part.then(move |outcome| {
                let mut state = shared.lock().unwrap_or_else(|err| err.into_inner());
                state.0[place] = outcome;
                state.1 -= 1;
                if state.1 == 0
                    && let Some(completer) = state.2.take()
                {
                    let outcome = std::mem::take(&mut state.0).into_iter().collect();
                    drop(state);
                    completer.complete(outcome);
                }
            });
        }
        ticket
    }
}

type Map = std::collections::BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

/// A log with its index in one folder. INTERIM: a map in memory, so that the rooms above can be built while the log is.
#[derive(Debug)]
pub struct Store {
    map: std::sync::Mutex<Map>,
    clock: Arc<dyn Clock>,
}

impl Store {
    fn map(&self) -> std::sync::MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(|err| err.into_inner())
    }

    /// Opens or creates the store in `dir`.
    pub fn open(dir: &Path, env: &Env, options: Options) -> Result<Store> {
        let _ = (dir, options);
        Ok(Store { map: Default::default(), clock: env.clock.clone() })
    }

    /// Opens for reading only; see [`crate::Shard::open_read_only`].
    pub fn open_read_only(dir: &Path, env: &Env, options: Options) -> Result<Store> {
        Store::open(dir, env, options)
    }

    /// Writes operations, last one wins for a key that comes twice. With `atomic` a crash leaves all of them or none. The ticket waits
    /// for what the durability class promises of puts; deletes alone are acknowledged once they are written.
    pub fn submit(&self, ops: &[Op<'_>], atomic: bool) -> Result<Ticket> {
        let _ = atomic;
        let mut map = self.map();
        for op in ops {
            match *op {
                Op::PutIfAbsent { key, value } => {
                    map.entry(key.to_vec()).or_insert_with(|| (value.to_vec(), 0));
                }
                Op::Put { key, value, expires_unix_ms } => {
                    map.insert(key.to_vec(), (value.to_vec(), expires_unix_ms));
                }
                Op::Delete { key } => {
                    map.remove(key);
                }
            }
        }
        Ok(Ticket::ready(Ok(())))
    }

    /// Like [`Store::submit`], with a ticket that waits for stable storage whatever the class (`ordered`: metadata).
    pub fn submit_durable(&self, ops: &[Op<'_>], atomic: bool) -> Result<Ticket> {
        self.submit(ops, atomic)
    }

    /// Reads a value into `buffer` (replaced); `NotFound` where the key is absent or has expired.
    pub fn get(&self, key: &[u8], buffer: &mut Vec<u8>) -> Result<Meta> {
        buffer.clear();
        let now = self.clock.unix_ms();
        match self.map().get(key) {
            Some((value, expires)) if *expires == 0 || *expires > now => {
                buffer.extend_from_slice(value);
                Ok(Meta { size: value.len() as u32, expires_unix_ms: *expires })
            }
            _ => Err(crate::Error::not_found()),
        }
    }

    /// What is known of a key without reading its value.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Meta>> {
        let mut buffer = Vec::new();
        match self.get(key, &mut buffer) {
            Ok(meta) => Ok(Some(meta)),
            Err(err) if err.is_not_found() => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Up to `limit` keys in byte order that start with `prefix` and are above `after`; fewer only at the end.
    pub fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize, values: bool) -> Result<Vec<Found>> {
        let now = self.clock.unix_ms();
        Ok(self
            .map()
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, (_, expires))| {
                after.is_none_or(|after| key.as_slice() > after) && (*expires == 0 || *expires > now)
            })
            .take(limit)
            .map(|(key, (value, expires))| Found {
                key: key.clone(),
                meta: Meta { size: value.len() as u32, expires_unix_ms: *expires },
                value: values.then(|| value.clone()),
            })
            .collect())
    }

    /// Looks at up to `limit` keys above `after` in byte order for those that have expired but still take space. What sweeps the keyspace.
    pub fn scan_expired(&self, after: Option<&[u8]>, limit: usize) -> Result<Expired> {
        let now = self.clock.unix_ms();
        let map = self.map();
        let page: Vec<_> =
            map.iter().filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after)).take(limit).collect();
        let last = page.last().filter(|_| page.len() == limit).map(|(key, _)| key.to_vec());
        let keys = page.iter().filter(|(_, (_, at))| *at != 0 && *at <= now).map(|(key, _)| key.to_vec()).collect();
        Ok(Expired { keys, last })
    }

    /// Makes everything that was written before the call durable.
    pub fn sync(&self) -> Result<()> {
        self.submit_sync()?.wait()
    }

    /// Starts what [`Store::sync`] does.
    pub fn submit_sync(&self) -> Result<Ticket> {
        Ok(Ticket::ready(Ok(())))
    }

    /// Whether something written is not yet known durable.
    pub fn is_dirty(&self) -> bool {
        false
    }

    /// Compacts and frees now what pays, until nothing is left to do; returns the bytes given back.
    pub fn reclaim(&self) -> Result<u64> {
        Ok(0)
    }

    /// Reads the records of up to `limit` keys above `after` back and checks them; returns the last key and what is damaged.
    pub fn verify(&self, after: Option<&[u8]>, limit: usize) -> Result<Verified> {
        let found = self.scan(b"", after, limit, false)?;
        Ok(Verified {
            last: found.last().map(|found| found.key.clone()),
            keys: found.len() as u64,
            bytes: found.iter().map(|found| u64::from(found.meta.size)).sum(),
            damaged: Vec::new(),
        })
    }

    /// Gauges, O(1).
    pub fn stats(&self) -> Stats {
        let map = self.map();
        Stats {
            count: map.len() as u64,
            bytes: map.values().map(|(value, _)| value.len() as u64).sum(),
            key_bytes: map.keys().map(|key| key.len() as u64).sum(),
            ..Stats::default()
        }
    }

    /// Why the store no longer takes writes, if so.
    pub fn fenced(&self) -> Option<crate::Error> {
        None
    }

    /// Syncs, writes a mark, flushes the index and closes. Later calls are `Closed`.
    pub fn close(&self) -> Result<()> {
        Ok(())
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
