//! `coordinator report`: the page as one file with its data inside.

use super::view::source;
use crate::web::{Source, report_page};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) fn report(run_dir: &Path, to: Option<&Path>, data: Option<&Path>) -> anyhow::Result<()> {
    let source: Arc<Source> = source(run_dir, data)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let page = runtime.block_on(report_page(&source))?;
    let path: PathBuf = to.map_or_else(|| run_dir.join("report.html"), Path::to_path_buf);
    // Whole or not at all.
    let half = path.with_extension("html.tmp");
    std::fs::write(&half, &page)
        .with_context(|| format!("cannot write {}; give another place with --to FILE", half.display()))?;
    std::fs::rename(&half, &path).with_context(|| path.display().to_string())?;
    super::show(&format!("{} ({} KB)\n", path.display(), page.len() / 1000))
}
