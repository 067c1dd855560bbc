//! Reads strict JSON (RFC 8259) into a [`Node`]: places, duplicate keys and numbers as written are
//! kept, which serde_json's own tree forgets. Strings are decoded by serde_json.

use crate::tree::{Broken, Entry, MAX_DEPTH, Node, Place, Value};

/// Reads one JSON text.
///
/// # Errors
/// It is no JSON, or nested too deep. Nothing of the text is quoted.
pub fn read(text: &str) -> Result<Node, Broken> {
    let mut reader = Reader { text, at: 0, line: 1, line_start: 0 };
    let node = reader.value(0)?;
    reader.skip_space();
    match reader.peek() {
        None => Ok(node),
        Some(_) => Err(reader.broken("goes on after its end", "leave one value in it")),
    }
}

struct Reader<'t> {
    text: &'t str,
    /// The next byte.
    at: usize,
    line: u32,
    /// Where the line begins: a column is counted only when a value's place is taken.
    line_start: usize,
}

impl<'t> Reader<'t> {
    fn value(&mut self, depth: usize) -> Result<Node, Broken> {
        self.skip_space();
        let place = self.place();
        if depth > MAX_DEPTH {
            let problem = format!("is nested more than {MAX_DEPTH} deep");
            return Err(self.broken(&problem, "flatten it"));
        }
        let value = match self.peek() {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            Some(b't') => self.word("true", Value::Bool(true, "true"))?,
            Some(b'f') => self.word("false", Value::Bool(false, "false"))?,
            Some(b'n') => self.word("null", Value::Null)?,
            Some(_) => return Err(self.broken("has no value here", "write a JSON value")),
            None => return Err(self.broken("ends where a value should be", "write a JSON value")),
        };
        Ok(Node { value, place })
    }

    fn object(&mut self, depth: usize) -> Result<Value, Broken> {
        self.at += 1;
        let mut entries = Vec::new();
        self.skip_space();
        if self.take(b'}') {
            return Ok(Value::Map(entries));
        }
        loop {
            self.skip_space();
            let place = self.place();
            if self.peek() != Some(b'"') {
                return Err(self.broken("has no key here", "write a key in double quotes"));
            }
            let key = self.string()?;
            self.skip_space();
            if !self.take(b':') {
                return Err(self.broken("has no colon after a key", "write a colon"));
            }
            let value = self.value(depth + 1)?;
            entries.push(Entry { key, place, value });
            self.skip_space();
            if self.take(b'}') {
                return Ok(Value::Map(entries));
            }
            if !self.take(b',') {
                return Err(self.broken("goes on without a comma", "write a comma or }"));
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, Broken> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space();
        if self.take(b']') {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_space();
            if self.take(b']') {
                return Ok(Value::List(items));
            }
            if !self.take(b',') {
                return Err(self.broken("goes on without a comma", "write a comma or ]"));
            }
        }
    }

    /// A string: its end is found here, its escapes are serde_json's.
    fn string(&mut self) -> Result<String, Broken> {
        let start = self.at;
        let mut end = start + 1;
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => end += 2,
                Some(_) => end += 1,
                None => return Err(self.broken("has a string without an end", "close its quotes")),
            }
        }
        let literal = self.text.get(start..=end).unwrap_or_default();
        match serde_json::from_str(literal) {
            Ok(text) => {
                self.at = end + 1;
                Ok(text)
            }
            Err(error) => {
                let problem = format!("has a string that can't be read: {}", reason(&error));
                Err(self.broken(&problem, "put its characters and escapes right"))
            }
        }
    }

    fn number(&mut self) -> Result<String, Broken> {
        let rest = self.rest();
        let length = rest.find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E')).unwrap_or(rest.len());
        let literal = rest.get(..length).unwrap_or_default();
        if !is_number(literal) {
            return Err(self.broken("has a number that can't be read", "write a decimal number"));
        }
        self.at += length;
        Ok(literal.to_owned())
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, Broken> {
        if !self.rest().starts_with(word) {
            return Err(self.broken("has no value here", "write a JSON value"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn skip_space(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\n' | b'\r')) = self.peek() {
            self.at += 1;
            if byte == b'\n' {
                self.line = self.line.saturating_add(1);
                self.line_start = self.at;
            }
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let here = self.peek() == Some(byte);
        self.at += usize::from(here);
        here
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// On one enormous line the column is counted in bytes: counting characters from its start for
    /// each value would take time in the square of its length.
    fn place(&self) -> Place {
        const COUNTED_BYTES: usize = 4_096;
        let before = self.text.get(self.line_start..self.at).unwrap_or_default();
        let column = if before.len() <= COUNTED_BYTES { before.chars().count() } else { before.len() };
        Place { line: self.line, column: u32::try_from(column + 1).unwrap_or(u32::MAX) }
    }

    fn broken(&self, problem: &str, help: &str) -> Broken {
        Broken { place: self.place(), problem: format!("is no valid JSON: it {problem}"), help: help.to_owned() }
    }
}

/// Whether a text is a number in JSON's grammar.
pub(crate) fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, power) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, power)) => (mantissa, Some(power)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && power.is_none_or(|power| digits(power.strip_prefix(['+', '-']).unwrap_or(power)))
}

/// What serde_json says of a single string, without its own line and column.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value, _) => (*value).into(),
            Value::Number(literal) => serde_json::from_str(literal).expect("a number"),
            Value::Text(text) | Value::Unsure(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(json).collect(),
            Value::Map(entries) => entries.iter().map(|entry| (entry.key.clone(), json(&entry.value))).collect(),
        }
    }

    #[test]
    fn a_place_is_counted_in_lines_and_characters() {
        let node = read("{\n  \"é\": [1, x]}").expect_err("x is no value");
        assert_eq!((node.place.line, node.place.column), (2, 12));
        assert!(node.problem.contains("no value here"), "{}", node.problem);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "01",
            "1.",
            "+1",
            "nul",
            "'a'",
            "\"\\ud800\"",
            "\"\u{1}\"",
            "{} {}",
            "{a: 1}",
            "\"a",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        let deep = "[".repeat(100) + &"]".repeat(100);
        let broken = read(&deep).expect_err("too deep");
        assert!(broken.problem.contains("64 deep"), "{}", broken.problem);
    }

    #[test]
    fn duplicate_keys_are_kept() {
        let node = read(r#"{"a":1,"a":2}"#).expect("valid");
        let Value::Map(entries) = node.value else {
            panic!("an object");
        };
        assert_eq!(entries.len(), 2);
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i32>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..6).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_read_as_serde_json_reads_it(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty {
                serde_json::to_string_pretty(&value)
            } else {
                serde_json::to_string(&value)
            }.expect("a value has a text");
            let node = read(&text).expect("valid");
            prop_assert_eq!(json(&node), value);
        }

        #[test]
        fn any_text_is_judged_as_serde_json_judges_it(text in "[\\[\\]{}:,\"\\\\a0-9.eE+ tn-]{0,24}") {
            prop_assert_eq!(read(&text).is_ok(), serde_json::from_str::<Strict>(&text).is_ok());
        }
    }

    /// Any JSON at all: `Value` would refuse numbers beyond a binary64, which this reader keeps as
    /// they are written for the walk to refuse.
    struct Strict;

    impl<'de> serde::Deserialize<'de> for Strict {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            <&serde_json::value::RawValue>::deserialize(deserializer).map(|_| Strict)
        }
    }
}
