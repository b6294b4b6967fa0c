//! What is done by the ledger rather than to it: drift is found, a peer's inventory is settled, what has expired goes.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

#[allow(dead_code, reason = "only its scene is of use here")]
mod suite;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use basalt_stateplane::{
    Change, EXPIRY_SHARDS, Embedded, EmbeddedOptions, ExpiryShard, Inventory, Model, Multihash, Pin, PinLedger,
    Settled,
    drift::{Drift, Look, Seen},
    expiry::{Expirer, shards_of},
};
use suite::{Scene, all, now};

fn scenes() -> Vec<(Scene, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(dir.path(), &EmbeddedOptions::default()).unwrap();
    vec![(Scene::new(Arc::new(Model::new())), None), (Scene::new(Arc::new(embedded)), Some(dir))]
}

async fn look(s: &Scene, quarantined: &[Multihash]) -> (Seen, BTreeMap<Multihash, Drift>) {
    let (peer, settled_before) = (s.peer(1), s.clock.next());
    let is_quarantined = |multihash: &Multihash| quarantined.contains(multihash);
    let look = Look { ledger: &*s.ledger, peer: &peer, settled_before, is_quarantined: &is_quarantined };
    let mut found = BTreeMap::new();
    let seen = look
        .all(|drift, known| {
            found.insert(known.multihash, drift);
            async { Ok(()) }
        })
        .await
        .unwrap();
    (seen, found)
}

#[tokio::test]
async fn each_kind_of_drift_is_found_and_what_nobody_decided_is_none() {
    for (s, _dir) in scenes() {
        let peer = s.peer(1);
        // Want, have: none, no, yes.
        for (n, (want, have)) in [
            (None, Some(true)),
            (None, Some(false)),
            (Some(true), None),
            (Some(true), Some(false)),
            (Some(true), Some(true)),
            (Some(true), Some(true)),
            (Some(false), None),
            (Some(false), Some(false)),
            (Some(false), Some(true)),
        ]
        .into_iter()
        .enumerate()
        {
            if let Some(wanted) = want {
                s.ledger.want(s.multihash(n as u64), peer.clone(), s.want(wanted)).await.unwrap();
            }
            if let Some(held) = have {
                s.ledger.have(s.multihash(n as u64), peer.clone(), s.have(held)).await.unwrap();
            }
        }
        s.ledger.want(s.multihash(2), s.peer(2), s.want(true)).await.unwrap();
        let (seen, found) = look(&s, &[s.multihash(5), s.multihash(0)]).await;
        let wanted = [(2, Drift::Missing), (3, Drift::Missing), (5, Drift::Quarantined), (8, Drift::Surplus)];
        assert_eq!(found, wanted.map(|(n, drift)| (s.multihash(n), drift)).into());
        assert_eq!((seen.placements, seen.missing, seen.surplus, seen.quarantined), (9, 2, 1, 1));
        assert_eq!((seen.foreign, seen.pending, seen.mismatching()), (1, 0, 4));
        assert!(seen.worst.is_some_and(|(_, most)| most >= 1));
    }
}

#[tokio::test]
async fn what_was_just_decided_is_pending() {
    let s = Scene::new(Arc::new(Model::new()));
    let (peer, settled_before) = (s.peer(1), s.clock.next());
    s.ledger.want(s.multihash(1), peer.clone(), s.want(true)).await.unwrap();
    let look = Look { ledger: &*s.ledger, peer: &peer, settled_before, is_quarantined: &|_| false };
    let seen = look.all(|_, _| async { panic!("nothing has drifted") }).await.unwrap();
    assert_eq!((seen.pending, seen.mismatching()), (1, 0));
}

#[tokio::test]
async fn an_inventory_tells_what_appeared_and_what_is_gone_and_nothing_else() {
    for (s, _dir) in scenes() {
        let (peer, folder) = (s.peer(1), tempfile::tempdir().unwrap());
        let before = Inventory::begin(folder.path(), s.ledger.key().await.unwrap(), s.clock.next()).unwrap();
        // Known: 0..600 held, 600..700 not, 700..800 only wanted. Of another peer: all.
        let mut changes = Vec::new();
        for n in 0..700 {
            changes.push(Change::Have(s.multihash(n), peer.clone(), s.have(n < 600)));
            changes.push(Change::Have(s.multihash(n), s.peer(2), s.have(true)));
        }
        changes.extend((700..800).map(|n| Change::Want(s.multihash(n), peer.clone(), s.want(true))));
        s.ledger.apply(&changes).await.unwrap();
        // Listed: 300..1000. Since then 10 came and 310 went, which the list does not know.
        let mut inventory = Inventory::begin(folder.path(), s.ledger.key().await.unwrap(), s.clock.next()).unwrap();
        for n in (300..1000).chain(300..310) {
            inventory.holds(&s.multihash(n)).unwrap();
        }
        s.ledger.have(s.multihash(10), peer.clone(), s.have(true)).await.unwrap();
        s.ledger.have(s.multihash(310), peer.clone(), s.have(false)).await.unwrap();
        let settled = inventory.settle(&*s.ledger, &peer).await.unwrap();
        assert_eq!(settled, Settled { held: 710, appeared: 400, gone: 299 });
        let held = |peer| {
            let ledger = Arc::clone(&s.ledger);
            async move {
                let listed = all(300, |after, limit| {
                    let (ledger, peer) = (Arc::clone(&ledger), &peer);
                    async move { ledger.placements_of_peer(peer, None, after.as_ref(), limit).await }
                });
                let held =
                    listed.await.unwrap().into_iter().filter(|at| at.have.as_ref().is_some_and(|have| have.held));
                held.map(|at| at.multihash).collect::<BTreeSet<_>>()
            }
        };
        let wanted: BTreeSet<_> = (300..1000).filter(|n| *n != 310).chain([10]).map(|n| s.multihash(n)).collect();
        assert_eq!(held(peer.clone()).await, wanted);
        assert_eq!(held(s.peer(2)).await.len(), 700);
        // An older list is late: nothing of it is told.
        before.settle(&*s.ledger, &peer).await.unwrap();
        assert_eq!(held(peer).await, wanted);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// All that is due in half an hour.
async fn expire(s: &Scene) -> u64 {
    let expirer = Expirer { ledger: &*s.ledger, clock: &s.clock };
    let later = SystemTime::now() + Duration::from_secs(1800);
    expirer.round((0..EXPIRY_SHARDS).map(ExpiryShard), later).await.unwrap().removed
}

#[tokio::test]
async fn what_has_expired_goes_and_what_was_renewed_stays() {
    for (s, _dir) in scenes() {
        let expiring = |n, expires| Pin { expires: Some(expires), ..s.pin(n) };
        // There before the queue was ever followed.
        s.ledger.put(expiring(0, now() + 60)).await.unwrap();
        s.ledger.put(expiring(1, now() + 86_400)).await.unwrap();
        assert_eq!(expire(&s).await, 1);
        for n in 2..40 {
            s.ledger.put(expiring(n, now() + 60)).await.unwrap();
        }
        // Renewed, made endless, removed and put anew.
        s.ledger.put(expiring(2, now() + 86_400)).await.unwrap();
        s.ledger.put(s.pin(3)).await.unwrap();
        s.ledger.remove(s.key(4), s.clock.next()).await.unwrap();
        s.ledger.put(s.pin(4)).await.unwrap();
        assert_eq!(expire(&s).await, 35);
        for n in 0..40 {
            let stays = (1..=4).contains(&n);
            assert_eq!(s.ledger.has(&s.key(n)).await.unwrap(), stays, "{n}");
        }
        assert_eq!(expire(&s).await, 0);
    }
}

#[tokio::test]
async fn what_no_owner_pins_any_more_is_wanted_nowhere() {
    let s = Scene::new(Arc::new(Model::new()));
    for n in 0..2 {
        s.ledger.put(Pin { expires: Some(now() + 60), ..s.pin(n) }).await.unwrap();
        for peer in 0..3 {
            s.ledger.want(s.multihash(n), s.peer(peer), s.want(peer != 2)).await.unwrap();
        }
    }
    let mut others = s.pin(1);
    others.key.owner = s.owner(7);
    s.ledger.put(others).await.unwrap();
    assert_eq!(expire(&s).await, 2);
    for (n, wanted) in [(0, false), (1, true)] {
        let known = s.ledger.placement(&s.multihash(n), &s.peer(0)).await.unwrap().unwrap();
        assert_eq!(known.want.unwrap().wanted, wanted, "{n}");
    }
}

#[test]
fn every_shard_is_one_nodes_and_few_move_when_a_node_comes() {
    let nodes: Vec<String> = (0..5).map(|n| format!("node-{n}")).collect();
    let owner = |nodes: &[String]| -> BTreeMap<ExpiryShard, String> {
        let mut owners = BTreeMap::new();
        for node in nodes {
            for shard in shards_of(node, nodes) {
                assert_eq!(owners.insert(shard, node.clone()), None, "{shard:?} is two nodes'");
            }
        }
        assert_eq!(owners.len(), usize::from(EXPIRY_SHARDS));
        owners
    };
    let (four, five) = (owner(&nodes[..4]), owner(&nodes));
    let moved = four.iter().filter(|(shard, node)| five[shard] != **node).count();
    assert!((1..=30).contains(&moved), "{moved}");
    assert_eq!(shards_of("alone", &[]).count(), usize::from(EXPIRY_SHARDS));
}

mod transfer {
    use basalt_stateplane::transfer::{Import, Moved, export, import, resume};

    use super::*;

    async fn filled() -> Scene {
        let s = Scene::new(Arc::new(Model::new()));
        for n in 0..2300 {
            s.ledger.put(Pin { expires: (n % 3 == 0).then_some(now() + 86_400), ..s.pin(n) }).await.unwrap();
        }
        for n in 0..1500 {
            s.ledger.want(s.multihash(n), s.peer(n % 3), s.want(n % 5 != 0)).await.unwrap();
            s.ledger.have(s.multihash(n + 700), s.peer(n % 3), s.have(n % 2 == 0)).await.unwrap();
        }
        s.ledger.remove(s.key(7), s.clock.next()).await.unwrap();
        s
    }

    async fn written(s: &Scene) -> Vec<u8> {
        let mut stream = Vec::new();
        let moved = export(&*s.ledger, &mut stream, None, |_| {}).await.unwrap();
        assert_eq!(moved, Moved { pins: 2299, placements: 3000, nodes: 0, known: 0 });
        stream
    }

    async fn same(a: &dyn PinLedger, b: &dyn PinLedger) {
        let pins = |of: &'_ Vec<Pin>| of.iter().map(|pin| (pin.key.clone(), pin.clone())).collect::<BTreeMap<_, _>>();
        let (a_pins, b_pins) = (a.pins(None, 10_000).await.unwrap().items, b.pins(None, 10_000).await.unwrap().items);
        assert_eq!(pins(&a_pins), pins(&b_pins));
        for peer in a.peers(None, 100).await.unwrap().items {
            let at = |page: basalt_stateplane::Page<basalt_stateplane::Placement>| {
                page.items.into_iter().map(|at| (at.multihash.clone(), at)).collect::<BTreeMap<_, _>>()
            };
            let of_a = at(a.placements_of_peer(&peer, None, None, 10_000).await.unwrap());
            assert_eq!(of_a, at(b.placements_of_peer(&peer, None, None, 10_000).await.unwrap()));
        }
    }

    #[tokio::test]
    async fn a_ledger_moves_to_another_engine_and_is_the_same_there() {
        let (s, dir) = (filled().await, tempfile::tempdir().unwrap());
        let stream = written(&s).await;
        let target = Embedded::open(dir.path(), &EmbeddedOptions::default()).unwrap();
        let dry = import(&target, &stream[..], Import::DryRun, |_, _| {}).await.unwrap();
        assert_eq!((dry.records(), dry.known), (5299, 0));
        assert_eq!(target.pins(None, 1).await.unwrap().items, [], "a dry run changes nothing");
        for _ in 0..2 {
            let moved = import(&target, &stream[..], Import::Apply { applied_bytes: 0 }, |_, _| {}).await.unwrap();
            assert_eq!(moved.records(), 5299);
            same(&*s.ledger, &target).await;
        }
        assert_eq!(import(&target, &stream[..], Import::DryRun, |_, _| {}).await.unwrap().known, 5299);
        // What is newer there stays.
        let newer = s.pin(1);
        target.put(newer.clone()).await.unwrap();
        import(&target, &stream[..], Import::Apply { applied_bytes: 0 }, |_, _| {}).await.unwrap();
        assert_eq!(target.pin(&newer.key).await.unwrap(), Some(newer));
    }

    #[tokio::test]
    async fn a_stream_that_was_cut_anywhere_goes_on_to_the_same_end() {
        let s = filled().await;
        let whole = written(&s).await;
        for cut in (0..whole.len()).step_by(whole.len() / 40).skip(1) {
            let mut stream = whole[..cut].to_vec();
            let from = resume(&stream[..]).unwrap();
            stream.truncate(from.as_ref().map_or(0, |from| from.bytes as usize));
            export(&*s.ledger, &mut stream, from, |_| {}).await.unwrap();
            assert!(stream == whole, "cut at {cut}");
        }
        let ended = resume(&whole[..]).unwrap().unwrap();
        assert!(ended.ended && ended.bytes == whole.len() as u64);
    }

    #[tokio::test]
    async fn a_stream_that_is_damaged_or_not_whole_is_refused_with_the_place() {
        let s = filled().await;
        let whole = written(&s).await;
        let target = Model::new();
        for at in (0..whole.len()).step_by(whole.len() / 60) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            let err = import(&target, &damaged[..], Import::DryRun, |_, _| {}).await.unwrap_err();
            assert!(err.to_string().contains("at byte"), "{at}: {err}");
            let err = import(&target, &whole[..at], Import::DryRun, |_, _| {}).await.unwrap_err();
            assert!(err.to_string().contains("at byte"), "{at}: {err}");
        }
    }

    #[tokio::test]
    async fn an_import_that_was_killed_goes_on_where_the_ledger_has_it() {
        let s = filled().await;
        let stream = written(&s).await;
        let (target, mut reached) = (Model::new(), Vec::new());
        // It dies in the middle of the stream.
        let half = &stream[..stream.len() / 2];
        import(&target, half, Import::Apply { applied_bytes: 0 }, |bytes, _| reached.push(bytes)).await.unwrap_err();
        let applied_bytes = *reached.last().unwrap();
        assert!(applied_bytes > 0);
        let moved = import(&target, &stream[..], Import::Apply { applied_bytes }, |_, _| {}).await.unwrap();
        assert_eq!(moved.records(), 5299);
        same(&*s.ledger, &target).await;
    }
}
