//! Who owns a node: exactly one process, by a lock that the kernel lets go of when that process ends, however it ends.
//!
//! Two files, never removed (removing a lock file lets two owners in):
//! - `NODE/lock`: held by the owner as long as the stores are open. Its text says who that is, for people and for error messages;
//!   only the lock itself decides.
//! - `NODE/starting.lock`: held by whoever is starting an owner, from before it looks until the socket answers, so that two that race
//!   get one. The owner itself never takes it.
//!
//! Both are `flock(2)` on the whole file, which Go's `syscall.Flock` takes as well.

use std::{
    fmt,
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use basalt_blockstore::{Error, ErrorKind, Result};

/// Name of the owner's lock file in a node's folder.
pub const OWNER_FILE: &str = "lock";
/// Name of the starter's lock file in a node's folder.
pub const STARTING_FILE: &str = "starting.lock";

/// How often a lock that names nobody is tried again before it is believed.
const GLANCES_MAX: u32 = 20;

/// What kind of process hosts a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// An agent that an operator runs: it stays.
    Agent,
    /// An agent that a plugin started: it hands over when asked, and goes when idle.
    AgentAutostarted,
    /// Kubo, through the C ABI: it hands over when Kubo ends.
    Kubo,
    /// A command, for as long as it takes; by its name ("basalt import").
    Command(&'static str),
}

impl Host {
    /// As shown by `status` and in error messages.
    pub fn name(self) -> &'static str {
        match self {
            Host::Agent => "agent",
            Host::AgentAutostarted => "agent (autostarted)",
            Host::Kubo => "kubo (ffi)",
            Host::Command(name) => name,
        }
    }

    /// Whether it lets go of the node when another owner asks.
    pub fn hands_over(self) -> bool {
        self == Host::AgentAutostarted
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The owner's lock; let go of when dropped.
#[derive(Debug)]
pub struct OwnerLock {
    file: File,
}

impl OwnerLock {
    /// Takes the lock of a node's folder, or says who has it: [`ErrorKind::Locked`] with the pid and what to do.
    pub fn take(node: &Path, host: Host) -> Result<OwnerLock> {
        let path = node.join(OWNER_FILE);
        let mut file = open(&path)?;
        let mut glances = 0;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // Somebody who only looks who the owner is holds a shared lock for a moment, and a new owner names itself a moment
                // after it has the lock.
                Err(TryLockError::WouldBlock) if glances < GLANCES_MAX && owner_named(&mut file).is_none() => {
                    glances += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => return Err(locked(node, &mut file)),
                Err(TryLockError::Error(err)) => return Err(Error::io(format!("lock {}", path.display()), err)),
            }
        }
        let started_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let text = format!("pid {}\nhost {host}\nstarted_unix_s {started_unix_s}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
        written.map_err(|err| Error::io(format!("write {}", path.display()), err))?;
        Ok(OwnerLock { file })
    }

    /// Lets go, leaving a file that names nobody.
    pub fn release(self) {
        // The lock decides, not the text: failing to clear it loses nothing.
        let _ = self.file.set_len(0);
    }

    /// The text about the owner of a node's folder; `None` where nobody has the lock. A moment later it may be otherwise.
    pub fn owner(node: &Path) -> Option<String> {
        let mut file = File::open(node.join(OWNER_FILE)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Some(describe(&mut file)),
            _ => None,
        }
    }
}

/// The starter's lock; let go of when dropped.
#[derive(Debug)]
pub struct StartingLock {
    _file: File,
}

impl StartingLock {
    /// Waits for the starter's lock of a node's folder, at most until `deadline`.
    pub fn take(node: &Path, deadline: Duration) -> Result<StartingLock> {
        let path = node.join(STARTING_FILE);
        let file = open(&path)?;
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(StartingLock { _file: file }),
                Err(TryLockError::WouldBlock) if begin.elapsed() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::new(
                        ErrorKind::Locked,
                        format!(
                            "another process has been starting an agent for {} for {} s: look at its log, or start one yourself",
                            node.display(),
                            deadline.as_secs()
                        ),
                    ));
                }
                Err(TryLockError::Error(err)) => return Err(Error::io(format!("lock {}", path.display()), err)),
            }
        }
    }
}

fn open(path: &PathBuf) -> Result<File> {
    // O_CLOEXEC is std's default: a child must not keep the lock.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path)
        .map_err(|err| Error::io(format!("open lock file {}", path.display()), err))
}

fn owner_named(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(1024).read_to_string(&mut text).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some(format!("pid {}, {}", field("pid ")?, field("host ")?))
}

fn describe(file: &mut File) -> String {
    owner_named(file).unwrap_or_else(|| "a process that has not said who it is".to_owned())
}

fn locked(node: &Path, file: &mut File) -> Error {
    let owner = describe(file);
    Error::new(
        ErrorKind::Locked,
        format!(
            "node {} is open in another process ({owner}): {}",
            node.display(),
            match owner.contains(", basalt ") {
                true => "it ends by itself when it is done; try again then, or stop it first",
                false => "use it through that process's socket, or stop it first",
            }
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_owner_is_refused_with_the_first_ones_pid() {
        let node = tempfile::tempdir().unwrap();
        let first = OwnerLock::take(node.path(), Host::Agent).unwrap();
        let err = OwnerLock::take(node.path(), Host::Kubo).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Locked);
        assert!(err.to_string().contains(&format!("pid {}, agent)", std::process::id())), "{err}");
        assert!(OwnerLock::owner(node.path()).unwrap().contains(&std::process::id().to_string()));
        first.release();
        assert_eq!(OwnerLock::owner(node.path()), None);
        OwnerLock::take(node.path(), Host::Kubo).unwrap();
    }

    #[test]
    fn a_command_that_owns_the_node_is_named() {
        let node = tempfile::tempdir().unwrap();
        let _import = OwnerLock::take(node.path(), Host::Command("basalt import")).unwrap();
        let err = OwnerLock::take(node.path(), Host::Agent).unwrap_err();
        let named = format!("(pid {}, basalt import): it ends by itself", std::process::id());
        assert!(err.to_string().contains(&named), "{err}");
    }

    #[test]
    fn starters_come_one_after_the_other() {
        let node = tempfile::tempdir().unwrap();
        let first = StartingLock::take(node.path(), Duration::ZERO).unwrap();
        let err = StartingLock::take(node.path(), Duration::ZERO).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Locked);
        // The owner that is being started is not in the starter's way.
        OwnerLock::take(node.path(), Host::AgentAutostarted).unwrap();
        drop(first);
        StartingLock::take(node.path(), Duration::ZERO).unwrap();
    }
}
