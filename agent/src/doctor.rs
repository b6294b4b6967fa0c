//! `basalt doctor`: looks at what a node stands on, before it hurts. Changes nothing; each finding comes with its remedy.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use basalt_blockstore::Durability;
use basalt_node::{
    layout::NodeFile,
    lock::OwnerLock,
    sockets::{PATH_BYTES_MAX, Paths},
};
use nix::{
    sys::{
        resource::{Resource, getrlimit},
        statfs::{self, FsType, statfs},
        statvfs::statvfs,
    },
    unistd::{AccessFlags, access},
};
use serde_json::json;

use crate::{
    access,
    cli::{ConfigSource, Doctor},
    config::Loaded,
    dataset,
    exit::{Exit, Failure, Outcome},
    progress::bytes,
    say::say,
};

/// Descriptors that an agent needs besides its segment files: connections, indexes, logs.
const FILES_BESIDES: u64 = 2048;
/// A file system with fewer free inodes can't take many more segments and index files.
const INODES_MIN: u64 = 10_000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Good,
    Warning,
    Problem,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Good => "ok",
            Severity::Warning => "warning",
            Severity::Problem => "problem",
        }
    }
}

/// What one check found.
#[derive(Debug)]
struct Finding {
    check: &'static str,
    severity: Severity,
    message: String,
    remedy: String,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn good(&mut self, check: &'static str, message: impl Into<String>) {
        self.0.push(Finding { check, severity: Severity::Good, message: message.into(), remedy: String::new() });
    }

    fn warning(&mut self, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { check, severity: Severity::Warning, message: message.into(), remedy: remedy.into() });
    }

    fn problem(&mut self, check: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { check, severity: Severity::Problem, message: message.into(), remedy: remedy.into() });
    }
}

/// Runs every check; a problem is exit code 1.
pub async fn doctor(node: &Path, options: &Doctor) -> Outcome {
    let mut findings = Findings::default();
    let source = ConfigSource { config: options.config.clone(), set: Vec::new(), log_level: None, http_listen: None };
    let loaded = match Loaded::load(node, &source) {
        Ok(loaded) => {
            findings.good("config", format!("{} is right", loaded.path.display()));
            Some(loaded)
        }
        Err(failure) => {
            findings.problem(
                "config",
                failure.message,
                "mend the lines that are named; `basalt config check` looks again",
            );
            None
        }
    };
    clock(&mut findings);
    match NodeFile::read(node) {
        Ok(file) => {
            findings.good("node", format!("{} with {} shards", file.node_id, file.shards.len()));
            let mut folders = vec![node.to_path_buf()];
            folders.extend(file.shards.iter().map(|shard| node.join(&shard.path)));
            ground(&mut findings, &folders, loaded.as_ref());
            files(&mut findings, file.shards.len() as u64, loaded.as_ref());
            memory(&mut findings, file.shards.len() as u64, loaded.as_ref());
            let sockets = loaded.as_ref().map(|loaded| loaded.node.sockets.clone()).unwrap_or_default();
            owner(&mut findings, node, loaded.as_ref(), &Paths::to_connect(node, &file.node_id, &sockets)).await;
            created(&mut findings, file.created_unix_ms);
            datasets(&mut findings, node, &file, loaded.as_ref()).await;
        }
        Err(err) => findings.problem("node", err.to_string(), "name another --node, or make one with `basalt init`"),
    }
    limits(&mut findings);

    let problems = findings.0.iter().filter(|finding| finding.severity == Severity::Problem).count();
    if options.json {
        let list: Vec<_> = findings
            .0
            .iter()
            .map(|finding| {
                json!({ "check": finding.check, "severity": finding.severity.name(), "message": finding.message, "remedy": finding.remedy })
            })
            .collect();
        say!("{}", json!({ "problems": problems, "findings": list }));
    } else {
        for finding in &findings.0 {
            say!("{:<8} {:<10} {}", finding.severity.name(), finding.check, finding.message);
            if !finding.remedy.is_empty() {
                say!("{:19} {}", "", finding.remedy);
            }
        }
    }
    match problems {
        0 => Ok(()),
        1 => Err(Failure { exit: Exit::Failure, message: "1 problem".into() }),
        n => Err(Failure { exit: Exit::Failure, message: format!("{n} problems") }),
    }
}

/// The file systems under the node: whether they keep what is flushed, are writable and have room.
fn ground(findings: &mut Findings, folders: &[PathBuf], loaded: Option<&Loaded>) {
    let mut seen = Vec::new();
    for folder in folders {
        let device = match fs::metadata(folder) {
            Ok(meta) if meta.is_dir() => meta.dev(),
            Ok(_) => {
                findings.problem(
                    "folder",
                    format!("{} is not a folder", folder.display()),
                    "restore it, or mount what belongs there",
                );
                continue;
            }
            Err(err) => {
                findings.problem(
                    "folder",
                    format!("{}: {err}", folder.display()),
                    "mount what belongs there, or restore it",
                );
                continue;
            }
        };
        if let Err(err) = access(folder, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK) {
            findings.problem(
                "folder",
                format!("{} can't be read and written: {err}", folder.display()),
                format!("give it to the user that runs the agent: chown -R USER {}", folder.display()),
            );
        }
        if !seen.contains(&device) {
            seen.push(device);
            file_system(findings, folder);
            room(findings, folder, loaded);
        }
    }
}

fn file_system(findings: &mut Findings, folder: &Path) {
    let kind = match statfs(folder) {
        Ok(stat) => stat.filesystem_type(),
        Err(err) => {
            findings.problem(
                "filesystem",
                format!("{}: {err}", folder.display()),
                "look at `dmesg`: the disk may be failing",
            );
            return;
        }
    };
    let at = folder.display();
    match kind {
        statfs::TMPFS_MAGIC => findings.warning(
            "filesystem",
            format!("{at} is on tmpfs: a reboot takes everything, and it fills memory"),
            "right for a test; else move the node to a disk",
        ),
        statfs::OVERLAYFS_SUPER_MAGIC => findings.warning(
            "filesystem",
            format!("{at} is on overlayfs: it may go with its container"),
            "mount a volume for the node",
        ),
        statfs::NFS_SUPER_MAGIC | statfs::FUSE_SUPER_MAGIC => findings.warning(
            "filesystem",
            format!(
                "{at} is on a network or user space file system: whether a flush reaches a disk depends on its server"
            ),
            "use a local disk, or be sure of that server",
        ),
        FsType(0x2fc1_2fc1) => findings.good("filesystem", format!("{at} is on ZFS")),
        FsType(magic) => findings.good("filesystem", format!("{at} is on a local file system (type 0x{magic:x})")),
    }
}

fn room(findings: &mut Findings, folder: &Path, loaded: Option<&Loaded>) {
    let Ok(stat) = statvfs(folder) else { return };
    let free = stat.blocks_available() * stat.fragment_size();
    let at = folder.display();
    if let Some(loaded) = loaded {
        let store = &loaded.node.datastore.store;
        let remedy =
            "free some, or move the node to a larger disk; `basalt reclaim` gives back what deleted blocks hold";
        if free < store.reserve_bytes {
            findings.problem(
                "space",
                format!("{at} has {} free: puts are refused below {}", bytes(free), bytes(store.reserve_bytes)),
                remedy,
            );
        } else if free < store.reserve_bytes + 4 * store.segment_bytes {
            findings.warning("space", format!("{at} has only {} free", bytes(free)), remedy);
        } else {
            findings.good("space", format!("{at} has {} free", bytes(free)));
        }
    }
    // 0 of 0: a file system that makes inodes as it needs them.
    if stat.files() > 0 && stat.files_available() < INODES_MIN {
        findings.warning(
            "space",
            format!("{at} has only {} inodes free", stat.files_available()),
            "remove small files there",
        );
    }
}

/// Whether as many files can be open as the config allows; the agent raises its soft limit to the hard one.
fn files(findings: &mut Findings, shards: u64, loaded: Option<&Loaded>) {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let Some(loaded) = loaded else { return };
    let wanted = FILES_BESIDES + (shards + 1) * loaded.node.datastore.store.open_files_max as u64;
    if hard < wanted {
        findings.warning(
            "files",
            format!("a process may open {hard} files, the config may need {wanted}"),
            format!("set LimitNOFILE={wanted} in the agent's unit, `ulimit -n {wanted}`, or a smaller [limits] open_files_max"),
        );
    } else {
        findings.good("files", format!("{hard} files may be open, {wanted} may be needed"));
    }
}

/// Whether the indexes fit into memory.
fn memory(findings: &mut Findings, shards: u64, loaded: Option<&Loaded>) {
    let Some(loaded) = loaded else { return };
    let wanted = (shards + 1) * loaded.node.datastore.store.index_memory_bytes as u64;
    let Some(total) = memory_bytes() else { return };
    if wanted > total / 2 {
        findings.warning(
            "memory",
            format!("the indexes may use {} of {}", bytes(wanted), bytes(total)),
            "set a smaller [limits] index_memory_bytes",
        );
    } else {
        findings.good("memory", format!("the indexes may use {} of {}", bytes(wanted), bytes(total)));
    }
}

/// Memory of the machine, or of the control group that this process is confined to.
fn memory_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().trim_end_matches(" kB").parse().ok()?;
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(group.unwrap_or(u64::MAX).min(kib << 10))
}

/// Limits that would end the agent by a signal or make its writes fail.
fn limits(findings: &mut Findings) {
    for (resource, name, least, what) in [
        (Resource::RLIMIT_FSIZE, "file size (ulimit -f)", 1 << 40, "a segment or index file can't grow"),
        (Resource::RLIMIT_AS, "address space (ulimit -v)", 16 << 30, "the index can't map its files"),
    ] {
        let Ok((soft, _)) = getrlimit(resource) else { continue };
        if soft < least {
            findings.problem(
                "limits",
                format!("{name} is {}: {what}", bytes(soft)),
                "take that limit away for the agent's user or unit",
            );
        } else {
            findings.good("limits", format!("{name} is wide enough"));
        }
    }
}

fn clock(findings: &mut Findings) {
    // Releases of this program are newer than this moment; a clock before it expires nothing and confuses logs. 2026-01-01.
    const NOT_BEFORE_UNIX_S: u64 = 1_767_225_600;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    if now < NOT_BEFORE_UNIX_S {
        findings.problem(
            "clock",
            "the clock stands before 2026: keys with a time to live don't expire",
            "set the clock; run NTP",
        );
    } else {
        findings.good("clock", "the clock is plausible");
    }
}

fn created(findings: &mut Findings, created_unix_ms: u64) {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    if now_ms + 60_000 < created_unix_ms {
        findings.problem("clock", "the clock stands before the time when this node was made", "set the clock; run NTP");
    }
}

/// The ZFS datasets of the node: what may not be done on them, and what on them hurts.
async fn datasets(findings: &mut Findings, node: &Path, file: &NodeFile, loaded: Option<&Loaded>) {
    let folders: Vec<PathBuf> = file
        .shards
        .iter()
        .map(|shard| node.join(&shard.path))
        .chain([node.join("keyspace"), node.to_path_buf()])
        .collect();
    let (node, id) = (node.to_path_buf(), file.node_id.clone());
    // It runs commands, which may have to wait for a disk.
    let looked = tokio::task::spawn_blocking(move || dataset::examine(&node, id.as_str(), &folders)).await;
    let examined = match looked {
        Ok(Ok(Some(examined))) => examined,
        Ok(Ok(None)) => return,
        Ok(Err(failure)) => {
            findings.warning("datasets", failure.message, "`zfs list` should answer, for this user too");
            return;
        }
        Err(err) => {
            findings.problem("datasets", format!("looking at them panicked: {err}"), "please report it");
            return;
        }
    };
    let promises = loaded.is_some_and(|loaded| loaded.node.datastore.durability != Durability::Relaxed);
    for name in &examined.unsynced {
        let what = format!("{name} has sync=disabled: what was flushed is lost at a power cut");
        let remedy = format!("zfs set sync=standard {name}");
        match promises {
            true => findings.problem("sync", format!("{what}; the node does not open with its durability"), remedy),
            false => findings.warning("sync", what, remedy),
        }
    }
    for name in &examined.deduplicated {
        findings.warning(
            "dedup",
            format!("{name} has dedup on: a table in memory and random reads for each write, and Basalt stores a block once already"),
            format!("zfs set dedup=off {name}; what is in the table stays there until it is rewritten"),
        );
    }
    for (name, user, missing) in &examined.missing {
        findings.warning(
            "grants",
            format!("{user} may not do all that an agent does on {name}: {} are missing", missing.join(", ")),
            format!("as root: {}", basalt_zfs::grant_command(name, user, missing)),
        );
    }
    for (what, remedy) in &examined.differences {
        findings.warning("datasets", what, remedy);
    }
    if examined.differences.is_empty()
        && examined.missing.is_empty()
        && examined.deduplicated.is_empty()
        && examined.unsynced.is_empty()
    {
        findings.good("datasets", format!("{} on ZFS, nothing stands out", examined.count));
    }
}

/// Who has the node, and whether its sockets answer.
async fn owner(findings: &mut Findings, node: &Path, loaded: Option<&Loaded>, paths: &Paths) {
    for path in [&paths.data, &paths.admin] {
        if path.as_os_str().len() > PATH_BYTES_MAX {
            findings.problem(
                "sockets",
                format!("{} is longer than a socket's path may be ({PATH_BYTES_MAX} bytes)", path.display()),
                "set XDG_RUNTIME_DIR, or [sockets] data_path and admin_path",
            );
        }
    }
    let Some(owner) = OwnerLock::owner(node) else {
        findings.good("owner", "nobody has the node open");
        return;
    };
    match access::answers(node, loaded.map(|loaded| &loaded.node)).await {
        Ok(_) => findings.good("owner", format!("open in {owner}; its admin socket answers")),
        Err(why) => findings.problem(
            "owner",
            format!("open in {owner}, but the admin socket does not answer: {why}"),
            "it may be starting, or recovering: look at its log; or it may not let this user in: see [sockets] admin_allow_uids",
        ),
    }
    for path in [&paths.data, &paths.admin] {
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => findings.problem(
                "sockets",
                format!("{} is not a socket", path.display()),
                "remove it and restart the owner",
            ),
            Ok(meta) => {
                findings.good("sockets", format!("{} has mode {:o}", path.display(), meta.permissions().mode() & 0o777))
            }
            Err(err) => {
                findings.problem(
                    "sockets",
                    format!("{}: {err}", path.display()),
                    "somebody removed it: restart the owner",
                );
            }
        }
    }
}
