//! Scrub: reads the log back from the disk, segment by segment, and sees to it that what is damaged is known and, where it can be, mended.
//!
//! A pass goes from the first segment to where the log was known durable when the pass began; what is moved or written meanwhile is checked by
//! whoever moves or writes it. It reads past the page cache where the file system lets it, else a block that is hot would hide what the disk has
//! made of it, and the pass would push hot blocks out. It looks into the index only for what does not read back whole, takes no lock during I/O,
//! and believes nothing of a segment that has gone meanwhile.
//!
//! A read *error* is no rot at first: a cable, a controller or a suspended pool fails for everything and comes back. It is an error for whoever
//! reads, is tried again later, and becomes a quarantine only when it persists for one record while the same file reads elsewhere: that is a
//! bad sector, or ZFS without a good copy, which says EIO for every block that fails its checksum.

use std::{
    collections::BTreeMap,
    io,
    ops::{ControlFlow, Range},
    sync::Arc,
};

use super::{
    core::Core,
    entry::{Entry, SegmentRow, entry_key, id_of_segment, key_of_entry, segments_start},
    format::{
        ALIGN, HEADER_BYTES, Kind, RECORD_HEADER_BYTES, RECORDS_START, RecordHeader, Rot, SegmentHeader, note_check,
        u64_at,
    },
    location::Location,
    segment::Segment,
};
use crate::{
    disk::{DIRECT_BYTES, File},
    error::{Error, ErrorKind, Result},
    sync::Mutex,
};

/// What is read of a segment at a time, in bytes.
const WINDOW_BYTES: usize = 512 << 10;
/// Entries of the index that are looked at in one go, so that no iterator lives long.
const INDEX_PAGE: usize = 16_384;
/// Unreadable keys that are remembered to be tried again; the next pass finds what is beyond.
const UNREADABLE_MAX: usize = 1024;
/// Time between two tries to read one, in nanoseconds...
const UNREADABLE_RETRY_NS: u64 = 10_000_000_000;
/// ...and tries that fail before it is quarantined.
const UNREADABLE_TRIES: u32 = 3;

/// Where the scrub of a store is. What it counts is of the pass that is under way, or of the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubState {
    /// A pass is under way.
    pub active: bool,
    /// The operator has it wait.
    pub paused: bool,
    /// When the pass began, in milliseconds since the Unix epoch; 0 for never.
    pub started_unix_ms: u64,
    /// When a pass was last completed, in milliseconds since the Unix epoch; 0 for never.
    pub finished_unix_ms: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes that are still to be read, about.
    pub bytes_left: u64,
    /// Records checked.
    pub records: u64,
    /// Keys found damaged, and quarantined.
    pub damaged: u64,
    /// Keys whose bytes on the disk were damaged while memory or the index still had them right, and which were written anew.
    pub rescued: u64,
    /// Keys that could not be read, and are tried again.
    pub unreadable: u64,
    /// Damaged stretches of the log in which nothing live stood.
    pub dead_ranges: u64,
    pub(super) next: Location,
    pub(super) until: Location,
}

/// What one step of a scrub did.
#[derive(Clone, Debug, Default)]
pub struct ScrubStep {
    /// Bytes read from the disk.
    pub bytes: u64,
    /// The pass is complete, or there was none.
    pub done: bool,
    /// Keys that this step quarantined.
    pub quarantined: Vec<(Vec<u8>, Rot)>,
}

/// What [`super::Store::check_part`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartChecked {
    /// Bytes read from the disk.
    pub bytes: u64,
    /// Records that stand in the part, wholly or not.
    pub records: u64,
    /// Keys that are quarantined now because of it.
    pub quarantined: Vec<(Vec<u8>, Rot)>,
    /// Keys that were damaged on the disk and right in memory, and are written anew.
    pub rescued: u64,
    /// Keys that could not be read, and are tried again.
    pub unreadable: u64,
}

/// What a scrub has read ahead. Drop it to let go of the segment's file.
#[derive(Debug, Default)]
pub struct ScrubReader(Option<Window>);

/// The scrub of an open store.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    state: ScrubState,
    /// Counts beginnings and ends of passes, so that a step that was under way then has no say.
    pass: u64,
    unreadable: BTreeMap<Vec<u8>, Unreadable>,
}

#[derive(Clone, Copy, Debug)]
struct Unreadable {
    location: Location,
    tries: u32,
    last_ns: u64,
}

/// What became of a key that a scrub could not read where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// Nothing live stands there, or it was known.
    Nothing,
    Quarantined(Rot),
    Rescued,
    Unreadable,
}

/// A stretch of a segment in memory, as the disk holds it.
#[derive(Debug)]
struct Window {
    segment: Arc<Segment>,
    pass: u64,
    file: Arc<dyn File>,
    space: Vec<u8>,
    /// Where the aligned part of `space` begins.
    skip: usize,
    start: u64,
    len: usize,
    read: u64,
}

impl Window {
    fn open(core: &Core, segment: &Arc<Segment>, pass: u64) -> Result<Window> {
        let space = vec![0; WINDOW_BYTES + DIRECT_BYTES];
        let skip = space.as_ptr().align_offset(DIRECT_BYTES).min(DIRECT_BYTES);
        let file = core.files.direct(segment)?;
        Ok(Window { segment: segment.clone(), pass, file, space, skip, start: 0, len: 0, read: 0 })
    }

    fn clear(&mut self) {
        self.len = 0;
    }

    fn fill(&mut self, start: u64, len: usize) -> io::Result<()> {
        self.len = 0;
        let room = &mut self.space[self.skip..self.skip + len];
        self.len = self.file.read_at(room, start)?;
        self.start = start;
        self.read += self.len as u64;
        Ok(())
    }

    /// `len` bytes (at most a window's) at `offset`; fewer at the end of the file.
    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let len = len.min(WINDOW_BYTES - DIRECT_BYTES);
        if offset < self.start || offset + len as u64 > self.start + self.len as u64 {
            let start = offset / DIRECT_BYTES as u64 * DIRECT_BYTES as u64;
            if self.fill(start, WINDOW_BYTES).is_err() {
                // One bad sector fails the whole read: then no more than what is wanted.
                let least = ((offset - start) as usize + len).next_multiple_of(DIRECT_BYTES);
                self.fill(start, least)?;
            }
        }
        let from = ((offset - self.start) as usize).min(self.len);
        let to = (from + len).min(self.len);
        Ok(&self.space[self.skip + from..self.skip + to])
    }

    /// The header and key at `offset`, if they are good and their record ends at or below `end`.
    fn record(&mut self, offset: u64, end: u64) -> io::Result<Option<(RecordHeader, Vec<u8>)>> {
        let Some(header) = RecordHeader::parse(self.bytes(offset, RECORD_HEADER_BYTES)?) else { return Ok(None) };
        if header.mark > offset || offset.checked_add(header.record_bytes()).is_none_or(|record_end| record_end > end) {
            return Ok(None);
        }
        let need = RECORD_HEADER_BYTES + usize::from(header.key_len);
        let nonce = self.segment.nonce;
        let bytes = self.bytes(offset, need)?;
        Ok(RecordHeader::decode(&nonce, offset, bytes)
            .and_then(|header| Some((header, bytes.get(RECORD_HEADER_BYTES..need)?.to_vec()))))
    }

    /// Whether a payload matches its CRC; with it, where `keep` says so, the payload.
    fn payload(&mut self, offset: u64, header: &RecordHeader, keep: bool) -> io::Result<Option<Vec<u8>>> {
        let mut crc = crc32fast::Hasher::new();
        let mut kept = Vec::new();
        let mut at = offset + header.payload_start();
        let mut left = header.payload_len as usize;
        while left > 0 {
            // What is in memory first, so that nothing is read twice.
            let here = (self.start + self.len as u64).checked_sub(at).filter(|here| at >= self.start && *here > 0);
            let take = left.min(here.map_or(WINDOW_BYTES - DIRECT_BYTES, |here| here as usize));
            let bytes = self.bytes(at, take)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            crc.update(bytes);
            if keep {
                kept.extend_from_slice(bytes);
            }
            (at, left) = (at + bytes.len() as u64, left - bytes.len());
        }
        Ok((crc.finalize() == header.payload_crc).then_some(kept))
    }

    /// The next good header above `offset`; `end` where there is none. What can't be read is passed over.
    fn resync(&mut self, offset: u64, end: u64) -> u64 {
        let mut at = offset + ALIGN;
        while at < end {
            match self.record(at, end) {
                Ok(Some(_)) => return at,
                Ok(None) => at += ALIGN,
                Err(_) => at = (at / DIRECT_BYTES as u64 + 1) * DIRECT_BYTES as u64,
            }
        }
        end
    }
}

impl PartChecked {
    fn of(state: ScrubState, step: ScrubStep) -> PartChecked {
        PartChecked {
            bytes: step.bytes,
            records: state.records,
            quarantined: step.quarantined,
            rescued: state.rescued,
            unreadable: state.unreadable,
        }
    }
}

impl Core {
    /// Begins a pass over everything that is durable now, in place of one that is under way.
    pub(super) fn begin_scrub(self: &Arc<Self>) -> Result<()> {
        self.check_writable()?;
        let until = {
            let log = self.log.lock();
            match &log.active {
                Some(active) => Location::new(active.segment.id, active.durable),
                None => Location::new(log.previous.0, log.previous.1),
            }
        };
        let mut scrub = self.scrub.lock();
        scrub.pass += 1;
        scrub.state = ScrubState {
            active: true,
            paused: scrub.state.paused,
            started_unix_ms: self.env.clock.unix_ms(),
            finished_unix_ms: scrub.state.finished_unix_ms,
            until,
            ..ScrubState::default()
        };
        drop(scrub);
        self.scrub_missing_segments()
    }

    /// Ends the pass that is under way where it is.
    pub(super) fn stop_scrub(&self) {
        let mut scrub = self.scrub.lock();
        scrub.pass += 1;
        scrub.state.active = false;
    }

    pub(super) fn pause_scrub(&self, paused: bool) {
        self.scrub.lock().state.paused = paused;
    }

    pub(super) fn scrub_state(&self) -> ScrubState {
        let state = self.scrub.lock().state;
        if !state.active {
            return state;
        }
        let rows = self.rows.lock();
        let to_come = rows.rows.iter().filter(|(id, _)| (state.next.segment()..=state.until.segment()).contains(*id));
        let ends = to_come.map(|(id, row)| if *id == state.until.segment() { state.until.offset() } else { row.end });
        let bytes_left = ends.sum::<u64>().saturating_sub(state.next.offset());
        ScrubState { bytes_left, ..state }
    }

    /// Checks the next `limit` bytes or a little more of the pass that is under way.
    pub(super) fn scrub_step(self: &Arc<Self>, reader: &mut ScrubReader, limit: u64, hash: bool) -> Result<ScrubStep> {
        self.check_writable()?;
        let (begin, pass) = {
            let scrub = self.scrub.lock();
            (scrub.state, scrub.pass)
        };
        let mut step = ScrubStep::default();
        let mut state = begin;
        if let Some(window) = &mut reader.0 {
            window.read = 0;
        }
        let outcome = loop {
            if !state.active {
                step.done = true;
                break Ok(());
            }
            if step.bytes >= limit {
                break Ok(());
            }
            match self.scrub_next(reader, pass, hash, &mut state, &mut step) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => {
                    state.active = false;
                    state.finished_unix_ms = self.env.clock.unix_ms();
                }
                Err(err) => break Err(err),
            }
        };
        state.bytes += step.bytes;
        let mut scrub = self.scrub.lock();
        if scrub.pass == pass {
            let paused = scrub.state.paused;
            scrub.state = ScrubState { paused, ..state };
        } else {
            step.done = true;
        }
        outcome.map(|()| step)
    }

    /// Checks the next record, or turns to the next segment; breaks at the end of the pass.
    fn scrub_next(
        self: &Arc<Self>,
        reader: &mut ScrubReader,
        pass: u64,
        hash: bool,
        state: &mut ScrubState,
        step: &mut ScrubStep,
    ) -> Result<ControlFlow<()>> {
        let from = state.next.segment();
        let segment = {
            let segments = self.segments.read();
            segments.range(from..=state.until.segment().max(from)).next().map(|(_, segment)| segment.clone())
        };
        let Some(segment) = segment.filter(|segment| segment.id <= state.until.segment()) else {
            reader.0 = None;
            return Ok(ControlFlow::Break(()));
        };
        if segment.id > from {
            state.next = Location::new(segment.id, 0);
        }
        let mut end = self.durable_end(&segment)?;
        if segment.id == state.until.segment() {
            end = end.min(state.until.offset());
        }
        let offset = state.next.offset();
        if offset >= end.max(RECORDS_START) {
            state.next = Location::new(segment.id + 1, 0);
            reader.0 = None;
            return Ok(ControlFlow::Continue(()));
        }
        if reader.0.as_ref().is_none_or(|window| window.pass != pass || !Arc::ptr_eq(&window.segment, &segment)) {
            reader.0 = None;
            match Window::open(self, &segment, pass) {
                Ok(window) => reader.0 = Some(window),
                Err(err) if err.kind() == ErrorKind::Corrupt => {
                    self.scrub_range(&segment, RECORDS_START, end, state, step)?;
                    state.next = Location::new(segment.id + 1, 0);
                    return Ok(ControlFlow::Continue(()));
                }
                Err(err) => return Err(err),
            }
        }
        let Some(window) = &mut reader.0 else { return Ok(ControlFlow::Continue(())) };
        let read_before = window.read;
        let next = if offset < RECORDS_START {
            self.scrub_header(window, state);
            RECORDS_START
        } else {
            self.scrub_record(window, offset, end, hash, state, step)?
        };
        state.next = Location::new(segment.id, next);
        step.bytes += window.read - read_before;
        Ok(ControlFlow::Continue(()))
    }

    /// Where a segment ends, or up to where it is known durable.
    fn durable_end(&self, segment: &Arc<Segment>) -> Result<u64> {
        {
            let log = self.log.lock();
            if let Some(active) = log.active.as_ref().filter(|active| active.segment.id == segment.id) {
                return Ok(active.durable);
            }
            if log.previous.0 == segment.id {
                return Ok(log.previous.1);
            }
        }
        match self.rows.lock().rows.get(&segment.id) {
            Some(row) if row.end != 0 => return Ok(row.end),
            _ => {}
        }
        self.files.length(segment)
    }

    /// Checks the records that stand in a part of a segment, by their hashes too, outside of any pass. Where `persists`, whoever named the part knows that no
    /// copy of it is left on the disk: what can't be read is quarantined now and not after some tries, and what still reads is written anew. `None`: there is no such segment.
    pub(super) fn check_part(
        self: &Arc<Self>,
        id: u64,
        part: Range<u64>,
        persists: bool,
    ) -> Result<Option<PartChecked>> {
        self.check_writable()?;
        let Some(segment) = self.segment(id) else { return Ok(None) };
        let (mut state, mut step) = (ScrubState::default(), ScrubStep::default());
        let end = self.durable_end(&segment)?;
        let to = part.end.min(end);
        let mut window = match Window::open(self, &segment, 0) {
            Ok(window) => window,
            Err(err) if err.kind() == ErrorKind::Corrupt => {
                self.scrub_range(&segment, RECORDS_START, end, &mut state, &mut step)?;
                return Ok(Some(PartChecked::of(state, step)));
            }
            Err(err) => return Err(err),
        };
        if part.start < RECORDS_START {
            self.scrub_header(&mut window, &mut state);
        }
        let mut at = self.record_before(&mut window, part.start.max(RECORDS_START), end);
        while at < to {
            let record = window.record(at, end).ok().flatten();
            let next = self.scrub_record(&mut window, at, end, true, &mut state, &mut step)?;
            // ZFS gives out of its memory what the disk has no more.
            if persists
                && let Some((header, key)) = record.filter(|(header, _)| header.kind == Kind::Put)
                && next == at + header.record_bytes()
                && self.rescue(&key, Location::new(id, at))?
            {
                state.rescued += 1;
            }
            at = next;
        }
        step.bytes = window.read;
        if persists && state.unreadable > 0 {
            self.give_up_unreadable(&segment, &mut state, &mut step)?;
        }
        Ok(Some(PartChecked::of(state, step)))
    }

    /// Writes a key anew whose place on the disk is known to be lost, if it still reads; `false` where it does not or stands elsewhere.
    fn rescue(self: &Arc<Self>, key: &[u8], location: Location) -> Result<bool> {
        let live = {
            let stripe = self.stripe(self.stripe_of(key));
            self.newest(&stripe, key)?.map(|(live, _)| live)
        };
        let Some(live) = live.filter(|live| live.location() == location && !live.quarantined) else { return Ok(false) };
        let value = match &live.inline {
            Some(inline) => inline.to_vec(),
            None => {
                let mut value = vec![0; live.size as usize];
                if self.read_at(location, key, &mut value).is_err() {
                    return Ok(false);
                }
                value
            }
        };
        tracing::warn!(key = %self.name(key), "the disk has no good copy of it and memory has: writing it anew");
        self.rewrite(key, location, &value)
    }

    /// The record that stands at `offset` or before it, by the summaries of a sealed segment, else by walking there from the beginning.
    fn record_before(&self, window: &mut Window, offset: u64, end: u64) -> u64 {
        if let Ok(Some(records)) = self.files.summarised(&window.segment.clone(), end) {
            let before = records.iter().map(|record| record.offset).take_while(|at| *at <= offset);
            return before.last().unwrap_or(RECORDS_START);
        }
        let mut at = RECORDS_START;
        loop {
            let next = match window.record(at, end) {
                Ok(Some((header, _))) => at + header.record_bytes(),
                _ => window.resync(at, end),
            };
            if next > offset || next >= end {
                return at;
            }
            at = next;
        }
    }

    /// Quarantines the keys of a segment that could not be read, if the rest of its file can be.
    fn give_up_unreadable(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        state: &mut ScrubState,
        step: &mut ScrubStep,
    ) -> Result<()> {
        if !self.reads_elsewhere(segment) {
            return Ok(());
        }
        let here = |one: &Unreadable| one.location.segment() == segment.id;
        let keys: Vec<_> = {
            let scrub = self.scrub.lock();
            scrub.unreadable.iter().filter(|(_, one)| here(one)).map(|(key, one)| (key.clone(), one.location)).collect()
        };
        for (key, location) in keys {
            if !self.is_live_at(&key, location)? {
                continue;
            }
            // It may have become readable, or have been one of another part.
            if self.reads_back(segment, &key, location).is_err() {
                self.quarantine(&key, location, Some(Rot::Unreadable), Rot::Unreadable.about());
                self.scrub.lock().unreadable.remove(&key);
                state.unreadable = state.unreadable.saturating_sub(1);
                self.count_finding(key, Finding::Quarantined(Rot::Unreadable), state, step);
            }
        }
        Ok(())
    }

    /// One of the two copies of a segment's header is enough; a bad one is counted.
    fn scrub_header(&self, window: &mut Window, state: &mut ScrubState) {
        let id = window.segment.id;
        for copy in [0, HEADER_BYTES as u64] {
            let good = |page: &[u8]| matches!(SegmentHeader::decode(page), Ok(Some(header)) if header.id == id);
            if !window.bytes(copy, HEADER_BYTES).is_ok_and(good) && self.is_there(&window.segment) {
                tracing::error!(store = %self.dir.display(), segment = id, offset = copy, "scrub: a copy of the segment's header is damaged");
                state.dead_ranges += 1;
            }
        }
    }

    /// Whether what was read until now was read from this life of the segment: it is taken out before its space is used again.
    fn is_there(&self, segment: &Arc<Segment>) -> bool {
        self.segment(segment.id).is_some_and(|now| Arc::ptr_eq(&now, segment))
    }

    /// Checks the record at `offset`; returns where the next one stands.
    fn scrub_record(
        self: &Arc<Self>,
        window: &mut Window,
        offset: u64,
        end: u64,
        hash: bool,
        state: &mut ScrubState,
        step: &mut ScrubStep,
    ) -> Result<u64> {
        let segment = window.segment.clone();
        // A second look at what seems bad, so that a slip on the way from the disk is no damage.
        let mut header = window.record(offset, end);
        if !matches!(header, Ok(Some(_))) {
            window.clear();
            header = window.record(offset, end);
        }
        let Ok(Some((header, key))) = header else {
            let next = match self.files.summarised(&segment, end) {
                Ok(Some(records)) => records.iter().map(|record| record.offset).find(|at| *at > offset).unwrap_or(end),
                _ => window.resync(offset, end),
            };
            self.scrub_range(&segment, offset, next, state, step)?;
            return Ok(next);
        };
        state.records += 1;
        let next = offset + header.record_bytes();
        let is_put = header.kind == Kind::Put;
        let keep = hash && is_put && self.verifier.is_some();
        let mut payload = window.payload(offset, &header, keep);
        if !matches!(payload, Ok(Some(_))) {
            window.clear();
            payload = window.payload(offset, &header, keep);
        }
        match payload {
            Ok(Some(value)) if !keep || !self.hashes_otherwise(&key, &value) => {}
            Ok(Some(_)) => {
                let location = Location::new(segment.id, offset);
                if self.is_live_at(&key, location)? {
                    self.quarantine(&key, location, Some(Rot::Digest), Rot::Digest.about());
                    self.count_finding(key, Finding::Quarantined(Rot::Digest), state, step);
                }
            }
            Ok(None) | Err(_) if is_put => {
                let finding = self.look_into(&key, Location::new(segment.id, offset))?;
                self.count_finding(key, finding, state, step);
            }
            Ok(None) | Err(_) => {
                if self.is_there(&segment) {
                    tracing::error!(store = %self.dir.display(), segment = segment.id, offset, kind = ?header.kind, "scrub: a damaged record of the log");
                    state.dead_ranges += 1;
                }
            }
        }
        Ok(next)
    }

    fn count_finding(&self, key: Vec<u8>, finding: Finding, state: &mut ScrubState, step: &mut ScrubStep) {
        match finding {
            Finding::Nothing => {}
            Finding::Quarantined(rot) => {
                state.damaged += 1;
                step.quarantined.push((key, rot));
            }
            Finding::Rescued => state.rescued += 1,
            Finding::Unreadable => state.unreadable += 1,
        }
    }

    /// Sees to the live keys that stand in a stretch whose headers can't be read. The index knows them; it has no order by place, so all of it is
    /// gone through, in pages: rare enough.
    fn scrub_range(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        from: u64,
        to: u64,
        state: &mut ScrubState,
        step: &mut ScrubStep,
    ) -> Result<()> {
        if !self.is_there(segment) {
            return Ok(());
        }
        tracing::error!(store = %self.dir.display(), segment = segment.id, from, to, "scrub: a stretch of the log is damaged");
        let mut live = 0;
        self.each_key_in(
            |at| at.segment() == segment.id && (from..to).contains(&at.offset()),
            &mut |key, location| {
                live += 1;
                let finding = self.look_into(&key, location)?;
                self.count_finding(key, finding, state, step);
                Ok(())
            },
        )?;
        if live == 0 {
            state.dead_ranges += 1;
        }
        Ok(())
    }

    /// Keys whose segment is gone altogether are quarantined when a pass begins.
    fn scrub_missing_segments(self: &Arc<Self>) -> Result<()> {
        let mut missing = Vec::new();
        self.index()?.scan(&segments_start(), &mut |key, row| {
            let Some(id) = id_of_segment(key) else { return false };
            if self.segment(id).is_none() && SegmentRow::decode(row).is_ok_and(|row| row.live_records > 0) {
                missing.push(id);
            }
            true
        })?;
        if missing.is_empty() {
            return Ok(());
        }
        let mut damaged = 0;
        self.each_key_in(|at| missing.contains(&at.segment()), &mut |key, location| {
            damaged += u64::from(matches!(self.look_into(&key, location)?, Finding::Quarantined(_)));
            Ok(())
        })?;
        self.scrub.lock().state.damaged += damaged;
        Ok(())
    }

    /// Calls `each` with the keys that the index has at places for which `wanted` holds. What is durable and not yet in the index is told to it first.
    fn each_key_in(
        &self,
        wanted: impl Fn(Location) -> bool,
        each: &mut dyn FnMut(Vec<u8>, Location) -> Result<()>,
    ) -> Result<()> {
        self.apply_ready();
        let mut from = entry_key(b"");
        loop {
            let mut seen = 0;
            let mut last = None;
            let mut found = Vec::new();
            let mut failed = None;
            self.index()?.scan(&from, &mut |index_key, bytes| {
                let Some(key) = key_of_entry(index_key) else { return false };
                seen += 1;
                last = Some(index_key.to_vec());
                match Entry::decode(bytes) {
                    Ok(entry) if wanted(entry.location) => found.push((key.to_vec(), entry.location)),
                    Ok(_) => {}
                    Err(err) => failed = Some(err),
                }
                seen < INDEX_PAGE && failed.is_none()
            })?;
            if let Some(err) = failed {
                return Err(err);
            }
            for (key, location) in found {
                each(key, location)?;
            }
            match last {
                Some(mut last) if seen == INDEX_PAGE => {
                    last.push(0);
                    from = last;
                }
                _ => return Ok(()),
            }
        }
    }

    fn is_live_at(&self, key: &[u8], location: Location) -> Result<bool> {
        let stripe = self.stripe(self.stripe_of(key));
        Ok(self.newest(&stripe, key)?.is_some_and(|(live, _)| live.location() == location && !live.quarantined))
    }

    /// Looks into a key whose record on the disk does not read back: dead ones are nobody's loss (a punched payload reads so), what memory or the index
    /// still has right is written anew, what is rotten is quarantined, what can't be read is kept in mind.
    fn look_into(self: &Arc<Self>, key: &[u8], location: Location) -> Result<Finding> {
        let live = {
            let stripe = self.stripe(self.stripe_of(key));
            self.newest(&stripe, key)?.map(|(live, _)| live)
        };
        let Some(live) = live.filter(|live| live.location() == location && !live.quarantined) else {
            return Ok(Finding::Nothing);
        };
        let value = match &live.inline {
            Some(inline) => inline.to_vec(),
            None => {
                let mut value = vec![0; live.size as usize];
                match self.read_at(location, key, &mut value) {
                    Ok(()) => value,
                    Err(err) if err.kind() == ErrorKind::Corrupt => {
                        // Compacted and freed since the look-up?
                        if !self.is_live_at(key, location)? {
                            return Ok(Finding::Nothing);
                        }
                        let rot = self.rot_at(key, location);
                        self.quarantine(key, location, Some(rot), &err.to_string());
                        return Ok(Finding::Quarantined(rot));
                    }
                    Err(err) => {
                        tracing::warn!(key = %self.name(key), %err, "scrub: unreadable; it is tried again");
                        self.note_unreadable(key, location);
                        return Ok(Finding::Unreadable);
                    }
                }
            }
        };
        // The page cache or the index has it, and the disk has not.
        tracing::warn!(key = %self.name(key), "scrub: damaged on the disk and right in memory; writing it anew");
        Ok(if self.rewrite(key, location, &value)? { Finding::Rescued } else { Finding::Nothing })
    }

    /// Remembers a key that could not be read, to be tried again.
    pub(super) fn note_unreadable(&self, key: &[u8], location: Location) {
        if self.read_only {
            return;
        }
        let now = self.env.clock.monotonic_ns();
        let mut scrub = self.scrub.lock();
        if scrub.unreadable.len() < UNREADABLE_MAX || scrub.unreadable.contains_key(key) {
            scrub.unreadable.entry(key.to_vec()).or_insert(Unreadable { location, tries: 1, last_ns: now });
        }
    }

    /// Tries again to read what could not be read; quarantines what can't be read again and again while its file reads elsewhere. Returns how
    /// many keys are left to be tried.
    pub(super) fn retry_unreadable(self: &Arc<Self>) -> Result<usize> {
        let now = self.env.clock.monotonic_ns();
        let due: Vec<(Vec<u8>, Unreadable)> = {
            let scrub = self.scrub.lock();
            let is_due = |one: &Unreadable| now.saturating_sub(one.last_ns) >= UNREADABLE_RETRY_NS;
            scrub.unreadable.iter().filter(|(_, one)| is_due(one)).map(|(key, one)| (key.clone(), *one)).collect()
        };
        for (key, mut one) in due {
            self.check_writable()?;
            let mut live = None;
            if self.is_live_at(&key, one.location)? {
                live = self.segment(one.location.segment());
            }
            let again = match &live {
                None => false,
                Some(segment) => match self.reads_back(segment, &key, one.location) {
                    Ok(true) => false,
                    Ok(false) => {
                        self.look_into(&key, one.location)?;
                        false
                    }
                    Err(_) => {
                        (one.tries, one.last_ns) = (one.tries + 1, now);
                        let persists = one.tries >= UNREADABLE_TRIES && self.reads_elsewhere(segment);
                        if persists {
                            self.quarantine(&key, one.location, Some(Rot::Unreadable), Rot::Unreadable.about());
                        }
                        !persists
                    }
                },
            };
            let mut scrub = self.scrub.lock();
            if again {
                scrub.unreadable.insert(key, one);
            } else {
                scrub.unreadable.remove(&key);
            }
        }
        Ok(self.scrub.lock().unreadable.len())
    }

    /// Whether a record is whole on the disk; an error where the disk can't say.
    fn reads_back(&self, segment: &Arc<Segment>, key: &[u8], location: Location) -> Result<bool> {
        let failed = |err| Error::io(format!("read segment {} of {}", segment.id, self.dir.display()), err);
        let mut window = Window::open(self, segment, 0)?;
        let end = self.durable_end(segment)?;
        match window.record(location.offset(), end).map_err(failed)? {
            Some((header, found)) if found == key => {
                Ok(window.payload(location.offset(), &header, false).map_err(failed)?.is_some())
            }
            _ => Ok(false),
        }
    }

    /// Whether the disk answers for the file of a segment at all.
    fn reads_elsewhere(&self, segment: &Arc<Segment>) -> bool {
        Window::open(self, segment, 0).is_ok_and(|mut window| window.fill(0, RECORDS_START as usize).is_ok())
    }

    /// Makes the place of the scrub durable.
    pub(super) fn save_scrub(&self) -> Result<()> {
        self.check_writable()?;
        let bytes = self.scrub.lock().state.encode();
        self.files.write_note(SCRUB_FILE, &bytes)
    }

    /// Takes over where the scrub was when the store was last open. What does not read back begins anew.
    pub(super) fn load_scrub(&self) {
        let read = self.files.read_note(SCRUB_FILE, SCRUB_BYTES).and_then(|bytes| ScrubState::decode(&bytes));
        self.scrub.lock().state = read.unwrap_or_default();
    }
}

const SCRUB_FILE: &str = "scrub";
const SCRUB_MAGIC: &[u8; 8] = b"BASALTSC";
const SCRUB_FIELDS: usize = 11;
const SCRUB_BYTES: usize = 8 + SCRUB_FIELDS * 8 + 8;

impl ScrubState {
    /// File `scrub`: magic | 1 if a pass is under way + 2 if it is paused | next | until | started | finished | bytes | records | damaged | rescued |
    /// unreadable | dead ranges, each u64; then the SipHash of what is before.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = SCRUB_MAGIC.to_vec();
        let fields: [u64; SCRUB_FIELDS] = [
            u64::from(self.active) | u64::from(self.paused) << 1,
            self.next.word(),
            self.until.word(),
            self.started_unix_ms,
            self.finished_unix_ms,
            self.bytes,
            self.records,
            self.damaged,
            self.rescued,
            self.unreadable,
            self.dead_ranges,
        ];
        fields.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
        let check = note_check(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<ScrubState> {
        let body = SCRUB_BYTES - 8;
        if bytes.len() != SCRUB_BYTES || bytes[..8] != *SCRUB_MAGIC || note_check(&bytes[..body]) != u64_at(bytes, body)
        {
            return None;
        }
        let field = |i: usize| u64_at(bytes, 8 + i * 8);
        Some(ScrubState {
            active: field(0) & 1 != 0,
            paused: field(0) & 2 != 0,
            next: Location::from_word(field(1)),
            until: Location::from_word(field(2)),
            started_unix_ms: field(3),
            finished_unix_ms: field(4),
            bytes: field(5),
            bytes_left: 0,
            records: field(6),
            damaged: field(7),
            rescued: field(8),
            unreadable: field(9),
            dead_ranges: field(10),
        })
    }
}

/// Behind a lock of its own, which nobody holds during I/O and no reader or writer of the store takes.
pub(super) type ScrubCell = Mutex<Scrub>;
