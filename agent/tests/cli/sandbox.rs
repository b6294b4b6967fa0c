//! A folder with a node of its own, and the processes that a test starts in it.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use basalt_proto::v1::{HandshakeRequest, HandshakeResponse, datastore_client::DatastoreClient};
use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// No step of a test takes longer than this unless it hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Calls `probe` until it has something, or panics with `what` after the deadline.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A temporary folder for one test.
pub struct Sandbox {
    dir: TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    #[track_caller]
    pub fn ok(self) -> Said {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) -> Said {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "'{part}' is not in: {self:?}");
        }
        self
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Sandbox {
    /// An empty folder, in memory where the machine has that.
    pub fn empty() -> Sandbox {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Sandbox { dir: dir.unwrap() }
    }

    /// A folder with a new node in it.
    pub fn with_node() -> Sandbox {
        let sandbox = Sandbox::empty();
        sandbox.basalt(&["init", "--durability", "relaxed"]).ok();
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn node(&self) -> PathBuf {
        self.path("node")
    }

    /// Flips a bit of a value where the node has it on disk.
    pub fn rot(&self, value: &[u8]) {
        let mut flipped = 0;
        for entry in fs::read_dir(self.node().join("shards/00")).unwrap() {
            let path = entry.unwrap().path();
            let Ok(bytes) = fs::read(&path) else { continue };
            if let Some(at) = bytes.windows(value.len()).position(|window| window == value) {
                // In place: an agent has the file open.
                let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&[bytes[at + 50] ^ 4], at as u64 + 50).unwrap();
                flipped += 1;
            }
        }
        assert_eq!(flipped, 1);
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A command with this folder as the only thing that it knows of the machine.
    pub fn command(&self, args: &[&str]) -> Command {
        self.program(env!("CARGO_BIN_EXE_basalt"), args)
    }

    fn program(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BASALT_") {
                command.env_remove(name);
            }
        }
        command
            .args(args)
            .env("BASALT_NODE", self.node())
            .env("BASALT_HTTP_LISTEN", "")
            .env("XDG_RUNTIME_DIR", self.path("xdg"))
            .env("HOME", self.dir.path())
            .env_remove("IPFS_PATH")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub fn basalt(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    /// Runs a command to its end with that input.
    pub fn basalt_with_input(&self, args: &[&str], input: &[u8]) -> Said {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // A command that refuses its input early closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap().into()
    }

    /// Starts an agent, and returns when it serves.
    pub fn agent(&self, args: &[&str]) -> Agent {
        self.agent_with(args, &[])
    }

    /// Starts an agent from a line of shell, which has the program in $0 and its arguments in $@.
    #[allow(dead_code, reason = "for the tests of hostile clients")]
    pub fn agent_under(&self, shell: &str, args: &[&str]) -> Agent {
        let mut all = vec!["-c", shell, env!("CARGO_BIN_EXE_basalt")];
        all.extend(args);
        self.started("sh", &all, &[])
    }

    pub fn agent_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Agent {
        let mut all = vec!["agent"];
        all.extend(args);
        self.started(env!("CARGO_BIN_EXE_basalt"), &all, environment)
    }

    fn started(&self, program: &str, all: &[&str], environment: &[(&str, &str)]) -> Agent {
        let log = self.path(&format!("agent-{}.log", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
        let mut command = self.program(program, all);
        command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let mut agent = Agent { child: command.spawn().unwrap(), log };
        let pid = u64::from(agent.child.id());
        eventually("the agent serves", || {
            if let Some(status) = agent.child.try_wait().unwrap() {
                panic!("the agent ended with {status}: {}", agent.log());
            }
            self.served_by().filter(|served| *served == pid)
        });
        agent
    }

    /// Pid of whoever serves the node.
    pub fn served_by(&self) -> Option<u64> {
        let said = self.basalt(&["status", "--json"]);
        let status: Value = serde_json::from_str(&said.out).ok()?;
        (status["served"] == true).then(|| status["pid"].as_u64()).flatten()
    }

    pub fn status(&self) -> Value {
        self.basalt(&["status", "--json"]).json()
    }
}

static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// An agent that a test started; killed when the test ends.
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the agent ends", || self.child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the data socket that says it is a Kubo, as long as it lives.
pub struct Kubo {
    pub client: DatastoreClient<Channel>,
    pub greeting: HandshakeResponse,
}

impl Kubo {
    pub async fn connect(sandbox: &Sandbox) -> Kubo {
        let socket = sandbox.status()["data_socket"].as_str().unwrap().to_string();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
        });
        let channel = Endpoint::from_static("http://node").connect_with_connector(connector).await.unwrap();
        let mut client = DatastoreClient::new(channel);
        let request = HandshakeRequest {
            protocol_min: 1,
            protocol_max: 1,
            client: "test 1".into(),
            role: "root".into(),
            client_id: vec![7; 16].into(),
            ..HandshakeRequest::default()
        };
        let greeting = client.handshake(request).await.unwrap().into_inner();
        Kubo { client, greeting }
    }
}

/// A block made of a number.
pub fn block(n: u32) -> (Vec<u8>, Vec<u8>) {
    let value: Vec<u8> = (0..300 + n % 700).flat_map(|i| (n.wrapping_mul(2_654_435_761) ^ i).to_le_bytes()).collect();
    let mut multihash = vec![0x12, 32];
    multihash.extend(Sha256::digest(&value));
    (multihash, value)
}

/// A CARv1 written by hand: what reads it must not be what wrote it.
pub fn car(blocks: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut car = vec![0x11, 0xa2, 0x65];
    car.extend(b"roots\x80\x67version\x01");
    for (multihash, value) in blocks {
        let mut len = 2 + multihash.len() + value.len();
        while len >= 0x80 {
            car.push(len as u8 | 0x80);
            len >>= 7;
        }
        car.push(len as u8);
        car.extend([1, 0x55]);
        car.extend(multihash);
        car.extend(value);
    }
    car
}

/// The CID of a multihash as people read it.
pub fn cid(multihash: &[u8]) -> String {
    let mut bytes = vec![1, 0x55];
    bytes.extend(multihash);
    format!("b{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase())
}

/// Asks over HTTP.
pub fn http(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}
