//! The one error type: what was tried, of which class, why, and what to do.

use std::fmt;

/// Result of a ledger's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Coarse kinds, by what the caller would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The ledger can't be reached, or is overloaded. Nothing may have been done. Try again later; changes may be queued meanwhile.
    Unavailable,
    /// No answer in time. The change may have been made; making it again is safe.
    Timeout,
    /// Who we are is not known to the ledger, or may not do it. Fix the credentials or the permissions.
    Denied,
    /// The ledger's schema is not one that this build works on. Migrate, or upgrade the agent.
    Schema,
    /// What was asked makes no sense to the ledger: a cursor of another list, a generation of next week. Fix the caller.
    Argument,
    /// The config can't be used as it is.
    Config,
    /// What was read can't be understood. Someone must look.
    Corrupt,
}

impl Class {
    /// Whether the same change may well succeed later, without anybody changing anything.
    pub fn passes(self) -> bool {
        matches!(self, Class::Unavailable | Class::Timeout)
    }
}

/// An operation of a ledger that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    tried: String,
    class: Class,
    why: String,
}

impl Error {
    /// An error: what was tried (with its subject), of which class, why and what to do.
    pub fn new(tried: impl Into<String>, class: Class, why: impl Into<String>) -> Error {
        Error { tried: tried.into(), class, why: why.into() }
    }

    /// What was tried, and why it failed; for sending it on.
    pub(crate) fn parts(&self) -> (&str, &str) {
        (&self.tried, &self.why)
    }

    /// What the caller would do.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tried, self.why)?;
        f.write_str(match self.class {
            Class::Unavailable => "; try again when the ledger is back",
            Class::Timeout => "; it may have been done, and may be done again",
            _ => "",
        })
    }
}

impl std::error::Error for Error {}
