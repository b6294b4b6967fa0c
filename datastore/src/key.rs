//! Keys of go-datastore v0.9.2: slash-separated, cleaned, absolute.

use std::fmt;

use basalt_blockstore::{Error, ErrorKind, Multihash, Result};

/// Longest text that is looked at as a key, in bytes. What a store keeps is bounded by its `key_bytes_max`, and that is far below.
pub const KEY_BYTES_MAX: usize = 65_535;

/// Longest part of an error message that quotes a key, in characters.
const QUOTED_CHARS_MAX: usize = 120;

/// A clean key: begins with `/`, has no empty, `.` or `..` part and no trailing slash; `/` alone is the root. Case matters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(String);

impl Key {
    /// Cleans as Go's `path.Clean` does after a leading slash is added; `InvalidKey` only for what no store can keep (longer than the limit, NUL).
    pub fn new(text: &str) -> Result<Key> {
        let refuse = |why: &str| Err(Error::new(ErrorKind::InvalidKey, format!("key '{}' {why}", quoted(text))));
        if text.len() > KEY_BYTES_MAX {
            return refuse(&format!("has {} bytes, more than the {KEY_BYTES_MAX} that a key may have", text.len()));
        }
        if text.contains('\0') {
            return refuse("has a NUL character in it");
        }
        let mut clean = String::with_capacity(text.len() + 1);
        for part in text.split('/') {
            match part {
                "" | "." => {}
                // Above the root is the root.
                ".." => clean.truncate(clean.rfind('/').unwrap_or(0)),
                part => {
                    clean.push('/');
                    clean.push_str(part);
                }
            }
        }
        if clean.is_empty() {
            clean.push('/');
        }
        Ok(Key(clean))
    }

    /// The key of a block.
    pub fn of_block(key: &Multihash) -> Key {
        Key(format!("{BLOCKS}/{key}"))
    }

    /// A key that a store gives back; it was clean when it was stored.
    pub(crate) fn stored(bytes: Vec<u8>) -> Result<Key> {
        String::from_utf8(bytes).map(Key).map_err(|err| {
            let text = String::from_utf8_lossy(err.as_bytes()).into_owned();
            Error::new(ErrorKind::Corrupt, format!("the keyspace holds a key that is no text: '{}'", quoted(&text)))
        })
    }

    /// The block that this key names; `None` for a key of the keyspace, as is one under `/blocks` that is no multihash in the form that
    /// Kubo writes.
    pub(crate) fn block(&self) -> Option<Multihash> {
        Multihash::parse_base32(self.0.strip_prefix(BLOCKS)?.strip_prefix('/')?).ok()
    }

    /// The text, with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quoted(&self.0))
    }
}

/// Where blocks are.
pub(crate) const BLOCKS: &str = "/blocks";

/// A key as an error message shows it: whole, or its beginning.
fn quoted(text: &str) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_as_go_does() {
        for (text, clean) in [
            ("", "/"),
            ("/", "/"),
            ("//", "/"),
            (".", "/"),
            ("..", "/"),
            ("/./", "/"),
            ("/.././/", "/"),
            ("/../a", "/a"),
            ("a", "/a"),
            ("a/b/", "/a/b"),
            ("/a//b", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/a/../..", "/"),
            ("/a/../../b", "/b"),
            ("/prefix/../", "/"),
            ("/...", "/..."),
            ("/a/.b", "/a/.b"),
            ("/a/b..", "/a/b.."),
            ("/A/a", "/A/a"),
            ("/a:b/c", "/a:b/c"),
            ("/ ", "/ "),
            ("/größe/日本/", "/größe/日本"),
            ("/\u{1}\n", "/\u{1}\n"),
        ] {
            assert_eq!(Key::new(text).unwrap().as_str(), clean, "{text:?}");
        }
    }

    #[test]
    fn refuses_nul_and_what_is_too_long_by_name() {
        let err = Key::new("/a\0b").unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidKey);
        assert!(err.to_string().contains("NUL"), "{err}");
        let longest = "é".repeat(KEY_BYTES_MAX / 2);
        assert_eq!(Key::new(&longest).unwrap().as_str().len(), longest.len() + 1);
        let err = Key::new(&format!("{longest}aa")).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidKey);
        assert!(err.to_string().contains("65535"), "{err}");
        assert!(err.to_string().len() < 500, "the whole key must not be in the message");
    }

    #[test]
    fn only_what_kubo_writes_is_a_block() {
        let block = Multihash::parse(&[&[0x12, 32][..], &[9; 32]].concat()).unwrap();
        assert_eq!(Key::of_block(&block).block(), Some(block.clone()));
        let name = block.to_base32();
        for other in [
            format!("/blocks/{}", name.to_lowercase()),
            format!("/blocks/{name}/x"),
            format!("/blocks/x/{name}"),
            format!("/blocksx/{name}"),
            format!("/{name}"),
            format!("/blocks/{name}A"),
            "/blocks/AAAQ".to_string(),
            "/blocks".to_string(),
            "/".to_string(),
        ] {
            assert_eq!(Key::new(&other).unwrap().block(), None, "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn cleaning_is_idempotent_and_clean(text in "[/.ab]{0,20}") {
            let clean = Key::new(&text).unwrap();
            proptest::prop_assert_eq!(&Key::new(clean.as_str()).unwrap(), &clean);
            if clean.as_str() != "/" {
                proptest::prop_assert!(clean.as_str().starts_with('/'));
                let parts: Vec<&str> = clean.as_str()[1..].split('/').collect();
                proptest::prop_assert!(parts.iter().all(|part| !["", ".", ".."].contains(part)));
            }
        }
    }
}
