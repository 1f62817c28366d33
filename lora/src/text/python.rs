//! JSON as Python's `json.dumps` writes it.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;
use std::fmt::Write;

/// How `json.dumps` is asked to write.
struct Style {
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

/// The filter `tojson` of transformers' chat templates.
pub(super) fn tojson(
    value: Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let json = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Value> = options.get("separators")?;
    let named: Option<Value> = options.get("indent")?;
    options.assert_all_used()?;
    let indent = indent.or(named).filter(|indent| !indent.is_none());
    let indent = match indent {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(usize::try_from(indent)?),
        }),
    };
    let (item, key) = match separators.filter(|separators| !separators.is_none()) {
        Some(pair) => (
            pair.get_item_by_index(0)?.to_string(),
            pair.get_item_by_index(1)?.to_string(),
        ),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let style = Style {
        indent,
        item,
        key,
        ascii: ascii.unwrap_or(false),
        sorted: sorted.unwrap_or(false),
    };
    let mut text = String::new();
    style.write(&json, 0, &mut text);
    Ok(text)
}

impl Style {
    fn write(&self, value: &Json, depth: usize, text: &mut String) {
        match value {
            Json::Array(items) => {
                let items = items.iter().map(|item| (None, item)).collect();
                self.list(['[', ']'], items, depth, text);
            }
            Json::Object(map) => {
                let mut items: Vec<_> = map.iter().map(|(key, item)| (Some(key), item)).collect();
                if self.sorted {
                    items.sort_by_key(|&(key, _)| key);
                }
                self.list(['{', '}'], items, depth, text);
            }
            Json::String(string) => self.string(string, text),
            Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(number) => text.push_str(&float(number)),
                None => text.push_str(&number.to_string()),
            },
            Json::Bool(_) | Json::Null => text.push_str(&value.to_string()),
        }
    }

    fn list(
        &self,
        [open, close]: [char; 2],
        items: Vec<(Option<&String>, &Json)>,
        depth: usize,
        text: &mut String,
    ) {
        text.push(open);
        let is_empty = items.is_empty();
        for (index, (key, item)) in items.into_iter().enumerate() {
            if index > 0 {
                text.push_str(&self.item);
            }
            self.new_line(depth + 1, text);
            if let Some(key) = key {
                self.string(key, text);
                text.push_str(&self.key);
            }
            self.write(item, depth + 1, text);
        }
        if !is_empty {
            self.new_line(depth, text);
        }
        text.push(close);
    }

    fn new_line(&self, depth: usize, text: &mut String) {
        if let Some(indent) = &self.indent {
            text.push('\n');
            text.push_str(&indent.repeat(depth));
        }
    }

    fn string(&self, string: &str, text: &mut String) {
        text.push('"');
        for char in string.chars() {
            match char {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                char if char < ' '
                    || (self.ascii && !char.is_ascii())
                    || (self.ascii && char == '\u{7f}') =>
                {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        // A String takes whatever is written.
                        let _ = write!(text, "\\u{unit:04x}");
                    }
                }
                char => text.push(char),
            }
        }
        text.push('"');
    }
}

/// A float as Python's `repr` writes it.
fn float(value: f64) -> String {
    let exponent = value.abs().log10().floor();
    if value == 0.0 || (-4.0..16.0).contains(&exponent) {
        return format!("{value:?}");
    }
    // Rust writes 1e-7 and 1e16, Python 1e-07 and 1e+16.
    let text = format!("{value:e}");
    let Some((digits, exponent)) = text.split_once('e') else {
        return text;
    };
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::float;

    #[test]
    fn floats_are_those_of_python() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5e100, "-2.5e+100"),
            (0.1 + 0.2, "0.30000000000000004"),
        ] {
            assert_eq!(float(value), expected);
        }
    }
}
