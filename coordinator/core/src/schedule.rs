//! Who gets what: fair turns between jobs, the warm model first within one, and every cap and gate kept.

use std::cmp::Reverse;

use crate::{
    Core,
    batch::MAX_GRANT,
    event::Decision,
    gate::GateNo,
    id::{AgentId, Cell, JobNo, Millis, ModelId, Nonce, Now, RegionId},
    job::{Job, Lane},
    session::{Serving, Session},
};

/// A model that succeeded on an agent within this time is warm there.
pub const WARM_MS: u64 = 300_000;
/// One cell of a job of weight 1, in the virtual time of fair turns: any weight up to 1,000 divides it well.
const TURN: u64 = 1_000_000;

/// A lane from which an agent could be given cells now.
struct Candidate {
    job: JobNo,
    lane: usize,
    gate: GateNo,
    /// How many, by the lane, the caps and the gate.
    room: u32,
    alone: bool,
    warm: bool,
}

impl Core {
    /// Grants what can be granted, a nonce a grant. Free slots are filled on every agent before any
    /// agent is given more than it can run, so that a short job spreads over all of them.
    pub(crate) fn assign(&mut self, at: Now, nonces: Vec<Nonce>, out: &mut Decision) {
        let mut nonces = nonces.into_iter();
        for beyond_slots in [false, true] {
            let agents: Vec<AgentId> =
                self.sessions.values().filter(|s| s.capacity(at.mono) > 0).map(|s| s.agent.clone()).collect();
            for agent in agents {
                while let Some((job, cells)) = self.pick(at.mono, &agent, beyond_slots) {
                    let Some(nonce) = nonces.next() else {
                        self.untake(at.mono, job, &cells);
                        out.more = true;
                        return;
                    };
                    self.grant(at, &agent, job, &cells, nonce, out);
                }
            }
        }
    }

    /// Cells of one job for one agent, taken out of their lanes.
    fn pick(&mut self, now: Millis, agent: &AgentId, beyond_slots: bool) -> Option<(JobNo, Vec<(Cell, GateNo)>)> {
        if self.counter > u32::MAX - MAX_GRANT as u32 {
            // Rule C8: a grant never wraps; the shell takes a new epoch.
            return None;
        }
        let session = self.sessions.get(agent)?;
        let wanted = if beyond_slots {
            session.capacity(now)
        } else {
            session.capacity(now).min(session.slots.saturating_sub(session.leases.len() as u32))
        };
        if wanted == 0 {
            return None;
        }
        let idle = session.leases.is_empty();
        let mut candidates = self.candidates(now, agent);
        if beyond_slots {
            // A lease that waits for a slot may have started when its agent dies; where that is the end of
            // the cell, none waits.
            candidates.retain(|c| self.jobs.get(&c.job).is_some_and(|j| j.row.policy.on_lease_lost.may_run_again()));
        }
        if let Some(alone) = candidates.iter().find(|c| c.alone) {
            if idle {
                return self.pick_alone(agent, alone.job, alone.lane, alone.gate);
            }
            if self.drains_for(now, agent, alone.job, alone.lane) {
                return None;
            }
        }
        let region = self.sessions.get(agent)?.region.clone();
        self.pick_shared(wanted, &region, candidates)
    }

    /// The fair turn: the highest priority, then the job that has had the least for its weight.
    fn pick_shared(
        &mut self,
        wanted: u32,
        region: &RegionId,
        mut candidates: Vec<Candidate>,
    ) -> Option<(JobNo, Vec<(Cell, GateNo)>)> {
        candidates.retain(|c| !c.alone);
        let key = |no: JobNo| self.jobs.get(&no).map(|j| (Reverse(j.row.policy.priority), j.turn, no));
        let best = candidates.iter().filter_map(|c| key(c.job)).min()?;
        let no = best.2;
        let mut rivals: Vec<JobNo> = candidates.iter().map(|c| c.job).collect();
        rivals.dedup();
        candidates.retain(|c| c.job == no);
        candidates.sort_by_key(|c| (!c.warm, c.lane));
        let share = wanted.div_ceil(rivals.len() as u32).min(MAX_GRANT as u32);
        let job = self.jobs.get_mut(&no)?;
        // A job's lanes of one region differ in model, so only the job's and the region's caps are shared between them.
        let mut left = share.min(shared_cap_room(job, region));
        let mut cells = Vec::new();
        for candidate in candidates {
            let got = job.take(candidate.lane, left.min(candidate.room));
            left -= got.len() as u32;
            cells.extend(got.into_iter().map(|cell| (cell, candidate.gate)));
        }
        job.turn += cells.len() as u64 * TURN / u64::from(job.row.policy.weight.max(1));
        self.turn = self.turn.max(best.1);
        (!cells.is_empty()).then_some((no, cells))
    }

    /// Rule S7: a cell with one attempt left after a death in company has its agent to itself.
    fn pick_alone(
        &mut self,
        agent: &AgentId,
        no: JobNo,
        lane: usize,
        gate: GateNo,
    ) -> Option<(JobNo, Vec<(Cell, GateNo)>)> {
        let cell = self.jobs.get_mut(&no)?.take_alone(lane)?;
        self.sessions.get_mut(agent)?.alone = true;
        Some((no, vec![(cell, gate)]))
    }

    /// A grant that can't be made now: its cells go back where they were.
    fn untake(&mut self, now: Millis, no: JobNo, cells: &[(Cell, GateNo)]) {
        if let Some(job) = self.jobs.get_mut(&no) {
            for &(cell, _) in cells {
                job.put_back(cell, now, now);
            }
            // A cell that runs alone is given out beside the turns.
            let alone = |cell| job.history.get(cell).is_some_and(|h| h.must_run_alone(&job.row.policy));
            if !cells.iter().any(|(cell, _)| alone(cell)) {
                job.turn -= (cells.len() as u64 * TURN / u64::from(job.row.policy.weight.max(1))).min(job.turn);
            }
        }
        for session in self.sessions.values_mut() {
            session.alone &= !session.leases.is_empty();
        }
    }

    /// Whether this agent is the one that runs empty so that a cell can run alone: the first by id that could take it.
    fn drains_for(&self, now: Millis, agent: &AgentId, no: JobNo, lane: usize) -> bool {
        let Some(job) = self.jobs.get(&no) else {
            return false;
        };
        let lane = &job.lanes[lane];
        let model = &job.row.matrix.models()[lane.model].id;
        let able = |s: &&Session| {
            s.region == lane.region
                && s.stream.is_some()
                && s.slots > 0
                && !s.deaf
                && s.rest_until <= now
                && s.models.get(model).is_some_and(|m| m.unready.is_none() && m.rest_until <= now)
        };
        self.sessions.values().find(able).is_some_and(|s| s.agent == *agent)
    }

    /// The lanes from which an agent could be given cells now.
    fn candidates(&mut self, now: Millis, agent: &AgentId) -> Vec<Candidate> {
        let Some(session) = self.sessions.get(agent) else {
            return vec![];
        };
        let mut found = Vec::new();
        for (model, serving) in session.models.iter().filter(|(_, m)| m.unready.is_none() && m.rest_until <= now) {
            let gate_room = self.gates.room(serving.gate, now);
            let Some(lanes) = self.places.get(&(session.region.clone(), model.clone())) else {
                continue;
            };
            if gate_room == 0 {
                continue;
            }
            for &(no, lane) in lanes {
                let Some(job) = self.jobs.get_mut(&no).filter(|j| j.hands_out() && j.lanes[lane].pending > 0) else {
                    continue;
                };
                job.wake(lane, now);
                let room = gate_room.min(cap_room(job, &job.lanes[lane]));
                let (shared, alone) = (job.lanes[lane].available(), job.lanes[lane].to_run_alone());
                if room == 0 || shared + alone == 0 {
                    continue;
                }
                let warm = is_warm(serving, now);
                let room = room.min(shared);
                if alone > 0 {
                    found.push(Candidate { job: no, lane, gate: serving.gate, room: 1, alone: true, warm });
                }
                if room > 0 {
                    found.push(Candidate { job: no, lane, gate: serving.gate, room, alone: false, warm });
                }
            }
        }
        found.sort_by_key(|c| (c.job, c.lane));
        found
    }

    /// Makes the lanes of a job known to the agents of their places, or forgets them.
    pub(crate) fn list_places(&mut self, no: JobNo, listed: bool) {
        let Some(job) = self.jobs.get(&no) else {
            return;
        };
        for (lane, axis) in job.row.matrix.lanes().iter().enumerate() {
            let place = (axis.region.clone(), place_model(job, axis.model));
            if listed {
                self.places.entry(place).or_default().insert((no, lane));
            } else if let Some(lanes) = self.places.get_mut(&place) {
                lanes.remove(&(no, lane));
            }
        }
    }
}

fn place_model(job: &Job, model: usize) -> ModelId {
    job.row.matrix.models()[model].id.clone()
}

fn is_warm(serving: &Serving, now: Millis) -> bool {
    serving.warm_at.is_some_and(|at| now.since(at) <= WARM_MS)
}

/// How many more cells of a lane the job's caps allow.
pub(crate) fn cap_room(job: &Job, lane: &Lane) -> u32 {
    let of_model = left(job.row.policy.max_leased_per_model, job.leased_by_model[lane.model]);
    shared_cap_room(job, &lane.region).min(of_model)
}

/// How many more cells in a region the caps of the job and the region allow.
fn shared_cap_room(job: &Job, region: &RegionId) -> u32 {
    let of_region = job.leased_by_region.get(region).copied().unwrap_or(0);
    left(job.row.policy.max_leased, job.leased.len() as u32).min(left(job.row.policy.max_leased_per_region, of_region))
}

fn left(cap: Option<u32>, used: u32) -> u32 {
    cap.map_or(u32::MAX, |cap| cap.saturating_sub(used))
}
