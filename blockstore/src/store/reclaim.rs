//! Giving space back: holes for large payloads, compaction for segments that are mostly dead.
//!
//! Nothing is freed before the flushed index has passed what made it free (STORE 6). A segment is gone only once its removal is durable, because a
//! record that kills another one is kept as long as the other one's segment is there. A dead record and a tombstone look alike in this.

use std::sync::Arc;

use super::{
    core::Core,
    format::{Kind, RECORD_HEADER_BYTES, RECORDS_START, Summarised},
    location::Location,
    segment::{Segment, Walked, file_name},
};
use crate::error::Result;

/// Holes are made once so much can be given back by them, in bytes.
const PUNCH_BYTES: u64 = 32 << 20;
/// A segment is compacted when this share of it is dead and space is short, in percent.
const PRESSED_DEAD_PERCENT: u8 = 20;
/// Where nothing is overwritten in place, holes give back whole records alone, and spent segments are never recycled: what is dead in a segment would stay (STORE 17).
const COPIED_DEAD_PERCENT: u8 = 25;

impl Core {
    /// Frees what pays; returns the bytes given back.
    pub(super) fn reclaim(self: &Arc<Self>) -> Result<u64> {
        self.check_writable()?;
        let _one = self.reclaiming.lock();
        // What shows that an unfinished recovery does not count is the segment that took its place: that one stays until it is gone.
        if !self.log.lock().void.is_empty() {
            return Ok(0);
        }
        // What was deleted just now counts too.
        self.submit_sync()?.wait()?;
        self.apply_ready();
        let pressed = self.is_pressed() || self.is_short();
        let mut freed = self.punch()?;
        if pressed {
            self.end_dead_segment()?;
        }
        while let Some(id) = self.worth_compacting(pressed) {
            match self.compact(id)? {
                Some(bytes) => freed += bytes,
                None => {
                    // Something in it can't be moved; it is looked at again when less of it is live.
                    let mut rows = self.rows.lock();
                    let live = rows.rows.get(&id).map_or(0, |row| row.live_records);
                    rows.stuck.insert(id, live);
                }
            }
        }
        Ok(freed)
    }

    /// Whether a pass would find something to do; when space is short, little is enough.
    pub(super) fn reclaim_pays(&self, pressed: bool) -> bool {
        let least = if pressed { 1 } else { PUNCH_BYTES };
        self.rows.lock().punchable_bytes >= least || pressed || self.worth_compacting(false).is_some()
    }

    /// Whether freeing a segment's space in parts costs no more than it gives: under a snapshot it does not (STORE 17).
    fn unsnapshotted(&self, created_unix_ms: u64) -> bool {
        self.env
            .ground
            .newest_snapshot_unix_ns()
            .is_some_and(|snapshot| snapshot == 0 || snapshot < created_unix_ms * 1_000_000)
    }

    fn punch(self: &Arc<Self>) -> Result<u64> {
        let punchable = {
            let mut rows = self.rows.lock();
            rows.punchable_bytes = 0;
            std::mem::take(&mut rows.punchable)
        };
        if punchable.is_empty() {
            return Ok(0);
        }
        if let Err(err) = self.prove_holes(&punchable) {
            // For the next pass.
            let mut rows = self.rows.lock();
            rows.punchable_bytes += punchable.iter().map(|(_, _, size)| u64::from(*size)).sum::<u64>();
            rows.punchable.extend(punchable);
            return Err(err);
        }
        let mut freed = 0;
        let unit = self.env.ground.hole_bytes().max(1);
        for (location, key_len, size) in punchable {
            let Some(segment) = self.segment(location.segment()) else { continue };
            let created = self.rows.lock().rows.get(&segment.id).map(|row| row.created_unix_ms);
            if !created.is_some_and(|created| self.unsnapshotted(created)) {
                continue;
            }
            let payload = location.offset() + (RECORD_HEADER_BYTES + key_len) as u64;
            let from = payload.next_multiple_of(unit);
            let to = (payload + u64::from(size)) / unit * unit;
            if from >= to {
                continue;
            }
            let punched = self.files.file(&segment).map(|file| file.punch(from, to - from));
            match punched {
                Ok(Ok(())) => {
                    let mut rows = self.rows.lock();
                    if let Some(row) = rows.rows.get_mut(&segment.id) {
                        row.punched_bytes += to - from;
                        rows.dirty.insert(segment.id);
                    }
                    freed += to - from;
                }
                // Not offered here, or no room for the change itself: compaction gives it back later.
                Ok(Err(err)) => tracing::debug!(segment = segment.id, %err, "a hole could not be punched"),
                Err(err) => tracing::debug!(segment = segment.id, %err, "a hole could not be punched"),
            }
        }
        Ok(freed)
    }

    /// Makes durable what tells holes from damage and from the log's end.
    fn prove_holes(self: &Arc<Self>, punchable: &[(Location, usize, u32)]) -> Result<()> {
        // Above every mark a hole would be the end of the log to whoever has lost the index. They are durable, so a mark that is written now is above them.
        let active = self.log.lock().active.as_ref().map(|active| active.segment.id);
        if punchable.iter().any(|(location, ..)| Some(location.segment()) == active) {
            self.append_mark()?;
            self.submit_sync()?.wait()?;
        }
        // They were listed when they were applied, so a flush of the index has passed them all.
        self.flush_index().map(|_| ())
    }

    /// The segment to compact next: the one whose copies take the least.
    fn worth_compacting(&self, pressed: bool) -> Option<u64> {
        let active = self.log.lock().active.as_ref().map(|active| active.segment.id);
        let mut percent = self.options.compact_dead_percent;
        if !self.env.ground.overwrites_in_place() {
            percent = percent.min(COPIED_DEAD_PERCENT);
        }
        if pressed {
            percent = percent.min(PRESSED_DEAD_PERCENT);
        }
        // A compaction that runs out of room has taken what deletes need.
        let room = self.room_for_copies();
        let rows = self.rows.lock();
        rows.rows
            .iter()
            .filter(|(id, row)| Some(**id) != active && row.end != 0)
            .filter(|(id, row)| rows.stuck.get(id).is_none_or(|live| row.live_records < *live))
            .filter(|(_, row)| {
                let dead = row.end.saturating_sub(RECORDS_START + row.live_bytes + row.punched_bytes);
                row.live_records == 0
                    || (dead * 100 >= u64::from(percent) * row.end.max(1)
                        && row.live_bytes <= room
                        && self.unsnapshotted(row.created_unix_ms))
            })
            .min_by_key(|(_, row)| row.live_bytes)
            .map(|(id, _)| *id)
    }

    /// Moves what is live out of a segment and frees it; `None` where something in it can't be moved.
    fn compact(self: &Arc<Self>, id: u64) -> Result<Option<u64>> {
        let Some(segment) = self.segment(id) else { return Ok(None) };
        let end = self.rows.lock().rows.get(&id).map_or(0, |row| row.end);
        let Walked { records, damaged } = self.files.records(&segment, end)?;
        let mut stuck = !damaged.is_empty();
        for record in &records {
            stuck |= !self.move_or_carry(&segment, record)?;
        }
        // A damaged header hides what it was; only where nothing live is left may the segment go.
        self.submit_sync()?.wait()?;
        self.flush_index()?;
        // A write that would have replaced a record may have failed meanwhile, and the record is what its key is.
        let is_live = self.rows.lock().rows.get(&id).is_some_and(|row| row.live_records > 0);
        if stuck || is_live {
            return Ok(None);
        }
        self.free(&segment, end).map(Some)
    }

    /// Handles one record of a segment that is to be freed; `false` where it has to stay.
    fn move_or_carry(self: &Arc<Self>, segment: &Arc<Segment>, record: &Summarised) -> Result<bool> {
        if record.header.kind == Kind::Quarantine {
            self.carry_quarantine(&record.key, record.header.sequence)?;
            return Ok(true);
        }
        let victim = record.header.victim;
        let victim = if victim != segment.id && self.segment(victim).is_some() { victim } else { 0 };
        let location = Location::new(segment.id, record.offset);
        if record.header.kind == Kind::Put {
            let live = {
                let stripe = self.stripe(self.stripe_of(&record.key));
                self.newest(&stripe, &record.key)?.filter(|(live, _)| live.location() == location)
            };
            if let Some((live, _)) = live {
                if live.quarantined {
                    return Ok(false);
                }
                let payload = match self.files.record_at(segment, record.offset)? {
                    Some((header, key)) if key == record.key => {
                        self.files.payload_of(segment, record.offset, &header)?.map(|payload| (header, payload))
                    }
                    _ => None,
                };
                let Some((header, payload)) = payload else {
                    let why = format!("the record at offset {} of segment {} is damaged", record.offset, segment.id);
                    self.quarantine(&record.key, location, None, &why);
                    return Ok(false);
                };
                if self.move_record(&header, &record.key, &payload, location, victim)? {
                    return Ok(true);
                }
                // Deleted or quarantined meanwhile.
                return self.move_or_carry(segment, record);
            }
        }
        if victim != 0 {
            self.carry_tombstone(&record.key, record.header.sequence, victim)?;
        }
        Ok(true)
    }

    /// Removes a segment in which nothing is live, durably.
    fn free(&self, segment: &Arc<Segment>, end: u64) -> Result<u64> {
        let id = segment.id;
        let row = self.rows.lock().rows.get(&id).copied().unwrap_or_default();
        let recycle = self.env.ground.overwrites_in_place()
            && row.punched_bytes == 0
            && end >= self.options.segment_bytes / 2
            && self.log.lock().spent.len() < self.options.recycle_segments_max;
        if recycle {
            self.files.retire(id)?;
        } else {
            self.files.remove(&file_name(id))?;
        }
        self.files.sync_dir()?;
        self.remove_segment(id);
        let mut rows = self.rows.lock();
        rows.rows.remove(&id);
        rows.stuck.remove(&id);
        rows.dirty.insert(id);
        drop(rows);
        if recycle {
            self.log.lock().spent.push(format!("spent-{id:08x}.log"));
        }
        Ok(end.saturating_sub(row.punched_bytes))
    }
}
