//! Who shall hold what: places pins at peers, tells the ledger, and says what is to be announced.
//!
//! The ledger is told first: an assignment that gets lost afterwards is found there.

use std::{collections::BTreeSet, hash::Hasher};

use basalt_kubo::Cid;
use basalt_stateplane::{
    Change, Class, Clock, Cursor, Error, Multihash, Owner, PAGE_MAX, Page, Peer, Pin, PinKey, PinLedger, PinName,
    Placement, Result, Tag, Want,
};

use crate::{
    job::is_due,
    message::{Assignment, Op, Priority},
};

/// A pin that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub cid: Cid,
    /// For whom.
    pub owner: Owner,
    /// What the owner calls it.
    pub name: Option<PinName>,
    /// Words to find it by.
    pub tags: BTreeSet<Tag>,
    /// Peers that shall hold it.
    pub replicas: u16,
    /// Unix time in seconds after which it is wanted no more.
    pub expires: Option<u64>,
    /// How much it hurries.
    pub priority: Priority,
}

/// What was decided about a pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What is to be announced, and to whom.
    pub assignments: Vec<(Peer, Assignment)>,
    /// Peers that shall hold it now.
    pub wanted_at: Vec<Peer>,
}

async fn all<T, F, R>(mut page: F) -> Result<Vec<T>>
where
    F: FnMut(Option<Cursor>) -> R,
    R: Future<Output = Result<Page<T>>>,
{
    let (mut items, mut after) = (Vec::new(), None);
    loop {
        let next = page(after).await?;
        items.extend(next.items);
        after = next.next;
        if after.is_none() {
            return Ok(items);
        }
    }
}

/// All placements of a multihash.
pub async fn placements(ledger: &dyn PinLedger, multihash: &Multihash) -> Result<Vec<Placement>> {
    all(async |after: Option<Cursor>| ledger.placements(multihash, after.as_ref(), PAGE_MAX).await).await
}

async fn pins(ledger: &dyn PinLedger, multihash: &Multihash) -> Result<Vec<Pin>> {
    all(async |after: Option<Cursor>| ledger.pins_of(multihash, after.as_ref(), PAGE_MAX).await).await
}

/// Which of the peers shall hold a multihash: those that shall already, then by rendezvous hashing, so that a fleet that grows moves little.
pub fn choose(multihash: &Multihash, replicas: usize, already: &[Peer], peers: &[Peer]) -> Vec<Peer> {
    let mut chosen: Vec<Peer> = already.iter().take(replicas).cloned().collect();
    let mut rest: Vec<&Peer> = peers.iter().filter(|peer| !chosen.contains(peer)).collect();
    rest.sort_by_cached_key(|peer| std::cmp::Reverse((score(multihash, peer), peer.as_str().to_owned())));
    rest.dedup();
    chosen.extend(rest.into_iter().take(replicas.saturating_sub(chosen.len())).cloned());
    chosen
}

fn score(multihash: &Multihash, peer: &Peer) -> u64 {
    // Which hash doesn't matter as long as all nodes use the same.
    let mut hasher = siphasher::sip::SipHasher24::new();
    hasher.write(multihash.as_bytes());
    hasher.write(peer.as_str().as_bytes());
    hasher.finish()
}

fn argument(cid: &Cid, why: impl Into<String>) -> Error {
    Error::new(format!("pin {cid}"), Class::Argument, why)
}

/// The key of an owner's pin of a CID.
pub fn key(cid: &Cid, owner: &Owner) -> Result<PinKey> {
    let multihash = Multihash::from_bytes(&cid.hash().to_bytes()).map_err(|err| argument(cid, err.to_string()))?;
    Ok(PinKey { multihash, owner: owner.clone(), codec: cid.codec() })
}

/// Puts a pin and decides where. `at` names the peers; empty, they are chosen from `peers`.
pub async fn add(
    ledger: &dyn PinLedger,
    clock: &Clock,
    request: &Request,
    at: &[Peer],
    peers: &[Peer],
) -> Result<Placed> {
    let key = key(&request.cid, &request.owner)?;
    let multihash = key.multihash.clone();
    let known = placements(ledger, &multihash).await?;
    let others = pins(ledger, &multihash).await?;
    see(clock, &known, &others);
    let mine = others.iter().find(|pin| pin.key == key);
    let wanted: Vec<Peer> = known
        .iter()
        .filter(|placed| placed.want.is_some_and(|want| want.wanted))
        .map(|placed| placed.peer.clone())
        .collect();
    let chosen = match at {
        [] => choose(&multihash, usize::from(request.replicas), &wanted, peers),
        at => at.to_vec(),
    };
    let replicas = if at.is_empty() { usize::from(request.replicas) } else { at.len() };
    if chosen.len() < replicas {
        let why = format!(
            "{replicas} peers shall hold it, and {} are registered; register more nodes, ask for fewer replicas, or name peers",
            chosen.len()
        );
        return Err(argument(&request.cid, why));
    }
    let generation = clock.next();
    let pin = Pin {
        key,
        generation,
        name: request.name.clone(),
        tags: request.tags.clone(),
        replicas: u16::try_from(replicas).unwrap_or(u16::MAX),
        expires: request.expires,
        created_ms: mine.map_or(u64::try_from(generation.get() / 1000).unwrap_or(0), |pin| pin.created_ms),
    };
    let mut changes = vec![Change::Put(pin)];
    let mut assignments = Vec::new();
    for peer in &chosen {
        // What is wanted there already keeps its generation: nothing new is to be done.
        let held = known.iter().find(|placed| placed.peer == *peer);
        let want = match held.and_then(|placed| placed.want).filter(|want| want.wanted) {
            Some(want) => want,
            None => {
                let want = Want { generation, wanted: true };
                changes.push(Change::Want(multihash.clone(), peer.clone(), want));
                want
            }
        };
        if held.is_none_or(|placed| placed.want.is_none_or(|want| !want.wanted) || is_due(placed)) {
            let mut assignment = Assignment::new(Op::Pin, request.cid, want.generation, request.owner.clone())
                .map_err(|err| argument(&request.cid, err.why))?;
            assignment.name = request.name.clone();
            assignment.priority = request.priority;
            assignments.push((peer.clone(), assignment));
        }
    }
    ledger.apply(&changes).await?;
    let wanted_at = wanted.into_iter().chain(chosen).collect::<BTreeSet<_>>().into_iter().collect();
    Ok(Placed { assignments, wanted_at })
}

/// Removes an owner's pin. What no other owner wants is wanted nowhere any more.
pub async fn remove(ledger: &dyn PinLedger, clock: &Clock, cid: &Cid, owner: &Owner) -> Result<Option<Placed>> {
    let key = key(cid, owner)?;
    let multihash = key.multihash.clone();
    let known = placements(ledger, &multihash).await?;
    let all = pins(ledger, &multihash).await?;
    see(clock, &known, &all);
    let generation = clock.next();
    let mut changes = Vec::new();
    let mut placed = Placed { assignments: Vec::new(), wanted_at: Vec::new() };
    let wanted = known.iter().filter(|placed| placed.want.is_some_and(|want| want.wanted));
    let others = all.iter().any(|pin| pin.key != key);
    let found = all.iter().any(|pin| pin.key == key);
    if found {
        changes.push(Change::Remove(key, generation));
    }
    for at in wanted {
        if others {
            placed.wanted_at.push(at.peer.clone());
            continue;
        }
        changes.push(Change::Want(multihash.clone(), at.peer.clone(), Want { generation, wanted: false }));
        let assignment =
            Assignment::new(Op::Unpin, *cid, generation, owner.clone()).map_err(|err| argument(cid, err.why))?;
        placed.assignments.push((at.peer.clone(), assignment));
    }
    if changes.is_empty() {
        return Ok(None);
    }
    ledger.apply(&changes).await?;
    Ok(Some(placed))
}

fn see(clock: &Clock, placements: &[Placement], pins: &[Pin]) {
    placements.iter().filter_map(|placed| placed.want).for_each(|want| clock.saw(want.generation));
    pins.iter().for_each(|pin| clock.saw(pin.generation));
}
