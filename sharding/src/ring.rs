//! The ring: which shard a block belongs to.
//!
//! Every shard stands at many points of a 64-bit circle (virtual nodes), as many as its weight asks for; a digest belongs to the first
//! point at or behind its own hash. Both hashes are SipHash-2-4 under the node's ring key, so that nobody who does not know it can aim
//! blocks at one shard. Points of a shard depend on nothing but ring key, shard id and number, so a shard that is added takes blocks from
//! the others and moves none between them.
//!
//! Placement is part of the format on disk (`docs/format-ring.md`): it never changes, and golden vectors in the tests hold it still.

use basalt_blockstore::{Error, ErrorKind, Result};
use siphasher::sip::SipHasher24;

/// Virtual nodes per unit of weight. Shares scatter by about one over its square root: here 4 %.
pub const POINTS_PER_WEIGHT: u32 = 512;

/// Largest weight of a shard.
pub const WEIGHT_MAX: u32 = 1024;

/// Most virtual nodes of a ring: 16 MiB of memory, 20 steps a look-up.
pub const POINTS_MAX: u64 = 1 << 20;

/// Separates the hashes of virtual nodes from those of digests.
const POINT_DOMAIN: &[u8; 16] = b"basalt/ring/node";

/// Places digests on shards; see the module's page.
#[derive(Clone)]
pub struct Ring {
    key: [u8; 16],
    /// Sorted by hash, then by shard.
    points: Vec<(u64, u16)>,
    /// The one shard that has all the weight, where that is so.
    only: Option<u16>,
}

impl Ring {
    /// Makes the ring of `shards`, each an id with its weight; a shard of weight 0 gets no blocks. `InvalidValue` where no shard has any weight, an
    /// id comes twice, or the weights are above [`WEIGHT_MAX`] or ask for more than [`POINTS_MAX`] points together.
    pub fn new(key: [u8; 16], shards: &[(u16, u32)]) -> Result<Ring> {
        let refuse = |message: String| Err(Error::new(ErrorKind::InvalidValue, message));
        let mut ids: Vec<u16> = shards.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(format!("shard {} is on the ring twice; give every shard one id", twice[0]));
        }
        if let Some((id, weight)) = shards.iter().find(|(_, weight)| *weight > WEIGHT_MAX) {
            return refuse(format!(
                "weight {weight} of shard {id} is above {WEIGHT_MAX}; divide all weights by a common factor"
            ));
        }
        let total: u64 = shards.iter().map(|(_, weight)| u64::from(*weight) * u64::from(POINTS_PER_WEIGHT)).sum();
        if total == 0 {
            return refuse("no shard of the ring has a weight above 0, so no block has a place".into());
        }
        if total > POINTS_MAX {
            let sum_max = POINTS_MAX / u64::from(POINTS_PER_WEIGHT);
            return refuse(format!(
                "the weights of all shards are above {sum_max} together; divide them by a common factor"
            ));
        }
        let mut with_weight = shards.iter().filter(|(_, weight)| *weight > 0);
        let only = match (with_weight.next(), with_weight.next()) {
            (Some((id, _)), None) => Some(*id),
            _ => None,
        };
        let mut points = Vec::new();
        if only.is_none() {
            points.reserve_exact(total as usize);
            let hasher = SipHasher24::new_with_key(&key);
            for &(id, weight) in shards {
                points.extend((0..weight * POINTS_PER_WEIGHT).map(|number| (point(&hasher, id, number), id)));
            }
            points.sort_unstable();
        }
        Ok(Ring { key, points, only })
    }

    /// The shard of a digest: the bytes of the hash itself, without the multihash's code and length.
    pub fn place(&self, digest: &[u8]) -> u16 {
        if let Some(only) = self.only {
            return only;
        }
        let hash = SipHasher24::new_with_key(&self.key).hash(digest);
        let at = self.points.partition_point(|(point, _)| *point < hash);
        // Behind the last point the circle closes.
        self.points.get(at).or(self.points.first()).map_or(0, |(_, id)| *id)
    }
}

/// Where virtual node `number` of shard `id` stands.
fn point(hasher: &SipHasher24, id: u16, number: u32) -> u64 {
    let mut name = [0; 22];
    name[..16].copy_from_slice(POINT_DOMAIN);
    name[16..18].copy_from_slice(&id.to_le_bytes());
    name[18..].copy_from_slice(&number.to_le_bytes());
    hasher.hash(&name)
}

impl std::fmt::Debug for Ring {
    /// Without the key: who has it can aim blocks at one shard.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} points)", self.points.len())
    }
}
