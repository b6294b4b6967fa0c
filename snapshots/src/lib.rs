//! Snapshots of a node: taken at one instant, kept by a policy that gives its reasons, restored beside the old.
//!
//! - A **set** ([`SnapshotSet`]) is what one `take` made: a snapshot of the same name on every dataset of a node, metadata first. Its name says all that listing needs:
//!   `basalt-2026-11-21T19:02:10Z-4-3fa9c1d2` is a set of 4, taken at that time (UTC) by the clock of that host, with a random end so that no clock can make two
//!   alike. So a listing reads no snapshot, whether a set is whole is known from names alone, and what has another name is nobody's business here.
//!   The name sorts, but order is by `createtxg`, which no clock can bend.
//! - **Retention** ([`judge`]) is a pure function from sets, policy, guards, replication edges and the time to a fate with its reasons for each. It is the heart: small, and
//!   tested over simulated years.
//! - A **journal** ([`Journal`]) has what is under way, in one record that is replaced atomically. Every operation that takes several steps writes its intent first;
//!   [`Keeper::recover`] at the next start finishes or undoes it and says which. An operation that fails goes the same way, so that there is one path back.
//! - **Nothing forces**, nothing is destroyed that a hold, a clone, a lease or an edge needs, and a restore keeps what it replaces until it is confirmed.
//!
//! What this crate must not know, it is given: how a node holds its deletes ([`Quiesce`]), how long to wait between batches ([`Pace`]), what time it is.

mod content;
mod error;
mod hold;
mod journal;
mod keeper;
mod lineage;
mod policy;
mod prune;
mod restore;
mod retention;
mod schedule;
mod set;
mod take;

pub use content::{Content, Contents};
pub use error::{Error, Kind, Result};
pub use journal::{Aside, FileJournal, HoldRecord, Intent, Journal, Lease, MemberState, Phase, Record};
pub use keeper::{Keeper, Mounts};
pub use lineage::Met;
pub use policy::{Period, Policy, PolicyError, Rung};
pub use prune::{Pace, Pruned, Unhurried};
pub use restore::{RestorePlan, Swapped};
pub use retention::{Edge, Fate, Guard, Item, Judgement, Reason, TOLERANCE_S, Verdict, judge};
pub use schedule::{Schedule, ScheduleError};
pub use set::{SetName, SnapshotSet, order};
pub use take::{Held, Quiesce, Taken};
