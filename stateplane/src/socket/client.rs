//! The other processes' side.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use tokio::{net::UnixStream, sync::Mutex};

use super::wire::{self, Answer, Item, List, Request, broken};
use crate::{
    Bucket, Change, Claim, Class, Conditional, Cursor, Error, Expiry, ExpiryShard, Generation, Multihash, Operation,
    Owner, Page, Peer, Pin, PinKey, PinLedger, Placement, PlaneKey, Registration, Result, Slot, Tag, codec::Key,
};

/// Connections that are kept for the next request.
const IDLE_MAX: usize = 16;

/// What an agent says of its ledger: a JSON object.
pub type Told = String;

/// A ledger that an agent has open.
pub struct Remote {
    path: PathBuf,
    idle: Mutex<Vec<UnixStream>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Remote {
    /// Connects to an agent's socket.
    pub async fn connect(path: &Path) -> Result<Remote> {
        let remote = Remote { path: path.to_owned(), idle: Mutex::default() };
        let first = remote.stream().await?;
        remote.idle.lock().await.push(first);
        Ok(remote)
    }

    /// How it stands with the ledger.
    pub async fn standing(&self) -> Result<Told> {
        self.text(Request::Standing).await
    }

    /// Asks the agent's plane for something other than records: a JSON object for another.
    pub async fn tell(&self, what: &str) -> Result<Told> {
        self.text(Request::Tell(what.to_owned())).await
    }

    async fn text(&self, request: Request) -> Result<Told> {
        match self.ask(request).await? {
            Answer::Text(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    async fn stream(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.path).await.map_err(|err| {
            let tried = format!("connect to the agent's ledger at {}", self.path.display());
            Error::new(tried, Class::Unavailable, err.to_string())
        })
    }

    async fn ask(&self, request: Request) -> Result<Answer> {
        let idle = self.idle.lock().await.pop();
        let mut stream = match idle {
            Some(stream) => stream,
            None => self.stream().await?,
        };
        let asked = async {
            wire::write(&mut stream, &request).await?;
            wire::read::<Answer>(&mut stream).await
        };
        let lost = |why: String| {
            let tried = format!("use the agent's ledger at {}", self.path.display());
            Err(Error::new(tried, Class::Timeout, why))
        };
        match asked.await {
            Ok(Some(answer)) => {
                let mut idle = self.idle.lock().await;
                if idle.len() < IDLE_MAX {
                    idle.push(stream);
                }
                answer.done()
            }
            Ok(None) => lost("the agent has gone".to_owned()),
            Err(err) => lost(err.to_string()),
        }
    }

    async fn list<T: Item>(&self, of: List, after: Option<&Cursor>, limit: usize) -> Result<Page<T>> {
        let after = after.map(|Cursor(bytes)| bytes.clone().into());
        match self.ask(Request::List(of, after, limit as u64)).await? {
            Answer::Page(items, next) => Ok(Page {
                items: items.iter().map(|bytes| T::decode(bytes)).collect::<Result<_>>()?,
                next: next.map(wire::cursor),
            }),
            other => Err(unexpected(&other)),
        }
    }

    async fn record<T: Item>(&self, request: Request) -> Result<Option<T>> {
        match self.ask(request).await? {
            Answer::Record(bytes) => bytes.map(|bytes| T::decode(&bytes)).transpose(),
            other => Err(unexpected(&other)),
        }
    }

    async fn do_it(&self, request: Request) -> Result<()> {
        match self.ask(request).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(answer: &Answer) -> Error {
    broken(format!("{answer:.60?} is no answer to what was asked"))
}

fn bytes(multihash: &Multihash) -> minicbor::bytes::ByteVec {
    multihash.as_bytes().to_vec().into()
}

#[async_trait]
impl PinLedger for Remote {
    async fn apply(&self, changes: &[Change]) -> Result<()> {
        self.do_it(Request::Apply(changes.iter().map(|change| change.to_bytes().into()).collect())).await
    }

    async fn apply_if(&self, expected: Option<Generation>, change: &Change) -> Result<Conditional> {
        match self.ask(Request::ApplyIf(expected.map(Generation::get), change.to_bytes().into())).await? {
            Answer::Applied => Ok(Conditional::Applied),
            Answer::Differs(pin) => Ok(Conditional::Differs(pin.map(|bytes| Pin::decode(&bytes)).transpose()?)),
            other => Err(unexpected(&other)),
        }
    }

    async fn pin(&self, key: &PinKey) -> Result<Option<Pin>> {
        self.record(Request::Pin(Key(Vec::new()).pin(key).0.into())).await
    }

    async fn pins(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.list(List::Pins, after, limit).await
    }

    async fn pins_of(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.list(List::PinsOf(bytes(multihash)), after, limit).await
    }

    async fn pins_of_owner(&self, owner: &Owner, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.list(List::PinsOfOwner(owner.to_string()), after, limit).await
    }

    async fn pins_with_tag(&self, owner: &Owner, tag: &Tag, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.list(List::PinsWithTag(owner.to_string(), tag.to_string()), after, limit).await
    }

    async fn placement(&self, multihash: &Multihash, peer: &Peer) -> Result<Option<Placement>> {
        self.record(Request::Placement(bytes(multihash), peer.to_string())).await
    }

    async fn placements(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Placement>> {
        self.list(List::Placements(bytes(multihash)), after, limit).await
    }

    async fn placements_of_peer(
        &self,
        peer: &Peer,
        bucket: Option<Bucket>,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Placement>> {
        self.list(List::PlacementsOfPeer(peer.to_string(), bucket.map(|bucket| bucket.0)), after, limit).await
    }

    async fn peers(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Peer>> {
        self.list(List::Peers, after, limit).await
    }

    async fn key(&self) -> Result<PlaneKey> {
        match self.ask(Request::Key).await? {
            Answer::Record(Some(key)) => {
                let key: Vec<u8> = key.into();
                key.try_into().map(PlaneKey).map_err(|_| broken("the hash key has not 16 bytes"))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn expiries(
        &self,
        slot: Slot,
        shard: ExpiryShard,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Expiry>> {
        self.list(List::Expiries(slot.0, shard.0), after, limit).await
    }

    async fn close_slot(&self, slot: Slot, shard: ExpiryShard) -> Result<()> {
        self.do_it(Request::CloseSlot(slot.0, shard.0)).await
    }

    async fn closed_slot(&self, shard: ExpiryShard) -> Result<Option<Slot>> {
        match self.ask(Request::ClosedSlot(shard.0)).await? {
            Answer::Slot(slot) => Ok(slot.map(Slot)),
            other => Err(unexpected(&other)),
        }
    }

    async fn register(&self, told: &Registration) -> Result<()> {
        self.do_it(Request::Register(told.peer.to_string(), told.to_bytes().into())).await
    }

    async fn strike_off(&self, peer: &Peer, upto: Generation) -> Result<()> {
        self.do_it(Request::StrikeOff(peer.to_string(), upto.get())).await
    }

    async fn registrations(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Registration>> {
        self.list(List::Registrations, after, limit).await
    }

    async fn claim(&self, operation: &Operation, claimant: u128) -> Result<Claim> {
        match self.ask(Request::Claim(operation.to_string(), claimant.to_be_bytes().to_vec().into())).await? {
            Answer::Taken(None) => Ok(Claim::Ours),
            Answer::Taken(Some((holder, outcome))) => {
                let holder: Vec<u8> = holder.into();
                let claimant = holder.try_into().map(u128::from_be_bytes);
                Ok(Claim::Taken { claimant: claimant.map_err(|_| broken("a claimant has not 16 bytes"))?, outcome })
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn finish(&self, operation: &Operation, claimant: u128, outcome: &str) -> Result<bool> {
        let claimant = claimant.to_be_bytes().to_vec().into();
        match self.ask(Request::Finish(operation.to_string(), claimant, outcome.to_owned())).await? {
            Answer::Noted(noted) => Ok(noted),
            other => Err(unexpected(&other)),
        }
    }
}
