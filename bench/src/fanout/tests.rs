//! Relays that fail in every way: what a worker ends up with is what the coordinator published, within the deadlines, and who failed is known.

use super::cluster::{Cluster, join};
use super::proxy::Fault;
use quorum_core::client::{Fetched, LinkOptions, Sink as _, fetch_weights};
use quorum_core::digest::{f32_to_le, sha256_hex};
use quorum_core::seed::Stream as Random;
use quorum_proto::v1;
use quorum_proto::v1::relay_server::{Relay, RelayServer};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// 3.2 MB: several chunks.
const VALUES: usize = 800_000;

async fn cluster(dir: &Path, values: usize, sets: &[&str]) -> Cluster {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    Cluster::start(&dir.join("cluster"), values, &sets, None).await.unwrap()
}

fn slab(version: u64, values: usize) -> Vec<f32> {
    let shift = version as f32 * 1e-4;
    (0..values).map(|i| (i as f32 * 0.7).sin() * 0.02 + shift * (i as f32).cos()).collect()
}

fn transport(cluster: &Cluster, id: &str) -> (&'static str, String, usize) {
    let whence = cluster.weights.fanout.whence(id).0.expect("it reported");
    (whence.transport, whence.source, whence.hops)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_damaged_transfers_leave_no_mixed_version() {
    const SMALL: usize = 30_000;
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path(), SMALL, &["cluster.relay_fanout=1", "cluster.relay_seconds=0.3"]).await;
    let mut parent = cluster.join("parent", Some(Fault::Pace(1e12))).await.unwrap();
    let mut child = cluster.join("child", None).await.unwrap();
    let relay = parent.proxy.as_ref().unwrap().url.clone();
    let bytes = SMALL as u64 * 4;
    let (mut random, mut relayed, mut direct) = (Random::named("faults", &[]), 0, 0);
    for version in 0..1000 {
        // The rest that a failed relay is given ends here.
        cluster.weights.fanout.join("parent", relay.clone(), None);
        cluster.weights.fanout.join("child", String::new(), None);
        let slab = slab(version, SMALL);
        cluster.publish(version, &slab);
        parent.get(version).await.unwrap();
        let place = (random.uniform(version) * 1.2 * bytes as f64) as u64;
        parent.proxy.as_ref().unwrap().set(match version % 10 {
            0..=4 => Fault::Flip(place),
            5..=8 => Fault::Cut(place),
            _ => Fault::Pace(1e12),
        });
        let got = child.get(version).await.unwrap();
        assert!(got.version == version && got.slab == slab, "version {version} is mixed");
        assert_eq!(got.digest, sha256_hex(&f32_to_le(&slab)));
        match transport(&cluster, "child").0 {
            "relay" => relayed += 1,
            _ => direct += 1,
        }
    }
    assert!(
        relayed >= 100 && direct >= 500,
        "{relayed} came from the relay, {direct} from the coordinator after it failed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_relay_costs_its_deadline_and_a_cut_one_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path(), VALUES, &["cluster.relay_fanout=1", "cluster.relay_seconds=1"]).await;
    let mut parent = cluster.join("parent", Some(Fault::Hang(2_000_000))).await.unwrap();
    let mut child = cluster.join("child", None).await.unwrap();
    cluster.publish(1, &slab(1, VALUES));
    parent.get(1).await.unwrap();
    let began = Instant::now();
    assert_eq!(child.get(1).await.unwrap().slab, slab(1, VALUES));
    let seconds = began.elapsed().as_secs_f64();
    assert!((1.0..3.0).contains(&seconds), "it took {seconds} s with a deadline of 1 s");

    cluster.weights.fanout.join("parent", parent.proxy.as_ref().unwrap().url.clone(), None);
    cluster.publish(2, &slab(2, VALUES));
    parent.get(2).await.unwrap();
    parent.proxy.as_ref().unwrap().set(Fault::Cut(1_500_000));
    let mut late = cluster.join("late", None).await.unwrap();
    let began = Instant::now();
    assert_eq!(late.get(2).await.unwrap().slab, slab(2, VALUES));
    assert!(began.elapsed() < Duration::from_secs(1), "a broken connection is seen at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_relay_is_replaced_in_the_middle_of_a_stream() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path(), VALUES, &["cluster.relay_fanout=1", "cluster.relay_seconds=5"]).await;
    // The first relay takes two seconds, so that the second one is still receiving when the third reads along and loses it.
    let mut first = cluster.join("first", Some(Fault::Pace(1.6e6))).await.unwrap();
    let mut second = cluster.join("second", Some(Fault::Pace(1e12))).await.unwrap();
    let mut third = cluster.join("third", None).await.unwrap();
    cluster.publish(1, &slab(1, VALUES));
    first.get(1).await.unwrap();
    let killed = second.proxy.take();
    let second = tokio::spawn(async move { second.get(1).await.map(|w| w.slab == slab(1, VALUES)) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let third = tokio::spawn(async move { third.get(1).await.map(|w| w.slab == slab(1, VALUES)) });
    tokio::time::sleep(Duration::from_millis(700)).await;
    // As by SIGKILL, connections end at once, and the coordinator does not know yet.
    drop(killed);
    assert!(second.await.unwrap().unwrap() && third.await.unwrap().unwrap());
    assert_eq!(transport(&cluster, "second"), ("relay", "first".into(), 2));
    assert_eq!(transport(&cluster, "third").0, "grpc", "nobody else had room: the coordinator went on");
    let whence = cluster.weights.fanout.whence("third").0.unwrap();
    assert_eq!(whence.bytes, VALUES as u64 * 4, "what had arrived was not fetched again");
}

/// A relay whose chunks and digests agree with each other, but are of other weights.
#[derive(Clone)]
struct Liar(Vec<u8>);

type Chunks = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::WeightChunk, Status>> + Send>>;

#[tonic::async_trait]
impl Relay for Liar {
    type FetchWeightsStream = Chunks;

    async fn fetch_weights(&self, request: Request<v1::FetchWeightsRequest>) -> Result<Response<Chunks>, Status> {
        let (r, bytes) = (request.into_inner(), self.0.clone());
        let parts: Vec<_> = bytes
            .chunks(1 << 20)
            .enumerate()
            .map(|(i, part)| {
                Ok(v1::WeightChunk {
                    version: r.version,
                    offset: (i << 20) as u64,
                    total: bytes.len() as u64,
                    data: part.to_vec().into(),
                    chunk_digest: blake3::hash(part).as_bytes().to_vec().into(),
                    weights_digest: sha256_hex(&bytes),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    type FetchFrozenStream = Chunks;

    async fn fetch_frozen(&self, _: Request<v1::FetchFrozenRequest>) -> Result<Response<Chunks>, Status> {
        Err(Status::not_found("nothing is frozen"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_found_out_named_and_not_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path(), VALUES, &["cluster.relay_fanout=1"]).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let liar = RelayServer::new(Liar(f32_to_le(&slab(77, VALUES))));
    tokio::spawn(
        tonic::transport::Server::builder().add_service(liar).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let link = LinkOptions { url: cluster.url.clone(), ..LinkOptions::default() };
    let session = join(link, "liar", address).await.unwrap();
    cluster.publish(1, &slab(1, VALUES));
    let fetch = |session| async move { fetch_weights(session, 1, VALUES, None, &mut ()).await };
    let honest: Fetched = fetch(&session).await.unwrap();
    assert!(().passive(), "who keeps nothing is nobody's source");
    // It says it holds the version and hands it on.
    cluster.weights.fanout.locate(
        "liar",
        quorum_coordinator::fanout::Item::Version(1),
        quorum_coordinator::fanout::Form::Whole,
        1,
        false,
    );
    honest.report(&session, 0.1).await;

    let victim = cluster.join("victim", None).await.unwrap();
    let got = fetch(&victim.session).await.unwrap();
    assert_eq!(got.weights.slab, slab(1, VALUES));
    let failed: Vec<_> = got.delivery.failed.iter().map(|f| (f.caller_id.as_str(), f.reason.as_str())).collect();
    assert_eq!(failed, [("liar", "checksum")]);
    got.report(&victim.session, 0.1).await;
    let mut next = cluster.join("next", None).await.unwrap();
    assert_eq!(next.get(1).await.unwrap().slab, slab(1, VALUES));
    assert_ne!(transport(&cluster, "next").1, "liar");
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_travel_through_relays_and_late_joiners_get_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    for precision in ["f32", "bf16"] {
        let precision = format!("train.precision={precision}");
        let sets = ["cluster.relay_fanout=1", "cluster.weight_delta=true", &precision];
        let cluster = cluster(dir.path(), VALUES, &sets).await;
        let rounded = |v| {
            let mut out = Vec::new();
            let p = cluster.precision();
            quorum_core::digest::policy_from_le(&quorum_core::digest::policy_to_le(&slab(v, VALUES), p), p, &mut out);
            out
        };
        let mut clients = Vec::new();
        for i in 0..4 {
            clients.push(cluster.join(&format!("w{i}"), None).await.unwrap());
        }
        for version in 0..4 {
            cluster.publish(version, &slab(version, VALUES));
            for client in &mut clients {
                assert!(client.get(version).await.unwrap().slab == rounded(version), "{precision}, version {version}");
                let (by, from, _) = transport(&cluster, &client.id);
                let first = client.id == "w0";
                assert_eq!(
                    (by == "delta", from.is_empty()),
                    (version > 0, first),
                    "{precision}, {} by {by}",
                    client.id
                );
                let whence = cluster.weights.fanout.whence(&client.id).0.unwrap();
                assert!(
                    version == 0
                        || whence.bytes
                            < 9 * (VALUES * quorum_core::digest::weight_size(cluster.precision())) as u64 / 10,
                    "{} bytes",
                    whence.bytes
                );
            }
        }
        let mut late = cluster.join("late", None).await.unwrap();
        assert!(late.get(3).await.unwrap().slab == rounded(3));
        let (by, from, _) = transport(&cluster, "late");
        assert_eq!((by, from.is_empty()), ("relay", false), "the whole, from a worker that got a difference");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_sends_fanout_versions_to_many_workers_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path(), VALUES, &["cluster.relay_fanout=3"]).await;
    let mut clients = Vec::new();
    for i in 0..24 {
        clients.push(cluster.join(&format!("w{i}"), None).await.unwrap());
    }
    cluster.publish(1, &slab(1, VALUES));
    let (clients, _) = super::spread(clients, 1).await.unwrap();
    let direct = clients.iter().filter(|c| transport(&cluster, &c.id).1.is_empty()).count();
    let deepest = clients.iter().map(|c| transport(&cluster, &c.id).2).max();
    assert_eq!((direct, deepest.is_some_and(|d| (2..=4).contains(&d))), (3, true), "deepest {deepest:?}");
    let stranger = v1::FetchWeightsRequest { version: 1, ..Default::default() };
    let relay = clients[0].session.link.beside(&clients[0].relay.as_ref().unwrap().url).unwrap();
    let refused = relay.relay().fetch_weights(stranger).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    let known =
        v1::FetchWeightsRequest { version: 1, caller: Some(clients[1].session.caller("")), ..Default::default() };
    let mut stream = relay.relay().fetch_weights(known).await.unwrap().into_inner();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!((first.offset, first.total), (0, VALUES as u64 * 4));
}
