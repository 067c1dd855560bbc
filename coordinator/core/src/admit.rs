//! Jobs admitted, paused, closed and retried.

use crate::{
    Core,
    batch::{AuditRow, JobRow, Replaced},
    event::{Answer, Decision, JobCall, Out, Query, Retry, Submit},
    id::{CallId, FencingToken, JobId, JobNo, Now},
    job::Job,
    lease::Noted,
    words::{AttemptKind, JobState, ReceiptReason, RevokeReason},
};

impl Core {
    /// Promise 6: the same submission again is the same job; the same id with another specification is refused.
    pub(crate) fn submit(&mut self, at: Now, submit: Submit, out: &mut Decision) {
        if let Some(job) = self.job(&submit.id) {
            let answer = if job.row.digest == submit.digest {
                Answer::Submitted(job.view(true), false)
            } else {
                Answer::OtherSpec
            };
            return reply(submit.call, answer, out);
        }
        let row = JobRow {
            id: submit.id.clone(),
            digest: submit.digest,
            spec: submit.spec,
            matrix: submit.matrix,
            deadline_at: at.wall.after(submit.policy.deadline_ms),
            policy: submit.policy,
            submitted_at: at.wall,
        };
        let no = self.next_job_no();
        let job = Job::new(no, JobRow { spec: row.spec.in_memory(), ..row.clone() });
        reply(submit.call, Answer::Submitted(job.view(true), true), out);
        let detail = format!("{} cells", job.row.matrix.expected());
        out.batch.audit.push(AuditRow {
            at: at.wall,
            actor: submit.actor,
            action: "submit",
            job: Some(submit.id),
            detail,
        });
        out.batch.job(row);
        self.insert_job(job);
        self.touch(no);
    }

    /// Ends an open job. A second cancel has the same answer.
    pub(crate) fn cancel(&mut self, at: Now, call: JobCall, out: &mut Decision) {
        let Some(no) = self.job_no(&call.id) else {
            return reply(call.call, Answer::NoSuchJob, out);
        };
        let open = self.jobs.get(&no).is_some_and(|j| j.state == JobState::Open && !j.is_complete());
        if open {
            self.close(at, no, JobState::Cancelled, out);
            self.note_act(at, &call, "cancel", call.reason.clone(), out);
        }
        let running: u64 =
            self.sessions.values().map(|s| s.stopping.values().filter(|j| **j == no).count() as u64).sum();
        if let Some(job) = self.jobs.get(&no) {
            reply(call.call, Answer::Cancelled(job.view(true), running), out);
        }
    }

    /// Closes the jobs whose deadline has passed.
    pub(crate) fn expire_jobs(&mut self, at: Now, out: &mut Decision) {
        while let Some(&(due, no)) = self.deadlines.first().filter(|(due, _)| *due <= at.wall) {
            self.deadlines.pop_first();
            let ends = |j: &&Job| j.state == JobState::Open && !j.is_complete() && j.row.deadline_at == due;
            let job = self.jobs.get(&no).filter(ends);
            let Some(id) = job.map(|j| j.row.id.clone()) else {
                continue;
            };
            self.close(at, no, JobState::Expired, out);
            let act = AuditRow {
                at: at.wall,
                actor: "coordinator".into(),
                action: "expire",
                job: Some(id),
                detail: String::new(),
            };
            out.batch.audit.push(act);
        }
    }

    /// Rule J1: closing blanks every live slot in the same commit; a later report is fenced, its answer kept.
    fn close(&mut self, at: Now, no: JobNo, state: JobState, out: &mut Decision) {
        let (fenced, revoke) = if state == JobState::Cancelled {
            (ReceiptReason::JobCancelled, RevokeReason::JobCancelled)
        } else {
            (ReceiptReason::JobExpired, RevokeReason::JobExpired)
        };
        let Some(job) = self.jobs.get_mut(&no) else {
            return;
        };
        job.state = state;
        job.closed_at = Some(at.wall);
        let change = out.batch.change(&job.row.id);
        change.state = Some(state);
        change.closed_at = Some(Some(at.wall));
        let tokens: Vec<FencingToken> = job.leased.values().copied().collect();
        for token in tokens {
            self.revoke(token, revoke, out);
            let Some(lease) = self.unlease(token) else {
                continue;
            };
            if let Some(history) = self.jobs.get_mut(&no).map(|j| j.history.entry(lease.cell).or_default()) {
                history.last = history.last.max(lease.attempt);
            }
            self.note_attempt(at, &lease, AttemptKind::Closed, Noted { fenced: Some(fenced), ..Noted::default() }, out);
            self.blank(&lease, out);
            self.wait_again(at, &lease, 0);
        }
        self.list_places(no, false);
        self.touch(no);
    }

    /// Pauses or resumes a job.
    pub(crate) fn pause(&mut self, at: Now, call: JobCall, paused: bool, out: &mut Decision) {
        let Some(no) = self.job_no(&call.id) else {
            return reply(call.call, Answer::NoSuchJob, out);
        };
        let Some(job) = self.jobs.get_mut(&no) else {
            return;
        };
        if job.state != JobState::Open {
            let state = job.state.as_str();
            let words = format!("job {:?} is {state}: `retry --reopen` opens it again", job.row.id);
            return reply(call.call, Answer::Refused(words), out);
        }
        if job.is_complete() {
            let words = format!("job {:?} is complete: there is nothing to pause or resume", job.row.id);
            return reply(call.call, Answer::Refused(words), out);
        }
        let changed = job.paused != paused;
        if changed {
            job.paused = paused;
            out.batch.change(&job.row.id).paused = Some(paused);
        }
        let view = job.view(true);
        if changed {
            self.note_act(at, &call, if paused { "pause" } else { "resume" }, call.reason.clone(), out);
        }
        self.touch(no);
        reply(call.call, Answer::Job(view), out);
    }

    /// Moves records to the history and lets their cells run again: the same frozen input (promise 8), a new budget.
    pub(crate) fn retry(&mut self, at: Now, retry: Retry, out: &mut Decision) {
        let call = &retry.by;
        let Some(no) = self.job_no(&call.id) else {
            return reply(call.call, Answer::NoSuchJob, out);
        };
        let Some(job) = self.jobs.get(&no) else {
            return;
        };
        if job.state != JobState::Open && !retry.reopen {
            let state = job.state.as_str();
            let words = format!("job {:?} is {state}: `retry --reopen` opens it again", job.row.id);
            return reply(call.call, Answer::Refused(words), out);
        }
        let moved = self.replace(at, no, &retry, out);
        self.reopen(at, no, moved > 0, out);
        if moved > 0 || retry.reopen {
            self.note_act(at, call, "retry", format!("{moved} records"), out);
        }
        self.touch(no);
        if let Some(job) = self.jobs.get(&no) {
            reply(call.call, Answer::Retried(job.view(true), moved), out);
        }
    }

    fn replace(&mut self, at: Now, no: JobNo, retry: &Retry, out: &mut Decision) -> u64 {
        let mut moved = 0;
        for &(cell, token, attempt) in &retry.records {
            let Some(job) = self.jobs.get_mut(&no).filter(|j| j.recorded.contains(cell.0)) else {
                continue;
            };
            job.note_replaced(cell, attempt, at.mono);
            let job = job.row.id.clone();
            out.batch.replace(no, Replaced { job, cell, token, at: at.wall });
            // Rule C9: the slot of the record's token is blanked, if its grant still has a row.
            let grant = self.grants.range(..=token).next_back();
            let grant =
                grant.filter(|(first, g)| token.get() - first.get() < u64::from(g.len)).map(|(first, _)| *first);
            if let Some(first) = grant {
                self.blank_slot(no, cell, first, token, out);
            }
            moved += 1;
        }
        moved
    }

    /// An open job that is not complete can hand out cells: what a retry makes of a complete or closed one.
    fn reopen(&mut self, at: Now, no: JobNo, moved: bool, out: &mut Decision) {
        let Some(job) = self.jobs.get_mut(&no) else {
            return;
        };
        let id = job.row.id.clone();
        if job.state != JobState::Open {
            job.state = JobState::Open;
            job.closed_at = None;
            let change = out.batch.change(&id);
            change.state = Some(JobState::Open);
            change.closed_at = Some(None);
        }
        if moved && job.completed_at.take().is_some() {
            out.batch.change(&id).completed_at = Some(None);
        }
        if job.row.deadline_at <= at.wall {
            job.row.deadline_at = at.wall.after(job.row.policy.deadline_ms);
            out.batch.change(&id).deadline_at = Some(job.row.deadline_at);
        }
        self.deadlines.insert((job.row.deadline_at, no));
        self.list_places(no, true);
    }

    /// Answers what a caller asks.
    pub(crate) fn query(&self, at: Now, call: CallId, query: Query, out: &mut Decision) {
        let answer = match query {
            Query::Job(id) => self.job(&id).map(|job| Answer::Job(job.view(true))),
            Query::Jobs { after, limit } => Some(self.list(after, limit)),
            Query::Explain(id) => self.job(&id).map(|job| Answer::Pending(job.view(true), self.explain(job, at.mono))),
            Query::Cell(id, cell) => self
                .job(&id)
                .filter(|job| cell.0 < job.row.matrix.expected())
                .map(|job| Answer::Cell(self.explain_cell(job, cell, at.mono))),
            Query::Agents => Some(Answer::Agents(self.agent_views(at.mono))),
            Query::Leases { after, limit } => Some(Answer::Leases(self.lease_views(at.mono, after, limit))),
        };
        reply(call, answer.unwrap_or(Answer::NoSuchJob), out);
    }

    fn list(&self, after: Option<JobId>, limit: usize) -> Answer {
        let below = after.and_then(|id| self.job_no(&id));
        let jobs = self.jobs.values().rev().filter(|j| below.is_none_or(|no| j.no < no));
        Answer::Jobs(jobs.take(limit).map(|j| j.view(false)).collect())
    }

    fn note_act(&self, at: Now, call: &JobCall, action: &'static str, detail: String, out: &mut Decision) {
        let row = AuditRow { at: at.wall, actor: call.actor.clone(), action, job: Some(call.id.clone()), detail };
        out.batch.audit.push(row);
    }
}

fn reply(call: CallId, answer: Answer, out: &mut Decision) {
    out.outbox.push(Out::Answer(call, answer));
}
