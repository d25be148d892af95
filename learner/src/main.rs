//! `learner`: command line, logging, signals, exit status; joins again when fenced. The work is in the library.

use clap::Parser;
use quorum_core::client::{JoinOptions, shutdown_signal};
use quorum_learner::connection::Connection;
use quorum_learner::learner::Learner;
use quorum_learner::{LearnerError, Options, grpo_loop, metrics};
use quorum_proto::v1;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Between being fenced and joining again.
const PAUSE: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let options = Options::parse();
    quorum_engine::tune_allocator();
    match start(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: &Options) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&options.log)
        .map_err(|e| anyhow::anyhow!("--log {}: {e}", options.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    if options.world != 1 {
        return Err(LearnerError::World(options.world).into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    runtime.spawn(async move {
        shutdown_signal().await;
        tracing::info!("asked to stop; the open step will be learned again after a restart");
        asked.cancel();
    });
    let result = serve(options, runtime.handle(), &stop);
    runtime.shutdown_background();
    match result {
        Err(LearnerError::Stopped(reason)) => {
            tracing::info!(reason, "learner leaves");
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Joins, trains, and joins again after being fenced: a new epoch starts from the newest checkpoint.
fn serve(options: &Options, runtime: &Handle, stop: &CancellationToken) -> Result<(), LearnerError> {
    let mut join = JoinOptions {
        link: options.link(),
        role: v1::Role::Learner,
        caller_id: options.caller_id(),
        run_id: options.run.clone(),
        config_digest: String::new(),
        instruction_set: quorum_engine::instruction_set().to_string(),
        metrics_address: runtime.block_on(metrics::start())?,
        rank: options.rank,
        world: options.world,
        patience: options.join_patience(),
    };
    loop {
        let connection = Connection::join(&join, options, runtime, stop)?;
        let session = connection.session.clone();
        join.run_id.clone_from(&session.reply.run_id);
        join.config_digest.clone_from(&session.reply.config_digest);
        join.patience = options.reconnect_patience();
        match Learner::open(connection, options).and_then(|mut learner| grpo_loop::run(&mut learner)) {
            Err(error) if error.is_fenced() => tracing::info!(%error, "joining again"),
            Err(LearnerError::Stopped(reason)) => {
                runtime.block_on(session.leave(&reason));
                return Err(LearnerError::Stopped(reason));
            }
            other => {
                runtime.block_on(session.leave("done"));
                return other;
            }
        }
        std::thread::sleep(PAUSE);
    }
}
