//! Properties of the unit that annotations ask for: `org.systemd.property.NAME`, with a value in
//! GVariant's text format, as runc and crun read them. Pure.
//!
//! `"uint64 5000000"`, `"'inactive-or-failed'"`, `"true"`, `"['a.service', 'b.service']"`,
//! `"[('/dev/sda', uint64 1048576)]"`. A number without a type is an `int32`. A name that ends in
//! `Sec` takes seconds, and becomes the `USec` that systemd has.

use super::dbus::Value;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// What the annotations' names begin with.
const PREFIX: &str = "org.systemd.property.";

/// How deep arrays and tuples may lie in each other: D-Bus' own limit is 32, systemd needs 3.
const DEEPEST: usize = 8;

/// A value whose type is known only now.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Variant {
    Bool(bool),
    Byte(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Text(String),
    /// With the signature of the elements.
    Array(String, Vec<Variant>),
    Tuple(Vec<Variant>),
}

impl Variant {
    /// The D-Bus signature.
    pub(super) fn signature(&self) -> String {
        match self {
            Variant::Bool(_) => "b".into(),
            Variant::Byte(_) => "y".into(),
            Variant::I16(_) => "n".into(),
            Variant::U16(_) => "q".into(),
            Variant::I32(_) => "i".into(),
            Variant::U32(_) => "u".into(),
            Variant::I64(_) => "x".into(),
            Variant::U64(_) => "t".into(),
            Variant::Double(_) => "d".into(),
            Variant::Text(_) => "s".into(),
            Variant::Array(of, _) => format!("a{of}"),
            Variant::Tuple(list) => format!("({})", list.iter().map(Variant::signature).collect::<String>()),
        }
    }

    /// A number of seconds as microseconds.
    fn microseconds(&self) -> Option<Variant> {
        let whole = match *self {
            Variant::Byte(value) => u64::from(value),
            Variant::U16(value) => u64::from(value),
            Variant::U32(value) => u64::from(value),
            Variant::U64(value) => value,
            Variant::I16(value) => u64::try_from(value).ok()?,
            Variant::I32(value) => u64::try_from(value).ok()?,
            Variant::I64(value) => u64::try_from(value).ok()?,
            Variant::Double(value) => {
                let micros = value * 1e6;
                if !(0.0..=9e15).contains(&micros) {
                    return None;
                }
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Checked above.
                return Some(Variant::U64(micros as u64));
            }
            _ => return None,
        };
        whole.checked_mul(1_000_000).map(Variant::U64)
    }
}

/// The properties that a config.json's annotations ask for.
///
/// # Errors
/// A name that is none of systemd's, or a value that cannot be read, with the place in it.
pub(super) fn of_annotations(annotations: &BTreeMap<String, String>) -> Result<Vec<(String, Value)>> {
    let mut out = Vec::new();
    // The map is sorted: what begins with the prefix stands together.
    let asked = annotations.range(PREFIX.to_owned()..).take_while(|(key, _)| key.starts_with(PREFIX));
    for (key, text) in asked {
        let fail = |cause: String| Error::config(format!("annotations[{key:?}]"), cause);
        let name = &key[PREFIX.len()..];
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(fail(format!("{name:?} is no name of a systemd property")));
        }
        let value = parse(text).map_err(|cause| {
            fail(cause).hint("write it as systemd-run or gdbus would: \"uint64 5\", \"'text'\", \"true\"")
        })?;
        out.push(match name.strip_suffix("Sec") {
            Some(stem) if !name.ends_with("USec") => {
                let micros =
                    value.microseconds().ok_or_else(|| fail(format!("{text:?} is no number of seconds")))?;
                (format!("{stem}USec"), Value::Given(micros))
            }
            _ => (name.to_owned(), Value::Given(value)),
        });
    }
    Ok(out)
}

/// Reads one value.
fn parse(text: &str) -> std::result::Result<Variant, String> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(None, DEEPEST)?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.unexpected());
    }
    Ok(value)
}

/// A place in a text.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

type Parsed<T> = std::result::Result<T, String>;

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn unexpected(&self) -> String {
        match self.rest().chars().next() {
            Some(c) => format!("unexpected {c:?} at character {} of {:?}", self.at + 1, self.text),
            None => format!("{:?} ends too early", self.text),
        }
    }

    fn take(&mut self, c: char) -> bool {
        self.space();
        let found = self.rest().starts_with(c);
        self.at += if found { c.len_utf8() } else { 0 };
        found
    }

    fn word(&mut self) -> &'a str {
        self.space();
        let rest = self.rest();
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._@".contains(c))).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// A value; `kind` is the type it was said to have.
    fn value(&mut self, kind: Option<&str>, depth: usize) -> Parsed<Variant> {
        if depth == 0 {
            return Err(format!("{:?} is nested too deeply", self.text));
        }
        self.space();
        let start = self.at;
        match self.rest().chars().next() {
            Some(quote @ ('\'' | '"')) if matches!(kind, None | Some("string" | "s")) => self.string(quote),
            Some('[') if kind.is_none_or(|kind| kind.starts_with('a')) => self.array(kind, depth),
            Some('(') if kind.is_none() => self.tuple(depth),
            Some(_) => {
                let word = self.word();
                let named = match word {
                    "true" | "false" if matches!(kind, None | Some("boolean" | "b")) => {
                        return Ok(Variant::Bool(word == "true"));
                    }
                    "boolean" | "byte" | "int16" | "uint16" | "int32" | "uint32" | "int64" | "uint64"
                    | "double" | "string" => Some(word),
                    _ => word.strip_prefix('@'),
                };
                match named {
                    Some(named) if kind.is_none() && !named.is_empty() => self.value(Some(named), depth - 1),
                    _ => number(kind, word).ok_or_else(|| {
                        self.at = start;
                        self.unexpected()
                    }),
                }
            }
            None => Err(self.unexpected()),
        }
    }

    fn string(&mut self, quote: char) -> Parsed<Variant> {
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                _ if c == quote => {
                    self.at += at + 1;
                    return Ok(Variant::Text(out));
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, 't')) => out.push('\t'),
                    Some((_, c @ ('\\' | '\'' | '"'))) => out.push(c),
                    _ => return Err(format!("{:?} has an escape that is not known", self.text)),
                },
                // D-Bus strings cannot hold it.
                '\0' => return Err(format!("{:?} has a NUL", self.text)),
                _ => out.push(c),
            }
        }
        Err(format!("{:?} has a string without its end", self.text))
    }

    fn array(&mut self, kind: Option<&str>, depth: usize) -> Parsed<Variant> {
        let element = kind.map(|kind| &kind[1..]).filter(|element| !element.is_empty());
        let mut list: Vec<Variant> = Vec::new();
        self.take('[');
        while !self.take(']') {
            if !list.is_empty() && !self.take(',') {
                return Err(self.unexpected());
            }
            // As in GVariant, the first element's type is every element's.
            let first = list.first().map(Variant::signature).filter(|kind| kind.len() == 1);
            let value = self.value(first.as_deref().or(element.filter(|e| e.len() == 1)), depth - 1)?;
            if list.first().is_some_and(|first| first.signature() != value.signature()) {
                return Err(format!("the elements of {:?} are not of one type", self.text));
            }
            list.push(value);
        }
        let of = match (list.first(), element) {
            (Some(first), _) => first.signature(),
            (None, Some(element)) => element.to_owned(),
            (None, None) => return Err(format!("{:?} has an empty array without a type", self.text)),
        };
        match element {
            Some(element) if element != of => Err(format!("{:?} is no array of {element}", self.text)),
            _ => Ok(Variant::Array(of, list)),
        }
    }

    fn tuple(&mut self, depth: usize) -> Parsed<Variant> {
        let mut list = Vec::new();
        self.take('(');
        while !self.take(')') {
            if !list.is_empty() && !self.take(',') {
                return Err(self.unexpected());
            }
            list.push(self.value(None, depth - 1)?);
        }
        // D-Bus has no empty structures.
        if list.is_empty() { Err(self.unexpected()) } else { Ok(Variant::Tuple(list)) }
    }
}

/// A number of the type that was named; an `int32` or a `double` when none was.
fn number(kind: Option<&str>, word: &str) -> Option<Variant> {
    Some(match kind {
        None if word.contains('.') => Variant::Double(word.parse().ok()?),
        None | Some("int32" | "i") => Variant::I32(integer(word)?),
        Some("byte" | "y") => Variant::Byte(integer(word)?),
        Some("int16" | "n") => Variant::I16(integer(word)?),
        Some("uint16" | "q") => Variant::U16(integer(word)?),
        Some("uint32" | "u") => Variant::U32(integer(word)?),
        Some("int64" | "x") => Variant::I64(integer(word)?),
        Some("uint64" | "t") => Variant::U64(integer(word)?),
        Some("double" | "d") => Variant::Double(word.parse().ok()?),
        Some(_) => return None,
    })
}

/// Decimal, or hexadecimal after `0x`.
fn integer<T: TryFrom<i128>>(word: &str) -> Option<T> {
    let value = match word.strip_prefix("0x") {
        Some(digits) => i128::from_str_radix(digits, 16).ok()?,
        None => word.parse().ok()?,
    };
    T::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_kind() {
        for (text, expected, signature) in [
            ("uint64 123456789", Variant::U64(123_456_789), "t"),
            ("'inactive-or-failed'", Variant::Text("inactive-or-failed".into()), "s"),
            (r#" "it's" "#, Variant::Text("it's".into()), "s"),
            (r"'a\'b'", Variant::Text("a'b".into()), "s"),
            ("true", Variant::Bool(true), "b"),
            ("boolean false", Variant::Bool(false), "b"),
            ("-5", Variant::I32(-5), "i"),
            ("0x10", Variant::I32(16), "i"),
            ("byte 0x1f", Variant::Byte(31), "y"),
            ("@t 7", Variant::U64(7), "t"),
            ("1.5", Variant::Double(1.5), "d"),
            ("string 'x'", Variant::Text("x".into()), "s"),
        ] {
            let value = parse(text).unwrap();
            assert_eq!((&value, &*value.signature()), (&expected, signature), "{text}");
        }
    }

    #[test]
    fn arrays_and_tuples() {
        let list = parse("['a', 'b']").unwrap();
        assert_eq!(list.signature(), "as");
        assert_eq!(parse("[uint64 1, 2]").unwrap().signature(), "at");
        assert_eq!(parse("[('/dev/sda', uint64 5), ('/dev/sdb', uint64 6)]").unwrap().signature(), "a(st)");
        assert_eq!(parse("@as []").unwrap(), Variant::Array("s".into(), vec![]));
        assert_eq!(
            parse("@ay [1, 2]").unwrap(),
            Variant::Array("y".into(), vec![Variant::Byte(1), Variant::Byte(2)])
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in [
            "",
            " ",
            "inactive",
            "'open",
            "[1, 'a']",
            "[]",
            "()",
            "(1",
            "[1,",
            "1 2",
            "uint64",
            "uint64 -1",
            "byte 256",
            "uint64 'a'",
            "string 5",
            "true false",
            "@",
            "@as [1]",
            "'a\0b'",
            "uint64 uint64 1",
            "[[[[[[[[[1]]]]]]]]]",
            "99999999999",
        ] {
            assert!(parse(text).is_err(), "{text:?} passed: {:?}", parse(text));
        }
    }

    #[test]
    fn names_and_seconds() {
        let of = |key: &str, value: &str| of_annotations(&BTreeMap::from([(key.into(), value.into())]));
        let properties = of("org.systemd.property.TimeoutStopSec", "5").unwrap();
        assert_eq!(properties, [("TimeoutStopUSec".into(), Value::Given(Variant::U64(5_000_000)))]);
        let properties = of("org.systemd.property.TimeoutStopUSec", "uint64 7").unwrap();
        assert_eq!(properties, [("TimeoutStopUSec".into(), Value::Given(Variant::U64(7)))]);
        assert!(of("org.systemd.propertyX", "1").unwrap().is_empty());
        let error = of("org.systemd.property.Timeout-Stop", "5").unwrap_err().to_string();
        assert!(error.contains("Timeout-Stop"), "{error}");
        let error = of("org.systemd.property.TimeoutStopSec", "'5'").unwrap_err().to_string();
        assert!(error.contains("no number of seconds"), "{error}");
        let error = of("org.systemd.property.CollectMode", "inactive").unwrap_err().to_string();
        assert!(error.contains("unexpected 'i' at character 1"), "{error}");
    }
}
