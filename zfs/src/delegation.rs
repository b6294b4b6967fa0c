//! Who may do what without being root: `zfs allow`, read, and what is missing.
//!
//! On Linux mounting stays root's, whatever is allowed, and so does what mounts on the way: creating a dataset that is mounted, destroying or
//! renaming one that is. `docs/decisions` says who does that.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Dataset, Operation, PropertyName};

/// Whom a permission is given to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A user by name.
    User(String),
    /// A group by name.
    Group(String),
    /// Everybody.
    Everyone,
    /// Who creates a dataset below, on that dataset.
    Creator,
}

/// Where a permission holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Where {
    /// On the dataset it is set on.
    Local,
    /// On what lies in it.
    Below,
    /// On both.
    Both,
}

/// One line of `zfs allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The dataset it is set on.
    pub on: Dataset,
    /// Whom for.
    pub who: Who,
    /// Where.
    pub place: Where,
    /// What, and names of sets (`@name`).
    pub permissions: BTreeSet<String>,
}

/// What `zfs allow` says of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delegation {
    /// All grants, on it and above it.
    pub grants: Vec<Grant>,
    /// Sets of permissions by name (`@name`).
    pub sets: BTreeMap<String, BTreeSet<String>>,
}

impl Delegation {
    /// What a user, in these groups, may do on `dataset`; sets are resolved.
    pub fn allowed(&self, dataset: &Dataset, user: &str, groups: &[String]) -> BTreeSet<String> {
        let mut allowed = BTreeSet::new();
        for grant in &self.grants {
            let here = match grant.place {
                Where::Local => grant.on == *dataset,
                Where::Below => grant.on.contains(dataset),
                Where::Both => grant.on == *dataset || grant.on.contains(dataset),
            };
            let them = match &grant.who {
                Who::User(name) => name == user,
                Who::Group(name) => groups.contains(name),
                Who::Everyone => true,
                // Became a grant to a user when the dataset was made.
                Who::Creator => false,
            };
            if here && them {
                self.resolve(&grant.permissions, &mut allowed);
            }
        }
        allowed
    }

    fn resolve(&self, permissions: &BTreeSet<String>, into: &mut BTreeSet<String>) {
        for permission in permissions {
            // A set may name sets, itself too.
            if into.insert(permission.clone())
                && let Some(set) = self.sets.get(permission)
            {
                self.resolve(set, into);
            }
        }
    }

    /// What is still needed for `operations` and for setting `properties`, in the words of `zfs allow`, in order.
    pub fn missing(
        &self,
        dataset: &Dataset,
        user: &str,
        groups: &[String],
        operations: &[Operation],
        properties: &[PropertyName],
    ) -> Vec<String> {
        let allowed = self.allowed(dataset, user, groups);
        let needed = operations.iter().flat_map(|o| o.grants()).map(ToString::to_string);
        let properties = properties.iter().map(|p| if p.is_user() { "userprop".to_owned() } else { p.to_string() });
        let needed: BTreeSet<String> = needed.chain(properties).collect();
        needed.into_iter().filter(|p| !allowed.contains(p)).collect()
    }
}

/// The command that grants what is missing, for a person to run.
pub fn grant_command(dataset: &Dataset, user: &str, missing: &[String]) -> String {
    format!("zfs allow -u {user} {} {dataset}", missing.join(","))
}

/// Reads `zfs allow DATASET`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Delegation, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8 at byte {}", e.valid_up_to()))?;
    enum Section {
        Sets,
        Creator,
        Of(Where),
    }
    let mut delegation = Delegation::default();
    let (mut on, mut section) = (None, None);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let odd = || format!("no line of 'zfs allow': {line:?}");
        if let Some(name) = line.strip_prefix("---- Permissions on ") {
            // The dashes that fill the line are of fixed number, none for a long name; a name may end with one, but not with a space and dashes.
            let name = name.trim_end_matches('-').trim_end();
            on = Some(name.parse::<Dataset>().map_err(|e| e.to_string())?);
            section = None;
            continue;
        }
        let Some(body) = line.strip_prefix('\t') else {
            section = Some(match line {
                "Permission sets:" => Section::Sets,
                "Create time permissions:" => Section::Creator,
                "Local permissions:" => Section::Of(Where::Local),
                "Descendent permissions:" => Section::Of(Where::Below),
                "Local+Descendent permissions:" => Section::Of(Where::Both),
                _ => return Err(odd()),
            });
            continue;
        };
        let on = on.clone().ok_or_else(odd)?;
        let (who, permissions) = body.rsplit_once(' ').unwrap_or(("", body));
        let permissions: BTreeSet<String> = permissions.split(',').map(str::to_owned).collect();
        let (who, place) = match (section.as_ref().ok_or_else(odd)?, who) {
            (Section::Sets, set) if set.starts_with('@') => {
                delegation.sets.entry(set.to_owned()).or_default().extend(permissions);
                continue;
            }
            (Section::Creator, "") => (Who::Creator, Where::Below),
            (Section::Of(place), "everyone") => (Who::Everyone, *place),
            (Section::Of(place), who) => match who.split_once(' ') {
                Some(("user", name)) => (Who::User(name.to_owned()), *place),
                Some(("group", name)) => (Who::Group(name.to_owned()), *place),
                _ => return Err(odd()),
            },
            _ => return Err(odd()),
        };
        delegation.grants.push(Grant { on, who, place, permissions });
    }
    Ok(delegation)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn recorded(release: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/golden/{release}/allow.txt", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn grants_hold_where_zfs_says_and_sets_are_resolved() {
        for release in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap() {
            let delegation = parse(&recorded(release.unwrap().file_name().to_str().unwrap())).unwrap();
            let allowed = |dataset: &str, user: &str, groups: &[String]| {
                let all = delegation.allowed(&dataset.parse().unwrap(), user, groups);
                all.into_iter().filter(|p| !p.starts_with('@')).collect::<Vec<_>>().join(",")
            };
            assert_eq!(allowed("tank/a", "tester", &[]), "bookmark,destroy,hold,release,send,snapshot");
            assert_eq!(allowed("tank/a/child", "tester", &[]), "bookmark,hold,release,send,snapshot");
            assert_eq!(allowed("tank/a/child", "other", &["daemon".into()]), "bookmark,mount,release");
            assert_eq!(allowed("tank/b", "other", &[]), "bookmark,release");
        }
    }

    #[test]
    fn what_is_missing_is_listed_with_the_command_that_grants_it() {
        let delegation = parse(&recorded("2.3.9")).unwrap();
        let dataset = "tank/a".parse().unwrap();
        let properties = ["recordsize".parse().unwrap(), "basalt:epoch".parse().unwrap()];
        let operations = [Operation::Snapshot, Operation::Hold, Operation::Rollback];
        let missing = delegation.missing(&dataset, "tester", &[], &operations, &properties);
        assert_eq!(missing, ["mount", "recordsize", "rollback", "userprop"]);
        assert_eq!(
            grant_command(&dataset, "tester", &missing),
            "zfs allow -u tester mount,recordsize,rollback,userprop tank/a"
        );
    }

    #[test]
    fn nothing_granted_is_nothing_and_a_strange_line_is_an_error() {
        assert_eq!(parse(b""), Ok(Delegation::default()));
        assert!(parse(b"Something else:\n\tuser x snapshot\n").is_err());
        assert!(parse(b"\tuser x snapshot\n").is_err());
    }

    proptest! {
        #[test]
        fn sets_that_name_each_other_end(names in proptest::collection::vec(0u8..4, 0..12)) {
            let mut delegation = Delegation::default();
            for pair in names.chunks(2) {
                delegation.sets.entry(format!("@{}", pair[0])).or_default().insert(format!("@{}", pair[pair.len() - 1]));
            }
            delegation.grants.push(Grant { on: "tank".parse().unwrap(), who: Who::Everyone, place: Where::Both, permissions: ["@0".to_owned()].into() });
            delegation.allowed(&"tank".parse().unwrap(), "x", &[]);
        }

        #[test]
        fn no_output_makes_it_panic(text in "\\PC{0,80}|(---- Permissions on |\t|user |,|\n|Local permissions:|@){0,12}") {
            let _ = parse(text.as_bytes());
        }
    }
}
