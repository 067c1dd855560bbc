//! A specification with its defaults written out: what is stored and what runs.

use std::{collections::BTreeMap, sync::OnceLock};

use serde::{Deserialize, Serialize};

use crate::{
    ENUMERATION_VERSION, INPUT_VERSION, JobSpec, Message, Model, OnLeaseLost, Policy, Question, RegionSettings,
    spec::{Object, canonical},
};

/// A job as it runs: nothing in it is a default any more, so a later version of Semel with other
/// defaults runs it as it was submitted.
///
/// The order of its cells (enumeration version 1): for each model in order, for each of its
/// regions in order, for each question in order, each repeat from 0. So the cells of one model in
/// one region are one contiguous range.
///
/// Its JSON is what a coordinator stores; [`Resolved::to_json`] and [`Resolved::from_json`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolved {
    /// The format of a cell's input: [`INPUT_VERSION`].
    pub input_version: u32,
    /// The order of cells: [`ENUMERATION_VERSION`].
    pub enumeration_version: u32,
    /// The question axis, in order.
    pub questions: Vec<Question>,
    /// The model axis, in order.
    pub models: Vec<ResolvedModel>,
    /// Samples of each question.
    pub repeat: u32,
    /// System prompts by region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<RegionSettings>,
    /// The system prompt of regions that have none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Parameters of every call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Object>,
    /// How the job runs.
    pub policy: ResolvedPolicy,
    /// What the submitter keeps with the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Object>,
    /// The pieces of the cells' inputs, rendered at the first one.
    #[serde(skip)]
    pieces: OnceLock<Pieces>,
}

/// A model as it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedModel {
    /// Its name on the axis.
    pub id: String,
    /// The name asked of the provider.
    pub model: String,
    /// Names that the endpoint may say it served, beside the one asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept_models: Vec<String>,
    /// The regions in which it is asked, in order.
    pub regions: Vec<String>,
    /// Parameters of this model's calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Object>,
}

/// How a job runs, with nothing left open. Durations are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedPolicy {
    /// Attempts that count, for each cell.
    pub attempts: u32,
    /// The wait after the first failed attempt, doubled after each.
    pub backoff_ms: u64,
    /// The longest wait.
    pub max_backoff_ms: u64,
    /// The time that a run may take on a warm model.
    pub run_timeout_ms: u64,
    /// The time that a run may take on a model that is not warm yet.
    pub cold_timeout_ms: u64,
    /// The time from the submission after which the job expires.
    pub deadline_ms: u64,
    /// What happens to a cell whose lease is lost.
    pub on_lease_lost: OnLeaseLost,
    /// Cells of the job leased at once; no cap without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_leased: Option<u32>,
    /// Cells of one model leased at once; no cap without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_leased_per_model: Option<u32>,
    /// Cells of one region leased at once; no cap without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_leased_per_region: Option<u32>,
    /// Whether a result counts only if the endpoint reported the region that served it.
    pub require_reported_region: bool,
    /// The job's share beside others of its priority.
    pub weight: u32,
    /// Jobs of a higher priority go first.
    pub priority: i32,
}

/// The defaults of a job's policy.
impl Default for ResolvedPolicy {
    fn default() -> ResolvedPolicy {
        ResolvedPolicy {
            attempts: 3,
            backoff_ms: 1_000,
            max_backoff_ms: 5 * 60 * 1_000,
            run_timeout_ms: 5 * 60 * 1_000,
            cold_timeout_ms: 10 * 60 * 1_000,
            deadline_ms: 30 * 24 * 60 * 60 * 1_000,
            on_lease_lost: OnLeaseLost::Retry,
            max_leased: None,
            max_leased_per_model: None,
            max_leased_per_region: None,
            require_reported_region: false,
            weight: 1,
            priority: 0,
        }
    }
}

impl ResolvedPolicy {
    fn of(policy: &Policy) -> ResolvedPolicy {
        let default = ResolvedPolicy::default();
        let backoff_ms = policy.backoff_ms.unwrap_or(default.backoff_ms);
        // A first wait beyond the usual longest one stands: it was asked for, the bound wasn't.
        let max_backoff_ms = default.max_backoff_ms.max(backoff_ms);
        ResolvedPolicy {
            attempts: policy.attempts.unwrap_or(default.attempts),
            backoff_ms: policy.max_backoff_ms.map_or(backoff_ms, |most| backoff_ms.min(most)),
            max_backoff_ms: policy.max_backoff_ms.unwrap_or(max_backoff_ms),
            run_timeout_ms: policy.run_timeout_ms.unwrap_or(default.run_timeout_ms),
            cold_timeout_ms: policy.cold_timeout_ms.unwrap_or(default.cold_timeout_ms),
            deadline_ms: policy.deadline_ms.unwrap_or(default.deadline_ms),
            on_lease_lost: policy.on_lease_lost.unwrap_or(default.on_lease_lost),
            max_leased: policy.max_leased,
            max_leased_per_model: policy.max_leased_per_model,
            max_leased_per_region: policy.max_leased_per_region,
            require_reported_region: policy.require_reported_region.unwrap_or_default(),
            weight: policy.weight.unwrap_or(default.weight),
            priority: policy.priority.unwrap_or(default.priority),
        }
    }

    fn to_policy(&self) -> Policy {
        Policy {
            attempts: Some(self.attempts),
            backoff_ms: Some(self.backoff_ms),
            max_backoff_ms: Some(self.max_backoff_ms),
            run_timeout_ms: Some(self.run_timeout_ms),
            cold_timeout_ms: Some(self.cold_timeout_ms),
            deadline_ms: Some(self.deadline_ms),
            on_lease_lost: Some(self.on_lease_lost),
            max_leased: self.max_leased,
            max_leased_per_model: self.max_leased_per_model,
            max_leased_per_region: self.max_leased_per_region,
            require_reported_region: Some(self.require_reported_region),
            weight: Some(self.weight),
            priority: Some(self.priority),
        }
    }
}

/// Why a stored specification can't be run by this version.
#[derive(Debug, thiserror::Error)]
pub enum StoredSpecError {
    /// It is no JSON of a resolved specification.
    #[error("the stored specification can't be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// It was stored by a version with other inputs or another order of cells.
    #[error(
        "the stored specification has input version {input} and enumeration version {enumeration}; \
         this version of Semel runs {INPUT_VERSION} and {ENUMERATION_VERSION}: run it with the \
         version that it was submitted to"
    )]
    OtherVersion {
        /// Its input version.
        input: u32,
        /// Its enumeration version.
        enumeration: u32,
    },
}

impl Resolved {
    /// Writes the defaults out. The specification has been checked.
    pub(crate) fn of(spec: &JobSpec) -> Resolved {
        let models = spec.models.iter().map(|model| ResolvedModel {
            id: model.id.clone(),
            model: model.model.clone().unwrap_or_else(|| model.id.clone()),
            accept_models: model.accept_models.clone(),
            regions: model.regions.clone(),
            parameters: model.parameters.clone(),
        });
        Resolved {
            input_version: INPUT_VERSION,
            enumeration_version: ENUMERATION_VERSION,
            questions: spec.questions.clone(),
            models: models.collect(),
            repeat: spec.repeat.unwrap_or(1),
            regions: spec.regions.clone(),
            system_prompt: spec.system_prompt.clone(),
            parameters: spec.parameters.clone(),
            policy: spec.policy.as_ref().map_or_else(|| ResolvedPolicy::of(&Policy::default()), ResolvedPolicy::of),
            metadata: spec.metadata.clone(),
            pieces: OnceLock::new(),
        }
    }

    /// The specification with every default in its field.
    pub fn to_spec(&self) -> JobSpec {
        let models = self.models.iter().map(|model| Model {
            id: model.id.clone(),
            model: Some(model.model.clone()),
            accept_models: model.accept_models.clone(),
            regions: model.regions.clone(),
            parameters: model.parameters.clone(),
        });
        JobSpec {
            questions: self.questions.clone(),
            models: models.collect(),
            repeat: Some(self.repeat),
            regions: self.regions.clone(),
            system_prompt: self.system_prompt.clone(),
            parameters: self.parameters.clone(),
            policy: Some(self.policy.to_policy()),
            metadata: self.metadata.clone(),
        }
    }

    /// The JSON that a coordinator stores; RFC 8785, so that the same job has the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        canonical(self)
    }

    /// Reads what [`Resolved::to_json`] wrote.
    ///
    /// # Errors
    /// It is no such JSON, or was written by a version that runs cells otherwise.
    pub fn from_json(json: &[u8]) -> Result<Resolved, StoredSpecError> {
        let resolved: Resolved = serde_json::from_slice(json)?;
        let versions = (resolved.input_version, resolved.enumeration_version);
        if versions != (INPUT_VERSION, ENUMERATION_VERSION) {
            return Err(StoredSpecError::OtherVersion { input: versions.0, enumeration: versions.1 });
        }
        Ok(resolved)
    }

    /// The frozen input of a cell: RFC 8785 JSON of messages, model and parameters. The same for
    /// every repeat. None if the job has no such cell.
    ///
    /// It is put together from pieces that are rendered once, in well under a microsecond and one
    /// allocation; the first call renders them, if [`Resolved::prepare`] didn't.
    pub fn input(&self, model: usize, region: &str, question: usize) -> Option<Vec<u8>> {
        let pieces = self.pieces();
        if !self.models.get(model)?.regions.iter().any(|r| r == region) {
            return None;
        }
        let head = pieces.head(region);
        let body = pieces.bodies.get(question)?;
        let tail = pieces.tails.get(model)?;
        let mut input = Vec::with_capacity(head.len() + body.len() + tail.len());
        input.extend_from_slice(head);
        input.extend_from_slice(body);
        input.extend_from_slice(tail);
        Some(input)
    }

    /// Renders the pieces of the inputs now: for a large job that takes seconds, which the first
    /// [`Resolved::input`] would take otherwise.
    pub fn prepare(&self) {
        self.pieces();
    }

    fn pieces(&self) -> &Pieces {
        self.pieces.get_or_init(|| Pieces::of(self))
    }

    /// The system prompt that goes before a question in a region, if any.
    pub fn system_prompt_of(&self, region: &str) -> Option<&str> {
        let own = self.regions.iter().find(|settings| settings.id == region);
        own.and_then(|settings| settings.system_prompt.as_deref())
            .or(self.system_prompt.as_deref())
            .filter(|prompt| !prompt.is_empty())
    }

    /// The parameters of a model's calls: the job's, over which the model's own win key by key.
    pub fn parameters_of(&self, model: &ResolvedModel) -> Object {
        let mut merged = self.parameters.clone().unwrap_or_default();
        for (key, value) in model.parameters.iter().flatten() {
            merged.insert(key.clone(), value.clone());
        }
        merged
    }
}

/// The JSON of a cell's input, cut where its parts change: `{"messages":[` and the region's system
/// message, the question's messages, `],"model":…,"parameters":…}`. The keys stand in RFC 8785's
/// order already.
#[derive(Clone, Debug)]
struct Pieces {
    heads: BTreeMap<String, Vec<u8>>,
    /// Of regions without settings.
    other_head: Vec<u8>,
    bodies: Vec<Box<[u8]>>,
    tails: Vec<Vec<u8>>,
}

#[derive(Serialize)]
struct Tail<'r> {
    model: &'r str,
    parameters: Object,
}

impl Pieces {
    fn of(resolved: &Resolved) -> Pieces {
        let head = |prompt: Option<&str>| {
            let mut head = b"{\"messages\":[".to_vec();
            if let Some(prompt) = prompt {
                head.extend(canonical(&message("system", prompt)));
                head.push(b',');
            }
            head
        };
        let tail = |model: &ResolvedModel| {
            let object = canonical(&Tail { model: &model.model, parameters: resolved.parameters_of(model) });
            // The object's opening brace gives way to what stands before it.
            let mut tail = b"],".to_vec();
            tail.extend(object.into_iter().skip(1));
            tail
        };
        let heads = resolved.regions.iter().map(|settings| {
            let prompt = resolved.system_prompt_of(&settings.id);
            (settings.id.clone(), head(prompt))
        });
        let shared = resolved.system_prompt.as_deref();
        Pieces {
            heads: heads.collect(),
            other_head: head(shared.filter(|prompt| !prompt.is_empty())),
            bodies: resolved.questions.iter().map(body).collect(),
            tails: resolved.models.iter().map(tail).collect(),
        }
    }

    fn head(&self, region: &str) -> &[u8] {
        self.heads.get(region).unwrap_or(&self.other_head)
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

fn body(question: &Question) -> Box<[u8]> {
    let prompt = question.prompt.as_deref();
    let prompted = prompt.map(|prompt| message("user", prompt));
    let mut body = Vec::new();
    for message in prompted.iter().chain(&question.messages) {
        if !body.is_empty() {
            body.push(b',');
        }
        body.extend(canonical(message));
    }
    body.into_boxed_slice()
}
