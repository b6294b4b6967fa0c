//! The note that spares the next opening the reading of what was closed well.

use std::path::Path;

use super::super::{
    Env,
    core::{Core, Log},
    format::{note_check, u64_at},
};
use crate::{
    error::{Error, Result},
    sync::MutexGuard,
};

/// The note that a store was closed well: everything below `end` is durable, and nothing was ever written above it.
///
/// File `clean`: magic "BASALTCL" | segment | end | last summary | records, each u64 | SipHash of what is before. It
/// is removed, durably, before the first write after it.
pub(in crate::store) struct Clean {
    pub(in crate::store) segment: u64,
    pub(in crate::store) end: u64,
    pub(in crate::store) last_summary: u64,
    pub(in crate::store) records: u64,
}

const CLEAN_MAGIC: &[u8; 8] = b"BASALTCL";
const CLEAN_FILE: &str = "clean";
const CLEAN_BYTES: usize = 48;

impl Clean {
    pub(in crate::store) fn encode(&self) -> Vec<u8> {
        let mut bytes = CLEAN_MAGIC.to_vec();
        for value in [self.segment, self.end, self.last_summary, self.records] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        let check = note_check(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes
    }

    pub(super) fn read(env: &Env, dir: &Path) -> Result<Option<Clean>> {
        let Ok(file) = env.disk.open(&dir.join(CLEAN_FILE), false) else { return Ok(None) };
        let mut bytes = vec![0; CLEAN_BYTES + 1];
        let got = file
            .read_at(&mut bytes, 0)
            .map_err(|err| Error::io(format!("read {}", dir.join(CLEAN_FILE).display()), err))?;
        bytes.truncate(got);
        Ok(Clean::decode(&bytes))
    }

    /// `None` for damage: the log is read as after an unclean close.
    pub(in crate::store) fn decode(bytes: &[u8]) -> Option<Clean> {
        if bytes.len() != CLEAN_BYTES || bytes[..8] != *CLEAN_MAGIC || note_check(&bytes[..40]) != u64_at(bytes, 40) {
            return None;
        }
        let at = |i| u64_at(bytes, i);
        Some(Clean { segment: at(8), end: at(16), last_summary: at(24), records: at(32) })
    }

    /// Writes the note: flushed, named, and the name made durable.
    pub(in crate::store) fn write(&self, core: &Core) -> Result<()> {
        let failed = |err| Error::io(format!("write {}", core.dir.join(CLEAN_FILE).display()), err);
        let temp = core.dir.join("new-clean.tmp");
        let disk = &core.env.disk;
        let file = match disk.create(&temp) {
            Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {
                disk.remove(&temp).map_err(failed)?;
                disk.create(&temp).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        file.write_at(&[&self.encode()], 0).map_err(failed)?;
        file.sync().map_err(failed)?;
        disk.rename(&temp, &core.dir.join(CLEAN_FILE)).map_err(failed)?;
        core.files.sync_dir()
    }
}

impl Core {
    /// Removes the note before the first write, durably.
    pub(in crate::store) fn remove_clean_file<'a>(
        &'a self,
        mut log: MutexGuard<'a, Log>,
    ) -> Result<MutexGuard<'a, Log>> {
        log.begin_roll(self.env.clock.monotonic_ns());
        drop(log);
        let removed = match self.env.disk.remove(&self.dir.join(CLEAN_FILE)) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", self.dir.join(CLEAN_FILE).display()), err))
            }
            _ => self.files.sync_dir(),
        };
        let mut log = self.log.lock();
        log.rolling = false;
        self.changed.notify_all();
        removed?;
        log.clean_file = false;
        Ok(log)
    }
}
