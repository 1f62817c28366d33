//! Jinja as transformers sets it up for chat templates.

use super::python::tojson;
use jiff::civil::DateTime;
use jiff::{Zoned, fmt::strtime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use std::error::Error as _;
use std::ops::Range;

/// What stands for a template in messages.
const NAME: &str = "chat template";
/// The function in whose blocks templates put what a model generates.
const GENERATION: &str = "__generation";

/// A template's text, and the bytes of what the template marks as generated.
pub(super) type Text = (String, Vec<Range<usize>>);

/// Writes a template with these values. Templates that ask for the time see `now`, or the clock.
pub(super) fn render(source: &str, values: &Value, now: Option<DateTime>) -> Result<Text, String> {
    let (source, marks) = match generation_as_call(source) {
        Some(source) => (source, Some(free_marks(values))),
        None => (source.into(), None),
    };
    let text = environment(now, marks).and_then(|mut environment| {
        environment.add_template_owned(NAME, source)?;
        environment.get_template(NAME)?.render(values)
    });
    text.map(|text| without_marks(text, marks))
        .map_err(|error| describe(&error))
}

fn environment(
    now: Option<DateTime>,
    marks: Option<[char; 2]>,
) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", tojson);
    // In Python texts and mappings have places and a length.
    let is_sequence = |value: &Value| {
        let kind = value.kind();
        matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::String)
    };
    environment.add_test("sequence", move |value: Value| is_sequence(&value));
    environment.add_test("iterable", move |value: Value| {
        is_sequence(&value) || value.kind() == ValueKind::Iterable
    });
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
        },
    );
    environment.add_function("strftime_now", move |format: String| {
        let now = now.unwrap_or_else(|| Zoned::now().datetime());
        strtime::format(&format, now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    if let Some([start, end]) = marks {
        let generation = move |state: &mut State, options: Kwargs| -> Result<String, Error> {
            let caller: Value = options.get("caller")?;
            Ok(format!("{start}{}{end}", caller.call(state, &[])?))
        };
        environment.add_function(GENERATION, generation);
    }
    Ok(environment)
}

/// Says that a template itself refused, in words that are its own.
#[derive(Debug)]
struct Raised;

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

fn describe(error: &Error) -> String {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        let found = inner.downcast_ref::<Error>();
        let raised = found.filter(|error| error.source().is_some_and(|cause| cause.is::<Raised>()));
        if let Some(message) = raised.and_then(Error::detail) {
            return format!("the chat template refuses the conversation: {message}");
        }
        cause = inner.source();
    }
    format!("the chat template: {error}")
}

/// The template with its blocks `{% generation %}` as calls, which keep what stands in them; `None` if
/// there is none.
fn generation_as_call(source: &str) -> Option<String> {
    let (mut text, mut rest, mut found) = (String::new(), source, false);
    while let Some(start) = rest.find("{%") {
        let inner = start + 2;
        let Some(length) = rest[inner..].find("%}") else {
            break;
        };
        let tag = &rest[inner..inner + length];
        let name = tag.trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => Some(format!("call {GENERATION}()")),
            "endgeneration" => Some("endcall".into()),
            _ => None,
        };
        text.push_str(&rest[..inner]);
        match replacement {
            Some(replacement) => {
                found = true;
                text.push_str(&tag.replacen(name, &replacement, 1));
            }
            None => text.push_str(tag),
        }
        rest = &rest[inner + length..];
    }
    text.push_str(rest);
    found.then_some(text)
}

/// Two characters without a meaning that the values do not hold.
fn free_marks(values: &Value) -> [char; 2] {
    let values = values.to_string() + &serde_json::to_string(values).unwrap_or_default();
    let mut free = ('\u{fdd0}'..='\u{fdef}').filter(|&mark| !values.contains(mark));
    let mut mark = || free.next().unwrap_or('\u{fdd0}');
    [mark(), mark()]
}

fn without_marks(text: String, marks: Option<[char; 2]>) -> Text {
    let Some([start, end]) = marks else {
        return (text, Vec::new());
    };
    let (mut plain, mut open, mut ranges) = (String::new(), 0, Vec::new());
    for char in text.chars() {
        if char == start {
            open = plain.len();
        } else if char == end {
            ranges.push(open..plain.len());
        } else {
            plain.push(char);
        }
    }
    (plain, ranges)
}
