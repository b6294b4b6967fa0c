//! The embedded engine: RocksDB in the node's own folder, with its log flushed before a change is acknowledged.
//!
//! A change and what finds it (the indexes by owner, tag, peer and expiry) are one atomic write, so here an index is exact. Who reads, compares
//! and writes a record holds the lock of its multihash; writers of different multihashes share a flush (RocksDB's own group commit).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use rocksdb::{
    BlockBasedOptions, Cache, CompactionDecision, DB, Direction, ErrorKind, IteratorMode, Options, ReadOptions,
    WriteBatch, WriteOptions,
};

use crate::{
    Bucket, Change, Claim, Class, Conditional, Cursor, Error, Expiry, ExpiryShard, FENCE_DAYS, Generation, Multihash,
    Operation, Owner, PAGE_MAX, Page, Peer, Pin, PinKey, PinLedger, Placement, PlaneKey, Registration, Result, Slot,
    Tag,
    codec::{
        Key, KeyReader, Malformed, StoredClaim, StoredHave, StoredPin, StoredPlacement, StoredRegistration, StoredWant,
        from_bytes, to_bytes,
    },
    generation::micros,
    ledger::{check_outcome, conditional_key},
    record::describe_operation,
};

/// Kinds of keys: their first byte.
mod kind {
    /// Pin: multihash, owner, codec.
    pub const PIN: u8 = b'p';
    /// Pin by owner: owner, multihash, codec.
    pub const OWNER: u8 = b'o';
    /// Pin by tag: owner, tag, multihash, codec.
    pub const TAG: u8 = b't';
    /// Pin by expiry: slot, shard, time, then as a pin.
    pub const EXPIRY: u8 = b'e';
    /// Placement: multihash, peer.
    pub const PLACEMENT: u8 = b'l';
    /// Placement by peer: peer, bucket, multihash.
    pub const PEER: u8 = b'r';
    /// Claimed operation.
    pub const CLAIM: u8 = b'd';
    /// Closed slot of a shard.
    pub const CLOSED: u8 = b'w';
    /// Registered node: peer.
    pub const NODE: u8 = b'n';
    /// What the ledger is: its format and its hash key.
    pub const META: u8 = b'm';
}

/// The format that this build reads and writes.
const FORMAT: u8 = 1;
const LOCKS: usize = 256;
/// How long a claim lasts.
pub(crate) const CLAIM_LASTS: Duration = Duration::from_secs(7 * 86_400);
/// Rows that a page may pass over without finding an item: tombstones.
const PASSED_MAX: usize = 20_000;

/// Memory of the embedded ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Bytes for blocks of the database and its filters.
    pub cache_bytes: usize,
    /// Bytes of changes that are not yet in a file.
    pub write_buffer_bytes: usize,
    /// Files that may be open at a time.
    pub open_files_max: i32,
}

impl Default for EmbeddedOptions {
    fn default() -> EmbeddedOptions {
        EmbeddedOptions { cache_bytes: 64 << 20, write_buffer_bytes: 32 << 20, open_files_max: 256 }
    }
}

/// A ledger in a folder of its own. One process at a time has it open.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    db: DB,
    key: PlaneKey,
    locks: Vec<Mutex<()>>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the ledger in a folder, or makes it.
    pub fn open(path: &Path, options: &EmbeddedOptions) -> Result<Embedded> {
        let tried = || format!("open the ledger in {}", path.display());
        let failed = |err: rocksdb::Error| {
            let text = err.to_string();
            // RocksDB's class for a lock that another has is IOError, as for all else of the file system.
            if text.contains("LOCK") {
                let why = "another process has it open; an agent of this node runs already".to_owned();
                Error::new(tried(), Class::Config, why)
            } else {
                Error::new(tried(), class(&err), text)
            }
        };
        let db = DB::open(&database_options(options), path).map_err(failed)?;
        let format = Key::new(kind::META).part(b"format").0;
        let hash_key = Key::new(kind::META).part(b"hash-key").0;
        let key = match (db.get(&format).map_err(failed)?.as_deref(), db.get(&hash_key).map_err(failed)?) {
            (None, None) => {
                let mut drawn = [0; 16];
                getrandom::fill(&mut drawn).map_err(|err| {
                    Error::new(tried(), Class::Unavailable, format!("the system gives no random bytes: {err}"))
                })?;
                let mut batch = WriteBatch::default();
                batch.put(&format, [FORMAT]);
                batch.put(&hash_key, drawn);
                db.write_opt(batch, &synced()).map_err(failed)?;
                PlaneKey(drawn)
            }
            (Some([FORMAT]), Some(key)) => PlaneKey(
                key.try_into().map_err(|_| Error::new(tried(), Class::Corrupt, "its hash key has not 16 bytes"))?,
            ),
            (Some([other, ..]), _) => {
                let why = format!(
                    "its format is {other}, and this build knows {FORMAT}; run the agent that wrote it, or a newer one"
                );
                return Err(Error::new(tried(), Class::Schema, why));
            }
            _ => return Err(Error::new(tried(), Class::Corrupt, "its format or hash key is missing")),
        };
        let locks = std::iter::repeat_with(Mutex::default).take(LOCKS).collect();
        Ok(Embedded { inner: Arc::new(Inner { path: path.to_owned(), db, key, locks }) })
    }

    /// Runs where it may block.
    async fn blocking<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> Result<T> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(done) => done,
            Err(err) => {
                Err(Error::new("use the embedded ledger", Class::Unavailable, format!("its task ended: {err}")))
            }
        }
    }
}

fn database_options(options: &EmbeddedOptions) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(options.cache_bytes));
    // Filters and indexes count as cache, or they would grow with the ledger.
    table.set_cache_index_and_filter_blocks(true);
    table.set_bloom_filter(10.0, false);
    let mut database = Options::default();
    database.create_if_missing(true);
    database.set_block_based_table_factory(&table);
    database.set_write_buffer_size(options.write_buffer_bytes);
    database.set_max_write_buffer_number(2);
    database.set_max_open_files(options.open_files_max);
    database.set_keep_log_file_num(4);
    database.set_max_total_wal_size(4 * options.write_buffer_bytes as u64);
    // What fences older changes goes once nothing older can be on its way.
    database.set_compaction_filter("basalt.stateplane.fences", |_, key, value| {
        if past_its_use(key, value, SystemTime::now()) { CompactionDecision::Remove } else { CompactionDecision::Keep }
    });
    database
}

fn past_its_use(key: &[u8], value: &[u8], now: SystemTime) -> bool {
    let fenced = micros(now).saturating_sub(i64::from(FENCE_DAYS) * 86_400_000_000);
    match key.first() {
        Some(&kind::PIN) => from_bytes::<StoredPin>(value).is_ok_and(|pin| pin.removed && pin.generation < fenced),
        Some(&kind::PLACEMENT) => from_bytes::<StoredPlacement>(value)
            .is_ok_and(|known| known.want.is_none() && known.have.is_none() && known.forgotten < fenced),
        Some(&kind::NODE) => {
            from_bytes::<StoredRegistration>(value).is_ok_and(|node| node.removed && node.generation < fenced)
        }
        Some(&kind::CLAIM) => from_bytes::<StoredClaim>(value).is_ok_and(|claim| claim.until_ms < now_ms(now)),
        _ => false,
    }
}

fn now_ms(now: SystemTime) -> u64 {
    u64::try_from(micros(now) / 1000).unwrap_or(0)
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn class(err: &rocksdb::Error) -> Class {
    match err.kind() {
        ErrorKind::Corruption => Class::Corrupt,
        _ => Class::Unavailable,
    }
}

fn failed(tried: impl Into<String>) -> impl FnOnce(rocksdb::Error) -> Error {
    let tried = tried.into();
    move |err| Error::new(tried, class(&err), err.to_string())
}

fn malformed(tried: impl Into<String>) -> impl FnOnce(Malformed) -> Error {
    let tried = tried.into();
    move |err| Error::new(tried, Class::Corrupt, format!("a record of the embedded ledger can't be read: {}", err.0))
}

/// What the database will hold once the changes so far are written.
struct Staged<'a> {
    inner: &'a Inner,
    changed: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Staged<'_> {
    fn get(&self, key: &[u8], tried: &str) -> Result<Option<Vec<u8>>> {
        match self.changed.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.inner.db.get(key).map_err(failed(tried)),
        }
    }

    fn put(&mut self, key: Key, value: Vec<u8>) {
        self.changed.insert(key.0, Some(value));
    }

    fn delete(&mut self, key: Key) {
        self.changed.insert(key.0, None);
    }

    fn apply(&mut self, change: &Change) -> Result<()> {
        let tried = change.describe();
        match change {
            Change::Put(pin) => {
                let slot = pin.expires.map(|expires| Slot::of_hint(expires, SystemTime::now()).0);
                self.set_pin(&pin.key, StoredPin { slot, ..StoredPin::of(pin) }, &tried)
            }
            Change::Remove(key, generation) => self.set_pin(key, StoredPin::removed(*generation), &tried),
            Change::Want(multihash, peer, want) => self.set_placement(multihash, peer, &tried, |known| {
                let old = known.want.as_ref().map_or(0, |want| want.generation);
                if want.generation.get() > old.max(known.forgotten) {
                    known.want = Some(StoredWant::of(want));
                }
            }),
            Change::Have(multihash, peer, have) => self.set_placement(multihash, peer, &tried, |known| {
                let old = known.have.as_ref().map_or(0, |have| have.generation);
                if have.generation.get() > old.max(known.forgotten) {
                    known.have = Some(StoredHave::of(have));
                }
            }),
            Change::Forget(multihash, peer, upto) => self.set_placement(multihash, peer, &tried, |known| {
                known.forgotten = known.forgotten.max(upto.get());
                known.want = known.want.take().filter(|want| want.generation > upto.get());
                known.have = known.have.take().filter(|have| have.generation > upto.get());
            }),
        }
    }

    fn set_pin(&mut self, key: &PinKey, new: StoredPin, tried: &str) -> Result<()> {
        let place = Key::new(kind::PIN).pin(key);
        if let Some(old) = self.get(&place.0, tried)? {
            let old: StoredPin = from_bytes(&old).map_err(malformed(tried))?;
            if new.generation < old.generation || (new.generation == old.generation && !new.removed) {
                return Ok(());
            }
            for index in self.indexes(key, &old) {
                self.delete(index);
            }
        }
        for index in self.indexes(key, &new) {
            self.put(index, new.generation.to_be_bytes().to_vec());
        }
        self.put(place, to_bytes(&new));
        Ok(())
    }

    /// What finds a pin, besides its key.
    fn indexes(&self, key: &PinKey, pin: &StoredPin) -> Vec<Key> {
        if pin.removed {
            return Vec::new();
        }
        let (owner, multihash) = (key.owner.as_str().as_bytes(), key.multihash.as_bytes());
        let mut indexes = vec![Key::new(kind::OWNER).part(owner).part(multihash).u64(key.codec)];
        for tag in &pin.tags {
            indexes.push(Key::new(kind::TAG).part(owner).part(tag.as_bytes()).part(multihash).u64(key.codec));
        }
        if let (Some(expires), Some(slot)) = (pin.expires, pin.slot) {
            let shard = self.inner.key.expiry_shard(key);
            indexes.push(expiry_prefix(Slot(slot), shard).u64(expires).pin(key));
        }
        indexes
    }

    fn set_placement(
        &mut self,
        multihash: &Multihash,
        peer: &Peer,
        tried: &str,
        change: impl FnOnce(&mut StoredPlacement),
    ) -> Result<()> {
        let place = Key::new(kind::PLACEMENT).part(multihash.as_bytes()).part(peer.as_str().as_bytes());
        let mut known: StoredPlacement = match self.get(&place.0, tried)? {
            Some(bytes) => from_bytes(&bytes).map_err(malformed(tried))?,
            None => StoredPlacement::default(),
        };
        change(&mut known);
        let bucket = self.inner.key.bucket(multihash);
        let index = peer_prefix(peer, Some(bucket)).part(multihash.as_bytes());
        if known.want.is_some() || known.have.is_some() {
            // The whole of it: a list of a peer reads on instead of looking up each.
            self.put(index, to_bytes(&known));
        } else {
            self.delete(index);
        }
        self.put(place, to_bytes(&known));
        Ok(())
    }

    fn write(self, tried: &str) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in &self.changed {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        self.inner.db.write_opt(batch, &synced()).map_err(failed(tried))
    }
}

fn expiry_prefix(slot: Slot, shard: ExpiryShard) -> Key {
    Key::new(kind::EXPIRY).u64(slot.0).u16(shard.0)
}

fn peer_prefix(peer: &Peer, bucket: Option<Bucket>) -> Key {
    let key = Key::new(kind::PEER).part(peer.as_str().as_bytes());
    match bucket {
        Some(Bucket(bucket)) => key.u16(bucket),
        None => key,
    }
}

impl Inner {
    fn lock_of(&self, bytes: &[u8]) -> usize {
        bytes.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte))) % LOCKS
    }

    /// The locks of all these, in one order, so that no two callers wait for each other.
    fn lock<'a>(&'a self, of: impl Iterator<Item = &'a [u8]>) -> Vec<MutexGuard<'a, ()>> {
        let wanted: BTreeSet<usize> = of.map(|bytes| self.lock_of(bytes)).collect();
        let locks = wanted.iter().filter_map(|place| self.locks.get(*place));
        locks.map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    fn staged(&self) -> Staged<'_> {
        Staged { inner: self, changed: BTreeMap::new() }
    }

    fn apply(&self, changes: &[Change]) -> Result<()> {
        changes.iter().try_for_each(Change::check)?;
        let _held = self.lock(changes.iter().map(|change| change.multihash().as_bytes()));
        let mut staged = self.staged();
        changes.iter().try_for_each(|change| staged.apply(change))?;
        staged.write(&changes.first().map(Change::describe).unwrap_or_default())
    }

    fn apply_if(&self, expected: Option<Generation>, change: &Change) -> Result<Conditional> {
        let key = conditional_key(change)?;
        change.check()?;
        let tried = change.describe();
        let _held = self.lock([key.multihash.as_bytes()].into_iter());
        let stored = self.stored_pin(key, &tried)?;
        let fenced = stored.as_ref().is_some_and(|pin| change.generation().get() <= pin.generation);
        let current = match stored {
            Some(stored) => stored.pin(key.clone()).map_err(malformed(&tried))?,
            None => None,
        };
        if current.as_ref().map(|pin| pin.generation) != expected || fenced {
            return Ok(Conditional::Differs(current));
        }
        let mut staged = self.staged();
        staged.apply(change)?;
        staged.write(&tried)?;
        Ok(Conditional::Applied)
    }

    fn stored_pin(&self, key: &PinKey, tried: &str) -> Result<Option<StoredPin>> {
        let bytes = self.db.get_pinned(Key::new(kind::PIN).pin(key).0).map_err(failed(tried))?;
        bytes.map(|bytes| from_bytes(&bytes).map_err(malformed(tried))).transpose()
    }

    fn pin(&self, key: &PinKey) -> Result<Option<Pin>> {
        let tried = format!("read pin {} of {}", key.multihash, key.owner);
        match self.stored_pin(key, &tried)? {
            Some(stored) => stored.pin(key.clone()).map_err(malformed(tried)),
            None => Ok(None),
        }
    }

    fn placement(&self, multihash: &Multihash, peer: &Peer) -> Result<Option<Placement>> {
        let tried = format!("read {multihash} at {peer}");
        let key = Key::new(kind::PLACEMENT).part(multihash.as_bytes()).part(peer.as_str().as_bytes());
        match self.db.get_pinned(key.0).map_err(failed(&tried))? {
            Some(bytes) => placement(multihash.clone(), peer.clone(), &bytes).map_err(malformed(tried)),
            None => Ok(None),
        }
    }

    /// A page of the keys that begin with `prefix`. `item` makes an item of the rest of a key and its value, or passes it over.
    fn page<T>(
        &self,
        tried: &str,
        prefix: Key,
        after: Option<&Cursor>,
        limit: usize,
        mut item: impl FnMut(&mut KeyReader<'_>, &[u8]) -> Result<Option<T>, PageError>,
    ) -> Result<Page<T>> {
        let prefix = prefix.0;
        if limit == 0 {
            return Err(Error::new(tried, Class::Argument, "a page of no items was asked for"));
        }
        let limit = limit.min(PAGE_MAX);
        let start = match after {
            None => prefix.clone(),
            Some(Cursor(key)) if key.starts_with(&prefix) => [key.as_slice(), &[0]].concat(),
            Some(_) => return Err(Error::new(tried, Class::Argument, "the cursor is of another list")),
        };
        let mut options = ReadOptions::default();
        if let Some(end) = successor(&prefix) {
            options.set_iterate_upper_bound(end);
        }
        let mut items = Vec::new();
        let mut rows = self.db.iterator_opt(IteratorMode::From(&start, Direction::Forward), options);
        let mut passed = 0;
        let mut last = None;
        for row in rows.by_ref() {
            let (key, value) = row.map_err(failed(tried))?;
            if items.len() == limit || passed == PASSED_MAX {
                // There is one more row, so there is a next page.
                return Ok(Page { items, next: last.map(Cursor) });
            }
            let mut rest = KeyReader(key.get(prefix.len()..).unwrap_or_default());
            match item(&mut rest, &value) {
                Ok(Some(item)) => items.push(item),
                Ok(None) => passed += 1,
                Err(PageError::Malformed(err)) => return Err(malformed(tried)(err)),
                Err(PageError::Failed(err)) => return Err(err),
            }
            last = Some(key.into_vec());
        }
        Ok(Page { items, next: None })
    }

    /// The peers of the rows by peer: from each the look goes on behind its last row.
    fn peers(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Peer>> {
        let tried = "list peers";
        if limit == 0 {
            return Err(Error::new(tried, Class::Argument, "a page of no items was asked for"));
        }
        let mut start = match after {
            None => vec![kind::PEER],
            Some(Cursor(key)) if key.first() == Some(&kind::PEER) => key.clone(),
            Some(_) => return Err(Error::new(tried, Class::Argument, "the cursor is of another list")),
        };
        let mut items = Vec::new();
        loop {
            let row = self.db.iterator(IteratorMode::From(&start, Direction::Forward)).next();
            let Some((key, _)) = row.transpose().map_err(failed(tried))? else { break };
            let Some((&kind::PEER, rest)) = key.split_first() else { break };
            if items.len() == limit.min(PAGE_MAX) {
                return Ok(Page { items, next: Some(Cursor(start)) });
            }
            let peer = KeyReader(rest).text().and_then(|text| Ok(text.parse::<Peer>()?)).map_err(malformed(tried))?;
            let Some(end) = successor(&peer_prefix(&peer, None).0) else { break };
            start = end;
            items.push(peer);
        }
        Ok(Page { items, next: None })
    }

    fn claim(&self, operation: &Operation, claimant: u128) -> Result<Claim> {
        let tried = describe_operation("claim", operation);
        let name = operation.as_str().as_bytes();
        let _held = self.lock([name].into_iter());
        let now = now_ms(SystemTime::now());
        if let Some(claim) = self.stored_claim(operation, now, &tried)? {
            let holder = u128::from_be_bytes(claim.claimant.as_slice().try_into().unwrap_or_default());
            return Ok(if holder == claimant && claim.outcome.is_none() {
                Claim::Ours
            } else {
                Claim::Taken { claimant: holder, outcome: claim.outcome }
            });
        }
        let until_ms = now.saturating_add(CLAIM_LASTS.as_millis() as u64);
        let claim = StoredClaim { claimant: claimant.to_be_bytes().to_vec(), outcome: None, until_ms };
        self.db.put_opt(Key::new(kind::CLAIM).part(name).0, to_bytes(&claim), &synced()).map_err(failed(tried))?;
        Ok(Claim::Ours)
    }

    fn finish(&self, operation: &Operation, claimant: u128, outcome: &str) -> Result<bool> {
        check_outcome(operation, outcome)?;
        let tried = describe_operation("finish", operation);
        let name = operation.as_str().as_bytes();
        let _held = self.lock([name].into_iter());
        let claim = self.stored_claim(operation, now_ms(SystemTime::now()), &tried)?;
        let Some(mut claim) = claim.filter(|claim| claim.claimant == claimant.to_be_bytes()) else { return Ok(false) };
        claim.outcome = Some(outcome.to_owned());
        self.db.put_opt(Key::new(kind::CLAIM).part(name).0, to_bytes(&claim), &synced()).map_err(failed(tried))?;
        Ok(true)
    }

    fn stored_claim(&self, operation: &Operation, now: u64, tried: &str) -> Result<Option<StoredClaim>> {
        let key = Key::new(kind::CLAIM).part(operation.as_str().as_bytes());
        let Some(bytes) = self.db.get(key.0).map_err(failed(tried))? else { return Ok(None) };
        let claim: StoredClaim = from_bytes(&bytes).map_err(malformed(tried))?;
        Ok(Some(claim).filter(|claim| claim.until_ms >= now))
    }

    fn closed_slot(&self, shard: ExpiryShard, tried: &str) -> Result<Option<Slot>> {
        let bytes = self.db.get(Key::new(kind::CLOSED).u16(shard.0).0).map_err(failed(tried))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let slot =
            <[u8; 8]>::try_from(bytes.as_slice()).map_err(|_| malformed(tried)(Malformed("no slot".to_owned())))?;
        Ok(Some(Slot(u64::from_be_bytes(slot))))
    }

    fn set_node(&self, peer: &Peer, new: &StoredRegistration, tried: &str) -> Result<()> {
        let key = Key::new(kind::NODE).part(peer.as_str().as_bytes()).0;
        let _held = self.lock([key.as_slice()].into_iter());
        if let Some(old) = self.db.get(&key).map_err(failed(tried))? {
            let old: StoredRegistration = from_bytes(&old).map_err(malformed(tried))?;
            if new.generation < old.generation || (new.generation == old.generation && !new.removed) {
                return Ok(());
            }
        }
        self.db.put_opt(&key, to_bytes(new), &synced()).map_err(failed(tried))
    }

    fn close_slot(&self, slot: Slot, shard: ExpiryShard) -> Result<()> {
        let tried = format!("close slot {} of expiry shard {}", slot.0, shard.0);
        let _held = self.lock([b"closed".as_slice()].into_iter());
        let closed = self.closed_slot(shard, &tried)?.map_or(slot, |closed| closed.max(slot));
        let mut batch = WriteBatch::default();
        let prefix = expiry_prefix(slot, shard).0;
        if let Some(end) = successor(&prefix) {
            batch.delete_range(prefix, end);
        }
        batch.put(Key::new(kind::CLOSED).u16(shard.0).0, closed.0.to_be_bytes());
        self.db.write_opt(batch, &synced()).map_err(failed(tried))
    }
}

/// Why a row of a page makes no item.
enum PageError {
    Malformed(Malformed),
    Failed(Error),
}

impl From<Malformed> for PageError {
    fn from(err: Malformed) -> PageError {
        PageError::Malformed(err)
    }
}

impl From<crate::NameError> for PageError {
    fn from(err: crate::NameError) -> PageError {
        PageError::Malformed(err.into())
    }
}

impl From<Error> for PageError {
    fn from(err: Error) -> PageError {
        PageError::Failed(err)
    }
}

/// The first key after all that begin with `prefix`.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

fn placement(multihash: Multihash, peer: Peer, bytes: &[u8]) -> Result<Option<Placement>, Malformed> {
    let known: StoredPlacement = from_bytes(bytes)?;
    if known.want.is_none() && known.have.is_none() {
        return Ok(None);
    }
    let want = known.want.map(|want| want.want()).transpose()?;
    let have = known.have.map(StoredHave::have).transpose()?;
    Ok(Some(Placement { multihash, peer, want, have }))
}

#[async_trait]
impl PinLedger for Embedded {
    async fn apply(&self, changes: &[Change]) -> Result<()> {
        let changes = changes.to_vec();
        self.blocking(move |inner| inner.apply(&changes)).await
    }

    async fn apply_if(&self, expected: Option<Generation>, change: &Change) -> Result<Conditional> {
        let change = change.clone();
        self.blocking(move |inner| inner.apply_if(expected, &change)).await
    }

    async fn pin(&self, key: &PinKey) -> Result<Option<Pin>> {
        let key = key.clone();
        self.blocking(move |inner| inner.pin(&key)).await
    }

    async fn pins(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let after = after.cloned();
        self.blocking(move |inner| {
            inner.page("list pins", Key::new(kind::PIN), after.as_ref(), limit, |key, value| {
                let key = key.pin()?;
                Ok(from_bytes::<StoredPin>(value)?.pin(key)?)
            })
        })
        .await
    }

    async fn pins_of(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let (multihash, after) = (multihash.clone(), after.cloned());
        self.blocking(move |inner| {
            let tried = format!("list pins of {multihash}");
            let prefix = Key::new(kind::PIN).part(multihash.as_bytes());
            inner.page(&tried, prefix, after.as_ref(), limit, |key, value| {
                let key = PinKey { multihash: multihash.clone(), owner: key.text()?.parse()?, codec: key.u64()? };
                Ok(from_bytes::<StoredPin>(value)?.pin(key)?)
            })
        })
        .await
    }

    async fn pins_of_owner(&self, owner: &Owner, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let (owner, after) = (owner.clone(), after.cloned());
        self.blocking(move |inner| {
            let prefix = Key::new(kind::OWNER).part(owner.as_str().as_bytes());
            inner.page(&format!("list pins of {owner}"), prefix, after.as_ref(), limit, |key, _| {
                Ok(inner.pin(&PinKey { multihash: key.multihash()?, owner: owner.clone(), codec: key.u64()? })?)
            })
        })
        .await
    }

    async fn pins_with_tag(&self, owner: &Owner, tag: &Tag, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let (owner, tag, after) = (owner.clone(), tag.clone(), after.cloned());
        self.blocking(move |inner| {
            let prefix = Key::new(kind::TAG).part(owner.as_str().as_bytes()).part(tag.as_str().as_bytes());
            inner.page(&format!("list pins of {owner} with tag {tag}"), prefix, after.as_ref(), limit, |key, _| {
                let pin =
                    inner.pin(&PinKey { multihash: key.multihash()?, owner: owner.clone(), codec: key.u64()? })?;
                // It may have lost the tag since the row was read.
                Ok(pin.filter(|pin| pin.tags.contains(&tag)))
            })
        })
        .await
    }

    async fn placement(&self, multihash: &Multihash, peer: &Peer) -> Result<Option<Placement>> {
        let (multihash, peer) = (multihash.clone(), peer.clone());
        self.blocking(move |inner| inner.placement(&multihash, &peer)).await
    }

    async fn placements(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Placement>> {
        let (multihash, after) = (multihash.clone(), after.cloned());
        self.blocking(move |inner| {
            let prefix = Key::new(kind::PLACEMENT).part(multihash.as_bytes());
            inner.page(&format!("list placements of {multihash}"), prefix, after.as_ref(), limit, |key, value| {
                Ok(placement(multihash.clone(), key.text()?.parse()?, value)?)
            })
        })
        .await
    }

    async fn placements_of_peer(
        &self,
        peer: &Peer,
        bucket: Option<Bucket>,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Placement>> {
        let (peer, after) = (peer.clone(), after.cloned());
        self.blocking(move |inner| {
            let prefix = peer_prefix(&peer, bucket);
            // The bucket is in the key unless it is in the prefix.
            let skipped = if bucket.is_some() { 0 } else { 2 };
            inner.page(&format!("list placements at {peer}"), prefix, after.as_ref(), limit, |key, value| {
                key.0 = key.0.get(skipped..).unwrap_or_default();
                let multihash = key.multihash()?;
                // Older builds wrote nothing there.
                match value {
                    [] => Ok(inner.placement(&multihash, &peer)?),
                    value => Ok(placement(multihash, peer.clone(), value)?),
                }
            })
        })
        .await
    }

    async fn peers(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Peer>> {
        let after = after.cloned();
        self.blocking(move |inner| inner.peers(after.as_ref(), limit)).await
    }

    async fn key(&self) -> Result<PlaneKey> {
        Ok(self.inner.key.clone())
    }

    async fn expiries(
        &self,
        slot: Slot,
        shard: ExpiryShard,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Expiry>> {
        let after = after.cloned();
        self.blocking(move |inner| {
            let tried = format!("list expiries of slot {} and shard {}", slot.0, shard.0);
            inner.page(&tried, expiry_prefix(slot, shard), after.as_ref(), limit, |key, value| {
                let number = value.try_into().map(i64::from_be_bytes).unwrap_or(0);
                let generation = Generation::new(number).ok_or_else(|| Malformed("no generation".to_owned()))?;
                Ok(Some(Expiry { expires: key.u64()?, key: key.pin()?, generation }))
            })
        })
        .await
    }

    async fn close_slot(&self, slot: Slot, shard: ExpiryShard) -> Result<()> {
        slot.check_over(shard, SystemTime::now())?;
        self.blocking(move |inner| inner.close_slot(slot, shard)).await
    }

    async fn closed_slot(&self, shard: ExpiryShard) -> Result<Option<Slot>> {
        self.blocking(move |inner| inner.closed_slot(shard, "read how far expiry is")).await
    }

    async fn register(&self, told: &Registration) -> Result<()> {
        told.check()?;
        let told = told.clone();
        self.blocking(move |inner| {
            inner.set_node(&told.peer, &StoredRegistration::of(&told), &format!("register {}", told.peer))
        })
        .await
    }

    async fn strike_off(&self, peer: &Peer, upto: Generation) -> Result<()> {
        let peer = peer.clone();
        self.blocking(move |inner| {
            inner.set_node(&peer, &StoredRegistration::removed(upto), &format!("strike off {peer}"))
        })
        .await
    }

    async fn registrations(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Registration>> {
        let after = after.cloned();
        self.blocking(move |inner| {
            inner.page("list nodes", Key::new(kind::NODE), after.as_ref(), limit, |key, value| {
                let peer = key.text()?.parse()?;
                Ok(from_bytes::<StoredRegistration>(value)?.registration(peer)?)
            })
        })
        .await
    }

    async fn claim(&self, operation: &Operation, claimant: u128) -> Result<Claim> {
        let operation = operation.clone();
        self.blocking(move |inner| inner.claim(&operation, claimant)).await
    }

    async fn finish(&self, operation: &Operation, claimant: u128, outcome: &str) -> Result<bool> {
        let (operation, outcome) = (operation.clone(), outcome.to_owned());
        self.blocking(move |inner| inner.finish(&operation, claimant, &outcome)).await
    }
}
