//! What waits for its turn at the worker: bounded, by priority, with limits for each owner, and never two of one multihash at a time.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use basalt_stateplane::{Multihash, Owner};

use crate::message::Priority;

/// How much earlier a high one counts as come, and how much later a low one. So none waits for ever.
const HEAD_START_MS: u64 = 600_000;

/// Bounds of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Under way at a time.
    pub running_max: usize,
    /// Under way at a time of one owner.
    pub owner_running_max: usize,
    /// Waiting and under way.
    pub window: usize,
    /// Waiting and under way of one owner, so that there is room for the others.
    pub owner_window: usize,
}

/// Whose a piece of work is, what it is about and how much it hurries.
pub trait Queued {
    /// What it is about.
    fn multihash(&self) -> &Multihash;
    /// Whose it is.
    fn owner(&self) -> &Owner;
    /// How much it hurries.
    fn priority(&self) -> Priority;
}

#[derive(Clone, Copy, Debug, Default)]
struct Of {
    waiting: usize,
    running: usize,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<J> {
    limits: Limits,
    /// By the time at which they count as come, then in the order in which they came.
    waiting: BTreeMap<(u64, u64), J>,
    running: HashSet<Multihash>,
    owners: HashMap<Owner, Of>,
    next: u64,
}

impl<J: Queued> Queue<J> {
    /// An empty one.
    pub fn new(limits: Limits) -> Queue<J> {
        Queue { limits, waiting: BTreeMap::new(), running: HashSet::new(), owners: HashMap::new(), next: 0 }
    }

    /// Takes work in, at a time in milliseconds of any clock that goes on; what there is no room for comes back.
    pub fn push(&mut self, job: J, now_ms: u64) -> Result<(), J> {
        let of = self.owners.get(job.owner()).copied().unwrap_or_default();
        if self.len() >= self.limits.window || of.waiting + of.running >= self.limits.owner_window {
            return Err(job);
        }
        let counts_as = match job.priority() {
            Priority::High => now_ms,
            Priority::Normal => now_ms.saturating_add(HEAD_START_MS),
            Priority::Low => now_ms.saturating_add(2 * HEAD_START_MS),
        };
        self.owners.entry(job.owner().clone()).or_default().waiting += 1;
        self.waiting.insert((counts_as, self.next), job);
        self.next += 1;
        Ok(())
    }

    /// The next piece of work that may begin.
    pub fn pop(&mut self) -> Option<J> {
        if self.running.len() >= self.limits.running_max {
            return None;
        }
        let may = |job: &J| {
            let running = self.owners.get(job.owner()).map_or(0, |of| of.running);
            running < self.limits.owner_running_max && !self.running.contains(job.multihash())
        };
        let key = *self.waiting.iter().find(|(_, job)| may(job))?.0;
        let job = self.waiting.remove(&key)?;
        let of = self.owners.entry(job.owner().clone()).or_default();
        of.waiting = of.waiting.saturating_sub(1);
        of.running += 1;
        self.running.insert(job.multihash().clone());
        Some(job)
    }

    /// Notes that work which [`Queue::pop`] gave is over.
    pub fn done(&mut self, multihash: &Multihash, owner: &Owner) {
        self.running.remove(multihash);
        if let Some(of) = self.owners.get_mut(owner) {
            of.running = of.running.saturating_sub(1);
            if of.waiting + of.running == 0 {
                self.owners.remove(owner);
            }
        }
    }

    /// All that waits, which waits no more.
    pub fn drain(&mut self) -> Vec<J> {
        let waiting = std::mem::take(&mut self.waiting);
        self.owners.retain(|_, of| {
            of.waiting = 0;
            of.running > 0
        });
        waiting.into_values().collect()
    }

    /// Waiting and under way.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many more there is room for.
    pub fn room(&self) -> usize {
        self.limits.window.saturating_sub(self.len())
    }

    /// Under way.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether a piece of work about this is waiting or under way.
    pub fn has(&self, multihash: &Multihash) -> bool {
        self.running.contains(multihash) || self.waiting.values().any(|job| job.multihash() == multihash)
    }
}

/// Pause of a message whose owner has its share of the window; it grows with each delivery, as often as this.
pub const SHARE_TAKEN_PAUSE: Duration = Duration::from_secs(5);
/// See [`SHARE_TAKEN_PAUSE`].
pub const SHARE_TAKEN_MAX: u32 = 24;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Work(Multihash, Owner, Priority);

    impl Queued for Work {
        fn multihash(&self) -> &Multihash {
            &self.0
        }
        fn owner(&self) -> &Owner {
            &self.1
        }
        fn priority(&self) -> Priority {
            self.2
        }
    }

    fn work(number: u8, owner: &str, priority: Priority) -> Work {
        let multihash = Multihash::from_bytes(&[&[0x12, 0x20][..], &[number; 32]].concat()).unwrap();
        Work(multihash, owner.parse().unwrap(), priority)
    }

    const LIMITS: Limits = Limits { running_max: 3, owner_running_max: 2, window: 8, owner_window: 6 };

    #[test]
    fn high_comes_first_and_low_comes_after_ten_minutes_all_the_same() {
        let mut queue = Queue::new(LIMITS);
        queue.push(work(1, "a", Priority::Low), 0).unwrap();
        queue.push(work(2, "b", Priority::Normal), 1).unwrap();
        queue.push(work(3, "c", Priority::High), 2).unwrap();
        queue.push(work(4, "d", Priority::High), 2 * HEAD_START_MS + 1).unwrap();
        let mut order = Vec::new();
        while let Some(next) = queue.pop() {
            queue.done(&next.0, &next.1);
            order.push(next.0.as_bytes()[2]);
        }
        assert_eq!(order, [3, 2, 1, 4]);
    }

    #[test]
    fn an_owner_leaves_room_for_the_others() {
        let mut queue = Queue::new(LIMITS);
        for number in 0..6 {
            queue.push(work(number, "greedy", Priority::High), 0).unwrap();
        }
        assert!(queue.push(work(6, "greedy", Priority::High), 0).is_err(), "its share is taken");
        queue.push(work(7, "modest", Priority::Low), 0).unwrap();
        let owners: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|work| work.1.to_string()).collect();
        assert_eq!(owners, ["greedy", "greedy", "modest"]);
    }

    #[test]
    fn two_of_one_multihash_run_one_after_the_other() {
        let mut queue = Queue::new(LIMITS);
        queue.push(work(1, "a", Priority::Normal), 0).unwrap();
        queue.push(work(1, "b", Priority::Normal), 1).unwrap();
        let first = queue.pop().unwrap();
        assert_eq!(queue.pop(), None);
        queue.done(&first.0, &first.1);
        assert_eq!(queue.pop().unwrap().1.as_str(), "b");
    }

    proptest! {
        #[test]
        fn no_limit_is_ever_passed_and_nothing_is_lost(
            steps in proptest::collection::vec((0u8..12, 0usize..3, 0u8..3, any::<bool>()), 1..200)
        ) {
            let mut queue = Queue::new(LIMITS);
            let (mut under_way, mut taken, mut ended) = (Vec::<Work>::new(), 0, 0);
            for (now, (number, owner, priority, push)) in steps.into_iter().enumerate() {
                let priority = [Priority::Low, Priority::Normal, Priority::High][usize::from(priority)];
                if push {
                    taken += usize::from(queue.push(work(number, ["a", "b", "c"][owner], priority), now as u64).is_ok());
                } else if let Some(next) = queue.pop() {
                    prop_assert!(under_way.iter().all(|other| other.0 != next.0));
                    under_way.push(next);
                } else if !under_way.is_empty() {
                    let over = under_way.remove(0);
                    queue.done(&over.0, &over.1);
                    ended += 1;
                }
                prop_assert!(queue.len() <= LIMITS.window && under_way.len() <= LIMITS.running_max);
                for owner in ["a", "b", "c"] {
                    let of = under_way.iter().filter(|work| work.1.as_str() == owner).count();
                    prop_assert!(of <= LIMITS.owner_running_max);
                }
                prop_assert_eq!(queue.len() + ended, taken);
            }
            loop {
                if let Some(next) = queue.pop() {
                    under_way.push(next);
                } else if let Some(over) = under_way.pop() {
                    queue.done(&over.0, &over.1);
                    ended += 1;
                } else {
                    break;
                }
            }
            prop_assert_eq!(ended, taken);
        }
    }
}
