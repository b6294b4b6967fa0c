//! The difference between what is declared and what is there, as steps: a pure function. What `plan` shows, `apply` does and `drift` explains
//! is this one list.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use basalt_zfs::{Dataset, Kind, PropertyName, Source};

use crate::{
    Layout, Member, Role,
    facts::{Facts, Folder, Found},
    layout::RESERVE_PROPERTY,
    property,
};

/// The user property on the node's dataset that says whose it is; all below inherit it.
pub const NODE_PROPERTY: &str = "basalt:node";
/// The user property on each that says what it is for.
pub const ROLE_PROPERTY: &str = "basalt:role";
/// The user property on the node's dataset while steps are being done: who finds it at a start knows that they did not end.
pub const APPLYING_PROPERTY: &str = "basalt:applying";

/// What a plan looks at besides the declared properties.
pub(crate) const LOOKED_AT: &[&str] = &[
    NODE_PROPERTY,
    ROLE_PROPERTY,
    APPLYING_PROPERTY,
    "available",
    "canmount",
    "dedup",
    "encryption",
    "encryptionroot",
    "keystatus",
    "mounted",
    "mountpoint",
    "readonly",
    "referenced",
    "sync",
    "used",
];

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a dataset, unmounted, with these properties.
    Create {
        /// Which.
        dataset: Dataset,
        /// All that is set on it at once.
        properties: Vec<(PropertyName, String)>,
    },
    /// Set a property.
    Set {
        /// Where.
        dataset: Dataset,
        /// Which.
        name: PropertyName,
        /// To what.
        to: String,
    },
    /// Take a property from above again.
    Inherit {
        /// Where.
        dataset: Dataset,
        /// Which.
        name: PropertyName,
    },
    /// Load the key of an encryption root from its place.
    LoadKey {
        /// Which.
        dataset: Dataset,
    },
    /// Mount it.
    Mount {
        /// Which.
        dataset: Dataset,
        /// Where it will be.
        at: PathBuf,
    },
}

impl Step {
    /// What it changes.
    pub fn dataset(&self) -> &Dataset {
        match self {
            Step::Create { dataset, .. }
            | Step::Set { dataset, .. }
            | Step::Inherit { dataset, .. }
            | Step::LoadKey { dataset }
            | Step::Mount { dataset, .. } => dataset,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Create { dataset, properties } => {
                write!(f, "create {dataset}")?;
                properties.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
            }
            Step::Set { dataset, name, to } => write!(f, "set {name}={to} on {dataset}"),
            Step::Inherit { dataset, name } => write!(f, "inherit {name} on {dataset}"),
            Step::LoadKey { dataset } => write!(f, "load the key of {dataset}"),
            Step::Mount { dataset, at } => write!(f, "mount {dataset} at {}", at.display()),
        }
    }
}

/// A step, with the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What to do.
    pub step: Step,
    /// Why: what was found, and what is declared.
    pub why: String,
    /// What it may break or end; such a step is only done with an operator's word.
    pub risk: Option<String>,
}

/// What no step can mend: the plan isn't applied while there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What is in the way.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// What stands out though nothing is declared about it; never changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What.
    pub what: String,
    /// What one may want to do about it.
    pub remedy: String,
}

/// What has to be done so that what is there is what is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Planned>,
    /// What is in the way.
    pub obstacles: Vec<Obstacle>,
    /// What stands out.
    pub notes: Vec<Note>,
}

impl Plan {
    /// Whether all is as declared.
    pub fn is_done(&self) -> bool {
        self.steps.is_empty() && self.obstacles.is_empty()
    }

    /// The steps that need an operator's word.
    pub fn risky(&self) -> impl Iterator<Item = &Planned> {
        self.steps.iter().filter(|planned| planned.risk.is_some())
    }

    fn step(&mut self, step: Step, why: impl Into<String>) {
        self.steps.push(Planned { step, why: why.into(), risk: None });
    }

    fn risky_step(&mut self, step: Step, why: impl Into<String>, risk: impl Into<String>) {
        self.steps.push(Planned { step, why: why.into(), risk: Some(risk.into()) });
    }

    fn obstacle(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.obstacles.push(Obstacle { what: what.into(), remedy: remedy.into() });
    }

    fn note(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.notes.push(Note { what: what.into(), remedy: remedy.into() });
    }
}

/// Compares, and says what to do. Nothing that it plans destroys, renames or empties a dataset.
pub fn plan(layout: &Layout, facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    let mut missing: BTreeSet<&Dataset> = BTreeSet::new();
    for member in layout.members() {
        let pool = member.dataset.pool();
        if !facts.pools.contains(&pool) {
            let what = format!("{} ({}): there is no pool {pool}", member.dataset, member.role);
            plan.obstacle(what, format!("import it ('zpool import {pool}'), or correct the declaration"));
            continue;
        }
        match facts.datasets.get(&member.dataset) {
            None => {
                missing.insert(&member.dataset);
                create(&mut plan, layout, facts, member, &missing);
            }
            Some(found) => compare(&mut plan, layout, facts, member, found),
        }
    }
    load_keys(&mut plan, layout, facts);
    mounts(&mut plan, layout, facts, &missing);
    notes(&mut plan, layout, facts);
    plan
}

fn name(name: &str) -> Option<PropertyName> {
    name.parse().ok()
}

/// The role as it is written into [`ROLE_PROPERTY`].
fn role(role: Role) -> String {
    match role {
        Role::Shard(id) => format!("shard-{id:02}"),
        other => other.section().to_owned(),
    }
}

/// Whether its mountpoint has to be set on it: one that lies in the node's at the same path as its folder in the node's folder inherits it.
fn own_mountpoint(layout: &Layout, member: &Member) -> Option<String> {
    let place = member.mountpoint.as_ref()?;
    let parent = layout.members().first()?;
    let below = member.dataset.as_str().strip_prefix(parent.dataset.as_str()).and_then(|rest| rest.strip_prefix('/'));
    let inherited = below.zip(parent.mountpoint.as_ref()).map(|(below, folder)| folder.join(below));
    (inherited.as_ref() != Some(place)).then(|| place.display().to_string())
}

fn create(plan: &mut Plan, layout: &Layout, facts: &Facts, member: &Member, missing: &BTreeSet<&Dataset>) {
    let above = member.dataset.parent();
    let made_before = above.as_ref().is_some_and(|above| missing.contains(above));
    let above_found = above.as_ref().and_then(|above| facts.datasets.get(above));
    if above_found.is_none() && !made_before {
        let above = above.map_or_else(String::new, |above| above.to_string());
        plan.obstacle(
            format!("{} ({}) can't be made: there is no {above}", member.dataset, member.role),
            format!("make it first ('zfs create -o canmount=off {above}'), or name another"),
        );
        return;
    }
    let mut properties: Vec<(PropertyName, String)> = Vec::new();
    let mut add = |key: &str, value: String| properties.extend(name(key).map(|key| (key, value)));
    if member.role == Role::Node || !layout.parent().contains(&member.dataset) {
        add(NODE_PROPERTY, layout.node_id().to_owned());
    }
    add(ROLE_PROPERTY, role(member.role));
    match own_mountpoint(layout, member) {
        _ if member.mountpoint.is_none() => add("canmount", "off".to_owned()),
        Some(place) => add("mountpoint", place),
        None => {}
    }
    if let Some(encryption) =
        layout.encryption().filter(|_| member.role == Role::Node || !layout.parent().contains(&member.dataset))
    {
        add("encryption", "on".to_owned());
        add("keyformat", encryption.keyformat.clone());
        add("keylocation", encryption.keylocation.clone());
    }
    properties.extend(member.properties.iter().map(|(key, value)| (key.clone(), value.clone())));
    // What it keeps back from the first moment on; later the node lifts it and puts it back, so that it is compared no more.
    let kept =
        member.properties.iter().find(|(key, _)| key.as_str() == RESERVE_PROPERTY).map(|(_, bytes)| bytes.clone());
    properties.extend(name("refreservation").zip(kept));
    plan.step(
        Step::Create { dataset: member.dataset.clone(), properties },
        format!("{}: it is declared and not there", member.role),
    );
}

fn compare(plan: &mut Plan, layout: &Layout, facts: &Facts, member: &Member, found: &Found) {
    let dataset = &member.dataset;
    if found.kind == Kind::Volume {
        plan.obstacle(
            format!("{dataset} is a volume, and a {} needs a filesystem", member.role),
            "name another dataset",
        );
        return;
    }
    match found.value(NODE_PROPERTY) {
        Some(id) if id != layout.node_id() => {
            plan.obstacle(
                format!("{dataset} belongs to node {id}, this is node {}", layout.node_id()),
                "name another dataset; a node's datasets are its own",
            );
            return;
        }
        _ => adopt(plan, layout, member, found),
    }
    if layout.encryption().is_some() && found.value("encryption") == Some("off") {
        plan.obstacle(
            format!("{dataset} is not encrypted, and it is declared to be"),
            "what is there can't be encrypted: make a new node with encryption and import into it, or take [encryption] out",
        );
    }
    for (key, to) in &member.properties {
        let (value, source) = match found.properties.get(key) {
            Some((value, source)) => (value.as_str(), source),
            None => ("not known to this ZFS", &Source::None),
        };
        if property::same(key.as_str(), value, to) {
            continue;
        }
        let step = Step::Set { dataset: dataset.clone(), name: key.clone(), to: to.clone() };
        let why = format!(
            "{}: {key} is {value} ({}), declared is {to}{}",
            member.role,
            origin(source),
            meaning(key.as_str(), value)
        );
        match refused(key.as_str(), to, found) {
            None => plan.step(step, why),
            Some(what) => plan
                .obstacle(format!("{dataset} ({}): {what}", member.role), "declare another size, or make room first"),
        }
    }
    // What is declared above holds here too, unless it is declared otherwise.
    for (key, to) in from_above(layout, member) {
        if let Some((value, Source::Local | Source::Received)) = found.properties.get(&key)
            && !property::same(key.as_str(), value, &to)
        {
            let why = format!(
                "{}: {key} is {value} (set on it), declared above is {to}{}",
                member.role,
                meaning(key.as_str(), value)
            );
            plan.step(Step::Inherit { dataset: dataset.clone(), name: key }, why);
        }
    }
    place(plan, layout, facts, member, found);
}

/// The declared properties that it inherits.
fn from_above(layout: &Layout, member: &Member) -> BTreeMap<PropertyName, String> {
    let above = layout.members().iter().filter(|other| other.dataset.contains(&member.dataset));
    let all = above.flat_map(|other| other.properties.clone());
    all.filter(|(key, _)| property::inherits(key.as_str()) && !member.properties.contains_key(key)).collect()
}

/// What is there and bears no mark was made by somebody else: it is only taken with an operator's word.
fn adopt(plan: &mut Plan, layout: &Layout, member: &Member, found: &Found) {
    let whose = found.local(ROLE_PROPERTY);
    let marks = [
        (NODE_PROPERTY, layout.node_id().to_owned(), found.value(NODE_PROPERTY).is_some()),
        (ROLE_PROPERTY, role(member.role), whose == Some(role(member.role).as_str())),
    ];
    let had = match whose {
        Some(other) => format!("it is marked as {other}"),
        None => {
            format!("it was not made for a node and holds {} bytes", found.value("referenced").unwrap_or("unknown"))
        }
    };
    for (key, to, _) in marks.into_iter().filter(|(.., is_right)| !is_right) {
        if let Some(key) = name(key) {
            plan.risky_step(
                Step::Set { dataset: member.dataset.clone(), name: key, to },
                format!("{}: {} is there already", member.role, member.dataset),
                format!("takes a dataset for this node: {had}"),
            );
        }
    }
}

/// Where it is mounted, or that it isn't.
fn place(plan: &mut Plan, layout: &Layout, facts: &Facts, member: &Member, found: &Found) {
    let dataset = &member.dataset;
    let below = |other: &Member| other.dataset == *dataset || dataset.contains(&other.dataset);
    let is_mounted = |other: &Member| facts.datasets.get(&other.dataset).is_some_and(Found::is_mounted);
    let mounted = layout.members().iter().find(|other| below(other) && is_mounted(other)).map(|other| &other.dataset);
    let mut change = |key: &str, to: Option<String>, why: String, ends: Option<&Dataset>| {
        let Some(name) = name(key) else { return };
        let dataset = dataset.clone();
        let step = match to {
            Some(to) => Step::Set { dataset, name, to },
            None => Step::Inherit { dataset, name },
        };
        match ends {
            Some(ends) => plan.risky_step(step, why, format!("{ends} is mounted: ZFS unmounts it for this")),
            None => plan.step(step, why),
        }
    };
    let canmount = found.value("canmount").unwrap_or("on");
    let local = found.local("mountpoint");
    let Some(place) = &member.mountpoint else {
        if canmount != "off" {
            let why = format!("{}: it holds no data and is not to be mounted", member.role);
            change("canmount", Some("off".into()), why, found.is_mounted().then_some(dataset));
        }
        if let Some(at) = local {
            let why = format!("{}: its mountpoint is {at} (set on it), and what lies in it inherits that", member.role);
            change("mountpoint", None, why, mounted);
        }
        return;
    };
    let place = place.display().to_string();
    let at = found.value("mountpoint").unwrap_or_default();
    if at != place {
        let why = format!("{}: its mountpoint is {at}, its folder is {place}", member.role);
        // What is inherited from another member is right as soon as that one is.
        let from_member = match found.property("mountpoint") {
            Some((_, Source::Inherited(from))) => layout.members().iter().any(|other| other.dataset == *from),
            _ => false,
        };
        match (own_mountpoint(layout, member), local) {
            (None, Some(_)) => change("mountpoint", None, why, mounted),
            (None, None) if from_member => {}
            _ => change("mountpoint", Some(place), why, mounted),
        }
    }
    if canmount == "off" {
        change(
            "canmount",
            Some("on".into()),
            format!("{}: canmount=off keeps it from being mounted", member.role),
            None,
        );
    }
}

fn origin(source: &Source) -> String {
    match source {
        Source::None => "not settable".into(),
        Source::Default => "the default".into(),
        Source::Local => "set on it".into(),
        Source::Inherited(from) => format!("inherited from {from}"),
        Source::Received => "received with a stream".into(),
        Source::Temporary => "by a mount option".into(),
    }
}

/// What a difference means to a node, where that isn't plain.
fn meaning(name: &str, value: &str) -> &'static str {
    match (name, value) {
        ("sync", "disabled") => {
            "; with sync=disabled a flush is none, and a node that promises durability does not open"
        }
        ("recordsize", _) => "; it holds for files that are written from then on",
        ("compression", _) => "; it holds for what is written from then on",
        ("checksum", "off") => {
            "; without checksums rot is found by nobody but Basalt's own scrub, and healed by no mirror"
        }
        ("dedup", _) => "; Basalt stores a block once already: the table only costs",
        _ => "",
    }
}

/// What ZFS would refuse: a quota below what is used, a reservation of more than there is.
fn refused(name: &str, to: &str, found: &Found) -> Option<String> {
    let bytes = |name: &str| found.value(name).and_then(|value| value.parse::<u64>().ok());
    let limit = property::size(to).filter(|limit| *limit > 0)?;
    let used = bytes(if name.starts_with("ref") { "referenced" } else { "used" })?;
    match name {
        "quota" | "refquota" if limit < used => {
            Some(format!("{name}={limit} is declared, and {used} bytes are used already"))
        }
        "reservation" | "refreservation" if limit > used.saturating_add(bytes("available")?) => {
            Some(format!("{name}={limit} is declared, and it has {used} bytes with {} available", bytes("available")?))
        }
        _ => None,
    }
}

fn load_keys(plan: &mut Plan, layout: &Layout, facts: &Facts) {
    let mut roots = BTreeSet::new();
    for member in layout.members() {
        let found = facts.datasets.get(&member.dataset).or_else(|| facts.datasets.get(&member.dataset.parent()?));
        let Some(found) = found.filter(|found| found.value("keystatus") == Some("unavailable")) else { continue };
        if let Some(root) = found.value("encryptionroot").and_then(|root| root.parse::<Dataset>().ok())
            && roots.insert(root.clone())
        {
            // Before all that needs it, creations in it too.
            let why = format!("{}: its key is not loaded", member.role);
            plan.steps.insert(roots.len() - 1, Planned { step: Step::LoadKey { dataset: root }, why, risk: None });
        }
    }
}

/// Mounts, what lies above first.
fn mounts(plan: &mut Plan, layout: &Layout, facts: &Facts, missing: &BTreeSet<&Dataset>) {
    let mut wanted: Vec<(&Member, &PathBuf)> =
        layout.members().iter().filter_map(|member| Some((member, member.mountpoint.as_ref()?))).collect();
    wanted.sort_by_key(|(_, place)| place.components().count());
    for (member, place) in wanted {
        let is_mounted = facts.datasets.get(&member.dataset).is_some_and(Found::is_mounted);
        let is_there = facts.datasets.contains_key(&member.dataset) || missing.contains(&member.dataset);
        if is_mounted || !is_there {
            continue;
        }
        match facts.folders.get(place) {
            Some(Folder::Holds(what)) => plan.obstacle(
                format!(
                    "{} is to be mounted at {}, which is not empty (it holds '{what}')",
                    member.dataset,
                    place.display()
                ),
                "a mount would hide that: look whose it is, move it away, then run this again",
            ),
            Some(Folder::Unknown(why)) => plan.obstacle(
                format!("{} is to be mounted at {}, which can't be looked at: {why}", member.dataset, place.display()),
                "make it readable for this user, or a folder",
            ),
            _ => plan.step(
                Step::Mount { dataset: member.dataset.clone(), at: place.clone() },
                format!("{}: it is not mounted", member.role),
            ),
        }
    }
}

fn notes(plan: &mut Plan, layout: &Layout, facts: &Facts) {
    if let Some(since) = facts.datasets.get(layout.parent()).and_then(|found| found.local(APPLYING_PROPERTY)) {
        plan.note(format!("an apply did not end ({since})"), "'basalt dataset apply' does what is left of it");
    }
    for dataset in &facts.undeclared {
        plan.note(
            format!("{dataset} lies in the node's dataset and is not declared"),
            "leave it if you know whose it is; nothing here touches it",
        );
    }
    for member in layout.members() {
        let Some(found) = facts.datasets.get(&member.dataset) else { continue };
        if found.value("readonly") == Some("on") && member.mountpoint.is_some() {
            plan.note(
                format!(
                    "{} is read-only ({})",
                    member.dataset,
                    found.property("readonly").map_or_else(String::new, |(_, s)| origin(s))
                ),
                "right for a replica; a node can't be opened for writing on it",
            );
        }
        let above = from_above(layout, member);
        let undeclared = found.properties.iter().filter(|(key, (value, source))| {
            // A quota that was taken away is none, and stays "set".
            let is_none = !property::inherits(key.as_str()) && value == "0";
            let is_compared = member.properties.contains_key(*key) || above.contains_key(*key);
            *source == Source::Local
                && !is_compared
                && !is_none
                && member.role != Role::Reserve
                && property::is_declarable(key.as_str())
        });
        for (key, (value, _)) in undeclared {
            plan.note(
                format!("{} has {key}={value}, set by hand: nothing is declared for it", member.dataset),
                format!(
                    "declare it under [properties.{}] of {}, or 'zfs inherit {key} {}'",
                    member.role.section(),
                    crate::FILE_NAME,
                    member.dataset
                ),
            );
        }
    }
}
