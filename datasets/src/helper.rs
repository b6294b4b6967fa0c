//! What the privileged helper does for an agent that isn't root: mount, unmount, create and load a key, and nothing else, only for the datasets and folders
//! that root has written into [`POLICY_FILE`].
//!
//! The agent's user is not trusted: it may ask for anything, at any time, and owns what is on the datasets. So the helper takes no path from it (a
//! dataset is mounted where ZFS says, and only below the allowed folder), no option, and mounts nothing whose set-uid bits and devices count.

use std::{
    fmt, fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use basalt_zfs::{Class, Dataset, Entity, PropertyName, Zfs};
use serde::{Deserialize, Serialize};

use crate::{
    apply::{Hands, Root},
    plan::{APPLYING_PROPERTY, NODE_PROPERTY, ROLE_PROPERTY},
    property,
};

/// What the helper may do, written by root.
pub const POLICY_FILE: &str = "/etc/basalt/zfs-helper.toml";
/// Bytes of a request's properties.
const REQUEST_BYTES_MAX: u64 = 64 << 10;

/// The content of [`POLICY_FILE`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// One for each node.
    pub allow: Vec<Allowed>,
}

/// What is allowed for one node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// This dataset and what lies in it.
    pub dataset: String,
    /// Mounted at one of these folders or below.
    pub folders: Vec<PathBuf>,
    /// Who gets the root of a new dataset, as a user's name; none: root keeps it.
    #[serde(default)]
    pub owner: Option<String>,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Make a dataset, with these properties.
    Create(Vec<(PropertyName, String)>),
    /// Mount it where its mountpoint says.
    Mount,
    /// Unmount it, if nobody uses it: for a restore.
    Unmount,
    /// Load its key from where its keylocation says.
    LoadKey,
}

/// Why the helper did nothing: for whoever reads the agent's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(why.into()))
}

impl Policy {
    /// Reads the policy; only root may be able to change it.
    pub fn read(path: &Path) -> Result<Policy, Refused> {
        let wrong = |what: &dyn fmt::Display| Refused(format!("{}: {what}", path.display()));
        let file = fs::File::open(path).map_err(|e| wrong(&e))?;
        let meta = file.metadata().map_err(|e| wrong(&e))?;
        if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
            return Err(wrong(&"others than root can change it: chown root, chmod 644"));
        }
        let text = io::read_to_string(file).map_err(|e| wrong(&e))?;
        toml::from_str(&text).map_err(|e| wrong(&e))
    }

    fn of(&self, dataset: &Dataset) -> Result<&Allowed, Refused> {
        let covers = |allowed: &&Allowed| {
            allowed.dataset.parse::<Dataset>().is_ok_and(|root| root == *dataset || root.contains(dataset))
        };
        self.allow.iter().find(covers).ok_or_else(|| Refused(format!("{dataset} is in no [[allow]] of {POLICY_FILE}")))
    }
}

impl Allowed {
    fn folder(&self, at: &str) -> Result<PathBuf, Refused> {
        let path = PathBuf::from(at);
        let plain =
            path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !plain || !self.folders.iter().any(|folder| folder.components().count() > 1 && path.starts_with(folder)) {
            return refuse(format!("{at} lies in none of the folders that {POLICY_FILE} allows for {}", self.dataset));
        }
        // A link on the way, which its user may have made, would lead elsewhere.
        let mut way = PathBuf::new();
        for component in path.components() {
            way.push(component);
            if fs::symlink_metadata(&way).is_ok_and(|meta| meta.is_symlink()) {
                return refuse(format!("{} on the way to {at} is a link", way.display()));
            }
        }
        Ok(path)
    }
}

/// Does what was asked for, if the policy allows it.
pub fn serve(policy: &Policy, zfs: &dyn Zfs, verb: &Verb, dataset: &Dataset) -> Result<(), Refused> {
    let allowed = policy.of(dataset)?;
    let said = |e: basalt_zfs::Error| Refused(format!("[{:?}] {e}", e.class()));
    match verb {
        Verb::Create(properties) => {
            check_properties(allowed, properties)?;
            zfs.create(dataset, properties).map_err(said)
        }
        Verb::LoadKey => {
            let name = "keylocation".parse::<PropertyName>().map_err(|e| Refused(e.to_string()))?;
            let found = zfs.properties(&Entity::from(dataset), &[name]).map_err(said)?;
            // Not https: root would fetch what its user names. A prompt nobody would answer.
            if let Some(place) = found.first().filter(|place| !place.value.starts_with("file:///")) {
                return refuse(format!(
                    "the keylocation of {dataset} is {}, and only file:///... is read for others",
                    place.value
                ));
            }
            zfs.load_key(dataset, None).map_err(said)
        }
        Verb::Unmount => zfs.unmount(dataset).map_err(said),
        Verb::Mount => {
            let names = ["mountpoint", "mounted", "setuid", "devices"].map(|name| name.parse::<PropertyName>());
            let names: Vec<PropertyName> = names.into_iter().flatten().collect();
            let found = zfs.properties(&Entity::from(dataset), &names).map_err(said)?;
            let value = |name: &str| {
                found.iter().find(|p| p.name.as_str() == name).map(|p| p.value.as_str()).unwrap_or_default()
            };
            if value("mounted") == "yes" {
                return Ok(());
            }
            for name in ["setuid", "devices"] {
                if value(name) != "off" {
                    return refuse(format!(
                        "{dataset} has {name}={}: it is not mounted for others with that; set {name}=off",
                        value(name)
                    ));
                }
            }
            let at = allowed.folder(value("mountpoint"))?;
            Root(zfs).mount(dataset, &at).map_err(said)?;
            give(&at, allowed.owner.as_deref())
        }
    }
}

/// The root of what was mounted, to the agent's user, where nobody has it yet.
fn give(at: &Path, owner: Option<&str>) -> Result<(), Refused> {
    let Some(name) = owner else { return Ok(()) };
    let user = nix::unistd::User::from_name(name).ok().flatten();
    let Some(user) = user else {
        return refuse(format!("{POLICY_FILE} names the owner {name}, and there is no such user"));
    };
    let give = || -> io::Result<()> {
        let dir = fs::File::open(at)?;
        if dir.metadata()?.uid() == 0 && fs::read_dir(at)?.next().is_none() {
            nix::unistd::fchown(&dir, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    };
    give().map_err(|e| Refused(format!("give {} to {name}: {e}", at.display())))
}

fn check_properties(allowed: &Allowed, properties: &[(PropertyName, String)]) -> Result<(), Refused> {
    for (name, value) in properties {
        match name.as_str() {
            NODE_PROPERTY | ROLE_PROPERTY | APPLYING_PROPERTY => {}
            "canmount" if matches!(value.as_str(), "on" | "off" | "noauto") => {}
            "mountpoint" => drop(allowed.folder(value)?),
            "encryption" | "keyformat" => {}
            // Not https: root would fetch what its user names.
            "keylocation" if value.starts_with("file:///") => {}
            "setuid" | "devices" if value != "off" => return refuse(format!("{name}={value} is not set for others")),
            other => drop(property::declared(other, value).map_err(|why| Refused(format!("{name}={value}: {why}")))?),
        }
    }
    Ok(())
}

/// A property of a request, on its own line of the standard input.
#[derive(Serialize, Deserialize)]
struct Line(String, String);

/// Reads a command line and, for `create`, the standard input.
pub fn request(arguments: &[String], input: &mut dyn Read) -> Result<(Verb, Dataset), Refused> {
    let [verb, name] = arguments else {
        return refuse("usage: basalt-zfs-helper create|mount|unmount|load-key DATASET");
    };
    let dataset: Dataset = name.parse().map_err(|e| Refused(format!("{e}")))?;
    let verb = match verb.as_str() {
        "mount" => Verb::Mount,
        "unmount" => Verb::Unmount,
        "load-key" => Verb::LoadKey,
        "create" => {
            let mut text = String::new();
            input
                .take(REQUEST_BYTES_MAX)
                .read_to_string(&mut text)
                .map_err(|e| Refused(format!("the properties: {e}")))?;
            let lines = text.lines().map(|line| {
                let Line(name, value) =
                    serde_json::from_str(line).map_err(|e| Refused(format!("the properties: {e}")))?;
                Ok((name.parse().map_err(|e| Refused(format!("{e}")))?, value))
            });
            Verb::Create(lines.collect::<Result<_, _>>()?)
        }
        other => return refuse(format!("there is no verb {other:?}; there are create, mount, unmount, load-key")),
    };
    Ok((verb, dataset))
}

/// The properties of a `create`, as [`request`] reads them.
pub(crate) fn written(properties: &[(PropertyName, String)]) -> Result<String, serde_json::Error> {
    let lines = properties.iter().map(|(name, value)| serde_json::to_string(&Line(name.to_string(), value.clone())));
    Ok(lines.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// The class of an error that the helper printed.
pub(crate) fn class_of(said: &str) -> Class {
    let all = [
        Class::NotFound,
        Class::Exists,
        Class::Busy,
        Class::NoSpace,
        Class::Suspended,
        Class::KeyNotLoaded,
        Class::KeyWrong,
        Class::ReadOnly,
        Class::Unsupported,
        Class::Stuck,
        Class::Fenced,
        Class::Invalid,
        Class::Already,
        Class::Io,
        Class::NotInstalled,
    ];
    all.into_iter().find(|class| said.contains(&format!("[{class:?}]"))).unwrap_or(Class::Permission)
}

#[cfg(test)]
mod tests {
    use basalt_zfs::Model;

    use super::*;

    fn world() -> (tempfile::TempDir, Policy, Model) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap().join("node");
        fs::create_dir(&folder).unwrap();
        let allow = Allowed { dataset: "tank/basalt".into(), folders: vec![folder], owner: None };
        let model = Model::new(1);
        model.add_pool(&"tank".parse().unwrap(), 1 << 30);
        (dir, Policy { allow: vec![allow] }, model)
    }

    fn create(properties: &[(&str, &str)]) -> Verb {
        Verb::Create(properties.iter().map(|(name, value)| (name.parse().unwrap(), (*value).to_owned())).collect())
    }

    fn dataset(name: &str) -> Dataset {
        name.parse().unwrap()
    }

    #[test]
    fn only_what_root_has_allowed_is_done() {
        let (_dir, policy, model) = world();
        let at = policy.allow[0].folders[0].join("shard").display().to_string();
        let refused = |verb: &Verb, name: &str| serve(&policy, &model, verb, &dataset(name)).unwrap_err().0;
        assert!(refused(&create(&[]), "tank").contains("in no [[allow]]"));
        assert!(refused(&create(&[]), "tank/basalted").contains("in no [[allow]]"));
        for (name, value) in [
            ("mountpoint", "/etc"),
            ("mountpoint", &format!("{at}/../../..")),
            ("setuid", "on"),
            ("sharenfs", "on"),
            ("keylocation", "https://evil/key"),
        ] {
            assert!(!refused(&create(&[(name, value)]), "tank/basalt").is_empty(), "{name}={value}");
        }
        serve(&policy, &model, &create(&[("mountpoint", &at)]), &dataset("tank/basalt")).unwrap();
        assert!(refused(&Verb::Mount, "tank/basalt").contains("setuid=on"), "as it came with a stream");
        let set = |name: &str, value: &str| {
            model.set(&dataset("tank/basalt"), &[(name.parse().unwrap(), value.into())]).unwrap()
        };
        set("setuid", "off");
        set("devices", "off");
        set("mountpoint", "/usr/bin");
        assert!(refused(&Verb::Mount, "tank/basalt").contains("/usr/bin lies in none"));
        set("mountpoint", &at);
        fs::create_dir(&at).unwrap();
        fs::write(format!("{at}/thesis.tex"), "").unwrap();
        assert!(refused(&Verb::Mount, "tank/basalt").contains("thesis.tex"));
        fs::remove_file(format!("{at}/thesis.tex")).unwrap();
        serve(&policy, &model, &Verb::Mount, &dataset("tank/basalt")).unwrap();
        serve(&policy, &model, &Verb::Mount, &dataset("tank/basalt")).unwrap();
        model.create(&dataset("tank/other"), &[("mountpoint".parse().unwrap(), "/srv/other".into())]).unwrap();
        model.mount(&dataset("tank/other")).unwrap();
        assert!(refused(&Verb::Unmount, "tank/other").contains("in no [[allow]]"));
        serve(&policy, &model, &Verb::Unmount, &dataset("tank/basalt")).unwrap();
        assert!(refused(&Verb::Unmount, "tank/basalt").contains("[Already]"));
        unseal(Path::new(&at));
    }

    /// So that the folder of the test can be removed.
    fn unseal(folder: &Path) {
        use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
        let handle = fs::File::open(folder).unwrap();
        if let Ok(flags) = ioctl_getflags(&handle) {
            let _not_sealed = ioctl_setflags(&handle, flags - IFlags::IMMUTABLE);
        }
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let (dir, policy, _) = world();
        let node = &policy.allow[0].folders[0];
        std::os::unix::fs::symlink(dir.path(), node.join("link")).unwrap();
        let at = node.join("link/shard").display().to_string();
        assert!(policy.allow[0].folder(&at).unwrap_err().0.contains("is a link"));
    }

    #[test]
    fn a_policy_that_others_can_change_is_none() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        fs::write(&path, "[[allow]]\ndataset = 'tank/basalt'\nfolders = ['/srv/basalt']\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(Policy::read(&path).unwrap_err().0.contains("others than root"));
        if nix::unistd::geteuid().is_root() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            assert_eq!(Policy::read(&path).unwrap().allow[0].owner, None);
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_written_and_nothing_else_is_one() {
        let Verb::Create(properties) = create(&[("recordsize", "256K"), ("basalt:role", "line\u{201d} \"x\"")]) else {
            panic!()
        };
        let text = written(&properties).unwrap();
        let read = request(&["create".into(), "tank/basalt".into()], &mut text.as_bytes()).unwrap();
        assert_eq!(read, (Verb::Create(properties), dataset("tank/basalt")));
        let bad = |arguments: &[&str]| {
            request(&arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(), &mut io::empty()).is_err()
        };
        assert!(
            bad(&[])
                && bad(&["mount"])
                && bad(&["destroy", "tank/basalt"])
                && bad(&["mount", "-a"])
                && bad(&["mount", "tank", "/etc"])
        );
    }
}
