//! Opening: what of the log counts, what the index has not heard of, what only seems to be there.
//!
//! Everything below the highest mark was durable: what does not read back there is damage, and the rest stays. What reads back above it may be
//! the page cache and not the disk, so it is copied to a new segment and flushed before it counts (STORE 1, 2).

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use super::{
    Env,
    commit::Survivor,
    core::{Active, Core, Log, Recovered, Verifier},
    entry::{Checkpoint, SegmentRow, checkpoint_key, id_of_segment, segments_start},
    format::{FLAG_CONTINUES, RECORDS_START, RecordHeader, SegmentHeader, Summarised, SummaryBuilder},
    segment::{Segment, SegmentFiles, Walked, file_name, id_of_file_name, is_half_made, is_spent},
};
use crate::{
    error::{Error, ErrorKind, Result},
    index::{Index, overlay::OverlayIndex},
    options::Options,
};

mod clean;
mod replay;

pub(super) use clean::Clean;

/// Opens a store; see [`super::Store::open`].
pub(super) fn open(
    dir: &Path,
    env: &Env,
    mut options: Options,
    verifier: Option<Verifier>,
    read_only: bool,
) -> Result<Arc<Core>> {
    options.key_bytes_max = options.key_bytes_max.min(super::format::KEY_BYTES_MAX);
    if !read_only {
        env.disk.create_dir(dir).map_err(|err| Error::io(format!("create the folder {}", dir.display()), err))?;
    }
    let files = SegmentFiles::new(env.disk.clone(), dir, !read_only, options.open_files_max);
    let names = files.list()?;
    let mut ids: Vec<u64> = names.iter().filter_map(|name| id_of_file_name(name)).collect();
    ids.sort_unstable();
    if !read_only {
        // Spent files too: after a crash a name may stand for a file that got another name since.
        for name in names.iter().filter(|name| is_half_made(name) || is_spent(name)) {
            files.remove(name)?;
        }
    }
    let clean = Clean::read(env, dir)?;
    if !read_only && clean.is_none() && !ids.is_empty() {
        // After a kill the names may be in memory alone, and what follows takes them for proof.
        files.sync_dir()?;
    }
    let index_dir = dir.join("index");
    let (index, checkpoint) = open_index(env, &index_dir, read_only, !ids.is_empty())?;

    let mut recovery = Recovery {
        env,
        dir,
        files: &files,
        index,
        rows: BTreeMap::new(),
        segments: BTreeMap::new(),
        checkpoint: Checkpoint::default(),
        next_sequence: 1,
        rebuild: true,
        damaged: 0,
    };
    recovery.read_rows(checkpoint, &ids)?;
    let chain = recovery.chain(&ids, clean.as_ref())?;
    if recovery.rebuild && !ids.is_empty() {
        recovery.start_rebuild(read_only, &index_dir)?;
    }
    let store_id = match &chain.store_id {
        Some(id) => *id,
        None => {
            let mut id = [0; 16];
            env.random.fill(&mut id);
            id
        }
    };
    recovery.checkpoint.store_id = store_id;
    let replayed = recovery.replay_sealed(&chain)?;
    let tail = recovery.scan_top(&chain, clean.as_ref())?;
    let replayed = replayed + tail.durable.len();
    let told = (replayed + tail.survivors.len()) as u64;
    if let Some(top) = &chain.top {
        recovery.apply(top.id, &tail.durable, tail.durable_end)?;
        if read_only {
            let survivors: Vec<Summarised> = tail.survivors.iter().map(|(record, _)| record.clone()).collect();
            recovery.apply(top.id, &survivors, tail.survivors_end)?;
        }
    }
    recovery.finish_rebuild()?;
    if recovery.damaged > 0 {
        tracing::error!(
            store = %dir.display(),
            ranges = recovery.damaged,
            "parts of the log are damaged; what they held is lost unless a replica has it, the rest is served"
        );
    }

    let index = match recovery.index.take() {
        Some(index) => index,
        None if read_only => Arc::new(OverlayIndex::new(None)),
        // Again, for the error that says why.
        None => env.index.open(&index_dir, false)?,
    };
    let Recovery { rows, segments, checkpoint, next_sequence, .. } = recovery;
    env.sequence.fetch_max(next_sequence, Ordering::AcqRel);
    let mut incarnation = [0; 16];
    env.random.fill(&mut incarnation);
    let next_id = ids.last().copied().unwrap_or(0) + 1;
    let previous = chain.top.as_ref().map_or((0, 0), |top| (top.id, tail.durable_end));
    let mut log = Log {
        active: None,
        previous,
        next_id,
        rolling: false,
        rolling_since_ns: 0,
        flushing: false,
        flushing_since_ns: 0,
        wanted: false,
        queue: VecDeque::new(),
        written: 0,
        evacuating: Vec::new(),
        ready: VecDeque::new(),
        lag: Arc::default(),
        fenced: None,
        last_append_ns: env.clock.monotonic_ns(),
        oldest_unflushed_ns: env.clock.monotonic_ns(),
        clean_file: clean.is_some(),
        void: chain.void.clone(),
        spent: Vec::new(),
    };
    if !read_only
        && let (Some(top), Some(clean)) = (&chain.top, &clean)
        && clean.segment == top.id
    {
        let segment = segments.get(&top.id).cloned().ok_or_else(Error::not_found)?;
        log.active = Some(Active {
            file: files.file(&segment)?,
            segment,
            head: clean.end,
            prefix: clean.end,
            durable: clean.end,
            in_flight: Default::default(),
            summary: SummaryBuilder::new(clean.last_summary, clean.end),
            records: clean.records,
            marked: clean.end,
            broken: None,
        });
    }
    let core = Core::new(
        env,
        options,
        dir.to_owned(),
        read_only,
        verifier,
        Recovered { files, store_id, incarnation, replayed: told, index, segments, rows, checkpoint, log },
    );
    if !read_only {
        let left = core.remove_void(chain.outrun.clone());
        core.log.lock().void.extend(left);
        if let Some(top) = &chain.top
            && !tail.survivors.is_empty()
        {
            core.adopt_tail(top.id, &tail)?;
        } else if chain.unproven {
            // What makes the top count may be gone at the next crash. The header of a segment behind it is proof for good, and only then may what it replaces be
            // cut or freed.
            drop(core.log_with_room(0)?);
        }
        if clean.is_none() {
            core.heal_ends(&chain)?;
        }
        if replayed > 0 || !tail.survivors.is_empty() {
            core.index()?.flush()?;
        }
        let mut applied = core.applying.lock();
        applied.flushed = applied.checkpoint.position;
    }
    core.load_scrub();
    core.quarantined.store(core.count_quarantined()?, Ordering::Relaxed);
    Ok(Arc::new(core))
}

/// An index that opens, and the checkpoint in it that reads back.
type OpenedIndex = (Option<Arc<dyn Index>>, Option<Checkpoint>);

/// The index, with its checkpoint if it has a good one.
fn open_index(env: &Env, dir: &Path, read_only: bool, has_log: bool) -> Result<OpenedIndex> {
    match env.index.open(dir, read_only) {
        Ok(index) => {
            let checkpoint = match index.get(&checkpoint_key()) {
                Ok(bytes) => bytes.and_then(|bytes| Checkpoint::decode(&bytes)),
                Err(err) => {
                    tracing::warn!(index = %dir.display(), %err, "the index is damaged and will be rebuilt from the log");
                    None
                }
            };
            let index: Arc<dyn Index> = if read_only { Arc::new(OverlayIndex::new(Some(index))) } else { index };
            Ok((Some(index), checkpoint))
        }
        // A disk that is full to the last byte has not damaged it.
        Err(err) if err.kind() == ErrorKind::NoSpace => Err(err.context(format_args!(
            "the index of {} needs some room to open; free some and open the store again",
            dir.display()
        ))),
        Err(err) => {
            if has_log {
                tracing::warn!(index = %dir.display(), %err, "the index does not open and will be rebuilt from the log");
            }
            Ok((None, None))
        }
    }
}

/// What counts of the segment files.
struct Chain {
    store_id: Option<[u8; 16]>,
    /// Segments that the index may not have heard of, in order, with where they end; not the top.
    ended: Vec<(u64, u64)>,
    /// The last segment that counts.
    top: Option<SegmentHeader>,
    /// Segments that an interrupted recovery left behind.
    void: Vec<u64>,
    /// The same, from before the index went beyond them.
    outrun: Vec<u64>,
    /// The top counts by a mark in itself, which may not be durable, or by the index, which may be lost.
    unproven: bool,
}

/// What the last segment holds beyond what the index has heard of.
#[derive(Default)]
struct Tail {
    durable: Vec<Summarised>,
    durable_end: u64,
    survivors: Vec<(Summarised, Vec<u8>)>,
    survivors_end: u64,
}

struct Recovery<'a> {
    env: &'a Env,
    dir: &'a Path,
    files: &'a SegmentFiles,
    index: Option<Arc<dyn Index>>,
    rows: BTreeMap<u64, SegmentRow>,
    segments: BTreeMap<u64, Arc<Segment>>,
    checkpoint: Checkpoint,
    next_sequence: u64,
    rebuild: bool,
    damaged: usize,
}

impl Recovery<'_> {
    fn index(&self) -> Result<&Arc<dyn Index>> {
        self.index.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Io,
                format!("the index of {} can't be opened: see the log for why", self.dir.display()),
            )
        })
    }

    /// Takes over what the index says of the segments, if the index belongs to this log and does not reach beyond it.
    fn read_rows(&mut self, checkpoint: Option<Checkpoint>, ids: &[u64]) -> Result<()> {
        let Some(checkpoint) = checkpoint else { return Ok(()) };
        if ids.is_empty() && checkpoint.count > 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "all segment files of {} are missing, and its index knows {} keys in them: restore the folder from a \
                     snapshot or replica, or remove its index folder to begin empty",
                    self.dir.display(),
                    checkpoint.count
                ),
            ));
        }
        let reached = checkpoint.position.segment();
        // The segment itself may have been freed since; one behind it shows that the log goes further all the same.
        let Some(&probe) = ids.iter().find(|id| **id >= reached) else {
            if !ids.is_empty() {
                tracing::warn!(store = %self.dir.display(), segment = reached, "the index reaches beyond the log and will be rebuilt");
            }
            return Ok(());
        };
        let header = self.files.read_header(probe)?;
        if header.store_id != checkpoint.store_id {
            tracing::warn!(store = %self.dir.display(), "the index belongs to another log and will be rebuilt");
            return Ok(());
        }
        if probe == reached
            && self.files.length(&self.files.handle(reached, header.nonce))? < checkpoint.position.offset()
        {
            tracing::warn!(store = %self.dir.display(), segment = reached, "the index reaches beyond the log and will be rebuilt");
            return Ok(());
        }
        let mut rows = BTreeMap::new();
        let mut failed = None;
        self.index()?.scan(&segments_start(), &mut |key, value| {
            let Some(id) = id_of_segment(key) else { return false };
            match SegmentRow::decode(value) {
                Ok(row) => {
                    rows.insert(id, row);
                }
                Err(err) => failed = Some(err),
            }
            failed.is_none()
        })?;
        if failed.is_some() {
            return Ok(());
        }
        if let Some((id, _)) = rows.iter().find(|(id, row)| row.live_records > 0 && ids.binary_search(id).is_err()) {
            tracing::error!(store = %self.dir.display(), file = file_name(*id), "a segment file with live blocks is missing");
        }
        rows.retain(|id, _| ids.binary_search(id).is_ok());
        self.rows = rows;
        self.next_sequence = checkpoint.next_sequence.max(1);
        self.checkpoint = checkpoint;
        self.rebuild = false;
        Ok(())
    }

    /// Reads the headers that matter, and decides which segments count and where they end.
    fn chain(&mut self, ids: &[u64], clean: Option<&Clean>) -> Result<Chain> {
        let from = if self.rebuild { 0 } else { self.checkpoint.position.segment() };
        let mut store_id = (!self.rebuild).then_some(self.checkpoint.store_id);
        let mut headers = Vec::new();
        let mut back = Vec::new();
        for &id in ids {
            if let Some(row) = self.rows.get(&id).filter(|_| id < from) {
                self.segments.insert(id, self.files.handle(id, row.nonce));
                continue;
            }
            let header = self.files.read_header(id)?;
            if id < from {
                back.push(header);
                continue;
            }
            if *store_id.get_or_insert(header.store_id) != header.store_id {
                return Err(Error::new(
                    ErrorKind::Format,
                    format!(
                        "{} in {} belongs to another store: move it out of this folder",
                        file_name(id),
                        self.dir.display()
                    ),
                ));
            }
            self.segments.insert(id, self.files.handle(id, header.nonce));
            headers.push(header);
        }
        let mut void = Vec::new();
        let mut unproven = false;
        for (i, header) in headers.iter().enumerate() {
            let later = &headers[i + 1..];
            unproven = false;
            if header.adopted_end == RECORDS_START {
                continue;
            }
            // A later attempt at the same recovery takes its place; any other later segment was made behind it.
            if later.iter().any(|later| later.previous == header.previous) {
                void.push(header.id);
            } else if later.is_empty() && clean.is_none_or(|clean| clean.segment != header.id) {
                // The index and the page cache say so now, and may not after the next crash.
                unproven = self.is_indexed(header) || self.is_marked(header)?;
                if !unproven {
                    void.push(header.id);
                }
            }
        }
        headers.retain(|header| !void.contains(&header.id));
        for id in &void {
            self.segments.remove(id);
        }
        let mut outrun = Vec::new();
        for header in back {
            if self.is_outrun(&header, ids) {
                outrun.push(header.id);
                continue;
            }
            // Freed, and back because the crash came before its removal was durable. Nothing in it is live.
            self.segments.insert(header.id, self.files.handle(header.id, header.nonce));
            let end = self.length(header.id)?;
            self.rows.insert(header.id, SegmentRow { nonce: header.nonce, end, ..SegmentRow::default() });
        }
        let top = headers.pop();
        let mut ended = Vec::new();
        for header in &headers {
            let end = match headers.iter().chain(&top).find(|later| later.previous == header.id) {
                Some(next) => next.previous_end,
                None => self.length(header.id)?,
            };
            ended.push((header.id, end));
        }
        for header in headers.iter().chain(&top) {
            let row = self.rows.entry(header.id).or_default();
            row.nonce = header.nonce;
            row.created_unix_ms = header.created_unix_ms;
        }
        for (id, end) in &ended {
            if let Some(row) = self.rows.get_mut(id) {
                row.end = *end;
            }
        }
        Ok(Chain { store_id, ended, top, void, outrun, unproven })
    }

    /// Whether a segment that the index has never counted, though it has gone further, is what an interrupted recovery left behind: another segment took its place.
    /// What it says of older records must not be carried on.
    fn is_outrun(&self, header: &SegmentHeader, ids: &[u64]) -> bool {
        header.adopted_end != RECORDS_START
            && ids
                .iter()
                .filter(|id| **id > header.id)
                .any(|id| self.files.read_header(*id).is_ok_and(|later| later.previous == header.previous))
    }

    fn length(&self, id: u64) -> Result<u64> {
        self.segments.get(&id).map_or(Ok(0), |segment| self.files.length(segment))
    }

    /// Whether the index has heard of the copies at the start of a segment: of nothing that is not durable.
    fn is_indexed(&self, header: &SegmentHeader) -> bool {
        let position = self.checkpoint.position;
        !self.rebuild && position.segment() == header.id && position.offset() >= header.adopted_end
    }

    /// Whether a record says that the copies at the start of its segment were durable when it was written.
    fn is_marked(&self, header: &SegmentHeader) -> Result<bool> {
        let Some(segment) = self.segments.get(&header.id) else { return Ok(false) };
        let length = self.files.length(segment)?;
        let wanted = |record: &RecordHeader| record.mark >= header.adopted_end;
        Ok(self.files.search(segment, header.adopted_end, length, wanted)?.is_some())
    }

    fn start_rebuild(&mut self, read_only: bool, dir: &Path) -> Result<()> {
        tracing::info!(store = %self.dir.display(), segments = self.segments.len(), "rebuilding the index from the log");
        self.index = None;
        self.index = Some(if read_only {
            Arc::new(OverlayIndex::new(None))
        } else {
            self.env.index.destroy(dir)?;
            self.env.index.open(dir, false)?
        });
        for row in self.rows.values_mut() {
            (row.live_records, row.live_bytes, row.punched_bytes) = (0, 0, 0);
        }
        self.checkpoint = Checkpoint::default();
        Ok(())
    }

    /// Tells the index of the segments before the top that it has not heard of.
    fn replay_sealed(&mut self, chain: &Chain) -> Result<usize> {
        let mut replayed = 0;
        for (done, &(id, end)) in chain.ended.iter().enumerate() {
            let Some(segment) = self.segments.get(&id).cloned() else { continue };
            let Walked { mut records, damaged } = self.files.records(&segment, end)?;
            for (from, to) in &damaged {
                tracing::error!(file = file_name(id), from, to, "damaged records");
            }
            self.damaged += damaged.len();
            let position = self.checkpoint.position;
            if !self.rebuild && position.segment() == id {
                records.retain(|record| record.offset >= position.offset());
            }
            replayed += records.len();
            self.apply(id, &records, end)?;
            if self.rebuild {
                tracing::info!(store = %self.dir.display(), done = done + 1, of = chain.ended.len() + 1, "rebuilding the index");
            }
        }
        Ok(replayed)
    }

    /// Reads the last segment up to where it ends, and tells what was durable from what only survived.
    fn scan_top(&mut self, chain: &Chain, clean: Option<&Clean>) -> Result<Tail> {
        let Some(top) = &chain.top else { return Ok(Tail::default()) };
        let Some(segment) = self.segments.get(&top.id).cloned() else { return Ok(Tail::default()) };
        let clean = clean.filter(|clean| clean.segment == top.id);
        let position = self.checkpoint.position;
        let known = if !self.rebuild && position.segment() == top.id { position.offset() } else { RECORDS_START };
        let start = known.max(RECORDS_START);
        let limit = clean.map_or(self.files.length(&segment)?, |clean| clean.end);
        let mut mark = clean.map_or(start, |clean| clean.end);
        let mut records: Vec<Summarised> = Vec::new();
        let mut offset = start;
        while offset < limit {
            match self.files.record_at(&segment, offset)? {
                Some((header, key)) if offset + header.record_bytes() <= limit => {
                    mark = mark.max(header.mark);
                    let next = offset + header.record_bytes();
                    records.push(Summarised { offset, header, key });
                    offset = next;
                }
                _ => {
                    // Damage if something proves that this was durable once; the end of the tail otherwise.
                    let bad = offset;
                    let proof = |record: &RecordHeader| bad < mark || record.mark > bad;
                    let Some(next) = self.files.search(&segment, bad + super::format::ALIGN, limit, proof)? else {
                        if bad < mark {
                            tracing::error!(file = file_name(top.id), from = bad, to = mark, "damaged records");
                            self.damaged += 1;
                            offset = mark;
                        }
                        break;
                    };
                    tracing::error!(file = file_name(top.id), from = bad, to = next, "damaged records");
                    self.damaged += 1;
                    offset = next;
                }
            }
        }
        let mut tail = Tail { durable_end: mark, survivors_end: mark, ..Tail::default() };
        let split = records.partition_point(|record| record.offset < mark);
        let above = records.split_off(split);
        tail.durable = records;
        let mut whole = 0;
        for record in above {
            let Some(payload) = self.files.payload_of(&segment, record.offset, &record.header)? else { break };
            let continues = record.header.flags & FLAG_CONTINUES != 0;
            let end = record.offset + record.header.record_bytes();
            if record.header.kind.has_key() {
                tail.survivors.push((record, payload));
            }
            if !continues {
                whole = tail.survivors.len();
                tail.survivors_end = end;
            }
        }
        // A group of which a part is missing was never acknowledged.
        tail.survivors.truncate(whole);
        let _ = offset;
        Ok(tail)
    }
}

impl Core {
    /// Cuts the files of ended segments at their ends, where a crash came between the next segment's header and that; again where it may
    /// have come before the flush.
    fn heal_ends(&self, chain: &Chain) -> Result<()> {
        for &(id, end) in &chain.ended {
            if let Some(segment) = self.segment(id) {
                self.cut(&segment, end)?;
            }
        }
        Ok(())
    }

    /// Removes what interrupted recoveries left, for good: one that came back once what took its place is freed would count. Returns what can't be removed.
    pub(super) fn remove_void(&self, void: Vec<u64>) -> Vec<u64> {
        if void.is_empty() {
            return void;
        }
        let removed = void.iter().try_for_each(|id| {
            self.remove_segment(*id);
            self.files.remove(&file_name(*id))
        });
        match removed.and_then(|()| self.files.sync_dir()) {
            Ok(()) => Vec::new(),
            Err(err) => {
                tracing::warn!(segments = ?void, %err, "unfinished segments could not be removed; it is tried again");
                void
            }
        }
    }

    /// Copies what survived above the mark of segment `top` into a new segment, which the log goes on in.
    fn adopt_tail(&self, top: u64, tail: &Tail) -> Result<()> {
        let survivors: Vec<Survivor> = tail
            .survivors
            .iter()
            .map(|(record, payload)| Survivor {
                header: record.header,
                key: record.key.clone(),
                payload: payload.clone(),
            })
            .collect();
        let mut log = self.log.lock();
        let id = log.next_id;
        log.next_id += 1;
        let (active, header, places) = self.adopt(id, top, tail.durable_end, &survivors)?;
        if let Some(segment) = self.segment(top) {
            self.cut(&segment, tail.durable_end)?;
        }
        let adopted: Vec<Summarised> = tail
            .survivors
            .iter()
            .zip(&places)
            .map(|((record, _), place)| Summarised { offset: place.offset(), ..record.clone() })
            .collect();
        let end = active.durable;
        self.add_segment(active.segment.clone());
        let mut rows = self.rows.lock();
        if let Some(row) = rows.rows.get_mut(&top) {
            row.end = tail.durable_end;
        }
        rows.rows.insert(
            id,
            SegmentRow { nonce: header.nonce, created_unix_ms: header.created_unix_ms, ..SegmentRow::default() },
        );
        let mut applied = self.applying.lock();
        let mut recovery = Recovery {
            env: &self.env,
            dir: &self.dir,
            files: &self.files,
            index: Some(self.index()?),
            rows: std::mem::take(&mut rows.rows),
            segments: self.segments.read().clone(),
            checkpoint: applied.checkpoint,
            next_sequence: self.env.sequence.load(Ordering::Acquire),
            rebuild: false,
            damaged: 0,
        };
        let outcome = recovery.apply(id, &adopted, end);
        rows.rows = recovery.rows;
        applied.checkpoint = recovery.checkpoint;
        self.env.sequence.fetch_max(recovery.next_sequence, Ordering::AcqRel);
        self.count.store(applied.checkpoint.count, Ordering::Relaxed);
        self.bytes.store(applied.checkpoint.bytes, Ordering::Relaxed);
        self.key_bytes.store(applied.checkpoint.key_bytes, Ordering::Relaxed);
        outcome?;
        log.active = Some(active);
        let void = std::mem::take(&mut log.void);
        log.void = self.remove_void(void);
        Ok(())
    }
}
