//! A ledger that takes changes even while the real one is away.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use async_trait::async_trait;

use crate::{
    Bucket, Change, Claim, Class, Conditional, Cursor, Error, Expiry, ExpiryShard, Generation, Journal, Multihash,
    Operation, Owner, Page, Peer, Pin, PinKey, PinLedger, Placement, PlaneKey, Registration, Result, Slot, Tag,
    Waiting, generation::micros, journal::too_old,
};

/// A ledger with a [`Journal`] before it. A change returns once the ledger or the journal has it, durably; [`Buffered::deliver`] brings what waits.
///
/// A pin or placement that is read shows what waits for it. Lists show the ledger only. Claims and conditional changes need the ledger itself and
/// fail while it is away.
#[derive(Clone, Debug)]
pub struct Buffered {
    ledger: Arc<dyn PinLedger>,
    journal: Journal,
    /// Unix time in milliseconds since which the ledger is away; 0: it isn't.
    away_since: Arc<AtomicU64>,
    away: Arc<Mutex<Option<Error>>>,
}

/// How it stands with the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Unix time in milliseconds since which the ledger does not answer. What lists show is no younger.
    pub away_since_ms: Option<u64>,
    /// What waits for it.
    pub waiting: Waiting,
}

impl Standing {
    /// Whether everything is where it belongs.
    pub fn is_well(&self) -> bool {
        self.away_since_ms.is_none() && self.waiting.entries == 0
    }
}

/// What a delivery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Entries that the ledger has taken.
    pub delivered: u64,
    /// Entries that it will never take, put aside.
    pub buried: u64,
}

/// Entries that are delivered at a time.
const DELIVERED_AT_A_TIME: usize = 256;

impl Buffered {
    /// A ledger with a journal before it. What the journal has from an earlier life is delivered too.
    pub fn new(ledger: Arc<dyn PinLedger>, journal: Journal) -> Buffered {
        Buffered { ledger, journal, away_since: Arc::default(), away: Arc::default() }
    }

    /// Asks the ledger whether it is there, when nobody else has.
    pub async fn look(&self) {
        if let Err(err) = self.ledger.closed_slot(ExpiryShard(0)).await {
            let _ = self.is_away(err);
        }
    }

    /// Why the ledger is away, by its last word.
    pub fn away(&self) -> Option<Error> {
        let why = self.away.lock().unwrap_or_else(PoisonError::into_inner).clone();
        why.filter(|_| self.away_since.load(Ordering::SeqCst) != 0)
    }

    /// How it stands.
    pub async fn standing(&self) -> Result<Standing> {
        let away = self.away_since.load(Ordering::SeqCst);
        let waiting = self.journaled(Journal::waiting).await?;
        Ok(Standing { away_since_ms: (away != 0).then_some(away), waiting })
    }

    /// Delivers what waits, until nothing does or the ledger is away. To be called now and then, by one task. Killed anywhere, it delivers again
    /// what it may have delivered, and the generation makes that once.
    pub async fn deliver(&self) -> Result<Delivered> {
        let mut done = Delivered::default();
        loop {
            let entries = self.journaled(|journal| journal.oldest(DELIVERED_AT_A_TIME)).await?;
            if entries.is_empty() {
                if self.away_since.load(Ordering::SeqCst) != 0 {
                    // Nothing waits that would show whether it is back, so it is asked.
                    self.ledger.closed_slot(ExpiryShard(0)).await?;
                    self.away_since.store(0, Ordering::SeqCst);
                }
                return Ok(done);
            }
            let now = SystemTime::now();
            let (entries, old): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|(_, change)| too_old(change, now).is_none());
            for entry in old {
                let why = too_old(&entry.1, now).unwrap_or_default();
                self.bury(entry, why, &mut done).await?;
            }
            let changes: Vec<Change> = entries.iter().map(|(_, change)| change.clone()).collect();
            match self.ledger.apply(&changes).await {
                Ok(()) => {
                    done.delivered += entries.len() as u64;
                    self.journaled(move |journal| journal.delivered(&entries)).await?;
                }
                Err(err) if err.class() == Class::Argument => {
                    // One of them is poison; one by one it shows which.
                    for entry in entries {
                        match self.ledger.apply(std::slice::from_ref(&entry.1)).await {
                            Ok(()) => {
                                done.delivered += 1;
                                self.journaled(move |journal| journal.delivered(&[entry])).await?;
                            }
                            Err(err) if err.class() == Class::Argument => {
                                self.bury(entry, err.to_string(), &mut done).await?
                            }
                            Err(err) => return Err(self.is_away(err)),
                        }
                    }
                }
                Err(err) => return Err(self.is_away(err)),
            }
        }
    }

    async fn bury(&self, entry: (u64, Change), why: String, done: &mut Delivered) -> Result<()> {
        tracing::error!(change = entry.1.describe(), why, "a queued change can't be delivered and was put aside");
        done.buried += 1;
        self.journaled(move |journal| journal.bury(&entry, &why)).await
    }

    fn is_away(&self, err: Error) -> Error {
        let now = u64::try_from(micros(SystemTime::now()) / 1000).unwrap_or(1).max(1);
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = Some(err.clone());
        // The first failure counts.
        let _ = self.away_since.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
        err
    }

    async fn journaled<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Journal) -> Result<T> + Send + 'static,
    {
        let journal = self.journal.clone();
        match tokio::task::spawn_blocking(move || work(&journal)).await {
            Ok(done) => done,
            Err(err) => Err(Error::new("use the journal", Class::Unavailable, format!("its task ended: {err}"))),
        }
    }
}

#[async_trait]
impl PinLedger for Buffered {
    async fn apply(&self, changes: &[Change]) -> Result<()> {
        // What no ledger takes must not wait for one.
        changes.iter().try_for_each(Change::check)?;
        // While it is away nobody waits for its timeouts.
        if self.away_since.load(Ordering::SeqCst) == 0 {
            match self.ledger.apply(changes).await {
                Err(err) if err.class() != Class::Argument => {
                    let err = self.is_away(err);
                    tracing::warn!(%err, "the ledger is away; changes wait in the journal");
                }
                done => return done,
            }
        }
        let changes = changes.to_vec();
        self.journaled(move |journal| journal.append(&changes)).await
    }

    async fn apply_if(&self, expected: Option<Generation>, change: &Change) -> Result<Conditional> {
        self.ledger.apply_if(expected, change).await
    }

    async fn pin(&self, key: &PinKey) -> Result<Option<Pin>> {
        let wanted = key.clone();
        let waiting = self.journaled(move |journal| journal.waiting_pin(&wanted)).await?;
        let stored = self.ledger.pin(key).await;
        let newer = |waiting: &Change, stored: &Option<Pin>| {
            stored.as_ref().is_none_or(|pin| waiting.generation() >= pin.generation)
        };
        match (waiting, stored) {
            (None, stored) => stored,
            (Some(waiting), Ok(stored)) if !newer(&waiting, &stored) => Ok(stored),
            // Newer than what is stored, or all that is known.
            (Some(Change::Put(pin)), _) => Ok(Some(pin)),
            (Some(_), _) => Ok(None),
        }
    }

    async fn pins(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.ledger.pins(after, limit).await
    }

    async fn pins_of(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.ledger.pins_of(multihash, after, limit).await
    }

    async fn pins_of_owner(&self, owner: &Owner, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.ledger.pins_of_owner(owner, after, limit).await
    }

    async fn pins_with_tag(&self, owner: &Owner, tag: &Tag, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.ledger.pins_with_tag(owner, tag, after, limit).await
    }

    async fn placement(&self, multihash: &Multihash, peer: &Peer) -> Result<Option<Placement>> {
        let wanted = (multihash.clone(), peer.clone());
        let waiting = self.journaled(move |journal| journal.waiting_placement(&wanted.0, &wanted.1)).await?;
        let stored = match self.ledger.placement(multihash, peer).await {
            Err(err) if waiting.is_empty() => return Err(err),
            Err(_) => None,
            Ok(stored) => stored,
        };
        let mut known =
            stored.unwrap_or(Placement { multihash: multihash.clone(), peer: peer.clone(), want: None, have: None });
        for change in waiting {
            match change {
                Change::Forget(_, _, upto) => {
                    known.want = known.want.filter(|want| want.generation > upto);
                    known.have = known.have.filter(|have| have.generation > upto);
                }
                Change::Want(_, _, want) if known.want.is_none_or(|old| want.generation > old.generation) => {
                    known.want = Some(want);
                }
                Change::Have(_, _, have) if known.have.as_ref().is_none_or(|old| have.generation > old.generation) => {
                    known.have = Some(have);
                }
                _ => {}
            }
        }
        Ok(Some(known).filter(|known| known.want.is_some() || known.have.is_some()))
    }

    async fn placements(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Placement>> {
        self.ledger.placements(multihash, after, limit).await
    }

    async fn placements_of_peer(
        &self,
        peer: &Peer,
        bucket: Option<Bucket>,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Placement>> {
        self.ledger.placements_of_peer(peer, bucket, after, limit).await
    }

    async fn peers(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Peer>> {
        self.ledger.peers(after, limit).await
    }

    async fn key(&self) -> Result<PlaneKey> {
        self.ledger.key().await
    }

    async fn expiries(
        &self,
        slot: Slot,
        shard: ExpiryShard,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Expiry>> {
        self.ledger.expiries(slot, shard, after, limit).await
    }

    async fn close_slot(&self, slot: Slot, shard: ExpiryShard) -> Result<()> {
        self.ledger.close_slot(slot, shard).await
    }

    async fn closed_slot(&self, shard: ExpiryShard) -> Result<Option<Slot>> {
        self.ledger.closed_slot(shard).await
    }

    async fn register(&self, told: &Registration) -> Result<()> {
        self.ledger.register(told).await
    }

    async fn strike_off(&self, peer: &Peer, upto: Generation) -> Result<()> {
        self.ledger.strike_off(peer, upto).await
    }

    async fn registrations(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Registration>> {
        self.ledger.registrations(after, limit).await
    }

    async fn claim(&self, operation: &Operation, claimant: u128) -> Result<Claim> {
        self.ledger.claim(operation, claimant).await
    }

    async fn finish(&self, operation: &Operation, claimant: u128, outcome: &str) -> Result<bool> {
        self.ledger.finish(operation, claimant, outcome).await
    }
}
