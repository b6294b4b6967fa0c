//! Answers that stream: a producer on a thread of the blocking pool, a short queue, the client at the other end.
//!
//! The producer runs ahead of the client by the queue's length and no more. A client that goes away drops the queue; the producer finds that
//! out at its next chunk and ends.

use std::sync::Arc;

use basalt_blockstore::{Error, ErrorKind, Result};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::status::status;

/// A stream of answers.
pub(crate) type Answers<T> = ReceiverStream<std::result::Result<T, Status>>;

/// Chunks that may wait for the client.
const QUEUE_CHUNKS: usize = 2;

/// Where a producer puts its chunks.
pub(crate) struct Sink<T> {
    queue: mpsc::Sender<std::result::Result<T, Status>>,
}

impl<T> Sink<T> {
    /// Waits for room, then queues a chunk. [`ErrorKind::Closed`] where the client has gone: nobody will read that error.
    pub(crate) fn send(&self, chunk: T) -> Result<()> {
        let gone = |_| Error::new(ErrorKind::Closed, "the client has gone");
        self.queue.blocking_send(Ok(chunk)).map_err(gone)
    }
}

/// Starts a producer once one of `slots` is free. Its error ends the stream.
pub(crate) async fn produce<T: Send + 'static>(
    slots: &Arc<Semaphore>,
    producer: impl FnOnce(&Sink<T>) -> Result<()> + Send + 'static,
) -> std::result::Result<Answers<T>, Status> {
    let closing = |_| status(Error::new(ErrorKind::Closed, "the node is closing"));
    let slot = slots.clone().acquire_owned().await.map_err(closing)?;
    let (queue, chunks) = mpsc::channel(QUEUE_CHUNKS);
    tokio::task::spawn_blocking(move || {
        let _slot = slot;
        let sink = Sink { queue };
        if let Err(err) = producer(&sink) {
            let _ = sink.queue.blocking_send(Err(status(err)));
        }
    });
    Ok(ReceiverStream::new(chunks))
}
