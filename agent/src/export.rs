//! All blocks of a node into a CAR file or a flatfs folder: each hashed against its multihash on the way, resumable.
//!
//! A node keeps blocks by multihash and no codecs, so a CAR of all blocks names them as CIDv1 `raw`. Kubo finds them under any codec,
//! because its blockstore goes by multihash as well. Below a root the codecs are known from the links, and each block has its own CID.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use basalt_blockstore::{Digest, Multihash, verify_digest};
use basalt_proto::v1;
use serde::Serialize;
use serde_json::json;

use crate::{
    access::Access,
    car::{CarReader, CarWriter},
    cid::{self, Cid},
    dag,
    exit::{Exit, Failure, Outcome},
    flatfs::FlatfsWriter,
    progress::{self, Progress, Unit},
    say::{say, tell},
};

/// How often a page is listed again because a block of it was deleted meanwhile.
const PAGE_TRIES_MAX: u32 = 100;

/// Bytes that are written at a time.
const OUTPUT_BYTES: usize = 1 << 20;
/// Blocks without links that are fetched in one call.
const LEAVES_MAX: usize = 256;
/// Damaged blocks that are named one by one.
const DAMAGED_NAMED_MAX: usize = 100;

/// What came of an export.
#[derive(Clone, Debug, Default, Serialize)]
struct Counts {
    /// Blocks that the target holds now.
    blocks: u64,
    /// Their bytes.
    bytes: u64,
    /// Of these, those that an earlier run had written.
    kept_blocks: u64,
    /// Blocks whose hash function is not known here: their bytes were checked against the log's checksum alone.
    unhashed_blocks: u64,
    /// Blocks that can't be read back, and are not in the target.
    damaged_blocks: u64,
    /// The first of them, and why.
    damaged: BTreeMap<String, String>,
}

impl Counts {
    /// Checks a block that the node gave, and counts it; `false`: it is damaged, and must not be written.
    fn take(&mut self, multihash: &Multihash, block: &v1::Block) -> bool {
        let why = match verify_digest(multihash, &block.value) {
            _ if !block.damaged.is_empty() => &block.damaged,
            Digest::Differs => "its bytes don't hash to its name",
            digest => {
                self.unhashed_blocks += u64::from(digest == Digest::UnknownFunction);
                self.blocks += 1;
                self.bytes += block.value.len() as u64;
                return true;
            }
        };
        self.damaged_blocks += 1;
        if self.damaged.len() < DAMAGED_NAMED_MAX {
            self.damaged.insert(Cid::raw(multihash.clone()).to_string(), why.to_owned());
        }
        false
    }

    /// Damaged blocks are a failure, though everything else was exported.
    fn verdict(&self, target: &str) -> Outcome {
        if self.damaged_blocks == 0 {
            return Ok(());
        }
        let mut message = format!("{} blocks of the node are damaged and are not in {target}:", self.damaged_blocks);
        for (cid, why) in &self.damaged {
            message.push_str(&format!("\n  {cid}: {why}"));
        }
        if self.damaged_blocks > self.damaged.len() as u64 {
            message.push_str("\n  and more: `basalt verify --hash` names them all");
        }
        message.push_str(
            "\nAll others are. Restore these from a replica or backup, or let Kubo fetch them again, and export again",
        );
        Err(Failure::new(message))
    }

    fn say(&self, target: &str) {
        say!(
            "exported {} blocks, {}, to {target}{}{}",
            self.blocks,
            progress::bytes(self.bytes),
            if self.kept_blocks > 0 { format!("; {} were there from before", self.kept_blocks) } else { String::new() },
            match self.unhashed_blocks {
                0 => String::new(),
                n => format!("; {n} have a hash function that is not known here, and were not hashed"),
            }
        );
    }
}

/// `basalt export car`.
pub async fn car(node: &Path, file: &Path, roots: &[String], as_json: bool) -> Outcome {
    let roots: Vec<Cid> = roots.iter().map(|root| root.parse().map_err(Failure::usage)).collect::<Outcome<_>>()?;
    let mut access = Access::open_for_reading(node, "basalt export").await?;
    let outcome = car_file(&mut access, file, &roots).await;
    access.close().await?;
    let counts = outcome?;
    if file.as_os_str() == "-" {
        return counts.verdict("what was written");
    }
    if as_json {
        say!("{}", json!({ "counts": counts, "file": file.display().to_string() }));
    } else {
        counts.say(&file.display().to_string());
    }
    counts.verdict(&file.display().to_string())
}

async fn car_file(access: &mut Access, file: &Path, roots: &[Cid]) -> Outcome<Counts> {
    let total = match roots {
        [] => Some(access.status().await?.blocks),
        _ => None,
    };
    let mut counts = Counts::default();
    if file.as_os_str() == "-" {
        let failed = Failure::output;
        let output = BufWriter::with_capacity(OUTPUT_BYTES, io::stdout());
        let mut bar = Progress::begin("export", Unit::Things("blocks"), total);
        let written = car_content(access, roots, None, CarTo::New(output), &mut counts, &mut bar, &failed).await;
        bar.end();
        written?.flush().map_err(failed)?;
        return Ok(counts);
    }
    if file.exists() {
        return Err(Failure::new(format!(
            "{} is there already: name a new file, or move that one away",
            file.display()
        )));
    }
    let partial = partial_path(file);
    let failed = |err| Failure::io(format!("write {}", partial.display()), err);
    // Below a root the order of blocks comes from their content, so that what was written says too little about what is missing.
    let resumed = match roots {
        [] => resume(&partial, &mut counts).map_err(|failure| failure.context(partial.display()))?,
        _ => None,
    };
    let (output, after) = match resumed {
        Some((output, after)) => (CarTo::Old(output), after),
        None => {
            let output = OpenOptions::new().write(true).create(true).truncate(true).open(&partial).map_err(failed)?;
            (CarTo::New(BufWriter::with_capacity(OUTPUT_BYTES, output)), None)
        }
    };
    let mut bar = Progress::begin("export", Unit::Things("blocks"), total);
    let written = car_content(access, roots, after, output, &mut counts, &mut bar, &failed).await;
    bar.end();
    let again = if roots.is_empty() { "run again to resume" } else { "run again to write it anew" };
    let output = written.map_err(|failure| failure.context(format!("{} is not whole, {again}", partial.display())))?;
    let output = output.into_inner().map_err(|err| failed(err.into_error()))?;
    output.sync_all().map_err(failed)?;
    fs::rename(&partial, file).map_err(failed)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(counts)
}

/// Where a CAR is written to.
enum CarTo<W> {
    /// Nothing is there.
    New(W),
    /// Header and first blocks are there.
    Old(W),
}

async fn car_content<W: Write>(
    access: &mut Access,
    roots: &[Cid],
    after: Option<Multihash>,
    to: CarTo<W>,
    counts: &mut Counts,
    bar: &mut Progress,
    failed: &impl Fn(io::Error) -> Failure,
) -> Outcome<W> {
    let mut writer = match to {
        CarTo::New(output) => CarWriter::create(output, roots).map_err(failed)?,
        CarTo::Old(output) => CarWriter::append(output),
    };
    match roots {
        [] => all_blocks(access, after, &mut writer, counts, bar, failed).await?,
        _ => dag_blocks(access, roots, &mut writer, counts, bar, failed).await?,
    }
    Ok(writer.into_inner())
}

fn partial_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_os_string();
    name.push(".partial");
    PathBuf::from(name)
}

type Resumed = (BufWriter<File>, Option<Multihash>);

/// Opens what an export that was killed has left: every whole block in it is checked again, what is cut at its end is taken off.
fn resume(partial: &Path, counts: &mut Counts) -> Outcome<Option<Resumed>> {
    let failed = |err| Failure::io("read", err);
    let file = match OpenOptions::new().read(true).write(true).open(partial) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let Ok(mut reader) = CarReader::open(BufReader::with_capacity(1 << 20, file.try_clone().map_err(failed)?)) else {
        return Ok(None);
    };
    if !reader.roots().is_empty() {
        // Begun for some roots: nothing of it can be used here.
        return Ok(None);
    }
    let mut end = reader.position();
    let mut last = None;
    while let Ok(Some(section)) = reader.next_section() {
        // A power cut may leave anything near the end; whatever is not whole is written again.
        if verify_digest(section.cid.multihash(), &section.data) == Digest::Differs {
            break;
        }
        end = reader.position();
        last = Some(section.cid.multihash().clone());
        counts.blocks += 1;
        counts.kept_blocks += 1;
        counts.bytes += section.data.len() as u64;
    }
    file.set_len(end).map_err(failed)?;
    let mut file = file;
    io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(failed)?;
    tell!("resuming after {} blocks", counts.blocks);
    Ok(Some((BufWriter::with_capacity(OUTPUT_BYTES, file), last)))
}

async fn all_blocks<W: Write>(
    access: &mut Access,
    after: Option<Multihash>,
    writer: &mut CarWriter<W>,
    counts: &mut Counts,
    bar: &mut Progress,
    failed: &impl Fn(io::Error) -> Failure,
) -> Outcome {
    let mut pages = Pages::begin(access, after, false).await?;
    while let Some(blocks) = pages.next().await? {
        for (multihash, block) in blocks {
            if counts.take(&multihash, &block) {
                writer.block(&Cid::raw(multihash), &block.value).map_err(failed)?;
            }
        }
        bar.at(counts.blocks);
    }
    Ok(())
}

/// Writes what can be reached from the roots, each block once, parents before what they link to.
async fn dag_blocks<W: Write>(
    access: &mut Access,
    roots: &[Cid],
    writer: &mut CarWriter<W>,
    counts: &mut Counts,
    bar: &mut Progress,
    failed: &impl Fn(io::Error) -> Failure,
) -> Outcome {
    let mut seen: HashSet<Cid> = HashSet::new();
    let mut next: Vec<Cid> = roots.iter().rev().cloned().collect();
    while let Some(first) = next.pop() {
        // Leaves that follow one another come in one call; what links further decides what comes next.
        let mut wanted = vec![first];
        while wanted.len() < LEAVES_MAX && wanted.iter().chain(next.last()).all(|cid| cid.codec() == cid::RAW) {
            let Some(leaf) = next.pop() else { break };
            wanted.push(leaf);
        }
        wanted.retain(|cid| seen.insert(cid.clone()));
        for (cid, block) in fetch(access, wanted).await? {
            // An identity CID has its bytes in itself: it needs no block, and may still link to some.
            if cid.multihash().code() != 0 {
                if !counts.take(cid.multihash(), &block) {
                    // What it links to can't be known: a part of a DAG would look like the whole.
                    return counts.verdict("the DAG");
                }
                writer.block(&cid, &block.value).map_err(failed)?;
            }
            let links = dag::links(&cid, &block.value).map_err(Failure::new)?;
            next.extend(links.into_iter().rev().filter(|link| !seen.contains(link)));
        }
        bar.at(counts.blocks);
    }
    Ok(())
}

/// Which of some CIDs the node does not hold, as an error.
async fn missing(access: &mut Access, cids: &[Cid]) -> Failure {
    for cid in cids.iter().filter(|cid| cid.multihash().code() != 0) {
        let multihashes = vec![cid.multihash().as_bytes().to_vec().into()];
        let request = v1::ExportBlocksRequest { multihashes, keys_only: true, ..v1::ExportBlocksRequest::default() };
        let found = async { Pages::of(access.admin().export_blocks(request).await?.into_inner()).next().await };
        if let Err(failure) = found.await {
            let why = "so the DAG is not whole; `ipfs pin add` of its root fetches it";
            return match failure.exit {
                Exit::Absent => Failure::absent(format!("the node does not hold {cid}, {why}")),
                _ => failure,
            };
        }
    }
    Failure::absent("a block went while it was read: keep the DAG pinned, and run again")
}

/// The bytes of some CIDs, in order.
async fn fetch(access: &mut Access, cids: Vec<Cid>) -> Outcome<Vec<(Cid, v1::Block)>> {
    let stored = cids.iter().filter(|cid| cid.multihash().code() != 0);
    let multihashes: Vec<_> = stored.map(|cid| cid.multihash().as_bytes().to_vec().into()).collect();
    let mut values = VecDeque::new();
    if !multihashes.is_empty() {
        let request = v1::ExportBlocksRequest { multihashes, ..v1::ExportBlocksRequest::default() };
        let mut pages = Pages::of(access.admin().export_blocks(request).await?.into_inner());
        loop {
            match pages.next().await {
                Ok(Some(blocks)) => values.extend(blocks.into_iter().map(|(_, block)| block)),
                Ok(None) => break,
                Err(failure) if failure.exit == Exit::Absent => return Err(missing(access, &cids).await),
                Err(failure) => return Err(failure),
            }
        }
    }
    let mut found = Vec::with_capacity(cids.len());
    for cid in cids {
        let block = match cid.multihash().code() {
            0 => v1::Block { value: cid.multihash().digest().to_vec().into(), ..v1::Block::default() },
            _ => values.pop_front().unwrap_or_default(),
        };
        found.push((cid, block));
    }
    Ok(found)
}

/// `basalt export flatfs`.
pub async fn flatfs(node: &Path, folder: &Path, as_json: bool) -> Outcome {
    let node_path = fs::canonicalize(node).map_err(|err| Failure::io(format!("read {}", node.display()), err))?;
    if fs::canonicalize(folder).is_ok_and(|folder| folder.starts_with(&node_path)) {
        return Err(Failure::usage(format!("{} lies in the node itself: name a folder elsewhere", folder.display())));
    }
    let mut access = Access::open_for_reading(node, "basalt export").await?;
    let outcome = flatfs_files(&mut access, folder).await;
    access.close().await?;
    let counts = outcome
        .map_err(|failure| failure.context(format!("{} is not whole; run again to resume", folder.display())))?;
    if as_json {
        say!("{}", json!({ "counts": counts, "folder": folder.display().to_string() }));
    } else {
        counts.say(&folder.display().to_string());
    }
    counts.verdict(&folder.display().to_string())
}

async fn flatfs_files(access: &mut Access, folder: &Path) -> Outcome<Counts> {
    let writer = FlatfsWriter::open(folder)?;
    let failed = |err| Failure::io(format!("write into {}", folder.display()), err);
    let total = access.status().await?.blocks;
    let mut counts = Counts::default();
    let mut bar = Progress::begin("export", Unit::Things("blocks"), Some(total));
    // Names and sizes first: what an earlier run has written is read from there and not from the node.
    let mut after: Option<Multihash> = None;
    let mut tries = 0;
    'pages: loop {
        let mut names = Pages::begin(access, after.clone(), true).await?;
        let Some(page) = names.next().await? else { break };
        drop(names);
        let mut missing = Vec::new();
        let mut last = after.clone();
        let before = counts.clone();
        for (multihash, block) in page {
            let existing = writer.existing(&multihash, block.size).map_err(failed)?;
            match existing.filter(|value| verify_digest(&multihash, value) == Digest::Matches) {
                Some(value) => {
                    counts.blocks += 1;
                    counts.bytes += value.len() as u64;
                    counts.kept_blocks += 1;
                }
                None => missing.push(multihash.as_bytes().to_vec().into()),
            }
            last = Some(multihash);
        }
        if !missing.is_empty() {
            let request = v1::ExportBlocksRequest { multihashes: missing, ..v1::ExportBlocksRequest::default() };
            let mut pages = Pages::of(access.admin().export_blocks(request).await?.into_inner());
            loop {
                let blocks = match pages.next().await {
                    Ok(Some(blocks)) => blocks,
                    Ok(None) => break,
                    // Deleted between its name and its bytes: list this page again.
                    Err(failure) if failure.exit == Exit::Absent && tries < PAGE_TRIES_MAX => {
                        tries += 1;
                        counts = before;
                        continue 'pages;
                    }
                    Err(failure) => return Err(failure),
                };
                for (multihash, block) in blocks {
                    if counts.take(&multihash, &block) {
                        writer.write(&multihash, &block.value).map_err(failed)?;
                    }
                }
                bar.at(counts.blocks);
            }
        }
        bar.at(counts.blocks);
        (after, tries) = (last, 0);
    }
    bar.end();
    writer.sync().map_err(failed)?;
    Ok(counts)
}

/// Pages of blocks from the node. A stream that ends without saying that it is complete was cut, and is an error.
struct Pages {
    stream: tonic::Streaming<v1::ExportBlocksResponse>,
    complete: bool,
}

impl Pages {
    async fn begin(access: &mut Access, after: Option<Multihash>, keys_only: bool) -> Outcome<Pages> {
        let after = after.map(|after| after.as_bytes().to_vec()).unwrap_or_default().into();
        let request = v1::ExportBlocksRequest { after, keys_only, ..v1::ExportBlocksRequest::default() };
        Ok(Pages::of(access.admin().export_blocks(request).await?.into_inner()))
    }

    fn of(stream: tonic::Streaming<v1::ExportBlocksResponse>) -> Pages {
        Pages { stream, complete: false }
    }

    /// The next blocks; `None` at the end.
    async fn next(&mut self) -> Outcome<Option<Vec<(Multihash, v1::Block)>>> {
        loop {
            let Some(page) = self.stream.message().await? else {
                return match self.complete {
                    true => Ok(None),
                    false => Err(Failure::new("the node stopped in the middle of its blocks: look at its log")),
                };
            };
            self.complete = page.complete;
            if !page.blocks.is_empty() {
                let parse = |block: v1::Block| Ok((Multihash::parse(&block.multihash)?, block));
                return Ok(Some(page.blocks.into_iter().map(parse).collect::<Outcome<_>>()?));
            }
        }
    }
}
