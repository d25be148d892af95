//! Answers against 519 pairs that two public graders judged, under rewriting, and under attack.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use quorum_core::answer::{ExtractRule, Notation, canonical, canonical_in, equivalent, extract, grade};
use serde_json::{Value, json};

fn root(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

fn pairs() -> Vec<Value> {
    let text = std::fs::read_to_string(root("tests/fixtures/grading/grading_pairs.jsonl")).unwrap();
    let pairs: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(pairs.len(), 519);
    pairs
}

fn verdict(pair: &Value, notation: Notation) -> bool {
    grade(pair, notation).unwrap()["equivalent"].as_bool().unwrap()
}

/// Pairs with an agreed verdict, and those among them that are judged otherwise here.
fn differences(notation: Notation) -> (usize, Vec<Value>) {
    let agreed: Vec<Value> = pairs().into_iter().filter(|p| p["agree"] == true).collect();
    let n = agreed.len();
    (n, agreed.into_iter().filter(|p| p["mathruler"] != verdict(p, notation)).collect())
}

/// The lines between `<!-- name -->` and `<!-- end -->` of `docs/answers.md`.
fn documented(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root("docs/answers.md")).unwrap();
    let block = text.split_once(&format!("<!-- {name} -->\n")).unwrap_or_else(|| panic!("no block {name}")).1;
    block.split_once("<!-- end -->").unwrap().0.lines().map(str::to_owned).filter(|l| !l.is_empty()).collect()
}

fn assert_documented(name: &str, actual: &[String]) {
    assert_eq!(documented(name), actual, "block {name} of docs/answers.md should be:\n{}\n", actual.join("\n"));
}

fn row(p: &Value, notation: Notation) -> String {
    let same = if verdict(p, notation) { "same" } else { "different" };
    format!(
        "- {} {}: ``{}`` and ``{}`` are {same}",
        p["id"],
        p["category"].as_str().unwrap(),
        p["a"].as_str().unwrap(),
        p["b"].as_str().unwrap()
    )
}

#[test]
fn agreement_with_agreed_verdicts_is_99_percent_and_every_difference_is_documented() {
    let (n, different) = differences(Notation::Common);
    assert!(different.len() * 100 <= n, "{} of {n} agreed pairs judged otherwise", different.len());
    assert_documented("common", &different.iter().map(|p| row(p, Notation::Common)).collect::<Vec<_>>());
    let (_, different) = differences(Notation::Wide);
    assert_documented("wide", &different.iter().map(|p| row(p, Notation::Wide)).collect::<Vec<_>>());
}

#[test]
fn the_decision_on_every_disputed_pair_is_documented() {
    let mut lines: Vec<String> = Vec::new();
    for p in pairs().iter().filter(|p| p["agree"] == false) {
        let category = p["category"].as_str().unwrap();
        let name = if verdict(p, Notation::Common) { "same" } else { "different" };
        let head = format!("- {category}, {name}:");
        match lines.iter_mut().find(|l| l.starts_with(&head)) {
            Some(line) => *line += &format!(" {}", p["id"]),
            None => lines.push(format!("{head} {}", p["id"])),
        }
    }
    assert_documented("disputed", &lines);
}

#[test]
fn verdicts_are_symmetric() {
    for p in pairs() {
        for notation in [Notation::Common, Notation::Wide] {
            let swapped = json!({ "a": p["b"], "b": p["a"] });
            assert_eq!(verdict(&p, notation), verdict(&swapped, notation), "{p}");
        }
    }
}

#[test]
fn wide_joins_and_never_parts() {
    // Whatever the common notation holds equal, the wide one does; option phrases are the one thing it reads as something else.
    for p in pairs().iter().filter(|p| verdict(p, Notation::Common)) {
        assert!(verdict(p, Notation::Wide), "{p}");
    }
}

/// Rewritings that change no meaning.
fn rewritten(s: &str) -> Vec<String> {
    let mut out = vec![
        format!(" {s} "),
        format!("${s}$"),
        format!("\\({s}\\)"),
        format!("{{{s}}}"),
        format!("\\displaystyle {s}"),
        format!("\\, {s} \\;"),
        format!("\\boxed{{{s}}}"),
        format!("\\mathbf{{{s}}}"),
        s.replace("\\frac", "\\dfrac"),
        s.replace("\\dfrac", "\\frac"),
        s.replace("\\frac", "\\tfrac"),
    ];
    // `~` is a blank in a text group and nothing outside.
    if !s.contains(['\\', '~']) {
        out.push(format!("\\text{{{s}}}"));
        out.push(format!("\\textbf{{{s}}}"));
    }
    if !s.contains("\\begin") {
        out.push(s.replace('(', "\\left(").replace(')', "\\right)"));
    }
    out
}

#[test]
fn rewriting_does_not_change_a_key() {
    let balanced =
        |s: &str| s.matches('{').count() == s.matches('}').count() && !s.ends_with('\\') && !s.starts_with('}');
    let (mut seen, mut changed) = (0, Vec::new());
    for p in pairs() {
        for side in ["a", "b"] {
            let Some(s) = p[side].as_str().filter(|s| balanced(s) && !s.contains(['$', '\n'])) else { continue };
            for other in rewritten(s) {
                seen += 1;
                if canonical(s) != canonical(&other) {
                    changed.push(format!("{s:?} and {other:?}"));
                }
            }
        }
    }
    assert!(changed.is_empty(), "{}", changed.join("\n"));
    assert!(seen > 8000, "{seen} rewritings");
}

#[test]
fn a_unit_after_a_value_does_not_change_it() {
    const UNITS: &[&str] = &[
        " cm",
        "cm",
        "\\text{ cm}",
        "\\text{cm}",
        " \\mathrm{cm}",
        " \\mathrm{~cm}",
        "\\ \\mathrm{kg}",
        " meters",
        " square units",
        " cm^2",
        " cm^{2}",
        "\\text{ cm}^2",
        "\\text{ apples}",
        " km/h",
        "\\text{ m/s}",
        "^\\circ",
        "^{\\circ}",
        " degrees",
        "\\%",
        "%",
        " percent",
        "\\text{.}",
    ];
    for value in ["5", "-5", "0.25", "1,000", "\\frac{1}{2}", "3\\sqrt{2}", "12\\pi", "x=5", "(2+3)", "1\\frac{1}{2}"] {
        for unit in UNITS {
            // `\pi` and `cm` without a blank are another command.
            if value.ends_with("pi") && unit.starts_with(|c: char| c.is_ascii_alphabetic()) {
                continue;
            }
            assert!(equivalent(value, &format!("{value}{unit}")), "{value}{unit}");
            assert!(!equivalent("7", &format!("{value}{unit}")), "{value}{unit}");
        }
    }
    assert!(!equivalent("5x", "5") && !equivalent("5 y", "5") && !equivalent("cm", "5"));
}

#[test]
fn order_matters_in_tuples_and_intervals_alone() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let items = ["\\frac{1}{2}", "\\sqrt{3}", "x+1"];
    let join = |o: &[usize; 3], sep: &str| o.iter().map(|i| items[*i]).collect::<Vec<_>>().join(sep);
    for o in &orders {
        for (open, close, sep, free) in [
            ("\\{", "\\}", ", ", true),
            ("", "", ",", true),
            ("", "", " and ", true),
            ("", "", "\\text{ or }", true),
            ("(", ")", ",", false),
            ("[", "]", ",", false),
        ] {
            let first = format!("{open}{}{close}", join(&orders[0], sep));
            let other = format!("{open}{}{close}", join(o, sep));
            assert_eq!(equivalent(&first, &other), free || o == &orders[0], "{first} and {other}");
        }
    }
    assert!(!equivalent("x=1, y=2", "x=2, y=1"));
    assert!(equivalent("x=1, y=2", "y=2, x=1"));
}

#[test]
fn mathematics_beyond_the_fixture() {
    let same = [
        ("\\frac{3}{\\sqrt{6}}", "\\frac{\\sqrt{6}}{2}"),
        ("\\sqrt[4]{4}", "\\sqrt{2}"),
        ("\\sqrt{12x}", "2\\sqrt{3}\\sqrt{x}"),
        ("(\\sqrt{2}+1)(\\sqrt{2}-1)", "1"),
        ("\\frac{1}{\\sqrt{3}-1}", "\\frac{\\sqrt{3}+1}{2}"),
        ("\\frac{a}{b}+\\frac{c}{d}", "\\frac{ad+bc}{bd}"),
        ("(x+y)^3", "x^3+3x^2y+3xy^2+y^3"),
        ("(1+x)^{1000}", "(x+1)^{999}(x+1)"),
        ("2^{n+1}", "2\\cdot 2^n"),
        ("e^{-x}", "\\frac{1}{e^x}"),
        ("\\log 8", "3\\log 2"),
        ("\\ln e^2", "2"),
        ("\\tan x", "\\frac{\\sin x}{\\cos x}"),
        ("\\cos\\frac{2\\pi}{3}", "-\\frac12"),
        ("|x-1|", "|1-x|"),
        ("0.1\\overline{6}", "\\frac{1}{6}"),
        ("10^{100}", "10^{50}\\cdot 10^{50}"),
        ("\\binom{6}{2}", "15"),
        ("2:3:4", "4:6:8"),
        ("2x<6", "x<3"),
        ("-x \\ge 2", "x \\le -2"),
        ("1<x\\le 2", "2\\ge x>1"),
        ("x^2+y^2=1", "2x^2+2y^2-2=0"),
        ("1\\pm\\sqrt{5}", "1-\\sqrt{5}, 1+\\sqrt{5}"),
        ("B \\text{ only}", "(B)"),
        ("2 \\text{ and } 3", "3, 2"),
    ];
    for (a, b) in same {
        assert!(equivalent(a, b), "{a} and {b}: {:?} {:?}", canonical(a), canonical(b));
    }
    let different = [
        ("\\sqrt{x^2}", "x"),
        ("\\sqrt{a^2}", "-a"),
        ("x<3", "x>3"),
        ("x<3", "x\\le 3"),
        ("2^n", "n^2"),
        ("123456789012345678901", "123456789012345678902"),
        ("[1,2)", "[1,2]"),
        ("(1,2)", "\\{1,2\\}"),
        ("1,00", "100"),
        ("AB", "AC"),
        ("east", "seat"),
        ("6:30", "3:15"),
        ("\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
        ("x_1", "x_2"),
        ("1/0", "2/0"),
        ("\\infty", "-\\infty"),
        ("2x=10", "5"),
    ];
    for (a, b) in different {
        assert!(!equivalent(a, b), "{a} and {b}: {:?}", canonical(a));
    }
}

#[test]
fn keys_of_plain_answers_are_readable() {
    let key = |s: &str| canonical(s).unwrap().into_string();
    assert_eq!(key("0.75"), "3/4");
    assert_eq!(key("\\text{(C)}"), "c");
    assert_eq!(key("Red Circle"), "t:redcircle");
    assert_eq!(key("\\{2, 1/2\\}"), "{1/2;2}");
    assert_eq!(key("[0, \\infty)"), "[0;inf)");
    assert_eq!(canonical(" \\text{ } "), None);
}

#[test]
fn the_box_is_taken_as_the_fixture_says_but_for_named_cases() {
    let meta: Value =
        serde_json::from_str(&std::fs::read_to_string(root("tests/fixtures/grading/grading_meta.json")).unwrap())
            .unwrap();
    // An empty box is no answer; a broken box does not hide a whole one; `\fbox` and a blank before the brace count; `\{` is a sign.
    let ours = [
        ("\\fbox{5}", Some("5")),
        ("\\boxed  {5}", Some("5")),
        ("\\boxed{1}\\boxed{2", Some("1")),
        ("\\boxed{\\left\\{1\\right.}", Some("\\left\\{1\\right.")),
        ("\\boxed{x\\}", None),
        ("\\boxed{{5}", None),
    ];
    for case in meta["extract_boxed"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let literal = case["extracted"].as_str().unwrap();
        let theirs =
            if literal.is_empty() || (literal == "None" && !text.contains("None")) { None } else { Some(literal) };
        let want = ours.iter().find(|(t, _)| *t == text).map_or(theirs, |(_, w)| *w);
        assert_eq!(extract(text, &ExtractRule::default()).as_deref(), want, "{text}");
    }
}

#[test]
fn grading_names_what_is_wrong_with_a_line() {
    let graded = grade(&json!({ "id": 7, "a": "1/2", "b": 0.5 }), Notation::Common).unwrap();
    assert_eq!(graded, json!({ "id": 7, "a": "1/2", "b": 0.5, "equivalent": true }));
    assert_eq!(grade(&json!({ "a": null, "b": null }), Notation::Common).unwrap()["equivalent"], false);
    let error = |line: Value| grade(&line, Notation::Common).unwrap_err().to_string();
    assert!(error(json!([1])).contains("not a JSON object"));
    assert!(error(json!({ "a": "5" })).contains("\"b\" is missing"));
    assert!(error(json!({ "a": "5", "b": [5] })).contains("\"b\" is a list"));
}

#[test]
fn hostile_answers_are_bounded() {
    let started = std::time::Instant::now();
    let deep = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    let mut evil: Vec<String> = vec![
        "9^9^9^9^9^9".into(),
        "1e999999999999999999999".into(),
        "1e-99999999999999999".into(),
        "((10^1000000)!)!".into(),
        "\\sqrt[1000]{2}".into(),
        "\\sqrt[999999999999]{2}".into(),
        "\\binom{999999999}{2}".into(),
        "\\frac".repeat(300),
        "\\sin".repeat(300) + "x",
        "\\text{".repeat(300),
        "-".repeat(500) + "1",
        "1".to_owned() + &"!".repeat(500),
        "1+".repeat(290) + "1",
        "1,".repeat(290) + "1",
        "=".repeat(500),
        "a=".repeat(250) + "1",
        "1<".repeat(250) + "x",
        "\\pm".repeat(250) + "1",
        "\\begin{pmatrix}".repeat(60),
        "&\\\\".repeat(300),
        "\u{0}\u{7f}\u{202e}\u{fffd}".into(),
        "9".repeat(1_000_000),
        "x".repeat(1_000_000),
        "\\boxed{".repeat(150_000),
        "²".repeat(500),
        "√".repeat(500),
        "1073741789!".into(),
        "\\sqrt{1073741789}".into(),
    ];
    for n in [10, 100, 500, 100_000] {
        for (open, close) in [
            ("(", ")"),
            ("{", "}"),
            ("[", "]"),
            ("\\{", "\\}"),
            ("|", "|"),
            ("\\sqrt{", "}"),
            ("\\frac{1}{", "}"),
            ("2^{", "}"),
        ] {
            evil.push(deep(open, close, n));
        }
    }
    for s in &evil {
        for notation in [Notation::Common, Notation::Wide] {
            let key = canonical_in(s, notation);
            assert_eq!(key, canonical_in(s, notation));
            assert!(key.is_none_or(|k| k.as_str().len() < 10_000));
        }
        let _ = extract(s, &ExtractRule { phrase: true, last_number: true });
    }
    // Generous: the whole list takes well under a second.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

/// Strings from the alphabet of answers.
fn written() -> impl Strategy<Value = String> {
    let atom = prop::sample::select(vec![
        "1",
        "2",
        "10",
        "0",
        ".",
        ",",
        "x",
        "y",
        "e",
        "i",
        "pi",
        "AB",
        "no",
        "+",
        "-",
        "*",
        "/",
        "^",
        "!",
        "%",
        "=",
        "<",
        ">",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "\\{",
        "\\}",
        "|",
        "_",
        ":",
        ";",
        " ",
        "\\frac",
        "\\sqrt",
        "\\text{",
        "\\pm",
        "\\cup",
        "\\infty",
        "\\le",
        "^\\circ",
        "cm",
        "and",
        "\\log",
        "\\sin",
        "\\pi",
        "\\\\",
        "&",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "\\",
        "$",
        "'",
        "\"",
        "°",
        "½",
        "厘米",
        "，",
        "million",
        "Option ",
    ]);
    prop::collection::vec(atom, 0..14).prop_map(|v| v.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn anything_has_a_verdict_and_it_is_symmetric(a in written(), b in written()) {
        prop_assert_eq!(equivalent(&a, &b), equivalent(&b, &a));
        for notation in [Notation::Common, Notation::Wide] {
            let key = canonical_in(&a, notation);
            prop_assert_eq!(&key, &canonical_in(&format!(" {a} "), notation));
        }
    }

    #[test]
    fn arbitrary_text_does_no_harm(a in ".{0,60}") {
        let _ = canonical_in(&a, Notation::Wide);
        let _ = canonical(&a);
        let _ = extract(&a, &ExtractRule { phrase: true, last_number: true });
    }

    #[test]
    fn rationals_are_exact(n in -9999i64..9999, d in 1i64..9999, k in 1i64..99) {
        let a = format!("{n}/{d}");
        let scaled = format!("\\frac{{{}}}{{{}}}", n * k, d * k);
        let sum = format!("({n}+{k})/{d} - \\frac{{{k}}}{{{d}}}");
        let near = format!("{}/{d}", n + 1);
        prop_assert!(equivalent(&a, &scaled));
        prop_assert!(equivalent(&a, &sum));
        prop_assert!(!equivalent(&a, &near));
    }
}
