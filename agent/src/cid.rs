//! CIDs as CAR files and people write them. A node keeps blocks by multihash alone; the codec lives only here.

use std::{fmt, str::FromStr};

use basalt_blockstore::Multihash;
use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};

/// Codec `raw` of the multicodec table: bytes that refer to nothing that we know of.
pub const RAW: u64 = 0x55;
/// Codec `dag-pb`: UnixFS, and every CIDv0.
pub const DAG_PB: u64 = 0x70;

/// A content identifier: version, codec and multihash.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Cid {
    /// 0 or 1.
    version: u8,
    codec: u64,
    multihash: Multihash,
}

impl Cid {
    /// A CIDv1 of codec `raw`: what Basalt calls a block of which it knows only the multihash.
    pub fn raw(multihash: Multihash) -> Cid {
        Cid { version: 1, codec: RAW, multihash }
    }

    /// The multihash.
    pub fn multihash(&self) -> &Multihash {
        &self.multihash
    }

    /// The codec, as in the multicodec table; dag-pb for a CIDv0.
    pub fn codec(&self) -> u64 {
        self.codec
    }

    /// The binary form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.multihash.as_bytes().len());
        if self.version == 1 {
            bytes.push(1);
            write_varint(self.codec, &mut bytes);
        }
        bytes.extend_from_slice(self.multihash.as_bytes());
        bytes
    }

    /// Parses the binary form, all of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Cid, String> {
        match Cid::read(bytes)? {
            (cid, used) if used == bytes.len() => Ok(cid),
            (_, used) => Err(format!("a CID of {used} bytes is followed by {} more", bytes.len() - used)),
        }
    }

    /// Parses the CID that `bytes` begin with; returns its length too.
    pub fn read(bytes: &[u8]) -> Result<(Cid, usize), String> {
        if bytes.starts_with(&[0x12, 0x20]) {
            let multihash = bytes.get(..34).ok_or("a CIDv0 needs 34 bytes")?;
            let multihash = Multihash::parse(multihash).map_err(|err| err.to_string())?;
            return Ok((Cid { version: 0, codec: DAG_PB, multihash }, 34));
        }
        let (version, a) = read_varint(bytes).ok_or("bad CID version")?;
        if version != 1 {
            return Err(format!("CID version {version} is not known; 0 and 1 are"));
        }
        let rest = &bytes[a..];
        let (codec, b) = read_varint(rest).ok_or("bad CID codec")?;
        let rest = &rest[b..];
        let (_, c) = read_varint(rest).ok_or("bad multihash code")?;
        let (digest_len, d) = read_varint(&rest[c..]).ok_or("bad multihash length")?;
        let end = usize::try_from(digest_len).ok().and_then(|len| len.checked_add(c + d));
        let multihash = end.and_then(|end| rest.get(..end)).ok_or("the multihash is longer than its surroundings")?;
        let multihash = Multihash::parse(multihash).map_err(|err| err.to_string())?;
        let used = a + b + multihash.as_bytes().len();
        Ok((Cid { version: 1, codec, multihash }, used))
    }
}

impl FromStr for Cid {
    type Err = String;

    /// Parses `Qm...` and the multibases in use: base32 (`b`, `B`), base58 (`z`), hexadecimal (`f`, `F`), base64 (`m`, `u`).
    fn from_str(text: &str) -> Result<Cid, String> {
        let refuse = |why: String| format!("'{text}' is not a CID: {why}");
        if text.len() > 512 {
            return Err("not a CID: longer than 512 characters".into());
        }
        if text.starts_with("Qm") {
            let bytes = bs58::decode(text).into_vec().map_err(|err| refuse(err.to_string()))?;
            return match bytes.starts_with(&[0x12, 0x20]) && bytes.len() == 34 {
                true => Cid::parse(&bytes).map_err(refuse),
                false => Err(refuse("a CIDv0 has 46 characters; this one is cut or has more".into())),
            };
        }
        let Some(base) = text.chars().next().filter(char::is_ascii) else {
            return Err(refuse("it is empty or begins with a character of no multibase".into()));
        };
        let digits = &text.as_bytes()[1..];
        let bytes = match base {
            'b' if digits.iter().any(u8::is_ascii_uppercase) => Err("multibase 'b' is lower case".into()),
            'b' => BASE32_NOPAD.decode(&digits.to_ascii_uppercase()).map_err(|err| err.to_string()),
            'B' => BASE32_NOPAD.decode(digits).map_err(|err| err.to_string()),
            'z' => bs58::decode(digits).into_vec().map_err(|err| err.to_string()),
            'f' | 'F' => HEXLOWER_PERMISSIVE.decode(digits).map_err(|err| err.to_string()),
            'm' => BASE64_NOPAD.decode(digits).map_err(|err| err.to_string()),
            'u' => BASE64URL_NOPAD.decode(digits).map_err(|err| err.to_string()),
            _ => Err(format!("multibase '{base}' is not known")),
        };
        let cid = Cid::parse(&bytes.map_err(refuse)?).map_err(refuse)?;
        if cid.version == 0 {
            return Err(refuse("a CIDv0 has no multibase prefix".into()));
        }
        Ok(cid)
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            0 => f.write_str(&bs58::encode(self.multihash.as_bytes()).into_string()),
            _ => write!(f, "b{}", BASE32_NOPAD.encode(&self.to_bytes()).to_ascii_lowercase()),
        }
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads an unsigned varint of at most 9 bytes in its shortest form; returns its length too.
pub fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return (byte != 0 || i == 0).then_some((value, i + 1));
        }
    }
    None
}

/// Appends an unsigned varint.
pub fn write_varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CIDs of the empty UnixFS directory and of "hello world" as Kubo prints them.
    const EMPTY_DIR_V0: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";
    const EMPTY_DIR_V1: &str = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354";

    #[test]
    fn both_versions_of_a_cid_share_a_multihash() {
        let v0: Cid = EMPTY_DIR_V0.parse().unwrap();
        let v1: Cid = EMPTY_DIR_V1.parse().unwrap();
        assert_eq!(v0.multihash(), v1.multihash());
        assert_eq!((v0.codec(), v1.codec()), (DAG_PB, DAG_PB));
        assert_eq!((v0.to_string(), v1.to_string()), (EMPTY_DIR_V0.to_string(), EMPTY_DIR_V1.to_string()));
    }

    #[test]
    fn every_multibase_in_use_reads_back() {
        let cid: Cid = EMPTY_DIR_V1.parse().unwrap();
        let bytes = cid.to_bytes();
        for text in [
            format!("B{}", BASE32_NOPAD.encode(&bytes)),
            format!("z{}", bs58::encode(&bytes).into_string()),
            format!("f{}", data_encoding::HEXLOWER.encode(&bytes)),
            format!("m{}", BASE64_NOPAD.encode(&bytes)),
            format!("u{}", BASE64URL_NOPAD.encode(&bytes)),
        ] {
            assert_eq!(text.parse::<Cid>().unwrap(), cid, "{text}");
        }
    }

    #[test]
    fn what_is_no_cid_is_refused_with_its_reason() {
        for text in
            ["", "Qm", "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3N", "b", "bafy", "x1234", "ü", "b1", "bcaqq"]
        {
            let err = text.parse::<Cid>().unwrap_err();
            assert!(err.contains("not a CID"), "{text}: {err}");
        }
        assert!("z".repeat(600).parse::<Cid>().is_err());
    }

    #[test]
    fn a_cid_is_read_off_the_front_of_a_section() {
        for text in [EMPTY_DIR_V0, EMPTY_DIR_V1] {
            let cid: Cid = text.parse().unwrap();
            let mut section = cid.to_bytes();
            let len = section.len();
            section.extend(b"payload");
            assert_eq!(Cid::read(&section).unwrap(), (cid, len));
            assert!(Cid::parse(&section).is_err());
        }
    }

    #[test]
    fn varints_read_back_and_only_in_their_shortest_form() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), (1 << 63) - 1] {
            let mut bytes = Vec::new();
            write_varint(value, &mut bytes);
            assert_eq!(read_varint(&bytes), Some((value, bytes.len())));
        }
        for bad in [&[][..], &[0x80], &[0x80, 0x00], &[0xff; 10]] {
            assert_eq!(read_varint(bad), None, "{bad:?}");
        }
    }
}
