//! `rollout-worker`: command line, logging, signals, exit status. The work is in the library.

use clap::Parser;
use quorum_core::client::{RUN_FAILED, shutdown_signal};
use quorum_core::logging;
use quorum_rollout_worker::worker::{Stop, run};
use quorum_rollout_worker::{Options, WorkerError};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.device.iter().any(|d| d.first() == quorum_engine::Device::CandleCpu) {
        // SAFETY: no other thread exists yet.
        unsafe { quorum_engine::Device::hold_threads(options.threads()) };
    }
    quorum_engine::tune_allocator();
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::fail(&error.to_string());
            let failed = error.downcast_ref().is_some_and(WorkerError::is_run_failed);
            if failed { ExitCode::from(RUN_FAILED) } else { ExitCode::FAILURE }
        }
    }
}

fn start(options: Options) -> anyhow::Result<()> {
    logging::init(&options.log, "rollout-worker", "info");
    options.check_devices()?;
    options.member.check_fabric(options.first_device()).map_err(anyhow::Error::msg)?;
    if options.check_device {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let stop = Stop::default();
        let asked = stop.clone();
        tokio::spawn(async move {
            shutdown_signal().await;
            tracing::info!("asked to stop: finishing what is leased; a second signal gives it back at once");
            asked.drain.cancel();
            shutdown_signal().await;
            asked.release.cancel();
        });
        run(options, stop).await
    });
    // A cancelled engine batch may still be running; the process need not wait for it.
    runtime.shutdown_background();
    Ok(result?)
}
