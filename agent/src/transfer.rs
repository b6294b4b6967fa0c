//! `basalt plane export` and `import`: a ledger to a file and back, with progress, and on from where it was interrupted.

use std::{
    fs::{File, OpenOptions},
    io::{BufReader, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use basalt_stateplane::transfer::{self, Import, Moved};
use serde_json::json;

use crate::{
    config::Loaded,
    exit::{Failure, Outcome},
    ledger,
    plane::failure,
    say::{say, tell},
};

/// How often progress is told.
const EVERY: Duration = Duration::from_secs(2);

fn line(moved: &Moved) -> String {
    format!("{} pins, {} wants and haves of placements, {} nodes", moved.pins, moved.placements, moved.nodes)
}

/// Tells now and then.
struct Telling {
    told: Instant,
    begun: Instant,
}

impl Telling {
    fn new() -> Telling {
        Telling { told: Instant::now(), begun: Instant::now() }
    }

    fn tell(&mut self, moved: &Moved, more: impl FnOnce() -> String) {
        if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            let rate = moved.records() as f64 / self.begun.elapsed().as_secs_f64();
            tell!("{}{}, {rate:.0} records/s", line(moved), more());
        }
    }
}

/// Writes the ledger to a file.
pub async fn export(node: &Path, loaded: &Loaded, path: &Path, as_json: bool) -> Outcome {
    let ledger = ledger::reach(node, loaded).await?;
    let io = |err| Failure::io(format!("write {}", path.display()), err);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    let mut from = None;
    if file.metadata().map_err(io)?.len() > 0 {
        // Something else is never overwritten.
        let resumed = transfer::resume(BufReader::new(&file)).map_err(failure);
        from = resumed.map_err(|err| err.context(format!("go on with {}", path.display())))?;
        let keep = from.as_ref().map_or(0, |from| from.bytes);
        file.set_len(keep).and_then(|()| file.seek(SeekFrom::Start(keep))).map_err(io)?;
        match &from {
            Some(from) if from.ended => tell!("{} is whole already; remove it for a new one", path.display()),
            Some(from) => tell!("going on after {}", line(&from.moved())),
            None => {}
        }
    }
    let mut telling = Telling::new();
    let mut to = BufWriter::new(&file);
    let exported = transfer::export(&*ledger, &mut to, from, |moved| telling.tell(&moved, String::new)).await;
    let moved =
        exported.map_err(|err| failure(err).context(format!("export to {}; run it again to go on", path.display())))?;
    to.flush().and_then(|()| file.sync_all()).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    match as_json {
        true => say!(
            "{}",
            json!({ "pins": moved.pins, "placements": moved.placements, "nodes": moved.nodes, "bytes": bytes })
        ),
        false => say!("exported {} to {} ({bytes} bytes)", line(&moved), path.display()),
    }
    Ok(())
}

/// Where an import notes how far the ledger has it: beside its file.
fn place(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".applied");
    name.into()
}

/// Takes a file over into the ledger.
pub async fn import(node: &Path, loaded: &Loaded, path: &Path, dry_run: bool, as_json: bool) -> Outcome {
    let io = |err| Failure::io(format!("read {}", path.display()), err);
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let ledger = ledger::reach(node, loaded).await?;
    let mut telling = Telling::new();
    let noted = place(path);
    // Applied to which ledger, of which file: anything else is applied from the beginning, which is only slower.
    let id = format!("{:?} {:?} {bytes}", loaded.agent.plane.engine, node);
    let mut applied_bytes = 0;
    if !dry_run {
        // Checked as a whole before anything is changed.
        let checked = transfer::check(BufReader::new(&file)).map_err(failure)?;
        tell!("{} is whole: {}", path.display(), line(&checked));
        (&file).rewind().map_err(io)?;
        if let Ok(text) = std::fs::read_to_string(&noted)
            && let Some(at) = text.strip_prefix(&id).and_then(|at| at.trim().parse().ok())
        {
            applied_bytes = at;
            tell!("going on after byte {at}");
        }
    }
    let what = if dry_run { Import::DryRun } else { Import::Apply { applied_bytes } };
    let mut since = Instant::now();
    let moved = transfer::import(&*ledger, BufReader::new(&file), what, |at, moved| {
        telling.tell(&moved, || format!(", {} %", 100 * at / bytes.max(1)));
        if !dry_run && since.elapsed() >= EVERY {
            since = Instant::now();
            // Only saves time.
            let _ = std::fs::write(&noted, format!("{id} {at}"));
        }
    });
    let moved =
        moved.await.map_err(|err| failure(err).context(format!("import {}; run it again to go on", path.display())))?;
    let _ = std::fs::remove_file(&noted);
    match (as_json, dry_run) {
        (true, _) => say!(
            "{}",
            json!({ "dry_run": dry_run, "pins": moved.pins, "placements": moved.placements, "nodes": moved.nodes,
                "known": if dry_run { Some(moved.known) } else { None } })
        ),
        (false, true) => say!(
            "{} is whole: {}; of the pins, wants and haves the ledger has {} as they are, or newer",
            path.display(),
            line(&moved),
            moved.known
        ),
        (false, false) => say!("imported {} from {}", line(&moved), path.display()),
    }
    Ok(())
}
