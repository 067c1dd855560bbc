//! Wire ⇄ core. What comes in is checked here and nowhere deeper; what goes out can't fail.

mod check;
mod page;
mod report;
mod words;

use std::sync::Arc;

use bytes::Bytes;
use prost_types::Timestamp;
use semel_core::{
    batch::{Failure, MAX_KEPT_ANSWER, Outcome, ReportBody, Served, Success},
    event::{AgentView, Counts, JobView, LeaseView, PendingGroup, Receipt},
    id::{CellKey, Digest, JobId, LeaseToken, ModelId, ProviderId, RegionId, UnixMs},
    words::{
        AttemptKind, FailureReason, GoAwayReason, JobState, ReleaseReason, RevokeReason, Status as Ran, WaitReason,
    },
};
use semel_proto::v1 as pb;
use semel_spec::{Fault, check_id};
use tonic::Status;

use super::errors;
use crate::store::{Attempt, AuditEntry, DEFAULT_NAMESPACE, Execution};

pub use check::{Check, MAX_REASON_BYTES};
pub use page::{DEFAULT_PAGE_ROWS, Listing, MAX_PAGE_TOKEN_BYTES};
pub use report::{MAX_TEXT_BYTES, report_body};
pub use words::{Word, number};

/// Takes the namespaces that this coordinator has: the default one, by its name or by none.
///
/// # Errors
/// NOT_FOUND, with the name.
pub fn namespace(name: &str) -> Result<(), Status> {
    if name.is_empty() || name == DEFAULT_NAMESPACE { Ok(()) } else { Err(errors::no_namespace(name)) }
}

/// Takes an id that a person chose.
///
/// # Errors
/// INVALID_ARGUMENT, naming the field and what is wrong with the id.
pub fn text_id(field: &str, id: &str) -> Result<Arc<str>, Status> {
    check_id(field, id).map_or_else(|| Ok(id.into()), |fault| Err(errors::invalid_field(fault)))
}

/// Takes a lease token.
///
/// # Errors
/// INVALID_ARGUMENT: these bytes were never a token.
pub fn lease_token(field: &str, token: &[u8]) -> Result<LeaseToken, Status> {
    LeaseToken::from_bytes(token).ok_or_else(|| {
        let problem = format!("is no lease token: it has {} bytes", token.len());
        errors::invalid_field(Fault::of_field(field, None, &problem, "send back the 24 bytes that came with the lease"))
    })
}

/// The reason of a release. One that this version does not know counts as an agent that is overloaded: a
/// release that was refused would end its stream, and come back on the next one for ever.
pub fn release_reason(number: i32) -> ReleaseReason {
    ReleaseReason::from_wire(number).unwrap_or(ReleaseReason::Overloaded)
}

/// Why a lease ended, for its agent.
pub fn revoke_reason(reason: RevokeReason) -> pb::RevokeReason {
    reason.to_wire()
}

/// Why an agent is to leave its stream.
pub fn go_away_reason(reason: GoAwayReason) -> pb::GoAwayReason {
    reason.to_wire()
}

/// The answer to a report.
pub fn receipt(receipt: &Receipt) -> pb::Receipt {
    pb::Receipt {
        lease_token: Bytes::copy_from_slice(&receipt.token.to_bytes()),
        kind: number(Some(receipt.kind)),
        reason: number(receipt.reason),
        stored_digest: receipt.stored.map_or_else(Bytes::new, digest),
    }
}

/// A cell as a person names it.
pub fn key(job: &JobId, key: &CellKey) -> pb::ExecutionKey {
    pb::ExecutionKey {
        namespace: DEFAULT_NAMESPACE.into(),
        job_id: job.as_str().into(),
        region: key.region.as_str().into(),
        model: key.model.as_str().into(),
        question: key.question.as_str().into(),
        repeat: key.repeat,
    }
}

/// A digest's bytes.
pub fn digest(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

/// A point of wall-clock time.
pub fn timestamp(at: UnixMs) -> Timestamp {
    let nanos = i32::try_from(at.0.rem_euclid(1_000)).unwrap_or(0) * 1_000_000;
    Timestamp { seconds: at.0.div_euclid(1_000), nanos }
}

/// A text that any database and any terminal takes: at most `most` bytes, with U+FFFD for each control character.
pub fn bounded_text(text: &str, most: usize) -> String {
    // A replacement has three bytes where the control character may have had one: replaced first, then cut.
    let head = cut(text, most).chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let mut bounded: String = head.collect();
    bounded.truncate(cut(&bounded, most).len());
    bounded
}

/// The longest beginning of a text that has at most `most` bytes and ends with a character.
pub fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

/// A job as it stands. Complete is derived (rule J1): every cell has its record.
pub fn job(view: &JobView) -> pb::Job {
    let axis = |(model, region, counts): &(ModelId, RegionId, Counts)| pb::AxisCounts {
        model: model.as_str().into(),
        region: region.as_str().into(),
        counts: Some(self::counts(counts)),
    };
    pb::Job {
        namespace: DEFAULT_NAMESPACE.into(),
        job_id: view.id.as_str().into(),
        spec_digest: digest(view.digest),
        state: job_state(view).into(),
        paused: view.paused,
        counts: Some(counts(&view.counts)),
        by_axis: view.lanes.iter().map(axis).collect(),
        submitted_at: Some(timestamp(view.submitted_at)),
        deadline_at: Some(timestamp(view.deadline_at)),
        completed_at: view.completed_at.map(timestamp),
        closed_at: view.closed_at.map(timestamp),
    }
}

fn job_state(view: &JobView) -> pb::JobState {
    match view.state {
        _ if view.counts.recorded == view.counts.expected => pb::JobState::Complete,
        JobState::Open => pb::JobState::Open,
        JobState::Cancelled => pb::JobState::Cancelled,
        JobState::Expired => pb::JobState::Expired,
    }
}

/// Whether nothing of the job is under way any more, nor will be without a call of somebody's.
pub fn has_ended(view: &JobView) -> bool {
    let complete = view.counts.recorded == view.counts.expected;
    complete || (view.state != JobState::Open && view.counts.leased == 0)
}

fn counts(counts: &Counts) -> pb::Counts {
    pb::Counts {
        expected: counts.expected.into(),
        recorded: counts.recorded.into(),
        failed: counts.failed.into(),
        leased: counts.leased.into(),
        pending: counts.pending.into(),
        not_run: counts.not_run.into(),
    }
}

/// Cells that wait for one reason.
pub fn pending_group(group: PendingGroup) -> pb::PendingGroup {
    pb::PendingGroup {
        model: group.model.as_str().into(),
        region: group.region.as_str().into(),
        reason: number(Some(group.wait.reason)),
        detail: group.wait.detail,
        cells: group.cells.into(),
        until_ms: group.wait.until_ms,
    }
}

/// A record. The provider's body is in it where it was read.
pub fn execution(job: &JobId, row: Execution) -> pb::Execution {
    let ReportBody { digest: reported, input_digest, served, timings, outcome } = row.body;
    let mut execution = pb::Execution {
        key: Some(key(job, &row.key)),
        cell: row.cell.0.into(),
        served: served.as_ref().map(self::served),
        timings: Some(pb::Timings {
            waited_ms: timings.waited_ms,
            ran_ms: timings.ran_ms,
            first_byte_ms: timings.first_byte_ms,
        }),
        attempt: row.attempt,
        agent_id: row.agent.as_str().into(),
        fencing_token: row.token.to_string(),
        input_digest: digest(input_digest),
        recorded_at: Some(timestamp(row.recorded_at)),
        ..pb::Execution::default()
    };
    match outcome {
        Outcome::Succeeded(success) => {
            execution.status = number(Some(Ran::Succeeded));
            // A success is digested by its output alone.
            execution.output_digest = digest(reported);
            execution.usage = usage(&success);
            execution.finish_reason = success.finish_reason.as_ref().into();
            execution.output = success.output;
            execution.response = success.response;
        }
        Outcome::Failed(failure) => {
            execution.status = number(Some(Ran::Failed));
            execution.failure = Some(self::failure(&failure));
        }
    }
    execution
}

/// A cell that has no record, and why.
pub fn missing(job: &JobId, cell: u32, key: &CellKey, why: Option<WaitReason>) -> pb::Execution {
    pb::Execution {
        key: Some(self::key(job, key)),
        cell: cell.into(),
        missing: number(why),
        ..pb::Execution::default()
    }
}

fn usage(success: &Success) -> Option<pb::Usage> {
    let usage = pb::Usage { prompt_tokens: success.prompt_tokens, completion_tokens: success.completion_tokens };
    (usage != pb::Usage::default()).then_some(usage)
}

fn served(served: &Served) -> pb::Served {
    pb::Served {
        region: served.region.as_ref().into(),
        region_basis: number(Some(served.basis)),
        model: served.model.as_ref().into(),
        request_id: served.request_id.as_ref().into(),
        endpoint: served.endpoint.as_ref().into(),
        executor: served.executor.as_ref().into(),
    }
}

fn failure(failure: &Failure) -> pb::Failure {
    pb::Failure {
        reason: number(Some(failure.reason)),
        stage: number(Some(failure.stage)),
        code: failure.code.as_ref().into(),
        message: failure.message.clone(),
        retryable: failure.retryable,
        retry_after_ms: None,
    }
}

/// An entry of the history. Of an answer, at most [`MAX_KEPT_ANSWER`] bytes.
pub fn attempt(entry: &Attempt) -> pb::Attempt {
    let row = &entry.row;
    let body = row.body.as_deref();
    let mut attempt = pb::Attempt {
        key: Some(key(&row.job, &row.key)),
        attempt: row.attempt,
        kind: number(Some(row.kind)),
        counted: row.counted,
        in_company: row.in_company,
        failure: row.reason.map(unreported),
        agent_id: row.agent.as_str().into(),
        fencing_token: row.token.to_string(),
        ended_at: Some(timestamp(row.ended_at)),
        fenced: number(row.fenced),
        ..pb::Attempt::default()
    };
    match body.map(|body| &body.outcome) {
        Some(Outcome::Succeeded(success)) => {
            attempt.output = success.output.slice(..success.output.len().min(MAX_KEPT_ANSWER));
            attempt.output_digest = digest(row.digest());
        }
        Some(Outcome::Failed(failure)) => attempt.failure = Some(self::failure(failure)),
        None => {}
    }
    if matches!(row.kind, AttemptKind::Replaced | AttemptKind::Fenced) {
        attempt.status = number(body.map(ReportBody::status));
    }
    attempt
}

/// A failure of which nobody reported more than that it came.
fn unreported(reason: FailureReason) -> pb::Failure {
    pb::Failure { reason: number(Some(reason)), ..pb::Failure::default() }
}

/// An agent with a live session.
pub fn agent(view: AgentView) -> pb::AgentInfo {
    let model = |(id, provider, unready): (ModelId, ProviderId, Option<Arc<str>>)| pb::AgentModelInfo {
        id: id.as_str().into(),
        provider: provider.as_str().into(),
        ready: unready.is_none(),
        message: unready.as_deref().unwrap_or_default().into(),
    };
    pb::AgentInfo {
        agent_id: view.agent.as_str().into(),
        region: view.region.as_str().into(),
        incarnation_number: view.number,
        slots: view.slots,
        leased: view.leased,
        running: view.running,
        connected: view.connected,
        last_heard_ms: view.last_heard_ms,
        models: view.models.into_iter().map(model).collect(),
        draining: view.draining,
    }
}

/// A live lease, without its secret.
pub fn lease(view: &LeaseView) -> pb::LeaseInfo {
    pb::LeaseInfo {
        key: Some(key(&view.job, &view.key)),
        fencing_token: view.token.to_string(),
        agent_id: view.agent.as_str().into(),
        attempt: view.attempt,
        stage: number(Some(view.stage)),
        age_ms: view.age_ms,
    }
}

/// One act.
pub fn audit_entry(entry: AuditEntry) -> pb::AuditEntry {
    pb::AuditEntry {
        at: Some(timestamp(entry.at)),
        actor: entry.actor,
        action: entry.action,
        job_id: entry.job.map(|job| job.as_str().to_owned()).unwrap_or_default(),
        detail: entry.detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_text_has_no_control_character_and_never_more_than_its_bytes() {
        assert_eq!(bounded_text("stop", 4), "stop");
        assert_eq!(bounded_text("stops", 4), "stop");
        assert_eq!(bounded_text("aä", 2), "a", "half a character is none");
        assert_eq!(bounded_text("a\0b\u{1b}", 64), "a\u{fffd}b\u{fffd}");
        assert_eq!(bounded_text("\0\0\0\0", 4), "\u{fffd}", "a replacement is longer than what it replaces");
    }

    #[test]
    fn a_timestamp_is_whole_before_1970_too() {
        let parts = |ms| (timestamp(UnixMs(ms)).seconds, timestamp(UnixMs(ms)).nanos);
        assert_eq!(parts(1_234), (1, 234_000_000));
        assert_eq!(parts(-1), (-1, 999_000_000));
        assert_eq!(parts(i64::MAX), (i64::MAX / 1_000, 807_000_000));
    }

    #[test]
    fn complete_is_derived_whatever_state_is_stored() {
        let view = |state, recorded, leased| JobView {
            id: JobId::new("j"),
            digest: Digest::default(),
            state,
            paused: false,
            counts: Counts { expected: 2, recorded, leased, ..Counts::default() },
            lanes: vec![],
            submitted_at: UnixMs(0),
            deadline_at: UnixMs(0),
            completed_at: None,
            closed_at: None,
        };
        for state in JobState::ALL {
            assert_eq!(job(&view(*state, 2, 0)).state(), pb::JobState::Complete);
            assert!(has_ended(&view(*state, 2, 0)));
        }
        assert_eq!(job(&view(JobState::Open, 1, 0)).state(), pb::JobState::Open);
        assert!(!has_ended(&view(JobState::Open, 1, 0)), "its cells will be handed out");
        assert!(!has_ended(&view(JobState::Cancelled, 1, 1)), "a call is still under way");
        assert!(has_ended(&view(JobState::Expired, 1, 0)));
    }
}
