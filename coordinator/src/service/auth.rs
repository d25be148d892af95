//! The shared token: every call must carry it. Compared in constant time.

use quorum_core::metric;
use std::path::Path;
use std::sync::Arc;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Shortest token that is accepted.
const SHORTEST: usize = 16;

/// Reads a token file.
///
/// # Errors
/// It cannot be read, or is too short to be a secret.
pub fn read_token(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cluster.token_file {}: {e}", path.display()))?;
    let token = text.trim().to_owned();
    if token.len() < SHORTEST || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "cluster.token_file {}: a token needs at least {SHORTEST} visible ASCII characters; make one with `openssl rand -hex 32`",
            path.display()
        ));
    }
    Ok(token)
}

/// Refuses calls without the token, if there is one.
#[derive(Clone)]
pub struct Guard(pub Option<Arc<str>>);

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.0 else { return Ok(request) };
        let given = request.metadata().get("authorization").map(|v| v.as_bytes());
        let given = given.and_then(|v| v.strip_prefix(b"Bearer "));
        match given {
            Some(given) if same(given, token.as_bytes()) => Ok(request),
            _ => {
                metric::COORDINATOR_RPC_REJECTED.with(["unauthenticated"]).increment(1);
                Err(Status::unauthenticated("the call carries no valid token: give the process --token-file"))
            }
        }
    }
}

/// Equality of the hashes: takes as long wherever the first difference is, and tells nothing about lengths. BLAKE3's comparison is constant-time.
fn same(a: &[u8], b: &[u8]) -> bool {
    blake3::hash(a) == blake3::hash(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens() {
        let mut guard = Guard(Some("0123456789abcdef".into()));
        let mut call = |value: Option<&str>| {
            let mut request = Request::new(());
            if let Some(v) = value {
                request.metadata_mut().insert("authorization", v.parse().unwrap());
            }
            guard.call(request).is_ok()
        };
        assert!(call(Some("Bearer 0123456789abcdef")));
        for wrong in [
            None,
            Some("Bearer 0123456789abcdeF"),
            Some("0123456789abcdef"),
            Some("Bearer "),
            Some("bearer 0123456789abcdef"),
        ] {
            assert!(!call(wrong), "{wrong:?}");
        }
        assert!(Guard(None).call(Request::new(())).is_ok());
    }
}
