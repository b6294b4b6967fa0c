//! The bytes of the log: segment headers and records. `docs/format.md` is the same in words; golden files hold both still.
//!
//! All integers are little-endian. A segment is `HEADER | HEADER again | record | record | ...`, and every record starts at a
//! multiple of [`ALIGN`].

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::error::{Error, ErrorKind, Result};

/// Version of the segment format that this build writes, and the highest that it reads. Version 2 added [`Kind::Quarantine`]; what version 1
/// wrote is version 2 without it.
pub const VERSION: u16 = 2;
/// Size of one copy of the segment header, in bytes. Two copies stand in two pages, so that no single bad page loses a segment.
pub const HEADER_BYTES: usize = 4096;
/// Offset of the first record.
pub const RECORDS_START: u64 = 2 * HEADER_BYTES as u64;
/// Records start at multiples of this.
pub const ALIGN: u64 = 8;
/// Size of a record's header without its key, in bytes.
pub const RECORD_HEADER_BYTES: usize = 56;
/// Longest key that a record can hold, in bytes.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;

const MAGIC: [u8; 8] = *b"BASALTSG";
/// The segment header is checked with a fixed key: it is what tells the nonce.
const HEADER_KEY: [u8; 16] = *b"basalt segment 1";

/// What a segment says of itself, flushed alone before the segment gets its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Never used again in this store.
    pub id: u64,
    /// Random; keys the tag of every record, so that neither recycled bytes nor bytes that a user chose pass for a record.
    pub nonce: [u8; 16],
    /// The store that it belongs to.
    pub store_id: [u8; 16],
    /// The opening of the store that made it.
    pub incarnation: [u8; 16],
    /// The segment before; 0 for none.
    pub previous: u64,
    /// Where the segment before ends. What it holds above is never read again.
    pub previous_end: u64,
    /// Where the copies that were adopted from the segment before end; [`RECORDS_START`] where there are none. The segment counts
    /// only once a record of it carries a mark at or above this.
    pub adopted_end: u64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

impl SegmentHeader {
    /// Both copies, ready to be written at offset 0.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_as(VERSION)
    }

    /// Both copies as another version would begin: what a test of the refusal needs.
    pub fn encode_as(&self, version: u16) -> Vec<u8> {
        let mut page = vec![0u8; HEADER_BYTES];
        page[0..8].copy_from_slice(&MAGIC);
        page[8..10].copy_from_slice(&version.to_le_bytes());
        page[16..24].copy_from_slice(&self.id.to_le_bytes());
        page[24..40].copy_from_slice(&self.nonce);
        page[40..56].copy_from_slice(&self.store_id);
        page[56..72].copy_from_slice(&self.incarnation);
        page[72..80].copy_from_slice(&self.previous.to_le_bytes());
        page[80..88].copy_from_slice(&self.previous_end.to_le_bytes());
        page[88..96].copy_from_slice(&self.adopted_end.to_le_bytes());
        page[96..104].copy_from_slice(&self.created_unix_ms.to_le_bytes());
        let check = header_check(&page);
        page[HEADER_BYTES - 8..].copy_from_slice(&check.to_le_bytes());
        page.extend_from_within(..);
        page
    }

    /// Reads one copy. `Ok(None)` is damage; a newer version is refused.
    pub fn decode(page: &[u8]) -> Result<Option<SegmentHeader>> {
        if page.len() < HEADER_BYTES || page[0..8] != MAGIC {
            return Ok(None);
        }
        let page = &page[..HEADER_BYTES];
        if header_check(page) != u64_at(page, HEADER_BYTES - 8) {
            return Ok(None);
        }
        let version = u16::from_le_bytes([page[8], page[9]]);
        if !(1..=VERSION).contains(&version) {
            return Err(Error::new(
                ErrorKind::Format,
                format!(
                    "segment format version {version} is not known to this build, which reads up to {VERSION}: run a \
                     newer basalt, or export with the one that wrote it"
                ),
            ));
        }
        Ok(Some(SegmentHeader {
            id: u64_at(page, 16),
            nonce: bytes16(page, 24),
            store_id: bytes16(page, 40),
            incarnation: bytes16(page, 56),
            previous: u64_at(page, 72),
            previous_end: u64_at(page, 80),
            adopted_end: u64_at(page, 88),
            created_unix_ms: u64_at(page, 96),
        }))
    }
}

fn header_check(page: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(&HEADER_KEY);
    hasher.write(&page[..HEADER_BYTES - 8]);
    hasher.finish()
}

/// Checks a note that stands in a file of its own.
pub(super) fn note_check(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(&HEADER_KEY);
    hasher.write(bytes);
    hasher.finish()
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A key and its value.
    Put,
    /// A key that is gone.
    Tombstone,
    /// Headers of the records since the summary before; also the mark of an idle or closed log.
    Summary,
    /// The end of a sealed segment, always its last bytes.
    Seal,
    /// The bytes of a key's put were found damaged; holds until a newer put or tombstone of the key.
    Quarantine,
}

impl Kind {
    /// Whether it is about one key, and so in summaries, counted by seals, adopted and replayed.
    pub(super) fn has_key(self) -> bool {
        matches!(self, Kind::Put | Kind::Tombstone | Kind::Quarantine)
    }

    fn code(self) -> u8 {
        match self {
            Kind::Put => 1,
            Kind::Tombstone => 2,
            Kind::Summary => 3,
            Kind::Seal => 4,
            Kind::Quarantine => 5,
        }
    }

    fn of_code(code: u8) -> Option<Kind> {
        [Kind::Put, Kind::Tombstone, Kind::Summary, Kind::Seal, Kind::Quarantine]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// The record behind is part of the same atomic group.
pub const FLAG_CONTINUES: u8 = 1;
/// A copy that keeps the sequence number of what it copies.
pub const FLAG_MOVED: u8 = 2;

/// The header of a record, without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it is.
    pub kind: Kind,
    /// `FLAG_*`.
    pub flags: u8,
    /// Length of the key in bytes.
    pub key_len: u16,
    /// Length of the payload in bytes.
    pub payload_len: u32,
    /// CRC-32 (IEEE) of the payload.
    pub payload_crc: u32,
    /// Place in the order of all writes of the node.
    pub sequence: u64,
    /// Offset below which this segment was known durable when the record was written.
    pub mark: u64,
    /// The segment of the older record of the same key that this one kills, or quarantines; 0 for none.
    pub victim: u64,
    /// When the value is gone by itself, in milliseconds since the Unix epoch; 0 for never.
    pub expires_unix_ms: u64,
}

/// Bytes that a record takes in the log.
pub fn record_bytes(key_len: usize, payload_len: usize) -> u64 {
    ((RECORD_HEADER_BYTES + key_len + payload_len) as u64).next_multiple_of(ALIGN)
}

impl RecordHeader {
    /// Bytes of the whole record in the log.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(usize::from(self.key_len), self.payload_len as usize)
    }

    /// Offset of the payload in the record.
    pub fn payload_start(&self) -> u64 {
        (RECORD_HEADER_BYTES + usize::from(self.key_len)) as u64
    }

    /// Header and key as they stand at `offset` of a segment with that nonce.
    pub fn encode(&self, nonce: &[u8; 16], offset: u64, key: &[u8], out: &mut Vec<u8>) {
        debug_assert_eq!(key.len(), usize::from(self.key_len));
        let start = out.len();
        out.extend_from_slice(&[0; 8]);
        out.push(self.kind.code());
        out.push(self.flags);
        out.extend_from_slice(&self.key_len.to_le_bytes());
        out.extend_from_slice(&self.payload_len.to_le_bytes());
        out.extend_from_slice(&self.payload_crc.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.mark.to_le_bytes());
        out.extend_from_slice(&self.victim.to_le_bytes());
        out.extend_from_slice(&self.expires_unix_ms.to_le_bytes());
        out.extend_from_slice(key);
        let tag = tag(nonce, offset, &out[start + 8..]);
        out[start..start + 8].copy_from_slice(&tag.to_le_bytes());
    }

    /// Reads the fields of a header without checking its tag; `None` for what can't be a header.
    pub fn parse(bytes: &[u8]) -> Option<RecordHeader> {
        if bytes.len() < RECORD_HEADER_BYTES || u32_at(bytes, 20) != 0 {
            return None;
        }
        let kind = Kind::of_code(bytes[8])?;
        if bytes[9] & !(FLAG_CONTINUES | FLAG_MOVED) != 0 {
            return None;
        }
        Some(RecordHeader {
            kind,
            flags: bytes[9],
            key_len: u16::from_le_bytes([bytes[10], bytes[11]]),
            payload_len: u32_at(bytes, 12),
            payload_crc: u32_at(bytes, 16),
            sequence: u64_at(bytes, 24),
            mark: u64_at(bytes, 32),
            victim: u64_at(bytes, 40),
            expires_unix_ms: u64_at(bytes, 48),
        })
    }

    /// Reads a header with its key behind it, as it stands at `offset`; `None` unless the tag is right.
    pub fn decode(nonce: &[u8; 16], offset: u64, bytes: &[u8]) -> Option<RecordHeader> {
        let header = RecordHeader::parse(bytes)?;
        let end = RECORD_HEADER_BYTES + usize::from(header.key_len);
        let checked = bytes.get(8..end)?;
        (tag(nonce, offset, checked) == u64_at(bytes, 0)).then_some(header)
    }
}

fn tag(nonce: &[u8; 16], offset: u64, rest: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(nonce);
    hasher.write(&offset.to_le_bytes());
    hasher.write(rest);
    hasher.finish()
}

/// CRC-32 (IEEE) as records carry it.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The headers of a run of neighbouring records, as a summary holds them, so that a rebuild reads no payloads.
///
/// Payload: offset of the summary before (0 for none) | offset of the first record | count, each as u64, then for each record varints:
/// kind and flags, key length, payload length, sequence, victim, expiry; then its key.
#[derive(Clone, Debug, Default)]
pub struct SummaryBuilder {
    previous: u64,
    first: u64,
    end: u64,
    count: u64,
    entries: Vec<u8>,
}

/// One record as a summary tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summarised {
    /// Offset of the record in its segment.
    pub offset: u64,
    /// Its header; the CRC and the mark are not in a summary and read as 0.
    pub header: RecordHeader,
    /// Its key.
    pub key: Vec<u8>,
}

impl SummaryBuilder {
    /// Begins behind the summary at `previous` (0 for none); the next record will stand at `first`.
    pub fn new(previous: u64, first: u64) -> SummaryBuilder {
        SummaryBuilder { previous, first, end: first, count: 0, entries: Vec::new() }
    }

    /// Adds the record that stands at the end of what was added before.
    pub fn add(&mut self, header: &RecordHeader, key: &[u8]) {
        put_varint(&mut self.entries, u64::from(header.kind.code()) | u64::from(header.flags) << 3);
        put_varint(&mut self.entries, u64::from(header.key_len));
        put_varint(&mut self.entries, u64::from(header.payload_len));
        put_varint(&mut self.entries, header.sequence);
        put_varint(&mut self.entries, header.victim);
        put_varint(&mut self.entries, header.expires_unix_ms);
        self.entries.extend_from_slice(key);
        self.end += header.record_bytes();
        self.count += 1;
    }

    /// Records so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Offset of the summary before this one.
    pub fn previous(&self) -> u64 {
        self.previous
    }

    /// Bytes of the payload so far.
    pub fn payload_bytes(&self) -> usize {
        24 + self.entries.len()
    }

    /// The payload.
    pub fn payload(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(self.payload_bytes());
        payload.extend_from_slice(&self.previous.to_le_bytes());
        payload.extend_from_slice(&self.first.to_le_bytes());
        payload.extend_from_slice(&self.count.to_le_bytes());
        payload.extend_from_slice(&self.entries);
        payload
    }
}

/// A summary's payload, read back: the offset of the summary before, and the records. `None` is damage.
pub fn read_summary(payload: &[u8]) -> Option<(u64, Vec<Summarised>)> {
    if payload.len() < 24 {
        return None;
    }
    let (previous, mut offset, count) = (u64_at(payload, 0), u64_at(payload, 8), u64_at(payload, 16));
    let mut rest = &payload[24..];
    let mut records = Vec::new();
    for _ in 0..count {
        let tagged = varint(&mut rest)?;
        let kind = Kind::of_code((tagged & 7) as u8).filter(|kind| *kind != Kind::Seal)?;
        let header = RecordHeader {
            kind,
            flags: u8::try_from(tagged >> 3).ok()?,
            key_len: u16::try_from(varint(&mut rest)?).ok()?,
            payload_len: u32::try_from(varint(&mut rest)?).ok()?,
            payload_crc: 0,
            sequence: varint(&mut rest)?,
            mark: 0,
            victim: varint(&mut rest)?,
            expires_unix_ms: varint(&mut rest)?,
        };
        let key = rest.get(..usize::from(header.key_len))?.to_vec();
        rest = &rest[usize::from(header.key_len)..];
        records.push(Summarised { offset, header, key });
        offset = offset.checked_add(header.record_bytes())?;
    }
    rest.is_empty().then_some((previous, records))
}

/// What was found wrong with the bytes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// The header or key of its record.
    Header,
    /// Its payload, by the CRC.
    Payload,
    /// Record and CRC are whole, but the value does not hash to the key.
    Digest,
    /// The disk refuses to read it, again and again, while it reads what is beside it.
    Unreadable,
    /// The file of its segment is gone.
    Missing,
}

impl Rot {
    const ALL: [Rot; 5] = [Rot::Header, Rot::Payload, Rot::Digest, Rot::Unreadable, Rot::Missing];

    pub(super) fn code(self) -> u8 {
        match self {
            Rot::Header => 1,
            Rot::Payload => 2,
            Rot::Digest => 3,
            Rot::Unreadable => 4,
            Rot::Missing => 5,
        }
    }

    pub(super) fn of_code(code: u8) -> Option<Rot> {
        Rot::ALL.into_iter().find(|rot| rot.code() == code)
    }

    /// What it is, for people.
    pub fn about(self) -> &'static str {
        match self {
            Rot::Header => "the header of its record is damaged",
            Rot::Payload => "its bytes don't match their checksum",
            Rot::Digest => "its bytes don't hash to it",
            Rot::Unreadable => "the disk can't read its bytes",
            Rot::Missing => "the segment file that held it is missing",
        }
    }
}

/// The payload of a [`Kind::Quarantine`]: which record is damaged, so that a rebuild that can't read that record knows of it all the same. Its
/// segment is the header's `victim`, its expiry the header's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuarantineMark {
    /// Sequence number of the damaged record.
    pub sequence: u64,
    /// Its offset in its segment.
    pub offset: u64,
    /// When it was found, in milliseconds since the Unix epoch.
    pub found_unix_ms: u64,
    /// Length of its payload in bytes.
    pub size: u32,
    /// What was wrong.
    pub rot: Rot,
}

/// Length of the payload of a quarantine record.
pub const QUARANTINE_PAYLOAD_BYTES: usize = 32;

impl QuarantineMark {
    /// Its bytes.
    pub fn encode(&self) -> [u8; QUARANTINE_PAYLOAD_BYTES] {
        let mut bytes = [0; QUARANTINE_PAYLOAD_BYTES];
        bytes[0..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.found_unix_ms.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.size.to_le_bytes());
        bytes[28] = self.rot.code();
        bytes
    }

    /// Reads it back; `None` for what it can't be.
    pub fn decode(bytes: &[u8]) -> Option<QuarantineMark> {
        if bytes.len() != QUARANTINE_PAYLOAD_BYTES || bytes[29..] != [0; 3] {
            return None;
        }
        let offset = u64_at(bytes, 8);
        if offset < RECORDS_START || !offset.is_multiple_of(ALIGN) || offset > u64::from(u32::MAX) * ALIGN {
            return None;
        }
        Some(QuarantineMark {
            sequence: u64_at(bytes, 0),
            offset,
            found_unix_ms: u64_at(bytes, 16),
            size: u32_at(bytes, 24),
            rot: Rot::of_code(bytes[28])?,
        })
    }
}

/// Length of a seal's payload: offset of the last summary and number of records, each as u64.
pub const SEAL_PAYLOAD_BYTES: usize = 16;

/// Bytes of a whole seal record.
pub fn seal_bytes() -> u64 {
    record_bytes(0, SEAL_PAYLOAD_BYTES)
}

/// Appends an unsigned LEB128 varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes an unsigned LEB128 varint off the front; `None` for one that is cut or has more than 64 bits.
pub fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (i, &byte) in rest.iter().take(10).enumerate() {
        let (bits, shift) = (u64::from(byte & 0x7f), 7 * i as u32);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Some(value);
        }
    }
    None
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn bytes16(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&bytes[at..at + 16]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> RecordHeader {
        RecordHeader {
            kind: Kind::Put,
            flags: FLAG_CONTINUES,
            key_len: 3,
            payload_len: 5,
            payload_crc: crc32(b"value"),
            sequence: 300,
            mark: 8192,
            victim: 7,
            expires_unix_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn record_header_reads_back_only_at_its_place_in_its_segment() {
        let mut bytes = Vec::new();
        header().encode(&[1; 16], 8192, b"key", &mut bytes);
        assert_eq!(RecordHeader::decode(&[1; 16], 8192, &bytes), Some(header()));
        assert_eq!(RecordHeader::decode(&[1; 16], 8200, &bytes), None, "another offset");
        assert_eq!(RecordHeader::decode(&[2; 16], 8192, &bytes), None, "another life of the space");
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(RecordHeader::decode(&[1; 16], 8192, &flipped), None, "a flip at byte {at}");
        }
    }

    #[test]
    fn segment_header_reads_back_and_refuses_newer_versions() {
        let header = SegmentHeader {
            id: 9,
            nonce: [1; 16],
            store_id: [2; 16],
            incarnation: [3; 16],
            previous: 8,
            previous_end: 12_345,
            adopted_end: RECORDS_START,
            created_unix_ms: 5,
        };
        let mut bytes = header.encode();
        assert_eq!(bytes.len() as u64, RECORDS_START);
        assert_eq!(SegmentHeader::decode(&bytes[..HEADER_BYTES]).unwrap(), Some(header.clone()));
        assert_eq!(SegmentHeader::decode(&bytes[HEADER_BYTES..]).unwrap(), Some(header));
        let older = header_of_version(&bytes, 1);
        assert_eq!(SegmentHeader::decode(&older).unwrap().unwrap().id, 9, "what version 1 wrote is read");
        bytes[8] = VERSION as u8 + 1;
        assert_eq!(SegmentHeader::decode(&bytes).unwrap(), None, "a flip in the version is damage, not a newer format");
        let newer = header_of_version(&bytes, VERSION + 1);
        assert_eq!(SegmentHeader::decode(&newer).unwrap_err().kind(), ErrorKind::Format);
    }

    fn header_of_version(bytes: &[u8], version: u16) -> Vec<u8> {
        let mut bytes = bytes[..HEADER_BYTES].to_vec();
        bytes[8..10].copy_from_slice(&version.to_le_bytes());
        let check = header_check(&bytes);
        bytes[HEADER_BYTES - 8..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    #[test]
    fn quarantine_mark_reads_back() {
        let mark = QuarantineMark { sequence: 7, offset: 8192, found_unix_ms: 9, size: 10, rot: Rot::Payload };
        assert_eq!(QuarantineMark::decode(&mark.encode()), Some(mark));
        for (at, byte) in [(8, 1), (28, 0), (28, 6), (31, 1)] {
            let mut bytes = mark.encode();
            bytes[at] = byte;
            assert_eq!(QuarantineMark::decode(&bytes), None, "byte {at} is {byte}");
        }
    }

    #[test]
    fn summary_reads_back() {
        let mut summary = SummaryBuilder::new(0, RECORDS_START);
        summary.add(&header(), b"key");
        let tombstone = RecordHeader { kind: Kind::Tombstone, payload_len: 0, ..header() };
        summary.add(&tombstone, b"yek");
        let (previous, records) = read_summary(&summary.payload()).unwrap();
        assert_eq!((previous, records.len()), (0, 2));
        assert_eq!(records[0].header, RecordHeader { payload_crc: 0, mark: 0, ..header() });
        assert_eq!(records[1].offset, RECORDS_START + header().record_bytes());
        assert_eq!(records[1].key, b"yek");
        assert!(read_summary(&summary.payload()[..40]).is_none());
    }
}
