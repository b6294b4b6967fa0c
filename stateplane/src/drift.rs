//! Drift: where what a peer holds is not what it should hold. Looking for it only reads the peer's own rows, bucket by bucket, in bounded memory.
//!
//! What nobody ever decided about is no drift: a pin that an operator made by hand is *foreign*, and no repair touches it.

use std::{future::Future, time::Duration};

use crate::{Bucket, Cursor, Generation, Multihash, Peer, PinLedger, Placement, PlaneKey, Result, metrics};

/// How a placement mismatches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Drift {
    /// Wanted and not held.
    Missing,
    /// Held though it was decided that it is not wanted.
    Surplus,
    /// Wanted and held, but its root block is damaged.
    Quarantined,
}

impl Drift {
    /// All of them.
    pub const ALL: [Drift; 3] = [Drift::Missing, Drift::Surplus, Drift::Quarantined];

    /// Its name, in metrics and output.
    pub fn name(self) -> &'static str {
        match self {
            Drift::Missing => "missing",
            Drift::Surplus => "surplus",
            Drift::Quarantined => "quarantined",
        }
    }
}

/// What a look for drift saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Placements of the peer.
    pub placements: u64,
    /// Of these, mismatching by kind.
    pub missing: u64,
    /// See [`Drift::Surplus`].
    pub surplus: u64,
    /// See [`Drift::Quarantined`].
    pub quarantined: u64,
    /// Decided so shortly ago that the peer may be at it: counted as no drift.
    pub pending: u64,
    /// Held though nobody ever decided about it.
    pub foreign: u64,
    /// The bucket with most mismatching placements, and how many.
    pub worst: Option<(Bucket, u64)>,
}

impl Seen {
    /// Mismatching placements.
    pub fn mismatching(&self) -> u64 {
        self.missing + self.surplus + self.quarantined
    }

    /// What `/metrics` shows of it.
    pub fn note(&self) {
        metrics::drift(
            self.placements,
            &[("missing", self.missing), ("surplus", self.surplus), ("quarantined", self.quarantined)],
        );
    }
}

/// What is looked at.
pub struct Look<'a> {
    /// The ledger.
    pub ledger: &'a dyn PinLedger,
    /// Whose placements.
    pub peer: &'a Peer,
    /// What was decided after this is pending.
    pub settled_before: Generation,
    /// Whether the root block of a DAG is damaged at this peer.
    pub is_quarantined: &'a (dyn Fn(&Multihash) -> bool + Sync),
}

/// Placements that are read at a time.
const PAGE: usize = 1000;

/// How a placement mismatches; `None`: it doesn't.
pub fn drift(known: &Placement, is_quarantined: impl FnOnce(&Multihash) -> bool) -> Option<Drift> {
    let held = known.have.as_ref().is_some_and(|have| have.held);
    match known.want.map(|want| want.wanted) {
        Some(true) if !held => Some(Drift::Missing),
        Some(true) if is_quarantined(&known.multihash) => Some(Drift::Quarantined),
        Some(false) if held => Some(Drift::Surplus),
        _ => None,
    }
}

impl Look<'_> {
    /// Looks at every placement, and gives each that mismatches to `found`, which may take its time. Ends with the first error of either.
    pub async fn all<F, Fut>(&self, mut found: F) -> Result<Seen>
    where
        F: FnMut(Drift, Placement) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let key: PlaneKey = self.ledger.key().await?;
        let mut seen = Seen::default();
        let mut bucket = (Bucket(0), 0);
        let mut after: Option<Cursor> = None;
        loop {
            let page = self.ledger.placements_of_peer(self.peer, None, after.as_ref(), PAGE).await?;
            for known in page.items {
                seen.placements += 1;
                let Some(kind) = drift(&known, self.is_quarantined) else {
                    let held = known.have.as_ref().is_some_and(|have| have.held);
                    seen.foreign += u64::from(held && known.want.is_none());
                    continue;
                };
                if known.want.is_some_and(|want| want.generation > self.settled_before) && kind != Drift::Quarantined {
                    seen.pending += 1;
                    continue;
                }
                match kind {
                    Drift::Missing => seen.missing += 1,
                    Drift::Surplus => seen.surplus += 1,
                    Drift::Quarantined => seen.quarantined += 1,
                }
                let at = key.bucket(&known.multihash);
                if bucket.0 != at {
                    bucket = (at, 0);
                }
                bucket.1 += 1;
                if seen.worst.is_none_or(|(_, most)| bucket.1 > most) {
                    seen.worst = Some(bucket);
                }
                found(kind, known).await?;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(seen),
            }
        }
    }
}

/// Lets through so many a second, evenly.
#[derive(Debug)]
pub struct Rate {
    every: Duration,
    next: Option<tokio::time::Instant>,
}

impl Rate {
    /// At most so many a second; 0: as fast as it goes.
    pub fn per_second(rate: f64) -> Rate {
        let every = if rate > 0.0 { Duration::from_secs_f64((1.0 / rate).min(86_400.0)) } else { Duration::ZERO };
        Rate { every, next: None }
    }

    /// Waits for the next turn.
    pub async fn turn(&mut self) {
        let now = tokio::time::Instant::now();
        let at = self.next.map_or(now, |next| next.max(now));
        tokio::time::sleep_until(at).await;
        self.next = Some(at + self.every);
    }
}
