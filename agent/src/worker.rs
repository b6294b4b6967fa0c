//! The node's worker, as the agent hosts it: its part of the config (`[nats]`, `[worker]`), its start once Kubo says who it is, its end.
//!
//! It runs where `[kubo] api` says which Kubo is the node's. Without `[nats] servers` it takes its work from the ledger alone.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use basalt_node::config::{ConfigError, Kind, Place, Problem, Setting, Settings, Value};
use basalt_stateplane::{Multihash, Peer};
use basalt_worker::{
    Bus, FileJournal, Kubo, Limits, Parts, Patience, Worker, WorkerOptions,
    nats::{Login, Nats, NatsError, NatsOptions},
};
use serde_json::{Value as Json, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    exit::{Exit, Failure, Outcome},
    ledger::Hosted,
    plane::KuboConfig,
};

const fn nats(key: &'static str, kind: Kind, default: fn() -> Value, about: &'static str) -> Setting {
    Setting { section: "nats", key, kind, default, reload: false, about }
}

const fn worker(key: &'static str, kind: Kind, default: fn() -> Value, about: &'static str) -> Setting {
    Setting { section: "worker", key, kind, default, reload: false, about }
}

fn none() -> Value {
    Value::Text(String::new())
}

fn milliseconds(duration: Duration) -> Value {
    Value::Integer(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// The worker's settings. Their defaults are those of the crate, so no number stands twice.
pub const SETTINGS: &[Setting] = &[
    nats(
        "servers",
        Kind::List,
        || Value::List(Vec::new()),
        "NATS servers with JetStream, as `nats://HOST:PORT` or `tls://HOST:PORT`; the others of a cluster are learnt from them. `[]`: none, and the worker \
         takes its work from the ledger alone.",
    ),
    nats(
        "user",
        Kind::Text,
        none,
        "User; `\"\"`: none. One way of saying who we are at most: this, `nkey_file` or `credentials_file`.",
    ),
    nats("password_file", Kind::Text, none, "File with the user's password and nothing else."),
    nats("nkey_file", Kind::Text, none, "File with the seed of a user's nkey (`SU...`)."),
    nats("credentials_file", Kind::Text, none, "File with a user's JWT and seed, as nsc writes it (`.creds`)."),
    nats(
        "tls_ca_file",
        Kind::Text,
        none,
        "PEM file of the authorities that the servers' certificates are signed by; with it, TLS is demanded. `\"\"`: none.",
    ),
    nats("tls_cert_file", Kind::Text, none, "PEM file of this node's own certificate, where the servers ask for one."),
    nats("tls_key_file", Kind::Text, none, "PEM file of the key of `tls_cert_file`."),
    nats(
        "connect_timeout_ms",
        Kind::Integer { min: 100, max: 600_000 },
        || milliseconds(NatsOptions::default().connect_timeout),
        "A connection that is not made by then is given up, and tried again later.",
    ),
    nats(
        "replicas",
        Kind::Integer { min: 1, max: 5 },
        || Value::Integer(NatsOptions::default().replicas as u64),
        "Copies of each stream, for whoever comes first and makes the streams. It changes none that is there.",
    ),
    worker(
        "concurrency",
        Kind::Integer { min: 1, max: 1024 },
        || Value::Integer(WorkerOptions::default().limits.running_max as u64),
        "Pins and unpins under way at a time.",
    ),
    worker(
        "owner_concurrency",
        Kind::Integer { min: 1, max: 1024 },
        || Value::Integer(WorkerOptions::default().limits.owner_running_max as u64),
        "The same, of one owner.",
    ),
    worker(
        "window",
        Kind::Integer { min: 1, max: 10_000 },
        || Value::Integer(WorkerOptions::default().limits.window as u64),
        "Work that waits here or is under way, half of it from NATS and half from the ledger; more stays there. Priorities and owners' limits are among these.",
    ),
    worker(
        "owner_window",
        Kind::Integer { min: 1, max: 10_000 },
        || Value::Integer(WorkerOptions::default().limits.owner_window as u64),
        "The same, of one owner. More of them go back to NATS for a while.",
    ),
    worker(
        "tries",
        Kind::Integer { min: 1, max: 1000 },
        || Value::Integer(u64::from(Patience::default().tries_max)),
        "Times that Kubo is asked before a piece of work is given up, with the reason in the ledger and in `pin.dlq`. Times when Kubo was away don't count.",
    ),
    worker(
        "retry_delay_ms",
        Kind::Integer { min: 10, max: 3_600_000 },
        || milliseconds(Patience::default().delay),
        "Pause before the second try; it doubles.",
    ),
    worker(
        "retry_delay_max_ms",
        Kind::Integer { min: 10, max: 86_400_000 },
        || milliseconds(Patience::default().delay_max),
        "Longest pause between tries.",
    ),
    worker(
        "stall_ms",
        Kind::Integer { min: 1000, max: 86_400_000 },
        || Value::Integer(600_000),
        "A pin that has got no further block for so long is given up for this time. There is no limit to how long a pin may take.",
    ),
    worker(
        "ack_wait_ms",
        Kind::Integer { min: 1000, max: 3_600_000 },
        || milliseconds(WorkerOptions::default().ack_wait),
        "NATS delivers an assignment again that it has not heard of for so long. The worker says three times as often that it still works.",
    ),
    worker(
        "ledger_interval_ms",
        Kind::Integer { min: 0, max: 86_400_000 },
        || Value::Integer(0),
        "Time between two looks through this node's placements in the ledger for what is not as wanted. 0: 5 s without NATS, 5 min with it.",
    ),
    worker(
        "drain_deadline_ms",
        Kind::Integer { min: 0, max: 600_000 },
        || milliseconds(WorkerOptions::default().drain),
        "How long pins under way may take to end when the agent stops; what is left then is done after the next start.",
    ),
];

/// `[nats]` and `[worker]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// How NATS is reached; none: not at all.
    pub nats: Option<NatsOptions>,
    /// How the worker works.
    pub options: WorkerOptions,
    /// A pin that stands still for so long is given up for this time.
    pub stall: Duration,
}

impl WorkerConfig {
    /// The typed form of checked settings; what no table can check is checked here, all of it at once.
    pub fn from_settings(settings: &Settings, path: &Path) -> Result<WorkerConfig, ConfigError> {
        let mut problems = Vec::new();
        let mut problem = |section: &str, key: &str, message: String, remedy: &str| {
            let place = settings.place(section, key).cloned().unwrap_or(Place::File);
            let message = format!("[{section}] {message}");
            problems.push(Problem { place, message, remedy: remedy.to_owned() });
        };
        let file = |key: &str| Some(settings.text("nats", key)).filter(|text| !text.is_empty()).map(PathBuf::from);
        let user = Some(settings.text("nats", "user")).filter(|user| !user.is_empty());
        let login = match (user, file("password_file"), file("nkey_file"), file("credentials_file")) {
            (None, None, None, None) => Login::None,
            (Some(user), Some(password), None, None) => Login::User(user.to_owned(), password),
            (None, None, Some(seed), None) => Login::Nkey(seed),
            (None, None, None, Some(credentials)) => Login::Credentials(credentials),
            (Some(_), None, None, None) | (None, Some(_), None, None) => {
                let message = "user and password_file: only one of them is set".to_owned();
                problem("nats", "user", message, "set both, or neither");
                Login::None
            }
            _ => {
                let message = "user, nkey_file and credentials_file: more than one of them is set".to_owned();
                problem("nats", "user", message, "say in one way who the node is");
                Login::None
            }
        };
        let client = match (file("tls_cert_file"), file("tls_key_file")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                let message = "tls_cert_file and tls_key_file: only one of them is set".to_owned();
                problem("nats", "tls_cert_file", message, "set both, or neither");
                None
            }
        };
        let number = |key: &str| usize::try_from(settings.integer("worker", key)).unwrap_or(usize::MAX);
        let ms = |key: &str| Duration::from_millis(settings.integer("worker", key));
        let limits = Limits {
            running_max: number("concurrency"),
            owner_running_max: number("owner_concurrency"),
            window: number("window"),
            owner_window: number("owner_window"),
        };
        if limits.window < limits.running_max {
            let message = format!("window: {} is less than concurrency, {}", limits.window, limits.running_max);
            problem("worker", "window", message, "make it some times as large");
        }
        let nats = NatsOptions {
            servers: settings.list("nats", "servers").to_vec(),
            login,
            ca_file: file("tls_ca_file"),
            client,
            connect_timeout: Duration::from_millis(settings.integer("nats", "connect_timeout_ms")),
            replicas: usize::try_from(settings.integer("nats", "replicas")).unwrap_or(1),
            // The other half is for work from the ledger.
            window: (limits.window / 2).max(1),
            ack_wait: ms("ack_wait_ms"),
        };
        for what in nats.problems() {
            let key = what.split(':').next().unwrap_or_default().to_owned();
            problem("nats", &key, what, "see [nats] in `basalt config reference`");
        }
        if !problems.is_empty() {
            return Err(ConfigError { path: path.to_owned(), problems });
        }
        let nats = Some(nats).filter(|nats| !nats.servers.is_empty());
        let patience = Patience {
            tries_max: u32::try_from(settings.integer("worker", "tries")).unwrap_or(u32::MAX),
            delay: ms("retry_delay_ms"),
            delay_max: ms("retry_delay_max_ms"),
            ..Patience::default()
        };
        let ledger_interval = match (ms("ledger_interval_ms"), &nats) {
            (Duration::ZERO, None) => Duration::from_secs(5),
            (Duration::ZERO, Some(_)) => Duration::from_secs(300),
            (set, _) => set,
        };
        let (ack_wait, drain) = (ms("ack_wait_ms"), ms("drain_deadline_ms"));
        let options = WorkerOptions { limits, patience, ack_wait, ledger_interval, drain };
        Ok(WorkerConfig { nats, options, stall: ms("stall_ms") })
    }
}

/// An error of NATS, as a command ends with it.
pub fn failure(err: &NatsError) -> Failure {
    use basalt_worker::nats::NatsClass;
    let exit = if err.class == NatsClass::Away { Exit::Failure } else { Exit::Usage };
    Failure { exit, message: err.to_string() }
}

/// A worker that is hosted.
#[derive(Debug)]
pub struct HostedWorker {
    running: Arc<OnceLock<(Worker, Option<Arc<Nats>>)>>,
    stop: CancellationToken,
    task: std::sync::Mutex<Option<JoinHandle<()>>>,
    drain: Duration,
}

/// Time between two questions who Kubo is.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl HostedWorker {
    /// Begins to work for the node's Kubo, as soon as that says who it is.
    pub fn begin(node: &Path, kubo: &KuboConfig, config: &WorkerConfig, ledger: &Arc<Hosted>) -> Arc<HostedWorker> {
        let running = Arc::new(OnceLock::new());
        let stop = CancellationToken::new();
        let work = {
            let (folder, kubo, config) = (node.join("plane").join("worker"), kubo.clone(), config.clone());
            let (ledger, running, stop) = (Arc::clone(ledger), Arc::clone(&running), stop.clone());
            async move {
                let stopped = stop.clone();
                tokio::select! {
                    () = stopped.cancelled() => {}
                    made = make(&folder, &kubo, &config, &ledger) => {
                        let worker = made.0.clone();
                        let _ = running.set(made);
                        tracing::info!(peer = %worker.peer(), nats = config.nats.is_some(), "the worker begins");
                        worker.run(stop).await;
                    }
                }
            }
        };
        let drain = config.options.drain;
        Arc::new(HostedWorker { running, stop, task: std::sync::Mutex::new(Some(tokio::spawn(work))), drain })
    }

    /// Stops in good order: what has not begun goes back, what is under way gets its time.
    pub async fn stop(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(task) = task
            && tokio::time::timeout(self.drain + Duration::from_secs(5), task).await.is_err()
        {
            tracing::warn!("the worker does not end; what it did not finish is done after the next start");
        }
    }

    /// What is not as it should be.
    pub fn degraded(&self) -> Vec<String> {
        let Some((worker, nats)) = self.running.get() else {
            return vec!["the worker waits for Kubo to say who it is".to_owned()];
        };
        let kubo = worker.standing().kubo_away.map(|why| format!("the worker waits for Kubo: {why}"));
        let nats = nats.as_ref().and_then(|nats| nats.failure()).map(|why| format!("no assignments come: {why}"));
        kubo.into_iter().chain(nats).collect()
    }

    /// How it is, and how far the pin of a multihash is.
    pub fn object(&self, about: Option<&Multihash>) -> Json {
        let Some((worker, nats)) = self.running.get() else { return json!({ "state": "waiting" }) };
        let standing = worker.standing();
        let reached = about.and_then(|multihash| worker.reached(multihash));
        json!({
            "state": if standing.kubo_away.is_some() { "waiting" } else { "working" },
            "peer": worker.peer().as_str(),
            "waiting_or_running": standing.depth,
            "running": standing.running,
            "kubo": standing.kubo_away,
            "nats": nats.as_ref().map(|nats| nats.failure()),
            "blocks": reached.map(|reached| reached.blocks),
            "bytes": reached.map(|reached| reached.bytes),
        })
    }
}

async fn make(folder: &Path, kubo: &KuboConfig, config: &WorkerConfig, ledger: &Hosted) -> (Worker, Option<Arc<Nats>>) {
    let mut said = String::new();
    loop {
        match parts(folder, kubo, config, ledger).await {
            Ok((parts, nats)) => return (Worker::new(parts, config.options.clone()), nats),
            Err(failure) => {
                if failure.message != said {
                    tracing::warn!("the worker can't begin yet: {}", failure.message);
                    said = failure.message;
                }
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn parts(
    folder: &Path,
    kubo: &KuboConfig,
    config: &WorkerConfig,
    ledger: &Hosted,
) -> Outcome<(Parts, Option<Arc<Nats>>)> {
    let client = kubo.client()?;
    let peer = peer(&client).await?;
    let folder = folder.to_path_buf();
    let opened = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&folder).map_err(|err| Failure::io(format!("make {}", folder.display()), err))?;
        FileJournal::open(&folder).map_err(|err| Failure::new(err.to_string()))
    });
    let journal = opened.await.map_err(|err| Failure::new(format!("open the worker's journal: {err}")))??;
    let nats = config.nats.as_ref().map(|options| Arc::new(Nats::new(options.clone(), peer.clone())));
    let parts = Parts {
        peer,
        ledger: ledger.ledger(),
        pinner: Arc::new(Kubo::new(client, config.stall)),
        journal: Arc::new(journal),
        bus: nats.clone().map(|nats| nats as Arc<dyn Bus>),
        clock: Arc::clone(ledger.clock()),
    };
    Ok((parts, nats))
}

/// Who a Kubo is.
pub async fn peer(client: &basalt_kubo::Client) -> Outcome<Peer> {
    let identity = client.id().await.map_err(|err| Failure::new(err.to_string()))?;
    identity.id.parse().map_err(|err| Failure::new(format!("Kubo's peer id: {err}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;

    fn check(text: &str) -> Result<WorkerConfig, String> {
        let loaded = Loaded::check("b.toml".into(), text, &|_| None).map_err(|err| err.to_string())?;
        Ok(loaded.agent.worker)
    }

    #[test]
    fn the_defaults_are_those_of_the_crate() {
        let config = check("").unwrap();
        let wanted = WorkerOptions { ledger_interval: Duration::from_secs(5), ..WorkerOptions::default() };
        assert_eq!((config.nats, config.options), (None, wanted));
    }

    #[test]
    fn every_setting_reaches_the_options() {
        let config = check(
            "[nats]\nservers = [\"tls://n1:4222\", \"n2\"]\ncredentials_file = \"/a.creds\"\ntls_ca_file = \"/ca\"\ntls_cert_file = \"/c\"\n\
             tls_key_file = \"/k\"\nconnect_timeout_ms = 1001\nreplicas = 3\n[worker]\nconcurrency = 2\nowner_concurrency = 3\nwindow = 4\n\
             owner_window = 5\ntries = 6\nretry_delay_ms = 17\nretry_delay_max_ms = 18\nstall_ms = 1009\nack_wait_ms = 1010\n\
             ledger_interval_ms = 11\ndrain_deadline_ms = 12\n",
        )
        .unwrap();
        let nats = NatsOptions {
            servers: vec!["tls://n1:4222".to_owned(), "n2".to_owned()],
            login: Login::Credentials("/a.creds".into()),
            ca_file: Some("/ca".into()),
            client: Some(("/c".into(), "/k".into())),
            connect_timeout: Duration::from_millis(1001),
            replicas: 3,
            window: 2,
            ack_wait: Duration::from_millis(1010),
        };
        let options = WorkerOptions {
            limits: Limits { running_max: 2, owner_running_max: 3, window: 4, owner_window: 5 },
            patience: Patience {
                tries_max: 6,
                delay: Duration::from_millis(17),
                delay_max: Duration::from_millis(18),
                ..Patience::default()
            },
            ack_wait: Duration::from_millis(1010),
            ledger_interval: Duration::from_millis(11),
            drain: Duration::from_millis(12),
        };
        assert_eq!(config, WorkerConfig { nats: Some(nats), options, stall: Duration::from_millis(1009) });
    }

    #[test]
    fn what_no_table_checks_is_told_with_its_line_and_no_secret() {
        let said = check(
            "[nats]\nservers = [\"nats://me:hunter2@n1\"]\nuser = \"me\"\ntls_cert_file = \"/c\"\nnkey_file = \"/n\"\n[worker]\nwindow = 2\n",
        )
        .unwrap_err();
        for part in
            ["b.toml:2", "a password does not belong", "more than one of them", "only one of them is set", "b.toml:7"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
    }
}
