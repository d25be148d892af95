//! Operations on the two digits, their phrasings, and the short worked response.

use super::draw::Draw;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Sum,
    /// Absolute difference.
    Difference,
    Product,
    Larger,
    Smaller,
    /// The two-digit number read from left to right.
    Number,
}

pub const OPERATIONS: [Operation; 6] = [
    Operation::Sum,
    Operation::Difference,
    Operation::Product,
    Operation::Larger,
    Operation::Smaller,
    Operation::Number,
];

impl Operation {
    /// Ways to ask.
    pub fn phrasings(self) -> &'static [&'static str] {
        match self {
            Self::Sum => &[
                "What is the sum of the two digits?",
                "Add the two digits.",
                "How much do the two numbers make together?",
                "Find the total of the digits shown.",
                "What do you get when you add both numbers?",
            ],
            Self::Difference => &[
                "What is the difference of the two digits?",
                "How far apart are the two numbers?",
                "Subtract the smaller digit from the larger one.",
                "By how much do the digits differ?",
                "Find the absolute difference of the numbers shown.",
            ],
            Self::Product => &[
                "What is the product of the two numbers?",
                "Multiply the two digits.",
                "What is the left digit times the right digit?",
                "Find the product of the digits shown.",
                "What do you get when you multiply both numbers?",
            ],
            Self::Larger => &[
                "Which digit is larger?",
                "What is the larger of the two numbers?",
                "Find the greatest digit shown.",
                "What is the maximum of the two digits?",
            ],
            Self::Smaller => &[
                "Which digit is smaller?",
                "What is the smaller of the two numbers?",
                "Find the least digit shown.",
                "What is the minimum of the two digits?",
            ],
            Self::Number => &[
                "Which two-digit number do the digits form?",
                "Read the two digits as one number.",
                "What number is written in the image?",
                "Write the digits from left to right as one number.",
            ],
        }
    }

    /// The true result for digits `a` (left) and `b` (right). The two-digit number keeps no leading zero.
    pub fn result(self, a: u8, b: u8) -> u8 {
        match self {
            Self::Sum => a + b,
            Self::Difference => a.abs_diff(b),
            Self::Product => a * b,
            Self::Larger => a.max(b),
            Self::Smaller => a.min(b),
            Self::Number => 10 * a + b,
        }
    }

    /// The reasoning from digits `a`, `b` to `result`, which need not be the true one.
    pub fn response(self, a: u8, b: u8, result: u8) -> String {
        let (high, low) = (a.max(b), a.min(b));
        let order = if high == low { "=" } else { ">" };
        let step = match self {
            Self::Sum => format!(" {a} + {b} = {result}."),
            Self::Difference => format!(" {high} - {low} = {result}."),
            Self::Product => format!(" {a} * {b} = {result}."),
            Self::Larger => format!(" {high} {order} {low}."),
            Self::Smaller => format!(" {low} {} {high}.", if high == low { "=" } else { "<" }),
            Self::Number => String::new(),
        };
        format!("The digits are {a} and {b}.{step} \\boxed{{{result}}}")
    }

    /// A question about one image.
    pub fn question(self, draw: &mut Draw) -> String {
        format!("<image>{}", draw.pick(self.phrasings()).copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_responses_agree() {
        for (operation, result, response) in [
            (Operation::Sum, 10, "The digits are 3 and 7. 3 + 7 = 10. \\boxed{10}"),
            (Operation::Difference, 4, "The digits are 3 and 7. 7 - 3 = 4. \\boxed{4}"),
            (Operation::Product, 21, "The digits are 3 and 7. 3 * 7 = 21. \\boxed{21}"),
            (Operation::Larger, 7, "The digits are 3 and 7. 7 > 3. \\boxed{7}"),
            (Operation::Smaller, 3, "The digits are 3 and 7. 3 < 7. \\boxed{3}"),
            (Operation::Number, 37, "The digits are 3 and 7. \\boxed{37}"),
        ] {
            assert_eq!(operation.result(3, 7), result);
            assert_eq!(operation.response(3, 7, result), response);
        }
        assert_eq!(Operation::Smaller.response(5, 5, 5), "The digits are 5 and 5. 5 = 5. \\boxed{5}");
    }

    #[test]
    fn phrasings_are_enough_and_belong_to_one_operation() {
        let mut all: Vec<&str> = OPERATIONS.iter().flat_map(|o| o.phrasings()).copied().collect();
        assert!(OPERATIONS.iter().all(|o| o.phrasings().len() >= 4));
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
    }
}
