//! The local journal: changes that wait for a ledger that is away.
//!
//! Durable (flushed before it says so), bounded, and at most one entry a record: a newer generation takes the place of an older one, so the order of
//! one record's changes is that of its generations, and a ledger that is away for a day costs as much space as there are records that changed.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use minicbor::{Decode, Encode};
use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};

use crate::{
    Change, Class, Error, FENCE_DAYS, Multihash, Peer, PinKey, Result,
    codec::{Key, from_bytes, to_bytes},
    generation::micros,
};

/// An entry by its number: when it came and what it is.
const ENTRY: u8 = b'q';
/// The number of a record's entry.
const RECORD: u8 = b'r';
/// An entry that no ledger will ever take, and why.
const BURIED: u8 = b'x';

/// Bounds of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// Most entries; more are refused.
    pub entries_max: u64,
    /// Most bytes of changes; more are refused.
    pub bytes_max: u64,
}

impl Default for JournalOptions {
    fn default() -> JournalOptions {
        JournalOptions { entries_max: 1_000_000, bytes_max: 512 << 20 }
    }
}

/// A journal in a folder of its own. One process at a time has it open. Its calls block for a flush at most.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    db: DB,
    options: JournalOptions,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    next: u64,
    entries: u64,
    bytes: u64,
    buried: u64,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Entries.
    pub entries: u64,
    /// Bytes of their changes.
    pub bytes: u64,
    /// Unix time in milliseconds at which the oldest came.
    pub oldest_ms: Option<u64>,
    /// Entries that no ledger will take, kept for somebody to look at.
    pub buried: u64,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Entry {
    #[n(0)]
    came_ms: u64,
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    change: Vec<u8>,
    #[n(2)]
    why: Option<String>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

/// What a change is to: a later change with the same key takes its place.
fn record(change: &Change) -> Key {
    match change {
        Change::Put(pin) => pin_record(&pin.key),
        Change::Remove(key, _) => pin_record(key),
        Change::Want(multihash, peer, _) => placement_record(b'w', multihash, peer),
        Change::Have(multihash, peer, _) => placement_record(b'h', multihash, peer),
        Change::Forget(multihash, peer, _) => placement_record(b'f', multihash, peer),
    }
}

fn pin_record(key: &PinKey) -> Key {
    Key::new(RECORD).part(b"p").pin(key)
}

fn placement_record(what: u8, multihash: &Multihash, peer: &Peer) -> Key {
    Key::new(RECORD).part(&[what]).part(multihash.as_bytes()).part(peer.as_str().as_bytes())
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

impl Journal {
    /// Opens the journal in a folder, or makes it.
    pub fn open(path: &Path, options: &JournalOptions) -> Result<Journal> {
        let tried = format!("open the journal in {}", path.display());
        let mut database = Options::default();
        database.create_if_missing(true);
        database.set_write_buffer_size(8 << 20);
        database.set_max_open_files(64);
        database.set_keep_log_file_num(2);
        let db = DB::open(&database, path).map_err(|err| match err.to_string() {
            text if text.contains("LOCK") => {
                Error::new(&tried, Class::Config, "another process has it open; an agent of this node runs already")
            }
            text => Error::new(&tried, Class::Unavailable, text),
        })?;
        let mut state = State::default();
        for row in db.iterator(IteratorMode::From(&[ENTRY], Direction::Forward)) {
            let (key, value) = row.map_err(|err| Error::new(&tried, Class::Corrupt, err.to_string()))?;
            match (key.first(), key.get(1..).and_then(number)) {
                (Some(&ENTRY), Some(at)) => {
                    let entry: Entry = from_bytes(&value).map_err(|err| Error::new(&tried, Class::Corrupt, err.0))?;
                    state.entries += 1;
                    state.bytes += entry.change.len() as u64;
                    state.next = state.next.max(at + 1);
                }
                (Some(&BURIED), Some(at)) => {
                    state.buried += 1;
                    state.next = state.next.max(at + 1);
                }
                _ => {}
            }
        }
        let inner = Inner { path: path.to_owned(), db, options: options.clone(), state: Mutex::new(state) };
        Ok(Journal { inner: Arc::new(inner) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, verb: &str) -> impl Fn(rocksdb::Error) -> Error + use<> {
        let tried = format!("{verb} the journal in {}", self.inner.path.display());
        move |err| Error::new(&tried, Class::Unavailable, err.to_string())
    }

    fn corrupt(&self, why: impl Into<String>) -> Error {
        Error::new(format!("read the journal in {}", self.inner.path.display()), Class::Corrupt, why)
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.inner.db.write_opt(batch, &options).map_err(self.failed("write to"))
    }

    fn entry(&self, at: u64) -> Result<Option<Entry>> {
        let bytes = self.inner.db.get(Key::new(ENTRY).u64(at).0).map_err(self.failed("read"))?;
        bytes.map(|bytes| from_bytes(&bytes).map_err(|err| self.corrupt(err.0))).transpose()
    }

    /// Takes changes in, all or none. What is older than what waits for the same record is left out. Full: `Unavailable`.
    pub fn append(&self, changes: &[Change]) -> Result<()> {
        changes.iter().try_for_each(Change::check)?;
        let mut guard = self.state();
        let mut state = *guard;
        let mut batch = WriteBatch::default();
        let came_ms = u64::try_from(micros(SystemTime::now()) / 1000).unwrap_or(0);
        // Of several changes of one record in this call only the newest goes in.
        let mut newest = std::collections::BTreeMap::<Vec<u8>, &Change>::new();
        for change in changes {
            let at = newest.entry(record(change).0).or_insert(change);
            if change.generation() > at.generation()
                || (change.generation() == at.generation() && matches!(change, Change::Remove(..)))
            {
                *at = change;
            }
        }
        for (record, change) in newest {
            let waits = self.inner.db.get(&record).map_err(self.failed("read"))?.as_deref().and_then(number);
            if let Some(at) = waits
                && let Some(old) = self.entry(at)?
            {
                let waiting = Change::from_bytes(&old.change)?;
                let newer = change.generation() > waiting.generation()
                    || (change.generation() == waiting.generation() && matches!(change, Change::Remove(..)));
                if !newer {
                    continue;
                }
                batch.delete(Key::new(ENTRY).u64(at).0);
                state.entries -= 1;
                state.bytes -= old.change.len() as u64;
            }
            let bytes = change.to_bytes();
            state.entries += 1;
            state.bytes += bytes.len() as u64;
            batch.put(Key::new(ENTRY).u64(state.next).0, to_bytes(&Entry { came_ms, change: bytes, why: None }));
            batch.put(&record, state.next.to_be_bytes());
            state.next += 1;
        }
        let bounds = &self.inner.options;
        if state.entries > bounds.entries_max || state.bytes > bounds.bytes_max {
            let why = format!(
                "it is full: {} entries of at most {}, {} bytes of at most {}; the ledger has been away for too long",
                guard.entries, bounds.entries_max, guard.bytes, bounds.bytes_max
            );
            return Err(Error::new(
                format!("write to the journal in {}", self.inner.path.display()),
                Class::Unavailable,
                why,
            ));
        }
        self.write(batch)?;
        *guard = state;
        Ok(())
    }

    /// The oldest entries, with their numbers.
    pub fn oldest(&self, limit: usize) -> Result<Vec<(u64, Change)>> {
        let mut oldest = Vec::new();
        for row in self.inner.db.iterator(IteratorMode::From(&[ENTRY], Direction::Forward)).take(limit) {
            let (key, value) = row.map_err(self.failed("read"))?;
            let (Some(&ENTRY), Some(at)) = (key.first(), key.get(1..).and_then(number)) else { break };
            let entry: Entry = from_bytes(&value).map_err(|err| self.corrupt(err.0))?;
            oldest.push((at, Change::from_bytes(&entry.change)?));
        }
        Ok(oldest)
    }

    /// Removes what was delivered. An entry that a newer one took the place of is gone already.
    pub fn delivered(&self, entries: &[(u64, Change)]) -> Result<()> {
        self.remove(entries, None)
    }

    /// Puts aside what no ledger will take, with the reason; it is kept, and counted.
    pub fn bury(&self, entry: &(u64, Change), why: &str) -> Result<()> {
        self.remove(std::slice::from_ref(entry), Some(why))
    }

    fn remove(&self, entries: &[(u64, Change)], why: Option<&str>) -> Result<()> {
        let mut guard = self.state();
        let mut state = *guard;
        let mut batch = WriteBatch::default();
        for (at, change) in entries {
            let Some(mut entry) = self.entry(*at)? else { continue };
            let record = record(change).0;
            if self.inner.db.get(&record).map_err(self.failed("read"))?.as_deref().and_then(number) == Some(*at) {
                batch.delete(&record);
            }
            batch.delete(Key::new(ENTRY).u64(*at).0);
            state.entries -= 1;
            state.bytes -= entry.change.len() as u64;
            if let Some(why) = why {
                entry.why = Some(why.to_owned());
                batch.put(Key::new(BURIED).u64(*at).0, to_bytes(&entry));
                state.buried += 1;
            }
        }
        self.write(batch)?;
        *guard = state;
        Ok(())
    }

    /// What was put aside, the oldest first, with the reasons.
    pub fn buried(&self, limit: usize) -> Result<Vec<(Change, String)>> {
        let mut buried = Vec::new();
        for row in self.inner.db.iterator(IteratorMode::From(&[BURIED], Direction::Forward)).take(limit) {
            let (key, value) = row.map_err(self.failed("read"))?;
            if key.first() != Some(&BURIED) {
                break;
            }
            let entry: Entry = from_bytes(&value).map_err(|err| self.corrupt(err.0))?;
            buried.push((Change::from_bytes(&entry.change)?, entry.why.unwrap_or_default()));
        }
        Ok(buried)
    }

    /// What waits for a pin.
    pub(crate) fn waiting_pin(&self, key: &PinKey) -> Result<Option<Change>> {
        self.waiting_record(pin_record(key))
    }

    /// What waits for a placement: want, have, and up to where it is to be forgotten.
    pub(crate) fn waiting_placement(&self, multihash: &Multihash, peer: &Peer) -> Result<Vec<Change>> {
        // Forgotten first: the others are newer or have no effect.
        let found = b"fwh".map(|what| self.waiting_record(placement_record(what, multihash, peer)));
        found.into_iter().filter_map(Result::transpose).collect()
    }

    fn waiting_record(&self, record: Key) -> Result<Option<Change>> {
        let at = self.inner.db.get(record.0).map_err(self.failed("read"))?.as_deref().and_then(number);
        let Some(at) = at else { return Ok(None) };
        self.entry(at)?.map(|entry| Change::from_bytes(&entry.change)).transpose()
    }

    /// What waits.
    pub fn waiting(&self) -> Result<Waiting> {
        let State { entries, bytes, buried, .. } = *self.state();
        let first = self.inner.db.iterator(IteratorMode::From(&[ENTRY], Direction::Forward)).next();
        let oldest_ms = match first.transpose().map_err(self.failed("read"))? {
            Some((key, value)) if key.first() == Some(&ENTRY) => {
                let entry: Entry = from_bytes(&value).map_err(|err| self.corrupt(err.0))?;
                Some(entry.came_ms)
            }
            _ => None,
        };
        Ok(Waiting { entries, bytes, oldest_ms, buried })
    }
}

/// Why a change may not be delivered any more; `None`: it may.
pub(crate) fn too_old(change: &Change, now: SystemTime) -> Option<String> {
    // A day less than what fences: it must arrive before that is forgotten.
    let oldest = micros(now).saturating_sub(i64::from(FENCE_DAYS - 1) * 86_400_000_000);
    (change.generation().get() < oldest).then(|| {
        format!("it is older than {} days, after which a newer removal may have been forgotten; make the change anew if it still holds", FENCE_DAYS - 1)
    })
}
