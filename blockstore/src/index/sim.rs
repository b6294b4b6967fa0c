//! A model of the index with RocksDB's real promise and no more: after a crash it holds some prefix of the batches written, at least all
//! up to the last flush; or it is lost, or damaged. After a flush that failed it takes no writes until it is opened anew, and then it has forgotten what was not
//! flushed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Change, Index, IndexEngine};
use crate::{
    disk::sim::{SimDisk, SimRng},
    error::{Error, ErrorKind, Result},
    sync::Mutex,
};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Default)]
struct State {
    durable: Map,
    /// Batches since, in order.
    unflushed: Vec<Vec<Change>>,
    live: Map,
    damage: Option<Damage>,
    /// A flush has failed.
    stopped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// It doesn't open.
    Open,
    /// It opens, and no key can be read.
    Read,
}

/// What an index holds after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexLoss {
    /// A random prefix of the unflushed batches.
    Prefix,
    /// Nothing at all: the folder is gone.
    Everything,
    /// It is there, and can't be opened or read.
    Damaged,
}

/// Simulated indexes by folder. A flush counts as an operation of the disk, so a crash can come before or after it.
#[derive(Clone, Debug)]
pub struct SimEngine {
    disk: SimDisk,
    indexes: Arc<Mutex<BTreeMap<PathBuf, Arc<Mutex<State>>>>>,
}

impl SimEngine {
    /// An engine whose flushes fail and crash with `disk`.
    pub fn new(disk: SimDisk) -> SimEngine {
        SimEngine { disk, indexes: Arc::default() }
    }

    /// The indexes as they are on the disk now, on a snapshot of it: what is only in memory isn't in them.
    pub fn snapshot(&self, disk: SimDisk) -> SimEngine {
        let indexes = self.indexes.lock();
        let image = |state: &Mutex<State>| {
            let state = state.lock();
            let (durable, live) = (state.durable.clone(), state.durable.clone());
            Arc::new(Mutex::new(State { durable, live, damage: state.damage, ..State::default() }))
        };
        let indexes = indexes.iter().map(|(dir, state)| (dir.clone(), image(state))).collect();
        SimEngine { disk, indexes: Arc::new(Mutex::new(indexes)) }
    }

    /// What a power cut leaves.
    pub fn crash(&self, rng: &mut SimRng, loss: IndexLoss) {
        for state in self.indexes.lock().values() {
            let mut state = state.lock();
            state.stopped = false;
            if loss == IndexLoss::Everything {
                *state = State::default();
                continue;
            }
            // One that was never written has nothing to damage.
            if loss == IndexLoss::Damaged && !(state.durable.is_empty() && state.unflushed.is_empty()) {
                state.damage = Some([Damage::Open, Damage::Read][rng.below(2) as usize]);
            }
            let keep = rng.below(state.unflushed.len() as u64 + 1) as usize;
            let batches: Vec<_> = state.unflushed.drain(..).take(keep).collect();
            for (key, value) in batches.into_iter().flatten() {
                apply(&mut state.durable, key, value);
            }
            state.live = state.durable.clone();
        }
    }
}

fn apply(map: &mut Map, key: Vec<u8>, value: Option<Vec<u8>>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl IndexEngine for SimEngine {
    fn open(&self, dir: &Path, _read_only: bool) -> Result<Arc<dyn Index>> {
        let state = self.indexes.lock().entry(dir.to_owned()).or_default().clone();
        {
            let mut state = state.lock();
            if state.damage == Some(Damage::Open) {
                return Err(Error::new(ErrorKind::Corrupt, format!("the index {} is damaged", dir.display())));
            }
            if std::mem::take(&mut state.stopped) {
                state.unflushed.clear();
                state.live = state.durable.clone();
            }
        }
        Ok(Arc::new(SimIndex { disk: self.disk.clone(), dir: dir.to_owned(), state }))
    }

    fn destroy(&self, dir: &Path) -> Result<()> {
        self.indexes.lock().remove(dir);
        Ok(())
    }
}

#[derive(Debug)]
struct SimIndex {
    disk: SimDisk,
    dir: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Index for SimIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let state = self.state.lock();
        if state.damage.is_some() {
            return Err(Error::new(ErrorKind::Corrupt, "the index is damaged"));
        }
        Ok(state.live.get(key).cloned())
    }

    fn write(&self, changes: &[Change]) -> Result<()> {
        let mut state = self.state.lock();
        if state.stopped {
            return Err(Error::new(ErrorKind::Io, "the index takes no writes since a flush of it failed"));
        }
        for (key, value) in changes {
            apply(&mut state.live, key.clone(), value.clone());
        }
        state.unflushed.push(changes.to_vec());
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.state.lock().stopped {
            return Err(Error::new(ErrorKind::Io, "the index takes no flushes since one of it failed"));
        }
        if let Err(err) = self.disk.step(&self.dir, "flush index") {
            self.state.lock().stopped = true;
            return Err(Error::io("flush the index", err));
        }
        let mut state = self.state.lock();
        let batches = std::mem::take(&mut state.unflushed);
        for (key, value) in batches.into_iter().flatten() {
            apply(&mut state.durable, key, value);
        }
        Ok(())
    }

    fn scan(&self, from: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        // A copy, as RocksDB's iterator is a snapshot, and `each` may write.
        let pairs: Vec<_> =
            self.state.lock().live.range(from.to_vec()..).map(|(k, v)| (k.clone(), v.clone())).collect();
        for (key, value) in pairs {
            if !each(&key, &value) {
                break;
            }
        }
        Ok(())
    }
}
