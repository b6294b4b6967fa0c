//! The pools under a node: how they are, as conditions with remedies, and as metrics by the names of the common ZFS exporter (pdf/zfs_exporter)
//! where they mean the same.

use std::{path::Path, time::Duration};

use basalt_datasets::Layout;
use basalt_node::NodeFile;
use basalt_zfs::{Cli, CliOptions, Entity, Health, Pool, PoolEntry, PoolStatus, Result, Zfs};
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};
use serde_json::{Value, json};

use crate::progress::bytes;

/// How often a running agent looks.
const INTERVAL: Duration = Duration::from_secs(30);
/// What it waits for an answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// From so many percent on a pool is said to fill: ZFS gets slower at finding space, and at the last one stops.
const BANDS: [(u64, &str, &str); 3] = [
    (95, "critical", "free space now: destroy snapshots that are not needed, `ipfs repo gc`, or add disks"),
    (90, "critical", "free space or add disks: ZFS searches long for free space from here on"),
    (80, "warning", "plan for more space: ZFS wants a tenth free to stay quick"),
];

/// A pool as it was last seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// At a glance.
    pub entry: PoolEntry,
    /// In detail.
    pub status: PoolStatus,
}

/// What an operator should know of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which kind: `pool-health`, `pool-errors`, `pool-capacity`.
    pub name: &'static str,
    /// `warning` or `critical`.
    pub severity: &'static str,
    /// What is so.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Looks at the pools of these names.
pub fn look(zfs: &dyn Zfs, pools: &[Pool]) -> Result<Vec<Seen>> {
    let entries = zfs.pools()?.into_iter().filter(|entry| pools.contains(&entry.name));
    entries.map(|entry| Ok(Seen { status: zfs.pool_status(&entry.name)?, entry })).collect()
}

fn percent(entry: &PoolEntry) -> u64 {
    (entry.allocated_bytes.saturating_mul(100)).checked_div(entry.size_bytes).unwrap_or(0)
}

/// What there is to say of them, the worst of each kind.
pub fn conditions(seen: &[Seen]) -> Vec<Condition> {
    let mut all = Vec::new();
    for Seen { entry, status } in seen {
        let pool = &entry.name;
        if status.health != Health::Online {
            let bad: Vec<String> = status
                .vdevs
                .iter()
                .filter(|vdev| {
                    !matches!(vdev.health, Health::Online | Health::Available | Health::InUse) && vdev.depth > 0
                })
                .map(|vdev| format!("{} {:?}", vdev.name, vdev.health).to_lowercase())
                .collect();
            let severity = if status.health == Health::Degraded { "warning" } else { "critical" };
            all.push(Condition {
                name: "pool-health",
                severity,
                message: format!(
                    "pool {pool} is {:?} ({})",
                    status.health,
                    if bad.is_empty() { "no disk named".into() } else { bad.join(", ") }
                )
                .replace("Degraded", "degraded: it works with less redundancy"),
                remedy: match status.health {
                    Health::Suspended => format!("bring the disks back, then `zpool clear {pool}`"),
                    _ => format!("`zpool status {pool}`; replace the disk: `zpool replace {pool} OLD NEW`"),
                },
            });
        }
        if status.data_errors > 0 {
            all.push(Condition {
                name: "pool-errors",
                severity: "critical",
                message: format!("pool {pool} has {} data errors that it can't mend", status.data_errors),
                remedy: format!(
                    "`zpool status -v {pool}` names files; `basalt verify` finds the blocks, which are then fetched again or put from a replica"
                ),
            });
        }
        let counted: u64 =
            status.vdevs.iter().map(|vdev| vdev.read_errors + vdev.write_errors + vdev.checksum_errors).sum();
        if counted > 0 && status.data_errors == 0 {
            let worst =
                status.vdevs.iter().max_by_key(|vdev| vdev.read_errors + vdev.write_errors + vdev.checksum_errors);
            all.push(Condition {
                name: "pool-errors",
                severity: "warning",
                message: format!(
                    "pool {pool} counted {counted} errors of disks, most on {}; all were mended",
                    worst.map_or("?", |vdev| vdev.name.as_str())
                ),
                remedy: format!(
                    "look at the disk (`smartctl -a`), scrub the pool (`zpool scrub {pool}`), then `zpool clear {pool}`"
                ),
            });
        }
        let full = percent(entry);
        if let Some((_, severity, remedy)) = BANDS.iter().find(|(from, ..)| full >= *from) {
            all.push(Condition {
                name: "pool-capacity",
                severity,
                message: format!(
                    "pool {pool} is {full} % full: {} of {}",
                    bytes(entry.allocated_bytes),
                    bytes(entry.size_bytes)
                ),
                remedy: (*remedy).to_owned(),
            });
        }
    }
    all
}

/// The table of `basalt status`.
pub fn table(seen: &[Seen]) -> String {
    let mut lines = vec![format!(
        "{:<16} {:<10} {:>10}  {:>10}  {:>10}  {:>6}  {:>10}  SCRUB",
        "POOL", "HEALTH", "SIZE", "ALLOCATED", "FREEING", "FULL", "FRAGMENTED"
    )];
    for Seen { entry, status } in seen {
        let scan = if status.scan.is_empty() { "never" } else { status.scan.as_str() };
        lines.push(format!(
            "{:<16} {:<10} {:>10}  {:>10}  {:>10}  {:>5}%  {:>10}  {scan}",
            entry.name.as_str(),
            format!("{:?}", status.health).to_lowercase(),
            bytes(entry.size_bytes),
            bytes(entry.allocated_bytes),
            bytes(entry.freeing_bytes),
            percent(entry),
            entry.fragmentation_percent.map_or("-".into(), |percent| format!("{percent}%")),
        ));
    }
    for condition in conditions(seen) {
        lines
            .push(format!("{}: {}: {}\n  {}", condition.severity, condition.name, condition.message, condition.remedy));
    }
    lines.join("\n")
}

/// The same for `--json`.
pub fn object(seen: &[Seen]) -> Value {
    let pools: Vec<_> = seen
        .iter()
        .map(|Seen { entry, status }| {
            json!({
                "pool": entry.name.as_str(), "health": format!("{:?}", status.health).to_lowercase(), "size_bytes": entry.size_bytes,
                "allocated_bytes": entry.allocated_bytes, "free_bytes": entry.free_bytes, "freeing_bytes": entry.freeing_bytes,
                "full_percent": percent(entry), "fragmentation_percent": entry.fragmentation_percent, "data_errors": status.data_errors,
                "scan": status.scan,
            })
        })
        .collect();
    let conditions: Vec<_> = conditions(seen)
        .into_iter()
        .map(|c| json!({ "name": c.name, "severity": c.severity, "message": c.message, "remedy": c.remedy }))
        .collect();
    json!({ "pools": pools, "conditions": conditions })
}

type Field<T> = fn(&PoolEntry) -> T;

/// Gauges in the registry of the process, which `/metrics` gives along.
struct Gauges {
    pool_bytes: Vec<(IntGaugeVec, Field<u64>)>,
    pool_ratios: Vec<(GaugeVec, Field<f64>)>,
    health: IntGaugeVec,
    errors: IntGaugeVec,
    conditions: IntGaugeVec,
    datasets: Vec<(IntGaugeVec, &'static str)>,
    compression: GaugeVec,
    up: IntGaugeVec,
}

impl Gauges {
    fn register(registry: &Registry) -> std::result::Result<Gauges, prometheus::Error> {
        let integer =
            |name: &str, help: &str, labels: &[&str]| -> std::result::Result<IntGaugeVec, prometheus::Error> {
                let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
                registry.register(Box::new(gauge.clone()))?;
                Ok(gauge)
            };
        let ratio = |name: &str, help: &str, labels: &[&str]| -> std::result::Result<GaugeVec, prometheus::Error> {
            let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let dataset = ["name", "pool", "type"];
        Ok(Gauges {
            pool_bytes: vec![
                (integer("zfs_pool_allocated_bytes", "Bytes allocated in the pool.", &["pool"])?, |p| {
                    p.allocated_bytes
                }),
                (integer("zfs_pool_free_bytes", "Bytes not allocated in the pool.", &["pool"])?, |p| p.free_bytes),
                (integer("zfs_pool_freeing_bytes", "Bytes that are still being given back.", &["pool"])?, |p| {
                    p.freeing_bytes
                }),
                (integer("zfs_pool_size_bytes", "Bytes of the pool's disks.", &["pool"])?, |p| p.size_bytes),
                (integer("zfs_pool_readonly", "1 where the pool was imported read-only.", &["pool"])?, |p| {
                    u64::from(p.read_only)
                }),
            ],
            pool_ratios: vec![
                (ratio("zfs_pool_capacity_ratio", "Part of the pool that is allocated.", &["pool"])?, |p| {
                    if p.size_bytes == 0 { 0.0 } else { p.allocated_bytes as f64 / p.size_bytes as f64 }
                }),
                (ratio("zfs_pool_fragmentation_ratio", "How broken up the free space is.", &["pool"])?, |p| {
                    f64::from(p.fragmentation_percent.unwrap_or(0)) / 100.0
                }),
            ],
            health: integer(
                "zfs_pool_health",
                "0 online, 1 degraded, 2 faulted, 3 offline, 4 unavailable, 5 removed, 6 suspended.",
                &["pool"],
            )?,
            errors: integer("basalt_pool_data_errors", "Data errors that the pool can't mend.", &["pool"])?,
            conditions: integer("basalt_pool_condition", "1 for each condition of a pool.", &["name", "severity"])?,
            datasets: vec![
                (
                    integer("zfs_dataset_used_bytes", "Bytes used by the dataset and what lies in it.", &dataset)?,
                    "used",
                ),
                (integer("zfs_dataset_available_bytes", "Bytes that it may still use.", &dataset)?, "available"),
                (integer("zfs_dataset_referenced_bytes", "Bytes reachable in it.", &dataset)?, "referenced"),
                (
                    integer("zfs_dataset_logical_used_bytes", "Bytes used, before compression.", &dataset)?,
                    "logicalused",
                ),
                (
                    integer("zfs_dataset_used_by_snapshot_bytes", "Bytes that only snapshots hold.", &dataset)?,
                    "usedbysnapshots",
                ),
            ],
            compression: ratio("zfs_dataset_compression_ratio", "Bytes before compression for a byte used.", &dataset)?,
            up: integer(
                "zfs_scrape_collector_success",
                "1 where ZFS answered the last time it was asked.",
                &["collector"],
            )?,
        })
    }

    fn show(&self, zfs: &dyn Zfs, layout: &Layout) -> Result<()> {
        let seen = look(zfs, &pools(layout))?;
        self.conditions.reset();
        for condition in conditions(&seen) {
            self.conditions.with_label_values(&[condition.name, condition.severity]).set(1);
        }
        for Seen { entry, status } in &seen {
            let pool = [entry.name.as_str()];
            for (gauge, value) in &self.pool_bytes {
                gauge.with_label_values(&pool).set(signed(value(entry)));
            }
            for (gauge, value) in &self.pool_ratios {
                gauge.with_label_values(&pool).set(value(entry));
            }
            self.health.with_label_values(&pool).set(health_number(status.health));
            self.errors.with_label_values(&pool).set(signed(status.data_errors));
        }
        let names = self.datasets.iter().map(|(_, name)| *name).chain(["compressratio"]);
        let names: Vec<_> = names.filter_map(|name| name.parse().ok()).collect();
        for member in layout.members() {
            let found = zfs.properties(&Entity::from(&member.dataset), &names)?;
            let value = |name: &str| found.iter().find(|p| p.name.as_str() == name).map(|p| p.value.as_str());
            let pool = member.dataset.pool();
            let labels = [member.dataset.as_str(), pool.as_str(), "filesystem"];
            for (gauge, name) in &self.datasets {
                gauge.with_label_values(&labels).set(signed(value(name).and_then(|v| v.parse().ok()).unwrap_or(0)));
            }
            let ratio = value("compressratio").and_then(|v| v.trim_end_matches('x').parse().ok()).unwrap_or(1.0);
            self.compression.with_label_values(&labels).set(ratio);
        }
        Ok(())
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn health_number(health: Health) -> i64 {
    match health {
        Health::Online | Health::Available | Health::InUse => 0,
        Health::Degraded => 1,
        Health::Faulted => 2,
        Health::Offline => 3,
        Health::Unavailable => 4,
        Health::Removed => 5,
        Health::Suspended => 6,
    }
}

/// The pools of a node.
pub fn pools(layout: &Layout) -> Vec<Pool> {
    layout.holding_by_pool().into_keys().collect()
}

/// Watches the pools of a node on datasets, for as long as the process runs: metrics, and a line in the log where a condition is new.
pub fn watch(node: &Path) {
    let Some(layout) = NodeFile::read(node).ok().and_then(|file| Layout::read(node, file.node_id.as_str()).ok()?)
    else {
        return;
    };
    let gauges = match Gauges::register(prometheus::default_registry()) {
        Ok(gauges) => gauges,
        Err(err) => return tracing::error!(%err, "the metrics of ZFS can't be had"),
    };
    let started = std::thread::Builder::new().name("basalt-pools".to_owned()).spawn(move || {
        let mut known: Vec<Condition> = Vec::new();
        let mut answers = true;
        loop {
            let looked = Cli::new(CliOptions { deadline: DEADLINE, ..CliOptions::default() })
                .and_then(|zfs| gauges.show(&zfs, &layout).and_then(|()| look(&zfs, &pools(&layout))));
            gauges.up.with_label_values(&["basalt"]).set(i64::from(looked.is_ok()));
            match looked {
                Ok(seen) => {
                    let now = conditions(&seen);
                    for condition in now.iter().filter(|condition| !known.contains(condition)) {
                        tracing::warn!(condition = condition.name, remedy = condition.remedy, "{}", condition.message);
                    }
                    known = now;
                    answers = true;
                }
                // Once, not every half minute.
                Err(err) if std::mem::replace(&mut answers, false) => {
                    tracing::warn!(%err, "the pools can't be looked at")
                }
                Err(_) => {}
            }
            std::thread::sleep(INTERVAL);
        }
    });
    if let Err(err) = started {
        tracing::error!(%err, "the thread that watches the pools could not be started");
    }
}

#[cfg(test)]
mod tests {
    use basalt_zfs::{Model, Role, Vdev};

    use super::*;

    fn seen(allocated_percent: u64) -> Seen {
        let model = Model::new(1);
        let pool: Pool = "tank".parse().unwrap();
        model.add_pool(&pool, 1000 << 20);
        let mut seen = look(&model, std::slice::from_ref(&pool)).unwrap().remove(0);
        seen.entry.allocated_bytes = seen.entry.size_bytes / 100 * allocated_percent;
        seen
    }

    fn names(seen: Seen) -> Vec<(&'static str, &'static str)> {
        conditions(&[seen]).into_iter().map(|condition| (condition.name, condition.severity)).collect()
    }

    #[test]
    fn a_pool_that_fills_is_a_condition_from_eighty_percent_on() {
        assert_eq!(names(seen(79)), []);
        assert_eq!(names(seen(80)), [("pool-capacity", "warning")]);
        assert_eq!(names(seen(94)), [("pool-capacity", "critical")]);
        assert!(conditions(&[seen(96)])[0].remedy.starts_with("free space now"));
    }

    #[test]
    fn a_bad_disk_is_named_with_what_to_do() {
        let mut one = seen(1);
        let disk = Vdev {
            name: "/dev/sdb".into(),
            role: Role::Data,
            depth: 1,
            health: Health::Faulted,
            read_errors: 0,
            write_errors: 3,
            checksum_errors: 0,
        };
        one.status.vdevs.push(disk);
        assert_eq!(names(one.clone()), [("pool-errors", "warning")]);
        one.status.health = Health::Degraded;
        let found = conditions(std::slice::from_ref(&one));
        assert!(found[0].severity == "warning" && found[0].message.contains("/dev/sdb faulted"), "{found:?}");
        one.status.data_errors = 2;
        assert!(names(one).contains(&("pool-errors", "critical")));
    }

    #[test]
    fn a_suspended_pool_is_critical() {
        let mut one = seen(1);
        one.status.health = Health::Suspended;
        assert!(conditions(&[one])[0].remedy.contains("zpool clear tank"));
    }

    #[test]
    fn the_metrics_have_the_exporter_s_names() {
        let model = Model::new(1);
        model.add_pool(&"tank".parse().unwrap(), 1 << 30);
        let declared = basalt_datasets::Declaration::below(&"tank/basalt".parse().unwrap(), 1);
        let layout = Layout::new(&declared, Path::new("/nonexistent/node"), "0123").unwrap();
        let plan = basalt_datasets::plan(&layout, &basalt_datasets::look(&model, &layout).unwrap());
        basalt_datasets::apply(&layout, &plan, &model, &basalt_datasets::Own(&model), false, &mut |_| {}).unwrap();
        let registry = Registry::new();
        Gauges::register(&registry).unwrap().show(&model, &layout).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("zfs_pool_health{pool=\"tank\"} 0"), "{text}");
        assert!(
            text.contains("zfs_dataset_used_bytes{name=\"tank/basalt/shards/00\",pool=\"tank\",type=\"filesystem\"}"),
            "{text}"
        );
        assert!(text.contains("zfs_pool_size_bytes{pool=\"tank\"} 1073741824"), "{text}");
    }
}
