//! What the fuzz targets of all crates share: how many cases, from which seed, mutations of what is valid, and a bound on memory.
//!
//! A target is a test that calls [`hold`]. In `cargo test` it runs a fixed number of cases from a fixed seed; `make fuzz SECONDS=n` sets
//! `FUZZ_SECONDS`, and each target then runs that long from a seed of the clock. A failure shrinks, and prints the seed: `SEED=0x… cargo test NAME`
//! replays it.

use std::{
    fmt::Debug,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub use proptest;
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestCaseResult, TestRng, TestRunner},
};

/// The seed of a run without one.
const SEED: u64 = 1;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let text = text.trim();
    text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
}

/// Checks that `test` holds for `cases` cases of `strategy`, or for as long as `FUZZ_SECONDS` says. Panics of `test` are failures too.
///
/// # Panics
/// Where it does not hold, with the smallest case that was found and the seed that replays it.
pub fn hold<S: Strategy>(name: &str, cases: u32, strategy: S, test: impl Fn(S::Value) -> TestCaseResult)
where
    S::Value: Debug,
{
    let seconds = number("FUZZ_SECONDS").map(Duration::from_secs);
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(SEED, |time| time.as_nanos() as u64);
    let mut seed = number("SEED").unwrap_or_else(|| if seconds.is_some() { clock() } else { SEED });
    let begin = Instant::now();
    let mut total = 0u64;
    loop {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        if let Err(err) = runner.run(&strategy, &test) {
            panic!("{name} does not hold; SEED={seed:#x} replays it\n{err}");
        }
        total += u64::from(cases);
        seed = seed.wrapping_add(1);
        if seconds.is_none_or(|seconds| begin.elapsed() >= seconds) {
            break;
        }
    }
    println!("fuzz {name}: {total} cases");
}

/// Runs `decode`, which may have `limit_bytes` of memory at a time on this thread.
pub fn within<T>(limit_bytes: usize, decode: impl FnOnce() -> T) -> Result<T, TestCaseError> {
    let mut decoded = None;
    let used = allocation_counter::measure(|| decoded = Some(decode()));
    if used.bytes_max > limit_bytes as u64 {
        let message = format!("it took {} bytes of memory, of {limit_bytes} at most", used.bytes_max);
        return Err(TestCaseError::fail(message));
    }
    decoded.ok_or_else(|| TestCaseError::fail("it did not end"))
}

/// Bytes of any kind, more often few.
pub fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..80),
        2 => prop::collection::vec(any::<u8>(), 0..4096),
        1 => (any::<u8>(), 0usize..4096).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Set(Index, u8),
    Number(Index, u64, usize),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Copy(Index, Index, usize),
    Append(Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..24);
    // Numbers at which lengths and counts go wrong.
    let number = prop_oneof![
        prop::sample::select(vec![0, 1, 7, 8, 127, 128, 255, 65_535, 65_536, 1 << 31, u64::from(u32::MAX), 1 << 63]),
        Just(u64::MAX),
        any::<u64>(),
    ];
    prop_oneof![
        4 => (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        2 => (any::<Index>(), number, prop::sample::select(vec![1, 2, 4, 8]))
            .prop_map(|(at, value, width)| Mutation::Number(at, value, width)),
        2 => any::<Index>().prop_map(Mutation::Cut),
        1 => (any::<Index>(), bytes()).prop_map(|(at, more)| Mutation::Insert(at, more)),
        1 => (any::<Index>(), 1usize..24).prop_map(|(at, len)| Mutation::Remove(at, len)),
        2 => (any::<Index>(), any::<Index>(), 1usize..64).prop_map(|(from, to, len)| Mutation::Copy(from, to, len)),
        1 => bytes().prop_map(Mutation::Append),
    ]
}

fn apply(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let at = |index: &Index| if bytes.is_empty() { 0 } else { index.index(bytes.len()) };
    match mutation {
        Mutation::Flip(index, bit) => {
            let at = at(index);
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
        }
        Mutation::Set(index, value) => {
            let at = at(index);
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = *value);
        }
        Mutation::Number(index, value, width) => {
            let at = at(index);
            let value = value.to_le_bytes();
            bytes.iter_mut().skip(at).zip(value.iter().take(*width)).for_each(|(byte, new)| *byte = *new);
        }
        Mutation::Cut(index) => {
            let at = at(index);
            bytes.truncate(at);
        }
        Mutation::Insert(index, more) => {
            let at = at(index);
            bytes.splice(at..at, more.iter().copied());
        }
        Mutation::Remove(index, len) => {
            let at = at(index);
            bytes.drain(at..(at + len).min(bytes.len()));
        }
        Mutation::Copy(from, to, len) => {
            let (from, to) = (at(from), at(to));
            let part: Vec<u8> = bytes.iter().skip(from).take(*len).copied().collect();
            bytes.splice(to..to, part);
        }
        Mutation::Append(more) => bytes.extend_from_slice(more),
    }
}

/// What is valid, mutated once to three times: flipped bits, lengths and counts changed, cut, spliced. It may by chance be what it was.
pub fn mutated(valid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (valid, prop::collection::vec(mutation(), 1..4)).prop_map(|(mut bytes, mutations)| {
        mutations.iter().for_each(|mutation| apply(&mut bytes, mutation));
        bytes
    })
}

/// Any bytes, and mutated valid ones, which find more.
pub fn hostile(valid: impl Strategy<Value = Vec<u8>> + 'static) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![1 => any_bytes().boxed(), 4 => mutated(valid).boxed()]
}

/// As [`hostile`], as text.
pub fn hostile_text(valid: impl Strategy<Value = String> + 'static) -> impl Strategy<Value = String> {
    let bytes = hostile(valid.prop_map(String::into_bytes));
    prop_oneof![
        4 => bytes.prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        1 => any::<String>(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_seed_and_replays() {
        let failing = || {
            hold("nothing is 7", 1000, any::<u8>(), |byte| {
                prop_assert!(byte != 7);
                Ok(())
            });
        };
        let message = |caught: Box<dyn std::any::Any + Send>| *caught.downcast::<String>().unwrap_or_default();
        let first = message(std::panic::catch_unwind(failing).err().unwrap_or_else(|| Box::new(String::new())));
        let again = message(std::panic::catch_unwind(failing).err().unwrap_or_else(|| Box::new(String::new())));
        assert!(first.contains("SEED=0x") && first.contains("minimal failing input"), "{first}");
        assert_eq!(first, again);
    }

    #[test]
    fn memory_is_counted() {
        assert!(within(1 << 20, || vec![1u8; 100]).is_ok());
        assert!(within(1000, || vec![1u8; 2000].len()).is_err());
    }
}
