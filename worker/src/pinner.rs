//! Who pins: Kubo, or in tests whoever plays it.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use basalt_kubo::{Cid, Class, Client, End, Error, PinOptions, PinStep};

use crate::job::Obstacle;

/// How far a pin is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Blocks that are there by now.
    pub blocks: u64,
    /// Their bytes, where known.
    pub bytes: u64,
}

/// Whoever holds pins. Both calls may be made again at any time: pins are a set.
#[async_trait]
pub trait Pinner: Send + Sync + fmt::Debug {
    /// Pins the DAG, and gives its bytes where they are known. Dropped, it is given up.
    async fn pin(
        &self,
        cid: &Cid,
        name: Option<&str>,
        progress: &(dyn Fn(Reached) + Send + Sync),
    ) -> Result<Option<u64>, Obstacle>;

    /// Unpins it. What was not pinned is as asked.
    async fn unpin(&self, cid: &Cid) -> Result<(), Obstacle>;

    /// Whether it can be asked; if not, why.
    async fn ready(&self) -> Result<(), String>;
}

/// A Kubo by its RPC.
#[derive(Clone, Debug)]
pub struct Kubo {
    client: Client,
    stall: Duration,
}

impl Kubo {
    /// One whose pins are given up for this time when no further block came for so long.
    pub fn new(client: Client, stall: Duration) -> Kubo {
        Kubo { client, stall }
    }
}

fn obstacle(err: Error) -> Obstacle {
    let text = err.to_string();
    match err.class() {
        // Denied is as good as away: no other piece of work will fare better.
        Class::Unreachable | Class::Denied => Obstacle::Away(text),
        Class::Argument => Obstacle::Never(text),
        // A DAG that ends Kubo must not do so for ever, so a cut answer counts as a try.
        Class::Failed | Class::Stalled | Class::Truncated | Class::Protocol => Obstacle::Failed(text),
    }
}

#[async_trait]
impl Pinner for Kubo {
    async fn pin(
        &self,
        cid: &Cid,
        name: Option<&str>,
        progress: &(dyn Fn(Reached) + Send + Sync),
    ) -> Result<Option<u64>, Obstacle> {
        let options = PinOptions { recursive: true, name: name.map(str::to_owned), progress_stall: Some(self.stall) };
        let mut pin = self.client.pin_add(cid, &options).await.map_err(obstacle)?;
        let mut furthest = Reached::default();
        loop {
            match pin.next().await {
                PinStep::Progress { blocks, bytes } => {
                    furthest = Reached { blocks, bytes };
                    progress(furthest);
                }
                // The last tick may be before the last block, so its bytes are not the DAG's.
                PinStep::End(End::Complete) => return Ok(None),
                PinStep::End(End::Failed(err) | End::Truncated(err)) => {
                    tracing::debug!(%err, blocks = furthest.blocks, "a pin did not end well");
                    return Err(obstacle(err));
                }
            }
        }
    }

    async fn unpin(&self, cid: &Cid) -> Result<(), Obstacle> {
        self.client.pin_rm(cid, true).await.map(|_| ()).map_err(obstacle)
    }

    async fn ready(&self) -> Result<(), String> {
        self.client.id().await.map(|_| ()).map_err(|err| err.to_string())
    }
}
