//! Checkers on shares: the slots of an agent, the width of a gate, priorities and weights. They keep account
//! of what one life of the coordinator has decided, committed or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use semel_core::{
    batch::{Batch, GrantRow, Outcome},
    id::{AgentId, Cell, FencingToken, JobId, ModelId, RegionId},
    job::Policy,
    matrix::Matrix,
    words::{JobState, OnLeaseLost},
};

use crate::{
    agent::Agent,
    checkers::{Books, Check, Standing, broken, hold},
};

/// A model in a region: all agents of the world have one provider, so it has one gate.
type Place = (ModelId, RegionId);

/// One cell of a job of weight 1; a multiple of every weight that the world draws.
const UNIT: u64 = 12;

/// The account.
#[derive(Debug, Default)]
pub struct Shares {
    /// Leases that have not ended.
    live: BTreeMap<FencingToken, Live>,
    /// Gates that met a limit.
    gates: BTreeMap<Place, Width>,
    jobs: BTreeMap<JobId, Job>,
    /// The turns on each agent.
    turns: BTreeMap<AgentId, Turns>,
}

/// A job.
#[derive(Debug)]
struct Job {
    matrix: Arc<Matrix>,
    policy: Policy,
    state: JobState,
    paused: bool,
    /// Cells that were ever leased.
    leased: BTreeSet<Cell>,
}

/// A lease.
#[derive(Debug)]
struct Live {
    grant: FencingToken,
    agent: AgentId,
    place: Place,
    /// From an earlier life: its gate may not know it until its agent says Hello.
    restored: bool,
}

/// How many calls a gate lets through at once, at the most.
#[derive(Debug)]
struct Width {
    most: usize,
    /// It has let one through since it last closed: before that, another 429 may find it closed.
    opened: bool,
}

/// What jobs had of an agent, in units and for their weights.
#[derive(Debug, Default)]
struct Turns {
    /// Two jobs, since both have had fresh cells for it.
    pairs: BTreeMap<(JobId, JobId), [u64; 2]>,
    /// The most that a job had at once.
    most: BTreeMap<JobId, u64>,
}

impl Shares {
    /// A life begins with what is committed.
    pub fn restore(&mut self, books: &Books) {
        for (id, book) in &books.jobs {
            let (matrix, policy) = (book.plan.matrix.clone(), book.plan.policy.clone());
            let leased = (0..).zip(&book.cells).filter(|(_, cell)| cell.granted).map(|(cell, _)| Cell(cell)).collect();
            let job = Job { matrix, policy, state: book.state, paused: book.paused, leased };
            self.jobs.insert(id.clone(), job);
        }
        for (&token, slot) in books.slots.iter().filter(|(_, slot)| slot.standing == Standing::Live) {
            let key = books.jobs.get(&slot.job).and_then(|book| book.plan.matrix.key(slot.cell));
            if let Some(key) = key {
                let place = (key.model, key.region);
                self.live.insert(token, Live { grant: slot.grant, agent: slot.agent.clone(), place, restored: true });
            }
        }
    }

    /// The provider's word closed a gate: half of what was under way may go at once, and the lease that met
    /// the limit was under way.
    pub fn limited(&mut self, place: Place) {
        let under_way = self.live.values().filter(|lease| lease.place == place).count() + 1;
        let width = self.gates.entry(place).or_insert(Width { most: usize::MAX, opened: true });
        if std::mem::take(&mut width.opened) {
            width.most = (under_way / 2).max(1);
        }
    }

    /// An agent says Hello: its session may be a new one, and turns begin again.
    pub fn hello(&mut self, agent: &AgentId) {
        if let Some(turns) = self.turns.get_mut(agent) {
            turns.pairs.clear();
        }
    }

    /// What the core has just decided keeps every share.
    pub fn keeps(&mut self, batch: &Batch, agents: &[Agent]) -> Check {
        for record in &batch.records {
            let lease = self.live.remove(&record.lease.fencing);
            let width = lease.and_then(|lease| self.gates.get_mut(&lease.place));
            if let (Outcome::Succeeded(_), Some(width)) = (&record.body.outcome, width) {
                width.most = width.most.saturating_add(1);
            }
        }
        for (grant, mask) in &batch.blanks {
            self.live.retain(|token, lease| lease.grant != *grant || mask & (1 << (token.get() - grant.get())) == 0);
        }
        self.live.retain(|_, lease| !batch.ended.contains(&lease.grant));
        for row in &batch.jobs {
            let (matrix, policy, leased) = (row.matrix.clone(), row.policy.clone(), BTreeSet::new());
            let job = Job { matrix, policy, state: JobState::Open, paused: false, leased };
            self.jobs.insert(row.id.clone(), job);
        }
        for (id, change) in &batch.job_changes {
            if let Some(job) = self.jobs.get_mut(id) {
                job.state = change.state.unwrap_or(job.state);
                job.paused = change.paused.unwrap_or(job.paused);
            }
        }
        batch.grants.iter().try_for_each(|grant| self.granted(grant, agents))
    }

    fn granted(&mut self, grant: &GrantRow, agents: &[Agent]) -> Check {
        let (Some(job), Some(agent)) =
            (self.jobs.get_mut(&grant.job), agents.iter().find(|agent| agent.id == grant.agent))
        else {
            return broken("slots", format!("nobody submitted that, or nobody is there for it: {grant:?}"));
        };
        // A cell by itself that was leased before may be one that runs alone, which is no turn.
        let turn = grant.cells.len() > 1 || grant.cells.iter().all(|cell| !job.leased.contains(cell));
        let mut places = BTreeSet::new();
        for (slot, cell) in (0..).zip(&grant.cells) {
            job.leased.insert(*cell);
            let Some(key) = job.matrix.key(*cell) else { continue };
            let place = (key.model, key.region);
            let live = Live { grant: grant.first, agent: grant.agent.clone(), place: place.clone(), restored: false };
            self.live.insert(grant.first.offset(slot), live);
            places.insert(place);
        }
        let held = self.live.values().filter(|lease| lease.agent == grant.agent).count();
        let room = (agent.slots + agent.prefetch) as usize;
        hold(held <= room, "slots", || format!("agent {} has {held} leases and room for {room}", agent.id))?;
        places.iter().try_for_each(|place| self.within_width(place))?;
        self.in_turn(grant, &places, turn)
    }

    fn within_width(&mut self, place: &Place) -> Check {
        let Some(width) = self.gates.get_mut(place) else { return Ok(()) };
        width.opened = true;
        let under_way = self.live.values().filter(|lease| lease.place == *place && !lease.restored).count();
        hold(under_way <= width.most, "width", || {
            format!("{under_way} leases of {place:?} at once, {} allowed since the last 429", width.most)
        })
    }

    /// No job of a higher priority waits with fresh cells for the same place, and those of the same
    /// priority have had what their weights say, give or take one grant each (start-time fair queueing).
    fn in_turn(&mut self, grant: &GrantRow, places: &BTreeSet<Place>, turn: bool) -> Check {
        let Some(Policy { priority, weight, .. }) = self.jobs.get(&grant.job).map(|job| job.policy.clone()) else {
            return Ok(());
        };
        let waiting = self.jobs.iter().filter(|(id, rival)| **id != grant.job && rival.waits(places));
        let above = waiting.clone().find(|(_, rival)| rival.policy.priority > priority);
        let above = above.map(|(id, _)| id);
        hold(above.is_none(), "turns", || format!("job {above:?} has a higher priority and waits: {grant:?}"))?;
        let rivals: BTreeSet<JobId> =
            waiting.filter(|(_, rival)| rival.policy.priority == priority).map(|(id, _)| id.clone()).collect();
        let turns = self.turns.entry(grant.agent.clone()).or_default();
        let takes_part = |id: &JobId| (*id == grant.job && turn) || rivals.contains(id);
        turns.pairs.retain(|(a, b), _| takes_part(a) && takes_part(b));
        let cells = grant.cells.len() as u64 * UNIT / u64::from(weight);
        let most = turns.most.entry(grant.job.clone()).or_default();
        *most = cells.max(*most);
        if !turn {
            return Ok(());
        }
        for rival in rivals {
            let mine = usize::from(grant.job > rival);
            let key = if mine == 0 { (grant.job.clone(), rival.clone()) } else { (rival.clone(), grant.job.clone()) };
            let most = |job| turns.most.get(job).copied().unwrap_or(0);
            let slack = most(&grant.job) + most(&rival);
            let pair = turns.pairs.entry(key).or_default();
            pair[mine] += cells;
            hold(pair[0].abs_diff(pair[1]) <= slack, "weights", || {
                format!("jobs {} and {rival} had {pair:?} of {}, in cells / {UNIT}", grant.job, grant.agent)
            })?;
        }
        Ok(())
    }
}

impl Job {
    /// Whether it surely has a cell for each of these places: no cap and no policy may keep it.
    fn waits(&self, places: &BTreeSet<Place>) -> bool {
        let policy = &self.policy;
        let capped = [policy.max_leased, policy.max_leased_per_model, policy.max_leased_per_region];
        let free = capped.iter().all(Option::is_none) && policy.on_lease_lost == OnLeaseLost::Retry;
        let has = |(model, region): &Place| {
            let lanes = self.matrix.lanes().iter();
            let mut here = lanes.filter(|l| l.region == *region && self.matrix.models()[l.model].id == *model);
            here.any(|l| (l.first..l.first + self.matrix.lane_len()).any(|cell| !self.leased.contains(&Cell(cell))))
        };
        self.state == JobState::Open && !self.paused && free && places.iter().all(has)
    }
}
