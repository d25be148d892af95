//! `data.template`: how a question is shown. Column names in braces and nothing else; the chat template is the model's business.

/// A cell that a template shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    Text(String),
    /// Choices; shown as lines `(A) …`.
    List(Vec<String>),
}

/// A piece of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Column(String),
}

/// A template, split into lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Vec<Part>>);

/// Stands for the question's column, whatever its name.
pub const QUESTION: &str = "question";

impl Template {
    /// Whether each brace that is not doubled has its partner: one without is most likely a column's name that was not closed.
    ///
    /// # Errors
    /// Quotes the brace that is alone.
    pub fn check(text: &str) -> Result<(), String> {
        let alone = |from: &str, what: &str| {
            let shown: String = from.chars().take(20).collect();
            Err(format!(
                "the brace at `{shown}` {what}; a column is {{NAME}}, and braces that are text are doubled or in pairs"
            ))
        };
        let (mut open, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            let from = &rest[at..];
            let doubled = from.starts_with("{{") || from.starts_with("}}");
            if !doubled && from.starts_with('{') {
                open.push(from);
            } else if !doubled && open.pop().is_none() {
                return alone(from, "was never opened");
            }
            rest = &from[if doubled { 2 } else { 1 }..];
        }
        open.first().map_or(Ok(()), |from| alone(from, "is never closed"))
    }

    /// Reads a template. `{name}` is a column; `{{` and `}}` are braces; any other brace stands for itself (LaTeX is full of them).
    pub fn parse(text: &str) -> Self {
        Self(text.split('\n').map(parse_line).collect())
    }

    /// Columns it shows beside the question, each once.
    pub fn columns(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for part in self.0.iter().flatten() {
            if let Part::Column(name) = part
                && name != QUESTION
                && !names.contains(name)
            {
                names.push(name.clone());
            }
        }
        names
    }

    /// Whether it shows the question's column.
    pub fn shows_question(&self) -> bool {
        self.0.iter().flatten().any(|p| *p == Part::Column(QUESTION.to_string()))
    }

    /// The text; `cell` gives the value of a column, `None` if it is empty. A line whose columns are all empty is left out.
    pub fn render(&self, cell: impl Fn(&str) -> Option<Shown>) -> String {
        let mut lines = Vec::new();
        for line in &self.0 {
            let (mut text, mut columns, mut filled) = (String::new(), 0, 0);
            for part in line {
                match part {
                    Part::Literal(literal) => text.push_str(literal),
                    Part::Column(name) => {
                        columns += 1;
                        if let Some(shown) = cell(name) {
                            filled += 1;
                            text.push_str(&shown.to_text());
                        }
                    }
                }
            }
            if columns == 0 || filled > 0 {
                lines.push(text);
            }
        }
        lines.join("\n")
    }
}

impl Shown {
    fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::List(items) if lettered(items) => items.join("\n"),
            Self::List(items) => {
                let line = |(i, item): (usize, &String)| format!("({}) {item}", letter(i));
                items.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
            }
        }
    }

    /// The letter of the choice that equals `answer`, if this is a list that has it.
    pub fn letter_of(&self, answer: &str) -> Option<String> {
        let Self::List(items) = self else { return None };
        items.iter().position(|item| item.trim() == answer.trim()).map(letter)
    }
}

/// A … Z, then 27, 28, …
fn letter(i: usize) -> String {
    u8::try_from(i).ok().filter(|i| *i < 26).map_or_else(|| (i + 1).to_string(), |i| char::from(b'A' + i).to_string())
}

/// Whether each item already begins with its letter: `A. 5`, `(B) 7`, `C: 9`.
fn lettered(items: &[String]) -> bool {
    let own = |(i, item): (usize, &String)| {
        let rest = item.trim_start().trim_start_matches('(').strip_prefix(letter(i).as_str());
        rest.is_some_and(|r| r.starts_with(['.', ')', ':']))
    };
    !items.is_empty() && items.iter().enumerate().all(own)
}

fn parse_line(line: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        literal.push_str(before);
        let name = from.strip_prefix('{').and_then(|f| f.split_once('}')).map(|(name, _)| name).filter(|n| is_name(n));
        if from.starts_with("{{") || from.starts_with("}}") {
            literal.push_str(&from[..1]);
            rest = &from[2..];
        } else if let Some(name) = name {
            parts.push(Part::Literal(std::mem::take(&mut literal)));
            parts.push(Part::Column(name.to_string()));
            rest = &from[name.len() + 2..];
        } else {
            literal.push_str(&from[..1]);
            rest = &from[1..];
        }
    }
    literal.push_str(rest);
    parts.push(Part::Literal(literal));
    parts.retain(|p| *p != Part::Literal(String::new()));
    parts
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_') && chars.all(|c| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, cells: &[(&str, Shown)]) -> String {
        Template::parse(template).render(|name| cells.iter().find(|(n, _)| *n == name).map(|(_, s)| s.clone()))
    }

    fn list(items: &[&str]) -> Shown {
        Shown::List(items.iter().map(|s| s.to_string()).collect())
    }

    #[test]
    fn columns_are_filled_in_and_other_braces_stay() {
        let question = ("question", Shown::Text("Why {x}?".into()));
        assert_eq!(render("{question}", std::slice::from_ref(&question)), "Why {x}?");
        assert_eq!(
            render("Q: {question} \\boxed{} {{question}} {1}", &[question]),
            "Q: Why {x}? \\boxed{} {question} {1}"
        );
        let template = Template::parse("{question}\n{choices} {choices} {unit}");
        assert_eq!((template.columns(), template.shows_question()), (vec!["choices".into(), "unit".into()], true));
        assert!(!Template::parse("How many?").shows_question());
    }

    #[test]
    fn a_brace_without_its_partner_is_no_text() {
        for fine in ["", "{question} {{", "\\frac{a}{\nb} }}", "\\boxed{}", "{1}"] {
            assert_eq!(Template::check(fine), Ok(()), "{fine}");
        }
        for (wrong, quoted) in
            [("Q: {question\n{choices}", "{question"), ("question}", "}"), ("\\boxed{\\text{a}}", "{\\text{a}}")]
        {
            let e = Template::check(wrong).unwrap_err();
            assert!(e.contains(&format!("`{quoted}")), "{wrong}: {e}");
        }
    }

    #[test]
    fn choices_become_letters_and_lines_without_content_go() {
        let q = ("question", Shown::Text("Q".into()));
        let choices = ("choices", list(&["1", "2", "3"]));
        assert_eq!(render("{question}\nUnit: {unit}\n{choices}", &[q.clone(), choices]), "Q\n(A) 1\n(B) 2\n(C) 3");
        assert_eq!(render("{question}\n{choices}", std::slice::from_ref(&q)), "Q");
        assert_eq!(render("{choices}\nend", &[("choices", list(&["A. 5", "B. 7"]))]), "A. 5\nB. 7\nend");
        assert_eq!(list(&["5°", "7°"]).letter_of(" 7° ").as_deref(), Some("B"));
        assert_eq!(list(&["5°", "7°"]).letter_of("9"), None);
    }
}
