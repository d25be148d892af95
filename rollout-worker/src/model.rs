//! The run's model without the weights that learn: side files fetched by content hash, and the frozen weights, fetched once.

use crate::error::WorkerError;
use quorum_core::client::{Session, fetch_blob, fetch_frozen};
use quorum_engine::Engine;
use quorum_model::{Checkpoint, FrozenSink, Partition};
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
        let template = (&session.config.template).into();
        let checkpoint = Arc::new(Checkpoint::from_files(&contents)?.with_template_options(template));
        Ok(Self { checkpoint, files: hashes(session) })
    }

    /// An engine with the frozen weights in place, which arrive from the coordinator tensor by tensor.
    ///
    /// # Errors
    /// Weights that cannot be fetched, settings that do not fit the model, shapes the engine does not support.
    pub async fn engine(&self, session: &Session, threads: usize) -> Result<Engine, WorkerError> {
        let (model, train, bf16) = (&self.checkpoint, &session.config.train, session.reply.frozen_bf16);
        let parts = &Partition::of(&model.config, &model.layout, train)?;
        let new = || Engine::loader(&model.config, parts.clone(), bf16, threads);
        if parts.frozen.total() == 0 {
            return Ok(new()?.finish()?);
        }
        // Shapes that do not fit are found before anything travels.
        drop(new()?);
        let loader = session
            .retry("FetchFrozen", PATIENCE, || async move {
                let mut sink = FrozenSink::new(parts, bf16);
                let mut loader = new();
                fetch_frozen(session, sink.total(), |bytes| {
                    sink.add(bytes, |name, tensor| {
                        let loader = loader.as_mut().map_err(|e| e.to_string())?;
                        loader.put(name, &tensor).map_err(|e| e.to_string())
                    })
                })
                .await?;
                Ok(loader)
            })
            .await??;
        tracing::info!(bytes = FrozenSink::new(parts, bf16).total(), bf16, "frozen weights fetched");
        Ok(loader.finish()?)
    }

    /// Elements of the slab that learns.
    ///
    /// # Errors
    /// Settings that do not fit the model.
    pub fn trainable(&self, session: &Session) -> Result<usize, WorkerError> {
        let model = &self.checkpoint;
        Ok(Partition::of(&model.config, &model.layout, &session.config.train)?.trainable.total())
    }

    /// Whether a new session is about the same model.
    pub fn serves(&self, session: &Session) -> bool {
        self.files == hashes(session)
    }
}

fn hashes(session: &Session) -> Vec<(String, String)> {
    let frozen = ("frozen weights".to_owned(), session.reply.frozen_digest.clone());
    session.reply.model_files.iter().map(|f| (f.name.clone(), f.hash.clone())).chain([frozen]).collect()
}
