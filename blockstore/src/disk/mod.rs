//! The only way from the data path to files, threads and clocks.

use std::{fmt::Debug, io, path::Path, sync::Arc};

mod os;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub use os::{OsClock, OsDisk, OsEntropy};

/// Alignment of reads through [`Disk::open_direct`], in bytes: the largest block that drives have.
pub const DIRECT_BYTES: usize = 4096;

/// Files and folders. Names of files are durable only after [`Disk::sync_dir`] of their folder.
pub trait Disk: Send + Sync + Debug {
    /// Creates a file that must not exist, open for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens a file; `write` for both.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>>;
    /// Opens a file for reading past the page cache, where the file system can: what is read is then what is on the disk. Memory, offsets and lengths of
    /// reads are multiples of [`DIRECT_BYTES`].
    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open(path, false)
    }
    /// Renames, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names of the files in a folder, in no order; `NotFound` where there is no folder.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a folder and those above it, durably.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that an unprivileged writer may still use.
    fn available(&self, dir: &Path) -> io::Result<u64>;
}

/// An open file. All methods are positioned and may run side by side.
pub trait File: Send + Sync + Debug {
    /// Fills `buffer` from `offset`; returns how many bytes there were.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Fills `head`, then `body`, in one call; returns how many bytes there were.
    fn read_two_at(&self, head: &mut [u8], body: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `parts`, one behind the other.
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;
    /// Makes written data and the length durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts or extends.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Reserves space behind the end without changing the length; unsupported is fine.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Gives the whole file system blocks within a range back; they read as zeros.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Bytes that the file holds on disk.
    fn allocated_bytes(&self) -> io::Result<u64>;
}

/// Time and background work.
pub trait Clock: Send + Sync + Debug {
    /// Nanoseconds since some fixed point; never goes back.
    fn monotonic_ns(&self) -> u64;
    /// Milliseconds since the Unix epoch.
    fn unix_ms(&self) -> u64;
    /// Whether background work runs on threads of its own. A simulation says no and steps it.
    fn threads(&self) -> bool;
}

/// Random bytes for ids and nonces.
pub trait Entropy: Send + Sync + Debug {
    /// Fills with bytes that nobody can guess.
    fn fill(&self, bytes: &mut [u8]);
}
