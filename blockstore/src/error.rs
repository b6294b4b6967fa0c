//! The one error type of the data path.
//!
//! A kind says what the caller can do; the message is for the person who reads it: what was tried, on what, why it failed and
//! what to do. Errors are cheap to clone, because one failed flush answers many waiters.

use std::{fmt, io, sync::Arc};

/// Result of a data path operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller would do about an error. The names go over the wire (`basalt-kind`), so they are never renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The key is not there. Nothing to do.
    NotFound,
    /// The disk, quota or reserve is exhausted: free space, then retry. Deletes still work.
    NoSpace,
    /// Stored bytes don't match their checksum or key: restore from a replica.
    Corrupt,
    /// A value, key or batch is above a configured limit.
    TooLarge,
    /// The key is malformed.
    InvalidKey,
    /// The value doesn't hash to its key (`verify_on_put`), or an argument makes no sense.
    InvalidValue,
    /// The store was opened for reading only.
    ReadOnly,
    /// The outcome is unknown or the store is fenced: reopen, look at the disk.
    Unavailable,
    /// The operation is not offered for this key.
    Unsupported,
    /// Another process owns the store.
    Locked,
    /// On-disk data of another or newer format, or of another store.
    Format,
    /// The store has been closed.
    Closed,
    /// The operating system failed an operation in a way not covered above.
    Io,
}

impl ErrorKind {
    /// All kinds, for tables and tests.
    pub const ALL: [ErrorKind; 13] = [
        ErrorKind::NotFound,
        ErrorKind::NoSpace,
        ErrorKind::Corrupt,
        ErrorKind::TooLarge,
        ErrorKind::InvalidKey,
        ErrorKind::InvalidValue,
        ErrorKind::ReadOnly,
        ErrorKind::Unavailable,
        ErrorKind::Unsupported,
        ErrorKind::Locked,
        ErrorKind::Format,
        ErrorKind::Closed,
        ErrorKind::Io,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "NotFound",
            ErrorKind::NoSpace => "NoSpace",
            ErrorKind::Corrupt => "Corrupt",
            ErrorKind::TooLarge => "TooLarge",
            ErrorKind::InvalidKey => "InvalidKey",
            ErrorKind::InvalidValue => "InvalidValue",
            ErrorKind::ReadOnly => "ReadOnly",
            ErrorKind::Unavailable => "Unavailable",
            ErrorKind::Unsupported => "Unsupported",
            ErrorKind::Locked => "Locked",
            ErrorKind::Format => "Format",
            ErrorKind::Closed => "Closed",
            ErrorKind::Io => "Io",
        }
    }

    /// The kind with that wire name.
    pub fn from_name(name: &str) -> Option<ErrorKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An error of the data path; see the module's page.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
    superseded: bool,
}

impl Error {
    /// An error with a message that names the subject and the remedy.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Arc::new(Inner { kind, message: message.into(), source: None, superseded: false }))
    }

    /// An operating system error during `action` (as in "write segment 7 of shard-00"). ENOSPC and EDQUOT are
    /// [`ErrorKind::NoSpace`], because the remedy is the same (STORE 16).
    pub fn io(action: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            _ => ErrorKind::Io,
        };
        Error(Arc::new(Inner { kind, message: action.into(), source: Some(source), superseded: false }))
    }

    /// The write was sound and failed only because another one below it did: nothing of it is stored, and trying it again is right.
    pub fn superseded(message: impl Into<String>) -> Error {
        Error(Arc::new(Inner { kind: ErrorKind::Unavailable, message: message.into(), source: None, superseded: true }))
    }

    /// Whether the write failed only because another one did (STORE 11: it tries itself).
    pub fn is_superseded(&self) -> bool {
        self.0.superseded
    }

    /// The key is not there.
    pub fn not_found() -> Error {
        Error::new(ErrorKind::NotFound, "key not found")
    }

    /// The same error, with what was being done in front.
    pub fn context(self, action: impl fmt::Display) -> Error {
        Error::new(self.kind(), format!("{action}: {self}"))
    }

    /// What a caller would do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the key was not there.
    pub fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.0.kind.name())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}
