//! The command line: one file a sub-command.

mod certs;
mod cli;
mod config;
mod export;
mod grade;
mod import;
mod plan;
mod report;
mod run;
mod running;
mod status;
mod view;
mod watch;

use crate::ledger::{History, Ledger};
use crate::rundir::LEDGER;
use anyhow::ensure;
use quorum_core::RunConfig;
use std::io::Write;
use std::path::Path;

pub use cli::{Cli, Command};

/// Prints text as it is. A reader that has had enough (`| head`) is no error.
fn show(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// What a run directory says of itself, without driving it.
fn opened(run_dir: &Path) -> anyhow::Result<(History, RunConfig)> {
    let ledger = run_dir.join(LEDGER);
    ensure!(ledger.is_file(), "run directory {} holds no run ({LEDGER} is missing)", run_dir.display());
    let history = Ledger::inspect(&ledger)?;
    Ok((history, quorum_core::config::load(Some(&run_dir.join("config.resolved.toml")), &[])?))
}

/// Does what the command line says.
///
/// # Errors
/// One line for the user.
pub fn dispatch(cli: Cli) -> anyhow::Result<std::process::ExitCode> {
    let done = |()| std::process::ExitCode::SUCCESS;
    match cli.command {
        None => run::run(cli.run),
        Some(Command::Grade { pairs }) => {
            let notation = crate::prepare::configuration(&cli.run.request())?.vote.notation;
            grade::grade(&pairs, notation).map(done)
        }
        Some(Command::Export(options)) => export::export(&options).map(done),
        Some(Command::Import { file, to, dtype }) => import::import(&file, &to, dtype).map(done),
        Some(Command::Status(options)) => status::status(&options),
        Some(Command::Certs(options)) => certs::certs(&options).map(done),
        Some(Command::Plan(options)) => plan::run(&cli.run, &options),
        Some(Command::View { run_dir, http, data }) => view::view(&run_dir, &http, data.as_deref()).map(done),
        Some(Command::Report { run_dir, to, data }) => {
            report::report(&run_dir, to.as_deref(), data.as_deref()).map(done)
        }
        Some(Command::Config) => config::config(&cli.run).map(done),
    }
}
