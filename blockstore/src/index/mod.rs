//! The index behind a narrow trait: an ordered map whose writes become durable in order, and only at a flush.

use std::{fmt::Debug, path::Path, sync::Arc};

use crate::error::Result;

pub(crate) mod overlay;
mod rocks;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub use rocks::RocksEngine;

/// One change of an index: a key, and its new value or `None` to remove it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// Makes indexes. The real one is RocksDB; the simulated one has RocksDB's promise and no more.
pub trait IndexEngine: Send + Sync + Debug {
    /// Opens or creates the index in a folder.
    fn open(&self, dir: &Path, read_only: bool) -> Result<Arc<dyn Index>>;
    /// Removes all trace of an index, before a rebuild.
    fn destroy(&self, dir: &Path) -> Result<()>;
}

/// An ordered map of bytes without a log of its own. After a crash it holds some prefix of the batches written, at least all up
/// to the last flush; or it is lost or damaged, which the owner mends from its log.
pub trait Index: Send + Sync + Debug {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Applies changes in one batch: all or nothing at a crash. `None` removes.
    fn write(&self, changes: &[Change]) -> Result<()>;
    /// Makes every batch written so far durable.
    fn flush(&self) -> Result<()>;
    /// Calls `each` with pairs in order from `from` (inclusive) until it returns `false` or the map ends.
    fn scan(&self, from: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()>;
}
