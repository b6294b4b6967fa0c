//! What is declared: which datasets a node has, where each is mounted, which properties it is to have. Written by init into `datasets.toml` of
//! the node's folder, and the operator's from then on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use basalt_zfs::{Dataset, Pool, PropertyName};
use serde::{Deserialize, Serialize};

use crate::property;

/// The file of the declaration, in the node's folder.
pub const FILE_NAME: &str = "datasets.toml";

/// What a dataset is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The node's folder, in which all others lie: `node.json`, the config.
    Node,
    /// Holds the shards' datasets and the properties that they share. Never mounted, holds no data.
    Shards,
    /// One shard: its log of blocks and its index.
    Shard(u32),
    /// All that is not a block: pins, names, the MFS root.
    Keyspace,
    /// Kubo's repo folder: its config and keystore.
    Repo,
    /// Keeps space back for deletes by its reservation, which the node lifts when a quota or the pool is full. Never mounted, holds no data.
    Reserve,
}

impl Role {
    /// The section of `datasets.toml` with its properties.
    pub fn section(self) -> &'static str {
        match self {
            Role::Node => "node",
            Role::Shards | Role::Shard(_) => "shards",
            Role::Keyspace => "keyspace",
            Role::Repo => "repo",
            Role::Reserve => "reserve",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Shard(id) => write!(f, "shard {id:02}"),
            other => f.write_str(other.section()),
        }
    }
}

/// A dataset of a node, as it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What for.
    pub role: Role,
    /// Its name.
    pub dataset: Dataset,
    /// Where it is mounted; none for what is never mounted and holds no data.
    pub mountpoint: Option<PathBuf>,
    /// The properties that it is to have, as `zfs get -p` prints them. What lies in it inherits them unless it has its own.
    pub properties: BTreeMap<PropertyName, String>,
}

/// How the datasets of a node are encrypted, where that is asked for: the node's dataset is the root of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// `raw`, `hex` or `passphrase`.
    pub keyformat: String,
    /// Where ZFS finds the key: `file:///...`, outside of the node. A prompt can't be answered by a service.
    pub keylocation: String,
}

/// What `datasets.toml` holds. [`Layout::new`] checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// The dataset that is mounted at the node's folder.
    pub dataset: String,
    /// The shards' datasets, in the order of their ids.
    pub shards: Vec<String>,
    /// The dataset of all that is not a block.
    pub keyspace: String,
    /// The dataset of Kubo's repo folder, where it is one of this node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<Repo>,
    /// How they are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Properties by section ([`Role::section`]), over the defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, BTreeMap<String, String>>,
}

/// The dataset of Kubo's repo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repo {
    /// Its name.
    pub dataset: String,
    /// Kubo's repo folder (`$IPFS_PATH`).
    pub mountpoint: PathBuf,
}

/// Most shards that are declared at once: as many as a node may have.
pub const SHARDS_MAX: usize = 4096;

impl Declaration {
    /// The usual one: all below `dataset`, `shards` of them.
    pub fn below(dataset: &Dataset, shards: usize) -> Declaration {
        let width = if shards > 100 { 4 } else { 2 };
        Declaration {
            dataset: dataset.to_string(),
            shards: (0..shards).map(|id| format!("{dataset}/shards/{id:0width$}")).collect(),
            keyspace: format!("{dataset}/keyspace"),
            repo: None,
            encryption: None,
            properties: BTreeMap::new(),
        }
    }

    /// Reads the text of `datasets.toml`.
    pub fn parse(text: &str) -> Result<Declaration, LayoutError> {
        toml::from_str(text).map_err(|e| LayoutError(e.to_string().trim_end().to_owned()))
    }

    /// The text of `datasets.toml`.
    pub fn to_toml(&self) -> Result<String, LayoutError> {
        let body = toml::to_string(self).map_err(|e| LayoutError(e.to_string()))?;
        Ok(format!(
            "# The ZFS datasets of this node. `basalt dataset drift` says how what is there differs, `basalt dataset apply` makes it so.\n\
             # Properties may be set over the defaults, by [properties.node], [properties.shards], [properties.keyspace], [properties.repo];\n\
             # [properties.reserve] \"basalt:reserve\" is how much is kept back for deletes.\n\n{body}"
        ))
    }
}

/// A declaration that makes no sense: which part of it, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutError(pub(crate) String);

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LayoutError {}

/// The datasets of one node: a declaration that was checked, with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    node_id: String,
    members: Vec<Member>,
    encryption: Option<Encryption>,
}

/// What every node's datasets have unless something else is declared. The node's are inherited by all; docs/decisions/datasets.md says why these.
const DEFAULTS: &[(&str, &[(&str, &str)])] = &[
    (
        "node",
        &[
            ("atime", "off"),
            ("compression", "lz4"),
            ("dedup", "off"),
            // Nobody runs or opens what a stream may have brought; the privileged helper mounts nothing without.
            ("devices", "off"),
            ("logbias", "latency"),
            ("primarycache", "all"),
            ("redundant_metadata", "all"),
            ("setuid", "off"),
            ("sync", "standard"),
            ("xattr", "sa"),
        ],
    ),
    ("shards", &[("recordsize", "262144")]),
    ("keyspace", &[("recordsize", "131072")]),
    ("repo", &[("recordsize", "131072")]),
    ("reserve", &[(RESERVE_PROPERTY, RESERVE_BYTES)]),
];

/// The user property that says how much the reserve keeps back while there is room, in bytes; the node reads it.
pub const RESERVE_PROPERTY: &str = "basalt:reserve";
/// Twice what a node wants free for tombstones, a flush of the index and a compaction by default.
const RESERVE_BYTES: &str = "134217728";

impl Layout {
    /// Checks a declaration of the node with this id in this folder (absolute).
    pub fn new(declared: &Declaration, node: &Path, node_id: &str) -> Result<Layout, LayoutError> {
        let refuse = |why: String| Err(LayoutError(why));
        let name = |what: &str, name: &str| {
            Dataset::from_str(name)
                .map_err(|e| LayoutError(format!("{what}: {e}; write a dataset's name, as in tank/basalt")))
        };
        if !node.is_absolute() {
            return refuse(format!("the node's folder {} is not an absolute path", node.display()));
        }
        if declared.shards.is_empty() || declared.shards.len() > SHARDS_MAX {
            return refuse(format!("shards: a node has 1 to {SHARDS_MAX} of them, not {}", declared.shards.len()));
        }
        let parent = name("dataset", &declared.dataset)?;
        if parent.parent().is_none() {
            return refuse(format!(
                "dataset: {parent} is a pool's own dataset, which can't be renamed, moved or restored: name one in it, as in {parent}/basalt"
            ));
        }
        let mut properties = properties_of(declared)?;
        let mut of = |role: Role| match role {
            Role::Shard(_) => BTreeMap::new(),
            other => properties.remove(other.section()).unwrap_or_default(),
        };
        let shards = declared.shards.iter().map(|shard| name("shards", shard)).collect::<Result<Vec<_>, _>>()?;
        let keyspace = name("keyspace", &declared.keyspace)?;
        let mut members = vec![Member {
            role: Role::Node,
            dataset: parent.clone(),
            mountpoint: Some(node.to_owned()),
            properties: of(Role::Node),
        }];
        // Shards that lie together share their properties through what they lie in; others have them of their own.
        let together = parent.child("shards").map_err(|e| LayoutError(e.to_string()))?;
        let shared = of(Role::Shards);
        if shards.iter().any(|shard| together.contains(shard)) {
            members.push(Member {
                role: Role::Shards,
                dataset: together.clone(),
                mountpoint: None,
                properties: shared.clone(),
            });
        }
        let width = if shards.len() > 100 { 4 } else { 2 };
        for (id, dataset) in (0..).zip(shards) {
            let own = match together.contains(&dataset) {
                true => BTreeMap::new(),
                false if parent.contains(&dataset) => shared.clone(),
                // Elsewhere, perhaps in another pool: nothing of the node's is inherited there.
                false => members
                    .first()
                    .map(|node| node.properties.clone())
                    .into_iter()
                    .flatten()
                    .chain(shared.clone())
                    .collect(),
            };
            members.push(Member {
                role: Role::Shard(id),
                dataset,
                mountpoint: Some(node.join("shards").join(format!("{id:0width$}"))),
                properties: own,
            });
        }
        members.push(Member {
            role: Role::Keyspace,
            dataset: keyspace,
            mountpoint: Some(node.join("keyspace")),
            properties: of(Role::Keyspace),
        });
        members.push(Member {
            role: Role::Reserve,
            dataset: parent.child("reserve").map_err(|e| LayoutError(e.to_string()))?,
            mountpoint: None,
            properties: of(Role::Reserve),
        });
        if let Some(repo) = &declared.repo {
            if !repo.mountpoint.is_absolute() {
                return refuse(format!("repo: its mountpoint {} is not an absolute path", repo.mountpoint.display()));
            }
            members.push(Member {
                role: Role::Repo,
                dataset: name("repo", &repo.dataset)?,
                mountpoint: Some(repo.mountpoint.clone()),
                properties: of(Role::Repo),
            });
        }
        let (mut names, mut places) = (BTreeSet::new(), BTreeSet::new());
        for member in &members {
            if !names.insert(&member.dataset) {
                return refuse(format!(
                    "{} is declared twice: every part of a node has a dataset of its own",
                    member.dataset
                ));
            }
            if member.mountpoint.as_ref().is_some_and(|place| !places.insert(place)) {
                return refuse(format!("{}: another dataset is mounted at the same folder", member.dataset));
            }
            if matches!(member.role, Role::Keyspace | Role::Repo) && !parent.contains(&member.dataset) {
                return refuse(format!(
                    "{}: {} must lie in {parent}, so that one snapshot has them together",
                    member.role, member.dataset
                ));
            }
            if let Some(path) = member
                .mountpoint
                .as_ref()
                .filter(|path| path.to_str().is_none_or(|text| text.chars().any(char::is_control)))
            {
                return refuse(format!("{}: ZFS can't have {} as a mountpoint", member.dataset, path.display()));
            }
        }
        if let Some(encryption) = &declared.encryption {
            if !matches!(encryption.keyformat.as_str(), "raw" | "hex" | "passphrase") {
                return refuse(format!(
                    "encryption: keyformat is raw, hex or passphrase, not {:?}",
                    encryption.keyformat
                ));
            }
            if !encryption.keylocation.starts_with("file:///") && !encryption.keylocation.starts_with("https://") {
                return refuse(format!(
                    "encryption: keylocation is file:///... or https://..., not {:?}; a service can't answer a prompt",
                    encryption.keylocation
                ));
            }
        }
        Ok(Layout { node_id: node_id.to_owned(), members, encryption: declared.encryption.clone() })
    }

    /// Reads the declaration in a node's folder; `None` where there is none, and the node lies in plain folders.
    pub fn read(node: &Path, node_id: &str) -> Result<Option<Layout>, LayoutError> {
        let path = node.join(FILE_NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(LayoutError(format!("read {}: {e}", path.display()))),
        };
        let node = std::path::absolute(node).map_err(|e| LayoutError(format!("{}: {e}", node.display())))?;
        let layout = Declaration::parse(&text).and_then(|declared| Layout::new(&declared, &node, node_id));
        layout.map(Some).map_err(|e| LayoutError(format!("{}: {e}", path.display())))
    }

    /// Whose datasets they are.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// All of them, each behind the one it lies in.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The one that is mounted at the node's folder.
    pub fn parent(&self) -> &Dataset {
        // There is one always: `new` put it there first.
        &self.members[0].dataset
    }

    /// Those that hold data: what one snapshot of the node is of.
    pub fn holding(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.mountpoint.is_some())
    }

    /// The same, by pool: one snapshot is atomic within one.
    pub fn holding_by_pool(&self) -> BTreeMap<Pool, Vec<&Member>> {
        let mut pools: BTreeMap<Pool, Vec<&Member>> = BTreeMap::new();
        for member in self.holding() {
            pools.entry(member.dataset.pool()).or_default().push(member);
        }
        pools
    }

    /// The one with this role.
    pub fn of(&self, role: Role) -> Option<&Member> {
        self.members.iter().find(|member| member.role == role)
    }

    /// How they are encrypted, if that was asked for.
    pub fn encryption(&self) -> Option<&Encryption> {
        self.encryption.as_ref()
    }
}

/// The declared properties by section, over the defaults, each in the form of `zfs get -p`.
fn properties_of(
    declared: &Declaration,
) -> Result<BTreeMap<&'static str, BTreeMap<PropertyName, String>>, LayoutError> {
    let mut all: BTreeMap<&'static str, BTreeMap<PropertyName, String>> = BTreeMap::new();
    let wrong = |why: String| LayoutError(why);
    for (section, defaults) in DEFAULTS {
        let into = all.entry(section).or_default();
        for (name, value) in *defaults {
            into.insert(name.parse().map_err(|e| wrong(format!("{e}")))?, (*value).to_owned());
        }
    }
    for (section, values) in &declared.properties {
        let Some(into) = all.get_mut(section.as_str()) else {
            return Err(wrong(format!(
                "[properties.{section}]: there is no such section; there are node, shards, keyspace, repo, reserve"
            )));
        };
        for (name, value) in values {
            let said = property::declared(name, value)
                .map_err(|why| wrong(format!("[properties.{section}] {name} = {value:?}: {why}")))?;
            into.insert(name.parse().map_err(|e| wrong(format!("[properties.{section}]: {e}")))?, said);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(declared: &Declaration) -> Result<Layout, String> {
        Layout::new(declared, Path::new("/srv/basalt"), "0123").map_err(|e| e.to_string())
    }

    fn below(shards: usize) -> Declaration {
        Declaration::below(&"tank/basalt".parse().unwrap(), shards)
    }

    #[test]
    fn a_declaration_reads_back_and_says_where_all_lies() {
        let declared = Declaration {
            repo: Some(Repo { dataset: "tank/basalt/repo".into(), mountpoint: "/home/ipfs/.ipfs".into() }),
            properties: [("shards".into(), [("recordsize".into(), "1M".into())].into())].into(),
            ..below(2)
        };
        assert_eq!(Declaration::parse(&declared.to_toml().unwrap()), Ok(declared.clone()));
        let layout = layout(&declared).unwrap();
        let all: Vec<_> = layout
            .members()
            .iter()
            .map(|m| {
                format!(
                    "{}: {} {}",
                    m.role,
                    m.dataset,
                    m.mountpoint.as_ref().map_or("-".into(), |p| p.display().to_string())
                )
            })
            .collect();
        assert_eq!(
            all,
            [
                "node: tank/basalt /srv/basalt",
                "shards: tank/basalt/shards -",
                "shard 00: tank/basalt/shards/00 /srv/basalt/shards/00",
                "shard 01: tank/basalt/shards/01 /srv/basalt/shards/01",
                "keyspace: tank/basalt/keyspace /srv/basalt/keyspace",
                "reserve: tank/basalt/reserve -",
                "repo: tank/basalt/repo /home/ipfs/.ipfs",
            ]
        );
        assert_eq!(layout.holding().count(), 5, "what holds no data needs no snapshot");
        let shards = layout.of(Role::Shards).unwrap();
        assert_eq!(shards.properties[&"recordsize".parse().unwrap()], "1048576");
    }

    #[test]
    fn a_shard_in_another_pool_inherits_nothing_and_has_all_of_its_own() {
        let mut declared = below(2);
        declared.shards[1] = "fast/basalt".into();
        let layout = layout(&declared).unwrap();
        let far = &layout.of(Role::Shard(1)).unwrap().properties;
        assert_eq!(
            (far[&"atime".parse().unwrap()].as_str(), far[&"recordsize".parse().unwrap()].as_str()),
            ("off", "262144")
        );
        assert!(layout.of(Role::Shard(0)).unwrap().properties.is_empty());
        assert_eq!(layout.holding_by_pool().len(), 2);
    }

    #[test]
    fn a_mistake_is_named_with_what_to_write_instead() {
        let with = |change: &dyn Fn(&mut Declaration)| {
            let mut declared = below(2);
            change(&mut declared);
            layout(&declared).unwrap_err()
        };
        assert!(with(&|d| d.dataset = "tank".into()).contains("as in tank/basalt"));
        assert!(with(&|d| d.shards.clear()).contains("1 to 4096"));
        assert!(with(&|d| d.shards[1] = d.shards[0].clone()).contains("declared twice"));
        assert!(with(&|d| d.keyspace = "other/keyspace".into()).contains("must lie in tank/basalt"));
        assert!(with(&|d| d.keyspace = "tank/ba@salt".into()).contains("keyspace"));
        assert!(
            with(&|d| d.properties = [("shard".into(), BTreeMap::new())].into())
                .contains("node, shards, keyspace, repo, reserve")
        );
        assert!(
            with(&|d| d.encryption = Some(Encryption { keyformat: "raw".into(), keylocation: "prompt".into() }))
                .contains("prompt")
        );
        assert!(Declaration::parse("dataset = 'tank/b'\nshrads = []\n").unwrap_err().to_string().contains("shrads"));
    }

    #[test]
    fn a_node_in_plain_folders_has_no_layout() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Layout::read(dir.path(), "0123"), Ok(None));
        fs::write(dir.path().join(FILE_NAME), below(1).to_toml().unwrap()).unwrap();
        let layout = Layout::read(dir.path(), "0123").unwrap().unwrap();
        assert_eq!(layout.parent().as_str(), "tank/basalt");
        assert_eq!(layout.members()[0].mountpoint.as_deref(), Some(dir.path()));
    }
}
