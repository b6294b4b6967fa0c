//! The pools under a node: how they are, as conditions with remedies, and as metrics by the names of the common ZFS exporter (pdf/zfs_exporter)
//! where they mean the same.

use std::collections::BTreeMap;

use basalt_datasets::Layout;
use basalt_zfs::{Dataset, Health, Pool, PoolEntry, PoolStatus, Result, RowsOf, Vdev, Zfs};
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};
use serde_json::{Value, json};

use crate::progress::bytes;

/// From so many percent on a pool is said to fill: ZFS gets slower at finding space, and at the last one stops.
const BANDS: [(u64, &str, &str); 3] = [
    (95, "critical", "free space now: destroy snapshots that are not needed, `ipfs repo gc`, or add disks"),
    (90, "critical", "free space or add disks: ZFS searches long for free space from here on"),
    (80, "warning", "plan for more space: ZFS wants a tenth free to stay quick"),
];

/// A disk that took longer than the module's `zio_slow_io_ms` (30 s) so often is slow; less is a disk that woke up.
const SLOW_MIN: u64 = 10;

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
    /// Which kind: `pool-health`, `pool-errors`, `pool-scrub`, `pool-slow-disk`, `pool-capacity`, `pool-events`.
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

/// Whether nothing lies below a vdev: a group counts what its disks do.
fn is_disk(vdev: &Vdev, status: &PoolStatus) -> bool {
    let at = status.vdevs.iter().position(|other| std::ptr::eq(other, vdev));
    at.and_then(|at| status.vdevs.get(at + 1)).is_none_or(|next| next.depth <= vdev.depth)
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
        if let Some(errors) = status.scan_errors().filter(|errors| *errors > 0) {
            all.push(Condition {
                name: "pool-scrub",
                severity: "critical",
                message: format!("the last scrub or resilver of pool {pool} ended with {errors} errors that it couldn't mend"),
                remedy: format!(
                    "the blocks that were hit are quarantined (`basalt verify --quarantined`): let Kubo fetch them again, replace a bad disk, then scrub \
                     once more (`zpool scrub {pool}`)"
                ),
            });
        }
        let slow: Vec<_> = status.vdevs.iter().filter(|vdev| vdev.slow >= SLOW_MIN && is_disk(vdev, status)).collect();
        if !slow.is_empty() {
            let named: Vec<String> = slow.iter().map(|vdev| format!("{} ({} times)", vdev.name, vdev.slow)).collect();
            all.push(Condition {
                name: "pool-slow-disk",
                severity: "warning",
                message: format!("disks of pool {pool} took very long to answer: {}", named.join(", ")),
                remedy: format!(
                    "every write waits for the slowest: look at it (`smartctl -a`, `zpool iostat -vl {pool} 5`), replace it, or `zpool clear {pool}` if it is over"
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
pub(crate) struct Gauges {
    pool_bytes: Vec<(IntGaugeVec, Field<u64>)>,
    pool_ratios: Vec<(GaugeVec, Field<f64>)>,
    health: IntGaugeVec,
    errors: IntGaugeVec,
    conditions: IntGaugeVec,
    /// Errors of reading, of writing, wrong checksums, slow answers.
    disks: [IntGaugeVec; 4],
    datasets: Vec<(IntGaugeVec, &'static str)>,
    compression: GaugeVec,
    up: IntGaugeVec,
}

impl Gauges {
    /// Registers them.
    pub(crate) fn register(registry: &Registry) -> std::result::Result<Gauges, prometheus::Error> {
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
            disks: [
                integer(
                    "basalt_pool_disk_read_errors",
                    "Reads of a disk that failed, since `zpool clear`.",
                    &["pool", "vdev"],
                )?,
                integer("basalt_pool_disk_write_errors", "Writes of a disk that failed.", &["pool", "vdev"])?,
                integer(
                    "basalt_pool_disk_checksum_errors",
                    "Reads of a disk whose checksum was wrong.",
                    &["pool", "vdev"],
                )?,
                integer("basalt_pool_disk_slow_answers", "Answers of a disk that took very long.", &["pool", "vdev"])?,
            ],
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

    /// Whether ZFS answered.
    pub(crate) fn answered(&self, answered: bool) {
        self.up.with_label_values(&["basalt"]).set(i64::from(answered));
    }

    /// Looks, and shows what is there; `more` are conditions that others know of.
    pub(crate) fn show(&self, zfs: &dyn Zfs, layout: &Layout, more: &[Condition]) -> Result<Vec<Seen>> {
        let seen = look(zfs, &pools(layout))?;
        self.conditions.reset();
        for condition in conditions(&seen).iter().chain(more) {
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
            for vdev in &status.vdevs {
                let labels = [pool[0], &vdev.name];
                let counts = [vdev.read_errors, vdev.write_errors, vdev.checksum_errors, vdev.slow];
                for (gauge, count) in self.disks.iter().zip(counts) {
                    gauge.with_label_values(&labels).set(signed(count));
                }
            }
        }
        let names = self.datasets.iter().map(|(_, name)| *name).chain(["compressratio"]);
        let names: Vec<_> = names.filter_map(|name| name.parse().ok()).collect();
        let mut by_pool: BTreeMap<Pool, Vec<Dataset>> = BTreeMap::new();
        for member in layout.members() {
            by_pool.entry(member.dataset.pool()).or_default().push(member.dataset.clone());
        }
        for (pool, datasets) in by_pool {
            for listed in zfs.listing(&datasets, RowsOf::Datasets, &names)? {
                let labels = [listed.name.as_str(), pool.as_str(), "filesystem"];
                let mut values = listed.values.into_iter();
                for (gauge, _) in &self.datasets {
                    let value = values.next().flatten().and_then(|value| value.parse().ok());
                    gauge.with_label_values(&labels).set(signed(value.unwrap_or(0)));
                }
                let ratio = values.next().flatten().and_then(|value| value.trim_end_matches('x').parse().ok());
                self.compression.with_label_values(&labels).set(ratio.unwrap_or(1.0));
            }
        }
        Ok(seen)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use basalt_zfs::{Model, Role};

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
            slow: 0,
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
    fn a_disk_that_answers_slowly_and_a_scrub_with_errors_are_conditions() {
        let mut one = seen(1);
        one.status.vdevs[0].slow = 9;
        assert_eq!(names(one.clone()), []);
        one.status.vdevs[0].slow = 10;
        assert_eq!(names(one.clone()), [("pool-slow-disk", "warning")]);
        // A group counts what its disks do.
        one.status.vdevs.insert(0, Vdev { name: "mirror-0".into(), ..one.status.vdevs[0].clone() });
        one.status.vdevs[1].depth = 1;
        let found = conditions(std::slice::from_ref(&one));
        assert!(found[0].message.ends_with("answer: /dev/model (10 times)"), "{found:?}");
        one.status.vdevs.clear();
        for (scan, wanted) in [
            ("scrub finished, 2 errors", true),
            ("scrub repaired 0B in 00:00:00 with 1 errors on Sat Nov 21 22:41:54 2026", true),
            ("scrub repaired 0B in 00:00:00 with 0 errors on Sat Nov 21 22:41:54 2026", false),
            ("scrub in progress since Sat Nov 21 22:41:54 2026", false),
            ("", false),
        ] {
            one.status.scan = scan.into();
            assert_eq!(names(one.clone()) == [("pool-scrub", "critical")], wanted, "{scan}");
        }
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
        Gauges::register(&registry).unwrap().show(&model, &layout, &[]).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("zfs_pool_health{pool=\"tank\"} 0"), "{text}");
        assert!(
            text.contains("zfs_dataset_used_bytes{name=\"tank/basalt/shards/00\",pool=\"tank\",type=\"filesystem\"}"),
            "{text}"
        );
        assert!(text.contains("zfs_pool_size_bytes{pool=\"tank\"} 1073741824"), "{text}");
    }
}
