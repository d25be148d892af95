//! `s3://bucket/prefix`.

use super::MirrorError;
use std::fmt;

/// A bucket and a prefix in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub bucket: String,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
}

impl Place {
    /// Reads `s3://bucket/prefix`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, MirrorError> {
        let rest = text.strip_prefix("s3://").ok_or_else(|| MirrorError::Address(text.to_owned()))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let fine = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if bucket.is_empty() || !bucket.chars().all(fine) || prefix.split('/').any(|part| part == ".." || part == ".") {
            return Err(MirrorError::Address(text.to_owned()));
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() })
    }

    /// Whether the text means a place in a bucket and not a directory.
    pub fn looks_like(text: &str) -> bool {
        text.starts_with("s3://")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_prefixes_are_read() {
        let place = Place::parse("s3://runs/a/b/").unwrap();
        assert_eq!((place.bucket.as_str(), place.prefix.as_str()), ("runs", "a/b"));
        assert_eq!(Place::parse("s3://runs").unwrap().to_string(), "s3://runs/");
        for wrong in ["runs/a", "s3://", "s3:///a", "s3://a b/c", "s3://a/../c", "https://a/b"] {
            assert!(Place::parse(wrong).unwrap_err().to_string().contains("s3://BUCKET/PREFIX"), "{wrong}");
        }
    }
}
