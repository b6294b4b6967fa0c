//! How many calls of each kind there were, how they ended and how long they took: what an operator's dashboard draws.
//!
//! A call costs two readings of the clock and three additions. Its time runs from its head's arrival to the head of its answer: for a put
//! that includes the wait for what its durability class promises, for a stream it ends where the stream begins.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use basalt_blockstore::ErrorKind;

/// The calls of both sockets, as they stand in a request's path.
pub const METHODS: [(&str, &str); 28] = [
    ("Datastore", "Get"),
    ("Datastore", "Has"),
    ("Datastore", "GetSize"),
    ("Datastore", "Put"),
    ("Datastore", "Batch"),
    ("Datastore", "Delete"),
    ("Datastore", "GetSizes"),
    ("Datastore", "Query"),
    ("Datastore", "Sync"),
    ("Datastore", "Handshake"),
    ("Datastore", "DiskUsage"),
    ("Datastore", "Check"),
    ("Datastore", "Scrub"),
    ("Datastore", "CollectGarbage"),
    ("Datastore", "SetTTL"),
    ("Datastore", "GetExpiration"),
    ("Admin", "Status"),
    ("Admin", "Verify"),
    ("Admin", "CheckPart"),
    ("Admin", "ControlScrub"),
    ("Admin", "ListQuarantined"),
    ("Admin", "Heal"),
    ("Admin", "Flush"),
    ("Admin", "Reclaim"),
    ("Admin", "HandOver"),
    ("Admin", "ImportBlocks"),
    ("Admin", "ExportBlocks"),
    ("Admin", "HoldDeletes"),
];

/// Upper bounds of the buckets of durations, in microseconds: from an index look-up to a disk that hardly answers.
pub const BOUNDS_US: [u64; 14] =
    [25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];

/// Outcomes: done, one for each kind of error, and errors that the transport made.
const OUTCOMES: usize = ErrorKind::ALL.len() + 2;

/// The counters of one node. They begin at zero when it is opened.
#[derive(Debug)]
pub struct Calls {
    methods: [Counters; METHODS.len()],
}

#[derive(Debug, Default)]
struct Counters {
    outcomes: [AtomicU64; OUTCOMES],
    /// One for each bound, and one for what took longer.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// The counters of one method at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallStats {
    /// "Datastore" or "Admin".
    pub service: &'static str,
    /// "Get".
    pub method: &'static str,
    /// How calls ended, with their count: "ok", the name of an [`ErrorKind`], or "transport". What never happened is left out.
    pub outcomes: Vec<(&'static str, u64)>,
    /// Calls that took at most each of [`BOUNDS_US`], not those of smaller bounds; the last: that took longer.
    pub buckets: Vec<u64>,
    /// Time of all calls together, in microseconds.
    pub sum_us: u64,
}

impl Default for Calls {
    fn default() -> Calls {
        Calls { methods: std::array::from_fn(|_| Counters::default()) }
    }
}

/// A call under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    method: Option<usize>,
    at: Instant,
}

impl Calls {
    /// A call has come, by its path ("/basalt.v1.Datastore/Get").
    pub(crate) fn begin(path: &str) -> Begun {
        match path.strip_prefix("/basalt.v1.").and_then(|path| path.split_once('/')) {
            Some((service, method)) => Calls::begin_method(service, method),
            None => Begun { method: None, at: Instant::now() },
        }
    }

    /// A call has come, by service and method.
    pub(crate) fn begin_method(service: &str, method: &str) -> Begun {
        Begun { method: METHODS.iter().position(|known| *known == (service, method)), at: Instant::now() }
    }

    /// It has ended: well, with an error of a kind, or with one of the transport.
    pub(crate) fn end(&self, begun: Begun, outcome: Result<(), Option<ErrorKind>>) {
        let Some(counters) = begun.method.and_then(|method| self.methods.get(method)) else { return };
        let index = match outcome {
            Ok(()) => 0,
            Err(None) => OUTCOMES - 1,
            Err(Some(kind)) => ErrorKind::ALL.iter().position(|other| *other == kind).map_or(OUTCOMES - 1, |at| at + 1),
        };
        let us = u64::try_from(begun.at.elapsed().as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS_US.len());
        if let (Some(outcome), Some(bucket)) = (counters.outcomes.get(index), counters.buckets.get(bucket)) {
            outcome.fetch_add(1, Ordering::Relaxed);
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        counters.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was counted so far, for methods that were called at all.
    pub fn snapshot(&self) -> Vec<CallStats> {
        let name = |index: usize| match index {
            0 => "ok",
            _ => ErrorKind::ALL.get(index - 1).map_or("transport", |kind| kind.name()),
        };
        let stats = METHODS.iter().zip(&self.methods).map(|((service, method), counters)| CallStats {
            service,
            method,
            outcomes: counters
                .outcomes
                .iter()
                .enumerate()
                .map(|(index, count)| (name(index), count.load(Ordering::Relaxed)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            buckets: counters.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum_us: counters.sum_us.load(Ordering::Relaxed),
        });
        stats.filter(|stats| !stats.outcomes.is_empty()).collect()
    }
}

/// Upper bound of a bucket of [`CallStats::buckets`]; `None` for the last.
pub fn bound(bucket: usize) -> Option<Duration> {
    BOUNDS_US.get(bucket).copied().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use basalt_proto::v1;

    use super::*;

    #[test]
    fn every_call_is_counted_once_by_its_end() {
        let calls = Calls::default();
        for outcome in [Ok(()), Ok(()), Err(Some(ErrorKind::NotFound)), Err(Some(ErrorKind::Io)), Err(None)] {
            calls.end(Calls::begin("/basalt.v1.Datastore/Get"), outcome);
        }
        calls.end(Calls::begin("/basalt.v1.Admin/Flush"), Ok(()));
        calls.end(Calls::begin("/basalt.v2.Datastore/Get"), Ok(()));
        calls.end(Calls::begin("/"), Ok(()));
        let stats = calls.snapshot();
        assert_eq!(stats.iter().map(|stats| stats.method).collect::<Vec<_>>(), ["Get", "Flush"]);
        assert_eq!(stats[0].outcomes, [("ok", 2), ("NotFound", 1), ("Io", 1), ("transport", 1)]);
        assert_eq!(stats[0].buckets.iter().sum::<u64>(), 5);
    }

    #[test]
    fn the_table_has_every_call_of_the_contract() {
        // As the services themselves name them.
        let contract = [v1::datastore_server::SERVICE_NAME, v1::admin_server::SERVICE_NAME];
        assert_eq!(contract, ["basalt.v1.Datastore", "basalt.v1.Admin"]);
        let texts =
            [include_str!("../../proto/basalt/v1/datastore.proto"), include_str!("../../proto/basalt/v1/admin.proto")];
        for (text, service) in texts.iter().zip(["Datastore", "Admin"]) {
            for line in text.lines().filter_map(|line| line.trim().strip_prefix("rpc ")) {
                let method = line.split('(').next().unwrap();
                assert!(METHODS.contains(&(service, method)), "{service}/{method} is not counted");
            }
        }
    }
}
