//! Answers from a file beside an unlabelled data set, for the ground-truth comparison alone.

use super::Dataset;
use super::jsonl::text;
use crate::error::DataError;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

impl Dataset {
    /// Fills in answers from JSON lines `{"row": 3, "answer": "12"}` or `{"id": "q-3", "answer": "12"}`. Labels of records that were set aside are ignored. Returns how many records now have an answer.
    ///
    /// # Errors
    /// The first line that is no such object; nothing is changed then.
    pub fn attach_labels(&mut self, path: &Path) -> Result<usize, DataError> {
        let content = fs::read_to_string(path).map_err(|e| DataError::io(path, e))?;
        let mut by_row = HashMap::new();
        let mut by_id = HashMap::new();
        for (i, line) in content.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let fail = |reason: String| DataError::Label { path: path.to_path_buf(), line: i + 1, reason };
            let object: Map<String, Value> =
                serde_json::from_str(line).map_err(|e| fail(format!("not a JSON object ({e})")))?;
            let answer = text(&object, "answer").map_err(fail)?.ok_or_else(|| fail("no `answer`".to_string()))?;
            match (object.get("row").and_then(Value::as_u64), text(&object, "id").map_err(fail)?) {
                (Some(row), _) => drop(by_row.insert(row, answer)),
                (None, Some(id)) => drop(by_id.insert(id, answer)),
                (None, None) => return Err(fail("neither `row` nor `id`".to_string())),
            }
        }
        for record in &mut self.records {
            let by_id = record.id.as_ref().and_then(|id| by_id.get(id));
            if let Some(answer) = by_row.get(&record.row).or(by_id) {
                record.answer = Some(answer.clone());
            }
        }
        Ok(self.records.iter().filter(|r| r.answer.is_some()).count())
    }
}
