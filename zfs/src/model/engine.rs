//! The operations of the model, each with its checks in the order in which ZFS makes them.

use std::{
    io::{Read, Write},
    ops::ControlFlow,
};

use super::{Encryption, Mark, Model, SnapshotState, State, property, stream};
use crate::{
    Bookmark, BookmarkEntry, Class, DamagedFile, Dataset, DatasetEntry, Delegation, Entity, Error, Event, Health, Hold,
    HoldTag, Holder, Kind, Listed, Operation, Pool, PoolEntry, PoolStatus, Property, PropertyName, Reach, Result,
    ResumeToken, Role, RowsOf, Snapshot, SnapshotEntry, SnapshotUse, Source, Stream, Vdev, Version, When, Zfs,
    engine::{check_bookmark, check_destroy, check_listing, check_properties, check_rename_snapshot, check_snapshot},
};

/// One operation: whom it is about, for its errors.
struct Act<'a> {
    operation: Operation,
    subject: &'a str,
}

impl Act<'_> {
    fn refuse(&self, class: Class, why: &str) -> Error {
        Error::new(self.operation, self.subject, class, why)
    }

    fn not_found(&self) -> Error {
        self.refuse(Class::NotFound, "dataset does not exist")
    }
}

impl Model {
    fn look<T>(
        &self,
        operation: Operation,
        subject: &str,
        look: impl FnOnce(&mut State, &Act<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.state();
        if let Some((error, _)) = state.fault(operation, subject) {
            return Err(error);
        }
        look(&mut state, &Act { operation, subject })
    }

    /// What changes something needs a pool that takes changes, and a user who may; `exists` is what has to be there for a permission to be on.
    fn change<T>(
        &self,
        operation: Operation,
        subject: &str,
        dataset: &Dataset,
        properties: &[(PropertyName, String)],
        change: impl FnOnce(&mut State, &Act<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.state();
        let act = Act { operation, subject };
        let fault = state.fault(operation, subject);
        if let Some((error, false)) = fault {
            return Err(error);
        }
        let Some(pool) = state.pools.get(&dataset.pool()) else { return Err(act.not_found()) };
        if pool.suspended {
            return Err(act.refuse(Class::Suspended, "pool I/O is currently suspended"));
        }
        if let Some(user) = &state.user {
            let on = if matches!(operation, Operation::Create | Operation::Receive)
                && !state.filesystems.contains_key(dataset)
            {
                dataset.parent().unwrap_or_else(|| dataset.clone())
            } else {
                dataset.clone()
            };
            let names: Vec<PropertyName> = properties.iter().map(|(name, _)| name.clone()).collect();
            let missing = state.delegation.missing(&on, user, &[], &[operation], &names);
            if state.filesystems.contains_key(&on)
                && (!missing.is_empty() || matches!(operation, Operation::Mount | Operation::Unmount))
            {
                return Err(act.refuse(Class::Permission, "permission denied").with_user(user));
            }
        }
        let read_only = pool_is_read_only(&state, dataset)
            && !matches!(operation, Operation::Mount | Operation::Unmount | Operation::LoadKey | Operation::UnloadKey);
        if read_only && state.filesystems.contains_key(&dataset.pool().root()) {
            return Err(act.refuse(Class::ReadOnly, "pool is read-only"));
        }
        let result = change(&mut state, &act);
        if result.is_ok() {
            state.reap();
        }
        match fault {
            Some((error, _)) => Err(error),
            None => result,
        }
    }
}

fn pool_is_read_only(state: &State, dataset: &Dataset) -> bool {
    state.pools.get(&dataset.pool()).is_some_and(|p| p.read_only)
}

impl State {
    fn parent_of(&self, act: &Act<'_>, dataset: &Dataset) -> Result<Dataset> {
        dataset
            .parent()
            .filter(|p| self.filesystems.contains_key(p))
            .ok_or_else(|| act.refuse(Class::NotFound, "parent does not exist"))
    }

    fn checked(&self, act: &Act<'_>, properties: &[(PropertyName, String)]) -> Result<Vec<(PropertyName, String)>> {
        let one = |(name, value): &(PropertyName, String)| match property::check(name, value) {
            Ok(value) => Ok((name.clone(), value)),
            Err(why) => Err(act.refuse(Class::Invalid, &format!("'{name}': {why}"))),
        };
        properties.iter().map(one).collect()
    }

    fn children(&self, dataset: &Dataset) -> Vec<Dataset> {
        self.filesystems.keys().filter(|d| d.parent().as_ref() == Some(dataset)).cloned().collect()
    }

    /// It and all in it.
    fn tree(&self, dataset: &Dataset) -> Vec<Dataset> {
        self.filesystems.keys().filter(|d| *d == dataset || dataset.contains(d)).cloned().collect()
    }

    fn entry(&self, dataset: &Dataset) -> Option<DatasetEntry> {
        let f = self.filesystems.get(dataset)?;
        let origin = f.origin.and_then(|id| self.named(id));
        Some(DatasetEntry {
            name: dataset.clone(),
            kind: Kind::Filesystem,
            guid: f.guid,
            createtxg: f.createtxg,
            origin,
        })
    }

    fn snapshot_entry(dataset: &Dataset, s: &SnapshotState) -> Option<SnapshotEntry> {
        Some(SnapshotEntry { name: dataset.snapshot(&s.name).ok()?, guid: s.guid, createtxg: s.createtxg })
    }

    fn snapshot_use(&self, dataset: &Dataset, s: &SnapshotState) -> Option<SnapshotUse> {
        let f = self.filesystems.get(dataset)?;
        let others: Vec<_> =
            f.snapshots.iter().filter(|o| o.id != s.id).map(|o| &o.content).chain([&f.content]).collect();
        let own = s.content.0.values().filter(|file| !others.iter().any(|o| o.0.values().any(|other| other == *file)));
        Some(SnapshotUse {
            entry: State::snapshot_entry(dataset, s)?,
            creation_unix_s: s.creation_unix_s,
            used_bytes: own.map(|(_, bytes)| bytes).sum(),
            referenced_bytes: s.content.bytes(),
            holds: s.holds.len() as u64,
            defer_destroy: s.defer_destroy,
            clones: self.clones(s.id),
        })
    }

    fn dataset_properties(&self, dataset: &Dataset) -> Vec<Property> {
        let Some(f) = self.filesystems.get(dataset) else { return Vec::new() };
        let on = |yes: bool, a: &str, b: &str| if yes { a.to_owned() } else { b.to_owned() };
        let root = self.encryption_root(dataset);
        let mut own = vec![
            ("type", "filesystem".to_owned()),
            ("guid", f.guid.to_string()),
            ("objsetid", f.guid.to_string()),
            ("createtxg", f.createtxg.to_string()),
            ("used", self.used_bytes(dataset).to_string()),
            ("available", self.available_bytes(dataset).to_string()),
            ("referenced", f.content.bytes().to_string()),
            ("mounted", on(f.mounted, "yes", "no")),
            ("encryption", on(root.is_some(), "aes-256-gcm", "off")),
            (
                "keystatus",
                self.encryption(dataset).map_or_else(|| "-".into(), |e| on(e.loaded, "available", "unavailable")),
            ),
            ("encryptionroot", root.map_or_else(|| "-".into(), |r| r.to_string())),
        ];
        own.extend(f.origin.and_then(|id| self.named(id)).map(|origin| ("origin", origin.to_string())));
        own.extend(self.token(dataset).map(|token| ("receive_resume_token", token.as_str().to_owned())));
        own.extend(f.snapshots_changed_unix_s.map(|at| ("snapshots_changed", at.to_string())));
        let mut properties: Vec<Property> =
            own.into_iter().filter(|(_, value)| value != "-").filter_map(|(n, v)| plain(n, v)).collect();
        for name in property::settable() {
            if let (Ok(parsed), Some((value, source))) = (name.parse(), self.effective(dataset, name)) {
                properties.push(Property { name: parsed, value, source });
            }
        }
        let mut above = Some(dataset.clone());
        while let Some(at) = above {
            let users =
                self.filesystems.get(&at).map(|f| f.local.keys().filter(|p| p.is_user()).cloned().collect::<Vec<_>>());
            for name in users.unwrap_or_default() {
                if !properties.iter().any(|p| p.name == name)
                    && let Some((value, source)) = self.effective(dataset, name.as_str())
                {
                    properties.push(Property { name, value, source });
                }
            }
            above = at.parent();
        }
        properties
    }

    fn snapshot_properties(&self, snapshot: &Snapshot) -> Option<Vec<Property>> {
        let s = self.locate(snapshot)?;
        let of = self.snapshot_use(&snapshot.dataset(), s)?;
        let mut properties: Vec<Property> = [
            ("type", "snapshot".to_owned()),
            ("guid", s.guid.to_string()),
            ("objsetid", s.guid.to_string()),
            ("createtxg", s.createtxg.to_string()),
            ("creation", s.creation_unix_s.to_string()),
            ("used", of.used_bytes.to_string()),
            ("referenced", of.referenced_bytes.to_string()),
            ("userrefs", of.holds.to_string()),
            ("defer_destroy", if s.defer_destroy { "on" } else { "off" }.to_owned()),
        ]
        .into_iter()
        .filter_map(|(name, value)| plain(name, value))
        .collect();
        for (name, value) in &s.user_properties {
            properties.push(Property { name: name.clone(), value: value.clone(), source: Source::Local });
        }
        Some(properties)
    }
}

fn plain(name: &str, value: String) -> Option<Property> {
    Some(Property { name: name.parse().ok()?, value, source: Source::None })
}

impl Zfs for Model {
    fn engine(&self) -> &'static str {
        "model"
    }

    fn version(&self) -> Result<Version> {
        self.look(Operation::Version, "zfs", |_, _| Ok(Version { tools: (2, 3, 9), module: Some((2, 3, 9)) }))
    }

    fn pools(&self) -> Result<Vec<PoolEntry>> {
        self.look(Operation::Pools, "pools", |state, _| {
            let entry = |(name, pool): (&Pool, &super::PoolState)| {
                let allocated_bytes = state.used_bytes(&name.root());
                PoolEntry {
                    name: name.clone(),
                    guid: pool.guid,
                    health: if pool.suspended { Health::Suspended } else { Health::Online },
                    size_bytes: pool.size_bytes,
                    allocated_bytes,
                    free_bytes: pool.size_bytes.saturating_sub(allocated_bytes),
                    freeing_bytes: 0,
                    fragmentation_percent: Some(0),
                    read_only: pool.read_only,
                }
            };
            Ok(state.pools.iter().map(entry).collect())
        })
    }

    fn pool_status(&self, pool: &Pool) -> Result<PoolStatus> {
        self.look(Operation::PoolStatus, pool.as_str(), |state, act| {
            let found = state.pools.get(pool).ok_or_else(|| act.refuse(Class::NotFound, "no such pool"))?;
            let health = if found.suspended { Health::Suspended } else { Health::Online };
            let disk = Vdev {
                name: "/dev/model".into(),
                role: Role::Data,
                depth: 0,
                health: if found.suspended { Health::Unavailable } else { Health::Online },
                read_errors: 0,
                write_errors: 0,
                checksum_errors: 0,
                slow: 0,
            };
            let data_errors = found.damaged.len() as u64;
            Ok(PoolStatus { name: pool.clone(), health, scan: String::new(), data_errors, vdevs: vec![disk] })
        })
    }

    fn datasets(&self, root: &Dataset, reach: Reach) -> Result<Vec<DatasetEntry>> {
        self.look(Operation::List, root.as_str(), |state, act| {
            if !state.filesystems.contains_key(root) {
                return Err(act.not_found());
            }
            let within = |d: &Dataset| match reach {
                Reach::Itself => d == root,
                Reach::Children => d == root || d.parent().as_ref() == Some(root),
                Reach::Descendants => d == root || root.contains(d),
            };
            Ok(state.filesystems.keys().filter(|d| within(d)).filter_map(|d| state.entry(d)).collect())
        })
    }

    fn snapshots(&self, dataset: &Dataset) -> Result<Vec<SnapshotEntry>> {
        self.look(Operation::List, dataset.as_str(), |state, act| {
            let f = state.filesystems.get(dataset).ok_or_else(|| act.not_found())?;
            let mut entries: Vec<_> = f.snapshots.iter().filter_map(|s| State::snapshot_entry(dataset, s)).collect();
            entries.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
            Ok(entries)
        })
    }

    fn snapshot_uses(&self, dataset: &Dataset) -> Result<Vec<SnapshotUse>> {
        self.look(Operation::List, dataset.as_str(), |state, act| {
            let f = state.filesystems.get(dataset).ok_or_else(|| act.not_found())?;
            Ok(f.snapshots.iter().filter_map(|s| state.snapshot_use(dataset, s)).collect())
        })
    }

    fn listing(&self, datasets: &[Dataset], rows: RowsOf, names: &[PropertyName]) -> Result<Vec<Listed>> {
        check_listing(datasets)?;
        let mut all = Vec::new();
        for dataset in datasets {
            let entities = match rows {
                RowsOf::Datasets => vec![Entity::from(dataset)],
                RowsOf::Snapshots => match self.snapshots(dataset) {
                    Err(error) if error.class() == Class::NotFound => continue,
                    found => found?.into_iter().map(|entry| Entity::Snapshot(entry.name)).collect(),
                },
            };
            for entity in entities {
                let found = match self.properties(&entity, names) {
                    Err(error) if error.class() == Class::NotFound => continue,
                    found => found?,
                };
                let value = |name: &PropertyName| found.iter().find(|p| p.name == *name).map(|p| p.value.clone());
                all.push(Listed { name: entity, values: names.iter().map(value).collect() });
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    fn damaged_files(&self, pool: &Pool) -> Result<Vec<DamagedFile>> {
        self.look(Operation::PoolStatus, pool.as_str(), |state, act| {
            let pool = state.pools.get(pool).ok_or_else(|| act.refuse(Class::NotFound, "no such pool"))?;
            Ok(pool.damaged.clone())
        })
    }

    /// Gives what a test has posted, and waits for more only while `to` goes on.
    fn events(&self, to: &mut dyn FnMut(Option<Event>) -> ControlFlow<()>) -> Result<()> {
        let mut next = 0;
        loop {
            let event = self.look(Operation::Events, "all pools", |state, _| Ok(state.events.get(next).cloned()))?;
            match &event {
                Some(_) => next += 1,
                None => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
            if to(event).is_break() {
                return Ok(());
            }
        }
    }

    fn snapshots_changed_unix_s(&self, dataset: &Dataset) -> Result<Option<u64>> {
        self.look(Operation::Get, dataset.as_str(), |state, act| {
            Ok(state.filesystems.get(dataset).ok_or_else(|| act.not_found())?.snapshots_changed_unix_s)
        })
    }

    fn bookmarks(&self, dataset: &Dataset) -> Result<Vec<BookmarkEntry>> {
        self.look(Operation::List, dataset.as_str(), |state, act| {
            let f = state.filesystems.get(dataset).ok_or_else(|| act.not_found())?;
            let entry = |(name, mark): (&String, &Mark)| {
                Some(BookmarkEntry { name: dataset.bookmark(name).ok()?, guid: mark.guid, createtxg: mark.createtxg })
            };
            let mut entries: Vec<_> = f.bookmarks.iter().filter_map(entry).collect();
            entries.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
            Ok(entries)
        })
    }

    fn holds(&self, snapshot: &Snapshot) -> Result<Vec<Hold>> {
        self.look(Operation::Holds, snapshot.as_str(), |state, act| {
            let s = state.locate(snapshot).ok_or_else(|| act.not_found())?;
            Ok(s.holds.iter().map(|tag| Hold { snapshot: snapshot.clone(), tag: tag.clone() }).collect())
        })
    }

    fn properties(&self, entity: &Entity, names: &[PropertyName]) -> Result<Vec<Property>> {
        self.look(Operation::Get, entity.as_str(), |state, act| {
            let all = match entity {
                Entity::Dataset(d) if state.filesystems.contains_key(d) => state.dataset_properties(d),
                Entity::Dataset(_) => return Err(act.not_found()),
                Entity::Snapshot(s) => state.snapshot_properties(s).ok_or_else(|| act.not_found())?,
                Entity::Bookmark(b) => {
                    let mark = state
                        .filesystems
                        .get(&b.dataset())
                        .and_then(|f| f.bookmarks.get(b.name()))
                        .ok_or_else(|| act.not_found())?;
                    let rows = [
                        ("type", "bookmark".to_owned()),
                        ("guid", mark.guid.to_string()),
                        ("createtxg", mark.createtxg.to_string()),
                    ];
                    rows.into_iter().filter_map(|(name, value)| plain(name, value)).collect()
                }
            };
            Ok(all.into_iter().filter(|p| names.is_empty() || names.contains(&p.name)).collect())
        })
    }

    fn delegation(&self, dataset: &Dataset) -> Result<Delegation> {
        self.look(Operation::Allow, dataset.as_str(), |state, act| {
            if !state.filesystems.contains_key(dataset) {
                return Err(act.not_found());
            }
            Ok(state.delegation.clone())
        })
    }

    fn create(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()> {
        check_properties(Operation::Create, dataset, properties)?;
        self.change(Operation::Create, dataset.as_str(), dataset, properties, |state, act| {
            let (keys, rest): (Vec<_>, Vec<_>) = properties
                .iter()
                .cloned()
                .partition(|(name, _)| matches!(name.as_str(), "encryption" | "keyformat" | "keylocation"));
            let local = state.checked(act, &rest)?;
            if state.filesystems.contains_key(dataset) {
                return Err(act.refuse(Class::Exists, "dataset already exists"));
            }
            let parent = state.parent_of(act, dataset)?;
            let of = |name: &str| keys.iter().find(|(n, _)| n.as_str() == name).map(|(_, value)| value.clone());
            let encryption = match (of("encryption"), of("keylocation")) {
                (Some(how), Some(location)) if how != "off" => {
                    let key = state
                        .keys
                        .get(&location)
                        .cloned()
                        .ok_or_else(|| act.refuse(Class::NotFound, "Failed to open key material file"))?;
                    Some(Encryption { lineage: state.guid(), key, loaded: true, location })
                }
                _ => None,
            };
            if encryption.is_none() && state.encryption(&parent).is_some_and(|e| !e.loaded) {
                return Err(act.refuse(Class::KeyNotLoaded, "encryption root's key is not loaded or provided"));
            }
            let mut filesystem = state.filesystem();
            filesystem.local.extend(local);
            filesystem.encryption = encryption;
            state.filesystems.insert(dataset.clone(), filesystem);
            Ok(())
        })
    }

    fn destroy(&self, dataset: &Dataset) -> Result<()> {
        self.change(Operation::Destroy, dataset.as_str(), dataset, &[], |state, act| {
            let f = state.filesystems.get(dataset).ok_or_else(|| act.not_found())?;
            if dataset.parent().is_none() {
                return Err(act.refuse(Class::Invalid, "operation does not apply to pools"));
            }
            let inner = state.children(dataset).into_iter().map(|d| d.to_string());
            let snapshots = f.snapshots.iter().map(|s| format!("{dataset}@{}", s.name));
            let holders: Vec<Holder> = inner.chain(snapshots).map(Holder::Child).collect();
            if !holders.is_empty() {
                return Err(act.refuse(Class::Busy, "filesystem has children").with_holders(holders));
            }
            if f.open_files > 0 {
                return Err(act.refuse(Class::Busy, "pool or dataset is busy"));
            }
            state.filesystems.remove(dataset);
            Ok(())
        })
    }

    fn rename(&self, dataset: &Dataset, to: &Dataset) -> Result<()> {
        self.change(Operation::Rename, dataset.as_str(), dataset, &[], |state, act| {
            if !state.filesystems.contains_key(dataset) {
                return Err(act.not_found());
            }
            if to == dataset {
                return Ok(());
            }
            if !state.pools.contains_key(&to.pool()) {
                return Err(act.refuse(Class::NotFound, "no such pool"));
            }
            if to.pool() != dataset.pool() {
                return Err(act.refuse(Class::Invalid, "datasets must be within same pool"));
            }
            if dataset.parent().is_none() {
                return Err(act.refuse(Class::Invalid, "it is the pool's own"));
            }
            state.parent_of(act, to)?;
            if dataset.contains(to) {
                return Err(
                    act.refuse(Class::Invalid, "New dataset name cannot be a descendant of current dataset name")
                );
            }
            let moving = state.tree(dataset);
            if moving.iter().any(|d| state.filesystems.get(d).is_some_and(|f| f.open_files > 0)) {
                return Err(act.refuse(Class::Busy, "pool or dataset is busy"));
            }
            if state.filesystems.contains_key(to) {
                return Err(act.refuse(Class::Exists, "dataset already exists"));
            }
            for old in moving {
                if let (Some(new), Some(f)) = (old.moved(dataset, to), state.filesystems.remove(&old)) {
                    state.filesystems.insert(new, f);
                }
            }
            Ok(())
        })
    }

    fn set(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()> {
        check_properties(Operation::Set, dataset, properties)?;
        self.change(Operation::Set, dataset.as_str(), dataset, properties, |state, act| {
            if !state.filesystems.contains_key(dataset) {
                return Err(act.not_found());
            }
            let local = state.checked(act, properties)?;
            for (name, value) in &local {
                let bytes = property::size(value).unwrap_or(0);
                let over = match name.as_str() {
                    "quota" => bytes > 0 && bytes < state.used_bytes(dataset),
                    "refquota" => bytes > 0 && bytes < state.filesystems.get(dataset).map_or(0, |f| f.content.bytes()),
                    "reservation" | "refreservation" => bytes > state.available_bytes(dataset),
                    _ => false,
                };
                if over {
                    return Err(
                        act.refuse(Class::NoSpace, "size is less than current used or greater than available space")
                    );
                }
            }
            if let Some(f) = state.filesystems.get_mut(dataset) {
                f.local.extend(local);
            }
            Ok(())
        })
    }

    fn inherit(&self, dataset: &Dataset, name: &PropertyName) -> Result<()> {
        self.change(Operation::Inherit, dataset.as_str(), dataset, &[(name.clone(), String::new())], |state, act| {
            let known = name.is_user() || property::settable().any(|p| p == name.as_str());
            // ZFS looks at the name before it looks for the dataset.
            if !known || !property::inherits(name.as_str()) {
                return Err(act.refuse(Class::Invalid, "property cannot be inherited"));
            }
            let f = state.filesystems.get_mut(dataset).ok_or_else(|| act.not_found())?;
            f.local.remove(name);
            Ok(())
        })
    }

    fn snapshot(&self, snapshots: &[Snapshot], properties: &[(PropertyName, String)]) -> Result<()> {
        check_snapshot(snapshots, properties)?;
        let subject = snapshots.iter().map(Snapshot::as_str).collect::<Vec<_>>().join(" ");
        let first = snapshots
            .first()
            .map(Snapshot::dataset)
            .ok_or_else(|| Error::new(Operation::Snapshot, &subject, Class::Invalid, "none"))?;
        self.change(Operation::Snapshot, &subject, &first, &[], |state, act| {
            if snapshots.iter().any(|s| !state.filesystems.contains_key(&s.dataset())) {
                return Err(act.not_found());
            }
            if snapshots.iter().any(|s| state.locate(s).is_some()) {
                return Err(act.refuse(Class::Exists, "dataset already exists"));
            }
            let (createtxg, now) = (state.next_txg(), state.now_unix_s);
            for snapshot in snapshots {
                let (id, guid, ivset) = (state.id(), state.guid(), state.guid());
                if let Some(f) = state.filesystems.get_mut(&snapshot.dataset()) {
                    f.snapshots.push(SnapshotState {
                        id,
                        name: snapshot.name().to_owned(),
                        guid,
                        createtxg,
                        creation_unix_s: now,
                        holds: Default::default(),
                        defer_destroy: false,
                        user_properties: properties.iter().cloned().collect(),
                        content: f.content.clone(),
                        ivset,
                    });
                    f.snapshots_changed_unix_s = Some(now);
                }
            }
            Ok(())
        })
    }

    fn rename_snapshot(&self, snapshot: &Snapshot, to: &Snapshot) -> Result<()> {
        check_rename_snapshot(snapshot, to)?;
        self.change(Operation::RenameSnapshot, snapshot.as_str(), &snapshot.dataset(), &[], |state, act| {
            if state.locate(snapshot).is_none() {
                return Err(act.not_found());
            }
            if to == snapshot {
                return Ok(());
            }
            if state.locate(to).is_some() {
                return Err(act.refuse(Class::Exists, "dataset already exists"));
            }
            if let Some(s) = state.locate_mut(snapshot) {
                s.name = to.name().to_owned();
            }
            let now = state.now_unix_s;
            if let Some(f) = state.filesystems.get_mut(&snapshot.dataset()) {
                f.snapshots_changed_unix_s = Some(now);
            }
            Ok(())
        })
    }

    fn destroy_snapshots(&self, dataset: &Dataset, snapshots: &[Snapshot], when: When) -> Result<()> {
        check_destroy(dataset, snapshots)?;
        self.change(Operation::DestroySnapshots, dataset.as_str(), dataset, &[], |state, act| {
            if !state.filesystems.contains_key(dataset) {
                return Err(act.not_found());
            }
            let there: Vec<(u64, Vec<Holder>)> = snapshots
                .iter()
                .filter_map(|name| state.locate(name))
                .map(|s| {
                    let clones = state.clones(s.id).into_iter().map(Holder::Clone);
                    (s.id, s.holds.iter().cloned().map(Holder::Hold).chain(clones).collect())
                })
                .collect();
            if there.is_empty() {
                return Err(act.refuse(Class::NotFound, "could not find any snapshots to destroy"));
            }
            let holders: Vec<Holder> = there.iter().flat_map(|(_, holders)| holders.clone()).collect();
            if when == When::Now && !holders.is_empty() {
                return Err(act.refuse(Class::Busy, "dataset is busy").with_holders(holders));
            }
            for (id, holders) in there {
                if holders.is_empty() {
                    state.remove_snapshot(dataset, id);
                } else if let Some(s) =
                    state.filesystems.get_mut(dataset).and_then(|f| f.snapshots.iter_mut().find(|s| s.id == id))
                {
                    s.defer_destroy = true;
                }
            }
            Ok(())
        })
    }

    fn bookmark(&self, snapshot: &Snapshot, bookmark: &Bookmark) -> Result<()> {
        check_bookmark(snapshot, bookmark)?;
        self.change(Operation::Bookmark, snapshot.as_str(), &snapshot.dataset(), &[], |state, act| {
            let s = state.locate(snapshot).ok_or_else(|| act.not_found())?;
            let mark = Mark { guid: s.guid, createtxg: s.createtxg, ivset: s.ivset };
            let f = state.filesystems.get_mut(&bookmark.dataset()).ok_or_else(|| act.not_found())?;
            if f.bookmarks.contains_key(bookmark.name()) {
                return Err(act.refuse(Class::Exists, "bookmark exists"));
            }
            f.bookmarks.insert(bookmark.name().to_owned(), mark);
            Ok(())
        })
    }

    fn destroy_bookmark(&self, bookmark: &Bookmark) -> Result<()> {
        self.change(Operation::DestroyBookmark, bookmark.as_str(), &bookmark.dataset(), &[], |state, act| {
            let f = state.filesystems.get_mut(&bookmark.dataset());
            f.and_then(|f| f.bookmarks.remove(bookmark.name())).map(drop).ok_or_else(|| act.not_found())
        })
    }

    fn hold(&self, snapshot: &Snapshot, tag: &HoldTag) -> Result<()> {
        self.change(Operation::Hold, snapshot.as_str(), &snapshot.dataset(), &[], |state, act| {
            let s = state.locate_mut(snapshot).ok_or_else(|| act.not_found())?;
            if s.holds.insert(tag.clone()) {
                Ok(())
            } else {
                Err(act.refuse(Class::Exists, "tag already exists on this dataset"))
            }
        })
    }

    fn release(&self, snapshot: &Snapshot, tag: &HoldTag) -> Result<()> {
        self.change(Operation::Release, snapshot.as_str(), &snapshot.dataset(), &[], |state, act| {
            let s = state.locate_mut(snapshot).ok_or_else(|| act.not_found())?;
            if s.holds.remove(tag) { Ok(()) } else { Err(act.refuse(Class::NotFound, "no such tag on this dataset")) }
        })
    }

    fn rollback(&self, snapshot: &Snapshot) -> Result<()> {
        let dataset = snapshot.dataset();
        self.change(Operation::Rollback, snapshot.as_str(), &dataset, &[], |state, act| {
            let s = state.locate(snapshot).ok_or_else(|| act.not_found())?;
            let (at, content) = (s.createtxg, s.content.clone());
            let f = state.filesystems.get_mut(&dataset).ok_or_else(|| act.not_found())?;
            let younger = f.snapshots.iter().filter(|s| s.createtxg > at).map(|s| format!("{dataset}@{}", s.name));
            let marks =
                f.bookmarks.iter().filter(|(_, m)| m.createtxg > at).map(|(name, _)| format!("{dataset}#{name}"));
            let holders: Vec<Holder> = younger.chain(marks).map(Holder::Younger).collect();
            if !holders.is_empty() {
                return Err(act.refuse(Class::Busy, "more recent snapshots or bookmarks exist").with_holders(holders));
            }
            f.content = content;
            Ok(())
        })
    }

    fn clone_snapshot(
        &self,
        snapshot: &Snapshot,
        dataset: &Dataset,
        properties: &[(PropertyName, String)],
    ) -> Result<()> {
        check_properties(Operation::Clone, dataset, properties)?;
        self.change(Operation::Clone, snapshot.as_str(), &snapshot.dataset(), properties, |state, act| {
            let s = state.locate(snapshot).ok_or_else(|| act.not_found())?;
            let (id, content) = (s.id, s.content.clone());
            if dataset.pool() != snapshot.dataset().pool() {
                return Err(act.refuse(Class::Invalid, "source and target pools differ"));
            }
            state.parent_of(act, dataset)?;
            let local = state.checked(act, properties)?;
            if state.filesystems.contains_key(dataset) {
                return Err(act.refuse(Class::Exists, "dataset already exists"));
            }
            let encryption = state.encryption(&snapshot.dataset()).cloned();
            let mut filesystem = state.filesystem();
            filesystem.origin = Some(id);
            filesystem.content = content;
            filesystem.local.extend(local);
            // A clone keeps the master key of its origin, and under another parent is a root of its own.
            if encryption.is_some() && state.encryption_root(dataset) != state.encryption_root(&snapshot.dataset()) {
                filesystem.encryption = encryption;
            }
            state.filesystems.insert(dataset.clone(), filesystem);
            Ok(())
        })
    }

    fn promote(&self, dataset: &Dataset) -> Result<()> {
        self.change(Operation::Promote, dataset.as_str(), dataset, &[], |state, act| {
            let f = state.filesystems.get(dataset).ok_or_else(|| act.not_found())?;
            let origin = f.origin.ok_or_else(|| act.refuse(Class::Invalid, "not a cloned filesystem"))?;
            let from = state.named(origin).ok_or_else(|| act.not_found())?;
            let old = from.dataset();
            let until = state.locate(&from).map_or(0, |s| s.createtxg);
            let own: Vec<String> = f.snapshots.iter().map(|s| s.name.clone()).collect();
            let moves = |s: &SnapshotState| s.createtxg <= until;
            let Some(old_filesystem) = state.filesystems.get_mut(&old) else { return Err(act.not_found()) };
            if old_filesystem.snapshots.iter().any(|s| moves(s) && own.contains(&s.name)) {
                return Err(act.refuse(Class::Exists, "conflicting snapshot"));
            }
            let (moved, stay): (Vec<_>, Vec<_>) =
                std::mem::take(&mut old_filesystem.snapshots).into_iter().partition(moves);
            old_filesystem.snapshots = stay;
            let origins_origin = old_filesystem.origin.replace(origin);
            if let Some(f) = state.filesystems.get_mut(dataset) {
                f.snapshots.splice(..0, moved);
                f.origin = origins_origin;
            }
            Ok(())
        })
    }

    fn mount(&self, dataset: &Dataset) -> Result<()> {
        self.change(Operation::Mount, dataset.as_str(), dataset, &[], |state, act| {
            let f = state.filesystems.get(dataset).ok_or_else(|| act.not_found())?;
            let effective = |name: &str| state.effective(dataset, name).map(|(value, _)| value).unwrap_or_default();
            match (effective("mountpoint").as_str(), effective("canmount").as_str()) {
                ("none" | "legacy", _) => return Err(act.refuse(Class::Invalid, "no mountpoint set")),
                (_, "off") => return Err(act.refuse(Class::Invalid, "'canmount' property is set to 'off'")),
                _ => {}
            }
            if f.mounted {
                return Err(act.refuse(Class::Already, "filesystem already mounted"));
            }
            if state.encryption(dataset).is_some_and(|e| !e.loaded) {
                return Err(act.refuse(Class::KeyNotLoaded, "encryption key not loaded"));
            }
            if let Some(f) = state.filesystems.get_mut(dataset) {
                f.mounted = true;
            }
            Ok(())
        })
    }

    fn unmount(&self, dataset: &Dataset) -> Result<()> {
        self.change(Operation::Unmount, dataset.as_str(), dataset, &[], |state, act| {
            let f = state.filesystems.get(dataset).ok_or_else(|| act.not_found())?;
            if !f.mounted {
                return Err(act.refuse(Class::Already, "not currently mounted"));
            }
            // What is mounted below goes along.
            let tree = state.tree(dataset);
            if tree.iter().any(|d| state.filesystems.get(d).is_some_and(|f| f.open_files > 0)) {
                return Err(act.refuse(Class::Busy, "pool or dataset is busy"));
            }
            // What is mounted in its folder and isn't below it by name keeps it busy.
            let at =
                |d: &Dataset| state.effective(d, "mountpoint").map(|(value, _)| value).filter(|at| at.starts_with('/'));
            let inside = |d: &Dataset, here: &str| {
                at(d).is_some_and(|there| there.strip_prefix(here).is_some_and(|rest| rest.starts_with('/')))
            };
            if at(dataset).is_some_and(|here| {
                state.filesystems.iter().any(|(d, f)| f.mounted && !tree.contains(d) && inside(d, &here))
            }) {
                return Err(act.refuse(Class::Busy, "pool or dataset is busy"));
            }
            for d in tree {
                if let Some(f) = state.filesystems.get_mut(&d) {
                    f.mounted = false;
                }
            }
            Ok(())
        })
    }

    fn load_key(&self, dataset: &Dataset, key: Option<&[u8]>) -> Result<()> {
        self.change(Operation::LoadKey, dataset.as_str(), dataset, &[], |state, act| {
            if !state.filesystems.contains_key(dataset) {
                return Err(act.not_found());
            }
            let located = state
                .filesystems
                .get(dataset)
                .and_then(|f| f.encryption.as_ref())
                .map(|e| state.keys.get(&e.location).cloned());
            if state.encryption(dataset).is_none() {
                return Err(act.refuse(Class::Invalid, "it is not encrypted"));
            }
            let Some(located) = located else {
                return Err(act.refuse(Class::Invalid, "Keys must be loaded for encryption root"));
            };
            let Some(encryption) = state.filesystems.get_mut(dataset).and_then(|f| f.encryption.as_mut()) else {
                return Err(act.not_found());
            };
            if encryption.loaded {
                return Err(act.refuse(Class::Already, "Key already loaded"));
            }
            let given = key.map(<[u8]>::to_vec).or(located);
            match given {
                None => Err(act.refuse(Class::NotFound, "Failed to open key material file")),
                Some(given) if given == encryption.key => {
                    encryption.loaded = true;
                    Ok(())
                }
                Some(_) => Err(act.refuse(Class::KeyWrong, "Incorrect key provided")),
            }
        })
    }

    fn unload_key(&self, dataset: &Dataset) -> Result<()> {
        self.change(Operation::UnloadKey, dataset.as_str(), dataset, &[], |state, act| {
            if !state.filesystems.contains_key(dataset) {
                return Err(act.not_found());
            }
            if state.encryption(dataset).is_none() {
                return Err(act.refuse(Class::Invalid, "it is not encrypted"));
            }
            let mounted = state.tree(dataset).iter().any(|d| state.filesystems.get(d).is_some_and(|f| f.mounted));
            let Some(encryption) = state.filesystems.get_mut(dataset).and_then(|f| f.encryption.as_mut()) else {
                return Err(act.refuse(Class::Invalid, "Keys must be unloaded for encryption root"));
            };
            if !encryption.loaded {
                return Err(act.refuse(Class::Already, "Key already unloaded"));
            }
            if mounted {
                return Err(act.refuse(Class::Busy, "it is busy"));
            }
            encryption.loaded = false;
            Ok(())
        })
    }

    fn send_size_bytes(&self, what: &Stream) -> Result<u64> {
        self.look(Operation::Send, "a stream", |state, _| state.send_size_bytes(what))
    }

    fn send(&self, what: &Stream, to: &mut dyn Write) -> Result<()> {
        // Written without the lock: the other end may be a receive of this same model.
        let bytes = self.look(Operation::Send, "a stream", |state, _| state.stream(what))?;
        stream::write(&bytes, to)
    }

    fn receive(&self, dataset: &Dataset, properties: &[(PropertyName, String)], from: &mut dyn Read) -> Result<()> {
        check_properties(Operation::Receive, dataset, properties)?;
        self.change(Operation::Receive, dataset.as_str(), dataset, properties, |state, act| {
            let properties = state.checked(act, properties)?;
            state.receive(dataset, &properties, from)
        })
    }

    fn resume_token(&self, dataset: &Dataset) -> Result<Option<ResumeToken>> {
        self.look(Operation::Get, dataset.as_str(), |state, act| {
            if !state.filesystems.contains_key(dataset) {
                return Err(act.not_found());
            }
            Ok(state.token(dataset))
        })
    }

    fn abort_receive(&self, dataset: &Dataset) -> Result<()> {
        self.change(Operation::AbortReceive, dataset.as_str(), dataset, &[], |state, act| {
            let f = state.filesystems.get_mut(dataset).ok_or_else(|| act.not_found())?;
            match f.partial.take() {
                None => Err(act.refuse(Class::NotFound, "it does not have any resumable receive state to abort")),
                Some(partial) => {
                    if partial.whole {
                        state.filesystems.remove(dataset);
                    }
                    Ok(())
                }
            }
        })
    }
}
