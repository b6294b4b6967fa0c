//! The data service: go-datastore over gRPC.

use std::{sync::Arc, time::Duration};

use basalt_datastore::{BatchOp, Datastore, Error, ErrorKind, Key, Ticket};
use basalt_proto::v1::{self, batch_operation::Operation, datastore_server};
use tonic::{Request, Response, Status, Streaming};

use super::{
    CHUNK_BYTES, blocking, outcome, settled,
    status::status,
    stream::{self, Answers, Places},
    traffic::hold_answer,
};
use crate::{
    arriving::Arriving,
    clients::{Connection, Introduction},
    node::Node,
    query::parse_key,
};

/// Most entries of one chunk of a query, so that a chunk of keys alone stays near [`CHUNK_BYTES`].
const CHUNK_ENTRIES: usize = 8192;

/// A query whose client has taken nothing for this long makes room for one that waits.
const QUERY_PATIENCE: Duration = Duration::from_secs(5);

/// The data service of one node.
#[derive(Debug)]
pub(crate) struct Data {
    node: Arc<Node>,
    queries: Arc<Places>,
}

impl Data {
    pub(crate) fn new(node: Arc<Node>) -> Data {
        let queries = Places::new(node.config().queries_max, QUERY_PATIENCE);
        Data { node, queries }
    }

    fn datastore(&self) -> &Arc<Datastore> {
        self.node.datastore()
    }

    /// Submits a write and awaits its outcome: here, or on the blocking pool while the store makes writers wait, because two of them would
    /// hold both threads that serve. What failed only because another's write did is tried again (STORE 11).
    async fn write(
        &self,
        submit: impl Fn(&Datastore) -> basalt_datastore::Result<Ticket> + Send + Sync + 'static,
    ) -> Result<(), Status> {
        const TRIES: usize = 8;
        let submit = Arc::new(submit);
        for _ in 1..TRIES {
            match outcome(self.submit(&submit).await?).await {
                Err(err) if err.is_superseded() => {}
                told => return told.map_err(status),
            }
        }
        outcome(self.submit(&submit).await?).await.map_err(status)
    }

    async fn submit(
        &self,
        submit: &Arc<impl Fn(&Datastore) -> basalt_datastore::Result<Ticket> + Send + Sync + 'static>,
    ) -> Result<Ticket, Status> {
        if self.node.writes_wait() {
            let (datastore, submit) = (self.datastore().clone(), submit.clone());
            return blocking(move || submit(&datastore)).await;
        }
        submit(self.datastore()).map_err(status)
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn key(text: &str) -> Result<Key, Status> {
    parse_key(text).map_err(status)
}

fn ttl(ttl_ms: i64) -> Result<u64, Status> {
    u64::try_from(ttl_ms).map_err(|_| {
        status(Error::new(ErrorKind::InvalidValue, format!("a time to live of {ttl_ms} ms: it can't be negative")))
    })
}

#[tonic::async_trait]
impl datastore_server::Datastore for Data {
    async fn handshake(self: Arc<Self>, request: Request<v1::HandshakeRequest>) -> Answer<v1::HandshakeResponse> {
        let connection = request.extensions().get::<Connection>().cloned();
        let said = request.into_inner();
        let answer = self.node.shake_hands(&said).map_err(status)?;
        if let Some(connection) = connection {
            let peer = connection.peer();
            tracing::info!(
                client = said.client,
                role = said.role,
                pid = peer.pid,
                uid = peer.uid,
                protocol = answer.protocol,
                "client connected"
            );
            connection.introduce(Introduction::of(said));
        }
        Ok(Response::new(answer))
    }

    async fn get(self: Arc<Self>, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        let connection = request.extensions().get::<Connection>();
        if let Some(connection) = connection {
            connection.room().await;
        }
        let mut value = Vec::new();
        self.datastore().get(&key(&request.get_ref().key)?, &mut value).map_err(status)?;
        let bytes = value.len();
        let mut response = Response::new(v1::GetResponse { value: value.into() });
        hold_answer(response.extensions_mut(), connection, bytes);
        Ok(response)
    }

    async fn get_size(self: Arc<Self>, request: Request<v1::GetSizeRequest>) -> Answer<v1::GetSizeResponse> {
        match self.datastore().size(&key(&request.get_ref().key)?).map_err(status)? {
            Some(size) => Ok(Response::new(v1::GetSizeResponse { size })),
            None => Err(status(Error::not_found())),
        }
    }

    async fn has(self: Arc<Self>, request: Request<v1::HasRequest>) -> Answer<v1::HasResponse> {
        let size = self.datastore().size(&key(&request.get_ref().key)?).map_err(status)?;
        Ok(Response::new(v1::HasResponse { exists: size.is_some() }))
    }

    async fn get_sizes(self: Arc<Self>, request: Request<v1::GetSizesRequest>) -> Answer<v1::GetSizesResponse> {
        let size = |text: &String| {
            let size = self.datastore().size(&key(text)?).map_err(status)?;
            Ok(size.map_or(-1, |size| i64::try_from(size).unwrap_or(i64::MAX)))
        };
        let sizes = request.get_ref().keys.iter().map(size).collect::<Result<_, Status>>()?;
        Ok(Response::new(v1::GetSizesResponse { sizes }))
    }

    async fn put(self: Arc<Self>, request: Request<v1::PutRequest>) -> Answer<v1::PutResponse> {
        let request = request.into_inner();
        let ttl_ms = Some(ttl(request.ttl_ms)?).filter(|ttl_ms| *ttl_ms != 0);
        let key = key(&request.key)?;
        self.write(move |datastore| datastore.submit_put(&key, &request.value, ttl_ms)).await?;
        Ok(Response::new(v1::PutResponse {}))
    }

    async fn delete(self: Arc<Self>, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        let key = key(&request.get_ref().key)?;
        self.write(move |datastore| datastore.submit_delete(&key)).await?;
        Ok(Response::new(v1::DeleteResponse {}))
    }

    async fn batch(self: Arc<Self>, request: Request<Streaming<v1::BatchRequest>>) -> Answer<v1::BatchResponse> {
        let mut chunks = request.into_inner();
        let mut arriving = Arriving::new(self.node.clone());
        while let Some(chunk) = chunks.message().await? {
            for sent in chunk.operations {
                arriving.add(operation(sent)?).map_err(status)?;
            }
            if chunk.commit {
                let datastore = self.datastore().clone();
                let ops = arriving.take();
                // It may wait for the barrier between blocks and metadata.
                let ticket = blocking(move || datastore.submit_batch(ops)).await?;
                settled(Ok(ticket)).await?;
                return Ok(Response::new(v1::BatchResponse {}));
            }
        }
        Err(Status::cancelled("the batch ended without a commit; nothing was applied"))
    }

    type QueryStream = Answers<v1::QueryResponse>;

    async fn query(self: Arc<Self>, request: Request<v1::QueryRequest>) -> Answer<Self::QueryStream> {
        let connection = request.extensions().get::<Connection>().cloned();
        let request = request.into_inner();
        let expirations = request.return_expirations;
        let sizes = request.returns_sizes || !request.keys_only;
        let query = crate::query::parse(request).map_err(status)?;
        let datastore = self.datastore().clone();
        let chunks = stream::produce(&self.queries, connection, move |sink| {
            let mut cursor = datastore.query(query)?;
            loop {
                let page = cursor.next_page(CHUNK_ENTRIES, CHUNK_BYTES)?;
                let complete = page.is_empty();
                let entry = |entry: basalt_datastore::Entry| v1::Entry {
                    key: entry.key.as_str().to_owned(),
                    value: entry.value.into(),
                    size: if sizes { i64::try_from(entry.size).unwrap_or(i64::MAX) } else { -1 },
                    expires_unix_ms: if expirations {
                        i64::try_from(entry.expires_unix_ms).unwrap_or(i64::MAX)
                    } else {
                        0
                    },
                };
                sink.send(v1::QueryResponse { entries: page.into_iter().map(entry).collect(), complete })?;
                if complete {
                    return Ok(());
                }
            }
        });
        Ok(Response::new(chunks.await?))
    }

    async fn sync(self: Arc<Self>, request: Request<v1::SyncRequest>) -> Answer<v1::SyncResponse> {
        let prefix = Key::new(&request.get_ref().prefix).map_err(status)?;
        settled(self.datastore().submit_sync(&prefix)).await?;
        Ok(Response::new(v1::SyncResponse {}))
    }

    async fn disk_usage(self: Arc<Self>, _: Request<v1::DiskUsageRequest>) -> Answer<v1::DiskUsageResponse> {
        Ok(Response::new(v1::DiskUsageResponse { bytes: self.datastore().disk_usage() }))
    }

    async fn check(self: Arc<Self>, _: Request<v1::CheckRequest>) -> Answer<v1::CheckResponse> {
        let datastore = self.datastore().clone();
        blocking(move || datastore.check()).await?;
        Ok(Response::new(v1::CheckResponse {}))
    }

    async fn scrub(self: Arc<Self>, _: Request<v1::ScrubRequest>) -> Answer<v1::ScrubResponse> {
        let datastore = self.datastore().clone();
        blocking(move || datastore.scrub()).await?;
        Ok(Response::new(v1::ScrubResponse {}))
    }

    async fn collect_garbage(
        self: Arc<Self>,
        _: Request<v1::CollectGarbageRequest>,
    ) -> Answer<v1::CollectGarbageResponse> {
        let datastore = self.datastore().clone();
        blocking(move || datastore.collect_garbage()).await?;
        Ok(Response::new(v1::CollectGarbageResponse {}))
    }

    async fn set_ttl(self: Arc<Self>, request: Request<v1::SetTtlRequest>) -> Answer<v1::SetTtlResponse> {
        let request = request.into_inner();
        settled(self.datastore().submit_set_ttl(&key(&request.key)?, ttl(request.ttl_ms)?)).await?;
        Ok(Response::new(v1::SetTtlResponse {}))
    }

    async fn get_expiration(
        self: Arc<Self>,
        request: Request<v1::GetExpirationRequest>,
    ) -> Answer<v1::GetExpirationResponse> {
        let expires = self.datastore().expiration(&key(&request.get_ref().key)?).map_err(status)?;
        let expires_unix_ms = expires.map_or(0, |at| i64::try_from(at).unwrap_or(i64::MAX));
        Ok(Response::new(v1::GetExpirationResponse { expires_unix_ms }))
    }
}

fn operation(sent: v1::BatchOperation) -> Result<BatchOp, Status> {
    let key = key(&sent.key)?;
    match sent.operation {
        Some(Operation::Put(value)) => Ok(BatchOp::Put(key, value.into())),
        Some(Operation::Delete(true)) => Ok(BatchOp::Delete(key)),
        Some(Operation::Delete(false)) | None => {
            let message = format!("the batch says neither put nor delete of {}", key.as_str());
            Err(status(Error::new(ErrorKind::InvalidValue, message)))
        }
    }
}
