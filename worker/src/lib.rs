//! The worker of a node: pins and unpins in its Kubo what the state plane wants there.
//!
//! Work comes as `pin.assign.<peer>` from NATS JetStream, or from the ledger itself (what is wanted and not so). Each piece goes through the same
//! steps: change Kubo, journal (flushed), tell the ledger, report `pin.status.<peer>`, confirm. Each step may be made again, and the newest want
//! that is known decides, so that a worker killed anywhere, a message delivered twice, late or out of order ends in the same state.
//!
//! - [`Job`]: the steps as a pure state machine; [`Queue`]: whose turn it is; [`Journal`]: what was done. Tests run them against a model with a
//!   crash after every step.
//! - [`Worker`]: drives jobs with the real parts: a [`PinLedger`](basalt_stateplane::PinLedger), a [`Pinner`] (Kubo), a [`Bus`] (NATS).
//! - [`assign`]: decides which peers shall hold a pin, and tells them.
//!
//! docs/worker.md has the formats. A worker is never between Kubo and a block.

pub mod assign;
mod bus;
pub mod failpoint;
mod job;
mod journal;
pub mod message;
pub mod nats;
mod pinner;
mod queue;
mod worker;

pub use bus::{Answer, Bus, BusError, Delivery};
pub use job::{Action, Event, Job, Obstacle, Origin, Patience, is_due};
pub use journal::{FileJournal, Journal, JournalError, MemoryJournal, Record};
pub use pinner::{Kubo, Pinner, Reached};
pub use queue::{Limits, Queue, Queued};
pub use worker::{Parts, Worker, WorkerOptions, WorkerStanding};
