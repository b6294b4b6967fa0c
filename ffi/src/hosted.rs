//! A node that is open in this process and served on its sockets, by threads that the host's signals never reach.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use basalt_datastore::{Datastore, Error, ErrorKind, Query};
use basalt_node::{CHUNK_BYTES, Config, Host, Node, Server, query};
use basalt_proto::v1;
use nix::sys::signal::{SigSet, SigmaskHow};
use tokio::{runtime::Runtime, sync::mpsc};

use crate::{
    flat,
    outcome::{Failure, Kind, Result},
};

/// Pages of a query that may wait for the caller.
const QUEUE_PAGES: usize = 2;
/// Most entries of a page, so that one of keys alone stays near [`CHUNK_BYTES`].
const PAGE_ENTRIES: usize = 8192;
/// How long the threads that serve have to end, once the node is closed.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// An open node with what serves it.
#[derive(Debug)]
pub(crate) struct Hosted {
    node: Arc<Node>,
    serving: Mutex<Option<(Runtime, Server)>>,
}

impl Hosted {
    /// Opens the node of a folder. An agent that a plugin started is asked to hand it over, and waited for until `deadline`.
    pub(crate) fn open(path: &Path, deadline: Duration) -> Result<Hosted> {
        begin_log();
        let config = Config::load(path, &[])
            .map_err(|err| Failure::new(Kind::InvalidValue, format!("the node's config: {err}")))?;
        let _blocked = BlockedSignals::new();
        let by = format!("a Kubo with the node built in, pid {}", std::process::id());
        let node = Node::open_taking_over(path, config, Host::Kubo, &by, deadline)?;
        match serve(&node) {
            Ok(serving) => Ok(Hosted { node, serving: Mutex::new(Some(serving)) }),
            Err(err) => {
                let _ = node.close();
                Err(err.into())
            }
        }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub(crate) fn datastore(&self) -> &Datastore {
        self.node.datastore()
    }

    /// Starts a query. Its producer runs ahead of the caller by the queue's length, and ends when the caller drops the pages.
    pub(crate) fn query(&self, request: v1::QueryRequest) -> Result<Pages> {
        let query: Query = query::parse(request)?;
        let (queue, pages) = mpsc::channel(QUEUE_PAGES);
        let datastore = self.node.datastore().clone();
        let _blocked = BlockedSignals::new();
        let produce = move || {
            let produce = || -> basalt_datastore::Result<()> {
                let mut cursor = datastore.query(query)?;
                loop {
                    let page = cursor.next_page(PAGE_ENTRIES, CHUNK_BYTES)?;
                    let is_last = page.is_empty();
                    if queue.blocking_send(Ok(flat::page(&page))).is_err() || is_last {
                        return Ok(());
                    }
                }
            };
            // A panic drops the queue, which the caller takes for what it is: an answer that was cut.
            if let Err(err) = produce() {
                let _ = queue.blocking_send(Err(err));
            }
        };
        // Not on a thread of the server's pool: a caller that leaves its queries open must not use that up.
        std::thread::Builder::new()
            .name("basalt-query".to_owned())
            .spawn(produce)
            .map_err(|err| Error::io("start the thread of a query", err))?;
        Ok(Pages { pages: Mutex::new(pages) })
    }

    /// Stops serving, and closes the node, which is a Sync.
    pub(crate) fn close(&self) -> Result<()> {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut stopped = Ok(());
        if let Some((runtime, server)) = serving {
            stopped = runtime.block_on(server.stop());
            runtime.shutdown_timeout(END_DEADLINE);
        }
        let closed = self.node.close();
        stopped.and(closed).map_err(Failure::from)
    }
}

fn serve(node: &Arc<Node>) -> Result<(Runtime, Server), Error> {
    let runtime = basalt_node::runtime().map_err(|err| Error::io("start the threads that serve the node", err))?;
    let server = runtime.block_on(async { Server::start(node) })?;
    Ok((runtime, server))
}

/// The answer of a query, page by page.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: Mutex<mpsc::Receiver<basalt_datastore::Result<Vec<u8>>>>,
}

impl Pages {
    /// The next page; empty where the answer is complete.
    pub(crate) fn next(&self) -> Result<Vec<u8>> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        match pages.blocking_recv() {
            Some(page) => Ok(page?),
            None => {
                let message = "the query has ended already, or what answered it has: its list is not complete";
                Err(Error::new(ErrorKind::Unavailable, message).into())
            }
        }
    }
}

/// While it lives, threads that are started block all signals, for ever: those are the host's business. Go takes its signals with a stack
/// of its own making, and a disk operation that a profiler interrupts a hundred times a second only gets slower.
struct BlockedSignals(Option<SigSet>);

impl BlockedSignals {
    fn new() -> BlockedSignals {
        BlockedSignals(SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok())
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // It was this thread's mask a moment ago.
            let _ = before.thread_set_mask();
        }
    }
}

/// What an operator should hear of goes to the host's stderr: warnings, or from the level that BASALT_LOG_LEVEL names.
fn begin_log() {
    let level = std::env::var("BASALT_LOG_LEVEL").ok().and_then(|level| level.parse().ok());
    let _ = tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(tracing_subscriber::filter::LevelFilter::WARN))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false) // it would panic where Kubo's stderr is a pipe that nobody reads
        .try_init();
}
