//! The shared token: every call must carry it.

use quorum_core::metric;
use quorum_core::token::Token;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Refuses calls without the token, if there is one.
#[derive(Clone)]
pub struct Guard(pub Option<Token>);

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.0 else { return Ok(request) };
        let given = request.metadata().get("authorization").map(|v| v.as_bytes());
        if token.matches(given) {
            return Ok(request);
        }
        metric::COORDINATOR_RPC_REJECTED.with(["unauthenticated"]).increment(1);
        Err(Status::unauthenticated("the call carries no valid token: give the process --token-file"))
    }
}
