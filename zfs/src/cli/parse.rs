//! Reads what `zfs` and `zpool` print: tab-separated rows (`-Hp`) of every release, JSON (`-j -p`) since 2.3.
//!
//! JSON without `--json-int`: that one prints numbers as signed 64 bits and cuts the upper half of all guids off at 2^63 - 1
//! (`tests/golden/2.3.9/list-snapshots-json-int.json`), so that unlike snapshots look alike.
//!
//! Nothing here trusts what it reads: names of users, tags and values of properties are anybody's. What can't be read is an error that shows
//! the line, never a row left out, except for datasets that ZFS keeps for itself (`%recv`), which no name of ours can mean.

use serde_json::Value;

use crate::{
    Bookmark, BookmarkEntry, DamagedFile, Dataset, DatasetEntry, Entity, Health, Hold, HoldTag, Kind, Listed, Pool,
    PoolEntry, PoolStatus, Property, PropertyName, Role, RowsOf, Snapshot, SnapshotEntry, SnapshotUse, Source, Vdev,
    Version,
};

/// What couldn't be read, in words.
pub(crate) type Parsed<T> = Result<T, String>;

const SHOWN_CHARS: usize = 120;

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

fn utf8(bytes: &[u8]) -> Parsed<&str> {
    std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8 at byte {}", e.valid_up_to()))
}

fn number<T: std::str::FromStr>(what: &str, text: &str) -> Parsed<T> {
    text.parse().map_err(|_| format!("{what} is no number: {}", shown(text)))
}

fn named<T>(text: &str) -> Parsed<T>
where
    T: std::str::FromStr<Err = crate::NameError>,
{
    text.parse().map_err(|e: crate::NameError| e.to_string())
}

/// A value that ZFS leaves open: `-`, or `none`.
fn absent(text: &str) -> bool {
    matches!(text, "-" | "" | "none")
}

/// Rows of named columns, whatever they came from.
pub(crate) struct Rows {
    rows: Vec<Vec<String>>,
    columns: &'static [&'static str],
}

impl Rows {
    /// Tab-separated lines. No column of ours can hold a tab.
    pub(crate) fn from_text(bytes: &[u8], columns: &'static [&'static str]) -> Parsed<Rows> {
        let mut rows = Vec::new();
        for line in utf8(bytes)?.lines() {
            let row: Vec<String> = line.split('\t').map(str::to_owned).collect();
            if row.len() != columns.len() {
                return Err(format!("{} columns instead of {}: {}", row.len(), columns.len(), shown(line)));
            }
            rows.push(row);
        }
        Ok(Rows { rows, columns })
    }

    /// The objects under `key` of a listing in JSON; `name` is the object's, the other columns are properties.
    pub(crate) fn from_json(bytes: &[u8], key: &str, columns: &'static [&'static str]) -> Parsed<Rows> {
        let mut rows = Vec::new();
        for (name, entity) in objects(bytes, key)? {
            let mut row = Vec::with_capacity(columns.len());
            for column in columns {
                row.push(match *column {
                    "name" => name.clone(),
                    column => entity
                        .get("properties")
                        .and_then(|p| p.get(column)?.get("value")?.as_str())
                        .ok_or_else(|| format!("no {column} of {}", shown(&name)))?
                        .to_owned(),
                });
            }
            rows.push(row);
        }
        Ok(Rows { rows, columns })
    }

    /// Those that ZFS doesn't keep for itself.
    fn each<T>(self, make: impl Fn(&dyn Fn(&str) -> String) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut made = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let column = |name: &str| {
                self.columns.iter().position(|c| *c == name).and_then(|i| row.get(i)).cloned().unwrap_or_default()
            };
            if !column("name").contains('%') {
                made.push(make(&column)?);
            }
        }
        Ok(made)
    }
}

fn objects(bytes: &[u8], key: &str) -> Parsed<Vec<(String, Value)>> {
    // Nothing at all is what some releases print for no rows.
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let mut listing: Value = serde_json::from_slice(bytes).map_err(|e| format!("no JSON: {e}"))?;
    let version = listing.get("output_version").and_then(|v| v.get("vers_major")).and_then(Value::as_u64);
    if version != Some(0) {
        return Err(format!("output version {version:?}, this one knows 0"));
    }
    match listing.get_mut(key).map(Value::take) {
        Some(Value::Object(objects)) => Ok(objects.into_iter().collect()),
        _ => Err(format!("no {key} in it")),
    }
}

pub(crate) const DATASET_COLUMNS: &[&str] = &["name", "type", "guid", "createtxg", "origin"];
pub(crate) const SNAPSHOT_COLUMNS: &[&str] = &["name", "guid", "createtxg"];
pub(crate) const SNAPSHOT_USE_COLUMNS: &[&str] =
    &["name", "guid", "createtxg", "creation", "used", "referenced", "userrefs", "defer_destroy", "clones"];
pub(crate) const POOL_COLUMNS: &[&str] =
    &["name", "guid", "health", "size", "allocated", "free", "freeing", "fragmentation", "readonly"];

/// By name.
pub(crate) fn datasets(rows: Rows) -> Parsed<Vec<DatasetEntry>> {
    let mut entries = rows.each(|column| {
        let kind = match column("type").as_str() {
            "filesystem" => Kind::Filesystem,
            "volume" => Kind::Volume,
            other => return Err(format!("{} is no type of a dataset", shown(other))),
        };
        let origin = column("origin");
        Ok(DatasetEntry {
            name: named(&column("name"))?,
            kind,
            guid: number("guid", &column("guid"))?,
            createtxg: number("createtxg", &column("createtxg"))?,
            origin: if absent(&origin) { None } else { Some(named(&origin)?) },
        })
    })?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn snapshot_entry(column: &dyn Fn(&str) -> String) -> Parsed<SnapshotEntry> {
    Ok(SnapshotEntry {
        name: named::<Snapshot>(&column("name"))?,
        guid: number("guid", &column("guid"))?,
        createtxg: number("createtxg", &column("createtxg"))?,
    })
}

/// Oldest first.
pub(crate) fn snapshots(rows: Rows) -> Parsed<Vec<SnapshotEntry>> {
    let mut entries = rows.each(snapshot_entry)?;
    entries.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
    Ok(entries)
}

/// Oldest first.
pub(crate) fn snapshot_uses(rows: Rows) -> Parsed<Vec<SnapshotUse>> {
    let mut entries = rows.each(|column| {
        let clones = column("clones");
        Ok(SnapshotUse {
            entry: snapshot_entry(column)?,
            creation_unix_s: number("creation", &column("creation"))?,
            used_bytes: number("used", &column("used"))?,
            referenced_bytes: number("referenced", &column("referenced"))?,
            holds: number("userrefs", &column("userrefs"))?,
            defer_destroy: column("defer_destroy") == "on",
            clones: if absent(&clones) {
                Vec::new()
            } else {
                clones.split(',').filter(|name| !name.contains('%')).map(named::<Dataset>).collect::<Parsed<_>>()?
            },
        })
    })?;
    entries.sort_by(|a, b| (a.entry.createtxg, &a.entry.name).cmp(&(b.entry.createtxg, &b.entry.name)));
    Ok(entries)
}

/// Oldest first.
pub(crate) fn bookmarks(rows: Rows) -> Parsed<Vec<BookmarkEntry>> {
    let mut entries = rows.each(|column| {
        Ok(BookmarkEntry {
            name: named::<Bookmark>(&column("name"))?,
            guid: number("guid", &column("guid"))?,
            createtxg: number("createtxg", &column("createtxg"))?,
        })
    })?;
    entries.sort_by(|a, b| (a.createtxg, &a.name).cmp(&(b.createtxg, &b.name)));
    Ok(entries)
}

/// `zfs list -Hp -o name,...`: `asked` are the columns behind the name, which are some of `names`.
pub(crate) fn listing(bytes: &[u8], rows: RowsOf, names: &[PropertyName], asked: &[&str]) -> Parsed<Vec<Listed>> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != asked.len() + 1 {
            return Err(format!("{} columns instead of {}: {}", fields.len(), asked.len() + 1, shown(line)));
        }
        let value = |name: &PropertyName| {
            let at = asked.iter().position(|asked| *asked == name.as_str())?;
            fields.get(at + 1).filter(|value| **value != "-").map(ToString::to_string)
        };
        let name = fields.first().copied().unwrap_or_default();
        let name = match rows {
            RowsOf::Datasets => Entity::Dataset(named(name)?),
            RowsOf::Snapshots => Entity::Snapshot(named(name)?),
        };
        Ok(Listed { name, values: names.iter().map(value).collect() })
    };
    // Those with % are ZFS's own.
    let lines = utf8(bytes)?.lines().filter(|line| !line.split('\t').next().is_some_and(|name| name.contains('%')));
    let mut listed = lines.map(line).collect::<Parsed<Vec<Listed>>>()?;
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(listed)
}

/// `zpool status -j -v`: the files with errors.
pub(crate) fn errors_from_json(bytes: &[u8], pool: &Pool) -> Parsed<Vec<DamagedFile>> {
    let found = objects(bytes, "pools")?;
    let (_, status) = found.iter().find(|(name, _)| name == pool.as_str()).ok_or("the pool isn't in it")?;
    let Some(list) = status.get("errlist") else { return Ok(Vec::new()) };
    let list = list.as_array().ok_or("its errlist is no list")?;
    let file = |file: &Value| file.as_str().map(DamagedFile::parse).ok_or_else(|| "a file without a name".to_owned());
    let mut files = list.iter().map(file).collect::<Parsed<Vec<_>>>()?;
    files.sort();
    files.dedup();
    Ok(files)
}

/// The same from the text: what stands under `errors:`, a line each.
pub(crate) fn errors_from_text(bytes: &[u8]) -> Parsed<Vec<DamagedFile>> {
    let text = String::from_utf8_lossy(bytes);
    let errors = text.lines().skip_while(|line| !line.starts_with("errors: "));
    let mut files: Vec<DamagedFile> = errors
        .skip(1)
        .filter_map(|line| line.strip_prefix("        "))
        .filter(|line| !line.is_empty())
        .map(DamagedFile::parse)
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}

/// By name.
pub(crate) fn pools(rows: Rows) -> Parsed<Vec<PoolEntry>> {
    let mut entries = rows.each(|column| {
        // Nothing is known of a pool that can't be opened.
        let bytes = |name: &str| match column(name) {
            text if absent(&text) => Ok(0),
            text => number(name, &text),
        };
        let health = column("health");
        let fragmentation = column("fragmentation");
        Ok(PoolEntry {
            name: named(&column("name"))?,
            guid: number("guid", &column("guid"))?,
            health: Health::from_word(&health).ok_or_else(|| format!("{} is no health", shown(&health)))?,
            size_bytes: bytes("size")?,
            allocated_bytes: bytes("allocated")?,
            free_bytes: bytes("free")?,
            freeing_bytes: bytes("freeing")?,
            fragmentation_percent: if absent(&fragmentation) {
                None
            } else {
                Some(number("fragmentation", fragmentation.trim_end_matches('%'))?)
            },
            read_only: column("readonly") == "on",
        })
    })?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// `zfs holds -H`. A tag may be anything that has no tab; the time is to the minute, in words, and isn't read.
pub(crate) fn holds(bytes: &[u8]) -> Parsed<Vec<Hold>> {
    let mut holds = Vec::new();
    for line in utf8(bytes)?.lines() {
        let (snapshot, rest) = line.split_once('\t').ok_or_else(|| format!("no tab: {}", shown(line)))?;
        let (tag, _time) = rest.rsplit_once('\t').ok_or_else(|| format!("one tab: {}", shown(line)))?;
        // ZFS's own while it sends or receives begin with a point.
        if let Ok(tag) = tag.parse::<HoldTag>() {
            holds.push(Hold { snapshot: named(snapshot)?, tag });
        } else if !tag.starts_with('.') {
            return Err(format!("{} is no tag that could be released by name", shown(tag)));
        }
    }
    holds.sort_by(|a, b| a.tag.cmp(&b.tag));
    Ok(holds)
}

/// `zfs get -Hp -o property,value,source`. A value may have tabs: it is what is between the first and the last.
pub(crate) fn properties_from_text(bytes: &[u8]) -> Parsed<Vec<Property>> {
    let mut properties = Vec::new();
    for line in utf8(bytes)?.lines() {
        let (name, rest) = line.split_once('\t').ok_or_else(|| format!("no tab: {}", shown(line)))?;
        let (value, source) = rest.rsplit_once('\t').ok_or_else(|| format!("one tab: {}", shown(line)))?;
        let source = match source {
            "-" | "" => Source::None,
            "default" => Source::Default,
            "local" => Source::Local,
            "received" => Source::Received,
            "temporary" => Source::Temporary,
            other => match other.strip_prefix("inherited from ") {
                Some(above) => Source::Inherited(named(above)?),
                None => return Err(format!("{} is no source", shown(other))),
            },
        };
        push_property(&mut properties, named(name)?, value, source);
    }
    Ok(properties)
}

/// `zfs get -j -p` of one entity.
pub(crate) fn properties_from_json(bytes: &[u8]) -> Parsed<Vec<Property>> {
    let mut properties = Vec::new();
    for (_, entity) in objects(bytes, "datasets")? {
        let Some(Value::Object(found)) = entity.get("properties") else { return Err("no properties in it".into()) };
        for (name, property) in found {
            let text = |of: &Value, key: &str| {
                of.get(key)
                    .and_then(Value::as_str)
                    .map(str::to_owned)
                    .ok_or_else(|| format!("no {key} of {}", shown(name)))
            };
            let source = property.get("source").ok_or_else(|| format!("no source of {}", shown(name)))?;
            let source = match text(source, "type")?.as_str() {
                "NONE" => Source::None,
                "DEFAULT" => Source::Default,
                "LOCAL" => Source::Local,
                "RECEIVED" => Source::Received,
                "TEMPORARY" => Source::Temporary,
                "INHERITED" => Source::Inherited(named(&text(source, "data")?)?),
                other => return Err(format!("{} is no source", shown(other))),
            };
            push_property(&mut properties, named(name)?, &text(property, "value")?, source);
        }
    }
    Ok(properties)
}

/// `zfs get` prints `-` for a user's property that isn't set.
fn push_property(properties: &mut Vec<Property>, name: PropertyName, value: &str, source: Source) {
    if !(value == "-" && source == Source::None) {
        properties.push(Property { name, value: value.to_owned(), source });
    }
}

/// `zfs version`: two lines such as `zfs-2.3.9-0+deb13u1` and `zfs-kmod-2.3.9-0+deb13u1`.
pub(crate) fn version(bytes: &[u8]) -> Parsed<Version> {
    let text = utf8(bytes)?;
    let release = |text: &str| {
        let digits: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let mut parts = digits.trim_end_matches('.').split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), patch) => Some((major, minor, patch.and_then(Result::ok).unwrap_or(0))),
            _ => None,
        }
    };
    let module = text.lines().find_map(|line| release(line.trim().strip_prefix("zfs-kmod-")?));
    let tools = text.lines().find_map(|line| release(line.trim().strip_prefix("zfs-")?));
    Ok(Version { tools: tools.ok_or_else(|| format!("no version: {}", shown(text)))?, module })
}

/// `size` in the answer of `zfs send -nP`.
pub(crate) fn send_size(text: &str) -> Parsed<u64> {
    let size = text.lines().rev().find_map(|line| line.strip_prefix("size\t").or_else(|| line.strip_prefix("size ")));
    number("size", size.ok_or_else(|| format!("no size: {}", shown(text)))?.trim())
}

/// `zpool status -j -p -P POOL`.
pub(crate) fn status_from_json(bytes: &[u8], pool: &Pool) -> Parsed<PoolStatus> {
    let found = objects(bytes, "pools")?;
    let (_, status) = found.iter().find(|(name, _)| name == pool.as_str()).ok_or("the pool isn't in it")?;
    let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default();
    let health = Health::from_word(text("state")).ok_or_else(|| format!("{} is no state", shown(text("state"))))?;
    let mut vdevs = Vec::new();
    for (key, role) in [
        ("vdevs", Role::Data),
        ("dedup", Role::Dedup),
        ("special", Role::Special),
        ("logs", Role::Log),
        ("l2cache", Role::Cache),
        ("spares", Role::Spare),
    ] {
        let Some(Value::Object(group)) = status.get(key) else { continue };
        for vdev in group.values() {
            match vdev.get("vdev_type").and_then(Value::as_str) {
                // The pool itself stands above its data.
                Some("root") => {
                    if let Some(Value::Object(children)) = vdev.get("vdevs") {
                        for child in children.values() {
                            vdev_from_json(child, role, 0, &mut vdevs)?;
                        }
                    }
                }
                _ => vdev_from_json(vdev, role, 0, &mut vdevs)?,
            }
        }
    }
    let scan = status.get("scan_stats").map_or_else(String::new, |scan| {
        let text = |key: &str| scan.get(key).and_then(Value::as_str).unwrap_or("?").to_lowercase();
        format!("{} {}, {} errors", text("function"), text("state"), text("errors"))
    });
    let data_errors = match status.get("error_count").and_then(Value::as_str) {
        Some(count) => number("error_count", count)?,
        None => 0,
    };
    Ok(PoolStatus { name: pool.clone(), health, scan, data_errors, vdevs })
}

/// Deeper than any pool can be: an end for what is no pool.
const VDEV_DEPTH_MAX: usize = 16;

fn vdev_from_json(vdev: &Value, role: Role, depth: usize, into: &mut Vec<Vdev>) -> Parsed<()> {
    let text = |key: &str| vdev.get(key).and_then(Value::as_str);
    let name = text("name").ok_or("a vdev without a name")?.to_owned();
    let state = text("state").unwrap_or_default();
    let count = |key: &str| text(key).map_or(Ok(0), |count| number(key, count));
    let health = Health::from_word(state).ok_or_else(|| format!("{} is no state of {}", shown(state), shown(&name)))?;
    let (read_errors, write_errors, checksum_errors, slow) =
        (count("read_errors")?, count("write_errors")?, count("checksum_errors")?, count("slow_ios")?);
    into.push(Vdev { name, role, depth, health, read_errors, write_errors, checksum_errors, slow });
    if let Some(Value::Object(children)) = vdev.get("vdevs") {
        if depth == VDEV_DEPTH_MAX {
            return Err("vdevs in vdevs without an end".into());
        }
        for child in children.values() {
            vdev_from_json(child, role, depth + 1, into)?;
        }
    }
    Ok(())
}

/// `zpool status -pP POOL`, the text. Every section is read to its end and what isn't known is an error: a reader that stops at a line that it
/// doesn't know shows a broken pool as a whole one.
pub(crate) fn status_from_text(bytes: &[u8], pool: &Pool) -> Parsed<PoolStatus> {
    let text = utf8(bytes)?;
    let (mut health, mut scan, mut data_errors) = (None, String::new(), None);
    let mut vdevs: Vec<Vdev> = Vec::new();
    let mut section = "";
    let mut counts_slow = false;
    let mut role = Role::Data;
    for line in text.lines() {
        // "  pool: tank" opens a section; the config's lines begin with a tab.
        if let Some((key, value)) =
            line.split_once(": ").or_else(|| line.split_once(':').filter(|(_, value)| value.is_empty()))
            && !line.starts_with('\t')
            && let Some(known) = [
                "pool",
                "state",
                "status",
                "action",
                "see",
                "scan",
                "config",
                "errors",
                "remove",
                "checkpoint",
                "dedup",
                "expand",
            ]
            .into_iter()
            .find(|known| *known == key.trim())
        {
            section = known;
            match known {
                "pool" if value != pool.as_str() => return Err(format!("it is of pool {}", shown(value))),
                "state" => {
                    health =
                        Some(Health::from_word(value.trim()).ok_or_else(|| format!("{} is no state", shown(value)))?)
                }
                "scan" => scan = value.trim().to_owned(),
                "errors" => {
                    data_errors = Some(match value.split_once(" data errors") {
                        Some((count, _)) if count.starts_with(|c: char| c.is_ascii_digit()) => {
                            number("the count of errors", count)?
                        }
                        _ if value.starts_with("No known data errors") => 0,
                        // "List of errors unavailable: ...": there are some.
                        _ => 1,
                    });
                }
                _ => {}
            }
            continue;
        }
        if section != "config" || line.trim().is_empty() {
            continue;
        }
        if line.trim_start().starts_with("NAME ") {
            counts_slow = line.trim_end().ends_with("SLOW");
            continue;
        }
        let Some(row) = line.strip_prefix('\t') else { return Err(format!("no line of a config: {}", shown(line))) };
        if !row.starts_with(' ') {
            role = match row.trim_end() {
                "special" => Role::Special,
                "dedup" => Role::Dedup,
                "logs" => Role::Log,
                "cache" => Role::Cache,
                "spares" => Role::Spare,
                _ if vdevs.is_empty() && row.split_whitespace().next() == Some(pool.as_str()) => Role::Data,
                other => return Err(format!("{} is no group of a config", shown(other))),
            };
            continue;
        }
        vdevs.push(vdev_from_text(row, role, counts_slow)?);
    }
    match (health, data_errors) {
        (Some(health), Some(data_errors)) => Ok(PoolStatus { name: pool.clone(), health, scan, data_errors, vdevs }),
        _ => Err("it has no state, or ends before its errors".into()),
    }
}

/// `  name  STATE  READ WRITE CKSUM  words`, or `  name  AVAIL` for spares. A path may have spaces: the state is where a state is.
fn vdev_from_text(row: &str, role: Role, counts_slow: bool) -> Parsed<Vdev> {
    let indent = row.len() - row.trim_start_matches(' ').len();
    let words: Vec<&str> = row.split_whitespace().collect();
    let state = (1..words.len())
        .find(|i| words.get(*i).is_some_and(|w| Health::from_word(w).is_some()))
        .ok_or_else(|| format!("no state: {}", shown(row)))?;
    let health = words.get(state).and_then(|w| Health::from_word(w)).ok_or("no state")?;
    let count = |i: usize| match words.get(state + i) {
        Some(count) if role != Role::Spare && !count.starts_with('-') => number("a count of errors", count),
        _ => Ok(0),
    };
    let name = words.get(..state).unwrap_or_default().join(" ");
    Ok(Vdev {
        name,
        role,
        depth: (indent / 2).saturating_sub(1),
        health,
        read_errors: count(1)?,
        write_errors: count(2)?,
        checksum_errors: count(3)?,
        slow: if counts_slow { count(4)? } else { 0 },
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn releases() -> Vec<PathBuf> {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut releases: Vec<PathBuf> = std::fs::read_dir(golden).unwrap().map(|e| e.unwrap().path()).collect();
        releases.sort();
        assert!(releases.len() >= 2);
        releases
    }

    fn read(path: &std::path::Path, name: &str) -> Vec<u8> {
        std::fs::read(path.join(name)).unwrap_or_else(|e| panic!("{}: {e}", path.join(name).display()))
    }

    const RECORDED_USES: &[&str] = &[
        "name",
        "guid",
        "createtxg",
        "creation",
        "used",
        "referenced",
        "written",
        "userrefs",
        "defer_destroy",
        "clones",
    ];
    const RECORDED_POOLS: &[&str] = &[
        "name",
        "guid",
        "health",
        "size",
        "allocated",
        "free",
        "freeing",
        "leaked",
        "fragmentation",
        "capacity",
        "dedupratio",
        "readonly",
    ];

    #[test]
    fn every_release_is_read_and_its_json_says_what_its_text_says() {
        for path in releases() {
            let json = path.join("get.json").exists();
            let both = |name: &str, key: &str, columns: &'static [&'static str]| {
                let mut rows = vec![Rows::from_text(&read(&path, &format!("{name}.txt")), columns).unwrap()];
                if json {
                    rows.push(Rows::from_json(&read(&path, &format!("{name}.json")), key, columns).unwrap());
                }
                rows
            };
            let all: Vec<_> =
                both("list-datasets", "datasets", DATASET_COLUMNS).into_iter().map(|r| datasets(r).unwrap()).collect();
            assert!(all.iter().all(|listing| listing == &all[0]), "{path:?}");
            let names: Vec<_> = all[0].iter().map(|d| d.name.as_str()).collect();
            assert_eq!(names, ["tank", "tank/a", "tank/a/child", "tank/b", "tank/clone", "tank/enc"]);
            assert_eq!(all[0][4].origin.as_ref().unwrap().as_str(), "tank/a@s2");

            let all: Vec<_> = both("list-snapshots", "datasets", SNAPSHOT_COLUMNS)
                .into_iter()
                .map(|r| snapshots(r).unwrap())
                .collect();
            assert!(all.iter().all(|listing| listing == &all[0]), "{path:?}");
            assert_eq!(all[0].iter().map(|s| s.name.name()).collect::<Vec<_>>(), ["s1", "s2"]);

            let all: Vec<_> = both("list-snapshots-details", "datasets", RECORDED_USES)
                .into_iter()
                .map(|r| snapshot_uses(r).unwrap())
                .collect();
            assert!(all.iter().all(|listing| listing == &all[0]), "{path:?}");
            assert_eq!((all[0][0].holds, all[0][1].clones[0].as_str()), (2, "tank/clone"));

            let all: Vec<_> = both("list-bookmarks", "datasets", SNAPSHOT_COLUMNS)
                .into_iter()
                .map(|r| bookmarks(r).unwrap())
                .collect();
            assert!(all.iter().all(|listing| listing == &all[0]) && all[0][0].name.name() == "m1", "{path:?}");
            for rows in both("list-none", "datasets", SNAPSHOT_COLUMNS) {
                assert_eq!(snapshots(rows), Ok(vec![]));
            }
            for rows in both("pools", "pools", RECORDED_POOLS) {
                let pools = pools(rows).unwrap();
                assert_eq!(
                    pools.iter().map(|p| (p.name.as_str(), p.health, p.read_only)).collect::<Vec<_>>(),
                    [("rz", Health::Online, false), ("tank", Health::Online, false)]
                );
            }
            assert_eq!(
                version(&read(&path, "version.txt")).unwrap().module,
                Some((2, 3, 9)),
                "all were recorded on one kernel"
            );
            assert!(path.ends_with({
                let (a, b, c) = version(&read(&path, "version.txt")).unwrap().tools;
                format!("{a}.{b}.{c}")
            }));
            let tags: Vec<_> =
                holds(&read(&path, "holds.txt")).unwrap().into_iter().map(|h| h.tag.to_string()).collect();
            assert_eq!(tags, ["keep", "two words"]);
            assert!(send_size(std::str::from_utf8(&read(&path, "send-n.txt")).unwrap()).unwrap() > 1_000_000);
        }
    }

    #[test]
    fn properties_keep_values_with_tabs_and_their_sources() {
        for path in releases() {
            let mut all = vec![properties_from_text(&without_received(&read(&path, "get.txt"))).unwrap()];
            if path.join("get.json").exists() {
                all.push(properties_from_json(&read(&path, "get.json")).unwrap());
            }
            for properties in all {
                let of = |name: &str| {
                    properties.iter().find(|p| p.name.as_str() == name).map(|p| (p.value.as_str(), p.source.clone()))
                };
                assert_eq!(of("basalt:note"), Some(("a\ttab, two  spaces", Source::Local)));
                assert_eq!(of("recordsize"), Some(("1048576", Source::Local)));
                assert_eq!(of("atime"), Some(("on", Source::Default)));
                assert_eq!(of("mountpoint").unwrap().1, Source::Inherited("tank".parse().unwrap()));
                assert_eq!(of("type"), Some(("filesystem", Source::None)));
            }
        }
    }

    /// The recorded ones have a column more than the engine asks for.
    fn without_received(bytes: &[u8]) -> Vec<u8> {
        let mut lines = String::new();
        for line in std::str::from_utf8(bytes).unwrap().lines() {
            let (rest, source) = line.rsplit_once('\t').unwrap();
            let (rest, _received) = rest.rsplit_once('\t').unwrap();
            lines.push_str(&format!("{rest}\t{source}\n"));
        }
        lines.into_bytes()
    }

    #[test]
    fn the_json_that_cuts_guids_off_is_not_the_one_that_is_read() {
        let path = releases().into_iter().find(|p| p.ends_with("2.3.9")).unwrap();
        assert!(Rows::from_json(&read(&path, "list-snapshots-json-int.json"), "datasets", SNAPSHOT_COLUMNS).is_err());
        let json: Value = serde_json::from_slice(&read(&path, "list-snapshots-json-int.json")).unwrap();
        let entities = json["datasets"].as_object().unwrap().values();
        let guids: Vec<_> = entities.map(|e| e["properties"]["guid"]["value"].as_u64()).collect();
        assert!(guids.contains(&Some(i64::MAX as u64)), "this release prints guids right: {guids:?}");
    }

    #[test]
    fn every_group_of_disks_is_seen() {
        let tank: Pool = "tank".parse().unwrap();
        for path in releases() {
            let mut all = vec![status_from_text(&read(&path, "status-tank.txt"), &tank).unwrap()];
            if path.join("status-tree.json").exists() {
                all.push(status_from_json(&read(&path, "status-tree.json"), &tank).unwrap());
            }
            for status in all {
                let mut vdevs: Vec<_> = status
                    .vdevs
                    .iter()
                    .map(|v| (v.name.trim_start_matches("/tmp/vdevs/"), v.role, v.depth, v.health))
                    .collect();
                vdevs.sort_by_key(|v| v.0);
                use Health::{Available, Online};
                assert_eq!(
                    vdevs,
                    [
                        ("a", Role::Data, 1, Online),
                        ("b", Role::Data, 1, Online),
                        ("c", Role::Spare, 0, Available),
                        ("cache", Role::Cache, 0, Online),
                        ("log", Role::Log, 0, Online),
                        ("mirror-0", Role::Data, 0, Online),
                        ("mirror-1", Role::Special, 0, Online),
                        ("special1", Role::Special, 1, Online),
                        ("special2", Role::Special, 1, Online),
                    ]
                );
                assert!(status.data_errors == 0 && status.health == Online);
                // The newest tools can't start a scrub on the module of the others.
                assert_eq!(status.scan.contains("scrub"), !path.ends_with("2.4.4"), "{path:?}: {}", status.scan);
            }
            let rz = status_from_text(&read(&path, "status-degraded.txt"), &"rz".parse().unwrap()).unwrap();
            assert_eq!(rz.health, Health::Degraded);
            assert_eq!(rz.vdevs.iter().filter(|v| v.health == Health::Offline).count(), 1);
        }
    }

    #[test]
    fn files_with_errors_and_slow_disks_are_read_alike_from_text_and_json() {
        let path = releases().into_iter().find(|p| p.ends_with("2.3.9")).unwrap();
        let one: Pool = "one".parse().unwrap();
        let (text, json) = (read(&path, "status-errors.txt"), read(&path, "status-errors.json"));
        let files = errors_from_text(&text).unwrap();
        assert_eq!(files, [DamagedFile::Within("one/a@s".into(), "seg-00000001.log".into())]);
        assert_eq!(errors_from_json(&json, &one).unwrap(), files);
        assert_eq!(errors_from_json(&read(&path, "status-tree.json"), &"tank".parse().unwrap()).unwrap(), []);
        let slow = String::from_utf8(text).unwrap().replace("CKSUM", "CKSUM  SLOW").replace("0     4", "0     4     7");
        let slow = status_from_text(
            slow.replace("one         ONLINE       0     0     0", "one         ONLINE  0 0 0 -").as_bytes(),
            &one,
        )
        .unwrap();
        assert_eq!((slow.vdevs[0].slow, slow.vdevs[0].checksum_errors, slow.data_errors), (7, 4, 1));
        assert_eq!(status_from_json(&json, &one).unwrap().vdevs[0].checksum_errors, 4);
    }

    #[test]
    fn a_status_that_stops_early_or_has_an_unknown_line_is_an_error() {
        let path = releases().into_iter().find(|p| p.ends_with("2.3.9")).unwrap();
        let tank: Pool = "tank".parse().unwrap();
        let whole = String::from_utf8(read(&path, "status-tank.txt")).unwrap();
        let cut = whole.split("errors:").next().unwrap();
        assert!(status_from_text(cut.as_bytes(), &tank).is_err());
        assert!(status_from_text(whole.replace("special\t", "unheard\t").as_bytes(), &tank).is_err());
        assert!(
            status_from_text(
                whole.replace("logs\t", "logs\n\t  /dev/x          SLEEPY       0     0     0").as_bytes(),
                &tank
            )
            .is_err()
        );
    }

    #[test]
    fn what_zfs_keeps_for_itself_is_passed_over_and_what_is_odd_is_shown() {
        let rows = |text: &str| Rows::from_text(text.as_bytes(), SNAPSHOT_COLUMNS);
        assert_eq!(snapshots(rows("tank/a/%recv@x\t1\t2\n").unwrap()), Ok(vec![]));
        assert!(snapshots(rows("tank/a@x\tone\t2\n").unwrap()).unwrap_err().contains("\"one\""));
        assert!(rows("tank/a@x\t1\n").err().unwrap().contains("2 columns instead of 3"));
        assert!(snapshots(rows("-r\t1\t2\n").unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn hostile_output_is_an_error_or_rows_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            everything(&bytes);
        }

        #[test]
        fn damaged_output_is_an_error_or_rows_and_never_a_panic(which in 0usize..64, at in any::<prop::sample::Index>(), with in "\\PC{0,3}|[\t\n%@#-]", cut in any::<bool>()) {
            let path = releases().pop().unwrap();
            let mut files: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
            files.sort();
            let text = String::from_utf8(std::fs::read(&files[which % files.len()]).unwrap()).unwrap();
            let mut at = at.index(text.len() + 1);
            while !text.is_char_boundary(at) { at -= 1; }
            let damaged = format!("{}{with}{}", &text[..at], if cut { "" } else { &text[at..] });
            everything(damaged.as_bytes());
        }
    }

    fn everything(bytes: &[u8]) {
        let tank: Pool = "tank".parse().unwrap();
        for columns in [DATASET_COLUMNS, SNAPSHOT_COLUMNS, SNAPSHOT_USE_COLUMNS, POOL_COLUMNS] {
            for read in
                [Rows::from_text(bytes, columns), Rows::from_json(bytes, "datasets", columns)].into_iter().flatten()
            {
                let again = || Rows { rows: read.rows.clone(), columns };
                let _ =
                    (datasets(again()), snapshots(again()), snapshot_uses(again()), bookmarks(again()), pools(again()));
            }
        }
        let _ = (holds(bytes), properties_from_text(bytes), properties_from_json(bytes), version(bytes));
        let _ = (
            status_from_json(bytes, &tank),
            status_from_text(bytes, &tank),
            send_size(&String::from_utf8_lossy(bytes)),
        );
    }
}
