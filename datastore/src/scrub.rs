//! Reads everything back: checksums of every record, and of every block the hash that is its key.

use basalt_blockstore::{Digest, Error, ErrorKind, Multihash, Result, Shard, Store, verify_digest};

use crate::{Key, Stores};

/// Keys of a page: what it holds stays in the page cache between the check of the log and that of the digests.
const PAGE_KEYS: usize = 64;

/// What has been found damaged.
#[derive(Default)]
struct Damage {
    keys: u64,
    first: Option<(String, String)>,
}

impl Damage {
    fn note(&mut self, key: String, why: String) {
        tracing::error!(%key, %why, "scrub: damaged");
        self.keys += 1;
        self.first.get_or_insert((key, why));
    }
}

/// See [`crate::Datastore::scrub`].
pub(crate) fn scrub(stores: &Stores) -> Result<()> {
    let mut damage = Damage::default();
    for (id, shard) in stores.shards.iter().enumerate() {
        scrub_shard(stores, shard, &mut damage).map_err(|err| err.context(format_args!("scrub shard {id}")))?;
    }
    scrub_keyspace(stores, stores.keyspace.store(), &mut damage).map_err(|err| err.context("scrub the keyspace"))?;
    match damage.first {
        None => Ok(()),
        Some((key, why)) => {
            let message = format!(
                "damaged keys: {}; the first is {key}: {why}; the agent's log names all of them; restore them from a replica",
                damage.keys
            );
            Err(Error::new(ErrorKind::Corrupt, message))
        }
    }
}

fn scrub_shard(stores: &Stores, shard: &Shard, damage: &mut Damage) -> Result<()> {
    let mut after: Option<Vec<u8>> = None;
    let mut value = Vec::new();
    loop {
        stores.check_open()?;
        let page = shard.store().verify(after.as_deref(), PAGE_KEYS)?;
        let Some(last) = page.last else { return Ok(()) };
        let of = |key: &[u8]| Multihash::parse(key).map(|key| Key::of_block(&key).to_string());
        for (key, why) in &page.damaged {
            damage.note(of(key)?, why.to_string());
        }
        let from = after.as_deref().map(Multihash::parse).transpose()?;
        for (key, _) in shard.enumerate(from.as_ref(), PAGE_KEYS)? {
            if key.as_bytes() > last.as_slice() || page.damaged.iter().any(|(bad, _)| bad == key.as_bytes()) {
                continue;
            }
            match shard.get(&key, &mut value) {
                Ok(()) if verify_digest(&key, &value) == Digest::Differs => {
                    shard.store().quarantine_digest(key.as_bytes())?;
                    damage.note(Key::of_block(&key).to_string(), "its bytes do not hash to it".into());
                }
                // Gone since, or quarantined: the check of the log has said so.
                Ok(()) => {}
                Err(err) if matches!(err.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {}
                Err(err) => return Err(err),
            }
        }
        after = Some(last);
    }
}

fn scrub_keyspace(stores: &Stores, store: &Store, damage: &mut Damage) -> Result<()> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        stores.check_open()?;
        let page = store.verify(after.as_deref(), PAGE_KEYS)?;
        for (key, why) in page.damaged {
            damage.note(Key::stored(key)?.to_string(), why.to_string());
        }
        let Some(last) = page.last else { return Ok(()) };
        after = Some(last);
    }
}
