//! What the file systems under a node are, as far as the stores must know (STORE 15): whether they are ZFS, and then which snapshots there are and what they hold.
//!
//! The `zfs` program is asked for that, where there is one, from a thread of its own: on a suspended pool it hangs. Without it the hidden folder `.zfs/snapshot` says
//! at least whether there are any.
//!
//! On ZFS a full quota refuses even an overwrite, and other programs, or snapshots that pin what is overwritten, may take the stores' headroom. So a node on datasets has
//! an empty one beside them whose `refreservation` keeps space back; [`RESERVE_PROPERTY`] on it says how much. Where the headroom is being used up it is lifted, and put back
//! when there is room (STORE 16).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use basalt_blockstore::{
    Error, ErrorKind, Result,
    ground::{Ground, PlainGround},
};
use nix::sys::{
    statfs::{FsType, statfs},
    statvfs::statvfs,
};

const ZFS_MAGIC: FsType = FsType(0x2fc1_2fc1);
/// What is known of snapshots is asked again after so long.
const FRESH: Duration = Duration::from_secs(10);
/// How long an opening node waits for the first answer. Some commands for each dataset: a second each on a machine that is busy.
const FIRST: Duration = Duration::from_secs(120);
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
    let mut datasets: Vec<Dataset> = Vec::new();
    let mut is_zfs = false;
    let mut hole_bytes = 4096;
    for dir in dirs.into_iter().filter(|dir| statfs(*dir).is_ok_and(|stat| stat.filesystem_type() == ZFS_MAGIC)) {
        is_zfs = true;
        hole_bytes = hole_bytes.max(statvfs(dir).map_or(0, |stat| stat.block_size()));
        if let Some(dataset) = dataset_of(dir, &mounts).filter(|dataset| !datasets.contains(dataset)) {
            datasets.push(dataset);
        }
    }
    if !is_zfs {
        return Arc::new(PlainGround);
    }
    let shared = Arc::new(Shared {
        datasets,
        known: Mutex::default(),
        answered: Condvar::new(),
        asking: AtomicBool::new(false),
        reserve: Mutex::default(),
    });
    shared.ask(FIRST);
    Arc::new(ZfsGround { shared, hole_bytes })
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Dataset {
    name: String,
    mounted_at: PathBuf,
}

#[derive(Debug)]
struct ZfsGround {
    shared: Arc<Shared>,
    hole_bytes: u64,
}

#[derive(Debug)]
struct Shared {
    datasets: Vec<Dataset>,
    known: Mutex<Known>,
    answered: Condvar,
    asking: AtomicBool,
    reserve: Mutex<Reserve>,
}

/// The dataset that keeps space back.
#[derive(Debug, Default)]
struct Reserve {
    looked_for: bool,
    /// Its name, and how much it is to keep back, in bytes.
    found: Option<(String, u64)>,
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
        // Whoever has it is asking ZFS, which may take for ever.
        let lifted = match self.shared.reserve.try_lock() {
            Ok(mut reserve) => reserve.lift()?,
            Err(_) => false,
        };
        if lifted {
            self.shared.put_back_in_time();
        }
        Ok(lifted)
    }
}

impl Reserve {
    /// Finds the dataset, once, and whether it was left lifted by an earlier life. `false`: that was before.
    fn look_for(&mut self, datasets: &[Dataset]) -> bool {
        if std::mem::replace(&mut self.looked_for, true) {
            return false;
        }
        self.found = reserve_names(datasets).into_iter().find_map(|name| {
            let bytes = zfs(&["get", "-Hp", "-o", "value", RESERVE_PROPERTY, &name])?.trim().parse().ok()?;
            Some((name, bytes))
        });
        if let Some((name, bytes)) = &self.found {
            let kept = zfs(&["get", "-Hp", "-o", "value", "refreservation", name]);
            self.is_lifted = kept.and_then(|kept| kept.trim().parse().ok()).is_some_and(|kept: u64| kept < *bytes);
        }
        true
    }

    fn lift(&mut self) -> Result<bool> {
        let Some((name, bytes)) = &self.found else { return Ok(false) };
        if self.is_lifted || self.failed.is_some_and(|failed| failed.elapsed() < LIFT_AGAIN) {
            return Ok(false);
        }
        if let Err(why) = set(name, "refreservation=none") {
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

    fn put_back(&mut self) {
        let Some((name, bytes)) = self.found.as_ref().filter(|_| self.is_lifted) else { return };
        let available = zfs(&["get", "-Hp", "-o", "value", "available", name]);
        let available: u64 = available.and_then(|available| available.trim().parse().ok()).unwrap_or(0);
        if available / PUT_BACK_AT < *bytes {
            return;
        }
        match set(name, &format!("refreservation={bytes}")) {
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

/// Where the dataset that keeps space back may be, the nearest first.
fn reserve_names(datasets: &[Dataset]) -> Vec<String> {
    let mut above: Vec<&str> = datasets
        .iter()
        .flat_map(|dataset| {
            let ends = dataset.name.match_indices('/').map(|(end, _)| end).chain([dataset.name.len()]);
            ends.map(|end| &dataset.name[..end])
        })
        .collect();
    above.sort_by_key(|name| (std::cmp::Reverse(name.matches('/').count()), *name));
    above.dedup();
    above.into_iter().map(|name| format!("{name}/{RESERVE_NAME}")).collect()
}

impl Shared {
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
                let mut reserve = lock(&shared.reserve);
                reserve.put_back();
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
            let known = look(&shared.datasets);
            let lifted_before = {
                let mut reserve = lock(&shared.reserve);
                reserve.look_for(&shared.datasets) && reserve.is_lifted
            };
            if lifted_before {
                shared.put_back_in_time();
            }
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
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ZFS dataset that a folder is on, and where that is mounted; none where it is on none.
pub fn dataset_under(dir: &Path) -> Option<(String, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    dataset_of(dir, &mounts).map(|dataset| (dataset.name, dataset.mounted_at))
}

/// The dataset that a folder is on, from the mounts of this process.
fn dataset_of(dir: &Path, mounts: &str) -> Option<Dataset> {
    let dir = fs::canonicalize(dir).ok()?;
    let mounted = mounts.lines().filter_map(|line| {
        // ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS [...] - TYPE SOURCE OPTIONS
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        let at = PathBuf::from(unescaped(before.get(4)?));
        (kind == "zfs" && dir.starts_with(&at)).then(|| Dataset { name: unescaped(source), mounted_at: at })
    });
    mounted.max_by_key(|dataset| dataset.mounted_at.components().count())
}

/// The kernel writes blanks in mountinfo as octal numbers.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn look(datasets: &[Dataset]) -> Known {
    let mut known = Known {
        newest_snapshot_unix_ns: (!datasets.is_empty()).then_some(0),
        honours_sync: (!datasets.is_empty()).then_some(true),
        ..Known::default()
    };
    let mut held = Vec::new();
    for dataset in datasets {
        let sync = zfs(&["get", "-Hp", "-o", "value", "sync", &dataset.name]);
        known.honours_sync = both(known.honours_sync, sync.and_then(|sync| honours(&sync)));
        let snapshots = zfs(&["list", "-Hp", "-t", "snapshot", "-d", "1", "-o", "name,creation,used", &dataset.name]);
        let newest = match snapshots.as_deref().map(snapshots_of) {
            Some(snapshots) => {
                let by_all = zfs(&["get", "-Hp", "-o", "value", "usedbysnapshots", &dataset.name]);
                held.extend(
                    by_all
                        .and_then(|bytes| bytes.trim().parse().ok())
                        .and_then(|bytes| held_by(&dataset.name, bytes, &snapshots)),
                );
                Some(
                    snapshots
                        .iter()
                        .map(|snapshot| snapshot.created_unix_s.saturating_mul(1_000_000_000))
                        .max()
                        .unwrap_or(0),
                )
            }
            None => {
                let names = names_in(&dataset.mounted_at.join(".zfs/snapshot"));
                if let Some(first) = names.as_ref().and_then(|names| names.first()) {
                    held.push(format!(
                        "{} has {} snapshots ({first} is one), and what only they refer to no gc gives back: `zfs list -t snapshot -o name,used {0}` says how \
                         much that is",
                        dataset.name,
                        names.as_ref().map_or(0, Vec::len)
                    ));
                }
                names.filter(Vec::is_empty).map(|_| 0)
            }
        };
        known.newest_snapshot_unix_ns = known.newest_snapshot_unix_ns.zip(newest).map(|(a, b)| a.max(b));
    }
    known.held = (!held.is_empty()).then(|| held.join("; "));
    known
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

/// What the `zfs` program says, if there is one and it succeeds.
fn zfs(args: &[&str]) -> Option<String> {
    let out = command().args(args).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Sets a property; an error is what the program says.
fn set(dataset: &str, property: &str) -> std::result::Result<(), String> {
    let out = command().args(["set", property, dataset]).output().map_err(|err| format!("zfs: {err}"))?;
    match out.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
    }
}

fn command() -> Command {
    // Where it stands for root, whose PATH a service may not have.
    let path = format!("{}:/usr/sbin:/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("zfs");
    command.env("PATH", path).env("LC_ALL", "C");
    command
}

fn names_in(dir: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(dir).ok()?;
    Some(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    name: String,
    created_unix_s: u64,
    used_bytes: u64,
}

/// Lines of name, creation and used; what can't be read of one is 0.
fn snapshots_of(listed: &str) -> Vec<Snapshot> {
    let line = |line: &str| {
        let mut fields = line.split('\t');
        let name = fields.next().filter(|name| name.contains('@'))?.to_owned();
        let mut number = || fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
        Some(Snapshot { name, created_unix_s: number(), used_bytes: number() })
    };
    listed.lines().filter_map(line).collect()
}

/// What snapshots hold, for the reader of an error; `None` where that is next to nothing.
fn held_by(dataset: &str, bytes: u64, snapshots: &[Snapshot]) -> Option<String> {
    if bytes < HELD_BYTES_MIN || snapshots.is_empty() {
        return None;
    }
    let mut most: Vec<&Snapshot> = snapshots.iter().collect();
    most.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.used_bytes));
    let named: Vec<String> = most
        .iter()
        .take(NAMED)
        .map(|snapshot| format!("{} {} alone", snapshot.name, mib(snapshot.used_bytes)))
        .collect();
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

    use super::*;

    #[test]
    fn a_folder_is_on_the_dataset_that_is_mounted_nearest_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = fs::canonicalize(dir.path()).unwrap();
        let mounts = format!(
            "21 1 0:1 / / rw - zfs tank rw\n22 21 0:2 / {0} rw shared:1 - zfs tank/the\\040node rw\n23 21 0:3 / {0}/beside rw - ext4 /dev/sda rw\n",
            at.display()
        );
        let found = dataset_of(dir.path(), &mounts).unwrap();
        assert_eq!((found.name.as_str(), found.mounted_at), ("tank/the node", at));
        assert_eq!(dataset_of(Path::new("/"), &mounts).unwrap().name, "tank");
    }

    #[test]
    fn a_flush_is_trusted_only_where_every_dataset_is_known_to_honour_it() {
        assert_eq!(
            [honours("standard\n"), honours("always"), honours("disabled\n"), honours("")],
            [Some(true), Some(true), Some(false), None]
        );
        assert_eq!(both(Some(true), Some(true)), Some(true));
        assert_eq!(both(Some(true), None), None);
        assert_eq!(both(None, Some(false)), Some(false));
        // Neither the program nor the dataset is there.
        let nowhere = Dataset { name: "basalt-no-such-pool/x".into(), mounted_at: "/nonexistent".into() };
        let known = look(&[nowhere]);
        assert_eq!((known.honours_sync, known.newest_snapshot_unix_ns), (None, None));
    }

    #[test]
    fn what_keeps_space_back_is_looked_for_beside_the_stores_and_above() {
        let datasets = ["tank/node/shards/00", "tank/node", "tank/node/shards/01"]
            .map(|name| Dataset { name: name.into(), mounted_at: "/nonexistent".into() });
        assert_eq!(
            reserve_names(&datasets),
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
        let listed = "tank/node@a\t1700000000\t1048576\ntank/node@b\t1700000100\t20971520\nnonsense\n";
        let snapshots = snapshots_of(listed);
        assert_eq!(snapshots.len(), 2);
        assert_eq!(
            snapshots[1],
            Snapshot { name: "tank/node@b".into(), created_unix_s: 1_700_000_100, used_bytes: 20 << 20 }
        );
        let held = held_by("tank/node", 50 << 20, &snapshots).unwrap();
        assert!(
            held.starts_with("snapshots of tank/node hold 50.0 MiB")
                && held.contains("(tank/node@b 20.0 MiB alone, tank/node@a 1.0 MiB alone)"),
            "{held}"
        );
        assert_eq!(held_by("tank/node", 4096, &snapshots), None);
        assert_eq!(held_by("tank/node", 50 << 20, &[]), None);
    }
}
