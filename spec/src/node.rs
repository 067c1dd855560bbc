//! What of a [`tree`](semel_files::tree) only a specification wants: its values as a fault shows them, its places, and
//! its free parts as exact JSON.

use semel_files::tree::{Entry, Node, Place, Value};
use serde_json::{Map, Number, Value as Json};

use crate::{
    fault::{Collector, Spot, quote},
    path::{Path, Step},
};

/// A value as a fault shows it; nothing for what has parts.
pub(crate) fn shown(value: &Value) -> Option<String> {
    let quoted = quote(value.written()?);
    let is_text = matches!(value, Value::Text(_));
    Some(if is_text { quoted } else { quoted.trim_matches('"').to_owned() })
}

/// The place of the part of `root`, or of the nearest part around it that is there.
pub(crate) fn find(root: &Node, steps: &[Step<'_>]) -> Place {
    let mut node = root;
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

/// Reads a value as JSON that RFC 8785 can hold without loss: faults for duplicate keys, numbers
/// that a binary64 doesn't hold exactly, and bare words of unsure meaning.
pub(crate) fn to_json(node: &Node, path: &Path<'_>, file: &Source, c: &mut Collector<'_>) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value, _) => Json::Bool(*value),
        Value::Text(text) => Json::String(text.clone()),
        Value::Number(literal) => match exact_number(literal) {
            Ok(number) => Json::Number(number),
            Err(help) => {
                let problem = "is no number that a binary64 holds exactly";
                c.unread(path, file.spot(node.place), shown(&node.value), (problem, &help));
                Json::Null
            }
        },
        Value::Unsure(_) => {
            refuse_unsure(node, path, file, c);
            Json::Null
        }
        Value::List(items) => {
            items.iter().enumerate().map(|(index, item)| to_json(item, &path.index(index), file, c)).collect()
        }
        Value::Map(entries) => Json::Object(entries_to_json(entries, path, file, c)),
    }
}

/// Reads the entries of an object as JSON, as [`to_json`] does.
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
        let value = to_json(&entry.value, &path, file, c);
        object.insert(entry.key.clone(), value);
    }
    object
}

/// Notes that a key stands in its object a second time.
pub(crate) fn refuse_duplicate(entry: &Entry, path: &Path<'_>, file: &Source, c: &mut Collector<'_>) {
    let what = ("stands here a second time", "keep one of the two: readers differ on which counts");
    c.unread(path, file.spot(entry.place), None, what);
}

/// Notes a bare word that YAML's versions read differently: what the submitter meant can't be known.
pub(crate) fn refuse_unsure(node: &Node, path: &Path<'_>, file: &Source, c: &mut Collector<'_>) {
    let Value::Unsure(word) = &node.value else {
        return;
    };
    let help = format!("write it in quotes if it is text: {}; else write true, false or a decimal number", quote(word));
    let problem = "is a bare word that YAML readers take for a number or a boolean, or don't";
    c.unread(path, file.spot(node.place), shown(&node.value), (problem, &help));
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
