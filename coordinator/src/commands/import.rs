//! `coordinator import`: a GGUF file as a model directory.

use super::cli::Dtype;
use quorum_model::gguf;
use std::path::Path;

pub(super) fn import(file: &Path, to: &Path, dtype: Dtype) -> anyhow::Result<()> {
    let found = gguf::import(file, to, dtype.into())?;
    let types: Vec<String> = found.types.iter().map(|(quant, count)| format!("{count} {quant}")).collect();
    println!(
        "imported {} ({}, {:.1} M parameters, tensors: {}) to {}",
        found.name.as_deref().unwrap_or("a model without a name"),
        found.architecture,
        found.parameters as f64 / 1e6,
        types.join(", "),
        to.display()
    );
    println!(
        "licence named in the file: {}",
        found.license.as_deref().unwrap_or("none; find out before you share the model")
    );
    if !found.chat_template {
        println!("the file has no chat template: put one into {}/chat_template.jinja before a run", to.display());
    }
    Ok(())
}
