//! Serving a node on its two sockets, from the first connection to the last.

use std::{sync::Arc, time::Duration};

use basalt_blockstore::{Error, ErrorKind, Result};
use nix::sys::resource::{Resource, getrlimit};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server as Transport;

use crate::{
    clients::Socket,
    grpc,
    lane::Lanes,
    node::Node,
    sockets::{self, Allowed, Bound, Bounds, Conn, Paths},
};

/// Flow control windows: a block and the next ones fit, so that a stream of them never waits for a window update.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest HTTP/2 frame that is received; fewer frames a block cost less.
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Calls that one connection may have under way.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// Streams of one connection that were reset before they were looked at; a client that goes on is cut off (HTTP/2 rapid reset).
const RESET_STREAMS_MAX: usize = 64;
/// Largest header of a call, decoded.
const HEADER_LIST_BYTES_MAX: u32 = 8 << 10;
/// How long the answer to a ping may take.
const PING_DEADLINE: Duration = Duration::from_secs(20);
/// How long connections have to notice that they are cut.
const CUT_DEADLINE: Duration = Duration::from_secs(2);

/// A runtime for serving: two threads are plenty, because they wait for no disk flush, and keep an idle node small.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("basalt-serve").enable_all().build()
}

/// A node that is being served; see [`Server::stop`].
#[derive(Debug)]
pub struct Server {
    node: Arc<Node>,
    paths: Paths,
    stop: CancellationToken,
    cut: CancellationToken,
    lanes: Arc<Lanes>,
    bound: Vec<Bound>,
    tasks: Vec<JoinHandle<std::result::Result<(), tonic::transport::Error>>>,
}

impl Server {
    /// Makes the sockets and begins to serve, on the current tokio runtime (see [`runtime`]).
    pub fn start(node: &Arc<Node>) -> Result<Server> {
        let sockets = &node.config().sockets;
        let paths = Paths::to_serve(node.path(), node.id(), sockets)?;
        let stop = CancellationToken::new();
        let mut server = Server {
            node: node.clone(),
            paths: paths.clone(),
            lanes: Lanes::new(node.clone(), stop.clone()),
            stop,
            cut: CancellationToken::new(),
            bound: Vec::new(),
            tasks: Vec::new(),
        };
        // Admin first: whoever sees the data socket may rely on both.
        let admin = server.listen(Socket::Admin, &sockets.admin_access)?;
        let data = match server.listen(Socket::Data, &sockets.data_access) {
            Ok(data) => data,
            Err(err) => {
                server.remove_sockets();
                return Err(err);
            }
        };
        let stopped = |stop: CancellationToken| async move { stop.cancelled().await };
        let serve_admin =
            transport(node).serve_with_incoming_shutdown(grpc::admin(node), admin, stopped(server.stop.clone()));
        server.tasks.push(tokio::spawn(serve_admin));
        let serve_data =
            transport(node).serve_with_incoming_shutdown(grpc::data(node), data, stopped(server.stop.clone()));
        server.tasks.push(tokio::spawn(serve_data));
        node.set_sockets(Some(paths.clone()));
        tracing::info!(data = %paths.data.display(), admin = %paths.admin.display(), "serving");
        Ok(server)
    }

    fn listen(
        &mut self,
        socket: Socket,
        access: &crate::config::Access,
    ) -> Result<ReceiverStream<std::io::Result<Conn>>> {
        let path = match socket {
            Socket::Data => &self.paths.data,
            Socket::Admin => &self.paths.admin,
        };
        let allowed = Allowed::resolve(socket, access)?;
        let (bound, listener) = Bound::listen(path, &allowed)?;
        self.bound.push(bound);
        let node = &self.node;
        let bounds = Bounds {
            connections_max: node.config().connections_max.min(descriptors_for_a_socket()),
            handshake_deadline: node.config().sockets.handshake_deadline,
            stall_deadline: node.config().sockets.stall_deadline,
        };
        let (stop, cut) = (self.stop.clone(), self.cut.clone());
        let has_lanes = socket == Socket::Data && node.config().sockets.lanes_max > 0;
        let lanes = has_lanes.then(|| self.lanes.clone());
        Ok(ReceiverStream::new(sockets::accept(listener, allowed, node.clients().clone(), bounds, lanes, stop, cut)))
    }

    /// Where the sockets are.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Stops accepting, removes the sockets, lets calls under way finish within `[node] drain_deadline_ms`, then cuts what is left. The
    /// node stays open: [`Node::close`] comes next.
    pub async fn stop(mut self) -> Result<()> {
        self.remove_sockets();
        self.stop.cancel();
        let drain_deadline = self.node.config().drain_deadline;
        let mut tasks = std::mem::take(&mut self.tasks);
        let mut failed = None;
        let drained = tokio::time::timeout(drain_deadline, async {
            for task in &mut tasks {
                if let Ok(Err(err)) = task.await {
                    failed = Some(err);
                }
            }
            self.lanes.ended().await;
        })
        .await;
        if drained.is_err() {
            tracing::warn!(
                drain_deadline_ms = drain_deadline.as_millis() as u64,
                "calls under way did not finish in time and are cut off"
            );
            self.cut.cancel();
            for task in tasks.iter_mut().filter(|task| !task.is_finished()) {
                if tokio::time::timeout(CUT_DEADLINE, &mut *task).await.is_err() {
                    task.abort();
                }
            }
            let _ = tokio::time::timeout(CUT_DEADLINE, self.lanes.ended()).await;
        }
        match failed {
            Some(err) => Err(Error::new(ErrorKind::Io, format!("serving ended early: {err}"))),
            None => Ok(()),
        }
    }

    fn remove_sockets(&mut self) {
        self.node.set_sockets(None);
        self.bound.drain(..).for_each(Bound::remove);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.cut.cancel();
        self.remove_sockets();
    }
}

/// Connections must leave descriptors for segments and the index: each socket has a quarter of what the process may open.
fn descriptors_for_a_socket() -> usize {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) => usize::try_from(soft / 4).unwrap_or(usize::MAX).max(4),
        Err(_) => usize::MAX,
    }
}

fn transport(node: &Node) -> Transport {
    let keepalive = node.config().sockets.keepalive;
    Transport::builder()
        .http2_keepalive_interval(Some(keepalive))
        .http2_keepalive_timeout(Some(keepalive.min(PING_DEADLINE)))
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
}
