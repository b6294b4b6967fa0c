//! Load: fills a ledger and measures it; `tools/load-plane` runs it on both engines.
//!
//!   load embedded FOLDER PINS        the embedded ledger, in a folder of its own
//!   load cql PINS                    the server that BASALT_TEST_CQL names, in a keyspace `basalt_load` that is made
//!
//! Each pin has an owner (of 100), a tag now and then, and a placement at one of 4 peers: wanted, and held but for one in 200. Every line is a phase: how many, how fast, and the memory of
//! this process at its end and at its highest.

#![allow(clippy::unwrap_used, reason = "a measurement that can't go on ends")]

use std::{
    env,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use basalt_stateplane::{
    Change, Clock, Embedded, EmbeddedOptions, Have, Inventory, Multihash, Owner, Peer, Pin, PinKey, PinLedger, Want,
    cql::{CqlLedger, CqlOptions, migrate},
    drift::Look,
};

const PEERS: u64 = 4;
const OWNERS: u64 = 100;
/// Changes in a call, and calls at a time.
const BATCH: u64 = 250;
const AT_A_TIME: usize = 8;
/// Single calls that are measured, and how many at a time.
const SINGLE: u64 = 20_000;
const SINGLE_AT_A_TIME: usize = 64;

fn multihash(n: u64) -> Multihash {
    // Spread like digests.
    let mut bytes = vec![0x12, 0x20];
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x5851_f42d_4c95_7f2d);
    for _ in 0..4 {
        state = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bytes.extend((state ^ (state >> 32)).to_be_bytes());
    }
    Multihash::from_bytes(&bytes).unwrap()
}

fn owner(n: u64) -> Owner {
    format!("tenant-{:03}", n % OWNERS).parse().unwrap()
}

fn peer(n: u64) -> Peer {
    format!("12D3KooWHYaGxLgJn7R8at7hbKxxwd4qgz9iMjqFFw1eNZf96w{}", n % PEERS).parse().unwrap()
}

fn pin(n: u64, clock: &Clock) -> Pin {
    Pin {
        key: PinKey { multihash: multihash(n), owner: owner(n), codec: 0x70 },
        generation: clock.next(),
        name: Some(format!("backup/2026/11/{n}.tar").parse().unwrap()),
        tags: if n.is_multiple_of(20) { ["archive".parse().unwrap()].into() } else { Default::default() },
        replicas: 2,
        expires: None,
        created_ms: 1_700_000_000_000,
    }
}

/// Memory of this process in MiB: now, and at its highest.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// The highest memory since the last call, by a sampler: the kernel's own mark never falls.
static HIGHEST: AtomicU64 = AtomicU64::new(0);

fn line(engine: &str, phase: &str, count: u64, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    let (now, _) = memory();
    let highest = HIGHEST.swap(now, Ordering::SeqCst).max(now);
    println!(
        "{engine:<9} {phase:<34} {count:>9} in {seconds:>7.1} s  {:>9.0}/s   RSS {now:>4} MiB, at most {highest:>4}",
        count as f64 / seconds
    );
}

/// Runs `work` for 0..count, so many at a time.
async fn each<F, Fut>(count: u64, at_a_time: usize, work: F)
where
    F: Fn(u64) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut running = tokio::task::JoinSet::new();
    for n in 0..count {
        if running.len() >= at_a_time {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(work(n));
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

async fn apply(ledger: &Arc<dyn PinLedger>, pins: u64, change: impl Fn(u64) -> Vec<Change>) {
    each(pins.div_ceil(BATCH), AT_A_TIME, |batch| {
        let changes: Vec<Change> = (batch * BATCH..((batch + 1) * BATCH).min(pins)).flat_map(&change).collect();
        let ledger = Arc::clone(ledger);
        async move { ledger.apply(&changes).await.unwrap() }
    })
    .await;
}

async fn load(engine: &str, ledger: Arc<dyn PinLedger>, pins: u64) {
    let clock = Arc::new(Clock::new());
    let begun = Instant::now();
    apply(&ledger, pins, |n| vec![Change::Put(pin(n, &clock))]).await;
    line(engine, "add pins, 250 a call", pins, begun);

    let begun = Instant::now();
    apply(&ledger, pins, |n| {
        let want = Want { generation: clock.next(), wanted: true };
        let mut changes = vec![Change::Want(multihash(n), peer(n / OWNERS), want)];
        if !n.is_multiple_of(200) {
            let have = Have {
                generation: clock.next(),
                held: true,
                answers: Some(want.generation),
                size_bytes: Some(n),
                error: None,
                seen_ms: 1_700_000_000_000,
            };
            changes.push(Change::Have(multihash(n), peer(n / OWNERS), have));
        }
        changes
    })
    .await;
    line(engine, "want and have, 500 a call", pins, begun);

    let single = SINGLE.min(pins);
    let begun = Instant::now();
    each(single, SINGLE_AT_A_TIME, |n| {
        let (ledger, pin) = (Arc::clone(&ledger), pin(n * (pins / single), &clock));
        async move { ledger.put(pin).await.unwrap() }
    })
    .await;
    line(engine, "put one pin a call, 64 at a time", single, begun);

    let begun = Instant::now();
    each(single * 5, SINGLE_AT_A_TIME, |n| {
        let n = n.wrapping_mul(7919) % pins;
        let ledger = Arc::clone(&ledger);
        async move {
            let key = PinKey { multihash: multihash(n), owner: owner(n), codec: 0x70 };
            assert!(ledger.pin(&key).await.unwrap().is_some(), "pin {n} is lost");
        }
    })
    .await;
    line(engine, "get a pin, 64 at a time", single * 5, begun);

    let begun = Instant::now();
    let (mut listed, mut after) = (0, None);
    loop {
        let page = ledger.pins(after.as_ref(), 1000).await.unwrap();
        listed += page.items.len() as u64;
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(listed, pins, "the list is not whole");
    line(engine, "list all pins, pages of 1000", listed, begun);

    let begun = Instant::now();
    let (mut listed, mut after) = (0, None);
    loop {
        let page = ledger.pins_of_owner(&owner(1), after.as_ref(), 1000).await.unwrap();
        listed += page.items.len() as u64;
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(listed, pins / OWNERS, "the owner's list is not whole");
    line(engine, "list an owner's pins", listed, begun);

    let begun = Instant::now();
    let (mut listed, mut after) = (0, None);
    loop {
        let page = ledger.placements_of_peer(&peer(0), None, after.as_ref(), 1000).await.unwrap();
        listed += page.items.len() as u64;
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    line(engine, "list a peer's placements", listed, begun);

    let begun = Instant::now();
    let (mut seen, mut missing) = (0, 0);
    for n in 0..PEERS {
        let (peer, settled_before) = (peer(n), clock.next());
        let look = Look { ledger: &*ledger, peer: &peer, settled_before, is_quarantined: &|_| false };
        let found = look.all(|_, _| async { Ok(()) }).await.unwrap();
        (seen, missing) = (seen + found.placements, missing + found.missing);
    }
    assert_eq!((seen, missing), (pins, pins.div_ceil(200)), "the look for drift is wrong");
    line(engine, "look for drift, all peers", seen, begun);

    let begun = Instant::now();
    let folder = env::temp_dir();
    let mut inventory = Inventory::begin(&folder, ledger.key().await.unwrap(), clock.next()).unwrap();
    let held = (0..pins).filter(|n| (n / OWNERS).is_multiple_of(PEERS));
    let count = held.inspect(|n| inventory.holds(&multihash(*n)).unwrap()).count() as u64;
    let settled = inventory.settle(&*ledger, &peer(0)).await.unwrap();
    assert_eq!((settled.held, settled.gone), (count, 0));
    line(engine, "compare a Kubo's list of a peer", count, begun);
}

#[tokio::main]
async fn main() {
    std::thread::spawn(|| {
        loop {
            HIGHEST.fetch_max(memory().0, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["embedded", folder, pins] => {
            let ledger = Embedded::open(folder.as_ref(), &EmbeddedOptions::default()).unwrap();
            load("embedded", Arc::new(ledger), pins.parse().unwrap()).await;
        }
        ["cql", pins] => {
            let nodes = env::var("BASALT_TEST_CQL").expect("BASALT_TEST_CQL names no server");
            let contact_points: Vec<String> = nodes.split(',').map(str::to_owned).collect();
            let replicas = contact_points.len().min(3) as u8;
            let options = CqlOptions {
                contact_points,
                keyspace: "basalt_load".to_owned(),
                replication: [("dc1".to_owned(), replicas)].into(),
                // The machine that measures is the server too.
                point_timeout: Duration::from_secs(20),
                connect_timeout: Duration::from_secs(20),
                tries: 10,
                in_flight_max: 256,
                ..CqlOptions::default()
            };
            migrate(&options).await.unwrap();
            load("cql", Arc::new(CqlLedger::open(&options).await.unwrap()), pins.parse().unwrap()).await;
        }
        _ => panic!("load embedded FOLDER PINS | load cql PINS"),
    }
}
