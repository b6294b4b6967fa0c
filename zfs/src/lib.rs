//! Typed ZFS.
//!
//! [`Zfs`] is what Basalt asks of ZFS; the rest of the house knows nothing else of it. Names are parsed once, at the edge
//! ([`Dataset`], [`Snapshot`], [`Bookmark`]); an [`Error`] says what was tried on what, of which [`Class`], what keeps it, and what to do.
//!
//! Engines:
//! - [`Cli`] runs `zfs` and `zpool`, of OpenZFS 2.1 to 2.4, by their arguments, never through a shell. A command that doesn't answer
//!   is not killed: its pool is fenced and the caller told.
//! - [`Model`] is ZFS in memory, deterministic from a seed, with faults to inject: for tests of what stands on this crate.
//!
//! The conformance suite (`tests/conformance.rs`) holds them to the same results and the same classes of errors, on real OpenZFS.
//!
//! Nothing forces: no `receive -F`, no `destroy -r` or `-R`, no `rollback -r`, no `unmount -f`. What has to go first goes first, by name.
//!
//! All is synchronous: every call ends by its deadline. What looks and then acts goes through [`Turns`].

mod cli;
mod delegation;
mod engine;
mod error;
mod events;
mod facts;
pub mod model;
mod name;
mod turns;

pub use cli::{Cli, CliOptions};
pub use delegation::{Delegation, Grant, Where, Who, grant_command};
pub use engine::{Base, DESTROY_SNAPSHOTS_MAX, ResumeToken, Stream, When, Zfs};
pub use error::{Class, Error, Holder, Operation, Result};
pub use events::{BlockPlace, DamagedFile, Event, EventKind};
pub use facts::{
    BookmarkEntry, DatasetEntry, Health, Hold, Kind, Listed, PoolEntry, PoolStatus, Property, Reach, Role, RowsOf,
    SnapshotEntry, SnapshotUse, Source, Vdev, Version,
};
pub use model::Model;
pub use name::{
    Bookmark, Dataset, Entity, HOLD_TAG_BYTES_MAX, HoldTag, NAME_BYTES_MAX, NESTING_MAX, NameError, POOL_BYTES_MAX,
    Pool, PropertyName, Snapshot,
};
pub use turns::{Turn, Turns, WAITING_MAX};
