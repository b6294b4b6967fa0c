//! How long writes wait for a snapshot: one writer puts blocks one after another, and beside it, in turns, runs nothing, a bare `zfs snapshot` of the same datasets,
//! and a take as the agent does it by its schedule, in a process that runs already. The pause is the longest put of each turn. Prints all, the medians and their ratio,
//! and ends with 1 if the ratio is above the limit.
//!
//!     snapshot_pause NODE ROUNDS LIMIT DATASET...      `zfs` is found by PATH
//!
//! Used by `tools/test-snapshots` (testbed/tests/snapshots.sh), while an `ipfs add` runs. On a machine with one processor, starting any program of some size beside the
//! writer delays it by more than a snapshot does, so the command `basalt snapshot take` is not what is measured.

#![allow(clippy::unwrap_used, reason = "a measurement ends there")]

use std::{
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use basalt_node::{client, config::Config};
use basalt_proto::v1::PutRequest;
use basalt_snapshots::{Held, Keeper, Quiesce};
use basalt_zfs::{Cli, CliOptions, Dataset};
use sha2::{Digest, Sha256};

/// Bytes of a block: small, so that what is measured is waiting and not writing.
const BLOCK_BYTES: usize = 16 << 10;
/// A turn lasts at least as long, so that all three have as many puts that something else may delay.
const TURN: Duration = Duration::from_millis(2500);

type Puts = Arc<Mutex<Vec<Duration>>>;

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
    block[..8].copy_from_slice(
        &SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos().to_le_bytes()[..8],
    );
    for number in 0u64.. {
        block[8..16].copy_from_slice(&number.to_le_bytes());
        let began = Instant::now();
        let request = PutRequest { key: key(&block), value: block.clone().into(), ttl_ms: 0 };
        data.put(request).await.unwrap();
        puts.lock().unwrap().push(began.elapsed());
    }
}

/// The longest put of a turn in which something is done, and how long that took; in milliseconds.
fn turn(puts: &Puts, what: impl FnOnce()) -> (f64, f64) {
    puts.lock().unwrap().clear();
    let began = Instant::now();
    what();
    let took = began.elapsed();
    std::thread::sleep(TURN.saturating_sub(took));
    let all = puts.lock().unwrap();
    assert!(!all.is_empty(), "nothing was put in {:?}", began.elapsed());
    let longest = all.iter().max().copied().unwrap_or_default();
    (longest.as_secs_f64() * 1e3, took.as_secs_f64() * 1e3)
}

struct Nobody;

impl Quiesce for Nobody {
    fn hold(&self) -> basalt_snapshots::Result<Option<Box<dyn Held>>> {
        Ok(None)
    }
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
    let names: Vec<Dataset> = datasets.iter().map(|name| name.parse().unwrap()).collect();
    let record = tempfile::tempdir().unwrap();
    let zfs = Arc::new(Cli::new(CliOptions::default()).unwrap());
    let mut keeper = Keeper::open(zfs, record.path(), names, "pause").unwrap();
    turn(&puts, || ());
    let (mut nothing, mut bare, mut take) = (Vec::new(), Vec::new(), Vec::new());
    let run = std::process::id();
    for round in 0..rounds {
        let (alone, _) = turn(&puts, || ());
        let (by_zfs, zfs_ms) = turn(&puts, || {
            let snapshots = datasets.iter().map(|dataset| format!("{dataset}@bare-{run}-{round}"));
            assert!(Command::new("zfs").arg("snapshot").args(snapshots).status().unwrap().success());
        });
        let (by_take, take_ms) = turn(&puts, || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            keeper.take(now, &Nobody).unwrap();
        });
        println!(
            "pause  longest put {alone:.0} ms without a snapshot, {by_zfs:.0} ms with zfs snapshot (ran {zfs_ms:.0} ms), \
             {by_take:.0} ms with a take (ran {take_ms:.0} ms)"
        );
        nothing.push(alone);
        bare.push(by_zfs);
        take.push(by_take);
    }
    let (nothing, bare, take) = (median(nothing), median(bare), median(take));
    let ratio = take / bare;
    println!(
        "pause  medians of {rounds}: {nothing:.0} ms without, {bare:.0} ms zfs snapshot, {take:.0} ms take; ratio {ratio:.2}, at most {limit}"
    );
    if ratio > limit {
        std::process::exit(1);
    }
}
