//! Where in a specification something stands: `questions[3].id`.

use std::fmt::Write;

/// One step from a value to a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// A place in a specification, as a chain of steps that lives on the stack: walking a million
/// questions allocates nothing, and only a fault renders its path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Path<'a> {
    Root,
    Part(&'a Path<'a>, Step<'a>),
}

impl<'a> Path<'a> {
    /// The part under a key.
    pub(crate) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Part(self, Step::Key(key))
    }

    /// The part at a position, from 0.
    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path::Part(self, Step::Index(index))
    }

    /// The steps from the root.
    pub(crate) fn steps(&self) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        let mut at = *self;
        while let Path::Part(parent, step) = at {
            steps.push(step);
            at = *parent;
        }
        steps.reverse();
        steps
    }
}

/// Whose names a path is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The job file's: `policy.backoff`.
    File,
    /// The contract's: `spec.policy.backoff_ms`.
    Wire,
}

/// Keys under which a submitter's own keys begin, with their names in the contract.
const FREE: [(&str, &str); 2] = [("parameters", "parameters_json"), ("metadata", "metadata_json")];
/// Durations, with their names in the contract.
const DURATIONS: [(&str, &str); 5] = [
    ("backoff", "backoff_ms"),
    ("max_backoff", "max_backoff_ms"),
    ("run_timeout", "run_timeout_ms"),
    ("cold_timeout", "cold_timeout_ms"),
    ("deadline", "deadline_ms"),
];

/// Renders steps as a person reads them. A key that isn't a plain word comes in quotes.
pub(crate) fn render(steps: &[Step<'_>], dialect: Dialect) -> String {
    let mut text = String::new();
    if dialect == Dialect::Wire {
        text.push_str("spec");
    }
    // Inside parameters and metadata keys are the submitter's, and keep their names.
    let mut free = false;
    for step in steps {
        match *step {
            Step::Index(index) => {
                // Writing to a String can't fail.
                let _ = write!(text, "[{index}]");
            }
            Step::Key(key) => {
                let known = if free { None } else { wire_name(key) };
                let shown = match (dialect, known) {
                    (Dialect::Wire, Some(name)) => name,
                    _ => key,
                };
                free = free || FREE.iter().any(|(name, _)| *name == key);
                push_key(&mut text, shown);
            }
        }
    }
    text
}

fn wire_name(key: &str) -> Option<&'static str> {
    FREE.iter().chain(&DURATIONS).find(|(name, _)| *name == key).map(|(_, wire)| *wire)
}

fn push_key(text: &mut String, key: &str) {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain {
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(key);
    } else {
        text.push('[');
        text.push_str(&crate::fault::quote(key));
        text.push(']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_a_person_writes_it() {
        let root = Path::Root;
        let questions = root.key("questions");
        let third = questions.index(3);
        assert_eq!(render(&third.key("id").steps(), Dialect::File), "questions[3].id");
        assert_eq!(render(&third.key("id").steps(), Dialect::Wire), "spec.questions[3].id");
    }

    #[test]
    fn the_contracts_names_end_where_the_submitters_own_keys_begin() {
        let root = Path::Root;
        let parameters = root.key("parameters");
        let deadline = parameters.key("deadline");
        assert_eq!(render(&deadline.steps(), Dialect::Wire), "spec.parameters_json.deadline");
        let policy = root.key("policy");
        assert_eq!(render(&policy.key("deadline").steps(), Dialect::Wire), "spec.policy.deadline_ms");
        assert_eq!(render(&parameters.key("a.b").steps(), Dialect::File), "parameters[\"a.b\"]");
    }
}
