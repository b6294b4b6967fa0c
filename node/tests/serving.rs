//! Owners, sockets, who may connect, and how serving ends.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod support;

use std::{os::unix::fs::PermissionsExt, time::Duration};

use basalt_blockstore::ErrorKind;
use basalt_node::{Host, Node, Server, client};
use basalt_proto::v1::{
    self, admin_client::AdminClient, batch_operation::Operation, datastore_client::DatastoreClient,
};
use support::{Served, channel, config, drain, get, kind, put, until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

#[tokio::test]
async fn a_second_owner_is_refused_with_the_firsts_pid() {
    let mut served = Served::start("");
    let err = Node::open(served.path(), config(""), Host::Kubo).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Locked);
    assert!(err.to_string().contains(&format!("pid {}", std::process::id())), "{err}");
    served.stop().await;
    Node::open(served.path(), config(""), Host::Kubo).unwrap().close().unwrap();
}

#[tokio::test]
async fn a_folder_that_is_no_node_is_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let err = Node::open(dir.path(), config(""), Host::Agent).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Format);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn another_number_of_shards_in_the_config_is_refused() {
    let mut served = Served::start("");
    served.stop().await;
    let err = Node::open(served.path(), config("[node]\nshards = 3"), Host::Agent).unwrap_err();
    assert!(err.to_string().contains("made with 2 shards") && err.to_string().contains("basalt.toml says 3"), "{err}");
    Node::open(served.path(), config("[node]\nshards = 2"), Host::Agent).unwrap().close().unwrap();
}

#[tokio::test]
async fn a_socket_that_another_process_serves_is_refused_and_left_alone() {
    let served = Served::start("");
    let taken = served.node.sockets().unwrap().data;
    let other = Served::start("");
    other.node.close().unwrap();
    drop(other.server);
    let text = format!("[sockets]\ndata_path = {taken:?}");
    let node = Node::open(other.dir.path(), config(&text), Host::Agent).unwrap();
    let err = Server::start(&node).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Locked);
    assert!(err.to_string().contains("in use by another process") && err.to_string().contains("data_path"), "{err}");
    // It took nothing down with it: the other node's socket answers, its own admin socket is gone.
    served.data().await.put(put("/a", b"x")).await.unwrap();
    assert!(!other.dir.path().join("run/admin.sock").exists());
    node.close().unwrap();
}

#[tokio::test]
async fn sockets_are_closed_to_others_and_go_with_the_server() {
    let mut served = Served::start("");
    let paths = served.node.sockets().unwrap();
    for path in [&paths.data, &paths.admin] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o027, 0);
    }
    served.stop().await;
    assert!(!paths.data.exists() && !paths.admin.exists());
    let err = client::admin(served.path(), &config("").sockets).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Unavailable);
    assert!(err.to_string().contains("nobody serves node") && err.to_string().contains("basalt agent --node"), "{err}");
}

#[tokio::test]
async fn a_user_who_is_not_allowed_is_cut_off_on_that_socket_only() {
    let served = Served::start("[sockets]\nallow_uids = [4242]\nallow_gids = []");
    let socket = served.node.sockets().unwrap().data;
    let refused = client::data(served.path(), &served.node.config().sockets, "test", "root").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let mut buffer = [0; 64];
    stream.readable().await.unwrap();
    assert!(matches!(stream.try_read(&mut buffer), Ok(0) | Err(_)), "closed without a word");
    served.admin().await.status(v1::StatusRequest {}).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let served = Served::start("[limits]\nconnections_max = 1");
    let first = served.data().await;
    client::data(served.path(), &served.node.config().sockets, "test", "root").await.unwrap_err();
    drop(first);
    until("the first one's place is free", async || served.node.clients().list().is_empty()).await;
    let mut second = DatastoreClient::new(channel(&served.node.sockets().unwrap().data).await);
    second.handshake(v1::HandshakeRequest::default()).await.unwrap();
}

#[tokio::test]
async fn each_service_is_on_its_own_socket() {
    let served = Served::start("");
    let paths = served.node.sockets().unwrap();
    let data = channel(&paths.data).await;
    DatastoreClient::new(data.clone()).handshake(v1::HandshakeRequest::default()).await.unwrap();
    let refused = AdminClient::new(data).hand_over(v1::HandOverRequest { force: true, ..Default::default() }).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    let admin = channel(&paths.admin).await;
    let refused = DatastoreClient::new(admin).handshake(v1::HandshakeRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_call_under_way_finishes_while_the_node_closes() {
    let mut served = Served::start("");
    let mut data = served.data().await;
    let (send, chunks) = tokio::sync::mpsc::channel(1);
    let call = tokio::spawn(async move {
        let answer = data.batch(ReceiverStream::new(chunks)).await;
        (data, answer)
    });
    let operation = v1::BatchOperation { key: "/late".into(), operation: Some(Operation::Put("x".into())) };
    send.send(v1::BatchRequest { operations: vec![operation], commit: false }).await.unwrap();
    let server = served.server.take().unwrap();
    let stop = tokio::spawn(server.stop());
    let socket = served.path().join("run/data.sock");
    until("it accepts no more", async || !socket.exists()).await;
    send.send(v1::BatchRequest { operations: vec![], commit: true }).await.unwrap();
    let (data, answer) = call.await.unwrap();
    answer.unwrap();
    drop(data);
    stop.await.unwrap().unwrap();
    let mut value = Vec::new();
    served.node.datastore().get(&basalt_datastore::Key::new("/late").unwrap(), &mut value).unwrap();
    served.node.close().unwrap();
}

#[tokio::test]
async fn a_call_that_does_not_finish_is_cut_at_the_deadline() {
    let mut served = Served::start("[node]\ndrain_deadline_ms = 50");
    let mut data = served.data().await;
    for i in 0..16 {
        data.put(put(&format!("/v/{i:02}"), &vec![i; 2 << 20])).await.unwrap();
    }
    let unread = data.query(v1::QueryRequest { prefix: "/v".into(), ..Default::default() }).await.unwrap().into_inner();
    tokio::time::timeout(Duration::from_secs(10), served.stop()).await.unwrap();
    // What arrives of it ends in an error: a cut query is never a short list.
    let (chunks, end) = drain(unread).await;
    assert!(end.is_some() && chunks.iter().all(|chunk| !chunk.complete));
    let err = data.get(get("/v/00")).await.unwrap_err();
    assert!(matches!(err.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{err:?}");
}

#[tokio::test]
async fn calls_of_a_closed_node_say_so() {
    let served = Served::start("");
    let mut data = served.data().await;
    served.node.close().unwrap();
    for refused in [data.get(get("/a")).await.unwrap_err(), data.put(put("/a", b"x")).await.unwrap_err()] {
        assert_eq!((refused.code(), kind(&refused)), (Code::Unavailable, ErrorKind::Closed));
    }
}

#[tokio::test]
async fn an_autostarted_agent_hands_over_and_an_operators_only_by_force() {
    let mut served = Served::hosted("", Host::AgentAutostarted);
    let ask = |force| v1::HandOverRequest { force, by: "basalt agent, pid 7".into() };
    served.admin().await.hand_over(ask(false)).await.unwrap();
    let by = tokio::time::timeout(Duration::from_secs(10), served.node.hand_over_requested()).await.unwrap();
    assert_eq!(by, "basalt agent, pid 7");
    served.stop().await;

    let next = Node::open(served.path(), config(""), Host::Agent).unwrap();
    assert_ne!(next.incarnation(), served.node.incarnation());
    let server = Server::start(&next).unwrap();
    let mut admin = client::admin(served.path(), &config("").sockets).await.unwrap();
    let refused = admin.hand_over(ask(false)).await.unwrap_err();
    assert_eq!((refused.code(), kind(&refused)), (Code::FailedPrecondition, ErrorKind::Locked));
    assert!(refused.message().contains("ask with force"), "{refused:?}");
    admin.hand_over(ask(true)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), next.hand_over_requested()).await.unwrap();
    drop(admin);
    server.stop().await.unwrap();
    next.close().unwrap();
}

#[tokio::test]
async fn a_node_is_idle_once_the_last_connection_has_closed() {
    let served = Served::start("");
    let data = served.data().await;
    let clients = served.node.clients().clone();
    let idle = tokio::spawn(async move { clients.idle_for(Duration::from_millis(20)).await });
    let admin = served.admin().await;
    drop(data);
    until("one has gone", async || served.node.clients().list().len() == 1).await;
    assert!(!idle.is_finished());
    drop(admin);
    tokio::time::timeout(Duration::from_secs(10), idle).await.unwrap().unwrap();
}

#[test]
fn another_owner_takes_over_from_an_autostarted_agent_and_not_from_an_operators() {
    let runtime = basalt_node::runtime().unwrap();
    let limit = Duration::from_secs(10);
    let mut served = {
        let _inside = runtime.enter();
        Served::hosted("", Host::AgentAutostarted)
    };
    let path = served.path().to_owned();
    // The agent's part.
    let (node, server) = (served.node.clone(), served.server.take().unwrap());
    let agent = runtime.spawn(async move {
        let by = node.hand_over_requested().await;
        server.stop().await.unwrap();
        node.close().unwrap();
        by
    });
    let kubo = Node::open_taking_over(&path, config(""), Host::Kubo, "ipfs-ffi", limit).unwrap();
    assert_eq!(runtime.block_on(agent).unwrap(), "ipfs-ffi");
    kubo.close().unwrap();

    let node = Node::open(&path, config(""), Host::Agent).unwrap();
    let _server = {
        let _inside = runtime.enter();
        Server::start(&node).unwrap()
    };
    let err = Node::open_taking_over(&path, config(""), Host::Kubo, "ipfs-ffi", limit).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Locked);
    assert!(err.to_string().contains("stop it yourself"), "{err}");
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_the_node_is_opened_again() {
    let mut served = Served::start("");
    let mut data = served.data().await;
    let (_, name) = support::block(b"a block");
    data.put(put(&name, b"a block")).await.unwrap();
    data.put(put("/pin", b"a pin")).await.unwrap();
    drop(data);
    served.stop().await;

    for read_only in [false, true] {
        let node = if read_only {
            Node::open_read_only(served.path(), config(""), Host::Agent).unwrap()
        } else {
            Node::open(served.path(), config(""), Host::Agent).unwrap()
        };
        for (key, value) in [(name.as_str(), "a block"), ("/pin", "a pin")] {
            let mut found = Vec::new();
            node.datastore().get(&basalt_datastore::Key::new(key).unwrap(), &mut found).unwrap();
            assert_eq!(found, value.as_bytes());
        }
        assert_eq!(node.status().state, if read_only { "read-only" } else { "serving" });
        node.close().unwrap();
    }
}

#[tokio::test]
async fn writers_that_must_wait_hold_up_no_readers() {
    let served = Served::start("[node]\ndurability = \"relaxed\"\n[limits]\nunflushed_bytes_max = \"1 MiB\"");
    let mut data = served.data().await;
    data.put(put("/here", b"x")).await.unwrap();
    let writers = (0..4u8).map(|writer| {
        let mut data = data.clone();
        tokio::spawn(async move {
            for i in 0..16u8 {
                let value = [vec![writer, i], vec![7; 512 << 10]].concat();
                data.put(put(&support::block(&value).1, &value)).await.unwrap();
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    while writers.iter().any(|writer| !writer.is_finished()) {
        data.get(get("/here")).await.unwrap();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(served.node.status().blocks, 64);
}
