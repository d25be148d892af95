//! Who waited for whom: the events of a run as spans, one trace a step, one span a lease. The spans go to a file for Perfetto (`--trace`), to an
//! OpenTelemetry collector (`--otlp`), or to both. Neither can hold the run up: a sink that does not keep up loses spans and says so.

mod chrome;
#[cfg(feature = "otel")]
mod otlp;
mod tracer;

pub use chrome::FILE;
pub use tracer::{Sink, Span, Tracer, Value};

use crate::run::Event;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Where spans are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// In `trace.json` of the run directory.
    file: bool,
    /// At this collector's gRPC address.
    otlp: Option<String>,
}

impl Wanted {
    /// `file`: of `--trace`; `otlp`: of `--otlp`, else the collector that the environment names.
    ///
    /// # Errors
    /// This build cannot send to a collector.
    pub fn of(file: bool, otlp: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self { file, otlp: collector(otlp)? })
    }
}

/// The tracer of a run, shared by those who tell it of events.
pub struct Trace(Mutex<Tracer>);

impl Trace {
    /// Opens what is wanted; none if nothing is. To be called on the runtime that exports.
    ///
    /// # Errors
    /// The file cannot be written, or the collector's address is none.
    pub fn start(wanted: &Wanted, dir: &Path, run_id: &str, epoch: u64, steps: u64) -> anyhow::Result<Option<Self>> {
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if wanted.file {
            sinks.push(Box::new(chrome::File::open(&dir.join(FILE))?));
        }
        if let Some(url) = &wanted.otlp {
            sinks.push(exporter(url, run_id)?);
        }
        Ok((!sinks.is_empty()).then(|| Self(Mutex::new(Tracer::new(run_id, epoch, steps, sinks)))))
    }

    pub fn event(&self, event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).event(event, SystemTime::now());
    }

    /// Ends what is open and hands over what is left; takes two seconds at most for each sink.
    pub fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).close(SystemTime::now());
    }
}

/// The collector's address: of the flag, else of the environment.
fn collector(flag: Option<&str>) -> anyhow::Result<Option<String>> {
    const VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let found = std::env::var(VARIABLE).ok().filter(|url| !url.is_empty());
    if cfg!(feature = "otel") {
        return Ok(flag.map(str::to_owned).or(found));
    }
    if let Some(url) = flag {
        anyhow::bail!(
            "--otlp {url}: this coordinator was built without traces; build it with `cargo build --release --features quorum-coordinator/otel`, or take --trace, which needs no collector"
        );
    }
    if found.is_some() {
        tracing::warn!("{VARIABLE} is set, but this coordinator was built without feature otel: no traces are sent");
    }
    Ok(None)
}

#[cfg(feature = "otel")]
fn exporter(url: &str, run_id: &str) -> anyhow::Result<Box<dyn Sink>> {
    Ok(Box::new(otlp::Collector::dial(url, run_id)?))
}

#[cfg(not(feature = "otel"))]
fn exporter(url: &str, _: &str) -> anyhow::Result<Box<dyn Sink>> {
    anyhow::bail!("{url}: built without feature otel")
}
