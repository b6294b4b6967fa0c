//! The state plane: who wants what pinned where, and who holds it.
//!
//! [`PinLedger`] is what Basalt asks of it, with typed records: a [`Pin`] (a multihash wanted by an owner), a [`Placement`] (the same multihash at
//! one peer: what is wanted there and what is held), expiry, and operations that must happen once. Engines:
//! - [`Embedded`]: RocksDB in the node's own folder, durable. The default.
//! - [`CqlLedger`](cql::CqlLedger): ScyllaDB, shared by a fleet; Apache Cassandra stands in for it in tests.
//! - [`Model`]: in memory, the reference. For tests of what stands on this crate.
//!
//! [`Buffered`] stands before any of them and takes changes into a local [`Journal`] while the ledger is away.
//!
//! [`Deferred`] stands for a ledger that is still being opened, and counts what is asked of it; [`socket`] serves one to other processes of the host.
//!
//! One suite (`tests/suite`) holds them to the same results.
//!
//! # Generations
//! Every change names a [`Generation`], and the highest one of a record wins, whatever the order in which changes arrive, at every engine and
//! replica. So a change may be sent again after a timeout, a crash or a day in a queue: it happens once. That holds for [`FENCE_DAYS`]; what a
//! removal leaves behind to fence older changes is forgotten after that.
//!
//! Acknowledged is durable, and found by all lists. The plane is never between Kubo and a block.

mod bucket;
mod buffered;
mod codec;
pub mod cql;
mod deferred;
pub mod drift;
mod embedded;
mod error;
pub mod expiry;
mod generation;
mod inventory;
mod journal;
mod ledger;
pub mod metrics;
mod model;
mod name;
mod record;
pub mod socket;
pub mod transfer;

pub use bucket::{BUCKETS, Bucket, EXPIRY_SHARDS, ExpiryShard, PlaneKey, SLOT_SECONDS, Slot};
pub use buffered::{Buffered, Delivered, Standing};
pub use deferred::Deferred;
pub use embedded::{Embedded, EmbeddedOptions};
pub use error::{Class, Error, Result};
pub use generation::{Clock, Generation, SKEW_MAX};
pub use inventory::{Inventory, Settled};
pub use journal::{Journal, JournalOptions, Waiting};
pub use ledger::{Claim, Conditional, Cursor, PAGE_MAX, Page, PinLedger};
pub use model::{Fault, Model};
pub use name::{Multihash, NAME_BYTES_MAX, NameError, Operation, Owner, PEER_BYTES_MAX, Peer, PinName, TAGS_MAX, Tag};
pub use record::{
    Change, Expiry, Have, Pin, PinKey, Placement, RegisteredShard, Registration, SHARDS_MAX, WORD_BYTES_MAX, Want,
};

/// How long a removal fences older changes of the same record, in days. Nothing may sit in a queue for longer.
pub const FENCE_DAYS: u32 = 10;
