//! The run's model without the weights that learn: side files fetched by content hash, and the frozen weights, fetched once.

use crate::error::WorkerError;
use crate::relay::Shelf;
use bytes::Bytes;
use quorum_core::client::{Both, Session, Sink, Stream, fetch_blob, fetch_frozen, report_frozen};
use quorum_engine::{Devices, Engine, EngineError, Loader};
use quorum_model::{Checkpoint, FrozenSink, Partition};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

    /// An engine on each device with the frozen weights in place, which arrive once, tensor by tensor, and are handed on.
    ///
    /// # Errors
    /// Weights that cannot be fetched, settings that do not fit the model, shapes the engine does not support.
    pub async fn engines(
        &self,
        session: &Session,
        devices: &[Devices],
        threads: usize,
        shelf: &Shelf,
    ) -> Result<Vec<Engine>, WorkerError> {
        let (model, train, bf16) = (&self.checkpoint, &session.config.train, session.reply.frozen_bf16);
        let parts = &Partition::of(&model.config, &model.layout, train)?;
        let on = |devices: &Devices| Engine::loader_on(devices.clone(), &model.config, parts.clone(), bf16, threads);
        let new = || devices.iter().map(on).collect::<Result<Vec<_>, _>>();
        let finish = |loaders: Vec<Loader>| loaders.into_iter().map(Loader::finish).collect::<Result<Vec<_>, _>>();
        if parts.frozen.total() == 0 {
            return Ok(finish(new()?)?);
        }
        // Shapes that do not fit are found before anything travels.
        drop(new()?);
        let total = FrozenSink::new(parts, bf16).total();
        let passive = !shelf.keeps(Stream::Frozen, total);
        let began = Instant::now();
        let fetch = || async {
            let mut loading = Loading { parts, bf16, new: &new, sink: FrozenSink::new(parts, bf16), loaders: None };
            let mut tee = shelf.tee(passive);
            let delivery = fetch_frozen(session, &mut Both(&mut loading, &mut tee)).await?;
            tee.finish(None);
            Ok((loading.loaders, delivery))
        };
        let (loaders, delivery) = session.retry("FetchFrozen", PATIENCE, fetch).await?;
        let seconds = began.elapsed().as_secs_f64();
        if !passive {
            report_frozen(session, &delivery, seconds).await;
        }
        tracing::info!(bytes = total, bf16, seconds, from = delivery.source, "frozen weights fetched");
        Ok(finish(loaders.map_or_else(new, Ok)?)?)
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

/// Frozen weights on their way into the engines.
struct Loading<'a> {
    parts: &'a Partition,
    bf16: bool,
    new: &'a (dyn Fn() -> Result<Vec<Loader>, EngineError> + Sync),
    sink: FrozenSink,
    loaders: Option<Vec<Loader>>,
}

impl Sink for Loading<'_> {
    fn begin(&mut self, _: Stream, total: u64, _: &str) -> Result<(), String> {
        self.sink = FrozenSink::new(self.parts, self.bf16);
        let wanted = self.sink.total();
        if total != wanted {
            return Err(format!("they have {total} bytes but this model has {wanted} of them"));
        }
        self.loaders = Some((self.new)().map_err(|e| e.to_string())?);
        Ok(())
    }

    fn add(&mut self, part: &Bytes) -> Result<(), String> {
        let loaders = self.loaders.as_mut().ok_or("nothing has begun")?;
        self.sink.add(part, |name, tensor| {
            loaders.iter_mut().try_for_each(|l| l.put(name, &tensor)).map_err(|e| e.to_string())
        })
    }
}

fn hashes(session: &Session) -> Vec<(String, String)> {
    let frozen = ("frozen weights".to_owned(), session.reply.frozen_digest.clone());
    session.reply.model_files.iter().map(|f| (f.name.clone(), f.hash.clone())).chain([frozen]).collect()
}
