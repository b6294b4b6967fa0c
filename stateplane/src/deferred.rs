//! A ledger that is still being opened, and what is counted of one that is.
//!
//! Who starts does not wait for a database: until the ledger is there, all that is asked of it fails as `Unavailable`, with the reason why it is
//! not there yet.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use tokio::sync::OnceCell;

use crate::{
    Bucket, Change, Claim, Class, Conditional, Cursor, Error, Expiry, ExpiryShard, Generation, Multihash, Operation,
    Owner, Page, Peer, Pin, PinKey, PinLedger, Placement, PlaneKey, Registration, Result, Slot, Tag, metrics,
};

/// A ledger that is there once [`Deferred::open`] was called. What is asked of it is counted, by the name of its engine.
pub struct Deferred {
    engine: &'static str,
    ledger: OnceLock<Arc<dyn PinLedger>>,
    why_not: Mutex<Option<Error>>,
    /// Whether changes are counted by their buckets here, and by which key.
    spread: bool,
    key: OnceCell<PlaneKey>,
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred").field("engine", &self.engine).field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

impl Deferred {
    /// None yet.
    pub fn new(engine: &'static str) -> Deferred {
        Deferred { engine, ledger: OnceLock::new(), why_not: Mutex::default(), spread: true, key: OnceCell::new() }
    }

    /// None yet; it will stand behind another that counts what changes already.
    pub fn behind(engine: &'static str) -> Deferred {
        Deferred { spread: false, ..Deferred::new(engine) }
    }

    async fn spread(&self, changes: &[Change]) {
        if !self.spread {
            return;
        }
        let key = self.key.get_or_try_init(|| async { self.ledger()?.key().await }).await;
        if let Ok(key) = key {
            changes.iter().for_each(|change| metrics::changed(key.bucket(change.multihash())));
        }
    }

    /// From now on it is this one. The first one stays.
    pub fn open(&self, ledger: Arc<dyn PinLedger>) {
        let _ = self.ledger.set(ledger);
    }

    /// Why it can't be opened; what is asked says so.
    pub fn refuse(&self, why: Error) {
        *self.why_not.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Whether it is there.
    pub fn is_open(&self) -> bool {
        self.ledger.get().is_some()
    }

    /// Why it is not there, where that is known.
    pub fn refused(&self) -> Option<Error> {
        self.why_not.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|_| !self.is_open())
    }

    fn ledger(&self) -> Result<&dyn PinLedger> {
        match self.ledger.get() {
            Some(ledger) => Ok(ledger.as_ref()),
            None => {
                let why = self.refused().map_or("it is being opened".to_owned(), |err| err.to_string());
                Err(Error::new("use the ledger", Class::Unavailable, why))
            }
        }
    }

    fn note<T>(&self, op: &str, began: Instant, done: &Result<T>) {
        // What makes no sense is no failure of the ledger.
        let failed = done.as_ref().err().map(Error::class).filter(|class| *class != Class::Argument);
        metrics::ledger(self.engine, op, began.elapsed().as_secs_f64(), failed);
    }
}

#[async_trait]
impl PinLedger for Deferred {
    async fn apply(&self, changes: &[Change]) -> Result<()> {
        let began = Instant::now();
        let done = self.ledger()?.apply(changes).await;
        self.note("apply", began, &done);
        if done.is_ok() {
            self.spread(changes).await;
        }
        done
    }

    async fn apply_if(&self, expected: Option<Generation>, change: &Change) -> Result<Conditional> {
        let began = Instant::now();
        let done = self.ledger()?.apply_if(expected, change).await;
        self.note("apply_if", began, &done);
        done
    }

    async fn pin(&self, key: &PinKey) -> Result<Option<Pin>> {
        let began = Instant::now();
        let done = self.ledger()?.pin(key).await;
        self.note("pin", began, &done);
        done
    }

    async fn pins(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let began = Instant::now();
        let done = self.ledger()?.pins(after, limit).await;
        self.note("pins", began, &done);
        done
    }

    async fn pins_of(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let began = Instant::now();
        let done = self.ledger()?.pins_of(multihash, after, limit).await;
        self.note("pins_of", began, &done);
        done
    }

    async fn pins_of_owner(&self, owner: &Owner, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let began = Instant::now();
        let done = self.ledger()?.pins_of_owner(owner, after, limit).await;
        self.note("pins_of_owner", began, &done);
        done
    }

    async fn pins_with_tag(&self, owner: &Owner, tag: &Tag, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let began = Instant::now();
        let done = self.ledger()?.pins_with_tag(owner, tag, after, limit).await;
        self.note("pins_with_tag", began, &done);
        done
    }

    async fn placement(&self, multihash: &Multihash, peer: &Peer) -> Result<Option<Placement>> {
        let began = Instant::now();
        let done = self.ledger()?.placement(multihash, peer).await;
        self.note("placement", began, &done);
        done
    }

    async fn placements(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Placement>> {
        let began = Instant::now();
        let done = self.ledger()?.placements(multihash, after, limit).await;
        self.note("placements", began, &done);
        done
    }

    async fn placements_of_peer(
        &self,
        peer: &Peer,
        bucket: Option<Bucket>,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Placement>> {
        let began = Instant::now();
        let done = self.ledger()?.placements_of_peer(peer, bucket, after, limit).await;
        self.note("placements_of_peer", began, &done);
        done
    }

    async fn peers(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Peer>> {
        let began = Instant::now();
        let done = self.ledger()?.peers(after, limit).await;
        self.note("peers", began, &done);
        done
    }

    async fn key(&self) -> Result<PlaneKey> {
        let began = Instant::now();
        let done = self.ledger()?.key().await;
        self.note("key", began, &done);
        done
    }

    async fn expiries(
        &self,
        slot: Slot,
        shard: ExpiryShard,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Expiry>> {
        let began = Instant::now();
        let done = self.ledger()?.expiries(slot, shard, after, limit).await;
        self.note("expiries", began, &done);
        done
    }

    async fn close_slot(&self, slot: Slot, shard: ExpiryShard) -> Result<()> {
        let began = Instant::now();
        let done = self.ledger()?.close_slot(slot, shard).await;
        self.note("close_slot", began, &done);
        done
    }

    async fn closed_slot(&self, shard: ExpiryShard) -> Result<Option<Slot>> {
        let began = Instant::now();
        let done = self.ledger()?.closed_slot(shard).await;
        self.note("closed_slot", began, &done);
        done
    }

    async fn register(&self, told: &Registration) -> Result<()> {
        let began = Instant::now();
        let done = self.ledger()?.register(told).await;
        self.note("register", began, &done);
        done
    }

    async fn strike_off(&self, peer: &Peer, upto: Generation) -> Result<()> {
        let began = Instant::now();
        let done = self.ledger()?.strike_off(peer, upto).await;
        self.note("strike_off", began, &done);
        done
    }

    async fn registrations(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Registration>> {
        let began = Instant::now();
        let done = self.ledger()?.registrations(after, limit).await;
        self.note("registrations", began, &done);
        done
    }

    async fn claim(&self, operation: &Operation, claimant: u128) -> Result<Claim> {
        let began = Instant::now();
        let done = self.ledger()?.claim(operation, claimant).await;
        self.note("claim", began, &done);
        done
    }

    async fn finish(&self, operation: &Operation, claimant: u128, outcome: &str) -> Result<bool> {
        let began = Instant::now();
        let done = self.ledger()?.finish(operation, claimant, outcome).await;
        self.note("finish", began, &done);
        done
    }
}
