//! The agent's part of the config, beside the node's in the same file: `[log]`, `[http]`, `[agent]`, `[snapshots]`.
//!
//! A setting comes from, the later the stronger: its default, the file, the environment, the command line. The node's crate has the
//! parser; both tables together make it, `config show`, `config reference` and docs/config.md, so they can't disagree.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use basalt_node::config::{self as node_config, ConfigError, Kind, Place, Problem, Setting, Settings, Value};
use basalt_snapshots::{Content, Policy, Schedule};

use crate::{
    cli::ConfigSource,
    exit::{Failure, Outcome},
    plane::{self, PlaneConfig},
    worker::{self, WorkerConfig},
};

/// The tables of everything that the file may hold.
pub const TABLES: &[&[Setting]] = &[node_config::SETTINGS, SETTINGS, plane::SETTINGS, worker::SETTINGS];

/// What the agent runs with, besides its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Least severe level that is logged.
    pub log_level: String,
    /// One JSON object a line.
    pub log_json: bool,
    /// Size in bytes at which an autostarted agent's log file is turned over.
    pub log_file_bytes_max: u64,
    /// Where HTTP listens; `None`: nowhere.
    pub http_listen: Option<SocketAddr>,
    /// An agent with --exit-when-idle ends that long after its last connection.
    pub idle_exit: Duration,
    /// How long to wait for another agent that was asked to hand over, or that is starting.
    pub handover: Duration,
    /// What is done about snapshots, and what is kept of them.
    pub snapshots: Snapshots,
    /// Which ledger of pins it uses.
    pub plane: PlaneConfig,
    /// How its worker works, and where its work comes from.
    pub worker: WorkerConfig,
}

/// `[snapshots]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshots {
    /// A line of cron in UTC; none: they are only taken when asked.
    pub schedule: Option<String>,
    /// How late a scheduled one may be, in seconds.
    pub jitter_s: u64,
    /// What is kept.
    pub keep: Policy,
    /// Whether the agent prunes after a scheduled take.
    pub prune: bool,
    /// Where the record of what is under way lies; none: the usual place.
    pub state_path: Option<PathBuf>,
}

/// The agent's own settings.
pub const SETTINGS: &[Setting] = &[
    Setting {
        section: "log",
        key: "level",
        kind: Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        default: || Value::Text("info".to_owned()),
        reload: true,
        about: "The least severe messages that are logged.",
    },
    Setting {
        section: "log",
        key: "format",
        kind: Kind::Choice(&["text", "json"]),
        default: || Value::Text("text".to_owned()),
        reload: false,
        about: "Lines for people, or one JSON object a line.",
    },
    Setting {
        section: "log",
        key: "file_bytes_max",
        kind: Kind::Bytes { min: 64 << 10, max: 1 << 40 },
        default: || Value::Integer(4 << 20),
        reload: false,
        about: "An agent that Kubo started logs to `run/agent.log` in the node's folder. At this size the file becomes `agent.log.1`, and a new \
                one begins. An agent that an operator started logs to stderr.",
    },
    Setting {
        section: "http",
        key: "listen",
        kind: Kind::Text,
        default: || Value::Text("127.0.0.1:5040".to_owned()),
        reload: false,
        about: "Address and port of `/metrics`, `/healthz` and `/readyz`; `\"\"` turns them off. Nobody is asked who they are, so keep them on \
                loopback or behind something that asks. An agent with `--exit-when-idle` never opens it.",
    },
    Setting {
        section: "agent",
        key: "idle_exit_ms",
        kind: Kind::Integer { min: 0, max: 86_400_000 },
        default: || Value::Integer(10_000),
        reload: false,
        about: "An agent with `--exit-when-idle` closes its node and ends this long after its last connection.",
    },
    Setting {
        section: "agent",
        key: "handover_ms",
        kind: Kind::Integer { min: 100, max: 3_600_000 },
        default: || Value::Integer(30_000),
        reload: false,
        about: "Where the node is served by an agent that Kubo started, that one is asked to hand over, and gets this long.",
    },
    Setting {
        section: "snapshots",
        key: "schedule",
        kind: Kind::Text,
        default: || Value::Text(String::new()),
        reload: false,
        about: "When the agent takes a set of snapshots: a line of cron in UTC, as in `\"0 * * * *\"`, each hour. `\"\"`: only when asked (`basalt \
                snapshot take`). Runs that were missed are one run.",
    },
    Setting {
        section: "snapshots",
        key: "jitter_s",
        kind: Kind::Integer { min: 0, max: 86_400 },
        default: || Value::Integer(60),
        reload: false,
        about: "How many seconds late a scheduled set may be: how much follows from the node's id, so that many nodes don't all do it at once.",
    },
    Setting {
        section: "snapshots",
        key: "keep",
        kind: Kind::List,
        default: || Value::List(["last:3", "hourly:24", "daily:7", "weekly:4", "monthly:3"].map(str::to_owned).into()),
        reload: false,
        about: "What `basalt snapshot prune` keeps: the youngest (`last:N`), and the youngest set of each of the last N periods that have one \
                (`hourly`, `daily`, `weekly`, `monthly`, `yearly`, or one like `15m`, `6h`, `3d`; UTC). The youngest whole set is always kept.",
    },
    Setting {
        section: "snapshots",
        key: "keep_metadata",
        kind: Kind::List,
        default: || Value::List(Vec::new()),
        reload: false,
        about: "For how long, in the words of `keep`, the datasets of metadata (pins, names, the MFS root) are kept of sets that `keep` keeps no more. What is left \
                of such a set restores no node: it tells what was pinned (`basalt snapshot diff`).",
    },
    Setting {
        section: "snapshots",
        key: "keep_repo",
        kind: Kind::List,
        default: || Value::List(Vec::new()),
        reload: false,
        about: "The same for the dataset of Kubo's repo folder (config, keystore), where it has one of its own.",
    },
    Setting {
        section: "snapshots",
        key: "min_age_s",
        kind: Kind::Integer { min: 0, max: 315_360_000 },
        default: || Value::Integer(3600),
        reload: false,
        about: "No set that is younger, in seconds, is pruned.",
    },
    Setting {
        section: "snapshots",
        key: "prune",
        kind: Kind::Bool,
        default: || Value::Bool(true),
        reload: false,
        about: "Whether the agent prunes after each set that it took by the schedule.",
    },
    Setting {
        section: "snapshots",
        key: "state_path",
        kind: Kind::Text,
        default: || Value::Text(String::new()),
        reload: false,
        about: "Folder of the record of what is under way with snapshots. It must not lie in the node's own datasets: a restore replaces those. \
                `\"\"`: /var/lib/basalt for root, else basalt in $XDG_STATE_HOME or ~/.local/state.",
    },
];

impl Config {
    /// The typed form of checked settings; what no table can check is checked here.
    fn from_settings(settings: &Settings, path: &Path) -> Result<Config, ConfigError> {
        let listen = settings.text("http", "listen");
        let http_listen = match listen.parse() {
            Ok(address) => Some(address),
            Err(_) if listen.is_empty() => None,
            Err(_) => {
                let problem = Problem {
                    place: settings.place("http", "listen").cloned().unwrap_or(Place::File),
                    message: format!("[http] listen can't be {listen:?}"),
                    remedy: "write an IP address and port as in \"127.0.0.1:5040\" or \"[::1]:5040\", or \"\" for none"
                        .to_owned(),
                };
                return Err(ConfigError { path: path.to_owned(), problems: vec![problem] });
            }
        };
        Ok(Config {
            snapshots: snapshots(settings, path)?,
            plane: PlaneConfig::from_settings(settings, path)?,
            worker: WorkerConfig::from_settings(settings, path)?,
            log_level: settings.text("log", "level").to_owned(),
            log_json: settings.text("log", "format") == "json",
            log_file_bytes_max: settings.integer("log", "file_bytes_max"),
            http_listen,
            idle_exit: Duration::from_millis(settings.integer("agent", "idle_exit_ms")),
            handover: Duration::from_millis(settings.integer("agent", "handover_ms")),
        })
    }
}

fn snapshots(settings: &Settings, path: &Path) -> Result<Snapshots, ConfigError> {
    let problem = |key: &str, message: String, remedy: &str| {
        let place = settings.place("snapshots", key).cloned().unwrap_or(Place::File);
        let problem = Problem { place, message: format!("[snapshots] {key}: {message}"), remedy: remedy.to_owned() };
        ConfigError { path: path.to_owned(), problems: vec![problem] }
    };
    let policy = |key: &str, min_age_s| {
        let words = settings.list("snapshots", key);
        let policy = Policy::parse(words.iter().map(String::as_str), min_age_s);
        policy.map_err(|err| problem(key, err.to_string(), "write a list as in [\"last:3\", \"daily:7\"]"))
    };
    let mut keep = policy("keep", settings.integer("snapshots", "min_age_s"))?;
    for (key, content) in [("keep_metadata", Content::Metadata), ("keep_repo", Content::Repo)] {
        if !settings.list("snapshots", key).is_empty() {
            keep.longer.insert(content, policy(key, 0)?);
        }
    }
    let text = |key: &str| Some(settings.text("snapshots", key)).filter(|text| !text.is_empty());
    let schedule = text("schedule").map(str::to_owned);
    if let Some(line) = &schedule {
        Schedule::new(line, 0, "")
            .map_err(|err| problem("schedule", err.to_string(), "write it as in \"0 * * * *\", or \"\" for none"))?;
    }
    Ok(Snapshots {
        schedule,
        jitter_s: settings.integer("snapshots", "jitter_s"),
        keep,
        prune: settings.bool("snapshots", "prune"),
        state_path: text("state_path").map(PathBuf::from),
    })
}

/// A config that was read and checked.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The file, whether it is there or not.
    pub path: PathBuf,
    /// Every value.
    pub settings: Settings,
    /// The agent's part.
    pub agent: Config,
    /// The node's part.
    pub node: node_config::Config,
}

impl Loaded {
    /// Reads the file of the node's folder, or the one that is named (that one must be there), the environment and the command line.
    pub fn load(node: &Path, source: &ConfigSource) -> Outcome<Loaded> {
        let flags = flags(source)?;
        let (path, text) = match &source.config {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|err| Failure::usage(format!("read the config {}: {err}", path.display())))?;
                (path.clone(), text)
            }
            None => {
                let path = node.join(node_config::FILE_NAME);
                let text = match std::fs::read_to_string(&path) {
                    Err(err) if err.kind() == std::io::ErrorKind::NotFound => String::new(),
                    other => {
                        other.map_err(|err| Failure::usage(format!("read the config {}: {err}", path.display())))?
                    }
                };
                (path, text)
            }
        };
        // The command line is laid over the environment by the name of the variable: one way of overriding, one error message.
        let over = |name: &str| {
            let flag = flags.iter().rev().find(|(variable, _)| variable == name);
            flag.map(|(_, value)| value.clone()).or_else(|| std::env::var(name).ok())
        };
        Ok(Loaded::check(path, &text, &over)?)
    }

    /// Checks the text of a file.
    pub fn check(
        path: PathBuf,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Loaded, ConfigError> {
        let settings = Settings::check(text, &path, TABLES, environment)?;
        let agent = Config::from_settings(&settings, &path)?;
        let node = node_config::Config::from_settings(&settings);
        Ok(Loaded { path, settings, agent, node })
    }

    /// Who set a value, for people.
    pub fn origin(&self, setting: &Setting, source: &ConfigSource) -> String {
        match self.settings.place(setting.section, setting.key) {
            None => "default".into(),
            Some(Place::Line(line)) => format!("{}:{line}", self.path.display()),
            Some(Place::File) => self.path.display().to_string(),
            Some(Place::Environment(name)) => match flags(source) {
                Ok(flags) if flags.iter().any(|(variable, _)| variable == name) => "command line".into(),
                _ => format!("environment {name}"),
            },
        }
    }
}

/// What the command line sets, by the name of the environment variable that would.
fn flags(source: &ConfigSource) -> Outcome<Vec<(String, String)>> {
    let mut flags = Vec::new();
    let short = [("log.level", &source.log_level), ("http.listen", &source.http_listen)];
    let short = short.iter().filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={value}")));
    for text in source.set.iter().cloned().chain(short) {
        let wrong = |why: &str| Failure::usage(format!("--set {text}: {why}"));
        let (name, value) =
            text.split_once('=').ok_or_else(|| wrong("write SECTION.KEY=VALUE, as in log.level=debug"))?;
        let (section, key) =
            name.split_once('.').ok_or_else(|| wrong("write SECTION.KEY=VALUE, as in log.level=debug"))?;
        let setting = TABLES
            .iter()
            .flat_map(|table| table.iter())
            .find(|setting| setting.section == section && setting.key == key)
            .ok_or_else(|| wrong("there is no such setting; `basalt config reference` lists them all"))?;
        flags.push((node_config::variable(setting), value.to_owned()));
    }
    Ok(flags)
}

/// The reference page: docs/config.md.
pub fn reference() -> String {
    format!(
        "# Config\n\n\
         <!-- This page is what `basalt config reference` prints; the tables in node/src/config and agent/src/config.rs make it. -->\n\n\
         A node's config is `{}` in its folder; `basalt agent --config FILE` or BASALT_CONFIG names another file. Every setting has a default,\n\
         so the file may be missing. A setting comes from, the later the stronger:\n\n\
         1. its default,\n\
         2. the file,\n\
         3. the environment: `BASALT_<SECTION>_<KEY>`, for example `BASALT_LOG_LEVEL=debug`; lists are separated by commas,\n\
         4. the command line: `--set SECTION.KEY=VALUE`, for example `--set log.level=debug`.\n\n\
         `basalt config check` says what is wrong in which line, and what to write instead. `basalt config show` says what holds, and who set it.\n\
         SIGHUP makes a running agent read its config again: what has *yes* under Reload changes at once, and the agent logs what else has\n\
         changed and needs a restart.\n{}",
        node_config::FILE_NAME,
        node_config::reference(TABLES)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Loaded, String> {
        Loaded::check("b.toml".into(), text, &|_| None).map_err(|err| err.to_string())
    }

    #[test]
    fn a_host_without_this_table_knows_its_sections_by_name() {
        for setting in SETTINGS {
            assert!(node_config::AGENT_SECTIONS.contains(&setting.section), "[{}]", setting.section);
        }
    }

    #[test]
    fn the_reference_page_is_the_one_in_docs() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == reference(), "docs/config.md is old: run `basalt config reference > docs/config.md`");
    }

    #[test]
    fn every_setting_of_the_agent_reaches_its_config() {
        let plain = check("").unwrap().agent;
        for (key, value) in [
            ("log.level", "\"warn\""),
            ("log.format", "\"json\""),
            ("log.file_bytes_max", "\"1 MiB\""),
            ("http.listen", "\"[::1]:1\""),
            ("agent.idle_exit_ms", "7"),
            ("agent.handover_ms", "777"),
            ("snapshots.schedule", "\"5 * * * *\""),
            ("snapshots.jitter_s", "7"),
            ("snapshots.keep", "[\"daily:2\"]"),
            ("snapshots.keep_metadata", "[\"daily:2\"]"),
            ("snapshots.keep_repo", "[\"daily:2\"]"),
            ("snapshots.min_age_s", "7"),
            ("snapshots.prune", "false"),
            ("snapshots.state_path", "\"/x\""),
        ] {
            assert_ne!(check(&format!("{key} = {value}")).unwrap().agent, plain, "{key}");
        }
        assert_eq!(SETTINGS.len(), 14, "a new setting needs a line above");
    }

    #[test]
    fn http_listens_on_loopback_unless_told_otherwise() {
        assert!(check("").unwrap().agent.http_listen.unwrap().ip().is_loopback());
        assert_eq!(check("[http]\nlisten = \"\"").unwrap().agent.http_listen, None);
    }

    #[test]
    fn an_address_that_is_none_is_named_with_its_line() {
        assert_eq!(
            check("# x\n[http]\nlisten = \"localhost\"").unwrap_err(),
            "b.toml:3: [http] listen can't be \"localhost\": write an IP address and port as in \"127.0.0.1:5040\" or \"[::1]:5040\", or \
             \"\" for none"
        );
    }

    #[test]
    fn a_schedule_or_policy_that_makes_no_sense_is_named_with_its_line() {
        for (text, what) in [("keep = [\"dayly:1\"]", "dayly"), ("schedule = \"hourly\"", "as in")] {
            let refused = check(&format!("[snapshots]\n{text}")).unwrap_err();
            assert!(refused.starts_with("b.toml:2: [snapshots]") && refused.contains(what), "{refused}");
        }
    }

    #[test]
    fn sections_of_node_and_agent_stand_in_one_file() {
        let loaded = check("[node]\ndurability = \"relaxed\"\n[log]\nlevel = \"debug\"\n").unwrap();
        assert_eq!(loaded.agent.log_level, "debug");
        assert_eq!(loaded.node.datastore.durability.name(), "relaxed");
        assert!(check("[lgo]\nlevel = \"debug\"").unwrap_err().contains("did you mean 'log'?"));
    }
}
