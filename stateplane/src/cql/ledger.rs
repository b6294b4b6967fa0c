//! The ledger over CQL. `schema.rs` has the tables.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    hash::Hasher,
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use futures_util::future::{join_all, try_join_all};
use scylla::{
    deserialize::row::DeserializeRow,
    response::{PagingState, query_result::QueryResult},
    serialize::row::SerializeRow,
    statement::prepared::PreparedStatement,
};
use siphasher::sip::SipHasher24;

use super::{
    CqlOptions, Dialect,
    schema::{Answer, read_key, status_of},
    session::{Ask, Connected},
};
use crate::{
    Bucket, Change, Claim, Class, Conditional, Cursor, Error, Expiry, ExpiryShard, Generation, Have, Multihash,
    NameError, Operation, Owner, PAGE_MAX, Page, Peer, Pin, PinKey, PinLedger, Placement, PlaneKey, Registration,
    Result, Slot, Tag, Want,
    codec::{StoredRegistration, from_bytes},
    ledger::{check_outcome, conditional_key},
    record::describe_operation,
};

/// Buckets in use that are read ahead of a list.
const BUCKETS_AHEAD: usize = 64;
/// Buckets known to be noted as used; when there are more, they are noted again.
const NOTED_MAX: usize = 1 << 20;
/// A hint whose pin is not there is dropped only once it is so old that no put can still be about to write the pin.
const HINT_AGE_MIN_MICROS: i64 = 86_400_000_000;

/// A ledger in a keyspace that a fleet shares. Cheap to clone is an `Arc` of it; one a process is enough.
pub struct CqlLedger {
    db: Connected,
    key: PlaneKey,
    statements: Statements,
    noted: Mutex<HashSet<u64>>,
}

impl fmt::Debug for CqlLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CqlLedger").field("keyspace", &self.db.options.keyspace).finish_non_exhaustive()
    }
}

macro_rules! statements {
    ($($name:ident: $ask:ident, $text:literal;)*) => {
        struct Statements { $($name: PreparedStatement,)* }

        impl Statements {
            async fn prepare(db: &Connected) -> Result<Statements> {
                // Everything at once, and before anything is asked: what the schema lacks is known at the start.
                let text = |text: &str| text.replace("$k", &db.options.keyspace).replace("$bypass", db.dialect.bypass_cache());
                Ok(Statements { $($name: db.prepare(Ask::$ask, &text($text)).await?,)* })
            }
        }
    };
}

statements! {
    put_pin: Write, "INSERT INTO $k.pins (mh, owner, codec, gen, name, tags, replicas, expires, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    remove_pin: Write, "DELETE FROM $k.pins USING TIMESTAMP ? WHERE mh = ? AND owner = ? AND codec = ?";
    pin: Read, "SELECT mh, owner, codec, gen, name, tags, replicas, expires, created FROM $k.pins WHERE mh = ? AND owner = ? AND codec = ?";
    pins_of: Scan, "SELECT mh, owner, codec, gen, name, tags, replicas, expires, created FROM $k.pins WHERE mh = ?";
    pins: Scan, "SELECT mh, owner, codec, gen, name, tags, replicas, expires, created FROM $k.pins$bypass";
    put_owner: Write, "INSERT INTO $k.pins_by_owner (owner, bucket, mh, codec, gen) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
    remove_owner: Write, "DELETE FROM $k.pins_by_owner USING TIMESTAMP ? WHERE owner = ? AND bucket = ? AND mh = ? AND codec = ?";
    owner_first: Scan, "SELECT mh, codec, gen FROM $k.pins_by_owner WHERE owner = ? AND bucket = ? LIMIT ?";
    owner_after: Scan, "SELECT mh, codec, gen FROM $k.pins_by_owner WHERE owner = ? AND bucket = ? AND (mh, codec) > (?, ?) LIMIT ?";
    put_tag: Write, "INSERT INTO $k.pins_by_tag (owner, tag, bucket, mh, codec, gen) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    remove_tag: Write, "DELETE FROM $k.pins_by_tag USING TIMESTAMP ? WHERE owner = ? AND tag = ? AND bucket = ? AND mh = ? AND codec = ?";
    tag_first: Scan, "SELECT mh, codec, gen FROM $k.pins_by_tag WHERE owner = ? AND tag = ? AND bucket = ? LIMIT ?";
    tag_after: Scan, "SELECT mh, codec, gen FROM $k.pins_by_tag WHERE owner = ? AND tag = ? AND bucket = ? AND (mh, codec) > (?, ?) LIMIT ?";
    want: Write, "UPDATE $k.placements USING TIMESTAMP ? SET want_gen = ?, wanted = ? WHERE mh = ? AND peer = ?";
    want_at: Write, "UPDATE $k.placements_by_peer USING TIMESTAMP ? SET want_gen = ?, wanted = ? WHERE peer = ? AND bucket = ? AND mh = ?";
    have: Write, "UPDATE $k.placements USING TIMESTAMP ? SET have_gen = ?, held = ?, answers = ?, size = ?, error = ?, seen = ? WHERE mh = ? AND peer = ?";
    have_at: Write, "UPDATE $k.placements_by_peer USING TIMESTAMP ? SET have_gen = ?, held = ?, answers = ?, size = ?, error = ?, seen = ? WHERE peer = ? AND bucket = ? AND mh = ?";
    forget: Write, "DELETE FROM $k.placements USING TIMESTAMP ? WHERE mh = ? AND peer = ?";
    forget_at: Write, "DELETE FROM $k.placements_by_peer USING TIMESTAMP ? WHERE peer = ? AND bucket = ? AND mh = ?";
    placement: Read, "SELECT mh, peer, want_gen, wanted, have_gen, held, answers, size, error, seen FROM $k.placements WHERE mh = ? AND peer = ?";
    placements: Scan, "SELECT mh, peer, want_gen, wanted, have_gen, held, answers, size, error, seen FROM $k.placements WHERE mh = ?";
    peer_first: Scan, "SELECT mh, peer, want_gen, wanted, have_gen, held, answers, size, error, seen FROM $k.placements_by_peer WHERE peer = ? AND bucket = ? LIMIT ?";
    peer_after: Scan, "SELECT mh, peer, want_gen, wanted, have_gen, held, answers, size, error, seen FROM $k.placements_by_peer WHERE peer = ? AND bucket = ? AND mh > ? LIMIT ?";
    note_bucket: Write, "INSERT INTO $k.used_buckets (kind, id, bucket) VALUES (?, ?, ?)";
    buckets: Scan, "SELECT bucket FROM $k.used_buckets WHERE kind = ? AND id = ? AND bucket >= ? LIMIT ?";
    put_expiry: Write, "INSERT INTO $k.expiries (slot, shard, expires, mh, owner, codec, gen) VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    expiries: Scan, "SELECT expires, mh, owner, codec, gen FROM $k.expiries WHERE slot = ? AND shard = ?";
    drop_slot: Write, "DELETE FROM $k.expiries WHERE slot = ? AND shard = ?";
    close_slot: Write, "UPDATE $k.expiry_closed USING TIMESTAMP ? SET slot = ? WHERE shard = ?";
    closed_slot: Read, "SELECT slot FROM $k.expiry_closed WHERE shard = ?";
    register: Write, "INSERT INTO $k.nodes (peer, told) VALUES (?, ?) USING TIMESTAMP ?";
    strike_off: Write, "DELETE FROM $k.nodes USING TIMESTAMP ? WHERE peer = ?";
    nodes: Scan, "SELECT peer, told FROM $k.nodes";
    peers: Scan, "SELECT DISTINCT kind, id FROM $k.used_buckets$bypass";
    claim: Claim, "INSERT INTO $k.operations (operation, claimant) VALUES (?, ?) IF NOT EXISTS";
    finish: Claim, "UPDATE $k.operations SET outcome = ? WHERE operation = ? IF claimant = ?";
    claim_pin: Claim, "INSERT INTO $k.pin_claims (mh, owner, codec, expected, claim, change) VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS";
    reclaim_pin: Claim, "UPDATE $k.pin_claims SET claim = ?, change = ? WHERE mh = ? AND owner = ? AND codec = ? AND expected = ? IF claim = ?";
}

type PinRow = (Vec<u8>, String, i64, i64, String, Option<Vec<String>>, i32, i64, i64);
type PlacementRow = (
    Vec<u8>,
    String,
    Option<i64>,
    Option<bool>,
    Option<i64>,
    Option<bool>,
    Option<i64>,
    Option<i64>,
    Option<String>,
    Option<i64>,
);

fn corrupt(tried: &str, why: impl fmt::Display) -> Error {
    Error::new(tried, Class::Corrupt, format!("a row can't be read: {why}"))
}

fn name<T>(parsed: Result<T, NameError>, tried: &str) -> Result<T> {
    parsed.map_err(|err| corrupt(tried, err))
}

fn generation(number: i64, tried: &str) -> Result<Generation> {
    Generation::new(number).ok_or_else(|| corrupt(tried, format!("{number} is no generation")))
}

fn unsigned(number: i64, tried: &str) -> Result<u64> {
    u64::try_from(number).map_err(|_| corrupt(tried, format!("{number} is below zero")))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn pin_of(
    (mh, owner, codec, generation_, label, tags, replicas, expires, created): PinRow,
    tried: &str,
) -> Result<Pin> {
    let tags: Result<BTreeSet<Tag>, NameError> = tags.unwrap_or_default().iter().map(|tag| tag.parse()).collect();
    let key = PinKey {
        multihash: name(Multihash::from_bytes(&mh), tried)?,
        owner: name(owner.parse(), tried)?,
        codec: unsigned(codec, tried)?,
    };
    Ok(Pin {
        key,
        generation: generation(generation_, tried)?,
        name: if label.is_empty() { None } else { Some(name(label.parse(), tried)?) },
        tags: name(tags, tried)?,
        replicas: u16::try_from(replicas).map_err(|_| corrupt(tried, format!("{replicas} replicas")))?,
        expires: if expires == 0 { None } else { Some(unsigned(expires, tried)?) },
        created_ms: unsigned(created, tried)?,
    })
}

/// `None`: what is left of a placement that was forgotten.
fn placement_of(row: PlacementRow, tried: &str) -> Result<Option<Placement>> {
    let (mh, peer, want_gen, wanted, have_gen, held, answers, size, error, seen) = row;
    let want = match (want_gen, wanted) {
        (Some(at), Some(wanted)) => Some(Want { generation: generation(at, tried)?, wanted }),
        _ => None,
    };
    let have = match (have_gen, held) {
        (Some(at), Some(held)) => Some(Have {
            generation: generation(at, tried)?,
            held,
            answers: answers.and_then(Generation::new),
            size_bytes: size.and_then(|size| u64::try_from(size).ok()),
            error: error.filter(|error| !error.is_empty()),
            seen_ms: unsigned(seen.unwrap_or(0), tried)?,
        }),
        _ => None,
    };
    if want.is_none() && have.is_none() {
        return Ok(None);
    }
    Ok(Some(Placement {
        multihash: name(Multihash::from_bytes(&mh), tried)?,
        peer: name(peer.parse(), tried)?,
        want,
        have,
    }))
}

/// Names the list that a cursor belongs to.
fn list_id(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = SipHasher24::new();
    for part in parts {
        hasher.write_u64(part.len() as u64);
        hasher.write(part);
    }
    hasher.finish().to_be_bytes()
}

/// What of a cursor comes after its list's name.
fn resume<'a>(after: Option<&'a Cursor>, list: [u8; 8], tried: &str) -> Result<Option<&'a [u8]>> {
    match after {
        None => Ok(None),
        Some(Cursor(bytes)) => match bytes.split_first_chunk::<8>() {
            Some((of, rest)) if *of == list => Ok(Some(rest)),
            _ => Err(Error::new(tried, Class::Argument, "the cursor is of another list")),
        },
    }
}

fn limited(limit: usize, tried: &str) -> Result<usize> {
    if limit == 0 {
        return Err(Error::new(tried, Class::Argument, "a page of no items was asked for"));
    }
    Ok(limit.min(PAGE_MAX))
}

/// A list that goes from bucket to bucket.
struct Buckets<'a> {
    kind: &'static str,
    id: &'a [u8],
    /// Only this one.
    only: Option<Bucket>,
}

/// Where a list of buckets stands: after this multihash and codec of this bucket.
struct Place {
    bucket: u16,
    multihash: Vec<u8>,
    codec: i64,
}

impl Place {
    fn to_cursor(&self, list: [u8; 8]) -> Cursor {
        Cursor([&list[..], &self.bucket.to_be_bytes(), &self.codec.to_be_bytes(), &self.multihash].concat())
    }

    fn read(bytes: &[u8], tried: &str) -> Result<Place> {
        let read = || {
            let (bucket, rest) = bytes.split_first_chunk::<2>()?;
            let (codec, multihash) = rest.split_first_chunk::<8>()?;
            let codec = i64::from_be_bytes(*codec);
            Some(Place { bucket: u16::from_be_bytes(*bucket), codec, multihash: multihash.to_vec() })
        };
        read().ok_or_else(|| Error::new(tried, Class::Argument, "the cursor is cut"))
    }
}

impl CqlLedger {
    /// Connects, checks the schema and prepares all statements.
    pub async fn open(options: &CqlOptions) -> Result<CqlLedger> {
        let db = Connected::connect(options).await?;
        status_of(&db).await?.check()?;
        let key = read_key(&db).await?;
        let statements = Statements::prepare(&db).await?;
        Ok(CqlLedger { db, key, statements, noted: Mutex::default() })
    }

    /// Which database it is.
    pub fn dialect(&self) -> Dialect {
        self.db.dialect
    }

    async fn execute(
        &self,
        tried: &str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryResult> {
        self.db.tries(tried, || self.db.session.execute_unpaged(statement, &values)).await
    }

    async fn rows<R>(&self, tried: &str, statement: &PreparedStatement, values: impl SerializeRow) -> Result<Vec<R>>
    where
        R: for<'f, 'm> DeserializeRow<'f, 'm>,
    {
        let found = self.execute(tried, statement, values).await?;
        let rows = found.into_rows_result().map_err(|err| corrupt(tried, err))?;
        let rows = rows.rows::<R>().map_err(|err| corrupt(tried, err))?;
        rows.map(|row| row.map_err(|err| corrupt(tried, err))).collect()
    }

    /// A page of a query, by the server's own paging.
    async fn page<R>(
        &self,
        tried: &str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
        list: [u8; 8],
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<(Vec<R>, Option<Cursor>)>
    where
        R: for<'f, 'm> DeserializeRow<'f, 'm>,
    {
        let limit = limited(limit, tried)?;
        let state = match resume(after, list, tried)? {
            None => PagingState::start(),
            Some(state) => PagingState::new_from_raw_bytes(state),
        };
        let mut statement = statement.clone();
        statement.set_page_size(i32::try_from(limit).unwrap_or(i32::MAX));
        let attempt = || self.db.session.execute_single_page(&statement, &values, state.clone());
        let (found, next) = self.db.tries(tried, attempt).await?;
        let rows = found.into_rows_result().map_err(|err| corrupt(tried, err))?;
        let rows = rows.rows::<R>().map_err(|err| corrupt(tried, err))?;
        let rows: Result<Vec<R>> = rows.map(|row| row.map_err(|err| corrupt(tried, err))).collect();
        let next = match next.into_paging_control_flow() {
            ControlFlow::Break(()) => None,
            ControlFlow::Continue(state) => state.as_bytes_slice().map(|state| Cursor([&list[..], state].concat())),
        };
        Ok((rows?, next))
    }

    /// Notes that a bucket has rows, before it gets its first.
    async fn note_bucket(&self, tried: &str, kind: &str, id: &[u8], bucket: i32) -> Result<()> {
        let note = u64::from_be_bytes(list_id(&[kind.as_bytes(), id, &bucket.to_be_bytes()]));
        if self.noted.lock().unwrap_or_else(PoisonError::into_inner).contains(&note) {
            return Ok(());
        }
        self.execute(tried, &self.statements.note_bucket, (kind, id, bucket)).await?;
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() >= NOTED_MAX {
            noted.clear();
        }
        noted.insert(note);
        Ok(())
    }

    async fn make(&self, change: &Change) -> Result<()> {
        let tried = change.describe();
        let at = change.generation().get();
        let bucket = i32::from(self.key.bucket(change.multihash()).0);
        let mh = change.multihash().as_bytes();
        let s = &self.statements;
        match change {
            Change::Put(pin) => self.put_pin(pin, bucket, &tried).await,
            Change::Remove(key, _) => {
                let (owner, codec) = (key.owner.as_str(), signed(key.codec));
                self.execute(&tried, &s.remove_pin, (at, mh, owner, codec)).await?;
                // After the pin: it must not be there and not be found.
                self.execute(&tried, &s.remove_owner, (at, owner, bucket, mh, codec)).await.map(drop)
            }
            Change::Want(_, peer, want) => {
                let peer = peer.as_str();
                self.note_bucket(&tried, "peer", peer.as_bytes(), bucket).await?;
                tokio::try_join!(
                    self.execute(&tried, &s.want_at, (at, at, want.wanted, peer, bucket, mh)),
                    self.execute(&tried, &s.want, (at, at, want.wanted, mh, peer)),
                )
                .map(drop)
            }
            Change::Have(_, peer, have) => {
                let peer = peer.as_str();
                self.note_bucket(&tried, "peer", peer.as_bytes(), bucket).await?;
                // No nulls: each would be a tombstone.
                let answers = have.answers.map_or(0, Generation::get);
                let size = have.size_bytes.map_or(-1, signed);
                let error = have.error.as_deref().unwrap_or("");
                let seen = signed(have.seen_ms);
                tokio::try_join!(
                    self.execute(&tried, &s.have_at, (at, at, have.held, answers, size, error, seen, peer, bucket, mh)),
                    self.execute(&tried, &s.have, (at, at, have.held, answers, size, error, seen, mh, peer)),
                )
                .map(drop)
            }
            Change::Forget(_, peer, _) => {
                let peer = peer.as_str();
                tokio::try_join!(
                    self.execute(&tried, &s.forget_at, (at, peer, bucket, mh)),
                    self.execute(&tried, &s.forget, (at, mh, peer)),
                )
                .map(drop)
            }
        }
    }

    async fn put_pin(&self, pin: &Pin, bucket: i32, tried: &str) -> Result<()> {
        let at = pin.generation.get();
        let s = &self.statements;
        let (mh, owner, codec) = (pin.key.multihash.as_bytes(), pin.key.owner.as_str(), signed(pin.key.codec));
        let by_owner = async {
            self.note_bucket(tried, "owner", owner.as_bytes(), bucket).await?;
            self.execute(tried, &s.put_owner, (owner, bucket, mh, codec, at, at)).await.map(drop)
        };
        let by_tags = try_join_all(pin.tags.iter().map(|tag| async move {
            self.note_bucket(tried, "tag", &tag_id(&pin.key.owner, tag), bucket).await?;
            self.execute(tried, &s.put_tag, (owner, tag.as_str(), bucket, mh, codec, at, at)).await.map(drop)
        }));
        let by_expiry = async {
            let Some(expires) = pin.expires else { return Ok(()) };
            let slot = signed(Slot::of_hint(expires, SystemTime::now()).0);
            let shard = i32::from(self.key.expiry_shard(&pin.key).0);
            self.execute(tried, &s.put_expiry, (slot, shard, signed(expires), mh, owner, codec, at, at)).await.map(drop)
        };
        tokio::try_join!(by_owner, by_tags, by_expiry)?;
        let label = pin.name.as_ref().map_or("", |name| name.as_str());
        let tags: Vec<&str> = pin.tags.iter().map(Tag::as_str).collect();
        let (expires, created) = (signed(pin.expires.unwrap_or(0)), signed(pin.created_ms));
        let values = (mh, owner, codec, at, label, tags, i32::from(pin.replicas), expires, created, at);
        self.execute(tried, &s.put_pin, values).await.map(drop)
    }

    /// Rows of the buckets in use, in order, at most `limit`; whether there are more.
    async fn bucket_rows<R, F, Fut>(
        &self,
        tried: &str,
        of: &Buckets<'_>,
        start: Option<Place>,
        limit: usize,
        read: F,
    ) -> Result<(Vec<(u16, R)>, bool)>
    where
        F: Fn(u16, Option<(Vec<u8>, i64)>, i32) -> Fut,
        Fut: Future<Output = Result<Vec<R>>>,
    {
        let mut rows = Vec::new();
        let (mut from, mut inside) = match start {
            None => (of.only.map_or(0, |only| i32::from(only.0)), None),
            Some(place) => (i32::from(place.bucket), Some((place.multihash, place.codec))),
        };
        // One more tells whether there are more.
        let wanted = limit + 1;
        loop {
            let buckets: Vec<(i32,)> = match of.only {
                Some(only) => vec![(i32::from(only.0),)],
                None => {
                    let values = (of.kind, of.id, from, BUCKETS_AHEAD as i32);
                    self.rows(tried, &self.statements.buckets, values).await?
                }
            };
            // Few at first, as the first may be enough.
            for some in buckets.chunks(16) {
                let rest = i32::try_from(wanted - rows.len()).unwrap_or(i32::MAX);
                let some: Vec<u16> = some.iter().filter_map(|(bucket,)| u16::try_from(*bucket).ok()).collect();
                let found = join_all(some.iter().map(|bucket| {
                    let inside = inside.clone().filter(|_| i32::from(*bucket) == from);
                    read(*bucket, inside, rest)
                }));
                for (bucket, found) in some.iter().zip(found.await) {
                    rows.extend(found?.into_iter().map(|row| (*bucket, row)));
                }
                if rows.len() >= wanted {
                    rows.truncate(limit);
                    return Ok((rows, true));
                }
            }
            match buckets.last() {
                Some((last,)) if of.only.is_none() && buckets.len() == BUCKETS_AHEAD => {
                    (from, inside) = (last + 1, None)
                }
                _ => return Ok((rows, false)),
            }
        }
    }

    /// The pins that a list of hints leads to. Hints that lead nowhere are dropped once they can't be of a put under way.
    async fn hinted(
        &self,
        owner: &Owner,
        tag: Option<&Tag>,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Pin>> {
        let (kind, id, tried) = match tag {
            None => ("owner", owner.as_str().as_bytes().to_vec(), format!("list pins of {owner}")),
            Some(tag) => ("tag", tag_id(owner, tag), format!("list pins of {owner} with tag {tag}")),
        };
        let (of, tried) = (&Buckets { kind, id: &id, only: None }, tried.as_str());
        let list = list_id(&[kind.as_bytes(), &id]);
        let limit = limited(limit, tried)?;
        let start = resume(after, list, tried)?.map(|bytes| Place::read(bytes, tried)).transpose()?;
        let s = &self.statements;
        let read = |bucket: u16, inside: Option<(Vec<u8>, i64)>, limit: i32| async move {
            let (owner, bucket) = (owner.as_str(), i32::from(bucket));
            match (tag, inside) {
                (None, None) => self.rows::<(Vec<u8>, i64, i64)>(tried, &s.owner_first, (owner, bucket, limit)).await,
                (None, Some((mh, codec))) => self.rows(tried, &s.owner_after, (owner, bucket, mh, codec, limit)).await,
                (Some(tag), None) => self.rows(tried, &s.tag_first, (owner, tag.as_str(), bucket, limit)).await,
                (Some(tag), Some((mh, codec))) => {
                    self.rows(tried, &s.tag_after, (owner, tag.as_str(), bucket, mh, codec, limit)).await
                }
            }
        };
        let (hints, more) = self.bucket_rows(tried, of, start, limit, read).await?;
        let next = hints.last().filter(|_| more).map(|(bucket, (mh, codec, _))| {
            Place { bucket: *bucket, multihash: mh.clone(), codec: *codec }.to_cursor(list)
        });
        let mut items = Vec::new();
        for some in hints.chunks(self.db.options.in_flight_max) {
            let found = try_join_all(some.iter().map(|(bucket, (mh, codec, at))| async move {
                let multihash = name(Multihash::from_bytes(mh), tried)?;
                let key = PinKey { multihash, owner: owner.clone(), codec: unsigned(*codec, tried)? };
                let pin = self.read_pin(&key, tried).await?;
                let found = pin.filter(|pin| tag.is_none_or(|tag| pin.tags.contains(tag)));
                if found.is_none()
                    && at.saturating_add(HINT_AGE_MIN_MICROS) < crate::generation::micros(SystemTime::now())
                {
                    let (owner, bucket) = (owner.as_str(), i32::from(*bucket));
                    // By its own generation, so that a newer hint stays.
                    match tag {
                        None => {
                            self.execute(tried, &s.remove_owner, (*at, owner, bucket, mh.as_slice(), *codec)).await?
                        }
                        Some(tag) => {
                            let values = (*at, owner, tag.as_str(), bucket, mh.as_slice(), *codec);
                            self.execute(tried, &s.remove_tag, values).await?
                        }
                    };
                }
                Ok::<_, Error>(found)
            }));
            items.extend(found.await?.into_iter().flatten());
        }
        Ok(Page { items, next })
    }

    async fn read_pin(&self, key: &PinKey, tried: &str) -> Result<Option<Pin>> {
        let values = (key.multihash.as_bytes(), key.owner.as_str(), signed(key.codec));
        let rows: Vec<PinRow> = self.rows(tried, &self.statements.pin, values).await?;
        rows.into_iter().next().map(|row| pin_of(row, tried)).transpose()
    }

    async fn change_if(&self, expected: Option<Generation>, change: &Change, key: &PinKey) -> Result<Conditional> {
        let tried = change.describe();
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|err| {
            Error::new(&tried, Class::Unavailable, format!("the system gives no random bytes: {err}"))
        })?;
        let (nonce, bytes) = (nonce.as_slice(), change.to_bytes());
        let (mh, owner, codec) = (key.multihash.as_bytes(), key.owner.as_str(), signed(key.codec));
        let at = expected.map_or(0, Generation::get);
        let s = &self.statements;
        let mut holder: Option<Vec<u8>> = None;
        for _ in 0..16 {
            let current = self.read_pin(key, &tried).await?;
            if current.as_ref().map(|pin| pin.generation) != expected || Some(change.generation()) <= expected {
                return Ok(Conditional::Differs(current));
            }
            // Who gets the claim of this generation makes the change. The claim says which, so that anybody can end what its claimant began.
            let answer = match &holder {
                None => self.execute(&tried, &s.claim_pin, (mh, owner, codec, at, nonce, bytes.as_slice())).await?,
                Some(dead) => {
                    let values = (nonce, bytes.as_slice(), mh, owner, codec, at, dead.as_slice());
                    self.execute(&tried, &s.reclaim_pin, values).await?
                }
            };
            let answer = Answer::of(answer, &tried)?;
            if answer.applied || answer.blob("claim") == Some(nonce) {
                self.make(change).await?;
                let now = self.read_pin(key, &tried).await?;
                let made = match change {
                    Change::Put(pin) => now.as_ref().is_some_and(|now| now.generation == pin.generation),
                    _ => now.is_none(),
                };
                // A removal newer than this change was there all the time, or came meanwhile.
                return Ok(if made { Conditional::Applied } else { Conditional::Differs(now) });
            }
            if let Some(theirs) = answer.blob("change") {
                let theirs = Change::from_bytes(theirs)?;
                self.make(&theirs).await?;
            }
            // If the pin is as expected even now, that claim was of an earlier time and leads nowhere: it is taken over.
            holder = answer.blob("claim").map(<[u8]>::to_vec);
        }
        Err(Error::new(tried, Class::Unavailable, "others change this pin all the time"))
    }
}

/// The id under which the buckets of a tag are noted.
fn tag_id(owner: &Owner, tag: &Tag) -> Vec<u8> {
    [owner.as_str().as_bytes(), b"\0", tag.as_str().as_bytes()].concat()
}

#[async_trait]
impl PinLedger for CqlLedger {
    async fn apply(&self, changes: &[Change]) -> Result<()> {
        changes.iter().try_for_each(Change::check)?;
        for some in changes.chunks(self.db.options.in_flight_max) {
            try_join_all(some.iter().map(|change| self.make(change))).await?;
        }
        Ok(())
    }

    async fn apply_if(&self, expected: Option<Generation>, change: &Change) -> Result<Conditional> {
        let key = conditional_key(change)?;
        change.check()?;
        self.change_if(expected, change, key).await
    }

    async fn pin(&self, key: &PinKey) -> Result<Option<Pin>> {
        self.read_pin(key, &format!("read pin {} of {}", key.multihash, key.owner)).await
    }

    async fn pins(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let tried = "list pins";
        let (rows, next) = self.page(tried, &self.statements.pins, (), list_id(&[b"pins"]), after, limit).await?;
        let items: Result<Vec<Pin>> = rows.into_iter().map(|row| pin_of(row, tried)).collect();
        Ok(Page { items: items?, next })
    }

    async fn pins_of(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        let tried = format!("list pins of {multihash}");
        let mh = multihash.as_bytes();
        let list = list_id(&[b"pins of", mh]);
        let (rows, next) = self.page(&tried, &self.statements.pins_of, (mh,), list, after, limit).await?;
        let items: Result<Vec<Pin>> = rows.into_iter().map(|row| pin_of(row, &tried)).collect();
        Ok(Page { items: items?, next })
    }

    async fn pins_of_owner(&self, owner: &Owner, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.hinted(owner, None, after, limit).await
    }

    async fn pins_with_tag(&self, owner: &Owner, tag: &Tag, after: Option<&Cursor>, limit: usize) -> Result<Page<Pin>> {
        self.hinted(owner, Some(tag), after, limit).await
    }

    async fn placement(&self, multihash: &Multihash, peer: &Peer) -> Result<Option<Placement>> {
        let tried = format!("read {multihash} at {peer}");
        let values = (multihash.as_bytes(), peer.as_str());
        let rows: Vec<PlacementRow> = self.rows(&tried, &self.statements.placement, values).await?;
        rows.into_iter().next().map_or(Ok(None), |row| placement_of(row, &tried))
    }

    async fn placements(&self, multihash: &Multihash, after: Option<&Cursor>, limit: usize) -> Result<Page<Placement>> {
        let tried = format!("list placements of {multihash}");
        let mh = multihash.as_bytes();
        let list = list_id(&[b"placements of", mh]);
        let (rows, next) = self.page(&tried, &self.statements.placements, (mh,), list, after, limit).await?;
        let items: Result<Vec<_>> = rows.into_iter().map(|row| placement_of(row, &tried)).collect();
        Ok(Page { items: items?.into_iter().flatten().collect(), next })
    }

    async fn placements_of_peer(
        &self,
        peer: &Peer,
        bucket: Option<Bucket>,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Placement>> {
        let tried = &format!("list placements at {peer}");
        let of = Buckets { kind: "peer", id: peer.as_str().as_bytes(), only: bucket };
        let only = bucket.map(|bucket| bucket.0.to_be_bytes()).unwrap_or_default();
        let list = list_id(&[b"peer", of.id, if bucket.is_some() { &only } else { &[] }]);
        let limit = limited(limit, tried)?;
        let start = resume(after, list, tried)?.map(|bytes| Place::read(bytes, tried)).transpose()?;
        let s = &self.statements;
        let read = |bucket: u16, inside: Option<(Vec<u8>, i64)>, limit: i32| async move {
            let (peer, bucket) = (peer.as_str(), i32::from(bucket));
            match inside {
                None => self.rows::<PlacementRow>(tried, &s.peer_first, (peer, bucket, limit)).await,
                Some((mh, _)) => self.rows(tried, &s.peer_after, (peer, bucket, mh, limit)).await,
            }
        };
        let (rows, more) = self.bucket_rows(tried, &of, start, limit, read).await?;
        let next = rows
            .last()
            .filter(|_| more)
            .map(|(bucket, row)| Place { bucket: *bucket, multihash: row.0.clone(), codec: 0 }.to_cursor(list));
        let items: Result<Vec<_>> = rows.into_iter().map(|(_, row)| placement_of(row, tried)).collect();
        Ok(Page { items: items?.into_iter().flatten().collect(), next })
    }

    async fn peers(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Peer>> {
        let tried = "list peers";
        let (rows, next) = self.page(tried, &self.statements.peers, (), list_id(&[b"peers"]), after, limit).await?;
        let mut items = Vec::new();
        for (kind, id) in rows {
            let (kind, id): (String, Vec<u8>) = (kind, id);
            if kind == "peer" {
                let text = str::from_utf8(&id).map_err(|err| corrupt(tried, err))?;
                items.push(name(text.parse(), tried)?);
            }
        }
        Ok(Page { items, next })
    }

    async fn key(&self) -> Result<PlaneKey> {
        Ok(self.key.clone())
    }

    async fn expiries(
        &self,
        slot: Slot,
        shard: ExpiryShard,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<Expiry>> {
        let tried = format!("list expiries of slot {} and shard {}", slot.0, shard.0);
        let list = list_id(&[b"expiries", &slot.0.to_be_bytes(), &shard.0.to_be_bytes()]);
        let values = (signed(slot.0), i32::from(shard.0));
        let (rows, next) = self.page(&tried, &self.statements.expiries, values, list, after, limit).await?;
        let items: Result<Vec<Expiry>> = rows
            .into_iter()
            .map(|(expires, mh, owner, codec, at): (i64, Vec<u8>, String, i64, i64)| {
                let key = PinKey {
                    multihash: name(Multihash::from_bytes(&mh), &tried)?,
                    owner: name(owner.parse(), &tried)?,
                    codec: unsigned(codec, &tried)?,
                };
                Ok(Expiry { expires: unsigned(expires, &tried)?, key, generation: generation(at, &tried)? })
            })
            .collect();
        Ok(Page { items: items?, next })
    }

    async fn close_slot(&self, slot: Slot, shard: ExpiryShard) -> Result<()> {
        slot.check_over(shard, SystemTime::now())?;
        let tried = format!("close slot {} of expiry shard {}", slot.0, shard.0);
        let (slot, shard) = (signed(slot.0), i32::from(shard.0));
        self.execute(&tried, &self.statements.drop_slot, (slot, shard)).await?;
        // The slot is its own write timestamp: the highest stays.
        self.execute(&tried, &self.statements.close_slot, (slot, slot, shard)).await.map(drop)
    }

    async fn closed_slot(&self, shard: ExpiryShard) -> Result<Option<Slot>> {
        let tried = "read how far expiry is";
        let rows: Vec<(Option<i64>,)> = self.rows(tried, &self.statements.closed_slot, (i32::from(shard.0),)).await?;
        rows.first().and_then(|(slot,)| *slot).map(|slot| Ok(Slot(unsigned(slot, tried)?))).transpose()
    }

    async fn register(&self, told: &Registration) -> Result<()> {
        told.check()?;
        let values = (told.peer.as_str(), told.to_bytes(), told.generation.get());
        self.execute(&format!("register {}", told.peer), &self.statements.register, values).await.map(drop)
    }

    async fn strike_off(&self, peer: &Peer, upto: Generation) -> Result<()> {
        let values = (upto.get(), peer.as_str());
        self.execute(&format!("strike off {peer}"), &self.statements.strike_off, values).await.map(drop)
    }

    async fn registrations(&self, after: Option<&Cursor>, limit: usize) -> Result<Page<Registration>> {
        let tried = "list nodes";
        let (rows, next) = self.page(tried, &self.statements.nodes, (), list_id(&[b"nodes"]), after, limit).await?;
        let mut items = Vec::new();
        for (peer, told) in rows {
            let (peer, told): (String, Option<Vec<u8>>) = (peer, told);
            let Some(told) = told else { continue };
            let stored: StoredRegistration = from_bytes(&told).map_err(|err| corrupt(tried, err.0))?;
            items.extend(stored.registration(name(peer.parse(), tried)?).map_err(|err| corrupt(tried, err.0))?);
        }
        Ok(Page { items, next })
    }

    async fn claim(&self, operation: &Operation, claimant: u128) -> Result<Claim> {
        let tried = describe_operation("claim", operation);
        let ours = claimant.to_be_bytes();
        let answer = self.execute(&tried, &self.statements.claim, (operation.as_str(), ours.as_slice())).await?;
        let answer = Answer::of(answer, &tried)?;
        if answer.applied {
            return Ok(Claim::Ours);
        }
        let holder = answer.blob("claimant").and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        let holder = holder.ok_or_else(|| corrupt(&tried, "its claimant has not 16 bytes"))?;
        let outcome = answer.text("outcome").map(str::to_owned);
        // Ours already: an earlier try was made though its answer was lost, or it is from before a crash.
        if holder == ours && outcome.is_none() {
            return Ok(Claim::Ours);
        }
        Ok(Claim::Taken { claimant: u128::from_be_bytes(holder), outcome })
    }

    async fn finish(&self, operation: &Operation, claimant: u128, outcome: &str) -> Result<bool> {
        check_outcome(operation, outcome)?;
        let tried = describe_operation("finish", operation);
        let ours = claimant.to_be_bytes();
        let values = (outcome, operation.as_str(), ours.as_slice());
        Ok(Answer::of(self.execute(&tried, &self.statements.finish, values).await?, &tried)?.applied)
    }
}
