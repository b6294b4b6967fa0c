//! The fast lane: small framed messages on the data socket, for what Kubo asks often. docs/lane.md has the protocol.
//!
//! gRPC costs a hundred microseconds a call and three copies of a block. A lane is two threads and no more copies than the socket makes.

mod answers;
mod connection;
mod deletes;
pub mod frame;

use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{clients::Presence, node::Node};
use connection::Connection;
use deletes::Deletes;

/// What a node that has lanes says of it in its handshake.
pub const FEATURE: &str = "lane.1";

/// A block of Kubo's usual size goes into the socket at once.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// The lanes of a node that is served.
#[derive(Debug)]
pub(crate) struct Lanes {
    node: Arc<Node>,
    deletes: Arc<Deletes>,
    open: AtomicUsize,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Lanes {
    pub(crate) fn new(node: Arc<Node>, stop: CancellationToken) -> Arc<Lanes> {
        Arc::new(Lanes { node, deletes: Arc::default(), open: AtomicUsize::new(0), stop, tasks: TaskTracker::new() })
    }

    /// Serves a connection from behind its preface, on threads of its own.
    pub(crate) fn serve(self: &Arc<Lanes>, stream: UnixStream, presence: Presence) {
        if let Err(err) = self.try_serve(stream, presence) {
            tracing::warn!(%err, "a fast lane could not be served; its client uses gRPC");
        }
    }

    fn try_serve(self: &Arc<Lanes>, stream: UnixStream, presence: Presence) -> io::Result<()> {
        let place = Place::take(self)?;
        stream.set_nonblocking(false)?;
        // The kernel cuts it to what it allows.
        setsockopt(&stream, SndBuf, &SEND_BUFFER_BYTES)?;
        stream.set_write_timeout(Some(self.node.config().sockets.stall_deadline))?;
        let handle = stream.try_clone()?;
        let peer = presence.connection();
        let connection = Connection::new(self.node.clone(), self.deletes.clone(), stream, peer.clone())?;
        let answers = connection.answers();
        let clerk = answers.clone();
        thread::Builder::new().name("basalt-lane-out".to_owned()).spawn(move || clerk.clerk())?;
        let task = self.tasks.token();
        let spawned = thread::Builder::new().name("basalt-lane".to_owned()).spawn(move || {
            let _held = (task, place, presence);
            connection.serve();
        });
        if let Err(err) = spawned {
            answers.close();
            return Err(err);
        }
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let cut = peer.cut();
            tokio::select! {
                () = cut.cancelled() => {}
                () = stop.cancelled() => {
                    // No more requests; those under way are answered.
                    let _ = handle.shutdown(Shutdown::Read);
                    cut.cancelled().await;
                }
            }
            let _ = handle.shutdown(Shutdown::Both);
            answers.close();
        });
        Ok(())
    }

    /// Waits until no more are served.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Waits until every lane is over.
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// One of the lanes that may be open.
struct Place(Arc<Lanes>);

impl Place {
    fn take(lanes: &Arc<Lanes>) -> io::Result<Place> {
        let max = lanes.node.config().sockets.lanes_max;
        let place = Place(lanes.clone());
        match lanes.open.fetch_add(1, Ordering::Relaxed) < max {
            true => Ok(place),
            false => Err(io::Error::other(format!("[sockets] lanes_max = {max} are open"))),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
