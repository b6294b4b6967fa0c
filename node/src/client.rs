//! A client of a node's sockets, for the command line and for tests: async, and blocking.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use basalt_blockstore::{Error, ErrorKind, Result};
use basalt_proto::v1::{
    HandshakeRequest, HandshakeResponse, admin_client::AdminClient, datastore_client::DatastoreClient,
};
use hyper_util::rt::TokioIo;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::{config::Sockets, grpc, layout::NodeFile, lock::OwnerLock, sockets::Paths};

/// How long a socket may take to answer a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Flow control: a stream that is not read for a while stops at its own window, and leaves room in the connection's for the others.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// A client of a node's admin socket.
pub type Admin = AdminClient<Channel>;
/// A client of a node's data socket.
pub type Data = DatastoreClient<Channel>;

/// Connects to the admin socket of whoever serves the node of a folder. Where nobody does, [`ErrorKind::Unavailable`] says how to start one.
pub async fn admin(node: &Path, sockets: &Sockets) -> Result<Admin> {
    let channel = connect(node, &paths(node, sockets)?.admin).await?;
    Ok(AdminClient::new(channel).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX))
}

/// Connects to the data socket of whoever serves the node of a folder, and shakes hands.
pub async fn data(node: &Path, sockets: &Sockets, client: &str, role: &str) -> Result<(Data, HandshakeResponse)> {
    let channel = connect(node, &paths(node, sockets)?.data).await?;
    let mut data =
        DatastoreClient::new(channel).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
    let request = HandshakeRequest {
        protocol_min: grpc::PROTOCOL_MIN,
        protocol_max: grpc::PROTOCOL_MAX,
        client: client.to_owned(),
        role: role.to_owned(),
        ..HandshakeRequest::default()
    };
    let answer = data.handshake(request).await.map_err(|status| error(&status))?;
    Ok((data, answer.into_inner()))
}

/// The error of a failed call, with the node's own kind.
pub fn error(status: &Status) -> Error {
    grpc::status::error(status)
}

fn paths(node: &Path, sockets: &Sockets) -> Result<Paths> {
    let node = std::path::absolute(node).map_err(|err| Error::io(format!("node folder {}", node.display()), err))?;
    let file = NodeFile::read(&node)?;
    Ok(Paths::to_connect(&node, &file.node_id, sockets))
}

async fn connect(node: &Path, socket: &Path) -> Result<Channel> {
    // Dialled here and not by the transport, whose error would not say what the system's was.
    let first = match tokio::net::UnixStream::connect(socket).await {
        Ok(stream) => Arc::new(Mutex::new(Some(stream))),
        Err(err) => return Err(unreachable(node, socket, &err)),
    };
    let path: Arc<PathBuf> = Arc::new(socket.to_owned());
    let dial = move |_: Uri| {
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let path = path.clone();
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => tokio::net::UnixStream::connect(path.as_path()).await?,
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    };
    // The URI is for the HTTP layer only; the connector decides.
    Endpoint::from_static("http://basalt.invalid")
        .connect_timeout(CONNECT_DEADLINE)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector(tower::service_fn(dial))
        .await
        .map_err(|err| Error::new(ErrorKind::Unavailable, format!("{} does not answer: {err}", socket.display())))
}

fn unreachable(node: &Path, socket: &Path, err: &std::io::Error) -> Error {
    let message = match (err.kind(), OwnerLock::owner(node)) {
        (std::io::ErrorKind::PermissionDenied, _) => format!(
            "{} may not be used by this user: {err}; run the command as the node's user, or add yourself to [sockets] of its basalt.toml",
            socket.display()
        ),
        (_, None) => format!(
            "nobody serves node {}: start it with `basalt agent --node {}`, or start the Kubo that uses it",
            node.display(),
            node.display()
        ),
        (_, Some(owner)) => format!(
            "node {} is open ({owner}) but {} does not answer ({err}): it may still be opening or closing, or use another socket path",
            node.display(),
            socket.display()
        ),
    };
    Error::new(ErrorKind::Unavailable, message)
}

/// Runs a client's calls from a thread that is in no async runtime, as the command line's commands are.
pub fn block_on<T>(calls: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Error::io("start the runtime of the client", err))?
        .block_on(calls)
}
