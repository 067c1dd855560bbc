//! Checks a specification whole: every fault, each with its place.

use std::{
    collections::{BTreeSet, HashMap},
    ops::RangeInclusive,
};

use semel_files::nearest;

use crate::{
    Faults, JobSpec, MAX_CELLS, MAX_SPEC_BYTES, Model, Policy, Question, Resolved,
    fault::{Collector, Nowhere, id_problem, quote},
    path::{Dialect, Path},
    spec::{Object, digest},
};

/// The most samples of a question.
pub const MAX_REPEAT: u32 = 1_000_000;
/// The most attempts that a job may ask for.
pub const MAX_ATTEMPTS: u32 = 100;
/// The largest weight of a job.
pub const MAX_WEIGHT: u32 = 1_000;
/// The highest priority of a job; its negative is the lowest.
pub const MAX_PRIORITY: i32 = 100;
/// The longest backoff and timeout, in milliseconds: a day.
pub const MAX_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1_000;
/// The longest deadline, in milliseconds: ten years of 365.25 days.
pub const MAX_DEADLINE_MS: u64 = 10 * 31_557_600 * 1_000;

/// What a whole number of a job may be.
pub(crate) type Whole = RangeInclusive<i64>;
/// What a duration of a job may be, in milliseconds.
pub(crate) type Millis = RangeInclusive<u64>;

/// Samples of a question.
pub(crate) const REPEAT: Whole = 1..=MAX_REPEAT as i64;
/// Attempts of a cell.
pub(crate) const ATTEMPTS: Whole = 1..=MAX_ATTEMPTS as i64;
/// Cells leased at once.
pub(crate) const LEASED: Whole = 1..=u32::MAX as i64;
/// A job's weight.
pub(crate) const WEIGHT: Whole = 1..=MAX_WEIGHT as i64;
/// A job's priority.
pub(crate) const PRIORITY: Whole = -(MAX_PRIORITY as i64)..=MAX_PRIORITY as i64;
/// A wait between two attempts.
pub(crate) const BACKOFF: Millis = 0..=MAX_TIMEOUT_MS;
/// The time of a run.
pub(crate) const TIMEOUT: Millis = 1..=MAX_TIMEOUT_MS;
/// The time of a job.
pub(crate) const DEADLINE: Millis = 1..=MAX_DEADLINE_MS;

/// Parameters that the executor sets itself: a job that could set them would be asked of another
/// model, or answered in another form, than its record says.
pub const OWNED_PARAMETERS: [&str; 4] = ["model", "messages", "stream", "n"];

const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// A specification without faults.
#[derive(Clone, Debug)]
pub struct Checked {
    /// As it was sent.
    pub spec: JobSpec,
    /// SHA-256 of it as it was sent.
    pub digest: [u8; 32],
    /// Cells of its matrix: 1 or more.
    pub cells: u32,
    /// With its defaults written out: what is stored and runs.
    pub resolved: Resolved,
}

/// Checks a specification that was built in code; paths are the job file's. For what came over the
/// wire see [`crate::wire::check`], for files [`crate::read::job`].
///
/// # Errors
/// Every fault, all at once.
pub fn check(spec: JobSpec) -> Result<Checked, Faults> {
    finish(spec, Collector::new(&Nowhere, Dialect::File))
}

/// Judges a specification after it was read, and hands back what the reader and the check found.
pub(crate) fn finish(spec: JobSpec, mut c: Collector<'_>) -> Result<Checked, Faults> {
    let cells = judge(&spec, &mut c);
    // A specification that has faults is not digested: its stand-ins aren't what was sent.
    let canonical = if c.is_clean() { spec.canonical() } else { Vec::new() };
    if canonical.len() > MAX_SPEC_BYTES {
        let problem = format!("has {} bytes, and {MAX_SPEC_BYTES} is the most", canonical.len());
        c.fault(&Path::Root, None, (&problem, "split the job"));
    }
    c.finish()?;
    Ok(Checked { digest: digest(&canonical), cells, resolved: Resolved::of(&spec), spec })
}

/// Notes what is wrong; gives the number of cells.
fn judge(spec: &JobSpec, c: &mut Collector<'_>) -> u32 {
    let root = Path::Root;
    questions(spec, &root.key("questions"), c);
    models(spec, &root.key("models"), c);
    regions(spec, &root, c);
    if let Some(repeat) = spec.repeat {
        let path = root.key("repeat");
        range(i64::from(repeat), &REPEAT, &path, c);
    }
    if let Some(parameters) = &spec.parameters {
        owned(parameters, &root.key("parameters"), c);
    }
    if let Some(policy) = &spec.policy {
        self::policy(policy, &root.key("policy"), c);
    }
    cells(spec, c)
}

fn questions(spec: &JobSpec, path: &Path<'_>, c: &mut Collector<'_>) {
    if spec.questions.is_empty() {
        c.fault(path, None, ("has none", "ask at least one question"));
    }
    let ids = spec.questions.iter().map(|question| question.id.as_str());
    axis(ids, path, "questions", c);
    let prompted = prompted_regions(spec);
    for (index, question) in spec.questions.iter().enumerate() {
        let path = path.index(index);
        asked(question, &path, c);
        let first = question.messages.first();
        if let (Some(region), Some("system")) = (&prompted, first.map(|m| m.role.as_str())) {
            let problem = format!("is a system message, and region {region} has a system prompt");
            let help = "keep one of the two: in the question, or in the job";
            c.fault(&path.key("messages").index(0), None, (&problem, help));
        }
    }
}

/// A region in which a system prompt goes before the questions, quoted.
fn prompted_regions(spec: &JobSpec) -> Option<String> {
    let settings: HashMap<&str, Option<&str>> =
        spec.regions.iter().map(|region| (region.id.as_str(), region.system_prompt.as_deref())).collect();
    let named = spec.models.iter().flat_map(|model| &model.regions);
    named
        .filter(|region| {
            let own = settings.get(region.as_str()).copied().flatten();
            let prompt = own.or(spec.system_prompt.as_deref());
            prompt.is_some_and(|prompt| !prompt.is_empty())
        })
        .map(|region| quote(region))
        .next()
}

fn asked(question: &Question, path: &Path<'_>, c: &mut Collector<'_>) {
    match (&question.prompt, question.messages.is_empty()) {
        // What is there and can't be read was said to be wrong already.
        (None, true) if c.could_not_read(&path.key("prompt")) || c.could_not_read(&path.key("messages")) => {}
        (None, true) => {
            let what = ("has neither prompt nor messages", "write a prompt");
            c.fault(path, None, what);
        }
        (Some(_), false) => {
            let what = ("has both prompt and messages", "keep one of the two");
            c.fault(path, None, what);
        }
        (Some(prompt), true) if prompt.is_empty() => {
            let help = "write what is asked; to ask nothing on purpose, use messages";
            c.fault(&path.key("prompt"), None, ("is empty", help));
        }
        _ => {}
    }
    let path = path.key("messages");
    for (index, message) in question.messages.iter().enumerate() {
        if !ROLES.contains(&message.role.as_str()) {
            let what = ("is no role", "write system, user or assistant");
            let path = path.index(index);
            c.fault(&path.key("role"), Some(quote(&message.role)), what);
        }
    }
}

fn models(spec: &JobSpec, path: &Path<'_>, c: &mut Collector<'_>) {
    if spec.models.is_empty() {
        c.fault(path, None, ("has none", "name at least one model"));
    }
    let ids = spec.models.iter().map(|model| model.id.as_str());
    axis(ids, path, "models", c);
    for (index, model) in spec.models.iter().enumerate() {
        self::model(model, &path.index(index), c);
    }
}

fn model(model: &Model, path: &Path<'_>, c: &mut Collector<'_>) {
    if let Some(name) = &model.model {
        id(name, &path.key("model"), c);
    }
    let accepted = path.key("accept_models");
    for (index, name) in model.accept_models.iter().enumerate() {
        id(name, &accepted.index(index), c);
    }
    let regions = path.key("regions");
    if model.regions.is_empty() {
        let what = ("has none", "name at least one region for this model");
        c.fault(&regions, None, what);
    }
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (index, region) in model.regions.iter().enumerate() {
        let path = regions.index(index);
        id(region, &path, c);
        if let Some(earlier) = first.get(region.as_str()) {
            let problem = format!("is listed already as regions[{earlier}] of this model");
            let help = "list it once; for more samples of a question use repeat";
            c.fault(&path, Some(quote(region)), (&problem, help));
        } else {
            first.insert(region, index);
        }
    }
    if let Some(parameters) = &model.parameters {
        owned(parameters, &path.key("parameters"), c);
    }
}

fn regions(spec: &JobSpec, root: &Path<'_>, c: &mut Collector<'_>) {
    let path = root.key("regions");
    let ids = spec.regions.iter().map(|region| region.id.as_str());
    axis(ids, &path, "regions", c);
    if c.has_unread_under(&root.key("models")) {
        return;
    }
    let named: BTreeSet<&str> = spec.models.iter().flat_map(|model| model.regions.iter().map(String::as_str)).collect();
    for (index, region) in spec.regions.iter().enumerate() {
        if named.contains(region.id.as_str()) {
            continue;
        }
        let help = match nearest(&region.id, named.iter().copied()) {
            Some(name) => format!("did you mean {}?", quote(name)),
            None => "add it to a model's regions, or leave its settings out".to_owned(),
        };
        let path = path.index(index);
        let what = ("is a region of no model", help.as_str());
        c.fault(&path.key("id"), Some(quote(&region.id)), what);
    }
}

/// Ids of one axis: each well formed, none twice. They are compared byte by byte.
fn axis<'s>(ids: impl Iterator<Item = &'s str>, path: &Path<'_>, name: &str, c: &mut Collector<'_>) {
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (index, value) in ids.enumerate() {
        let item = path.index(index);
        let path = item.key("id");
        id(value, &path, c);
        if value.is_empty() {
            // Said already; and what couldn't be read has an empty stand-in.
            continue;
        }
        if let Some(earlier) = first.get(value) {
            let problem = format!("is already used by {name}[{earlier}].id");
            let help = format!("give each of the {name} its own id");
            c.fault(&path, Some(quote(value)), (&problem, &help));
        } else {
            first.insert(value, index);
        }
    }
}

fn id(value: &str, path: &Path<'_>, c: &mut Collector<'_>) {
    if let Some((problem, help)) = id_problem(value) {
        c.fault(path, Some(quote(value)), (&problem, &help));
    }
}

fn owned(parameters: &Object, path: &Path<'_>, c: &mut Collector<'_>) {
    for name in OWNED_PARAMETERS {
        if parameters.contains_key(name) {
            let help = match name {
                "n" => "leave it out; for more samples use the job's repeat",
                "model" => "leave it out; the provider's name of a model is its model field",
                "messages" => "leave it out; questions have prompts or messages",
                _ => "leave it out",
            };
            let what = ("is set by the executor and no job's to set", help);
            c.fault(&path.key(name), None, what);
        }
    }
}

fn policy(policy: &Policy, path: &Path<'_>, c: &mut Collector<'_>) {
    let counts = [
        ("attempts", policy.attempts.map(i64::from), ATTEMPTS),
        ("max_leased", policy.max_leased.map(i64::from), LEASED),
        ("max_leased_per_model", policy.max_leased_per_model.map(i64::from), LEASED),
        ("max_leased_per_region", policy.max_leased_per_region.map(i64::from), LEASED),
        ("weight", policy.weight.map(i64::from), WEIGHT),
        ("priority", policy.priority.map(i64::from), PRIORITY),
    ];
    for (key, value, allowed) in counts {
        if let Some(value) = value {
            range(value, &allowed, &path.key(key), c);
        }
    }
    let durations = [
        ("backoff", policy.backoff_ms, BACKOFF),
        ("max_backoff", policy.max_backoff_ms, BACKOFF),
        ("run_timeout", policy.run_timeout_ms, TIMEOUT),
        ("cold_timeout", policy.cold_timeout_ms, TIMEOUT),
        ("deadline", policy.deadline_ms, DEADLINE),
    ];
    for (key, value, allowed) in durations {
        if let Some(value) = value {
            duration(value, &allowed, &path.key(key), c);
        }
    }
    if let (Some(first), Some(most)) = (policy.backoff_ms, policy.max_backoff_ms)
        && first > most
    {
        let problem = "is longer than max_backoff";
        let help = format!("write at most {}", in_words(most));
        let value = Some(in_words(first));
        c.fault(&path.key("backoff"), value, (problem, &help));
    }
}

/// What is wrong with a number or a duration that is none of those it may be.
pub(crate) const OUT_OF_RANGE: &str = "is out of its range";

/// Which whole numbers may be written.
pub(crate) fn whole_help(allowed: &Whole) -> String {
    format!("write a whole number from {} to {}", allowed.start(), allowed.end())
}

/// Which durations may be written, and how.
pub(crate) fn duration_help(allowed: &Millis) -> String {
    let (least, most) = (in_words(*allowed.start()), in_words(*allowed.end()));
    format!("write a number and a unit, as 90s or 2m: from {least} to {most}")
}

fn range(value: i64, allowed: &Whole, path: &Path<'_>, c: &mut Collector<'_>) {
    if !allowed.contains(&value) {
        c.fault(path, Some(value.to_string()), (OUT_OF_RANGE, &whole_help(allowed)));
    }
}

fn duration(value: u64, allowed: &Millis, path: &Path<'_>, c: &mut Collector<'_>) {
    if !allowed.contains(&value) {
        c.fault(path, Some(in_words(value)), (OUT_OF_RANGE, &duration_help(allowed)));
    }
}

/// Milliseconds as a person writes them: `5m`.
pub(crate) fn in_words(ms: u64) -> String {
    let duration = std::time::Duration::from_millis(ms);
    humantime::format_duration(duration).to_string()
}

/// The number of cells. Their index is a u32.
fn cells(spec: &JobSpec, c: &mut Collector<'_>) -> u32 {
    let lanes: u64 = spec.models.iter().map(|m| m.regions.len() as u64).sum();
    let questions = spec.questions.len() as u64;
    let repeat = u64::from(spec.repeat.unwrap_or(1));
    let cells = lanes.saturating_mul(questions).saturating_mul(repeat);
    match u32::try_from(cells) {
        Ok(cells) => cells,
        Err(_) => {
            let problem = format!(
                "has {cells} cells ({lanes} of model and region × {questions} questions × \
                 {repeat} samples), and {MAX_CELLS} is the most"
            );
            c.fault(&Path::Root, None, (&problem, "split the job"));
            0
        }
    }
}
