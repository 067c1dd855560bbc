//! A neutral tree of what a file says, with the place of each value.
//!
//! serde stops at the first fault and forgets duplicate keys and how a value was written. The tree
//! keeps all of it, so that a walk over it can name every fault at once.

/// The deepest nesting that is read: a bound on recursion.
pub const MAX_DEPTH: usize = 64;

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: u32,
    /// The column in the line, in characters, from 1.
    pub column: u32,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// What stands there.
    pub value: Value,
    /// Where it begins. What an alias repeats keeps the place at which it is written.
    pub place: Place,
}

/// What a value is, before anyone asks what it should be.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing: `null`, `~`, or no value at all.
    Null,
    /// True or false, and the word for it: YAML has `True` and `TRUE` as well.
    Bool(bool, &'static str),
    /// A number, as it was written, in JSON's grammar.
    Number(String),
    /// Text, without its quotes.
    Text(String),
    /// A bare YAML word that YAML's versions read differently (`no`, `0755`, `1_000`), as it was written.
    Unsure(String),
    /// The items in order.
    List(Vec<Node>),
    /// The entries in order, duplicates included.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub place: Place,
    /// What stands under it.
    pub value: Node,
}

/// A text that can't be read as YAML or JSON at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {help}")]
pub struct Broken {
    /// Where reading ended.
    pub place: Place,
    /// What is wrong there, as the end of a sentence that begins with the file. Quotes nothing of it.
    pub problem: String,
    /// What to do.
    pub help: String,
}

impl Value {
    /// What the value is, in words. Says nothing of what it says.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(..) => "true or false",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::Unsure(_) => "a bare word",
            Value::List(_) => "a list",
            Value::Map(_) => "an object",
        }
    }

    /// A single value as it was written, text without its quotes; nothing for what has parts.
    pub fn written(&self) -> Option<&str> {
        match self {
            Value::Bool(_, word) => Some(word),
            Value::Number(written) | Value::Text(written) | Value::Unsure(written) => Some(written),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }
}
