//! How errors go over the wire, and back: one table.
//!
//! The gRPC code says what a caller can do; the trailer [`KIND`] has the exact [`ErrorKind`] by name; the message is made for the
//! person who reads it. A status without that trailer was made by the transport, not by the node.

use basalt_blockstore::{Error, ErrorKind};
use tonic::{Code, Status, metadata::MetadataValue};

/// Trailer with the name of the [`ErrorKind`].
pub const KIND: &str = "basalt-kind";
/// Trailer that says, with the value `required`, that the call was not executed because its connection has not shaken hands.
pub const HANDSHAKE: &str = "basalt-handshake";

/// | Kind | Code | What a caller can do |
/// |---|---|---|
/// | NotFound | NOT_FOUND | nothing: the key is absent |
/// | NoSpace | RESOURCE_EXHAUSTED | free space, then retry |
/// | Corrupt | DATA_LOSS | restore from a replica |
/// | TooLarge | OUT_OF_RANGE | send less at a time |
/// | InvalidKey, InvalidValue | INVALID_ARGUMENT | mend the call |
/// | ReadOnly, Locked, Format | FAILED_PRECONDITION | change the node first |
/// | Unavailable, Closed | UNAVAILABLE | outcome unknown, or the node is going: look, reconnect |
/// | Unsupported | UNIMPLEMENTED | use another operation |
/// | Io | INTERNAL | look at the machine |
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::TooLarge => Code::OutOfRange,
        ErrorKind::InvalidKey | ErrorKind::InvalidValue => Code::InvalidArgument,
        ErrorKind::ReadOnly | ErrorKind::Locked | ErrorKind::Format => Code::FailedPrecondition,
        ErrorKind::Unavailable | ErrorKind::Closed => Code::Unavailable,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Io => Code::Internal,
    }
}

/// Longest message that is sent, in bytes: it travels in a header, and clients bound those.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The status of an error.
pub fn status(err: Error) -> Status {
    let mut message = err.to_string();
    if message.len() > MESSAGE_BYTES_MAX {
        let cut = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(cut);
        message.push_str("...");
    }
    let mut status = Status::new(code(err.kind()), message);
    status.metadata_mut().insert(KIND, MetadataValue::from_static(err.kind().name()));
    status
}

/// The error of a status, as a client sees it.
pub fn error(status: &Status) -> Error {
    let name = status.metadata().get(KIND).and_then(|value| value.to_str().ok());
    let kind = name.and_then(ErrorKind::from_name).unwrap_or_else(|| match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::ResourceExhausted | Code::OutOfRange => ErrorKind::TooLarge,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::InvalidArgument => ErrorKind::InvalidValue,
        // The transport failed, so what became of the call is not known.
        _ => ErrorKind::Unavailable,
    });
    let message = match status.message() {
        "" => format!("the node's answer was {:?}", status.code()),
        message => message.to_owned(),
    };
    Error::new(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let sent = status(Error::new(kind, format!("{} happened to /a: do b", kind.name())));
            assert_ne!(sent.code(), Code::Ok);
            let headers = sent.clone().into_http::<()>();
            let received = Status::from_header_map(headers.headers()).unwrap();
            let back = error(&received);
            assert_eq!(back.kind(), kind);
            assert_eq!(back.to_string(), format!("{} happened to /a: do b", kind.name()));
        }
    }

    #[test]
    fn a_status_of_the_transport_has_an_unknown_outcome() {
        assert_eq!(error(&Status::unavailable("connection reset")).kind(), ErrorKind::Unavailable);
        assert_eq!(error(&Status::unknown("")).kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let sent = status(Error::new(ErrorKind::Io, "ä".repeat(5000)));
        assert!(sent.message().len() <= MESSAGE_BYTES_MAX + 3 && sent.message().ends_with("ä..."));
    }
}
