//! Exports: rows that stand alone, byte for byte, whole or not at all.

use std::{fs, io::Read, process::Stdio};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::support::{Folder, is_there};

/// NUL, no UTF-8, quotes, line ends.
const ODD: &[u8] = b"a\0b\xff\xfe\"',\r\n\x1b[0m";

#[test]
fn outputs_come_back_byte_for_byte_in_both_formats() {
    let folder = Folder::new();
    folder.shell_agents(r#"case "$SEMEL_QUESTION" in q1) ;; *) printf 'a\000b\377\376"'"'"',\r\n\033[0m';; esac"#);
    folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(0);
    let wanted = |question: &str| if question == "q1" { &b""[..] } else { ODD };

    let jsonl = folder.semel(&["export", "small", "--with-input"]).exits(0).stdout;
    assert_eq!(jsonl.lines().count(), 8);
    for line in jsonl.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let encoded = row["output_base64"].as_str().map(|text| BASE64_STANDARD.decode(text).expect("base64"));
        let output = encoded.unwrap_or_else(|| row["output"].as_str().expect("an output").as_bytes().to_vec());
        assert_eq!(output, wanted(row["question"].as_str().expect("a question")), "{row}");
        assert!(row["input"]["messages"].is_array() && row["fencing_token"].is_string(), "{row}");
    }

    folder.semel(&["export", "small", "--format", "csv", "-o", "out.csv"]).exits(0);
    let mut reader = csv::Reader::from_path(folder.path("out.csv")).expect("CSV");
    let headers = reader.headers().expect("headers").clone();
    let at = |name: &str| headers.iter().position(|header| header == name).expect(name);
    let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), 8);
    for row in rows {
        let encoded = BASE64_STANDARD.decode(&row[at("output_base64")]).expect("base64");
        let output = if encoded.is_empty() { row[at("output")].as_bytes().to_vec() } else { encoded };
        assert_eq!(output, wanted(&row[at("question")]));
        assert_eq!((&row[at("job")], &row[at("status")], &row[at("executor")]), ("small", "succeeded", "command"));
    }
}

#[test]
fn missing_cells_are_rows_when_they_are_asked_for() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    folder.semel(&["retry", "small", "--status", "succeeded", "--model", "b"]).exits(0);
    let some = folder.semel(&["export", "small"]).exits(0);
    assert_eq!(some.stdout.lines().count(), 4);
    assert_eq!(some.stderr, "4 of 8 recorded; --missing adds a row for each of the rest\n");
    let all = folder.semel(&["export", "small", "--missing"]).exits(0);
    assert_eq!(all.stderr, "");
    let all = all.stdout;
    let rows: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let missing: Vec<&Value> = rows.iter().filter(|row| row["status"] == "missing").collect();
    assert_eq!((rows.len(), missing.len()), (8, 4));
    assert!(missing.iter().all(|row| row["model"] == "b" && row["missing_reason"].is_string()), "{missing:?}");
    let of_one = folder.semel(&["export", "small", "--region", "us-east", "--question", "q1"]).exits(0);
    assert_eq!(of_one.stdout.lines().count(), 1);
}

#[test]
fn a_file_is_written_whole_or_not_at_all() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    folder.write("out.jsonl", "before");
    folder.semel(&["export", "nojob", "-o", "out.jsonl"]).exits(1);
    assert_eq!(fs::read_to_string(folder.path("out.jsonl")).expect("read"), "before");
    folder.semel(&["export", "small", "-o", "nowhere/out.jsonl"]).exits(1).complains("nowhere/out.jsonl");
    folder.semel(&["export", "small", "-o", "out.jsonl"]).exits(0);
    let stdout = folder.semel(&["export", "small"]).exits(0).stdout;
    assert_eq!(fs::read_to_string(folder.path("out.jsonl")).expect("read"), stdout);
    std::os::unix::fs::symlink("out.jsonl", folder.path("link.jsonl")).expect("linked");
    folder.semel(&["export", "small", "--region", "us-east", "-o", "link.jsonl"]).exits(0);
    assert_eq!(fs::read_to_string(folder.path("out.jsonl")).expect("read").lines().count(), 4, "behind the link");
    assert!(folder.path("link.jsonl").is_symlink());
    folder.semel(&["export", "small", "-o", "/dev/null"]).exits(0);
    assert!(!fs::metadata("/dev/null").expect("a device").is_file());
    let left: Vec<_> =
        fs::read_dir(folder.path("")).expect("listed").filter_map(Result::ok).map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".semel-export")), "{left:?}");
    assert!(is_there(&folder.path("out.jsonl")));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = Folder::new();
    // More than a pipe holds.
    folder.shell_agents("head -c 200000 /dev/zero | tr '\\0' x");
    folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(0);
    for format in ["jsonl", "csv"] {
        let mut command = folder.command(&["export", "small", "--format", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("semel starts");
        let mut stdout = child.stdout.take().expect("a pipe");
        stdout.read_exact(&mut [0; 16]).expect("the beginning");
        drop(stdout);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{format}");
    }
}

#[test]
fn completions_and_the_schema_are_printed() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        folder.semel(&["completions", shell]).exits(0).says("selftest");
    }
    let schema: Value = serde_json::from_str(&folder.semel(&["schema"]).exits(0).stdout).expect("JSON");
    assert_eq!(schema["title"], "Semel job");
}
