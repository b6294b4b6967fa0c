//! Hostile bytes: every decoder of the log and the index under any bytes and under mutated valid ones; and payloads that users shape to look like
//! records, on a simulated disk that crashes, loses its index and recycles its segments (STORE 3).
//!
//! `SEED=0x… cargo test -p basalt-blockstore hostile` replays one seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use basalt_fuzz::{
    any_bytes, hold, hostile, mutated,
    proptest::{prelude::*, sample::Index},
    within,
};

use super::{
    Env, Op, Store,
    entry::{Checkpoint, Entry, QuarantineRow, SegmentRow},
    format::{
        ALIGN, FLAG_CONTINUES, FLAG_MOVED, HEADER_BYTES, Kind, QUARANTINE_PAYLOAD_BYTES, QuarantineMark,
        RECORD_HEADER_BYTES, RECORDS_START, RecordHeader, Rot, SegmentHeader, SummaryBuilder, crc32, put_varint,
        read_summary, varint,
    },
    location::Location,
    recovery::Clean,
    scrub::ScrubState,
    segment::{file_name, id_of_file_name},
};
use crate::{
    disk::sim::{Loss, SimDisk, SimRng},
    ground::PlainGround,
    index::sim::{IndexLoss, SimEngine},
    options::{Durability, Options},
};

/// Cases of each decoder in a plain run.
const CASES: u32 = 3000;

fn any_kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Put, Kind::Tombstone, Kind::Summary, Kind::Seal, Kind::Quarantine])
}

fn any_rot() -> impl Strategy<Value = Rot> {
    prop::sample::select(vec![Rot::Header, Rot::Payload, Rot::Digest, Rot::Unreadable, Rot::Missing])
}

prop_compose! {
    /// A header with its key.
    fn any_record()(
        kind in any_kind(), flags in 0u8..4, key in prop::collection::vec(any::<u8>(), 0..70), payload_len: u32, payload_crc: u32,
        numbers: [u64; 4],
    ) -> (RecordHeader, Vec<u8>) {
        let [sequence, mark, victim, expires_unix_ms] = numbers;
        let key_len = key.len() as u16;
        (RecordHeader { kind, flags, key_len, payload_len, payload_crc, sequence, mark, victim, expires_unix_ms }, key)
    }
}

prop_compose! {
    fn any_place()(segment: u32, word: u32) -> Location {
        Location::from_word(u64::from(segment) << 32 | u64::from(word))
    }
}

prop_compose! {
    fn any_entry()(
        location in any_place(), sequence: u64, size: u32, expires_unix_ms: u64, quarantined: bool,
        inline in prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
    ) -> Entry {
        let size = inline.as_ref().map_or(size, |inline| inline.len() as u32);
        Entry { location, sequence, size, expires_unix_ms, quarantined, inline }
    }
}

fn any_summary() -> impl Strategy<Value = (u64, Vec<(RecordHeader, Vec<u8>)>)> {
    let records = prop::collection::vec(any_record(), 0..40)
        .prop_map(|records| records.into_iter().filter(|(header, _)| header.kind != Kind::Seal).collect::<Vec<_>>());
    (any::<u64>(), records)
}

fn summary_payload(previous: u64, records: &[(RecordHeader, Vec<u8>)]) -> Vec<u8> {
    let mut builder = SummaryBuilder::new(previous, RECORDS_START);
    records.iter().for_each(|(header, key)| builder.add(header, key));
    builder.payload()
}

#[test]
fn a_record_header_reads_back_and_no_mutation_of_it_passes() {
    let cases = (any_record(), any::<[u8; 16]>(), any::<u32>(), any::<Index>(), 0u8..8);
    hold("record header", CASES, cases, |((header, key), nonce, place, at, bit)| {
        let offset = u64::from(place) * ALIGN;
        let mut bytes = Vec::new();
        header.encode(&nonce, offset, &key, &mut bytes);
        prop_assert_eq!(within(0, || RecordHeader::decode(&nonce, offset, &bytes))?, Some(header));
        let at = at.index(bytes.len());
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        prop_assert_eq!(RecordHeader::decode(&nonce, offset, &flipped), None);
        prop_assert_eq!(RecordHeader::decode(&nonce, offset + ALIGN, &bytes), None);
        let mut other = nonce;
        other[at % 16] ^= 1 << bit;
        prop_assert_eq!(RecordHeader::decode(&other, offset, &bytes), None);
        prop_assert_eq!(RecordHeader::decode(&nonce, offset, &bytes[..at]), None);
        Ok(())
    });
}

#[test]
fn hostile_record_headers_are_refused() {
    let valid = any_record().prop_map(|(header, key)| {
        let mut bytes = Vec::new();
        header.encode(&[9; 16], 4096, &key, &mut bytes);
        (bytes, ())
    });
    let cases = hostile(valid.prop_map(|(bytes, ())| bytes));
    hold("record header, hostile", CASES, cases, |bytes| {
        if let Some(header) = within(0, || RecordHeader::decode(&[9; 16], 4096, &bytes))? {
            // The tag covers header and key: what passes is what was encoded.
            let key = &bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + usize::from(header.key_len)];
            let mut again = Vec::new();
            header.encode(&[9; 16], 4096, key, &mut again);
            prop_assert_eq!(&again[..], &bytes[..again.len()]);
        }
        Ok(())
    });
}

#[test]
fn a_segment_header_reads_back_and_no_mutation_of_it_passes() {
    let cases = (any::<[u64; 5]>(), any::<[[u8; 16]; 3]>(), any::<Index>(), 0u8..8);
    hold("segment header", CASES, cases, |(numbers, ids, at, bit)| {
        let header = SegmentHeader {
            id: numbers[0],
            nonce: ids[0],
            store_id: ids[1],
            incarnation: ids[2],
            previous: numbers[1],
            previous_end: numbers[2],
            adopted_end: numbers[3],
            created_unix_ms: numbers[4],
        };
        let bytes = header.encode();
        prop_assert_eq!(SegmentHeader::decode(&bytes[..HEADER_BYTES]).unwrap(), Some(header));
        let mut page = bytes[..HEADER_BYTES].to_vec();
        page[at.index(HEADER_BYTES)] ^= 1 << bit;
        prop_assert_eq!(SegmentHeader::decode(&page).unwrap(), None);
        prop_assert_eq!(SegmentHeader::decode(&bytes[..at.index(HEADER_BYTES)]).unwrap(), None);
        Ok(())
    });
}

#[test]
fn hostile_summaries_take_memory_in_proportion() {
    let valid = any_summary().prop_map(|(previous, records)| summary_payload(previous, &records));
    hold("summary, hostile", CASES, hostile(valid), |bytes| {
        // A record of a summary has seven bytes or more, and takes some 120 when read.
        let limit = 4096 + bytes.len() * 64;
        if let Some((previous, records)) = within(limit, || read_summary(&bytes))? {
            let mut builder =
                SummaryBuilder::new(previous, records.first().map_or(RECORDS_START, |first| first.offset));
            records.iter().for_each(|record| builder.add(&record.header, &record.key));
            prop_assert_eq!(builder.count(), records.len() as u64);
        }
        Ok(())
    });
}

#[test]
fn a_summary_reads_back() {
    hold("summary", CASES, any_summary(), |(previous, records)| {
        // Past 2^64 no offset goes: a summary is about one segment.
        let records: Vec<_> = records
            .into_iter()
            .map(|(header, key)| (RecordHeader { payload_len: header.payload_len >> 8, ..header }, key))
            .collect();
        let (read_previous, read) = read_summary(&summary_payload(previous, &records)).unwrap();
        prop_assert_eq!(read_previous, previous);
        let expected: Vec<_> =
            records.iter().map(|(h, k)| (RecordHeader { payload_crc: 0, mark: 0, ..*h }, k.clone())).collect();
        prop_assert_eq!(read.into_iter().map(|record| (record.header, record.key)).collect::<Vec<_>>(), expected);
        Ok(())
    });
}

#[test]
fn rows_of_the_index_read_back() {
    let cases = (any_entry(), any_place(), any::<[u64; 5]>(), any::<[u8; 16]>(), any_rot());
    hold("index rows", CASES, cases, |(entry, place, numbers, id, rot)| {
        prop_assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        let [next_sequence, count, bytes, key_bytes, last] = numbers;
        let checkpoint = Checkpoint { store_id: id, position: place, next_sequence, count, bytes, key_bytes };
        prop_assert_eq!(Checkpoint::decode(&checkpoint.encode()), Some(checkpoint));
        let row = SegmentRow {
            nonce: id,
            end: next_sequence,
            live_records: count,
            live_bytes: bytes,
            punched_bytes: key_bytes,
            created_unix_ms: last,
        };
        prop_assert_eq!(SegmentRow::decode(&row.encode()).unwrap(), row);
        let row = QuarantineRow { rot, found_unix_ms: last };
        prop_assert_eq!(QuarantineRow::decode(&row.encode()).unwrap(), row);
        let mark = QuarantineMark {
            sequence: count,
            offset: place.offset().max(RECORDS_START),
            found_unix_ms: last,
            size: bytes as u32,
            rot,
        };
        prop_assert_eq!(QuarantineMark::decode(&mark.encode()), Some(mark));
        Ok(())
    });
}

#[test]
fn hostile_rows_of_the_index_are_refused_or_are_rows() {
    let valid = prop_oneof![
        any_entry().prop_map(|entry| entry.encode()),
        (any::<[u8; 16]>(), any::<[u64; 5]>()).prop_map(|(store_id, n)| Checkpoint {
            store_id,
            position: Location::from_word(n[0]),
            next_sequence: n[1],
            count: n[2],
            bytes: n[3],
            key_bytes: n[4],
        }
        .encode()),
        (any::<[u8; 16]>(), any::<[u64; 5]>()).prop_map(|(nonce, n)| SegmentRow {
            nonce,
            end: n[0],
            live_records: n[1],
            live_bytes: n[2],
            punched_bytes: n[3],
            created_unix_ms: n[4],
        }
        .encode()),
        (any_rot(), any::<u64>()).prop_map(|(rot, found_unix_ms)| QuarantineRow { rot, found_unix_ms }.encode()),
    ];
    hold("index rows, hostile", CASES, hostile(valid), |bytes| {
        // What passes means one thing: it encodes to what decodes to it again.
        let limit = 1024 + 2 * bytes.len();
        if let Ok(entry) = within(limit, || Entry::decode(&bytes))? {
            prop_assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        }
        if let Some(checkpoint) = within(0, || Checkpoint::decode(&bytes))? {
            prop_assert_eq!(Checkpoint::decode(&checkpoint.encode()), Some(checkpoint));
        }
        if let Ok(row) = within(limit, || SegmentRow::decode(&bytes))? {
            prop_assert_eq!(SegmentRow::decode(&row.encode()).unwrap(), row);
        }
        if let Ok(row) = within(limit, || QuarantineRow::decode(&bytes))? {
            prop_assert_eq!(QuarantineRow::decode(&row.encode()).unwrap(), row);
        }
        if let Some(mark) = within(0, || QuarantineMark::decode(&bytes))? {
            prop_assert_eq!(mark.encode().to_vec(), bytes);
        }
        Ok(())
    });
}

#[test]
fn varints_have_one_value_and_no_bits_are_dropped() {
    hold("varint", CASES, (any::<u64>(), any_bytes()), |(value, bytes)| {
        let mut written = Vec::new();
        put_varint(&mut written, value);
        let mut rest = &written[..];
        prop_assert_eq!(varint(&mut rest), Some(value));
        prop_assert!(rest.is_empty());
        let mut rest = &bytes[..];
        if let Some(value) = varint(&mut rest) {
            let read = &bytes[..bytes.len() - rest.len()];
            let expected = read.iter().rev().fold(0u128, |sum, byte| sum << 7 | u128::from(byte & 0x7f));
            prop_assert_eq!(u128::from(value), expected);
        }
        Ok(())
    });
}

#[test]
fn hostile_notes_are_refused() {
    let clean =
        any::<[u64; 4]>().prop_map(|n| Clean { segment: n[0], end: n[1], last_summary: n[2], records: n[3] }.encode());
    hold("clean note", CASES, (clean.clone(), mutated(clean)), |(whole, bytes)| {
        let read = Clean::decode(&whole).unwrap();
        prop_assert_eq!(read.encode(), whole);
        if let Some(read) = within(0, || Clean::decode(&bytes))? {
            prop_assert_eq!(read.encode(), bytes);
        }
        Ok(())
    });
    let scrub = any::<[u64; 5]>().prop_map(|n| {
        ScrubState {
            next: Location::from_word(n[0]),
            until: Location::from_word(n[1]),
            bytes: n[2],
            records: n[3],
            damaged: n[4],
            ..Default::default()
        }
        .encode()
    });
    hold("scrub note", CASES, (scrub.clone(), mutated(scrub)), |(whole, bytes)| {
        prop_assert_eq!(ScrubState::decode(&whole).unwrap().encode(), whole);
        if let Some(read) = within(0, || ScrubState::decode(&bytes))? {
            prop_assert_eq!(read.encode(), bytes);
        }
        Ok(())
    });
}

#[test]
fn hostile_file_names_are_no_segments() {
    let names = basalt_fuzz::hostile_text(any::<u32>().prop_map(|id| file_name(u64::from(id))));
    hold("segment names", CASES, names, |name| {
        if let Some(id) = id_of_file_name(&name) {
            prop_assert_eq!(file_name(id), name);
        }
        Ok(())
    });
}

#[test]
fn hostile_multihashes_are_refused_or_have_one_form() {
    let valid = (prop::sample::select(vec![0u8, 0x12, 0x13, 0x1e]), prop::collection::vec(any::<u8>(), 0..70))
        .prop_map(|(code, digest)| [&[code, digest.len() as u8][..], &digest].concat());
    hold("multihash", CASES, hostile(valid), |bytes| {
        if let Ok(hash) = within(1024 + 4 * bytes.len(), || crate::Multihash::parse(&bytes))? {
            prop_assert_eq!(hash.as_bytes(), &bytes[..]);
            prop_assert_eq!(crate::Multihash::parse_base32(&hash.to_base32()).unwrap(), hash);
        }
        let name = data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase();
        prop_assert!(name.is_empty() || name == name.to_uppercase() || crate::Multihash::parse_base32(&name).is_err());
        Ok(())
    });
}

// Payloads that look like records.

const DIR: &str = "/shard";
const SEGMENT_BYTES: u64 = 32 << 10;

/// Which nonce the one who shapes the payloads knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knows {
    /// None: it guesses.
    Nothing,
    /// Those of all other segments, gone ones too, among them that of the same space in its life before.
    OtherLives,
    /// The one that holds: the control. With it the forgery must succeed, or its place proves nothing.
    ThisLife,
}

#[derive(Default, Debug)]
struct Tally {
    runs: u64,
    /// Runs after which a forgery was believed.
    believed: u64,
    /// Runs in which forged bytes stood above the head of a recycled segment.
    recycled: u64,
    forged: u64,
}

struct Attack {
    seed: u64,
    rng: SimRng,
    disk: SimDisk,
    index: SimEngine,
    /// What an honest user has, all durable.
    victims: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Keys of the attacker's own blocks.
    own: BTreeSet<Vec<u8>>,
    /// Nonces of all segments there ever were.
    nonces: BTreeMap<u64, [u8; 16]>,
    forged: u64,
}

impl Attack {
    fn new(seed: u64) -> Attack {
        let disk = SimDisk::new();
        let index = SimEngine::new(disk.clone());
        Attack {
            seed,
            rng: SimRng::new(seed),
            disk,
            index,
            victims: BTreeMap::new(),
            own: BTreeSet::new(),
            nonces: BTreeMap::new(),
            forged: 0,
        }
    }

    fn open(&self) -> Store {
        let options = Options {
            durability: Durability::Strict,
            segment_bytes: SEGMENT_BYTES,
            value_bytes_max: 64 << 10,
            // Compaction, not holes: a segment with holes is not recycled.
            punch_bytes_min: u32::MAX,
            compact_dead_percent: 20,
            recycle_segments_max: 4,
            reserve_bytes: 0,
            ..Options::default()
        };
        let env = Env {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(self.disk.clone()),
            index: Arc::new(self.index.clone()),
            ground: Arc::new(PlainGround),
            random: Arc::new(self.disk.clone()),
            sequence: Arc::new(AtomicU64::new(1)),
            unflushed: Arc::default(),
        };
        match Store::open(Path::new(DIR), &env, options) {
            Ok(store) => store,
            Err(err) => panic!("SEED={:#x}: open: {err}", self.seed),
        }
    }

    fn put(store: &Store, key: &[u8], value: &[u8]) {
        store.write(&[Op::PutIfAbsent { key, value }], false).unwrap();
    }

    fn victim(&mut self, store: &Store) {
        let key = format!("victim {}", self.victims.len()).into_bytes();
        let len = self.rng.below(600);
        let value: Vec<u8> = (0..len).map(|_| self.rng.next_u64() as u8).collect();
        Attack::put(store, &key, &value);
        self.victims.insert(key, value);
    }

    /// A block of the attacker, recognisable on the disk; shaped later, when its place is known.
    fn plant(&mut self, store: &Store, len: usize) -> Vec<u8> {
        // Of all lengths, so that what it holds stands at each alignment.
        let key = [format!("own {} ", self.own.len()).into_bytes(), vec![b'x'; self.rng.below(9) as usize]].concat();
        let mark = self.seed ^ 0x5151_0000_0000_0000 ^ self.own.len() as u64;
        let value: Vec<u8> = mark.to_le_bytes().iter().copied().cycle().take(len).collect();
        Attack::put(store, &key, &value);
        self.own.insert(key.clone());
        key
    }

    fn segments(&self) -> Vec<(PathBuf, SegmentHeader, Vec<u8>)> {
        let mut found = Vec::new();
        for id in 1..64 {
            let path = Path::new(DIR).join(file_name(id));
            let Some(bytes) = self.disk.contents(&path) else { continue };
            let Ok(Some(header)) = SegmentHeader::decode(&bytes) else { continue };
            found.push((path, header, bytes));
        }
        found
    }

    fn note_nonces(&mut self) {
        for (_, header, _) in self.segments() {
            self.nonces.insert(header.id, header.nonce);
        }
    }

    /// Where the record of a key stands.
    fn find(&self, key: &[u8]) -> Option<(PathBuf, SegmentHeader, u64, RecordHeader)> {
        for (path, segment, bytes) in self.segments() {
            for offset in (RECORDS_START..bytes.len() as u64).step_by(ALIGN as usize) {
                let record = &bytes[offset as usize..];
                if let Some(header) = RecordHeader::decode(&segment.nonce, offset, record)
                    && header.kind == Kind::Put
                    && record[RECORD_HEADER_BYTES..].starts_with(key)
                    && usize::from(header.key_len) == key.len()
                {
                    return Some((path, segment, offset, header));
                }
            }
        }
        None
    }

    /// Bytes full of records that nobody wrote, as they would stand at `base`.
    fn forgery(&mut self, nonces: &[[u8; 16]], base: u64, len: usize) -> Vec<u8> {
        let mut out = vec![b'A'; (base.next_multiple_of(ALIGN) - base) as usize];
        let victims: Vec<Vec<u8>> = self.victims.keys().cloned().collect();
        while out.len() < len {
            let place = base + out.len() as u64;
            let nonce = nonces[self.rng.below(nonces.len() as u64) as usize];
            let victim = victims[self.rng.below(victims.len() as u64) as usize].clone();
            let sequence = (1 << 40) + self.rng.below(1 << 20);
            let (kind, key, payload) = match self.rng.below(12) {
                0..=5 => (Kind::Tombstone, victim, Vec::new()),
                6 => (Kind::Put, victim, b"forged".to_vec()),
                7 => (Kind::Put, b"forged key".to_vec(), b"forged".to_vec()),
                8 => {
                    let mark = QuarantineMark {
                        sequence: 1,
                        offset: RECORDS_START,
                        found_unix_ms: 1,
                        size: 6,
                        rot: Rot::Payload,
                    };
                    (Kind::Quarantine, victim, mark.encode().to_vec())
                }
                9 => {
                    let tombstone = RecordHeader {
                        kind: Kind::Tombstone,
                        flags: 0,
                        key_len: victim.len() as u16,
                        payload_len: 0,
                        payload_crc: crc32(b""),
                        sequence,
                        mark: 0,
                        victim: 1,
                        expires_unix_ms: 0,
                    };
                    (Kind::Summary, Vec::new(), summary_payload(0, &[(tombstone, victim)]))
                }
                10 => (Kind::Seal, Vec::new(), [place.to_le_bytes(), 1u64.to_le_bytes()].concat()),
                _ => {
                    // A page that says: another segment begins here.
                    let header = SegmentHeader {
                        id: 9,
                        nonce,
                        store_id: [1; 16],
                        incarnation: [1; 16],
                        previous: 1,
                        previous_end: RECORDS_START,
                        adopted_end: RECORDS_START,
                        created_unix_ms: 0,
                    };
                    (Kind::Put, b"forged key".to_vec(), header.encode()[..256].to_vec())
                }
            };
            assert!(kind != Kind::Quarantine || payload.len() == QUARANTINE_PAYLOAD_BYTES);
            let flags =
                if self.rng.one_in(8) { FLAG_MOVED } else { 0 } | if self.rng.one_in(16) { FLAG_CONTINUES } else { 0 };
            let header = RecordHeader {
                kind,
                flags,
                key_len: key.len() as u16,
                payload_len: payload.len() as u32,
                payload_crc: crc32(&payload),
                sequence,
                // Says of itself that it was durable: what makes a scanner go on behind a bad record.
                mark: place,
                victim: 1,
                expires_unix_ms: 0,
            };
            header.encode(&nonce, place, &key, &mut out);
            out.extend_from_slice(&payload);
            out.resize((out.len() as u64 + base).next_multiple_of(ALIGN) as usize - base as usize, 0);
            self.forged += 1;
        }
        out.truncate(len);
        out
    }

    /// Gives the block of a key, whose place is known now, the bytes that its user would have chosen had they known it: payload, CRC and tag are as the
    /// store would have written them.
    fn shape(&mut self, key: &[u8], nonces: &[[u8; 16]]) -> Option<(PathBuf, u64)> {
        let (path, segment, offset, header) = self.find(key)?;
        let payload = self.forgery(nonces, offset + header.payload_start(), header.payload_len as usize);
        let mut bytes = self.disk.contents(&path)?;
        let mut record = Vec::new();
        RecordHeader { payload_crc: crc32(&payload), ..header }.encode(&segment.nonce, offset, key, &mut record);
        record.extend_from_slice(&payload);
        bytes[offset as usize..][..record.len()].copy_from_slice(&record);
        self.disk.install(&path, bytes);
        Some((path, offset))
    }

    /// The victims are as they were, and there is nothing that nobody put; `false` where a forgery was believed.
    fn is_whole(&self, store: &Store) -> bool {
        for (key, value) in &self.victims {
            let mut read = Vec::new();
            if store.get(key, &mut read).is_err() || read != *value {
                return false;
            }
        }
        let mut after: Option<Vec<u8>> = None;
        let mut found = 0;
        loop {
            let page = store.scan(b"", after.as_deref(), 16, false).unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            found += page.len() as u64;
            if page.iter().any(|one| !self.victims.contains_key(&one.key) && !self.own.contains(&one.key)) {
                return false;
            }
        }
        found == store.stats().count
    }

    fn nonces(&self, knows: Knows, this: [u8; 16]) -> Vec<[u8; 16]> {
        match knows {
            Knows::Nothing => vec![[0; 16], [0x41; 16]],
            Knows::OtherLives => {
                let others: Vec<_> = self.nonces.values().copied().filter(|nonce| *nonce != this).collect();
                if others.is_empty() { vec![[0; 16]] } else { others }
            }
            Knows::ThisLife => vec![this],
        }
    }

    fn crash(&mut self, lose_index: bool) {
        let loss = [Loss::Process, Loss::Nothing, Loss::Everything][self.rng.below(3) as usize];
        self.disk.restart(&mut self.rng, loss);
        let loss = if lose_index { IndexLoss::Everything } else { IndexLoss::Prefix };
        self.index.crash(&mut self.rng, loss);
    }

    /// Opens, and once more with the index lost: what the first opening wrote must not have believed anything either.
    fn is_whole_however_opened(&mut self) -> bool {
        let first = self.open();
        let mut whole = self.is_whole(&first);
        drop(first);
        self.crash(true);
        let again = self.open();
        whole &= self.is_whole(&again);
        whole
    }
}

/// A payload in the log whose own header is lost, so that a scanner looks for the next record within it.
fn torn(seed: u64, knows: Knows, tally: &mut Tally) {
    let mut attack = Attack::new(seed);
    let store = attack.open();
    for _ in 0..8 {
        attack.victim(&store);
    }
    // Somewhere in the first or a later segment.
    for _ in 0..attack.rng.below(12) {
        let len = attack.rng.below(6000) as usize;
        attack.plant(&store, len);
        attack.note_nonces();
    }
    let len = 500 + attack.rng.below(6000) as usize;
    let key = attack.plant(&store, len);
    // Honest records behind it: then the damage is in the middle, else at the end.
    if attack.rng.one_in(2) {
        attack.victim(&store);
        attack.victim(&store);
    }
    store.sync().unwrap();
    attack.note_nonces();
    let lose_index = attack.rng.one_in(2);
    if attack.rng.one_in(3) {
        let _ = store.core.flush_index();
    }
    drop(store);
    attack.crash(lose_index);
    let Some((_, segment, ..)) = attack.find(&key) else { panic!("SEED={seed:#x}: the block is not on the disk") };
    let nonces = attack.nonces(knows, segment.nonce);
    let Some((path, offset)) = attack.shape(&key, &nonces) else { panic!("SEED={seed:#x}: no place") };
    // Its header is gone, as when its sector was torn or rotted.
    let at = attack.rng.below(RECORD_HEADER_BYTES as u64);
    assert!(attack.disk.flip(&path, offset + at, 3));
    judge(attack, knows, tally);
}

/// Payloads in a segment that is freed and recycled: in the next life of the space they stand above what is written, whole.
fn recycled(seed: u64, knows: Knows, tally: &mut Tally) {
    let mut attack = Attack::new(seed);
    let store = attack.open();
    for _ in 0..8 {
        attack.victim(&store);
    }
    let mut keys = Vec::new();
    while attack.segments().len() < 3 {
        let len = 2000 + attack.rng.below(5000) as usize;
        keys.push(attack.plant(&store, len));
    }
    store.close().unwrap();
    drop(store);
    attack.note_nonces();
    // In their own life the one who shapes them knows every nonce: the harshest case.
    for key in &keys {
        let Some((_, segment, ..)) = attack.find(key) else { panic!("SEED={seed:#x}: not on the disk") };
        attack.shape(key, &[segment.nonce]);
    }
    let lives: BTreeMap<u64, [u8; 16]> = attack.nonces.clone();
    let store = attack.open();
    assert!(attack.is_whole(&store), "SEED={seed:#x}: as long as nothing is torn, nothing is met");
    let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Delete { key }).collect();
    store.write(&ops, false).unwrap();
    for _ in 0..3 {
        store.sync().unwrap();
        let _ = store.core.flush_index();
        store.reclaim().unwrap();
    }
    let before: BTreeSet<u64> = attack.segments().iter().map(|(_, header, _)| header.id).collect();
    // The log goes on, into the space of the old ones.
    let mut fresh = None;
    for _ in 0..400 {
        attack.victim(&store);
        attack.note_nonces();
        fresh = attack
            .segments()
            .into_iter()
            .find(|(_, header, bytes)| !before.contains(&header.id) && bytes.len() as u64 > SEGMENT_BYTES / 2);
        if fresh.is_some() {
            break;
        }
    }
    let Some((path, header, _)) = fresh else { return };
    for _ in 0..attack.rng.below(4) {
        attack.victim(&store);
    }
    store.sync().unwrap();
    drop(store);
    let lose_index = attack.rng.one_in(2);
    attack.crash(lose_index);
    let Some(mut bytes) = attack.disk.contents(&path) else { return };
    // Where the new life's records end, and whether forged ones of the old life stand behind.
    let mut end = RECORDS_START;
    while let Some(record) = bytes.get(end as usize..).and_then(|rest| RecordHeader::decode(&header.nonce, end, rest)) {
        end += record.record_bytes();
    }
    let of_old_lives = |offset: u64| {
        let rest = &bytes[offset as usize..];
        lives.values().any(|nonce| RecordHeader::decode(nonce, offset, rest).is_some())
    };
    if !(end..bytes.len() as u64).step_by(ALIGN as usize).any(of_old_lives) {
        return;
    }
    tally.recycled += 1;
    match knows {
        Knows::ThisLife => {
            let forged = attack.forgery(&[header.nonce], end, (bytes.len() as u64 - end) as usize);
            bytes[end as usize..].copy_from_slice(&forged);
            attack.disk.install(&path, bytes);
        }
        // Straight behind the head, as if writes had ended right there, as well as where they stand.
        Knows::OtherLives if attack.rng.one_in(2) => {
            let old: Vec<_> = lives.values().copied().collect();
            let forged = attack.forgery(&old, end, (bytes.len() as u64 - end) as usize);
            bytes[end as usize..].copy_from_slice(&forged);
            attack.disk.install(&path, bytes);
        }
        _ => {}
    }
    judge(attack, knows, tally);
}

fn judge(mut attack: Attack, knows: Knows, tally: &mut Tally) {
    let whole = attack.is_whole_however_opened();
    assert!(whole || knows == Knows::ThisLife, "a forgery is believed; SEED={:#x} replays it ({knows:?})", attack.seed);
    tally.runs += 1;
    tally.forged += attack.forged;
    tally.believed += u64::from(!whole);
}

/// Seeds of a run: `SEED`, or so many, or as many as `FUZZ_SECONDS` allow.
fn each_seed(few: u64, mut run: impl FnMut(u64)) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
    };
    if let Some(seed) = number("SEED") {
        return run(seed);
    }
    let begin = std::time::Instant::now();
    let seconds = number("FUZZ_SECONDS").unwrap_or(0);
    let mut seed = 0;
    while seed < few || begin.elapsed().as_secs() < seconds {
        run(seed);
        seed += 1;
    }
}

type Scenario = fn(u64, Knows, &mut Tally);

fn forgeries(name: &str, few: u64, scenario: Scenario) {
    let mut harmless = Tally::default();
    let mut control = Tally::default();
    each_seed(few, |seed| {
        scenario(seed, Knows::Nothing, &mut harmless);
        scenario(seed, Knows::OtherLives, &mut harmless);
        // The same run with the nonce that holds.
        scenario(seed, Knows::ThisLife, &mut control);
    });
    println!(
        "fuzz {name}: {} cases, {} forged records, none believed; with the right nonce believed in {} of {} runs",
        harmless.runs, harmless.forged, control.believed, control.runs
    );
    assert_eq!(harmless.believed, 0);
    if std::env::var("SEED").is_err() {
        assert!(harmless.runs > 0 && harmless.forged > 0);
        assert!(control.believed * 2 > control.runs, "the forgeries are not where a scanner looks: {control:?}");
    }
}

#[test]
fn a_payload_that_looks_like_records_is_never_taken_for_them() {
    forgeries("forged records in torn payloads", 150, torn);
}

#[test]
fn what_a_recycled_segment_held_before_is_never_taken_for_records() {
    forgeries("forged records in recycled segments", 60, recycled);
}
