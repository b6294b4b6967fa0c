//! `basalt dataset` and `basalt init --zfs`: the datasets of a node, by [`basalt_datasets`]. Shows every plan before it is applied; destroys nothing.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use basalt_datasets::{
    Declaration, Encryption, FILE_NAME, Hands, Helper, Layout, Member, NODE_PROPERTY, Plan, Planned, Repo, Root, apply,
    look, plan, unfinished,
};
use basalt_node::{NodeFile, NodeId};
use basalt_zfs::{
    Class, Cli as Engine, CliOptions, Dataset, Entity, Listed, Operation, PropertyName, Reach, RowsOf, Source, Zfs,
};
use nix::unistd::{Group, User, getgrouplist};
use serde_json::{Value, json};

use crate::{
    cli::{Cli, DatasetCommand, DatasetSource, Init},
    exit::{Exit, Failure, Outcome},
    pool,
    progress::bytes,
    say::say,
};

/// Where packages put the privileged helper.
const HELPER: &str = "/usr/lib/basalt/basalt-zfs-helper";
/// What an agent that starts, or a status, waits for an answer of ZFS.
const QUICK: Duration = Duration::from_secs(20);

/// ZFS by its commands.
pub fn engine(deadline: Option<Duration>) -> Outcome<Engine> {
    let options = CliOptions::default();
    let deadline = deadline.unwrap_or(options.deadline);
    Ok(Engine::new(CliOptions { deadline, ..options })?)
}

/// Who does what needs root: this process, or the helper that root has installed (BASALT_ZFS_HELPER names another command).
fn hands<'a>(zfs: &'a dyn Zfs) -> Box<dyn Hands + 'a> {
    match helper() {
        None => Box::new(Root(zfs)),
        Some(helper) => Box::new(helper),
    }
}

/// The helper, for a process that isn't root.
pub fn helper() -> Option<Helper> {
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    let command = std::env::var("BASALT_ZFS_HELPER").unwrap_or_else(|_| format!("sudo -n {HELPER}"));
    Some(Helper { command: command.split_whitespace().map(str::to_owned).collect() })
}

/// `basalt dataset ...`.
pub fn dataset(cli: &Cli, command: &DatasetCommand) -> Outcome {
    let zfs = engine(None)?;
    match command {
        DatasetCommand::Plan(source) => {
            let layout = layout(cli, source, &zfs, None)?;
            let plan = plan(&layout, &look(&zfs, &layout)?);
            show(&layout, &plan, source.json, "would be done");
            Ok(())
        }
        DatasetCommand::Apply { source, yes } => {
            let hands = hands(&zfs);
            let layout = layout(cli, source, &zfs, Some(&*hands))?;
            let before = unfinished(&zfs, layout.parent()).ok().flatten();
            let plan = plan(&layout, &look(&zfs, &layout)?);
            show(&layout, &plan, source.json, "to be done");
            carry_out(&layout, &plan, &zfs, *yes, source.json)?;
            if before.is_some() && !source.json {
                say!("the apply that did not end before is finished");
            }
            Ok(())
        }
        DatasetCommand::List(source) => list(&layout(cli, source, &zfs, None)?, &zfs, source.json),
        DatasetCommand::Drift(source) => {
            let layout = layout(cli, source, &zfs, None)?;
            let plan = plan(&layout, &look(&zfs, &layout)?);
            show(&layout, &plan, source.json, "away from what is declared");
            match plan.steps.len() + plan.obstacles.len() {
                0 => Ok(()),
                n => Err(Failure {
                    exit: Exit::Failure,
                    message: format!("{n} differences; `basalt dataset apply` does away with them"),
                }),
            }
        }
    }
}

/// The declared datasets of the node that is meant. With its dataset named, an unmounted one is mounted first if `hands` may.
fn layout(cli: &Cli, source: &DatasetSource, zfs: &dyn Zfs, hands: Option<&dyn Hands>) -> Outcome<Layout> {
    let node = match &source.zfs {
        Some(name) => node_of(&parse(name)?, zfs, hands)?,
        None => cli.node()?,
    };
    let file = NodeFile::read(&node).map_err(|err| Failure {
        exit: Exit::Absent,
        message: format!("{err}. If its dataset is only not mounted, name it: basalt dataset apply --zfs tank/basalt"),
    })?;
    Layout::read(&node, file.node_id.as_str()).map_err(|err| Failure::usage(err.to_string()))?.ok_or_else(|| {
        Failure::absent(format!(
            "{} has no {FILE_NAME}: its datasets, if it has any, are not Basalt's. A node on datasets is made by `basalt init --zfs`",
            node.display()
        ))
    })
}

/// The folder of the node whose dataset this is.
fn node_of(dataset: &Dataset, zfs: &dyn Zfs, hands: Option<&dyn Hands>) -> Outcome<PathBuf> {
    let names =
        [NODE_PROPERTY, "mountpoint", "mounted", "keystatus"].map(str::parse).into_iter().flatten().collect::<Vec<_>>();
    let found = zfs.properties(&Entity::from(dataset), &names)?;
    let value =
        |name: &str| found.iter().find(|p| p.name.as_str() == name).map(|p| p.value.as_str()).unwrap_or_default();
    if value(NODE_PROPERTY).is_empty() {
        return Err(Failure::absent(format!(
            "{dataset} was not made for a node; `basalt init --zfs {dataset}` makes one"
        )));
    }
    let at = PathBuf::from(value("mountpoint"));
    if value("mounted") != "yes" {
        let Some(hands) = hands else {
            return Err(Failure::new(format!(
                "{dataset} is not mounted at {}; `basalt dataset apply --zfs {dataset}` mounts it, and all the others",
                at.display()
            )));
        };
        if value("keystatus") == "unavailable" {
            say!("load the key of {dataset}");
            hands.load_key(dataset)?;
        }
        // The repo's folder may be a dataset of the node, and the node's lie in it.
        for (above, folder) in unmounted_above(dataset, &at, zfs)? {
            say!("mount {above} at {}", folder.display());
            hands.mount(&above, &folder)?;
        }
        say!("mount {dataset} at {}", at.display());
        hands.mount(dataset, &at)?;
    }
    Ok(at)
}

/// Datasets in a node's dataset that belong to folders above `at` and are not mounted, the topmost folder first.
fn unmounted_above(dataset: &Dataset, at: &Path, zfs: &dyn Zfs) -> Outcome<Vec<(Dataset, PathBuf)>> {
    let below: Vec<Dataset> = zfs.datasets(dataset, Reach::Descendants)?.into_iter().map(|entry| entry.name).collect();
    let names: Vec<_> = ["mountpoint", "mounted"].map(str::parse).into_iter().flatten().collect();
    let listed = zfs.listing(&below, RowsOf::Datasets, &names)?;
    let mut above: Vec<(Dataset, PathBuf)> = listed
        .into_iter()
        .filter_map(|Listed { name, values }| match (name, values.as_slice()) {
            (Entity::Dataset(name), [Some(folder), mounted]) if mounted.as_deref() != Some("yes") => {
                Some((name, PathBuf::from(folder)))
            }
            _ => None,
        })
        .filter(|(_, folder)| folder.is_absolute() && at.starts_with(folder) && at != folder)
        .collect();
    above.sort_by_key(|(_, folder)| folder.components().count());
    Ok(above)
}

fn parse(name: &str) -> Outcome<Dataset> {
    name.parse().map_err(|err| Failure::usage(format!("--zfs: {err}")))
}

/// A plan as a person reads it, or as JSON.
fn show(layout: &Layout, plan: &Plan, as_json: bool, what: &str) {
    if as_json {
        say!("{}", object(plan));
        return;
    }
    match plan.steps.len() {
        0 => say!("{}: as declared", layout.parent()),
        1 => say!("{}: 1 step {what}", layout.parent()),
        n => say!("{}: {n} steps {what}", layout.parent()),
    }
    for Planned { step, why, risk } in &plan.steps {
        say!("  {step}");
        say!("      {why}");
        if let Some(risk) = risk {
            say!("      needs --yes: {risk}");
        }
    }
    for obstacle in &plan.obstacles {
        say!("  in the way: {}", obstacle.what);
        say!("      {}", obstacle.remedy);
    }
    for note in &plan.notes {
        say!("  note: {}", note.what);
        say!("      {}", note.remedy);
    }
}

fn object(plan: &Plan) -> Value {
    let steps: Vec<_> = plan
        .steps
        .iter()
        .map(|planned| json!({ "step": planned.step.to_string(), "dataset": planned.step.dataset().as_str(), "why": planned.why, "risk": planned.risk }))
        .collect();
    let obstacles: Vec<_> = plan.obstacles.iter().map(|o| json!({ "what": o.what, "remedy": o.remedy })).collect();
    let notes: Vec<_> = plan.notes.iter().map(|n| json!({ "what": n.what, "remedy": n.remedy })).collect();
    json!({ "done": plan.is_done(), "steps": steps, "obstacles": obstacles, "notes": notes })
}

fn carry_out(layout: &Layout, plan: &Plan, zfs: &dyn Zfs, yes: bool, quiet: bool) -> Outcome {
    let hands = hands(zfs);
    let mut done = 0;
    apply(layout, plan, zfs, &*hands, yes, &mut |_| done += 1).map_err(|stopped| Failure::new(stopped.to_string()))?;
    if !quiet && done > 0 {
        say!("done");
    }
    Ok(())
}

/// Makes the datasets of a new node, and says which id it has and where its folder is. `None`: only the plan was wanted.
pub fn init(node: &Path, name: &str, options: &Init) -> Outcome<Option<NodeId>> {
    let node = std::path::absolute(node).map_err(|err| Failure::io(format!("node folder {}", node.display()), err))?;
    if NodeFile::read(&node).is_ok() {
        return Err(Failure::usage(format!(
            "{} is a Basalt node already: use it as it is, or name another folder",
            node.display()
        )));
    }
    let zfs = engine(None)?;
    let dataset = parse(name)?;
    let is_left = unfinished(&zfs, &dataset).ok().flatten();
    // An init that was killed has named the node already.
    let id: NodeId = match (&options.node_id, marked(&zfs, &dataset)?) {
        (Some(id), _) => id.parse()?,
        (None, Some(id)) => id
            .parse()
            .map_err(|_| Failure::new(format!("{dataset} has {NODE_PROPERTY}={id}, which is no node's id")))?,
        (None, None) => NodeId::random()?,
    };
    let declared = declaration(&dataset, options)?;
    let layout = Layout::new(&declared, &node, id.as_str()).map_err(|err| Failure::usage(err.to_string()))?;
    let plan = plan(&layout, &look(&zfs, &layout)?);
    if !options.json || options.datasets.dry_run {
        show(&layout, &plan, options.json, if options.datasets.dry_run { "would be done" } else { "to be done" });
    }
    if options.datasets.dry_run {
        return Ok(None);
    }
    carry_out(&layout, &plan, &zfs, options.datasets.yes, options.json)?;
    if is_left.is_some() && !options.json {
        say!("an init that was stopped half way is finished: it is node {id}");
    }
    let text = declared.to_toml().map_err(|err| Failure::new(err.to_string()))?;
    replace(&node.join(FILE_NAME), &text)?;
    Ok(Some(id))
}

fn marked(zfs: &dyn Zfs, dataset: &Dataset) -> Outcome<Option<String>> {
    let name = NODE_PROPERTY.parse().map_err(|err| Failure::new(format!("{err}")))?;
    match zfs.properties(&Entity::from(dataset), &[name]) {
        Ok(found) => Ok(found.into_iter().find(|p| p.source == Source::Local).map(|p| p.value)),
        Err(err) if err.class() == Class::NotFound => Ok(None),
        Err(err) => Err(err.into()),
    }
}

fn declaration(dataset: &Dataset, options: &Init) -> Outcome<Declaration> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|err| Failure::io(format!("{}", path.display()), err));
    let mut declared = Declaration::below(dataset, options.shards.unwrap_or(1) as usize);
    if let Some(repo) = &options.datasets.repo {
        declared.repo = Some(Repo { dataset: format!("{dataset}/repo"), mountpoint: absolute(repo)? });
    }
    if let Some(key) = &options.datasets.encryption_key {
        let keylocation = format!("file://{}", absolute(key)?.display());
        declared.encryption = Some(Encryption { keyformat: "raw".into(), keylocation });
    }
    for text in &options.datasets.properties {
        let wrong = || Failure::usage(format!("--property {text}: write PART.NAME=VALUE, as in shards.recordsize=1M"));
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        let (part, name) = name.split_once('.').ok_or_else(wrong)?;
        declared.properties.entry(part.to_owned()).or_default().insert(name.to_owned(), value.to_owned());
    }
    Ok(declared)
}

/// Writes a file beside, flushes it, renames it, flushes the folder.
fn replace(path: &Path, text: &str) -> Outcome {
    let write = || -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|err| err.error)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|err| Failure::io(format!("write {}", path.display()), err))
}

/// One dataset as `list` and `status` show it.
struct Row {
    role: String,
    name: String,
    mountpoint: String,
    mounted: bool,
    used_bytes: u64,
    snapshots_bytes: u64,
    available_bytes: u64,
    compressratio: String,
    recordsize: u64,
}

impl Row {
    fn object(&self) -> Value {
        json!({
            "role": self.role, "dataset": self.name, "mountpoint": self.mountpoint, "mounted": self.mounted, "used_bytes": self.used_bytes,
            "used_by_snapshots_bytes": self.snapshots_bytes, "available_bytes": self.available_bytes, "compressratio": self.compressratio,
            "recordsize_bytes": self.recordsize,
        })
    }
}

fn rows(layout: &Layout, zfs: &dyn Zfs) -> basalt_zfs::Result<Vec<Row>> {
    let names = ["mounted", "mountpoint", "used", "usedbysnapshots", "available", "compressratio", "recordsize"];
    let names: Vec<_> = names.map(str::parse).into_iter().flatten().collect();
    let mut by_pool: BTreeMap<_, Vec<Dataset>> = BTreeMap::new();
    for member in layout.members() {
        by_pool.entry(member.dataset.pool()).or_default().push(member.dataset.clone());
    }
    let mut listed = Vec::new();
    for datasets in by_pool.into_values() {
        listed.extend(zfs.listing(&datasets, RowsOf::Datasets, &names)?);
    }
    let mut rows = Vec::new();
    for member in layout.members() {
        let found = listed.iter().find(|listed| listed.name.as_str() == member.dataset.as_str());
        let value = |name: &str| {
            let at = names.iter().position(|asked: &PropertyName| asked.as_str() == name);
            at.and_then(|at| found?.values.get(at)?.as_deref()).unwrap_or_default()
        };
        let number = |name: &str| value(name).parse().unwrap_or(0);
        rows.push(Row {
            role: member.role.to_string(),
            name: member.dataset.to_string(),
            mountpoint: member.mountpoint.as_ref().map_or("-".into(), |at| at.display().to_string()),
            mounted: value("mounted") == "yes",
            used_bytes: number("used"),
            snapshots_bytes: number("usedbysnapshots"),
            available_bytes: number("available"),
            compressratio: value("compressratio").to_owned(),
            recordsize: number("recordsize"),
        });
    }
    Ok(rows)
}

fn list(layout: &Layout, zfs: &dyn Zfs, as_json: bool) -> Outcome {
    let rows = rows(layout, zfs)?;
    match as_json {
        true => say!(
            "{}",
            json!({ "node_id": layout.node_id(), "datasets": rows.iter().map(Row::object).collect::<Vec<_>>() })
        ),
        false => say!("{}", table(&rows)),
    }
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(7);
    let mut lines = vec![format!(
        "{:<9} {:<width$}  {:>10}  {:>10}  {:>10}  {:>8}  {:>10}  MOUNTED AT",
        "PART", "DATASET", "USED", "SNAPSHOTS", "AVAILABLE", "COMPRESS", "RECORDSIZE"
    )];
    for row in rows {
        lines.push(format!(
            "{:<9} {:<width$}  {:>10}  {:>10}  {:>10}  {:>8}  {:>10}  {}{}",
            row.role,
            row.name,
            bytes(row.used_bytes),
            bytes(row.snapshots_bytes),
            bytes(row.available_bytes),
            format!("{}x", row.compressratio),
            bytes(row.recordsize),
            row.mountpoint,
            if row.mounted || row.mountpoint == "-" { "" } else { " (NOT MOUNTED)" }
        ));
    }
    lines.join("\n")
}

/// What `basalt status` adds for a node on datasets: `None` for one in plain folders, or where ZFS doesn't answer soon.
pub fn glance(node: &Path) -> Option<(String, Value)> {
    let file = NodeFile::read(node).ok()?;
    let layout = Layout::read(node, file.node_id.as_str()).ok()??;
    let zfs = engine(Some(QUICK)).ok()?;
    let rows = rows(&layout, &zfs).ok()?;
    let seen = pool::look(&zfs, &pool::pools(&layout)).ok()?;
    let mut object = pool::object(&seen);
    object["datasets"] = Value::Array(rows.iter().map(Row::object).collect());
    Some((format!("{}\n\n{}", table(&rows), pool::table(&seen)), object))
}

/// Before an agent opens its node: finishes an apply that was killed, and says how the datasets differ from what is declared. Never in the way of
/// opening: what a node can't do without is looked at by the node itself.
pub fn at_start(node: &Path) {
    let Ok(file) = NodeFile::read(node) else { return };
    let layout = match Layout::read(node, file.node_id.as_str()) {
        Ok(Some(layout)) => layout,
        Ok(None) => return,
        Err(err) => return tracing::error!(%err, "the declaration of the node's datasets can't be read"),
    };
    let look_at = || -> Outcome {
        let zfs = engine(Some(QUICK))?;
        let is_left = unfinished(&zfs, layout.parent())?;
        let plan = plan(&layout, &look(&zfs, &layout)?);
        if is_left.is_some() && plan.obstacles.is_empty() && plan.risky().count() == 0 {
            let hands = hands(&zfs);
            let steps = plan.steps.len();
            apply(
                &layout,
                &plan,
                &zfs,
                &*hands,
                false,
                &mut |step| tracing::info!(%step, "finishing an apply that did not end"),
            )
            .map_err(|stopped| Failure::new(stopped.to_string()))?;
            tracing::warn!(steps, "an apply of the node's datasets had not ended: it is finished");
            return Ok(());
        }
        for Planned { step, why, .. } in &plan.steps {
            tracing::warn!(%step, why, "a dataset is not as declared; `basalt dataset apply` would do this");
        }
        for obstacle in &plan.obstacles {
            tracing::warn!(remedy = obstacle.remedy, "{}", obstacle.what);
        }
        Ok(())
    };
    if let Err(failure) = look_at() {
        tracing::warn!("the node's datasets can't be looked at: {}", failure.message);
    }
}

/// What `basalt doctor` finds out about datasets.
#[derive(Debug, Default)]
pub struct Examined {
    /// How many were looked at.
    pub count: usize,
    /// Where a flush is none.
    pub unsynced: Vec<Dataset>,
    /// Where deduplication is on.
    pub deduplicated: Vec<Dataset>,
    /// What the owner of the node's folder may not do: where, who, which permissions.
    pub missing: Vec<(Dataset, String, Vec<String>)>,
    /// How they differ from what is declared, and what to do.
    pub differences: Vec<(String, String)>,
}

/// What an agent does by itself, as a user who isn't root.
const OPERATIONS: &[Operation] = &[
    Operation::Create,
    Operation::Snapshot,
    Operation::DestroySnapshots,
    Operation::Hold,
    Operation::Release,
    Operation::Bookmark,
    Operation::Rollback,
    Operation::Clone,
    Operation::Promote,
    Operation::Rename,
    Operation::Send,
    Operation::Receive,
    Operation::LoadKey,
];

/// Looks at the datasets under a node, declared or not; `None` where none of its folders is on ZFS.
pub fn examine(node: &Path, node_id: &str, folders: &[PathBuf]) -> Outcome<Option<Examined>> {
    let layout = Layout::read(node, node_id).map_err(|err| Failure::new(err.to_string()))?;
    let mut names: Vec<Dataset> =
        folders.iter().filter_map(|folder| basalt_node::dataset_under(folder)?.0.parse().ok()).collect();
    names.extend(layout.iter().flat_map(|layout| layout.members().iter().map(|member| member.dataset.clone())));
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Ok(None);
    }
    let zfs = engine(Some(QUICK))?;
    let mut examined = Examined { count: names.len(), ..Examined::default() };
    let properties: Vec<_> = ["sync", "dedup"].map(str::parse).into_iter().flatten().collect();
    for name in &names {
        let found = match zfs.properties(&Entity::from(name), &properties) {
            Err(err) if err.class() == Class::NotFound => continue,
            found => found?,
        };
        let value = |name: &str| found.iter().find(|p| p.name.as_str() == name).map(|p| p.value.as_str());
        if value("sync") == Some("disabled") {
            examined.unsynced.push(name.clone());
        }
        if value("dedup").is_some_and(|dedup| dedup != "off") {
            examined.deduplicated.push(name.clone());
        }
    }
    if let Some(layout) = layout {
        let plan = plan(&layout, &look(&zfs, &layout)?);
        let steps =
            plan.steps.iter().map(|planned| (planned.why.clone(), format!("basalt dataset apply: {}", planned.step)));
        let rest = plan.obstacles.iter().map(|o| (o.what.clone(), o.remedy.clone()));
        let notes = plan.notes.iter().map(|n| (n.what.clone(), n.remedy.clone()));
        examined.differences = steps.chain(rest).chain(notes).collect();
        let owner = owner(node)?;
        if let Some((user, groups)) = owner {
            let declared = |member: &Member| member.properties.keys().cloned().collect::<Vec<PropertyName>>();
            let parent = layout.parent();
            for member in
                layout.members().iter().filter(|member| member.dataset == *parent || !parent.contains(&member.dataset))
            {
                let mut settable: Vec<PropertyName> = match member.dataset == *parent {
                    true => layout.members().iter().flat_map(declared).collect(),
                    false => declared(member),
                };
                // The node lifts its reserve, and puts it back; a restore makes clones with what was set, and sets what is mounted.
                let others = ["refreservation", "canmount", "mountpoint", NODE_PROPERTY];
                settable.extend(others.iter().filter_map(|name| name.parse().ok()));
                let missing =
                    zfs.delegation(&member.dataset)?.missing(&member.dataset, &user, &groups, OPERATIONS, &settable);
                if !missing.is_empty() {
                    examined.missing.push((member.dataset.clone(), user.clone(), missing));
                }
            }
        }
    }
    Ok(Some(examined))
}

/// Who owns a node's folder, and so runs its agent, with their groups; `None` for root.
fn owner(node: &Path) -> Outcome<Option<(String, Vec<String>)>> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(node).map_err(|err| Failure::io(format!("look at {}", node.display()), err))?;
    if meta.uid() == 0 {
        return Ok(None);
    }
    let unknown = |what: String| Failure::new(format!("{}: {what}", node.display()));
    let user = User::from_uid(meta.uid().into())
        .ok()
        .flatten()
        .ok_or_else(|| unknown(format!("its owner {} has no name", meta.uid())))?;
    let name = std::ffi::CString::new(user.name.as_str()).map_err(|err| unknown(err.to_string()))?;
    let groups = getgrouplist(&name, user.gid).unwrap_or_default();
    let groups = groups.into_iter().filter_map(|id| Some(Group::from_gid(id).ok()??.name)).collect();
    Ok(Some((user.name, groups)))
}
