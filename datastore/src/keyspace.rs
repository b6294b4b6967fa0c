//! The keyspace: every key that is no block, in a log of its own.
//!
//! Its values are overwritten and may have a time to live. Which of its changes wait for the blocks, and for a flush of their own, depends on the durability
//! class and on whether the key is one of the bookkeeping that needs neither (STORE 12e).

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use basalt_blockstore::{
    Buffer, Durability, Error, ErrorKind, OnCorrupt, Options as StoreOptions, Result, Store,
    disk::Clock,
    store::{Env, Meta, Op, Stats, Ticket},
    sync::{Mutex, RwLock},
};

use crate::{Key, Options};

/// Values up to this size are kept in the index too, in bytes.
const INLINE_BYTES_MAX: usize = 512;

/// The part of the reserve that metadata leaves alone is one in so many.
const RESERVE_SHARE: u64 = 8;

/// A change of the keyspace.
#[derive(Debug)]
pub(crate) enum Change {
    /// Stores a value, whatever was there.
    Put {
        key: Key,
        value: Vec<u8>,
        /// 0 for never.
        expires_unix_ms: u64,
    },
    /// Removes a key; absent is fine.
    Delete { key: Key },
    /// Gives a key that is there another expiry.
    Expire { key: Key, expires_unix_ms: u64 },
}

impl Change {
    pub(crate) fn key(&self) -> &Key {
        match self {
            Change::Put { key, .. } | Change::Delete { key } | Change::Expire { key, .. } => key,
        }
    }

    /// Bytes that it holds while it waits.
    pub(crate) fn bytes(&self) -> usize {
        let value = if let Change::Put { value, .. } = self { value.len() } else { 0 };
        self.key().as_str().len() + value
    }
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Keyspace {
    store: Store,
    clock: Arc<dyn Clock>,
    durability: Durability,
    unordered_prefixes: Vec<String>,
    /// Held for reading by writers, and alone by what reads before it writes: a new expiry, the sweep.
    read_then_write: RwLock<()>,
    /// `relaxed`: changes that block deletes must not overtake, as they were submitted, and of those the ones known durable (STORE 13).
    submitted: AtomicU64,
    durable: AtomicU64,
    /// Where the sweep of expired keys goes on.
    sweep_after: Mutex<Option<Vec<u8>>>,
}

impl Keyspace {
    pub(crate) fn open(dir: &Path, env: &Env, options: &Options, read_only: bool) -> Result<Keyspace> {
        // A damaged pin that looked absent would be collected with all that it holds: here damage is always said.
        let store_options =
            StoreOptions { durability: options.durability, corrupt: OnCorrupt::Error, ..options.store.clone() };
        // The keyspace has no digests to hold values against. Pins and names are small, and are then read from the index alone.
        // On a full disk space comes back by unpinning and collecting, and unpinning writes here: metadata may go far into the reserve.
        let reserve_bytes = store_options.reserve_bytes / RESERVE_SHARE;
        let store_options =
            StoreOptions { verify_on_put: false, inline_bytes_max: INLINE_BYTES_MAX, reserve_bytes, ..store_options };
        let open = if read_only { Store::open_read_only } else { Store::open };
        let store = open(dir, env, store_options)
            .map_err(|err| err.context(format_args!("open the keyspace ({})", dir.display())))?;
        Ok(Keyspace {
            store,
            clock: env.clock.clone(),
            durability: options.durability,
            unordered_prefixes: options.unordered_prefixes.clone(),
            read_then_write: RwLock::default(),
            submitted: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            sweep_after: Mutex::default(),
        })
    }

    pub(crate) fn get(&self, key: &Key, buffer: &mut dyn Buffer) -> Result<Meta> {
        self.store.get(key.as_str().as_bytes(), buffer)
    }

    pub(crate) fn meta(&self, key: &Key) -> Result<Option<Meta>> {
        self.store.meta(key.as_str().as_bytes())
    }

    pub(crate) fn stats(&self) -> Stats {
        self.store.stats()
    }

    /// The log beneath: scan, verify, reclaim.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// When a time to live from now ends.
    pub(crate) fn expiry(&self, ttl_ms: u64) -> u64 {
        // 0 would be never.
        self.clock.unix_ms().saturating_add(ttl_ms).max(1)
    }

    /// Whether these changes are bookkeeping alone, which waits for no block and no flush in `ordered` (STORE 12e).
    pub(crate) fn is_unordered(&self, changes: &[Change]) -> bool {
        let is_unordered = |key: &str| self.unordered_prefixes.iter().any(|prefix| is_under(key, prefix));
        changes.iter().all(|change| is_unordered(change.key().as_str()))
    }

    /// Writes changes as one record, atomic at a crash. The caller has seen to what must be durable before.
    pub(crate) fn apply(&self, changes: &[Change]) -> Result<Ticket> {
        if let [Change::Expire { key, expires_unix_ms }] = changes {
            let _alone = self.read_then_write.write();
            let mut value = Vec::new();
            self.get(key, &mut value)?;
            let key = key.as_str().as_bytes();
            return self.submit(changes, &[Op::Put { key, value: &value, expires_unix_ms: *expires_unix_ms }]);
        }
        let ops = changes.iter().map(|change| match change {
            Change::Put { key, value, expires_unix_ms } => {
                Ok(Op::Put { key: key.as_str().as_bytes(), value, expires_unix_ms: *expires_unix_ms })
            }
            Change::Delete { key } => Ok(Op::Delete { key: key.as_str().as_bytes() }),
            Change::Expire { key, .. } => {
                Err(Error::new(ErrorKind::Unsupported, format!("the time to live of {key} can't change in a batch")))
            }
        });
        let ops: Vec<Op<'_>> = ops.collect::<Result<_>>()?;
        let _with_others = self.read_then_write.read();
        self.submit(changes, &ops)
    }

    fn submit(&self, changes: &[Change], ops: &[Op<'_>]) -> Result<Ticket> {
        let unordered = self.is_unordered(changes);
        match self.durability {
            // `Store::submit` acknowledges a lone delete once it is written; a pin that is gone must not come back without its blocks.
            Durability::Strict => self.store.submit_durable(ops, true),
            Durability::Ordered if unordered => self.store.submit(ops, true),
            Durability::Ordered => self.store.submit_durable(ops, true),
            Durability::Relaxed => {
                let ticket = self.store.submit(ops, true)?;
                if !unordered {
                    // After the write: who reads this number and then flushes has flushed the write.
                    self.submitted.fetch_add(1, Ordering::SeqCst);
                }
                Ok(ticket)
            }
        }
    }

    /// Whether a block's tombstone must wait for [`Keyspace::flush`] (STORE 13). In the other classes what has returned is durable.
    pub(crate) fn delays_block_deletes(&self) -> bool {
        self.durability == Durability::Relaxed
            && self.durable.load(Ordering::SeqCst) < self.submitted.load(Ordering::SeqCst)
    }

    /// Makes what block deletes wait for durable.
    pub(crate) fn flush(&self) -> Result<()> {
        self.flushed_by(Ticket::wait)
    }

    /// [`Keyspace::flush`] for a thread that others wait for.
    pub(crate) fn flush_behind(&self) -> Result<()> {
        self.flushed_by(Ticket::wait_behind)
    }

    fn flushed_by(&self, wait: impl FnOnce(Ticket) -> Result<()>) -> Result<()> {
        let submitted = self.submitted.load(Ordering::SeqCst);
        self.store.submit_sync().and_then(wait).map_err(|err| err.context("flush the keyspace"))?;
        self.durable.fetch_max(submitted, Ordering::SeqCst);
        Ok(())
    }

    /// Looks at up to `limit` keys, from where the last call ended, and deletes those that have expired; returns how many.
    pub(crate) fn sweep_expired(&self, limit: usize) -> Result<u64> {
        let mut sweep_after = self.sweep_after.lock();
        // Alone, so that a key that is written anew meanwhile is not deleted.
        let _alone = self.read_then_write.write();
        let expired = self.store.scan_expired(sweep_after.as_deref(), limit)?;
        let ops: Vec<Op<'_>> = expired.keys.iter().map(|key| Op::Delete { key }).collect();
        if !ops.is_empty() {
            // No order and no flush: at a crash they come back as expired.
            self.store.submit(&ops, false)?.wait()?;
        }
        *sweep_after = expired.last;
        Ok(expired.keys.len() as u64)
    }
}

/// Whether a key is `prefix` or beneath it; a `prefix` that ends in `*` is a text that the key begins with.
fn is_under(key: &str, prefix: &str) -> bool {
    match prefix.strip_suffix('*') {
        Some(text) => key.starts_with(text),
        None => {
            key.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_under;

    #[test]
    fn prefixes_end_at_slashes_unless_starred() {
        assert!(is_under("/dht", "/dht"));
        assert!(is_under("/dht/x", "/dht"));
        assert!(is_under("/dht/x", "/dht/"));
        assert!(!is_under("/dhtx", "/dht"));
        assert!(!is_under("/pins/dht", "/dht"));
        assert!(is_under("/provider/keystore", "/provider*"));
        assert!(is_under("/providers/x", "/provider*"));
        assert!(!is_under("/pins", "/provider*"));
    }
}
