//! What the worker counts. Labels are of fixed sets: no owner, no peer, no CID.

use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector,
};

/// The worker's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Work that waits or is under way.
    pub depth: IntGauge,
    /// Work under way.
    pub running: IntGauge,
    /// What did not work, by kind: `away` (Kubo), `failed`, `given_up`, `ledger`, `journal`, `bus`, and the kinds of dead letters.
    pub failures: IntCounterVec,
    /// From the worker's having the assignment to Kubo's having done it.
    pub assign_to_pinned: HistogramVec,
    /// From the decision (its generation) to the ledger's knowing that it is done.
    pub end_to_end: HistogramVec,
    /// What happened, by type: `received`, `superseded`, `already`, `pinned`, `unpinned`, `failed`, `postponed`, `dead_letter`, `recovered`.
    pub events: IntCounterVec,
    /// Time that calls to NATS take: `publish`, `confirm`, `connect`.
    pub nats_latency: HistogramVec,
    /// Calls to NATS that failed.
    pub nats_errors: IntCounterVec,
    /// 1 while there is a connection.
    pub nats_connected: IntGauge,
    /// 1 while Kubo can be asked.
    pub kubo_ready: IntGauge,
    /// Pieces of work by whether they came by NATS or from the ledger.
    pub sources: IntGaugeVec,
}

/// Bounds in seconds: a pin of what is here takes a millisecond, one from the network hours.
const SECONDS: &[f64] =
    &[0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 1800.0, 7200.0];

impl Metrics {
    /// Metrics that this registry shows. One worker a registry.
    pub fn new(registry: &Registry) -> Result<Metrics, Error> {
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels)
        };
        let metrics = Metrics {
            depth: IntGauge::new("worker_assign_queue_depth", "Work that waits at the worker or is under way.")?,
            running: IntGauge::new("worker_running", "Work under way at the worker.")?,
            failures: IntCounterVec::new(
                Opts::new("worker_failures_total", "What did not work at the worker, by kind."),
                &["kind"],
            )?,
            assign_to_pinned: histogram(
                "pin_assign_to_pinned_seconds",
                "Time from the worker's having an assignment to Kubo's having done it.",
                &["op"],
            )?,
            end_to_end: histogram(
                "pin_end_to_end_seconds",
                "Time from the decision to the ledger's knowing that it is done.",
                &["source", "op"],
            )?,
            events: IntCounterVec::new(Opts::new("pin_events_total", "What happened to work, by type."), &["type"])?,
            nats_latency: histogram("nats_request_seconds", "Time that calls to NATS take.", &["call"])?,
            nats_errors: IntCounterVec::new(Opts::new("nats_errors_total", "Calls to NATS that failed."), &["call"])?,
            nats_connected: IntGauge::new("nats_connected", "1 while there is a connection to NATS.")?,
            kubo_ready: IntGauge::new("worker_kubo_ready", "1 while Kubo can be asked.")?,
            sources: IntGaugeVec::new(
                Opts::new("worker_source_up", "1 while work can come from there."),
                &["source"],
            )?,
        };
        let all: [Box<dyn Collector>; 11] = [
            Box::new(metrics.depth.clone()),
            Box::new(metrics.running.clone()),
            Box::new(metrics.failures.clone()),
            Box::new(metrics.assign_to_pinned.clone()),
            Box::new(metrics.end_to_end.clone()),
            Box::new(metrics.events.clone()),
            Box::new(metrics.nats_latency.clone()),
            Box::new(metrics.nats_errors.clone()),
            Box::new(metrics.nats_connected.clone()),
            Box::new(metrics.kubo_ready.clone()),
            Box::new(metrics.sources.clone()),
        ];
        all.into_iter().try_for_each(|metric| registry.register(metric))?;
        Ok(metrics)
    }

    /// Something did not work.
    pub(crate) fn failed(&self, kind: &str) {
        self.failures.with_label_values(&[kind]).inc();
    }

    /// Something happened.
    pub(crate) fn event(&self, kind: &str) {
        self.events.with_label_values(&[kind]).inc();
    }
}
