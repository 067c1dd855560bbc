//! Rows of an export, as JSONL or CSV.

use std::io::Write;

use semel_proto::v1 as pb;
use serde_json::{Map, Value};

use super::Format;
use crate::{
    attendance::Attendance,
    json,
    terminal::{shown, shown_json},
};

/// What a row has beside what it always has.
#[derive(Clone, Copy, Debug)]
pub struct With {
    /// The frozen input.
    pub input: bool,
    /// The provider's body.
    pub response: bool,
}

/// A writer of rows.
pub struct Rows<W: Write> {
    with: With,
    is_spreadsheet_safe: bool,
    is_shown: bool,
    there: Attendance,
    form: Form<W>,
}

enum Form<W: Write> {
    Jsonl(W),
    Csv { writer: Box<csv::Writer<W>>, has_headers: bool },
}

impl<W: Write> Rows<W> {
    /// Rows into `out`; `is_shown` where a terminal shows them. Who is `there` tells why cells are missing.
    pub fn new(
        format: Format,
        with: With,
        is_spreadsheet_safe: bool,
        is_shown: bool,
        there: Attendance,
        out: W,
    ) -> Self {
        let form = match format {
            Format::Jsonl => Form::Jsonl(out),
            Format::Csv => Form::Csv { writer: Box::new(csv::Writer::from_writer(out)), has_headers: false },
        };
        Self { with, is_spreadsheet_safe, is_shown, there, form }
    }

    /// Writes a row.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&mut self, row: &pb::ExportJobResponse) -> anyhow::Result<()> {
        let row = object(row, self.with, &self.there);
        self.headers()?;
        let (is_spreadsheet_safe, is_shown) = (self.is_spreadsheet_safe, self.is_shown);
        match &mut self.form {
            Form::Jsonl(out) => {
                let line = shown_json(&serde_json::to_string(&row)?);
                writeln!(out, "{line}")?;
            }
            Form::Csv { writer, .. } => {
                let field = |value: Value| {
                    let text = text(value);
                    let text = if is_spreadsheet_safe { without_formula(text) } else { text };
                    if is_shown { shown(&text) } else { text }
                };
                writer.write_record(row.into_iter().map(|(_, value)| field(value))).map_err(csv_failure)?;
            }
        }
        Ok(())
    }

    /// Writes what is left: a CSV without rows has its headers all the same.
    ///
    /// # Errors
    /// It can't be written.
    pub fn finish(mut self) -> anyhow::Result<W> {
        self.headers()?;
        let mut out = match self.form {
            Form::Jsonl(out) => out,
            Form::Csv { mut writer, .. } => {
                // Before `into_inner`, whose error no longer says that the reader has gone.
                writer.flush()?;
                writer.into_inner().map_err(|error| error.into_error())?
            }
        };
        out.flush()?;
        Ok(out)
    }

    fn headers(&mut self) -> anyhow::Result<()> {
        if let Form::Csv { writer, has_headers: has_headers @ false } = &mut self.form {
            let row = object(&pb::ExportJobResponse::default(), self.with, &self.there);
            writer.write_record(row.keys()).map_err(csv_failure)?;
            *has_headers = true;
        }
        Ok(())
    }
}

/// csv's own error hides what the output said, and with it a reader that has gone.
fn csv_failure(error: csv::Error) -> anyhow::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error.into(),
        other => anyhow::anyhow!("a row can't be written: {other:?}"),
    }
}

/// A row. Every row of one export has the same keys in the same order.
fn object(row: &pb::ExportJobResponse, with: With, there: &Attendance) -> Map<String, Value> {
    let none = pb::Execution::default();
    let execution = row.execution.as_ref().unwrap_or(&none);
    let mut object = json::execution(execution);
    object.shift_remove("failure");
    let missing = (execution.missing() != pb::WaitReason::Unspecified).then(|| there.reason(execution.missing()));
    if missing.is_some() {
        blank_record(&mut object);
    }
    failure(&mut object, execution.failure.as_ref());
    object.insert("missing_reason".to_owned(), missing.into());
    object.insert("question_metadata".to_owned(), json::input(row.question_metadata_json.as_bytes()));
    if with.input {
        object.insert("input".to_owned(), json::input(&row.input));
    }
    if with.response {
        json::bytes(&mut object, "response", &execution.response, !execution.response.is_empty());
    }
    object
}

/// A cell without a record has a key and nothing of a record, not zeros.
fn blank_record(object: &mut Map<String, Value>) {
    const KEY: [&str; 6] = ["namespace", "job", "region", "model", "question", "repeat"];
    for (key, value) in object.iter_mut().filter(|(key, _)| !KEY.contains(&key.as_str())) {
        *value = if key == "status" { "missing".into() } else { Value::Null };
    }
}

fn failure(object: &mut Map<String, Value>, failure: Option<&pb::Failure>) {
    let none = pb::Failure::default();
    let fields = json::failure(failure.unwrap_or(&none));
    for (key, value) in fields {
        object.insert(format!("failure_{key}"), if failure.is_some() { value } else { Value::Null });
    }
}

fn text(value: Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// Spreadsheets take a value that begins with one of these for a formula, and may run it.
fn without_formula(text: String) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']) {
        format!("'{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: With = With { input: true, response: true };

    fn row(output: &[u8]) -> pb::ExportJobResponse {
        pb::ExportJobResponse {
            execution: Some(pb::Execution {
                key: Some(pb::ExecutionKey {
                    namespace: "default".to_owned(),
                    job_id: "j".to_owned(),
                    region: "us-east".to_owned(),
                    model: "m".to_owned(),
                    question: "q, \"1\"".to_owned(),
                    repeat: 0,
                }),
                status: pb::ExecutionStatus::Succeeded.into(),
                output: output.to_vec().into(),
                fencing_token: "18446744073709551615".to_owned(),
                ..Default::default()
            }),
            input: "{\"messages\":[]}".into(),
            question_metadata_json: "{\"topic\":\"x\"}".to_owned(),
        }
    }

    fn failed() -> pb::ExportJobResponse {
        let mut row = row(b"");
        let execution = row.execution.as_mut().expect("a record");
        execution.status = pb::ExecutionStatus::Failed.into();
        execution.failure = Some(pb::Failure { message: "=boom".into(), ..Default::default() });
        row
    }

    fn missing() -> pb::ExportJobResponse {
        let mut row = row(b"");
        let execution = row.execution.as_mut().expect("a record");
        execution.status = 0;
        execution.missing = pb::WaitReason::Paused.into();
        row
    }

    fn written(format: Format, is_spreadsheet_safe: bool, is_shown: bool, list: &[pb::ExportJobResponse]) -> String {
        let mut rows = Rows::new(format, ALL, is_spreadsheet_safe, is_shown, Attendance::Nobody, Vec::new());
        list.iter().for_each(|row| rows.write(row).expect("written"));
        String::from_utf8(rows.finish().expect("finished")).expect("UTF-8")
    }

    #[test]
    fn every_row_has_the_same_keys_whatever_became_of_its_cell() {
        let keys = |row| object(&row, ALL, &Attendance::Nobody).keys().cloned().collect::<Vec<_>>();
        let first = keys(row(b"x"));
        for other in [row(b"\xff"), failed(), missing(), pb::ExportJobResponse::default()] {
            assert_eq!(keys(other), first);
        }
    }

    #[test]
    fn outputs_come_back_byte_for_byte_from_both_formats() {
        use base64::{Engine, prelude::BASE64_STANDARD};
        for output in [&b""[..], b"a\0b", b"\xff\xfe", "\u{1b}[2J\u{9b}\u{202e}\r\n\"".as_bytes(), b"a,b\n"] {
            let list = [row(output)];
            let jsonl = written(Format::Jsonl, false, false, &list);
            let value: Value = serde_json::from_str(&jsonl).expect("JSON");
            let text = value["output"].as_str().map(|text| text.as_bytes().to_vec());
            let bytes =
                text.unwrap_or_else(|| BASE64_STANDARD.decode(value["output_base64"].as_str().unwrap()).unwrap());
            assert_eq!(bytes, output);

            let csv = written(Format::Csv, false, false, &list);
            let mut reader = csv::Reader::from_reader(csv.as_bytes());
            let at =
                |name: &str, headers: &csv::StringRecord| headers.iter().position(|header| header == name).unwrap();
            let headers = reader.headers().unwrap().clone();
            let record = reader.records().next().unwrap().unwrap();
            let (text, encoded) = (&record[at("output", &headers)], &record[at("output_base64", &headers)]);
            let bytes =
                if encoded.is_empty() { text.as_bytes().to_vec() } else { BASE64_STANDARD.decode(encoded).unwrap() };
            assert_eq!(bytes, output);
            assert_eq!(&record[at("fencing_token", &headers)], "18446744073709551615");
            assert_eq!(&record[at("question", &headers)], "q, \"1\"");
        }
    }

    #[test]
    fn what_is_missing_says_so_and_has_no_zeros() {
        let value: Value = serde_json::from_str(&written(Format::Jsonl, false, false, &[missing()])).unwrap();
        assert_eq!(value["status"], "missing");
        assert_eq!(value["missing_reason"], "paused");
        assert_eq!(value["attempt"], Value::Null);
        assert_eq!(value["question"], "q, \"1\"");
    }

    #[test]
    fn a_spreadsheet_meets_no_formula_and_a_terminal_no_escape() {
        assert!(written(Format::Csv, true, false, &[failed()]).contains(",'=boom,"));
        let shown = written(Format::Csv, false, true, &[row("\u{1b}[2J\u{9b}".as_bytes())]);
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
    }

    #[test]
    fn an_export_without_rows_has_headers_in_csv_and_nothing_in_jsonl() {
        assert_eq!(written(Format::Jsonl, false, false, &[]), "");
        assert!(
            written(Format::Csv, false, false, &[])
                .starts_with("namespace,job,region,model,question,repeat,status,output,")
        );
    }
}
