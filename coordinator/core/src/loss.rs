//! How a lease ends without an answer: handed back, timed out, or lost with its agent (rule S7).
//!
//! Each end says what it costs the cell: an attempt, a free end of a bounded number, or nothing. After
//! that the cell waits again, or this was its last chance and the loss is its record.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Core,
    batch::{Failure, Outcome, ReportBody, Timings},
    event::{Decision, Out, Release, ToAgent},
    id::{Digest, FencingToken, Now},
    job::MAX_FREE_ENDS,
    lease::{Lease, Noted},
    words::{AttemptKind, FailureReason, LeaseStage, ReleaseReason, RevokeReason, Stage},
};

/// The rest of an agent, or of a model on it, after it handed a lease back; doubled each time for a model.
const FIRST_REST_MS: u64 = 1_000;
/// The longest rest of a model.
const MAX_REST_MS: u64 = 60_000;

/// How a lease was lost, and so what it costs its cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loss {
    /// It did not reach its agent (rule S2): costs nothing.
    NeverArrived,
    /// It arrived and its living agent dropped it before it started (rule S4): costs nothing.
    NeverStarted,
    /// It died, or was dropped, by itself: counted, and can be the last.
    Culprit,
    /// It died together with others: counted, and not the last by that (rule S7).
    InCompany,
    /// Coordinator and agent died as one process, the agent stopped or was cut off, or nobody can tell
    /// whether it ran: not counted, within a bound.
    Nobody,
    /// It did not report within its timeout: counted.
    TimedOut,
}

impl Core {
    /// A lease is handed back. Its agent lists it as held until it is told, durably, of its end (promise 5):
    /// a leader that died before the release was committed leaves a lease that its agent still knows.
    pub(crate) fn handed_back(&mut self, at: Now, release: Release, out: &mut Decision) {
        let Some(agent) = self.streams.get(&release.stream) else {
            return;
        };
        let (stream, token) = (release.stream, release.token);
        let live = self.live(agent, token).is_some();
        self.release(at, release, None, out);
        let reason = if live { RevokeReason::Released } else { RevokeReason::NotLive };
        out.outbox.push(Out::Agent(stream, ToAgent::Revoke(token, reason)));
    }

    /// A lease handed back (rule S7): uncounted unless it started, and never a fault of the cell
    /// where the provider's limit, the agent's configuration, its stop or a cut link are the reason.
    pub(crate) fn release(&mut self, at: Now, release: Release, body: Option<Arc<ReportBody>>, out: &mut Decision) {
        let Some(agent) = self.streams.get(&release.stream).cloned() else {
            return;
        };
        let Some(lease) = self.live(&agent, release.token).cloned() else {
            return;
        };
        self.rest(at, &lease, &release);
        if cut_off(&lease, release.reason) {
            return self.lose(at, release.token.fencing, Loss::Nobody, out);
        }
        self.unlease(release.token.fencing);
        // A report shows that it started, whatever became of the heartbeat that said so.
        let started = body.is_some() || lease.stage >= LeaseStage::Started || lease.stage == LeaseStage::Restored;
        let free = free_of_charge(release.reason);
        let wait = if !started { 0 } else { self.note_release(at, &lease, &release, body, out) };
        if let Some(ended) = self.spent(&lease, started && !free) {
            return self.record(at, &lease, Arc::new(ended), out);
        }
        self.blank(&lease, out);
        match self.jobs.get_mut(&lease.job).filter(|_| free) {
            Some(job) => job.put_last(lease.cell, at.mono),
            None => self.wait_again(at, &lease, wait),
        }
    }

    /// Whom a release makes rest: a gate, a model on its agent, the agent.
    fn rest(&mut self, at: Now, lease: &Lease, release: &Release) {
        let Some(job) = self.jobs.get(&lease.job) else {
            return;
        };
        let model = &job.row.matrix.models()[job.lanes[job.lane_of(lease.cell)].model].id;
        let Some(session) = self.sessions.get_mut(&lease.agent) else {
            return;
        };
        match release.reason {
            ReleaseReason::RateLimited => {
                if let Some(gate) = lease.gate {
                    self.gates.rate_limited(gate, at.mono, release.retry_after_ms, &release.message, release.chance);
                }
            }
            ReleaseReason::Misconfigured => {
                if let Some(serving) = session.models.get_mut(model).filter(|s| s.rest_until <= at.mono) {
                    serving.rest_ms = (serving.rest_ms * 2).clamp(FIRST_REST_MS, MAX_REST_MS);
                    serving.rest_until = at.mono.after(serving.rest_ms);
                }
                if let Some(serving) = session.models.get_mut(model) {
                    serving.trouble = Some(release.message.clone());
                }
            }
            ReleaseReason::Draining => session.slots = 0,
            ReleaseReason::Overloaded | ReleaseReason::SpoolFull => {
                session.rest_until = at.mono.after(FIRST_REST_MS);
                session.rests_for = release.message.clone();
            }
            ReleaseReason::Orphaned => {}
        }
    }

    /// The history's entry of a lease that was handed back after it had started. Returns the wait.
    fn note_release(
        &mut self,
        at: Now,
        lease: &Lease,
        release: &Release,
        body: Option<Arc<ReportBody>>,
        out: &mut Decision,
    ) -> u64 {
        let Some(job) = self.jobs.get_mut(&lease.job) else {
            return 0;
        };
        let counted = !free_of_charge(release.reason);
        let history = job.history.entry(lease.cell).or_default();
        history.last = history.last.max(lease.attempt);
        history.used += u32::from(counted);
        let reason = match release.reason {
            ReleaseReason::RateLimited => FailureReason::RateLimited,
            ReleaseReason::Misconfigured => FailureReason::Misconfigured,
            _ => FailureReason::LeaseLost,
        };
        let wait = if counted { job.row.policy.backoff(history.used) } else { 0 };
        let noted = Noted { counted, reason: Some(reason), body, wait_ms: Some(wait), ..Noted::default() };
        self.note_attempt(at, lease, AttemptKind::Released, noted, out);
        wait
    }

    /// What is recorded of a cell that was handed back for the last time; `None` while it may go on.
    fn spent(&self, lease: &Lease, counted: bool) -> Option<ReportBody> {
        let job = self.jobs.get(&lease.job)?;
        let history = job.history.get(&lease.cell)?;
        let over = (counted && history.used >= job.row.policy.attempts) || history.free >= MAX_FREE_ENDS;
        over.then(|| {
            lost_body(
                FailureReason::LeaseLost,
                format!("its agents handed it back: {} of {} attempts used", history.used, job.row.policy.attempts),
            )
        })
    }

    /// The end of leases whose agent died: all of them at once, so that culprit and bystander are told apart (rule S7).
    pub(crate) fn die(&mut self, at: Now, tokens: &[FencingToken], out: &mut Decision) {
        // Rule S2: what was sent counts as delivered once its agent can't say any more.
        let suspect = |stage| stage != LeaseStage::Acknowledged;
        let suspects = tokens.iter().filter(|t| self.leases.get(t).is_some_and(|l| suspect(l.stage))).count();
        for &token in tokens {
            let Some(lease) = self.leases.get(&token) else {
                continue;
            };
            let loss = match lease.stage {
                // It may have started since its agent was last heard: a cell that kills at once must not go
                // round for ever, nor one run twice whose job forbids it. Once this costs nothing; most
                // such leases only waited for a slot.
                LeaseStage::Acknowledged if !self.had_a_free_end(lease) => Loss::Nobody,
                LeaseStage::Acknowledged if tokens.len() > 1 => Loss::InCompany,
                LeaseStage::Restored if self.config.embedded => Loss::Nobody,
                _ if suspects > 1 => Loss::InCompany,
                _ => Loss::Culprit,
            };
            self.lose(at, token, loss, out);
        }
    }

    /// Whether an earlier lease of its cell ended in this budget, and was nobody's fault.
    fn had_a_free_end(&self, lease: &Lease) -> bool {
        let history = self.jobs.get(&lease.job).and_then(|job| job.history.get(&lease.cell));
        history.is_some_and(|history| history.free > 0)
    }

    /// A lease is lost: the cell waits again, or is recorded as failed.
    pub(crate) fn lose(&mut self, at: Now, token: FencingToken, loss: Loss, out: &mut Decision) {
        let Some(lease) = self.unlease(token) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&lease.job) else {
            return;
        };
        let policy = &job.row.policy;
        if loss == Loss::NeverArrived {
            self.blank(&lease, out);
            return self.wait_again(at, &lease, 0);
        }
        let history = job.history.entry(lease.cell).or_default();
        history.last = history.last.max(lease.attempt);
        let counted = matches!(loss, Loss::Culprit | Loss::InCompany | Loss::TimedOut);
        history.used += u32::from(counted);
        history.free += u32::from(loss == Loss::Nobody);
        history.died |= matches!(loss, Loss::Culprit | Loss::InCompany);
        let ran = counted || loss == Loss::Nobody;
        let last = (ran && !policy.on_lease_lost.may_run_again())
            || (counted && loss != Loss::InCompany && history.used >= policy.attempts)
            || history.free >= MAX_FREE_ENDS;
        let wait = if counted { policy.backoff(history.used) } else { 0 };
        let reason = if loss == Loss::TimedOut { FailureReason::RunTimeout } else { FailureReason::LeaseLost };
        let used = format!("{} of {} attempts used", history.used, policy.attempts);
        self.note_attempt(
            at,
            &lease,
            AttemptKind::Lost,
            Noted {
                counted,
                in_company: loss == Loss::InCompany,
                reason: ran.then_some(reason),
                fenced: None,
                body: None,
                wait_ms: (!last).then_some(wait),
            },
            out,
        );
        if last {
            let words = format!("the lease was lost ({}): {used}", loss_in_words(loss));
            self.record(at, &lease, Arc::new(lost_body(reason, words)), out);
        } else {
            self.blank(&lease, out);
            self.wait_again(at, &lease, wait);
        }
    }

    /// Revokes the runs that neither reported nor ended in time.
    pub(crate) fn time_out_runs(&mut self, at: Now, out: &mut Decision) {
        while let Some(&(_, token)) = self.timeouts.first().filter(|(due, _)| *due <= at.mono) {
            self.revoke(token, RevokeReason::Timeout, out);
            self.lose(at, token, Loss::TimedOut, out);
        }
    }
}

fn free_of_charge(reason: ReleaseReason) -> bool {
    matches!(reason, ReleaseReason::RateLimited | ReleaseReason::Misconfigured)
}

/// A run that its agent cut off, because it stops or because it heard nothing from here: a lost
/// lease, and nobody's fault. A call may have been made, so `on_lease_lost` has its say.
fn cut_off(lease: &Lease, reason: ReleaseReason) -> bool {
    may_have_run(lease) && matches!(reason, ReleaseReason::Draining | ReleaseReason::Orphaned)
}

fn may_have_run(lease: &Lease) -> bool {
    lease.stage >= LeaseStage::Started || lease.stage == LeaseStage::Restored
}

fn loss_in_words(loss: Loss) -> &'static str {
    match loss {
        Loss::NeverArrived => "it did not arrive",
        Loss::NeverStarted => "it did not start",
        Loss::Culprit => "its agent died, fell silent or dropped it",
        Loss::InCompany => "its agent died or fell silent with other leases",
        Loss::Nobody => {
            "nobody is at fault: its agent stopped, was cut off, died with the coordinator, or was not heard of since it had the lease"
        }
        Loss::TimedOut => "no report came within the timeout",
    }
}

/// The report that nobody made, of a cell whose lease was lost for the last time. Its digest is zero:
/// no agent's report can equal it.
pub(crate) fn lost_body(reason: FailureReason, words: String) -> ReportBody {
    ReportBody {
        digest: Digest::default(),
        input_digest: Digest::default(),
        served: None,
        timings: Timings::default(),
        outcome: Outcome::Failed(Failure {
            reason,
            stage: Stage::Run,
            code: "".into(),
            message: Bytes::from(words),
            retryable: false,
        }),
    }
}
