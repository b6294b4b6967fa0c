//! Batches and pages of queries as one run of bytes each, so that crossing the boundary costs one call and not one for each key.
//! `abi` documents the layouts for the header; integers are little-endian and not aligned.

use basalt_datastore::{BatchOp, Entry};
use basalt_node::query::parse_key;

use crate::outcome::{Failure, Kind, Result};

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// The operations of a batch.
pub(crate) fn batch(mut rest: &[u8]) -> Result<Vec<BatchOp>> {
    let mut ops = Vec::new();
    while let Some((&op, after)) = rest.split_first() {
        rest = after;
        let key_len = u32::from_le_bytes(fixed(&mut rest, ops.len())?) as usize;
        let value_len = u64::from_le_bytes(fixed(&mut rest, ops.len())?);
        let key = text(cut(&mut rest, key_len, ops.len())?)?;
        let value = cut(&mut rest, usize::try_from(value_len).unwrap_or(usize::MAX), ops.len())?;
        let key = parse_key(key)?;
        ops.push(match op {
            PUT => BatchOp::Put(key, value.to_vec()),
            DELETE if value.is_empty() => BatchOp::Delete(key),
            _ => return Err(malformed(ops.len(), "is neither a put nor a delete")),
        });
    }
    Ok(ops)
}

fn fixed<const N: usize>(rest: &mut &[u8], at: usize) -> Result<[u8; N]> {
    let (head, tail) = rest.split_first_chunk().ok_or_else(|| malformed(at, "is cut off"))?;
    *rest = tail;
    Ok(*head)
}

fn cut<'a>(rest: &mut &'a [u8], len: usize, at: usize) -> Result<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len).ok_or_else(|| malformed(at, "is cut off"))?;
    *rest = tail;
    Ok(head)
}

fn malformed(at: usize, what: &str) -> Failure {
    Failure::new(Kind::InvalidValue, format!("operation {at} of the batch {what}; nothing was applied"))
}

/// Bytes that must be text.
pub(crate) fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|err| {
        let shown = String::from_utf8_lossy(bytes.get(..bytes.len().min(120)).unwrap_or_default());
        Failure::new(Kind::InvalidKey, format!("'{shown}' is not valid UTF-8: {err}"))
    })
}

/// A page of a query's answer.
pub(crate) fn page(entries: &[Entry]) -> Vec<u8> {
    let bytes = entries.iter().map(|entry| 28 + entry.key.as_str().len() + entry.value.len()).sum();
    let mut out = Vec::with_capacity(bytes);
    for entry in entries {
        let key = entry.key.as_str().as_bytes();
        // A key has at most 65,535 bytes.
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(&(entry.value.len() as u64).to_le_bytes());
        out.extend_from_slice(&entry.size.to_le_bytes());
        out.extend_from_slice(&entry.expires_unix_ms.to_le_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(&entry.value);
    }
    out
}

#[cfg(test)]
mod tests {
    use basalt_datastore::Key;

    use super::*;

    fn operation(op: u8, key: &str, value: &[u8]) -> Vec<u8> {
        let mut out = vec![op];
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(value);
        out
    }

    #[test]
    fn a_batch_is_read_in_its_order() {
        let bytes = [operation(PUT, "/a", b"value"), operation(DELETE, "/b", b""), operation(PUT, "/c", b"")].concat();
        let key = |text| Key::new(text).unwrap();
        assert_eq!(
            batch(&bytes).unwrap(),
            [
                BatchOp::Put(key("/a"), b"value".to_vec()),
                BatchOp::Delete(key("/b")),
                BatchOp::Put(key("/c"), Vec::new())
            ]
        );
        assert_eq!(batch(b"").unwrap(), []);
    }

    #[test]
    fn a_batch_that_is_cut_anywhere_is_refused() {
        let first = operation(PUT, "/a", b"value");
        let bytes = [first.clone(), operation(DELETE, "/b", b"")].concat();
        for len in 1..bytes.len() {
            let whole = len == first.len();
            assert_eq!(batch(&bytes[..len]).is_ok(), whole, "{len} bytes");
        }
    }

    #[test]
    fn nonsense_in_a_batch_is_refused_by_name() {
        for (bytes, kind) in [
            (operation(3, "/a", b""), Kind::InvalidValue),
            (operation(DELETE, "/a", b"a delete has no value"), Kind::InvalidValue),
            (operation(PUT, "", b""), Kind::InvalidKey),
            ([vec![PUT, 1, 0, 0, 0], vec![0; 8], vec![0xff]].concat(), Kind::InvalidKey),
            ([vec![PUT, 0, 0, 0, 0], vec![0xff; 8]].concat(), Kind::InvalidValue),
        ] {
            assert_eq!(batch(&bytes).unwrap_err().kind, kind);
        }
    }

    #[test]
    fn a_page_has_the_documented_layout() {
        let entry = Entry { key: Key::new("/k").unwrap(), value: b"vv".to_vec(), size: 2, expires_unix_ms: 0x0102 };
        let expected = [
            &[2, 0, 0, 0][..],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[2, 1, 0, 0, 0, 0, 0, 0],
            b"/kvv",
        ]
        .concat();
        assert_eq!(page(&[entry]), expected);
    }
}
