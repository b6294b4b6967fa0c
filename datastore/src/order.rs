//! Which write waits for what, across the stores of a node (STORE 11 to 13).
//!
//! Two things wait: in `ordered`, a change of metadata for the blocks acknowledged before it (the barrier); in `relaxed`, the tombstone of
//! a block for the metadata changed before it. A caller that waits anyway does both on its own thread. For callers that must not be held, one
//! thread ([`Later`]) takes all that has come up meanwhile, waits once for all of it, and goes on.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use basalt_blockstore::{
    Error, Result,
    sync::{Condvar, Mutex, MutexGuard, thread},
};
use basalt_sharding::ShardSet;

use crate::Stores;

/// Makes all blocks acknowledged before the call durable, with one flush of the dirty shards for all callers that wait at the time.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug)]
struct Rounds {
    /// Rounds that have begun, and of those the ones that have ended: the same, or one less.
    begun: u64,
    ended: u64,
    /// Callers that wait for a round of another.
    waiting: usize,
    /// What the last round that ended said.
    outcome: Result<()>,
}

impl Default for Rounds {
    fn default() -> Rounds {
        Rounds { begun: 0, ended: 0, waiting: 0, outcome: Ok(()) }
    }
}

impl Barrier {
    /// Waits for a round that begins after this call; leads it, if nobody does.
    pub(crate) fn pass(&self, shards: &ShardSet) -> Result<()> {
        if shards.is_dirty() { self.next_round(|| shards.submit_sync()?.wait_behind()) } else { Ok(()) }
    }

    fn next_round(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut rounds = self.lock();
        // One that is under way may have begun before the caller's blocks were written.
        let awaited = rounds.begun + 1;
        loop {
            if rounds.ended >= awaited {
                // Where a later round has ended too, its word holds as well: a flush covers all before it.
                return rounds.outcome.clone();
            }
            if rounds.begun == rounds.ended {
                rounds.begun += 1;
                drop(rounds);
                let outcome = flush();
                rounds = self.lock();
                rounds.ended = rounds.begun;
                rounds.outcome = outcome.clone();
                self.ended.notify_all();
                return outcome;
            } else {
                rounds.waiting += 1;
                rounds = self.ended.wait(rounds);
                rounds.waiting -= 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock()
    }
}

/// What a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// All blocks acknowledged so far are durable.
    Blocks,
    /// All metadata changed so far is durable.
    Metadata,
}

type Run = Box<dyn FnOnce(&Stores, Result<()>) + Send>;

/// What runs once its need is met, or has failed.
pub(crate) struct Job {
    pub(crate) need: Need,
    /// Bytes that it holds meanwhile.
    pub(crate) bytes: usize,
    pub(crate) run: Run,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({:?}, {} bytes)", self.need, self.bytes)
    }
}

/// The thread that runs jobs, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Later {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Jobs that have come and not yet run.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: Vec<Job>,
    bytes: usize,
    stopped: bool,
}

impl Later {
    pub(crate) fn start(stores: Arc<Stores>) -> Result<Later> {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("basalt-order".into())
            .spawn(move || of_thread.run(&stores))
            .map_err(|err| Error::io("start the thread that orders metadata behind blocks", err))?;
        Ok(Later { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Whether nothing waits, so that a change whose need is met may go at once and overtakes none.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.waiting.load(Ordering::SeqCst) == 0
    }

    /// Takes a job, unless more than `bytes_max` wait already or the thread has stopped: then the caller has it back, and waits itself.
    pub(crate) fn push(&self, job: Job, bytes_max: usize) -> std::result::Result<(), Job> {
        let mut queue = self.shared.lock();
        if queue.stopped || queue.bytes.saturating_add(job.bytes) > bytes_max {
            return Err(job);
        }
        queue.bytes += job.bytes;
        queue.jobs.push(job);
        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
        drop(queue);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Runs what waits, takes no more, and returns when the thread has ended.
    pub(crate) fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_one();
        let thread = self.thread.lock().take();
        // The thread itself comes here where a callback that it runs lets go of the datastore: then it ends by itself.
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the thread that orders metadata behind blocks has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    fn run(&self, stores: &Stores) {
        loop {
            let mut queue = self.lock();
            while queue.jobs.is_empty() {
                if queue.stopped {
                    return;
                }
                queue = self.changed.wait(queue);
            }
            let jobs = std::mem::take(&mut queue.jobs);
            queue.bytes = 0;
            drop(queue);
            let needs = |need| jobs.iter().any(|job| job.need == need);
            let blocks = if needs(Need::Blocks) { stores.barrier.pass(&stores.shards) } else { Ok(()) };
            let metadata = if needs(Need::Metadata) { stores.keyspace.flush_behind() } else { Ok(()) };
            for job in jobs {
                (job.run)(stores, if job.need == Need::Blocks { blocks.clone() } else { metadata.clone() });
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        thread,
        time::{Duration, Instant},
    };

    use basalt_blockstore::{Error, ErrorKind};

    use super::Barrier;

    /// Starts a leader whose flush lasts until the gate is opened; returns when that flush has begun.
    fn hold_round(barrier: &Arc<Barrier>) -> (mpsc::Sender<()>, thread::JoinHandle<()>) {
        let (begun, has_begun) = mpsc::channel();
        let (open_gate, gate) = mpsc::channel();
        let barrier = barrier.clone();
        let leader = thread::spawn(move || {
            let flush = || {
                begun.send(()).unwrap();
                gate.recv().unwrap();
                Ok(())
            };
            barrier.next_round(flush).unwrap();
        });
        has_begun.recv().unwrap();
        (open_gate, leader)
    }

    #[test]
    fn one_flush_serves_all_that_wait_and_none_is_served_by_one_that_began_before_it() {
        let barrier = Arc::new(Barrier::default());
        let (open_gate, leader) = hold_round(&barrier);
        let flushes = Arc::new(AtomicUsize::new(0));
        let waiters: Vec<_> = (0..8)
            .map(|_| {
                let (barrier, flushes) = (barrier.clone(), flushes.clone());
                thread::spawn(move || {
                    barrier.next_round(|| {
                        flushes.fetch_add(1, Ordering::SeqCst);
                        Ok(())
                    })
                })
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        while barrier.lock().waiting < 8 {
            assert!(Instant::now() < deadline, "not all came to wait");
            thread::yield_now();
        }
        // Nobody can have flushed or returned while the first round lasts.
        assert_eq!(flushes.load(Ordering::SeqCst), 0);
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
        open_gate.send(()).unwrap();
        leader.join().unwrap();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
        assert_eq!(flushes.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_flush_that_fails_is_told_to_all_that_waited_for_it_and_not_to_later_ones() {
        let barrier = Barrier::default();
        let failing = || Err(Error::new(ErrorKind::Unavailable, "fenced"));
        assert_eq!(barrier.next_round(failing).unwrap_err().kind(), ErrorKind::Unavailable);
        barrier.next_round(|| Ok(())).unwrap();
    }
}
