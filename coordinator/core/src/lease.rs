//! Leases: granted, under way, ended. Every end goes through [`Core::unlease`] and then either
//! records the cell or blanks the lease's slot (rule C9).

use std::sync::Arc;

use crate::{
    Core,
    batch::{AttemptRow, GrantRow, MAX_GRANT, Record, ReportBody},
    event::{Decision, LeaseOut, LeaseView, Out, ToAgent},
    gate::GateNo,
    id::{AgentId, Cell, FencingToken, Incarnation, JobNo, LeaseToken, Millis, Nonce, Now},
    session::is_held,
    words::{AttemptKind, FailureReason, LeaseStage, ReceiptReason, RevokeReason, Status},
};

/// A live lease.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub token: LeaseToken,
    pub job: JobNo,
    pub cell: Cell,
    pub grant: FencingToken,
    pub agent: AgentId,
    /// The incarnation that was to receive it.
    pub granted_to: Incarnation,
    pub attempt: u32,
    pub stage: LeaseStage,
    /// When it was granted, or restored.
    pub since: Millis,
    /// When it was handed to its stream, by this leader.
    pub said_at: Option<Millis>,
    /// When it is revoked if no report has come.
    pub timeout_at: Option<Millis>,
    pub gate: Option<GateNo>,
}

/// A grant's row in memory: which slots are live, and which are not blank.
#[derive(Debug)]
pub(crate) struct Grant {
    pub live: u64,
    pub full: u64,
    pub len: u32,
}

impl Core {
    /// The live lease of this token, if it is this agent's.
    pub(crate) fn live(&self, agent: &AgentId, token: LeaseToken) -> Option<&Lease> {
        self.leases.get(&token.fencing).filter(|l| l.token == token && l.agent == *agent)
    }

    /// Grants cells of one job to one agent: one row, one outbox entry a lease.
    pub(crate) fn grant(
        &mut self,
        at: Now,
        agent: &AgentId,
        no: JobNo,
        cells: &[(Cell, GateNo)],
        nonce: Nonce,
        out: &mut Decision,
    ) {
        assert!(!cells.is_empty() && cells.len() <= MAX_GRANT, "a grant has 1 to {MAX_GRANT} leases");
        let first = FencingToken::new(self.epoch, self.counter);
        self.counter += cells.len() as u32;
        let full = u64::MAX >> (MAX_GRANT - cells.len());
        self.grants.insert(first, Grant { live: full, full, len: cells.len() as u32 });
        let (Some(session), Some(job)) = (self.sessions.get_mut(agent), self.jobs.get_mut(&no)) else {
            return;
        };
        out.batch.grant(
            no,
            GrantRow {
                first,
                nonce,
                ttl_ms: self.config.ttl_ms,
                agent: agent.clone(),
                incarnation: session.incarnation,
                job: job.row.id.clone(),
                cells: cells.iter().map(|(cell, _)| *cell).collect(),
            },
        );
        for (slot, &(cell, gate)) in (0..).zip(cells) {
            let token = LeaseToken { fencing: first.offset(slot), nonce };
            let attempt = job.history.get(&cell).map_or(1, |h| h.last + 1);
            job.note_leased(cell, token.fencing);
            session.leases.insert(token.fencing);
            self.gates.enter(gate, 1);
            let lease = Lease {
                token,
                job: no,
                cell,
                grant: first,
                agent: agent.clone(),
                granted_to: session.incarnation,
                attempt,
                stage: LeaseStage::Offered,
                since: at.mono,
                said_at: None,
                timeout_at: None,
                gate: Some(gate),
            };
            self.leases.insert(token.fencing, lease);
            if let Some(stream) = session.stream {
                out.outbox.push(Out::Agent(
                    stream,
                    ToAgent::Lease(LeaseOut {
                        token,
                        job: job.row.id.clone(),
                        cell,
                        attempt,
                        run_timeout_ms: job.row.policy.run_timeout_ms,
                        cold_timeout_ms: job.row.policy.cold_timeout_ms,
                    }),
                ));
            }
        }
        self.touch(no);
    }

    /// Leases were handed to their streams: from here their agent's time to acknowledge them counts
    /// (rule S2), and not from a commit that may be slow.
    pub(crate) fn said(&mut self, at: Now, tokens: &[FencingToken]) {
        for token in tokens {
            let offered = |l: &&mut Lease| l.stage == LeaseStage::Offered && l.said_at.is_none();
            let Some(lease) = self.leases.get_mut(token).filter(offered) else {
                continue;
            };
            lease.said_at = Some(at.mono);
            if let Some(session) = self.sessions.get_mut(&lease.agent) {
                session.offered.insert((at.mono, *token));
            }
        }
    }

    /// A lease is further than it was; a lease never goes back.
    pub(crate) fn note_stage(&mut self, agent: &AgentId, token: FencingToken, stage: LeaseStage) {
        let Some(lease) = self.leases.get_mut(&token).filter(|l| l.agent == *agent) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(agent) else {
            return;
        };
        if stage <= lease.stage {
            return;
        }
        let before = std::mem::replace(&mut lease.stage, stage);
        if let Some(said) = lease.said_at {
            session.offered.remove(&(said, token));
        }
        match (is_held(before), is_held(stage)) {
            (false, true) => session.holds(token),
            (true, false) => session.holds_no_more(token),
            _ => {}
        }
    }

    /// A run begins: from here its timeout counts.
    pub(crate) fn note_started(&mut self, at: Now, agent: &AgentId, token: FencingToken) {
        self.note_stage(agent, token, LeaseStage::Started);
        let Some(lease) = self.leases.get_mut(&token).filter(|l| l.agent == *agent) else {
            return;
        };
        let Some(job) = self.jobs.get(&lease.job) else {
            return;
        };
        let policy = &job.row.policy;
        // The agent knows whether its model is warm and enforces the right one; this is the backstop.
        let run = policy.run_timeout_ms.max(policy.cold_timeout_ms);
        // It counts from the first word of it: a stream that breaks again and again prolongs nothing.
        if lease.stage == LeaseStage::Started && lease.timeout_at.is_none() {
            let timeout = at.mono.after(run + self.config.ttl_ms + self.config.margin_ms);
            lease.timeout_at = Some(timeout);
            self.timeouts.insert((timeout, token));
        }
    }

    /// Takes a lease out of every set but the tables: the caller records its cell or blanks its slot.
    pub(crate) fn unlease(&mut self, token: FencingToken) -> Option<Lease> {
        let lease = self.leases.remove(&token)?;
        if let Some(session) = self.sessions.get_mut(&lease.agent) {
            session.leases.remove(&token);
            if let Some(said) = lease.said_at {
                session.offered.remove(&(said, token));
            }
            if is_held(lease.stage) {
                session.holds_no_more(token);
            }
            session.alone &= !session.leases.is_empty();
        }
        if let Some(at) = lease.timeout_at {
            self.timeouts.remove(&(at, token));
        }
        if let Some(gate) = lease.gate {
            self.gates.leave(gate);
        }
        if let Some(job) = self.jobs.get_mut(&lease.job) {
            job.note_unleased(lease.cell);
        }
        if let Some(grant) = self.grants.get_mut(&lease.grant) {
            grant.live &= !slot_bit(lease.grant, token);
        }
        self.touch(lease.job);
        Some(lease)
    }

    /// The grant's row goes with its last live lease.
    fn end_grant(&mut self, grant: FencingToken, out: &mut Decision) {
        if self.grants.get(&grant).is_some_and(|g| g.live == 0) {
            self.grants.remove(&grant);
            out.batch.end(grant);
        }
    }

    /// Records a cell under the lease that has just been taken out of the sets.
    pub(crate) fn record(&mut self, at: Now, lease: &Lease, body: Arc<ReportBody>, out: &mut Decision) {
        let Some(job) = self.jobs.get_mut(&lease.job) else {
            return;
        };
        let Some(key) = job.row.matrix.key(lease.cell) else {
            return;
        };
        job.note_recorded(lease.cell, body.status() == Status::Failed);
        out.batch.record(
            lease.job,
            Record {
                job: job.row.id.clone(),
                cell: lease.cell,
                key,
                lease: lease.token,
                grant: lease.grant,
                attempt: lease.attempt,
                agent: lease.agent.clone(),
                body,
                recorded_at: at.wall,
            },
        );
        if job.is_complete() {
            job.completed_at = Some(at.wall);
            out.batch.change(&job.row.id).completed_at = Some(Some(at.wall));
        }
        self.end_grant(lease.grant, out);
    }

    /// Blanks the slot of the lease that has just been taken out of the sets: its token is never live again (rule C9).
    pub(crate) fn blank(&mut self, lease: &Lease, out: &mut Decision) {
        self.blank_slot(lease.job, lease.cell, lease.grant, lease.token.fencing, out);
        self.end_grant(lease.grant, out);
    }
    pub(crate) fn blank_slot(
        &mut self,
        no: JobNo,
        cell: Cell,
        grant: FencingToken,
        token: FencingToken,
        out: &mut Decision,
    ) {
        let Some(row) = self.grants.get_mut(&grant) else {
            return;
        };
        let bit = slot_bit(grant, token);
        if row.full & bit != 0 {
            row.full &= !bit;
            out.batch.blank(no, cell, grant, (token.get() - grant.get()) as u32);
        }
    }

    /// The cell of an ended lease waits again.
    pub(crate) fn wait_again(&mut self, at: Now, lease: &Lease, wait_ms: u64) {
        if let Some(job) = self.jobs.get_mut(&lease.job) {
            job.put_back(lease.cell, at.mono.after(wait_ms), at.mono);
        }
    }

    /// An entry of the history, for the lease that has just ended.
    pub(crate) fn note_attempt(&mut self, at: Now, lease: &Lease, kind: AttemptKind, noted: Noted, out: &mut Decision) {
        let Some(job) = self.jobs.get(&lease.job) else {
            return;
        };
        let Some(key) = job.row.matrix.key(lease.cell) else {
            return;
        };
        out.batch.attempt(AttemptRow {
            job: job.row.id.clone(),
            cell: lease.cell,
            key,
            token: lease.token.fencing,
            kind,
            attempt: lease.attempt,
            counted: noted.counted,
            in_company: noted.in_company,
            agent: lease.agent.clone(),
            reason: noted.reason,
            fenced: noted.fenced,
            body: noted.body,
            retry_at: noted.wait_ms.map(|ms| at.wall.after(ms)),
            ended_at: at.wall,
        });
    }

    /// Tells the agent that a lease has ended. Call it while the lease is still known.
    pub(crate) fn revoke(&mut self, token: FencingToken, reason: RevokeReason, out: &mut Decision) {
        let Some(lease) = self.leases.get(&token) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&lease.agent) else {
            return;
        };
        session.stopping.insert(token, lease.job);
        if let Some(stream) = session.stream {
            out.outbox.push(Out::Agent(stream, ToAgent::Revoke(lease.token, reason)));
        }
    }

    /// Live leases in the order of their tokens, after `after`.
    pub(crate) fn lease_views(&self, now: Millis, after: Option<FencingToken>, limit: usize) -> Vec<LeaseView> {
        let leases = self.leases.iter().filter(|(t, _)| after.is_none_or(|a| **t > a)).take(limit);
        let view = |(&token, lease): (&FencingToken, &Lease)| {
            let job = self.jobs.get(&lease.job)?;
            Some(LeaseView {
                job: job.row.id.clone(),
                key: job.row.matrix.key(lease.cell)?,
                token,
                agent: lease.agent.clone(),
                attempt: lease.attempt,
                stage: lease.stage,
                age_ms: now.since(lease.since),
            })
        };
        leases.filter_map(view).collect()
    }
}

/// What an entry of the history says beside its lease.
#[derive(Default)]
pub(crate) struct Noted {
    pub counted: bool,
    pub in_company: bool,
    pub reason: Option<FailureReason>,
    pub fenced: Option<ReceiptReason>,
    pub body: Option<Arc<ReportBody>>,
    /// The wait before the next attempt; `None` if there is none.
    pub wait_ms: Option<u64>,
}

fn slot_bit(grant: FencingToken, token: FencingToken) -> u64 {
    1 << (token.get() - grant.get())
}
