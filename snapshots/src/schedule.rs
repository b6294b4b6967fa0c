//! When sets are taken: a line of cron in UTC, with a delay that is the same for a node and an occurrence, so that a thousand nodes don't snapshot in one second and
//! a restart takes nothing twice.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use croner::Cron;

use crate::TOLERANCE_S;

/// A schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    text: String,
    cron: Cron,
    jitter_s: u64,
    seed: u64,
}

/// A line that is no schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleError(String);

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ScheduleError {}

impl Schedule {
    /// Reads a line of cron (minute, hour, day of the month, month, day of the week). Each occurrence is late by up to `jitter_s`, by how much follows from `node`.
    pub fn new(line: &str, jitter_s: u64, node: &str) -> Result<Schedule, ScheduleError> {
        let cron = Cron::from_str(line).map_err(|err| {
            ScheduleError(format!("{line:?} is no schedule: {err}; write minute, hour, day, month and weekday as in \"0 * * * *\", each hour"))
        })?;
        Ok(Schedule { text: line.to_owned(), cron, jitter_s, seed: hash(0xcbf2_9ce4_8422_2325, node.as_bytes()) })
    }

    /// The line.
    pub fn line(&self) -> &str {
        &self.text
    }

    /// When the first occurrence after a time is due, its delay included; none where the line never comes.
    pub fn next_unix_s(&self, after_unix_s: u64) -> Option<u64> {
        // The occurrence before may be due later than this.
        let mut from = at(after_unix_s.saturating_sub(self.jitter_s))?;
        loop {
            let occurrence = self.cron.find_next_occurrence(&from, false).ok()?;
            let due = u64::try_from(occurrence.timestamp()).ok()?;
            let due = due.saturating_add(self.delay_s(due));
            if due > after_unix_s {
                return Some(due);
            }
            from = occurrence;
        }
    }

    /// Whether one is due now. Runs that were missed are one run. A youngest set from the future says nothing about when the last one was taken: then `started_unix_s`,
    /// since when this host has waited, counts.
    pub fn is_due(&self, youngest_unix_s: Option<u64>, started_unix_s: u64, now_unix_s: u64) -> bool {
        let since =
            youngest_unix_s.filter(|taken| *taken <= now_unix_s.saturating_add(TOLERANCE_S)).unwrap_or(started_unix_s);
        self.next_unix_s(since).is_some_and(|due| due <= now_unix_s)
    }

    fn delay_s(&self, occurrence_unix_s: u64) -> u64 {
        hash(self.seed, &occurrence_unix_s.to_le_bytes()) % self.jitter_s.saturating_add(1)
    }
}

fn at(unix_s: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(i64::try_from(unix_s).ok()?, 0)
}

/// FNV-1a, then mixed: it has to spread, not to keep a secret.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let folded = bytes.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (folded ^ (folded >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    /// 2026-01-01T00:00:00Z.
    const BEGIN: u64 = 1_767_225_600;

    #[test]
    fn each_hour_is_due_once_whatever_the_delay() {
        let schedule = Schedule::new("0 * * * *", 600, "node").unwrap();
        let (mut now, mut last, mut taken) = (BEGIN, BEGIN, Vec::new());
        while now < BEGIN + 48 * HOUR {
            now += 60;
            if schedule.is_due(Some(last), BEGIN, now) {
                last = now;
                taken.push(now);
            }
        }
        let hours: Vec<u64> = taken.iter().map(|time| (time - BEGIN) / HOUR).collect();
        assert_eq!(hours, (0..48).collect::<Vec<_>>()[usize::from(hours[0] != 0)..], "one in each hour");
        assert!(taken.iter().all(|time| (time - BEGIN) % HOUR <= 660));
        let delays: std::collections::BTreeSet<u64> = taken.iter().map(|time| (time - BEGIN) % HOUR).collect();
        assert!(delays.len() > 3, "they are spread: {delays:?}");
    }

    #[test]
    fn missed_runs_are_one_run() {
        let schedule = Schedule::new("0 * * * *", 0, "node").unwrap();
        assert!(schedule.is_due(Some(BEGIN), BEGIN, BEGIN + 100 * HOUR));
        assert!(!schedule.is_due(Some(BEGIN + 100 * HOUR), BEGIN, BEGIN + 100 * HOUR + 1));
    }

    #[test]
    fn a_youngest_set_from_the_future_does_not_stop_the_schedule() {
        let schedule = Schedule::new("0 * * * *", 0, "node").unwrap();
        let future = Some(BEGIN + 1_000_000 * HOUR);
        assert!(!schedule.is_due(future, BEGIN + 60, BEGIN + 120));
        assert!(schedule.is_due(future, BEGIN + 60, BEGIN + HOUR));
    }

    #[test]
    fn a_line_that_is_no_schedule_is_refused_with_an_example() {
        for line in ["", "hourly", "61 * * * *", "* * * *"] {
            assert!(Schedule::new(line, 0, "n").unwrap_err().to_string().contains("as in"), "{line}");
        }
    }
}
