//! Where a record stands in a log.

use std::fmt;

use super::format::ALIGN;

/// Segment id and offset in one word, ordered as the log is. Ids have 32 bits; offsets are multiples of [`ALIGN`] below 32 GiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Location(u64);

/// Largest id of a segment.
pub const SEGMENT_ID_MAX: u64 = u32::MAX as u64;
/// Largest size of a segment, in bytes.
pub const SEGMENT_BYTES_MAX: u64 = (u32::MAX as u64) * ALIGN;

impl Location {
    /// The place `offset` in segment `segment`.
    pub fn new(segment: u64, offset: u64) -> Location {
        debug_assert!(segment <= SEGMENT_ID_MAX && offset.is_multiple_of(ALIGN) && offset <= SEGMENT_BYTES_MAX);
        Location((segment << 32) | (offset / ALIGN))
    }

    /// From its word.
    pub fn from_word(word: u64) -> Location {
        Location(word)
    }

    /// As one word.
    pub fn word(self) -> u64 {
        self.0
    }

    /// Id of the segment.
    pub fn segment(self) -> u64 {
        self.0 >> 32
    }

    /// Offset in the segment, in bytes.
    pub fn offset(self) -> u64 {
        (self.0 & u64::from(u32::MAX)) * ALIGN
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.segment(), self.offset())
    }
}
