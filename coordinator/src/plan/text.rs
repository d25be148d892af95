//! The plan as aligned text.

use super::batch::Batch;
use super::{DiskPlan, Footprint, MemoryPlan, ModelPlan, Plan, Prompts, Spread};
use std::fmt::Write;

/// A purpose in the memory table, and how to get it.
type Purpose = (&'static str, fn(&Footprint) -> u64);

const PURPOSES: [Purpose; 11] = [
    ("weights", |f| f.weights),
    ("weights as panels", |f| f.panels),
    ("frozen weights", |f| f.frozen),
    ("gradients", |f| f.gradients),
    ("optimiser", |f| f.optimizer),
    ("reference model", |f| f.reference),
    ("keys and values", |f| f.kv),
    ("activations", |f| f.activations),
    ("data and images", |f| f.data),
    ("process", |f| f.base),
    ("total", Footprint::total),
];

/// Width of the first column.
const NAME: usize = 26;

/// The whole plan. Writing to a String cannot fail.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    if !plan.mistakes.is_empty() {
        let _ = writeln!(out, "{} to put right before a run can start:", count(plan.mistakes.len() as u64, "mistake"));
        list(&mut out, "  - ", &plan.mistakes);
        let _ = writeln!(out);
    }
    if let Some(model) = &plan.model {
        model_text(&mut out, model);
    }
    if let Some(prompts) = &plan.prompts {
        prompts_text(&mut out, prompts);
    }
    if let Some(batch) = &plan.batch {
        batch_text(&mut out, batch, plan.test_questions);
    }
    if let Some(memory) = &plan.memory {
        memory_text(&mut out, memory);
    }
    if let Some(disk) = &plan.disk {
        disk_text(&mut out, disk);
    }
    if !plan.notes.is_empty() {
        let _ = writeln!(out, "notes");
        list(&mut out, "  - ", &plan.notes);
    }
    out
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "  {name:<NAME$} {value}");
}

fn list(out: &mut String, indent: &str, items: &[String]) {
    for item in items {
        let _ = writeln!(out, "{indent}{item}");
    }
}

fn model_text(out: &mut String, m: &ModelPlan) {
    let _ = writeln!(out, "model {} ({})", m.path, m.family);
    let named = [
        ("vision", m.parts.vision),
        ("embedding", m.parts.embedding),
        ("decoder", m.parts.decoder),
        ("head", m.parts.head),
    ];
    let parts: Vec<String> = named.iter().filter(|p| p.1 > 0).map(|(n, v)| format!("{n} {}", millions(*v))).collect();
    line(out, "parameters", format!("{} ({})", millions(m.parameters), parts.join(", ")));
    line(out, "trained", format!("{}, frozen {}", millions(m.trainable), millions(m.frozen)));
    let _ = writeln!(out);
}

fn prompts_text(out: &mut String, p: &Prompts) {
    let _ = writeln!(out, "prompts ({} of {} training records measured)", grouped(p.measured), grouped(p.records));
    let _ = writeln!(out, "  {:<NAME$} {:>9} {:>9} {:>9} {:>9}", "", "min", "median", "p95", "max");
    let mut row = |name: &str, s: &Spread| {
        let [a, b, c, d] = [s.min, s.median, s.p95, s.max].map(grouped);
        let _ = writeln!(out, "  {name:<NAME$} {a:>9} {b:>9} {c:>9} {d:>9}");
    };
    row("tokens", &p.tokens);
    row("image tokens among them", &p.image_tokens);
    row("image patches", &p.patches);
    line(out, "model's positions", grouped(p.positions));
    if p.set_aside > 0 {
        line(out, "will be set aside", count(p.set_aside, "record"));
        list(out, "    ", &p.first);
    }
    let _ = writeln!(out);
}

fn batch_text(out: &mut String, b: &Batch, questions: u64) {
    let _ = writeln!(out, "batch");
    let samples = format!(
        "{} prompts × {} = {} responses, at most {} tokens generated",
        grouped(b.prompts_per_step),
        grouped(b.group_size),
        grouped(b.samples_per_step),
        grouped(b.generated_tokens_per_step)
    );
    line(out, "a step", samples);
    let sizes: Vec<String> = b.gradient_batches.iter().take(8).map(|n| grouped(*n)).collect();
    let more = if b.gradient_batches.len() > 8 { ", …" } else { "" };
    line(out, "gradient batches a step", format!("{} of {}{more} prompts", b.gradient_batches.len(), sizes.join(", ")));
    line(out, "steps", format!("{} = {} optimiser steps", grouped(b.steps), grouped(b.optimizer_steps)));
    line(out, "epochs over the data", format!("{:.2}", b.epochs));
    let evaluated = format!("{} of {} questions × 3", count(b.evaluations, "evaluation"), grouped(questions));
    line(
        out,
        "leases",
        format!("{} for training, {} for {evaluated}", grouped(b.training_leases), grouped(b.evaluation_leases)),
    );
    let _ = writeln!(out);
}

fn memory_text(out: &mut String, m: &MemoryPlan) {
    let _ = writeln!(out, "memory, peak of each process (estimate)");
    let worker = format!("worker (× {})", m.workers);
    let _ = writeln!(out, "  {:<NAME$} {:>12} {worker:>12} {:>12}", "", "coordinator", "learner");
    for (name, get) in PURPOSES {
        let [c, w, l] = [&m.coordinator, &m.worker, &m.learner].map(get);
        if c + w + l > 0 {
            let _ = writeln!(out, "  {name:<NAME$} {:>12} {:>12} {:>12}", cell(c), cell(w), cell(l));
        }
    }
    let total =
        format!("{} of {} RAM ({} available now)", bytes(m.total), bytes(m.machine.ram), bytes(m.machine.available));
    line(out, "all together", total);
    let verdict = match (m.fits, m.total <= m.machine.ram) {
        (true, _) => "fits",
        (false, true) => "does not fit beside what runs on this machine now",
        (false, false) => "does not fit",
    };
    line(out, "verdict", verdict);
    if !m.remedies.is_empty() {
        let _ = writeln!(out, "  what would help");
        for r in &m.remedies {
            let verdict = if r.fits { "fits" } else { "still does not fit" };
            let _ = writeln!(out, "    {:>10}  {verdict:<18}  {}", bytes(r.total), r.change);
        }
    }
    let _ = writeln!(out);
}

fn disk_text(out: &mut String, d: &DiskPlan) {
    let _ = writeln!(out, "disk");
    let kept = d.need.checkpoints / d.need.checkpoint.max(1);
    line(out, "checkpoints", format!("{} ({kept} × {})", bytes(d.need.checkpoints), bytes(d.need.checkpoint)));
    if d.need.published > 0 {
        line(out, "published weights", format!("{} while it runs", bytes(d.need.published)));
    }
    line(out, "ledger, at most", bytes(d.need.ledger));
    let free = d.free.map_or_else(|| "unknown".to_owned(), bytes);
    let verdict = if d.fits { "fits" } else { "does not fit; lower checkpoint.keep or choose another run.dir" };
    line(out, "run directory", format!("{}, free {free}: {verdict}", bytes(d.run_directory)));
    line(out, "export in bf16", bytes(d.need.export));
    let _ = writeln!(out);
}

fn cell(n: u64) -> String {
    if n == 0 { "–".into() } else { bytes(n) }
}

/// Three digits and a binary unit.
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// Parameters: 3.75 B, 494 M, 1.2 M.
fn millions(n: u64) -> String {
    match n as f64 {
        x if x >= 1e9 => format!("{:.2} B", x / 1e9),
        x if x >= 1e8 => format!("{:.0} M", x / 1e6),
        x if x >= 1e5 => format!("{:.1} M", x / 1e6),
        _ => grouped(n),
    }
}

/// Thousands apart.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn count(n: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}
