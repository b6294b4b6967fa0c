//! What is counted of the state plane, in the process's own registry (`/metrics` shows all of it). Whoever does the work counts it, by these.
//!
//! No label has as many values as there are pins, owners or buckets; buckets are counted by 256 ranges.

use std::sync::LazyLock;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, core::Collector, histogram_opts, opts};

/// Puts a family into the process's registry. One that is there twice would be a mistake of ours, and is shown once.
fn shown<C: Collector + Clone + 'static>(made: Result<C, prometheus::Error>, name: &str) -> Option<C> {
    let family = made.and_then(|family| prometheus::register(Box::new(family.clone())).map(|()| family));
    family.inspect_err(|err| tracing::error!(name, %err, "a metric is not shown")).ok()
}

fn histogram(options: HistogramOpts, labels: &[&str]) -> Option<HistogramVec> {
    let name = options.common_opts.name.clone();
    shown(HistogramVec::new(options, labels), &name)
}

fn counter(options: Opts, labels: &[&str]) -> Option<IntCounterVec> {
    let name = options.name.clone();
    shown(IntCounterVec::new(options, labels), &name)
}

fn gauge(name: &str, help: &str) -> Option<IntGauge> {
    shown(IntGauge::new(name, help), name)
}

/// Seconds of work that may take from moments to days.
const LONG: &[f64] = &[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 21_600.0];
/// Seconds of a request.
const SHORT: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

static END_TO_END: LazyLock<Option<HistogramVec>> = LazyLock::new(|| {
    let help = "From a pin's request to its being held, or from its removal to its not being held any more.";
    histogram(histogram_opts!("pin_end_to_end_seconds", help, LONG.to_vec()), &["source", "op"])
});

static ASSIGN_TO_PINNED: LazyLock<Option<HistogramVec>> = LazyLock::new(|| {
    let help = "From an assignment's arrival at its node to Kubo's word that it is done.";
    histogram(histogram_opts!("pin_assign_to_pinned_seconds", help, LONG.to_vec()), &["op"])
});

static QUEUE: LazyLock<Option<IntGauge>> =
    LazyLock::new(|| gauge("worker_assign_queue_depth", "Assignments that wait for this node's worker."));

static FAILURES: LazyLock<Option<IntCounterVec>> =
    LazyLock::new(|| counter(opts!("worker_failures_total", "Assignments that failed, by what for."), &["kind"]));

static EVENTS: LazyLock<Option<IntCounterVec>> =
    LazyLock::new(|| counter(opts!("pin_events_total", "What happened to pins of this node."), &["type"]));

static LEDGER: LazyLock<Option<HistogramVec>> = LazyLock::new(|| {
    let help = "Time that the ledger took for a request, tries and pauses between them included.";
    histogram(histogram_opts!("plane_ledger_seconds", help, SHORT.to_vec()), &["engine", "op"])
});

static LEDGER_ERRORS: LazyLock<Option<IntCounterVec>> = LazyLock::new(|| {
    counter(
        opts!("plane_ledger_errors_total", "Requests that the ledger failed, by what for."),
        &["engine", "op", "class"],
    )
});

static NATS: LazyLock<Option<HistogramVec>> = LazyLock::new(|| {
    histogram(histogram_opts!("nats_request_seconds", "Time that NATS took for a request.", SHORT.to_vec()), &["op"])
});

static NATS_ERRORS: LazyLock<Option<IntCounterVec>> =
    LazyLock::new(|| counter(opts!("nats_errors_total", "Requests that NATS failed."), &["op"]));

static PLACEMENTS: LazyLock<Option<IntGauge>> =
    LazyLock::new(|| gauge("plane_placements", "Placements of this node that the last whole look for drift saw."));

static MISMATCHING: LazyLock<Option<prometheus::IntGaugeVec>> = LazyLock::new(|| {
    let help = "Placements of this node where what is held is not what is wanted, by the last whole look for drift.";
    shown(
        prometheus::IntGaugeVec::new(opts!("plane_mismatching_placements", help), &["kind"]),
        "plane_mismatching_placements",
    )
});

static BUCKETS: LazyLock<Option<IntCounterVec>> = LazyLock::new(|| {
    let help = "Changes by range of buckets (the high byte of a bucket's number): a range that has many more than others has a hot bucket.";
    counter(opts!("plane_bucket_changes_total", help), &["range"])
});

static REPAIRS: LazyLock<Option<IntCounterVec>> = LazyLock::new(|| {
    counter(
        opts!("plane_repairs_total", "Mismatching placements that were repaired, by kind and outcome."),
        &["kind", "outcome"],
    )
});

static JOURNAL: LazyLock<Option<IntGauge>> =
    LazyLock::new(|| gauge("plane_journal_entries", "Changes that wait in the journal for the ledger."));

static JOURNAL_AGE: LazyLock<Option<prometheus::Gauge>> = LazyLock::new(|| {
    let name = "plane_journal_oldest_seconds";
    shown(prometheus::Gauge::new(name, "Age of the oldest change in the journal; 0: none waits."), name)
});

static BURIED: LazyLock<Option<IntGauge>> =
    LazyLock::new(|| gauge("plane_journal_buried", "Changes that no ledger takes, put aside in the journal."));

static AWAY: LazyLock<Option<IntGauge>> =
    LazyLock::new(|| gauge("plane_ledger_away", "1 while the ledger does not answer; changes wait in the journal."));

/// A pin was asked for and is held, or its removal was asked for and it is gone. `source` is `nats`, `ledger`, `kubo` or `repair`, `op` `pin` or `unpin`.
pub fn end_to_end(source: &str, op: &str, seconds: f64) {
    END_TO_END.iter().for_each(|family| family.with_label_values(&[source, op]).observe(seconds));
}

/// An assignment came, and Kubo has done it.
pub fn assign_to_pinned(op: &str, seconds: f64) {
    ASSIGN_TO_PINNED.iter().for_each(|family| family.with_label_values(&[op]).observe(seconds));
}

/// So many assignments wait.
pub fn queue_depth(waiting: u64) {
    QUEUE.iter().for_each(|family| family.set(i64::try_from(waiting).unwrap_or(i64::MAX)));
}

/// An assignment failed.
pub fn failure(kind: &str) {
    FAILURES.iter().for_each(|family| family.with_label_values(&[kind]).inc());
}

/// Something happened to a pin: `assigned`, `pinned`, `unpinned`, `failed`, `seen`, `gone`, `expired`, ….
pub fn event(kind: &str) {
    EVENTS.iter().for_each(|family| family.with_label_values(&[kind]).inc());
}

/// The ledger was asked.
pub fn ledger(engine: &str, op: &str, seconds: f64, failed: Option<crate::Class>) {
    LEDGER.iter().for_each(|family| family.with_label_values(&[engine, op]).observe(seconds));
    if let Some(class) = failed {
        let class = format!("{class:?}").to_lowercase();
        LEDGER_ERRORS.iter().for_each(|family| family.with_label_values(&[engine, op, &class]).inc());
    }
}

/// NATS was asked.
pub fn nats(op: &str, seconds: f64, failed: bool) {
    NATS.iter().for_each(|family| family.with_label_values(&[op]).observe(seconds));
    if failed {
        NATS_ERRORS.iter().for_each(|family| family.with_label_values(&[op]).inc());
    }
}

/// A whole look for drift saw so many placements, and so many of each kind that mismatch.
pub fn drift(placements: u64, mismatching: &[(&str, u64)]) {
    PLACEMENTS.iter().for_each(|family| family.set(i64::try_from(placements).unwrap_or(i64::MAX)));
    for (kind, count) in mismatching {
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        MISMATCHING.iter().for_each(|family| family.with_label_values(&[kind]).set(count));
    }
}

/// Something in this bucket was changed.
pub fn changed(bucket: crate::Bucket) {
    let range = format!("{:02x}", bucket.0 >> 8);
    BUCKETS.iter().for_each(|family| family.with_label_values(&[&range]).inc());
}

/// A mismatching placement was repaired, or was not.
pub fn repair(kind: &str, outcome: &str) {
    REPAIRS.iter().for_each(|family| family.with_label_values(&[kind, outcome]).inc());
}

/// How it stands with the ledger and its journal.
pub fn standing(standing: &crate::Standing, now_ms: u64) {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    JOURNAL.iter().for_each(|family| family.set(number(standing.waiting.entries)));
    let age = standing.waiting.oldest_ms.map_or(0, |came| now_ms.saturating_sub(came));
    JOURNAL_AGE.iter().for_each(|family| family.set(age as f64 / 1000.0));
    BURIED.iter().for_each(|family| family.set(number(standing.waiting.buried)));
    AWAY.iter().for_each(|family| family.set(i64::from(standing.away_since_ms.is_some())));
}
