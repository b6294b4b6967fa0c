//! What goes wrong with snapshots, for the person who reads it and for the code that decides what to do.

use std::fmt;

use basalt_zfs::Class;

/// What a caller would do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ZFS refused or failed; its class says how.
    Zfs(Class),
    /// There is no such set, hold or restore.
    NotFound,
    /// It is refused as things are; the message says what has to change.
    Refused,
    /// The journal can't be read or written.
    Journal,
}

/// An operation on snapshots that failed.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
}

/// Result of an operation on snapshots.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a kind; the message says what was tried, on what, why it failed, what to do.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    pub(crate) fn refused(message: impl Into<String>) -> Error {
        Error::new(Kind::Refused, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Error {
        Error::new(Kind::NotFound, message)
    }

    /// What a caller would do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same, with what was being done in front.
    pub fn context(self, doing: impl fmt::Display) -> Error {
        Error { kind: self.kind, message: format!("{doing}: {}", self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<basalt_zfs::Error> for Error {
    fn from(err: basalt_zfs::Error) -> Error {
        Error { kind: Kind::Zfs(err.class()), message: err.to_string() }
    }
}

impl From<basalt_zfs::NameError> for Error {
    fn from(err: basalt_zfs::NameError) -> Error {
        Error::refused(err.to_string())
    }
}
