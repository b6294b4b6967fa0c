//! Queries with go-datastore's semantics: prefix, then filters, orders, offset, limit.

use basalt_blockstore::Result;

use crate::Key;

/// How two keys or values compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
}

/// What an entry must satisfy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The key compares to this text (compared as bytes, not cleaned).
    Key(Compare, String),
    /// The value compares to these bytes.
    Value(Compare, Vec<u8>),
    /// The key starts with this text, byte by byte.
    KeyPrefix(String),
}

/// What decides the order of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By key, bytes ascending.
    Key,
    /// By key, descending.
    KeyDescending,
    /// By value, bytes ascending.
    Value,
    /// By value, descending.
    ValueDescending,
}

/// A query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Strict children of this key; empty and `/` are everything. Cleaned here, like a key.
    pub prefix: String,
    /// Applied in order.
    pub filters: Vec<Filter>,
    /// The first decides, ties go to the next. Empty: key order.
    pub orders: Vec<Order>,
    /// Most entries; 0 for all.
    pub limit: u64,
    /// Entries to skip.
    pub offset: u64,
    /// No values.
    pub keys_only: bool,
    /// Sizes even for `keys_only`.
    pub returns_sizes: bool,
    /// Only keys above this one (resume). For a query without orders, offset and limit; else `InvalidValue`.
    pub after: Option<Key>,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value; empty for `keys_only`.
    pub value: Vec<u8>,
    /// Size in bytes; always known here.
    pub size: u64,
    /// When it is gone by itself, in milliseconds since the Unix epoch; 0 for never.
    pub expires_unix_ms: u64,
}

/// A query under way. Holds no lock and no iterator between pages.
#[derive(Debug)]
pub struct QueryCursor<'a> {
    _datastore: std::marker::PhantomData<&'a ()>,
}

impl QueryCursor<'_> {
    /// The next entries: at most `entries_max`, and about `bytes_max` of values; empty only at the end.
    pub fn next_page(&mut self, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>> {
        let _ = (entries_max, bytes_max);
        todo!()
    }
}
