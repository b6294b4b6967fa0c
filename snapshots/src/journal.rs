//! What is under way and what must outlive a process: one record for a node, replaced atomically and durably.
//!
//! It lies outside of the node's datasets, because a restore takes those away from under it, and a record that was rolled back would know nothing of what it must
//! finish. Losing it loses no data: sets, holds and clones are found in ZFS by their names; what was half done is then shown and left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{Edge, Error, Kind, Result, SetName};

/// The newest format that this version reads, and the one that it writes.
const FORMAT: u32 = 1;
/// How often a lock is tried again.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// The record of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Version of the format.
    pub format: u32,
    /// The node's name.
    pub node: String,
    /// The node's datasets when they were last seen, metadata first: what a node that is gone is restored from.
    pub datasets: Vec<String>,
    /// What is under way.
    pub intent: Option<Intent>,
    /// Holds that were asked for.
    pub holds: Vec<HoldRecord>,
    /// Sets that someone needs for a while.
    pub leases: Vec<Lease>,
    /// What replication targets have.
    pub edges: Vec<Edge>,
    /// What restores have replaced, and is kept until they are confirmed.
    pub asides: Vec<Aside>,
    /// The node's lineage: new with each restore, undo, and rollback behind its back.
    pub lineage: String,
    /// The marks that each part of the node may hold.
    pub lives: BTreeMap<String, BTreeSet<String>>,
}

/// An operation of several steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Snapshots are taken pool by pool: a part of them is undone.
    Take {
        /// The set.
        set: SetName,
        /// Its snapshots' names.
        snapshots: Vec<String>,
        /// Whether they are all of one pool: then they are good once they are there. Else only the take itself knows whether deletes were held to its end.
        is_one_pool: bool,
    },
    /// A hold is set on all snapshots of a set: it is finished.
    Hold {
        /// The hold.
        hold: HoldRecord,
        /// The snapshots.
        snapshots: Vec<String>,
    },
    /// A hold is released on all snapshots of a set: it is finished.
    Release {
        /// The hold.
        hold: HoldRecord,
        /// The snapshots.
        snapshots: Vec<String>,
    },
    /// Snapshots are destroyed: what is still free to go goes.
    Prune {
        /// Their names.
        snapshots: Vec<String>,
    },
    /// Datasets trade places. Undone while preparing, finished once renaming has begun.
    Swap {
        /// What stands aside afterwards.
        aside: Aside,
        /// The end of the names of what comes in: `tank/basalt` is replaced by `tank/basalt` and this.
        incoming: String,
        /// Whether what comes in was made for this, and goes when it is undone.
        is_made: bool,
        /// How far.
        phase: Phase,
    },
    /// What stands aside is destroyed: it is finished.
    Confirm {
        /// What.
        aside: Aside,
    },
}

/// How far a swap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Clones are made, datasets are unmounted.
    Prepare,
    /// Datasets are renamed.
    Rename,
}

/// A hold on a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRecord {
    /// The set.
    pub set: SetName,
    /// The tag in ZFS.
    pub tag: String,
    /// Since when.
    pub since_unix_s: u64,
}

/// Someone needs a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its own name.
    pub id: String,
    /// The set.
    pub set: SetName,
    /// Who and what for.
    pub by: String,
    /// The process whose end ends it, with its start time, as in `/proc/PID/stat`; none: it is ended by name.
    pub process: Option<(u32, u64)>,
}

/// What a restore has replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Names it to `confirm` and `undo`.
    pub id: String,
    /// The set that was restored.
    pub set: SetName,
    /// The end of its names: `tank/basalt` stands aside as `tank/basalt` and this.
    pub suffix: String,
    /// The datasets that were replaced, each with all in it.
    pub tops: Vec<String>,
    /// How each of them was, by its name when it is not aside.
    pub members: Vec<MemberState>,
    /// The lineage of what took their places.
    #[serde(default)]
    pub lineage: String,
}

/// How a dataset was before it was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    /// Its name.
    pub dataset: String,
    /// Its property `canmount`.
    pub canmount: String,
    /// Whether it was mounted.
    pub mounted: bool,
    /// Where. Another may be mounted in it that is not below it by name.
    #[serde(default)]
    pub mountpoint: String,
    /// Whether it holds no data, but only others.
    pub is_container: bool,
}

/// Where the record is.
pub trait Journal: Send {
    /// The record; an empty one where there is none.
    fn load(&self) -> Result<Record>;
    /// Replaces it. Durable on return; where it fails, either the old or the new one is there.
    fn save(&mut self, record: &Record) -> Result<()>;
}

/// A record in a file, and the lock that keeps others from working on the same node's snapshots.
#[derive(Debug)]
pub struct FileJournal {
    path: PathBuf,
    _lock: Flock<fs::File>,
}

impl FileJournal {
    /// Opens the record of a node in a folder, which is made where it isn't there, and takes its lock, for which it waits so long. [`Kind::Refused`] while another
    /// process has it.
    pub fn open(dir: &Path, patience: Duration) -> Result<FileJournal> {
        let failed = |err: io::Error| {
            Error::new(Kind::Journal, format!("open the record of snapshots in {}: {err}", dir.display()))
        };
        fs::DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(failed)?;
        let path = dir.join("lock");
        let open = || fs::OpenOptions::new().create(true).write(true).truncate(false).mode(0o640).open(&path);
        let mut file = open().map_err(failed)?;
        let began = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(FileJournal { path: dir.join("snapshots.json"), _lock: lock }),
                Err((again, nix::errno::Errno::EWOULDBLOCK)) if began.elapsed() < patience => {
                    file = again;
                    std::thread::sleep(LOCK_POLL);
                }
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                    return Err(Error::refused(format!(
                        "another process is at work on this node's snapshots (it has {}): wait until it is done",
                        path.display()
                    )));
                }
                Err((_, err)) => return Err(failed(err.into())),
            }
        }
    }

    /// Reads the record of a node in a folder without its lock: for a look.
    pub fn glance(dir: &Path) -> Result<Record> {
        read(&dir.join("snapshots.json"))
    }
}

fn read(path: &Path) -> Result<Record> {
    let failed = |why: String| Error::new(Kind::Journal, format!("read {}: {why}", path.display()));
    let text = match fs::read_to_string(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
        other => other.map_err(|err| failed(err.to_string()))?,
    };
    let damaged = |err: serde_json::Error| {
        failed(format!(
            "{err}; look at it, and move it away if it can't be mended: sets, holds and clones are found in ZFS without it"
        ))
    };
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    // The version first: everything else of a newer file may look different.
    let Format { format } = serde_json::from_str(&text).map_err(damaged)?;
    if format > FORMAT {
        return Err(failed(format!(
            "it has format {format}, this basalt reads up to {FORMAT}: use the version that wrote it, or a newer one"
        )));
    }
    serde_json::from_str(&text).map_err(damaged)
}

impl Journal for FileJournal {
    fn load(&self) -> Result<Record> {
        read(&self.path)
    }

    fn save(&mut self, record: &Record) -> Result<()> {
        let record = Record { format: FORMAT, ..record.clone() };
        let new = self.path.with_extension("json.new");
        let write = || -> io::Result<()> {
            let text = serde_json::to_string_pretty(&record)?;
            let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o640).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            fs::File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write().map_err(|err| {
            Error::new(
                Kind::Journal,
                format!("write {}: {err}; nothing was changed that it doesn't say", self.path.display()),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_outlives_its_process_and_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = FileJournal::open(dir.path(), Duration::ZERO).unwrap();
        assert_eq!(journal.load().unwrap(), Record::default());
        assert_eq!(FileJournal::open(dir.path(), Duration::ZERO).unwrap_err().kind(), Kind::Refused);
        let set = SetName::new(1_795_287_730, 1).unwrap();
        let record = Record {
            format: FORMAT,
            intent: Some(Intent::Take { set, snapshots: vec!["t@a".into()], is_one_pool: true }),
            ..Record::default()
        };
        journal.save(&record).unwrap();
        drop(journal);
        assert_eq!(FileJournal::open(dir.path(), Duration::ZERO).unwrap().load().unwrap(), record);
        assert_eq!(FileJournal::glance(dir.path()).unwrap(), record);
    }

    #[test]
    fn a_record_that_is_damaged_or_newer_is_not_taken_for_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        for (text, why) in [("{", "without it"), ("{\"format\": 2, \"new\": 1}", "format 2"), ("", "without it")] {
            fs::write(dir.path().join("snapshots.json"), text).unwrap();
            let refused = FileJournal::open(dir.path(), Duration::ZERO).unwrap().load().unwrap_err();
            assert!(refused.kind() == Kind::Journal && refused.to_string().contains(why), "{refused}");
        }
    }
}
