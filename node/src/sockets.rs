//! The two Unix sockets of a node: where they are, and who may connect.
//!
//! Access is decided by the kernel's word on the peer (SO_PEERCRED) at accept, not by file modes alone: a mode that somebody loosened,
//! or a socket in a shared folder, lets nobody in. Besides the peer's user and effective group, the groups that its user is a member of
//! according to the machine's user database count.
//!
//! Where the sockets are, for whoever looks for them: the path of the config; else `NODE/run/{data,admin}.sock`; else, where that path is
//! longer than the kernel allows or can't be written, `$XDG_RUNTIME_DIR/basalt/<node id>/` (without that variable `/run/user/<uid>`).

use std::{
    ffi::CString,
    fs, io,
    os::fd::AsRawFd,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use basalt_blockstore::{Error, ErrorKind, Result};
use nix::{
    sys::socket::{MsgFlags, recv},
    unistd::{Gid, Group, Uid, User},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::Sleep,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::{
    clients::{Clients, Connection, Peer, Presence, Socket},
    config::{Access, Sockets},
    lane::{Lanes, frame::PREFACE},
    layout::{self, NodeId},
};

/// Longest path that fits into `sockaddr_un.sun_path` with its final NUL (unix(7)).
pub const PATH_BYTES_MAX: usize = 107;

/// Where the sockets of a node are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The data socket.
    pub data: PathBuf,
    /// The admin socket.
    pub admin: PathBuf,
}

impl Paths {
    /// Where an owner of the node will make them; makes the folders.
    pub fn to_serve(node: &Path, id: &NodeId, sockets: &Sockets) -> Result<Paths> {
        Ok(Paths {
            data: to_serve(node, id, sockets.data_path.as_deref(), Socket::Data)?,
            admin: to_serve(node, id, sockets.admin_path.as_deref(), Socket::Admin)?,
        })
    }

    /// Where they are now, by what is there; for clients.
    pub fn to_connect(node: &Path, id: &NodeId, sockets: &Sockets) -> Paths {
        let find = |configured: &Option<PathBuf>, socket| {
            let candidates = candidates(node, id, configured.as_deref(), socket);
            let there = candidates.iter().find(|path| path.exists()).or(candidates.first());
            there.cloned().unwrap_or_default()
        };
        Paths { data: find(&sockets.data_path, Socket::Data), admin: find(&sockets.admin_path, Socket::Admin) }
    }
}

fn candidates(node: &Path, id: &NodeId, configured: Option<&Path>, socket: Socket) -> Vec<PathBuf> {
    let name = format!("{socket}.sock");
    match configured {
        Some(path) => vec![node.join(path)],
        None => vec![layout::run_dir(node).join(&name), runtime_dir().join("basalt").join(id.as_str()).join(&name)],
    }
}

fn runtime_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(format!("/run/user/{}", Uid::effective())),
    }
}

fn to_serve(node: &Path, id: &NodeId, configured: Option<&Path>, socket: Socket) -> Result<PathBuf> {
    let mut refused = Vec::new();
    for path in candidates(node, id, configured, socket) {
        let length = path.as_os_str().len();
        if length > PATH_BYTES_MAX {
            refused.push(format!("{} has {length} bytes of at most {PATH_BYTES_MAX}", path.display()));
            continue;
        }
        let Some(dir) = path.parent() else { continue };
        match layout::make_dir(dir, 0o750).map_err(|err| err.to_string()).and_then(|()| writable(dir)) {
            Ok(()) => return Ok(path),
            Err(why) => refused.push(why),
        }
    }
    Err(Error::new(
        ErrorKind::InvalidValue,
        format!(
            "no place for the {socket} socket of node {}: {}; set [sockets] {socket}_path in {}, or XDG_RUNTIME_DIR",
            node.display(),
            refused.join("; "),
            crate::config::FILE_NAME
        ),
    ))
}

fn writable(dir: &Path) -> std::result::Result<(), String> {
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK)
        .map_err(|err| format!("{} can't be written: {err}", dir.display()))
}

/// Who may connect to one socket, as numbers.
#[derive(Clone, Debug)]
pub(crate) struct Allowed {
    socket: Socket,
    uids: Vec<Uid>,
    gids: Vec<Gid>,
}

impl Allowed {
    /// Looks the names of the config up. An unknown user is an error, because a typing error would lock somebody out silently; an
    /// unknown group admits nobody, because the default names one that a machine need not have.
    pub(crate) fn resolve(socket: Socket, access: &Access) -> Result<Allowed> {
        let prefix = prefix(socket);
        let mut uids = Vec::new();
        for name in &access.uids {
            let uid = match name.as_str() {
                "self" => Some(Uid::effective()),
                _ => match name.parse() {
                    Ok(uid) => Some(Uid::from_raw(uid)),
                    Err(_) => User::from_name(name).ok().flatten().map(|user| user.uid),
                },
            };
            uids.push(uid.ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidValue,
                    format!("[sockets] {prefix}allow_uids: this machine has no user '{name}': name one that it has, or a number"),
                )
            })?);
        }
        let group = |name: &String| match name.parse() {
            Ok(gid) => Some(Gid::from_raw(gid)),
            Err(_) => Group::from_name(name).ok().flatten().map(|group| group.gid),
        };
        Ok(Allowed { socket, uids, gids: access.gids.iter().filter_map(group).collect() })
    }

    fn admits(&self, peer: Peer) -> bool {
        let gid = Gid::from_raw(peer.gid);
        self.uids.contains(&Uid::from_raw(peer.uid)) || self.gids.contains(&gid) || self.admits_member(peer.uid, gid)
    }

    /// Whether the user database has the peer's user in a group that is allowed: SO_PEERCRED knows its effective group only.
    fn admits_member(&self, uid: u32, gid: Gid) -> bool {
        if self.gids.is_empty() {
            return false;
        }
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
        let Ok(name) = CString::new(user.name) else { return false };
        let groups = nix::unistd::getgrouplist(&name, gid).unwrap_or_default();
        groups.iter().any(|group| self.gids.contains(group))
    }
}

fn prefix(socket: Socket) -> &'static str {
    match socket {
        Socket::Data => "",
        Socket::Admin => "admin_",
    }
}

/// A socket file that this process made; removed by [`Bound::remove`], under the node's lock.
#[derive(Debug)]
pub(crate) struct Bound {
    path: PathBuf,
}

impl Bound {
    /// Binds and listens. A socket that somebody answers on is left alone; one that nobody answers on is a dead owner's, and the caller
    /// has the node's lock.
    pub(crate) fn listen(path: &Path, allowed: &Allowed) -> Result<(Bound, UnixListener)> {
        let socket = allowed.socket;
        let in_use = |why: &str| {
            Error::new(
                ErrorKind::Locked,
                format!(
                    "the {socket} socket {} {why}: stop that process, or set [sockets] {socket}_path in {}",
                    path.display(),
                    crate::config::FILE_NAME
                ),
            )
        };
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => return Err(in_use("is a file of another kind")),
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)
                        .map_err(|err| Error::io(format!("remove stale socket {}", path.display()), err))?;
                }
                _ => return Err(in_use("is in use by another process")),
            },
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)
            .map_err(|err| Error::io(format!("listen on {socket} socket {}", path.display()), err))?;
        let bound = Bound { path: path.to_owned() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))
            .map_err(|err| Error::io(format!("set the mode of {}", path.display()), err))?;
        bound.give_to_group(allowed);
        Ok((bound, listener))
    }

    /// Lets the members of the first allowed group reach the socket: file, and the folders down from the node's.
    fn give_to_group(&self, allowed: &Allowed) {
        let Some(gid) = allowed.gids.first() else { return };
        // Only a member of the group, or root, may; without it the group is shut out by the file's mode, and nobody else is let in.
        for path in self.path.ancestors().take(2) {
            if let Err(err) = nix::unistd::chown(path, None, Some(*gid)) {
                tracing::warn!(path = %path.display(), %gid, %err, "can't give the socket to the group of [sockets] allow_gids");
            }
        }
    }

    pub(crate) fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What a connection may do and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections that may be open on one socket.
    pub(crate) connections_max: usize,
    /// A connection that has not asked for anything after this long is closed.
    pub(crate) handshake_deadline: Duration,
    /// A client that takes no byte of what is sent to it for this long is cut off.
    pub(crate) stall_deadline: Duration,
}

/// What goes wrong again and again is said once a second at most, with how often.
#[derive(Debug)]
struct Seldom {
    said: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    const EVERY: Duration = Duration::from_secs(1);

    /// How often it happened since it was said, where it is time to say it again.
    fn now(&mut self) -> Option<u64> {
        self.unsaid += 1;
        if self.said.is_some_and(|said| said.elapsed() < Seldom::EVERY) {
            return None;
        }
        self.said = Some(Instant::now());
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Accepts until `stop`; hands over the connections that are admitted, and those that speak the fast lane to `lanes`, where there are any.
pub(crate) fn accept(
    listener: UnixListener,
    allowed: Allowed,
    clients: Arc<Clients>,
    bounds: Bounds,
    lanes: Option<Arc<Lanes>>,
    stop: CancellationToken,
    cut: CancellationToken,
) -> mpsc::Receiver<io::Result<Conn>> {
    let (accepted, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut refusals = Seldom { said: None, unsaid: 0 };
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accept = listener.accept() => match accept {
                    Ok((stream, _)) => stream,
                    Err(err) => {
                        // Out of descriptors or memory: the connection waits in the kernel's queue meanwhile.
                        if let Some(times) = refusals.now() {
                            tracing::warn!(socket = %allowed.socket, %err, times, "can't accept a connection");
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            match admit(stream, &allowed, &clients, bounds, &cut) {
                Ok(conn) => match &lanes {
                    None => {
                        if accepted.send(Ok(conn)).await.is_err() {
                            return;
                        }
                    }
                    Some(lanes) => {
                        let (lanes, accepted) = (lanes.clone(), accepted.clone());
                        tokio::spawn(async move { route(conn, &lanes, accepted).await });
                        // Those that are there get to say what they want before more come, who would have those go that have said nothing.
                        tokio::task::yield_now().await;
                    }
                },
                Err(refusal) => {
                    if let Some(times) = refusals.now() {
                        tracing::warn!(socket = %allowed.socket, times, "refused a connection: {refusal}");
                    }
                }
            }
        }
    });
    incoming
}

fn admit(
    stream: UnixStream,
    allowed: &Allowed,
    clients: &Arc<Clients>,
    bounds: Bounds,
    cut: &CancellationToken,
) -> std::result::Result<Conn, String> {
    let socket = allowed.socket;
    let credentials = stream.peer_cred().map_err(|err| format!("the kernel does not say whose it is: {err}"))?;
    let peer = Peer {
        pid: credentials.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        uid: credentials.uid(),
        gid: credentials.gid(),
    };
    let who = format!("uid {}, gid {}, pid {}", peer.uid, peer.gid, peer.pid);
    if !allowed.admits(peer) {
        let prefix = prefix(socket);
        return Err(format!(
            "its user is not allowed ({who}); add it to [sockets] {prefix}allow_uids or its group to {prefix}allow_gids"
        ));
    }
    let max = bounds.connections_max;
    let Some(presence) = clients.enter(socket, peer, max, cut.child_token()) else {
        return Err(format!(
            "{max} are open, all by clients that use them ({who}): [limits] connections_max, or a quarter of the open files that the \
             process may have, is the limit"
        ));
    };
    let connection = presence.connection();
    tokio::spawn(async move {
        let cut = connection.cut().clone();
        tokio::select! {
            () = cut.cancelled() => {}
            () = tokio::time::sleep(bounds.handshake_deadline) => {
                if !connection.is_introduced() {
                    tracing::debug!(pid = connection.peer().pid, "closed a connection that asked for nothing");
                    cut.cancel();
                }
            }
        }
    });
    Ok(Conn {
        stream,
        cut: Box::pin(presence.connection().cut().clone().cancelled_owned()),
        stall: None,
        stall_deadline: bounds.stall_deadline,
        presence,
    })
}

/// An admitted connection. Ends with an error once it is cut: by a server that closes, because it asks for nothing or holds too much, or because
/// its client takes nothing.
pub(crate) struct Conn {
    stream: UnixStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Runs while bytes wait for the client.
    stall: Option<Pin<Box<Sleep>>>,
    stall_deadline: Duration,
    presence: Presence,
}

impl Conn {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the node closes this connection"));
        }
        Ok(())
    }

    /// What became of a write; one that waits too long fails.
    fn written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let deadline = self.stall_deadline;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(deadline)));
        ready!(stall.as_mut().poll(cx));
        tracing::warn!(
            pid = self.presence.connection().peer().pid,
            "cut off a client that takes nothing of what is sent to it"
        );
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl Conn {
    /// Whether its client speaks the fast lane, once it has said enough to know; `None`: it has gone, or is cut.
    async fn speaks_lane(&self) -> Option<bool> {
        let cut = self.presence.connection().cut().clone();
        loop {
            tokio::select! {
                () = cut.cancelled() => return None,
                ready = self.stream.readable() => ready.ok()?,
            }
            let mut said = [0; PREFACE.len()];
            let peek = || Ok(recv(self.stream.as_raw_fd(), &mut said, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?);
            match self.stream.try_io(Interest::READABLE, peek) {
                Ok(0) => return None,
                Ok(count) => match said.get(..count) {
                    Some(said) if !PREFACE.starts_with(said) => return Some(false),
                    Some(said) if said.len() == PREFACE.len() => return Some(true),
                    // Its beginning is there, so the socket stays readable: the rest is on its way, or never comes.
                    _ => tokio::time::sleep(Duration::from_millis(1)).await,
                },
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    fn into_lane(self) -> io::Result<(std::os::unix::net::UnixStream, Presence)> {
        Ok((self.stream.into_std()?, self.presence))
    }
}

/// Hands a connection to whoever serves what its client speaks.
async fn route(conn: Conn, lanes: &Arc<Lanes>, grpc: mpsc::Sender<io::Result<Conn>>) {
    let speaks_lane = tokio::select! {
        speaks_lane = conn.speaks_lane() => speaks_lane,
        () = lanes.stopped() => None,
    };
    match speaks_lane {
        None => {}
        Some(false) => {
            let _ = grpc.send(Ok(conn)).await;
        }
        Some(true) => match conn.into_lane() {
            Ok((stream, presence)) => lanes.serve(stream, presence),
            Err(err) => tracing::warn!(%err, "a fast lane could not be served"),
        },
    }
}

impl Connected for Conn {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.presence.connection()
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

// A connection whose client takes nothing may be polled for writing alone.
impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = Pin::new(&mut self.stream).poll_write(cx, buffer);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> NodeId {
        "0123456789abcdef0123456789abcdef".parse().unwrap()
    }

    #[test]
    fn sockets_are_in_the_run_folder_of_the_node() {
        let node = tempfile::tempdir().unwrap();
        let paths = Paths::to_serve(node.path(), &id(), &Sockets::default()).unwrap();
        assert_eq!(paths.data, node.path().join("run/data.sock"));
        assert_eq!(paths.admin, node.path().join("run/admin.sock"));
        assert_eq!(Paths::to_connect(node.path(), &id(), &Sockets::default()), paths);
    }

    #[test]
    fn a_configured_path_is_the_only_one() {
        let node = tempfile::tempdir().unwrap();
        let sockets = Sockets { data_path: Some(node.path().join("x".repeat(120))), ..Sockets::default() };
        let err = Paths::to_serve(node.path(), &id(), &sockets).unwrap_err().to_string();
        assert!(err.contains("of at most 107") && err.contains("[sockets] data_path"), "{err}");
        let sockets = Sockets { data_path: Some("d.sock".into()), ..Sockets::default() };
        assert_eq!(Paths::to_serve(node.path(), &id(), &sockets).unwrap().data, node.path().join("d.sock"));
    }

    #[test]
    fn an_unknown_user_is_an_error_and_an_unknown_group_admits_nobody() {
        let access = Access { uids: vec!["no-such-user-here".into()], gids: Vec::new() };
        let err = Allowed::resolve(Socket::Admin, &access).unwrap_err();
        assert!(
            err.to_string().contains("[sockets] admin_allow_uids") && err.to_string().contains("no-such-user-here"),
            "{err}"
        );
        let access = Access { uids: vec!["4242".into()], gids: vec!["no-such-group-here".into(), "4343".into()] };
        let allowed = Allowed::resolve(Socket::Data, &access).unwrap();
        assert!(allowed.admits(Peer { pid: 1, uid: 4242, gid: 1 }));
        assert!(allowed.admits(Peer { pid: 1, uid: 1, gid: 4343 }));
        assert!(!allowed.admits(Peer { pid: 1, uid: 4241, gid: 1 }));
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.sock");
        let allowed = Allowed::resolve(Socket::Data, &Access { uids: vec!["self".into()], gids: Vec::new() }).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (bound, listener) = Bound::listen(&path, &allowed).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let err = Bound::listen(&path, &allowed).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Locked);
        assert!(err.to_string().contains("in use by another process"), "{err}");
        drop(listener);
        bound.remove();
        fs::write(&path, "a file").unwrap();
        assert!(Bound::listen(&path, &allowed).unwrap_err().to_string().contains("file of another kind"));
    }
}
