//! What a ledger does.

use std::{fmt, str::FromStr};

use async_trait::async_trait;
use data_encoding::BASE32HEX_NOPAD;

use crate::{
    Bucket, Change, Class, Error, Expiry, ExpiryShard, Generation, Have, Multihash, Operation, Owner, Peer, Pin,
    PinKey, Placement, PlaneKey, Registration, Result, Slot, Tag, Want,
};

/// Most items of a page.
pub const PAGE_MAX: usize = 10_000;

/// Where a list goes on. It outlives the process and the connection; only the list that gave it takes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Cursor(pub(crate) Vec<u8>);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32HEX_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({self})")
    }
}

impl FromStr for Cursor {
    type Err = Error;
    fn from_str(text: &str) -> Result<Cursor> {
        let bytes = BASE32HEX_NOPAD.decode(text.as_bytes());
        bytes.map(Cursor).map_err(|_| Error::new("go on with a list", Class::Argument, "the cursor is not one of ours"))
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// Some items; may be none though more follow.
    pub items: Vec<T>,
    /// Where it goes on; `None`: that was all.
    pub next: Option<Cursor>,
}

/// What became of a conditional change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conditional {
    /// It was made.
    Applied,
    /// The pin is not what was expected, so nothing was changed. This is what it is.
    Differs(Option<Pin>),
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The operation is this claimant's to do, now or since before.
    Ours,
    /// It is another's, or done.
    Taken {
        /// Whose.
        claimant: u128,
        /// What came of it, once that is known.
        outcome: Option<String>,
    },
}

/// A ledger of pins. All operations end within bounded time. What returned `Ok` is durable.
///
/// A list shows every record that is there throughout, once; records that come, change or go meanwhile may show or not. Its order is the engine's.
#[async_trait]
pub trait PinLedger: Send + Sync + fmt::Debug {
    /// Makes changes, each by its generation: it has no effect where the record is newer. They may be seen one by one, in any order. After an
    /// error some may have been made; making all again is safe. Two different changes of one record must not have the same generation.
    async fn apply(&self, changes: &[Change]) -> Result<()>;

    /// Puts or removes a pin only if it is of the expected generation (`None`: only if there is none). Of conditional changes at the same time
    /// one is made; an unconditional change at the same time wins or loses by its generation.
    async fn apply_if(&self, expected: Option<Generation>, change: &Change) -> Result<Conditional>;

    /// The pin, if it is there.
    async fn pin(&self, key: &PinKey) -> Result<Option<Pin>>;

    /// All pins.
    async fn pins(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>>;

    /// All owners' pins of a multihash.
    async fn pins_of(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>>;

    /// An owner's pins.
    async fn pins_of_owner(&self, owner: &Owner, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>>;

    /// An owner's pins that have a tag.
    async fn pins_with_tag(&self, owner: &Owner, tag: &Tag, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>>;

    /// What is known of a multihash at a peer.
    async fn placement(&self, multihash: &Multihash, peer: &Peer) -> Result<Option<Placement>>;

    /// What is known of a multihash at all peers.
    async fn placements(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Placement>>;

    /// What is known of a peer, in the order of buckets; with `bucket`, of that one only.
    async fn placements_of_peer(
        &self,
        peer: &Peer,
        bucket: Option<Bucket>,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Placement>>;

    /// Peers that any placement was ever known of.
    async fn peers(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Peer>>;

    /// The key by which rows spread over buckets. It never changes.
    async fn key(&self) -> Result<PlaneKey>;

    /// Hints of pins that expire in a slot.
    async fn expiries(
        &self,
        slot: Slot,
        shard: ExpiryShard,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Expiry>>;

    /// Drops the hints of a slot, once all of them were followed, and notes that the shard is done up to it.
    async fn close_slot(&self, slot: Slot, shard: ExpiryShard) -> Result<()>;

    /// The last slot that was closed; `None`: none was.
    async fn closed_slot(&self, shard: ExpiryShard) -> Result<Option<Slot>>;

    /// Notes what a node tells of itself, unless something newer is known.
    async fn register(&self, told: &Registration) -> Result<()>;

    /// Strikes a node off. What it told up to this generation stays forgotten.
    async fn strike_off(&self, peer: &Peer, upto: Generation) -> Result<()>;

    /// All nodes that are registered.
    async fn registrations(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Registration>>;

    /// Claims an operation for a claimant (a random number of its own). Of many at the same time one gets it. A claim lasts for seven days.
    async fn claim(&self, operation: &Operation, claimant: u128) -> Result<Claim>;

    /// Notes what came of an operation. `false`: it is not this claimant's, and nothing was noted.
    async fn finish(&self, operation: &Operation, claimant: u128, outcome: &str) -> Result<bool>;

    /// Makes the pin what it says.
    async fn put(&self, pin: Pin) -> Result<()> {
        self.apply(&[Change::Put(pin)]).await
    }

    /// Removes the pin.
    async fn remove(&self, key: PinKey, generation: Generation) -> Result<()> {
        self.apply(&[Change::Remove(key, generation)]).await
    }

    /// Sets what should be at a peer.
    async fn want(&self, multihash: Multihash, peer: Peer, want: Want) -> Result<()> {
        self.apply(&[Change::Want(multihash, peer, want)]).await
    }

    /// Sets what is at a peer.
    async fn have(&self, multihash: Multihash, peer: Peer, have: Have) -> Result<()> {
        self.apply(&[Change::Have(multihash, peer, have)]).await
    }

    /// Whether the pin is there.
    async fn has(&self, key: &PinKey) -> Result<bool> {
        Ok(self.pin(key).await?.is_some())
    }
}

/// The change of [`PinLedger::apply_if`] must be one of a pin.
pub(crate) fn conditional_key(change: &Change) -> Result<&PinKey> {
    match change {
        Change::Put(pin) => Ok(&pin.key),
        Change::Remove(key, _) => Ok(key),
        _ => Err(Error::new(change.describe(), Class::Argument, "only pins are changed conditionally")),
    }
}

/// Longest outcome of an operation that is kept.
pub(crate) const OUTCOME_BYTES_MAX: usize = 4096;

pub(crate) fn check_outcome(operation: &Operation, outcome: &str) -> Result<()> {
    if outcome.len() <= OUTCOME_BYTES_MAX {
        return Ok(());
    }
    let why = format!("the outcome has {} bytes, and may have {OUTCOME_BYTES_MAX}", outcome.len());
    Err(Error::new(crate::record::describe_operation("finish", operation), Class::Argument, why))
}
