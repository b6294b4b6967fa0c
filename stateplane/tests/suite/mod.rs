//! What every ledger promises. Each promise runs on each engine; names are salted, so that a ledger may be shared and have a past.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use basalt_stateplane::{
    Change, Claim, Class, Clock, Conditional, Cursor, Generation, Have, Model, Multihash, Operation, Owner, Page, Peer,
    Pin, PinKey, PinLedger, Placement, RegisteredShard, Registration, Result, SLOT_SECONDS, Slot, Tag, Want,
};
use proptest::prelude::*;

/// A ledger and names of a test's own in it.
pub struct Scene {
    pub ledger: Arc<dyn PinLedger>,
    salt: u64,
    pub clock: Clock,
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

impl Scene {
    pub fn new(ledger: Arc<dyn PinLedger>) -> Scene {
        static SCENES: AtomicU64 = AtomicU64::new(0);
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let salt = start.wrapping_mul(1 << 8).wrapping_add(SCENES.fetch_add(1, Ordering::SeqCst) << 48);
        Scene { ledger, salt, clock: Clock::new() }
    }

    pub fn multihash(&self, n: u64) -> Multihash {
        let mut bytes = vec![0x12, 0x20];
        bytes.extend(self.salt.to_be_bytes());
        bytes.extend([0x5a; 16]);
        bytes.extend(n.to_be_bytes());
        Multihash::from_bytes(&bytes).unwrap()
    }

    pub fn owner(&self, n: u64) -> Owner {
        format!("owner-{n}-{:x}", self.salt).parse().unwrap()
    }

    pub fn peer(&self, n: u64) -> Peer {
        format!("peer-{n}-{:x}", self.salt).parse().unwrap()
    }

    pub fn operation(&self, n: u64) -> Operation {
        format!("operation-{n}-{:x}", self.salt).parse().unwrap()
    }

    pub fn key(&self, n: u64) -> PinKey {
        PinKey { multihash: self.multihash(n), owner: self.owner(0), codec: 0x70 }
    }

    pub fn pin(&self, n: u64) -> Pin {
        Pin {
            key: self.key(n),
            generation: self.clock.next(),
            name: None,
            tags: BTreeSet::new(),
            replicas: 1,
            expires: None,
            created_ms: 1_700_000_000_000,
        }
    }

    pub fn want(&self, wanted: bool) -> Want {
        Want { generation: self.clock.next(), wanted }
    }

    pub fn have(&self, held: bool) -> Have {
        Have {
            generation: self.clock.next(),
            held,
            answers: None,
            size_bytes: Some(123),
            error: None,
            seen_ms: 1_700_000_000_001,
        }
    }
}

pub fn tags(words: &[&str]) -> BTreeSet<Tag> {
    words.iter().map(|word| word.parse().unwrap()).collect()
}

/// All items of a list, by pages of `limit`, each cursor through its text.
pub async fn all<T, F, Fut>(limit: usize, mut list: F) -> Result<Vec<T>>
where
    F: FnMut(Option<Cursor>, usize) -> Fut,
    Fut: Future<Output = Result<Page<T>>>,
{
    let (mut items, mut after) = (Vec::new(), None);
    for _ in 0..100_000 {
        let page = list(after, limit).await?;
        assert!(page.items.len() <= limit, "{} items on a page of {limit}", page.items.len());
        items.extend(page.items);
        match page.next {
            Some(next) => after = Some(next.to_string().parse().unwrap()),
            None => return Ok(items),
        }
    }
    panic!("the list has no end");
}

async fn of_owner(ledger: &dyn PinLedger, owner: &Owner, limit: usize) -> Vec<Pin> {
    all(limit, |after, limit| async move { ledger.pins_of_owner(owner, after.as_ref(), limit).await }).await.unwrap()
}

async fn at_peer(ledger: &dyn PinLedger, peer: &Peer, limit: usize) -> Vec<Placement> {
    all(limit, |after, limit| async move { ledger.placements_of_peer(peer, None, after.as_ref(), limit).await })
        .await
        .unwrap()
}

async fn tagged(ledger: &dyn PinLedger, owner: &Owner, tag: &Tag) -> Vec<Pin> {
    all(7, |after, limit| async move { ledger.pins_with_tag(owner, tag, after.as_ref(), limit).await }).await.unwrap()
}

fn by_key(pins: Vec<Pin>) -> BTreeMap<PinKey, Pin> {
    let count = pins.len();
    let map: BTreeMap<_, _> = pins.into_iter().map(|pin| (pin.key.clone(), pin)).collect();
    assert_eq!(map.len(), count, "a list shows a pin twice");
    map
}

pub async fn what_was_put_is_there_and_what_was_removed_is_not(s: Scene) {
    let pin = Pin {
        name: Some("ä name".parse().unwrap()),
        tags: tags(&["a", "b"]),
        replicas: 3,
        expires: Some(now() + 86_400),
        ..s.pin(1)
    };
    assert_eq!(s.ledger.pin(&pin.key).await.unwrap(), None);
    s.ledger.put(pin.clone()).await.unwrap();
    assert_eq!(s.ledger.pin(&pin.key).await.unwrap(), Some(pin.clone()));
    assert!(s.ledger.has(&pin.key).await.unwrap());
    // What the newer pin has not, the older one does not lend it.
    let plain = s.pin(1);
    s.ledger.put(plain.clone()).await.unwrap();
    assert_eq!(s.ledger.pin(&pin.key).await.unwrap(), Some(plain));
    s.ledger.remove(pin.key.clone(), s.clock.next()).await.unwrap();
    assert_eq!(s.ledger.pin(&pin.key).await.unwrap(), None);
    // Removing what is not there is done.
    s.ledger.remove(s.key(2), s.clock.next()).await.unwrap();
}

pub async fn owners_and_codecs_do_not_touch_each_other(s: Scene) {
    let base = s.pin(1);
    let pins: Vec<Pin> = [(0, 0x70), (0, 0x55), (1, 0x70), (2, 0x70)]
        .map(|(owner, codec)| Pin { key: PinKey { owner: s.owner(owner), codec, ..base.key.clone() }, ..base.clone() })
        .to_vec();
    s.ledger.apply(&pins.iter().cloned().map(Change::Put).collect::<Vec<_>>()).await.unwrap();
    let multihash = &base.key.multihash;
    let listed = all(1, |after, limit| {
        let ledger = &s.ledger;
        async move { ledger.pins_of(multihash, after.as_ref(), limit).await }
    });
    assert_eq!(by_key(listed.await.unwrap()), by_key(pins.clone()));
    s.ledger.remove(pins[0].key.clone(), s.clock.next()).await.unwrap();
    for pin in &pins[1..] {
        assert_eq!(s.ledger.pin(&pin.key).await.unwrap().as_ref(), Some(pin));
    }
    assert_eq!(by_key(of_owner(&*s.ledger, &s.owner(0), 10).await), by_key(vec![pins[1].clone()]));
}

pub async fn the_highest_generation_wins_whatever_comes_last(s: Scene) {
    let (first, second) = (s.pin(1), s.pin(1));
    let removed = s.clock.next();
    let third = s.pin(1);
    s.ledger.put(second.clone()).await.unwrap();
    s.ledger.put(Pin { replicas: 9, ..first.clone() }).await.unwrap();
    assert_eq!(s.ledger.pin(&first.key).await.unwrap(), Some(second.clone()));
    s.ledger.remove(first.key.clone(), removed).await.unwrap();
    s.ledger.put(second).await.unwrap();
    assert_eq!(s.ledger.pin(&first.key).await.unwrap(), None, "a late put came back from the dead");
    s.ledger.put(third.clone()).await.unwrap();
    s.ledger.remove(first.key.clone(), removed).await.unwrap();
    assert_eq!(s.ledger.pin(&first.key).await.unwrap(), Some(third));
}

pub async fn a_change_made_again_happens_once(s: Scene) {
    let pin = Pin { tags: tags(&["t"]), expires: Some(now() + 86_400), ..s.pin(1) };
    let (want, have) = (s.want(true), s.have(true));
    let changes = [
        Change::Put(pin.clone()),
        Change::Want(s.multihash(1), s.peer(1), want),
        Change::Have(s.multihash(1), s.peer(1), have.clone()),
    ];
    for _ in 0..3 {
        s.ledger.apply(&changes).await.unwrap();
    }
    assert_eq!(of_owner(&*s.ledger, &s.owner(0), 10).await, vec![pin.clone()]);
    assert_eq!(tagged(&*s.ledger, &s.owner(0), &"t".parse().unwrap()).await, vec![pin]);
    let placement = Placement { multihash: s.multihash(1), peer: s.peer(1), want: Some(want), have: Some(have) };
    assert_eq!(at_peer(&*s.ledger, &s.peer(1), 10).await, vec![placement]);
}

pub async fn a_pin_is_found_by_the_tags_it_has_and_no_others(s: Scene) {
    let old = Pin { tags: tags(&["a", "b"]), ..s.pin(1) };
    s.ledger.put(old).await.unwrap();
    let new = Pin { tags: tags(&["b", "c"]), ..s.pin(1) };
    s.ledger.put(new.clone()).await.unwrap();
    for (tag, found) in [("a", vec![]), ("b", vec![new.clone()]), ("c", vec![new.clone()]), ("d", vec![])] {
        assert_eq!(tagged(&*s.ledger, &s.owner(0), &tag.parse().unwrap()).await, found, "tag {tag}");
    }
    assert!(tagged(&*s.ledger, &s.owner(1), &"b".parse().unwrap()).await.is_empty());
}

pub async fn lists_show_all_of_it_once_by_pages_of_any_size(s: Scene) {
    let pins: Vec<Pin> = (0..230).map(|n| s.pin(n)).collect();
    let changes: Vec<Change> = pins.iter().cloned().map(Change::Put).collect();
    s.ledger.apply(&changes).await.unwrap();
    let placed: Vec<Change> = (0..230).map(|n| Change::Want(s.multihash(n), s.peer(1), s.want(true))).collect();
    s.ledger.apply(&placed).await.unwrap();
    for limit in [1, 7, 115, 230, 231, 5000] {
        assert_eq!(by_key(of_owner(&*s.ledger, &s.owner(0), limit).await), by_key(pins.clone()), "pages of {limit}");
        let listed = at_peer(&*s.ledger, &s.peer(1), limit).await;
        assert_eq!(listed.len(), 230, "pages of {limit}");
        let distinct: BTreeSet<_> = listed.iter().map(|placement| placement.multihash.clone()).collect();
        assert_eq!(distinct.len(), 230, "pages of {limit}");
        let key = s.ledger.key().await.unwrap();
        let buckets: Vec<_> = listed.iter().map(|placement| key.bucket(&placement.multihash)).collect();
        assert!(buckets.is_sorted(), "placements come in the order of buckets");
    }
    let ledger = &s.ledger;
    let every = all(97, |after, limit| async move { ledger.pins(after.as_ref(), limit).await }).await.unwrap();
    let mut every = by_key(every);
    every.retain(|key, _| key.owner == s.owner(0));
    assert_eq!(every, by_key(pins));
}

pub async fn a_cursor_of_another_list_and_an_empty_page_are_refused(s: Scene) {
    for n in 0..3 {
        s.ledger.put(s.pin(n)).await.unwrap();
        s.ledger.want(s.multihash(n), s.peer(1), s.want(true)).await.unwrap();
    }
    let next = s.ledger.pins_of_owner(&s.owner(0), None, 1).await.unwrap().next.unwrap();
    let err = s.ledger.placements_of_peer(&s.peer(1), None, Some(&next), 1).await.unwrap_err();
    assert_eq!(err.class(), Class::Argument, "{err}");
    let err = s.ledger.pins_of_owner(&s.owner(1), Some(&next), 1).await.unwrap_err();
    assert_eq!(err.class(), Class::Argument, "{err}");
    let err = s.ledger.pins(None, 0).await.unwrap_err();
    assert_eq!(err.class(), Class::Argument, "{err}");
    assert!("not a cursor!".parse::<Cursor>().is_err());
}

pub async fn want_and_have_do_not_wait_for_each_other(s: Scene) {
    let (multihash, peer) = (s.multihash(1), s.peer(1));
    let have = s.have(true);
    s.ledger.have(multihash.clone(), peer.clone(), have.clone()).await.unwrap();
    let seen = s.ledger.placement(&multihash, &peer).await.unwrap().unwrap();
    assert_eq!((seen.want, seen.have.clone()), (None, Some(have.clone())));
    assert!(seen.drifts());
    // The want may be older than the have: they are fenced apart.
    let want = Want { generation: Generation::new(have.generation.get() - 10).unwrap(), wanted: true };
    s.ledger.want(multihash.clone(), peer.clone(), want).await.unwrap();
    let seen = s.ledger.placement(&multihash, &peer).await.unwrap().unwrap();
    assert_eq!((seen.want, seen.have.clone()), (Some(want), Some(have)));
    assert!(!seen.drifts());
    let failed = Have {
        held: false,
        error: Some("no space".to_owned()),
        size_bytes: None,
        answers: Some(want.generation),
        ..s.have(false)
    };
    s.ledger.have(multihash.clone(), peer.clone(), failed.clone()).await.unwrap();
    let placements = s.ledger.placements(&multihash, None, 10).await.unwrap().items;
    assert_eq!(placements, vec![Placement { multihash, peer, want: Some(want), have: Some(failed) }]);
}

pub async fn a_placement_that_is_forgotten_is_gone_and_stays_gone(s: Scene) {
    let (multihash, peer) = (s.multihash(1), s.peer(1));
    let (want, have) = (s.want(false), s.have(false));
    let upto = s.clock.next();
    let later = s.want(true);
    s.ledger.want(multihash.clone(), peer.clone(), want).await.unwrap();
    s.ledger.have(multihash.clone(), peer.clone(), have.clone()).await.unwrap();
    s.ledger.apply(&[Change::Forget(multihash.clone(), peer.clone(), upto)]).await.unwrap();
    // Both come late, once more.
    s.ledger.want(multihash.clone(), peer.clone(), want).await.unwrap();
    s.ledger.have(multihash.clone(), peer.clone(), have).await.unwrap();
    assert_eq!(s.ledger.placement(&multihash, &peer).await.unwrap(), None);
    assert!(at_peer(&*s.ledger, &peer, 10).await.is_empty());
    assert!(s.ledger.placements(&multihash, None, 10).await.unwrap().items.is_empty());
    s.ledger.want(multihash.clone(), peer.clone(), later).await.unwrap();
    let placement = Placement { multihash, peer: peer.clone(), want: Some(later), have: None };
    assert_eq!(at_peer(&*s.ledger, &peer, 10).await, vec![placement]);
}

pub async fn a_bucket_has_the_placements_of_its_multihashes(s: Scene) {
    let peer = &s.peer(1);
    let wants: Vec<Change> = (0..50).map(|n| Change::Want(s.multihash(n), peer.clone(), s.want(true))).collect();
    s.ledger.apply(&wants).await.unwrap();
    let mut found = BTreeSet::new();
    let key = s.ledger.key().await.unwrap();
    for bucket in (0..50).map(|n| key.bucket(&s.multihash(n))).collect::<BTreeSet<_>>() {
        let ledger = &s.ledger;
        let in_bucket = all(1, |after, limit| async move {
            ledger.placements_of_peer(peer, Some(bucket), after.as_ref(), limit).await
        });
        for placement in in_bucket.await.unwrap() {
            assert_eq!(key.bucket(&placement.multihash), bucket);
            assert!(found.insert(placement.multihash));
        }
    }
    assert_eq!(found, (0..50).map(|n| s.multihash(n)).collect());
}

pub async fn a_conditional_change_is_made_only_to_what_was_expected(s: Scene) {
    let (first, second) = (s.pin(1), s.pin(1));
    let put = |pin: &Pin| Change::Put(pin.clone());
    assert_eq!(s.ledger.apply_if(None, &put(&first)).await.unwrap(), Conditional::Applied);
    assert_eq!(s.ledger.apply_if(None, &put(&second)).await.unwrap(), Conditional::Differs(Some(first.clone())));
    let of_first = Some(first.generation);
    assert_eq!(s.ledger.apply_if(of_first, &put(&second)).await.unwrap(), Conditional::Applied);
    let third = s.pin(1);
    assert_eq!(s.ledger.apply_if(of_first, &put(&third)).await.unwrap(), Conditional::Differs(Some(second.clone())));
    let remove = Change::Remove(s.key(1), s.clock.next());
    assert_eq!(s.ledger.apply_if(Some(second.generation), &remove).await.unwrap(), Conditional::Applied);
    assert_eq!(s.ledger.pin(&s.key(1)).await.unwrap(), None);
    // There is none again, as there was at first.
    assert_eq!(
        s.ledger.apply_if(None, &put(&third)).await.unwrap(),
        Conditional::Differs(None),
        "it is older than the removal"
    );
    let fourth = s.pin(1);
    assert_eq!(s.ledger.apply_if(None, &put(&fourth)).await.unwrap(), Conditional::Applied);
    assert_eq!(s.ledger.pin(&s.key(1)).await.unwrap(), Some(fourth));
    let want = Change::Want(s.multihash(1), s.peer(1), s.want(true));
    assert_eq!(s.ledger.apply_if(None, &want).await.unwrap_err().class(), Class::Argument);
}

pub async fn a_conditional_removal_removes_just_what_was_expected(s: Scene) {
    let first = s.pin(1);
    s.ledger.put(first.clone()).await.unwrap();
    let second = s.pin(1);
    s.ledger.put(second.clone()).await.unwrap();
    let remove = |expected: Option<Generation>| {
        let (ledger, change) = (Arc::clone(&s.ledger), Change::Remove(s.key(1), s.clock.next()));
        async move { ledger.apply_if(expected, &change).await.unwrap() }
    };
    assert_eq!(remove(Some(first.generation)).await, Conditional::Differs(Some(second.clone())));
    assert_eq!(remove(None).await, Conditional::Differs(Some(second.clone())));
    // Of many at the same time one removes it.
    let outcomes = futures_util::future::join_all((0..8).map(|_| remove(Some(second.generation)))).await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Conditional::Applied).count(), 1, "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| !matches!(outcome, Conditional::Differs(Some(_)))), "{outcomes:?}");
    assert_eq!(s.ledger.pin(&s.key(1)).await.unwrap(), None);
    // What was removed may be put again if it is not there, and removed again, and what was put before stays away.
    let third = s.pin(1);
    assert_eq!(s.ledger.apply_if(None, &Change::Put(third.clone())).await.unwrap(), Conditional::Applied);
    s.ledger.put(second.clone()).await.unwrap();
    assert_eq!(s.ledger.pin(&s.key(1)).await.unwrap(), Some(third.clone()));
    assert_eq!(remove(Some(second.generation)).await, Conditional::Differs(Some(third.clone())));
    assert_eq!(remove(Some(third.generation)).await, Conditional::Applied);
    assert_eq!(remove(Some(third.generation)).await, Conditional::Differs(None));
    assert_eq!(s.ledger.pins_of_owner(&s.owner(0), None, 10).await.unwrap().items, []);
}

pub async fn of_conditional_changes_at_the_same_time_one_is_made(s: Scene) {
    for round in 0..5 {
        let mut tries = tokio::task::JoinSet::new();
        for replicas in 0..8 {
            let (ledger, pin) = (Arc::clone(&s.ledger), Pin { replicas, ..s.pin(round) });
            tries.spawn(async move { (ledger.apply_if(None, &Change::Put(pin.clone())).await.unwrap(), pin) });
        }
        let done = tries.join_all().await;
        let made: Vec<&Pin> =
            done.iter().filter(|(what, _)| *what == Conditional::Applied).map(|(_, pin)| pin).collect();
        assert_eq!(made.len(), 1, "round {round}: {done:?}");
        assert_eq!(s.ledger.pin(&s.key(round)).await.unwrap().as_ref(), Some(made[0]));
    }
}

pub async fn an_operation_is_claimed_by_one(s: Scene) {
    let operation = s.operation(1);
    let mut tries = tokio::task::JoinSet::new();
    for claimant in 1..=8_u128 {
        let (ledger, operation) = (Arc::clone(&s.ledger), operation.clone());
        tries.spawn(async move { (claimant, ledger.claim(&operation, claimant).await.unwrap()) });
    }
    let done = tries.join_all().await;
    let ours: Vec<u128> =
        done.iter().filter(|(_, claim)| *claim == Claim::Ours).map(|(claimant, _)| *claimant).collect();
    assert_eq!(ours.len(), 1, "{done:?}");
    let (winner, loser) = (ours[0], ours[0] % 8 + 1);
    for (claimant, claim) in done {
        assert!(claimant == winner || claim == Claim::Taken { claimant: winner, outcome: None });
    }
    // Asked again after a crash, it is still the winner's.
    assert_eq!(s.ledger.claim(&operation, winner).await.unwrap(), Claim::Ours);
    assert!(!s.ledger.finish(&operation, loser, "mine").await.unwrap());
    assert!(s.ledger.finish(&operation, winner, "pinned").await.unwrap());
    let taken = Claim::Taken { claimant: winner, outcome: Some("pinned".to_owned()) };
    assert_eq!(s.ledger.claim(&operation, loser).await.unwrap(), taken);
    assert_eq!(s.ledger.claim(&operation, winner).await.unwrap(), taken);
    assert!(!s.ledger.finish(&s.operation(2), winner, "never claimed").await.unwrap());
}

pub async fn a_pin_is_found_by_its_expiry(s: Scene) {
    let expires = now() + 40 * SLOT_SECONDS + s.salt % (1 << 20);
    let pin = Pin { expires: Some(expires), ..s.pin(1) };
    s.ledger.put(pin.clone()).await.unwrap();
    assert_eq!(hints(&s, Slot::of(expires)).await, vec![(expires, pin.generation)]);
    // One that has expired by the time it comes is found in a slot that is not closed yet.
    let late = Pin { expires: Some(now() - 86_400), ..s.pin(2) };
    let before = Slot::of(now());
    s.ledger.put(late.clone()).await.unwrap();
    let mut found = Vec::new();
    for slot in before.0..=Slot::of(now()).0 + 1 {
        found.extend(hints(&s, Slot(slot)).await);
    }
    assert_eq!(found, vec![(late.expires.unwrap(), late.generation)]);
}

/// Hints of this scene's pins in a slot.
async fn hints(s: &Scene, slot: Slot) -> Vec<(u64, Generation)> {
    let mut found = Vec::new();
    for shard in 0..basalt_stateplane::EXPIRY_SHARDS {
        let shard = basalt_stateplane::ExpiryShard(shard);
        let ledger = &s.ledger;
        let hints = all(3, |after, limit| async move { ledger.expiries(slot, shard, after.as_ref(), limit).await });
        let ours = hints.await.unwrap().into_iter().filter(|hint| hint.key.owner == s.owner(0));
        found.extend(ours.map(|hint| (hint.expires, hint.generation)));
    }
    found
}

pub async fn a_slot_is_closed_only_once_it_is_long_over(s: Scene) {
    let shard = basalt_stateplane::ExpiryShard((s.salt % 64) as u16);
    let over = Slot(Slot::of(now()).0 - 10);
    s.ledger.close_slot(over, shard).await.unwrap();
    assert!(s.ledger.closed_slot(shard).await.unwrap() >= Some(over));
    s.ledger.close_slot(Slot(over.0 - 5), shard).await.unwrap();
    assert!(s.ledger.closed_slot(shard).await.unwrap() >= Some(over), "it went back");
    for early in [Slot::of(now()), Slot(Slot::of(now()).0 - 1), Slot(u64::MAX)] {
        assert_eq!(s.ledger.close_slot(early, shard).await.unwrap_err().class(), Class::Argument);
    }
}

pub async fn a_change_from_the_future_is_refused_with_the_rest_of_its_batch(s: Scene) {
    let week = Generation::new(s.clock.next().get() + 7 * 86_400_000_000).unwrap();
    let batch = [Change::Put(s.pin(1)), Change::Put(Pin { generation: week, ..s.pin(2) })];
    let err = s.ledger.apply(&batch).await.unwrap_err();
    assert!(err.class() == Class::Argument && err.to_string().contains("set the clocks"), "{err}");
    assert_eq!(s.ledger.pin(&s.key(1)).await.unwrap(), None);
}

pub async fn the_longest_names_and_odd_ones_are_kept(s: Scene) {
    let long = "ü".repeat(127) + "x";
    let identity = Multihash::from_bytes(&[&[0x00, 0x04][..], b"abcd"].concat()).unwrap();
    let owner: Owner =
        format!("{}-{}", &long[..200], s.owner(0)).chars().take(120).collect::<String>().parse().unwrap();
    let key = PinKey { multihash: identity.clone(), owner: owner.clone(), codec: (1 << 40) + 7 };
    let tags = tags(&[&long, "'; DROP TABLE pins; --", "\"", " "]);
    let pin = Pin {
        key,
        name: Some(long.parse().unwrap()),
        tags: tags.clone(),
        replicas: u16::MAX,
        created_ms: u64::MAX >> 1,
        ..s.pin(1)
    };
    s.ledger.put(pin.clone()).await.unwrap();
    assert_eq!(s.ledger.pin(&pin.key).await.unwrap(), Some(pin.clone()));
    for tag in tags {
        assert_eq!(tagged(&*s.ledger, &owner, &tag).await, vec![pin.clone()], "tag {tag}");
    }
}

/// One step of a random history, in numbers that a scene gives names to.
#[derive(Clone, Debug)]
pub enum Step {
    Put { at: (u64, u64, u64), tags: u8, expires: Option<u64>, generation: i64 },
    Remove { at: (u64, u64, u64), generation: i64 },
    Want { at: (u64, u64), wanted: bool, generation: i64 },
    Have { at: (u64, u64), held: bool, generation: i64 },
    Forget { at: (u64, u64), generation: i64 },
    PutIf { at: (u64, u64, u64), as_it_is: bool, generation: i64 },
}

pub async fn the_peers_that_have_placements_are_known(s: Scene) {
    for n in 0..20 {
        s.ledger.want(s.multihash(n), s.peer(n % 4), s.want(true)).await.unwrap();
    }
    let listed = all(3, |after, limit| {
        let ledger = Arc::clone(&s.ledger);
        async move { ledger.peers(after.as_ref(), limit).await }
    });
    let ours: BTreeSet<_> = (0..6).map(|n| s.peer(n)).collect();
    let mut listed: Vec<_> = listed.await.unwrap().into_iter().filter(|peer| ours.contains(peer)).collect();
    listed.sort();
    assert_eq!(listed, (0..4).map(|n| s.peer(n)).collect::<Vec<_>>());
}

pub async fn a_node_is_as_it_told_last_until_it_is_struck_off(s: Scene) {
    let told = |n: u64, free_bytes: u64| Registration {
        peer: s.peer(n),
        generation: s.clock.next(),
        seen_ms: 1000 * now(),
        node_id: "0011".to_owned(),
        basalt: "0.1.0".to_owned(),
        kubo: String::new(),
        capacity_bytes: 1 << 44,
        free_bytes,
        shards: vec![RegisteredShard { id: 3, blocks: 4, bytes: 5, free_bytes: 6, serving: true }],
    };
    let known = || async {
        let nodes = all(2, |after, limit| {
            let ledger = Arc::clone(&s.ledger);
            async move { ledger.registrations(after.as_ref(), limit).await }
        })
        .await
        .unwrap();
        let ours = (0..5).map(|n| s.peer(n)).collect::<Vec<_>>();
        let mut nodes: Vec<_> = nodes.into_iter().filter(|node| ours.contains(&node.peer)).collect();
        nodes.sort_by_key(|node| node.peer.as_str().to_owned());
        nodes
    };
    let first: Vec<_> = (0..5).map(|n| told(n, 7)).collect();
    for node in &first {
        s.ledger.register(node).await.unwrap();
    }
    assert_eq!(known().await, first);
    let newer = told(1, 8);
    s.ledger.register(&newer).await.unwrap();
    s.ledger.register(&first[1]).await.unwrap();
    assert_eq!(known().await[1], newer, "what it told before came late");
    s.ledger.strike_off(&s.peer(1), s.clock.next()).await.unwrap();
    s.ledger.register(&newer).await.unwrap();
    assert_eq!(known().await.len(), 4, "what it told before it was struck off came late");
    let again = told(1, 9);
    s.ledger.register(&again).await.unwrap();
    assert_eq!(known().await[1], again);
    let long = Registration { kubo: "x".repeat(256), ..again };
    assert_eq!(s.ledger.register(&long).await.unwrap_err().class(), Class::Argument);
}

fn step() -> impl Strategy<Value = (u8, (u64, u64, u64), u8, Option<u64>, bool)> {
    (0..9_u8, (0..3_u64, 0..2_u64, 0..2_u64), 0..8_u8, proptest::option::of(0..3_u64), any::<bool>())
}

/// Histories: each step's generation is its own, in an order that has nothing to do with that of arrival; some steps arrive twice.
pub fn histories(length_max: usize) -> impl Strategy<Value = Vec<Step>> {
    let steps = proptest::collection::vec((step(), any::<u32>(), any::<bool>()), 1..length_max);
    steps.prop_map(|steps| {
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|place| (steps[*place].1, *place));
        let mut generations = vec![0; steps.len()];
        for (rank, place) in order.into_iter().enumerate() {
            generations[place] = rank as i64 + 1;
        }
        let mut history = Vec::new();
        for (((kind, at, tags, expires, flag), _, twice), generation) in steps.into_iter().zip(generations) {
            let placed = (at.0, at.1);
            let step = match kind {
                0..=2 => Step::Put { at, tags, expires, generation },
                3 => Step::Remove { at, generation },
                4 => Step::Want { at: placed, wanted: flag, generation },
                5 | 6 => Step::Have { at: placed, held: flag, generation },
                7 => Step::Forget { at: placed, generation },
                _ => Step::PutIf { at, as_it_is: flag, generation },
            };
            history.push(step.clone());
            // A conditional change made twice is two changes.
            if twice && !matches!(step, Step::PutIf { .. }) {
                history.push(step);
            }
        }
        history
    })
}

/// Plays a history to the engine and the model, and holds all that they answer against each other.
pub async fn engine_and_model_agree(
    ledger: Arc<dyn PinLedger>,
    history: Vec<Step>,
) -> std::result::Result<(), TestCaseError> {
    let s = Scene::new(ledger);
    let model = Model::new();
    let base = s.clock.next().get() - 3_600_000_000;
    let generation = |n: i64| Generation::new(base + n * 1000).unwrap();
    let words = ["a", "b", "c"];
    let soon = now() + 2 * 86_400;
    let key = |(multihash, owner, codec)| PinKey { multihash: s.multihash(multihash), owner: s.owner(owner), codec };
    let pin = |at, tag_bits: u8, expires: Option<u64>, n| Pin {
        key: key(at),
        generation: generation(n),
        tags: words
            .iter()
            .enumerate()
            .filter(|(bit, _)| tag_bits >> bit & 1 == 1)
            .map(|(_, word)| word.parse().unwrap())
            .collect(),
        expires: expires.map(|slot| soon + slot * SLOT_SECONDS),
        replicas: n as u16,
        ..s.pin(0)
    };
    let mut slots = BTreeSet::new();
    for step in &history {
        let change = match *step {
            Step::Put { at, tags, expires, generation } => Change::Put(pin(at, tags, expires, generation)),
            Step::PutIf { at, generation, .. } => Change::Put(pin(at, 5, None, generation)),
            Step::Remove { at, generation: n } => Change::Remove(key(at), generation(n)),
            Step::Want { at, wanted, generation: n } => {
                Change::Want(s.multihash(at.0), s.peer(at.1), Want { generation: generation(n), wanted })
            }
            Step::Have { at, held, generation: n } => Change::Have(
                s.multihash(at.0),
                s.peer(at.1),
                Have { generation: generation(n), answers: held.then(|| generation(n)), ..s.have(held) },
            ),
            Step::Forget { at, generation: n } => Change::Forget(s.multihash(at.0), s.peer(at.1), generation(n)),
        };
        if let Change::Put(Pin { expires: Some(expires), .. }) = &change {
            slots.insert(Slot::of(*expires));
        }
        if let Step::PutIf { at, as_it_is, .. } = *step {
            let current = model.pin(&key(at)).await.unwrap().map(|pin| pin.generation);
            let expected = if as_it_is { current } else { None };
            let theirs = s.ledger.apply_if(expected, &change).await.unwrap();
            prop_assert_eq!(theirs, model.apply_if(expected, &change).await.unwrap());
        } else {
            s.ledger.apply(std::slice::from_ref(&change)).await.unwrap();
            model.apply(&[change]).await.unwrap();
        }
    }
    for multihash in 0..3 {
        let multihash = &s.multihash(multihash);
        let theirs = s.ledger.pins_of(multihash, None, 100).await.unwrap().items;
        prop_assert_eq!(by_key(theirs), by_key(model.pins_of(multihash, None, 100).await.unwrap().items));
        for peer in 0..2 {
            let theirs = s.ledger.placement(multihash, &s.peer(peer)).await.unwrap();
            prop_assert_eq!(theirs, model.placement(multihash, &s.peer(peer)).await.unwrap());
        }
        let sorted = |mut placements: Vec<Placement>| {
            placements.sort_by(|a, b| a.peer.cmp(&b.peer));
            placements
        };
        let theirs = s.ledger.placements(multihash, None, 100).await.unwrap().items;
        prop_assert_eq!(sorted(theirs), sorted(model.placements(multihash, None, 100).await.unwrap().items));
    }
    for n in 0..2 {
        let owner = &s.owner(n);
        prop_assert_eq!(by_key(of_owner(&*s.ledger, owner, 2).await), by_key(of_owner(&model, owner, 100).await));
        for word in words {
            let tag = &word.parse().unwrap();
            prop_assert_eq!(by_key(tagged(&*s.ledger, owner, tag).await), by_key(tagged(&model, owner, tag).await));
        }
        let sorted = |mut placements: Vec<Placement>| {
            placements.sort_by(|a, b| a.multihash.cmp(&b.multihash));
            placements
        };
        let peer = &s.peer(n);
        prop_assert_eq!(sorted(at_peer(&*s.ledger, peer, 2).await), sorted(at_peer(&model, peer, 100).await));
    }
    // Hints: every pin that expires has one. An engine may have others, which lead to no such pin.
    for slot in slots {
        let mut hinted = BTreeSet::new();
        for shard in 0..basalt_stateplane::EXPIRY_SHARDS {
            let page = s.ledger.expiries(slot, basalt_stateplane::ExpiryShard(shard), None, 1000).await.unwrap();
            hinted.extend(page.items.into_iter().map(|hint| (hint.key, hint.generation)));
        }
        for pin in model.pins(None, 1000).await.unwrap().items {
            if pin.expires.is_some_and(|expires| Slot::of(expires) == slot) {
                prop_assert!(hinted.contains(&(pin.key.clone(), pin.generation)), "no hint of {:?}", pin);
            }
        }
    }
    Ok(())
}

/// The promises as tests of one engine. `$ledger` makes a ledger; `$runs` are attributes of each test.
#[macro_export]
macro_rules! promises {
    ($ledger:path $(, #[$attribute:meta])*) => {
        $crate::promises!(@ $ledger, [$(#[$attribute])*],
            what_was_put_is_there_and_what_was_removed_is_not
            owners_and_codecs_do_not_touch_each_other
            the_highest_generation_wins_whatever_comes_last
            a_change_made_again_happens_once
            a_pin_is_found_by_the_tags_it_has_and_no_others
            lists_show_all_of_it_once_by_pages_of_any_size
            a_cursor_of_another_list_and_an_empty_page_are_refused
            want_and_have_do_not_wait_for_each_other
            a_placement_that_is_forgotten_is_gone_and_stays_gone
            a_bucket_has_the_placements_of_its_multihashes
            a_conditional_change_is_made_only_to_what_was_expected
            a_conditional_removal_removes_just_what_was_expected
            of_conditional_changes_at_the_same_time_one_is_made
            an_operation_is_claimed_by_one
            a_pin_is_found_by_its_expiry
            a_slot_is_closed_only_once_it_is_long_over
            a_change_from_the_future_is_refused_with_the_rest_of_its_batch
            the_longest_names_and_odd_ones_are_kept
            a_node_is_as_it_told_last_until_it_is_struck_off
            the_peers_that_have_placements_are_known
        );
    };
    (@ $ledger:path, $attributes:tt, $($promise:ident)*) => {
        $($crate::promises!(# $ledger, $attributes, $promise);)*
    };
    (# $ledger:path, [$($attribute:tt)*], $promise:ident) => {
        $($attribute)*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let (ledger, _kept) = $ledger().await;
            suite::$promise(suite::Scene::new(ledger)).await;
        }
    };
}
