//! Which shard a block belongs to, and the shards as one.
//!
//! A [`Ring`] of virtual nodes with weights; a block's place comes from its digest through a keyed hash, so nobody can aim blocks at
//! one shard. The ring's [`Epoch`] is a durable record, so that live changes can come later, and so that a folder that is missing,
//! foreign or in another's place is refused by name. [`ShardSet`] opens the shards and works over all of them.

mod epoch;
mod ring;
mod set;

pub use epoch::{Epoch, Holder, Member, RECORD_DIR, RECORD_FILE, Record, ShardState};
pub use ring::{POINTS_MAX, POINTS_PER_WEIGHT, Ring, WEIGHT_MAX};
pub use set::{Hold, ShardSet, Walk};
