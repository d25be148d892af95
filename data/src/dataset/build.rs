//! From one row's cells to a record, or the reason against it. The same for every kind of file.

use super::OpenOptions;
use super::columns::Chosen;
use super::images::{Place, load};
use crate::fault::Fault;
use crate::prompt::place_images;
use crate::record::Record;
use crate::template::{QUESTION, Shown, Template};
use quorum_core::answer::{ExtractRule, extract};
use quorum_core::config::{AnswerForm, ImagePlacement};
use std::path::Path;

/// Every row of a file: its number, and its record or the reason against it.
pub(super) type Outcomes = Vec<(u64, Result<Record, Fault>)>;

/// An image cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ImageCell {
    /// The encoded bytes, and their name.
    Bytes(Vec<u8>, Option<String>),
    Path(String),
}

/// One row, whatever it was read from. `None` is an empty or absent cell.
pub(super) trait Cells {
    /// A text, number or truth value as text.
    fn text(&self, column: &str) -> Result<Option<String>, Fault>;
    /// The same, or a list of such.
    fn shown(&self, column: &str) -> Result<Option<Shown>, Fault>;
    /// Images; an empty list is a text question, no cell at all is a fault.
    fn images(&self, column: &str) -> Result<Option<Vec<ImageCell>>, Fault>;
}

/// The record of a row (its number is filled in later).
pub(super) fn build(
    cells: &impl Cells,
    chosen: &Chosen,
    place: &Place,
    options: &OpenOptions,
) -> Result<Record, Fault> {
    let text = |column: &Option<String>| column.as_ref().map_or(Ok(None), |c| cells.text(c));
    let mut shown: Vec<(&str, Option<Shown>)> = Vec::new();
    if let Some(column) = &chosen.question {
        let question = cells.text(column)?.filter(|q| !q.trim().is_empty());
        let none = || Fault::new(Fault::MISSING_FIELD, format!("no question in column `{column}`"));
        shown.push((QUESTION, Some(Shown::Text(question.ok_or_else(none)?))));
    }
    for column in &chosen.shown {
        shown.push((column, cells.shown(column)?));
    }
    let question = chosen.template.render(|name| shown.iter().find(|(n, _)| *n == name).and_then(|(_, s)| s.clone()));
    let images = match &chosen.image {
        None => Vec::new(),
        Some(column) => cells
            .images(column)?
            .ok_or_else(|| Fault::new(Fault::MISSING_FIELD, format!("no image in column `{column}`")))?,
    };
    if question.trim().is_empty() && images.is_empty() {
        return Err(Fault::new(Fault::MISSING_FIELD, "neither question nor image"));
    }
    let question = place_images(&question, images.len(), options.placement)
        .map_err(|reason| Fault::new(Fault::IMAGE_COUNT, reason))?;
    let answer = text(&chosen.answer)?.filter(|a| !a.trim().is_empty());
    let answer = answer.map(|a| formed(&a, options.answer_form, shown.iter().filter_map(|(_, s)| s.as_ref())));
    let (id, response) = (text(&chosen.id)?, text(&chosen.response)?.filter(|r| !r.trim().is_empty()));
    let length: usize =
        [Some(&question), id.as_ref(), answer.as_ref(), response.as_ref()].iter().flatten().map(|t| t.len()).sum();
    if length as u64 > options.max_record_bytes {
        return Err(Fault::too_long(options.max_record_bytes));
    }
    let images = images.into_iter().map(|cell| load(cell, place, options)).collect::<Result<Vec<_>, _>>()?;
    Ok(Record { row: 0, id, question, images, answer, response })
}

/// A directory's image, as a question without words of its own.
pub(super) fn lone_image(path: &Path, place: &Place, options: &OpenOptions) -> Result<Record, Fault> {
    let name = path.strip_prefix(place.root).unwrap_or(path).display().to_string();
    let image = load(ImageCell::Path(path.display().to_string()), place, options)?;
    let words = Template::parse(&options.template).render(|_| None);
    let question = place_images(&words, 1, ImagePlacement::FirstIfNone)
        .map_err(|reason| Fault::new(Fault::IMAGE_COUNT, reason))?;
    Ok(Record { row: 0, id: Some(name), question, images: vec![image], answer: None, response: None })
}

/// The answer in a cell; the cell itself if it has none of that form.
fn formed<'a>(cell: &str, form: AnswerForm, mut shown: impl Iterator<Item = &'a Shown>) -> String {
    let tagged = || {
        let (_, from) = cell.rsplit_once("<answer>")?;
        Some(from.split("</answer>").next().unwrap_or(from).to_string())
    };
    let found = match form {
        AnswerForm::AsWritten => None,
        AnswerForm::Tagged => tagged(),
        AnswerForm::Boxed => extract(cell, &ExtractRule::default()),
        AnswerForm::AfterHashes => cell.rsplit_once("####").map(|(_, after)| after.to_string()),
        AnswerForm::Letter => shown.find_map(|s| s.letter_of(cell)),
    };
    found.map_or_else(|| cell.to_string(), |f| f.trim().to_string())
}

/// A number that is none cannot be an answer.
pub(super) fn finite(column: &str, value: f64) -> Result<(), Fault> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Fault::new(Fault::BAD_VALUE, format!("column `{column}` holds {value} instead of a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_out_of_their_cells() {
        let choices = Shown::List(vec!["5°".into(), "7°".into()]);
        let cases = [
            (AnswerForm::AsWritten, " 7 ", " 7 "),
            (AnswerForm::Tagged, "<think>5</think><answer> 145° </answer>", "145°"),
            (AnswerForm::Tagged, "145°", "145°"),
            (AnswerForm::Boxed, "so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
            (AnswerForm::AfterHashes, "3 + 4\n#### 7", "7"),
            (AnswerForm::Letter, "7°", "B"),
            (AnswerForm::Letter, "9", "9"),
        ];
        for (form, cell, expected) in cases {
            assert_eq!(formed(cell, form, std::iter::once(&choices)), expected, "{form:?} {cell}");
        }
    }
}
