//! Ids of texts, for comparison with another tokenizer: `tokenize DIR < texts.jsonl`. Each input line is a JSON string (plain text) or a JSON
//! list of messages (rendered with the chat template); each output line is `{"ids": …, "decoded": …}`.

use quorum_model::Checkpoint;
use serde_json::{Value, json};
use std::error::Error;
use std::io::BufRead;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).ok_or("give a model directory (no weights needed)")?;
    let processor = Checkpoint::open(&dir)?.processor;
    for line in std::io::stdin().lock().lines() {
        let value: Value = serde_json::from_str(&line?)?;
        let ids = match value.as_str() {
            Some(text) => processor.encode_text(text)?,
            None => processor.encode_messages(&value, &[])?.ids,
        };
        println!("{}", json!({"decoded": processor.decode(&ids, false)?, "ids": ids}));
    }
    Ok(())
}
