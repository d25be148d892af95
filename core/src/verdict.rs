//! Is a run healthy? One pure function of the figures of its steps and its held-out evaluations, shown by the page, `status` and reports.
//!
//! Compared are the mean of the first and of the newest [`window`] steps. Differences of votes must also be larger than chance explains
//! for the number of groups in these steps. The rules, each with its id:
//!
//! | id | collapsing | watch |
//! |---|---|---|
//! | `accuracy` | held-out accuracy (greedy or mean) fell by more than 2 points and 2 standard errors | fell by more than 1 point and 1 standard error |
//! | `one_answer` | half of all groups or more vote for one same answer, 30 points more than at the start | 15 points more than at the start, and at least 3 in 10 |
//! | `falling_apart` | agreement is 20 points below the start and the entropy of votes 0.4 nats above it | agreement is 10 points below the start |
//! | `missing` | half of all responses or more have no answer, 30 points more than at the start | 10 points more than at the start |
//! | `unanimous` | | 95 in 100 groups agree whole: nothing is left to learn from |
//! | `length` | responses are shorter than a third of the start, or 30 points more are cut off | shorter than half, or 10 points more are cut off |
//! | `entropy` | | the policy's token entropy is below a tenth of the start |
//! | `kl` | above 10 nats | above 1 nat |
//! | `finite` | a loss or gradient of these steps was not finite | |

use serde::Serialize;
use serde_json::Value;

/// Figures of one step; `None` where the run has none (a supervised step has no votes).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    /// Groups of the step.
    pub groups: Option<f64>,
    /// Mean share of a group's samples in its largest cluster.
    pub agreement: Option<f64>,
    /// Mean entropy of a group's votes, nats.
    pub vote_entropy: Option<f64>,
    /// Share of responses with an answer.
    pub answered: Option<f64>,
    /// Share of groups that agree whole.
    pub unanimous: Option<f64>,
    /// Share of groups whose largest cluster is the step's most frequent answer.
    pub common_answer: Option<f64>,
    /// Mean token entropy of the policy, nats.
    pub entropy: Option<f64>,
    /// Mean response length, tokens.
    pub length: Option<f64>,
    /// Share of responses cut off at the limit.
    pub truncated: Option<f64>,
    /// Mean token KL against the reference, nats.
    pub kl: Option<f64>,
    /// Gradient batches skipped because a number was not finite.
    pub nonfinite: Option<f64>,
}

impl Point {
    /// From a line of metrics.jsonl.
    pub fn of(metrics: &Value) -> Self {
        let get = |key: &str| metrics.get(key).and_then(Value::as_f64);
        let groups = || {
            let n: f64 = ["used", "zero_variance", "no_majority", "below_threshold", "above_band", "tie"]
                .iter()
                .filter_map(|o| get(&format!("votes_{o}")))
                .sum();
            (n > 0.0).then_some(n)
        };
        Self {
            groups: groups(),
            agreement: get("agreement_mean"),
            vote_entropy: get("vote_entropy_mean"),
            answered: get("answered_ratio"),
            unanimous: get("votes_zero_variance").zip(groups()).map(|(u, n)| u / n),
            common_answer: get("common_answer_ratio"),
            entropy: get("entropy"),
            length: get("response_length_mean"),
            truncated: get("truncated_ratio"),
            kl: get("kl"),
            nonfinite: get("nonfinite"),
        }
    }
}

/// One held-out evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    /// Questions.
    pub n: f64,
    /// Accuracy of greedy answers, 0–1.
    pub greedy: f64,
    /// Mean accuracy of samples, 0–1.
    pub mean: f64,
}

/// How a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// No step is done yet.
    #[default]
    Starting,
    Healthy,
    Watch,
    Collapsing,
}

/// A rule that fired.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reason {
    /// Id of the rule.
    pub rule: &'static str,
    pub level: Level,
    /// What was seen, with figures.
    pub text: String,
}

/// The verdict with its reasons, the worst first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Verdict {
    pub level: Level,
    /// One line for people.
    pub line: String,
    pub reasons: Vec<Reason>,
}

/// Standard deviation of a group's figure, taken for the noise of a mean.
const SPREAD: f64 = 0.35;

/// Steps whose mean is compared, of a run with `steps` steps done: a fifth of them, 1 to 10.
pub fn window(steps: usize) -> usize {
    (steps / 5).clamp(1, 10)
}

/// Judges a run from all its steps in order and its evaluations in order of version.
pub fn verdict(points: &[Point], probes: &[Probe]) -> Verdict {
    if points.is_empty() {
        return Verdict { line: "no step is done yet".into(), ..Verdict::default() };
    }
    let mut reasons: Vec<Reason> = Vec::new();
    let mut found = |rule, collapsing: bool, watch: bool, text: String| {
        let level = if collapsing { Level::Collapsing } else { Level::Watch };
        if collapsing || watch {
            reasons.push(Reason { rule, level, text });
        }
    };
    accuracy(probes, &mut found);
    let w = window(points.len());
    let (head, tail) = (points.get(..w).unwrap_or_default(), points.get(points.len() - w..).unwrap_or_default());
    votes(head, tail, &mut found);
    policy(head, tail, &mut found);
    reasons.sort_by_key(|r| std::cmp::Reverse(r.level));
    let level = reasons.first().map_or(Level::Healthy, |r| r.level);
    let line = match reasons.first() {
        Some(first) => first.text.clone(),
        None => healthy(head, tail, probes),
    };
    Verdict { level, line, reasons }
}

type Found<'a> = dyn FnMut(&'static str, bool, bool, String) + 'a;

fn accuracy(probes: &[Probe], found: &mut Found<'_>) {
    let (Some(first), Some(last)) = (probes.first(), probes.last().filter(|_| probes.len() > 1)) else { return };
    for (name, before, after) in [("greedy", first.greedy, last.greedy), ("mean", first.mean, last.mean)] {
        let drop = before - after;
        let error = ((before * (1.0 - before) + after * (1.0 - after)) / last.n.max(1.0)).sqrt();
        let text = format!("held-out {name} accuracy fell from {:.1} % to {:.1} %", 100.0 * before, 100.0 * after);
        found("accuracy", drop > 0.02 && drop > 2.0 * error, drop > 0.01 && drop > error, text);
    }
}

/// What the mean over the groups of a few steps may differ by chance: two standard errors of a difference.
fn chance(head: &[Point], tail: &[Point]) -> f64 {
    let groups = |points: &[Point]| points.iter().filter_map(|p| p.groups).sum::<f64>().max(1.0);
    2.0 * SPREAD * (1.0 / groups(head) + 1.0 / groups(tail)).sqrt()
}

fn votes(head: &[Point], tail: &[Point], found: &mut Found<'_>) {
    let chance = chance(head, tail);
    let percent = |v: f64| format!("{:.0} %", 100.0 * v);
    if let Some((a, b)) = pair(head, tail, |p| p.common_answer) {
        let text = format!("{} of the groups vote for one same answer ({} at the start)", percent(b), percent(a));
        found("one_answer", b >= 0.5 && b - a >= 0.3f64.max(chance), b >= 0.3 && b - a >= 0.15f64.max(chance), text);
    }
    if let Some((a, b)) = pair(head, tail, |p| p.agreement) {
        let rise = pair(head, tail, |p| p.vote_entropy).map_or(0.0, |(a, b)| b - a);
        let text = format!("votes fall apart: agreement went from {} to {}", percent(a), percent(b));
        found("falling_apart", a - b >= 0.2f64.max(chance) && rise >= 0.4, a - b >= 0.1f64.max(chance), text);
    }
    if let Some((a, b)) = pair(head, tail, |p| p.answered) {
        let (a, b) = (1.0 - a, 1.0 - b);
        let text = format!("{} of the responses have no answer ({} at the start)", percent(b), percent(a));
        found("missing", b >= 0.5 && b - a >= 0.3f64.max(chance), b - a >= 0.1f64.max(chance), text);
    }
    if let Some(b) = mean(tail, |p| p.unanimous) {
        let text = format!("{} of the groups agree whole: there is little left to learn from", percent(b));
        found("unanimous", false, b >= 0.95, text);
    }
}

fn policy(head: &[Point], tail: &[Point], found: &mut Found<'_>) {
    if let Some((a, b)) = pair(head, tail, |p| p.length) {
        let text = format!("responses shrank from {a:.0} to {b:.0} tokens");
        found("length", b < a / 3.0, b < a / 2.0, text);
    }
    if let Some((a, b)) = pair(head, tail, |p| p.truncated) {
        let text = format!("{:.0} % of the responses are cut off ({:.0} % at the start)", 100.0 * b, 100.0 * a);
        found("length", b - a >= 0.3, b - a >= 0.1, text);
    }
    if let Some((a, b)) = pair(head, tail, |p| p.entropy) {
        found("entropy", false, b < a / 10.0 + 1e-9, format!("the policy's entropy fell from {a:.3} to {b:.3} nats"));
    }
    if let Some(b) = mean(tail, |p| p.kl) {
        found("kl", b > 10.0, b > 1.0, format!("the policy is {b:.1} nats a token away from its start"));
    }
    let broken: f64 = tail.iter().filter_map(|p| p.nonfinite).sum();
    found("finite", broken > 0.0, false, format!("{broken:.0} gradient batches of the last steps were not finite"));
}

/// The good news in one line.
fn healthy(head: &[Point], tail: &[Point], probes: &[Probe]) -> String {
    let mut parts = Vec::new();
    if let Some((a, b)) = pair(head, tail, |p| p.agreement) {
        parts.push(format!("agreement {:.0} % → {:.0} %", 100.0 * a, 100.0 * b));
    }
    if let (Some(first), Some(last)) = (probes.first(), probes.last().filter(|_| probes.len() > 1)) {
        parts.push(format!("held-out greedy accuracy {:.1} % → {:.1} %", 100.0 * first.greedy, 100.0 * last.greedy));
    }
    if parts.is_empty() { "all figures are in their usual range".into() } else { parts.join(", ") }
}

fn mean(points: &[Point], get: impl Fn(&Point) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = points.iter().filter_map(get).filter(|v| v.is_finite()).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn pair(head: &[Point], tail: &[Point], get: impl Fn(&Point) -> Option<f64> + Copy) -> Option<(f64, f64)> {
    mean(head, get).zip(mean(tail, get))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of 20 steps whose figures go in a line from `a` to `b`.
    fn run(a: Point, b: Point) -> Vec<Point> {
        let at = |get: fn(&Point) -> Option<f64>, t: f64| get(&a).zip(get(&b)).map(|(a, b)| a + t * (b - a));
        let point = |i: usize| {
            let t = i as f64 / 19.0;
            Point {
                groups: Some(128.0),
                agreement: at(|p| p.agreement, t),
                vote_entropy: at(|p| p.vote_entropy, t),
                answered: at(|p| p.answered, t),
                unanimous: at(|p| p.unanimous, t),
                common_answer: at(|p| p.common_answer, t),
                entropy: at(|p| p.entropy, t),
                length: at(|p| p.length, t),
                truncated: at(|p| p.truncated, t),
                kl: at(|p| p.kl, t),
                nonfinite: at(|p| p.nonfinite, t),
            }
        };
        (0..20).map(point).collect()
    }

    fn start() -> Point {
        Point {
            groups: Some(128.0),
            agreement: Some(0.75),
            vote_entropy: Some(0.63),
            answered: Some(1.0),
            unanimous: Some(0.27),
            common_answer: Some(0.12),
            entropy: Some(0.05),
            length: Some(22.0),
            truncated: Some(0.0),
            kl: Some(0.0),
            nonfinite: Some(0.0),
        }
    }

    fn judged(end: Point) -> (Level, Vec<&'static str>) {
        let v = verdict(&run(start(), end), &[]);
        (v.level, v.reasons.iter().map(|r| r.rule).collect())
    }

    #[test]
    fn a_run_whose_votes_sharpen_is_healthy() {
        let end = Point { agreement: Some(0.89), vote_entropy: Some(0.24), entropy: Some(0.014), ..start() };
        assert_eq!(judged(end), (Level::Healthy, vec![]));
        assert_eq!(verdict(&[], &[]).level, Level::Starting);
    }

    #[test]
    fn each_rule_fires_on_its_figure_alone() {
        let cases = [
            ("one_answer", Level::Collapsing, Point { common_answer: Some(0.9), ..start() }),
            ("one_answer", Level::Watch, Point { common_answer: Some(0.4), ..start() }),
            ("falling_apart", Level::Collapsing, Point { agreement: Some(0.4), vote_entropy: Some(1.4), ..start() }),
            ("falling_apart", Level::Watch, Point { agreement: Some(0.6), ..start() }),
            ("missing", Level::Collapsing, Point { answered: Some(0.2), ..start() }),
            ("missing", Level::Watch, Point { answered: Some(0.8), ..start() }),
            ("unanimous", Level::Watch, Point { unanimous: Some(1.0), ..start() }),
            ("length", Level::Collapsing, Point { length: Some(0.5), ..start() }),
            ("length", Level::Watch, Point { truncated: Some(0.2), ..start() }),
            ("entropy", Level::Watch, Point { entropy: Some(0.0), ..start() }),
            ("kl", Level::Watch, Point { kl: Some(2.0), ..start() }),
            ("kl", Level::Collapsing, Point { kl: Some(20.0), ..start() }),
            ("finite", Level::Collapsing, Point { nonfinite: Some(1.0), ..start() }),
        ];
        for (rule, level, end) in cases {
            let wanted = if rule == "unanimous" {
                run(Point { unanimous: Some(1.0), ..start() }, end)
            } else {
                run(start(), end)
            };
            let v = verdict(&wanted, &[]);
            assert_eq!((v.level, v.reasons.first().map(|r| r.rule)), (level, Some(rule)), "{:?}", v.reasons);
        }
    }

    #[test]
    fn a_handful_of_groups_is_noise() {
        let point = |agreement, vote_entropy| Point {
            groups: Some(8.0),
            agreement: Some(agreement),
            vote_entropy: Some(vote_entropy),
            ..start()
        };
        let fell = [point(0.78, 0.5), point(0.7, 0.8), point(0.58, 1.0)];
        assert_eq!(verdict(&fell, &[]).level, Level::Healthy);
        let many: Vec<Point> = fell.iter().map(|p| Point { groups: Some(800.0), ..*p }).collect();
        assert_eq!(verdict(&many, &[]).level, Level::Collapsing);
    }

    #[test]
    fn accuracy_counts_only_beyond_its_error() {
        let probe = |n: f64, acc: f64| Probe { n, greedy: acc, mean: acc };
        let level = |n, a, b| verdict(&run(start(), start()), &[probe(n, a), probe(n, b)]).level;
        assert_eq!(level(2000.0, 0.8, 0.7), Level::Collapsing);
        assert_eq!(level(50.0, 0.8, 0.77), Level::Healthy, "3 points of 50 questions are noise");
        assert_eq!(level(2000.0, 0.8, 0.784), Level::Watch);
        assert_eq!(level(2000.0, 0.7, 0.8), Level::Healthy);
    }

    #[test]
    fn a_line_of_metrics_is_read() {
        let line =
            serde_json::json!({"agreement_mean": 0.5, "votes_used": 3.0, "votes_zero_variance": 1.0, "kl": null});
        let p = Point::of(&line);
        assert_eq!((p.agreement, p.unanimous, p.kl), (Some(0.5), Some(0.25), None));
    }
}
