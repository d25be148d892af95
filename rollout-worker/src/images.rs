//! Encoded images by content hash, through a cache bounded in bytes. Decoding happens on the engine's thread.

use quorum_core::client::{ByteCache, ClientError, Session, fetch_blob};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of encoded images kept.
const CACHE: usize = 256 << 20;
/// How long one image is asked for again.
const PATIENCE: Duration = Duration::from_secs(30);

/// The worker's images.
pub struct Images {
    cache: ByteCache,
}

impl Default for Images {
    fn default() -> Self {
        Self { cache: ByteCache::new(CACHE) }
    }
}

impl Images {
    /// The images of one prompt. The inner error says why this prompt cannot be answered.
    ///
    /// # Errors
    /// Only what concerns the whole session: fenced or unreachable.
    pub async fn of_prompt(
        &mut self,
        session: &Session,
        hashes: &[String],
    ) -> Result<Result<Vec<Arc<[u8]>>, String>, ClientError> {
        let mut fetched: HashMap<&str, Arc<[u8]>> = HashMap::new();
        let mut images = Vec::with_capacity(hashes.len());
        for hash in hashes {
            let held = self.cache.get(hash).or_else(|| fetched.get(hash.as_str()).cloned());
            let image = match held {
                Some(image) => image,
                None => match session.retry("FetchBlob", PATIENCE, || fetch_blob(session, hash)).await {
                    Ok(image) => image,
                    Err(error @ (ClientError::Missing { .. } | ClientError::Damaged { .. })) => {
                        return Ok(Err(error.to_string()));
                    }
                    Err(error) => return Err(error),
                },
            };
            self.cache.put(hash.clone(), image.clone());
            fetched.insert(hash, image.clone());
            images.push(image);
        }
        Ok(Ok(images))
    }
}
