//! What a scrub in the background costs the reads beside it: latencies of Get without one, at the default rate and without a limit, in turn
//! within each round, so that a busy machine hits all of them alike.

use std::{
    fs::File,
    os::fd::AsFd,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use basalt_datastore::{BatchOp, Key};
use basalt_node::{Config, Host, InitOptions, Node};
use basalt_proto::v1::{ControlScrubRequest, ScrubStatus, control_scrub_request::Action};

use crate::{Result, blocks::Blocks, store::Site};

/// Reads of one sample, each of another block.
const READS: usize = 400;
/// A rate that no disk reaches.
const NO_LIMIT: u64 = 1 << 40;

/// Scrub rates in bytes a second; `None` for no scrub, 0 for what the config says.
const RATES: [(&str, Option<u64>); 3] = [("none", None), ("default, 16 MiB/s", Some(0)), ("no limit", Some(NO_LIMIT))];

/// Measures and prints.
pub fn measure(site: &Site, blocks: &Blocks, rounds: usize) -> Result {
    let folder = site.fresh()?;
    let path = folder.path().join("node");
    basalt_node::init(&path, &InitOptions::default())?;
    let node = Node::open(&path, Config::default(), Host::Agent)?;
    for part in blocks.all.chunks(64) {
        let puts = part.iter().map(|(key, value)| BatchOp::Put(Key::of_block(key), value.clone()));
        node.datastore().batch(puts.collect())?;
    }
    node.datastore().sync()?;
    println!("| Reads | Scrub | p50, us | p99, us | p50 against none | p99 against none | scrubbed, MiB/s |");
    println!("|---|---|---|---|---|---|---|");
    for cold in [false, true] {
        let mut samples = vec![Vec::new(); RATES.len()];
        let mut speeds = vec![Vec::new(); RATES.len()];
        for round in 0..rounds {
            for (i, (_, rate)) in RATES.iter().enumerate() {
                let (latencies, speed) = sample(&node, &path, blocks, *rate, cold, round)?;
                samples[i].push((percentile(&latencies, 50), percentile(&latencies, 99)));
                speeds[i].push(speed);
            }
        }
        for (i, (name, _)) in RATES.iter().enumerate() {
            let ratio = |of: fn(&(f64, f64)) -> f64| {
                median(samples[i].iter().zip(&samples[0]).map(|(with, without)| of(with) / of(without)).collect())
            };
            println!(
                "| {} | {name} | {:.0} | {:.0} | {:.2} | {:.2} | {:.0} |",
                if cold { "from the disk" } else { "from memory" },
                median(samples[i].iter().map(|sample| sample.0).collect()),
                median(samples[i].iter().map(|sample| sample.1).collect()),
                ratio(|sample| sample.0),
                ratio(|sample| sample.1),
                median(speeds[i].clone()),
            );
        }
    }
    node.close()?;
    Ok(())
}

/// Latencies of some reads in microseconds, and what was scrubbed meanwhile in MiB a second.
fn sample(
    node: &Node,
    path: &Path,
    blocks: &Blocks,
    rate: Option<u64>,
    cold: bool,
    round: usize,
) -> Result<(Vec<f64>, f64)> {
    if cold {
        forget(path)?;
    }
    let done = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let done = &done;
        let scrub = rate.map(|rate| scope.spawn(move || keep_scrubbing(node, rate, done)));
        let mut value = Vec::new();
        let mut latencies = Vec::with_capacity(READS);
        let mut read = || -> Result {
            for i in 0..READS {
                let (key, _) = &blocks.all[(i * 7919 + round * 31) % blocks.all.len()];
                let key = Key::of_block(key);
                let begin = Instant::now();
                node.datastore().get(&key, &mut value)?;
                latencies.push(begin.elapsed().as_secs_f64() * 1e6);
                // A reader that does something with what it reads.
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        let outcome = read();
        let seconds = began.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        let bytes = match scrub {
            Some(scrub) => scrub.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            None => 0,
        };
        outcome?;
        Ok((latencies, bytes as f64 / seconds / f64::from(1 << 20)))
    })
}

/// Passes of the scrub, one after the other, until it is enough; returns the bytes read.
fn keep_scrubbing(node: &Node, rate_bytes: u64, done: &AtomicBool) -> Result<u64> {
    let ask =
        |action: Action| node.control_scrub(&ControlScrubRequest { action: action.into(), rate_bytes, hash: false });
    let bytes = |status: &ScrubStatus| status.stores.iter().map(|store| store.bytes_done).sum::<u64>();
    ask(Action::Start)?;
    let mut before = 0;
    while !done.load(Ordering::Relaxed) {
        let status = ask(Action::Unspecified)?;
        if status.state == "idle" {
            before += bytes(&status);
            ask(Action::Start)?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(before + bytes(&ask(Action::Stop)?))
}

/// Has the page cache let go of the segments.
fn forget(node: &Path) -> Result {
    for shard in std::fs::read_dir(node.join("shards"))? {
        for file in std::fs::read_dir(shard?.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|end| end == "log") {
                let file = File::open(&path)?;
                let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                nix::fcntl::posix_fadvise(file.as_fd(), 0, 0, advice)?;
            }
        }
    }
    Ok(())
}

fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

fn median(values: Vec<f64>) -> f64 {
    percentile(&values, 50)
}
