//! All that keeps a run from starting, each found on its own so that one mistake does not hide another.

use super::{Found, Model, Plan, Setting};
use crate::prepare::{self, RunRequest};
use crate::service::addresses;
use crate::{launcher, mirror};
use quorum_core::config::{self, RunConfig};
use quorum_core::token::Token;
use quorum_model::{Checkpoint, ModelConfig};
use std::path::Path;

/// Looks at configuration, files and addresses; fills `plan.mistakes` and `plan.notes`.
pub(super) fn find(request: &RunRequest, setting: Setting, plan: &mut Plan) -> Found {
    let (config, wrong) = config::examine(request.config.as_deref(), &request.set);
    plan.mistakes.extend(wrong);
    let config = prepare::placed(config, request);
    let mut found = Found { config, model: None, processor: None, train: None, test: None };
    model(&mut found, plan);
    data(&mut found, plan);
    places(&found.config, setting, plan);
    let rollout = &found.config.rollout;
    if rollout.top_p < 1.0 || rollout.top_k > 0 {
        plan.notes.push(crate::prepare::BIASED.to_owned());
    }
    found
}

fn model(found: &mut Found, plan: &mut Plan) {
    let dir = Path::new(&found.config.model.path);
    match Checkpoint::open(dir) {
        Ok(checkpoint) => {
            let bf16 = checkpoint.side_files().get("config.json").is_some_and(|c| says_bf16(c));
            found.model = Some(Model::new(checkpoint.config.clone(), bf16));
            found.processor = Some(checkpoint.processor.with_template_options((&found.config.template).into()));
        }
        Err(e) => {
            plan.mistakes.push(format!("model.path: {e}"));
            // Shapes alone are worth a plan.
            let json = std::fs::read(dir.join("config.json")).ok();
            found.model =
                json.and_then(|j| ModelConfig::from_json(&j).ok().map(|config| Model::new(config, says_bf16(&j))));
            return;
        }
    }
    let mut files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    if !files.any(|p| p.extension().is_some_and(|e| e == "safetensors")) {
        plan.notes.push(format!(
            "model.path: {} holds no *.safetensors: it can be planned, but a run needs the weights",
            dir.display()
        ));
    }
}

/// Whether a config.json says that the weights beside it are bf16.
fn says_bf16(config: &[u8]) -> bool {
    let json: serde_json::Value = serde_json::from_slice(config).unwrap_or_default();
    ["torch_dtype", "dtype"].iter().any(|key| json.get(key).and_then(serde_json::Value::as_str) == Some("bfloat16"))
}

fn data(found: &mut Found, plan: &mut Plan) {
    match prepare::training_data(&found.config) {
        Ok(train) => found.train = Some(train),
        Err(e) => plan.mistakes.push(e.to_string()),
    }
    if found.config.eval.enabled && !found.config.data.test.is_empty() {
        match prepare::test_data(&found.config) {
            Ok(test) => found.test = Some(test),
            Err(e) => plan.mistakes.push(e.to_string()),
        }
    }
}

/// Addresses, secrets, executables, the run directory.
fn places(config: &RunConfig, setting: Setting, plan: &mut Plan) {
    let cluster = &config.cluster;
    plan.mistakes.extend(addresses(cluster).err().into_iter().flatten().map(|e| e.to_string()));
    let files = [
        ("tls_cert", &cluster.tls_cert),
        ("tls_key", &cluster.tls_key),
        ("tls_ca", &cluster.tls_ca),
        ("tls_client_ca", &cluster.tls_client_ca),
        ("tls_member_cert", &cluster.tls_member_cert),
        ("tls_member_key", &cluster.tls_member_key),
    ];
    for (key, path) in files {
        if let Some(e) = (!path.is_empty()).then(|| std::fs::File::open(path).err()).flatten() {
            plan.mistakes.push(format!("cluster.{key} {path}: {e}"));
        }
    }
    if !cluster.token_file.is_empty() {
        plan.mistakes.extend(Token::read("cluster.token_file", Path::new(&cluster.token_file)).err());
    }
    if setting.launched {
        let workers = setting.workers.try_into().unwrap_or(u32::MAX);
        let checked = launcher::check(workers, config.learner.ranks, setting.devices);
        plan.mistakes.extend(checked.err().map(|e| e.to_string()));
    }
    plan.mistakes.extend(mirror::wanted(&config.run.mirror).err().map(|e| format!("run.mirror: {e}")));
    let dir = Path::new(&config.run.dir);
    if dir.join(crate::rundir::LEDGER).exists() {
        plan.mistakes.push(crate::rundir::RunDirError::Taken(dir.to_path_buf()).to_string());
    }
}
