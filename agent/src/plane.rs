//! The state plane: its part of the config (`[plane]`, `[cql]`, `[kubo]`), and `basalt plane`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use basalt_kubo::{Auth, Client, Endpoint, EndpointError, Options as KuboOptions};
use basalt_node::config::{ConfigError, Kind, Place, Problem, Setting, Settings, Value};
use basalt_stateplane::{
    Class, EmbeddedOptions, JournalOptions, Registration,
    cql::{self, CqlLedger, CqlOptions, Dialect, Level, Password, Tls},
};
use serde_json::json;

use crate::{
    cli::{ConfigSource, Plane},
    config::Loaded,
    drift::{self, Asked},
    exit::{Exit, Failure, Outcome},
    ledger,
    progress::{bytes, duration},
    say::say,
    transfer,
};

const LEVELS: &[&str] = &["local_one", "local_quorum", "quorum"];
const WRITE_LEVELS: &[&str] = &["local_one", "local_quorum", "each_quorum", "quorum"];

/// A setting of `[cql]`.
const fn cql(key: &'static str, kind: Kind, default: fn() -> Value, about: &'static str) -> Setting {
    Setting { section: "cql", key, kind, default, reload: false, about }
}

/// A number of `[plane]`.
const fn number(key: &'static str, min: u64, default: fn() -> Value, about: &'static str) -> Setting {
    let kind = Kind::Integer { min, max: 31_536_000 };
    Setting { section: "plane", key, kind, default, reload: false, about }
}

fn milliseconds(duration: Duration) -> Value {
    Value::Integer(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// The state plane's settings. Their defaults are those of the crate, so no number stands twice.
pub const SETTINGS: &[Setting] = &[
    Setting {
        section: "plane",
        key: "engine",
        kind: Kind::Choice(&["embedded", "cql", "none"]),
        default: || Value::Text("embedded".to_owned()),
        reload: false,
        about: "Where the ledger of pins is: in the node's own folder (`plane/`), in the ScyllaDB of `[cql]` that a fleet shares, or nowhere. An agent that \
                Kubo started opens none.",
    },
    Setting {
        section: "plane",
        key: "journal_entries_max",
        kind: Kind::Integer { min: 1, max: 1_000_000_000 },
        default: || Value::Integer(JournalOptions::default().entries_max),
        reload: false,
        about: "Changes that may wait in the node's folder while the ledger of `[cql]` is away; more are refused.",
    },
    Setting {
        section: "plane",
        key: "journal_bytes_max",
        kind: Kind::Bytes { min: 1 << 20, max: 1 << 40 },
        default: || Value::Integer(JournalOptions::default().bytes_max),
        reload: false,
        about: "Bytes of these.",
    },
    number(
        "heartbeat_s",
        1,
        || Value::Integer(30),
        "The node tells the ledger of itself that often, in seconds: peer id, space, shards, versions.",
    ),
    number(
        "scan_every_s",
        1,
        || Value::Integer(21_600),
        "Kubo is asked for all its pins that often, in seconds, besides at the start; each ten minutes where its pins can't be seen changing.",
    ),
    number("drift_every_s", 1, || Value::Integer(300), "Drift is looked for that often, in seconds."),
    number(
        "drift_grace_s",
        0,
        || Value::Integer(60),
        "What was decided is not called drift for so many seconds: the worker is at it.",
    ),
    number(
        "repair_per_s",
        0,
        || Value::Integer(5),
        "Mismatching placements that are repaired in a second; 0: they are only counted.",
    ),
    Setting {
        section: "kubo",
        key: "api",
        kind: Kind::Text,
        default: || Value::Text(String::new()),
        reload: false,
        about: "Address of Kubo's RPC: `http://127.0.0.1:5001`, `unix:/run/ipfs/api.sock`, or a multiaddr. With it the agent registers what Kubo holds and does the \
                pins that are wanted here; `\"\"`: neither.",
    },
    Setting {
        section: "kubo",
        key: "auth_file",
        kind: Kind::Text,
        default: || Value::Text(String::new()),
        reload: false,
        about: "File with what Kubo's `API.Authorizations` ask for, `bearer:TOKEN` or `basic:USER:PASSWORD`, and nothing else.",
    },
    cql(
        "contact_points",
        Kind::List,
        || Value::List(CqlOptions::default().contact_points),
        "Nodes to ask first, as `HOST` or `HOST:PORT`; the others are learnt from them.",
    ),
    cql(
        "port",
        Kind::Integer { min: 1, max: 65_535 },
        || Value::Integer(u64::from(CqlOptions::default().port)),
        "Port where a contact point has none.",
    ),
    cql("keyspace", Kind::Text, || Value::Text(CqlOptions::default().keyspace), "Keyspace of this fleet."),
    cql(
        "datacenter",
        Kind::Text,
        || Value::Text(CqlOptions::default().datacenter),
        "The datacenter that this node asks. No other is asked, even when this one is away.",
    ),
    cql(
        "replication",
        Kind::List,
        || {
            Value::List(
                CqlOptions::default().replication.iter().map(|(name, count)| format!("{name}:{count}")).collect(),
            )
        },
        "Replicas per datacenter, as in `[\"dc1:3\", \"dc2:3\"]`, for the migration that makes the keyspace. It changes none that is there.",
    ),
    cql("user", Kind::Text, || Value::Text(String::new()), "User; `\"\"`: none."),
    cql(
        "password_file",
        Kind::Text,
        || Value::Text(String::new()),
        "File with the user's password and nothing else. It is read when the ledger is opened.",
    ),
    cql(
        "tls_ca_file",
        Kind::Text,
        || Value::Text(String::new()),
        "PEM file of the authorities that the servers' certificates are signed by; these must name the servers' IP addresses. `\"\"`: no TLS.",
    ),
    cql(
        "tls_cert_file",
        Kind::Text,
        || Value::Text(String::new()),
        "PEM file of this node's own certificate, where the servers ask for one.",
    ),
    cql("tls_key_file", Kind::Text, || Value::Text(String::new()), "PEM file of the key of `tls_cert_file`."),
    cql(
        "read_level",
        Kind::Choice(LEVELS),
        || Value::Text(level_name(CqlOptions::default().read_level).to_owned()),
        "Replicas that must answer a read of one record.",
    ),
    cql(
        "write_level",
        Kind::Choice(WRITE_LEVELS),
        || Value::Text(level_name(CqlOptions::default().write_level).to_owned()),
        "Replicas that must have a write before it is acknowledged.",
    ),
    cql(
        "scan_level",
        Kind::Choice(LEVELS),
        || Value::Text(level_name(CqlOptions::default().scan_level).to_owned()),
        "Replicas that must answer a page of a list.",
    ),
    cql(
        "connect_timeout_ms",
        Kind::Integer { min: 100, max: 600_000 },
        || milliseconds(CqlOptions::default().connect_timeout),
        "A connection that is not made by then is given up.",
    ),
    cql(
        "point_timeout_ms",
        Kind::Integer { min: 10, max: 600_000 },
        || milliseconds(CqlOptions::default().point_timeout),
        "The same for a read or write of one record, each time it is tried.",
    ),
    cql(
        "scan_timeout_ms",
        Kind::Integer { min: 100, max: 600_000 },
        || milliseconds(CqlOptions::default().scan_timeout),
        "The same for a page of a list.",
    ),
    cql(
        "claim_timeout_ms",
        Kind::Integer { min: 100, max: 600_000 },
        || milliseconds(CqlOptions::default().claim_timeout),
        "The same for a claim, which takes several rounds between the replicas.",
    ),
    cql(
        "connections",
        Kind::Integer { min: 1, max: 64 },
        || Value::Integer(CqlOptions::default().connections as u64),
        "Connections to each node; with ScyllaDB to each of its shards.",
    ),
    cql(
        "in_flight_max",
        Kind::Integer { min: 1, max: 65_536 },
        || Value::Integer(CqlOptions::default().in_flight_max as u64),
        "Requests under way at a time; more wait their turn.",
    ),
    cql(
        "tries",
        Kind::Integer { min: 1, max: 20 },
        || Value::Integer(u64::from(CqlOptions::default().tries)),
        "Times that a request is made before it is given up. Each may be made again safely.",
    ),
    cql(
        "backoff_ms",
        Kind::Integer { min: 1, max: 600_000 },
        || milliseconds(CqlOptions::default().backoff),
        "Pause before the second try; it doubles, and varies by half.",
    ),
    cql(
        "backoff_max_ms",
        Kind::Integer { min: 1, max: 600_000 },
        || milliseconds(CqlOptions::default().backoff_max),
        "Longest pause between tries.",
    ),
    cql(
        "speculate_after_ms",
        Kind::Integer { min: 0, max: 600_000 },
        || CqlOptions::default().speculate_after.map_or(Value::Integer(0), milliseconds),
        "A read that has not answered by then is also asked of another replica; 0: never.",
    ),
];

/// Which ledger the node uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneConfig {
    /// Where the ledger is.
    pub engine: Engine,
    /// Bounds of the journal before the ledger of `[cql]`.
    pub journal: JournalOptions,
    /// How what Kubo holds is registered.
    pub registering: Registering,
    /// The Kubo that holds the pins.
    pub kubo: Option<KuboConfig>,
    /// `[cql]`, without the password.
    cql: CqlOptions,
    /// User, and the file with the password.
    login: Option<(String, PathBuf)>,
}

/// Where a ledger is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// In the node's folder.
    Embedded,
    /// In the ScyllaDB of `[cql]`.
    Cql,
    /// Nowhere: the agent has no plane.
    None,
}

/// How what Kubo holds is registered, and what is done about drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registering {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Between two lists of all that Kubo holds.
    pub scan_every: Duration,
    /// Between two looks for drift.
    pub drift_every: Duration,
    /// How long what was decided is left to the worker.
    pub grace: Duration,
    /// Repairs a second; 0: none.
    pub repair_per_s: u64,
}

/// `[kubo]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KuboConfig {
    /// Its RPC.
    pub api: Endpoint,
    /// File with its authorization.
    auth_file: Option<PathBuf>,
}

impl KuboConfig {
    /// A client; the authorization is read now.
    pub fn client(&self) -> Outcome<Client> {
        let auth: Auth = match &self.auth_file {
            None => Auth::None,
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|err| Failure::io(format!("read [kubo] auth_file {}", file.display()), err))?;
                text.parse().map_err(|err| Failure::usage(format!("[kubo] auth_file {}: {err}", file.display())))?
            }
        };
        Client::new(self.api.clone(), &auth, KuboOptions::default())
            .map_err(|err| Failure::usage(format!("[kubo] auth_file: {err}")))
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::LocalOne => "local_one",
        Level::LocalQuorum => "local_quorum",
        Level::EachQuorum => "each_quorum",
        Level::Quorum => "quorum",
    }
}

/// The table admits just these names.
fn level(name: &str) -> Level {
    match name {
        "local_one" => Level::LocalOne,
        "each_quorum" => Level::EachQuorum,
        "quorum" => Level::Quorum,
        _ => Level::LocalQuorum,
    }
}

impl PlaneConfig {
    /// The typed form of checked settings; what no table can check is checked here, all of it at once.
    pub fn from_settings(settings: &Settings, path: &Path) -> Result<PlaneConfig, ConfigError> {
        let mut problems = Vec::new();
        let mut problem = |key: &str, message: String, remedy: &str| {
            let keys = [key.to_owned(), format!("{key}_ms")];
            let place = keys.iter().find_map(|key| settings.place("cql", key)).cloned().unwrap_or(Place::File);
            problems.push(Problem { place, message: format!("[cql] {message}"), remedy: remedy.to_owned() });
        };
        let text = |key: &str| Some(settings.text("cql", key)).filter(|text| !text.is_empty());
        let ms = |key: &str| Duration::from_millis(settings.integer("cql", key));
        let count = |key: &str| usize::try_from(settings.integer("cql", key)).unwrap_or(usize::MAX);
        let mut replication = BTreeMap::new();
        for word in settings.list("cql", "replication") {
            match word.rsplit_once(':').map(|(name, replicas)| (name, replicas.parse())) {
                Some((name, Ok(replicas))) => {
                    replication.insert(name.to_owned(), replicas);
                }
                _ => problem(
                    "replication",
                    format!("replication: '{word}' is not DATACENTER:REPLICAS"),
                    "write it as in [\"dc1:3\"]",
                ),
            }
        }
        let login = match (text("user"), text("password_file")) {
            (Some(user), Some(file)) => Some((user.to_owned(), file.into())),
            (None, None) => None,
            _ => {
                problem("user", "user and password_file: only one of them is set".to_owned(), "set both, or neither");
                None
            }
        };
        let client = match (text("tls_cert_file"), text("tls_key_file")) {
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (None, None) => None,
            _ => {
                let message = "tls_cert_file and tls_key_file: only one of them is set".to_owned();
                problem("tls_cert_file", message, "set both, or neither");
                None
            }
        };
        let tls = text("tls_ca_file").map(|ca| Tls { ca_file: ca.into(), client: client.clone() });
        if tls.is_none() && client.is_some() {
            problem(
                "tls_cert_file",
                "tls_cert_file: it is of no use without tls_ca_file".to_owned(),
                "set tls_ca_file too",
            );
        }
        let cql = CqlOptions {
            contact_points: settings.list("cql", "contact_points").to_vec(),
            port: u16::try_from(settings.integer("cql", "port")).unwrap_or(0),
            keyspace: settings.text("cql", "keyspace").to_owned(),
            datacenter: settings.text("cql", "datacenter").to_owned(),
            replication,
            login: None,
            tls,
            read_level: level(settings.text("cql", "read_level")),
            write_level: level(settings.text("cql", "write_level")),
            scan_level: level(settings.text("cql", "scan_level")),
            connect_timeout: ms("connect_timeout_ms"),
            point_timeout: ms("point_timeout_ms"),
            scan_timeout: ms("scan_timeout_ms"),
            claim_timeout: ms("claim_timeout_ms"),
            connections: count("connections"),
            in_flight_max: count("in_flight_max"),
            tries: u32::try_from(settings.integer("cql", "tries")).unwrap_or(u32::MAX),
            backoff: ms("backoff_ms"),
            backoff_max: ms("backoff_max_ms"),
            speculate_after: Some(ms("speculate_after_ms")).filter(|after| !after.is_zero()),
        };
        for what in cql.problems() {
            let key = what.split(':').next().unwrap_or_default().to_owned();
            problem(&key, what, "see [cql] in `basalt config reference`");
        }
        let kubo = match settings.text("kubo", "api") {
            "" => None,
            api => match api.parse() {
                Ok(api) => {
                    let auth_file = Some(settings.text("kubo", "auth_file")).filter(|file| !file.is_empty());
                    Some(KuboConfig { api, auth_file: auth_file.map(PathBuf::from) })
                }
                Err(err) => {
                    problems.push(Problem {
                        place: settings.place("kubo", "api").cloned().unwrap_or(Place::File),
                        message: "[kubo] api".to_owned(),
                        remedy: EndpointError::to_string(&err),
                    });
                    None
                }
            },
        };
        if !problems.is_empty() {
            return Err(ConfigError { path: path.to_owned(), problems });
        }
        let engine = match settings.text("plane", "engine") {
            "cql" => Engine::Cql,
            "none" => Engine::None,
            _ => Engine::Embedded,
        };
        let journal = JournalOptions {
            entries_max: settings.integer("plane", "journal_entries_max"),
            bytes_max: settings.integer("plane", "journal_bytes_max"),
        };
        let seconds = |key: &str| Duration::from_secs(settings.integer("plane", key));
        let registering = Registering {
            heartbeat: seconds("heartbeat_s"),
            scan_every: seconds("scan_every_s"),
            drift_every: seconds("drift_every_s"),
            grace: seconds("drift_grace_s"),
            repair_per_s: settings.integer("plane", "repair_per_s"),
        };
        Ok(PlaneConfig { engine, journal, registering, kubo, cql, login })
    }

    /// Memory of the embedded ledger: it is a guest on a host whose memory is for blocks.
    pub fn embedded(&self) -> EmbeddedOptions {
        EmbeddedOptions::default()
    }

    /// `[cql]` with the password, read now.
    pub fn options(&self) -> Outcome<CqlOptions> {
        let mut options = self.cql.clone();
        if let Some((user, file)) = &self.login {
            let password = std::fs::read_to_string(file)
                .map_err(|err| Failure::io(format!("read [cql] password_file {}", file.display()), err))?;
            options.login = Some((user.clone(), Password(password.trim_end_matches(['\r', '\n']).to_owned())));
        }
        Ok(options)
    }
}

pub fn failure(err: basalt_stateplane::Error) -> Failure {
    let exit = match err.class() {
        Class::Config | Class::Denied => Exit::Usage,
        _ => Exit::Failure,
    };
    Failure { exit, message: err.to_string() }
}

/// `basalt plane`.
pub async fn plane(node: &Path, command: &Plane) -> Outcome {
    match command {
        Plane::Migrate { source, json } | Plane::Status { source, json } | Plane::Check { source, json } => {
            schema(node, command, source, *json).await
        }
        Plane::Nodes { source, json } => nodes(node, source, *json).await,
        Plane::Drift { repair, dry_run, rate, peer, grace, source, json } => {
            let loaded = Loaded::load(node, source)?;
            let grace = grace.map_or(loaded.agent.plane.registering.grace, Duration::from_secs);
            let asked =
                Asked { repair: *repair, dry_run: *dry_run, rate: *rate, peer: peer.as_deref(), grace, json: *json };
            drift::command(node, &loaded, &asked).await
        }
        Plane::Export { file, source, json } => transfer::export(node, &Loaded::load(node, source)?, file, *json).await,
        Plane::Import { file, dry_run, source, json } => {
            transfer::import(node, &Loaded::load(node, source)?, file, *dry_run, *json).await
        }
    }
}

async fn nodes(node: &Path, source: &ConfigSource, as_json: bool) -> Outcome {
    let loaded = Loaded::load(node, source)?;
    let ledger = ledger::reach(node, &loaded).await?;
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = ledger.registrations(after.as_ref(), 1000).await.map_err(failure)?;
        all.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    all.sort_by(|a, b| a.peer.cmp(&b.peer));
    let ago = |node: &Registration| ledger::now_ms().saturating_sub(node.seen_ms);
    if as_json {
        let object = |node: &Registration| {
            json!({
                "peer": node.peer.as_str(), "node_id": node.node_id, "basalt": node.basalt, "kubo": node.kubo,
                "capacity_bytes": node.capacity_bytes, "free_bytes": node.free_bytes,
                "seen_unix_ms": node.seen_ms, "ago_ms": ago(node),
                "shards": node.shards.iter().map(|shard| json!({
                    "id": shard.id, "blocks": shard.blocks, "bytes": shard.bytes, "free_bytes": shard.free_bytes,
                    "serving": shard.serving,
                })).collect::<Vec<_>>(),
            })
        };
        say!("{}", json!({ "nodes": all.iter().map(object).collect::<Vec<_>>() }));
        return Ok(());
    }
    for node in &all {
        let shards = node.shards.len();
        let serving = node.shards.iter().filter(|shard| shard.serving).count();
        say!(
            "{}  {} free of {}, {serving} of {shards} shards take writes, Basalt {}, {}; told {} ago",
            node.peer,
            bytes(node.free_bytes),
            bytes(node.capacity_bytes),
            node.basalt,
            if node.kubo.is_empty() { "Kubo unknown" } else { &node.kubo },
            duration(ago(node))
        );
    }
    if all.is_empty() {
        say!("no node is registered; set [kubo] api, and its agent registers it");
    }
    Ok(())
}

async fn schema(node: &Path, command: &Plane, source: &ConfigSource, as_json: bool) -> Outcome {
    let loaded = Loaded::load(node, source)?;
    let (config, worker) = (loaded.agent.plane, loaded.agent.worker);
    if matches!(command, Plane::Check { .. })
        && let Some(nats) = &worker.nats
    {
        nats.check().await.map_err(|err| crate::worker::failure(&err))?;
        if !as_json {
            say!("NATS at {}: this agent can work with it", nats.servers.join(", "));
        }
    }
    if config.engine != Engine::Cql {
        if as_json {
            say!("{}", json!({ "engine": if config.engine == Engine::None { "none" } else { "embedded" } }));
        } else {
            say!(
                "the ledger is {}; it has no schema to migrate ([plane] engine = \"cql\" makes it a fleet's)",
                if config.engine == Engine::None { "nowhere" } else { "embedded in the node" }
            );
        }
        return Ok(());
    }
    let options = config.options()?;
    match command {
        Plane::Migrate { .. } => {
            let made = cql::migrate(&options).await.map_err(failure)?;
            if as_json {
                say!("{}", json!({ "engine": "cql", "keyspace": options.keyspace, "made": made }));
            } else if made.is_empty() {
                say!("keyspace {}: nothing to migrate", options.keyspace);
            } else {
                made.iter().for_each(|name| say!("keyspace {}: made: {name}", options.keyspace));
            }
        }
        Plane::Status { .. } => {
            let status = cql::status(&options).await.map_err(failure)?;
            let database = match status.dialect {
                Dialect::Scylla => "ScyllaDB",
                Dialect::Cassandra => "Apache Cassandra",
            };
            if as_json {
                let applied: Vec<_> = status
                    .applied
                    .iter()
                    .map(
                        |made| json!({ "version": made.version, "name": made.name, "oldest_build": made.oldest_build }),
                    )
                    .collect();
                let problem = status.check().err().map(|err| err.to_string());
                say!(
                    "{}",
                    json!({ "engine": "cql", "database": database, "keyspace": options.keyspace, "applied": applied,
                        "pending": status.pending, "problem": problem })
                );
                return Ok(());
            }
            say!("keyspace {} in {database}", options.keyspace);
            status.applied.iter().for_each(|made| say!("  {:>3}  made     {}", made.version, made.name));
            status.pending.iter().for_each(|name| say!("       pending  {name}"));
            if let Err(err) = status.check() {
                say!("{err}");
            }
        }
        Plane::Check { .. } => {
            // What an agent does when it starts: connects, checks the schema, prepares every statement.
            CqlLedger::open(&options).await.map_err(failure)?;
            if as_json {
                say!("{}", json!({ "engine": "cql", "keyspace": options.keyspace, "right": true }));
            } else {
                say!("keyspace {}: this agent can work on it", options.keyspace);
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<PlaneConfig, String> {
        let loaded = Loaded::check("b.toml".into(), text, &|_| None).map_err(|err| err.to_string())?;
        Ok(loaded.agent.plane)
    }

    #[test]
    fn the_defaults_are_those_of_the_crate() {
        let config = check("").unwrap();
        assert_eq!((config.engine, config.kubo, config.cql), (Engine::Embedded, None, CqlOptions::default()));
        assert_eq!(config.journal, JournalOptions::default());
    }

    #[test]
    fn every_setting_reaches_the_options() {
        let config = check(
            "[plane]\nengine = \"cql\"\njournal_entries_max = 12\njournal_bytes_max = \"2 MiB\"\nheartbeat_s = 1\nscan_every_s = 2\ndrift_every_s = 3\ndrift_grace_s = 4\nrepair_per_s = 6\n[kubo]\napi = \"unix:/k\"\nauth_file = \"/a\"\n[cql]\ncontact_points = [\"db1\", \"db2:9043\"]\nport = 9044\nkeyspace = \"fleet\"\ndatacenter = \"east\"\n\
             replication = [\"east:3\", \"west:2\"]\nuser = \"me\"\npassword_file = \"/p\"\ntls_ca_file = \"/ca\"\ntls_cert_file = \"/c\"\n\
             tls_key_file = \"/k\"\nread_level = \"local_one\"\nwrite_level = \"each_quorum\"\nscan_level = \"quorum\"\nconnect_timeout_ms = 1001\n\
             point_timeout_ms = 1002\nscan_timeout_ms = 1003\nclaim_timeout_ms = 1004\nconnections = 5\nin_flight_max = 6\ntries = 7\n\
             backoff_ms = 8\nbackoff_max_ms = 9\nspeculate_after_ms = 0\n",
        )
        .unwrap();
        let wanted = CqlOptions {
            contact_points: vec!["db1".to_owned(), "db2:9043".to_owned()],
            port: 9044,
            keyspace: "fleet".to_owned(),
            datacenter: "east".to_owned(),
            replication: [("east".to_owned(), 3), ("west".to_owned(), 2)].into(),
            login: None,
            tls: Some(Tls { ca_file: "/ca".into(), client: Some(("/c".into(), "/k".into())) }),
            read_level: Level::LocalOne,
            write_level: Level::EachQuorum,
            scan_level: Level::Quorum,
            connect_timeout: Duration::from_millis(1001),
            point_timeout: Duration::from_millis(1002),
            scan_timeout: Duration::from_millis(1003),
            claim_timeout: Duration::from_millis(1004),
            connections: 5,
            in_flight_max: 6,
            tries: 7,
            backoff: Duration::from_millis(8),
            backoff_max: Duration::from_millis(9),
            speculate_after: None,
        };
        assert_eq!(config.engine, Engine::Cql);
        assert_eq!(config.journal, JournalOptions { entries_max: 12, bytes_max: 1 << 21 });
        let registering = Registering {
            heartbeat: Duration::from_secs(1),
            scan_every: Duration::from_secs(2),
            drift_every: Duration::from_secs(3),
            grace: Duration::from_secs(4),
            repair_per_s: 6,
        };
        assert_eq!(config.registering, registering);
        assert_eq!(config.kubo, Some(KuboConfig { api: Endpoint::Unix("/k".into()), auth_file: Some("/a".into()) }));
        assert_eq!(config.cql, wanted);
        assert_eq!(config.login, Some(("me".to_owned(), "/p".into())));
    }

    #[test]
    fn what_no_table_checks_is_told_with_its_line() {
        let said = check(
            "[cql]\nkeyspace = \"Fleet; DROP\"\nuser = \"me\"\nreplication = [\"dc1\"]\nspeculate_after_ms = 5000\n",
        )
        .unwrap_err();
        for part in [
            "b.toml:2",
            "keyspace: 'Fleet; DROP' is no name",
            "only one of them is set",
            "'dc1' is not DATACENTER:REPLICAS",
            "b.toml:5",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
