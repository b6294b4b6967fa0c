//! Every rpc of the admin service, over its socket.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod support;

use basalt_blockstore::ErrorKind;
use basalt_proto::v1;
use support::{Served, block, drain, get, kind, put};

fn import(values: &[&[u8]]) -> v1::ImportBlocksRequest {
    let blocks = values.iter().map(|value| v1::Block {
        multihash: block(value).0.as_bytes().to_vec().into(),
        value: value.to_vec().into(),
        size: 0,
        ..Default::default()
    });
    v1::ImportBlocksRequest { blocks: blocks.collect(), allow_connected: false }
}

#[tokio::test]
async fn status_says_what_the_node_is_and_holds() {
    let served = Served::start("");
    let mut data = served.data().await;
    data.put(put(&block(b"12345").1, b"12345")).await.unwrap();
    data.put(put("/pin", b"x")).await.unwrap();
    let status = served.admin().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.node_id, served.node.id().as_str());
    assert_eq!(
        (status.host.as_str(), status.state.as_str(), status.durability.as_str()),
        ("agent", "serving", "strict")
    );
    assert_eq!(status.pid, u64::from(std::process::id()));
    assert_eq!((status.blocks, status.block_bytes), (1, 5));
    assert_eq!(status.keyspace.unwrap().keys, 1);
    assert_eq!(status.shards.len(), 2);
    assert!(status.shards.iter().all(|shard| shard.state == "serving" && shard.available_bytes > 0));
    assert_eq!(status.path, served.path().display().to_string());
    assert_eq!(status.data_socket, served.path().join("run/data.sock").display().to_string());
    let kubo = status.clients.iter().find(|client| client.role == "root").unwrap();
    assert_eq!((kubo.name.as_str(), kubo.pid), ("test 1", u64::from(std::process::id())));
    assert!(status.clients.iter().any(|client| client.role == "admin"));
}

#[tokio::test]
async fn verify_reports_to_the_end() {
    let served = Served::start("");
    let mut data = served.data().await;
    for i in 0..600u32 {
        data.put(put(&block(&i.to_le_bytes()).1, &i.to_le_bytes())).await.unwrap();
    }
    data.put(put("/pin", b"x")).await.unwrap();
    for hash in [false, true] {
        let answer = served.admin().await.verify(v1::VerifyRequest { hash }).await.unwrap();
        let (progress, end) = drain(answer.into_inner()).await;
        assert!(end.is_none());
        let last = progress.last().unwrap();
        assert!(last.complete && progress.iter().filter(|progress| progress.complete).count() == 1);
        assert_eq!((last.blocks_done, last.blocks_all, last.keys_done), (600, 600, 1));
        assert!(progress.iter().all(|progress| progress.damaged.is_empty()));
        assert!(progress.len() > 3, "it reports as it goes");
    }
}

#[tokio::test]
async fn verify_names_a_block_that_does_not_hash_to_its_key() {
    let served = Served::start("");
    let (_, name) = block(b"what it should be");
    served.data().await.put(put(&name, b"something else")).await.unwrap();
    let damaged = async |hash| {
        let answer = served.admin().await.verify(v1::VerifyRequest { hash }).await.unwrap();
        let (progress, _) = drain(answer.into_inner()).await;
        progress.into_iter().flat_map(|progress| progress.damaged).collect::<Vec<_>>()
    };
    assert!(damaged(false).await.is_empty(), "its checksum is right");
    let damaged = damaged(true).await;
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].key, name);
    assert!(damaged[0].cid.starts_with("bafkrei") && damaged[0].reason.contains("does not hash"), "{damaged:?}");
}

#[tokio::test]
async fn flush_and_reclaim_answer() {
    let served = Served::start("");
    let mut admin = served.admin().await;
    admin.flush(v1::FlushRequest {}).await.unwrap();
    admin.reclaim(v1::ReclaimRequest {}).await.unwrap();
}

#[tokio::test]
async fn import_stores_what_hashes_to_its_key_and_counts_what_is_new() {
    let served = Served::start("");
    let mut admin = served.admin().await;
    let done = admin.import_blocks(tokio_stream::iter([import(&[b"a", b"bb"]), import(&[b"bb", b"ccc"])])).await;
    let done = done.unwrap().into_inner();
    assert_eq!((done.blocks, done.new_blocks, done.bytes), (4, 3, 8));
    let mut data = served.data().await;
    assert_eq!(data.get(get(&block(b"ccc").1)).await.unwrap().into_inner().value, "ccc".as_bytes());
}

#[tokio::test]
async fn import_refuses_what_does_not_hash_to_its_key() {
    let served = Served::start("");
    let mut forged = import(&[b"good", b"real"]);
    forged.blocks[1].value = "fake".into();
    let refused = served.admin().await.import_blocks(tokio_stream::iter([forged])).await.unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::InvalidValue);
    assert!(refused.message().contains(&block(b"real").0.to_base32()), "{refused:?}");
    let mut data = served.data().await;
    assert_eq!(kind(&data.get(get(&block(b"real").1)).await.unwrap_err()), ErrorKind::NotFound);

    drop(data);
    let mut unknown = import(&[b"x"]);
    unknown.blocks[0].multihash = [&[0x16, 32][..], &[7; 32]].concat().into();
    support::until("the client has gone", async || served.node.clients().list().iter().all(|client| !client.is_kubo()))
        .await;
    let refused = served.admin().await.import_blocks(tokio_stream::iter([unknown])).await.unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::Unsupported);
}

#[tokio::test]
async fn import_behind_a_connected_kubo_is_refused_unless_allowed() {
    let served = Served::start("");
    let kubo = served.data_as("blocks").await;
    let refused = served.admin().await.import_blocks(tokio_stream::iter([import(&[b"a"])])).await.unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::Locked);
    assert!(refused.message().contains(&format!("pid {}", std::process::id())), "{refused:?}");
    let allowed = v1::ImportBlocksRequest { allow_connected: true, ..import(&[b"a"]) };
    served.admin().await.import_blocks(tokio_stream::iter([allowed])).await.unwrap();
    drop(kubo);
    // A Kubo whose mount of pins came first asks for blocks on that connection too.
    support::until("it has gone", async || served.node.clients().list().iter().all(|client| !client.is_kubo())).await;
    let pins = served.data_as("pins").await;
    served.admin().await.import_blocks(tokio_stream::iter([import(&[b"b"])])).await.unwrap_err();
    drop(pins);
    // The command line caches no blocks.
    support::until("it has gone", async || served.node.clients().list().iter().all(|client| !client.is_kubo())).await;
    let _other = served.data_as("cli").await;
    served.admin().await.import_blocks(tokio_stream::iter([import(&[b"b"])])).await.unwrap();
}

#[tokio::test]
async fn export_gives_every_block_in_order_and_goes_on_after_the_last_one_seen() {
    let served = Served::start("");
    let values: Vec<Vec<u8>> = (0..40u8).map(|i| vec![i; 100 << 10]).collect();
    let slices: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
    let mut admin = served.admin().await;
    admin.import_blocks(tokio_stream::iter([import(&slices)])).await.unwrap();

    let answer = admin.export_blocks(v1::ExportBlocksRequest::default()).await.unwrap();
    let (chunks, end) = drain(answer.into_inner()).await;
    assert!(end.is_none());
    assert!(chunks.len() >= 4 && chunks.last().unwrap().complete);
    let all: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.blocks).collect();
    assert_eq!(all.len(), 40);
    assert!(all.is_sorted_by(|a, b| a.multihash < b.multihash));
    for exported in &all {
        assert_eq!(block(&exported.value).0.as_bytes(), &exported.multihash[..]);
    }
    let request = v1::ExportBlocksRequest { after: all[29].multihash.clone(), keys_only: true, ..Default::default() };
    let (chunks, _) = drain(admin.export_blocks(request).await.unwrap().into_inner()).await;
    let rest: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.blocks).collect();
    assert_eq!(rest.len(), 10);
    assert!(
        rest.iter()
            .zip(&all[30..])
            .all(|(a, b)| a.multihash == b.multihash && a.value.is_empty() && a.size == 100 << 10)
    );
}

#[tokio::test]
async fn export_of_named_blocks_is_all_of_them_or_an_error() {
    let served = Served::start("");
    let mut admin = served.admin().await;
    admin.import_blocks(tokio_stream::iter([import(&[b"a", b"b"])])).await.unwrap();
    let name = |value: &[u8]| bytes::Bytes::copy_from_slice(block(value).0.as_bytes());
    let request = v1::ExportBlocksRequest { multihashes: vec![name(b"b"), name(b"a")], ..Default::default() };
    let (chunks, end) = drain(admin.export_blocks(request).await.unwrap().into_inner()).await;
    assert!(end.is_none());
    let values: Vec<_> = chunks.iter().flat_map(|chunk| &chunk.blocks).map(|block| block.value.as_ref()).collect();
    assert_eq!(values, [b"b", b"a"]);
    let request = v1::ExportBlocksRequest { multihashes: vec![name(b"none")], ..Default::default() };
    let (_, end) = drain(admin.export_blocks(request).await.unwrap().into_inner()).await;
    assert_eq!(kind(&end.unwrap()), ErrorKind::NotFound);
    let request = v1::ExportBlocksRequest { after: "no multihash".into(), ..Default::default() };
    assert_eq!(kind(&admin.export_blocks(request).await.unwrap_err()), ErrorKind::InvalidKey);
}

#[tokio::test]
async fn deletes_are_held_as_long_as_someone_listens_and_no_longer_than_the_limit() {
    let served = Served::start("");
    let mut data = served.data().await;
    let mut admin = served.admin().await;
    let name = block(b"held").1;
    data.put(put(&name, b"held")).await.unwrap();
    for is_let_go in [true, false] {
        let limit_ms = if is_let_go { 0 } else { 300 };
        let request = v1::HoldDeletesRequest { limit_ms, by: "a test".into() };
        let mut hold = admin.hold_deletes(request).await.unwrap().into_inner();
        assert!(hold.message().await.unwrap().is_some(), "they are held from now on");
        let mut other = data.clone();
        let key = name.clone();
        let mut delete = tokio::spawn(async move { other.delete(v1::DeleteRequest { key }).await });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(200), &mut delete).await.is_err(), "it waits");
        data.put(put("/pin", b"goes on")).await.unwrap();
        match is_let_go {
            true => drop(hold),
            false => {
                let refused = hold.message().await.unwrap_err();
                assert!(
                    kind(&refused) == ErrorKind::Unavailable && refused.message().contains("300 ms"),
                    "{refused:?}"
                );
            }
        }
        delete.await.unwrap().unwrap();
    }
}
