//! The bucket, as far as the mirror uses it. Every request has a deadline and bounded retries.

use super::{MirrorError, Place};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as Key;
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig, WriteMultipart,
};
use quorum_core::digest::Sha256;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One request, and one with all its repetitions.
const REQUEST: Duration = Duration::from_secs(30);
const REPEATED: Duration = Duration::from_secs(60);
const REPETITIONS: usize = 6;
/// Bytes of a part of an upload; parts under way at once.
const PART: usize = 8 << 20;
const PARTS: usize = 3;

/// The prefix in the bucket; cheap to clone.
#[derive(Clone)]
pub(super) struct Store {
    inner: Arc<dyn ObjectStore>,
    pub(super) place: Place,
}

impl Store {
    /// The bucket that the usual variables of the environment lead to.
    pub(super) fn open(place: &Place) -> Result<Self, MirrorError> {
        // Another part of the process may have chosen already.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
            .into_iter()
            .find_map(|key| std::env::var(key).ok().filter(|v| !v.is_empty()));
        let plain = endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
        let client = ClientOptions::new()
            .with_timeout(REQUEST)
            .with_connect_timeout(Duration::from_secs(5))
            .with_allow_http(plain);
        let retry = RetryConfig { max_retries: REPETITIONS, retry_timeout: REPEATED, ..RetryConfig::default() };
        let mut builder =
            AmazonS3Builder::from_env().with_bucket_name(&place.bucket).with_client_options(client).with_retry(retry);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let inner = builder.build().map_err(|e| failed(place, "opening", &e))?;
        Ok(Self { inner: Arc::new(inner), place: place.clone() })
    }

    #[cfg(test)]
    pub(super) fn of(inner: Arc<dyn ObjectStore>, place: &Place) -> Self {
        Self { inner, place: place.clone() }
    }

    fn key(&self, name: &str) -> Key {
        Key::from(format!("{}/{name}", self.place.prefix))
    }

    fn error(&self, action: String, e: &Error) -> MirrorError {
        failed(&self.place, &action, e)
    }

    /// Creates an object. False = there is one already.
    pub(super) async fn create(&self, name: &str, content: &[u8]) -> Result<bool, MirrorError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let content = Bytes::copy_from_slice(content);
        match self.inner.put_opts(&self.key(name), content.into(), options).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(e) => Err(self.error(format!("writing {name}"), &e)),
        }
    }

    /// Uploads a file; its bytes and SHA-256 as they were read.
    pub(super) async fn upload(&self, name: &str, path: &Path) -> Result<(u64, String), MirrorError> {
        let local = |e: std::io::Error| MirrorError::Local { path: path.display().to_string(), reason: e.to_string() };
        let wrong = |e: Error| self.error(format!("writing {name}"), &e);
        let mut file = tokio::fs::File::open(path).await.map_err(local)?;
        let (mut hash, mut total) = (Sha256::new(), 0u64);
        let mut parts: Option<WriteMultipart> = None;
        loop {
            let mut part = Vec::with_capacity(PART);
            (&mut file).take(PART as u64).read_to_end(&mut part).await.map_err(local)?;
            hash.update(&part);
            total += part.len() as u64;
            let last = part.len() < PART;
            let Some(upload) = &mut parts else {
                if last {
                    self.inner.put(&self.key(name), Bytes::from(part).into()).await.map_err(wrong)?;
                    return Ok((total, hash.finish_hex()));
                }
                let begun = self.inner.put_multipart(&self.key(name)).await.map_err(wrong)?;
                let upload = parts.insert(WriteMultipart::new_with_chunk_size(begun, PART));
                upload.put(part.into());
                continue;
            };
            upload.wait_for_capacity(PARTS).await.map_err(wrong)?;
            upload.put(part.into());
            if last {
                break;
            }
        }
        if let Some(upload) = parts {
            upload.finish().await.map_err(wrong)?;
        }
        Ok((total, hash.finish_hex()))
    }

    /// A small object.
    pub(super) async fn read(&self, name: &str) -> Result<Bytes, MirrorError> {
        let wrong = |e: Error| self.error(format!("reading {name}"), &e);
        self.inner.get(&self.key(name)).await.map_err(wrong)?.bytes().await.map_err(wrong)
    }

    /// Downloads an object to a new file and syncs it; its bytes and SHA-256.
    pub(super) async fn download(&self, name: &str, path: &Path) -> Result<(u64, String), MirrorError> {
        let local = |e: std::io::Error| MirrorError::Local { path: path.display().to_string(), reason: e.to_string() };
        let wrong = |e: Error| self.error(format!("reading {name}"), &e);
        let mut file = tokio::fs::File::create(path).await.map_err(local)?;
        let mut stream = self.inner.get(&self.key(name)).await.map_err(wrong)?.into_stream();
        let (mut hash, mut total) = (Sha256::new(), 0u64);
        while let Some(part) = stream.try_next().await.map_err(wrong)? {
            hash.update(&part);
            total += part.len() as u64;
            file.write_all(&part).await.map_err(local)?;
        }
        file.sync_all().await.map_err(local)?;
        Ok((total, hash.finish_hex()))
    }

    /// Names below `folder`, relative to the prefix, in order.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<String>, MirrorError> {
        let wrong = |e: Error| self.error(format!("listing {folder}"), &e);
        let found: Vec<_> = self.inner.list(Some(&self.key(folder))).try_collect().await.map_err(wrong)?;
        let root = format!("{}/", self.key("").as_ref().trim_end_matches('/'));
        let relative = |full: &str| full.strip_prefix(root.trim_start_matches('/')).unwrap_or(full).to_owned();
        let mut names: Vec<String> = found.iter().map(|m| relative(m.location.as_ref())).collect();
        names.sort();
        Ok(names)
    }

    /// Removes an object; one that is not there is no error.
    pub(super) async fn remove(&self, name: &str) -> Result<(), MirrorError> {
        match self.inner.delete(&self.key(name)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error(format!("removing {name}"), &e)),
        }
    }
}

fn failed(place: &Place, action: &str, e: &Error) -> MirrorError {
    MirrorError::Store { place: place.clone(), action: action.to_owned(), reason: e.to_string() }
}
