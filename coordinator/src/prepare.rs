//! Everything that can be wrong with a run is found here, before anything starts: configuration, model, data, run directory, ledger.

use crate::aside;
use crate::evaluate::figures_by_version;
use crate::ledger::{History, Ledger, LedgerError, Write};
use crate::lengths::{Followed, Ruler};
use crate::material::{Frozen, Material, Model};
use crate::resume;
use crate::run::{Recovery, recover, supervised_per_step};
use crate::rundir::{RunDir, RunDirError};
use quorum_core::config::{self, ConfigError, DataSection, ObjectiveKind, RunConfig};
use quorum_core::digest::weight_size;
use quorum_core::reward::RewardSource;
use quorum_data::{DataError, Dataset, ImageCheck, OpenOptions};
use quorum_model::{Checkpoint, FrozenSource, ModelError, Partition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Said when sampling and log-probs are of different distributions.
pub(crate) const BIASED: &str = "rollout.top_p or rollout.top_k cuts the sampling distribution, but log-probs are those of the whole one: the policy gradient is biased";

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    pub config: Option<PathBuf>,
    /// `key=value`, in order of rising strength.
    pub set: Vec<String>,
    pub resume: Option<PathBuf>,
    pub insecure: bool,
}

/// Why a run cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("model.path: {0}")]
    Model(#[from] ModelError),
    #[error("{key}: {source}")]
    Data { key: &'static str, source: Box<DataError> },
    #[error(transparent)]
    Dir(#[from] RunDirError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("{0}")]
    Unfit(String),
}

impl PrepareError {
    fn data(key: &'static str, source: DataError) -> Self {
        Self::Data { key, source: Box::new(source) }
    }
}

/// A run that can start.
pub struct Prepared {
    pub material: Arc<Material>,
    pub ledger: Ledger,
    pub dir: RunDir,
    pub recovery: Recovery,
    pub history: History,
    pub run_id: String,
    pub epoch: u64,
}

/// The configuration asked for: that of the run to resume, or defaults and file, then `--set`.
///
/// # Errors
/// What is wrong with it.
pub fn configuration(request: &RunRequest) -> Result<RunConfig, PrepareError> {
    let stored = request.resume.as_ref().map(|dir| dir.join("config.resolved.toml"));
    if let (Some(dir), Some(file)) = (&request.resume, &stored)
        && !file.is_file()
    {
        return Err(RunDirError::NoRun { path: dir.clone(), missing: "config.resolved.toml" }.into());
    }
    let file = request.config.as_deref().or(stored.as_deref());
    Ok(placed(config::load(file, &request.set)?, request))
}

/// The configuration with its places filled in: the run directory, and absolute paths.
pub(crate) fn placed(mut config: RunConfig, request: &RunRequest) -> RunConfig {
    if let Some(dir) = &request.resume {
        config.run.dir = dir.display().to_string();
    }
    if config.run.dir.is_empty() {
        config.run.dir = format!("runs/{}-{}", stamp(SystemTime::now()), config.run.seed);
    }
    config.cluster.insecure |= request.insecure;
    // A run can be resumed from another working directory.
    let data = &mut config.data;
    let paths = [&mut data.train, &mut data.train_labels, &mut data.test, &mut data.image_root];
    for path in paths.into_iter().chain([&mut config.model.path]) {
        if !path.is_empty() {
            *path = std::path::absolute(&*path).map_or_else(|_| path.clone(), |p| p.display().to_string());
        }
    }
    config
}

/// Opens model, data, run directory and ledger.
///
/// # Errors
/// The first thing that is wrong.
pub async fn prepare(request: &RunRequest, config: RunConfig) -> Result<Prepared, PrepareError> {
    let stored = request.resume.as_deref().map(resume::stored).transpose()?;
    if let Some(stored) = &stored {
        resume::same_configuration(stored, &config)?;
    }
    let (material, hashes) = material(config)?;
    let path = Path::new(&material.config.run.dir);
    let dir = match request.resume {
        None => RunDir::create(path)?,
        Some(_) => RunDir::open(path)?,
    };
    if let Some(stored) = &stored {
        resume::same_content(stored, &hashes)?;
    }
    dir.write("config.resolved.toml", &material.config_toml)?;
    let (ledger, history) = Ledger::open(&dir.ledger())?;
    let run_id = match &stored {
        Some(stored) => stored.run_id.clone(),
        None => {
            let id = new_run_id(path);
            let (aside_train, aside_test) = material.set_aside_counts();
            let mut meta = vec![
                Write::Meta { key: "run_id", value: id.clone() },
                Write::Meta { key: "config_digest", value: material.config_digest.clone() },
                Write::Meta { key: "config", value: material.config_toml.clone() },
                Write::Meta { key: "train_rows", value: material.train_len().to_string() },
                Write::Meta { key: "test_rows", value: material.questions().to_string() },
                Write::Meta { key: "set_aside", value: (aside_train + aside_test).to_string() },
                Write::Meta { key: "data_shown", value: material.shown_digest() },
                Write::Meta { key: "quorum_version", value: env!("CARGO_PKG_VERSION").to_owned() },
            ];
            meta.extend(hashes.into_iter().map(|(key, value)| Write::Meta { key, value }));
            ledger.commit(meta).await?;
            id
        }
    };
    let per_step = supervised_per_step(&material.config);
    let recovery = recover(&history, per_step).map_err(PrepareError::Unfit)?;
    dir.rewrite_metrics(&history.steps)?;
    let evaluations = figures_by_version(&recovery.evaluations, material.questions());
    if let Err(e) = crate::tensorboard::begin(dir.path(), &history.steps, &evaluations) {
        tracing::warn!("the TensorBoard file cannot be written: {e}");
    }
    dir.write(aside::FILE, &aside::lines(&aside::all(&material, &history.quarantine)))?;
    dir.remove_unnamed_checkpoints(&recovery.checkpoints);
    let epoch = history.epoch;
    Ok(Prepared { material: Arc::new(material), ledger, dir, recovery, history, run_id, epoch })
}

/// Names of what is hashed, with the hashes: (meta key, value).
pub type Hashes = Vec<(&'static str, String)>;

fn material(config: RunConfig) -> Result<(Material, Hashes), PrepareError> {
    let checkpoint = Checkpoint::open(Path::new(&config.model.path))?.with_template_options((&config.template).into());
    let (slab_bytes, frozen, read) = weights(&config, &checkpoint)?;
    let mut hashes = vec![("model_files", hash_model(Path::new(&config.model.path), &checkpoint, &read)?)];
    hashes.extend(frozen.iter().map(|f| ("frozen_sha256", f.digest.clone())));
    let ruler = Ruler::new(&config, &checkpoint.processor);
    let mut train = training_data(&config)?;
    usable("data.train", &ruler, &mut train, Followed::of_training(&config))?;
    hashes.push(("data_train", train.digest()));
    let mut test = if config.eval.enabled && !config.data.test.is_empty() { Some(test_data(&config)?) } else { None };
    if let Some(test) = &mut test {
        usable("data.test", &ruler, test, Followed::Sampled)?;
    }
    hashes.push(("data_test", test.as_ref().map(Dataset::digest).unwrap_or_default()));
    let model = Model {
        side_files: checkpoint.side_files().clone(),
        slab_bytes,
        frozen,
        processor: Some(checkpoint.processor),
    };
    let toml = config::to_toml(&config)?;
    Ok((Material::new(config, toml, train, test, model), hashes))
}

/// The questions of a run that is only looked at, and why there are none where the data is gone or is not what `seen`, the run's digest of it, says.
/// Neither the model nor the test data is opened.
pub(crate) fn looked_at(config: RunConfig, seen: Option<&str>) -> Result<(Material, Option<String>), PrepareError> {
    let toml = config::to_toml(&config)?;
    // Labels and responses are not shown.
    let none = || "none".to_owned();
    let questions = DataSection { answer_column: none(), response_column: none(), ..config.data.clone() };
    let path = Path::new(&config.data.train);
    // The browser decodes what it shows.
    let options = OpenOptions { check: ImageCheck::Header, ..OpenOptions::from(&questions) };
    let (train, gone) = match Dataset::open(path, &options) {
        Ok(train) if seen.is_some_and(|seen| train.shown_digest() != seen) => {
            let why = format!("{} holds other questions or images than the run had", path.display());
            (Dataset::absent(path), Some(why))
        }
        Ok(train) => (train, None),
        Err(e) => (Dataset::absent(path), Some(e.to_string())),
    };
    Ok((Material::new(config, toml, train, None, Model::default()), gone))
}

/// Hashes of files that were read already.
pub(crate) type Read = BTreeMap<PathBuf, blake3::Hash>;

/// Bytes of the trainable slab as it is published, the frozen weights, and the hashes of the files. Every value is read once, so that damaged
/// weights are named before anything starts.
fn weights(config: &RunConfig, checkpoint: &Checkpoint) -> Result<(u64, Option<Frozen>, Read), PrepareError> {
    let parts = Partition::of(&checkpoint.config, &checkpoint.layout, &config.train)?;
    let stored = checkpoint.stored()?;
    let mut hashers: BTreeMap<PathBuf, blake3::Hasher> = BTreeMap::new();
    stored.check(&checkpoint.layout, |path, part| {
        hashers.entry(path.to_path_buf()).or_default().update(part);
    })?;
    let read = hashers.into_iter().map(|(path, one)| (path, one.finalize())).collect();
    let source = FrozenSource::new(stored, &parts);
    let frozen = match source.total() {
        0 => None,
        _ => Some(Frozen { digest: source.digest(), source: Arc::new(source) }),
    };
    Ok(((parts.trainable.total() * weight_size(config.train.precision)) as u64, frozen, read))
}

/// Sets aside what the model cannot take; something must be left.
fn usable(key: &str, ruler: &Ruler<'_>, data: &mut Dataset, followed: Followed) -> Result<(), PrepareError> {
    ruler.narrow(data, followed);
    match data.set_aside().first() {
        Some(first) if data.is_empty() => Err(PrepareError::Unfit(format!("{key}: no record can be used; {first}"))),
        _ => Ok(()),
    }
}

pub(crate) fn training_data(config: &RunConfig) -> Result<Dataset, PrepareError> {
    let key = "data.train";
    let mut train = Dataset::open(Path::new(&config.data.train), &OpenOptions::from(&config.data))
        .map_err(|e| PrepareError::data(key, e))?;
    if config.rollout.reward == RewardSource::GroundTruth {
        let labels = Path::new(&config.data.train_labels);
        let n = train.attach_labels(labels).map_err(|e| PrepareError::data("data.train_labels", e))?;
        if n < train.len() {
            return Err(PrepareError::Unfit(format!(
                "data.train_labels {}: {n} of {} questions have a label; reward \"ground_truth\" needs all",
                labels.display(),
                train.len()
            )));
        }
    }
    if config.objective.kind == ObjectiveKind::Sft
        && let Some(r) = train.records().iter().find(|r| r.response.is_none())
    {
        return Err(PrepareError::Unfit(format!(
            "data.train {}: row {} has no response (column {}); objective.kind = \"sft\" needs one in every row",
            config.data.train, r.row, config.data.response_column
        )));
    }
    Ok(train)
}

pub(crate) fn test_data(config: &RunConfig) -> Result<Dataset, PrepareError> {
    let key = "data.test";
    let test = Dataset::open(Path::new(&config.data.test), &OpenOptions::from(&config.data))
        .map_err(|e| PrepareError::data(key, e))?;
    match test.records().iter().find(|r| r.answer.is_none()) {
        Some(r) => Err(PrepareError::Unfit(format!(
            "data.test {}: row {} has no answer (column {}); evaluation needs labels, or set eval.enabled=false",
            config.data.test, r.row, config.data.answer_column
        ))),
        None => Ok(test),
    }
}

/// One hash over names and contents of the model's files, weights included; files of `read` are not read again.
pub(crate) fn hash_model(dir: &Path, checkpoint: &Checkpoint, read: &Read) -> Result<String, PrepareError> {
    let unreadable =
        |path: &Path, e: std::io::Error| PrepareError::Unfit(format!("model.path: {}: {e}", path.display()));
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in checkpoint.side_files() {
        hasher.update(name.as_bytes()).update(&[0]).update(blake3::hash(bytes).as_bytes());
    }
    let entries = std::fs::read_dir(dir).map_err(|e| unreadable(dir, e))?;
    let mut weights: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    weights.sort();
    if weights.is_empty() {
        return Err(PrepareError::Unfit(format!(
            "model.path: {} holds no *.safetensors; copy the weights there",
            dir.display()
        )));
    }
    for path in weights {
        let hash = match read.get(&path) {
            Some(known) => *known,
            None => {
                let mut one = blake3::Hasher::new();
                let file = std::fs::File::open(&path).map_err(|e| unreadable(&path, e))?;
                one.update_reader(file).map_err(|e| unreadable(&path, e))?.finalize()
            }
        };
        hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes()).update(&[0]).update(hash.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn new_run_id(path: &Path) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let seed = format!("{} {now} {}", path.display(), std::process::id());
    blake3::hash(seed.as_bytes()).to_hex().chars().take(16).collect()
}

/// UTC as YYYYMMDD-HHMMSS.
fn stamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date: H. Hinnant, "chrono-compatible low-level date algorithms".
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn stamps_are_civil_dates() {
        let at = |s| stamp(UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "19700101-000000");
        assert_eq!(at(951_782_399), "20000228-235959");
        assert_eq!(at(951_782_400), "20000229-000000");
        assert_eq!(at(1_767_225_599), "20251231-235959");
    }
}
