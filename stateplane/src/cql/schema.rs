//! The schema and how it moves: numbered migrations, each made once, under a lock, in steps that may be made again.
//!
//! A migration expands (adds what older builds don't look at) or contracts (takes away what they need). A contraction records the oldest build that
//! can still work on the result; an older agent then refuses to start rather than fail later.

use std::time::{Duration, Instant};

use scylla::{
    response::query_result::QueryRowsResult,
    value::{CqlValue, Row},
};

use super::{
    CqlOptions, Dialect,
    session::{Ask, Connected, jitter},
};
use crate::{Class, Error, PlaneKey, Result};

/// The schema that this build works on.
pub(super) const VERSION: i32 = 2;
/// A migrator that died holds the lock for so long.
const LOCK_LASTS: Duration = Duration::from_secs(60);
/// How long another migrator is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(150);

struct Migration {
    version: i32,
    name: &'static str,
    /// The oldest build that works on the result.
    oldest_build: i32,
    statements: fn(&CqlOptions, Dialect) -> Vec<String>,
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "pins, placements, expiry, operations", oldest_build: 1, statements: first },
    Migration { version: 2, name: "registered nodes", oldest_build: 1, statements: second },
];

fn table(options: &CqlOptions, dialect: Dialect, name: &str, columns: &str, more: &str) -> String {
    let (keyspace, compaction) = (&options.keyspace, dialect.compaction());
    format!("CREATE TABLE IF NOT EXISTS {keyspace}.{name} ({columns}) WITH compaction = {compaction}{more}")
}

/// A fleet has few nodes, and a list of them reads the whole table.
fn second(options: &CqlOptions, dialect: Dialect) -> Vec<String> {
    vec![table(options, dialect, "nodes", "peer text PRIMARY KEY, told blob", "")]
}

fn first(options: &CqlOptions, dialect: Dialect) -> Vec<String> {
    let table = |name: &str, columns: &str, more: &str| table(options, dialect, name, columns, more);
    let placement = "want_gen bigint, wanted boolean, have_gen bigint, held boolean, answers bigint, size bigint, error text, seen bigint";
    vec![
        table("meta", "name text PRIMARY KEY, value blob", ""),
        table(
            "pins",
            "mh blob, owner text, codec bigint, gen bigint, name text, tags frozen<list<text>>, replicas int, expires bigint, created bigint, \
             PRIMARY KEY ((mh), owner, codec)",
            "",
        ),
        table(
            "pins_by_owner",
            "owner text, bucket int, mh blob, codec bigint, gen bigint, PRIMARY KEY ((owner, bucket), mh, codec)",
            "",
        ),
        table(
            "pins_by_tag",
            "owner text, tag text, bucket int, mh blob, codec bigint, gen bigint, PRIMARY KEY ((owner, tag, bucket), mh, codec)",
            "",
        ),
        table("placements", &format!("mh blob, peer text, {placement}, PRIMARY KEY ((mh), peer)"), ""),
        table(
            "placements_by_peer",
            &format!("peer text, bucket int, mh blob, {placement}, PRIMARY KEY ((peer, bucket), mh)"),
            "",
        ),
        // Which buckets of an owner, tag or peer have ever had a row: else who has three pins is looked for in 65,536 places.
        table("used_buckets", "kind text, id blob, bucket int, PRIMARY KEY ((kind, id), bucket)", ""),
        table(
            "expiries",
            "slot bigint, shard int, expires bigint, mh blob, owner text, codec bigint, gen bigint, \
             PRIMARY KEY ((slot, shard), expires, mh, owner, codec)",
            "",
        ),
        table("expiry_closed", "shard int PRIMARY KEY, slot bigint", ""),
        // Only ever written by lightweight transactions.
        table(
            "operations",
            "operation text PRIMARY KEY, claimant blob, outcome text",
            " AND default_time_to_live = 604800",
        ),
        table(
            "pin_claims",
            "mh blob, owner text, codec bigint, expected bigint, claim blob, change blob, PRIMARY KEY ((mh, owner, codec, expected))",
            " AND default_time_to_live = 86400",
        ),
    ]
}

/// A migration that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its number.
    pub version: i32,
    /// What it is about.
    pub name: String,
    /// The oldest build that works on its result, by the number of the schema it was made for.
    pub oldest_build: i32,
}

/// Where the schema is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaStatus {
    /// Which database it is in.
    pub dialect: Dialect,
    /// Migrations that were made, in order.
    pub applied: Vec<Applied>,
    /// Migrations that this build has and that were not made.
    pub pending: Vec<&'static str>,
}

impl SchemaStatus {
    /// Whether this build works on it, or why not and what to do.
    pub fn check(&self) -> Result<()> {
        let tried = "check the ledger's schema";
        if let Some(later) = self.applied.iter().find(|applied| applied.oldest_build > VERSION) {
            let why = format!(
                "migration {} ({}) took away what this build needs; upgrade this agent",
                later.version, later.name
            );
            return Err(Error::new(tried, Class::Schema, why));
        }
        if !self.pending.is_empty() {
            let why = format!("it lacks: {}; run `basalt plane migrate` on one node", self.pending.join(", "));
            return Err(Error::new(tried, Class::Schema, why));
        }
        Ok(())
    }
}

/// Where the schema is. Changes nothing.
pub async fn status(options: &CqlOptions) -> Result<SchemaStatus> {
    status_of(&Connected::connect(options).await?).await
}

pub(super) async fn status_of(db: &Connected) -> Result<SchemaStatus> {
    let query = format!("SELECT version, name, oldest_build FROM {}.schema_migrations", db.options.keyspace);
    let applied = match db.ask(&query).await {
        Ok(found) => {
            let broken = |err: &dyn std::fmt::Display| {
                Error::new("read the ledger's migrations", Class::Corrupt, err.to_string())
            };
            let rows = found.into_rows_result().map_err(|err| broken(&err))?;
            let rows = rows.rows::<(i32, String, i32)>().map_err(|err| broken(&err))?;
            let mut applied = Vec::new();
            for row in rows {
                let (version, name, oldest_build) = row.map_err(|err| broken(&err))?;
                applied.push(Applied { version, name, oldest_build });
            }
            applied.sort_by_key(|applied| applied.version);
            applied
        }
        // No keyspace or no table: nothing was made.
        Err(err) if err.class() == Class::Schema => Vec::new(),
        Err(err) => return Err(err),
    };
    let made = |version| applied.iter().any(|applied| applied.version == version);
    let pending =
        MIGRATIONS.iter().filter(|migration| !made(migration.version)).map(|migration| migration.name).collect();
    Ok(SchemaStatus { dialect: db.dialect, applied, pending })
}

/// Makes what is pending, under the lock. Of many at the same time one works and the others wait and find it done. Returns what was made.
pub async fn migrate(options: &CqlOptions) -> Result<Vec<&'static str>> {
    let db = Connected::connect(options).await?;
    let before = status_of(&db).await?;
    if before.pending.is_empty() {
        before.check()?;
        return Ok(Vec::new());
    }
    let keyspace = &options.keyspace;
    let replication: String =
        options.replication.iter().map(|(name, replicas)| format!(", '{name}': {replicas}")).collect();
    db.ask(&format!(
        "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy'{replication}}}"
    ))
    .await?;
    // These two come before the lock.
    for (table, columns) in [
        ("schema_lock", "name text PRIMARY KEY, holder blob"),
        ("schema_migrations", "version int PRIMARY KEY, name text, oldest_build int, applied_by text"),
    ] {
        let id = db.dialect.table_id(keyspace, table);
        let compaction = db.dialect.compaction();
        db.ask(&format!(
            "CREATE TABLE IF NOT EXISTS {keyspace}.{table} ({columns}) WITH compaction = {compaction}{id}"
        ))
        .await?;
    }
    let lock = Lock::take(&db).await?;
    let made = migrate_locked(&db, &lock).await;
    let released = lock.release().await;
    let made = made?;
    released?;
    Ok(made)
}

async fn migrate_locked(db: &Connected, lock: &Lock<'_>) -> Result<Vec<&'static str>> {
    let keyspace = &db.options.keyspace;
    let applied = status_of(db).await?.applied;
    let mut made = Vec::new();
    for migration in
        MIGRATIONS.iter().filter(|migration| !applied.iter().any(|applied| applied.version == migration.version))
    {
        for statement in (migration.statements)(&db.options, db.dialect) {
            lock.renew().await?;
            db.ask(&statement).await?;
        }
        if migration.version == 1 {
            draw_key(db).await?;
        }
        lock.renew().await?;
        let note = format!(
            "INSERT INTO {keyspace}.schema_migrations (version, name, oldest_build, applied_by) VALUES (?, ?, ?, ?)"
        );
        let note = db.prepare(Ask::Write, &note).await?;
        let by = concat!("basalt ", env!("CARGO_PKG_VERSION"));
        let values = (migration.version, migration.name, migration.oldest_build, by);
        db.tries("note a migration", || async { db.session.execute_unpaged(&note, values).await.map(drop) }).await?;
        made.push(migration.name);
    }
    Ok(made)
}

/// Draws the hash key, unless there is one.
async fn draw_key(db: &Connected) -> Result<()> {
    let mut drawn = [0; 16];
    getrandom::fill(&mut drawn).map_err(|err| {
        Error::new("draw the hash key", Class::Unavailable, format!("the system gives no random bytes: {err}"))
    })?;
    let text = format!("INSERT INTO {}.meta (name, value) VALUES ('hash-key', ?) IF NOT EXISTS", db.options.keyspace);
    let statement = db.prepare(Ask::Claim, &text).await?;
    db.tries("draw the hash key", || async {
        db.session.execute_unpaged(&statement, (drawn.as_slice(),)).await.map(drop)
    })
    .await
}

/// The ledger's hash key.
pub(super) async fn read_key(db: &Connected) -> Result<PlaneKey> {
    let tried = "read the ledger's hash key";
    let text = format!("SELECT value FROM {}.meta WHERE name = 'hash-key'", db.options.keyspace);
    let statement = db.prepare(Ask::Read, &text).await?;
    let found = db.tries(tried, || db.session.execute_unpaged(&statement, ())).await?;
    let key: Option<[u8; 16]> = found
        .into_rows_result()
        .ok()
        .and_then(|rows| rows.first_row::<(Vec<u8>,)>().ok())
        .and_then(|(bytes,)| bytes.try_into().ok());
    key.map(PlaneKey).ok_or_else(|| Error::new(tried, Class::Schema, "there is none; run `basalt plane migrate`"))
}

struct Lock<'a> {
    db: &'a Connected,
    holder: [u8; 16],
}

impl<'a> Lock<'a> {
    async fn take(db: &'a Connected) -> Result<Lock<'a>> {
        let mut holder = [0; 16];
        getrandom::fill(&mut holder).map_err(|err| {
            Error::new("take the schema lock", Class::Unavailable, format!("the system gives no random bytes: {err}"))
        })?;
        let text = format!(
            "INSERT INTO {}.schema_lock (name, holder) VALUES ('schema', ?) IF NOT EXISTS USING TTL {}",
            db.options.keyspace,
            LOCK_LASTS.as_secs()
        );
        let statement = db.prepare(Ask::Claim, &text).await?;
        let began = Instant::now();
        while began.elapsed() < LOCK_WAIT {
            let answer = db
                .tries("take the schema lock", || db.session.execute_unpaged(&statement, (holder.as_slice(),)))
                .await?;
            let answer = Answer::of(answer, "take the schema lock")?;
            // Ours already: the first try was made though its answer was lost.
            if answer.applied || answer.blob("holder") == Some(&holder) {
                return Ok(Lock { db, holder });
            }
            tokio::time::sleep(jitter(Duration::from_millis(300))).await;
        }
        Err(Error::new(
            "take the schema lock",
            Class::Unavailable,
            format!("another migrator has it for {LOCK_WAIT:?}; look at that one"),
        ))
    }

    async fn renew(&self) -> Result<()> {
        let text = format!(
            "UPDATE {}.schema_lock USING TTL {} SET holder = ? WHERE name = 'schema' IF holder = ?",
            self.db.options.keyspace,
            LOCK_LASTS.as_secs()
        );
        let tried = "keep the schema lock";
        let statement = self.db.prepare(Ask::Claim, &text).await?;
        let holder = self.holder.as_slice();
        let answer = self.db.tries(tried, || self.db.session.execute_unpaged(&statement, (holder, holder))).await?;
        if Answer::of(answer, tried)?.applied {
            return Ok(());
        }
        Err(Error::new(
            tried,
            Class::Unavailable,
            "this migrator was so slow that another took it; run the migration again",
        ))
    }

    async fn release(self) -> Result<()> {
        let text = format!("DELETE FROM {}.schema_lock WHERE name = 'schema' IF holder = ?", self.db.options.keyspace);
        let statement = self.db.prepare(Ask::Claim, &text).await?;
        let holder = self.holder.as_slice();
        self.db
            .tries("release the schema lock", || self.db.session.execute_unpaged(&statement, (holder,)))
            .await
            .map(drop)
    }
}

/// What a lightweight transaction answers: by name, since Cassandra and ScyllaDB send different columns.
pub(super) struct Answer {
    pub(super) applied: bool,
    columns: Vec<(String, Option<CqlValue>)>,
}

impl Answer {
    pub(super) fn of(result: scylla::response::query_result::QueryResult, tried: &str) -> Result<Answer> {
        let broken = |err: &dyn std::fmt::Display| {
            Error::new(tried, Class::Corrupt, format!("the answer of a transaction can't be read: {err}"))
        };
        let rows: QueryRowsResult = result.into_rows_result().map_err(|err| broken(&err))?;
        let names: Vec<String> = rows.column_specs().iter().map(|column| column.name().to_owned()).collect();
        let row: Row = rows.first_row().map_err(|err| broken(&err))?;
        let columns: Vec<_> = names.into_iter().zip(row.columns).collect();
        let applied = columns.iter().find(|(name, _)| name == "[applied]");
        match applied {
            Some((_, Some(CqlValue::Boolean(applied)))) => Ok(Answer { applied: *applied, columns }),
            _ => Err(broken(&"it has no [applied]")),
        }
    }

    fn column(&self, name: &str) -> Option<&CqlValue> {
        self.columns.iter().find(|(column, _)| column == name).and_then(|(_, value)| value.as_ref())
    }

    pub(super) fn blob(&self, name: &str) -> Option<&[u8]> {
        match self.column(name) {
            Some(CqlValue::Blob(bytes)) => Some(bytes),
            _ => None,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.column(name) {
            Some(CqlValue::Text(text)) => Some(text),
            _ => None,
        }
    }
}
