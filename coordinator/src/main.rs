//! The `coordinator` executable.

use clap::Parser;
use quorum_coordinator::commands::{Cli, dispatch};
use quorum_core::logging;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(&cli.run.log, "coordinator", "warn");
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            logging::fail(&one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and those of its causes that say something new.
fn one_line(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
}
