//! Segment files: made, opened, read, walked and removed.
//!
//! A file gets the name of a segment only after its header is on stable storage, so a named segment whose header does not read back is
//! damage and never a half-made one.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    format::{
        HEADER_BYTES, KEY_BYTES_MAX, Kind, RECORD_HEADER_BYTES, RECORDS_START, RecordHeader, SEAL_PAYLOAD_BYTES,
        SegmentHeader, Summarised, crc32, read_summary, seal_bytes, u64_at,
    },
    location::Location,
};
use crate::{
    disk::{Disk, File},
    error::{Error, ErrorKind, Result},
    sync::Mutex,
};

/// One segment file; opened when it is read, closed again when too many are open.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    pub(super) nonce: [u8; 16],
    path: PathBuf,
    file: Mutex<Option<Arc<dyn File>>>,
    last_used: AtomicU64,
}

/// A file that is to become a segment.
#[derive(Debug)]
pub(super) struct Begun {
    new: PathBuf,
    file: Arc<dyn File>,
    is_recycled: bool,
}

/// The segment files of one store.
#[derive(Debug)]
pub(super) struct SegmentFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    writable: bool,
    open_max: usize,
    open: Mutex<Vec<Arc<Segment>>>,
    uses: AtomicU64,
    /// Reads of values that are under way: what a scrub stands back for.
    reading: AtomicU64,
    /// Held by whoever writes a note, so that two don't take each other's file away.
    noting: Mutex<()>,
}

/// The records of a segment, in order.
pub(super) struct Walked {
    pub(super) records: Vec<Summarised>,
    /// Ranges where records are missing because their headers are damaged.
    pub(super) damaged: Vec<(u64, u64)>,
}

impl Segment {
    fn open_failed(&self, err: std::io::Error) -> Error {
        match err.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                ErrorKind::Corrupt,
                format!("{} is missing: restore this file from a snapshot or replica", self.path.display()),
            ),
            _ => Error::io(format!("open {}", self.path.display()), err),
        }
    }
}

/// A segment's file name.
pub(super) fn file_name(id: u64) -> String {
    format!("seg-{id:08x}.log")
}

/// The id of a segment's file name. No two names have the same id: another way to write one ("seg-+0000001.log") is no segment.
pub(super) fn id_of_file_name(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("seg-")?.strip_suffix(".log")?;
    u64::from_str_radix(hex, 16).ok().filter(|id| file_name(*id) == name)
}

/// Whether a file is what an interrupted creation left behind.
pub(super) fn is_half_made(name: &str) -> bool {
    name.starts_with("new-") && name.ends_with(".tmp")
}

/// Whether a file is a spent segment kept for recycling.
pub(super) fn is_spent(name: &str) -> bool {
    name.starts_with("spent-") && name.ends_with(".log")
}

impl SegmentFiles {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, writable: bool, open_max: usize) -> SegmentFiles {
        SegmentFiles {
            disk,
            dir: dir.to_owned(),
            writable,
            open_max: open_max.max(2),
            open: Mutex::default(),
            uses: AtomicU64::new(0),
            reading: AtomicU64::new(0),
            noting: Mutex::default(),
        }
    }

    /// Names of all files in the store's folder.
    pub(super) fn list(&self) -> Result<Vec<String>> {
        self.disk.list(&self.dir).map_err(|err| Error::io(format!("list the folder {}", self.dir.display()), err))
    }

    /// Removes a file of the store's folder; one that is gone already is fine.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match self.disk.remove(&self.dir.join(name)) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", self.path(name)), err))
            }
            _ => Ok(()),
        }
    }

    /// Keeps a spent segment's file for recycling; also where that was done before, and the folder could not be synced then.
    pub(super) fn retire(&self, id: u64) -> Result<()> {
        let (from, to) = (self.dir.join(file_name(id)), self.dir.join(format!("spent-{id:08x}.log")));
        match self.disk.rename(&from, &to) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound && self.disk.open(&to, false).is_ok() => Ok(()),
            other => other.map_err(|err| Error::io(format!("rename {}", from.display()), err)),
        }
    }

    /// Makes names durable.
    pub(super) fn sync_dir(&self) -> Result<()> {
        self.disk.sync_dir(&self.dir).map_err(|err| Error::io(format!("sync the folder {}", self.dir.display()), err))
    }

    /// The handle of a segment whose nonce is known; touches no file.
    pub(super) fn handle(&self, id: u64, nonce: [u8; 16]) -> Arc<Segment> {
        let path = self.dir.join(file_name(id));
        Arc::new(Segment { id, nonce, path, file: Mutex::new(None), last_used: AtomicU64::new(0) })
    }

    /// Reads the header of a named segment, from whichever copy is good.
    pub(super) fn read_header(&self, id: u64) -> Result<SegmentHeader> {
        let name = file_name(id);
        let file = self
            .disk
            .open(&self.dir.join(&name), false)
            .map_err(|err| Error::io(format!("open {}", self.path(&name)), err))?;
        let mut pages = vec![0; 2 * HEADER_BYTES];
        let got = file.read_at(&mut pages, 0).map_err(|err| Error::io(format!("read {}", self.path(&name)), err))?;
        for page in pages[..got].chunks(HEADER_BYTES) {
            let header = SegmentHeader::decode(page).map_err(|err| err.context(self.path(&name)))?;
            if let Some(header) = header.filter(|header| header.id == id) {
                return Ok(header);
            }
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "both copies of the header of {} are damaged: restore this file from a snapshot or replica, or move it away to go \
                 on without its blocks",
                self.path(&name)
            ),
        ))
    }

    /// Finds a file for segment `id`: a spent one, or a new one. It counts for nothing before [`SegmentFiles::create`] has named it.
    pub(super) fn begin(&self, id: u64, recycle: Option<&str>) -> Result<Begun> {
        let new = self.dir.join(format!("new-{id:08x}.tmp"));
        let failed = |err| Error::io(format!("create {}", self.path(&file_name(id))), err);
        let file = match recycle {
            Some(spent) => {
                self.disk.rename(&self.dir.join(spent), &new).map_err(failed)?;
                self.disk.open(&new, true).inspect_err(|_| drop(self.disk.remove(&new))).map_err(failed)?
            }
            None => match self.disk.create(&new) {
                Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {
                    self.disk.remove(&new).map_err(failed)?;
                    self.disk.create(&new).map_err(failed)?
                }
                other => other.map_err(failed)?,
            },
        };
        Ok(Begun { new, file, is_recycled: recycle.is_some() })
    }

    /// Gives up what was begun: it may hold the space, or the inode, that was too little.
    pub(super) fn abandon(&self, begun: Begun) {
        let _ = self.disk.remove(&begun.new);
    }

    /// Makes the segment of `header`: header flushed alone, then named, then the name made durable. Space for it is reserved where that is asked for.
    pub(super) fn create(
        &self,
        begun: Begun,
        header: &SegmentHeader,
        reserve_bytes: u64,
    ) -> Result<(Arc<Segment>, Arc<dyn File>)> {
        let made = self.name(&begun, header, reserve_bytes);
        if made.is_err() {
            self.abandon(begun);
        }
        made
    }

    fn name(&self, begun: &Begun, header: &SegmentHeader, reserve_bytes: u64) -> Result<(Arc<Segment>, Arc<dyn File>)> {
        let name = file_name(header.id);
        let failed = |err| Error::io(format!("create {}", self.path(&name)), err);
        let file = begun.file.clone();
        file.write_at(&[&header.encode()], 0).map_err(failed)?;
        file.sync().map_err(failed)?;
        if !begun.is_recycled && reserve_bytes > 0 {
            // Only a hint: a disk without room for a whole segment may well have room for what is to be written.
            let _ = file.reserve(RECORDS_START, reserve_bytes);
        }
        let path = self.dir.join(&name);
        self.disk.rename(&begun.new, &path).map_err(failed)?;
        self.disk.sync_dir(&self.dir).map_err(failed)?;
        let segment = self.handle(header.id, header.nonce);
        *segment.file.lock() = Some(file.clone());
        self.opened(&segment);
        Ok((segment, file))
    }

    /// Reads of values that are under way.
    pub(super) fn reading(&self) -> u64 {
        self.reading.load(Ordering::Relaxed)
    }

    /// A segment's file as the disk has it, past the page cache; its reader keeps to [`Disk::open_direct`].
    pub(super) fn direct(&self, segment: &Segment) -> Result<Arc<dyn File>> {
        self.disk.open_direct(&segment.path).map_err(|err| segment.open_failed(err))
    }

    /// Writes a small file of the store's folder as a whole: flushed, named, and the name made durable.
    pub(super) fn write_note(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let _one = self.noting.lock();
        let failed = |err| Error::io(format!("write {}", self.path(name)), err);
        let new = self.dir.join(format!("new-{name}.tmp"));
        let file = match self.disk.create(&new) {
            Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {
                self.disk.remove(&new).map_err(failed)?;
                self.disk.create(&new).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        file.write_at(&[bytes], 0).map_err(failed)?;
        file.sync().map_err(failed)?;
        self.disk.rename(&new, &self.dir.join(name)).map_err(failed)?;
        self.sync_dir()
    }

    /// Reads a small file of the store's folder, of up to one byte more than `len`; `None` where it is not there or can't be read.
    pub(super) fn read_note(&self, name: &str, len: usize) -> Option<Vec<u8>> {
        let file = self.disk.open(&self.dir.join(name), false).ok()?;
        let mut bytes = vec![0; len + 1];
        let got = file.read_at(&mut bytes, 0).ok()?;
        bytes.truncate(got);
        Some(bytes)
    }

    /// The open file of a segment.
    pub(super) fn file(&self, segment: &Arc<Segment>) -> Result<Arc<dyn File>> {
        segment.last_used.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let mut slot = segment.file.lock();
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let file = self.disk.open(&segment.path, self.writable).map_err(|err| segment.open_failed(err))?;
        *slot = Some(file.clone());
        drop(slot);
        self.opened(segment);
        Ok(file)
    }

    /// Counts a file that was opened, and closes the one used longest ago where there are too many.
    fn opened(&self, segment: &Arc<Segment>) {
        let mut open = self.open.lock();
        open.push(segment.clone());
        if open.len() > self.open_max {
            let oldest = (0..open.len() - 1).min_by_key(|&i| open[i].last_used.load(Ordering::Relaxed));
            if let Some(oldest) = oldest {
                let closed = open.swap_remove(oldest);
                drop(open);
                *closed.file.lock() = None;
            }
        }
    }

    /// Closes a segment's file, before it is removed.
    pub(super) fn forget(&self, id: u64) {
        let mut open = self.open.lock();
        let Some(at) = open.iter().position(|segment| segment.id == id) else { return };
        let closed = open.swap_remove(at);
        drop(open);
        *closed.file.lock() = None;
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The header and key of the record at `offset`; `None` where there is no good header.
    pub(super) fn record_at(&self, segment: &Arc<Segment>, offset: u64) -> Result<Option<(RecordHeader, Vec<u8>)>> {
        let file = self.file(segment)?;
        let mut bytes = vec![0; RECORD_HEADER_BYTES + 128];
        let failed = |err| Error::io(format!("read {}", segment.path.display()), err);
        let got = file.read_at(&mut bytes, offset).map_err(failed)?;
        bytes.truncate(got);
        let Some(header) = RecordHeader::parse(&bytes) else { return Ok(None) };
        let need = RECORD_HEADER_BYTES + usize::from(header.key_len);
        if need > bytes.len() {
            bytes.resize(need, 0);
            if file.read_at(&mut bytes, offset).map_err(failed)? < need {
                return Ok(None);
            }
        }
        Ok(RecordHeader::decode(&segment.nonce, offset, &bytes)
            .map(|header| (header, bytes[RECORD_HEADER_BYTES..need].to_vec())))
    }

    /// The payload of a record whose header is known, if its CRC is right.
    pub(super) fn payload_of(
        &self,
        segment: &Arc<Segment>,
        offset: u64,
        header: &RecordHeader,
    ) -> Result<Option<Vec<u8>>> {
        let file = self.file(segment)?;
        let mut payload = vec![0; header.payload_len as usize];
        let got = file
            .read_at(&mut payload, offset + header.payload_start())
            .map_err(|err| Error::io(format!("read {}", segment.path.display()), err))?;
        Ok((got == payload.len() && crc32(&payload) == header.payload_crc).then_some(payload))
    }

    /// Reads the value of a live key, which has the size of `value`: one positioned read; key, tag and CRC are always checked.
    pub(super) fn read_value(
        &self,
        segment: &Arc<Segment>,
        location: Location,
        key: &[u8],
        value: &mut [u8],
    ) -> Result<()> {
        let file = self.file(segment)?;
        let mut head = vec![0; RECORD_HEADER_BYTES + key.len()];
        self.reading.fetch_add(1, Ordering::Relaxed);
        let got = file.read_two_at(&mut head, value, location.offset());
        self.reading.fetch_sub(1, Ordering::Relaxed);
        let got = got.map_err(|err| Error::io(format!("read {}", segment.path.display()), err))?;
        let damaged = |what: &str| {
            Err(Error::new(
                ErrorKind::Corrupt,
                format!("{what} at offset {} of {} is damaged", location.offset(), segment.path.display()),
            ))
        };
        if got < head.len() + value.len() {
            return damaged("the end of the record");
        }
        let Some(header) = RecordHeader::decode(&segment.nonce, location.offset(), &head) else {
            return damaged("the header of the record");
        };
        if header.kind != Kind::Put || head[RECORD_HEADER_BYTES..] != *key || header.payload_len as usize != value.len()
        {
            return damaged("the key of the record");
        }
        if crc32(value) != header.payload_crc {
            return damaged("the payload of the record");
        }
        Ok(())
    }

    /// Finds the next good header at or above `offset` for which `wanted` holds, byte by byte in steps of the alignment. Tags are keyed, so
    /// payloads that look like records don't pass.
    pub(super) fn search(
        &self,
        segment: &Arc<Segment>,
        mut offset: u64,
        end: u64,
        wanted: impl Fn(&RecordHeader) -> bool,
    ) -> Result<Option<u64>> {
        const WINDOW: usize = 1 << 20;
        let file = self.file(segment)?;
        let mut bytes = vec![0; WINDOW + RECORD_HEADER_BYTES + KEY_BYTES_MAX];
        while offset < end {
            let got = file
                .read_at(&mut bytes, offset)
                .map_err(|err| Error::io(format!("read {}", segment.path.display()), err))?;
            let mut at = 0;
            while at < WINDOW && at + RECORD_HEADER_BYTES <= got && offset + (at as u64) < end {
                let place = offset + at as u64;
                if let Some(header) = RecordHeader::parse(&bytes[at..got])
                    && header.mark <= place
                    && place.checked_add(header.record_bytes()).is_some_and(|record_end| record_end <= end)
                    && wanted(&header)
                    && RecordHeader::decode(&segment.nonce, place, &bytes[at..got]).is_some()
                {
                    return Ok(Some(place));
                }
                at += super::format::ALIGN as usize;
            }
            offset += WINDOW as u64;
        }
        Ok(None)
    }

    /// The length of a segment's file.
    pub(super) fn length(&self, segment: &Arc<Segment>) -> Result<u64> {
        self.file(segment)?.length().map_err(|err| Error::io(format!("look at {}", segment.path.display()), err))
    }

    /// All records of a segment that ends at `end`, in order, from its summaries where it is sealed and from its headers where it was
    /// cut.
    pub(super) fn records(&self, segment: &Arc<Segment>, end: u64) -> Result<Walked> {
        if let Some(records) = self.summarised(segment, end)? {
            return Ok(Walked { records, damaged: Vec::new() });
        }
        let mut records = Vec::new();
        let mut damaged = Vec::new();
        let mut offset = RECORDS_START;
        while offset < end {
            match self.record_at(segment, offset)? {
                Some((header, key)) if offset + header.record_bytes() <= end => {
                    let next = offset + header.record_bytes();
                    if header.kind.has_key() {
                        records.push(Summarised { offset, header, key });
                    }
                    offset = next;
                }
                _ => {
                    let next = self.search(segment, offset + super::format::ALIGN, end, |_| true)?.unwrap_or(end);
                    damaged.push((offset, next));
                    offset = next;
                }
            }
        }
        Ok(Walked { records, damaged })
    }

    /// The records as the summaries of a sealed segment tell them; `None` where there is no seal or a summary does not read back.
    pub(super) fn summarised(&self, segment: &Arc<Segment>, end: u64) -> Result<Option<Vec<Summarised>>> {
        let Some(seal_at) = end.checked_sub(seal_bytes()).filter(|&at| at >= RECORDS_START) else { return Ok(None) };
        let Some((seal, _)) = self.record_at(segment, seal_at)?.filter(|(header, _)| header.kind == Kind::Seal) else {
            return Ok(None);
        };
        let Some(payload) = self.payload_of(segment, seal_at, &seal)?.filter(|p| p.len() == SEAL_PAYLOAD_BYTES) else {
            return Ok(None);
        };
        let mut runs = Vec::new();
        let mut at = u64_at(&payload, 0);
        while at != 0 {
            let Some((header, _)) = self.record_at(segment, at)?.filter(|(header, _)| header.kind == Kind::Summary)
            else {
                return Ok(None);
            };
            let Some(payload) = self.payload_of(segment, at, &header)? else { return Ok(None) };
            let Some((previous, records)) = read_summary(&payload) else { return Ok(None) };
            if previous >= at {
                return Ok(None);
            }
            runs.push(records);
            at = previous;
        }
        let mut records: Vec<Summarised> = runs.into_iter().rev().flatten().collect();
        records.retain(|record| record.header.kind.has_key());
        Ok((records.len() as u64 == u64_at(&payload, 8)).then_some(records))
    }
}
