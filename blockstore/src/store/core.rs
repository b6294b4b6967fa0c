//! The shared state of an open store, and its reads.
//!
//! A write is *pending* from its reservation in the log until the index has heard of it: the index hears only of what is durable
//! (STORE 9), so look-ups ask the pending writes first. Locks are taken in this order: stripes (ascending), log, rows. Callbacks run under none.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::BuildHasher,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use siphasher::sip::SipHasher13;
use smallvec::SmallVec;

use super::{
    Env, Expired, Found, Meta, Stats, Verified,
    entry::{Checkpoint, Entry, QuarantineRow, SegmentRow, entry_key, key_of_entry},
    format::{RECORDS_START, SummaryBuilder, record_bytes},
    location::Location,
    scrub::ScrubCell,
    segment::{Segment, SegmentFiles},
    ticket::Completion,
    watch::Watched,
};
use crate::{
    buffer::Buffer,
    disk::{Clock, File},
    error::{Error, ErrorKind, Result},
    index::Index,
    options::{Durability, OnCorrupt, Options},
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockWriteGuard},
};

/// Pending writes are spread over this many locks, which also order the writes of one key.
const STRIPES: usize = 64;

pub(super) type Key = SmallVec<[u8; 40]>;

/// Checks a value against its key, where a store's keys say what their values are.
pub(crate) type Verifier = fn(key: &[u8], value: &[u8]) -> Result<()>;

#[derive(Debug)]
pub(crate) struct Core {
    pub(super) env: Env,
    pub(super) options: Options,
    pub(super) dir: PathBuf,
    pub(super) read_only: bool,
    pub(super) verifier: Option<Verifier>,
    pub(super) files: SegmentFiles,
    pub(super) store_id: [u8; 16],
    pub(super) incarnation: [u8; 16],
    replayed: u64,
    /// Gone once the store is closed, so that the folder can be opened again.
    index: RwLock<Option<Arc<dyn Index>>>,
    stripes: Vec<Mutex<Stripe>>,
    hasher: Keyed,
    pub(super) segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    pub(super) log: Mutex<Log>,
    /// Something that a roll or a reservation waits for has changed.
    pub(super) changed: Condvar,
    pub(super) rows: Mutex<Rows>,
    /// Held by whoever writes to the index, so that it hears of everything in order.
    pub(super) applying: Mutex<Applied>,
    /// One reclaim at a time.
    pub(super) reclaiming: Mutex<()>,
    pub(super) count: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) key_bytes: AtomicU64,
    pub(super) quarantined: AtomicU64,
    operations: AtomicU64,
    /// How often writes have failed, and how many such failures are still being taken back; both change under the log's lock.
    pub(super) failures: AtomicU64,
    pub(super) retracting: AtomicU64,
    pub(super) work: Mutex<Work>,
    pub(super) work_to_do: Condvar,
    /// The store has been closed.
    pub(super) ended: Condvar,
    pub(super) closed: AtomicBool,
    pub(super) space: Mutex<Space>,
    pub(super) last_reclaim_ns: AtomicU64,
    pub(super) scrub: ScrubCell,
    pub(super) watched: Watched,
    /// Durable writes of which the index has not heard.
    pub(super) lag: Arc<AtomicUsize>,
}

/// What background work has been asked for.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) flush: bool,
}

/// The last look at the free space of the disk.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Bytes that may be written before it is looked at again...
    pub(super) trust: u64,
    /// ...unless that look is too long ago.
    pub(super) looked_ns: u64,
    /// The last look found too little.
    pub(super) short: bool,
    /// When a put was refused last; 0 for never, or for so long ago that it says nothing.
    pub(super) refused_ns: u64,
}

pub(super) type Stripe = HashMap<Key, SmallVec<[Pending; 1]>>;

/// Spreads keys over the stripes with a key of this process, so that nobody can aim at one of them; from the store's entropy, so that a simulation
/// replays.
#[derive(Debug)]
struct Keyed([u8; 16]);

impl Keyed {
    fn new(env: &Env) -> Keyed {
        let mut key = [0; 16];
        env.random.fill(&mut key);
        Keyed(key)
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

/// A write of a key that the index has not heard of.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) operation: u64,
    pub(super) completion: Arc<Completion>,
    pub(super) place: Arc<AtomicU64>,
    /// `None`: the key is gone.
    pub(super) value: Option<PendingValue>,
}

#[derive(Clone, Debug)]
pub(super) struct PendingValue {
    pub(super) size: u32,
    pub(super) expires_unix_ms: u64,
    pub(super) inline: Option<Arc<[u8]>>,
    pub(super) quarantined: bool,
}

/// The log's end: where the next record goes, what is on its way, what waits.
#[derive(Debug)]
pub(super) struct Log {
    /// The segment that is written to; none before the first write after an unclean open.
    pub(super) active: Option<Active>,
    /// What the next segment says of the one before.
    pub(super) previous: (u64, u64),
    pub(super) next_id: u64,
    /// Someone changes segments; reservations wait. Since when, by the monotonic clock, for the watch.
    pub(super) rolling: bool,
    pub(super) rolling_since_ns: u64,
    /// Someone flushes. Since when, for the watch.
    pub(super) flushing: bool,
    pub(super) flushing_since_ns: u64,
    /// Someone waits for a flush that could not begin when it was asked for.
    pub(super) wanted: bool,
    /// Writes that are not durable yet, in the order of the log; all of the active segment.
    pub(super) queue: VecDeque<Group>,
    /// How many at the front of the queue are written without a gap below them.
    pub(super) written: usize,
    /// Who waits for writes that are being copied after a failed flush; the queue has none of them meanwhile.
    pub(super) evacuating: Vec<Arc<Completion>>,
    /// Durable writes of which the index has not heard, in order.
    pub(super) ready: VecDeque<Group>,
    /// How many, for whoever has no lock.
    pub(super) lag: Arc<AtomicUsize>,
    pub(super) fenced: Option<Error>,
    pub(super) last_append_ns: u64,
    pub(super) oldest_unflushed_ns: u64,
    /// The file that says that the store was closed well is there, and must go before the first write.
    pub(super) clean_file: bool,
    /// Files to remove once the next segment is there.
    pub(super) void: Vec<u64>,
    /// Spent segment files that may be written over.
    pub(super) spent: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn File>,
    /// Where the next record goes.
    pub(super) head: u64,
    /// Everything below is written.
    pub(super) prefix: u64,
    /// Everything below is durable: the mark.
    pub(super) durable: u64,
    /// Starts of the reservations that are being written, and since when.
    pub(super) in_flight: BTreeMap<u64, u64>,
    pub(super) summary: SummaryBuilder,
    pub(super) records: u64,
    /// End of the last summary: everything below is told by one.
    pub(super) marked: u64,
    /// A write at this place failed: the segment ends here.
    pub(super) broken: Option<u64>,
}

/// One reservation with all its records: acknowledged, made durable and applied as a whole.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) segment: u64,
    pub(super) completion: Arc<Completion>,
    pub(super) ops: Vec<ApplyOp>,
}

/// What the index will hear of one record.
#[derive(Debug)]
pub(super) struct ApplyOp {
    pub(super) operation: u64,
    pub(super) key: Key,
    pub(super) sequence: u64,
    pub(super) place: Arc<AtomicU64>,
    pub(super) value: Option<PendingValue>,
    /// The live record that this one replaces or removes, with the size of its value.
    pub(super) previous: Option<(Arc<AtomicU64>, u32)>,
    /// A copy made by reclaim: nothing is counted.
    pub(super) moved: bool,
    /// The record before was quarantined.
    pub(super) heals: bool,
    /// The record says that the key is quarantined; its place stays what it was.
    pub(super) quarantine: Option<QuarantineRow>,
}

/// Rows of the segments, and which the index has not heard of.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) rows: BTreeMap<u64, SegmentRow>,
    pub(super) dirty: HashSet<u64>,
    /// Segments that hold what compaction can't move, quarantined records above all, with their live records when it tried.
    pub(super) stuck: HashMap<u64, u64>,
    /// Payload ranges that deletes have freed in segments that stay: location and size of the record.
    pub(super) punchable: Vec<(Location, usize, u32)>,
    pub(super) punchable_bytes: u64,
}

/// How far the index has heard.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) checkpoint: Checkpoint,
    /// What the last flush of the index covered.
    pub(super) flushed: Location,
    pub(super) bytes_since_flush: u64,
    pub(super) records_since_flush: u64,
    /// The index refused a write or a flush; it is opened anew.
    pub(super) error: Option<Error>,
    /// When that was tried last; 0 for never.
    pub(super) reopened_ns: u64,
}

/// A key as it is now.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) place: Arc<AtomicU64>,
    pub(super) size: u32,
    pub(super) expires_unix_ms: u64,
    pub(super) inline: Option<Arc<[u8]>>,
    pub(super) quarantined: bool,
}

impl Live {
    pub(super) fn location(&self) -> Location {
        Location::from_word(self.place.load(Ordering::Acquire))
    }
}

/// Parts of a store that recovery has found.
pub(super) struct Recovered {
    pub(super) files: SegmentFiles,
    pub(super) store_id: [u8; 16],
    pub(super) incarnation: [u8; 16],
    /// Records that the index had to be told of.
    pub(super) replayed: u64,
    pub(super) index: Arc<dyn Index>,
    pub(super) segments: BTreeMap<u64, Arc<Segment>>,
    pub(super) rows: BTreeMap<u64, SegmentRow>,
    pub(super) checkpoint: Checkpoint,
    pub(super) log: Log,
}

impl Core {
    pub(super) fn new(
        env: &Env,
        options: Options,
        dir: PathBuf,
        read_only: bool,
        verifier: Option<Verifier>,
        recovered: Recovered,
    ) -> Core {
        let Recovered { files, store_id, incarnation, replayed, index, segments, rows, checkpoint, log } = recovered;
        Core {
            env: env.clone(),
            options,
            dir,
            read_only,
            verifier,
            files,
            store_id,
            incarnation,
            replayed,
            index: RwLock::new(Some(index)),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: Keyed::new(env),
            segments: RwLock::new(segments),
            lag: log.lag.clone(),
            log: Mutex::new(log),
            changed: Condvar::default(),
            rows: Mutex::new(Rows { rows, ..Rows::default() }),
            applying: Mutex::new(Applied { checkpoint, flushed: checkpoint.position, ..Applied::default() }),
            reclaiming: Mutex::default(),
            count: AtomicU64::new(checkpoint.count),
            bytes: AtomicU64::new(checkpoint.bytes),
            key_bytes: AtomicU64::new(checkpoint.key_bytes),
            quarantined: AtomicU64::new(0),
            operations: AtomicU64::new(1),
            failures: AtomicU64::new(0),
            retracting: AtomicU64::new(0),
            work: Mutex::default(),
            work_to_do: Condvar::default(),
            ended: Condvar::default(),
            closed: AtomicBool::new(false),
            space: Mutex::default(),
            last_reclaim_ns: AtomicU64::new(0),
            scrub: ScrubCell::default(),
            watched: Watched::default(),
        }
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.env.clock
    }

    pub(super) fn flush_deadline(&self) -> Duration {
        self.options.flush_deadline
    }

    pub(super) fn next_operation(&self) -> u64 {
        self.operations.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn stripe_of(&self, key: &[u8]) -> usize {
        self.hasher.hash_one(key) as usize % STRIPES
    }

    pub(super) fn stripe(&self, at: usize) -> MutexGuard<'_, Stripe> {
        self.stripes[at].lock()
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Closed,
                format!("the store {} is closed: open it again", self.dir.display()),
            ));
        }
        Ok(())
    }

    pub(super) fn index(&self) -> Result<Arc<dyn Index>> {
        self.index.read().clone().ok_or_else(|| self.closed_error())
    }

    /// Where the index is, for whoever puts another one there; look-ups wait meanwhile.
    pub(super) fn index_slot(&self) -> RwLockWriteGuard<'_, Option<Arc<dyn Index>>> {
        self.index.write()
    }

    /// Lets go of the index; whoever uses it at this moment finishes first.
    pub(super) fn release_index(&self) {
        self.index.write().take();
    }

    pub(super) fn closed_error(&self) -> Error {
        Error::new(ErrorKind::Closed, format!("the store {} is closed: open it again", self.dir.display()))
    }

    pub(super) fn segment(&self, id: u64) -> Option<Arc<Segment>> {
        self.segments.read().get(&id).cloned()
    }

    pub(super) fn add_segment(&self, segment: Arc<Segment>) {
        self.segments.write().insert(segment.id, segment);
    }

    pub(super) fn remove_segment(&self, id: u64) {
        self.segments.write().remove(&id);
        self.files.forget(id);
    }

    /// The newest write of a key, visible or not, under its stripe; then the index.
    pub(super) fn newest(&self, stripe: &Stripe, key: &[u8]) -> Result<Option<(Live, Option<Arc<Completion>>)>> {
        if let Some(last) = stripe.get(key).and_then(|pending| pending.last()) {
            return Ok(last.value.as_ref().map(|value| (live_of(last, value), Some(last.completion.clone()))));
        }
        Ok(self.indexed(key)?.map(|live| (live, None)))
    }

    /// The last pending write of a key, if any.
    pub(super) fn last_pending(stripe: &Stripe, key: &[u8]) -> Option<Pending> {
        stripe.get(key).and_then(|pending| pending.last()).cloned()
    }

    fn indexed(&self, key: &[u8]) -> Result<Option<Live>> {
        let Some(bytes) = self.index()?.get(&entry_key(key))? else { return Ok(None) };
        let entry = Entry::decode(&bytes)?;
        Ok(Some(Live {
            place: Arc::new(AtomicU64::new(entry.location.word())),
            size: entry.size,
            expires_unix_ms: entry.expires_unix_ms,
            inline: entry.inline.map(Arc::from),
            quarantined: entry.quarantined,
        }))
    }

    /// Whether readers see a pending write: puts once the class acknowledges them, deletes once they are written.
    fn visible(&self, pending: &Pending) -> bool {
        match (&pending.value, self.options.durability) {
            (Some(_), Durability::Strict) => pending.completion.is_durable(),
            _ => pending.completion.is_written(),
        }
    }

    /// A key as a reader sees it. Blocks of a fenced store that may not be durable are `Unavailable`, never present (STORE 2).
    pub(super) fn resolve(&self, key: &[u8]) -> Result<Option<Live>> {
        self.check_open()?;
        self.check_answers()?;
        {
            let stripe = self.stripe(self.stripe_of(key));
            if let Some(pending) = stripe.get(key) {
                for pending in pending.iter().rev() {
                    if pending.completion.is_lost() {
                        return Err(Error::new(
                            ErrorKind::Unavailable,
                            "the disk failed before this write was durable: look at the disk, then open the store again",
                        ));
                    }
                    if self.visible(pending) {
                        return Ok(pending
                            .value
                            .as_ref()
                            .map(|value| live_of(pending, value))
                            .filter(|live| !self.expired(live)));
                    }
                }
            }
        }
        // Applied meanwhile: the index had it before the stripe let go of it.
        Ok(self.indexed(key)?.filter(|live| !self.expired(live)))
    }

    fn expired(&self, live: &Live) -> bool {
        live.expires_unix_ms != 0 && live.expires_unix_ms <= self.env.clock.unix_ms()
    }

    /// A key as the config wants a quarantined one to look: absent, or an error.
    fn resolve_sound(&self, key: &[u8]) -> Result<Option<Live>> {
        match (self.resolve(key)?, self.options.corrupt) {
            (Some(live), OnCorrupt::Error) if live.quarantined => Err(self.quarantine_error(key)),
            (live, _) => Ok(live.filter(|live| !live.quarantined)),
        }
    }

    pub(super) fn meta(&self, key: &[u8]) -> Result<Option<Meta>> {
        let live = self.resolve_sound(key)?;
        Ok(live.map(|live| Meta { size: live.size, expires_unix_ms: live.expires_unix_ms }))
    }

    pub(super) fn get(self: &Arc<Self>, key: &[u8], buffer: &mut dyn Buffer) -> Result<Meta> {
        let mut before = None;
        loop {
            let live = match self.resolve_sound(key) {
                Ok(Some(live)) => live,
                other => {
                    buffer.room(0);
                    return Err(other.err().unwrap_or_else(Error::not_found));
                }
            };
            let meta = Meta { size: live.size, expires_unix_ms: live.expires_unix_ms };
            let Some(room) = buffer.room(live.size as usize) else {
                let message = format!("the value has {} bytes, more than the buffer has room for", live.size);
                return Err(Error::new(ErrorKind::TooLarge, message));
            };
            if let Some(inline) = &live.inline {
                room.copy_from_slice(inline);
                return Ok(meta);
            }
            let location = live.location();
            let err = match self.read_at(location, key, room) {
                Ok(()) => return Ok(meta),
                Err(err) => err,
            };
            // It may have been deleted, moved or freed since the look-up: only the same place twice is damage.
            if before.replace(location) != Some(location) {
                continue;
            }
            buffer.room(0);
            if err.kind() != ErrorKind::Corrupt {
                self.note_unreadable(key, location);
                return Err(err);
            }
            self.quarantine(key, location, None, &err.to_string());
            return match self.options.corrupt {
                OnCorrupt::Refetch => Err(Error::not_found()),
                OnCorrupt::Error => Err(err),
            };
        }
    }

    /// Reads a value of just the size of `value`.
    pub(super) fn read_at(&self, location: Location, key: &[u8], value: &mut [u8]) -> Result<()> {
        let Some(segment) = self.segment(location.segment()) else {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "segment {} of {} is missing: restore its file from a snapshot or replica",
                    location.segment(),
                    self.dir.display()
                ),
            ));
        };
        self.files.read_value(&segment, location, key, value)
    }

    /// A page of keys in byte order. Pending writes are looked at first: what is applied meanwhile is then in the index for sure.
    fn page(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        wanted_now: impl Fn(&Live) -> bool,
    ) -> Result<BTreeMap<Key, Live>> {
        self.check_open()?;
        if limit == 0 {
            return Ok(BTreeMap::new());
        }
        let from = match after {
            Some(after) if after >= prefix => after,
            _ => prefix,
        };
        let wanted = |key: &[u8]| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        let mut overlay: BTreeMap<Key, Option<Live>> = BTreeMap::new();
        for stripe in &self.stripes {
            for (key, pending) in stripe.lock().iter().filter(|(key, _)| wanted(key)) {
                if let Some(newest) = pending.iter().rev().find(|pending| self.visible(pending)) {
                    overlay.insert(key.clone(), newest.value.as_ref().map(|value| live_of(newest, value)));
                }
            }
        }
        let mut found: BTreeMap<Key, Live> = BTreeMap::new();
        let mut failed = None;
        // Keys that the overlay hides don't count against the limit.
        self.index()?.scan(&entry_key(from), &mut |index_key, bytes| {
            let Some(key) = key_of_entry(index_key) else { return false };
            if !key.starts_with(prefix) {
                return key < prefix;
            }
            if !wanted(key) || overlay.contains_key(key) {
                return true;
            }
            match Entry::decode(bytes) {
                Ok(entry) => {
                    let live = Live {
                        place: Arc::new(AtomicU64::new(entry.location.word())),
                        size: entry.size,
                        expires_unix_ms: entry.expires_unix_ms,
                        inline: entry.inline.map(Arc::from),
                        quarantined: entry.quarantined,
                    };
                    if wanted_now(&live) {
                        found.insert(Key::from_slice(key), live);
                    }
                }
                Err(err) => failed = Some(err),
            }
            found.len() < limit && failed.is_none()
        })?;
        if let Some(err) = failed {
            return Err(err);
        }
        // The index page is complete up to its last key where it was cut by the limit; overlay keys beyond come with a later page.
        let horizon = (found.len() >= limit).then(|| found.keys().next_back().cloned()).flatten();
        for (key, live) in overlay {
            if horizon.as_ref().is_some_and(|horizon| key > *horizon) {
                continue;
            }
            if let Some(live) = live.filter(&wanted_now) {
                found.insert(key, live);
            }
        }
        while found.len() > limit {
            found.pop_last();
        }
        Ok(found)
    }

    /// A page of live keys in byte order.
    pub(super) fn scan(
        self: &Arc<Self>,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        values: bool,
    ) -> Result<Vec<Found>> {
        let found = self.page(prefix, after, limit, |live| !self.expired(live))?;
        let mut out = Vec::with_capacity(found.len());
        for (key, live) in found {
            let mut one = Found {
                key: key.to_vec(),
                meta: Meta { size: live.size, expires_unix_ms: live.expires_unix_ms },
                value: None,
            };
            if values {
                let mut value = Vec::new();
                match self.get(&key, &mut value) {
                    Ok(meta) => {
                        one.meta = meta;
                        one.value = Some(value);
                    }
                    // Deleted since, or damaged and so absent.
                    Err(err) if err.is_not_found() => {}
                    Err(err) => return Err(err),
                }
            }
            out.push(one);
        }
        Ok(out)
    }

    /// Looks at up to `limit` keys above `after` for those that have expired.
    pub(super) fn scan_expired(&self, after: Option<&[u8]>, limit: usize) -> Result<Expired> {
        let page = self.page(b"", after, limit, |_| true)?;
        let last = page.last_key_value().filter(|_| page.len() == limit).map(|(key, _)| key.to_vec());
        let keys = page.iter().filter(|(_, live)| self.expired(live)).map(|(key, _)| key.to_vec()).collect();
        Ok(Expired { last, keys })
    }

    /// Reads the values of a page of keys back.
    pub(super) fn verify(self: &Arc<Self>, after: Option<&[u8]>, limit: usize) -> Result<Verified> {
        let page = self.scan(b"", after, limit, false)?;
        let mut verified = Verified { last: page.last().map(|found| found.key.clone()), ..Verified::default() };
        let mut buffer = Vec::new();
        for found in page {
            let mut before = None;
            while let Some(live) = self.resolve(&found.key)? {
                if live.quarantined {
                    verified.damaged.push((found.key.clone(), self.quarantine_error(&found.key)));
                    break;
                }
                let location = live.location();
                buffer.resize(live.size as usize, 0);
                match self.read_at(location, &found.key, &mut buffer) {
                    Ok(()) => {
                        verified.keys += 1;
                        verified.bytes += u64::from(live.size);
                        break;
                    }
                    Err(err) if before.replace(location) == Some(location) => {
                        if err.kind() == ErrorKind::Corrupt {
                            self.quarantine(&found.key, location, None, &err.to_string());
                        }
                        verified.damaged.push((found.key.clone(), err));
                        break;
                    }
                    Err(_) => {}
                }
            }
        }
        Ok(verified)
    }

    pub(super) fn live(&self) -> Stats {
        Stats {
            count: self.count.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            key_bytes: self.key_bytes.load(Ordering::Relaxed),
            ..Stats::default()
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let (unflushed_bytes, head) = {
            let log = self.log.lock();
            (log.unflushed_bytes(), log.active.as_ref().map(|active| (active.segment.id, active.head)))
        };
        let rows = self.rows.lock();
        let mut stats = Stats {
            segments: rows.rows.len() as u64,
            unflushed_bytes,
            quarantined: self.quarantined.load(Ordering::Relaxed),
            replayed: self.replayed,
            ..self.live()
        };
        for (id, row) in &rows.rows {
            let end = match head {
                Some((active, head)) if active == *id => head,
                _ => row.end.max(RECORDS_START),
            };
            stats.allocated_bytes += end.saturating_sub(row.punched_bytes);
            stats.dead_bytes += (end - RECORDS_START).saturating_sub(row.live_bytes + row.punched_bytes);
        }
        stats
    }
}

impl Active {
    /// Where what counts of it ends: at the head, or where a write failed.
    pub(super) fn end(&self) -> u64 {
        self.broken.unwrap_or(self.head)
    }
}

impl Log {
    pub(super) fn unflushed_bytes(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.end() - active.durable)
    }
}

fn live_of(pending: &Pending, value: &PendingValue) -> Live {
    Live {
        place: pending.place.clone(),
        size: value.size,
        expires_unix_ms: value.expires_unix_ms,
        inline: value.inline.clone(),
        quarantined: value.quarantined,
    }
}

/// Bytes of the record of a live key.
pub(super) fn live_bytes(key: &[u8], size: u32) -> u64 {
    record_bytes(key.len(), size as usize)
}

/// A key for logs.
pub(super) fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
