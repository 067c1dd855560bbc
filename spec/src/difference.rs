//! What two specifications differ in, in words: for a job id that is used already.

use serde_json::Value;

use crate::{JobSpec, fault::quote, path::Path, path::Step};

/// Differences that are listed; the rest are counted.
pub const MAX_DIFFERENCES: usize = 20;

/// Says in what `b`, a specification that was sent, differs from `a`, the one that was accepted
/// under the same id: one line for each part, at most [`MAX_DIFFERENCES`] and one that counts the
/// rest. Questions, models and regions are matched by id. Empty if they have one digest.
pub fn difference(a: &JobSpec, b: &JobSpec) -> Vec<String> {
    // Both serialize to objects: they are structs with text keys.
    let (Ok(a), Ok(b)) = (serde_json::to_value(a), serde_json::to_value(b)) else {
        return vec!["they can't be compared".to_owned()];
    };
    let mut found = Differences::default();
    found.values(&a, &b, &Path::Root);
    if found.unlisted > 0 {
        let rest = format!("{} more differences", found.unlisted);
        found.lines.push(rest);
    }
    found.lines
}

#[derive(Default)]
struct Differences {
    lines: Vec<String>,
    unlisted: usize,
}

impl Differences {
    fn values(&mut self, a: &Value, b: &Value, path: &Path<'_>) {
        match (a, b) {
            (Value::Object(a), Value::Object(b)) => {
                for (key, was) in a {
                    self.parts(Some(was), b.get(key), &path.key(key));
                }
                for (key, is) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                    self.parts(None, Some(is), &path.key(key));
                }
            }
            (Value::Array(a), Value::Array(b)) => match (ids(a), ids(b)) {
                (Some(before), Some(after)) => self.named(a, b, (&before, &after), path),
                _ => self.lists(a, b, path),
            },
            _ if a == b => {}
            _ => self.note(path, &format!("was {}, is now {}", shown(a), shown(b))),
        }
    }

    fn parts(&mut self, was: Option<&Value>, is: Option<&Value>, path: &Path<'_>) {
        match (was, is) {
            (Some(was), Some(is)) => self.values(was, is, path),
            (Some(was), None) => self.note(path, &format!("was {}, is now absent", shown(was))),
            (None, Some(is)) => self.note(path, &format!("was absent, is now {}", shown(is))),
            (None, None) => {}
        }
    }

    fn lists(&mut self, a: &[Value], b: &[Value], path: &Path<'_>) {
        for index in 0..a.len().max(b.len()) {
            self.parts(a.get(index), b.get(index), &path.index(index));
        }
    }

    /// Lists of things with ids: what came, what went, what changed, and whether the order did.
    fn named(&mut self, a: &[Value], b: &[Value], (before, after): (&[&str], &[&str]), path: &Path<'_>) {
        let later: std::collections::HashMap<&str, &Value> = after.iter().copied().zip(b).collect();
        for (id, was) in before.iter().zip(a) {
            let path = path.key(id);
            match later.get(id) {
                Some(is) => self.values(was, is, &path),
                None => self.note(&path, "is gone"),
            }
        }
        let earlier: std::collections::HashSet<&str> = before.iter().copied().collect();
        for id in after.iter().filter(|id| !earlier.contains(*id)) {
            self.note(&path.key(id), "is new");
        }
        let kept = |ids: &[&str], others: &dyn Fn(&str) -> bool| -> Vec<String> {
            let kept = ids.iter().filter(|id| others(id));
            kept.map(|id| (*id).to_owned()).collect()
        };
        let was = kept(before, &|id| later.contains_key(id));
        let is = kept(after, &|id| earlier.contains(id));
        if was != is {
            self.note(path, "stand in another order");
        }
    }

    fn note(&mut self, path: &Path<'_>, what: &str) {
        if self.lines.len() >= MAX_DIFFERENCES {
            self.unlisted += 1;
            return;
        }
        let steps: Vec<Step<'_>> = path.steps();
        let path = crate::path::render(&steps, crate::path::Dialect::File);
        self.lines.push(format!("{path}: {what}"));
    }
}

/// The ids of a list whose items all have one.
fn ids(items: &[Value]) -> Option<Vec<&str>> {
    items.iter().map(|item| item.get("id").and_then(Value::as_str)).collect()
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(fields) => format!("an object with {} keys", fields.len()),
        other => other.to_string(),
    }
}
