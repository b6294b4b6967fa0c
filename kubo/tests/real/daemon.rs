//! A Kubo daemon of a test's own, in a folder that goes with it, without a network.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

use basalt_kubo::{Auth, Client, Endpoint, Options};

/// How long to wait for what should be there soon; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Daemon {
    dir: tempfile::TempDir,
    process: Mutex<Child>,
    endpoint: Endpoint,
}

/// `bin/ipfs` of the checkout, built if it isn't there, or what IPFS_BIN names. Without one the tests fail: skipping would look like passing.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(named) = env::var_os("IPFS_BIN") {
            return named.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let program = root.join("bin/ipfs");
        if !program.exists() {
            let built = Command::new(root.join("tools/build")).arg("ipfs").status();
            assert!(built.is_ok_and(|status| status.success()), "tools/build ipfs failed; or name a Kubo in IPFS_BIN");
        }
        program
    })
}

impl Daemon {
    /// A new repo with these settings (JSON), and a daemon on it.
    pub fn start(settings: &[(&str, &str)]) -> Daemon {
        Daemon::start_with(settings, &["daemon"])
    }

    /// One that looks for blocks nowhere else.
    pub fn start_offline() -> Daemon {
        Daemon::start_with(&[], &["daemon", "--offline"])
    }

    fn start_with(settings: &[(&str, &str)], args: &[&str]) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), &["init", "--profile=test"], &[]);
        let addresses = format!(r#"["/ip4/127.0.0.1/tcp/0","/unix{}"]"#, dir.path().join("api.sock").display());
        run(dir.path(), &["config", "--json", "Addresses.API", &addresses], &[]);
        for (key, value) in settings {
            run(dir.path(), &["config", "--json", key, value], &[]);
        }
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let process = command(dir.path(), args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon =
            Daemon { endpoint: Endpoint::Unix(dir.path().join("api.sock")), dir, process: Mutex::new(process) };
        daemon.wait();
        let api = fs::read_to_string(daemon.repo().join("api")).unwrap();
        daemon.endpoint = api.lines().next().unwrap().parse().unwrap();
        daemon
    }

    fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        let log = self.dir.path().join("log");
        while !fs::read_to_string(&log).unwrap_or_default().contains("Daemon is ready") {
            let ended = self.process.lock().unwrap().try_wait().unwrap();
            let late = Instant::now() > deadline;
            assert!(ended.is_none() && !late, "no daemon: {}", fs::read_to_string(&log).unwrap_or_default());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// Where its RPC listens by TCP.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    pub fn client(&self) -> Client {
        Client::new(self.endpoint(), &Auth::None, Options::default()).unwrap()
    }

    pub fn client_by_unix_socket(&self) -> Client {
        let endpoint = Endpoint::Unix(self.dir.path().join("api.sock"));
        Client::new(endpoint, &Auth::None, Options::default()).unwrap()
    }

    /// What a command prints.
    pub fn ipfs(&self, args: &[&str]) -> String {
        run(self.dir.path(), args, &[])
    }

    /// Adds a file of bytes that repeat nowhere; returns its CID.
    pub fn add(&self, bytes: usize, args: &[&str]) -> String {
        let mut state = bytes as u64 | 1;
        let content: Vec<u8> = (0..bytes)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        run(self.dir.path(), &[&["add", "-Q"], args].concat(), &content)
    }

    /// As kill -9.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        let _ = process.wait();
    }
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).env("IPFS_PATH", dir.join("repo")).env("IPFS_TELEMETRY", "off");
    command
}

fn run(dir: &Path, args: &[&str], input: &[u8]) -> String {
    let mut child = command(dir, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|err| panic!("{} doesn't run: {err}", program().display()));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ipfs {}: {errors}", args.join(" "));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
