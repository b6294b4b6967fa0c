//! Sets and their names.

use std::{collections::BTreeMap, fmt, str::FromStr};

use basalt_zfs::{Dataset, Snapshot, SnapshotEntry};
use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const PREFIX: &str = "basalt-";
const TIME: &str = "%Y-%m-%dT%H:%M:%SZ";
const TIME_BYTES: usize = 20;
const RANDOM_DIGITS: usize = 8;

/// The name that all snapshots of a set have: `basalt-TIME-COUNT-RANDOM`. Anything else parses to an error, and is not ours.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SetName {
    name: String,
    taken_unix_s: u64,
    count: usize,
}

impl SetName {
    /// A new name for a set of `count` snapshots. Errors: a time that no calendar has, no random bytes.
    pub fn new(taken_unix_s: u64, count: usize) -> Result<SetName> {
        let time = i64::try_from(taken_unix_s).ok().and_then(|at| DateTime::<Utc>::from_timestamp(at, 0));
        let time = time.filter(|_| taken_unix_s < 253_402_300_800).ok_or_else(|| {
            Error::refused(format!(
                "the clock says {taken_unix_s} s after 1970, which is no time to name a snapshot by: set the clock"
            ))
        })?;
        let mut random = [0; RANDOM_DIGITS / 2];
        getrandom::fill(&mut random)
            .map_err(|err| Error::refused(format!("read random bytes of the operating system: {err}")))?;
        let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{PREFIX}{}-{count}-{random}", time.format(TIME)).parse()
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// When it was taken, in seconds since the Unix epoch, by the clock of the host that took it: a claim.
    pub fn taken_unix_s(&self) -> u64 {
        self.taken_unix_s
    }

    /// Of how many snapshots the whole set is.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The claimed time as people write it, `2026-11-21T19:02:10Z`.
    pub fn time(&self) -> &str {
        self.name.get(PREFIX.len()..PREFIX.len() + TIME_BYTES).unwrap_or_default()
    }

    /// The snapshot of this name of a dataset.
    pub fn of(&self, dataset: &Dataset) -> Result<Snapshot> {
        Ok(dataset.snapshot(&self.name)?)
    }
}

fn parse(name: &str) -> Option<(u64, usize)> {
    let rest = name.strip_prefix(PREFIX)?;
    let (time, rest) = (rest.get(..TIME_BYTES)?, rest.get(TIME_BYTES..)?.strip_prefix('-')?);
    let (count, random) = rest.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if random.len() != RANDOM_DIGITS
        || !digits(random)
        || count.starts_with('0')
        || !count.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let taken = NaiveDateTime::parse_from_str(time, TIME).ok()?.and_utc();
    // What reads as a time and is written otherwise (a second of 60) is no name that we gave.
    if DateTime::from_timestamp(taken.timestamp(), 0)?.format(TIME).to_string() != time {
        return None;
    }
    Some((u64::try_from(taken.timestamp()).ok()?, count.parse().ok().filter(|count| *count > 0)?))
}

impl FromStr for SetName {
    type Err = Error;
    fn from_str(name: &str) -> Result<SetName> {
        match parse(name) {
            Some((taken_unix_s, count)) => Ok(SetName { name: name.to_owned(), taken_unix_s, count }),
            None => Err(Error::refused(format!(
                "{name:?} is no name of a set: those are like basalt-2026-11-21T19:02:10Z-4-3fa9c1d2"
            ))),
        }
    }
}

impl TryFrom<String> for SetName {
    type Error = Error;
    fn try_from(name: String) -> Result<SetName> {
        name.parse()
    }
}

impl From<SetName> for String {
    fn from(name: SetName) -> String {
        name.name
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)
    }
}

/// What one take made, as far as it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSet {
    /// Its name.
    pub name: SetName,
    /// Its snapshot on each of the node's datasets, in their order; `None` where there is none.
    pub members: Vec<Option<SnapshotEntry>>,
}

impl SnapshotSet {
    /// Whether all its snapshots are there. Only a whole set restores a node.
    pub fn is_whole(&self) -> bool {
        self.found() == self.name.count()
    }

    /// How many of its snapshots are there.
    pub fn found(&self) -> usize {
        self.members.iter().flatten().count()
    }

    /// Its snapshots that are there.
    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.members.iter().flatten().map(|entry| &entry.name)
    }
}

/// Puts the listings of a node's datasets (one each, in their order, oldest first) together to sets, oldest first.
///
/// Order is by createtxg on the first dataset, which a take reaches first and which counts for all pools, because sets are taken one at a time. What that
/// dataset lacks is not whole, and stands before all others by its name.
pub fn order(listings: &[Vec<SnapshotEntry>]) -> Vec<SnapshotSet> {
    let mut sets: BTreeMap<SetName, SnapshotSet> = BTreeMap::new();
    for (place, listing) in listings.iter().enumerate() {
        for entry in listing {
            let Ok(name) = entry.name.name().parse::<SetName>() else { continue };
            let set =
                sets.entry(name.clone()).or_insert_with(|| SnapshotSet { name, members: vec![None; listings.len()] });
            if let Some(member) = set.members.get_mut(place) {
                *member = Some(entry.clone());
            }
        }
    }
    let mut sets: Vec<SnapshotSet> = sets.into_values().collect();
    sets.sort_by_key(|set| set.members.first().and_then(|first| first.as_ref().map(|entry| entry.createtxg)));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_when_and_of_how_many() {
        let name = SetName::new(1_795_287_730, 4).unwrap();
        assert!(name.as_str().starts_with("basalt-2026-11-21T19:02:10Z-4-"), "{name}");
        assert_eq!((name.taken_unix_s(), name.count(), name.time()), (1_795_287_730, 4, "2026-11-21T19:02:10Z"));
        assert_eq!(name.as_str().parse::<SetName>().unwrap(), name);
        assert_ne!(SetName::new(1_795_287_730, 4).unwrap(), name, "two in one second are two");
    }

    #[test]
    fn what_others_named_is_not_ours() {
        for name in [
            "",
            "daily",
            "basalt-",
            "basalt-2026-11-21T19:02:10Z",
            "basalt-2026-11-21T19:02:10Z-4",
            "basalt-2026-11-21T19:02:10Z-0-3fa9c1d2",
            "basalt-2026-11-21T19:02:10Z-04-3fa9c1d2",
            "basalt-2026-11-21T19:02:10Z-4-3FA9C1D2",
            "basalt-2026-11-21T19:02:10Z-4-3fa9c1d2x",
            "basalt-2026-02-30T19:02:10Z-4-3fa9c1d2",
            "basalt-2026-11-21T19:02:60Z-4-3fa9c1d2",
            "basalt-1026-11-21T19:02:10Z-4-3fa9c1d2",
            "basalt-2026-11-21T19:02:10Z-+4-3fa9c1d2",
        ] {
            assert!(name.parse::<SetName>().is_err(), "{name}");
        }
        assert!(SetName::new(u64::MAX, 1).is_err());
    }

    #[test]
    fn order_is_by_createtxg_whatever_the_clock_said() {
        let entry = |dataset: &str, name: &str, createtxg| SnapshotEntry {
            name: format!("{dataset}@{name}").parse().unwrap(),
            guid: createtxg,
            createtxg,
        };
        let (early, late) = ("basalt-2020-01-01T00:00:00Z-2-00000000", "basalt-2030-01-01T00:00:00Z-2-00000000");
        let sets = order(&[
            vec![entry("t/a", late, 5), entry("t/a", "by-hand", 6), entry("t/a", early, 9)],
            vec![entry("t/b", late, 5)],
        ]);
        assert_eq!(sets.iter().map(|set| set.name.as_str()).collect::<Vec<_>>(), [late, early]);
        assert_eq!(sets.iter().map(SnapshotSet::is_whole).collect::<Vec<_>>(), [true, false]);
    }
}
