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

use semel_files::yaml::{self, Keys};

use crate::executor::{Command, Echo, Executor, KeySource, OpenAi, OpenAiSettings, SettingError};

use self::file::{ExecutorKind, RawAgent, RawProvider};
use self::reader::{At, Reader};

mod file;
mod reader;

/// The largest agents file, in bytes.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

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
    pub line: u32,
    /// What is wrong and what to do. Never quotes a key.
    pub message: String,
}

impl Fault {
    /// The fault with the name of what it is a fault of.
    fn of(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }
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
    let bytes = semel_files::read(path, MAX_FILE_BYTES).map_err(|error| whole(format!("can't be read: {error}")))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(whole(format!("has more than {MAX_FILE_BYTES} bytes, the most of an agents file")));
    }
    let text = String::from_utf8(bytes).map_err(|_| whole("is no UTF-8 text; save it as UTF-8".to_owned()))?;
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
    if text.trim().is_empty() {
        let message = "is empty; an agents file has the keys providers and agents".to_owned();
        return Err(failed(vec![Fault { line: 0, message }]));
    }
    let root = yaml::read(text, Keys::Written).map_err(|broken| {
        let message = broken.to_string();
        failed(vec![Fault { line: broken.place.line, message }])
    })?;
    let mut reader = Reader::default();
    let raw = file::read(&mut reader, &root);
    let mut faults = reader.faults;
    let Some(raw) = raw else { return Err(failed(faults)) };
    let mut providers = raw.providers.map(|raw| self::providers(raw, origin, &mut faults));
    let mut agents: Vec<AgentSpec> = Vec::new();
    for raw_agent in raw.agents.iter().flatten() {
        let agent = agent(raw_agent, providers.as_mut(), names, &mut faults);
        if !agent.id.is_empty() && agents.iter().any(|other| other.id == agent.id) {
            let message = format!("agent {:?} is there twice; give each an id of its own", agent.id);
            faults.push(Fault { line: raw_agent.line, message });
        }
        agents.push(agent);
    }
    if faults.is_empty() && agents.is_empty() {
        faults.push(Fault { line: 0, message: "names no agents; there must be one at least".to_owned() });
    }
    if faults.is_empty() { Ok(agents) } else { Err(failed(faults)) }
}

/// The providers by their names; none where one is at fault, which is told then.
type Providers = BTreeMap<String, Option<Provider>>;

fn providers(raw: Vec<(At<String>, Option<RawProvider>)>, origin: Origin<'_>, faults: &mut Vec<Fault>) -> Providers {
    let mut providers = BTreeMap::new();
    for (At { line, value: name }, raw) in raw {
        if let Some(words) = id_fault(&name) {
            faults.push(Fault { line, message: format!("the provider's name {name:?} {words}") });
        }
        let provider = raw.and_then(|raw| {
            let built = Provider::new(&raw, origin);
            built
                .map_err(|found| faults.extend(found.into_iter().map(|fault| fault.of(&format!("provider {name}")))))
                .ok()
        });
        providers.insert(name, provider);
    }
    providers
}

/// The agent that `raw` describes, which is of use only where no fault was added.
fn agent(
    raw: &RawAgent,
    mut providers: Option<&mut Providers>,
    names: &BTreeMap<String, String>,
    faults: &mut Vec<Fault>,
) -> AgentSpec {
    let mut found = Vec::new();
    let mut fault = |line, message| found.push(Fault { line, message });
    for (what, id) in [("region", &raw.region), ("id", &raw.id)] {
        if let Some((id, words)) = id.as_ref().and_then(|id| Some((id, id_fault(&id.value)?))) {
            fault(id.line, format!("the {what} {:?} {words}", id.value));
        }
    }
    let slots = raw.slots.as_ref().map_or(u64::from(DEFAULT_SLOTS), |slots| slots.value);
    let slots = u32::try_from(slots).ok().filter(|slots| (1..=MAX_SLOTS).contains(slots)).unwrap_or_else(|| {
        let line = raw.slots.as_ref().map_or(raw.line, |slots| slots.line);
        fault(line, format!("slots is {slots}; it must be from 1 to {MAX_SLOTS}"));
        DEFAULT_SLOTS
    });
    let prefetch = raw.prefetch.as_ref().map_or(slots.min(MAX_PREFETCH), |prefetch| {
        u32::try_from(prefetch.value).ok().filter(|wanted| *wanted <= MAX_PREFETCH).unwrap_or_else(|| {
            fault(prefetch.line, format!("prefetch is {}; it must be at most {MAX_PREFETCH}", prefetch.value));
            MAX_PREFETCH
        })
    });
    if raw.models.as_ref().is_some_and(Vec::is_empty) {
        fault(raw.line, "has no models; it would never run anything".to_owned());
    }
    let (mut models, mut keep_response) = (BTreeMap::new(), false);
    for (At { line, value: model }, raw_model) in raw.models.iter().flatten() {
        if let Some(words) = id_fault(model) {
            fault(*line, format!("the model's id {model:?} {words}"));
        }
        let (Some(raw_model), Some(providers)) = (raw_model, providers.as_deref_mut()) else { continue };
        match providers.get_mut(&raw_model.provider) {
            Some(Some(provider)) => {
                let name = raw_model.model.as_ref().or_else(|| names.get(model)).unwrap_or(model);
                models.insert(model.clone(), (raw_model.provider.clone(), provider.executor(name)));
                keep_response |= provider.keep_response;
            }
            // Its own fault is told already.
            Some(None) => {}
            None => {
                let advice = reader::advice(&raw_model.provider, providers.keys().map(String::as_str));
                fault(*line, format!("model {model:?}: there is no provider {:?}{advice}", raw_model.provider));
            }
        }
    }
    let id = raw.name().unwrap_or_default().to_owned();
    let of = if id.is_empty() { "an agent".to_owned() } else { format!("agent {id:?}") };
    faults.extend(found.into_iter().map(|fault| fault.of(&of)));
    let region = raw.region.as_ref().map(|region| region.value.clone()).unwrap_or_default();
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
        // Without an executor, which is told, nothing more can be said.
        let Some(executor) = raw.executor else { return Err(Vec::new()) };
        let mut faults = raw.misplaced(executor);
        let keep_response = raw.keep_response.unwrap_or(true);
        let built = match executor {
            ExecutorKind::Openai => OpenAi::new(raw.openai(origin, &mut faults), "").map(Kind::OpenAi),
            ExecutorKind::Command => {
                Command::new(raw.command(origin, &mut faults)).map(|command| Kind::One(Arc::new(command)))
            }
            ExecutorKind::Echo => Ok(Kind::One(Arc::new(Echo))),
        };
        match built {
            Ok(kind) if faults.is_empty() => Ok(Self { kind, keep_response, executors: BTreeMap::new() }),
            Ok(_) => Err(faults),
            Err(settings) => {
                faults.extend(
                    settings.into_iter().map(|fault| Fault { line: raw.line(fault.field), message: fault.to_string() }),
                );
                Err(faults)
            }
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
