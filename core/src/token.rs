//! The shared token of a cluster: read from a file, sent as `Authorization: Bearer …`, compared in constant time.

use std::path::Path;
use std::sync::Arc;

/// Shortest token that is accepted, bytes.
const SHORTEST: usize = 16;

/// A secret that every caller must show; cheap to clone. Never printed.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// Reads a token file: its trimmed content.
    ///
    /// # Errors
    /// It cannot be read, or is too short to be a secret; the message names `what` and the file.
    pub fn read(what: &str, path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{what} {}: {e}", path.display()))?;
        let token = text.trim();
        if token.len() < SHORTEST || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!(
                "{what} {}: a token needs at least {SHORTEST} visible ASCII characters; make one with `coordinator certs DIR` or `openssl rand -hex 32`",
                path.display()
            ));
        }
        Ok(Self(token.into()))
    }

    /// Whether an `authorization` header carries it. Compares hashes: takes as long wherever the first difference is, and tells nothing about lengths.
    pub fn matches(&self, header: Option<&[u8]>) -> bool {
        let given = header.and_then(|v| v.strip_prefix(b"Bearer "));
        given.is_some_and(|given| blake3::hash(given) == blake3::hash(self.0.as_bytes()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens() {
        let file = std::env::temp_dir().join(format!("quorum-token-{}", std::process::id()));
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        let token = Token::read("cluster.token_file", &file).unwrap();
        assert!(token.matches(Some(b"Bearer 0123456789abcdef")));
        let wrong: [Option<&[u8]>; 5] = [
            None,
            Some(b"Bearer 0123456789abcdeF"),
            Some(b"0123456789abcdef"),
            Some(b"Bearer "),
            Some(b"bearer 0123456789abcdef"),
        ];
        assert!(wrong.iter().all(|w| !token.matches(*w)));
        assert!(!format!("{token:?}").contains("0123"));
        for bad in ["short", "with space in the middle", ""] {
            std::fs::write(&file, bad).unwrap();
            let error = Token::read("cluster.token_file", &file).unwrap_err();
            assert!(error.contains("cluster.token_file") && error.contains("16"), "{error}");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(Token::read("--token-file", &file).unwrap_err().contains("--token-file"));
    }
}
