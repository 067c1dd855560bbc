//! A report: recorded, already recorded, retrying or fenced.
//!
//! Why a zombie's result cannot be recorded: the lease it holds is not in `Core::leases` any more, so
//! its report takes the road of [`Core::report_of_the_past`], which records nothing. Should memory be
//! wrong, the commit itself is conditional: `Batch::records` carries the lease, and the store inserts
//! the row only if that lease's token and nonce are in its grant's slot, under the epoch that leads
//! (promise 3). Should both fail, the primary key allows one row a key (promise 1).

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Core,
    batch::{AttemptRow, Failure, Outcome, ReportBody},
    event::{Decision, Out, Past, PastRow, Receipt, Release, Report, ToAgent},
    gate::MAX_RETRY_AFTER_MS,
    id::{AgentId, Digest, LeaseToken, Now, StreamId},
    lease::{Lease, Noted},
    words::{AttemptKind, FailureReason, ReceiptKind, ReceiptReason, RegionBasis, ReleaseReason, Stage},
};

/// Refused reports that the history keeps for one token; more are refused all the same.
const MAX_KEPT_FENCED: usize = 8;

impl Core {
    /// What became of an attempt.
    pub(crate) fn report(&mut self, at: Now, report: Report, out: &mut Decision) {
        let Some(agent) = self.streams.get(&report.stream) else {
            // The stream was given up, and whose word this is is not known any more: no receipt may end
            // a result that its agent will report again on its next stream.
            return;
        };
        let Some(lease) = self.live(agent, report.token) else {
            return self.report_of_the_past(at, report, out);
        };
        let lease = lease.clone();
        let body = self.judge(&lease, &report);
        match &body.outcome {
            Outcome::Succeeded(_) => {
                self.note_success(at, &lease);
                self.finish(at, &report, body, out);
            }
            Outcome::Failed(failure) => match failure.reason {
                FailureReason::RateLimited => {
                    self.failed_for_free(at, &report, ReleaseReason::RateLimited, failure, out)
                }
                FailureReason::Misconfigured => {
                    self.failed_for_free(at, &report, ReleaseReason::Misconfigured, failure, out);
                }
                _ => self.fail(at, &report, body, out),
            },
        }
    }

    /// Rule S6: another input, region or model than the cell's makes a failed attempt of any answer.
    fn judge(&self, lease: &Lease, report: &Report) -> Arc<ReportBody> {
        match self.wrong(lease, report) {
            Some((reason, words)) => Arc::new(ReportBody {
                outcome: Outcome::Failed(Failure {
                    reason,
                    stage: Stage::Result,
                    code: "".into(),
                    message: Bytes::from(words),
                    retryable: true,
                }),
                ..(*report.body).clone()
            }),
            None => report.body.clone(),
        }
    }

    fn wrong(&self, lease: &Lease, report: &Report) -> Option<(FailureReason, String)> {
        let Outcome::Succeeded(_) = report.body.outcome else {
            return None;
        };
        let job = self.jobs.get(&lease.job)?;
        let lane = &job.row.matrix.lanes()[job.lane_of(lease.cell)];
        if report.leased_input != Some(report.body.input_digest) {
            return Some((FailureReason::WrongInput, "the input that ran is not the one that was leased".into()));
        }
        let Some(served) = &report.body.served else {
            return Some((FailureReason::WrongRegion, "the report does not say which region served".into()));
        };
        if *served.region != *lane.region.as_str() {
            let words = format!("region {:?} served a cell of region {:?}", served.region, lane.region);
            return Some((FailureReason::WrongRegion, words));
        }
        if job.row.policy.require_reported_region && served.basis != RegionBasis::Reported {
            let words = "the job requires that the endpoint reports its region, and it reported none";
            return Some((FailureReason::RegionUnreported, words.into()));
        }
        let model = &job.row.matrix.models()[lane.model];
        if !model.accepts(&served.model) {
            let words = format!(
                "model {:?} served where {:?} was asked for; name it in accept_models if it may",
                served.model, model.name
            );
            return Some((FailureReason::WrongModel, words));
        }
        None
    }

    fn note_success(&mut self, at: Now, lease: &Lease) {
        let mut refused = lease.gate.is_some_and(|gate| self.gates.succeeded(gate));
        let Some(job) = self.jobs.get(&lease.job) else {
            return;
        };
        let lane = &job.lanes[job.lane_of(lease.cell)];
        let place = (lane.region.clone(), job.row.matrix.models()[lane.model].id.clone());
        if let Some(serving) = self.sessions.get_mut(&lease.agent).and_then(|s| s.models.get_mut(&place.1)) {
            serving.warm_at = Some(at.mono);
            refused |= std::mem::take(&mut serving.rest_ms) > 0;
        }
        if refused {
            // What the provider or the agent's configuration refused before may go through now.
            for (no, lane) in self.places.get(&place).into_iter().flatten() {
                if let Some(job) = self.jobs.get_mut(no) {
                    job.forgive(*lane);
                }
            }
        }
    }

    /// The report becomes its cell's record.
    fn finish(&mut self, at: Now, report: &Report, body: Arc<ReportBody>, out: &mut Decision) {
        let Some(lease) = self.unlease(report.token.fencing) else {
            return;
        };
        let stored = Some(body.digest);
        self.record(at, &lease, body, out);
        answer(report, ReceiptKind::Recorded, None, stored, out);
    }

    /// A failed attempt: another one follows, or this is the record.
    fn fail(&mut self, at: Now, report: &Report, body: Arc<ReportBody>, out: &mut Decision) {
        let Outcome::Failed(failure) = &body.outcome else {
            return;
        };
        let (reason, retryable) = (failure.reason, failure.retryable);
        let Some(lease) = self.unlease(report.token.fencing) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&lease.job) else {
            return;
        };
        let history = job.history.entry(lease.cell).or_default();
        history.last = history.last.max(lease.attempt);
        history.used += 1;
        let last = !retryable || history.used >= job.row.policy.attempts;
        let wait = job.row.policy.backoff(history.used).max(report.retry_after_ms.unwrap_or(0).min(MAX_RETRY_AFTER_MS));
        // An answer that was judged wrong is kept in the history, whether or not it was the last try.
        let judged = !Arc::ptr_eq(&body, &report.body);
        if !last || judged {
            self.note_attempt(
                at,
                &lease,
                AttemptKind::Failed,
                Noted {
                    counted: true,
                    reason: Some(reason),
                    body: Some(if judged { report.body.clone() } else { body.clone() }),
                    wait_ms: (!last).then_some(wait),
                    ..Noted::default()
                },
                out,
            );
        }
        if last {
            let stored = Some(body.digest);
            self.record(at, &lease, body, out);
            answer(report, ReceiptKind::Recorded, None, stored, out);
        } else {
            self.blank(&lease, out);
            self.wait_again(at, &lease, wait);
            answer(report, ReceiptKind::Retrying, None, None, out);
        }
    }

    /// A report that says 429 or misconfigured: the same as handing the lease back, and it has a receipt.
    fn failed_for_free(
        &mut self,
        at: Now,
        report: &Report,
        reason: ReleaseReason,
        failure: &Failure,
        out: &mut Decision,
    ) {
        let message = String::from_utf8_lossy(&failure.message).into();
        let release = Release {
            stream: report.stream,
            token: report.token,
            reason,
            message,
            retry_after_ms: report.retry_after_ms,
            chance: report.chance,
        };
        self.release(at, release, Some(report.body.clone()), out);
        answer(report, ReceiptKind::Retrying, None, None, out);
    }

    /// A report whose token is not live (rule C10): it records nothing. The same report again has the
    /// first receipt; another answer is kept in the history.
    fn report_of_the_past(&mut self, at: Now, report: Report, out: &mut Decision) {
        let Some(past) = &report.past else {
            out.ask = Some(report.token.fencing);
            return;
        };
        let agent = self.streams.get(&report.stream);
        let digest = report.body.digest;
        match verdict(past, agent, report.token, digest) {
            Verdict::Unknown => answer(&report, ReceiptKind::Fenced, Some(ReceiptReason::UnknownToken), None, out),
            Verdict::Same(kind, reason) => {
                let stored = (kind == ReceiptKind::AlreadyRecorded).then_some(digest);
                answer(&report, kind, reason, stored, out);
            }
            Verdict::Refused(row, reason) => {
                let stored = past.record.as_ref().map(|r| r.digest);
                answer(&report, ReceiptKind::Fenced, Some(reason), stored, out);
                self.keep(at, &report, row, reason, past, out);
            }
        }
    }

    /// Keeps the answer of a refused report.
    fn keep(&self, at: Now, report: &Report, row: &PastRow, reason: ReceiptReason, past: &Past, out: &mut Decision) {
        let kept = past.attempts.iter().filter(|(kind, _, _)| *kind == AttemptKind::Fenced).count();
        if kept >= MAX_KEPT_FENCED {
            return;
        }
        out.batch.attempt(AttemptRow {
            job: row.job.clone(),
            cell: row.cell,
            key: row.key.clone(),
            token: report.token.fencing,
            kind: AttemptKind::Fenced,
            attempt: row.attempt,
            counted: false,
            in_company: false,
            agent: row.agent.clone(),
            reason: None,
            fenced: Some(reason),
            body: Some(report.body.clone()),
            retry_at: None,
            ended_at: at.wall,
        });
    }
}

/// What the past says of a report.
enum Verdict<'a> {
    /// The token was never given out here, or not to this agent.
    Unknown,
    /// This report was answered before.
    Same(ReceiptKind, Option<ReceiptReason>),
    /// Its token ended otherwise.
    Refused(&'a PastRow, ReceiptReason),
}

fn verdict<'a>(past: &'a Past, agent: Option<&AgentId>, token: LeaseToken, digest: Digest) -> Verdict<'a> {
    let rows = past.record.iter().chain(past.attempts.iter().map(|(_, _, row)| row));
    let foreign = |row: &PastRow| agent != Some(&row.agent) || row.nonce.is_some_and(|nonce| nonce != token.nonce);
    if rows.clone().next().is_none() || rows.clone().any(foreign) {
        return Verdict::Unknown;
    }
    let nobody_reported = |row: &PastRow| row.digest == Digest::default();
    if let Some(record) = &past.record {
        return match () {
            () if record.digest == digest => Verdict::Same(ReceiptKind::AlreadyRecorded, None),
            () if nobody_reported(record) => {
                Verdict::Refused(record, ReceiptReason::LeaseLost).unless_kept(past, digest)
            }
            () => Verdict::Refused(record, ReceiptReason::Conflict).unless_kept(past, digest),
        };
    }
    // A record that a retry moved is what its report was answered with, also where the attempt that
    // led to it has an entry of its own (rule S6).
    let replaced = past.attempts.iter().find(|(kind, _, _)| *kind == AttemptKind::Replaced);
    let ended = replaced.or_else(|| past.attempts.iter().find(|(kind, _, _)| *kind != AttemptKind::Fenced));
    let Some((kind, fenced, row)) = ended.or(past.attempts.first()) else {
        return Verdict::Unknown;
    };
    let verdict = match kind {
        AttemptKind::Failed if row.digest == digest => {
            return Verdict::Same(ReceiptKind::Retrying, None);
        }
        AttemptKind::Released if row.digest == digest => {
            return Verdict::Same(ReceiptKind::Retrying, None);
        }
        AttemptKind::Replaced if row.digest == digest => {
            return Verdict::Same(ReceiptKind::AlreadyRecorded, Some(ReceiptReason::Superseded));
        }
        AttemptKind::Failed => Verdict::Refused(row, ReceiptReason::Conflict),
        AttemptKind::Replaced if !nobody_reported(row) => Verdict::Refused(row, ReceiptReason::Conflict),
        AttemptKind::Released => Verdict::Refused(row, ReceiptReason::Revoked),
        AttemptKind::Lost | AttemptKind::Replaced => Verdict::Refused(row, ReceiptReason::LeaseLost),
        AttemptKind::Closed | AttemptKind::Fenced => Verdict::Refused(row, fenced.unwrap_or(ReceiptReason::LeaseLost)),
    };
    verdict.unless_kept(past, digest)
}

impl Verdict<'_> {
    /// A refusal that was kept before changes nothing now: it has its first receipt.
    fn unless_kept(self, past: &Past, digest: Digest) -> Self {
        let kept = past.attempts.iter().find(|(kind, _, row)| *kind == AttemptKind::Fenced && row.digest == digest);
        match kept {
            Some((_, reason, _)) => Self::Same(ReceiptKind::Fenced, *reason),
            None => self,
        }
    }
}

fn answer(
    report: &Report,
    kind: ReceiptKind,
    reason: Option<ReceiptReason>,
    stored: Option<Digest>,
    out: &mut Decision,
) {
    let stream: StreamId = report.stream;
    out.outbox.push(Out::Agent(stream, ToAgent::Receipt(Receipt { token: report.token, kind, reason, stored })));
}
