//! The keeper of one node's snapshots: what looks, and what finishes or undoes what was left half done.

use std::sync::Arc;

use basalt_zfs::{Class, Dataset, Pool, Snapshot, Zfs};

use crate::{
    Content, Contents, Edge, Error, FileJournal, Guard, Intent, Item, Journal, Judgement, Kind, Lease, Policy, Record,
    Result, SetName, SnapshotSet, Verdict, judge, order,
};

/// Most operations take less.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Mounts and unmounts, which on Linux only root may: for an agent that isn't, a privileged helper does it.
pub trait Mounts: Send {
    /// Mounts a dataset at its mountpoint, which is given along.
    fn mount(&self, dataset: &Dataset, at: &str) -> basalt_zfs::Result<()>;
    /// Unmounts a dataset that nobody uses.
    fn unmount(&self, dataset: &Dataset) -> basalt_zfs::Result<()>;
}

/// The snapshots of one node. One process at a time has it: the journal's lock sees to that.
pub struct Keeper {
    pub(crate) zfs: Arc<dyn Zfs>,
    pub(crate) journal: Box<dyn Journal>,
    pub(crate) datasets: Vec<Dataset>,
    pub(crate) contents: Vec<Option<Content>>,
    pub(crate) mounts: Option<Box<dyn Mounts>>,
    pub(crate) record: Record,
}

impl Keeper {
    /// Takes over a node's snapshots. `datasets` hold its data, metadata first; where there are none (the node is gone), those of the record are taken.
    ///
    /// Nothing is done about what was left half done until [`recover`](Keeper::recover) is called, and until then every operation is refused.
    pub fn new(zfs: Arc<dyn Zfs>, journal: Box<dyn Journal>, datasets: Vec<Dataset>, node: &str) -> Result<Keeper> {
        let mut record = journal.load()?;
        let datasets = if datasets.is_empty() {
            record.datasets.iter().map(|name| name.parse()).collect::<std::result::Result<Vec<Dataset>, _>>()?
        } else {
            datasets
        };
        if datasets.is_empty() {
            return Err(Error::refused("no dataset is named, and none is on record: nothing of this node lies on ZFS"));
        }
        record.datasets = datasets.iter().map(Dataset::to_string).collect();
        if !node.is_empty() {
            record.node = node.to_owned();
        }
        let contents = vec![None; datasets.len()];
        Ok(Keeper { zfs, journal, datasets, contents, mounts: None, record })
    }

    /// Opens the keeper with its record in a folder: see [`FileJournal::open`]. Who is at work is waited for, for a moment.
    pub fn open(zfs: Arc<dyn Zfs>, dir: &std::path::Path, datasets: Vec<Dataset>, node: &str) -> Result<Keeper> {
        Keeper::new(zfs, Box::new(FileJournal::open(dir, PATIENCE)?), datasets, node)
    }

    /// Says what datasets hold, so that a policy may keep a class of them for longer; the others are of no class, and stay and go with whole sets.
    pub fn know_contents(&mut self, of: impl Fn(&Dataset) -> Option<Content>) {
        self.contents = self.datasets.iter().map(of).collect();
    }

    /// Leaves mounting to somebody else than the engine, with its rights.
    pub fn mount_by(&mut self, mounts: Box<dyn Mounts>) {
        self.mounts = Some(mounts);
    }

    /// What is left of a set that is not whole, if that has a name; none: it was broken.
    pub fn left(&self, set: &SnapshotSet) -> Option<Contents> {
        Contents::left(self.contents.iter().copied().zip(set.members.iter().map(Option::is_some)))
    }

    /// The node's datasets, metadata first.
    pub fn datasets(&self) -> &[Dataset] {
        &self.datasets
    }

    /// What is on record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The engine.
    pub fn zfs(&self) -> &dyn Zfs {
        &*self.zfs
    }

    /// Finishes or undoes what an earlier process left half done, and ends the leases of processes that are gone (`lives` says which are not). Says what it did, a
    /// line each. An error leaves the rest for the next time.
    pub fn recover(&mut self, lives: &dyn Fn(&Lease) -> bool) -> Result<Vec<String>> {
        let mut said = Vec::new();
        if let Some(intent) = self.record.intent.clone() {
            said.push(
                self.settle(intent)
                    .map_err(|err| err.context("an operation that was left half done can't be settled"))?,
            );
        }
        said.extend(self.reconcile_holds()?);
        let ended: Vec<Lease> =
            self.record.leases.iter().filter(|lease| lease.process.is_some() && !lives(lease)).cloned().collect();
        for lease in ended {
            self.end_lease(&lease.id)?;
            said.push(format!("{} is gone, and so is its lease on {}", lease.by, lease.set));
        }
        Ok(said)
    }

    /// Finishes or undoes one intent; the journal has none afterwards.
    pub(crate) fn settle(&mut self, intent: Intent) -> Result<String> {
        match intent {
            Intent::Take { set, snapshots, is_one_pool } => self.settle_take(&set, &snapshots, is_one_pool),
            Intent::Hold { hold, snapshots } => self.finish_hold(hold, &snapshots),
            Intent::Release { hold, snapshots } => self.finish_release(hold, &snapshots),
            Intent::Prune { snapshots } => self.settle_prune(&snapshots),
            Intent::Swap { aside, incoming, is_made, phase } => self.settle_swap(aside, &incoming, is_made, phase),
            Intent::Confirm { aside } => self.finish_confirm(aside),
        }
    }

    /// Writes an intent before its first step.
    pub(crate) fn begin(&mut self, intent: Intent) -> Result<()> {
        self.refuse_unsettled()?;
        self.write(|record| record.intent = Some(intent))
    }

    /// Changes the record, in the journal first.
    pub(crate) fn write(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        self.journal.save(&record)?;
        self.record = record;
        Ok(())
    }

    /// After a failure of an operation: settles it at once where that is possible, and says so in the error.
    pub(crate) fn failed<T>(&mut self, err: Error) -> Result<T> {
        if err.kind() == Kind::Journal {
            // What failed to be written may be there all the same; what is there decides.
            match self.journal.load() {
                Ok(record) => self.record = record,
                Err(also) => return Err(err.context(also)),
            }
        }
        let Some(intent) = self.record.intent.clone() else { return Err(err) };
        match self.settle(intent) {
            Ok(said) => Err(Error::new(err.kind(), format!("{err}. {said}"))),
            Err(also) => Err(Error::new(
                err.kind(),
                format!(
                    "{err}. It is half done, and what was tried to settle it failed too ({also}): it is on record, and settled by the next `basalt snapshot` command"
                ),
            )),
        }
    }

    fn refuse_unsettled(&self) -> Result<()> {
        match &self.record.intent {
            None => Ok(()),
            Some(_) => Err(Error::refused(
                "an operation was left half done and has to be settled first: run `basalt snapshot list`",
            )),
        }
    }

    /// All sets, oldest first. Cheap: no snapshot is read. Fails if a dataset can't be listed, because then what is whole looks broken.
    pub fn sets(&self) -> Result<Vec<SnapshotSet>> {
        let listings =
            self.datasets.iter().map(|dataset| self.zfs.snapshots(dataset)).collect::<basalt_zfs::Result<Vec<_>>>()?;
        Ok(order(&listings))
    }

    /// The set that a person names: its whole name, its beginning or end or time where that is of one alone, or `latest`, the youngest whole one.
    pub fn find(&self, name: &str) -> Result<SnapshotSet> {
        let mut sets = self.sets()?;
        if name == "latest" {
            return sets
                .into_iter()
                .rev()
                .find(SnapshotSet::is_whole)
                .ok_or_else(|| Error::not_found("there is no whole set yet: take one"));
        }
        if let Some(at) = sets.iter().position(|set| set.name.as_str() == name) {
            return Ok(sets.swap_remove(at));
        }
        let means = |set: &SnapshotSet| {
            name.len() >= 4
                && (set.name.as_str().starts_with(name)
                    || set.name.as_str().ends_with(name)
                    || set.name.time().starts_with(name))
        };
        let mut found = sets.into_iter().filter(means);
        match (found.next(), found.next()) {
            (Some(set), None) => Ok(set),
            (Some(one), Some(other)) => Err(Error::refused(format!(
                "{name:?} may be {} or {}, or others: write more of the name",
                one.name, other.name
            ))),
            _ => Err(Error::not_found(format!("there is no set {name:?}: `basalt snapshot list` shows them"))),
        }
    }

    /// What needs sets: holds and clones as ZFS has them, and leases. Reads every snapshot.
    pub fn guards(&self) -> Result<Vec<Guard>> {
        let mut guards: Vec<Guard> = self
            .record
            .leases
            .iter()
            .map(|lease| Guard { set: lease.set.clone(), by: format!("lease of {}", lease.by) })
            .collect();
        for dataset in &self.datasets {
            for of in self.zfs.snapshot_uses(dataset)? {
                let Ok(set) = of.entry.name.name().parse::<SetName>() else { continue };
                if of.holds > 0 {
                    for hold in self.zfs.holds(&of.entry.name)? {
                        guards
                            .push(Guard { set: set.clone(), by: format!("hold {:?} on {dataset}", hold.tag.as_str()) });
                    }
                }
                guards.extend(of.clones.iter().map(|clone| Guard { set: set.clone(), by: format!("clone {clone}") }));
            }
        }
        Ok(guards)
    }

    /// What a policy would do now, for each set, with the reasons.
    pub fn explain(&self, policy: &Policy, now_unix_s: u64, by: Judgement) -> Result<Vec<Verdict>> {
        let items: Vec<Item> = self.sets()?.iter().map(|set| Item::new(set, &self.contents)).collect();
        Ok(judge(&items, policy, &self.guards()?, &self.record.edges, now_unix_s, by))
    }

    /// Says that a set is needed; until [`end_lease`](Keeper::end_lease) nothing prunes it, and a hold keeps others from destroying it.
    pub fn lease(&mut self, lease: Lease) -> Result<()> {
        let set = self.find(lease.set.as_str())?;
        let tag = format!("basalt-lease-{}", lease.id);
        self.write(|record| record.leases.push(lease))?;
        self.hold(&set, &tag, 0)
    }

    /// Ends a lease. One that isn't there has ended.
    pub fn end_lease(&mut self, id: &str) -> Result<()> {
        let tag = format!("basalt-lease-{id}");
        if let Some(hold) = self.record.holds.iter().find(|hold| hold.tag == tag).cloned() {
            self.release(&hold.set, &tag)?;
        }
        self.write(|record| record.leases.retain(|lease| lease.id != id))
    }

    /// Notes what a replication target has reported, to this lineage of the node. Replaces what it had before.
    pub fn note_edge(&mut self, edge: Edge) -> Result<()> {
        self.write(|record| {
            let edge = Edge { lineage: record.lineage.clone(), ..edge };
            record.edges.retain(|known| known.name != edge.name);
            record.edges.push(edge);
        })
    }

    pub(crate) fn exists(&self, dataset: &Dataset) -> Result<bool> {
        match self.zfs.datasets(dataset, basalt_zfs::Reach::Itself) {
            Ok(_) => Ok(true),
            Err(err) if err.class() == Class::NotFound => Ok(false),
            Err(err) => Err(err.into()),
        }
    }
}

/// Snapshots by their names.
pub(crate) fn parsed(snapshots: &[String]) -> Result<Vec<Snapshot>> {
    Ok(snapshots.iter().map(|name| name.parse()).collect::<std::result::Result<Vec<Snapshot>, _>>()?)
}

/// Groups by pool, in the order of first appearance.
pub(crate) fn by_pool<T>(all: impl IntoIterator<Item = T>, pool: impl Fn(&T) -> Pool) -> Vec<(Pool, Vec<T>)> {
    let mut groups: Vec<(Pool, Vec<T>)> = Vec::new();
    for one in all {
        let of = pool(&one);
        match groups.iter_mut().find(|(known, _)| *known == of) {
            Some((_, group)) => group.push(one),
            None => groups.push((of, vec![one])),
        }
    }
    groups
}
