//! The steps of a piece of work against a model of everything around them, killed after every step, in every order of messages.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

use std::collections::{BTreeMap, BTreeSet};

use basalt_kubo::Cid;
use basalt_stateplane::{
    Change, Clock, Fault, Generation, Model, Multihash, Peer, Pin, PinKey, PinLedger, Placement, Want,
};
use basalt_worker::{
    Action, Event, Job, Journal, MemoryJournal, Obstacle, Origin, Patience, is_due,
    message::{Assignment, DeadLetter, Op, State, Status},
};
use futures_util::FutureExt;
use proptest::prelude::*;

const SUBJECTS: usize = 3;
const TRIES_MAX: u32 = 3;

fn cid(number: usize) -> Cid {
    let digest = [&[0x12, 0x20][..], &[u8::try_from(number).unwrap(); 32]].concat();
    Cid::try_from([&[1, 0x70][..], &digest].concat().as_slice()).unwrap()
}

fn multihash(number: usize) -> Multihash {
    Multihash::from_bytes(&cid(number).hash().to_bytes()).unwrap()
}

/// The model's futures never wait.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the model waits for nothing")
}

/// What Kubo does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Works,
    Fails,
    Away,
    /// It does it, and the answer is lost.
    Forgets,
}

/// Ends one piece of work before its end.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Never,
    /// The process is killed when this action is due, before it is done.
    Before(usize),
    /// The same, after it was done.
    After(usize),
}

struct Message {
    payload: Vec<u8>,
    delivered: u64,
}

struct World {
    peer: Peer,
    clock: Clock,
    ledger: Model,
    journal: MemoryJournal,
    kubo: BTreeSet<Cid>,
    messages: Vec<Message>,
    /// By message id: JetStream drops a second one.
    statuses: BTreeMap<String, Status>,
    dead: Vec<DeadLetter>,
    tries: BTreeMap<Generation, u32>,
    wants: BTreeMap<usize, Want>,
}

impl World {
    fn new() -> World {
        World {
            peer: "peer".parse().unwrap(),
            clock: Clock::new(),
            ledger: Model::new(),
            journal: MemoryJournal::default(),
            kubo: BTreeSet::new(),
            messages: Vec::new(),
            statuses: BTreeMap::new(),
            dead: Vec::new(),
            tries: BTreeMap::new(),
            wants: BTreeMap::new(),
        }
    }

    /// Somebody decides; ledger or message may be lost on the way, not both.
    fn decide(&mut self, subject: usize, wanted: bool, ledger: bool, message: bool) {
        let generation = self.clock.next();
        let want = Want { generation, wanted };
        self.wants.insert(subject, want);
        let owner: basalt_stateplane::Owner = "me".parse().unwrap();
        if ledger || !message {
            let key = PinKey { multihash: multihash(subject), owner: owner.clone(), codec: 0x70 };
            let pin = match wanted {
                true => Change::Put(Pin {
                    key,
                    generation,
                    name: None,
                    tags: BTreeSet::new(),
                    replicas: 1,
                    expires: None,
                    created_ms: 1,
                }),
                false => Change::Remove(key, generation),
            };
            now(self.ledger.apply(&[pin, Change::Want(multihash(subject), self.peer.clone(), want)])).unwrap();
        }
        if message {
            let assignment = Assignment::new(Op::of(wanted), cid(subject), generation, owner).unwrap();
            self.messages.push(Message { payload: assignment.to_bytes(), delivered: 0 });
        }
    }

    fn now_us(&self) -> i64 {
        self.clock.next().get()
    }

    fn deliver(&mut self, at: usize, mood: Mood, fault: Fault, cut: Cut) {
        if self.messages.is_empty() {
            return;
        }
        let at = at % self.messages.len();
        self.messages[at].delivered += 1;
        let (payload, delivered) = (self.messages[at].payload.clone(), self.messages[at].delivered);
        let assignment = Assignment::parse(&payload, self.now_us()).unwrap();
        let tries = self.tries.get(&assignment.generation).copied().unwrap_or(0);
        let origin = Origin::Message { delivered };
        let job = Job::new(assignment, origin, tries, self.peer.clone(), patience());
        if self.work(job, &payload, mood, fault, cut) {
            self.messages.remove(at);
        }
    }

    /// Drives a job; `true` if its message was confirmed.
    fn work(&mut self, mut job: Job, payload: &[u8], mood: Mood, fault: Fault, cut: Cut) -> bool {
        let mut event = Event::Begin;
        let mut confirmed = false;
        for step in 0.. {
            assert!(step < 20, "a job has an end");
            let action = job.next(event);
            if let Cut::Before(at) = cut
                && at == step
            {
                self.tries.clear();
                return confirmed;
            }
            event = match action {
                Action::End => return confirmed,
                Action::Postpone(_) => {
                    self.tries.insert(job.assignment.generation, job.tries);
                    return false;
                }
                Action::Look => {
                    self.ledger.fail(fault);
                    let placement = now(self.ledger.placement(&job.assignment.multihash, &self.peer)).ok();
                    self.ledger.fail(Fault::None);
                    Event::Looked { record: self.journal.get(&job.assignment.multihash).unwrap(), placement }
                }
                Action::Change { op, cids, .. } => {
                    self.check_not_doubled(&job);
                    let outcome = self.change(op, &cids, mood);
                    Event::Changed { outcome, generation: self.clock.next(), at_ms: 7 }
                }
                Action::Journal(record) => {
                    self.journal.put(&record).unwrap();
                    Event::Done
                }
                Action::Tell(changes) => {
                    self.ledger.fail(fault);
                    let told = now(self.ledger.apply(&changes));
                    self.ledger.fail(Fault::None);
                    if told.is_ok() { Event::Done } else { Event::Failed }
                }
                Action::Report(status) => {
                    self.report(&job.assignment.multihash, status);
                    Event::Done
                }
                Action::Bury(why) => {
                    self.dead.push(job.dead_letter(why, payload));
                    Event::Done
                }
                Action::Settle(record) => {
                    self.journal.told(&record.multihash, record.have_generation).unwrap();
                    Event::Done
                }
                Action::Acknowledge => {
                    self.check_told(&job.assignment);
                    confirmed = true;
                    Event::Done
                }
            };
            if let Cut::After(at) = cut
                && at == step
            {
                self.tries.clear();
                return confirmed;
            }
        }
        unreachable!()
    }

    fn change(&mut self, op: Op, cids: &[Cid], mood: Mood) -> Result<Option<u64>, Obstacle> {
        match mood {
            Mood::Away => return Err(Obstacle::Away("away".into())),
            Mood::Fails => return Err(Obstacle::Failed("failed".into())),
            Mood::Works | Mood::Forgets => {}
        }
        for cid in cids {
            match op {
                Op::Pin => self.kubo.insert(*cid),
                Op::Unpin => self.kubo.remove(cid),
            };
        }
        if mood == Mood::Forgets { Err(Obstacle::Failed("cut".into())) } else { Ok(None) }
    }

    /// A second report must say the same.
    fn report(&mut self, multihash: &Multihash, status: Status) {
        let id = status.message_id(multihash);
        let first = self.statuses.entry(id).or_insert(status.clone());
        assert_eq!((first.state, first.generation), (status.state, status.generation));
    }

    /// What the journal has as done is not done again.
    fn check_not_doubled(&self, job: &Job) {
        let record = self.journal.get(&job.assignment.multihash).unwrap();
        let done = record.filter(|record| record.error.is_none());
        let newest = self.known(&job.assignment).generation;
        assert!(done.is_none_or(|done| done.generation < newest), "{newest} is done a second time");
    }

    fn known(&self, assignment: &Assignment) -> Want {
        let placed = now(self.ledger.placement(&assignment.multihash, &self.peer)).unwrap();
        let ours = Want { generation: assignment.generation, wanted: assignment.op.wanted() };
        placed.and_then(|placed| placed.want).filter(|want| want.generation > ours.generation).unwrap_or(ours)
    }

    /// Who confirms has told the ledger: its answer is to this want or to a newer one.
    fn check_told(&self, assignment: &Assignment) {
        let placed = now(self.ledger.placement(&assignment.multihash, &self.peer)).unwrap().expect("it is placed");
        let answers = placed.have.and_then(|have| have.answers).expect("it is answered");
        assert!(answers >= assignment.generation);
    }

    fn leftovers(&mut self) {
        for record in self.journal.untold(100).unwrap() {
            let changes = changes(&record, &self.peer);
            now(self.ledger.apply(&changes)).unwrap();
            self.journal.told(&record.multihash, record.have_generation).unwrap();
        }
    }

    fn placements(&self) -> Vec<Placement> {
        now(self.ledger.placements_of_peer(&self.peer, None, None, 100)).unwrap().items
    }

    fn look_at_ledger(&mut self, mood: Mood, fault: Fault, cut: Cut) {
        for placement in self.placements() {
            let Some(want) = placement.want.filter(|_| is_due(&placement)) else { continue };
            let subject = (0..SUBJECTS).find(|subject| multihash(*subject) == placement.multihash).unwrap();
            let owner = "me".parse().unwrap();
            let assignment = Assignment::new(Op::of(want.wanted), cid(subject), want.generation, owner).unwrap();
            let tries = self.tries.get(&want.generation).copied().unwrap_or(0);
            let job = Job::new(assignment, Origin::Ledger, tries, self.peer.clone(), patience());
            self.work(job, &[], mood, fault, cut);
        }
    }
}

fn changes(record: &basalt_worker::Record, peer: &Peer) -> Vec<Change> {
    let want = Want { generation: record.generation, wanted: record.op.wanted() };
    vec![
        Change::Want(record.multihash.clone(), peer.clone(), want),
        Change::Have(record.multihash.clone(), peer.clone(), record.have()),
    ]
}

fn patience() -> Patience {
    Patience { tries_max: TRIES_MAX, ..Patience::default() }
}

#[derive(Clone, Debug)]
enum Happens {
    Decide { subject: usize, wanted: bool, ledger: bool, message: bool },
    Deliver { at: usize, mood: Mood, fault: Fault, cut: Cut },
    Again { at: usize },
    Look { mood: Mood, fault: Fault, cut: Cut },
    Restart,
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![5 => Just(Mood::Works), 1 => Just(Mood::Fails), 1 => Just(Mood::Away), 1 => Just(Mood::Forgets)]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![4 => Just(Fault::None), 1 => Just(Fault::Away), 1 => Just(Fault::AnswersLost)]
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![2 => Just(Cut::Never), 3 => (0usize..8).prop_map(Cut::Before), 3 => (0usize..8).prop_map(Cut::After)]
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => (0..SUBJECTS, any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(subject, wanted, ledger, message)| Happens::Decide { subject, wanted, ledger, message }),
        6 => (0usize..8, mood(), fault(), cut()).prop_map(|(at, mood, fault, cut)| Happens::Deliver { at, mood, fault, cut }),
        1 => (0usize..8).prop_map(|at| Happens::Again { at }),
        1 => (mood(), fault(), cut()).prop_map(|(mood, fault, cut)| Happens::Look { mood, fault, cut }),
        1 => Just(Happens::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(1000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_killed_lost_repeated_or_late_the_end_is_the_newest_want(story in proptest::collection::vec(happens(), 1..40)) {
        let mut world = World::new();
        for happens in story {
            match happens {
                Happens::Decide { subject, wanted, ledger, message } => world.decide(subject, wanted, ledger, message),
                Happens::Deliver { at, mood, fault, cut } => world.deliver(at, mood, fault, cut),
                Happens::Again { at } if !world.messages.is_empty() => {
                    // As a publisher does that heard no answer, after the window of duplicates.
                    let payload = world.messages[at % world.messages.len()].payload.clone();
                    world.messages.push(Message { payload, delivered: 0 });
                }
                Happens::Again { .. } => {}
                Happens::Look { mood, fault, cut } => world.look_at_ledger(mood, fault, cut),
                Happens::Restart => {
                    world.tries.clear();
                    world.leftovers();
                }
            }
        }
        // Everything is back: what is left is worked off.
        world.leftovers();
        for _ in 0..10 {
            for _ in 0..world.messages.len() {
                world.deliver(0, Mood::Works, Fault::None, Cut::Never);
            }
            world.look_at_ledger(Mood::Works, Fault::None, Cut::Never);
        }
        prop_assert!(world.messages.is_empty());
        prop_assert!(world.journal.untold(9).unwrap().is_empty());
        for (subject, want) in &world.wants {
            let placed = now(world.ledger.placement(&multihash(*subject), &world.peer)).unwrap();
            let placed = placed.expect("every want is known to the ledger at the end");
            prop_assert_eq!(placed.want, Some(*want));
            prop_assert!(!placed.drifts(), "{:?}", placed);
            prop_assert_eq!(world.kubo.contains(&cid(*subject)), want.wanted);
        }
    }
}

#[test]
fn killed_after_each_step_the_end_is_the_same() {
    for wanted in [true, false] {
        for step in 0..8 {
            for cut in [Cut::Before(step), Cut::After(step)] {
                let mut world = World::new();
                world.kubo.extend((!wanted).then(|| cid(0)));
                world.decide(0, wanted, true, true);
                world.deliver(0, Mood::Works, Fault::None, cut);
                world.leftovers();
                world.deliver(0, Mood::Works, Fault::None, Cut::Never);
                let placed = &world.placements()[0];
                assert_eq!(world.kubo.contains(&cid(0)), wanted, "{cut:?}");
                assert!(!placed.drifts() && world.messages.is_empty(), "{cut:?}");
                assert_eq!(world.statuses.len(), 1, "{cut:?}: told once");
            }
        }
    }
}

#[test]
fn a_late_older_message_has_no_effect_even_while_the_ledger_is_away() {
    let mut world = World::new();
    world.decide(0, true, false, true);
    world.decide(0, false, false, true);
    world.deliver(1, Mood::Works, Fault::None, Cut::Never);
    world.deliver(0, Mood::Works, Fault::Away, Cut::Never);
    assert!(world.kubo.is_empty(), "the pin came after its removal");
    assert!(world.statuses.values().all(|status| status.state == State::Unpinned));
}

#[test]
fn what_fails_for_good_becomes_a_dead_letter_with_its_reason() {
    let mut world = World::new();
    world.decide(0, true, true, true);
    for _ in 0..TRIES_MAX {
        assert_eq!(world.dead.len(), 0);
        world.deliver(0, Mood::Fails, Fault::None, Cut::Never);
    }
    assert!(world.messages.is_empty());
    assert!(world.dead[0].why.contains("given up after 3 tries: failed"), "{:?}", world.dead);
    let have = world.placements()[0].have.clone().unwrap();
    assert_eq!((have.held, have.error.as_deref()), (false, Some("failed")));
}

#[test]
fn times_when_kubo_was_away_are_no_tries() {
    let mut world = World::new();
    world.decide(0, true, true, true);
    for _ in 0..20 {
        world.deliver(0, Mood::Away, Fault::None, Cut::Never);
    }
    assert_eq!((world.dead.len(), world.messages.len()), (0, 1));
    world.deliver(0, Mood::Works, Fault::None, Cut::Never);
    assert!(world.messages.is_empty() && world.kubo.contains(&cid(0)));
}

#[test]
fn work_in_which_the_process_ends_again_and_again_is_put_aside() {
    let mut world = World::new();
    world.decide(0, true, true, true);
    let assignment = Assignment::parse(&world.messages[0].payload, world.now_us()).unwrap();
    let begun = |times, origin| {
        let mut job = Job::new(assignment.clone(), origin, 0, world.peer.clone(), patience());
        job.begun = times;
        job
    };
    // However often it was delivered, which also happens to what only waits for its turn.
    let message = Origin::Message { delivered: 10_000 };
    assert_eq!(begun(20, message).next(Event::Begin), Action::Look);
    let mut job = begun(21, message);
    assert!(matches!(job.next(Event::Begin), Action::Bury(_)));
    assert_eq!(job.next(Event::Done), Action::Acknowledge);
    assert_eq!(job.next(Event::Done), Action::End);
    // What the ledger wants is left alone for a while.
    assert!(matches!(begun(21, Origin::Ledger).next(Event::Begin), Action::Postpone(_)));
}

#[test]
fn who_decides_after_one_whose_clock_was_ahead_is_heeded_all_the_same() {
    let mut world = World::new();
    let ahead = Clock::new();
    ahead.saw(Generation::new(world.now_us() + 9 * 60_000_000).unwrap());
    let request = basalt_worker::assign::Request {
        cid: cid(0),
        owner: "me".parse().unwrap(),
        name: None,
        tags: BTreeSet::new(),
        replicas: 1,
        expires: None,
        priority: Default::default(),
    };
    let at = [world.peer.clone()];
    let placed = now(basalt_worker::assign::add(&world.ledger, &ahead, &request, &at, &[])).unwrap();
    let late: Vec<_> = placed.assignments.iter().map(|(_, assignment)| assignment.to_bytes()).collect();
    world.look_at_ledger(Mood::Works, Fault::None, Cut::Never);
    assert!(world.kubo.contains(&cid(0)));

    // Right, and so nine minutes behind the other.
    let right = Clock::new();
    let gone = now(basalt_worker::assign::remove(&world.ledger, &right, &cid(0), &request.owner)).unwrap().unwrap();
    assert_eq!(gone.assignments[0].1.op, Op::Unpin);
    world.look_at_ledger(Mood::Works, Fault::None, Cut::Never);
    assert!(world.kubo.is_empty());
    // The first one's message comes only now.
    world.messages.extend(late.into_iter().map(|payload| Message { payload, delivered: 0 }));
    world.deliver(0, Mood::Works, Fault::None, Cut::Never);
    assert!(world.kubo.is_empty() && world.messages.is_empty());
    assert!(world.placements().iter().all(|placed| !placed.drifts()));
}

#[test]
fn peers_are_chosen_alike_by_everybody_and_a_new_one_moves_little() {
    let peers: Vec<Peer> = (0..20).map(|number| format!("peer{number}").parse().unwrap()).collect();
    let mut backwards = peers.clone();
    backwards.reverse();
    let (mut moved, mut load) = (0, BTreeMap::<Peer, u32>::new());
    for number in 0..200 {
        let multihash = multihash(number);
        let chosen = basalt_worker::assign::choose(&multihash, 3, &[], &peers);
        assert_eq!(chosen, basalt_worker::assign::choose(&multihash, 3, &[], &backwards));
        assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), 3);
        chosen.iter().for_each(|peer| *load.entry(peer.clone()).or_default() += 1);
        let fewer = basalt_worker::assign::choose(&multihash, 3, &[], &peers[..19]);
        moved += chosen.iter().filter(|peer| !fewer.contains(peer)).count();
        // What is there stays there.
        assert_eq!(basalt_worker::assign::choose(&multihash, 2, &peers[5..7], &peers), peers[5..7]);
    }
    assert!(moved < 80, "{moved} of 600 moved for one peer of 20");
    assert!(load.len() == 20 && load.values().all(|count| (10..60).contains(count)), "{load:?}");
}
