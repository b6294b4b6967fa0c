//! Turns on a pool: what looks and then acts takes its turn, so that nobody acts between the look and the act.
//!
//! One thread for each pool, made when first needed. A pool that stands still keeps its own turns waiting and nobody else's.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use crate::{Class, Error, Operation, Pool, Result, Zfs};

type Job = Box<dyn FnOnce(&dyn Zfs) + Send>;

/// How many turns may wait on a pool.
pub const WAITING_MAX: usize = 1024;

/// Runs what isn't atomic by itself, one at a time on each pool, in the order of the calls. Dropping it lets what waits run to its end.
pub struct Turns {
    zfs: Arc<dyn Zfs>,
    pools: Mutex<BTreeMap<Pool, mpsc::SyncSender<Job>>>,
}

/// A turn that was taken: its result, when it is there.
pub struct Turn<T> {
    pool: Pool,
    result: Receiver<T>,
}

impl<T> Turn<T> {
    /// Waits for its result. [`Class::Stuck`] when it isn't there in time: it may still be waiting or under way, and will still be done.
    pub fn wait(&self, limit: Duration) -> Result<T> {
        self.result.recv_timeout(limit).map_err(|e| match e {
            RecvTimeoutError::Timeout => Error::new(
                Operation::Queue,
                &self.pool,
                Class::Stuck,
                format!("its turn did not end within {} s; it is not taken back", limit.as_secs()),
            ),
            RecvTimeoutError::Disconnected => {
                Error::new(Operation::Queue, &self.pool, Class::Unknown, "what was to be done panicked")
            }
        })
    }
}

impl Turns {
    /// Turns on the pools of `zfs`.
    pub fn new(zfs: Arc<dyn Zfs>) -> Turns {
        Turns { zfs, pools: Mutex::new(BTreeMap::new()) }
    }

    /// The engine, for what is atomic or only looks: that needs no turn.
    pub fn zfs(&self) -> &dyn Zfs {
        &*self.zfs
    }

    /// Takes a turn on a pool. It is done even if nobody waits for it. A turn must not take another one on the same pool and wait for it.
    pub fn take<T: Send + 'static>(
        &self,
        pool: &Pool,
        what: impl FnOnce(&dyn Zfs) -> T + Send + 'static,
    ) -> Result<Turn<T>> {
        let (tell, result): (Sender<T>, Receiver<T>) = mpsc::channel();
        let job: Job = Box::new(move |zfs| {
            let _nobody_waits = tell.send(what(zfs));
        });
        let refuse = |class, why: String| Error::new(Operation::Queue, pool, class, why);
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = match pools.get(pool) {
            Some(queue) => queue.clone(),
            None => {
                let queue = start(self.zfs.clone(), pool).map_err(|e| refuse(Class::Io, e.to_string()))?;
                pools.insert(pool.clone(), queue.clone());
                queue
            }
        };
        queue.try_send(job).map_err(|_| refuse(Class::Fenced, format!("{WAITING_MAX} turns wait already")))?;
        Ok(Turn { pool: pool.clone(), result })
    }
}

fn start(zfs: Arc<dyn Zfs>, pool: &Pool) -> std::io::Result<mpsc::SyncSender<Job>> {
    let (queue, jobs) = mpsc::sync_channel::<Job>(WAITING_MAX);
    thread::Builder::new().name(format!("zfs-{pool}")).spawn(move || {
        for job in jobs {
            // A panic in one turn must not end those of all others; who waits for it learns of it by the channel that it drops.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&*zfs))).is_err() {
                tracing::error!("a turn on a pool panicked");
            }
        }
    })?;
    Ok(queue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    const PATIENT: Duration = Duration::from_secs(60);

    fn turns() -> (Turns, Pool) {
        let model = Model::new(1);
        let pool: Pool = "tank".parse().unwrap();
        model.add_pool(&pool, 1 << 30);
        (Turns::new(Arc::new(model)), pool)
    }

    #[test]
    fn looking_and_acting_is_one_step_for_all_who_take_turns() {
        let (turns, pool) = turns();
        let turns = Arc::new(turns);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (turns, pool) = (turns.clone(), pool.clone());
                thread::spawn(move || {
                    let turn = turns.take(&pool, |zfs| {
                        let root: crate::Dataset = "tank".parse().unwrap();
                        let next = zfs.snapshots(&root).unwrap().len();
                        thread::yield_now();
                        zfs.snapshot(&[root.snapshot(&next.to_string()).unwrap()], &[])
                    });
                    turn.unwrap().wait(PATIENT).unwrap().unwrap();
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(turns.zfs().snapshots(&pool.root()).unwrap().len(), 8);
    }

    #[test]
    fn a_turn_that_panics_is_told_and_the_next_one_runs() {
        let (turns, pool) = turns();
        let broken = turns.take(&pool, |_| -> u32 { panic!("as it must in this test") }).unwrap();
        assert_eq!(broken.wait(PATIENT).unwrap_err().class(), Class::Unknown);
        assert_eq!(turns.take(&pool, |_| 7).unwrap().wait(PATIENT).unwrap(), 7);
    }

    #[test]
    fn a_pool_that_stands_still_keeps_only_its_own_turns_waiting() {
        let (turns, pool) = turns();
        let (go, wait) = mpsc::channel::<()>();
        let stuck = turns.take(&pool, move |_| wait.recv().is_ok()).unwrap();
        let behind = turns.take(&pool, |_| 1).unwrap();
        assert_eq!(behind.wait(Duration::from_millis(20)).unwrap_err().class(), Class::Stuck);
        assert_eq!(turns.take(&"other".parse().unwrap(), |_| 2).unwrap().wait(PATIENT).unwrap(), 2);
        go.send(()).unwrap();
        assert!(stuck.wait(PATIENT).unwrap());
        assert_eq!(behind.wait(PATIENT).unwrap(), 1, "it is not taken back");
    }
}
