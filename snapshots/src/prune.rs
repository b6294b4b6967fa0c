//! Destroying what a judgement destroys: in batches that a pool can digest, and never what someone holds.

use std::{collections::BTreeMap, time::Duration};

use basalt_zfs::{Class, Dataset, Holder, Pool, Snapshot, When, Zfs};

use crate::{
    Content, Contents, Error, Fate, Intent, Keeper, Result, SetName, Verdict,
    keeper::{by_pool, parsed},
};

/// Snapshots of one destroy. ZFS takes more; a pool of disks stalls on them.
const BATCH: usize = 25;
const _: () = assert!(BATCH <= basalt_zfs::DESTROY_SNAPSHOTS_MAX);

/// How long to wait between batches.
pub trait Pace {
    /// Returns when the pool may be given more.
    fn wait(&self, zfs: &dyn Zfs, pool: &Pool);
}

/// Waits until a pool has given back most of what was destroyed before, at most some seconds: a mass destroy otherwise stalls everything on it.
#[derive(Clone, Copy, Debug)]
pub struct Unhurried {
    /// What may still be waiting to be given back.
    pub freeing_bytes_max: u64,
    /// How long to wait at most.
    pub patience: Duration,
}

impl Default for Unhurried {
    fn default() -> Unhurried {
        Unhurried { freeing_bytes_max: 1 << 30, patience: Duration::from_secs(10) }
    }
}

impl Pace for Unhurried {
    fn wait(&self, zfs: &dyn Zfs, pool: &Pool) {
        let began = std::time::Instant::now();
        while began.elapsed() < self.patience {
            let freeing = zfs
                .pools()
                .ok()
                .and_then(|pools| pools.into_iter().find(|entry| entry.name == *pool))
                .map(|entry| entry.freeing_bytes);
            if freeing.is_none_or(|bytes| bytes <= self.freeing_bytes_max) {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Snapshots that are gone.
    pub destroyed: u64,
    /// Those that someone took hold of meanwhile, and by what.
    pub busy: Vec<(Snapshot, String)>,
}

impl Keeper {
    /// Destroys the sets that the verdicts destroy. What has become busy since is left and named, and fails nothing.
    pub fn prune(&mut self, verdicts: &[Verdict], pace: &dyn Pace) -> Result<Pruned> {
        // What of each set stays.
        let stays = |verdict: &Verdict| match verdict.fate {
            Fate::Keep => None,
            Fate::Thin(stays) => Some(stays),
            Fate::Destroy => Some(Contents::default()),
        };
        let doomed: BTreeMap<&SetName, Contents> =
            verdicts.iter().filter_map(|verdict| Some((&verdict.name, stays(verdict)?))).collect();
        if doomed.is_empty() {
            return Ok(Pruned::default());
        }
        let mut snapshots: Vec<Snapshot> = Vec::new();
        for set in self.sets()? {
            let Some(stays) = doomed.get(&set.name) else { continue };
            let goes = |content: &Option<Content>| content.is_none_or(|content| !stays.has(content));
            let of = set.members.iter().zip(&self.contents).filter(|(_, content)| goes(content));
            snapshots.extend(of.filter_map(|(member, _)| Some(member.as_ref()?.name.clone())));
        }
        // By dataset, so that batches are full; oldest first in each.
        snapshots.sort_by_key(|snapshot| self.datasets.iter().position(|dataset| *dataset == snapshot.dataset()));
        self.begin(Intent::Prune { snapshots: snapshots.iter().map(Snapshot::to_string).collect() })?;
        match self.destroy(&snapshots, pace) {
            Ok(pruned) => {
                self.write(|record| record.intent = None)?;
                Ok(pruned)
            }
            Err(err) => self.failed(err.context("prune")),
        }
    }

    pub(crate) fn settle_prune(&mut self, snapshots: &[String]) -> Result<String> {
        let pruned = self.destroy(&parsed(snapshots)?, &Unhurried::default())?;
        self.write(|record| record.intent = None)?;
        Ok(format!(
            "A prune that was cut short is finished: {} more snapshots destroyed, {} are in use",
            pruned.destroyed,
            pruned.busy.len()
        ))
    }

    /// Destroys snapshots by name, those that are there and free.
    pub(crate) fn destroy(&self, snapshots: &[Snapshot], pace: &dyn Pace) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let mut first = true;
        for (dataset, of) in by_dataset(snapshots) {
            for batch in of.chunks(BATCH) {
                if !std::mem::take(&mut first) {
                    pace.wait(&*self.zfs, &dataset.pool());
                }
                self.destroy_batch(&dataset, batch, &mut pruned)?;
            }
        }
        Ok(pruned)
    }

    fn destroy_batch(&self, dataset: &Dataset, batch: &[Snapshot], pruned: &mut Pruned) -> Result<()> {
        match self.zfs.destroy_snapshots(dataset, batch, When::Now) {
            Ok(()) => pruned.destroyed += batch.len() as u64,
            Err(err) if err.class() == Class::NotFound => {}
            // All or none: one by one, those that are free go.
            Err(err) if err.class() == Class::Busy && batch.len() > 1 => {
                for one in batch {
                    self.destroy_batch(dataset, std::slice::from_ref(one), pruned)?;
                }
            }
            Err(err) if err.class() == Class::Busy => {
                let holders: Vec<String> = err.holders().iter().map(Holder::to_string).collect();
                let by = if holders.is_empty() {
                    "it is in use (a mount, or a stream that is being sent)".to_owned()
                } else {
                    holders.join(", ")
                };
                pruned.busy.extend(batch.iter().map(|snapshot| (snapshot.clone(), by.clone())));
            }
            Err(err) => return Err(Error::from(err)),
        }
        Ok(())
    }
}

fn by_dataset(snapshots: &[Snapshot]) -> Vec<(Dataset, Vec<Snapshot>)> {
    let mut all = Vec::new();
    for (_, of_pool) in by_pool(snapshots.iter().cloned(), |snapshot| snapshot.dataset().pool()) {
        let mut groups: Vec<(Dataset, Vec<Snapshot>)> = Vec::new();
        for snapshot in of_pool {
            let dataset = snapshot.dataset();
            match groups.iter_mut().find(|(known, _)| *known == dataset) {
                Some((_, group)) => group.push(snapshot),
                None => groups.push((dataset, vec![snapshot])),
            }
        }
        all.extend(groups);
    }
    all
}
