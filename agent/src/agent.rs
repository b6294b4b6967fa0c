//! `basalt agent`: hosts a node in the foreground until it is told to stop, asked to hand over, or idle.
//!
//! Exactly one process owns a node. An agent that finds the lock taken looks who has it: an autostarted agent is asked to hand over; anybody
//! else stays, and the error names their pid. Of two autostarted agents that race, one serves, and the other ends well once that one answers.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use basalt_blockstore::{Error, ErrorKind};
use basalt_node::{Config as NodeConfig, Host, Node, NodeFile, Server, client, lock::OwnerLock, sockets::Paths};
use basalt_proto::v1::{HandOverRequest, StatusRequest, StatusResponse};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};

use crate::{
    access::require_node,
    cli::{Agent, ConfigSource},
    config::{Loaded, TABLES},
    dataset,
    exit::{Failure, Outcome},
    http::{self, Observed},
    ledger::Hosted,
    logging::{self, LevelHandle},
    metrics,
    notify::Notifier,
    say::tell,
    watch,
    worker::HostedWorker,
};

/// How often a lock is tried again.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// Time that a stop may take beyond the drain, as systemd is told: closing flushes what is in memory.
const CLOSE_MARGIN: Duration = Duration::from_secs(60);

/// Serves a node.
pub async fn agent(node: &Path, options: &Agent) -> Outcome {
    // First of all: a restore that was killed may have left no node here.
    let folder = node.to_path_buf();
    let settled = tokio::task::spawn_blocking(move || crate::snapshot::at_start(&folder)).await.unwrap_or_default();
    let file = require_node(node).inspect_err(|_| settled.iter().for_each(|line| tell!("basalt: {line}")))?;
    let loaded = Loaded::load(node, &options.config)?;
    let level = begin_log(node, &file, options, &loaded)?;
    settled.iter().for_each(|line| tracing::warn!("{line}"));
    raise_open_files();
    // From here on, what ends the agent is in its log as well.
    let outcome = serve(node, options, loaded, level).await;
    if let Err(failure) = &outcome {
        tracing::error!(node_id = %file.node_id, "{}", failure.message);
    }
    outcome
}

/// An agent that a plugin started logs to a file: in the node's run folder, or beside its sockets where that is read-only. One that can
/// write neither serves all the same.
fn begin_log(node: &Path, file: &NodeFile, options: &Agent, loaded: &Loaded) -> Outcome<LevelHandle> {
    let config = &loaded.agent;
    if options.exit_when_idle {
        let beside = Paths::to_serve(node, &file.node_id, &loaded.node.sockets).ok();
        let beside = beside.as_ref().and_then(|paths| paths.data.parent()).map(Path::to_path_buf);
        for dir in [Some(node.join("run")), beside].into_iter().flatten() {
            let log = dir.join("agent.log");
            if std::fs::create_dir_all(&dir).is_ok()
                && let Ok(level) =
                    logging::begin(&config.log_level, config.log_json, Some((&log, config.log_file_bytes_max)))
            {
                return Ok(level);
            }
        }
    }
    logging::begin(&config.log_level, config.log_json, None)
}

/// Takes as many open files as the system allows: the soft limit of most shells and units is for programs that use select(2).
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(err) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%err, soft, hard, "can't raise the limit of open files");
    }
}

async fn serve(path: &Path, options: &Agent, loaded: Loaded, level: LevelHandle) -> Outcome {
    let notifier = Notifier::from_environment();
    // Before the node is open: a signal during a long recovery must not kill it in the middle of a write.
    let mut signals = Signals::install()?;
    let host = if options.exit_when_idle { Host::AgentAutostarted } else { Host::Agent };
    let folder = path.to_path_buf();
    let looked = tokio::task::spawn_blocking(move || dataset::at_start(&folder));
    if looked.await.is_err() {
        tracing::error!("looking at the node's datasets panicked");
    }
    // One that Kubo started serves no metrics, and ends soon.
    let watch = (!options.exit_when_idle).then(|| watch::watch(path));
    let node = tokio::select! {
        node = obtain(path, &loaded, host) => node?,
        name = signals.stop() => {
            tracing::info!("{name} while waiting for the node: ending");
            return Ok(());
        }
    };
    let Some(node) = node else {
        tracing::info!("another agent serves this node already: ending");
        return Ok(());
    };
    if let Some(watch) = &watch {
        watch.serve(&node);
    }
    let (folder, is_read_only) = (path.to_path_buf(), node.is_read_only());
    let strangers = tokio::task::spawn_blocking(move || match is_read_only {
        true => Vec::new(),
        false => crate::snapshot::lineage::at_open(&folder),
    })
    .await;
    strangers.unwrap_or_default().iter().for_each(|line| tracing::error!("{line}"));
    let server = match Server::start(&node) {
        Ok(server) => server,
        Err(err) => {
            close(node).await?;
            return Err(err.into());
        }
    };
    // In the background: neither Kubo nor its blocks wait for a ledger.
    let mut plane = JoinSet::new();
    let ledger = match options.exit_when_idle || node.is_read_only() {
        true => None,
        false => Hosted::begin(path, &loaded.agent.plane, &mut plane),
    };
    if let Some(ledger) = &ledger
        && let Err(failure) = ledger.listen(server.paths(), &mut plane)
    {
        tracing::error!("commands can't reach the ledger: {}", failure.message);
    }
    if let (Some(ledger), Some(kubo)) = (&ledger, &loaded.agent.plane.kubo) {
        ledger.register(Arc::clone(&node), kubo.clone(), &mut plane);
    }
    let worker = match (&ledger, &loaded.agent.plane.kubo) {
        (Some(ledger), Some(kubo)) => {
            let worker = HostedWorker::begin(path, kubo, &loaded.agent.worker, ledger);
            ledger.has_worker(&worker);
            Some(worker)
        }
        _ => None,
    };
    if let Some(address) = loaded.agent.http_listen.filter(|_| !options.exit_when_idle) {
        match http::bind(address).await {
            Ok(listener) => {
                let address = listener.local_addr().unwrap_or(address);
                tracing::info!(%address, "HTTP serves /metrics, /healthz and /readyz");
                tokio::spawn(http::serve(
                    listener,
                    Arc::new(Served { node: Arc::clone(&node), ledger: ledger.clone(), worker: worker.clone() }),
                ));
            }
            Err(failure) => {
                server.stop().await?;
                close(node).await?;
                return Err(failure);
            }
        }
    }
    let snapshots = {
        let (folder, config, id) = (path.to_path_buf(), loaded.agent.snapshots.clone(), node.id().to_string());
        let wanted = !options.exit_when_idle;
        tokio::spawn(async move {
            if wanted {
                crate::snapshot::schedule::run(&folder, &config, &id).await;
            }
        })
    };
    notifier.ready();
    let why = until_stop(&node, path, options, &loaded, &level, &notifier, &mut signals).await;
    snapshots.abort();
    notifier.stopping(&why);
    notifier.extend(loaded.node.drain_deadline + loaded.agent.worker.options.drain + CLOSE_MARGIN);
    if let Some(worker) = worker {
        worker.stop().await;
    }
    plane.shutdown().await;
    tracing::info!(why, "stopping");
    let mut stopping = std::pin::pin!(async {
        // Sockets first, so that nobody comes; then the stores.
        let stopped = server.stop().await;
        if !is_read_only {
            let folder = path.to_path_buf();
            // What it says is in the log.
            let _marked = tokio::task::spawn_blocking(move || crate::snapshot::lineage::at_close(&folder)).await;
        }
        let closed = close(Arc::clone(&node)).await;
        stopped?;
        closed
    });
    let begin = Instant::now();
    loop {
        tokio::select! {
            outcome = &mut stopping => {
                tracing::info!(stop_ms = begin.elapsed().as_millis() as u64, "stopped");
                return outcome;
            }
            name = signals.stop() => tracing::warn!(
                clients = node.clients().list().len(),
                waited_ms = begin.elapsed().as_millis() as u64,
                "{name} again: still waiting for requests under way (at most {} ms), then for what was acknowledged to be durable; SIGKILL \
                 loses nothing that was durable, and costs a recovery",
                loaded.node.drain_deadline.as_millis()
            ),
        }
    }
}

/// The node, open and locked; `None` where another agent serves it and this one is not needed.
async fn obtain(path: &Path, loaded: &Loaded, host: Host) -> Outcome<Option<Arc<Node>>> {
    let begin = Instant::now();
    let mut asked = false;
    loop {
        let (folder, config) = (path.to_path_buf(), loaded.node.clone());
        let opened = tokio::task::spawn_blocking(move || Node::open(&folder, config, host)).await;
        let locked = match opened.map_err(|err| Failure::new(format!("open node {}: {err}", path.display())))? {
            Ok(node) => return Ok(Some(node)),
            Err(err) if err.kind() == ErrorKind::Locked => err,
            Err(err) => return Err(err.into()),
        };
        // Who has it may be starting, closing, or a command that ends soon: look again until it answers or has gone.
        match owner(path, &loaded.node).await {
            Some(_) if host == Host::AgentAutostarted => return Ok(None),
            Some(status) if status.host != Host::AgentAutostarted.name() => return Err(held(path, &status)),
            Some(status) if !asked => {
                tracing::info!(pid = status.pid, "asking the agent that Kubo started to hand over");
                ask_to_hand_over(path, &loaded.node).await?;
                asked = true;
            }
            _ => {}
        }
        if begin.elapsed() >= loaded.agent.handover {
            let waited = loaded.agent.handover.as_millis();
            return Err(Error::new(ErrorKind::Locked, format!("{locked} (waited {waited} ms for it)")).into());
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

async fn owner(path: &Path, config: &NodeConfig) -> Option<StatusResponse> {
    OwnerLock::owner(path)?;
    let mut admin = client::admin(path, &config.sockets).await.ok()?;
    Some(admin.status(StatusRequest {}).await.ok()?.into_inner())
}

fn held(path: &Path, status: &StatusResponse) -> Failure {
    Failure::new(format!(
        "node {} is served by {} already, pid {}: use that one (`basalt status`), or stop it first",
        path.display(),
        status.host,
        status.pid
    ))
}

async fn ask_to_hand_over(path: &Path, config: &NodeConfig) -> Outcome {
    let by = format!("an operator's agent, pid {}", std::process::id());
    let mut admin = client::admin(path, &config.sockets).await?;
    match admin.hand_over(HandOverRequest { force: false, by }).await {
        Ok(_) => Ok(()),
        // It went while it was asked: that is what was wanted.
        Err(status) if client::error(&status).kind() == ErrorKind::Unavailable => Ok(()),
        Err(status) => Err(client::error(&status).into()),
    }
}

async fn close(node: Arc<Node>) -> Outcome {
    let closed = tokio::task::spawn_blocking(move || node.close()).await;
    closed.map_err(|err| Failure::new(format!("close the node: {err}")))?.map_err(Failure::from)
}

/// Waits for the first reason to stop, and does on the way what a running agent does.
async fn until_stop(
    node: &Node,
    path: &Path,
    options: &Agent,
    loaded: &Loaded,
    level: &LevelHandle,
    notifier: &Notifier,
    signals: &mut Signals,
) -> String {
    let mut current = loaded.clone();
    let mut watchdog = notifier.watchdog_every().map(tokio::time::interval);
    loop {
        let idle = async {
            match options.exit_when_idle {
                true => node.clients().idle_for(loaded.agent.idle_exit).await,
                false => std::future::pending().await,
            }
        };
        let tick = async {
            match &mut watchdog {
                Some(interval) => interval.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = signals.next() => match heard {
                Heard::Stop(name) => return format!("by {name}"),
                Heard::Reload => {
                    notifier.reloading();
                    reload(path, &options.config, &mut current, level);
                    notifier.ready();
                }
            },
            by = node.hand_over_requested() => return format!("handing over to {by}"),
            () = idle => return format!("idle for {} ms", loaded.agent.idle_exit.as_millis()),
            _ = tick => notifier.alive(),
        }
    }
}

/// Takes over what can change in a running agent, and says what can't.
fn reload(path: &Path, source: &ConfigSource, current: &mut Loaded, level: &LevelHandle) {
    let new = match Loaded::load(path, source) {
        Ok(new) => new,
        Err(failure) => {
            tracing::error!("SIGHUP: nothing was changed: {}", failure.message);
            return;
        }
    };
    let mut changed = 0;
    for setting in TABLES.iter().flat_map(|table| table.iter()) {
        let value = new.settings.get(setting.section, setting.key);
        if value == current.settings.get(setting.section, setting.key) {
            continue;
        }
        changed += 1;
        let value = value.map(ToString::to_string).unwrap_or_default();
        match setting.reload {
            true => tracing::info!("SIGHUP: [{}] {} is {value} now", setting.section, setting.key),
            false => tracing::warn!(
                "SIGHUP: [{}] {} = {value} needs a restart; until then the old value holds",
                setting.section,
                setting.key
            ),
        }
    }
    if changed == 0 {
        tracing::info!("SIGHUP: the config has not changed");
    }
    level.set(&new.agent.log_level);
    *current = new;
}

/// What a signal asks for.
enum Heard {
    /// To stop; the signal's name.
    Stop(&'static str),
    /// To read the config again.
    Reload,
}

/// The signals of an agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn install() -> Outcome<Signals> {
        let one = |kind| signal(kind).map_err(|err| Failure::io("install a signal handler", err));
        Ok(Signals {
            terminate: one(SignalKind::terminate())?,
            interrupt: one(SignalKind::interrupt())?,
            hang_up: one(SignalKind::hangup())?,
        })
    }

    /// The next one.
    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Heard::Stop("SIGINT"),
            _ = self.hang_up.recv() => Heard::Reload,
        }
    }

    /// The next one that asks to stop.
    async fn stop(&mut self) -> &'static str {
        loop {
            if let Heard::Stop(name) = self.next().await {
                return name;
            }
        }
    }
}

/// A served node as HTTP shows it.
struct Served {
    node: Arc<Node>,
    ledger: Option<Arc<Hosted>>,
    worker: Option<Arc<HostedWorker>>,
}

impl Served {
    /// Asking for free space can hang on a suspended pool, so it has a thread of its own and a bounded time.
    async fn status(&self) -> Result<StatusResponse, String> {
        let node = Arc::clone(&self.node);
        let asked = tokio::task::spawn_blocking(move || node.status());
        match tokio::time::timeout(Duration::from_secs(5), asked).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(err)) => Err(format!("the node's status failed: {err}")),
            Err(_) => Err("the node's status takes longer than 5 s: a file system does not answer".into()),
        }
    }
}

impl Observed for Served {
    async fn metrics(&self) -> Result<String, String> {
        if let Some(ledger) = &self.ledger {
            // It sets the gauges of the plane.
            ledger.view().await;
        }
        metrics::text(&self.status().await?, &self.node.calls().snapshot()).map_err(|err| err.to_string())
    }

    async fn degraded(&self) -> Vec<String> {
        let ledger = match &self.ledger {
            Some(ledger) => ledger.degraded().await,
            None => Vec::new(),
        };
        let worker = self.worker.iter().flat_map(|worker| worker.degraded());
        ledger.into_iter().chain(worker).collect()
    }

    async fn unready(&self) -> Vec<String> {
        let status = match self.status().await {
            Ok(status) => status,
            Err(why) => return vec![why],
        };
        let mut reasons = Vec::new();
        if !matches!(status.state.as_str(), "serving" | "read-only") {
            reasons.push(format!("the node is {}", status.state));
        }
        let fenced = status.shards.iter().filter(|shard| shard.state != "serving");
        reasons.extend(fenced.map(|shard| format!("shard {}: {}", shard.id, shard.state)));
        reasons
    }
}
