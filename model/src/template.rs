//! Chat templates, rendered with the settings of transformers' `apply_chat_template`. No clock: a template that asks for the date
//! (`strftime_now`) gets an error, since a prompt must be the same on every machine and day.

mod source;

pub(crate) use source::template_source;

use crate::error::ModelError;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde_json::{Map, Value as Json};

const NAME: &str = "chat";
/// Work one rendering may do: an instruction costs 1, and so do 64 bytes it makes, so this bounds memory (256 MB) too. Real templates take
/// some thousands a conversation.
const FUEL: u64 = 4_000_000;
/// Bytes one rendering may give.
const MAX_OUTPUT: usize = 16 << 20;

/// A parsed chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Parses the Jinja source.
    ///
    /// # Errors
    /// A syntax error, with its line.
    pub fn parse(source: &str) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        let syntax = environment.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| failure(&e))?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(print_as_python);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|e| failure(&e))?;
        Ok(Self { environment })
    }

    /// Renders `messages` (a JSON list of `{role, content}`); `variables` are further names the template sees, such as `tools` or `bos_token`.
    ///
    /// # Errors
    /// The template raised an exception, used something undefined, did not come to an end, or wrote more than any model can read.
    pub fn render(
        &self,
        messages: &Json,
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
    ) -> Result<String, ModelError> {
        let own = [
            ("messages".to_owned(), value(messages)),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
        ];
        let context = Value::from_pairs(variables.iter().map(|(k, v)| (k.clone(), value(v))).chain(own));
        let template = self.environment.get_template(NAME).map_err(|e| failure(&e))?;
        let mut out = Bounded(Vec::new());
        let done = template.render_captured_to(context, &mut out);
        if out.0.len() > MAX_OUTPUT {
            return Err(ModelError::Template(format!(
                "it wrote more than {MAX_OUTPUT} bytes; it does not fit this conversation"
            )));
        }
        done.map_err(|e| failure(&e))?;
        String::from_utf8(out.0).map_err(|_| ModelError::Template("it wrote text that is not UTF-8".to_owned()))
    }
}

/// Output that refuses to grow past [`MAX_OUTPUT`]; it then holds more than that.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = (MAX_OUTPUT + 1).saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room { Err(std::io::Error::other("the output is too long")) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn failure(e: &Error) -> ModelError {
    let line = e.line().map(|l| format!(" (line {l})")).unwrap_or_default();
    if e.kind() == ErrorKind::OutOfFuel {
        return ModelError::Template(format!("it did not come to an end within {FUEL} steps{line}"));
    }
    ModelError::Template(match e.detail() {
        Some(detail) => format!("{detail}{line}"),
        None => format!("{}{line}", e.kind()),
    })
}

/// Python prints `True`, `False` and `None`.
fn print_as_python(out: &mut Output, state: &mut State, v: &Value) -> Result<(), Error> {
    let text = match v.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if v.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, v),
    };
    Ok(out.write_str(text)?)
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.clone(), value(v)))),
    }
}

/// `tojson` as transformers defines it: Python's `json.dumps(x, ensure_ascii=False, indent=indent)`, nothing escaped for HTML.
fn to_json(v: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ensure_ascii == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not supported"));
    }
    let mut out = String::new();
    dump(v, indent, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

fn dump(v: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    let unsupported = || Error::new(ErrorKind::InvalidOperation, format!("tojson of a {}", v.kind()));
    match v.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if v.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(v)),
        ValueKind::String => out.push_str(&quoted(v.as_str().ok_or_else(unsupported)?)),
        ValueKind::Seq | ValueKind::Iterable => {
            dump_all('[', v.try_iter()?.map(|item| (None, item)), ']', indent, depth, out)?
        }
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in v.try_iter()? {
                pairs.push((Some(quoted(&key.to_string())), v.get_item(&key)?));
            }
            dump_all('{', pairs.into_iter(), '}', indent, depth, out)?;
        }
        _ => return Err(unsupported()),
    }
    Ok(())
}

fn dump_all(
    open: char,
    items: impl Iterator<Item = (Option<String>, Value)>,
    close: char,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    out.push(open);
    let mut empty = true;
    for (key, item) in items {
        match indent {
            None if empty => {}
            None => out.push_str(", "),
            Some(_) if empty => {}
            Some(_) => out.push(','),
        }
        new_line(indent, depth + 1, out);
        empty = false;
        if let Some(key) = key {
            out.push_str(&key);
            out.push_str(": ");
        }
        dump(&item, indent, depth + 1, out)?;
    }
    if !empty {
        new_line(indent, depth, out);
    }
    out.push(close);
    Ok(())
}

fn new_line(indent: Option<usize>, depth: usize, out: &mut String) {
    if let Some(width) = indent {
        out.push('\n');
        out.push_str(&" ".repeat(width * depth));
    }
}

/// JSON string with only the escapes JSON demands; the two encoders agree on them except for DEL, which neither escapes.
fn quoted(s: &str) -> String {
    Json::from(s).to_string()
}

/// Python writes exponents with a sign and two digits.
fn number(v: &Value) -> String {
    if v.is_integer() {
        return v.to_string();
    }
    let x = f64::try_from(v.clone()).unwrap_or(f64::NAN);
    let plain = format!("{x:?}");
    match plain.split_once('e') {
        None => plain,
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(e) => format!("{digits}e-{e:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
    }
}
