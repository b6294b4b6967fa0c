//! Outcomes of writes: waited for, or called back.
//!
//! A completion is made with the write and completed once, by whoever learns the outcome. Completing runs callbacks, so it is never
//! done under a lock of the store.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::core::Core;
use crate::{
    error::{Error, Result},
    sync::{Condvar, Mutex},
};

const WRITTEN: u8 = 1;
const DURABLE: u8 = 2;
const LOST: u8 = 3;

type Callback = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Default)]
pub(super) struct Completion {
    /// Whether it waits for stable storage, and not only for the write.
    pub(super) durable: bool,
    stage: AtomicU8,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    outcome: Option<Result<()>>,
    callbacks: Vec<Callback>,
    waiting: bool,
    /// Asks the thread that waits to lead the next flush.
    lead: bool,
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Completion({:?})", self.state.lock().outcome)
    }
}

impl Completion {
    pub(super) fn new(durable: bool) -> Arc<Completion> {
        Arc::new(Completion { durable, ..Completion::default() })
    }

    /// The write and all below it in the log are written.
    pub(super) fn set_written(&self) {
        self.stage.fetch_max(WRITTEN, Ordering::AcqRel);
    }

    /// The write is on stable storage.
    pub(super) fn set_durable(&self) {
        self.stage.store(DURABLE, Ordering::Release);
    }

    /// The disk failed after the write: whether it is durable is not known.
    pub(super) fn set_lost(&self) {
        self.stage.store(LOST, Ordering::Release);
    }

    pub(super) fn is_written(&self) -> bool {
        matches!(self.stage.load(Ordering::Acquire), WRITTEN | DURABLE)
    }

    pub(super) fn is_durable(&self) -> bool {
        self.stage.load(Ordering::Acquire) == DURABLE
    }

    pub(super) fn is_lost(&self) -> bool {
        self.stage.load(Ordering::Acquire) == LOST
    }

    pub(super) fn complete(&self, outcome: Result<()>) {
        let mut state = self.state.lock();
        if state.outcome.is_some() {
            return;
        }
        state.outcome = Some(outcome.clone());
        let callbacks = std::mem::take(&mut state.callbacks);
        if state.waiting {
            self.done.notify_all();
        }
        drop(state);
        for callback in callbacks {
            callback(outcome.clone());
        }
    }

    pub(super) fn outcome(&self) -> Option<Result<()>> {
        self.state.lock().outcome.clone()
    }

    /// Wakes a thread that waits here so that it leads the next flush; `false` where none does.
    pub(super) fn ask_to_lead(&self) -> bool {
        let mut state = self.state.lock();
        if !state.waiting || state.outcome.is_some() {
            return false;
        }
        state.lead = true;
        self.done.notify_all();
        true
    }

    /// Waits until the outcome is known, or the thread is asked to lead (`None`), or the time is over (`None`).
    fn wait_for(&self, time: Duration) -> Option<Result<()>> {
        let mut state = self.state.lock();
        if state.outcome.is_none() && !state.lead {
            state.waiting = true;
            state = self.done.wait_for(state, time);
        }
        state.lead = false;
        state.outcome.clone()
    }

    /// Registers before the first look, so that no request to lead is missed.
    fn register(&self) {
        self.state.lock().waiting = true;
    }

    fn then(&self, callback: Callback) {
        let mut state = self.state.lock();
        match state.outcome.clone() {
            None => state.callbacks.push(callback),
            Some(outcome) => {
                drop(state);
                callback(outcome);
            }
        }
    }
}

/// A write under way. Dropping it does not undo the write.
#[must_use = "a write that nobody waits for may fail unnoticed"]
pub struct Ticket(Inner);

enum Inner {
    Ready(Result<()>),
    /// Something outside a log completes it.
    Pending(Arc<Completion>),
    /// A log completes it; a waiter may lead that log's flush.
    Log(Arc<Completion>, Weak<Core>),
    All(Vec<Ticket>),
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Ready(outcome) => write!(f, "Ticket({outcome:?})"),
            Inner::Pending(completion) | Inner::Log(completion, _) => write!(f, "Ticket({completion:?})"),
            Inner::All(tickets) => f.debug_list().entries(tickets).finish(),
        }
    }
}

/// Completes a [`Ticket::pending`]. Dropping it uncompleted fails the ticket.
#[derive(Debug)]
pub struct Completer(Arc<Completion>);

impl Completer {
    /// Says how it went; from any thread.
    pub fn complete(self, outcome: Result<()>) {
        self.0.complete(outcome);
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        self.0.complete(Err(Error::new(
            crate::ErrorKind::Unavailable,
            "the operation was dropped before its outcome was known: try it again",
        )));
    }
}

impl Ticket {
    /// A ticket whose outcome is known already.
    pub fn ready(outcome: Result<()>) -> Ticket {
        Ticket(Inner::Ready(outcome))
    }

    /// A ticket that the other half completes.
    pub fn pending() -> (Ticket, Completer) {
        let completion = Arc::new(Completion::default());
        (Ticket(Inner::Pending(completion.clone())), Completer(completion))
    }

    /// One ticket for many: done when all are, failed with the first failure in order.
    pub fn all(mut tickets: Vec<Ticket>) -> Ticket {
        match tickets.len() {
            1 => tickets.swap_remove(0),
            _ => Ticket(Inner::All(tickets)),
        }
    }

    pub(super) fn log(completion: Arc<Completion>, core: &Arc<Core>) -> Ticket {
        match completion.outcome() {
            Some(outcome) => Ticket::ready(outcome),
            None => Ticket(Inner::Log(completion, Arc::downgrade(core))),
        }
    }

    /// Waits for what the durability class promises; the caller may lead the flush itself. In process callers use this.
    pub fn wait(self) -> Result<()> {
        self.wait_as(Flush::Leads)
    }

    /// [`Ticket::wait`] for a thread that others wait for: the stores' own threads flush, so this returns at the deadline even where a disk never does
    /// (STORE 14).
    pub fn wait_behind(self) -> Result<()> {
        self.wait_as(Flush::Asks)
    }

    fn wait_as(self, flush: Flush) -> Result<()> {
        match self.0 {
            Inner::Ready(outcome) => outcome,
            Inner::Pending(completion) => {
                completion.register();
                loop {
                    if let Some(outcome) = completion.wait_for(Duration::from_secs(1)) {
                        return outcome;
                    }
                }
            }
            Inner::Log(completion, core) => wait_on_log(&completion, &core, flush),
            Inner::All(tickets) => {
                // Every log is asked to flush before the first is waited for, so that they flush side by side.
                for ticket in &tickets {
                    if let Inner::Log(completion, core) = &ticket.0
                        && completion.durable
                        && let Some(core) = core.upgrade()
                    {
                        core.kick_flush();
                    }
                }
                let mut first = Ok(());
                for ticket in tickets {
                    let outcome = ticket.wait_as(flush);
                    if first.is_ok() {
                        first = outcome;
                    }
                }
                first
            }
        }
    }

    /// Calls `done` once, from whichever thread learns the outcome (this one, if it is known already). No thread waits meanwhile.
    pub fn then(self, done: impl FnOnce(Result<()>) + Send + 'static) {
        self.then_boxed(Box::new(done));
    }

    fn then_boxed(self, done: Callback) {
        match self.0 {
            Inner::Ready(outcome) => done(outcome),
            Inner::Pending(completion) => completion.then(done),
            Inner::Log(completion, core) => {
                let durable = completion.durable;
                completion.then(done);
                if durable && let Some(core) = core.upgrade() {
                    core.kick_flush();
                }
            }
            Inner::All(tickets) if tickets.is_empty() => done(Ok(())),
            Inner::All(tickets) => {
                let all = Arc::new(AllOf {
                    left: AtomicUsize::new(tickets.len()),
                    outcomes: Mutex::new(vec![Ok(()); tickets.len()]),
                    done: Mutex::new(Some(done)),
                });
                for (i, ticket) in tickets.into_iter().enumerate() {
                    let all = all.clone();
                    ticket.then_boxed(Box::new(move |outcome| all.complete(i, outcome)));
                }
            }
        }
    }
}

struct AllOf {
    left: AtomicUsize,
    outcomes: Mutex<Vec<Result<()>>>,
    done: Mutex<Option<Callback>>,
}

impl AllOf {
    fn complete(&self, i: usize, outcome: Result<()>) {
        self.outcomes.lock()[i] = outcome;
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let outcomes = std::mem::take(&mut *self.outcomes.lock());
            let done = self.done.lock().take();
            if let Some(done) = done {
                done(outcomes.into_iter().collect());
            }
        }
    }
}

/// What a thread does for the flush that it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// Flushes itself, where nobody is at it.
    Leads,
    /// Asks the store's own thread.
    Asks,
}

fn wait_on_log(completion: &Arc<Completion>, core: &Weak<Core>, flush: Flush) -> Result<()> {
    completion.register();
    let Some(core) = core.upgrade() else {
        return completion.outcome().unwrap_or_else(|| {
            Err(Error::new(
                crate::ErrorKind::Closed,
                "the store was closed before the outcome was known: open it again",
            ))
        });
    };
    let deadline_ns = core.clock().monotonic_ns() + core.flush_deadline().as_nanos() as u64;
    loop {
        if let Some(outcome) = completion.outcome() {
            return outcome;
        }
        if completion.durable {
            match flush {
                Flush::Leads => core.lead_flush(),
                Flush::Asks => core.kick_flush(),
            }
        }
        if let Some(outcome) = completion.wait_for(Duration::from_millis(500)) {
            return outcome;
        }
        if core.clock().monotonic_ns() > deadline_ns {
            core.fence_stuck("the log");
            if let Some(err) = core.log.lock().fenced.clone() {
                completion.set_lost();
                completion.complete(Err(err));
            }
        }
    }
}
