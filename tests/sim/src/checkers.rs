//! A checker for each promise, by its number, on the world's own books: what was committed, kept apart
//! from the tables and from the core's memory, and compared with both.

use std::collections::{BTreeMap, BTreeSet};

use semel_core::{
    batch::{AttemptRow, Batch, GrantRow, JobChange, Outcome, Record, Replaced},
    event::Counts,
    id::{AgentId, Cell, Digest, Epoch, FencingToken, Incarnation, JobId, Nonce, RegionId, Seq},
    words::{AttemptKind, FailureReason, JobState, Status},
};

use crate::client::Plan;

/// A promise or rule that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its name: P1 to P8, or that of a rule.
    pub rule: String,
    /// What was seen.
    pub what: String,
}

/// Nothing is wrong, or something is.
pub type Check = Result<(), Violation>;

/// Fails the check of a rule.
pub fn broken<T>(rule: &str, what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { rule: rule.to_owned(), what: what.into() })
}

/// Fails the check unless something holds.
pub fn hold(holds: bool, rule: &str, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { broken(rule, what()) }
}

/// The end of leases that cost no attempt, at the most (rule S7).
const MAX_FREE_ENDS: u32 = semel_core::job::MAX_FREE_ENDS;

/// A cell.
#[derive(Clone, Copy, Default, Debug)]
pub struct CellBook {
    /// Its live lease.
    pub live: Option<FencingToken>,
    /// Its record: token and digest.
    pub record: Option<(FencingToken, Digest, Status)>,
    /// Attempts of this budget that count.
    pub counted: u32,
    /// Of those, deaths of its agent.
    pub deaths: u32,
    /// Ends of this budget that don't.
    pub free: u32,
    /// How often it killed the process that had it, and paid for it with no attempt.
    pub kills: u32,
    /// Whether it was ever leased.
    pub granted: bool,
    /// Its last lease came back for a reason that costs nothing, to this leader.
    pub handed_back: bool,
    /// Its agent died with it, in this budget.
    pub died: bool,
}

/// A job.
#[derive(Clone, Debug)]
pub struct Book {
    /// Its specification as submitted first.
    pub plan: Plan,
    /// Its state.
    pub state: JobState,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether a time of completion is stored.
    pub completed: bool,
    /// How many cells have a record.
    pub recorded: u32,
    /// How many are under a live lease.
    pub leased: u32,
    /// How often it was opened again or had records replaced.
    pub retries: u32,
    /// Its cells.
    pub cells: Vec<CellBook>,
}

impl Book {
    /// How many cells it has.
    pub fn expected(&self) -> u32 {
        self.cells.len() as u32
    }
    /// Its conservation numbers, counted from its cells.
    pub fn counts(&self) -> Counts {
        let failed = |cell: &&CellBook| cell.record.is_some_and(|(_, _, status)| status == Status::Failed);
        let rest = self.expected() - self.recorded - self.leased;
        let open = self.state == JobState::Open;
        Counts {
            expected: self.expected(),
            recorded: self.recorded,
            failed: self.cells.iter().filter(failed).count() as u32,
            leased: self.leased,
            pending: if open { rest } else { 0 },
            not_run: if open { 0 } else { rest },
        }
    }
    /// Whether it has come to an end.
    pub fn ended(&self) -> bool {
        self.state != JobState::Open || self.recorded == self.expected()
    }
}

/// How a lease stands in the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It lives.
    Live,
    /// Its cell was recorded under it.
    Recorded,
    /// It ended otherwise.
    Ended,
}

/// A lease that was ever committed.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its job.
    pub job: JobId,
    /// Its cell.
    pub cell: Cell,
    /// Its grant.
    pub grant: FencingToken,
    /// Its secret.
    pub nonce: Nonce,
    /// Whose it is.
    pub agent: AgentId,
    /// How it stands.
    pub standing: Standing,
    /// Its cell was to run alone (rule S7).
    pub alone: bool,
}

/// The durable state, from the sequence of commits alone.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// The epoch that leads.
    pub leader: Option<Epoch>,
    /// Its last commit.
    pub seq: u64,
    /// The jobs.
    pub jobs: BTreeMap<JobId, Book>,
    /// The leases.
    pub slots: BTreeMap<FencingToken, Slot>,
    /// Cells that were handed back and may run alone.
    pub refused_alone: BTreeSet<(JobId, Cell)>,
    /// The grants that have a row.
    pub grants: BTreeSet<FencingToken>,
    /// Rows of the history: token and kind, with digest.
    pub attempts: BTreeSet<(FencingToken, AttemptKind, Digest)>,
    /// The newest incarnation of each agent, and its number.
    pub newest: BTreeMap<AgentId, (u64, Incarnation)>,
    /// The number of each incarnation.
    pub incarnations: BTreeMap<(AgentId, Incarnation), u64>,
}

/// What a commit may be judged by, beyond the books.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Every plan that was ever submitted.
    pub plans: &'a [Plan],
    /// Where each agent sits.
    pub regions: &'a BTreeMap<AgentId, RegionId>,
    /// Digests of forged reports.
    pub forged: &'a BTreeSet<Digest>,
}

impl Books {
    /// A takeover was committed.
    pub fn campaigned(&mut self, epoch: Epoch) -> Check {
        hold(self.leader.is_none_or(|l| l < epoch), "L1", || format!("epoch {epoch} after {:?}", self.leader))?;
        self.leader = Some(epoch);
        self.seq = 0;
        self.jobs.values_mut().flat_map(|book| &mut book.cells).for_each(|cell| cell.handed_back = false);
        Ok(())
    }

    /// A batch was applied. Returns the leases that ended with it, other than by a record.
    pub fn committed(
        &mut self,
        epoch: Epoch,
        seq: Seq,
        batch: &Batch,
        around: &Surroundings<'_>,
    ) -> Result<Vec<FencingToken>, Violation> {
        hold(self.leader == Some(epoch), "C1", || format!("epoch {epoch} wrote while {:?} led", self.leader))?;
        hold(seq.0 == self.seq + 1, "C1", || format!("commit {} after {}", seq.0, self.seq))?;
        self.seq = seq.0;
        self.touched_once(batch)?;
        for row in &batch.jobs {
            self.submitted(row.id.clone(), row.digest, around)?;
        }
        for replaced in &batch.replaced {
            self.replaced(replaced, batch)?;
        }
        for record in &batch.records {
            self.recorded(record, batch, around)?;
        }
        let mut ended = Vec::new();
        for (grant, mask) in &batch.blanks {
            for slot in (0..64).filter(|slot| mask & (1u64 << slot) != 0) {
                self.blanked(grant.offset(slot), &mut ended)?;
            }
        }
        for grant in &batch.ended {
            self.grant_ended(*grant, &mut ended)?;
        }
        self.forgive(batch);
        for grant in &batch.grants {
            self.in_turn(grant, batch)?;
            self.granted(grant, around)?;
        }
        self.within_caps(batch)?;
        self.alone(batch)?;
        for row in &batch.attempts {
            self.attempted(row)?;
        }
        // Once more: what was handed back in this batch may have been so before its successes.
        self.forgive(batch);
        for row in &batch.agents {
            let newest = self.newest.get(&row.agent).map_or(0, |n| n.0);
            hold(row.number > newest, "S5", || format!("incarnation {} after {newest}", row.number))?;
            self.newest.insert(row.agent.clone(), (row.number, row.incarnation));
            self.incarnations.insert((row.agent.clone(), row.incarnation), row.number);
        }
        for (id, change) in &batch.job_changes {
            self.changed(id, change)?;
        }
        self.conserved(batch)?;
        Ok(ended)
    }

    fn submitted(&mut self, id: JobId, digest: Digest, around: &Surroundings<'_>) -> Check {
        let plan = around.plans.iter().find(|p| p.id == id && p.digest == digest);
        let Some(plan) = plan else {
            return broken("P8", format!("job {id} is stored with a specification that nobody submitted"));
        };
        hold(!self.jobs.contains_key(&id), "P6", || format!("job {id} is stored twice"))?;
        let book = Book {
            plan: plan.clone(),
            state: JobState::Open,
            paused: false,
            completed: false,
            recorded: 0,
            leased: 0,
            retries: 0,
            cells: vec![CellBook::default(); plan.matrix.expected() as usize],
        };
        self.jobs.insert(id, book);
        Ok(())
    }

    /// Rule C3: a key is touched once in a batch, but for the blank of the slot of a record that moves.
    fn touched_once(&self, batch: &Batch) -> Check {
        let mut touched: BTreeSet<(&JobId, Cell)> = BTreeSet::new();
        let mut once = |job, cell: Cell| {
            hold(touched.insert((job, cell)), "C3", || format!("job {job} cell {} is touched twice", cell.0))
        };
        for grant in &batch.grants {
            for cell in &grant.cells {
                once(&grant.job, *cell)?;
            }
        }
        for record in &batch.records {
            once(&record.job, record.cell)?;
        }
        for replaced in &batch.replaced {
            once(&replaced.job, replaced.cell)?;
        }
        for (grant, mask) in &batch.blanks {
            for token in (0..64).filter(|s| mask & (1u64 << s) != 0).map(|s| grant.offset(s)) {
                if batch.replaced.iter().any(|r| r.token == token) {
                    continue;
                }
                if let Some(slot) = self.slots.get(&token) {
                    once(&slot.job, slot.cell)?;
                }
            }
        }
        Ok(())
    }

    fn cell(&mut self, job: &JobId, cell: Cell) -> Result<&mut CellBook, Violation> {
        match self.jobs.get_mut(job).and_then(|b| b.cells.get_mut(cell.0 as usize)) {
            Some(cell) => Ok(cell),
            None => broken("P4", format!("job {job} has no cell {}", cell.0)),
        }
    }

    fn replaced(&mut self, replaced: &Replaced, batch: &Batch) -> Check {
        let cell = self.cell(&replaced.job, replaced.cell)?;
        let Some((token, digest, _)) = cell.record.take() else {
            return broken("P1", format!("a record that is not there moves: {replaced:?}"));
        };
        hold(token == replaced.token, "P1", || format!("{replaced:?} is recorded under {token}"))?;
        *cell = CellBook { live: cell.live, granted: true, ..CellBook::default() };
        if let Some(book) = self.jobs.get_mut(&replaced.job) {
            book.recorded -= 1;
            book.retries += 1;
        }
        self.attempts.insert((token, AttemptKind::Replaced, digest));
        let Some(slot) = self.slots.get_mut(&token) else { return Ok(()) };
        let bit = 1u64 << (token.get() - slot.grant.get());
        let blanked = batch.blanks.get(&slot.grant).is_some_and(|mask| mask & bit != 0);
        let gone = batch.ended.contains(&slot.grant) || !self.grants.contains(&slot.grant);
        slot.standing = Standing::Ended;
        hold(blanked || gone, "C9", || format!("the slot of {token} is left when its record moves"))
    }

    fn recorded(&mut self, record: &Record, batch: &Batch, around: &Surroundings<'_>) -> Check {
        let token = record.lease.fencing;
        let name = format!("job {} cell {} under {token}", record.job, record.cell.0);
        let cell = self.cell(&record.job, record.cell)?;
        hold(cell.record.is_none(), "P1", || format!("{name}: a second record"))?;
        hold(cell.live == Some(token), "P3", || format!("{name}: recorded, but {:?} is live", cell.live))?;
        cell.live = None;
        cell.record = Some((token, record.body.digest, record.body.status()));
        let (counted, free) = (cell.counted, cell.free);
        let Some(slot) = self.slots.get_mut(&token) else {
            return broken("P3", format!("{name}: recorded under a lease that was never granted"));
        };
        hold(slot.nonce == record.lease.nonce, "C8", || format!("{name}: recorded under a forged secret"))?;
        slot.standing = Standing::Recorded;
        let grant = slot.grant;
        hold(grant == record.grant, "P3", || format!("{name}: grant {}", record.grant))?;
        let Some(book) = self.jobs.get_mut(&record.job) else { return Ok(()) };
        book.recorded += 1;
        book.leased -= 1;
        hold(book.state == JobState::Open, "J1", || format!("{name}: recorded in a closed job"))?;
        hold(!around.forged.contains(&record.body.digest), "C8", || format!("{name}: a forged report is recorded"))?;
        judge(record, book, &name, around)?;
        // Rule S7: a death in company is never the last.
        let lost = record.body.digest == Digest::default();
        let row = batch.attempts.iter().find(|a| a.token == token && a.kind != AttemptKind::Fenced);
        let policy = &book.plan.policy;
        let by_company = lost && row.is_some_and(|a| a.in_company) && policy.on_lease_lost.may_run_again();
        hold(!by_company, "S7", || format!("{name}: failed by a death in company"))?;
        let spent = counted + u32::from(row.is_some_and(|a| a.counted)) >= policy.attempts
            || free + 1 >= MAX_FREE_ENDS
            || !policy.on_lease_lost.may_run_again();
        hold(!lost || spent, "S7", || format!("{name}: failed with {counted} of {} attempts", policy.attempts))
    }

    fn blanked(&mut self, token: FencingToken, ended: &mut Vec<FencingToken>) -> Check {
        let Some(slot) = self.slots.get_mut(&token) else {
            return broken("C9", format!("a slot is blanked that was never filled: {token}"));
        };
        if std::mem::replace(&mut slot.standing, Standing::Ended) == Standing::Live {
            let (job, cell) = (slot.job.clone(), slot.cell);
            ended.push(token);
            let book = self.cell(&job, cell)?;
            hold(book.live == Some(token), "P2", || format!("{token} ends while {:?} is live", book.live))?;
            book.live = None;
            if let Some(book) = self.jobs.get_mut(&job) {
                book.leased -= 1;
            }
        }
        Ok(())
    }

    /// The row goes: what lived in it has ended.
    fn grant_ended(&mut self, grant: FencingToken, ended: &mut Vec<FencingToken>) -> Check {
        hold(self.grants.remove(&grant), "C9", || format!("grant {grant} ends twice"))?;
        let last = grant.offset(63);
        let tokens: Vec<FencingToken> = self
            .slots
            .range(grant..=last)
            .filter(|(_, s)| s.grant == grant && s.standing == Standing::Live)
            .map(|(t, _)| *t)
            .collect();
        tokens.into_iter().try_for_each(|token| self.blanked(token, ended))
    }

    fn granted(&mut self, grant: &GrantRow, around: &Surroundings<'_>) -> Check {
        self.grants.insert(grant.first);
        let Some(epoch) = self.leader else { return broken("P3", "a grant before any leader") };
        hold(grant.first.epoch() == epoch, "P7", || format!("grant {} in epoch {epoch}", grant.first))?;
        for (slot, &cell) in (0..).zip(&grant.cells) {
            let token = grant.first.offset(slot);
            let name = format!("job {} cell {} as {token}", grant.job, cell.0);
            let book = self.cell(&grant.job, cell)?;
            hold(book.live.is_none(), "P2", || format!("{name}: {:?} is live as well", book.live))?;
            hold(book.record.is_none(), "P1", || format!("{name}: leased though it is recorded"))?;
            (book.live, book.granted) = (Some(token), true);
            let (died, counted) = (book.died, book.counted);
            let job = self.jobs.get_mut(&grant.job);
            let Some(job) = job else { return Ok(()) };
            job.leased += 1;
            let lane = job.plan.matrix.lane_of(cell).map(|l| job.plan.matrix.lanes()[l].region.clone());
            let region = around.regions.get(&grant.agent);
            hold(lane.as_ref() == region, "P8", || format!("{name}: {lane:?} goes to {region:?}"))?;
            let new = Slot {
                job: grant.job.clone(),
                cell,
                grant: grant.first,
                nonce: grant.nonce,
                agent: grant.agent.clone(),
                standing: Standing::Live,
                alone: died && job.plan.policy.attempts.saturating_sub(counted) <= 1,
            };
            hold(self.slots.insert(token, new).is_none(), "P7", || format!("{name}: that number was used before"))?;
        }
        Ok(())
    }

    fn attempted(&mut self, row: &AttemptRow) -> Check {
        self.attempts.insert((row.token, row.kind, row.digest()));
        let limit = self.jobs.get(&row.job).map_or(0, |b| b.plan.policy.attempts);
        let book = self.jobs.get_mut(&row.job).filter(|_| row.kind != AttemptKind::Fenced);
        if book.is_some_and(|book| book.note_turn(row)) {
            self.refused_alone.insert((row.job.clone(), row.cell));
        }
        let cell = self.cell(&row.job, row.cell)?;
        if row.kind == AttemptKind::Fenced {
            return hold(cell.live != Some(row.token), "C10", || {
                format!("a report under live {} is fenced", row.token)
            });
        }
        let lost = row.reason == Some(FailureReason::LeaseLost);
        cell.counted += u32::from(row.counted);
        cell.deaths += u32::from(row.counted && lost && row.kind == AttemptKind::Lost);
        cell.free += u32::from(!row.counted && lost);
        let (counted, deaths) = (cell.counted, cell.deaths);
        // One more than the limit: the last attempt may die in company after failures that were reported.
        hold(deaths <= limit.max(2) && counted <= limit + 1, "S7", || {
            format!("job {} cell {}: {counted} attempts, {deaths} by deaths, of {limit}", row.job, row.cell.0)
        })?;
        hold(cell.free <= MAX_FREE_ENDS, "S7", || format!("job {} cell {}: free ends", row.job, row.cell.0))
    }

    fn changed(&mut self, id: &JobId, change: &JobChange) -> Check {
        let Some(book) = self.jobs.get_mut(id) else {
            return broken("P4", format!("job {id} changes and is not there"));
        };
        if let Some(state) = change.state {
            book.retries += u32::from(state == JobState::Open);
            book.state = state;
        }
        book.paused = change.paused.unwrap_or(book.paused);
        if let Some(completed) = change.completed_at {
            book.completed = completed.is_some();
        }
        Ok(())
    }

    /// Promise 4 and rule J1, of the jobs that the batch touches.
    fn conserved(&self, batch: &Batch) -> Check {
        let records = batch.records.iter().map(|r| &r.job);
        let replaced = batch.replaced.iter().map(|r| &r.job);
        let granted = batch.grants.iter().map(|g| &g.job);
        let touched: BTreeSet<&JobId> =
            records.chain(replaced).chain(granted).chain(batch.job_changes.keys()).collect();
        for id in touched {
            let Some(book) = self.jobs.get(id) else { continue };
            let (recorded, expected) = (book.recorded, book.expected());
            hold(book.completed == (recorded == expected), "P4", || {
                format!("job {id}: {recorded} of {expected} recorded, complete: {}", book.completed)
            })?;
            hold(book.state == JobState::Open || book.leased == 0, "J1", || {
                format!("job {id} is {:?} and has {} leases", book.state, book.leased)
            })?;
        }
        Ok(())
    }
}

/// Promise 8: what ran is what was submitted, and the axes are what they say.
fn judge(record: &Record, book: &Book, name: &str, around: &Surroundings<'_>) -> Check {
    let matrix = &book.plan.matrix;
    hold(matrix.key(record.cell).as_ref() == Some(&record.key), "P8", || format!("{name}: key {:?}", record.key))?;
    let region = around.regions.get(&record.agent);
    hold(region == Some(&record.key.region), "P8", || format!("{name}: ran in {region:?}"))?;
    let Outcome::Succeeded(success) = &record.body.outcome else { return Ok(()) };
    let input = crate::agent::input_of(book.plan.digest, record.cell);
    hold(record.body.input_digest == input, "P8", || format!("{name}: another input ran"))?;
    hold(success.output[..] == input.0, "P8", || format!("{name}: the answer of another cell"))?;
    let Some(served) = &record.body.served else { return broken("P8", format!("{name}: served by nobody")) };
    hold(*served.region == *record.key.region.as_str(), "P8", || format!("{name}: served by {}", served.region))?;
    let model = matrix.models().iter().find(|m| m.id == record.key.model);
    hold(model.is_some_and(|m| m.accepts(&served.model)), "P8", || format!("{name}: served by {}", served.model))
}
