//! The node's state as Prometheus metrics: read from its status when they are asked for, so nothing is counted twice or goes stale.

use basalt_node::calls::{BOUNDS_US, CallStats};
use basalt_proto::v1::StatusResponse;
use prometheus::{
    Encoder, GaugeVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    proto::{Bucket, Counter, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

/// The text of `/metrics`.
pub fn text(status: &StatusResponse, calls: &[CallStats]) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    info(&registry, status)?;
    node(&registry, status)?;
    shards(&registry, status)?;
    scrub(&registry, status)?;
    clients(&registry, status)?;
    let mut families = registry.gather();
    families.extend(requests(calls));
    // What the prometheus crate counts of this process: memory, processor time, open files.
    families.extend(prometheus::gather());
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    String::from_utf8(text).map_err(|err| prometheus::Error::Msg(err.to_string()))
}

fn gauge(registry: &Registry, name: &str, help: &str, value: u64) -> Result<(), prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    gauge.set(signed(value));
    registry.register(Box::new(gauge))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn info(registry: &Registry, status: &StatusResponse) -> Result<(), prometheus::Error> {
    let labels = ["node_id", "version", "host", "durability"];
    let info = IntGaugeVec::new(Opts::new("basalt_info", "Always 1; what serves which node."), &labels)?;
    info.with_label_values(&[&status.node_id, &status.version, &status.host, &status.durability]).set(1);
    registry.register(Box::new(info))?;
    let state = IntGaugeVec::new(Opts::new("basalt_state", "1 for the state that the node is in."), &["state"])?;
    for name in ["serving", "read-only", "fenced", "migrating"] {
        state.with_label_values(&[name]).set(i64::from(status.state == name));
    }
    registry.register(Box::new(state))
}

fn node(registry: &Registry, status: &StatusResponse) -> Result<(), prometheus::Error> {
    let uptime = prometheus::Gauge::new("basalt_uptime_seconds", "Time since the node was opened.")?;
    uptime.set(status.uptime_ms as f64 / 1000.0);
    registry.register(Box::new(uptime))?;
    gauge(
        registry,
        "basalt_disk_usage_bytes",
        "Live bytes of blocks and other keys, as Kubo's gc sees them.",
        status.disk_usage_bytes,
    )?;
    gauge(
        registry,
        "basalt_node_allocated_bytes",
        "Bytes that all of the node's files hold on disk.",
        status.allocated_bytes,
    )?;
    let keyspace = status.keyspace.unwrap_or_default();
    gauge(registry, "basalt_keyspace_keys", "Live keys that are no blocks.", keyspace.keys)?;
    gauge(registry, "basalt_keyspace_bytes", "Bytes of their values.", keyspace.bytes)?;
    gauge(
        registry,
        "basalt_keyspace_allocated_bytes",
        "Bytes that the keyspace's log holds on disk.",
        keyspace.allocated_bytes,
    )?;
    gauge(registry, "basalt_keyspace_segments", "Segment files of the keyspace.", keyspace.segments)?;
    gauge(
        registry,
        "basalt_keyspace_dead_bytes",
        "Bytes of dead records of the keyspace that are not given back.",
        keyspace.dead_bytes,
    )?;
    let conditions = IntGaugeVec::new(
        Opts::new("basalt_condition", "1 for each condition that `basalt status` shows."),
        &["name", "severity"],
    )?;
    for condition in &status.conditions {
        conditions.with_label_values(&[&condition.name, &condition.severity]).set(1);
    }
    registry.register(Box::new(conditions))
}

fn shards(registry: &Registry, status: &StatusResponse) -> Result<(), prometheus::Error> {
    type Field = fn(&basalt_proto::v1::status_response::Shard) -> u64;
    let fields: [(&str, &str, Field); 8] = [
        ("basalt_blocks", "Live blocks.", |shard| shard.blocks),
        ("basalt_block_bytes", "Bytes of live blocks.", |shard| shard.bytes),
        ("basalt_allocated_bytes", "Bytes that the segment files hold on disk.", |shard| shard.allocated_bytes),
        ("basalt_segments", "Segment files.", |shard| shard.segments),
        ("basalt_dead_bytes", "Bytes of dead records that are not given back.", |shard| shard.dead_bytes),
        ("basalt_unflushed_bytes", "Bytes written and not yet known to be durable.", |shard| shard.unflushed_bytes),
        ("basalt_available_bytes", "Bytes that the file system has left.", |shard| shard.available_bytes),
        ("basalt_shard_serving", "1 where the shard takes writes.", |shard| u64::from(shard.state == "serving")),
    ];
    for (name, help, field) in fields {
        let family = IntGaugeVec::new(Opts::new(name, help), &["shard"])?;
        for shard in &status.shards {
            family.with_label_values(&[&shard.id.to_string()]).set(signed(field(shard)));
        }
        registry.register(Box::new(family))?;
    }
    Ok(())
}

fn scrub(registry: &Registry, status: &StatusResponse) -> Result<(), prometheus::Error> {
    let quarantined =
        IntGaugeVec::new(Opts::new("basalt_quarantined", "Damaged keys that are quarantined."), &["store"])?;
    for shard in &status.shards {
        quarantined.with_label_values(&[&format!("shard {}", shard.id)]).set(signed(shard.quarantined));
    }
    let keyspace = status.keyspace.unwrap_or_default();
    quarantined.with_label_values(&["keyspace"]).set(signed(keyspace.quarantined));
    registry.register(Box::new(quarantined))?;
    let named = IntGaugeVec::new(
        Opts::new("basalt_quarantined_block", "1 for each block that is quarantined; the first 100."),
        &["store", "cid"],
    )?;
    for one in status.quarantined.iter().filter(|one| !one.cid.is_empty()) {
        named.with_label_values(&[&one.store, &one.cid]).set(1);
    }
    registry.register(Box::new(named))?;
    let Some(scrub) = &status.scrub else { return Ok(()) };
    let state = IntGaugeVec::new(Opts::new("basalt_scrub_state", "1 for the state that the scrub is in."), &["state"])?;
    for name in ["off", "idle", "running", "paused", "read-only"] {
        state.with_label_values(&[name]).set(i64::from(scrub.state == name));
    }
    registry.register(Box::new(state))?;
    type Field = fn(&basalt_proto::v1::scrub_status::Store) -> u64;
    let fields: [(&str, &str, Field); 7] = [
        ("basalt_scrub_bytes", "Bytes that the pass under way, or the last one, has read.", |store| store.bytes_done),
        ("basalt_scrub_left_bytes", "Bytes that the pass under way has still to read, about.", |store| {
            store.bytes_left
        }),
        ("basalt_scrub_damaged", "Keys that the pass has quarantined.", |store| store.damaged),
        ("basalt_scrub_rescued", "Keys that the pass has written anew, from memory.", |store| store.rescued),
        ("basalt_scrub_unreadable", "Keys that the disk refused to read in the pass.", |store| store.unreadable),
        ("basalt_scrub_dead_ranges", "Damaged stretches of the log without a live key.", |store| store.dead_ranges),
        ("basalt_scrub_finished_timestamp_seconds", "When a whole pass ended last, Unix time; 0 for never.", |store| {
            store.finished_unix_ms / 1000
        }),
    ];
    for (name, help, field) in fields {
        let family = IntGaugeVec::new(Opts::new(name, help), &["store"])?;
        for store in &scrub.stores {
            family.with_label_values(&[&store.name]).set(signed(field(store)));
        }
        registry.register(Box::new(family))?;
    }
    Ok(())
}

fn clients(registry: &Registry, status: &StatusResponse) -> Result<(), prometheus::Error> {
    let family = GaugeVec::new(
        Opts::new("basalt_clients", "Connected clients by what they said they are here for."),
        &["role"],
    )?;
    for client in &status.clients {
        let role = if client.role.is_empty() { "unknown" } else { &client.role };
        family.with_label_values(&[role]).inc();
    }
    registry.register(Box::new(family))
}

/// Counts and durations of calls: the node counts them, so these families are made here from what it counted.
fn requests(calls: &[CallStats]) -> Vec<MetricFamily> {
    let label = |name: &str, value: &str| {
        let mut label = LabelPair::default();
        label.set_name(name.to_owned());
        label.set_value(value.to_owned());
        label
    };
    let labels = |stats: &CallStats| vec![label("service", stats.service), label("method", stats.method)];
    let (mut counts, mut durations) = (Vec::new(), Vec::new());
    for stats in calls {
        for (outcome, count) in &stats.outcomes {
            let mut labels = labels(stats);
            labels.push(label("outcome", outcome));
            let mut counter = Counter::default();
            counter.set_value(*count as f64);
            let mut metric = Metric::from_label(labels);
            metric.set_counter(counter);
            counts.push(metric);
        }
        let mut below = 0;
        let buckets = BOUNDS_US.iter().zip(&stats.buckets).map(|(bound_us, count)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound_us as f64 / 1e6);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(stats.buckets.iter().sum());
        histogram.set_sample_sum(stats.sum_us as f64 / 1e6);
        let mut metric = Metric::from_label(labels(stats));
        metric.set_histogram(histogram);
        durations.push(metric);
    }
    let family = |name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>| {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    };
    let mut families = Vec::new();
    if !calls.is_empty() {
        let help = "Calls of the node's sockets by how they ended: ok, the name of an error kind, or transport.";
        families.push(family("basalt_requests_total", help, MetricType::COUNTER, counts));
        let help = "Time from a call's arrival to its answer; for a put with the wait for its durability, for a stream to its begin.";
        families.push(family("basalt_request_duration_seconds", help, MetricType::HISTOGRAM, durations));
    }
    families
}

#[cfg(test)]
mod tests {
    use basalt_proto::v1::{
        Quarantined, ScrubStatus,
        scrub_status::Store,
        status_response::{Client, Shard},
    };

    use super::*;

    #[test]
    fn every_family_is_in_the_documentation() {
        let page = include_str!("../../docs/agent.md");
        let calls = [CallStats {
            service: "Admin",
            method: "Flush",
            outcomes: vec![("ok", 1)],
            buckets: vec![0; BOUNDS_US.len() + 1],
            sum_us: 0,
        }];
        let condition = basalt_proto::v1::status_response::Condition::default();
        let status = StatusResponse {
            shards: vec![Shard::default()],
            clients: vec![Client::default()],
            conditions: vec![condition],
            quarantined: vec![Quarantined { cid: "bafy".into(), ..Quarantined::default() }],
            scrub: Some(ScrubStatus { stores: vec![Store::default()], ..ScrubStatus::default() }),
            ..StatusResponse::default()
        };
        let text = text(&status, &calls).unwrap();
        let families: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE basalt_")?.split(' ').next()).collect();
        assert_eq!(families.len(), 32, "{families:?}");
        for family in families {
            assert!(page.contains(&format!("`basalt_{family}`")), "basalt_{family} is not in docs/agent.md");
        }
    }

    #[test]
    fn every_shard_has_its_own_line_and_names_have_units() {
        let status = StatusResponse {
            node_id: "ab".into(),
            state: "serving".into(),
            shards: (0..3)
                .map(|id| Shard { id, blocks: 10 + u64::from(id), state: "serving".into(), ..Shard::default() })
                .collect(),
            clients: vec![Client { role: "root".into(), ..Client::default() }; 2],
            disk_usage_bytes: 77,
            ..StatusResponse::default()
        };
        let mut buckets = vec![0; BOUNDS_US.len() + 1];
        (buckets[1], buckets[5], buckets[BOUNDS_US.len()]) = (2, 1, 1);
        let calls = [CallStats {
            service: "Datastore",
            method: "Get",
            outcomes: vec![("ok", 3), ("NotFound", 1)],
            buckets,
            sum_us: 1_500_000,
        }];
        let text = text(&status, &calls).unwrap();
        for line in [
            "basalt_blocks{shard=\"2\"} 12",
            "basalt_disk_usage_bytes 77",
            "basalt_state{state=\"serving\"} 1",
            "basalt_state{state=\"fenced\"} 0",
            "basalt_clients{role=\"root\"} 2",
            "# TYPE basalt_unflushed_bytes gauge",
            "basalt_requests_total{service=\"Datastore\",method=\"Get\",outcome=\"NotFound\"} 1",
            "basalt_request_duration_seconds_bucket{service=\"Datastore\",method=\"Get\",le=\"0.000025\"} 0",
            "basalt_request_duration_seconds_bucket{service=\"Datastore\",method=\"Get\",le=\"0.001\"} 3",
            "basalt_request_duration_seconds_bucket{service=\"Datastore\",method=\"Get\",le=\"+Inf\"} 4",
            "basalt_request_duration_seconds_sum{service=\"Datastore\",method=\"Get\"} 1.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
