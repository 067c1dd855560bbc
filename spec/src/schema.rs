//! The JSON Schema of the job file, for editors. The reader's own key lists stand behind it: a test
//! holds the two together.

use serde_json::{Value, json};

use crate::{
    MAX_ATTEMPTS, MAX_ID_BYTES, MAX_PRIORITY, MAX_REPEAT, MAX_WEIGHT, OWNED_PARAMETERS, OnLeaseLost, ResolvedPolicy,
    check::in_words,
};

/// The JSON Schema (2020-12) of the job file, as `examples/job.schema.json` has it.
pub fn schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Semel job",
        "description": "A matrix of questions, models and regions, each cell of which is recorded exactly once.",
        "type": "object",
        "additionalProperties": false,
        "required": ["job", "questions", "models"],
        "properties": {
            "job": id("The job's id. Outside the digest: the same file under another id is another job."),
            "questions": {
                "description": "The question axis, in order: a list, or a file of questions.",
                "oneOf": [
                    { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/question" } },
                    { "$ref": "#/$defs/questionFile" },
                ],
            },
            "models": {
                "description": "The model axis, in order.",
                "type": "array",
                "minItems": 1,
                "items": { "$ref": "#/$defs/model" },
            },
            "regions": {
                "description": "Regions and what differs in them. A model that names no regions of its own is asked in all of these.",
                "type": "array",
                "items": {
                    "oneOf": [id("A region's id."), { "$ref": "#/$defs/region" }],
                },
            },
            "system_prompt": text("The system prompt of regions that have none of their own."),
            "parameters": parameters("Parameters of every call (temperature, max_tokens, …). A model's own win over them."),
            "repeat": number("Samples of each question.", 1, i64::from(MAX_REPEAT), 1),
            "policy": { "$ref": "#/$defs/policy" },
            "metadata": object("Anything to keep with the job."),
        },
        "$defs": {
            "question": question(),
            "message": message(),
            "questionFile": question_file(),
            "model": model(),
            "region": region(),
            "policy": policy(),
        },
    })
}

fn question() -> Value {
    json!({
        "description": "A question: either a prompt or a whole conversation.",
        "type": "object",
        "additionalProperties": false,
        "required": ["id"],
        "oneOf": [{ "required": ["prompt"] }, { "required": ["messages"] }],
        "properties": {
            "id": id("The question's id, unique in the job."),
            "prompt": { "description": "The user's prompt.", "type": "string", "minLength": 1 },
            "messages": {
                "description": "A conversation, in place of a prompt.",
                "type": "array",
                "minItems": 1,
                "items": { "$ref": "#/$defs/message" },
            },
            "metadata": object("Anything to keep with the question; exported, never sent to a model."),
        },
    })
}

fn message() -> Value {
    json!({
        "description": "A message of a conversation.",
        "type": "object",
        "additionalProperties": false,
        "required": ["role", "content"],
        "properties": {
            "role": { "description": "Who speaks.", "enum": ["system", "user", "assistant"] },
            "content": text("What is said."),
        },
    })
}

fn question_file() -> Value {
    json!({
        "description": "A file of questions: CSV with a header (other columns become metadata), or JSONL of question objects.",
        "type": "object",
        "additionalProperties": false,
        "required": ["file"],
        "properties": {
            "file": {
                "description": "The file's name, beside the job file.",
                "type": "string",
                "pattern": "\\.([cC][sS][vV]|[jJ][sS][oO][nN][lL]|[nN][dD][jJ][sS][oO][nN])$",
            },
            "id": { "description": "The column of ids.", "type": "string", "default": "id" },
            "prompt": { "description": "The column of prompts.", "type": "string", "default": "prompt" },
        },
    })
}

fn model() -> Value {
    json!({
        "description": "A model and the regions in which it is asked.",
        "type": "object",
        "additionalProperties": false,
        "required": ["id"],
        "properties": {
            "id": id("The model's id, unique in the job."),
            "model": id("The name asked of the provider; the id by default."),
            "accept_models": {
                "description": "Names that the endpoint may say it served, beside the one asked for.",
                "type": "array",
                "items": { "type": "string" },
            },
            "regions": {
                "description": "The regions in which this model is asked; all that the job lists by default.",
                "type": "array",
                "minItems": 1,
                "uniqueItems": true,
                "items": id("A region's id."),
            },
            "parameters": parameters("Parameters of this model's calls."),
        },
    })
}

fn region() -> Value {
    json!({
        "description": "A region and what differs in it.",
        "type": "object",
        "additionalProperties": false,
        "required": ["id"],
        "properties": {
            "id": id("The region's id."),
            "system_prompt": text("Its system prompt. An empty one sends none, whatever the job's."),
        },
    })
}

fn policy() -> Value {
    let default = ResolvedPolicy::default();
    let retry = OnLeaseLost::Retry.as_str();
    let most = i64::from(u32::MAX);
    json!({
        "description": "How the job runs.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "attempts": number(
                "Attempts that count, for each cell.", 1, i64::from(MAX_ATTEMPTS), i64::from(default.attempts),
            ),
            "backoff": duration("The wait after the first failed attempt, doubled after each; to 1 day.", default.backoff_ms),
            "max_backoff": duration("The longest wait; to 1 day.", default.max_backoff_ms),
            "run_timeout": duration("The time that a run may take on a warm model; to 1 day.", default.run_timeout_ms),
            "cold_timeout": duration("The time that a run may take on a model that is not warm yet; to 1 day.", default.cold_timeout_ms),
            "deadline": duration("The time from the submission after which the job expires; to 10 years.", default.deadline_ms),
            "on_lease_lost": {
                "description": "What happens to a cell whose lease is lost: run again, or recorded as failed and never run again.",
                "enum": [retry, OnLeaseLost::Fail.as_str()],
                "default": retry,
            },
            "max_leased": cap("Cells of this job leased at once.", most),
            "max_leased_per_model": cap("Cells of one model leased at once.", most),
            "max_leased_per_region": cap("Cells of one region leased at once.", most),
            "require_reported_region": {
                "description": "Whether a result counts only if the endpoint reported the region that served it.",
                "type": "boolean",
                "default": default.require_reported_region,
            },
            "weight": number(
                "The job's share beside others of its priority.", 1, i64::from(MAX_WEIGHT), i64::from(default.weight),
            ),
            "priority": number(
                "Jobs of a higher priority go first.", -i64::from(MAX_PRIORITY), i64::from(MAX_PRIORITY), i64::from(default.priority),
            ),
        },
    })
}

/// Length in a schema is counted in characters and an id's in bytes: the schema is the laxer one.
fn id(description: &str) -> Value {
    json!({ "description": description, "type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES })
}

fn text(description: &str) -> Value {
    json!({ "description": description, "type": "string" })
}

fn object(description: &str) -> Value {
    json!({ "description": description, "type": "object" })
}

fn parameters(description: &str) -> Value {
    let owned: Vec<_> = OWNED_PARAMETERS.iter().map(|name| json!({ "required": [name] })).collect();
    json!({ "description": description, "type": "object", "not": { "anyOf": owned } })
}

fn number(description: &str, least: i64, most: i64, default: i64) -> Value {
    json!({
        "description": description, "type": "integer",
        "minimum": least, "maximum": most, "default": default,
    })
}

fn cap(description: &str, most: i64) -> Value {
    json!({ "description": description, "type": "integer", "minimum": 1, "maximum": most })
}

fn duration(description: &str, default_ms: u64) -> Value {
    json!({
        "description": format!("{description} A number and a unit: 500ms, 30s, 5m, 2h, 30days."),
        "type": "string",
        "pattern": "^\\s*[0-9]",
        "default": in_words(default_ms),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::document::{FILE_KEYS, JOB_KEYS, MESSAGE_KEYS, MODEL_KEYS, POLICY_KEYS, QUESTION_KEYS, REGION_KEYS};

    #[test]
    fn the_schema_knows_the_keys_that_the_reader_knows() {
        let schema = schema();
        let pairs: [(&str, &[&str]); 7] = [
            ("", &JOB_KEYS),
            ("/$defs/question", &QUESTION_KEYS),
            ("/$defs/message", &MESSAGE_KEYS),
            ("/$defs/questionFile", &FILE_KEYS),
            ("/$defs/model", &MODEL_KEYS),
            ("/$defs/region", &REGION_KEYS),
            ("/$defs/policy", &POLICY_KEYS),
        ];
        for (pointer, keys) in pairs {
            let object = schema.pointer(pointer).expect(pointer);
            let properties = object["properties"].as_object().expect(pointer);
            let described: BTreeSet<_> = properties.keys().map(String::as_str).collect();
            let known: BTreeSet<_> = keys.iter().copied().collect();
            assert_eq!(described, known, "{pointer}");
        }
    }
}
