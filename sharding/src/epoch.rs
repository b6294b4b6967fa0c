//! The ring epoch record: the durable word on which shards a node has, and what each folder is.
//!
//! Every store of a node keeps a copy in its folder, and each copy says which store it stands in. The home copy, in the keyspace's
//! folder, is written last: it makes the epoch. So a folder that is missing (its disk is not mounted), foreign, or in another's place is refused by name before
//! anything is created there, rather than taken for an empty shard. `docs/format-ring.md` gives the bytes.
//!
//! Now every node is at epoch 1, made when it was. Live changes of the ring will write epoch 2 and above.

use std::{io, path::Path};

use basalt_blockstore::{Error, ErrorKind, Result, disk::Disk};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// Folder of the record in a store's folder.
pub const RECORD_DIR: &str = "ring";
/// The record's file in that folder.
pub const RECORD_FILE: &str = "epoch.json";
const RECORD_FILE_NEW: &str = "epoch.json.new";

const FORMAT: &str = "basalt ring epoch";
const VERSION: u32 = 1;
/// Longest record that is read, in bytes: 65,536 shards need less.
const RECORD_BYTES_MAX: u64 = 8 << 20;

/// What a shard is to the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardState {
    /// It takes and serves blocks.
    Active,
}

/// A shard as an epoch knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its id, which is its number in the node's layout.
    pub id: u16,
    /// Its weight on the ring.
    pub weight: u32,
    /// What it is to the ring.
    pub state: ShardState,
}

/// One epoch of the ring.
#[derive(Clone, PartialEq, Eq)]
pub struct Epoch {
    /// Counts up from 1 with every change of the ring.
    pub number: u64,
    /// Key of the ring's hash; the same in every epoch, and with that the node's mark on its stores.
    pub ring_key: [u8; 16],
    /// The shards in the order of their ids.
    pub shards: Vec<Member>,
}

impl Epoch {
    /// The first epoch: shards numbered from 0, with these weights.
    pub fn first(ring_key: [u8; 16], weights: &[u32]) -> Result<Epoch> {
        if weights.len() > usize::from(u16::MAX) {
            let message = format!("{} shards are more than a node can have ({})", weights.len(), u16::MAX);
            return Err(Error::new(ErrorKind::InvalidValue, message));
        }
        let member = |(id, weight): (u16, &u32)| Member { id, weight: *weight, state: ShardState::Active };
        Ok(Epoch { number: 1, ring_key, shards: (0u16..).zip(weights).map(member).collect() })
    }
}

impl std::fmt::Debug for Epoch {
    /// Without the ring key: who has it can aim blocks at one shard.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Epoch").field("number", &self.number).field("shards", &self.shards).finish_non_exhaustive()
    }
}

/// The store that a copy of the record stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The keyspace: the home copy.
    Keyspace,
    /// The shard of that id.
    Shard(u16),
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Holder::Keyspace => f.write_str("the keyspace"),
            Holder::Shard(id) => write!(f, "shard {id}"),
        }
    }
}

/// A copy of the epoch record; see the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What all copies say.
    pub epoch: Epoch,
    /// Where this copy stands.
    pub holder: Holder,
}

/// The first line of the file, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    version: u32,
    holder: String,
    epoch: u64,
    ring_key: String,
    shards: Vec<Member>,
}

/// Read before the rest, so that a newer version is told from a damaged file.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

impl Record {
    /// The bytes of the file.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let text = Text {
            format: FORMAT.into(),
            version: VERSION,
            holder: match self.holder {
                Holder::Keyspace => "keyspace".into(),
                Holder::Shard(id) => format!("shard-{id}"),
            },
            epoch: self.epoch.number,
            ring_key: HEXLOWER.encode(&self.epoch.ring_key),
            shards: self.epoch.shards.clone(),
        };
        let mut bytes = serde_json::to_vec(&text)
            .map_err(|err| Error::new(ErrorKind::InvalidValue, format!("encode the ring epoch record: {err}")))?;
        let sum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(format!("\ncrc32 {sum:08x}\n").as_bytes());
        Ok(bytes)
    }

    /// Reads the bytes of a file. `Format` for a newer version or another kind of file, `Corrupt` for what fails its checksum.
    pub fn parse(bytes: &[u8]) -> Result<Record> {
        let corrupt = |why: &str| Error::new(ErrorKind::Corrupt, format!("the ring epoch record is damaged: {why}"));
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| corrupt("it has no checksum line"))?;
        let (line, sum) = bytes.split_at(end);
        if sum != format!("\ncrc32 {:08x}\n", crc32fast::hash(line)).as_bytes() {
            return Err(corrupt("its checksum does not match"));
        }
        let head: Head = serde_json::from_slice(line).map_err(|err| corrupt(&err.to_string()))?;
        if head.format != FORMAT {
            return Err(Error::new(ErrorKind::Format, format!("it is a '{}', not a '{FORMAT}'", head.format)));
        }
        if head.version != VERSION {
            let message = format!(
                "the ring epoch record has version {}, this program knows {VERSION}; use the newer basalt that wrote it",
                head.version
            );
            return Err(Error::new(ErrorKind::Format, message));
        }
        let text: Text = serde_json::from_slice(line).map_err(|err| corrupt(&err.to_string()))?;
        let holder = match text.holder.strip_prefix("shard-").map(str::parse) {
            None if text.holder == "keyspace" => Holder::Keyspace,
            Some(Ok(id)) => Holder::Shard(id),
            _ => return Err(corrupt(&format!("unknown holder '{}'", text.holder))),
        };
        let ring_key = HEXLOWER.decode(text.ring_key.as_bytes()).ok().and_then(|key| <[u8; 16]>::try_from(key).ok());
        let ring_key = ring_key.ok_or_else(|| corrupt("the ring key is not 16 bytes of hex"))?;
        Ok(Record { epoch: Epoch { number: text.epoch, ring_key, shards: text.shards }, holder })
    }

    /// Reads the copy in a store's folder; `None` where there is none.
    pub fn read(disk: &dyn Disk, store_dir: &Path) -> Result<Option<Record>> {
        let path = store_dir.join(RECORD_DIR).join(RECORD_FILE);
        let failed = |err| Error::io(format!("read {}", path.display()), err);
        let file = match disk.open(&path, false) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let length = file.length().map_err(failed)?;
        if length > RECORD_BYTES_MAX {
            let message = format!("{} has {length} bytes: too long for a ring epoch record", path.display());
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let mut bytes = vec![0; length as usize];
        let read = file.read_at(&mut bytes, 0).map_err(failed)?;
        bytes.truncate(read);
        Record::parse(&bytes).map(Some).map_err(|err| err.context(path.display()))
    }

    /// Makes a copy that was read durable. It reads back from memory too where the process that wrote it was killed before it had flushed file or folder.
    pub fn settle(disk: &dyn Disk, store_dir: &Path) -> Result<()> {
        let dir = store_dir.join(RECORD_DIR);
        let path = dir.join(RECORD_FILE);
        let settle = || -> io::Result<()> {
            disk.open(&path, true)?.sync()?;
            disk.sync_dir(&dir)
        };
        settle().map_err(|err| Error::io(format!("flush {}", path.display()), err))
    }

    /// Writes the copy into a store's folder, replacing what is there; durable on return, and the old one or the new one at a crash.
    pub fn write(&self, disk: &dyn Disk, store_dir: &Path) -> Result<()> {
        let bytes = self.encode()?;
        let dir = store_dir.join(RECORD_DIR);
        let (new, path) = (dir.join(RECORD_FILE_NEW), dir.join(RECORD_FILE));
        let write = || -> io::Result<()> {
            disk.create_dir(&dir)?;
            match disk.remove(&new) {
                // What a crash left of an earlier try.
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
            let file = disk.create(&new)?;
            file.write_at(&[&bytes], 0)?;
            file.sync()?;
            disk.rename(&new, &path)?;
            disk.sync_dir(&dir)
        };
        write().map_err(|err| Error::io(format!("write {}", path.display()), err))
    }
}
