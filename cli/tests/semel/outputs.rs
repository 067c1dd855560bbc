//! Outputs: over the limit, and of any bytes, as `run`, `show` and `export` have them.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::support::Folder;

/// The most bytes of an output.
const LIMIT: usize = 32 << 20;

/// A program for one model in one region, at the limit (q1) and one byte past it (q2); it answers in JSON. All else is
/// small.
fn wide_agents(folder: &Folder) {
    let wide = format!(
        r#"case "$SEMEL_QUESTION" in q1) n={LIMIT};; *) n={};; esac
           printf '{{"output":"'; head -c $n /dev/zero | tr '\0' x; printf '"}}'"#,
        LIMIT + 1
    );
    let agents = serde_json::json!({
        "providers": {
            "wide": { "executor": "command", "program": ["sh", "-c", wide] },
            "small": { "executor": "command", "program": ["sh", "-c", "printf small"], "stdout": "raw" },
        },
        "agents": [
            { "region": "us-east", "models": { "a": "wide", "b": "small" } },
            { "region": "eu-west", "models": { "a": "small", "b": "small" } },
        ],
    });
    folder.write("agents.json", &agents.to_string());
}

fn cell(question: &str) -> [&str; 8] {
    ["show", "small", "--region", "us-east", "--model", "a", "--question", question]
}

#[test]
fn an_output_over_the_limit_fails_its_cell_at_once_and_harms_nothing_beside_it() {
    let folder = Folder::new();
    wide_agents(&folder);
    folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(3).says("8 of 8 recorded, 1 failed");
    folder.semel(&["audit", "small"]).exits(0).says("8 expected, 8 recorded, 0 missing, 0 extra, 1 failed");
    let words = format!("the output has {} bytes; the limit is {LIMIT} bytes", LIMIT + 1);
    folder.semel(&cell("q2")).exits(0).says(&words);
    let answer = folder.json(&cell("q2"));
    let record = &answer["execution"];
    assert_eq!((&record["status"], &record["attempt"]), (&"failed".into(), &1.into()), "no retry");
    assert_eq!(answer["attempts"], serde_json::json!([]), "no retry");
    let failure = &record["failure"];
    assert_eq!((&failure["reason"], &failure["retryable"]), (&"result_too_large".into(), &false.into()));
    assert_eq!(failure["message"], words);

    let rows = folder.semel(&["export", "small"]).exits(0).stdout;
    let mut sizes = Vec::new();
    for row in rows.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
        if row["status"] == "succeeded" {
            sizes.push(row["output"].as_str().expect("text").len());
        }
    }
    sizes.sort_unstable();
    assert_eq!(sizes, [5, 5, 5, 5, 5, 5, LIMIT], "at the limit, and all that ran beside");
}

/// What programs print, in the notation of printf, and what it is.
const BYTES: [(&str, &[u8]); 5] = [
    ("", b""),
    (r"\000", b"\0"),
    (r"a\000b\000", b"a\0b\0"),
    (r"\377\376\342\202", b"\xff\xfe\xe2\x82"),
    (r#"=1+1\n"q", c\r\n"#, b"=1+1\n\"q\", c\r\n"),
];

/// An output as JSON and CSV have it: as text, or in base64.
fn decoded(text: Option<&str>, encoded: Option<&str>) -> Vec<u8> {
    match encoded.filter(|encoded| !encoded.is_empty()) {
        Some(encoded) => BASE64_STANDARD.decode(encoded).expect("base64"),
        None => text.expect("an output").as_bytes().to_vec(),
    }
}

#[test]
fn outputs_of_any_bytes_come_back_by_show_and_by_both_exports() {
    let folder = Folder::new();
    let questions: String = (0..BYTES.len()).map(|n| format!("  - {{ id: q{n}, prompt: p }}\n")).collect();
    folder
        .write("job.yaml", &format!("job: small\nquestions:\n{questions}models: [{{ id: a }}]\nregions: [us-east]\n"));
    let arms: String =
        BYTES.iter().enumerate().map(|(n, (printed, _))| format!("q{n}) printf '{printed}';; ")).collect();
    folder.shell_agents(&format!("case \"$SEMEL_QUESTION\" in {arms} esac"));
    folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(0).says("5 of 5 recorded");

    let jsonl = folder.semel(&["export", "small"]).exits(0).stdout;
    let rows: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let csv = folder.semel(&["export", "small", "--format", "csv"]).exits(0).stdout;
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let headers = reader.headers().expect("headers").clone();
    let at = |name: &str| headers.iter().position(|header| header == name).expect(name);
    let records: Vec<csv::StringRecord> = reader.records().map(|record| record.expect("a record")).collect();
    assert_eq!((rows.len(), records.len()), (BYTES.len(), BYTES.len()));
    for (n, (printed, bytes)) in BYTES.iter().enumerate() {
        let shown = folder.json(&cell(&format!("q{n}")));
        for object in [&rows[n], &shown["execution"]] {
            assert_eq!(decoded(object["output"].as_str(), object["output_base64"].as_str()), *bytes, "{printed}");
        }
        let record = &records[n];
        assert_eq!(decoded(Some(&record[at("output")]), Some(&record[at("output_base64")])), *bytes, "{printed}");
    }
    // Only where it is asked for does a formula get a ' in front; else CSV too is byte for byte.
    let safe = folder.semel(&["export", "small", "--format", "csv", "--spreadsheet-safe"]).exits(0).stdout;
    let mut reader = csv::Reader::from_reader(safe.as_bytes());
    let last = reader.records().last().expect("records").expect("a record");
    assert_eq!(&last[at("output")], "'=1+1\n\"q\", c\r\n");
}

#[test]
fn another_reader_of_csv_reads_the_same() {
    let folder = Folder::new();
    folder.shell_agents(r#"printf '=1+1\n"q", c\r\n'"#);
    folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(0);
    folder.semel(&["export", "small", "--format", "csv", "-o", "out.csv"]).exits(0);
    let script = "import csv\n\
                  rows = list(csv.DictReader(open('out.csv', newline='', encoding='utf-8')))\n\
                  assert len(rows) == 8, rows\n\
                  assert all(row['output'] == '=1+1\\n\"q\", c\\r\\n' for row in rows), rows\n\
                  assert all(row['output_base64'] == '' and None not in row for row in rows), rows\n";
    let mut python = std::process::Command::new("python3");
    let done = python.args(["-c", script]).current_dir(folder.path("")).output().expect("python3 runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
