//! A YAML or JSON file as a tree of values, each with its line. Reading it in two steps, the tree and then its meaning,
//! lets one fault hide no other: all that are in a file are told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::Fault;

/// Something with the line at which it stands, from 1.
pub(super) struct At<T> {
    pub(super) line: u64,
    pub(super) value: T,
}

/// A value of the file.
pub(super) type Node = Spanned<Form>;

/// A key of the file and its value.
type Entry = (Spanned<String>, Node);

/// What a value is.
pub(super) enum Form {
    Nothing,
    Flag(bool),
    Whole(u64),
    /// Another number, in words that may differ from the file's.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

impl Form {
    pub(super) fn is_map(&self) -> bool {
        matches!(self, Self::Map(_))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List(_))
    }

    /// What it is, for people. Never what it says: a key may stand in the wrong place.
    fn kind(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Flag(_) | Self::Whole(_) | Self::Number(_) | Self::Text(_) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "a map of keys and values",
        }
    }
}

impl<'de> Deserialize<'de> for Form {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Form;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number, true, false, a list or a map")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Form, E> {
                Ok(Form::Nothing)
            }

            fn visit_none<E: de::Error>(self) -> Result<Form, E> {
                Ok(Form::Nothing)
            }

            fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Form, E> {
                Ok(Form::Flag(flag))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Form, E> {
                Ok(Form::Whole(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Form, E> {
                Ok(u64::try_from(number).map_or_else(|_| Form::Number(number.to_string()), Form::Whole))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Form, E> {
                Ok(Form::Number(number.to_string()))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Form, E> {
                Ok(Form::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Form, A::Error> {
                let mut nodes = Vec::new();
                while let Some(node) = list.next_element()? {
                    nodes.push(node);
                }
                Ok(Form::List(nodes))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Form, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Form::Map(entries))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// Reads the tree of a file.
///
/// # Errors
/// It is no YAML (every JSON is), which leaves nothing to look at.
pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
    let options = serde_saphyr::options! {
        // A key that is there twice is told with all other faults.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        // Without the snippet: the lines around a fault may hold what nobody should read.
        let error = error.without_snippet();
        let line = error.location().map_or(0, |location| location.line());
        Fault { line, message: error.to_string() }
    })
}

/// Reads what the values of a tree mean, and gathers what is wrong with them.
pub(super) struct Reader<'a> {
    /// The file, for numbers as they are written there.
    text: &'a str,
    pub(super) faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, faults: Vec::new() }
    }

    pub(super) fn fault(&mut self, line: u64, message: String) {
        self.faults.push(Fault { line, message });
    }

    fn of_another_kind<T>(&mut self, what: &str, node: &Node, wanted: &str) -> Option<T> {
        let kind = node.value.kind();
        self.fault(node.referenced.line(), format!("{what} is {kind}; it must be {wanted}"));
        None
    }

    /// A single value in the file's own words: a version 1.10 stays that.
    fn words(&self, node: &Node) -> Option<String> {
        let other = match &node.value {
            Form::Text(text) => return Some(text.clone()),
            Form::Flag(flag) => flag.to_string(),
            Form::Whole(number) => number.to_string(),
            Form::Number(number) => number.clone(),
            Form::Nothing | Form::List(_) | Form::Map(_) => return None,
        };
        let span = node.defined.span();
        let written = span.byte_offset().zip(span.byte_len()).and_then(|(from, length)| {
            let from = usize::try_from(from).ok()?;
            self.text.get(from..from.checked_add(usize::try_from(length).ok()?)?)
        });
        Some(written.map(str::trim).filter(|written| !written.is_empty()).map_or(other, str::to_owned))
    }

    pub(super) fn text(&mut self, what: &str, node: &Node) -> Option<String> {
        self.text_or(what, node, "text")
    }

    /// A text; `wanted` says what else could stand there.
    pub(super) fn text_or(&mut self, what: &str, node: &Node, wanted: &str) -> Option<String> {
        match self.words(node) {
            Some(words) => Some(words),
            None => self.of_another_kind(what, node, wanted),
        }
    }

    pub(super) fn flag(&mut self, what: &str, node: &Node) -> Option<bool> {
        if let Form::Flag(flag) = node.value {
            return Some(flag);
        }
        self.parsed(what, node, "true or false")
    }

    pub(super) fn whole(&mut self, what: &str, node: &Node) -> Option<u64> {
        if let Form::Whole(number) = node.value {
            return Some(number);
        }
        self.parsed(what, node, "a whole number")
    }

    /// What a single value in quotes says.
    fn parsed<T: FromStr>(&mut self, what: &str, node: &Node, wanted: &str) -> Option<T> {
        let words = self.text_or(what, node, wanted)?;
        let parsed = words.parse().ok();
        if parsed.is_none() {
            self.fault(node.referenced.line(), format!("{what} is {words:?}; it must be {wanted}"));
        }
        parsed
    }

    pub(super) fn choice<T: Copy>(&mut self, what: &str, node: &Node, choices: &[(&str, T)]) -> Option<T> {
        let words = self.text(what, node)?;
        let chosen = choices.iter().find(|(name, _)| *name == words);
        if chosen.is_none() {
            let advice = advice(&words, choices.iter().map(|(name, _)| *name));
            self.fault(node.referenced.line(), format!("{words:?} is not possible here{advice}"));
        }
        chosen.map(|(_, choice)| *choice)
    }

    /// The values of a list.
    pub(super) fn list<'n>(&mut self, what: &str, node: &'n Node) -> Option<&'n [Node]> {
        match &node.value {
            Form::List(nodes) => Some(nodes),
            _ => self.of_another_kind(what, node, "a list"),
        }
    }

    pub(super) fn texts(&mut self, what: &str, node: &Node) -> Option<Vec<String>> {
        let nodes = self.list(what, node)?;
        // Each is looked at, also behind one that is at fault.
        let texts: Vec<_> = nodes.iter().map(|node| self.text(&format!("a value of {what}"), node)).collect();
        texts.into_iter().collect()
    }

    /// The keys and values of a map, in the file's order, without keys that are there a second time.
    pub(super) fn entries<'n>(&mut self, what: &str, node: &'n Node) -> Option<Vec<(At<&'n str>, &'n Node)>> {
        let Form::Map(all) = &node.value else {
            return self.of_another_kind(what, node, "a map of keys and values");
        };
        let mut entries: Vec<(At<&str>, &Node)> = Vec::new();
        for (key, node) in all {
            let (name, line) = (key.value.as_str(), key.referenced.line());
            if entries.iter().any(|(earlier, _)| earlier.value == name) {
                self.fault(line, format!("the key {name:?} is there twice in {what}; leave one of them out"));
            } else {
                entries.push((At { line, value: name }, node));
            }
        }
        Some(entries)
    }

    pub(super) fn text_map(&mut self, what: &str, node: &Node) -> Option<BTreeMap<String, String>> {
        let entries = self.entries(what, node)?;
        let texts: Vec<_> = entries
            .into_iter()
            .map(|(key, node)| {
                Some((key.value.to_owned(), self.text(&format!("the value of {} in {what}", key.value), node)?))
            })
            .collect();
        texts.into_iter().collect()
    }

    /// A map of which the keys are known.
    pub(super) fn fields<'n>(
        &mut self,
        what: &str,
        node: &'n Node,
        known: &'static [&'static str],
    ) -> Option<Fields<'n>> {
        let mut fields = Fields { line: node.referenced.line(), by_name: BTreeMap::new(), misspelt: BTreeSet::new() };
        for (key, node) in self.entries(what, node)? {
            match known.iter().find(|name| **name == key.value) {
                Some(_) if matches!(node.value, Form::Nothing) => {}
                Some(name) => drop(fields.by_name.insert(*name, At { line: key.line, value: node })),
                None => {
                    fields.misspelt.extend(nearest(key.value, known.iter().copied()));
                    let advice = advice(key.value, known.iter().copied());
                    self.fault(key.line, format!("there is no key {:?} here{advice}", key.value));
                }
            }
        }
        Some(fields)
    }
}

/// The known keys of a map. Those whose value is nothing are as if they weren't there.
pub(super) struct Fields<'n> {
    line: u64,
    by_name: BTreeMap<&'static str, At<&'n Node>>,
    /// Keys that were meant by unknown ones: they aren't missing.
    misspelt: BTreeSet<&'static str>,
}

impl<'n> Fields<'n> {
    /// What `read` makes of the value of `name`; none where there is none, or one that is at fault.
    pub(super) fn read<'r, T>(
        &self,
        reader: &mut Reader<'r>,
        name: &str,
        read: impl FnOnce(&mut Reader<'r>, &str, &'n Node) -> Option<T>,
    ) -> Option<At<T>> {
        let at = self.by_name.get(name)?;
        Some(At { line: at.line, value: read(reader, name, at.value)? })
    }

    /// As [`Fields::read`]; that there is none is a fault.
    pub(super) fn need<'r, T>(
        &self,
        reader: &mut Reader<'r>,
        name: &str,
        read: impl FnOnce(&mut Reader<'r>, &str, &'n Node) -> Option<T>,
    ) -> Option<At<T>> {
        if !self.by_name.contains_key(name) && !self.misspelt.contains(name) {
            reader.fault(self.line, format!("the key {name:?} is missing"));
        }
        self.read(reader, name, read)
    }

    /// The line of each key that is there, whether or not its value could be read.
    pub(super) fn places(&self) -> BTreeMap<&'static str, u64> {
        self.by_name.iter().map(|(name, at)| (*name, at.line)).collect()
    }

    /// The keys that were written otherwise, and are told as unknown.
    pub(super) fn misspelt(&self) -> BTreeSet<&'static str> {
        self.misspelt.clone()
    }
}

/// The nearest of `known`, or all of them.
pub(super) fn advice<'k>(wrong: &str, known: impl Iterator<Item = &'k str> + Clone) -> String {
    match nearest(wrong, known.clone()) {
        Some(name) => format!("; did you mean {name:?}?"),
        None if known.clone().next().is_none() => "; there are none".to_owned(),
        None => format!("; possible are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// The one of `known` that was meant, if one is near enough.
fn nearest<'k>(wrong: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let (distance, name) = known.map(|name| (strsim::damerau_levenshtein(wrong, name), name)).min()?;
    (distance <= 1 + name.chars().count() / 4).then_some(name)
}
