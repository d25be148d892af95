//! Logs of every process on stderr: text for people, or with `--log json` one JSON object a line, which says of which run, step and worker it speaks.

use serde_json::{Map, Value};
use std::fmt::Debug;
use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What `--log` says: a filter, and `json` in front of it, or alone, for JSON lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogSpec {
    pub json: bool,
    /// As of `tracing`, e.g. `info` or `warn,quorum_learner=debug`; none = the process' own default.
    pub filter: Option<String>,
}

impl FromStr for LogSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|p| !p.is_empty()).collect();
        let filter = parts.iter().filter(|p| **p != "json").copied().collect::<Vec<_>>().join(",");
        EnvFilter::try_new(&filter).map_err(|e| format!("{e}; give a level, TARGET=LEVEL, or json"))?;
        Ok(Self { json: parts.contains(&"json"), filter: (!filter.is_empty()).then_some(filter) })
    }
}

impl std::fmt::Display for LogSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [self.json.then_some("json"), self.filter.as_deref()];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

/// No step is known.
const NO_STEP: u64 = u64::MAX;

static JSON: AtomicBool = AtomicBool::new(false);
static STEP: AtomicU64 = AtomicU64::new(NO_STEP);
static ABOUT: Mutex<About> = Mutex::new(About { process: String::new(), run: String::new(), worker: String::new() });

/// What every line of this process is about.
struct About {
    process: String,
    run: String,
    worker: String,
}

fn about() -> MutexGuard<'static, About> {
    ABOUT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts logging. `process` names this process until it has joined a run; `filter` holds where `spec` has none.
pub fn init(spec: &LogSpec, process: &str, filter: &str) {
    process.clone_into(&mut about().process);
    let filter = EnvFilter::new(spec.filter.as_deref().unwrap_or(filter));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if !spec.json {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        log.with_ansi(!plain && std::io::stderr().is_terminal()).init();
        return;
    }
    JSON.store(true, Ordering::Relaxed);
    log.event_format(JsonLines).init();
    std::panic::set_hook(Box::new(|panic| say("ERROR", &panic.to_string())));
}

/// From now on this process speaks for `id` in `run`; `worker`: it is a rollout worker.
pub fn about_run(run: &str, id: &str, worker: bool) {
    let mut about = about();
    run.clone_into(&mut about.run);
    id.clone_into(&mut about.process);
    if worker { id } else { "" }.clone_into(&mut about.worker);
}

/// From now on it is about this step, counted from 0.
pub fn about_step(step: u64) {
    STEP.store(step, Ordering::Relaxed);
}

/// Whether lines are JSON.
pub fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// A line on stderr as it stands, in one write: lines of several processes do not mix. A reader that went away is no error.
pub fn line(text: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// A line on stderr that no filter hides. A reader that went away is no error.
pub fn tell(text: &str) {
    if is_json() {
        say("INFO", text);
    } else {
        line(text);
    }
}

/// Why this process ends, as its last line on stderr.
pub fn fail(error: &str) {
    if is_json() {
        say("ERROR", error);
    } else {
        line(&format!("error: {error}"));
    }
}

fn say(level: &str, message: &str) {
    let mut fields = head(level, "quorum");
    fields.insert("message".into(), message.into());
    line(&Value::Object(fields).to_string());
}

/// The fields that come first, the message still empty.
fn head(level: &str, target: &str) -> Map<String, Value> {
    let mut timestamp = String::new();
    // Writing to a String cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    let about = about();
    let mut line = Map::new();
    let texts = [
        ("timestamp", timestamp.as_str()),
        ("level", level),
        ("target", target),
        ("message", ""),
        ("process", &about.process),
        ("run", &about.run),
        ("worker", &about.worker),
    ];
    for (key, text) in texts {
        if !text.is_empty() || key == "message" {
            line.insert(key.into(), text.into());
        }
    }
    let step = STEP.load(Ordering::Relaxed);
    if step != NO_STEP {
        line.insert("step".into(), step.into());
    }
    line
}

/// Fields of an event; they stand over what is known of the process.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// One JSON object a line.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let meta = event.metadata();
        let mut line = head(meta.level().as_str(), meta.target());
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::Arc;

    #[test]
    fn json_stands_in_front_of_a_filter_or_alone() {
        let spec = |text: &str| text.parse::<LogSpec>().unwrap();
        let is = |json, filter: Option<&str>| LogSpec { json, filter: filter.map(str::to_owned) };
        assert_eq!(spec("json"), is(true, None));
        assert_eq!(spec("json,info,quorum_core=debug"), is(true, Some("info,quorum_core=debug")));
        assert_eq!(spec("warn"), is(false, Some("warn")));
        assert_eq!(spec("json,warn").to_string(), "json,warn");
        assert!("a=b=c".parse::<LogSpec>().is_err());
    }

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_says_of_which_run_step_and_worker_it_speaks() {
        let kept = Kept::default();
        let writer = kept.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).event_format(JsonLines).finish();
        about_run("r1", "worker-7", true);
        about_step(3);
        tracing::subscriber::with_default(log, || {
            tracing::warn!(seconds = 1.5, "slow \"disk\"\nhere");
            tracing::info!(worker = "worker-9", step = 4u64, ok = true, error = ?Some(1), "other");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        let keys: Vec<&str> = lines[0].as_object().unwrap().keys().map(String::as_str).collect();
        let head = ["timestamp", "level", "target", "message", "process", "run", "worker", "step"];
        assert_eq!(keys, [&head[..], &["seconds"]].concat());
        assert_eq!((&lines[0]["message"], &lines[0]["level"]), (&"slow \"disk\"\nhere".into(), &"WARN".into()));
        assert_eq!(
            (&lines[0]["run"], &lines[0]["worker"], &lines[0]["step"]),
            (&"r1".into(), &"worker-7".into(), &3.into())
        );
        assert_eq!(
            (&lines[1]["worker"], &lines[1]["step"], &lines[1]["ok"]),
            (&"worker-9".into(), &4.into(), &true.into())
        );
    }
}
