//! Rule S6 from end to end: an answer of another model or region is a failure, kept in the history, and exact by the audit.

mod common;

use common::{run, semel};

/// Agents whose program says that another model, or another region, answered.
const AGENTS: &str = r#"
providers:
  model: { executor: command, program: [sh, -c, 'printf "{\"output\": \"x\", \"served_model\": \"another\"}"'] }
  region: { executor: command, program: [sh, -c, 'printf "{\"output\": \"x\", \"served_region\": \"elsewhere\"}"'] }
agents:
  - { region: here, models: { a: model, b: region } }
"#;
const JOB: &str = "
job: judged
questions: [{ id: q, prompt: x }]
models: [{ id: a, regions: [here] }, { id: b, regions: [here] }]
policy: { attempts: 2, backoff: 100ms }
";

#[test]
fn s6_an_answer_that_was_judged_wrong_to_the_end_is_a_failure_and_the_audit_is_exact() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("agents.yaml"), AGENTS).expect("writes");
    std::fs::write(folder.path().join("job.yaml"), JOB).expect("writes");
    let ran = run(folder.path(), &["run", "job.yaml", "--agents", "agents.yaml", "--store", "s.db"]);
    assert_eq!(ran.status.code(), Some(3), "complete with failures");
    let audit = run(folder.path(), &["audit", "judged", "--store", "s.db"]);
    let words = String::from_utf8_lossy(&audit.stdout);
    assert!(
        audit.status.success() && words.contains("2 expected, 2 recorded, 0 missing, 0 extra, 2 failed"),
        "{words}"
    );
    for (model, reason) in [("a", "wrong_model"), ("b", "wrong_region")] {
        let cell = ["show", "judged", "--region", "here", "--model", model, "--question", "q", "--store", "s.db"];
        let shown = semel(folder.path(), &cell).args(["--output", "json"]).output().expect("starts");
        let cell: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        assert_eq!(cell["attempts"].as_array().map(Vec::len), Some(2), "both answers are kept: {cell}");
        assert!(cell.to_string().contains(reason), "{cell}");
    }
}
