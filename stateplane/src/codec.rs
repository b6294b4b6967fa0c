//! How the embedded ledger writes keys and values, and how a queued change travels. docs/stateplane.md has the layout; `tests/golden` holds it.
//!
//! Keys sort: a variable part goes with its length (one byte) before it, numbers are big-endian. Values are a version byte and CBOR with numbered
//! fields, so that a field can be added: what an older build does not know, it skips.

use std::collections::BTreeSet;

use minicbor::{Decode, Encode};

use crate::{
    Change, Generation, Have, Multihash, NameError, Peer, Pin, PinKey, Placement, RegisteredShard, Registration, Want,
};

/// First byte of every value.
const VERSION: u8 = 1;

/// Why bytes are not what they should be.
#[derive(Debug)]
pub(crate) struct Malformed(pub String);

impl From<NameError> for Malformed {
    fn from(err: NameError) -> Malformed {
        Malformed(err.to_string())
    }
}

fn generation(number: i64) -> Result<Generation, Malformed> {
    Generation::new(number).ok_or_else(|| Malformed(format!("{number} is no generation")))
}

pub(crate) fn to_bytes<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    // A Vec takes all that is written to it.
    let written = minicbor::encode(value, &mut bytes);
    debug_assert!(written.is_ok());
    bytes
}

pub(crate) fn from_bytes<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, Malformed> {
    match bytes.split_first() {
        Some((&VERSION, cbor)) => minicbor::decode(cbor).map_err(|err| Malformed(err.to_string())),
        Some((version, _)) => Err(Malformed(format!("it is of version {version}, and this build knows {VERSION}"))),
        None => Err(Malformed("it is empty".to_owned())),
    }
}

/// A pin, or what its removal left.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(crate) struct StoredPin {
    #[n(0)]
    pub generation: i64,
    #[n(1)]
    pub removed: bool,
    #[n(2)]
    pub name: Option<String>,
    #[n(3)]
    pub tags: Vec<String>,
    #[n(4)]
    pub replicas: u16,
    #[n(5)]
    pub expires: Option<u64>,
    #[n(6)]
    pub created_ms: u64,
    /// Where its hint of expiry is.
    #[n(7)]
    pub slot: Option<u64>,
}

impl StoredPin {
    pub(crate) fn of(pin: &Pin) -> StoredPin {
        StoredPin {
            generation: pin.generation.get(),
            removed: false,
            name: pin.name.as_ref().map(|name| name.as_str().to_owned()),
            tags: pin.tags.iter().map(|tag| tag.as_str().to_owned()).collect(),
            replicas: pin.replicas,
            expires: pin.expires,
            created_ms: pin.created_ms,
            slot: None,
        }
    }

    pub(crate) fn removed(generation: Generation) -> StoredPin {
        StoredPin {
            generation: generation.get(),
            removed: true,
            name: None,
            tags: Vec::new(),
            replicas: 0,
            expires: None,
            created_ms: 0,
            slot: None,
        }
    }

    /// The pin; `None`: it was removed.
    pub(crate) fn pin(self, key: PinKey) -> Result<Option<Pin>, Malformed> {
        if self.removed {
            return Ok(None);
        }
        let tags: Result<BTreeSet<_>, _> = self.tags.iter().map(|tag| tag.parse()).collect();
        Ok(Some(Pin {
            key,
            generation: generation(self.generation)?,
            name: self.name.map(|name| name.parse()).transpose()?,
            tags: tags?,
            replicas: self.replicas,
            expires: self.expires,
            created_ms: self.created_ms,
        }))
    }
}

/// What is known of a placement, and up to where it was forgotten (0: never).
#[derive(Debug, Default, Encode, Decode)]
#[cbor(map)]
pub(crate) struct StoredPlacement {
    #[n(0)]
    pub forgotten: i64,
    #[n(1)]
    pub want: Option<StoredWant>,
    #[n(2)]
    pub have: Option<StoredHave>,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(crate) struct StoredWant {
    #[n(0)]
    pub generation: i64,
    #[n(1)]
    pub wanted: bool,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(crate) struct StoredHave {
    #[n(0)]
    pub generation: i64,
    #[n(1)]
    pub held: bool,
    #[n(2)]
    pub answers: Option<i64>,
    #[n(3)]
    pub size_bytes: Option<u64>,
    #[n(4)]
    pub error: Option<String>,
    #[n(5)]
    pub seen_ms: u64,
}

impl StoredWant {
    pub(crate) fn of(want: &Want) -> StoredWant {
        StoredWant { generation: want.generation.get(), wanted: want.wanted }
    }

    pub(crate) fn want(&self) -> Result<Want, Malformed> {
        Ok(Want { generation: generation(self.generation)?, wanted: self.wanted })
    }
}

impl StoredHave {
    pub(crate) fn of(have: &Have) -> StoredHave {
        StoredHave {
            generation: have.generation.get(),
            held: have.held,
            answers: have.answers.map(Generation::get),
            size_bytes: have.size_bytes,
            error: have.error.clone(),
            seen_ms: have.seen_ms,
        }
    }

    pub(crate) fn have(self) -> Result<Have, Malformed> {
        Ok(Have {
            generation: generation(self.generation)?,
            held: self.held,
            answers: self.answers.map(generation).transpose()?,
            size_bytes: self.size_bytes,
            error: self.error,
            seen_ms: self.seen_ms,
        })
    }
}

/// A claimed operation.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(crate) struct StoredClaim {
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub claimant: Vec<u8>,
    #[n(1)]
    pub outcome: Option<String>,
    /// Unix time in milliseconds after which it counts no more.
    #[n(2)]
    pub until_ms: u64,
}

/// What a node told of itself, or that it was struck off.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(crate) struct StoredRegistration {
    #[n(0)]
    pub generation: i64,
    #[n(1)]
    pub removed: bool,
    #[n(2)]
    pub seen_ms: u64,
    #[n(3)]
    pub node_id: String,
    #[n(4)]
    pub basalt: String,
    #[n(5)]
    pub kubo: String,
    #[n(6)]
    pub capacity_bytes: u64,
    #[n(7)]
    pub free_bytes: u64,
    #[n(8)]
    pub shards: Vec<StoredShard>,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(crate) struct StoredShard {
    #[n(0)]
    pub id: u32,
    #[n(1)]
    pub blocks: u64,
    #[n(2)]
    pub bytes: u64,
    #[n(3)]
    pub free_bytes: u64,
    #[n(4)]
    pub serving: bool,
}

impl StoredRegistration {
    pub(crate) fn of(told: &Registration) -> StoredRegistration {
        let shard = |shard: &RegisteredShard| StoredShard {
            id: shard.id,
            blocks: shard.blocks,
            bytes: shard.bytes,
            free_bytes: shard.free_bytes,
            serving: shard.serving,
        };
        StoredRegistration {
            generation: told.generation.get(),
            removed: false,
            seen_ms: told.seen_ms,
            node_id: told.node_id.clone(),
            basalt: told.basalt.clone(),
            kubo: told.kubo.clone(),
            capacity_bytes: told.capacity_bytes,
            free_bytes: told.free_bytes,
            shards: told.shards.iter().map(shard).collect(),
        }
    }

    pub(crate) fn removed(generation: Generation) -> StoredRegistration {
        StoredRegistration {
            generation: generation.get(),
            removed: true,
            seen_ms: 0,
            node_id: String::new(),
            basalt: String::new(),
            kubo: String::new(),
            capacity_bytes: 0,
            free_bytes: 0,
            shards: Vec::new(),
        }
    }

    /// What it told; `None`: it was struck off.
    pub(crate) fn registration(self, peer: Peer) -> Result<Option<Registration>, Malformed> {
        if self.removed {
            return Ok(None);
        }
        let shard = |shard: StoredShard| RegisteredShard {
            id: shard.id,
            blocks: shard.blocks,
            bytes: shard.bytes,
            free_bytes: shard.free_bytes,
            serving: shard.serving,
        };
        Ok(Some(Registration {
            peer,
            generation: generation(self.generation)?,
            seen_ms: self.seen_ms,
            node_id: self.node_id,
            basalt: self.basalt,
            kubo: self.kubo,
            capacity_bytes: self.capacity_bytes,
            free_bytes: self.free_bytes,
            shards: self.shards.into_iter().map(shard).collect(),
        }))
    }
}

/// A change, for a queue.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct StoredChange {
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    multihash: Vec<u8>,
    /// Owner of a pin, or peer of a placement.
    #[n(1)]
    whose: String,
    #[n(2)]
    codec: u64,
    #[n(3)]
    pin: Option<StoredPin>,
    #[n(4)]
    want: Option<StoredWant>,
    #[n(5)]
    have: Option<StoredHave>,
    #[n(6)]
    forget: Option<i64>,
}

pub(crate) fn change_to_bytes(change: &Change) -> Vec<u8> {
    let mut stored = StoredChange {
        multihash: change.multihash().as_bytes().to_vec(),
        whose: String::new(),
        codec: 0,
        pin: None,
        want: None,
        have: None,
        forget: None,
    };
    let mut of_pin = |key: &PinKey, pin| {
        stored.whose = key.owner.as_str().to_owned();
        stored.codec = key.codec;
        stored.pin = Some(pin);
    };
    match change {
        Change::Put(pin) => of_pin(&pin.key, StoredPin::of(pin)),
        Change::Remove(key, generation) => of_pin(key, StoredPin::removed(*generation)),
        Change::Want(_, peer, want) => {
            stored.whose = peer.as_str().to_owned();
            stored.want = Some(StoredWant::of(want));
        }
        Change::Have(_, peer, have) => {
            stored.whose = peer.as_str().to_owned();
            stored.have = Some(StoredHave::of(have));
        }
        Change::Forget(_, peer, generation) => {
            stored.whose = peer.as_str().to_owned();
            stored.forget = Some(generation.get());
        }
    }
    to_bytes(&stored)
}

/// A placement, whole, as it travels.
pub(crate) fn placement_to_bytes(placement: &Placement) -> Vec<u8> {
    to_bytes(&StoredChange {
        multihash: placement.multihash.as_bytes().to_vec(),
        whose: placement.peer.as_str().to_owned(),
        codec: 0,
        pin: None,
        want: placement.want.as_ref().map(StoredWant::of),
        have: placement.have.as_ref().map(StoredHave::of),
        forget: None,
    })
}

pub(crate) fn placement_from_bytes(bytes: &[u8]) -> Result<Placement, Malformed> {
    let stored: StoredChange = from_bytes(bytes)?;
    Ok(Placement {
        multihash: Multihash::from_bytes(&stored.multihash)?,
        peer: stored.whose.parse()?,
        want: stored.want.map(|want| want.want()).transpose()?,
        have: stored.have.map(StoredHave::have).transpose()?,
    })
}

pub(crate) fn change_from_bytes(bytes: &[u8]) -> Result<Change, Malformed> {
    let stored: StoredChange = from_bytes(bytes)?;
    let multihash = Multihash::from_bytes(&stored.multihash)?;
    if let Some(pin) = stored.pin {
        let key = PinKey { multihash, owner: stored.whose.parse()?, codec: stored.codec };
        let at = generation(pin.generation)?;
        return Ok(match pin.pin(key.clone())? {
            Some(pin) => Change::Put(pin),
            None => Change::Remove(key, at),
        });
    }
    let peer = stored.whose.parse()?;
    match (stored.want, stored.have, stored.forget) {
        (Some(want), None, None) => Ok(Change::Want(multihash, peer, want.want()?)),
        (None, Some(have), None) => Ok(Change::Have(multihash, peer, have.have()?)),
        (None, None, Some(upto)) => Ok(Change::Forget(multihash, peer, generation(upto)?)),
        _ => Err(Malformed("it is not one change".to_owned())),
    }
}

/// Writes a key.
pub(crate) struct Key(pub Vec<u8>);

impl Key {
    pub(crate) fn new(kind: u8) -> Key {
        Key(vec![kind])
    }

    /// A part of variable length. All that come here are shorter than 256 bytes.
    pub(crate) fn part(mut self, bytes: &[u8]) -> Key {
        debug_assert!(bytes.len() < 256);
        self.0.push(bytes.len() as u8);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u16(mut self, number: u16) -> Key {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, number: u64) -> Key {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(crate) fn pin(self, key: &PinKey) -> Key {
        self.part(key.multihash.as_bytes()).part(key.owner.as_str().as_bytes()).u64(key.codec)
    }
}

/// Reads a key back.
pub(crate) struct KeyReader<'a>(pub &'a [u8]);

impl<'a> KeyReader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| Malformed("its key is cut".to_owned()))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn part(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.take(1)?.first().copied().unwrap_or(0);
        self.take(usize::from(length))
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, Malformed> {
        str::from_utf8(self.part()?).map_err(|_| Malformed("a name in its key is no UTF-8".to_owned()))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?;
        bytes.try_into().map(u64::from_be_bytes).map_err(|_| Malformed("its key is cut".to_owned()))
    }

    pub(crate) fn multihash(&mut self) -> Result<Multihash, Malformed> {
        Ok(Multihash::from_bytes(self.part()?)?)
    }

    pub(crate) fn pin(&mut self) -> Result<PinKey, Malformed> {
        Ok(PinKey { multihash: self.multihash()?, owner: self.text()?.parse()?, codec: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        data_encoding::HEXLOWER.encode(bytes)
    }

    fn pin() -> Pin {
        let digest = [&[0x12, 0x20][..], &[0xab; 32]].concat();
        Pin {
            key: PinKey {
                multihash: Multihash::from_bytes(&digest).unwrap(),
                owner: "tenant".parse().unwrap(),
                codec: 0x70,
            },
            generation: Generation::new(1_700_000_000_000_000).unwrap(),
            name: Some("a name".parse().unwrap()),
            tags: ["x".parse().unwrap(), "y".parse().unwrap()].into(),
            replicas: 3,
            expires: Some(1_800_000_000),
            created_ms: 1_700_000_000_000,
        }
    }

    /// What was written once is read for ever: these bytes are docs/stateplane.md's.
    #[test]
    fn keys_and_values_are_as_they_were() {
        assert_eq!(
            hex(&Key::new(b'p').pin(&pin().key).0),
            format!("702212 20{}0674656e616e740000000000000070", "ab".repeat(32)).replace(' ', "")
        );
        assert_eq!(
            hex(&to_bytes(&StoredPin::of(&pin()))),
            "01a7001b00060a24181e400001f40266612 06e616d65038261786179040305 1a6b49d200061b0000018bcfe56800"
                .replace(' ', "")
        );
    }

    #[test]
    fn every_change_travels() {
        let Pin { key, generation, .. } = pin();
        let (multihash, peer) = (key.multihash.clone(), "12D3KooW".parse::<crate::Peer>().unwrap());
        let have = Have {
            generation,
            held: false,
            answers: Some(generation),
            size_bytes: Some(7),
            error: Some("no space".to_owned()),
            seen_ms: 9,
        };
        for change in [
            Change::Put(pin()),
            Change::Put(Pin { name: None, tags: BTreeSet::new(), expires: None, ..pin() }),
            Change::Remove(key, generation),
            Change::Want(multihash.clone(), peer.clone(), Want { generation, wanted: true }),
            Change::Have(multihash.clone(), peer.clone(), have.clone()),
            Change::Have(
                multihash.clone(),
                peer.clone(),
                Have { answers: None, size_bytes: None, error: None, ..have },
            ),
            Change::Forget(multihash, peer, generation),
        ] {
            let bytes = change_to_bytes(&change);
            assert_eq!(change_from_bytes(&bytes).unwrap(), change);
            for length in 0..bytes.len() {
                assert!(change_from_bytes(&bytes[..length]).is_err(), "{change:?} cut at {length}");
            }
        }
        assert!(change_from_bytes(&[2, 0xa0]).unwrap_err().0.contains("version 2"));
    }
}
