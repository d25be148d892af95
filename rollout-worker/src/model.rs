//! The run's model without its weights, from side files fetched by content hash.

use crate::error::WorkerError;
use quorum_core::client::{Session, fetch_blob};
use quorum_model::Checkpoint;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A model and the hashes it was made from.
#[derive(Clone)]
pub struct Model {
    pub checkpoint: Arc<Checkpoint>,
    files: Vec<(String, String)>,
}

impl Model {
    /// Fetches the side files the coordinator names and reads them.
    ///
    /// # Errors
    /// A file that cannot be fetched, or a model that this build cannot read.
    pub async fn fetch(session: &Session) -> Result<Self, WorkerError> {
        let mut contents = BTreeMap::new();
        for file in &session.reply.model_files {
            let bytes = session.retry("FetchBlob", PATIENCE, || fetch_blob(session, &file.hash)).await?;
            contents.insert(file.name.clone(), bytes.to_vec());
        }
        let checkpoint = Arc::new(Checkpoint::from_files(&contents)?);
        Ok(Self { checkpoint, files: hashes(session) })
    }

    /// Whether a new session is about the same model.
    pub fn serves(&self, session: &Session) -> bool {
        self.files == hashes(session)
    }
}

fn hashes(session: &Session) -> Vec<(String, String)> {
    session.reply.model_files.iter().map(|f| (f.name.clone(), f.hash.clone())).collect()
}
