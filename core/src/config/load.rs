//! Reading and merging of configuration: defaults, file, overrides; nearest-key hints; the digest.

use super::RunConfig;
use std::path::Path;
use toml::{Table, Value};

/// What is wrong with a configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read configuration {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{origin} is not valid TOML: {message}")]
    Toml { origin: String, message: String },
    #[error("unknown configuration key `{key}` in {origin}{hint}")]
    UnknownKey { key: String, origin: String, hint: String },
    #[error("--set takes KEY=VALUE, e.g. run.steps=3; got `{0}`")]
    Override(String),
    #[error("configuration key `{key}`: {message}")]
    Value { key: String, message: String },
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

impl ConfigError {
    /// One line a mistake.
    pub fn mistakes(&self) -> Vec<String> {
        match self {
            Self::Invalid(all) => all.clone(),
            one => vec![one.to_string()],
        }
    }
}

/// Mistakes found so far.
type Mistakes = Vec<ConfigError>;

/// The configuration, or every mistake at once.
fn settle(config: Option<RunConfig>, mut mistakes: Mistakes) -> Result<RunConfig, ConfigError> {
    match (config, mistakes.len()) {
        (Some(config), 0) => Ok(config),
        (_, 1) => Err(mistakes.remove(0)),
        _ => Err(ConfigError::Invalid(mistakes.iter().flat_map(ConfigError::mistakes).collect())),
    }
}

/// The recipe of the bundled model and data, used when no file is given.
const DEFAULT_RECIPE: &str = include_str!("../../../assets/recipes/default.toml");

/// Merges defaults, a file (without one, the bundled recipe) and `key=value` overrides, and checks the result.
///
/// # Errors
/// Every mistake at once: unknown keys, wrong types, values out of range, settings that contradict each other.
pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<RunConfig, ConfigError> {
    let (config, mistakes) = gather(file, overrides);
    settle(config, mistakes)
}

/// The configuration as far as it can be read (unusable values stand at their defaults), and every mistake, one line each.
pub fn examine(file: Option<&Path>, overrides: &[String]) -> (RunConfig, Vec<String>) {
    let (config, mistakes) = gather(file, overrides);
    (config.unwrap_or_default(), mistakes.iter().flat_map(ConfigError::mistakes).collect())
}

fn gather(file: Option<&Path>, overrides: &[String]) -> (Option<RunConfig>, Mistakes) {
    let mut mistakes = Mistakes::new();
    let mut table = match defaults() {
        Ok(table) => table,
        Err(e) => return (None, vec![e]),
    };
    let known = table.clone();
    let mut overlays = Vec::new();
    let set = |item: &String| override_of(item).map(|overlay| (overlay, "--set".to_owned()));
    for source in std::iter::once(read(file)).chain(overrides.iter().map(set)) {
        match source {
            Ok(overlay) => overlays.push(overlay),
            Err(e) => mistakes.push(e),
        }
    }
    super::presets::apply(&mut table, overlays.iter().map(|(overlay, _)| overlay));
    for (overlay, origin) in overlays {
        merge(&mut table, overlay, &known, "", &origin, &mut mistakes);
    }
    finish(table, &known, mistakes)
}

/// Reads a complete or partial configuration from text (a resolved file, the reply to Join).
///
/// # Errors
/// As [`load`].
pub fn from_toml(text: &str, origin: &str) -> Result<RunConfig, ConfigError> {
    let mut mistakes = Mistakes::new();
    let mut table = defaults()?;
    let known = table.clone();
    let overlay = parse(text, origin)?;
    super::presets::apply(&mut table, std::iter::once(&overlay));
    merge(&mut table, overlay, &known, "", origin, &mut mistakes);
    let (config, mistakes) = finish(table, &known, mistakes);
    settle(config, mistakes)
}

fn read(file: Option<&Path>) -> Result<(Table, String), ConfigError> {
    let Some(path) = file else {
        let origin = "the bundled recipe".to_owned();
        return Ok((parse(DEFAULT_RECIPE, &origin)?, origin));
    };
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: origin.clone(), source })?;
    Ok((parse(&text, &origin)?, origin))
}

fn override_of(item: &str) -> Result<Table, ConfigError> {
    let (key, text) = item.split_once('=').ok_or_else(|| ConfigError::Override(item.to_owned()))?;
    nested(key.trim(), scalar(text.trim()))
}

/// The resolved configuration as TOML.
pub fn to_toml(config: &RunConfig) -> Result<String, ConfigError> {
    toml::to_string_pretty(config).map_err(|e| ConfigError::Invalid(vec![e.to_string()]))
}

/// Settings younger than the first digests, as they are written at their defaults: left out, so that older runs keep their digest.
const LATER: [&str; 5] = [
    r#","mirror":"""#,
    r#","tls_client_ca":"","tls_member_cert":"","tls_member_key":"""#,
    r#","texts_mb":256"#,
    r#","ranks":1,"reduction":"fast""#,
    r#","relay_fanout":4,"relay_seconds":5.0,"weight_delta":false,"broadcast_seconds":20.0"#,
];

/// BLAKE3 of what determines the result of a run: everything but directories, addresses, deadlines and thread counts.
pub fn digest(config: &RunConfig) -> String {
    let mut c = config.clone();
    c.run.dir = String::new();
    c.run.mirror = String::new();
    c.model.path = String::new();
    c.data.train = String::new();
    c.data.train_labels = String::new();
    c.data.test = String::new();
    c.data.image_root = String::new();
    c.cluster = super::ClusterSection::default();
    c.checkpoint = super::CheckpointSection::default();
    c.learner.threads = 0;
    if c.learner.reduction == super::Reduction::Fixed {
        // The bits of one rank, and so one digest.
        (c.learner.ranks, c.learner.reduction) = (1, super::Reduction::Fast);
    }
    // Serialising plain structs of numbers and strings cannot fail.
    let text = serde_json::to_string(&c).unwrap_or_default();
    let text = LATER.iter().fold(text, |text, later| text.replacen(later, "", 1));
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn finish(table: Table, known: &Table, mut mistakes: Mistakes) -> (Option<RunConfig>, Mistakes) {
    let config: RunConfig = match Value::Table(table.clone()).try_into() {
        Ok(config) => config,
        Err(whole) => {
            let before = mistakes.len();
            let rest = without_unreadable(&table, known, &mut mistakes);
            match Value::Table(rest).try_into() {
                Ok(config) if mistakes.len() > before => config,
                _ => {
                    mistakes.push(unreadable("configuration", &whole));
                    return (None, mistakes);
                }
            }
        }
    };
    if let Err(e) = super::validate::validate(&config) {
        mistakes.push(e);
    }
    (Some(config), mistakes)
}

fn unreadable(key: &str, error: &toml::de::Error) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), message: error.message().to_owned() }
}

/// The table with the default in place of every value that cannot be read; each becomes a mistake.
fn without_unreadable(table: &Table, known: &Table, mistakes: &mut Mistakes) -> Table {
    let mut readable = known.clone();
    let mut keys = Vec::new();
    flatten(table, "", &mut keys);
    for key in keys {
        let Some(value) = at(table, &key).filter(|v| Some(*v) != at(known, &key)) else { continue };
        let mut alone = known.clone();
        put(&mut alone, &key, value.clone());
        match Value::Table(alone).try_into::<RunConfig>() {
            Ok(_) => put(&mut readable, &key, value.clone()),
            Err(e) => mistakes.push(unreadable(&key, &e)),
        }
    }
    readable
}

fn at<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((head, rest)) => at(table.get(head)?.as_table()?, rest),
        None => table.get(key),
    }
}

/// Sets the value at a dotted key whose sections exist.
pub fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((head, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(head) {
                put(inner, rest, value);
            }
        }
        None => drop(table.insert(key.to_owned(), value)),
    }
}

fn defaults() -> Result<Table, ConfigError> {
    Table::try_from(RunConfig::default()).map_err(|e| ConfigError::Invalid(vec![e.to_string()]))
}

fn parse(text: &str, origin: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>().map_err(|e| ConfigError::Toml { origin: origin.into(), message: e.to_string() })
}

/// A bare word is a string, anything TOML can read is what TOML reads.
fn scalar(text: &str) -> Value {
    format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn nested(key: &str, value: Value) -> Result<Table, ConfigError> {
    let mut parts = key.rsplit('.');
    let last = parts.next().filter(|k| !k.is_empty()).ok_or_else(|| ConfigError::Override(key.into()))?;
    let mut table = Table::from_iter([(last.to_owned(), value)]);
    for part in parts {
        table = Table::from_iter([(part.to_owned(), Value::Table(table))]);
    }
    Ok(table)
}

fn merge(base: &mut Table, overlay: Table, root: &Table, prefix: &str, origin: &str, mistakes: &mut Mistakes) {
    for (key, value) in overlay {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let unknown = |path: &str| ConfigError::UnknownKey {
            key: path.to_owned(),
            origin: origin.into(),
            hint: hint(path, root),
        };
        match (base.get_mut(&key), value) {
            (None, _) => mistakes.push(unknown(&path)),
            (Some(Value::Table(inner)), Value::Table(over)) => merge(inner, over, root, &path, origin, mistakes),
            (Some(Value::Table(_)), other) => {
                let message = format!("is a section, not a value; set a key in it, e.g. `{path}.…`, got {other}");
                mistakes.push(ConfigError::Value { key: path, message });
            }
            (Some(slot), Value::Table(_)) if !slot.is_table() => mistakes.push(unknown(&format!("{path}.…"))),
            (Some(slot), value) => match coerce(slot, value, &path) {
                Ok(value) => *slot = value,
                Err(e) => mistakes.push(e),
            },
        }
    }
}

/// Keeps the type of the default; an integer is accepted where a float stands.
fn coerce(slot: &Value, value: Value, path: &str) -> Result<Value, ConfigError> {
    match (slot, value) {
        (Value::Float(_), Value::Integer(i)) => Ok(Value::Float(i as f64)),
        (Value::String(_), v @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_))) => {
            Ok(Value::String(v.to_string()))
        }
        (a, b) if a.same_type(&b) => Ok(b),
        (a, b) => Err(ConfigError::Value {
            key: path.into(),
            message: format!("expects {} such as `{a}`, got `{b}`", a.type_str()),
        }),
    }
}

fn hint(path: &str, root: &Table) -> String {
    let mut keys = Vec::new();
    flatten(root, "", &mut keys);
    let leaf = path.rsplit('.').next().unwrap_or(path);
    let score = |key: &String| {
        let tail = key.rsplit('.').next().unwrap_or(key);
        distance(key, path).min(distance(tail, leaf) + 1)
    };
    match keys.iter().min_by_key(|k| score(k)) {
        Some(best) if score(best) <= 1 + leaf.len() / 2 => format!("; did you mean `{best}`?"),
        _ => format!("; sections are {}", root.keys().cloned().collect::<Vec<_>>().join(", ")),
    }
}

fn flatten(table: &Table, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => flatten(inner, &path, out),
            _ => out.push(path),
        }
    }
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(items: &[&str]) -> Result<RunConfig, ConfigError> {
        load(None, &items.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn overrides_reach_their_keys() {
        let c =
            set(&["run.steps=3", "run.seed=77", "run.dir=some/where", "optim.learning_rate=1", "eval.enabled=false"])
                .unwrap();
        assert_eq!((c.run.steps, c.run.seed, c.run.dir.as_str()), (3, 77, "some/where"));
        assert_eq!(c.optim.learning_rate, 1.0);
        assert!(!c.eval.enabled);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let e = set(&["run.step=3"]).unwrap_err().to_string();
        assert!(e.contains("`run.step`") && e.contains("`run.steps`"), "{e}");
        let e = set(&["optim.lerning_rate=3"]).unwrap_err().to_string();
        assert!(e.contains("optim.learning_rate"), "{e}");
    }

    #[test]
    fn a_wrong_type_names_the_key() {
        let e = set(&["run.steps=many"]).unwrap_err().to_string();
        assert!(e.contains("run.steps") && e.contains("integer"), "{e}");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let e = set(&[
            "run.stpes=3",
            "run.steps=many",
            "objective.kind=guess",
            "run.seed=-1",
            "vote.band_low=2.0",
            "rollout.top_p=2.0",
            "nonsense",
        ])
        .unwrap_err();
        let all = e.mistakes();
        let named = ["run.stpes", "run.steps", "objective.kind", "run.seed", "vote.band_low", "rollout.top_p"];
        for key in named {
            assert!(all.iter().any(|m| m.contains(key)), "{key}: {all:#?}");
        }
        assert_eq!(all.len(), 7, "{all:#?}");
        assert!(all.iter().any(|m| m.contains("KEY=VALUE") && m.contains("nonsense")), "{all:#?}");
    }

    #[test]
    fn resolved_configuration_reads_back() {
        let c = set(&["vote.band_low=0.5", "view.count=4"]).unwrap();
        assert_eq!(from_toml(&to_toml(&c).unwrap(), "resolved").unwrap(), c);
    }

    #[test]
    fn the_digest_ignores_places_and_sees_settings() {
        let a = digest(&set(&[]).unwrap());
        assert_eq!(a, digest(&set(&["run.dir=x", "cluster.listen=127.0.0.1:0", "learner.threads=3"]).unwrap()));
        assert_ne!(a, digest(&set(&["run.seed=2"]).unwrap()));
    }

    #[test]
    fn the_digest_sees_the_size_of_a_fast_group_only() {
        let of = |items: &[&str]| digest(&set(items).unwrap());
        let one = of(&[]);
        for same in [
            ["learner.ranks=1", "learner.reduction=fast"],
            ["learner.ranks=1", "learner.reduction=fixed"],
            ["learner.ranks=4", "learner.reduction=fixed"],
        ] {
            assert_eq!(of(&same), one, "{same:?}");
        }
        assert_ne!(of(&["learner.ranks=2"]), one);
        assert_ne!(of(&["learner.ranks=2"]), of(&["learner.ranks=4"]));
    }

    #[test]
    fn older_runs_keep_their_digest() {
        assert_eq!(digest(&RunConfig::default()), "2fdead8d6b41a2a075817ee05dd6c7ac75bf080b576d018dddd986ea7e885b45");
    }

    #[test]
    fn a_group_has_at_most_one_rank_a_lane() {
        let e = set(&["learner.ranks=9"]).unwrap_err().to_string();
        assert!(e.contains("learner.ranks") && e.contains("learner.lanes"), "{e}");
        assert!(set(&["learner.ranks=0"]).unwrap_err().to_string().contains("learner.ranks"));
        assert!(set(&["learner.ranks=2", "learner.reduction=exact"]).unwrap_err().to_string().contains("fixed"));
    }
}
