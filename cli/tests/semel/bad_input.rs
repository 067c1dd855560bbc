//! Bad input: every fault at once, each with its place, nothing stored, exit code 2.

use super::support::{Folder, JOB, assert_harmless, is_there};

/// What is wrong with a job, the job, and what must be said of it.
fn table() -> Vec<(&'static str, String, Vec<&'static str>)> {
    let job = |tail: &str| format!("job: small\n{tail}");
    vec![
        (
            "no questions, models or regions",
            job("questions: []\nmodels: []\n"),
            vec!["questions: has none", "models: has none"],
        ),
        (
            "ids twice on an axis",
            job(
                "questions:\n  - { id: q, prompt: x }\n  - { id: q, prompt: y }\nmodels: [{ id: m, regions: [r] }, { id: m, regions: [r] }]\n",
            ),
            vec!["job.yaml:4:11 questions[1].id", "models[1].id: \"m\" is already used"],
        ),
        (
            "ids that are none",
            job(
                "questions:\n  - { id: '', prompt: x }\n  - { id: ' q', prompt: y }\n  - { id: \"a\\u001b[31m\", prompt: z }\nmodels: [{ id: m, regions: [r] }]\n",
            ),
            vec!["questions[0].id: \"\" is empty", "questions[1].id", "questions[2].id", "U+001B"],
        ),
        (
            "an id that is too long",
            job(&format!(
                "questions: [{{ id: {}, prompt: x }}]\nmodels: [{{ id: m, regions: [r] }}]\n",
                "q".repeat(256)
            )),
            vec!["has 256 bytes"],
        ),
        (
            "a model without a region",
            job("questions: [{ id: q, prompt: x }]\nmodels: [{ id: m, regions: [] }]\n"),
            vec!["models[0].regions: has none"],
        ),
        (
            "unknown keys and wrong types",
            job(
                "questions: [{ id: q, promt: x }]\nmodels: [{ id: m, regions: [r] }]\nrepeat: many\npolicy: { attempts: 0 }\n",
            ),
            vec!["promt", "did you mean prompt?", "repeat", "policy.attempts"],
        ),
        (
            "a question file with a broken line",
            job("questions: { file: q.jsonl }\nmodels: [{ id: m, regions: [r] }]\n"),
            vec!["q.jsonl:2"],
        ),
    ]
}

#[test]
fn every_fault_is_listed_with_its_place_and_nothing_is_stored() {
    for (what, job, said) in table() {
        let folder = Folder::new();
        folder.write("job.yaml", &job);
        folder.write("q.jsonl", "{\"id\":\"q1\",\"prompt\":\"x\"}\n{\"id\":\n");
        for arguments in [&["check", "job.yaml"][..], &["run", "job.yaml", "--echo"]] {
            let mut done = folder.semel(arguments).exits(2);
            for words in &said {
                done = done.complains(words);
            }
            assert_harmless(&done.stderr);
            assert!(done.stderr.lines().count() >= said.len().min(2), "{what}: {done:?}");
            assert!(!is_there(&folder.path("semel.db")), "{what}");
        }
        let faults = folder.json(&["check", "job.yaml"]);
        assert!(faults["faults"][0]["problem"].is_string(), "{what}: {faults}");
    }
}

#[test]
fn a_job_id_that_is_used_with_another_specification_is_refused_with_the_difference() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    folder.write("job.yaml", &JOB.replace("prompt: two", "prompt: three"));
    folder
        .semel(&["run", "job.yaml", "--echo"])
        .exits(2)
        .complains("questions.q2.prompt: was \"two\", is now \"three\"");
    folder.semel(&["audit", "small"]).exits(0).says("8 expected, 8 recorded, 0 missing, 0 extra");
}

#[test]
fn a_fault_of_the_agents_is_refused_before_anything_is_stored() {
    let folder = Folder::new();
    folder.write(
        "agents.json",
        r#"{ "providers": {}, "agents": [{ "region": "us-east", "models": { "a": "nobody" } }] }"#,
    );
    folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(2).complains("there is no provider \"nobody\"");
    folder.semel(&["run", "job.yaml", "--openai", "not a url"]).exits(2).complains("--openai");
    folder.semel(&["run", "job.yaml"]).exits(2).complains("--openai");
    let pasted =
        folder.semel(&["run", "job.yaml", "--openai", "http://127.0.0.1:1/v1", "--key-env", "sk-secret"]).exits(2);
    assert!(!pasted.stderr.contains("sk-secret"), "{pasted:?}");
    assert!(!is_there(&folder.path("semel.db")));
}

#[test]
fn check_says_the_axes_the_count_and_the_first_cells() {
    let folder = Folder::new();
    folder
        .semel(&["check", "job.yaml"])
        .exits(0)
        .says("small: 8 cells")
        .says("q1, q2")
        .says("us-east · a · q1 · 0")
        .says("{\"messages\":[{\"content\":\"one\",\"role\":\"user\"}],\"model\":\"a\",\"parameters\":{}}");
    let answer = folder.json(&["check", "job.yaml"]);
    assert_eq!(answer["expected"], 8);
    assert_eq!(answer["cells"][0]["input"]["model"], "a");
    assert!(!is_there(&folder.path("semel.db")));
}

#[test]
fn a_verb_on_a_store_that_is_not_there_makes_none() {
    let folder = Folder::new();
    for arguments in [&["list"][..], &["show", "small"], &["why", "small"], &["audit"], &["export", "small"]] {
        folder.semel(arguments).exits(1).complains("there is no store at");
        assert!(!is_there(&folder.path("semel.db")));
    }
}
