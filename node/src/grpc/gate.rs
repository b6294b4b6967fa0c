//! What every call passes before its handler: on the data socket, whether the connection has shaken hands; on the way out, that an error
//! of the transport's limits has a kind too.

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

use super::status::{HANDSHAKE, KIND};
use crate::{
    calls::{Begun, Calls},
    clients::Connection,
};

const HANDSHAKE_PATH: &str = "/basalt.v1.Datastore/Handshake";

/// A service behind the gate.
#[derive(Clone, Debug)]
pub(crate) struct Gate<S> {
    inner: S,
    calls: Arc<Calls>,
    needs_handshake: bool,
}

impl<S> Gate<S> {
    pub(crate) fn data(inner: S, calls: Arc<Calls>) -> Gate<S> {
        Gate { inner, calls, needs_handshake: true }
    }

    pub(crate) fn admin(inner: S, calls: Arc<Calls>) -> Gate<S> {
        Gate { inner, calls, needs_handshake: false }
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
                Answer::Served(Box::pin(self.inner.call(request)), begun, self.calls.clone())
            }
        }
    }
}

/// The answer to a call.
pub(crate) enum Answer<F> {
    Refused(Option<Box<Status>>),
    Served(Pin<Box<F>>, Begun, Arc<Calls>),
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
            Answer::Served(answer, begun, calls) => {
                let mut response = ready!(answer.as_mut().poll(cx))?;
                name_kind(&mut response);
                calls.end(*begun, outcome(&response));
                Poll::Ready(Ok(response))
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
