//! A page without a token answers to local names alone: see [`quorum_core::host`].

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use quorum_core::host::{is_local, refusal};

/// Refuses requests for any host but `localhost` (also `x.localhost`) and addresses.
pub fn local_names(app: Router) -> Router {
    app.layer(from_fn(|request: Request, next: Next| async move {
        match foreign(&request) {
            None => next.run(request).await,
            Some(host) => (StatusCode::FORBIDDEN, refusal(&host)).into_response(),
        }
    }))
}

/// The host of a request that must not be answered. One that names none comes from no browser.
fn foreign(request: &Request) -> Option<String> {
    let header = request.headers().get(header::HOST).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let host = request.uri().authority().map(|a| a.as_str().to_owned()).or(header)?;
    (!is_local(&host)).then_some(host)
}
