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

mod buffer;
mod digest;
mod error;
mod multihash;
mod options;
mod shard;
pub mod sync;

pub use buffer::{Buffer, FixedBuffer};
pub use digest::{Digest, verify_digest};
pub use error::{Error, ErrorKind, Result};
pub use multihash::{MULTIHASH_BYTES_MAX, Multihash};
pub use options::{Durability, OnCorrupt, Options};
pub use shard::Shard;
pub use store::Store;
