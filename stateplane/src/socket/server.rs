//! The agent's side.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use super::wire::{self, Answer, Item, List, Request};
use crate::{
    Change, Claim, Class, Conditional, Cursor, Error, ExpiryShard, Generation, Multihash, Page, PinKey, PinLedger,
    Result, Slot, codec,
};

/// Connections served at a time.
const CONNECTIONS_MAX: usize = 64;
/// A client that takes nothing of its answer for so long is cut off.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// Who serves.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// The ledger.
    fn ledger(&self) -> Arc<dyn PinLedger>;
    /// How it stands, as a JSON object.
    async fn standing(&self) -> String;
    /// Answers a JSON object with one: what other than records is asked of the agent's plane.
    async fn tell(&self, what: &str) -> Result<String>;
}

/// Serves until it is dropped. Who may use the ledger may do with it what they like, so only root and the user of this process are let in.
pub async fn serve(listener: UnixListener, host: Arc<dyn Host>) {
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let ours = std::fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).ok();
    loop {
        // Never closed, so this only waits.
        let turn = Arc::clone(&turns).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(err) => {
                tracing::warn!(%err, "the plane's socket accepts no connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let uid = stream.peer_cred().map(|peer| peer.uid());
        if !uid.as_ref().is_ok_and(|uid| *uid == 0 || Some(*uid) == ours) {
            tracing::warn!(?uid, "refused a connection to the plane's socket");
            continue;
        }
        let host = Arc::clone(&host);
        tokio::spawn(async move {
            if let Err(err) = connection(stream, &*host).await {
                tracing::debug!(%err, "a connection to the plane's socket ended");
            }
            drop(turn);
        });
    }
}

async fn connection(mut stream: UnixStream, host: &dyn Host) -> std::io::Result<()> {
    while let Some(request) = wire::read::<Request>(&mut stream).await? {
        let answer = answer(request, host).await.unwrap_or_else(|err| Answer::failed(&err));
        tokio::time::timeout(WRITE_DEADLINE, wire::write(&mut stream, &answer)).await??;
    }
    Ok(())
}

fn argument(err: impl std::fmt::Display) -> Error {
    Error::new("use the ledger", Class::Argument, err.to_string())
}

fn multihash(bytes: &[u8]) -> Result<Multihash> {
    Multihash::from_bytes(bytes).map_err(argument)
}

fn generation(number: i64) -> Result<Generation> {
    Generation::new(number).ok_or_else(|| argument(format!("{number} is no generation")))
}

fn claimant(bytes: &[u8]) -> Result<u128> {
    bytes.try_into().map(u128::from_be_bytes).map_err(|_| argument("a claimant has 16 bytes"))
}

fn pin_key(bytes: &[u8]) -> Result<PinKey> {
    codec::KeyReader(bytes).pin().map_err(|err| argument(err.0))
}

async fn answer(request: Request, host: &dyn Host) -> Result<Answer> {
    let ledger = host.ledger();
    Ok(match request {
        Request::Standing => Answer::Text(host.standing().await),
        Request::Tell(what) => Answer::Text(host.tell(&what).await?),
        Request::Apply(changes) => {
            let changes: Result<Vec<Change>> = changes.iter().map(|bytes| Change::from_bytes(bytes)).collect();
            ledger.apply(&changes?).await?;
            Answer::Done
        }
        Request::ApplyIf(expected, change) => {
            let expected = expected.map(generation).transpose()?;
            match ledger.apply_if(expected, &Change::from_bytes(&change)?).await? {
                Conditional::Applied => Answer::Applied,
                Conditional::Differs(pin) => Answer::Differs(pin.map(|pin| pin.encode())),
            }
        }
        Request::Pin(key) => Answer::Record(ledger.pin(&pin_key(&key)?).await?.map(|pin| pin.encode())),
        Request::Key => Answer::Record(Some(ledger.key().await?.0.to_vec().into())),
        Request::Placement(mh, peer) => {
            let peer = peer.parse().map_err(argument)?;
            Answer::Record(ledger.placement(&multihash(&mh)?, &peer).await?.map(|known| known.encode()))
        }
        Request::List(of, after, limit) => {
            let after = after.map(wire::cursor);
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            list(&*ledger, of, after.as_ref(), limit).await?
        }
        Request::CloseSlot(slot, shard) => {
            ledger.close_slot(Slot(slot), ExpiryShard(shard)).await?;
            Answer::Done
        }
        Request::ClosedSlot(shard) => Answer::Slot(ledger.closed_slot(ExpiryShard(shard)).await?.map(|slot| slot.0)),
        Request::Register(peer, told) => {
            let peer = peer.parse().map_err(argument)?;
            let stored: codec::StoredRegistration = codec::from_bytes(&told).map_err(|err| argument(err.0))?;
            let told = stored.registration(peer).map_err(|err| argument(err.0))?;
            ledger.register(&told.ok_or_else(|| argument("it tells nothing"))?).await?;
            Answer::Done
        }
        Request::StrikeOff(peer, upto) => {
            ledger.strike_off(&peer.parse().map_err(argument)?, generation(upto)?).await?;
            Answer::Done
        }
        Request::Claim(operation, by) => {
            match ledger.claim(&operation.parse().map_err(argument)?, claimant(&by)?).await? {
                Claim::Ours => Answer::Taken(None),
                Claim::Taken { claimant, outcome } => {
                    Answer::Taken(Some((claimant.to_be_bytes().to_vec().into(), outcome)))
                }
            }
        }
        Request::Finish(operation, by, outcome) => {
            let operation = operation.parse().map_err(argument)?;
            Answer::Noted(ledger.finish(&operation, claimant(&by)?, &outcome).await?)
        }
    })
}

async fn list(ledger: &dyn PinLedger, of: List, after: Option<&Cursor>, limit: usize) -> Result<Answer> {
    fn page<T: Item>(page: Page<T>) -> Answer {
        Answer::Page(page.items.iter().map(Item::encode).collect(), page.next.map(|Cursor(bytes)| bytes.into()))
    }
    Ok(match of {
        List::Pins => page(ledger.pins(after, limit).await?),
        List::PinsOf(mh) => page(ledger.pins_of(&multihash(&mh)?, after, limit).await?),
        List::PinsOfOwner(owner) => page(ledger.pins_of_owner(&owner.parse().map_err(argument)?, after, limit).await?),
        List::PinsWithTag(owner, tag) => {
            let (owner, tag) = (owner.parse().map_err(argument)?, tag.parse().map_err(argument)?);
            page(ledger.pins_with_tag(&owner, &tag, after, limit).await?)
        }
        List::Placements(mh) => page(ledger.placements(&multihash(&mh)?, after, limit).await?),
        List::PlacementsOfPeer(peer, bucket) => {
            let peer = peer.parse().map_err(argument)?;
            page(ledger.placements_of_peer(&peer, bucket.map(crate::Bucket), after, limit).await?)
        }
        List::Expiries(slot, shard) => page(ledger.expiries(Slot(slot), ExpiryShard(shard), after, limit).await?),
        List::Peers => page(ledger.peers(after, limit).await?),
        List::Registrations => page(ledger.registrations(after, limit).await?),
    })
}
