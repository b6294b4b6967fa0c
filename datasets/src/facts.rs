//! What is there: looked up through [`Zfs`] and on the file system, and changed by nothing here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use basalt_zfs::{Class, Dataset, Entity, Kind, Pool, PropertyName, Reach, Result, Source, Zfs};

use crate::{Layout, plan, property};

/// What was found of what a layout declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The pools that are imported.
    pub pools: BTreeSet<Pool>,
    /// The declared datasets that are there, and those that they lie in.
    pub datasets: BTreeMap<Dataset, Found>,
    /// Datasets that lie in the node's and are not declared.
    pub undeclared: BTreeSet<Dataset>,
    /// The folders where something is to be mounted that isn't.
    pub folders: BTreeMap<PathBuf, Folder>,
}

/// A dataset that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Filesystem or volume.
    pub kind: Kind,
    /// Its properties and where each comes from.
    pub properties: BTreeMap<PropertyName, (String, Source)>,
}

impl Found {
    /// The value of a property.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.property(name).map(|(value, _)| value.as_str())
    }

    /// The value of a property and where it comes from.
    pub fn property(&self, name: &str) -> Option<&(String, Source)> {
        self.properties.iter().find(|(known, _)| known.as_str() == name).map(|(_, found)| found)
    }

    /// A value that was set on this dataset itself.
    pub fn local(&self, name: &str) -> Option<&str> {
        self.property(name).filter(|(_, source)| *source == Source::Local).map(|(value, _)| value.as_str())
    }

    /// Whether it is mounted.
    pub fn is_mounted(&self) -> bool {
        self.value("mounted") == Some("yes")
    }
}

/// A folder that something is to be mounted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folder {
    /// There is none yet, or an empty one.
    Free,
    /// It has something in it, for example this: a mount would hide it.
    Holds(String),
    /// It can't be looked into.
    Unknown(String),
}

/// Looks up what a layout declares. Takes as many calls of ZFS as there are datasets.
pub fn look(zfs: &dyn Zfs, layout: &Layout) -> Result<Facts> {
    let mut facts = Facts { pools: zfs.pools()?.into_iter().map(|pool| pool.name).collect(), ..Facts::default() };
    let mut kinds: BTreeMap<Dataset, Kind> = BTreeMap::new();
    let declared: BTreeSet<&Dataset> = layout.members().iter().map(|member| &member.dataset).collect();
    for dataset in listed_from(layout) {
        if !facts.pools.contains(&dataset.pool()) {
            continue;
        }
        match zfs.datasets(dataset, Reach::Descendants) {
            Ok(entries) => kinds.extend(entries.into_iter().map(|entry| (entry.name, entry.kind))),
            Err(e) if e.class() == Class::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    // What they lie in decides whether they can be made, and what they inherit.
    for above in declared.iter().filter_map(|dataset| dataset.parent()).filter(|above| !declared.contains(above)) {
        if facts.pools.contains(&above.pool()) && !kinds.contains_key(&above) {
            match zfs.datasets(&above, Reach::Itself) {
                Ok(entries) => kinds.extend(entries.into_iter().map(|entry| (entry.name, entry.kind))),
                Err(e) if e.class() == Class::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    let above: BTreeSet<Dataset> = declared.iter().filter_map(|dataset| dataset.parent()).collect();
    for (dataset, kind) in kinds {
        if declared.contains(&dataset) || above.contains(&dataset) {
            let properties = zfs.properties(&Entity::from(&dataset), &names())?;
            let properties = properties.into_iter().map(|p| (p.name, (p.value, p.source))).collect();
            facts.datasets.insert(dataset, Found { kind, properties });
        } else {
            facts.undeclared.insert(dataset);
        }
    }
    for member in layout.holding() {
        let mounted = facts.datasets.get(&member.dataset).is_some_and(Found::is_mounted);
        if let Some(place) = member.mountpoint.as_ref().filter(|_| !mounted) {
            facts.folders.insert(place.clone(), folder(place));
        }
    }
    Ok(facts)
}

/// The declared ones that lie in no other: listing these lists all.
fn listed_from(layout: &Layout) -> impl Iterator<Item = &Dataset> {
    let datasets: Vec<&Dataset> = layout.members().iter().map(|member| &member.dataset).collect();
    let within = datasets.clone();
    datasets.into_iter().filter(move |dataset| !within.iter().any(|other| other.contains(dataset)))
}

/// All that a plan looks at.
fn names() -> Vec<PropertyName> {
    let all: BTreeSet<&str> = property::names().chain(plan::LOOKED_AT.iter().copied()).collect();
    all.into_iter().filter_map(|name| name.parse().ok()).collect()
}

fn folder(place: &Path) -> Folder {
    match fs::read_dir(place) {
        Ok(mut entries) => match entries.next() {
            Some(Ok(entry)) => Folder::Holds(entry.file_name().to_string_lossy().into_owned()),
            Some(Err(e)) => Folder::Unknown(e.to_string()),
            None => Folder::Free,
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Folder::Free,
        Err(e) => Folder::Unknown(e.to_string()),
    }
}
