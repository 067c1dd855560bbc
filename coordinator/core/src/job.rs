//! A job: its policy, its lanes of cells, its counts. Nothing here holds a cell that has no history.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use roaring::RoaringBitmap;

use crate::{
    batch::JobRow,
    event::{Counts, JobView},
    id::{Cell, FencingToken, JobNo, Millis, RegionId, UnixMs},
    tables::{LoadedJob, StoredAttempt},
    words::{AttemptKind, FailureReason, JobState, OnLeaseLost},
};

/// How often a cell's lease may end with nobody at fault before the cell is recorded as failed (rule S7).
pub const MAX_FREE_ENDS: u32 = 25;

/// How a job runs. Durations in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Attempts that count, for each cell: 1 or more.
    pub attempts: u32,
    /// The wait after the first failed attempt; doubled after each.
    pub backoff_ms: u64,
    /// The longest wait.
    pub max_backoff_ms: u64,
    /// A run on a warm model.
    pub run_timeout_ms: u64,
    /// A run on a cold one.
    pub cold_timeout_ms: u64,
    /// From the submission to the end.
    pub deadline_ms: u64,
    /// What happens to a cell whose lease is lost.
    pub on_lease_lost: OnLeaseLost,
    /// Cells of the job leased at once.
    pub max_leased: Option<u32>,
    /// Cells of one model leased at once.
    pub max_leased_per_model: Option<u32>,
    /// Cells of one region leased at once.
    pub max_leased_per_region: Option<u32>,
    /// Whether a result counts only if the endpoint reported its region.
    pub require_reported_region: bool,
    /// The job's share beside others of its priority.
    pub weight: u32,
    /// Higher goes first.
    pub priority: i32,
}

impl Policy {
    /// The wait after the `used`-th counted attempt (from 1).
    pub fn backoff(&self, used: u32) -> u64 {
        let doubled = self
            .backoff_ms
            .checked_shl(used.saturating_sub(1))
            .filter(|d| d >> used.saturating_sub(1) == self.backoff_ms);
        doubled.unwrap_or(u64::MAX).min(self.max_backoff_ms)
    }
}

/// What a cell has behind it: kept only for cells that have something behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct History {
    /// The number of the last attempt; numbers go on rising through a retry.
    pub last: u32,
    /// Attempts of this budget that count.
    pub used: u32,
    /// Ends of this budget that were nobody's fault.
    pub free: u32,
    /// Whether its agent died with it, in company or alone (rule S7).
    pub died: bool,
}

impl History {
    /// Rule S7: with one attempt left after a death, a cell runs alone on its agent. Also where that death
    /// was alone: in company once more, the last attempt would not count as the last, and the cell be
    /// leased for more deaths than its limit.
    pub fn must_run_alone(&self, policy: &Policy) -> bool {
        self.died && policy.attempts.saturating_sub(self.used) <= 1
    }

    /// The budget that the history of a cell leaves, read in the order of tokens.
    fn read(rows: &[&StoredAttempt]) -> Self {
        const LEASE_LOST: Option<FailureReason> = Some(FailureReason::LeaseLost);
        let budget = rows.iter().rposition(|a| a.kind == AttemptKind::Replaced).map_or(0, |i| i + 1);
        let this = &rows[budget..];
        Self {
            last: rows.iter().map(|a| a.attempt).max().unwrap_or(0),
            used: this.iter().filter(|a| a.counted).count() as u32,
            free: this.iter().filter(|a| !a.counted && a.reason == LEASE_LOST).count() as u32,
            died: this.iter().any(|a| a.kind == AttemptKind::Lost && a.counted && a.reason == LEASE_LOST),
        }
    }
}

/// One model in one region: which of its cells can be handed out, and how many are where.
#[derive(Debug)]
pub(crate) struct Lane {
    /// The model's index.
    pub model: usize,
    /// The region.
    pub region: RegionId,
    /// Cells from here on have never been handed out, but for those in `Job::skip`.
    next: u32,
    end: u32,
    /// Handed out before, and ready again.
    ready: BTreeSet<Cell>,
    /// Handed back for a reason that cost them nothing: ready again once all others had their turn, so
    /// that a cell that is refused each time keeps none of them waiting.
    refused: VecDeque<Cell>,
    /// Ready, but only alone on its agent.
    alone: BTreeSet<Cell>,
    /// Likewise, and handed back for a reason that cost them nothing: they may give way to others.
    alone_refused: BTreeSet<Cell>,
    /// Not before the given time.
    waiting: BTreeSet<(Millis, Cell)>,
    /// Neither recorded nor leased.
    pub pending: u32,
    pub leased: u32,
    pub recorded: u32,
    pub failed: u32,
}

impl Lane {
    /// Cells that wait out a backoff, and the time at which the first is ready.
    pub fn in_backoff(&self) -> (u32, Option<Millis>) {
        (self.waiting.len() as u32, self.waiting.first().map(|(at, _)| *at))
    }
    /// Cells that wait to run alone.
    pub fn to_run_alone(&self) -> u32 {
        (self.alone.len() + self.alone_refused.len()) as u32
    }
    /// Whether a cell that was not handed back waits to run alone.
    pub fn wants_an_agent(&self) -> bool {
        !self.alone.is_empty()
    }
    /// Cells that could be handed out now.
    pub fn available(&self) -> u32 {
        self.pending - self.in_backoff().0 - self.to_run_alone()
    }
    /// The time at which a cell is ready, if it waits out a backoff.
    pub fn ready_at(&self, cell: Cell) -> Option<Millis> {
        self.waiting.iter().find(|(_, c)| *c == cell).map(|(at, _)| *at)
    }
    /// Whether a cell waits to run alone.
    pub fn waits_alone(&self, cell: Cell) -> bool {
        self.alone.contains(&cell) || self.alone_refused.contains(&cell)
    }
}

/// A job in memory. Its tables' rows can be ahead of the disk by the batches in flight.
#[derive(Debug)]
pub(crate) struct Job {
    pub no: JobNo,
    pub row: JobRow,
    pub state: JobState,
    pub paused: bool,
    pub closed_at: Option<UnixMs>,
    pub completed_at: Option<UnixMs>,
    pub lanes: Vec<Lane>,
    pub recorded: RoaringBitmap,
    pub failed: RoaringBitmap,
    /// Invariant (promise 2): one live lease a cell.
    pub leased: BTreeMap<Cell, FencingToken>,
    pub history: BTreeMap<Cell, History>,
    pub leased_by_model: Vec<u32>,
    pub leased_by_region: BTreeMap<RegionId, u32>,
    /// How many cells wait to run alone in all lanes.
    pub alone: u32,
    /// Cells beyond a lane's `next` that are not fresh: read from the tables, never changed.
    skip: RoaringBitmap,
}

impl Job {
    /// A job just admitted: every cell is fresh.
    pub fn new(no: JobNo, row: JobRow) -> Self {
        let matrix = row.matrix.clone();
        let lanes = matrix
            .lanes()
            .iter()
            .map(|lane| Lane {
                model: lane.model,
                region: lane.region.clone(),
                next: lane.first,
                end: lane.first + matrix.lane_len(),
                ready: BTreeSet::new(),
                refused: VecDeque::new(),
                alone: BTreeSet::new(),
                alone_refused: BTreeSet::new(),
                waiting: BTreeSet::new(),
                pending: matrix.lane_len(),
                leased: 0,
                recorded: 0,
                failed: 0,
            })
            .collect();
        Self {
            no,
            row,
            state: JobState::Open,
            paused: false,
            closed_at: None,
            completed_at: None,
            lanes,
            recorded: RoaringBitmap::new(),
            failed: RoaringBitmap::new(),
            leased: BTreeMap::new(),
            history: BTreeMap::new(),
            leased_by_model: vec![0; matrix.models().len()],
            leased_by_region: BTreeMap::new(),
            alone: 0,
            skip: RoaringBitmap::new(),
        }
    }

    /// A job as a new leader reads it. Its live leases follow by [`Job::restore_lease`], and then
    /// [`Job::restore_pending`] puts what is left where it belongs.
    pub fn load(no: JobNo, loaded: LoadedJob) -> Self {
        let LoadedJob { stored, recorded, failed, attempts } = loaded;
        let mut job = Self::new(no, stored.row);
        job.state = stored.state;
        job.paused = stored.paused;
        job.closed_at = stored.closed_at;
        job.completed_at = stored.completed_at;
        for lane in &mut job.lanes {
            let cells = lane.next..lane.end;
            lane.recorded = recorded.range_cardinality(cells.clone()) as u32;
            lane.failed = failed.range_cardinality(cells) as u32;
            lane.pending -= lane.recorded;
        }
        job.skip = recorded.clone();
        job.recorded = recorded;
        job.failed = failed;
        let mut by_cell: BTreeMap<Cell, Vec<&StoredAttempt>> = BTreeMap::new();
        for attempt in &attempts {
            by_cell.entry(attempt.cell).or_default().push(attempt);
        }
        for (cell, mut rows) in by_cell {
            // A record that moved is the last word on its token, also where the attempt that led to it has
            // an entry of its own: what comes after it is the new budget (rule S7).
            rows.sort_by_key(|a| (a.token, a.kind == AttemptKind::Replaced));
            job.history.insert(cell, History::read(&rows));
            job.skip.insert(cell.0);
        }
        job
    }

    /// A lease that the tables show as live.
    pub fn restore_lease(&mut self, cell: Cell, token: FencingToken) {
        self.skip.insert(cell.0);
        self.lane_mut(cell).pending -= 1;
        self.note_leased(cell, token);
    }

    /// Puts the cells that have a history, and neither record nor lease, where they wait. `retry_at` is
    /// the last time not-before that the tables have for a cell, as a point of the core's clock.
    pub fn restore_pending(&mut self, now: Millis, retry_at: &BTreeMap<Cell, Millis>) {
        let cells: Vec<Cell> = self.history.keys().copied().collect();
        for cell in cells {
            if !self.recorded.contains(cell.0) && !self.leased.contains_key(&cell) {
                self.lane_mut(cell).pending -= 1;
                self.put_back(cell, retry_at.get(&cell).copied().unwrap_or(now), now);
            }
        }
    }

    /// The index of a cell's lane.
    pub fn lane_of(&self, cell: Cell) -> usize {
        self.row.matrix.lane_of(cell).expect("a cell of this job's matrix")
    }
    pub fn lane_mut(&mut self, cell: Cell) -> &mut Lane {
        let lane = self.lane_of(cell);
        &mut self.lanes[lane]
    }

    /// Takes up to `most` cells of a lane, in order: those that are ready again, then fresh ones, then
    /// those that were handed back.
    pub fn take(&mut self, lane: usize, most: u32) -> Vec<Cell> {
        let (lane, skip) = (&mut self.lanes[lane], &self.skip);
        let mut cells = Vec::with_capacity(most as usize);
        while (cells.len() as u32) < most {
            let next = lane.ready.pop_first().or_else(|| fresh(lane, skip));
            let Some(cell) = next.or_else(|| lane.refused.pop_front()) else {
                break;
            };
            cells.push(cell);
        }
        lane.pending -= cells.len() as u32;
        cells
    }
    /// Takes a cell that must run alone.
    pub fn take_alone(&mut self, lane: usize) -> Option<Cell> {
        let lane = &mut self.lanes[lane];
        let cell = lane.alone.pop_first().or_else(|| lane.alone_refused.pop_first())?;
        lane.pending -= 1;
        self.alone -= 1;
        Some(cell)
    }
    /// Makes ready what has waited long enough.
    pub fn wake(&mut self, lane: usize, now: Millis) {
        let lane = &mut self.lanes[lane];
        while let Some(&(at, cell)) = lane.waiting.first().filter(|(at, _)| *at <= now) {
            lane.waiting.remove(&(at, cell));
            let alone = self.history.get(&cell).is_some_and(|h| h.must_run_alone(&self.row.policy));
            self.alone += u32::from(alone);
            if alone { &mut lane.alone } else { &mut lane.ready }.insert(cell);
        }
    }
    /// A cell waits again, for its turn after all others of its lane.
    pub fn put_last(&mut self, cell: Cell, now: Millis) {
        self.put_back(cell, now, now);
        let lane = self.lane_of(cell);
        let lane = &mut self.lanes[lane];
        if lane.ready.remove(&cell) {
            lane.refused.push_back(cell);
        } else if lane.alone.remove(&cell) {
            lane.alone_refused.insert(cell);
        }
    }
    /// Calls of a lane's kind succeed again: what was handed back and runs alone waits as if it had not been.
    pub fn forgive(&mut self, lane: usize) {
        let lane = &mut self.lanes[lane];
        lane.alone.append(&mut lane.alone_refused);
    }
    /// A cell waits again, not to be handed out before `at`.
    pub fn put_back(&mut self, cell: Cell, at: Millis, now: Millis) {
        let index = self.lane_of(cell);
        let lane = &mut self.lanes[index];
        lane.pending += 1;
        lane.waiting.insert((at, cell));
        self.wake(index, now);
    }

    /// A cell is under a lease.
    pub fn note_leased(&mut self, cell: Cell, token: FencingToken) {
        let before = self.leased.insert(cell, token);
        assert!(before.is_none(), "promise 2: cell {cell:?} of {:?} has two live leases", self.row.id);
        let lane = self.lane_mut(cell);
        lane.leased += 1;
        let (model, region) = (lane.model, lane.region.clone());
        self.leased_by_model[model] += 1;
        *self.leased_by_region.entry(region).or_default() += 1;
    }
    /// A cell is under a lease no more.
    pub fn note_unleased(&mut self, cell: Cell) {
        self.leased.remove(&cell);
        let lane = self.lane_mut(cell);
        lane.leased -= 1;
        let (model, region) = (lane.model, lane.region.clone());
        self.leased_by_model[model] -= 1;
        if let Some(n) = self.leased_by_region.get_mut(&region) {
            *n -= 1;
        }
    }
    /// A cell has a record.
    pub fn note_recorded(&mut self, cell: Cell, failed: bool) {
        let new = self.recorded.insert(cell.0);
        assert!(new, "promise 1: cell {cell:?} of {:?} is recorded twice", self.row.id);
        if failed {
            self.failed.insert(cell.0);
        }
        let lane = self.lane_mut(cell);
        lane.recorded += 1;
        lane.failed += u32::from(failed);
    }
    /// A record is moved to the history: the cell waits again, with a new budget.
    pub fn note_replaced(&mut self, cell: Cell, attempt: u32, now: Millis) {
        self.recorded.remove(cell.0);
        let failed = self.failed.remove(cell.0);
        let lane = self.lane_mut(cell);
        lane.recorded -= 1;
        lane.failed -= u32::from(failed);
        let history = self.history.entry(cell).or_default();
        *history = History { last: history.last.max(attempt), ..History::default() };
        self.put_back(cell, now, now);
    }

    /// Whether cells may be handed out.
    pub fn hands_out(&self) -> bool {
        self.state == JobState::Open && !self.paused
    }
    /// Rule J1: complete is derived.
    pub fn is_complete(&self) -> bool {
        self.counts().recorded == self.row.matrix.expected()
    }
    pub fn lane_counts(&self, lane: &Lane) -> Counts {
        let open = self.state == JobState::Open;
        Counts {
            expected: self.row.matrix.lane_len(),
            recorded: lane.recorded,
            failed: lane.failed,
            leased: lane.leased,
            pending: if open { lane.pending } else { 0 },
            not_run: if open { 0 } else { lane.pending },
        }
    }
    pub fn counts(&self) -> Counts {
        let sum = self.lanes.iter().map(|l| self.lane_counts(l)).fold(Counts::default(), |a, b| Counts {
            expected: 0,
            recorded: a.recorded + b.recorded,
            failed: a.failed + b.failed,
            leased: a.leased + b.leased,
            pending: a.pending + b.pending,
            not_run: a.not_run + b.not_run,
        });
        Counts { expected: self.row.matrix.expected(), ..sum }
    }
    /// The job as callers see it.
    pub fn view(&self, with_lanes: bool) -> JobView {
        let lanes = self.lanes.iter().filter(|_| with_lanes).map(|lane| {
            let model = self.row.matrix.models()[lane.model].id.clone();
            (model, lane.region.clone(), self.lane_counts(lane))
        });
        JobView {
            id: self.row.id.clone(),
            digest: self.row.digest,
            state: self.state,
            paused: self.paused,
            counts: self.counts(),
            lanes: lanes.collect(),
            submitted_at: self.row.submitted_at,
            deadline_at: self.row.deadline_at,
            completed_at: self.completed_at,
            closed_at: self.closed_at,
        }
    }

    /// Promise 4, from the sums that each step keeps: cheap enough for every step.
    pub fn check(&self) -> Result<(), String> {
        let counts = self.counts();
        let sum = counts.recorded + counts.leased + counts.pending + counts.not_run;
        if counts.expected != sum {
            return Err(format!("promise 4: job {:?}: {counts:?} does not add up", self.row.id));
        }
        if counts.leased as usize != self.leased.len() || u64::from(counts.recorded) != self.recorded.len() {
            return Err(format!("promise 4: job {:?}: sums and sets differ: {counts:?}", self.row.id));
        }
        if self.state != JobState::Open && counts.leased != 0 {
            return Err(format!("rule J1: closed job {:?} has {} leases", self.row.id, counts.leased));
        }
        if self.completed_at.is_some() != self.is_complete() {
            return Err(format!("rule J1: job {:?}: completed_at does not say what the counts say", self.row.id));
        }
        Ok(())
    }

    /// Promise 4, recounted cell by cell: for the simulator and after a load.
    pub fn recount(&self) -> Result<(), String> {
        self.check()?;
        let mut alone = 0;
        for (index, lane) in self.lanes.iter().enumerate() {
            let first = self.row.matrix.lanes()[index].first;
            let mut pending = 0;
            alone += lane.to_run_alone();
            let waiting: BTreeSet<Cell> = lane.waiting.iter().map(|(_, cell)| *cell).collect();
            if waiting.len() != lane.waiting.len() {
                return Err(format!("promise 4: job {:?} lane {index}: a cell waits twice", self.row.id));
            }
            for cell in (first..lane.end).map(Cell) {
                let fresh = cell.0 >= lane.next && !self.skip.contains(cell.0);
                let queues = usize::from(fresh)
                    + usize::from(lane.ready.contains(&cell))
                    + lane.refused.iter().filter(|c| **c == cell).count()
                    + usize::from(lane.alone.contains(&cell))
                    + usize::from(lane.alone_refused.contains(&cell))
                    + usize::from(waiting.contains(&cell));
                let elsewhere =
                    usize::from(self.recorded.contains(cell.0)) + usize::from(self.leased.contains_key(&cell));
                if queues + elsewhere != 1 {
                    return Err(format!(
                        "promise 4: job {:?} cell {}: waits in {queues} places and is in {elsewhere} others",
                        self.row.id, cell.0
                    ));
                }
                pending += queues as u32;
            }
            if pending != lane.pending {
                return Err(format!(
                    "promise 4: job {:?} lane {index}: {pending} wait, {} said",
                    self.row.id, lane.pending
                ));
            }
        }
        if alone != self.alone {
            return Err(format!(
                "rule S7: job {:?}: {alone} cells wait to run alone, {} said",
                self.row.id, self.alone
            ));
        }
        Ok(())
    }
}

/// The next cell of a lane that was never handed out.
fn fresh(lane: &mut Lane, skip: &RoaringBitmap) -> Option<Cell> {
    while lane.next < lane.end {
        let cell = lane.next;
        lane.next += 1;
        if !skip.contains(cell) {
            return Some(Cell(cell));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(attempts: u32) -> Policy {
        Policy {
            attempts,
            backoff_ms: 1_000,
            max_backoff_ms: 300_000,
            run_timeout_ms: 1,
            cold_timeout_ms: 1,
            deadline_ms: 1,
            on_lease_lost: OnLeaseLost::Retry,
            max_leased: None,
            max_leased_per_model: None,
            max_leased_per_region: None,
            require_reported_region: false,
            weight: 1,
            priority: 0,
        }
    }

    #[test]
    fn a_backoff_doubles_up_to_its_limit_and_never_overflows() {
        let policy = policy(3);
        assert_eq!([1, 2, 3, 9].map(|n| policy.backoff(n)), [1_000, 2_000, 4_000, 256_000]);
        assert_eq!([10, 63, 64, 65, u32::MAX].map(|n| policy.backoff(n)), [300_000; 5]);
    }

    #[test]
    fn s7_a_cell_runs_alone_only_with_one_attempt_left_after_a_death() {
        let died = |used| History { used, died: true, ..History::default() };
        assert!(!died(1).must_run_alone(&policy(3)));
        assert!(died(2).must_run_alone(&policy(3)));
        assert!(died(1).must_run_alone(&policy(1)));
        assert!(!History { used: 2, ..History::default() }.must_run_alone(&policy(3)));
    }
}
