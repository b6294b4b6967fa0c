//! Promises of the ring: placement stands for ever, follows the weights, and moves no block that need not move.

#![allow(clippy::unwrap_used)]

use basalt_blockstore::ErrorKind;
use basalt_sharding::{POINTS_MAX, POINTS_PER_WEIGHT, Ring, WEIGHT_MAX};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

/// Key of the golden vectors: 00 01 .. 0f.
fn golden_key() -> [u8; 16] {
    std::array::from_fn(|i| i as u8)
}

fn digest(number: u64) -> Vec<u8> {
    Sha256::digest(number.to_le_bytes()).to_vec()
}

/// Made by another implementation of `docs/format-ring.md`, in Python, with its own SipHash. Placement is a format on disk: where this test fails, blocks of every
/// node have become invisible.
#[test]
fn placement_stands_for_ever() {
    let place = |shards: &[(u16, u32)]| {
        let ring = Ring::new(golden_key(), shards).unwrap();
        let mut places: Vec<u16> = (0..32u8).map(|i| ring.place(&Sha256::digest([i]))).collect();
        places.extend([ring.place(b""), ring.place(b"abc")]);
        places
    };
    assert_eq!(
        place(&[(0, 1), (1, 1), (2, 1), (3, 1)]),
        [1, 1, 0, 1, 1, 1, 1, 3, 1, 2, 0, 1, 3, 3, 0, 2, 2, 2, 1, 0, 2, 2, 0, 0, 0, 1, 1, 0, 0, 1, 2, 3, 3, 0]
    );
    assert_eq!(
        place(&[(0, 1), (1, 2), (7, 4)]),
        [7, 7, 0, 7, 7, 1, 1, 0, 1, 7, 0, 7, 7, 1, 0, 7, 0, 7, 1, 0, 7, 7, 7, 7, 0, 7, 1, 7, 0, 1, 1, 7, 7, 0]
    );
    assert_eq!(place(&[(3, 1)]), [3; 34]);
}

#[test]
fn the_order_of_shards_does_not_matter() {
    let ring = Ring::new(golden_key(), &[(0, 1), (1, 2), (7, 4)]).unwrap();
    let turned = Ring::new(golden_key(), &[(7, 4), (0, 1), (1, 2)]).unwrap();
    assert!((0..1000).all(|i| ring.place(&digest(i)) == turned.place(&digest(i))));
}

#[test]
fn another_key_places_otherwise() {
    let shards: Vec<(u16, u32)> = (0..16).map(|id| (id, 1)).collect();
    let (ring, other) = (Ring::new([1; 16], &shards).unwrap(), Ring::new([2; 16], &shards).unwrap());
    let same = (0..4096).filter(|i| ring.place(&digest(*i)) == other.place(&digest(*i))).count();
    // One in 16 by chance.
    assert!((128..512).contains(&same), "{same} of 4096");
}

#[test]
fn shares_follow_the_weights() {
    for weights in [&[1u32, 1, 1, 1][..], &[1; 16], &[1, 2, 4], &[10, 10, 5, 40]] {
        let shards: Vec<(u16, u32)> = (0..).zip(weights.iter().copied()).collect();
        let ring = Ring::new([9; 16], &shards).unwrap();
        let draws = 100_000u64;
        let mut counts = vec![0u64; weights.len()];
        for i in 0..draws {
            // Any input will do for a keyed hash, and this one is cheap.
            counts[usize::from(ring.place(&i.to_le_bytes()))] += 1;
        }
        let total: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let wanted = draws as f64 * f64::from(*weight) / f64::from(total);
            let off = (*count as f64 - wanted).abs() / wanted;
            // Four times the scatter of 512 points.
            assert!(off < 0.18, "weights {weights:?}: {counts:?}");
        }
    }
}

#[test]
fn a_shard_without_weight_gets_nothing() {
    let ring = Ring::new([9; 16], &[(0, 1), (1, 0), (2, 1)]).unwrap();
    assert!((0..10_000).all(|i| ring.place(&digest(i)) != 1));
    let only = Ring::new([9; 16], &[(0, 0), (1, 3), (2, 0)]).unwrap();
    assert!((0..100).all(|i| only.place(&digest(i)) == 1));
}

#[test]
fn what_makes_no_ring_is_refused_by_name() {
    let refused = |shards: &[(u16, u32)], word: &str| {
        let err = Ring::new([0; 16], shards).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidValue);
        assert!(err.to_string().contains(word), "{err}");
    };
    refused(&[], "no shard");
    refused(&[(0, 0)], "no shard");
    refused(&[(0, 1), (1, 1), (0, 1)], "shard 0 is on the ring twice");
    refused(&[(0, 1), (4, WEIGHT_MAX + 1)], "of shard 4");
    let most = POINTS_MAX / u64::from(POINTS_PER_WEIGHT) / u64::from(WEIGHT_MAX);
    let shards: Vec<(u16, u32)> = (0..=most as u16).map(|id| (id, WEIGHT_MAX)).collect();
    refused(&shards, "divide");
    assert!(Ring::new([0; 16], &shards[..most as usize]).is_ok());
}

#[test]
fn the_ring_key_is_not_printed() {
    let ring = Ring::new([0xab; 16], &[(0, 1), (1, 1)]).unwrap();
    let text = format!("{ring:?}");
    assert!(!text.contains("171") && !text.contains("ab, ab"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_added_shard_takes_its_share_and_moves_nothing_between_others(
        key: [u8; 16],
        weights in prop::collection::vec(1u32..4, 1..8),
        added in 1u32..4,
        salt: u64,
    ) {
        let before: Vec<(u16, u32)> = (0..).zip(weights.iter().copied()).collect();
        let new = before.len() as u16;
        let after = [&before[..], &[(new, added)]].concat();
        let (old_ring, new_ring) = (Ring::new(key, &before).unwrap(), Ring::new(key, &after).unwrap());
        let draws = 4000u64;
        let mut moved = 0u64;
        for i in 0..draws {
            let digest = (salt ^ i).to_le_bytes();
            let (was, is) = (old_ring.place(&digest), new_ring.place(&digest));
            if was != is {
                prop_assert_eq!(is, new, "a block moved between shards that stayed");
                moved += 1;
            }
        }
        let share = f64::from(added) / f64::from(weights.iter().sum::<u32>() + added);
        let wanted = draws as f64 * share;
        prop_assert!((moved as f64 - wanted).abs() < wanted * 0.35 + 40.0, "moved {} for {}", moved, wanted);
    }
}
