//! Where a node's data lies: its datasets, what of it is on none, and the record of its snapshots.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use basalt_datasets::Layout;
use basalt_node::{NodeFile, dataset_under};
use basalt_snapshots::{Content, Contents, SnapshotSet};
use basalt_zfs::{Cli, CliOptions, Dataset, Zfs};

use crate::{
    cli::{ConfigSource, SnapshotOptions},
    config::Loaded,
    exit::{Failure, Outcome},
};

/// A dataset and where it is mounted.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// The dataset.
    pub dataset: Dataset,
    /// Its mountpoint.
    pub at: PathBuf,
    /// What it holds, where that is of one class.
    pub content: Option<Content>,
}

/// Where a node's data lies.
#[derive(Debug)]
pub struct Place {
    /// The node's folder, absolute.
    pub node: PathBuf,
    /// What the node is; none where its folder is empty, as after an accident.
    pub file: Option<NodeFile>,
    /// Its id; empty with `file`.
    pub node_id: String,
    /// Its datasets, metadata first; empty where they have to come from the record.
    pub members: Vec<Mounted>,
    /// Kubo's repo folder, if it was found.
    pub repo: Option<PathBuf>,
    /// What no set has, for people.
    pub lacks: Vec<String>,
    /// Folder of the record.
    pub state: PathBuf,
    /// The node's config.
    pub config: Loaded,
    named: Vec<Dataset>,
}

/// The real ZFS.
pub fn zfs() -> Outcome<Arc<dyn Zfs>> {
    let cli = Cli::new(CliOptions::default()).map_err(|err| Failure::new(err.to_string()))?;
    Ok(Arc::new(cli))
}

impl Place {
    /// Looks where a node's data lies. A node whose folder is empty is one that can only be restored.
    pub fn find(node: &Path, options: &SnapshotOptions) -> Outcome<Place> {
        let node =
            std::path::absolute(node).map_err(|err| Failure::io(format!("node folder {}", node.display()), err))?;
        let config = Loaded::load(&node, &source())?;
        let named =
            options.datasets.iter().map(|name| name.parse().map_err(|err| Failure::usage(format!("--dataset: {err}"))));
        let named = named.collect::<Outcome<Vec<Dataset>>>()?;
        let file = match node.join(basalt_node::layout::NODE_FILE).exists() {
            true => Some(NodeFile::read(&node)?),
            false => None,
        };
        let node_id = file.as_ref().map(|file| file.node_id.to_string()).unwrap_or_default();
        let state = state(&config, &node)?;
        let mut place = Place {
            repo: repo(&node),
            members: Vec::new(),
            lacks: Vec::new(),
            node,
            file,
            node_id,
            state,
            config,
            named,
        };
        place.look()?;
        place.refuse_record_inside()?;
        Ok(place)
    }

    fn look(&mut self) -> Outcome {
        let Some(file) = &self.file else { return Ok(()) };
        let layout = Layout::read(&self.node, &self.node_id).map_err(|err| Failure::new(err.to_string()))?;
        let mut folders = vec![(self.node.clone(), Content::Metadata), (self.node.join("keyspace"), Content::Metadata)];
        folders.extend(file.shards.iter().map(|shard| (self.node.join(&shard.path), Content::Blocks)));
        let mut held: BTreeMap<Dataset, BTreeSet<Content>> = BTreeMap::new();
        // What is declared first, in the order that makes metadata come first; then what else the folders are on.
        let mut found: Vec<Mounted> = Vec::new();
        if let Some(layout) = &layout {
            let mounted = layout.holding().filter_map(|member| {
                Some(Mounted { dataset: member.dataset.clone(), at: member.mountpoint.clone()?, content: None })
            });
            found.extend(mounted);
        }
        for (folder, content) in folders {
            match dataset_under(&folder) {
                Some((name, at)) => {
                    let dataset: Dataset =
                        name.parse().map_err(|err| Failure::new(format!("{}: {err}", folder.display())))?;
                    held.entry(dataset.clone()).or_default().insert(content);
                    found.push(Mounted { dataset, at, content: None });
                }
                None if self.named.is_empty() => {
                    return Err(Failure::new(format!(
                        "{} is not on ZFS, so there is nothing to take a snapshot of: `basalt init --zfs DATASET` makes a node that is",
                        folder.display()
                    )));
                }
                None => {}
            }
        }
        match &self.repo {
            None => self.lacks.push("Kubo's repo folder (config, keystore): none was found; set IPFS_PATH".to_owned()),
            Some(repo) => match dataset_under(repo).and_then(|(name, at)| Some(Mounted { dataset: name.parse().ok()?, at, content: None })) {
                // The root of a machine is nobody's repo.
                Some(mounted) if mounted.at != Path::new("/") && mounted.at.starts_with(repo) || found.iter().any(|m| m.dataset == mounted.dataset) => {
                    held.entry(mounted.dataset.clone()).or_default().insert(Content::Repo);
                    found.push(mounted);
                }
                Some(mounted) => self.lacks.push(format!(
                    "Kubo's repo folder {} (config, keystore): it shares dataset {} with other things; give it a dataset of its own",
                    repo.display(),
                    mounted.dataset
                )),
                None => self.lacks.push(format!("Kubo's repo folder {} (config, keystore): it is not on ZFS", repo.display())),
            },
        }
        let mut seen = BTreeSet::new();
        found.retain(|mounted| seen.insert(mounted.dataset.clone()));
        for mounted in &mut found {
            mounted.content = held.get(&mounted.dataset).and_then(Content::of);
        }
        self.members = found;
        Ok(())
    }

    /// The node's datasets, or those that were named; none where the record has to know.
    pub fn datasets(&self) -> Vec<Dataset> {
        match self.named.is_empty() {
            true => self.members.iter().map(|mounted| mounted.dataset.clone()).collect(),
            false => self.named.clone(),
        }
    }

    /// What a dataset holds, where that is of one class.
    pub fn content(&self, dataset: &Dataset) -> Option<Content> {
        self.members.iter().find(|mounted| mounted.dataset == *dataset)?.content
    }

    /// What is left of a set that is not whole, if that has a name.
    pub fn left(&self, set: &SnapshotSet) -> Option<Contents> {
        let contents = self.datasets().into_iter().map(|dataset| self.content(&dataset)).collect::<Vec<_>>();
        Contents::left(contents.into_iter().zip(set.members.iter().map(Option::is_some))).filter(|_| !set.is_whole())
    }

    /// The node's file, for what needs a node that is there.
    pub fn require_node(&self) -> Outcome<&NodeFile> {
        self.file.as_ref().ok_or_else(|| {
            Failure::absent(format!(
                "{} is not a Basalt node (any more): name the folder of a node with --node, or restore it with `basalt snapshot restore`",
                self.node.display()
            ))
        })
    }

    fn refuse_record_inside(&self) -> Outcome {
        let on = dataset_under(self.state.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/")));
        match on {
            Some((name, _)) if self.members.iter().any(|mounted| mounted.dataset.as_str() == name) => {
                Err(Failure::usage(format!(
                    "the record of snapshots ({}) would lie in {name}, which is the node's own and is replaced by a restore: set [snapshots] state_path to a folder elsewhere",
                    self.state.display()
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Kubo's repo folder: where the environment says, else the one that the node lies in.
fn repo(node: &Path) -> Option<PathBuf> {
    let said = std::env::var_os("IPFS_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    let found = said.or_else(|| node.parent().map(Path::to_path_buf))?;
    found.join("config").exists().then_some(found)
}

/// Where the record of a node would lie, by its config.
pub fn state_of(node: &Path) -> Option<PathBuf> {
    let node = std::path::absolute(node).ok()?;
    let config = Loaded::load(&node, &source()).ok()?;
    state(&config, &node).ok()
}

fn source() -> ConfigSource {
    ConfigSource {
        config: std::env::var_os("BASALT_CONFIG").map(Into::into),
        set: Vec::new(),
        log_level: None,
        http_listen: None,
    }
}

fn state(config: &Loaded, node: &Path) -> Outcome<PathBuf> {
    let base = match &config.agent.snapshots.state_path {
        Some(path) => path.clone(),
        None if nix::unistd::Uid::effective().is_root() => PathBuf::from("/var/lib/basalt"),
        None => {
            let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            set("XDG_STATE_HOME")
                .or_else(|| set("HOME").map(|home| home.join(".local/state")))
                .map(|state| state.join("basalt"))
                .ok_or_else(|| {
                    Failure::usage(
                        "where is the record of snapshots? Set [snapshots] state_path, XDG_STATE_HOME or HOME",
                    )
                })?
        }
    };
    // The folder's name and not the node's id: it must be found where the node is gone.
    let name: String = node
        .to_string_lossy()
        .trim_matches('/')
        .chars()
        .map(|c| match c {
            '/' => '-',
            c if c.is_ascii_alphanumeric() || "._".contains(c) => c,
            _ => '_',
        })
        .collect();
    let digest = crc32fast::hash(node.as_os_str().as_encoded_bytes());
    Ok(base.join(format!("{}-{digest:08x}", name.chars().take(100).collect::<String>())))
}

/// When a process was started, in ticks since boot; none where there is none. With the pid it names a process for ever.
pub fn process_started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have blanks.
    let (_, after) = stat.rsplit_once(") ")?;
    after.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let started = process_started(std::process::id()).unwrap();
        assert_eq!(process_started(std::process::id()), Some(started));
        assert_eq!(process_started(u32::MAX), None);
    }

    #[test]
    fn two_folders_have_two_records() {
        let config = Loaded::check("x".into(), "[snapshots]\nstate_path = \"/s\"", &|_| None).unwrap();
        let of = |node: &str| state(&config, Path::new(node)).unwrap();
        assert!(of("/srv/basalt").starts_with("/s"));
        assert_ne!(of("/srv/a-b"), of("/srv/a/b"));
    }
}
