//! `check-configs`: every configuration file of the repository must load, so that none rots.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Root of the repository.
    #[arg(long, default_value = ".")]
    root: PathBuf,
}

/// Loads all TOML files under assets/ and configs/; fails with every fault at once.
pub fn run(args: &Args) -> Result<()> {
    let mut files = Vec::new();
    for folder in ["assets", "configs"] {
        collect(&args.root.join(folder), &mut files)?;
    }
    files.sort();
    let faults: Vec<String> = files
        .iter()
        .filter_map(|f| quorum_core::config::load(Some(f), &[]).err().map(|e| format!("{}: {e}", f.display())))
        .collect();
    if !faults.is_empty() {
        bail!("{} of {} configurations do not load:\n{}", faults.len(), files.len(), faults.join("\n"));
    }
    if files.is_empty() {
        bail!(
            "no TOML file under assets/ or configs/ of {}; run this at the root of the repository",
            args.root.display()
        );
    }
    println!("{} configurations load", files.len());
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_key_anywhere_is_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args { root: dir.path().to_path_buf() };
        assert!(run(&args).unwrap_err().to_string().contains("no TOML file"));
        fs::create_dir_all(dir.path().join("configs/deep")).unwrap();
        fs::write(dir.path().join("configs/good.toml"), "[run]\nsteps = 3\n").unwrap();
        run(&args).unwrap();
        fs::write(dir.path().join("configs/deep/bad.toml"), "[run]\nstpes = 3\n").unwrap();
        let message = run(&args).unwrap_err().to_string();
        assert!(message.contains("bad.toml") && message.contains("stpes") && message.contains("1 of 2"), "{message}");
    }
}
