//! Reads YAML into a [`Node`], from the events of serde-saphyr's parser: they keep what its serde
//! side resolves away, namely whether a scalar was quoted and how a number was written.

use std::collections::{HashMap, HashSet};

use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use crate::{
    json,
    tree::{Broken, Entry, MAX_DEPTH, Node, Place, Value},
};

/// Values that aliases may repeat in one file: a bound on what a small file can unfold to.
const MAX_ALIASED_VALUES: usize = 1_000_000;
/// Bytes that aliases may repeat in one file.
const MAX_ALIASED_BYTES: usize = 64 << 20;
/// The key of YAML 1.1 under which a map names others that it takes its keys from.
const MERGE: &str = "<<";

/// What may be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Text alone.
    Text,
    /// Any single value, as it is written. `<<` merges the map, or the list of maps, that it names: its keys stand
    /// behind the map's own, as far as those don't have them.
    Written,
}

/// Reads one YAML document, which may be JSON.
///
/// # Errors
/// It is no YAML, nested too deep, unfolds to too much, or isn't plain data. Nothing of the text is quoted.
pub fn read(text: &str, keys: Keys) -> Result<Node, Broken> {
    let options = serde_saphyr::granit_parser::options! { emit_comments: false };
    let mut builder = Builder::new(keys);
    for next in Parser::new_from_str_with_options(text, options) {
        match next {
            Ok((event, span)) => builder.event(event, span)?,
            Err(error) => {
                return Err(broken(
                    place(error.marker()),
                    &format!("is no valid YAML: {}", error.info()),
                    "put its syntax right",
                ));
            }
        }
    }
    let empty = Node { value: Value::Null, place: Place { line: 1, column: 1 } };
    Ok(builder.root.unwrap_or(empty))
}

/// A collection whose end has not come yet.
enum Open {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        /// Under merge keys.
        merges: Vec<Node>,
        key: Option<Key>,
    },
}

/// A key whose value has not come yet.
enum Key {
    Word(String, Place),
    Merge,
}

struct Frame {
    open: Open,
    place: Place,
    anchor: usize,
}

struct Builder {
    keys: Keys,
    root: Option<Node>,
    frames: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    aliased_values: usize,
    aliased_bytes: usize,
}

impl Builder {
    fn new(keys: Keys) -> Self {
        let anchors = HashMap::new();
        Self { keys, root: None, frames: Vec::new(), anchors, aliased_values: 0, aliased_bytes: 0 }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Broken> {
        let here = place(&span.start);
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(broken(here, "has a second document", "keep one document in a file"))
            }
            Event::Scalar(text, ScalarStyle::Plain, _, None) if text == MERGE && self.awaits_key() => self.merge(here),
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref(), here)?;
                self.put(Node { value, place: here }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                expect_tag(tag.as_deref(), "seq", here)?;
                self.open(Open::List(Vec::new()), here, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                expect_tag(tag.as_deref(), "map", here)?;
                let map = Open::Map { entries: Vec::new(), merges: Vec::new(), key: None };
                self.open(map, here, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.alias(anchor, here),
            _ => Ok(()),
        }
    }

    fn open(&mut self, open: Open, here: Place, anchor: usize) -> Result<(), Broken> {
        if self.frames.len() >= MAX_DEPTH {
            let problem = format!("is nested more than {MAX_DEPTH} deep");
            return Err(broken(here, &problem, "flatten it"));
        }
        if self.awaits_key() {
            return Err(no_key(here));
        }
        self.frames.push(Frame { open, place: here, anchor });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Broken> {
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        let value = match frame.open {
            Open::List(items) => Value::List(items),
            Open::Map { entries, merges, .. } => Value::Map(merged(entries, merges)?),
        };
        let node = Node { value, place: frame.place };
        self.put(node, frame.anchor)
    }

    fn alias(&mut self, anchor: usize, here: Place) -> Result<(), Broken> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(broken(here, "has an alias inside the value that it names", "write the value out"));
        };
        let (values, bytes) = weight(node);
        self.aliased_values += values;
        self.aliased_bytes += bytes;
        if self.aliased_values > MAX_ALIASED_VALUES || self.aliased_bytes > MAX_ALIASED_BYTES {
            return Err(broken(here, "repeats too much through aliases", "write the values out"));
        }
        let node = node.clone();
        self.put(node, 0)
    }

    /// Puts a finished value where the open collection wants it.
    fn put(&mut self, node: Node, anchor: usize) -> Result<(), Broken> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.frames.last_mut().map(|frame| &mut frame.open) {
            None => self.root = Some(node),
            Some(Open::List(items)) => items.push(node),
            Some(Open::Map { entries, merges, key }) => match key.take() {
                None => *key = Some(Key::Word(key_text(&node, self.keys)?, node.place)),
                Some(Key::Word(key, place)) => entries.push(Entry { key, place, value: node }),
                Some(Key::Merge) => merges.push(node),
            },
        }
        Ok(())
    }

    /// A bare merge key. In quotes it is a key like any other.
    fn merge(&mut self, here: Place) -> Result<(), Broken> {
        if self.keys == Keys::Text {
            return Err(broken(here, "has a merge key", "write the keys out, or use an alias for a whole value"));
        }
        if let Some(Open::Map { key, .. }) = self.frames.last_mut().map(|frame| &mut frame.open) {
            *key = Some(Key::Merge);
        }
        Ok(())
    }

    fn awaits_key(&self) -> bool {
        matches!(self.frames.last().map(|frame| &frame.open), Some(Open::Map { key: None, .. }))
    }
}

fn key_text(node: &Node, keys: Keys) -> Result<String, Broken> {
    match (&node.value, node.value.written()) {
        (Value::List(_) | Value::Map(_), _) => Err(no_key(node.place)),
        (value, Some(written)) if keys == Keys::Written || matches!(value, Value::Text(_)) => Ok(written.to_owned()),
        _ => Err(broken(node.place, "has a key that is no text", "write the key in quotes")),
    }
}

/// The entries of a map, and behind them those that it merges, as far as it does not have them.
fn merged(mut entries: Vec<Entry>, merges: Vec<Node>) -> Result<Vec<Entry>, Broken> {
    if merges.is_empty() {
        return Ok(entries);
    }
    let mut known: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
    for merge in merges {
        let place = merge.place;
        let maps = match merge.value {
            Value::List(maps) => maps,
            _ => vec![merge],
        };
        for map in maps {
            let Value::Map(others) = map.value else {
                return Err(broken(place, "merges what is no object", "name an object, or a list of them"));
            };
            entries.extend(others.into_iter().filter(|other| known.insert(other.key.clone())));
        }
    }
    Ok(entries)
}

fn no_key(place: Place) -> Broken {
    broken(place, "has a list or an object for a key", "write a word for a key")
}

/// Values and bytes that an alias repeats.
fn weight(node: &Node) -> (usize, usize) {
    let add = |(values, bytes): (usize, usize), (v, b): (usize, usize)| (values + v, bytes + b);
    match &node.value {
        Value::Null | Value::Bool(..) => (1, 0),
        Value::Number(text) | Value::Text(text) | Value::Unsure(text) => (1, text.len()),
        Value::List(items) => items.iter().map(weight).fold((1, 0), add),
        Value::Map(entries) => {
            entries.iter().map(|entry| add((0, entry.key.len()), weight(&entry.value))).fold((1, 0), add)
        }
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, here: Place) -> Result<Value, Broken> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema_tag("str") => Ok(Value::Text(text.to_owned())),
        Some(_) => Err(foreign_tag(here)),
        None if style == ScalarStyle::Plain => Ok(plain(text)),
        None => Ok(Value::Text(text.to_owned())),
    }
}

fn expect_tag(tag: Option<&Tag>, core: &str, here: Place) -> Result<(), Broken> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema_tag(core) => Err(foreign_tag(here)),
        _ => Ok(()),
    }
}

fn foreign_tag(here: Place) -> Broken {
    broken(here, "has a tag", "leave the tag out")
}

/// Reads a bare scalar: JSON's words and numbers, text, or what is refused because a reader of
/// YAML 1.1 and one of 1.2 don't agree on it.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" => Value::Bool(true, "true"),
        "True" => Value::Bool(true, "True"),
        "TRUE" => Value::Bool(true, "TRUE"),
        "false" => Value::Bool(false, "false"),
        "False" => Value::Bool(false, "False"),
        "FALSE" => Value::Bool(false, "FALSE"),
        number if json::is_number(number) => Value::Number(number.to_owned()),
        word if is_unsure(word) => Value::Unsure(word.to_owned()),
        text => Value::Text(text.to_owned()),
    }
}

fn is_unsure(word: &str) -> bool {
    // The letters y and n, which YAML 1.1 names too, are text to every reader in use, and n is the
    // name of a parameter.
    const WORDS: [&str; 4] = ["yes", "no", "on", "off"];
    if WORDS.iter().any(|known| known.eq_ignore_ascii_case(word)) {
        return true;
    }
    let unsigned = word.strip_prefix(['+', '-']).unwrap_or(word);
    if [".inf", ".nan"].iter().any(|known| known.eq_ignore_ascii_case(unsigned)) {
        return true;
    }
    // 0755, +1, .5, 5., 1_000, 1:30, 0x1F, 0o17, 0b101, 1.e3
    let radix = ["0x", "0X", "0o", "0O", "0b", "0B"].iter().find_map(|prefix| unsigned.strip_prefix(prefix));
    if let Some(digits) = radix {
        return !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit() || b == b'_');
    }
    let (mantissa, power) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, power)) => (mantissa, Some(power)),
        None => (unsigned, None),
    };
    let numeric = |b: u8| b.is_ascii_digit() || matches!(b, b'_' | b':');
    let whole_and_fraction = mantissa.splitn(2, '.').all(|part| part.bytes().all(numeric));
    let begins = mantissa.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    begins
        && whole_and_fraction
        && mantissa.bytes().any(|b| b.is_ascii_digit())
        && !mantissa.ends_with(':')
        && power.is_none_or(|power| {
            let digits = power.strip_prefix(['+', '-']).unwrap_or(power);
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        })
}

fn place(marker: &Marker) -> Place {
    Place {
        line: u32::try_from(marker.line()).unwrap_or(u32::MAX),
        column: u32::try_from(marker.col() + 1).unwrap_or(u32::MAX),
    }
}

fn broken(place: Place, problem: &str, help: &str) -> Broken {
    Broken { place, problem: problem.to_owned(), help: help.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<Entry> {
        match read(text, Keys::Text).expect("valid").value {
            Value::Map(entries) => entries,
            other => panic!("{}", other.kind()),
        }
    }

    #[test]
    fn bare_words_that_readers_disagree_on_are_set_apart() {
        for word in
            ["no", "Yes", "off", "0755", "+1", ".5", "5.", "1_000", "12:30", "0x1F", "0o17", ".inf", "-.nan", "1.e3"]
        {
            assert!(matches!(plain(word), Value::Unsure(_)), "{word}");
        }
        for word in [
            "north",
            "y",
            "n",
            "q1",
            "1.2.3",
            "us-east",
            "2024-08-06",
            "5m",
            "0xyz",
            "e5",
            ":",
            "llama3.2:1b",
            "30s",
            "1:b",
        ] {
            assert!(matches!(plain(word), Value::Text(_)), "{word}");
        }
        assert!(matches!(plain("1e5"), Value::Number(_)));
    }

    #[test]
    fn quotes_make_text_of_anything() {
        for entry in entries("a: 'no'\nb: \"1\"\nc: !!str 1\nd: |\n  true\n") {
            assert!(matches!(entry.value.value, Value::Text(_)), "{}", entry.key);
        }
    }

    #[test]
    fn duplicate_keys_are_kept_with_their_places() {
        let found = entries("a: 1\nb: 2\na: 3\n");
        let places: Vec<_> = found.iter().map(|e| (e.key.as_str(), e.place.line, e.value.place.column)).collect();
        assert_eq!(places, [("a", 1, 4), ("b", 2, 4), ("a", 3, 4)]);
    }

    #[test]
    fn an_alias_stands_for_its_value() {
        let found = entries("a: &x [1, 2]\nb: *x\n");
        assert!(matches!(found.last().map(|e| &e.value.value), Some(Value::List(items)) if items.len() == 2));
    }

    #[test]
    fn aliases_can_not_unfold_without_bound() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let part = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", vec![part; 10].join(", "));
        }
        let broken = read(&text, Keys::Text).expect_err("unfolds to a billion");
        assert!(broken.problem.contains("too much"), "{}", broken.problem);
    }

    #[test]
    fn what_is_no_plain_data_is_refused() {
        for text in [
            "a: !secret x\n",
            "<<: {a: 1}\n",
            "? [a]\n: 1\n",
            "1: x\n",
            "a: 1\n---\nb: 2\n",
            "a: [1\n",
            "a: *nowhere\n",
            "a: &a [*a]\n",
        ] {
            assert!(read(text, Keys::Text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn keys_can_be_taken_as_they_are_written() {
        let Value::Map(found) = read("7: a\n1.50: b\nno: c\nTrue: d\n", Keys::Written).expect("valid").value else {
            panic!("an object");
        };
        let keys: Vec<_> = found.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["7", "1.50", "no", "True"]);
        for text in ["~: x\n", "[a]: x\n", "{a: b}: x\n"] {
            assert!(read(text, Keys::Written).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_maps_own_keys_go_before_those_that_it_merges_and_earlier_maps_before_later_ones() {
        let text = "- &a { x: 1, y: 2 }\n- &b { y: 3, z: 4 }\n- { <<: [*a, *b], x: 5 }\n- { x: 6, <<: *b }\n";
        let Value::List(items) = read(text, Keys::Written).expect("valid").value else { panic!("a list") };
        let shown = |node: &Node| match &node.value {
            Value::Map(entries) => entries
                .iter()
                .map(|entry| format!("{}{}", entry.key, entry.value.value.written().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(" "),
            other => panic!("{}", other.kind()),
        };
        assert_eq!(items.iter().skip(2).map(shown).collect::<Vec<_>>(), ["x5 y2 z4", "x6 y3 z4"]);
        let quoted = read("'<<': { x: 1 }\n", Keys::Text).expect("a key like any other");
        assert!(matches!(quoted.value, Value::Map(entries) if entries[0].key == "<<"));
        let broken = read("<<: [1]\n", Keys::Written).expect_err("1 is no object");
        assert!(broken.problem.contains("no object"), "{broken}");
    }

    #[test]
    fn json_with_surrogate_pairs_is_yaml_too() {
        let found = entries("{\"a\": \"\\ud83d\\ude00\"}");
        assert!(matches!(found.first().map(|e| &e.value.value), Some(Value::Text(text)) if text == "😀"));
    }
}
