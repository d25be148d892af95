//! Progress on stderr: a bar on a terminal, plain lines otherwise, or JSON lines on stdout. A reader that goes away is no reason to stop.

use crate::evaluate::Figures;
use crate::run::{Event, Observer};
use crate::state::Phase;
use indicatif::{ProgressBar, ProgressStyle};
use quorum_core::logging::{is_json, line};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// A bar on a terminal, plain lines otherwise.
    #[default]
    Auto,
    Bar,
    Plain,
    Json,
}

/// What is said when a run starts.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    pub run_dir: &'a str,
    pub grpc: &'a str,
    pub http: &'a str,
    /// Whether the page is HTTPS.
    pub tls: bool,
    pub train: u64,
    pub train_aside: u64,
    pub questions: u64,
    pub questions_aside: u64,
}

impl Style {
    /// The style that fits where the output goes: a bar needs a terminal, and beside JSON logs everything is JSON.
    pub fn resolved(self) -> Self {
        match self {
            Style::Auto if is_json() => Style::Json,
            Style::Auto | Style::Bar if std::io::stderr().is_terminal() => Style::Bar,
            Style::Auto | Style::Bar => Style::Plain,
            Style::Plain | Style::Json => self,
        }
    }
}

/// Plain lines about a long phase come at least this far apart.
const QUIET: Duration = Duration::from_secs(15);

struct Shown {
    bar: Option<ProgressBar>,
    phase: Option<Phase>,
    last_line: Instant,
    /// Begin of the phase and tokens since.
    phase_began: Instant,
    tokens: u64,
}

/// Shows the events of a run.
pub struct Progress {
    style: Style,
    shown: Mutex<Shown>,
}

impl Progress {
    pub fn new(style: Style) -> Self {
        let style = style.resolved();
        let now = Instant::now();
        let shown = Shown { bar: None, phase: None, last_line: now, phase_began: now, tokens: 0 };
        Self { style, shown: Mutex::new(shown) }
    }

    /// Removes the bar, so that what is printed next stands alone.
    pub fn close(&self) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = shown.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Where the run is and what it works on; said once.
    pub fn start(&self, start: &Start<'_>) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let Start { run_dir, grpc, http, tls, train, train_aside, questions, questions_aside } = start;
        if self.style == Style::Json {
            let line = json!({
                "event": "start", "run_dir": run_dir, "grpc": grpc, "http": http,
                "training_questions": train, "training_set_aside": train_aside,
                "held_out_questions": questions, "held_out_set_aside": questions_aside,
            });
            say(&line.to_string());
            return;
        }
        let scheme = if *tls { "https" } else { "http" };
        self.say(&shown, &format!("run directory {run_dir} · gRPC {grpc} · {scheme}://{http}/"));
        let aside = |n: u64| if n == 0 { String::new() } else { format!(" ({n} set aside)") };
        let held_out = match questions {
            0 => "no held-out questions".to_owned(),
            n => format!("{n} held-out questions{}", aside(*questions_aside)),
        };
        self.say(&shown, &format!("{train} training questions{} · {held_out}", aside(*train_aside)));
    }

    fn say(&self, shown: &Shown, text: &str) {
        match &shown.bar {
            Some(bar) if self.style == Style::Bar => bar.suspend(|| line(text)),
            _ => line(text),
        }
    }

    fn phase(&self, shown: &mut Shown, phase: Phase) {
        let kind = |p: Phase| matches!(p, Phase::Evaluate { .. });
        let same_kind = shown.phase.is_some_and(|p| kind(p) == kind(phase));
        shown.phase = Some(phase);
        shown.phase_began = Instant::now();
        shown.tokens = 0;
        if self.style == Style::Plain && kind(phase) {
            line(&format!("{} …", phase.describe()));
        }
        if self.style == Style::Bar && !same_kind {
            if let Some(bar) = shown.bar.take() {
                bar.finish_and_clear();
            }
            if phase != Phase::Complete {
                shown.bar = Some(new_bar(kind(phase)));
            }
        }
    }

    fn progress(&self, shown: &mut Shown, done: usize, all: usize, tokens: u64) {
        shown.tokens += tokens;
        let rate = shown.tokens as f64 / shown.phase_began.elapsed().as_secs_f64().max(1e-3);
        let evaluating = matches!(shown.phase, Some(Phase::Evaluate { .. }));
        if evaluating && let Some(bar) = &shown.bar {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            bar.set_message(format!("{} tok/s", thousands(rate)));
        }
        if self.style == Style::Plain && shown.last_line.elapsed() > QUIET {
            shown.last_line = Instant::now();
            let what = shown.phase.map(Phase::describe).unwrap_or_default();
            line(&format!("{what}: {done} of {all}, {} tok/s", thousands(rate)));
        }
    }

    fn step(&self, shown: &mut Shown, step: u64, steps: u64, metrics: &Value, rate: f64, left: f64) {
        shown.last_line = Instant::now();
        let text = figures(metrics, rate, left);
        match self.style {
            Style::Bar => {
                if let Some(bar) = &shown.bar {
                    bar.set_length(steps);
                    bar.set_position(step + 1);
                    bar.set_message(text);
                }
            }
            Style::Plain => line(&format!("step {}/{steps}  {text}", step + 1)),
            Style::Json | Style::Auto => {}
        }
    }
}

impl Observer for Progress {
    fn event(&self, event: &Event) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if self.style == Style::Json {
            if let Some(line) = json_line(event) {
                say(&line.to_string());
            }
            return;
        }
        match event {
            Event::Phase(phase) => self.phase(&mut shown, *phase),
            Event::Progress { done, all, tokens } => self.progress(&mut shown, *done, *all, *tokens),
            Event::Step { step, steps, metrics, tokens_per_second, seconds_left, .. } => {
                self.step(&mut shown, *step, *steps, metrics, *tokens_per_second, *seconds_left);
            }
            Event::Evaluated { version, figures } => self.say(&shown, &evaluated(*version, figures)),
            Event::Lost { id, pid, seconds } => self.say(&shown, &lost(id, *pid, *seconds)),
            Event::Checkpoint(_) | Event::Leased { .. } | Event::LeaseEnded { .. } | Event::Published { .. } => {}
            Event::Note(text) => self.say(&shown, text),
        }
    }
}

/// A line on stdout.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// The figures of a step, from its line of metrics.jsonl; `left` in seconds.
pub(super) fn figures(metrics: &Value, rate: f64, left: f64) -> String {
    let number = |key: &str| metrics.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    // A supervised step has no vote.
    let figures = match metrics.get("agreement_mean") {
        Some(_) => format!("reward {:.3}  agreement {:.3}", number("reward_mean"), number("agreement_mean")),
        None => format!("loss {:.4}", number("loss")),
    };
    format!("{figures}  {} tok/s  {} left", thousands(rate), duration(left))
}

fn new_bar(evaluating: bool) -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template =
        if evaluating { "evaluate {bar:28} {pos}/{len}  {msg}  {eta} left" } else { "step {pos}/{len} {bar:28} {msg}" };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

pub(super) fn evaluated(version: u64, f: &Figures) -> String {
    let percent = |v: f64| 100.0 * v;
    format!(
        "version {version} on {} held-out questions: greedy {:.1} %  mean {:.1} %  mean at low temperature {:.1} %  vote {:.1} %",
        f.n,
        percent(f.greedy),
        percent(f.mean),
        percent(f.mean_t03),
        percent(f.vote)
    )
}

fn json_line(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Phase(phase) => phase_line(*phase),
        // Too many to be of use in a log.
        Event::Progress { .. }
        | Event::Checkpoint(_)
        | Event::Leased { .. }
        | Event::LeaseEnded { .. }
        | Event::Published { .. } => return None,
        // Steps are counted from 1, as the bar does: `step` of `steps` are done.
        Event::Step { step, steps, metrics, seconds, tokens_per_second, seconds_left, .. } => json!({
            "event": "step", "step": step + 1, "steps": steps, "seconds": seconds, "seconds_left": seconds_left,
            "tokens_per_second": tokens_per_second, "metrics": metrics,
        }),
        Event::Lost { id, pid, seconds } => {
            json!({"event": "lost", "id": id, "pid": pid, "seconds": seconds, "text": lost(id, *pid, *seconds)})
        }
        Event::Evaluated { version, figures } => json!({"event": "evaluated", "version": version, "figures": figures}),
        Event::Note(text) => json!({"event": "note", "text": text}),
    })
}

fn phase_line(phase: Phase) -> Value {
    match phase {
        Phase::Evaluate { version } => json!({"event": "phase", "phase": "evaluate", "version": version}),
        Phase::Sample { step } => json!({"event": "phase", "phase": "sample", "step": step + 1}),
        Phase::Train { step } => json!({"event": "phase", "phase": "train", "step": step + 1}),
        Phase::Complete => json!({"event": "phase", "phase": "complete"}),
    }
}

fn lost(id: &str, pid: u32, seconds: f64) -> String {
    let process = if pid == 0 { String::new() } else { format!(" (process {pid})") };
    format!("{id}{process} was lost: nothing was heard of it for {seconds:.0} s")
}

pub(super) fn thousands(rate: f64) -> String {
    if rate >= 10_000.0 { format!("{:.1}k", rate / 1000.0) } else { format!("{rate:.0}") }
}

pub(super) fn duration(seconds: f64) -> String {
    let s = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { 0 };
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_count_steps_as_the_bar_does() {
        let step = Event::Step {
            step: 0,
            steps: 3,
            metrics: json!({"step": 0}),
            seconds: 1.0,
            tokens_per_second: 2.0,
            seconds_left: 2.0,
            timings: Default::default(),
        };
        let line = json_line(&step).unwrap();
        assert_eq!((&line["step"], &line["steps"]), (&json!(1), &json!(3)));
        assert_eq!(json_line(&Event::Phase(Phase::Train { step: 0 })).unwrap()["step"], 1);
        assert_eq!(json_line(&Event::Note("x".into())).unwrap()["text"], "x");
        let gone = Event::Lost { id: "worker-0".into(), pid: 7, seconds: 10.0 };
        let text = json_line(&gone).unwrap()["text"].as_str().unwrap().to_owned();
        assert!(text.contains("worker-0 (process 7)") && text.contains("10 s"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!((thousands(873.4), thousands(12_345.0)), ("873".into(), "12.3k".into()));
        assert_eq!([59.4, 61.0, 7300.0].map(duration), ["59 s", "1 min 1 s", "2 h 1 min"]);
    }
}
