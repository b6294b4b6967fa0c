//! Where a test may end the process: `BASALT_FAILPOINT=NAME` or `NAME:N` aborts it when that point is reached for the N-th time. Release builds
//! have none of it.

/// The points, in the order in which a piece of work comes by them.
pub const POINTS: &[&str] = &[
    "worker.received",
    "worker.looked",
    "worker.changed",
    "worker.journaled",
    "worker.told",
    "worker.reported",
    "worker.settled",
    "worker.acknowledged",
];

/// A point is reached.
#[cfg(debug_assertions)]
pub fn reached(point: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static TIMES: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("BASALT_FAILPOINT").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), times.parse().unwrap_or(1)))
    });
    if let Some((name, times)) = wanted
        && name == point
        && TIMES.fetch_add(1, Ordering::SeqCst) + 1 == *times
    {
        // As kill -9 does it: nothing is flushed, nothing is closed.
        tracing::error!(point, "the failpoint ends this process");
        std::process::abort();
    }
}

/// A point is reached.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reached(_point: &str) {}
