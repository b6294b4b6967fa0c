//! The node's two gRPC services, data and admin, each on its own socket.
//!
//! Reads run inline: an index look-up and one positioned read are shorter than a thread switch. Writes are submitted and their outcome is
//! awaited, so that no thread of the server is held during a flush. What may take long runs on the blocking pool.

mod admin;
mod data;
mod gate;
pub mod status;
mod stream;
mod traffic;

use std::sync::Arc;

use basalt_datastore::{Error, ErrorKind, Ticket};
use basalt_proto::v1::{admin_server::AdminServer, datastore_server::DatastoreServer};
use tonic::Status;

pub(crate) use admin::{clients, damaged_key, quarantined};
pub(crate) use data::Data;
pub(crate) use gate::Gate;

use crate::{config::Config, node::Node};
use status::status;

/// A chunk of a stream is closed when its operations or entries have this many bytes; a larger value has a chunk of its own.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Room of a message for what is around a value: key, tags, a chunk's other entries.
const MESSAGE_MARGIN_BYTES: usize = 2 * CHUNK_BYTES;

/// Lowest and highest protocol that this node speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u32 = 1;

/// Largest message in either direction. A value above its own limit must still arrive, to be refused by name.
pub(crate) fn message_bytes_max(config: &Config) -> usize {
    config.datastore.store.value_bytes_max.saturating_mul(2).saturating_add(MESSAGE_MARGIN_BYTES)
}

pub(crate) fn data(node: &Arc<Node>) -> Gate<DatastoreServer<Data>> {
    let max = message_bytes_max(node.config());
    let service = DatastoreServer::new(Data::new(node.clone()));
    Gate::data(service.max_decoding_message_size(max).max_encoding_message_size(max), node.calls().clone(), max)
}

pub(crate) fn admin(node: &Arc<Node>) -> Gate<AdminServer<admin::Admin>> {
    let max = message_bytes_max(node.config());
    let service = AdminServer::new(admin::Admin::new(node.clone()));
    Gate::admin(service.max_decoding_message_size(max).max_encoding_message_size(max), node.calls().clone(), max)
}

/// Awaits what a write's durability class promises.
async fn settled(ticket: basalt_datastore::Result<Ticket>) -> Result<(), Status> {
    outcome(ticket.map_err(status)?).await.map_err(status)
}

/// What became of a write; no thread waits for it.
async fn outcome(ticket: Ticket) -> basalt_datastore::Result<()> {
    let (done, told) = tokio::sync::oneshot::channel();
    ticket.then(move |outcome| {
        // The client may have gone meanwhile: the write stands.
        let _ = done.send(outcome);
    });
    told.await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Unavailable, "the store ended before it said what became of the write"))
    })
}

/// Runs what may take long off the threads that serve.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> basalt_datastore::Result<T> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(status),
        Err(err) => Err(status(Error::new(ErrorKind::Unavailable, format!("the node gave up on the call: {err}")))),
    }
}
