//! A set as the folder of a node: links to its snapshots where ZFS shows them, and files of its own for what must differ. Nothing is cloned, nothing needs root.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
};

use basalt_node::{Host, Node, NodeFile, config::FILE_NAME};
use basalt_snapshots::SetName;

use super::place::Place;
use crate::{
    config::Loaded,
    exit::{Failure, Outcome},
};

/// Where a folder of the node is in a set; none where it is on no dataset of the node.
pub fn in_set(place: &Place, set: &SetName, folder: &Path) -> Option<PathBuf> {
    let on = place
        .members
        .iter()
        .filter(|mounted| folder.starts_with(&mounted.at))
        .max_by_key(|mounted| mounted.at.components().count())?;
    let rest = folder.strip_prefix(&on.at).ok()?;
    Some(on.at.join(".zfs/snapshot").join(set.as_str()).join(rest))
}

/// Makes a new folder `at` that is the node of a set.
pub fn make(place: &Place, set: &SetName, at: &Path) -> Outcome {
    let find = |folder: &Path| {
        let found = in_set(place, set, folder)
            .ok_or_else(|| Failure::new(format!("{} is on no dataset of the node", folder.display())))?;
        match found.is_dir() {
            true => Ok(found),
            false => Err(Failure::new(format!(
                "{} is not there: is the dataset mounted, and was it so when the set was taken? (`zfs list -o name,mounted`)",
                found.display()
            ))),
        }
    };
    let node = find(&place.node)?;
    let mut file = NodeFile::read(&node)?;
    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |err| Failure::io(format!("make {what}"), err)
    };
    fs::create_dir(at).map_err(failed(at))?;
    let link = |to: PathBuf, from: PathBuf| {
        if let Some(dir) = from.parent() {
            fs::create_dir_all(dir).map_err(failed(dir))?;
        }
        symlink(to, &from).map_err(failed(&from))
    };
    link(find(&place.node.join("keyspace"))?, at.join("keyspace"))?;
    for (id, shard) in file.shards.iter_mut().enumerate() {
        let there = find(&place.node.join(&shard.path))?;
        if shard.path.is_absolute() {
            // Its mark names the absolute path, which isn't where it is here.
            shard.path = PathBuf::from(format!("shards/outside-{id}"));
            shard.is_mount = false;
        }
        link(there, at.join(&shard.path))?;
    }
    if let Ok(config) = fs::read(node.join(FILE_NAME)) {
        fs::write(at.join(FILE_NAME), config).map_err(failed(at))?;
    }
    file.write(at)?;
    Ok(())
}

/// Opens the node of a folder for reading only.
pub fn open(at: &Path, command: &'static str) -> Outcome<Arc<Node>> {
    let text = fs::read_to_string(at.join(FILE_NAME)).unwrap_or_default();
    let config = Loaded::check(at.join(FILE_NAME), &text, &|_| None)?.node;
    Ok(Node::open_read_only(at, config, Host::Command(command))?)
}
