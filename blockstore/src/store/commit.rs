//! Group commit: one flush for all that is written, segment changes, and telling the index what is durable.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use super::{
    core::{Active, Applied, ApplyOp, Core, Group, Log, live_bytes},
    entry::{Entry, SegmentRow, checkpoint_key, entry_key, quarantine_key, segment_key},
    format::{
        Kind, RECORDS_START, RecordHeader, SEAL_PAYLOAD_BYTES, SegmentHeader, SummaryBuilder, crc32, record_bytes,
    },
    location::{Location, SEGMENT_ID_MAX},
    segment::Segment,
    ticket::{Completion, Ticket},
    write::{padding, summary_header},
};
use crate::{
    disk::File,
    error::{Error, ErrorKind, Result},
    index::Change,
    sync::MutexGuard,
};

/// Durable writes that wait for the index before a writer tells it of them.
const READY_MIN: usize = 1024;

/// A record that survived where it lay, and must be copied to be trusted.
#[derive(Clone, Debug)]
pub(super) struct Survivor {
    pub(super) header: RecordHeader,
    pub(super) key: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Core {
    /// A barrier behind everything that is in the log now.
    pub(super) fn submit_sync(self: &Arc<Self>) -> Result<Ticket> {
        self.check_open()?;
        if self.read_only {
            return Ok(Ticket::ready(Ok(())));
        }
        let mut log = self.log.lock();
        // While segments change, what is on its way is in nobody's hands.
        while log.rolling {
            log = self.changed.wait(log);
        }
        if let Some(err) = &log.fenced {
            return Err(err.clone());
        }
        let log_ref = &mut *log;
        let Some(active) = &log_ref.active else { return Ok(Ticket::ready(Ok(()))) };
        let end = active.end();
        if active.durable >= end && log_ref.queue.is_empty() {
            return Ok(Ticket::ready(Ok(())));
        }
        let completion = Completion::new(true);
        log_ref.queue.push_back(Group {
            start: end,
            end,
            segment: active.segment.id,
            completion: completion.clone(),
            ops: Vec::new(),
        });
        drop(log);
        Ok(Ticket::log(completion, self))
    }

    /// Whether something is written that is not known durable.
    pub(super) fn is_dirty(&self) -> bool {
        let log = self.log.lock();
        // While segments change, what is on its way is in nobody's hands.
        log.rolling || !log.queue.is_empty() || log.active.as_ref().is_some_and(|active| active.durable < active.end())
    }

    /// Asks for a flush without waiting for it.
    pub(super) fn kick_flush(&self) {
        if self.env.clock.threads() {
            self.work.lock().flush = true;
            self.work_to_do.notify_one();
        } else {
            self.lead_flush();
        }
    }

    /// Flushes what is written, for all who wait, unless someone else is at it: then that one hands the lead on.
    pub(super) fn lead_flush(&self) {
        let mut log = self.log.lock();
        if log.fenced.is_some() {
            return;
        }
        if log.flushing || log.rolling {
            log.wanted = true;
            return;
        }
        let done = log.pop_durable();
        let Some(active) = log.active.as_ref().filter(|active| active.prefix > active.durable) else {
            // What it waits for is still being written, by someone who may not wait for a flush.
            log.wanted = !log.queue.is_empty();
            drop(log);
            complete(done);
            return;
        };
        let (file, target) = (active.file.clone(), active.prefix);
        log.begin_flush(self.env.clock.monotonic_ns());
        drop(log);
        complete(done);
        let flushed = file.sync();
        let mut log = self.log.lock();
        if let Err(err) = flushed {
            // Flushing until then: who has begun to roll must not make a segment while the copies go into theirs.
            log = self.evacuate(log, err);
            log.flushing = false;
            let done = log.pop_durable();
            log.wanted = true;
            let next = log.wanted_leader();
            drop(log);
            self.changed.notify_all();
            complete(done);
            self.hand_on(next);
        } else {
            log.flushing = false;
            let done = self.made_durable(&mut log, target);
            log.wanted = true;
            let next = log.wanted_leader();
            drop(log);
            self.changed.notify_all();
            complete(done);
            self.hand_on(next);
        }
        // Someone who flushes the index at this moment must not hold up the writers; the next flush or step catches up.
        if let Some(applied) = self.applying.try_lock() {
            self.apply_ready_to(applied);
        }
    }

    /// Lets `next` lead the next flush, or the background thread, where nobody waits for it.
    pub(super) fn hand_on(&self, next: Option<Arc<Completion>>) {
        if let Some(next) = next
            && !next.ask_to_lead()
        {
            self.kick_flush();
        }
    }

    fn made_durable(&self, log: &mut Log, target: u64) -> Vec<(Arc<Completion>, Result<()>)> {
        if let Some(active) = &mut log.active {
            let before = active.durable;
            active.durable = active.durable.max(target);
            self.env.unflushed.fetch_sub(active.durable - before, Ordering::Relaxed);
        }
        log.oldest_unflushed_ns = self.env.clock.monotonic_ns();
        log.pop_durable()
    }

    /// Seals the active segment, or cuts it where a write failed, and opens the next one. All that it held is durable then.
    pub(super) fn roll<'a>(&'a self, mut log: MutexGuard<'a, Log>) -> Result<MutexGuard<'a, Log>> {
        log.begin_roll(self.env.clock.monotonic_ns());
        let (mut log, rolled) = self.roll_exclusively(log);
        log.rolling = false;
        self.changed.notify_all();
        let done = log.pop_durable();
        let next = log.wanted_leader();
        if !done.is_empty() || next.is_some() {
            drop(log);
            complete(done);
            self.hand_on(next);
            log = self.log.lock();
        }
        rolled.map(|()| log)
    }

    fn end_row(&self, id: u64, end: u64) {
        let mut rows = self.rows.lock();
        if let Some(row) = rows.rows.get_mut(&id) {
            row.end = end;
            rows.dirty.insert(id);
        }
    }

    fn roll_exclusively<'a>(&'a self, mut log: MutexGuard<'a, Log>) -> (MutexGuard<'a, Log>, Result<()>) {
        while log.flushing || log.active.as_ref().is_some_and(|active| !active.in_flight.is_empty()) {
            if let Some(err) = &log.fenced {
                let err = err.clone();
                return (log, Err(err));
            }
            log = self.changed.wait(log);
        }
        let (id, recycle) = (log.next_id, log.spent.pop());
        if id > SEGMENT_ID_MAX {
            let err = Error::new(ErrorKind::Unavailable, "all segment ids are used: move the blocks to a new store");
            return (log, Err(err));
        }
        log.next_id += 1;
        drop(log);
        // Before the open segment is ended: where no file can be made, what it has left is for deletes.
        let begun = self.files.begin(id, recycle.as_deref());
        log = self.log.lock();
        let begun = match begun {
            Ok(begun) => begun,
            Err(err) => return (log, Err(err)),
        };
        if let Some(active) = &mut log.active {
            let (segment, file) = (active.segment.clone(), active.file.clone());
            let seal = active.broken.is_none().then(|| {
                let payload = active.summary.payload();
                let mut bytes = Vec::new();
                let at = active.head;
                let sequence = self.env.sequence.load(Ordering::Acquire);
                let mut offset = put_record(
                    &mut bytes,
                    &segment,
                    at,
                    &summary_header(&payload, active.durable, sequence),
                    b"",
                    &payload,
                );
                let mut payload = at.to_le_bytes().to_vec();
                payload.extend_from_slice(&active.records.to_le_bytes());
                debug_assert_eq!(payload.len(), SEAL_PAYLOAD_BYTES);
                let header = RecordHeader {
                    kind: Kind::Seal,
                    payload_crc: crc32(&payload),
                    payload_len: payload.len() as u32,
                    ..summary_header(b"", active.durable, sequence)
                };
                offset = put_record(&mut bytes, &segment, offset, &header, b"", &payload);
                (at, bytes, offset)
            });
            let written_to = active.end();
            drop(log);
            // Where the seal can't be written the segment is cut instead: its headers tell the same.
            let end = match &seal {
                Some((at, bytes, end)) if file.write_at(&[bytes], *at).is_ok() => *end,
                _ => written_to,
            };
            let flushed = file.sync();
            log = self.log.lock();
            if let Err(err) = flushed {
                self.files.abandon(begun);
                log = self.evacuate(log, err);
                return match &log.fenced {
                    Some(err) => {
                        let err = err.clone();
                        (log, Err(err))
                    }
                    None => (log, Ok(())),
                };
            }
            let log_ref = &mut *log;
            if let Some(active) = &mut log_ref.active {
                let before = active.durable;
                active.durable = written_to;
                active.prefix = written_to;
                self.env.unflushed.fetch_sub(written_to - before, Ordering::Relaxed);
                for group in log_ref.queue.iter().skip(log_ref.written) {
                    group.completion.set_written();
                }
            }
            let done = log.pop_durable();
            log.previous = (segment.id, end);
            log.active = None;
            self.end_row(segment.id, end);
            // At once: whoever applies them next drops them, and nobody else would tell those who wait.
            drop(log);
            complete(done);
            log = self.log.lock();
        }
        let (previous, previous_end) = log.previous;
        let void = std::mem::take(&mut log.void);
        drop(log);
        let header = self.header(id, previous, previous_end, RECORDS_START);
        let made = self.files.create(begun, &header, self.reservable());
        let made = made.inspect(|_| {
            // Only now that the next segment says where it ends is the one before cut there: the rest is never read again.
            // Where that fails the next open does it.
            if let Some(before) = self.segment(previous)
                && let Err(err) = self.cut(&before, previous_end)
            {
                tracing::warn!(segment = previous, %err, "a segment could not be cut at its end");
            }
        });
        let void = if made.is_ok() { self.remove_void(void) } else { void };
        let mut log = self.log.lock();
        log.void = void;
        match made {
            Ok((segment, file)) => {
                self.install(&mut log, segment, file, RECORDS_START, &header);
                (log, Ok(()))
            }
            // A spent file that was to be written over may be half way; the next open removes it.
            Err(err) => (log, Err(err)),
        }
    }

    /// Cuts a segment's file at its end, so that its length says where it ends even when the next segment is gone.
    pub(super) fn cut(&self, segment: &Arc<Segment>, end: u64) -> Result<()> {
        // Also where the length is right: space that was reserved behind the end is given back.
        let file = self.files.file(segment)?;
        let failed = |err| Error::io(format!("cut segment {} in {}", segment.id, self.dir.display()), err);
        file.set_len(end).map_err(failed)?;
        file.sync().map_err(failed)
    }

    pub(super) fn header(&self, id: u64, previous: u64, previous_end: u64, adopted_end: u64) -> SegmentHeader {
        let mut nonce = [0; 16];
        self.env.random.fill(&mut nonce);
        SegmentHeader {
            id,
            nonce,
            store_id: self.store_id,
            incarnation: self.incarnation,
            previous,
            previous_end,
            adopted_end,
            created_unix_ms: self.env.clock.unix_ms(),
        }
    }

    fn install(&self, log: &mut Log, segment: Arc<Segment>, file: Arc<dyn File>, head: u64, header: &SegmentHeader) {
        self.add_segment(segment.clone());
        let mut rows = self.rows.lock();
        rows.rows.insert(
            segment.id,
            SegmentRow { nonce: segment.nonce, created_unix_ms: header.created_unix_ms, ..SegmentRow::default() },
        );
        rows.dirty.insert(segment.id);
        drop(rows);
        log.active = Some(Active {
            segment,
            file,
            head,
            prefix: head,
            durable: head,
            in_flight: BTreeMap::new(),
            summary: SummaryBuilder::new(0, head),
            records: 0,
            marked: head,
            broken: None,
        });
    }

    /// Copies survivors into a new segment behind `previous`, which ends at `previous_end`, and flushes them: only then are they as good as
    /// acknowledged writes (STORE 2). Ends with a flushed mark, so that the new segment counts. Returns the places of the copies.
    pub(super) fn adopt(
        &self,
        id: u64,
        previous: u64,
        previous_end: u64,
        survivors: &[Survivor],
    ) -> Result<(Active, SegmentHeader, Vec<Location>)> {
        let bytes: u64 = survivors.iter().map(|one| record_bytes(one.key.len(), one.payload.len())).sum();
        let header = self.header(id, previous, previous_end, RECORDS_START + bytes);
        let (segment, file) = self.files.create(self.files.begin(id, None)?, &header, 0)?;
        let failed = |err| Error::io(format!("copy the tail of the log in {}", self.dir.display()), err);
        let mut offset = RECORDS_START;
        let mut places = Vec::with_capacity(survivors.len());
        let mut summary = SummaryBuilder::new(0, RECORDS_START);
        let mut adopted_puts = std::collections::HashSet::new();
        for one in survivors {
            let mut record = RecordHeader { mark: RECORDS_START, ..one.header };
            // What this record kills may have been adopted with it, and is then in this segment.
            if record.victim == previous && adopted_puts.contains(one.key.as_slice()) {
                record.victim = id;
            }
            if record.kind == Kind::Put {
                adopted_puts.insert(one.key.as_slice());
            }
            let mut bytes = Vec::new();
            let next = put_record(&mut bytes, &segment, offset, &record, &one.key, &one.payload);
            file.write_at(&[&bytes], offset).map_err(failed)?;
            summary.add(&record, &one.key);
            places.push(Location::new(id, offset));
            offset = next;
        }
        file.sync().map_err(failed)?;
        let payload = summary.payload();
        let mut bytes = Vec::new();
        let sequence = self.env.sequence.load(Ordering::Acquire);
        let end = put_record(&mut bytes, &segment, offset, &summary_header(&payload, offset, sequence), b"", &payload);
        file.write_at(&[&bytes], offset).map_err(failed)?;
        file.sync().map_err(failed)?;
        let active = Active {
            segment,
            file,
            head: end,
            prefix: end,
            durable: end,
            in_flight: BTreeMap::new(),
            summary: SummaryBuilder::new(offset, end),
            records: survivors.len() as u64,
            marked: end,
            broken: None,
        };
        Ok((active, header, places))
    }

    /// After a failed flush: what reads back above the mark is copied to a new segment and flushed there. What doesn't, or where that
    /// fails too, fences the store (STORE 2).
    fn evacuate<'a>(&'a self, mut log: MutexGuard<'a, Log>, cause: std::io::Error) -> MutexGuard<'a, Log> {
        let was_rolling = log.rolling;
        if !was_rolling {
            log.begin_roll(self.env.clock.monotonic_ns());
        }
        while log.fenced.is_none() && log.active.as_ref().is_some_and(|active| !active.in_flight.is_empty()) {
            log = self.changed.wait(log);
        }
        if log.fenced.is_some() {
            log.rolling = was_rolling;
            return log;
        }
        tracing::error!(store = %self.dir.display(), %cause, "a flush of the log failed; copying what it should have made durable");
        let acknowledged = log.advance_written();
        let Some(old) = log.active.take() else { return log };
        let id = log.next_id;
        log.next_id += 1;
        let groups: Vec<Group> = log.queue.drain(..).collect();
        log.written = 0;
        log.evacuating = groups.iter().map(|group| group.completion.clone()).collect();
        drop(log);
        complete(acknowledged);
        let copied = self
            .survivors(&old, &groups)
            .and_then(|(survivors, counts)| Ok((self.adopt(id, old.segment.id, old.durable, &survivors)?, counts)));
        if copied.is_ok()
            && let Err(err) = self.cut(&old.segment, old.durable)
        {
            tracing::warn!(segment = old.segment.id, %err, "a segment could not be cut at its end; the next open does it");
        }
        let mut log = self.log.lock();
        log.evacuating.clear();
        self.env.unflushed.fetch_sub(old.end() - old.durable, Ordering::Relaxed);
        match copied {
            Ok(((active, header, places), counts)) => {
                let mut places = places.into_iter();
                let end = active.durable;
                self.install(&mut log, active.segment.clone(), active.file.clone(), end, &header);
                log.active = Some(active);
                for (mut group, count) in groups.into_iter().zip(counts) {
                    // A carried tombstone has a record and no operation.
                    for (i, place) in places.by_ref().take(count).enumerate() {
                        // A quarantine says something of a record that stays where it is.
                        if let Some(op) = group.ops.get(i).filter(|op| op.quarantine.is_none()) {
                            op.place.store(place.word(), Ordering::Release);
                        }
                    }
                    (group.segment, group.start, group.end) = (id, end, end);
                    log.queue.push_back(group);
                }
                self.end_row(old.segment.id, old.durable);
            }
            Err(err) => {
                let fence = Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "the disk under {} failed a flush ({cause}) and then the repair ({err}); outcome unknown for {}: look at the \
                         disk, then open the store again",
                        self.dir.display(),
                        names(&groups)
                    ),
                );
                self.fence_with(&mut log, fence, groups);
            }
        }
        log.rolling = was_rolling;
        self.changed.notify_all();
        log
    }

    /// Reads back the records of writes that a failed flush should have made durable, and says how many each write has.
    fn survivors(&self, old: &Active, groups: &[Group]) -> Result<(Vec<Survivor>, Vec<usize>)> {
        let mut survivors = Vec::new();
        let mut counts = Vec::new();
        for group in groups {
            let before = survivors.len();
            let mut offset = group.start;
            while offset < group.end {
                let read = self.files.record_at(&old.segment, offset)?;
                let lost = || {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!("the record at offset {offset} of segment {} does not read back", old.segment.id),
                    )
                };
                let (header, key) = read.ok_or_else(lost)?;
                let payload = self.files.payload_of(&old.segment, offset, &header)?.ok_or_else(lost)?;
                offset += header.record_bytes();
                if header.kind.has_key() {
                    survivors.push(Survivor { header, key, payload });
                }
            }
            counts.push(survivors.len() - before);
        }
        Ok((survivors, counts))
    }

    pub(super) fn fence_with(&self, log: &mut Log, err: Error, groups: Vec<Group>) {
        tracing::error!(store = %self.dir.display(), %err, "the store is fenced");
        log.fenced = Some(err);
        // Their pending writes stay: Get and Has of those keys say `Unavailable`.
        for group in &groups {
            group.completion.set_lost();
        }
        log.queue.extend(groups);
        log.written = log.queue.len();
    }

    /// Tells the index what is durable, if no one else does at the moment and there is much.
    pub(super) fn apply_ready_if_idle(&self) {
        if self.log.lock().ready.len() >= READY_MIN
            && let Some(applied) = self.applying.try_lock()
        {
            self.apply_ready_to(applied);
        }
    }

    /// Tells the index of everything durable that it has not heard of: entries, rows, counts and checkpoint in one batch.
    pub(super) fn apply_ready(&self) {
        self.apply_ready_to(self.applying.lock());
    }

    pub(super) fn apply_ready_to(&self, mut applied: MutexGuard<'_, Applied>) {
        if applied.error.is_some() && self.reopen_index(&mut applied).is_err() {
            return;
        }
        loop {
            let groups = self.log.lock().take_ready();
            let Some(last) = groups.last() else { break };
            let position = Location::new(last.segment, last.end);
            let mut checkpoint = applied.checkpoint;
            let mut changes: Vec<Change> = Vec::new();
            let mut bytes = 0;
            let mut records = 0;
            let mut rows = RowChanges::default();
            for op in groups.iter().flat_map(|group| &group.ops) {
                records += 1;
                let location = Location::from_word(op.place.load(Ordering::Acquire));
                let (key_bytes, size) = (op.key.len() as u64, op.value.as_ref().map(|value| value.size));
                bytes += live_bytes(&op.key, size.unwrap_or(0));
                if let Some((place, size)) = &op.previous {
                    let before = Location::from_word(place.load(Ordering::Acquire));
                    let freed = live_bytes(&op.key, *size);
                    rows.live(before.segment(), -1, freed);
                    if !op.moved && *size >= self.options.punch_bytes_min {
                        rows.punchable.push((before, op.key.len(), *size));
                    }
                    checkpoint.count -= 1;
                    checkpoint.bytes -= u64::from(*size);
                    checkpoint.key_bytes -= key_bytes;
                }
                match &op.value {
                    Some(value) => {
                        rows.live(location.segment(), 1, live_bytes(&op.key, value.size));
                        checkpoint.count += 1;
                        checkpoint.bytes += u64::from(value.size);
                        checkpoint.key_bytes += key_bytes;
                        let entry = Entry {
                            location,
                            sequence: op.sequence,
                            size: value.size,
                            expires_unix_ms: value.expires_unix_ms,
                            quarantined: value.quarantined,
                            inline: value.inline.as_ref().map(|inline| inline.to_vec()),
                        };
                        changes.push((entry_key(&op.key), Some(entry.encode())));
                    }
                    None => changes.push((entry_key(&op.key), None)),
                }
                match op.quarantine {
                    Some(row) => changes.push((quarantine_key(&op.key), Some(row.encode()))),
                    None if op.heals => changes.push((quarantine_key(&op.key), None)),
                    None => {}
                }
            }
            let written = self.rows_with(&rows, &mut changes);
            checkpoint.position = position;
            checkpoint.store_id = self.store_id;
            checkpoint.next_sequence = self.env.sequence.load(Ordering::Acquire);
            changes.push((checkpoint_key(), Some(checkpoint.encode())));
            let answered = self.watch_index();
            let told = self.index().and_then(|index| index.write(&changes));
            drop(answered);
            if let Err(err) = told {
                self.index_failed(&mut applied, err);
                self.rows.lock().dirty.extend(written);
                self.put_back(groups);
                break;
            }
            self.change_rows(rows);
            applied.error = None;
            applied.checkpoint = checkpoint;
            applied.bytes_since_flush += bytes;
            applied.records_since_flush += records;
            for op in groups.iter().flat_map(|group| &group.ops) {
                self.forget_pending(op);
            }
        }
        self.let_go_of_index(applied);
    }

    /// Lets go of the index, and tells writers that wait for it. Under the log's lock, so that none of them begins to wait in between.
    fn let_go_of_index(&self, applied: MutexGuard<'_, Applied>) {
        drop(applied);
        drop(self.log.lock());
        self.changed.notify_all();
    }

    fn put_back(&self, groups: Vec<Group>) {
        let mut log = self.log.lock();
        for group in groups.into_iter().rev() {
            log.ready.push_front(group);
        }
        log.lag.store(log.ready.len(), Ordering::Relaxed);
    }

    /// Adds to `changes` what the index is to hear of segments: those that wait for it, and these changes. Returns which they are.
    fn rows_with(&self, with: &RowChanges, changes: &mut Vec<Change>) -> Vec<u64> {
        let mut rows = self.rows.lock();
        rows.dirty.extend(with.live.keys());
        let written: Vec<u64> = rows.dirty.drain().collect();
        for id in &written {
            let row = rows.rows.get(id).map(|row| with.applied_to(*id, *row).encode());
            changes.push((segment_key(*id), row));
        }
        written
    }

    fn change_rows(&self, changes: RowChanges) {
        let mut rows = self.rows.lock();
        for id in changes.live.keys() {
            if let Some(row) = rows.rows.get_mut(id) {
                *row = changes.applied_to(*id, *row);
            }
        }
        rows.punchable_bytes += changes.punchable.iter().map(|(_, _, size)| u64::from(*size)).sum::<u64>();
        rows.punchable.extend(changes.punchable);
    }

    /// Makes the index durable up to what it has heard; what made space free by then may be freed (STORE 6).
    pub(super) fn flush_index(&self) -> Result<Location> {
        self.apply_ready();
        let mut applied = self.applying.lock();
        let flushed = self.flush_index_of(&mut applied);
        self.let_go_of_index(applied);
        flushed
    }

    fn flush_index_of(&self, applied: &mut Applied) -> Result<Location> {
        if let Some(err) = &applied.error {
            return Err(err.clone());
        }
        let _answered = self.watch_index();
        let rows = self.dirty_rows();
        let changes: Vec<Change> =
            rows.iter().map(|(id, row)| (segment_key(*id), row.map(|row| row.encode()))).collect();
        let written = if rows.is_empty() { Ok(()) } else { self.index().and_then(|index| index.write(&changes)) };
        let flushed = written.and_then(|()| match applied.flushed == applied.checkpoint.position && rows.is_empty() {
            true => Ok(()),
            false => self.index()?.flush(),
        });
        if let Err(err) = flushed {
            self.rows.lock().dirty.extend(rows.iter().map(|(id, _)| *id));
            self.index_failed(applied, err.clone());
            return Err(err);
        }
        applied.flushed = applied.checkpoint.position;
        applied.bytes_since_flush = 0;
        applied.records_since_flush = 0;
        Ok(applied.flushed)
    }

    fn dirty_rows(&self) -> Vec<(u64, Option<SegmentRow>)> {
        let mut rows = self.rows.lock();
        let dirty: Vec<u64> = rows.dirty.drain().collect();
        dirty.into_iter().map(|id| (id, rows.rows.get(&id).copied())).collect()
    }

    fn index_failed(&self, applied: &mut Applied, err: Error) {
        if applied.error.is_none() {
            tracing::error!(store = %self.dir.display(), %err, "the index takes no writes; it is opened anew when there is room");
        }
        applied.error = Some(err);
    }
}

/// What a batch for the index makes of the segments; it counts once the index has taken the batch.
#[derive(Default)]
struct RowChanges {
    /// Live records and bytes, more or fewer.
    live: BTreeMap<u64, (i64, i64)>,
    punchable: Vec<(Location, usize, u32)>,
}

impl RowChanges {
    fn live(&mut self, segment: u64, records: i64, bytes: u64) {
        let row = self.live.entry(segment).or_default();
        row.0 += records;
        row.1 += records * i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    fn applied_to(&self, segment: u64, mut row: SegmentRow) -> SegmentRow {
        if let Some((records, bytes)) = self.live.get(&segment) {
            row.live_records = row.live_records.saturating_add_signed(*records);
            row.live_bytes = row.live_bytes.saturating_add_signed(*bytes);
        }
        row
    }
}

impl Log {
    /// Takes the writes that are durable off the queue, for the index; returns who waits for them. In a fenced log: everyone, failed.
    pub(super) fn pop_durable(&mut self) -> Vec<(Arc<Completion>, Result<()>)> {
        let mut done = Vec::new();
        if let Some(err) = &self.fenced {
            for group in &self.queue {
                done.push((group.completion.clone(), Err(err.clone())));
            }
            return done;
        }
        let Some(durable) = self.active.as_ref().map(|active| active.durable) else { return done };
        while self.queue.front().is_some_and(|group| group.end <= durable) {
            let Some(group) = self.queue.pop_front() else { break };
            group.completion.set_durable();
            done.push((group.completion.clone(), Ok(())));
            self.written = self.written.saturating_sub(1);
            self.ready.push_back(group);
        }
        self.lag.store(self.ready.len(), Ordering::Relaxed);
        done
    }

    fn take_ready(&mut self) -> Vec<Group> {
        self.lag.store(0, Ordering::Relaxed);
        self.ready.drain(..).collect()
    }

    /// [`Log::next_leader`], if someone asked for a flush when there was nothing that could be flushed, and nobody is at it now.
    pub(super) fn wanted_leader(&mut self) -> Option<Arc<Completion>> {
        if !self.wanted || self.flushing || self.rolling || self.fenced.is_some() {
            return None;
        }
        self.wanted = self.queue.iter().any(|group| group.completion.durable);
        self.next_leader()
    }

    /// The first write that is written and waits for a flush.
    fn next_leader(&self) -> Option<Arc<Completion>> {
        let active = self.active.as_ref().filter(|active| active.prefix > active.durable)?;
        self.queue
            .iter()
            .take_while(|group| group.end <= active.prefix)
            .find(|group| group.completion.durable)
            .map(|group| group.completion.clone())
    }
}

pub(super) fn complete(done: Vec<impl Into<Outcome>>) {
    for one in done {
        let Outcome(completion, outcome) = one.into();
        completion.complete(outcome);
    }
}

pub(super) struct Outcome(Arc<Completion>, Result<()>);

impl From<(Arc<Completion>, Result<()>)> for Outcome {
    fn from((completion, outcome): (Arc<Completion>, Result<()>)) -> Outcome {
        Outcome(completion, outcome)
    }
}

impl From<Arc<Completion>> for Outcome {
    fn from(completion: Arc<Completion>) -> Outcome {
        Outcome(completion, Ok(()))
    }
}

/// Appends a whole record; returns the offset behind it.
fn put_record(
    out: &mut Vec<u8>,
    segment: &Segment,
    offset: u64,
    header: &RecordHeader,
    key: &[u8],
    payload: &[u8],
) -> u64 {
    let start = out.len();
    header.encode(&segment.nonce, offset, key, out);
    out.extend_from_slice(payload);
    out.extend_from_slice(padding(out.len() - start));
    offset + (out.len() - start) as u64
}

/// The keys of some writes, for an error.
pub(super) fn names(groups: &[Group]) -> String {
    let ops: Vec<&ApplyOp> = groups.iter().flat_map(|group| &group.ops).collect();
    let mut text = format!("{} writes", ops.len());
    for op in ops.iter().take(8) {
        text.push_str(&format!(" {}", super::core::hex(&op.key)));
    }
    text
}
