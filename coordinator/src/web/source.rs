//! Where the page's data comes from: the ledger (read beside its writer), the questions and images of the run, and the running coordinator if there is one.

use super::api::LISTENERS;
use super::columns::Columns;
use super::news::News;
use super::visits::Visits;
use crate::ledger::{Browser, LedgerError};
use crate::material::Material;
use crate::run::Handle;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use quorum_core::verdict::{Probe, Verdict, verdict};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Reads of the ledger at a time; more wait, and give up after `PATIENCE`.
const READERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(5);
/// Steps read in one go when the history is loaded.
const PORTION: usize = 1000;

/// Why a question to the API has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Bad(String),
    #[error("the page is busy: {READERS} reads of the ledger are under way; ask again")]
    Busy,
    #[error(
        "{LISTENERS} listeners are connected, and no more are served: close pages that are open elsewhere, or ask for /api/v1/run from time to time instead"
    )]
    Crowded,
    #[error("the API is read-only: use GET")]
    ReadOnly,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::Busy | Self::Crowded => StatusCode::SERVICE_UNAVAILABLE,
            Self::ReadOnly => StatusCode::METHOD_NOT_ALLOWED,
            Self::Ledger(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

/// One run, looked at.
pub struct Source {
    pub(super) ledger: Browser,
    pub(super) material: Arc<Material>,
    pub(super) run_id: String,
    pub(super) run_dir: String,
    live: Option<Handle>,
    /// Evaluations by version of a run that is not running.
    evaluations: Value,
    columns: Mutex<Columns>,
    visits: Mutex<Visits>,
    readers: Semaphore,
    news: tokio::sync::Mutex<Option<Arc<News>>>,
    /// What cannot be shown, and why.
    pub(super) note: Option<String>,
}

impl Source {
    /// A run with its coordinator.
    pub fn live(ledger: &Path, material: Arc<Material>, run_id: &str, run: Handle) -> Arc<Self> {
        let run_dir = material.config.run.dir.clone();
        Arc::new(Self { live: Some(run), ..Self::new(ledger, material, run_id, run_dir) })
    }

    /// A run that is over, or at rest; `note` says what of it cannot be shown.
    pub fn at_rest(
        ledger: &Path,
        material: Arc<Material>,
        run_id: &str,
        run_dir: &Path,
        evaluations: Value,
        note: Option<String>,
    ) -> Arc<Self> {
        let run_dir = run_dir.display().to_string();
        Arc::new(Self { evaluations, note, ..Self::new(ledger, material, run_id, run_dir) })
    }

    fn new(ledger: &Path, material: Arc<Material>, run_id: &str, run_dir: String) -> Self {
        Self {
            ledger: Browser::new(ledger),
            material,
            run_id: run_id.to_owned(),
            run_dir,
            live: None,
            evaluations: Value::Null,
            columns: Mutex::default(),
            visits: Mutex::default(),
            readers: Semaphore::new(READERS),
            news: tokio::sync::Mutex::default(),
            note: None,
        }
    }

    /// Runs `work` on a thread that may wait for the disk.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let _permit = match tokio::time::timeout(PATIENCE, self.readers.acquire()).await {
            Ok(Ok(permit)) => permit,
            _ => return Err(ApiError::Busy),
        };
        let source = self.clone();
        tokio::task::spawn_blocking(move || work(&source))
            .await
            .map_err(|e| ApiError::Bad(format!("the read broke off: {e}")))?
    }

    /// The columns with everything the ledger has by now.
    pub(super) fn columns(&self) -> Result<MutexGuard<'_, Columns>, ApiError> {
        let mut columns = self.columns.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let before = columns.len();
            for row in self.ledger.steps(columns.next(), PORTION)? {
                columns.push(&row);
            }
            if columns.len() < before + PORTION {
                return Ok(columns);
            }
        }
    }

    /// Reads the figures of the steps so far, so that the first who asks need not wait for it.
    pub async fn warm(self: Arc<Self>) {
        // Whoever asks hears of an error.
        let _ = self.read(|source| source.columns().map(drop)).await;
    }

    /// Which groups asked the same question.
    pub(super) fn visits(&self) -> Result<MutexGuard<'_, Visits>, ApiError> {
        let mut visits = self.visits.lock().unwrap_or_else(PoisonError::into_inner);
        let from = visits.next();
        for (step, slot, prompt) in self.ledger.visits(from)? {
            visits.push(step, slot, prompt);
        }
        Ok(visits)
    }

    /// What the running coordinator says of itself; null when there is none.
    pub(crate) async fn status(&self) -> Value {
        match &self.live {
            Some(run) => run.status().await.unwrap_or_default(),
            None => Value::Null,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Figures of the held-out evaluations by version, from a status of now.
    pub(crate) fn evaluations(&self, status: &Value) -> Value {
        match status.get("evaluations") {
            Some(found) => found.clone(),
            None => self.evaluations.clone(),
        }
    }

    /// Steps in the ledger, the digest of their weights, and the verdict over them and these evaluations.
    pub(crate) async fn judged(self: &Arc<Self>, evaluations: Value) -> Result<(usize, String, Verdict), ApiError> {
        self.read(move |source| {
            let columns = source.columns()?;
            Ok((columns.len(), columns.digest().to_owned(), judge(&columns, &evaluations)))
        })
        .await
    }

    /// The overview for listeners: made once for all who ask within the same moment.
    pub(super) async fn news(self: &Arc<Self>) -> Result<Arc<News>, ApiError> {
        let mut latest = self.news.lock().await;
        if let Some(news) = latest.as_ref().filter(|n| n.is_fresh()) {
            return Ok(news.clone());
        }
        let news = Arc::new(News::of(&self.overview().await?));
        *latest = Some(news.clone());
        Ok(news)
    }

    /// The run in one object: who it is, how far, how healthy.
    pub(super) async fn overview(self: &Arc<Self>) -> Result<Value, ApiError> {
        let status = self.status().await;
        let evaluations = self.evaluations(&status);
        // The test data of a run at rest is not opened.
        let asked =
            evaluations.as_object().into_iter().flatten().filter_map(|(_, f)| f.get("n")?.as_u64()).max().unwrap_or(0);
        let (steps, digest, verdict) = self.judged(evaluations.clone()).await?;
        Ok(json!({
            "run_id": self.run_id,
            "run_dir": self.run_dir,
            "live": self.is_live(),
            "quorum_version": env!("CARGO_PKG_VERSION"),
            "config_digest": self.material.config_digest,
            "weights_sha256": digest,
            "steps": self.material.config.run.steps,
            "committed": steps,
            "group_size": self.material.config.rollout.group_size,
            "train_questions": self.material.train_len(),
            "test_questions": asked.max(u64::from(self.material.questions())),
            "verdict": verdict,
            "note": self.note,
            "evaluations": evaluations,
            "status": status,
        }))
    }
}

/// The verdict over columns and evaluations (`Figures` by version).
pub(super) fn judge(columns: &Columns, evaluations: &Value) -> Verdict {
    let mut probes: Vec<(u64, Probe)> = Vec::new();
    for (version, figures) in evaluations.as_object().into_iter().flatten() {
        let get = |key: &str| figures.get(key).and_then(Value::as_f64);
        if let (Ok(version), Some(n), Some(greedy), Some(mean)) =
            (version.parse(), get("n"), get("greedy"), get("mean"))
        {
            probes.push((version, Probe { n, greedy, mean }));
        }
    }
    probes.sort_by_key(|(version, _)| *version);
    let probes: Vec<Probe> = probes.into_iter().map(|(_, p)| p).collect();
    verdict(columns.points(), &probes)
}
