//! go-datastore semantics over one node's stores: `/blocks/<base32 multihash>` goes to the shards, every other key to the keyspace.
//!
//! Synchronous; many threads at once. What may wait for a flush has a `submit_` form whose ticket takes a callback, so that a
//! server holds no thread during it.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

pub use basalt_blockstore::{Buffer, Error, ErrorKind, FixedBuffer, Result, store::Ticket};
use basalt_blockstore::{
    Durability, MULTIHASH_BYTES_MAX, Multihash, Options as StoreOptions, store::Env, sync::MutexGuard,
};
use basalt_sharding::ShardSet;

mod batch;
mod key;
mod keyspace;
mod observer;
mod order;
mod query;
mod scrub;
mod watch;

use batch::Plan;
pub use key::{KEY_BYTES_MAX, Key};
use keyspace::{Change, Keyspace};
pub use observer::KeyObserver;
use observer::Observed;
use order::{Barrier, Job, Later, Need};
pub use query::{Compare, Entry, Filter, Order, Query, QueryCursor};
use watch::Watch;

/// How a node's stores are laid out and bounded; made from the node's config.
#[derive(Clone, Debug)]
pub struct Options {
    /// What an acknowledgement promises (STORE 11 to 13).
    pub durability: Durability,
    /// Options of every shard and of the keyspace. Their `durability` is set from the one above, and some are for one of them only: `key_bytes_max` bounds
    /// keys of the keyspace; `verify_on_put` and `corrupt` are for blocks (damage in the keyspace is always an error).
    pub store: StoreOptions,
    /// Prefixes whose keys need neither barrier nor flush in `ordered` (STORE 12e): a key and what is beneath it, or with a `*` at the end
    /// every key that begins so.
    pub unordered_prefixes: Vec<String>,
    /// Largest batch, in bytes of keys and values.
    pub batch_bytes_max: usize,
    /// Most entries that a query may sort in memory.
    pub sort_entries_max: usize,
    /// Most bytes of values that a query may hold to sort by value.
    pub sort_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            durability: Durability::Strict,
            store: StoreOptions::default(),
            unordered_prefixes: ["/providers", "/provider*", "/dht", "/local/temp_bootstrap_peers"]
                .map(String::from)
                .to_vec(),
            batch_bytes_max: 256 << 20,
            sort_entries_max: 1 << 20,
            sort_bytes_max: 256 << 20,
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
    pub shards: Vec<(PathBuf, u32)>,
    /// Folder of the keyspace; the ring's epoch record stands there too.
    pub keyspace: PathBuf,
    /// Key of the ring's hash, made at init, kept for ever.
    pub ring_key: [u8; 16],
}

/// A node's datastore; see the crate's page.
#[derive(Debug)]
pub struct Datastore {
    stores: Arc<Stores>,
    /// Orders writes behind others for callers that must not be held; `None` where there are no background threads, or nothing to order.
    later: Option<Later>,
    /// Tells waiters when a disk does not answer; `None` where there are no background threads, or no writes.
    watch: Option<Watch>,
}

/// The stores of a node, and the order between them.
#[derive(Debug)]
struct Stores {
    shards: ShardSet,
    keyspace: Keyspace,
    barrier: Barrier,
    options: Options,
    is_read_only: bool,
    is_closed: AtomicBool,
    /// Holds that are there or asked for.
    holds: AtomicUsize,
    /// Bytes that queries sort at the moment.
    sorting_bytes: AtomicUsize,
    observed: OnceLock<Arc<Observed>>,
}

impl Stores {
    fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "the datastore has been closed; open the node again"));
        }
        Ok(())
    }

    fn watch(&self) {
        self.shards.watch();
        self.keyspace.store().watch();
    }

    fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        if self.is_read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the datastore was opened for reading only"));
        }
        Ok(())
    }

    /// Whether a put is of a block that a store for reading only has: nothing is to be written then. Kubo puts the empty folder at every start, there or not.
    fn is_there_read_only(&self, key: &Key) -> Result<bool> {
        self.check_open()?;
        match key.block() {
            Some(block) if self.is_read_only => self.shards.has(&block),
            _ => Ok(false),
        }
    }

    /// Refuses what is above a limit, by the limit's name.
    fn check_size(&self, key: &Key, value_bytes: usize) -> Result<()> {
        let limits = &self.options.store;
        let key_bytes = key.as_str().len();
        let refuse = |what: &str, bytes: usize, max: usize, name: &str| {
            let message = format!("{what} has {bytes} bytes, more than the {max} that {name} allows");
            Err(Error::new(ErrorKind::TooLarge, message))
        };
        if value_bytes > limits.value_bytes_max {
            return refuse(&format!("the value of {key}"), value_bytes, limits.value_bytes_max, "value_bytes_max");
        }
        // A block's key is bounded by what a multihash may be.
        if key_bytes > limits.key_bytes_max && key.block().is_none() {
            return refuse(&format!("key {key}"), key_bytes, limits.key_bytes_max, "key_bytes_max");
        }
        Ok(())
    }

    /// Whether a key is too long to be there, so that removing it has nothing to do.
    fn is_never_there(&self, key: &Key) -> bool {
        key.as_str().len() > self.options.store.key_bytes_max && key.block().is_none()
    }

    /// Writes changes of the keyspace, and tells who looks on.
    fn apply(&self, changes: Vec<Change>) -> Result<Ticket> {
        let written = self.keyspace.apply(&changes);
        match self.observed.get() {
            Some(observed) => observed.tell_after(changes, written),
            None => written,
        }
    }

    /// Whether these changes must wait for the blocks acknowledged before them. An error where they can't go on at all: a shard that is fenced may have lost
    /// what they refer to (STORE 2). In `strict` it can't: what it acknowledged is durable.
    fn must_pass_barrier(&self, changes: &[Change]) -> Result<bool> {
        if self.options.durability == Durability::Strict || self.keyspace.is_unordered(changes) {
            return Ok(false);
        }
        if let Some(err) = self.shards.fenced() {
            return Err(err.context("metadata can't change while blocks may be missing"));
        }
        Ok(self.options.durability == Durability::Ordered)
    }
}

impl Datastore {
    /// Opens all stores of a layout; creates what is not there yet.
    pub fn open(layout: &Layout, env: &Env, options: Options) -> Result<Datastore> {
        Datastore::open_as(layout, env, options, false)
    }

    /// Opens for reading only (STORE 23).
    pub fn open_read_only(layout: &Layout, env: &Env, options: Options) -> Result<Datastore> {
        Datastore::open_as(layout, env, options, true)
    }

    fn open_as(layout: &Layout, env: &Env, options: Options, is_read_only: bool) -> Result<Datastore> {
        let durability = options.durability;
        // What open must replay is bounded for the node (STORE 7), so each log has its share.
        let logs = layout.shards.len() as u64 + 1;
        let mut options = options;
        options.store.replay_bytes_max = (options.store.replay_bytes_max / logs).max(1);
        options.store.replay_records_max = (options.store.replay_records_max / logs).max(1);
        // `key_bytes_max` is for the keyspace; a block's key is bounded by itself.
        let shard_options = StoreOptions { durability, key_bytes_max: MULTIHASH_BYTES_MAX, ..options.store.clone() };
        let open = if is_read_only { ShardSet::open_read_only } else { ShardSet::open };
        let shards = open(&layout.shards, &layout.keyspace, layout.ring_key, env, &shard_options)?;
        let keyspace = Keyspace::open(&layout.keyspace, env, &options, is_read_only)?;
        let stores = Arc::new(Stores {
            shards,
            keyspace,
            barrier: Barrier::default(),
            options,
            is_read_only,
            is_closed: AtomicBool::new(false),
            holds: AtomicUsize::new(0),
            sorting_bytes: AtomicUsize::new(0),
            observed: OnceLock::new(),
        });
        let orders = !is_read_only && durability != Durability::Strict && env.clock.threads();
        let later = if orders { Some(Later::start(stores.clone())?) } else { None };
        let watches = !is_read_only && env.clock.threads();
        let watch = if watches { Some(Watch::start(stores.clone())?) } else { None };
        Ok(Datastore { stores, later, watch })
    }

    /// The value of a key, into `buffer` (replaced).
    pub fn get(&self, key: &Key, buffer: &mut dyn Buffer) -> Result<()> {
        self.stores.check_open()?;
        match key.block() {
            Some(block) => self.stores.shards.get(&block, buffer),
            None => self.stores.keyspace.get(key, buffer).map(|_| ()),
        }
    }

    /// Size of a value in bytes, `None` where the key is absent. Never reads a block.
    pub fn size(&self, key: &Key) -> Result<Option<u64>> {
        self.stores.check_open()?;
        let size = match key.block() {
            Some(block) => self.stores.shards.size(&block)?,
            None => self.stores.keyspace.meta(key)?.map(|meta| meta.size),
        };
        Ok(size.map(u64::from))
    }

    /// Whether a key is there. Never reads a block.
    pub fn has(&self, key: &Key) -> Result<bool> {
        Ok(self.size(key)?.is_some())
    }

    /// Stores a value. A block that is there already costs one look-up; `ttl_ms` is `Unsupported` for a block.
    pub fn submit_put(&self, key: &Key, value: &[u8], ttl_ms: Option<u64>) -> Result<Ticket> {
        if ttl_ms.is_none() && self.stores.is_there_read_only(key)? {
            return Ok(Ticket::ready(Ok(())));
        }
        self.stores.check_writable()?;
        self.stores.check_size(key, value.len())?;
        match (key.block(), ttl_ms) {
            (Some(_), Some(_)) => Err(no_ttl(key)),
            (Some(block), None) => self.stores.shards.submit_put(&[(&block, value)]),
            (None, ttl_ms) => self.submit_changes(vec![self.put_change(key, value, ttl_ms)]),
        }
    }

    /// [`Datastore::submit_put`], waited for.
    pub fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        if self.stores.is_there_read_only(key)? {
            return Ok(());
        }
        self.stores.check_writable()?;
        self.stores.check_size(key, value.len())?;
        match key.block() {
            Some(block) => self.stores.shards.put(&block, value),
            None => self.change(&[self.put_change(key, value, None)]),
        }
    }

    fn put_change(&self, key: &Key, value: &[u8], ttl_ms: Option<u64>) -> Change {
        let expires_unix_ms = ttl_ms.map_or(0, |ttl_ms| self.stores.keyspace.expiry(ttl_ms));
        Change::Put { key: key.clone(), value: value.to_vec(), expires_unix_ms }
    }

    /// Removes a key; absent is fine.
    pub fn submit_delete(&self, key: &Key) -> Result<Ticket> {
        self.stores.check_writable()?;
        match key.block() {
            Some(block) => self.submit_block_deletes(vec![block]),
            None if self.stores.is_never_there(key) => Ok(Ticket::ready(Ok(()))),
            None => self.submit_changes(vec![Change::Delete { key: key.clone() }]),
        }
    }

    /// [`Datastore::submit_delete`], waited for.
    pub fn delete(&self, key: &Key) -> Result<()> {
        self.stores.check_writable()?;
        match key.block() {
            Some(block) => self.delete_blocks(&[block]),
            None if self.stores.is_never_there(key) => Ok(()),
            None => self.change(&[Change::Delete { key: key.clone() }]),
        }
    }

    /// Applies a batch: reduced to the last operation of each key; block puts, then metadata (atomic at a crash), then block deletes (STORE 13).
    /// May wait for the barrier between them on the caller's thread.
    pub fn submit_batch(&self, ops: Vec<BatchOp>) -> Result<Ticket> {
        let plan = self.plan(ops)?;
        let mut tickets = Vec::new();
        if !plan.block_puts.is_empty() {
            tickets.push(self.stores.shards.submit_put(&plan.blocks())?);
        }
        if !plan.changes.is_empty() {
            // Metadata may refer to the batch's own blocks: they are acknowledged before it begins.
            Ticket::all(std::mem::take(&mut tickets)).wait()?;
            if plan.block_deletes.is_empty() {
                return self.submit_changes(plan.changes);
            }
            self.change(&plan.changes)?;
        }
        if !plan.block_deletes.is_empty() {
            tickets.push(self.submit_block_deletes(plan.block_deletes)?);
        }
        Ok(Ticket::all(tickets))
    }

    /// [`Datastore::submit_batch`], waited for.
    pub fn batch(&self, ops: Vec<BatchOp>) -> Result<()> {
        let plan = self.plan(ops)?;
        if !plan.block_puts.is_empty() {
            again_if_superseded(|| self.stores.shards.submit_put(&plan.blocks())?.wait())?;
        }
        if !plan.changes.is_empty() {
            self.change(&plan.changes)?;
        }
        if !plan.block_deletes.is_empty() {
            self.delete_blocks(&plan.block_deletes)?;
        }
        Ok(())
    }

    /// What a batch comes down to, if no limit is exceeded.
    fn plan(&self, ops: Vec<BatchOp>) -> Result<Plan> {
        self.stores.check_writable()?;
        let mut bytes = 0usize;
        for op in &ops {
            let value_bytes = if let BatchOp::Put(_, value) = op { value.len() } else { 0 };
            if matches!(op, BatchOp::Put(..)) {
                self.stores.check_size(op.key(), value_bytes)?;
            }
            bytes += op.key().as_str().len() + value_bytes;
        }
        let bytes_max = self.stores.options.batch_bytes_max;
        if bytes > bytes_max {
            let message = format!(
                "the batch has {bytes} bytes of keys and values, more than the {bytes_max} that batch_bytes_max allows; \
                 commit it in parts"
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let mut plan = Plan::of(ops);
        plan.changes.retain(|change| !self.stores.is_never_there(change.key()));
        Ok(plan)
    }

    /// Changes the keyspace on this thread, and waits for what the class promises.
    fn change(&self, changes: &[Change]) -> Result<()> {
        if self.stores.must_pass_barrier(changes)? {
            self.stores.barrier.pass(&self.stores.shards)?;
        }
        again_if_superseded(|| self.stores.keyspace.apply(changes)?.wait())?;
        if let Some(observed) = self.stores.observed.get() {
            observed.tell(changes);
        }
        Ok(())
    }

    /// Changes the keyspace without waiting, neither for the flush nor for the barrier before it.
    fn submit_changes(&self, changes: Vec<Change>) -> Result<Ticket> {
        let stores = &self.stores;
        let waits = stores.must_pass_barrier(&changes)?;
        if !waits || (!stores.shards.is_dirty() && self.is_idle()) {
            return stores.apply(changes);
        }
        let bytes = changes.iter().map(Change::bytes).sum();
        self.submit_after(Need::Blocks, bytes, move |stores| stores.apply(changes))
    }

    /// Deletes blocks on this thread, after the metadata that may have referred to them.
    fn delete_blocks(&self, blocks: &[Multihash]) -> Result<()> {
        if self.stores.keyspace.delays_block_deletes() {
            self.stores.keyspace.flush()?;
        }
        self.stores.shards.submit_delete(&blocks.iter().collect::<Vec<_>>())?.wait()
    }

    /// [`Datastore::delete_blocks`], without waiting.
    fn submit_block_deletes(&self, blocks: Vec<Multihash>) -> Result<Ticket> {
        if !self.stores.keyspace.delays_block_deletes() {
            return self.stores.shards.submit_delete(&blocks.iter().collect::<Vec<_>>());
        }
        let bytes = blocks.iter().map(|block| block.as_bytes().len()).sum();
        self.submit_after(Need::Metadata, bytes, move |stores| {
            stores.shards.submit_delete(&blocks.iter().collect::<Vec<_>>())
        })
    }

    /// Runs a write once its need is met: on the thread for that, or here where there is none or too much waits already.
    fn submit_after(
        &self,
        need: Need,
        bytes: usize,
        write: impl FnOnce(&Stores) -> Result<Ticket> + Send + 'static,
    ) -> Result<Ticket> {
        let (ticket, completer) = Ticket::pending();
        let run = move |stores: &Stores, met: Result<()>| match met.and_then(|()| write(stores)) {
            Ok(written) => written.then(move |outcome| completer.complete(outcome)),
            Err(err) => completer.complete(Err(err)),
        };
        let job = Job { need, bytes, run: Box::new(run) };
        let refused = match &self.later {
            Some(later) => later.push(job, self.stores.options.batch_bytes_max).err(),
            None => Some(job),
        };
        if let Some(job) = refused {
            let met = match need {
                Need::Blocks => self.stores.barrier.pass(&self.stores.shards),
                Need::Metadata => self.stores.keyspace.flush(),
            };
            (job.run)(&self.stores, met);
        }
        Ok(ticket)
    }

    fn is_idle(&self) -> bool {
        self.later.as_ref().is_none_or(Later::is_idle)
    }

    /// From now on `observer` is told of changes of the keys beneath `prefix`. There is one observer, the first; `false`: there is one already.
    pub fn observe(&self, prefix: &Key, observer: Arc<dyn KeyObserver>) -> bool {
        self.stores.observed.set(Arc::new(Observed::new(prefix, observer))).is_ok()
    }

    /// Starts a query. Pages are pulled by [`QueryCursor::next_page`].
    pub fn query(&self, query: Query) -> Result<QueryCursor<'_>> {
        self.stores.check_open()?;
        QueryCursor::new(&self.stores, query)
    }

    /// Makes every put and delete under `prefix` that returned before this call durable (all of the node, in fact).
    pub fn submit_sync(&self, prefix: &Key) -> Result<Ticket> {
        let _ = prefix;
        self.stores.check_open()?;
        if self.stores.is_read_only {
            return Ok(Ticket::ready(Ok(())));
        }
        let shards = self.stores.shards.submit_sync()?;
        let keyspace = self.stores.keyspace.store().submit_sync();
        Ok(Ticket::all(vec![shards, keyspace.unwrap_or_else(|err| Ticket::ready(Err(err)))]))
    }

    /// [`Datastore::submit_sync`] of everything, waited for.
    pub fn sync(&self) -> Result<()> {
        self.submit_sync(&Key::new("/")?)?.wait()
    }

    /// Live bytes of blocks and metadata, exact, O(1); falls at once on delete (STORE 10).
    pub fn disk_usage(&self) -> u64 {
        let keyspace = self.stores.keyspace.store().live();
        self.stores.shards.live_bytes() + keyspace.bytes + keyspace.key_bytes
    }

    /// When a key is gone by itself, in milliseconds since the Unix epoch; `None` for never, as for every block. `NotFound` where it is absent.
    pub fn expiration(&self, key: &Key) -> Result<Option<u64>> {
        self.stores.check_open()?;
        let expires_unix_ms = match key.block() {
            Some(block) => self.stores.shards.size(&block)?.map(|_| 0),
            None => self.stores.keyspace.meta(key)?.map(|meta| meta.expires_unix_ms),
        };
        match expires_unix_ms {
            None => Err(Error::not_found()),
            Some(0) => Ok(None),
            Some(at) => Ok(Some(at)),
        }
    }

    /// Gives a key that is there a new time to live; `NotFound` where it is absent, `Unsupported` for a block.
    pub fn submit_set_ttl(&self, key: &Key, ttl_ms: u64) -> Result<Ticket> {
        self.stores.check_writable()?;
        if key.block().is_some() {
            return Err(no_ttl(key));
        }
        let expires_unix_ms = self.stores.keyspace.expiry(ttl_ms);
        self.submit_changes(vec![Change::Expire { key: key.clone(), expires_unix_ms }])
    }

    /// Deletes keys that have expired, among the next `limit` keys of the keyspace; the next call goes on behind them. Expired keys are absent
    /// at once; this gives back their space. Returns how many it deleted.
    pub fn sweep_expired(&self, limit: usize) -> Result<u64> {
        self.stores.check_writable()?;
        self.stores.keyspace.sweep_expired(limit)
    }

    /// One round of the background work of every store, where the clock has no threads for it: in a simulation.
    pub fn step(&self) {
        self.stores.shards.iter().for_each(|shard| shard.store().step());
        self.stores.keyspace.store().step();
    }

    /// Looks whether a disk has kept a call for longer than `flush_deadline`, and fences its store then: see [`basalt_blockstore::Store::watch`]. Where the clock
    /// has threads, one does this every second.
    pub fn watch(&self) {
        self.stores.watch();
    }

    /// Whether a write may wait before it has a ticket, for the disk or for an index: then it is no call for a thread that others need.
    pub fn writes_wait(&self) -> bool {
        self.stores.holds.load(Ordering::SeqCst) > 0
            || self.stores.shards.writes_wait()
            || self.stores.keyspace.store().writes_wait()
    }

    /// Holds block deletes and reclaim until what this returns is dropped; they wait, all else goes on. For a set of snapshots, each atomic for a part of the
    /// node alone (STORE 22): taken of the keyspace first and of the shards after, no pin in the set lacks a block.
    pub fn hold(&self) -> Result<Hold<'_>> {
        self.stores.check_open()?;
        self.stores.holds.fetch_add(1, Ordering::SeqCst);
        let shards = self.stores.shards.hold();
        Ok(Hold { stores: &self.stores, _shards: shards, _keyspace: self.keyspace().hold_reclaim() })
    }

    /// Cheap self-check: every store is open, unfenced and answers.
    pub fn check(&self) -> Result<()> {
        self.stores.check_open()?;
        if let Some(err) = self.stores.shards.fenced() {
            return Err(err);
        }
        let keyspace = self.stores.keyspace.store();
        if let Some(err) = keyspace.fenced() {
            return Err(err.context("the keyspace"));
        }
        for (id, shard) in self.stores.shards.iter().enumerate() {
            shard.enumerate(None, 1).map_err(|err| err.context(format_args!("shard {id} does not answer")))?;
        }
        keyspace.scan(b"", None, 1, false).map_err(|err| err.context("the keyspace does not answer"))?;
        Ok(())
    }

    /// Reads everything back; the error names how many keys are damaged and the first of them.
    pub fn scrub(&self) -> Result<()> {
        scrub::scrub(&self.stores)
    }

    /// Reclaims what pays now.
    pub fn collect_garbage(&self) -> Result<()> {
        self.stores.check_writable()?;
        for (id, shard) in self.stores.shards.iter().enumerate() {
            shard.store().reclaim().map_err(|err| err.context(format_args!("reclaim shard {id}")))?;
        }
        self.stores.keyspace.store().reclaim().map_err(|err| err.context("reclaim the keyspace"))?;
        Ok(())
    }

    /// Gauges of each shard, in order, then of the keyspace.
    pub fn stats(&self) -> DatastoreStats {
        DatastoreStats { shards: self.stores.shards.stats_each(), keyspace: self.stores.keyspace.stats() }
    }

    /// The shards, for verify, import, export and status.
    pub fn shards(&self) -> &ShardSet {
        &self.stores.shards
    }

    /// The store of the keyspace, for verify and status; write through the methods above.
    pub fn keyspace(&self) -> &basalt_blockstore::Store {
        self.stores.keyspace.store()
    }

    /// Syncs and closes everything; later calls are `Closed`. What was submitted before gets its outcome. Every store is closed, whatever another says; the first
    /// failure is reported.
    pub fn close(&self) -> Result<()> {
        if self.stores.is_closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        if let Some(later) = &self.later {
            later.stop();
        }
        // Blocks first: at a crash in between, metadata must not be ahead of them.
        let shards = self.stores.shards.close();
        let keyspace = self.stores.keyspace.store().close().map_err(|err| err.context("close the keyspace"));
        // Last: those who wait for a disk that does not answer are told until the end.
        if let Some(watch) = &self.watch {
            watch.stop();
        }
        shards.and(keyspace)
    }
}

impl Drop for Datastore {
    fn drop(&mut self) {
        if let Some(later) = &self.later {
            later.stop();
        }
        if let Some(watch) = &self.watch {
            watch.stop();
        }
    }
}

/// No block of a [`Datastore`] goes while this is there; see [`Datastore::hold`].
#[derive(Debug)]
#[must_use = "what is held goes on when this is dropped"]
pub struct Hold<'a> {
    stores: &'a Stores,
    _shards: basalt_sharding::Hold<'a>,
    _keyspace: MutexGuard<'a, ()>,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.stores.holds.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Does a write once more, a few times, where it failed only because another's write before it in the log did (STORE 11).
fn again_if_superseded(write: impl Fn() -> Result<()>) -> Result<()> {
    const TRIES: usize = 8;
    for _ in 1..TRIES {
        match write() {
            Err(err) if err.is_superseded() => {}
            outcome => return outcome,
        }
    }
    write()
}

fn no_ttl(key: &Key) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{key} is a block, and blocks have no time to live; nothing was stored"))
}

/// Gauges of a datastore.
#[derive(Clone, Debug, Default)]
pub struct DatastoreStats {
    /// Of each shard, in the order of their ids.
    pub shards: Vec<basalt_blockstore::store::Stats>,
    /// Of the keyspace.
    pub keyspace: basalt_blockstore::store::Stats,
}
