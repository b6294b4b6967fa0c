//! Starts `zfs` and `zpool`, and waits for them no longer than allowed.
//!
//! A command that doesn't answer is in the kernel, waiting for disks: a signal wouldn't reach it, and where it does it leaves unknown what was
//! done. So nothing is killed. Its pool is **fenced**: whoever comes next is told at once, instead of waiting too and filling the host with stuck
//! processes. A thread stays with the command and lifts the fence when it ends.
//!
//! No shell: arguments are passed as they are. The environment is empty but for `PATH`, `LC_ALL=C` and `TZ=UTC`.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{Class, Error, Operation, Pool, Result};

/// No answer of ours is longer: a listing of a million snapshots has some 100 MB.
const ANSWER_BYTES_MAX: u64 = 512 << 20;
/// What is kept of what a command complains about.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;
/// The pieces of a stream.
const CHUNK_BYTES: usize = 256 << 10;
/// How many pieces are under way.
const CHUNKS: usize = 8;

/// What a command said and how it ended.
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// A command that hasn't answered.
#[derive(Clone, Debug)]
struct Stuck {
    id: u64,
    words: String,
    since: Instant,
}

/// The pools on which something is stuck; `None` is for commands on no pool in particular.
#[derive(Clone, Default)]
pub(crate) struct Fences(Arc<Mutex<Fenced>>);

#[derive(Default)]
struct Fenced {
    raised: u64,
    pools: BTreeMap<Option<Pool>, Stuck>,
}

impl Fences {
    fn refuse(&self, operation: Operation, subject: &str, pool: Option<&Pool>) -> Result<()> {
        let fences = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match fences.pools.get(&pool.cloned()) {
            None => Ok(()),
            Some(stuck) => Err(Error::new(
                operation,
                subject,
                Class::Fenced,
                format!("not tried: '{}' has not answered for {} s", stuck.words, stuck.since.elapsed().as_secs()),
            )),
        }
    }

    fn raise(&self, pool: Option<&Pool>, words: &str, since: Instant) -> u64 {
        let mut fences = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fences.raised += 1;
        let id = fences.raised;
        fences.pools.insert(pool.cloned(), Stuck { id, words: words.to_owned(), since });
        tracing::error!(
            pool = pool.map(Pool::as_str),
            command = words,
            "a ZFS command doesn't answer; its pool is fenced"
        );
        id
    }

    /// Unless another command is stuck there by now.
    fn lift(&self, pool: Option<&Pool>, id: u64) {
        let mut fences = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if fences.pools.get(&pool.cloned()).is_some_and(|stuck| stuck.id == id) {
            fences.pools.remove(&pool.cloned());
            tracing::warn!(
                pool = pool.map(Pool::as_str),
                "a ZFS command that was stuck has ended; its pool is no longer fenced"
            );
        }
    }
}

/// One command: what it is for and what is run.
pub(crate) struct Call<'a> {
    pub(crate) operation: Operation,
    pub(crate) subject: &'a str,
    /// What is fenced if it doesn't answer.
    pub(crate) pool: Option<&'a Pool>,
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<String>,
    pub(crate) deadline: Duration,
}

enum End {
    Answered(Answer),
    Failed(io::Error),
}

impl Call<'_> {
    fn error(&self, class: Class, detail: impl AsRef<str>) -> Error {
        Error::new(self.operation, self.subject, class, detail)
    }

    fn words(&self) -> String {
        let program = self.program.file_name().map_or_else(PathBuf::new, PathBuf::from);
        let mut words = program.display().to_string();
        for argument in &self.arguments {
            words.push(' ');
            words.push_str(argument);
            if words.len() > 300 {
                words.push('…');
                break;
            }
        }
        words
    }

    fn spawn(&self, fences: &Fences, stdin: Stdio) -> Result<Child> {
        fences.refuse(self.operation, self.subject, self.pool)?;
        Command::new(self.program)
            .args(&self.arguments)
            .env_clear()
            .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C"), ("TZ", "UTC")])
            .current_dir("/")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| {
                let class = if e.kind() == io::ErrorKind::NotFound { Class::NotInstalled } else { Class::Io };
                self.error(class, format!("{} can't be started: {e}", self.program.display()))
            })
    }

    /// Leaves the command to a thread that waits for it however long it takes, and lifts the fence then.
    fn give_up(&self, fences: &Fences, ends: Receiver<End>, began: Instant) -> Error {
        let words = self.words();
        let (fences, pool) = (fences.clone(), self.pool.cloned());
        let id = fences.raise(pool.as_ref(), &words, began);
        let waits = {
            let (fences, pool) = (fences.clone(), pool.clone());
            move || {
                let _ended = ends.recv();
                fences.lift(pool.as_ref(), id);
            }
        };
        if thread::Builder::new().name("zfs-stuck".into()).spawn(waits).is_err() {
            fences.lift(pool.as_ref(), id); // without a thread nobody would lift it
        }
        self.error(Class::Stuck, format!("'{words}' has not answered in {} s", began.elapsed().as_secs()))
    }

    /// Runs it to its end, with `input` on its stdin.
    pub(crate) fn run(&self, fences: &Fences, input: Option<Vec<u8>>) -> Result<Answer> {
        let began = Instant::now();
        let mut child = self.spawn(fences, if input.is_some() { Stdio::piped() } else { Stdio::null() })?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A key: shorter than any pipe.
            let _closed = stdin.write_all(&input);
        }
        let stdout = child.stdout.take();
        let ends = watch(child, move || read_at_most(stdout, ANSWER_BYTES_MAX))
            .map_err(|e| self.error(Class::Io, e.to_string()))?;
        match ends.recv_timeout(self.deadline) {
            Ok(end) => self.ended(end),
            Err(_) => Err(self.give_up(fences, ends, began)),
        }
    }

    fn ended(&self, end: End) -> Result<Answer> {
        match end {
            End::Answered(answer) => Ok(answer),
            End::Failed(e) => Err(self.error(Class::Io, format!("'{}': {e}", self.words()))),
        }
    }

    /// Runs it, with what it writes going to `to`. The deadline is for silence, not for the whole.
    pub(crate) fn run_to(&self, fences: &Fences, to: &mut dyn Write) -> Result<Answer> {
        let mut child = self.spawn(fences, Stdio::null())?;
        let (chunks, incoming) = mpsc::sync_channel(CHUNKS);
        let stdout = child.stdout.take();
        let ends = watch(child, move || pass_on(stdout, &chunks)).map_err(|e| self.error(Class::Io, e.to_string()))?;
        loop {
            let began = Instant::now();
            match incoming.recv_timeout(self.deadline) {
                Ok(chunk) => {
                    if let Err(e) = to.write_all(&chunk) {
                        // `zfs send` ends by itself when nobody reads any more.
                        drop(incoming);
                        let ended = ends.recv_timeout(self.deadline);
                        return Err(match ended {
                            Ok(_) => self.error(Class::Io, format!("the stream can't be passed on: {e}")),
                            Err(_) => self.give_up(fences, ends, began),
                        });
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err(self.give_up(fences, ends, began)),
                Err(RecvTimeoutError::Disconnected) => match ends.recv_timeout(self.deadline) {
                    Ok(end) => return self.ended(end),
                    Err(_) => return Err(self.give_up(fences, ends, began)),
                },
            }
        }
    }

    /// Runs it, with what `from` gives on its stdin. The deadline is for a command that takes nothing, not for the whole, nor for `from`.
    /// If `from` fails, the command sees the end of the stream, and the error is that of `from`.
    pub(crate) fn run_from(&self, fences: &Fences, from: &mut dyn Read) -> Result<Answer> {
        let mut child = self.spawn(fences, Stdio::piped())?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let ends = watch(child, move || read_at_most(stdout, COMPLAINT_BYTES_MAX))
            .map_err(|e| self.error(Class::Io, e.to_string()))?;
        let (chunks, outgoing) = mpsc::channel();
        let (taken, acknowledged) = mpsc::channel();
        // It owns stdin, and so closes it when the stream ends or the command stops taking it.
        thread::Builder::new()
            .name("zfs-receive".into())
            .spawn(move || feed(stdin, &outgoing, &taken))
            .map_err(|e| self.error(Class::Io, e.to_string()))?;
        let mut ahead = 0;
        let mut failed = None;
        let mut buffer = vec![0; CHUNK_BYTES];
        let began = Instant::now();
        loop {
            let length = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            };
            if chunks.send(buffer[..length].to_vec()).is_err() {
                break;
            }
            ahead += 1;
            if ahead == CHUNKS {
                match acknowledged.recv_timeout(self.deadline) {
                    Ok(()) => ahead -= 1,
                    Err(RecvTimeoutError::Disconnected) => break, // it has ended, and says why
                    Err(RecvTimeoutError::Timeout) => return Err(self.give_up(fences, ends, began)),
                }
            }
        }
        drop(chunks);
        let end = loop {
            match ends.recv_timeout(self.deadline) {
                Ok(end) => break end,
                // Not silent as long as it takes what is under way.
                Err(_) if acknowledged.try_recv().is_ok() => {}
                Err(_) => return Err(self.give_up(fences, ends, began)),
            }
        };
        match failed {
            Some(e) => {
                let said = self.ended(end)?.stderr;
                let class =
                    if said.contains("Partially received snapshot is saved") { Class::Incomplete } else { Class::Io };
                Err(self.error(class, format!("the stream can't be read: {e}")))
            }
            None => self.ended(end),
        }
    }
}

/// The one command that is followed for ever; it must have ended before another one begins.
#[derive(Clone, Default)]
pub(crate) struct Following(Arc<AtomicBool>);

/// How long a followed command may say nothing until who follows is called all the same.
const SILENCE: Duration = Duration::from_secs(1);
/// Lines that a followed command may be ahead.
const LINES: usize = 1024;
/// Bytes of a line; a longer one comes in pieces.
const LINE_BYTES_MAX: u64 = 64 << 10;

impl Call<'_> {
    /// Runs a command that never ends by itself, and hands each line of it to `to`, or `None` where it said nothing for a second. Where `to` breaks it is
    /// killed: it only looks. `None`: it was; else how it ended. One that the kill doesn't end keeps the next from being started.
    pub(crate) fn follow(
        &self,
        following: &Following,
        to: &mut dyn FnMut(Option<&str>) -> ControlFlow<()>,
    ) -> Result<Option<Answer>> {
        if following.0.swap(true, Ordering::AcqRel) {
            return Err(self.error(Class::Fenced, format!("not tried: an earlier '{}' has not ended", self.words())));
        }
        let outcome = self.spawn(&Fences::default(), Stdio::null()).and_then(|mut child| {
            let lines = follow_lines(&mut child, to);
            let broken = lines.is_ok_and(|flow| flow.is_break());
            let killed = child.kill();
            Ok((broken, self.reap(child, following, killed)?))
        });
        match outcome {
            Ok((true, _)) => Ok(None),
            Ok((false, answer)) => Ok(Some(answer)),
            Err(error) => {
                if error.class() != Class::Stuck {
                    following.0.store(false, Ordering::Release);
                }
                Err(error)
            }
        }
    }

    /// Waits for a command that was killed or has closed its output.
    fn reap(&self, mut child: Child, following: &Following, killed: io::Result<()>) -> Result<Answer> {
        let stderr = child.stderr.take();
        let (ends, end) = mpsc::channel();
        let following = following.clone();
        thread::Builder::new()
            .name("zfs-followed".into())
            .spawn(move || {
                let complained = read_at_most(stderr, COMPLAINT_BYTES_MAX);
                let status = child.wait();
                following.0.store(false, Ordering::Release);
                let answer = || {
                    let stderr = String::from_utf8_lossy(&complained?).into_owned();
                    Ok(Answer { status: status?, stdout: Vec::new(), stderr })
                };
                let _nobody_waits = ends.send(answer().map_or_else(End::Failed, End::Answered));
            })
            .map_err(|e| self.error(Class::Io, e.to_string()))?;
        match end.recv_timeout(self.deadline) {
            Ok(end) => self.ended(end),
            Err(_) => {
                let why = killed.err().map_or_else(String::new, |e| format!(" ({e})"));
                Err(self.error(Class::Stuck, format!("'{}' was killed{why} and has not ended", self.words())))
            }
        }
    }
}

/// Hands on what a command says, line by line, until it closes its output or nobody wants more.
fn follow_lines(child: &mut Child, to: &mut dyn FnMut(Option<&str>) -> ControlFlow<()>) -> io::Result<ControlFlow<()>> {
    let (lines, incoming) = mpsc::sync_channel::<String>(LINES);
    let Some(stdout) = child.stdout.take() else { return Ok(ControlFlow::Continue(())) };
    thread::Builder::new().name("zfs-lines".into()).spawn(move || {
        let mut stdout = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            let read = stdout.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if !read.is_ok_and(|read| read > 0)
                || lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err()
            {
                return;
            }
        }
    })?;
    loop {
        let flow = match incoming.recv_timeout(SILENCE) {
            Ok(line) => to(Some(&line)),
            Err(RecvTimeoutError::Timeout) => to(None),
            Err(RecvTimeoutError::Disconnected) => return Ok(ControlFlow::Continue(())),
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
}

/// Reads what a command says, each channel on a thread of its own, and reaps it. What the first thread hands on is the end.
fn watch(mut child: Child, stdout: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static) -> io::Result<Receiver<End>> {
    let (ends, end) = mpsc::channel();
    let stderr = child.stderr.take();
    thread::Builder::new().name("zfs-answer".into()).spawn(move || {
        let complaints =
            thread::Builder::new().name("zfs-stderr".into()).spawn(move || read_at_most(stderr, COMPLAINT_BYTES_MAX));
        let said = stdout();
        let complained = match complaints {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(io::Error::other("its reader panicked"))),
            Err(e) => Err(e),
        };
        let status = child.wait();
        let answer = (|| {
            Ok(Answer { stdout: said?, stderr: String::from_utf8_lossy(&complained?).into_owned(), status: status? })
        })();
        let _nobody_waits = ends.send(answer.map_or_else(End::Failed, End::Answered));
    })?;
    Ok(end)
}

/// Reads to the end, and keeps only so much: what is over is an error, but is read, so that the command isn't stopped by a full pipe.
fn read_at_most(from: Option<impl Read>, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    let Some(mut from) = from else { return Ok(read) };
    from.by_ref().take(limit_bytes).read_to_end(&mut read)?;
    if io::copy(&mut from, &mut io::sink())? > 0 && limit_bytes == ANSWER_BYTES_MAX {
        return Err(io::Error::other(format!("the answer has more than {limit_bytes} bytes")));
    }
    Ok(read)
}

fn pass_on(from: Option<ChildStdout>, to: &SyncSender<Vec<u8>>) -> io::Result<Vec<u8>> {
    let Some(mut from) = from else { return Ok(Vec::new()) };
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = match from.read(&mut chunk) {
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        chunk.truncate(length);
        if length == 0 || to.send(chunk).is_err() {
            return Ok(Vec::new());
        }
    }
}

fn feed(to: Option<ChildStdin>, chunks: &Receiver<Vec<u8>>, taken: &Sender<()>) {
    let Some(mut to) = to else { return };
    for chunk in chunks {
        if to.write_all(&chunk).is_err() || taken.send(()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call<'a>(program: &'a Path, arguments: &[&str], pool: &'a Pool, deadline: Duration) -> Call<'a> {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Call { operation: Operation::Snapshot, subject: "tank/a@1", pool: Some(pool), program, arguments, deadline }
    }

    #[test]
    fn a_command_that_does_not_answer_fences_its_pool_until_it_ends_and_is_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        let (go, done) = (dir.path().join("go"), dir.path().join("done"));
        assert!(Command::new("mkfifo").arg(&go).status().unwrap().success());
        let script = format!("read x <{}; echo ended >{}", go.display(), done.display());
        let (tank, other) = ("tank".parse::<Pool>().unwrap(), "other".parse::<Pool>().unwrap());
        let fences = Fences::default();
        let sh = Path::new("/bin/sh");
        let stuck = call(sh, &["-c", &script], &tank, Duration::from_millis(50)).run(&fences, None).err().unwrap();
        assert_eq!(stuck.class(), Class::Stuck);
        assert!(stuck.outcome_unknown(), "{stuck}");

        let patient = Duration::from_secs(60);
        let refused = call(sh, &["-c", "exit 0"], &tank, patient).run(&fences, None).err().unwrap();
        assert_eq!(refused.class(), Class::Fenced, "{refused}");
        assert!(refused.detail().contains("has not answered"), "{refused}");
        assert!(call(sh, &["-c", "exit 0"], &other, patient).run(&fences, None).is_ok(), "other pools go on");

        std::fs::write(&go, "x\n").unwrap();
        let end = Instant::now() + patient;
        while let Err(e) = call(sh, &["-c", "exit 0"], &tank, patient).run(&fences, None) {
            assert_eq!(e.class(), Class::Fenced);
            assert!(Instant::now() < end, "the fence stays");
            thread::yield_now();
        }
        assert_eq!(std::fs::read_to_string(done).unwrap(), "ended\n", "it went on to its end");
    }

    #[test]
    fn arguments_are_passed_as_they_are_in_an_empty_environment() {
        let tank = "tank".parse().unwrap();
        let printf = Path::new("/usr/bin/printf");
        let odd = "$HOME `id` ; 'x' \" \n *";
        let answer = call(printf, &["%s", odd], &tank, Duration::from_secs(60)).run(&Fences::default(), None).unwrap();
        assert_eq!(answer.stdout, odd.as_bytes());
        let env =
            call(Path::new("/usr/bin/env"), &[], &tank, Duration::from_secs(60)).run(&Fences::default(), None).unwrap();
        let mut names: Vec<_> =
            std::str::from_utf8(&env.stdout).unwrap().lines().filter_map(|l| l.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH", "TZ"]);
    }

    #[test]
    fn a_missing_tool_is_told_as_such() {
        let tank = "tank".parse().unwrap();
        let missing = call(Path::new("/nonexistent/zfs"), &[], &tank, Duration::from_secs(60))
            .run(&Fences::default(), None)
            .err()
            .unwrap();
        assert_eq!(missing.class(), Class::NotInstalled);
        assert!(missing.remedy().contains("zfsutils-linux"), "{missing}");
    }

    #[test]
    fn streams_pass_whole_both_ways() {
        let tank = "tank".parse().unwrap();
        let bytes: Vec<u8> = (0..5_000_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("stream");
        let copy =
            call(Path::new("/bin/dd"), &[&format!("of={}", file.display()), "bs=1M"], &tank, Duration::from_secs(60));
        assert!(copy.run_from(&Fences::default(), &mut bytes.as_slice()).unwrap().status.success());
        let mut back = Vec::new();
        let cat = call(Path::new("/bin/cat"), &[file.to_str().unwrap()], &tank, Duration::from_secs(60));
        assert!(cat.run_to(&Fences::default(), &mut back).unwrap().status.success());
        assert!(back == bytes);
    }

    #[test]
    fn a_command_that_takes_nothing_more_says_why_and_a_sink_that_fails_ends_the_command() {
        let tank = "tank".parse().unwrap();
        let sh = Path::new("/bin/sh");
        let refuses = call(sh, &["-c", "echo no >&2; exit 3"], &tank, Duration::from_secs(60));
        let answer = refuses.run_from(&Fences::default(), &mut io::repeat(7).take(50 << 20)).unwrap();
        assert_eq!((answer.status.code(), answer.stderr.as_str()), (Some(3), "no\n"));

        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::other("full"))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let endless = call(sh, &["-c", "exec cat /dev/zero"], &tank, Duration::from_secs(60));
        let failed = endless.run_to(&Fences::default(), &mut Full).err().unwrap();
        assert_eq!(failed.class(), Class::Io);
        assert!(failed.detail().contains("full"), "{failed}");
    }
}
