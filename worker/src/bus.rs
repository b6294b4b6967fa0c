//! What brings assignments and takes what is told: JetStream, or in tests whoever plays it.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

/// The bus can't be used now: what was tried, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusError(pub String);

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BusError {}

/// A message that was delivered. Unless it is confirmed it comes again.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its bytes, as somebody sent them.
    pub payload: Bytes,
    /// How often it was delivered, counting this time.
    pub delivered: u64,
    /// What answers it.
    pub answer: Arc<dyn Answer>,
}

/// Answers to one message.
#[async_trait]
pub trait Answer: Send + Sync + fmt::Debug {
    /// Work goes on: don't deliver it again yet.
    async fn progress(&self) -> Result<(), BusError>;

    /// Deliver it again after a while. (Without a while it would come at once, for ever.)
    async fn postpone(&self, pause: Duration) -> Result<(), BusError>;

    /// It is over. Returns once the bus has said that it knows.
    async fn confirm(&self) -> Result<(), BusError>;
}

/// The bus.
#[async_trait]
pub trait Bus: Send + Sync + fmt::Debug {
    /// The next message for this worker; waits for one.
    async fn next(&self) -> Result<Delivery, BusError>;

    /// Publishes, and returns once it is stored. A second one with the same id is dropped.
    async fn publish(&self, subject: &str, id: &str, payload: Vec<u8>) -> Result<(), BusError>;
}
