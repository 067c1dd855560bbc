//! The agents file: which agents run here, and how each reaches its models.
//!
//! ```yaml
//! providers:
//!   local: { executor: openai, base_url: http://127.0.0.1:11434/v1 }
//! agents:
//!   - { region: us-east, slots: 4, models: { llama3.2-1b: local, mistral-7b: { provider: local, model: "mistral:7b" } } }
//! ```
//!
//! A job says which models are asked; this file alone says how they are reached. A key stands in none of both: the
//! file names a variable or a file that holds it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::executor::{Command, Echo, Executor, KeySource, OpenAi, OpenAiSettings, SettingError};

use self::file::{ExecutorKind, RawAgent, RawProvider};

mod file;

/// The largest agents file, in bytes.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The longest id, in bytes, as in the contract.
pub const MAX_ID_BYTES: usize = 255;

/// How many executions an agent runs at once, where nothing else is configured.
pub const DEFAULT_SLOTS: u32 = 4;

/// The most executions that one agent runs at once.
pub const MAX_SLOTS: u32 = 4096;

/// The most leases that one agent may want beyond its free slots, as in the contract.
pub const MAX_PREFETCH: u32 = 1024;

/// One agent as configured: where it sits, how much it runs at once, and how it reaches its models.
#[derive(Clone)]
pub struct AgentSpec {
    /// The agent's id, unique in its namespace.
    pub id: String,
    /// The region in which it sits.
    pub region: String,
    /// How many executions it runs at once.
    pub slots: u32,
    /// Leases wanted beyond the free slots, to hide the round trip.
    pub prefetch: u32,
    /// How each model is reached: model id → (provider's name, executor).
    pub models: BTreeMap<String, (String, Arc<dyn Executor>)>,
    /// Whether any of its providers' bodies are kept. An executor that keeps none leaves `response` empty itself.
    pub keep_response: bool,
}

impl AgentSpec {
    /// An agent a region, each of which reaches all `models` (id, provider's name) at one OpenAI-compatible endpoint.
    /// The provider is called `openai`; an agent's id is its region.
    ///
    /// # Errors
    /// The endpoint's settings that are at fault.
    pub fn openai_everywhere(
        settings: OpenAiSettings,
        regions: &[String],
        models: &[(String, String)],
        slots: u32,
    ) -> Result<Vec<Self>, Vec<SettingError>> {
        let keep_response = settings.keep_response;
        let endpoint = OpenAi::new(settings, "")?;
        let executor = |name: &str| Arc::new(endpoint.for_model(name)) as Arc<dyn Executor>;
        let models = models.iter().map(|(id, name)| (id.clone(), ("openai".to_owned(), executor(name)))).collect();
        Ok(Self::everywhere(&models, regions, slots, keep_response))
    }

    /// An agent a region, each of which answers all `models` (ids) itself, at once.
    #[must_use]
    pub fn echo_everywhere(regions: &[String], models: &[String], slots: u32) -> Vec<Self> {
        let echo: Arc<dyn Executor> = Arc::new(Echo);
        let models = models.iter().map(|id| (id.clone(), ("echo".to_owned(), Arc::clone(&echo)))).collect();
        Self::everywhere(&models, regions, slots, false)
    }

    fn everywhere(
        models: &BTreeMap<String, (String, Arc<dyn Executor>)>,
        regions: &[String],
        slots: u32,
        keep_response: bool,
    ) -> Vec<Self> {
        let agent = |region: &String| Self {
            id: region.clone(),
            region: region.clone(),
            slots,
            prefetch: slots.min(MAX_PREFETCH),
            models: models.clone(),
            keep_response,
        };
        regions.iter().map(agent).collect()
    }
}

impl fmt::Debug for AgentSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models: BTreeMap<_, _> =
            self.models.iter().map(|(id, (provider, executor))| (id, (provider, executor.name()))).collect();
        f.debug_struct("AgentSpec")
            .field("id", &self.id)
            .field("region", &self.region)
            .field("slots", &self.slots)
            .field("prefetch", &self.prefetch)
            .field("models", &models)
            .field("keep_response", &self.keep_response)
            .finish()
    }
}

/// What is wrong with an agents file: every fault that could be found, one a line, each with its place.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", .faults.iter().map(|fault| format!("{source_name}:{fault}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// The file.
    pub source_name: String,
    /// Its faults, in the file's order; at least one.
    pub faults: Vec<Fault>,
}

/// One fault of an agents file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The line, from 1; 0 where the fault is of the whole file.
    pub line: u64,
    /// What is wrong and what to do. Never quotes a key.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { write!(f, " {}", self.message) } else { write!(f, "{}: {}", self.line, self.message) }
    }
}

/// Where an agents file comes from.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// What its relative paths are relative to.
    pub folder: &'a Path,
    /// The environment: the value of a variable, if it is set.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

/// Reads an agents file (YAML or JSON). `names` gives, for a model's id, the name by which its provider knows it:
/// probes look for that where the file has no `model` of its own, and for the id where neither has one.
///
/// # Errors
/// Every fault that could be found, with its line.
pub fn read(path: &Path, names: &BTreeMap<String, String>) -> Result<Vec<AgentSpec>, ConfigError> {
    let name = path.display().to_string();
    let whole = |message: String| ConfigError { source_name: name.clone(), faults: vec![Fault { line: 0, message }] };
    let size = path.metadata().map_err(|error| whole(format!("can't be read: {error}")))?.len();
    if size > MAX_FILE_BYTES {
        return Err(whole(format!("has {size} bytes; an agents file has at most {MAX_FILE_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| whole(format!("can't be read: {error}")))?;
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let folder = std::path::absolute(&folder).or_else(|_| std::env::current_dir()).unwrap_or(folder);
    parse(&text, Origin { name: &name, folder: &folder, env: &|name| std::env::var(name).ok() }, names)
}

/// As [`read`], of a text.
///
/// # Errors
/// Every fault that could be found, with its line.
pub fn parse(text: &str, origin: Origin<'_>, names: &BTreeMap<String, String>) -> Result<Vec<AgentSpec>, ConfigError> {
    let failed = |mut faults: Vec<Fault>| {
        faults.sort();
        ConfigError { source_name: origin.name.to_owned(), faults }
    };
    let raw = file::parse(text).map_err(|fault| failed(vec![fault]))?;
    let mut faults = Vec::new();
    let mut providers: BTreeMap<&str, Option<Provider>> = BTreeMap::new();
    for (name, provider) in &raw.providers {
        let provider_faults = faults.len();
        faults.extend(id_fault(name).map(|fault| Fault {
            line: provider.referenced.line(),
            message: format!("the provider's name {name:?} {fault}"),
        }));
        match Provider::new(&provider.value, origin) {
            Ok(built) if faults.len() == provider_faults => drop(providers.insert(name, Some(built))),
            built => {
                faults.extend(
                    built
                        .err()
                        .into_iter()
                        .flatten()
                        .map(|fault| Fault { message: format!("provider {name}: {}", fault.message), ..fault }),
                );
                providers.insert(name, None);
            }
        }
    }
    let mut agents: Vec<AgentSpec> = Vec::new();
    for raw_agent in &raw.agents {
        let line = raw_agent.referenced.line();
        let agent = agent(&raw_agent.value, line, &mut providers, names, &mut faults);
        if agents.iter().any(|other| other.id == agent.id) {
            faults.push(Fault {
                line,
                message: format!("agent {:?} is there twice; give each an id of its own", agent.id),
            });
        }
        agents.push(agent);
    }
    if agents.is_empty() {
        faults.push(Fault { line: 0, message: "names no agents; there must be one at least".to_owned() });
    }
    if faults.is_empty() { Ok(agents) } else { Err(failed(faults)) }
}

fn agent(
    raw: &RawAgent,
    line: u64,
    providers: &mut BTreeMap<&str, Option<Provider>>,
    names: &BTreeMap<String, String>,
    faults: &mut Vec<Fault>,
) -> AgentSpec {
    let region = raw.region.value.clone();
    let id = raw.id.as_ref().map_or_else(|| region.clone(), |id| id.value.clone());
    let mut fault = |line, message| faults.push(Fault { line, message });
    if let Some(words) = id_fault(&region) {
        fault(raw.region.referenced.line(), format!("the region {region:?} {words}"));
    }
    if let Some((words, place)) = raw.id.as_ref().and_then(|id| Some((id_fault(&id.value)?, id.referenced.line()))) {
        fault(place, format!("the agent's id {id:?} {words}"));
    }
    let slots = raw.slots.as_ref().map_or(DEFAULT_SLOTS, |slots| slots.value);
    if !(1..=MAX_SLOTS).contains(&slots) {
        fault(
            raw.slots.as_ref().map_or(line, |slots| slots.referenced.line()),
            format!("slots is {slots}; it must be from 1 to {MAX_SLOTS}"),
        );
    }
    let prefetch = raw.prefetch.as_ref().map_or(slots.min(MAX_PREFETCH), |prefetch| prefetch.value);
    if prefetch > MAX_PREFETCH {
        fault(
            raw.prefetch.as_ref().map_or(line, |prefetch| prefetch.referenced.line()),
            format!("prefetch is {prefetch}; it must be at most {MAX_PREFETCH}"),
        );
    }
    if raw.models.is_empty() {
        fault(line, format!("agent {id:?} has no models; it would never run anything"));
    }
    let known: Vec<String> = providers.keys().map(|name| (*name).to_owned()).collect();
    let (mut models, mut keep_response) = (BTreeMap::new(), false);
    for (model, raw_model) in &raw.models {
        let (line, raw_model) = (raw_model.referenced.line(), &raw_model.value);
        if let Some(words) = id_fault(model) {
            fault(line, format!("the model's id {model:?} {words}"));
        }
        let provider = match providers.get_mut(raw_model.provider.as_str()) {
            Some(Some(provider)) => provider,
            // Its own fault is told already.
            Some(None) => continue,
            None => {
                let advice = file::advice(&raw_model.provider, &known);
                fault(line, format!("model {model:?}: there is no provider {:?}{advice}", raw_model.provider));
                continue;
            }
        };
        let name = raw_model.model.as_ref().or_else(|| names.get(model)).unwrap_or(model);
        models.insert(model.clone(), (raw_model.provider.clone(), provider.executor(name)));
        keep_response |= provider.keep_response;
    }
    AgentSpec { id, region, slots, prefetch, models, keep_response }
}

/// A provider that is ready to run: one executor for each name of a model that was asked for.
struct Provider {
    kind: Kind,
    keep_response: bool,
    executors: BTreeMap<String, Arc<dyn Executor>>,
}

enum Kind {
    OpenAi(OpenAi),
    /// The same for every model.
    One(Arc<dyn Executor>),
}

impl Provider {
    fn new(raw: &RawProvider, origin: Origin<'_>) -> Result<Self, Vec<Fault>> {
        let mut faults = raw.misplaced();
        let keep_response = raw.keep_response.as_ref().is_none_or(|keep| keep.value);
        let built = match raw.executor.value {
            ExecutorKind::Openai => {
                raw.openai(origin, &mut faults).map(|settings| OpenAi::new(settings, "").map(Kind::OpenAi))
            }
            ExecutorKind::Command => raw
                .command(origin, &mut faults)
                .map(|settings| Command::new(settings).map(|command| Kind::One(Arc::new(command)))),
            ExecutorKind::Echo => Some(Ok(Kind::One(Arc::new(Echo)))),
        };
        match built {
            Some(Ok(kind)) if faults.is_empty() => Ok(Self { kind, keep_response, executors: BTreeMap::new() }),
            Some(Err(settings)) => {
                faults.extend(
                    settings.into_iter().map(|fault| Fault { line: raw.line(fault.field), message: fault.to_string() }),
                );
                Err(faults)
            }
            _ => Err(faults),
        }
    }

    fn executor(&mut self, model: &str) -> Arc<dyn Executor> {
        match &self.kind {
            Kind::One(executor) => Arc::clone(executor),
            Kind::OpenAi(endpoint) => {
                let executor =
                    self.executors.entry(model.to_owned()).or_insert_with(|| Arc::new(endpoint.for_model(model)));
                Arc::clone(executor)
            }
        }
    }
}

/// The key in the variable that `name` names. People put the key itself there, so the name is never shown.
fn key_from_env(name: &str, origin: Origin<'_>) -> Result<KeySource, String> {
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit());
    if name.is_empty() || !is_name {
        return Err("takes the name of an environment variable (OPENAI_API_KEY), not a key".to_owned());
    }
    KeySource::from_env((origin.env)(name))
}

/// What is wrong with an id, as in a job.
fn id_fault(id: &str) -> Option<String> {
    if id.is_empty() {
        return Some("is empty".to_owned());
    }
    if id.len() > MAX_ID_BYTES {
        return Some(format!("has {} bytes; at most {MAX_ID_BYTES} are possible", id.len()));
    }
    if id.trim() != id {
        return Some("has white space around it; take it away".to_owned());
    }
    id.chars().any(char::is_control).then(|| "has a control character; take it away".to_owned())
}
