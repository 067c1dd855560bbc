//! The agents file: what it configures, and what it says of what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use semel_agent::config::{AgentSpec, ConfigError, MAX_FILE_BYTES, Origin, parse, read};
use semel_agent::executor::OpenAiSettings;

use super::provider::Provider;
use super::{answer, task};

const GOOD: &str = r#"
providers:
  local:
    executor: openai
    base_url: http://127.0.0.1:11434/v1
    key_env: PROVIDER_KEY
    region_header: x-region
    region_pointer: /served_region
    connect_timeout: 3s
    keep_response: false
    headers: { x-team: blue }
  prog: { executor: command, program: [sh, -c, "printf raw"], stdout: raw, env: { A: b } }
  instant: { executor: echo }
agents:
  - region: us-east
    models: { qwen2.5-1.5b: local, mistral-7b: { provider: local, model: "mistral:7b" } }
  - { id: second, region: us-east, slots: 2, prefetch: 0, models: { prog: prog, echo: instant } }
"#;

fn parsed(text: &str) -> Result<Vec<AgentSpec>, ConfigError> {
    let env = |name: &str| (name == "PROVIDER_KEY").then(|| "sk-hidden".to_owned());
    parse(text, Origin { name: "agents.yaml", folder: Path::new("/"), env: &env }, &BTreeMap::new())
}

/// The faults of a file, a line each.
fn faults(text: &str) -> String {
    parsed(text).unwrap_err().to_string()
}

#[tokio::test]
async fn a_file_says_which_agents_run_and_how_each_reaches_its_models() {
    let agents = parsed(GOOD).unwrap();
    let [first, second] = agents.as_slice() else { panic!("{agents:?}") };
    assert_eq!((first.id.as_str(), first.region.as_str(), first.slots, first.prefetch), ("us-east", "us-east", 4, 4));
    assert_eq!(
        (second.id.as_str(), second.region.as_str(), second.slots, second.prefetch),
        ("second", "us-east", 2, 0)
    );
    assert_eq!(first.models.keys().collect::<Vec<_>>(), ["mistral-7b", "qwen2.5-1.5b"]);
    assert_eq!(first.models["mistral-7b"].0, "local");
    assert_eq!(first.models["mistral-7b"].1.name(), "openai");
    assert!(!first.keep_response && second.keep_response);
    assert_eq!(answer(second.models["prog"].1.execute(task("hi")).await).output, "raw");
    assert_eq!(answer(second.models["echo"].1.execute(task("hi")).await).output, "hi");
    assert!(!format!("{agents:?}").contains("sk-hidden"));
}

#[tokio::test]
async fn a_probe_looks_for_the_files_name_of_a_model_then_the_jobs_then_its_id() {
    let provider = Provider::answering("200 OK", &[], r#"{"data":[]}"#).await;
    let text = format!(
        "providers: {{ p: {{ executor: openai, base_url: '{}' }} }}\nagents: [{{ region: r, models: {{ a: {{ provider: p, model: file }}, b: p, c: p }} }}]",
        provider.base_url()
    );
    let names = ["a", "b"].map(|id| (id.to_owned(), "job".to_owned())).into();
    let agents = parse(&text, Origin { name: "x", folder: Path::new("/"), env: &|_| None }, &names).unwrap();
    for (model, name) in [("a", "\"file\""), ("b", "\"job\""), ("c", "\"c\"")] {
        let fault = agents[0].models[model].1.probe().await.unwrap_err();
        assert!(fault.contains(name), "{model}: {fault}");
    }
}

#[test]
fn a_json_file_is_a_yaml_file() {
    let agents =
        parsed(r#"{"providers":{"e":{"executor":"echo"}},"agents":[{"region":"r","models":{"m":"e"}}]}"#).unwrap();
    assert_eq!(agents[0].id, "r");
}

#[test]
fn an_unknown_key_has_its_line_and_the_nearest_known_one() {
    let cases = [
        (
            GOOD.replace("base_url", "base_ulr"),
            "agents.yaml:5: there is no key \"base_ulr\" here; did you mean \"base_url\"?",
        ),
        (
            GOOD.replace("executor: echo", "executor: ecko"),
            "agents.yaml:13: \"ecko\" is not possible here; did you mean \"echo\"?",
        ),
        (GOOD.replace("slots: 2", "slot: 2"), "agents.yaml:17: there is no key \"slot\" here; did you mean \"slots\"?"),
        (
            GOOD.replace("model: \"mistral:7b\"", "name: x"),
            "agents.yaml:16: there is no key \"name\" here; possible are provider, model",
        ),
        (
            GOOD.replace("local, mistral", "locl, mistral"),
            "agents.yaml:16: agent \"us-east\": model \"qwen2.5-1.5b\": there is no provider \"locl\"; did you mean \"local\"?",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(faults(&text), expected);
    }
}

#[test]
fn all_values_at_fault_are_told_at_once_each_with_its_line() {
    let text = r#"
providers:
  a: { executor: openai, base_url: "ftp://host", program: [x] }
  b: { executor: command, base_url: http://host }
  c: { executor: openai, base_url: http://host, connect_timeout: soon, region_pointer: x, key_header: api-key }
agents:
  - { region: "r ", slots: 0, prefetch: 5000, models: { m: e } }
  - { id: x, region: r, models: {} }
  - { id: x, region: r, models: { m: a } }
"#;
    let told = faults(text);
    for expected in [
        "agents.yaml:3: provider a: program belongs to the executor command, and this is openai",
        "agents.yaml:3: provider a: base_url: starts with \"ftp\"",
        "agents.yaml:4: provider b: base_url belongs to the executor openai, and this is command",
        "agents.yaml:4: provider b: program: is missing",
        "agents.yaml:5: provider c: connect_timeout: \"soon\" is no duration",
        "agents.yaml:5: provider c: region_pointer: \"x\" is no JSON pointer",
        "agents.yaml:5: provider c: key_header: there is no key to carry",
        "agents.yaml:7: agent \"r \": the region \"r \" has white space around it",
        "agents.yaml:7: agent \"r \": slots is 0; it must be from 1 to 4096",
        "agents.yaml:7: agent \"r \": prefetch is 5000; it must be at most 1024",
        "agents.yaml:7: agent \"r \": model \"m\": there is no provider \"e\"",
        "agents.yaml:8: agent \"x\": has no models",
        "agents.yaml:9: agent \"x\" is there twice",
    ] {
        assert!(told.contains(expected), "{expected}\nis not in\n{told}");
    }
}

#[test]
fn faults_of_form_and_of_meaning_are_told_together_one_a_line_in_the_files_order() {
    let text = r#"
providers:
  a:
    executor: openai
    base_ulr: http://host
    connect_timeout: soon
    headers: [x]
  b: { executor: ecko }
  c: { program: x }
  d: [openai]
  e: { executor: openai, base_url: [x], region_pointer: x }
  e: { executor: echo }
  f: { executor: command, program: [x, [y], {z: z}], env: { A: [x], SEMEL_X: y } }
agents:
  - region: r
    slot: 2
    slots: many
    prefetch: -1
    models: { m: nobody, n: { provider: g, name: x }, o: [b], p: b }
  - id: [x]
    slots: 5000000000
    models: a
  - nothing
  - { region: r, prefetch: 0, prefetch: 1, models: { m: b } }
  - { id: s, region: r, models: { m: { model: x } }, keep: no }
"#;
    let told = faults(text);
    let expected = r#"agents.yaml:5: there is no key "base_ulr" here; did you mean "base_url"?
agents.yaml:6: provider a: connect_timeout: "soon" is no duration; write 10s or 500ms
agents.yaml:7: headers is a list; it must be an object of keys and values
agents.yaml:8: "ecko" is not possible here; did you mean "echo"?
agents.yaml:9: the key "executor" is missing
agents.yaml:10: provider d is a list; it must be an object of keys and values
agents.yaml:11: base_url is a list; it must be text
agents.yaml:11: provider e: region_pointer: "x" is no JSON pointer; one starts with a slash: /served_region
agents.yaml:12: the key "e" is there twice in providers; leave one of them out
agents.yaml:13: a value of program is a list; it must be text
agents.yaml:13: a value of program is an object; it must be text
agents.yaml:13: the value of A in env is a list; it must be text
agents.yaml:16: there is no key "slot" here; did you mean "slots"?
agents.yaml:17: slots is "many"; it must be a whole number
agents.yaml:18: prefetch is "-1"; it must be a whole number
agents.yaml:19: agent "r": model "m": there is no provider "nobody"; possible are a, b, c, d, e, f
agents.yaml:19: agent "r": model "n": there is no provider "g"; possible are a, b, c, d, e, f
agents.yaml:19: model "o" is a list; it must be a provider's name, or { provider: NAME, model: NAME }
agents.yaml:19: there is no key "name" here; possible are provider, model
agents.yaml:20: id is a list; it must be text
agents.yaml:20: the key "region" is missing
agents.yaml:21: an agent: slots is 5000000000; it must be from 1 to 4096
agents.yaml:22: models is text; it must be an object of keys and values
agents.yaml:23: an agent is text; it must be an object of keys and values
agents.yaml:24: agent "r" is there twice; give each an id of its own
agents.yaml:24: the key "prefetch" is there twice in an agent; leave one of them out
agents.yaml:25: the key "provider" is missing
agents.yaml:25: there is no key "keep" here; possible are id, region, slots, prefetch, models"#;
    for (told, expected) in told.lines().zip(expected.lines()) {
        assert_eq!(told, expected);
    }
    assert_eq!(told.lines().count(), expected.lines().count(), "{told}");
}

#[tokio::test]
async fn a_value_is_taken_as_it_is_written_whatever_yaml_would_make_of_it() {
    let text = r#"
providers:
  p:
    executor: command
    program: [sh, -c, 'printf "%s|" "$@"', sh, 1.10, 007, yes, 0x1F, 1e3, .inf, &anchor 2.50, *anchor, "quoted # 1"]
    stdout: raw
agents:
  - { id: 1.10, region: 0x10, slots: 16, prefetch: "7", models: { 7: p, 1.50: { provider: p, model: ~ } } }
"#;
    let agents = parsed(text).unwrap();
    assert_eq!((agents[0].id.as_str(), agents[0].region.as_str()), ("1.10", "0x10"));
    assert_eq!((agents[0].slots, agents[0].prefetch), (16, 7));
    assert_eq!(agents[0].models.keys().collect::<Vec<_>>(), ["1.50", "7"]);
    let output = answer(agents[0].models["7"].1.execute(task("hi")).await).output;
    assert_eq!(output, "1.10|007|yes|0x1F|1e3|.inf|2.50|2.50|quoted # 1|");
}

#[test]
fn a_number_is_written_in_decimal_digits() {
    for slots in ["0x10", "1_000", "1e3", "4.0", "many"] {
        let text = format!(
            "providers: {{ e: {{ executor: echo }} }}\nagents: [{{ region: r, slots: {slots}, models: {{ m: e }} }}]"
        );
        assert_eq!(faults(&text), format!("agents.yaml:2: slots is {slots:?}; it must be a whole number"));
    }
}

#[test]
fn an_agent_can_take_over_anothers_keys_with_its_own_before_them() {
    let text = "providers: { e: { executor: echo } }\nagents:\n  - &first { region: r, slots: 3, models: { m: e } }\n  - { <<: *first, region: s }\n";
    let agents = parsed(text).unwrap();
    let seen: Vec<_> = agents.iter().map(|agent| (agent.id.as_str(), agent.slots, agent.models.len())).collect();
    assert_eq!(seen, [("r", 3, 1), ("s", 3, 1)]);
}

#[test]
fn a_file_has_its_most_bytes_and_is_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agents.yaml");
    let file = |bytes: usize| {
        let text = "providers: { e: { executor: echo } }\nagents: [{ region: r, models: { m: e } }]\n#";
        std::fs::write(&path, format!("{text}{}", "x".repeat(bytes - text.len()))).unwrap();
        read(&path, &BTreeMap::new())
    };
    assert_eq!(file(MAX_FILE_BYTES).unwrap().len(), 1);
    assert!(file(MAX_FILE_BYTES + 1).unwrap_err().to_string().contains("more than 1048576 bytes"));
    std::fs::write(&path, b"providers: \xff").unwrap();
    assert!(read(&path, &BTreeMap::new()).unwrap_err().to_string().contains("is no UTF-8 text"));
}

#[test]
fn a_key_in_the_file_is_refused_with_advice_and_quoted_nowhere() {
    let base = "providers:\n  p:\n    executor: openai\n    base_url: http://host/v1\n    LINE\nagents: [{ region: r, models: { m: p } }]\n";
    for (line, advice) in [
        ("key: sk-hidden-0", "key_env"),
        ("key: [sk-hidden-0]", "key_env"),
        ("key_env: sk-hidden-0", "takes the name of an environment variable"),
        ("key_env: skhidden0", "not set"),
        ("key_env: [sk-hidden-0]", "it must be text"),
        ("kay: sk-hidden-0", "did you mean \"key\""),
        ("headers: { Authorization: Bearer sk-hidden-0 }", "key_env"),
        ("headers: { x-team: \"sk-hidden-0\\n\" }", "x-team"),
        ("headers: sk-hidden-0", "it must be an object"),
        ("connect_timeout: [sk-hidden-0]", "it must be text"),
    ] {
        let told = faults(&base.replace("LINE", line));
        assert!(told.starts_with("agents.yaml:5: ") && told.contains(advice), "{line}: {told}");
        assert!(!told.contains("hidden"), "{line}: {told}");
    }
    for line in
        ["key: sk-hidden-0: x", "key: \"sk-hidden-0", "key: *sk-hidden-0", "key: !sk-hidden-0 x", "key: [sk-hidden-0"]
    {
        let told = faults(&base.replace("LINE", line));
        assert!(told.starts_with("agents.yaml:") && !told.contains("hidden"), "{line}: {told}");
    }
    let told = faults(&base.replace("http://host/v1", "http://me:hunter2@host/v1").replace("    LINE\n", ""));
    assert!(told.contains("key_env") && !told.contains("hunter2"), "{told}");
}

#[test]
fn a_file_without_sense_is_refused_with_its_line() {
    assert!(faults("").contains("providers"));
    assert!(faults("providers: {}\nagents: []").contains("names no agents"));
    assert!(faults("providers: {}\nagents: [{ region: r, region: s, models: {} }]").starts_with("agents.yaml:2: "));
    assert!(faults("providers: {}\nagents:\n - { region: r, slots: many, models: {} }").starts_with("agents.yaml:3: "));
    assert!(faults("providers: {\n").starts_with("agents.yaml:"));
    let missing = read(Path::new("/no/such/agents.yaml"), &BTreeMap::new()).unwrap_err().to_string();
    assert!(missing.starts_with("/no/such/agents.yaml: can't be read"), "{missing}");
}

#[test]
fn the_short_forms_have_an_agent_a_region_with_every_model() {
    let regions = ["us-east", "eu-west"].map(str::to_owned);
    let models = [("m".to_owned(), "m:1b".to_owned())];
    let agents =
        AgentSpec::openai_everywhere(OpenAiSettings::new("http://127.0.0.1:1/v1"), &regions, &models, 8).unwrap();
    assert_eq!(
        agents.iter().map(|agent| (agent.id.as_str(), agent.slots, agent.prefetch)).collect::<Vec<_>>(),
        [("us-east", 8, 8), ("eu-west", 8, 8)]
    );
    assert_eq!(agents[1].models["m"].1.name(), "openai");
    let faults = AgentSpec::openai_everywhere(OpenAiSettings::new("localhost:1/v1"), &regions, &models, 8).unwrap_err();
    assert!(faults[0].to_string().starts_with("base_url: "), "{faults:?}");
    let agents = AgentSpec::echo_everywhere(&regions, &["m".to_owned()], 4);
    assert_eq!((agents.len(), agents[0].models["m"].0.as_str()), (2, "echo"));
}

#[test]
fn the_example_files_are_read_without_a_fault() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("examples"))
        .find(|folder| folder.is_dir());
    let files: Vec<_> = std::fs::read_dir(examples.unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name().is_some_and(|name| {
                name.to_string_lossy().starts_with("agents") && name.to_string_lossy().ends_with(".yaml")
            })
        })
        .collect();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let origin = Origin { name: "example", folder: Path::new("/"), env: &|_| Some("a-key".to_owned()) };
        parse(&text, origin, &BTreeMap::new()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}
