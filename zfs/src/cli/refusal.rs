//! From the words of `zfs` and `zpool` to a class. The words differ between releases and there is no other channel: exit statuses say nothing.
//! Those below are in `tests/golden`, as recorded, or in OpenZFS's `libzfs_util.c`; what isn't known stays [`Class::Unknown`] with its words.

use crate::{Class, Operation};

/// The first that is found decides, so the more particular comes first.
const WORDS: &[(&str, Class)] = &[
    ("must be run as root", Class::Permission),
    ("permission denied", Class::Permission),
    ("delegated administration is disabled", Class::Permission),
    ("insufficient privileges", Class::Permission),
    ("i/o is currently suspended", Class::Suspended),
    ("pool is unavailable", Class::Suspended),
    ("pool is read-only", Class::ReadOnly),
    ("dataset is read-only", Class::ReadOnly),
    ("read-only file system", Class::ReadOnly),
    // Keys. "available" and "unavailable" differ by release in capitals only.
    ("incorrect key provided", Class::KeyWrong),
    ("key too short", Class::KeyWrong),
    ("key too long", Class::KeyWrong),
    ("invalid hex", Class::KeyWrong),
    ("key already loaded", Class::Already),
    ("key already unloaded", Class::Already),
    ("is not encrypted", Class::Invalid),
    ("failed to open key material", Class::NotFound),
    ("key not loaded", Class::KeyNotLoaded),
    ("key is not loaded", Class::KeyNotLoaded),
    ("key must be loaded", Class::KeyNotLoaded),
    ("requires the key", Class::KeyNotLoaded),
    ("filesystem already mounted", Class::Already),
    ("not currently mounted", Class::Already),
    // Streams, before the words that they have in common with the rest.
    ("partially received snapshot is saved", Class::Incomplete),
    ("partially-complete state", Class::Busy),
    ("has been modified", Class::Diverged),
    ("does not match incremental source", Class::Diverged),
    ("ivset guid mismatch", Class::Diverged),
    ("iv set guid mismatch", Class::Diverged),
    ("incomplete stream", Class::BadStream),
    ("checksum mismatch", Class::BadStream),
    ("bad magic", Class::BadStream),
    ("invalid stream", Class::BadStream),
    ("failed to read from stream", Class::BadStream),
    ("invalid backup stream", Class::BadStream),
    ("resume token is corrupt", Class::BadStream),
    ("does not have any resumable receive state", Class::NotFound),
    ("no longer the same snapshot", Class::NotFound),
    ("no longer exists", Class::NotFound),
    ("conflicting snapshot", Class::Exists),
    ("legacy mountpoint", Class::Invalid),
    ("no mountpoint set", Class::Invalid),
    ("'canmount' property is set", Class::Invalid),
    ("for encryption root", Class::Invalid),
    ("snapshots must be part of same dataset", Class::Invalid),
    ("not an earlier snapshot", Class::Invalid),
    ("incremental source", Class::NotFound),
    ("must specify -f to overwrite", Class::Exists),
    // Space.
    ("size is greater than available space", Class::NoSpace),
    ("size is less than current used", Class::NoSpace),
    ("out of space", Class::NoSpace),
    ("quota exceeded", Class::NoSpace),
    ("no space left", Class::NoSpace),
    // What keeps something.
    ("it's being held", Class::Busy),
    ("has dependent clones", Class::Busy),
    ("has children", Class::Busy),
    ("more recent snapshots", Class::Busy),
    ("is busy", Class::Busy),
    // What there is, and what not.
    ("no such tag on this dataset", Class::NotFound),
    ("tag already exists", Class::Exists),
    ("already exists", Class::Exists),
    ("bookmark exists", Class::Exists),
    ("pool or dataset exists", Class::Exists),
    ("could not find any snapshots to destroy", Class::NotFound),
    ("parent does not exist", Class::NotFound),
    ("does not exist", Class::NotFound),
    ("no such pool", Class::NotFound),
    ("no datasets available", Class::NotFound),
    ("no pools available", Class::NotFound),
    // What can't be.
    ("unsupported version or feature", Class::Unsupported),
    ("must be upgraded", Class::Unsupported),
    ("operation not supported", Class::Unsupported),
    ("not supported by zfs kernel module", Class::Unsupported),
    ("unrecognized command", Class::Unsupported),
    ("invalid option", Class::Unsupported),
    ("modules cannot be auto-loaded", Class::NotInstalled),
    ("zfs modules are not loaded", Class::NotInstalled),
    ("not a cloned filesystem", Class::Invalid),
    ("invalid property", Class::Invalid),
    ("is readonly", Class::Invalid),
    ("property is read-only", Class::Invalid),
    ("must be one of", Class::Invalid),
    ("must be power of 2", Class::Invalid),
    ("does not apply to", Class::Invalid),
    ("doesn't apply to", Class::Invalid),
    ("cannot be inherited", Class::Invalid),
    ("pools differ", Class::Invalid),
    ("within same pool", Class::Invalid),
    ("crosses datasets or pools", Class::Invalid),
    ("not an ancestor", Class::Invalid),
    ("descendant of", Class::Invalid),
    ("recursive dataset dependency", Class::Invalid),
    ("multiple snapshots of same fs", Class::Invalid),
    ("name is too long", Class::Invalid),
    ("bad numeric value", Class::Invalid),
    ("is too large", Class::Invalid),
    ("invalid name", Class::Invalid),
    ("invalid character", Class::Invalid),
    ("invalid argument", Class::Invalid),
    ("operation not applicable", Class::Invalid),
    ("usage:", Class::Invalid),
    ("i/o error", Class::Io),
    ("insufficient replicas", Class::Io),
];

/// The class of what a command that failed has said.
pub(crate) fn classify(operation: Operation, stderr: &str) -> Class {
    let said = stderr.to_lowercase();
    let class = WORDS.iter().find(|(words, _)| said.contains(words)).map_or(Class::Unknown, |(_, class)| *class);
    match (operation, class) {
        // A destination that isn't there, for an incremental stream, is no destination that differs; a stream of another lineage is.
        (Operation::Receive, Class::NotFound) if said.contains("incremental source") => Class::Diverged,
        _ => class,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `== CLASS STATUS COMMAND`, then what it said.
    fn recorded(text: &str) -> Vec<(String, String, String)> {
        text.split("\n== ")
            .filter_map(|entry| {
                let (head, said) = entry.trim_start_matches("== ").split_once('\n')?;
                let mut words = head.splitn(3, ' ');
                Some((words.next()?.to_owned(), words.nth(1)?.to_owned(), said.to_owned()))
            })
            .collect()
    }

    #[test]
    fn every_recorded_refusal_of_every_release_has_its_class() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut releases = 0;
        for release in std::fs::read_dir(golden).unwrap() {
            let path = release.unwrap().path();
            let recorded = recorded(&std::fs::read_to_string(path.join("errors.txt")).unwrap());
            assert!(recorded.len() > 70, "{path:?} has only {}", recorded.len());
            for (class, command, said) in recorded {
                let operation = if command.contains(" receive ") { Operation::Receive } else { Operation::List };
                assert_eq!(format!("{:?}", classify(operation, &said)), class, "{path:?}: {command}: {said}");
            }
            releases += 1;
        }
        assert!(releases >= 2, "only {releases} releases are recorded");
    }

    #[test]
    fn words_that_no_machine_here_says_have_their_class() {
        // From libzfs_util.c and libzfs_sendrecv.c, all tags of 2.1 to 2.4.
        for (said, class) in [
            ("cannot scrub tank: pool I/O is currently suspended", Class::Suspended),
            ("cannot snapshot 'tank/a@x': out of space", Class::NoSpace),
            (
                "cannot receive incremental stream: most recent snapshot of tank/a does not match incremental source",
                Class::Diverged,
            ),
            (
                "cannot receive incremental stream: IV set guid mismatch. See the 'zfs receive' man page section",
                Class::Diverged,
            ),
            (
                "The ZFS modules cannot be auto-loaded.\nTry running 'modprobe zfs' as root to manually load them.",
                Class::NotInstalled,
            ),
            ("internal error: cannot import 'x': something new", Class::Unknown),
            ("", Class::Unknown),
        ] {
            assert_eq!(classify(Operation::Receive, said), class, "{said}");
        }
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(said in "\\PC{0,200}") {
            classify(Operation::Receive, &said);
        }
    }
}
