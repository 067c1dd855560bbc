//! Bad input is refused whole: every fault at once, each with its place, its value and what to do.

use semel_spec::{
    Faults, Format, JobFile, JobSpec, MAX_FAULTS, Model, Policy, Question, QuestionFile, check, parse, wire,
};

fn yaml(text: &str) -> Result<JobFile, Faults> {
    parse("job.yaml", text.as_bytes(), Format::Yaml, &|name| Err(format!("there is no {name}")))
}

fn refused(text: &str) -> Vec<String> {
    match yaml(text) {
        Ok(job) => panic!("accepted as {}", job.job),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

fn with_file(text: &str, name: &str, content: &[u8]) -> Result<JobFile, Faults> {
    let content = content.to_vec();
    parse("job.yaml", text.as_bytes(), Format::Yaml, &|asked| {
        assert_eq!(asked, name);
        Ok(QuestionFile { name: name.to_owned(), bytes: content.clone() })
    })
}

#[track_caller]
fn says(lines: &[String], expected: &[&str]) {
    assert_eq!(lines.len(), expected.len(), "expected {expected:#?}, got {lines:#?}");
    for (line, part) in lines.iter().zip(expected) {
        assert!(line.contains(part), "expected {part:?} in {lines:#?}");
    }
}

const REST: &str = "questions: [{id: q1, prompt: hi}]\nmodels: [{id: m1, regions: [r1]}]\n";

#[test]
fn empty_axes_are_each_named() {
    says(
        &refused("job: j\nquestions: []\nmodels: []\n"),
        &["job.yaml:2:12 questions: has none", "job.yaml:3:9 models: has none"],
    );
    says(
        &refused("job: j\nquestions: [{id: q, prompt: p}]\nmodels: [{id: m}]\n"),
        &["models[0].regions: has none; name at least one region"],
    );
}

#[test]
fn many_faults_come_at_once_each_with_its_line() {
    let text = "\
job: 'j '
quesitons: 1
questions:
  - {id: q1, prompt: hi}
  - {id: q1, prompt: hi}
  - {id: 7, prompt: hi}
  - {id: no, prompt: hi}
  - {id: \"a\\0b\", prompt: hi}
  - {prompt: hi}
  - {id: q6}
  - {id: q7, prompt: a, messages: [{role: robot, content: x}]}
models:
  - {id: m1, region: [eu], regions: [eu, eu]}
  - {id: m2, regions: []}
policy:
  attempts: 0
  backoff: 5000
  run_timeout: soon
  on_lease_lost: later
  priority: high
";
    let lines = refused(text);
    let expected = [
        "job.yaml:1:6 job: \"j \" begins or ends with white space; write \"j\"",
        "job.yaml:2:1 quesitons: is no known key; did you mean questions?",
        "job.yaml:6:10 questions[2].id: 7 is a number, not text; write it in quotes: \"7\"",
        "job.yaml:7:10 questions[3].id: no is a bare word",
        "job.yaml:9:5 questions[5].id: is missing",
        "job.yaml:13:14 models[0].region: is no known key; did you mean regions?",
        "policy.backoff: 5000 has no unit; write its unit; if milliseconds are meant: 5s",
        "policy.run_timeout: \"soon\" is no duration; write a number and a unit, as 90s or 2m: from 1ms to 1day",
        "policy.on_lease_lost: \"later\" is no known choice; write retry or fail",
        "policy.priority: \"high\" is text, not a whole number; write a whole number from -100 to 100",
        "job.yaml:5:10 questions[1].id: \"q1\" is already used by questions[0].id",
        "job.yaml:8:10 questions[4].id: \"a\\0b\" has the control character NUL",
        "questions[6]: has neither prompt nor messages",
        "questions[7]: has both prompt and messages",
        "questions[7].messages[0].role: \"robot\" is no role",
        "models[0].regions[1]: \"eu\" is listed already",
        "models[1].regions: has none",
        "job.yaml:16:13 policy.attempts: 0 is out of its range; write a whole number from 1 to 100",
    ];
    for part in expected {
        assert!(lines.iter().any(|line| line.contains(part)), "no {part:?} in {lines:#?}");
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
}

#[test]
fn ids_are_compared_byte_by_byte() {
    let job = yaml("job: j\nquestions: [{id: Q, prompt: p}, {id: q, prompt: p}]\nmodels: [{id: m, regions: [r]}]\n");
    assert!(job.is_ok());
    let long = "x".repeat(256);
    says(&refused(&format!("job: {long}\n{REST}")), &["job: \"xxxxx"]);
}

#[test]
fn a_number_that_would_be_rounded_and_a_key_that_stands_twice_are_refused_at_any_depth() {
    let text = format!(
        "job: j\nrepeat: 1\nrepeat: 2\n{REST}parameters: {{seed: 9007199254740993, a: {{b: 1, b: 2}}, c: yes}}\n"
    );
    says(
        &refused(&text),
        &[
            "job.yaml:3:1 repeat: stands here a second time",
            "parameters.seed: 9007199254740993 is no number that a binary64 holds exactly; write 9007199254740992",
            "parameters.a.b: stands here a second time",
            "parameters.c: yes is a bare word",
        ],
    );
}

#[test]
fn what_the_executor_owns_is_no_parameter() {
    let text = "job: j\nquestions: [{id: q, prompt: p}]\n\
                models: [{id: m, regions: [r], parameters: {stream: true}}]\nparameters: {n: 2}\n";
    says(
        &refused(text),
        &[
            "models[0].parameters.stream: is set by the executor",
            "parameters.n: is set by the executor and no job's to set; leave it out; for more samples",
        ],
    );
}

#[test]
fn settings_of_a_region_that_no_model_names_are_a_typo() {
    let text = format!("job: j\n{REST}regions: [{{id: r1}}, {{id: r11, system_prompt: x}}, elsewhere]\n");
    says(
        &refused(&text),
        &[
            "regions[1].id: \"r11\" is a region of no model; did you mean \"r1\"?",
            "regions[2].id: \"elsewhere\" is a region of no model; add it",
        ],
    );
}

#[test]
fn two_system_prompts_for_one_question_are_refused() {
    let text = "job: j\nsystem_prompt: Be brief.\n\
                questions: [{id: q, messages: [{role: system, content: x}, {role: user, content: y}]}]\n\
                models: [{id: m, regions: [r]}]\n";
    says(
        &refused(text),
        &["job.yaml:3:32 questions[0].messages[0]: is a system message, and region \"r\" has a system prompt"],
    );
    // Switched off in the only region: no clash.
    let text = format!("{text}regions: [{{id: r, system_prompt: ''}}]\n");
    assert!(yaml(&text).is_ok());
}

#[test]
fn what_is_no_yaml_or_json_is_refused_at_its_line() {
    says(&refused("job: j\nquestions: [\n"), &["job.yaml:"]);
    says(&refused(""), &["job.yaml:1:1: the file has no value where an object should be"]);
    let faults = parse("job.json", b"{\n  \"job\": j}", Format::Json, &|_| unreachable!("it names no file"));
    let line = faults.expect_err("no JSON").to_string();
    assert!(line.starts_with("job.json:2:10: the file is no valid JSON"), "{line}");
    let faults = parse("job.yaml", b"a: 1\nb: \xff\n", Format::Yaml, &|_| unreachable!("it names no file"));
    let line = faults.expect_err("no text").to_string();
    assert!(line.starts_with("job.yaml:2: the file is no UTF-8 text"), "{line}");
}

#[test]
fn a_broken_line_of_a_question_file_is_named_with_its_number() {
    let job = "job: j\nquestions: {file: q.jsonl}\nmodels: [{id: m, regions: [r]}]\n";
    let lines = b"{\"id\": \"a\", \"prompt\": \"p\"}\n\n{\"id\": \"b\", }\n{\"id\": \"a\", \"prompt\": \"p\"}\n{\"id\": \"c\", \"promt\": \"p\"}\n[]\n";
    let faults = with_file(job, "q.jsonl", lines).expect_err("broken");
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    says(
        &lines,
        &[
            "q.jsonl:3:13 questions[1]: is no valid JSON",
            "q.jsonl:4 questions[2].id: \"a\" is already used by questions[0].id",
            "q.jsonl:5:13 questions[3].promt: is no known key; did you mean prompt?",
            "q.jsonl:6:1 questions[4]: is a list, not an object",
        ],
    );
}

#[test]
fn a_broken_csv_line_is_named_with_its_number() {
    let job = "job: j\nquestions: {file: q.csv}\nmodels: [{id: m, regions: [r]}]\n";
    let csv = b"id,prompt,topic\na,hello,x\nb,one,two,three\n\"c\",\"more\nlines\",\na,again,x\n,p,x\n";
    let faults = with_file(job, "q.csv", csv).expect_err("broken");
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    says(
        &lines,
        &[
            "q.csv:3:1 questions[1]: is a broken line: it has 4 cells where the header has 3",
            "q.csv:6 questions[3].id: \"a\" is already used by questions[0].id",
            "q.csv:7 questions[4].id: \"\" is empty",
        ],
    );
}

#[test]
fn a_quote_that_is_never_closed_swallows_no_questions() {
    let job = "job: j\nquestions: {file: q.csv}\nmodels: [{id: m, regions: [r]}]\n";
    let csv = b"id,prompt\na,hello\nb,\"open\nc,lost\n";
    let faults = with_file(job, "q.csv", csv).expect_err("open quote");
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    says(&lines, &["q.csv:3:1 questions[1]: opens a quote that is never closed"]);
}

#[test]
fn a_question_file_that_cant_be_used_is_refused_where_it_is_named() {
    let job = |questions: &str| format!("job: j\nquestions: {questions}\nmodels: [{{id: m, regions: [r]}}]\n");
    says(
        &refused(&job("{file: gone.csv}")),
        &["job.yaml:2:19 questions: \"gone.csv\" can't be read: there is no gone.csv"],
    );
    let text = job("{file: q.csv, prompt: text}");
    let faults = with_file(&text, "q.csv", b"id,prompt\na,b\n").expect_err("no such column");
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    says(&lines, &["has no column \"text\"; its columns are \"id\", \"prompt\""]);
    let faults = with_file(&job("{file: q.txt}"), "q.txt", b"").expect_err("unknown kind");
    assert!(faults.to_string().contains("name a .csv or a .jsonl file"));
}

#[test]
fn the_list_of_faults_is_bounded() {
    let job = "job: j\nquestions: {file: q.jsonl}\nmodels: [{id: m, regions: [r]}]\n";
    let lines = "x\n".repeat(MAX_FAULTS + 7);
    let faults = with_file(job, "q.jsonl", lines.as_bytes()).expect_err("broken");
    assert_eq!(faults.iter().count(), MAX_FAULTS + 1);
    let last = faults.iter().last().map(ToString::to_string);
    assert_eq!(last.as_deref(), Some("7 more faults are not listed; put these right first"));
}

fn small() -> JobSpec {
    JobSpec {
        questions: vec![Question { id: "q".to_owned(), prompt: Some("p".to_owned()), ..Question::default() }],
        models: vec![Model { id: "m".to_owned(), regions: vec!["r".to_owned()], ..Model::default() }],
        ..JobSpec::default()
    }
}

#[test]
fn more_cells_than_an_index_counts_are_refused() {
    let mut spec = small();
    spec.repeat = Some(1_000_000);
    let question = |n: usize| Question { id: format!("q{n}"), prompt: Some("p".to_owned()), ..Question::default() };
    spec.questions = (0..4_294).map(question).collect();
    assert_eq!(check(spec.clone()).map(|c| c.cells), Ok(4_294_000_000));
    spec.questions.push(question(4_294));
    let faults = check(spec).expect_err("too many").to_string();
    assert!(faults.contains("has 4295000000 cells"), "{faults}");
}

#[test]
fn a_specification_over_the_size_limit_is_refused() {
    let mut spec = small();
    spec.system_prompt = Some("x".repeat(semel_spec::MAX_SPEC_BYTES));
    let faults = check(spec).expect_err("too large").to_string();
    assert!(faults.contains("and 67108864 is the most; split the job"), "{faults}");
}

#[test]
fn each_limit_of_a_policy_is_held_at_its_edge() {
    let day = 24 * 60 * 60 * 1_000;
    let bad = Policy {
        attempts: Some(101),
        backoff_ms: Some(day + 1),
        max_backoff_ms: Some(day + 1),
        run_timeout_ms: Some(0),
        cold_timeout_ms: Some(day + 1),
        deadline_ms: Some(0),
        max_leased: Some(0),
        weight: Some(1_001),
        priority: Some(-101),
        ..Policy::default()
    };
    let good = Policy {
        attempts: Some(100),
        backoff_ms: Some(day),
        max_backoff_ms: Some(day),
        run_timeout_ms: Some(1),
        cold_timeout_ms: Some(day),
        deadline_ms: Some(315_576_000_000),
        max_leased: Some(1),
        weight: Some(1_000),
        priority: Some(-100),
        ..Policy::default()
    };
    let with = |policy| JobSpec { policy: Some(policy), ..small() };
    assert!(check(with(good)).is_ok());
    let faults = check(with(bad)).expect_err("out of range");
    assert_eq!(faults.iter().count(), 9, "{faults}");
    let backwards = Policy { backoff_ms: Some(2_000), max_backoff_ms: Some(1_000), ..Policy::default() };
    let faults = check(with(backwards)).expect_err("backwards").to_string();
    assert!(faults.contains("policy.backoff: 2s is longer than max_backoff"), "{faults}");
}

#[test]
fn over_the_wire_faults_have_the_contracts_names() {
    let mut spec = wire::to_wire(&small());
    spec.parameters_json = Some("{\"seed\": 9007199254740993, \"a\": 1, \"a\": 2}".to_owned());
    spec.metadata_json = Some("[1]".to_owned());
    spec.questions[0].metadata_json = Some("{".to_owned());
    spec.questions[0].id = "a\0".to_owned();
    spec.policy = Some(semel_proto::v1::Policy { run_timeout_ms: Some(0), on_lease_lost: 9, ..Default::default() });
    let faults = wire::check(&spec).expect_err("refused");
    let mut paths: Vec<_> = faults.iter().map(|fault| fault.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "spec.metadata_json",
            "spec.parameters_json.a",
            "spec.parameters_json.seed",
            "spec.policy.on_lease_lost",
            "spec.policy.run_timeout_ms",
            "spec.questions[0].id",
            "spec.questions[0].metadata_json",
        ]
    );
}
