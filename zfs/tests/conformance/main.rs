//! What every engine must do, and the same on all: run on the model always, and on OpenZFS where there is a pool.
//!
//!   BASALT_TEST_POOL=tank ...     on that pool of this host, as root, in a dataset of its own that is destroyed at the end
//!   --file-pool                   on a pool that it makes on files in /tmp (a guest)
//!   --zfs PATH --zpool PATH       the commands of another release
//!   --text                        without JSON
//!   --seed N --steps N            one random sequence of operations, on the model and there
//!   --sequences N                 how many of them (default 2; 12 on the model alone)
//!   --short                       a part of the cases and a short sequence, on the pool only: for what runs at every change
//!   ONLY...                       cases whose names have one of these in them
//!
//! Ends with the counts; a failing sequence prints its seed.

#![allow(clippy::unwrap_used)] // a test, though it has a main of its own

mod cases;
mod sequence;
mod world;

use std::{panic, process::ExitCode};

use world::World;

struct Options {
    only: Vec<String>,
    file_pool: bool,
    text: bool,
    short: bool,
    zfs: Option<String>,
    zpool: Option<String>,
    seed: Option<u64>,
    steps: usize,
    sequences: Option<u64>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        only: Vec::new(),
        file_pool: false,
        text: false,
        short: false,
        zfs: None,
        zpool: None,
        seed: None,
        steps: 40,
        sequences: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        let number = |text: String| match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).map_err(|e| e.to_string()),
            None => text.parse::<u64>().map_err(|e| e.to_string()),
        };
        match argument.as_str() {
            "--file-pool" => options.file_pool = true,
            "--text" => options.text = true,
            "--short" => options.short = true,
            "--zfs" => options.zfs = Some(value()?),
            "--zpool" => options.zpool = Some(value()?),
            "--seed" => options.seed = Some(number(value()?)?),
            "--steps" => options.steps = number(value()?)? as usize,
            "--sequences" => options.sequences = Some(number(value()?)?),
            // What cargo and its runners add.
            "--nocapture" | "--quiet" | "-q" | "--test-threads=1" => {}
            only if !only.starts_with('-') => options.only.push(only.to_owned()),
            other => return Err(format!("no option {other}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("conformance: {why}");
            return ExitCode::from(2);
        }
    };
    let (mut passed, mut failed) = (0, 0);
    let mut run = |name: String, test: &mut dyn FnMut()| {
        if !options.only.is_empty() && !options.only.iter().any(|only| name.contains(only.as_str())) {
            return;
        }
        let began = std::time::Instant::now();
        match panic::catch_unwind(panic::AssertUnwindSafe(test)) {
            Ok(()) => {
                passed += 1;
                println!("ok   {name} ({} ms)", began.elapsed().as_millis());
            }
            Err(_) => {
                failed += 1;
                println!("FAIL {name}");
            }
        }
    };

    // "0x5eed" and the like only make each run the same; other seeds are tried by hand.
    let seeds = |count: u64| options.seed.map_or((0..count).map(|i| 0x5eed + i).collect(), |seed| vec![seed]);
    if !options.short {
        for (name, case) in cases::ALL {
            run(format!("model: {name}"), &mut || case(&World::model()));
        }
        run("model: the same seed gives the same world".into(), &mut sequence::determinism);
        for seed in seeds(12) {
            run(format!("model: sequence {seed:#x} keeps what must always hold"), &mut || {
                sequence::run(seed, 300, None)
            });
        }
    }
    let pool = std::env::var("BASALT_TEST_POOL").ok().filter(|pool| !pool.is_empty());
    if pool.is_some() || options.file_pool {
        let real = match World::real(pool.as_deref(), options.zfs.as_deref(), options.zpool.as_deref(), options.text) {
            Ok(real) => real,
            Err(why) => {
                println!("FAIL the pool of the test: {why}\nzfs: {passed} passed; {} failed", failed + 1);
                return ExitCode::FAILURE;
            }
        };
        let name = real.name();
        for (case_name, case) in cases::ALL.iter().filter(|(name, _)| !options.short || cases::SHORT.contains(name)) {
            run(format!("{name}: {case_name}"), &mut || case(&real));
        }
        let (sequences, steps) =
            if options.short { (1, options.steps.min(12)) } else { (options.sequences.unwrap_or(2), options.steps) };
        for seed in seeds(sequences) {
            run(format!("{name}: sequence {seed:#x} is that of the model"), &mut || {
                sequence::run(seed, steps, Some(&real))
            });
        }
        real.clear();
    } else {
        println!("conformance: on the model only; 'make test-zfs' or BASALT_TEST_POOL runs it on OpenZFS");
    }
    // In the words of cargo's own runner where it is one of many, so that it is counted with them.
    match pool.is_some() || options.file_pool {
        true => println!("zfs: {passed} passed; {failed} failed"),
        false => {
            println!("test result: {}. {passed} passed; {failed} failed", if failed == 0 { "ok" } else { "FAILED" })
        }
    }
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
