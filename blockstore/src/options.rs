//! What an operator can choose about a store, with every bound that it keeps.

use std::{fmt, str::FromStr, time::Duration};

use crate::error::{Error, ErrorKind, Result};

/// What an acknowledgement promises (STORE 11 to 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// A write that has returned is on stable storage. Visible to others only then.
    Strict,
    /// Blocks are acknowledged once written and are durable within a bounded delay, and always before any later change of other
    /// keys is even written. Only for a node that holds blocks and metadata both.
    Ordered,
    /// Durable at Sync, or within the bounded delay. No order between pins and blocks at a crash.
    Relaxed,
}

impl Durability {
    /// The name in config, handshake and status.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Strict => "strict",
            Durability::Ordered => "ordered",
            Durability::Relaxed => "relaxed",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Durability {
    type Err = Error;

    fn from_str(name: &str) -> Result<Durability> {
        match name {
            "strict" => Ok(Durability::Strict),
            "ordered" => Ok(Durability::Ordered),
            "relaxed" => Ok(Durability::Relaxed),
            _ => Err(Error::new(
                ErrorKind::InvalidValue,
                format!("durability '{name}' is not one of strict, ordered, relaxed"),
            )),
        }
    }
}

/// What Get and Has say of a block whose bytes are damaged (STORE 19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCorrupt {
    /// It is absent, so that Kubo fetches it again.
    Refetch,
    /// It is an error.
    Error,
}

/// Options of one log with its index: a shard, or the keyspace.
#[derive(Clone, Debug)]
pub struct Options {
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Refuse a value that doesn't hash to its key.
    pub verify_on_put: bool,
    /// What a damaged block looks like to Kubo.
    pub corrupt: OnCorrupt,
    /// A segment is sealed when it has reached this size, in bytes.
    pub segment_bytes: u64,
    /// Largest value, in bytes.
    pub value_bytes_max: usize,
    /// Largest key, in bytes.
    pub key_bytes_max: usize,
    /// Puts wait while this many bytes of the log are not durable.
    pub unflushed_bytes_max: u64,
    /// A flush starts at most this long after the oldest write that is not durable.
    pub flush_delay: Duration,
    /// A log that was idle this long gets a mark.
    pub idle_mark_delay: Duration,
    /// A caller that waits longer than this for a flush gets `Unavailable`, and the log is fenced.
    pub flush_deadline: Duration,
    /// The index is flushed when opening would have to replay more than this many bytes of the log...
    pub replay_bytes_max: u64,
    /// ...or more than this many records.
    pub replay_records_max: u64,
    /// Values up to this size are kept in the index too, so that reading them touches no segment; 0 for none, in bytes.
    pub inline_bytes_max: usize,
    /// Segment files held open for reading.
    pub open_files_max: usize,
    /// Memory of the index: block cache and write buffers, in bytes.
    pub index_memory_bytes: usize,
    /// Puts get `NoSpace` while less than this is available, so that deletes and the index still work, in bytes.
    pub reserve_bytes: u64,
    /// A payload at least this large is punched out when it is deleted, in bytes.
    pub punch_bytes_min: u32,
    /// A sealed segment is compacted when more than this share of it is dead and not given back, in percent.
    pub compact_dead_percent: u8,
    /// Spent segments kept for recycling.
    pub recycle_segments_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            durability: Durability::Strict,
            verify_on_put: false,
            corrupt: OnCorrupt::Refetch,
            segment_bytes: 256 << 20,
            value_bytes_max: 16 << 20,
            key_bytes_max: 4096,
            unflushed_bytes_max: 256 << 20,
            flush_delay: Duration::from_millis(500),
            idle_mark_delay: Duration::from_secs(1),
            flush_deadline: Duration::from_secs(30),
            replay_bytes_max: 1 << 30,
            replay_records_max: 65_536,
            inline_bytes_max: 0,
            open_files_max: 512,
            index_memory_bytes: 32 << 20,
            reserve_bytes: 64 << 20,
            punch_bytes_min: 64 << 10,
            compact_dead_percent: 50,
            recycle_segments_max: 4,
        }
    }
}
