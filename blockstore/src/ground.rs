//! What a store must know of the file system under it, without knowing that file system (STORE 15).

use std::fmt::Debug;

use crate::error::Result;

/// Facts about the ground under one store, filled by its host. The default answers are those of a plain directory.
pub trait Ground: Send + Sync + Debug {
    /// Whether a flush reaches stable storage. `None` is not known. On ZFS `sync=disabled` is `Some(false)`, and then the store
    /// does not open as `strict` or `ordered` (STORE 14).
    fn honours_sync(&self) -> Option<bool> {
        Some(true)
    }

    /// Whether an overwrite lands in place, so that recycling a spent segment pays (not on ZFS).
    fn overwrites_in_place(&self) -> bool {
        true
    }

    /// Holes give space back in units of this many bytes, at multiples of it.
    fn hole_bytes(&self) -> u64 {
        4096
    }

    /// When the newest snapshot of this ground was taken, in nanoseconds since the Unix epoch; 0 for none. `None` is not known, and then
    /// reclaim only unlinks.
    fn newest_snapshot_unix_ns(&self) -> Option<u64> {
        Some(0)
    }

    /// Which snapshots hold how much of the space, for the reader of an error: gc gives nothing back of it. `None`: none that is known.
    fn held_by_snapshots(&self) -> Option<String> {
        None
    }

    /// Makes more space available where a delete, or the index, found none at all. `true`: it has done so now; `false`: there is nothing to lift, or it was lifted before.
    /// The host puts it back when there is room. May wait; is called again and again while the disk is full.
    fn lift_reserve(&self) -> Result<bool> {
        Ok(false)
    }
}

/// A directory on a file system that overwrites in place and knows no snapshots.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainGround;

impl Ground for PlainGround {}
