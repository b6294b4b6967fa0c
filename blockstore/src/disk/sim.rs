//! A disk in memory that forgets as a real one may.
//!
//! What was written and not synced may be lost, kept or torn at sector or page boundaries, in any order, when the power goes. Names are
//! durable only once their folder is synced. A sync can fail, and then what it should have made durable never is, although it still
//! reads back. Every operation is a step; a step can be made to fail, or to be the last one before the crash. Reads are counted apart, and can
//! fail too.
//!
//! The disk may also be a ZFS one: then a crash goes back to a transaction group (which comes at any step), and adds what was synced since.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Clock, Disk, Entropy, File};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Bytes that a drive writes all or nothing.
const SECTOR: usize = 512;

/// Sectors of a page, which a kernel writes back as a whole.
const PAGE_SECTORS: usize = 8;

/// On ZFS, a transaction group ends at one step in so many.
const STEPS_PER_TXG: u64 = 40;

/// A small deterministic generator (splitmix64), so that a seed gives the whole run.
#[derive(Clone, Debug)]
pub struct SimRng(u64);

impl SimRng {
    /// A generator from a seed.
    pub fn new(seed: u64) -> SimRng {
        SimRng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (which is not 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What the power cut does to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Only the process died: the page cache, with what is still to be written, survives.
    Process,
    /// Nothing unsynced survives.
    Everything,
    /// Everything written survives (written back early), synced or not.
    Nothing,
    /// Each sector and each name on its own.
    Random,
}

/// Calls to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// All of them.
    All,
    /// Flushes, of files, folders and indexes.
    Flushes,
}

/// A fault to inject at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and changes nothing; a sync loses what it should have made durable.
    Error(io::ErrorKind),
    /// The power goes just before the operation; all later ones fail.
    PowerCut,
    /// The operation does not return until [`SimDisk::answer`], nor do later ones. Only where there are threads.
    Stuck,
}

#[derive(Debug, Default)]
struct Inode {
    /// What reads back.
    data: Vec<u8>,
    /// What is on the platter.
    durable: Vec<u8>,
    /// Sectors written since the last good sync.
    dirty: BTreeSet<usize>,
    /// Whether the length changed since.
    length_dirty: bool,
}

#[derive(Debug, Default)]
struct State {
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    steps: u64,
    faults: BTreeMap<u64, Fault>,
    reads: u64,
    bytes_read: u64,
    failing_reads: BTreeMap<u64, io::ErrorKind>,
    cut: bool,
    /// On ZFS: what says at which steps a transaction group ends.
    txg: Option<SimRng>,
    threads: bool,
    available: Option<u64>,
    no_inodes: bool,
    trace: Option<Vec<String>>,
    now_ns: u64,
    entropy: u64,
    /// Calls below this path are not answered.
    stuck: Option<(PathBuf, Calls)>,
    /// Calls that wait for an answer.
    waiting: u64,
}

/// The simulated disk and clock; clones share it.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The disk has got stuck, or answers again, or someone waits for it to.
    changed: Condvar,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// An empty disk that forgets as ZFS does.
    pub fn zfs(seed: u64) -> SimDisk {
        let disk = SimDisk::new();
        disk.lock().txg = Some(SimRng::new(seed));
        disk
    }

    /// Whether stores have background threads; only where a scheduler drives them.
    pub fn set_threads(&self, threads: bool) {
        self.lock().threads = threads;
    }

    /// Operations so far.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// Reads so far, and their bytes.
    pub fn reads(&self) -> (u64, u64) {
        let state = self.lock();
        (state.reads, state.bytes_read)
    }

    /// Makes the operation numbered `step` (from 1) fail as `fault` says.
    pub fn inject(&self, step: u64, fault: Fault) {
        self.lock().faults.insert(step, fault);
    }

    /// Makes the read that comes after `reads` more of them fail.
    pub fn fail_read(&self, reads: u64, kind: io::ErrorKind) {
        let mut state = self.lock();
        let at = state.reads + reads + 1;
        state.failing_reads.insert(at, kind);
    }

    /// Forgets all faults that have not struck.
    pub fn clear_faults(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.failing_reads.clear();
    }

    /// Whether the power is gone.
    pub fn is_cut(&self) -> bool {
        self.lock().cut
    }

    /// What [`Disk::available`] answers from now on; `None` for plenty.
    pub fn set_available(&self, bytes: Option<u64>) {
        self.lock().available = bytes;
    }

    /// Whether no file can be made, though there is space: no inodes are left.
    pub fn set_no_inodes(&self, none: bool) {
        self.lock().no_inodes = none;
    }

    /// Moves the clock on.
    pub fn advance_ns(&self, ns: u64) {
        self.lock().now_ns += ns;
    }

    /// Whether every step is recorded from now on.
    pub fn record_trace(&self, record: bool) {
        self.lock().trace = record.then(Vec::new);
    }

    /// The steps recorded.
    pub fn trace(&self) -> Vec<String> {
        self.lock().trace.clone().unwrap_or_default()
    }

    /// The power comes back: what `loss` left is what there is. Open files of before are useless.
    pub fn restart(&self, rng: &mut SimRng, loss: Loss) {
        let mut state = self.lock();
        state.cut = false;
        state.stuck = None;
        state.faults.clear();
        state.failing_reads.clear();
        let loss = match loss {
            Loss::Process => return,
            // A transaction group is there as a whole or not at all.
            Loss::Random if state.txg.is_some() => [Loss::Everything, Loss::Nothing][usize::from(rng.one_in(4))],
            loss => loss,
        };
        let unit = if rng.one_in(2) { 1 } else { PAGE_SECTORS };
        let mut paths: BTreeSet<PathBuf> = state.names.keys().cloned().collect();
        paths.extend(state.durable_names.keys().cloned());
        let mut names = BTreeMap::new();
        for path in paths {
            let (now, durable) = (state.names.get(&path).copied(), state.durable_names.get(&path).copied());
            let kept = match loss {
                Loss::Everything | Loss::Process => durable,
                Loss::Nothing => now,
                Loss::Random => {
                    if rng.one_in(2) {
                        now
                    } else {
                        durable
                    }
                }
            };
            if let Some(inode) = kept {
                names.insert(path, inode);
            }
        }
        state.durable_names = names.clone();
        state.names = names;
        let mut ids: Vec<u64> = state.inodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(inode) = state.inodes.get_mut(&id) else { continue };
            let dirty = std::mem::take(&mut inode.dirty);
            let keep_length = match loss {
                Loss::Everything | Loss::Process => false,
                Loss::Nothing => true,
                Loss::Random => rng.one_in(2),
            };
            let mut image = inode.durable.clone();
            if inode.length_dirty && keep_length {
                image.resize(inode.data.len(), 0);
            }
            let (mut drawn, mut keep) = (None, loss == Loss::Nothing);
            for sector in dirty {
                if loss == Loss::Random && drawn != Some(sector / unit) {
                    (drawn, keep) = (Some(sector / unit), rng.one_in(2));
                }
                let from = sector * SECTOR;
                let to = (from + SECTOR).min(inode.data.len());
                if !keep || from >= to {
                    continue;
                }
                // A file never ends in the middle of data that reached the platter.
                if image.len() < to {
                    image.resize(to, 0);
                }
                image[from..to].copy_from_slice(&inode.data[from..to]);
            }
            inode.length_dirty = false;
            inode.data = image.clone();
            inode.durable = image;
        }
    }

    /// Another disk that holds what this one reads as now, durably: what an atomic snapshot of a file system has, whether it was flushed or not.
    pub fn snapshot(&self) -> SimDisk {
        let state = self.lock();
        let whole = |inode: &Inode| Inode { data: inode.data.clone(), durable: inode.data.clone(), ..Inode::default() };
        let image = State {
            inodes: state.inodes.iter().map(|(id, inode)| (*id, whole(inode))).collect(),
            next_inode: state.next_inode,
            names: state.names.clone(),
            durable_names: state.names.clone(),
            dirs: state.dirs.clone(),
            txg: state.txg.clone(),
            threads: state.threads,
            now_ns: state.now_ns,
            entropy: state.entropy,
            ..State::default()
        };
        SimDisk(Arc::new(Shared { state: Mutex::new(image), changed: Condvar::default() }))
    }

    /// Flips one bit of what a file holds, on the platter too. Returns whether the file is that long.
    pub fn flip(&self, path: &Path, byte: u64, bit: u8) -> bool {
        let mut state = self.lock();
        let Some(inode) = state.names.get(path).copied() else { return false };
        let Some(inode) = state.inodes.get_mut(&inode) else { return false };
        let at = byte as usize;
        if at >= inode.data.len() {
            return false;
        }
        inode.data[at] ^= 1 << bit;
        if at < inode.durable.len() {
            inode.durable[at] ^= 1 << bit;
        }
        true
    }

    /// What a file reads as now.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock();
        state.names.get(path).and_then(|inode| state.inodes.get(inode)).map(|inode| inode.data.clone())
    }

    /// Puts a file there as if it had always been.
    pub fn install(&self, path: &Path, contents: Vec<u8>) {
        let mut state = self.lock();
        state.next_inode += 1;
        let id = state.next_inode;
        state.inodes.insert(id, Inode { data: contents.clone(), durable: contents, ..Inode::default() });
        state.names.insert(path.to_owned(), id);
        state.durable_names.insert(path.to_owned(), id);
        if let Some(dir) = path.parent() {
            state.dirs.insert(dir.to_owned());
        }
    }

    /// Counts a step of something at `path` that is not a file (an index flush), with the faults of its number.
    pub fn step(&self, path: &Path, what: &str) -> io::Result<()> {
        self.begin(path, Calls::Flushes, || what.to_owned()).map(drop)
    }

    /// Waits until the disk is stuck, or `until` says that nothing comes any more; whether it is stuck.
    pub fn await_stuck(&self, until: impl Fn() -> bool) -> bool {
        let mut state = self.lock();
        while state.stuck.is_none() && !until() {
            state = self.0.changed.wait(state);
        }
        state.stuck.is_some()
    }

    /// From now on such calls below `path` are not answered, until [`SimDisk::answer`]. Only where there are threads.
    pub fn stick(&self, path: &Path, calls: Calls) {
        self.lock().stuck = Some((path.to_owned(), calls));
    }

    /// Waits until so many calls wait for an answer.
    pub fn await_waiting(&self, calls: u64) {
        let mut state = self.lock();
        while state.waiting < calls {
            state = self.0.changed.wait(state);
        }
    }

    /// Has [`SimDisk::await_stuck`] look again.
    pub fn wake(&self) {
        drop(self.lock());
        self.0.changed.notify_all();
    }

    /// The disk answers again, what it owes first; or, with `cut`, the power goes.
    pub fn answer(&self, cut: bool) {
        let mut state = self.lock();
        state.stuck = None;
        state.cut |= cut;
        drop(state);
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    /// Takes a step, and has the disk for what it does.
    fn begin(&self, path: &Path, call: Calls, what: impl FnOnce() -> String) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if state.step(what)? == Step::Stuck {
            state.stuck = Some((PathBuf::from("/"), Calls::All));
            self.0.changed.notify_all();
        }
        drop(state);
        let state = self.lock_answering(path, call);
        if state.cut {
            return Err(io::Error::other("the power is gone"));
        }
        Ok(state)
    }

    /// Waits where the disk does not answer.
    fn lock_answering(&self, path: &Path, call: Calls) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        if state.is_stuck(path, call) {
            state.waiting += 1;
            self.0.changed.notify_all();
            while state.is_stuck(path, call) {
                state = self.0.changed.wait(state);
            }
            state.waiting -= 1;
        }
        state
    }
}

/// How a step begins, where it does not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Done,
    Stuck,
}

impl State {
    fn step(&mut self, what: impl FnOnce() -> String) -> io::Result<Step> {
        if self.cut {
            return Err(io::Error::other("the power is gone"));
        }
        self.steps += 1;
        if self.txg.as_mut().is_some_and(|rng| rng.one_in(STEPS_PER_TXG)) {
            self.end_txg();
        }
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} {}", self.steps, what()));
        }
        match self.faults.remove(&self.steps) {
            None => Ok(Step::Done),
            Some(Fault::Stuck) => Ok(Step::Stuck),
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::PowerCut) => {
                self.cut = true;
                Err(io::Error::other("the power is gone"))
            }
        }
    }
}

impl State {
    fn is_stuck(&self, path: &Path, call: Calls) -> bool {
        self.stuck
            .as_ref()
            .is_some_and(|(stuck, calls)| path.starts_with(stuck) && (*calls == Calls::All || *calls == call))
    }

    fn end_txg(&mut self) {
        self.durable_names = self.names.clone();
        for inode in self.inodes.values_mut() {
            inode.make_durable();
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
    path: PathBuf,
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.begin(path, Calls::All, || format!("create {}", name(path)))?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if state.no_inodes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.next_inode += 1;
        let inode = state.next_inode;
        state.inodes.insert(inode, Inode::default());
        state.names.insert(path.to_owned(), inode);
        Ok(Arc::new(SimFile { disk: self.clone(), inode, path: path.to_owned() }))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn File>> {
        let state = self.lock();
        if state.cut {
            return Err(io::Error::other("the power is gone"));
        }
        let inode = state.names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), inode, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.begin(to, Calls::All, || format!("rename {} {}", name(from), name(to)))?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.begin(path, Calls::All, || format!("remove {}", name(path)))?;
        state.names.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        if state.cut {
            return Err(io::Error::other("the power is gone"));
        }
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(state.names.keys().filter(|path| path.parent() == Some(dir)).map(|path| name(path)).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.begin(dir, Calls::All, || format!("mkdir {}", name(dir)))?;
        state.dirs.insert(dir.to_owned());
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.begin(dir, Calls::Flushes, || format!("sync folder {}", name(dir)))?;
        if state.txg.is_some() {
            state.durable_names = state.names.clone();
            return Ok(());
        }
        let durable: Vec<_> =
            state.names.iter().filter(|(path, _)| path.parent() == Some(dir)).map(|(p, i)| (p.clone(), *i)).collect();
        state.durable_names.retain(|path, _| path.parent() != Some(dir));
        state.durable_names.extend(durable);
        Ok(())
    }

    fn available(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.lock().available.unwrap_or(1 << 50))
    }
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut Inode) -> T) -> io::Result<T> {
        let mut state = self.disk.lock();
        if state.cut {
            return Err(io::Error::other("the power is gone"));
        }
        let inode = state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        Ok(act(inode))
    }

    fn step(&self, call: Calls, what: impl FnOnce() -> String) -> io::Result<()> {
        self.disk.begin(&self.path, call, || format!("{} {}", what(), name(&self.path))).map(drop)
    }
}

impl Inode {
    fn make_durable(&mut self) {
        let mut durable = std::mem::take(&mut self.durable);
        durable.resize(self.data.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let from = (sector * SECTOR).min(self.data.len());
            let to = (from + SECTOR).min(self.data.len());
            durable[from..to].copy_from_slice(&self.data[from..to]);
        }
        self.durable = durable;
        self.length_dirty = false;
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
            self.length_dirty = true;
        }
        self.data[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        {
            let mut state = self.disk.lock_answering(&self.path, Calls::All);
            state.reads += 1;
            let number = state.reads;
            if let Some(kind) = state.failing_reads.remove(&number) {
                return Err(kind.into());
            }
        }
        let read = self.with(|inode| {
            let from = (offset as usize).min(inode.data.len());
            let n = buffer.len().min(inode.data.len() - from);
            buffer[..n].copy_from_slice(&inode.data[from..from + n]);
            n
        })?;
        self.disk.lock().bytes_read += read as u64;
        Ok(read)
    }

    fn read_two_at(&self, head: &mut [u8], body: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.read_at(head, offset)?;
        if n < head.len() {
            return Ok(n);
        }
        Ok(n + self.read_at(body, offset + n as u64)?)
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.step(Calls::All, || format!("write {}@{offset}", parts.iter().map(|part| part.len()).sum::<usize>()))?;
        self.with(|inode| inode.write(&parts.concat(), offset as usize))
    }

    fn sync(&self) -> io::Result<()> {
        let failed = self.step(Calls::Flushes, || "sync".to_owned()).err();
        let is_zfs = {
            let mut state = self.disk.lock();
            if state.txg.is_some() && failed.is_none() {
                // The log of intents has what happened to names, in order, before what it has of this file.
                state.durable_names = state.names.clone();
            }
            state.txg.is_some()
        };
        self.with(|inode| match failed {
            Some(err) => {
                if !is_zfs {
                    // The kernel marks the pages clean: they read back, and no later sync will write them.
                    inode.dirty.clear();
                    inode.length_dirty = false;
                }
                Err(err)
            }
            None => {
                inode.make_durable();
                Ok(())
            }
        })?
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step(Calls::All, || format!("set length {len}"))?;
        self.with(|inode| {
            inode.data.resize(len as usize, 0);
            inode.length_dirty = true;
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.with(|inode| inode.data.len() as u64)
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.step(Calls::All, || "reserve".to_owned())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.step(Calls::All, || format!("punch {len}@{offset}"))?;
        self.with(|inode| {
            let from = (offset as usize).min(inode.data.len());
            let to = ((offset + len) as usize).min(inode.data.len());
            let zeros = vec![0; to - from];
            inode.write(&zeros, from);
        })
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.length()
    }
}

impl Clock for SimDisk {
    fn monotonic_ns(&self) -> u64 {
        self.lock().now_ns
    }

    fn unix_ms(&self) -> u64 {
        1_700_000_000_000 + self.lock().now_ns / 1_000_000
    }

    fn threads(&self) -> bool {
        self.lock().threads
    }
}

impl Entropy for SimDisk {
    fn fill(&self, bytes: &mut [u8]) {
        let mut state = self.lock();
        for byte in bytes {
            let mut rng = SimRng::new(state.entropy);
            *byte = rng.next_u64() as u8;
            state.entropy = rng.0;
        }
    }
}
