//! A walk along what people get wrong, and along the examples of the help: each mistake is told in words that name the
//! thing, the value and what to do, with its exit code; nothing panics.

use std::{fs, path::Path, process::Stdio};

use super::support::{Done, Folder, assert_harmless, is_there, wait_until};

/// Fails where the words are those of a crash, or are none.
#[track_caller]
fn in_words(done: Done) -> Done {
    for crash in ["panicked", "backtrace", "RUST_"] {
        assert!(!done.stderr.contains(crash), "{done:#?}");
    }
    assert!(!done.stderr.trim().is_empty(), "{done:#?}");
    assert_harmless(&done.stderr);
    done
}

#[test]
fn every_odd_job_file_is_told_by_what_is_odd_about_it() {
    let keys = "write the keys job, questions, models, regions";
    let files: [(&str, &[u8], &[&str]); 9] = [
        ("empty.yaml", b"", &["empty.yaml:1:1: the file has no value where an object should be", keys]),
        ("comment.yaml", b"# later\n", &["comment.yaml:1:1: the file has no value where an object should be", keys]),
        ("null.yaml", b"null\n", &["null.yaml:1:1: the file has no value where an object should be", keys]),
        ("null.json", b"null", &["null.json:1:1: the file has no value where an object should be", keys]),
        ("empty.json", b"", &["empty.json:1:1: the file is no valid JSON: it ends where a value should be"]),
        (
            "tabs.yaml",
            b"job: j\nquestions:\n\t- { id: q }\n",
            &["tabs.yaml:3:2: the file is no valid YAML: tabs disallowed"],
        ),
        (
            "two.yaml",
            b"job: a\n---\njob: b\n",
            &["two.yaml:2:1: the file has a second document; keep one document in a file"],
        ),
        ("utf16.yaml", b"\xff\xfej\0o\0b\0", &["utf16.yaml:1: the file is no UTF-8 text; save the file as UTF-8"]),
        ("deep.json", &[b'['; 100_000], &["deep.json:1:66: the file is no valid JSON: it is nested more than 64 deep"]),
    ];
    let folder = Folder::new();
    for (name, bytes, said) in files {
        fs::write(folder.path(name), bytes).expect("written");
        for road in [&["check", name][..], &["run", name, "--echo"]] {
            let done = in_words(folder.semel(road)).exits(2);
            said.iter().fold(done, |done, words| done.complains(words));
        }
    }
    fs::create_dir(folder.path("folder.yaml")).expect("made");
    for name in ["folder.yaml", "nowhere.yaml"] {
        for road in [&["check", name][..], &["run", name, "--echo"]] {
            in_words(folder.semel(road)).exits(2).complains(&format!("{name}: the file can't be read: "));
        }
    }
    assert!(!is_there(&folder.path("semel.db")));
}

#[test]
fn byte_order_marks_and_the_line_ends_of_windows_change_no_job() {
    let folder = Folder::new();
    let yaml = "job: j\nquestions:\n  - { id: q, prompt: p }\nmodels: [{ id: m, regions: [r] }]\n";
    let json = r#"{"job":"j","questions":[{"id":"q","prompt":"p"}],"models":[{"id":"m","regions":["r"]}]}"#;
    let files = [
        ("plain.yaml", yaml.to_owned()),
        ("mark.yaml", format!("\u{feff}{yaml}")),
        ("windows.yaml", yaml.replace('\n', "\r\n")),
        ("both.yaml", format!("\u{feff}{}", yaml.replace('\n', "\r\n"))),
        ("plain.json", json.to_owned()),
        ("mark.json", format!("\u{feff}{json}")),
    ];
    folder.write("plain.yaml", yaml);
    let digest = folder.json(&["check", "plain.yaml"])["spec_digest"].clone();
    assert!(digest.is_string());
    for (name, text) in files {
        folder.write(name, &text);
        assert_eq!(folder.json(&["check", name])["spec_digest"], digest, "{name}");
    }
}

#[test]
fn a_name_that_is_not_there_comes_with_the_nearest_that_is() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    let near = "there is no job \"smal\"; did you mean \"small\"?";
    let verbs: [&[&str]; 8] = [
        &["show", "smal"],
        &["show", "smal", "--region", "us-east", "--model", "a", "--question", "q1"],
        &["why", "smal"],
        &["audit", "smal"],
        &["export", "smal"],
        &["retry", "smal", "--status", "failed"],
        &["cancel", "smal"],
        &["pause", "smal"],
    ];
    for arguments in verbs {
        in_words(folder.semel(arguments)).exits(1).complains(near);
    }
    folder.semel(&["show", "other"]).exits(1).complains("there is no job \"other\"; `semel list` lists those that are");

    let cells = ["--region", "us-eats", "--model", "c", "--question", "q3"];
    for verb in [&["show", "small"][..], &["retry", "small", "--status", "succeeded"], &["export", "small"]] {
        in_words(folder.semel(&[verb, &cells].concat()))
            .exits(2)
            .complains("--region \"us-eats\" is no region of the job \"small\"; did you mean \"us-east\"?")
            .complains("--model \"c\" is no model of the job \"small\"; it has a, b")
            .complains("--question \"q3\" is no question of the job \"small\"; it has q1, q2");
    }
    folder
        .semel(&["show", "small", "--region", "us-east", "--model", "a", "--question", "q1", "--repeat", "1"])
        .exits(2)
        .complains("--repeat 1 is no sample of the job \"small\"; write 0 to 0");
    folder.semel(&["audit", "small"]).exits(0).says("8 expected, 8 recorded, 0 missing, 0 extra");
}

#[test]
fn a_store_that_can_not_be_used_says_why_once_and_nothing_is_made() {
    let folder = Folder::new();
    fs::create_dir(folder.path("folder")).expect("made");
    folder.write("text.db", "hello\n");
    let run = |store| ["run", "job.yaml", "--echo", "--store", store];
    for arguments in [&run("folder")[..], &["list", "--store", "folder"], &["audit", "--store", "folder"]] {
        in_words(folder.semel(arguments)).exits(2).complains("--store folder: is a folder; name a file in it");
    }
    for arguments in [&run("nowhere/x.db")[..], &["show", "j", "--store", "nowhere/x.db"]] {
        in_words(folder.semel(arguments)).exits(2).complains("there is no folder nowhere; make it, or name a file in");
    }
    for arguments in [&run("text.db")[..], &["list", "--store", "text.db"], &["audit", "--store", "text.db"]] {
        let done = in_words(folder.semel(arguments)).exits(1).complains("text.db can't be opened as a SQLite database");
        assert_eq!(done.stderr.matches("file is not a database").count(), 1, "{done:#?}");
    }
    // A folder in which nobody, root neither, makes a file.
    if Path::new("/proc/self").is_dir() {
        for verb in [&["list"][..], &["show", "j"], &["why", "j"], &["export", "j"]] {
            in_words(folder.semel(&[verb, &["--store", "/proc/version"]].concat()))
                .exits(1)
                .complains("--store /proc/version can't be used: this user may only read it or its folder")
                .complains("`semel audit` reads it as it is");
        }
        in_words(folder.semel(&run("/proc/x.db")))
            .exits(1)
            .complains("--store /proc/x.db can't be used; name a file in a folder that this user may write");
    }
    assert_eq!(fs::read(folder.path("text.db")).expect("read"), b"hello\n");
    assert!(!is_there(&folder.path("semel.db")) && !is_there(&folder.path("nowhere")));
}

#[test]
fn a_wrong_way_to_the_models_is_refused_by_its_option_and_its_value() {
    let folder = Folder::new();
    let urls = [
        ("", "--openai \"\": is no URL"),
        ("not a url", "--openai \"not a url\": is no URL"),
        ("127.0.0.1:11434/v1", "one looks like http://127.0.0.1:11434/v1"),
        ("ftp://host/v1", "--openai \"ftp://host/v1\": starts with \"ftp\"; it must be http or https"),
        ("http://host:99999/v1", "--openai \"http://host:99999/v1\": is no URL (invalid port number)"),
        ("http://me:hunter2@host/v1", "--openai: holds a user or password; give the key by key_env or key_file"),
    ];
    for (url, said) in urls {
        let done = in_words(folder.semel(&["run", "job.yaml", "--openai", url])).exits(2).complains(said);
        assert!(!done.stderr.contains("hunter2"), "{done:?}");
    }
    let key_env = ["run", "job.yaml", "--openai", "http://127.0.0.1:1/v1", "--key-env", "SEMEL_TEST_NO_SUCH_KEY"];
    in_words(folder.semel(&key_env)).exits(2).complains("--key-env: the environment variable").complains("is not set");
    folder.write(
        "agents.yaml",
        "providers: { e: { executor: echo } }\nagents: [{ region: us-east, slot: 2, models: { a: e, b: e } }]\n",
    );
    in_words(folder.semel(&["run", "job.yaml", "--agents", "agents.yaml"]))
        .exits(2)
        .complains("agents.yaml:2: there is no key \"slot\" here; did you mean \"slots\"?");
    for name in ["nowhere.yaml", "."] {
        let done = in_words(folder.semel(&["run", "job.yaml", "--agents", name])).exits(2);
        done.complains(&format!("{name}: can't be read: "));
    }
    let token = ["list", "--coordinator", "127.0.0.1:1", "--token-file"];
    in_words(folder.semel(&[&token[..], &["nowhere"]].concat()))
        .exits(2)
        .complains("--token-file nowhere: can't be read");
    folder.write("empty", "\n");
    in_words(folder.semel(&[&token[..], &["empty"]].concat())).exits(2).complains("--token-file empty: is empty");
    assert!(!is_there(&folder.path("semel.db")));
}

#[test]
fn a_key_file_that_can_not_be_read_is_the_reason_why_cells_wait() {
    let folder = Folder::new();
    fs::create_dir(folder.path("folder")).expect("made");
    folder.write("empty", "\n");
    for (file, said) in [("nowhere", "No such file"), ("folder", "Is a directory"), ("empty", "is empty")] {
        // It is read before each call, so it may yet come: the run waits, and costs no attempt.
        let arguments = ["run", "job.yaml", "--openai", "http://127.0.0.1:1/v1", "--key-file", file];
        let run = folder.start(&arguments);
        wait_until("the reason is known", || {
            let why = folder.semel(&["why", "small"]).stdout;
            why.contains(&format!("key file {file}")) && why.contains(said)
        });
        run.signal("INT");
        run.end().exits(4);
    }
    folder.runs_with_no_attempt_used();
}

#[test]
fn a_verb_about_a_job_where_none_ever_ran_says_how_to_run_one() {
    let folder = Folder::new();
    let verbs: [&[&str]; 9] = [
        &["list"],
        &["show", "j"],
        &["why", "j"],
        &["audit"],
        &["audit", "j"],
        &["export", "j"],
        &["retry", "j", "--status", "failed"],
        &["cancel", "j"],
        &["resume", "j"],
    ];
    for arguments in verbs {
        in_words(folder.semel(arguments))
            .exits(1)
            .complains("there is no store at ./semel.db: `semel run JOB` makes one; --store names another");
        assert!(!is_there(&folder.path("semel.db")));
    }
}

/// The examples in a verb's help.
fn examples(folder: &Folder, verb: &str) -> Vec<String> {
    let help = folder.semel(&[verb, "--help"]).exits(0).stdout;
    let (_, after) = help.split_once("Example:\n").unwrap_or_else(|| panic!("{verb} has no example: {help}"));
    after.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// The example job, and the agents files beside it.
fn with_examples() -> Folder {
    let folder = Folder::new();
    fs::create_dir(folder.path("examples")).expect("made");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for entry in fs::read_dir(source).expect("listed").filter_map(Result::ok).filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), folder.path("examples").join(entry.file_name())).expect("copied");
    }
    folder
}

#[test]
fn the_examples_of_the_help_work_as_written_on_the_example_job() {
    let folder = with_examples();
    folder.semel(&["run", "examples/first.yaml", "--echo"]).exits(0).says("72 of 72 recorded");
    let finished = fs::read(folder.path("semel.db")).expect("read");
    let semel = Path::new(env!("CARGO_BIN_EXE_semel")).parent().expect("a folder").to_owned();
    let path = format!("{}:{}", semel.display(), std::env::var("PATH").unwrap_or_default());
    let verbs = [
        "check",
        "audit",
        "list",
        "show",
        "why",
        "retry",
        "cancel",
        "pause",
        "resume",
        "export",
        "selftest",
        "completions",
        "schema",
    ];
    for verb in verbs {
        for example in examples(&folder, verb) {
            // A coordinator elsewhere is the subject of tests of its own.
            if example.contains("--coordinator") {
                continue;
            }
            fs::write(folder.path("semel.db"), &finished).expect("written");
            if ["cancel", "pause", "resume"].contains(&verb) {
                // They steer a job that is open.
                folder.semel(&["retry", "first", "--status", "succeeded", "--question", "sum"]).exits(0);
            }
            // Without jq on the machine its part is left out: what it reads is JSON all the same.
            let example = match example.split_once(" | jq ") {
                Some((before, _)) if !has_jq() => before.to_owned(),
                _ => example,
            };
            let mut shell = std::process::Command::new("bash");
            shell.args(["-o", "pipefail", "-c", &example]).env("PATH", &path).env_remove("SEMEL_STORE");
            let done = shell.current_dir(folder.path("")).stdin(Stdio::null()).output().expect("bash runs");
            assert!(done.status.success() && done.stderr.is_empty(), "{example}: {done:?}");
        }
    }
    assert!(is_there(&folder.path("first.csv")) && is_there(&folder.path("job.schema.json")));
}

fn has_jq() -> bool {
    std::process::Command::new("jq").arg("--version").output().is_ok_and(|done| done.status.success())
}

#[test]
fn the_examples_of_run_are_jobs_that_are_sound_and_agents_that_are_read() {
    let folder = with_examples();
    // Nothing listens on port 1 of loopback, whatever does on this machine where the examples point.
    let nobody = |text: &str| text.replace("127.0.0.1:11434", "127.0.0.1:1");
    let agents = folder.path("examples/agents-ollama.yaml");
    fs::write(&agents, nobody(&fs::read_to_string(&agents).expect("read"))).expect("written");
    for example in examples(&folder, "run") {
        let example = nobody(&example);
        let words: Vec<&str> = example.split(' ').collect();
        assert_eq!(words[..2], ["semel", "run"], "{example}");
        folder.semel(&["check", words[2]]).exits(0).says("72 cells");
        let store = words.iter().skip_while(|word| **word != "--store").nth(1).copied().unwrap_or("semel.db");
        let run = folder.start(&words[1..]);
        wait_until("the run waits for its models", || {
            let jobs = folder.semel(&["list", "--store", store]).stdout;
            let job = if jobs.contains("incident") { "incident" } else { "first" };
            folder.semel(&["why", job, "--store", store]).stdout.contains("the agent can't use the model")
        });
        run.signal("INT");
        run.end().exits(4).says("0 of 72 recorded");
    }
}
