//! The inner pieces alone, so that a regression is seen where it happens: record, checksum, index, ring, group commit.
//!
//! `cargo bench -p basalt-bench` runs them; `cargo bench -p basalt-bench -- record` some of them. Group commit writes to the disk of the target folder.

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use basalt_blockstore::{
    Durability, Multihash, Options, Shard,
    index::{Change, IndexEngine, RocksEngine},
    store::{
        Env,
        format::{Kind, RecordHeader, SummaryBuilder, crc32},
    },
};
use basalt_sharding::Ring;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sha2::{Digest, Sha256};

const BLOCK_BYTES: usize = 256 << 10;
/// Keys of the index: enough for several levels, few enough to be made in seconds.
const INDEX_KEYS: u64 = 500_000;

/// The multihash of a number; other numbers are absent.
fn multihash(number: u64) -> [u8; 34] {
    let mut key = [0x12; 34];
    key[1] = 32;
    key[2..].copy_from_slice(&Sha256::digest(number.to_le_bytes()));
    key
}

/// Numbers that jump about, each below `count`.
fn jumps(count: u64) -> impl FnMut() -> u64 {
    let mut at = 0_u64;
    move || {
        at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
        at % count
    }
}

fn record(c: &mut Criterion) {
    let (nonce, key) = ([7; 16], multihash(1));
    let header = RecordHeader {
        kind: Kind::Put,
        flags: 0,
        key_len: key.len() as u16,
        payload_len: BLOCK_BYTES as u32,
        payload_crc: 0x1234_5678,
        sequence: 9,
        mark: 4096,
        victim: 0,
        expires_unix_ms: 0,
    };
    let mut encoded = Vec::new();
    header.encode(&nonce, 8192, &key, &mut encoded);
    let mut group = c.benchmark_group("record");
    group.bench_function("encode header", |b| {
        let mut out = Vec::with_capacity(128);
        b.iter(|| {
            out.clear();
            header.encode(black_box(&nonce), 8192, &key, &mut out);
        });
    });
    group.bench_function("decode header", |b| b.iter(|| RecordHeader::decode(black_box(&nonce), 8192, &encoded)));
    group.bench_function("summary of 1000", |b| {
        b.iter(|| {
            let mut summary = SummaryBuilder::new(0, 8192);
            for _ in 0..1000 {
                summary.add(&header, black_box(&key));
            }
            summary.payload()
        });
    });
    group.finish();
}

fn checksum(c: &mut Criterion) {
    let block: Vec<u8> = (0..BLOCK_BYTES).map(|i| (i * 31) as u8).collect();
    let mut group = c.benchmark_group("crc");
    for bytes in [1 << 10, 32 << 10, BLOCK_BYTES] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::from_parameter(bytes), &block[..bytes], |b, part| {
            b.iter(|| crc32(black_box(part)));
        });
    }
    group.finish();
}

fn index(c: &mut Criterion) {
    let folder = folder();
    let index = or_end(RocksEngine::new(256 << 20).open(&folder.path().join("index"), false));
    let value = vec![7_u8; 16];
    let change = |number| -> Change { (multihash(number).to_vec(), Some(value.clone())) };
    let numbers: Vec<u64> = (0..INDEX_KEYS).collect();
    for part in numbers.chunks(1000) {
        or_end(index.write(&part.iter().map(|number| change(*number)).collect::<Vec<_>>()));
    }
    or_end(index.flush());

    let mut group = c.benchmark_group("index");
    let (mut hit, mut miss) = (jumps(INDEX_KEYS), jumps(INDEX_KEYS));
    group.bench_function("get, hit", |b| {
        b.iter_batched(
            || multihash(hit()),
            |key| {
                let found = or_end(index.get(&key));
                assert!(found.is_some());
                found
            },
            criterion::BatchSize::SmallInput,
        );
    });
    group.bench_function("get, miss", |b| {
        b.iter_batched(
            || multihash(INDEX_KEYS + miss()),
            |key| assert!(or_end(index.get(&key)).is_none()),
            criterion::BatchSize::SmallInput,
        );
    });
    group.throughput(Throughput::Elements(INDEX_KEYS));
    group.sample_size(10);
    group.bench_function("scan all", |b| {
        b.iter(|| {
            let mut count = 0;
            or_end(index.scan(b"", &mut |_, _| {
                count += 1;
                true
            }));
            assert_eq!(count, INDEX_KEYS);
        });
    });
    let mut next = 2 * INDEX_KEYS;
    group.throughput(Throughput::Elements(128));
    group.bench_function("write 128", |b| {
        b.iter_batched(
            || {
                next += 128;
                (next - 128..next).map(change).collect::<Vec<_>>()
            },
            |changes| or_end(index.write(&changes)),
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn ring(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    for shards in [1_u16, 4, 16, 128] {
        let members: Vec<_> = (0..shards).map(|id| (id, 1)).collect();
        let ring = or_end(Ring::new([9; 16], &members));
        let mut number = jumps(1 << 40);
        group.bench_function(BenchmarkId::new("place", shards), |b| {
            b.iter_batched(
                || multihash(number()),
                |key| ring.place(black_box(&key[2..])),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Durable Puts by so many writers, who share flushes.
fn group_commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("group commit");
    group.sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    for (bytes, writers) in [(1 << 10, 1), (1 << 10, 16), (1 << 10, 128), (BLOCK_BYTES, 1), (BLOCK_BYTES, 16)] {
        group.throughput(Throughput::Bytes((bytes * writers) as u64));
        group.bench_function(format!("put {bytes} B, {writers} writers, strict"), |b| {
            let folder = folder();
            let options = Options { durability: Durability::Strict, ..Options::default() };
            let shard = or_end(Shard::open(&folder.path().join("shard"), &Env::real(), options));
            let mut first = 0_u64;
            // An iteration is one Put of each writer.
            b.iter_custom(|iterations| {
                let from = first;
                first += iterations * writers as u64;
                puts(&shard, from, iterations, writers, bytes)
            });
            or_end(shard.close());
        });
    }
    group.finish();
}

fn puts(shard: &Shard, from: u64, iterations: u64, writers: usize, bytes: usize) -> Duration {
    // The key needs not be the hash of the value here: nobody reads.
    let value = vec![0x5a; bytes];
    let began = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..writers as u64 {
            let value = &value;
            scope.spawn(move || {
                for i in 0..iterations {
                    let key = or_end(Multihash::parse(&multihash(from + writer * iterations + i)));
                    or_end(shard.put(&key, value));
                }
            });
        }
    });
    began.elapsed()
}

/// A folder on the disk of the build.
fn folder() -> tempfile::TempDir {
    or_end(tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))))
}

fn or_end<T, E: std::fmt::Display>(outcome: Result<T, E>) -> T {
    outcome.unwrap_or_else(|err| panic!("{err}"))
}

criterion_group!(inner, record, checksum, index, ring, group_commit);
criterion_main!(inner);
