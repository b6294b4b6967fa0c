//! The folder of a node, and how it comes to be.
//!
//! ```text
//! NODE/node.json       what the node is; written last by init, so that a folder with it is a whole node
//! NODE/basalt.toml     what its operator chose
//! NODE/shards/00..     one folder a shard (elsewhere where init was given paths); one that is a mount of its own has a basalt.place
//! NODE/keyspace        all that is not a block
//! NODE/run             data.sock, admin.sock while somebody serves
//! NODE/lock            who has it open
//! NODE/starting.lock   who is starting an owner
//! ```
//!
//! Init leaves `init.partial` while it is at work: a folder with that mark and no `node.json` is what a killed init left, and the next
//! init takes it over. Any other folder that holds something is not ours, and is refused.

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use basalt_blockstore::{Durability, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::{
    config,
    lock::{self, Host, OwnerLock},
    mooring::{self, Place},
};

/// The file that makes a folder a node.
pub const NODE_FILE: &str = "node.json";
/// The newest `node.json` that this version reads and the one that it writes.
pub const FORMAT: u32 = 1;
const PARTIAL_FILE: &str = "init.partial";
const RUN_DIR: &str = "run";
const KEYSPACE: &str = "keyspace";
/// What an empty file system may have in it, and what an init that was killed leaves in a folder that is a mount.
const EMPTY: &[&str] = &["lost+found", ".zfs", mooring::FILE_NAME];
/// Most shards of one node; each costs its own flush and index.
pub const SHARDS_MAX: usize = 4096;
/// Weight of a shard on the ring where nothing else is said.
const WEIGHT: u32 = 100;

/// A node's name: 128 random bits made at init, as 32 hex digits. Kubo's `datastore_spec` holds it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

impl NodeId {
    /// A new one, of the operating system's random bytes.
    pub fn random() -> Result<NodeId> {
        Ok(NodeId(hex(&random_bytes()?)))
    }

    /// The 32 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<NodeId> {
        unhex(text).map(|_| NodeId(text.to_owned())).ok_or_else(|| {
            Error::new(ErrorKind::InvalidValue, format!("'{text}' is no node id: 32 hex digits in lower case"))
        })
    }
}

impl TryFrom<String> for NodeId {
    type Error = Error;

    fn try_from(text: String) -> Result<NodeId> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> String {
        id.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a node takes data clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does.
    Ready,
    /// A migration fills it: only clients of the role `migrate` are served.
    Migrating,
}

/// The content of `node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// Version of the folder's format; what is newer than [`FORMAT`] is refused.
    pub format: u32,
    /// The node's name.
    pub node_id: NodeId,
    /// Key of the ring's hash as 32 hex digits: it decides which shard a block belongs to, for ever.
    pub ring_key: String,
    /// The shards, in the order of their ids.
    pub shards: Vec<ShardPlace>,
    /// Whether the keyspace's folder was a mount of its own when the node was made: then it must be that mount at every open.
    #[serde(default, skip_serializing_if = "is_not")]
    pub keyspace_is_mount: bool,
    /// When init made the node, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// Whether it takes data clients.
    pub state: State,
}

/// Where a shard lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardPlace {
    /// Its folder; relative to the node's unless absolute.
    pub path: PathBuf,
    /// Its share on the ring, relative to the others.
    pub weight: u32,
    /// Whether its folder was a mount of its own (a dataset, a disk) when the node was made: then it must be that mount at every open.
    #[serde(default, skip_serializing_if = "is_not")]
    pub is_mount: bool,
}

fn is_not(what: &bool) -> bool {
    !what
}

/// What init is to make.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Folders of the shards outside of the node's (one per device or dataset); empty: `shards` folders inside.
    pub shard_paths: Vec<PathBuf>,
    /// How many shards, where `shard_paths` is empty.
    pub shards: usize,
    /// Written into the config.
    pub durability: Durability,
    /// `Migrating` for a node that a migration is about to fill.
    pub state: State,
    /// The node's name, where whoever makes it has written that down already (a Kubo repo's `datastore_spec`); none: a new one.
    pub node_id: Option<NodeId>,
    /// The folders of the shards and of the keyspace are there already, each a mount of its own (datasets): else init fails.
    pub own_mounts: bool,
}

impl Default for InitOptions {
    fn default() -> InitOptions {
        InitOptions {
            shard_paths: Vec::new(),
            shards: 1,
            durability: Durability::Strict,
            state: State::Ready,
            node_id: None,
            own_mounts: false,
        }
    }
}

impl NodeFile {
    /// Reads `node.json` of a folder. A folder that is missing, is no node, or is of a newer format: an error that says so.
    pub fn read(node: &Path) -> Result<NodeFile> {
        let path = node.join(NODE_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(not_a_node(node));
            }
            Err(err) => return Err(Error::io(format!("read {}", path.display()), err)),
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |err: serde_json::Error| {
            Error::new(
                ErrorKind::Format,
                format!(
                    "{} does not read as a node's: {err}; restore the file from a snapshot or backup",
                    path.display()
                ),
            )
        };
        // The version first: everything else of a newer file may look different.
        let Format { format } = serde_json::from_str(&text).map_err(damaged)?;
        if format > FORMAT {
            return Err(Error::new(
                ErrorKind::Format,
                format!(
                    "node {} has format {format}, this basalt reads up to {FORMAT}: install the version that last ran it, or a newer one",
                    node.display()
                ),
            ));
        }
        let file: NodeFile = serde_json::from_str(&text).map_err(damaged)?;
        if file.shards.is_empty() || unhex(&file.ring_key).is_none() {
            return Err(Error::new(
                ErrorKind::Format,
                format!(
                    "{} names no shards or no ring key; restore the file from a snapshot or backup",
                    path.display()
                ),
            ));
        }
        Ok(file)
    }

    /// Replaces `node.json`, atomically and durably.
    pub fn write(&self, node: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|err| Error::new(ErrorKind::Format, format!("write {NODE_FILE}: {err}")))?;
        replace_file(node, NODE_FILE, &format!("{text}\n"))
    }

    /// The folders that must be the mounts that they were made on.
    pub(crate) fn mounts(&self, node: &Path) -> Vec<Place> {
        let shards = self.shards.iter().filter(|shard| shard.is_mount).map(|shard| shard.path.as_path());
        let keyspace = self.keyspace_is_mount.then_some(Path::new(KEYSPACE));
        shards.chain(keyspace).map(|place| Place { dir: node.join(place), place: place.to_owned() }).collect()
    }

    /// Where the stores lie.
    pub fn layout(&self, node: &Path) -> Result<basalt_datastore::Layout> {
        let ring_key = unhex(&self.ring_key).ok_or_else(|| {
            Error::new(
                ErrorKind::Format,
                format!("{}: the ring key is not 32 hex digits", node.join(NODE_FILE).display()),
            )
        })?;
        Ok(basalt_datastore::Layout {
            shards: self.shards.iter().map(|shard| (node.join(&shard.path), shard.weight)).collect(),
            keyspace: node.join(KEYSPACE),
            ring_key,
        })
    }
}

/// Makes a node of an empty or missing folder. Killed at any point it leaves a folder that the next init takes over.
pub fn init(node: &Path, options: &InitOptions) -> Result<NodeFile> {
    let shards = if options.shard_paths.is_empty() { options.shards } else { options.shard_paths.len() };
    if shards == 0 || shards > SHARDS_MAX {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            format!("init {}: a node has 1 to {SHARDS_MAX} shards, not {shards}", node.display()),
        ));
    }
    make_dir(node, 0o750)?;
    // Looked at before anything is made, so that a foreign folder stays as it was.
    if !is_partial(node)? {
        refuse_foreign(node, options.own_mounts)?;
    }
    let _lock = OwnerLock::take(node, Host::Command("basalt init"))?;
    // Another init may have been faster until the lock was ours.
    if node.join(NODE_FILE).exists() {
        return Err(is_a_node(node));
    }
    replace_file(node, PARTIAL_FILE, "basalt init is at work here, or was killed: run it again\n")?;
    let places = if options.shard_paths.is_empty() {
        let width = if shards > 100 { 4 } else { 2 };
        (0..shards).map(|id| Path::new("shards").join(format!("{id:0width$}"))).collect()
    } else {
        options
            .shard_paths
            .iter()
            .map(|path| {
                std::path::absolute(path).map_err(|err| Error::io(format!("shard path {}", path.display()), err))
            })
            .collect::<Result<Vec<_>>>()?
    };
    for (i, place) in places.iter().enumerate() {
        if places.iter().take(i).any(|other| other == place) {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                format!("two shards can't share the folder {}", place.display()),
            ));
        }
        let dir = node.join(place);
        make_dir(&dir, 0o700)?;
        if entries(&dir)?.iter().any(|name| !EMPTY.contains(&name.as_str())) {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                format!("shard folder {} is not empty: name an empty one, or empty it", dir.display()),
            ));
        }
    }
    let keyspace = node.join(KEYSPACE);
    make_dir(&keyspace, 0o700)?;
    let node_id = match &options.node_id {
        Some(id) => id.clone(),
        None => NodeId::random()?,
    };
    let moor = |place: &Path| -> Result<bool> {
        let dir = node.join(place);
        let is_mount = mooring::is_mount(&dir)?;
        match is_mount {
            true => mooring::write(&dir, &node_id, place)?,
            false if options.own_mounts => {
                return Err(Error::new(
                    ErrorKind::InvalidValue,
                    format!(
                        "{} is to be a mount of its own, and nothing is mounted there: mount its dataset first",
                        dir.display()
                    ),
                ));
            }
            false => {}
        }
        Ok(is_mount)
    };
    let shards = places
        .into_iter()
        .map(|path| Ok(ShardPlace { is_mount: moor(&path)?, path, weight: WEIGHT }))
        .collect::<Result<Vec<_>>>()?;
    let keyspace_is_mount = moor(Path::new(KEYSPACE))?;
    let toml = format!(
        "# What is not set here has its default: `basalt config reference`. `basalt config check` looks for mistakes.\n\n\
         [node]\ndurability = \"{}\"\n",
        options.durability
    );
    replace_file(node, config::FILE_NAME, &toml)?;
    let file = NodeFile {
        format: FORMAT,
        node_id,
        ring_key: hex(&random_bytes()?),
        shards,
        keyspace_is_mount,
        created_unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64),
        state: options.state,
    };
    file.write(node)?;
    // A node.json decides; a mark that stays behind is ignored and removed by the next write here.
    let _ = fs::remove_file(node.join(PARTIAL_FILE));
    Ok(file)
}

/// Marks a node as filled (or as being filled) by a migration; the caller holds no lock and the node is closed.
pub fn set_state(node: &Path, state: State) -> Result<NodeFile> {
    let _lock = OwnerLock::take(node, Host::Command("basalt mark"))?;
    let mut file = NodeFile::read(node)?;
    file.state = state;
    file.write(node)?;
    Ok(file)
}

fn not_a_node(node: &Path) -> Error {
    let message = match fs::metadata(node) {
        Err(_) => {
            format!("there is no folder {}: make a node with `basalt init --node {}`", node.display(), node.display())
        }
        Ok(meta) if !meta.is_dir() => format!("{} is not a folder: name the folder of a node", node.display()),
        Ok(_) if node.join(PARTIAL_FILE).exists() => {
            format!("`basalt init` was stopped half way in {}: run it again", node.display())
        }
        Ok(_) => format!(
            "{} is not a Basalt node (it has no {NODE_FILE}): name the folder of a node, or make one with `basalt init --node PATH`",
            node.display()
        ),
    };
    Error::new(ErrorKind::Format, message)
}

fn is_a_node(node: &Path) -> Error {
    Error::new(
        ErrorKind::InvalidValue,
        format!("{} is a Basalt node already: use it as it is, or name another folder", node.display()),
    )
}

fn is_partial(node: &Path) -> Result<bool> {
    Ok(node.join(PARTIAL_FILE).exists() && !node.join(NODE_FILE).exists())
}

fn refuse_foreign(node: &Path, own_mounts: bool) -> Result<()> {
    let names = entries(node)?;
    if names.iter().any(|name| name == NODE_FILE) {
        return Err(is_a_node(node));
    }
    // Lock files may be there before there is a node: a starter or another init took them.
    let ours = [lock::OWNER_FILE, lock::STARTING_FILE, "lost+found", ".zfs", PARTIAL_NEW];
    // Mounted there before, each looked into by itself, and the declaration of them.
    let mounts = ["shards", KEYSPACE, "datasets.toml"];
    let is_ours = |name: &str| ours.contains(&name) || (own_mounts && mounts.contains(&name));
    match names.iter().find(|name| !is_ours(name)) {
        Some(name) => Err(Error::new(
            ErrorKind::InvalidValue,
            format!("{} is not empty (it holds '{name}'): name an empty or new folder for the node", node.display()),
        )),
        None => Ok(()),
    }
}

const PARTIAL_NEW: &str = "init.partial.new";

/// Folder of the sockets inside of the node's.
pub(crate) fn run_dir(node: &Path) -> PathBuf {
    node.join(RUN_DIR)
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    let read = || -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    read().map_err(|err| Error::io(format!("list {}", dir.display()), err))
}

/// Makes a folder and those above it; the names are durable.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> Result<()> {
    let make = || -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
        for above in dir.ancestors().skip(1).take(2).filter(|above| !above.as_os_str().is_empty()) {
            fs::File::open(above)?.sync_all()?;
        }
        Ok(())
    };
    make().map_err(|err| Error::io(format!("make folder {}", dir.display()), err))
}

/// Writes a file beside, flushes it, renames it over `name`, flushes the folder: after a crash there is the old content or the new.
pub(crate) fn replace_file(dir: &Path, name: &str, text: &str) -> Result<()> {
    let new = dir.join(format!("{name}.new"));
    let replace = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, dir.join(name))?;
        fs::File::open(dir)?.sync_all()
    };
    replace().map_err(|err| Error::io(format!("write {}", dir.join(name).display()), err))
}

/// 128 random bits of the operating system.
pub(crate) fn random_bytes() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|err| Error::new(ErrorKind::Io, format!("read random bytes of the operating system: {err}")))?;
    Ok(bytes)
}

fn hex(bytes: &[u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let lower = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let value = u128::from_str_radix(text, 16).ok().filter(|_| lower && text.len() == 32)?;
    Some(value.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<NodeFile>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn init_makes_a_node_that_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("a/b");
        let made =
            init(&node, &InitOptions { shards: 3, durability: Durability::Ordered, ..Default::default() }).unwrap();
        assert_eq!(NodeFile::read(&node).unwrap(), made);
        assert_eq!(made.shards.len(), 3);
        assert!(node.join("shards/02").is_dir() && node.join("keyspace").is_dir());
        assert!(!node.join(PARTIAL_FILE).exists());
        let config = config::Config::load(&node, &[]).unwrap();
        assert_eq!(config.datastore.durability, Durability::Ordered);
        let layout = made.layout(&node).unwrap();
        assert_eq!(layout.shards[1], (node.join("shards/01"), WEIGHT));
    }

    #[test]
    fn two_nodes_have_two_ids() {
        let dir = tempfile::tempdir().unwrap();
        let a = init(&dir.path().join("a"), &InitOptions::default()).unwrap();
        let b = init(&dir.path().join("b"), &InitOptions::default()).unwrap();
        assert_ne!(a.node_id, b.node_id);
        assert_ne!(a.ring_key, b.ring_key);
    }

    #[test]
    fn a_node_takes_the_name_that_was_written_down_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let id: NodeId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let made = init(dir.path(), &InitOptions { node_id: Some(id.clone()), ..Default::default() }).unwrap();
        assert_eq!(made.node_id, id);
        assert_eq!(NodeFile::read(dir.path()).unwrap().node_id, id);
    }

    #[test]
    fn a_node_is_not_made_twice() {
        let dir = tempfile::tempdir().unwrap();
        let made = init(dir.path(), &InitOptions::default()).unwrap();
        assert!(message(init(dir.path(), &InitOptions::default())).contains("is a Basalt node already"));
        assert_eq!(NodeFile::read(dir.path()).unwrap(), made);
    }

    #[test]
    fn a_foreign_folder_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        let err = init(dir.path(), &InitOptions::default()).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidValue);
        assert!(err.to_string().contains("thesis.tex"), "{err}");
        assert_eq!(entries(dir.path()).unwrap(), ["thesis.tex"]);
        assert!(message(NodeFile::read(dir.path())).contains("is not a Basalt node"));
        assert!(message(NodeFile::read(&dir.path().join("none"))).starts_with("there is no folder"));
        assert!(message(NodeFile::read(&dir.path().join("thesis.tex"))).contains("is not a folder"));
    }

    #[test]
    fn killed_init_does_not_block_the_next() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &InitOptions { shards: 2, ..Default::default() }).unwrap();
        // As a kill just before the last step leaves it.
        fs::remove_file(dir.path().join(NODE_FILE)).unwrap();
        fs::write(dir.path().join(PARTIAL_FILE), "").unwrap();
        assert!(message(NodeFile::read(dir.path())).contains("stopped half way"));
        init(dir.path(), &InitOptions { shards: 2, ..Default::default() }).unwrap();
        // As a kill before the mark was in place leaves it.
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(PARTIAL_NEW), "").unwrap();
        init(dir.path(), &InitOptions::default()).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_by_number() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NODE_FILE), r#"{"format": 7, "shape": "unknown"}"#).unwrap();
        let err = NodeFile::read(dir.path()).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Format);
        assert!(err.to_string().contains("has format 7"), "{err}");
        fs::write(dir.path().join(NODE_FILE), "{").unwrap();
        assert!(message(NodeFile::read(dir.path())).contains("restore the file"));
    }

    #[test]
    fn shards_on_other_devices_are_empty_folders_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let disks: Vec<_> = ["d0", "d1"].map(|name| dir.path().join(name)).to_vec();
        let options = InitOptions { shard_paths: disks.clone(), ..Default::default() };
        let made = init(&dir.path().join("node"), &options).unwrap();
        assert_eq!(made.layout(&dir.path().join("node")).unwrap().shards[1].0, disks[1]);
        fs::write(disks[0].join("x"), "").unwrap();
        assert!(message(init(&dir.path().join("other"), &options)).contains("is not empty"));
        let twice = InitOptions { shard_paths: vec![disks[1].clone(), disks[1].clone()], ..Default::default() };
        assert!(message(init(&dir.path().join("third"), &twice)).contains("can't share"));
        let none = InitOptions { shards: 0, ..Default::default() };
        assert!(message(init(&dir.path().join("fourth"), &none)).contains("1 to 4096 shards, not 0"));
    }

    #[test]
    fn a_shard_whose_mount_is_missing_is_refused_and_its_bare_folder_stays_empty() {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions { own_mounts: true, ..Default::default() };
        assert!(message(init(&dir.path().join("a"), &options)).contains("nothing is mounted there"));
        let node = dir.path().join("node");
        let mut file = init(&node, &InitOptions::default()).unwrap();
        assert!(!fs::read_to_string(node.join(NODE_FILE)).unwrap().contains("is_mount"), "nor is it in the file then");
        // As of a node whose shard is a mount, which isn't there.
        file.shards[0].is_mount = true;
        file.write(&node).unwrap();
        assert_eq!(NodeFile::read(&node).unwrap(), file);
        let open = || crate::Node::open(&node, config::Config::load(&node, &[]).unwrap(), Host::Agent).map(drop);
        let err = open().unwrap_err();
        assert!(err.kind() == ErrorKind::Unavailable && err.to_string().contains("is not mounted"), "{err}");
        assert!(entries(&node.join("shards/00")).unwrap().is_empty());
        mooring::write(&node.join("shards/00"), &file.node_id, Path::new("shards/00")).unwrap();
        open().unwrap();
    }

    #[test]
    fn node_ids_are_parsed_strictly() {
        assert!("0123456789abcdef0123456789abcdef".parse::<NodeId>().is_ok());
        for bad in ["", "0123", "0123456789ABCDEF0123456789ABCDEF", "+123456789abcdef0123456789abcdef"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }
}
