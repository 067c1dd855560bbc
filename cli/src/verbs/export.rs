//! `semel export`: a job's records as rows that stand alone.

mod rows;

use std::{
    fs::{File, Permissions},
    io::{BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use semel_proto::v1 as pb;

use self::rows::{Rows, With};
use crate::{
    attendance::Attendance,
    exit::Exit,
    road::{Jobs, Road, Target, failure, walk},
    terminal::{Out, complain},
    unknown::choice_failure,
    verbs::{get_job, retry::CellArgs},
};

/// Bytes that are gathered before a file is written to.
const BUFFER_BYTES: usize = 256 << 10;

/// Write a job's records, one row a cell, in the order of its matrix
///
/// Rows stand alone. Their keys, in JSONL and CSV alike: namespace, job, region, model, question, repeat, status (succeeded,
/// failed, missing), output, output_base64, finish_reason, prompt_tokens, completion_tokens, served_region,
/// served_region_basis, served_model, request_id, endpoint, executor, waited_ms, ran_ms, first_byte_ms, attempt, agent,
/// fencing_token (a string), input_digest, output_digest, recorded_at (RFC 3339), failure_reason, failure_stage,
/// failure_code, failure_retryable, failure_message, failure_message_base64, missing_reason, question_metadata; with
/// --with-input also input, with --with-response also response and response_base64. An output that is UTF-8 stands in output,
/// any other in output_base64; the other of the two is null, in CSV empty. CSV is RFC 4180 and holds values as they are,
/// those too that a spreadsheet would take for a formula (= + - @ and a few more in front): --spreadsheet-safe puts a ' before
/// each of them, for people who open the file there; what reads it back must not use it. Where stdout is a terminal, what it could act on is
/// written out as escapes.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  semel export first --format csv -o first.csv\n  semel export first --missing | jq -r 'select(.status == \"missing\") | .question'"
)]
pub struct Arguments {
    /// The job's id.
    job: String,
    /// How rows are written.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// One row more for each cell that has no record, with the reason; without it stderr says if there are any.
    #[arg(long)]
    missing: bool,
    /// With the frozen input of each cell.
    #[arg(long)]
    with_input: bool,
    /// With the provider's body as received, where it was kept.
    #[arg(long)]
    with_response: bool,
    /// In CSV: a ' before each value that a spreadsheet would take for a formula, so no longer byte for byte.
    #[arg(long)]
    spreadsheet_safe: bool,
    #[command(flatten)]
    cells: CellArgs,
    /// Write here, whole or not at all, in place of stdout.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    file: Option<PathBuf>,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Jsonl,
    /// RFC 4180, with a line of headers.
    Csv,
}

/// Exports.
///
/// # Errors
/// There is no such job, it can't be read, or the rows can't be written.
pub async fn run(arguments: Arguments, target: &Target) -> anyhow::Result<Exit> {
    let request = pb::ExportJobRequest {
        job_id: arguments.job.clone(),
        filter: Some(arguments.cells.clone().into()),
        missing: arguments.missing,
        with_response: arguments.with_response,
        with_input: arguments.with_input,
        ..Default::default()
    };
    let job = walk(target, async |road: &Road| {
        let (jobs, there) = (road.jobs(), road.attendance().await);
        match arguments.file.as_deref().filter(|file| *file != Path::new("-")) {
            Some(file) => to_file(jobs, request, &arguments, there, file).await?,
            None => {
                let out = Out::new();
                let is_shown = out.is_terminal();
                write(jobs, request, rows(&arguments, out, is_shown, there)).await.map(drop)?;
            }
        }
        get_job(&mut road.jobs(), &arguments.job).await
    })
    .await?;
    let counts = job.counts.unwrap_or_default();
    if !arguments.missing && counts.recorded < counts.expected {
        let pb::Counts { recorded, expected, .. } = counts;
        complain(&format!("{recorded} of {expected} recorded; --missing adds a row for each of the rest"));
    }
    Ok(Exit::Complete)
}

fn rows<W: Write>(arguments: &Arguments, out: W, is_shown: bool, there: Attendance) -> Rows<W> {
    let with = With { input: arguments.with_input, response: arguments.with_response };
    Rows::new(arguments.format, with, arguments.spreadsheet_safe, is_shown, there, out)
}

/// Writes beside the file first and puts it in its place when it is whole and synced. What is there already and is no
/// file (a pipe, a device) is written into and not replaced.
async fn to_file(
    jobs: Jobs,
    request: pb::ExportJobRequest,
    arguments: &Arguments,
    there: Attendance,
    file: &Path,
) -> anyhow::Result<()> {
    let naming = || format!("writing {}", file.display());
    if file.metadata().is_ok_and(|there| !there.is_file()) {
        let out = File::options().write(true).open(file).with_context(naming)?;
        let out = BufWriter::with_capacity(BUFFER_BYTES, out);
        return write(jobs, request, rows(arguments, out, false, there)).await.map(drop).with_context(naming);
    }
    // Of a link the file behind it is replaced, not the link.
    let target = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The file's own mode is what the umask leaves, as of any file that a person writes.
    let scratch = tempfile::Builder::new()
        .prefix(".semel-export-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .with_context(naming)?;
    let rows = rows(arguments, BufWriter::with_capacity(BUFFER_BYTES, scratch), false, there);
    let written = write(jobs, request, rows).await?;
    let scratch = written.into_inner().map_err(|error| error.into_error()).with_context(naming)?;
    scratch.as_file().sync_all().with_context(naming)?;
    scratch.persist(&target).map_err(|error| error.error).with_context(naming)?;
    Ok(())
}

async fn write<W: Write>(mut jobs: Jobs, request: pb::ExportJobRequest, mut rows: Rows<W>) -> anyhow::Result<W> {
    let (job, chosen) = (request.job_id.clone(), request.filter.clone().unwrap_or_default());
    let mut stream = match jobs.export_job(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Err(choice_failure(&mut jobs, &job, &chosen, status).await),
    };
    while let Some(row) = stream.message().await.map_err(failure)? {
        rows.write(&row)?;
    }
    rows.finish()
}
