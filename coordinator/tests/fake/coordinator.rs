//! The coordinator under test, on a runtime of its own so that it can be made to crash.

use super::{SLAB, TEST, TRAIN};
use metrics_exporter_prometheus::PrometheusBuilder;
use quorum_coordinator::launcher::Roster;
use quorum_coordinator::ledger::{History, Ledger};
use quorum_coordinator::material::{Material, Model};
use quorum_coordinator::run::{Handle, Observer, Parts, RunEnd, recover, start};
use quorum_coordinator::rundir::RunDir;
use quorum_coordinator::service::{Server, Shared, bind, serve};
use quorum_coordinator::weights::WeightStore;
use quorum_core::config;
use quorum_data::record::{ImageBytes, Record};
use quorum_data::{Dataset, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

pub struct Coordinator {
    runtime: Option<Runtime>,
    pub handle: Handle,
    pub url: String,
    pub http: String,
    _server: Server,
}

fn records(n: usize, labelled: bool) -> Vec<Record> {
    let image = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/images/img_30x20.png")).unwrap();
    (0..n)
        .map(|i| Record {
            row: i as u64,
            id: None,
            question: format!("<image>What is {i}?"),
            images: vec![ImageBytes::new(image.clone(), None)],
            answer: labelled.then(|| (i % 3).to_string()),
            response: Some(format!("It is \\boxed{{{i}}}")),
        })
        .collect()
}

fn data(dir: &Path, name: &str, n: usize, labelled: bool) -> Dataset {
    let path = dir.join(name);
    quorum_data::writer::write_parquet(&path, &records(n, labelled)).unwrap();
    Dataset::open(&path, &OpenOptions::default()).unwrap()
}

/// Small steps, quick deadlines; `set` comes on top.
pub fn material(dir: &Path, set: &[&str]) -> Material {
    let base = [
        "run.steps=4",
        "run.seed=11",
        "rollout.prompts_per_step=4",
        "rollout.group_size=3",
        "rollout.max_new_tokens=6",
        "view.count=2",
        "eval.samples=3",
        "checkpoint.every=2",
        "cluster.listen=127.0.0.1:0",
        "cluster.http=127.0.0.1:0",
        "cluster.heartbeat_seconds=0.2",
        "cluster.prompts_per_lease=2",
    ];
    let set: Vec<String> = base.iter().chain(set).map(|s| (*s).to_owned()).collect();
    let config = config::load(None, &set).unwrap();
    let toml = config::to_toml(&config).unwrap();
    let model = Model {
        side_files: [("config.json".to_owned(), b"{}".to_vec())].into(),
        slab_bytes: SLAB as u64,
        frozen: None,
        processor: None,
    };
    Material::new(
        config,
        toml,
        data(dir, "train.parquet", TRAIN, false),
        Some(data(dir, "test.parquet", TEST, true)),
        model,
    )
}

impl Coordinator {
    /// Starts, or resumes if the directory holds a run.
    pub fn start(dir: &Path, set: &[&str]) -> Self {
        Self::observed(dir, set, Arc::new(()))
    }

    /// Starts, and tells `observer` of everything.
    pub fn observed(dir: &Path, set: &[&str], observer: Arc<dyn Observer>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        let material = Arc::new(material(dir, set));
        let path = dir.join("run");
        let resumed = path.join("ledger.db").exists();
        let run_dir = if resumed { RunDir::open(&path).unwrap() } else { RunDir::create(&path).unwrap() };
        run_dir.write("config.resolved.toml", &material.config_toml).unwrap();
        let (ledger, history) = Ledger::open(&run_dir.ledger()).unwrap();
        let recovery = recover(&history, None).unwrap();
        run_dir.rewrite_metrics(&history.steps).unwrap();
        run_dir.remove_unnamed_checkpoints(&recovery.checkpoints);
        let weights = WeightStore::default();
        let (run_id, epoch) = ("fake".to_owned(), history.epoch);
        let sockets = bind(&material.config.cluster).unwrap();
        let url = format!("http://{}", sockets.grpc.local_addr().unwrap());
        let http = sockets.http.local_addr().unwrap().to_string();
        let handle = start(Parts {
            material: material.clone(),
            ledger,
            dir: run_dir,
            weights: weights.clone(),
            recovery,
            observer,
            run_id: run_id.clone(),
            epoch,
            children: Roster::default(),
        });
        let shared = Shared { run: handle.clone(), material: material.clone(), weights, run_id, epoch };
        let page = PrometheusBuilder::new().build_recorder().handle();
        let server = serve(sockets, &material.config.cluster, &shared, page).unwrap();
        drop(guard);
        Self { runtime: Some(runtime), handle, url, http, _server: server }
    }

    /// Ends every task at once, as SIGKILL does; only the files stay.
    pub async fn crash(mut self, dir: &Path) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        drop(self);
        // The lock is free when the last task is gone.
        for _ in 0..200 {
            if RunDir::open(&dir.join("run")).is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the crashed coordinator still holds its run directory");
    }

    /// Waits for the end, for half a minute at most.
    pub async fn ended(&self) -> RunEnd {
        tokio::time::timeout(Duration::from_secs(30), self.handle.ended()).await.expect("the run does not end")
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a run left: metrics.jsonl, evaluation files, last digest.
pub fn end_state(dir: &Path) -> (String, String, String, String) {
    let read = |name: &str| std::fs::read_to_string(dir.join("run").join(name)).unwrap();
    let digest = history(dir).steps.last().unwrap().digest.clone();
    (read("metrics.jsonl"), read("eval-before.jsonl"), read("eval-after.jsonl"), digest)
}

pub fn history(dir: &Path) -> History {
    Ledger::inspect(&dir.join("run/ledger.db")).unwrap()
}
