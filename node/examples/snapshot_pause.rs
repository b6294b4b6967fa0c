//! How long writes wait for a snapshot: one writer puts blocks one after another, and beside it, in turns, runs nothing, a bare `zfs snapshot` of the same datasets,
//! and `basalt snapshot take`. The pause is the longest put of each turn. Prints all, the medians and their ratio, and ends with 1 if the ratio is above the limit.
//!
//!     snapshot_pause NODE ROUNDS LIMIT DATASET...      the programs basalt and zfs are found by PATH
//!
//! Used by `tools/test-snapshots` (testbed/tests/snapshots.sh), while an `ipfs add` runs.

#![allow(clippy::unwrap_used, reason = "a measurement ends there")]

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use basalt_node::{client, config::Config};
use basalt_proto::v1::PutRequest;
use sha2::{Digest, Sha256};

/// Bytes of a block: small, so that what is measured is waiting and not writing.
const BLOCK_BYTES: usize = 16 << 10;
/// A turn lasts at least as long, so that all three have as many puts that something else may delay.
const TURN: Duration = Duration::from_millis(2500);

type Puts = Arc<Mutex<Vec<(Instant, Duration)>>>;

fn key(block: &[u8]) -> String {
    let mut multihash = vec![0x12, 32];
    multihash.extend(Sha256::digest(block));
    format!("/blocks/{}", data_encoding::BASE32_NOPAD.encode(&multihash))
}

/// Puts without end.
async fn write(node: PathBuf, puts: Puts) {
    let sockets = Config::default().sockets;
    let (mut data, _) = client::data(&node, &sockets, "snapshot_pause", "bench").await.unwrap();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        getrandom::fill(&mut block[..64]).unwrap();
        let began = Instant::now();
        let request = PutRequest { key: key(&block), value: block.clone().into(), ttl_ms: 0 };
        data.put(request).await.unwrap();
        puts.lock().unwrap().push((began, began.elapsed()));
    }
}

/// The longest put of a turn in which a command runs, and how long that took; in milliseconds.
fn turn(puts: &Puts, command: Option<&mut Command>) -> (f64, f64) {
    let began = Instant::now();
    if let Some(command) = command {
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let took = began.elapsed();
    std::thread::sleep(TURN.saturating_sub(took));
    let mut all = puts.lock().unwrap();
    assert!(!all.is_empty(), "nothing was put in {:?}", began.elapsed());
    let longest = all.iter().map(|(_, took)| *took).max().unwrap_or_default();
    all.clear();
    (longest.as_secs_f64() * 1e3, took.as_secs_f64() * 1e3)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [node, rounds, limit, datasets @ ..] = &arguments[..] else { panic!("NODE ROUNDS LIMIT DATASET...") };
    let (rounds, limit): (usize, f64) = (rounds.parse().unwrap(), limit.parse().unwrap());
    let puts = Puts::default();
    let writer = puts.clone();
    let folder = PathBuf::from(node);
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(write(folder, writer));
    });
    turn(&puts, None);
    let (mut nothing, mut bare, mut take) = (Vec::new(), Vec::new(), Vec::new());
    let run = std::process::id();
    for round in 0..rounds {
        let (alone, _) = turn(&puts, None);
        let snapshots = datasets.iter().map(|dataset| format!("{dataset}@bare-{run}-{round}"));
        let (by_zfs, zfs_ms) = turn(&puts, Some(Command::new("zfs").arg("snapshot").args(snapshots)));
        let (by_take, take_ms) = turn(&puts, Some(Command::new("basalt").args(["snapshot", "--node", node, "take"])));
        println!(
            "pause  longest put {alone:.0} ms without a snapshot, {by_zfs:.0} ms with zfs snapshot (ran {zfs_ms:.0} ms), \
             {by_take:.0} ms with basalt snapshot take (ran {take_ms:.0} ms)"
        );
        nothing.push(alone);
        bare.push(by_zfs);
        take.push(by_take);
    }
    let (nothing, bare, take) = (median(nothing), median(bare), median(take));
    let ratio = take / bare;
    println!(
        "pause  medians of {rounds}: {nothing:.0} ms without, {bare:.0} ms zfs snapshot, {take:.0} ms basalt snapshot take; ratio {ratio:.2}, at most {limit}"
    );
    if ratio > limit {
        std::process::exit(1);
    }
}
