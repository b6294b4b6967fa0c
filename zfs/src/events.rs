//! What ZFS reports as it happens (`zpool events`): errors of disks, changed states, ended scrubs.
//!
//! The kernel keeps the last some hundred of them, limits how many errors a second it reports, and drops what nobody fetches in time. So an event says
//! where to look, and its absence says nothing: whoever must know all asks for the pool's status too.

use crate::{Health, Pool};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number; counts up from 1 when the module is loaded.
    pub id: u64,
    /// When, in nanoseconds since the Unix epoch, by the clock of the host.
    pub time_unix_ns: u64,
    /// In ZFS's words, such as `ereport.fs.zfs.checksum`.
    pub class: String,
    /// Of which pool; none for what is of the host.
    pub pool: Option<Pool>,
    /// The disk that it is about.
    pub vdev: Option<String>,
    /// The state that the disk has now.
    pub state: Option<Health>,
    /// The block that could not be read or was wrong.
    pub block: Option<BlockPlace>,
}

/// A block by the numbers that ZFS has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockPlace {
    /// Property `objsetid` of a dataset or snapshot.
    pub objset: u64,
    /// On a filesystem the number of the file's inode.
    pub object: u64,
    /// 0 for data, more for what points to it.
    pub level: u64,
    /// Counts blocks of that level from the beginning of the file.
    pub block: u64,
}

/// What an event is about, as far as one acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// One copy of a block was wrong. There may be another, from which it is mended.
    Checksum,
    /// No copy of a block is right.
    Data,
    /// A disk refused or did not find its data.
    Io,
    /// A disk took very long.
    Slow,
    /// A disk, or the pool, has another state.
    State,
    /// A scrub or resilver has ended.
    ScanFinished,
    /// Everything else.
    Other,
}

impl Event {
    /// What it is about.
    pub fn kind(&self) -> EventKind {
        let Some((family, what)) = self.class.split_once(".fs.zfs.") else { return EventKind::Other };
        match (family, what) {
            ("ereport", "checksum" | "dio_verify_rd") => EventKind::Checksum,
            ("ereport", "data" | "authentication") => EventKind::Data,
            ("ereport", "io" | "probe_failure") => EventKind::Io,
            ("ereport", "delay" | "deadman") => EventKind::Slow,
            ("ereport", _) | ("resource", "statechange" | "removed") => EventKind::State,
            ("sysevent", "scrub_finish" | "resilver_finish" | "scrub_abort" | "errorscrub_finish") => {
                EventKind::ScanFinished
            }
            (
                "sysevent",
                "pool_import" | "pool_export" | "pool_destroy" | "vdev_online" | "vdev_remove" | "vdev_attach"
                | "vdev_clear",
            ) => EventKind::State,
            _ => EventKind::Other,
        }
    }
}

/// A file that ZFS knows to have errors that it can't mend, as `zpool status -v` names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DamagedFile {
    /// In a mounted filesystem.
    Path(std::path::PathBuf),
    /// In a filesystem that isn't mounted, or in a snapshot: its name, and the path in it.
    Within(String, std::path::PathBuf),
    /// Without a name: the object of a dataset or snapshot, or of what once was one, as ZFS writes it.
    Object(String),
}

impl DamagedFile {
    /// From a line of `zpool status -v`.
    pub(crate) fn parse(text: &str) -> DamagedFile {
        if text.starts_with('/') {
            return DamagedFile::Path(text.into());
        }
        match text.split_once(":/") {
            Some((name, path)) if !name.starts_with('<') => DamagedFile::Within(name.to_owned(), path.into()),
            _ => DamagedFile::Object(text.to_owned()),
        }
    }
}

/// Puts the lines of `zpool events -H -v` together.
#[derive(Debug, Default)]
pub(crate) struct EventReader {
    lines: Vec<String>,
}

/// An event has fewer lines than this.
const LINES_MAX: usize = 4096;

impl EventReader {
    /// Takes a line; an event is whole with the empty line behind it. What has no class or number is no event, and is left out.
    pub(crate) fn line(&mut self, line: &str) -> Option<Event> {
        if !line.trim().is_empty() {
            if self.lines.len() < LINES_MAX {
                self.lines.push(line.to_owned());
            }
            return None;
        }
        let lines = std::mem::take(&mut self.lines);
        let read = Event::read(&lines);
        if read.is_none() && !lines.is_empty() {
            tracing::debug!(first = lines.first().map(String::as_str), "an event that can't be read");
        }
        read
    }
}

impl Event {
    fn read(lines: &[String]) -> Option<Event> {
        // Deeper ones are of what is nested in it. The last of a name counts: texts of users may have line breaks, and are before.
        let value = |name: &str| {
            lines.iter().rev().find_map(|line| {
                let (key, value) = line.strip_prefix("        ")?.split_once(" = ")?;
                (key == name).then(|| value.trim())
            })
        };
        let text = |name: &str| Some(value(name)?.strip_prefix('"')?.split_once('"')?.0);
        let number = |name: &str| hex(value(name)?.split(' ').next()?);
        let block = || {
            Some(BlockPlace {
                objset: number("zio_objset")?,
                object: number("zio_object")?,
                level: number("zio_level")?,
                block: number("zio_blkid")?,
            })
        };
        let time = value("time").and_then(|time| {
            let (seconds, nanoseconds) = time.split_once(' ')?;
            hex(seconds)?.checked_mul(1_000_000_000)?.checked_add(hex(nanoseconds.trim())?)
        });
        Some(Event {
            id: number("eid")?,
            time_unix_ns: time.unwrap_or(0),
            class: text("class")?.to_owned(),
            pool: text("pool").and_then(|name| name.parse().ok()),
            vdev: text("vdev_path").map(str::to_owned),
            state: text("vdev_state").and_then(Health::from_word),
            block: block(),
        })
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Vec<Event> {
        let mut reader = EventReader::default();
        include_str!("../tests/golden/2.3.9/events.txt").lines().filter_map(|line| reader.line(line)).collect()
    }

    #[test]
    fn a_wrong_block_is_named_by_its_numbers_and_its_disk() {
        let all = recorded();
        let data = all.iter().find(|event| event.kind() == EventKind::Data).unwrap();
        assert_eq!(data.block, Some(BlockPlace { objset: 0x50, object: 2, level: 0, block: 2 }));
        assert_eq!((data.pool.as_ref().unwrap().as_str(), data.vdev.as_deref()), ("one", None));
        let checksum = all.iter().find(|event| event.kind() == EventKind::Checksum).unwrap();
        assert_eq!((checksum.vdev.as_deref(), checksum.block), (Some("/tmp/one"), data.block));
        assert_eq!((checksum.id, checksum.time_unix_ns), (0x76, 0x6b02_1e32 * 1_000_000_000 + 0x0df8_659f));
    }

    #[test]
    fn states_and_ended_scrubs_are_told_from_what_only_is_noted() {
        let all = recorded();
        let state = all.iter().find(|event| event.class == "resource.fs.zfs.statechange").unwrap();
        assert_eq!(
            (state.kind(), state.state, state.vdev.as_deref()),
            (EventKind::State, Some(Health::Offline), Some("/tmp/m1"))
        );
        let finished = all.iter().filter(|event| event.kind() == EventKind::ScanFinished).count();
        assert_eq!(finished, 2, "a scrub and a resilver");
        assert!(
            all.iter().any(|event| event.class == "sysevent.fs.zfs.history_event" && event.kind() == EventKind::Other)
        );
        assert!(all.is_sorted_by_key(|event| event.id));
    }

    #[test]
    fn what_is_cut_off_or_no_event_is_left_out() {
        let mut reader = EventReader::default();
        for line in ["dropped 3 events", "", "x\tereport.fs.zfs.data", "        class = \"ereport.fs.zfs.data\"", ""] {
            assert_eq!(reader.line(line), None);
        }
        for line in
            ["        class = \"a\nb\"", "        pool = \"-no\"", "        zio_objset = 0xzz", "        eid = 0x7"]
        {
            assert_eq!(reader.line(line), None);
        }
        let event = reader.line("").unwrap();
        assert_eq!((event.id, event.pool, event.block), (7, None, None));
    }

    #[test]
    fn damaged_files_have_paths_names_or_numbers() {
        let parse = DamagedFile::parse;
        assert_eq!(parse("/srv/a: b"), DamagedFile::Path("/srv/a: b".into()));
        assert_eq!(parse("tank/a@s:/seg-1"), DamagedFile::Within("tank/a@s".into(), "seg-1".into()));
        for number in ["tank/a:<0x5>", "<0x3a>:<0x5>", "<metadata>:<0x1>"] {
            assert_eq!(parse(number), DamagedFile::Object(number.into()));
        }
    }
}
