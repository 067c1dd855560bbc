//! The JSON of `--output json`, which scripts may build on: keys in snake_case, words in lower case, times as
//! RFC 3339 in UTC, digests in hex, 64-bit tokens as decimal strings, what isn't known as null. Bytes that are no
//! UTF-8 stand under the same key with `_base64`, and null under the key itself. Keys are only ever added.

use base64::{Engine, prelude::BASE64_STANDARD};
use semel_proto::v1 as pb;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{attendance::Attendance, words};

/// The counts of a job, or of one model in one region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Cells of the matrix.
    pub expected: u64,
    /// Cells with a record.
    pub recorded: u64,
    /// Of those, how many failed.
    pub failed: u64,
    /// Cells that an agent has.
    pub leased: u64,
    /// Cells that wait.
    pub pending: u64,
    /// Cells of a closed job that will not run.
    pub not_run: u64,
}

impl From<pb::Counts> for Counts {
    fn from(counts: pb::Counts) -> Self {
        let pb::Counts { expected, recorded, failed, leased, pending, not_run } = counts;
        Self { expected, recorded, failed, leased, pending, not_run }
    }
}

/// A job as it stands.
pub fn job(job: &pb::Job) -> Map<String, Value> {
    let time = |time: &Option<_>| time.as_ref().and_then(words::time);
    let axis = |axis: &pb::AxisCounts| {
        let mut value = object(json!({ "model": axis.model, "region": axis.region }));
        value.extend(counts(axis.counts));
        value
    };
    let mut value = object(json!({
        "namespace": job.namespace,
        "job": job.job_id,
        "state": words::state(job.state()),
        "paused": job.paused,
    }));
    value.extend(counts(job.counts));
    value.extend(object(json!({
        "spec_digest": words::hex(&job.spec_digest),
        "submitted_at": time(&job.submitted_at),
        "deadline_at": time(&job.deadline_at),
        "completed_at": time(&job.completed_at),
        "closed_at": time(&job.closed_at),
    })));
    if !job.by_axis.is_empty() {
        value.insert("by_axis".to_owned(), job.by_axis.iter().map(axis).map(Value::Object).collect());
    }
    value
}

fn counts(counts: Option<pb::Counts>) -> Map<String, Value> {
    object(json!(Counts::from(counts.unwrap_or_default())))
}

/// Cells that wait for one reason, as it is with who is there.
pub fn group(group: &pb::PendingGroup, there: &Attendance) -> Value {
    json!({
        "model": group.model,
        "region": group.region,
        "reason": there.reason(group.reason()),
        "detail": group.detail,
        "cells": group.cells,
        "until_ms": group.until_ms,
    })
}

/// A record.
pub fn execution(execution: &pb::Execution) -> Map<String, Value> {
    let key = execution.key.clone().unwrap_or_default();
    let mut value = object(json!({
        "namespace": key.namespace,
        "job": key.job_id,
        "region": key.region,
        "model": key.model,
        "question": key.question,
        "repeat": key.repeat,
        "status": words::status(execution.status()),
    }));
    bytes(&mut value, "output", &execution.output, execution.status() == pb::ExecutionStatus::Succeeded);
    let failure = execution.failure.as_ref().map(failure);
    let (usage, timings) = (execution.usage.unwrap_or_default(), execution.timings.unwrap_or_default());
    let served = execution.served.clone().unwrap_or_default();
    value.extend(object(json!({
        "failure": failure,
        "finish_reason": some(&execution.finish_reason),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "served_region": some(&served.region),
        "served_region_basis": words::region_basis(served.region_basis()),
        "served_model": some(&served.model),
        "request_id": some(&served.request_id),
        "endpoint": some(&served.endpoint),
        "executor": some(&served.executor),
        "waited_ms": timings.waited_ms,
        "ran_ms": timings.ran_ms,
        "first_byte_ms": timings.first_byte_ms,
        "attempt": execution.attempt,
        "agent": execution.agent_id,
        "fencing_token": execution.fencing_token,
        "input_digest": words::hex(&execution.input_digest),
        "output_digest": words::hex(&execution.output_digest),
        "recorded_at": execution.recorded_at.as_ref().and_then(words::time),
    })));
    value
}

/// What failed, and why.
pub fn failure(failure: &pb::Failure) -> Map<String, Value> {
    let mut value = object(json!({
        "reason": words::failure_reason(failure.reason()),
        "stage": words::stage(failure.stage()),
        "code": some(&failure.code),
        "retryable": failure.retryable,
    }));
    bytes(&mut value, "message", &failure.message, true);
    value
}

/// An entry of the history.
pub fn attempt(attempt: &pb::Attempt) -> Map<String, Value> {
    let mut value = object(json!({
        "attempt": attempt.attempt,
        "kind": words::attempt_kind(attempt.kind()),
        "counted": attempt.counted,
        "in_company": attempt.in_company,
        "failure": attempt.failure.as_ref().map(failure),
        "fenced": words::receipt_reason(attempt.fenced()),
        "agent": attempt.agent_id,
        "fencing_token": attempt.fencing_token,
        "ended_at": attempt.ended_at.as_ref().and_then(words::time),
    }));
    bytes(&mut value, "output", &attempt.output, !attempt.output_digest.is_empty());
    value
}

/// The frozen input as the JSON that it is.
pub fn input(input: &[u8]) -> Value {
    serde_json::from_slice(input).unwrap_or(Value::Null)
}

/// Puts bytes under `key` if they are UTF-8, else in base64 under `key_base64`. Both keys are always there.
pub fn bytes(into: &mut Map<String, Value>, key: &str, bytes: &[u8], is_there: bool) {
    let (text, encoded) = match std::str::from_utf8(bytes) {
        _ if !is_there => (Value::Null, Value::Null),
        Ok(text) => (text.into(), Value::Null),
        Err(_) => (Value::Null, BASE64_STANDARD.encode(bytes).into()),
    };
    into.insert(key.to_owned(), text);
    into.insert(format!("{key}_base64"), encoded);
}

/// What the contract leaves empty where nothing is known.
pub fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_come_in_base64_and_nothing_is_lost() {
        let mut value = Map::new();
        bytes(&mut value, "output", b"\xff\0", true);
        assert_eq!(Value::Object(value.clone()), json!({ "output": null, "output_base64": "/wA=" }));
        bytes(&mut value, "output", b"", true);
        assert_eq!(Value::Object(value.clone()), json!({ "output": "", "output_base64": null }));
        bytes(&mut value, "output", b"", false);
        assert_eq!(Value::Object(value), json!({ "output": null, "output_base64": null }));
    }

    #[test]
    fn a_fencing_token_is_a_string_and_unknown_is_null() {
        let record = pb::Execution { fencing_token: "9007199254740993".to_owned(), ..Default::default() };
        let value = execution(&record);
        assert_eq!(value["fencing_token"], json!("9007199254740993"));
        assert_eq!(value["served_model"], Value::Null);
    }
}
