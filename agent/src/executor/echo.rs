//! The instant executor, for benches and the self-test: it answers what it is asked.

use async_trait::async_trait;
use bytes::Bytes;
use semel_proto::v1 as pb;

use super::input::Input;
use super::text::{Text, repair_surrogates};
use super::{Answer, Executor, Outcome, Task, failure};

/// Answers each cell with the content of its last user message, at once. Reaches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

#[async_trait]
impl Executor for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    async fn probe(&self) -> Result<(), String> {
        Ok(())
    }

    async fn execute(&self, task: Task) -> Outcome {
        let output = match last_user_content(&task.input) {
            Ok(output) => output,
            Err(fault) => return Outcome::Failure(failure::bad_input(fault), None),
        };
        if output.len() as u64 > task.max_output_bytes {
            let size = format!("{} bytes", output.len());
            return Outcome::Failure(failure::too_large(&size, task.max_output_bytes, pb::Stage::Result), None);
        }
        // No model served, so none is named.
        Outcome::Success(Answer {
            output,
            finish_reason: "stop".to_owned(),
            endpoint: "echo".to_owned(),
            ..Answer::default()
        })
    }
}

/// The text of the last message of role `user`; its JSON where its content is no text; nothing where there is none.
fn last_user_content(input: &[u8]) -> Result<Bytes, String> {
    let messages = Input::parse(input)?.messages()?;
    let Some(message) = messages.iter().rfind(|message| message.role == "user") else { return Ok(Bytes::new()) };
    let json = message.content.get();
    Ok(match serde_json::from_slice::<Text>(&repair_surrogates(json.as_bytes())) {
        Ok(text) => text.0.into(),
        Err(_) => Bytes::copy_from_slice(json.as_bytes()),
    })
}
