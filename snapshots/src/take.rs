//! Taking a set: one instant in each pool, and all or nothing over the pools.

use basalt_zfs::{Class, Snapshot, When};

use crate::{
    Error, Intent, Keeper, Result, SetName,
    keeper::{by_pool, parsed},
};

/// Holds a node's deletes of blocks and its reclaim while a set is taken over several pools (STORE 22). Puts go on.
pub trait Quiesce {
    /// Holds until what it returns is dropped, or its process ends. `None` where nobody serves the node, who could delete anything.
    fn hold(&self) -> Result<Option<Box<dyn Held>>>;
}

/// Deletes that are held. Dropping it lets them go.
pub trait Held {
    /// Whether they have been held all the time until now: a node lets go of them by itself after a while.
    fn is_held(&mut self) -> bool;
}

/// A set that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its name.
    pub name: SetName,
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
    /// How long deletes were held, in milliseconds; `None` where they didn't need to be: one pool takes all in one transaction.
    pub held_ms: Option<u64>,
}

impl Keeper {
    /// Takes a set of all the node's datasets, named by the given time. In each pool all its snapshots are of one transaction; over several pools, deletes are held and
    /// metadata goes first, so that no pin lacks its blocks. A failure leaves no part of the set.
    pub fn take(&mut self, now_unix_s: u64, node: &dyn Quiesce) -> Result<Taken> {
        let name = SetName::new(now_unix_s, self.datasets.len())?;
        let snapshots = self.datasets.iter().map(|dataset| name.of(dataset)).collect::<Result<Vec<_>>>()?;
        let properties = vec![("basalt:set-of".parse()?, self.record.node.clone())];
        let pools = by_pool(snapshots.iter().cloned(), |snapshot| snapshot.dataset().pool());
        self.begin(Intent::Take {
            set: name.clone(),
            snapshots: snapshots.iter().map(Snapshot::to_string).collect(),
            is_one_pool: pools.len() == 1,
        })?;
        let began = std::time::Instant::now();
        let take = || -> Result<Option<u64>> {
            let mut hold = if pools.len() > 1 { node.hold()? } else { None };
            for (_, snapshots) in &pools {
                self.zfs.snapshot(snapshots, &properties)?;
            }
            let Some(hold) = &mut hold else { return Ok(None) };
            match hold.is_held() {
                true => Ok(Some(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX))),
                false => Err(Error::refused(
                    "the node let go of its deletes before all pools were done, so a pin in the one might lack its blocks in the other: try again when the pools are less busy",
                )),
            }
        };
        match take() {
            Ok(held_ms) => {
                self.write(|record| record.intent = None)?;
                Ok(Taken { name, snapshots, held_ms })
            }
            Err(err) => self.failed(err.context("take a snapshot of the node")),
        }
    }

    /// A take that did not end: of one pool, all its snapshots are there, and it has. Else they go, and it hasn't.
    pub(crate) fn settle_take(&mut self, set: &SetName, snapshots: &[String], is_one_pool: bool) -> Result<String> {
        let snapshots = parsed(snapshots)?;
        let mut there = Vec::new();
        for snapshot in &snapshots {
            let listed = match self.zfs.snapshots(&snapshot.dataset()) {
                Err(err) if err.class() == Class::NotFound => Vec::new(),
                other => other?,
            };
            if listed.iter().any(|entry| entry.name == *snapshot) {
                there.push(snapshot.clone());
            }
        }
        if is_one_pool && there.len() == snapshots.len() {
            self.write(|record| record.intent = None)?;
            return Ok(format!("{set} was taken whole"));
        }
        for snapshot in &there {
            match self.zfs.destroy_snapshots(&snapshot.dataset(), std::slice::from_ref(snapshot), When::Now) {
                Err(err) if err.class() != Class::NotFound => {
                    return Err(Error::from(err).context(format!("undo the half of {set} that was taken")));
                }
                _ => {}
            }
        }
        self.write(|record| record.intent = None)?;
        Ok(match there.len() {
            0 => format!("Nothing of {set} was taken"),
            some => format!("{some} of {} snapshots of {set} were taken, and are undone", snapshots.len()),
        })
    }
}
