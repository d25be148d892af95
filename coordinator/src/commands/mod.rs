//! The command line: one file a sub-command.

mod cli;
mod config;
mod export;
mod grade;
mod run;
mod status;

pub use cli::{Cli, Command};

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
        Some(Command::Status { http }) => status::status(&http).map(done),
        Some(Command::Config) => config::config(&cli.run).map(done),
    }
}
