//! How the run stands, for whoever asks by HTTP or gRPC (`coordinator status`): the run actor's word and the verdict. Who asks every second hears of the
//! end too, because the servers stay for a moment.

use super::Shared;
use crate::web::Source;
use serde_json::Value;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who asked within this time before the end is watching.
const WATCHING: Duration = Duration::from_secs(3);
/// How long the end can be seen by those who watch.
const FAREWELL: Duration = Duration::from_millis(1500);
/// Time for the verdict, which reads the ledger; without it an answer has none.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct Look {
    pub source: Arc<Source>,
    asked: Arc<Mutex<Option<Instant>>>,
}

impl Look {
    pub(super) fn new(shared: &Shared) -> Self {
        let ledger = Path::new(&shared.material.config.run.dir).join(crate::rundir::LEDGER);
        let source = Source::live(&ledger, shared.material.clone(), &shared.run_id, shared.run.clone());
        Self { source, asked: Arc::default() }
    }

    /// The status with the verdict; none when the run's owner is gone.
    pub(super) async fn status(&self) -> Option<Value> {
        let mut status = self.source.status().await;
        if status.get("state")?.as_str() == Some("running") {
            *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        let judged = self.source.judged(self.source.evaluations(&status));
        let verdict = match tokio::time::timeout(PATIENCE, judged).await {
            Ok(Ok((_, _, verdict))) => serde_json::to_value(verdict).unwrap_or_default(),
            // A busy disk: the next answer has it again.
            _ => Value::Null,
        };
        status.as_object_mut()?.insert("verdict".into(), verdict);
        Some(status)
    }

    /// Lets those who watch see the end.
    pub(super) async fn farewell(&self) {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_some_and(|at| at.elapsed() < WATCHING) {
            tokio::time::sleep(FAREWELL).await;
        }
    }
}
