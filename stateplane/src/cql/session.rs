//! A session: connected, with a profile per class of query; what the driver says becomes an error of ours.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use scylla::{
    client::{
        PoolSize,
        execution_profile::{ExecutionProfile, ExecutionProfileHandle},
        session::Session,
        session_builder::SessionBuilder,
    },
    errors::{DbError, ExecutionError, PrepareError, RequestAttemptError},
    policies::{
        load_balancing::DefaultPolicy, retry::FallthroughRetryPolicy,
        speculative_execution::SimpleSpeculativeExecutionPolicy,
    },
    response::query_result::QueryResult,
    statement::{Consistency, SerialConsistency, Statement, prepared::PreparedStatement},
};
use tokio::sync::Semaphore;

use super::{CqlOptions, Dialect, Level};
use crate::{Class, Error, Result};

/// How a statement is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// A read of one record. May be asked of two replicas at once.
    Read,
    /// A write. All are idempotent: their timestamp is their generation.
    Write,
    /// A page of a list.
    Scan,
    /// A lightweight transaction: never repeated by the driver.
    Claim,
}

pub(super) struct Connected {
    pub(super) session: Session,
    pub(super) dialect: Dialect,
    pub(super) options: CqlOptions,
    profiles: [ExecutionProfileHandle; 4],
    turns: Semaphore,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("keyspace", &self.options.keyspace).finish_non_exhaustive()
    }
}

impl Connected {
    pub(super) async fn connect(options: &CqlOptions) -> Result<Connected> {
        let tried = format!("connect to the ledger at {}", options.contact_points.join(", "));
        let problems = options.problems();
        if !problems.is_empty() {
            return Err(Error::new(tried, Class::Config, problems.join("; ")));
        }
        let profile = |level: Level, timeout: Duration, speculates: bool| {
            let policy = DefaultPolicy::builder()
                .prefer_datacenter(options.datacenter.clone())
                .token_aware(true)
                .permit_dc_failover(false);
            let mut profile = ExecutionProfile::builder()
                .consistency(level.consistency())
                .serial_consistency(Some(SerialConsistency::LocalSerial))
                .request_timeout(Some(timeout))
                // Tries are ours: the driver's would hide the first error behind the last.
                .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
                .load_balancing_policy(policy.build());
            if let Some(retry_interval) = options.speculate_after.filter(|_| speculates) {
                let policy = SimpleSpeculativeExecutionPolicy { max_retry_count: 1, retry_interval };
                profile = profile.speculative_execution_policy(Some(Arc::new(policy)));
            }
            profile.build().into_handle()
        };
        let profiles = [
            profile(options.read_level, options.point_timeout, true),
            profile(options.write_level, options.point_timeout, false),
            profile(options.scan_level, options.scan_timeout, false),
            profile(Level::LocalQuorum, options.claim_timeout, false),
        ];
        let points = options.contact_points.iter().map(|point| match point.rsplit_once(':') {
            Some((host, _)) if !host.contains(':') || host.ends_with(']') => point.clone(),
            _ => format!("{point}:{}", options.port),
        });
        let connections = options.connections.max(1).try_into().unwrap_or(std::num::NonZeroUsize::MIN);
        let mut builder = SessionBuilder::new()
            .known_nodes(points)
            .default_execution_profile_handle(profiles[1].clone())
            .connection_timeout(options.connect_timeout)
            .pool_size(PoolSize::PerShard(connections))
            .fetch_schema_metadata(false)
            .tls_context(tls(options, &tried)?);
        if let Some((user, password)) = &options.login {
            builder = builder.user(user.clone(), password.0.clone());
        }
        // The driver tries every node in turn, each for as long as a connection may take.
        let within = options.connect_timeout * (u32::try_from(options.contact_points.len()).unwrap_or(9).min(9) + 2);
        let session = match tokio::time::timeout(within, builder.build()).await {
            Ok(built) => built.map_err(|err| refused(&tried, &err.to_string()))?,
            Err(_) => return Err(Error::new(tried, Class::Unavailable, format!("no node answered within {within:?}"))),
        };
        let nodes = session.get_cluster_state();
        let there: std::collections::BTreeSet<&str> =
            nodes.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
        if !there.contains(options.datacenter.as_str()) {
            let there = there.into_iter().collect::<Vec<_>>().join(", ");
            let why = format!(
                "no node is in datacenter '{}'; they are in: {there}; set datacenter to one of these",
                options.datacenter
            );
            return Err(Error::new(tried, Class::Config, why));
        }
        let turns = Semaphore::new(options.in_flight_max);
        let mut connected =
            Connected { session, dialect: Dialect::Cassandra, options: options.clone(), profiles, turns };
        connected.dialect = connected.detect().await?;
        Ok(connected)
    }

    /// ScyllaDB has a table that Cassandra has not.
    async fn detect(&self) -> Result<Dialect> {
        match self.session.query_unpaged("SELECT keyspace_name FROM system_schema.scylla_tables LIMIT 1", ()).await {
            Ok(_) => Ok(Dialect::Scylla),
            Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Invalid, _))) => {
                Ok(Dialect::Cassandra)
            }
            Err(err) => Err(failed("ask which database it is", &err)),
        }
    }

    pub(super) async fn prepare(&self, ask: Ask, text: &str) -> Result<PreparedStatement> {
        let tried = || format!("prepare \"{text}\"");
        let mut statement = self.session.prepare(text).await.map_err(|err| unprepared(tried(), &err))?;
        statement.set_execution_profile_handle(Some(self.profiles[ask as usize].clone()));
        statement.set_is_idempotent(ask != Ask::Claim);
        if ask == Ask::Claim {
            statement.set_consistency(Consistency::LocalQuorum);
        }
        Ok(statement)
    }

    /// Runs what is asked once only: DDL, and reads of the schema's own state. May be asked again, and is: while nodes learn a new schema from each
    /// other, some refuse.
    pub(super) async fn ask(&self, text: &str) -> Result<QueryResult> {
        let mut statement = Statement::new(text);
        // It may take as long as a scan: schema changes go through all nodes.
        statement.set_execution_profile_handle(Some(self.profiles[Ask::Scan as usize].clone()));
        let tried = format!("run \"{text}\"");
        self.tries(&tried, || self.session.query_unpaged(statement.clone(), ())).await
    }

    /// Does it until it succeeds, fails for good, or was tried often enough.
    pub(super) async fn tries<T, F, Fut>(&self, tried: &str, mut attempt: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, ExecutionError>>,
    {
        let mut pause = self.options.backoff;
        for rest in (0..self.options.tries).rev() {
            let done = {
                // Never closed, so this only waits.
                let _turn = self.turns.acquire().await;
                attempt().await
            };
            match done {
                Ok(done) => return Ok(done),
                Err(err) => {
                    let err = failed(tried, &err);
                    if rest == 0 || !err.class().passes() {
                        return Err(err);
                    }
                    tracing::debug!(%err, "trying again");
                }
            }
            tokio::time::sleep(jitter(pause)).await;
            pause = (pause * 2).min(self.options.backoff_max);
        }
        Err(Error::new(tried, Class::Config, "it may be tried zero times"))
    }
}

/// Between half and three halves of it, so that a fleet does not come back all at once.
pub(super) fn jitter(pause: Duration) -> Duration {
    let mut byte = [128];
    // Without random bytes it is just the pause.
    let _ = getrandom::fill(&mut byte);
    pause.mul_f64(0.5 + f64::from(byte[0]) / 256.0)
}

fn tls(options: &CqlOptions, tried: &str) -> Result<Option<Arc<rustls::ClientConfig>>> {
    let Some(tls) = &options.tls else { return Ok(None) };
    let unusable = |what: &str, path: &std::path::Path, err: &dyn fmt::Display| {
        Error::new(tried, Class::Config, format!("{what} {} can't be used: {err}", path.display()))
    };
    let mut roots = rustls::RootCertStore::empty();
    let ca = |err: &dyn fmt::Display| unusable("the CA certificates in", &tls.ca_file, err);
    for certificate in CertificateDer::pem_file_iter(&tls.ca_file).map_err(|err| ca(&err))? {
        roots.add(certificate.map_err(|err| ca(&err))?).map_err(|err| ca(&err))?;
    }
    if roots.is_empty() {
        return Err(ca(&"there is none in it"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|err| Error::new(tried, Class::Config, err.to_string()))?
        .with_root_certificates(roots);
    let config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let wrong = |err: &dyn fmt::Display| unusable("our certificate", certificate, err);
            let chain = CertificateDer::pem_file_iter(certificate).map_err(|err| wrong(&err))?;
            let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|err| wrong(&err))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|err| unusable("our key", key, &err))?;
            builder.with_client_auth_cert(chain, key).map_err(|err| wrong(&err))?
        }
    };
    Ok(Some(Arc::new(config)))
}

/// Why no session came about. The driver's error is a text of many causes; these are told apart.
fn refused(tried: &str, text: &str) -> Error {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let (class, remedy) =
        if has(&["Authentication failed", "incorrect", "requires authentication", "Bad credentials", "credentials"]) {
            (Class::Denied, "check the user and the password")
        } else if has(&["UnknownIssuer", "invalid peer certificate", "BadSignature"]) {
            (
                Class::Config,
                "the server's certificate is not signed by the CA of the config, or does not name its IP address",
            )
        } else if has(&["CertificateRequired", "certificate required", "HandshakeFailure"]) {
            (Class::Config, "the server wants a certificate of ours; configure one that its CA signed")
        } else {
            (Class::Unavailable, "are the nodes up, is it the CQL port, and do both sides agree on TLS?")
        };
    Error::new(tried, class, format!("{text}; {remedy}"))
}

fn unprepared(tried: String, err: &PrepareError) -> Error {
    let text = err.to_string();
    let class = if is_schema(&text) { Class::Schema } else { Class::Unavailable };
    Error::new(tried, class, text)
}

fn is_schema(text: &str) -> bool {
    ["unconfigured table", "does not exist", "Undefined column", "Unknown identifier", "Undefined name", "Keyspace"]
        .iter()
        .any(|words| text.contains(words))
}

/// An error of the driver, as one of ours.
pub(super) fn failed(tried: &str, err: &ExecutionError) -> Error {
    let class = match err {
        ExecutionError::RequestTimeout(_) => Class::Timeout,
        ExecutionError::EmptyPlan => Class::Config,
        ExecutionError::ConnectionPoolError(_) => Class::Unavailable,
        ExecutionError::LastAttemptError(err) => match err {
            RequestAttemptError::BrokenConnectionError(_) => Class::Timeout,
            RequestAttemptError::UnableToAllocStreamId => Class::Unavailable,
            RequestAttemptError::SerializationError(_) | RequestAttemptError::CqlRequestSerialization(_) => {
                Class::Argument
            }
            RequestAttemptError::DbError(err, text) => match err {
                DbError::Unavailable { .. } | DbError::Overloaded | DbError::IsBootstrapping | DbError::ServerError => {
                    Class::Unavailable
                }
                DbError::WriteTimeout { .. }
                | DbError::ReadTimeout { .. }
                | DbError::WriteFailure { .. }
                | DbError::ReadFailure { .. } => Class::Timeout,
                DbError::Unauthorized | DbError::AuthenticationError => Class::Denied,
                _ if is_schema(text) => Class::Schema,
                _ => Class::Argument,
            },
            _ => Class::Unavailable,
        },
        ExecutionError::PrepareError(_) | ExecutionError::BadQuery(_) => Class::Argument,
        _ => Class::Unavailable,
    };
    Error::new(tried, class, err.to_string())
}
