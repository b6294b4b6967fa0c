//! The entry points.
//!
//! What holds for all of them, and what each `unsafe` block here rests on: a caller passes bytes as a pointer and a length, keeps them
//! where they are and lets nobody write to them until the call returns; the node keeps nothing of them. A pointer may be NULL where its
//! length is 0. Go passes pointers to its own memory so (cgo holds what a direct argument points to), without a copy.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path, time::Duration};

use basalt_datastore::{FixedBuffer, Key};
use basalt_node::query::parse_key;
use basalt_proto::v1;
use prost::Message;

use crate::{
    flat, memory,
    outcome::{Answer, Failure, Kind, Outcome, Result, answer},
    registry,
};

/// The version of this ABI. A program asks `basalt_abi_version` whether it was linked with the library that its header is of.
pub const BASALT_ABI_VERSION: u32 = 1;

/// The version of the ABI that the library speaks: `BASALT_ABI_VERSION` of its own header.
#[unsafe(no_mangle)]
pub extern "C" fn basalt_abi_version() -> u32 {
    BASALT_ABI_VERSION
}

/// Gives back the bytes of an outcome. Any other pointer but NULL, or the same one twice, is undefined behaviour.
///
/// # Safety
/// `data` and `len` are those of an outcome, given back once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_free(data: *mut u8, len: usize) {
    // SAFETY: the caller's promise is the same as `take` asks for, and every outcome's bytes come from `give`.
    unsafe { memory::take(data, len) }
}

/// Opens the node in the folder `path`, or one more view of it where this process has it open already.
///
/// `hello` is a protobuf message basalt.v1.HandshakeRequest (proto/basalt/v1/datastore.proto): who opens, in which role, which node
/// is expected. Another process may own the node: an agent that a plugin started is asked to hand it over, and waited for until
/// `wait_ms` have passed; any other owner is BASALT_KIND_LOCKED, with its pid.
///
/// Answers with the handle in `value`, and a basalt.v1.HandshakeResponse in `data`.
///
/// # Safety
/// As this module says, for `path` and `hello`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_open(
    path: *const u8,
    path_len: usize,
    hello: *const u8,
    hello_len: usize,
    wait_ms: u64,
) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let (path, hello) =
            unsafe { (memory::borrow("path", path, path_len)?, memory::borrow("handshake", hello, hello_len)?) };
        let said = decode::<v1::HandshakeRequest>("handshake", hello)?;
        let deadline = Duration::from_millis(wait_ms);
        let (handle, said) = registry::open(Path::new(OsStr::from_bytes(path)), said, deadline)?;
        Ok(Answer { value: handle, data: said.encode_to_vec() })
    })
}

/// Closes a view and its queries. The last view of a node closes it, which is a Sync: afterwards all that was acknowledged is on
/// stable storage, and other processes may open it. Calls under way in other threads end, well or with BASALT_KIND_CLOSED.
#[unsafe(no_mangle)]
pub extern "C" fn basalt_close(handle: u64) -> Outcome {
    answer(|| registry::close(handle).map(|()| Answer::done()))
}

/// Reads the value of a key into `buffer`. Answers with its size in `value`, also with BASALT_KIND_BUFFER_TOO_SMALL, where nothing was
/// read. What is in the buffer after any error is undefined.
///
/// # Safety
/// As this module says, for `key`; nobody else reads or writes `buffer`, which is initialised, until the call returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_get(
    handle: u64,
    key: *const u8,
    key_len: usize,
    buffer: *mut u8,
    capacity: usize,
) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let (key, memory) = unsafe { (parse(key, key_len)?, memory::borrow_mut("buffer", buffer, capacity)?) };
        let hosted = registry::hosted(handle)?;
        let mut buffer = FixedBuffer::new(memory);
        let read = hosted.datastore().get(&key, &mut buffer);
        let value = buffer.wanted_bytes() as u64;
        match read {
            Ok(()) => Ok(Answer::value(value)),
            Err(_) if buffer.is_too_small() => {
                Err(Failure { kind: Kind::BufferTooSmall, value, message: String::new() })
            }
            Err(err) => Err(err.into()),
        }
    })
}

/// Answers with the size of a key's value in `value`. Reads no value.
///
/// # Safety
/// As this module says, for `key`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_size(handle: u64, key: *const u8, key_len: usize) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let key = unsafe { parse(key, key_len)? };
        let size = registry::hosted(handle)?.datastore().size(&key)?;
        size.map(Answer::value).ok_or_else(|| Failure::new(Kind::NotFound, ""))
    })
}

/// Answers with 1 in `value` where the key is there, else with 0. Reads no value.
///
/// # Safety
/// As this module says, for `key`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_has(handle: u64, key: *const u8, key_len: usize) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let key = unsafe { parse(key, key_len)? };
        Ok(Answer::value(u64::from(registry::hosted(handle)?.datastore().has(&key)?)))
    })
}

/// Stores a value; returns when the node's durability class says so. A block that is there already costs one look-up. With a `ttl_ms`
/// that is not 0 the key is gone after that time; BASALT_KIND_UNSUPPORTED for a block, and then nothing is stored.
///
/// # Safety
/// As this module says, for `key` and `value`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_put(
    handle: u64,
    key: *const u8,
    key_len: usize,
    value: *const u8,
    value_len: usize,
    ttl_ms: u64,
) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let (key, value) = unsafe { (parse(key, key_len)?, memory::borrow("value", value, value_len)?) };
        let hosted = registry::hosted(handle)?;
        match ttl_ms {
            0 => hosted.datastore().put(&key, value)?,
            ttl_ms => hosted.datastore().submit_put(&key, value, Some(ttl_ms))?.wait()?,
        }
        Ok(Answer::done())
    })
}

/// Removes a key; absent is fine.
///
/// # Safety
/// As this module says, for `key`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_delete(handle: u64, key: *const u8, key_len: usize) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let key = unsafe { parse(key, key_len)? };
        registry::hosted(handle)?.datastore().delete(&key)?;
        Ok(Answer::done())
    })
}

/// Applies a batch; the last operation of a key wins. `operations` is one run of bytes, little-endian, for each operation:
///
///     u8  1 for a put, 2 for a delete
///     u32 bytes of the key
///     u64 bytes of the value; 0 for a delete
///     the key, then the value
///
/// # Safety
/// As this module says, for `operations`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_batch(handle: u64, operations: *const u8, operations_len: usize) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let operations = unsafe { memory::borrow("batch", operations, operations_len)? };
        let hosted = registry::hosted(handle)?;
        hosted.datastore().batch(flat::batch(operations)?)?;
        Ok(Answer::done())
    })
}

/// Starts a query. `request` is a protobuf message basalt.v1.QueryRequest. Answers with a cursor in `value`, which is to be closed.
///
/// # Safety
/// As this module says, for `request`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_query(handle: u64, request: *const u8, request_len: usize) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let request = unsafe { memory::borrow("query", request, request_len)? };
        Ok(Answer::value(registry::query(handle, decode("query", request)?)?))
    })
}

/// Answers with the next page of a query in `data`; no bytes: the answer is complete. For each entry, little-endian:
///
///     u32 bytes of the key
///     u64 bytes of the value; 0 where the query asked for keys only
///     u64 size of the stored value
///     u64 when the key expires, in milliseconds since the Unix epoch; 0: never
///     the key, then the value
#[unsafe(no_mangle)]
pub extern "C" fn basalt_query_next(cursor: u64) -> Outcome {
    answer(|| Ok(Answer::data(registry::pages(cursor)?.next()?)))
}

/// Ends a query, whether it is complete or not.
#[unsafe(no_mangle)]
pub extern "C" fn basalt_query_close(cursor: u64) -> Outcome {
    answer(|| registry::close_query(cursor).map(|()| Answer::done()))
}

/// Returns when everything under `prefix` that was put or deleted before is on stable storage.
///
/// # Safety
/// As this module says, for `prefix`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_sync(handle: u64, prefix: *const u8, prefix_len: usize) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let prefix = unsafe { memory::borrow("prefix", prefix, prefix_len)? };
        let prefix = Key::new(flat::text(prefix)?)?;
        registry::hosted(handle)?.datastore().submit_sync(&prefix)?.wait()?;
        Ok(Answer::done())
    })
}

/// Answers with the node's live bytes in `value`: exact, without a walk.
#[unsafe(no_mangle)]
pub extern "C" fn basalt_disk_usage(handle: u64) -> Outcome {
    answer(|| Ok(Answer::value(registry::hosted(handle)?.datastore().disk_usage())))
}

/// Looks whether every store is open, unfenced and answers.
#[unsafe(no_mangle)]
pub extern "C" fn basalt_check(handle: u64) -> Outcome {
    answer(|| {
        registry::hosted(handle)?.datastore().check()?;
        Ok(Answer::done())
    })
}

/// Reads everything back against its checksums; as long as that takes.
#[unsafe(no_mangle)]
pub extern "C" fn basalt_scrub(handle: u64) -> Outcome {
    answer(|| {
        registry::hosted(handle)?.datastore().scrub()?;
        Ok(Answer::done())
    })
}

/// Gives back the space of what was deleted.
#[unsafe(no_mangle)]
pub extern "C" fn basalt_collect_garbage(handle: u64) -> Outcome {
    answer(|| {
        registry::hosted(handle)?.datastore().collect_garbage()?;
        Ok(Answer::done())
    })
}

/// Lets a key that is there expire when `ttl_ms` have passed from now; BASALT_KIND_UNSUPPORTED for a block.
///
/// # Safety
/// As this module says, for `key`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_set_ttl(handle: u64, key: *const u8, key_len: usize, ttl_ms: u64) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let key = unsafe { parse(key, key_len)? };
        registry::hosted(handle)?.datastore().submit_set_ttl(&key, ttl_ms)?.wait()?;
        Ok(Answer::done())
    })
}

/// Answers in `value` with when a key expires, in milliseconds since the Unix epoch; 0: never.
///
/// # Safety
/// As this module says, for `key`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_expiration(handle: u64, key: *const u8, key_len: usize) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let key = unsafe { parse(key, key_len)? };
        Ok(Answer::value(registry::hosted(handle)?.datastore().expiration(&key)?.unwrap_or(0)))
    })
}

/// Panics with a message, for tests of what becomes of a panic: BASALT_KIND_PANICKED.
///
/// # Safety
/// As this module says, for `message`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn basalt_test_panic(message: *const u8, message_len: usize) -> Outcome {
    answer(|| {
        // SAFETY: the caller's promise, see the module's page.
        let message = unsafe { memory::borrow("message", message, message_len)? };
        panic!("{}", flat::text(message)?)
    })
}

/// The key of a call.
///
/// # Safety
/// As [`memory::borrow`] asks for, for the length of this call: the key is a copy.
unsafe fn parse(key: *const u8, key_len: usize) -> Result<Key> {
    // SAFETY: this function's own contract.
    let key = unsafe { memory::borrow("key", key, key_len)? };
    Ok(parse_key(flat::text(key)?)?)
}

fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M> {
    M::decode(bytes)
        .map_err(|err| Failure::new(Kind::InvalidValue, format!("the {what} is no protobuf message: {err}")))
}
