//! One cell whole.

use semel_proto::v1 as pb;
use serde_json::{Value, json};

use crate::{
    attendance::{Attendance, GOES_ON, NOTHING_RUNS},
    json,
    table::indented,
    terminal::{shown, shown_bytes, shown_lines},
    words,
};

/// Bytes of a text that are shown; `--output json` and `semel export` have all.
const MAX_SHOWN_BYTES: usize = 64 << 10;

/// Columns before a failure's message of several lines.
const MESSAGE_MARGIN: usize = 4;

/// For scripts.
pub fn as_json(key: &pb::ExecutionKey, samples: u32, answer: &pb::GetExecutionResponse, there: &Attendance) -> Value {
    let wait = (answer.execution.is_none()).then(|| there.reason(answer.wait_reason()));
    let execution = answer.execution.as_ref().map(|execution| {
        let mut value = json::execution(execution);
        json::bytes(&mut value, "response", &execution.response, !execution.response.is_empty());
        value
    });
    json!({
        "repeat": key.repeat,
        "samples": samples,
        "input": json::input(&answer.input),
        "input_digest": words::hex(&answer.input_digest),
        "execution": execution,
        "wait_reason": wait,
        "wait_detail": json::some(&answer.wait_detail),
        "attempts": answer.attempts.iter().map(json::attempt).collect::<Vec<_>>(),
    })
}

/// For people. Nothing in it does anything to a terminal.
pub fn as_text(key: &pb::ExecutionKey, samples: u32, answer: &pb::GetExecutionResponse, there: &Attendance) -> String {
    let mut lines = vec![format!(
        "{} · {} · {} · {} · {}",
        shown(&key.job_id),
        shown(&key.region),
        shown(&key.model),
        shown(&key.question),
        key.repeat
    )];
    if samples > 1 {
        lines.push(format!("sample     {} of {samples}; --repeat picks another, 0 to {}", key.repeat, samples - 1));
    }
    match &answer.execution {
        Some(execution) => record(execution, &mut lines),
        None => {
            let detail = json::some(&answer.wait_detail).map(|words| format!(": {}", shown(words))).unwrap_or_default();
            let reason = answer.wait_reason();
            let on = match reason {
                pb::WaitReason::Leased if !there.is_running() => {
                    format!("; {NOTHING_RUNS}: the lease is kept for its agent, and {GOES_ON}")
                }
                reason if there.is_nobody_missing(reason) => format!("; {GOES_ON}"),
                _ => String::new(),
            };
            lines.push(format!("not done: {}{detail}{on}", there.because(reason)));
        }
    }
    lines.push(format!("input ({})", words::hex(&answer.input_digest)));
    lines.push(indented(&block(&pretty(&answer.input)), 2));
    if let Some(execution) = answer.execution.as_ref().filter(|e| e.status() == pb::ExecutionStatus::Succeeded) {
        lines.push(format!("answer ({} bytes, {})", execution.output.len(), words::hex(&execution.output_digest)));
        lines.push(indented(&block(&execution.output), 2));
    }
    if !answer.attempts.is_empty() {
        lines.push("attempts that did not go well".to_owned());
        lines.extend(answer.attempts.iter().map(|entry| indented(&attempt(entry), 2)));
    }
    lines.join("\n")
}

fn record(execution: &pb::Execution, lines: &mut Vec<String>) {
    let mut line = |name: &str, words: String| lines.push(format!("{name:<9}  {words}"));
    let at = execution.recorded_at.as_ref().and_then(words::time).unwrap_or_default();
    line("status", format!("{}, recorded {at}", words::status(execution.status())));
    if let Some(failure) = &execution.failure {
        line("failure", self::failure(failure));
    }
    if let Some(served) = &execution.served {
        let model = json::some(&served.model).map(|model| format!("model {} ", shown(model))).unwrap_or_default();
        let (region, basis) = (shown(&served.region), words::region_basis(served.region_basis()));
        let by = format!("{} by {}", shown(&served.endpoint), shown(&served.executor));
        line("served", format!("{model}in {region} ({basis}), {by}"));
        if let Some(request) = json::some(&served.request_id) {
            line("request", shown(request));
        }
    }
    if let Some(reason) = json::some(&execution.finish_reason) {
        line("finished", shown(reason));
    }
    if let Some(usage) = &execution.usage {
        let tokens = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
        line("usage", format!("{} tokens in, {} out", tokens(usage.prompt_tokens), tokens(usage.completion_tokens)));
    }
    if let Some(timings) = &execution.timings {
        let first = timings.first_byte_ms.map(|ms| format!(", first byte after {ms} ms")).unwrap_or_default();
        line("times", format!("waited {} ms, ran {} ms{first}", timings.waited_ms, timings.ran_ms));
    }
    let (attempt, agent, token) = (execution.attempt, shown(&execution.agent_id), shown(&execution.fencing_token));
    line("attempt", format!("{attempt}, on agent {agent}, fencing token {token}"));
}

fn failure(failure: &pb::Failure) -> String {
    let stage = words::stage(failure.stage()).map(|stage| format!(" at {stage}")).unwrap_or_default();
    let code =
        words::failure_code(failure.reason(), &failure.code).map(|code| format!(" ({code})")).unwrap_or_default();
    let message = match failure.message.trim_ascii_end() {
        b"" => String::new(),
        line if !line.contains(&b'\n') => format!(": {}", shown_bytes(line)),
        lines => format!(":\n{}", indented(&block(lines), MESSAGE_MARGIN)),
    };
    format!("{}{stage}{code}{message}", words::failure_reason(failure.reason()))
}

fn attempt(attempt: &pb::Attempt) -> String {
    let number = if attempt.attempt == 0 { "?".to_owned() } else { attempt.attempt.to_string() };
    let counted = if attempt.counted { "counted" } else { "not counted" };
    let company = if attempt.in_company { ", with others of its agent" } else { "" };
    let at = attempt.ended_at.as_ref().and_then(words::time).unwrap_or_default();
    let mut text = format!(
        "{number}: {} {at}, {counted}{company}, on agent {}, fencing token {}",
        words::attempt_kind(attempt.kind()),
        shown(&attempt.agent_id),
        shown(&attempt.fencing_token)
    );
    if let Some(why) = words::receipt_reason(attempt.fenced()) {
        text.push_str(&format!("\n  refused: {why}"));
    }
    if let Some(failure) = &attempt.failure {
        text.push_str(&format!("\n  {}", self::failure(failure)));
    }
    if !attempt.output.is_empty() {
        text.push_str(&format!("\n  answered:\n{}", indented(&block(&attempt.output), 4)));
    }
    text
}

fn block(bytes: &[u8]) -> String {
    match bytes.get(..MAX_SHOWN_BYTES) {
        Some(head) if head.len() < bytes.len() => {
            format!("{}…\n({} bytes in all; --output json has them)", shown_lines(head), bytes.len())
        }
        _ if bytes.is_empty() => "(nothing)".to_owned(),
        _ => shown_lines(bytes),
    }
}

/// JSON laid out; as it is where it is none.
fn pretty(json: &[u8]) -> Vec<u8> {
    let value: Result<Value, _> = serde_json::from_slice(json);
    value.and_then(|value| serde_json::to_vec_pretty(&value)).unwrap_or_else(|_| json.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_terminal_escapes_is_shown_and_does_nothing() {
        let attack = "ok\n\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}5m\rback\u{202e}";
        let answer = pb::GetExecutionResponse {
            input: "{\"messages\":[{\"content\":\"\u{1b}[1m\",\"role\":\"user\"}]}".into(),
            execution: Some(pb::Execution {
                status: pb::ExecutionStatus::Succeeded.into(),
                output: attack.into(),
                finish_reason: "\u{1b}c".to_owned(),
                ..Default::default()
            }),
            attempts: vec![pb::Attempt {
                failure: Some(pb::Failure { message: attack.into(), code: "\u{7}".to_owned(), ..Default::default() }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let key = pb::ExecutionKey { job_id: "j\u{1b}[3m".to_owned(), ..Default::default() };
        let text = as_text(&key, 3, &answer, &Attendance::Coordinator(None));
        assert!(text.chars().all(|c| c == '\n' || (!c.is_control() && c != '\u{202e}')), "{text:?}");
        assert!(text.contains("\\u{1b}]0;owned\\u{7}"), "{text}");
    }
}
