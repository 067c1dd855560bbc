//! One job has one digest whatever way it comes, and a cell's input is frozen to the byte.

use proptest::prelude::*;
use semel_spec::{
    Checked, Format, JobFile, JobSpec, Message, Model, Object, OnLeaseLost, Policy, Question, QuestionFile,
    RegionSettings, Resolved, StoredSpecError, check, difference, digest, parse, read, wire,
};
use serde_json::{Value, json};

fn file(name: &str, format: Format, text: &str) -> JobFile {
    let parsed = parse(name, text.as_bytes(), format, &|asked| {
        let bytes: &[u8] = match asked {
            "q.csv" => b"name,text,topic\nq1,\"Say \"\"hi\"\"\",small\nq2,Count,\n",
            "q.jsonl" => {
                b"{\"id\":\"q1\",\"prompt\":\"Say \\\"hi\\\"\",\"metadata\":{\"topic\":\"small\"}}\n\n{\"id\":\"q2\",\"prompt\":\"Count\"}\n"
            }
            other => return Err(format!("there is no {other}")),
        };
        Ok(QuestionFile { name: asked.to_owned(), bytes: bytes.to_vec() })
    });
    match parsed {
        Ok(job) => job,
        Err(faults) => panic!("{faults}"),
    }
}

const YAML: &str = r#"
job: one
questions:
  - id: q1
    prompt: Say "hi"
    metadata: {topic: small}
  - id: q2
    prompt: Count
models:
  - id: m1
    model: "m:1b"
    accept_models: [m]
    parameters: &shared
      temperature: 1.0
      stop: ["\n", null]
  - {id: m2, regions: [b], parameters: *shared}
regions: [a, {id: b, system_prompt: Be brief.}]
parameters: {temperature: 0, max_tokens: 1e2}
repeat: 2
policy:
  attempts: 5
  backoff: 1500ms
  deadline: 2h 30m
  on_lease_lost: fail
  require_reported_region: true
  priority: -3
"#;

const JSON: &str = r#"{
  "policy": {"priority": -3, "require_reported_region": true, "on_lease_lost": "fail",
             "deadline": "150m", "backoff": "1s 500ms", "attempts": 5},
  "repeat": 2,
  "parameters": {"max_tokens": 100, "temperature": 0.0},
  "regions": ["a", {"id": "b", "system_prompt": "Be brief."}],
  "models": [
    {"id": "m1", "model": "m:1b", "accept_models": ["m"], "regions": ["a", "b"],
     "parameters": {"stop": ["\n", null], "temperature": 1}},
    {"id": "m2", "regions": ["b"], "parameters": {"temperature": 1, "stop": ["\u000a", null]}}
  ],
  "questions": [
    {"id": "q1", "metadata": {"topic": "small"}, "prompt": "Say \"hi\""},
    {"id": "q2", "prompt": "Count"}
  ],
  "job": "another"
}"#;

fn on_the_wire() -> semel_proto::v1::JobSpec {
    use semel_proto::v1;
    let stop = r#"{"stop":["\n",null],"temperature":1.0}"#;
    let question = |id: &str, prompt: &str, metadata: Option<&str>| v1::Question {
        id: id.to_owned(),
        prompt: Some(prompt.to_owned()),
        messages: Vec::new(),
        metadata_json: metadata.map(str::to_owned),
    };
    v1::JobSpec {
        questions: vec![question("q1", "Say \"hi\"", Some(r#" {"topic":"small"} "#)), question("q2", "Count", None)],
        models: vec![
            v1::Model {
                id: "m1".to_owned(),
                model: Some("m:1b".to_owned()),
                accept_models: vec!["m".to_owned()],
                regions: vec!["a".to_owned(), "b".to_owned()],
                parameters_json: Some(stop.to_owned()),
            },
            v1::Model {
                id: "m2".to_owned(),
                regions: vec!["b".to_owned()],
                parameters_json: Some(stop.to_owned()),
                ..Default::default()
            },
        ],
        repeat: Some(2),
        regions: vec![
            v1::RegionSettings { id: "a".to_owned(), system_prompt: None },
            v1::RegionSettings { id: "b".to_owned(), system_prompt: Some("Be brief.".to_owned()) },
        ],
        parameters_json: Some(r#"{"temperature":0,"max_tokens":100}"#.to_owned()),
        policy: Some(v1::Policy {
            attempts: Some(5),
            backoff_ms: Some(1_500),
            deadline_ms: Some(9_000_000),
            on_lease_lost: v1::OnLeaseLost::Fail.into(),
            require_reported_region: Some(true),
            priority: Some(-3),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn checked(result: Result<Checked, semel_spec::Faults>) -> Checked {
    match result {
        Ok(checked) => checked,
        Err(faults) => panic!("{faults}"),
    }
}

#[test]
fn yaml_json_and_the_wire_give_one_digest() {
    let yaml = file("job.yaml", Format::Yaml, YAML);
    let json = file("job.json", Format::Json, JSON);
    let json_as_yaml = file("job.yml", Format::Yaml, JSON);
    let wire = checked(wire::check(&on_the_wire()));
    assert_eq!(yaml.checked.spec, json.checked.spec);
    assert_eq!(yaml.checked.spec, wire.spec);
    let digests = [yaml, json, json_as_yaml].map(|job| job.checked.digest);
    assert!(digests.iter().all(|digest| *digest == wire.digest));
    assert_eq!(wire.cells, 12);
}

#[test]
fn questions_from_a_file_give_the_digest_of_questions_in_the_job() {
    let inline = file("job.yaml", Format::Yaml, YAML);
    let start = YAML.find("questions:").expect("it has questions");
    let end = YAML.find("models:").expect("it has models");
    for questions in ["questions: {file: q.jsonl}\n", "questions: {file: q.csv, id: name, prompt: text}\n"] {
        let text = format!("{}{questions}{}", &YAML[..start], &YAML[end..]);
        let from_file = file("job.yaml", Format::Yaml, &text);
        assert_eq!(from_file.checked.spec, inline.checked.spec, "{questions}");
        assert_eq!(from_file.checked.digest, inline.checked.digest);
    }
}

#[test]
fn the_digest_is_over_what_was_sent_and_not_over_defaults() {
    let plain =
        file("job.yaml", Format::Yaml, "job: j\nquestions: [{id: q, prompt: p}]\nmodels: [{id: m, regions: [r]}]\n");
    let canonical = br#"{"models":[{"id":"m","regions":["r"]}],"questions":[{"id":"q","prompt":"p"}]}"#;
    assert_eq!(plain.checked.digest, digest(canonical));
    let mut spelt = plain.checked.spec.clone();
    spelt.repeat = Some(1);
    assert_ne!(checked(check(spelt)).digest, plain.checked.digest);
}

#[test]
fn defaults_are_written_out_and_survive_being_stored() {
    let plain =
        file("job.yaml", Format::Yaml, "job: j\nquestions: [{id: q, prompt: p}]\nmodels: [{id: m, regions: [r]}]\n");
    let stored = plain.checked.resolved.to_json();
    let text = String::from_utf8(stored.clone()).expect("JSON is text");
    assert_eq!(
        text,
        r#"{"enumeration_version":1,"input_version":1,"models":[{"id":"m","model":"m","regions":["r"]}],"policy":{"attempts":3,"backoff_ms":1000,"cold_timeout_ms":600000,"deadline_ms":2592000000,"max_backoff_ms":300000,"on_lease_lost":"retry","priority":0,"require_reported_region":false,"run_timeout_ms":300000,"weight":1},"questions":[{"id":"q","prompt":"p"}],"repeat":1}"#
    );
    let read = Resolved::from_json(&stored).expect("it was written by this version");
    assert_eq!(read.to_json(), stored);
    assert_eq!(read.input(0, "r", 0), plain.checked.resolved.input(0, "r", 0));
    let other = text.replace("\"input_version\":1", "\"input_version\":2");
    assert!(matches!(
        Resolved::from_json(other.as_bytes()),
        Err(StoredSpecError::OtherVersion { input: 2, enumeration: 1 })
    ));
    // The resolved specification is a specification like any other, and resolves to itself.
    let again = checked(check(plain.checked.resolved.to_spec()));
    assert_eq!(again.resolved.to_json(), stored);
}

#[test]
fn a_cells_input_is_its_questions_its_models_and_its_regions_own() {
    let job = file("job.yaml", Format::Yaml, YAML);
    let resolved = &job.checked.resolved;
    let input = |model, region, question| {
        let bytes = resolved.input(model, region, question)?;
        Some(String::from_utf8(bytes).expect("JSON is text"))
    };
    assert_eq!(
        input(0, "a", 0).as_deref(),
        Some(
            r#"{"messages":[{"content":"Say \"hi\"","role":"user"}],"model":"m:1b","parameters":{"max_tokens":100,"stop":["\n",null],"temperature":1}}"#
        )
    );
    assert_eq!(
        input(1, "b", 1).as_deref(),
        Some(
            r#"{"messages":[{"content":"Be brief.","role":"system"},{"content":"Count","role":"user"}],"model":"m2","parameters":{"max_tokens":100,"stop":["\n",null],"temperature":1}}"#
        )
    );
    assert_eq!(input(1, "a", 0), None, "m2 isn't asked in a");
    assert_eq!(input(2, "a", 0), None);
    assert_eq!(input(0, "a", 2), None);
}

#[test]
fn the_difference_of_two_specifications_is_said_part_by_part() {
    let a = file("job.yaml", Format::Yaml, YAML).checked.spec;
    assert_eq!(difference(&a, &a), Vec::<String>::new());
    let mut b = a.clone();
    b.questions.swap(0, 1);
    b.questions[0].prompt = Some("Count!".to_owned());
    b.questions.push(Question { id: "q 3".to_owned(), prompt: Some("new".to_owned()), ..Question::default() });
    b.models.remove(1);
    b.repeat = None;
    b.policy.as_mut().expect("it has one").attempts = Some(4);
    b.parameters.as_mut().expect("it has some").insert("seed".to_owned(), 7.into());
    assert_eq!(
        difference(&a, &b),
        [
            "questions.q2.prompt: was \"Count\", is now \"Count!\"",
            "questions[\"q 3\"]: is new",
            "questions: stand in another order",
            "models.m2: is gone",
            "repeat: was 2, is now absent",
            "parameters.seed: was absent, is now 7",
            "policy.attempts: was 5, is now 4",
        ]
    );
}

#[test]
fn a_difference_is_bounded() {
    let question = |n: usize, prompt: &str| Question {
        id: format!("q{n}"),
        prompt: Some(prompt.to_owned()),
        ..Question::default()
    };
    let spec =
        |prompt: &str| JobSpec { questions: (0..100).map(|n| question(n, prompt)).collect(), ..JobSpec::default() };
    let lines = difference(&spec("a"), &spec("b"));
    assert_eq!(lines.len(), 21);
    assert_eq!(lines.last().map(String::as_str), Some("80 more differences"));
}

#[test]
fn files_are_read_from_a_disk_beside_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("it can be written");
        path
    };
    write("q.csv", b"\xef\xbb\xbfid,prompt\r\nq1,hello\r\n");
    let text = "job: j\nquestions: {file: q.csv}\nmodels: [{id: m, regions: [r]}]\n";
    let job = read::job(&write("job.yaml", text.as_bytes())).expect("valid");
    assert_eq!(job.checked.spec.questions[0].id, "q1");
    assert_eq!(job.checked.spec.questions[0].prompt.as_deref(), Some("hello"));

    let gone = read::job(&folder.path().join("gone.yaml")).expect_err("not there");
    assert!(gone.to_string().contains("gone.yaml: the file can't be read"), "{gone}");
    let folder = read::job(folder.path()).expect_err("a folder is no job");
    assert!(folder.to_string().contains("can't be read"), "{folder}");
}

fn object() -> impl Strategy<Value = Object> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-1.0e6..1.0e6_f64).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..3).prop_map(|map| map.into_iter().collect()),
        ]
    });
    // A key of the executor's would be refused.
    prop::collection::btree_map("x.{0,6}|é|😀|\u{fffd}", value, 0..4).prop_map(|map| map.into_iter().collect())
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let role = prop_oneof![Just("user"), Just("assistant")];
    let message = (role, any::<String>()).prop_map(|(role, content)| Message { role: role.to_owned(), content });
    prop::collection::vec(message, 1..4)
}

fn question() -> impl Strategy<Value = Question> {
    let asked = prop_oneof![
        "(?s).{1,20}".prop_map(|prompt| (Some(prompt), Vec::new())),
        messages().prop_map(|messages| (None, messages)),
    ];
    (asked, prop::option::of(object())).prop_map(|((prompt, messages), metadata)| Question {
        id: String::new(),
        prompt,
        messages,
        metadata,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    (
        prop::option::of(1..=100_u32),
        prop::option::of(0..=1_000_u64),
        prop::option::of(1_000..=86_400_000_u64),
        prop::option::of(any::<bool>()),
        prop::option::of(prop_oneof![Just(OnLeaseLost::Retry), Just(OnLeaseLost::Fail)]),
        prop::option::of(-100..=100_i32),
    )
        .prop_map(|(attempts, backoff, max, reported, lost, priority)| Policy {
            attempts,
            backoff_ms: backoff,
            max_backoff_ms: max,
            on_lease_lost: lost,
            require_reported_region: reported,
            priority,
            ..Policy::default()
        })
}

fn spec() -> impl Strategy<Value = JobSpec> {
    let model = (prop::option::of("[a-z:é]{1,8}"), prop::option::of(object()));
    (
        prop::collection::vec(question(), 1..4),
        prop::collection::vec(model, 1..4),
        prop::option::of("(?s).{0,12}"),
        prop::option::of("(?s).{0,12}"),
        prop::option::of(object()),
        prop::option::of(policy()),
        prop::option::of(object()),
    )
        .prop_map(|(mut questions, models, shared, own, parameters, policy, metadata)| {
            for (index, question) in questions.iter_mut().enumerate() {
                question.id = format!("q{index}");
            }
            let model = |(index, (name, parameters)): (usize, (Option<String>, Option<Object>))| Model {
                id: format!("m{index}"),
                model: name,
                accept_models: Vec::new(),
                regions: vec!["east".to_owned(), "west".to_owned()],
                parameters,
            };
            JobSpec {
                questions,
                models: models.into_iter().enumerate().map(model).collect(),
                repeat: None,
                regions: vec![RegionSettings { id: "west".to_owned(), system_prompt: own }],
                system_prompt: shared,
                parameters,
                policy,
                metadata,
            }
        })
}

/// The input put together as a tree and canonicalised whole.
fn slow_input(spec: &JobSpec, model: &Model, region: &str, question: &Question) -> Vec<u8> {
    let own = spec.regions.iter().find(|settings| settings.id == region);
    let system = own
        .and_then(|settings| settings.system_prompt.clone())
        .or_else(|| spec.system_prompt.clone())
        .filter(|prompt| !prompt.is_empty());
    let mut messages = Vec::new();
    messages.extend(system.map(|prompt| json!({"role": "system", "content": prompt})));
    messages.extend(question.prompt.iter().map(|prompt| json!({"role": "user", "content": prompt})));
    let own = question.messages.iter();
    messages.extend(own.map(|message| json!({"role": message.role, "content": message.content})));
    let mut parameters = spec.parameters.clone().unwrap_or_default();
    parameters.extend(model.parameters.clone().unwrap_or_default());
    let input = json!({
        "parameters": parameters,
        "model": model.model.as_ref().unwrap_or(&model.id),
        "messages": messages,
    });
    serde_json_canonicalizer::to_vec(&input).expect("JSON")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_input_is_what_the_canonicaliser_makes_of_its_parts(spec in spec()) {
        let resolved = checked(check(spec.clone())).resolved;
        for (m, model) in spec.models.iter().enumerate() {
            for region in &model.regions {
                for (q, question) in spec.questions.iter().enumerate() {
                    let expected = slow_input(&spec, model, region, question);
                    prop_assert_eq!(resolved.input(m, region, q), Some(expected));
                }
            }
        }
    }

    #[test]
    fn what_travels_comes_back_with_its_digest(spec in spec()) {
        let sent = checked(check(spec.clone()));
        let arrived = checked(wire::check(&wire::to_wire(&spec)));
        prop_assert_eq!(arrived.digest, sent.digest);
        prop_assert_eq!(difference(&sent.spec, &arrived.spec), Vec::<String>::new());
    }

    #[test]
    fn what_is_stored_comes_back_to_the_byte(spec in spec()) {
        let resolved = checked(check(spec)).resolved;
        let stored = resolved.to_json();
        let read = Resolved::from_json(&stored).expect("this version wrote it");
        prop_assert_eq!(read.to_json(), stored);
        prop_assert_eq!(read.input(0, "west", 0), resolved.input(0, "west", 0));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s)[\\[\\]{}:,\"'&*!?|>#a-c0-9.\n -]{0,60}") {
        let none = |name: &str| Err(format!("there is no {name}"));
        for format in [Format::Yaml, Format::Json] {
            let faults = parse("job", text.as_bytes(), format, &none).expect_err("no job");
            prop_assert!(!faults.0.is_empty());
        }
    }
}
