//! What every call passes before its handler: on the data socket, whether the connection has shaken hands; and that its bytes are counted
//! while they are on their way (see [`super::traffic`]). On the way out, that an error of the transport's limits has a kind too.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use basalt_blockstore::ErrorKind;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service, http},
    metadata::MetadataValue,
};

use super::{
    status::{HANDSHAKE, KIND},
    traffic::{self, Answered},
};
use crate::{
    calls::{Begun, Calls},
    clients::{Connection, Held},
};

const HANDSHAKE_PATH: &str = "/basalt.v1.Datastore/Handshake";

/// A service behind the gate.
#[derive(Clone, Debug)]
pub(crate) struct Gate<S> {
    inner: S,
    calls: Arc<Calls>,
    needs_handshake: bool,
    message_bytes_max: usize,
}

impl<S> Gate<S> {
    pub(crate) fn data(inner: S, calls: Arc<Calls>, message_bytes_max: usize) -> Gate<S> {
        Gate { inner, calls, needs_handshake: true, message_bytes_max }
    }

    pub(crate) fn admin(inner: S, calls: Arc<Calls>, message_bytes_max: usize) -> Gate<S> {
        Gate { inner, calls, needs_handshake: false, message_bytes_max }
    }

    fn refusal(&self, request: &http::Request<Body>) -> Option<Status> {
        if !self.needs_handshake || request.uri().path() == HANDSHAKE_PATH {
            return None;
        }
        if request.extensions().get::<Connection>().is_some_and(Connection::is_introduced) {
            return None;
        }
        let mut status =
            Status::failed_precondition("this connection has not shaken hands yet; the call was not executed");
        status.metadata_mut().insert(HANDSHAKE, MetadataValue::from_static("required"));
        Some(status)
    }
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.refusal(&request) {
            Some(status) => Answer::Refused(Some(Box::new(status))),
            None => {
                let begun = Calls::begin(request.uri().path());
                let connection = request.extensions().get::<Connection>().cloned();
                if let Some(connection) = connection.as_ref().filter(|_| !self.needs_handshake) {
                    connection.speaks();
                }
                let (request, held) = traffic::count_request(request, connection.as_ref(), self.message_bytes_max);
                let answer = Box::pin(self.inner.call(request));
                Answer::Served(Box::new(Serving { answer, begun, calls: self.calls.clone(), connection, _held: held }))
            }
        }
    }
}

/// The answer to a call.
pub(crate) enum Answer<F> {
    Refused(Option<Box<Status>>),
    Served(Box<Serving<F>>),
}

/// A call that a handler has.
pub(crate) struct Serving<F> {
    answer: Pin<Box<F>>,
    begun: Begun,
    calls: Arc<Calls>,
    connection: Option<Connection>,
    /// The request, until there is an answer.
    _held: Option<Arc<Held>>,
}

impl<F> Future for Answer<F>
where
    F: Future<Output = Result<http::Response<Body>, Infallible>>,
{
    type Output = Result<http::Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Answer::Refused(status) => {
                let status = status.take().map_or_else(|| Status::internal("polled again"), |status| *status);
                Poll::Ready(Ok(status.into_http()))
            }
            Answer::Served(serving) => {
                let mut response = ready!(serving.answer.as_mut().poll(cx))?;
                name_kind(&mut response);
                serving.calls.end(serving.begun, outcome(&response));
                let begun = response.extensions_mut().remove::<Arc<Held>>();
                let connection = serving.connection.clone();
                Poll::Ready(Ok(response.map(|body| Body::new(Answered::new(body, connection, begun)))))
            }
        }
    }
}

/// How a call ended, as far as the head of its answer says.
fn outcome<B>(response: &http::Response<B>) -> Result<(), Option<ErrorKind>> {
    let headers = response.headers();
    match headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes())) {
        None | Some(Code::Ok) => Ok(()),
        Some(_) => Err(headers.get(KIND).and_then(|kind| kind.to_str().ok()).and_then(ErrorKind::from_name)),
    }
}

/// A message above the transport's limit is refused by the transport, with OUT_OF_RANGE and no kind: to the caller it is `TooLarge`.
fn name_kind<B>(response: &mut http::Response<B>) {
    let headers = response.headers_mut();
    let code = headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()));
    if code == Some(Code::OutOfRange) && !headers.contains_key(KIND) {
        headers.insert(KIND, http::HeaderValue::from_static(ErrorKind::TooLarge.name()));
    }
}
