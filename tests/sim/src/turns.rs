//! Checkers on who is given what, and when: pauses, caps, deadlines, backoffs, gates, and the order of turns.

use std::collections::{BTreeMap, BTreeSet};

use semel_core::{
    batch::{AttemptRow, Batch, GrantRow, Outcome},
    event::{Decision, Event},
    id::{Cell, FencingToken, JobId, LeaseToken, ModelId, Now, RegionId, UnixMs},
    words::{AttemptKind, FailureReason, JobState, ReleaseReason},
};

use crate::{
    checkers::{Book, Books, Check, Standing, hold},
    shares::Shares,
    world::World,
};

/// How long a gate stays closed at the least after a 429 that does not say.
const UNSAID_WAIT_MS: u64 = 1_000;

/// What one life of the coordinator has decided on waits, in the world's milliseconds.
#[derive(Debug, Default)]
pub struct Waits {
    /// No cell before its backoff is over.
    cells: BTreeMap<(JobId, Cell), u64>,
    /// No cell of a model in a region before its gate opens: all agents of the world have one provider.
    gates: BTreeMap<(ModelId, RegionId), u64>,
    /// Deadlines that were moved.
    deadlines: BTreeMap<JobId, UnixMs>,
    /// What each agent, gate and job has.
    shares: Shares,
}

impl World {
    /// The provider's word ended a live lease: its gate closes.
    pub(crate) fn gate_closes(&mut self, token: LeaseToken, wait_ms: u64) {
        let ended = self.coordinator.brain.as_ref().is_some_and(|brain| brain.core.leased_cell(token).is_none());
        let slot = self.books.slots.get(&token.fencing).filter(|_| ended);
        let key = slot.and_then(|slot| self.books.jobs.get(&slot.job)?.plan.matrix.key(slot.cell));
        if let Some(key) = key {
            let place = (key.model, key.region);
            self.waits.shares.limited(place.clone());
            let gate = self.waits.gates.entry(place).or_default();
            *gate = (self.now + wait_ms).max(*gate);
        }
    }

    /// What the core has just decided keeps every wait and every deadline. `ticked` unless the
    /// coordinator stood still and its clock has not ticked since.
    pub(crate) fn keeps_waits(&mut self, at: Now, decision: &Decision, ticked: bool) -> Check {
        self.waits.shares.keeps(&decision.batch, &self.agents)?;
        for row in decision.batch.attempts.iter().filter(|row| row.kind != AttemptKind::Fenced) {
            self.waits.note(self.now, row);
        }
        for moved in &decision.batch.replaced {
            self.waits.cells.remove(&(moved.job.clone(), moved.cell));
        }
        for (job, change) in &decision.batch.job_changes {
            if let Some(by) = change.deadline_at {
                self.waits.deadlines.insert(job.clone(), by);
            }
        }
        for grant in &decision.batch.grants {
            for cell in &grant.cells {
                self.waits.allow(self.now, grant, *cell, &self.books)?;
            }
            let stored = || self.store.tables.jobs.get(&grant.job).map(|job| job.row.deadline_at);
            let deadline = self.waits.deadlines.get(&grant.job).copied().or_else(stored);
            let late = deadline.is_some_and(|by| at.wall.0 > by.0 + crate::coordinator::TICK_MS as i64);
            hold(!late || !ticked, "deadline", || format!("job {} is past its deadline: {grant:?}", grant.job))?;
        }
        Ok(())
    }
}

/// What an event says of a provider's limit: the lease that met it, and how long the provider wants to be left alone.
pub(crate) fn limited(event: &Event) -> Option<(LeaseToken, u64)> {
    let (token, wait_ms) = match event {
        Event::Release(release) if release.reason == ReleaseReason::RateLimited => {
            (release.token, release.retry_after_ms)
        }
        Event::Report(report) => match &report.body.outcome {
            Outcome::Failed(failure) if failure.reason == FailureReason::RateLimited => {
                (report.token, report.retry_after_ms)
            }
            _ => return None,
        },
        _ => return None,
    };
    Some((token, wait_ms.unwrap_or(UNSAID_WAIT_MS)))
}

impl Waits {
    /// Notes an event before it is decided upon.
    pub(crate) fn hears(&mut self, event: &Event) {
        if let Event::Hello(hello) = event {
            self.shares.hello(&hello.agent);
        }
    }

    /// A life begins with what is committed.
    pub(crate) fn restore(&mut self, books: &Books) {
        self.shares.restore(books);
    }

    fn note(&mut self, now: u64, row: &AttemptRow) {
        if let Some(until) = row.retry_at {
            self.cells.insert((row.job.clone(), row.cell), now + until.since(row.ended_at));
        }
    }

    fn allow(&self, now: u64, grant: &GrantRow, cell: Cell, books: &Books) -> Check {
        let until = self.cells.get(&(grant.job.clone(), cell)).copied().unwrap_or(0);
        hold(now >= until, "backoff", || format!("job {} cell {} waits until {until}: {grant:?}", grant.job, cell.0))?;
        let key = books.jobs.get(&grant.job).and_then(|book| book.plan.matrix.key(cell));
        let until = key.and_then(|key| self.gates.get(&(key.model, key.region)).copied()).unwrap_or(0);
        hold(now >= until, "gate", || format!("job {} cell {} before its gate opens at {until}", grant.job, cell.0))
    }
}

impl Books {
    /// A grant keeps pauses and turns. The books stand where they stood before its batch, but for the
    /// grants before it.
    pub(crate) fn in_turn(&self, grant: &GrantRow, batch: &Batch) -> Check {
        let Some(book) = self.jobs.get(&grant.job) else { return Ok(()) };
        let changes = batch.job_changes.contains_key(&grant.job);
        hold(changes || book.state == JobState::Open, "J1", || format!("job {} is closed: {grant:?}", grant.job))?;
        hold(changes || !book.paused, "pause", || format!("job {} is paused: {grant:?}", grant.job))?;
        // What was handed back waits until every other cell of its lane has had its turn.
        let matrix = &book.plan.matrix;
        for (i, cell) in grant.cells.iter().enumerate() {
            let (Some(lane), true) = (matrix.lane_of(*cell), book.cells[cell.0 as usize].handed_back) else { continue };
            let fresh = |c: &u32| {
                !book.cells[*c as usize].granted
                    && matrix.lane_of(Cell(*c)) == Some(lane)
                    && !grant.cells[..i].contains(&Cell(*c))
            };
            let overtaken = (0..book.expected()).find(fresh);
            hold(overtaken.is_none(), "turns", || {
                format!("job {} cell {} was handed back and goes before {overtaken:?}", grant.job, cell.0)
            })?;
        }
        Ok(())
    }

    /// Calls succeeded: of their models and regions, what was handed back and runs alone has its turn again.
    pub(crate) fn forgive(&mut self, batch: &Batch) {
        let succeeded = batch.records.iter().filter(|r| matches!(r.body.outcome, Outcome::Succeeded(_)));
        let places: BTreeSet<_> = succeeded.map(|r| (&r.key.model, &r.key.region)).collect();
        if places.is_empty() {
            return;
        }
        self.refused_alone.retain(|(job, cell)| {
            let Some(book) = self.jobs.get_mut(job) else { return false };
            let key = book.plan.matrix.key(*cell);
            let here = key.is_some_and(|key| places.contains(&(&key.model, &key.region)));
            if let Some(cell) = book.cells.get_mut(cell.0 as usize).filter(|_| here) {
                cell.handed_back = false;
            }
            !here
        });
    }

    /// Rule S7: what is to run alone has its agent to itself.
    pub(crate) fn alone(&self, batch: &Batch) -> Check {
        let of = |first: FencingToken| {
            let slots = self.slots.range(first..=first.offset(63)).map(|(_, slot)| slot);
            slots.take_while(move |slot| slot.grant == first).filter(|slot| slot.standing == Standing::Live)
        };
        for grant in &batch.grants {
            let here = || self.grants.iter().copied().flat_map(of).filter(|slot| slot.agent == grant.agent);
            let alone = here().find(|slot| slot.alone).filter(|_| here().count() > 1);
            hold(alone.is_none(), "S7", || format!("{alone:?} is to run alone, and has company by {grant:?}"))?;
        }
        Ok(())
    }

    /// The caps of the jobs to which a batch grants, once all of it is applied.
    pub(crate) fn within_caps(&self, batch: &Batch) -> Check {
        batch.grants.iter().filter_map(|g| self.jobs.get(&g.job)).try_for_each(Book::within_caps)
    }
}

impl Book {
    fn within_caps(&self) -> Check {
        let (mut of_model, mut of_region) = (BTreeMap::<ModelId, u32>::new(), BTreeMap::<RegionId, u32>::new());
        for (cell, book) in (0..).zip(&self.cells) {
            if let Some(key) = book.live.and_then(|_| self.plan.matrix.key(Cell(cell))) {
                *of_model.entry(key.model).or_default() += 1;
                *of_region.entry(key.region).or_default() += 1;
            }
        }
        let policy = &self.plan.policy;
        let most = |counts: u32, cap: Option<u32>, what: &str| {
            let over = cap.is_some_and(|cap| counts > cap);
            hold(!over, "caps", || format!("job {}: {counts} leases of a {what}, {cap:?} allowed", self.plan.id))
        };
        most(self.leased, policy.max_leased, "job")?;
        most(of_model.into_values().max().unwrap_or(0), policy.max_leased_per_model, "model")?;
        most(of_region.into_values().max().unwrap_or(0), policy.max_leased_per_region, "region")
    }

    /// Notes what an entry of the history means for a cell's turn. Returns whether it was handed back, and may
    /// be one that runs alone.
    pub(crate) fn note_turn(&mut self, row: &AttemptRow) -> bool {
        let refused = matches!(row.reason, Some(FailureReason::RateLimited | FailureReason::Misconfigured));
        let Some(cell) = self.cells.get_mut(row.cell.0 as usize) else { return false };
        cell.handed_back = row.kind == AttemptKind::Released && !row.counted && refused;
        let lost = row.reason == Some(FailureReason::LeaseLost);
        cell.died |= row.kind == AttemptKind::Lost && row.counted && lost;
        cell.handed_back && cell.died
    }
}
