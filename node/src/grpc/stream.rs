//! Answers that stream: a producer on a thread of the blocking pool, a short queue, the client at the other end.
//!
//! The producer runs ahead of the client by the queue's length and no more. A client that goes away drops the queue; the producer finds that
//! out at its next chunk and ends. There are only so many producers at a time: where all places are taken and one is wanted, a stream whose
//! client has taken nothing for a while is ended, with an error that says so. A slow client that is in nobody's way may take its time. One connection
//! takes, and waits for, a few of them only.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use basalt_blockstore::{Error, ErrorKind, Result};
use prost::Message;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::status::status;
use crate::clients::{Connection, Held};

/// Chunks that may wait for the client.
const QUEUE_CHUNKS: usize = 2;
/// How often who waits for a place looks for a stream that nobody reads.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Places for producers.
#[derive(Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    /// A stream whose client has taken nothing for this long makes room.
    patience: Duration,
    stalled: Mutex<Stalled>,
}

/// Streams whose queues are full, by when that began.
#[derive(Debug, Default)]
struct Stalled {
    next: u64,
    since: BTreeMap<(Instant, u64), CancellationToken>,
}

impl Places {
    pub(crate) fn new(places: usize, patience: Duration) -> Arc<Places> {
        Arc::new(Places { free: Arc::new(Semaphore::new(places)), patience, stalled: Mutex::default() })
    }

    async fn take(&self) -> std::result::Result<OwnedSemaphorePermit, Status> {
        let closing = |_| status(Error::new(ErrorKind::Closed, "the node is closing"));
        loop {
            let place = self.free.clone().acquire_owned();
            match tokio::time::timeout(LOOK_EVERY, place).await {
                Ok(place) => return place.map_err(closing),
                Err(_) => self.end_one(),
            }
        }
    }

    /// Ends the stream that nobody has read for longest, if that is long enough.
    fn end_one(&self) {
        let mut stalled = self.stalled();
        if let Some((&(since, number), _)) = stalled.since.first_key_value()
            && since.elapsed() >= self.patience
            && let Some(end) = stalled.since.remove(&(since, number))
        {
            end.cancel();
        }
    }

    fn stalled(&self) -> MutexGuard<'_, Stalled> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Chunk<T> = (std::result::Result<T, Status>, Option<Held>);

/// A stream of answers.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    chunks: mpsc::Receiver<Chunk<T>>,
    made_room: Arc<AtomicBool>,
}

impl<T> Stream for Answers<T> {
    type Item = std::result::Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match ready!(self.chunks.poll_recv(cx)) {
            Some((chunk, _held)) => Poll::Ready(Some(chunk)),
            // Never a stream that only seems to be at its end.
            None if self.made_room.swap(false, Ordering::AcqRel) => {
                let message =
                    "the answer was broken off: nothing of it was read for a while, and others were waiting; ask again";
                Poll::Ready(Some(Err(status(Error::new(ErrorKind::Unavailable, message)))))
            }
            None => Poll::Ready(None),
        }
    }
}

/// Where a producer puts its chunks.
pub(crate) struct Sink<T> {
    queue: mpsc::Sender<Chunk<T>>,
    connection: Option<Connection>,
    places: Arc<Places>,
    made_room: Arc<AtomicBool>,
}

impl<T: Message> Sink<T> {
    /// Whether the client has gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.queue.is_closed()
    }

    /// Waits for room, then queues a chunk. [`ErrorKind::Closed`] where the client has gone, or made room for another: nobody will read that error.
    pub(crate) fn send(&self, chunk: T) -> Result<()> {
        let held = self.connection.as_ref().map(|connection| connection.hold(chunk.encoded_len()));
        let gone = || Error::new(ErrorKind::Closed, "the client has gone");
        let chunk = match self.queue.try_send((Ok(chunk), held)) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(gone()),
            Err(mpsc::error::TrySendError::Full(chunk)) => chunk,
        };
        let end = CancellationToken::new();
        let place = {
            let mut stalled = self.places.stalled();
            stalled.next += 1;
            let place = (Instant::now(), stalled.next);
            stalled.since.insert(place, end.clone());
            place
        };
        let sent = Handle::current().block_on(async {
            tokio::select! {
                room = self.queue.reserve() => room.map(|room| room.send(chunk)).map_err(|_| gone()),
                () = end.cancelled() => {
                    self.made_room.store(true, Ordering::Release);
                    Err(gone())
                }
            }
        });
        self.places.stalled().since.remove(&place);
        sent
    }
}

/// Starts a producer once there is a place for it. Its error ends the stream.
pub(crate) async fn produce<T: Message + 'static>(
    places: &Arc<Places>,
    connection: Option<Connection>,
    producer: impl FnOnce(&Sink<T>) -> Result<()> + Send + 'static,
) -> std::result::Result<Answers<T>, Status> {
    let own = match &connection {
        Some(connection) => connection.stream().await,
        None => None,
    };
    let place = places.take().await?;
    let (queue, chunks) = mpsc::channel(QUEUE_CHUNKS);
    let made_room = Arc::new(AtomicBool::new(false));
    let sink = Sink { queue, connection, places: places.clone(), made_room: made_room.clone() };
    tokio::task::spawn_blocking(move || {
        let _places = (own, place);
        if let Err(err) = producer(&sink)
            && !sink.made_room.load(Ordering::Acquire)
        {
            let _ = sink.queue.blocking_send((Err(status(err)), None));
        }
    });
    Ok(Answers { chunks, made_room })
}
