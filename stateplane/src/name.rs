//! What things are called: parsed once, at the edge, and bounded.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD_NOCASE;

/// Longest owner, tag or pin name, in bytes: that of the Pinning Service API and of Kubo.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest peer id, in bytes.
pub const PEER_BYTES_MAX: usize = 128;
/// Tags that a pin may have.
pub const TAGS_MAX: usize = 32;
/// Longest id of an operation, in bytes.
const OPERATION_BYTES_MAX: usize = 255;
/// Longest multihash, in bytes: the 128 bytes of digest that Kubo takes, and their head.
const MULTIHASH_BYTES_MAX: usize = 128 + 12;

/// A text or bytes that name nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError {
    what: &'static str,
    shown: String,
    why: String,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is no {}: {}", self.shown, self.what, self.why)
    }
}

impl std::error::Error for NameError {}

fn refuse<T>(what: &'static str, text: &str, why: impl Into<String>) -> Result<T, NameError> {
    Err(NameError { what, shown: text.chars().take(80).flat_map(char::escape_debug).collect(), why: why.into() })
}

fn bounded(what: &'static str, text: &str, bytes_max: usize) -> Result<String, NameError> {
    if text.is_empty() {
        return refuse(what, text, "it is empty");
    }
    if text.len() > bytes_max {
        return refuse(what, text, format!("it has {} bytes, and may have {bytes_max}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return refuse(what, text, "it has control characters");
    }
    Ok(text.to_owned())
}

macro_rules! name {
    ($(#[$about:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$about])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<$name, NameError> {
                Ok($name(bounded($what, text, $max)?))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name!(
    /// Who wants a pin: a tenant, a service. At most [`NAME_BYTES_MAX`].
    Owner, "owner", NAME_BYTES_MAX
);
name!(
    /// A word that an owner finds pins by. At most [`NAME_BYTES_MAX`].
    Tag, "tag", NAME_BYTES_MAX
);
name!(
    /// What an owner calls a pin. At most [`NAME_BYTES_MAX`].
    PinName, "name of a pin", NAME_BYTES_MAX
);
name!(
    /// A Kubo, by its peer id. At most [`PEER_BYTES_MAX`].
    Peer, "peer id", PEER_BYTES_MAX
);
name!(
    /// Something that is to be done once, such as a request with its id.
    Operation, "id of an operation", OPERATION_BYTES_MAX
);

/// A multihash: code, length, digest, well formed. It is what Kubo keys blocks by; a CID's codec is not part of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Multihash(Box<[u8]>);

impl Multihash {
    /// From its bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Multihash, NameError> {
        let shown = || BASE32_NOPAD_NOCASE.encode(bytes.get(..48).unwrap_or(bytes));
        if bytes.len() > MULTIHASH_BYTES_MAX {
            return refuse("multihash", &shown(), format!("it has {} bytes", bytes.len()));
        }
        match cid::multihash::Multihash::<128>::from_bytes(bytes) {
            Ok(_) => Ok(Multihash(bytes.into())),
            Err(err) => refuse("multihash", &shown(), err.to_string()),
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Multihash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As Kubo's datastore keys have it.
        f.write_str(&data_encoding::BASE32_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Multihash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_say_why_not() {
        assert_eq!("tenant-7".parse::<Owner>().unwrap().as_str(), "tenant-7");
        assert!("".parse::<Owner>().unwrap_err().to_string().contains("empty"));
        assert!("a\nb".parse::<Tag>().unwrap_err().to_string().contains("'a\\nb' is no tag: it has control"));
        assert!("é".repeat(128).parse::<PinName>().unwrap_err().to_string().contains("256 bytes, and may have 255"));
    }

    #[test]
    fn a_multihash_is_whole_or_refused() {
        let whole = [&[0x12, 0x20][..], &[7; 32]].concat();
        assert_eq!(Multihash::from_bytes(&whole).unwrap().as_bytes(), whole);
        for wrong in [&whole[..33], &[whole.as_slice(), &[1]].concat(), &[], &[0x12; 200]] {
            assert!(Multihash::from_bytes(wrong).is_err(), "{wrong:?}");
        }
    }
}
