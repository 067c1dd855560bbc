//! A job's specification as its submitter wrote it: the same whether it came as YAML, as JSON or
//! over the wire, so that one job has one digest.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// The keys and values of `parameters` and `metadata`.
pub type Object = Map<String, Value>;

/// What a job asks, of whom and how: the message `semel.v1.JobSpec`, field for field. A field that
/// was left out is `None` or an empty list; defaults come with [`crate::Resolved`].
///
/// Its JSON (durations as integers in milliseconds, absent fields absent) is the form that is
/// digested; it is not the job file's form, which people write.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The question axis, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub questions: Vec<Question>,
    /// The model axis, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Model>,
    /// Samples of each question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<u32>,
    /// System prompts by region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<RegionSettings>,
    /// The system prompt of regions that have none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Parameters of every call; a model's own win over them, key by key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Object>,
    /// How the job runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// What the submitter keeps with the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Object>,
}

/// A question: either a prompt or a whole conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Its name on the axis.
    pub id: String,
    /// The user's prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// A conversation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// What is kept with the question; exported, never sent to a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Object>,
}

/// A message of a conversation. Its fields stand in RFC 8785's order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// The text.
    pub content: String,
    /// `system`, `user` or `assistant`.
    pub role: String,
}

/// A model and the regions in which it is asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Its name on the axis.
    pub id: String,
    /// The name asked of the provider; the id by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Names that the endpoint may say it served, beside the one asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept_models: Vec<String>,
    /// The regions in which it is asked, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
    /// Parameters of this model's calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Object>,
}

/// What differs by region.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RegionSettings {
    /// The region.
    pub id: String,
    /// Its system prompt. An empty one sends none: so the job's can be left out in one region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
}

/// How a job runs. Durations are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Attempts that count, for each cell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The wait after the first failed attempt, doubled after each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_ms: Option<u64>,
    /// The longest wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff_ms: Option<u64>,
    /// The time that a run may take on a warm model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_timeout_ms: Option<u64>,
    /// The time that a run may take on a model that is not warm yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_timeout_ms: Option<u64>,
    /// The time from the submission after which the job expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// What happens to a cell whose lease is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lease_lost: Option<OnLeaseLost>,
    /// Cells of the job leased at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_leased: Option<u32>,
    /// Cells of one model leased at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_leased_per_model: Option<u32>,
    /// Cells of one region leased at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_leased_per_region: Option<u32>,
    /// Whether a result counts only if the endpoint reported the region that served it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_reported_region: Option<bool>,
    /// The job's share beside others of its priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Jobs of a higher priority go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
}

/// What happens to a cell whose lease is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLeaseLost {
    /// It runs again, within the attempts.
    #[default]
    Retry,
    /// It is recorded as failed and never run again.
    Fail,
}

impl OnLeaseLost {
    /// The word in a job file.
    pub const fn as_str(self) -> &'static str {
        match self {
            OnLeaseLost::Retry => "retry",
            OnLeaseLost::Fail => "fail",
        }
    }
}

impl JobSpec {
    /// The specification as RFC 8785 JSON: what is digested and compared.
    ///
    /// # Panics
    /// Never for a specification that was read by this crate: it has only text keys and finite
    /// numbers.
    pub fn canonical(&self) -> Vec<u8> {
        canonical(self)
    }

    /// SHA-256 of the specification as sent. The job's id and the defaults are not in it.
    pub fn digest(&self) -> [u8; 32] {
        digest(&self.canonical())
    }
}

/// SHA-256.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// RFC 8785 JSON. serde can refuse only keys that aren't text and numbers that aren't finite, and
/// none of this crate's types has either.
pub(crate) fn canonical<T: Serialize>(value: &T) -> Vec<u8> {
    match serde_json_canonicalizer::to_vec(value) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("a specification has only JSON's values: {error}"),
    }
}
