//! One piece of work as a state machine that does nothing itself: it says what to do next and is told what came of it.
//!
//! ```text
//! look ─ change ─ journal ─ tell ─ report ─ settle ─ acknowledge
//!   │       └ not now: postpone         └ given up: bury, then settle
//!   └ done already: report, acknowledge
//! ```
//!
//! Killed after any step, the work is begun again by its message, or by the journal's record that is not told, and goes through the same steps:
//! - before `journal`, Kubo was changed or not, and is changed again: pins are a set;
//! - after it, the journal's record is told, and Kubo is left alone;
//! - what is told has the generation of the one observation, and what is reported one message id, so both happen once however often they are made.
//!
//! What decides is the newest want that is known, whoever brought it: the message, the ledger, the journal. So a late or repeated message makes the
//! worker do what is wanted now, or nothing.

use std::{collections::BTreeSet, time::Duration};

use basalt_kubo::Cid;
use basalt_stateplane::{Change, Generation, Have, Peer, PinName, Placement, Want};

use crate::{
    journal::Record,
    message::{Assignment, DeadLetter, Kind, Op, Refused, State, Status, VERSION},
};

/// Longest error that is kept of a piece of work, in bytes: the ledger takes 2000.
const ERROR_BYTES_MAX: usize = 1500;

/// Bounds of patience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Times that Kubo is asked before a piece of work is given up. Times when Kubo was away don't count.
    pub tries_max: u32,
    /// Times that a piece of work may be begun and have no end, because the process ended in it. Then it is put aside.
    pub begun_max: u32,
    /// Pause before the second try; it doubles.
    pub delay: Duration,
    /// Longest pause.
    pub delay_max: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { tries_max: 8, begun_max: 20, delay: Duration::from_secs(1), delay_max: Duration::from_secs(300) }
    }
}

impl Patience {
    /// The pause after so many tries: it doubles, and varies by a quarter from one piece of work to another.
    pub fn pause(&self, tries: u32, multihash: &[u8]) -> Duration {
        let doubled = self.delay.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(self.delay_max);
        let spread: u32 = multihash.iter().map(|byte| u32::from(*byte)).sum::<u32>() % 51;
        doubled.mul_f64(0.75 + f64::from(spread) / 100.0)
    }
}

/// Where a piece of work comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A message, delivered so many times by now.
    Message {
        /// Counting this one.
        delivered: u64,
    },
    /// The ledger: what is there is not as wanted.
    Ledger,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the journal's record and the ledger's placement.
    Look,
    /// Pin or unpin in Kubo.
    Change {
        /// Which of them.
        op: Op,
        /// All forms of the CID that are to be changed.
        cids: Vec<Cid>,
        /// The pin's name.
        name: Option<PinName>,
    },
    /// Keep what was done, durably.
    Journal(Record),
    /// Tell the ledger.
    Tell(Vec<Change>),
    /// Publish the status.
    Report(Status),
    /// Publish the message as a dead letter.
    Bury(Refused),
    /// Note in the journal that the record is told.
    Settle(Record),
    /// Confirm the message, and see that the confirmation was heard.
    Acknowledge,
    /// Give the message back for a while.
    Postpone(Duration),
    /// Nothing: it is over.
    End,
}

/// Why Kubo was not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Kubo can't be asked now. It says nothing of this piece of work.
    Away(String),
    /// It was asked in vain; another time it may work.
    Failed(String),
    /// It will never work.
    Never(String),
}

/// What came of the last action.
#[allow(clippy::large_enum_variant, reason = "one at a time, and gone at once")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It begins.
    Begin,
    /// What is known. `placement` is `None` where the ledger could not be asked.
    Looked {
        /// The journal's.
        record: Option<Record>,
        /// The ledger's.
        placement: Option<Option<Placement>>,
    },
    /// Kubo was asked.
    Changed {
        /// What it said; where it pinned, the bytes of the DAG if it told.
        outcome: Result<Option<u64>, Obstacle>,
        /// For the observation that was just made.
        generation: Generation,
        /// Unix time in milliseconds.
        at_ms: u64,
    },
    /// It was done.
    Done,
    /// It could not be done: disk, ledger or network. It is to be begun anew later.
    Failed,
}

/// A piece of work under way.
#[derive(Clone, Debug)]
pub struct Job {
    /// What was asked.
    pub assignment: Assignment,
    /// Other CIDs of the same multihash that may be pinned.
    pub more: Vec<Cid>,
    /// Where it comes from.
    pub origin: Origin,
    /// Times that Kubo was asked before.
    pub tries: u32,
    /// Times that it was begun, and the process ended in it; counting this one.
    pub begun: u32,
    peer: Peer,
    patience: Patience,
    step: Step,
    target: Want,
    /// Whether the ledger lacks the want.
    unknown_want: bool,
    record: Option<Record>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    New,
    Looking,
    Changing,
    Journaling,
    Telling,
    Reporting,
    Burying,
    Settling,
    Acknowledging,
    Over,
}

impl Job {
    /// A piece of work for this peer's worker.
    pub fn new(assignment: Assignment, origin: Origin, tries: u32, peer: Peer, patience: Patience) -> Job {
        let target = Want { generation: assignment.generation, wanted: assignment.op.wanted() };
        let (more, record) = (Vec::new(), None);
        Job {
            assignment,
            more,
            origin,
            tries,
            begun: 1,
            peer,
            patience,
            step: Step::New,
            target,
            unknown_want: true,
            record,
        }
    }

    /// What Kubo is to be brought to.
    pub fn op(&self) -> Op {
        Op::of(self.target.wanted)
    }

    /// What was done, once it is.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// The next action, after what came of the last one.
    pub fn next(&mut self, event: Event) -> Action {
        let (step, action) = self.after(event);
        self.step = step;
        action
    }

    fn after(&mut self, event: Event) -> (Step, Action) {
        match (self.step, event) {
            (Step::New, Event::Begin) if self.begun <= self.patience.begun_max => (Step::Looking, Action::Look),
            (Step::New, Event::Begin) if self.is_message() => {
                let why = format!(
                    "it was begun {} times and had no end: the agent ended in it, and it may be why; see the agent's log",
                    self.begun
                );
                (Step::Burying, Action::Bury(Refused { kind: Kind::Endless, why }))
            }
            (Step::New, Event::Begin) => (Step::Over, Action::Postpone(self.patience.delay_max)),
            (Step::Looking, Event::Looked { record, placement }) => self.decide(record, placement),
            (Step::Changing, Event::Changed { outcome, generation, at_ms }) => self.changed(outcome, generation, at_ms),
            (Step::Journaling, Event::Done) => self.tell(),
            (Step::Telling, Event::Done) => self.report(),
            (Step::Reporting, Event::Done) => match &self.record {
                Some(Record { error: Some(error), told: false, .. }) if self.is_message() => {
                    let why = format!("given up after {} tries: {error}", self.tries + 1);
                    (Step::Burying, Action::Bury(Refused { kind: Kind::Failed, why }))
                }
                _ => self.settle(),
            },
            (Step::Burying, Event::Done) => self.settle(),
            (Step::Settling, Event::Done) => self.acknowledge(),
            (Step::Acknowledging, Event::Done) => (Step::Over, Action::End),
            // Also what makes no sense: to begin anew is always right.
            (Step::Over, _) => (Step::Over, Action::End),
            _ => self.postpone(1),
        }
    }

    fn is_message(&self) -> bool {
        matches!(self.origin, Origin::Message { .. })
    }

    fn decide(&mut self, record: Option<Record>, placement: Option<Option<Placement>>) -> (Step, Action) {
        let placed = placement.flatten();
        let known_want = placed.as_ref().and_then(|placed| placed.want);
        let journaled = record.as_ref().map(|it| Want { generation: it.generation, wanted: it.op.wanted() });
        for want in [known_want, journaled].into_iter().flatten() {
            if want.generation > self.target.generation {
                self.target = want;
            }
        }
        self.unknown_want = known_want.is_none_or(|want| want.generation < self.target.generation);
        let have = placed.and_then(|placed| placed.have);
        if let Some(record) = record {
            // What may be pinned under another form of the CID, or under the codec of an earlier time.
            self.more.extend(record.cids.iter().copied());
            if record.generation == self.target.generation && !record.told {
                self.record = Some(record);
                return self.tell();
            }
            let seen_since = have.as_ref().is_some_and(|have| have.generation > record.have_generation);
            if record.generation == self.target.generation && record.error.is_none() && !seen_since {
                self.record = Some(record);
                // The ledger may have lost sight of it, though it was told: it costs little to tell it again.
                return if have.is_none() { self.tell() } else { self.report() };
            }
        }
        if let Some(have) = have.filter(|have| self.is_answered(have)) {
            self.record = Some(self.told_by_the_ledger(&have));
            return self.report();
        }
        let op = self.op();
        let mut cids: BTreeSet<Cid> = match op {
            Op::Pin => [canonical(&self.assignment.cid)].into(),
            Op::Unpin => self.more.iter().copied().chain([self.assignment.cid]).flat_map(forms).collect(),
        };
        if op == Op::Pin && !self.assignment.op.wanted() {
            // Asked to unpin, and somebody wants it again: by the codec that the journal knows.
            cids.extend(self.more.iter().map(canonical));
        }
        let name = self.assignment.name.clone().filter(|_| op == Op::Pin);
        (Step::Changing, Action::Change { op, cids: cids.into_iter().collect(), name })
    }

    fn is_answered(&self, have: &Have) -> bool {
        have.answers == Some(self.target.generation) && have.held == self.target.wanted && have.error.is_none()
    }

    /// Done in another life, of which the journal knows nothing.
    fn told_by_the_ledger(&self, have: &Have) -> Record {
        Record {
            multihash: self.assignment.multihash.clone(),
            op: self.op(),
            generation: self.target.generation,
            have_generation: have.generation,
            cids: vec![canonical(&self.assignment.cid)],
            owner: self.assignment.owner.clone(),
            size_bytes: have.size_bytes,
            error: None,
            at_ms: have.seen_ms,
            told: true,
        }
    }

    fn changed(
        &mut self,
        outcome: Result<Option<u64>, Obstacle>,
        have_generation: Generation,
        at_ms: u64,
    ) -> (Step, Action) {
        let (size_bytes, error) = match outcome {
            Ok(size_bytes) => (size_bytes, None),
            Err(Obstacle::Away(_)) => return self.postpone(self.tries.max(1)),
            Err(Obstacle::Failed(_)) if self.tries + 1 < self.patience.tries_max => {
                self.tries += 1;
                return self.postpone(self.tries);
            }
            Err(Obstacle::Failed(why) | Obstacle::Never(why)) => (None, Some(shortened(why))),
        };
        let mut cids: BTreeSet<Cid> = self.more.iter().map(canonical).collect();
        cids.insert(canonical(&self.assignment.cid));
        let record = Record {
            multihash: self.assignment.multihash.clone(),
            op: self.op(),
            generation: self.target.generation,
            have_generation,
            cids: cids.into_iter().collect(),
            owner: self.assignment.owner.clone(),
            size_bytes,
            error,
            at_ms,
            told: false,
        };
        self.record = Some(record.clone());
        (Step::Journaling, Action::Journal(record))
    }

    fn tell(&self) -> (Step, Action) {
        let Some(record) = &self.record else { return self.postpone(1) };
        let changes = changes(record, &self.peer, self.unknown_want);
        (Step::Telling, Action::Tell(changes))
    }

    fn report(&self) -> (Step, Action) {
        let Some(record) = &self.record else { return self.postpone(1) };
        (Step::Reporting, Action::Report(status(record, &self.peer)))
    }

    fn settle(&self) -> (Step, Action) {
        match &self.record {
            Some(record) if !record.told => (Step::Settling, Action::Settle(record.clone())),
            _ => self.acknowledge(),
        }
    }

    fn acknowledge(&self) -> (Step, Action) {
        match self.is_message() {
            true => (Step::Acknowledging, Action::Acknowledge),
            false => (Step::Over, Action::End),
        }
    }

    fn postpone(&self, tries: u32) -> (Step, Action) {
        let pause = self.patience.pause(tries, self.assignment.multihash.as_bytes());
        (Step::Over, Action::Postpone(pause))
    }

    /// The dead letter of this job's message.
    pub fn dead_letter(&self, why: Refused, message: &[u8]) -> DeadLetter {
        let delivered = match self.origin {
            Origin::Message { delivered } => delivered,
            Origin::Ledger => 0,
        };
        DeadLetter::new(&self.peer, why, delivered, message)
    }
}

/// Whether what the ledger has of a placement is work for its peer's worker.
///
/// That what is held is as wanted does not prove it: a worker that was killed, or heard no answer, may have changed Kubo since and told nobody. So
/// the answer must be to just this want. What was only seen to be held (it answers nothing) needs no second pin.
pub fn is_due(placement: &Placement) -> bool {
    let (want, have) = match (placement.want, &placement.have) {
        (None, _) => return false,
        (Some(_), None) => return true,
        (Some(want), Some(have)) => (want, have),
    };
    let seen_held = have.held && have.answers.is_none();
    have.held != want.wanted || (have.answers != Some(want.generation) && !(want.wanted && seen_held))
}

/// What the ledger is told of a record; with the want too, where it may lack it.
pub fn changes(record: &Record, peer: &Peer, with_want: bool) -> Vec<Change> {
    let want = Want { generation: record.generation, wanted: record.op.wanted() };
    let want = with_want.then(|| Change::Want(record.multihash.clone(), peer.clone(), want));
    want.into_iter().chain([Change::Have(record.multihash.clone(), peer.clone(), record.have())]).collect()
}

/// What whoever asked is told of a record.
pub fn status(record: &Record, peer: &Peer) -> Status {
    let state = match (&record.error, record.op) {
        (Some(_), _) => State::Failed,
        (None, Op::Pin) => State::Pinned,
        (None, Op::Unpin) => State::Unpinned,
    };
    Status {
        v: VERSION,
        peer: peer.to_string(),
        cid: record.cids.first().map(ToString::to_string).unwrap_or_default(),
        generation: record.generation.get(),
        state,
        size_bytes: record.size_bytes,
        error: record.error.clone(),
        at_ms: record.at_ms,
    }
}

fn shortened(mut why: String) -> String {
    let mut end = ERROR_BYTES_MAX.min(why.len());
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why.truncate(end);
    why
}

/// The form by which the worker pins: CIDv1. Kubo takes CIDv0 and CIDv1 of one DAG for two pins.
pub fn canonical(cid: &Cid) -> Cid {
    Cid::new_v1(cid.codec(), *cid.hash())
}

/// All forms by which one DAG may be pinned.
fn forms(cid: Cid) -> Vec<Cid> {
    let v0 = Cid::new_v0(*cid.hash()).ok().filter(|_| cid.codec() == 0x70);
    [canonical(&cid)].into_iter().chain(v0).collect()
}
