//! The node's ledger, as the agent hosts it and as commands reach it.
//!
//! The agent has it open once and gives one handle to whatever needs it. Nothing waits for it: it is opened in the background, again and again where
//! that fails, and until then whoever asks is told why it is not there. Kubo and its blocks know nothing of it.
//!
//! The embedded one is opened as it is. Before the one of `[cql]` stands a journal in the node's folder, so that what this node tells is kept while the
//! database is away.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use basalt_node::Node;
use basalt_node::sockets::{PATH_BYTES_MAX, Paths};
use basalt_stateplane::{
    Buffered, Class, Clock, Deferred, Embedded, Error, Journal, Multihash, PinLedger, Result, Standing, Waiting,
    cql::CqlLedger,
    metrics,
    socket::{FILE_NAME, Host, Remote, serve},
};
use serde_json::{Value, json};
use tokio::{net::UnixListener, task::JoinSet};

use crate::{
    access::require_node,
    cli::ConfigSource,
    config::Loaded,
    exit::{Failure, Outcome},
    plane::{Engine, KuboConfig, PlaneConfig, failure},
    progress::duration,
    registrar::Registrar,
    worker::HostedWorker,
};

/// Pauses between tries to open the ledger.
const OPEN_AGAIN: Duration = Duration::from_millis(500);
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(30);
/// How often what waits is delivered, and a ledger that nobody asked is.
const DELIVER_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A ledger that is hosted.
#[derive(Debug)]
pub struct Hosted {
    folder: PathBuf,
    config: PlaneConfig,
    /// What users are given.
    ledger: Arc<Deferred>,
    /// The database behind the journal.
    database: Arc<Deferred>,
    buffered: OnceLock<Buffered>,
    clock: Arc<Clock>,
    registrar: OnceLock<Arc<Registrar>>,
    worker: OnceLock<Arc<HostedWorker>>,
    began: Instant,
}

/// How it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// `embedded` or `cql`.
    pub engine: &'static str,
    /// `open`; `opening`: it has not been reached yet; `away`: it does not answer.
    pub state: &'static str,
    /// Why it is not open.
    pub why: Option<String>,
    /// How old what it shows may be, in milliseconds.
    pub age_ms: u64,
    /// What waits for it.
    pub waiting: Waiting,
}

impl Hosted {
    /// Begins to open the ledger of a node; `None`: it has none. What runs in the background ends when `tasks` does.
    pub fn begin(node: &Path, config: &PlaneConfig, tasks: &mut JoinSet<()>) -> Option<Arc<Hosted>> {
        let engine = match config.engine {
            Engine::Embedded => "embedded",
            Engine::Cql => "journal",
            Engine::None => return None,
        };
        let hosted = Arc::new(Hosted {
            folder: folder(node),
            config: config.clone(),
            ledger: Arc::new(Deferred::new(engine)),
            database: Arc::new(Deferred::behind("cql")),
            buffered: OnceLock::new(),
            clock: Arc::new(Clock::new()),
            registrar: OnceLock::new(),
            worker: OnceLock::new(),
            began: Instant::now(),
        });
        let opened = Arc::clone(&hosted);
        tasks.spawn(async move { opened.run().await });
        Some(hosted)
    }

    /// The ledger; until it is open, all that is asked of it fails as `Unavailable`.
    pub fn ledger(&self) -> Arc<dyn PinLedger> {
        Arc::clone(&self.ledger) as _
    }

    /// The plane's folder in the node's.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Begins to register what a Kubo holds.
    pub fn register(self: &Arc<Hosted>, node: Arc<Node>, kubo: KuboConfig, tasks: &mut JoinSet<()>) {
        let registrar = Registrar::new(node, Arc::clone(self), kubo, self.config.registering);
        let _ = self.registrar.set(Arc::clone(&registrar));
        tasks.spawn(registrar.run());
    }

    /// Why the plane is not as it should be. The node serves all the same.
    pub async fn degraded(&self) -> Vec<String> {
        let ledger = self.view().await.degraded();
        ledger.into_iter().chain(self.registrar.get().and_then(|registrar| registrar.degraded())).collect()
    }

    /// The one maker of generations of this process.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// From now on commands can ask how this worker is.
    pub fn has_worker(&self, worker: &Arc<HostedWorker>) {
        let _ = self.worker.set(Arc::clone(worker));
    }

    async fn run(&self) {
        let mut pause = OPEN_AGAIN;
        loop {
            let (folder, config) = (self.folder.clone(), self.config.clone());
            let opened = tokio::task::spawn_blocking(move || open_local(&folder, &config)).await;
            let opened = opened.unwrap_or_else(|err| {
                Err(Error::new("open the ledger", Class::Unavailable, format!("its task ended: {err}")))
            });
            match opened {
                Ok(Local::Embedded(ledger)) => {
                    tracing::info!(folder = %self.folder.display(), "the ledger is open");
                    return self.ledger.open(Arc::new(ledger));
                }
                Ok(Local::Journal(journal)) => {
                    let buffered = Buffered::new(Arc::clone(&self.database) as _, journal);
                    self.ledger.open(Arc::new(buffered.clone()));
                    let _ = self.buffered.set(buffered.clone());
                    return self.keep(&buffered).await;
                }
                Err(err) => {
                    tracing::warn!(%err, "the ledger can't be opened yet");
                    self.ledger.refuse(err);
                }
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(OPEN_AGAIN_MAX);
        }
    }

    /// Connects to the database, and delivers what waits for it whenever it is there.
    async fn keep(&self, buffered: &Buffered) {
        let mut pause = OPEN_AGAIN;
        loop {
            match self.connect().await {
                Ok(ledger) => {
                    tracing::info!(dialect = ?ledger.dialect(), "connected to the ledger");
                    self.database.open(Arc::new(ledger));
                    break;
                }
                Err(err) => {
                    // Once is enough, unless the reason changes.
                    if self.database.refused().as_ref() != Some(&err) {
                        tracing::warn!(%err, "the ledger can't be reached; changes wait in the journal");
                    }
                    self.database.refuse(err);
                }
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(OPEN_AGAIN_MAX);
        }
        let mut looked = Instant::now();
        loop {
            match buffered.deliver().await {
                Ok(done) if done.delivered + done.buried > 0 => {
                    tracing::info!(
                        delivered = done.delivered,
                        buried = done.buried,
                        "delivered what waited for the ledger"
                    );
                }
                Ok(_) => {}
                Err(err) => tracing::debug!(%err, "the ledger is away"),
            }
            if looked.elapsed() >= LOOK_EVERY {
                buffered.look().await;
                looked = Instant::now();
            }
            tokio::time::sleep(DELIVER_EVERY).await;
        }
    }

    async fn connect(&self) -> Result<CqlLedger> {
        let options =
            self.config.options().map_err(|err| Error::new("configure the ledger", Class::Config, err.message))?;
        CqlLedger::open(&options).await
    }

    /// How it is.
    pub async fn view(&self) -> View {
        let engine = if self.config.engine == Engine::Cql { "cql" } else { "embedded" };
        let uptime_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let told = |deferred: &Deferred| match deferred.refused() {
            Some(why) => ("away", Some(why.to_string()), uptime_ms),
            None => ("opening", None, uptime_ms),
        };
        if !self.ledger.is_open() {
            let (state, why, age_ms) = told(&self.ledger);
            return View { engine, state, why, age_ms, waiting: Waiting::default() };
        }
        let Some(buffered) = self.buffered.get() else {
            return View { engine, state: "open", why: None, age_ms: 0, waiting: Waiting::default() };
        };
        let now = now_ms();
        let standing = match buffered.standing().await {
            Ok(standing) => standing,
            Err(err) => {
                let why = Some(err.to_string());
                return View { engine, state: "away", why, age_ms: uptime_ms, waiting: Waiting::default() };
            }
        };
        let waiting = standing.waiting;
        if !self.database.is_open() {
            let (state, why, age_ms) = told(&self.database);
            metrics::standing(&Standing { away_since_ms: Some(now.saturating_sub(age_ms)), waiting }, now);
            return View { engine, state, why, age_ms, waiting };
        }
        metrics::standing(&standing, now);
        match standing.away_since_ms {
            Some(since) => View {
                engine,
                state: "away",
                why: buffered.away().map(|err| err.to_string()),
                age_ms: now.saturating_sub(since),
                waiting,
            },
            None => View { engine, state: "open", why: None, age_ms: 0, waiting },
        }
    }

    /// Listens for other processes of this host, beside the node's admin socket.
    pub fn listen(self: &Arc<Hosted>, sockets: &Paths, tasks: &mut JoinSet<()>) -> Outcome {
        let path = socket(sockets);
        let failed = |err| Failure::io(format!("listen on {}", path.display()), err);
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(Failure::new(format!("{} is longer than {PATH_BYTES_MAX} bytes", path.display())));
        }
        // The node's lock is ours, so who made a file that is there has gone.
        match std::fs::remove_file(&path) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(failed(err)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).map_err(failed)?;
        let host = Arc::clone(self);
        tasks.spawn(async move { serve(listener, host).await });
        Ok(())
    }
}

impl View {
    /// Why it is not as it should be; `None`: it is. The node serves all the same.
    pub fn degraded(&self) -> Option<String> {
        let mut parts = Vec::new();
        match self.state {
            "open" => {}
            state => {
                let why = self.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                parts.push(format!("the ledger is {state} for {}{why}", duration(self.age_ms)));
            }
        }
        if self.waiting.entries > 0 && self.state != "open" {
            parts.push(format!("{} changes wait for it", self.waiting.entries));
        }
        if self.waiting.buried > 0 {
            parts.push(format!("{} changes that no ledger takes were put aside", self.waiting.buried));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    fn object(&self) -> Value {
        json!({
            "engine": self.engine,
            "state": self.state,
            "why": self.why,
            "age_ms": self.age_ms,
            "waiting": self.waiting.entries,
            "waiting_bytes": self.waiting.bytes,
            "waiting_since_unix_ms": self.waiting.oldest_ms,
            "put_aside": self.waiting.buried,
        })
    }
}

#[async_trait]
impl Host for Hosted {
    fn ledger(&self) -> Arc<dyn PinLedger> {
        Hosted::ledger(self)
    }

    async fn standing(&self) -> String {
        let mut object = self.view().await.object();
        if let Some(registrar) = self.registrar.get() {
            object["registrar"] = registrar.object();
        }
        if let Some(worker) = self.worker.get() {
            object["worker"] = worker.object(None);
        }
        object.to_string()
    }

    async fn tell(&self, what: &str) -> Result<String> {
        if let (Some(about), Some(worker)) = (what.strip_prefix("worker "), self.worker.get()) {
            let bytes = data_encoding::BASE32_NOPAD.decode(about.as_bytes()).unwrap_or_default();
            return Ok(worker.object(Multihash::from_bytes(&bytes).ok().as_ref()).to_string());
        }
        Err(Error::new(format!("ask the plane: {what:.80}"), Class::Argument, "this agent does not know how"))
    }
}

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn folder(node: &Path) -> PathBuf {
    node.join("plane")
}

fn socket(sockets: &Paths) -> PathBuf {
    sockets.admin.with_file_name(FILE_NAME)
}

/// What is in the node's folder.
enum Local {
    Embedded(Embedded),
    Journal(Journal),
}

fn open_local(folder: &Path, config: &PlaneConfig) -> Result<Local> {
    std::fs::create_dir_all(folder).map_err(|err| {
        Error::new(format!("make the folder {}", folder.display()), Class::Unavailable, err.to_string())
    })?;
    match config.engine {
        Engine::Cql => Journal::open(&folder.join("journal"), &config.journal).map(Local::Journal),
        _ => Embedded::open(&folder.join("ledger"), &config.embedded()).map(Local::Embedded),
    }
}

/// A node's ledger for a command: through its agent where one runs, else from here.
pub async fn reach(node: &Path, config: &Loaded) -> Outcome<Arc<dyn PinLedger>> {
    if let Some(remote) = agents(node, config).await? {
        return Ok(Arc::new(remote));
    }
    let plane = &config.agent.plane;
    match plane.engine {
        Engine::None => Err(Failure::usage("this node has no ledger: [plane] engine is \"none\"")),
        Engine::Cql => Ok(Arc::new(CqlLedger::open(&plane.options()?).await.map_err(failure)?)),
        Engine::Embedded => {
            let (folder, plane) = (folder(node), plane.clone());
            let opened = tokio::task::spawn_blocking(move || open_local(&folder, &plane)).await;
            match opened.map_err(|err| Failure::new(format!("open the ledger: {err}")))?.map_err(failure)? {
                Local::Embedded(ledger) => Ok(Arc::new(ledger)),
                Local::Journal(_) => Err(Failure::new("the ledger is not embedded")),
            }
        }
    }
}

/// The ledger that the node's agent has open, if one runs.
pub async fn agents(node: &Path, config: &Loaded) -> Outcome<Option<Remote>> {
    let file = require_node(node)?;
    let path = socket(&Paths::to_connect(node, &file.node_id, &config.node.sockets));
    // A socket that nobody answers on is a dead agent's.
    Ok(Remote::connect(&path).await.ok())
}

/// For `basalt status`: how the agent's ledger is, in a line and as JSON.
pub async fn glance(node: &Path) -> Option<(String, Value)> {
    let config = {
        let config = std::env::var_os("BASALT_CONFIG").map(Into::into);
        Loaded::load(node, &ConfigSource { config, ..ConfigSource::default() }).ok()?
    };
    let told = agents(node, &config).await.ok()??.standing().await.ok()?;
    let told: Value = serde_json::from_str(&told).ok()?;
    let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| told[key].as_u64().unwrap_or_default();
    let mut line = format!("ledger {}, {}", text("engine"), text("state"));
    if text("state") != "open" {
        line += &format!(" for {}", duration(number("age_ms")));
    }
    if number("waiting") > 0 {
        line += &format!("; {} changes wait for it", number("waiting"));
    }
    if number("put_aside") > 0 {
        line += &format!("; {} changes that no ledger takes were put aside", number("put_aside"));
    }
    if let Some(why) = told["why"].as_str() {
        line += &format!("\n  {why}");
    }
    let registrar = &told["registrar"];
    if let Some(peer) = registrar["peer"].as_str() {
        line += &format!("\nregistered as {peer}; pins: {}", registrar["watch"].as_str().unwrap_or_default());
        if let Some(held) = registrar["scan"]["held"].as_u64() {
            let ago = registrar["scan"]["ago_ms"].as_u64().unwrap_or_default();
            line += &format!("; {held} held by Kubo's list {} ago", duration(ago));
        }
        if let Some(mismatching) = registrar["drift"]["mismatching"].as_u64() {
            let of = registrar["drift"]["placements"].as_u64().unwrap_or_default();
            line += &format!("\ndrift: {mismatching} of {of} placements");
        }
    }
    if let Some(why) = registrar["why"].as_str() {
        line += &format!("\n  not registered: {why}");
    }
    let worker = &told["worker"];
    if let Some(state) = worker["state"].as_str() {
        let (depth, running) = (worker["waiting_or_running"].as_u64(), worker["running"].as_u64());
        let (depth, running) = (depth.unwrap_or_default(), running.unwrap_or_default());
        line += &format!("\nworker {state}: {running} under way, {} wait here", depth.saturating_sub(running));
        for why in [&worker["kubo"], &worker["nats"]].into_iter().filter_map(Value::as_str) {
            line += &format!("\n  {why}");
        }
    }
    Some((line, told))
}
