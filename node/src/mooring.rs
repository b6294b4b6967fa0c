//! Folders that are mounts of their own: a dataset or disk for each shard. Where one isn't mounted, there is a bare folder of the same name below
//! it, empty and perhaps writable. A store that opened there would find nothing, take blocks, and hide them with the next mount.
//!
//! So init notes in `node.json` which folders were mounts, and leaves a file *in* each, [`FILE_NAME`], that says whose it is and which part of it.
//! It travels with the data, through renames, snapshots, clones and replicas, and a bare folder doesn't have it. It is looked for at every open. While
//! the node is open, [`MooredDisk`] makes nothing in a folder that is no longer the mount that it was then.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use basalt_blockstore::{
    Error, ErrorKind, Result,
    disk::{Disk, File, OsDisk},
};
use serde::{Deserialize, Serialize};

use crate::layout::{self, NodeId};

/// In the root of each mount.
pub(crate) const FILE_NAME: &str = "basalt.place";

/// A folder that must be a certain mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where it is.
    pub(crate) dir: PathBuf,
    /// What it is called in `node.json`.
    pub(crate) place: PathBuf,
}

/// What [`FILE_NAME`] holds.
#[derive(Serialize, Deserialize)]
struct Mark {
    node_id: NodeId,
    place: PathBuf,
}

/// Whether a folder is the root of a mount: its device is not that of the folder it lies in.
pub(crate) fn is_mount(dir: &Path) -> Result<bool> {
    let device = |dir: &Path| fs::metadata(dir).map(|meta| meta.dev());
    device(dir)
        .and_then(|own| Ok(own != device(&dir.join(".."))?))
        .map_err(|err| Error::io(format!("look at {}", dir.display()), err))
}

/// Leaves the mark in a mount, durably.
pub(crate) fn write(dir: &Path, node_id: &NodeId, place: &Path) -> Result<()> {
    let mark = Mark { node_id: node_id.clone(), place: place.to_owned() };
    let text = serde_json::to_string(&mark)
        .map_err(|err| Error::new(ErrorKind::InvalidValue, format!("{}: {err}", dir.display())))?;
    layout::replace_file(dir, FILE_NAME, &format!("{text}\n"))
}

/// Where the places are moored, for as long as the node is open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mooring(Arc<Vec<(Place, Berth)>>);

/// A mount that is there, as the kernel numbers it: another mount of the same dataset has another device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Berth {
    device: u64,
    inode: u64,
}

fn berth(dir: &Path) -> io::Result<Berth> {
    fs::metadata(dir).map(|meta| Berth { device: meta.dev(), inode: meta.ino() })
}

impl Mooring {
    /// Looks that each place is the one that init made; nothing was written before that.
    pub(crate) fn look(node: &Path, node_id: &NodeId, places: Vec<Place>) -> Result<Mooring> {
        let mut moored = Vec::new();
        for place in places {
            let refuse = |what: String, remedy: &str| {
                let message = format!(
                    "node {}: {}: {what}; nothing was written there. {remedy}",
                    node.display(),
                    place.dir.display()
                );
                Err(Error::new(ErrorKind::Unavailable, message))
            };
            let mount = "Mount what belongs there (`basalt dataset apply`, `zfs mount -a`), then open the node again";
            let text = match fs::read_to_string(place.dir.join(FILE_NAME)) {
                Ok(text) => text,
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    return refuse(
                        format!("its dataset or disk is not mounted (there is no {FILE_NAME} in it)"),
                        mount,
                    );
                }
                Err(err) => return refuse(format!("its {FILE_NAME} can't be read: {err}"), mount),
            };
            match serde_json::from_str::<Mark>(&text) {
                Err(err) => {
                    return refuse(format!("its {FILE_NAME} is damaged: {err}"), "Restore that file from a snapshot");
                }
                Ok(mark) if mark.node_id != *node_id => {
                    return refuse(
                        format!("what is mounted there is of node {}, this is {node_id}", mark.node_id),
                        mount,
                    );
                }
                Ok(mark) if mark.place != place.place => {
                    return refuse(
                        format!(
                            "what is mounted there is the node's {}, not its {}",
                            mark.place.display(),
                            place.place.display()
                        ),
                        "Correct the mountpoints (`basalt dataset drift`)",
                    );
                }
                Ok(_) => {}
            }
            let berth = berth(&place.dir).map_err(|err| Error::io(format!("look at {}", place.dir.display()), err))?;
            moored.push((place, berth));
        }
        Ok(Mooring(Arc::new(moored)))
    }

    /// The folders that are no longer the mounts that they were when the node was opened.
    pub(crate) fn adrift(&self) -> Vec<PathBuf> {
        let gone = |(place, was): &&(Place, Berth)| berth(&place.dir).ok() != Some(*was);
        self.0.iter().filter(gone).map(|(place, _)| place.dir.clone()).collect()
    }

    /// Whether something may be made, renamed or removed at this path.
    fn holds(&self, path: &Path) -> io::Result<()> {
        let Some((place, was)) = self.0.iter().find(|(place, _)| path.starts_with(&place.dir)) else { return Ok(()) };
        if berth(&place.dir).ok() == Some(*was) {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "{} is no longer the mount that it was when the node was opened (its dataset or disk was unmounted under it); nothing is written into the \
             folder below. Mount it and restart the agent",
            place.dir.display()
        )))
    }

    /// A disk on which nothing is made in a folder that has come adrift.
    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        match self.0.is_empty() {
            true => Arc::new(OsDisk),
            false => Arc::new(MooredDisk { disk: OsDisk, mooring: self.clone() }),
        }
    }
}

/// The disk of the operating system, for as long as its mounts are there. Files that are open stay what they are: they lie on the mount.
#[derive(Debug)]
struct MooredDisk {
    disk: OsDisk,
    mooring: Mooring,
}

impl Disk for MooredDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.mooring.holds(path)?;
        self.disk.create(path)
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        self.disk.open(path, write)
    }

    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.disk.open_direct(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.mooring.holds(to)?;
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.mooring.holds(path)?;
        self.disk.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.mooring.holds(dir)?;
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.mooring.holds(dir)?;
        self.disk.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.mooring.holds(dir)?;
        self.disk.sync_dir(dir)
    }

    fn available(&self, dir: &Path) -> io::Result<u64> {
        self.mooring.holds(dir)?;
        self.disk.available(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> Vec<Place> {
        vec![Place { dir: dir.join("shards/00"), place: "shards/00".into() }]
    }

    /// A folder that stands for a mount, and one that stands for what is below it.
    fn moored() -> (tempfile::TempDir, NodeId, Mooring) {
        let dir = tempfile::tempdir().unwrap();
        let id = NodeId::random().unwrap();
        fs::create_dir_all(dir.path().join("shards/00")).unwrap();
        write(&dir.path().join("shards/00"), &id, Path::new("shards/00")).unwrap();
        let mooring = Mooring::look(dir.path(), &id, place(dir.path())).unwrap();
        (dir, id, mooring)
    }

    fn unmount(dir: &Path) {
        fs::rename(dir.join("shards/00"), dir.join("mount")).unwrap();
        fs::create_dir(dir.join("shards/00")).unwrap();
    }

    #[test]
    fn a_bare_folder_is_not_taken_for_the_mount_above_it() {
        let (dir, id, _) = moored();
        unmount(dir.path());
        let err = Mooring::look(dir.path(), &id, place(dir.path())).unwrap_err();
        assert!(err.kind() == ErrorKind::Unavailable && err.to_string().contains("is not mounted"), "{err}");
        assert_eq!(fs::read_dir(dir.path().join("shards/00")).unwrap().count(), 0);
    }

    #[test]
    fn a_mount_in_the_wrong_place_or_of_another_node_is_named() {
        let (dir, id, _) = moored();
        let message = |id: &NodeId| Mooring::look(dir.path(), id, place(dir.path())).unwrap_err().to_string();
        assert!(message(&NodeId::random().unwrap()).contains(&format!("is of node {id}")));
        write(&dir.path().join("shards/00"), &id, Path::new("keyspace")).unwrap();
        assert!(message(&id).contains("is the node's keyspace, not its shards/00"));
        fs::write(dir.path().join("shards/00").join(FILE_NAME), "{").unwrap();
        assert!(message(&id).contains("is damaged"));
    }

    #[test]
    fn nothing_is_made_in_a_folder_that_came_adrift() {
        let (dir, _, mooring) = moored();
        let disk = mooring.disk();
        let shard = dir.path().join("shards/00");
        let open = disk.create(&shard.join("before")).unwrap();
        assert!(mooring.adrift().is_empty());
        unmount(dir.path());
        assert_eq!(mooring.adrift(), std::slice::from_ref(&shard));
        let err = disk.create(&shard.join("after")).unwrap_err();
        assert!(err.to_string().contains("no longer the mount"), "{err}");
        assert!(
            disk.create_dir(&shard.join("index")).is_err()
                && disk.rename(&dir.path().join("x"), &shard.join("y")).is_err()
        );
        assert!(disk.list(&shard).is_err() && disk.available(&shard).is_err() && disk.sync_dir(&shard).is_err());
        // What was open lies where it lay.
        open.write_at(&[b"x"], 0).unwrap();
        assert_eq!(fs::read_dir(&shard).unwrap().count(), 0);
        assert_eq!(fs::read(dir.path().join("mount/before")).unwrap(), b"x");
        disk.create(&dir.path().join("elsewhere")).unwrap();
    }
}
