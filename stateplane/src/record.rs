//! The records: what is wanted, and what is held.

use std::collections::BTreeSet;

use crate::{
    Class, Error, Generation, Multihash, Operation, Owner, Peer, PinName, Result, TAGS_MAX, Tag, codec, generation,
};

/// Which pin: one owner's, of one DAG. The same multihash under another codec is another DAG; the same under CIDv0 and CIDv1 is one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinKey {
    /// The root block.
    pub multihash: Multihash,
    /// Who wants it.
    pub owner: Owner,
    /// Codec of the root's CID, such as 0x70 for dag-pb.
    pub codec: u64,
}

/// A pin that its owner wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Which.
    pub key: PinKey,
    /// Of the change that made it what it is.
    pub generation: Generation,
    /// What its owner calls it.
    pub name: Option<PinName>,
    /// Words its owner finds it by; at most [`TAGS_MAX`].
    pub tags: BTreeSet<Tag>,
    /// Peers that should hold it.
    pub replicas: u16,
    /// Unix time in seconds after which it is wanted no more.
    pub expires: Option<u64>,
    /// Unix time in milliseconds at which its owner first asked for it.
    pub created_ms: u64,
}

/// What should be at a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Of the decision.
    pub generation: Generation,
    /// Whether the peer should hold it.
    pub wanted: bool,
}

/// What is at a peer, as that peer told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Have {
    /// Of the observation.
    pub generation: Generation,
    /// Whether the peer holds it.
    pub held: bool,
    /// The want that it answers, if any.
    pub answers: Option<Generation>,
    /// Bytes of the DAG, where known.
    pub size_bytes: Option<u64>,
    /// Why it is not as wanted.
    pub error: Option<String>,
    /// Unix time in milliseconds of the observation.
    pub seen_ms: u64,
}

/// A multihash at a peer. Want and have have one writer each, and neither waits for the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// What.
    pub multihash: Multihash,
    /// Where.
    pub peer: Peer,
    /// What should be.
    pub want: Option<Want>,
    /// What is.
    pub have: Option<Have>,
}

impl Placement {
    /// Whether what is differs from what should be.
    pub fn drifts(&self) -> bool {
        let wanted = self.want.is_some_and(|want| want.wanted);
        let held = self.have.as_ref().is_some_and(|have| have.held);
        wanted != held
    }
}

/// A node of the fleet, as it tells of itself. Told again every while, which is its heartbeat; so it waits in no journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its Kubo.
    pub peer: Peer,
    /// Of what it told.
    pub generation: Generation,
    /// Unix time in milliseconds at which it told.
    pub seen_ms: u64,
    /// The Basalt node that the Kubo's blocks are in; at most [`WORD_BYTES_MAX`].
    pub node_id: String,
    /// Version of Basalt; at most [`WORD_BYTES_MAX`].
    pub basalt: String,
    /// Version of Kubo; at most [`WORD_BYTES_MAX`]; empty where it did not answer.
    pub kubo: String,
    /// Bytes that its file systems have, each counted once.
    pub capacity_bytes: u64,
    /// Bytes of these that are free.
    pub free_bytes: u64,
    /// Its shards; at most [`SHARDS_MAX`].
    pub shards: Vec<RegisteredShard>,
}

/// A shard of a registered node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisteredShard {
    /// Its number.
    pub id: u32,
    /// Live blocks.
    pub blocks: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Bytes that its file system has left.
    pub free_bytes: u64,
    /// Whether it takes writes.
    pub serving: bool,
}

/// Longest word that a node tells of itself.
pub const WORD_BYTES_MAX: usize = 255;
/// Most shards that a node tells of.
pub const SHARDS_MAX: usize = 4096;

impl Registration {
    /// Refuses what no engine takes.
    pub(crate) fn check(&self) -> Result<()> {
        let tried = || format!("register {}", self.peer);
        generation::check(self.generation, tried)?;
        let long = [&self.node_id, &self.basalt, &self.kubo].into_iter().find(|word| word.len() > WORD_BYTES_MAX);
        if let Some(word) = long {
            let why = format!("'{word:.40}…' has {} bytes, and may have {WORD_BYTES_MAX}", word.len());
            return Err(Error::new(tried(), Class::Argument, why));
        }
        if self.shards.len() > SHARDS_MAX {
            let why = format!("it has {} shards, and may have {SHARDS_MAX}", self.shards.len());
            return Err(Error::new(tried(), Class::Argument, why));
        }
        Ok(())
    }

    /// As engines keep it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        codec::to_bytes(&codec::StoredRegistration::of(self))
    }
}

/// A hint that a pin expires. The pin itself decides, by its generation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry {
    /// Unix time in seconds.
    pub expires: u64,
    /// Which pin.
    pub key: PinKey,
    /// Of the change that gave it this expiry.
    pub generation: Generation,
}

/// One change to one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes the pin what it says.
    Put(Pin),
    /// Removes the pin.
    Remove(PinKey, Generation),
    /// What should be at a peer.
    Want(Multihash, Peer, Want),
    /// What is at a peer.
    Have(Multihash, Peer, Have),
    /// Forgets what was known of a placement up to this generation. For what is neither wanted nor held.
    Forget(Multihash, Peer, Generation),
}

impl Change {
    /// Its generation.
    pub fn generation(&self) -> Generation {
        match self {
            Change::Put(pin) => pin.generation,
            Change::Remove(_, generation) | Change::Forget(_, _, generation) => *generation,
            Change::Want(_, _, want) => want.generation,
            Change::Have(_, _, have) => have.generation,
        }
    }

    /// The multihash that it is about.
    pub fn multihash(&self) -> &Multihash {
        match self {
            Change::Put(pin) => &pin.key.multihash,
            Change::Remove(key, _) => &key.multihash,
            Change::Want(multihash, ..) | Change::Have(multihash, ..) | Change::Forget(multihash, ..) => multihash,
        }
    }

    /// In words, for errors.
    pub fn describe(&self) -> String {
        let multihash = self.multihash();
        match self {
            Change::Put(pin) => format!("put pin {multihash} of {}", pin.key.owner),
            Change::Remove(key, _) => format!("remove pin {multihash} of {}", key.owner),
            Change::Want(_, peer, want) if want.wanted => format!("want {multihash} at {peer}"),
            Change::Want(_, peer, _) => format!("want {multihash} no more at {peer}"),
            Change::Have(_, peer, _) => format!("tell what {peer} holds of {multihash}"),
            Change::Forget(_, peer, _) => format!("forget {multihash} at {peer}"),
        }
    }

    /// As it travels in a queue.
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::change_to_bytes(self)
    }

    /// From a queue.
    pub fn from_bytes(bytes: &[u8]) -> Result<Change> {
        codec::change_from_bytes(bytes).map_err(|err| Error::new("read a queued change", Class::Corrupt, err.0))
    }

    /// Refuses what no engine takes, before it costs anything.
    pub(crate) fn check(&self) -> Result<()> {
        generation::check(self.generation(), || self.describe())?;
        let refuse = |why: String| Err(Error::new(self.describe(), Class::Argument, why));
        match self {
            Change::Put(pin) if pin.tags.len() > TAGS_MAX => {
                refuse(format!("it has {} tags, and may have {TAGS_MAX}", pin.tags.len()))
            }
            Change::Put(pin) if pin.expires.is_some_and(|at| at == 0 || i64::try_from(at).is_err()) => {
                refuse("its expiry is no time".to_owned())
            }
            Change::Put(pin) if i64::try_from(pin.key.codec).is_err() => refuse("its codec is no codec".to_owned()),
            Change::Have(_, _, have) if have.error.as_ref().is_some_and(|error| error.len() > ERROR_BYTES_MAX) => {
                refuse(format!("the error is longer than {ERROR_BYTES_MAX} bytes"))
            }
            _ => Ok(()),
        }
    }
}

/// Longest error that a placement keeps.
const ERROR_BYTES_MAX: usize = 2000;

/// In words, for errors about an operation.
pub(crate) fn describe_operation(verb: &str, operation: &Operation) -> String {
    format!("{verb} operation {operation}")
}
