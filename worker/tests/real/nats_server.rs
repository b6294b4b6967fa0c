//! A NATS server of a test's own: port, folder and credentials are its own, and go with it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use basalt_worker::nats::{Login, NatsOptions};

/// A server per test, each with its own ports: client, cluster (+1000) and monitor (+4000).
static NEXT: AtomicU16 = AtomicU16::new(0);

pub struct Server {
    port: u16,
    dir: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Server {
    /// Started with these arguments of testbed/nats-up.
    pub fn start(arguments: &[&str]) -> Server {
        let base = 20_000 + (std::process::id() % 97) as u16 * 10;
        let port = base + NEXT.fetch_add(1, Ordering::SeqCst);
        let server = Server {
            port,
            dir: tempfile::tempdir().unwrap(),
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        };
        server.up();
        server
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../testbed/nats-up"));
        command.args(words).env("BASALT_NATS_PORT", self.port.to_string()).env("BASALT_NATS_DIR", self.dir.path());
        command
    }

    fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "nats-up {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts it, on what it had.
    pub fn up(&self) {
        let words: Vec<&str> = ["start"].into_iter().chain(self.arguments.iter().map(String::as_str)).collect();
        self.run(&words);
    }

    /// As kill -9.
    pub fn kill(&self) {
        self.run(&["node", "kill", "1"]);
    }

    fn variables(&self) -> BTreeMap<String, String> {
        let lines = self.run(&["env"]);
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        lines.lines().filter_map(pair).collect()
    }

    /// Who this server lets in, and how.
    pub fn options(&self) -> NatsOptions {
        let said = self.variables();
        let file = |name: &str| said.get(&format!("BASALT_TEST_NATS_{name}")).map(PathBuf::from);
        let login = match (file("PASSWORD_FILE"), file("NKEY_FILE"), file("CREDS")) {
            (Some(password), _, _) => Login::User("agent".into(), password),
            (_, Some(seed), _) => Login::Nkey(seed),
            (_, _, Some(credentials)) => Login::Credentials(credentials),
            _ => Login::None,
        };
        NatsOptions {
            servers: said["BASALT_TEST_NATS"].split(',').map(str::to_owned).collect(),
            login,
            ca_file: file("CA"),
            client: file("CERT").zip(file("KEY")),
            connect_timeout: Duration::from_secs(3),
            ack_wait: Duration::from_secs(2),
            ..NatsOptions::default()
        }
    }

    /// A file of the test's own beside the server's.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.command(&["wipe"]).output();
    }
}
