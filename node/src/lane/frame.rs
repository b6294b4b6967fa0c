//! A frame's head, and what its numbers mean. They are on the wire: none of them ever changes its meaning (docs/lane.md).

use basalt_blockstore::ErrorKind;

/// What a client sends first, so that the socket can tell its lane from HTTP/2; the last byte is the lane's version.
pub const PREFACE: [u8; 8] = *b"BSLTLN\0\x01";

/// Bytes of a head.
pub const HEAD_BYTES: usize = 16;

/// In a Put: 8 bytes with its time to live come before the value.
pub const FLAG_TTL: u8 = 1;
/// In the last frame of a batch: apply it.
pub const FLAG_COMMIT: u8 = 1;
/// In the last frame of a batch: forget it.
pub const FLAG_GIVE_UP: u8 = 2;

/// What stands before an operation of a batch.
pub const OPERATION_HEAD_BYTES: usize = 8;
/// An operation that stores a value.
pub const OPERATION_PUT: u8 = 1;
/// An operation that removes a key.
pub const OPERATION_DELETE: u8 = 2;

/// What a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Shakes hands; comes first.
    Hello,
    /// The value of a key.
    Get,
    /// Whether a key is there.
    Has,
    /// The size of a key's value.
    GetSize,
    /// The sizes of many.
    GetSizes,
    /// Stores a value.
    Put,
    /// Removes a key.
    Delete,
    /// A part of a batch.
    Batch,
}

impl Asked {
    /// All, in the order of their numbers, which begin with 1.
    pub const ALL: [Asked; 8] = [
        Asked::Hello,
        Asked::Get,
        Asked::Has,
        Asked::GetSize,
        Asked::GetSizes,
        Asked::Put,
        Asked::Delete,
        Asked::Batch,
    ];

    /// By its number.
    pub fn from_number(number: u8) -> Option<Asked> {
        Asked::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    /// The gRPC call that does the same.
    pub fn method(self) -> &'static str {
        match self {
            Asked::Hello => "Handshake",
            Asked::Get => "Get",
            Asked::Has => "Has",
            Asked::GetSize => "GetSize",
            Asked::GetSizes => "GetSizes",
            Asked::Put => "Put",
            Asked::Delete => "Delete",
            Asked::Batch => "Batch",
        }
    }
}

/// How a request ended, as a number: 0 is done.
pub fn outcome_number(outcome: Result<(), ErrorKind>) -> u8 {
    let Err(kind) = outcome else { return 0 };
    let at = ErrorKind::ALL.iter().position(|known| *known == kind);
    at.and_then(|at| u8::try_from(at + 1).ok()).unwrap_or(u8::MAX)
}

/// What comes before key and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of key and payload.
    pub bytes: u32,
    /// [`Asked`], or how it ended.
    pub what: u8,
    /// `FLAG_` bits.
    pub flags: u8,
    /// Bytes of the key.
    pub key_bytes: u16,
    /// Which request.
    pub number: u64,
}

impl Head {
    /// As it is sent.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[..4].copy_from_slice(&self.bytes.to_le_bytes());
        out[4] = self.what;
        out[5] = self.flags;
        out[6..8].copy_from_slice(&self.key_bytes.to_le_bytes());
        out[8..].copy_from_slice(&self.number.to_le_bytes());
        out
    }

    /// As it came.
    pub fn decode(head: &[u8; HEAD_BYTES]) -> Head {
        let [b0, b1, b2, b3, what, flags, k0, k1, number @ ..] = *head;
        Head {
            bytes: u32::from_le_bytes([b0, b1, b2, b3]),
            what,
            flags,
            key_bytes: u16::from_le_bytes([k0, k1]),
            number: u64::from_le_bytes(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_these_bytes() {
        let head = Head { bytes: 0x0403_0201, what: 6, flags: 1, key_bytes: 0x0807, number: 0x100f_0e0d_0c0b_0a09 };
        let bytes = [1, 2, 3, 4, 6, 1, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        assert_eq!(head.encode(), bytes);
        assert_eq!(Head::decode(&bytes), head);
    }

    #[test]
    fn numbers_are_those_of_the_page() {
        let page = include_str!("../../../docs/lane.md");
        for asked in Asked::ALL {
            assert_eq!(Asked::from_number(asked.number()), Some(asked));
            assert!(page.contains(&format!("\n| {} | {asked:?} |", asked.number())), "{asked:?}");
        }
        assert_eq!((Asked::from_number(0), Asked::from_number(9)), (None, None));
        let names = ErrorKind::ALL.map(ErrorKind::name).join(" | ");
        assert!(page.contains(&format!("\n| {names} |")));
        assert_eq!(outcome_number(Ok(())), 0);
        assert_eq!(outcome_number(Err(ErrorKind::NotFound)), 1);
        assert_eq!(outcome_number(Err(ErrorKind::Io)), 13);
    }
}
