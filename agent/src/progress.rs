//! How far a long command is: a bar on a terminal, else a plain line every ten seconds; always on stderr.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::say::tell;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What the numbers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown in binary units.
    Bytes,
    /// Things of that name, in plural.
    Things(&'static str),
}

/// Progress of one command.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    unit: Unit,
    total: Option<u64>,
    done: u64,
    began: Instant,
    said: Instant,
}

impl Progress {
    /// Begins; `what` as in "import"; `total` where it is known.
    pub fn begin(what: &'static str, unit: Unit, total: Option<u64>) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            let numbers = match unit {
                Unit::Bytes => "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}".to_string(),
                Unit::Things(name) => format!("{{human_pos}}/{{human_len}} {name} {{per_sec}}"),
            };
            let template = match total {
                Some(_) => format!("{what} [{{bar:30}}] {{percent}}% {numbers}, {{eta}} left"),
                None => format!(
                    "{what} {{spinner}} {}",
                    numbers.replace("/{binary_total_bytes}", "").replace("/{human_len}", "")
                ),
            };
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        let now = Instant::now();
        Progress { bar, what, unit, total, done: 0, began: now, said: now }
    }

    /// How far it is.
    pub fn at(&mut self, done: u64) {
        self.done = done;
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.said.elapsed() >= LINE_EVERY => {
                self.said = Instant::now();
                tell!("{}", self.line());
            }
            None => {}
        }
    }

    /// How far it is, counted from where it was.
    pub fn add(&mut self, more: u64) {
        self.at(self.done + more);
    }

    /// Takes the bar away, so that what follows is not written into it.
    pub fn end(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self) -> String {
        let rate = (self.done as f64 / self.began.elapsed().as_secs_f64().max(0.001)) as u64;
        let show = |n: u64| match self.unit {
            Unit::Bytes => bytes(n),
            Unit::Things(name) => format!("{n} {name}"),
        };
        match self.total.filter(|total| *total > 0) {
            Some(total) => {
                let percent = self.done.saturating_mul(100) / total;
                format!("{}: {} of {} ({percent} %), {}/s", self.what, show(self.done), show(total), show(rate))
            }
            None => format!("{}: {}, {}/s", self.what, show(self.done), show(rate)),
        }
    }
}

/// Bytes in the largest binary unit that leaves at least one: "1.5 GiB".
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

/// A duration for people: "3 d 4 h", "12 min", "850 ms".
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(
            [0, 1023, 1024, 1_572_864, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "16.0 EiB"]
        );
        assert_eq!(
            [850, 59_000, 61_000, 7_260_000, 100_000_000].map(duration),
            ["850 ms", "59 s", "1 min 1 s", "2 h 1 min", "1 d 3 h"]
        );
    }

    #[test]
    fn a_line_says_share_and_rate() {
        let mut progress = Progress::begin("import", Unit::Bytes, Some(4096));
        progress.done = 1024;
        assert!(progress.line().starts_with("import: 1.0 KiB of 4.0 KiB (25 %), "), "{}", progress.line());
    }
}
