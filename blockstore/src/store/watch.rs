//! What happens when the disk does not answer (STORE 14): a suspended pool keeps fdatasync for ever, and says nothing.
//!
//! Nobody can be called back out of the kernel. But whoever waits for such a call has a deadline: then the store is fenced, they are told that the outcome is
//! unknown, and while the call is still out reads are refused too, because a read of that disk would hang with it, and with it the thread that serves
//! everybody. The host looks ([`super::Store::watch`]) from a thread that never touches the disk.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::{
    commit::{complete, names},
    core::{Active, Core, Group, Log},
};
use crate::error::{Error, ErrorKind, Result};

/// So many looks in a row must find a call overdue: after a pause of the whole process the first finds all calls so, and then they return.
const LOOKS: u32 = 3;

/// What the watch knows.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// When the index was asked for what it has not answered, by the monotonic clock, plus one; 0 for nothing.
    indexing_since_ns: AtomicU64,
    /// Looks in a row that found a call out for longer than the deadline.
    looks: AtomicU32,
    /// A call has been out for longer than the deadline, and still is.
    stuck: AtomicBool,
}

impl Core {
    /// Looks at the calls that are out, and fences the store where one is overdue. Never waits for the disk.
    pub(super) fn watch(&self) {
        let now = self.env.clock.monotonic_ns();
        let deadline_ns = u64::try_from(self.options.flush_deadline.as_nanos()).unwrap_or(u64::MAX);
        let is_overdue = |since: &u64| now.saturating_sub(*since) > deadline_ns;
        let indexing = self.watched.indexing_since_ns.load(Ordering::Acquire).checked_sub(1).filter(is_overdue);
        let what = match (indexing, self.log.lock().out_since_ns().filter(is_overdue)) {
            (_, Some(_)) => Some("the log"),
            (Some(_), None) => Some("the index"),
            (None, None) => None,
        };
        let looks = match what {
            Some(_) => self.watched.looks.fetch_add(1, Ordering::Relaxed).saturating_add(1),
            None => 0,
        };
        self.watched.looks.store(looks, Ordering::Relaxed);
        let what = what.filter(|_| looks >= LOOKS);
        if let Some(what) = what
            && !self.watched.stuck.load(Ordering::Acquire)
        {
            self.fence_stuck(what);
        }
        self.watched.stuck.store(what.is_some(), Ordering::Release);
    }

    /// Tells the watch that the index is asked for something, until what this returns is dropped.
    pub(super) fn watch_index(&self) -> impl Drop + '_ {
        struct Answered<'a>(&'a AtomicU64);
        impl Drop for Answered<'_> {
            fn drop(&mut self) {
                self.0.store(0, Ordering::Release);
            }
        }
        let since = &self.watched.indexing_since_ns;
        since.store(self.env.clock.monotonic_ns() + 1, Ordering::Release);
        Answered(since)
    }

    /// Refuses where the disk is known not to answer at this moment.
    pub(super) fn check_answers(&self) -> Result<()> {
        if self.watched.stuck.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("the disk under {} does not answer: look at the disk or pool", self.dir.display()),
            ));
        }
        Ok(())
    }

    /// A call has not returned in time: waiters get `Unavailable`, the store takes no more writes.
    pub(super) fn fence_stuck(&self, what: &str) {
        let mut log = self.log.lock();
        if log.fenced.is_none() {
            let groups: Vec<Group> = log.queue.drain(..).collect();
            let err = Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the disk under {} has not answered {what} in {} s; outcome unknown for {}: look at the disk or pool, then open the \
                     store again",
                    self.dir.display(),
                    self.options.flush_deadline.as_secs(),
                    names(&groups)
                ),
            );
            self.fence_with(&mut log, err, groups);
        }
        let mut done = log.pop_durable();
        if let Some(err) = log.fenced.clone() {
            for completion in log.evacuating.drain(..) {
                completion.set_lost();
                done.push((completion, Err(err.clone())));
            }
        }
        drop(log);
        self.changed.notify_all();
        complete(done);
    }
}

impl Log {
    /// Since when the call that has been out longest is, by the monotonic clock; `None` where none is.
    fn out_since_ns(&self) -> Option<u64> {
        let write = self.active.as_ref().and_then(Active::writing_since_ns);
        let flush = self.flushing.then_some(self.flushing_since_ns);
        let roll = self.rolling.then_some(self.rolling_since_ns);
        [write, flush, roll].into_iter().flatten().min()
    }

    pub(super) fn begin_flush(&mut self, now_ns: u64) {
        self.flushing = true;
        self.flushing_since_ns = now_ns;
    }

    pub(super) fn begin_roll(&mut self, now_ns: u64) {
        self.rolling = true;
        self.rolling_since_ns = now_ns;
    }
}

impl Active {
    /// Since when the lowest write that is under way is.
    fn writing_since_ns(&self) -> Option<u64> {
        self.in_flight.first_key_value().map(|(_, since)| *since)
    }
}
