//! What happens to a key whose bytes are found damaged: it is quarantined for good, and healed by a value that is proven right.
//!
//! The quarantine is a record in the log, durable before the call that found the damage returns, so it survives a crash and a lost index. The
//! damaged record stays where it is and its segment with it (a disk that was unplugged may come back); the key stays counted, enumerated and
//! deletable. Any newer put or tombstone of the key ends it. `docs/decisions/quarantine.md` argues the choices.

use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

use super::{
    core::{ApplyOp, Core, Key, Live, Pending, PendingValue, hex, live_bytes},
    entry::{Entry, QuarantineRow, entry_key, key_of_quarantine, quarantine_key},
    format::{FLAG_MOVED, Kind, QUARANTINE_PAYLOAD_BYTES, QuarantineMark, Rot, crc32, record_bytes},
    location::Location,
    ticket::{Completion, Ticket},
    write::NewRecord,
};
use crate::{
    digest::{Digest, verify_digest},
    error::{Error, ErrorKind, Result},
    multihash::Multihash,
};

/// A quarantined key, as [`super::Store::quarantined`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The key.
    pub key: Vec<u8>,
    /// Size of its value in bytes.
    pub size: u32,
    /// What was found.
    pub rot: Rot,
    /// When, in milliseconds since the Unix epoch.
    pub found_unix_ms: u64,
}

impl Core {
    /// Quarantines a key whose bytes at `location` are damaged, durably; `rot` is found out where it is not given. Nothing happens where the key is
    /// no longer there, or there no longer. A log that takes no record (fenced, full) gets the index's flag alone, and is then asked again by
    /// whoever finds the damage next: wrong bytes are never returned either way.
    pub(super) fn quarantine(self: &Arc<Self>, key: &[u8], location: Location, rot: Option<Rot>, why: &str) {
        tracing::error!(key = %self.name(key), %why, "damaged bytes found");
        if self.read_only {
            return;
        }
        let rot = rot.unwrap_or_else(|| self.rot_at(key, location));
        if let Err(err) = self.record_quarantine(key, location, rot) {
            tracing::error!(key = %self.name(key), %err, "the quarantine could not be written to the log; it stands in the index alone");
            if let Err(err) = self.flag_in_index(key, location, rot) {
                tracing::error!(key = %self.name(key), %err, "nor in the index; the damage will be found again");
            }
        }
    }

    fn record_quarantine(self: &Arc<Self>, key: &[u8], location: Location, rot: Rot) -> Result<()> {
        const TRIES: usize = 8;
        let bytes = record_bytes(key.len(), QUARANTINE_PAYLOAD_BYTES);
        for _ in 0..TRIES {
            match self.with_room(bytes, || self.try_quarantine(key, location, rot))? {
                Tried::Nothing => return Ok(()),
                Tried::Unheard => {
                    self.submit_sync()?.wait()?;
                    self.apply_ready();
                }
                Tried::Written(completion) => match Ticket::log(completion, self).wait() {
                    Err(err) if err.is_superseded() => {}
                    outcome => {
                        self.apply_ready();
                        return outcome;
                    }
                },
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "other writes of the same key failed or came again and again"))
    }

    fn try_quarantine(&self, key: &[u8], location: Location, rot: Rot) -> Result<Tried> {
        let mut stripe = self.stripe(self.stripe_of(key));
        if stripe.contains_key(key) {
            return Ok(match self.newest(&stripe, key)? {
                Some((live, _)) if live.location() == location && !live.quarantined => Tried::Unheard,
                _ => Tried::Nothing,
            });
        }
        let Some(entry) = self.entry(key)?.filter(|entry| entry.location == location && !entry.quarantined) else {
            return Ok(Tried::Nothing);
        };
        let mark = QuarantineMark {
            sequence: entry.sequence,
            offset: location.offset(),
            found_unix_ms: self.env.clock.unix_ms(),
            size: entry.size,
            rot,
        };
        let payload = mark.encode();
        let records = [quarantine_record(key, &payload, location, entry.expires_unix_ms, None)];
        let completion = Completion::new(true);
        let reservation = self.reserve(&records, None, completion.clone(), |_, _| {
            // The key stays at its place: what is pending is the flag.
            let place = Arc::new(AtomicU64::new(location.word()));
            let operation = self.next_operation();
            let value = PendingValue {
                size: entry.size,
                expires_unix_ms: entry.expires_unix_ms,
                inline: None,
                quarantined: true,
            };
            let key = Key::from_slice(key);
            stripe.entry(key.clone()).or_default().push(Pending {
                operation,
                completion: completion.clone(),
                place: place.clone(),
                value: Some(value.clone()),
            });
            self.quarantined.fetch_add(1, Ordering::Relaxed);
            vec![ApplyOp {
                operation,
                key,
                sequence: entry.sequence,
                place: place.clone(),
                value: Some(value),
                previous: Some((place, entry.size)),
                moved: true,
                heals: false,
                quarantine: Some(mark.row()),
            }]
        })?;
        drop(stripe);
        self.write_reserved(&records, reservation)?;
        Ok(Tried::Written(completion))
    }

    fn flag_in_index(&self, key: &[u8], location: Location, rot: Rot) -> Result<()> {
        let stripe = self.stripe(self.stripe_of(key));
        if stripe.contains_key(key) {
            return Ok(());
        }
        let Some(mut entry) = self.entry(key)?.filter(|entry| entry.location == location && !entry.quarantined) else {
            return Ok(());
        };
        entry.quarantined = true;
        let row = QuarantineRow { rot, found_unix_ms: self.env.clock.unix_ms() };
        self.index()?.write(&[(entry_key(key), Some(entry.encode())), (quarantine_key(key), Some(row.encode()))])?;
        self.quarantined.fetch_add(1, Ordering::Relaxed);
        drop(stripe);
        Ok(())
    }

    /// Writes the quarantine of a key once more, for reclaim that frees the segment which tells it; nothing where it has ended.
    pub(super) fn carry_quarantine(&self, key: &[u8], sequence: u64) -> Result<()> {
        let bytes = record_bytes(key.len(), QUARANTINE_PAYLOAD_BYTES);
        self.with_room(bytes, || self.try_carry_quarantine(key, sequence))
    }

    fn try_carry_quarantine(&self, key: &[u8], sequence: u64) -> Result<()> {
        let stripe = self.stripe(self.stripe_of(key));
        if self.newest(&stripe, key)?.is_none_or(|(live, _)| !live.quarantined) {
            return Ok(());
        }
        let (Some(entry), Some(row)) = (self.entry(key)?, self.quarantine_row(key)?) else { return Ok(()) };
        let mark = QuarantineMark {
            sequence: entry.sequence,
            offset: entry.location.offset(),
            found_unix_ms: row.found_unix_ms,
            size: entry.size,
            rot: row.rot,
        };
        let payload = mark.encode();
        let records = [quarantine_record(key, &payload, entry.location, entry.expires_unix_ms, Some(sequence))];
        let reservation = self.reserve(&records, None, Completion::new(false), |_, _| Vec::new())?;
        drop(stripe);
        self.write_reserved(&records, reservation)
    }

    fn entry(&self, key: &[u8]) -> Result<Option<Entry>> {
        self.index()?.get(&entry_key(key))?.map(|bytes| Entry::decode(&bytes)).transpose()
    }

    fn quarantine_row(&self, key: &[u8]) -> Result<Option<QuarantineRow>> {
        self.index()?.get(&quarantine_key(key))?.map(|bytes| QuarantineRow::decode(&bytes)).transpose()
    }

    /// What is wrong with a record that does not read back.
    pub(super) fn rot_at(&self, key: &[u8], location: Location) -> Rot {
        let Some(segment) = self.segment(location.segment()) else { return Rot::Missing };
        match self.files.record_at(&segment, location.offset()) {
            Ok(Some((_, found))) if found == key => Rot::Payload,
            Ok(_) => Rot::Header,
            Err(err) if err.kind() == ErrorKind::Corrupt => Rot::Missing,
            Err(_) => Rot::Unreadable,
        }
    }

    /// What a reader of a quarantined key is told where damage is an error.
    pub(super) fn quarantine_error(&self, key: &[u8]) -> Error {
        let what = match self.quarantine_row(key) {
            Ok(Some(row)) => row.rot.about(),
            _ => "its bytes are damaged",
        };
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "{} is quarantined: {what}; put it again, or restore it from a replica, and it is healed",
                self.name(key)
            ),
        )
    }

    /// A key for people: a block by its CID, another key as the text that it is.
    pub(super) fn name(&self, key: &[u8]) -> String {
        match self.verifier {
            Some(_) => Multihash::parse(key).map_or_else(|_| hex(key), |key| key.raw_cid()),
            None => std::str::from_utf8(key).map_or_else(|_| hex(key), str::to_owned),
        }
    }

    /// Up to `limit` quarantined keys above `after` in byte order; fewer only at the end.
    pub(super) fn quarantined(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<Quarantined>> {
        self.check_open()?;
        let mut listed: Vec<Quarantined> = Vec::new();
        let mut after = after.map(<[u8]>::to_vec);
        while listed.len() < limit {
            let mut page = Vec::new();
            let mut failed = None;
            let wanted = limit - listed.len();
            self.index()?.scan(&quarantine_key(after.as_deref().unwrap_or(b"")), &mut |index_key, bytes| {
                let Some(key) = key_of_quarantine(index_key) else { return false };
                if after.as_deref() == Some(key) {
                    return true;
                }
                match QuarantineRow::decode(bytes) {
                    Ok(row) => page.push((key.to_vec(), row)),
                    Err(err) => failed = Some(err),
                }
                page.len() < wanted && failed.is_none()
            })?;
            if let Some(err) = failed {
                return Err(err);
            }
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, QuarantineRow { rot, found_unix_ms }) in page {
                // Healed or deleted, and the index has not heard of it.
                if let Some(live) = self.live_quarantined(&key)? {
                    listed.push(Quarantined { key, size: live.size, rot, found_unix_ms });
                }
            }
        }
        Ok(listed)
    }

    fn live_quarantined(&self, key: &[u8]) -> Result<Option<Live>> {
        let stripe = self.stripe(self.stripe_of(key));
        Ok(self.newest(&stripe, key)?.map(|(live, _)| live).filter(|live| live.quarantined))
    }

    /// Quarantines a key whose value does not hash to it: the value is read and hashed once more, so that nobody's mistake hides a good one.
    pub(super) fn quarantine_digest(self: &Arc<Self>, key: &[u8]) -> Result<()> {
        let Some(live) = self.resolve(key)?.filter(|live| !live.quarantined) else { return Ok(()) };
        let mut value = vec![0; live.size as usize];
        self.read_at(live.location(), key, &mut value)?;
        if self.hashes_otherwise(key, &value) {
            self.quarantine(key, live.location(), Some(Rot::Digest), Rot::Digest.about());
        }
        Ok(())
    }

    /// Whether a value is certainly not what its key names; what can't be hashed here is believed.
    pub(super) fn hashes_otherwise(&self, key: &[u8], value: &[u8]) -> bool {
        self.verifier.is_some() && Multihash::parse(key).is_ok_and(|key| verify_digest(&key, value) == Digest::Differs)
    }

    /// Quarantined keys, counted in the index.
    pub(super) fn count_quarantined(&self) -> Result<u64> {
        let mut count = 0;
        self.index()?.scan(&quarantine_key(b""), &mut |index_key, _| {
            let more = key_of_quarantine(index_key).is_some();
            count += u64::from(more);
            more
        })?;
        Ok(count)
    }

    /// Offers a value for a quarantined key. `false`: the key is not quarantined, and nothing was done. The value replaces the damaged one only if the key
    /// proves it (STORE 20), and is durable then.
    pub(super) fn heal(self: &Arc<Self>, key: &[u8], value: &[u8]) -> Result<bool> {
        self.check_writable()?;
        if self.verifier.is_none() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} is no block, and nothing proves what its value was: write it anew", self.name(key)),
            ));
        }
        let Some(live) = self.live_quarantined(key)? else { return Ok(false) };
        self.verify_cure(key, value)?;
        self.rewrite(key, live.location(), value)
    }

    /// Whether a value may replace a quarantined one: only what hashes to the key.
    pub(super) fn verify_cure(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let Some(verifier) = self.verifier else { return Ok(()) };
        verifier(key, value).map_err(|err| {
            Error::new(
                err.kind(),
                format!(
                    "{} is quarantined, and only bytes that are proven right replace the damaged ones: {err} (or delete the block, \
                     and put it as a new one)",
                    self.name(key)
                ),
            )
        })
    }

    /// Reads a quarantined key once more, from where it always was. What reads back whole and is proven by the key (or, where keys prove nothing, was only
    /// out of reach) is written to a new place, which ends the quarantine. `false`: it is as bad as before, or quarantined no longer.
    pub(super) fn recheck(self: &Arc<Self>, key: &[u8]) -> Result<bool> {
        self.check_writable()?;
        let Some(live) = self.live_quarantined(key)? else { return Ok(false) };
        if self.verifier.is_none() {
            let out_of_reach =
                self.quarantine_row(key)?.is_some_and(|row| matches!(row.rot, Rot::Unreadable | Rot::Missing));
            if !out_of_reach {
                return Ok(false);
            }
        }
        let mut value = vec![0; live.size as usize];
        if self.read_at(live.location(), key, &mut value).is_err() || self.verify_cure(key, &value).is_err() {
            return Ok(false);
        }
        self.rewrite(key, live.location(), &value)
    }

    /// Writes a value for a key whose newest record is still at `from`, as a put would; durable on return. `false`: it is elsewhere by now.
    pub(super) fn rewrite(self: &Arc<Self>, key: &[u8], from: Location, value: &[u8]) -> Result<bool> {
        let bytes = live_bytes(key, value.len() as u32);
        self.check_space(bytes)?;
        let written = self.with_room(self.room_for_put(bytes), || self.try_rewrite(key, from, value))?;
        let Some(written) = written else { return Ok(false) };
        Ticket::log(written, self).wait()?;
        tracing::info!(key = %self.name(key), "healed: its bytes stand in a new place");
        Ok(true)
    }

    fn try_rewrite(&self, key: &[u8], from: Location, value: &[u8]) -> Result<Option<Arc<Completion>>> {
        let failures = self.settled_failures();
        let mut stripe = self.stripe(self.stripe_of(key));
        let Some((live, _)) = self.newest(&stripe, key)?.filter(|(live, _)| live.location() == from) else {
            return Ok(None);
        };
        let records = [NewRecord {
            kind: Kind::Put,
            flags: 0,
            key,
            payload: value,
            payload_crc: crc32(value),
            sequence: None,
            victim: from.segment(),
            expires_unix_ms: live.expires_unix_ms,
        }];
        let completion = Completion::new(true);
        let reservation = self.reserve(&records, Some(failures), completion.clone(), |places, segment| {
            let (offset, sequence) = places[0];
            let place = Arc::new(AtomicU64::new(Location::new(segment, offset).word()));
            let operation = self.next_operation();
            let pending = PendingValue {
                size: value.len() as u32,
                expires_unix_ms: live.expires_unix_ms,
                inline: (value.len() <= self.options.inline_bytes_max).then(|| value.into()),
                quarantined: false,
            };
            let key = Key::from_slice(key);
            stripe.entry(key.clone()).or_default().push(Pending {
                operation,
                completion: completion.clone(),
                place: place.clone(),
                value: Some(pending.clone()),
            });
            self.count_one(&key, Some(pending.size), Some(live.size));
            self.count_cure(live.quarantined);
            vec![ApplyOp {
                operation,
                key,
                sequence,
                place,
                value: Some(pending),
                previous: Some((live.place.clone(), live.size)),
                moved: false,
                heals: live.quarantined,
                quarantine: None,
            }]
        })?;
        drop(stripe);
        self.write_reserved(&records, reservation)?;
        Ok(Some(completion))
    }

    /// A write replaces or removes a key that was quarantined.
    pub(super) fn count_cure(&self, was_quarantined: bool) {
        if was_quarantined {
            self.quarantined.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What came of an attempt to write a quarantine.
enum Tried {
    /// The key is no longer there, or no longer so.
    Nothing,
    /// The index has not heard of the record, so its sequence number is not known here.
    Unheard,
    Written(Arc<Completion>),
}

impl QuarantineMark {
    pub(super) fn row(&self) -> QuarantineRow {
        QuarantineRow { rot: self.rot, found_unix_ms: self.found_unix_ms }
    }
}

fn quarantine_record<'a>(
    key: &'a [u8],
    payload: &'a [u8],
    location: Location,
    expires_unix_ms: u64,
    carried: Option<u64>,
) -> NewRecord<'a> {
    NewRecord {
        kind: Kind::Quarantine,
        flags: if carried.is_some() { FLAG_MOVED } else { 0 },
        key,
        payload,
        payload_crc: crc32(payload),
        sequence: carried,
        victim: location.segment(),
        expires_unix_ms,
    }
}
