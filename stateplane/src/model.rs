//! The reference: a ledger in memory, as plain as can be. What the engines do is held against it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;

use crate::{
    Bucket, Change, Claim, Class, Conditional, Cursor, Error, Expiry, ExpiryShard, Generation, Have, Multihash,
    Operation, Owner, PAGE_MAX, Page, Peer, Pin, PinKey, PinLedger, Placement, PlaneKey, Registration, Result, Slot,
    Tag, Want,
    ledger::{check_outcome, conditional_key},
};

/// A ledger in memory. Nothing of it is durable.
#[derive(Debug)]
pub struct Model {
    key: PlaneKey,
    state: Mutex<State>,
    fault: Mutex<Fault>,
}

/// What a model does instead of answering.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// It answers.
    #[default]
    None,
    /// Changes, claims and reads of one record fail as `Unavailable`, and do nothing.
    Away,
    /// Changes and reads of one record are done and fail as `Timeout`: their answer is lost.
    AnswersLost,
}

#[derive(Debug, Default)]
struct State {
    pins: BTreeMap<PinKey, (Generation, Option<Pin>)>,
    /// Where each pin's hint of expiry is.
    hints: BTreeMap<PinKey, Slot>,
    placements: BTreeMap<(Multihash, Peer), Known>,
    closed: BTreeMap<ExpiryShard, Slot>,
    nodes: BTreeMap<Peer, (Generation, Option<Registration>)>,
    claims: BTreeMap<Operation, (u128, Option<String>)>,
}

#[derive(Debug, Default)]
struct Known {
    forgotten: Option<Generation>,
    want: Option<Want>,
    have: Option<Have>,
}

impl Default for Model {
    fn default() -> Model {
        Model { key: PlaneKey([7; 16]), state: Mutex::default(), fault: Mutex::default() }
    }
}

impl Model {
    /// An empty ledger.
    pub fn new() -> Model {
        Model::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it fails like this.
    pub fn fail(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    fn before(&self) -> Result<()> {
        match *self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Fault::Away => Err(Error::new("use the model", Class::Unavailable, "it was told to be away")),
            _ => Ok(()),
        }
    }

    fn after<T>(&self, done: T) -> Result<T> {
        match *self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Fault::AnswersLost => Err(Error::new("use the model", Class::Timeout, "it was told to lose its answers")),
            _ => Ok(done),
        }
    }
}

impl State {
    fn apply(&mut self, change: &Change) {
        let generation = change.generation();
        match change {
            Change::Put(_) | Change::Remove(..) => {
                let (key, pin) = match change {
                    Change::Put(pin) => (&pin.key, Some(pin.clone())),
                    Change::Remove(key, _) => (key, None),
                    _ => return,
                };
                let newer =
                    self.pins.get(key).is_none_or(|(at, _)| generation > *at || (generation == *at && pin.is_none()));
                if newer {
                    self.hints.remove(key);
                    if let Some(expires) = pin.as_ref().and_then(|pin| pin.expires) {
                        self.hints.insert(key.clone(), Slot::of_hint(expires, SystemTime::now()));
                    }
                    self.pins.insert(key.clone(), (generation, pin));
                }
            }
            Change::Want(multihash, peer, want) => {
                let known = self.placements.entry((multihash.clone(), peer.clone())).or_default();
                if known.forgotten < Some(generation) && known.want.is_none_or(|old| generation > old.generation) {
                    known.want = Some(*want);
                }
            }
            Change::Have(multihash, peer, have) => {
                let known = self.placements.entry((multihash.clone(), peer.clone())).or_default();
                let newer = known.have.as_ref().is_none_or(|old| generation > old.generation);
                if known.forgotten < Some(generation) && newer {
                    known.have = Some(have.clone());
                }
            }
            Change::Forget(multihash, peer, upto) => {
                let known = self.placements.entry((multihash.clone(), peer.clone())).or_default();
                known.forgotten = known.forgotten.max(Some(*upto));
                known.want = known.want.filter(|want| want.generation > *upto);
                known.have = known.have.take().filter(|have| have.generation > *upto);
            }
        }
    }

    fn placements(&self) -> impl Iterator<Item = Placement> + '_ {
        self.placements.iter().filter(|(_, known)| known.want.is_some() || known.have.is_some()).map(
            |((multihash, peer), known)| Placement {
                multihash: multihash.clone(),
                peer: peer.clone(),
                want: known.want,
                have: known.have.clone(),
            },
        )
    }

    fn pins(&self) -> impl Iterator<Item = &Pin> + '_ {
        self.pins.values().filter_map(|(_, pin)| pin.as_ref())
    }
}

/// A page of a list; its cursor is how many items came before, and which list it is.
fn page<T>(list: &str, items: impl Iterator<Item = T>, after: Option<&Cursor>, limit: usize) -> Result<Page<T>> {
    let tried = format!("list {list}");
    if limit == 0 {
        return Err(Error::new(tried, Class::Argument, "a page of no items was asked for"));
    }
    let skip = match after {
        None => 0,
        Some(Cursor(bytes)) => match bytes.split_first_chunk::<8>() {
            Some((count, of)) if of == list.as_bytes() => {
                usize::try_from(u64::from_be_bytes(*count)).unwrap_or(usize::MAX)
            }
            _ => return Err(Error::new(tried, Class::Argument, "the cursor is of another list")),
        },
    };
    let mut items = items.skip(skip);
    let taken: Vec<T> = items.by_ref().take(limit.min(PAGE_MAX)).collect();
    let reached = ((skip + taken.len()) as u64).to_be_bytes();
    let next = items.next().map(|_| Cursor([&reached, list.as_bytes()].concat()));
    Ok(Page { items: taken, next })
}

#[async_trait]
impl PinLedger for Model {
    async fn apply(&self, changes: &[Change]) -> Result<()> {
        changes.iter().try_for_each(Change::check)?;
        self.before()?;
        let mut state = self.state();
        changes.iter().for_each(|change| state.apply(change));
        self.after(())
    }

    async fn apply_if(&self, expected: Option<Generation>, change: &Change) -> Result<Conditional> {
        let key = conditional_key(change)?;
        change.check()?;
        self.before()?;
        let mut state = self.state();
        let current = state.pins.get(key).and_then(|(_, pin)| pin.clone());
        let fenced = state.pins.get(key).is_some_and(|(at, _)| change.generation() <= *at);
        if current.as_ref().map(|pin| pin.generation) != expected || fenced {
            return Ok(Conditional::Differs(current));
        }
        state.apply(change);
        self.after(Conditional::Applied)
    }

    async fn pin(&self, key: &PinKey) -> Result<Option<Pin>> {
        self.before()?;
        self.after(self.state().pins.get(key).and_then(|(_, pin)| pin.clone()))
    }

    async fn pins(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        page("pins", self.state().pins().cloned(), after, limit)
    }

    async fn pins_of(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        page(
            &format!("pins of {multihash}"),
            self.state().pins().filter(|pin| pin.key.multihash == *multihash).cloned(),
            after,
            limit,
        )
    }

    async fn pins_of_owner(&self, owner: &Owner, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        page(
            &format!("pins of {owner}"),
            self.state().pins().filter(|pin| pin.key.owner == *owner).cloned(),
            after,
            limit,
        )
    }

    async fn pins_with_tag(&self, owner: &Owner, tag: &Tag, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let tagged = |pin: &&Pin| pin.key.owner == *owner && pin.tags.contains(tag);
        page(&format!("pins of {owner} with tag {tag}"), self.state().pins().filter(tagged).cloned(), after, limit)
    }

    async fn placement(&self, multihash: &Multihash, peer: &Peer) -> Result<Option<Placement>> {
        self.before()?;
        self.after(self.state().placements().find(|at| at.multihash == *multihash && at.peer == *peer))
    }

    async fn placements(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Placement>> {
        page(
            &format!("placements of {multihash}"),
            self.state().placements().filter(|at| at.multihash == *multihash),
            after,
            limit,
        )
    }

    async fn placements_of_peer(
        &self,
        peer: &Peer,
        bucket: Option<Bucket>,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Placement>> {
        let in_bucket = |at: &Placement| bucket.is_none_or(|bucket| bucket == self.key.bucket(&at.multihash));
        let mut here: Vec<_> = self.state().placements().filter(|at| at.peer == *peer && in_bucket(at)).collect();
        here.sort_by_key(|at| self.key.bucket(&at.multihash));
        page(&format!("placements at {peer} in {bucket:?}"), here.into_iter(), after, limit)
    }

    async fn peers(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Peer>> {
        let peers: std::collections::BTreeSet<Peer> = self.state().placements().map(|at| at.peer).collect();
        page("peers", peers.into_iter(), after, limit)
    }

    async fn key(&self) -> Result<PlaneKey> {
        Ok(self.key.clone())
    }

    async fn expiries(
        &self,
        slot: Slot,
        shard: ExpiryShard,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Expiry>> {
        let state = self.state();
        let hints = state.pins().filter_map(|pin| {
            let expires = pin.expires?;
            let here = state.hints.get(&pin.key) == Some(&slot) && self.key.expiry_shard(&pin.key) == shard;
            here.then(|| Expiry { expires, key: pin.key.clone(), generation: pin.generation })
        });
        page(&format!("expiries of {slot:?} and {shard:?}"), hints, after, limit)
    }

    async fn close_slot(&self, slot: Slot, shard: ExpiryShard) -> Result<()> {
        slot.check_over(shard, SystemTime::now())?;
        let mut state = self.state();
        state.hints.retain(|key, at| *at != slot || self.key.expiry_shard(key) != shard);
        let closed = state.closed.entry(shard).or_insert(slot);
        *closed = slot.max(*closed);
        Ok(())
    }

    async fn closed_slot(&self, shard: ExpiryShard) -> Result<Option<Slot>> {
        self.before()?;
        self.after(self.state().closed.get(&shard).copied())
    }

    async fn register(&self, told: &Registration) -> Result<()> {
        told.check()?;
        self.before()?;
        let mut state = self.state();
        if state.nodes.get(&told.peer).is_none_or(|(at, _)| told.generation > *at) {
            state.nodes.insert(told.peer.clone(), (told.generation, Some(told.clone())));
        }
        self.after(())
    }

    async fn strike_off(&self, peer: &Peer, upto: Generation) -> Result<()> {
        self.before()?;
        let mut state = self.state();
        if state.nodes.get(peer).is_some_and(|(at, _)| upto >= *at) {
            state.nodes.insert(peer.clone(), (upto, None));
        }
        self.after(())
    }

    async fn registrations(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Registration>> {
        page("nodes", self.state().nodes.values().filter_map(|(_, told)| told.clone()), after, limit)
    }

    async fn claim(&self, operation: &Operation, claimant: u128) -> Result<Claim> {
        self.before()?;
        let mut state = self.state();
        let (holder, outcome) = state.claims.entry(operation.clone()).or_insert((claimant, None));
        Ok(if *holder == claimant && outcome.is_none() {
            Claim::Ours
        } else {
            Claim::Taken { claimant: *holder, outcome: outcome.clone() }
        })
    }

    async fn finish(&self, operation: &Operation, claimant: u128, outcome: &str) -> Result<bool> {
        check_outcome(operation, outcome)?;
        match self.state().claims.get_mut(operation) {
            Some((holder, noted)) if *holder == claimant => {
                *noted = Some(outcome.to_owned());
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
