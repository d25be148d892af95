//! A run under way: its servers, children and observers, from their start to their end.

use super::cli::RunOptions;
use crate::launcher::{self, ChildEvent, Hung, Launcher, Roster, Wanted};
use crate::ledger::Ledger;
use crate::material::Material;
use crate::mirror::Mirror;
use crate::prepare::Prepared;
use crate::run::{Event, Handle, Observer, Parts, RunEnd, start};
use crate::rundir::ENDPOINTS;
use crate::service::{Server, Shared, Sockets, serve};
use crate::show::{Progress, Start};
use crate::trace::{self, Trace};
use crate::weights::WeightStore;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use quorum_core::config::ClusterSection;
use quorum_core::logging::{self, LogSpec};
use quorum_core::metric;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Time for children to leave by themselves after the run, and for the last copy of one that is not complete.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// What runs beside the run's owner.
pub(super) struct Running {
    pub handle: Handle,
    server: Server,
    launcher: Option<Launcher>,
    trace: Option<Arc<Trace>>,
}

/// Starts everything.
pub(super) fn begin(
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
        tls: !material.config.cluster.tls_cert.is_empty(),
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
    let launcher = match launches.is_empty() {
        true => None,
        false => Some(Launcher::start(launches, dir.logs(), children, inbox, reporter(handle.clone(), observer))?),
    };
    // Processes of other machines find the run by this file: it is there once nothing else can fail.
    let endpoints = serde_json::json!({
        "grpc": grpc.to_string(),
        "http": http.to_string(),
        "url": url(&material.config.cluster, grpc, &hostname()),
        "pid": std::process::id(),
    });
    dir.write(ENDPOINTS, &format!("{endpoints}\n"))?;
    Ok((ledger, Running { handle, server, launcher, trace }))
}

impl Running {
    /// Lets members hear of the end and leave, ends the children, stops the servers.
    pub async fn end(self, end: &RunEnd) {
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
        self.server.farewell().await;
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
