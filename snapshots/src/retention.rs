//! What is kept and what is destroyed, as a pure function.
//!
//! The rules, in the order in which they are told:
//! 1. What is *guarded* (a hold, a clone, a lease) is kept, and so is the youngest snapshot that a replication target has too: without it the target could only be
//!    sent everything again.
//! 2. The youngest whole set, and the `last` youngest whole sets, are kept. Youngest is by createtxg.
//! 3. A set that is not whole restores nothing, and may be what is left of a good one while a pool is away: it is kept, and fills no place of a whole one, until
//!    the operator says that such sets go.
//! 4. A set whose time can't be true is kept and fills no place: one from the future, one from before there was ZFS on Linux worth speaking of (a clock that was never set),
//!    and all sets whose times contradict their order. Nothing is destroyed on the word of a clock that was wrong; the operator may say that the times are good.
//! 5. A set younger than the least age is kept.
//! 6. Each rung keeps the youngest set of each of its last periods that have one.
//! 7. Of a set that no rule keeps, the classes of datasets that the policy keeps for longer stay, by the same rules among the sets that have that class: it is thinned. It
//!    restores no node, fills no place of a whole one, and goes when its classes' rules don't keep it either.
//! 8. The rest is destroyed.
//!
//! Time is asked only to keep: the later `now` is, the less rules 4 and 5 keep, but no rule destroys because time has passed. So a clock that runs ahead, an agent that
//! was off for a year, and missed runs cost nothing that the rungs keep.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{Content, Contents, Period, Policy, SetName, SnapshotSet};

/// Times closer than this contradict nobody: clocks are set by seconds every day.
pub const TOLERANCE_S: u64 = 300;
/// 2015-01-01: a set that claims to be older was taken by a clock that was never set.
const UNDATED_BEFORE_UNIX_S: u64 = 1_420_070_400;

/// A set as retention sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name, which has its claimed time.
    pub name: SetName,
    /// Createtxg and guid of its snapshot on each dataset.
    pub members: Vec<Option<(u64, u64)>>,
    /// What each dataset holds; those that are missing are of no class.
    pub contents: Vec<Option<Content>>,
    /// Whether all of them are there.
    pub is_whole: bool,
}

impl Item {
    /// A set of datasets that hold these.
    pub fn new(set: &SnapshotSet, contents: &[Option<Content>]) -> Item {
        let member =
            |entry: &Option<basalt_zfs::SnapshotEntry>| entry.as_ref().map(|entry| (entry.createtxg, entry.guid));
        Item {
            name: set.name.clone(),
            members: set.members.iter().map(member).collect(),
            contents: contents.to_vec(),
            is_whole: set.is_whole(),
        }
    }

    /// What is left of it, if that has a name.
    fn left(&self) -> Option<Contents> {
        let contents = self.contents.iter().copied().chain(std::iter::repeat(None));
        Contents::left(contents.zip(self.members.iter().map(Option::is_some)))
    }

    /// Whether it is what a policy has left of a set, and not a set that was broken.
    fn is_thinned(&self, policy: &Policy) -> bool {
        let longer = Content::ALL.into_iter().filter(|one| policy.longer.contains_key(one));
        let longer = longer.fold(Contents::default(), Contents::and);
        !self.is_whole
            && self.left().is_some_and(|left| Content::ALL.into_iter().all(|one| !left.has(one) || longer.has(one)))
    }
}

/// Something that needs a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The set.
    pub set: SetName,
    /// Who, for people: `hold "keep" on tank/a`.
    pub by: String,
}

/// A replication target, and what it has.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Edge {
    /// Its name.
    pub name: String,
    /// Guids of the snapshots that it has reported.
    pub has: BTreeSet<u64>,
    /// The node's lineage when it did.
    #[serde(default)]
    pub lineage: String,
}

/// What the operator has decided for one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Sets that are not whole may go.
    pub incomplete_go: bool,
    /// The times of all sets are good, whatever their order says; not those from the future.
    pub trust_times: bool,
}

/// What becomes of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// Only these stay.
    Thin(Contents),
    /// It goes.
    Destroy,
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is the youngest whole set.
    Youngest,
    /// It is one of the youngest; its rank from 1, of so many.
    Last(u32, u32),
    /// It is the youngest of a period; the rank of that period from 1, of so many.
    Rung(Period, u32, u32),
    /// It is younger than the least age, in seconds.
    MinAge(u64),
    /// Someone needs it.
    Guarded(String),
    /// It is the youngest that a target has, the base of what will be sent there.
    Base(String),
    /// It claims a time so many seconds ahead.
    Future(u64),
    /// It claims a time at which no clock was set.
    Undated,
    /// Its time contradicts the order in which sets were taken.
    Skewed,
    /// So many of so many snapshots are there.
    Incomplete(usize, usize),
    /// A class of its datasets is kept for longer, and why.
    Longer(Content, Box<Reason>),
    /// No rule keeps it.
    Surplus,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Youngest => f.write_str("the youngest whole set"),
            Reason::Last(rank, of) => write!(f, "last {rank} of {of}"),
            Reason::Rung(period, rank, of) => write!(f, "{period} {rank} of {of}"),
            Reason::MinAge(seconds) => write!(f, "younger than {seconds} s"),
            Reason::Guarded(by) => f.write_str(by),
            Reason::Base(edge) => write!(f, "the last common base of {edge}"),
            Reason::Future(seconds) => write!(f, "its time is {seconds} s ahead of the clock"),
            Reason::Undated => f.write_str("its time is from a clock that was never set"),
            Reason::Skewed => f.write_str("its time contradicts the order in which sets were taken"),
            Reason::Incomplete(found, of) => write!(f, "{found} of {of} snapshots are there"),
            Reason::Longer(content, why) => write!(f, "{content}: {why}"),
            Reason::Surplus => f.write_str("no rule keeps it"),
        }
    }
}

/// A set's fate and all its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The set.
    pub name: SetName,
    /// What becomes of it.
    pub fate: Fate,
    /// Why; never empty.
    pub reasons: Vec<Reason>,
}

/// Judges sets, oldest first as [`order`](crate::order) gives them; one verdict for each, in their order.
pub fn judge(
    items: &[Item],
    policy: &Policy,
    guards: &[Guard],
    edges: &[Edge],
    now_unix_s: u64,
    by: Judgement,
) -> Vec<Verdict> {
    let mut kept: Vec<Vec<Reason>> = vec![Vec::new(); items.len()];
    let mut keep = |at: usize, why: Reason| {
        if let Some(reasons) = kept.get_mut(at) {
            reasons.push(why);
        }
    };

    let places: BTreeMap<&SetName, usize> = items.iter().enumerate().map(|(at, item)| (&item.name, at)).collect();
    for guard in guards {
        if let Some(at) = places.get(&guard.set) {
            keep(*at, Reason::Guarded(guard.by.clone()));
        }
    }
    for edge in edges {
        for at in bases(items, edge) {
            keep(at, Reason::Base(edge.name.clone()));
        }
    }

    let whole = || items.iter().enumerate().rev().filter(|(_, item)| item.is_whole);
    if let Some((at, _)) = whole().next() {
        keep(at, Reason::Youngest);
    }
    for ((at, _), rank) in whole().zip(1..=policy.last) {
        keep(at, Reason::Last(rank, policy.last));
    }

    let doubted = doubts(items, &|item| item.is_whole, now_unix_s, by.trust_times);
    for (at, (item, doubt)) in items.iter().zip(&doubted).enumerate() {
        if !item.is_whole {
            if !by.incomplete_go && !item.is_thinned(policy) {
                keep(at, Reason::Incomplete(item.members.iter().flatten().count(), item.name.count()));
            }
        } else if let Some(doubt) = doubt {
            keep(at, doubt.clone());
        } else if now_unix_s.saturating_sub(item.name.taken_unix_s()) < policy.min_age_s {
            keep(at, Reason::MinAge(policy.min_age_s));
        }
    }
    for (at, why) in rungs(items, &|item| item.is_whole, &doubted, policy) {
        keep(at, why);
    }
    let longer = longer(items, policy, now_unix_s, by);

    let verdict = |item: &Item, reasons: Vec<Reason>, parts: Vec<(Content, Reason)>| {
        let name = item.name.clone();
        if !reasons.is_empty() {
            return Verdict { name, fate: Fate::Keep, reasons };
        }
        if parts.is_empty() {
            return Verdict { name, fate: Fate::Destroy, reasons: vec![Reason::Surplus] };
        }
        let stay = parts.iter().fold(Contents::default(), |all, (content, _)| all.and(*content));
        let reasons = parts.into_iter().map(|(content, why)| Reason::Longer(content, Box::new(why))).collect();
        let fate = if item.left() == Some(stay) && !item.is_whole { Fate::Keep } else { Fate::Thin(stay) };
        Verdict { name, fate, reasons }
    };
    items.iter().zip(kept).zip(longer).map(|((item, reasons), parts)| verdict(item, reasons, parts)).collect()
}

/// The youngest of each of the last periods of each rung, among the sets that count and are not in doubt.
fn rungs(
    items: &[Item],
    counts: &dyn Fn(&Item) -> bool,
    doubted: &[Option<Reason>],
    policy: &Policy,
) -> Vec<(usize, Reason)> {
    let mut kept = Vec::new();
    for rung in &policy.rungs {
        let mut seen = BTreeSet::new();
        let all = items.iter().zip(doubted).enumerate().rev();
        for (at, (item, _)) in all.filter(|(_, (item, doubt))| counts(item) && doubt.is_none()) {
            let is_full = seen.len() >= rung.count as usize;
            if !is_full && seen.insert(rung.period.number(item.name.taken_unix_s())) {
                kept.push((at, Reason::Rung(rung.period, u32::try_from(seen.len()).unwrap_or(u32::MAX), rung.count)));
            }
        }
    }
    kept
}

/// For each set, which of its classes are kept for longer and why.
fn longer(items: &[Item], policy: &Policy, now_unix_s: u64, by: Judgement) -> Vec<Vec<(Content, Reason)>> {
    let mut kept: Vec<Vec<(Content, Reason)>> = vec![Vec::new(); items.len()];
    for (content, policy) in &policy.longer {
        let has = |item: &Item| {
            item.left().is_some_and(|left| left.has(*content))
                || (item.is_whole && item.contents.contains(&Some(*content)))
        };
        let doubted = doubts(items, &has, now_unix_s, by.trust_times);
        let mut all: Vec<(usize, Reason)> =
            doubted.iter().enumerate().filter_map(|(at, doubt)| Some((at, doubt.clone()?))).collect();
        let last = items.iter().enumerate().rev().filter(|(_, item)| has(item)).zip(1..=policy.last);
        all.extend(last.map(|((at, _), rank)| (at, Reason::Last(rank, policy.last))));
        all.extend(rungs(items, &has, &doubted, policy));
        for (at, why) in all {
            if let Some(kept) = kept.get_mut(at) {
                kept.push((*content, why));
            }
        }
    }
    kept
}

/// On each dataset the youngest set that the target has too.
fn bases(items: &[Item], edge: &Edge) -> BTreeSet<usize> {
    let datasets = items.iter().map(|item| item.members.len()).max().unwrap_or(0);
    let base = |dataset: usize| {
        let common = items.iter().enumerate().filter_map(|(at, item)| {
            let (createtxg, guid) = (*item.members.get(dataset)?)?;
            edge.has.contains(&guid).then_some((createtxg, at))
        });
        common.max().map(|(_, at)| at)
    };
    (0..datasets).filter_map(base).collect()
}

/// Why the time of a set can't be believed; none where it can, or where the set doesn't count (it is not whole) and its time is not asked.
fn doubts(items: &[Item], counts: &dyn Fn(&Item) -> bool, now_unix_s: u64, trust: bool) -> Vec<Option<Reason>> {
    let mut doubts: Vec<Option<Reason>> = items
        .iter()
        .map(|item| match item.name.taken_unix_s() {
            _ if !counts(item) => None,
            taken if taken > now_unix_s.saturating_add(TOLERANCE_S) => Some(Reason::Future(taken - now_unix_s)),
            taken if taken < UNDATED_BEFORE_UNIX_S && !trust => Some(Reason::Undated),
            _ => None,
        })
        .collect();
    if trust {
        return doubts;
    }
    // All that contradict each other, not those that the fewest others agree with: which clock was right can't be known, and what is in doubt must stay in doubt when
    // others go.
    let dated: Vec<(usize, u64)> = items
        .iter()
        .zip(&doubts)
        .enumerate()
        .filter(|(_, (item, doubt))| counts(item) && doubt.is_none())
        .map(|(at, (item, _))| (at, item.name.taken_unix_s()))
        .collect();
    let mut skewed = BTreeSet::new();
    let mut latest = 0;
    for (at, taken) in &dated {
        if latest > taken + TOLERANCE_S {
            skewed.insert(*at);
        }
        latest = latest.max(*taken);
    }
    let mut earliest = u64::MAX;
    for (at, taken) in dated.iter().rev() {
        if earliest < taken.saturating_sub(TOLERANCE_S) {
            skewed.insert(*at);
        }
        earliest = earliest.min(*taken);
    }
    for (at, doubt) in doubts.iter_mut().enumerate() {
        if skewed.contains(&at) {
            *doubt = Some(Reason::Skewed);
        }
    }
    doubts
}

#[cfg(test)]
mod tests;
