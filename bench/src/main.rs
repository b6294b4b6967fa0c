//! Measures the shards of a node in process against what the disk can do with the same bytes.
//!
//! One run, rounds that interleave the cases (A, B, C, A, B, C, ...), so that a disk or a neighbour that changes its mind hits all of
//! them alike; a ratio is taken within its round. `make bench` runs this and the Go side, and writes `docs/benchmarks.md`.

mod blocks;
mod raw;
mod rounds;
mod scrub;
mod store;

use std::{error::Error, fs::File, path::PathBuf};

use basalt_blockstore::Durability;
use clap::Parser;

use crate::{
    blocks::Blocks,
    raw::RawFile,
    rounds::{Case, interleaved},
    store::{Filled, Site},
};

/// Result of a measurement.
type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const BLOCK_BYTES: usize = 256 << 10;
const SMALL_BYTES: usize = 64;
/// Kubo's bitswap server has 128 workers; 16 is a busy importer; 1 is `ipfs add` of small files.
const WRITERS: [usize; 3] = [1, 16, 128];
const READERS: [usize; 2] = [1, 16];
const SHARDS: [usize; 3] = [1, 4, 16];

/// Benchmarks of Basalt's shards in process.
#[derive(Debug, Parser)]
struct Args {
    /// Folder on the disk to measure; stores are made in it and removed.
    #[arg(long)]
    dir: PathBuf,
    /// Where the samples go, as JSON.
    #[arg(long, required_unless_present = "scrub")]
    json: Option<PathBuf>,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes that each Put case stores, in MiB.
    #[arg(long, default_value_t = 256)]
    mib: usize,
    /// Measure only what a scrub costs the reads beside it, and print it as a table.
    #[arg(long)]
    scrub: bool,
    /// Keys of the Has cases.
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
}

fn main() -> Result {
    let args = Args::parse();
    let site = Site::new(&args.dir)?;
    let blocks = Blocks::generate((args.mib << 20) / BLOCK_BYTES, BLOCK_BYTES, 1);
    let rounds = args.rounds.max(1);
    if args.scrub {
        return scrub::measure(&site, &blocks, rounds);
    }
    let mut measured = interleaved(rounds, puts(&site, &blocks))?;

    // Reads come from stores that stay open over all rounds; pages and index are in memory.
    let filled = Filled::new(&site, &blocks, 1, Durability::Relaxed)?;
    let raw = RawFile::write(&site, &blocks)?;
    measured.extend(interleaved(rounds, gets(&filled, &raw, &blocks))?);

    let small = Blocks::generate(args.keys, SMALL_BYTES, 2);
    let absent = Blocks::generate(args.keys, SMALL_BYTES, 3);
    let filled = Filled::new(&site, &small, 1, Durability::Relaxed)?;
    measured.extend(interleaved(rounds, has(&filled, &small, &absent))?);

    if let Some(json) = &args.json {
        serde_json::to_writer_pretty(File::create(json)?, &measured)?;
    }
    Ok(())
}

fn puts<'a>(site: &'a Site, blocks: &'a Blocks) -> Vec<Case<'a>> {
    let mut cases = Vec::new();
    for writers in WRITERS {
        let batch_bytes = (writers * BLOCK_BYTES).min(8 << 20);
        let raw = format!("raw append, fdatasync every {} KiB", batch_bytes >> 10);
        cases.push(Case::baseline(&raw, "strict", move || raw::append(site, blocks, batch_bytes)));
        for shards in SHARDS {
            let name = format!("Put 256 KiB, {}, {}", many(writers, "writer"), many(shards, "shard"));
            let case = move || store::put_all(site, blocks, shards, writers, Durability::Strict);
            cases.push(Case::new(&name, "strict", case).against(&raw));
        }
    }
    let raw = "raw append, no flush";
    cases.push(Case::baseline(raw, "none", move || raw::append(site, blocks, usize::MAX)));
    let case = move || store::put_all(site, blocks, 1, 16, Durability::Relaxed);
    cases.push(Case::new("Put 256 KiB, 16 writers, 1 shard, Sync at the end", "relaxed", case).against(raw));
    cases
}

fn gets<'a>(filled: &'a Filled, raw: &'a RawFile, blocks: &'a Blocks) -> Vec<Case<'a>> {
    let mut cases = Vec::new();
    for readers in READERS {
        let name = format!("pread + CRC-32, 256 KiB hot, {}", many(readers, "reader"));
        cases.push(Case::baseline(&name, "-", move || raw.read_all(readers)));
        let case = move || filled.get_all(blocks, readers);
        cases.push(Case::new(&format!("Get 256 KiB hot, {}", many(readers, "reader")), "-", case).against(&name));
    }
    cases
}

fn has<'a>(filled: &'a Filled, present: &'a Blocks, absent: &'a Blocks) -> Vec<Case<'a>> {
    let mut cases = Vec::new();
    for readers in READERS {
        let hit = move || filled.has_all(present, true, readers);
        cases.push(Case::new(&format!("Has hit, {}", many(readers, "reader")), "-", hit));
        let miss = move || filled.has_all(absent, false, readers);
        cases.push(Case::new(&format!("Has miss, {}", many(readers, "reader")), "-", miss));
    }
    cases
}

fn many(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
