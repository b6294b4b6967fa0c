//! One open node of Basalt: its stores, its lock, its background work, and its two sockets.
//!
//! A node is hosted by the agent or, through the C ABI, by Kubo. A host does this:
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use basalt_node::{Config, Host, Node, Server};
//! let path = std::path::Path::new("/srv/basalt");
//! let runtime = basalt_node::runtime()?;
//! let node = Node::open(path, Config::load(path, &[])?, Host::Agent)?;
//! runtime.block_on(async {
//!     let server = Server::start(&node)?;
//!     let by = node.hand_over_requested().await; // or a signal, or node.clients().idle_for(..)
//!     server.stop().await
//! })?;
//! node.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! The stores are synchronous and have threads of their own; tokio serves. Exactly one process owns a node's stores at a time
//! ([`lock`]). What a client of the data socket can do is [`basalt_proto::v1`]'s `Datastore`; `Admin` is on the other socket only.

mod arriving;
pub mod calls;
pub mod client;
pub mod clients;
pub mod config;
mod ground;
mod grpc;
mod handshake;
pub mod lane;
pub mod layout;
pub mod lock;
mod mooring;
mod node;
pub mod query;
mod scrub;
mod server;
pub mod sockets;
mod take_over;

pub use config::{Config, ConfigError};
pub use ground::dataset_under;
pub use grpc::{CHUNK_BYTES, PROTOCOL_MAX, PROTOCOL_MIN, status};
pub use layout::{InitOptions, NodeFile, NodeId, State, init, set_state};
pub use lock::{Host, StartingLock};
pub use node::Node;
pub use scrub::{Healer, ScrubOptions};
pub use server::{Server, runtime};
