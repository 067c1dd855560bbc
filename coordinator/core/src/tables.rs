//! The tables in memory, and the commit rule as one pure function over them.
//!
//! It is the simulator's store, the oracle that the SQL stores are tested against, and the meaning
//! of every row that they hold. A commit is whole or not at all (rule C2).

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;

use crate::{
    batch::{AgentRow, AttemptRow, AuditRow, Batch, GrantRow, JobChange, JobRow, Record, Replaced},
    event::{Committed, Past, PastRow},
    id::{AgentId, Cell, Digest, Epoch, FencingToken, Incarnation, JobId, Seq, UnixMs},
    words::{AttemptKind, FailureReason, JobState, Status},
};

/// A row of `jobs`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredJob {
    /// What was inserted.
    pub row: JobRow,
    /// Its state.
    pub state: JobState,
    /// Whether it is paused.
    pub paused: bool,
    /// When it was closed.
    pub closed_at: Option<UnixMs>,
    /// When its last cell was recorded.
    pub completed_at: Option<UnixMs>,
}

impl StoredJob {
    /// Applies a change.
    pub fn apply(&mut self, change: &JobChange) {
        self.state = change.state.unwrap_or(self.state);
        self.paused = change.paused.unwrap_or(self.paused);
        self.closed_at = change.closed_at.unwrap_or(self.closed_at);
        self.completed_at = change.completed_at.unwrap_or(self.completed_at);
        self.row.deadline_at = change.deadline_at.unwrap_or(self.row.deadline_at);
    }
}

/// A row of `lease_grants`: a slot is blank once its lease ended otherwise than by a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredGrant {
    /// What was inserted; `cells` as it was then.
    pub row: GrantRow,
    /// The slots now.
    pub slots: Vec<Option<Cell>>,
}

impl StoredGrant {
    /// The token of the `slot`-th lease.
    pub fn token(&self, slot: usize) -> FencingToken {
        self.row.first.offset(slot as u32)
    }
}

/// A row of `attempts` as far as a budget depends on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredAttempt {
    /// The cell.
    pub cell: Cell,
    /// The token.
    pub token: FencingToken,
    /// The kind.
    pub kind: AttemptKind,
    /// The attempt's number.
    pub attempt: u32,
    /// Whether it counts.
    pub counted: bool,
    /// Whether it died in company.
    pub in_company: bool,
    /// Why.
    pub reason: Option<FailureReason>,
    /// Not to be leased again before.
    pub retry_at: Option<UnixMs>,
}

/// A job as a new leader reads it.
#[derive(Clone, Debug)]
pub struct LoadedJob {
    /// Its row.
    pub stored: StoredJob,
    /// The cells with a record.
    pub recorded: RoaringBitmap,
    /// Of those, the cells recorded as failed.
    pub failed: RoaringBitmap,
    /// The history, in the order of tokens; without fenced reports, which change no budget.
    pub attempts: Vec<StoredAttempt>,
}

/// Everything that a new leader reads, in one snapshot begun after its epoch was committed (rule L1).
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The jobs, in the order of their submission.
    pub jobs: Vec<LoadedJob>,
    /// The grants.
    pub grants: Vec<StoredGrant>,
    /// Every incarnation ever admitted.
    pub agents: Vec<AgentRow>,
}

/// Why a commit did not happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The row has a higher epoch: this coordinator is deposed.
    Deposed(Epoch),
    /// The row already says (epoch, seq): an earlier try was applied (rule C4: no proof).
    AlreadyApplied,
    /// No row, or this epoch with another seq: the database lost acknowledged writes.
    LostWrites,
    /// A part would have touched another number of rows than predicted: memory is wrong.
    WrongCount {
        /// The part.
        part: &'static str,
        /// Rows predicted.
        predicted: usize,
        /// Rows found.
        found: usize,
    },
}

/// The tables of one namespace.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Tables {
    /// `leadership`: epoch and seq.
    pub leadership: Option<(Epoch, Seq)>,
    /// `jobs`.
    pub jobs: BTreeMap<JobId, StoredJob>,
    /// `executions`: at most one row a key, by primary key (promise 1).
    pub executions: BTreeMap<(JobId, Cell), Record>,
    /// `lease_grants`.
    pub grants: BTreeMap<FencingToken, StoredGrant>,
    /// `attempts`, by (token, kind, digest) (rule C10).
    pub attempts: BTreeMap<(FencingToken, AttemptKind, Digest), AttemptRow>,
    /// `agents`.
    pub agents: BTreeMap<(AgentId, Incarnation), AgentRow>,
    /// `audit_log`.
    pub audit: Vec<AuditRow>,
    order: Vec<JobId>,
}

impl Tables {
    /// Takes the leadership: the epoch rises (rule L2). `None` when the epochs are used up.
    pub fn campaign(&mut self, seconds_since_2026: u32) -> Option<Epoch> {
        let epoch = Epoch::next(self.leadership.map(|(e, _)| e), seconds_since_2026)?;
        self.leadership = Some((epoch, Seq(0)));
        Some(epoch)
    }

    /// Commits a batch under (epoch, seq): whole, or not at all.
    #[expect(clippy::disallowed_methods, reason = "this is a commit")]
    pub fn commit(&mut self, epoch: Epoch, seq: Seq, batch: &Batch) -> Result<Committed, Refused> {
        match self.leadership {
            Some((e, s)) if e == epoch && s.next() == seq => {}
            Some((e, s)) if e == epoch && s == seq => return Err(Refused::AlreadyApplied),
            Some((e, _)) if e > epoch => return Err(Refused::Deposed(e)),
            _ => return Err(Refused::LostWrites),
        }
        self.check(batch)?;
        self.apply(batch);
        self.leadership = Some((epoch, seq));
        Ok(Committed::by_store(epoch, seq))
    }

    /// Counts the rows that each part would touch, against the tables as they stand before the batch.
    fn check(&self, batch: &Batch) -> Result<(), Refused> {
        let count = |part, predicted: usize, found: usize| {
            if predicted == found { Ok(()) } else { Err(Refused::WrongCount { part, predicted, found }) }
        };
        let new_jobs: BTreeSet<_> = batch.jobs.iter().map(|j| &j.id).filter(|id| !self.jobs.contains_key(id)).collect();
        count("jobs", batch.jobs.len(), new_jobs.len())?;
        let changed = batch.job_changes.keys().filter(|id| self.jobs.contains_key(*id)).count();
        count("job_changes", batch.job_changes.len(), changed)?;

        let keys: BTreeSet<_> = batch.records.iter().filter(|r| self.may_record(r)).map(|r| (&r.job, r.cell)).collect();
        count("records", batch.records.len(), keys.len())?;
        let replaced: BTreeSet<_> =
            batch.replaced.iter().filter(|r| self.may_replace(r)).map(|r| (&r.job, r.cell)).collect();
        count("replaced", batch.replaced.len(), replaced.len())?;

        let new_grants: BTreeSet<_> =
            batch.grants.iter().map(|g| g.first).filter(|first| !self.grants.contains_key(first)).collect();
        count("grants", batch.grants.len(), new_grants.len())?;
        let blanked = batch.blanks.iter().filter(|(first, mask)| self.may_blank(**first, **mask)).count();
        count("blanks", batch.blanks.len(), blanked)?;
        let ended = batch.ended.iter().filter(|first| self.grants.contains_key(first)).count();
        count("ended", batch.ended.len(), ended)?;

        let attempts: BTreeSet<_> = batch
            .attempts
            .iter()
            .map(|a| (a.token, a.kind, a.digest()))
            .filter(|key| !self.attempts.contains_key(key))
            .collect();
        count("attempts", batch.attempts.len(), attempts.len())?;
        let agents: BTreeSet<_> = batch
            .agents
            .iter()
            .map(|a| (a.agent.clone(), a.incarnation))
            .filter(|key| !self.agents.contains_key(key))
            .collect();
        count("agents", batch.agents.len(), agents.len())
    }

    /// Promises 1 and 3: the key has no record, and the lease's token and nonce are in its grant's slot.
    fn may_record(&self, record: &Record) -> bool {
        let slot = record.lease.fencing.get().checked_sub(record.grant.get());
        let leased = self.grants.get(&record.grant).is_some_and(|g| {
            let cell = slot.and_then(|s| g.slots.get(usize::try_from(s).ok()?)).copied().flatten();
            g.row.nonce == record.lease.nonce && g.row.job == record.job && cell == Some(record.cell)
        });
        leased && !self.executions.contains_key(&(record.job.clone(), record.cell))
    }

    fn may_replace(&self, replaced: &Replaced) -> bool {
        self.executions.get(&(replaced.job.clone(), replaced.cell)).is_some_and(|r| r.lease.fencing == replaced.token)
    }

    /// Every slot of the mask is there and not blank yet.
    fn may_blank(&self, first: FencingToken, mask: u64) -> bool {
        self.grants.get(&first).is_some_and(|g| {
            let full = (0..).zip(&g.slots).filter(|(_, cell)| cell.is_some()).fold(0u64, |m, (i, _)| m | 1 << i);
            mask & full == mask
        })
    }

    fn apply(&mut self, batch: &Batch) {
        for row in &batch.jobs {
            let stored = StoredJob {
                row: row.clone(),
                state: JobState::Open,
                paused: false,
                closed_at: None,
                completed_at: None,
            };
            self.jobs.insert(row.id.clone(), stored);
            self.order.push(row.id.clone());
        }
        for (id, change) in &batch.job_changes {
            if let Some(job) = self.jobs.get_mut(id) {
                job.apply(change);
            }
        }
        for replaced in &batch.replaced {
            if let Some(record) = self.executions.remove(&(replaced.job.clone(), replaced.cell)) {
                let row = replaced_row(&record, replaced.at);
                self.attempts.insert((row.token, row.kind, row.digest()), row);
            }
        }
        for record in &batch.records {
            self.executions.insert((record.job.clone(), record.cell), record.clone());
        }
        for row in &batch.grants {
            let slots = row.cells.iter().copied().map(Some).collect();
            self.grants.insert(row.first, StoredGrant { row: row.clone(), slots });
        }
        for (first, mask) in &batch.blanks {
            if let Some(grant) = self.grants.get_mut(first) {
                for (_, slot) in (0..).zip(&mut grant.slots).filter(|(i, _)| mask & (1u64 << i) != 0) {
                    *slot = None;
                }
            }
        }
        for first in &batch.ended {
            self.grants.remove(first);
        }
        for row in &batch.attempts {
            self.attempts.insert((row.token, row.kind, row.digest()), row.clone());
        }
        for row in &batch.agents {
            self.agents.insert((row.agent.clone(), row.incarnation), row.clone());
        }
        self.audit.extend(batch.audit.iter().cloned());
    }

    /// What a new leader reads.
    pub fn load(&self) -> Loaded {
        let jobs = self.order.iter().filter_map(|id| self.jobs.get(id)).map(|stored| self.load_job(stored)).collect();
        Loaded {
            jobs,
            grants: self.grants.values().cloned().collect(),
            agents: self.agents.values().cloned().collect(),
        }
    }

    fn load_job(&self, stored: &StoredJob) -> LoadedJob {
        let id = &stored.row.id;
        let (mut recorded, mut failed) = (RoaringBitmap::new(), RoaringBitmap::new());
        for ((_, cell), record) in self.executions.range((id.clone(), Cell(0))..=(id.clone(), Cell(u32::MAX))) {
            recorded.insert(cell.0);
            if record.body.status() == Status::Failed {
                failed.insert(cell.0);
            }
        }
        let attempts = self
            .attempts
            .values()
            .filter(|a| a.job == *id && a.kind != AttemptKind::Fenced)
            .map(|a| StoredAttempt {
                cell: a.cell,
                token: a.token,
                kind: a.kind,
                attempt: a.attempt,
                counted: a.counted,
                in_company: a.in_company,
                reason: a.reason,
                retry_at: a.retry_at,
            })
            .collect();
        let row = JobRow { spec: stored.row.spec.in_memory(), ..stored.row.clone() };
        LoadedJob { stored: StoredJob { row, ..stored.clone() }, recorded, failed, attempts }
    }

    /// What the tables say of a token (rule C10).
    pub fn past(&self, token: FencingToken) -> Past {
        let grant = self.grants.range(..=token).next_back().map(|(_, g)| g);
        let nonce = grant.filter(|g| token.get() - g.row.first.get() < g.slots.len() as u64).map(|g| g.row.nonce);
        let record = self.executions.values().find(|r| r.lease.fencing == token).map(|r| PastRow {
            job: r.job.clone(),
            cell: r.cell,
            key: r.key.clone(),
            digest: r.body.digest,
            attempt: r.attempt,
            agent: r.agent.clone(),
            nonce,
        });
        let low = (token, AttemptKind::ALL[0], Digest::default());
        let attempts = self
            .attempts
            .range(low..)
            .take_while(|((t, _, _), _)| *t == token)
            .map(|((_, kind, digest), a)| {
                let row = PastRow {
                    job: a.job.clone(),
                    cell: a.cell,
                    key: a.key.clone(),
                    digest: *digest,
                    attempt: a.attempt,
                    agent: a.agent.clone(),
                    nonce,
                };
                (*kind, a.fenced, row)
            })
            .collect();
        Past { record, attempts }
    }
}

/// The row of the history that a replaced record becomes.
pub fn replaced_row(record: &Record, at: UnixMs) -> AttemptRow {
    AttemptRow {
        job: record.job.clone(),
        cell: record.cell,
        key: record.key.clone(),
        token: record.lease.fencing,
        kind: AttemptKind::Replaced,
        attempt: record.attempt,
        counted: false,
        in_company: false,
        agent: record.agent.clone(),
        reason: None,
        fenced: None,
        body: Some(record.body.clone()),
        retry_at: None,
        ended_at: at,
    }
}
