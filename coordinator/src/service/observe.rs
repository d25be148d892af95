//! Counts and times every call, whatever becomes of it.

use quorum_core::metric;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::{Code, Status};

/// A gRPC service whose calls are counted.
#[derive(Clone)]
pub(super) struct Observed<S>(pub(super) S);

impl<S: NamedService> NamedService for Observed<S> {
    const NAME: &'static str = S::NAME;
}

type Answering<R> = Pin<Box<dyn Future<Output = Result<Response<R>, Infallible>> + Send>>;

impl<S, B, R> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Answering<R>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let began = Instant::now();
        let method = name_of(request.uri().path());
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // Only an error known before the first message stands in the head; later ones of a stream are the caller's to count.
            let status = Status::from_header_map(answer.headers());
            let code = status.as_ref().map_or(Code::Ok, Status::code);
            let seconds = began.elapsed().as_secs_f64();
            metric::COORDINATOR_RPC_DURATION_SECONDS.with([method, label(code)]).record(seconds);
            if let Some(reason) = status.as_ref().and_then(rejection) {
                metric::COORDINATOR_RPC_REJECTED.with([reason]).increment(1);
            }
            Ok(answer)
        })
    }
}

/// Names of the methods that there are: a caller cannot make labels.
fn name_of(path: &str) -> &'static str {
    const METHODS: [&str; 16] = [
        "Join",
        "Heartbeat",
        "Leave",
        "FetchBlob",
        "FetchWeights",
        "FetchFrozen",
        "LocateWeights",
        "ReportWeights",
        "BroadcastWeights",
        "Status",
        "Lease",
        "Submit",
        "FormGroup",
        "NextBatch",
        "Publish",
        "Commit",
    ];
    let last = path.rsplit('/').next().unwrap_or_default();
    METHODS.into_iter().find(|m| *m == last).unwrap_or("other")
}

/// Refusals that tonic makes before a handler runs. Missing tokens and foreign callers are counted where they are refused.
fn rejection(status: &Status) -> Option<&'static str> {
    let said = |text: &str| status.message().contains(text);
    match status.code() {
        Code::OutOfRange if said("message length too large") => Some("too_large"),
        Code::Internal if said("failed to decode") => Some("malformed"),
        _ => None,
    }
}

fn label(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::Unauthenticated => "unauthenticated",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_a_fixed_set() {
        assert_eq!(name_of("/quorum.v1.Rollout/Lease"), "Lease");
        assert_eq!(name_of("/quorum.v1.Rollout/Lease/../x"), "other");
        assert_eq!(name_of(""), "other");
        let too_large = Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 4");
        assert_eq!(rejection(&too_large), Some("too_large"));
        assert_eq!(rejection(&Status::internal("a slot has no record")), None);
    }
}
