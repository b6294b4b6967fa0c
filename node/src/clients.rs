//! Who is connected, so that `status` can say it, an import can know whether a Kubo would be deceived, and a host can go when idle.
//!
//! A connection is registered when it is accepted and leaves when its socket is dropped, whatever the reason.
//!
//! Here is also what keeps one client from harming the others. A connection that has asked for nothing yet makes room for a new one where
//! there are as many as may be. What is on its way to or from clients (requests that are being received, answers that are not taken) is
//! counted in bytes for each connection; beyond the limit for all together, the connection that holds most is cut off.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

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
    /// Bytes on their way, of all connections.
    held_bytes: AtomicUsize,
    held_bytes_max: usize,
    streams_max: usize,
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
    share: Arc<Share>,
}

/// What a connection takes of what all connections share.
#[derive(Debug)]
struct Share {
    /// Bytes on their way.
    held_bytes: AtomicUsize,
    /// Told when there are fewer.
    room: Notify,
    /// Places for answers that stream: those that others wait for are not all taken, or waited for, by one.
    streams: Arc<Semaphore>,
    /// It has shaken hands, or on the admin socket made a call.
    has_spoken: AtomicBool,
    cut: CancellationToken,
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
    /// None yet; together they may have `held_bytes_max` on their way, and each of them `streams_max` answers that stream.
    pub(crate) fn new(held_bytes_max: usize, streams_max: usize) -> Arc<Clients> {
        let count = watch::Sender::new(Count { connected: 0, since: Instant::now() });
        let held_bytes = AtomicUsize::new(0);
        Arc::new(Clients { connections: Mutex::default(), count, held_bytes, held_bytes_max, streams_max })
    }

    /// Bytes on their way to and from all clients.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
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

    /// Registers a connection, which `cut` ends. Where there are `connections_max` on that socket already, the oldest that has asked for nothing
    /// yet makes room; `None` where all of them have.
    pub(crate) fn enter(
        self: &Arc<Clients>,
        socket: Socket,
        peer: Peer,
        connections_max: usize,
        cut: CancellationToken,
    ) -> Option<Presence> {
        let mut connections = self.lock();
        let on_socket = || connections.open.values().filter(|entry| entry.socket == socket);
        // Those that were told to go are still there for a moment; not for ever more of them.
        if on_socket().count() >= connections_max.saturating_mul(2) {
            return None;
        }
        if on_socket().filter(|entry| !entry.share.cut.is_cancelled()).count() >= connections_max {
            let is_silent = |share: &Share| !share.has_spoken.load(Ordering::Acquire) && !share.cut.is_cancelled();
            on_socket().find(|entry| is_silent(&entry.share))?.share.cut.cancel();
        }
        let id = connections.next;
        connections.next += 1;
        let share = Arc::new(Share {
            held_bytes: AtomicUsize::new(0),
            room: Notify::new(),
            streams: Arc::new(Semaphore::new(self.streams_max)),
            has_spoken: AtomicBool::new(false),
            cut,
        });
        let entry = Entry { socket, peer, since: Instant::now(), introduction: None, share: share.clone() };
        connections.open.insert(id, entry);
        self.count.send_replace(Count { connected: connections.open.len(), since: Instant::now() });
        let connection = Connection { clients: self.clone(), id, peer, share };
        Some(Presence { connection })
    }

    /// More is on its way than may be: whoever holds most of it goes.
    fn shed(&self) {
        let connections = self.lock();
        let held = |entry: &&Entry| entry.share.held_bytes.load(Ordering::Relaxed);
        // Of those that are going already, what they hold comes back soon.
        let staying = || connections.open.values().filter(|entry| !entry.share.cut.is_cancelled());
        if staying().map(|entry| held(&entry)).sum::<usize>() <= self.held_bytes_max {
            return;
        }
        if let Some(entry) = staying().max_by_key(held) {
            tracing::warn!(
                socket = %entry.socket, pid = entry.peer.pid, uid = entry.peer.uid, held_bytes = held(&entry),
                "cut off a client: it holds most of the requests and answers under way, which are more than [limits] transfer_memory_bytes"
            );
            entry.share.cut.cancel();
        }
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
    share: Arc<Share>,
}

/// Bytes that are on their way to or from a client, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    connection: Connection,
    bytes: AtomicUsize,
}

impl Held {
    /// So many more.
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.connection.share.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        let clients = &self.connection.clients;
        if clients.held_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > clients.held_bytes_max {
            clients.shed();
        }
    }

    /// How many.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.connection.clients.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.connection.share.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.connection.share.room.notify_waiters();
    }
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
        self.speaks();
    }

    /// It asks for something, so it is no longer the one that makes room.
    pub(crate) fn speaks(&self) {
        self.share.has_spoken.store(true, Ordering::Release);
    }

    /// Cancelled when the connection is to end, and when it has ended.
    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.share.cut
    }

    /// A place for an answer that streams, of this connection's own.
    pub(crate) async fn stream(&self) -> Option<OwnedSemaphorePermit> {
        self.share.streams.clone().acquire_owned().await.ok()
    }

    /// Counts bytes that are on their way.
    pub(crate) fn hold(&self, bytes: usize) -> Held {
        let held = Held { connection: self.clone(), bytes: AtomicUsize::new(0) };
        held.add(bytes);
        held
    }

    /// Waits until this connection has taken what it asked for before, up to an eighth of what all may have on their way. A client that reads
    /// slowly waits for itself.
    pub(crate) async fn room(&self) {
        loop {
            let mut freed = std::pin::pin!(self.share.room.notified());
            freed.as_mut().enable();
            if self.share.held_bytes.load(Ordering::Relaxed) <= self.clients.held_bytes_max / 8 {
                return;
            }
            freed.await;
        }
    }

    /// Whether the client has shaken hands.
    pub(crate) fn is_introduced(&self) -> bool {
        self.share.has_spoken.load(Ordering::Acquire)
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
        // Whatever watches over the connection ends with it.
        self.connection.share.cut.cancel();
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
        let clients = Clients::new(1000, 1);
        let enter = |socket| clients.enter(socket, PEER, 1, CancellationToken::new());
        let first = enter(Socket::Data).unwrap();
        first.connection().speaks();
        assert!(enter(Socket::Data).is_none());
        assert!(enter(Socket::Admin).is_some());
        drop(first);
        assert!(enter(Socket::Data).is_some());
    }

    #[test]
    fn the_oldest_that_asked_for_nothing_makes_room() {
        let clients = Clients::new(1000, 1);
        let enter = || clients.enter(Socket::Data, PEER, 3, CancellationToken::new());
        let there: Vec<_> = (0..3).map(|_| enter().unwrap()).collect();
        there[0].connection().speaks();
        let newcomer = enter().unwrap();
        let is_cut = |presence: &Presence| presence.connection().cut().is_cancelled();
        assert_eq!(there.iter().map(is_cut).collect::<Vec<_>>(), [false, true, false]);
        assert!(!is_cut(&newcomer));
    }

    #[test]
    fn who_holds_most_goes_when_all_hold_too_much() {
        let clients = Clients::new(1000, 1);
        let enter = || clients.enter(Socket::Data, PEER, 9, CancellationToken::new()).unwrap();
        let (greedy, modest) = (enter(), enter());
        let most = greedy.connection().hold(600);
        let some = modest.connection().hold(400);
        assert!(!greedy.connection().cut().is_cancelled());
        some.add(1);
        assert!(greedy.connection().cut().is_cancelled() && !modest.connection().cut().is_cancelled());
        // What the one that goes still holds is no reason to cut the next one.
        some.add(1);
        assert!(!modest.connection().cut().is_cancelled());
        drop((most, some));
        assert_eq!(clients.held_bytes(), 0);
    }

    #[tokio::test]
    async fn a_client_that_does_not_take_its_answers_waits_for_itself() {
        let clients = Clients::new(800, 1);
        let presence = clients.enter(Socket::Data, PEER, 9, CancellationToken::new()).unwrap();
        presence.connection().room().await;
        let held = presence.connection().hold(101);
        let waiting = tokio::spawn({
            let connection = presence.connection();
            async move { connection.room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn idle_begins_anew_with_each_connection() {
        let clients = Clients::new(1000, 1);
        let limit = Duration::from_millis(20);
        let begin = Instant::now();
        let presence = clients.enter(Socket::Data, PEER, 9, CancellationToken::new()).unwrap();
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
        let clients = Clients::new(1000, 1);
        let presence = clients.enter(Socket::Data, PEER, 9, CancellationToken::new()).unwrap();
        assert!(!presence.connection().is_introduced() && !clients.list()[0].is_kubo());
        presence.connection().introduce(Introduction { name: "plugin".into(), role: "root".into() });
        assert!(presence.connection().is_introduced() && clients.list()[0].is_kubo());
        drop(presence);
        assert!(clients.list().is_empty());
    }
}
