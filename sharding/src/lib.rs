//! Which shard a block belongs to, and the shards as one.
//!
//! A ring of virtual nodes with weights; a block's place comes from its digest through a keyed hash, so nobody can aim blocks at
//! one shard. The ring's epoch is a durable record, so that live changes can come later.

/// The shards of a node.
#[derive(Debug)]
pub struct ShardSet {
    _private: (),
}
