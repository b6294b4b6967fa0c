//! One shard of a Basalt node: an append-only log of blocks with a compact index.
//!
//! Blocks are immutable and content-addressed, so there is nothing to update in place: the log is the truth, and the index can
//! always be rebuilt from it. `docs/format.md` gives every byte, and what is durable when.
//!
//! - [`Shard`] keeps blocks by [`Multihash`]: put if absent, get, delete, enumerate.
//! - [`Store`] is the log-structured store beneath it, for keys of any kind; the keyspace of `basalt-datastore` stands on it too,
//!   so there is one recovery, one order and one crash search for blocks and pins.
//! - [`disk`] is the only way to files, threads and clocks, so that a test can fail or lose any operation.
//!
//! No async, no ZFS: what the store must know of its ground comes through [`ground::Ground`].

pub mod disk;
pub mod ground;
pub mod index;
pub mod store;

mod error;
mod multihash;
mod options;
mod shard;

pub use error::{Error, ErrorKind, Result};
pub use multihash::{MULTIHASH_BYTES_MAX, Multihash};
pub use options::{Durability, OnCorrupt, Options};
pub use shard::Shard;
pub use store::Store;

mod interim {
    //! INTERIM, until the log lands: an environment that nothing uses yet.
    use std::{io, path::Path, sync::Arc, time::Duration};

    use crate::{disk::*, index::*, store::Env};

    impl Disk for OsDisk {
        fn create(&self, _: &Path) -> io::Result<Arc<dyn File>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn open(&self, _: &Path, _: bool) -> io::Result<Arc<dyn File>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
            Ok(())
        }
        fn remove(&self, _: &Path) -> io::Result<()> {
            Ok(())
        }
        fn list(&self, _: &Path) -> io::Result<Vec<String>> {
            Ok(Vec::new())
        }
        fn create_dir(&self, _: &Path) -> io::Result<()> {
            Ok(())
        }
        fn sync_dir(&self, _: &Path) -> io::Result<()> {
            Ok(())
        }
        fn available(&self, _: &Path) -> io::Result<u64> {
            Ok(1 << 40)
        }
    }
    impl Clock for OsClock {
        fn monotonic_ns(&self) -> u64 {
            0
        }
        fn unix_ms(&self) -> u64 {
            0
        }
        fn threads(&self) -> bool {
            true
        }
        fn sleep(&self, _: Duration) {}
    }
    #[derive(Debug)]
    struct NoIndex;
    impl IndexEngine for NoIndex {
        fn open(&self, _: &Path, _: bool) -> crate::Result<Arc<dyn Index>> {
            Err(crate::Error::not_found())
        }
        fn destroy(&self, _: &Path) -> crate::Result<()> {
            Ok(())
        }
    }
    pub(crate) fn env() -> Env {
        Env {
            disk: Arc::new(OsDisk),
            clock: Arc::new(OsClock),
            index: Arc::new(NoIndex),
            ground: Arc::new(crate::ground::PlainGround),
            sequence: Arc::default(),
        }
    }
}
