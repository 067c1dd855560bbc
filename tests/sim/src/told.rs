//! What agents and callers were told, and whether it stays true: promises 5, 6 and 7.

use std::collections::BTreeMap;

use semel_core::{
    event::{Answer, JobView, LeaseOut, Receipt},
    id::{AgentId, Cell, Digest, FencingToken, Incarnation, JobId, LeaseToken},
    tables::Tables,
    words::{AttemptKind, JobState, ReceiptKind},
};

use crate::{
    checkers::{Books, Check, Standing, broken, hold},
    client::{Call, Clients, Plan},
};

/// What was said, over every life of the coordinator.
#[derive(Debug, Default)]
pub struct Told {
    /// The highest fencing token ever said for a cell.
    highest: BTreeMap<(JobId, Cell), FencingToken>,
    /// When a lease was said, in the world's milliseconds.
    said_at: BTreeMap<FencingToken, u64>,
    /// Reports whose recording was said.
    recorded: BTreeMap<FencingToken, Digest>,
    /// How a report was answered first.
    answered: BTreeMap<(LeaseToken, Digest), ReceiptKind>,
    /// Jobs that were said to be accepted.
    accepted: BTreeMap<JobId, Digest>,
    /// Jobs that were said to have been created by this very call.
    created: BTreeMap<JobId, Digest>,
    /// Jobs that were said to be cancelled: and how often they had been opened again by then.
    cancelled: BTreeMap<JobId, u32>,
}

impl Told {
    /// A backup was restored: what was said since it was made is not in it, but for the numbers of leases.
    pub fn forget(&mut self) {
        let (highest, said_at) = (std::mem::take(&mut self.highest), std::mem::take(&mut self.said_at));
        *self = Self { highest, said_at, ..Self::default() };
    }

    /// A lease is said.
    pub fn lease(&mut self, now: u64, lease: &LeaseOut, books: &Books) -> Check {
        let token = lease.token.fencing;
        self.said_at.insert(token, now);
        let key = (lease.job.clone(), lease.cell);
        let before = self.highest.insert(key, token);
        hold(before.is_none_or(|b| b < token), "P7", || {
            format!("job {} cell {}: {token} after {before:?}", lease.job, lease.cell.0)
        })?;
        // It may have ended since: where only a later commit proved its own (rule C4), its Revoke follows.
        let stored = books
            .slots
            .get(&token)
            .is_some_and(|s| s.job == lease.job && s.cell == lease.cell && s.nonce == lease.token.nonce);
        hold(stored, "P5", || format!("lease {token} is said and not in the tables"))
    }

    /// A lease is said to be taken back because it was not acknowledged in `ack_ms`.
    pub fn taken_back(&self, now: u64, token: FencingToken, ack_ms: u64) -> Check {
        let said_at = self.said_at.get(&token);
        hold(said_at.is_some_and(|at| now >= at + ack_ms), "S2", || {
            format!("{token} is taken back at {now}, was said at {said_at:?}, and its agent has {ack_ms} ms")
        })
    }

    /// A receipt is said to a report of this digest.
    pub fn receipt(&mut self, receipt: &Receipt, digest: Digest, forged: bool, books: &Books) -> Check {
        let token = receipt.token.fencing;
        let kind = receipt.kind;
        hold(!forged || kind == ReceiptKind::Fenced, "C8", || format!("a forged report of {token}: {kind:?}"))?;
        let slot = books.slots.get(&token).filter(|s| s.nonce == receipt.token.nonce);
        let live = slot.is_some_and(|s| s.standing == Standing::Live);
        hold(!live, "P5", || format!("{kind:?} is said of {token}, which is live in the tables"))?;
        let is_recorded = books.is_recorded(token, digest);
        match kind {
            ReceiptKind::Recorded | ReceiptKind::AlreadyRecorded => {
                hold(is_recorded, "P5", || format!("{kind:?} is said of {token}, and is not in the tables"))?;
                self.recorded.insert(token, digest);
            }
            ReceiptKind::Retrying | ReceiptKind::Fenced => {
                hold(!is_recorded, "C10", || format!("{kind:?} is said of {token}, which is recorded"))?;
            }
        }
        let first = *self.answered.entry((receipt.token, digest)).or_insert(kind);
        let class = |kind| match kind {
            ReceiptKind::AlreadyRecorded => ReceiptKind::Recorded,
            other => other,
        };
        hold(class(first) == class(kind), "C10", || format!("report of {token}: {first:?} first, then {kind:?}"))
    }

    /// A welcome is said.
    pub fn welcome(agent: &AgentId, incarnation: Incarnation, number: u64, books: &Books) -> Check {
        let stored = books.incarnations.get(&(agent.clone(), incarnation));
        hold(stored == Some(&number), "P5", || format!("agent {agent}: welcome {number}, stored {stored:?}"))
    }

    /// A call is answered.
    pub fn answer(&mut self, call: &Call, answer: &Answer, clients: &Clients, books: &Books) -> Check {
        match (call, answer) {
            (Call::Submit(plan), Answer::Submitted(view, created)) => {
                self.submitted(&clients.plans[*plan], view, *created, books)
            }
            (Call::Submit(plan), Answer::OtherSpec) => {
                let plan = &clients.plans[*plan];
                let stored = books.jobs.get(&plan.id).map(|b| b.plan.digest);
                hold(stored.is_some_and(|s| s != plan.digest), "P6", || format!("job {}: refused as other", plan.id))
            }
            (Call::Cancel(id), Answer::Cancelled(view, _)) => {
                let Some(book) = books.jobs.get(id) else { return broken("P5", format!("{id} cancelled, not there")) };
                if view.state == JobState::Cancelled {
                    hold(book.state == JobState::Cancelled || book.retries > 0, "P5", || {
                        format!("job {id} is said to be cancelled and is {:?}", book.state)
                    })?;
                    self.cancelled.insert(id.clone(), book.retries);
                }
                sums(view)
            }
            (Call::Retry { job, .. }, Answer::Retried(view, moved)) => {
                let replaced = books.attempts.iter().filter(|(_, kind, _)| *kind == AttemptKind::Replaced).count();
                hold(replaced as u64 >= *moved, "P5", || format!("job {job}: {moved} moved, {replaced} stored"))?;
                sums(view)
            }
            (_, Answer::Job(view) | Answer::Pending(view, _)) => {
                hold(books.jobs.contains_key(&view.id), "P5", || format!("job {} is shown and not there", view.id))?;
                if let Answer::Pending(_, groups) = answer {
                    let (waits, counts) = (groups.iter().map(|g| g.cells).sum::<u32>(), view.counts);
                    hold(waits == counts.leased + counts.pending + counts.not_run, "P4", || {
                        format!("job {}: reasons for {waits} of {counts:?}", view.id)
                    })?;
                }
                sums(view)
            }
            (_, Answer::Jobs(views)) => views.iter().try_for_each(sums),
            _ => Ok(()),
        }
    }

    fn submitted(&mut self, plan: &Plan, view: &JobView, created: bool, books: &Books) -> Check {
        let id = &plan.id;
        hold(view.digest == plan.digest, "P6", || format!("job {id}: another specification is accepted as this one"))?;
        let stored = books.jobs.get(id).map(|b| b.plan.digest);
        hold(stored == Some(plan.digest), "P5", || format!("job {id} is accepted and not in the tables"))?;
        self.accepted.insert(id.clone(), plan.digest);
        if created {
            hold(self.created.insert(id.clone(), plan.digest).is_none(), "P6", || format!("job {id}: created twice"))?;
        }
        sums(view)
    }

    /// Promise 5, after a crash or a failover: what was said is still in the tables.
    pub fn still_true(&self, books: &Books) -> Check {
        for (token, digest) in &self.recorded {
            hold(books.is_recorded(*token, *digest), "P5", || format!("{token} was said to be recorded, and is gone"))?;
        }
        for (id, digest) in &self.accepted {
            let stored = books.jobs.get(id).map(|b| b.plan.digest);
            hold(stored == Some(*digest), "P5", || format!("job {id} was said to be accepted, and is gone"))?;
        }
        for (id, retries) in &self.cancelled {
            let Some(book) = books.jobs.get(id) else { continue };
            hold(book.state == JobState::Cancelled || book.retries > *retries, "P5", || {
                format!("job {id} was said to be cancelled, and is {:?}", book.state)
            })?;
        }
        Ok(())
    }
}

impl Books {
    /// A lease is live in the tables.
    pub fn is_live(&self, token: FencingToken) -> bool {
        self.slots.get(&token).is_some_and(|slot| slot.standing == Standing::Live)
    }

    /// A report is its cell's record, or was until a retry moved it.
    pub fn is_recorded(&self, token: FencingToken, digest: Digest) -> bool {
        let Some(slot) = self.slots.get(&token) else { return false };
        let cell = self.jobs.get(&slot.job).and_then(|b| b.cells.get(slot.cell.0 as usize));
        cell.and_then(|c| c.record).is_some_and(|(t, d, _)| t == token && d == digest)
            || self.attempts.contains(&(token, AttemptKind::Replaced, digest))
    }

    /// The tables say what the books say.
    pub fn compare(&self, tables: &Tables) -> Check {
        let recorded: usize = self.jobs.values().map(|b| b.recorded as usize).sum();
        hold(recorded == tables.executions.len(), "P1", || {
            format!("{recorded} records in the books, {} in the tables", tables.executions.len())
        })?;
        for ((job, cell), record) in &tables.executions {
            let book = self.jobs.get(job).and_then(|b| b.cells.get(cell.0 as usize)).and_then(|c| c.record);
            let same = book.is_some_and(|(t, d, _)| t == record.lease.fencing && d == record.body.digest);
            hold(same, "P1", || format!("job {job} cell {}: the record changed", cell.0))?;
        }
        let mut live = 0;
        for (first, grant) in &tables.grants {
            for (slot, cell) in (0..).zip(&grant.slots) {
                let Some(cell) = cell else { continue };
                let token = first.offset(slot);
                if tables.executions.contains_key(&(grant.row.job.clone(), *cell)) {
                    continue;
                }
                live += 1;
                let standing = self.slots.get(&token).map(|s| s.standing);
                hold(standing == Some(Standing::Live), "C9", || {
                    format!("{token} is live in the tables: {standing:?}")
                })?;
            }
        }
        let leased: u32 = self.jobs.values().map(|b| b.leased).sum();
        hold(live == leased, "P2", || format!("{leased} leases in the books, {live} in the tables"))
    }
}

/// Promise 4, of an answer.
fn sums(view: &JobView) -> Check {
    let c = view.counts;
    hold(c.expected == c.recorded + c.leased + c.pending + c.not_run, "P4", || format!("job {}: {c:?}", view.id))
}
