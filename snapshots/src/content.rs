//! What a dataset holds: the classes that a policy may keep for longer than whole sets.

use std::{collections::BTreeSet, fmt};

/// What a dataset holds, where it is one thing alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// Shards: what takes the space.
    Blocks,
    /// The keyspace and the node's own folder: pins, names, the MFS root.
    Metadata,
    /// Kubo's repo folder: config and keystore.
    Repo,
}

impl Content {
    /// All of them.
    pub const ALL: [Content; 3] = [Content::Blocks, Content::Metadata, Content::Repo];

    fn bit(self) -> u8 {
        match self {
            Content::Blocks => 1,
            Content::Metadata => 2,
            Content::Repo => 4,
        }
    }

    /// What a dataset is that holds these; none where a part of it can't be kept without another that takes space.
    pub fn of(held: &BTreeSet<Content>) -> Option<Content> {
        match held.iter().copied().collect::<Vec<_>>()[..] {
            [one] => Some(one),
            [Content::Metadata, Content::Repo] => Some(Content::Metadata),
            _ => None,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Content::Blocks => "blocks",
            Content::Metadata => "metadata",
            Content::Repo => "repo",
        })
    }
}

/// Some of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents(u8);

impl Contents {
    /// With one more.
    #[must_use]
    pub fn and(self, one: Content) -> Contents {
        Contents(self.0 | one.bit())
    }

    /// Whether one is among them.
    pub fn has(self, one: Content) -> bool {
        self.0 & one.bit() != 0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What of a node's datasets is there, given what each holds and whether its snapshot is there: none where a class is there in part, or a dataset that is of no one
    /// class is. So all that is left of a set that was thinned has a name, and what has none is a set that was broken.
    pub fn left(datasets: impl Iterator<Item = (Option<Content>, bool)>) -> Option<Contents> {
        let (mut there, mut missing) = (Contents::default(), Contents::default());
        for (content, is_there) in datasets {
            match (content, is_there) {
                (Some(content), true) => there = there.and(content),
                (Some(content), false) => missing = missing.and(content),
                (None, true) => return None,
                (None, false) => {}
            }
        }
        (!there.is_empty() && there.0 & missing.0 == 0).then_some(there)
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> =
            Content::ALL.into_iter().filter(|one| self.has(*one)).map(|one| one.to_string()).collect();
        f.write_str(&names.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_has_a_name_only_where_each_class_is_all_there_or_all_gone() {
        use Content::{Blocks, Metadata, Repo};
        let left = |of: &[(Option<Content>, bool)]| Contents::left(of.iter().copied()).map(|left| left.to_string());
        let (b, m, r) = (Some(Blocks), Some(Metadata), Some(Repo));
        assert_eq!(left(&[(m, true), (b, false), (b, false), (r, true)]).as_deref(), Some("metadata and repo"));
        assert_eq!(left(&[(m, true), (b, true)]).as_deref(), Some("blocks and metadata"));
        assert_eq!(left(&[(m, true), (b, true), (b, false)]), None, "a shard is missing");
        assert_eq!(left(&[(None, true), (m, true), (b, false)]), None);
        assert_eq!(left(&[(None, false), (r, true)]).as_deref(), Some("repo"));
        assert_eq!(left(&[(m, false)]), None);
    }

    #[test]
    fn a_dataset_with_blocks_and_more_is_of_no_class() {
        let of = |held: &[Content]| Content::of(&held.iter().copied().collect());
        assert_eq!(of(&[Content::Metadata, Content::Repo]), Some(Content::Metadata));
        assert_eq!(of(&[Content::Blocks]), Some(Content::Blocks));
        assert_eq!(of(&[Content::Blocks, Content::Metadata]), None);
        assert_eq!(of(&[]), None);
    }
}
