//! Bad jobs: one table for every road. The check of files, `semel check`, `semel run` and the call of SubmitJob each
//! have a test that goes through it, so that a line of it holds on all of them or on none.
//!
//! A case is the job of [`FILE`] with something wrong, once as a file and once as what travels. Some things can be wrong
//! on one of the two only. A call has no question files. And of a call's own fields none can be unknown or of a wrong
//! type: a protobuf decoder drops the ones and refuses the others before Semel sees them; what is left are the texts of
//! free JSON and the numbers of enums.

use semel_proto::v1 as pb;

/// A job without faults.
pub const FILE: &str = "\
job: j
questions:
  - { id: q1, prompt: one }
  - { id: q2, prompt: two }
models:
  - { id: m1, regions: [eu, us] }
  - { id: m2, regions: [eu] }
";

/// What travels.
#[derive(Clone)]
pub struct Call {
    pub job_id: String,
    pub spec: pb::JobSpec,
}

/// The job of [`FILE`] as it travels.
pub fn call() -> Call {
    let question = |id: &str, prompt: &str| pb::Question {
        id: id.to_owned(),
        prompt: Some(prompt.to_owned()),
        ..Default::default()
    };
    let model = |id: &str, regions: &[&str]| pb::Model {
        id: id.to_owned(),
        regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        ..Default::default()
    };
    let spec = pb::JobSpec {
        questions: vec![question("q1", "one"), question("q2", "two")],
        models: vec![model("m1", &["eu", "us"]), model("m2", &["eu"])],
        ..Default::default()
    };
    Call { job_id: "j".to_owned(), spec }
}

/// A job with something wrong, and every word that is to be said about it.
pub struct Bad {
    /// What is wrong.
    pub what: String,
    /// `job.yaml`.
    pub file: String,
    /// What stands beside it: a question file's name and bytes.
    pub beside: Option<(&'static str, &'static [u8])>,
    /// The lines about the file.
    pub lines: Vec<String>,
    /// The same job as a call, if it can be one.
    pub call: Option<Call>,
    /// The fields that the call's refusal names, and what it says of each.
    pub fields: Vec<(String, String)>,
}

impl Bad {
    fn new(what: &str, file: String) -> Self {
        Self { what: what.to_owned(), file, beside: None, lines: Vec::new(), call: None, fields: Vec::new() }
    }

    /// The job of [`FILE`] with parts of its text replaced.
    fn edited(what: &str, edits: &[(&str, &str)]) -> Self {
        let file = edits.iter().fold(FILE.to_owned(), |file, (part, other)| {
            assert!(file.contains(part), "{what}: {part:?}");
            file.replacen(part, other, 1)
        });
        Self::new(what, file)
    }

    /// The job of [`FILE`] with more of it.
    fn with(what: &str, more: &str) -> Self {
        Self::new(what, format!("{FILE}{more}"))
    }

    fn beside(mut self, name: &'static str, bytes: &'static [u8]) -> Self {
        self.beside = Some((name, bytes));
        self
    }

    fn call(mut self, spoil: impl FnOnce(&mut Call)) -> Self {
        let mut call = call();
        spoil(&mut call);
        self.call = Some(call);
        self
    }

    /// A line about the file, and nothing about a call.
    fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// A field of the call, and nothing about the file.
    fn field(mut self, field: &str, words: &str) -> Self {
        self.fields.push((field.to_owned(), words.to_owned()));
        self
    }

    /// One fault on both roads: its place in the file, its path there, its field in the call, the words.
    fn says(self, place: &str, path: &str, field: &str, words: &str) -> Self {
        self.line(&format!("job.yaml:{place} {path}: {words}")).field(field, words)
    }
}

/// Every bad job.
pub fn table() -> Vec<Bad> {
    let mut table = axes();
    table.extend(ids());
    table.extend(question_files());
    table.extend(keys_and_types());
    table.extend(ranges());
    table.extend(free_json());
    table.push(all_at_once());
    table
}

fn axes() -> Vec<Bad> {
    const QUESTIONS: &str = "questions:\n  - { id: q1, prompt: one }\n  - { id: q2, prompt: two }\n";
    const MODELS: &str = "models:\n  - { id: m1, regions: [eu, us] }\n  - { id: m2, regions: [eu] }\n";
    let ask = "has none; ask at least one question";
    let name = "has none; name at least one model";
    let region = "has none; name at least one region for this model";
    vec![
        Bad::edited("no questions", &[(QUESTIONS, "questions: []\n")])
            .call(|c| c.spec.questions.clear())
            .says("2:12", "questions", "spec.questions", ask),
        Bad::edited("no models", &[(MODELS, "models: []\n")])
            .call(|c| c.spec.models.clear())
            .says("5:9", "models", "spec.models", name),
        Bad::new("nothing but a name", "job: j\n".to_owned())
            .call(|c| c.spec = pb::JobSpec::default())
            .says("1:1", "questions", "spec.questions", ask)
            .says("1:1", "models", "spec.models", name),
        Bad::edited("a model with no region", &[("[eu] }", "[] }")])
            .call(|c| c.spec.models[1].regions.clear())
            .says("7:24", "models[1].regions", "spec.models[1].regions", region),
        Bad::edited("no regions at all", &[(", regions: [eu, us]", ""), (", regions: [eu]", "")])
            .call(|c| c.spec.models.iter_mut().for_each(|model| model.regions.clear()))
            .says("6:5", "models[0].regions", "spec.models[0].regions", region)
            .says("7:5", "models[1].regions", "spec.models[1].regions", region),
        Bad::with("settings of a region that no model names", "regions: [eu, mars]\n")
            .call(|c| {
                c.spec.regions = ["eu", "mars"].map(|id| pb::RegionSettings { id: id.into(), ..Default::default() }).into();
            })
            .says(
                "8:15",
                "regions[1].id",
                "spec.regions[1].id",
                "\"mars\" is a region of no model; add it to a model's regions, or leave its settings out",
            ),
        Bad::edited("a question twice", &[("id: q2", "id: q1")])
            .call(|c| c.spec.questions[1].id = "q1".into())
            .says(
                "4:11",
                "questions[1].id",
                "spec.questions[1].id",
                "\"q1\" is already used by questions[0].id; give each of the questions its own id",
            ),
        Bad::edited("a model twice", &[("id: m2", "id: m1")]).call(|c| c.spec.models[1].id = "m1".into()).says(
            "7:11",
            "models[1].id",
            "spec.models[1].id",
            "\"m1\" is already used by models[0].id; give each of the models its own id",
        ),
        Bad::edited("a region twice", &[("[eu, us]", "[eu, eu]")])
            .call(|c| c.spec.models[0].regions[1] = "eu".into())
            .says(
                "6:29",
                "models[0].regions[1]",
                "spec.models[0].regions[1]",
                "\"eu\" is listed already as regions[0] of this model; list it once; for more samples of a question use repeat",
            ),
    ]
}

/// What is wrong with an id, how YAML writes it, what it is, and the words.
fn bad_ids() -> Vec<(&'static str, String, String, String)> {
    let long = format!("{}é", "x".repeat(254));
    let shown = format!("{}…", "x".repeat(60));
    let id = |what, yaml: &str, id: &str, words: &str| (what, yaml.to_owned(), id.to_owned(), words.to_owned());
    let white = |value: &str, better: &str| format!("\"{value}\" begins or ends with white space; write \"{better}\"");
    vec![
        id("empty", "''", "", "\"\" is empty; give it 1 to 255 bytes of text"),
        id("with NUL", r#""a\0b""#, "a\0b", r#""a\0b" has the control character NUL; take it out"#),
        id(
            "with an escape",
            r#""a\e[31m""#,
            "a\u{1b}[31m",
            r#""a\u{1b}[31m" has the control character U+001B; take it out"#,
        ),
        id("with a line end", r#""a\nb""#, "a\nb", r#""a\nb" has the control character U+000A; take it out"#),
        id("with DEL", r#""a\x7Fb""#, "a\u{7f}b", r#""a\u{7f}b" has the control character U+007F; take it out"#),
        id(
            "with a C1 control",
            r#""a\x9Bb""#,
            "a\u{9b}b",
            r#""a\u{9b}b" has the control character U+009B; take it out"#,
        ),
        id("with a space before", "' a'", " a", &white(" a", "a")),
        id("with a space after", "'a '", "a ", &white("a ", "a")),
        id("with a no-break space after", "'a\u{a0}'", "a\u{a0}", &white("a\u{a0}", "a")),
        id("of nothing but space", "' '", " ", "\" \" is nothing but white space; give it 1 to 255 bytes of text"),
        id("of 256 bytes", &long, &long, &format!("\"{shown}\" has 256 bytes, and 255 is the most; shorten it")),
    ]
}

/// Each bad id on each axis, and as the job's.
fn ids() -> Vec<Bad> {
    type Axis = (&'static str, &'static str, &'static str, &'static str, &'static str, fn(&mut Call, String));
    let axes: [Axis; 4] = [
        ("a job", "job: j", "1:6", "job", "job_id", |call, id| call.job_id = id),
        ("a question", "id: q2", "4:11", "questions[1].id", "spec.questions[1].id", |call, id| {
            call.spec.questions[1].id = id;
        }),
        ("a model", "id: m2", "7:11", "models[1].id", "spec.models[1].id", |call, id| call.spec.models[1].id = id),
        ("a region", "[eu", "6:25", "models[0].regions[0]", "spec.models[0].regions[0]", |call, id| {
            call.spec.models[0].regions[0] = id;
        }),
    ];
    let mut table = Vec::new();
    for (axis, part, place, path, field, put) in axes {
        // A part ends with the two or one characters of the good id.
        let before = part.trim_end_matches(|c: char| c.is_ascii_alphanumeric());
        for (what, yaml, id, words) in bad_ids() {
            let bad = Bad::edited(&format!("{axis} {what}"), &[(part, &format!("{before}{yaml}"))]);
            table.push(bad.call(|call| put(call, id)).says(place, path, field, &words));
        }
    }
    table
}

fn question_files() -> Vec<Bad> {
    let job = |what: &str, file: &str| {
        Bad::new(what, format!("job: j\nquestions: {{ file: {file} }}\nmodels: [{{ id: m, regions: [r] }}]\n"))
    };
    vec![
        job("a JSONL file with broken lines", "q.jsonl")
            .beside("q.jsonl", b"{\"id\": \"a\", \"prompt\": \"p\"}\n\n{\"id\": \"b\", }\n{\"id\": \"a\", \"prompt\": \"p\"}\n[]\n")
            .line("q.jsonl:3:13 questions[1]: is no valid JSON: it has no key here; write a key in double quotes")
            .line("q.jsonl:4 questions[2].id: \"a\" is already used by questions[0].id; give each of the questions its own id")
            .line("q.jsonl:5:1 questions[3]: is a list, not an object; write the keys id, prompt, messages, metadata"),
        job("a CSV file with broken lines", "q.csv")
            .beside("q.csv", b"id,prompt,topic\na,hello,x\nb,one,two,three\n\"c\",\"more\nlines\",\na,again,x\n,p,x\n")
            .line(
                "q.csv:3:1 questions[1]: is a broken line: it has 4 cells where the header has 3; \
                 put cells that hold commas or line breaks in quotes",
            )
            .line("q.csv:6 questions[3].id: \"a\" is already used by questions[0].id; give each of the questions its own id")
            .line("q.csv:7 questions[4].id: \"\" is empty; give it 1 to 255 bytes of text"),
        job("a question file that is no text", "q.csv").beside("q.csv", b"id,prompt\na,b\nc,\xff\n").line(
            "job.yaml:2:20 questions: \"q.csv\" has a broken line 3, which is no UTF-8 text; save the file as UTF-8",
        ),
        job("a question file that isn't there", "q.csv").line(
            "job.yaml:2:20 questions: \"q.csv\" can't be read: No such file or directory (os error 2); put it there",
        ),
        job("a question file without questions", "q.csv")
            .beside("q.csv", b"id,prompt\n")
            .line("job.yaml:2:12 questions: has none; ask at least one question"),
    ]
}

/// Of the file alone.
fn keys_and_types() -> Vec<Bad> {
    let unknown = |known: &str| format!("is no known key; did you mean {known}?");
    vec![
        Bad::edited(
            "unknown keys, each with the nearest known one",
            &[("job: j", "job: j\njbo: k"), ("q1, prompt", "q1, promt"), ("m1, regions", "m1, region")],
        )
        .line(&format!("job.yaml:2:1 jbo: {}", unknown("job")))
        .line(&format!("job.yaml:4:15 questions[0].promt: {}", unknown("prompt")))
        .line(&format!("job.yaml:7:15 models[0].region: {}", unknown("regions"))),
        Bad::with(
            "unknown keys further in",
            "policy: { attemps: 2 }\nregions: [{ id: eu, sytem_prompt: x }]\n",
        )
        .line(&format!("job.yaml:8:11 policy.attemps: {}", unknown("attempts")))
        .line(&format!("job.yaml:9:21 regions[0].sytem_prompt: {}", unknown("system_prompt"))),
        Bad::with("a key like no other", "zzz: 1\n").line(
            "job.yaml:8:1 zzz: is no known key; the known keys are job, questions, models, regions, system_prompt, \
             parameters, repeat, policy, metadata",
        ),
        Bad::edited("text that is none", &[("id: q1", "id: 7"), ("prompt: two", "prompt: [two]"), ("id: m1", "id: no")])
            .line("job.yaml:3:11 questions[0].id: 7 is a number, not text; write it in quotes: \"7\"")
            .line("job.yaml:4:23 questions[1].prompt: is a list, not text; write text, in quotes if need be")
            .line(
                "job.yaml:6:11 models[0].id: no is a bare word that YAML readers take for a number or a boolean, or don't; \
                 write it in quotes if it is text: \"no\"; else write true, false or a decimal number",
            ),
        Bad::with(
            "numbers, lists, objects and choices that are none",
            "repeat: many\nparameters: [1]\npolicy: { run_timeout: 30, on_lease_lost: later, require_reported_region: 1, deadline: 10 }\n",
        )
        .line("job.yaml:8:9 repeat: \"many\" is text, not a whole number; write a whole number from 1 to 1000000")
        .line("job.yaml:9:13 parameters: is a list, not an object; write keys and values")
        .line("job.yaml:10:24 policy.run_timeout: 30 has no unit; write its unit; if milliseconds are meant: 30ms")
        .line("job.yaml:10:43 policy.on_lease_lost: \"later\" is no known choice; write retry or fail")
        .line("job.yaml:10:75 policy.require_reported_region: 1 is a number, not true or false; write true or false")
        .line("job.yaml:10:88 policy.deadline: 10 has no unit; write its unit, as 10h or 10d"),
        Bad::edited(
            "an axis under a key that is nearly its own: one fault each",
            &[("job: j", "jbo: j"), ("questions:", "quesitons:"), ("models:", "modles:")],
        )
        .line(&format!("job.yaml:1:1 jbo: {}", unknown("job")))
        .line(&format!("job.yaml:2:1 quesitons: {}", unknown("questions")))
        .line(&format!("job.yaml:5:1 modles: {}", unknown("models"))),
        Bad::edited(
            "the regions of all under a key that is nearly its own",
            &[("job: j", "job: j\nregion: [eu]"), (", regions: [eu, us]", ""), (", regions: [eu]", "")],
        )
        .line(&format!("job.yaml:2:1 region: {}", unknown("regions"))),
        Bad::new("no job but a list", "[]\n".to_owned()).line(
            "job.yaml:1:1: the file is a list, not an object; write the keys job, questions, models, regions, system_prompt, \
             parameters, repeat, policy, metadata",
        ),
        Bad::new("no YAML", "job: j\nquestions: [\n".to_owned()).line("job.yaml:2:12: the file is no valid YAML: unclosed bracket '['; put its syntax right"),
    ]
}

/// Numbers and durations of the file alone, each refused with its range.
fn ranges() -> Vec<Bad> {
    let as_ = "write a number and a unit, as 90s or 2m:";
    vec![
        Bad::with(
            "whole numbers that are none of those they may be",
            "repeat: -1\npolicy:\n  attempts: 99999999999999999999\n  max_leased: 0\n  max_leased_per_model: 4294967296\n  \
             max_leased_per_region: 1.5\n  weight: 1001\n  priority: 101\n",
        )
        .line("job.yaml:8:9 repeat: -1 is out of its range; write a whole number from 1 to 1000000")
        .line("job.yaml:10:13 policy.attempts: 99999999999999999999 is out of its range; write a whole number from 1 to 100")
        .line("job.yaml:11:15 policy.max_leased: 0 is out of its range; write a whole number from 1 to 4294967295")
        .line("job.yaml:12:25 policy.max_leased_per_model: 4294967296 is out of its range; write a whole number from 1 to 4294967295")
        .line("job.yaml:13:26 policy.max_leased_per_region: 1.5 is a number, not a whole number; write a whole number from 1 to 4294967295")
        .line("job.yaml:14:11 policy.weight: 1001 is out of its range; write a whole number from 1 to 1000")
        .line("job.yaml:15:13 policy.priority: 101 is out of its range; write a whole number from -100 to 100"),
        Bad::with(
            "durations that are none of those they may be",
            "policy: { backoff: soon, max_backoff: 2days, run_timeout: 0s, cold_timeout: 1 fortnight, deadline: 99999999999999years }\n",
        )
        .line(&format!("job.yaml:8:20 policy.backoff: \"soon\" is no duration; {as_} from 0s to 1day"))
        .line(&format!("job.yaml:8:39 policy.max_backoff: 2days is out of its range; {as_} from 0s to 1day"))
        .line(&format!("job.yaml:8:59 policy.run_timeout: 0s is out of its range; {as_} from 1ms to 1day"))
        .line(&format!("job.yaml:8:77 policy.cold_timeout: \"1 fortnight\" is no duration; {as_} from 1ms to 1day"))
        .line(&format!("job.yaml:8:100 policy.deadline: \"99999999999999years\" is out of its range; {as_} from 1ms to 10years")),
    ]
}

/// What can be of a wrong type in a call: the texts of free JSON, and enums.
fn free_json() -> Vec<Bad> {
    let twice = "stands here a second time; keep one of the two: readers differ on which counts";
    vec![
        Bad::with("parameters that the executor owns", "parameters: { stream: true }\n")
            .call(|c| c.spec.parameters_json = Some("{\"stream\":true}".into()))
            .says(
                "8:23",
                "parameters.stream",
                "spec.parameters_json.stream",
                "is set by the executor and no job's to set; leave it out",
            ),
        Bad::with("a parameter twice", "parameters: { seed: 1, seed: 2 }\n")
            .call(|c| c.spec.parameters_json = Some("{\"seed\":1,\"seed\":2}".into()))
            .line(&format!("job.yaml:8:24 parameters.seed: {twice}"))
            .field("spec.parameters_json.seed", &format!("1:11: {twice}")),
        Bad::with("metadata that is no object", "metadata: [1]\n")
            .call(|c| c.spec.metadata_json = Some("[1]".into()))
            .line("job.yaml:8:11 metadata: is a list, not an object; write keys and values")
            .field("spec.metadata_json", "1:1: is a list, not an object; send the text of a JSON object"),
        Bad::with("a choice that is none", "policy: { on_lease_lost: later }\n")
            .call(|c| c.spec.policy = Some(pb::Policy { on_lease_lost: 9, ..Default::default() }))
            .line("job.yaml:8:26 policy.on_lease_lost: \"later\" is no known choice; write retry or fail")
            .field("spec.policy.on_lease_lost", "9 is no known choice; send ON_LEASE_LOST_RETRY or ON_LEASE_LOST_FAIL"),
        Bad::with("numbers out of their range", "repeat: 0\npolicy: { attempts: 101, priority: -101 }\n")
            .call(|c| {
                c.spec.repeat = Some(0);
                c.spec.policy = Some(pb::Policy { attempts: Some(101), priority: Some(-101), ..Default::default() });
            })
            .says("8:9", "repeat", "spec.repeat", "0 is out of its range; write a whole number from 1 to 1000000")
            .says(
                "9:21",
                "policy.attempts",
                "spec.policy.attempts",
                "101 is out of its range; write a whole number from 1 to 100",
            )
            .says(
                "9:36",
                "policy.priority",
                "spec.policy.priority",
                "-101 is out of its range; write a whole number from -100 to 100",
            ),
    ]
}

fn all_at_once() -> Bad {
    let twice = "\"q1\" is already used by questions[0].id; give each of the questions its own id";
    Bad::edited(
        "everything at once",
        &[("job: j", "job: 'j '"), ("id: q2", "id: q1"), ("id: m1", "id: ''"), ("[eu] }", "[] }")],
    )
    .call(|c| {
        c.job_id = "j ".into();
        c.spec.questions[1].id = "q1".into();
        c.spec.models[0].id.clear();
        c.spec.models[1].regions.clear();
    })
    .says("1:6", "job", "job_id", "\"j \" begins or ends with white space; write \"j\"")
    .says("4:11", "questions[1].id", "spec.questions[1].id", twice)
    .says("6:11", "models[0].id", "spec.models[0].id", "\"\" is empty; give it 1 to 255 bytes of text")
    .says(
        "7:24",
        "models[1].regions",
        "spec.models[1].regions",
        "has none; name at least one region for this model",
    )
}
