//! The C ABI as a C program would use it, and as it should not.

#![allow(clippy::unwrap_used)]

use std::{path::Path, ptr};

use basalt_ffi::{Kind, Outcome, abi::*};
use basalt_node::{InitOptions, init};
use basalt_proto::v1;
use prost::Message;

/// An outcome, with its bytes taken over and given back.
fn taken(outcome: Outcome) -> (u32, u64, Vec<u8>) {
    let bytes = match outcome.len {
        0 => Vec::new(),
        // SAFETY: the library gave these bytes to us, and they are given back below.
        len => unsafe { std::slice::from_raw_parts(outcome.data, len) }.to_vec(),
    };
    // SAFETY: they are the outcome's own, and given back once.
    unsafe { basalt_free(outcome.data, outcome.len) };
    (outcome.kind, outcome.value, bytes)
}

fn failed(outcome: Outcome, kind: Kind) -> String {
    let (got, _, message) = taken(outcome);
    let message = String::from_utf8(message).unwrap();
    assert_eq!(got, kind as u32, "{message}");
    message
}

fn done(outcome: Outcome) -> u64 {
    let (kind, value, message) = taken(outcome);
    assert_eq!(kind, Kind::Ok as u32, "{}", String::from_utf8_lossy(&message));
    value
}

fn open(path: &Path, role: &str) -> Outcome {
    let hello = v1::HandshakeRequest { client: "test".into(), role: role.into(), ..v1::HandshakeRequest::default() };
    let (path, hello) = (path.as_os_str().as_encoded_bytes(), hello.encode_to_vec());
    // SAFETY: both are borrowed for the call.
    unsafe { basalt_open(path.as_ptr(), path.len(), hello.as_ptr(), hello.len(), 0) }
}

fn put(handle: u64, key: &str, value: &[u8]) -> Outcome {
    // SAFETY: both are borrowed for the call.
    unsafe { basalt_put(handle, key.as_ptr(), key.len(), value.as_ptr(), value.len(), 0) }
}

fn get(handle: u64, key: &str, buffer: &mut [u8]) -> Outcome {
    // SAFETY: both are borrowed for the call, the buffer alone by it.
    unsafe { basalt_get(handle, key.as_ptr(), key.len(), buffer.as_mut_ptr(), buffer.len()) }
}

fn node() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    init(&dir.path().join("node"), &InitOptions::default()).unwrap();
    dir
}

#[test]
fn a_value_is_read_into_the_callers_buffer_or_its_size_is_told() {
    let dir = node();
    let handle = done(open(&dir.path().join("node"), "root"));
    done(put(handle, "/a", b"value"));
    let mut buffer = [0xaa; 8];
    assert_eq!(done(get(handle, "/a", &mut buffer)), 5);
    assert_eq!(&buffer, b"value\xaa\xaa\xaa");
    let (kind, value, message) = taken(get(handle, "/a", &mut buffer[..4]));
    assert_eq!((kind, value, message.len()), (Kind::BufferTooSmall as u32, 5, 0));
    assert_eq!(done(get(handle, "/a", &mut buffer[..5])), 5);
    failed(get(handle, "/b", &mut buffer), Kind::NotFound);
    done(put(handle, "/empty", b""));
    assert_eq!(done(get(handle, "/empty", &mut [])), 0);
    done(basalt_close(handle));
}

#[test]
fn a_handle_that_is_closed_or_never_was_is_an_error() {
    let dir = node();
    let path = dir.path().join("node");
    let handle = done(open(&path, "root"));
    done(basalt_close(handle));
    assert!(failed(basalt_close(handle), Kind::Closed).contains("closed before"));
    failed(put(handle, "/a", b""), Kind::Closed);
    failed(basalt_query_next(handle), Kind::Closed);
    failed(basalt_query_close(u64::MAX), Kind::Closed);
    let again = done(open(&path, "root"));
    assert_ne!(again, handle, "a number is never used again");
    done(basalt_close(again));
}

#[test]
fn nonsense_is_refused_by_name() {
    let dir = node();
    let handle = done(open(&dir.path().join("node"), "root"));
    // SAFETY: NULL with a length is what is tested: it is looked at before anything is read.
    let null = unsafe { basalt_put(handle, ptr::null(), 3, ptr::null(), 0, 0) };
    assert!(failed(null, Kind::InvalidValue).contains("NULL"));
    failed(put(handle, "", b""), Kind::InvalidKey);
    let not_text = [b'/', 0xff];
    // SAFETY: borrowed for the call.
    let not_text = unsafe { basalt_has(handle, not_text.as_ptr(), not_text.len()) };
    assert!(failed(not_text, Kind::InvalidKey).contains("UTF-8"));
    let no_message = [0xff; 4];
    // SAFETY: borrowed for the call.
    failed(unsafe { basalt_query(handle, no_message.as_ptr(), no_message.len()) }, Kind::InvalidValue);
    done(basalt_close(handle));
    let missing = dir.path().join("missing");
    assert!(failed(open(&missing, "root"), Kind::Format).contains("missing"));
}

#[test]
fn a_panic_is_an_error_with_its_place() {
    let message = "on purpose";
    // SAFETY: borrowed for the call.
    let outcome = unsafe { basalt_test_panic(message.as_ptr(), message.len()) };
    let said = failed(outcome, Kind::Panicked);
    assert!(said.contains(message) && said.contains("abi.rs:"), "{said}");
}

#[test]
fn a_query_gives_every_entry_once_and_says_when_it_is_complete() {
    let dir = node();
    let handle = done(open(&dir.path().join("node"), "root"));
    for i in 0..10 {
        done(put(handle, &format!("/q/{i}"), b"v"));
    }
    let request = v1::QueryRequest { prefix: "/q".into(), ..v1::QueryRequest::default() }.encode_to_vec();
    // SAFETY: borrowed for the call.
    let cursor = done(unsafe { basalt_query(handle, request.as_ptr(), request.len()) });
    let mut bytes = 0;
    loop {
        let (kind, _, page) = taken(basalt_query_next(cursor));
        assert_eq!(kind, Kind::Ok as u32);
        if page.is_empty() {
            break;
        }
        bytes += page.len();
    }
    assert_eq!(bytes, 10 * (28 + "/q/0".len() + 1));
    done(basalt_query_close(cursor));
    failed(basalt_query_close(cursor), Kind::Closed);
    done(basalt_close(handle));
}
