//! How a command ends: its exit code, and what it says to the person who ran it.

use std::fmt;

/// The exit codes of `basalt`. Scripts rely on them; `basalt --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done = 0,
    /// 1: it failed, or a check found a problem.
    Failure = 1,
    /// 2: the command line or the config is wrong; nothing was done.
    Usage = 2,
    /// 3: there is no node, no such file, or nobody serves it.
    Absent = 3,
}

/// Why a command did not do what it was asked: made for the person who reads it.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What was tried, on what, why it failed, what to do. Empty: there is nobody to be told.
    pub message: String,
}

/// Result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// It failed.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Failure, message: message.into() }
    }

    /// The command line or config is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Usage, message: message.into() }
    }

    /// What was asked for is not there.
    pub fn absent(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Absent, message: message.into() }
    }

    /// An operating system error during `action` ("read /data/blocks.car").
    pub fn io(action: impl fmt::Display, err: std::io::Error) -> Failure {
        let exit = if err.kind() == std::io::ErrorKind::NotFound { Exit::Absent } else { Exit::Failure };
        Failure { exit, message: format!("{action}: {err}") }
    }

    /// An error of writing to the standard output; quiet where its reader has heard enough.
    pub fn output(err: std::io::Error) -> Failure {
        match err.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::new(""),
            _ => Failure::io("write to the standard output", err),
        }
    }

    /// The same failure, with what was being done in front.
    pub fn context(self, action: impl fmt::Display) -> Failure {
        Failure { exit: self.exit, message: format!("{action}: {}", self.message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<basalt_blockstore::Error> for Failure {
    fn from(err: basalt_blockstore::Error) -> Failure {
        let exit = match err.kind() {
            basalt_blockstore::ErrorKind::NotFound => Exit::Absent,
            _ => Exit::Failure,
        };
        Failure { exit, message: err.to_string() }
    }
}

impl From<basalt_zfs::Error> for Failure {
    fn from(err: basalt_zfs::Error) -> Failure {
        let exit = match err.class() {
            basalt_zfs::Class::NotFound => Exit::Absent,
            _ => Exit::Failure,
        };
        Failure { exit, message: err.to_string() }
    }
}

impl From<basalt_node::ConfigError> for Failure {
    fn from(err: basalt_node::ConfigError) -> Failure {
        Failure::usage(format!("the config is wrong:\n{err}"))
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        basalt_node::client::error(&status).into()
    }
}
