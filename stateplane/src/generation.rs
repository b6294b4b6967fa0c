//! Generations: which of two changes to a record is the newer one, on any number of hosts, without asking anybody.

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{Class, Error, Result};

/// How far ahead of this host's clock a generation may be. A change from further ahead would fence all others until that time came.
pub const SKEW_MAX: Duration = Duration::from_secs(10 * 60);

/// A point in the history of a record: microseconds of Unix time, but never less than what its maker had seen. Above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(i64);

impl Generation {
    /// From its number; `None` unless above zero.
    pub fn new(micros: i64) -> Option<Generation> {
        (micros > 0).then_some(Generation(micros))
    }

    /// Its number.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Makes generations: each above all that it made and saw, and as near to the time as that allows.
#[derive(Debug, Default)]
pub struct Clock {
    last: AtomicI64,
}

impl Clock {
    /// A clock that has seen nothing.
    pub fn new() -> Clock {
        Clock::default()
    }

    /// The next generation.
    pub fn next(&self) -> Generation {
        let now = micros(SystemTime::now());
        let step = |last: i64| Some(now.max(last.saturating_add(1)).max(1));
        match self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step) {
            Ok(last) | Err(last) => Generation(now.max(last.saturating_add(1)).max(1)),
        }
    }

    /// Takes note of a generation read somewhere, so that [`Clock::next`] is above it though that host's clock is ahead.
    pub fn saw(&self, seen: Generation) {
        self.last.fetch_max(seen.0, Ordering::SeqCst);
    }
}

/// Microseconds of Unix time; a host before 1970 is at zero.
pub(crate) fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    i64::try_from(since).unwrap_or(i64::MAX)
}

/// Refuses a generation that is too far ahead of this host's time.
pub(crate) fn check(generation: Generation, tried: impl Fn() -> String) -> Result<()> {
    let latest = micros(SystemTime::now() + SKEW_MAX);
    if generation.0 <= latest {
        return Ok(());
    }
    let ahead = (generation.0 - latest) / 1_000_000 + i64::try_from(SKEW_MAX.as_secs()).unwrap_or(i64::MAX);
    let why = format!(
        "its generation {generation} is {ahead} s ahead of this host's time, more than the {} s that are allowed; set the clocks (chrony, NTP)",
        SKEW_MAX.as_secs()
    );
    Err(Error::new(tried(), Class::Argument, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_is_above_what_was_made_and_seen() {
        let clock = Clock::new();
        let first = clock.next();
        let ahead = Generation::new(first.get() + 5_000_000).unwrap();
        clock.saw(ahead);
        let second = clock.next();
        assert!(second > ahead && clock.next() > second);
        clock.saw(first);
        assert!(clock.next() > second);
    }

    #[test]
    fn a_generation_of_next_week_is_refused_with_the_remedy() {
        let week = Generation::new(micros(SystemTime::now()) + 7 * 86_400_000_000).unwrap();
        let err = check(week, || "put".to_owned()).unwrap_err();
        assert!(err.class() == Class::Argument && err.to_string().contains("set the clocks"), "{err}");
        assert!(check(Clock::new().next(), String::new).is_ok());
    }
}
