//! Traces of a run with fake arithmetic: in the file for Perfetto, and with feature `otel` at a collector over gRPC.

// Helpers outside #[test] functions may panic too: that fails the test.
#![allow(clippy::unwrap_used)]

// Other tests use the rest of it.
#[allow(dead_code)]
mod fake;

use fake::coordinator::Coordinator;
use fake::learner::Learner;
use fake::worker::Worker;
use quorum_coordinator::run::{Event, Observer, RunEnd};
use quorum_coordinator::trace::{FILE, Trace, Wanted};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

struct Traced(Arc<Trace>);

impl Observer for Traced {
    fn event(&self, event: &Event) {
        self.0.event(event);
    }

    fn traces(&self) -> bool {
        true
    }
}

/// Four steps with two evaluations; one worker takes a lease and never answers.
async fn traced_run(dir: &Path, wanted: &Wanted) {
    let trace = Arc::new(Trace::start(wanted, dir, "fake", 1, 4).unwrap().unwrap());
    let set = ["cluster.lease_seconds=0.4", "cluster.heartbeat_seconds=5"];
    let c = Coordinator::observed(dir, &set, Arc::new(Traced(trace.clone())));
    let mut learner = Learner::join(&c.url, "learner", dir).await.unwrap();
    assert!(learner.publish().await.unwrap().accepted);
    let mut silent = Worker::join(&c.url, "silent").await.unwrap();
    assert_eq!(silent.lease(1, 5.0).await.unwrap().leases.len(), 1);
    let busy = Worker::join(&c.url, "busy").await.unwrap();
    let busy = tokio::spawn(busy.work(Duration::from_millis(2)));
    assert!(learner.work(None).await.unwrap().accepted);
    assert_eq!(c.ended().await, RunEnd::Complete);
    assert!(busy.await.unwrap().unwrap() > 0);
    tokio::task::spawn_blocking(move || trace.close()).await.unwrap();
}

/// Training groups and evaluation tasks, each accepted once.
const ACCEPTED: usize = 4 * 4 + 2 * 3 * fake::TEST;

#[tokio::test(flavor = "multi_thread")]
async fn the_file_shows_each_lease_inside_its_phase() {
    let dir = tempfile::tempdir().unwrap();
    traced_run(dir.path(), &Wanted::of(true, None).unwrap()).await;
    let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    let whole = format!("{}]", text.trim_end().trim_end_matches(','));
    let events: Vec<serde_json::Value> = serde_json::from_str(&whole).unwrap();
    let named = |cat: &'static str| events.iter().filter(move |e| e["cat"] == cat).collect::<Vec<_>>();
    let count = ["step", "end", "evaluate", "sample", "train", "publish", "checkpoint"].map(|n| named(n).len());
    assert_eq!(count, [4, 1, 2, 4, 4, 4, 4]);
    let leases = named("lease");
    let outcome = |o: &str| leases.iter().filter(|l| l["args"]["outcome"] == o).count();
    assert_eq!((outcome("accepted"), outcome("expired"), leases.len()), (ACCEPTED, 1, ACCEPTED + 1));
    let span =
        |e: &serde_json::Value| (e["ts"].as_f64().unwrap(), e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap());
    for lease in &leases {
        let ((from, to), step) = (span(lease), &lease["args"]["step"]);
        let phase = if lease["args"]["purpose"] == "train" { "sample" } else { "evaluate" };
        let inside = |p: &&&serde_json::Value| span(p).0 - 1.0 <= from && to <= span(p).1 + 1.0;
        assert_eq!(named(phase).iter().filter(inside).count(), 1, "step {step}: {lease}");
    }
    // Leases on one track never overlap.
    let mut tracks: Vec<(String, (f64, f64))> =
        leases.iter().map(|l| (format!("{} {}", l["pid"], l["tid"]), span(l))).collect();
    tracks.sort_by(|a, b| a.partial_cmp(b).unwrap());
    assert!(tracks.windows(2).all(|w| w[0].0 != w[1].0 || w[0].1.1 <= w[1].1.0 + 1.0), "{tracks:?}");
    let names: Vec<_> = events.iter().filter(|e| e["name"] == "process_name").map(|e| &e["args"]["name"]).collect();
    assert!(["run", "busy", "silent"].iter().all(|n| names.contains(&&serde_json::json!(n))), "{names:?}");
}

#[cfg(feature = "otel")]
mod collector {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::time::Instant;
    use tonic::{Request, Response, Status};

    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            self.0.lock().unwrap().push(request.into_inner());
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    fn text(span: &Span, key: &str) -> String {
        let value = span.attributes.iter().find(|a| a.key == key).and_then(|a| a.value.clone()?.value);
        match value {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(n)) => n.to_string(),
            _ => String::new(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_gets_a_trace_a_step_with_a_span_a_lease() {
        let (dir, collector) = (tempfile::tempdir().unwrap(), Collector::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(collector.clone());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        traced_run(dir.path(), &Wanted::of(false, Some(&url)).unwrap()).await;
        let requests = collector.0.lock().unwrap().clone();
        let resources: Vec<_> = requests.iter().flat_map(|r| &r.resource_spans).collect();
        let said = format!("{:?}", resources[0].resource);
        assert!(said.contains("service.name") && said.contains("quorum"), "{said}");
        let spans: Vec<&Span> = resources.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).collect();
        let by_id: HashMap<&[u8], &Span> = spans.iter().map(|s| (s.span_id.as_slice(), *s)).collect();
        assert_eq!(by_id.len(), spans.len(), "ids repeat");
        for span in spans.iter().filter(|s| !s.parent_span_id.is_empty()) {
            let parent = by_id[span.parent_span_id.as_slice()];
            assert_eq!(span.trace_id, parent.trace_id);
            let inside = parent.start_time_unix_nano <= span.start_time_unix_nano
                && span.end_time_unix_nano <= parent.end_time_unix_nano;
            assert!(inside, "{} does not lie inside {}", span.name, parent.name);
            let wanted = match span.name.as_str() {
                "lease" if text(span, "purpose") == "train" => "sample",
                "lease" => "evaluate",
                "publish" | "checkpoint" => "train",
                "evaluate" if parent.name == "end" => "end",
                _ => "step",
            };
            assert_eq!(parent.name, wanted, "{}", span.name);
        }
        let roots: Vec<_> = spans.iter().filter(|s| s.parent_span_id.is_empty()).map(|s| s.name.as_str()).collect();
        assert_eq!(roots, ["step", "step", "step", "step", "end"]);
        let leases: Vec<_> = spans.iter().filter(|s| s.name == "lease").collect();
        let outcome = |o: &str| leases.iter().filter(|l| text(l, "outcome") == o).collect::<Vec<_>>();
        assert_eq!((outcome("accepted").len(), leases.len()), (ACCEPTED, ACCEPTED + 1));
        let lost = outcome("expired")[0];
        assert_eq!((text(lost, "worker"), text(lost, "attempt")), ("silent".into(), "1".into()));
        let again = leases.iter().find(|l| text(l, "attempt") == "2").unwrap();
        assert_eq!((text(again, "worker"), text(again, "row")), ("busy".into(), text(lost, "row")));
        assert!(again.start_time_unix_nano >= lost.end_time_unix_nano);
    }

    /// A collector that accepts calls and never answers.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_that_hangs_holds_nothing_up() {
        let (dir, hung) = (tempfile::tempdir().unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let url = format!("http://{}", hung.local_addr().unwrap());
        let began = Instant::now();
        traced_run(dir.path(), &Wanted::of(false, Some(&url)).unwrap()).await;
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    }
}
