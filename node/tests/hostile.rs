//! Hostile bytes: the config, the files of a node's folder, handshakes, and every message of both services, through the sockets.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod support;

use std::{collections::HashMap, path::Path, time::Duration};

use basalt_fuzz::{
    any_bytes, hold, hostile, hostile_text,
    proptest::{prelude::*, sample::select},
    within,
};
use basalt_node::{
    Config, NodeFile,
    calls::METHODS,
    config::{self, Settings, display_bytes},
    lock::OwnerLock,
};
use basalt_proto::v1;
use bytes::Bytes;
use prost::Message;
use support::{Served, block, channel, get, put, raw::Raw};
use tonic::{Code, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};

/// A config that sets every key to its default.
fn whole_config() -> String {
    let mut text = String::new();
    let mut section = "";
    for setting in config::SETTINGS {
        if setting.section != section {
            section = setting.section;
            text.push_str(&format!("[{section}]\n"));
        }
        text.push_str(&format!("{} = {}\n", setting.key, (setting.default)()));
    }
    text
}

#[test]
fn hostile_configs_are_errors_that_name_the_file_or_configs_within_bounds() {
    let path = Path::new("basalt.toml");
    let whole = whole_config();
    Config::check(&whole, path).unwrap();
    // What is mutated is short enough to be hit, and long enough to be a config.
    let lines: Vec<String> = whole.lines().map(str::to_owned).collect();
    let valid = (0..lines.len(), 1usize..8).prop_map(move |(from, count)| {
        let section = lines[..=from].iter().rev().find(|line| line.starts_with('[')).cloned().unwrap_or_default();
        let mut part: Vec<String> = lines[from..].iter().take(count).cloned().collect();
        part.insert(0, section);
        part.join("\n")
    });
    hold("config", 3000, hostile_text(valid), |text| {
        let checked = within((1 << 20) + 256 * text.len(), || Config::check(&text, path))?;
        match checked {
            Ok(config) => {
                prop_assert!(config.connections_max >= 1 && config.queries_max >= 1);
                prop_assert!((4 << 20..=1 << 30).contains(&config.datastore.store.value_bytes_max));
            }
            Err(err) => prop_assert!(err.to_string().contains("basalt.toml")),
        }
        Ok(())
    });
    // Nested as deep as a file can be.
    for open in ["[", "{a=", "a.", "[["] {
        assert!(Config::check(&format!("x = {}", open.repeat(200_000)), path).is_err());
        assert!(Config::check(&open.repeat(200_000), path).is_err());
    }
}

#[test]
fn hostile_environments_are_errors_that_name_the_variable() {
    let value = hostile_text(
        select(vec!["256 MiB", "true", "strict", "0x10", "-1", "1e9", "a,b,,c", "0", ""]).prop_map(str::to_owned),
    );
    hold("environment", 2000, (0..config::SETTINGS.len(), value), |(which, value)| {
        let name = config::variable(&config::SETTINGS[which]);
        let environment = |asked: &str| (asked == name).then(|| value.clone());
        let checked = Settings::check("", Path::new("basalt.toml"), &[config::SETTINGS], &environment);
        if let Err(err) = checked {
            prop_assert!(err.to_string().contains(&name), "{}", err);
        }
        Ok(())
    });
}

#[test]
fn sizes_are_what_they_say_or_refused() {
    let valid = (any::<u64>(), 0u32..64).prop_map(|(n, shift)| display_bytes(n >> shift));
    hold("sizes", 5000, hostile_text(valid), |text| {
        if let Some(bytes) = within(1024, || config::bytes(&text))? {
            prop_assert_eq!(config::bytes(&display_bytes(bytes)), Some(bytes));
        }
        Ok(())
    });
}

#[test]
fn hostile_node_files_are_errors_or_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let made = basalt_node::init(dir.path(), &basalt_node::InitOptions { shards: 3, ..Default::default() }).unwrap();
    let file = dir.path().join("node.json");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(NodeFile::read(dir.path()).unwrap(), made);
    hold("node.json", 1500, hostile(Just(text.into_bytes())), |bytes| {
        std::fs::write(&file, &bytes).unwrap();
        match within((64 << 10) + 64 * bytes.len(), || NodeFile::read(dir.path()))? {
            Ok(node) => {
                prop_assert!(!node.shards.is_empty());
                prop_assert!(node.layout(dir.path()).is_ok());
                node.write(dir.path()).unwrap();
                prop_assert_eq!(NodeFile::read(dir.path()).unwrap(), node);
            }
            Err(err) => prop_assert!(err.to_string().contains(dir.path().to_str().unwrap()), "{}", err),
        }
        Ok(())
    });
}

#[test]
fn hostile_lock_files_say_nothing_and_stop_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let valid = Just(b"pid 4711\nhost agent\nstarted_unix_s 1700000000\n".to_vec());
    hold("lock file", 500, hostile(valid), |bytes| {
        let file = dir.path().join("lock");
        std::fs::write(&file, &bytes).unwrap();
        prop_assert_eq!(OwnerLock::owner(dir.path()), None, "nobody has it, whatever it says");
        let lock = OwnerLock::take(dir.path(), basalt_node::Host::Agent).unwrap();
        // And while somebody has it, whatever it says is said in short.
        std::fs::write(&file, &bytes).unwrap();
        let said = within(16 << 10, || OwnerLock::owner(dir.path()))?;
        prop_assert!(said.is_some_and(|said| said.len() < 4096));
        lock.release();
        Ok(())
    });
}

/// Calls with these bytes as their messages; all messages of the answer, or its error.
async fn call(client: &mut Grpc<Channel>, path: &str, messages: Vec<Bytes>) -> Result<usize, Status> {
    client.ready().await.map_err(|err| Status::unavailable(err.to_string()))?;
    let path: PathAndQuery = path.parse().unwrap();
    let request = tonic::Request::new(tokio_stream::iter(messages));
    let mut answer = client.streaming(request, path, Raw).await?.into_inner();
    let mut count = 0;
    while answer.message().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// For each call, messages that a client might send.
fn sane_messages() -> HashMap<&'static str, Vec<Vec<u8>>> {
    let (hash, name) = block(b"some block");
    let multihash = Bytes::copy_from_slice(hash.as_bytes());
    let value = Bytes::from_static(b"some block");
    let key = || "/fuzz/key".to_owned();
    let operation = |key: &str, operation| v1::BatchOperation { key: key.to_owned(), operation: Some(operation) };
    let batch = v1::BatchRequest {
        operations: vec![
            operation(&name, v1::batch_operation::Operation::Put(value.clone())),
            operation("/fuzz/a", v1::batch_operation::Operation::Put(value.clone())),
            operation("/fuzz/b", v1::batch_operation::Operation::Delete(true)),
        ],
        commit: true,
    };
    let filter = |filter| v1::Filter { filter: Some(filter) };
    let compare = v1::filter::KeyCompare { op: v1::Compare::Less as i32, key: "/x".into() };
    let query = v1::QueryRequest {
        prefix: "/".into(),
        filters: vec![
            filter(v1::filter::Filter::KeyCompare(compare)),
            filter(v1::filter::Filter::KeyPrefix("/b".into())),
        ],
        orders: vec![v1::Order::ByValue as i32, v1::Order::ByKeyDescending as i32],
        limit: 7,
        offset: 2,
        ..v1::QueryRequest::default()
    };
    let resumed = v1::QueryRequest {
        prefix: "/blocks".into(),
        after: Some(name.clone()),
        keys_only: true,
        ..v1::QueryRequest::default()
    };
    let handshake = v1::HandshakeRequest {
        protocol_min: 1,
        protocol_max: 9,
        client: "c".into(),
        role: "root".into(),
        ..Default::default()
    };
    let import = v1::ImportBlocksRequest {
        blocks: vec![v1::Block { multihash: multihash.clone(), value: value.clone(), ..v1::Block::default() }],
        ..v1::ImportBlocksRequest::default()
    };
    let export = v1::ExportBlocksRequest { multihashes: vec![multihash.clone()], keys_only: true, after: Bytes::new() };
    let sizes = v1::GetSizesRequest { keys: vec![key(), name.clone(), "/".into()] };
    let put_request = v1::PutRequest { key: key(), value: value.clone(), ttl_ms: 60_000 };
    HashMap::from([
        ("Get", vec![get(&name).encode_to_vec(), get("/fuzz/key").encode_to_vec()]),
        ("Has", vec![v1::HasRequest { key: name.clone() }.encode_to_vec()]),
        ("GetSize", vec![v1::GetSizeRequest { key: name.clone() }.encode_to_vec()]),
        ("Put", vec![put_request.encode_to_vec(), put(&name, b"some block").encode_to_vec()]),
        ("Batch", vec![batch.encode_to_vec()]),
        ("Delete", vec![v1::DeleteRequest { key: key() }.encode_to_vec()]),
        ("GetSizes", vec![sizes.encode_to_vec()]),
        ("Query", vec![query.encode_to_vec(), resumed.encode_to_vec()]),
        ("Sync", vec![v1::SyncRequest { prefix: "/pins".into() }.encode_to_vec()]),
        ("Handshake", vec![handshake.encode_to_vec()]),
        ("SetTTL", vec![v1::SetTtlRequest { key: key(), ttl_ms: 9 }.encode_to_vec()]),
        ("GetExpiration", vec![v1::GetExpirationRequest { key: key() }.encode_to_vec()]),
        ("Heal", vec![v1::HealRequest { multihash: multihash.clone(), value }.encode_to_vec()]),
        ("ImportBlocks", vec![import.encode_to_vec()]),
        ("ExportBlocks", vec![export.encode_to_vec()]),
        ("Verify", vec![v1::VerifyRequest { hash: true }.encode_to_vec()]),
        ("CheckPart", vec![v1::CheckPartRequest { path: "/etc/passwd".into(), ..Default::default() }.encode_to_vec()]),
        ("ControlScrub", vec![v1::ControlScrubRequest { action: 1, ..Default::default() }.encode_to_vec()]),
        ("HoldDeletes", vec![v1::HoldDeletesRequest { limit_ms: 1000, by: "somebody".into() }.encode_to_vec()]),
        ("HandOver", vec![v1::HandOverRequest { force: false, by: "somebody".into() }.encode_to_vec()]),
    ])
}

fn is_damage(status: &Status) -> bool {
    status.code() == Code::DataLoss
}

/// The calls that tell a client of bytes which do not hash to their key. The data socket takes a block's bytes for what they are said to be.
fn finds_damage(method: &str) -> bool {
    ["Scrub", "Verify", "ControlScrub", "Get", "Query", "ExportBlocks"].contains(&method)
}

/// The call that lasts until its client goes, or for a minute. What is sent to it is followed by going.
const STANDING: &str = "HoldDeletes";

#[test]
fn hostile_messages_to_every_call_are_answered_and_harm_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = runtime.block_on(async { Served::start("[node]\ndurability = \"relaxed\"\n[scrub]\nrate_bytes = 0") });
    let victims: Vec<(String, Vec<u8>)> = (0..20u8)
        .map(|n| {
            let value = vec![n; 1000];
            if n % 2 == 0 { (block(&value).1, value) } else { (format!("/held/{n}"), value) }
        })
        .collect();
    let paths = served.node.sockets().unwrap();
    let (mut data, mut admin) = runtime.block_on(async {
        let mut honest = served.data().await;
        for (key, value) in &victims {
            honest.put(put(key, value)).await.unwrap();
        }
        let data = channel(&paths.data).await;
        let mut client = v1::datastore_client::DatastoreClient::new(data.clone());
        client.handshake(v1::HandshakeRequest::default()).await.unwrap();
        (Grpc::new(data), Grpc::new(channel(&paths.admin).await))
    });
    let sane = sane_messages();
    // Every sane message is understood, or the mutations of it would not reach far.
    for (service, method) in METHODS.into_iter().filter(|(_, method)| *method != STANDING) {
        let client = if service == "Data" || service == "Datastore" { &mut data } else { &mut admin };
        let path = format!("/basalt.v1.{service}/{method}");
        for message in sane.get(method).cloned().unwrap_or_else(|| vec![Vec::new()]) {
            let answer = runtime.block_on(call(client, &path, vec![message.into()]));
            let code = answer.as_ref().err().map(Status::code);
            let known = [None, Some(Code::NotFound), Some(Code::FailedPrecondition), Some(Code::InvalidArgument)];
            assert!(known.contains(&code), "{path}: {answer:?}");
        }
    }
    let clients = std::cell::RefCell::new((data, admin));
    let method = (0..METHODS.len()).prop_flat_map(move |which| {
        let (_, method) = METHODS[which];
        let messages = sane.get(method).cloned().unwrap_or_else(|| vec![Vec::new()]);
        (Just(which), prop::collection::vec(hostile(select(messages)), 1..3))
    });
    hold("messages of all calls", 1500, method, |(which, messages)| {
        let (service, method) = METHODS[which];
        let mut clients = clients.borrow_mut();
        let client = if service == "Datastore" { &mut clients.0 } else { &mut clients.1 };
        let messages: Vec<Bytes> = messages.into_iter().map(Bytes::from).collect();
        let path = format!("/basalt.v1.{service}/{method}");
        let is_standing = method == STANDING;
        let deadline = if is_standing { Duration::from_millis(20) } else { Duration::from_secs(60) };
        let answer = runtime.block_on(async { tokio::time::timeout(deadline, call(client, &path, messages)).await });
        match answer {
            Err(_) if is_standing => {}
            Err(_) => return Err(TestCaseError::fail(format!("{path} does not answer"))),
            // A handler that panics ends its connection's task: Unknown or Unavailable, without a kind. With one it is an answer: a scrub after a put of other bytes
            // says that they are damaged.
            Ok(Err(status))
                if matches!(status.code(), Code::Unknown | Code::Unavailable)
                    || is_damage(&status) && !finds_damage(method) =>
            {
                return Err(TestCaseError::fail(format!("{path}: {status:?}")));
            }
            Ok(_) => {}
        }
        Ok(())
    });
    runtime.block_on(async {
        let mut honest = served.data().await;
        for (key, value) in &victims {
            let read = honest.get(get(key)).await.unwrap().into_inner().value;
            assert_eq!(&read, value, "{key}");
        }
    });
    let stats = served.node.datastore().stats();
    let listed = served.node.datastore().shards().walk(None).next_page(1 << 20).unwrap().len() as u64;
    assert_eq!(stats.shards.iter().map(|shard| shard.count).sum::<u64>(), listed);
    assert!(served.node.datastore().shards().iter().all(|shard| shard.store().fenced().is_none()));
    let _inside = runtime.enter();
    drop(served);
}

#[test]
fn hostile_handshakes_are_agreed_or_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = runtime.block_on(async { Served::start("") });
    let id = served.node.id().as_str().to_owned();
    let text = || hostile_text(Just("kubo-plugin 1".to_owned()));
    let expect = prop_oneof![Just(String::new()), Just(id), any::<String>()];
    let cases = (any::<[u32; 2]>(), text(), text(), expect, any_bytes());
    hold("handshakes", 1000, cases, |(protocols, client, role, expect_node_id, client_id)| {
        let said = v1::HandshakeRequest {
            protocol_min: protocols[0] % 4,
            protocol_max: protocols[1] % 4,
            client,
            role,
            expect_node_id: expect_node_id.clone(),
            client_id: client_id.into(),
            ..v1::HandshakeRequest::default()
        };
        if let Ok((presence, answer)) = served.node.admit(said.clone()) {
            prop_assert_eq!(answer.protocol, 1);
            prop_assert!(expect_node_id.is_empty() || expect_node_id == served.node.id().as_str());
            let shown = served.node.clients().list();
            let shown = shown.last().and_then(|client| client.introduction.clone()).unwrap();
            for text in [shown.name, shown.role] {
                prop_assert!(text.chars().count() <= 128 && !text.chars().any(char::is_control), "{:?}", text);
            }
            drop(presence);
        }
        Ok(())
    });
    let _inside = runtime.enter();
    drop(served);
}
