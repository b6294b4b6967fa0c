//! Memory that crosses the boundary: the caller's is borrowed for one call, ours is given away and comes back by `basalt_free`.

use std::{ptr, slice};

use crate::outcome::{Failure, Kind, Result};

/// The caller's bytes, for the length of a call.
///
/// # Safety
/// `data` points to `len` bytes that are readable and not written to by anybody during `'a`; with `len` 0 it may be anything.
pub(crate) unsafe fn borrow<'a>(what: &str, data: *const u8, len: usize) -> Result<&'a [u8]> {
    check(what, data, len)?;
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: not NULL and not longer than a slice may be, both just checked; bytes need no alignment; the rest is this function's contract.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// The caller's buffer, for the length of a call.
///
/// # Safety
/// `data` points to `len` initialised bytes that nobody else reads or writes during `'a`; with `len` 0 it may be anything.
pub(crate) unsafe fn borrow_mut<'a>(what: &str, data: *mut u8, len: usize) -> Result<&'a mut [u8]> {
    check(what, data, len)?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as above, and nobody else uses them, by this function's contract.
    Ok(unsafe { slice::from_raw_parts_mut(data, len) })
}

fn check(what: &str, data: *const u8, len: usize) -> Result<()> {
    if len > 0 && data.is_null() {
        return Err(Failure::new(Kind::InvalidValue, format!("the {what} has {len} bytes at NULL")));
    }
    if len > isize::MAX as usize {
        return Err(Failure::new(Kind::InvalidValue, format!("the {what} can't have {len} bytes")));
    }
    Ok(())
}

/// Gives bytes to the caller.
pub(crate) fn give(data: Vec<u8>) -> (*mut u8, usize) {
    if data.is_empty() {
        return (ptr::null_mut(), 0);
    }
    let data = Box::leak(data.into_boxed_slice());
    (data.as_mut_ptr(), data.len())
}

/// Takes bytes back.
///
/// # Safety
/// `data` and `len` are what [`give`] returned, not taken back before, and no longer in use.
pub(crate) unsafe fn take(data: *mut u8, len: usize) {
    if data.is_null() {
        return;
    }
    // SAFETY: they were made by leaking a box of a slice of this very address and length, and come back once, by this function's contract.
    drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(data, len)) });
}
