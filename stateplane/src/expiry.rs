//! What has expired is removed. The queue says where to look; the pin itself, by its generation, says whether.
//!
//! Any number of nodes may do it at the same time: a pin is removed only if it is still the one that expires, and removing it twice is removing it once. So nothing is
//! claimed, and a node that dies on the way leaves nothing behind.

use std::time::SystemTime;

use crate::{
    Change, Clock, Conditional, EXPIRY_SHARDS, Expiry, ExpiryShard, Multihash, PAGE_MAX, Peer, Pin, PinKey, PinLedger,
    Result, SKEW_MAX, SLOT_SECONDS, Slot, Want, generation::micros, metrics,
};

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Hints that were followed.
    pub followed: u64,
    /// Pins that were removed.
    pub removed: u64,
    /// Slots that are done with.
    pub closed: u64,
}

/// Follows the queue of some shards.
#[derive(Debug)]
pub struct Expirer<'a> {
    /// The ledger.
    pub ledger: &'a dyn PinLedger,
    /// Of this process.
    pub clock: &'a Clock,
}

const PAGE: usize = PAGE_MAX / 10;

impl Expirer<'_> {
    /// Removes what has expired by `now` in these shards, and closes the slots that are long over by this host's clock. Safe to be cut off anywhere.
    pub async fn round(&self, shards: impl Iterator<Item = ExpiryShard>, now: SystemTime) -> Result<Expired> {
        let mut done = Expired::default();
        let seconds = u64::try_from(micros(now) / 1_000_000).unwrap_or(0);
        let current = Slot::of(seconds);
        let real = u64::try_from(micros(SystemTime::now()) / 1_000_000).unwrap_or(0);
        let over = Slot(real.saturating_sub(SKEW_MAX.as_secs()) / SLOT_SECONDS);
        let mut unseen = Vec::new();
        for shard in shards {
            let Some(closed) = self.ledger.closed_slot(shard).await? else {
                unseen.push(shard);
                continue;
            };
            for slot in closed.0.saturating_add(1)..=current.0 {
                self.slot(Slot(slot), shard, seconds, &mut done).await?;
                if slot < over.0 {
                    self.ledger.close_slot(Slot(slot), shard).await?;
                    done.closed += 1;
                }
            }
        }
        if !unseen.is_empty() {
            self.first(&unseen, seconds, &mut done).await?;
            for shard in unseen {
                self.ledger.close_slot(Slot(over.0.saturating_sub(1)), shard).await?;
                done.closed += 1;
            }
        }
        Ok(done)
    }

    /// Nothing was ever closed, so nothing says where the queue begins: all pins are looked at, once in the ledger's life.
    async fn first(&self, shards: &[ExpiryShard], seconds: u64, done: &mut Expired) -> Result<()> {
        let key = self.ledger.key().await?;
        let mut after = None;
        loop {
            let page = self.ledger.pins(after.as_ref(), PAGE).await?;
            for pin in page.items {
                if shards.contains(&key.expiry_shard(&pin.key)) && pin.expires.is_some_and(|at| at <= seconds) {
                    self.remove(&pin, done).await?;
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn slot(&self, slot: Slot, shard: ExpiryShard, seconds: u64, done: &mut Expired) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.ledger.expiries(slot, shard, after.as_ref(), PAGE).await?;
            for hint in page.items.iter().filter(|hint| hint.expires <= seconds) {
                done.followed += 1;
                if let Some(pin) = self.ledger.pin(&hint.key).await?.filter(|pin| decides(pin, hint)) {
                    self.remove(&pin, done).await?;
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn remove(&self, pin: &Pin, done: &mut Expired) -> Result<()> {
        self.clock.saw(pin.generation);
        let removal = Change::Remove(pin.key.clone(), self.clock.next());
        if self.ledger.apply_if(Some(pin.generation), &removal).await? == Conditional::Applied {
            done.removed += 1;
            metrics::event("expired");
        }
        // Also after somebody else's removal, who may have died before this.
        unwant(self.ledger, self.clock, &pin.key).await
    }
}

/// Whether the pin is the one that the hint was made for.
fn decides(pin: &Pin, hint: &Expiry) -> bool {
    pin.generation == hint.generation && pin.expires == Some(hint.expires)
}

/// What no owner pins any more is wanted nowhere. Returns with the wants as the pins say, whatever changes meanwhile.
pub async fn unwant(ledger: &dyn PinLedger, clock: &Clock, key: &PinKey) -> Result<()> {
    let multihash = &key.multihash;
    if is_pinned(ledger, multihash).await? {
        return Ok(());
    }
    let mut after = None;
    let mut unwanted: Vec<Peer> = Vec::new();
    loop {
        let page = ledger.placements(multihash, after.as_ref(), PAGE).await?;
        for known in page.items {
            let Some(want) = known.want.filter(|want| want.wanted) else { continue };
            clock.saw(want.generation);
            let generation = clock.next();
            ledger.want(multihash.clone(), known.peer.clone(), Want { generation, wanted: false }).await?;
            unwanted.push(known.peer);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    // Somebody may have pinned it between the look and the wants, and wanted it at the same peers by lower generations.
    if !unwanted.is_empty() && is_pinned(ledger, multihash).await? {
        for peer in unwanted {
            ledger.want(multihash.clone(), peer, Want { generation: clock.next(), wanted: true }).await?;
        }
    }
    Ok(())
}

async fn is_pinned(ledger: &dyn PinLedger, multihash: &Multihash) -> Result<bool> {
    Ok(!ledger.pins_of(multihash, None, 1).await?.items.is_empty())
}

/// The shards that fall to `ours` of these nodes: each shard to one of them, and few move when a node comes or goes.
pub fn shards_of<'a>(ours: &'a str, nodes: &'a [String]) -> impl Iterator<Item = ExpiryShard> + 'a {
    use std::hash::Hasher;
    let weight = |node: &str, shard: u16| {
        let mut hasher = siphasher::sip::SipHasher24::new();
        hasher.write(node.as_bytes());
        hasher.write_u16(shard);
        hasher.finish()
    };
    (0..EXPIRY_SHARDS)
        .filter(move |shard| {
            let mine = weight(ours, *shard);
            nodes.iter().all(|node| node == ours || weight(node, *shard) <= mine)
        })
        .map(ExpiryShard)
}
