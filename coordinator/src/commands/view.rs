//! `coordinator view`: the page over a run directory, without a coordinator.

use crate::evaluate::figures_by_version;
use crate::prepare::looked_at;
use crate::run::{recover, supervised_per_step};
use crate::rundir::LEDGER;
use crate::web::{Source, local_names, router};
use anyhow::{Context, anyhow, ensure};
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;

/// A run directory as the page wants it. Without its data (at `data`, or where the run had it) everything but questions and images is shown.
pub(super) fn source(run_dir: &Path, data: Option<&Path>) -> anyhow::Result<Arc<Source>> {
    let (history, mut config) = super::opened(run_dir)?;
    if let Some(data) = data {
        config.data.train = data.display().to_string();
    }
    let questions: u32 = history.meta.get("test_rows").and_then(|n| n.parse().ok()).unwrap_or(0);
    let recovery = recover(&history, supervised_per_step(&config)).map_err(anyhow::Error::msg)?;
    let figures = figures_by_version(&recovery.evaluations, questions);
    let evaluations = serde_json::to_value(figures)?;
    let run_id = history.meta.get("run_id").cloned().unwrap_or_default();
    // Records that the run set aside are not known here, and would be in the digest.
    let whole = history.meta.get("set_aside").is_some_and(|n| n == "0");
    let seen = history.meta.get("data_shown").filter(|_| whole);
    let (material, gone) = looked_at(config, seen.map(String::as_str))?;
    let note = gone.map(|e| {
        format!("questions and images are not shown, because the data of the run is not there ({e}); say where it is now with --data PATH")
    });
    if let Some(note) = &note {
        quorum_core::logging::tell(&format!("note: {note}"));
    }
    Ok(Source::at_rest(&run_dir.join(LEDGER), Arc::new(material), &run_id, run_dir, evaluations, note))
}

pub(super) fn view(run_dir: &Path, http: &str, data: Option<&Path>) -> anyhow::Result<()> {
    let address = http.to_socket_addrs().ok().and_then(|mut a| a.next());
    let address = address.ok_or_else(|| anyhow!("--http {http} is no address; give HOST:PORT, e.g. 127.0.0.1:7071"))?;
    ensure!(
        address.ip().is_loopback(),
        "--http {http} reaches beyond this machine, and this page asks for no token: use a loopback address, and an SSH tunnel from elsewhere"
    );
    let source = source(run_dir, data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; choose another with --http 127.0.0.1:0"))?;
        super::show(&format!("http://{}/ shows {}; stop with Ctrl-C\n", listener.local_addr()?, run_dir.display()))?;
        tokio::spawn(source.clone().warm());
        let stop = async {
            let _ = tokio::signal::ctrl_c().await;
        };
        tokio::select! {
            served = axum::serve(listener, local_names(router(source))) => Ok(served?),
            () = stop => Ok(()),
        }
    })
}
