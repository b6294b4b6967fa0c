//! The daemon and command line `basalt`: hosts a node, and is what an operator talks to it with.
//!
//! Top to bottom: [`cli`] says what can be said; [`agent`] serves a node; [`access`] reaches a node, whoever serves it; [`status`],
//! [`verify`], [`scrub`], [`import`], [`export`], [`doctor`], [`dataset`], [`snapshot`], [`plane`], [`pin`] are the commands; [`car`], [`flatfs`], [`cid`] and [`dag`] are
//! the formats they read and write.

mod access;
mod agent;
mod car;
mod cid;
mod cli;
mod config;
mod dag;
mod dataset;
mod doctor;
mod drift;
mod exit;
mod export;
mod flatfs;
#[cfg(test)]
mod hostile_tests;
mod http;
mod import;
mod init;
mod ledger;
mod logging;
mod mark;
mod metrics;
mod notify;
mod pin;
mod plane;
mod pool;
mod progress;
mod registrar;
mod say;
mod scrub;
mod show;
mod snapshot;
mod status;
mod transfer;
mod verify;
mod watch;
mod worker;

use std::{process::ExitCode, time::Duration};

use clap::Parser;

use crate::{
    cli::{Cli, Command, ConfigCommand, Export, Import},
    exit::{Exit, Failure, Outcome},
    say::tell,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let failure = match run(&cli).and_then(|()| say::all_said()) {
        Ok(()) => return ExitCode::from(Exit::Done as u8),
        Err(failure) => failure,
    };
    if !failure.message.is_empty() {
        tell!("basalt: {}", failure.message);
    }
    ExitCode::from(failure.exit as u8)
}

fn run(cli: &Cli) -> Outcome {
    match &cli.command {
        Command::Init(options) => match &options.folder {
            Some(folder) => init::init(folder, options),
            None => init::init(&cli.node()?, options),
        },
        Command::Dataset(command) => dataset::dataset(cli, command),
        Command::Config(ConfigCommand::Reference) => {
            say::out(format_args!("{}", config::reference()));
            Ok(())
        }
        Command::Config(ConfigCommand::Check { file, json }) => show::check(cli, file.as_deref(), *json),
        Command::Config(ConfigCommand::Show { source, json }) => show::show(&cli.node()?, source, *json),
        command => {
            let node = cli.node()?;
            let runtime = runtime()?;
            let outcome = runtime.block_on(async {
                match command {
                    Command::Agent(options) => agent::agent(&node, options).await,
                    Command::Status(options) => status::status(&node, options).await,
                    Command::Doctor(options) => doctor::doctor(&node, options).await,
                    Command::Verify(options) if options.quarantined => scrub::quarantined(&node, options.json).await,
                    Command::Verify(options) => verify::verify(&node, options.hash, options.json).await,
                    Command::Scrub(options) => scrub::scrub(&node, options).await,
                    Command::Import(Import::Car { file, options }) => import::car(&node, file, options).await,
                    Command::Import(Import::Flatfs { folder, options }) => import::flatfs(&node, folder, options).await,
                    Command::Export(Export::Car { file, roots, json }) => export::car(&node, file, roots, *json).await,
                    Command::Export(Export::Flatfs { folder, json }) => export::flatfs(&node, folder, *json).await,
                    Command::Flush { json } => verify::flush(&node, *json).await,
                    Command::Reclaim { json } => verify::reclaim(&node, *json).await,
                    Command::Snapshot(command) => snapshot::snapshot(&node, command).await,
                    Command::Plane(command) => plane::plane(&node, command).await,
                    Command::Pin(command) => pin::pin(&node, command).await,
                    Command::Mark { mark } => mark::mark(&node, *mark).await,
                    Command::Init(_) | Command::Config(_) | Command::Dataset(_) => Ok(()),
                }
            });
            // Not for ever: a call may be out to a disk that does not answer.
            runtime.shutdown_timeout(END_DEADLINE);
            outcome
        }
    }
}

/// What is still under way when a command has ended gets so long.
const END_DEADLINE: Duration = Duration::from_secs(5);

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|err| Failure::io("start the runtime's threads", err))
}
