//! Blocks from a CAR file or a flatfs folder into a node: each hashed against its multihash first, resumable, the source untouched.
//!
//! The unit of progress is a *round*: some dozens of MiB of blocks in one ImportBlocks call, which ends with a sync, then the place in the source is
//! written down in `NODE/run`. So what the note says is imported is on stable storage, whatever the node's durability class; a kill or a
//! power cut costs the last round, which is put again and found present.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use basalt_blockstore::{Digest, Multihash, verify_digest};
use basalt_proto::v1;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    access::{Access, Admin},
    car::CarReader,
    cid::Cid,
    cli::ImportOptions,
    exit::{Failure, Outcome},
    flatfs::FlatfsReader,
    progress::{self, Progress, Unit},
    say::{say, tell},
};

/// Bytes of blocks in one round.
const ROUND_BYTES: usize = 64 << 20;
/// Blocks in one round.
const ROUND_BLOCKS: u64 = 65_536;
/// A round ends after this time at the latest, so that a slow pipe gets its progress written down too.
const ROUND_TIME: Duration = Duration::from_secs(10);
/// Bytes of blocks in one message; a larger block has one of its own.
const MESSAGE_BYTES: usize = 1 << 20;
/// What a block adds to a message besides its bytes.
const BLOCK_MARGIN_BYTES: usize = 64;
/// Messages that may wait for the node.
const MESSAGES_AHEAD: usize = 8;
/// Damaged files of a flatfs that are named one by one.
const DAMAGED_NAMED_MAX: usize = 100;

/// What came of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    /// Blocks that the source holds and the node now has.
    blocks: u64,
    /// Of these, those that it did not have before.
    new_blocks: u64,
    /// Bytes of `blocks`.
    bytes: u64,
    /// Blocks whose CID contains them (identity): nothing needs storing.
    inline_blocks: u64,
}

/// The note of an import under way.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// What is imported, and what it looked like: another content under the same name begins anew.
    source: String,
    identity: String,
    /// The node that it goes into.
    node_id: String,
    /// A CAR's offset.
    offset: u64,
    /// A flatfs folder's last sub-folder that is done.
    folder: String,
    counts: Counts,
}

impl Note {
    fn parse(bytes: &[u8]) -> Option<Note> {
        serde_json::from_slice(bytes).ok()
    }
}

/// Whether a note reads back, for the tests of what does not.
#[cfg(test)]
pub(crate) fn reads_as_a_note(bytes: &[u8]) -> bool {
    Note::parse(bytes).is_some()
}

/// Where the note of a source lies.
#[derive(Debug)]
struct Notebook {
    path: PathBuf,
}

impl Notebook {
    fn open(node: &Path, source: &Path) -> Outcome<Notebook> {
        let run = node.join("run");
        fs::create_dir_all(&run).map_err(|err| Failure::io(format!("make the folder {}", run.display()), err))?;
        // A name for the source that is a file name: its digits tell sources apart, the note inside says which it is.
        let name = crc32fast::hash(source.as_os_str().as_encoded_bytes());
        Ok(Notebook { path: run.join(format!("import-{name:08x}.json")) })
    }

    fn read(&self) -> Option<Note> {
        Note::parse(&fs::read(&self.path).ok()?)
    }

    fn write(&self, note: &Note) -> Outcome {
        let failed = |err| Failure::io(format!("write {}", self.path.display()), err);
        let text = serde_json::to_vec_pretty(note).map_err(|err| failed(err.into()))?;
        let temporary = self.path.with_extension("writing");
        let mut file = File::create(&temporary).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_data()).map_err(failed)?;
        fs::rename(&temporary, &self.path).map_err(failed)
    }

    fn remove(&self) {
        // A note that stays is read again, does not match or resumes at the end: no harm.
        let _ = fs::remove_file(&self.path);
    }
}

/// Blocks on their way into the node: while some are read and hashed here, those before are written there.
struct Round {
    admin: Admin,
    allow_connected: bool,
    call: Option<Call>,
    message: Vec<v1::Block>,
    message_bytes: usize,
    bytes: usize,
    blocks: u64,
    began: Instant,
}

/// An ImportBlocks call under way.
struct Call {
    messages: mpsc::Sender<v1::ImportBlocksRequest>,
    answer: JoinHandle<Result<v1::ImportBlocksResponse, tonic::Status>>,
}

impl Round {
    fn begin(admin: &Admin, allow_connected: bool) -> Round {
        Round {
            admin: admin.clone(),
            allow_connected,
            call: None,
            message: Vec::new(),
            message_bytes: 0,
            bytes: 0,
            blocks: 0,
            began: Instant::now(),
        }
    }

    /// Asks whether the node takes blocks now: a refusal is better now than after a GiB of standard input.
    async fn ask(&mut self) -> Outcome {
        let message = v1::ImportBlocksRequest { blocks: Vec::new(), allow_connected: self.allow_connected };
        self.admin.import_blocks(tokio_stream::iter([message])).await.map_err(refused)?;
        Ok(())
    }

    async fn add(&mut self, multihash: &Multihash, value: Vec<u8>) -> Outcome {
        let size = value.len();
        if self.message_bytes + size > MESSAGE_BYTES {
            self.send_message().await?;
        }
        self.message.push(v1::Block {
            multihash: multihash.as_bytes().to_vec().into(),
            size: size as u64,
            value: value.into(),
            ..v1::Block::default()
        });
        // An empty block costs something too.
        self.message_bytes += size + BLOCK_MARGIN_BYTES;
        self.bytes += size;
        self.blocks += 1;
        Ok(())
    }

    async fn send_message(&mut self) -> Outcome {
        if self.message.is_empty() {
            return Ok(());
        }
        let blocks = std::mem::take(&mut self.message);
        self.message_bytes = 0;
        let mut admin = self.admin.clone();
        let call = self.call.get_or_insert_with(|| {
            let (messages, stream) = mpsc::channel(MESSAGES_AHEAD);
            let answer = tokio::spawn(async move {
                admin.import_blocks(ReceiverStream::new(stream)).await.map(tonic::Response::into_inner)
            });
            Call { messages, answer }
        });
        let message = v1::ImportBlocksRequest { blocks, allow_connected: self.allow_connected };
        match call.messages.send(message).await {
            Ok(()) => Ok(()),
            // The node has ended the call, and says why in its answer.
            Err(_) => self.answer().await.map(|_| ()),
        }
    }

    async fn answer(&mut self) -> Outcome<v1::ImportBlocksResponse> {
        let Some(Call { messages, answer }) = self.call.take() else { return Ok(v1::ImportBlocksResponse::default()) };
        drop(messages);
        let answer = answer.await.map_err(|err| Failure::new(format!("the import's call ended: {err}")))?;
        answer.map_err(refused)
    }

    fn is_full(&self) -> bool {
        self.bytes >= ROUND_BYTES || self.blocks >= ROUND_BLOCKS || self.began.elapsed() >= ROUND_TIME
    }

    fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Ends the round: what was added is durable when this returns.
    async fn end(&mut self, counts: &mut Counts) -> Outcome {
        self.send_message().await?;
        let answer = self.answer().await?;
        if answer.blocks != self.blocks {
            return Err(Failure::new(format!(
                "the node took {} of {} blocks: this is a defect of the node; nothing else was done",
                answer.blocks, self.blocks
            )));
        }
        counts.blocks += answer.blocks;
        counts.new_blocks += answer.new_blocks;
        counts.bytes += answer.bytes;
        (self.bytes, self.blocks, self.began) = (0, 0, Instant::now());
        Ok(())
    }
}

/// The node's refusal because of a connected Kubo gets the flag of this command line as its remedy.
fn refused(status: tonic::Status) -> Failure {
    let failure = Failure::from(status.clone());
    match status.code() {
        tonic::Code::FailedPrecondition if !failure.message.contains("--allow-connected") => Failure {
            message: format!(
                "{}. Stop Kubo first: it remembers which blocks are absent, and would not see these. Or say --allow-connected and restart \
                 Kubo afterwards",
                failure.message.trim_end_matches('.')
            ),
            ..failure
        },
        _ => failure,
    }
}

/// How a block and its name go together.
fn check(multihash: &Multihash, value: &[u8]) -> Result<(), String> {
    match verify_digest(multihash, value) {
        Digest::Matches => Ok(()),
        Digest::Differs => Err("its bytes don't hash to its name: it is damaged".into()),
        Digest::UnknownFunction => {
            Err(format!("its hash function 0x{:x} is not known here, so it can't be verified", multihash.code()))
        }
    }
}

/// `basalt import car`.
pub async fn car(node: &Path, file: &Path, options: &ImportOptions) -> Outcome {
    let from_stdin = file.as_os_str() == "-";
    let shown = if from_stdin { "standard input".to_string() } else { file.display().to_string() };
    let failed = |err| Failure::io(format!("read {shown}"), err);
    if from_stdin {
        let reader = open_car(BufReader::new(io::stdin()), &shown)?;
        return car_blocks(node, reader, &shown, None, options).await;
    }
    let source = fs::canonicalize(file).map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => Failure::absent(format!(
            "{shown}: there is no such file; nothing was imported. Name a CAR file, as `ipfs dag export` writes it, or `-` to read one from \
             the standard input"
        )),
        _ => failed(err),
    })?;
    let opened = File::open(&source).map_err(failed)?;
    let meta = opened.metadata().map_err(failed)?;
    let mut reader = open_car(BufReader::with_capacity(1 << 20, opened), &shown)?;
    if !meta.is_file() {
        return car_blocks(node, reader, &shown, None, options).await;
    }
    let identity =
        format!("{}:{}:{}:{}", meta.dev(), meta.ino(), meta.len(), meta.mtime_nsec() + meta.mtime() * 1_000_000_000);
    let note = Note {
        source: source.display().to_string(),
        identity,
        node_id: String::new(),
        offset: reader.position(),
        folder: String::new(),
        counts: Counts::default(),
    };
    let notebook = Notebook::open(node, &source)?;
    let kept = notebook.read().filter(|kept| kept.source == note.source && kept.identity == note.identity);
    let mut place = CarPlace { notebook, note, size: meta.len() };
    if let Some(kept) =
        kept.filter(|kept| !options.restart && kept.offset >= place.note.offset && kept.offset <= meta.len())
    {
        reader.resume_at(kept.offset).map_err(failed)?;
        tell!("resuming at byte {} of {shown}; {} blocks are in already", kept.offset, kept.counts.blocks);
        place.note = kept;
    }
    car_blocks(node, reader, &shown, Some(place), options).await
}

struct CarPlace {
    notebook: Notebook,
    note: Note,
    size: u64,
}

fn open_car<R: BufRead>(input: R, shown: &str) -> Outcome<CarReader<R>> {
    CarReader::open(input).map_err(|err| Failure::new(format!("{shown}: {err}; nothing was imported")))
}

async fn car_blocks<R: BufRead>(
    node: &Path,
    mut reader: CarReader<R>,
    shown: &str,
    mut place: Option<CarPlace>,
    options: &ImportOptions,
) -> Outcome {
    let mut access = Access::open_for_writing(node, "basalt import").await?;
    if let Some(place) = &mut place {
        let node_id = access.node_id().await?;
        if !place.note.node_id.is_empty() && place.note.node_id != node_id {
            return Err(Failure::new(format!(
                "{} belongs to another node that was here: run again with --restart",
                place.notebook.path.display()
            )));
        }
        place.note.node_id = node_id;
    }
    let mut counts = place.as_ref().map(|place| place.note.counts.clone()).unwrap_or_default();
    let mut bar = Progress::begin("import", Unit::Bytes, place.as_ref().map(|place| place.size));
    let outcome =
        car_rounds(&mut reader, &mut access, &mut place, &mut counts, &mut bar, options.allow_connected).await;
    bar.end();
    access.close().await?;
    if let Err(failure) = outcome {
        let kept = match &place {
            Some(_) => format!("{} blocks before it are in the node; run again to resume there", counts.blocks),
            None => format!("{} blocks before it are in the node", counts.blocks),
        };
        return Err(Failure { exit: failure.exit, message: format!("{shown}: {}; {kept}", failure.message) });
    }
    if let Some(place) = &place {
        place.notebook.remove();
    }
    let roots: Vec<String> = reader.roots().iter().map(Cid::to_string).collect();
    if options.json {
        say!("{}", json!({ "counts": counts, "roots": roots, "car_version": reader.version() }));
        return Ok(());
    }
    say(&counts, options.allow_connected);
    for root in roots {
        say!("root {root}");
    }
    Ok(())
}

async fn car_rounds<R: BufRead>(
    reader: &mut CarReader<R>,
    access: &mut Access,
    place: &mut Option<CarPlace>,
    counts: &mut Counts,
    bar: &mut Progress,
    allow_connected: bool,
) -> Outcome {
    let mut round = Round::begin(access.admin(), allow_connected);
    round.ask().await?;
    loop {
        let begins = reader.position();
        let section = reader.next_section();
        let end = !matches!(section, Ok(Some(_)));
        let bad = match section {
            Ok(Some(section)) => match check(section.cid.multihash(), &section.data) {
                Ok(()) if section.cid.multihash().code() == 0 => {
                    counts.inline_blocks += 1;
                    None
                }
                Ok(()) => {
                    round.add(section.cid.multihash(), section.data).await?;
                    None
                }
                Err(why) => Some(format!("block {} at byte {}: {why}", section.cid, section.offset)),
            },
            Ok(None) => None,
            Err(err) => Some(err.to_string()),
        };
        if round.is_full() || end || bad.is_some() {
            // What came before the bad block is good, and kept.
            round.end(counts).await?;
            bar.at(reader.position());
            if let Some(place) = place {
                place.note.offset = if bad.is_none() { reader.position() } else { begins };
                place.note.counts = counts.clone();
                place.notebook.write(&place.note)?;
            }
        }
        if let Some(what) = bad {
            return Err(Failure::new(what));
        }
        if end {
            return Ok(());
        }
    }
}

fn say(counts: &Counts, allow_connected: bool) {
    say!(
        "imported {} blocks, {}: {} new, {} there already{}",
        counts.blocks,
        progress::bytes(counts.bytes),
        counts.new_blocks,
        counts.blocks - counts.new_blocks,
        match counts.inline_blocks {
            0 => String::new(),
            n => format!("; {n} more are inline in their CIDs and need no storing"),
        }
    );
    if allow_connected {
        say!("restart every Kubo that is connected to this node now: it remembers which blocks were absent");
    }
}

/// `basalt import flatfs`.
pub async fn flatfs(node: &Path, folder: &Path, options: &ImportOptions) -> Outcome {
    let reader = FlatfsReader::open(folder)?;
    let source =
        fs::canonicalize(reader.root()).map_err(|err| Failure::io(format!("read {}", folder.display()), err))?;
    let mut access = Access::open_for_writing(node, "basalt import").await?;
    let notebook = Notebook::open(node, &source)?;
    // A flatfs has no identity of its own; blocks that came meanwhile to sub-folders that are done would be missed, so a note counts only
    // while the folders are the same ones.
    let meta = fs::metadata(&source).map_err(|err| Failure::io(format!("read {}", source.display()), err))?;
    let mut note = Note {
        source: source.display().to_string(),
        identity: format!("{}:{}:{}", meta.dev(), meta.ino(), reader.folders().len()),
        node_id: access.node_id().await?,
        offset: 0,
        folder: String::new(),
        counts: Counts::default(),
    };
    let kept = notebook.read().filter(|kept| {
        !options.restart
            && (&kept.source, &kept.identity, &kept.node_id) == (&note.source, &note.identity, &note.node_id)
    });
    if let Some(kept) = kept {
        tell!("resuming after sub-folder {}; {} blocks are in already", kept.folder, kept.counts.blocks);
        note = kept;
    }
    let mut findings = Findings::default();
    let mut bar = Progress::begin("import", Unit::Things("sub-folders"), Some(reader.folders().len() as u64));
    let outcome = flatfs_rounds(&reader, &mut access, &notebook, &mut note, &mut findings, &mut bar, options).await;
    bar.end();
    access.close().await?;
    if let Err(failure) = outcome {
        let kept = format!("{} blocks are in the node; run again to resume", note.counts.blocks);
        return Err(Failure {
            exit: failure.exit,
            message: format!("{}: {}; {kept}", folder.display(), failure.message),
        });
    }
    notebook.remove();
    if options.json {
        say!(
            "{}",
            json!({ "counts": note.counts, "damaged": findings.damaged, "damaged_files": findings.named, "strangers": findings.strangers })
        );
    } else {
        say(&note.counts, options.allow_connected);
        if findings.strangers > 0 {
            say!("{} files that are no blocks were left out", findings.strangers);
        }
    }
    if findings.damaged == 0 {
        return Ok(());
    }
    let mut message = format!("{} blocks of {} are damaged and were not imported:", findings.damaged, folder.display());
    for (file, why) in &findings.named {
        message.push_str(&format!("\n  {file}: {why}"));
    }
    if findings.damaged > findings.named.len() as u64 {
        message.push_str("\n  and more");
    }
    message.push_str(
        "\nAll others are in. Kubo fetches damaged blocks again when they are asked for, where another peer has them",
    );
    Err(Failure::new(message))
}

#[derive(Default)]
struct Findings {
    damaged: u64,
    named: BTreeMap<String, String>,
    strangers: u64,
}

async fn flatfs_rounds(
    reader: &FlatfsReader,
    access: &mut Access,
    notebook: &Notebook,
    note: &mut Note,
    findings: &mut Findings,
    bar: &mut Progress,
    options: &ImportOptions,
) -> Outcome {
    let mut round = Round::begin(access.admin(), options.allow_connected);
    round.ask().await?;
    let mut written = Instant::now();
    for folder in reader.folders() {
        if *folder <= note.folder && !note.folder.is_empty() {
            bar.add(1);
            continue;
        }
        let (blocks, strangers) = reader.blocks(folder)?;
        findings.strangers += strangers.len() as u64;
        for block in blocks {
            let value = match block.read() {
                Ok(value) => value,
                Err(err) if err.kind() == io::ErrorKind::FileTooLarge => {
                    findings.damaged += 1;
                    if findings.named.len() < DAMAGED_NAMED_MAX {
                        findings.named.insert(block.path.display().to_string(), err.to_string());
                    }
                    continue;
                }
                Err(err) => return Err(Failure::io(format!("read {}", block.path.display()), err)),
            };
            match check(&block.multihash, &value) {
                Ok(()) => round.add(&block.multihash, value).await?,
                Err(why) => {
                    findings.damaged += 1;
                    if findings.named.len() < DAMAGED_NAMED_MAX {
                        let why = if value.is_empty() { "it is empty, as a power cut leaves it".into() } else { why };
                        findings.named.insert(block.path.display().to_string(), why);
                    }
                }
            }
            if round.is_full() {
                round.end(&mut note.counts).await?;
            }
        }
        bar.add(1);
        // A note of a folder says that all of it is durable; small folders share a round.
        if round.is_empty() || written.elapsed() >= Duration::from_secs(1) {
            round.end(&mut note.counts).await?;
            note.folder.clone_from(folder);
            notebook.write(note)?;
            written = Instant::now();
        }
    }
    round.end(&mut note.counts).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back_and_a_torn_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let notebook = Notebook::open(dir.path(), Path::new("/data/a.car")).unwrap();
        assert!(notebook.read().is_none());
        let note = Note {
            source: "/data/a.car".into(),
            identity: "1:2:3:4".into(),
            node_id: "ab".into(),
            offset: 77,
            folder: String::new(),
            counts: Counts { blocks: 3, ..Counts::default() },
        };
        notebook.write(&note).unwrap();
        assert_eq!(notebook.read(), Some(note));
        fs::write(&notebook.path, "{\"source\": \"/da").unwrap();
        assert!(notebook.read().is_none());
        let other = Notebook::open(dir.path(), Path::new("/data/b.car")).unwrap();
        assert_ne!(other.path, notebook.path);
    }

    #[test]
    fn a_block_must_hash_to_its_name() {
        let identity = Multihash::parse(&[0, 2, b'h', b'i']).unwrap();
        assert!(check(&identity, b"hi").is_ok());
        assert!(check(&identity, b"ho").unwrap_err().contains("damaged"));
        let unknown = Multihash::parse(&[0x16, 1, 9]).unwrap();
        assert!(check(&unknown, b"x").unwrap_err().contains("0x16"));
    }
}
