//! The frozen input of a cell, as its bytes: what executors make their calls of.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The parts of [`Task::input`](super::Task::input), each exactly as it stands there.
#[derive(Deserialize)]
pub(super) struct Input<'a> {
    #[serde(borrow)]
    pub(super) messages: &'a RawValue,
    #[serde(borrow)]
    pub(super) model: &'a RawValue,
    #[serde(borrow, default)]
    pub(super) parameters: BTreeMap<Cow<'a, str>, &'a RawValue>,
}

/// One message of the input; `content` is whatever JSON stands there.
#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    pub(super) role: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) content: &'a RawValue,
}

impl<'a> Input<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes)
            .map_err(|error| format!("the leased input is not {{messages, model, parameters}}: {error}"))
    }

    /// The messages, in their order.
    pub(super) fn messages(&self) -> Result<Vec<Message<'a>>, String> {
        serde_json::from_str(self.messages.get())
            .map_err(|error| format!("the leased input's messages are not a list of {{role, content}}: {error}"))
    }
}
