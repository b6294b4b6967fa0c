//! What a peer really holds, as its Kubo lists it, against what the ledger says it holds.
//!
//! A Kubo lists its pins in an order of its own, and the ledger has a peer's placements in the order of buckets. What Kubo lists goes to files, one for a range of
//! buckets, and then one range after the other is compared: memory is that of a range, however many pins there are.
//!
//! All that is told has the generation of the moment before the list began. What changed since has a higher one, and stays.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufReader, BufWriter, Read, Seek, Write},
    path::Path,
};

use crate::{Bucket, Change, Class, Error, Generation, Have, Multihash, PAGE_MAX, Peer, PinLedger, PlaneKey, Result};

/// Ranges of buckets: their high byte.
const RANGES: usize = 256;
/// Changes that are told at a time.
const TOLD_AT_A_TIME: usize = 256;
const BUFFER_BYTES: usize = 8 << 10;

/// A list of what a peer holds, while it comes.
#[derive(Debug)]
pub struct Inventory {
    key: PlaneKey,
    at: Generation,
    seen_ms: u64,
    ranges: Vec<BufWriter<File>>,
    held: u64,
}

/// What came of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Pins that were listed.
    pub held: u64,
    /// Of these, those that the ledger did not know as held.
    pub appeared: u64,
    /// Placements that the ledger knew as held and that were not listed.
    pub gone: u64,
}

fn failed(verb: &str) -> impl Fn(std::io::Error) -> Error + use<> {
    let tried = format!("{verb} a list of pins");
    move |err| Error::new(&tried, Class::Unavailable, format!("a temporary file: {err}"))
}

fn range(bucket: Bucket) -> usize {
    usize::from(bucket.0 >> 8)
}

impl Inventory {
    /// Begins a list, with unnamed files in a folder. `at` was made before the list was asked for.
    pub fn begin(folder: &Path, key: PlaneKey, at: Generation) -> Result<Inventory> {
        let file = |_| tempfile::tempfile_in(folder).map(|file| BufWriter::with_capacity(BUFFER_BYTES, file));
        let ranges: std::io::Result<Vec<_>> = (0..RANGES).map(file).collect();
        let seen_ms = u64::try_from(at.get() / 1000).unwrap_or(0);
        Ok(Inventory { key, at, seen_ms, ranges: ranges.map_err(failed("begin"))?, held: 0 })
    }

    /// Takes a pin of the list. The same may come twice.
    pub fn holds(&mut self, multihash: &Multihash) -> Result<()> {
        let Some(file) = self.ranges.get_mut(range(self.key.bucket(multihash))) else { return Ok(()) };
        let bytes = multihash.as_bytes();
        // A multihash is shorter than 256 bytes.
        file.write_all(&[bytes.len() as u8]).and_then(|()| file.write_all(bytes)).map_err(failed("write"))?;
        self.held += 1;
        Ok(())
    }

    /// Ends the list, which is whole, and tells the ledger how it differs. Made again after an error, it ends the same.
    pub async fn settle(mut self, ledger: &dyn PinLedger, peer: &Peer) -> Result<Settled> {
        let mut settled = Settled { held: self.held, ..Settled::default() };
        let mut told = Vec::new();
        let mut current = 0;
        let mut held = self.read(0)?;
        let mut after = None;
        loop {
            let page = ledger.placements_of_peer(peer, None, after.as_ref(), PAGE_MAX / 10).await?;
            for known in page.items {
                let at = range(self.key.bucket(&known.multihash));
                while current < at {
                    self.appeared(&mut held, peer, &mut told, &mut settled);
                    current += 1;
                    held = self.read(current)?;
                }
                let is_held = held.remove(&known.multihash);
                let newer = known.have.as_ref().is_some_and(|have| have.generation >= self.at);
                let was_held = known.have.as_ref().is_some_and(|have| have.held);
                if newer || is_held == was_held {
                    continue;
                }
                if is_held {
                    settled.appeared += 1
                } else {
                    settled.gone += 1
                }
                let answers = known.want.filter(|want| want.wanted == is_held).map(|want| want.generation);
                told.push(self.have(known.multihash, peer, is_held, answers));
                if told.len() >= TOLD_AT_A_TIME {
                    ledger.apply(&std::mem::take(&mut told)).await?;
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        loop {
            self.appeared(&mut held, peer, &mut told, &mut settled);
            for some in std::mem::take(&mut told).chunks(TOLD_AT_A_TIME) {
                ledger.apply(some).await?;
            }
            current += 1;
            if current == RANGES {
                return Ok(settled);
            }
            held = self.read(current)?;
        }
    }

    fn appeared(&self, held: &mut HashSet<Multihash>, peer: &Peer, told: &mut Vec<Change>, settled: &mut Settled) {
        for multihash in held.drain() {
            settled.appeared += 1;
            told.push(self.have(multihash, peer, true, None));
        }
    }

    fn have(&self, multihash: Multihash, peer: &Peer, held: bool, answers: Option<Generation>) -> Change {
        let have = Have { generation: self.at, held, answers, size_bytes: None, error: None, seen_ms: self.seen_ms };
        Change::Have(multihash, peer.clone(), have)
    }

    /// What was listed of a range.
    fn read(&mut self, range: usize) -> Result<HashSet<Multihash>> {
        let mut held = HashSet::new();
        let Some(writer) = self.ranges.get_mut(range) else { return Ok(held) };
        writer.flush().and_then(|()| writer.get_mut().rewind()).map_err(failed("read"))?;
        let mut file = BufReader::new(writer.get_mut());
        let (mut length, mut bytes) = ([0], [0; 255]);
        loop {
            match file.read_exact(&mut length) {
                Ok(()) => {}
                Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(held),
                Err(err) => return Err(failed("read")(err)),
            }
            let bytes = bytes.get_mut(..usize::from(length[0])).unwrap_or_default();
            file.read_exact(bytes).map_err(failed("read"))?;
            let multihash = Multihash::from_bytes(bytes);
            held.insert(multihash.map_err(|err| Error::new("read a list of pins", Class::Corrupt, err.to_string()))?);
        }
    }
}
