//! The JSON API under `/api/v1`. Read-only; docs/api.md describes it for users.

use super::groups::{self, Filter};
use super::source::{ApiError, Source};
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{OriginalUri, Path, Query, State};
use axum::http::header;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_stream::{Stream, StreamExt};

/// Time between two looks at the run for those who listen.
const BEAT: Duration = Duration::from_secs(1);
/// Listeners at a time.
pub(super) const LISTENERS: usize = 64;

type Answer = Result<Json<Value>, ApiError>;

pub(super) async fn run(State(source): State<Arc<Source>>) -> Answer {
    let mut overview = source.overview().await?;
    if let Some(object) = overview.as_object_mut() {
        object.insert("config_toml".into(), source.material.config_toml.clone().into());
    }
    Ok(Json(overview))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Steps {
    from: u64,
    /// Separated by commas; empty = all.
    keys: String,
}

pub(super) async fn steps(State(source): State<Arc<Source>>, query: Result<Query<Steps>, QueryRejection>) -> Answer {
    let Query(asked) = query.map_err(bad)?;
    let found = move |source: &Source| {
        let names: Vec<&str> = asked.keys.split(',').filter(|k| !k.is_empty()).collect();
        let columns = source.columns()?;
        let known = columns.names();
        match names.iter().find(|name| !known.contains(*name)) {
            None => Ok(columns.json(asked.from, &names)),
            Some(name) => {
                let known = known.into_iter().collect::<Vec<_>>().join(", ");
                Err(ApiError::Bad(format!("keys: no step has {name:?}; there are {known}")))
            }
        }
    };
    source.read(found).await.map(Json)
}

pub(super) async fn list(State(source): State<Arc<Source>>, query: Result<Query<Filter>, QueryRejection>) -> Answer {
    let Query(filter) = query.map_err(bad)?;
    filter.check()?;
    source.read(move |source| groups::list(source, &filter)).await.map(Json)
}

pub(super) async fn detail(State(source): State<Arc<Source>>, at: Result<Path<(u64, u32)>, PathRejection>) -> Answer {
    let Path((step, slot)) = at.map_err(misplaced)?;
    source.read(move |source| groups::detail(source, step, slot)).await.map(Json)
}

pub(super) async fn prompt(State(source): State<Arc<Source>>, row: Result<Path<u64>, PathRejection>) -> Answer {
    let Path(row) = row.map_err(misplaced)?;
    source.read(move |source| groups::history(source, row)).await.map(|visits| Json(json!({ "visits": visits })))
}

/// An image by content hash, with the type that its first bytes tell.
pub(super) async fn image(
    State(source): State<Arc<Source>>,
    hash: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(hash) = hash.map_err(misplaced)?;
    let bytes = source.material.blob(&hash).ok_or_else(|| ApiError::NotFound(format!("there is no image {hash}")))?;
    let kind = image_type(&bytes).ok_or_else(|| ApiError::NotFound(format!("{hash} is no image")))?;
    // What is named by its content never changes.
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "private, max-age=31536000, immutable")];
    Ok((headers, bytes.to_vec()).into_response())
}

/// Media type of an encoded image; none for anything else, such as a model's side file.
pub(super) fn image_type(bytes: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    match () {
        () if starts(b"\x89PNG") => Some("image/png"),
        () if starts(b"\xff\xd8\xff") => Some("image/jpeg"),
        () if starts(b"GIF8") => Some("image/gif"),
        () if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") => Some("image/webp"),
        () if starts(b"BM") => Some("image/bmp"),
        () => None,
    }
}

/// A listener, counted as long as its stream lives.
struct Seat;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Seat {
    fn take() -> Option<Self> {
        TAKEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < LISTENERS).then_some(n + 1)).ok().map(|_| Self)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The overview as server-sent events named `run`, looked at once a second, and sent if more changed than clocks. Comments keep a quiet stream open.
pub(super) async fn events(
    State(source): State<Arc<Source>>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let seat = Seat::take().ok_or(ApiError::Crowded)?;
    let beats = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(BEAT));
    let stream = beats
        .then(move |_| {
            let (source, _) = (source.clone(), &seat);
            async move { source.news().await.ok() }
        })
        .filter_map({
            let mut last = String::new();
            move |news| {
                let news = news.filter(|n| n.lasting != last)?;
                last.clone_from(&news.lasting);
                Some(Ok(Event::default().event("run").data(&news.text)))
            }
        });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

/// For paths that mean nothing.
pub(super) async fn unknown(OriginalUri(uri): OriginalUri) -> ApiError {
    ApiError::NotFound(format!("there is nothing at {}; docs/api.md lists what there is", uri.path()))
}

/// For every method but GET.
pub(super) async fn read_only() -> ApiError {
    ApiError::ReadOnly
}

fn bad(rejection: QueryRejection) -> ApiError {
    ApiError::Bad(rejection.body_text())
}

fn misplaced(rejection: PathRejection) -> ApiError {
    ApiError::Bad(rejection.body_text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_are_shown() {
        assert_eq!(image_type(b"\x89PNG\r\n"), Some("image/png"));
        assert_eq!(image_type(b"RIFF\0\0\0\0WEBPVP8"), Some("image/webp"));
        assert_eq!(image_type(b"{\"a\":1}"), None);
        assert_eq!(image_type(b"<svg"), None);
    }
}
