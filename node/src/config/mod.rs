//! The config of a node, `NODE/basalt.toml`: what an operator may choose, checked once, with errors that name file, line and remedy.
//!
//! [`SETTINGS`] is the table of the node's own keys. A host that reads more from the same file brings its own table:
//! `Settings::check(text, path, &[config::SETTINGS, agent::SETTINGS], &env)`, then [`Config::from_settings`].

mod settings;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use basalt_blockstore::{Durability, OnCorrupt, Options as StoreOptions};
use basalt_datastore::Options as DatastoreOptions;

use crate::scrub::ScrubOptions;

pub use settings::{
    AGENT_SECTIONS, ConfigError, Kind, Place, Problem, Setting, Settings, Value, allowed, bytes, display_bytes,
    reference, variable,
};

/// Name of the config file in a node's folder.
pub const FILE_NAME: &str = "basalt.toml";

/// The choices of one node.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many shards the operator believes the node has; `None` doesn't say. Checked against what `init` made.
    pub shards: Option<usize>,
    /// Options of the stores; `datastore.durability` is `[node] durability`.
    pub datastore: DatastoreOptions,
    /// Time between two passes of background work (expired keys, space that can be given back).
    pub background_interval: Duration,
    /// Bytes of batches that clients may be sending at a time.
    pub batch_memory_bytes: usize,
    /// Queries that may be under way at a time.
    pub queries_max: usize,
    /// Connections that may be open at a time, on each socket.
    pub connections_max: usize,
    /// Bytes of requests and answers that may be on their way at a time, on both sockets together.
    pub transfer_memory_bytes: usize,
    /// How long calls under way may take to finish when the node closes.
    pub drain_deadline: Duration,
    /// How everything is read back in the background.
    pub scrub: ScrubOptions,
    /// Where and for whom the sockets are.
    pub sockets: Sockets,
}

/// Where and for whom the sockets are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Data socket elsewhere than in the node's run folder.
    pub data_path: Option<PathBuf>,
    /// Admin socket elsewhere than in the node's run folder.
    pub admin_path: Option<PathBuf>,
    /// Who may connect to the data socket.
    pub data_access: Access,
    /// Who may connect to the admin socket.
    pub admin_access: Access,
    /// A connection that has asked for nothing by then is closed.
    pub handshake_deadline: Duration,
    /// Time between two pings that ask whether a client is still there.
    pub keepalive: Duration,
    /// A client that takes nothing of what is sent to it for this long is cut off.
    pub stall_deadline: Duration,
    /// Fast lanes that may be open at a time; 0: there are none.
    pub lanes_max: usize,
}

/// Who may connect to a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Users, by name or number; `self` is the one that the node runs as.
    pub uids: Vec<String>,
    /// Groups, by name or number, whose members may. A group that the machine does not have admits nobody.
    pub gids: Vec<String>,
}

impl Default for Config {
    fn default() -> Config {
        match Config::check("", Path::new(FILE_NAME)) {
            Ok(config) => config,
            // The defaults are in their own bounds: `defaults_are_within_their_bounds` holds it.
            Err(err) => unreachable!("{err}"),
        }
    }
}

impl Config {
    /// Checks the text of a file that holds the node's sections only, without the environment.
    pub fn check(text: &str, path: &Path) -> Result<Config, ConfigError> {
        Ok(Config::from_settings(&Settings::check(text, path, &[SETTINGS], &|_| None)?))
    }

    /// Reads `NODE/basalt.toml` (absent: the defaults) and the environment. `foreign` are the tables of other readers of the same file.
    pub fn load(node: &Path, foreign: &[&'static [Setting]]) -> Result<Config, ConfigError> {
        Ok(Config::from_settings(&load_settings(node, foreign)?))
    }

    /// The typed form of checked settings.
    #[allow(clippy::needless_update, reason = "an option without a row has its default until it gets one")]
    pub fn from_settings(settings: &Settings) -> Config {
        let bytes = |section, key| usize::try_from(settings.integer(section, key)).unwrap_or(usize::MAX);
        let ms = |section, key| Duration::from_millis(settings.integer(section, key));
        let path = |key| Some(settings.text("sockets", key)).filter(|path| !path.is_empty()).map(PathBuf::from);
        let access = |uids, gids| Access {
            uids: settings.list("sockets", uids).to_vec(),
            gids: settings.list("sockets", gids).to_vec(),
        };
        // The table admits just the names that these parsers know.
        let durability = settings.text("node", "durability").parse().unwrap_or(Durability::Strict);
        let corrupt = match settings.text("store", "corrupt") {
            "error" => OnCorrupt::Error,
            _ => OnCorrupt::Refetch,
        };
        Config {
            shards: Some(bytes("node", "shards")).filter(|shards| *shards != 0),
            datastore: DatastoreOptions {
                durability,
                store: StoreOptions {
                    durability,
                    verify_on_put: settings.bool("store", "verify_on_put"),
                    corrupt,
                    segment_bytes: settings.integer("store", "segment_bytes"),
                    value_bytes_max: bytes("limits", "value_bytes_max"),
                    key_bytes_max: bytes("limits", "key_bytes_max"),
                    unflushed_bytes_max: settings.integer("limits", "unflushed_bytes_max"),
                    flush_delay: ms("store", "flush_delay_ms"),
                    idle_mark_delay: ms("store", "idle_mark_delay_ms"),
                    flush_deadline: ms("store", "flush_deadline_ms"),
                    replay_bytes_max: settings.integer("store", "replay_bytes_max"),
                    replay_records_max: settings.integer("store", "replay_records_max"),
                    open_files_max: bytes("limits", "open_files_max"),
                    index_memory_bytes: bytes("limits", "index_memory_bytes"),
                    reserve_bytes: settings.integer("store", "reserve_bytes"),
                    punch_bytes_min: u32::try_from(settings.integer("store", "punch_bytes_min")).unwrap_or(u32::MAX),
                    compact_dead_percent: u8::try_from(settings.integer("store", "compact_dead_percent"))
                        .unwrap_or(100),
                    recycle_segments_max: bytes("store", "recycle_segments_max"),
                    ..StoreOptions::default()
                },
                unordered_prefixes: settings.list("store", "unordered_prefixes").to_vec(),
                batch_bytes_max: bytes("limits", "batch_bytes_max"),
                sort_entries_max: bytes("limits", "sort_entries_max"),
                sort_bytes_max: bytes("limits", "sort_bytes_max"),
            },
            background_interval: ms("node", "background_interval_ms"),
            batch_memory_bytes: bytes("limits", "batch_memory_bytes"),
            queries_max: bytes("limits", "queries_max"),
            connections_max: bytes("limits", "connections_max"),
            transfer_memory_bytes: bytes("limits", "transfer_memory_bytes"),
            drain_deadline: ms("node", "drain_deadline_ms"),
            scrub: ScrubOptions {
                rate_bytes: settings.integer("scrub", "rate_bytes"),
                interval: Duration::from_secs(settings.integer("scrub", "interval_days") * 86_400),
                hash: settings.bool("scrub", "hash"),
            },
            sockets: Sockets {
                data_path: path("data_path"),
                admin_path: path("admin_path"),
                data_access: access("allow_uids", "allow_gids"),
                admin_access: access("admin_allow_uids", "admin_allow_gids"),
                handshake_deadline: ms("sockets", "handshake_deadline_ms"),
                keepalive: ms("sockets", "keepalive_ms"),
                stall_deadline: ms("sockets", "stall_deadline_ms"),
                lanes_max: bytes("sockets", "lanes_max"),
            },
        }
    }
}

/// Reads and checks `NODE/basalt.toml` (absent: the defaults) and the environment against the node's table and those of other readers.
pub fn load_settings(node: &Path, foreign: &[&'static [Setting]]) -> Result<Settings, ConfigError> {
    let path = node.join(FILE_NAME);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(err) => {
            let message = format!("the file can't be read: {err}");
            let remedy = "make it readable for the user that runs the node".to_owned();
            return Err(ConfigError { path, problems: vec![Problem { place: Place::File, message, remedy }] });
        }
    };
    let tables: Vec<_> = std::iter::once(SETTINGS).chain(foreign.iter().copied()).collect();
    Settings::check(&text, &path, &tables, &|name| std::env::var(name).ok())
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn integer(value: impl TryInto<u64>) -> Value {
    Value::Integer(value.try_into().unwrap_or(u64::MAX))
}

fn ms(value: Duration) -> Value {
    integer(value.as_millis())
}

fn list(values: &[String]) -> Value {
    Value::List(values.to_vec())
}

/// The node's own keys. Defaults come from the options of the stores, so that no number stands twice.
pub const SETTINGS: &[Setting] = &[
    Setting {
        section: "node",
        key: "durability",
        kind: Kind::Choice(&["strict", "ordered", "relaxed"]),
        default: || Value::Text(StoreOptions::default().durability.name().to_owned()),
        reload: false,
        about: "What an acknowledged write promises. `strict`: it is on stable storage. `ordered`: blocks are durable within a bounded \
                delay, and always before any pin or name that was written after them; only for a node that holds blocks and metadata \
                both. `relaxed`: durable at Sync or within the same delay.",
    },
    Setting {
        section: "node",
        key: "shards",
        kind: Kind::Integer { min: 0, max: 4096 },
        default: || integer(0u64),
        reload: false,
        about: "How many shards the node has. Fixed at `basalt init`; a number here is only compared with that. 0: don't compare.",
    },
    Setting {
        section: "node",
        key: "background_interval_ms",
        kind: Kind::Integer { min: 1000, max: 86_400_000 },
        default: || integer(60_000u64),
        reload: false,
        about: "Time between two passes that drop expired keys and give space back.",
    },
    Setting {
        section: "node",
        key: "drain_deadline_ms",
        kind: Kind::Integer { min: 0, max: 600_000 },
        default: || integer(10_000u64),
        reload: false,
        about: "How long calls under way may take to finish when the node closes; what is left then is cut off.",
    },
    Setting {
        section: "limits",
        key: "value_bytes_max",
        kind: Kind::Bytes { min: 4 * MIB, max: GIB },
        default: || integer(StoreOptions::default().value_bytes_max),
        reload: false,
        about: "Largest value. Kubo makes blocks of at most 2 MiB.",
    },
    Setting {
        section: "limits",
        key: "key_bytes_max",
        kind: Kind::Bytes { min: 256, max: 64 * KIB },
        default: || integer(StoreOptions::default().key_bytes_max),
        reload: false,
        about: "Longest key.",
    },
    Setting {
        section: "limits",
        key: "batch_bytes_max",
        kind: Kind::Bytes { min: MIB, max: 16 * GIB },
        default: || integer(DatastoreOptions::default().batch_bytes_max),
        reload: false,
        about: "Largest batch, keys and values together.",
    },
    Setting {
        section: "limits",
        key: "batch_memory_bytes",
        kind: Kind::Bytes { min: MIB, max: 64 * GIB },
        default: || integer(GIB),
        reload: false,
        about: "Memory for all batches that clients are sending at a time; a batch beyond it is refused.",
    },
    Setting {
        section: "limits",
        key: "sort_entries_max",
        kind: Kind::Integer { min: 1, max: 1 << 32 },
        default: || integer(DatastoreOptions::default().sort_entries_max),
        reload: false,
        about: "Most entries that a query may sort in memory. Queries in key order need no sort.",
    },
    Setting {
        section: "limits",
        key: "sort_bytes_max",
        kind: Kind::Bytes { min: MIB, max: TIB },
        default: || integer(DatastoreOptions::default().sort_bytes_max),
        reload: false,
        about: "Most bytes of keys and values that a query may sort in memory.",
    },
    Setting {
        section: "limits",
        key: "queries_max",
        kind: Kind::Integer { min: 1, max: 1 << 16 },
        default: || integer(256u64),
        reload: false,
        about: "Queries that may be under way at a time, and a quarter of them for one client; the next ones wait. One whose client has read nothing \
                for 5 s is broken off, with an error, when others wait.",
    },
    Setting {
        section: "limits",
        key: "connections_max",
        kind: Kind::Integer { min: 1, max: 1 << 16 },
        default: || integer(1024u64),
        reload: false,
        about: "Connections that may be open at a time on each socket, and not more than a quarter of the open files that the process may have. \
                A further one takes the place of one that has asked for nothing yet, or is closed.",
    },
    Setting {
        section: "limits",
        key: "transfer_memory_bytes",
        kind: Kind::Bytes { min: 16 * MIB, max: 64 * GIB },
        default: || integer(512 * MIB),
        reload: false,
        about: "Memory for requests that are being received and answers that clients have not taken yet, on both sockets together; never less than \
                four of the largest messages. Beyond it the client that holds most is cut off.",
    },
    Setting {
        section: "limits",
        key: "unflushed_bytes_max",
        kind: Kind::Bytes { min: MIB, max: 64 * GIB },
        default: || integer(StoreOptions::default().unflushed_bytes_max),
        reload: false,
        about: "Puts wait while this much is written and not durable.",
    },
    Setting {
        section: "limits",
        key: "open_files_max",
        kind: Kind::Integer { min: 16, max: 1 << 20 },
        default: || integer(StoreOptions::default().open_files_max),
        reload: false,
        about: "Segment files held open for reading, per shard.",
    },
    Setting {
        section: "limits",
        key: "index_memory_bytes",
        kind: Kind::Bytes { min: MIB, max: TIB },
        default: || integer(StoreOptions::default().index_memory_bytes),
        reload: false,
        about: "Memory of the indexes' block cache, which all shards and the keyspace share.",
    },
    Setting {
        section: "store",
        key: "verify_on_put",
        kind: Kind::Bool,
        default: || Value::Bool(StoreOptions::default().verify_on_put),
        reload: false,
        about: "Refuse a block that does not hash to its key. Kubo has hashed it already.",
    },
    Setting {
        section: "store",
        key: "corrupt",
        kind: Kind::Choice(&["refetch", "error"]),
        default: || {
            let name = match StoreOptions::default().corrupt {
                OnCorrupt::Refetch => "refetch",
                OnCorrupt::Error => "error",
            };
            Value::Text(name.to_owned())
        },
        reload: false,
        about: "What a damaged block looks like to Kubo: `refetch` is absent, so that Kubo fetches it again; `error` fails the read.",
    },
    Setting {
        section: "store",
        key: "segment_bytes",
        kind: Kind::Bytes { min: MIB, max: 64 * GIB },
        default: || integer(StoreOptions::default().segment_bytes),
        reload: false,
        about: "A segment file is sealed when it has this size.",
    },
    Setting {
        section: "store",
        key: "flush_delay_ms",
        kind: Kind::Integer { min: 1, max: 60_000 },
        default: || ms(StoreOptions::default().flush_delay),
        reload: false,
        about: "`ordered` and `relaxed`: a flush starts at most this long after the oldest write that is not durable.",
    },
    Setting {
        section: "store",
        key: "idle_mark_delay_ms",
        kind: Kind::Integer { min: 1, max: 3_600_000 },
        default: || ms(StoreOptions::default().idle_mark_delay),
        reload: false,
        about: "A log that was idle this long gets a mark, below which damage is told from a torn write.",
    },
    Setting {
        section: "store",
        key: "flush_deadline_ms",
        kind: Kind::Integer { min: 100, max: 3_600_000 },
        default: || ms(StoreOptions::default().flush_deadline),
        reload: false,
        about: "A write that waits longer for the disk gets `Unavailable`, and its shard takes no more writes until it is reopened.",
    },
    Setting {
        section: "store",
        key: "replay_bytes_max",
        kind: Kind::Bytes { min: MIB, max: TIB },
        default: || integer(StoreOptions::default().replay_bytes_max),
        reload: false,
        about: "The index is flushed when opening would have to replay more of the log than this...",
    },
    Setting {
        section: "store",
        key: "replay_records_max",
        kind: Kind::Integer { min: 1, max: 1 << 32 },
        default: || integer(StoreOptions::default().replay_records_max),
        reload: false,
        about: "...or more records than this.",
    },
    Setting {
        section: "store",
        key: "reserve_bytes",
        kind: Kind::Bytes { min: 0, max: TIB },
        default: || integer(StoreOptions::default().reserve_bytes),
        reload: false,
        about: "Puts get `NoSpace` while less than this is free, so that deletes still work on a full disk.",
    },
    Setting {
        section: "store",
        key: "punch_bytes_min",
        kind: Kind::Bytes { min: 4 * KIB, max: GIB },
        default: || integer(StoreOptions::default().punch_bytes_min),
        reload: false,
        about: "A deleted block of at least this size is punched out of its segment.",
    },
    Setting {
        section: "store",
        key: "compact_dead_percent",
        kind: Kind::Integer { min: 1, max: 99 },
        default: || integer(StoreOptions::default().compact_dead_percent),
        reload: false,
        about: "A sealed segment is compacted when more than this share of it is dead.",
    },
    Setting {
        section: "store",
        key: "recycle_segments_max",
        kind: Kind::Integer { min: 0, max: 1024 },
        default: || integer(StoreOptions::default().recycle_segments_max),
        reload: false,
        about: "Spent segments kept for new writes, per shard; they count as free.",
    },
    Setting {
        section: "store",
        key: "unordered_prefixes",
        kind: Kind::List,
        default: || list(&DatastoreOptions::default().unordered_prefixes),
        reload: false,
        about: "Keys under these prefixes refer to no block: in `ordered` they wait for no flush (provider and DHT bookkeeping).",
    },
    Setting {
        section: "scrub",
        key: "rate_bytes",
        kind: Kind::Bytes { min: 0, max: TIB },
        default: || integer(16 * MIB),
        reload: false,
        about: "Everything is read back from the disk in the background, all stores together at no more than this many bytes a second; 0 turns that off. \
                At 16 MiB a second a pass over 10 TiB takes a little more than a week.",
    },
    Setting {
        section: "scrub",
        key: "interval_days",
        kind: Kind::Integer { min: 0, max: 3650 },
        default: || integer(30u64),
        reload: false,
        about: "Days from the end of a pass over a store to its next one, give or take a tenth so that stores and nodes don't go in step. 0: only when \
                asked, by `basalt scrub start`.",
    },
    Setting {
        section: "scrub",
        key: "hash",
        kind: Kind::Bool,
        default: || Value::Bool(false),
        reload: false,
        about: "Hash blocks against their multihashes too. Rot is found by checksums; this finds blocks that came wrong, and costs a hash of everything.",
    },
    Setting {
        section: "sockets",
        key: "data_path",
        kind: Kind::Text,
        default: || Value::Text(String::new()),
        reload: false,
        about: "Data socket. Empty: `run/data.sock` in the node's folder, or `$XDG_RUNTIME_DIR/basalt/<node id>/data.sock` where that \
                path is too long or read-only.",
    },
    Setting {
        section: "sockets",
        key: "admin_path",
        kind: Kind::Text,
        default: || Value::Text(String::new()),
        reload: false,
        about: "Admin socket; as `data_path`.",
    },
    Setting {
        section: "sockets",
        key: "allow_uids",
        kind: Kind::List,
        default: || Value::List(vec!["self".to_owned(), "root".to_owned()]),
        reload: false,
        about: "Users, by name or number, that may connect to the data socket; `self` is the one that the node runs as.",
    },
    Setting {
        section: "sockets",
        key: "allow_gids",
        kind: Kind::List,
        default: || Value::List(vec!["basalt".to_owned()]),
        reload: false,
        about: "Groups, by name or number, whose members may connect to the data socket; one that the machine does not have admits \
                nobody. The first that it has owns the socket.",
    },
    Setting {
        section: "sockets",
        key: "admin_allow_uids",
        kind: Kind::List,
        default: || Value::List(vec!["self".to_owned(), "root".to_owned()]),
        reload: false,
        about: "As `allow_uids`, for the admin socket.",
    },
    Setting {
        section: "sockets",
        key: "admin_allow_gids",
        kind: Kind::List,
        default: || Value::List(vec!["basalt".to_owned()]),
        reload: false,
        about: "As `allow_gids`, for the admin socket.",
    },
    Setting {
        section: "sockets",
        key: "handshake_deadline_ms",
        kind: Kind::Integer { min: 100, max: 3_600_000 },
        default: || integer(10_000u64),
        reload: false,
        about: "A connection that has asked for nothing by then is closed: for the data socket, that has not shaken hands.",
    },
    Setting {
        section: "sockets",
        key: "keepalive_ms",
        kind: Kind::Integer { min: 100, max: 3_600_000 },
        default: || integer(60_000u64),
        reload: false,
        about: "Time between two pings to each client; one that answers none within 20 s is cut off.",
    },
    Setting {
        section: "sockets",
        key: "stall_deadline_ms",
        kind: Kind::Integer { min: 100, max: 3_600_000 },
        default: || integer(60_000u64),
        reload: false,
        about: "A client that does not take a single byte of what waits for it for this long is cut off. A program that is slow to use what \
                its gRPC library has read is not meant.",
    },
    Setting {
        section: "sockets",
        key: "lanes_max",
        kind: Kind::Integer { min: 0, max: 4096 },
        default: || integer(64u64),
        reload: false,
        about: "Fast lanes (small framed messages beside gRPC on the data socket) that may be open at a time, two threads each; a Kubo has up to four. Who \
                finds none left is served by gRPC. 0: no lanes.",
    },
];

#[cfg(test)]
mod tests;
