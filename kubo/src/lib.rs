//! Kubo's HTTP RPC, as far as Basalt needs it.
//!
//! Kubo answers a long call with 200 and a stream of JSON lines, and says only at the end of it, in the trailer `X-Stream-Error`, that it failed: a
//! client that reads no trailers takes a failed pin for a pinned one. Here a stream ends in an [`End`]: complete, failed, or truncated, and the
//! items before it prove nothing. [`PinAdd`] goes further: a pin is pinned when Kubo named it and then ended its answer well.
//!
//! No call has a total deadline, since a pin may take days; each ends when nothing was heard for [`Options::stall`].
//!
//! Lines, answers, error messages and idle connections are bounded: a hostile or broken server costs no more memory than [`Options`] say.

mod auth;
mod calls;
mod client;
mod endpoint;
mod error;
mod lines;

pub use auth::{Auth, AuthError, Secret};
pub use calls::{
    BlockStat, Identity, PIN_NAME_BYTES_MAX, PinAdd, PinEntry, PinKind, PinLs, PinOptions, PinStep, RepoStat, Unpinned,
    Version,
};
pub use client::{Client, Options};
pub use endpoint::{Endpoint, EndpointError};
pub use error::{Class, Error, Result};
pub use lines::{End, Lines, Step};

/// A CID. Digests go to 128 bytes, which is what Kubo takes for identity hashes.
pub type Cid = cid::CidGeneric<128>;
