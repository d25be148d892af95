//! `coordinator`: a run from preparation to report.

use super::cli::RunOptions;
use crate::aside;
use crate::launcher::{self, ChildEvent, Hung, Launcher, Roster, Wanted};
use crate::ledger::Ledger;
use crate::material::Material;
use crate::prepare::{Prepared, configuration, prepare};
use crate::run::{Event, Handle, Observer, Parts, RunEnd, start};
use crate::rundir::{ENDPOINTS, RunDir};
use crate::service::{Server, Shared, Sockets, bind, serve};
use crate::show::{Progress, Report, Start, Style, report, table};
use crate::weights::WeightStore;
use anyhow::{Context, anyhow};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use quorum_core::metric;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Time for children to leave by themselves after the run.
const FAREWELL: Duration = Duration::from_secs(5);

pub(super) fn run(options: RunOptions) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(drive(&options));
    // Whatever still waits on a lost connection must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn drive(options: &RunOptions) -> anyhow::Result<ExitCode> {
    let request = options.request();
    let config = configuration(&request)?;
    if config.rollout.top_p < 1.0 || config.rollout.top_k > 0 {
        tracing::warn!("{}", crate::prepare::BIASED);
    }
    if options.workers > 0 {
        launcher::check()?;
    }
    let sockets = bind(&config.cluster)?;
    let prepared = prepare(&request, config).await?;
    let (material, dir) = (prepared.material.clone(), prepared.dir.clone());
    if complete(&prepared) {
        conclude(&finish(&material, &dir)?, options.progress);
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Arc::new(Progress::new(options.progress));
    let (ledger, running) = begin(options, prepared, sockets, progress.clone())?;
    let (end, signal) = wait(&running.handle).await?;
    running.end(&end).await;
    dir.remove(ENDPOINTS);
    drop(ledger);
    progress.close();
    match end {
        RunEnd::Complete => {
            conclude(&finish(&material, &dir)?, options.progress);
            Ok(ExitCode::SUCCESS)
        }
        RunEnd::Failed(reason) => Err(anyhow!("{reason}; go on with: coordinator --resume {}", dir.path().display())),
        RunEnd::Stopped => {
            eprintln!("stopped; go on with: coordinator --resume {}", dir.path().display());
            Ok(ExitCode::from(128u8.saturating_add(signal)))
        }
    }
}

/// The last words of a finished run: a table, or one more line for programs.
fn conclude(report: &Report, style: Style) {
    match style {
        Style::Json => println!("{}", serde_json::json!({"event": "report", "report": report})),
        _ => print!("{}", table(report)),
    }
}

/// Whether nothing is left to do.
fn complete(prepared: &Prepared) -> bool {
    let plan = crate::run::plan_of(&prepared.material);
    let state = crate::state::RunState::new(plan, prepared.recovery.recovered.clone());
    state.phase() == crate::state::Phase::Complete
}

struct Running {
    handle: Handle,
    server: Server,
    launcher: Option<Launcher>,
}

fn begin(
    options: &RunOptions,
    prepared: Prepared,
    sockets: Sockets,
    progress: Arc<Progress>,
) -> anyhow::Result<(Ledger, Running)> {
    let page = install_metrics()?;
    let Prepared { material, ledger, dir, recovery, run_id, epoch, history: _ } = prepared;
    let (grpc, http) = (sockets.grpc.local_addr()?, sockets.http.local_addr()?);
    let (train_aside, questions_aside) = material.set_aside_counts();
    progress.start(&Start {
        run_dir: &dir.path().display().to_string(),
        grpc: &grpc.to_string(),
        http: &http.to_string(),
        train: material.train_len() as u64,
        train_aside,
        questions: u64::from(material.questions()),
        questions_aside,
    });
    let weights = WeightStore::default();
    // Children are found before the run starts: a missing one is no reason to begin.
    let leases = !material.supervised() || (material.config.eval.enabled && material.questions() > 0);
    let launches = match options.workers {
        0 => Vec::new(),
        n => launcher::plan(&wanted(options, &material, grpc, if leases { n } else { 0 }))?,
    };
    let (tell, inbox) = launcher::hung();
    let observer: Arc<dyn Observer> = Arc::new(Watch { progress, tell });
    let children = Roster::default();
    let parts = Parts {
        material: material.clone(),
        ledger: ledger.clone(),
        dir: dir.clone(),
        weights: weights.clone(),
        recovery,
        observer: observer.clone(),
        run_id: run_id.clone(),
        epoch,
        children: children.clone(),
    };
    let handle = start(parts);
    let shared = Shared { run: handle.clone(), material: material.clone(), weights, run_id, epoch };
    let server = serve(sockets, &material.config.cluster, &shared, page)?;
    let endpoints = serde_json::json!({"grpc": grpc.to_string(), "http": http.to_string(), "pid": std::process::id()});
    dir.write(ENDPOINTS, &format!("{endpoints}\n"))?;
    let launcher = match launches.is_empty() {
        true => None,
        false => Some(Launcher::start(launches, dir.logs(), children, inbox, reporter(handle.clone(), observer))?),
    };
    Ok((ledger, Running { handle, server, launcher }))
}

fn wanted(options: &RunOptions, material: &Material, grpc: SocketAddr, workers: u32) -> Wanted {
    let cluster = &material.config.cluster;
    let host = match (cluster.tls_cert.is_empty(), grpc.ip().is_unspecified() || grpc.ip().is_loopback()) {
        // Certificates carry names.
        (false, true) => "localhost".to_owned(),
        (true, true) if grpc.is_ipv4() => "127.0.0.1".into(),
        (true, true) => "[::1]".into(),
        (_, false) if grpc.is_ipv6() => format!("[{}]", grpc.ip()),
        (_, false) => grpc.ip().to_string(),
    };
    let scheme = if cluster.tls_cert.is_empty() { "http" } else { "https" };
    Wanted {
        workers,
        url: format!("{scheme}://{host}:{}", grpc.port()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        learner_threads: material.config.learner.threads,
        token_file: cluster.token_file.clone(),
        tls_ca: cluster.tls_ca.clone(),
        log: if options.log == "warn" { "info".into() } else { options.log.clone() },
    }
}

/// Shows events, and has children killed that are not heard of any more.
struct Watch {
    progress: Arc<Progress>,
    tell: Hung,
}

impl Observer for Watch {
    fn event(&self, event: &Event) {
        if let Event::Lost { pid, .. } = event {
            self.tell.process(*pid);
        }
        self.progress.event(event);
    }
}

/// Tells the run what happens to its children.
fn reporter(handle: Handle, observer: Arc<dyn Observer>) -> impl Fn(ChildEvent) + Send + 'static {
    let runtime = tokio::runtime::Handle::current();
    move |event| match event {
        ChildEvent::Gone { pid } => handle.process_gone(pid),
        ChildEvent::Restart { name, why } => {
            tracing::info!(name, why, "child died");
            observer.event(&Event::Note(format!("{name} died by {why}; starting it again")));
        }
        ChildEvent::GaveUp { reason } => {
            let handle = handle.clone();
            runtime.spawn(async move { handle.stop(reason.clone(), RunEnd::Failed(reason)).await });
        }
    }
}

/// Waits for the end of the run or a signal; with the signal's number.
async fn wait(handle: &Handle) -> anyhow::Result<(RunEnd, u8)> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let number = tokio::select! {
        end = handle.ended() => return Ok((end, 0)),
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
    };
    handle.stop("the coordinator was stopped".into(), RunEnd::Stopped).await;
    Ok((handle.ended().await, number))
}

impl Running {
    /// Lets members leave, ends the children, stops the servers.
    async fn end(self, end: &RunEnd) {
        let patience = if *end == RunEnd::Complete { FAREWELL } else { Duration::ZERO };
        let deadline = tokio::time::Instant::now() + patience;
        while tokio::time::Instant::now() < deadline && self.members().await > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Some(launcher) = self.launcher {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if let Err(e) = tokio::task::spawn_blocking(move || launcher.finish(left)).await {
                tracing::error!("{e}");
            }
        }
        self.server.stop().await;
    }

    async fn members(&self) -> usize {
        let status = self.handle.status().await.unwrap_or_default();
        status.get("members").and_then(serde_json::Value::as_array).map_or(0, Vec::len)
    }
}

/// Writes report.json and the per-question files from the ledger.
fn finish(material: &Material, dir: &RunDir) -> anyhow::Result<Report> {
    let history = Ledger::inspect(&dir.ledger())?;
    let per_step = material.supervised().then_some(material.config.rollout.prompts_per_step);
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

fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    let seconds = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0];
    let ratios = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
    let counts = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0];
    let page = PrometheusBuilder::new()
        .set_buckets(&counts)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &seconds)?
        .set_buckets_for_metric(Matcher::Suffix("_fraction".into()), &ratios)?
        .set_buckets_for_metric(Matcher::Suffix("_value".into()), &ratios)?
        .set_buckets_for_metric(Matcher::Suffix("_nats".into()), &[0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0])?
        .install_recorder()?;
    metric::describe();
    metric::BUILD_INFO.with([env!("CARGO_PKG_VERSION"), "", "cpu"]).set(1.0);
    Ok(page)
}
