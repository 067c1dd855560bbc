//! The agents file as it is written: its keys, and what of it makes no sense where it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use semel_files::tree::{Node, Value};

use super::reader::{At, Reader};
use super::{Fault, Origin, key_from_env};
use crate::executor::{CommandSettings, DEFAULT_CONNECT_TIMEOUT, KeySource, OpenAiSettings, Stdout};

/// What runs a provider's cells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ExecutorKind {
    Openai,
    Command,
    Echo,
}

const EXECUTORS: [(&str, ExecutorKind); 3] =
    [("openai", ExecutorKind::Openai), ("command", ExecutorKind::Command), ("echo", ExecutorKind::Echo)];

const STDOUTS: [(&str, Stdout); 2] = [("json", Stdout::Json), ("raw", Stdout::Raw)];

const FILE_KEYS: &[&str] = &["providers", "agents"];
const AGENT_KEYS: &[&str] = &["id", "region", "slots", "prefetch", "models"];
const MODEL_KEYS: &[&str] = &["provider", "model"];

/// The keys of all executors in one, so that a key at the wrong one has its place.
const PROVIDER_KEYS: &[&str] = &[
    "executor",
    "base_url",
    "key",
    "key_env",
    "key_file",
    "key_header",
    "region_header",
    "region_pointer",
    "connect_timeout",
    "headers",
    "program",
    "stdout",
    "env",
    "pass_env",
    "keep_response",
];

/// Which executor a provider's key belongs to; none for those of all.
fn executor_of(key: &str) -> Option<ExecutorKind> {
    match key {
        "executor" | "keep_response" => None,
        "program" | "stdout" | "env" | "pass_env" => Some(ExecutorKind::Command),
        _ => Some(ExecutorKind::Openai),
    }
}

/// The whole file. What is none was missing or at fault, and that is told already; so in all that follows.
pub(super) struct RawFile {
    pub(super) providers: Option<Vec<(At<String>, Option<RawProvider>)>>,
    pub(super) agents: Option<Vec<RawAgent>>,
}

/// A provider.
pub(super) struct RawProvider {
    /// The line of each of its keys.
    places: BTreeMap<&'static str, u32>,
    /// Keys that are missing only by their spelling.
    misspelt: BTreeSet<&'static str>,
    line: u32,
    pub(super) executor: Option<ExecutorKind>,
    base_url: Option<String>,
    key_env: Option<String>,
    key_file: Option<PathBuf>,
    key_header: Option<String>,
    region_header: Option<String>,
    region_pointer: Option<String>,
    connect_timeout: Option<String>,
    headers: Option<BTreeMap<String, String>>,
    program: Option<Vec<String>>,
    stdout: Option<Stdout>,
    env: Option<BTreeMap<String, String>>,
    pass_env: Option<Vec<String>>,
    pub(super) keep_response: Option<bool>,
}

/// An agent.
pub(super) struct RawAgent {
    pub(super) line: u32,
    has_id: bool,
    pub(super) id: Option<At<String>>,
    pub(super) region: Option<At<String>>,
    pub(super) slots: Option<At<u64>>,
    pub(super) prefetch: Option<At<u64>>,
    pub(super) models: Option<Vec<(At<String>, Option<RawModel>)>>,
}

/// How a model is reached: a provider's name, or that and the model's name there.
pub(super) struct RawModel {
    pub(super) provider: String,
    pub(super) model: Option<String>,
}

/// Reads the file's form. What the values mean is looked at afterwards.
pub(super) fn read(reader: &mut Reader, root: &Node) -> Option<RawFile> {
    let fields = reader.fields("an agents file", root, FILE_KEYS)?;
    let providers = fields.need(reader, "providers", |reader, what, node| named(reader, what, node, RawProvider::read));
    let agents = fields.need(reader, "agents", |reader, what, node| {
        let nodes = reader.list(what, node)?;
        // One that can't be read at all is told, and is none.
        Some(nodes.iter().filter_map(|node| RawAgent::read(reader, node)).collect())
    });
    Some(RawFile { providers: providers.map(|at| at.value), agents: agents.map(|at| at.value) })
}

/// A map of names to what `read` makes of their values.
fn named<'n, T>(
    reader: &mut Reader,
    what: &str,
    node: &'n Node,
    read: impl Fn(&mut Reader, &At<String>, &'n Node) -> Option<T>,
) -> Option<Vec<(At<String>, Option<T>)>> {
    let entries = reader.entries(what, node)?;
    let read_one = |(key, node): (At<&str>, &'n Node)| {
        let name = At { line: key.line, value: key.value.to_owned() };
        let value = read(reader, &name, node);
        (name, value)
    };
    Some(entries.into_iter().map(read_one).collect())
}

impl RawAgent {
    fn read(reader: &mut Reader, node: &Node) -> Option<Self> {
        let fields = reader.fields("an agent", node, AGENT_KEYS)?;
        Some(Self {
            line: node.place.line,
            has_id: fields.places().contains_key("id") || fields.misspelt().contains("id"),
            id: fields.read(reader, "id", Reader::text),
            region: fields.need(reader, "region", Reader::text),
            slots: fields.read(reader, "slots", Reader::whole),
            prefetch: fields.read(reader, "prefetch", Reader::whole),
            models: fields
                .need(reader, "models", |reader, what, node| named(reader, what, node, RawModel::read))
                .map(|at| at.value),
        })
    }

    /// The id, which is the region where there is none; none where it can't be told.
    pub(super) fn name(&self) -> Option<&str> {
        let source = if self.has_id { &self.id } else { &self.region };
        source.as_ref().map(|at| at.value.as_str())
    }
}

impl RawModel {
    fn read(reader: &mut Reader, name: &At<String>, node: &Node) -> Option<Self> {
        let what = format!("model {:?}", name.value);
        if !matches!(node.value, Value::Map(_)) {
            let wanted = "a provider's name, or { provider: NAME, model: NAME }";
            return reader.text_or(&what, node, wanted).map(|provider| Self { provider, model: None });
        }
        let fields = reader.fields(&what, node, MODEL_KEYS)?;
        let provider = fields.need(reader, "provider", Reader::text);
        let model = fields.read(reader, "model", Reader::text).map(|at| at.value);
        Some(Self { provider: provider?.value, model })
    }
}

/// A program and its arguments, as a list or as one word.
fn program(reader: &mut Reader, what: &str, node: &Node) -> Option<Vec<String>> {
    if matches!(node.value, Value::List(_)) {
        return reader.texts(what, node);
    }
    reader.text_or(what, node, "a program, or a list of it and its arguments").map(|program| vec![program])
}

impl RawProvider {
    fn read(reader: &mut Reader, name: &At<String>, node: &Node) -> Option<Self> {
        let fields = reader.fields(&format!("provider {}", name.value), node, PROVIDER_KEYS)?;
        let mut text = |key| fields.read(reader, key, Reader::text).map(|at| at.value);
        let [base_url, key_env, key_file, key_header] =
            ["base_url", "key_env", "key_file", "key_header"].map(&mut text);
        let [region_header, region_pointer] = ["region_header", "region_pointer"].map(&mut text);
        let connect_timeout = text("connect_timeout");
        let mut map = |key| fields.read(reader, key, Reader::text_map).map(|at| at.value);
        let [headers, env] = ["headers", "env"].map(&mut map);
        Some(Self {
            places: fields.places(),
            misspelt: fields.misspelt(),
            line: name.line,
            executor: fields
                .need(reader, "executor", |reader, what, node| reader.choice(what, node, &EXECUTORS))
                .map(|at| at.value),
            base_url,
            key_env,
            key_file: key_file.map(PathBuf::from),
            key_header,
            region_header,
            region_pointer,
            connect_timeout,
            headers,
            program: fields.read(reader, "program", program).map(|at| at.value),
            stdout: fields
                .read(reader, "stdout", |reader, what, node| reader.choice(what, node, &STDOUTS))
                .map(|at| at.value),
            env,
            pass_env: fields.read(reader, "pass_env", Reader::texts).map(|at| at.value),
            keep_response: fields.read(reader, "keep_response", Reader::flag).map(|at| at.value),
        })
    }

    /// The line of the key `field`, else of the provider's name.
    pub(super) fn line(&self, field: &str) -> u32 {
        self.places.get(field).copied().unwrap_or(self.line)
    }

    /// Whether it has the key `field`, were it with a fault.
    fn has(&self, field: &str) -> bool {
        self.places.contains_key(field) || self.misspelt.contains(field)
    }

    /// Keys of another executor than `own`, which is this provider's.
    pub(super) fn misplaced(&self, own: ExecutorKind) -> Vec<Fault> {
        let fault = |(field, line): (&&str, &u32)| {
            let kind = executor_of(field).filter(|kind| *kind != own)?;
            let message = format!("{field} belongs to the executor {}, and this is {}", name(kind), name(own));
            Some(Fault { line: *line, message })
        };
        self.places.iter().filter_map(fault).collect()
    }

    /// The settings of an endpoint. Where a fault was added they are good for looking at the others only.
    pub(super) fn openai(&self, origin: Origin<'_>, faults: &mut Vec<Fault>) -> OpenAiSettings {
        let mut fault = |field: &str, message: String| {
            faults.push(Fault { line: self.line(field), message: format!("{field}: {message}") })
        };
        if self.places.contains_key("key") {
            fault("key", "a key must not stand in this file; put it into an environment variable and name that by key_env, or into a file and name that by key_file".to_owned());
        }
        let key = match (&self.key_env, &self.key_file) {
            (Some(_), Some(_)) => {
                fault("key_file", "there is key_env as well; leave one of them out".to_owned());
                KeySource::None
            }
            (Some(name), None) => {
                key_from_env(name, origin).map_err(|words| fault("key_env", words)).unwrap_or_default()
            }
            (None, Some(path)) => KeySource::File(origin.folder.join(path)),
            (None, None) => KeySource::None,
        };
        if self.has("key_header") && !["key", "key_env", "key_file"].iter().any(|field| self.has(field)) {
            fault("key_header", "there is no key to carry; name one by key_env or key_file".to_owned());
        }
        let connect_timeout = self.connect_timeout.as_deref().map_or(Ok(DEFAULT_CONNECT_TIMEOUT), duration);
        let connect_timeout =
            connect_timeout.map_err(|words| fault("connect_timeout", words)).unwrap_or(DEFAULT_CONNECT_TIMEOUT);
        if !self.has("base_url") {
            fault("base_url", "is missing; it says where the endpoint is: http://127.0.0.1:11434/v1".to_owned());
        }
        OpenAiSettings {
            // Any good one serves where there is none, for then nothing is called.
            base_url: self.base_url.clone().unwrap_or_else(|| "http://127.0.0.1".to_owned()),
            key,
            key_header: self.key_header.clone(),
            region_header: self.region_header.clone(),
            region_pointer: self.region_pointer.clone(),
            keep_response: self.keep_response.unwrap_or(true),
            connect_timeout,
            headers: self.headers.clone().unwrap_or_default().into_iter().collect(),
        }
    }

    /// The settings of a program. Where a fault was added they are good for looking at the others only.
    pub(super) fn command(&self, origin: Origin<'_>, faults: &mut Vec<Fault>) -> CommandSettings {
        let mut fault = |field: &str, message: String| {
            faults.push(Fault { line: self.line(field), message: format!("{field}: {message}") })
        };
        let mut pass_env = BTreeMap::new();
        for name in self.pass_env.iter().flatten() {
            match (origin.env)(name) {
                Some(value) => drop(pass_env.insert(name.clone(), value)),
                None => fault("pass_env", format!("the environment variable {name:?} is not set")),
            }
        }
        if !self.has("program") {
            fault("program", "is missing; it is the program and its arguments: [./answer, --fast]".to_owned());
        }
        // Any serves where there is none, for then nothing is run.
        let program = self.program.clone().unwrap_or_else(|| vec!["sh".to_owned()]);
        CommandSettings {
            stdout: self.stdout.unwrap_or_default(),
            env: self.env.clone().unwrap_or_default(),
            pass_env,
            keep_response: self.keep_response.unwrap_or(true),
            ..CommandSettings::new(program, origin.folder)
        }
    }
}

fn name(kind: ExecutorKind) -> &'static str {
    EXECUTORS.iter().find(|(_, other)| *other == kind).map_or("", |(name, _)| name)
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|_| format!("{text:?} is no duration; write 10s or 500ms"))?;
    if duration.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(duration) }
}
