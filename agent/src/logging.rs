//! Where the agent's messages go: to stderr, or to a file of bounded size where nobody watches (an autostarted agent).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::exit::{Failure, Outcome};

/// Changes the level of a running log.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<EnvFilter, Registry>);

impl LevelHandle {
    /// Logs from this level on ("debug").
    pub fn set(&self, level: &str) {
        if let Err(err) = self.0.reload(filter(level)) {
            tracing::warn!(%err, "the log level can't be changed");
        }
    }
}

/// Begins to log. `file` with its largest size in bytes: there instead of to stderr.
pub fn begin(level: &str, json: bool, file: Option<(&Path, u64)>) -> Outcome<LevelHandle> {
    let (filter, handle) = reload::Layer::new(filter(level));
    let registry = tracing_subscriber::registry().with(filter);
    // What can't be written would be complained of by `eprintln!`, which panics where stderr itself is what is broken.
    let begun = match (file, json) {
        (None, false) => registry
            .with(fmt::layer().with_writer(io::stderr).with_ansi(is_terminal()).log_internal_errors(false))
            .try_init(),
        (None, true) => {
            registry.with(fmt::layer().json().with_writer(io::stderr).log_internal_errors(false)).try_init()
        }
        (Some((path, bytes_max)), json) => {
            let log = BoundedLog::open(path, bytes_max)
                .map_err(|err| Failure::io(format!("open the log {}", path.display()), err))?;
            let layer = fmt::layer().with_ansi(false).log_internal_errors(false);
            match json {
                false => registry.with(layer.with_writer(Mutex::new(log))).try_init(),
                true => registry.with(layer.json().with_writer(Mutex::new(log))).try_init(),
            }
        }
    };
    begun.map_err(|err| Failure::new(format!("the log can't begin: {err}")))?;
    // A panic must not be lost with a stderr that goes nowhere.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!(panic = %info, "a thread panicked: please report this");
        default(info);
    }));
    Ok(LevelHandle(handle))
}

fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
}

/// Everything from `level` on; libraries of the network only when they warn, unless the level is trace.
fn filter(level: &str) -> EnvFilter {
    match level {
        "trace" | "error" => EnvFilter::new(level),
        _ => EnvFilter::new(format!("{level},h2=warn,hyper=warn,hyper_util=warn,tower=warn,tonic=warn")),
    }
}

/// A log file that is set aside at a size, so that two files of that size are the most.
#[derive(Debug)]
struct BoundedLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl BoundedLog {
    fn open(path: &Path, bytes_max: u64) -> io::Result<BoundedLog> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(BoundedLog { path: path.to_path_buf(), file, bytes, bytes_max })
    }

    fn turn_over(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        fs::rename(&self.path, old)?;
        *self = BoundedLog::open(&self.path, self.bytes_max)?;
        Ok(())
    }
}

impl Write for BoundedLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            self.turn_over()?;
        }
        let written = self.file.write(line)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_never_grows_beyond_two_files_of_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let mut log = BoundedLog::open(&path, 1000).unwrap();
        for n in 0..100 {
            writeln!(log, "line {n:04} {}", "x".repeat(80)).unwrap();
            let sizes: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
            assert!(sizes <= 2000);
        }
        assert!(fs::read_to_string(&path).unwrap().contains("line 0099"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // A log of an earlier process goes on.
        let before = fs::metadata(&path).unwrap().len();
        assert_eq!(BoundedLog::open(&path, 1000).unwrap().bytes, before);
    }
}
