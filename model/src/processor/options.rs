//! What a run may tell the chat template besides the conversation.

use quorum_core::config::{TemplateSection, Thinking};
use serde_json::{Map, Value};

/// Variables of the chat template that are a choice of the run, not of the checkpoint. Templates ignore those they do not know.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateOptions {
    /// System turn before every prompt; `None` leaves it to the template (some have a default one).
    pub system: Option<String>,
    /// `enable_thinking` of Qwen3's templates; `None` leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// Tools as JSON schemas, in the form the template takes; empty for none.
    pub tools: Vec<Value>,
    /// Further variables. `messages` and `add_generation_prompt` cannot be set.
    pub variables: Map<String, Value>,
}

impl From<&TemplateSection> for TemplateOptions {
    fn from(section: &TemplateSection) -> Self {
        Self {
            system: (!section.system.is_empty()).then(|| section.system.clone()),
            enable_thinking: match section.thinking {
                Thinking::Template => None,
                Thinking::On => Some(true),
                Thinking::Off => Some(false),
            },
            ..Self::default()
        }
    }
}

impl TemplateOptions {
    /// From the keyword arguments of transformers' `apply_chat_template`.
    pub fn from_variables(mut variables: Map<String, Value>) -> Self {
        let enable_thinking = variables.remove("enable_thinking").and_then(|v| v.as_bool());
        let tools = match variables.remove("tools") {
            Some(Value::Array(tools)) => tools,
            _ => Vec::new(),
        };
        Self { system: None, enable_thinking, tools, variables }
    }

    /// All variables the template sees: the tokenizer's named tokens, then these.
    pub(super) fn variables(&self, named: &Map<String, Value>) -> Map<String, Value> {
        let mut all = named.clone();
        all.extend(self.variables.clone());
        all.extend(self.enable_thinking.map(|on| ("enable_thinking".to_owned(), Value::from(on))));
        if !self.tools.is_empty() {
            all.insert("tools".to_owned(), Value::from(self.tools.clone()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_configuration_leaves_open_is_left_to_the_template() {
        assert_eq!(TemplateOptions::from(&TemplateSection::default()), TemplateOptions::default());
        let section = TemplateSection { system: "Be brief.".into(), thinking: Thinking::Off };
        let options = TemplateOptions::from(&section);
        assert_eq!((options.system.as_deref(), options.enable_thinking), (Some("Be brief."), Some(false)));
    }
}
