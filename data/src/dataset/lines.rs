//! Lines of a file under a limit: a line that is too long is passed over without being held.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// A line without its end, or none if it was too long.
pub(super) type Line = Option<Vec<u8>>;

/// Reads a file line by line.
pub(super) struct Lines<R> {
    reader: R,
    max: u64,
    first: bool,
}

impl Lines<BufReader<File>> {
    /// Lines of at most `max` bytes.
    pub fn open(path: &Path, max: u64) -> std::io::Result<Self> {
        Ok(Lines::new(BufReader::with_capacity(1 << 16, File::open(path)?), max))
    }
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R, max: u64) -> Self {
        Self { reader, max, first: true }
    }

    fn read(&mut self) -> std::io::Result<Option<Line>> {
        let mut line = Vec::new();
        self.reader.by_ref().take(self.max.saturating_add(1)).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 > self.max {
            self.reader.skip_until(b'\n')?;
            return Ok(Some(None));
        }
        if std::mem::take(&mut self.first) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        Ok(Some(Some(line)))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = std::io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_passed_over_and_the_next_is_whole() {
        let text = format!("\u{feff}a\n\n{}\nbcd\n{}", "x".repeat(100_000), "y".repeat(9));
        let lines: Vec<Line> = Lines::new(text.as_bytes(), 4).map(Result::unwrap).collect();
        assert_eq!(lines, [Some(b"a".to_vec()), Some(Vec::new()), None, Some(b"bcd".to_vec()), None]);
        let whole: Vec<Line> = Lines::new(&b"abcd\nabcd"[..], 4).map(Result::unwrap).collect();
        assert_eq!(whole, [Some(b"abcd".to_vec()), Some(b"abcd".to_vec())]);
    }
}
