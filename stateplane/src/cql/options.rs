//! How the database is reached and asked, checked as a whole before anything is connected.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use scylla::statement::Consistency;

/// How many replicas must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// One of this datacenter.
    LocalOne,
    /// Most of this datacenter.
    LocalQuorum,
    /// Most of every datacenter. For writes only.
    EachQuorum,
    /// Most of all.
    Quorum,
}

impl Level {
    pub(super) fn consistency(self) -> Consistency {
        match self {
            Level::LocalOne => Consistency::LocalOne,
            Level::LocalQuorum => Consistency::LocalQuorum,
            Level::EachQuorum => Consistency::EachQuorum,
            Level::Quorum => Consistency::Quorum,
        }
    }
}

/// A password, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Files (PEM) for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that the servers' are signed by. A server's certificate must name its IP address.
    pub ca_file: PathBuf,
    /// Our own certificate and key, where the servers ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How the database is reached and asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CqlOptions {
    /// Nodes to ask first, `HOST` or `HOST:PORT`; the others are learnt from them.
    pub contact_points: Vec<String>,
    /// Port where a contact point has none.
    pub port: u16,
    /// Keyspace of this fleet.
    pub keyspace: String,
    /// The datacenter that is asked.
    pub datacenter: String,
    /// Replicas per datacenter, for the migration that makes the keyspace.
    pub replication: BTreeMap<String, u8>,
    /// User and password.
    pub login: Option<(String, Password)>,
    /// TLS; `None`: plain.
    pub tls: Option<Tls>,
    /// Replicas that must answer a read of one record.
    pub read_level: Level,
    /// Replicas that must have a write.
    pub write_level: Level,
    /// Replicas that must answer a list.
    pub scan_level: Level,
    /// A connection that is not made by then is given up.
    pub connect_timeout: Duration,
    /// The same for a read or write of one record, each time it is tried.
    pub point_timeout: Duration,
    /// The same for a page of a list.
    pub scan_timeout: Duration,
    /// The same for a claim.
    pub claim_timeout: Duration,
    /// Connections to each node (each shard, with ScyllaDB).
    pub connections: usize,
    /// Requests under way at a time.
    pub in_flight_max: usize,
    /// Times that a request is made before it is given up.
    pub tries: u32,
    /// Pause before the second try; it doubles, and varies by half.
    pub backoff: Duration,
    /// Longest pause between tries.
    pub backoff_max: Duration,
    /// A read that has not answered by then is also asked of another replica; `None`: never.
    pub speculate_after: Option<Duration>,
}

impl Default for CqlOptions {
    fn default() -> CqlOptions {
        CqlOptions {
            contact_points: vec!["127.0.0.1".to_owned()],
            port: 9042,
            keyspace: "basalt".to_owned(),
            datacenter: "dc1".to_owned(),
            replication: [("dc1".to_owned(), 3)].into(),
            login: None,
            tls: None,
            read_level: Level::LocalQuorum,
            write_level: Level::LocalQuorum,
            scan_level: Level::LocalQuorum,
            connect_timeout: Duration::from_secs(5),
            point_timeout: Duration::from_secs(2),
            scan_timeout: Duration::from_secs(30),
            claim_timeout: Duration::from_secs(5),
            connections: 1,
            in_flight_max: 256,
            tries: 4,
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            speculate_after: Some(Duration::from_millis(100)),
        }
    }
}

impl CqlOptions {
    /// What is wrong with these options, each with its name and the remedy; empty: nothing.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut say = |wrong: bool, what: String| {
            if wrong {
                problems.push(what);
            }
        };
        say(self.contact_points.is_empty(), "contact_points: there is none; name at least one node".to_owned());
        for point in &self.contact_points {
            let host = point.rsplit_once(':').map_or(point.as_str(), |(host, _)| host);
            let port = point.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
            let port_is_wrong = port.is_some_and(|(_, port)| {
                port.parse::<u16>().is_ok_and(|port| port == 0) || port.parse::<u16>().is_err()
            });
            let wrong = host.is_empty() || point.contains("//") || point.contains(char::is_whitespace) || port_is_wrong;
            say(wrong, format!("contact_points: '{}' is neither HOST nor HOST:PORT", point.escape_debug()));
        }
        say(self.port == 0, "port: 0 is no port; 9042 is usual".to_owned());
        say(
            !identifier(&self.keyspace),
            format!(
                "keyspace: '{}' is no name; it begins with a letter and has at most 48 of a-z, 0-9 and _",
                self.keyspace.escape_debug()
            ),
        );
        for name in self.replication.keys().chain([&self.datacenter]) {
            say(!datacenter(name), format!("datacenter: '{}' is no name of a datacenter", name.escape_debug()));
        }
        say(
            !self.replication.contains_key(&self.datacenter),
            format!("replication: it has no '{}', the datacenter that is asked", self.datacenter.escape_debug()),
        );
        for (name, replicas) in &self.replication {
            say(
                !(1..=9).contains(replicas),
                format!("replication: {replicas} replicas in '{name}'; 3 is usual, 1 to 9 are possible"),
            );
        }
        if let Some((user, Password(password))) = &self.login {
            say(user.is_empty(), "user: it is empty".to_owned());
            say(password.is_empty(), "password: it is empty".to_owned());
        }
        say(self.read_level == Level::EachQuorum, "read_level: each_quorum is for writes only".to_owned());
        say(self.scan_level == Level::EachQuorum, "scan_level: each_quorum is for writes only".to_owned());
        for (name, timeout, least) in [
            ("connect_timeout", self.connect_timeout, 100),
            ("point_timeout", self.point_timeout, 10),
            ("scan_timeout", self.scan_timeout, 100),
            ("claim_timeout", self.claim_timeout, 100),
            ("backoff", self.backoff, 1),
            ("backoff_max", self.backoff_max, 1),
        ] {
            let (least, most) = (Duration::from_millis(least), Duration::from_secs(600));
            say(
                timeout < least || timeout > most,
                format!("{name}: {timeout:?} is not between {least:?} and {most:?}"),
            );
        }
        say(self.backoff > self.backoff_max, "backoff: it is longer than backoff_max".to_owned());
        if let Some(after) = self.speculate_after {
            say(
                after >= self.point_timeout,
                format!("speculate_after: {after:?} is not before point_timeout, so it never comes to it"),
            );
            say(
                after < Duration::from_millis(1),
                format!("speculate_after: {after:?} doubles every read; leave it out, or 1 ms or more"),
            );
        }
        say(
            !(1..=64).contains(&self.connections),
            format!("connections: {} is not between 1 and 64", self.connections),
        );
        say(
            !(1..=65_536).contains(&self.in_flight_max),
            format!("in_flight_max: {} is not between 1 and 65536", self.in_flight_max),
        );
        say(!(1..=20).contains(&self.tries), format!("tries: {} is not between 1 and 20", self.tries));
        problems
    }
}

fn identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 48
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn datacenter(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound() {
        assert_eq!(CqlOptions::default().problems(), Vec::<String>::new());
        let points = ["db1", "db1:9043", "10.0.0.1:9042", "[::1]:9042", "::1"].map(str::to_owned).to_vec();
        assert_eq!(CqlOptions { contact_points: points, ..CqlOptions::default() }.problems(), Vec::<String>::new());
    }

    #[test]
    fn every_mistake_is_told_by_its_name_and_all_at_once() {
        let wrong = CqlOptions {
            contact_points: vec!["http://db1".to_owned(), "db1:0".to_owned()],
            port: 0,
            keyspace: "basalt; DROP KEYSPACE x".to_owned(),
            datacenter: "dc'1".to_owned(),
            replication: [("dc2".to_owned(), 0)].into(),
            login: Some((String::new(), Password("hunter2".to_owned()))),
            read_level: Level::EachQuorum,
            point_timeout: Duration::ZERO,
            backoff: Duration::from_secs(9),
            connections: 0,
            in_flight_max: 0,
            tries: 0,
            ..CqlOptions::default()
        };
        let problems = wrong.problems();
        for name in [
            "contact_points",
            "port",
            "keyspace",
            "datacenter",
            "replication",
            "user",
            "read_level",
            "point_timeout",
            "backoff",
            "connections",
            "in_flight_max",
            "tries",
            "speculate_after",
        ] {
            assert!(problems.iter().any(|problem| problem.starts_with(&format!("{name}: "))), "{name}: {problems:#?}");
        }
        assert!(!format!("{problems:?} {wrong:?}").contains("hunter2"));
    }
}
