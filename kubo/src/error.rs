//! The one error type: which call, to whom, of which class, why, and what to do.

use std::fmt;

use crate::Endpoint;

/// Result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Coarse kinds, by what the caller would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// No connection: Kubo is down, or the address is wrong. The call was not begun. Try again later.
    Unreachable,
    /// Kubo doesn't let us. Change the authorization.
    Denied,
    /// Kubo did what it was asked and says that it failed. Its message is [`Error::message`].
    Failed,
    /// Nothing was heard for too long. What Kubo did is unknown: ask it, or make the call again.
    Stalled,
    /// The answer ended before its end: the connection broke, or Kubo was killed. What it did is unknown: ask it, or make the call again.
    Truncated,
    /// What answers is not Kubo, or not one that we know: no JSON, a line without end, an answer without what belongs in it. Someone must look.
    Protocol,
    /// What was asked can't be sent: a name that is too long. Change it.
    Argument,
}

impl Class {
    /// Whether the same call may well succeed later, without anybody changing anything.
    pub fn passes(self) -> bool {
        matches!(self, Class::Unreachable | Class::Stalled | Class::Truncated)
    }
}

/// A call that did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    call: String,
    endpoint: Endpoint,
    class: Class,
    message: String,
}

/// Longest text of Kubo's that is kept, in bytes: what answers may be anything.
const MESSAGE_BYTES_MAX: usize = 1000;

/// One line of at most [`MESSAGE_BYTES_MAX`], so that a log line stays one.
fn tame(text: &str) -> String {
    let mut tamed = String::new();
    for c in text.trim().chars() {
        if tamed.len() >= MESSAGE_BYTES_MAX {
            tamed.push('…');
            break;
        }
        tamed.push(if c.is_control() { ' ' } else { c });
    }
    tamed
}

impl Error {
    pub(crate) fn new(call: &str, endpoint: &Endpoint, class: Class, message: impl AsRef<str>) -> Error {
        Error { call: call.to_owned(), endpoint: endpoint.clone(), class, message: tame(message.as_ref()) }
    }

    /// What the caller would do.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The call and its subject, such as `pin/add bafy…`.
    pub fn call(&self) -> &str {
        &self.call
    }

    /// Why; of [`Class::Failed`] Kubo's own words.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error { call, endpoint, message, .. } = self;
        match self.class {
            Class::Unreachable => write!(
                f,
                "{call}: Kubo can't be reached at {endpoint}: {message}; is its daemon running, and is this Addresses.API of its config?"
            ),
            Class::Denied => write!(
                f,
                "{call}: Kubo at {endpoint} denies it: {message}; give the agent a secret of API.Authorizations whose AllowedPaths have this call"
            ),
            Class::Failed => write!(f, "{call}: Kubo at {endpoint} failed: {message}"),
            Class::Stalled => {
                write!(f, "{call}: Kubo at {endpoint} {message}; what it did is unknown: look, or make the call again")
            }
            Class::Truncated => {
                write!(
                    f,
                    "{call}: the answer of Kubo at {endpoint} was cut: {message}; what it did is unknown: look, or make the call again"
                )
            }
            Class::Protocol => write!(f, "{call}: what answers at {endpoint} is no Kubo that we know: {message}"),
            Class::Argument => write!(f, "{call}: {message}"),
        }
    }
}

impl std::error::Error for Error {}
