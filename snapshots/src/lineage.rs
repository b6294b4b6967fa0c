//! Whether a node's data is what this host left: found by marks in the data that are compared with the record, which lies outside of it (STORE 21).
//!
//! A dataset that is set back by a restore is known to be so; one that somebody has rolled back, or received anew, behind the node's back is not, and its ids repeat with
//! other content. So each part of a node holds a random mark, drawn anew when an agent opens the node, when it closes it and after each take, and the record knows the last
//! one. A part with another mark is of another life. Then, and at each restore and undo, a new *lineage* is drawn: what was noted under the old one (the cursors of
//! replication edges) counts no more.
//!
//! What is set back to a snapshot that somebody else has made since the last mark is not found.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Edge, Keeper, Result, restore::random_id};

/// What a comparison has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Parts that are of another life than the record knows.
    pub strangers: Vec<String>,
    /// Whether all parts are: then they fit together.
    pub is_all: bool,
}

impl Keeper {
    /// The node's lineage; empty before the first comparison.
    pub fn lineage(&self) -> &str {
        &self.record.lineage
    }

    /// Compares the marks that were found in the parts of a node with the record, and draws a new lineage where one of them is of another life. Parts that the record
    /// doesn't know say nothing.
    pub fn meet(&mut self, found: &BTreeMap<String, Option<String>>) -> Result<Met> {
        let is_stranger = |(part, mark): (&String, &Option<String>)| {
            let known = self.record.lives.get(part)?;
            (!mark.as_ref().is_some_and(|mark| known.contains(mark))).then(|| part.clone())
        };
        let strangers: Vec<String> = found.iter().filter_map(is_stranger).collect();
        let is_all = strangers.len() == found.len();
        if !strangers.is_empty() || self.record.lineage.is_empty() {
            let lineage = new_lineage()?;
            self.write(|record| record.lineage = lineage)?;
        }
        Ok(Met { strangers, is_all })
    }

    /// Draws a new mark and has it written into each part. Killed anywhere, what is found later is the old or the new one, and the record knows both.
    pub fn mark(&mut self, parts: &[String], mut write: impl FnMut(&str, &str) -> bool) -> Result<()> {
        let mark = new_lineage()?;
        self.write(|record| {
            record.lives.retain(|part, _| parts.contains(part));
            for part in parts {
                // A part without marks yet: none is one that it may have.
                record.lives.entry(part.clone()).or_default().insert(mark.clone());
            }
        })?;
        let written: Vec<&String> = parts.iter().filter(|part| write(part, &mark)).collect();
        self.write(|record| {
            for part in written {
                record.lives.insert(part.clone(), BTreeSet::from([mark.clone()]));
            }
        })
    }

    /// What a replication target has reported to this life of the node; none where it was to another, whose ids mean something else here. The snapshots that it has are
    /// kept for it all the same: they are known by their guids.
    pub fn cursor(&self, edge: &str) -> Option<&Edge> {
        self.record.edges.iter().find(|known| known.name == edge && known.lineage == self.record.lineage)
    }
}

/// A random lineage or mark.
pub(crate) fn new_lineage() -> Result<String> {
    Ok(random_id()? + &random_id()?)
}
