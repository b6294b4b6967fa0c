//! The first call of every connection: who may come in, and that neighbouring versions understand each other.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod support;

use basalt_blockstore::ErrorKind;
use basalt_node::{Host, InitOptions, Node, Server, State, client, set_state};
use basalt_proto::v1::{self, datastore_client::DatastoreClient};
use bytes::Bytes;
use prost::Message;
use support::{Served, channel, config, get, kind, put, raw::Raw};
use tonic::{Code, codegen::http::uri::PathAndQuery};

fn kubo() -> v1::HandshakeRequest {
    v1::HandshakeRequest {
        protocol_min: 1,
        protocol_max: 1,
        client: "kubo-plugin 0.1.0".into(),
        role: "root".into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn handshake_tells_what_the_client_needs() {
    let served = Served::start("[node]\ndurability = \"ordered\"\n[limits]\nvalue_bytes_max = \"8 MiB\"");
    let mut data = DatastoreClient::new(channel(&served.node.sockets().unwrap().data).await);
    let request = v1::HandshakeRequest { expect_node_id: served.node.id().to_string(), ..kubo() };
    let answer = data.handshake(request).await.unwrap().into_inner();
    assert_eq!(answer.protocol, 1);
    assert_eq!(answer.node_id, served.node.id().as_str());
    assert_eq!(answer.incarnation, &served.node.incarnation()[..]);
    assert_eq!((answer.durability.as_str(), answer.value_bytes_max, answer.read_only), ("ordered", 8 << 20, false));
    assert!(answer.server.starts_with("basalt "));
}

#[tokio::test]
async fn a_call_before_the_handshake_is_not_executed() {
    let served = Served::start("");
    let mut data = DatastoreClient::new(channel(&served.node.sockets().unwrap().data).await);
    let refused = data.put(put("/a", b"x")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.metadata().get("basalt-handshake").unwrap(), "required");
    data.handshake(kubo()).await.unwrap();
    assert_eq!(kind(&data.get(get("/a")).await.unwrap_err()), ErrorKind::NotFound);
    data.put(put("/a", b"x")).await.unwrap();
    // Each connection for itself.
    let mut other = DatastoreClient::new(channel(&served.node.sockets().unwrap().data).await);
    assert_eq!(other.get(get("/a")).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn another_nodes_client_is_refused_by_name() {
    let served = Served::start("");
    let mut data = DatastoreClient::new(channel(&served.node.sockets().unwrap().data).await);
    let request = v1::HandshakeRequest { expect_node_id: "0123456789abcdef0123456789abcdef".into(), ..kubo() };
    let refused = data.handshake(request).await.unwrap_err();
    assert_eq!((refused.code(), kind(&refused)), (Code::FailedPrecondition, ErrorKind::Format));
    assert!(refused.message().contains(served.node.id().as_str()), "{refused:?}");
    assert!(refused.message().contains("expects node 0123456789abcdef"), "{refused:?}");
    // And has not been let in by trying.
    assert_eq!(data.get(get("/a")).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_client_of_the_future_alone_is_told_to_upgrade_the_node() {
    let served = Served::start("");
    let mut data = DatastoreClient::new(channel(&served.node.sockets().unwrap().data).await);
    let request = v1::HandshakeRequest { protocol_min: 2, protocol_max: 7, ..kubo() };
    let refused = data.handshake(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("speaks protocols 2 to 7"), "{refused:?}");
    assert!(refused.message().ends_with("upgrade basalt on the node"), "{refused:?}");
}

#[tokio::test]
async fn a_migrating_node_serves_its_migration_only() {
    let dir = tempfile::tempdir().unwrap();
    basalt_node::init(dir.path(), &InitOptions { state: State::Migrating, ..Default::default() }).unwrap();
    let open = || Node::open(dir.path(), config(""), Host::Agent).unwrap();
    let node = open();
    let server = Server::start(&node).unwrap();
    let connect = async |role| client::data(dir.path(), &config("").sockets, "test", role).await;
    let refused = connect("root").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    assert!(refused.to_string().contains("basalt-migrate") && refused.to_string().contains("--rollback"), "{refused}");
    let (mut migration, _) = connect("migrate").await.unwrap();
    migration.put(put("/a", b"x")).await.unwrap();
    assert_eq!(node.status().state, "migrating");
    drop(migration);
    server.stop().await.unwrap();
    node.close().unwrap();

    set_state(dir.path(), State::Ready).unwrap();
    let node = open();
    let server = Server::start(&node).unwrap();
    connect("root").await.unwrap();
    server.stop().await.unwrap();
    node.close().unwrap();
}

/// Protobuf's wire format by hand, so that the frames stand here byte by byte and no generated code can bend them.
/// Field 2 (protocol_max) = 1, field 3 (client) = "old": a client that knew neither node id nor features nor role.
const OLDER: &[u8] = &[0x10, 1, 0x1a, 3, b'o', b'l', b'd'];
/// protocol 1 to 7, client "new", features "x", "y", role "root", client_id of 2 bytes, and what this version has never heard of: field 15
/// (varint 300), field 100 (bytes "zz"), field 101 (fixed32).
const NEWER: &[u8] = &[
    0x08, 1, 0x10, 7, 0x1a, 3, b'n', b'e', b'w', 0x2a, 1, b'x', 0x2a, 1, b'y', 0x32, 4, b'r', b'o', b'o', b't', 0x3a,
    2, 9, 9, 0x78, 0xac, 0x02, 0xa2, 0x06, 2, b'z', b'z', 0xad, 0x06, 1, 2, 3, 4,
];

/// What this version has never heard of, as in [`NEWER`].
const UNKNOWN: &[u8] = &[0x78, 0xac, 0x02, 0xa2, 0x06, 2, b'z', b'z', 0xad, 0x06, 1, 2, 3, 4];

#[tokio::test]
async fn recorded_requests_of_a_newer_client_are_done_as_far_as_they_are_known() {
    let served = Served::start("");
    let channel = channel(&served.node.sockets().unwrap().data).await;
    let ask = async |method: &str, known: &[u8]| {
        let mut raw = tonic::client::Grpc::new(channel.clone());
        raw.ready().await.unwrap();
        let path = PathAndQuery::try_from(format!("/basalt.v1.Datastore/{method}")).unwrap();
        let frame = Bytes::from([known, UNKNOWN].concat());
        raw.unary(tonic::Request::new(frame), path, Raw).await.map(tonic::Response::into_inner)
    };
    ask("Handshake", NEWER).await.unwrap();
    // Key "/a" in field 1, value "x" in field 2.
    ask("Put", &[0x0a, 2, b'/', b'a', 0x12, 1, b'x']).await.unwrap();
    assert_eq!(ask("Get", &[0x0a, 2, b'/', b'a']).await.unwrap(), [0x0a, 1, b'x'][..]);
    assert_eq!(ask("Has", &[0x0a, 2, b'/', b'a']).await.unwrap(), [0x08, 1][..]);
    assert_eq!(ask("GetSize", &[0x0a, 2, b'/', b'a']).await.unwrap(), [0x08, 1][..]);
    ask("Delete", &[0x0a, 2, b'/', b'a']).await.unwrap();
    assert_eq!(ask("Has", &[0x0a, 2, b'/', b'a']).await.unwrap(), [][..]);
    // A call that this version does not have is refused, and the connection serves on.
    assert_eq!(ask("Weather", &[]).await.unwrap_err().code(), Code::Unimplemented);
    ask("Sync", &[0x0a, 1, b'/']).await.unwrap();
}

#[tokio::test]
async fn recorded_handshakes_of_older_and_newer_clients_are_understood() {
    for (frame, name, role) in [(OLDER, "old", ""), (NEWER, "new", "root")] {
        let served = Served::start("");
        let channel = channel(&served.node.sockets().unwrap().data).await;
        let mut raw = tonic::client::Grpc::new(channel.clone());
        raw.ready().await.unwrap();
        let path = PathAndQuery::from_static("/basalt.v1.Datastore/Handshake");
        let answer = raw.unary(tonic::Request::new(Bytes::from_static(frame)), path, Raw).await.unwrap().into_inner();
        let answer = v1::HandshakeResponse::decode(answer).unwrap();
        assert_eq!((answer.protocol, answer.node_id.as_str()), (1, served.node.id().as_str()));
        DatastoreClient::new(channel).put(put("/a", b"x")).await.unwrap();
        let said = served.node.clients().list()[0].introduction.clone().unwrap();
        assert_eq!((said.name.as_str(), said.role.as_str()), (name, role));
    }
}
