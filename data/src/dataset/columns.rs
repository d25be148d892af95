//! Which columns of a file are read: the configured names matched against those it has.

use super::OpenOptions;
use crate::error::{DataError, nearest};
use crate::template::Template;
use std::path::Path;

/// A column that a file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Available {
    pub name: String,
    /// Its type or name says that it holds images.
    pub looks_like_images: bool,
}

impl Available {
    /// A column of which the name alone is known.
    pub fn named(name: &str) -> Self {
        let lower = name.to_lowercase();
        let looks_like_images = ["image", "img", "picture", "photo", "figure"].iter().any(|w| lower.contains(w));
        Self { name: name.to_string(), looks_like_images }
    }
}

/// Column names of one file; `None` = not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub image: Option<String>,
    pub question: Option<String>,
    pub answer: Option<String>,
    pub response: Option<String>,
    pub id: Option<String>,
    /// Columns of the template beside the question.
    pub shown: Vec<String>,
    pub template: Template,
}

impl Chosen {
    pub fn of_file(path: &Path, options: &OpenOptions, available: &[Available]) -> Result<Self, DataError> {
        let find = |role, spec: &str| choose(path, options, role, spec, available);
        let columns = &options.columns;
        let template = Template::parse(&options.template);
        let chosen = Self {
            image: find("image", &columns.image)?,
            question: if template.shows_question() { find("question", &columns.question)? } else { None },
            answer: find("answer", &columns.answer)?,
            response: find("response", &columns.response)?,
            id: find("id", &columns.id)?,
            shown: template.columns(),
            template,
        };
        for column in &chosen.shown {
            for (role, told) in [("answer", &chosen.answer), ("response", &chosen.response)] {
                if told.as_ref() == Some(column) {
                    return Err(DataError::TemplateTells { column: column.clone(), role });
                }
            }
            find("template", column)?;
        }
        if chosen.image.is_none()
            && !columns.image.trim().eq("none")
            && let Some(likely) = available.iter().find(|a| a.looks_like_images)
        {
            return Err(missing(path, options, "image", &columns.image, Some(likely.name.clone()), available));
        }
        Ok(chosen)
    }

    /// All columns that are read, each with what it is for.
    pub fn names(&self) -> Vec<(&str, &'static str)> {
        let mut names: Vec<(&str, &'static str)> = Vec::new();
        let of_role = [
            ("question", &self.question),
            ("image", &self.image),
            ("answer", &self.answer),
            ("response", &self.response),
            ("id", &self.id),
        ];
        let roles = of_role.into_iter().filter_map(|(role, name)| Some((name.as_deref()?, role)));
        for (name, role) in roles.chain(self.shown.iter().map(|s| (s.as_str(), "template"))) {
            if !names.iter().any(|(n, _)| *n == name) {
                names.push((name, role));
            }
        }
        names
    }
}

/// The first alternative of `spec` that is there.
fn choose(
    path: &Path,
    options: &OpenOptions,
    role: &'static str,
    spec: &str,
    available: &[Available],
) -> Result<Option<String>, DataError> {
    for name in spec.split('|').map(str::trim) {
        if name == "none" {
            return Ok(None);
        }
        if available.iter().any(|a| a.name == name) {
            return Ok(Some(name.to_string()));
        }
    }
    let first = spec.split('|').next().unwrap_or_default().trim();
    let near = nearest(first, available.iter().map(|a| a.name.as_str()));
    Err(missing(path, options, role, spec, near, available))
}

fn missing(
    path: &Path,
    options: &OpenOptions,
    role: &'static str,
    spec: &str,
    nearest: Option<String>,
    available: &[Available],
) -> DataError {
    let wanted = spec.split('|').map(str::trim).filter(|n| *n != "none").map(|n| format!("`{n}`"));
    let mut hint = match (nearest, role) {
        (Some(near), "template") => format!("did you mean `{near}`? change data.template"),
        (None, "template") => "change data.template".to_string(),
        (Some(near), role) => format!("did you mean `{near}`? set data.{role}_column"),
        (None, role) => format!("set data.{role}_column"),
    };
    if role == "image" {
        hint += " (\"none\" = text only)";
    }
    if !options.preset.is_empty() {
        hint += &format!(", or does preset `{}` not fit this file?", options.preset);
    }
    DataError::MissingColumn {
        path: path.to_path_buf(),
        role,
        wanted: wanted.collect::<Vec<_>>().join(" or "),
        available: available.iter().map(|a| a.name.as_str()).collect::<Vec<_>>().join(", "),
        hint,
    }
}
