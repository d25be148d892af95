//! `learner`: command line, logging, signals, exit status; joins again when fenced. The work is in the library.

use clap::Parser;
use quorum_core::client::{JoinOptions, RUN_FAILED, Session, set_ready, shutdown_signal};
use quorum_core::logging;
use quorum_learner::connection::Connection;
use quorum_learner::group::Group;
use quorum_learner::learner::Learner;
use quorum_learner::transport::{self, Place};
use quorum_learner::{LearnerError, Options, grpo_loop, metrics};
use quorum_proto::v1;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Between being fenced and joining again.
const PAUSE: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    transport::die_with_mpirun();
    let options = Options::parse();
    if options.device.first() == quorum_engine::Device::CandleCpu {
        // SAFETY: no other thread exists yet.
        unsafe { quorum_engine::Device::hold_threads(options.threads.max(1)) };
    }
    quorum_engine::tune_allocator();
    match start(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::fail(&error.to_string());
            let failed = error.downcast_ref().is_some_and(LearnerError::is_run_failed);
            if failed { ExitCode::from(RUN_FAILED) } else { ExitCode::FAILURE }
        }
    }
}

fn start(options: &Options) -> anyhow::Result<()> {
    logging::init(&options.log, "learner", "info");
    options.device.check()?;
    options.member.check_fabric(options.device_index()).map_err(anyhow::Error::msg)?;
    if options.check_device {
        return Ok(());
    }
    let place = options.place()?;
    if place.world > 1 {
        // Before anything else: a build without a way to the other ranks says so at once.
        options.way()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    runtime.spawn(async move {
        shutdown_signal().await;
        tracing::info!("asked to stop; the open step will be learned again after a restart");
        asked.cancel();
    });
    let result = serve(options, place, runtime.handle(), &stop);
    if options.stay && (result.is_ok() || matches!(result, Err(LearnerError::Stopped(_)))) {
        runtime.block_on(stop.cancelled());
    }
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
fn serve(options: &Options, place: Place, runtime: &Handle, stop: &CancellationToken) -> Result<(), LearnerError> {
    let mut join = JoinOptions {
        link: options.member.link(),
        role: v1::Role::Learner,
        caller_id: options.caller_id(place),
        run_id: options.member.run.clone(),
        config_digest: String::new(),
        instruction_set: options.device.describe(),
        metrics_address: runtime.block_on(metrics::start(&options.member.page()))?,
        relay_address: String::new(),
        rank: place.rank,
        world: place.world,
        patience: options.member.join_patience(),
    };
    loop {
        let connection = Connection::join(&join, options, runtime, stop)?;
        let session = connection.session.clone();
        join.run_id.clone_from(&session.reply.run_id);
        join.config_digest.clone_from(&session.reply.config_digest);
        join.patience = options.member.reconnect_patience();
        let mut again = true;
        set_ready(true);
        let result = Group::form(&connection, options).and_then(|mut group| {
            again = group.can_form_again();
            let result = Learner::open(connection, &mut group, options).and_then(|mut l| grpo_loop::run(&mut l));
            if let Err(error) = &result {
                part(&mut group, error, &session, runtime);
            }
            result
        });
        match result {
            Err(error) if again && error.may_pass() => tracing::info!(%error, "joining again"),
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

/// A rank that cannot go on takes its group with it, so that no other waits for it. Those that can join again do so, the others' processes end.
fn part(group: &mut Group, error: &LearnerError, session: &Session, runtime: &Handle) {
    if group.share().world == 1 {
        return;
    }
    if !(group.can_form_again() && error.may_pass()) {
        runtime.block_on(session.leave(&error.to_string()));
    }
    if !error.ends_all() {
        metrics::group_ended(error);
        group.abort(&error.to_string());
    }
}
