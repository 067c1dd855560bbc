//! The job file: a tree read into a specification, fault by fault.

use semel_files::{
    json,
    tree::{Broken, Node, Value},
    yaml,
};

use crate::{
    Checked, Faults, JobSpec, MAX_SPEC_BYTES, Message, Model, OnLeaseLost, Policy, Question, RegionSettings, check,
    fault::{Collector, Fault, Locate, Nowhere, Spot, id_problem, quote},
    node::{Source, find},
    path::{Dialect, Path, Step},
    questions::{self, Names},
    walk::{Fields, Walk},
};

/// Keys at the top of a job file.
pub(crate) const JOB_KEYS: [&str; 9] =
    ["job", "questions", "models", "regions", "system_prompt", "parameters", "repeat", "policy", "metadata"];
/// Keys of a question.
pub(crate) const QUESTION_KEYS: [&str; 4] = ["id", "prompt", "messages", "metadata"];
/// Keys of a message.
pub(crate) const MESSAGE_KEYS: [&str; 2] = ["role", "content"];
/// Keys that name a question file.
pub(crate) const FILE_KEYS: [&str; 3] = ["file", "id", "prompt"];
/// Keys of a model.
pub(crate) const MODEL_KEYS: [&str; 5] = ["id", "model", "accept_models", "regions", "parameters"];
/// Keys of a region's settings.
pub(crate) const REGION_KEYS: [&str; 2] = ["id", "system_prompt"];
/// Keys of a policy.
pub(crate) const POLICY_KEYS: [&str; 13] = [
    "attempts",
    "backoff",
    "max_backoff",
    "run_timeout",
    "cold_timeout",
    "deadline",
    "on_lease_lost",
    "max_leased",
    "max_leased_per_model",
    "max_leased_per_region",
    "require_reported_region",
    "weight",
    "priority",
];

/// How a job file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2.
    Yaml,
    /// JSON.
    Json,
}

/// A job file that was read and checked.
#[derive(Clone, Debug)]
pub struct JobFile {
    /// The job's id.
    pub job: String,
    /// Its specification.
    pub checked: Checked,
}

/// A question file's bytes, and its name as faults give it.
#[derive(Clone, Debug)]
pub struct QuestionFile {
    /// The name.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Reads and checks the text of a job file. `name` is the file's name as faults give it; `load`
/// gets a question file by the name that stands in the job, or says why it can't.
///
/// # Errors
/// Every fault of the job file and its question file, each with its place.
pub fn parse(
    name: &str,
    text: &[u8],
    format: Format,
    load: &dyn Fn(&str) -> Result<QuestionFile, String>,
) -> Result<JobFile, Faults> {
    let source = Source { name: Some(name.to_owned()), lines_before: 0 };
    if text.len() > MAX_SPEC_BYTES {
        let problem = format!("has {} bytes, and {MAX_SPEC_BYTES} is the most", text.len());
        return Err(of_file(&source, None, &problem, "split the job"));
    }
    let text = utf8(text, &source)?;
    // Some editors write a byte order mark, in front of JSON too.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = match format {
        Format::Yaml => yaml::read(text, yaml::Keys::Text),
        Format::Json => json::read(text),
    }
    .map_err(|broken| of_broken(&source, &broken))?;

    let mut collector = Collector::new(&Nowhere, Dialect::File);
    let mut document = Document { load, question_lines: None, walk: Walk { source: &source, faults: &mut collector } };
    let (job, spec) = document.job(&root);
    let places = Places { root: &root, source: &source, question_lines: document.question_lines.take() };
    let checked = check::finish(spec, collector.located_by(&places))?;
    Ok(JobFile { job, checked })
}

/// The text of a file, or the line on which it stops being text.
pub(crate) fn utf8<'t>(bytes: &'t [u8], source: &Source) -> Result<&'t str, Faults> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let breaks = before.iter().filter(|byte| **byte == b'\n').count();
        let line = u32::try_from(breaks + 1).ok();
        of_file(source, line, "is no UTF-8 text", "save the file as UTF-8")
    })
}

fn of_file(source: &Source, line: Option<u32>, problem: &str, help: &str) -> Faults {
    let problem = format!("the file {problem}");
    Faults(vec![Fault { file: source.name.clone(), line, ..Fault::of_field("", None, &problem, help) }])
}

fn of_broken(source: &Source, broken: &Broken) -> Faults {
    let spot = source.spot(broken.place);
    let problem = format!("the file {}", broken.problem);
    Faults(vec![Fault {
        file: spot.file,
        line: spot.line,
        column: spot.column,
        ..Fault::of_field("", None, &problem, &broken.help)
    }])
}

/// Where the parts of a specification stand: in the job file, or its questions in their own.
struct Places<'d> {
    root: &'d Node,
    source: &'d Source,
    question_lines: Option<questions::Lines>,
}

impl Locate for Places<'_> {
    fn locate(&self, steps: &[Step<'_>]) -> Spot {
        if let (Some(lines), Some(Step::Key("questions")), Some(Step::Index(index))) =
            (&self.question_lines, steps.first(), steps.get(1))
        {
            return lines.spot(*index);
        }
        self.source.spot(find(self.root, steps))
    }
}

struct Document<'d, 'c> {
    load: &'d dyn Fn(&str) -> Result<QuestionFile, String>,
    question_lines: Option<questions::Lines>,
    walk: Walk<'d, 'c>,
}

impl Document<'_, '_> {
    fn job(&mut self, root: &Node) -> (String, JobSpec) {
        let path = Path::Root;
        let Some(fields) = self.walk.object(root, &path, &JOB_KEYS) else {
            return Default::default();
        };
        let help = "name the job: job: my-job";
        let job = self.walk.required_text(fields, "job", (root, &path), help);
        self.job_id(&job, fields);
        let regions = self.regions(fields, &path);
        let spec = JobSpec {
            questions: self.questions(fields, &path),
            models: self.models(fields, &path, &regions),
            repeat: self.walk.whole(fields, "repeat", &path, &check::REPEAT),
            regions,
            system_prompt: self.walk.optional_text(fields, "system_prompt", &path),
            parameters: self.walk.free_object(fields, "parameters", &path),
            policy: self.policy(fields, &path),
            metadata: self.walk.free_object(fields, "metadata", &path),
        };
        (job, spec)
    }

    fn job_id(&mut self, job: &str, fields: Fields<'_>) {
        let Some(node) = fields.get("job") else {
            return;
        };
        if let (Value::Text(_), Some((problem, help))) = (&node.value, id_problem(job)) {
            let spot = self.walk.source.spot(node.place);
            let path = Path::Root;
            let value = Some(quote(job));
            self.walk.faults.unread(&path.key("job"), spot, value, (&problem, &help));
        }
    }

    fn questions(&mut self, fields: Fields<'_>, path: &Path<'_>) -> Vec<Question> {
        let Some(node) = fields.get("questions") else {
            return Vec::new();
        };
        let path = path.key("questions");
        match &node.value {
            Value::Map(_) => self.question_file(node, &path),
            Value::List(items) => {
                let names = Names::default();
                let question = |(index, item)| question(&mut self.walk, item, &path.index(index), &names);
                items.iter().enumerate().map(question).collect()
            }
            _ => {
                let wanted = "a list of questions, or an object that names their file";
                self.walk.wrong(node, &path, wanted, "write a list of id and prompt");
                Vec::new()
            }
        }
    }

    fn question_file(&mut self, node: &Node, path: &Path<'_>) -> Vec<Question> {
        let Some(fields) = self.walk.object(node, path, &FILE_KEYS) else {
            return Vec::new();
        };
        let help = "name a file: file: questions.csv";
        let file = self.walk.required_text(fields, "file", (node, path), help);
        let names =
            Names::of(self.walk.optional_text(fields, "id", path), self.walk.optional_text(fields, "prompt", path));
        if file.is_empty() {
            return Vec::new();
        }
        let found = match (self.load)(&file) {
            Ok(loaded) => questions::read(&loaded, &names, path, self.walk.faults),
            Err(reason) => Err((format!("can't be read: {reason}"), "put it there".to_owned())),
        };
        match found {
            Ok((questions, lines)) => {
                self.question_lines = Some(lines);
                questions
            }
            Err((problem, help)) => {
                let place = fields.get("file").unwrap_or(node).place;
                let what = (problem.as_str(), help.as_str());
                let (spot, value) = (self.walk.source.spot(place), Some(quote(&file)));
                self.walk.faults.unread(path, spot, value, what);
                Vec::new()
            }
        }
    }

    /// A model without regions is asked in all those that the job lists. This is settled here,
    /// before the digest, so that what travels always names them.
    fn models(&mut self, fields: Fields<'_>, path: &Path<'_>, regions: &[RegionSettings]) -> Vec<Model> {
        let Some(node) = fields.get("models") else {
            return Vec::new();
        };
        let path = path.key("models");
        let Some(items) = self.walk.list(node, &path) else {
            return Vec::new();
        };
        let model = |(index, item)| self.model(item, &path.index(index), regions);
        items.iter().enumerate().map(model).collect()
    }

    fn model(&mut self, node: &Node, path: &Path<'_>, regions: &[RegionSettings]) -> Model {
        let Some(fields) = self.walk.object(node, path, &MODEL_KEYS) else {
            return Model::default();
        };
        let own = self.walk.texts(fields, "regions", path);
        if own.is_none() && self.walk.faults.could_not_read(&Path::Root.key("regions")) {
            // It would be asked in all of those.
            self.walk.faults.excuse(&path.key("regions"));
        }
        let all = || regions.iter().map(|region| region.id.clone()).collect();
        let help = "give the model an id";
        Model {
            id: self.walk.required_text(fields, "id", (node, path), help),
            model: self.walk.optional_text(fields, "model", path),
            accept_models: self.walk.texts(fields, "accept_models", path).unwrap_or_default(),
            regions: match fields.get("regions") {
                Some(_) => own.unwrap_or_default(),
                None => all(),
            },
            parameters: self.walk.free_object(fields, "parameters", path),
        }
    }

    fn regions(&mut self, fields: Fields<'_>, path: &Path<'_>) -> Vec<RegionSettings> {
        let Some(node) = fields.get("regions") else {
            return Vec::new();
        };
        let path = path.key("regions");
        let Some(items) = self.walk.list(node, &path) else {
            return Vec::new();
        };
        let region = |(index, item)| self.region(item, &path.index(index));
        items.iter().enumerate().map(region).collect()
    }

    /// A region: an object, or its id alone.
    fn region(&mut self, node: &Node, path: &Path<'_>) -> RegionSettings {
        if !matches!(node.value, Value::Map(_)) {
            return RegionSettings { id: self.walk.text(node, path).unwrap_or_default(), system_prompt: None };
        }
        let Some(fields) = self.walk.object(node, path, &REGION_KEYS) else {
            return RegionSettings::default();
        };
        let help = "name the region";
        RegionSettings {
            id: self.walk.required_text(fields, "id", (node, path), help),
            system_prompt: self.walk.optional_text(fields, "system_prompt", path),
        }
    }

    fn policy(&mut self, fields: Fields<'_>, path: &Path<'_>) -> Option<Policy> {
        let node = fields.get("policy")?;
        let path = path.key("policy");
        let fields = self.walk.object(node, &path, &POLICY_KEYS)?;
        let walk = &mut self.walk;
        Some(Policy {
            attempts: walk.whole(fields, "attempts", &path, &check::ATTEMPTS),
            backoff_ms: walk.duration(fields, "backoff", &path, &check::BACKOFF),
            max_backoff_ms: walk.duration(fields, "max_backoff", &path, &check::BACKOFF),
            run_timeout_ms: walk.duration(fields, "run_timeout", &path, &check::TIMEOUT),
            cold_timeout_ms: walk.duration(fields, "cold_timeout", &path, &check::TIMEOUT),
            deadline_ms: walk.duration(fields, "deadline", &path, &check::DEADLINE),
            on_lease_lost: on_lease_lost(walk, fields, &path),
            max_leased: walk.whole(fields, "max_leased", &path, &check::LEASED),
            max_leased_per_model: walk.whole(fields, "max_leased_per_model", &path, &check::LEASED),
            max_leased_per_region: walk.whole(fields, "max_leased_per_region", &path, &check::LEASED),
            require_reported_region: walk.flag(fields, "require_reported_region", &path),
            weight: walk.whole(fields, "weight", &path, &check::WEIGHT),
            priority: walk.whole(fields, "priority", &path, &check::PRIORITY),
        })
    }
}

fn on_lease_lost(walk: &mut Walk<'_, '_>, fields: Fields<'_>, path: &Path<'_>) -> Option<OnLeaseLost> {
    let node = fields.get("on_lease_lost")?;
    let path = path.key("on_lease_lost");
    let word = walk.text(node, &path)?;
    let known = [OnLeaseLost::Retry, OnLeaseLost::Fail];
    let found = known.into_iter().find(|choice| choice.as_str() == word);
    if found.is_none() {
        let spot = walk.source.spot(node.place);
        let what = ("is no known choice", "write retry or fail");
        walk.faults.unread(&path, spot, Some(quote(&word)), what);
    }
    found
}

/// Reads a question object, of a job file or of a line of a question file.
pub(crate) fn question(walk: &mut Walk<'_, '_>, node: &Node, path: &Path<'_>, names: &Names) -> Question {
    let keys = names.keys();
    let Some(fields) = walk.object(node, path, &keys) else {
        return Question::default();
    };
    let help = "give the question an id";
    Question {
        id: walk.required_text(fields, &names.id, (node, path), help),
        prompt: walk.optional_text(fields, &names.prompt, path),
        messages: messages(walk, fields, path),
        metadata: walk.free_object(fields, "metadata", path),
    }
}

fn messages(walk: &mut Walk<'_, '_>, fields: Fields<'_>, path: &Path<'_>) -> Vec<Message> {
    let Some(node) = fields.get("messages") else {
        return Vec::new();
    };
    let path = path.key("messages");
    let Some(items) = walk.list(node, &path) else {
        return Vec::new();
    };
    let message = |(index, item): (usize, &Node)| {
        let path = path.index(index);
        let Some(fields) = walk.object(item, &path, &MESSAGE_KEYS) else {
            return Message::default();
        };
        let around = (item, &path);
        Message {
            role: walk.required_text(fields, "role", around, "write system, user or assistant"),
            content: walk.required_text(fields, "content", around, "write the message's text"),
        }
    };
    items.iter().enumerate().map(message).collect()
}
