//! The blocks that are stored: unique, incompressible, with their real keys, the same ones in every run.

use basalt_blockstore::Multihash;
use sha2::{Digest, Sha256};

/// Blocks of one size, made before anything is measured.
pub struct Blocks {
    /// Size of each, in bytes.
    pub block_bytes: usize,
    /// Key and value of each.
    pub all: Vec<(Multihash, Vec<u8>)>,
}

impl Blocks {
    /// Makes `count` blocks; another seed makes others.
    pub fn generate(count: usize, block_bytes: usize, seed: u64) -> Blocks {
        let mut random = SplitMix(seed << 32);
        let all = (0..count).map(|_| {
            let mut value = vec![0; block_bytes];
            for chunk in value.chunks_mut(8) {
                chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
            }
            let mut key = vec![0x12, 32];
            key.extend_from_slice(&Sha256::digest(&value));
            (Multihash::parse(&key).unwrap_or_else(|err| unreachable!("a sha2-256 multihash: {err}")), value)
        });
        Blocks { block_bytes, all: all.collect() }
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.all.len() * self.block_bytes
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): fast, and one word of state.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
