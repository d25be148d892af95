//! `coordinator`: a run from preparation to report.

use super::cli::RunOptions;
use crate::aside;
use crate::launcher::{self, ChildEvent, Hung, Launcher, Roster, Wanted};
use crate::ledger::Ledger;
use crate::material::Material;
use crate::mirror::{self, Mirror, Place};
use crate::prepare::{Prepared, RunRequest, configuration, prepare};
use crate::run::{Event, Handle, Observer, Parts, RunEnd, start, supervised_per_step};
use crate::rundir::{ENDPOINTS, RunDir};
use crate::service::{Server, Shared, Sockets, bind, serve};
use crate::show::{Progress, Report, Start, Style, report, say, table};
use crate::trace::{self, Trace};
use crate::weights::WeightStore;
use anyhow::{Context, anyhow};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use quorum_core::config::ClusterSection;
use quorum_core::logging::LogSpec;
use quorum_core::{logging, metric};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit status after SIGUSR1: the batch system starts the job again.
const AGAIN: u8 = 75;
/// Time for the last copy to run.mirror after a complete run.
const LAST_COPY: Duration = Duration::from_secs(600);
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

struct Running {
    handle: Handle,
    server: Server,
    launcher: Option<Launcher>,
    trace: Option<Arc<Trace>>,
}

fn begin(
    options: &RunOptions,
    traces: &trace::Wanted,
    prepared: Prepared,
    sockets: Sockets,
    progress: Arc<Progress>,
    mirror: Option<Mirror>,
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
    logging::about_run(&run_id, "coordinator", false);
    let trace = Trace::start(traces, dir.path(), &run_id, epoch, material.config.run.steps)?.map(Arc::new);
    let watch = Watch { progress, tell, mirror: mirror.clone(), trace: trace.clone() };
    let observer: Arc<dyn Observer> = Arc::new(watch);
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
    if let Some(mirror) = mirror {
        let handle = handle.clone();
        tokio::spawn(async move {
            handle.stop(RunEnd::Failed(mirror.fenced().await)).await;
        });
    }
    let shared = Shared { run: handle.clone(), material: material.clone(), weights, run_id, epoch };
    let server = serve(sockets, &material.config.cluster, &shared, page)?;
    // Processes of other machines find the run by this file.
    let endpoints = serde_json::json!({
        "grpc": grpc.to_string(),
        "http": http.to_string(),
        "url": url(&material.config.cluster, grpc, &hostname()),
        "pid": std::process::id(),
    });
    dir.write(ENDPOINTS, &format!("{endpoints}\n"))?;
    let launcher = match launches.is_empty() {
        true => None,
        false => Some(Launcher::start(launches, dir.logs(), children, inbox, reporter(handle.clone(), observer))?),
    };
    Ok((ledger, Running { handle, server, launcher, trace }))
}

fn wanted(options: &RunOptions, material: &Material, grpc: SocketAddr, workers: u32) -> Wanted {
    let cluster = &material.config.cluster;
    let here = if !cluster.tls_cert.is_empty() {
        "localhost"
    } else if grpc.is_ipv4() {
        "127.0.0.1"
    } else {
        "[::1]"
    };
    Wanted {
        workers,
        ranks: material.config.learner.ranks,
        devices: options.device.clone(),
        url: url(cluster, grpc, here),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        learner_threads: material.config.learner.threads,
        token_file: cluster.token_file.clone(),
        tls_ca: cluster.tls_ca.clone(),
        tls_cert: cluster.tls_member_cert.clone(),
        tls_key: cluster.tls_member_key.clone(),
        log: child_log(&options.log).to_string(),
    }
}

/// Children write files that nobody has to look at: they say more than the coordinator's default.
fn child_log(own: &LogSpec) -> LogSpec {
    let filter = own.filter.as_deref().filter(|f| *f != "warn").unwrap_or("info");
    LogSpec { filter: Some(filter.to_owned()), ..own.clone() }
}

/// How to dial the coordinator; `any` is the host if it listens on every address.
fn url(cluster: &ClusterSection, grpc: SocketAddr, any: &str) -> String {
    let scheme = if cluster.tls_cert.is_empty() { "http" } else { "https" };
    let host = match grpc.ip() {
        ip if ip.is_unspecified() => any.to_owned(),
        // Certificates carry names.
        ip if ip.is_loopback() && scheme == "https" => "localhost".to_owned(),
        ip if ip.is_ipv6() => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    format!("{scheme}://{host}:{}", grpc.port())
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Shows events, and has children killed that are not heard of any more.
struct Watch {
    progress: Arc<Progress>,
    tell: Hung,
    mirror: Option<Mirror>,
    trace: Option<Arc<Trace>>,
}

impl Observer for Watch {
    fn traces(&self) -> bool {
        self.trace.is_some()
    }

    fn event(&self, event: &Event) {
        if let Event::Lost { pid, .. } = event {
            self.tell.process(*pid);
        }
        if let (Event::Checkpoint(row), Some(mirror)) = (event, &self.mirror) {
            mirror.offer(row);
        }
        if let Some(trace) = &self.trace {
            trace.event(event);
        }
        self.progress.event(event);
    }
}

/// Tells the run what happens to its children.
fn reporter(handle: Handle, observer: Arc<dyn Observer>) -> impl Fn(ChildEvent) + Send + 'static {
    let runtime = tokio::runtime::Handle::current();
    move |event| match event {
        ChildEvent::Gone { pid } => handle.process_gone(pid),
        ChildEvent::GroupGone => handle.group_gone(),
        ChildEvent::Restart { name, why } => {
            tracing::info!(name, why, "child died");
            observer.event(&Event::Note(format!("{name} died by {why}; starting it again")));
        }
        ChildEvent::GaveUp { reason } => {
            let handle = handle.clone();
            runtime.spawn(async move { handle.stop(RunEnd::Failed(reason)).await });
        }
    }
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

impl Running {
    /// Lets members hear of the end and leave, ends the children, stops the servers.
    async fn end(self, end: &RunEnd) {
        let told = matches!(end, RunEnd::Complete | RunEnd::Failed(_));
        let patience = if told { FAREWELL } else { Duration::ZERO };
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
        if told {
            self.server.farewell().await;
        }
        self.server.stop().await;
        if let Some(trace) = self.trace
            && let Err(e) = tokio::task::spawn_blocking(move || trace.close()).await
        {
            tracing::error!("{e}");
        }
    }

    async fn members(&self) -> usize {
        let status = self.handle.status().await.unwrap_or_default();
        status.get("members").and_then(serde_json::Value::as_array).map_or(0, Vec::len)
    }
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

fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    let mut page = PrometheusBuilder::new();
    for m in metric::ALL.iter().filter(|m| m.kind == metric::Kind::Histogram) {
        page = page.set_buckets_for_metric(Matcher::Full(m.name.into()), metric::buckets(m))?;
    }
    let page = page.install_recorder()?;
    metric::describe();
    metric::announce(&[]);
    Ok(page)
}
