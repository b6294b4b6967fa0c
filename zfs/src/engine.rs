//! The trait that every engine has, and what it takes.

use std::{
    collections::BTreeSet,
    fmt,
    io::{Read, Write},
    ops::ControlFlow,
};

use crate::{
    Bookmark, BookmarkEntry, Class, DamagedFile, Dataset, DatasetEntry, Delegation, Entity, Error, Event, Hold,
    HoldTag, Listed, Operation, Pool, PoolEntry, PoolStatus, Property, PropertyName, Reach, Result, RowsOf, Snapshot,
    SnapshotEntry, SnapshotUse, Version,
};

/// When a snapshot with holds or clones is destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// Now, or the call fails.
    Now,
    /// With its last hold or clone, if it has any.
    Free,
}

/// What a stream starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// A snapshot of the same dataset.
    Snapshot(Snapshot),
    /// A bookmark of one.
    Bookmark(Bookmark),
}

/// Which stream to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// A snapshot, whole or from a base. With `-L` and `-c`, which must never change between the streams of one target; a raw one with `-w`.
    Snapshot {
        /// Up to where.
        snapshot: Snapshot,
        /// From where; `None` sends all.
        base: Option<Base>,
        /// Encrypted blocks as they are. Needs no key, and the target is encrypted by the same key for ever.
        raw: bool,
    },
    /// What is left of a stream whose receiver gave this token.
    Resume(ResumeToken),
}

/// What a receiver gives for a stream that ended too soon, from its property `receive_resume_token`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ResumeToken(String);

impl ResumeToken {
    /// Takes a token as ZFS prints it: `1-` and hexadecimal digits and dashes. `None` for anything else.
    pub fn parse(text: &str) -> Option<ResumeToken> {
        let plausible = text.len() <= 1 << 16
            && text.starts_with(|c: char| c.is_ascii_digit())
            && text.contains('-')
            && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        plausible.then(|| ResumeToken(text.to_owned()))
    }

    /// The token as ZFS prints it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResumeToken({} bytes)", self.0.len())
    }
}

/// Typed ZFS. Calls block until ZFS answers or a deadline passes, never longer, so from async code they belong on a blocking thread.
///
/// **Atomic** is what ZFS does in one transaction group: [`snapshot`](Zfs::snapshot) and [`destroy_snapshots`](Zfs::destroy_snapshots) do all or
/// nothing. What takes several calls (look, then act) goes through [`Turns`](crate::Turns). A change that returned is in memory of the pool and is on
/// disk with the next transaction group, some seconds later at most; snapshots, holds and the like are on disk when they return.
///
/// Nothing here forces: no `receive -F`, no `destroy -r` or `-R`, no `rollback -r`, no `unmount -f`.
pub trait Zfs: Send + Sync {
    /// A word for the engine, for logs: `cli`, `model`.
    fn engine(&self) -> &'static str;

    /// Which ZFS this is.
    fn version(&self) -> Result<Version>;

    /// All imported pools, by name.
    fn pools(&self) -> Result<Vec<PoolEntry>>;

    /// State, disks and errors of a pool.
    fn pool_status(&self, pool: &Pool) -> Result<PoolStatus>;

    /// Datasets from `root` on, by name. Cheap.
    fn datasets(&self, root: &Dataset, reach: Reach) -> Result<Vec<DatasetEntry>>;

    /// The snapshots of one dataset, oldest first. Cheap at any number: ZFS doesn't open them.
    fn snapshots(&self, dataset: &Dataset) -> Result<Vec<SnapshotEntry>>;

    /// The same with what each costs and what keeps it. Reads every snapshot: not for loops.
    fn snapshot_uses(&self, dataset: &Dataset) -> Result<Vec<SnapshotUse>>;

    /// Some properties of several datasets of one pool, or of their snapshots, by one command, in the order of the names; datasets that aren't there are
    /// left out. For what is looked at again and again.
    fn listing(&self, datasets: &[Dataset], rows: RowsOf, names: &[PropertyName]) -> Result<Vec<Listed>>;

    /// The files of a pool that have errors which it can't mend, of snapshots too, as they are known since the last scrub but one. Root only.
    fn damaged_files(&self, pool: &Pool) -> Result<Vec<DamagedFile>>;

    /// Calls `to` with the events of all pools: first with those that the kernel still keeps, the oldest first, then with each as it comes, and with `None`
    /// where none came for a second. Lasts until `to` breaks or the command ends, which is an error. Root only. One at a time for an engine
    /// ([`Fenced`](crate::Class::Fenced)).
    fn events(&self, to: &mut dyn FnMut(Option<Event>) -> ControlFlow<()>) -> Result<()>;

    /// When a snapshot of the dataset was last made, destroyed or renamed, in seconds since the Unix epoch: the same value twice, and older than
    /// a second at the first time, means that [`snapshots`](Zfs::snapshots) gives the same. `None` where ZFS can't tell (before 2.2, or never).
    fn snapshots_changed_unix_s(&self, dataset: &Dataset) -> Result<Option<u64>>;

    /// The bookmarks of one dataset, oldest first.
    fn bookmarks(&self, dataset: &Dataset) -> Result<Vec<BookmarkEntry>>;

    /// The holds on a snapshot, by tag.
    fn holds(&self, snapshot: &Snapshot) -> Result<Vec<Hold>>;

    /// Properties, in the order of their names; what isn't set and has no default is left out. An empty `names` asks for all.
    fn properties(&self, entity: &Entity, names: &[PropertyName]) -> Result<Vec<Property>>;

    /// Who may do what on a dataset (`zfs allow`), that of the datasets above included.
    fn delegation(&self, dataset: &Dataset) -> Result<Delegation>;

    /// Makes a filesystem and leaves it unmounted; its parent must exist. Not idempotent: [`Exists`](crate::Class::Exists).
    fn create(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()>;

    /// Destroys a dataset that has no snapshots, no children and no users.
    fn destroy(&self, dataset: &Dataset) -> Result<()>;

    /// Renames a dataset within its pool, with all that lies in it; the new parent must exist. To its own name it is nothing.
    fn rename(&self, dataset: &Dataset, to: &Dataset) -> Result<()>;

    /// Sets properties, in one call but not atomically.
    fn set(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()>;

    /// Takes the value of the parent, or the default.
    fn inherit(&self, dataset: &Dataset, name: &PropertyName) -> Result<()>;

    /// Takes snapshots of datasets of one pool in one transaction: all or none, one instant. `properties` must be a user's.
    fn snapshot(&self, snapshots: &[Snapshot], properties: &[(PropertyName, String)]) -> Result<()>;

    /// Renames a snapshot of a dataset; to its own name it is nothing.
    fn rename_snapshot(&self, snapshot: &Snapshot, to: &Snapshot) -> Result<()>;

    /// Destroys snapshots of one dataset in one transaction: all or none. Those that aren't there any more don't count, unless none is there
    /// ([`NotFound`](crate::Class::NotFound)).
    fn destroy_snapshots(&self, dataset: &Dataset, snapshots: &[Snapshot], when: When) -> Result<()>;

    /// Makes a bookmark of a snapshot of the same dataset.
    fn bookmark(&self, snapshot: &Snapshot, bookmark: &Bookmark) -> Result<()>;

    /// Destroys a bookmark.
    fn destroy_bookmark(&self, bookmark: &Bookmark) -> Result<()>;

    /// Holds a snapshot: it can't be destroyed until the tag is released.
    fn hold(&self, snapshot: &Snapshot, tag: &HoldTag) -> Result<()>;

    /// Releases a hold; a snapshot that waits for it is destroyed with the last one.
    fn release(&self, snapshot: &Snapshot, tag: &HoldTag) -> Result<()>;

    /// Sets a dataset back to its youngest snapshot; to an older one is refused as [`Busy`](crate::Class::Busy) and names the younger ones.
    fn rollback(&self, snapshot: &Snapshot) -> Result<()>;

    /// Makes a writable clone in the same pool and leaves it unmounted.
    fn clone_snapshot(
        &self,
        snapshot: &Snapshot,
        dataset: &Dataset,
        properties: &[(PropertyName, String)],
    ) -> Result<()>;

    /// Makes a clone the owner of the snapshots that it shares with its origin, which becomes the clone.
    fn promote(&self, dataset: &Dataset) -> Result<()>;

    /// Mounts a filesystem at its mountpoint. Root only, on Linux.
    fn mount(&self, dataset: &Dataset) -> Result<()>;

    /// Unmounts a filesystem that nobody uses. Root only, on Linux.
    fn unmount(&self, dataset: &Dataset) -> Result<()>;

    /// Loads the key of an encryption root from its `keylocation`, or the given one.
    fn load_key(&self, dataset: &Dataset, key: Option<&[u8]>) -> Result<()>;

    /// Forgets the key of an encryption root that isn't mounted.
    fn unload_key(&self, dataset: &Dataset) -> Result<()>;

    /// About how many bytes [`send`](Zfs::send) will write.
    fn send_size_bytes(&self, stream: &Stream) -> Result<u64>;

    /// Writes a stream. It ends early with [`Io`](crate::Class::Io) if `to` fails, and with [`Stuck`](crate::Class::Stuck) if ZFS gives nothing for
    /// the stall limit.
    fn send(&self, stream: &Stream, to: &mut dyn Write) -> Result<()>;

    /// Receives a stream into a dataset, resumably, unmounted, as it comes; `properties` are set on the first one. What the target has beyond the
    /// base of the stream makes it fail ([`Diverged`](crate::Class::Diverged)); nothing is rolled back or destroyed for it.
    fn receive(&self, dataset: &Dataset, properties: &[(PropertyName, String)], from: &mut dyn Read) -> Result<()>;

    /// The token that a receive which ended too soon has left, if any.
    fn resume_token(&self, dataset: &Dataset) -> Result<Option<ResumeToken>>;

    /// Drops what a receive which ended too soon has left.
    fn abort_receive(&self, dataset: &Dataset) -> Result<()>;
}

/// How many snapshots [`Zfs::destroy_snapshots`] takes at once: more stall a pool, and don't fit into one argument.
pub const DESTROY_SNAPSHOTS_MAX: usize = 100;

/// Arguments that make no sense are refused before any engine sees them, so that all refuse alike.
pub(crate) fn check_snapshot(snapshots: &[Snapshot], properties: &[(PropertyName, String)]) -> Result<Pool> {
    let subject = snapshots.iter().map(Snapshot::as_str).collect::<Vec<_>>().join(" ");
    let refuse = |why: &str| Err(Error::new(Operation::Snapshot, &subject, Class::Invalid, why));
    let Some(first) = snapshots.first() else { return refuse("no snapshot is named") };
    if snapshots.iter().any(|s| s.dataset().pool() != first.dataset().pool()) {
        return refuse("they are of several pools, and one instant is of one pool");
    }
    let datasets: BTreeSet<Dataset> = snapshots.iter().map(Snapshot::dataset).collect();
    if datasets.len() < snapshots.len() {
        return refuse("a dataset is named twice");
    }
    if properties.iter().any(|(name, _)| !name.is_user()) {
        return refuse("a snapshot can only be given properties of users, with a colon in their names");
    }
    check_properties(Operation::Snapshot, &subject, properties)?;
    Ok(first.dataset().pool())
}

/// Datasets of one listing: all of the pool that this returns, `None` for none at all. One command asks one pool, so that only that one is fenced.
pub(crate) fn check_listing(datasets: &[Dataset]) -> Result<Option<Pool>> {
    let Some(pool) = datasets.first().map(Dataset::pool) else { return Ok(None) };
    match datasets.iter().find(|dataset| dataset.pool() != pool) {
        Some(foreign) => Err(Error::new(Operation::List, foreign, Class::Invalid, format!("it is not of {pool}"))),
        None => Ok(Some(pool)),
    }
}

pub(crate) fn check_destroy(dataset: &Dataset, snapshots: &[Snapshot]) -> Result<()> {
    let refuse = |why: String| Err(Error::new(Operation::DestroySnapshots, dataset, Class::Invalid, why));
    if snapshots.is_empty() || snapshots.len() > DESTROY_SNAPSHOTS_MAX {
        return refuse(format!("{} snapshots are named, one to {DESTROY_SNAPSHOTS_MAX} may be", snapshots.len()));
    }
    match snapshots.iter().find(|s| s.dataset() != *dataset) {
        Some(foreign) => refuse(format!("{foreign} is not of this dataset")),
        None => Ok(()),
    }
}

/// Bytes of the value of a property (`ZAP_MAXVALUELEN`).
const PROPERTY_BYTES_MAX: usize = 8191;

/// A value with a line break or a NUL can be set and never listed again.
pub(crate) fn check_properties(
    operation: Operation,
    subject: impl fmt::Display,
    properties: &[(PropertyName, String)],
) -> Result<()> {
    for (name, value) in properties {
        if value.len() > PROPERTY_BYTES_MAX || value.chars().any(char::is_control) {
            let why = format!("the value of {name} has a control character or more than {PROPERTY_BYTES_MAX} bytes");
            return Err(Error::new(operation, subject, Class::Invalid, why));
        }
    }
    Ok(())
}

pub(crate) fn check_rename_snapshot(snapshot: &Snapshot, to: &Snapshot) -> Result<()> {
    if snapshot.dataset() != to.dataset() {
        return Err(Error::new(
            Operation::RenameSnapshot,
            snapshot,
            Class::Invalid,
            format!("{to} is of another dataset"),
        ));
    }
    Ok(())
}

pub(crate) fn check_bookmark(snapshot: &Snapshot, bookmark: &Bookmark) -> Result<()> {
    if snapshot.dataset() != bookmark.dataset() {
        return Err(Error::new(
            Operation::Bookmark,
            snapshot,
            Class::Invalid,
            format!("{bookmark} is of another dataset"),
        ));
    }
    Ok(())
}
