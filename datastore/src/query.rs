//! Queries with go-datastore's semantics: prefix, then filters, orders, offset, limit.
//!
//! A query without orders streams in the stores' own order: the keys of the keyspace by their text, then blocks by their multihash. (That is no order of
//! key text: base32 writes 26 to 31 as '2' to '7', which sort before the letters.) The last key seen says where to go on, in either run.
//! An order is streamed where the stores run in it, and else sorted in memory, up to a limit. Values are read page by page after
//! the sort, and not at all where nothing asks for them.

use std::{borrow::Cow, cmp::Ordering, sync::atomic::Ordering as AtomicOrdering};

use basalt_blockstore::{Error, ErrorKind, Multihash, Result, store::Found};
use basalt_sharding::Walk;

use crate::{Key, Stores, key::BLOCKS};

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
    /// The value compares to these bytes; also where the query asks for keys only.
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
    /// The first decides, ties go to the next, then by key. Empty: the stores' own order, which can be resumed by `after`.
    pub orders: Vec<Order>,
    /// Most entries; 0 for all.
    pub limit: u64,
    /// Entries to skip.
    pub offset: u64,
    /// No values.
    pub keys_only: bool,
    /// Sizes even for `keys_only`.
    pub returns_sizes: bool,
    /// Only keys behind this one in the stores' own order (resume). For a query without orders, offset and limit; else `InvalidValue`.
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
    stores: &'a Stores,
    query: Query,
    source: Source<'a>,
    /// Entries still to skip.
    skip: u64,
    /// Entries still to give; `None` without a limit.
    left: Option<u64>,
}

/// Where candidates come from.
#[derive(Debug)]
enum Source<'a> {
    /// The stores, in their own order: filters are still to be applied.
    Stream(Stream<'a>),
    /// A sort that has not been done yet, so that making a query is cheap.
    Unsorted(Stream<'a>),
    /// What a sort left, filtered.
    Sorted(std::vec::IntoIter<Candidate>),
}

/// Keys that a page of the keyspace has at first, and at most.
const PAGE_FIRST: usize = 32;
const PAGE_MAX: usize = 1024;

/// A key that may become an entry.
#[derive(Debug)]
struct Candidate {
    place: Place,
    size: u64,
    expires_unix_ms: u64,
    /// Once it has been read.
    value: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Place {
    Block(Multihash),
    Keyspace(Key),
}

impl Candidate {
    fn key(&self) -> Cow<'_, Key> {
        match &self.place {
            Place::Block(key) => Cow::Owned(Key::of_block(key)),
            Place::Keyspace(key) => Cow::Borrowed(key),
        }
    }

    /// Reads the value, unless it was; `false` where the key has gone meanwhile.
    fn read(&mut self, stores: &Stores) -> Result<bool> {
        if self.value.is_some() {
            return Ok(true);
        }
        let mut value = Vec::new();
        let outcome = match &self.place {
            Place::Block(key) => stores.shards.get(key, &mut value),
            Place::Keyspace(key) => stores.keyspace.get(key, &mut value).map(|_| ()),
        };
        match outcome {
            Err(err) if err.is_not_found() => return Ok(false),
            outcome => outcome.map_err(|err| err.context(format_args!("query: read {}", self.key())))?,
        }
        self.size = value.len() as u64;
        self.value = Some(value);
        Ok(true)
    }
}

/// The keys beneath a prefix in the stores' own order: those of the keyspace by text, then blocks by multihash.
#[derive(Debug)]
struct Stream<'a> {
    stores: &'a Stores,
    /// What keys of the keyspace begin with.
    prefix: Vec<u8>,
    page: std::vec::IntoIter<Found>,
    page_keys: usize,
    /// Where the run of the keyspace goes on; `None` when it has ended.
    keyspace: Option<After>,
    /// `None` where there are no blocks beneath the prefix.
    blocks: Option<Walk<'a>>,
}

/// The last key that a run has given; nothing at its beginning.
type After = Option<Vec<u8>>;

impl<'a> Stream<'a> {
    fn new(stores: &'a Stores, prefix: &Key, after: Option<&Key>) -> Stream<'a> {
        let has_blocks = ["/", BLOCKS].contains(&prefix.as_str());
        let after_block = after.and_then(Key::block);
        let keyspace = match (after, &after_block) {
            // The run of the keyspace is before that of the blocks.
            (_, Some(_)) => None,
            (after, None) => Some(after.map(|key| key.as_str().as_bytes().to_vec())),
        };
        // Strict children; under the root that is everything.
        let text = if prefix.as_str() == "/" { String::new() } else { format!("{}/", prefix.as_str()) };
        Stream {
            stores,
            prefix: text.into_bytes(),
            page: Vec::new().into_iter(),
            page_keys: PAGE_FIRST,
            keyspace,
            blocks: has_blocks.then(|| stores.shards.walk(after_block.as_ref())),
        }
    }

    fn next(&mut self) -> Result<Option<Candidate>> {
        loop {
            if let Some(found) = self.page.next() {
                return Ok(Some(Candidate {
                    place: Place::Keyspace(Key::stored(found.key)?),
                    size: u64::from(found.meta.size),
                    expires_unix_ms: found.meta.expires_unix_ms,
                    value: None,
                }));
            }
            let Some(after) = &self.keyspace else { break };
            let page = self.stores.keyspace.store().scan(&self.prefix, after.as_deref(), self.page_keys, false)?;
            self.keyspace = match page.last() {
                Some(last) if page.len() == self.page_keys => Some(Some(last.key.clone())),
                _ => None,
            };
            self.page = page.into_iter();
            self.page_keys = (self.page_keys * 2).min(PAGE_MAX);
        }
        let Some(blocks) = &mut self.blocks else { return Ok(None) };
        let block = blocks.next_block()?;
        Ok(block.map(|(key, size)| Candidate {
            place: Place::Block(key),
            size: u64::from(size),
            expires_unix_ms: 0,
            value: None,
        }))
    }
}

impl<'a> QueryCursor<'a> {
    pub(crate) fn new(stores: &'a Stores, mut query: Query) -> Result<QueryCursor<'a>> {
        let prefix = Key::new(&query.prefix)?;
        if query.after.is_some() && (!query.orders.is_empty() || query.offset > 0 || query.limit > 0) {
            let message = "a query resumes after a key only without orders, offset and limit: \
                           their place is not known from the key alone";
            return Err(Error::new(ErrorKind::InvalidValue, message));
        }
        // Keys are unique, so nothing behind an order by key decides anything.
        if let Some(by_key) = query.orders.iter().position(|order| matches!(order, Order::Key | Order::KeyDescending)) {
            query.orders.truncate(by_key + 1);
        }
        let stream = Stream::new(stores, &prefix, query.after.as_ref());
        // The keyspace runs in the order of its keys' text; blocks do not, for base32 puts '2' to '7' behind the letters.
        let runs_by_key = query.orders == [Order::Key] && stream.blocks.is_none();
        let source =
            if query.orders.is_empty() || runs_by_key { Source::Stream(stream) } else { Source::Unsorted(stream) };
        let left = (query.limit > 0).then_some(query.limit);
        Ok(QueryCursor { stores, source, skip: query.offset, left, query })
    }

    /// The next entries: at most `entries_max` (one at least), and about `bytes_max` of keys and values; empty only at the end. After an
    /// error the query is over: what it gave so far is no complete answer.
    pub fn next_page(&mut self, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>> {
        self.stores.check_open()?;
        if let Source::Unsorted(stream) = &mut self.source {
            let sorted = sort(self.stores, &self.query, stream)?;
            self.source = Source::Sorted(sorted.into_iter());
        }
        let mut page = Vec::new();
        let mut bytes = 0;
        while page.len() < entries_max.max(1) && (page.is_empty() || bytes < bytes_max) && self.left != Some(0) {
            let candidate = match &mut self.source {
                Source::Stream(stream) => {
                    let Some(mut candidate) = stream.next()? else { break };
                    if !matches(self.stores, &self.query.filters, &mut candidate)? {
                        continue;
                    }
                    candidate
                }
                Source::Unsorted(_) => break,
                Source::Sorted(sorted) => match sorted.next() {
                    Some(candidate) => candidate,
                    None => break,
                },
            };
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            let Some(entry) = self.entry(candidate)? else { continue };
            bytes += entry.key.as_str().len() + entry.value.len();
            page.push(entry);
            self.left = self.left.map(|left| left - 1);
        }
        Ok(page)
    }

    /// The entry of a candidate; `None` where it has gone meanwhile.
    fn entry(&self, mut candidate: Candidate) -> Result<Option<Entry>> {
        if self.query.keys_only {
            candidate.value = None;
        } else if !candidate.read(self.stores)? {
            return Ok(None);
        }
        Ok(Some(Entry {
            key: candidate.key().into_owned(),
            value: candidate.value.unwrap_or_default(),
            size: candidate.size,
            expires_unix_ms: candidate.expires_unix_ms,
        }))
    }
}

/// Whether a candidate satisfies all filters. Those on keys are asked first: they read nothing.
fn matches(stores: &Stores, filters: &[Filter], candidate: &mut Candidate) -> Result<bool> {
    if filters.is_empty() {
        return Ok(true);
    }
    let key = candidate.key();
    let key_matches = filters.iter().all(|filter| match filter {
        Filter::Key(compare, text) => compare.holds(key.as_str().as_bytes().cmp(text.as_bytes())),
        Filter::KeyPrefix(text) => key.as_str().starts_with(text.as_str()),
        Filter::Value(..) => true,
    });
    if !key_matches {
        return Ok(false);
    }
    for filter in filters {
        if let Filter::Value(compare, wanted) = filter {
            if !candidate.read(stores)? {
                return Ok(false);
            }
            if !compare.holds(candidate.value.as_deref().unwrap_or_default().cmp(wanted.as_slice())) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

impl Compare {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Compare::Equal => ordering.is_eq(),
            Compare::NotEqual => ordering.is_ne(),
            Compare::Greater => ordering.is_gt(),
            Compare::GreaterOrEqual => ordering.is_ge(),
            Compare::Less => ordering.is_lt(),
            Compare::LessOrEqual => ordering.is_le(),
        }
    }
}

/// What an entry that is sorted takes in memory beside its value.
const ENTRY_BYTES: usize = 128;
/// Queries that sort may hold so many times what one of them may, all together.
const SORTS: usize = 4;

/// Memory that a query sorts in.
struct Sorting<'a> {
    stores: &'a Stores,
    bytes: usize,
}

impl Sorting<'_> {
    fn now(&mut self, bytes: usize) -> Result<()> {
        let before = self.stores.sorting_bytes.fetch_add(bytes, AtomicOrdering::Relaxed);
        self.stores.sorting_bytes.fetch_sub(self.bytes, AtomicOrdering::Relaxed);
        let all = before.saturating_add(bytes).saturating_sub(self.bytes);
        self.bytes = bytes;
        let limit = self.stores.options.sort_bytes_max.saturating_mul(SORTS);
        if all > limit && all > bytes {
            let message = format!(
                "queries sort {all} bytes at a time, more than the {limit} that {SORTS} times sort_bytes_max allows: ask again when others are done"
            );
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(())
    }
}

impl Drop for Sorting<'_> {
    fn drop(&mut self) {
        self.stores.sorting_bytes.fetch_sub(self.bytes, AtomicOrdering::Relaxed);
    }
}

/// Collects what satisfies the filters, in the query's order. Values are held only where an order asks for them; with a limit, no more than twice
/// what the answer needs is held.
fn sort(stores: &Stores, query: &Query, stream: &mut Stream<'_>) -> Result<Vec<Candidate>> {
    let by_value = query.orders.iter().any(|order| matches!(order, Order::Value | Order::ValueDescending));
    let needed = if query.limit > 0 {
        usize::try_from(query.offset.saturating_add(query.limit)).unwrap_or(usize::MAX)
    } else {
        usize::MAX
    };
    let by_orders = |a: &Candidate, b: &Candidate| compare(&query.orders, a, b);
    let (mut held, mut value_bytes) = (Vec::new(), 0usize);
    let mut sorting = Sorting { stores, bytes: 0 };
    while let Some(mut candidate) = stream.next()? {
        if !matches(stores, &query.filters, &mut candidate)? || (by_value && !candidate.read(stores)?) {
            continue;
        }
        if !by_value {
            candidate.value = None;
        }
        value_bytes += candidate.value.as_ref().map_or(0, Vec::len);
        held.push(candidate);
        if held.len() / 2 >= needed {
            held.sort_unstable_by(by_orders);
            held.truncate(needed);
            value_bytes = held.iter().filter_map(|candidate| candidate.value.as_ref()).map(Vec::len).sum();
        }
        let limits = &stores.options;
        if held.len() > limits.sort_entries_max || value_bytes > limits.sort_bytes_max {
            let (what, name) = if held.len() > limits.sort_entries_max {
                (format!("{} entries", limits.sort_entries_max), "sort_entries_max")
            } else {
                (format!("{} bytes of values", limits.sort_bytes_max), "sort_bytes_max")
            };
            let message = format!(
                "the query under '{}' sorts more than {what} ({name}); give it a narrower prefix or a limit, or no order, or raise {name}",
                query.prefix
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        sorting.now(value_bytes.saturating_add(held.len().saturating_mul(ENTRY_BYTES)))?;
    }
    held.sort_unstable_by(by_orders);
    held.truncate(needed);
    Ok(held)
}

/// The first order that tells two entries apart decides; ties go by key, as in go-datastore's `query.Less`.
fn compare(orders: &[Order], a: &Candidate, b: &Candidate) -> Ordering {
    let by_key = || compare_keys(&a.place, &b.place);
    let decide = |order: &Order| match order {
        Order::Key => by_key(),
        Order::KeyDescending => by_key().reverse(),
        Order::Value => a.value.cmp(&b.value),
        Order::ValueDescending => b.value.cmp(&a.value),
    };
    orders.iter().map(decide).find(|ordering| ordering.is_ne()).unwrap_or_else(by_key)
}

/// By text. Blocks are held by multihash, which is half as long.
fn compare_keys(a: &Place, b: &Place) -> Ordering {
    match (a, b) {
        (Place::Keyspace(a), Place::Keyspace(b)) => a.cmp(b),
        (Place::Keyspace(a), Place::Block(b)) => a.cmp(&Key::of_block(b)),
        (Place::Block(a), Place::Keyspace(b)) => Key::of_block(a).cmp(b),
        (Place::Block(a), Place::Block(b)) => compare_base32(a.as_bytes(), b.as_bytes()),
    }
}

/// Compares the base32 texts of two byte strings without making them: by the first character that differs. In text the digits '2' to '7', which stand
/// for 26 to 31, sort before the letters.
fn compare_base32(a: &[u8], b: &[u8]) -> Ordering {
    let character = |bytes: &[u8], bit: usize| -> Option<u16> {
        let at = |byte: usize| bytes.get(byte).copied();
        // The last character is filled up with zeros.
        let two = u16::from_be_bytes([at(bit / 8)?, at(bit / 8 + 1).unwrap_or(0)]);
        let value = (two >> (11 - bit % 8)) & 31;
        Some((value + 6) % 32)
    };
    let same_bytes = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let mut bit = same_bytes * 8 / 5 * 5;
    loop {
        match (character(a, bit), character(b, bit)) {
            (None, None) => return Ordering::Equal,
            (a, b) if a != b => return a.cmp(&b),
            _ => bit += 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn base32_compares_as_its_text(a in prop::collection::vec(any::<u8>(), 0..12), cut in 0usize..12, b in prop::collection::vec(any::<u8>(), 0..6)) {
            let b = [&a[..cut.min(a.len())], &b].concat();
            let text = |bytes: &[u8]| data_encoding::BASE32_NOPAD.encode(bytes);
            prop_assert_eq!(compare_base32(&a, &b), text(&a).cmp(&text(&b)));
        }
    }
}
