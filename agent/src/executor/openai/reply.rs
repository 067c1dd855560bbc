//! What an endpoint's reply means: the answer in a good one, the outcome of a bad one, the models in a list.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use semel_proto::v1 as pb;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::text::{Text, repair_surrogates, shorten};
use super::super::{Outcome, failure};

/// The longest time that a Retry-After is believed. A longer one is a clock that is wrong.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The longest region, in bytes, as the longest id. A longer one is cut, and is then none that was asked for.
const MAX_REGION_BYTES: usize = 255;

/// The longest text of finish reason, model and request id, in bytes.
const MAX_LABEL_BYTES: usize = 1024;

/// How many of the endpoint's models a message names.
const MODELS_NAMED: usize = 5;

/// An answer as it was read.
#[derive(Debug, PartialEq)]
pub(super) struct Chat {
    pub(super) output: Vec<u8>,
    pub(super) finish_reason: String,
    pub(super) model: String,
    pub(super) id: String,
    pub(super) usage: Option<pb::Usage>,
}

/// What a body of status 2xx is.
#[derive(Debug, PartialEq)]
pub(super) enum Reading {
    Chat(Chat),
    /// An error after all, to be read as one of this status.
    Error(u16),
    /// Not what an OpenAI-compatible endpoint answers, and why.
    Unreadable(String),
}

#[derive(Deserialize)]
struct Body<'a> {
    id: Option<Text>,
    model: Option<Text>,
    choices: Option<Vec<Choice>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Message>,
    finish_reason: Option<Text>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Text>,
    refusal: Option<Text>,
}

/// Reads `choices[0]`. A refusal in a field of its own is the output where there is no content.
pub(super) fn read(body: &[u8]) -> Reading {
    let repaired = repair_surrogates(body);
    let body: Body = match serde_json::from_slice(&repaired) {
        Ok(body) => body,
        Err(error) => return Reading::Unreadable(error.to_string()),
    };
    let Some(choice) = body.choices.unwrap_or_default().into_iter().next() else {
        return match body.error {
            Some(error) => Reading::Error(status_in(error)),
            None => Reading::Unreadable("it has no choices".to_owned()),
        };
    };
    let Some(message) = choice.message else { return Reading::Unreadable("choices[0] has no message".to_owned()) };
    Reading::Chat(Chat {
        output: message.content.or(message.refusal).unwrap_or_default().0,
        finish_reason: label(choice.finish_reason),
        model: label(body.model),
        id: label(body.id),
        usage: body.usage.and_then(usage),
    })
}

fn label(text: Option<Text>) -> String {
    shorten(text.unwrap_or_default().into_string(), MAX_LABEL_BYTES)
}

/// Token counts, where they are counts. An answer isn't thrown away over them.
fn usage(json: &RawValue) -> Option<pb::Usage> {
    let counts: Value = serde_json::from_str(json.get()).ok()?;
    let count = |name| counts.get(name).and_then(Value::as_u64);
    let usage = pb::Usage { prompt_tokens: count("prompt_tokens"), completion_tokens: count("completion_tokens") };
    (usage.prompt_tokens.is_some() || usage.completion_tokens.is_some()).then_some(usage)
}

/// Gateways answer 200 and put the status of whoever failed behind them into `error.code`.
fn status_in(error: &RawValue) -> u16 {
    const BAD_GATEWAY: u16 = 502;
    let code = serde_json::from_str::<Value>(error.get()).ok().and_then(|error| error.get("code")?.as_u64());
    code.and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code)).unwrap_or(BAD_GATEWAY)
}

/// The text of the header `name`, if it is configured, there, and says something.
pub(super) fn header(headers: &HeaderMap, name: Option<&HeaderName>) -> Option<String> {
    let text = String::from_utf8_lossy(headers.get(name?)?.as_bytes()).trim().to_owned();
    (!text.is_empty()).then(|| shorten(text, MAX_REGION_BYTES))
}

/// The text at `pointer` in `body`, if it is configured, there, and says something.
pub(super) fn at_pointer(body: &[u8], pointer: Option<&str>) -> Option<String> {
    let pointer = pointer?;
    let repaired = repair_surrogates(body);
    let body: Value = serde_json::from_str(&String::from_utf8_lossy(&repaired)).ok()?;
    let text = body.pointer(pointer)?.as_str()?.trim().to_owned();
    (!text.is_empty()).then(|| shorten(text, MAX_REGION_BYTES))
}

/// The provider's id of the request, empty where no header has one.
pub(super) fn request_id(headers: &HeaderMap) -> String {
    let id = headers.get("x-request-id").map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
    shorten(id.unwrap_or_default(), MAX_LABEL_BYTES)
}

/// An error as the endpoint words it.
pub(super) struct ErrorReply {
    status: u16,
    body: Vec<u8>,
    parsed: Value,
    retry_after: Option<Duration>,
    location: Option<String>,
}

impl ErrorReply {
    /// `body` is free of keys.
    pub(super) fn new(status: u16, headers: &HeaderMap, body: Vec<u8>) -> Self {
        let parsed = serde_json::from_str(&String::from_utf8_lossy(&repair_surrogates(&body))).unwrap_or_default();
        let location = headers.get(LOCATION).map(|location| String::from_utf8_lossy(location.as_bytes()).into_owned());
        Self { status, body, parsed, retry_after: retry_after(headers), location }
    }

    /// The status and the provider's words, for people.
    pub(super) fn words(&self) -> String {
        if let (300..=399, Some(location)) = (self.status, &self.location) {
            return format!(
                "answers {} and sends on to {location}; redirects are not followed: put the right address into base_url",
                self.status
            );
        }
        let said = ["/error/message", "/error", "/message", "/detail"]
            .iter()
            .find_map(|place| self.parsed.pointer(place)?.as_str());
        let said = said.map_or_else(|| String::from_utf8_lossy(&self.body).trim().to_owned(), str::to_owned);
        if said.is_empty() { format!("answers {}", self.status) } else { format!("answers {}: {said}", self.status) }
    }

    /// What the error means for its cell. `message` puts words for people into their bound.
    pub(super) fn outcome(self, message: impl Fn(&str) -> String, served: pb::Served) -> Outcome {
        let (reason, retryable) = match self.status {
            429 => return Outcome::RateLimited { retry_after: self.retry_after, message: message(&self.words()) },
            // The address, the key, the account or the model's name: nothing that the cell could do better.
            300..=399 | 401..=405 | 407 => return Outcome::Misconfigured { message: message(&self.words()) },
            400 if self.names_no_model() => return Outcome::Misconfigured { message: message(&self.words()) },
            408 | 409 | 425 | 500..=599 => (pb::FailureReason::ProviderError, true),
            _ => (pb::FailureReason::ProviderRefused, false),
        };
        let words = if self.body.is_empty() { message(&self.words()).into_bytes() } else { self.body };
        let mut failure = failure::new(reason, pb::Stage::Run, self.status.to_string(), words, retryable);
        failure.retry_after_ms =
            self.retry_after.filter(|_| retryable).and_then(|after| u64::try_from(after.as_millis()).ok());
        Outcome::Failure(failure, Some(served))
    }

    fn names_no_model(&self) -> bool {
        self.parsed.pointer("/error/code").and_then(Value::as_str) == Some("model_not_found")
    }
}

/// How long the provider asks to be left alone: `retry-after-ms`, else Retry-After in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let seconds = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok();
    let after = if let Some(ms) = text("retry-after-ms").and_then(seconds) {
        ms / 1000
    } else {
        let text = text(RETRY_AFTER.as_str())?;
        seconds(text).or_else(|| until(text))?
    };
    Some(after.min(MAX_RETRY_AFTER))
}

/// The time from now until an HTTP date; none for one that has passed.
fn until(date: &str) -> Option<Duration> {
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or_default())
}

/// Whether the endpoint's list of models has `model`. A reply that is no list says nothing either way.
pub(super) fn find_model(list: &[u8], model: &str) -> Result<(), String> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        id: String,
        #[serde(default)]
        aliases: Vec<String>,
    }
    let Ok(List { data }) = serde_json::from_slice(list) else { return Ok(()) };
    // Ollama takes a name without a tag and lists it with one.
    let latest = format!("{model}:latest");
    if data
        .iter()
        .any(|entry| entry.id == model || entry.id == latest || entry.aliases.iter().any(|alias| alias == model))
    {
        return Ok(());
    }
    if data.is_empty() {
        return Err(format!("has no model {model:?}: it lists none at all"));
    }
    let known: Vec<&str> = data.iter().take(MODELS_NAMED).map(|entry| entry.id.as_str()).collect();
    let more = if data.len() > known.len() { format!(" and {} more", data.len() - known.len()) } else { String::new() };
    Err(format!("has no model {model:?}; it has {}{more}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn retry_after_is_read_in_seconds_in_milliseconds_and_as_a_date() {
        assert_eq!(retry_after(&headers("retry-after", "20")), Some(Duration::from_secs(20)));
        assert_eq!(retry_after(&headers("retry-after", " 1.5 ")), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after(&headers("retry-after-ms", "250")), Some(Duration::from_millis(250)));
        assert_eq!(retry_after(&headers("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")), Some(Duration::ZERO));
        let ahead = jiff::Timestamp::now() + Duration::from_secs(3600);
        let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&ahead).unwrap();
        let after = retry_after(&headers("retry-after", &date)).unwrap();
        assert!((3590..=3600).contains(&after.as_secs()), "{date}: {after:?}");
    }

    #[test]
    fn a_retry_after_that_makes_no_sense_is_none_or_bounded() {
        for nonsense in ["soon", "-1", "NaN", ""] {
            assert_eq!(retry_after(&headers("retry-after", nonsense)), None, "{nonsense}");
        }
        assert_eq!(retry_after(&headers("retry-after", "99999999999999")), Some(MAX_RETRY_AFTER));
    }

    #[test]
    fn an_answer_keeps_its_text_when_its_usage_makes_no_sense() {
        let Reading::Chat(chat) = read(br#"{"choices":[{"message":{"content":"ok"}}],"usage":"free"}"#) else {
            panic!()
        };
        assert_eq!((chat.output.as_slice(), chat.usage), (&b"ok"[..], None));
    }

    #[test]
    fn an_error_behind_a_gateway_has_the_status_that_its_code_names() {
        assert_eq!(read(br#"{"error":{"code":429,"message":"slow down"}}"#), Reading::Error(429));
        assert_eq!(read(br#"{"error":"broken"}"#), Reading::Error(502));
    }

    #[test]
    fn a_model_is_found_by_its_id_its_alias_and_without_the_tag_latest() {
        let list = br#"{"data":[{"id":"mistral:latest"},{"id":"a.gguf","aliases":["smol"]}]}"#;
        for model in ["mistral", "mistral:latest", "a.gguf", "smol"] {
            assert_eq!(find_model(list, model), Ok(()), "{model}");
        }
        let fault = find_model(list, "mistra").unwrap_err();
        assert!(fault.contains("\"mistra\"") && fault.contains("mistral:latest, a.gguf"), "{fault}");
        assert_eq!(find_model(b"<html>", "x"), Ok(()));
    }
}
