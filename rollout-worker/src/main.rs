//! `rollout-worker`: command line, logging, signals, exit status. The work is in the library.

use clap::Parser;
use quorum_core::client::shutdown_signal;
use quorum_rollout_worker::Options;
use quorum_rollout_worker::worker::{Stop, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.device.contains(&quorum_engine::Device::CandleCpu) {
        // SAFETY: no other thread exists yet.
        unsafe { quorum_engine::Device::hold_threads(options.threads()) };
    }
    quorum_engine::tune_allocator();
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: Options) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&options.log)
        .map_err(|e| anyhow::anyhow!("--log {}: {e}", options.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    options.check_devices()?;
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
