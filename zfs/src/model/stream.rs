//! Streams of the model: a header, as many bytes as data (up to a limit, so that tests are quick), an end. Cut anywhere, they do what ZFS's do.

use std::io::{Read, Write};

use serde_json::{Value, json};

use super::{Content, Encryption, Filesystem, SnapshotState, State};
use crate::{Base, Class, Dataset, Error, Operation, PropertyName, Result, ResumeToken, Snapshot, Stream};

const MAGIC: &[u8] = b"basalt-model-stream-1\n";
const END: &[u8] = b"\nend of stream\n";
const HEADER_BYTES_MAX: usize = 16 << 20;
/// Data of a stream is no longer than this, however much the files have.
const DATA_BYTES_MAX: u64 = 64 << 10;

/// What a receive that ended too soon leaves.
#[derive(Clone)]
pub(super) struct Partial {
    header: Header,
    got_bytes: u64,
    /// Of a whole stream: the dataset has nothing else, and goes when this is dropped.
    pub(super) whole: bool,
}

#[derive(Clone)]
struct Header {
    name: String,
    guid: u64,
    base_guid: Option<u64>,
    raw: bool,
    /// Of the base, for raw ones.
    base_ivset: Option<u64>,
    ivset: u64,
    /// Lineage and key, for raw ones of encrypted datasets.
    encryption: Option<(u64, Vec<u8>)>,
    content: Content,
    data_bytes: u64,
    skip_bytes: u64,
}

impl Header {
    fn to_json(&self) -> Value {
        let files: Vec<Value> = self.content.0.iter().map(|(name, (id, bytes))| json!([name, id, bytes])).collect();
        json!({
            "name": self.name, "guid": self.guid, "base_guid": self.base_guid, "raw": self.raw, "base_ivset": self.base_ivset,
            "ivset": self.ivset, "encryption": self.encryption, "files": files, "data_bytes": self.data_bytes, "skip_bytes": self.skip_bytes,
        })
    }

    fn from_json(v: &Value) -> Option<Header> {
        let mut content = Content::default();
        for file in v.get("files")?.as_array()? {
            let id = (file.get(1)?.as_u64()?, file.get(2)?.as_u64()?);
            content.0.insert(file.get(0)?.as_str()?.to_owned(), id);
        }
        let encryption = match v.get("encryption")? {
            Value::Null => None,
            pair => {
                let key = pair.get(1)?.as_array()?.iter().filter_map(|b| u8::try_from(b.as_u64()?).ok()).collect();
                Some((pair.get(0)?.as_u64()?, key))
            }
        };
        Some(Header {
            name: v.get("name")?.as_str()?.to_owned(),
            guid: v.get("guid")?.as_u64()?,
            base_guid: v.get("base_guid")?.as_u64(),
            raw: v.get("raw")?.as_bool()?,
            base_ivset: v.get("base_ivset")?.as_u64(),
            ivset: v.get("ivset")?.as_u64()?,
            encryption,
            content,
            data_bytes: v.get("data_bytes")?.as_u64()?,
            skip_bytes: v.get("skip_bytes")?.as_u64()?,
        })
    }
}

/// What a stream that came held.
enum Came {
    Whole(Header),
    Cut(Header, u64),
    Nothing(&'static str),
}

fn read(from: &mut dyn Read) -> std::io::Result<Came> {
    let mut bytes = Vec::new();
    // What is read before a reader fails has come all the same.
    let failed = from.take(HEADER_BYTES_MAX as u64 + DATA_BYTES_MAX + 1024).read_to_end(&mut bytes).err();
    let came = parse(&bytes);
    match (failed, came) {
        (Some(e), Came::Nothing(_) | Came::Whole(_)) => Err(e),
        (_, came) => Ok(came),
    }
}

/// ZFS's streams begin with a record that is small beside what follows, of an empty dataset too: half a stream always says what it is.
fn filler_bytes(header_bytes: usize) -> usize {
    2 * (MAGIC.len() + header_bytes)
}

fn parse(bytes: &[u8]) -> Came {
    if bytes.is_empty() {
        return Came::Nothing("failed to read from stream");
    }
    let Some(rest) = bytes.strip_prefix(MAGIC) else { return Came::Nothing("invalid stream (bad magic number)") };
    let Some(end) = rest.iter().position(|b| *b == b'\n') else { return Came::Nothing("incomplete stream") };
    let (header, rest) = (&rest[..end], &rest[end + 1..]);
    let Some(header) = serde_json::from_slice(header).ok().as_ref().and_then(Header::from_json) else {
        return Came::Nothing("invalid stream");
    };
    let data = rest.get(filler_bytes(end)..).unwrap_or_default();
    let wanted = header.data_bytes.saturating_sub(header.skip_bytes) as usize;
    if data.len() == wanted + END.len() && data.ends_with(END) {
        return Came::Whole(header);
    }
    let got = header.skip_bytes + data.len().min(wanted) as u64;
    Came::Cut(header, got)
}

impl State {
    fn header(&self, operation: Operation, stream: &Stream) -> Result<Header> {
        match stream {
            Stream::Snapshot { snapshot, base, raw } => self.header_of(operation, snapshot, base.as_ref(), *raw),
            Stream::Resume(token) => self.header_of_token(operation, token),
        }
    }

    fn header_of(&self, operation: Operation, snapshot: &Snapshot, base: Option<&Base>, raw: bool) -> Result<Header> {
        let refuse = |class, why: &str| Error::new(operation, snapshot, class, why);
        let dataset = snapshot.dataset();
        let of = self.locate(snapshot).ok_or_else(|| refuse(Class::NotFound, "dataset does not exist"))?;
        let base = match base {
            None => None,
            Some(Base::Snapshot(base)) => {
                let found =
                    self.locate(base).ok_or_else(|| refuse(Class::NotFound, "incremental source does not exist"))?;
                Some((base.dataset(), found.guid, found.createtxg, found.ivset, found.content.clone()))
            }
            Some(Base::Bookmark(base)) => {
                let found = self.filesystems.get(&base.dataset()).and_then(|f| f.bookmarks.get(base.name()));
                let found = found.ok_or_else(|| refuse(Class::NotFound, "incremental source does not exist"))?;
                Some((base.dataset(), found.guid, found.createtxg, found.ivset, Content::default()))
            }
        };
        if let Some((of_dataset, _, createtxg, ..)) = &base
            && (*of_dataset != dataset || *createtxg >= of.createtxg)
        {
            return Err(refuse(Class::Invalid, "not an earlier snapshot from the same fs"));
        }
        let encryption = self.encryption(&dataset);
        if let Some(encryption) = encryption
            && !raw
            && !encryption.loaded
        {
            return Err(refuse(Class::KeyNotLoaded, "dataset key must be loaded"));
        }
        let changed = of
            .content
            .0
            .values()
            .filter(|file| base.as_ref().is_none_or(|(.., old)| !old.0.values().any(|o| o == *file)));
        let data_bytes = changed.map(|(_, bytes)| bytes).sum::<u64>().min(DATA_BYTES_MAX);
        Ok(Header {
            name: of.name.clone(),
            guid: of.guid,
            base_guid: base.as_ref().map(|b| b.1),
            raw: raw && encryption.is_some(),
            base_ivset: base.as_ref().map(|b| b.3),
            ivset: of.ivset,
            encryption: encryption.filter(|_| raw).map(|e| (e.lineage, e.key.clone())),
            content: of.content.clone(),
            data_bytes,
            skip_bytes: 0,
        })
    }

    fn header_of_token(&self, operation: Operation, token: &ResumeToken) -> Result<Header> {
        let refuse = |class, why: &str| Error::new(operation, "a resume token", class, why);
        let corrupt = || refuse(Class::BadStream, "resume token is corrupt");
        let hex = token.as_str().strip_prefix("1-").ok_or_else(corrupt)?;
        let bytes: Option<Vec<u8>> = (0..hex.len() / 2)
            .map(|i| hex.get(2 * i..2 * i + 2).and_then(|two| u8::from_str_radix(two, 16).ok()))
            .collect();
        let v: Value = bytes.and_then(|b| serde_json::from_slice(&b).ok()).ok_or_else(corrupt)?;
        let number = |key: &str| v.get(key).and_then(Value::as_u64);
        let (guid, got) = number("guid").zip(number("got_bytes")).ok_or_else(corrupt)?;
        let base_guid = number("base_guid");
        let (dataset, found) = self
            .filesystems
            .iter()
            .find_map(|(dataset, f)| {
                Some((dataset, f.snapshots.iter().find(|s| s.guid == guid && Some(s.guid) != base_guid)?))
            })
            .ok_or_else(|| refuse(Class::NotFound, "the snapshot of the token does not exist"))?;
        let f = self.filesystems.get(dataset);
        let base = match base_guid {
            None => None,
            Some(base) => {
                let of_snapshot = f
                    .and_then(|f| f.snapshots.iter().find(|s| s.guid == base))
                    .map(|s| dataset.snapshot(&s.name).map(Base::Snapshot));
                let of_bookmark = || {
                    f.and_then(|f| f.bookmarks.iter().find(|(_, m)| m.guid == base))
                        .map(|(n, _)| dataset.bookmark(n).map(Base::Bookmark))
                };
                let base = of_snapshot.or_else(of_bookmark).and_then(Result::ok);
                Some(base.ok_or_else(|| refuse(Class::NotFound, "incremental source does not exist"))?)
            }
        };
        let raw = v.get("raw").and_then(Value::as_bool).unwrap_or(false);
        let snapshot = dataset.snapshot(&found.name).map_err(|_| corrupt())?;
        let mut header = self.header_of(operation, &snapshot, base.as_ref(), raw)?;
        header.skip_bytes = got.min(header.data_bytes);
        Ok(header)
    }

    pub(super) fn send_size_bytes(&self, stream: &Stream) -> Result<u64> {
        let header = self.header(Operation::Send, stream)?;
        Ok(header.data_bytes - header.skip_bytes)
    }

    /// The bytes of a stream.
    pub(super) fn stream(&self, stream: &Stream) -> Result<Vec<u8>> {
        let header = self.header(Operation::Send, stream)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(header.to_json().to_string().into_bytes());
        let filler = filler_bytes(bytes.len() - MAGIC.len());
        bytes.push(b'\n');
        bytes.resize(bytes.len() + filler + (header.data_bytes - header.skip_bytes) as usize, 0x5a);
        bytes.extend_from_slice(END);
        Ok(bytes)
    }

    pub(super) fn receive(
        &mut self,
        dataset: &Dataset,
        properties: &[(PropertyName, String)],
        from: &mut dyn Read,
    ) -> Result<()> {
        let refuse = |class, why: &str| Error::new(Operation::Receive, dataset, class, why);
        let came = read(from).map_err(|e| refuse(Class::Io, &format!("the stream can't be read: {e}")))?;
        let (header, got_bytes) = match came {
            Came::Nothing(why) => return Err(refuse(Class::BadStream, why)),
            Came::Whole(header) => (header, None),
            Came::Cut(header, got) => (header, Some(got)),
        };
        let resumes = header.skip_bytes > 0;
        let existing = self.filesystems.get(dataset);
        let partial = existing.and_then(|f| f.partial.as_ref());
        match (&partial, resumes) {
            (Some(p), true) if p.header.guid == header.guid && p.got_bytes == header.skip_bytes => {}
            (_, true) => {
                return Err(refuse(Class::Invalid, "it does not contain partially-complete state of this stream"));
            }
            (Some(p), false) if p.whole => return Err(refuse(Class::Exists, "destination exists")),
            (Some(_), false) => return Err(refuse(Class::Busy, "destination contains partially-complete state")),
            (None, false) => {}
        }
        match (existing, header.base_guid) {
            (None, Some(_)) => return Err(refuse(Class::NotFound, "destination does not exist")),
            (Some(_), None) if !resumes => return Err(refuse(Class::Exists, "destination exists")),
            (Some(f), Some(base)) => {
                match f.snapshots.last() {
                    Some(last) if last.guid == base => {
                        if f.content != last.content {
                            return Err(refuse(
                                Class::Diverged,
                                "destination has been modified since most recent snapshot",
                            ));
                        }
                        if header.raw && header.base_ivset != Some(last.ivset) {
                            return Err(refuse(Class::Diverged, "IV set guid mismatch"));
                        }
                    }
                    _ => return Err(refuse(Class::Diverged, "most recent snapshot does not match incremental source")),
                }
                if f.snapshots.iter().any(|s| s.name == header.name) {
                    return Err(refuse(Class::Exists, "its snapshot already exists"));
                }
            }
            (None, None) => {
                let parent = dataset.parent().filter(|p| self.filesystems.contains_key(p));
                let Some(parent) = parent else { return Err(refuse(Class::NotFound, "parent does not exist")) };
                if header.encryption.is_none() && self.encryption(&parent).is_some_and(|e| !e.loaded) {
                    return Err(refuse(Class::KeyNotLoaded, "inherited key must be loaded"));
                }
            }
            _ => {}
        }
        if header.encryption.is_none() && existing.is_some() && self.encryption(dataset).is_some_and(|e| !e.loaded) {
            return Err(refuse(Class::KeyNotLoaded, "inherited key must be loaded"));
        }
        if self.available_bytes(dataset.parent().as_ref().unwrap_or(dataset)) < header.content.bytes()
            && got_bytes.is_none()
        {
            return Err(refuse(Class::NoSpace, "out of space"));
        }
        if !self.filesystems.contains_key(dataset) {
            let filesystem = self.filesystem();
            self.filesystems.insert(dataset.clone(), filesystem);
        }
        let (id, createtxg, now, fresh_ivset) = (self.id(), self.next_txg(), self.now_unix_s, self.guid());
        let Some(f) = self.filesystems.get_mut(dataset) else { return Err(refuse(Class::NotFound, "it is gone")) };
        for (name, value) in properties {
            f.local.insert(name.clone(), value.clone());
        }
        if let Some(got_bytes) = got_bytes {
            let whole = header.base_guid.is_none();
            f.partial = Some(Partial { header: Header { skip_bytes: 0, ..header }, got_bytes, whole });
            return Err(refuse(
                Class::Incomplete,
                "checksum mismatch or incomplete stream. Partially received snapshot is saved.",
            ));
        }
        f.partial = None;
        complete(f, header, id, createtxg, now, fresh_ivset);
        Ok(())
    }

    pub(super) fn token(&self, dataset: &Dataset) -> Option<ResumeToken> {
        let partial = self.filesystems.get(dataset)?.partial.as_ref()?;
        let header = &partial.header;
        let v = json!({"guid": header.guid, "base_guid": header.base_guid, "raw": header.raw, "got_bytes": partial.got_bytes.max(1)});
        let hex: String = v.to_string().bytes().map(|b| format!("{b:02x}")).collect();
        ResumeToken::parse(&format!("1-{hex}"))
    }
}

fn complete(f: &mut Filesystem, header: Header, id: u64, createtxg: u64, now: u64, fresh_ivset: u64) {
    f.content = header.content.clone();
    if let (Some((lineage, key)), None) = (&header.encryption, &f.encryption) {
        f.encryption =
            Some(Encryption { lineage: *lineage, key: key.clone(), loaded: false, location: "prompt".into() });
    }
    f.snapshots.push(SnapshotState {
        id,
        name: header.name,
        guid: header.guid,
        createtxg,
        creation_unix_s: now,
        holds: Default::default(),
        defer_destroy: false,
        user_properties: Default::default(),
        content: header.content,
        ivset: if header.raw { header.ivset } else { fresh_ivset },
    });
    f.snapshots_changed_unix_s = Some(now);
}

/// Writes as ZFS does: in pieces, so that a sink that fails has got some.
pub(super) fn write(bytes: &[u8], to: &mut dyn Write) -> Result<()> {
    for piece in bytes.chunks(4096) {
        to.write_all(piece).map_err(|e| {
            Error::new(Operation::Send, "a stream", Class::Io, format!("the stream can't be passed on: {e}"))
        })?;
    }
    Ok(())
}
