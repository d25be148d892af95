//! A real coordinator service and simulated workers in one process: everything but engine and learner is what a run uses.

use super::proxy::{Fault, Proxy};
use anyhow::Context;
use metrics_exporter_prometheus::PrometheusBuilder;
use quorum_coordinator::launcher::Roster;
use quorum_coordinator::ledger::Ledger;
use quorum_coordinator::material::{Material, Model};
use quorum_coordinator::run::{Handle, Parts, recover, start};
use quorum_coordinator::rundir::RunDir;
use quorum_coordinator::service::{Server, Shared, bind, serve};
use quorum_coordinator::weights::{Body, Published, WeightStore};
use quorum_core::client::{ClientError, Heartbeat, JoinOptions, LinkOptions, Session, Weights};
use quorum_core::config::{self, Precision};
use quorum_core::digest::{policy_to_le, sha256_hex};
use quorum_data::{Dataset, OpenOptions};
use quorum_proto::v1::Role;
use quorum_rollout_worker::relay::{Relay, RelayOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long anything may take to appear.
const PATIENCE: Duration = Duration::from_secs(30);

/// The coordinator and what it published.
pub struct Cluster {
    pub url: String,
    pub weights: WeightStore,
    elements: usize,
    precision: Precision,
    _proxy: Option<Proxy>,
    _handle: Handle,
    _server: Server,
    dir: PathBuf,
}

impl Cluster {
    /// Serves slabs of `elements` values from the scratch directory `dir`; `sets` are settings. With `rate`, bytes a second, its answers
    /// go through a network card of that speed.
    pub async fn start(dir: &Path, elements: usize, sets: &[String], rate: Option<f64>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/data/validation.parquet");
        let train = Dataset::open(&data, &OpenOptions::default()).context("the bundled data")?;
        let base =
            ["cluster.listen=127.0.0.1:0", "cluster.http=127.0.0.1:0", "eval.enabled=false", "run.steps=1000000"];
        let sets: Vec<String> = base.iter().map(|s| (*s).to_owned()).chain(sets.iter().cloned()).collect();
        let config = config::load(None, &sets)?;
        let precision = config.train.precision;
        let slab_bytes = (elements * quorum_core::digest::weight_size(precision)) as u64;
        let toml = config::to_toml(&config)?;
        let model = Model { slab_bytes, ..Model::default() };
        let material = Arc::new(Material::new(config, toml, train, None, model));
        let run_dir = RunDir::create(&dir.join("run"))?;
        let (ledger, history) = Ledger::open(&run_dir.ledger())?;
        let recovery = recover(&history, None).map_err(anyhow::Error::msg)?;
        let (weights, run_id, epoch) = (WeightStore::default(), "fanout".to_owned(), history.epoch);
        let sockets = bind(&material.config.cluster)?;
        let address = sockets.grpc.local_addr()?;
        let handle = start(Parts {
            material: material.clone(),
            ledger,
            dir: run_dir,
            weights: weights.clone(),
            recovery,
            observer: Arc::new(()),
            run_id: run_id.clone(),
            epoch,
            children: Roster::default(),
        });
        let shared =
            Shared { run: handle.clone(), material: material.clone(), weights: weights.clone(), run_id, epoch };
        let page = PrometheusBuilder::new().build_recorder().handle();
        let server = serve(sockets, &material.config.cluster, &shared, page)?;
        let proxy = match rate {
            Some(rate) => Some(Proxy::start(address, Fault::Pace(rate)).await?),
            None => None,
        };
        let url = proxy.as_ref().map_or_else(|| format!("http://{address}"), |p| p.url.clone());
        let dir = dir.to_owned();
        Ok(Self { url, weights, elements, precision, _proxy: proxy, _handle: handle, _server: server, dir })
    }

    /// Publishes `slab` as `version`.
    pub fn publish(&self, version: u64, slab: &[f32]) {
        let bytes = policy_to_le(slab, self.precision);
        let digest = sha256_hex(&bytes);
        self.weights.insert(Published { version, digest, body: Body::Memory(bytes.into()) });
    }

    /// Of the published weights.
    #[cfg(test)]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// A worker joins; `fault` stands before its relay.
    pub async fn join(&self, id: &str, fault: Option<Fault>) -> anyhow::Result<Client> {
        let link = LinkOptions { url: self.url.clone(), ..LinkOptions::default() };
        let mut relay = Relay::bind(RelayOptions { link: link.clone(), ..RelayOptions::default() }).await?;
        let proxy = match fault {
            None => None,
            Some(fault) => {
                let address = relay.url.trim_start_matches("http://").parse()?;
                Some(Proxy::start(address, fault).await?)
            }
        };
        let relay_address = proxy.as_ref().map_or_else(|| relay.url.clone(), |p| p.url.clone());
        let session = join(link, id, relay_address).await?;
        relay.serve(&session)?;
        let heartbeat = Heartbeat::start(&session, Arc::default(), PATIENCE);
        let store = quorum_rollout_worker::weights::WeightStore::new(self.elements, relay.shelf.clone());
        Ok(Client { id: id.to_owned(), session, store, relay: Some(relay), proxy, _heartbeat: heartbeat })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A scratch directory that stays is no failure.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Joins as a rollout worker that says its relay is at `relay_address`.
pub async fn join(link: LinkOptions, id: &str, relay_address: String) -> Result<Session, ClientError> {
    Session::join(&JoinOptions {
        link,
        role: Role::RolloutWorker,
        caller_id: id.to_owned(),
        run_id: String::new(),
        config_digest: String::new(),
        instruction_set: "none".into(),
        metrics_address: String::new(),
        relay_address,
        rank: 0,
        world: 1,
        patience: PATIENCE,
    })
    .await
}

/// A simulated worker.
pub struct Client {
    pub id: String,
    pub session: Session,
    store: quorum_rollout_worker::weights::WeightStore,
    /// None = killed.
    pub relay: Option<Relay>,
    /// What stands before it.
    pub proxy: Option<Proxy>,
    _heartbeat: Heartbeat,
}

impl Client {
    /// The same worker on a fabric, with CUDA device number `device`.
    #[cfg(all(test, feature = "nccl"))]
    pub fn on(mut self, fabric: &str, device: usize, elements: usize) -> Self {
        let shelf = self.relay.as_ref().map(|relay| relay.shelf.clone()).unwrap_or_default();
        let arrivals = quorum_rollout_worker::follow::follow(&self.session, fabric, device, elements, shelf.clone());
        self.store = quorum_rollout_worker::weights::WeightStore::new(elements, shelf).with(Some(arrivals));
        self
    }

    /// The weights of `version`, as a worker gets them.
    pub async fn get(&mut self, version: u64) -> Result<Arc<Weights>, ClientError> {
        self.store.get(&self.session, version).await
    }
}
