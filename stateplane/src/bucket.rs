//! How rows spread. Never by the first bytes of a CID, which are the same for nearly all, and never by digest bytes, which users choose: by a
//! keyed hash whose key the ledger draws once.

use std::{fmt, hash::Hasher, time::SystemTime};

use siphasher::sip::SipHasher24;

use crate::{Class, Error, Multihash, PinKey, Result, SKEW_MAX, generation::micros};

/// Buckets of a peer or owner. At 3 billion placements a peer, a bucket has some 46,000 rows.
pub const BUCKETS: u32 = 1 << 16;
/// A slot of the expiry queue, in seconds.
pub const SLOT_SECONDS: u64 = 300;
/// Shards of a slot.
pub const EXPIRY_SHARDS: u16 = 64;

/// A part of what a peer has or an owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(pub u16);

/// Five minutes of the expiry queue, by number since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u64);

impl Slot {
    /// The slot of a Unix time in seconds.
    pub fn of(seconds: u64) -> Slot {
        Slot(seconds / SLOT_SECONDS)
    }

    /// Where the hint of a pin goes that is put now. What has expired already goes into the next slot: those before may be closed.
    pub(crate) fn of_hint(expires: u64, now: SystemTime) -> Slot {
        Slot::of(expires).max(Slot(Slot::of(seconds(now)).0 + 1))
    }

    /// Refuses to close a slot that some host, by its clock, may still put hints into.
    pub(crate) fn check_over(self, shard: ExpiryShard, now: SystemTime) -> Result<()> {
        let end = self.0.saturating_add(1).saturating_mul(SLOT_SECONDS);
        if end.saturating_add(SKEW_MAX.as_secs()) <= seconds(now) {
            return Ok(());
        }
        let why = format!("it is not over for {} s", SKEW_MAX.as_secs());
        Err(Error::new(format!("close slot {} of expiry shard {}", self.0, shard.0), Class::Argument, why))
    }
}

fn seconds(time: SystemTime) -> u64 {
    u64::try_from(micros(time) / 1_000_000).unwrap_or(0)
}

/// A part of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpiryShard(pub u16);

/// The ledger's own key of the hash: all its users spread alike, and nobody outside can aim.
#[derive(Clone, PartialEq, Eq)]
pub struct PlaneKey(pub(crate) [u8; 16]);

impl fmt::Debug for PlaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlaneKey(…)")
    }
}

impl PlaneKey {
    fn hash(&self, multihash: &Multihash) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(multihash.as_bytes());
        hasher.finish()
    }

    /// The bucket of a multihash: the top bits.
    pub fn bucket(&self, multihash: &Multihash) -> Bucket {
        Bucket((self.hash(multihash) >> 48) as u16)
    }

    /// The shard of a pin in its expiry slot: the low bits, so that it says nothing of the bucket.
    pub fn expiry_shard(&self, key: &PinKey) -> ExpiryShard {
        ExpiryShard((self.hash(&key.multihash) % u64::from(EXPIRY_SHARDS)) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_digest_lands_alike_and_others_spread_whatever_they_begin_with() {
        let key = PlaneKey(*b"0123456789abcdef");
        let of = |n: u32| {
            let mut bytes = vec![0x12, 0x20];
            bytes.extend([0; 28]);
            bytes.extend(n.to_be_bytes());
            Multihash::from_bytes(&bytes).unwrap()
        };
        assert_eq!(key.bucket(&of(1)), key.bucket(&of(1)));
        let used: std::collections::BTreeSet<_> = (0..1000).map(|n| key.bucket(&of(n))).collect();
        assert!(used.len() > 950, "{}", used.len());
        let other = PlaneKey(*b"0123456789abcdeg");
        assert!((0..100).filter(|n| key.bucket(&of(*n)) == other.bucket(&of(*n))).count() < 5);
    }
}
