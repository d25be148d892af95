//! How the HTTP page is served: on loopback plain, to local names; beyond it over TLS and with the token, except for probes.

use super::server::ServeError;
use crate::web::local_names;
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::serve::Listener;
use quorum_core::config::ClusterSection;
use quorum_core::tls::{TlsListener, server_config};
use quorum_core::token::Token;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

struct Secure(TlsListener);

impl Listener for Secure {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        self.0.accept().await
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.0.local_addr())
    }
}

/// Serves `app` on `listener` until `stop`; the future is to be spawned.
///
/// # Errors
/// The certificate or its key cannot be used.
pub(super) fn serve(
    listener: TcpListener,
    app: Router,
    cluster: &ClusterSection,
    token: Option<&Token>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<impl Future<Output = std::io::Result<()>> + Send + 'static, ServeError> {
    let beyond = listener.local_addr().is_ok_and(|a| !a.ip().is_loopback());
    let config = match cluster.tls_cert.as_str() {
        cert if beyond && !cert.is_empty() => {
            Some(server_config(Path::new(cert), Path::new(&cluster.tls_key)).map_err(ServeError::Tls)?)
        }
        _ => None,
    };
    // `listen` lets nothing else than --insecure open a page beyond loopback without both; what is set counts even then.
    let app = match token {
        Some(token) if beyond => guarded(app, token.clone(), config.is_some()),
        _ if beyond => app,
        _ => local_names(app),
    };
    Ok(async move {
        match config {
            None => axum::serve(listener, app).with_graceful_shutdown(stop).await,
            Some(config) => {
                let listener = Secure(TlsListener::new(listener, config)?);
                axum::serve(listener, app).with_graceful_shutdown(stop).await
            }
        }
    })
}

/// Every path but those of probes wants the token: as a bearer, or, for browsers, as a cookie, which a visit with `?token=…` sets.
fn guarded(app: Router, token: Token, tls: bool) -> Router {
    app.layer(from_fn(move |request: Request, next: Next| {
        let entry = entry(&request, &token, tls);
        async move {
            match entry {
                Entry::Open => next.run(request).await,
                Entry::Admit { cookie, to } => {
                    (StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie), (header::LOCATION, to)]).into_response()
                }
                Entry::Closed => (StatusCode::UNAUTHORIZED, CLOSED).into_response(),
            }
        }
    }))
}

const CLOSED: &str =
    "the request carries no valid token: send `Authorization: Bearer …`, or open this page once with ?token=…\n";
const COOKIE: &str = "quorum_token=";

enum Entry {
    Open,
    /// The token came in the address: it moves to a cookie, and the address forgets it.
    Admit {
        cookie: String,
        to: String,
    },
    Closed,
}

fn entry(request: &Request, token: &Token, tls: bool) -> Entry {
    let headers = request.headers();
    let path = request.uri().path();
    let bearer = |given: &str| token.matches(Some(format!("Bearer {given}").as_bytes()));
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    let mut cookies = cookies.filter_map(|c| c.trim().strip_prefix(COOKIE));
    let given = headers.get(header::AUTHORIZATION).map(|v| v.as_bytes());
    if matches!(path, "/healthz" | "/readyz") || token.matches(given) || cookies.any(bearer) {
        return Entry::Open;
    }
    let query = request.uri().query().unwrap_or_default();
    match query.split('&').find_map(|pair| pair.strip_prefix("token=")) {
        // Only an own path can follow: `//host` would be another site.
        Some(given) if bearer(given) => Entry::Admit {
            // Over plain HTTP a browser would drop a secure cookie.
            cookie: format!("{COOKIE}{given}; Path=/; HttpOnly; SameSite=Strict{}", if tls { "; Secure" } else { "" }),
            to: format!("/{}", path.trim_start_matches(['/', '\\'])),
        },
        _ => Entry::Closed,
    }
}
