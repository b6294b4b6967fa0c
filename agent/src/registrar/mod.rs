//! Registers what this node is and what its Kubo really holds; looks for drift, and has it repaired; removes what has expired.
//!
//! Three ways lead to what is held, each making up for the one before: what the worker did it told itself; [`watch`] sees pins change as Kubo writes them; and Kubo's own
//! list is compared with the ledger, at the start, now and then, and whenever the watch missed something or can't read what it sees. All of it is idempotent and fenced by
//! generation, so none of them needs to know of the others. Nothing here is between Kubo and a block.

pub mod records;
mod watch;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use basalt_datastore::{Datastore, Key, Query};
use basalt_kubo::{Client, PinKind, Step};
use basalt_node::Node;
use basalt_stateplane::{
    Bucket, Change, Class, Error, ExpiryShard, Have, Inventory, Multihash, Peer, PinLedger, RegisteredShard,
    Registration, Result, Settled,
    drift::Seen as Drifted,
    expiry::{Expired, Expirer, shards_of},
    metrics,
};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    drift::{Do, Round},
    ledger::{Hosted, now_ms},
    plane::{KuboConfig, Registering},
};
use watch::PinWatch;

/// Pauses between tries to reach Kubo and the ledger.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Kubo is asked for all pins that often where its pins can't be seen changing.
const FALLBACK: Duration = Duration::from_secs(600);
/// How often the queue of expiry is followed.
const EXPIRE_EVERY: Duration = Duration::from_secs(20);
/// A node that has not told of itself for so many heartbeats leaves its part of the queue to others.
const SILENT_BEATS: u64 = 6;
/// Changes that are told at a time.
const TOLD_AT_A_TIME: usize = 256;
/// Damaged blocks that a look for drift knows of.
pub const QUARANTINED_MAX: usize = 1_000_000;

/// See the module's page.
#[derive(Debug)]
pub struct Registrar {
    node: Arc<Node>,
    hosted: Arc<Hosted>,
    kubo: KuboConfig,
    config: Registering,
    watch: Arc<PinWatch>,
    /// Folder of lists that are under way.
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    peer: Option<Peer>,
    kubo: String,
    why_not: Option<String>,
    told: Option<SystemTime>,
    scanned: Option<(SystemTime, Settled)>,
    looked: Option<(SystemTime, Drifted)>,
    expired: u64,
}

impl Registrar {
    /// A registrar of this node's Kubo. From now on its pins are seen changing where they are in this node.
    pub fn new(node: Arc<Node>, hosted: Arc<Hosted>, kubo: KuboConfig, config: Registering) -> Arc<Registrar> {
        let watch = Arc::new(PinWatch::default());
        match Key::new(records::PINS) {
            Ok(prefix) if node.datastore().observe(&prefix, Arc::clone(&watch) as _) => {}
            _ => tracing::error!("Kubo's pins can't be seen changing: somebody looks on already"),
        }
        let folder = hosted.folder().to_path_buf();
        Arc::new(Registrar { node, hosted, kubo, config, watch, folder, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until it is dropped.
    pub async fn run(self: Arc<Registrar>) {
        let mut pause = AGAIN;
        loop {
            let begun = Instant::now();
            let why = match self.work().await {
                Ok(()) => "Kubo is another one now".to_owned(),
                Err(why) => why,
            };
            if self.state().why_not.as_ref() != Some(&why) {
                tracing::warn!(why, "what Kubo holds is not registered at the moment");
            }
            self.state().why_not = Some(why);
            if begun.elapsed() > AGAIN_MAX {
                pause = AGAIN;
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(AGAIN_MAX);
        }
    }

    /// Works for one Kubo; returns once it is another.
    async fn work(&self) -> Result<(), String> {
        let client = self.kubo.client().map_err(|failure| failure.message)?;
        let peer = self.identify(&client).await?;
        let ledger = self.hosted.ledger();
        tracing::info!(%peer, kubo = %self.kubo.api, "registering what this Kubo holds");
        let repeated = |every: Duration| {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let mut beats = repeated(self.config.heartbeat);
        let mut looks = repeated(self.config.drift_every);
        let mut expiries = repeated(EXPIRE_EVERY);
        let (mut scan, mut scan_again) = (tokio::time::Instant::now(), AGAIN);
        // The first look comes after the first scan.
        looks.reset();
        loop {
            let done = tokio::select! {
                () = self.watch.noticed() => {
                    let seen = self.watch.take();
                    if seen.missed {
                        scan = tokio::time::Instant::now();
                    }
                    self.tell(&*ledger, &peer, seen.touched.into_iter().collect()).await
                }
                _ = beats.tick() => {
                    if self.identify(&client).await? != peer {
                        return Ok(());
                    }
                    self.beat(&*ledger, &peer).await
                }
                () = tokio::time::sleep_until(scan) => {
                    let done = self.scan(&client, &*ledger, &peer).await;
                    let pause = if done.is_ok() { self.scan_every() } else { scan_again };
                    scan_again = if done.is_ok() { AGAIN } else { (2 * scan_again).min(AGAIN_MAX) };
                    scan = tokio::time::Instant::now() + pause;
                    done
                }
                _ = looks.tick() => self.look(&client, &*ledger, &peer).await,
                _ = expiries.tick() => self.expire(&*ledger, &peer).await,
            };
            match done {
                Ok(()) => self.state().why_not = None,
                // The journal takes what is told while the ledger is away; all else is made up for by the next scan.
                Err(err) => {
                    tracing::warn!(%err, "the ledger was not told everything; it will be at the next scan");
                    self.state().why_not = Some(err.to_string());
                    scan = scan.min(tokio::time::Instant::now() + AGAIN_MAX);
                }
            }
        }
    }

    fn scan_every(&self) -> Duration {
        match self.watch.off().is_none() && self.watch.saw() {
            true => self.config.scan_every,
            false => self.config.scan_every.min(FALLBACK),
        }
    }

    async fn identify(&self, client: &Client) -> Result<Peer, String> {
        let identity = client.id().await.map_err(|err| err.to_string())?;
        let peer: Peer = identity.id.parse().map_err(|err| format!("Kubo's peer id: {err}"))?;
        let mut state = self.state();
        state.peer = Some(peer.clone());
        state.kubo = identity.agent_version.chars().filter(|c| !c.is_control()).take(100).collect();
        Ok(peer)
    }

    async fn beat(&self, ledger: &dyn PinLedger, peer: &Peer) -> Result<()> {
        let node = Arc::clone(&self.node);
        let space = tokio::task::spawn_blocking(move || space(&node)).await;
        let (shards, capacity_bytes, free_bytes) =
            space.map_err(|err| Error::new("look at the node's space", Class::Unavailable, err.to_string()))?;
        let kubo = self.state().kubo.clone();
        let told = Registration {
            peer: peer.clone(),
            generation: self.hosted.clock().next(),
            seen_ms: now_ms(),
            node_id: self.node.id().to_string(),
            basalt: env!("CARGO_PKG_VERSION").to_owned(),
            kubo,
            capacity_bytes,
            free_bytes,
            shards,
        };
        ledger.register(&told).await?;
        self.state().told = Some(SystemTime::now());
        Ok(())
    }

    /// Tells whether these DAGs are pinned, by Kubo's own index in this node.
    async fn tell(&self, ledger: &dyn PinLedger, peer: &Peer, touched: Vec<Multihash>) -> Result<()> {
        let mut changes = Vec::new();
        for some in touched.chunks(TOLD_AT_A_TIME) {
            for multihash in some {
                // Before the look: what comes after it has a higher one.
                let generation = self.hosted.clock().next();
                let (node, of) = (Arc::clone(&self.node), multihash.clone());
                let held = tokio::task::spawn_blocking(move || is_pinned(node.datastore(), &of)).await;
                let held =
                    held.map_err(|err| err.to_string()).and_then(|held| held.map_err(|err| err.to_string())).map_err(
                        |why| Error::new(format!("look whether {multihash} is pinned"), Class::Unavailable, why),
                    )?;
                metrics::event(if held { "seen" } else { "gone" });
                // A ledger that is away is told anyway: that is what the journal is for.
                let known = ledger.placement(multihash, peer).await;
                if let Ok(known) = &known {
                    let have = known.as_ref().and_then(|known| known.have.as_ref());
                    if have.is_some_and(|have| have.held) == held {
                        continue;
                    }
                }
                let known = known.unwrap_or_default();
                let answers = known.as_ref().and_then(|known| known.want).filter(|want| want.wanted == held);
                let have = Have {
                    generation,
                    held,
                    answers: answers.map(|want| want.generation),
                    size_bytes: None,
                    error: None,
                    seen_ms: now_ms(),
                };
                changes.push(Change::Have(multihash.clone(), peer.clone(), have));
            }
            if !changes.is_empty() {
                ledger.apply(&std::mem::take(&mut changes)).await?;
            }
        }
        Ok(())
    }

    /// Compares all that Kubo lists with the ledger.
    async fn scan(&self, client: &Client, ledger: &dyn PinLedger, peer: &Peer) -> Result<()> {
        let tried = "list Kubo's pins";
        let of_kubo = |err: basalt_kubo::Error| Error::new(tried, Class::Unavailable, err.to_string());
        let begun = Instant::now();
        let key = ledger.key().await?;
        let mut inventory = Inventory::begin(&self.folder, key, self.hosted.clock().next())?;
        let mut pins = client.pin_ls(PinKind::Recursive, false).await.map_err(of_kubo)?;
        loop {
            match pins.next().await {
                Step::Item(pin) => {
                    let multihash = Multihash::from_bytes(&pin.cid.hash().to_bytes());
                    inventory.holds(&multihash.map_err(|err| Error::new(tried, Class::Corrupt, err.to_string()))?)?;
                }
                Step::End(end) => {
                    // Only a list that is whole tells what is not held.
                    end.complete().map_err(of_kubo)?;
                    break;
                }
            }
        }
        let settled = inventory.settle(ledger, peer).await?;
        tracing::info!(
            held = settled.held,
            appeared = settled.appeared,
            gone = settled.gone,
            scan_ms = begun.elapsed().as_millis() as u64,
            "compared Kubo's pins with the ledger"
        );
        self.state().scanned = Some((SystemTime::now(), settled));
        Ok(())
    }

    /// Looks for drift, and repairs it.
    async fn look(&self, client: &Client, ledger: &dyn PinLedger, peer: &Peer) -> Result<()> {
        let node = Arc::clone(&self.node);
        let quarantined = tokio::task::spawn_blocking(move || quarantined(node.datastore())).await.unwrap_or_default();
        let clock = self.hosted.clock();
        let round = Round { ledger, clock, peer, quarantined: &quarantined, grace: self.config.grace };
        let what = match self.config.repair_per_s {
            0 => Do::Nothing,
            rate => Do::Repair(client, rate as f64),
        };
        let seen = round.run(what, |kind, known, outcome| {
            tracing::info!(kind = kind.name(), multihash = %known.multihash, ?outcome, "drift");
        });
        let seen = seen.await?;
        seen.note();
        self.state().looked = Some((SystemTime::now(), seen));
        Ok(())
    }

    /// Removes what has expired, in this node's part of the queue.
    async fn expire(&self, ledger: &dyn PinLedger, peer: &Peer) -> Result<()> {
        let silent = now_ms().saturating_sub(SILENT_BEATS * self.config.heartbeat.as_millis() as u64);
        let mut nodes = Vec::new();
        let mut after = None;
        loop {
            let page = ledger.registrations(after.as_ref(), 1000).await?;
            nodes
                .extend(page.items.into_iter().filter(|node| node.seen_ms >= silent).map(|node| node.peer.to_string()));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let expirer = Expirer { ledger, clock: self.hosted.clock() };
        let shards: Vec<ExpiryShard> = shards_of(peer.as_str(), &nodes).collect();
        let Expired { removed, .. } = expirer.round(shards.into_iter(), SystemTime::now()).await?;
        if removed > 0 {
            tracing::info!(removed, "removed pins that have expired");
            self.state().expired += removed;
        }
        Ok(())
    }

    /// Why it is not as it should be; `None`: it is.
    pub fn degraded(&self) -> Option<String> {
        let state = self.state();
        let off = self.watch.off().map(|why| format!("Kubo's pins are asked for, not seen: {why}"));
        state.why_not.as_ref().map(|why| format!("what Kubo holds is not registered: {why}")).or(off)
    }

    /// How it is, as JSON.
    pub fn object(&self) -> Value {
        let state = self.state();
        let ago = |at: SystemTime| at.elapsed().unwrap_or_default().as_millis() as u64;
        let watch = match (self.watch.off(), self.watch.saw()) {
            (Some(why), _) => format!("off: {why}"),
            (None, true) => "seeing".to_owned(),
            (None, false) => "nothing seen yet".to_owned(),
        };
        json!({
            "peer": state.peer.as_ref().map(Peer::as_str),
            "kubo": state.kubo,
            "why": state.why_not,
            "watch": watch,
            "told_ago_ms": state.told.map(ago),
            "expired": state.expired,
            "scan": state.scanned.map(|(at, settled)| json!({
                "ago_ms": ago(at), "held": settled.held, "appeared": settled.appeared, "gone": settled.gone,
            })),
            "drift": state.looked.map(|(at, seen)| {
                let mut object = drift_object(&seen);
                object["ago_ms"] = json!(ago(at));
                object
            }),
        })
    }
}

/// What a look for drift saw, as JSON.
pub fn drift_object(seen: &Drifted) -> Value {
    json!({
        "placements": seen.placements,
        "missing": seen.missing,
        "surplus": seen.surplus,
        "quarantined": seen.quarantined,
        "mismatching": seen.mismatching(),
        "pending": seen.pending,
        "foreign": seen.foreign,
        "worst_bucket": seen.worst.map(|(Bucket(bucket), count)| json!({ "bucket": bucket, "mismatching": count })),
    })
}

/// Whether Kubo's index in this node has a recursive pin of this root.
fn is_pinned(datastore: &Datastore, multihash: &Multihash) -> basalt_blockstore::Result<bool> {
    for prefix in records::index_prefixes(multihash) {
        let query = Query { prefix, keys_only: true, limit: 1, ..Query::default() };
        if !datastore.query(query)?.next_page(1, 1 << 10)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Damaged blocks.
fn quarantined(datastore: &Datastore) -> HashSet<Multihash> {
    let mut all = HashSet::new();
    for shard in datastore.shards().iter() {
        match shard.store().quarantined(None, QUARANTINED_MAX - all.len()) {
            Ok(some) => all.extend(some.iter().filter_map(|one| Multihash::from_bytes(&one.key).ok())),
            Err(err) => tracing::warn!(%err, "what is quarantined could not be listed"),
        }
    }
    all
}

/// Shards, bytes of all their file systems, bytes of these that are free. A file system counts once.
fn space(node: &Node) -> (Vec<RegisteredShard>, u64, u64) {
    let status = node.status();
    let (mut seen, mut capacity, mut free) = (HashSet::new(), 0_u64, 0_u64);
    for shard in &status.shards {
        let Ok(stats) = nix::sys::statvfs::statvfs(shard.path.as_str()) else { continue };
        if seen.insert(stats.filesystem_id()) {
            capacity = capacity.saturating_add(stats.blocks().saturating_mul(stats.fragment_size()));
            free = free.saturating_add(stats.blocks_available().saturating_mul(stats.fragment_size()));
        }
    }
    let shard = |shard: &basalt_proto::v1::status_response::Shard| RegisteredShard {
        id: shard.id,
        blocks: shard.blocks,
        bytes: shard.bytes,
        free_bytes: shard.available_bytes,
        serving: shard.state == "serving",
    };
    (status.shards.iter().take(basalt_stateplane::SHARDS_MAX).map(shard).collect(), capacity, free)
}
