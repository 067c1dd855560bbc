//! Question files: CSV, or JSONL of question objects. Each question keeps its line.

use semel_files::{json, tree::Place};

use crate::{
    Question,
    document::{self, QUESTION_KEYS, QuestionFile, utf8},
    fault::{Collector, Spot, quote},
    node::Source,
    path::Path,
    spec::Object,
    walk::Walk,
};

/// What is wrong with a file as a whole, and what to do.
type WholeFile = (String, String);

/// The names that ids and prompts go by in a question file.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) id: String,
    pub(crate) prompt: String,
}

impl Default for Names {
    fn default() -> Names {
        Names::of(None, None)
    }
}

impl Names {
    pub(crate) fn of(id: Option<String>, prompt: Option<String>) -> Names {
        Names { id: id.unwrap_or_else(|| "id".to_owned()), prompt: prompt.unwrap_or_else(|| "prompt".to_owned()) }
    }

    /// The keys of a question object under these names.
    pub(crate) fn keys(&self) -> [&str; 4] {
        QUESTION_KEYS.map(|key| match key {
            "id" => self.id.as_str(),
            "prompt" => self.prompt.as_str(),
            other => other,
        })
    }
}

/// On which line of its file each question begins.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    file: Option<String>,
    lines: Vec<u32>,
}

impl Lines {
    pub(crate) fn spot(&self, question: usize) -> Spot {
        Spot { file: self.file.clone(), line: self.lines.get(question).copied(), column: None }
    }
}

/// Reads a question file. Faults of its lines go to the collector; the error is a fault of the
/// file as a whole.
pub(crate) fn read(
    file: &QuestionFile,
    names: &Names,
    path: &Path<'_>,
    faults: &mut Collector<'_>,
) -> Result<(Vec<Question>, Lines), WholeFile> {
    if names.id == names.prompt {
        let problem = format!("has its ids and prompts both in {}", quote(&names.id));
        return Err((problem, "name two columns".to_owned()));
    }
    let extension = file.name.rsplit('.').next().unwrap_or_default();
    let source = Source { name: Some(file.name.clone()), lines_before: 0 };
    let text = utf8(&file.bytes, &source).map_err(|faults| {
        let line = faults.iter().find_map(|fault| fault.line).unwrap_or(1);
        let problem = format!("has a broken line {line}, which is no UTF-8 text");
        (problem, "save the file as UTF-8".to_owned())
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match extension.to_ascii_lowercase().as_str() {
        "csv" => Csv { source, names, path, faults }.read(text),
        "jsonl" | "ndjson" => Ok(jsonl(text, source, names, path, faults)),
        _ => Err(("is of no known kind".to_owned(), "name a .csv or a .jsonl file".to_owned())),
    }
}

/// A line of JSON for each question; empty lines are passed over.
fn jsonl(
    text: &str,
    mut source: Source,
    names: &Names,
    path: &Path<'_>,
    faults: &mut Collector<'_>,
) -> (Vec<Question>, Lines) {
    let mut questions = Vec::new();
    let mut lines = Vec::new();
    for (before, line) in (0..u32::MAX).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        source.lines_before = before;
        let path = path.index(questions.len());
        let question = match json::read(line) {
            Ok(node) => {
                let mut walk = Walk { source: &source, faults: &mut *faults };
                document::question(&mut walk, &node, &path, names)
            }
            Err(broken) => {
                let what = (broken.problem.as_str(), broken.help.as_str());
                faults.unread(&path, source.spot(broken.place), None, what);
                Question::default()
            }
        };
        questions.push(question);
        lines.push(before + 1);
    }
    let file = source.name;
    (questions, Lines { file, lines })
}

/// A CSV file with a header: a column of ids, one of prompts, and any others, which become the
/// questions' metadata.
struct Csv<'q, 'c> {
    source: Source,
    names: &'q Names,
    path: &'q Path<'q>,
    faults: &'q mut Collector<'c>,
}

impl Csv<'_, '_> {
    fn read(mut self, text: &str) -> Result<(Vec<Question>, Lines), WholeFile> {
        // A quote that is never closed swallows the rest of the file without an error. So a last
        // record is added: if it isn't found as it was written, it was swallowed too.
        let columns = headers(text)?;
        let (id, prompt) = self.columns(&columns)?;
        let guard = vec!["end"; columns.len()].join(",");
        let guarded = format!("{text}\n{guard}");
        let mut reader = csv::ReaderBuilder::new().from_reader(guarded.as_bytes());
        let mut questions = Vec::new();
        let mut lines = Vec::new();
        let mut last = 0;
        let mut closed = false;
        let mut records = reader.records().peekable();
        while let Some(record) = records.next() {
            let place = record_place(&record);
            last = place.line;
            if records.peek().is_none() {
                closed = matches!(&record, Ok(record) if record.iter().all(|cell| cell == "end"));
                break;
            }
            let path = self.path.index(questions.len());
            let question = match record {
                Ok(record) => question(&record, &columns, id, prompt),
                Err(error) => {
                    let (problem, help) = said(&error);
                    let what = (problem.as_str(), help);
                    self.faults.unread(&path, self.source.spot(place), None, what);
                    Question::default()
                }
            };
            questions.push(question);
            lines.push(place.line);
        }
        if !closed {
            let what = ("opens a quote that is never closed", "close it, or double the quotes inside it");
            let place = Place { line: last, column: 1 };
            let path = self.path.index(questions.len());
            self.faults.unread(&path, self.source.spot(place), None, what);
        }
        let file = self.source.name.take();
        Ok((questions, Lines { file, lines }))
    }

    /// The positions of the ids and the prompts.
    fn columns(&self, columns: &[String]) -> Result<(usize, usize), WholeFile> {
        for (index, column) in columns.iter().enumerate() {
            if columns.iter().take(index).any(|earlier| earlier == column) {
                let problem = format!("has two columns {}", quote(column));
                return Err((problem, "give each column its own name".to_owned()));
            }
        }
        let position = |name: &str| {
            let found = columns.iter().position(|column| column == name);
            found.ok_or_else(|| {
                let known: Vec<_> = columns.iter().map(|column| quote(column)).collect();
                let problem = format!("has no column {}", quote(name));
                let help = format!(
                    "its columns are {}: name the ones of the ids and prompts with id: and prompt:",
                    known.join(", ")
                );
                (problem, help)
            })
        };
        Ok((position(&self.names.id)?, position(&self.names.prompt)?))
    }
}

fn headers(text: &str) -> Result<Vec<String>, WholeFile> {
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    match reader.headers() {
        Ok(headers) => Ok(headers.iter().map(str::to_owned).collect()),
        Err(error) => Err((format!("has a broken header: {error}"), "put it right".to_owned())),
    }
}

fn question(record: &csv::StringRecord, columns: &[String], id: usize, prompt: usize) -> Question {
    let cell = |index: usize| record.get(index).unwrap_or_default().to_owned();
    let mut metadata = Object::new();
    for (index, (column, value)) in columns.iter().zip(record).enumerate() {
        if index != id && index != prompt && !value.is_empty() {
            metadata.insert(column.clone(), value.into());
        }
    }
    Question {
        id: cell(id),
        prompt: Some(cell(prompt)),
        messages: Vec::new(),
        metadata: (!metadata.is_empty()).then_some(metadata),
    }
}

fn record_place(record: &Result<csv::StringRecord, csv::Error>) -> Place {
    let position = match record {
        Ok(record) => record.position(),
        Err(error) => error.position(),
    };
    let line = position.map_or(1, csv::Position::line);
    Place { line: u32::try_from(line).unwrap_or(u32::MAX), column: 1 }
}

fn said(error: &csv::Error) -> (String, &'static str) {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => (
            format!("is a broken line: it has {len} cells where the header has {expected_len}"),
            "put cells that hold commas or line breaks in quotes",
        ),
        _ => (format!("is a broken line: {error}"), "put the line right"),
    }
}
