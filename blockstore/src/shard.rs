//! One shard: the store of blocks by multihash.

use std::path::Path;

use crate::{
    buffer::Buffer,
    digest::{Digest, verify_digest},
    error::{Error, ErrorKind, Result},
    multihash::Multihash,
    options::Options,
    store::{Env, Op, Stats, Store, Ticket},
};

/// Blocks by multihash. Cheap to share behind an `Arc`; every method may be called from many threads at once.
#[derive(Debug)]
pub struct Shard {
    store: Store,
}

impl Shard {
    /// Opens or creates the shard in the folder `dir`, replays the tail of its log and adopts what survived.
    pub fn open(dir: &Path, env: &Env, options: Options) -> Result<Shard> {
        Ok(Shard { store: Store::open_with(dir, env, options, Some(verify))? })
    }

    /// Opens for reading only: creates no file, replays the tail in memory, works on a read-only mount (STORE 23).
    pub fn open_read_only(dir: &Path, env: &Env, options: Options) -> Result<Shard> {
        Ok(Shard { store: Store::open_read_only_with(dir, env, options, Some(verify))? })
    }

    /// Stores a block unless it is there: one look-up, and no write and no flush for what is. Returns when the durability class
    /// says. The first value stays.
    pub fn put(&self, key: &Multihash, value: &[u8]) -> Result<()> {
        self.store.write(&[Op::PutIfAbsent { key: key.as_bytes(), value }], false)
    }

    /// Stores blocks, each unless it is there. Not atomic. The last of equal keys is as good as the first: blocks are their keys.
    pub fn put_batch(&self, blocks: &[(&Multihash, &[u8])]) -> Result<()> {
        self.store.write(&puts(blocks), false)
    }

    /// Writes blocks and returns without waiting for the acknowledgement that the durability class promises.
    pub fn submit_put(&self, blocks: &[(&Multihash, &[u8])]) -> Result<Ticket> {
        self.store.submit(&puts(blocks), false)
    }

    /// Reads a block into `buffer` (replaced, its capacity kept); checks the key, the header and the CRC of the payload always. `NotFound` where it is absent.
    pub fn get(&self, key: &Multihash, buffer: &mut dyn Buffer) -> Result<()> {
        self.store.get(key.as_bytes(), buffer).map(|_| ())
    }

    /// Size of a block in bytes, `None` where it is absent. Never reads the log.
    pub fn size(&self, key: &Multihash) -> Result<Option<u32>> {
        Ok(self.store.meta(key.as_bytes())?.map(|meta| meta.size))
    }

    /// Whether a block is there. Never reads the log.
    pub fn has(&self, key: &Multihash) -> Result<bool> {
        Ok(self.size(key)?.is_some())
    }

    /// Deletes a block; absent is fine. Gone for readers on return; durable within the bounded delay and at [`Shard::sync`].
    pub fn delete(&self, key: &Multihash) -> Result<()> {
        self.delete_batch(&[key])
    }

    /// Deletes blocks; see [`Shard::delete`].
    pub fn delete_batch(&self, keys: &[&Multihash]) -> Result<()> {
        let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Delete { key: key.as_bytes() }).collect();
        self.store.submit(&ops, false)?.wait()
    }

    /// Offers a candidate for a quarantined block, from a replica or from wherever else. It is hashed, and replaces the damaged bytes only if it is what the
    /// multihash names; a hash function that is not known here is refused (STORE 20). Durable on return. `false`: the block is not quarantined, and
    /// nothing was done.
    pub fn heal(&self, key: &Multihash, candidate: &[u8]) -> Result<bool> {
        self.store.heal(key.as_bytes(), candidate)
    }

    /// Makes everything that was acknowledged before the call durable.
    pub fn sync(&self) -> Result<()> {
        self.store.sync()
    }

    /// Starts what [`Shard::sync`] does and returns; the ticket waits for it. One barrier over many shards runs in parallel.
    pub fn submit_sync(&self) -> Result<Ticket> {
        self.store.submit_sync()
    }

    /// Up to `limit` blocks with their sizes in the order of their multihash bytes, above `after`. A block that is present throughout an
    /// enumeration appears exactly once. Never reads the log, holds no iterator between calls.
    pub fn enumerate(&self, after: Option<&Multihash>, limit: usize) -> Result<Vec<(Multihash, u32)>> {
        let found = self.store.scan(b"", after.map(Multihash::as_bytes), limit, false)?;
        found.into_iter().map(|found| Ok((Multihash::parse(&found.key)?, found.meta.size))).collect()
    }

    /// Exact count and bytes, O(1); the gauges are 0.
    pub fn live(&self) -> Stats {
        self.store.live()
    }

    /// Exact count and bytes, and the gauges; looks at every segment's row, never at blocks.
    pub fn stats(&self) -> Stats {
        self.store.stats()
    }

    /// The store beneath: reclaim, verify, flush control.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Syncs, writes a mark, flushes the index and closes. Dropping a shard without it is a crash that recovery mends.
    pub fn close(&self) -> Result<()> {
        self.store.close()
    }
}

fn puts<'a>(blocks: &[(&'a Multihash, &'a [u8])]) -> Vec<Op<'a>> {
    blocks.iter().map(|(key, value)| Op::PutIfAbsent { key: key.as_bytes(), value }).collect()
}

/// A block is what its multihash says; a hash function that is not known here proves nothing and is refused (STORE 20).
fn verify(key: &[u8], value: &[u8]) -> Result<()> {
    let multihash = Multihash::parse(key)?;
    match verify_digest(&multihash, value) {
        Digest::Matches => Ok(()),
        Digest::Differs => Err(Error::new(
            ErrorKind::InvalidValue,
            format!("the {} bytes given for block {multihash} do not hash to it: fetch the block again", value.len()),
        )),
        Digest::UnknownFunction => Err(Error::new(
            ErrorKind::InvalidValue,
            format!(
                "block {multihash} uses hash function {:#x}, which is not known here, so its bytes can't be verified: turn verify_on_put \
                 off to store it unverified",
                multihash.code()
            ),
        )),
    }
}
