//! The properties that the model knows, as ZFS checks and inherits them.

use crate::{Dataset, PropertyName, Source};

use super::State;

/// What a property takes.
enum Takes {
    Words(&'static [&'static str]),
    /// A power of two between these.
    PowerOfTwo(u64, u64),
    /// Bytes; inherited by nobody.
    Space,
    /// Any text.
    Text,
}

const ON_OFF: Takes = Takes::Words(&["on", "off"]);
const CACHE: Takes = Takes::Words(&["all", "none", "metadata"]);

/// Name, default, what it takes.
const SETTABLE: &[(&str, &str, Takes)] = &[
    ("atime", "on", ON_OFF),
    ("canmount", "on", Takes::Words(&["on", "off", "noauto"])),
    ("checksum", "on", Takes::Words(&["on", "off", "fletcher4", "sha256", "sha512", "skein", "edonr", "blake3"])),
    (
        "compression",
        "on",
        Takes::Words(&["on", "off", "lz4", "zstd", "gzip", "zle", "lzjb", "zstd-3", "zstd-9", "zstd-fast"]),
    ),
    ("dedup", "off", Takes::Words(&["on", "off", "verify", "sha256"])),
    ("devices", "on", ON_OFF),
    ("dnodesize", "legacy", Takes::Words(&["legacy", "auto", "1k", "2k", "4k", "8k", "16k"])),
    ("logbias", "latency", Takes::Words(&["latency", "throughput"])),
    ("mountpoint", "", Takes::Text),
    ("primarycache", "all", CACHE),
    ("quota", "0", Takes::Space),
    ("readonly", "off", ON_OFF),
    ("recordsize", "131072", Takes::PowerOfTwo(512, 16 << 20)),
    ("redundant_metadata", "all", Takes::Words(&["all", "most", "some", "none"])),
    ("refquota", "0", Takes::Space),
    ("refreservation", "0", Takes::Space),
    ("reservation", "0", Takes::Space),
    ("secondarycache", "all", CACHE),
    ("setuid", "on", ON_OFF),
    ("snapdir", "hidden", Takes::Words(&["hidden", "visible", "disabled"])),
    ("special_small_blocks", "0", Takes::Text),
    ("sync", "standard", Takes::Words(&["standard", "always", "disabled"])),
    ("xattr", "on", Takes::Words(&["on", "off", "sa", "dir"])),
];

/// Nobody sets these after creation.
const READ_ONLY: &[&str] = &[
    "available",
    "clones",
    "compressratio",
    "createtxg",
    "creation",
    "defer_destroy",
    "encryption",
    "encryptionroot",
    "guid",
    "keystatus",
    "logicalused",
    "mounted",
    "objsetid",
    "origin",
    "receive_resume_token",
    "referenced",
    "snapshots_changed",
    "type",
    "used",
    "usedbysnapshots",
    "userrefs",
    "written",
];

/// Bytes of `10M`, `none`, `0`.
pub(super) fn size(text: &str) -> Option<u64> {
    if text == "none" {
        return Some(0);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The value as `zfs get -p` shows it, or why it can't be.
pub(super) fn check(name: &PropertyName, value: &str) -> Result<String, &'static str> {
    if name.is_user() {
        return Ok(value.to_owned());
    }
    let Some((_, _, takes)) = SETTABLE.iter().find(|(known, ..)| *known == name.as_str()) else {
        return Err(if READ_ONLY.contains(&name.as_str()) { "it is readonly" } else { "invalid property" });
    };
    match takes {
        Takes::Words(words) if words.contains(&value) => Ok(value.to_owned()),
        Takes::Words(_) => Err("it must be one of certain words"),
        Takes::PowerOfTwo(least, most) => match size(value) {
            Some(bytes) if bytes.is_power_of_two() && (*least..=*most).contains(&bytes) => Ok(bytes.to_string()),
            _ => Err("it must be power of 2 in its range"),
        },
        Takes::Space => size(value).map(|bytes| bytes.to_string()).ok_or("bad numeric value"),
        Takes::Text => Ok(value.to_owned()),
    }
}

/// Whether children have it too.
pub(super) fn inherits(name: &str) -> bool {
    name != "canmount" && !SETTABLE.iter().any(|(known, _, takes)| *known == name && matches!(takes, Takes::Space))
}

/// All that a dataset has by default.
pub(super) fn settable() -> impl Iterator<Item = &'static str> {
    SETTABLE.iter().map(|(name, ..)| *name)
}

impl State {
    /// The value of a settable property and where it comes from; `None` for a user's that nobody set.
    pub(super) fn effective(&self, dataset: &Dataset, name: &str) -> Option<(String, Source)> {
        let mut at = Some(dataset.clone());
        while let Some(above) = at {
            let set = self.filesystems.get(&above).and_then(|f| f.local.iter().find(|(p, _)| p.as_str() == name));
            if let Some((_, value)) = set {
                if above == *dataset {
                    return Some((value.clone(), Source::Local));
                }
                // What lies below a mountpoint is mounted below it.
                let value = match (name, value.as_str()) {
                    ("mountpoint", "none" | "legacy") => value.clone(),
                    ("mountpoint", value) => {
                        format!("{}{}", value.trim_end_matches('/'), &dataset.as_str()[above.as_str().len()..])
                    }
                    _ => value.clone(),
                };
                return Some((value, Source::Inherited(above)));
            }
            at = if inherits(name) { above.parent() } else { None };
        }
        let (_, default, _) = SETTABLE.iter().find(|(known, ..)| *known == name)?;
        let default = if name == "mountpoint" { format!("/{dataset}") } else { (*default).to_owned() };
        Some((default, Source::Default))
    }
}
