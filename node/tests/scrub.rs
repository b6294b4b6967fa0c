//! Scrub, quarantine and heal of a served node: what an operator asks, sees and hands in.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod support;

use std::{
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use basalt_blockstore::{ErrorKind, Multihash};
use basalt_node::{Healer, Host, Node};
use basalt_proto::v1::{self, control_scrub_request::Action};
use support::{Served, block, drain, get, kind, put, until};

fn values(count: u32, len: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).wrapping_add(i * 977) as u8).collect())
        .collect()
}

/// Flips a bit in the middle of a value, in whichever segment file of the node holds it.
fn flip(node: &Path, value: &[u8]) {
    let mut flipped = 0;
    for shard in std::fs::read_dir(node.join("shards")).unwrap() {
        for file in std::fs::read_dir(shard.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|end| end != "log") {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            if let Some(at) = bytes.windows(value.len()).position(|window| window == value) {
                let at = at + value.len() / 2;
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
                flipped += 1;
            }
        }
    }
    assert_eq!(flipped, 1);
}

fn request(action: Action, rate_bytes: u64) -> v1::ControlScrubRequest {
    v1::ControlScrubRequest { action: action.into(), rate_bytes, hash: false }
}

async fn control(served: &Served, action: Action, rate_bytes: u64) -> v1::ScrubStatus {
    served.admin().await.control_scrub(request(action, rate_bytes)).await.unwrap().into_inner()
}

async fn filled(config: &str, values: &[Vec<u8>]) -> Served {
    let served = Served::start(config);
    let mut data = served.data().await;
    for value in values {
        data.put(put(&block(value).1, value)).await.unwrap();
    }
    data.put(put("/pins/x", b"recursive")).await.unwrap();
    served
}

async fn scrubbed(served: &Served) -> v1::ScrubStatus {
    control(served, Action::Start, 1 << 40).await;
    until("the pass has ended", async || control(served, Action::Unspecified, 0).await.state == "idle").await;
    control(served, Action::Unspecified, 0).await
}

async fn listed(served: &Served) -> Vec<v1::Quarantined> {
    let answer = served.admin().await.list_quarantined(v1::ListQuarantinedRequest {}).await.unwrap();
    let (pages, end) = drain(answer.into_inner()).await;
    assert!(end.is_none() && pages.last().unwrap().complete);
    pages.into_iter().flat_map(|page| page.quarantined).collect()
}

#[tokio::test]
async fn a_part_of_a_file_that_a_pool_names_is_checked_and_what_rots_in_it_is_named_by_its_cid() {
    let values = values(40, 5000);
    let served = filled("", &values).await;
    flip(served.path(), &values[7]);
    let segment = std::fs::read_dir(served.path().join("shards")).unwrap().find_map(|shard| {
        let mut files = std::fs::read_dir(shard.unwrap().path()).unwrap().map(|file| file.unwrap().path());
        files.find(|file| file.extension().is_some_and(|end| end == "log"))
    });
    let path = segment.unwrap().display().to_string();
    let check = async |path: &str, start, end| {
        let request = v1::CheckPartRequest { path: path.into(), start, end, persists: true };
        served.admin().await.check_part(request).await.unwrap().into_inner()
    };
    let elsewhere = check("/etc/passwd", 0, 0).await;
    assert_eq!((elsewhere.store.as_str(), elsewhere.records), ("", 0));
    let header = check(&path, 0, 8192).await;
    assert_eq!((header.store.as_str(), header.damaged.len()), ("shard 0", 0));
    let whole = check(&path, 0, 0).await;
    assert_eq!(whole.damaged.iter().map(|one| one.cid.clone()).collect::<Vec<_>>(), [block(&values[7]).0.raw_cid()]);
    assert_eq!(listed(&served).await.len(), 1);
}

#[tokio::test]
async fn a_pass_finds_the_block_that_rotted_and_its_own_bytes_heal_it() {
    let values = values(40, 5000);
    let served = filled("", &values).await;
    let (key, name) = block(&values[7]);
    flip(served.path(), &values[7]);

    let status = scrubbed(&served).await;
    assert_eq!(status.stores.iter().map(|store| store.damaged).sum::<u64>(), 1);
    assert_eq!(
        status.stores.iter().map(|store| store.name.as_str()).collect::<Vec<_>>(),
        ["shard 0", "shard 1", "keyspace"]
    );
    assert!(
        status
            .stores
            .iter()
            .all(|store| !store.active && store.finished_unix_ms > 0 && store.due_unix_ms > store.finished_unix_ms)
    );
    assert!(status.stores.iter().map(|store| store.records).sum::<u64>() >= 41);

    // Named everywhere, and to Kubo it is absent.
    let found = listed(&served).await;
    assert_eq!((found.len(), found[0].cid.as_str(), found[0].key.as_str()), (1, key.raw_cid().as_str(), name.as_str()));
    assert_eq!((found[0].size, found[0].reason.contains("checksum")), (5000, true));
    let status = served.admin().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.quarantined, found);
    assert_eq!(status.shards.iter().map(|shard| shard.quarantined).sum::<u64>(), 1);
    assert!(status.conditions.iter().any(|condition| condition.name == "damaged"));
    assert_eq!(status.blocks, 40, "it is still counted");
    let mut data = served.data().await;
    assert_eq!(kind(&data.get(get(&name)).await.unwrap_err()), ErrorKind::NotFound);
    let verified = served.admin().await.verify(v1::VerifyRequest { hash: false }).await.unwrap();
    let (progress, _) = drain(verified.into_inner()).await;
    let damaged: Vec<_> = progress.into_iter().flat_map(|progress| progress.damaged).collect();
    assert_eq!((damaged.len(), damaged[0].cid.as_str()), (1, key.raw_cid().as_str()));

    // A replica hands in what it has.
    let offer = async |value: &[u8]| {
        let request = v1::HealRequest { multihash: key.as_bytes().to_vec().into(), value: value.to_vec().into() };
        served.admin().await.heal(request).await.map(|answer| answer.into_inner().healed)
    };
    assert_eq!(kind(&offer(b"something else").await.unwrap_err()), ErrorKind::InvalidValue);
    assert!(offer(&values[7]).await.unwrap());
    assert!(!offer(&values[7]).await.unwrap(), "there is nothing to heal any more");
    assert_eq!(data.get(get(&name)).await.unwrap().into_inner().value, values[7]);
    assert!(listed(&served).await.is_empty());
}

#[tokio::test]
async fn a_put_heals_and_an_error_is_said_where_the_config_wants_it() {
    let values = values(10, 3000);
    let served = filled("[store]\ncorrupt = \"error\"", &values).await;
    let (_, name) = block(&values[3]);
    flip(served.path(), &values[3]);
    let mut data = served.data().await;
    for _ in 0..2 {
        assert_eq!(kind(&data.get(get(&name)).await.unwrap_err()), ErrorKind::Corrupt);
        let has = data.has(v1::HasRequest { key: name.clone() }).await;
        assert_eq!(kind(&has.unwrap_err()), ErrorKind::Corrupt);
    }
    assert_eq!(kind(&data.put(put(&name, b"forged")).await.unwrap_err()), ErrorKind::InvalidValue);
    data.put(put(&name, &values[3])).await.unwrap();
    assert_eq!(data.get(get(&name)).await.unwrap().into_inner().value, values[3]);
}

#[tokio::test]
async fn what_is_asked_while_a_pass_runs_and_ends_is_done() {
    let served = filled("", &values(20, 2000)).await;
    for _ in 0..60 {
        for action in [Action::Start, Action::Pause, Action::Resume] {
            control(&served, action, 1 << 40).await;
        }
    }
    until("it has ended", async || control(&served, Action::Unspecified, 0).await.state == "idle").await;
}

#[derive(Debug)]
struct Replica {
    asked: Mutex<Vec<Multihash>>,
    copies: Vec<Vec<u8>>,
}

impl Healer for Replica {
    fn candidate(&self, wanted: &Multihash) -> basalt_blockstore::Result<Option<Vec<u8>>> {
        self.asked.lock().unwrap().push(wanted.clone());
        Ok(self.copies.iter().find(|copy| block(copy).0 == *wanted).cloned().or(Some(b"a wrong copy".to_vec())))
    }
}

#[tokio::test]
async fn the_hosts_healer_is_asked_for_what_a_pass_found_and_not_believed() {
    let values = values(20, 4000);
    let served = filled("", &values).await;
    let replica = Arc::new(Replica { asked: Mutex::default(), copies: vec![values[1].clone()] });
    served.node.set_healer(replica.clone());
    flip(served.path(), &values[1]);
    flip(served.path(), &values[2]);
    scrubbed(&served).await;
    until("the healer was asked", async || replica.asked.lock().unwrap().len() >= 2).await;
    until("one is healed", async || listed(&served).await.len() == 1).await;
    assert_eq!(listed(&served).await[0].cid, block(&values[2]).0.raw_cid());
    let healed = served.data().await.get(get(&block(&values[1]).1)).await.unwrap().into_inner().value;
    assert_eq!(healed, values[1]);
}

#[tokio::test]
async fn a_pass_is_no_faster_than_its_rate_waits_when_told_and_goes_on_after_a_restart() {
    let values = values(64, 64 << 10);
    let mut served = filled("", &values).await;
    let begin = Instant::now();
    control(&served, Action::Start, 2 << 20).await;
    let done = async |served: &Served| {
        let status = control(served, Action::Unspecified, 0).await;
        status.stores.iter().map(|store| store.bytes_done).sum::<u64>()
    };
    until("a part is read", async || done(&served).await >= 1 << 20).await;
    assert!(begin.elapsed() >= Duration::from_millis(200), "a mebibyte in {:?}", begin.elapsed());
    assert_eq!(control(&served, Action::Pause, 0).await.state, "paused");

    served.stop().await;
    let dir = served.dir;
    let node = Node::open(dir.path(), support::config(""), Host::Agent).unwrap();
    let server = Some(basalt_node::Server::start(&node).unwrap());
    let served = Served { dir, node, server };
    let held = control(&served, Action::Unspecified, 0).await;
    assert_eq!(held.state, "paused");
    let before = done(&served).await;
    assert!(before >= 1 << 20 && held.stores.iter().any(|store| store.active), "{held:?}");
    control(&served, Action::Resume, 0).await;
    until("it has ended", async || control(&served, Action::Unspecified, 0).await.state == "idle").await;
    let read = done(&served).await;
    assert!((4 << 20..6 << 20).contains(&read), "{read} bytes of four mebibytes, before and after the restart");
}

#[tokio::test]
async fn a_pass_can_be_ended_and_one_that_is_off_wants_a_rate() {
    let served = filled("[scrub]\nrate_bytes = 0", &values(64, 64 << 10)).await;
    let refused = served.admin().await.control_scrub(request(Action::Start, 0)).await.unwrap_err();
    assert_eq!(kind(&refused), ErrorKind::InvalidValue);
    assert!(refused.message().contains("--rate"), "{refused:?}");
    assert_eq!(control(&served, Action::Unspecified, 0).await.state, "off");
    assert_eq!(control(&served, Action::Start, 64 << 10).await.state, "running");
    let stopped = control(&served, Action::Stop, 0).await;
    assert!(stopped.stores.iter().all(|store| !store.active && store.finished_unix_ms == 0));
}
