//! The executor that runs a program for each cell.
//!
//! The cell goes to the program's stdin as one line of JSON, and as variables:
//!
//! | stdin | variable |
//! |---|---|
//! | `input`: `{"messages":[…],"model":"…","parameters":{…}}`, as it was leased | |
//! | `key`: `namespace`, `job_id`, `region`, `model`, `question`, `repeat` | `SEMEL_NAMESPACE`, `SEMEL_JOB_ID`, `SEMEL_REGION`, `SEMEL_MODEL`, `SEMEL_QUESTION`, `SEMEL_REPEAT` |
//! | `attempt`: from 1 | `SEMEL_ATTEMPT` |
//! | `fencing_token`: a decimal string | `SEMEL_FENCING_TOKEN` |
//! | `remaining_ms`: the time left for the run | `SEMEL_REMAINING_MS` |
//!
//! The answer comes on stdout, as JSON: `{"output": "text"}` or `{"output_base64": "…"}`, with `finish_reason`,
//! `usage` (`prompt_tokens`, `completion_tokens`), `served_region`, `served_model` and `request_id` where they are
//! known; or `{"error": {"message", "code", "retryable", "rate_limited", "retry_after_ms", "misconfigured"}}`. With
//! `stdout: raw`, what the program prints is the output. The answer is what was printed by the time the program ended:
//! whatever it left behind in its process group is ended then.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use semel_proto::v1 as pb;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::process::{DESCRIPTORS, Group, SHELL, SHELL_NAME, Streams};
use super::secret::redact;
use super::text::{Text, repair_surrogates, shorten};
use super::{
    ANSWER_OVERHEAD_BYTES, Answer, Executor, JSON_EXPANSION, MAX_ERROR_BYTES, MAX_MESSAGE_BYTES, Outcome, SettingError,
    Task, failure,
};

/// The executor's name in records.
pub(super) const NAME: &str = "command";

/// What a program sees of the agent's environment, besides what is configured.
pub const INHERITED_VARIABLES: [&str; 11] =
    ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"];

/// How long the streams of an ended program are read on. What it printed is in the pipe by then; only a process that
/// left the group can hold them open longer.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How much is read from a stream at a time, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// Values shorter than this, in bytes, are not searched for in errors: they would be found in ordinary words.
const MIN_SECRET_BYTES: usize = 8;

/// What a program's stdout is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Stdout {
    /// The answer as JSON.
    #[default]
    Json,
    /// The output itself.
    Raw,
}

/// Which program runs, and how.
#[derive(Clone)]
pub struct CommandSettings {
    /// The program and its arguments. A name without a slash is looked for in `PATH`.
    pub program: Vec<String>,
    /// Where it runs, and what a relative path of the program is relative to.
    pub folder: PathBuf,
    /// What its stdout is.
    pub stdout: Stdout,
    /// Variables that it sees besides [`INHERITED_VARIABLES`].
    pub env: BTreeMap<String, String>,
    /// Variables of the agent's environment that it sees as well. Their values are taken for keys: errors never show them.
    pub pass_env: BTreeMap<String, String>,
    /// Whether its JSON is kept beside the output.
    pub keep_response: bool,
}

impl CommandSettings {
    /// A program that runs in `folder`, everything else by default.
    pub fn new(program: Vec<String>, folder: impl Into<PathBuf>) -> Self {
        Self {
            program,
            folder: folder.into(),
            stdout: Stdout::Json,
            env: BTreeMap::new(),
            pass_env: BTreeMap::new(),
            keep_response: true,
        }
    }
}

impl fmt::Debug for CommandSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names of variables only: values may be keys.
        f.debug_struct("CommandSettings")
            .field("program", &self.program.first())
            .field("folder", &self.folder)
            .field("stdout", &self.stdout)
            .field("env", &self.env.keys())
            .field("pass_env", &self.pass_env.keys())
            .field("keep_response", &self.keep_response)
            .finish()
    }
}

/// Runs cells on a program, one process group each.
#[derive(Clone, Debug)]
pub struct Command {
    settings: CommandSettings,
    /// The program's file name, for records and messages.
    label: String,
}

/// What a program left.
#[derive(Default)]
struct Output {
    stdout: Vec<u8>,
    first_byte: Option<Instant>,
    /// The end of its stderr.
    stderr: Vec<u8>,
}

/// More came on stdout than may.
struct TooLarge;

impl Command {
    /// # Errors
    /// Every setting that is at fault. A program that isn't there is none: it may come, and a probe tells.
    pub fn new(settings: CommandSettings) -> Result<Self, Vec<SettingError>> {
        let mut faults = Vec::new();
        let program = settings.program.first().cloned().unwrap_or_default();
        if program.is_empty() {
            faults.push(SettingError::new(
                "program",
                "names no program; give it and its arguments as a list: [./answer, --fast]",
            ));
        }
        if settings.program.iter().any(|part| part.contains('\0')) {
            faults.push(SettingError::new("program", "has a NUL character"));
        }
        for (field, variables) in [("env", &settings.env), ("pass_env", &settings.pass_env)] {
            for (name, value) in variables {
                if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                    faults.push(SettingError::new(
                        field,
                        format!(
                            "{name:?} can't be a variable: its name is empty or has '=', or it has a NUL character"
                        ),
                    ));
                }
                if name.starts_with("SEMEL_") {
                    faults.push(SettingError::new(
                        field,
                        format!("{name}: names that start with SEMEL_ are the agent's own; take another"),
                    ));
                }
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let label =
            Path::new(&program).file_name().map_or_else(|| program.clone(), |name| name.to_string_lossy().into_owned());
        Ok(Self { settings, label })
    }

    /// The program's file, absolute, if it is there and can be run.
    fn find(&self) -> Result<PathBuf, String> {
        let name = self.settings.program.first().map(String::as_str).unwrap_or_default();
        if name.contains('/') {
            let path = self.settings.folder.join(name);
            let path = std::path::absolute(&path).unwrap_or(path);
            return if is_executable(&path) {
                Ok(path)
            } else {
                Err(format!("there is no program {}, or it may not be executed", path.display()))
            };
        }
        let search =
            self.settings.env.get("PATH").map(OsString::from).or_else(|| std::env::var_os("PATH")).unwrap_or_default();
        let found = std::env::split_paths(&search)
            .map(|folder| folder.join(name))
            .find(|path| path.is_absolute() && is_executable(path));
        found.ok_or_else(|| format!("there is no program {name} in the folders of PATH"))
    }

    fn environment(&self, task: &Task) -> Vec<(OsString, OsString)> {
        let inherited =
            INHERITED_VARIABLES.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
        let configured =
            self.settings.pass_env.iter().chain(&self.settings.env).map(|(name, value)| (name.into(), value.into()));
        let key = &task.key;
        let own = [
            ("SEMEL_NAMESPACE", key.namespace.clone()),
            ("SEMEL_JOB_ID", key.job_id.clone()),
            ("SEMEL_REGION", key.region.clone()),
            ("SEMEL_MODEL", key.model.clone()),
            ("SEMEL_QUESTION", key.question.clone()),
            ("SEMEL_REPEAT", key.repeat.to_string()),
            ("SEMEL_ATTEMPT", task.attempt.to_string()),
            ("SEMEL_FENCING_TOKEN", task.fencing_token.to_string()),
            ("SEMEL_REMAINING_MS", remaining_ms(task).to_string()),
        ];
        let own = own.map(|(name, value)| (name.into(), value.into()));
        inherited.chain(configured).chain(own).collect()
    }

    /// Words for people: bounded, without the values of `pass_env`.
    fn message(&self, words: &str) -> String {
        let words = self.clean(format!("{}: {words}", self.label).into_bytes());
        shorten(String::from_utf8_lossy(&words).into_owned(), MAX_MESSAGE_BYTES)
    }

    fn clean(&self, bytes: Vec<u8>) -> Vec<u8> {
        let secrets = self.settings.pass_env.values().filter(|value| value.len() >= MIN_SECRET_BYTES);
        secrets.fold(bytes, |bytes, secret| redact(bytes, secret.as_bytes()))
    }

    fn misconfigured(&self, words: &str) -> Outcome {
        Outcome::Misconfigured { message: self.message(words) }
    }

    fn failed(&self, code: String, message: Vec<u8>, retryable: bool) -> Outcome {
        let message = self.clean(message);
        Outcome::Failure(
            failure::new(pb::FailureReason::Program, pb::Stage::Run, code, message, retryable),
            Some(self.served()),
        )
    }

    fn too_large(&self, size: &str, task: &Task) -> Outcome {
        Outcome::Failure(failure::too_large(size, task.max_output_bytes, pb::Stage::Run), Some(self.served()))
    }

    fn served(&self) -> pb::Served {
        pb::Served { endpoint: self.label.clone(), executor: NAME.to_owned(), ..Default::default() }
    }

    async fn run(&self, task: &Task) -> Outcome {
        let program = match self.find() {
            Ok(program) => program,
            Err(fault) => return self.misconfigured(&fault),
        };
        let request = match request(task) {
            Ok(request) => request,
            Err(fault) => return Outcome::Failure(failure::bad_input(fault), None),
        };
        let limit = match self.settings.stdout {
            Stdout::Raw => task.max_output_bytes,
            Stdout::Json => task.max_output_bytes.saturating_mul(JSON_EXPANSION).saturating_add(ANSWER_OVERHEAD_BYTES),
        };
        let started = Instant::now();
        let arguments = self.settings.program.get(1..).unwrap_or_default();
        let (mut group, streams) =
            match Group::spawn(&program, arguments, &self.environment(task), &self.settings.folder) {
                Ok(spawned) => spawned,
                Err(error) => {
                    return self
                        .misconfigured(&format!("can't be started in {}: {error}", self.settings.folder.display()));
                }
            };
        let mut output = Output::default();
        match converse(&mut group, streams, &request, limit, &mut output).await {
            Ok(Ok(status)) => self.judge(status, output, started, task),
            Ok(Err(error)) => self.failed(String::new(), format!("can't be waited for: {error}").into_bytes(), true),
            Err(TooLarge) => self.too_large(&format!("a stdout of more than {limit} bytes"), task),
        }
    }

    /// What an ended program's exit status and output mean.
    fn judge(&self, status: ExitStatus, output: Output, started: Instant, task: &Task) -> Outcome {
        let first_byte = output.first_byte.map(|at| at.duration_since(started));
        if matches!(status.code(), Some(126 | 127)) && output.stderr.starts_with(format!("{SHELL_NAME}: ").as_bytes()) {
            // The shell's words, not the program's: it could not become the program (a missing interpreter, say).
            return self.misconfigured(String::from_utf8_lossy(&output.stderr).trim());
        }
        if self.settings.stdout == Stdout::Raw {
            if !status.success() {
                return self.ended_badly(status, output.stderr);
            }
            let output = output.stdout.into();
            return Outcome::Success(Answer { output, endpoint: self.label.clone(), first_byte, ..Answer::default() });
        }
        match (read_reply(&output.stdout), status.success()) {
            // A program may well say its error in JSON and exit with a status besides.
            (Ok(Reply { error: Some(error), .. }), _) => self.reported(error),
            (_, false) => self.ended_badly(status, output.stderr),
            (Err(fault), true) => {
                let mut message =
                    format!("stdout is not the JSON that is expected: {fault}. stderr ends: ").into_bytes();
                message.extend_from_slice(&output.stderr);
                self.failed("0".to_owned(), message, true)
            }
            (Ok(reply), true) => self.answer(reply, output.stdout, first_byte, task),
        }
    }

    fn ended_badly(&self, status: ExitStatus, stderr: Vec<u8>) -> Outcome {
        let code = match (status.code(), std::os::unix::process::ExitStatusExt::signal(&status)) {
            (Some(code), _) => code.to_string(),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => String::new(),
        };
        let message = if stderr.is_empty() {
            format!("{} ended with {status} and an empty stderr", self.label).into_bytes()
        } else {
            stderr
        };
        self.failed(code, message, true)
    }

    /// The error that the program itself reports.
    fn reported(&self, error: ErrorReply) -> Outcome {
        let message = error.message.unwrap_or_default().0;
        let words = || self.message(&String::from_utf8_lossy(&message));
        if error.misconfigured {
            return Outcome::Misconfigured { message: words() };
        }
        let retry_after = error.retry_after_ms.map(Duration::from_millis);
        if error.rate_limited {
            return Outcome::RateLimited { retry_after, message: words() };
        }
        let code = match error.code {
            Some(serde_json::Value::String(code)) => shorten(code, MAX_MESSAGE_BYTES),
            Some(serde_json::Value::Number(code)) => code.to_string(),
            _ => String::new(),
        };
        let mut outcome = self.failed(code, message, error.retryable);
        if let Outcome::Failure(failure, _) = &mut outcome {
            failure.retry_after_ms = error.retry_after_ms.filter(|_| error.retryable);
        }
        outcome
    }

    fn answer(&self, reply: Reply, stdout: Vec<u8>, first_byte: Option<Duration>, task: &Task) -> Outcome {
        let output: Bytes = match (reply.output, reply.output_base64) {
            (Some(text), None) => text.0.into(),
            (None, Some(text)) => match BASE64_STANDARD.decode(&text.0) {
                Ok(bytes) => bytes.into(),
                Err(error) => {
                    return self.failed(
                        "0".to_owned(),
                        format!("output_base64 is not base64: {error}").into_bytes(),
                        true,
                    );
                }
            },
            _ => {
                return self.failed(
                    "0".to_owned(),
                    b"stdout has not one of output, output_base64 and error".to_vec(),
                    true,
                );
            }
        };
        if output.len() as u64 > task.max_output_bytes {
            return self.too_large(&format!("{} bytes", output.len()), task);
        }
        let text = |text: Option<Text>| shorten(text.unwrap_or_default().into_string(), MAX_MESSAGE_BYTES);
        let keep = self.settings.keep_response && stdout.len() as u64 <= task.max_output_bytes;
        Outcome::Success(Answer {
            output,
            response: if keep { stdout.into() } else { Bytes::new() },
            finish_reason: text(reply.finish_reason),
            usage: reply.usage.map(|usage| pb::Usage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
            }),
            served_region: Some(text(reply.served_region)).filter(|region| !region.is_empty()),
            served_model: text(reply.served_model),
            request_id: text(reply.request_id),
            endpoint: self.label.clone(),
            first_byte,
        })
    }
}

#[async_trait]
impl Executor for Command {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn probe(&self) -> Result<(), String> {
        for needed in [SHELL, DESCRIPTORS] {
            if !Path::new(needed).exists() {
                return Err(self.message(&format!("can't be run here: the system has no {needed}")));
            }
        }
        if !self.settings.folder.is_dir() {
            return Err(self.message(&format!("its folder {} is not there", self.settings.folder.display())));
        }
        self.find().map(drop).map_err(|fault| self.message(&fault))
    }

    async fn execute(&self, task: Task) -> Outcome {
        self.run(&task).await
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn remaining_ms(task: &Task) -> u64 {
    u64::try_from(task.remaining.as_millis()).unwrap_or(u64::MAX)
}

/// The line that a program reads.
fn request(task: &Task) -> Result<Vec<u8>, String> {
    #[derive(Serialize)]
    struct Request<'a> {
        input: &'a RawValue,
        key: Key<'a>,
        attempt: u32,
        /// A string: many readers round numbers beyond 2⁵³.
        fencing_token: String,
        remaining_ms: u64,
    }
    #[derive(Serialize)]
    struct Key<'a> {
        namespace: &'a str,
        job_id: &'a str,
        region: &'a str,
        model: &'a str,
        question: &'a str,
        repeat: u32,
    }
    let pb::ExecutionKey { namespace, job_id, region, model, question, repeat } = &task.key;
    let request = Request {
        input: serde_json::from_slice(&task.input).map_err(|error| format!("the leased input is not JSON: {error}"))?,
        key: Key { namespace, job_id, region, model, question, repeat: *repeat },
        attempt: task.attempt,
        fencing_token: task.fencing_token.to_string(),
        remaining_ms: remaining_ms(task),
    };
    let mut line = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
    line.push(b'\n');
    Ok(line)
}

/// Feeds the program and reads it until it ends.
async fn converse(
    group: &mut Group,
    streams: Streams,
    request: &[u8],
    limit: u64,
    output: &mut Output,
) -> Result<std::io::Result<ExitStatus>, TooLarge> {
    let Streams { mut stdin, stdout, stderr } = streams;
    let Output { stdout: printed, first_byte, stderr: errors } = output;
    let feed = async move {
        // A program need not read its input; that it closed the pipe is no fault.
        let _ = stdin.write_all(request).await;
        Ok(())
    };
    let talk =
        async { tokio::try_join!(feed, read_whole(stdout, limit, printed, first_byte), read_end(stderr, errors)) };
    tokio::pin!(talk);
    tokio::select! {
        talked = &mut talk => {
            talked?;
            Ok(group.wait().await)
        }
        status = group.wait() => {
            if let Ok(talked) = tokio::time::timeout(DRAIN_LIMIT, talk).await {
                talked?;
            }
            Ok(status)
        }
    }
}

async fn read_whole(
    mut stream: impl AsyncRead + Unpin,
    limit: u64,
    read: &mut Vec<u8>,
    first_byte: &mut Option<Instant>,
) -> Result<(), TooLarge> {
    let mut chunk = vec![0; READ_BYTES];
    // A stream that breaks is a stream that ends.
    while let Ok(size @ 1..) = stream.read(&mut chunk).await {
        first_byte.get_or_insert_with(Instant::now);
        if (read.len() + size) as u64 > limit {
            return Err(TooLarge);
        }
        read.extend_from_slice(chunk.get(..size).unwrap_or_default());
    }
    Ok(())
}

/// Reads to the end and keeps the last [`MAX_ERROR_BYTES`].
async fn read_end(mut stream: impl AsyncRead + Unpin, read: &mut Vec<u8>) -> Result<(), TooLarge> {
    let mut chunk = vec![0; READ_BYTES];
    while let Ok(size @ 1..) = stream.read(&mut chunk).await {
        read.extend_from_slice(chunk.get(..size).unwrap_or_default());
        read.drain(..read.len().saturating_sub(MAX_ERROR_BYTES));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Reply {
    output: Option<Text>,
    output_base64: Option<Text>,
    finish_reason: Option<Text>,
    usage: Option<UsageReply>,
    served_region: Option<Text>,
    served_model: Option<Text>,
    request_id: Option<Text>,
    error: Option<ErrorReply>,
}

#[derive(Deserialize)]
struct UsageReply {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct ErrorReply {
    message: Option<Text>,
    code: Option<serde_json::Value>,
    #[serde(default = "yes")]
    retryable: bool,
    #[serde(default)]
    rate_limited: bool,
    #[serde(default)]
    misconfigured: bool,
    retry_after_ms: Option<u64>,
}

fn yes() -> bool {
    true
}

fn read_reply(stdout: &[u8]) -> Result<Reply, String> {
    serde_json::from_slice(&repair_surrogates(stdout)).map_err(|error| error.to_string())
}
