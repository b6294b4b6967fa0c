//! The index on RocksDB, without a write-ahead log: what it has not flushed is replayed from our own.
//!
//! Point look-ups of random digests decide the settings: whole-key bloom filters (10 bits), a hash index inside data blocks, no
//! compression. Measured over the alternatives: a miss is one filter probe, a hit one block.

use std::{path::Path, sync::Arc};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DataBlockIndexType, IteratorMode, Options,
    WriteBatch, WriteOptions,
};

use super::{Change, Index, IndexEngine};
use crate::error::{Error, ErrorKind, Result};

/// Opens RocksDB indexes with a bounded memory.
#[derive(Debug, Clone)]
pub struct RocksEngine {
    cache: SharedCache,
    write_buffer_bytes: usize,
}

#[derive(Clone)]
struct SharedCache(Cache);

impl std::fmt::Debug for SharedCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({} bytes used)", self.0.get_usage())
    }
}

impl RocksEngine {
    /// An engine whose indexes share `memory_bytes` of block cache; each has write buffers of its own beside it.
    pub fn new(memory_bytes: usize) -> RocksEngine {
        RocksEngine { cache: SharedCache(Cache::new_lru_cache(memory_bytes)), write_buffer_bytes: 16 << 20 }
    }

    fn options(&self) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_bloom_filter(10.0, false);
        table.set_whole_key_filtering(true);
        table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
        table.set_data_block_hash_ratio(0.75);
        table.set_index_type(BlockBasedIndexType::BinarySearch);
        table.set_block_size(4096);
        table.set_format_version(5);
        table.set_block_cache(&self.cache.0);
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);

        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(self.write_buffer_bytes);
        options.set_max_write_buffer_number(3);
        options.set_max_background_jobs(2);
        options.set_max_open_files(256);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_max_total_wal_size(1 << 20);
        options.set_stats_dump_period_sec(0);
        options.set_atomic_flush(false);
        options
    }
}

impl IndexEngine for RocksEngine {
    fn open(&self, dir: &Path, read_only: bool) -> Result<Arc<dyn Index>> {
        let opened = if read_only {
            DB::open_for_read_only(&self.options(), dir, false)
        } else {
            DB::open(&self.options(), dir)
        };
        let db = opened.map_err(|err| failed(&format!("open index {}", dir.display()), err))?;
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        Ok(Arc::new(RocksIndex { db, write }))
    }

    fn destroy(&self, dir: &Path) -> Result<()> {
        match std::fs::remove_dir_all(dir) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove damaged index {}", dir.display()), err))
            }
            _ => Ok(()),
        }
    }
}

struct RocksIndex {
    db: DB,
    write: WriteOptions,
}

impl std::fmt::Debug for RocksIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RocksIndex({})", self.db.path().display())
    }
}

fn failed(action: &str, err: rocksdb::Error) -> Error {
    use rocksdb::ErrorKind as Rocks;
    let text = err.as_ref().to_lowercase();
    let kind = match err.kind() {
        Rocks::Corruption => ErrorKind::Corrupt,
        _ if text.contains("no space left") || text.contains("quota exceeded") => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{action}: {err}"))
}

impl Index for RocksIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.db.get(key).map_err(|err| failed("read the index", err))
    }

    fn write(&self, changes: &[Change]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        self.db.write_opt(batch, &self.write).map_err(|err| failed("write the index", err))
    }

    fn flush(&self) -> Result<()> {
        self.db.flush().map_err(|err| failed("flush the index", err))
    }

    fn scan(&self, from: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        for pair in self.db.iterator(IteratorMode::From(from, rocksdb::Direction::Forward)) {
            let (key, value) = pair.map_err(|err| failed("scan the index", err))?;
            if !each(&key, &value) {
                break;
            }
        }
        Ok(())
    }
}
