//! The engine of a fleet: ScyllaDB, by CQL.
//!
//! No row is read before it is written, and nothing is locked: a change's generation is its write timestamp, so the database itself keeps the highest
//! one, whatever arrives when. Lightweight transactions are for claims only, and never on a row that is written otherwise.
//!
//! An index row (by owner, tag, expiry) is written before its pin and is a hint: who finds it reads the pin. So a crash between the two leaves a
//! hint too many and never one too few.

mod dialect;
mod ledger;
mod options;
mod schema;
mod session;

pub use dialect::Dialect;
pub use ledger::CqlLedger;
pub use options::{CqlOptions, Level, Password, Tls};
pub use schema::{Applied, SchemaStatus, migrate, status};
