//! How every entry point answers: a kind, a number, and bytes that are the answer or the message of an error.

use std::{
    any::Any,
    cell::RefCell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use basalt_datastore::{Error, ErrorKind};

use crate::memory;

/// What became of a call. The numbers never change; new ones may come.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Done.
    Ok = 0,
    /// The key is not there. Without a message.
    NotFound = 1,
    /// The disk, quota or reserve is exhausted: free space, then retry. Deletes still work.
    NoSpace = 2,
    /// Stored bytes don't match their checksum or key: restore from a replica.
    Corrupt = 3,
    /// A value, key or batch is above a configured limit.
    TooLarge = 4,
    /// The key is malformed.
    InvalidKey = 5,
    /// The value doesn't hash to its key, or an argument makes no sense.
    InvalidValue = 6,
    /// The node was opened for reading only.
    ReadOnly = 7,
    /// The outcome is unknown or a store is fenced: reopen, look at the disk.
    Unavailable = 8,
    /// The operation is not offered for this key.
    Unsupported = 9,
    /// Another process owns the node.
    Locked = 10,
    /// On-disk data of another or newer format, or of another node.
    Format = 11,
    /// The handle or its node has been closed.
    Closed = 12,
    /// The operating system failed an operation in a way not covered above.
    Io = 13,
    /// The caller's buffer has less room than `value` bytes; nothing was read.
    BufferTooSmall = 14,
    /// The node panicked; the outcome of the call is unknown.
    Panicked = 15,
}

/// The answer of an entry point.
///
/// `kind` is a basalt_kind. `value` is the number that the call answers with. `data` and `len` are the bytes it answers with, or the
/// message of an error (UTF-8, without a NUL); NULL and 0 where there are none. They belong to the caller, who gives them back by
/// basalt_free.
#[repr(C)]
#[derive(Debug)]
pub struct Outcome {
    /// A [`Kind`].
    pub kind: u32,
    /// What the call answers with, where that is a number.
    pub value: u64,
    /// Bytes that the caller gives back by `basalt_free`.
    pub data: *mut u8,
    /// How many.
    pub len: usize,
}

/// What a call answers where it went well.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) value: u64,
    pub(crate) data: Vec<u8>,
}

impl Answer {
    pub(crate) fn done() -> Answer {
        Answer::default()
    }

    pub(crate) fn value(value: u64) -> Answer {
        Answer { value, data: Vec::new() }
    }

    pub(crate) fn data(data: Vec<u8>) -> Answer {
        Answer { value: 0, data }
    }
}

/// Why a call went wrong.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) value: u64,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure { kind, value: 0, message: message.into() }
    }
}

impl From<Error> for Failure {
    fn from(err: Error) -> Failure {
        let kind = match err.kind() {
            // The commonest answer of all, which nobody reads.
            ErrorKind::NotFound => return Failure::new(Kind::NotFound, ""),
            ErrorKind::NoSpace => Kind::NoSpace,
            ErrorKind::Corrupt => Kind::Corrupt,
            ErrorKind::TooLarge => Kind::TooLarge,
            ErrorKind::InvalidKey => Kind::InvalidKey,
            ErrorKind::InvalidValue => Kind::InvalidValue,
            ErrorKind::ReadOnly => Kind::ReadOnly,
            ErrorKind::Unavailable => Kind::Unavailable,
            ErrorKind::Unsupported => Kind::Unsupported,
            ErrorKind::Locked => Kind::Locked,
            ErrorKind::Format => Kind::Format,
            ErrorKind::Closed => Kind::Closed,
            ErrorKind::Io => Kind::Io,
        };
        Failure::new(kind, err.to_string())
    }
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// The body of every entry point: a panic must not unwind into a caller that knows nothing of it, for that ends the process. The data
/// path's locks survive a panic (they pass over poison), and what is behind them is mended at the next open.
pub(crate) fn answer(call: impl FnOnce() -> Result<Answer>) -> Outcome {
    watch_panics();
    let outcome = match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(outcome) => outcome,
        Err(payload) => {
            let message = panic_message(&*payload);
            // Dropping what was thrown may panic as well, and nobody would catch that.
            std::mem::forget(payload);
            Err(Failure::new(Kind::Panicked, message))
        }
    };
    let (kind, value, data) = match outcome {
        Ok(answer) => (Kind::Ok, answer.value, answer.data),
        Err(failure) => (failure.kind, failure.value, failure.message.into_bytes()),
    };
    let (data, len) = memory::give(data);
    Outcome { kind: kind as u32, value, data, len }
}

thread_local! {
    /// Where this thread panicked last.
    static PANICKED_AT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes every panic remember where it was: what is caught has the text alone.
fn watch_panics() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let at = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
            // A thread that is ending has none any more.
            let _ = PANICKED_AT.try_with(|place| place.replace(at));
            default(info);
        }));
    });
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned());
    let at = PANICKED_AT.try_with(|place| place.take()).unwrap_or_default();
    format!(
        "the node panicked{at}: {text}. What became of the call is unknown; restart the program, look at its disk, and report this"
    )
}
