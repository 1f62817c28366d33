//! JSON as Python's `json.dumps(.., indent=2, sort_keys=True)` writes it.

use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter};
use std::io::{self, Write};

/// The bytes of a value whose own fields are in order. Its holder must have sorted nested objects
/// of type [`Value`], see [`sorted`].
pub(in crate::peft) fn to_vec(value: &impl Serialize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Python::default());
    let written = value.serialize(&mut serializer);
    written.map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Two spaces of indentation, Python's floats, and ASCII alone.
#[derive(Default)]
struct Python {
    pretty: PrettyFormatter<'static>,
}

impl Formatter for Python {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value)?.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for char in fragment.chars() {
            if matches!(char, ' '..='~') {
                writer.write_all(&[char as u8])?;
                continue;
            }
            for unit in char.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.pretty.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.pretty.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(writer)
    }
}

/// Python's `repr` of a float: the shortest digits, with an exponent of two digits or more from
/// 1e16 on and below 1e-4.
fn float(value: f64) -> io::Result<String> {
    if !value.is_finite() {
        return Err(io::Error::other(format!("{value} is no number in JSON")));
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..16).contains(&exponent) {
        return Ok(format!("{value:?}"));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    Ok(format!("{digits}e{sign}{:02}", exponent.abs()))
}

/// Whole numbers as integers, which is how PEFT writes its own.
pub(in crate::peft) fn number<S: Serializer>(
    number: &f64,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if !number.is_finite() {
        let message = format!("{number} is no number in JSON");
        return Err(serde::ser::Error::custom(message));
    }
    if number.fract() == 0.0 && number.abs() < 1e15 {
        serializer.serialize_i64(*number as i64)
    } else {
        serializer.serialize_f64(*number)
    }
}

pub(in crate::peft) fn numbers<S: Serializer>(
    map: &indexmap::IndexMap<String, f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    struct Number(f64);
    impl Serialize for Number {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            number(&self.0, serializer)
        }
    }
    serializer.collect_map(map.iter().map(|(key, value)| (key, Number(*value))))
}

/// The value with the keys of all its objects in order.
pub(in crate::peft) fn sorted(mut value: Value) -> Value {
    value.sort_all_objects();
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_pythons() {
        for (value, text) in [
            (0.0, "0.0"),
            (0.05, "0.05"),
            (2.5, "2.5"),
            (100.0, "100.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (-2e-10, "-2e-10"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (0.1 + 0.2, "0.30000000000000004"),
        ] {
            assert_eq!(float(value).unwrap(), text);
        }
        assert!(float(f64::NAN).is_err());
    }

    #[test]
    fn strings_are_ascii() {
        let bytes = to_vec(&"é \u{1F600} \u{7f} \" \\ \n \u{1}").unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text, r#""\u00e9 \ud83d\ude00 \u007f \" \\ \n \u0001""#);
    }

    #[test]
    fn empty_ones_stay_on_their_line() {
        let bytes = to_vec(&serde_json::json!({"a": [], "b": {}, "c": [1]})).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(
            text,
            "{\n  \"a\": [],\n  \"b\": {},\n  \"c\": [\n    1\n  ]\n}"
        );
    }
}
