//! ZFS in memory, for the tests of what stands on it: the same results and classes of errors as the real one, from a seed, with faults.
//!
//! It has what decides results: guids that replicas share, transaction groups, holds, deferred destruction, bookmarks, clones and their
//! promotion, inheritance, quotas, keys and the lineage of raw streams, resume tokens, users without permissions. It has no time of its own (a
//! clock that a test moves), no disks, and space is counted by whole files: sizes are those of the data, not those that ZFS would report.
//!
//! How it is known to be like ZFS: `tests/conformance.rs` runs the same random operations on both and compares what they say and what is there.

mod engine;
mod property;
mod stream;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    Class, DamagedFile, Dataset, Delegation, Error, Event, HoldTag, Operation, Pool, PropertyName, Result, Snapshot,
};

/// A fault that a test injects.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operations it hits; `None` for all.
    pub operation: Option<Operation>,
    /// How many of them pass first.
    pub after: u64,
    /// How it is reported.
    pub class: Class,
    /// Whether the operation is done all the same, as one is whose answer is lost.
    pub done: bool,
}

/// ZFS in memory.
pub struct Model(Mutex<State>);

struct State {
    random: u64,
    txg: u64,
    now_unix_s: u64,
    pools: BTreeMap<Pool, PoolState>,
    filesystems: BTreeMap<Dataset, Filesystem>,
    next_id: u64,
    faults: Vec<Fault>,
    user: Option<String>,
    delegation: Delegation,
    keys: BTreeMap<String, Vec<u8>>,
    events: Vec<Event>,
}

struct PoolState {
    guid: u64,
    size_bytes: u64,
    read_only: bool,
    suspended: bool,
    damaged: Vec<DamagedFile>,
}

/// What a filesystem has in it: files by name. A file's id is new with each write, so that equal ids share their space.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Content(BTreeMap<String, (u64, u64)>);

impl Content {
    fn bytes(&self) -> u64 {
        self.0.values().map(|(_, bytes)| bytes).sum()
    }
}

struct Filesystem {
    guid: u64,
    createtxg: u64,
    /// Id of the snapshot that it is a clone of.
    origin: Option<u64>,
    local: BTreeMap<PropertyName, String>,
    snapshots: Vec<SnapshotState>,
    /// Guid and createtxg of the snapshot it was made of.
    bookmarks: BTreeMap<String, Mark>,
    mounted: bool,
    open_files: u64,
    content: Content,
    encryption: Option<Encryption>,
    partial: Option<stream::Partial>,
    snapshots_changed_unix_s: Option<u64>,
}

#[derive(Clone)]
struct Mark {
    guid: u64,
    createtxg: u64,
    ivset: u64,
}

/// On an encryption root; what lies below inherits it by name.
#[derive(Clone)]
struct Encryption {
    /// Which master key: the same on all replicas that were sent raw.
    lineage: u64,
    key: Vec<u8>,
    loaded: bool,
    location: String,
}

struct SnapshotState {
    id: u64,
    name: String,
    guid: u64,
    createtxg: u64,
    creation_unix_s: u64,
    holds: BTreeSet<HoldTag>,
    defer_destroy: bool,
    user_properties: BTreeMap<PropertyName, String>,
    content: Content,
    /// Changes with every receive that isn't raw; a raw stream wants the same at its base.
    ivset: u64,
}

impl Model {
    /// No pools; all that is random comes from `seed`.
    pub fn new(seed: u64) -> Model {
        Model(Mutex::new(State {
            random: seed,
            txg: 3,
            now_unix_s: 1_767_225_600,
            pools: BTreeMap::new(),
            filesystems: BTreeMap::new(),
            next_id: 0,
            faults: Vec::new(),
            user: None,
            delegation: Delegation::default(),
            keys: BTreeMap::new(),
            events: Vec::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a pool with its first dataset, mounted.
    pub fn add_pool(&self, pool: &Pool, size_bytes: u64) {
        let mut state = self.state();
        let guid = state.guid();
        state.pools.insert(
            pool.clone(),
            PoolState { guid, size_bytes, read_only: false, suspended: false, damaged: Vec::new() },
        );
        let mut root = state.filesystem();
        root.createtxg = 1;
        root.mounted = true;
        state.filesystems.insert(pool.root(), root);
    }

    /// Takes a pool away, as an export or a lost disk shelf does.
    pub fn remove_pool(&self, pool: &Pool) {
        let mut state = self.state();
        state.pools.remove(pool);
        state.filesystems.retain(|dataset, _| dataset.pool() != *pool);
    }

    /// Imports a pool read-only, or no longer.
    pub fn set_pool_read_only(&self, pool: &Pool, read_only: bool) {
        if let Some(pool) = self.state().pools.get_mut(pool) {
            pool.read_only = read_only;
        }
    }

    /// Suspends a pool's I/O, or brings it back.
    pub fn set_pool_suspended(&self, pool: &Pool, suspended: bool) {
        if let Some(pool) = self.state().pools.get_mut(pool) {
            pool.suspended = suspended;
        }
    }

    /// Posts an event.
    pub fn post(&self, event: Event) {
        self.state().events.push(event);
    }

    /// Has a pool know these files to be damaged, and counts them as data errors.
    pub fn set_damaged(&self, pool: &Pool, files: Vec<DamagedFile>) {
        if let Some(pool) = self.state().pools.get_mut(pool) {
            pool.damaged = files;
        }
    }

    /// Moves the clock, backwards too.
    pub fn set_now_unix_s(&self, now_unix_s: u64) {
        self.state().now_unix_s = now_unix_s;
    }

    /// Adds a fault. Each hits once.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Takes back the faults that have not hit yet.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Acts as a user who isn't root, with what `delegation` grants; `None` is root again.
    pub fn act_as(&self, user: Option<(&str, Delegation)>) {
        let mut state = self.state();
        (state.user, state.delegation) = match user {
            Some((name, delegation)) => (Some(name.to_owned()), delegation),
            None => (None, Delegation::default()),
        };
    }

    /// What is to be found at a `keylocation`.
    pub fn put_key(&self, location: &str, key: &[u8]) {
        self.state().keys.insert(location.to_owned(), key.to_vec());
    }

    /// Opens a file in a mounted filesystem or closes it, which keeps it from being unmounted.
    pub fn set_open_files(&self, dataset: &Dataset, open_files: u64) {
        if let Some(filesystem) = self.state().filesystems.get_mut(dataset) {
            filesystem.open_files = open_files;
        }
    }

    /// Writes a file, whole. Errors are those of the file system: `Err(true)` for no space or quota, `Err(false)` for not mounted or read-only.
    pub fn write(&self, dataset: &Dataset, file: &str, bytes: u64) -> Result<(), bool> {
        let mut state = self.state();
        let id = state.id();
        let Some(filesystem) = state.filesystems.get(dataset) else { return Err(false) };
        let read_only = state.pools.get(&dataset.pool()).is_none_or(|p| p.read_only || p.suspended)
            || state.effective(dataset, "readonly").is_some_and(|(value, _)| value == "on");
        if !filesystem.mounted || read_only {
            return Err(false);
        }
        let freed = filesystem.content.0.get(file).map_or(0, |(_, bytes)| *bytes);
        if state.available_bytes(dataset).saturating_add(freed) < bytes {
            return Err(true);
        }
        let Some(filesystem) = state.filesystems.get_mut(dataset) else { return Err(false) };
        filesystem.content.0.insert(file.to_owned(), (id, bytes));
        Ok(())
    }

    /// The files of a filesystem with their sizes.
    pub fn files(&self, dataset: &Dataset) -> BTreeMap<String, u64> {
        let state = self.state();
        let content = state.filesystems.get(dataset).map(|f| f.content.0.clone()).unwrap_or_default();
        content.into_iter().map(|(name, (_, bytes))| (name, bytes)).collect()
    }
}

impl State {
    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn guid(&mut self) -> u64 {
        self.random().max(1)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// What changes something has a transaction group of its own.
    fn next_txg(&mut self) -> u64 {
        self.txg += 1;
        self.txg
    }

    fn filesystem(&mut self) -> Filesystem {
        Filesystem {
            guid: self.guid(),
            createtxg: self.next_txg(),
            origin: None,
            local: BTreeMap::new(),
            snapshots: Vec::new(),
            bookmarks: BTreeMap::new(),
            mounted: false,
            open_files: 0,
            content: Content::default(),
            encryption: None,
            partial: None,
            snapshots_changed_unix_s: None,
        }
    }

    /// Whether a fault hits: `Some` with the error, and whether the operation is done nevertheless.
    fn fault(&mut self, operation: Operation, subject: &str) -> Option<(Error, bool)> {
        let mut hit = None;
        for (i, fault) in self.faults.iter_mut().enumerate() {
            if fault.operation.is_none_or(|o| o == operation) {
                if fault.after == 0 {
                    hit = Some(i);
                    break;
                }
                fault.after -= 1;
            }
        }
        let fault = self.faults.remove(hit?);
        Some((Error::new(operation, subject, fault.class, "injected"), fault.done))
    }

    fn locate(&self, snapshot: &Snapshot) -> Option<&SnapshotState> {
        self.filesystems.get(&snapshot.dataset())?.snapshots.iter().find(|s| s.name == snapshot.name())
    }

    fn locate_mut(&mut self, snapshot: &Snapshot) -> Option<&mut SnapshotState> {
        self.filesystems.get_mut(&snapshot.dataset())?.snapshots.iter_mut().find(|s| s.name == snapshot.name())
    }

    fn named(&self, id: u64) -> Option<Snapshot> {
        self.filesystems.iter().find_map(|(dataset, f)| {
            let found = f.snapshots.iter().find(|s| s.id == id)?;
            dataset.snapshot(&found.name).ok()
        })
    }

    fn clones(&self, id: u64) -> Vec<Dataset> {
        self.filesystems.iter().filter(|(_, f)| f.origin == Some(id)).map(|(dataset, _)| dataset.clone()).collect()
    }

    /// Destroys the snapshots that only waited for their last hold or clone.
    fn reap(&mut self) {
        loop {
            let waits = self.filesystems.iter().find_map(|(dataset, f)| {
                let s = f
                    .snapshots
                    .iter()
                    .find(|s| s.defer_destroy && s.holds.is_empty() && self.clones(s.id).is_empty())?;
                Some((dataset.clone(), s.id))
            });
            let Some((dataset, id)) = waits else { return };
            self.remove_snapshot(&dataset, id);
        }
    }

    fn remove_snapshot(&mut self, dataset: &Dataset, id: u64) {
        let now = self.now_unix_s;
        if let Some(f) = self.filesystems.get_mut(dataset) {
            f.snapshots.retain(|s| s.id != id);
            f.snapshots_changed_unix_s = Some(now);
        }
    }

    /// The ids of files and their sizes, in a dataset and all that lies in it, snapshots included.
    fn used(&self, dataset: &Dataset) -> BTreeMap<u64, u64> {
        let mut files = BTreeMap::new();
        for (name, f) in &self.filesystems {
            if name == dataset || dataset.contains(name) {
                let contents = f.snapshots.iter().map(|s| &s.content).chain([&f.content]);
                files.extend(contents.flat_map(|c| c.0.values().copied()));
            }
        }
        files
    }

    fn used_bytes(&self, dataset: &Dataset) -> u64 {
        self.used(dataset).values().sum()
    }

    /// What the pool and the quotas on the way leave.
    fn available_bytes(&self, dataset: &Dataset) -> u64 {
        let pool = dataset.pool();
        let size = self.pools.get(&pool).map_or(0, |p| p.size_bytes);
        let mut available = size.saturating_sub(self.used_bytes(&pool.root()));
        let mut at = Some(dataset.clone());
        while let Some(dataset) = at {
            if let Some(quota) = self.number(&dataset, "quota") {
                available = available.min(quota.saturating_sub(self.used_bytes(&dataset)));
            }
            at = dataset.parent();
        }
        if let (Some(quota), Some(f)) = (self.number(dataset, "refquota"), self.filesystems.get(dataset)) {
            available = available.min(quota.saturating_sub(f.content.bytes()));
        }
        available
    }

    /// A local size that is set and isn't `none`.
    fn number(&self, dataset: &Dataset, name: &str) -> Option<u64> {
        let f = self.filesystems.get(dataset)?;
        let (_, value) = f.local.iter().find(|(p, _)| p.as_str() == name)?;
        property::size(value).filter(|bytes| *bytes > 0)
    }

    /// The encryption root of a dataset.
    fn encryption_root(&self, dataset: &Dataset) -> Option<Dataset> {
        let mut at = Some(dataset.clone());
        while let Some(dataset) = at {
            if self.filesystems.get(&dataset)?.encryption.is_some() {
                return Some(dataset);
            }
            at = dataset.parent();
        }
        None
    }

    fn encryption(&self, dataset: &Dataset) -> Option<&Encryption> {
        self.filesystems.get(&self.encryption_root(dataset)?)?.encryption.as_ref()
    }
}
