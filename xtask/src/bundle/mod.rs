//! `bundle-data`: the four parts of the bundled data set, disjoint by digit scan, as parquet in the Hugging Face layout. The same parameters give the same bytes.

mod compose;
mod draw;
mod mnist;
mod params;
mod part;
mod questions;
mod readme;

use anyhow::{Context, Result, ensure};
use mnist::Scans;
pub use params::Params;
use part::{Item, Labels};
use quorum_data::record::Record;
use quorum_data::writer::write_parquet;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Directory with the four idx files (train-images-idx3-ubyte, …).
    #[arg(long)]
    mnist: PathBuf,
    /// Directory to write.
    #[arg(long, default_value = "assets/data")]
    out: PathBuf,
    /// Also write the true answers of the warm-up part, `warmup.truth.jsonl` (for studies; never part of a release).
    #[arg(long)]
    truth: bool,
    #[command(flatten)]
    params: Params,
}

/// Writes all parts, prints a line for each.
pub fn run(args: &Args) -> Result<()> {
    let p = &args.params;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let mut train = Deck::new(Scans::open(&args.mnist, "train")?, p.seed, 0);
    let mut held_out = Deck::new(Scans::open(&args.mnist, "t10k")?, p.seed, 1);
    let warmup = part::make(p, "warmup", &train.deal(p.warmup)?, Labels::Sloppy)?;
    let unlabelled = part::make(p, "unlabelled", &train.deal(p.unlabelled)?, Labels::None)?;
    let validation = part::make(p, "validation", &held_out.deal(p.validation)?, Labels::True)?;
    let test = part::make(p, "test", &held_out.deal(p.test)?, Labels::True)?;
    write_labels(&args.out.join("unlabelled.labels.jsonl"), &unlabelled)?;
    if args.truth {
        write_labels(&args.out.join("warmup.truth.jsonl"), &warmup)?;
    }
    for (name, items) in
        [("warmup", &warmup), ("unlabelled", &unlabelled), ("validation", &validation), ("test", &test)]
    {
        let path = args.out.join(format!("{name}.parquet"));
        let records: Vec<Record> = items.iter().map(|item| item.record.clone()).collect();
        write_parquet(&path, &records)?;
        println!("{}: {} questions, {} bytes", path.display(), records.len(), fs::metadata(&path)?.len());
    }
    readme::write(&args.out, p, &warmup)?;
    Ok(())
}

/// The scans of one MNIST file in a seeded order, each dealt at most once: parts cannot share one.
struct Deck {
    scans: Scans,
    order: Vec<usize>,
    next: usize,
}

impl Deck {
    fn new(scans: Scans, seed: u64, file: u64) -> Self {
        let order = quorum_core::seed::Stream::named("bundle deck", &[seed, file]).permutation(scans.len());
        Self { scans, order, next: 0 }
    }

    /// Two fresh scans for each of `images` images.
    fn deal(&mut self, images: usize) -> Result<Vec<[mnist::Scan; 2]>> {
        let wanted = self.order.get(self.next..self.next + 2 * images).with_context(|| {
            format!(
                "{images} images need {} digit scans, {} are left of {}",
                2 * images,
                self.order.len() - self.next,
                self.order.len()
            )
        })?;
        self.next += 2 * images;
        wanted.chunks_exact(2).map(|pair| Ok([self.scans.get(pair[0])?, self.scans.get(pair[1])?])).collect()
    }
}

fn write_labels(path: &Path, items: &[Item]) -> Result<()> {
    let lines: String = items
        .iter()
        .map(|item| format!("{}\n", serde_json::json!({"row": item.record.row, "answer": item.truth})))
        .collect();
    ensure!(!lines.is_empty(), "{}: no labels to write", path.display());
    fs::write(path, lines).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests;
