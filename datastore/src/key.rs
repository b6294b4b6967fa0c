//! Keys of go-datastore v0.9.2: slash-separated, cleaned, absolute.

/// A clean key: begins with `/`, has no empty, `.` or `..` part and no trailing slash; `/` alone is the root. Case matters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(String);

impl Key {
    /// Cleans as Go's `path.Clean` does after a leading slash is added; `InvalidKey` only for what no store can keep (longer than the limit, NUL).
    pub fn new(text: &str) -> basalt_blockstore::Result<Key> {
        let _ = text;
        todo!()
    }

    /// The text, with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
