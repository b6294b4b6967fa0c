//! NATS JetStream as the bus.
//!
//! The client library goes on trying for ever where it is told to, and says why it fails only in passing. So the first connection is made without
//! that, with a time to it, and what it fails for is told in words with the remedy; afterwards the library reconnects by itself, and what it says
//! meanwhile is logged.

use std::{
    error::Error as _,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr,
    jetstream::{
        self, AckKind, Context,
        consumer::{AckPolicy, PullConsumer, pull},
        message::PublishMessage,
        stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
    },
};
use async_trait::async_trait;
use basalt_stateplane::{FENCE_DAYS, Peer, metrics};
use futures_util::StreamExt;
use tokio::sync::Mutex as AsyncMutex;

use crate::{
    bus::{Answer, Bus, BusError, Delivery},
    message::assign_subject,
};

/// Stream of what is assigned; what is confirmed leaves it.
pub const ASSIGN_STREAM: &str = "PIN_ASSIGN";
/// Stream of what was done.
pub const STATUS_STREAM: &str = "PIN_STATUS";
/// Stream of messages that nobody will work on.
pub const DEAD_STREAM: &str = "PIN_DLQ";

/// Longest message that the stream of assignments takes.
const MESSAGE_BYTES_MAX: i32 = 64 << 10;
/// How long the server remembers ids of messages.
const DUPLICATES: Duration = Duration::from_secs(120);
const DAY: Duration = Duration::from_secs(86_400);
/// Pauses between tries to connect.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// How long a pull waits for messages, and how often the server says that it is still there.
const PULL_EXPIRES: Duration = Duration::from_secs(10);
const PULL_HEARTBEAT: Duration = Duration::from_secs(3);

/// Who we are to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// Nobody.
    #[default]
    None,
    /// User, and the file of the password.
    User(String, PathBuf),
    /// File of an nkey's seed.
    Nkey(PathBuf),
    /// File of a JWT and its nkey's seed, as nsc writes it.
    Credentials(PathBuf),
}

/// How NATS is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsOptions {
    /// Servers, as `nats://HOST:PORT` or `tls://HOST:PORT`. The others of a cluster are learnt from them.
    pub servers: Vec<String>,
    /// Who we are.
    pub login: Login,
    /// PEM file of the authorities that the servers' certificates are signed by; with it TLS is demanded.
    pub ca_file: Option<PathBuf>,
    /// PEM files of our own certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// A connection that is not made by then is given up for this time.
    pub connect_timeout: Duration,
    /// Copies of each stream, where this worker makes the streams.
    pub replicas: usize,
    /// Messages that may be delivered and not confirmed at a time.
    pub window: usize,
    /// A message that was not heard of for so long is delivered again.
    pub ack_wait: Duration,
}

impl Default for NatsOptions {
    fn default() -> NatsOptions {
        NatsOptions {
            servers: Vec::new(),
            login: Login::None,
            ca_file: None,
            client: None,
            connect_timeout: Duration::from_secs(5),
            replicas: 1,
            window: 512,
            ack_wait: Duration::from_secs(30),
        }
    }
}

/// What a connection failed for, by what one would do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NatsClass {
    /// No server answers. It may come back.
    Away,
    /// The server does not let us in. Fix the credentials.
    Denied,
    /// One side does not believe the other's certificate. Fix the certificates.
    Tls,
    /// The config can't be used as it is: a file that is not there, or no address.
    Config,
}

/// A connection that failed: to whom, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsError {
    /// What one would do.
    pub class: NatsClass,
    why: String,
}

impl fmt::Display for NatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)?;
        f.write_str(match self.class {
            NatsClass::Away => "; is it running, and is [nats] servers right?",
            NatsClass::Denied => "; give [nats] the credentials of a user that the server knows",
            NatsClass::Tls => {
                "; [nats] tls_ca_file must be the authority of the server's certificate, which must name the host that is connected to, and \
                 tls_cert_file and tls_key_file a certificate that the server trusts, where it asks for one"
            }
            NatsClass::Config => "; see [nats] in `basalt config reference`",
        })
    }
}

impl std::error::Error for NatsError {}

fn config_error(why: impl Into<String>) -> NatsError {
    NatsError { class: NatsClass::Config, why: why.into() }
}

fn secret(path: &Path) -> Result<String, NatsError> {
    let text = std::fs::read_to_string(path).map_err(|err| config_error(format!("read {}: {err}", path.display())))?;
    Ok(text.trim().to_owned())
}

impl NatsOptions {
    /// What can't be right whatever the server says, each as `key: why`.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for server in &self.servers {
            match server.parse::<ServerAddr>() {
                Err(err) => problems.push(format!("servers: '{}' is no address: {err}", server.escape_debug())),
                Ok(_) if server.contains('@') => {
                    problems.push("servers: a password does not belong in an address (not shown here); use user and password_file".into());
                }
                Ok(address) if address.scheme() == "ws" || address.scheme() == "wss" => {
                    problems.push(format!("servers: '{server}': only nats:// and tls:// are spoken"));
                }
                Ok(_) => {}
            }
        }
        if self.client.is_some() && self.ca_file.is_none() {
            problems.push("tls_cert_file: it is of no use without tls_ca_file".into());
        }
        problems
    }

    async fn options(&self) -> Result<ConnectOptions, NatsError> {
        let mut options = ConnectOptions::new().name("basalt").connection_timeout(self.connect_timeout);
        match &self.login {
            Login::None => {}
            Login::User(user, file) => options = options.user_and_password(user.clone(), secret(file)?),
            Login::Nkey(file) => {
                // The library ends its task where the seed is none.
                let seed = secret(file)?;
                if !(seed.starts_with("SU") && seed.len() == 58) {
                    return Err(config_error(format!("{} holds no seed of a user's nkey (SU...)", file.display())));
                }
                options = options.nkey(seed);
            }
            Login::Credentials(file) => {
                let made = options.credentials(&secret(file)?);
                options = made.map_err(|err| {
                    config_error(format!("{} holds no credentials (a JWT and a seed): {err}", file.display()))
                })?;
            }
        }
        if let Some(ca) = &self.ca_file {
            secret(ca)?;
            options = options.add_root_certificates(ca.clone()).require_tls(true);
        }
        if let Some((cert, key)) = &self.client {
            secret(cert)?;
            secret(key)?;
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        Ok(options)
    }

    fn servers(&self) -> Result<Vec<ServerAddr>, NatsError> {
        let parse = |server: &String| server.parse().map_err(|err| config_error(format!("'{server}': {err}")));
        self.servers.iter().map(parse).collect()
    }

    /// Connects, within about the connect timeout a server, or says why not.
    pub async fn connect(&self) -> Result<Client, NatsError> {
        let began = Instant::now();
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        let options = self.options().await?.event_callback(move |event| {
            let heard = heard.clone();
            async move {
                match event {
                    Event::Connected => tracing::info!("connected to NATS"),
                    Event::Disconnected => tracing::warn!("the connection to NATS is lost; it is made again"),
                    event => {
                        tracing::warn!(%event, "NATS");
                        *heard.lock().unwrap_or_else(PoisonError::into_inner) = event.to_string();
                    }
                }
            }
        });
        let servers = self.servers()?;
        let limit = self.connect_timeout * u32::try_from(servers.len().max(1)).unwrap_or(1) + Duration::from_secs(1);
        let names = self.servers.join(", ");
        let connected = tokio::time::timeout(limit, async_nats::connect_with_options(servers, options)).await;
        metrics::nats("connect", began.elapsed().as_secs_f64(), !matches!(connected, Ok(Ok(_))));
        let err = match connected {
            Ok(Ok(client)) => return Ok(client),
            Err(_) => {
                let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let why = format!("connect to NATS at {names}: no answer within {} s {said}", limit.as_secs());
                return Err(NatsError { class: NatsClass::Away, why: why.trim_end().to_owned() });
            }
            Ok(Err(err)) => err,
        };
        let mut why = err.to_string();
        let mut source = err.source();
        while let Some(inner) = source {
            let text = inner.to_string();
            if !why.contains(&text) {
                why = format!("{why}: {text}");
            }
            source = inner.source();
        }
        let class = match err.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => NatsClass::Denied,
            ConnectErrorKind::Tls => NatsClass::Tls,
            ConnectErrorKind::ServerParse => NatsClass::Config,
            _ if looks_like_tls(&why) => NatsClass::Tls,
            _ if why.to_lowercase().contains("authorization violation") => NatsClass::Denied,
            _ => NatsClass::Away,
        };
        Err(NatsError { class, why: format!("connect to NATS at {names}: {why}") })
    }

    /// Connects and sees that JetStream is there, which is what a worker needs.
    pub async fn check(&self) -> Result<(), NatsError> {
        let client = self.connect().await?;
        let js = jetstream::new(client);
        let asked = tokio::time::timeout(self.connect_timeout, js.query_account()).await;
        match asked {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(err)) => Err(NatsError {
                class: NatsClass::Denied,
                why: format!(
                    "NATS at {} lets us in, and JetStream does not answer: {err}; the user needs $JS.API.> and _INBOX.>, the server `jetstream`",
                    self.servers.join(", ")
                ),
            }),
            Err(_) => Err(NatsError {
                class: NatsClass::Away,
                why: format!("NATS at {} lets us in, and JetStream does not answer", self.servers.join(", ")),
            }),
        }
    }
}

/// The library tells a failed handshake as a bare error of input and output; rustls's words are below it.
fn looks_like_tls(why: &str) -> bool {
    let why = why.to_lowercase();
    ["certificate", "tls", "handshake", "unknownissuer", "alert", "corrupt message"]
        .iter()
        .any(|word| why.contains(word))
}

/// The streams, made by whoever comes first.
async fn streams(js: &Context, replicas: usize) -> Result<stream::Stream, BusError> {
    let base = |name: &str, subject: &str| stream::Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        storage: StorageType::File,
        num_replicas: replicas,
        duplicate_window: DUPLICATES,
        ..stream::Config::default()
    };
    let assign = stream::Config {
        retention: RetentionPolicy::WorkQueue,
        // What is older may have lost its fence.
        max_age: DAY * (FENCE_DAYS - 1),
        max_message_size: MESSAGE_BYTES_MAX,
        discard: DiscardPolicy::New,
        ..base(ASSIGN_STREAM, "pin.assign.*")
    };
    let status = stream::Config { max_age: 7 * DAY, ..base(STATUS_STREAM, "pin.status.*") };
    let dead = stream::Config { max_age: 30 * DAY, ..base(DEAD_STREAM, "pin.dlq.*") };
    for config in [status, dead] {
        let name = config.name.clone();
        js.get_or_create_stream(config).await.map_err(|err| BusError(format!("make the stream {name}: {err}")))?;
    }
    js.get_or_create_stream(assign).await.map_err(|err| BusError(format!("make the stream {ASSIGN_STREAM}: {err}")))
}

/// A connection with its streams.
#[derive(Clone)]
struct Session {
    js: Context,
    assign: stream::Stream,
}

/// The bus of one worker. It connects when it is first needed, and again and again where that fails.
pub struct Nats {
    options: NatsOptions,
    peer: Peer,
    session: AsyncMutex<Option<Session>>,
    messages: AsyncMutex<Option<pull::Stream>>,
    failed: Mutex<Option<(NatsError, Instant, Duration)>>,
    /// Why no assignments come though there was a connection.
    trouble: Mutex<Option<String>>,
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats").field("servers", &self.options.servers).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Nats {
    /// The bus of this peer's worker.
    pub fn new(options: NatsOptions, peer: Peer) -> Nats {
        Nats {
            options,
            peer,
            session: AsyncMutex::default(),
            messages: AsyncMutex::default(),
            failed: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// Why no assignments come; `None`: they do, or it was not tried yet.
    pub fn failure(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let trouble = || self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failed.as_ref().map(|(err, ..)| err.to_string()).or_else(trouble)
    }

    fn is_well(&self, trouble: Option<&BusError>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble.map(ToString::to_string);
    }

    async fn session(&self) -> Result<Session, BusError> {
        let mut session = self.session.lock().await;
        if let Some(session) = &*session {
            return Ok(session.clone());
        }
        let last = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut pause = AGAIN;
        if let Some((err, at, waits)) = last {
            if at.elapsed() < waits {
                return Err(BusError(err.to_string()));
            }
            pause = (waits * 2).min(AGAIN_MAX);
        }
        let client = match self.options.connect().await {
            Ok(client) => client,
            Err(err) => {
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((err.clone(), Instant::now(), pause));
                return Err(BusError(err.to_string()));
            }
        };
        let js = jetstream::new(client);
        let assign = streams(&js, self.options.replicas).await?;
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let made = Session { js, assign };
        *session = Some(made.clone());
        Ok(made)
    }

    async fn consume(&self) -> Result<pull::Stream, BusError> {
        let session = self.session().await?;
        let subject = assign_subject(&self.peer)
            .ok_or_else(|| BusError(format!("the peer id {} can't be a part of a subject", self.peer)))?;
        let durable = format!("agent-{}", self.peer);
        let config = pull::Config {
            durable_name: Some(durable.clone()),
            filter_subject: subject,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.options.ack_wait,
            // The worker itself says when it is enough, with a dead letter; the server would only stop delivering.
            max_deliver: -1,
            max_ack_pending: i64::try_from(self.options.window).unwrap_or(i64::MAX),
            ..pull::Config::default()
        };
        let consumer: PullConsumer = session
            .assign
            .create_consumer(config)
            .await
            .map_err(|err| BusError(format!("make the consumer {durable}: {err}")))?;
        consumer
            .stream()
            .max_messages_per_batch(self.options.window.clamp(1, 64))
            .heartbeat(PULL_HEARTBEAT)
            .expires(PULL_EXPIRES)
            .messages()
            .await
            .map_err(|err| BusError(format!("pull from {durable}: {err}")))
    }
}

#[async_trait]
impl Bus for Nats {
    async fn next(&self) -> Result<Delivery, BusError> {
        let mut messages = self.messages.lock().await;
        loop {
            let stream = match &mut *messages {
                Some(stream) => stream,
                None => {
                    let made = self.consume().await.inspect_err(|err| self.is_well(Some(err)))?;
                    self.is_well(None);
                    messages.insert(made)
                }
            };
            match stream.next().await {
                Some(Ok(message)) => {
                    let delivered = message.info().map(|info| info.delivered).unwrap_or(1);
                    let delivered = u64::try_from(delivered).unwrap_or(1);
                    let payload = message.payload.clone();
                    return Ok(Delivery { payload, delivered, answer: Arc::new(Message(message)) });
                }
                // A pull that was lost (a server killed, a leader that moved) is seen by heartbeats that stay out.
                Some(Err(err)) => {
                    *messages = None;
                    let err = BusError(format!("pull assignments: {err}"));
                    self.is_well(Some(&err));
                    return Err(err);
                }
                None => *messages = None,
            }
        }
    }

    async fn publish(&self, subject: &str, id: &str, payload: Vec<u8>) -> Result<(), BusError> {
        let session = self.session().await?;
        publish(&session.js, subject, id, payload).await
    }
}

async fn publish(js: &Context, subject: &str, id: &str, payload: Vec<u8>) -> Result<(), BusError> {
    let began = Instant::now();
    let failed = |err: &dyn fmt::Display| BusError(format!("publish {subject}: {err}; it may be stored all the same"));
    let published = async {
        let message = PublishMessage::build().message_id(id).payload(payload.into());
        let stored = js.send_publish(subject.to_owned(), message).await.map_err(|err| failed(&err))?;
        stored.await.map_err(|err| failed(&err))
    };
    let done = published.await;
    metrics::nats("publish", began.elapsed().as_secs_f64(), done.is_err());
    done.map(|_| ())
}

/// Publishes assignments, without consuming any.
#[derive(Clone)]
pub struct Publisher {
    js: Context,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Publisher {
    /// Connects, and makes the streams where they are not there.
    pub async fn connect(options: &NatsOptions) -> Result<Publisher, NatsError> {
        let js = jetstream::new(options.connect().await?);
        let made = streams(&js, options.replicas).await;
        made.map_err(|err| NatsError { class: NatsClass::Denied, why: err.to_string() })?;
        Ok(Publisher { js })
    }

    /// Publishes one message; returns once it is stored.
    pub async fn publish(&self, subject: &str, id: &str, payload: Vec<u8>) -> Result<(), BusError> {
        publish(&self.js, subject, id, payload).await
    }
}

#[derive(Debug)]
struct Message(jetstream::Message);

impl Message {
    async fn answer(&self, kind: AckKind, call: &str) -> Result<(), BusError> {
        let done = self.0.ack_with(kind).await.map_err(|err| BusError(format!("answer a message: {err}")));
        if done.is_err() {
            metrics::nats(call, 0.0, true);
        }
        done
    }
}

#[async_trait]
impl Answer for Message {
    async fn progress(&self) -> Result<(), BusError> {
        self.answer(AckKind::Progress, "progress").await
    }

    async fn postpone(&self, pause: Duration) -> Result<(), BusError> {
        self.answer(AckKind::Nak(Some(pause)), "postpone").await
    }

    async fn confirm(&self) -> Result<(), BusError> {
        let began = Instant::now();
        let done = self.0.double_ack().await.map_err(|err| BusError(format!("confirm a message: {err}")));
        metrics::nats("confirm", began.elapsed().as_secs_f64(), done.is_err());
        done
    }
}
