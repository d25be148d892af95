//! The HTTP page: Prometheus metrics and service discovery, health, status. Read-only.

use super::Shared;
use super::look::Look;
use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

#[derive(Clone)]
struct Page {
    shared: Shared,
    look: Look,
    metrics: PrometheusHandle,
}

/// Routes of the page.
pub(super) fn router(shared: Shared, look: Look, metrics: PrometheusHandle) -> Router {
    let source = look.source.clone();
    tokio::spawn(source.clone().warm());
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .route("/sd", get(discovery))
        .with_state(Page { shared, look, metrics })
        .merge(crate::web::router(source))
}

async fn metrics_page(State(page): State<Page>) -> Response {
    page.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], page.metrics.render()).into_response()
}

async fn health(State(page): State<Page>) -> Response {
    match page.shared.run.status().await {
        Some(_) => "ok\n".into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the run has ended\n").into_response(),
    }
}

/// Ready from the recovered start of a run, when this page begins to answer, to its end.
async fn ready(State(page): State<Page>) -> Response {
    match page.shared.run.standing() {
        "running" => "ready\n".into_response(),
        standing => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: the run is {standing}\n")).into_response(),
    }
}

async fn status(State(page): State<Page>) -> Response {
    match page.look.status().await {
        Some(status) => Json(status).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": "the run has ended"}))).into_response(),
    }
}

/// Prometheus' HTTP service discovery: the metric pages of workers and learner.
async fn discovery(State(page): State<Page>) -> Json<Value> {
    let status = page.shared.run.status().await.unwrap_or_default();
    let members = status.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |m: &Value, key: &str| m.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let targets = members.iter().filter(|m| !text(m, "metrics_address").is_empty()).map(|m| {
        json!({
            "targets": [text(m, "metrics_address")],
            "labels": { "instance_id": text(m, "id"), "role": text(m, "role"), "run_id": page.shared.run_id },
        })
    });
    Json(Value::Array(targets.collect()))
}
