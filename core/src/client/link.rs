//! One lazily connected channel to the coordinator, with keepalive, TLS, token and deadlines. It reconnects by itself; retrying is the caller's business.

use super::{ClientError, announced};
use crate::tls::MEMBER_NAME;
use quorum_proto::v1::cluster_client::ClusterClient;
use quorum_proto::v1::learner_client::LearnerClient;
use quorum_proto::v1::relay_client::RelayClient;
use quorum_proto::v1::rollout_client::RolloutClient;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status};

/// Without keepalive a call hangs for ever after a partition.
const KEEPALIVE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Message limit until Join tells the run's own.
const FIRST_LIMIT: usize = 64 << 20;

/// Where and how to connect.
#[derive(Debug, Clone, Default)]
pub struct LinkOptions {
    /// `http://HOST:PORT` or `https://HOST:PORT`; a bare `HOST:PORT` is plain text; `file:PATH` is what the coordinator wrote into PATH.
    pub url: String,
    /// File whose trimmed content is sent as bearer token.
    pub token_file: Option<PathBuf>,
    /// PEM of the authority to trust; needed for `https`.
    pub tls_ca: Option<PathBuf>,
    /// PEM of the certificate this process shows; with `tls_key`.
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
}

impl LinkOptions {
    /// Whether the coordinator is on this machine; of one that is not there yet, no.
    pub fn is_loopback(&self) -> bool {
        self.found().is_ok_and(|found| loopback(&found.url))
    }

    /// `--coordinator URL`, or what `--coordinator-file PATH` says.
    pub fn address(url: Option<&str>, file: Option<&Path>) -> String {
        file.map_or_else(|| url.unwrap_or_default().to_owned(), announced::address_of)
    }

    /// The file that says where the coordinator is, if one does.
    pub(super) fn file(&self) -> Option<&Path> {
        announced::file(&self.url)
    }

    /// With the present address in place of a file.
    ///
    /// # Errors
    /// `Transient` while the file is not there.
    pub(super) fn found(&self) -> Result<Self, ClientError> {
        match self.file() {
            Some(path) => Ok(Self { url: announced::read(path)?, ..self.clone() }),
            None => Ok(self.clone()),
        }
    }
}

/// Adds the bearer token to every request.
#[derive(Clone)]
pub struct Auth(Option<MetadataValue<Ascii>>);

impl Interceptor for Auth {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Auth>;

/// A channel to the coordinator; cheap to clone.
#[derive(Clone)]
pub struct Link {
    url: String,
    options: Arc<LinkOptions>,
    channel: Channel,
    auth: Auth,
    limit: usize,
}

impl Link {
    /// Prepares the channel. Needs a Tokio runtime; connects at the first call.
    ///
    /// # Errors
    /// An unusable address, token file or CA file, by name.
    pub fn new(options: &LinkOptions) -> Result<Self, ClientError> {
        Self::open(options, None)
    }

    /// `name` is what the certificate at the other end must say, if not the host of the address.
    fn open(options: &LinkOptions, name: Option<&str>) -> Result<Self, ClientError> {
        let url = if options.url.contains("://") { options.url.clone() } else { format!("http://{}", options.url) };
        let address = |reason: String| ClientError::Address { url: options.url.clone(), reason };
        let mut endpoint = Endpoint::from_shared(url.clone())
            .map_err(|e| address(e.to_string()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEPALIVE))
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        if endpoint.uri().host().is_none() || endpoint.uri().port().is_none() {
            return Err(address("it needs a host and a port".into()));
        }
        if endpoint.uri().scheme_str() == Some("https") || options.tls_ca.is_some() {
            let config = tls(options, &address)?;
            let config = name.into_iter().fold(config, |config, name| config.domain_name(name));
            endpoint = endpoint.tls_config(config).map_err(|e| address(e.to_string()))?;
        }
        let auth = Auth(options.token_file.as_deref().map(token).transpose()?);
        let options = Arc::new(options.clone());
        Ok(Self { url, options, channel: endpoint.connect_lazy(), auth, limit: FIRST_LIMIT })
    }

    /// A channel to another process of the run, a relay, with the same token and certificates. Beyond loopback it is as safe as the one to the
    /// coordinator.
    ///
    /// # Errors
    /// An unusable address, or plain text beyond loopback where the coordinator speaks TLS.
    pub fn beside(&self, url: &str) -> Result<Self, ClientError> {
        let secure = url.starts_with("https://");
        let address = |reason: &str| ClientError::Address { url: url.to_owned(), reason: reason.to_owned() };
        if !secure && self.url.starts_with("https://") && !loopback(url) {
            return Err(address("it is plain text, but the coordinator speaks TLS"));
        }
        let mut options = LinkOptions { url: url.to_owned(), ..(*self.options).clone() };
        if !secure {
            (options.tls_ca, options.tls_cert, options.tls_key) = (None, None, None);
        }
        Ok(Self { limit: self.limit, ..Self::open(&options, secure.then_some(MEMBER_NAME))? })
    }

    /// The coordinator's address, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same channel with the run's message limit in bytes.
    pub fn with_limit(mut self, bytes: u64) -> Self {
        self.limit = usize::try_from(bytes).unwrap_or(usize::MAX).max(1 << 20);
        self
    }

    /// Membership, blobs and weights.
    pub fn cluster(&self) -> ClusterClient<Service> {
        ClusterClient::with_interceptor(self.channel.clone(), self.auth.clone())
            .max_decoding_message_size(self.limit)
            .max_encoding_message_size(self.limit)
    }

    /// Leases and groups.
    pub fn rollout(&self) -> RolloutClient<Service> {
        RolloutClient::with_interceptor(self.channel.clone(), self.auth.clone())
            .max_decoding_message_size(self.limit)
            .max_encoding_message_size(self.limit)
    }

    /// Batches and commits.
    pub fn learner(&self) -> LearnerClient<Service> {
        LearnerClient::with_interceptor(self.channel.clone(), self.auth.clone())
            .max_decoding_message_size(self.limit)
            .max_encoding_message_size(self.limit)
    }

    /// Weights that a worker hands on.
    pub fn relay(&self) -> RelayClient<Service> {
        RelayClient::with_interceptor(self.channel.clone(), self.auth.clone())
            .max_decoding_message_size(self.limit)
            .max_encoding_message_size(self.limit)
    }

    /// Awaits one call under its deadline and sorts its error.
    ///
    /// # Errors
    /// As `ClientError` sorts them; a missed deadline is transient.
    pub async fn call<T>(
        &self,
        call: &'static str,
        deadline: Duration,
        future: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(deadline, future).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(ClientError::from_status(&self.url, call, &status)),
            Err(_) => Err(self.late(call, deadline)),
        }
    }

    /// Awaits the next message of a stream under a deadline; `None` at its end.
    ///
    /// # Errors
    /// As `call`.
    pub async fn next<T>(
        &self,
        call: &'static str,
        deadline: Duration,
        stream: &mut tonic::Streaming<T>,
    ) -> Result<Option<T>, ClientError> {
        match tokio::time::timeout(deadline, stream.message()).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(status)) => Err(ClientError::from_status(&self.url, call, &status)),
            Err(_) => Err(self.late(call, deadline)),
        }
    }

    fn late(&self, call: &'static str, deadline: Duration) -> ClientError {
        let reason = format!("no answer within {:.0} s", deadline.as_secs_f64());
        ClientError::Transient { url: self.url.clone(), call, reason }
    }
}

/// Whether a URL's host is this machine.
fn loopback(url: &str) -> bool {
    let host = url.parse::<tonic::transport::Uri>().ok().and_then(|u| u.host().map(str::to_owned)).unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
}

fn tls(options: &LinkOptions, address: &dyn Fn(String) -> ClientError) -> Result<ClientTlsConfig, ClientError> {
    let Some(path) = &options.tls_ca else {
        return Err(address(
            "https needs --tls-ca FILE with the authority that signed the coordinator's certificate".into(),
        ));
    };
    if !options.url.starts_with("https://") {
        return Err(address("--tls-ca is given but the address is not https://".into()));
    }
    let trusted = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("CA file", path)?));
    match (&options.tls_cert, &options.tls_key) {
        (None, None) => Ok(trusted),
        (Some(cert), Some(key)) => {
            Ok(trusted.identity(Identity::from_pem(read("certificate", cert)?, read("key of the certificate", key)?)))
        }
        _ => Err(address("--tls-cert and --tls-key belong together: give both or neither".into())),
    }
}

fn token(path: &Path) -> Result<MetadataValue<Ascii>, ClientError> {
    let problem = |reason: &str| ClientError::File {
        what: "token file",
        path: path.display().to_string(),
        reason: reason.into(),
    };
    let text = read("token file", path)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(problem("it is empty; it must hold the coordinator's token"));
    }
    format!("Bearer {text}").parse().map_err(|_| problem("a token may hold visible ASCII characters only"))
}

fn read(what: &'static str, path: &Path) -> Result<String, ClientError> {
    std::fs::read_to_string(path).map_err(|e| ClientError::File {
        what,
        path: path.display().to_string(),
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unusable_addresses_and_files_are_named() {
        let link = |url: &str, token: Option<&str>, ca: Option<&str>| {
            let options = LinkOptions {
                url: url.into(),
                token_file: token.map(Into::into),
                tls_ca: ca.map(Into::into),
                ..LinkOptions::default()
            };
            Link::new(&options).map(|l| l.url().to_owned()).map_err(|e| e.to_string())
        };
        assert_eq!(link("127.0.0.1:7070", None, None).unwrap(), "http://127.0.0.1:7070");
        assert!(link("http://127.0.0.1", None, None).unwrap_err().contains("port"));
        assert!(link("not a url", None, None).unwrap_err().contains("not a url"));
        assert!(link("https://h:1", None, None).unwrap_err().contains("--tls-ca"));
        assert!(link("http://h:1", Some("/nonexistent/token"), None).unwrap_err().contains("/nonexistent/token"));
    }

    #[tokio::test]
    async fn a_relay_is_reached_as_safely_as_the_coordinator() {
        let plain = Link::new(&LinkOptions { url: "http://h:1".into(), ..LinkOptions::default() }).unwrap();
        assert!(plain.beside("http://10.0.0.1:1").is_ok() && plain.beside("nonsense").is_err());
        let secure = Link { url: "https://h:1".into(), ..plain };
        let refused = secure.beside("http://10.0.0.1:1").map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("plain text"), "{refused}");
        assert!(["127.0.0.1", "localhost", "[::1]"].iter().all(|h| secure.beside(&format!("http://{h}:1")).is_ok()));
    }

    #[tokio::test]
    async fn a_dead_address_is_a_transient_error_that_names_it() {
        let options = LinkOptions { url: "http://127.0.0.1:1".into(), ..LinkOptions::default() };
        let link = Link::new(&options).unwrap();
        let mut client = link.cluster();
        let error = link
            .call("Status", Duration::from_secs(5), client.status(quorum_proto::v1::StatusRequest {}))
            .await
            .unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("127.0.0.1:1"), "{error}");
    }
}
