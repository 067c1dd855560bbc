//! What a job's standing is told with: who runs it, what failed, what to do next.

use super::support::{Folder, JOB, assert_harmless, wait_until};

const RUN: [&str; 4] = ["run", "job.yaml", "--agents", "agents.json"];
const CELL: [&str; 8] = ["show", "small", "--region", "us-east", "--model", "a", "--question", "q2"];

#[test]
fn an_agents_file_that_can_run_no_cell_is_refused_before_anything_is_stored() {
    let folder = Folder::new();
    folder.write(
        "agents.yaml",
        "providers: { e: { executor: echo } }\nagents: [{ region: us-east, models: { c: e } }]\n",
    );
    folder
        .semel(&["run", "job.yaml", "--agents", "agents.yaml"])
        .exits(2)
        .complains("agents.yaml: no agent in it serves any model of this job in a region of the job")
        .complains("no agent serves a in us-east: 2 cells will wait; the agents there serve c")
        .complains("no agent serves a in eu-west: 2 cells will wait; there is no agent in that region, but in us-east");
    assert!(!folder.path("semel.db").exists());
}

#[test]
fn a_region_whose_agents_lack_the_models_is_told_as_that_and_not_as_one_without_agents() {
    let folder = Folder::new();
    folder.write(
        "agents.yaml",
        "providers: { e: { executor: echo } }\n\
         agents: [{ region: us-east, models: { a: e, b: e } }, { region: eu-west, models: { c: e } }]\n",
    );
    let run = folder.start_logged(&["run", "job.yaml", "--agents", "agents.yaml"], "stderr");
    folder.wait_until_said(
        "stderr",
        "warning: no agent serves b in eu-west: 2 cells will wait; the agents there serve c",
    );
    wait_until("why knows of the agent", || {
        let why = folder.semel(&["why", "small"]).stdout;
        why.contains("no agent of this region serves this model") && why.contains("eu-west serves no a")
    });
    run.signal("INT");
    run.end().exits(4).says("4 of 8 recorded");
}

#[test]
fn after_an_interruption_why_and_show_say_that_nothing_runs_and_what_goes_on() {
    let folder = Folder::new();
    folder.gated_agents();
    let run = folder.start(&[&RUN[..], &["--grace", "100ms"]].concat());
    folder.wait_until_leased();
    let why = folder.semel(&["why", "small"]).exits(0).says("agent us-east has ").says(", the oldest for ");
    assert!(why.stdout.contains("a lease ends with its result, with the run timeout (5 min 0 s"), "{why:?}");
    assert!(!why.stdout.contains("nothing is running"), "{why:?}");
    let groups = folder.json(&["why", "small"]);
    let agents: Vec<&str> = groups["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .filter_map(|group| group["agents"][0]["agent"].as_str())
        .collect();
    assert!(agents.contains(&"us-east") && agents.contains(&"eu-west"), "{groups}");
    assert_eq!(groups["running"], true);
    run.signal("INT");
    run.end().exits(4);
    let nothing = "nothing is running on this store; the same `semel run ...` goes on";
    let why = folder.semel(&["why", "small"]).exits(0).says(nothing).says("  nothing is running");
    assert!(!why.stdout.contains("no agent"), "nobody started any: {why:?}");
    folder.semel(&["show", "small"]).exits(0).says(nothing);
    folder.semel(&CELL).exits(0).says(&format!("not done: {nothing}"));
    assert_eq!(folder.json(&CELL)["wait_reason"], "nothing_is_running");
    let told = folder.json(&["why", "small"]);
    assert_eq!(
        (&told["running"], &told["groups"][0]["reason"]),
        (&false.into(), &"nothing_is_running".into()),
        "{told}"
    );
    let rows = folder.semel(&["export", "small", "--missing"]).exits(0).stdout;
    let of_nobody = rows.lines().filter(|row| row.contains("\"missing_reason\":\"nothing_is_running\"")).count();
    assert_eq!(of_nobody, 8, "{rows}");
    folder.write("gate", "");
    folder.semel(&RUN).exits(0);
    let why = folder.semel(&["why", "small"]).exits(0).says("nothing waits");
    assert!(!why.stdout.contains(nothing), "of a job that is complete nothing is missed: {why:?}");
}

#[test]
fn why_tells_what_failed_by_kind_with_the_words_of_one_and_what_to_do() {
    let folder = Folder::new();
    folder.write("job.yaml", &format!("{JOB}policy: {{ attempts: 1 }}\n"));
    folder.shell_agents(
        r#"case "$SEMEL_QUESTION" in q2) printf 'no\033]0;x\007 such\nluck\n' >&2; exit 3;; esac; printf fine"#,
    );
    folder.semel(&RUN).exits(3);
    let why = folder
        .semel(&["why", "small"])
        .exits(0)
        .says("4 failed")
        .says("the program failed (exit status or code 3)  2 models  2 regions  no\\u{1b}]0;x\\u{7} such luck")
        .says("one of them whole: semel show small --region us-east --model a --question q2")
        .says("to run them again: semel retry small --status failed, and then the same `semel run ...`");
    assert_harmless(&why.stdout);
    let told = folder.json(&["why", "small"]);
    let kind = &told["failures"][0];
    assert_eq!(told["failures_read"], serde_json::json!({ "complete": true, "read": 4 }), "{told}");
    assert_eq!((&told["failed"], &kind["cells"], &kind["reason"]), (&4.into(), &4.into(), &"program".into()), "{told}");
    assert_eq!(kind["example"]["failure"]["message"], "no\u{1b}]0;x\u{7} such\nluck\n");
    let shown = folder.semel(&CELL).exits(0).says("program at run (exit status or code 3):\n    no\\u{1b}");
    assert!(shown.stdout.contains(" such\n    luck\n"), "lines are lines: {shown:?}");
    assert_harmless(&shown.stdout);
}

#[test]
fn one_sample_of_several_says_which_it_is_and_how_to_see_another() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo", "--store", "one.db"]).exits(0);
    let one = folder.semel(&[&CELL[..], &["--store", "one.db"]].concat()).exits(0);
    assert!(!one.stdout.contains("sample"), "there is no other: {one:?}");
    folder.write("job.yaml", &format!("{JOB}repeat: 3\n"));
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    folder.semel(&CELL).exits(0).says("sample     0 of 3; --repeat picks another, 0 to 2");
    folder.semel(&[&CELL[..], &["--repeat", "2"]].concat()).exits(0).says("sample     2 of 3");
    let json = folder.json(&CELL);
    assert_eq!((&json["repeat"], &json["samples"]), (&0.into(), &3.into()), "{json}");
    folder.semel(&["show", "small", "--repeat", "1"]).exits(2).complains("--question");
}

#[test]
fn the_way_back_from_a_cancel_fits_what_happened() {
    let folder = Folder::new();
    folder.write("job.yaml", &format!("{JOB}policy: {{ attempts: 1 }}\n"));
    folder.shell_agents(r#"case "$SEMEL_QUESTION" in q2) exit 3;; esac; printf fine"#);
    folder.semel(&RUN).exits(3);
    folder.semel(&["retry", "small", "--status", "succeeded"]).exits(0);
    folder.semel(&["cancel", "small"]).exits(0).says("to open it again: semel retry small --status failed --reopen");
    folder.semel(&RUN).exits(3).says("(what failed runs again too)").says("semel retry small --status failed --reopen");
    folder.semel(&["why", "small"]).exits(0).says("to run them again: semel retry small --status failed --reopen");
    folder
        .semel(&["retry", "small", "--reopen"])
        .exits(0)
        .says("4 cells run again")
        .says("small: open, 0 of 8 recorded");

    folder.semel(&["cancel", "small"]).exits(0).says("to open it again: semel retry small --reopen\n");
    folder
        .semel(&RUN)
        .exits(3)
        .says("to open it again, this, and then the same command as now:\n  semel retry small --reopen\n");
    folder
        .semel(&["retry", "small", "--reopen"])
        .exits(0)
        .says("the job is open, and its 8 without a record wait")
        .says("small: open, 0 of 8 recorded");
    folder.semel(&["retry", "small"]).exits(2).complains("--status");
}

#[test]
fn what_is_complete_is_neither_cancelled_nor_paused_and_each_says_so() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    for verb in ["cancel", "pause", "resume"] {
        let done = folder.semel(&[verb, "small"]).exits(1).complains("job \"small\" is complete: there is nothing to ");
        assert_eq!(done.stdout, "", "{verb}");
    }
    folder.semel(&["list"]).exits(0).says("complete");
}

#[test]
fn a_duration_that_is_none_is_told_with_one_that_is() {
    let folder = Folder::new();
    for option in ["--grace", "--patience"] {
        let done = folder.semel(&["run", "job.yaml", "--echo", option, "soon"]).exits(2);
        done.complains("is no duration; write a number and a unit, as 90s or 2m");
    }
}
