//! What differs between ScyllaDB and Apache Cassandra. All that is asked of either without a look at this speaks plain CQL.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

/// Which database answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// ScyllaDB.
    Scylla,
    /// Apache Cassandra, 4.1 or later: the stand-in of tests.
    Cassandra,
}

impl Dialect {
    /// How the tables that are overwritten and deleted from are compacted.
    pub(super) fn compaction(self) -> &'static str {
        match self {
            Dialect::Scylla => "{'class': 'IncrementalCompactionStrategy'}",
            Dialect::Cassandra => "{'class': 'SizeTieredCompactionStrategy'}",
        }
    }

    /// At the end of a query that reads a whole table and should not sweep the cache.
    pub(super) fn bypass_cache(self) -> &'static str {
        match self {
            Dialect::Scylla => " BYPASS CACHE",
            Dialect::Cassandra => "",
        }
    }

    /// Option of CREATE TABLE that gives the table an id that follows from its name. In Cassandra two nodes that create a table at the same time
    /// else make two of it; ScyllaDB puts schema changes in one order by itself.
    pub(super) fn table_id(self, keyspace: &str, table: &str) -> String {
        match self {
            Dialect::Scylla => String::new(),
            Dialect::Cassandra => {
                let mut hasher = SipHasher13::new();
                hasher.write(format!("basalt {keyspace} {table}").as_bytes());
                let id = format!("{:032x}", hasher.finish128().as_u128());
                let (a, rest) = id.split_at(8);
                let (b, rest) = rest.split_at(4);
                let (c, rest) = rest.split_at(4);
                let (d, e) = rest.split_at(4);
                format!(" AND id = {a}-{b}-{c}-{d}-{e}")
            }
        }
    }
}
