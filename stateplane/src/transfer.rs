//! Export and import: a ledger as a stream of its records, whichever engine it comes from or goes to.
//!
//! The stream is `basalt-plane 1\n`, then frames: length (4 bytes, big-endian), CRC-32 of what follows (4), kind (1), content. Kinds:
//! - `c`: a change, as it travels in a queue: a pin, a want or a have, with its generation;
//! - `n`: a node: peer (length in one byte, bytes), then what it told;
//! - `m`: a mark: what is written up to here is whole, and so many records; a stream that was cut goes on from its last mark;
//! - `e`: the end, with the number of records. A stream without it is not whole.
//!
//! Records keep their generations, so an import may be made again, and over a ledger that has gone on: what is newer there stays. What removals left behind to fence older changes
//! is not in it: a pin that was removed less than ten days ago on the target stays removed, on an empty one nothing is known of it.

use std::io::{BufRead, BufReader, Read, Write};

use minicbor::{Decode, Encode, bytes::ByteVec};

use crate::{
    Change, Class, Cursor, Error, Peer, PinLedger, Registration, Result,
    codec::{self, Key, KeyReader, StoredRegistration, from_bytes, to_bytes},
};

const MAGIC: &[u8] = b"basalt-plane 1\n";
/// Longest frame, in bytes.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Records that are read from a ledger at a time.
const PAGE: usize = 1000;
/// Changes that are applied at a time.
const APPLIED_AT_A_TIME: usize = 256;

/// Counts of an export or import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Pins.
    pub pins: u64,
    /// Wants and haves of placements.
    pub placements: u64,
    /// Nodes.
    pub nodes: u64,
    /// Of an import: records that the ledger has as they are, or newer.
    pub known: u64,
}

impl Moved {
    /// All records.
    pub fn records(&self) -> u64 {
        self.pins + self.placements + self.nodes
    }
}

/// Where an export is.
#[derive(Clone, Debug, Default, Encode, Decode)]
#[cbor(map)]
struct Mark {
    /// 0 pins, 1 placements, 2 nodes.
    #[n(0)]
    part: u8,
    #[n(1)]
    after: Option<ByteVec>,
    /// Where the list of peers is, before `peer`.
    #[n(2)]
    peers: Option<ByteVec>,
    /// How many peers of that page are done.
    #[n(3)]
    peer: u64,
    #[n(4)]
    pins: u64,
    #[n(5)]
    placements: u64,
    #[n(6)]
    nodes: u64,
}

impl Mark {
    fn moved(&self) -> Moved {
        Moved { pins: self.pins, placements: self.placements, nodes: self.nodes, known: 0 }
    }
}

fn failed(verb: &str) -> impl Fn(std::io::Error) -> Error + use<> {
    let tried = format!("{verb} the stream of the ledger");
    move |err| Error::new(&tried, Class::Unavailable, err.to_string())
}

fn corrupt(at: u64, why: impl std::fmt::Display) -> Error {
    Error::new(format!("read the stream of the ledger at byte {at}"), Class::Corrupt, why.to_string())
}

fn frame(to: &mut impl Write, kind: u8, content: &[u8]) -> Result<()> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    crc.update(content);
    let length = (content.len() as u32 + 1).to_be_bytes();
    let head = [&length[..], &crc.finalize().to_be_bytes(), &[kind]].concat();
    to.write_all(&head).and_then(|()| to.write_all(content)).map_err(failed("write"))
}

/// A stream that is read.
struct Frames<R> {
    from: R,
    at: u64,
    bytes: Vec<u8>,
}

impl<R: Read> Frames<R> {
    fn begin(mut from: R) -> Result<Frames<R>> {
        let mut magic = Vec::new();
        from.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(failed("read"))?;
        if !MAGIC.starts_with(&magic) {
            return Err(corrupt(0, "it does not begin as one of ours of version 1"));
        }
        if magic.len() < MAGIC.len() {
            return Err(corrupt(0, "it ends too early"));
        }
        Ok(Frames { from, at: MAGIC.len() as u64, bytes: Vec::new() })
    }

    /// The next frame; an error where there is none that is whole.
    fn next(&mut self) -> Result<(u8, &[u8])> {
        let mut head = [0; 8];
        self.from.read_exact(&mut head).map_err(|err| corrupt(self.at, format!("it ends too early: {err}")))?;
        let (length, crc) = head.split_at(4);
        let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
        let length = number(length) as usize;
        if length == 0 || length > FRAME_BYTES_MAX {
            return Err(corrupt(self.at, format!("a frame of {length} bytes")));
        }
        self.bytes.resize(length, 0);
        self.from.read_exact(&mut self.bytes).map_err(|err| corrupt(self.at, format!("it ends too early: {err}")))?;
        if crc32fast::hash(&self.bytes) != number(crc) {
            return Err(corrupt(self.at, "a frame's checksum is wrong"));
        }
        self.at += 8 + length as u64;
        match self.bytes.split_first() {
            Some((kind, content)) => Ok((*kind, content)),
            None => Err(corrupt(self.at, "an empty frame")),
        }
    }
}

/// How far a stream that was cut is whole: the number of bytes to keep, and where it goes on. Nothing of it is to be kept where there is no mark.
#[derive(Clone, Debug)]
pub struct Resume {
    /// Bytes that are whole.
    pub bytes: u64,
    /// Whether it is at its end already.
    pub ended: bool,
    mark: Mark,
}

impl Resume {
    /// What is there already.
    pub fn moved(&self) -> Moved {
        self.mark.moved()
    }
}

/// Looks where a stream can go on. `None`: from its beginning.
pub fn resume(from: impl Read) -> Result<Option<Resume>> {
    let mut from = BufReader::new(from);
    // One that was cut in its first line has nothing.
    if MAGIC.starts_with(from.fill_buf().map_err(failed("read"))?) && from.buffer().len() < MAGIC.len() {
        return Ok(None);
    }
    let mut frames = Frames::begin(from)?;
    let mut last = None;
    // What comes after the last mark may be anything: the stream was cut there.
    while let Ok((kind, content)) = frames.next() {
        match kind {
            b'm' => {
                let mark = from_bytes::<Mark>(content);
                let mark = mark.map_err(|err| corrupt(0, err.0))?;
                last = Some(Resume { bytes: frames.at, ended: false, mark });
            }
            b'e' => {
                if let Some(last) = &mut last {
                    (last.bytes, last.ended) = (frames.at, true);
                }
                break;
            }
            _ => {}
        }
    }
    Ok(last)
}

/// Writes all of a ledger, from its beginning or on from where a stream was cut (which the caller has shortened to that). `progress` hears after each mark. Records that
/// change meanwhile may be in it as they were or as they are.
pub async fn export(
    ledger: &dyn PinLedger,
    to: &mut (impl Write + Send),
    from: Option<Resume>,
    mut progress: impl FnMut(Moved) + Send,
) -> Result<Moved> {
    let mut mark = match from {
        Some(resume) if resume.ended => return Ok(resume.moved()),
        Some(resume) => resume.mark,
        None => {
            to.write_all(MAGIC).map_err(failed("write"))?;
            Mark::default()
        }
    };
    let cursor = |bytes: &Option<ByteVec>| bytes.as_ref().map(|bytes| Cursor(bytes.to_vec()));
    let kept = |next: Option<Cursor>| next.map(|Cursor(bytes)| ByteVec::from(bytes));
    while mark.part == 0 {
        let page = ledger.pins(cursor(&mark.after).as_ref(), PAGE).await?;
        for pin in page.items {
            frame(to, b'c', &Change::Put(pin).to_bytes())?;
            mark.pins += 1;
        }
        (mark.part, mark.after) = (u8::from(page.next.is_none()), kept(page.next));
        frame(to, b'm', &to_bytes(&mark))?;
        progress(mark.moved());
    }
    while mark.part == 1 {
        // The same page again where it goes on in the middle of it: peers come, they don't go.
        let peers = ledger.peers(cursor(&mark.peers).as_ref(), PAGE).await?;
        for peer in peers.items.iter().skip(usize::try_from(mark.peer).unwrap_or(usize::MAX)) {
            loop {
                let page = ledger.placements_of_peer(peer, None, cursor(&mark.after).as_ref(), PAGE).await?;
                for known in page.items {
                    let wants = known.want.map(|want| Change::Want(known.multihash.clone(), peer.clone(), want));
                    let haves = known.have.map(|have| Change::Have(known.multihash, peer.clone(), have));
                    for change in wants.into_iter().chain(haves) {
                        frame(to, b'c', &change.to_bytes())?;
                        mark.placements += 1;
                    }
                }
                let more = page.next.is_some();
                mark.after = kept(page.next);
                mark.peer += u64::from(!more);
                frame(to, b'm', &to_bytes(&mark))?;
                progress(mark.moved());
                if !more {
                    break;
                }
            }
        }
        (mark.peer, mark.part) = (0, if peers.next.is_some() { 1 } else { 2 });
        mark.peers = kept(peers.next);
    }
    mark.after = None;
    // Few: they are written as a whole, so a resumed stream may have some twice.
    mark.nodes = 0;
    let mut after = None;
    loop {
        let page = ledger.registrations(after.as_ref(), PAGE).await?;
        for node in page.items {
            let content = [Key(Vec::new()).part(node.peer.as_str().as_bytes()).0, node.to_bytes()].concat();
            frame(to, b'n', &content)?;
            mark.nodes += 1;
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    frame(to, b'm', &to_bytes(&mark))?;
    frame(to, b'e', &mark.moved().records().to_be_bytes())?;
    to.flush().map_err(failed("write"))?;
    Ok(mark.moved())
}

/// Reads a whole stream and checks it, without a ledger.
pub fn check(from: impl Read) -> Result<Moved> {
    let mut frames = Frames::begin(from)?;
    let mut moved = Moved::default();
    loop {
        let at = frames.at;
        let (kind, content) = frames.next()?;
        match kind {
            b'c' => match Change::from_bytes(content).map_err(|err| corrupt(at, err))? {
                Change::Put(_) | Change::Remove(..) => moved.pins += 1,
                _ => moved.placements += 1,
            },
            b'n' => {
                registration(content).map_err(|err| corrupt(at, err.0))?;
                moved.nodes += 1;
            }
            b'm' => {}
            b'e' => {
                let expected = content.try_into().map(u64::from_be_bytes).ok();
                return counted(moved, expected, at);
            }
            other => return Err(corrupt(at, format!("a frame of kind {other}, which this build does not know"))),
        }
    }
}

/// Nodes may be in a stream twice, where it was resumed.
fn counted(moved: Moved, expected: Option<u64>, at: u64) -> Result<Moved> {
    let there = moved.records();
    match expected {
        Some(expected) if expected <= there && there <= expected + moved.nodes => Ok(moved),
        _ => Err(corrupt(at, format!("it has {there} records, and its end says {expected:?}"))),
    }
}

/// What an import does with what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Import {
    /// Reads all of it, checks it, and counts what the ledger does not have yet. Changes nothing.
    DryRun,
    /// Applies it. What is newer in the ledger stays.
    Apply {
        /// Bytes of the stream that an earlier import has applied already, as it told.
        applied_bytes: u64,
    },
}

/// Reads a whole stream. `progress` hears how many bytes of it the ledger has durably, and counts. Killed anywhere and made again, it ends the same.
pub async fn import(
    ledger: &dyn PinLedger,
    from: impl Read + Send,
    what: Import,
    mut progress: impl FnMut(u64, Moved) + Send,
) -> Result<Moved> {
    let mut frames = Frames::begin(from)?;
    let (mut moved, mut changes, mut nodes) = (Moved::default(), Vec::new(), 0_u64);
    loop {
        let at = frames.at;
        let (kind, content) = frames.next()?;
        match kind {
            b'c' => changes.push(Change::from_bytes(content).map_err(|err| corrupt(at, err))?),
            b'n' => {
                let told = registration(content).map_err(|err| corrupt(at, err.0))?;
                nodes += 1;
                if let Import::Apply { .. } = what {
                    ledger.register(&told).await?;
                }
            }
            b'm' | b'e' => {}
            other => return Err(corrupt(at, format!("a frame of kind {other}, which this build does not know"))),
        }
        let ended = kind == b'e';
        let expected = if ended { content.try_into().map(u64::from_be_bytes).ok() } else { None };
        if changes.len() >= APPLIED_AT_A_TIME || ended {
            let applied = matches!(what, Import::Apply { applied_bytes } if frames.at <= applied_bytes);
            for change in &changes {
                match change {
                    Change::Put(_) | Change::Remove(..) => moved.pins += 1,
                    _ => moved.placements += 1,
                }
            }
            match what {
                Import::Apply { .. } if !applied => ledger.apply(&changes).await?,
                Import::DryRun => {
                    for change in &changes {
                        moved.known += u64::from(is_known(ledger, change).await?);
                    }
                }
                Import::Apply { .. } => {}
            }
            changes.clear();
            moved.nodes = nodes;
            progress(frames.at, moved);
        }
        if ended {
            return counted(moved, expected, at);
        }
    }
}

fn registration(content: &[u8]) -> std::result::Result<Registration, codec::Malformed> {
    let mut rest = KeyReader(content);
    let peer: Peer = rest.text()?.parse()?;
    let told = from_bytes::<StoredRegistration>(rest.0)?.registration(peer)?;
    told.ok_or_else(|| codec::Malformed("a node that was struck off".to_owned()))
}

/// Whether the ledger has it as it is, or newer.
async fn is_known(ledger: &dyn PinLedger, change: &Change) -> Result<bool> {
    let at = change.generation();
    Ok(match change {
        Change::Put(pin) => ledger.pin(&pin.key).await?.is_some_and(|known| known.generation >= at),
        Change::Want(multihash, peer, _) => {
            let known = ledger.placement(multihash, peer).await?;
            known.and_then(|known| known.want).is_some_and(|want| want.generation >= at)
        }
        Change::Have(multihash, peer, _) => {
            let known = ledger.placement(multihash, peer).await?;
            known.and_then(|known| known.have).is_some_and(|have| have.generation >= at)
        }
        Change::Remove(..) | Change::Forget(..) => false,
    })
}
