//! What ZFS tells: the rows of its listings, typed.

use crate::{Bookmark, Dataset, Entity, HoldTag, Pool, PropertyName, Snapshot};

/// The releases of the tools and of the kernel module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Of `zfs` and `zpool`: major, minor, patch.
    pub tools: (u32, u32, u32),
    /// Of the module, where it is loaded.
    pub module: Option<(u32, u32, u32)>,
}

/// What a dataset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A filesystem.
    Filesystem,
    /// A block device.
    Volume,
}

/// How far a listing of datasets goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// The named one.
    Itself,
    /// It and what lies directly in it.
    Children,
    /// It and all that lies in it.
    Descendants,
}

/// A dataset, as cheap as ZFS can list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetEntry {
    /// Its name now; the guid is what stays.
    pub name: Dataset,
    /// Filesystem or volume.
    pub kind: Kind,
    /// Unique, kept by renames, new for each clone and receive.
    pub guid: u64,
    /// The transaction group that made it: the order of creation in a pool.
    pub createtxg: u64,
    /// The snapshot it is a clone of.
    pub origin: Option<Snapshot>,
}

/// A snapshot, as cheap as ZFS can list it: no column here makes ZFS read the snapshot itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Its name now.
    pub name: Snapshot,
    /// Unique, and the same on every replica: what finds the base of an incremental stream.
    pub guid: u64,
    /// The order of snapshots, whatever the clock said.
    pub createtxg: u64,
}

/// What a snapshot costs and what keeps it. ZFS reads each snapshot for it: ask for one dataset, seldom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotUse {
    /// Its name, guid and order.
    pub entry: SnapshotEntry,
    /// Seconds since the Unix epoch, by the clock of the host that took it.
    pub creation_unix_s: u64,
    /// Bytes that only this snapshot holds.
    pub used_bytes: u64,
    /// Bytes reachable in it.
    pub referenced_bytes: u64,
    /// How many holds.
    pub holds: u64,
    /// Whether it goes with its last hold or clone.
    pub defer_destroy: bool,
    /// Its clones.
    pub clones: Vec<Dataset>,
}

/// What a listing of several datasets has a row for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowsOf {
    /// The datasets themselves.
    Datasets,
    /// The snapshots of each.
    Snapshots,
}

/// Some properties of one of several datasets or snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which one.
    pub name: Entity,
    /// What was asked for, in that order; `None` for what isn't set or isn't known to this release.
    pub values: Vec<Option<String>>,
}

/// A bookmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookmarkEntry {
    /// Its name.
    pub name: Bookmark,
    /// The guid of the snapshot it was made of.
    pub guid: u64,
    /// The createtxg of that snapshot.
    pub createtxg: u64,
}

/// A hold on a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Who holds it.
    pub tag: HoldTag,
}

/// Where the value of a property comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// ZFS's own: read-only, or nothing that could be set.
    None,
    /// Nobody set it.
    Default,
    /// Set on this dataset.
    Local,
    /// Set on the named one above.
    Inherited(Dataset),
    /// Came with a stream.
    Received,
    /// By a mount option, until the next mount.
    Temporary,
}

/// A property and its value, numbers in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Which.
    pub name: PropertyName,
    /// As `zfs get -p` prints it.
    pub value: String,
    /// Since where.
    pub source: Source,
}

/// A pool at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolEntry {
    /// Its name.
    pub name: Pool,
    /// Unique, kept by export and import.
    pub guid: u64,
    /// Whether it works.
    pub health: Health,
    /// Bytes of its disks, parity included.
    pub size_bytes: u64,
    /// Bytes allocated.
    pub allocated_bytes: u64,
    /// Bytes not allocated; less of it is usable than this says (parity, slop).
    pub free_bytes: u64,
    /// Bytes that destroyed datasets and snapshots still give back.
    pub freeing_bytes: u64,
    /// How broken up the free space is, in percent; `None` where the pool doesn't know.
    pub fragmentation_percent: Option<u8>,
    /// Whether it was imported read-only.
    pub read_only: bool,
}

/// The state of a pool or vdev.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Works.
    Online,
    /// Works without a part of its redundancy.
    Degraded,
    /// Does not work.
    Faulted,
    /// Taken out by an operator.
    Offline,
    /// Pulled out.
    Removed,
    /// Can't be opened.
    Unavailable,
    /// All I/O stands still until `zpool clear`.
    Suspended,
    /// A spare that waits.
    Available,
    /// A spare in use.
    InUse,
}

impl Health {
    /// By the word of `zpool status`.
    pub fn from_word(word: &str) -> Option<Health> {
        Some(match word {
            "ONLINE" => Health::Online,
            "DEGRADED" => Health::Degraded,
            "FAULTED" => Health::Faulted,
            "OFFLINE" => Health::Offline,
            "REMOVED" => Health::Removed,
            "UNAVAIL" => Health::Unavailable,
            "SUSPENDED" => Health::Suspended,
            "AVAIL" => Health::Available,
            "INUSE" => Health::InUse,
            _ => return None,
        })
    }
}

/// What a vdev is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Data.
    Data,
    /// The intent log.
    Log,
    /// Metadata and small blocks.
    Special,
    /// The table of deduplication.
    Dedup,
    /// The second-level cache.
    Cache,
    /// A spare.
    Spare,
}

/// A disk, or a group of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdev {
    /// A path, or the name of a group such as `mirror-0`.
    pub name: String,
    /// What for.
    pub role: Role,
    /// How deep under the pool, 0 for the first level.
    pub depth: usize,
    /// Its state.
    pub health: Health,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads whose checksum was wrong.
    pub checksum_errors: u64,
    /// Answers that took longer than the module's `zio_slow_io_ms` (30 s).
    pub slow: u64,
}

/// A pool in detail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Its name.
    pub name: Pool,
    /// Its state.
    pub health: Health,
    /// What `zpool status` says of the last or running scrub or resilver; empty for none.
    pub scan: String,
    /// How many data errors it knows.
    pub data_errors: u64,
    /// All disks and groups, in the order of `zpool status`.
    pub vdevs: Vec<Vdev>,
}

impl PoolStatus {
    /// Errors that the last scrub or resilver could not mend; `None` where it has not ended.
    pub fn scan_errors(&self) -> Option<u64> {
        let words: Vec<&str> = self.scan.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "errors")?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    }
}
