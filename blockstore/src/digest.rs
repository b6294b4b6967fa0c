//! Whether a value hashes to its multihash: what a scrub, a healing put and `verify_on_put` ask.

use blake2::{Blake2b, Blake2b512, digest::consts::U32};
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

use crate::multihash::Multihash;

/// Shortest digest that proves anything, in bytes; a shorter one matches what an attacker likes. Source: boxo `verifcid`,
/// `DefaultMinDigestSize`.
const DIGEST_BYTES_MIN: usize = 20;

/// What hashing a value said about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// The value is what the key names.
    Matches,
    /// It is not.
    Differs,
    /// The hash function is not known here, or the digest is too short to prove anything.
    UnknownFunction,
}

/// Hashes `value` with the function of `key` and compares; a truncated digest is compared as far as it goes.
///
/// Functions: identity, sha1, sha2-256, sha2-512, blake2b-256, blake2b-512, blake3.
pub fn verify_digest(key: &Multihash, value: &[u8]) -> Digest {
    let digest = key.digest();
    let code = key.code();
    let known = matches!(code, 0x00 | 0x11..=0x13 | 0x1e | 0xb220 | 0xb240);
    if !known || (code != 0 && digest.len() < DIGEST_BYTES_MIN) {
        return Digest::UnknownFunction;
    }
    let matches = match code {
        0x00 => value == digest,
        0x11 => is_start(digest, &Sha1::digest(value)),
        0x12 => is_start(digest, &Sha256::digest(value)),
        0x13 => is_start(digest, &Sha512::digest(value)),
        0x1e => blake3(digest, value),
        0xb220 => is_start(digest, &Blake2b::<U32>::digest(value)),
        _ => is_start(digest, &Blake2b512::digest(value)),
    };
    if matches { Digest::Matches } else { Digest::Differs }
}

fn is_start(digest: &[u8], full: &[u8]) -> bool {
    full.starts_with(digest)
}

fn blake3(digest: &[u8], value: &[u8]) -> bool {
    // An extendable function: a multihash may carry any length of its output.
    let mut full = vec![0; digest.len()];
    blake3::Hasher::new().update(value).finalize_xof().fill(&mut full);
    full == digest
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// Test vectors for "abc": FIPS 180, RFC 7693, and the BLAKE3 reference (b3sum).
    const ABC: &[(&[u8], &str)] = &[
        (&[0x11, 20], "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (&[0x12, 32], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            &[0x13, 64],
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
        (&[0x1e, 32], "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
        (&[0xa0, 0xe4, 0x02, 32], "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"),
        (
            &[0xc0, 0xe4, 0x02, 64],
            "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923",
        ),
    ];

    fn multihash(head: &[u8], digest: &[u8]) -> Multihash {
        Multihash::parse(&[head, digest].concat()).unwrap()
    }

    #[test]
    fn published_vectors_match_and_other_values_differ() {
        for (head, hex) in ABC {
            let key = multihash(head, &HEXLOWER.decode(hex.as_bytes()).unwrap());
            assert_eq!(verify_digest(&key, b"abc"), Digest::Matches, "{key:?}");
            assert_eq!(verify_digest(&key, b"abd"), Digest::Differs, "{key:?}");
        }
    }

    #[test]
    fn identity_is_the_value_itself() {
        let key = multihash(&[0, 3], b"abc");
        assert_eq!(verify_digest(&key, b"abc"), Digest::Matches);
        assert_eq!(verify_digest(&key, b"ab"), Digest::Differs);
    }

    #[test]
    fn a_truncated_digest_is_compared_as_far_as_it_goes() {
        let full = Sha256::digest(b"abc");
        assert_eq!(verify_digest(&multihash(&[0x12, 20], &full[..20]), b"abc"), Digest::Matches);
        assert_eq!(verify_digest(&multihash(&[0x12, 20], &full[1..21]), b"abc"), Digest::Differs);
        let longer = [&full[..], &[0]].concat();
        assert_eq!(verify_digest(&multihash(&[0x12, 33], &longer), b"abc"), Digest::Differs);
    }

    #[test]
    fn what_proves_nothing_is_no_match() {
        let full = Sha256::digest(b"abc");
        assert_eq!(verify_digest(&multihash(&[0x12, 19], &full[..19]), b"abc"), Digest::UnknownFunction);
        assert_eq!(verify_digest(&multihash(&[0x12, 0], &[]), b"abc"), Digest::UnknownFunction);
        assert_eq!(verify_digest(&multihash(&[0x16, 32], &full), b"abc"), Digest::UnknownFunction);
    }
}
