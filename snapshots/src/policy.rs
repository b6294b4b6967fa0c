//! How many sets are kept, and of which times.

use std::{collections::BTreeMap, fmt, str::FromStr};

use chrono::{DateTime, Datelike, Utc};

use crate::Content;

/// What a rung counts, by the calendar of UTC. There is no summer time in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    /// So many seconds, counted from 1970.
    Seconds(u64),
    /// Monday to Sunday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Period {
    /// The number of the period that a time lies in; two times lie in the same one exactly if their numbers are equal.
    pub(crate) fn number(self, unix_s: u64) -> i64 {
        let at = |f: fn(DateTime<Utc>) -> i64| {
            i64::try_from(unix_s).ok().and_then(|at| DateTime::from_timestamp(at, 0)).map_or(i64::MAX, f)
        };
        match self {
            Period::Seconds(seconds) => i64::try_from(unix_s / seconds.max(1)).unwrap_or(i64::MAX),
            // The first of January 1970 was a Thursday.
            Period::Week => i64::try_from((unix_s / 86_400 + 3) / 7).unwrap_or(i64::MAX),
            Period::Month => at(|time| i64::from(time.year()) * 12 + i64::from(time.month0())),
            Period::Year => at(|time| i64::from(time.year())),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Period::Seconds(3600) => f.write_str("hourly"),
            Period::Seconds(86_400) => f.write_str("daily"),
            Period::Seconds(seconds) if seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            Period::Seconds(seconds) if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            Period::Seconds(seconds) => write!(f, "{seconds}s"),
            Period::Week => f.write_str("weekly"),
            Period::Month => f.write_str("monthly"),
            Period::Year => f.write_str("yearly"),
        }
    }
}

/// The youngest set of each of the last `count` periods *that have one*. A count of periods with sets, not an age: where nothing was taken for a year, nothing is too
/// old after it, and a clock that jumps ahead makes nothing old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rung {
    /// Which periods.
    pub period: Period,
    /// How many.
    pub count: u32,
}

/// What is kept of a node's sets. Whatever it says, the youngest whole set is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many of the youngest.
    pub last: u32,
    /// The grid.
    pub rungs: Vec<Rung>,
    /// Nothing younger is destroyed.
    pub min_age_s: u64,
    /// What of a set is kept for longer when nothing keeps the whole of it any more: such a set is *thinned*, and restores no node. It takes nothing from whole sets.
    pub longer: BTreeMap<Content, Policy>,
}

/// Words of a policy that make no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError(String);

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// Reads words such as `last:6`, `hourly:24`, `15m:96`, `daily:7`, `weekly:4`, `monthly:12`, `yearly:3`.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>, min_age_s: u64) -> Result<Policy, PolicyError> {
        let mut policy = Policy { last: 0, rungs: Vec::new(), min_age_s, longer: BTreeMap::new() };
        for word in words {
            let wrong = |why: &str| PolicyError(format!("{word:?} says nothing about what to keep: {why}"));
            let (what, count) = word.split_once(':').ok_or_else(|| wrong("write PERIOD:COUNT, as in daily:7"))?;
            let count = count.parse().map_err(|_| wrong("the count must be a whole number"))?;
            if what == "last" {
                policy.last = count;
                continue;
            }
            let period = what.parse::<Period>().map_err(|_| {
                wrong("the period is last, hourly, daily, weekly, monthly, yearly, or one like 15m, 6h, 3d")
            })?;
            if policy.rungs.iter().any(|rung| rung.period == period) {
                return Err(wrong("that period is named twice"));
            }
            policy.rungs.push(Rung { period, count });
        }
        Ok(policy)
    }

    /// The words that [`Policy::parse`] reads.
    pub fn words(&self) -> Vec<String> {
        let last = (self.last > 0).then(|| format!("last:{}", self.last));
        last.into_iter().chain(self.rungs.iter().map(|rung| format!("{}:{}", rung.period, rung.count))).collect()
    }
}

impl FromStr for Period {
    type Err = ();
    fn from_str(text: &str) -> Result<Period, ()> {
        Ok(match text {
            "hourly" => Period::Seconds(3600),
            "daily" => Period::Seconds(86_400),
            "weekly" => Period::Week,
            "monthly" => Period::Month,
            "yearly" => Period::Year,
            _ => {
                let unit = match text.chars().last() {
                    Some('s') => 1,
                    Some('m') => 60,
                    Some('h') => 3600,
                    Some('d') => 86_400,
                    _ => return Err(()),
                };
                let number: u64 = text.get(..text.len() - 1).and_then(|digits| digits.parse().ok()).ok_or(())?;
                Period::Seconds(number.checked_mul(unit).filter(|seconds| *seconds > 0).ok_or(())?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_make_a_policy_and_back() {
        let words = ["last:6", "15m:96", "hourly:24", "daily:7", "weekly:4", "monthly:12", "yearly:3"];
        let policy = Policy::parse(words, 60).unwrap();
        assert_eq!(policy.words(), words);
        assert_eq!((policy.last, policy.rungs.len()), (6, 6));
    }

    #[test]
    fn a_word_that_makes_no_sense_is_named() {
        for word in ["daily", "daily:", "daily:-1", "hour:3", "0m:3", "m:3", "99999999999999999999h:1", "é:1"] {
            let refused = Policy::parse([word], 0).unwrap_err().to_string();
            assert!(refused.contains(word), "{refused}");
        }
        assert!(Policy::parse(["daily:1", "24h:2"], 0).is_err(), "one period, named twice");
    }

    #[test]
    fn periods_begin_where_the_calendar_says() {
        let at = |text: &str| u64::try_from(DateTime::parse_from_rfc3339(text).unwrap().timestamp()).unwrap();
        let same = |period: Period, a: &str, b: &str| period.number(at(a)) == period.number(at(b));
        assert!(same(Period::Week, "2026-11-16T00:00:00Z", "2026-11-22T23:59:59Z"), "Monday to Sunday");
        assert!(!same(Period::Week, "2026-11-22T23:59:59Z", "2026-11-23T00:00:00Z"));
        assert!(same(Period::Month, "2024-02-01T00:00:00Z", "2024-02-29T23:59:59Z"));
        assert!(!same(Period::Month, "2023-12-31T23:59:59Z", "2024-01-01T00:00:00Z"));
        assert!(!same(Period::Year, "2023-12-31T23:59:59Z", "2024-01-01T00:00:00Z"));
        assert!(!same(Period::Month, "2023-02-01T00:00:00Z", "2024-02-01T00:00:00Z"));
    }
}
