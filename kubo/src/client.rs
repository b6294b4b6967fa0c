//! One call: a POST, its answer's head, and a body that is read under a stall timeout.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{Auth, AuthError, Class, Endpoint, Error, Result};

/// Bounds and timeouts. There is no total deadline: a pin may take days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A connection that is not made by then is given up.
    pub connect: Duration,
    /// A call that says nothing for so long is given up. Kubo's ticks of pin/add come each half second.
    pub stall: Duration,
    /// The same for pin/rm and pin/update, which say nothing while they walk a DAG.
    pub quiet: Duration,
    /// Longest line of a stream, in bytes.
    pub line_bytes_max: usize,
    /// Longest answer that is no stream, in bytes.
    pub answer_bytes_max: usize,
    /// Calls under way at a time; more wait their turn.
    pub calls_max: usize,
    /// Connections kept open for the next call.
    pub idle_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(60),
            quiet: Duration::from_secs(3 * 60 * 60),
            line_bytes_max: 1 << 20,
            answer_bytes_max: 4 << 20,
            calls_max: 64,
            idle_max: 8,
        }
    }
}

type Connection = SendRequest<Empty<Bytes>>;

/// A Kubo, reached by its RPC. Cheap to clone; connections are made when they are needed and kept for the next call.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    options: Options,
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.shared.endpoint).finish_non_exhaustive()
    }
}

/// A body under way: frames, then the trailers.
pub(crate) struct Body {
    pub(crate) call: String,
    client: Client,
    incoming: Incoming,
    connection: Option<Connection>,
    stall: Duration,
    _turn: OwnedSemaphorePermit,
}

/// What a body brings next.
pub(crate) enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body is complete, as HTTP tells it.
    End,
}

impl Client {
    /// A client of the Kubo at `endpoint`. Connects to nothing yet.
    pub fn new(endpoint: Endpoint, auth: &Auth, options: Options) -> Result<Client, AuthError> {
        let authorization = auth.header()?;
        let turns = Arc::new(Semaphore::new(options.calls_max.clamp(1, Semaphore::MAX_PERMITS)));
        Ok(Client { shared: Arc::new(Shared { endpoint, authorization, options, idle: Mutex::default(), turns }) })
    }

    /// Where its Kubo is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    pub(crate) fn options(&self) -> &Options {
        &self.shared.options
    }

    pub(crate) fn error(&self, call: &str, class: Class, message: impl AsRef<str>) -> Error {
        Error::new(call, &self.shared.endpoint, class, message)
    }

    /// Makes a call and reads the head of its answer. `subject` is for people only. An answer that is no success is read and is the error.
    pub(crate) async fn call(
        &self,
        path: &str,
        subject: &str,
        query: &[(&str, &str)],
        stall: Duration,
    ) -> Result<Body> {
        let call = if subject.is_empty() { path.to_owned() } else { format!("{path} {subject}") };
        // Never closed, so this only waits.
        let turn = Arc::clone(&self.shared.turns).acquire_owned().await;
        let turn = turn.map_err(|_| self.error(&call, Class::Unreachable, "the client is closing"))?;
        let (response, connection) = match timeout(stall, self.send(&call, path, query)).await {
            Ok(sent) => sent?,
            Err(_) => return Err(self.error(&call, Class::Stalled, format!("has not answered for {stall:?}"))),
        };
        let status = response.status();
        let unbounded = response.headers().get(hyper::header::TRANSFER_ENCODING).is_none()
            && response.headers().get(hyper::header::CONTENT_LENGTH).is_none();
        let body = Body {
            call: call.clone(),
            client: self.clone(),
            incoming: response.into_body(),
            connection: Some(connection),
            stall,
            _turn: turn,
        };
        if status != StatusCode::OK {
            return Err(self.refusal(status, body).await);
        }
        if unbounded {
            let why =
                "it has neither chunks nor a length, so its end can't be told from a cut (does a proxy stand between?)";
            return Err(self.error(&call, Class::Protocol, why));
        }
        Ok(body)
    }

    /// Sends on a connection that is open, else on a new one. A server may close an idle connection at any time, so what fails there before a byte of
    /// an answer came is sent again; but for pin/update, which can't be made twice and so has a connection of its own.
    async fn send(&self, call: &str, path: &str, query: &[(&str, &str)]) -> Result<(Response<Incoming>, Connection)> {
        while let Some(mut connection) = self.idle(path) {
            match connection.send_request(self.request(call, path, query)?).await {
                Ok(response) => return Ok((response, connection)),
                Err(err) if err.is_parse() => return Err(self.cut(call, &err)),
                Err(_) => {}
            }
        }
        let mut connection = self.connect(call).await?;
        match connection.send_request(self.request(call, path, query)?).await {
            Ok(response) => Ok((response, connection)),
            Err(err) => Err(self.cut(call, &err)),
        }
    }

    /// A connection that an earlier call left open.
    fn idle(&self, path: &str) -> Option<Connection> {
        if path == "pin/update" {
            return None;
        }
        let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn request(&self, call: &str, path: &str, query: &[(&str, &str)]) -> Result<Request<Empty<Bytes>>> {
        let mut pairs = form_urlencoded::Serializer::new(String::new());
        pairs.extend_pairs(query);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("/api/v0/{path}?{}", pairs.finish()))
            .header(HOST, self.shared.endpoint.authority())
            // Kubo refuses what looks like a browser.
            .header(USER_AGENT, concat!("basalt/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.shared.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(Empty::new()).map_err(|err| self.error(call, Class::Argument, format!("can't be sent: {err}")))
    }

    async fn connect(&self, call: &str) -> Result<Connection> {
        let within = self.shared.options.connect;
        let unreachable = |why: String| self.error(call, Class::Unreachable, why);
        let late = |_| unreachable(format!("no connection within {within:?}"));
        match &self.shared.endpoint {
            Endpoint::Tcp { host, port } => {
                let stream = timeout(within, TcpStream::connect((host.as_str(), *port))).await.map_err(late)?;
                let stream = stream.map_err(|err| unreachable(err.to_string()))?;
                // A request is one small write.
                stream.set_nodelay(true).map_err(|err| unreachable(err.to_string()))?;
                self.handshake(call, stream).await
            }
            Endpoint::Unix(path) => {
                let stream = timeout(within, UnixStream::connect(path)).await.map_err(late)?;
                self.handshake(call, stream.map_err(|err| unreachable(err.to_string()))?).await
            }
        }
    }

    async fn handshake<S>(&self, call: &str, stream: S) -> Result<Connection>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let made = http1::Builder::new().max_buf_size(64 << 10).handshake(TokioIo::new(stream)).await;
        let (connection, driver) = made.map_err(|err| self.error(call, Class::Unreachable, err.to_string()))?;
        // Ends when both the sender and the body are gone, or the connection breaks; the call hears of that itself.
        tokio::spawn(driver);
        Ok(connection)
    }

    fn cut(&self, call: &str, err: &hyper::Error) -> Error {
        let class = if err.is_parse() { Class::Protocol } else { Class::Truncated };
        self.error(call, class, reason(err))
    }

    /// The error of an answer that is no success: Kubo's JSON, or what else was said.
    async fn refusal(&self, status: StatusCode, body: Body) -> Error {
        #[derive(serde::Deserialize)]
        struct Said {
            #[serde(rename = "Message")]
            message: String,
        }
        let call = body.call.clone();
        let text = match body.whole().await {
            Ok(text) => text,
            Err(err) => return err,
        };
        let said: Option<Said> = serde_json::from_slice(&text).ok();
        let text = String::from_utf8_lossy(&text);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = said.map_or_else(|| text.into_owned(), |said| said.message);
                self.error(&call, Class::Denied, format!("{status}: {message}"))
            }
            // 500 is Kubo's for a call that failed, 400 for one that it takes for wrong.
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_REQUEST if said.is_some() => {
                self.error(&call, Class::Failed, said.map(|said| said.message).unwrap_or_default())
            }
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                self.error(&call, Class::Unreachable, format!("something before it says {status}: {text}"))
            }
            _ => self.error(&call, Class::Protocol, format!("it says {status}: {text}")),
        }
    }
}

/// The chain of an error; hyper's outermost text says little.
fn reason(err: &hyper::Error) -> String {
    let mut text = err.to_string();
    let mut source = std::error::Error::source(err);
    while let Some(err) = source {
        text = format!("{text}: {err}");
        source = err.source();
    }
    text
}

impl Body {
    pub(crate) fn error(&self, class: Class, message: impl AsRef<str>) -> Error {
        self.client.error(&self.call, class, message)
    }

    pub(crate) fn line_bytes_max(&self) -> usize {
        self.client.options().line_bytes_max
    }

    /// The next part. Cancel safe. After an error or the end it must not be asked again.
    pub(crate) async fn part(&mut self) -> Result<Part> {
        let frame = match timeout(self.stall, self.incoming.frame()).await {
            Ok(frame) => frame,
            Err(_) => return Err(self.error(Class::Stalled, format!("has said nothing for {:?}", self.stall))),
        };
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Ok(Part::Data(data)),
                Err(frame) => Ok(Part::Trailers(frame.into_trailers().unwrap_or_default())),
            },
            Some(Err(err)) => Err(self.client.cut(&self.call, &err)),
            None => {
                self.give_back();
                Ok(Part::End)
            }
        }
    }

    /// The whole of an answer that is no stream.
    pub(crate) async fn whole(mut self) -> Result<Bytes> {
        let mut whole = Vec::new();
        loop {
            match self.part().await? {
                Part::Data(data) => {
                    if whole.len() + data.len() > self.client.options().answer_bytes_max {
                        let max = self.client.options().answer_bytes_max;
                        return Err(self.error(Class::Protocol, format!("its answer is longer than {max} bytes")));
                    }
                    whole.extend_from_slice(&data);
                }
                Part::Trailers(trailers) => {
                    if let Some(err) = self.failure(&trailers) {
                        return Err(err);
                    }
                }
                Part::End => return Ok(Bytes::from(whole)),
            }
        }
    }

    /// The error that Kubo tells in the trailers.
    pub(crate) fn failure(&self, trailers: &HeaderMap) -> Option<Error> {
        let said = trailers.get("x-stream-error")?;
        Some(self.error(Class::Failed, String::from_utf8_lossy(said.as_bytes())))
    }

    /// A connection whose answer was read to its end serves the next call.
    fn give_back(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let mut idle = self.client.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_closed() && idle.len() < self.client.shared.options.idle_max {
            idle.push(connection);
        }
    }
}
