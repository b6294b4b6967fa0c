//! Names, parsed once at the edge by OpenZFS's own rules (`zfs_namecheck.c`), so that no string inside can be an option, a path or two names.

use std::{fmt, str::FromStr};

/// Bytes of a whole name, snapshot included: one less than `ZFS_MAX_DATASET_NAME_LEN`.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a pool's name: what is left beside the two `$ORIGIN` that the pool keeps in it.
pub const POOL_BYTES_MAX: usize = 239;
/// How deep datasets may lie (`zfs_max_dataset_nesting`, which is a module parameter; this is its default).
pub const NESTING_MAX: usize = 50;
/// Bytes of the tag of a hold.
pub const HOLD_TAG_BYTES_MAX: usize = 255;

/// A name that OpenZFS would refuse, or that could be taken for something else on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError {
    name: String,
    wanted: &'static str,
    why: String,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no name of a {}: {}", self.name, self.wanted, self.why)
    }
}

impl std::error::Error for NameError {}

fn refuse<T>(name: &str, wanted: &'static str, why: impl Into<String>) -> Result<T, NameError> {
    Err(NameError { name: name.chars().take(NAME_BYTES_MAX).collect(), wanted, why: why.into() })
}

fn component(whole: &str, wanted: &'static str, part: &str, path: bool) -> Result<(), NameError> {
    if part.is_empty() {
        return refuse(whole, wanted, "a part of it is empty");
    }
    if path && (part == "." || part == "..") {
        return refuse(whole, wanted, format!("{part:?} is reserved"));
    }
    match part.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | ' '))) {
        Some(c) => {
            refuse(whole, wanted, format!("{c:?} is not allowed; letters, digits, '-', '_', '.', ':' and space are"))
        }
        None => Ok(()),
    }
}

fn length(whole: &str, wanted: &'static str, limit_bytes: usize) -> Result<(), NameError> {
    if whole.len() > limit_bytes {
        return refuse(whole, wanted, format!("it has {} bytes, at most {limit_bytes} are allowed", whole.len()));
    }
    Ok(())
}

macro_rules! text_type {
    ($type:ident) => {
        impl $type {
            /// The name as ZFS writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
        impl TryFrom<&str> for $type {
            type Error = NameError;
            fn try_from(name: &str) -> Result<$type, NameError> {
                name.parse()
            }
        }
    };
}

/// A pool, such as `tank`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pool(String);
text_type!(Pool);

impl FromStr for Pool {
    type Err = NameError;
    fn from_str(name: &str) -> Result<Pool, NameError> {
        let wanted = "pool";
        length(name, wanted, POOL_BYTES_MAX)?;
        component(name, wanted, name, false)?;
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return refuse(name, wanted, "it must begin with a letter");
        }
        if matches!(name, "mirror" | "raidz" | "draid") {
            return refuse(name, wanted, "it is reserved");
        }
        Ok(Pool(name.to_owned()))
    }
}

impl Pool {
    /// Stands for a pool that only ZFS knows; no pool can have this name.
    pub(crate) fn unknown() -> Pool {
        Pool("?".to_owned())
    }

    /// The pool's first dataset, which has its name.
    pub fn root(&self) -> Dataset {
        Dataset(self.0.clone())
    }
}

/// A filesystem or volume, such as `tank/basalt/shard0`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dataset(String);
text_type!(Dataset);

impl FromStr for Dataset {
    type Err = NameError;
    fn from_str(name: &str) -> Result<Dataset, NameError> {
        let wanted = "dataset";
        length(name, wanted, NAME_BYTES_MAX)?;
        let mut parts = name.split('/');
        let pool = parts.next().unwrap_or_default();
        pool.parse::<Pool>().or_else(|e| refuse(name, wanted, format!("its pool: {}", e.why)))?;
        for part in parts {
            component(name, wanted, part, true)?;
        }
        if name.split('/').count() > NESTING_MAX {
            return refuse(name, wanted, format!("it lies deeper than {NESTING_MAX}"));
        }
        Ok(Dataset(name.to_owned()))
    }
}

impl Dataset {
    /// The pool it lies in.
    pub fn pool(&self) -> Pool {
        Pool(self.0.split('/').next().unwrap_or_default().to_owned())
    }

    /// The dataset it lies in; none for the first of a pool.
    pub fn parent(&self) -> Option<Dataset> {
        self.0.rsplit_once('/').map(|(parent, _)| Dataset(parent.to_owned()))
    }

    /// A dataset in this one. `name` may have several parts.
    pub fn child(&self, name: &str) -> Result<Dataset, NameError> {
        format!("{}/{name}", self.0).parse()
    }

    /// A snapshot of this one.
    pub fn snapshot(&self, name: &str) -> Result<Snapshot, NameError> {
        format!("{}@{name}", self.0).parse()
    }

    /// A bookmark of this one.
    pub fn bookmark(&self, name: &str) -> Result<Bookmark, NameError> {
        format!("{}#{name}", self.0).parse()
    }

    /// Whether `other` lies in this one, at any depth; it isn't in itself.
    pub fn contains(&self, other: &Dataset) -> bool {
        other.0.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('/'))
    }

    /// This one's name with `from` at its beginning replaced by `to`; none where it isn't `from` and doesn't lie in it.
    pub(crate) fn moved(&self, from: &Dataset, to: &Dataset) -> Option<Dataset> {
        (self == from || from.contains(self)).then(|| Dataset(format!("{}{}", to.0, &self.0[from.0.len()..])))
    }
}

macro_rules! of_dataset {
    ($type:ident, $delimiter:literal, $wanted:literal) => {
        text_type!($type);

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<$type, NameError> {
                length(name, $wanted, NAME_BYTES_MAX)?;
                let Some((dataset, own)) = name.split_once($delimiter) else {
                    return refuse(name, $wanted, concat!("it has no '", $delimiter, "'"));
                };
                dataset.parse::<Dataset>().or_else(|e| refuse(name, $wanted, format!("its dataset: {}", e.why)))?;
                component(name, $wanted, own, false)?;
                Ok($type(name.to_owned()))
            }
        }

        impl $type {
            /// What it is of.
            pub fn dataset(&self) -> Dataset {
                Dataset(self.0.split($delimiter).next().unwrap_or_default().to_owned())
            }

            /// The part behind the delimiter.
            pub fn name(&self) -> &str {
                self.0.split_once($delimiter).map_or("", |(_, name)| name)
            }
        }
    };
}

/// A snapshot, such as `tank/basalt@2026-01-01T00:00:00Z`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Snapshot(String);
of_dataset!(Snapshot, '@', "snapshot");

/// A bookmark, such as `tank/basalt#edge-1`: what is left of a snapshot as the base of an incremental stream.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bookmark(String);
of_dataset!(Bookmark, '#', "bookmark");

/// The tag of a hold. Those that others set may have spaces; ours could be an argument of a command.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldTag(String);
text_type!(HoldTag);

impl FromStr for HoldTag {
    type Err = NameError;
    fn from_str(name: &str) -> Result<HoldTag, NameError> {
        let wanted = "hold";
        length(name, wanted, HOLD_TAG_BYTES_MAX)?;
        if name.is_empty() {
            return refuse(name, wanted, "it is empty");
        }
        if name.starts_with(['-', '.']) {
            return refuse(name, wanted, "it begins with '-' (an option to commands) or '.' (kept by ZFS for itself)");
        }
        if name.chars().any(char::is_control) {
            return refuse(name, wanted, "it has a control character, which no listing could show");
        }
        Ok(HoldTag(name.to_owned()))
    }
}

/// A property: ZFS's own (`recordsize`) or a user's (`basalt:epoch`, with a colon).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PropertyName(String);
text_type!(PropertyName);

impl FromStr for PropertyName {
    type Err = NameError;
    fn from_str(name: &str) -> Result<PropertyName, NameError> {
        let wanted = "property";
        length(name, wanted, NAME_BYTES_MAX)?;
        if name.is_empty() || name.starts_with('-') {
            return refuse(name, wanted, "it is empty or begins with '-'");
        }
        // `@` is in the names of quotas of users (`userquota@1000`).
        match name.chars().find(|c| {
            !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, ':' | '.' | '_' | '-' | '+' | '@' | '#'))
        }) {
            Some(c) => refuse(name, wanted, format!("{c:?} is not allowed")),
            None => Ok(PropertyName(name.to_owned())),
        }
    }
}

impl PropertyName {
    /// Whether it is a user's: those have a colon, inherit, and mean nothing to ZFS.
    pub fn is_user(&self) -> bool {
        self.0.contains(':')
    }
}

/// Anything that has properties.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Entity {
    /// A filesystem or volume.
    Dataset(Dataset),
    /// A snapshot.
    Snapshot(Snapshot),
    /// A bookmark.
    Bookmark(Bookmark),
}

impl Entity {
    /// The name as ZFS writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Entity::Dataset(d) => d.as_str(),
            Entity::Snapshot(s) => s.as_str(),
            Entity::Bookmark(b) => b.as_str(),
        }
    }

    /// The pool it lies in.
    pub fn pool(&self) -> Pool {
        match self {
            Entity::Dataset(d) => d.pool(),
            Entity::Snapshot(s) => s.dataset().pool(),
            Entity::Bookmark(b) => b.dataset().pool(),
        }
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<&Dataset> for Entity {
    fn from(d: &Dataset) -> Entity {
        Entity::Dataset(d.clone())
    }
}
impl From<&Snapshot> for Entity {
    fn from(s: &Snapshot) -> Entity {
        Entity::Snapshot(s.clone())
    }
}
impl From<&Bookmark> for Entity {
    fn from(b: &Bookmark) -> Entity {
        Entity::Bookmark(b.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_zfs_takes_is_a_name() {
        for name in ["tank", "t", "tank/a.b/c-d", "tank/a b", "tank/-x", "Tank:1"] {
            assert_eq!(name.parse::<Dataset>().unwrap().as_str(), name);
        }
        let s: Snapshot = "tank/a@2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!((s.dataset().as_str(), s.name()), ("tank/a", "2026-01-01T00:00:00Z"));
        assert_eq!("tank/a#m".parse::<Bookmark>().unwrap().name(), "m");
        // OpenZFS reserves "." and ".." as parts of a path, not as names of snapshots.
        assert!("tank@.".parse::<Snapshot>().is_ok());
    }

    #[test]
    fn what_zfs_refuses_is_no_name_and_says_why() {
        for name in [
            "",
            "/tank",
            "tank/",
            "tank//a",
            "tank/.",
            "tank/../a",
            "1tank",
            "-tank",
            "mirror",
            "raidz",
            "tank/a@b",
            "tank/a#b",
            "tank/a\n",
            "tank/ä",
            "tank/%recv",
            "tank/a\0",
        ] {
            let refused = name.parse::<Dataset>().unwrap_err().to_string();
            assert!(refused.contains("is no name of a dataset: "), "{refused}");
        }
        for name in ["tank", "tank@", "@a", "tank@a@b", "tank@a/b", "tank@a#b", "tank@a,b", "tank@%"] {
            assert!(name.parse::<Snapshot>().is_err(), "{name}");
        }
        for tag in ["", "-r", ".send-1", "a\tb", "a\n"] {
            assert!(tag.parse::<HoldTag>().is_err(), "{tag}");
        }
        for property in ["", "-o", "Upper", "a=b", "a,b", "a b"] {
            assert!(property.parse::<PropertyName>().is_err(), "{property}");
        }
    }

    #[test]
    fn lengths_and_depths_are_those_of_zfs() {
        let name = |bytes: usize| format!("tank/{}", "a".repeat(bytes - 5));
        assert!(name(255).parse::<Dataset>().is_ok());
        assert!(name(256).parse::<Dataset>().is_err());
        assert!("p".repeat(239).parse::<Pool>().is_ok());
        assert!("p".repeat(240).parse::<Pool>().is_err());
        assert!(format!("t{}", "/a".repeat(49)).parse::<Dataset>().is_ok());
        assert!(format!("t{}", "/a".repeat(50)).parse::<Dataset>().is_err());
        assert!(name(254).parse::<Dataset>().unwrap().snapshot("a").is_err());
    }

    proptest! {
        #[test]
        fn no_name_is_an_option_or_more_than_one_argument(text in "\\PC{0,40}|[-a-z@#/,=% .:\t\n]{0,24}") {
            if let Ok(d) = text.parse::<Dataset>() {
                prop_assert!(!d.as_str().starts_with('-') && !d.as_str().contains(['@', '#', ',', '=', '%', '\n', '\t']));
                prop_assert_eq!(d.as_str(), &text);
                prop_assert_eq!(d.pool().root().contains(&d), d.parent().is_some());
            }
            if let Ok(s) = text.parse::<Snapshot>() {
                let again = s.dataset().snapshot(s.name()).unwrap();
                prop_assert_eq!(again.as_str(), &text);
            }
        }
    }
}
