//! What a process answers on its metrics page.

use super::ready::is_ready;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Status, content type and body for `path`: `/metrics`, `/healthz` (alive) or `/readyz` (at work).
pub(super) fn respond(path: &str, render: &dyn Fn() -> String) -> (u16, &'static str, String) {
    match path.split('?').next().unwrap_or_default() {
        "/metrics" => (200, METRICS, render()),
        "/healthz" => (200, TEXT, "ok\n".into()),
        "/readyz" if is_ready() => (200, TEXT, "ready\n".into()),
        "/readyz" => (503, TEXT, "not ready: the current version is not served yet\n".into()),
        _ => (404, TEXT, "this process has /metrics, /healthz and /readyz\n".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::set_ready;

    #[test]
    fn paths_are_told_apart() {
        let of = |path: &str| respond(path, &|| "quorum_up 1\n".into());
        assert_eq!(of("/metrics?name=x").2, "quorum_up 1\n");
        assert_eq!(of("/secret").0, 404);
        set_ready(false);
        assert_eq!((of("/readyz").0, of("/healthz").0), (503, 200));
        set_ready(true);
        assert_eq!(of("/readyz").0, 200);
    }
}
