//! Interleaved rounds over cases, and what was measured.

use std::time::Instant;

use serde::Serialize;

use crate::Result;

/// One run of one case.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Payload, in bytes; 0 where none moves.
    pub bytes: usize,
    /// Operations.
    pub operations: usize,
    /// Wall time.
    pub seconds: f64,
}

/// Runs `work` and takes its time.
pub fn timed(bytes: usize, operations: usize, work: impl FnOnce() -> Result) -> Result<Sample> {
    let began = Instant::now();
    work()?;
    Ok(Sample { bytes, operations, seconds: began.elapsed().as_secs_f64() })
}

/// Something to measure.
pub struct Case<'a> {
    name: String,
    durability: &'static str,
    baseline: Option<String>,
    is_baseline: bool,
    run: Box<dyn Fn() -> Result<Sample> + 'a>,
}

impl<'a> Case<'a> {
    /// A case of the store.
    pub fn new(name: &str, durability: &'static str, run: impl Fn() -> Result<Sample> + 'a) -> Case<'a> {
        Case { name: name.into(), durability, baseline: None, is_baseline: false, run: Box::new(run) }
    }

    /// What the store is measured against.
    pub fn baseline(name: &str, durability: &'static str, run: impl Fn() -> Result<Sample> + 'a) -> Case<'a> {
        Case { is_baseline: true, ..Case::new(name, durability, run) }
    }

    /// Names the baseline whose sample of the same round is the measure of this case's.
    pub fn against(self, baseline: &str) -> Case<'a> {
        Case { baseline: Some(baseline.into()), ..self }
    }
}

/// All samples of a case, in the form in which the report reads them; the Go side writes the same.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The case.
    pub name: String,
    /// What an acknowledgement promised.
    pub durability: String,
    /// MB/s (10^6 bytes), or op/s where nothing moves.
    pub unit: &'static str,
    /// The figure of each round.
    pub samples: Vec<f64>,
    /// Name of the case that it is measured against.
    pub baseline: Option<String>,
    /// Whether it is there to be measured against.
    pub is_baseline: bool,
}

/// Runs every case once in each of `count` rounds.
pub fn interleaved(count: usize, cases: Vec<Case<'_>>) -> Result<Vec<Measured>> {
    let mut samples = vec![Vec::with_capacity(count); cases.len()];
    let mut units = vec![""; cases.len()];
    for round in 1..=count {
        for ((case, samples), unit) in cases.iter().zip(&mut samples).zip(&mut units) {
            let sample = (case.run)().map_err(|err| format!("{}, round {round}: {err}", case.name))?;
            let (amount, named) = match sample.bytes {
                0 => (sample.operations as f64, "op/s"),
                bytes => (bytes as f64 / 1e6, "MB/s"),
            };
            *unit = named;
            samples.push(amount / sample.seconds.max(1e-9));
        }
        eprintln!("round {round} of {count}: {} cases", cases.len());
    }
    let measured = cases.into_iter().zip(samples).zip(units).map(|((case, samples), unit)| Measured {
        name: case.name,
        durability: case.durability.into(),
        unit,
        samples,
        baseline: case.baseline,
        is_baseline: case.is_baseline,
    });
    Ok(measured.collect())
}
