//! From events to spans. Time is an argument; sinks get each span when it ends.
//!
//! A trace is a step: its root `step` lasts from the commit before to its own. Under it lie `evaluate` (when the step's start version is
//! evaluated first), `sample` and `train`; under `evaluate` and `sample` one `lease` for each grant; under `train` what the learner did last:
//! `checkpoint` and `publish`. The evaluation after the last step is the trace of a root named `end`.

use crate::run::Event;
use crate::state::{Phase, Work};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Count(u64),
    Number(f64),
}

/// Something that took time.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub trace: [u8; 16],
    pub id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    pub name: &'static str,
    /// Who did it: a worker's id, or nothing for the run itself.
    pub by: String,
    pub start: SystemTime,
    pub end: SystemTime,
    pub attributes: Vec<(&'static str, Value)>,
    /// It did not come to a good end: its outcome.
    pub failed: Option<&'static str>,
}

/// Takes finished spans.
pub trait Sink: Send {
    /// Must not block.
    fn span(&self, span: &Arc<Span>);
    /// Hands over what is left, within two seconds.
    fn close(&mut self);
}

/// Builds the spans of a run.
pub struct Tracer {
    run: (String, u64),
    steps: u64,
    sinks: Vec<Box<dyn Sink>>,
    /// The number of the step and its span.
    root: Option<(u64, Span)>,
    phase: Option<Span>,
    leases: BTreeMap<u64, Span>,
    /// Grants of each task of the phase.
    attempts: HashMap<Work, u64>,
    published: Option<SystemTime>,
    made: u64,
}

impl Tracer {
    /// For epoch `epoch` of run `run_id`, which has `steps` steps.
    pub fn new(run_id: &str, epoch: u64, steps: u64, sinks: Vec<Box<dyn Sink>>) -> Self {
        Self {
            run: (run_id.to_owned(), epoch),
            steps,
            sinks,
            root: None,
            phase: None,
            leases: BTreeMap::new(),
            attempts: HashMap::new(),
            published: None,
            made: 0,
        }
    }

    /// Something happened at `at`.
    pub fn event(&mut self, event: &Event, at: SystemTime) {
        match event {
            Event::Phase(phase) => self.enter(*phase, at),
            Event::Leased { lease, work, row, worker } => self.leased(*lease, *work, *row, worker, at),
            Event::LeaseEnded { lease, outcome, generate_seconds } => {
                if let Some(mut span) = self.leases.remove(lease) {
                    span.attributes.push(("outcome", Value::Text((*outcome).into())));
                    span.attributes.extend(generate_seconds.map(|s| ("generate_seconds", Value::Number(s))));
                    span.failed = (*outcome != "accepted").then_some(*outcome);
                    self.finish(span, at);
                }
            }
            Event::Published { .. } => self.published = Some(at),
            Event::Step { metrics, timings, tokens_per_second, .. } => {
                self.learned(timings, at);
                let figure = |key: &'static str| Some((key, Value::Number(metrics.get(key)?.as_f64()?)));
                if let Some((_, root)) = &mut self.root {
                    root.attributes.extend(["reward_mean", "agreement_mean", "loss"].into_iter().filter_map(figure));
                    root.attributes.push(("tokens_per_second", Value::Number(*tokens_per_second)));
                }
            }
            Event::Progress { .. }
            | Event::Checkpoint(_)
            | Event::Evaluated { .. }
            | Event::Lost { .. }
            | Event::Note(_) => {}
        }
    }

    /// Ends everything that is open, and the sinks.
    pub fn close(&mut self, at: SystemTime) {
        self.leave(at, true);
        for sink in &mut self.sinks {
            sink.close();
        }
    }

    fn enter(&mut self, phase: Phase, at: SystemTime) {
        let (name, step) = match phase {
            Phase::Evaluate { version } => ("evaluate", version),
            Phase::Sample { step } => ("sample", step),
            Phase::Train { step } => ("train", step),
            Phase::Complete => return self.leave(at, true),
        };
        self.leave(at, self.root.as_ref().is_none_or(|(of, _)| *of != step));
        if self.root.is_none() {
            let (run, epoch) = &self.run;
            let trace = hash(format!("{run}/{epoch}/{step}").as_bytes());
            let attributes =
                vec![("run", Value::Text(run.clone())), ("epoch", Value::Count(*epoch)), ("step", Value::Count(step))];
            let name = if step < self.steps { "step" } else { "end" };
            let root = Span { attributes, ..self.span(trace, None, name, at) };
            self.root = Some((step, root));
        }
        let under = self.root.as_ref().map(|(_, root)| (root.trace, root.id));
        self.phase = under.map(|(trace, root)| self.span(trace, Some(root), name, at));
    }

    /// Ends the phase, and with `whole` the step.
    fn leave(&mut self, at: SystemTime, whole: bool) {
        for (_, mut lease) in std::mem::take(&mut self.leases) {
            lease.failed = Some("cut off");
            lease.attributes.push(("outcome", Value::Text("cut off".to_owned())));
            self.finish(lease, at);
        }
        self.attempts.clear();
        if let Some(phase) = self.phase.take() {
            self.finish(phase, at);
        }
        if whole && let Some((_, root)) = self.root.take() {
            self.finish(root, at);
        }
    }

    fn leased(&mut self, lease: u64, work: Work, row: Option<u64>, worker: &str, at: SystemTime) {
        let Some((trace, parent)) = self.phase.as_ref().map(|p| (p.trace, p.id)) else { return };
        let attempt = self.attempts.entry(work).or_default();
        *attempt += 1;
        let mut attributes = vec![
            ("worker", Value::Text(worker.to_owned())),
            ("purpose", Value::Text(crate::evaluate::purpose_name(work.purpose).to_owned())),
            ("step", Value::Count(work.step)),
            ("slot", Value::Count(work.slot.into())),
            ("lease", Value::Count(lease)),
            ("attempt", Value::Count(*attempt)),
        ];
        attributes.extend(row.map(|row| ("row", Value::Count(row))));
        let span = Span { by: worker.to_owned(), attributes, ..self.span(trace, Some(parent), "lease", at) };
        self.leases.insert(lease, span);
    }

    /// The learner's last deeds before a commit: it writes its checkpoint, then uploads the version, which is complete at `published`.
    fn learned(&mut self, timings: &HashMap<String, f64>, at: SystemTime) {
        let Some(train) = &mut self.phase else { return };
        let (trace, id, began) = (train.trace, train.id, train.start);
        for (key, value) in timings.iter().collect::<BTreeMap<_, _>>() {
            if let Some(name) = LEARNER.into_iter().find(|name| name == key) {
                train.attributes.push((name, Value::Number(*value)));
            }
        }
        let published = self.published.take().unwrap_or(at).clamp(began, at);
        let mut end = published;
        for (name, key) in [("publish", "publish_seconds"), ("checkpoint", "checkpoint_seconds")] {
            let seconds = timings.get(key).and_then(|s| Duration::try_from_secs_f64(*s).ok());
            let Some(seconds) = seconds else { continue };
            let start = end.checked_sub(seconds).unwrap_or(began).max(began);
            let span = self.span(trace, Some(id), name, start);
            self.finish(span, end);
            end = start;
        }
    }

    fn span(&mut self, trace: [u8; 16], parent: Option<[u8; 8]>, name: &'static str, start: SystemTime) -> Span {
        self.made += 1;
        let [a, b, c, d, e, f, g, h, ..] = hash(&[&trace[..], &self.made.to_le_bytes()].concat());
        let id = [a, b, c, d, e, f, g, h];
        Span { trace, id, parent, name, by: String::new(), start, end: start, attributes: Vec::new(), failed: None }
    }

    fn finish(&self, mut span: Span, at: SystemTime) {
        span.end = at.max(span.start);
        let span = Arc::new(span);
        self.sinks.iter().for_each(|sink| sink.span(&span));
    }
}

/// Phases of the learner, shown at `train`; those of a step with several gradient batches are sums.
const LEARNER: [&str; 9] = [
    "wait_batch_seconds",
    "encode_seconds",
    "logprob_seconds",
    "forward_backward_seconds",
    "all_reduce_seconds",
    "optimizer_seconds",
    "checkpoint_seconds",
    "publish_seconds",
    "learner_seconds",
];

fn hash(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_core::Purpose;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<Arc<Span>>>>);

    impl Sink for Kept {
        fn span(&self, span: &Arc<Span>) {
            self.0.lock().unwrap().push(span.clone());
        }

        fn close(&mut self) {}
    }

    #[test]
    fn spans_nest_and_a_lost_lease_is_seen() {
        let kept = Kept::default();
        let mut tracer = Tracer::new("r", 1, 1, vec![Box::new(kept.clone())]);
        let at = |s: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let work = Work { purpose: Purpose::Train, step: 0, slot: 3 };
        let leased = |lease, worker: &str| Event::Leased { lease, work, row: Some(9), worker: worker.into() };
        let ended = |lease, outcome| Event::LeaseEnded { lease, outcome, generate_seconds: None };
        let timings = [("publish_seconds", 2.0), ("checkpoint_seconds", 3.0), ("learner_seconds", 7.0)];
        let step = Event::Step {
            step: 0,
            steps: 1,
            metrics: serde_json::json!({"loss": 0.5}),
            seconds: 1.0,
            tokens_per_second: 7.0,
            seconds_left: 0.0,
            timings: timings.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        };
        let events = [
            (0, Event::Phase(Phase::Sample { step: 0 })),
            (1, leased(1, "a")),
            (5, ended(1, "expired")),
            (5, leased(2, "b")),
            (9, ended(2, "accepted")),
            (10, Event::Phase(Phase::Train { step: 0 })),
            (19, Event::Published { version: 1 }),
            (20, step),
            (20, Event::Phase(Phase::Evaluate { version: 1 })),
            (21, leased(3, "b")),
        ];
        events.iter().for_each(|(s, event)| tracer.event(event, at(*s)));
        tracer.close(at(30));
        let spans = kept.0.lock().unwrap().clone();
        let times = |span: &Span| [span.start, span.end].map(|t| t.duration_since(at(0)).unwrap().as_secs());
        let seen: Vec<_> = spans.iter().map(|s| (s.name, s.by.as_str(), times(s), s.failed)).collect();
        let wanted = [
            ("lease", "a", [1, 5], Some("expired")),
            ("lease", "b", [5, 9], None),
            ("sample", "", [0, 10], None),
            ("publish", "", [17, 19], None),
            ("checkpoint", "", [14, 17], None),
            ("train", "", [10, 20], None),
            ("step", "", [0, 20], None),
            ("lease", "b", [21, 30], Some("cut off")),
            ("evaluate", "", [20, 30], None),
            ("end", "", [20, 30], None),
        ];
        assert_eq!(seen, wanted);
        let parent = |i: usize| spans.iter().position(|s| Some(s.id) == spans[i].parent).map(|p| spans[p].name);
        let parents: Vec<_> = (0..spans.len()).map(|i| parent(i).unwrap_or("-")).collect();
        assert_eq!(parents, ["sample", "sample", "step", "train", "train", "step", "-", "evaluate", "end", "-"]);
        assert!(spans[..7].iter().all(|s| s.trace == spans[0].trace) && spans[9].trace != spans[0].trace);
        assert!(spans[1].attributes.contains(&("attempt", Value::Count(2))), "{:?}", spans[1]);
    }
}
