//! `/metrics`, `/healthz` and `/readyz` over HTTP/1.1. Loopback by default; nothing here changes anything.

use std::{collections::VecDeque, convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::exit::{Failure, Outcome};

/// Connections served at a time.
const CONNECTIONS_MAX: usize = 64;
/// A connection that is not done by then is cut off: the longest answer waits five seconds for its file systems.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);
/// Longest head of a request, in bytes.
const BUFFER_BYTES_MAX: usize = 16 << 10;
/// Pause after a connection that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
/// A client that has not sent its request's header by then is cut off.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// What the pages show.
pub trait Observed: Send + Sync + 'static {
    /// The metrics in Prometheus' text format.
    fn metrics(&self) -> impl Future<Output = Result<String, String>> + Send;
    /// Why the node does not serve as it should; empty: it does.
    fn unready(&self) -> impl Future<Output = Vec<String>> + Send;
    /// What is not as it should be though the node serves all the same.
    fn degraded(&self) -> impl Future<Output = Vec<String>> + Send {
        async { Vec::new() }
    }
}

/// Takes the address. An address in use is an error that names it.
pub async fn bind(address: SocketAddr) -> Outcome<TcpListener> {
    TcpListener::bind(address).await.map_err(|err| {
        Failure::new(format!(
            "listen on {address} for /metrics and /healthz: {err}; choose another [http] listen, or \"\" for none"
        ))
    })
}

/// Serves until the process ends. Nobody can keep others out: a connection has one request and little time, and where all places are taken, the
/// oldest connection makes room.
pub async fn serve<O: Observed>(listener: TcpListener, observed: Arc<O>) {
    let mut serving: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(err) => {
                // Out of descriptors, mostly: try again when some may be free.
                tracing::warn!(%err, "HTTP accepts no connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        serving.retain(|connection| !connection.is_finished());
        if serving.len() >= CONNECTIONS_MAX
            && let Some(oldest) = serving.pop_front()
        {
            oldest.abort();
        }
        let observed = Arc::clone(&observed);
        serving.push_back(tokio::spawn(async move {
            let service = service_fn(|request| {
                let observed = Arc::clone(&observed);
                async move { Ok::<_, Infallible>(answer(&request, &*observed).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_DEADLINE)
                .max_buf_size(BUFFER_BYTES_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_DEADLINE, served).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => tracing::debug!(%err, "an HTTP connection ended early"),
                Err(_) => tracing::debug!("an HTTP connection took too long"),
            }
        }));
    }
}

async fn answer<O: Observed>(request: &Request<Incoming>, observed: &O) -> Response<String> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => page(StatusCode::OK, "alive\n".into()),
        "/readyz" => match observed.unready().await {
            reasons if reasons.is_empty() => {
                let degraded = observed.degraded().await;
                let degraded: String = degraded.iter().map(|what| format!("degraded: {what}\n")).collect();
                page(StatusCode::OK, format!("ready\n{degraded}"))
            }
            reasons => page(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
        },
        "/metrics" => match observed.metrics().await {
            Ok(text) => {
                let mut response = page(StatusCode::OK, text);
                let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(why) => page(StatusCode::INTERNAL_SERVER_ERROR, why + "\n"),
        },
        _ => page(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".into()),
    }
}

fn page(status: StatusCode, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Fenced;

    impl Observed for Fenced {
        async fn metrics(&self) -> Result<String, String> {
            Ok("basalt_blocks 7\n".into())
        }
        async fn unready(&self) -> Vec<String> {
            vec!["shard 1 is fenced".into(), "migrating".into()]
        }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn pages_say_how_the_node_is() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(Fenced)));

        assert!(ask(address, "GET /healthz").await.starts_with("HTTP/1.1 200"));
        let metrics = ask(address, "GET /metrics").await;
        assert!(metrics.contains("text/plain; version=0.0.4") && metrics.ends_with("basalt_blocks 7\n"), "{metrics}");
        let ready = ask(address, "GET /readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("shard 1 is fenced\nmigrating\n"), "{ready}");
        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "DELETE /metrics").await.starts_with("HTTP/1.1 405"));
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_the_remedy() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let message = bind(address).await.unwrap_err().message;
        assert!(message.contains(&address.to_string()) && message.contains("[http] listen"), "{message}");
    }
}
