//! The one error type: what was tried, on what, of which class, why, and what to do about it.

use std::fmt;

use crate::{Dataset, HoldTag};

/// Result of a ZFS operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was tried. The names are those of the `zfs allow` permissions where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is what its name says; `Operation::name` has the words
pub enum Operation {
    Version,
    Pools,
    PoolStatus,
    Events,
    List,
    Get,
    Holds,
    Allow,
    Create,
    Destroy,
    Rename,
    Set,
    Inherit,
    Snapshot,
    RenameSnapshot,
    DestroySnapshots,
    Bookmark,
    DestroyBookmark,
    Hold,
    Release,
    Rollback,
    Clone,
    Promote,
    Mount,
    Unmount,
    LoadKey,
    UnloadKey,
    Send,
    Receive,
    AbortReceive,
    Queue,
}

impl Operation {
    /// The operation in words, to stand before its subject.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Version => "ask the version of",
            Operation::Pools => "list",
            Operation::PoolStatus => "ask the status of pool",
            Operation::Events => "follow the events of",
            Operation::List => "list",
            Operation::Get => "read properties of",
            Operation::Holds => "list the holds of",
            Operation::Allow => "list the permissions on",
            Operation::Create => "create",
            Operation::Destroy => "destroy",
            Operation::Rename => "rename",
            Operation::Set => "set properties of",
            Operation::Inherit => "inherit a property of",
            Operation::Snapshot => "snapshot",
            Operation::RenameSnapshot => "rename snapshot",
            Operation::DestroySnapshots => "destroy snapshots of",
            Operation::Bookmark => "bookmark",
            Operation::DestroyBookmark => "destroy bookmark",
            Operation::Hold => "hold",
            Operation::Release => "release",
            Operation::Rollback => "roll back to",
            Operation::Clone => "clone",
            Operation::Promote => "promote",
            Operation::Mount => "mount",
            Operation::Unmount => "unmount",
            Operation::LoadKey => "load the key of",
            Operation::UnloadKey => "unload the key of",
            Operation::Send => "send",
            Operation::Receive => "receive into",
            Operation::AbortReceive => "drop the partial receive of",
            Operation::Queue => "take a turn on pool",
        }
    }

    /// The `zfs allow` permissions that it needs on its dataset, besides those that a property needs (its own name). Empty where none helps:
    /// on Linux, what mounts needs root whatever is allowed.
    pub fn grants(self) -> &'static [&'static str] {
        match self {
            Operation::Create => &["create", "mount"],
            Operation::Destroy | Operation::DestroySnapshots | Operation::DestroyBookmark => &["destroy", "mount"],
            Operation::Rename | Operation::RenameSnapshot => &["rename", "create", "mount"],
            Operation::Snapshot => &["snapshot"],
            Operation::Bookmark => &["bookmark"],
            Operation::Hold => &["hold"],
            Operation::Release => &["release"],
            Operation::Rollback => &["rollback", "mount"],
            Operation::Clone => &["clone", "create", "mount"],
            Operation::Promote => &["promote", "mount"],
            Operation::LoadKey | Operation::UnloadKey => &["load-key"],
            Operation::Send => &["send"],
            Operation::Receive | Operation::AbortReceive => &["receive", "create", "mount"],
            _ => &[],
        }
    }

    /// Whether it changes anything, so that its outcome is unknown when it doesn't answer.
    pub fn changes(self) -> bool {
        !matches!(
            self,
            Operation::Version
                | Operation::Pools
                | Operation::PoolStatus
                | Operation::Events
                | Operation::List
                | Operation::Get
                | Operation::Holds
                | Operation::Allow
                | Operation::Send
                | Operation::Queue
        )
    }
}

/// What a caller would do about it. The same refusal has the same class on every engine and on every release of OpenZFS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// What the operation is about isn't there: a pool, dataset, snapshot, bookmark, hold, or the parent of what is to be made.
    NotFound,
    /// There is one of that name already.
    Exists,
    /// Something keeps it: a hold, a clone, a child, a younger snapshot, an open file. [`Error::holders`] says what was found.
    Busy,
    /// No space, or a quota or reservation in the way.
    NoSpace,
    /// Who asks may not. The remedy has the `zfs allow` that grants it.
    Permission,
    /// The pool stopped all I/O because its disks are gone.
    Suspended,
    /// The dataset is encrypted and its key isn't loaded.
    KeyNotLoaded,
    /// The key that was given isn't the dataset's.
    KeyWrong,
    /// The pool or dataset is read-only.
    ReadOnly,
    /// This release of ZFS or this pool can't do it.
    Unsupported,
    /// It didn't answer in time. The outcome is unknown; the pool is fenced until it answers.
    Stuck,
    /// Not tried: an earlier command on this pool still hasn't answered.
    Fenced,
    /// The arguments make no sense together or for this kind of dataset.
    Invalid,
    /// It is so already: mounted, not mounted, key loaded, key not loaded.
    Already,
    /// The target of a stream was changed, or lacks the base of the stream.
    Diverged,
    /// The bytes are no stream, or a damaged one.
    BadStream,
    /// The stream ended too soon; what came is kept and a resume token goes on from there.
    Incomplete,
    /// ZFS answered in a form that this version doesn't know.
    Parse,
    /// `zfs` or `zpool` can't be started.
    NotInstalled,
    /// A disk failed, or the caller's end of a stream did.
    Io,
    /// A refusal in words that no release known to this version uses.
    Unknown,
}

impl Class {
    /// Whether the same call may succeed later without anybody doing something first.
    pub fn retryable(self) -> bool {
        matches!(self, Class::Busy | Class::Stuck | Class::Fenced | Class::Incomplete)
    }
}

/// What keeps a dataset or snapshot from being changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A hold (`zfs holds`).
    Hold(HoldTag),
    /// A clone that has the snapshot as its origin.
    Clone(Dataset),
    /// A snapshot or dataset in it, by name.
    Child(String),
    /// A younger snapshot, which a rollback would destroy, by name.
    Younger(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Hold(tag) => write!(f, "hold {tag:?}"),
            Holder::Clone(dataset) => write!(f, "clone {dataset}"),
            Holder::Child(name) => write!(f, "{name} in it"),
            Holder::Younger(name) => write!(f, "younger {name}"),
        }
    }
}

/// A ZFS operation that failed.
#[derive(Clone, Debug)]
pub struct Error {
    operation: Operation,
    subject: String,
    class: Class,
    detail: String,
    holders: Vec<Holder>,
    user: Option<String>,
}

/// How many bytes of what a command said are kept.
const DETAIL_BYTES_MAX: usize = 2048;

impl Error {
    /// An error of `class`. `detail` is what ZFS said, or the reason in own words; control characters and what is over two KiB go.
    pub fn new(operation: Operation, subject: impl fmt::Display, class: Class, detail: impl AsRef<str>) -> Error {
        let mut detail: String = detail
            .as_ref()
            .trim()
            .chars()
            .map(|c| if c == '\n' || c == '\t' { ' ' } else { c })
            .filter(|c| !c.is_control())
            .collect();
        if detail.len() > DETAIL_BYTES_MAX {
            let mut end = DETAIL_BYTES_MAX;
            while !detail.is_char_boundary(end) {
                end -= 1;
            }
            detail.truncate(end);
            detail.push('…');
        }
        Error { operation, subject: subject.to_string(), class, detail, holders: Vec::new(), user: None }
    }

    /// With what keeps the subject.
    pub fn with_holders(mut self, mut holders: Vec<Holder>) -> Error {
        holders.sort();
        self.holders = holders;
        self
    }

    /// With the user who asks, for the remedy.
    pub fn with_user(mut self, user: impl Into<String>) -> Error {
        self.user = Some(user.into());
        self
    }

    /// What was tried.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// On what.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Of which kind.
    pub fn class(&self) -> Class {
        self.class
    }

    /// What ZFS said, on one line.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What keeps the subject, for [`Class::Busy`], in order; empty where it couldn't be found out (an open file).
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }

    /// Whether the change may have been made all the same.
    pub fn outcome_unknown(&self) -> bool {
        self.class == Class::Stuck && self.operation.changes()
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        let dataset = self.subject.split(['@', '#']).next().unwrap_or_default();
        let pool = dataset.split('/').next().unwrap_or_default();
        match self.class {
            Class::NotFound => "look with 'zfs list -t all'; a pool that is missing may only have to be imported ('zpool import')".into(),
            Class::Exists => "choose another name, or take what is there".into(),
            Class::Busy if self.holders.iter().any(|h| matches!(h, Holder::Hold(_))) => {
                format!("who set the hold must release it ('zfs holds {}' has its time)", self.subject)
            }
            Class::Busy if self.holders.iter().any(|h| matches!(h, Holder::Clone(_))) => {
                "destroy or promote the clone first, or let it be destroyed with the last clone (deferred)".into()
            }
            Class::Busy if !self.holders.is_empty() => "what is listed has to go first; it isn't destroyed along".into(),
            Class::Busy => format!("a process has it open or a stream is running; 'fuser -vm' on the mountpoint of {dataset} names processes"),
            Class::NoSpace => format!(
                "free space in the pool or raise the quota; 'zfs list -o space -r {pool}' shows who has it, snapshots included, and deletes need a little too"
            ),
            Class::Permission if self.detail.contains("must be run as root") => {
                "this user can't open /dev/zfs; it has to be readable and writable for all (ZFS checks every call itself), as udev's rule makes it".into()
            }
            Class::Permission => {
                let user = self.user.as_deref().unwrap_or("USER");
                match self.operation.grants() {
                    [] if matches!(self.operation, Operation::Mount | Operation::Unmount) => {
                        "on Linux only root mounts, whatever 'zfs allow' says: this is for the privileged helper".into()
                    }
                    [] => format!("grant the property by its name: zfs allow -u {user} PROPERTY {dataset}"),
                    grants => {
                        let mounts = if grants.contains(&"mount") { "; what has to be mounted or unmounted for it needs root besides" } else { "" };
                        format!("as root: zfs allow -u {user} {} {dataset}{mounts}", grants.join(","))
                    }
                }
            }
            Class::Suspended => format!("bring the disks back, then 'zpool clear {pool}'; 'zpool status {pool}' says which"),
            Class::KeyNotLoaded => format!("load the key: zfs load-key {dataset}"),
            Class::KeyWrong => format!("'zfs get keylocation,keyformat,encryptionroot {dataset}' says which key it wants"),
            Class::ReadOnly => "import the pool for writing, or set readonly=off if the dataset isn't a replica".into(),
            Class::Unsupported => "update OpenZFS, or look at 'zpool upgrade' for features that the pool doesn't have on".into(),
            Class::Stuck if self.operation.changes() => format!(
                "it may still happen. Nothing is killed and nothing more is tried on {pool} until it answers; look at 'zpool status {pool}' and the kernel's log"
            ),
            Class::Stuck | Class::Fenced => format!("look at 'zpool status {pool}' and the kernel's log; it goes on by itself once ZFS answers"),
            Class::Invalid => "correct the arguments; zfsprops(7) has what each property takes".into(),
            Class::Already => "nothing to do".into(),
            Class::Diverged => "don't force it: look at what was written ('zfs get written'), then roll back to the common snapshot or receive into a new dataset".into(),
            Class::BadStream => "send it again; if it is damaged again, look at the link and at the sender's pool".into(),
            Class::Incomplete => "go on with the resume token, or drop it with 'zfs receive -A'".into(),
            Class::Parse => "this is a fault of Basalt with this release of ZFS: please report it with the text above and 'zfs version'".into(),
            Class::NotInstalled => "install OpenZFS (Debian: zfsutils-linux) and load its module ('modprobe zfs')".into(),
            Class::Io => format!("look at 'zpool status -v {pool}'"),
            Class::Unknown => "see what ZFS said; please report the text with 'zfs version'".into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "can't {} {}: {}", self.operation.name(), self.subject, self.detail)?;
        if !self.holders.is_empty() {
            let names: Vec<String> = self.holders.iter().take(8).map(Holder::to_string).collect();
            let more = self.holders.len().saturating_sub(names.len());
            write!(f, " [{}{}]", names.join(", "), if more > 0 { format!(" and {more} more") } else { String::new() })?;
        }
        write!(f, ". {}", self.remedy())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_on_what_why_and_what_to_do() {
        let e = Error::new(Operation::DestroySnapshots, "tank/a@s1", Class::Busy, "cannot destroy: dataset is busy\n")
            .with_holders(vec![Holder::Hold("keep".parse().unwrap())]);
        assert_eq!(
            e.to_string(),
            "can't destroy snapshots of tank/a@s1: cannot destroy: dataset is busy [hold \"keep\"]. who set the hold must release it \
             ('zfs holds tank/a@s1' has its time)"
        );
    }

    #[test]
    fn a_missing_grant_is_named_with_the_command_that_gives_it() {
        let e =
            Error::new(Operation::Snapshot, "tank/a@s1", Class::Permission, "permission denied").with_user("basalt");
        assert_eq!(e.remedy(), "as root: zfs allow -u basalt snapshot tank/a");
    }

    #[test]
    fn what_a_command_says_can_t_break_the_line_or_the_memory() {
        let e = Error::new(Operation::List, "tank", Class::Unknown, "a\nb\x1b[31m\r".to_owned() + &"é".repeat(5000));
        assert!(!e.to_string().contains(['\n', '\x1b', '\r']));
        assert!(e.detail().len() <= DETAIL_BYTES_MAX + 4);
    }
}
