//! `openai` against a provider that misbehaves in every way that providers do.

use std::sync::atomic::Ordering;
use std::time::Duration;

use semel_agent::executor::{
    Executor, KeySource, MAX_ERROR_BYTES, MAX_MESSAGE_BYTES, OpenAi, OpenAiSettings, Outcome, Task,
};
use semel_proto::v1::{FailureReason, RegionBasis, Stage, Usage};

use super::provider::{Provider, Reply, response};
use super::{answer, failure, misconfigured, task, until};

const KEY: &str = "sk-hidden-0123456789";

/// An executor that knows the key, over settings that `change` has changed.
fn openai(base_url: &str, change: impl FnOnce(&mut OpenAiSettings)) -> OpenAi {
    let mut settings = OpenAiSettings::new(base_url);
    settings.key = KeySource::from_env(Some(KEY.to_owned())).unwrap();
    change(&mut settings);
    OpenAi::new(settings, "mistral:7b").unwrap()
}

/// What a provider's reply of this status, header lines and body comes to.
async fn outcome(status: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Outcome {
    let provider = Provider::answering(status, headers, body).await;
    openai(&provider.base_url(), |_| ()).execute(task("hi")).await
}

fn chat(content: &str) -> String {
    format!(
        r#"{{"id":"chatcmpl-1","model":"mistral:7b","choices":[{{"message":{{"content":{content}}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}}}"#
    )
}

#[tokio::test]
async fn an_answer_is_read_whole() {
    let body = chat(r#""4""#);
    let provider = Provider::answering("200 OK", &["X-Request-Id: req-9", "x-region: us-east"], &body).await;
    let executor = openai(&provider.base_url(), |settings| settings.region_header = Some("X-Region".into()));
    let answer = answer(executor.execute(task("2 + 2?")).await);
    assert_eq!(answer.output, "4");
    assert_eq!(answer.response, body);
    assert_eq!(answer.finish_reason, "stop");
    assert_eq!(answer.usage, Some(Usage { prompt_tokens: Some(7), completion_tokens: Some(2) }));
    assert_eq!(answer.served_region.as_deref(), Some("us-east"));
    assert_eq!(answer.served_model, "mistral:7b");
    assert_eq!(answer.request_id, "req-9");
    assert_eq!(answer.endpoint, provider.address.to_string());
    assert!(answer.first_byte.is_some());
}

#[tokio::test]
async fn a_call_says_what_runs_for_whom_and_which_attempt_it_is() {
    let provider = Provider::answering("200 OK", &[], chat("\"4\"")).await;
    let executor = openai(&provider.base_url(), |settings| settings.headers = vec![("x-team".into(), "blue".into())]);
    let mut task = task("2 + 2?");
    for attempt in [2, 3] {
        task.attempt = attempt;
        answer(executor.execute(task.clone()).await);
    }
    let requests = provider.requests.lock().unwrap().clone();
    for (request, attempt) in requests.iter().zip([2, 3]) {
        assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{request}");
        for line in [
            &format!("authorization: Bearer {KEY}"),
            &format!("idempotency-key: default/job/us-east/mistral-7b/q%201/3/{attempt}/9223372036854775807"),
            &format!("x-semel-attempt: {attempt}"),
            "x-semel-fencing-token: 9223372036854775807",
            "content-type: application/json",
            "x-team: blue",
        ] {
            assert!(request.contains(&format!("{line}\r\n")), "{line} is not in {request}");
        }
        let (_, body) = request.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["model"], "mistral:7b");
        assert_eq!(body["temperature"], 0.5);
        assert_eq!(body["messages"][1]["content"], "2 + 2?");
    }
    assert_eq!(requests.len(), 2);
}

#[tokio::test]
async fn a_call_sent_again_has_its_attempts_idempotency_key_and_the_next_attempt_another() {
    // Each call ends without an answer: whether the provider ran it is unknown.
    let provider = Provider::start(Reply::Bytes(Vec::new())).await;
    let executor = openai(&provider.base_url(), |_| ());
    let first = task("2 + 2?");
    let next = Task { attempt: first.attempt + 1, fencing_token: first.fencing_token + 64, ..first.clone() };
    let in_another_store = Task { fencing_token: first.fencing_token + 1, ..first.clone() };
    for task in [first.clone(), first, next, in_another_store] {
        assert_eq!(failure(executor.execute(task).await).reason(), FailureReason::Connection);
    }
    let requests = provider.requests.lock().unwrap().clone();
    let key = |request: &String| {
        let line = request.lines().find(|line| line.starts_with("idempotency-key: "));
        line.unwrap_or_else(|| panic!("no idempotency key in {request}")).to_owned()
    };
    let [sent, again, next, in_another_store] = &requests.iter().map(key).collect::<Vec<_>>()[..] else {
        panic!("not four calls: {requests:?}")
    };
    assert_eq!(sent, again);
    assert!(next != sent && in_another_store != sent && in_another_store != next, "{requests:?}");
}

#[tokio::test]
async fn a_key_goes_into_the_header_that_is_named_for_it_and_a_key_file_is_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let provider = Provider::answering("200 OK", &[], chat("\"4\"")).await;
    let executor = openai(&provider.base_url(), |settings| {
        settings.key = KeySource::File(file.clone());
        settings.key_header = Some("api-key".into());
    });
    assert!(misconfigured(executor.execute(task("hi")).await).contains("key file"));
    std::fs::write(&file, "put-right\n").unwrap();
    answer(executor.execute(task("hi")).await);
    assert!(provider.request().contains("api-key: put-right\r\n"));
}

#[tokio::test]
async fn text_comes_through_exactly_and_half_a_surrogate_pair_only_in_the_response() {
    let cases: [(&str, &[u8]); 7] = [
        (r#""a\u0000b""#, b"a\0b"),
        (r#""a\\u0000b""#, br"a\u0000b"),
        (r#""\ud83d\ude00""#, "😀".as_bytes()),
        (r#""a\ud83db""#, "a\u{fffd}b".as_bytes()),
        (r#""""#, b""),
        ("null", b""),
        (r#"null,"refusal":"I won't.""#, b"I won't."),
    ];
    for (content, output) in cases {
        let body = chat(content);
        let answer = answer(outcome("200 OK", &[], &body).await);
        assert_eq!((answer.output.as_ref(), answer.response.as_ref()), (output, body.as_bytes()), "{content}");
    }
    let body = [br#"{"choices":[{"message":{"content":""#, &[0xff, 0xc3][..], br#""}}]}"#].concat();
    assert_eq!(answer(outcome("200 OK", &[], &body).await).output.as_ref(), [0xff, 0xc3]);
}

#[tokio::test]
async fn the_region_that_served_is_read_from_the_body_where_a_pointer_names_it() {
    let body = chat("\"4\"").replacen('{', r#"{"meta":{"served_region":"eu-west"},"#, 1);
    let provider = Provider::answering("200 OK", &[], body).await;
    for (pointer, region) in [("/meta/served_region", Some("eu-west")), ("/meta/other", None), ("/meta", None)] {
        let executor = openai(&provider.base_url(), |settings| settings.region_pointer = Some(pointer.into()));
        assert_eq!(answer(executor.execute(task("hi")).await).served_region.as_deref(), region, "{pointer}");
    }
}

#[tokio::test]
async fn a_response_is_not_kept_where_that_is_switched_off_or_it_is_larger_than_an_output_may_be() {
    let provider = Provider::answering("200 OK", &[], chat("\"4\"")).await;
    let executor = openai(&provider.base_url(), |settings| settings.keep_response = false);
    assert_eq!(answer(executor.execute(task("hi")).await).response, "");
    let mut tight = task("hi");
    tight.max_output_bytes = 1;
    let answer = answer(openai(&provider.base_url(), |_| ()).execute(tight).await);
    assert_eq!((answer.output.as_ref(), answer.response.as_ref()), (&b"4"[..], &b""[..]));
}

#[tokio::test]
async fn an_output_at_the_limit_passes_however_it_is_escaped_and_one_byte_more_fails_for_good() {
    let body = chat(&format!("\"{}\"", r"\u0001".repeat(1024)));
    assert_eq!(answer(outcome("200 OK", &[], body).await).output.len(), 1024);
    let failure = failure(outcome("200 OK", &[], chat(&format!("\"{}\"", "x".repeat(1025)))).await);
    assert_eq!((failure.reason(), failure.retryable), (FailureReason::ResultTooLarge, false));
    let message = String::from_utf8_lossy(&failure.message).into_owned();
    assert!(message.contains("1025 bytes") && message.contains("1024 bytes"), "{message}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off_and_its_connection_closed() {
    let provider = Provider::start(Reply::Endless(b"HTTP/1.1 200 OK\r\n\r\n ".to_vec())).await;
    let failure = failure(openai(&provider.base_url(), |_| ()).execute(task("hi")).await);
    assert_eq!((failure.reason(), failure.retryable), (FailureReason::ResultTooLarge, false));
    until("the connection closes", || provider.aborted.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn dropping_a_call_closes_its_connection_whether_or_not_the_answer_began() {
    for sent in [&b""[..], b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"] {
        let provider = Provider::start(Reply::Hang(sent.to_vec())).await;
        let executor = openai(&provider.base_url(), |_| ());
        let call = tokio::spawn(async move { executor.execute(task("hi")).await });
        until("the request comes", || !provider.requests.lock().unwrap().is_empty()).await;
        call.abort();
        until("the connection closes", || provider.aborted.load(Ordering::SeqCst) == 1).await;
    }
}

#[tokio::test]
async fn too_many_requests_closes_a_gate_for_as_long_as_the_provider_asks() {
    let body = r#"{"error":{"message":"slow down"}}"#;
    for (headers, expected) in [
        (&["Retry-After: 20"][..], Some(Duration::from_secs(20))),
        (&["Retry-After: Sun, 06 Nov 1994 08:49:37 GMT"], Some(Duration::ZERO)),
        (&[], None),
    ] {
        match outcome("429 Too Many Requests", headers, body).await {
            Outcome::RateLimited { retry_after, message } => {
                assert_eq!(retry_after, expected);
                assert!(message.contains("429: slow down"), "{message}");
            }
            other => panic!("{headers:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_key_address_or_model_is_the_agents_fault_in_the_providers_words() {
    let cases = [
        ("401 Unauthorized", r#"{"error":{"message":"no such key"}}"#, "no such key"),
        ("403 Forbidden", r#"{"detail":"not your model"}"#, "not your model"),
        ("404 Not Found", r#"{"error":"model 'm' not found"}"#, "model 'm' not found"),
        ("404 Not Found", "404 page not found", "404 page not found"),
        ("400 Bad Request", r#"{"error":{"code":"model_not_found","message":"unknown"}}"#, "unknown"),
        ("402 Payment Required", "", "402"),
    ];
    for (status, body, words) in cases {
        let message = misconfigured(outcome(status, &[], body).await);
        assert!(message.contains(words) && message.contains("127.0.0.1:"), "{status}: {message}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Provider::answering("200 OK", &[], chat("\"4\"")).await;
    let location = format!("Location: {}", elsewhere.base_url());
    let message = misconfigured(outcome("307 Temporary Redirect", &[&location], "").await);
    assert!(message.contains(&elsewhere.base_url()) && message.contains("base_url"), "{message}");
    assert!(elsewhere.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_or_speaks_no_tls_is_misconfiguration() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let message = misconfigured(openai(&format!("http://127.0.0.1:{port}/v1"), |_| ()).execute(task("hi")).await);
    assert!(message.contains("refused"), "{message}");
    let message = misconfigured(openai("http://no-such-host.invalid/v1", |_| ()).execute(task("hi")).await);
    assert!(message.contains("can't be reached"), "{message}");
    let plain = Provider::answering("400 Bad Request", &[], "").await;
    let address = format!("https://{}/v1", plain.address);
    let executor = openai(&address, |settings| settings.connect_timeout = Duration::from_secs(2));
    assert!(misconfigured(executor.execute(task("hi")).await).contains("can't be reached"));
}

#[tokio::test]
async fn an_input_that_is_refused_fails_for_good_with_the_providers_body() {
    for status in ["400 Bad Request", "413 Payload Too Large", "422 Unprocessable Entity"] {
        let body = r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#;
        let failure = failure(outcome(status, &[], body).await);
        assert_eq!(
            (failure.reason(), failure.retryable, failure.stage()),
            (FailureReason::ProviderRefused, false, Stage::Run),
            "{status}"
        );
        assert_eq!((failure.code.as_str(), failure.message.as_ref()), (&status[..3], body.as_bytes()));
    }
}

#[tokio::test]
async fn a_providers_own_trouble_may_be_tried_again_when_it_says() {
    for status in ["408 Timeout", "409 Conflict", "425 Too Early", "500 Error", "503 Unavailable", "529 Overloaded"] {
        let failure = failure(outcome(status, &["Retry-After: 3"], "trouble").await);
        assert_eq!(
            (failure.reason(), failure.retryable, failure.retry_after_ms),
            (FailureReason::ProviderError, true, Some(3000)),
            "{status}"
        );
        assert_eq!(failure.code, status[..3]);
    }
}

#[tokio::test]
async fn an_error_inside_an_answer_of_200_is_an_error() {
    let failure = failure(outcome("200 OK", &[], r#"{"error":{"code":503,"message":"upstream is down"}}"#).await);
    assert_eq!((failure.reason(), failure.code.as_str()), (FailureReason::ProviderError, "503"));
    assert!(matches!(outcome("200 OK", &[], r#"{"error":{"code":429}}"#).await, Outcome::RateLimited { .. }));
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_may_be_tried_again() {
    let half = response("200 OK", &[], chat("\"4\"").as_bytes());
    for sent in [&b""[..], b"HTTP/1.1 200", &half[..half.len() - 9]] {
        let provider = Provider::start(Reply::Bytes(sent.to_vec())).await;
        let failure = failure(openai(&provider.base_url(), |_| ()).execute(task("hi")).await);
        assert_eq!((failure.reason(), failure.retryable), (FailureReason::Connection, true), "{failure:?}");
    }
}

#[tokio::test]
async fn an_answer_of_another_form_may_be_tried_again_and_names_its_fault() {
    for body in
        ["", "<html>", r#"{"choices":[]}"#, r#"{"choices":[{}]}"#, r#"{"choices":[{"message":{"content":[1]}}]}"#, "[]"]
    {
        let provider = Provider::answering("200 OK", &["x-request-id: r"], body).await;
        match openai(&provider.base_url(), |_| ()).execute(task("hi")).await {
            Outcome::Failure(failure, Some(served)) => {
                assert_eq!((failure.reason(), failure.retryable), (FailureReason::BadResponse, true), "{body}");
                assert_eq!(
                    (served.request_id.as_str(), served.executor.as_str(), served.region_basis()),
                    ("r", "openai", RegionBasis::Unspecified)
                );
            }
            other => panic!("{body}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_error_without_end_is_bounded() {
    let long = "x".repeat(MAX_ERROR_BYTES + 1);
    assert_eq!(failure(outcome("500 Error", &[], &long).await).message.len(), MAX_ERROR_BYTES);
    assert!(misconfigured(outcome("401 Unauthorized", &[], &long).await).len() <= MAX_MESSAGE_BYTES);
}

#[tokio::test]
async fn a_key_is_in_no_outcome_even_where_the_provider_quotes_it() {
    let quoted = format!(r#"{{"error":{{"message":"wrong key: {KEY}"}}}}"#);
    for status in ["401 Unauthorized", "429 Slow", "400 Bad", "500 Error", "302 Found"] {
        let location = format!("Location: http://other/?key={KEY}");
        let outcome = format!("{:?}", outcome(status, &[&location], &quoted).await);
        assert!(!outcome.contains(KEY) && outcome.contains("[key]"), "{outcome}");
    }
    let provider =
        Provider::answering("200 OK", &[], chat("\"4\"").replacen('{', &format!(r#"{{"key":"{KEY}","#), 1)).await;
    let executor = openai(&provider.base_url(), |_| ());
    assert!(!format!("{executor:?}").contains(KEY));
    assert_eq!(answer(executor.execute(task("hi")).await).response, "");
}

#[tokio::test]
async fn a_probe_tells_whether_the_model_can_be_asked_and_runs_nothing() {
    let many = r#"{"data":[{"id":"a"},{"id":"b"},{"id":"c"},{"id":"d"},{"id":"e"},{"id":"f"}]}"#;
    let cases = [
        ("200 OK", r#"{"data":[{"id":"mistral:7b"}]}"#, Ok(())),
        ("200 OK", "not a list", Ok(())),
        ("404 Not Found", "", Ok(())),
        ("405 Method Not Allowed", "", Ok(())),
        ("429 Too Many Requests", "", Ok(())),
        ("200 OK", many, Err("no model \"mistral:7b\"; it has a, b, c, d, e and 1 more")),
        ("401 Unauthorized", r#"{"error":{"message":"no such key"}}"#, Err("no such key")),
        ("403 Forbidden", "", Err("403")),
        ("503 Unavailable", r#"{"error":{"message":"Loading model"}}"#, Err("Loading model")),
    ];
    for (status, body, expected) in cases {
        let provider = Provider::answering(status, &[], body).await;
        let probed = openai(&provider.base_url(), |_| ()).probe().await;
        match expected {
            Ok(()) => assert_eq!(probed, Ok(()), "{status}"),
            Err(words) => assert!(probed.clone().unwrap_err().contains(words), "{status}: {probed:?}"),
        }
        let request = provider.request();
        assert!(request.starts_with("GET /v1/models ") && request.contains(KEY), "{request}");
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert!(openai(&format!("http://127.0.0.1:{port}/v1"), |_| ()).probe().await.unwrap_err().contains("refused"));
}
