//! Holds on whole sets: on all snapshots or, as far as ZFS goes, on the way there. What is on record is set again where it is missing.

use basalt_zfs::{Class, HoldTag, Snapshot};

use crate::{Error, HoldRecord, Intent, Keeper, Result, SetName, SnapshotSet, keeper::parsed};

impl Keeper {
    /// Holds all snapshots of a set by a tag. Holding again is no error.
    pub fn hold(&mut self, set: &SnapshotSet, tag: &str, now_unix_s: u64) -> Result<()> {
        tag.parse::<HoldTag>()?;
        let hold = HoldRecord { set: set.name.clone(), tag: tag.to_owned(), since_unix_s: now_unix_s };
        let snapshots: Vec<String> = set.snapshots().map(Snapshot::to_string).collect();
        self.begin(Intent::Hold { hold: hold.clone(), snapshots: snapshots.clone() })?;
        match self.finish_hold(hold, &snapshots) {
            Ok(_) => Ok(()),
            Err(err) => self.failed(err),
        }
    }

    /// Releases a hold on all snapshots of a set. [`NotFound`](crate::Kind::NotFound) if none has it.
    pub fn release(&mut self, set: &SetName, tag: &str) -> Result<()> {
        let parsed: HoldTag = tag.parse()?;
        let of = self.find(set.as_str())?;
        let mut held = self.record.holds.iter().any(|hold| hold.set == *set && hold.tag == tag);
        for snapshot in of.snapshots() {
            held |= self.zfs.holds(snapshot)?.iter().any(|hold| hold.tag == parsed);
        }
        if !held {
            return Err(Error::not_found(format!(
                "{set} has no hold {tag:?}: `basalt snapshot list` shows who holds what"
            )));
        }
        let hold = HoldRecord { set: set.clone(), tag: tag.to_owned(), since_unix_s: 0 };
        let snapshots: Vec<String> = of.snapshots().map(Snapshot::to_string).collect();
        self.begin(Intent::Release { hold: hold.clone(), snapshots: snapshots.clone() })?;
        match self.finish_release(hold, &snapshots) {
            Ok(_) => Ok(()),
            Err(err) => self.failed(err),
        }
    }

    pub(crate) fn finish_hold(&mut self, hold: HoldRecord, snapshots: &[String]) -> Result<String> {
        let set = self.set_holds(&hold, snapshots)?;
        let said = format!("hold {:?} is on {} snapshots of {}", hold.tag, snapshots.len(), hold.set);
        self.write(|record| {
            record.intent = None;
            if set && !record.holds.iter().any(|known| known.set == hold.set && known.tag == hold.tag) {
                record.holds.push(hold);
            }
        })?;
        Ok(said)
    }

    /// Whether any of the snapshots is there to be held.
    fn set_holds(&self, hold: &HoldRecord, snapshots: &[String]) -> Result<bool> {
        let tag: HoldTag = hold.tag.parse()?;
        let mut any = false;
        for snapshot in parsed(snapshots)? {
            match self.zfs.hold(&snapshot, &tag) {
                Ok(()) => any = true,
                Err(err) if err.class() == Class::Exists => any = true,
                Err(err) if err.class() == Class::NotFound => {}
                Err(err) => return Err(err.into()),
            }
        }
        Ok(any)
    }

    pub(crate) fn finish_release(&mut self, hold: HoldRecord, snapshots: &[String]) -> Result<String> {
        let tag: HoldTag = hold.tag.parse()?;
        for snapshot in parsed(snapshots)? {
            match self.zfs.release(&snapshot, &tag) {
                Err(err) if err.class() != Class::NotFound => return Err(err.into()),
                _ => {}
            }
        }
        let said = format!("hold {:?} is off {}", hold.tag, hold.set);
        self.write(|record| {
            record.intent = None;
            record.holds.retain(|known| !(known.set == hold.set && known.tag == hold.tag));
        })?;
        Ok(said)
    }

    /// Holds that are on record: those that ZFS lacks are set again, those whose set is gone are forgotten, and both is said.
    pub(crate) fn reconcile_holds(&mut self) -> Result<Vec<String>> {
        if self.record.holds.is_empty() {
            return Ok(Vec::new());
        }
        let sets = self.sets()?;
        let mut said = Vec::new();
        for hold in self.record.holds.clone() {
            let Some(set) = sets.iter().find(|set| set.name == hold.set) else {
                said.push(format!("hold {:?} was on {}, which is gone", hold.tag, hold.set));
                self.write(|record| record.holds.retain(|known| *known != hold))?;
                continue;
            };
            let mut missing = Vec::new();
            for snapshot in set.snapshots() {
                if !self.zfs.holds(snapshot)?.iter().any(|found| found.tag.as_str() == hold.tag) {
                    missing.push(snapshot.to_string());
                }
            }
            if !missing.is_empty() {
                self.set_holds(&hold, &missing)?;
                said.push(format!("hold {:?} was missing on {} and is set again", hold.tag, missing.join(", ")));
            }
        }
        Ok(said)
    }
}
