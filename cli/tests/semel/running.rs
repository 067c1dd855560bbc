//! `run`: to the end, again, interrupted, beside another, and without what it needs.

use super::support::{Folder, assert_harmless, is_there, wait_until};

#[test]
fn a_job_runs_to_its_end_and_the_same_command_again_runs_nothing() {
    let folder = Folder::new();
    let run = folder
        .semel(&["run", "job.yaml", "--echo"])
        .exits(0)
        .says("8 of 8 recorded")
        .says("no model was asked")
        .says("semel audit small");
    let table: Vec<Vec<&str>> = run.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [
        &["model", "region", "expected", "recorded", "missing", "extra", "failed"][..],
        &["b", "eu-west", "2", "2", "0", "0", "0"],
        &["all", "8", "8", "0", "0", "0"],
    ] {
        assert!(table.iter().any(|line| line == row), "{row:?} is not in {run:#?}");
    }
    folder.semel(&["audit", "small"]).exits(0).says("8 expected, 8 recorded, 0 missing, 0 extra");
    let before = folder.semel(&["export", "small"]).exits(0).stdout;
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0).says("8 of 8 recorded already; nothing to run");
    assert_eq!(folder.semel(&["export", "small"]).stdout, before);
    assert!(!is_there(&folder.path("semel.db.endpoint")), "the endpoint file goes with the coordinator");
    let answer = folder.json(&["run", "job.yaml", "--echo"]);
    assert_eq!((&answer["outcome"], &answer["ran"]), (&"complete".into(), &false.into()), "{answer}");
    assert_eq!(answer["job"]["recorded"], 8);
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_goes_on() {
    for signal in ["INT", "TERM"] {
        let folder = Folder::new();
        folder.gated_agents();
        let arguments = ["run", "job.yaml", "--agents", "agents.json", "--grace", "100ms"];
        let run = folder.start(&arguments);
        folder.wait_until_leased();
        run.signal(signal);
        run.end().exits(4).says("0 of 8 recorded. The same command goes on:").says("run job.yaml --agents agents.json");
        folder.semel(&["audit", "small"]).exits(0).says("8 missing");
        folder.write("gate", "");
        folder.semel(&arguments).exits(0).says("8 of 8 recorded");
        folder.semel(&["audit", "small"]).exits(0).says("8 expected, 8 recorded, 0 missing, 0 extra");
        let cell = folder.json(&["show", "small", "--region", "us-east", "--model", "a", "--question", "q1"]);
        let entries = cell["attempts"].as_array().expect("a history");
        assert!(!entries.is_empty(), "it had started: {cell}");
        assert!(entries.iter().all(|entry| entry["counted"] == false), "a clean stop costs no attempt: {cell}");
    }
}

#[test]
fn a_second_signal_stops_at_once() {
    let folder = Folder::new();
    folder.gated_agents();
    let run = folder.start_logged(&["run", "job.yaml", "--agents", "agents.json", "--grace", "10min"], "log");
    folder.wait_until_leased();
    run.signal("INT");
    // Signals that come before the first was taken in count once.
    folder.wait_until_said("log", "Ctrl-C once more stops at once");
    run.signal("INT");
    run.end().exits(4).says("interrupted");
    folder.write("gate", "");
    folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(0);
}

#[test]
fn a_killed_run_goes_on_where_it_stopped() {
    let folder = Folder::new();
    folder.gated_agents();
    let run = folder.start(&["run", "job.yaml", "--agents", "agents.json"]);
    folder.wait_until_leased();
    run.signal("KILL");
    assert_eq!(run.end().code, None);
    // The endpoint file of the dead process is still there, and leads nobody astray.
    assert!(is_there(&folder.path("semel.db.endpoint")));
    folder.semel(&["list"]).exits(0).says("small");
    let nothing = "nothing is running on this store; the same `semel run ...` goes on, soon after its start with the ";
    let show = folder.semel(&["show", "small"]).exits(0).says(nothing);
    assert!(!show.stdout.contains("agent"), "no agent is blamed: {show:?}");
    folder.semel(&["why", "small"]).exits(0).says(nothing).says("agent us-east had ");
    let cell = ["show", "small", "--region", "us-east", "--model", "a", "--question", "q1"];
    folder
        .semel(&cell)
        .exits(0)
        .says("; nothing is running on this store: the lease is kept for its agent, and the same");
    folder.write("gate", "");
    folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(0).says("8 of 8 recorded");
    folder.semel(&["audit"]).exits(0).says("8 expected, 8 recorded, 0 missing, 0 extra");
}

#[test]
fn while_a_run_works_the_other_verbs_speak_to_it_and_a_second_run_is_refused() {
    let folder = Folder::new();
    folder.gated_agents();
    let arguments = ["run", "job.yaml", "--agents", "agents.json"];
    let run = folder.start(&arguments);
    folder.wait_until_leased();
    folder.semel(&arguments).exits(1).complains("semel.db is in use by process ").complains(
        "Show, why, export, pause and the rest speak to that process meanwhile; to run this, wait for its end",
    );
    folder.semel(&["list"]).exits(0).says("open");
    let show = folder.semel(&["show", "small"]).exits(0).says(" leased");
    assert!(!show.stdout.contains("no agent is connected"), "{show:?}");
    folder.semel(&["audit", "small"]).exits(0).says("8 missing");
    let why = folder.json(&["why", "small"]);
    assert!(
        why["groups"].as_array().is_some_and(|groups| groups.iter().any(|group| group["reason"] == "leased")),
        "{why}"
    );
    folder
        .semel(&["show", "small", "--region", "us-east", "--model", "a", "--question", "q1"])
        .exits(0)
        .says("not done");
    folder.write("gate", "");
    run.end().exits(0);
}

#[test]
fn a_cancel_from_elsewhere_ends_a_run() {
    let folder = Folder::new();
    folder.gated_agents();
    let arguments = ["run", "job.yaml", "--agents", "agents.json", "--grace", "1s"];
    let run = folder.start(&arguments);
    folder.wait_until_leased();
    folder.semel(&["cancel", "small", "--reason", "a test"]).exits(0).says("cancelled").says("--reopen");
    run.end().exits(3).says("semel retry small --reopen");
    folder.semel(&arguments).exits(3).says("semel retry small --reopen");
    folder.semel(&["audit", "small"]).exits(0).says("8 missing");
    folder.semel(&["retry", "small", "--reopen"]).exits(0).says("open");
    folder.write("gate", "");
    folder.semel(&arguments).exits(0).says("8 of 8 recorded");
}

#[test]
fn a_model_that_no_agent_serves_is_warned_of_and_its_reason_is_told() {
    let folder = Folder::new();
    folder.write(
        "agents.yaml",
        "providers: { e: { executor: echo } }\nagents: [{ region: us-east, models: { a: e } }]\n",
    );
    let run = folder.start(&["run", "job.yaml", "--agents", "agents.yaml"]);
    wait_until("the served cells are recorded", || {
        folder.semel(&["list"]).stdout.split_whitespace().any(|word| word == "2")
    });
    let why = folder.semel(&["why", "small"]).exits(0);
    assert!(why.stdout.contains("no agent of this region is connected"), "{why:?}");
    assert!(why.stdout.contains("no agent of this region serves this model"), "{why:?}");
    run.signal("INT");
    run.end()
        .exits(4)
        .complains("warning: no agent serves b in us-east: 2 cells will wait")
        .complains("no agent serves a in eu-west");
}

#[test]
fn an_endpoint_that_is_down_costs_no_attempt_and_its_reason_is_told() {
    let folder = Folder::new();
    // Nothing listens on port 1 of loopback.
    let run = folder.start(&["run", "job.yaml", "--openai", "http://127.0.0.1:1/v1"]);
    wait_until("the reason is known", || {
        let why = folder.semel(&["why", "small"]).stdout;
        why.contains("the agent can't use the model") && why.contains("127.0.0.1:1")
    });
    run.signal("INT");
    run.end().exits(4);
    folder.runs_with_no_attempt_used();
}

#[test]
fn no_agents_answer_another_open_jobs_cells_but_where_that_is_said() {
    let folder = Folder::new();
    folder.gated_agents();
    let run = folder.start(&["run", "job.yaml", "--agents", "agents.json", "--grace", "100ms"]);
    folder.wait_until_leased();
    run.signal("INT");
    run.end().exits(4);
    folder.write("other.yaml", &super::support::JOB.replace("job: small", "job: other"));
    folder.shell_agents("printf other");
    let refused = "job small is open in this store too, and these agents would run its cells as well: run it to its end, \
                   `semel pause small --store semel.db`, `semel cancel small --store semel.db`, name another store with \
                   --store, or say --with-open-jobs";
    let with = ["run", "other.yaml", "--store", "semel.db"];
    for how in [&["--echo"][..], &["--agents", "agents.json"], &["--openai", "http://127.0.0.1:1/v1"]] {
        folder.semel(&[&with[..], how].concat()).exits(2).complains(refused);
    }
    let jobs = folder.json(&["list"]);
    assert_eq!(
        (jobs.as_array().map(Vec::len), &jobs[0]["recorded"]),
        (Some(1), &0.into()),
        "nothing was stored: {jobs}"
    );

    folder.semel(&["pause", "small"]).exits(0).says("paused");
    let with = [&with[..], &["--agents", "agents.json"]].concat();
    folder.semel(&with).exits(0);
    folder.semel(&["audit", "small"]).exits(0).says("8 missing");
    folder.semel(&["resume", "small"]).exits(0);
    // No agent is started for a job that is complete.
    folder.semel(&with).exits(0).says("nothing to run");
    folder.semel(&["retry", "other", "--status", "succeeded"]).exits(0);
    folder.semel(&with).exits(2).complains(refused);
    folder
        .semel(&[&with[..], &["--with-open-jobs"]].concat())
        .exits(0)
        .complains("warning: job small is open in this store too, and these agents run its cells as well")
        .says("another job of these agents: small: ");
}

#[test]
fn an_answer_with_terminal_escapes_does_nothing_to_the_terminal() {
    let folder = Folder::new();
    folder.shell_agents(r"printf '\033[2J\033]0;owned\007\302\233\r\342\200\256\377'");
    let run = folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(0);
    assert_harmless(&run.stdout);
    let cell = ["show", "small", "--region", "us-east", "--model", "a", "--question", "q1"];
    let shown = folder.semel(&cell).exits(0).says("\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\u{9b}\\r\\u{202e}\\xff");
    assert_harmless(&shown.stdout);
    assert_harmless(&folder.json(&cell).to_string());
    assert_harmless(&folder.semel(&["export", "small"]).exits(0).stdout);
}

#[test]
fn what_is_logged_where_no_terminal_is_has_no_escapes() {
    let folder = Folder::new();
    let logged = folder.semel(&["run", "job.yaml", "--echo", "-v"]).exits(0).complains("INFO");
    assert_harmless(&logged.stderr);
    let colored = folder.semel(&["list", "-v", "--color", "always"]).exits(0);
    assert!(colored.stderr.contains('\u{1b}'), "{colored:?}");
}

#[test]
fn the_self_test_records_72_of_72() {
    let folder = Folder::new();
    folder.semel(&["selftest"]).exits(0).says("72 expected, 72 recorded, 0 missing, 0 extra").says("72 of 72");
    assert_eq!(folder.json(&["selftest"])["recorded"], 72);
    assert!(!is_there(&folder.path("semel.db")), "the self-test's store is its own");
}

#[test]
fn the_self_test_goes_through_the_store_that_it_is_pointed_at() {
    let folder = Folder::new();
    let selftest = ["selftest", "--store", "s.db"];
    let passed = "72 of 72 recorded; its job selftest-";
    // One that isn't there, one that is, and one on which a coordinator runs.
    folder.semel(&selftest).exits(0).says("72 expected, 72 recorded, 0 missing, 0 extra").says(passed);
    folder.semel(&selftest).exits(0).says(passed);
    folder.gated_agents();
    let run = folder.start(&["run", "job.yaml", "--agents", "agents.json", "--store", "s.db"]);
    wait_until("its coordinator runs", || is_there(&folder.path("s.db.endpoint")));
    folder.semel(&selftest).exits(0).says(passed);
    folder.write("gate", "");
    run.end().exits(0);
    let jobs = folder.json(&["audit", "--all", "--store", "s.db"]);
    let tests = jobs.as_array().expect("jobs").iter().filter(|job| job["expected"] == 72 && job["recorded"] == 72);
    assert_eq!(tests.count(), 3, "{jobs}");
    // What it is pointed at and can't use fails it.
    folder.write("none.db", "not a database, and long enough to be told from an empty one");
    folder.semel(&["selftest", "--store", "none.db"]).exits(1).complains("none.db");
    let named = folder.command(&["selftest"]).env("SEMEL_STORE", "none.db").output().expect("it runs");
    assert_eq!(named.status.code(), Some(1), "{named:?}");
}
