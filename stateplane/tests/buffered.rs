//! A ledger that goes away: what is changed meanwhile waits, survives, and arrives once.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod suite;

use std::sync::Arc;

use basalt_stateplane::{
    Buffered, Change, Class, Delivered, Fault, Generation, Journal, JournalOptions, Model, Pin, PinLedger, Placement,
};
use proptest::{prelude::*, test_runner::Config};
use suite::{Scene, engine_and_model_agree, histories};

struct Stand {
    model: Arc<Model>,
    dir: tempfile::TempDir,
    buffered: Buffered,
    scene: Scene,
}

fn journal(dir: &tempfile::TempDir) -> Journal {
    Journal::open(dir.path(), &JournalOptions::default()).unwrap()
}

fn stand() -> Stand {
    let (model, dir) = (Arc::new(Model::new()), tempfile::tempdir().unwrap());
    let ledger: Arc<dyn PinLedger> = Arc::clone(&model) as _;
    let buffered = Buffered::new(ledger, journal(&dir));
    let scene = Scene::new(Arc::new(buffered.clone()));
    Stand { model, dir, buffered, scene }
}

async fn buffered() -> (Arc<dyn PinLedger>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Arc::new(Buffered::new(Arc::new(Model::new()), journal(&dir))), dir)
}

// Before a ledger that is there it changes nothing.
promises!(buffered);

proptest! {
    #![proptest_config(Config { cases: 32, ..Config::default() })]

    #[test]
    fn whatever_comes_while_the_ledger_is_away_or_mute_arrives_as_if_it_had_been_there(
        history in histories(50), away in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let s = stand();
            // Conditional changes need the ledger.
            let history: Vec<_> = history.into_iter().filter(|step| !matches!(step, suite::Step::PutIf { .. })).collect();
            let ledger = Arc::new(GoesAway { buffered: s.buffered.clone(), model: Arc::clone(&s.model), away });
            engine_and_model_agree(ledger, history).await
        })?;
    }
}

/// Away for changes; before the first read it is back and all is delivered.
#[derive(Debug)]
struct GoesAway {
    buffered: Buffered,
    model: Arc<Model>,
    away: bool,
}

impl GoesAway {
    async fn back(&self) -> &Buffered {
        self.model.fail(Fault::None);
        self.buffered.deliver().await.unwrap();
        assert!(self.buffered.standing().await.unwrap().is_well());
        &self.buffered
    }
}

#[async_trait::async_trait]
impl PinLedger for GoesAway {
    async fn apply(&self, changes: &[Change]) -> basalt_stateplane::Result<()> {
        self.model.fail(if self.away { Fault::Away } else { Fault::AnswersLost });
        self.buffered.apply(changes).await
    }
    async fn apply_if(
        &self,
        expected: Option<Generation>,
        change: &Change,
    ) -> basalt_stateplane::Result<basalt_stateplane::Conditional> {
        self.back().await.apply_if(expected, change).await
    }
    async fn pin(&self, key: &basalt_stateplane::PinKey) -> basalt_stateplane::Result<Option<Pin>> {
        self.back().await.pin(key).await
    }
    async fn pins(
        &self,
        after: Option<&basalt_stateplane::Cursor>,
        limit: usize,
    ) -> basalt_stateplane::Result<basalt_stateplane::Page<Pin>> {
        self.back().await.pins(after, limit).await
    }
    async fn pins_of(
        &self,
        multihash: &basalt_stateplane::Multihash,
        after: Option<&basalt_stateplane::Cursor>,
        limit: usize,
    ) -> basalt_stateplane::Result<basalt_stateplane::Page<Pin>> {
        self.back().await.pins_of(multihash, after, limit).await
    }
    async fn pins_of_owner(
        &self,
        owner: &basalt_stateplane::Owner,
        after: Option<&basalt_stateplane::Cursor>,
        limit: usize,
    ) -> basalt_stateplane::Result<basalt_stateplane::Page<Pin>> {
        self.back().await.pins_of_owner(owner, after, limit).await
    }
    async fn pins_with_tag(
        &self,
        owner: &basalt_stateplane::Owner,
        tag: &basalt_stateplane::Tag,
        after: Option<&basalt_stateplane::Cursor>,
        limit: usize,
    ) -> basalt_stateplane::Result<basalt_stateplane::Page<Pin>> {
        self.back().await.pins_with_tag(owner, tag, after, limit).await
    }
    async fn placement(
        &self,
        multihash: &basalt_stateplane::Multihash,
        peer: &basalt_stateplane::Peer,
    ) -> basalt_stateplane::Result<Option<Placement>> {
        self.back().await.placement(multihash, peer).await
    }
    async fn placements(
        &self,
        multihash: &basalt_stateplane::Multihash,
        after: Option<&basalt_stateplane::Cursor>,
        limit: usize,
    ) -> basalt_stateplane::Result<basalt_stateplane::Page<Placement>> {
        self.back().await.placements(multihash, after, limit).await
    }
    async fn placements_of_peer(
        &self,
        peer: &basalt_stateplane::Peer,
        bucket: Option<basalt_stateplane::Bucket>,
        after: Option<&basalt_stateplane::Cursor>,
        limit: usize,
    ) -> basalt_stateplane::Result<basalt_stateplane::Page<Placement>> {
        self.back().await.placements_of_peer(peer, bucket, after, limit).await
    }
    async fn peers(
        &self,
        after: Option<&basalt_stateplane::Cursor>,
        limit: usize,
    ) -> basalt_stateplane::Result<basalt_stateplane::Page<basalt_stateplane::Peer>> {
        self.back().await.peers(after, limit).await
    }
    async fn key(&self) -> basalt_stateplane::Result<basalt_stateplane::PlaneKey> {
        self.buffered.key().await
    }
    async fn register(&self, told: &basalt_stateplane::Registration) -> basalt_stateplane::Result<()> {
        self.back().await.register(told).await
    }
    async fn strike_off(&self, peer: &basalt_stateplane::Peer, upto: Generation) -> basalt_stateplane::Result<()> {
        self.back().await.strike_off(peer, upto).await
    }
    async fn registrations(
        &self,
        after: Option<&basalt_stateplane::Cursor>,
        limit: usize,
    ) -> basalt_stateplane::Result<basalt_stateplane::Page<basalt_stateplane::Registration>> {
        self.back().await.registrations(after, limit).await
    }
    async fn expiries(
        &self,
        slot: basalt_stateplane::Slot,
        shard: basalt_stateplane::ExpiryShard,
        after: Option<&basalt_stateplane::Cursor>,
        limit: usize,
    ) -> basalt_stateplane::Result<basalt_stateplane::Page<basalt_stateplane::Expiry>> {
        self.back().await.expiries(slot, shard, after, limit).await
    }
    async fn close_slot(
        &self,
        slot: basalt_stateplane::Slot,
        shard: basalt_stateplane::ExpiryShard,
    ) -> basalt_stateplane::Result<()> {
        self.back().await.close_slot(slot, shard).await
    }
    async fn closed_slot(
        &self,
        shard: basalt_stateplane::ExpiryShard,
    ) -> basalt_stateplane::Result<Option<basalt_stateplane::Slot>> {
        self.back().await.closed_slot(shard).await
    }
    async fn claim(
        &self,
        operation: &basalt_stateplane::Operation,
        claimant: u128,
    ) -> basalt_stateplane::Result<basalt_stateplane::Claim> {
        self.back().await.claim(operation, claimant).await
    }
    async fn finish(
        &self,
        operation: &basalt_stateplane::Operation,
        claimant: u128,
        outcome: &str,
    ) -> basalt_stateplane::Result<bool> {
        self.back().await.finish(operation, claimant, outcome).await
    }
}

#[tokio::test]
async fn what_was_changed_while_it_was_away_waits_over_a_restart_and_arrives() {
    let Stand { model, dir, buffered, scene } = stand();
    model.fail(Fault::Away);
    let pins: Vec<Pin> = (0..600).map(|n| scene.pin(n)).collect();
    for pin in &pins {
        buffered.put(pin.clone()).await.unwrap();
    }
    let standing = buffered.standing().await.unwrap();
    assert!(standing.away_since_ms.is_some() && standing.waiting.oldest_ms.is_some() && !standing.is_well());
    assert_eq!(standing.waiting.entries, 600);
    assert_eq!(buffered.deliver().await.unwrap_err().class(), Class::Unavailable);
    drop((buffered, scene));
    let buffered = Buffered::new(Arc::clone(&model) as _, journal(&dir));
    assert_eq!(buffered.standing().await.unwrap().waiting.entries, 600);
    model.fail(Fault::None);
    assert_eq!(buffered.deliver().await.unwrap(), Delivered { delivered: 600, buried: 0 });
    for pin in &pins {
        assert_eq!(model.pin(&pin.key).await.unwrap().as_ref(), Some(pin));
    }
    assert!(buffered.standing().await.unwrap().is_well());
    assert_eq!(buffered.standing().await.unwrap().waiting.bytes, 0);
}

#[tokio::test]
async fn what_waits_is_read_and_what_is_newer_in_the_ledger_is_too() {
    let Stand { model, buffered, scene, .. } = stand();
    let (first, second, third) = (scene.pin(1), scene.pin(1), scene.pin(1));
    let want = scene.want(true);
    buffered.put(first.clone()).await.unwrap();
    model.fail(Fault::Away);
    assert_eq!(buffered.pin(&scene.key(2)).await.unwrap_err().class(), Class::Unavailable, "nothing is known of it");
    buffered.put(second.clone()).await.unwrap();
    buffered.want(scene.multihash(1), scene.peer(1), want).await.unwrap();
    assert_eq!(buffered.pin(&first.key).await.unwrap(), Some(second.clone()));
    let placement = buffered.placement(&scene.multihash(1), &scene.peer(1)).await.unwrap().unwrap();
    assert_eq!((placement.want, placement.have), (Some(want), None));
    model.fail(Fault::None);
    assert_eq!(buffered.pin(&first.key).await.unwrap(), Some(second.clone()), "the ledger has the older one still");
    // Somebody else's newer change stays.
    model.put(third.clone()).await.unwrap();
    assert_eq!(buffered.pin(&first.key).await.unwrap(), Some(third.clone()));
    buffered.deliver().await.unwrap();
    assert_eq!(model.pin(&first.key).await.unwrap(), Some(third));
}

#[tokio::test]
async fn a_record_that_changes_for_ever_costs_one_entry() {
    let Stand { model, buffered, scene, .. } = stand();
    model.fail(Fault::Away);
    let old = scene.pin(1);
    let mut last = scene.pin(1);
    for _ in 0..100 {
        last = scene.pin(1);
        buffered.put(last.clone()).await.unwrap();
    }
    buffered.put(old).await.unwrap();
    assert_eq!(buffered.standing().await.unwrap().waiting.entries, 1);
    model.fail(Fault::None);
    assert_eq!(buffered.deliver().await.unwrap().delivered, 1);
    assert_eq!(model.pin(&last.key).await.unwrap(), Some(last));
}

#[tokio::test]
async fn a_full_journal_refuses_and_keeps_what_it_has() {
    let (model, dir) = (Arc::new(Model::new()), tempfile::tempdir().unwrap());
    let options = JournalOptions { entries_max: 10, ..JournalOptions::default() };
    let buffered = Buffered::new(Arc::clone(&model) as _, Journal::open(dir.path(), &options).unwrap());
    let scene = Scene::new(Arc::new(buffered.clone()));
    model.fail(Fault::Away);
    for n in 0..10 {
        buffered.put(scene.pin(n)).await.unwrap();
    }
    let err = buffered.put(scene.pin(10)).await.unwrap_err();
    assert!(
        err.class() == Class::Unavailable && err.to_string().contains("it is full: 10 entries of at most 10"),
        "{err}"
    );
    // What is there already may still change.
    let newer = scene.pin(3);
    buffered.put(newer.clone()).await.unwrap();
    model.fail(Fault::None);
    assert_eq!(buffered.deliver().await.unwrap().delivered, 10);
    assert_eq!(model.pin(&newer.key).await.unwrap(), Some(newer));
}

#[tokio::test]
async fn what_is_too_old_to_be_fenced_is_put_aside_and_not_lost() {
    let Stand { model, dir, buffered, scene } = stand();
    model.fail(Fault::Away);
    let old = Generation::new(scene.clock.next().get() - 10 * 86_400_000_000).unwrap();
    let (late, fresh) = (Pin { generation: old, ..scene.pin(1) }, scene.pin(2));
    buffered.apply(&[Change::Put(late.clone()), Change::Put(fresh.clone())]).await.unwrap();
    model.fail(Fault::None);
    assert_eq!(buffered.deliver().await.unwrap(), Delivered { delivered: 1, buried: 1 });
    assert_eq!(model.pin(&late.key).await.unwrap(), None);
    assert_eq!(model.pin(&fresh.key).await.unwrap(), Some(fresh));
    drop((buffered, scene));
    let journal = journal(&dir);
    assert_eq!(journal.waiting().unwrap().buried, 1);
    let (change, why) = journal.buried(10).unwrap().remove(0);
    assert!(change == Change::Put(late) && why.contains("older than 9 days"), "{why}");
}

#[tokio::test]
async fn what_makes_no_sense_does_not_wait() {
    let Stand { model, buffered, scene, .. } = stand();
    model.fail(Fault::Away);
    let week = Generation::new(scene.clock.next().get() + 7 * 86_400_000_000).unwrap();
    let err = buffered.put(Pin { generation: week, ..scene.pin(1) }).await.unwrap_err();
    assert_eq!(err.class(), Class::Argument);
    assert_eq!(buffered.standing().await.unwrap().waiting.entries, 0);
}
