//! Reads typed values out of a [`Node`], noting a fault for each that isn't what it should be and
//! going on.

use semel_files::{
    nearest,
    tree::{Entry, Node, Value},
};

use crate::{
    check::{MAX_TIMEOUT_MS, Millis, OUT_OF_RANGE, Whole, duration_help, in_words, whole_help},
    fault::{Collector, quote},
    node::{Source, entries_to_json, exact_number, refuse_duplicate, refuse_unsure, shown},
    path::Path,
    spec::Object,
};

/// A number without a unit that may have meant hours or days; a larger one is shown with another in its place.
const MAX_HOURS_MEANT: u64 = 1_000;

/// A walk over the tree of one text.
pub(crate) struct Walk<'w, 'c> {
    pub(crate) source: &'w Source,
    pub(crate) faults: &'w mut Collector<'c>,
}

/// The entries of an object whose keys were checked.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'n>(&'n [Entry]);

impl<'n> Fields<'n> {
    /// The value under a key: the first, if it stands there twice.
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node> {
        let entry = self.0.iter().find(|entry| entry.key == key)?;
        Some(&entry.value)
    }
}

impl Walk<'_, '_> {
    /// An object with none but known keys: a fault for each unknown one and each duplicate.
    pub(crate) fn object<'n>(&mut self, node: &'n Node, path: &Path<'_>, known: &[&str]) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            self.wrong(node, path, "an object", &format!("write the keys {}", known.join(", ")));
            return None;
        };
        let parent = path;
        for (index, entry) in entries.iter().enumerate() {
            let path = parent.key(&entry.key);
            if !known.contains(&entry.key.as_str()) {
                let help = match nearest(&entry.key, known.iter().copied()) {
                    Some(name) => {
                        // Where that key isn't there, this is it: it is not said to be missing as well.
                        if entries.iter().all(|entry| entry.key != name) {
                            self.faults.excuse(&parent.key(name));
                        }
                        format!("did you mean {name}?")
                    }
                    None => format!("the known keys are {}", known.join(", ")),
                };
                let spot = self.source.spot(entry.place);
                let what = ("is no known key", help.as_str());
                self.faults.unread(&path, spot, None, what);
            } else if entries.iter().take(index).any(|e| e.key == entry.key) {
                refuse_duplicate(entry, &path, self.source, self.faults);
            }
        }
        Some(Fields(entries))
    }

    /// Text. A bare number or word is refused with the quotes that would make it text.
    pub(crate) fn text(&mut self, node: &Node, path: &Path<'_>) -> Option<String> {
        match &node.value {
            Value::Text(text) => return Some(text.clone()),
            Value::Number(text) => {
                let help = format!("write it in quotes: {}", quote(text));
                self.wrong(node, path, "text", &help);
            }
            Value::Bool(_, word) => {
                let help = format!("write it in quotes: {}", quote(word));
                self.wrong(node, path, "text", &help);
            }
            _ => self.wrong(node, path, "text", "write text, in quotes if need be"),
        }
        None
    }

    /// Text that must be there: a fault and a stand-in without it.
    pub(crate) fn required_text(
        &mut self,
        fields: Fields<'_>,
        key: &str,
        around: (&Node, &Path<'_>),
        help: &str,
    ) -> String {
        let (node, path) = around;
        let path = path.key(key);
        let text = match fields.get(key) {
            Some(value) => self.text(value, &path),
            None if self.faults.could_not_read(&path) => None,
            None => {
                let spot = self.source.spot(node.place);
                self.faults.unread(&path, spot, None, ("is missing", help));
                None
            }
        };
        text.unwrap_or_default()
    }

    /// Text that may be there.
    pub(crate) fn optional_text(&mut self, fields: Fields<'_>, key: &str, path: &Path<'_>) -> Option<String> {
        let node = fields.get(key)?;
        self.text(node, &path.key(key))
    }

    /// A list of text that may be there; a stand-in keeps the place of an item that is none.
    pub(crate) fn texts(&mut self, fields: Fields<'_>, key: &str, path: &Path<'_>) -> Option<Vec<String>> {
        let node = fields.get(key)?;
        let path = path.key(key);
        let items = self.list(node, &path)?;
        let text = |(index, item)| self.text(item, &path.index(index)).unwrap_or_default();
        Some(items.iter().enumerate().map(text).collect())
    }

    /// A list.
    pub(crate) fn list<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n [Node]> {
        if let Value::List(items) = &node.value {
            return Some(items);
        }
        self.wrong(node, path, "a list", "write a list");
        None
    }

    /// An object of the submitter's own keys.
    pub(crate) fn free_object(&mut self, fields: Fields<'_>, key: &str, path: &Path<'_>) -> Option<Object> {
        let node = fields.get(key)?;
        let path = path.key(key);
        let Value::Map(entries) = &node.value else {
            self.wrong(node, &path, "an object", "write keys and values");
            return None;
        };
        Some(entries_to_json(entries, &path, self.source, self.faults))
    }

    /// A whole number that may be written there.
    pub(crate) fn whole<T: TryFrom<i64>>(
        &mut self,
        fields: Fields<'_>,
        key: &str,
        path: &Path<'_>,
        allowed: &Whole,
    ) -> Option<T> {
        let node = fields.get(key)?;
        let path = path.key(key);
        let help = whole_help(allowed);
        let Value::Number(literal) = &node.value else {
            self.wrong(node, &path, "a whole number", &help);
            return None;
        };
        let whole = exact_number(literal).ok().and_then(|number| number.as_i64());
        if whole.is_none() && !is_whole(literal) {
            self.wrong(node, &path, "a whole number", &help);
            return None;
        }
        let value = whole.filter(|whole| allowed.contains(whole)).and_then(|whole| T::try_from(whole).ok());
        if value.is_none() {
            let spot = self.source.spot(node.place);
            self.faults.unread(&path, spot, shown(&node.value), (OUT_OF_RANGE, &help));
        }
        value
    }

    /// True or false.
    pub(crate) fn flag(&mut self, fields: Fields<'_>, key: &str, path: &Path<'_>) -> Option<bool> {
        let node = fields.get(key)?;
        if let Value::Bool(value, _) = node.value {
            return Some(value);
        }
        self.wrong(node, &path.key(key), "true or false", "write true or false");
        None
    }

    /// A duration as people write it, in milliseconds.
    pub(crate) fn duration(&mut self, fields: Fields<'_>, key: &str, path: &Path<'_>, allowed: &Millis) -> Option<u64> {
        let node = fields.get(key)?;
        let path = path.key(key);
        let (problem, help) = match &node.value {
            Value::Text(text) => match humantime::parse_duration(text) {
                Ok(duration) => match whole_millis(duration) {
                    Some(ms) => return Some(ms),
                    None => ("is no whole number of milliseconds", "write it in ms".to_owned()),
                },
                Err(humantime::DurationError::NumberOverflow) => (OUT_OF_RANGE, duration_help(allowed)),
                // The library's own words are of its grammar, and name no unit that it takes.
                Err(_) => ("is no duration", duration_help(allowed)),
            },
            Value::Number(literal) => ("has no unit", unit_help(literal, allowed)),
            _ => {
                self.wrong(node, &path, "a duration", &duration_help(allowed));
                return None;
            }
        };
        let spot = self.source.spot(node.place);
        self.faults.unread(&path, spot, shown(&node.value), (problem, &help));
        None
    }

    /// Notes that a value is of the wrong type.
    pub(crate) fn wrong(&mut self, node: &Node, path: &Path<'_>, wanted: &str, help: &str) {
        if matches!(node.value, Value::Unsure(_)) {
            refuse_unsure(node, path, self.source, self.faults);
            return;
        }
        let problem = match &node.value {
            Value::Null => format!("has no value where {wanted} should be"),
            value => format!("is {}, not {wanted}", value.kind()),
        };
        let subject = if matches!(path, Path::Root) { "the file " } else { "" };
        let problem = format!("{subject}{problem}");
        let spot = self.source.spot(node.place);
        self.faults.unread(path, spot, shown(&node.value), (&problem, help));
    }
}

/// What a number without a unit may have meant: what may take years is not meant in milliseconds.
fn unit_help(literal: &str, allowed: &Millis) -> String {
    let number: Option<u64> = literal.parse().ok();
    if *allowed.end() > MAX_TIMEOUT_MS {
        let number = number.filter(|number| (1..=MAX_HOURS_MEANT).contains(number)).unwrap_or(12);
        return format!("write its unit, as {number}h or {number}d");
    }
    format!("write its unit; if milliseconds are meant: {}", in_words(number.unwrap_or(30_000)))
}

/// Whether a number in JSON's grammar is written as a whole one, however large.
fn is_whole(literal: &str) -> bool {
    literal.strip_prefix('-').unwrap_or(literal).bytes().all(|byte| byte.is_ascii_digit())
}

fn whole_millis(duration: std::time::Duration) -> Option<u64> {
    let ms = u64::try_from(duration.as_millis()).ok()?;
    (duration.subsec_nanos().is_multiple_of(1_000_000)).then_some(ms)
}
