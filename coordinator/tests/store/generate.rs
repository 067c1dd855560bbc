//! Random batches from a seed: valid ones, and ones that are wrong in one way.

use std::{collections::BTreeSet, sync::Arc};

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use semel_core::{
    batch::{
        AgentRow, AttemptRow, AuditRow, Batch, Failure, JobChange, JobRow, Outcome, Record, Replaced, ReportBody,
        Timings,
    },
    id::{AgentId, Cell, Digest, Epoch, FencingToken, Incarnation, JobId, Nonce, RegionId, UnixMs},
    tables::{StoredGrant, Tables},
    words::{AttemptKind, FailureReason, JobState, ReceiptReason, Stage},
};

use crate::support::{grant, job, record, spec, token};

/// Makes batches that fit the tables as they are.
pub struct Generator {
    pub rng: SmallRng,
    next_token: u32,
    next_agent: u64,
}

/// A live lease: its grant, slot and cell.
type Lease = (StoredGrant, u32, Cell);

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), next_token: 0, next_agent: 0 }
    }

    fn leases(&mut self, tables: &Tables) -> Vec<Lease> {
        let mut leases: Vec<_> = tables
            .grants
            .values()
            .flat_map(|g| (0..).zip(&g.slots).filter_map(move |(slot, cell)| Some((g.clone(), slot, (*cell)?))))
            .filter(|(g, _, cell)| !tables.executions.contains_key(&(g.row.job.clone(), *cell)))
            .collect();
        leases.shuffle(&mut self.rng);
        leases
    }

    /// A batch that the tables take. Each key is touched once (rule C3).
    pub fn batch(&mut self, tables: &Tables, epoch: Epoch) -> Batch {
        let mut batch = Batch::default();
        self.job_parts(tables, &mut batch);
        let leases = self.leases(tables);
        let end = leases.len().min(self.rng.random_range(0..12));
        for lease in &leases[..end] {
            match self.rng.random_range(0..3) {
                0 => self.lose(tables, lease, &mut batch),
                _ => batch.records.push(self.record(tables, lease)),
            }
        }
        self.replace(tables, &mut batch);
        let leased: BTreeSet<_> = leases.iter().map(|(g, _, cell)| (g.row.job.clone(), *cell)).collect();
        self.grant(tables, &leased, epoch, &mut batch);
        self.end(tables, &mut batch);
        if self.rng.random_bool(0.2) {
            self.next_agent += 1;
            batch.agents.push(self.agent(self.next_agent));
        }
        self.shuffle(&mut batch);
        batch
    }

    /// The order of the rows of a part makes no difference.
    pub fn shuffle(&mut self, batch: &mut Batch) {
        batch.records.shuffle(&mut self.rng);
        batch.replaced.shuffle(&mut self.rng);
        batch.grants.shuffle(&mut self.rng);
        batch.attempts.shuffle(&mut self.rng);
        batch.agents.shuffle(&mut self.rng);
    }

    fn job_parts(&mut self, tables: &Tables, batch: &mut Batch) {
        if tables.jobs.is_empty() || (tables.jobs.len() < 3 && self.rng.random_bool(0.2)) {
            batch.jobs.push(job(&format!("job-{}", tables.jobs.len()), &spec(4, 3)));
        }
        if let Some(id) = tables.jobs.keys().next_back().filter(|_| self.rng.random_bool(0.3)) {
            let at = self.rng.random_range(0..2).eq(&0).then_some(UnixMs(7));
            let change = JobChange {
                state: Some(if at.is_some() { JobState::Cancelled } else { JobState::Open }),
                paused: self.rng.random_bool(0.5).then_some(true),
                closed_at: Some(at),
                completed_at: self.rng.random_bool(0.5).then_some(at),
                deadline_at: self.rng.random_bool(0.5).then_some(UnixMs(9)),
            };
            batch.job_changes.insert(id.clone(), change);
            let detail = format!("{:?}", self.rng.random::<u8>());
            let actor = "test".into();
            batch.audit.push(AuditRow { at: UnixMs(3), actor, action: "cancel", job: Some(id.clone()), detail });
        }
    }

    fn output(&mut self) -> Vec<u8> {
        let len = if self.rng.random_bool(0.03) { 70_000 } else { self.rng.random_range(0..40) };
        (0..len).map(|_| self.rng.random()).collect()
    }

    fn record(&mut self, tables: &Tables, (g, slot, _): &Lease) -> Record {
        let output = self.output();
        let mut record = record(&tables.jobs[&g.row.job].row, &g.row, *slot, &output);
        record.attempt = self.rng.random_range(1..4);
        if self.rng.random_bool(0.3) {
            record.body = Arc::new(self.failure());
        }
        record
    }

    fn failure(&mut self) -> ReportBody {
        let message = self.output();
        ReportBody {
            digest: Digest(self.rng.random()),
            input_digest: Digest::default(),
            served: None,
            timings: Timings::default(),
            outcome: Outcome::Failed(Failure {
                reason: *pick(&mut self.rng, FailureReason::ALL),
                stage: *pick(&mut self.rng, Stage::ALL),
                code: "503".into(),
                message: message.into(),
                retryable: self.rng.random_bool(0.5),
            }),
        }
    }

    fn lose(&mut self, tables: &Tables, lease: &Lease, batch: &mut Batch) {
        let (g, slot, cell) = lease;
        *batch.blanks.entry(g.row.first).or_default() |= 1 << slot;
        let attempt = self.attempt(&tables.jobs[&g.row.job].row, *cell, g.row.first.offset(*slot));
        batch.attempts.push(attempt);
    }

    pub fn attempt(&mut self, job: &JobRow, cell: Cell, token: FencingToken) -> AttemptRow {
        let kinds = [AttemptKind::Failed, AttemptKind::Lost, AttemptKind::Fenced, AttemptKind::Closed];
        let kind = *pick(&mut self.rng, &kinds);
        AttemptRow {
            job: job.id.clone(),
            cell,
            key: job.matrix.key(cell).unwrap(),
            token,
            kind,
            attempt: self.rng.random_range(0..4),
            counted: self.rng.random_bool(0.5),
            in_company: self.rng.random_bool(0.5),
            agent: AgentId::new("agent-1"),
            reason: self.rng.random_bool(0.5).then_some(FailureReason::LeaseLost),
            fenced: (kind == AttemptKind::Fenced).then_some(ReceiptReason::JobCancelled),
            body: self.rng.random_bool(0.5).then(|| Arc::new(self.failure())),
            retry_at: self.rng.random_bool(0.5).then_some(UnixMs(5)),
            ended_at: UnixMs(6),
        }
    }

    fn replace(&mut self, tables: &Tables, batch: &mut Batch) {
        for ((id, cell), record) in &tables.executions {
            if self.rng.random_bool(0.05) {
                let token = record.lease.fencing;
                batch.replaced.push(Replaced { job: id.clone(), cell: *cell, token, at: UnixMs(8) });
                let slot = token.get() - record.grant.get();
                if tables.grants.get(&record.grant).is_some_and(|g| g.slots[slot as usize].is_some()) {
                    *batch.blanks.entry(record.grant).or_default() |= 1 << slot;
                }
            }
        }
    }

    fn grant(&mut self, tables: &Tables, leased: &BTreeSet<(JobId, Cell)>, epoch: Epoch, batch: &mut Batch) {
        for (id, stored) in &tables.jobs {
            let touched: BTreeSet<_> = batch.replaced.iter().filter(|r| r.job == *id).map(|r| r.cell).collect();
            let mut free: Vec<_> = (0..stored.row.matrix.expected())
                .map(Cell)
                .filter(|c| !leased.contains(&(id.clone(), *c)) && !touched.contains(c))
                .filter(|c| !tables.executions.contains_key(&(id.clone(), *c)))
                .collect();
            free.shuffle(&mut self.rng);
            free.truncate(self.rng.random_range(0..9));
            if !free.is_empty() {
                let first = token(epoch, self.next_token);
                self.next_token += free.len() as u32;
                batch.grants.push(grant(&stored.row, first, self.rng.random(), free));
            }
        }
    }

    /// Grants of which no slot is live any more go, most of the time.
    fn end(&mut self, tables: &Tables, batch: &mut Batch) {
        for (first, g) in &tables.grants {
            let mask = batch.blanks.get(first).copied().unwrap_or(0);
            let live = (0..).zip(&g.slots).any(|(slot, cell)| {
                let of_slot = |r: &Record| r.grant == *first && Some(r.cell) == *cell;
                cell.is_some_and(|c| !tables.executions.contains_key(&(g.row.job.clone(), c)))
                    && mask & (1u64 << slot) == 0
                    && !batch.records.iter().any(of_slot)
            });
            if !live && self.rng.random_bool(0.8) {
                batch.blanks.remove(first);
                batch.ended.insert(*first);
            }
        }
    }

    pub fn agent(&mut self, number: u64) -> AgentRow {
        AgentRow {
            agent: AgentId::new("agent-1"),
            incarnation: Incarnation(u128::from(number).to_be_bytes()),
            number,
            region: RegionId::new("us-east"),
            admitted_at: UnixMs(4),
        }
    }

    /// Adds a record that names its lease wrongly.
    fn spoil_a_record(&mut self, kind: u32, tables: &Tables, free: &Lease, batch: &mut Batch) -> Option<&'static str> {
        let mut record = self.record(tables, free);
        let name = match kind {
            0 => {
                record.lease.nonce = Nonce([0xEE; 16]);
                "wrong nonce"
            }
            1 => {
                record.lease.fencing = record.lease.fencing.offset(1);
                "another lease's slot"
            }
            2 => {
                record.grant = record.lease.fencing.offset(1);
                "a slot before its grant"
            }
            _ => {
                record.job = JobId::new("job-9");
                "another job's lease"
            }
        };
        batch.records.push(record);
        Some(name)
    }

    /// Makes a batch wrong in one way, named; `None` if the tables hold nothing to do it with.
    pub fn spoil(&mut self, tables: &Tables, batch: &mut Batch) -> Option<&'static str> {
        let leases = self.leases(tables);
        let free = leases.iter().find(|(g, slot, cell)| {
            batch.blanks.get(&g.row.first).is_none_or(|m| m & (1 << slot) == 0)
                && !batch.records.iter().any(|r| r.job == g.row.job && r.cell == *cell)
        });
        let kind = self.rng.random_range(0..14);
        if kind < 4 {
            return self.spoil_a_record(kind, tables, free?, batch);
        }
        match kind {
            4 => {
                let blank = tables.grants.values().find_map(|g| {
                    let slot = g.slots.iter().position(Option::is_none)?;
                    Some((g.clone(), slot as u32, *g.row.cells.get(slot)?))
                })?;
                batch.records.push(self.record(tables, &blank));
                Some("record of a blanked slot")
            }
            5 => {
                let again = tables.executions.values().find(|r| tables.grants.contains_key(&r.grant))?;
                batch.records.push(again.clone());
                Some("a key recorded twice")
            }
            6 => {
                let row = batch.jobs.first().cloned().or_else(|| Some(tables.jobs.values().next()?.row.clone()))?;
                batch.jobs.push(row);
                Some("a job inserted twice")
            }
            7 => {
                batch.job_changes.insert(JobId::new("none"), JobChange::default());
                Some("a change of no job")
            }
            8 => {
                let (g, slot) =
                    tables.grants.values().find_map(|g| Some((g, g.slots.iter().position(Option::is_none)?)))?;
                *batch.blanks.entry(g.row.first).or_default() |= 1 << slot;
                batch.ended.remove(&g.row.first);
                Some("a slot blanked twice")
            }
            9 => {
                batch.ended.insert(FencingToken::new(Epoch::MAX, 0));
                Some("no grant to end")
            }
            10 => {
                let row = tables.grants.values().find(|g| !batch.ended.contains(&g.row.first))?.row.clone();
                batch.grants.push(row);
                Some("a grant inserted twice")
            }
            11 => {
                let again = tables.attempts.values().find(|a| a.kind != AttemptKind::Replaced)?;
                batch.attempts.push(again.clone());
                Some("an attempt noted twice")
            }
            12 => {
                batch.agents.push(tables.agents.values().next()?.clone());
                Some("an incarnation admitted twice")
            }
            _ => {
                let untouched = |r: &&Record| !batch.replaced.iter().any(|p| p.job == r.job && p.cell == r.cell);
                let r = tables.executions.values().find(untouched)?;
                let token = r.lease.fencing.offset(1);
                batch.replaced.push(Replaced { job: r.job.clone(), cell: r.cell, token, at: UnixMs(8) });
                Some("another token's record replaced")
            }
        }
    }
}

fn pick<'a, T>(rng: &mut SmallRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}
