//! Multihash: the key of a block, parsed once at the edge.

use std::fmt;

use data_encoding::BASE32_NOPAD;
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};

/// Longest multihash that is a block key, in bytes: a 64-byte digest with room for long code and length varints, and the
/// longest identity multihash that boxo makes (128 bytes of digest). What is longer is an ordinary key.
pub const MULTIHASH_BYTES_MAX: usize = 132;

/// A well-formed multihash: varint code, varint length, digest of just that length; minimal varints only, so that one hash has one
/// key. Source: the multihash specification; Kubo's key is its upper case base32 without padding (boxo `dshelp`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Multihash(SmallVec<[u8; 40]>);

impl Multihash {
    /// Parses the binary form; `InvalidKey` says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Multihash> {
        let refuse = |why: &str| Err(Error::new(ErrorKind::InvalidKey, format!("not a multihash: {why}")));
        if bytes.len() > MULTIHASH_BYTES_MAX {
            return refuse("longer than a block key may be");
        }
        let Some((_, rest)) = varint(bytes) else { return refuse("bad hash function code") };
        let Some((digest_len, digest)) = varint(rest) else { return refuse("bad digest length") };
        if digest_len != digest.len() as u64 {
            return refuse("digest length does not match");
        }
        Ok(Multihash(SmallVec::from_slice(bytes)))
    }

    /// Parses the base32 name of a go-datastore block key, without its leading slash. Only the form that Kubo writes is a
    /// block (upper case, no padding, canonical trailing bits); anything else is `InvalidKey`, so no two names share a block.
    pub fn parse_base32(name: &str) -> Result<Multihash> {
        let bytes = BASE32_NOPAD
            .decode(name.as_bytes())
            .map_err(|err| Error::new(ErrorKind::InvalidKey, format!("'{name}' is not base32: {err}")))?;
        Multihash::parse(&bytes)
    }

    /// The binary form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Code of the hash function, as in the multicodec table (0x12 is sha2-256).
    pub fn code(&self) -> u64 {
        varint(&self.0).map_or(0, |(code, _)| code)
    }

    /// The CIDv1 of the block as Kubo prints it, with the codec `raw`, since a multihash doesn't say which one it had: lower case base32.
    pub fn raw_cid(&self) -> String {
        const CIDV1_RAW: [u8; 2] = [0x01, 0x55];
        format!("b{}", BASE32_NOPAD.encode(&[&CIDV1_RAW[..], &self.0].concat()).to_lowercase())
    }

    /// The digest alone.
    pub fn digest(&self) -> &[u8] {
        varint(&self.0).and_then(|(_, rest)| varint(rest)).map_or(&[], |(_, digest)| digest)
    }

    /// Upper case base32 without padding, as in Kubo's keys.
    pub fn to_base32(&self) -> String {
        BASE32_NOPAD.encode(&self.0)
    }
}

impl fmt::Display for Multihash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base32())
    }
}

impl fmt::Debug for Multihash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base32())
    }
}

/// Reads an unsigned varint of at most 9 bytes in its shortest form; returns it and what follows.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let minimal = byte != 0 || i == 0;
            return minimal.then(|| (value, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_sha2_256() {
        let mut bytes = vec![0x12, 32];
        bytes.extend([7; 32]);
        let multihash = Multihash::parse(&bytes).unwrap();
        assert_eq!(multihash.code(), 0x12);
        assert_eq!(multihash.digest(), [7; 32]);
        assert_eq!(multihash.to_base32().len(), 55);
        assert_eq!(Multihash::parse_base32(&multihash.to_base32()).unwrap(), multihash);
    }

    #[test]
    fn refuses_what_is_no_multihash() {
        for bytes in [&[][..], &[0x12], &[0x12, 2, 1], &[0x12, 1, 1, 1], &[0x92, 0x00, 1, 1], &[0x80; 12]] {
            assert_eq!(Multihash::parse(bytes).unwrap_err().kind(), ErrorKind::InvalidKey, "{bytes:?}");
        }
        let name = Multihash::parse(&[0x12, 1, 0xff]).unwrap().to_base32();
        for other in [name.to_lowercase(), format!("{name}="), format!("{name}/"), String::new(), "01".into()] {
            assert!(Multihash::parse_base32(&other).is_err(), "{other}");
        }
    }
}
