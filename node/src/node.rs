//! One open node: its stores, its lock, its background work, and what it says of itself.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use basalt_blockstore::{Error, ErrorKind, Multihash, Result, ground::Ground, store::Env};
use basalt_datastore::Datastore;
use basalt_proto::v1;
use tokio::sync::watch;

use crate::{
    calls::Calls,
    clients::Clients,
    config::{self, Config},
    ground, grpc,
    layout::{self, NodeFile, NodeId, State},
    lock::{Host, OwnerLock},
    mooring::Mooring,
    scrub::{self, Healer, Scrubber},
    sockets::Paths,
};

/// What is quarantined, in a status; all of it is listed by a call of its own.
const QUARANTINED_MAX: usize = 100;

/// One connection may have one in so many of the queries that may be under way.
const QUERIES_SHARE: usize = 4;

/// With fewer inodes than this a store may soon be unable to make a segment or an index file.
const INODES_MIN: u64 = 64;

/// Keys that one step of the sweep of expired keys looks at, so that it holds nobody up.
const SWEEP_KEYS: usize = 4096;

/// One open node. Shared behind an `Arc`; closed by [`Node::close`], which is a Sync. Dropping it without is a crash, which recovery mends.
#[derive(Debug)]
pub struct Node {
    path: PathBuf,
    file: NodeFile,
    config: Config,
    host: Host,
    datastore: Arc<Datastore>,
    ground: Arc<dyn Ground>,
    mooring: Mooring,
    incarnation: [u8; 16],
    opened: Instant,
    clients: Arc<Clients>,
    calls: Arc<Calls>,
    /// Bytes of the batches that clients are sending now.
    batch_bytes: AtomicUsize,
    sockets: Mutex<Option<Paths>>,
    hand_over: watch::Sender<Option<String>>,
    background: Mutex<Option<Background>>,
    /// None where the node was opened for reading only.
    scrubber: Option<Arc<Scrubber>>,
    lock: Mutex<Option<OwnerLock>>,
    is_closed: AtomicBool,
}

/// What a node holds on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocated {
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
}

impl Node {
    /// Opens the node of a folder for reading and writing, takes its lock and starts its background work. Recovers what a crash left.
    pub fn open(path: &Path, config: Config, host: Host) -> Result<Arc<Node>> {
        let path = absolute(path)?;
        // Before the lock, which makes a file: a folder that is no node stays as it was.
        NodeFile::read(&path)?;
        let lock = OwnerLock::take(&path, host)?;
        Node::open_as(path, config, host, Some(lock))
    }

    /// Opens the node of a folder for reading only, creating no file and taking no lock (STORE 23): a received dataset, a snapshot, a clone.
    pub fn open_read_only(path: &Path, config: Config, host: Host) -> Result<Arc<Node>> {
        Node::open_as(absolute(path)?, config, host, None)
    }

    fn open_as(path: PathBuf, config: Config, host: Host, lock: Option<OwnerLock>) -> Result<Arc<Node>> {
        let begin = Instant::now();
        let file = NodeFile::read(&path)?;
        if let Some(shards) = config.shards.filter(|shards| *shards != file.shards.len()) {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                format!(
                    "node {} was made with {} shards, and [node] shards in {} says {shards}: a node keeps its shards; correct the config",
                    path.display(),
                    file.shards.len(),
                    path.join(config::FILE_NAME).display()
                ),
            ));
        }
        let mooring = Mooring::look(&path, &file.node_id, file.mounts(&path))?;
        let layout = file.layout(&path)?;
        let options = config.datastore.clone();
        let dirs =
            layout.shards.iter().map(|(dir, _)| dir.as_path()).chain([layout.keyspace.as_path(), path.as_path()]);
        let ground = ground::under(dirs);
        let env = Env {
            ground: ground.clone(),
            disk: mooring.disk(),
            ..Env::with_index_memory(options.store.index_memory_bytes)
        };
        let opened = match lock {
            Some(_) => Datastore::open(&layout, &env, options),
            None => Datastore::open_read_only(&layout, &env, options),
        };
        let datastore =
            opened.map(Arc::new).map_err(|err| err.context(format_args!("open node {}", path.display())))?;
        let background = match lock {
            Some(_) => Some(Background::start(datastore.clone(), mooring.clone(), config.background_interval)?),
            None => None,
        };
        let scrubber = match lock {
            Some(_) => Some(Arc::new(Scrubber::start(datastore.clone(), config.scrub.clone(), file.node_id.as_str())?)),
            None => None,
        };
        let node = Node {
            scrubber,
            ground,
            mooring,
            incarnation: layout::random_bytes()?,
            opened: Instant::now(),
            clients: Clients::new(
                config.transfer_memory_bytes.max(4 * grpc::message_bytes_max(&config)),
                (config.queries_max / QUERIES_SHARE).max(1),
            ),
            calls: Arc::default(),
            batch_bytes: AtomicUsize::new(0),
            sockets: Mutex::default(),
            hand_over: watch::Sender::new(None),
            background: Mutex::new(background),
            lock: Mutex::new(lock),
            is_closed: AtomicBool::new(false),
            path,
            file,
            config,
            host,
            datastore,
        };
        tracing::info!(
            node_id = %node.file.node_id, path = %node.path.display(), host = %node.host, shards = node.file.shards.len(),
            durability = %node.config.datastore.durability, open_ms = begin.elapsed().as_millis() as u64,
            replayed = node.replayed(), "node opened"
        );
        Ok(Arc::new(node))
    }

    /// Its folder, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, made at init.
    pub fn id(&self) -> &NodeId {
        &self.file.node_id
    }

    /// What its operator chose.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What hosts it.
    pub fn host(&self) -> Host {
        self.host
    }

    /// Its data.
    pub fn datastore(&self) -> &Arc<Datastore> {
        &self.datastore
    }

    /// 16 random bytes, new at every open for writing (STORE 21).
    pub fn incarnation(&self) -> &[u8; 16] {
        &self.incarnation
    }

    /// Whether it takes data clients, as it was when it was opened.
    pub fn state(&self) -> State {
        self.file.state
    }

    /// Whether it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        lock(&self.lock).is_none() && !self.is_closed.load(Ordering::Acquire)
    }

    /// Who is connected.
    pub fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }

    /// What was asked of it, and how long that took.
    pub fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    pub(crate) fn batch_bytes(&self) -> &AtomicUsize {
        &self.batch_bytes
    }

    /// Where it is served, while it is.
    pub fn sockets(&self) -> Option<Paths> {
        lock(&self.sockets).clone()
    }

    pub(crate) fn set_sockets(&self, paths: Option<Paths>) {
        *lock(&self.sockets) = paths;
    }

    /// Waits until another owner has asked for the node, and says who; the host then stops serving and closes it.
    pub async fn hand_over_requested(&self) -> String {
        let mut requests = self.hand_over.subscribe();
        loop {
            let request = requests.borrow_and_update().clone();
            if let Some(by) = request {
                return by;
            }
            if requests.changed().await.is_err() {
                // The sender is in self, so this can't be; waiting is the answer to "nobody asked".
                std::future::pending::<()>().await;
            }
        }
    }

    pub(crate) fn request_hand_over(&self, by: String) {
        self.hand_over.send_replace(Some(by));
    }

    /// Whether a write that is submitted now may wait for a flush before it is even written, and so hold its thread.
    /// Records of its logs that the open had to replay: the tail since the last flush of the indexes.
    pub fn replayed(&self) -> u64 {
        let stats = self.datastore.stats();
        stats.shards.iter().chain([&stats.keyspace]).map(|stats| stats.replayed).sum()
    }

    pub(crate) fn writes_wait(&self) -> bool {
        self.datastore.writes_wait()
    }

    pub(crate) fn allocated(&self) -> Allocated {
        let stats = self.datastore.stats();
        let all = stats.shards.iter().chain([&stats.keyspace]);
        all.fold(Allocated { bytes: 0, segments: 0 }, |sum, stats| Allocated {
            bytes: sum.bytes + stats.allocated_bytes,
            segments: sum.segments + stats.segments,
        })
    }

    /// What the node says of itself. Asks the file systems for their free space, which may take a moment.
    pub fn status(&self) -> v1::StatusResponse {
        use v1::status_response::{Keyspace, Shard};
        let stats = self.datastore.stats();
        let allocated = self.allocated();
        let sockets = self.sockets();
        let path = |path: Option<&Path>| path.map_or_else(String::new, |path| path.display().to_string());
        let stores: Vec<_> = self.datastore.shards().iter().map(|shard| shard.store().fenced()).collect();
        let shards = self.file.shards.iter().zip(&stats.shards).zip(&stores).enumerate().map(
            |(id, ((place, stats), fenced))| {
                let dir = self.path.join(&place.path);
                Shard {
                    id: u32::try_from(id).unwrap_or(u32::MAX),
                    available_bytes: available_bytes(&dir),
                    path: dir.display().to_string(),
                    blocks: stats.count,
                    bytes: stats.bytes,
                    allocated_bytes: stats.allocated_bytes,
                    segments: stats.segments,
                    dead_bytes: stats.dead_bytes,
                    unflushed_bytes: stats.unflushed_bytes,
                    quarantined: stats.quarantined,
                    state: fenced.as_ref().map_or_else(|| "serving".to_owned(), |why| format!("fenced: {why}")),
                }
            },
        );
        let shards: Vec<_> = shards.collect();
        let keyspace_fenced = self.datastore.keyspace().fenced();
        let is_fenced = keyspace_fenced.is_some() || stores.iter().any(Option::is_some);
        let state = match self.file.state {
            _ if self.is_closed.load(Ordering::Acquire) => "closing",
            _ if is_fenced => "fenced",
            State::Migrating => "migrating",
            State::Ready if self.is_read_only() => "read-only",
            State::Ready => "serving",
        };
        v1::StatusResponse {
            node_id: self.file.node_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: u64::from(std::process::id()),
            host: self.host.name().to_owned(),
            durability: self.config.datastore.durability.name().to_owned(),
            incarnation: bytes::Bytes::copy_from_slice(&self.incarnation),
            state: state.to_owned(),
            uptime_ms: u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX),
            conditions: self.conditions(&shards, &stats, keyspace_fenced.as_ref()),
            blocks: shards.iter().map(|shard| shard.blocks).sum(),
            block_bytes: shards.iter().map(|shard| shard.bytes).sum(),
            shards,
            keyspace: Some(Keyspace {
                keys: stats.keyspace.count,
                bytes: stats.keyspace.bytes,
                allocated_bytes: stats.keyspace.allocated_bytes,
                segments: stats.keyspace.segments,
                dead_bytes: stats.keyspace.dead_bytes,
                quarantined: stats.keyspace.quarantined,
            }),
            scrub: Some(self.scrub_status()),
            quarantined: self.first_quarantined(),
            clients: grpc::clients(self.clients.list()),
            disk_usage_bytes: self.datastore.disk_usage(),
            allocated_bytes: allocated.bytes,
            data_socket: path(sockets.as_ref().map(|paths| paths.data.as_path())),
            admin_socket: path(sockets.as_ref().map(|paths| paths.admin.as_path())),
            path: self.path.display().to_string(),
        }
    }

    /// Names who may have other copies of damaged blocks; asked at the end of each pass of the scrub. Nobody, where the node is for reading only.
    pub fn set_healer(&self, healer: Arc<dyn Healer>) {
        if let Some(scrubber) = &self.scrubber {
            scrubber.set_healer(healer);
        }
    }

    /// Offers bytes for a quarantined block; `false` where it is not quarantined. They are hashed before they replace anything, and are durable
    /// on return.
    pub fn heal(&self, block: &Multihash, candidate: &[u8]) -> Result<bool> {
        self.datastore.shards().heal(block, candidate)
    }

    /// Checks what stands in a part of one of the node's files, which a disk or pool has named as damaged; what is damaged is quarantined when it returns.
    /// An answer without a store: the file is no segment of this node's (any more).
    pub fn check_part(&self, request: &v1::CheckPartRequest) -> Result<v1::CheckPartResponse> {
        // Also tells a node that is open for reading only.
        self.scrubber()?;
        let path = Path::new(&request.path);
        let resolved = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let (Some(folder), Some(file)) = (path.parent().map(resolved), path.file_name().and_then(|name| name.to_str()))
        else {
            return Ok(v1::CheckPartResponse::default());
        };
        let Some((name, store)) = scrub::stores(&self.datastore).find(|(_, store)| resolved(store.dir()) == folder)
        else {
            return Ok(v1::CheckPartResponse::default());
        };
        let end = if request.end == 0 { u64::MAX } else { request.end };
        let Some(checked) = store.check_part(file, request.start..end, request.persists)? else {
            return Ok(v1::CheckPartResponse::default());
        };
        let damaged = checked.quarantined.iter().map(|(key, rot)| grpc::damaged_key(&name, key, *rot));
        Ok(v1::CheckPartResponse {
            damaged: damaged.collect(),
            store: name,
            bytes: checked.bytes,
            records: checked.records,
            rescued: checked.rescued,
            unreadable: checked.unreadable,
        })
    }

    /// Does what an operator asks of the scrub, and says how it is then.
    pub fn control_scrub(&self, request: &v1::ControlScrubRequest) -> Result<v1::ScrubStatus> {
        if request.action() != v1::control_scrub_request::Action::Unspecified {
            self.scrubber()?.control(request)?;
        }
        Ok(self.scrub_status())
    }

    fn scrubber(&self) -> Result<&Scrubber> {
        self.scrubber.as_deref().ok_or_else(|| {
            let message = format!("node {} is open for reading only: nothing is scrubbed", self.path.display());
            Error::new(ErrorKind::ReadOnly, message)
        })
    }

    fn scrub_status(&self) -> v1::ScrubStatus {
        match &self.scrubber {
            Some(scrubber) => scrubber.status(),
            None => v1::ScrubStatus { state: "read-only".to_owned(), ..Default::default() },
        }
    }

    /// The first of what is quarantined, for status and metrics.
    fn first_quarantined(&self) -> Vec<v1::Quarantined> {
        let mut first: Vec<v1::Quarantined> = Vec::new();
        for (name, store) in scrub::stores(&self.datastore) {
            match store.quarantined(None, QUARANTINED_MAX - first.len()) {
                Ok(page) => first.extend(page.into_iter().map(|one| grpc::quarantined(&name, one))),
                Err(err) => tracing::warn!(store = name, %err, "what is quarantined could not be listed"),
            }
        }
        first
    }

    /// What an operator should know and can do something about.
    fn conditions(
        &self,
        shards: &[v1::status_response::Shard],
        stats: &basalt_datastore::DatastoreStats,
        keyspace_fenced: Option<&Error>,
    ) -> Vec<v1::status_response::Condition> {
        let condition = |name: &str, severity: &str, message: String, remedy: &str| v1::status_response::Condition {
            name: name.to_owned(),
            severity: severity.to_owned(),
            message,
            remedy: remedy.to_owned(),
        };
        let mut conditions = Vec::new();
        let reopen = "look at the disk, then restart the agent: it recovers at open";
        if let Some(why) = keyspace_fenced {
            conditions.push(condition("fenced", "critical", format!("the keyspace takes no writes: {why}"), reopen));
        }
        for folder in self.mooring.adrift() {
            conditions.push(condition(
                "unmounted",
                "critical",
                format!(
                    "{} was unmounted under the node: files that are open are still read and written, no new one is made, and nothing goes into the bare \
                     folder below",
                    folder.display()
                ),
                "mount it again (`basalt dataset apply`, `zfs mount -a`), then restart the agent",
            ));
        }
        for shard in shards {
            if let Some(why) = shard.state.strip_prefix("fenced: ") {
                conditions.push(condition(
                    "fenced",
                    "critical",
                    format!("shard {} takes no writes: {why}", shard.id),
                    reopen,
                ));
            }
            let reserve = self.config.datastore.store.reserve_bytes;
            let spare = shard.available_bytes.saturating_sub(reserve);
            // The largest value that may come must fit beside the reserve, or some puts are refused already.
            if spare < self.config.datastore.store.value_bytes_max as u64 {
                let held = self.ground.held_by_snapshots().map_or_else(String::new, |held| format!("; {held}"));
                let message = format!(
                    "shard {} has {} free, of which {} are kept for deletes: puts of more than {} are refused{held}",
                    shard.id,
                    config::display_bytes(shard.available_bytes),
                    config::display_bytes(reserve),
                    config::display_bytes(spare)
                );
                conditions.push(condition(
                    "no-space",
                    if spare == 0 { "critical" } else { "warning" },
                    message,
                    "free space: `ipfs repo gc`, older snapshots, a larger quota",
                ));
            }
            if let Some(left) = inodes_left(Path::new(&shard.path)).filter(|left| *left < INODES_MIN) {
                conditions.push(condition(
                    "no-inodes",
                    if left == 0 { "critical" } else { "warning" },
                    format!(
                        "the file system of shard {} has {left} inodes left: its log and index can't make files",
                        shard.id
                    ),
                    "remove small files there, or make the file system anew with more inodes",
                ));
            }
        }
        let quarantined: u64 = stats.shards.iter().chain([&stats.keyspace]).map(|stats| stats.quarantined).sum();
        if quarantined > 0 {
            let message = format!("{quarantined} damaged keys are quarantined");
            conditions.push(condition(
                "damaged",
                "warning",
                message,
                "`basalt verify --quarantined` names them; let Kubo fetch them again (`ipfs block get CID`), or put them from a replica or backup",
            ));
        }
        if self.file.state == State::Migrating {
            let message =
                "a migration that has not completed fills this node; only basalt-migrate is served".to_owned();
            conditions.push(condition(
                "migrating",
                "warning",
                message,
                "run basalt-migrate again to complete it, or with --rollback",
            ));
        }
        conditions
    }

    /// Makes everything durable, closes the stores and lets go of the lock; later calls of the datastore are `Closed`. The host stops
    /// serving first. The first failure is reported; the lock is let go of in any case but one: where a disk does not answer for twice
    /// `flush_deadline` this returns `Unavailable`, and the lock stays with this process, whose calls are still out.
    pub fn close(&self) -> Result<()> {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let (done, closed) = mpsc::channel();
        let (background, scrubber) = (lock(&self.background).take(), self.scrubber.clone());
        let datastore = self.datastore.clone();
        let close = move || {
            if let Some(background) = background {
                background.stop();
            }
            if let Some(scrubber) = scrubber {
                scrubber.end();
            }
            // Nobody listens any more where the disk came back too late.
            let _ = done.send(datastore.close());
        };
        std::thread::Builder::new()
            .name("basalt-close".to_owned())
            .spawn(close)
            .map_err(|err| Error::io("start the thread that closes the node", err))?;
        let deadline = self.config.datastore.store.flush_deadline * 2;
        let closed = closed.recv_timeout(deadline).map_err(|_| {
            Error::new(
                ErrorKind::Unavailable,
                format!(
                    "a disk has not answered in {} s: left without closing. End this process and look at the disk or pool; the next open \
                     recovers everything that was durable",
                    deadline.as_secs()
                ),
            )
        });
        if closed.is_ok()
            && let Some(owner) = lock(&self.lock).take()
        {
            owner.release();
        }
        let closed = closed.flatten().map_err(|err| err.context(format_args!("close node {}", self.path.display())));
        match &closed {
            Ok(()) => tracing::info!(node_id = %self.file.node_id, "node closed"),
            Err(err) => tracing::error!(node_id = %self.file.node_id, %err, "node closed with an error"),
        }
        closed
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(scrubber) = &self.scrubber {
            scrubber.end();
        }
        if let Some(background) = lock(&self.background).take() {
            background.stop();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|err| Error::io(format!("node folder {}", path.display()), err))
}

fn available_bytes(dir: &Path) -> u64 {
    nix::sys::statvfs::statvfs(dir).map_or(0, |stats| stats.blocks_available().saturating_mul(stats.fragment_size()))
}

/// How many more files can be made; `None` where the file system has no such bound.
fn inodes_left(dir: &Path) -> Option<u64> {
    let stats = nix::sys::statvfs::statvfs(dir).ok()?;
    (stats.files() > 0).then(|| stats.files_available())
}

/// The thread that sweeps expired keys and gives space back now and then.
#[derive(Debug)]
struct Background {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Background {
    fn start(datastore: Arc<Datastore>, mooring: Mooring, interval: Duration) -> Result<Background> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("basalt-background".to_owned())
            .spawn(move || {
                let mut known = Vec::new();
                while !wait(&stopped, interval) {
                    let adrift = mooring.adrift();
                    for folder in adrift.iter().filter(|folder| !known.contains(*folder)) {
                        tracing::error!(
                            folder = %folder.display(),
                            "unmounted under the node: nothing new is made there until it is mounted again and the agent restarted"
                        );
                    }
                    known = adrift;
                    pass(&datastore);
                }
            })
            .map_err(|err| Error::io("start the thread of background work", err))?;
        Ok(Background { stop, thread })
    }

    fn stop(self) {
        *lock(&self.stop.0) = true;
        self.stop.1.notify_all();
        // A pass that panicked has said so already.
        let _ = self.thread.join();
    }
}

/// Waits for the interval; whether to stop.
fn wait(stop: &(Mutex<bool>, Condvar), interval: Duration) -> bool {
    let waited = stop.1.wait_timeout_while(lock(&stop.0), interval, |stop| !*stop);
    *waited.unwrap_or_else(PoisonError::into_inner).0
}

fn pass(datastore: &Datastore) {
    if let Err(err) = datastore.sweep_expired(SWEEP_KEYS).and_then(|_| datastore.collect_garbage()) {
        tracing::warn!(%err, "background work failed; it is tried again at the next pass");
    }
}
