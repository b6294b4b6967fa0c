//! The disk and clock of the operating system (Linux).

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, OFlag, fallocate},
    sys::{statvfs::statvfs, uio},
};

use super::{Clock, Disk, Entropy, File};

/// Files of the operating system. Segment files are for their owner only (STORE 24).
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

#[derive(Debug)]
struct OsFile(fs::File);

/// Read past the page cache; see [`Disk::open_direct`].
#[derive(Debug)]
struct DirectFile(OsFile);

impl Disk for OsDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Arc::new(OsFile(file)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OsFile(fs::OpenOptions::new().read(true).write(write).open(path)?)))
    }

    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let flags = OFlag::O_DIRECT.bits();
        match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => Ok(Arc::new(DirectFile(OsFile(file)))),
            // A file system that can't, such as tmpfs of older kernels.
            Err(err) if err.raw_os_error() == Some(Errno::EINVAL as i32) => self.open(path, false),
            Err(err) => Err(err),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.create_dir(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            _ => {}
        }
        match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent),
            _ => self.sync_dir(Path::new(".")),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn available(&self, dir: &Path) -> io::Result<u64> {
        let stat = statvfs(dir)?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}

impl File for DirectFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(n) => {
                    done += n;
                    // The end of the file; going on there would be out of alignment.
                    if n == 0 || n % super::DIRECT_BYTES != 0 {
                        break;
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(done)
    }

    fn read_two_at(&self, _: &mut [u8], _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _: &[&[u8]], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.0.allocated_bytes()
    }
}

impl File for OsFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(done)
    }

    fn read_two_at(&self, head: &mut [u8], body: &mut [u8], offset: u64) -> io::Result<usize> {
        let head_len = head.len();
        let got = loop {
            let mut parts = [IoSliceMut::new(head), IoSliceMut::new(body)];
            match uio::preadv(&self.0, &mut parts, offset as i64) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        if got >= head_len + body.len() || got == 0 {
            return Ok(got);
        }
        // A short read: the rest, piece by piece.
        if got < head_len {
            let more = self.read_at(&mut head[got..], offset + got as u64)?;
            if got + more < head_len {
                return Ok(got + more);
            }
        }
        let from = got.max(head_len) - head_len;
        Ok(head_len + from + self.read_at(&mut body[from..], offset + (head_len + from) as u64)?)
    }

    fn write_at(&self, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
        // IOV_MAX is 1024 on Linux.
        for parts in parts.chunks(1024) {
            let total: usize = parts.iter().map(|part| part.len()).sum();
            let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let mut rest = slices.as_mut_slice();
            let mut done = 0;
            while done < total {
                match uio::pwritev(&self.0, rest, (offset + done as u64) as i64) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        done += n;
                        IoSlice::advance_slices(&mut rest, n);
                    }
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            offset += total as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        match fallocate(&self.0, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset as i64, len as i64) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(&self.0, flags, offset as i64, len as i64)?)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks() * 512)
    }
}

/// The clocks of the operating system; background work has threads of its own.
#[derive(Clone, Copy, Debug)]
pub struct OsClock {
    start: Instant,
}

impl Default for OsClock {
    fn default() -> OsClock {
        OsClock { start: Instant::now() }
    }
}

impl Clock for OsClock {
    fn monotonic_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn unix_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
    }

    fn threads(&self) -> bool {
        true
    }
}

/// The random numbers of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        // Linux answers always once it has booted; without random nonces the log must not be written.
        if let Err(err) = getrandom::fill(bytes) {
            panic!("the operating system gives no random numbers: {err}");
        }
    }
}
