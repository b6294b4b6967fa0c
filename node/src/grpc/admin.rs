//! The admin service: what an operator, the CLI and another owner may ask of a node.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use basalt_blockstore::{
    Digest, Error, ErrorKind, Multihash, Result as StoreResult,
    store::{self, Store},
    verify_digest,
};
use basalt_datastore::{BatchOp, Datastore, Key};
use basalt_proto::v1::{self, admin_server, verify_progress::Damage};
use tonic::{Request, Response, Status, Streaming};

use super::{
    CHUNK_BYTES, blocking, settled,
    status::status,
    stream::{self, Answers, Places, Sink},
};
use crate::{
    clients::{Client, Connection},
    lock::Host,
    node::Node,
    scrub,
};

/// Keys that a step of a verification reads, so that it reports now and then.
const VERIFY_KEYS: usize = 256;
/// Keys that a step of an export looks up.
const EXPORT_KEYS: usize = 8192;
/// Quarantined keys of a page.
const QUARANTINED_KEYS: usize = 1024;
/// Verifications and exports that run at a time: each keeps a disk busy.
const STREAMS_MAX: usize = 4;
/// One of them that nobody has read for this long makes room for one that waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// Deletes are held for this long at most: a client that hangs must not stop gc for ever.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether whom deletes are held for is still there.
const HOLD_LOOK: Duration = Duration::from_millis(20);

/// The admin service of one node.
#[derive(Debug)]
pub(crate) struct Admin {
    node: Arc<Node>,
    streams: Arc<Places>,
}

impl Admin {
    pub(crate) fn new(node: Arc<Node>) -> Admin {
        Admin { node, streams: Places::new(STREAMS_MAX, PATIENCE) }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl admin_server::Admin for Admin {
    async fn status(self: Arc<Self>, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let node = self.node.clone();
        // Asking for free space can hang on a suspended pool.
        Ok(Response::new(blocking(move || Ok(node.status())).await?))
    }

    type VerifyStream = Answers<v1::VerifyProgress>;

    async fn verify(self: Arc<Self>, request: Request<v1::VerifyRequest>) -> Answer<Self::VerifyStream> {
        let hash = request.get_ref().hash;
        let connection = request.extensions().get::<Connection>().cloned();
        let datastore = self.node.datastore().clone();
        Ok(Response::new(stream::produce(&self.streams, connection, move |sink| verify(&datastore, hash, sink)).await?))
    }

    async fn check_part(self: Arc<Self>, request: Request<v1::CheckPartRequest>) -> Answer<v1::CheckPartResponse> {
        let node = self.node.clone();
        Ok(Response::new(blocking(move || node.check_part(request.get_ref())).await?))
    }

    async fn control_scrub(self: Arc<Self>, request: Request<v1::ControlScrubRequest>) -> Answer<v1::ScrubStatus> {
        let node = self.node.clone();
        Ok(Response::new(blocking(move || node.control_scrub(request.get_ref())).await?))
    }

    type ListQuarantinedStream = Answers<v1::ListQuarantinedResponse>;

    async fn list_quarantined(
        self: Arc<Self>,
        request: Request<v1::ListQuarantinedRequest>,
    ) -> Answer<Self::ListQuarantinedStream> {
        let connection = request.extensions().get::<Connection>().cloned();
        let datastore = self.node.datastore().clone();
        Ok(Response::new(
            stream::produce(&self.streams, connection, move |sink| list_quarantined(&datastore, sink)).await?,
        ))
    }

    async fn heal(self: Arc<Self>, request: Request<v1::HealRequest>) -> Answer<v1::HealResponse> {
        let request = request.into_inner();
        let block = Multihash::parse(&request.multihash).map_err(|err| status(err.context("heal")))?;
        let node = self.node.clone();
        let healed = blocking(move || node.heal(&block, &request.value)).await?;
        Ok(Response::new(v1::HealResponse { healed }))
    }

    async fn flush(self: Arc<Self>, _: Request<v1::FlushRequest>) -> Answer<v1::FlushResponse> {
        let root = Key::new("/").map_err(status)?;
        settled(self.node.datastore().submit_sync(&root)).await?;
        Ok(Response::new(v1::FlushResponse {}))
    }

    async fn reclaim(self: Arc<Self>, _: Request<v1::ReclaimRequest>) -> Answer<v1::ReclaimResponse> {
        let node = self.node.clone();
        let (before, after) = blocking(move || {
            let before = node.allocated();
            node.datastore().collect_garbage()?;
            Ok((before, node.allocated()))
        })
        .await?;
        Ok(Response::new(v1::ReclaimResponse {
            freed_bytes: before.bytes.saturating_sub(after.bytes),
            segments: before.segments.saturating_sub(after.segments),
        }))
    }

    type HoldDeletesStream = Answers<v1::HoldDeletesResponse>;

    async fn hold_deletes(
        self: Arc<Self>,
        request: Request<v1::HoldDeletesRequest>,
    ) -> Answer<Self::HoldDeletesStream> {
        let connection = request.extensions().get::<Connection>().cloned();
        let request = request.into_inner();
        let limit = match request.limit_ms {
            0 => HOLD_MAX,
            asked => Duration::from_millis(asked).min(HOLD_MAX),
        };
        let datastore = self.node.datastore().clone();
        let answers = stream::produce(&self.streams, connection, move |sink| {
            let began = Instant::now();
            let hold = datastore.hold()?;
            tracing::info!(by = request.by, "deletes are held");
            sink.send(v1::HoldDeletesResponse {})?;
            while !sink.is_gone() && began.elapsed() < limit {
                std::thread::sleep(HOLD_LOOK);
            }
            drop(hold);
            tracing::info!(by = request.by, held_ms = began.elapsed().as_millis() as u64, "deletes go on");
            match sink.is_gone() {
                true => Ok(()),
                false => Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("deletes were held for {} ms, and go on: that was the limit", limit.as_millis()),
                )),
            }
        });
        Ok(Response::new(answers.await?))
    }

    async fn hand_over(self: Arc<Self>, request: Request<v1::HandOverRequest>) -> Answer<v1::HandOverResponse> {
        let request = request.into_inner();
        let node = &self.node;
        if node.host() == Host::Kubo {
            return Err(status(Error::new(
                ErrorKind::Locked,
                format!(
                    "node {} is in the process of a Kubo (pid {}), which can't go on without it: stop that Kubo",
                    node.path().display(),
                    std::process::id()
                ),
            )));
        }
        if !node.host().hands_over() && !request.force {
            return Err(status(Error::new(
                ErrorKind::Locked,
                format!(
                    "node {} is hosted by {} (pid {}), which was not started on demand: stop it yourself, or ask with force",
                    node.path().display(),
                    node.host(),
                    std::process::id()
                ),
            )));
        }
        let by = if request.by.is_empty() { "an unnamed process".to_owned() } else { request.by };
        tracing::info!(by, "handing the node over");
        node.request_hand_over(by);
        Ok(Response::new(v1::HandOverResponse {}))
    }

    async fn import_blocks(
        self: Arc<Self>,
        request: Request<Streaming<v1::ImportBlocksRequest>>,
    ) -> Answer<v1::ImportBlocksResponse> {
        let mut chunks = request.into_inner();
        let mut done = v1::ImportBlocksResponse::default();
        let mut allow_connected = false;
        while let Some(chunk) = chunks.message().await? {
            allow_connected |= chunk.allow_connected;
            // Asked at every chunk: a Kubo may come while an import of hours runs.
            if !allow_connected {
                self.refuse_connected(done.blocks)?;
            }
            let datastore = self.node.datastore().clone();
            let (ticket, part) = blocking(move || import(&datastore, chunk.blocks)).await?;
            // A chunk is counted when it is as durable as any acknowledged block, so that whoever resumes can believe the count.
            settled(Ok(ticket)).await?;
            done.blocks += part.blocks;
            done.new_blocks += part.new_blocks;
            done.bytes += part.bytes;
        }
        let root = Key::new("/").map_err(status)?;
        settled(self.node.datastore().submit_sync(&root)).await?;
        Ok(Response::new(done))
    }

    type ExportBlocksStream = Answers<v1::ExportBlocksResponse>;

    async fn export_blocks(
        self: Arc<Self>,
        request: Request<v1::ExportBlocksRequest>,
    ) -> Answer<Self::ExportBlocksStream> {
        let connection = request.extensions().get::<Connection>().cloned();
        let request = request.into_inner();
        let parse = |bytes: &[u8]| Multihash::parse(bytes).map_err(|err| status(err.context("export")));
        let after = if request.after.is_empty() { None } else { Some(parse(&request.after)?) };
        let wanted = request.multihashes.iter().map(|bytes| parse(bytes)).collect::<Result<Vec<_>, _>>()?;
        let datastore = self.node.datastore().clone();
        let chunks = stream::produce(&self.streams, connection, move |sink| {
            let mut chunk =
                Chunk { blocks: Vec::new(), bytes: 0, keys_only: request.keys_only, datastore: &datastore, sink };
            if wanted.is_empty() {
                chunk.all(after)?;
            } else {
                for key in &wanted {
                    // A quarantined block has no size for Kubo, and is listed all the same.
                    let size = match sound_size(&datastore, key)? {
                        None => listed(&datastore, key)?,
                        sound => sound,
                    };
                    match size {
                        Some(size) => chunk.push(key, size)?,
                        None => {
                            return Err(Error::new(ErrorKind::NotFound, format!("block {key} is not in this node")));
                        }
                    }
                }
            }
            chunk.send(true)
        });
        Ok(Response::new(chunks.await?))
    }
}

impl Admin {
    /// Kubo caches which blocks are absent: what is added behind its back it may not see until it restarts.
    fn refuse_connected(&self, imported: u64) -> Result<(), Status> {
        let clients = self.node.clients().list();
        let Some(client) = clients.iter().find(|client| client.is_kubo()) else { return Ok(()) };
        let name = client.introduction.as_ref().map_or("", |said| said.name.as_str());
        Err(status(Error::new(
            ErrorKind::Locked,
            format!(
                "{name} (pid {}) is connected, and would not see the blocks that are imported until it restarts ({imported} are in): stop it \
                 first, or allow it and restart it afterwards",
                client.peer.pid
            ),
        )))
    }
}

/// Stores blocks after hashing each; nothing of the chunk is stored where one is not what its key says.
fn import(
    datastore: &Datastore,
    blocks: Vec<v1::Block>,
) -> StoreResult<(basalt_datastore::Ticket, v1::ImportBlocksResponse)> {
    let mut done = v1::ImportBlocksResponse::default();
    let mut ops = Vec::with_capacity(blocks.len());
    for block in blocks {
        let key = Multihash::parse(&block.multihash).map_err(|err| err.context("import"))?;
        match verify_digest(&key, &block.value) {
            Digest::Matches => {}
            Digest::Differs => {
                let message = format!("import: the value of block {key} does not hash to it; the source is damaged");
                return Err(Error::new(ErrorKind::InvalidValue, message));
            }
            Digest::UnknownFunction => {
                let message = format!(
                    "import: block {key} can't be verified: hash function {:#x} with {} bytes of digest is not known here",
                    key.code(),
                    key.digest().len()
                );
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        done.blocks += 1;
        done.bytes += block.value.len() as u64;
        if sound_size(datastore, &key)?.is_none() {
            done.new_blocks += 1;
        }
        ops.push(BatchOp::Put(Key::of_block(&key), block.value.into()));
    }
    Ok((datastore.submit_batch(ops)?, done))
}

/// The size of a block that is there and not quarantined, however the config wants those to look.
fn sound_size(datastore: &Datastore, key: &Multihash) -> StoreResult<Option<u32>> {
    match datastore.shards().size(key) {
        Err(err) if err.kind() == ErrorKind::Corrupt => Ok(None),
        other => other,
    }
}

/// A chunk of an export that is being filled.
struct Chunk<'a> {
    blocks: Vec<v1::Block>,
    bytes: usize,
    keys_only: bool,
    datastore: &'a Datastore,
    sink: &'a Sink<v1::ExportBlocksResponse>,
}

impl Chunk<'_> {
    fn all(&mut self, after: Option<Multihash>) -> StoreResult<()> {
        let datastore = self.datastore;
        let mut walk = datastore.shards().walk(after.as_ref());
        loop {
            let page = walk.next_page(EXPORT_KEYS)?;
            if page.is_empty() {
                return Ok(());
            }
            for (key, size) in page {
                self.push(&key, size)?;
            }
        }
    }

    fn push(&mut self, key: &Multihash, size: u32) -> StoreResult<()> {
        let mut value = Vec::new();
        let mut damaged = String::new();
        if !self.keys_only {
            match self.datastore.shards().get(key, &mut value) {
                Ok(()) => {}
                Err(err) if err.kind() == ErrorKind::Corrupt => damaged = err.to_string(),
                // Deleted since the walk saw it; or quarantined, which looks absent to Kubo and must not here.
                Err(err) if err.is_not_found() => match listed(self.datastore, key)? {
                    Some(_) => damaged = "its bytes on disk are damaged, and it is quarantined".to_owned(),
                    None => return Ok(()),
                },
                Err(err) => return Err(err.context(format_args!("export block {key}"))),
            }
        }
        let bytes = key.as_bytes().len() + value.len();
        if !self.blocks.is_empty() && self.bytes + bytes > CHUNK_BYTES {
            self.send(false)?;
        }
        self.bytes += bytes;
        let multihash = bytes::Bytes::copy_from_slice(key.as_bytes());
        if !damaged.is_empty() {
            value.clear();
        }
        self.blocks.push(v1::Block { multihash, value: value.into(), size: u64::from(size), damaged });
        Ok(())
    }

    fn send(&mut self, complete: bool) -> StoreResult<()> {
        self.bytes = 0;
        self.sink.send(v1::ExportBlocksResponse { blocks: std::mem::take(&mut self.blocks), complete })
    }
}

/// Size of a block that is enumerated, whether Kubo sees it or not. Looks into every shard: for the rare case.
fn listed(datastore: &Datastore, key: &Multihash) -> StoreResult<Option<u32>> {
    for shard in datastore.shards().iter() {
        let found = shard.store().scan(key.as_bytes(), None, 1, false)?;
        if let Some(found) = found.first().filter(|found| found.key == key.as_bytes()) {
            return Ok(Some(found.meta.size));
        }
    }
    Ok(None)
}

/// Reads everything back, shard by shard, then the keyspace.
fn verify(datastore: &Datastore, hash: bool, sink: &Sink<v1::VerifyProgress>) -> StoreResult<()> {
    let stats = datastore.stats();
    let mut progress =
        v1::VerifyProgress { blocks_all: stats.shards.iter().map(|shard| shard.count).sum(), ..Default::default() };
    let mut value = Vec::new();
    for shard in datastore.shards().iter() {
        let name =
            |key: &[u8]| Multihash::parse(key).map_or_else(|_| hex(key), |key| Key::of_block(&key).as_str().to_owned());
        let mut after = None;
        loop {
            // The keys are listed before they are verified, so that those and only those are hashed.
            let keys = if hash { shard.store().scan(b"", after.as_deref(), VERIFY_KEYS, false)? } else { Vec::new() };
            let damaged = step(shard.store(), &mut after, &mut progress, name)?;
            for found in keys {
                let Ok(key) = Multihash::parse(&found.key) else { continue };
                if damaged.contains(&found.key) || shard.get(&key, &mut value).is_err() {
                    continue;
                }
                if verify_digest(&key, &value) == Digest::Differs {
                    shard.store().quarantine_digest(&found.key)?;
                    progress.damaged.push(damage(
                        name(&found.key),
                        &found.key,
                        "the value does not hash to its key".to_owned(),
                    ));
                }
            }
            let at_end = after.is_none();
            report(&mut progress, sink)?;
            if at_end {
                break;
            }
        }
    }
    let mut keyspace = v1::VerifyProgress::default();
    let mut after = None;
    loop {
        step(datastore.keyspace(), &mut after, &mut keyspace, |key| String::from_utf8_lossy(key).into_owned())?;
        progress.keys_done = keyspace.blocks_done;
        progress.damaged.append(&mut keyspace.damaged);
        if after.is_none() {
            progress.complete = true;
            return report(&mut progress, sink);
        }
        report(&mut progress, sink)?;
    }
}

/// Reads some keys back; `after` is `None` at the end. Returns the damaged keys.
fn step(
    store: &Store,
    after: &mut Option<Vec<u8>>,
    progress: &mut v1::VerifyProgress,
    name: impl Fn(&[u8]) -> String,
) -> StoreResult<Vec<Vec<u8>>> {
    let verified = store.verify(after.as_deref(), VERIFY_KEYS)?;
    *after = verified.last;
    progress.blocks_done += verified.keys;
    progress.bytes_done += verified.bytes;
    let mut damaged = Vec::new();
    for (key, err) in verified.damaged {
        progress.damaged.push(damage(name(&key), &key, err.to_string()));
        damaged.push(key);
    }
    Ok(damaged)
}

fn damage(name: String, key: &[u8], reason: String) -> Damage {
    let cid = Multihash::parse(key).map_or_else(|_| String::new(), |key| key.raw_cid());
    Damage { key: name, cid, reason }
}

fn report(progress: &mut v1::VerifyProgress, sink: &Sink<v1::VerifyProgress>) -> StoreResult<()> {
    let damaged = std::mem::take(&mut progress.damaged);
    sink.send(v1::VerifyProgress { damaged, ..progress.clone() })
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Sends what is quarantined, store by store.
fn list_quarantined(datastore: &Datastore, sink: &Sink<v1::ListQuarantinedResponse>) -> StoreResult<()> {
    for (name, store) in scrub::stores(datastore) {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = store.quarantined(after.as_deref(), QUARANTINED_KEYS)?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            let quarantined = page.into_iter().map(|one| self::quarantined(&name, one)).collect();
            sink.send(v1::ListQuarantinedResponse { quarantined, complete: false })?;
        }
    }
    sink.send(v1::ListQuarantinedResponse { quarantined: Vec::new(), complete: true })
}

/// A quarantined key as Admin shows it.
/// A damaged key as a verification reports it.
pub(crate) fn damaged_key(store: &str, key: &[u8], rot: store::Rot) -> Damage {
    let one = store::Quarantined { key: key.to_vec(), size: 0, rot, found_unix_ms: 0 };
    let v1::Quarantined { key, cid, reason, .. } = quarantined(store, one);
    Damage { key, cid, reason }
}

pub(crate) fn quarantined(store: &str, one: store::Quarantined) -> v1::Quarantined {
    // Keys of the keyspace are texts that begin with a slash, which is the code of no hash function that Kubo uses.
    let block = if one.key.starts_with(b"/") { None } else { Multihash::parse(&one.key).ok() };
    v1::Quarantined {
        store: store.to_owned(),
        key: match &block {
            Some(block) => Key::of_block(block).as_str().to_owned(),
            None => String::from_utf8_lossy(&one.key).into_owned(),
        },
        cid: block.map_or_else(String::new, |block| block.raw_cid()),
        reason: one.rot.about().to_owned(),
        size: u64::from(one.size),
        found_unix_ms: one.found_unix_ms,
    }
}

/// Clients as `status` shows them.
pub(crate) fn clients(clients: Vec<Client>) -> Vec<v1::status_response::Client> {
    let client = |client: Client| {
        let said = client.introduction.unwrap_or_default();
        v1::status_response::Client {
            name: said.name,
            role: if said.role.is_empty() { client.socket.to_string() } else { said.role },
            connected_ms: u64::try_from(client.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            pid: u64::from(client.peer.pid),
            uid: client.peer.uid,
        }
    };
    clients.into_iter().map(client).collect()
}
