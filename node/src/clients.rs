//! Who is connected, so that `status` can say it, an import can know whether a Kubo would be deceived, and a host can go when idle.
//!
//! A connection is registered when it is accepted and leaves when its socket is dropped, whatever the reason.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// Which socket a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// The data socket.
    Data,
    /// The admin socket.
    Admin,
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Socket::Data => "data",
            Socket::Admin => "admin",
        })
    }
}

/// The kernel's word on the process at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process, 0 where the kernel did not say.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// What a client said of itself in its handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introduction {
    /// Its name and version.
    pub name: String,
    /// What it is here for: "root", "blocks", "pins", "cli", "migrate".
    pub role: String,
}

/// How many connections there are, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// Open connections on both sockets.
    pub connected: usize,
    /// When `connected` became what it is.
    pub since: Instant,
}

/// The connections of one node.
#[derive(Debug)]
pub struct Clients {
    connections: Mutex<Connections>,
    count: watch::Sender<Count>,
}

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    open: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    socket: Socket,
    peer: Peer,
    since: Instant,
    introduction: Option<Introduction>,
}

/// A connection as `status` shows it.
#[derive(Clone, Debug)]
pub struct Client {
    /// Which socket it came in by.
    pub socket: Socket,
    /// Who the kernel says it is.
    pub peer: Peer,
    /// When it connected.
    pub since: Instant,
    /// What it said of itself, once it has.
    pub introduction: Option<Introduction>,
}

impl Client {
    /// Whether a Kubo that caches which blocks are absent is at the other end. All mounts of one Kubo share connections, which carry the role
    /// of the mount that was opened first: one that says "pins" may be asked for blocks too.
    pub fn is_kubo(&self) -> bool {
        self.introduction.as_ref().is_some_and(|said| matches!(said.role.as_str(), "root" | "blocks" | "pins"))
    }
}

impl Clients {
    /// None yet.
    pub(crate) fn new() -> Arc<Clients> {
        let count = watch::Sender::new(Count { connected: 0, since: Instant::now() });
        Arc::new(Clients { connections: Mutex::default(), count })
    }

    /// Those connected now, oldest first.
    pub fn list(&self) -> Vec<Client> {
        let client = |entry: &Entry| Client {
            socket: entry.socket,
            peer: entry.peer,
            since: entry.since,
            introduction: entry.introduction.clone(),
        };
        self.lock().open.values().map(client).collect()
    }

    /// The count, and its changes.
    pub fn watch(&self) -> watch::Receiver<Count> {
        self.count.subscribe()
    }

    /// Returns once nobody has been connected for that long.
    pub async fn idle_for(&self, time: Duration) {
        let mut watch = self.watch();
        loop {
            let count = *watch.borrow_and_update();
            let idle = async {
                if count.connected > 0 {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep_until((count.since + time).into()).await;
            };
            tokio::select! {
                () = idle => return,
                changed = watch.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Registers a connection; `None` where there are `connections_max` on that socket already.
    pub(crate) fn enter(self: &Arc<Clients>, socket: Socket, peer: Peer, connections_max: usize) -> Option<Presence> {
        let mut connections = self.lock();
        if connections.open.values().filter(|entry| entry.socket == socket).count() >= connections_max {
            return None;
        }
        let id = connections.next;
        connections.next += 1;
        connections.open.insert(id, Entry { socket, peer, since: Instant::now(), introduction: None });
        self.count.send_replace(Count { connected: connections.open.len(), since: Instant::now() });
        let connection = Connection { clients: self.clone(), id, peer, introduced: Arc::default() };
        Some(Presence { connection })
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A connection as its requests see it; cheap to clone, and does not keep the connection registered.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    clients: Arc<Clients>,
    id: u64,
    peer: Peer,
    introduced: Arc<AtomicBool>,
}

impl Connection {
    /// Who the kernel says it is.
    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    /// Notes what the client said of itself.
    pub(crate) fn introduce(&self, introduction: Introduction) {
        if let Some(entry) = self.clients.lock().open.get_mut(&self.id) {
            entry.introduction = Some(introduction);
        }
        self.introduced.store(true, Ordering::Release);
    }

    /// Whether the client has shaken hands.
    pub(crate) fn is_introduced(&self) -> bool {
        self.introduced.load(Ordering::Acquire)
    }
}

/// Keeps a connection registered; held by its socket, or by a client in this process.
#[derive(Debug)]
pub struct Presence {
    connection: Connection,
}

impl Presence {
    pub(crate) fn connection(&self) -> Connection {
        self.connection.clone()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let clients = &self.connection.clients;
        let mut connections = clients.lock();
        connections.open.remove(&self.connection.id);
        clients.count.send_replace(Count { connected: connections.open.len(), since: Instant::now() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Peer = Peer { pid: 1, uid: 2, gid: 3 };

    #[test]
    fn connections_are_bounded_per_socket() {
        let clients = Clients::new();
        let first = clients.enter(Socket::Data, PEER, 1).unwrap();
        assert!(clients.enter(Socket::Data, PEER, 1).is_none());
        assert!(clients.enter(Socket::Admin, PEER, 1).is_some());
        drop(first);
        assert!(clients.enter(Socket::Data, PEER, 1).is_some());
    }

    #[tokio::test]
    async fn idle_begins_anew_with_each_connection() {
        let clients = Clients::new();
        let limit = Duration::from_millis(20);
        let begin = Instant::now();
        let presence = clients.enter(Socket::Data, PEER, 9).unwrap();
        let idle = tokio::spawn({
            let clients = clients.clone();
            async move { clients.idle_for(limit).await }
        });
        tokio::task::yield_now().await;
        assert!(!idle.is_finished(), "somebody is connected");
        drop(presence);
        idle.await.unwrap();
        assert_eq!(clients.watch().borrow().connected, 0);
        assert!(clients.watch().borrow().since >= begin);
    }

    #[test]
    fn what_a_client_says_of_itself_shows() {
        let clients = Clients::new();
        let presence = clients.enter(Socket::Data, PEER, 9).unwrap();
        assert!(!presence.connection().is_introduced() && !clients.list()[0].is_kubo());
        presence.connection().introduce(Introduction { name: "plugin".into(), role: "root".into() });
        assert!(presence.connection().is_introduced() && clients.list()[0].is_kubo());
        drop(presence);
        assert!(clients.list().is_empty());
    }
}
