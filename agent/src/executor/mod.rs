//! What runs an execution: the [`Executor`] trait and the three that are built in.
//!
//! An executor is given one cell and says what became of it in one of four words, [`Outcome`]. It knows nothing of
//! leases, sessions or the spool: a lease that ends while its cell runs is told to it by dropping the future, which
//! closes the connection or ends the process group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use semel_proto::v1 as pb;

pub mod command;
pub mod echo;
mod failure;
mod input;
pub mod openai;
mod process;
mod secret;
mod text;

pub use command::{Command, CommandSettings, Stdout};
pub use echo::Echo;
pub use openai::{DEFAULT_CONNECT_TIMEOUT, OpenAi, OpenAiSettings};
pub use secret::KeySource;

/// The longest message of [`Executor::probe`], [`Outcome::RateLimited`] and [`Outcome::Misconfigured`], in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// The longest error text of a [`pb::Failure`], in bytes; of a program's stderr, its end.
pub const MAX_ERROR_BYTES: usize = 64 * 1024;

/// What an answer in JSON may take beyond its output, in bytes: ids, usage, whatever the provider adds.
pub const ANSWER_OVERHEAD_BYTES: u64 = 1024 * 1024;

/// How many bytes of JSON one byte of output can take (`\u0000`).
const JSON_EXPANSION: u64 = 6;

/// Runs cells, one call of [`Executor::execute`] each, many at once.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// Its name in records: `openai`, `command` or `echo`.
    fn name(&self) -> &'static str;

    /// Whether the endpoint can be reached for its model. No cell runs.
    ///
    /// It sets no limit to the time that this takes; the caller does, by dropping the future.
    ///
    /// # Errors
    /// The provider's or the system's own words, at most [`MAX_MESSAGE_BYTES`] long, never a key.
    async fn probe(&self) -> Result<(), String>;

    /// Runs one cell. Dropping the future aborts the call: the connection closes, the process group is ended.
    ///
    /// It sets no limit to the time that the call takes; the caller does, by dropping the future.
    async fn execute(&self, task: Task) -> Outcome;
}

/// What to do about a process `pid` that runs programs and is the first of its container. Every program leaves one
/// process whose parent has ended, its watcher; the system hands it to the first process, and a process of that
/// role reaps what it never started. An agent doesn't.
pub(crate) fn init_advice(pid: u32, models: &BTreeMap<String, (String, Arc<dyn Executor>)>) -> Option<&'static str> {
    let runs_programs = models.values().any(|(_, executor)| executor.name() == command::NAME);
    (runs_programs && pid == 1).then_some(
        "this agent is process 1 of its container, and each cell of a model with executor command leaves a dead \
         process there, until none can be started any more; start the container with an init: docker run --init, \
         init: true in a compose file, shareProcessNamespace: true in a pod",
    )
}

/// One cell to run.
#[derive(Clone, Debug)]
pub struct Task {
    /// What runs, as it was leased: canonical JSON `{"messages":[…],"model":"…","parameters":{…}}`.
    pub input: Bytes,
    /// The cell.
    pub key: pb::ExecutionKey,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// The number with which whatever is called can fence off earlier attempts.
    pub fencing_token: u64,
    /// The time that is left for the run.
    pub remaining: Duration,
    /// The largest output that is recorded, in bytes.
    pub max_output_bytes: u64,
}

/// What became of one call.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The model answered.
    Success(Answer),
    /// The attempt failed. Who served it is there if the endpoint said so.
    Failure(pb::Failure, Option<pb::Served>),
    /// The provider said "too many requests": the attempt is handed back and its gate closes.
    RateLimited {
        /// How long the provider asks to be left alone.
        retry_after: Option<Duration>,
        /// The provider's words, at most [`MAX_MESSAGE_BYTES`].
        message: String,
    },
    /// The agent's own configuration is at fault (key, address, model's name, program): the attempt is handed back.
    Misconfigured {
        /// The provider's or the system's words, at most [`MAX_MESSAGE_BYTES`].
        message: String,
    },
}

/// An answer, and what is known of how it came about. Text that the executor can't tell is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The answer's text, exactly; at most [`Task::max_output_bytes`].
    pub output: Bytes,
    /// The provider's body as it was received. Empty where it isn't kept, and where it is larger than
    /// [`Task::max_output_bytes`].
    pub response: Bytes,
    /// Why the model stopped, in the provider's words.
    pub finish_reason: String,
    /// Token counts.
    pub usage: Option<pb::Usage>,
    /// The region that served, where the endpoint says so.
    pub served_region: Option<String>,
    /// The model that served, as the endpoint names it.
    pub served_model: String,
    /// The provider's id of the request.
    pub request_id: String,
    /// Host and port of the endpoint, or the name of the program.
    pub endpoint: String,
    /// From the start of the call to the first byte of the answer.
    pub first_byte: Option<Duration>,
}

/// A setting of an executor that is at fault.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: {fault}")]
pub struct SettingError {
    /// The setting, as the agents file names it.
    pub field: &'static str,
    /// What is wrong with it and what to do. Never quotes a key.
    pub fault: String,
}

impl SettingError {
    fn new(field: &'static str, fault: impl Into<String>) -> Self {
        Self { field, fault: fault.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_runs_programs_as_process_1_is_told_to_have_an_init_and_no_other() {
        let echo: Arc<dyn Executor> = Arc::new(Echo);
        let program = Command::new(CommandSettings::new(vec!["sh".to_owned()], "/")).unwrap();
        let without = BTreeMap::from([("a".to_owned(), ("p".to_owned(), echo))]);
        let mut with = without.clone();
        with.insert("b".to_owned(), ("q".to_owned(), Arc::new(program)));
        assert!(init_advice(1, &with).is_some_and(|advice| advice.contains("docker run --init")));
        assert_eq!(init_advice(2, &with), None);
        assert_eq!(init_advice(1, &without), None);
    }
}
