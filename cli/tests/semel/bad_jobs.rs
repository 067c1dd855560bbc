//! The table of bad jobs, through `semel check` and `semel run`: the same words, exit code 2, and nothing stored.

#[path = "../../../spec/tests/bad/table.rs"]
mod table;

use std::{collections::BTreeSet, ffi::OsString, fs};

use super::support::{Folder, JOB, assert_harmless};
use table::{Bad, FILE, table};

/// The two roads of a file. What runs would be answered by echo, at once.
const ROADS: [&[&str]; 2] = [&["check", "job.yaml"], &["run", "job.yaml", "--echo"]];

/// Everything in a folder.
fn listing(folder: &Folder) -> BTreeSet<OsString> {
    let entries = fs::read_dir(folder.path("")).expect("listed");
    entries.map(|entry| entry.expect("an entry").file_name()).collect()
}

/// A folder with a bad job in it.
fn folder_of(bad: &Bad) -> Folder {
    let folder = Folder::new();
    folder.write("job.yaml", &bad.file);
    if let Some((name, bytes)) = bad.beside {
        fs::write(folder.path(name), bytes).expect("written");
    }
    folder
}

#[test]
fn every_fault_is_told_by_check_and_run_alike_and_nothing_is_stored() {
    for bad in table() {
        let folder = folder_of(&bad);
        let before = listing(&folder);
        for road in ROADS {
            let done = folder.semel(road).exits(2);
            let said: Vec<&str> = done.stderr.lines().collect();
            assert_eq!(said, bad.lines, "{}: {}", bad.what, road[0]);
            assert_eq!(done.stdout, "", "{}: {}", bad.what, road[0]);
            assert_harmless(&done.stderr);
            assert_eq!(listing(&folder), before, "{}: {}", bad.what, road[0]);
        }
    }
}

#[test]
fn every_fault_is_told_to_scripts_with_its_place_in_parts() {
    for bad in table() {
        let folder = folder_of(&bad);
        let answer = folder.json(&["check", "job.yaml"]);
        let faults = answer["faults"].as_array().expect("faults");
        assert_eq!(faults.len(), bad.lines.len(), "{}", bad.what);
        for (fault, line) in faults.iter().zip(&bad.lines) {
            let text = |key: &str| fault[key].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| fault[key].as_u64().map(|n| format!(":{n}")).unwrap_or_default();
            let place = format!("{}{}{} {}", text("file"), number("line"), number("column"), text("path"));
            assert!(line.starts_with(&format!("{}: ", place.trim_end())), "{}: {place:?} in {line:?}", bad.what);
            assert!(line.ends_with(&format!("{}; {}", text("problem"), text("help"))), "{}: {line:?}", bad.what);
            assert!(line.contains(&text("value")), "{}: {line:?}", bad.what);
        }
        assert!(folder.semel(&["run", "job.yaml", "--echo", "--output", "json"]).exits(2).stdout.is_empty());
    }
}

#[test]
fn a_store_that_is_there_is_left_as_it_is() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    let (jobs, rows) = (folder.json(&["list"]), folder.semel(&["export", "small"]).stdout);
    for bad in table().iter().filter(|bad| bad.beside.is_none()).step_by(7) {
        folder.write("job.yaml", &bad.file);
        for road in ROADS {
            folder.semel(road).exits(2);
        }
    }
    assert_eq!((folder.json(&["list"]), folder.semel(&["export", "small"]).stdout), (jobs, rows));
}

#[test]
fn what_every_case_begins_with_is_accepted() {
    let folder = Folder::new();
    folder.write("job.yaml", FILE);
    folder.semel(&["check", "job.yaml"]).exits(0).says("j: 6 cells");
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0).says("6 of 6 recorded");
}

#[test]
fn ids_of_255_bytes_are_accepted_and_come_back() {
    let folder = Folder::new();
    let id = |letter: char| format!("é{}", letter.to_string().repeat(253));
    let (job, question, model, region) = (id('j'), id('q'), id('m'), id('r'));
    folder.write(
        "job.yaml",
        &format!("job: {job}\nquestions: [{{ id: {question}, prompt: p }}]\nmodels: [{{ id: {model}, regions: [{region}] }}]\n"),
    );
    folder.semel(&["check", "job.yaml"]).exits(0).says(": 1 cell\n");
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0).says("1 of 1 recorded");
    let cell = folder.json(&["show", &job, "--region", &region, "--model", &model, "--question", &question]);
    assert_eq!(cell["execution"]["output"], "p");
    folder.semel(&["audit", &job]).exits(0).says("1 expected, 1 recorded, 0 missing, 0 extra");
}

/// A job whose one question makes its file have this many bytes.
fn of_bytes(bytes: usize) -> String {
    let (head, tail) = (
        "{\"job\":\"big\",\"models\":[{\"id\":\"m\",\"regions\":[\"r\"]}],\"questions\":[{\"id\":\"q\",\"prompt\":\"",
        "\"}]}",
    );
    format!("{head}{}{tail}", "x".repeat(bytes - head.len() - tail.len()))
}

#[test]
fn a_file_of_64_mib_is_accepted_and_one_byte_more_is_refused() {
    let folder = Folder::new();
    let most = semel_spec::MAX_SPEC_BYTES;
    folder.write("job.json", &of_bytes(most));
    folder.semel(&["check", "job.json"]).exits(0).says("big: 1 cell\n");
    // It runs too. Echo answers with the question, which is over the limit of an output.
    folder.semel(&["run", "job.json", "--echo", "--store", "big.db"]).exits(3).says("1 of 1 recorded, 1 failed");
    folder.write("job.json", &of_bytes(most + 1));
    let before = listing(&folder);
    for road in [&["check", "job.json"][..], &["run", "job.json", "--echo"]] {
        let done = folder.semel(road).exits(2);
        assert_eq!(done.stderr, "job.json: the file has 67108865 bytes, and 67108864 is the most; split the job\n");
        assert_eq!(listing(&folder), before);
    }
}

#[test]
fn a_specification_that_a_question_file_makes_too_large_is_refused_past_the_limit_alone() {
    let folder = Folder::new();
    folder.write("job.yaml", "job: big\nquestions: { file: q.csv }\nmodels: [{ id: m, regions: [r] }]\n");
    let around = r#"{"models":[{"id":"m","regions":["r"]}],"questions":[{"id":"q","prompt":""}]}"#.len();
    let room = semel_spec::MAX_SPEC_BYTES - around;
    let write = |bytes| folder.write("q.csv", &format!("id,prompt\nq,{}\n", "x".repeat(bytes)));
    write(room);
    folder.semel(&["check", "job.yaml"]).exits(0);
    write(room + 1);
    let before = listing(&folder);
    for road in ROADS {
        let done = folder.semel(road).exits(2);
        assert!(done.stderr.contains("has 67108865 bytes, and 67108864 is the most; split the job"), "{}", road[0]);
        assert_eq!(listing(&folder), before);
    }
}

#[test]
fn a_job_id_that_is_used_with_another_specification_is_refused_with_the_difference() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    folder.semel(&["check", "job.yaml"]).exits(0).says("small: 8 cells");
    let rows = folder.semel(&["export", "small"]).stdout;
    folder.write("job.yaml", &format!("{}repeat: 2\n", JOB.replace("prompt: two", "prompt: three")));
    for road in ROADS {
        folder
            .semel(road)
            .exits(2)
            .complains(
                "job \"small\" was accepted before with another specification; choose another id, or send the same",
            )
            .complains("questions.q2.prompt: was \"two\", is now \"three\"")
            .complains("repeat: was absent, is now 2");
    }
    let answer = folder.json(&["check", "job.yaml"]);
    assert_eq!((&answer["faults"][0]["path"], &answer["faults"][0]["value"]), (&"job".into(), &"\"small\"".into()));
    assert_eq!(answer["differences"][0], "questions.q2.prompt: was \"two\", is now \"three\"");
    assert_eq!(folder.semel(&["export", "small"]).stdout, rows);
    folder.semel(&["audit", "small"]).exits(0).says("8 expected, 8 recorded, 0 missing, 0 extra");
}
