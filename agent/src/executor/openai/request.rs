//! What a call says: its body, made of the frozen input, and the headers that say whose it is.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

use super::super::Task;
use super::super::input::Input;

/// The longest idempotency key that common providers take, in bytes. A longer one is replaced by its digest.
const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;

/// What the executor itself says in a call, and parameters can't say differently.
const RESERVED_PARAMETERS: [&str; 4] = ["messages", "model", "stream", "stream_options"];

/// The body of a call: the input's messages and model and each of its parameters, in the input's own bytes.
pub(super) fn body(input: &[u8]) -> Result<Vec<u8>, String> {
    let input_size = input.len();
    let input = Input::parse(input)?;
    let mut body = Vec::with_capacity(input_size + 64);
    body.extend_from_slice(b"{\"model\":");
    body.extend_from_slice(input.model.get().as_bytes());
    body.extend_from_slice(b",\"messages\":");
    body.extend_from_slice(input.messages.get().as_bytes());
    for (name, value) in &input.parameters {
        if RESERVED_PARAMETERS.contains(&name.as_ref()) {
            return Err(format!("the parameter {name:?} is not the job's to set; leave it out of parameters"));
        }
        body.push(b',');
        body.extend_from_slice(serde_json::to_string(name).map_err(|error| error.to_string())?.as_bytes());
        body.push(b':');
        body.extend_from_slice(value.get().as_bytes());
    }
    body.push(b'}');
    Ok(body)
}

/// The headers that say which execution and attempt a call belongs to.
pub(super) fn headers(task: &Task) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Percent-encoded ASCII or a digest in hexadecimal: always a header's value.
    if let Ok(key) = HeaderValue::try_from(idempotency_key(task)) {
        headers.insert("idempotency-key", key);
    }
    headers.insert("x-semel-attempt", HeaderValue::from(task.attempt));
    headers.insert("x-semel-fencing-token", HeaderValue::from(task.fencing_token));
    headers
}

/// The idempotency key of an attempt's call: the parts of its execution key percent-encoded, its attempt's number and
/// its fencing token, joined by slashes, or the SHA-256 of that where it is too long.
///
/// It is the same however often the call of one attempt is sent, as when its connection closes before it is known
/// whether the provider saw it: the provider must not run that twice. It is another for the next attempt, because a
/// provider that honours it would give the failed answer again. A number of an attempt that has started is never given
/// again, not by an operator's retry either; the fencing token tells it from the attempt of that number in another
/// store, where a job of the same name may ask the same cells.
fn idempotency_key(task: &Task) -> String {
    let Task { key, attempt, fencing_token, .. } = task;
    let mut text = String::new();
    for part in [&key.namespace, &key.job_id, &key.region, &key.model, &key.question] {
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
        text.push('/');
    }
    text.push_str(&format!("{}/{attempt}/{fencing_token}", key.repeat));
    if text.len() > MAX_IDEMPOTENCY_KEY_BYTES {
        let digest = Sha256::digest(text.as_bytes());
        text = format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use semel_proto::v1 as pb;

    use super::*;

    fn task(question: &str) -> Task {
        let key = pb::ExecutionKey {
            namespace: "default".into(),
            job_id: "j/1".into(),
            region: "us-east".into(),
            model: "m:1b".into(),
            question: question.into(),
            repeat: 2,
        };
        let (attempt, fencing_token) = (3, u64::MAX);
        let input = Default::default();
        Task { input, key, attempt, fencing_token, remaining: Duration::ZERO, max_output_bytes: 0 }
    }

    #[test]
    fn keys_that_differ_only_in_where_a_slash_stands_have_different_idempotency_keys() {
        let key = idempotency_key(&task("q 1"));
        assert_eq!(key, "default/j%2F1/us-east/m%3A1b/q%201/2/3/18446744073709551615");
    }

    #[test]
    fn an_idempotency_key_fits_every_header_and_is_another_for_each_attempt_however_long_its_parts_are() {
        let long = task(&"ü".repeat(127));
        let key = idempotency_key(&long);
        assert!(key.starts_with("sha256:") && key.len() == 71, "{key}");
        assert_eq!(idempotency_key(&long), key);
        let next = Task { attempt: 4, ..long.clone() };
        let elsewhere = Task { fencing_token: 1, ..long };
        for other in [task(&"ö".repeat(127)), next, elsewhere] {
            assert_ne!(idempotency_key(&other), key);
        }
    }

    #[test]
    fn a_call_has_the_bytes_of_its_input() {
        let input = br#"{"messages":[{"content":"\u00e4 1.0","role":"user"}],"model":"m","parameters":{"seed":9007199254740993,"temperature":1E-7}}"#;
        let body = String::from_utf8(body(input).unwrap()).unwrap();
        assert_eq!(
            body,
            r#"{"model":"m","messages":[{"content":"\u00e4 1.0","role":"user"}],"seed":9007199254740993,"temperature":1E-7}"#
        );
    }

    #[test]
    fn parameters_cannot_replace_what_was_asked_of_whom() {
        for name in RESERVED_PARAMETERS {
            let input = format!(r#"{{"messages":[],"model":"m","parameters":{{"{name}":true}}}}"#);
            assert!(body(input.as_bytes()).unwrap_err().contains(name));
        }
    }
}
