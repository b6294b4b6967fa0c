//! Restore: clones of a set take the places of the node's datasets, and what they replace stands aside until it is confirmed or undone.
//!
//! There is no rollback here: it would destroy what came after the set, and with it the way back. A swap costs two renames per tree of datasets:
//!
//! 1. *Prepare*: each dataset is cloned below a sibling, `tank/basalt-restore-ID`, with the properties that were set on it, not mounted. What is replaced is kept from being mounted
//!    by itself (`canmount=noauto`) and unmounted. A failure or a kill up to here is undone.
//! 2. *Rename*: `tank/basalt` to `tank/basalt-before-ID`, the clones to `tank/basalt`; the clones are promoted, so that the sets up to this one are the node's again;
//!    all is mounted as it was. A failure or a kill from here on is finished by the next start.
//! 3. The old stands aside, with all sets younger than the restored one, until `confirm` destroys it or `undo` swaps back in the same way.
//!
//! What is in place then has a new lineage, on record and as `basalt:lineage` on each dataset: ids repeat with other content after this, and what compares positions or
//! replicates must notice (STORE 21).

use basalt_zfs::{Class, Dataset, Entity, PropertyName, Reach, Snapshot, Source};

use crate::{Aside, Error, Intent, Keeper, MemberState, Phase, Result, SetName, SnapshotSet, lineage::new_lineage};

const LINEAGE: &str = "basalt:lineage";
/// Set by ZFS or at creation alone, or bound to the space that the old still has.
const NOT_COPIED: [&str; 8] =
    ["canmount", "reservation", "refreservation", "encryption", "keyformat", "keylocation", "pbkdf2iters", "volsize"];

/// What a restore would do. Nothing has been done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePlan {
    /// The set.
    pub set: SetName,
    /// The datasets that are replaced, each with all in it.
    pub tops: Vec<Dataset>,
    /// How each of them is, parents first.
    pub members: Vec<MemberState>,
    /// Sets that were taken after it: they stand aside with what is replaced.
    pub younger: Vec<SetName>,
}

/// A swap that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swapped {
    /// What stands aside now.
    pub aside: Aside,
    /// What is not quite as it was, a line each.
    pub notes: Vec<String>,
}

impl Keeper {
    /// What a restore of a set would do. Refused where the set is not whole, or where the datasets hold others that are not in it.
    pub fn plan_restore(&self, set: &SnapshotSet) -> Result<RestorePlan> {
        if let Some(left) = self.left(set).filter(|_| !set.is_whole()) {
            return Err(Error::refused(format!(
                "of {} only {left} is left ({} of {} snapshots), as the policy has it, and a part of a node is no node: restore another set; what is left can be compared \
                 (`basalt snapshot diff`) and read in .zfs/snapshot",
                set.name,
                set.found(),
                set.name.count()
            )));
        }
        if !set.is_whole() {
            return Err(Error::refused(format!(
                "{} has {} of {} snapshots in the node's datasets, and a part of a node is no node: restore another set",
                set.name,
                set.found(),
                set.name.count()
            )));
        }
        let of: Vec<Dataset> = set.snapshots().map(Snapshot::dataset).collect();
        let tops: Vec<Dataset> = of.iter().filter(|one| !of.iter().any(|other| other.contains(one))).cloned().collect();
        let mut members = Vec::new();
        for top in &tops {
            if top.parent().is_none() {
                return Err(Error::refused(format!(
                    "{top} is a pool's own dataset, which can't be renamed: copy what is needed out of `basalt snapshot mount`, or move the node into a dataset of its own"
                )));
            }
            for entry in self.zfs.datasets(top, Reach::Descendants)? {
                let member = self.member_state(&entry.name)?;
                let is_container = !of.contains(&entry.name);
                if is_container && member.canmount != "off" {
                    return Err(Error::refused(format!(
                        "{} lies in {top} and is not in {}: it would stand aside with the old and nothing would take its place. Rename it to somewhere else first",
                        entry.name, set.name
                    )));
                }
                members.push(MemberState { is_container, ..member });
            }
        }
        let sets = self.sets()?;
        let younger =
            sets.iter().skip_while(|other| other.name != set.name).skip(1).map(|other| other.name.clone()).collect();
        Ok(RestorePlan { set: set.name.clone(), tops, members, younger })
    }

    fn member_state(&self, dataset: &Dataset) -> Result<MemberState> {
        let properties = self
            .zfs
            .properties(&Entity::from(dataset), &["canmount".parse()?, "mounted".parse()?, "mountpoint".parse()?])?;
        let value = |name: &str| properties.iter().find(|p| p.name.as_str() == name).map_or("", |p| p.value.as_str());
        Ok(MemberState {
            dataset: dataset.to_string(),
            canmount: match value("canmount") {
                "" => "on".to_owned(),
                other => other.to_owned(),
            },
            mounted: value("mounted") == "yes",
            mountpoint: value("mountpoint").to_owned(),
            is_container: false,
        })
    }

    /// Restores as planned. The node must be closed, and Kubo stopped: what has files open makes it fail, with nothing changed.
    pub fn restore(&mut self, plan: &RestorePlan) -> Result<Swapped> {
        let id = random_id()?;
        let aside = Aside {
            suffix: format!("-before-{id}"),
            set: plan.set.clone(),
            tops: plan.tops.iter().map(Dataset::to_string).collect(),
            members: plan.members.clone(),
            lineage: new_lineage()?,
            id: id.clone(),
        };
        self.swap(aside, format!("-restore-{id}"), true)
    }

    /// Puts back what a restore has replaced; what was live until now stands aside instead, under the same id.
    pub fn undo_restore(&mut self, id: &str) -> Result<Swapped> {
        let old = self.aside(id)?;
        let id = old.id.as_str();
        let mut members = old.members.clone();
        // As it is mounted now, which may have changed since.
        for member in &mut members {
            member.mounted = self.member_state(&member.dataset.parse()?).map_or(member.mounted, |now| now.mounted);
        }
        let suffix = if old.suffix.starts_with("-before") { format!("-undone-{id}") } else { format!("-before-{id}") };
        self.swap(Aside { suffix, members, lineage: new_lineage()?, ..old.clone() }, old.suffix, false)
    }

    /// What a restore has replaced, by its id, or `latest`.
    pub fn aside(&self, id: &str) -> Result<Aside> {
        let all = &self.record.asides;
        let found = if id == "latest" { all.last() } else { all.iter().find(|aside| aside.id == id) }.cloned();
        found.ok_or_else(|| {
            Error::not_found(format!(
                "no restore {id:?} waits to be confirmed or undone: `basalt snapshot list` shows those that do"
            ))
        })
    }

    fn swap(&mut self, aside: Aside, incoming: String, is_made: bool) -> Result<Swapped> {
        if let Some(lease) = self.record.leases.iter().find(|lease| lease.process.is_some()) {
            return Err(Error::refused(format!(
                "{} has {} in use, which lies in what would be replaced: stop that first",
                lease.by, lease.set
            )));
        }
        let intent = |phase| Intent::Swap { aside: aside.clone(), incoming: incoming.clone(), is_made, phase };
        self.begin(intent(Phase::Prepare))?;
        if let Err(err) = self.prepare_swap(&aside, &incoming, is_made) {
            return self.failed(err.context(format!("make room for {}", aside.set)));
        }
        let renaming = self.write(|record| record.intent = Some(intent(Phase::Rename)));
        match renaming.and_then(|()| self.finish_swap(aside.clone(), &incoming)) {
            Ok(notes) => Ok(Swapped { aside, notes }),
            Err(err) => self.failed(err.context(format!("put {} in place", aside.set))),
        }
    }

    pub(crate) fn settle_swap(&mut self, aside: Aside, incoming: &str, is_made: bool, phase: Phase) -> Result<String> {
        match phase {
            Phase::Prepare => {
                self.undo_prepare(&aside, incoming, is_made)?;
                Ok(format!("The restore of {} is undone: the node is as it was", aside.set))
            }
            Phase::Rename => {
                let set = aside.set.clone();
                let id = aside.id.clone();
                self.finish_swap(aside, incoming)?;
                Ok(format!("The restore of {set} is finished; what it replaced stands aside as {id}"))
            }
        }
    }

    fn prepare_swap(&self, aside: &Aside, incoming: &str, is_made: bool) -> Result<()> {
        // Names that would be too long are found before anything is done.
        for member in &aside.members {
            placed(aside, &member.dataset, incoming)?;
            placed(aside, &member.dataset, &aside.suffix)?;
        }
        if is_made {
            for member in &aside.members {
                self.make_incoming(aside, member, incoming)?;
            }
        }
        for member in &aside.members {
            if member.canmount == "on" {
                self.zfs.set(&member.dataset.parse()?, &[("canmount".parse()?, "noauto".to_owned())])?;
            }
        }
        for member in by_mountpoint(&aside.members).into_iter().rev().filter(|member| member.mounted) {
            self.unmount(&member.dataset.parse()?)?;
        }
        Ok(())
    }

    fn make_incoming(&self, aside: &Aside, member: &MemberState, incoming: &str) -> Result<()> {
        let live: Dataset = member.dataset.parse()?;
        let to = placed(aside, &member.dataset, incoming)?;
        let canmount = if member.is_container { "off" } else { "noauto" };
        let mut properties: Vec<(PropertyName, String)> = vec![("canmount".parse()?, canmount.to_owned())];
        for property in self.zfs.properties(&Entity::from(&live), &[])? {
            let is_set = matches!(property.source, Source::Local | Source::Received);
            if is_set && property.name.as_str() != LINEAGE && !NOT_COPIED.contains(&property.name.as_str()) {
                properties.push((property.name, property.value));
            }
        }
        match member.is_container {
            true => self.zfs.create(&to, &properties)?,
            false => self.zfs.clone_snapshot(&aside.set.of(&live)?, &to, &properties)?,
        }
        Ok(())
    }

    fn unmount(&self, dataset: &Dataset) -> Result<()> {
        let unmounted = match &self.mounts {
            Some(mounts) => mounts.unmount(dataset),
            None => self.zfs.unmount(dataset),
        };
        match unmounted {
            Err(err) if err.class() == Class::Busy => Err(Error::from(err).context(
                "it is in use: stop Kubo and the agent (`systemctl stop`, or SIGTERM), and leave its folders",
            )),
            Err(err) if !matches!(err.class(), Class::Already) => Err(err.into()),
            _ => Ok(()),
        }
    }

    fn mount(&self, dataset: &Dataset, at: &str) -> Result<()> {
        let mounted = match &self.mounts {
            Some(mounts) => mounts.mount(dataset, at),
            None => self.zfs.mount(dataset),
        };
        match mounted {
            Err(err) if err.class() != Class::Already => Err(err.into()),
            _ => Ok(()),
        }
    }

    /// Before anything was renamed: what was made goes, and the old is mounted as it was.
    fn undo_prepare(&mut self, aside: &Aside, incoming: &str, is_made: bool) -> Result<()> {
        if is_made {
            for member in aside.members.iter().rev() {
                let made = placed(aside, &member.dataset, incoming)?;
                if self.exists(&made)? {
                    // It was never mounted by us; whoever did has to be root.
                    if self.member_state(&made)?.mounted {
                        self.unmount(&made)?;
                    }
                    self.zfs.destroy(&made)?;
                }
            }
        }
        self.as_they_were(&aside.members)?;
        self.write(|record| record.intent = None)
    }

    /// Sets `canmount` of the live datasets to what it was, and mounts those that were mounted.
    fn as_they_were(&self, members: &[MemberState]) -> Result<()> {
        for member in by_mountpoint(members).into_iter().filter(|member| !member.is_container) {
            let dataset: Dataset = member.dataset.parse()?;
            // Only what isn't so: who may not set it may not have changed it either.
            if self.member_state(&dataset)?.canmount != member.canmount {
                self.zfs.set(&dataset, &[("canmount".parse()?, member.canmount.clone())])?;
            }
            if member.mounted && !self.member_state(&dataset)?.mounted {
                self.mount(&dataset, &member.mountpoint)?;
            }
        }
        Ok(())
    }

    /// From the first rename on: every step is done that isn't done yet.
    fn finish_swap(&mut self, aside: Aside, incoming_suffix: &str) -> Result<Vec<String>> {
        for top in &aside.tops {
            let live: Dataset = top.parse()?;
            let (incoming, old) = (placed(&aside, top, incoming_suffix)?, placed(&aside, top, &aside.suffix)?);
            if !self.exists(&incoming)? {
                continue;
            }
            for member in aside
                .members
                .iter()
                .filter(|member| member.dataset == *top || member.dataset.starts_with(&format!("{top}/")))
            {
                let comes = placed(&aside, &member.dataset, incoming_suffix)?;
                if !self.exists(&comes)? {
                    return Err(Error::refused(format!(
                        "{comes} is gone, and without it {top} would not be whole: nothing of it was renamed"
                    )));
                }
            }
            if self.exists(&live)? {
                self.zfs.rename(&live, &old)?;
            }
            self.zfs.rename(&incoming, &live)?;
        }
        let mut notes = Vec::new();
        for member in aside.members.iter().filter(|member| !member.is_container) {
            let (live, old): (Dataset, Dataset) =
                (member.dataset.parse()?, placed(&aside, &member.dataset, &aside.suffix)?);
            let entry = self.zfs.datasets(&live, Reach::Itself)?.into_iter().next();
            // It is the clone of what stands aside until it owns the snapshots that they share.
            if entry.and_then(|entry| entry.origin).is_some_and(|origin| origin.dataset() == old) {
                self.zfs.promote(&live)?;
            }
            self.zfs.set(&live, &[(LINEAGE.parse()?, aside.lineage.clone())])?;
            for name in ["reservation", "refreservation"] {
                let kept = self.zfs.properties(&Entity::from(&old), &[name.parse()?])?;
                if let Some(kept) =
                    kept.into_iter().find(|p| p.source == Source::Local && p.value != "0" && p.value != "none")
                {
                    notes.push(format!(
                        "{name}={} stays with {old} until it is confirmed: set it on {live} then",
                        kept.value
                    ));
                }
            }
        }
        self.as_they_were(&aside.members)?;
        self.write(|record| {
            record.intent = None;
            record.asides.retain(|known| known.id != aside.id);
            record.lineage = aside.lineage.clone();
            // Of another life, and rightly so.
            record.lives.clear();
            record.asides.push(aside);
        })?;
        Ok(notes)
    }

    /// What a confirmation destroys, by name: datasets and their snapshots. Refused where something holds them.
    pub fn plan_confirm(&self, id: &str) -> Result<Vec<String>> {
        let aside = self.aside(id)?;
        let mut goes = Vec::new();
        for member in aside.members.iter().rev() {
            let dataset = placed(&aside, &member.dataset, &aside.suffix)?;
            if !self.exists(&dataset)? {
                continue;
            }
            for of in self.zfs.snapshot_uses(&dataset)? {
                if of.holds > 0 || !of.clones.is_empty() {
                    return Err(Error::refused(format!(
                        "{} is needed ({} holds, {} clones): release them first (`zfs holds {}`)",
                        of.entry.name,
                        of.holds,
                        of.clones.len(),
                        of.entry.name
                    )));
                }
                goes.push(of.entry.name.to_string());
            }
            goes.push(dataset.to_string());
        }
        Ok(goes)
    }

    /// Destroys what a restore has replaced, with the sets that were taken after the restored one. There is no way back.
    pub fn confirm_restore(&mut self, id: &str) -> Result<()> {
        self.plan_confirm(id)?;
        let aside = self.aside(id)?;
        self.begin(Intent::Confirm { aside: aside.clone() })?;
        match self.finish_confirm(aside) {
            Ok(_) => Ok(()),
            Err(err) => self.failed(err),
        }
    }

    pub(crate) fn finish_confirm(&mut self, aside: Aside) -> Result<String> {
        for member in aside.members.iter().rev() {
            let dataset = placed(&aside, &member.dataset, &aside.suffix)?;
            if !self.exists(&dataset)? {
                continue;
            }
            let snapshots: Vec<Snapshot> = self.zfs.snapshots(&dataset)?.into_iter().map(|entry| entry.name).collect();
            let pruned = self.destroy(&snapshots, &crate::Unhurried::default())?;
            if let Some((snapshot, by)) = pruned.busy.first() {
                // Nothing more goes, and it can be tried again.
                self.write(|record| record.intent = None)?;
                return Err(Error::refused(format!("{snapshot} is needed by {by}: release it, then confirm again")));
            }
            if self.member_state(&dataset)?.mounted {
                self.unmount(&dataset)?;
            }
            self.zfs.destroy(&dataset)?;
        }
        let said = format!("What the restore of {} had replaced is destroyed", aside.set);
        self.write(|record| {
            record.intent = None;
            record.asides.retain(|known| known.id != aside.id);
        })?;
        Ok(said)
    }
}

/// In the order in which they are mounted: what is mounted in another comes after it, whatever their names (a repo's folder has the node's in it, whose dataset has the
/// repo's in it).
fn by_mountpoint(members: &[MemberState]) -> Vec<&MemberState> {
    let mut members: Vec<&MemberState> = members.iter().collect();
    members.sort_by_key(|member| std::path::Path::new(&member.mountpoint).components().count());
    members
}

/// Where a member is when its top's name has that end.
fn placed(aside: &Aside, member: &str, suffix: &str) -> Result<Dataset> {
    let top = aside.tops.iter().find(|top| {
        member == top.as_str() || member.strip_prefix(top.as_str()).is_some_and(|rest| rest.starts_with('/'))
    });
    let top = top.ok_or_else(|| Error::refused(format!("{member} is not in what is restored")))?;
    Ok(format!("{top}{suffix}{}", &member[top.len()..]).parse()?)
}

pub(crate) fn random_id() -> Result<String> {
    let mut random = [0; 4];
    getrandom::fill(&mut random)
        .map_err(|err| Error::refused(format!("read random bytes of the operating system: {err}")))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
