//! Reads what the values of an agents file mean. Each is taken as it is written, whatever YAML would make of it, and
//! no fault hides another: all that are in a file are told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use semel_files::nearest;
use semel_files::tree::{Node, Value};

use super::Fault;

/// Something with the line at which it stands, from 1.
pub(super) struct At<T> {
    pub(super) line: u32,
    pub(super) value: T,
}

/// Gathers what is wrong on the way. What a value says is told only where no key can stand by mistake.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) faults: Vec<Fault>,
}

impl Reader {
    fn fault(&mut self, line: u32, message: String) {
        self.faults.push(Fault { line, message });
    }

    fn of_another_kind<T>(&mut self, what: &str, node: &Node, wanted: &str) -> Option<T> {
        let kind = node.value.kind();
        self.fault(node.place.line, format!("{what} is {kind}; it must be {wanted}"));
        None
    }

    pub(super) fn text(&mut self, what: &str, node: &Node) -> Option<String> {
        self.text_or(what, node, "text")
    }

    /// A text; `wanted` says what else could stand there.
    pub(super) fn text_or(&mut self, what: &str, node: &Node, wanted: &str) -> Option<String> {
        match node.value.written() {
            // A version 1.10 stays that.
            Some(written) => Some(written.to_owned()),
            None => self.of_another_kind(what, node, wanted),
        }
    }

    pub(super) fn flag(&mut self, what: &str, node: &Node) -> Option<bool> {
        if let Value::Bool(flag, _) = node.value {
            return Some(flag);
        }
        self.parsed(what, node, "true or false")
    }

    pub(super) fn whole(&mut self, what: &str, node: &Node) -> Option<u64> {
        self.parsed(what, node, "a whole number")
    }

    /// What a single value says, in quotes or not.
    fn parsed<T: FromStr>(&mut self, what: &str, node: &Node, wanted: &str) -> Option<T> {
        let words = self.text_or(what, node, wanted)?;
        let parsed = words.parse().ok();
        if parsed.is_none() {
            self.fault(node.place.line, format!("{what} is {words:?}; it must be {wanted}"));
        }
        parsed
    }

    pub(super) fn choice<T: Copy>(&mut self, what: &str, node: &Node, choices: &[(&str, T)]) -> Option<T> {
        let words = self.text(what, node)?;
        let chosen = choices.iter().find(|(name, _)| *name == words);
        if chosen.is_none() {
            let advice = advice(&words, choices.iter().map(|(name, _)| *name));
            self.fault(node.place.line, format!("{words:?} is not possible here{advice}"));
        }
        chosen.map(|(_, choice)| *choice)
    }

    /// The values of a list.
    pub(super) fn list<'n>(&mut self, what: &str, node: &'n Node) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(nodes) => Some(nodes),
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
        let Value::Map(all) = &node.value else {
            return self.of_another_kind(what, node, "an object of keys and values");
        };
        let (mut names, mut entries) = (BTreeSet::new(), Vec::new());
        for entry in all {
            let key = At { line: entry.place.line, value: entry.key.as_str() };
            if !names.insert(key.value) {
                self.fault(
                    key.line,
                    format!("the key {:?} is there twice in {what}; leave one of them out", key.value),
                );
                continue;
            }
            entries.push((key, &entry.value));
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
        let mut fields = Fields { line: node.place.line, by_name: BTreeMap::new(), misspelt: BTreeSet::new() };
        for (key, node) in self.entries(what, node)? {
            match known.iter().find(|name| **name == key.value) {
                Some(_) if matches!(node.value, Value::Null) => {}
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
    line: u32,
    by_name: BTreeMap<&'static str, At<&'n Node>>,
    /// Keys that were meant by unknown ones: they aren't missing.
    misspelt: BTreeSet<&'static str>,
}

impl<'n> Fields<'n> {
    /// What `read` makes of the value of `name`; none where there is none, or one that is at fault.
    pub(super) fn read<T>(
        &self,
        reader: &mut Reader,
        name: &str,
        read: impl FnOnce(&mut Reader, &str, &'n Node) -> Option<T>,
    ) -> Option<At<T>> {
        let at = self.by_name.get(name)?;
        Some(At { line: at.line, value: read(reader, name, at.value)? })
    }

    /// As [`Fields::read`]; that there is none is a fault.
    pub(super) fn need<T>(
        &self,
        reader: &mut Reader,
        name: &str,
        read: impl FnOnce(&mut Reader, &str, &'n Node) -> Option<T>,
    ) -> Option<At<T>> {
        if !self.by_name.contains_key(name) && !self.misspelt.contains(name) {
            reader.fault(self.line, format!("the key {name:?} is missing"));
        }
        self.read(reader, name, read)
    }

    /// The line of each key that is there, whether or not its value could be read.
    pub(super) fn places(&self) -> BTreeMap<&'static str, u32> {
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
