//! What an easy-VQA question asks, and the answer a shape and a colour give it. Used to word reasons and annotators' mistakes, never to answer test questions.

pub const SHAPES: [&str; 3] = ["rectangle", "circle", "triangle"];
pub const COLORS: [&str; 8] = ["red", "green", "blue", "black", "gray", "teal", "brown", "yellow"];

/// What an image shows: its only shape and that shape's colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact {
    pub shape: &'static str,
    pub color: &'static str,
}

/// A question, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Shape,
    Color,
    /// Whether it is there, or (negated) whether it is not there.
    IsThere {
        what: &'static str,
        negated: bool,
    },
}

impl Asked {
    /// `None` for a question of no known pattern.
    pub fn of(question: &str) -> Option<Self> {
        let words: Vec<&str> = question.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()).collect();
        let has = |word: &str| words.contains(&word);
        let named = |list: &[&'static str]| list.iter().copied().find(|w| has(w));
        let (shape, color) = (named(&SHAPES), named(&COLORS));
        match *words.first()? {
            "what" if has("color") => Some(Self::Color),
            "what" if has("shape") => Some(Self::Shape),
            "what" => None,
            _ => Some(Self::IsThere { what: color.or(shape)?, negated: has("not") || has("no") }),
        }
    }

    /// The answer for an image that shows `fact`.
    pub fn answer(self, fact: Fact) -> &'static str {
        match self {
            Self::Shape => fact.shape,
            Self::Color => fact.color,
            Self::IsThere { what, negated } => {
                if (what == fact.shape || what == fact.color) != negated {
                    "yes"
                } else {
                    "no"
                }
            }
        }
    }
}

/// The one fact that all questions and answers about an image agree with; `None` if they leave a choice, or contradict each other.
pub fn fact_behind<'a>(about: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Option<Fact> {
    let all = SHAPES.iter().flat_map(|shape| COLORS.iter().map(move |color| Fact { shape, color }));
    let mut fitting = all.filter(|fact| {
        about.clone().all(|(question, answer)| Asked::of(question).is_some_and(|asked| asked.answer(*fact) == answer))
    });
    fitting.next().filter(|_| fitting.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_understood() {
        let fact = Fact { shape: "circle", color: "teal" };
        for (question, answer) in [
            ("is a teal shape present?", "yes"),
            ("is there a red shape?", "no"),
            ("does the image not contain a teal shape?", "no"),
            ("is there not a blue shape in the image?", "yes"),
            ("is no circle present?", "no"),
            ("is no triangle present?", "yes"),
            ("does the image contain a circle?", "yes"),
            ("what color is the shape?", "teal"),
            ("what is the color of the circle?", "teal"),
            ("what shape is in the image?", "circle"),
            ("what is the teal shape?", "circle"),
        ] {
            assert_eq!(Asked::of(question).unwrap().answer(fact), answer, "{question}");
        }
        assert_eq!(Asked::of("how many shapes?"), None);
        assert_eq!(Asked::of("what is this?"), None);
    }

    #[test]
    fn a_fact_is_known_only_if_nothing_else_fits() {
        let about = [("what color is the shape?", "red"), ("is there a circle?", "no")];
        assert_eq!(fact_behind(about.into_iter()), None);
        let about = [("what color is the triangle?", "red"), ("is there a triangle?", "yes")];
        assert_eq!(fact_behind(about.into_iter()), Some(Fact { shape: "triangle", color: "red" }));
        let about = [("is there a circle?", "yes"), ("is no circle present?", "yes")];
        assert_eq!(fact_behind(about.into_iter()), None);
    }
}
