//! The executors over real sockets, files and processes, and the agents file that configures them.

#[path = "executors/command.rs"]
mod command;
#[path = "executors/config.rs"]
mod config;
#[path = "executors/openai.rs"]
mod openai;
#[path = "executors/provider.rs"]
mod provider;

use std::time::{Duration, Instant};

use semel_agent::executor::{Answer, Echo, Executor, Outcome, Task};
use semel_proto::v1 as pb;

/// How long a test waits for what must happen. Reached only by a broken promise.
const PATIENCE: Duration = Duration::from_secs(30);

/// Attempt 2 of a cell with this prompt.
fn task(prompt: &str) -> Task {
    let input = serde_json::json!({
        "messages": [{"content": "be brief", "role": "system"}, {"content": prompt, "role": "user"}],
        "model": "mistral:7b",
        "parameters": {"temperature": 0.5},
    });
    Task {
        input: input.to_string().into(),
        key: pb::ExecutionKey {
            namespace: "default".into(),
            job_id: "job".into(),
            region: "us-east".into(),
            model: "mistral-7b".into(),
            question: "q 1".into(),
            repeat: 3,
        },
        attempt: 2,
        fencing_token: u64::MAX / 2,
        remaining: Duration::from_secs(60),
        max_output_bytes: 1024,
    }
}

fn answer(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Success(answer) => answer,
        other => panic!("no success: {other:?}"),
    }
}

fn failure(outcome: Outcome) -> pb::Failure {
    match outcome {
        Outcome::Failure(failure, _) => failure,
        other => panic!("no failure: {other:?}"),
    }
}

fn misconfigured(outcome: Outcome) -> String {
    match outcome {
        Outcome::Misconfigured { message } => message,
        other => panic!("not misconfigured: {other:?}"),
    }
}

/// Waits until `holds`, and says `what` was waited for in vain.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        // between two looks at the condition
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn echo_answers_the_last_user_message_byte_for_byte_and_names_no_model() {
    for prompt in ["2 + 2?", "", "a\0b \\u0000 😀"] {
        let answer = answer(Echo.execute(task(prompt)).await);
        assert_eq!(answer.output, prompt.as_bytes());
        assert_eq!((answer.served_model.as_str(), answer.endpoint.as_str()), ("", "echo"));
    }
    let mut long = task("x");
    long.max_output_bytes = 0;
    let failure = failure(Echo.execute(long).await);
    assert_eq!(failure.reason(), pb::FailureReason::ResultTooLarge);
}

#[tokio::test]
async fn echo_fails_an_input_without_messages_for_good() {
    let mut broken = task("x");
    broken.input = r#"{"model":"m"}"#.into();
    let failure = failure(Echo.execute(broken).await);
    assert!(!failure.retryable);
    assert!(String::from_utf8_lossy(&failure.message).contains("messages"), "{failure:?}");
}
