//! The records of a job, its history, its audit and its export.

mod cells;
mod export;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use semel_core::{
    event::{Answer, Event, Query, Wait},
    id::{Cell, CellKey, JobId, ModelId, QuestionId, RegionId},
    matrix::Matrix,
};
use semel_files::nearest;
use semel_proto::v1 as pb;
use semel_spec::{Fault, Object};
use sha2::{Digest as _, Sha256};
use tonic::Status;

use self::export::Export;
use super::{
    convert::{self, Check, Listing},
    errors,
    jobs::{named_job, pull::Pull},
};
use crate::{
    audit::{AuditCounts, AuditError, AuditReport},
    shell::Shell,
    specs::JobInput,
    store::{Execution, Filter, MAX_PAGE_BYTES, MAX_PAGE_ROWS},
};

/// How often a cell is read that is recorded and moved away again between two reads.
const READS: usize = 3;

/// The specification of a job that a request names, unless its id was found wrong.
///
/// # Errors
/// INVALID_ARGUMENT if the id is no id; NOT_FOUND if it is nobody's.
pub(super) async fn spec_of(shell: &Shell, id: &JobId, check: Check) -> Result<(Check, Arc<JobInput>), Status> {
    if check.names("job_id") {
        return Err(check.finish().err().unwrap_or_else(|| errors::no_job(id)));
    }
    let spec = shell.spec(id).await?.ok_or_else(|| errors::no_job(id))?;
    Ok((check, spec))
}

/// The choice of cells of a request, the last of its fields to be checked.
///
/// # Errors
/// INVALID_ARGUMENT with every fault of the request.
pub(super) fn filter_of(mut check: Check, filter: Option<&pb::CellFilter>, spec: &JobInput) -> Result<Filter, Status> {
    let filter = check.filter(filter, spec);
    check.finish().map(|()| filter)
}

/// A page of records.
pub(super) async fn list(
    shell: &Shell,
    request: pb::ListExecutionsRequest,
) -> Result<pb::ListExecutionsResponse, Status> {
    convert::namespace(&request.namespace)?;
    let listing = Listing::new("ListExecutions", &request.job_id, request.filter.as_ref(), request.status);
    let mut check = Check::default();
    let id = check.job("job_id", &request.job_id);
    let status = check.status(request.status);
    let rows = check.page_size(request.page_size);
    let after = check.page_cell(&listing, &request.page_token);
    let (check, spec) = spec_of(shell, &id, check).await?;
    let filter = Filter { status, ..filter_of(check, request.filter.as_ref(), &spec)? };
    let page = shell.store().executions(&id, after, rows, &filter, request.with_response).await?;
    let (executions, cut) = fitting(page.into_iter().map(|record| convert::execution(&id, record)));
    let last = executions.last().and_then(|record| u32::try_from(record.cell).ok()).map(Cell);
    let next_page_token = match last {
        Some(last) if cut || !shell.store().executions(&id, Some(last), 1, &filter, false).await?.is_empty() => {
            listing.number_token(last.0.into())
        }
        _ => String::new(),
    };
    Ok(pb::ListExecutionsResponse { executions, next_page_token })
}

/// A page of the history.
pub(super) async fn attempts(
    shell: &Shell,
    request: pb::ListAttemptsRequest,
) -> Result<pb::ListAttemptsResponse, Status> {
    convert::namespace(&request.namespace)?;
    let listing = Listing::new("ListAttempts", &request.job_id, request.filter.as_ref(), 0);
    let mut check = Check::default();
    let id = check.job("job_id", &request.job_id);
    let rows = check.page_size(request.page_size);
    let after = check.page_number(&listing, &request.page_token);
    let (check, spec) = spec_of(shell, &id, check).await?;
    let filter = filter_of(check, request.filter.as_ref(), &spec)?;
    let page = shell.store().attempts(&id, after, rows, &filter).await?;
    let (attempts, cut) = fitting(page.iter().map(convert::attempt));
    let last = attempts.len().checked_sub(1).and_then(|last| page.get(last)).map(|entry| entry.number);
    let next_page_token = match last {
        Some(last) if cut || !shell.store().attempts(&id, Some(last), 1, &filter).await?.is_empty() => {
            listing.number_token(last)
        }
        _ => String::new(),
    };
    Ok(pb::ListAttemptsResponse { attempts, next_page_token })
}

/// The rows that make a page, as they are sent: at least one, and more only while all have at most
/// [`MAX_PAGE_BYTES`]. The store ends a page after the row that reaches the bound; sent so, a small
/// row before one of 3.9 MiB would be beyond what a client takes by default. Whether rows were left.
fn fitting<M: Message>(mut rows: impl Iterator<Item = M>) -> (Vec<M>, bool) {
    let mut page = Vec::new();
    let mut bytes = 0;
    for row in &mut rows {
        bytes += row.encoded_len();
        if bytes > MAX_PAGE_BYTES && !page.is_empty() {
            return (page, true);
        }
        page.push(row);
    }
    (page, false)
}

/// One cell whole.
pub(super) async fn get(shell: &Shell, request: pb::GetExecutionRequest) -> Result<pb::GetExecutionResponse, Status> {
    let key = request
        .key
        .ok_or_else(|| errors::invalid_field(Fault::of_field("key", None, "is missing", "name the cell")))?;
    convert::namespace(&key.namespace)?;
    let mut check = Check::default();
    let id = check.job("key.job_id", &key.job_id);
    for (field, value) in [("key.region", &key.region), ("key.model", &key.model), ("key.question", &key.question)] {
        check.id(field, value);
    }
    check.finish()?;
    let spec = shell.spec(&id).await?.ok_or_else(|| errors::no_job(&id))?;
    let key = CellKey {
        region: RegionId::new(key.region),
        model: ModelId::new(key.model),
        question: QuestionId::new(key.question),
        repeat: key.repeat,
    };
    let cell = spec.matrix.cell(&key).ok_or_else(|| errors::no_cell(&id, &unknown(&spec.matrix, &key)))?;
    let input = spec.input(cell).ok_or_else(|| errors::internal("INPUT", format!("cell {} has no input", cell.0)))?;
    let found = find(shell, &id, cell).await?;
    let filter = Filter {
        regions: vec![key.region],
        models: vec![key.model],
        questions: vec![key.question],
        repeats: vec![key.repeat],
        status: None,
    };
    let history = shell.store().attempts(&id, None, MAX_PAGE_ROWS, &filter).await?;
    let (attempts, _) = fitting(history.iter().map(convert::attempt));
    let (execution, wait) = match found {
        Ok(record) => (Some(convert::execution(&id, *record)), None),
        Err(wait) => (None, Some(wait)),
    };
    Ok(pb::GetExecutionResponse {
        input_digest: Bytes::copy_from_slice(&Sha256::digest(&input)),
        input,
        execution,
        wait_reason: convert::number(wait.as_ref().map(|wait| wait.reason)),
        wait_detail: wait.map(|wait| wait.detail).unwrap_or_default(),
        attempts,
    })
}

/// A cell's record, or why it has none.
async fn find(shell: &Shell, id: &JobId, cell: Cell) -> Result<Result<Box<Execution>, Wait>, Status> {
    for _ in 0..READS {
        if let Some(record) = shell.store().execution(id, cell).await? {
            return Ok(Ok(record.into()));
        }
        match shell.call(|call| Event::Query(call, Query::Cell(id.clone(), cell))).await? {
            Answer::Cell(Some(wait)) => return Ok(Err(wait)),
            // Recorded since it was read.
            Answer::Cell(None) => {}
            Answer::NoSuchJob => return Err(errors::no_job(id)),
            other => return Err(errors::unexpected(&other)),
        }
    }
    Err(errors::unavailable(format!("cell {} of job {:?} is being retried again and again", cell.0, id.as_str())))
}

/// Which part of a key the job doesn't have.
fn unknown(matrix: &Matrix, key: &CellKey) -> String {
    let (model_id, region, question) = (key.model.as_str(), key.region.as_str(), key.question.as_str());
    let Some(model) = matrix.models().iter().find(|model| model.id == key.model) else {
        let near = did_you_mean(model_id, matrix.models().iter().map(|model| model.id.as_str()));
        return format!("it has no model {model_id:?}{near}");
    };
    if !model.regions.contains(&key.region) {
        let near = did_you_mean(region, model.regions.iter().map(RegionId::as_str));
        return format!("its model {model_id:?} is not asked in region {region:?}{near}");
    }
    if !matrix.questions().contains(&key.question) {
        let near = did_you_mean(question, matrix.questions().iter().map(QuestionId::as_str));
        return format!("it has no question {question:?}{near}");
    }
    format!("its samples go from 0 to {}", matrix.repeat() - 1)
}

fn did_you_mean<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    nearest(name, known).map_or_else(String::new, |near| format!("; did you mean {near:?}?"))
}

/// A recount, from the tables alone.
pub(super) async fn audit(shell: &Shell, request: pb::AuditJobRequest) -> Result<pb::AuditJobResponse, Status> {
    let id = named_job(&request.namespace, &request.job_id)?;
    let report = shell.store().audit(&id).await.map_err(|error| match error {
        AuditError::Read(error) => error.into(),
        AuditError::Open(error) => errors::unavailable(error.to_string()),
    })?;
    let AuditReport { total, by_axis, exact, violations, .. } = report.ok_or_else(|| errors::no_job(&id))?;
    let axis = |axis: crate::audit::AuditAxis| pb::AuditAxis {
        model: axis.model,
        region: axis.region,
        counts: Some(audit_counts(&axis.counts)),
    };
    Ok(pb::AuditJobResponse {
        total: Some(audit_counts(&total)),
        by_axis: by_axis.into_iter().map(axis).collect(),
        exact,
        violations,
    })
}

fn audit_counts(counts: &AuditCounts) -> pb::AuditCounts {
    pb::AuditCounts {
        expected: counts.expected,
        recorded: counts.recorded,
        missing: counts.missing,
        extra: counts.extra,
        duplicate: counts.duplicate,
        failed: counts.failed,
    }
}

/// A whole job.
pub(super) async fn export(
    shell: &Shell,
    request: pb::ExportJobRequest,
) -> Result<Pull<pb::ExportJobResponse>, Status> {
    convert::namespace(&request.namespace)?;
    let mut check = Check::default();
    let job = check.job("job_id", &request.job_id);
    let (check, spec) = spec_of(shell, &job, check).await?;
    let filter = filter_of(check, request.filter.as_ref(), &spec)?;
    let export = Export {
        shell: shell.clone(),
        job,
        spec,
        filter,
        missing: request.missing,
        with_response: request.with_response,
        with_input: request.with_input,
    };
    Ok(export.rows())
}

/// The text of a JSON object. serde can refuse only keys that aren't text, and these are.
fn json_text(object: &Object) -> String {
    serde_json::to_string(object).unwrap_or_default()
}
