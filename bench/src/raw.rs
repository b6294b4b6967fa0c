//! What the disk and the page cache do with the same bytes and no store: the measure of the other figures.

use std::{fs::File, io::Write, os::unix::fs::FileExt};

use crate::{
    Result,
    blocks::Blocks,
    rounds::{Sample, timed},
    store::{Site, share},
};

/// Appends all blocks to a new file and flushes whenever `batch_bytes` more are written.
pub fn append(site: &Site, blocks: &Blocks, batch_bytes: usize) -> Result<Sample> {
    let folder = site.fresh()?;
    let mut file = File::create(folder.path().join("raw"))?;
    timed(blocks.bytes(), blocks.all.len(), || {
        let mut unflushed = 0;
        for (_, value) in &blocks.all {
            file.write_all(value)?;
            unflushed += value.len();
            if unflushed >= batch_bytes {
                file.sync_data()?;
                unflushed = 0;
            }
        }
        if unflushed > 0 && batch_bytes != usize::MAX {
            file.sync_data()?;
        }
        Ok(())
    })
}

/// All blocks end to end in one file, and the checksum of each.
pub struct RawFile {
    file: File,
    checksums: Vec<u32>,
    block_bytes: usize,
    _folder: tempfile::TempDir,
}

impl RawFile {
    /// Writes the file.
    pub fn write(site: &Site, blocks: &Blocks) -> Result<RawFile> {
        let folder = site.fresh()?;
        let path = folder.path().join("raw");
        let mut file = File::create(&path)?;
        for (_, value) in &blocks.all {
            file.write_all(value)?;
        }
        let checksums = blocks.all.iter().map(|(_, value)| crc32fast::hash(value)).collect();
        Ok(RawFile { file: File::open(path)?, checksums, block_bytes: blocks.block_bytes, _folder: folder })
    }

    /// Reads every block once, in no order that a read-ahead could guess, each into its reader's buffer, and checks it.
    pub fn read_all(&self, readers: usize) -> Result<Sample> {
        let count = self.checksums.len();
        timed(count * self.block_bytes, count, || {
            share(count, readers, |mine| {
                let mut buffer = vec![0; self.block_bytes];
                for i in mine {
                    self.file.read_exact_at(&mut buffer, (i * self.block_bytes) as u64)?;
                    if crc32fast::hash(&buffer) != self.checksums[i] {
                        return Err(format!("block {i} of the raw file reads back other than it was written").into());
                    }
                }
                Ok(())
            })
        })
    }
}
