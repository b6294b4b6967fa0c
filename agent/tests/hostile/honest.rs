//! A client that does what it should, all the time that others don't; and what the agent takes of the machine meanwhile.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use basalt_node::client;
use basalt_proto::v1::{GetRequest, HasRequest, PutRequest};

use crate::sandbox::{Agent, Sandbox, eventually};

/// No call of an honest client takes longer, whatever others do. Generous: tests share two cores with compilers.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// An honest client at work.
pub struct Honest {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// What it saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub calls: u64,
    pub slowest: Duration,
    pub failed: Option<String>,
}

impl Honest {
    /// Puts, reads and asks over the data socket, on a connection that is new now and then.
    pub fn begin(sandbox: &Sandbox) -> Honest {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let (node, stopped, noted) = (sandbox.node(), stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut round = 0u64;
                while !stopped.load(Ordering::Relaxed) {
                    if let Err(why) = one_round(&node, round, &noted, &stopped).await {
                        noted.lock().unwrap().failed = Some(why);
                        return;
                    }
                    round += 1;
                }
            });
        });
        let honest = Honest { stop, seen, thread: Some(thread) };
        honest.goes_on(10);
        honest
    }

    /// Returns when it has been served so many times more.
    pub fn goes_on(&self, calls: u64) {
        let until = self.seen().calls + calls;
        eventually("an honest client is served", || {
            let seen = self.seen();
            assert_eq!(seen.failed, None);
            (seen.calls >= until).then_some(())
        });
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Ends, and says that all was well.
    pub fn was_served(mut self) -> Seen {
        self.goes_on(10);
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let seen = self.seen();
        assert_eq!(seen.failed, None);
        assert!(seen.slowest < CALL_DEADLINE, "{seen:?}");
        seen
    }
}

async fn one_round(node: &std::path::Path, round: u64, seen: &Mutex<Seen>, stopped: &AtomicBool) -> Result<(), String> {
    let timed = |begin: Instant| {
        let mut seen = seen.lock().unwrap();
        seen.calls += 1;
        seen.slowest = seen.slowest.max(begin.elapsed());
    };
    let text = |status: tonic::Status| format!("round {round}: {status}");
    let sockets = basalt_node::Config::default().sockets;
    let begin = Instant::now();
    let (mut data, _) = client::data(node, &sockets, "honest 1", "root")
        .await
        .map_err(|err| format!("round {round}: connect: {err}"))?;
    timed(begin);
    let value = vec![round as u8; 50_000];
    for call in 0..20u64 {
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("/honest/{}", (round * 20 + call) % 64);
        let begin = Instant::now();
        data.put(PutRequest { key: key.clone(), value: value.clone().into(), ttl_ms: 0 }).await.map_err(text)?;
        timed(begin);
        let begin = Instant::now();
        let got = data.get(GetRequest { key: key.clone() }).await.map_err(text)?.into_inner();
        timed(begin);
        if got.value != value {
            return Err(format!("round {round}: {key} has other bytes"));
        }
        let begin = Instant::now();
        data.has(HasRequest { key }).await.map_err(text)?;
        timed(begin);
    }
    Ok(())
}

/// Memory of a process that is its own, in bytes.
pub fn resident_bytes(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

/// Its open files.
pub fn open_files(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

/// Time that it has computed.
pub fn cpu_time(agent: &Agent) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime are the 14th and 15th field of the line; the clock of /proc ticks a hundred times a second (proc(5)).
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// The most that the agent had while something ran.
pub struct Most {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(u64, usize)>>,
    before_bytes: u64,
    before_files: usize,
}

impl Most {
    pub fn watch(agent: &Agent) -> Most {
        let stop = Arc::new(AtomicBool::new(false));
        let (pid, stopped) = (agent.pid(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut most = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
                    let bytes = status
                        .lines()
                        .find_map(|line| line.strip_prefix("RssAnon:"))
                        .and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
                    most.0 = most.0.max(bytes.unwrap_or(0) << 10);
                }
                if let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) {
                    most.1 = most.1.max(files.count());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        Most { stop, thread: Some(thread), before_bytes: resident_bytes(agent), before_files: open_files(agent) }
    }

    /// How many bytes more than before there were at most.
    pub fn grew(mut self, what: &str) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let (bytes, files) = self.thread.take().unwrap().join().unwrap();
        let grew = bytes.saturating_sub(self.before_bytes);
        println!(
            "{what}: memory {} MiB, at most {} MiB more; open files {}, at most {files}",
            self.before_bytes >> 20,
            grew >> 20,
            self.before_files,
        );
        grew
    }
}
