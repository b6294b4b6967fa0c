//! Kubo's records of its pins, as boxo's dspinner writes them (`pinning/pinner/dspinner`, `dsindex`), read from its keys in this node's datastore.
//!
//! - `/pins/pin/<id>`: CBOR, a map of `cid` (bytes), `mode` (0 recursive, 1 direct), and where they are not empty `name` and `metadata`;
//! - `/pins/index/cidRindex/<cid>/<id>`: one for each recursive pin; both parts are base64url with the multibase prefix `u`; no value.
//!
//! The index is what is believed; a record is only looked at to see that it is of the kind that is known here. Nothing of this is a promise of Kubo's, so whatever
//! does not read is a reason to look no more and to ask Kubo instead.

use basalt_kubo::Cid;
use basalt_stateplane::Multihash;
use data_encoding::BASE64URL_NOPAD;
use minicbor::{Decoder, data::Type};

/// What all of Kubo's pins are beneath.
pub const PINS: &str = "/pins";
const RECORDS: &str = "/pins/pin/";
const RECURSIVE: &str = "/pins/index/cidRindex/";

/// Codecs that a pin's root may have, the likely first: of a multihash alone the codec is not known.
const CODECS: [u64; 7] = [0x70, 0x55, 0x71, 0x0129, 0x72, 0x78, 0x0202];

/// What a change of a key beneath `/pins` says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Whether this DAG is pinned may have changed.
    Touched(Multihash),
    /// Nothing of interest.
    Nothing,
    /// It is of no kind that is known here.
    Unknown(String),
}

/// Reads a change.
pub fn read(key: &str, value: Option<&[u8]>) -> Said {
    if let (true, Some(value)) = (key.starts_with(RECORDS), value) {
        return match check(value) {
            Ok(()) => Said::Nothing,
            Err(why) => Said::Unknown(format!("the record {key} {why}")),
        };
    }
    let Some((cid, _id)) = key.strip_prefix(RECURSIVE).and_then(|rest| rest.split_once('/')) else {
        return Said::Nothing;
    };
    let bytes = cid.strip_prefix('u').and_then(|text| BASE64URL_NOPAD.decode(text.as_bytes()).ok());
    let cid = bytes.and_then(|bytes| Cid::try_from(bytes.as_slice()).ok());
    match cid.and_then(|cid| Multihash::from_bytes(&cid.hash().to_bytes()).ok()) {
        Some(multihash) => Said::Touched(multihash),
        None => Said::Unknown(format!("the index has a key {key}, which names no CID")),
    }
}

fn check(value: &[u8]) -> Result<(), String> {
    let broken = |err: minicbor::decode::Error| format!("is no CBOR as it is known here: {err}");
    let mut decoder = Decoder::new(value);
    let count = decoder.map().map_err(broken)?.ok_or("is a map without a length")?;
    let (mut has_cid, mut has_mode) = (false, false);
    for _ in 0..count {
        match decoder.str().map_err(broken)? {
            "cid" => {
                let cid = decoder.bytes().map_err(broken)?;
                has_cid = Cid::try_from(cid).is_ok();
            }
            "mode" => {
                let mode = decoder.u64().map_err(broken)?;
                if mode > 1 {
                    return Err(format!("has the mode {mode}"));
                }
                has_mode = true;
            }
            "name" => {
                decoder.str().map_err(broken)?;
            }
            "metadata" if decoder.datatype().is_ok_and(|kind| matches!(kind, Type::Map | Type::MapIndef)) => {
                decoder.skip().map_err(broken)?;
            }
            other => return Err(format!("has a field '{}' that is not known here", other.escape_debug())),
        }
    }
    match has_cid && has_mode && decoder.position() == value.len() {
        true => Ok(()),
        false => Err("has no CID, no mode, or more than a map".to_owned()),
    }
}

/// The prefixes of index keys of which one has a key if a DAG with this root is pinned.
pub fn index_prefixes(multihash: &Multihash) -> Vec<String> {
    let cids = CODECS.iter().flat_map(|codec| forms(multihash, *codec));
    cids.map(|cid| format!("{RECURSIVE}u{}", BASE64URL_NOPAD.encode(&cid.to_bytes()))).collect()
}

/// The CIDs that name this root with this codec. Kubo tells them apart: what was pinned by the one is not unpinned by the other.
pub fn forms(multihash: &Multihash, codec: u64) -> Vec<Cid> {
    let Ok(hash) = cid_multihash(multihash) else { return Vec::new() };
    let mut forms = Vec::new();
    if codec == 0x70 {
        forms.extend(Cid::new_v0(hash));
    }
    forms.push(Cid::new_v1(codec, hash));
    forms
}

/// All CIDs that may name this root, the likely first; `codecs` are likelier than others.
pub fn all_forms(multihash: &Multihash, codecs: &[u64]) -> Vec<Cid> {
    let others = CODECS.iter().filter(|codec| !codecs.contains(codec));
    codecs.iter().chain(others).flat_map(|codec| forms(multihash, *codec)).collect()
}

fn cid_multihash(multihash: &Multihash) -> Result<cid::multihash::Multihash<128>, cid::multihash::Error> {
    cid::multihash::Multihash::from_bytes(multihash.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multihash(n: u8) -> Multihash {
        Multihash::from_bytes(&[&[0x12, 0x20][..], &[n; 32]].concat()).unwrap()
    }

    fn record(fields: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0xa0 + fields.len() as u8];
        for (name, value) in fields {
            bytes.push(0x60 + name.len() as u8);
            bytes.extend(name.as_bytes());
            bytes.extend(*value);
        }
        bytes
    }

    fn cid(n: u8) -> Vec<u8> {
        [&[0x58, 34][..], multihash(n).as_bytes()].concat()
    }

    #[test]
    fn records_of_kubo_0_43_are_known() {
        // As a Kubo 0.43 wrote them: `ipfs pin add --name=a-name` of a CIDv0, and of a CIDv1 without a name.
        for hex in GOLDEN {
            let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
            assert_eq!(read("/pins/pin/f2ZLqHRbAcpGHr3hTnSy6A", Some(&bytes)), Said::Nothing, "{hex}");
        }
    }

    #[test]
    fn what_is_not_known_is_said_so() {
        let known: &[(&str, &[u8])] = &[("cid", &cid(1)), ("mode", &[0])];
        assert_eq!(read("/pins/pin/x", Some(&record(known))), Said::Nothing);
        let metadata: &[(&str, &[u8])] = &[("cid", &cid(1)), ("metadata", &[0xa1, 0x61, b'k', 1]), ("mode", &[1])];
        assert_eq!(read("/pins/pin/x", Some(&record(metadata))), Said::Nothing);
        for (fields, why) in [
            (&[("cid", &cid(1)[..]), ("mode", &[2])][..], "mode 2"),
            (&[("cid", &cid(1)), ("mode", &[0]), ("version", &[2])], "field 'version'"),
            (&[("cid", &cid(1))], "no mode"),
            (&[("mode", &[0])], "no CID"),
            (&[("cid", &[0x43, 1, 2, 3]), ("mode", &[0])], "no CID"),
            (&[("cid", &[0x61, b'x']), ("mode", &[0])], "no CBOR"),
        ] {
            match read("/pins/pin/x", Some(&record(fields))) {
                Said::Unknown(said) => assert!(said.contains(why), "{said}"),
                other => panic!("{fields:?}: {other:?}"),
            }
        }
        for length in 0..record(known).len() {
            let cut = &record(known)[..length];
            assert!(matches!(read("/pins/pin/x", Some(cut)), Said::Unknown(_)), "{length}");
        }
        assert!(matches!(read("/pins/index/cidRindex/zabc/uabc", None), Said::Unknown(_)));
    }

    #[test]
    fn the_index_names_the_dag_by_any_of_its_cids() {
        for cid in all_forms(&multihash(3), &[]) {
            let key = format!("{RECURSIVE}u{}/uSomeId", BASE64URL_NOPAD.encode(&cid.to_bytes()));
            assert_eq!(read(&key, Some(b"")), Said::Touched(multihash(3)));
            assert_eq!(read(&key, None), Said::Touched(multihash(3)));
            assert!(index_prefixes(&multihash(3)).iter().any(|prefix| key.starts_with(&format!("{prefix}/"))));
        }
        for key in ["/pins/state/dirty", "/pins/index/nameIndex/ux/uy", "/pins/index/cidDindex/ux/uy"] {
            assert_eq!(read(key, Some(b"")), Said::Nothing);
        }
        assert_eq!(read("/pins/pin/x", None), Said::Nothing);
    }

    const GOLDEN: [&str; 2] = [
        "a36363696458221220a568e404d8eadaec925ac3bc1b36259c0f6d70000d729cd918c46a836f497657646d6f646500646e616d6566612d6e616d65",
        "a263636964582401551220167112362adb3b2041c11f7337437872f9d821e57e8c3edd68d87a1d0babd0f5646d6f646500",
    ];
}
