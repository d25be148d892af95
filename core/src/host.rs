//! Which names a page without a token answers to. A foreign site whose name is made to point at this machine (DNS rebinding) reaches the port, but its
//! name stands in the request; addresses and `localhost` cannot be made to point elsewhere.

use std::net::IpAddr;

/// Whether `host`, with or without a port, is an address, `localhost` or `x.localhost`.
pub fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

/// What another host is told, in words for people.
pub fn refusal(host: &str) -> String {
    let host: String = host.chars().take(100).collect();
    format!(
        "this page asks for no token, so it answers to localhost and addresses alone, not to {host:?} (another site could read it through your browser). \
         Open http://localhost:PORT/ (from elsewhere after ssh -L PORT:localhost:PORT); a proxy in front must send `Host: localhost`; \
         or listen beyond loopback with TLS and a token (docs/security.md)\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_cannot_be_rebound_are_answered() {
        for host in [
            "localhost",
            "LocalHost:7071",
            "localhost.",
            "run.localhost:80",
            "127.0.0.1:7071",
            "10.0.0.7",
            "[::1]:7071",
            "[::1]",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "evil.example:7071",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "notlocalhost",
            "",
            ":7071",
            "[evil]:1",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
