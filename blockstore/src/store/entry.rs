//! What the index holds: entries by key, a row for each segment, and the checkpoint, in one key space so that one batch carries all.

use super::{
    format::{Rot, put_varint, u64_at, varint},
    location::Location,
};
use crate::error::{Error, ErrorKind, Result};

/// Version of the index's own encoding; another one is rebuilt from the log.
const VERSION: u64 = 1;

const CHECKPOINT: &[u8] = b"c";
const ENTRY: u8 = b'k';
const SEGMENT: u8 = b's';
const DEAD: u8 = b'd';
const QUARANTINE: u8 = b'q';

/// Index key of a store key's entry.
pub(super) fn entry_key(key: &[u8]) -> Vec<u8> {
    prefixed(ENTRY, key)
}

/// Index key of a key that is dead, kept only while the index is being rebuilt.
pub(super) fn dead_key(key: &[u8]) -> Vec<u8> {
    prefixed(DEAD, key)
}

/// The store key of an index key, if it is an entry's.
pub(super) fn key_of_entry(index_key: &[u8]) -> Option<&[u8]> {
    index_key.strip_prefix(&[ENTRY])
}

/// Whether an index key is that of a dead key.
pub(super) fn is_dead_key(index_key: &[u8]) -> bool {
    index_key.first() == Some(&DEAD)
}

/// First index key of the dead ones.
pub(super) fn dead_start() -> Vec<u8> {
    vec![DEAD]
}

/// Index key of a quarantined key's row; its entry has the flag too, and they come and go in one batch.
pub(super) fn quarantine_key(key: &[u8]) -> Vec<u8> {
    prefixed(QUARANTINE, key)
}

/// The store key of an index key, if it is a quarantine row's.
pub(super) fn key_of_quarantine(index_key: &[u8]) -> Option<&[u8]> {
    index_key.strip_prefix(&[QUARANTINE])
}

/// Index key of a segment's row.
pub(super) fn segment_key(id: u64) -> Vec<u8> {
    prefixed(SEGMENT, &id.to_be_bytes())
}

/// The segment id of an index key, if it is a row's.
pub(super) fn id_of_segment(index_key: &[u8]) -> Option<u64> {
    let id = index_key.strip_prefix(&[SEGMENT])?;
    Some(u64::from_be_bytes(id.try_into().ok()?))
}

/// First index key of the segment rows.
pub(super) fn segments_start() -> Vec<u8> {
    vec![SEGMENT]
}

/// Index key of the checkpoint.
pub(super) fn checkpoint_key() -> Vec<u8> {
    CHECKPOINT.to_vec()
}

fn prefixed(prefix: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(prefix);
    key.extend_from_slice(rest);
    key
}

fn damaged(what: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "the index holds a damaged {what}: close the store, remove its index folder and open it again; the log rebuilds it"
        ),
    )
}

/// A live key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub location: Location,
    pub sequence: u64,
    pub size: u32,
    pub expires_unix_ms: u64,
    /// Its bytes were found damaged.
    pub quarantined: bool,
    /// The value itself, where it is small enough for the store's options.
    pub inline: Option<Vec<u8>>,
}

const QUARANTINED: u8 = 1;
const INLINE: u8 = 2;

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24 + self.inline.as_ref().map_or(0, Vec::len));
        out.push(if self.quarantined { QUARANTINED } else { 0 } | if self.inline.is_some() { INLINE } else { 0 });
        out.extend_from_slice(&self.location.word().to_le_bytes());
        put_varint(&mut out, self.sequence);
        put_varint(&mut out, u64::from(self.size));
        put_varint(&mut out, self.expires_unix_ms);
        if let Some(inline) = &self.inline {
            out.extend_from_slice(inline);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Entry> {
        Entry::try_decode(bytes).ok_or_else(|| damaged("entry"))
    }

    fn try_decode(bytes: &[u8]) -> Option<Entry> {
        if bytes.len() < 12 {
            return None;
        }
        let flags = bytes[0];
        let location = Location::from_word(u64_at(bytes, 1));
        let mut rest = &bytes[9..];
        let sequence = varint(&mut rest)?;
        let size = u32::try_from(varint(&mut rest)?).ok()?;
        let expires_unix_ms = varint(&mut rest)?;
        let inline = (flags & INLINE != 0).then(|| rest.to_vec());
        if inline.as_ref().map_or(!rest.is_empty(), |inline| inline.len() != size as usize) {
            return None;
        }
        Some(Entry { location, sequence, size, expires_unix_ms, quarantined: flags & QUARANTINED != 0, inline })
    }
}

/// What is known of a quarantine beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QuarantineRow {
    pub rot: Rot,
    pub found_unix_ms: u64,
}

impl QuarantineRow {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = vec![self.rot.code()];
        put_varint(&mut out, self.found_unix_ms);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<QuarantineRow> {
        let decoded = || {
            let (code, mut rest) = bytes.split_first()?;
            let row = QuarantineRow { rot: Rot::of_code(*code)?, found_unix_ms: varint(&mut rest)? };
            rest.is_empty().then_some(row)
        };
        decoded().ok_or_else(|| damaged("quarantine row"))
    }
}

/// How far into the log the index reaches, and what it counted up to there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub store_id: [u8; 16],
    /// Everything below is in the index, and was durable.
    pub position: Location,
    /// Sequence numbers below this one are used.
    pub next_sequence: u64,
    pub count: u64,
    pub bytes: u64,
    pub key_bytes: u64,
}

impl Checkpoint {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        put_varint(&mut out, VERSION);
        out.extend_from_slice(&self.store_id);
        for value in [self.position.word(), self.next_sequence, self.count, self.bytes, self.key_bytes] {
            put_varint(&mut out, value);
        }
        out
    }

    /// `None` for damage or another version: the index is rebuilt.
    pub(super) fn decode(bytes: &[u8]) -> Option<Checkpoint> {
        let mut rest = bytes;
        if varint(&mut rest)? != VERSION || rest.len() < 16 {
            return None;
        }
        let store_id = rest[..16].try_into().ok()?;
        rest = &rest[16..];
        let checkpoint = Checkpoint {
            store_id,
            position: Location::from_word(varint(&mut rest)?),
            next_sequence: varint(&mut rest)?,
            count: varint(&mut rest)?,
            bytes: varint(&mut rest)?,
            key_bytes: varint(&mut rest)?,
        };
        rest.is_empty().then_some(checkpoint)
    }
}

/// What is known of a segment without reading it. A hint for reclaim: what is freed is always checked against the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SegmentRow {
    pub nonce: [u8; 16],
    /// Where it ends; 0 while it is written to.
    pub end: u64,
    pub live_records: u64,
    pub live_bytes: u64,
    pub punched_bytes: u64,
    pub created_unix_ms: u64,
}

impl SegmentRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        out.extend_from_slice(&self.nonce);
        for value in [self.end, self.live_records, self.live_bytes, self.punched_bytes, self.created_unix_ms] {
            put_varint(&mut out, value);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<SegmentRow> {
        SegmentRow::try_decode(bytes).ok_or_else(|| damaged("segment row"))
    }

    fn try_decode(bytes: &[u8]) -> Option<SegmentRow> {
        if bytes.len() < 16 {
            return None;
        }
        let nonce = bytes[..16].try_into().ok()?;
        let mut rest = &bytes[16..];
        let row = SegmentRow {
            nonce,
            end: varint(&mut rest)?,
            live_records: varint(&mut rest)?,
            live_bytes: varint(&mut rest)?,
            punched_bytes: varint(&mut rest)?,
            created_unix_ms: varint(&mut rest)?,
        };
        rest.is_empty().then_some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back() {
        let entry = Entry {
            location: Location::new(7, 8192),
            sequence: 1 << 40,
            size: 3,
            expires_unix_ms: 9,
            quarantined: true,
            inline: Some(b"abc".to_vec()),
        };
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        let bare = Entry { inline: None, quarantined: false, ..entry };
        assert_eq!(Entry::decode(&bare.encode()).unwrap(), bare);
        let checkpoint = Checkpoint {
            store_id: [9; 16],
            position: Location::new(3, 1 << 20),
            next_sequence: 77,
            count: 5,
            bytes: 6,
            key_bytes: 7,
        };
        assert_eq!(Checkpoint::decode(&checkpoint.encode()), Some(checkpoint));
        assert_eq!(Checkpoint::decode(&checkpoint.encode()[1..]), None);
        let quarantine = QuarantineRow { rot: Rot::Digest, found_unix_ms: 1 << 41 };
        assert_eq!(QuarantineRow::decode(&quarantine.encode()).unwrap(), quarantine);
        assert!(QuarantineRow::decode(&[9, 1]).is_err());
        let row =
            SegmentRow { nonce: [4; 16], end: 9, live_records: 1, live_bytes: 2, punched_bytes: 3, created_unix_ms: 4 };
        assert_eq!(SegmentRow::decode(&row.encode()).unwrap(), row);
    }
}
