//! Spans as a file of the Trace Event Format, which ui.perfetto.dev and chrome://tracing open: the run on one track, each worker's leases on as many
//! as it holds at a time. One event a line, no closing bracket (the format allows it), so that a killed or resumed run leaves a whole file.

use super::tracer::{Sink, Span, Value};
use anyhow::Context;
use serde_json::{Map, json};
use std::collections::HashMap;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Name in the run directory.
pub const FILE: &str = "trace.json";
/// Spans waiting for the disk; more are lost.
const QUEUE: usize = 8192;
/// Size at which no more is written: viewers cannot load more.
const LARGEST: u64 = 512 << 20;
const FLUSH: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct File {
    queue: Option<SyncSender<Arc<Span>>>,
    lost: AtomicU64,
    writer: Option<JoinHandle<()>>,
}

impl File {
    /// Goes on with the file if it is there, behind its last whole line.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let name = || path.display().to_string();
        let mut file =
            std::fs::OpenOptions::new().create(true).read(true).append(true).open(path).with_context(name)?;
        let size = whole(&mut file).with_context(name)?;
        file.set_len(size).with_context(name)?;
        let (queue, spans) = sync_channel(QUEUE);
        let mut out = Out { file: BufWriter::new(file), size, lanes: HashMap::new() };
        let path = name();
        let work = move || {
            if let Err(e) = out.follow(&spans) {
                tracing::warn!("{path} is not written any more: {e}");
            }
        };
        let writer = std::thread::Builder::new().name("trace".into()).spawn(work)?;
        Ok(Self { queue: Some(queue), lost: AtomicU64::new(0), writer: Some(writer) })
    }
}

impl Sink for File {
    fn span(&self, span: &Arc<Span>) {
        if self.queue.as_ref().is_some_and(|queue| queue.try_send(span.clone()).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn close(&mut self) {
        drop(self.queue.take());
        let (Some(writer), deadline) = (self.writer.take(), Instant::now() + PATIENCE) else { return };
        while !writer.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        match self.lost.load(Ordering::Relaxed) {
            0 => {}
            n => tracing::warn!("{n} spans are missing in {FILE}: the disk was too slow, or the file too long"),
        }
    }
}

/// Bytes up to the end of the last whole line: who was killed may have left half of one behind it.
fn whole(file: &mut std::fs::File) -> std::io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut part = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(part.len() as u64);
        let (part, _) = part.split_at_mut((end - start) as usize);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// The file and, for each worker, when the newest span on each of its tracks ended.
struct Out {
    file: BufWriter<std::fs::File>,
    size: u64,
    lanes: HashMap<String, Vec<SystemTime>>,
}

impl Out {
    fn follow(&mut self, spans: &Receiver<Arc<Span>>) -> std::io::Result<()> {
        if self.size == 0 {
            self.write("[")?;
        }
        loop {
            match spans.recv_timeout(FLUSH) {
                Ok(span) => self.span(&span)?,
                Err(RecvTimeoutError::Timeout) => self.file.flush()?,
                Err(RecvTimeoutError::Disconnected) => return self.file.flush(),
            }
            if self.size > LARGEST {
                self.file.flush()?;
                return Err(std::io::Error::other(format!("it has {} MB", LARGEST >> 20)));
            }
        }
    }

    fn span(&mut self, span: &Span) -> std::io::Result<()> {
        // A number for a name, the same after a resume.
        let [a, b, c, ..] = *blake3::hash(span.by.as_bytes()).as_bytes();
        let pid = u32::from_le_bytes([a, b, c, 0]);
        let lanes = self.lanes.entry(span.by.clone()).or_default();
        // Phases lie inside each other and share a track; leases that overlap cannot.
        let free = if span.by.is_empty() { Some(0) } else { lanes.iter().position(|end| *end <= span.start) };
        let lane = free.unwrap_or(lanes.len());
        if lane >= lanes.len() {
            lanes.push(span.end);
            let name = if span.by.is_empty() { "run" } else { span.by.as_str() };
            let meta = |what: &str, name: &str| json!({"name": what, "ph": "M", "pid": pid, "tid": lane, "args": {"name": name}});
            self.write(&format!("{},", meta("process_name", name)))?;
            let thread = if span.by.is_empty() { "steps".to_owned() } else { format!("lease {}", lane + 1) };
            self.write(&format!("{},", meta("thread_name", &thread)))?;
        } else if let Some(end) = lanes.get_mut(lane) {
            *end = span.end;
        }
        let mut args: Map<String, serde_json::Value> = Map::new();
        for (key, value) in &span.attributes {
            let value = match value {
                Value::Text(text) => text.as_str().into(),
                Value::Count(n) => (*n).into(),
                Value::Number(x) => (*x).into(),
            };
            args.insert((*key).to_owned(), value);
        }
        let micros = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e6;
        let start = micros(span.start);
        let event = json!({
            "name": span.failed.map_or_else(|| span.name.to_owned(), |why| format!("{} ({why})", span.name)),
            "cat": span.name, "ph": "X", "ts": start, "dur": micros(span.end) - start, "pid": pid, "tid": lane,
            "args": args,
        });
        self.write(&format!("{event},"))
    }

    fn write(&mut self, line: &str) -> std::io::Result<()> {
        self.size += line.len() as u64 + 1;
        writeln!(self.file, "{line}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_cut_off_when_a_run_goes_on() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(FILE);
        let long = format!("{{\"name\": \"{}", "x".repeat(10_000));
        for (left, kept) in [("", "[\n"), ("[", "[\n"), ("[\n{},\n", "[\n{},\n"), ("[\n{},\n{\"na", "[\n{},\n")] {
            std::fs::write(&path, left).unwrap();
            File::open(&path).unwrap().close();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), kept, "{left:?}");
        }
        std::fs::write(&path, format!("[\n{long}")).unwrap();
        File::open(&path).unwrap().close();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[\n");
    }
}
