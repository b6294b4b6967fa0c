//! `basalt snapshot`: what an operator does with snapshots of a node, and what the agent does by its schedule.
//!
//! [`place`] finds the node's datasets and its record; [`view`] lays a set out as the folder of a node; [`diff`], [`mount`] and [`restore`] are the long commands, the
//! short ones are here; [`schedule`] is the agent's. ZFS is worked on by this process; a node that is served is asked to hold its deletes by its admin socket, so it is
//! the same whether an agent or a Kubo hosts it.

mod diff;
pub mod lineage;
mod mount;
mod place;
mod restore;
pub mod schedule;
mod view;

use std::{path::Path, time::SystemTime};

use basalt_datasets::Hands;
use basalt_node::{Host, client, lock::OwnerLock};
use basalt_proto::v1::HoldDeletesRequest;
use basalt_snapshots::{
    Error, Fate, Held, Judgement, Keeper, Kind, Lease, Mounts, Quiesce, Schedule, SnapshotSet, Unhurried, Verdict,
};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::{
    cli::{Snapshot, SnapshotOptions},
    exit::{Exit, Failure, Outcome},
    progress::{bytes, duration},
    say::{say, tell},
};

use place::Place;

impl From<Error> for Failure {
    fn from(err: Error) -> Failure {
        let exit = match err.kind() {
            Kind::NotFound => Exit::Absent,
            _ => Exit::Failure,
        };
        Failure { exit, message: err.to_string() }
    }
}

/// Runs one of the commands. They block on ZFS, so they have a thread of their own.
pub async fn snapshot(node: &Path, command: &Snapshot) -> Outcome {
    if let Snapshot::Mount { set, at, options } = command {
        return mount::mount(node, set, at, options).await;
    }
    let handle = Handle::current();
    std::thread::scope(|scope| {
        let ran = scope.spawn(|| run(node, command, &handle)).join();
        ran.unwrap_or_else(|_| Err(Failure::new("the command panicked: please report it with what was printed above")))
    })
}

fn run(node: &Path, command: &Snapshot, handle: &Handle) -> Outcome {
    match command {
        Snapshot::Take { options } => take(node, options, handle),
        Snapshot::List { space, options } => list(node, *space, options),
        Snapshot::Diff { from, to, summary, options } => diff::diff(node, from, to.as_deref(), *summary, options),
        Snapshot::Restore { set: Some(set), yes, no_diff, options, .. } => {
            restore::restore(node, set, *yes, !*no_diff, options, handle)
        }
        Snapshot::Restore { confirm: Some(id), yes, options, .. } => restore::confirm(node, id, *yes, options),
        Snapshot::Restore { undo: Some(id), yes, options, .. } => restore::undo(node, id, *yes, options, handle),
        Snapshot::Prune { explain, yes, incomplete, trust_times, options } => {
            let by = Judgement { incomplete_go: *incomplete, trust_times: *trust_times };
            prune(node, *explain, *yes, by, options)
        }
        Snapshot::Hold { set, tag, release, options } => hold(node, set, tag, *release, options),
        Snapshot::Policy { options } => policy(node, options),
        Snapshot::Restore { .. } | Snapshot::Mount { .. } => Err(Failure::usage("say which set")),
    }
}

/// Seconds since the Unix epoch, by this host's clock.
fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Opens the keeper, and settles what an earlier process left half done, saying so.
fn keeper(place: &Place) -> Outcome<Keeper> {
    let zfs = place::zfs()?;
    let mut keeper = Keeper::open(zfs, &place.state, place.datasets(), &place.node_id)?;
    prepare(&mut keeper, place);
    for line in keeper.recover(&lives)? {
        tell!("basalt: {line}");
    }
    Ok(keeper)
}

/// What a keeper can't know by itself.
fn prepare(keeper: &mut Keeper, place: &Place) {
    keeper.know_contents(|dataset| place.content(dataset));
    if let Some(helper) = crate::dataset::helper() {
        keeper.mount_by(Box::new(ByHelper(helper)));
    }
}

/// Mounts through the privileged helper.
struct ByHelper(basalt_datasets::Helper);

impl Mounts for ByHelper {
    fn mount(&self, dataset: &basalt_zfs::Dataset, at: &str) -> basalt_zfs::Result<()> {
        Hands::mount(&self.0, dataset, Path::new(at))
    }

    fn unmount(&self, dataset: &basalt_zfs::Dataset) -> basalt_zfs::Result<()> {
        Hands::unmount(&self.0, dataset)
    }
}

/// Before an agent opens its node: finishes or undoes what an earlier process left half done with its snapshots, and says so, a line each. A restore may have left the
/// node's folder empty. Nothing is asked of ZFS where nothing was left.
pub fn at_start(node: &Path) -> Vec<String> {
    let settle = || -> Outcome<Vec<String>> {
        let place = Place::find(node, &SnapshotOptions { datasets: Vec::new(), json: false })?;
        let record = basalt_snapshots::FileJournal::glance(&place.state)?;
        let is_gone = |lease: &Lease| lease.process.is_some() && !lives(lease);
        if record.intent.is_none() && !record.leases.iter().any(is_gone) {
            return Ok(Vec::new());
        }
        let mut keeper = Keeper::open(place::zfs()?, &place.state, place.datasets(), &place.node_id)?;
        prepare(&mut keeper, &place);
        Ok(keeper.recover(&lives)?)
    };
    match settle() {
        Ok(said) => said,
        // Most nodes are on no dataset.
        Err(_) if node.join(basalt_node::layout::NODE_FILE).exists() && !is_on_record(node) => Vec::new(),
        Err(failure) => {
            vec![format!("what was left half done with its snapshots can't be settled: {}", failure.message)]
        }
    }
}

fn is_on_record(node: &Path) -> bool {
    place::state_of(node).is_some_and(|state| state.join("snapshots.json").exists())
}

/// Whether the process of a lease still is.
fn lives(lease: &Lease) -> bool {
    lease.process.is_none_or(|(pid, started)| place::process_started(pid) == Some(started))
}

/// Holds deletes through whoever serves the node; where nobody does, keeps anybody from opening it meanwhile.
struct AdminHold<'a> {
    place: &'a Place,
    handle: &'a Handle,
}

struct Answers {
    stream: tonic::Streaming<basalt_proto::v1::HoldDeletesResponse>,
    handle: Handle,
}

impl Held for Answers {
    fn is_held(&mut self) -> bool {
        // The stream ends when the node lets go, and says nothing until then.
        let look = tokio::time::Duration::from_millis(1);
        self.handle.block_on(async { tokio::time::timeout(look, self.stream.message()).await.is_err() })
    }
}

struct Closed(OwnerLock);

impl Held for Closed {
    fn is_held(&mut self) -> bool {
        let Closed(_lock) = self;
        true
    }
}

impl Quiesce for AdminHold<'_> {
    fn hold(&self) -> basalt_snapshots::Result<Option<Box<dyn Held>>> {
        let refused = |err: basalt_blockstore::Error| {
            Error::new(Kind::Refused, format!("deletes can't be held, which a set over several pools needs: {err}"))
        };
        let node = &self.place.node;
        if let Ok(lock) = OwnerLock::take(node, Host::Command("basalt snapshot take")) {
            return Ok(Some(Box::new(Closed(lock))));
        }
        let hold = async {
            let mut admin = client::admin(node, &self.place.config.node.sockets).await?;
            let request =
                HoldDeletesRequest { limit_ms: 0, by: format!("basalt snapshot take, pid {}", std::process::id()) };
            let mut stream = admin.hold_deletes(request).await.map_err(|status| client::error(&status))?.into_inner();
            stream.message().await.map_err(|status| client::error(&status))?;
            Ok(stream)
        };
        let stream = self.handle.block_on(hold).map_err(refused)?;
        Ok(Some(Box::new(Answers { stream, handle: self.handle.clone() })))
    }
}

fn take(node: &Path, options: &SnapshotOptions, handle: &Handle) -> Outcome {
    let place = Place::find(node, options)?;
    place.require_node()?;
    let mut keeper = keeper(&place)?;
    let began = std::time::Instant::now();
    let taken = keeper.take(now_unix_s(), &AdminHold { place: &place, handle })?;
    lineage::mark(&place, &mut keeper)?;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if options.json {
        let snapshots: Vec<&str> = taken.snapshots.iter().map(basalt_zfs::Snapshot::as_str).collect();
        say!(
            "{}",
            json!({ "set": taken.name.as_str(), "snapshots": snapshots, "took_ms": took_ms, "deletes_held_ms": taken.held_ms, "lacks": place.lacks })
        );
        return Ok(());
    }
    say!("{}", taken.name);
    for snapshot in &taken.snapshots {
        tell!("  {snapshot}");
    }
    for lacks in &place.lacks {
        tell!("basalt: a restore of it would lack {lacks}");
    }
    Ok(())
}

/// What holds a set, by its name.
fn guards_of<'a>(guards: &'a [basalt_snapshots::Guard], set: &SnapshotSet) -> Vec<&'a str> {
    let mut by: Vec<&str> =
        guards.iter().filter(|guard| guard.set == set.name).map(|guard| guard.by.as_str()).collect();
    by.dedup();
    by
}

fn list(node: &Path, space: bool, options: &SnapshotOptions) -> Outcome {
    let place = Place::find(node, options)?;
    let keeper = keeper(&place)?;
    let sets = keeper.sets()?;
    let guards = keeper.guards()?;
    let mut used = std::collections::BTreeMap::<String, u64>::new();
    if space {
        for dataset in keeper.datasets() {
            for of in keeper.zfs().snapshot_uses(dataset).map_err(Error::from)? {
                *used.entry(of.entry.name.name().to_owned()).or_default() += of.used_bytes;
            }
        }
    }
    let now = now_unix_s();
    if options.json {
        let set = |set: &SnapshotSet| {
            json!({
                "set": set.name.as_str(),
                "taken_unix_s": set.name.taken_unix_s(),
                "whole": set.is_whole(),
                "only": place.left(set).map(|left| left.to_string()),
                "snapshots": set.snapshots().map(basalt_zfs::Snapshot::as_str).collect::<Vec<_>>(),
                "kept_by": guards_of(&guards, set),
                "used_bytes": used.get(set.name.as_str()),
            })
        };
        let asides: Vec<Value> = keeper
            .record()
            .asides
            .iter()
            .map(|aside| json!({ "id": aside.id, "restored": aside.set.as_str(), "datasets": aside.tops, "suffix": aside.suffix }))
            .collect();
        say!(
            "{}",
            json!({ "sets": sets.iter().map(set).collect::<Vec<_>>(), "restores": asides, "lacks": place.lacks })
        );
        return Ok(());
    }
    for set in &sets {
        let age = duration(now.saturating_sub(set.name.taken_unix_s()).saturating_mul(1000));
        let mut line = format!("{}  {age} ago", set.name);
        if let Some(left) = place.left(set) {
            line += &format!("  only {left}");
        } else if !set.is_whole() {
            line += &format!("  INCOMPLETE: {} of {}", set.found(), set.name.count());
        }
        if let Some(used) = used.get(set.name.as_str()) {
            line += &format!("  {} of its own", bytes(*used));
        }
        let by = guards_of(&guards, set);
        if !by.is_empty() {
            line += &format!("  kept by {}", by.join(", "));
        }
        say!("{line}");
    }
    say!("{} sets of {} datasets", sets.len(), keeper.datasets().len());
    for aside in &keeper.record().asides {
        say!(
            "restore {} of {} waits: what it replaced is {}; `basalt snapshot restore --confirm {}` destroys that, `--undo {}` puts it back",
            aside.id,
            aside.set,
            aside.tops.iter().map(|top| format!("{top}{}", aside.suffix)).collect::<Vec<_>>().join(", "),
            aside.id,
            aside.id
        );
    }
    place.lacks.iter().for_each(|lacks| say!("a restore would lack {lacks}"));
    Ok(())
}

fn reasons(verdict: &Verdict) -> String {
    verdict.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn prune(node: &Path, explain: bool, yes: bool, by: Judgement, options: &SnapshotOptions) -> Outcome {
    let place = Place::find(node, options)?;
    let mut keeper = keeper(&place)?;
    let verdicts = keeper.explain(&place.config.agent.snapshots.keep, now_unix_s(), by)?;
    let goes = verdicts.iter().filter(|verdict| verdict.fate == Fate::Destroy).count();
    let thins = verdicts.iter().filter(|verdict| matches!(verdict.fate, Fate::Thin(_))).count();
    let pruned = match yes {
        true => keeper.prune(&verdicts, &Unhurried::default())?,
        false => basalt_snapshots::Pruned::default(),
    };
    if options.json {
        let verdict = |verdict: &Verdict| {
            let reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
            let only = match verdict.fate {
                Fate::Thin(stays) => Some(stays.to_string()),
                _ => None,
            };
            json!({ "set": verdict.name.as_str(), "keep": verdict.fate == Fate::Keep, "keep_only": only, "reasons": reasons })
        };
        let busy: Vec<Value> =
            pruned.busy.iter().map(|(snapshot, by)| json!({ "snapshot": snapshot.as_str(), "by": by })).collect();
        say!(
            "{}",
            json!({ "verdicts": verdicts.iter().map(verdict).collect::<Vec<_>>(), "done": yes, "destroyed_snapshots": pruned.destroyed, "busy": busy })
        );
        return Ok(());
    }
    for verdict in verdicts.iter().filter(|verdict| explain || verdict.fate != Fate::Keep) {
        match verdict.fate {
            Fate::Keep => say!("keep     {}  {}", verdict.name, reasons(verdict)),
            Fate::Thin(_) => say!("thin     {}  {}", verdict.name, reasons(verdict)),
            Fate::Destroy => say!("destroy  {}  {}", verdict.name, reasons(verdict)),
        }
    }
    for (snapshot, by) in &pruned.busy {
        say!("in use   {snapshot}  {by}");
    }
    match yes {
        true => say!(
            "{goes} of {} sets destroyed{} ({} snapshots), {} snapshots in use",
            verdicts.len(),
            thinned(thins, "thinned"),
            pruned.destroyed,
            pruned.busy.len()
        ),
        false => say!(
            "{goes} of {} sets would be destroyed{}; nothing was done: say --yes to do it",
            verdicts.len(),
            thinned(thins, "would be thinned")
        ),
    }
    Ok(())
}

/// In a line that counts sets; nothing where there are none.
fn thinned(count: usize, how: &str) -> String {
    if count == 0 { String::new() } else { format!(", {count} {how}") }
}

fn hold(node: &Path, set: &str, tag: &str, release: bool, options: &SnapshotOptions) -> Outcome {
    let place = Place::find(node, options)?;
    let mut keeper = keeper(&place)?;
    let set = keeper.find(set)?;
    match release {
        true => keeper.release(&set.name, tag)?,
        false => keeper.hold(&set, tag, now_unix_s())?,
    }
    match options.json {
        true => say!("{}", json!({ "set": set.name.as_str(), "tag": tag, "held": !release })),
        false if release => say!("hold {tag:?} is off {}", set.name),
        false => say!(
            "hold {tag:?} is on {}: `basalt snapshot hold --release --tag {tag} {}` lets it go",
            set.name,
            set.name
        ),
    }
    Ok(())
}

fn policy(node: &Path, options: &SnapshotOptions) -> Outcome {
    let place = Place::find(node, options)?;
    let keeper = keeper(&place)?;
    let config = &place.config.agent.snapshots;
    let now = now_unix_s();
    let verdicts = keeper.explain(&config.keep, now, Judgement::default())?;
    let goes = verdicts.iter().filter(|verdict| verdict.fate == Fate::Destroy).count();
    let next = config
        .schedule
        .as_deref()
        .and_then(|line| Schedule::new(line, config.jitter_s, &place.node_id).ok()?.next_unix_s(now));
    if options.json {
        say!(
            "{}",
            json!({
                "keep": config.keep.words(),
                "longer": config.keep.longer.iter().map(|(content, longer)| (content.to_string(), json!(longer.words()))).collect::<serde_json::Map<_, _>>(),
                "min_age_s": config.keep.min_age_s, "schedule": config.schedule, "jitter_s": config.jitter_s,
                "prune": config.prune, "next_unix_s": next, "sets": verdicts.len(), "would_destroy": goes,
            })
        );
        return Ok(());
    }
    say!(
        "keep       {}, and all younger than {}",
        config.keep.words().join(", "),
        duration(config.keep.min_age_s.saturating_mul(1000))
    );
    for (content, longer) in &config.keep.longer {
        let datasets = place.members.iter().filter(|mounted| mounted.content == Some(*content)).count();
        match datasets {
            0 => {
                say!("  {content}: {}, which no dataset is for: none holds {content} alone", longer.words().join(", "))
            }
            n => say!(
                "  {content}: {}, in {n} datasets; what is left of a set then restores no node",
                longer.words().join(", ")
            ),
        }
    }
    match (&config.schedule, next) {
        (None, _) => say!("schedule   none: sets are taken only by `basalt snapshot take` ([snapshots] schedule)"),
        (Some(line), Some(next)) => {
            say!("schedule   {line} UTC, next in {}", duration(next.saturating_sub(now).saturating_mul(1000)))
        }
        (Some(line), None) => say!("schedule   {line} UTC, which never comes"),
    }
    say!("prune      {}", if config.prune { "after each scheduled set" } else { "only when asked" });
    say!(
        "now        {} sets, {goes} that the policy does not keep (`basalt snapshot prune --explain`)",
        verdicts.len()
    );
    place.lacks.iter().for_each(|lacks| say!("lacks      {lacks}"));
    Ok(())
}

/// The snapshots of a node for `basalt status`, in lines and as JSON; none where it isn't on ZFS. Settles nothing, waits for nobody's lock.
pub fn glance(node: &Path) -> Option<(String, Value)> {
    let place = Place::find(node, &SnapshotOptions { datasets: Vec::new(), json: false }).ok()?;
    if place.members.is_empty() {
        return None;
    }
    let zfs = place::zfs().ok()?;
    let listings: basalt_zfs::Result<Vec<_>> = place.datasets().iter().map(|dataset| zfs.snapshots(dataset)).collect();
    let sets = basalt_snapshots::order(&listings.ok()?);
    let record = basalt_snapshots::FileJournal::glance(&place.state).unwrap_or_default();
    let youngest = sets.iter().rev().find(|set| set.is_whole()).map(|set| set.name.clone());
    let thinned = sets.iter().filter(|set| place.left(set).is_some()).count();
    let incomplete = sets.iter().filter(|set| !set.is_whole()).count() - thinned;
    let mut lines = match &youngest {
        None => "no whole set: basalt snapshot take".to_owned(),
        Some(name) => {
            let age = now_unix_s().saturating_sub(name.taken_unix_s());
            format!("{} sets, the youngest {} old", sets.len(), duration(age.saturating_mul(1000)))
        }
    };
    if thinned > 0 {
        lines += &format!(", {thinned} thinned");
    }
    if incomplete > 0 {
        lines += &format!(", {incomplete} not whole");
    }
    for aside in &record.asides {
        lines += &format!("; restore {} waits to be confirmed or undone", aside.id);
    }
    if record.intent.is_some() {
        lines += "; an operation was left half done, `basalt snapshot list` settles it";
    }
    for lacks in &place.lacks {
        lines += &format!("; a restore would lack {lacks}");
    }
    let object = json!({
        "sets": sets.len(),
        "incomplete": incomplete,
        "thinned": thinned,
        "youngest": youngest.as_ref().map(basalt_snapshots::SetName::as_str),
        "youngest_unix_s": youngest.as_ref().map(basalt_snapshots::SetName::taken_unix_s),
        "restores": record.asides.iter().map(|aside| &aside.id).collect::<Vec<_>>(),
        "half_done": record.intent.is_some(),
        "lacks": place.lacks,
        "lineage": record.lineage,
    });
    Some((lines, object))
}
