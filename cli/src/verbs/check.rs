//! `semel check`: what a job file asks for, without running it.

use std::{io::Write, path::PathBuf};

use clap::Args;
use semel_proto::v1 as pb;
use semel_spec::{JobFile, Resolved};
use serde_json::json;

use crate::{
    arguments::{OutputArgs, Place},
    exit::{Exit, Refused},
    json,
    road::{Target, ask, failure},
    table::indented,
    terminal::{Out, shown, shown_lines},
    words,
};

/// Cells whose input is shown.
const FIRST_CELLS: usize = 3;
/// Ids of an axis that are shown.
const MAX_IDS: usize = 12;
/// Bytes of an input that are shown.
const MAX_INPUT_BYTES: usize = 2_000;

/// Check a job file and say what it asks for; run and store nothing
///
/// Every fault is listed at once, each with its place in the file; the exit code is 2 then. Where there is a store (or
/// --coordinator), a job id that it has with another specification is a fault too, with the difference. With --output json: { job,
/// spec_digest, expected, questions, models: [{ id, model, regions }], repeat, cells: [{ region, model, question, repeat, input }] }
/// with the first cells, and where the job has faults { faults: [{ file, line, column, path, value, problem, help }] }, with
/// differences: [text] where its id is used.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  semel check examples/first.yaml")]
pub struct Arguments {
    /// The job file: YAML, or JSON if its name ends in .json.
    job: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Checks it.
///
/// # Errors
/// The file is refused, or the answer can't be written.
pub async fn run(arguments: &Arguments, place: &Place) -> anyhow::Result<Exit> {
    let mut out = Out::new();
    let file = match semel_spec::read::job(&arguments.job) {
        Ok(file) => file,
        Err(faults) if arguments.output.is_json() => {
            out.json(&json!({ "faults": faults.iter().map(fault).collect::<Vec<_>>() }))?;
            return Ok(Exit::Refused);
        }
        Err(faults) => return Err(Refused(faults.to_string()).into()),
    };
    if let Err(error) = submittable(&file, &place.target()?).await {
        let Some(Refused(words)) = error.downcast_ref().filter(|_| arguments.output.is_json()) else {
            return Err(error);
        };
        let (problem, help) = ("was accepted before with another specification", "choose another id, or keep the job");
        let fault = semel_spec::Fault::of_field("job", Some(&file.job), problem, help);
        // After the line that says it: one for each part.
        let differences: Vec<&str> = words.lines().skip(1).map(str::trim_start).collect();
        out.json(&json!({ "faults": [self::fault(&fault)], "differences": differences }))?;
        return Ok(Exit::Refused);
    }
    if arguments.output.is_json() {
        out.json(&as_json(&file))?;
    } else {
        out.line(as_text(&file))?;
        out.flush()?;
    }
    Ok(Exit::Complete)
}

/// Asks the coordinator of a store, if there is one, whether it would accept the job.
///
/// # Errors
/// The job's id is used with another specification, or the coordinator can't be asked.
async fn submittable(file: &JobFile, target: &Target) -> anyhow::Result<()> {
    if matches!(target, Target::Store(store) if !store.exists()) {
        return Ok(());
    }
    let request = pb::CheckJobRequest {
        job_id: file.job.clone(),
        spec: Some(semel_spec::wire::to_wire(&file.checked.spec)),
        ..Default::default()
    };
    ask(target, async |mut jobs| jobs.check_job(request).await.map(drop).map_err(failure)).await
}

fn fault(fault: &semel_spec::Fault) -> serde_json::Value {
    json!({
        "file": fault.file,
        "line": fault.line,
        "column": fault.column,
        "path": fault.path,
        "value": fault.value,
        "problem": fault.problem,
        "help": fault.help,
    })
}

/// A cell's key without its job, and what it runs.
struct Cell<'f> {
    region: &'f str,
    model: &'f str,
    question: &'f str,
    repeat: u32,
    input: Vec<u8>,
}

/// The first cells in the order of the matrix.
fn first_cells(spec: &Resolved) -> impl Iterator<Item = Cell<'_>> {
    let lanes =
        spec.models.iter().enumerate().flat_map(|(at, model)| model.regions.iter().map(move |r| (at, model, r)));
    let cells = lanes.flat_map(move |(at, model, region)| {
        spec.questions.iter().enumerate().flat_map(move |(number, question)| {
            (0..spec.repeat).map(move |repeat| Cell {
                region,
                model: &model.id,
                question: &question.id,
                repeat,
                // A checked job has an input for each of its cells.
                input: spec.input(at, region, number).unwrap_or_default(),
            })
        })
    });
    cells.take(FIRST_CELLS)
}

fn as_json(file: &JobFile) -> serde_json::Value {
    let spec = &file.checked.resolved;
    let model =
        |model: &semel_spec::ResolvedModel| json!({ "id": model.id, "model": model.model, "regions": model.regions });
    let cell = |cell: Cell<'_>| {
        json!({
            "region": cell.region, "model": cell.model, "question": cell.question, "repeat": cell.repeat,
            "input": json::input(&cell.input),
        })
    };
    json!({
        "job": file.job,
        "spec_digest": words::hex(&file.checked.digest),
        "expected": file.checked.cells,
        "questions": spec.questions.iter().map(|question| &question.id).collect::<Vec<_>>(),
        "models": spec.models.iter().map(model).collect::<Vec<_>>(),
        "repeat": spec.repeat,
        "cells": first_cells(spec).map(cell).collect::<Vec<_>>(),
    })
}

fn as_text(file: &JobFile) -> String {
    let spec = &file.checked.resolved;
    let pairs: usize = spec.models.iter().map(|model| model.regions.len()).sum();
    let mut lines = vec![
        format!("{}: {}", shown(&file.job), count(file.checked.cells as usize, "cell", "cells")),
        format!(
            "  {} × {} × {}",
            count(spec.questions.len(), "question", "questions"),
            count(pairs, "pair of model and region", "pairs of model and region"),
            count(spec.repeat as usize, "sample", "samples"),
        ),
        format!("  questions  {}", ids(spec.questions.iter().map(|question| question.id.as_str()))),
    ];
    for (index, model) in spec.models.iter().take(MAX_IDS).enumerate() {
        let label = if index == 0 { "models" } else { "" };
        let asked =
            if model.model == model.id { String::new() } else { format!(" (asked as {})", shown(&model.model)) };
        lines.push(format!(
            "  {label:<9}  {}{asked} in {}",
            shown(&model.id),
            ids(model.regions.iter().map(String::as_str))
        ));
    }
    if spec.models.len() > MAX_IDS {
        lines.push(format!("             and {} more", spec.models.len() - MAX_IDS));
    }
    lines.push(format!("  digest     {}", words::hex(&file.checked.digest)));
    lines.push("the first cells:".to_owned());
    for cell in first_cells(spec) {
        let Cell { region, model, question, repeat, input } = cell;
        lines.push(format!("  {} · {} · {} · {repeat}", shown(region), shown(model), shown(question)));
        lines.push(indented(&shown_input(&input), 4));
    }
    lines.join("\n")
}

fn shown_input(input: &[u8]) -> String {
    match input.get(..MAX_INPUT_BYTES) {
        Some(head) => format!("{}… ({} bytes)", shown_lines(head), input.len()),
        None => shown_lines(input),
    }
}

fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn ids<'i>(ids: impl ExactSizeIterator<Item = &'i str>) -> String {
    let more = ids.len().saturating_sub(MAX_IDS);
    let mut listed: Vec<String> = ids.take(MAX_IDS).map(shown).collect();
    if more > 0 {
        listed.push(format!("and {more} more"));
    }
    listed.join(", ")
}
