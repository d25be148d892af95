//! The live page: static files without a build step, and the JSON API behind it. Read-only.

mod api;
mod columns;
mod groups;
mod host;
mod news;
mod report;
mod source;
#[cfg(test)]
mod tests;
mod visits;

pub use host::local_names;
pub use report::report_page;
pub use source::Source;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;

/// Nothing but the page's own files and data is loaded, whatever a question or an answer may hold.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

macro_rules! file {
    ($name:literal, $kind:literal) => {
        get(|| async {
            let headers = [
                (header::CONTENT_TYPE, $kind),
                (header::CACHE_CONTROL, "no-cache"),
                (header::CONTENT_SECURITY_POLICY, POLICY),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (header::REFERRER_POLICY, "no-referrer"),
            ];
            (headers, include_str!(concat!("../../web/", $name))).into_response()
        })
    };
}

/// Routes of the page and its API.
pub fn router(source: Arc<Source>) -> Router {
    let api = Router::new()
        .route("/run", get(api::run))
        .route("/steps", get(api::steps))
        .route("/groups", get(api::list))
        .route("/groups/{step}/{slot}", get(api::detail))
        .route("/prompts/{row}", get(api::prompt))
        .route("/images/{hash}", get(api::image))
        .route("/events", get(api::events))
        .fallback(api::unknown)
        .method_not_allowed_fallback(api::read_only)
        .with_state(source);
    Router::new()
        .route("/", file!("index.html", "text/html; charset=utf-8"))
        .route("/app.css", file!("app.css", "text/css; charset=utf-8"))
        .route("/app.js", file!("app.js", "text/javascript; charset=utf-8"))
        .route("/groups.js", file!("groups.js", "text/javascript; charset=utf-8"))
        .route("/charts.js", file!("charts.js", "text/javascript; charset=utf-8"))
        .route("/uplot.js", file!("vendor/uPlot.iife.min.js", "text/javascript; charset=utf-8"))
        .route("/uplot.css", file!("vendor/uPlot.min.css", "text/css; charset=utf-8"))
        .nest("/api/v1", api)
}
