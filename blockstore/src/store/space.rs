//! The room that is left: what a put may take of it, and what is given up for it.
//!
//! The reserve is headroom, not a file (STORE 16): tombstones, a flush of the index, a compaction and the copy that recovery makes of an unflushed tail must still
//! fit when puts no longer do.

use std::{sync::Arc, time::Duration};

use super::{
    commit::complete,
    core::{Core, Space},
    format::RECORDS_START,
};
use crate::{
    error::{Error, ErrorKind, Result},
    sync::MutexGuard,
};

/// The free space of the disk is looked at again after so many bytes...
const TRUST_BYTES: u64 = 16 << 20;
/// ...and after so long, because others write too.
const TRUST_NS: u64 = 1_000_000_000;
/// So long after a put was refused, space is given back in small amounts too.
const PRESSED: Duration = Duration::from_secs(60);
/// An open segment with so much of it dead is worth ending when space is short, in bytes.
const DEAD_BYTES_MIN: u64 = 1 << 20;

/// What the disk has for a store.
struct Room {
    available: u64,
    /// For puts.
    spare: u64,
}

impl Core {
    /// Keeps the reserve: puts are refused while deletes, an index flush and a compaction still fit.
    pub(super) fn check_space(&self, bytes: u64) -> Result<()> {
        let now = self.env.clock.monotonic_ns();
        let mut space = self.space.lock();
        if space.trust < bytes || now.saturating_sub(space.looked_ns) >= TRUST_NS {
            let room = self.room()?;
            space.short = room.spare < bytes;
            if space.short {
                return Err(self.no_space(&mut space, &room, now));
            }
            space.trust = (room.spare / 4).clamp(bytes, TRUST_BYTES.max(bytes));
            space.looked_ns = now;
        }
        space.trust -= bytes;
        Ok(())
    }

    fn no_space(&self, space: &mut MutexGuard<'_, Space>, room: &Room, now: u64) -> Error {
        space.trust = 0;
        space.refused_ns = now.max(1);
        let held = self.env.ground.held_by_snapshots().map_or_else(String::new, |held| format!("; {held}"));
        Error::new(
            ErrorKind::NoSpace,
            format!(
                "{} has {} bytes available, of which reserve_bytes = {} are kept for deletes: free space or add some (blocks can still be \
                 deleted){held}",
                self.dir.display(),
                room.available,
                self.options.reserve_bytes
            ),
        )
    }

    fn available(&self) -> Result<u64> {
        let asked = self.env.disk.available(&self.dir);
        asked.map_err(|err| Error::io(format!("ask for the free space of {}", self.dir.display()), err))
    }

    fn room(&self) -> Result<Room> {
        let available = self.available()?;
        let log = self.log.lock();
        // Bytes that the open segment has been given beyond its end.
        let reserved = log
            .active
            .as_ref()
            .map_or(0, |active| active.file.allocated_bytes().map_or(0, |bytes| bytes.saturating_sub(active.head)));
        // What a crash now would have recovery copy.
        let kept = self.options.reserve_bytes.saturating_add(log.unflushed_bytes());
        let spare = match available.checked_sub(kept) {
            Some(spare) => spare + reserved,
            None => 0,
        };
        Ok(Room { available, spare })
    }

    /// The disk is full to the last byte, with the reserve: has the host lift what it keeps back for that, once somebody is in need of it and not before, because whoever has
    /// filled the disk would take that too. Says whether it has.
    pub(super) fn lift_reserve(&self) -> Result<bool> {
        let lifted = self.env.ground.lift_reserve()?;
        if lifted {
            tracing::warn!(store = %self.dir.display(), "the disk is full, the reserve too: what was kept back is lifted");
        }
        Ok(lifted)
    }

    /// Whether it was want of room by which a put was refused just now.
    pub(super) fn was_refused(&self) -> bool {
        self.space.lock().short
    }

    /// Makes what room can be made at once: gives up what is only kept to be quick, and flushes what a crash would have recovery copy. Says whether there was any.
    /// Waits for the disk.
    pub(super) fn make_room(self: &Arc<Self>) -> Result<bool> {
        let unflushed = self.log.lock().unflushed_bytes();
        if unflushed > 0 {
            self.submit_sync()?.wait()?;
        }
        Ok(self.give_up()? || unflushed > 0)
    }

    /// How much of a new segment may be reserved at once: all, or nothing where the reserve would suffer. A file system may keep what it has found when it
    /// finds that it is not enough.
    pub(super) fn reservable(&self) -> u64 {
        let kept = self.options.reserve_bytes.saturating_add(self.options.segment_bytes);
        match self.available() {
            Ok(available) if available >= kept => self.options.segment_bytes,
            _ => 0,
        }
    }

    /// Gives up what is only kept to be quick: segments for recycling, space reserved for the open one (STORE 18). Says whether there was any.
    pub(super) fn give_up(&self) -> Result<bool> {
        let mut log = self.log.lock();
        let spent = std::mem::take(&mut log.spent);
        let idle = !log.rolling && !log.flushing && log.fenced.is_none();
        let active =
            log.active.as_ref().filter(|active| idle && active.in_flight.is_empty() && active.broken.is_none());
        let ending = active.map(|active| (active.file.clone(), active.head));
        if ending.is_some() {
            // Nobody writes, and nobody begins to: the file ends where the log does.
            log.begin_roll(self.env.clock.monotonic_ns());
        }
        drop(log);
        let mut given = !spent.is_empty();
        let removed = spent.iter().try_for_each(|name| self.files.remove(name));
        if let Some((file, head)) = ending {
            if file.allocated_bytes().is_ok_and(|bytes| bytes > head.next_multiple_of(1 << 20)) {
                given |= file.set_len(head).is_ok();
            }
            let mut log = self.log.lock();
            log.rolling = false;
            self.changed.notify_all();
            let done = log.pop_durable();
            let next = log.wanted_leader();
            drop(log);
            complete(done);
            self.hand_on(next);
        }
        removed.map(|()| given)
    }

    /// Whether puts were refused lately.
    pub(super) fn is_pressed(&self) -> bool {
        let refused = self.space.lock().refused_ns;
        refused != 0 && self.env.clock.monotonic_ns().saturating_sub(refused) < PRESSED.as_nanos() as u64
    }

    /// Whether the disk is so full that space is given back in small amounts too, whoever asks for it.
    pub(super) fn is_short(&self) -> bool {
        let little = self.options.reserve_bytes.saturating_mul(2).saturating_add(self.options.segment_bytes);
        self.available().is_ok_and(|available| available < little)
    }

    /// Room for the copies of a compaction, in bytes: what is left when half of what there is stays for everything else.
    pub(super) fn room_for_copies(&self) -> u64 {
        self.available().unwrap_or(0) / 2
    }

    /// Ends the open segment where much of it is dead that can't be punched out, so that it can be compacted.
    pub(super) fn end_dead_segment(self: &Arc<Self>) -> Result<()> {
        let mut log = self.log.lock();
        while log.rolling {
            log = self.changed.wait(log);
        }
        let Some(active) = &log.active else { return Ok(()) };
        if log.fenced.is_some() || log.clean_file {
            return Ok(());
        }
        let head = active.head;
        let dead = {
            let rows = self.rows.lock();
            let row = rows.rows.get(&active.segment.id).copied().unwrap_or_default();
            head.saturating_sub(RECORDS_START + row.live_bytes + row.punched_bytes)
        };
        if dead >= DEAD_BYTES_MIN && dead * 4 >= head {
            drop(self.roll(log)?);
        }
        Ok(())
    }
}
