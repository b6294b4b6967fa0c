//! The agent's own snapshots: by the schedule of `[snapshots]`, each followed by a prune if that is wanted.

use std::{path::Path, time::Duration};

use basalt_snapshots::{Judgement, Schedule, SnapshotSet, Unhurried};
use tokio::runtime::Handle;

use super::{AdminHold, keeper, now_unix_s, place::Place};
use crate::{cli::SnapshotOptions, config::Snapshots, exit::Outcome};

/// How often it is looked whether one is due.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// Runs until it is dropped. What fails is logged, and tried again when it is due again.
pub async fn run(node: &Path, config: &Snapshots, node_id: &str) {
    let Some(line) = &config.schedule else { return };
    let schedule = match Schedule::new(line, config.jitter_s, node_id) {
        Ok(schedule) => schedule,
        Err(err) => return tracing::error!(%err, "there are no scheduled snapshots"),
    };
    let started = now_unix_s();
    // When the last one was taken or tried, once that is known: nothing is asked of ZFS until the next is due.
    let mut last = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if last.is_some() && !schedule.is_due(last, started, now_unix_s()) {
            continue;
        }
        let (node, schedule, prune) = (node.to_path_buf(), schedule.clone(), config.prune);
        let handle = Handle::current();
        match tokio::task::spawn_blocking(move || turn(&node, &schedule, prune, started, &handle)).await {
            Ok(Ok(youngest)) => last = youngest,
            // A failed try counts, so that a full pool is not asked every few seconds.
            Ok(Err(failure)) => {
                last = Some(now_unix_s());
                tracing::error!("scheduled snapshot: {failure}");
            }
            Err(err) => tracing::error!(%err, "scheduled snapshot"),
        }
    }
}

/// Takes a set and prunes, if one is due. Says when the youngest was taken.
fn turn(node: &Path, schedule: &Schedule, prune: bool, started: u64, handle: &Handle) -> Outcome<Option<u64>> {
    let now = now_unix_s();
    let options = SnapshotOptions { datasets: Vec::new(), json: false };
    let place = Place::find(node, &options)?;
    let mut keeper = keeper(&place)?;
    let youngest =
        keeper.sets()?.iter().rev().find(|set| set.is_whole()).map(|set: &SnapshotSet| set.name.taken_unix_s());
    if !schedule.is_due(youngest, started, now) {
        return Ok(youngest);
    }
    let taken = keeper.take(now, &AdminHold { place: &place, handle })?;
    tracing::info!(set = taken.name.as_str(), snapshots = taken.snapshots.len(), "took a set of snapshots");
    super::lineage::mark(&place, &mut keeper)?;
    if prune {
        let verdicts = keeper.explain(&place.config.agent.snapshots.keep, now, Judgement::default())?;
        let pruned = keeper.prune(&verdicts, &Unhurried::default())?;
        tracing::info!(
            destroyed = pruned.destroyed,
            in_use = pruned.busy.len(),
            sets = verdicts.len(),
            "pruned snapshots"
        );
    }
    Ok(Some(now))
}
