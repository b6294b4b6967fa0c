//! Watches the pools under a node for as long as its agent runs.
//!
//! Three threads, so that none waits for another's disk. The first looks at the pools every half minute, or at once when the second says so: metrics, and a
//! line in the log for what is new. The second follows `zpool events`. What an event or a pool names as damaged, a block of a file or a whole file, the
//! third maps to the node's segments and has the node read back: it quarantines what is lost, with its CID, as a scrub does.
//!
//! Events come late, are limited by the kernel, or can't be followed at all (they are root's). So nothing depends on them: where a pool counts data errors,
//! the files that it names are read back too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::ControlFlow,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use basalt_datasets::Layout;
use basalt_node::{Node, NodeFile};
use basalt_proto::v1::{CheckPartRequest, CheckPartResponse};
use basalt_zfs::{
    BlockPlace, Class, Cli, CliOptions, DamagedFile, Dataset, Entity, Event, EventKind, Pool, RowsOf, Zfs,
};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use crate::pool::{self, Condition, Gauges};

/// How often a running agent looks.
const INTERVAL: Duration = Duration::from_secs(30);
/// Looks that events ask for are so far apart at least.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// What it waits for an answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// A followed command that ended is started again after so long, twice as long each time up to the longest.
const FOLLOW_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Blocks that wait to be read back; beyond that the pool's own list of files has to do.
const BLOCKS_MAX: usize = 4096;
/// What ZFS counts as objects is asked again after so long at the earliest.
const OBJSETS_AGAIN: Duration = Duration::from_secs(10);
/// Folders in folders below a dataset.
const DEPTH_MAX: usize = 4;

/// The watch of an agent. Nothing, for a node that isn't on datasets.
pub struct Watch(Option<Arc<Shared>>);

struct Shared {
    layout: Layout,
    zfs: OnceLock<Arc<dyn Zfs>>,
    node: OnceLock<Weak<Node>>,
    look: Signal<bool>,
    named: Signal<Named>,
    /// Why events can't be followed.
    unfollowed: Mutex<Option<Condition>>,
    counts: Counts,
}

/// What a thread waits for.
#[derive(Default)]
struct Signal<T>(Mutex<T>, Condvar);

/// What ZFS has named as damaged and nobody has read back yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Named {
    /// Blocks, and whether no copy of them is right.
    blocks: BTreeMap<BlockPlace, bool>,
    /// Pools whose list of damaged files is to be gone through.
    files: BTreeSet<Pool>,
}

impl Named {
    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.files.is_empty()
    }
}

struct Counts {
    events: IntCounterVec,
    read_back: IntCounterVec,
    following: IntGauge,
}

impl Counts {
    fn register(registry: &Registry) -> Result<Counts, prometheus::Error> {
        let counter = |name: &str, help: &str, label: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let following = IntGauge::new("basalt_pool_events_followed", "1 while `zpool events` is followed.")?;
        registry.register(Box::new(following.clone()))?;
        Ok(Counts {
            events: counter("basalt_pool_events_total", "Events of the node's pools, by class.", "class")?,
            read_back: counter(
                "basalt_pool_named_records_total",
                "Records that were read back because the pool named their place, by what came of it: whole, damaged, rescued, unreadable.",
                "outcome",
            )?,
            following,
        })
    }
}

/// Begins to watch the pools of a node.
pub fn watch(node: &Path) -> Watch {
    let layout = NodeFile::read(node).ok().and_then(|file| Layout::read(node, file.node_id.as_str()).ok()?);
    let Some(layout) = layout else { return Watch(None) };
    let registry = prometheus::default_registry();
    let (gauges, counts) = match Gauges::register(registry).and_then(|gauges| Ok((gauges, Counts::register(registry)?)))
    {
        Ok(both) => both,
        Err(err) => {
            tracing::error!(%err, "the metrics of ZFS can't be had, and its pools are not watched");
            return Watch(None);
        }
    };
    let shared = Shared::new(layout, counts);
    let begin = |name: &str, run: fn(&Shared)| {
        let shared = shared.clone();
        let started = thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared));
        if let Err(err) = started {
            tracing::error!(%err, "the thread {name} could not be started");
        }
    };
    begin("basalt-events", Shared::follow);
    begin("basalt-damage", Shared::read_back);
    let looker = shared.clone();
    if let Err(err) = thread::Builder::new().name("basalt-pools".to_owned()).spawn(move || looker.look_on(&gauges)) {
        tracing::error!(%err, "the thread that watches the pools could not be started");
    }
    Watch(Some(shared))
}

impl Watch {
    /// Names the node that reads back what the pools name as damaged. Until then it waits.
    pub fn serve(&self, node: &Arc<Node>) {
        if let Watch(Some(shared)) = self {
            let _first = shared.node.set(Arc::downgrade(node));
            shared.named.1.notify_all();
        }
    }
}

impl Shared {
    fn new(layout: Layout, counts: Counts) -> Arc<Shared> {
        Arc::new(Shared {
            layout,
            zfs: OnceLock::new(),
            node: OnceLock::new(),
            look: Signal::default(),
            named: Signal::default(),
            unfollowed: Mutex::default(),
            counts,
        })
    }

    /// One engine for the whole process, so that what is stuck is fenced once.
    fn zfs(&self) -> basalt_zfs::Result<&Arc<dyn Zfs>> {
        if self.zfs.get().is_none() {
            let cli = Cli::new(CliOptions { deadline: DEADLINE, ..CliOptions::default() })?;
            let _another_was_first = self.zfs.set(Arc::new(cli));
        }
        self.zfs.get().ok_or_else(|| {
            basalt_zfs::Error::new(basalt_zfs::Operation::Version, "zfs", Class::Unknown, "no engine was made")
        })
    }

    /// Looks at the pools again and again.
    fn look_on(&self, gauges: &Gauges) {
        let mut known: Vec<Condition> = Vec::new();
        let mut errors: BTreeMap<Pool, u64> = BTreeMap::new();
        let mut answers = true;
        loop {
            let began = Instant::now();
            let unfollowed = lock(&self.unfollowed).clone();
            let looked = self.zfs().and_then(|zfs| gauges.show(&**zfs, &self.layout, unfollowed.as_slice()));
            gauges.answered(looked.is_ok());
            match looked {
                Ok(seen) => {
                    let mut now = pool::conditions(&seen);
                    now.extend(unfollowed);
                    for condition in now.iter().filter(|condition| !known.contains(condition)) {
                        tracing::warn!(condition = condition.name, remedy = condition.remedy, "{}", condition.message);
                    }
                    for gone in known.iter().filter(|known| now.iter().all(|now| now.name != known.name)) {
                        tracing::info!(condition = gone.name, "is over: {}", gone.message);
                    }
                    known = now;
                    answers = true;
                    for pool in seen {
                        let count = pool.status.data_errors;
                        if errors.insert(pool.entry.name.clone(), count).unwrap_or(0) != count && count > 0 {
                            self.name_files(pool.entry.name);
                        }
                    }
                }
                // Once, not every half minute.
                Err(err) if std::mem::replace(&mut answers, false) => {
                    tracing::warn!(%err, "the pools can't be looked at")
                }
                Err(_) => {}
            }
            thread::sleep(LOOK_PAUSE.saturating_sub(began.elapsed()));
            let waited = self.look.1.wait_timeout_while(lock(&self.look.0), INTERVAL, |asked| !*asked);
            *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
        }
    }

    fn look_soon(&self) {
        *lock(&self.look.0) = true;
        self.look.1.notify_all();
    }

    fn name_files(&self, pool: Pool) {
        lock(&self.named.0).files.insert(pool);
        self.named.1.notify_all();
    }

    /// Follows the events, for ever.
    fn follow(&self) {
        let mut pause = FOLLOW_AGAIN.0;
        // A command that is started again gives the old ones again.
        let mut last = (0, 0);
        loop {
            let began = Instant::now();
            let ended = self.zfs().and_then(|zfs| {
                zfs.events(&mut |event| {
                    self.counts.following.set(1);
                    *lock(&self.unfollowed) = None;
                    if let Some(event) = event.filter(|event| (event.time_unix_ns, event.id) > last) {
                        last = (event.time_unix_ns, event.id);
                        self.heard(&event);
                    }
                    ControlFlow::Continue(())
                })
            });
            self.counts.following.set(0);
            let Err(err) = ended else { return };
            let condition = unfollowed(&err);
            if lock(&self.unfollowed).replace(condition).is_none() {
                self.look_soon();
            }
            // Asking for what one may not have, or has not, again and again is noise.
            let hopeless = matches!(err.class(), Class::Permission | Class::NotInstalled | Class::Unsupported);
            pause = match hopeless {
                true => FOLLOW_AGAIN.1,
                false if began.elapsed() > FOLLOW_AGAIN.1 => FOLLOW_AGAIN.0,
                false => (pause * 2).min(FOLLOW_AGAIN.1),
            };
            thread::sleep(pause);
        }
    }

    /// Sees to an event.
    fn heard(&self, event: &Event) {
        let Some(pool) = event.pool.as_ref().filter(|pool| self.layout.holding_by_pool().contains_key(*pool)) else {
            return;
        };
        let kind = event.kind();
        if kind == EventKind::Other {
            return;
        }
        self.counts.events.with_label_values(&[&event.class]).inc();
        let vdev = event.vdev.as_deref().unwrap_or_default();
        match kind {
            EventKind::Checksum | EventKind::Data | EventKind::Io => {
                tracing::debug!(%pool, vdev, class = event.class, block = ?event.block, "an event of a pool");
                let persists = kind == EventKind::Data;
                let mut named = lock(&self.named.0);
                match event.block {
                    Some(block) if named.blocks.len() < BLOCKS_MAX => {
                        *named.blocks.entry(block).or_default() |= persists
                    }
                    // A disk's own errors are mended from another, or come as data errors too.
                    None if !persists => {}
                    _ => drop(named.files.insert(pool.clone())),
                }
                drop(named);
                self.named.1.notify_all();
            }
            EventKind::ScanFinished => tracing::info!(%pool, class = event.class, "a scrub or resilver has ended"),
            _ => tracing::info!(%pool, vdev, class = event.class, state = ?event.state, "an event of a pool"),
        }
        self.look_soon();
    }

    /// Has the node read back what is named as damaged, for ever.
    fn read_back(&self) {
        let mut reader = Reader::default();
        loop {
            let named = {
                let wait =
                    self.named.1.wait_while(lock(&self.named.0), |named| named.is_empty() || self.node.get().is_none());
                std::mem::take(&mut *wait.unwrap_or_else(PoisonError::into_inner))
            };
            let Some(node) = self.node.get().and_then(Weak::upgrade) else { return };
            let zfs = match self.zfs() {
                Ok(zfs) => zfs,
                Err(err) => {
                    tracing::warn!(%err, "what a pool names as damaged can't be looked up");
                    continue;
                }
            };
            let check = |part: &CheckPartRequest| node.check_part(part).map_err(|err| err.to_string());
            reader.go_through(&**zfs, &self.layout, &named, &self.counts, &check);
        }
    }
}

/// Why events are not followed, for whoever reads the metrics and the log.
fn unfollowed(err: &basalt_zfs::Error) -> Condition {
    Condition {
        name: "pool-events",
        severity: "warning",
        message: format!(
            "the events of pools can't be followed: {err}. Pools are looked at every {} s instead",
            INTERVAL.as_secs()
        ),
        remedy: match err.class() {
            Class::Permission => "they are root's: run the agent as root, or leave it so".to_owned(),
            _ => err.remedy(),
        },
    }
}

/// Reads back what is named.
#[derive(Default)]
struct Reader {
    /// Which dataset, or dataset of a snapshot, has which number.
    objsets: BTreeMap<u64, Dataset>,
    asked: Option<Instant>,
    /// Files of a pool's list that were read already: it keeps them over two scrubs.
    done: BTreeMap<Pool, BTreeSet<DamagedFile>>,
}

type Check<'a> = dyn Fn(&CheckPartRequest) -> Result<CheckPartResponse, String> + 'a;

impl Reader {
    fn go_through(&mut self, zfs: &dyn Zfs, layout: &Layout, named: &Named, counts: &Counts, check: &Check<'_>) {
        for part in self.parts(zfs, layout, &named.blocks) {
            report(&part, check(&part), counts);
        }
        for pool in &named.files {
            let files: BTreeSet<DamagedFile> = match zfs.damaged_files(pool) {
                Ok(files) => files.into_iter().collect(),
                Err(err) => {
                    tracing::warn!(%err, "which files are damaged can't be asked");
                    continue;
                }
            };
            let before = self.done.insert(pool.clone(), files.clone()).unwrap_or_default();
            for file in files.difference(&before) {
                match place_of(file, layout) {
                    Some(path) if path.exists() => {
                        // A whole file is not lost, and the list keeps it long after it is mended.
                        let part =
                            CheckPartRequest { path: path.display().to_string(), start: 0, end: 0, persists: false };
                        report(&part, check(&part), counts);
                    }
                    Some(path) => tracing::warn!(
                        %pool, ?file, "{} is damaged in a snapshot, and the node has it no longer; a restore of that snapshot lacks what stood there",
                        path.display()
                    ),
                    None => {
                        tracing::warn!(%pool, ?file, "a pool has a damaged file that is not of this node, or has no name")
                    }
                }
            }
        }
    }

    /// The parts of files in which these blocks lie.
    fn parts(&mut self, zfs: &dyn Zfs, layout: &Layout, blocks: &BTreeMap<BlockPlace, bool>) -> Vec<CheckPartRequest> {
        let mut parts: Vec<CheckPartRequest> = Vec::new();
        for (block, persists) in blocks {
            let Some(dataset) = self.dataset_of(zfs, layout, block.objset) else {
                tracing::debug!(?block, "a damaged block is of no dataset of the node");
                continue;
            };
            let mounted = layout.members().iter().find(|member| member.dataset == dataset);
            let Some((path, meta)) = mounted.and_then(|member| file_of(member.mountpoint.as_deref()?, block.object))
            else {
                tracing::debug!(?block, %dataset, "a damaged block is of a file that is gone");
                continue;
            };
            let size = meta.blksize().max(512);
            // What points to data may point to any of it.
            let (start, end) = match block.level {
                0 => (block.block.saturating_mul(size), block.block.saturating_add(1).saturating_mul(size)),
                _ => (0, 0),
            };
            let path = path.display().to_string();
            let persists = *persists && block.level == 0;
            match parts
                .last_mut()
                .filter(|last| last.path == path && last.persists == persists && last.end == start && start > 0)
            {
                Some(last) => last.end = end,
                None => parts.push(CheckPartRequest { path, start, end, persists }),
            }
        }
        parts
    }

    fn dataset_of(&mut self, zfs: &dyn Zfs, layout: &Layout, objset: u64) -> Option<Dataset> {
        let is_old = self.asked.is_none_or(|asked| asked.elapsed() >= OBJSETS_AGAIN);
        if !self.objsets.contains_key(&objset) && is_old {
            self.asked = Some(Instant::now());
            match objsets(zfs, layout) {
                Ok(objsets) => self.objsets = objsets,
                Err(err) => tracing::warn!(%err, "what a pool names as damaged can't be looked up"),
            }
        }
        self.objsets.get(&objset).cloned()
    }
}

/// The numbers of the node's datasets and of their snapshots: a scrub finds what both have in the oldest snapshot.
fn objsets(zfs: &dyn Zfs, layout: &Layout) -> basalt_zfs::Result<BTreeMap<u64, Dataset>> {
    let mut found = BTreeMap::new();
    let name: Vec<_> = "objsetid".parse().into_iter().collect();
    for members in layout.holding_by_pool().into_values() {
        let datasets: Vec<Dataset> = members.iter().map(|member| member.dataset.clone()).collect();
        for rows in [RowsOf::Snapshots, RowsOf::Datasets] {
            for listed in zfs.listing(&datasets, rows, &name)? {
                let dataset = match listed.name {
                    Entity::Dataset(dataset) => dataset,
                    Entity::Snapshot(snapshot) => snapshot.dataset(),
                    Entity::Bookmark(_) => continue,
                };
                let number = listed.values.first().and_then(|value| value.as_ref()?.parse().ok());
                found.extend(number.map(|number: u64| (number, dataset)));
            }
        }
    }
    Ok(found)
}

/// The file of a mounted filesystem that has this inode.
fn file_of(folder: &Path, inode: u64) -> Option<(PathBuf, fs::Metadata)> {
    let device = fs::metadata(folder).ok()?.dev();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).ok()?.flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if entry.ino() == inode && !is_folder {
                let meta = entry.metadata().ok()?;
                return (meta.dev() == device && meta.is_file()).then(|| (entry.path(), meta));
            }
            if is_folder
                && depth < DEPTH_MAX
                && fs::symlink_metadata(entry.path()).is_ok_and(|meta| meta.dev() == device)
            {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    None
}

/// Where the node has a file that `zpool status -v` names; `None` for what is not the node's.
fn place_of(file: &DamagedFile, layout: &Layout) -> Option<PathBuf> {
    let mountpoint = |name: &str| {
        let member = layout.holding().find(|member| member.dataset.as_str() == name)?;
        member.mountpoint.clone()
    };
    match file {
        DamagedFile::Path(path) => layout
            .holding()
            .any(|member| member.mountpoint.as_ref().is_some_and(|at| path.starts_with(at)))
            .then(|| path.clone()),
        // That of a snapshot is the node's own too, as long as it has it: segments never change.
        DamagedFile::Within(name, path) => Some(mountpoint(name.split('@').next()?)?.join(path)),
        DamagedFile::Object(text) => {
            let (name, number) = text.split_once(":<0x")?;
            let inode = u64::from_str_radix(number.strip_suffix('>')?, 16).ok()?;
            Some(file_of(&mountpoint(name.split('@').next()?)?, inode)?.0)
        }
    }
}

/// Says what became of a part.
fn report(part: &CheckPartRequest, outcome: Result<CheckPartResponse, String>, counts: &Counts) {
    let CheckPartRequest { path, start, end, .. } = part;
    let checked = match outcome {
        Ok(checked) => checked,
        Err(why) => {
            return tracing::warn!(
                path,
                why,
                "what the pool names as damaged could not be read back; the scrub will come by"
            );
        }
    };
    if checked.store.is_empty() {
        let is_index = Path::new(path).parent().is_some_and(|dir| dir.ends_with("index"));
        let remedy = match is_index {
            true => {
                "the index can be made anew: restart the agent; if it does not open, remove that folder `index` and start it again"
            }
            false => "restore the file from a snapshot, or run `ipfs repo verify` if it is Kubo's",
        };
        return tracing::error!(path, remedy, "the pool names a damaged file of the node that is no segment");
    }
    let damaged = checked.damaged.len() as u64;
    let bad = damaged + checked.rescued + checked.unreadable;
    for (outcome, count) in [
        ("whole", checked.records.saturating_sub(bad)),
        ("damaged", damaged),
        ("rescued", checked.rescued),
        ("unreadable", checked.unreadable),
    ] {
        counts.read_back.with_label_values(&[outcome]).inc_by(count);
    }
    for one in &checked.damaged {
        let name = if one.cid.is_empty() { &one.key } else { &one.cid };
        tracing::error!(
            cid = name,
            store = checked.store,
            path,
            reason = one.reason,
            "a damaged block, found by the pool, is quarantined"
        );
    }
    let (records, rescued, unreadable) = (checked.records, checked.rescued, checked.unreadable);
    tracing::info!(
        path,
        start,
        end,
        store = checked.store,
        records,
        damaged,
        rescued,
        unreadable,
        "read back what the pool named as damaged"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use basalt_zfs::{Entity, Model, model::Fault};

    use super::*;

    struct World {
        dir: tempfile::TempDir,
        model: Arc<Model>,
        shared: Arc<Shared>,
        segment: PathBuf,
        inode: u64,
    }

    /// A node's datasets in memory; plain folders stand for where they are mounted.
    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let model = Arc::new(Model::new(1));
        model.add_pool(&"tank".parse().unwrap(), 1 << 30);
        let declared = basalt_datasets::Declaration::below(&"tank/basalt".parse().unwrap(), 2);
        let layout = Layout::new(&declared, &dir.path().join("node"), "0123").unwrap();
        let plan = basalt_datasets::plan(&layout, &basalt_datasets::look(&*model, &layout).unwrap());
        basalt_datasets::apply(&layout, &plan, &*model, &basalt_datasets::Own(&*model), false, &mut |_| {}).unwrap();
        let shard = dir.path().join("node/shards/01");
        fs::create_dir_all(shard.join("index")).unwrap();
        let segment = shard.join("seg-00000001.log");
        fs::write(&segment, [7; 100]).unwrap();
        let inode = fs::metadata(&segment).unwrap().ino();
        let shared = Shared::new(layout, Counts::register(&Registry::new()).unwrap());
        assert!(shared.zfs.set(model.clone()).is_ok());
        World { dir, model, shared, segment, inode }
    }

    impl World {
        fn objset(&self, entity: &Entity) -> u64 {
            self.model.properties(entity, &["objsetid".parse().unwrap()]).unwrap()[0].value.parse().unwrap()
        }

        fn event(&self, id: u64, class: &str, block: Option<BlockPlace>) -> Event {
            let pool = Some("tank".parse().unwrap());
            Event { id, time_unix_ns: id, class: class.into(), pool, vdev: None, state: None, block }
        }

        fn place(&self, objset: u64, level: u64, block: u64) -> Option<BlockPlace> {
            Some(BlockPlace { objset, object: self.inode, level, block })
        }

        /// What the node is asked to read back for all that is named by now.
        fn asked(&self, reader: &mut Reader) -> Vec<CheckPartRequest> {
            let asked = RefCell::new(Vec::new());
            let named = std::mem::take(&mut *lock(&self.shared.named.0));
            reader.go_through(&*self.model, &self.shared.layout, &named, &self.shared.counts, &|part| {
                asked.borrow_mut().push(part.clone());
                Ok(CheckPartResponse { store: "shard 1".into(), records: 3, ..CheckPartResponse::default() })
            });
            asked.into_inner()
        }

        fn part(&self, start: u64, end: u64, persists: bool) -> CheckPartRequest {
            CheckPartRequest { path: self.segment.display().to_string(), start, end, persists }
        }
    }

    fn shard() -> Dataset {
        "tank/basalt/shards/01".parse().unwrap()
    }

    #[test]
    fn a_damaged_block_is_mapped_to_its_part_of_the_segment() {
        let world = world();
        let size = fs::metadata(&world.segment).unwrap().blksize();
        let objset = world.objset(&Entity::from(&shard()));
        for (id, class, block) in [(1, "checksum", 3), (2, "data", 3), (3, "data", 4), (4, "checksum", 9)] {
            world.shared.heard(&world.event(id, &format!("ereport.fs.zfs.{class}"), world.place(objset, 0, block)));
        }
        assert!(*lock(&world.shared.look.0), "the pool is looked at at once");
        let mut reader = Reader::default();
        assert_eq!(
            world.asked(&mut reader),
            [world.part(3 * size, 5 * size, true), world.part(9 * size, 10 * size, false)]
        );
        world.shared.heard(&world.event(5, "ereport.fs.zfs.data", world.place(objset, 1, 0)));
        assert_eq!(world.asked(&mut reader), [world.part(0, 0, false)], "what points to data may point to any");
        assert_eq!(world.shared.counts.read_back.with_label_values(&["whole"]).get(), 9);
    }

    #[test]
    fn a_block_that_a_scrub_finds_in_a_snapshot_is_the_node_s_own() {
        let world = world();
        let snapshot = shard().snapshot("old").unwrap();
        world.model.snapshot(std::slice::from_ref(&snapshot), &[]).unwrap();
        let objset = world.objset(&Entity::Snapshot(snapshot));
        world.shared.heard(&world.event(1, "ereport.fs.zfs.data", world.place(objset, 0, 0)));
        assert_eq!(world.asked(&mut Reader::default()).len(), 1);
    }

    #[test]
    fn what_is_not_of_the_node_is_let_alone() {
        let world = world();
        let mut foreign = world.event(1, "ereport.fs.zfs.data", world.place(77, 0, 0));
        world.shared.heard(&foreign);
        foreign.pool = Some("other".parse().unwrap());
        foreign.block = None;
        world.shared.heard(&foreign);
        assert_eq!(world.asked(&mut Reader::default()), []);
        let mut gone = world.place(world.objset(&Entity::from(&shard())), 0, 0);
        gone.as_mut().unwrap().object = 1 << 40;
        world.shared.heard(&world.event(2, "ereport.fs.zfs.data", gone));
        assert_eq!(world.asked(&mut Reader::default()), []);
    }

    #[test]
    fn without_a_block_the_files_that_the_pool_names_are_read_back_once() {
        let world = world();
        let pool: Pool = "tank".parse().unwrap();
        let gone = DamagedFile::Within("tank/basalt/shards/01@old".into(), "seg-00000009.log".into());
        let files = vec![
            DamagedFile::Path(world.segment.clone()),
            DamagedFile::Path(world.dir.path().join("elsewhere")),
            DamagedFile::Object("<metadata>:<0x1>".into()),
            gone,
        ];
        world.model.set_damaged(&pool, files);
        let mut reader = Reader::default();
        world.shared.heard(&world.event(1, "ereport.fs.zfs.data", None));
        assert_eq!(world.asked(&mut reader), [world.part(0, 0, false)]);
        world.shared.heard(&world.event(2, "ereport.fs.zfs.data", None));
        assert_eq!(world.asked(&mut reader), []);
        let by_number = DamagedFile::Object(format!("tank/basalt/shards/01:<{:#x}>", world.inode));
        let of_snapshot = DamagedFile::Within("tank/basalt/shards/01@old".into(), "seg-00000001.log".into());
        world.model.set_damaged(&pool, vec![by_number, of_snapshot]);
        world.shared.name_files(pool);
        assert_eq!(world.asked(&mut reader).len(), 2);
    }

    #[test]
    fn a_disk_that_changes_and_a_scrub_that_ends_have_the_pool_looked_at_at_once() {
        let world = world();
        for (id, class) in ["sysevent.fs.zfs.history_event", "sysevent.fs.zfs.config_sync"].into_iter().enumerate() {
            world.shared.heard(&world.event(id as u64, class, None));
        }
        assert!(!*lock(&world.shared.look.0));
        for class in ["resource.fs.zfs.statechange", "sysevent.fs.zfs.scrub_finish", "ereport.fs.zfs.deadman"] {
            world.shared.heard(&world.event(7, class, None));
            assert!(std::mem::take(&mut *lock(&world.shared.look.0)), "{class}");
        }
        assert!(lock(&world.shared.named.0).is_empty());
    }

    #[test]
    fn events_that_can_t_be_followed_are_a_condition_and_followed_again_ones_are_not_heard_twice() {
        let world = world();
        let refused = Fault { operation: Some(basalt_zfs::Operation::Events), after: 2, class: Class::Io, done: false };
        world.model.inject(refused);
        world.model.post(world.event(1, "resource.fs.zfs.statechange", None));
        let follower = world.shared.clone();
        thread::spawn(move || follower.follow());
        let until = |what: &str, holds: &dyn Fn() -> bool| {
            let end = Instant::now() + Duration::from_secs(20);
            while !holds() {
                assert!(Instant::now() < end, "not in time: {what}");
                thread::sleep(Duration::from_millis(5));
            }
        };
        let count = || world.shared.counts.events.with_label_values(&["resource.fs.zfs.statechange"]).get();
        until("it has ended once", &|| {
            lock(&world.shared.unfollowed).as_ref().is_some_and(|c| c.name == "pool-events")
        });
        assert_eq!(count(), 1);
        world.model.post(world.event(2, "resource.fs.zfs.statechange", None));
        until("it is followed again", &|| lock(&world.shared.unfollowed).is_none() && count() == 2);
    }
}
