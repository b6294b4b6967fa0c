//! Writes: decide under the stripes, reserve in the log, write outside all locks, acknowledge the contiguous prefix.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
};

use super::{
    Op,
    core::{ApplyOp, Core, Group, Key, Live, Log, Pending, PendingValue, Stripe, live_bytes},
    format::{FLAG_CONTINUES, FLAG_MOVED, Kind, RecordHeader, SummaryBuilder, crc32, record_bytes, seal_bytes},
    location::{Location, SEGMENT_BYTES_MAX},
    segment::Segment,
    ticket::{Completion, Ticket},
};
use crate::{
    disk::File,
    error::{Error, ErrorKind, Result},
    options::Durability,
    sync::MutexGuard,
};

/// A summary is written when this many records have come since the last one...
const SUMMARY_RECORDS: u64 = 1024;
/// ...or when it has grown to this size, in bytes.
const SUMMARY_BYTES: usize = 64 << 10;
/// A write that need not be atomic is reserved in pieces of about this size, in bytes.
const PIECE_BYTES: u64 = 8 << 20;
/// Durable writes of which the index has not heard: beyond so many writers wait.
const READY_MAX: usize = 16 << 10;

/// A record that is to be written.
pub(super) struct NewRecord<'a> {
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) key: &'a [u8],
    pub(super) payload: &'a [u8],
    pub(super) payload_crc: u32,
    /// A moved record keeps its own.
    pub(super) sequence: Option<u64>,
    pub(super) victim: u64,
    pub(super) expires_unix_ms: u64,
}

/// A reservation: what its owner must write, and where.
pub(super) struct Reservation {
    segment: Arc<Segment>,
    file: Arc<dyn File>,
    start: u64,
    mark: u64,
    /// Offset and sequence number of each record.
    places: Vec<(u64, u64)>,
    summary: Option<Vec<u8>>,
    completion: Arc<Completion>,
}

/// What one operation of a write turned out to be.
enum Decision {
    /// Nothing to write; wait for the write that made it so, if that is still under way.
    Nothing(Option<Arc<Completion>>),
    Write {
        victim: u64,
        previous: Option<Live>,
    },
}

/// A segment keeps no more than this for deletes, in bytes.
const FOR_DELETES_MAX: u64 = 1 << 20;

impl Core {
    /// See [`super::Store::submit`].
    pub(super) fn submit(self: &Arc<Self>, ops: &[Op<'_>], atomic: bool, durable: bool) -> Result<Ticket> {
        self.check_writable()?;
        for op in ops {
            let (key, value) = op.parts();
            self.check_limits(key, value)?;
            if self.options.verify_on_put
                && !op.is_delete()
                && let Some(verifier) = self.verifier
            {
                verifier(key, value)?;
            }
        }
        let reduced = last_of_each_key(ops);
        let ops = reduced.as_deref().unwrap_or(ops);
        self.await_budget();
        self.await_index()?;
        let mut tickets = Vec::new();
        let mut rest = ops;
        while !rest.is_empty() {
            let mut take = rest.len();
            if !atomic {
                let mut bytes = 0;
                take = rest
                    .iter()
                    .take_while(|op| {
                        let (key, value) = op.parts();
                        bytes += record_bytes(key.len(), value.len());
                        bytes <= PIECE_BYTES
                    })
                    .count()
                    .max(1);
            }
            let (piece, more) = rest.split_at(take);
            self.submit_piece(piece, atomic, durable, &mut tickets)?;
            rest = more;
        }
        self.apply_ready_if_idle();
        Ok(Ticket::all(tickets.into_iter().map(|completion| Ticket::log(completion, self)).collect()))
    }

    fn submit_piece(
        self: &Arc<Self>,
        ops: &[Op<'_>],
        atomic: bool,
        durable: bool,
        tickets: &mut Vec<Arc<Completion>>,
    ) -> Result<()> {
        let others = tickets.len();
        // Outside the locks: it may be megabytes.
        let crcs: Vec<u32> = ops.iter().map(|op| crc32(op.parts().1)).collect();
        let bytes = ops.iter().map(|op| op.parts()).map(|(key, value)| record_bytes(key.len(), value.len())).sum();
        let deletes_only = ops.iter().all(|op| matches!(op, Op::Delete { .. }));
        let bytes = if deletes_only { bytes } else { self.room_for_put(bytes) };
        let mut write = || {
            self.with_room(bytes, || {
                tickets.truncate(others);
                let failures = self.settled_failures();
                self.try_piece(ops, &crcs, atomic, durable, failures, tickets)
            })
        };
        let is_full = |outcome: &Result<()>| outcome.as_ref().is_err_and(|err| err.kind() == ErrorKind::NoSpace);
        let mut outcome = write();
        if is_full(&outcome) && deletes_only {
            // Others have filled the disk beyond the reserve, and a delete is what is owed then.
            for make_room in [Core::give_up, Core::lift_reserve] {
                if is_full(&outcome) && make_room(self)? {
                    outcome = write();
                }
            }
        } else if is_full(&outcome) && self.was_refused() && self.make_room()? {
            outcome = write();
        }
        outcome
    }

    /// Does what reserves `bytes` in the log at most, and once more where it was superseded, with room made before: whoever reserves holds stripes, under which
    /// nobody waits for the disk.
    pub(super) fn with_room<T>(&self, bytes: u64, mut reserve: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match reserve() {
                Err(err) if err.is_superseded() => drop(self.log_with_room(bytes)?),
                other => return other,
            }
        }
    }

    /// How many writes have failed so far, none of which is pending any more.
    pub(super) fn settled_failures(&self) -> u64 {
        loop {
            let failures = self.failures.load(Ordering::SeqCst);
            if self.retracting.load(Ordering::SeqCst) == 0 {
                return failures;
            }
            let log = self.log.lock();
            if self.retracting.load(Ordering::SeqCst) > 0 {
                drop(self.changed.wait(log));
            }
        }
    }

    /// [`Core::submit_piece`], unless a write fails meanwhile: then what it was decided on may not be so.
    fn try_piece(
        &self,
        ops: &[Op<'_>],
        crcs: &[u32],
        atomic: bool,
        durable: bool,
        failures: u64,
        tickets: &mut Vec<Arc<Completion>>,
    ) -> Result<()> {
        let mut at: Vec<usize> = ops.iter().map(|op| self.stripe_of(op.parts().0)).collect();
        let of_op = at.clone();
        at.sort_unstable();
        at.dedup();
        let mut stripes: BTreeMap<usize, MutexGuard<'_, _>> = at.iter().map(|&at| (at, self.stripe(at))).collect();

        let mut records = Vec::with_capacity(ops.len());
        let mut previous = Vec::with_capacity(ops.len());
        let mut puts_bytes = 0;
        for (i, op) in ops.iter().enumerate() {
            let (key, value) = op.parts();
            let Some(stripe) = stripes.get(&of_op[i]) else { continue };
            match self.decide(op, stripe)? {
                Decision::Nothing(under_way) => tickets.extend(under_way),
                Decision::Write { victim, previous: before } => {
                    if !op.is_delete() {
                        puts_bytes += live_bytes(key, value.len() as u32);
                    }
                    previous.push((of_op[i], before));
                    records.push(NewRecord {
                        kind: if op.is_delete() { Kind::Tombstone } else { Kind::Put },
                        flags: 0,
                        key,
                        payload: value,
                        payload_crc: crcs[i],
                        sequence: None,
                        victim,
                        expires_unix_ms: op.expires_unix_ms(),
                    });
                }
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        // Only now: the Put of what is there writes nothing, and Kubo must start on a full disk to collect.
        if puts_bytes > 0 {
            self.check_space(puts_bytes)?;
        }
        if atomic {
            let last = records.len() - 1;
            for record in &mut records[..last] {
                record.flags |= FLAG_CONTINUES;
            }
        }
        // A block's delete is acknowledged once written: what comes back after a crash is only garbage again.
        let durable = durable || (puts_bytes > 0 && self.options.durability == Durability::Strict);
        let completion = Completion::new(durable);
        let reservation = self.reserve(&records, Some(failures), completion.clone(), |places, segment| {
            let mut applied = Vec::with_capacity(records.len());
            for (i, record) in records.iter().enumerate() {
                let place = Arc::new(AtomicU64::new(Location::new(segment, places[i].0).word()));
                let (at, before) = &previous[i];
                let value = (record.kind == Kind::Put).then(|| PendingValue {
                    size: record.payload.len() as u32,
                    expires_unix_ms: record.expires_unix_ms,
                    inline: (record.payload.len() <= self.options.inline_bytes_max).then(|| record.payload.into()),
                    quarantined: false,
                });
                let operation = self.next_operation();
                let key = Key::from_slice(record.key);
                if let Some(stripe) = stripes.get_mut(at) {
                    stripe.entry(key.clone()).or_default().push(Pending {
                        operation,
                        completion: completion.clone(),
                        place: place.clone(),
                        value: value.clone(),
                    });
                }
                self.count_one(
                    record.key,
                    value.as_ref().map(|value| value.size),
                    before.as_ref().map(|live| live.size),
                );
                let heals = before.as_ref().is_some_and(|live| live.quarantined);
                self.count_cure(heals);
                applied.push(ApplyOp {
                    operation,
                    key,
                    sequence: places[i].1,
                    place,
                    value,
                    previous: before.as_ref().map(|live| (live.place.clone(), live.size)),
                    moved: false,
                    heals,
                    quarantine: None,
                });
            }
            applied
        })?;
        drop(stripes);
        self.write_reserved(&records, reservation)?;
        tickets.push(completion);
        Ok(())
    }

    fn decide(&self, op: &Op<'_>, stripe: &Stripe) -> Result<Decision> {
        let (key, value) = op.parts();
        let newest = self.newest(stripe, key)?;
        let victim = newest.as_ref().map_or(0, |(live, _)| live.location().segment());
        match (op, newest) {
            (Op::PutIfAbsent { .. }, Some((live, under_way))) => {
                let expired = live.expires_unix_ms != 0 && live.expires_unix_ms <= self.env.clock.unix_ms();
                if live.quarantined {
                    // The cure must be what the key says (STORE 20).
                    self.verify_cure(key, value)?;
                } else if !expired {
                    return Ok(Decision::Nothing(under_way));
                }
                Ok(Decision::Write { victim, previous: Some(live) })
            }
            (Op::Delete { .. }, None) => {
                // Gone already; if the delete that did it is still being written, it is waited for.
                let under_way = Core::last_pending(stripe, key).map(|pending| pending.completion);
                Ok(Decision::Nothing(under_way))
            }
            (_, newest) => Ok(Decision::Write { victim, previous: newest.map(|(live, _)| live) }),
        }
    }

    pub(super) fn count_one(&self, key: &[u8], size: Option<u32>, before: Option<u32>) {
        if let Some(before) = before {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.bytes.fetch_sub(u64::from(before), Ordering::Relaxed);
            self.key_bytes.fetch_sub(key.len() as u64, Ordering::Relaxed);
        }
        if let Some(size) = size {
            self.count.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(u64::from(size), Ordering::Relaxed);
            self.key_bytes.fetch_add(key.len() as u64, Ordering::Relaxed);
        }
    }

    /// Takes back what a failed write had pending and counted.
    pub(super) fn retract(&self, ops: &[ApplyOp]) {
        for op in ops.iter().rev() {
            self.forget_pending(op);
            if op.heals {
                self.quarantined.fetch_add(1, Ordering::Relaxed);
            }
            self.count_cure(op.quarantine.is_some());
            if op.moved {
                continue;
            }
            self.count_one(
                &op.key,
                op.previous.as_ref().map(|(_, size)| *size),
                op.value.as_ref().map(|value| value.size),
            );
        }
    }

    pub(super) fn forget_pending(&self, op: &ApplyOp) {
        let mut stripe = self.stripe(self.stripe_of(&op.key));
        if let Some(pending) = stripe.get_mut(&op.key) {
            pending.retain(|pending| pending.operation != op.operation);
            if pending.is_empty() {
                stripe.remove(&op.key);
            }
        }
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        if self.read_only {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                format!("the store {} was opened for reading only: open it for writing", self.dir.display()),
            ));
        }
        Ok(())
    }

    fn check_limits(&self, key: &[u8], value: &[u8]) -> Result<()> {
        if key.is_empty() {
            return Err(Error::new(ErrorKind::InvalidKey, "the key is empty"));
        }
        if key.len() > self.options.key_bytes_max {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the key has {} bytes, more than key_bytes_max = {}", key.len(), self.options.key_bytes_max),
            ));
        }
        if value.len() > self.options.value_bytes_max {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the value has {} bytes, more than value_bytes_max = {}: raise the limit or store it in parts",
                    value.len(),
                    self.options.value_bytes_max
                ),
            ));
        }
        Ok(())
    }

    /// Waits while too much of the node's log is not durable, by flushing this store's part of it.
    fn await_budget(&self) {
        while self.env.unflushed.load(Ordering::Relaxed) > self.options.unflushed_bytes_max {
            self.lead_flush();
            let log = self.log.lock();
            if (!log.flushing && !log.rolling) || log.fenced.is_some() {
                // This store has given what it can; the rest is another's, whose own flush is due.
                return;
            }
            drop(self.changed.wait(log));
        }
    }

    /// Waits while the index is far behind the log, as when it is being flushed to a slow disk: what it has not heard of is in memory.
    fn await_index(&self) -> Result<()> {
        while self.index_lags() {
            if let Some(applied) = self.applying.try_lock() {
                self.apply_ready_to(applied);
                if let Some(err) = self.applying.try_lock().and_then(|applied| applied.error.clone()) {
                    return Err(err);
                }
                continue;
            }
            let log = self.log.lock();
            if let Some(err) = &log.fenced {
                return Err(err.clone());
            }
            // Under the lock, which whoever has the index takes after letting go of it.
            if self.applying.try_lock().is_none() {
                drop(self.changed.wait(log));
            }
        }
        Ok(())
    }

    /// Whether the index is so far behind the log that writers wait for it.
    fn index_lags(&self) -> bool {
        self.lag.load(Ordering::Relaxed) > READY_MAX
    }

    /// Whether a write would wait at this moment, before it has a ticket.
    pub(super) fn writes_wait(&self) -> bool {
        self.index_lags() || self.env.unflushed.load(Ordering::Relaxed) > self.options.unflushed_bytes_max
    }

    /// Takes the next place in the log for `records`, and lets `placed` make their pending writes while the order is held. Never waits. Superseded where
    /// the log has no room at this moment, or a write has failed since there had been so many `failures`: see [`Core::with_room`].
    pub(super) fn reserve(
        &self,
        records: &[NewRecord<'_>],
        failures: Option<u64>,
        completion: Arc<Completion>,
        placed: impl FnOnce(&[(u64, u64)], u64) -> Vec<ApplyOp>,
    ) -> Result<Reservation> {
        let bytes: u64 = records.iter().map(|record| record_bytes(record.key.len(), record.payload.len())).sum();
        self.check_open()?;
        let mut log = self.log.lock();
        if let Some(err) = &log.fenced {
            return Err(err.clone());
        }
        let is_put = records.iter().any(|record| record.kind == Kind::Put);
        if !self.has_room(&log, if is_put { self.room_for_put(bytes) } else { bytes }) {
            return Err(Error::superseded("the log had no room for it at this moment"));
        }
        if failures.is_some_and(|failures| failures != self.failures.load(Ordering::SeqCst)) {
            return Err(Error::superseded("a write before this one failed"));
        }
        let now = self.env.clock.monotonic_ns();
        let log_ref = &mut *log;
        let Some(active) = &mut log_ref.active else { return Err(self.no_segment()) };
        let start = active.head;
        let mut offset = start;
        let mut summary = None;
        if active.summary.count() >= SUMMARY_RECORDS || active.summary.payload_bytes() >= SUMMARY_BYTES {
            let payload = active.summary.payload();
            offset += record_bytes(0, payload.len());
            active.summary = SummaryBuilder::new(start, offset);
            summary = Some(payload);
        }
        let mut places = Vec::with_capacity(records.len());
        for record in records {
            let sequence = record.sequence.unwrap_or_else(|| self.env.sequence.fetch_add(1, Ordering::AcqRel));
            places.push((offset, sequence));
            active.summary.add(&record.header(sequence, 0), record.key);
            offset += record_bytes(record.key.len(), record.payload.len());
        }
        active.records += records.len() as u64;
        active.head = offset;
        active.in_flight.insert(start, now);
        self.env.unflushed.fetch_add(offset - start, Ordering::Relaxed);
        if log_ref.queue.is_empty() {
            log_ref.oldest_unflushed_ns = now;
        }
        log_ref.last_append_ns = now;
        let ops = placed(&places, active.segment.id);
        log_ref.queue.push_back(Group {
            start,
            end: offset,
            segment: active.segment.id,
            completion: completion.clone(),
            ops,
        });
        Ok(Reservation {
            segment: active.segment.clone(),
            file: active.file.clone(),
            start,
            mark: active.durable,
            places,
            summary,
            completion,
        })
    }

    /// Locks the log with an active segment that has room for `bytes`; may wait for the disk, so never under a stripe.
    pub(super) fn log_with_room(&self, bytes: u64) -> Result<MutexGuard<'_, Log>> {
        let mut log = self.log.lock();
        loop {
            self.check_open()?;
            if let Some(err) = &log.fenced {
                return Err(err.clone());
            }
            if log.rolling {
                log = self.changed.wait(log);
                continue;
            }
            if log.clean_file {
                log = self.remove_clean_file(log)?;
                continue;
            }
            if self.has_room(&log, bytes) {
                return Ok(log);
            }
            log = self.roll(log)?;
        }
    }

    /// What a segment must have left for a put of `bytes`: no put takes its last 64th, so that deletes go on where no file can be made (a disk without inodes).
    pub(super) fn room_for_put(&self, bytes: u64) -> u64 {
        bytes + (self.options.segment_bytes / 64).min(FOR_DELETES_MAX)
    }

    /// Whether the active segment takes `bytes` now.
    fn has_room(&self, log: &Log, bytes: u64) -> bool {
        let Some(active) = log.active.as_ref().filter(|_| !log.rolling && !log.clean_file) else { return false };
        let room_for_end = record_bytes(0, active.summary.payload_bytes() + 1024) + seal_bytes();
        let limit = self.options.segment_bytes.min(SEGMENT_BYTES_MAX / 2);
        let fresh = active.records == 0;
        active.broken.is_none() && (fresh || active.head + bytes + room_for_end <= limit)
    }

    fn no_segment(&self) -> Error {
        Error::new(ErrorKind::Unavailable, format!("the log in {} has no open segment", self.dir.display()))
    }

    /// Writes what was reserved and acknowledges what that completes.
    pub(super) fn write_reserved(&self, records: &[NewRecord<'_>], reservation: Reservation) -> Result<()> {
        let Reservation { segment, file, start, mark, places, summary, completion } = reservation;
        // All headers and keys behind one another, then the list of what goes to the disk.
        let mut heads = Vec::with_capacity(records.len() * 112);
        let mut cuts = Vec::with_capacity(records.len() + 1);
        if let Some(payload) = &summary {
            summary_header(payload, mark, self.env.sequence.load(Ordering::Acquire)).encode(
                &segment.nonce,
                start,
                b"",
                &mut heads,
            );
        }
        let summary_head = heads.len();
        for (record, &(offset, sequence)) in records.iter().zip(&places) {
            record.header(sequence, mark).encode(&segment.nonce, offset, record.key, &mut heads);
            cuts.push(heads.len());
        }
        let mut parts: Vec<&[u8]> = Vec::with_capacity(records.len() * 3 + 3);
        if let Some(payload) = &summary {
            parts.extend([&heads[..summary_head], payload, padding(summary_head + payload.len())]);
        }
        let mut from = summary_head;
        for (record, &to) in records.iter().zip(&cuts) {
            parts.extend([&heads[from..to], record.payload, padding(to - from + record.payload.len())]);
            from = to;
        }
        let written = file.write_at(&parts, start);
        self.finish_write(start, written, &completion)
    }

    fn finish_write(&self, start: u64, written: std::io::Result<()>, completion: &Completion) -> Result<()> {
        let mut log = self.log.lock();
        let Some(active) = &mut log.active else { return Err(self.no_segment()) };
        active.in_flight.remove(&start);
        if let Err(err) = written {
            active.broken = Some(active.broken.map_or(start, |broken| broken.min(start)));
            let err = Error::io(format!("write the log in {}", self.dir.display()), err);
            self.fail_above(log, start, &err, completion);
            return Err(err);
        }
        let acknowledged = log.advance_written();
        // Who waits for a flush of its own write leads it; here nobody might.
        let next = if completion.durable { None } else { log.wanted_leader() };
        drop(log);
        self.changed.notify_all();
        for completion in acknowledged {
            completion.complete(Ok(()));
        }
        self.hand_on(next);
        Ok(())
    }

    /// Fails every write above a place where one failed: recovery would end there (STORE 4).
    fn fail_above(&self, mut log: MutexGuard<'_, Log>, start: u64, err: &Error, own: &Completion) {
        // Others are still writing above; their reservations are void, and their files must not be cut under them.
        let mut failed = Vec::new();
        let mut kept = std::collections::VecDeque::new();
        let mut returned = 0;
        for mut group in log.queue.drain(..) {
            if group.end <= start {
                kept.push_back(group);
            } else if group.ops.is_empty() && group.start == group.end {
                // A barrier waits for what was acknowledged before it, and that ends below.
                group.start = group.start.min(start);
                group.end = group.end.min(start);
                kept.push_back(group);
            } else {
                returned += group.end - group.start;
                failed.push(group);
            }
        }
        log.queue = kept;
        log.written = log.written.min(log.queue.len());
        self.env.unflushed.fetch_sub(returned, Ordering::Relaxed);
        let mut acknowledged = log.advance_written();
        // A barrier that now ends where all is durable has nothing to wait for.
        let done = log.pop_durable();
        let next = log.wanted_leader();
        self.failures.fetch_add(1, Ordering::SeqCst);
        self.retracting.fetch_add(1, Ordering::SeqCst);
        drop(log);
        // Before the stripes are asked for, that nobody waits longer than need be.
        self.changed.notify_all();
        for group in failed.iter().rev() {
            self.retract(&group.ops);
        }
        {
            let _log = self.log.lock();
            self.retracting.fetch_sub(1, Ordering::SeqCst);
        }
        self.changed.notify_all();
        for group in failed {
            let outcome = if std::ptr::eq(Arc::as_ptr(&group.completion), own) {
                err.clone()
            } else {
                Error::superseded(format!("a write below this one failed, try again: {err}"))
            };
            group.completion.complete(Err(outcome));
        }
        for completion in acknowledged.drain(..) {
            completion.complete(Ok(()));
        }
        for (completion, outcome) in done {
            completion.complete(outcome);
        }
        self.hand_on(next);
    }

    /// Appends a copy of a live record for reclaim, if `still_live` says so of the newest state of its key. Returns whether it was moved.
    pub(super) fn move_record(
        &self,
        header: &RecordHeader,
        key: &[u8],
        payload: &[u8],
        from: Location,
        victim: u64,
    ) -> Result<bool> {
        let record = NewRecord {
            kind: Kind::Put,
            flags: FLAG_MOVED,
            key,
            payload,
            payload_crc: header.payload_crc,
            sequence: Some(header.sequence),
            victim,
            expires_unix_ms: header.expires_unix_ms,
        };
        let records = [record];
        let bytes = self.room_for_put(record_bytes(key.len(), payload.len()));
        let Some(reservation) = self.with_room(bytes, || self.reserve_move(&records, from))? else { return Ok(false) };
        self.write_reserved(&records, reservation)?;
        Ok(true)
    }

    /// `None`: the key's newest record is elsewhere by now.
    fn reserve_move(&self, records: &[NewRecord<'_>; 1], from: Location) -> Result<Option<Reservation>> {
        let [record] = records;
        let mut stripe = self.stripe(self.stripe_of(record.key));
        let Some((live, _)) = self.newest(&stripe, record.key)? else { return Ok(None) };
        if live.location() != from || live.quarantined {
            return Ok(None);
        }
        let completion = Completion::new(false);
        let reservation = self.reserve(records, None, completion.clone(), |places, segment| {
            let place = Arc::new(AtomicU64::new(Location::new(segment, places[0].0).word()));
            let operation = self.next_operation();
            let key = Key::from_slice(record.key);
            let value = PendingValue {
                size: live.size,
                expires_unix_ms: live.expires_unix_ms,
                inline: live.inline.clone(),
                quarantined: false,
            };
            stripe.entry(key.clone()).or_default().push(Pending {
                operation,
                completion: completion.clone(),
                place: place.clone(),
                value: Some(value.clone()),
            });
            vec![ApplyOp {
                operation,
                key,
                sequence: places[0].1,
                place,
                value: Some(value),
                previous: Some((live.place.clone(), live.size)),
                moved: true,
                heals: false,
                quarantine: None,
            }]
        })?;
        Ok(Some(reservation))
    }

    /// Carries a tombstone over from a segment that is to be freed, because what it kills is still in the log.
    pub(super) fn carry_tombstone(&self, key: &[u8], sequence: u64, victim: u64) -> Result<()> {
        let records = [NewRecord {
            kind: Kind::Tombstone,
            flags: FLAG_MOVED,
            key,
            payload: b"",
            payload_crc: crc32(b""),
            sequence: Some(sequence),
            victim,
            expires_unix_ms: 0,
        }];
        let reservation = self.with_room(record_bytes(key.len(), 0), || {
            self.reserve(&records, None, Completion::new(false), |_, _| Vec::new())
        })?;
        self.write_reserved(&records, reservation)
    }

    /// Appends a summary of what no summary tells yet, whose header carries the mark.
    pub(super) fn append_mark(&self) -> Result<()> {
        let reservation = {
            let mut log = self.log_with_room(0)?;
            let log_ref = &mut *log;
            let Some(active) = &mut log_ref.active else { return Ok(()) };
            let start = active.head;
            let payload = active.summary.payload();
            let end = start + record_bytes(0, payload.len());
            active.summary = SummaryBuilder::new(start, end);
            active.head = end;
            active.marked = end;
            active.in_flight.insert(start, self.env.clock.monotonic_ns());
            self.env.unflushed.fetch_add(end - start, Ordering::Relaxed);
            let completion = Completion::new(true);
            log_ref.queue.push_back(Group {
                start,
                end,
                segment: active.segment.id,
                completion: completion.clone(),
                ops: Vec::new(),
            });
            Reservation {
                segment: active.segment.clone(),
                file: active.file.clone(),
                start,
                mark: active.durable,
                places: Vec::new(),
                summary: Some(payload),
                completion,
            }
        };
        self.write_reserved(&[], reservation)
    }
}

impl Log {
    /// Moves the written prefix up to the first write that is still on its way; returns what that acknowledges.
    pub(super) fn advance_written(&mut self) -> Vec<Arc<Completion>> {
        let mut acknowledged = Vec::new();
        let Some(active) = &mut self.active else { return acknowledged };
        let limit = active.end();
        active.prefix = active.in_flight.first_key_value().map_or(limit, |(start, _)| *start).min(limit);
        while let Some(group) = self.queue.get(self.written) {
            if group.end > active.prefix {
                break;
            }
            group.completion.set_written();
            if !group.completion.durable {
                acknowledged.push(group.completion.clone());
            }
            self.written += 1;
        }
        acknowledged
    }
}

impl NewRecord<'_> {
    pub(super) fn header(&self, sequence: u64, mark: u64) -> RecordHeader {
        RecordHeader {
            kind: self.kind,
            flags: self.flags,
            key_len: self.key.len() as u16,
            payload_len: self.payload.len() as u32,
            payload_crc: self.payload_crc,
            sequence,
            mark,
            victim: self.victim,
            expires_unix_ms: self.expires_unix_ms,
        }
    }
}

/// The header of a summary record.
pub(super) fn summary_header(payload: &[u8], mark: u64, sequence: u64) -> RecordHeader {
    RecordHeader {
        kind: Kind::Summary,
        flags: 0,
        key_len: 0,
        payload_len: payload.len() as u32,
        payload_crc: crc32(payload),
        sequence,
        mark,
        victim: 0,
        expires_unix_ms: 0,
    }
}

/// Zeros up to the next record.
pub(super) fn padding(len: usize) -> &'static [u8] {
    const ZEROS: [u8; super::format::ALIGN as usize] = [0; super::format::ALIGN as usize];
    &ZEROS[..len.next_multiple_of(ZEROS.len()) - len]
}

/// The last operation of each key, where keys come twice; order among keys is kept.
fn last_of_each_key<'a>(ops: &[Op<'a>]) -> Option<Vec<Op<'a>>> {
    if ops.len() < 2 {
        return None;
    }
    let mut last = std::collections::HashMap::with_capacity(ops.len());
    for (i, op) in ops.iter().enumerate() {
        last.insert(op.parts().0, i);
    }
    (last.len() < ops.len()).then(|| {
        ops.iter().enumerate().filter(|(i, op)| last.get(op.parts().0) == Some(i)).map(|(_, op)| *op).collect()
    })
}
