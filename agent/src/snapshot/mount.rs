//! `basalt snapshot mount`: a set as a second node, for reading only, for as long as this process runs.
//!
//! A lease with a hold keeps the set; it ends with the process, however that ends.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use basalt_node::Server;
use basalt_snapshots::{Lease, SetName};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    keeper,
    place::{self, Place},
    view,
};
use crate::{
    cli::SnapshotOptions,
    exit::{Failure, Outcome},
    say::{say, tell},
};

/// Serves a set until a signal.
pub async fn mount(node: &Path, set: &str, at: &Path, options: &SnapshotOptions) -> Outcome {
    let at = std::path::absolute(at).map_err(|err| Failure::io(format!("folder {}", at.display()), err))?;
    let (node, name, options_here) = (node.to_path_buf(), set.to_owned(), options.clone());
    let blocking = |what: tokio::task::JoinError| Failure::new(format!("mount {set}: {what}"));
    let opened = {
        let at = at.clone();
        tokio::task::spawn_blocking(move || begin(&node, &name, &at, &options_here)).await.map_err(blocking)??
    };
    let (place, lease, opened) = opened;
    let mut stop = [SignalKind::terminate(), SignalKind::interrupt()]
        .map(signal)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|err| Failure::io("listen for signals", err))?;
    let server = Server::start(&opened);
    let outcome = match server {
        Ok(server) => {
            let repo = at.join("repo");
            let has_repo = repo.join("config").exists();
            match options.json {
                true => say!(
                    "{}",
                    json!({ "set": lease.set.as_str(), "node": at.join("node"), "repo": has_repo.then_some(&repo), "replayed": opened.replayed() })
                ),
                false => {
                    say!(
                        "{} is served in {}, for reading only, until this command is stopped; {} records of its log were replayed",
                        lease.set,
                        at.join("node").display(),
                        opened.replayed()
                    );
                    if has_repo {
                        say!("read from it:  IPFS_PATH={} ipfs cat CID", repo.display());
                    }
                }
            }
            let (one, other) = stop.split_at_mut(1);
            tokio::select! {
                _ = one[0].recv() => {}
                _ = other[0].recv() => {}
            }
            server.stop().await.map_err(Failure::from)
        }
        Err(err) => Err(err.into()),
    };
    let ended = tokio::task::spawn_blocking(move || {
        let closed = opened.close().map_err(Failure::from);
        drop(opened);
        let ended = keeper(&place).and_then(|mut keeper| Ok(keeper.end_lease(&lease.id)?));
        if let Err(failure) = &ended {
            tell!("basalt: {} is still held, until the next `basalt snapshot` command: {failure}", lease.set);
        }
        for what in ["node", "repo"] {
            if let Err(err) = fs::remove_dir_all(at.join(what))
                && err.kind() != std::io::ErrorKind::NotFound
            {
                tell!("basalt: {} is left behind: {err}", at.join(what).display());
            }
        }
        closed
    });
    outcome.and(ended.await.map_err(|err| Failure::new(format!("let go of the set: {err}")))?)
}

fn begin(
    node: &Path,
    set: &str,
    at: &Path,
    options: &SnapshotOptions,
) -> Outcome<(Place, Lease, std::sync::Arc<basalt_node::Node>)> {
    let place = Place::find(node, options)?;
    place.require_node()?;
    let mut keeper = keeper(&place)?;
    let set = keeper.find(set)?;
    let occupied = fs::read_dir(at).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        return Err(Failure::usage(format!("{} is not empty: name a new folder", at.display())));
    }
    let pid = std::process::id();
    let started = place::process_started(pid)
        .ok_or_else(|| Failure::new("/proc is not mounted: a lease needs it to know whether its process lives"))?;
    let lease = Lease {
        id: format!("mount-{pid}-{started}"),
        set: set.name.clone(),
        by: format!("basalt snapshot mount (pid {pid})"),
        process: Some((pid, started)),
    };
    keeper.lease(lease.clone())?;
    let made = make(&place, &set.name, at);
    match made {
        Ok(node) => Ok((place, lease, node)),
        Err(failure) => {
            keeper.end_lease(&lease.id)?;
            for what in ["node", "repo"] {
                // What can't be removed is in a folder that was made for this.
                let _ = fs::remove_dir_all(at.join(what));
            }
            Err(failure)
        }
    }
}

fn make(place: &Place, set: &SetName, at: &Path) -> Outcome<std::sync::Arc<basalt_node::Node>> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(at)
        .map_err(|err| Failure::io(format!("make {}", at.display()), err))?;
    view::make(place, set, &at.join("node"))?;
    if let Err(failure) = repo(place, set, at) {
        tell!("basalt: there is no repo for it, only a node: {failure}");
    }
    view::open(&at.join("node"), "basalt snapshot mount")
}

/// A repo whose datastore is the mounted node: the config of the set's repo, or of the live one.
fn repo(place: &Place, set: &SetName, at: &Path) -> Outcome {
    let live = place.repo.as_ref().ok_or_else(|| Failure::absent("Kubo's repo folder was not found; set IPFS_PATH"))?;
    let from =
        view::in_set(place, set, live).filter(|there| there.join("config").exists()).unwrap_or_else(|| live.clone());
    let read = |name: &str| {
        fs::read_to_string(from.join(name))
            .map_err(|err| Failure::io(format!("read {}", from.join(name).display()), err))
    };
    let mut config: Value = serde_json::from_str(&read("config")?)
        .map_err(|err| Failure::new(format!("{}: {err}", from.join("config").display())))?;
    let spec = config.pointer_mut("/Datastore/Spec").filter(|spec| spec["type"] == "basalt");
    let spec = spec.ok_or_else(|| {
        Failure::new("the repo keeps only a part of its data in the node, and the rest is not in the set")
    })?;
    spec["path"] = json!(at.join("node"));
    spec["autostart"] = json!(false);
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("socket");
        spec.remove("lane");
    }
    let repo = at.join("repo");
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&repo)
        .map_err(|err| Failure::io(format!("make {}", repo.display()), err))?;
    // It holds the identity's key.
    for (name, text) in
        [("config", config.to_string()), ("datastore_spec", read("datastore_spec")?), ("version", read("version")?)]
    {
        let file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(repo.join(name));
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|err| Failure::io(format!("write {}", repo.join(name).display()), err))?;
    }
    Ok(())
}
