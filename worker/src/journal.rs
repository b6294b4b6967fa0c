//! The worker's journal: what it has done in Kubo, written down before anybody is told.
//!
//! One record a multihash, the latest. It serves twice. Until it is told, it is what a restarted worker still has to say: Kubo was changed, and
//! the message that asked for it may never come again. Afterwards it is the fence: an older assignment that comes late, from whatever queue, has
//! no effect, even while the ledger is away. A fence is dropped in compactions once it is older than any message may be.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use basalt_kubo::Cid;
use basalt_stateplane::{FENCE_DAYS, Generation, Have, Multihash, Owner};
use minicbor::{Decode, Encode};
use rocksdb::{CompactionDecision, DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};

use crate::message::Op;

/// First byte of a record's key; the multihash follows.
const RECORD: u8 = b'w';
/// First byte of the key that says that a record is not told yet; the multihash follows. No value.
const UNTOLD: u8 = b'u';
/// First byte of the key of work that was begun and has no end yet; the multihash follows. Its value: how often (4 bytes, big-endian).
const BEGUN: u8 = b'b';
/// First byte of every value.
const VERSION: u8 = 1;

/// A piece of work that was done, or given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it was about.
    pub multihash: Multihash,
    /// What was done.
    pub op: Op,
    /// The want that it answers.
    pub generation: Generation,
    /// Of the observation: the same one is told however often it takes.
    pub have_generation: Generation,
    /// As it was pinned or unpinned.
    pub cids: Vec<Cid>,
    /// Whose.
    pub owner: Owner,
    /// Bytes of the DAG, where known.
    pub size_bytes: Option<u64>,
    /// Why it was given up; none: it was done.
    pub error: Option<String>,
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// Whether the ledger has it, and whoever asked knows.
    pub told: bool,
}

impl Record {
    /// Whether it is held now.
    pub fn held(&self) -> bool {
        self.op.wanted() == self.error.is_none()
    }

    /// What the ledger is told.
    pub fn have(&self) -> Have {
        Have {
            generation: self.have_generation,
            held: self.held(),
            answers: Some(self.generation),
            size_bytes: self.size_bytes.filter(|_| self.held()),
            error: self.error.clone(),
            seen_ms: self.at_ms,
        }
    }
}

/// A journal that failed: what was tried and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalError(String);

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for JournalError {}

impl JournalError {
    /// The thread that did it has ended.
    pub(crate) fn ended(err: &tokio::task::JoinError) -> JournalError {
        JournalError(format!("use the worker's journal: its task ended: {err}"))
    }
}

/// Where records are kept.
pub trait Journal: Send + Sync {
    /// The latest record of a multihash.
    fn get(&self, multihash: &Multihash) -> Result<Option<Record>, JournalError>;

    /// Keeps a record in the place of an older one; durable when it returns.
    fn put(&self, record: &Record) -> Result<(), JournalError>;

    /// Notes that a record of this observation is told. Need not be durable: telling twice is telling once.
    fn told(&self, multihash: &Multihash, have_generation: Generation) -> Result<(), JournalError>;

    /// Some records that are not told.
    fn untold(&self, limit: usize) -> Result<Vec<Record>, JournalError>;

    /// Notes that work on a multihash begins, and gives how often it did since it last had an end. Survives the process, if not the host.
    fn begin(&self, multihash: &Multihash) -> Result<u32, JournalError>;

    /// Notes that it has an end, whichever.
    fn end(&self, multihash: &Multihash) -> Result<(), JournalError>;
}

/// The journal in a folder of its own. One process at a time has it open. Its calls block for a flush at most.
pub struct FileJournal {
    path: PathBuf,
    db: DB,
}

impl fmt::Debug for FileJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileJournal").field("path", &self.path).finish_non_exhaustive()
    }
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Stored {
    #[n(0)]
    pinned: bool,
    #[n(1)]
    generation: i64,
    #[n(2)]
    have_generation: i64,
    #[n(3)]
    cids: Vec<minicbor::bytes::ByteVec>,
    #[n(4)]
    owner: String,
    #[n(5)]
    size_bytes: Option<u64>,
    #[n(6)]
    error: Option<String>,
    #[n(7)]
    at_ms: u64,
    #[n(8)]
    told: bool,
}

fn key(kind: u8, multihash: &Multihash) -> Vec<u8> {
    [&[kind], multihash.as_bytes()].concat()
}

fn encode(record: &Record) -> Vec<u8> {
    let stored = Stored {
        pinned: record.op == Op::Pin,
        generation: record.generation.get(),
        have_generation: record.have_generation.get(),
        cids: record.cids.iter().map(|cid| cid.to_bytes().into()).collect(),
        owner: record.owner.to_string(),
        size_bytes: record.size_bytes,
        error: record.error.clone(),
        at_ms: record.at_ms,
        told: record.told,
    };
    let mut bytes = vec![VERSION];
    // A Vec takes all that is written to it.
    let written = minicbor::encode(stored, &mut bytes);
    debug_assert!(written.is_ok());
    bytes
}

fn decode(multihash: &[u8], bytes: &[u8]) -> Result<Record, String> {
    let stored: Stored = match bytes.split_first() {
        Some((&VERSION, cbor)) => minicbor::decode(cbor).map_err(|err| err.to_string())?,
        Some((version, _)) => return Err(format!("a record is of version {version}, and this build knows {VERSION}")),
        None => return Err("a record is empty".to_owned()),
    };
    let generation = |number: i64| Generation::new(number).ok_or_else(|| format!("{number} is no generation"));
    let cid = |bytes: &minicbor::bytes::ByteVec| Cid::try_from(bytes.as_slice()).map_err(|err| err.to_string());
    Ok(Record {
        multihash: Multihash::from_bytes(multihash).map_err(|err| err.to_string())?,
        op: Op::of(stored.pinned),
        generation: generation(stored.generation)?,
        have_generation: generation(stored.have_generation)?,
        cids: stored.cids.iter().map(cid).collect::<Result<_, _>>()?,
        owner: stored.owner.parse().map_err(|err| format!("{err}"))?,
        size_bytes: stored.size_bytes,
        error: stored.error,
        at_ms: stored.at_ms,
        told: stored.told,
    })
}

/// Whether a record fences nothing any more: told, and older than any message.
fn is_over(value: &[u8], now_ms: u64) -> bool {
    let Some((&VERSION, cbor)) = value.split_first() else { return false };
    let Ok(stored) = minicbor::decode::<Stored>(cbor) else { return false };
    stored.told && stored.at_ms.saturating_add(u64::from(FENCE_DAYS) * 86_400_000) < now_ms
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl FileJournal {
    /// Opens the journal in a folder, or makes it.
    pub fn open(path: &Path) -> Result<FileJournal, JournalError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(8 << 20);
        options.set_max_open_files(64);
        options.set_keep_log_file_num(2);
        options.set_compaction_filter("fences that are over", |_, key, value| match key.first() {
            Some(&RECORD) if is_over(value, now_ms()) => CompactionDecision::Remove,
            _ => CompactionDecision::Keep,
        });
        let db = DB::open(&options, path).map_err(|err| {
            let text = err.to_string();
            let why = if text.contains("LOCK") {
                "another process has it open; an agent of this node runs already".to_owned()
            } else {
                text
            };
            JournalError(format!("open the worker's journal in {}: {why}", path.display()))
        })?;
        Ok(FileJournal { path: path.to_owned(), db })
    }

    fn failed(&self, verb: &str, why: impl fmt::Display) -> JournalError {
        JournalError(format!("{verb} the worker's journal in {}: {why}", self.path.display()))
    }

    fn write(&self, batch: WriteBatch, durably: bool) -> Result<(), JournalError> {
        let mut options = WriteOptions::default();
        options.set_sync(durably);
        self.db.write_opt(batch, &options).map_err(|err| self.failed("write to", err))
    }
}

impl Journal for FileJournal {
    fn get(&self, multihash: &Multihash) -> Result<Option<Record>, JournalError> {
        let found = self.db.get(key(RECORD, multihash)).map_err(|err| self.failed("read", err))?;
        let decoded = found.map(|bytes| decode(multihash.as_bytes(), &bytes));
        decoded.transpose().map_err(|why| self.failed("read", why))
    }

    fn put(&self, record: &Record) -> Result<(), JournalError> {
        let mut batch = WriteBatch::default();
        batch.put(key(RECORD, &record.multihash), encode(record));
        match record.told {
            true => batch.delete(key(UNTOLD, &record.multihash)),
            false => batch.put(key(UNTOLD, &record.multihash), []),
        }
        self.write(batch, true)
    }

    fn told(&self, multihash: &Multihash, have_generation: Generation) -> Result<(), JournalError> {
        match self.get(multihash)? {
            Some(mut record) if record.have_generation == have_generation && !record.told => {
                record.told = true;
                let mut batch = WriteBatch::default();
                batch.put(key(RECORD, multihash), encode(&record));
                batch.delete(key(UNTOLD, multihash));
                self.write(batch, false)
            }
            _ => Ok(()),
        }
    }

    fn untold(&self, limit: usize) -> Result<Vec<Record>, JournalError> {
        let mut untold = Vec::new();
        for row in self.db.iterator(IteratorMode::From(&[UNTOLD], Direction::Forward)) {
            let (key, _) = row.map_err(|err| self.failed("read", err))?;
            let Some((&UNTOLD, multihash)) = key.split_first() else { break };
            let multihash = Multihash::from_bytes(multihash).map_err(|err| self.failed("read", err))?;
            untold.extend(self.get(&multihash)?);
            if untold.len() >= limit {
                break;
            }
        }
        Ok(untold)
    }

    fn begin(&self, multihash: &Multihash) -> Result<u32, JournalError> {
        let key = key(BEGUN, multihash);
        let before = self.db.get(&key).map_err(|err| self.failed("read", err))?;
        let before = before.and_then(|bytes| bytes.as_slice().try_into().ok()).map_or(0, u32::from_be_bytes);
        let mut batch = WriteBatch::default();
        batch.put(key, before.saturating_add(1).to_be_bytes());
        self.write(batch, false)?;
        Ok(before.saturating_add(1))
    }

    fn end(&self, multihash: &Multihash) -> Result<(), JournalError> {
        let mut batch = WriteBatch::default();
        batch.delete(key(BEGUN, multihash));
        self.write(batch, false)
    }
}

/// A journal in memory, for tests of what stands on it.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    records: Mutex<BTreeMap<Multihash, Record>>,
    begun: Mutex<BTreeMap<Multihash, u32>>,
}

impl MemoryJournal {
    fn records(&self) -> std::sync::MutexGuard<'_, BTreeMap<Multihash, Record>> {
        self.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Journal for MemoryJournal {
    fn get(&self, multihash: &Multihash) -> Result<Option<Record>, JournalError> {
        Ok(self.records().get(multihash).cloned())
    }

    fn put(&self, record: &Record) -> Result<(), JournalError> {
        self.records().insert(record.multihash.clone(), record.clone());
        Ok(())
    }

    fn told(&self, multihash: &Multihash, have_generation: Generation) -> Result<(), JournalError> {
        if let Some(record) = self.records().get_mut(multihash).filter(|it| it.have_generation == have_generation) {
            record.told = true;
        }
        Ok(())
    }

    fn untold(&self, limit: usize) -> Result<Vec<Record>, JournalError> {
        Ok(self.records().values().filter(|record| !record.told).take(limit).cloned().collect())
    }

    fn begin(&self, multihash: &Multihash) -> Result<u32, JournalError> {
        let mut begun = self.begun.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let times = begun.entry(multihash.clone()).or_insert(0);
        *times += 1;
        Ok(*times)
    }

    fn end(&self, multihash: &Multihash) -> Result<(), JournalError> {
        self.begun.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(multihash);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(generation: i64) -> Record {
        let cid: Cid = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e".parse().unwrap();
        Record {
            multihash: Multihash::from_bytes(&cid.hash().to_bytes()).unwrap(),
            op: Op::Pin,
            generation: Generation::new(generation).unwrap(),
            have_generation: Generation::new(generation + 1).unwrap(),
            cids: vec![cid],
            owner: "me".parse().unwrap(),
            size_bytes: Some(7),
            error: None,
            at_ms: 5,
            told: false,
        }
    }

    #[test]
    fn a_record_survives_reopen_and_is_untold_until_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = record(10);
        FileJournal::open(dir.path()).unwrap().put(&wanted).unwrap();
        let journal = FileJournal::open(dir.path()).unwrap();
        assert_eq!(journal.untold(9).unwrap(), std::slice::from_ref(&wanted));
        // A newer one has come: what was told of the older says nothing of it.
        let newer = record(20);
        journal.put(&newer).unwrap();
        journal.told(&wanted.multihash, wanted.have_generation).unwrap();
        assert_eq!(journal.untold(9).unwrap(), std::slice::from_ref(&newer));
        journal.told(&newer.multihash, newer.have_generation).unwrap();
        drop(journal);
        let journal = FileJournal::open(dir.path()).unwrap();
        assert_eq!(journal.untold(9).unwrap(), []);
        assert!(journal.get(&newer.multihash).unwrap().unwrap().told, "it stays, as the fence");
    }

    #[test]
    fn beginnings_without_an_end_are_counted_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let multihash = record(10).multihash;
        for times in 1..4 {
            assert_eq!(FileJournal::open(dir.path()).unwrap().begin(&multihash).unwrap(), times);
        }
        let journal = FileJournal::open(dir.path()).unwrap();
        journal.end(&multihash).unwrap();
        assert_eq!(journal.begin(&multihash).unwrap(), 1);
    }

    #[test]
    fn the_stored_form_is_the_documented_one() {
        let bytes = encode(&record(10));
        assert_eq!(bytes.first(), Some(&1));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "01a800f5010a020b0381582401551220b94d27b993ed3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde904626d650507070508f4"
        );
    }

    #[test]
    fn only_a_fence_that_is_told_and_old_is_over() {
        let mut record = record(10);
        let later = 5 + u64::from(FENCE_DAYS) * 86_400_000 + 1;
        assert!(!is_over(&encode(&record), later), "it is not told");
        record.told = true;
        assert!(is_over(&encode(&record), later));
        assert!(!is_over(&encode(&record), later - 1));
        assert!(!is_over(b"\x02", later) && !is_over(b"", later), "what can't be read is kept");
    }
}
