//! The index takes no more writes once a flush of it has failed: RocksDB then waits for someone to look at the disk, for ever where the error was a quota's. A disk that
//! was full has room again as soon as something is collected, and nobody should have to restart the node for it. So the index is opened anew, and told again what it
//! had not flushed: which keys those are the log says, and what they are the old index still answers.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    core::{Applied, Core},
    entry::{SegmentRow, checkpoint_key, entry_key, id_of_segment, quarantine_key, segment_key, segments_start},
    format::Summarised,
    segment::Walked,
};
use crate::{
    error::{Error, ErrorKind, Result},
    index::{Change, Index, overlay::OverlayIndex},
    sync::thread,
};

/// An index that fails again and again is opened anew no more often than this.
const EVERY_NS: u64 = 1_000_000_000;
/// Room that opening an index takes, beside what it is told, in bytes.
const OPEN_BYTES: u64 = 2 << 20;
/// How long readers of the old index are waited for.
const READERS_MAX: Duration = Duration::from_secs(5);

impl Core {
    /// Opens an index anew that has refused a write or a flush. Where there is no room for it yet, or readers don't end, the old one stays and the error says so.
    pub(super) fn reopen_index(&self, applied: &mut Applied) -> Result<()> {
        let Some(why) = applied.error.clone() else { return Ok(()) };
        if why.kind() == ErrorKind::Corrupt {
            return Err(why); // the next open rebuilds it
        }
        let now = self.env.clock.monotonic_ns();
        if applied.reopened_ns != 0 && now.saturating_sub(applied.reopened_ns) < EVERY_NS {
            return Err(why);
        }
        applied.reopened_ns = now.max(1);
        let available = self
            .env
            .disk
            .available(&self.dir)
            .map_err(|err| Error::io(format!("ask for the free space of {}", self.dir.display()), err))?;
        if available < OPEN_BYTES {
            return Err(why);
        }
        let _answered = self.watch_index();
        let changes = self.unflushed_changes(applied)?;
        let bytes: usize = changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
        // As a table, and once more if that is compacted.
        if available < OPEN_BYTES + 2 * bytes as u64 {
            return Err(why);
        }
        self.swap_index(applied, changes)?;
        tracing::info!(store = %self.dir.display(), after = %why, "the index was opened anew and takes writes again");
        applied.error = None;
        Ok(())
    }

    /// Everything that the index was told since it was last flushed.
    fn unflushed_changes(&self, applied: &Applied) -> Result<Vec<Change>> {
        let (from, to) = (applied.flushed, applied.checkpoint.position);
        let segments: Vec<_> =
            self.segments.read().range(from.segment()..=to.segment()).map(|(_, s)| s.clone()).collect();
        let mut keys = BTreeSet::new();
        for segment in segments {
            let end = match segment.id {
                id if id == to.segment() => to.offset(),
                id => self.rows.lock().rows.get(&id).map_or(0, |row| row.end),
            };
            let Walked { records, damaged } = self.files.records(&segment, end)?;
            if let Some((from, to)) = damaged.first() {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "the index can't be opened anew, because segment {} of {} is damaged from {from} to {to}: close the store and open it \
                         again, which rebuilds the index",
                        segment.id,
                        self.dir.display()
                    ),
                ));
            }
            let told = |record: &Summarised| segment.id > from.segment() || record.offset >= from.offset();
            keys.extend(records.into_iter().filter(told).map(|record| record.key));
        }
        let index = self.index()?;
        let mut changes: Vec<Change> = Vec::with_capacity(2 * keys.len());
        for key in keys {
            for key in [entry_key(&key), quarantine_key(&key)] {
                let value = index.get(&key)?;
                changes.push((key, value));
            }
        }
        changes.extend(self.rows.lock().rows.iter().map(|(id, row)| (segment_key(*id), Some(SegmentRow::encode(row)))));
        changes.push((checkpoint_key(), Some(applied.checkpoint.encode())));
        Ok(changes)
    }

    /// Puts an index that was opened anew in the place of the old one. Look-ups wait meanwhile.
    fn swap_index(&self, applied: &Applied, mut changes: Vec<Change>) -> Result<()> {
        let mut slot = self.index_slot();
        let Some(old) = slot.take() else { return Err(self.closed_error()) };
        // Two can't have one folder open.
        let mut waited = Duration::ZERO;
        while Arc::strong_count(&old) > 1 {
            if waited >= READERS_MAX {
                *slot = Some(old);
                return Err(applied.error.clone().unwrap_or_else(|| self.closed_error()));
            }
            thread::sleep(Duration::from_millis(1));
            waited += Duration::from_millis(1);
        }
        drop(old);
        let dir = self.dir.join("index");
        let opened = self.env.index.open(&dir, false).and_then(|index| {
            let known: Vec<Change> = self.forgotten_rows(&*index)?;
            changes.extend(known);
            index.write(&changes)?;
            Ok(index)
        });
        match opened {
            Ok(index) => {
                *slot = Some(index);
                Ok(())
            }
            Err(err) => {
                // For reading it opens all the same, and what it has not flushed is in memory.
                let stopped = StoppedIndex::new(self.env.index.open(&dir, true), &changes, err.clone());
                *slot = Some(Arc::new(stopped));
                Err(err)
            }
        }
    }

    /// Rows of segments that are no more, of which an index that has forgotten its last changes still knows.
    fn forgotten_rows(&self, index: &dyn Index) -> Result<Vec<Change>> {
        let mut gone = Vec::new();
        let rows = self.rows.lock();
        index.scan(&segments_start(), &mut |key, _| {
            let Some(id) = id_of_segment(key) else { return false };
            if !rows.rows.contains_key(&id) {
                gone.push((segment_key(id), None));
            }
            true
        })?;
        Ok(gone)
    }
}

/// What is left to read while an index can't be opened for writing.
#[derive(Debug)]
struct StoppedIndex {
    base: Result<OverlayIndex>,
    why: Error,
}

impl StoppedIndex {
    fn new(base: Result<Arc<dyn Index>>, changes: &[Change], why: Error) -> StoppedIndex {
        let base = base.and_then(|base| {
            let overlay = OverlayIndex::new(Some(base));
            overlay.write(changes)?;
            Ok(overlay)
        });
        StoppedIndex { base, why }
    }

    fn base(&self) -> Result<&OverlayIndex> {
        self.base.as_ref().map_err(Clone::clone)
    }
}

impl Index for StoppedIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.base()?.get(key)
    }

    fn write(&self, _: &[Change]) -> Result<()> {
        Err(self.why.clone())
    }

    fn flush(&self) -> Result<()> {
        Err(self.why.clone())
    }

    fn scan(&self, from: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        self.base()?.scan(from, each)
    }
}
