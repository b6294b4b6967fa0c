//! An engine with what a test needs beside it: files in mounted datasets, keys, users without permissions.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use basalt_zfs::{Class, Cli, CliOptions, Dataset, Entity, Error, Model, Zfs};

/// A user who may nothing, on all machines.
pub const NOBODY: &str = "nobody";

pub struct World {
    pub zfs: Arc<dyn Zfs>,
    root: Dataset,
    kind: Kind,
    made: AtomicU32,
}

enum Kind {
    Model(Arc<Model>),
    Real(Real),
}

struct Real {
    cli: CliOptions,
    text: bool,
    made_pool: Option<PathBuf>,
    files: tempfile::TempDir,
}

impl World {
    pub fn model() -> World {
        World::model_of(1)
    }

    pub fn model_of(seed: u64) -> World {
        let model = Arc::new(Model::new(seed));
        let pool = "tank".parse().unwrap();
        model.add_pool(&pool, 256 << 20);
        World { zfs: model.clone(), root: pool.root(), kind: Kind::Model(model), made: AtomicU32::new(0) }
    }

    pub fn real(pool: Option<&str>, zfs: Option<&str>, zpool: Option<&str>, text: bool) -> Result<World, String> {
        let defaults = CliOptions::default();
        let cli = CliOptions {
            zfs: zfs.map_or(defaults.zfs, PathBuf::from),
            zpool: zpool.map_or(defaults.zpool, PathBuf::from),
            // A guest without KVM beside a build is slow; nothing here is stuck.
            deadline: Duration::from_secs(300),
            text_only: text,
            user: Some("root".into()),
        };
        let engine = Cli::new(cli.clone()).map_err(|e| e.to_string())?;
        let files = tempfile::Builder::new().prefix("basalt-zfs-").tempdir_in("/tmp").map_err(|e| e.to_string())?;
        fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
        let mut made_pool = None;
        let pool = match pool {
            Some(pool) => pool.to_owned(),
            None => {
                let name = format!("basalt-test-{}", std::process::id());
                let disk = files.path().join("disk");
                File::create(&disk).and_then(|f| f.set_len(512 << 20)).map_err(|e| e.to_string())?;
                let mounted = files.path().join("mnt");
                let arguments = ["create", "-f", "-o", "ashift=12", "-O", "atime=off", "-m"];
                let out = Command::new(&cli.zpool)
                    .args(arguments)
                    .arg(&mounted)
                    .arg(&name)
                    .arg(&disk)
                    .output()
                    .map_err(|e| e.to_string())?;
                if !out.status.success() {
                    return Err(format!("zpool create: {}", String::from_utf8_lossy(&out.stderr)));
                }
                made_pool = Some(disk);
                // A guest without udev: what its rule does on a host. ZFS checks each call by itself.
                let _as_it_is = fs::set_permissions("/dev/zfs", fs::Permissions::from_mode(0o666));
                name
            }
        };
        let pool: basalt_zfs::Pool = pool.parse().map_err(|e: basalt_zfs::NameError| e.to_string())?;
        let root = pool.root().child("basalt-conformance").map_err(|e| e.to_string())?;
        engine.create(&root, &[]).map_err(|e| e.to_string())?;
        engine.mount(&root).map_err(|e| e.to_string())?;
        let kind = Kind::Real(Real { cli, text, made_pool, files });
        Ok(World { zfs: Arc::new(engine), root, kind, made: AtomicU32::new(0) })
    }

    pub fn name(&self) -> String {
        match &self.kind {
            Kind::Model(_) => "model".into(),
            Kind::Real(real) => {
                let (major, minor, patch) = self.zfs.version().map_or((0, 0, 0), |v| v.tools);
                format!("zfs {major}.{minor}.{patch}{}", if real.text { " as text" } else { "" })
            }
        }
    }

    /// An empty, mounted dataset of its own.
    pub fn fresh(&self) -> Dataset {
        let n = self.made.fetch_add(1, Ordering::Relaxed);
        let dataset = self.root.child(&format!("t{n}")).unwrap();
        self.zfs.create(&dataset, &[]).unwrap();
        self.zfs.mount(&dataset).unwrap();
        dataset
    }

    pub fn mountpoint(&self, dataset: &Dataset) -> PathBuf {
        let name = "mountpoint".parse().unwrap();
        PathBuf::from(&self.zfs.properties(&Entity::from(dataset), &[name]).unwrap().first().unwrap().value)
    }

    /// Writes a file of bytes that don't compress, and sees to it that it is on disk. Errors are those of the file system.
    pub fn write(&self, dataset: &Dataset, file: &str, bytes: u64) -> Result<(), Class> {
        match &self.kind {
            Kind::Model(model) => {
                model.write(dataset, file, bytes).map_err(|full| if full { Class::NoSpace } else { Class::ReadOnly })
            }
            Kind::Real(_) => {
                let mounted = self
                    .zfs
                    .properties(&Entity::from(dataset), &["mounted".parse().unwrap()])
                    .map_err(|e| e.class())?;
                if mounted.first().is_none_or(|m| m.value != "yes") {
                    return Err(Class::ReadOnly);
                }
                let path = self.mountpoint(dataset).join(file);
                let write = || {
                    let mut to = OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
                    let (mut left, mut state) =
                        (bytes, path.as_os_str().len() as u64 ^ bytes ^ u64::from(std::process::id()));
                    while left > 0 {
                        let piece: Vec<u8> = (0..left.min(1 << 20).div_ceil(8))
                            .flat_map(|_| {
                                state = state
                                    .wrapping_mul(6_364_136_223_846_793_005)
                                    .wrapping_add(1_442_695_040_888_963_407);
                                (state ^ (state >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
                            })
                            .take(left.min(1 << 20) as usize)
                            .collect();
                        to.write_all(&piece)?;
                        left -= piece.len() as u64;
                    }
                    to.sync_all()
                };
                write().map_err(|e: std::io::Error| match e.kind() {
                    std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::StorageFull => Class::NoSpace,
                    std::io::ErrorKind::ReadOnlyFilesystem => Class::ReadOnly,
                    _ => panic!("{}: {e}", path.display()),
                })
            }
        }
    }

    /// Files and sizes of a mounted dataset.
    pub fn files(&self, dataset: &Dataset) -> BTreeMap<String, u64> {
        match &self.kind {
            Kind::Model(model) => model.files(dataset),
            Kind::Real(_) => fs::read_dir(self.mountpoint(dataset))
                .unwrap()
                .map(|entry| entry.unwrap())
                .filter(|entry| entry.file_type().unwrap().is_file())
                .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
                .collect(),
        }
    }

    /// Does something while a file of the dataset is open.
    pub fn with_open_file(&self, dataset: &Dataset, what: impl FnOnce()) {
        match &self.kind {
            Kind::Model(model) => {
                model.set_open_files(dataset, 1);
                what();
                model.set_open_files(dataset, 0);
            }
            Kind::Real(_) => {
                let open = File::create(self.mountpoint(dataset).join("open")).unwrap();
                what();
                drop(open);
                fs::remove_file(self.mountpoint(dataset).join("open")).unwrap();
            }
        }
    }

    /// Puts a key where a `keylocation` finds it.
    pub fn key(&self, name: &str, key: &[u8]) -> String {
        match &self.kind {
            Kind::Model(model) => {
                let location = format!("file:///{name}");
                model.put_key(&location, key);
                location
            }
            Kind::Real(real) => {
                let path = real.files.path().join(name);
                fs::write(&path, key).unwrap();
                format!("file://{}", path.display())
            }
        }
    }

    /// The same ZFS for a user who has only these grants, set on `dataset`.
    pub fn as_nobody(&self, dataset: &Dataset, granted: &[&str], what: impl FnOnce(&dyn Zfs)) {
        match &self.kind {
            Kind::Model(model) => {
                let mut delegation = basalt_zfs::Delegation::default();
                delegation.grants.push(basalt_zfs::Grant {
                    on: dataset.clone(),
                    who: basalt_zfs::Who::User(NOBODY.into()),
                    place: basalt_zfs::Where::Both,
                    permissions: granted.iter().map(ToString::to_string).collect(),
                });
                model.act_as(Some((NOBODY, delegation)));
                what(&**model);
                model.act_as(None);
            }
            Kind::Real(real) => {
                if !granted.is_empty() {
                    let out = Command::new(&real.cli.zfs)
                        .args(["allow", "-u", NOBODY, &granted.join(","), dataset.as_str()])
                        .output()
                        .unwrap();
                    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                }
                let script = real.files.path().join("as-nobody");
                let words = format!(
                    "#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups {} \"$@\"\n",
                    real.cli.zfs.display()
                );
                fs::write(&script, words).unwrap();
                fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
                let cli = Cli::new(CliOptions { zfs: script, user: Some(NOBODY.into()), ..real.cli.clone() });
                what(&cli.unwrap());
            }
        }
    }

    /// Destroys all that the tests made. Only a test does it so: the engines don't know `-R`.
    pub fn clear(&self) {
        let Kind::Real(real) = &self.kind else { return };
        let run = |program: &PathBuf, arguments: &[&str]| {
            let out = Command::new(program).args(arguments).output();
            if !out.as_ref().is_ok_and(|o| o.status.success()) {
                eprintln!("conformance: {arguments:?}: {out:?}");
            }
        };
        if real.made_pool.is_some() {
            return run(&real.cli.zpool, &["destroy", "-f", self.root.pool().as_str()]);
        }
        for d in self.zfs.datasets(&self.root, basalt_zfs::Reach::Descendants).unwrap_or_default() {
            for s in self.zfs.snapshots(&d.name).unwrap_or_default() {
                for hold in self.zfs.holds(&s.name).unwrap_or_default() {
                    let _gone = self.zfs.release(&s.name, &hold.tag);
                }
            }
        }
        run(&real.cli.zfs, &["destroy", "-R", self.root.as_str()]);
    }
}

/// The class of an error, for comparing.
pub fn class<T>(result: Result<T, Error>) -> Result<T, Class> {
    result.map_err(|e| e.class())
}
