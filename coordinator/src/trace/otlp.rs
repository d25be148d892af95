//! Spans to an OpenTelemetry collector, by OTLP over gRPC. The queue is OpenTelemetry's own and bounded; batches leave on its thread.

use super::tracer::{Sink, Span, Value};
use anyhow::Context;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter as Export, SpanLinks, SpanProcessor,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tonic::transport::ClientTlsConfig;

/// Spans waiting for the collector; more are lost.
const QUEUE: usize = 8192;
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(1);
/// Time for one batch, and for the last ones.
const CALL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Collector {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl Collector {
    /// Sends to `url` from now on. It need not be there yet.
    pub(super) fn dial(url: &str, run_id: &str) -> anyhow::Result<Self> {
        let mut builder = SpanExporter::builder().with_tonic().with_endpoint(url).with_timeout(CALL);
        if url.starts_with("https") {
            builder = builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
        }
        let exporter = builder.build().with_context(|| format!("--otlp {url}: give http://HOST:4317"))?;
        let exporter = Told { exporter, url: url.to_owned(), failing: AtomicBool::new(false) };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY);
        let mut processor = BatchSpanProcessor::new(exporter, config.build());
        let name = KeyValue::new("service.instance.id", run_id.to_owned());
        processor.set_resource(&Resource::builder().with_service_name("quorum").with_attribute(name).build());
        let scope = InstrumentationScope::builder("quorum").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { processor, scope })
    }
}

impl Sink for Collector {
    fn span(&self, span: &Arc<Span>) {
        let context = SpanContext::new(
            TraceId::from_bytes(span.trace),
            SpanId::from_bytes(span.id),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        );
        let attributes = span.attributes.iter().map(|(key, value)| match value {
            Value::Text(text) => KeyValue::new(*key, text.clone()),
            Value::Count(n) => KeyValue::new(*key, i64::try_from(*n).unwrap_or(i64::MAX)),
            Value::Number(x) => KeyValue::new(*key, *x),
        });
        self.processor.on_end(SpanData {
            span_context: context,
            parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: span.name.into(),
            start_time: span.start,
            end_time: span.end,
            attributes: attributes.collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.failed.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        });
    }

    fn close(&mut self) {
        if let Err(e) = self.processor.shutdown_with_timeout(PATIENCE) {
            tracing::warn!("the last traces did not reach the collector: {e}");
        }
    }
}

/// Says once that the collector is away, and once that it is back.
#[derive(Debug)]
struct Told {
    exporter: SpanExporter,
    url: String,
    failing: AtomicBool,
}

impl Export for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (spans, sent) = (batch.len(), self.exporter.export(batch).await);
        let failed = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(e) if !failed => tracing::warn!("{spans} spans did not reach the collector at {}: {e}", self.url),
            Ok(()) if failed => tracing::warn!("the collector at {} takes traces again", self.url),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
