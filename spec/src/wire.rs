//! The specification on the wire: `semel.v1.JobSpec`, typed, with free parameters as JSON text.

use semel_files::{json, tree::Value};
use semel_proto::v1;

use crate::{
    Checked, Faults, JobSpec, Message, Model, OnLeaseLost, Policy, Question, RegionSettings,
    check::finish,
    fault::{Collector, Nowhere},
    node::{Source, entries_to_json, shown},
    path::{Dialect, Path},
    spec::{Object, canonical},
};

/// Reads and checks what came over the wire. Paths are the contract's, from the request on:
/// `spec.questions[3].id`.
///
/// # Errors
/// Every fault, all at once.
pub fn check(spec: &v1::JobSpec) -> Result<Checked, Faults> {
    let mut collector = Collector::new(&Nowhere, Dialect::Wire);
    let spec = read(spec, &mut collector);
    finish(spec, collector)
}

/// Reads what came over the wire without judging it: only JSON texts and enums can be wrong.
///
/// # Errors
/// Every JSON text that is none, and every enum value that this version doesn't know.
pub fn from_wire(spec: &v1::JobSpec) -> Result<JobSpec, Faults> {
    let mut collector = Collector::new(&Nowhere, Dialect::Wire);
    let spec = read(spec, &mut collector);
    collector.finish()?;
    Ok(spec)
}

/// Writes a specification for the wire. [`from_wire`] gives it back, and the digest stays.
pub fn to_wire(spec: &JobSpec) -> v1::JobSpec {
    v1::JobSpec {
        questions: spec.questions.iter().map(question_to_wire).collect(),
        models: spec.models.iter().map(model_to_wire).collect(),
        repeat: spec.repeat,
        regions: spec
            .regions
            .iter()
            .map(|region| v1::RegionSettings { id: region.id.clone(), system_prompt: region.system_prompt.clone() })
            .collect(),
        system_prompt: spec.system_prompt.clone(),
        parameters_json: spec.parameters.as_ref().map(json_text),
        policy: spec.policy.as_ref().map(policy_to_wire),
        metadata_json: spec.metadata.as_ref().map(json_text),
    }
}

fn question_to_wire(question: &Question) -> v1::Question {
    let messages = question
        .messages
        .iter()
        .map(|message| v1::Message { role: message.role.clone(), content: message.content.clone() });
    v1::Question {
        id: question.id.clone(),
        prompt: question.prompt.clone(),
        messages: messages.collect(),
        metadata_json: question.metadata.as_ref().map(json_text),
    }
}

fn model_to_wire(model: &Model) -> v1::Model {
    v1::Model {
        id: model.id.clone(),
        model: model.model.clone(),
        accept_models: model.accept_models.clone(),
        regions: model.regions.clone(),
        parameters_json: model.parameters.as_ref().map(json_text),
    }
}

fn policy_to_wire(policy: &Policy) -> v1::Policy {
    let on_lease_lost = match policy.on_lease_lost {
        None => v1::OnLeaseLost::Unspecified,
        Some(OnLeaseLost::Retry) => v1::OnLeaseLost::Retry,
        Some(OnLeaseLost::Fail) => v1::OnLeaseLost::Fail,
    };
    v1::Policy {
        attempts: policy.attempts,
        backoff_ms: policy.backoff_ms,
        max_backoff_ms: policy.max_backoff_ms,
        run_timeout_ms: policy.run_timeout_ms,
        cold_timeout_ms: policy.cold_timeout_ms,
        deadline_ms: policy.deadline_ms,
        on_lease_lost: on_lease_lost.into(),
        max_leased: policy.max_leased,
        max_leased_per_model: policy.max_leased_per_model,
        max_leased_per_region: policy.max_leased_per_region,
        require_reported_region: policy.require_reported_region,
        weight: policy.weight,
        priority: policy.priority,
    }
}

fn json_text(object: &Object) -> String {
    // RFC 8785 JSON is UTF-8.
    String::from_utf8_lossy(&canonical(object)).into_owned()
}

fn read(spec: &v1::JobSpec, c: &mut Collector<'_>) -> JobSpec {
    let root = Path::Root;
    let questions = root.key("questions");
    let models = root.key("models");
    let read_question = |(index, question): (usize, &v1::Question)| {
        let path = questions.index(index);
        Question {
            id: question.id.clone(),
            prompt: question.prompt.clone(),
            messages: question.messages.iter().map(message).collect(),
            metadata: object(question.metadata_json.as_deref(), &path.key("metadata"), c),
        }
    };
    JobSpec {
        questions: spec.questions.iter().enumerate().map(read_question).collect(),
        models: spec
            .models
            .iter()
            .enumerate()
            .map(|(index, model)| read_model(model, &models.index(index), c))
            .collect(),
        repeat: spec.repeat,
        regions: spec.regions.iter().map(region).collect(),
        system_prompt: spec.system_prompt.clone(),
        parameters: object(spec.parameters_json.as_deref(), &root.key("parameters"), c),
        policy: spec.policy.as_ref().map(|policy| read_policy(policy, &root.key("policy"), c)),
        metadata: object(spec.metadata_json.as_deref(), &root.key("metadata"), c),
    }
}

fn message(message: &v1::Message) -> Message {
    Message { content: message.content.clone(), role: message.role.clone() }
}

fn region(region: &v1::RegionSettings) -> RegionSettings {
    RegionSettings { id: region.id.clone(), system_prompt: region.system_prompt.clone() }
}

fn read_model(model: &v1::Model, path: &Path<'_>, c: &mut Collector<'_>) -> Model {
    let parameters = path.key("parameters");
    Model {
        id: model.id.clone(),
        model: model.model.clone(),
        accept_models: model.accept_models.clone(),
        regions: model.regions.clone(),
        parameters: object(model.parameters_json.as_deref(), &parameters, c),
    }
}

fn read_policy(policy: &v1::Policy, path: &Path<'_>, c: &mut Collector<'_>) -> Policy {
    let on_lease_lost = match v1::OnLeaseLost::try_from(policy.on_lease_lost) {
        Ok(v1::OnLeaseLost::Unspecified) => None,
        Ok(v1::OnLeaseLost::Retry) => Some(OnLeaseLost::Retry),
        Ok(v1::OnLeaseLost::Fail) => Some(OnLeaseLost::Fail),
        Err(_) => {
            let value = Some(policy.on_lease_lost.to_string());
            let help = "send ON_LEASE_LOST_RETRY or ON_LEASE_LOST_FAIL";
            let path = path.key("on_lease_lost");
            c.unread(&path, Default::default(), value, ("is no known choice", help));
            None
        }
    };
    Policy {
        attempts: policy.attempts,
        backoff_ms: policy.backoff_ms,
        max_backoff_ms: policy.max_backoff_ms,
        run_timeout_ms: policy.run_timeout_ms,
        cold_timeout_ms: policy.cold_timeout_ms,
        deadline_ms: policy.deadline_ms,
        on_lease_lost,
        max_leased: policy.max_leased,
        max_leased_per_model: policy.max_leased_per_model,
        max_leased_per_region: policy.max_leased_per_region,
        require_reported_region: policy.require_reported_region,
        weight: policy.weight,
        priority: policy.priority,
    }
}

/// The object in a JSON text; places in a fault are places in that text.
fn object(text: Option<&str>, path: &Path<'_>, c: &mut Collector<'_>) -> Option<Object> {
    let source = Source::default();
    match json::read(text?) {
        Ok(node) => match &node.value {
            Value::Map(entries) => return Some(entries_to_json(entries, path, &source, c)),
            value => {
                let problem = format!("is {}, not an object", value.kind());
                let help = "send the text of a JSON object";
                c.unread(path, source.spot(node.place), shown(value), (&problem, help));
            }
        },
        Err(broken) => {
            let what = (broken.problem.as_str(), broken.help.as_str());
            c.unread(path, source.spot(broken.place), None, what);
        }
    }
    None
}
