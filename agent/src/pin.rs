//! `basalt pin`: says what a fleet shall hold, and shows what it holds. What is said goes into the ledger first; then NATS carries it to the nodes
//! that it concerns, and where that fails they find it in the ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufRead,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use basalt_kubo::Cid;
use basalt_stateplane::{Clock, Multihash, Owner, PAGE_MAX, Peer, Pin, PinLedger, Placement, Registration};
use basalt_worker::{
    assign::{self, Request},
    is_due,
    message::{Assignment, Priority, assign_subject},
    nats::Publisher,
};
use serde_json::{Value, json};

use crate::{
    cli::{PinAdd, PinCommand, PinPriority, PinRemove, PinWait},
    config::Loaded,
    exit::{Failure, Outcome},
    ledger,
    plane::failure,
    say::{say, tell},
    worker,
};

/// A node that has not told of itself for so long is asked to hold nothing new.
const SEEN_MAX: Duration = Duration::from_secs(300);
/// How long a ledger may take to be opened.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// Time between two looks at what is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// `basalt pin`.
pub async fn pin(node: &Path, command: &PinCommand) -> Outcome {
    let source = match command {
        PinCommand::Add(PinAdd { source, .. }) | PinCommand::Rm(PinRemove { source, .. }) => source,
        PinCommand::Ls { source, .. } | PinCommand::Status { source, .. } => source,
    };
    let config = Loaded::load(node, source)?;
    let ledger = ledger::reach(node, &config).await?;
    until_open(&*ledger).await?;
    match command {
        PinCommand::Add(add) => add_pins(node, &config, &*ledger, add).await,
        PinCommand::Rm(remove) => remove_pins(node, &config, &*ledger, remove).await,
        PinCommand::Ls { owner, tag, json, .. } => list(&*ledger, owner.as_deref(), tag.as_deref(), *json).await,
        PinCommand::Status { cid, json, .. } => status(&*ledger, cid, *json).await,
    }
}

/// An agent that has just started opens its ledger in a moment.
async fn until_open(ledger: &dyn PinLedger) -> Outcome {
    let began = Instant::now();
    loop {
        match ledger.key().await {
            Ok(_) => return Ok(()),
            Err(err) if err.class().passes() && began.elapsed() < OPEN_WAIT => tokio::time::sleep(LOOK_AGAIN).await,
            Err(err) => return Err(failure(err)),
        }
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Outcome<T> {
    text.parse().map_err(|err| Failure::usage(format!("{what} '{}': {err}", text.escape_debug())))
}

/// The CIDs of a command line; `-` stands for lines of the standard input.
fn cids(words: &[String]) -> Outcome<Vec<Cid>> {
    let mut cids = Vec::new();
    for word in words {
        if word != "-" {
            cids.push(parse("the CID", word)?);
            continue;
        }
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|err| Failure::io("read CIDs from the standard input", err))?;
            if let Some(word) = line.split_whitespace().next() {
                cids.push(parse("the CID", word)?);
            }
        }
    }
    Ok(cids)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Nodes that may be asked to hold something: those that are registered and were heard of, else this node's own Kubo.
async fn candidates(config: &Loaded, ledger: &dyn PinLedger) -> Outcome<Vec<Peer>> {
    let (mut peers, mut after) = (Vec::new(), None);
    let heard_ms = now_s().saturating_sub(SEEN_MAX.as_secs()) * 1000;
    loop {
        let page = ledger.registrations(after.as_ref(), PAGE_MAX).await.map_err(failure)?;
        let serves = |node: &Registration| node.shards.is_empty() || node.shards.iter().any(|shard| shard.serving);
        let serving = page.items.into_iter().filter(|node| node.seen_ms >= heard_ms && serves(node));
        peers.extend(serving.map(|node| node.peer));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if peers.is_empty()
        && let Some(kubo) = &config.agent.plane.kubo
    {
        peers.push(worker::peer(&kubo.client()?).await?);
    }
    match peers.is_empty() {
        true => Err(Failure::new(
            "no node is registered in the ledger, and [kubo] api names no Kubo of this one; set it and start the agent, or name peers with --peer",
        )),
        false => Ok(peers),
    }
}

/// Publishes, where there is a NATS. That it fails is told, and no failure: the nodes find it in the ledger.
struct Announcer(Option<Publisher>);

impl Announcer {
    async fn new(config: &Loaded) -> Announcer {
        let Some(options) = &config.agent.worker.nats else { return Announcer(None) };
        match Publisher::connect(options).await {
            Ok(publisher) => Announcer(Some(publisher)),
            Err(err) => {
                tell!("basalt: nothing is announced, the nodes find it in the ledger: {err}");
                Announcer(None)
            }
        }
    }

    async fn announce(&mut self, assignments: &[(Peer, Assignment)]) {
        for (peer, assignment) in assignments {
            let (Some(publisher), Some(subject)) = (&self.0, assign_subject(peer)) else { continue };
            if let Err(err) = publisher.publish(&subject, &assignment.message_id(peer), assignment.to_bytes()).await {
                tell!("basalt: no more is announced, the nodes find it in the ledger: {err}");
                self.0 = None;
            }
        }
    }
}

async fn add_pins(node: &Path, config: &Loaded, ledger: &dyn PinLedger, add: &PinAdd) -> Outcome {
    let cids = cids(&add.cids)?;
    let owner: Owner = parse("the owner", &add.owner)?;
    let name = add.name.as_deref().map(|name| parse("the name", name)).transpose()?;
    let tags = add.tags.iter().map(|tag| parse("the tag", tag)).collect::<Outcome<BTreeSet<_>>>()?;
    let at = add.peers.iter().map(|peer| parse("the peer", peer)).collect::<Outcome<Vec<Peer>>>()?;
    let peers = if at.is_empty() { candidates(config, ledger).await? } else { Vec::new() };
    let mut announcer = Announcer::new(config).await;
    let clock = Clock::new();
    let mut waits = BTreeMap::new();
    for cid in &cids {
        let request = Request {
            cid: *cid,
            owner: owner.clone(),
            name: name.clone(),
            tags: tags.clone(),
            replicas: add.replicas,
            expires: add.expires_in_s.map(|seconds| now_s().saturating_add(seconds)),
            priority: match add.priority {
                PinPriority::Low => Priority::Low,
                PinPriority::Normal => Priority::Normal,
                PinPriority::High => Priority::High,
            },
        };
        let placed = assign::add(ledger, &clock, &request, &at, &peers).await.map_err(failure)?;
        announcer.announce(&placed.assignments).await;
        let multihash = assign::key(cid, &owner).map_err(failure)?.multihash;
        waits.insert(multihash, (*cid, placed.wanted_at.iter().cloned().collect::<BTreeSet<_>>()));
        if !add.wait.wait && !add.wait.json {
            let at: Vec<_> = placed.wanted_at.iter().map(Peer::as_str).collect();
            say!("{cid}  to be held by {}", at.join(" "));
        }
    }
    wait(node, config, ledger, &add.wait, waits).await
}

async fn remove_pins(node: &Path, config: &Loaded, ledger: &dyn PinLedger, remove: &PinRemove) -> Outcome {
    let cids = cids(&remove.cids)?;
    let owner: Owner = parse("the owner", &remove.owner)?;
    let mut announcer = Announcer::new(config).await;
    let clock = Clock::new();
    let mut waits = BTreeMap::new();
    for cid in &cids {
        let multihash = assign::key(cid, &owner).map_err(failure)?.multihash;
        let Some(placed) = assign::remove(ledger, &clock, cid, &owner).await.map_err(failure)? else {
            tell!("{cid}  is no pin of {owner}");
            continue;
        };
        announcer.announce(&placed.assignments).await;
        let at: BTreeSet<_> = placed.assignments.iter().map(|(peer, _)| peer.clone()).collect();
        if !remove.wait.wait && !remove.wait.json {
            match placed.wanted_at.is_empty() {
                true => say!("{cid}  to be held no more, by {} nodes", at.len()),
                false => say!("{cid}  is still another owner's, and stays"),
            }
        }
        waits.insert(multihash, (*cid, at));
    }
    wait(node, config, ledger, &remove.wait, waits).await
}

type Waits = BTreeMap<Multihash, (Cid, BTreeSet<Peer>)>;

/// Waits until all of it is as wanted, or was given up; without --wait it only prints.
async fn wait(node: &Path, config: &Loaded, ledger: &dyn PinLedger, how: &PinWait, mut waits: Waits) -> Outcome {
    let all: usize = waits.values().map(|(_, peers)| peers.len()).sum();
    let cids: Vec<String> = waits.values().map(|(cid, _)| cid.to_string()).collect();
    if !how.wait {
        if how.json {
            say!("{}", json!({ "cids": cids, "placements": all }));
        }
        return Ok(());
    }
    let began = Instant::now();
    let (mut done, mut failed) = (0, Vec::new());
    let mut shown = String::new();
    loop {
        for (multihash, (cid, peers)) in &mut waits {
            if peers.is_empty() {
                continue;
            }
            for placement in assign::placements(ledger, multihash).await.map_err(failure)? {
                if !peers.contains(&placement.peer) {
                    continue;
                }
                match why_failed(&placement) {
                    Some(why) => failed.push(format!("{cid} at {}: {why}", placement.peer)),
                    None if is_due(&placement) => continue,
                    None => done += 1,
                }
                peers.remove(&placement.peer);
            }
        }
        let line = format!(
            "{done} of {all} placements done, {} failed{}",
            failed.len(),
            under_way(node, config, &waits).await
        );
        if line != shown && !how.json {
            tell!("{line}");
            shown = line;
        }
        if done + failed.len() >= all {
            break;
        }
        if began.elapsed() >= Duration::from_secs(how.timeout_s) {
            return Err(Failure::new(format!(
                "{done} of {all} placements are done after {} s; it goes on without this command: `basalt pin status CID` shows it",
                how.timeout_s
            )));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    if how.json {
        say!("{}", json!({ "cids": cids, "placements": all, "done": done, "failed": failed }));
    }
    match failed.first() {
        None => Ok(()),
        Some(first) => {
            Err(Failure::new(format!("{} of {all} placements were given up; the first: {first}", failed.len())))
        }
    }
}

/// How far this node is with the one pin that is waited for.
async fn under_way(node: &Path, config: &Loaded, waits: &Waits) -> String {
    let mut open = waits.iter().filter(|(_, (_, peers))| !peers.is_empty());
    let (Some((multihash, _)), None) = (open.next(), open.next()) else { return String::new() };
    let Ok(Some(agent)) = ledger::agents(node, config).await else { return String::new() };
    let Ok(told) = agent.tell(&format!("worker {multihash}")).await else { return String::new() };
    let told: Value = serde_json::from_str(&told).unwrap_or_default();
    match (told["blocks"].as_u64(), told["bytes"].as_u64()) {
        (Some(blocks), Some(bytes)) if blocks > 0 => {
            format!("; here {blocks} blocks, {}", crate::progress::bytes(bytes))
        }
        _ => String::new(),
    }
}

fn why_failed(placement: &Placement) -> Option<&str> {
    let (want, have) = (placement.want?, placement.have.as_ref()?);
    have.error.as_deref().filter(|_| have.answers == Some(want.generation))
}

fn shown(placement: &Placement) -> &'static str {
    match (placement.want.is_some_and(|want| want.wanted), &placement.have) {
        _ if why_failed(placement).is_some() => "failed",
        (true, Some(have)) if have.held => "pinned",
        (true, _) => "pinning",
        (false, Some(have)) if have.held => "unpinning",
        (false, _) if is_due(placement) => "unpinning",
        (false, _) => "unpinned",
    }
}

fn cid_of(pin: &Pin) -> String {
    let bytes = pin.key.multihash.as_bytes();
    let mut cid = vec![1];
    crate::cid::write_varint(pin.key.codec, &mut cid);
    cid.extend_from_slice(bytes);
    Cid::try_from(cid.as_slice()).map_or_else(|_| pin.key.multihash.to_string(), |cid| cid.to_string())
}

fn pin_object(pin: &Pin) -> Value {
    json!({
        "cid": cid_of(pin),
        "owner": pin.key.owner.as_str(),
        "name": pin.name.as_ref().map(|name| name.as_str()),
        "tags": pin.tags.iter().map(|tag| tag.as_str()).collect::<Vec<_>>(),
        "replicas": pin.replicas,
        "expires_unix_s": pin.expires,
        "created_unix_ms": pin.created_ms,
    })
}

async fn list(ledger: &dyn PinLedger, owner: Option<&str>, tag: Option<&str>, as_json: bool) -> Outcome {
    let owner: Option<Owner> = owner.map(|owner| parse("the owner", owner)).transpose()?;
    let tag = tag.map(|tag| parse("the tag", tag)).transpose()?;
    let mut after = None;
    loop {
        let page = match (&owner, &tag) {
            (Some(owner), Some(tag)) => ledger.pins_with_tag(owner, tag, after.as_ref(), 1000).await,
            (Some(owner), None) => ledger.pins_of_owner(owner, after.as_ref(), 1000).await,
            (None, _) => ledger.pins(after.as_ref(), 1000).await,
        };
        let page = page.map_err(failure)?;
        for pin in &page.items {
            match as_json {
                true => say!("{}", pin_object(pin)),
                false => say!(
                    "{}  {}  replicas {}{}",
                    cid_of(pin),
                    pin.key.owner,
                    pin.replicas,
                    pin.name.as_ref().map(|name| format!("  {name}")).unwrap_or_default()
                ),
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

async fn status(ledger: &dyn PinLedger, cid: &str, as_json: bool) -> Outcome {
    let cid: Cid = parse("the CID", cid)?;
    let multihash = Multihash::from_bytes(&cid.hash().to_bytes())
        .map_err(|err| Failure::usage(format!("the CID '{cid}': {err}")))?;
    let pins = ledger.pins_of(&multihash, None, PAGE_MAX).await.map_err(failure)?.items;
    let placements = assign::placements(ledger, &multihash).await.map_err(failure)?;
    if pins.is_empty() && placements.is_empty() {
        return Err(Failure::absent(format!("{cid} is no pin of this ledger")));
    }
    if as_json {
        let placements: Vec<_> = placements
            .iter()
            .map(|placed| {
                json!({
                    "peer": placed.peer.as_str(),
                    "state": shown(placed),
                    "wanted": placed.want.map(|want| want.wanted),
                    "held": placed.have.as_ref().map(|have| have.held),
                    "size_bytes": placed.have.as_ref().and_then(|have| have.size_bytes),
                    "error": why_failed(placed),
                    "seen_unix_ms": placed.have.as_ref().map(|have| have.seen_ms),
                })
            })
            .collect();
        let pins: Vec<_> = pins.iter().map(pin_object).collect();
        say!("{}", json!({ "cid": cid.to_string(), "pins": pins, "placements": placements }));
        return Ok(());
    }
    for pin in &pins {
        say!("{}  {}  replicas {}", cid_of(pin), pin.key.owner, pin.replicas);
    }
    for placed in &placements {
        let why = why_failed(placed).map(|why| format!(": {why}")).unwrap_or_default();
        say!("  {}  {}{why}", placed.peer, shown(placed));
    }
    Ok(())
}
