//! Promises of the ring epoch record: its bytes stand, a crash leaves the old or the new one, and damage is said.

#![allow(clippy::unwrap_used)]

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use basalt_blockstore::{
    ErrorKind,
    disk::{Disk, File, OsDisk},
};
use basalt_sharding::{Epoch, Holder, RECORD_DIR, RECORD_FILE, Record};

fn record(holder: Holder, weights: &[u32]) -> Record {
    Record { epoch: Epoch::first(std::array::from_fn(|i| i as u8), weights).unwrap(), holder }
}

#[test]
fn the_bytes_of_version_1_stand() {
    for (golden, record) in [
        (&include_bytes!("golden/ring-epoch-v1-keyspace.json")[..], record(Holder::Keyspace, &[1, 2, 40])),
        (&include_bytes!("golden/ring-epoch-v1-shard-1.json")[..], record(Holder::Shard(1), &[1, 2, 40])),
    ] {
        assert_eq!(Record::parse(golden).unwrap(), record);
        assert_eq!(String::from_utf8(record.encode().unwrap()).unwrap(), String::from_utf8(golden.to_vec()).unwrap());
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let bytes = record(Holder::Shard(0), &[1, 1]).encode().unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            assert!(Record::parse(&bad).is_err(), "byte {at}, bit {bit}");
        }
        assert_eq!(Record::parse(&bytes[..at]).unwrap_err().kind(), ErrorKind::Corrupt, "cut at {at}");
    }
    assert!(Record::parse(&[&bytes[..], b"x"].concat()).is_err());
}

#[test]
fn a_newer_version_is_refused_as_such() {
    let line = r#"{"format":"basalt ring epoch","version":2,"something":"new"}"#;
    let bytes = format!("{line}\ncrc32 {:08x}\n", crc32fast::hash(line.as_bytes()));
    let err = Record::parse(bytes.as_bytes()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Format);
    assert!(err.to_string().contains("newer"), "{err}");
}

#[test]
fn what_was_written_is_read_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Record::read(&OsDisk, dir.path()).unwrap(), None);
    for weights in [&[1][..], &[1, 2, 3]] {
        let record = record(Holder::Shard(0), weights);
        record.write(&OsDisk, dir.path()).unwrap();
        assert_eq!(Record::read(&OsDisk, dir.path()).unwrap(), Some(record));
    }
}

#[test]
fn damage_on_disk_is_said_with_the_path() {
    let dir = tempfile::tempdir().unwrap();
    record(Holder::Keyspace, &[1]).write(&OsDisk, dir.path()).unwrap();
    let path = dir.path().join(RECORD_DIR).join(RECORD_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let err = Record::read(&OsDisk, dir.path()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Corrupt);
    assert!(err.to_string().contains(&path.display().to_string()), "{err}");
}

#[test]
fn a_write_that_fails_anywhere_leaves_the_old_record_or_the_new_one() {
    let (old, new) = (record(Holder::Shard(0), &[1]), record(Holder::Shard(0), &[1, 7]));
    for allowed in 0.. {
        let dir = tempfile::tempdir().unwrap();
        old.write(&OsDisk, dir.path()).unwrap();
        let disk = FailingDisk { left: Arc::new(AtomicI64::new(allowed)) };
        let outcome = new.write(&disk, dir.path());
        let found = Record::read(&OsDisk, dir.path()).unwrap().unwrap();
        if outcome.is_ok() {
            assert_eq!(found, new);
            assert!(allowed >= 6, "only {allowed} operations could fail: does the disk see them?");
            return;
        }
        assert!(found == old || found == new, "after {allowed} operations");
        // The next try succeeds over whatever is left.
        new.write(&OsDisk, dir.path()).unwrap();
        assert_eq!(Record::read(&OsDisk, dir.path()).unwrap(), Some(new.clone()));
    }
}

/// Allows so many operations that change something; all further ones fail.
#[derive(Debug)]
struct FailingDisk {
    left: Arc<AtomicI64>,
}

fn spend(left: &AtomicI64) -> io::Result<()> {
    if left.fetch_sub(1, Ordering::SeqCst) > 0 { Ok(()) } else { Err(io::Error::other("this operation fails")) }
}

impl Disk for FailingDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        spend(&self.left)?;
        Ok(Arc::new(FailingFile { file: OsDisk.create(path)?, left: self.left.clone() }))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        OsDisk.open(path, write)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        spend(&self.left)?;
        OsDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        spend(&self.left)?;
        OsDisk.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsDisk.list(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        spend(&self.left)?;
        OsDisk.create_dir(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        spend(&self.left)?;
        OsDisk.sync_dir(dir)
    }
    fn available(&self, dir: &Path) -> io::Result<u64> {
        OsDisk.available(dir)
    }
}

#[derive(Debug)]
struct FailingFile {
    file: Arc<dyn File>,
    left: Arc<AtomicI64>,
}

impl File for FailingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
    fn read_two_at(&self, head: &mut [u8], body: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_two_at(head, body, offset)
    }
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        if spend(&self.left).is_err() {
            // Torn: half of it is there.
            let all = parts.concat();
            self.file.write_at(&[&all[..all.len() / 2]], offset)?;
            return Err(io::Error::other("this write is torn"));
        }
        self.file.write_at(parts, offset)
    }
    fn sync(&self) -> io::Result<()> {
        spend(&self.left)?;
        self.file.sync()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.reserve(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.allocated_bytes()
    }
}
