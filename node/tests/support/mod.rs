//! A node in a temporary folder, served on its sockets, and a client of it.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test ends there")]

pub mod lane;
pub mod raw;

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use basalt_blockstore::Multihash;
use basalt_datastore::Key;
use basalt_node::{Config, Host, InitOptions, Node, Server, client, config};
use basalt_proto::v1;
use tempfile::TempDir;

/// A served node; its folder goes with it.
pub struct Served {
    pub dir: TempDir,
    pub node: Arc<Node>,
    pub server: Option<Server>,
}

impl Served {
    /// Two shards, this config, hosted by an agent.
    pub fn start(config: &str) -> Served {
        Served::hosted(config, Host::Agent)
    }

    pub fn hosted(config: &str, host: Host) -> Served {
        let dir = tempfile::tempdir().unwrap();
        basalt_node::init(dir.path(), &InitOptions { shards: 2, ..Default::default() }).unwrap();
        let node = Node::open(dir.path(), self::config(config), host).unwrap();
        let server = Some(Server::start(&node).unwrap());
        Served { dir, node, server }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A client that has shaken hands as a Kubo with everything in the node.
    pub async fn data(&self) -> client::Data {
        self.data_as("root").await
    }

    pub async fn data_as(&self, role: &str) -> client::Data {
        client::data(self.path(), &self.node.config().sockets, "test 1", role).await.unwrap().0
    }

    pub async fn admin(&self) -> client::Admin {
        client::admin(self.path(), &self.node.config().sockets).await.unwrap()
    }

    pub async fn stop(&mut self) {
        self.server.take().unwrap().stop().await.unwrap();
        self.node.close().unwrap();
    }
}

pub fn config(text: &str) -> Config {
    Config::check(text, Path::new(config::FILE_NAME)).unwrap()
}

/// Polls until `holds` or ten seconds have passed.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(std::time::Instant::now() < deadline, "waited ten seconds until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A block whose value is `value`.
pub fn block(value: &[u8]) -> (Multihash, String) {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(value);
    let key = Multihash::parse(&[&[0x12, 32], &digest[..]].concat()).unwrap();
    let name = Key::of_block(&key).as_str().to_owned();
    (key, name)
}

pub fn put(key: &str, value: &[u8]) -> v1::PutRequest {
    v1::PutRequest { key: key.to_owned(), value: value.to_vec().into(), ttl_ms: 0 }
}

pub fn get(key: &str) -> v1::GetRequest {
    v1::GetRequest { key: key.to_owned() }
}

/// The kind of a refusal, as the wire names it.
pub fn kind(status: &tonic::Status) -> basalt_blockstore::ErrorKind {
    assert!(status.metadata().get("basalt-kind").is_some(), "{status:?}");
    client::error(status).kind()
}

/// A connection to a socket that has said nothing yet.
pub async fn channel(socket: &Path) -> tonic::transport::Channel {
    let socket = socket.to_owned();
    let dial = move |_: tonic::transport::Uri| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(&socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    };
    let endpoint = tonic::transport::Endpoint::from_static("http://basalt.invalid");
    endpoint.connect_with_connector(tower::service_fn(dial)).await.unwrap()
}

/// Everything that a stream of answers brings, and how it ended.
pub async fn drain<T>(mut stream: tonic::Streaming<T>) -> (Vec<T>, Option<tonic::Status>) {
    let mut all = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(item)) => all.push(item),
            Ok(None) => return (all, None),
            Err(status) => return (all, Some(status)),
        }
    }
}
