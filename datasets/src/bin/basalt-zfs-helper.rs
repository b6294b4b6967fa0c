//! Mounts, unmounts, creates and loads keys for an agent that isn't root: `basalt-zfs-helper create|mount|unmount|load-key DATASET`, as root, by a line of sudoers or a
//! unit. What it may do is in `/etc/basalt/zfs-helper.toml`; all that it checks is in [`basalt_datasets::helper`].

use std::{io::Write, path::Path, process::ExitCode};

use basalt_datasets::helper::{POLICY_FILE, Policy, Refused, request, serve};
use basalt_zfs::{Cli, CliOptions};

fn run() -> Result<(), Refused> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (verb, dataset) = request(&arguments, &mut std::io::stdin().lock())?;
    let policy = Policy::read(Path::new(POLICY_FILE))?;
    let zfs = Cli::new(CliOptions::default()).map_err(|e| Refused(e.to_string()))?;
    serve(&policy, &zfs, &verb, &dataset)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Nobody may be listening; the exit code says it too.
            let _unheard = writeln!(std::io::stderr(), "basalt-zfs-helper: {why}");
            ExitCode::FAILURE
        }
    }
}
