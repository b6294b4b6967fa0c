//! What the file systems under a node are, as far as the stores must know (STORE 15): whether they are ZFS, and then which snapshots there are and what they hold.
//!
//! ZFS is asked for that from a thread of its own: on a suspended pool it hangs. One listing tells all datasets of a pool; snapshots are read only where it says
//! that there are others than before. Without the `zfs` program the hidden folder `.zfs/snapshot` says at least whether there are any.
//!
//! On ZFS a full quota refuses even an overwrite, and other programs, or snapshots that pin what is overwritten, may take the stores' headroom. So a node on datasets has
//! an empty one beside them whose `refreservation` keeps space back; [`RESERVE_PROPERTY`] on it says how much. Where the headroom is being used up it is lifted, and put back
//! when there is room (STORE 16).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use basalt_blockstore::{
    Error, ErrorKind, Result,
    ground::{Ground, PlainGround},
};
use basalt_zfs::{Cli, CliOptions, Dataset, Entity, PropertyName, RowsOf, Snapshot, Zfs};
use nix::sys::{
    statfs::{FsType, statfs},
    statvfs::statvfs,
};

const ZFS_MAGIC: FsType = FsType(0x2fc1_2fc1);
/// What is known of snapshots is asked again after so long.
const FRESH: Duration = Duration::from_secs(10);
/// How long an opening node waits for the first answer, and a command for ZFS. A machine that is busy takes a second for a command; there are three.
const FIRST: Duration = Duration::from_secs(30);
/// Snapshots that an error names.
const NAMED: usize = 3;
/// Less than this held by snapshots explains no full disk, in bytes.
const HELD_BYTES_MIN: u64 = 1 << 20;

/// The dataset that keeps space back lies in the node's, or above it, by this name...
const RESERVE_NAME: &str = "reserve";
/// ...and has this user property: how much it keeps back while there is room, in bytes.
const RESERVE_PROPERTY: &str = "basalt:reserve";
/// It is put back where so many times as much is free.
const PUT_BACK_AT: u64 = 4;
/// After an attempt to lift it that failed, the next one waits so long.
const LIFT_AGAIN: Duration = Duration::from_secs(60);

/// What is under these folders.
pub(crate) fn under<'a>(dirs: impl IntoIterator<Item = &'a Path>) -> Arc<dyn Ground> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounted: Vec<Mounted> = Vec::new();
    let mut is_zfs = false;
    let mut hole_bytes = 4096;
    for dir in dirs.into_iter().filter(|dir| statfs(*dir).is_ok_and(|stat| stat.filesystem_type() == ZFS_MAGIC)) {
        is_zfs = true;
        hole_bytes = hole_bytes.max(statvfs(dir).map_or(0, |stat| stat.block_size()));
        if let Some(found) = dataset_of(dir, &mounts).filter(|found| !mounted.contains(found)) {
            mounted.push(found);
        }
    }
    if !is_zfs {
        return Arc::new(PlainGround);
    }
    let shared = Arc::new(Shared {
        zfs: OnceLock::new(),
        mounted,
        known: Mutex::default(),
        answered: Condvar::new(),
        asking: AtomicBool::new(false),
        seen: Mutex::default(),
        reserve: Mutex::default(),
    });
    shared.ask(FIRST);
    Arc::new(ZfsGround { shared, hole_bytes })
}

/// A dataset, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mounted {
    dataset: Dataset,
    at: PathBuf,
}

#[derive(Debug)]
struct ZfsGround {
    shared: Arc<Shared>,
    hole_bytes: u64,
}

struct Shared {
    /// Made when it is first asked and answers.
    zfs: OnceLock<Arc<dyn Zfs>>,
    mounted: Vec<Mounted>,
    known: Mutex<Known>,
    answered: Condvar,
    asking: AtomicBool,
    /// The snapshots of each dataset, as they were last read.
    seen: Mutex<BTreeMap<Dataset, Seen>>,
    reserve: Mutex<Reserve>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("mounted", &self.mounted).finish_non_exhaustive()
    }
}

/// Snapshots of a dataset, and by what one knows that they are still those.
#[derive(Debug)]
struct Seen {
    changed: Option<String>,
    held_bytes: u64,
    read_unix_s: u64,
    snapshots: Vec<Held>,
}

/// A snapshot and what it alone holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    name: Snapshot,
    created_unix_s: u64,
    bytes: u64,
}

/// The dataset that keeps space back.
#[derive(Debug, Default)]
struct Reserve {
    /// Its name, and how much it is to keep back, in bytes.
    found: Option<(Dataset, u64)>,
    is_lifted: bool,
    failed: Option<Instant>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    asked: Option<Instant>,
    /// Whether a flush is one, of all datasets; `None` where that could not be learnt.
    honours_sync: Option<bool>,
    newest_snapshot_unix_ns: Option<u64>,
    held: Option<String>,
}

impl Ground for ZfsGround {
    fn honours_sync(&self) -> Option<bool> {
        self.shared.fresh().honours_sync
    }

    fn overwrites_in_place(&self) -> bool {
        false
    }

    fn hole_bytes(&self) -> u64 {
        self.hole_bytes
    }

    fn newest_snapshot_unix_ns(&self) -> Option<u64> {
        self.shared.fresh().newest_snapshot_unix_ns
    }

    fn held_by_snapshots(&self) -> Option<String> {
        self.shared.fresh().held
    }

    fn lift_reserve(&self) -> Result<bool> {
        let Some(zfs) = self.shared.zfs() else { return Ok(false) };
        // Whoever has it is asking ZFS, which may take for ever.
        let lifted = match self.shared.reserve.try_lock() {
            Ok(mut reserve) => reserve.lift(zfs)?,
            Err(_) => false,
        };
        if lifted {
            self.shared.put_back_in_time();
        }
        Ok(lifted)
    }
}

impl Reserve {
    fn lift(&mut self, zfs: &dyn Zfs) -> Result<bool> {
        let Some((name, bytes)) = &self.found else { return Ok(false) };
        if self.is_lifted || self.failed.is_some_and(|failed| failed.elapsed() < LIFT_AGAIN) {
            return Ok(false);
        }
        if let Err(why) = set(zfs, name, "none") {
            self.failed = Some(Instant::now());
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{name} keeps {} back for deletes, and that could not be lifted ({why}): zfs set refreservation=none {name}; so that the agent may: zfs allow USER \
                     refreservation {name}",
                    mib(*bytes)
                ),
            ));
        }
        self.is_lifted = true;
        Ok(true)
    }

    fn put_back(&mut self, zfs: &dyn Zfs) {
        let Some((name, bytes)) = self.found.as_ref().filter(|_| self.is_lifted) else { return };
        let available = list(zfs, std::slice::from_ref(name), RowsOf::Datasets, ["available"]);
        let available: u64 = available.ok().and_then(|rows| rows.first()?.1[0].as_ref()?.parse().ok()).unwrap_or(0);
        if available / PUT_BACK_AT < *bytes {
            return;
        }
        match set(zfs, name, &bytes.to_string()) {
            Ok(()) => {
                self.is_lifted = false;
                tracing::info!(dataset = %name, bytes, "there is room: space is kept back again");
            }
            Err(why) => {
                tracing::warn!(dataset = %name, bytes, %why, "space could not be kept back again; it is tried again")
            }
        }
    }
}

fn set(zfs: &dyn Zfs, reserve: &Dataset, value: &str) -> std::result::Result<(), String> {
    let name: PropertyName = "refreservation".parse().map_err(|err: basalt_zfs::NameError| err.to_string())?;
    zfs.set(reserve, &[(name, value.to_owned())]).map_err(|err| err.to_string())
}

/// Where the dataset that keeps space back may be, the nearest first.
fn reserves<'a>(datasets: impl IntoIterator<Item = &'a Dataset>) -> Vec<Dataset> {
    let mut above: Vec<Dataset> = Vec::new();
    for dataset in datasets {
        above.extend(std::iter::successors(Some(dataset.clone()), Dataset::parent));
    }
    above.sort_by_key(|dataset| (std::cmp::Reverse(dataset.as_str().matches('/').count()), dataset.clone()));
    above.dedup();
    above.into_iter().filter_map(|dataset| dataset.child(RESERVE_NAME).ok()).collect()
}

impl Shared {
    fn zfs(&self) -> Option<&dyn Zfs> {
        if self.zfs.get().is_none() {
            match Cli::new(CliOptions { deadline: FIRST, ..CliOptions::default() }) {
                Ok(cli) => drop(self.zfs.set(Arc::new(cli))),
                Err(err) => tracing::debug!(%err, "ZFS can't be asked"),
            }
        }
        self.zfs.get().map(|zfs| &**zfs)
    }

    /// What is known; asks again in the background where that is old.
    fn fresh(self: &Arc<Self>) -> Known {
        let known = lock(&self.known).clone();
        if known.asked.is_none_or(|asked| asked.elapsed() >= FRESH) {
            self.ask(Duration::ZERO);
        }
        known
    }

    /// Keeps space back again once there is room for it.
    fn put_back_in_time(self: &Arc<Self>) {
        let shared = Arc::downgrade(self);
        let started = std::thread::Builder::new().name("basalt-reserve".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(FRESH);
                let Some(shared) = shared.upgrade() else { return };
                let Some(zfs) = shared.zfs() else { continue };
                let mut reserve = lock(&shared.reserve);
                reserve.put_back(zfs);
                if !reserve.is_lifted {
                    return;
                }
            }
        });
        if let Err(err) = started {
            tracing::warn!(%err, "what was lifted stays so until the node is opened again");
        }
    }

    /// Asks, unless someone does, and waits for the answer so long.
    fn ask(self: &Arc<Self>, patience: Duration) {
        if self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = self.clone();
        let began = Instant::now();
        let started = std::thread::Builder::new().name("basalt-ground".to_owned()).spawn(move || {
            let known = shared.look();
            *lock(&shared.known) = Known { asked: Some(Instant::now()), ..known };
            shared.asking.store(false, Ordering::Release);
            shared.answered.notify_all();
        });
        if started.is_err() {
            self.asking.store(false, Ordering::Release);
            return;
        }
        let unanswered = |known: &mut Known| known.asked.is_none_or(|asked| asked < began);
        drop(self.answered.wait_timeout_while(lock(&self.known), patience, unanswered));
    }

    fn look(self: &Arc<Self>) -> Known {
        let mut known = Known {
            newest_snapshot_unix_ns: (!self.mounted.is_empty()).then_some(0),
            honours_sync: (!self.mounted.is_empty()).then_some(true),
            ..Known::default()
        };
        let mut found = Vec::new();
        // The reserves come along at the first time; they need not be there.
        let looks_for_reserve = lock(&self.known).asked.is_none();
        let reserves = match looks_for_reserve {
            true => reserves(self.mounted.iter().map(|mounted| &mounted.dataset)),
            false => Vec::new(),
        };
        let wanted: Vec<Dataset> =
            self.mounted.iter().map(|mounted| mounted.dataset.clone()).chain(reserves.clone()).collect();
        if let Some(zfs) = self.zfs() {
            let names = ["sync", "usedbysnapshots", "snapshots_changed", RESERVE_PROPERTY, "refreservation"];
            match list(zfs, &wanted, RowsOf::Datasets, names) {
                Ok(rows) => found = rows,
                Err(err) => tracing::debug!(%err, "the node's datasets can't be listed"),
            }
            self.read_snapshots(zfs, &found);
        }
        let row = |dataset: &Dataset| {
            found.iter().find(|(name, _)| name.as_str() == dataset.as_str()).map(|(_, values)| values)
        };
        let seen = lock(&self.seen);
        let mut held = Vec::new();
        for Mounted { dataset, at } in &self.mounted {
            let sync = row(dataset).and_then(|values| values[0].as_deref());
            known.honours_sync = both(known.honours_sync, sync.and_then(honours));
            let newest = match seen.get(dataset).filter(|_| row(dataset).is_some()) {
                Some(seen) => {
                    held.extend(held_by(dataset, seen.held_bytes, &seen.snapshots));
                    Some(
                        seen.snapshots
                            .iter()
                            .map(|one| one.created_unix_s.saturating_mul(1_000_000_000))
                            .max()
                            .unwrap_or(0),
                    )
                }
                None => {
                    let names = names_in(&at.join(".zfs/snapshot"));
                    held.extend(
                        names
                            .as_deref()
                            .and_then(|names| names.first().map(|first| unlisted(dataset, names.len(), first))),
                    );
                    names.filter(Vec::is_empty).map(|_| 0)
                }
            };
            known.newest_snapshot_unix_ns = known.newest_snapshot_unix_ns.zip(newest).map(|(a, b)| a.max(b));
        }
        drop(seen);
        known.held = (!held.is_empty()).then(|| held.join("; "));
        if looks_for_reserve {
            let of = |name: &Dataset| Some((name.clone(), row(name)?[3].as_ref()?.parse().ok()?));
            let mut reserve = lock(&self.reserve);
            reserve.found = reserves.iter().find_map(of);
            let kept = reserve.found.as_ref().map(|(name, bytes)| {
                (row(name).and_then(|values| values[4].as_ref()?.parse().ok()).unwrap_or(0), *bytes)
            });
            // An earlier life may have left it lifted.
            reserve.is_lifted = kept.is_some_and(|(kept, bytes): (u64, u64)| kept < bytes);
            if reserve.is_lifted {
                self.put_back_in_time();
            }
        }
        known
    }

    /// Reads the snapshots of the datasets where they are others than before, or hold something else.
    fn read_snapshots(&self, zfs: &dyn Zfs, found: &Rows<5>) {
        let mut stale = BTreeMap::new();
        let tells_changes = zfs.version().is_ok_and(|version| version.tools >= (2, 2, 0));
        {
            let mut seen = lock(&self.seen);
            for Mounted { dataset, .. } in &self.mounted {
                let values = found.iter().find(|(name, _)| name.as_str() == dataset.as_str()).map(|(_, values)| values);
                let Some([_, held_bytes, changed, ..]) = values else { continue };
                let held_bytes = held_bytes.as_ref().and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
                if changed.is_none() && tells_changes {
                    // It never had one.
                    let never = Seen { changed: None, held_bytes: 0, read_unix_s: 0, snapshots: Vec::new() };
                    seen.insert(dataset.clone(), never);
                } else if !seen.get(dataset).is_some_and(|seen| seen.holds(changed.as_deref(), held_bytes)) {
                    seen.remove(dataset);
                    stale.insert(dataset.clone(), (changed.clone(), held_bytes));
                }
            }
        }
        let read_unix_s = now_unix_s();
        let names: Vec<Dataset> = stale.keys().cloned().collect();
        let all = match list(zfs, &names, RowsOf::Snapshots, ["creation", "used"]) {
            Ok(all) => all,
            Err(err) => return tracing::debug!(%err, "snapshots can't be listed"),
        };
        let mut seen = lock(&self.seen);
        for (dataset, (changed, held_bytes)) in stale {
            let of_it = |(name, [created, used]): &(Entity, [Option<String>; 2])| {
                let Entity::Snapshot(name) = name else { return None };
                let number = |text: &Option<String>| text.as_ref().and_then(|text| text.parse().ok()).unwrap_or(0);
                let held = Held { name: name.clone(), created_unix_s: number(created), bytes: number(used) };
                (name.dataset() == dataset).then_some(held)
            };
            let snapshots = all.iter().filter_map(of_it).collect();
            seen.insert(dataset, Seen { changed, held_bytes, read_unix_s, snapshots });
        }
    }
}

impl Seen {
    /// Whether the dataset still has these snapshots, by when ZFS says that they last changed, and they hold about as much.
    fn holds(&self, changed: Option<&str>, held_bytes: u64) -> bool {
        // In the second in which they changed they may have changed once more after they were read.
        let settled =
            changed.and_then(|at| at.parse().ok()).is_some_and(|at: u64| self.read_unix_s > at.saturating_add(1));
        settled && self.changed.as_deref() == changed && self.held_bytes.abs_diff(held_bytes) < HELD_BYTES_MIN
    }
}

fn now_unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

type Rows<const N: usize> = Vec<(Entity, [Option<String>; N])>;

/// Properties of datasets, or of their snapshots, whatever their pools.
fn list<const N: usize>(
    zfs: &dyn Zfs,
    datasets: &[Dataset],
    rows: RowsOf,
    names: [&str; N],
) -> basalt_zfs::Result<Rows<N>> {
    let names: Vec<PropertyName> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let mut by_pool: BTreeMap<_, Vec<Dataset>> = BTreeMap::new();
    for dataset in datasets {
        by_pool.entry(dataset.pool()).or_default().push(dataset.clone());
    }
    let mut all = Vec::new();
    for of_pool in by_pool.into_values() {
        let listed = zfs.listing(&of_pool, rows, &names)?;
        all.extend(listed.into_iter().filter_map(|listed| Some((listed.name, listed.values.try_into().ok()?))));
    }
    Ok(all)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ZFS dataset that a folder is on, and where that is mounted; none where it is on none.
pub fn dataset_under(dir: &Path) -> Option<(String, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    dataset_of(dir, &mounts).map(|mounted| (mounted.dataset.to_string(), mounted.at))
}

/// The dataset that a folder is on, from the mounts of this process.
fn dataset_of(dir: &Path, mounts: &str) -> Option<Mounted> {
    let dir = fs::canonicalize(dir).ok()?;
    let mounted = mounts.lines().filter_map(|line| {
        // ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS [...] - TYPE SOURCE OPTIONS
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        let at = PathBuf::from(unescaped(before.get(4)?));
        match kind == "zfs" && dir.starts_with(&at) {
            true => Some(Mounted { dataset: unescaped(source).parse().ok()?, at }),
            false => None,
        }
    });
    mounted.max_by_key(|mounted| mounted.at.components().count())
}

/// The kernel writes blanks in mountinfo as octal numbers.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Whether the property `sync` has flushes be flushes; `None` for what it can't be.
fn honours(sync: &str) -> Option<bool> {
    match sync.trim() {
        "standard" | "always" => Some(true),
        "disabled" => Some(false),
        _ => None,
    }
}

/// What is true of both: one that is certainly not decides, then one that is not known.
fn both(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    match (one, other) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (one, other) => one.zip(other).map(|_| true),
    }
}

fn names_in(dir: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(dir).ok()?;
    Some(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn unlisted(dataset: &Dataset, count: usize, first: &str) -> String {
    format!(
        "{dataset} has {count} snapshots ({first} is one), and what only they refer to no gc gives back: `zfs list -t snapshot -o name,used {dataset}` says how much that is"
    )
}

/// What snapshots hold, for the reader of an error; `None` where that is next to nothing.
fn held_by(dataset: &Dataset, bytes: u64, snapshots: &[Held]) -> Option<String> {
    if bytes < HELD_BYTES_MIN || snapshots.is_empty() {
        return None;
    }
    let mut most: Vec<&Held> = snapshots.iter().collect();
    most.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.bytes));
    let named: Vec<String> =
        most.iter().take(NAMED).map(|snapshot| format!("{} {} alone", snapshot.name, mib(snapshot.bytes))).collect();
    let more = match most.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "snapshots of {dataset} hold {} that no gc gives back ({}{more}): `zfs destroy` those that are not needed",
        mib(bytes),
        named.join(", ")
    ))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use basalt_zfs::{Class, Model, Operation, model::Fault};

    use super::*;

    fn dataset(name: &str) -> Dataset {
        name.parse().unwrap()
    }

    /// A node's datasets in memory, and what is under them.
    fn world() -> (Arc<Model>, Arc<Shared>) {
        let model = Arc::new(Model::new(1));
        model.add_pool(&"tank".parse().unwrap(), 1 << 30);
        for name in ["tank/node", "tank/node/a", "tank/node/b"] {
            model.create(&dataset(name), &[]).unwrap();
        }
        let keep = [
            ("refreservation".parse().unwrap(), "1048576".into()),
            (RESERVE_PROPERTY.parse().unwrap(), "1048576".into()),
        ];
        model.create(&dataset("tank/node/reserve"), &keep).unwrap();
        (model.clone(), ground(&model))
    }

    fn ground(model: &Arc<Model>) -> Arc<Shared> {
        let mounted = ["tank/node", "tank/node/a", "tank/node/b"]
            .map(|name| Mounted { dataset: dataset(name), at: "/nonexistent".into() });
        let zfs: OnceLock<Arc<dyn Zfs>> = OnceLock::new();
        assert!(zfs.set(model.clone()).is_ok());
        Arc::new(Shared {
            zfs,
            mounted: mounted.to_vec(),
            known: Mutex::default(),
            answered: Condvar::new(),
            asking: AtomicBool::new(false),
            seen: Mutex::default(),
            reserve: Mutex::default(),
        })
    }

    #[test]
    fn a_folder_is_on_the_dataset_that_is_mounted_nearest_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = fs::canonicalize(dir.path()).unwrap();
        let mounts = format!(
            "21 1 0:1 / / rw - zfs tank rw\n22 21 0:2 / {0} rw shared:1 - zfs tank/the\\040node rw\n23 21 0:3 / {0}/beside rw - ext4 /dev/sda rw\n",
            at.display()
        );
        let found = dataset_of(dir.path(), &mounts).unwrap();
        assert_eq!((found.dataset.as_str(), found.at), ("tank/the node", at));
        assert_eq!(dataset_of(Path::new("/"), &mounts).unwrap().dataset.as_str(), "tank");
    }

    #[test]
    fn a_flush_is_trusted_only_where_every_dataset_is_known_to_honour_it() {
        assert_eq!(
            [honours("standard"), honours("always"), honours("disabled"), honours("")],
            [Some(true), Some(true), Some(false), None]
        );
        assert_eq!(both(Some(true), Some(true)), Some(true));
        assert_eq!(both(Some(true), None), None);
        assert_eq!(both(None, Some(false)), Some(false));
        let (model, ground) = world();
        assert_eq!(ground.look().honours_sync, Some(true));
        model.set(&dataset("tank/node/b"), &[("sync".parse().unwrap(), "disabled".into())]).unwrap();
        assert_eq!(ground.look().honours_sync, Some(false));
        model.remove_pool(&"tank".parse().unwrap());
        let known = ground.look();
        assert_eq!((known.honours_sync, known.newest_snapshot_unix_ns), (None, None));
    }

    #[test]
    fn the_newest_snapshot_of_all_datasets_is_known_and_read_again_only_where_there_is_another() {
        let (model, ground) = world();
        assert_eq!(ground.look().newest_snapshot_unix_ns, Some(0));
        let take = |name: &str, at| {
            model.set_now_unix_s(at);
            model.snapshot(&[dataset("tank/node/a").snapshot(name).unwrap()], &[]).unwrap();
        };
        take("one", 1_700_000_000);
        assert_eq!(ground.look().newest_snapshot_unix_ns, Some(1_700_000_000_000_000_000));
        // What is not read again can't fail. The next listing of properties passes.
        let fault = || Fault { operation: Some(Operation::List), after: 0, class: Class::Io, done: false };
        model.inject(fault());
        assert_eq!(ground.look().newest_snapshot_unix_ns, Some(1_700_000_000_000_000_000));
        model.clear_faults();
        take("two", 1_700_000_100);
        assert_eq!(ground.look().newest_snapshot_unix_ns, Some(1_700_000_100_000_000_000));
    }

    #[test]
    fn a_reserve_is_found_lifted_and_put_back() {
        let (model, ground) = world();
        ground.look();
        let kept = || {
            model.properties(&(&dataset("tank/node/reserve")).into(), &["refreservation".parse().unwrap()]).unwrap()[0]
                .value
                .clone()
        };
        let mut reserve = lock(&ground.reserve);
        assert_eq!(reserve.found, Some((dataset("tank/node/reserve"), 1 << 20)));
        assert!(!reserve.is_lifted && reserve.lift(&*model).unwrap() && kept() == "0");
        drop(reserve);
        // One that was left lifted is put back by the next life.
        let next = self::ground(&model);
        next.look();
        let mut reserve = lock(&next.reserve);
        assert!(reserve.is_lifted);
        reserve.put_back(&*model);
        assert!(!reserve.is_lifted && kept() == "1048576");
    }

    #[test]
    fn what_keeps_space_back_is_looked_for_beside_the_stores_and_above() {
        let datasets = ["tank/node/shards/00", "tank/node", "tank/node/shards/01"].map(dataset);
        assert_eq!(
            reserves(&datasets).iter().map(Dataset::as_str).collect::<Vec<_>>(),
            [
                "tank/node/shards/00/reserve",
                "tank/node/shards/01/reserve",
                "tank/node/shards/reserve",
                "tank/node/reserve",
                "tank/reserve"
            ]
        );
    }

    #[test]
    fn snapshots_that_hold_space_are_named_the_largest_first() {
        let node = dataset("tank/node");
        let held = |name: &str, bytes| Held { name: node.snapshot(name).unwrap(), created_unix_s: 1, bytes };
        let snapshots = [held("a", 1 << 20), held("b", 20 << 20)];
        let held = held_by(&node, 50 << 20, &snapshots).unwrap();
        assert!(
            held.starts_with("snapshots of tank/node hold 50.0 MiB")
                && held.contains("(tank/node@b 20.0 MiB alone, tank/node@a 1.0 MiB alone)"),
            "{held}"
        );
        assert_eq!(held_by(&node, 4096, &snapshots), None);
        assert_eq!(held_by(&node, 50 << 20, &[]), None);
    }
}
