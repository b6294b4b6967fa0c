//! go-datastore semantics over one node's stores: `/blocks/<base32 multihash>` goes to the shards, every other key to the keyspace.
//!
//! Synchronous; many threads at once. What may wait for a flush has a `submit_` form whose ticket takes a callback, so that a
//! server holds no thread during it.

use std::path::Path;

use basalt_blockstore::{Durability, Error, Multihash, Options as StoreOptions, store::Env};
pub use basalt_blockstore::{ErrorKind, Result, store::Ticket};

mod key;
mod query;

pub use key::Key;
pub use query::{Compare, Entry, Filter, Order, Query, QueryCursor};

/// How a node's stores are laid out and bounded; made from the node's config.
#[derive(Clone, Debug)]
pub struct Options {
    /// What an acknowledgement promises (STORE 11 to 13).
    pub durability: Durability,
    /// Options of every shard and of the keyspace; their `durability` is set from the one above.
    pub store: StoreOptions,
    /// Prefixes whose keys need neither barrier nor flush in `ordered` (STORE 12e).
    pub unordered_prefixes: Vec<String>,
    /// Largest batch, in bytes of keys and values.
    pub batch_bytes_max: usize,
    /// Most entries that a query may sort in memory.
    pub sort_entries_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            durability: Durability::Strict,
            store: StoreOptions::default(),
            unordered_prefixes: ["/providers", "/provider", "/dht", "/local/temp_bootstrap_peers"]
                .map(String::from)
                .to_vec(),
            batch_bytes_max: 256 << 20,
            sort_entries_max: 1 << 20,
        }
    }
}

/// One operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOp {
    /// Stores a value.
    Put(Key, Vec<u8>),
    /// Removes a key.
    Delete(Key),
}

/// Where the parts of a node's data lie.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Folder of each shard, in the order of their ids, with its weight on the ring.
    pub shards: Vec<(std::path::PathBuf, u32)>,
    /// Folder of the keyspace.
    pub keyspace: std::path::PathBuf,
    /// Key of the ring's hash, made at init, kept for ever.
    pub ring_key: [u8; 16],
}

/// A node's datastore; see the crate's page.
#[derive(Debug)]
pub struct Datastore {
    _private: (),
}

impl Datastore {
    /// Opens all stores of a layout; creates what is not there yet.
    pub fn open(layout: &Layout, env: &Env, options: Options) -> Result<Datastore> {
        let _ = (layout, env, options);
        todo!()
    }

    /// Opens for reading only (STORE 23).
    pub fn open_read_only(layout: &Layout, env: &Env, options: Options) -> Result<Datastore> {
        let _ = (layout, env, options);
        todo!()
    }

    /// The value of a key, into `buffer` (replaced).
    pub fn get(&self, key: &Key, buffer: &mut Vec<u8>) -> Result<()> {
        let _ = (key, buffer);
        todo!()
    }

    /// Size of a value in bytes, `None` where the key is absent. Never reads a block.
    pub fn size(&self, key: &Key) -> Result<Option<u64>> {
        let _ = key;
        todo!()
    }

    /// Stores a value. A block that is there already costs one look-up; `ttl_ms` is `Unsupported` for a block.
    pub fn submit_put(&self, key: &Key, value: &[u8], ttl_ms: Option<u64>) -> Result<Ticket> {
        let _ = (key, value, ttl_ms);
        todo!()
    }

    /// [`Datastore::submit_put`], waited for.
    pub fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.submit_put(key, value, None)?.wait()
    }

    /// Removes a key; absent is fine.
    pub fn submit_delete(&self, key: &Key) -> Result<Ticket> {
        let _ = key;
        todo!()
    }

    /// Applies a batch: reduced to the last operation of each key; block puts, then metadata (atomic at a crash), then block deletes (STORE 13).
    /// May wait for the barrier between them on the caller's thread.
    pub fn submit_batch(&self, ops: Vec<BatchOp>) -> Result<Ticket> {
        let _ = ops;
        todo!()
    }

    /// Starts a query. Pages are pulled by [`QueryCursor::next_page`].
    pub fn query(&self, query: Query) -> Result<QueryCursor<'_>> {
        let _ = query;
        todo!()
    }

    /// Makes every put and delete under `prefix` that returned before this call durable (all of the node, in fact).
    pub fn submit_sync(&self, prefix: &Key) -> Result<Ticket> {
        let _ = prefix;
        todo!()
    }

    /// Live bytes of blocks and metadata, exact, O(1); falls at once on delete (STORE 10).
    pub fn disk_usage(&self) -> u64 {
        todo!()
    }

    /// When a key is gone by itself, in milliseconds since the Unix epoch; `None` for never.
    pub fn expiration(&self, key: &Key) -> Result<Option<u64>> {
        let _ = key;
        todo!()
    }

    /// Gives a key that is there a new time to live.
    pub fn submit_set_ttl(&self, key: &Key, ttl_ms: u64) -> Result<Ticket> {
        let _ = (key, ttl_ms);
        todo!()
    }

    /// Cheap self-check: every store is open, unfenced and answers.
    pub fn check(&self) -> Result<()> {
        todo!()
    }

    /// Reads everything back; the error names how many keys are damaged and the first of them.
    pub fn scrub(&self) -> Result<()> {
        todo!()
    }

    /// Reclaims what pays now.
    pub fn collect_garbage(&self) -> Result<()> {
        todo!()
    }

    /// Gauges of each shard, in order, then of the keyspace.
    pub fn stats(&self) -> DatastoreStats {
        todo!()
    }

    /// The shards, for verify, import, export and status.
    pub fn shards(&self) -> &basalt_sharding::ShardSet {
        todo!()
    }

    /// Syncs and closes everything; later calls are `Closed`.
    pub fn close(&self) -> Result<()> {
        todo!()
    }
}

/// Gauges of a datastore.
#[derive(Clone, Debug, Default)]
pub struct DatastoreStats {
    /// Of each shard, in the order of their ids.
    pub shards: Vec<basalt_blockstore::store::Stats>,
    /// Of the keyspace.
    pub keyspace: basalt_blockstore::store::Stats,
}

fn _assert_used(_: &Path, _: &Error, _: &Multihash) {}
