//! What a block links to, for the codecs that IPFS nodes hold: dag-pb (UnixFS), dag-cbor, and those without links.

use crate::cid::{Cid, DAG_PB, RAW};

/// Codec `dag-cbor`.
const DAG_CBOR: u64 = 0x71;
/// Codec `libp2p-key`: a public key, which links to nothing.
const LIBP2P_KEY: u64 = 0x72;
/// Deepest nesting of lists and maps in one dag-cbor block.
const CBOR_DEPTH_MAX: u32 = 256;

/// PBNode of the dag-pb specification, as far as it matters here.
#[derive(Clone, PartialEq, prost::Message)]
struct PbNode {
    #[prost(message, repeated, tag = "2")]
    links: Vec<PbLink>,
}

/// PBLink of the dag-pb specification, as far as it matters here.
#[derive(Clone, PartialEq, prost::Message)]
struct PbLink {
    #[prost(bytes = "vec", tag = "1")]
    hash: Vec<u8>,
}

/// The CIDs that a block links to, in order. A codec whose links are not known is an error, because leaving them out would cut a DAG.
pub fn links(cid: &Cid, data: &[u8]) -> Result<Vec<Cid>, String> {
    match cid.codec() {
        RAW | LIBP2P_KEY => Ok(Vec::new()),
        DAG_PB => {
            let node: PbNode = prost::Message::decode(data).map_err(|err| format!("{cid} is no dag-pb: {err}"))?;
            node.links
                .iter()
                .map(|link| Cid::parse(&link.hash).map_err(|err| format!("a link of {cid}: {err}")))
                .collect()
        }
        DAG_CBOR => {
            let mut found = Vec::new();
            let mut decoder = minicbor::Decoder::new(data);
            walk(&mut decoder, &mut found, CBOR_DEPTH_MAX).map_err(|err| format!("{cid} is no dag-cbor: {err}"))?;
            Ok(found)
        }
        other => Err(format!(
            "{cid} has the codec 0x{other:x}, whose links are not known here: export the whole node instead"
        )),
    }
}

/// Collects the links of one item of CBOR.
fn walk(decoder: &mut minicbor::Decoder<'_>, found: &mut Vec<Cid>, depth: u32) -> Result<(), String> {
    use minicbor::data::Type;
    let failed = |err: minicbor::decode::Error| err.to_string();
    let depth = depth.checked_sub(1).ok_or("lists and maps are nested too deep")?;
    let indefinite = "a list or map of indefinite length";
    match decoder.datatype().map_err(failed)? {
        Type::Tag => {
            let tag = decoder.tag().map_err(failed)?;
            if tag.as_u64() != 42 {
                return Err(format!("tag {} is no link", tag.as_u64()));
            }
            match decoder.bytes().map_err(failed)? {
                [0, link @ ..] => found.push(Cid::parse(link)?),
                _ => return Err("a link has no prefix 0".into()),
            }
            Ok(())
        }
        Type::Array => {
            let count = decoder.array().map_err(failed)?.ok_or(indefinite)?;
            (0..count).try_for_each(|_| walk(decoder, found, depth))
        }
        Type::Map => {
            let count = decoder.map().map_err(failed)?.ok_or(indefinite)?;
            (0..count).try_for_each(|_| {
                decoder.str().map_err(failed)?;
                walk(decoder, found, depth)
            })
        }
        Type::ArrayIndef | Type::MapIndef => Err(indefinite.into()),
        _ => decoder.skip().map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use basalt_blockstore::Multihash;

    use super::*;

    fn cid(n: u8, codec: u8) -> Cid {
        let mut bytes = vec![1, codec, 0x12, 32];
        bytes.extend([n; 32]);
        Cid::parse(&bytes).unwrap()
    }

    #[test]
    fn an_empty_directory_and_raw_blocks_link_to_nothing() {
        let directory: Cid = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn".parse().unwrap();
        assert_eq!(links(&directory, &[0x0a, 0x02, 0x08, 0x01]).unwrap(), []);
        assert_eq!(links(&cid(1, 0x55), b"\x12\xff").unwrap(), []);
    }

    #[test]
    fn links_of_dag_pb_come_in_order_whatever_their_version() {
        let v0 = Cid::parse(&[&[0x12, 0x20][..], &[7; 32]].concat()).unwrap();
        let targets = [cid(2, 0x55), v0, cid(1, 0x70)];
        let mut data = Vec::new();
        for target in &targets {
            let hash = target.to_bytes();
            // A PBLink with a name and a size, as UnixFS writes them.
            let link = [&[0x0a, hash.len() as u8][..], &hash, &[0x12, 1, b'n', 0x18, 9]].concat();
            data.extend([0x12, link.len() as u8]);
            data.extend(link);
        }
        data.extend([0x0a, 0x02, 0x08, 0x01]);
        assert_eq!(links(&cid(9, 0x70), &data).unwrap(), targets);
        assert!(links(&cid(9, 0x70), &data[..20]).is_err());
    }

    #[test]
    fn links_of_dag_cbor_are_found_at_any_depth() {
        let target = cid(3, 0x71).to_bytes();
        let mut link = vec![0xd8, 42, 0x58, target.len() as u8 + 1, 0];
        link.extend(&target);
        // {"a": [1, {"b": link}], "c": link}
        let data = [&[0xa2, 0x61, b'a', 0x82, 1, 0xa1, 0x61, b'b'][..], &link, &[0x61, b'c'], &link].concat();
        assert_eq!(links(&cid(9, 0x71), &data).unwrap(), [cid(3, 0x71), cid(3, 0x71)]);
        assert!(links(&cid(9, 0x71), &data[..data.len() - 1]).is_err());
        assert!(links(&cid(9, 0x71), &[0x81; 10_000]).unwrap_err().contains("too deep"));
        assert!(links(&cid(9, 0x71), &[0x9f, 0xff]).unwrap_err().contains("indefinite"));
    }

    #[test]
    fn a_codec_whose_links_are_unknown_is_refused() {
        let multihash = Multihash::parse(&[&[0x12, 32][..], &[5; 32]].concat()).unwrap();
        let git = Cid::parse(&[&[1, 0x78][..], multihash.as_bytes()].concat()).unwrap();
        assert!(links(&git, b"").unwrap_err().contains("0x78"));
    }
}
