//! Repairs drift at this node's Kubo, and `basalt plane drift`.
//!
//! A repair looks at its placement once more before it does anything, so what has settled meanwhile is left alone; and what nobody decided about is never touched.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use basalt_kubo::{Class, Client, PinOptions, Unpinned};
use basalt_stateplane::{
    Clock, Generation, Have, Multihash, Peer, PinLedger, Placement, Result,
    drift::{Drift, Look, Rate, Seen, drift},
    metrics,
};
use serde_json::json;

use crate::{
    cid::RAW,
    config::Loaded,
    exit::{Exit, Failure, Outcome as Ended},
    ledger::{self, now_ms},
    plane::failure,
    registrar::{drift_object, records},
    say::say,
    scrub,
};

/// A repair whose pin gets no further block for so long is given up, until the next look.
const STALL: Duration = Duration::from_secs(60);
/// Longest message of Kubo that is kept.
const ERROR_CHARS_MAX: usize = 500;

/// What to do about drift.
#[derive(Clone, Copy, Debug)]
pub enum Do<'a> {
    /// Only find it.
    Nothing,
    /// Repair it at this Kubo, at most so many a second (0: as fast as it goes).
    Repair(&'a Client, f64),
}

/// What became of a placement that mismatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was only found.
    Found,
    /// It is as wanted now.
    Repaired,
    /// It settled by itself, or is wanted otherwise now.
    Settled,
    /// Why it is as it was.
    Failed(String),
}

/// A look at a peer's drift, from this node.
#[derive(Debug)]
pub struct Round<'a> {
    /// The ledger.
    pub ledger: &'a dyn PinLedger,
    /// Of this process.
    pub clock: &'a Clock,
    /// Whose drift.
    pub peer: &'a Peer,
    /// Blocks that are damaged here.
    pub quarantined: &'a HashSet<Multihash>,
    /// How long what was decided is left alone.
    pub grace: Duration,
}

impl Round<'_> {
    /// Looks at all placements, and does what is asked about those that mismatch. `told` hears of each.
    pub async fn run(&self, what: Do<'_>, told: impl Fn(Drift, &Placement, &Outcome) + Sync + Send) -> Result<Seen> {
        let grace = i64::try_from(self.grace.as_micros()).unwrap_or(i64::MAX);
        let now = i64::try_from(now_ms()).unwrap_or(i64::MAX).saturating_mul(1000);
        // Nothing was decided before 1970.
        let settled_before = Generation::new(now.saturating_sub(grace).max(1));
        let settled_before = settled_before.unwrap_or_else(|| self.clock.next());
        let is_quarantined = |multihash: &Multihash| self.quarantined.contains(multihash);
        let look = Look { ledger: self.ledger, peer: self.peer, settled_before, is_quarantined: &is_quarantined };
        let rate = tokio::sync::Mutex::new(match what {
            Do::Repair(_, rate) => Rate::per_second(rate),
            Do::Nothing => Rate::per_second(0.0),
        });
        let begun = Mutex::new(Instant::now());
        let (rate, begun, told) = (&rate, &begun, &told);
        look.all(|kind, known| async move {
            let outcome = match what {
                Do::Nothing => Outcome::Found,
                Do::Repair(client, _) => {
                    rate.lock().await.turn().await;
                    let outcome = self.repair(client, kind, &known).await?;
                    let name = match &outcome {
                        Outcome::Failed(_) => "failed",
                        Outcome::Settled => "settled",
                        _ => "repaired",
                    };
                    metrics::repair(kind.name(), name);
                    let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
                    if begun.elapsed() > Duration::from_secs(60) {
                        tracing::info!(peer = %self.peer, "still repairing drift");
                        *begun = Instant::now();
                    }
                    outcome
                }
            };
            told(kind, &known, &outcome);
            Ok(())
        })
        .await
    }

    async fn repair(&self, client: &Client, kind: Drift, seen: &Placement) -> Result<Outcome> {
        let multihash = &seen.multihash;
        let Some(known) = self.ledger.placement(multihash, self.peer).await? else { return Ok(Outcome::Settled) };
        if drift(&known, |multihash| self.quarantined.contains(multihash)) != Some(kind) {
            return Ok(Outcome::Settled);
        }
        let Some(want) = known.want else { return Ok(Outcome::Settled) };
        self.clock.saw(want.generation);
        let pins = self.ledger.pins_of(multihash, None, 100).await?.items;
        let done = match want.wanted {
            true => match pins.iter().find_map(|pin| Some((pin, records::forms(multihash, pin.key.codec).pop()?))) {
                Some((pin, cid)) => {
                    let name = pin.name.as_ref().map(|name| name.as_str().to_owned());
                    let options = PinOptions { name, progress_stall: Some(STALL), ..PinOptions::default() };
                    match client.pin_add(&cid, &options).await {
                        Ok(adding) => adding.finish().await,
                        Err(err) => Err(err),
                    }
                }
                None => return Ok(Outcome::Failed("nobody pins it, so its codec is not known".to_owned())),
            },
            false => {
                let codecs: Vec<u64> = pins.iter().map(|pin| pin.key.codec).collect();
                unpin(client, multihash, &codecs).await
            }
        };
        let (held, error) = match &done {
            Ok(()) => (want.wanted, None),
            // Nothing was learnt about the pin itself.
            Err(err) if !matches!(err.class(), Class::Failed | Class::Stalled) => {
                return Ok(Outcome::Failed(err.to_string()));
            }
            Err(err) => (!want.wanted, Some(err.to_string().chars().take(ERROR_CHARS_MAX).collect::<String>())),
        };
        let have = Have {
            generation: self.clock.next(),
            held,
            answers: Some(want.generation),
            size_bytes: known.have.and_then(|have| have.size_bytes),
            error: error.clone(),
            seen_ms: now_ms(),
        };
        self.ledger.have(multihash.clone(), self.peer.clone(), have).await?;
        match error {
            None => {
                metrics::event(if held { "pinned" } else { "unpinned" });
                let asked_ms = u64::try_from(want.generation.get() / 1000).unwrap_or(0);
                let seconds = now_ms().saturating_sub(asked_ms) as f64 / 1000.0;
                metrics::end_to_end("repair", if held { "pin" } else { "unpin" }, seconds);
                Ok(Outcome::Repaired)
            }
            Some(why) => Ok(Outcome::Failed(why)),
        }
    }
}

/// Unpins a root by whatever CIDs it was pinned.
async fn unpin(client: &Client, multihash: &Multihash, codecs: &[u64]) -> basalt_kubo::Result<()> {
    for cid in records::all_forms(multihash, codecs) {
        match client.pin_rm(&cid, true).await? {
            Unpinned::Removed | Unpinned::WasNot => {}
        }
    }
    Ok(())
}

/// What `basalt plane drift` was asked.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Repair it.
    pub repair: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Repairs a second; 0: as fast as it goes.
    pub rate: f64,
    /// Of this peer, instead of this node's Kubo.
    pub peer: Option<&'a str>,
    /// How long what was decided is left alone.
    pub grace: Duration,
    /// Print one JSON object.
    pub json: bool,
}

/// Mismatching placements that a JSON object names.
const NAMED_MAX: usize = 10_000;

/// `basalt plane drift`.
pub async fn command(node: &Path, loaded: &Loaded, asked: &Asked<'_>) -> Ended {
    if !(0.0..=1e6).contains(&asked.rate) {
        return Err(Failure::usage(format!("--rate {}: write a number from 0 to 1000000", asked.rate)));
    }
    let ledger = ledger::reach(node, loaded).await?;
    let client = match (asked.peer, &loaded.agent.plane.kubo) {
        (Some(_), _) => None,
        (None, Some(kubo)) => Some(kubo.client()?),
        (None, None) => {
            return Err(Failure::usage("which peer? set [kubo] api to this node's Kubo, or name one with --peer"));
        }
    };
    let peer = match (asked.peer, &client) {
        (Some(peer), _) => peer.to_owned(),
        (None, Some(client)) => client.id().await.map_err(|err| Failure::new(err.to_string()))?.id,
        (None, None) => String::new(),
    };
    let peer: Peer = peer.parse().map_err(|err: basalt_stateplane::NameError| Failure::usage(err.to_string()))?;
    let quarantined = match client {
        Some(_) => scrub::quarantined_blocks(node).await?,
        None => HashSet::new(),
    };
    let clock = Clock::new();
    let round = Round { ledger: &*ledger, clock: &clock, peer: &peer, quarantined: &quarantined, grace: asked.grace };
    let what = match &client {
        Some(client) if asked.repair && !asked.dry_run => Do::Repair(client, asked.rate),
        _ => Do::Nothing,
    };
    let (named, left) = (Mutex::new(Vec::new()), Mutex::new(0_u64));
    let seen = round.run(what, |kind, known, outcome| {
        let said = match (outcome, kind) {
            (Outcome::Found, Drift::Surplus) if asked.repair => "would be unpinned".to_owned(),
            (Outcome::Found, _) if asked.repair => "would be pinned".to_owned(),
            (Outcome::Found, _) => String::new(),
            (Outcome::Repaired, _) => "repaired".to_owned(),
            (Outcome::Settled, _) => "settled by itself".to_owned(),
            (Outcome::Failed(why), _) => format!("failed: {why}"),
        };
        if !matches!(outcome, Outcome::Repaired | Outcome::Settled) {
            *left.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        }
        // The codec would take a read more; the multihash says which it is.
        let cid = records::forms(&known.multihash, RAW).pop().map(|cid| cid.to_string()).unwrap_or_default();
        if !asked.json {
            say!("{:<11}  {cid}  {said}", kind.name());
            return;
        }
        let mut named = named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < NAMED_MAX {
            named.push(json!({ "kind": kind.name(), "cid": cid, "outcome": said }));
        }
    });
    let seen = seen.await.map_err(failure)?;
    let left = left.into_inner().unwrap_or_else(PoisonError::into_inner);
    if asked.json {
        let mut object = drift_object(&seen);
        object["peer"] = json!(peer.as_str());
        object["left"] = json!(left);
        object["found"] = json!(named.into_inner().unwrap_or_else(PoisonError::into_inner));
        say!("{object}");
    } else {
        say!(
            "{} placements at {peer}: {} missing, {} surplus, {} quarantined; {} pending, {} that nobody decided about",
            seen.placements,
            seen.missing,
            seen.surplus,
            seen.quarantined,
            seen.pending,
            seen.foreign
        );
    }
    match left {
        0 => Ok(()),
        _ => Err(Failure { exit: Exit::Failure, message: String::new() }),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use basalt_kubo::{Auth, Options};
    use basalt_stateplane::{Change, Model, Pin, PinKey, Want};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A Kubo of few words: it pins and unpins, and can't find what is asked for.
    #[derive(Debug, Default)]
    struct Kubo {
        pinned: Mutex<BTreeSet<String>>,
        calls: Mutex<Vec<String>>,
        lost: Option<String>,
    }

    impl Kubo {
        fn answer(&self, call: &str, cid: &str) -> (u16, String) {
            self.calls.lock().unwrap().push(format!("{call} {cid}"));
            let error = |message: &str| (500, json!({ "Message": message, "Code": 0, "Type": "error" }).to_string());
            let mut pinned = self.pinned.lock().unwrap();
            match call {
                "pin/add" if self.lost.as_deref() == Some(cid) => error("block was not found"),
                "pin/add" => {
                    pinned.insert(cid.to_owned());
                    (200, json!({ "Pins": [cid] }).to_string() + "\n")
                }
                "pin/rm" if pinned.remove(cid) => (200, json!({ "Pins": [cid] }).to_string() + "\n"),
                "pin/rm" => error("not pinned or pinned indirectly"),
                other => error(&format!("unexpected call {other}")),
            }
        }

        async fn start(self: &Arc<Kubo>) -> Client {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let kubo = Arc::clone(self);
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let kubo = Arc::clone(&kubo);
                    tokio::spawn(async move {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            head.push(stream.read_u8().await.unwrap());
                        }
                        let head = String::from_utf8(head).unwrap();
                        let target = head.split(' ').nth(1).unwrap();
                        let (path, query) = target.split_once('?').unwrap();
                        let cid = query.split('&').find_map(|part| part.strip_prefix("arg=")).unwrap_or_default();
                        let (status, body) = kubo.answer(path.strip_prefix("/api/v0/").unwrap(), cid);
                        let length = body.len();
                        let answer = format!(
                            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                        );
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    });
                }
            });
            let endpoint = format!("http://{address}").parse().unwrap();
            Client::new(endpoint, &Auth::None, Options::default()).unwrap()
        }
    }

    fn multihash(n: u8) -> Multihash {
        Multihash::from_bytes(&[&[0x12, 0x20][..], &[n; 32]].concat()).unwrap()
    }

    fn cid(n: u8) -> String {
        records::forms(&multihash(n), 0x70).pop().unwrap().to_string()
    }

    /// Wanted as `wants` says, held as `haves`; each wanted one is pinned by somebody.
    async fn scene(ledger: &Model, clock: &Clock, peer: &Peer, wants: &[(u8, bool)], haves: &[u8]) {
        for (n, wanted) in wants {
            let key = PinKey { multihash: multihash(*n), owner: "tenant".parse().unwrap(), codec: 0x70 };
            let pin = Pin {
                key,
                generation: clock.next(),
                name: None,
                tags: BTreeSet::new(),
                replicas: 1,
                expires: None,
                created_ms: 1,
            };
            if *wanted {
                ledger.put(pin).await.unwrap();
            }
            let want = Want { generation: clock.next(), wanted: *wanted };
            ledger.want(multihash(*n), peer.clone(), want).await.unwrap();
        }
        for n in haves {
            let have =
                Have { generation: clock.next(), held: true, answers: None, size_bytes: None, error: None, seen_ms: 1 };
            ledger.apply(&[Change::Have(multihash(*n), peer.clone(), have)]).await.unwrap();
        }
    }

    async fn run(ledger: &Model, clock: &Clock, peer: &Peer, what: Do<'_>) -> (Seen, Vec<(Drift, Multihash, Outcome)>) {
        let quarantined = [multihash(4)].into();
        let round = Round { ledger, clock, peer, quarantined: &quarantined, grace: Duration::ZERO };
        // What was decided in this very millisecond is pending.
        tokio::time::sleep(Duration::from_millis(3)).await;
        let told = Mutex::new(Vec::new());
        let seen = round.run(what, |kind, known, outcome| {
            told.lock().unwrap().push((kind, known.multihash.clone(), outcome.clone()));
        });
        let seen = seen.await.unwrap();
        let mut told = told.into_inner().unwrap();
        told.sort_by(|a, b| a.1.cmp(&b.1));
        (seen, told)
    }

    #[tokio::test]
    async fn a_repair_pins_what_is_missing_unpins_what_is_surplus_and_touches_nothing_else() {
        let (ledger, clock) = (Model::new(), Clock::new());
        let peer: Peer = "12D3KooW".parse().unwrap();
        let pinned = [3, 4, 5].map(cid).into();
        let kubo = Arc::new(Kubo { pinned: Mutex::new(pinned), lost: Some(cid(2)), ..Kubo::default() });
        let client = kubo.start().await;
        // 1 is missing, 2 too and can't be found, 3 is surplus, 4 is damaged, 5 is nobody's, 6 is as it should be.
        let wants = [(1, true), (2, true), (3, false), (4, true), (6, true)];
        scene(&ledger, &clock, &peer, &wants, &[3, 4, 5, 6]).await;
        let (seen, found) = run(&ledger, &clock, &peer, Do::Nothing).await;
        assert_eq!((seen.missing, seen.surplus, seen.quarantined, seen.foreign), (2, 1, 1, 1));
        let kinds: Vec<_> = found.iter().map(|(kind, of, _)| (*kind, of.clone())).collect();
        let wanted = [(Drift::Missing, 1), (Drift::Missing, 2), (Drift::Surplus, 3), (Drift::Quarantined, 4)];
        assert_eq!(kinds, wanted.map(|(kind, n)| (kind, multihash(n))));
        assert!(kubo.calls.lock().unwrap().is_empty(), "only looking does nothing");

        let (_, done) = run(&ledger, &clock, &peer, Do::Repair(&client, 0.0)).await;
        let outcome = |n: u8| done.iter().find(|(_, of, _)| *of == multihash(n)).map(|(.., outcome)| outcome.clone());
        assert_eq!(
            (outcome(1), outcome(3), outcome(4)),
            (Some(Outcome::Repaired), Some(Outcome::Repaired), Some(Outcome::Repaired))
        );
        assert!(matches!(outcome(2), Some(Outcome::Failed(why)) if why.contains("block was not found")));
        let wanted: BTreeSet<_> = [1, 4, 5].map(cid).into();
        assert_eq!(*kubo.pinned.lock().unwrap(), wanted, "6 was held already, 5 is nobody's");
        let failed = ledger.placement(&multihash(2), &peer).await.unwrap().unwrap().have.unwrap();
        assert!(!failed.held && failed.error.unwrap().contains("not found"));
        let (seen, _) = run(&ledger, &clock, &peer, Do::Nothing).await;
        assert_eq!((seen.missing, seen.surplus), (1, 0));
    }

    #[tokio::test]
    async fn a_kubo_that_is_away_is_no_news_of_its_pins() {
        let (ledger, clock) = (Model::new(), Clock::new());
        let peer: Peer = "12D3KooW".parse().unwrap();
        scene(&ledger, &clock, &peer, &[(1, true)], &[]).await;
        let nobody = Client::new("http://127.0.0.1:1".parse().unwrap(), &Auth::None, Options::default()).unwrap();
        let (_, done) = run(&ledger, &clock, &peer, Do::Repair(&nobody, 0.0)).await;
        assert!(matches!(&done[0].2, Outcome::Failed(why) if why.contains("127.0.0.1:1")), "{done:?}");
        assert_eq!(ledger.placement(&multihash(1), &peer).await.unwrap().unwrap().have, None);
    }

    #[tokio::test]
    async fn repairs_keep_to_their_rate() {
        let (ledger, clock) = (Model::new(), Clock::new());
        let peer: Peer = "12D3KooW".parse().unwrap();
        let kubo = Arc::new(Kubo::default());
        let client = kubo.start().await;
        scene(&ledger, &clock, &peer, &[(1, true), (2, true), (3, true), (7, true), (8, true)], &[]).await;
        let begun = Instant::now();
        run(&ledger, &clock, &peer, Do::Repair(&client, 20.0)).await;
        assert_eq!(kubo.pinned.lock().unwrap().len(), 5);
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    }
}
