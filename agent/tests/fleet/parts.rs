//! The real parts of a fleet, each in a folder of its own that goes with it, all on loopback.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// What should be there soon is; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

pub fn within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, probe)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

fn run(command: &mut Command, input: &str) -> Said {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub fn cids_of(cids: &[String]) -> Vec<&str> {
    cids.iter().map(String::as_str).collect()
}

/// A NATS server with JetStream.
pub struct Nats {
    port: u16,
    dir: TempDir,
}

static NEXT: AtomicU16 = AtomicU16::new(0);

impl Nats {
    pub fn start() -> Nats {
        Nats::start_with(&[])
    }

    pub fn start_with(words: &[&str]) -> Nats {
        let port = 21_000 + (std::process::id() % 97) as u16 * 10 + NEXT.fetch_add(1, Ordering::SeqCst);
        let nats = Nats { port, dir: tempfile::tempdir().unwrap() };
        let said = run(&mut nats.command(&[&["start"], words].concat()), "");
        assert_eq!(said.code, 0, "{said:?}");
        nats
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(root().join("testbed/nats-up"));
        command.args(words).env("BASALT_NATS_PORT", self.port.to_string()).env("BASALT_NATS_DIR", self.dir.path());
        command
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// How many messages a stream has, by the server's own word.
    pub fn messages(&self, stream: &str) -> u64 {
        let told = http(self.port + 4000, "/jsz?streams=true");
        let told: Value = serde_json::from_str(told.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let accounts = told["account_details"].as_array().cloned().unwrap_or_default();
        let mut streams = accounts.iter().flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
        let found = streams.find(|it| it["name"] == stream);
        found.map_or(0, |found| found["state"]["messages"].as_u64().unwrap())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.command(&["wipe"]).output();
    }
}

fn http(port: u16, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let _ = write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// Where pins are written down.
pub enum Ledger {
    Embedded,
    /// Contact point and keyspace.
    Cql(String, String),
}

impl Ledger {
    /// The server that tools/test-plane has started, in a keyspace of this test's own.
    pub fn cql() -> Ledger {
        let server = env::var("BASALT_TEST_CQL").expect("BASALT_TEST_CQL names no CQL server: run tools/test-plane");
        let first = server.split(',').next().unwrap().to_owned();
        Ledger::Cql(first, format!("fleet_{}", std::process::id()))
    }

    fn config(&self) -> String {
        match self {
            Ledger::Embedded => String::new(),
            Ledger::Cql(server, keyspace) => format!(
                "[plane]\nengine = \"cql\"\n[cql]\ncontact_points = [\"{server}\"]\nkeyspace = \"{keyspace}\"\nreplication = [\"dc1:1\"]\n\
                 read_level = \"local_one\"\nwrite_level = \"local_one\"\nscan_level = \"local_one\"\n"
            ),
        }
    }
}

/// A Kubo with its daemon, on loopback only.
pub struct Kubo {
    dir: TempDir,
    process: Child,
    pub peer: String,
}

fn ipfs() -> PathBuf {
    env::var_os("IPFS_BIN").map_or_else(|| root().join("bin/ipfs"), PathBuf::from)
}

impl Kubo {
    pub fn start() -> Kubo {
        Kubo::with(&["daemon"])
    }

    /// One that looks for blocks nowhere else.
    pub fn start_offline() -> Kubo {
        Kubo::with(&["daemon", "--offline"])
    }

    fn with(words: &[&str]) -> Kubo {
        let dir = tempfile::tempdir().unwrap();
        let said = run(Kubo::command(dir.path()).args(["init", "--profile=test"]), "");
        assert_eq!(said.code, 0, "{said:?}; tools/build ipfs makes one, or name one in IPFS_BIN");
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Kubo::command(dir.path());
        let process = command.args(words).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let mut kubo = Kubo { dir, process: process.unwrap(), peer: String::new() };
        let text = |kubo: &Kubo| fs::read_to_string(kubo.dir.path().join("log")).unwrap_or_default();
        eventually("Kubo's daemon is ready", || text(&kubo).contains("Daemon is ready").then_some(()));
        kubo.peer = kubo.ipfs(&["id", "-f", "<id>"], "");
        kubo
    }

    fn command(dir: &Path) -> Command {
        let mut command = Command::new(ipfs());
        command.env("IPFS_PATH", dir.join("repo")).env("IPFS_TELEMETRY", "off");
        command
    }

    pub fn ipfs(&self, words: &[&str], input: &str) -> String {
        let said = run(Kubo::command(self.dir.path()).args(words), input);
        assert_eq!(said.code, 0, "ipfs {words:?}: {said:?}");
        said.out.trim().to_owned()
    }

    fn api(&self) -> String {
        fs::read_to_string(self.dir.path().join("repo/api")).unwrap().trim().to_owned()
    }

    /// Adds small files, unpinned, and gives their CIDs.
    pub fn add(&self, count: usize, word: &str) -> Vec<String> {
        let files = self.dir.path().join(format!("files-{word}"));
        fs::create_dir(&files).unwrap();
        for number in 0..count {
            fs::write(files.join(number.to_string()), format!("{word} {number} {}", self.peer)).unwrap();
        }
        let said = self.ipfs(&["add", "-r", "-q", "--pin=false", "--cid-version=1", files.to_str().unwrap()], "");
        let mut cids: Vec<String> = said.lines().map(str::to_owned).collect();
        // The folder comes last.
        cids.pop();
        assert_eq!(cids.len(), count);
        cids
    }

    /// What it holds, by its own word.
    pub fn pins(&self) -> BTreeSet<String> {
        self.ipfs(&["pin", "ls", "--type=recursive", "-q"], "").lines().map(str::to_owned).collect()
    }

    pub fn connect(&self, other: &Kubo) {
        let addresses = other.ipfs(&["id", "-f", "<addrs>"], "");
        let address = addresses.lines().find(|address| address.contains("/tcp/")).unwrap();
        self.ipfs(&["swarm", "connect", address], "");
    }
}

impl Drop for Kubo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A node of Basalt with its config; what runs on it is a [`Running`].
pub struct Agent {
    dir: TempDir,
    http: u16,
}

/// An agent that runs.
pub struct Running(Child);

impl Agent {
    pub fn new(kubo: &Kubo, nats: &Nats, ledger: &Ledger) -> Agent {
        Agent::with(kubo, &format!("[nats]\nservers = [\"{}\"]\n", nats.url()), ledger)
    }

    pub fn without_nats(kubo: &Kubo, ledger: &Ledger) -> Agent {
        Agent::with(kubo, "", ledger)
    }

    fn with(kubo: &Kubo, nats: &str, ledger: &Ledger) -> Agent {
        let dir = tempfile::tempdir().unwrap();
        // Free now, and taken by nobody else of this host in a moment.
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let agent = Agent { dir, http };
        agent.basalt(&["init"]);
        let config = format!(
            "[http]\nlisten = \"127.0.0.1:{http}\"\n[kubo]\napi = \"{}\"\n[worker]\nretry_delay_ms = 200\nack_wait_ms = 5000\n{nats}{}",
            kubo.api(),
            ledger.config()
        );
        fs::write(agent.node().join("basalt.toml"), config).unwrap();
        agent
    }

    fn node(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_basalt"));
        command.env("BASALT_NODE", self.node());
        command
    }

    /// Starts the agent, and waits until its ledger can be reached.
    pub fn start(&self, variables: &[(&str, &str)]) -> Running {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = self.command();
        command.arg("agent").envs(variables.iter().copied()).stdin(Stdio::null()).stdout(log.try_clone().unwrap());
        let mut running = Running(command.stderr(log).spawn().unwrap());
        let socket = self.node().join("run/plane.sock");
        eventually("the agent is up", || {
            // One that a failpoint ends may be gone before it was looked at.
            let ended = running.0.try_wait().unwrap().is_some();
            (ended || std::os::unix::net::UnixStream::connect(&socket).is_ok()).then_some(())
        });
        running
    }

    pub fn try_basalt(&self, words: &[&str]) -> Said {
        run(self.command().args(words), "")
    }

    pub fn basalt(&self, words: &[&str]) -> Said {
        self.basalt_with(words, "")
    }

    pub fn basalt_with(&self, words: &[&str], input: &str) -> Said {
        let said = run(self.command().args(words), input);
        let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        assert_eq!(said.code, 0, "basalt {words:?}: {said:?}\n{}", log());
        said
    }

    fn placements(&self, cid: &str) -> Vec<(String, String)> {
        let said = self.try_basalt(&["pin", "status", "--json", cid]);
        let told: Value = serde_json::from_str(&said.out).unwrap_or_default();
        let placements = told["placements"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        placements.iter().map(|it| (text(&it["peer"]), text(&it["state"]))).collect()
    }

    /// How many nodes the ledger knows.
    pub fn registered(&self) -> usize {
        let said = self.try_basalt(&["plane", "nodes", "--json"]);
        let told: Value = serde_json::from_str(&said.out).unwrap_or_default();
        told["nodes"].as_array().map_or(0, Vec::len)
    }

    /// What the ledger says of a CID at a peer.
    pub fn state_of(&self, cid: &str, peer: &str) -> String {
        let mut placements = self.placements(cid).into_iter();
        placements.find(|(at, _)| at == peer).map(|(_, state)| state).unwrap_or_default()
    }

    /// What it says of it everywhere.
    pub fn states_of(&self, cid: &str) -> Vec<String> {
        self.placements(cid).into_iter().map(|(_, state)| state).collect()
    }

    pub fn http(&self, path: &str) -> String {
        http(self.http, path)
    }
}

impl Running {
    /// As an operator stops it.
    pub fn stop(mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "the agent ended with {status}");
    }

    /// As kill -9.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its end; whether a signal was it.
    pub fn ends_by_a_signal(mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.signal().is_some();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
