//! What travels: assignments, statuses, dead letters. JSON with a version, because producers and consumers are other people's programs.
//!
//! A field that is not known is skipped, a version that is not known is refused, and everything is bounded before it is parsed.

use std::fmt;

use basalt_kubo::Cid;
use basalt_stateplane::{FENCE_DAYS, Generation, Multihash, Owner, Peer, PinName, SKEW_MAX};
use serde::{Deserialize, Serialize};

/// Version of all messages.
pub const VERSION: u32 = 1;
/// Longest assignment, in bytes. A CID, an owner and a name are at most some hundreds each.
pub const ASSIGNMENT_BYTES_MAX: usize = 8 << 10;
/// Bytes of a message that its dead letter repeats.
pub const REPEATED_BYTES_MAX: usize = 8 << 10;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// To be held.
    Pin,
    /// To be held no more.
    Unpin,
}

impl Op {
    /// The one that makes what is as wanted.
    pub fn of(wanted: bool) -> Op {
        if wanted { Op::Pin } else { Op::Unpin }
    }

    /// Whether it is to be held.
    pub fn wanted(self) -> bool {
        self == Op::Pin
    }

    /// As it travels, and as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Op::Pin => "pin",
            Op::Unpin => "unpin",
        }
    }
}

/// How much it hurries: among what waits at a worker, high ones come as if they had come ten minutes earlier, low ones ten minutes later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// When there is time.
    Low,
    /// In turn.
    #[default]
    Normal,
    /// Before the others.
    High,
}

/// An assignment, parsed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// What to do.
    pub op: Op,
    /// With what. Its multihash is what counts; the codec says how the pin is named.
    pub cid: Cid,
    /// That of `cid`.
    pub multihash: Multihash,
    /// Of the want that this announces.
    pub generation: Generation,
    /// Whose, for the limits.
    pub owner: Owner,
    /// The pin's name in Kubo.
    pub name: Option<PinName>,
    /// How much it hurries.
    pub priority: Priority,
}

#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    v: u32,
    op: Op,
    cid: String,
    generation: i64,
    owner: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default)]
    priority: Priority,
}

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// Why a message can't be worked on, ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It can't be read.
    Poison,
    /// It is longer than [`ASSIGNMENT_BYTES_MAX`].
    Oversized,
    /// It is of a version that this build does not know.
    Version,
    /// Its generation lies further ahead than clocks may differ.
    Ahead,
    /// It is so old that what has fenced it may have been forgotten.
    Old,
    /// It was tried as often as it may be.
    Failed,
    /// It was delivered again and again, and no delivery had an end: it may be what ends the worker.
    Endless,
}

impl Kind {
    /// As it travels, and as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Poison => "poison",
            Kind::Oversized => "oversized",
            Kind::Version => "version",
            Kind::Ahead => "ahead",
            Kind::Old => "old",
            Kind::Failed => "failed",
            Kind::Endless => "endless",
        }
    }
}

/// A message that is refused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which sort of reason.
    pub kind: Kind,
    /// In words, with the remedy.
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

fn refused<T>(kind: Kind, why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { kind, why: why.into() })
}

impl Assignment {
    /// Of what a ledger says.
    pub fn new(op: Op, cid: Cid, generation: Generation, owner: Owner) -> Result<Assignment, Refused> {
        let multihash = Multihash::from_bytes(&cid.hash().to_bytes())
            .map_err(|err| Refused { kind: Kind::Poison, why: err.to_string() })?;
        Ok(Assignment { op, cid, multihash, generation, owner, name: None, priority: Priority::Normal })
    }

    /// From a message; `now_us` is Unix time in microseconds.
    pub fn parse(bytes: &[u8], now_us: i64) -> Result<Assignment, Refused> {
        if bytes.len() > ASSIGNMENT_BYTES_MAX {
            let why = format!("the assignment has {} bytes, and may have {ASSIGNMENT_BYTES_MAX}", bytes.len());
            return refused(Kind::Oversized, why);
        }
        let poison = |why: String| Refused { kind: Kind::Poison, why };
        // The version first: what is around it may have changed altogether.
        let Versioned { v } = serde_json::from_slice(bytes)
            .map_err(|err| poison(format!("the assignment is no JSON object with a version: {err}")))?;
        if v != VERSION {
            let why = format!(
                "the assignment is of version {v}, and this agent knows {VERSION}; upgrade the older of the two"
            );
            return refused(Kind::Version, why);
        }
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|err| poison(format!("the assignment can't be read: {err}")))?;
        let cid: Cid = wire.cid.parse().map_err(|err| poison(format!("its cid is none: {err}")))?;
        let generation = Generation::new(wire.generation)
            .ok_or_else(|| poison(format!("its generation {} is none", wire.generation)))?;
        let owner = wire.owner.parse().map_err(|err| poison(format!("{err}")))?;
        let name = wire.name.map(|name| name.parse()).transpose().map_err(|err| poison(format!("{err}")))?;
        let mut assignment = Assignment::new(wire.op, cid, generation, owner)?;
        assignment.name = name;
        assignment.priority = wire.priority;
        let ahead_s = (wire.generation.saturating_sub(now_us)) / 1_000_000;
        if ahead_s > i64::try_from(SKEW_MAX.as_secs()).unwrap_or(i64::MAX) {
            let why = format!(
                "its generation is {ahead_s} s ahead of this host's time, more than the {} s that are allowed; set the clocks (chrony, NTP)",
                SKEW_MAX.as_secs()
            );
            return refused(Kind::Ahead, why);
        }
        let days = i64::from(FENCE_DAYS) - 1;
        if -ahead_s > days * 86_400 {
            let why = format!(
                "it is older than {days} days, after which a newer removal may have been forgotten; assign it anew if it still holds"
            );
            return refused(Kind::Old, why);
        }
        Ok(assignment)
    }

    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        json(&Wire {
            v: VERSION,
            op: self.op,
            cid: self.cid.to_string(),
            generation: self.generation.get(),
            owner: self.owner.to_string(),
            name: self.name.as_ref().map(ToString::to_string),
            priority: self.priority,
        })
    }

    /// The id by which JetStream drops a second one.
    pub fn message_id(&self, peer: &Peer) -> String {
        format!("{peer}/{}/{}", self.multihash, self.generation)
    }
}

/// Where an assignment for a peer goes. `None`: the peer id can't be a part of a subject.
pub fn assign_subject(peer: &Peer) -> Option<String> {
    is_token(peer).then(|| format!("pin.assign.{peer}"))
}

/// Where a peer's statuses go.
pub fn status_subject(peer: &Peer) -> String {
    format!("pin.status.{peer}")
}

/// Where a peer's dead letters go.
pub fn dead_subject(peer: &Peer) -> String {
    format!("pin.dlq.{peer}")
}

/// Peer ids are base58 or base36, but a [`Peer`] may be any text, and `pin.assign.*` would reach everybody.
fn is_token(peer: &Peer) -> bool {
    peer.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// How a piece of work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Held now.
    Pinned,
    /// Held no more.
    Unpinned,
    /// It was given up; the error says why.
    Failed,
}

impl State {
    /// As it travels, and as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            State::Pinned => "pinned",
            State::Unpinned => "unpinned",
            State::Failed => "failed",
        }
    }
}

/// What a worker tells of a piece of work, once the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub v: u32,
    /// Whose work it was.
    pub peer: String,
    /// As it was pinned or unpinned.
    pub cid: String,
    /// The want that this answers.
    pub generation: i64,
    /// How it ended.
    pub state: State,
    /// Bytes of the DAG, where Kubo told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Unix time in milliseconds at which Kubo had done it.
    pub at_ms: u64,
}

impl Status {
    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        json(self)
    }

    /// The id by which JetStream drops a second one.
    pub fn message_id(&self, multihash: &Multihash) -> String {
        format!("{}/{multihash}/{}/{}", self.peer, self.generation, self.state.name())
    }
}

/// A message that nobody will work on, with the reason. It goes to `pin.dlq.<peer>` before the message itself is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// [`VERSION`].
    pub v: u32,
    /// Who gave it up.
    pub peer: String,
    /// Which sort of reason.
    pub kind: Kind,
    /// In words.
    pub why: String,
    /// Times that it was delivered.
    pub delivered: u64,
    /// Bytes that the message had.
    pub bytes: u64,
    /// The first [`REPEATED_BYTES_MAX`] of them; what is no text shows as U+FFFD.
    pub message: String,
}

impl DeadLetter {
    /// Of a message and why it is given up.
    pub fn new(peer: &Peer, why: Refused, delivered: u64, message: &[u8]) -> DeadLetter {
        let repeated = message.get(..REPEATED_BYTES_MAX).unwrap_or(message);
        DeadLetter {
            v: VERSION,
            peer: peer.to_string(),
            kind: why.kind,
            why: why.why,
            delivered,
            bytes: message.len() as u64,
            message: String::from_utf8_lossy(repeated).into_owned(),
        }
    }

    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        json(self)
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Structs of strings and numbers always serialize.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000_000_000;
    const CID: &str = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

    fn message(change: &str) -> Result<Assignment, Refused> {
        let base = format!(r#""v":1,"op":"pin","cid":"{CID}","generation":{NOW},"owner":"me""#);
        Assignment::parse(format!("{{{base}{change}}}").as_bytes(), NOW)
    }

    #[test]
    fn an_assignment_reads_back_as_it_was() {
        let mut wanted = Assignment::new(
            Op::Unpin,
            CID.parse().unwrap(),
            Generation::new(NOW).unwrap(),
            "tenant 7".parse().unwrap(),
        )
        .unwrap();
        wanted.name = Some("a name".parse().unwrap());
        wanted.priority = Priority::High;
        assert_eq!(Assignment::parse(&wanted.to_bytes(), NOW), Ok(wanted));
    }

    #[test]
    fn the_wire_form_is_the_documented_one() {
        let read = message("").unwrap();
        assert_eq!(
            String::from_utf8(read.to_bytes()).unwrap(),
            format!(r#"{{"v":1,"op":"pin","cid":"{CID}","generation":{NOW},"owner":"me","priority":"normal"}}"#)
        );
        assert!(message(r#","later":{"x":1}"#).is_ok(), "an unknown field is skipped");
    }

    #[test]
    fn what_can_not_be_worked_on_is_refused_by_kind() {
        let kind = |bytes: &[u8]| Assignment::parse(bytes, NOW).unwrap_err().kind;
        assert_eq!(kind(b""), Kind::Poison);
        assert_eq!(kind(b"\xff\xfe"), Kind::Poison);
        assert_eq!(kind(br#"{"v":2,"anything":[]}"#), Kind::Version);
        assert_eq!(kind(&vec![b' '; ASSIGNMENT_BYTES_MAX + 1]), Kind::Oversized);
        assert_eq!(message(r#","name":"a\nb""#).unwrap_err().kind, Kind::Poison);
        for (generation, wanted) in [
            (NOW + 601_000_000, Kind::Ahead),
            (i64::MAX, Kind::Ahead),
            (NOW - 10 * 86_400_000_000, Kind::Old),
            (1, Kind::Old),
            (0, Kind::Poison),
            (i64::MIN, Kind::Poison),
        ] {
            let text = format!(r#"{{"v":1,"op":"pin","cid":"{CID}","generation":{generation},"owner":"me"}}"#);
            assert_eq!(kind(text.as_bytes()), wanted, "{generation}");
        }
    }

    #[test]
    fn a_peer_that_would_reach_others_has_no_subject() {
        assert!(assign_subject(&"12D3KooWabc".parse().unwrap()).is_some());
        for wild in ["*", ">", "a.b", "a b", "pin.assign.>"] {
            assert_eq!(assign_subject(&wild.parse().unwrap()), None, "{wild}");
        }
    }

    #[test]
    fn a_dead_letter_is_bounded() {
        let peer: Peer = "p".parse().unwrap();
        let why = Refused { kind: Kind::Oversized, why: "long".into() };
        let letter = DeadLetter::new(&peer, why, 3, &[0xff; 1 << 20]);
        assert_eq!((letter.bytes, letter.delivered), (1 << 20, 3));
        assert!(letter.to_bytes().len() < 64 << 10);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Assignment::parse(&bytes, NOW);
        }

        #[test]
        fn no_json_makes_it_panic(op in ".{0,8}", cid in ".{0,80}", generation: i64, owner in ".{0,300}") {
            let text = serde_json::json!({ "v": 1, "op": op, "cid": cid, "generation": generation, "owner": owner });
            let _ = Assignment::parse(text.to_string().as_bytes(), NOW);
        }
    }
}
