//! The file in which a coordinator says where it is: `endpoints.json` of its run directory, on a file system that all machines share. It is read again
//! at every attempt, because a coordinator that a batch system starts again may come up elsewhere.

use super::ClientError;
use std::path::Path;

/// How `LinkOptions::url` names such a file.
const SCHEME: &str = "file:";

/// The address that stands for a file.
pub(super) fn address_of(path: &Path) -> String {
    format!("{SCHEME}{}", path.display())
}

/// The file, if the address names one.
pub(super) fn file(url: &str) -> Option<&Path> {
    url.strip_prefix(SCHEME).map(Path::new)
}

/// The coordinator's present address.
///
/// # Errors
/// `Transient`: there is no such file (yet), or it does not name an address.
pub(super) fn read(path: &Path) -> Result<String, ClientError> {
    let wait = |reason: String| ClientError::Transient { url: address_of(path), call: "Join", reason };
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => wait("the file is not there; no coordinator has written it yet".into()),
        _ => wait(e.to_string()),
    })?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| wait(e.to_string()))?;
    let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    text("url").or_else(|| text("grpc")).ok_or_else(|| wait("it names no address".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_where_the_coordinator_is() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("endpoints.json");
        assert_eq!(file(&address_of(&path)), Some(path.as_path()));
        assert_eq!(file("http://h:1"), None);
        let e = read(&path).unwrap_err();
        assert!(e.is_transient() && e.to_string().contains("not there"), "{e}");
        std::fs::write(&path, "{\"grpc\":\"127.").unwrap();
        assert!(read(&path).unwrap_err().is_transient());
        std::fs::write(&path, r#"{"grpc":"0.0.0.0:7","url":"https://n1:7"}"#).unwrap();
        assert_eq!(read(&path).unwrap(), "https://n1:7");
        std::fs::write(&path, r#"{"grpc":"127.0.0.1:7"}"#).unwrap();
        assert_eq!(read(&path).unwrap(), "127.0.0.1:7");
    }
}
