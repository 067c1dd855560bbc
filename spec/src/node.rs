//! A neutral tree of what a file or a JSON text says, with the place of each value.
//!
//! serde stops at the first fault and forgets duplicate keys and how a number was written. The tree
//! keeps all of it, so that the walk over it can name every fault at once.

use serde_json::{Map, Number, Value as Json};

use crate::{
    fault::{Collector, Spot, quote},
    path::{Path, Step},
};

/// The deepest nesting that is read: a bound on recursion.
pub(crate) const MAX_DEPTH: usize = 64;

/// A place in a text; both from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
}

/// What a value is, before anyone asks what it should be.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// A number, as it was written, in JSON's grammar.
    Number(String),
    Text(String),
    /// A bare YAML word that YAML's versions read differently (`no`, `0755`, `1_000`): refused
    /// wherever it stands, since what the submitter meant can't be known.
    Unsure(String),
    List(Vec<Node>),
    /// The entries in order, duplicates included.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) value: Node,
}

/// A text that can't be read as YAML or JSON at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) place: Place,
    pub(crate) problem: String,
    pub(crate) help: String,
}

impl Value {
    /// What the value is, in words.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::Unsure(_) => "a bare word",
            Value::List(_) => "a list",
            Value::Map(_) => "an object",
        }
    }

    /// The value as a fault shows it; nothing for what has parts.
    pub(crate) fn shown(&self) -> Option<String> {
        match self {
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(text) | Value::Unsure(text) => {
                let shown = quote(text);
                Some(shown.trim_matches('"').to_owned())
            }
            Value::Text(text) => Some(quote(text)),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }
}

impl Node {
    /// The place of the part, or of the nearest part around it that is there.
    pub(crate) fn find(&self, steps: &[Step<'_>]) -> Place {
        let mut node = self;
        for step in steps {
            let part = match (step, &node.value) {
                (Step::Key(key), Value::Map(entries)) => {
                    entries.iter().find(|entry| entry.key == *key).map(|entry| &entry.value)
                }
                (Step::Index(index), Value::List(items)) => items.get(*index),
                _ => None,
            };
            match part {
                Some(part) => node = part,
                None => break,
            }
        }
        node.place
    }

    /// Reads the value as JSON that RFC 8785 can hold without loss: faults for duplicate keys,
    /// numbers that a binary64 doesn't hold exactly, and bare words of unsure meaning.
    pub(crate) fn to_json(&self, path: &Path<'_>, file: &Source, c: &mut Collector<'_>) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Text(text) => Json::String(text.clone()),
            Value::Number(literal) => match exact_number(literal) {
                Ok(number) => Json::Number(number),
                Err(help) => {
                    let problem = "is no number that a binary64 holds exactly";
                    c.unread(path, file.spot(self.place), self.value.shown(), (problem, &help));
                    Json::Null
                }
            },
            Value::Unsure(_) => {
                refuse_unsure(self, path, file, c);
                Json::Null
            }
            Value::List(items) => {
                items.iter().enumerate().map(|(index, item)| item.to_json(&path.index(index), file, c)).collect()
            }
            Value::Map(entries) => Json::Object(entries_to_json(entries, path, file, c)),
        }
    }
}

/// Reads the entries of an object as JSON, as [`Node::to_json`] does.
pub(crate) fn entries_to_json(
    entries: &[Entry],
    path: &Path<'_>,
    file: &Source,
    c: &mut Collector<'_>,
) -> Map<String, Json> {
    let mut object = Map::with_capacity(entries.len());
    for entry in entries {
        let path = path.key(&entry.key);
        if object.contains_key(&entry.key) {
            refuse_duplicate(entry, &path, file, c);
            continue;
        }
        let value = entry.value.to_json(&path, file, c);
        object.insert(entry.key.clone(), value);
    }
    object
}

/// Notes that a key stands in its object a second time.
pub(crate) fn refuse_duplicate(entry: &Entry, path: &Path<'_>, file: &Source, c: &mut Collector<'_>) {
    let what = ("stands here a second time", "keep one of the two: readers differ on which counts");
    c.unread(path, file.spot(entry.place), None, what);
}

/// Notes a bare word that YAML's versions read differently.
pub(crate) fn refuse_unsure(node: &Node, path: &Path<'_>, file: &Source, c: &mut Collector<'_>) {
    let Value::Unsure(word) = &node.value else {
        return;
    };
    let help = format!("write it in quotes if it is text: {}; else write true, false or a decimal number", quote(word));
    let problem = "is a bare word that YAML readers take for a number or a boolean, or don't";
    c.unread(path, file.spot(node.place), node.value.shown(), (problem, &help));
}

/// The text that a tree was read from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    /// Its name as a fault gives it; none for JSON text in a message.
    pub(crate) name: Option<String>,
    /// The line on which the text begins, less one: the line of a JSONL file.
    pub(crate) lines_before: u32,
}

impl Source {
    /// A place in this text.
    pub(crate) fn spot(&self, place: Place) -> Spot {
        Spot {
            file: self.name.clone(),
            line: Some(place.line.saturating_add(self.lines_before)),
            column: Some(place.column),
        }
    }
}

/// Reads a number that RFC 8785 writes back as the same decimal number. Two numbers that differ as
/// written never give one digest, and what reaches a provider is the number that was written.
/// The error says what to do.
pub(crate) fn exact_number(literal: &str) -> Result<Number, String> {
    let inexact = |nearest: Option<&str>| match nearest {
        Some(nearest) => {
            format!("write {nearest}, the nearest one that it does, or text in quotes")
        }
        None => "write a number within ±1.79e308, or text in quotes".to_owned(),
    };
    let value: f64 = literal.parse().map_err(|_| inexact(None))?;
    if !value.is_finite() {
        return Err(inexact(None));
    }
    let canonical = serde_json_canonicalizer::to_string(&value).map_err(|error| error.to_string())?;
    match (Decimal::of(literal), Decimal::of(&canonical)) {
        (Some(written), Some(held)) if written == held => {
            serde_json::from_str(&canonical).map_err(|error| error.to_string())
        }
        _ => Err(inexact(Some(&canonical))),
    }
}

/// A decimal number in its only form: no zeros at either end of the digits.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    /// The power of ten of the last digit.
    exponent: i64,
}

impl Decimal {
    /// Reads a number in JSON's grammar; none if its exponent is beyond any binary64.
    fn of(literal: &str) -> Option<Decimal> {
        let (negative, unsigned) = match literal.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, literal),
        };
        let (mantissa, power) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, power),
            None => (unsigned, "0"),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_start_matches('0');
        let kept = digits.trim_end_matches('0');
        if kept.is_empty() {
            return Some(Decimal { negative: false, digits: String::new(), exponent: 0 });
        }
        let cut = i64::try_from(digits.len() - kept.len()).ok()?;
        let power: i64 = power.parse().ok()?;
        let exponent = power.checked_sub(i64::try_from(fraction.len()).ok()?)?.checked_add(cut)?;
        Some(Decimal { negative, digits: kept.to_owned(), exponent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_only_if_it_comes_back_as_written() {
        for (literal, canonical) in [
            ("0.7", "0.7"),
            ("1.0", "1"),
            ("-0", "0"),
            ("0e99999999999999999999", "0"),
            ("1e3", "1000"),
            ("9007199254740992", "9007199254740992"),
            ("9007199254740994", "9007199254740994"),
            ("1.50E-7", "1.5e-7"),
        ] {
            let number = exact_number(literal).expect(literal);
            assert_eq!(number.to_string(), canonical, "{literal}");
        }
        for literal in [
            "9007199254740993",
            "18446744073709551615",
            "0.1000000000000000055",
            "1e400",
            "1e-400",
            "1e99999999999999999999",
        ] {
            assert!(exact_number(literal).is_err(), "{literal}");
        }
    }
}
