//! The properties that may be declared, and what each takes: a mistake is found before ZFS is asked.

/// What a property takes.
enum Takes {
    Words(&'static [&'static str]),
    /// A power of two between these, in bytes.
    PowerOfTwo(u64, u64),
    /// The same, or 0 for none.
    PowerOfTwoOrNone(u64, u64),
    /// Bytes, or none.
    Space,
}

const CACHE: Takes = Takes::Words(&["all", "none", "metadata"]);

const DECLARABLE: &[(&str, Takes)] = &[
    ("atime", Takes::Words(&["on", "off"])),
    (crate::layout::RESERVE_PROPERTY, Takes::Space),
    // Not off: a scrub finds nothing without it, and a mirror heals nothing.
    ("checksum", Takes::Words(&["on", "fletcher4", "sha256", "sha512", "skein", "edonr", "blake3"])),
    (
        "compression",
        Takes::Words(&[
            "on",
            "off",
            "lz4",
            "zstd",
            "zstd-1",
            "zstd-2",
            "zstd-3",
            "zstd-6",
            "zstd-9",
            "zstd-fast",
            "gzip",
            "zle",
        ]),
    ),
    ("dedup", Takes::Words(&["off"])),
    ("devices", Takes::Words(&["on", "off"])),
    ("logbias", Takes::Words(&["latency", "throughput"])),
    ("primarycache", CACHE),
    ("quota", Takes::Space),
    ("recordsize", Takes::PowerOfTwo(4096, 16 << 20)),
    ("redundant_metadata", Takes::Words(&["all", "most", "some", "none"])),
    ("refquota", Takes::Space),
    ("refreservation", Takes::Space),
    ("reservation", Takes::Space),
    ("secondarycache", CACHE),
    ("setuid", Takes::Words(&["on", "off"])),
    ("special_small_blocks", Takes::PowerOfTwoOrNone(512, 16 << 20)),
    ("sync", Takes::Words(&["standard", "always", "disabled"])),
    ("xattr", Takes::Words(&["on", "off", "sa", "dir"])),
];

/// Bytes of `10M`, `none`, `0`.
pub(crate) fn size(text: &str) -> Option<u64> {
    if text == "none" {
        return Some(0);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A declared value as `zfs get -p` shows it, or why it can't be.
pub(crate) fn declared(name: &str, value: &str) -> Result<String, String> {
    let Some((_, takes)) = DECLARABLE.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = DECLARABLE.iter().map(|(known, _)| *known).collect();
        return Err(format!("it is none of those that are declared here: {}", known.join(", ")));
    };
    let power = |least: u64, most: u64, bytes: u64| bytes.is_power_of_two() && (least..=most).contains(&bytes);
    match takes {
        Takes::Words(words) if words.contains(&value) => Ok(value.to_owned()),
        Takes::Words(["off"]) => Err("it stays off: docs/decisions/dedup.md says why".to_owned()),
        Takes::Words(words) => Err(format!("write one of {}", words.join(", "))),
        Takes::PowerOfTwo(least, most) => size(value)
            .filter(|bytes| power(*least, *most, *bytes))
            .map(|bytes| bytes.to_string())
            .ok_or_else(|| format!("write a power of two from {least} to {most}, as in 256K")),
        Takes::PowerOfTwoOrNone(least, most) => size(value)
            .filter(|bytes| *bytes == 0 || power(*least, *most, *bytes))
            .map(|bytes| bytes.to_string())
            .ok_or_else(|| format!("write 0 or a power of two from {least} to {most}, as in 64K")),
        Takes::Space => {
            size(value).map(|bytes| bytes.to_string()).ok_or_else(|| "write bytes, as in 500G, or none".to_owned())
        }
    }
}

/// All that may be declared.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    DECLARABLE.iter().map(|(name, _)| *name)
}

/// Whether a property may be declared.
pub(crate) fn is_declarable(name: &str) -> bool {
    DECLARABLE.iter().any(|(known, _)| *known == name)
}

/// Whether what lies in a dataset takes it from there.
pub(crate) fn inherits(name: &str) -> bool {
    DECLARABLE.iter().any(|(known, takes)| *known == name && !matches!(takes, Takes::Space))
}

/// Whether two values of a property are the same to ZFS: sizes are compared as numbers.
pub(crate) fn same(name: &str, one: &str, other: &str) -> bool {
    let sized = DECLARABLE.iter().any(|(known, takes)| *known == name && !matches!(takes, Takes::Words(_)));
    // OpenZFS 2.3 calls `sa` `on` when it is asked, and before that `on` was `dir`, which nobody sets.
    let alike = |word: &str| if name == "xattr" && word == "on" { "sa".to_owned() } else { word.to_owned() };
    alike(one) == alike(other) || (sized && size(one).is_some_and(|bytes| size(other) == Some(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_zfs_prints_them_and_mistakes_are_explained() {
        assert_eq!(declared("recordsize", "256K"), Ok("262144".into()));
        assert_eq!(declared("quota", "none"), Ok("0".into()));
        assert!(declared("recordsize", "3").unwrap_err().contains("power of two"));
        assert!(declared("recordszie", "1M").unwrap_err().contains("recordsize"));
        assert!(declared("dedup", "on").unwrap_err().contains("docs/decisions/dedup.md"));
        assert!(declared("checksum", "off").is_err());
        assert!(
            same("quota", "none", "0") && same("recordsize", "1M", "1048576") && !same("sync", "standard", "disabled")
        );
    }
}
