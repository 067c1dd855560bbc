//! Which agents run, and how they reach their models.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use clap::{Args, value_parser};
use semel_agent::{
    config::{self, AgentSpec, DEFAULT_SLOTS, MAX_SLOTS},
    executor::{KeySource, OpenAiSettings},
};
use semel_spec::Resolved;

use crate::{exit::Refused, terminal::shown};

/// Pairs of model and region that are warned of one by one.
const MAX_UNSERVED: usize = 10;
/// Models or regions that are listed beside what is not served.
const MAX_INSTEAD: usize = 8;

/// How models are reached.
#[derive(Debug, Args)]
pub struct HowArgs {
    #[command(flatten)]
    way: Way,
    /// The environment variable that holds the key of --openai.
    #[arg(long, value_name = "NAME", requires = "openai", conflicts_with = "key_file")]
    key_env: Option<String>,
    /// The file that holds the key of --openai. It is read before each call.
    #[arg(long, value_name = "FILE", requires = "openai")]
    key_file: Option<PathBuf>,
    /// Cells that run at once in each region, with --openai or --echo. [default: 4]
    #[arg(long, value_name = "N", conflicts_with = "agents", value_parser = value_parser!(u32).range(1..=i64::from(MAX_SLOTS)))]
    slots: Option<u32>,
}

/// One of three ways.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Way {
    /// The agents file: which agents there are, and how each reaches its models.
    #[arg(long, value_name = "FILE")]
    agents: Option<PathBuf>,
    /// An OpenAI-compatible endpoint that serves every model in every region: http://127.0.0.1:11434/v1
    #[arg(long, value_name = "URL")]
    openai: Option<String>,
    /// No model at all: every cell is answered with its question. The rows say so.
    #[arg(long)]
    echo: bool,
}

const _: () = assert!(DEFAULT_SLOTS == 4, "the help says the default");

impl HowArgs {
    /// Whether nothing is asked of any model.
    pub fn is_echo(&self) -> bool {
        self.way.echo
    }

    /// Whether agents are named after their regions.
    pub fn is_short(&self) -> bool {
        self.way.agents.is_none()
    }

    /// The agents for a job: an agent for each region, or those of the file that the job has a use for. `is_alone` where
    /// no agents but these can serve it.
    ///
    /// # Errors
    /// The agents file or the settings of the endpoint are refused, or they could run no cell at all.
    pub fn agents(&self, spec: &Resolved, is_alone: bool) -> Result<Vec<AgentSpec>, Refused> {
        let slots = self.slots.unwrap_or(DEFAULT_SLOTS);
        let names: BTreeMap<String, String> =
            spec.models.iter().map(|model| (model.id.clone(), model.model.clone())).collect();
        if let Some(file) = &self.way.agents {
            let agents = config::read(file, &names).map_err(|faults| Refused(faults.to_string()))?;
            if is_alone && !agents.iter().any(|agent| is_used(agent, spec)) {
                return Err(useless(file, &agents, spec));
            }
            return Ok(of_use(agents, spec));
        }
        let regions = regions(spec);
        if let Some(url) = &self.way.openai {
            let settings = OpenAiSettings { key: self.key()?, ..OpenAiSettings::new(url.as_str()) };
            let models: Vec<_> = names.into_iter().collect();
            return AgentSpec::openai_everywhere(settings, &regions, &models, slots).map_err(|faults| {
                let named = named_url(url);
                Refused(faults.iter().map(|fault| format!("{named}: {}", of_url(fault))).collect::<Vec<_>>().join("\n"))
            });
        }
        let models: Vec<String> = names.into_keys().collect();
        Ok(AgentSpec::echo_everywhere(&regions, &models, slots))
    }

    fn key(&self) -> Result<KeySource, Refused> {
        if let Some(file) = &self.key_file {
            return Ok(KeySource::File(file.clone()));
        }
        let Some(name) = &self.key_env else { return Ok(KeySource::None) };
        // The name isn't quoted, nor is an odd one looked up: people paste the key itself here.
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name {
            let words = "--key-env takes the name of an environment variable (OPENAI_API_KEY), not a key";
            return Err(Refused(words.to_owned()));
        }
        KeySource::from_env(std::env::var(name).ok()).map_err(|words| Refused(format!("--key-env: {words}")))
    }
}

/// The option and its value, but for what of a URL may be a key.
fn named_url(url: &str) -> String {
    let open = url.split(['?', '#']).next().unwrap_or_default();
    if open.contains('@') { "--openai".to_owned() } else { format!("--openai {open:?}") }
}

/// A fault of the endpoint's settings as the option's: there it is the URL that an agents file calls `base_url`.
fn of_url(fault: &impl ToString) -> String {
    let words = fault.to_string();
    words.strip_prefix("base_url: ").map(str::to_owned).unwrap_or(words)
}

/// Model and region, in the job's order.
fn lanes(spec: &Resolved) -> impl Iterator<Item = (&str, &str)> {
    spec.models.iter().flat_map(|model| model.regions.iter().map(|region| (model.id.as_str(), region.as_str())))
}

/// Every region of a job, once.
pub fn regions(spec: &Resolved) -> Vec<String> {
    let mut regions: Vec<String> = Vec::new();
    for (_, region) in lanes(spec) {
        if !regions.iter().any(|known| known == region) {
            regions.push(region.to_owned());
        }
    }
    regions
}

/// Whether an agent takes cells of a model in a region.
pub fn serves(agent: &AgentSpec, model: &str, region: &str) -> bool {
    agent.region == region && agent.models.contains_key(model)
}

/// Whether an agent takes any cell of a job.
fn is_used(agent: &AgentSpec, spec: &Resolved) -> bool {
    lanes(spec).any(|(model, region)| serves(agent, model, region))
}

/// The agents that take cells of a job; and in a region where none does, those that are there: so it is told of them which
/// model they don't serve, and not that nobody is.
fn of_use(agents: Vec<AgentSpec>, spec: &Resolved) -> Vec<AgentSpec> {
    let regions = regions(spec);
    let served: BTreeSet<String> =
        agents.iter().filter(|agent| is_used(agent, spec)).map(|agent| agent.region.clone()).collect();
    let is_of_use = |agent: &AgentSpec| {
        is_used(agent, spec) || (regions.contains(&agent.region) && !served.contains(&agent.region))
    };
    agents.into_iter().filter(is_of_use).collect()
}

/// No agent of a file takes any cell of a job: what it asks for, and what there is.
fn useless(file: &Path, agents: &[AgentSpec], spec: &Resolved) -> Refused {
    let mut lines = vec![format!(
        "{}: no agent in it serves any model of this job in a region of the job, so nothing could run; give the agents the \
         job's models by their ids, in its regions",
        file.display()
    )];
    lines.extend(unserved(spec, agents));
    Refused(lines.join("\n"))
}

/// What the agents of a region serve, or that there is none.
fn instead(region: &str, agents: &[AgentSpec]) -> String {
    let here: Vec<&AgentSpec> = agents.iter().filter(|agent| agent.region == region).collect();
    if here.is_empty() {
        let regions: BTreeSet<&str> = agents.iter().map(|agent| agent.region.as_str()).collect();
        return format!("there is no agent in that region, but in {}", listed(&regions));
    }
    let models: BTreeSet<&str> = here.iter().flat_map(|agent| agent.models.keys().map(String::as_str)).collect();
    format!("the agents there serve {}", listed(&models))
}

fn listed(ids: &BTreeSet<&str>) -> String {
    if ids.is_empty() {
        return "none".to_owned();
    }
    let mut words: Vec<String> = ids.iter().take(MAX_INSTEAD).map(|id| shown(id)).collect();
    if ids.len() > MAX_INSTEAD {
        words.push(format!("{} more", ids.len() - MAX_INSTEAD));
    }
    words.join(", ")
}

/// What no agent serves, in words, a line for each of the first: its cells wait until one does.
pub fn unserved(spec: &Resolved, agents: &[AgentSpec]) -> Vec<String> {
    let cells = spec.questions.len() as u64 * u64::from(spec.repeat);
    let mut unserved = lanes(spec)
        .filter(|(model, region)| !agents.iter().any(|agent| serves(agent, model, region)))
        .map(|(model, region)| {
            let (cells, wait) =
                if cells == 1 { ("1 cell".to_owned(), "waits") } else { (format!("{cells} cells"), "will wait") };
            let instead = instead(region, agents);
            format!("no agent serves {} in {}: {cells} {wait}; {instead}", shown(model), shown(region))
        });
    let mut lines: Vec<String> = unserved.by_ref().take(MAX_UNSERVED).collect();
    let more = unserved.count();
    if more > 0 {
        lines.push(format!("and {more} more pairs of model and region that no agent serves; `semel why` has them"));
    }
    lines
}
