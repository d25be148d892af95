//! `coordinator`: a run from preparation to report.

use super::cli::RunOptions;
use super::running::{FAREWELL, begin};
use crate::aside;
use crate::launcher;
use crate::ledger::Ledger;
use crate::material::Material;
use crate::mirror::{self, Mirror, Place};
use crate::prepare::{Prepared, RunRequest, configuration, prepare};
use crate::run::{Handle, RunEnd, supervised_per_step};
use crate::rundir::{ENDPOINTS, RunDir};
use crate::service::bind;
use crate::show::{Progress, Report, Style, report, say, table};
use crate::trace;
use anyhow::{Context, anyhow};
use quorum_core::logging;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit status after SIGUSR1: the batch system starts the job again.
const AGAIN: u8 = 75;
/// Time for the last copy to run.mirror after a complete run.
const LAST_COPY: Duration = Duration::from_secs(600);

pub(super) fn run(options: RunOptions) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(drive(&options));
    // Whatever still waits on a lost connection must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn drive(options: &RunOptions) -> anyhow::Result<ExitCode> {
    let mut request = options.request();
    if options.go_on {
        request.resume = begun(&request)?;
    }
    from_mirror(options, &mut request).await?;
    // From the very start: by default the signal would end the process.
    let mut give_back = signal(SignalKind::user_defined1())?;
    let config = configuration(&request)?;
    let style = options.progress.resolved();
    let traces = trace::Wanted::of(options.trace, options.otlp.as_deref())?;
    if config.rollout.top_p < 1.0 || config.rollout.top_k > 0 {
        tracing::warn!("{}", crate::prepare::BIASED);
    }
    match (options.workers, options.device.is_empty()) {
        (0, true) => {}
        (0, false) => {
            let whose = "--device is for the processes that --workers N starts";
            return Err(anyhow!("{whose}; give it to rollout-worker and learner themselves"));
        }
        (n, _) => launcher::check(n, config.learner.ranks, &options.device)?,
    }
    let place = mirror::wanted(&config.run.mirror).context("run.mirror")?;
    let sockets = bind(&config.cluster)?;
    let prepared = prepare(&request, config).await?;
    let (material, dir) = (prepared.material.clone(), prepared.dir.clone());
    if complete(&prepared) && !options.stay {
        conclude(&finish(&material, &dir)?, style);
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Arc::new(Progress::new(style));
    let mirror = match place {
        Some(place) => Some(mirror_to(place, &prepared).await?),
        None => None,
    };
    let (ledger, running) = begin(options, &traces, prepared, sockets, progress.clone(), mirror.clone())?;
    let (end, signal) = wait(&running.handle, &mut give_back).await?;
    if let Some(mirror) = mirror {
        mirror.finish(if end == RunEnd::Complete { LAST_COPY } else { FAREWELL }).await;
    }
    if options.stay && end == RunEnd::Complete {
        progress.close();
        conclude(&finish(&material, &dir)?, style);
        asked_to_stop().await?;
        running.end(&RunEnd::Stopped).await;
        dir.remove(ENDPOINTS);
        return Ok(ExitCode::SUCCESS);
    }
    running.end(&end).await;
    dir.remove(ENDPOINTS);
    drop(ledger);
    progress.close();
    match end {
        RunEnd::Complete => {
            conclude(&finish(&material, &dir)?, style);
            Ok(ExitCode::SUCCESS)
        }
        RunEnd::Failed(reason) => Err(anyhow!("{reason}; go on with: coordinator --resume {}", dir.path().display())),
        RunEnd::Preempted => {
            logging::tell(&format!("gave the machine back; go on with: coordinator --resume {}", dir.path().display()));
            Ok(ExitCode::from(AGAIN))
        }
        RunEnd::Stopped => {
            logging::tell(&format!("stopped; go on with: coordinator --resume {}", dir.path().display()));
            Ok(ExitCode::from(128u8.saturating_add(signal)))
        }
    }
}

/// The directory of the run that `--continue` goes on with; none if it must be started.
fn begun(request: &RunRequest) -> anyhow::Result<Option<PathBuf>> {
    let config = configuration(request)?;
    let dir = PathBuf::from(&config.run.dir);
    let named = quorum_core::config::load(request.config.as_deref(), &request.set).is_ok_and(|c| !c.run.dir.is_empty());
    if !named {
        return Err(anyhow!("--continue needs a run directory: give --set run.dir=DIR"));
    }
    let ledger = dir.join("ledger.db");
    if !ledger.is_file() {
        return Ok(None);
    }
    if Ledger::inspect_meta(&ledger, "run_id")?.is_some() {
        return Ok(Some(dir));
    }
    // Stopped before its identity was durable, it has done nothing yet.
    std::fs::remove_file(&ledger).with_context(|| ledger.display().to_string())?;
    Ok(None)
}

async fn asked_to_stop() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// A run that is resumed from S3 is fetched into its directory first, and then resumed there.
async fn from_mirror(options: &RunOptions, request: &mut RunRequest) -> anyhow::Result<()> {
    let Some(text) = request.resume.as_ref().and_then(|r| r.to_str()).filter(|r| Place::looks_like(r)) else {
        return match &options.run_dir {
            Some(_) => {
                Err(anyhow!("--run-dir belongs to --resume s3://BUCKET/PREFIX; a directory is resumed in its place"))
            }
            None => Ok(()),
        };
    };
    let dir =
        options.run_dir.clone().ok_or_else(|| anyhow!("--resume {text} needs --run-dir DIR, an empty directory"))?;
    let steps = mirror::restore(&Place::parse(text)?, &dir).await?;
    logging::tell(&format!("restored {text} with {steps} steps into {}", dir.display()));
    request.resume = Some(dir);
    Ok(())
}

/// The copy in a bucket.
async fn mirror_to(place: Place, prepared: &Prepared) -> anyhow::Result<Mirror> {
    let keep = prepared.material.config.checkpoint.keep;
    Ok(Mirror::start(place, &prepared.dir, &prepared.run_id, prepared.epoch, keep).await?)
}

/// The last words of a finished run: a table, or one more line for programs.
fn conclude(report: &Report, style: Style) {
    match style {
        Style::Json => say(&serde_json::json!({"event": "report", "report": report}).to_string()),
        _ => say(table(report).trim_end()),
    }
}

/// Whether nothing is left to do.
fn complete(prepared: &Prepared) -> bool {
    let plan = crate::run::plan_of(&prepared.material);
    let state = crate::state::RunState::new(plan, prepared.recovery.recovered.clone());
    state.phase() == crate::state::Phase::Complete
}

/// Waits for the end of the run or a signal; with the signal's number.
async fn wait(handle: &Handle, give_back: &mut Signal) -> anyhow::Result<(RunEnd, u8)> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let number = loop {
        tokio::select! {
            end = handle.ended() => return Ok((end, 0)),
            _ = give_back.recv() => handle.preempt().await,
            _ = interrupt.recv() => break 2,
            _ = terminate.recv() => break 15,
        }
    };
    handle.stop(RunEnd::Stopped).await;
    Ok((handle.ended().await, number))
}

/// Writes report.json and the per-question files from the ledger.
fn finish(material: &Material, dir: &RunDir) -> anyhow::Result<Report> {
    let history = Ledger::inspect(&dir.ledger())?;
    let per_step = supervised_per_step(&material.config);
    let questions = if material.config.eval.enabled { material.questions() } else { 0 };
    let set_aside = aside::report(material, &history.quarantine);
    let report = report(&history, &dir.path().display().to_string(), questions, per_step, set_aside)
        .map_err(anyhow::Error::msg)?;
    let recovery = crate::run::recover(&history, per_step).map_err(anyhow::Error::msg)?;
    for (version, evaluation) in &recovery.evaluations {
        dir.write_evaluation(*version, report.steps, evaluation)?;
    }
    dir.write("report.json", &format!("{:#}\n", serde_json::to_value(&report)?))?;
    Ok(report)
}
