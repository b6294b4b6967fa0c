//! The marks by which a node's data is known again (STORE 21): a small file in each of its datasets, and the record outside of them. See [`basalt_snapshots::Keeper::meet`].

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use basalt_node::dataset_under;
use basalt_snapshots::{FileJournal, Keeper};

use super::{
    place::{self, Place},
    prepare,
};
use crate::{cli::SnapshotOptions, exit::Outcome};

/// The file.
const MARK: &str = "basalt.life";
/// Who is at work on the snapshots at this moment is not waited for: the marks stay as they are then.
const PATIENCE: Duration = Duration::from_secs(1);

/// One folder in each dataset of the node's own, by its name in the node; Kubo's repo folder is not ours to write into.
fn parts(place: &Place) -> BTreeMap<String, PathBuf> {
    let Some(file) = &place.file else { return BTreeMap::new() };
    let mut folders = vec![(".".to_owned(), place.node.clone()), ("keyspace".to_owned(), place.node.join("keyspace"))];
    let shards = file.shards.iter().map(|shard| (shard.path.display().to_string(), place.node.join(&shard.path)));
    folders.extend(shards);
    let mut seen = Vec::new();
    let is_first = |(_, folder): &(String, PathBuf)| match dataset_under(folder) {
        Some((name, _)) if !seen.contains(&name) => {
            seen.push(name);
            true
        }
        _ => false,
    };
    folders.into_iter().filter(is_first).collect()
}

fn found(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join(MARK)).ok()?;
    Some(text.trim().to_owned())
}

fn write(folder: &Path, mark: &str) -> io::Result<()> {
    let new = folder.join(format!("{MARK}.new"));
    let mut file = fs::File::create(&new)?;
    file.write_all(mark.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, folder.join(MARK))?;
    fs::File::open(folder)?.sync_all()
}

/// Draws a new mark: after a take, so that what is set back to that set is found.
pub fn mark(place: &Place, keeper: &mut Keeper) -> basalt_snapshots::Result<()> {
    let parts = parts(place);
    let names: Vec<String> = parts.keys().cloned().collect();
    keeper.mark(&names, |part, mark| {
        // A dataset that is full or read-only keeps its mark, and the record knows that one too.
        parts.get(part).is_some_and(|folder| write(folder, mark).is_ok())
    })
}

/// When an agent opens the node: says what is not as this host left it, and draws a new mark.
pub fn at_open(node: &Path) -> Vec<String> {
    let look = || -> Outcome<Vec<String>> {
        let Some((place, mut keeper)) = open(node)? else { return Ok(Vec::new()) };
        let found = parts(&place).into_iter().map(|(part, folder)| (part, found(&folder))).collect();
        let met = keeper.meet(&found)?;
        mark(&place, &mut keeper)?;
        if met.strangers.is_empty() {
            return Ok(Vec::new());
        }
        let consequence = match met.is_all {
            true => "all of the node is of one other time, then; what came after is lost".to_owned(),
            false => "the other parts are not, so pins may lack their blocks: restore a whole set (`basalt snapshot restore`), or see what is missing (`ipfs repo verify`, `ipfs pin verify`)".to_owned(),
        };
        Ok(vec![format!(
            "{} is not as this host left it: it was rolled back, or received anew, behind the node's back; {consequence}. The node has a new lineage, {}",
            met.strangers.join(", "),
            keeper.lineage()
        )])
    };
    look().unwrap_or_else(|failure| {
        tracing::debug!("the node's marks can't be looked at: {failure}");
        Vec::new()
    })
}

/// Before an agent closes the node, which nobody writes to any more.
pub fn at_close(node: &Path) {
    let draw = || -> Outcome {
        if let Some((place, mut keeper)) = open(node)? {
            mark(&place, &mut keeper)?;
        }
        Ok(())
    };
    if let Err(failure) = draw() {
        tracing::debug!("the node's marks can't be drawn: {failure}");
    }
}

/// None for a node that is on no dataset.
fn open(node: &Path) -> Outcome<Option<(Place, Keeper)>> {
    if dataset_under(node).is_none() {
        return Ok(None);
    }
    let place = Place::find(node, &SnapshotOptions { datasets: Vec::new(), json: false })?;
    let journal = FileJournal::open(&place.state, PATIENCE)?;
    let mut keeper = Keeper::new(place::zfs()?, Box::new(journal), place.datasets(), &place.node_id)?;
    prepare(&mut keeper, &place);
    Ok(Some((place, keeper)))
}
