//! Bad input beside the job: agents, options, what is checked. Of the jobs themselves see `bad_jobs`.

use super::support::{Folder, is_there};

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
