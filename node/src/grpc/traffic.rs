//! Bytes on their way, counted against their connection, so that all clients together can't fill the memory.
//!
//! A request counts from its head until its answer; of its body as much as its largest message can have. An answer counts from when its value is
//! read until the transport has written it, however slowly the client takes it. What is counted is bounded in [`crate::clients`].

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{
    Status,
    body::Body,
    codegen::http::{self, Extensions},
};

use crate::clients::{Connection, Held};

/// What the transport keeps for a call beside what it has of headers and body.
const CALL_BYTES: usize = 2 << 10;
/// Bytes of memory that a byte of headers takes, as measured.
const HEADER_COST: usize = 4;
/// Largest request of calls that carry no values. Decoded, small repeated fields take many times their size on the wire.
const SMALL_REQUEST_BYTES_MAX: usize = 1 << 20;

/// Calls that carry values, or lists of what to export.
const LARGE_REQUESTS: [&str; 5] = [
    "/basalt.v1.Datastore/Put",
    "/basalt.v1.Datastore/Batch",
    "/basalt.v1.Admin/Heal",
    "/basalt.v1.Admin/ImportBlocks",
    "/basalt.v1.Admin/ExportBlocks",
];

/// Counts a request from now on. What is returned beside it is to be kept until it is answered.
pub(super) fn count_request(
    request: http::Request<Body>,
    connection: Option<&Connection>,
    message_bytes_max: usize,
) -> (http::Request<Body>, Option<Arc<Held>>) {
    let Some(connection) = connection else { return (request, None) };
    let is_large = LARGE_REQUESTS.contains(&request.uri().path());
    let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
    let head = (request.uri().path().len() + headers) * HEADER_COST;
    let held = Arc::new(connection.hold(CALL_BYTES + head));
    let counted = held.bytes() + message_bytes_max;
    let limit = if is_large { usize::MAX } else { SMALL_REQUEST_BYTES_MAX };
    let request = request.map(|body| Body::new(Asked { body, held: held.clone(), counted, left: limit }));
    (request, Some(held))
}

/// The body of a request.
struct Asked {
    body: Body,
    held: Arc<Held>,
    /// The transport refuses a message that is larger, so this much is never kept at a time.
    counted: usize,
    /// Bytes that may still come.
    left: usize,
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let Some(left) = self.left.checked_sub(data.len()) else {
                return Poll::Ready(Some(Err(Status::out_of_range(format!(
                    "the request has more than the {SMALL_REQUEST_BYTES_MAX} bytes that this call may have: ask for less at a time"
                )))));
            };
            self.left = left;
            let more = data.len().min(self.counted.saturating_sub(self.held.bytes()));
            self.held.add(more);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Notes in an answer that it holds so many bytes already: until its body begins, nothing else knows.
pub(super) fn hold_answer(extensions: &mut Extensions, connection: Option<&Connection>, bytes: usize) {
    if let Some(connection) = connection {
        extensions.insert(Arc::new(connection.hold(bytes)));
    }
}

/// The body of an answer.
pub(super) struct Answered {
    body: Body,
    connection: Option<Connection>,
    /// What the handler has counted.
    begun: Option<Arc<Held>>,
}

impl Answered {
    pub(super) fn new(body: Body, connection: Option<Connection>, begun: Option<Arc<Held>>) -> Answered {
        Answered { body, connection, begun }
    }
}

/// A part of an answer, counted as long as the transport has any of it.
struct Part {
    data: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let counted = frame.map(|frame| {
            frame.map(|frame| match &self.connection {
                Some(connection) => {
                    frame.map_data(|data| Bytes::from_owner(Part { _held: connection.hold(data.len()), data }))
                }
                None => frame,
            })
        });
        self.begun = None;
        Poll::Ready(counted)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
