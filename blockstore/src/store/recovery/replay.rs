//! What the records that the index has not heard of make of it.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{
        core::live_bytes,
        entry::{
            Entry, QuarantineRow, checkpoint_key, dead_key, dead_start, entry_key, is_dead_key, quarantine_key,
            segment_key,
        },
        format::{Kind, QuarantineMark, Rot, Summarised, u64_at},
        location::Location,
    },
    Recovery,
};
use crate::{
    error::Result,
    index::{Change, Index},
};

/// Records that go to the index in one batch.
const BATCH_RECORDS: usize = 4096;

impl Recovery<'_> {
    /// Tells the index of records in order; idempotent, and right whatever it had heard before.
    pub(super) fn apply(&mut self, segment: u64, records: &[Summarised], end: u64) -> Result<()> {
        let index = self.index()?.clone();
        let batches = records.chunks(BATCH_RECORDS).map(Some).chain(std::iter::once(None));
        for batch in batches {
            let mut entries: HashMap<Vec<u8>, Option<Entry>> = HashMap::new();
            let mut dead: HashMap<Vec<u8>, u64> = HashMap::new();
            let mut quarantines: HashMap<Vec<u8>, Option<QuarantineRow>> = HashMap::new();
            let mut position = end;
            for record in batch.unwrap_or(&[]) {
                self.next_sequence = self.next_sequence.max(record.header.sequence.saturating_add(1));
                position = record.offset + record.header.record_bytes();
                if !record.header.kind.has_key() {
                    continue;
                }
                let current = match entries.get(&record.key) {
                    Some(entry) => entry.clone(),
                    None => match index.get(&entry_key(&record.key))? {
                        Some(bytes) => Some(Entry::decode(&bytes)?),
                        None => None,
                    },
                };
                let mark = self.quarantine_at(segment, record)?;
                let after = match record.header.kind {
                    Kind::Quarantine => self.after_quarantine(record, mark, current.as_ref(), &dead, &index)?,
                    _ => self.after(segment, record, current.as_ref(), &mut dead, &index)?,
                };
                if let Some(after) = after {
                    if after.as_ref().is_some_and(|after| after.quarantined) {
                        let unknown = QuarantineRow { rot: Rot::Payload, found_unix_ms: 0 };
                        quarantines.insert(record.key.clone(), Some(mark.map_or(unknown, |mark| mark.row())));
                    } else if current.as_ref().is_some_and(|current| current.quarantined) {
                        quarantines.insert(record.key.clone(), None);
                    }
                    self.count(&record.key, current.as_ref(), after.as_ref());
                    entries.insert(record.key.clone(), after);
                }
            }
            let mut changes: Vec<Change> = entries
                .into_iter()
                .map(|(key, entry)| (entry_key(&key), entry.map(|entry| entry.encode())))
                .chain(quarantines.into_iter().map(|(key, row)| (quarantine_key(&key), row.map(QuarantineRow::encode))))
                .chain(dead.into_iter().map(|(key, sequence)| (dead_key(&key), Some(sequence.to_le_bytes().to_vec()))))
                .collect();
            self.checkpoint.position = Location::new(segment, position);
            self.checkpoint.next_sequence = self.next_sequence;
            changes.push((checkpoint_key(), Some(self.checkpoint.encode())));
            changes.extend(
                self.rows
                    .iter()
                    .filter(|(id, _)| batch.is_none() || **id == segment)
                    .map(|(id, row)| (segment_key(*id), Some(row.encode()))),
            );
            index.write(&changes)?;
        }
        Ok(())
    }

    /// What a record makes of its key: `None` for nothing.
    fn after(
        &self,
        segment: u64,
        record: &Summarised,
        current: Option<&Entry>,
        dead: &mut HashMap<Vec<u8>, u64>,
        index: &Arc<dyn Index>,
    ) -> Result<Option<Option<Entry>>> {
        let header = &record.header;
        if header.kind == Kind::Tombstone {
            if self.rebuild {
                let known = dead.entry(record.key.clone()).or_default();
                *known = header.sequence.max(*known);
            }
            return Ok(current.is_some_and(|current| current.sequence < header.sequence).then_some(None));
        }
        let location = Location::new(segment, record.offset);
        if let Some(current) = current
            && (current.sequence > header.sequence
                || (current.sequence == header.sequence && current.location >= location))
        {
            return Ok(None);
        }
        if self.is_killed(record, dead, index)? {
            return Ok(None);
        }
        Ok(Some(Some(Entry {
            location,
            sequence: header.sequence,
            size: header.payload_len,
            expires_unix_ms: header.expires_unix_ms,
            quarantined: false,
            inline: None,
        })))
    }

    /// Whether a rebuild has seen a tombstone that is newer than a record.
    fn is_killed(&self, record: &Summarised, dead: &HashMap<Vec<u8>, u64>, index: &Arc<dyn Index>) -> Result<bool> {
        if !self.rebuild {
            return Ok(false);
        }
        let killed_by = match dead.get(&record.key) {
            Some(sequence) => Some(*sequence),
            None => index.get(&dead_key(&record.key))?.map(|bytes| u64_at(&bytes, 0)),
        };
        Ok(killed_by.is_some_and(|sequence| sequence > record.header.sequence))
    }

    /// What a quarantine record says, if it is one and reads back.
    fn quarantine_at(&self, segment: u64, record: &Summarised) -> Result<Option<QuarantineMark>> {
        if record.header.kind != Kind::Quarantine {
            return Ok(None);
        }
        let Some(segment) = self.segments.get(&segment) else { return Ok(None) };
        // A summary has no CRC.
        let Some((header, _)) = self.files.record_at(segment, record.offset)? else { return Ok(None) };
        let payload = self.files.payload_of(segment, record.offset, &header)?;
        Ok(payload.and_then(|payload| QuarantineMark::decode(&payload)))
    }

    /// What a quarantine makes of its key. Where the damaged record itself can't be read, its header being what is damaged, the quarantine stands for it, so
    /// that the key is still there to be listed, deleted and healed.
    fn after_quarantine(
        &self,
        record: &Summarised,
        mark: Option<QuarantineMark>,
        current: Option<&Entry>,
        dead: &HashMap<Vec<u8>, u64>,
        index: &Arc<dyn Index>,
    ) -> Result<Option<Option<Entry>>> {
        let header = &record.header;
        if current.is_some_and(|current| current.sequence > header.sequence) || self.is_killed(record, dead, index)? {
            return Ok(None);
        }
        // A carried one too: it was carried while the key was quarantined, so nothing before it in the log ended that. What ends it names the same victim, and
        // so is in the log as long as that segment is there.
        let damaged = mark
            .filter(|mark| current.is_none_or(|current| current.sequence < mark.sequence))
            .filter(|_| self.segments.contains_key(&header.victim))
            .map(|mark| Entry {
                location: Location::new(header.victim, mark.offset),
                sequence: mark.sequence,
                size: mark.size,
                expires_unix_ms: header.expires_unix_ms,
                quarantined: true,
                inline: None,
            });
        let flagged = || current.map(|current| Entry { quarantined: true, inline: None, ..current.clone() });
        Ok(damaged.or_else(flagged).map(Some))
    }

    fn count(&mut self, key: &[u8], before: Option<&Entry>, after: Option<&Entry>) {
        let key_bytes = key.len() as u64;
        if let Some(before) = before {
            self.checkpoint.count -= 1;
            self.checkpoint.bytes -= u64::from(before.size);
            self.checkpoint.key_bytes -= key_bytes;
            if let Some(row) = self.rows.get_mut(&before.location.segment()) {
                row.live_records = row.live_records.saturating_sub(1);
                row.live_bytes = row.live_bytes.saturating_sub(live_bytes(key, before.size));
            }
        }
        if let Some(after) = after {
            self.checkpoint.count += 1;
            self.checkpoint.bytes += u64::from(after.size);
            self.checkpoint.key_bytes += key_bytes;
            if let Some(row) = self.rows.get_mut(&after.location.segment()) {
                row.live_records += 1;
                row.live_bytes += live_bytes(key, after.size);
            }
        }
    }

    /// Removes what only a rebuild needs to remember.
    pub(super) fn finish_rebuild(&mut self) -> Result<()> {
        if !self.rebuild || self.index.is_none() {
            return Ok(());
        }
        let index = self.index()?.clone();
        loop {
            let mut keys: Vec<Change> = Vec::new();
            index.scan(&dead_start(), &mut |key, _| {
                if is_dead_key(key) {
                    keys.push((key.to_vec(), None));
                }
                is_dead_key(key) && keys.len() < BATCH_RECORDS
            })?;
            if keys.is_empty() {
                return Ok(());
            }
            index.write(&keys)?;
        }
    }
}
