//! Who gets what: fair turns between jobs, the warm model first within one, and every cap and gate kept.

use std::{cmp::Reverse, collections::BTreeSet};

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
#[derive(Clone, Copy)]
struct Candidate {
    job: JobNo,
    lane: usize,
    gate: GateNo,
    /// How many, by the lane, the caps and the gate; of a cell that is to run alone it may be none yet.
    room: u32,
    /// A cell that is to run alone (rule S7).
    alone: bool,
    /// The agent runs empty for it.
    drains: bool,
    /// It was handed back, and gives way.
    refused: bool,
    warm: bool,
}

impl Core {
    /// Grants what can be granted, a nonce a grant; once they are used up there may be more. Free slots are
    /// filled on every agent before any agent is given more than it can run, so that a short job spreads
    /// over all of them.
    pub(crate) fn assign(&mut self, at: Now, nonces: Vec<Nonce>, out: &mut Decision) {
        let mut nonces = nonces.as_slice();
        for beyond_slots in [false, true] {
            let agents: Vec<AgentId> =
                self.sessions.values().filter(|s| s.capacity(at.mono) > 0).map(|s| s.agent.clone()).collect();
            for agent in agents {
                loop {
                    let Some((&nonce, left)) = nonces.split_first() else {
                        out.more = true;
                        return;
                    };
                    let Some((job, cells)) = self.pick(at.mono, &agent, beyond_slots) else { break };
                    self.grant(at, &agent, job, &cells, nonce, out);
                    nonces = left;
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
        let shared = candidates.iter().filter(|c| !c.alone).map(|c| self.turn_of(agent, c.job)).min();
        // Of one priority, what was handed back goes after all that can go now.
        let may = |c: &&Candidate| {
            let Reverse(priority) = self.turn_of(agent, c.job).0;
            shared.is_none_or(|(Reverse(of), ..)| if c.refused { priority > of } else { priority >= of })
        };
        let alone = candidates.iter().filter(|c| c.alone).filter(may);
        if let Some(alone) = alone.min_by_key(|c| (c.room == 0, c.refused, self.turn_of(agent, c.job))) {
            if idle && alone.room > 0 {
                return self.pick_alone(agent, alone.job, alone.lane, alone.gate);
            }
            if alone.drains {
                return None;
            }
        }
        candidates.retain(|c| !c.alone && c.room > 0);
        if beyond_slots {
            // A lease that waits for a slot may have started when its agent dies; where that is the end of
            // the cell, none waits.
            candidates.retain(|c| self.jobs.get(&c.job).is_some_and(|j| j.row.policy.on_lease_lost.may_run_again()));
        }
        self.pick_shared(now, agent, wanted, candidates)
    }

    /// Whose turn it is on an agent: the least goes first, by the highest priority and then by what a job has
    /// had there for its weight. Jobs compete for an agent; elsewhere others do, at another pace.
    fn turn_of(&self, agent: &AgentId, no: JobNo) -> (Reverse<i32>, u64, JobNo) {
        let had = |s: &Session| s.turns.get(&no).copied().unwrap_or(0).max(s.turn);
        let priority = self.jobs.get(&no).map_or(i32::MIN, |job| job.row.policy.priority);
        (Reverse(priority), self.sessions.get(agent).map_or(0, had), no)
    }

    /// The fair turn, of a job's cells that need no agent to themselves.
    fn pick_shared(
        &mut self,
        now: Millis,
        agent: &AgentId,
        wanted: u32,
        mut candidates: Vec<Candidate>,
    ) -> Option<(JobNo, Vec<(Cell, GateNo)>)> {
        let (_, turn, no) = candidates.iter().map(|c| self.turn_of(agent, c.job)).min()?;
        let mut rivals: Vec<JobNo> = candidates.iter().map(|c| c.job).collect();
        rivals.dedup();
        candidates.retain(|c| c.job == no);
        candidates.sort_by_key(|c| (!c.warm, c.lane));
        let share = wanted.div_ceil(rivals.len() as u32).min(MAX_GRANT as u32);
        let (job, region) = (self.jobs.get(&no)?, &self.sessions.get(agent)?.region);
        // A job's lanes of one region differ in model, so only the job's and the region's caps are shared between them.
        let mut left = share.min(shared_cap_room(job, region).saturating_sub(self.kept_of_caps(now, job)));
        let job = self.jobs.get_mut(&no)?;
        let mut cells = Vec::new();
        for candidate in candidates {
            let got = job.take(candidate.lane, left.min(candidate.room));
            left -= got.len() as u32;
            cells.extend(got.into_iter().map(|cell| (cell, candidate.gate)));
        }
        // Start-time fair queueing (Goyal et al., 1996): a job that had nothing to hand out, or nobody to
        // hand it to, takes part from here on, and does not get all turns until it has caught up.
        let cost = cells.len() as u64 * TURN / u64::from(job.row.policy.weight.max(1));
        let session = self.sessions.get_mut(agent)?;
        session.turn = turn;
        session.turns.retain(|_, ahead| *ahead > turn);
        session.turns.insert(no, turn + cost);
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

    /// The first agent by id on which a cell of a job could run alone, and the gate through which it will go.
    fn first_able(&self, now: Millis, job: &Job, lane: &Lane) -> Option<(&AgentId, GateNo)> {
        let model = &job.row.matrix.models()[lane.model].id;
        let mut here =
            self.sessions.values().filter(|s| s.region == lane.region && s.stream.is_some() && s.slots > 0 && !s.deaf);
        here.find_map(|session| {
            let serving = session.models.get(model).filter(|m| session.rest_until <= now && m.is_usable(now))?;
            let able = self.gates.closed(serving.gate, now).is_none() && !self.is_outranked(now, job, session);
            able.then_some((&session.agent, serving.gate))
        })
    }

    /// Whether an agent has cells of a higher priority to run: it does not run empty for this job.
    fn is_outranked(&self, now: Millis, job: &Job, session: &Session) -> bool {
        let usable = session.models.iter().filter(|(_, m)| m.is_usable(now) && self.gates.room(m.gate, now) > 0);
        let mut places = usable.filter_map(|(model, _)| self.places.get(&(session.region.clone(), model.clone())));
        places.any(|lanes| self.have_cells(lanes, |rival| rival.row.policy.priority > job.row.policy.priority))
    }

    /// Whether a lane of these has cells for any agent that its caps let go, of a job that is meant.
    fn have_cells(&self, lanes: &BTreeSet<(JobNo, usize)>, is_meant: impl Fn(&Job) -> bool) -> bool {
        lanes.iter().any(|&(no, lane)| {
            let job = self.handing_out(no, lane).filter(|job| is_meant(job));
            job.is_some_and(|job| job.lanes[lane].available() > 0 && cap_room(job, &job.lanes[lane]) > 0)
        })
    }

    /// Whether the cells of a lane that are to run alone give way: all of them were handed back for nothing,
    /// and others of no lower priority could go through their gate. Once one of those succeeds, or none is
    /// left, their turn has come again.
    fn give_way(&self, job: &Job, lane: &Lane) -> bool {
        let place = (lane.region.clone(), place_model(job, lane.model));
        let others = self.places.get(&place).filter(|_| !lane.wants_an_agent());
        others.is_some_and(|lanes| self.have_cells(lanes, |it| it.row.policy.priority >= job.row.policy.priority))
    }

    /// Whether a cell of a lane waits to run alone and there is an agent that could take it: who that is.
    fn taker(&self, now: Millis, job: &Job, lane: &Lane) -> Option<(&AgentId, GateNo)> {
        if lane.to_run_alone() == 0 || self.give_way(job, lane) {
            return None;
        }
        self.first_able(now, job, lane)
    }

    /// Who runs empty for a cell of a lane, so that it can run alone: nobody while leases elsewhere hold the
    /// caps of its job.
    fn drainer(&self, now: Millis, job: &Job, lane: &Lane) -> Option<(&AgentId, GateNo)> {
        self.taker(now, job, lane).filter(|_| cap_room(job, lane) > 0)
    }

    /// Whether an agent runs empty, so that some cell can run alone on it.
    fn runs_empty(&self, now: Millis, session: &Session) -> bool {
        let places = session.models.keys().filter_map(|m| self.places.get(&(session.region.clone(), m.clone())));
        places.flatten().any(|&(no, lane)| {
            let drainer = self.handing_out(no, lane).and_then(|job| self.drainer(now, job, &job.lanes[lane]));
            drainer.is_some_and(|(who, _)| *who == session.agent)
        })
    }

    /// Whether an agent with a free slot does not get a lane's cells so that a cell can run alone: the agent
    /// has it or runs empty for it, or the last place of the gate or of the job's caps is kept for it.
    pub(crate) fn is_kept(&self, now: Millis, job: &Job, lane: &Lane, session: &Session, serving: &Serving) -> bool {
        let model = &job.row.matrix.models()[lane.model].id;
        let kept = self.kept_of_gate(now, &lane.region, model, serving.gate);
        session.alone || self.shared_room(now, job, lane, serving.gate, kept) == 0 || self.runs_empty(now, session)
    }

    /// How many cells of a lane the gate and the caps let through that need no agent to themselves. `kept` is
    /// the priority for which a place of the gate is kept.
    fn shared_room(&self, now: Millis, job: &Job, lane: &Lane, gate: GateNo, kept: Option<i32>) -> u32 {
        let kept = u32::from(kept.is_some_and(|priority| job.row.policy.priority <= priority));
        let of_gate = self.gates.room(gate, now).saturating_sub(kept);
        of_gate.min(cap_room(job, lane).saturating_sub(self.kept_of_caps(now, job)))
    }

    /// The highest priority for which a place of a gate is kept, for a cell that is to run alone.
    fn kept_of_gate(&self, now: Millis, region: &RegionId, model: &ModelId, gate: GateNo) -> Option<i32> {
        let lanes = self.places.get(&(region.clone(), model.clone()))?;
        let jobs = lanes.iter().filter_map(|&(no, lane)| Some((self.handing_out(no, lane)?, lane)));
        let kept = jobs.filter(|(job, lane)| {
            job.alone > 0 && self.drainer(now, job, &job.lanes[*lane]).is_some_and(|(_, through)| through == gate)
        });
        kept.map(|(job, _)| job.row.policy.priority).max()
    }

    /// How many places of a job's caps are kept for a cell that is to run alone.
    fn kept_of_caps(&self, now: Millis, job: &Job) -> u32 {
        u32::from(job.alone > 0 && job.lanes.iter().any(|lane| self.taker(now, job, lane).is_some()))
    }

    /// The lanes from which an agent could be given cells now. Of a gate and of a job's caps one place is kept
    /// for a cell that is to run alone: it would be taken again and again while its agent runs empty.
    fn candidates(&mut self, now: Millis, agent: &AgentId) -> Vec<Candidate> {
        self.wake_lanes(now, agent);
        let Some(session) = self.sessions.get(agent) else {
            return vec![];
        };
        let mut found = Vec::new();
        for (model, serving) in session.models.iter().filter(|(_, m)| m.is_usable(now)) {
            let Some(lanes) = self.places.get(&(session.region.clone(), model.clone())) else {
                continue;
            };
            if self.gates.closed(serving.gate, now).is_some() {
                continue;
            }
            let kept = self.kept_of_gate(now, &session.region, model, serving.gate);
            let jobs = lanes.iter().filter_map(|&(no, lane)| self.handing_out(no, lane).map(|job| (no, job, lane)));
            for (no, job, lane) in jobs {
                let (shared, alone) = (job.lanes[lane].available(), job.lanes[lane].to_run_alone());
                let candidate = Candidate {
                    job: no,
                    lane,
                    gate: serving.gate,
                    room: 0,
                    alone: false,
                    drains: false,
                    refused: alone > 0 && self.give_way(job, &job.lanes[lane]),
                    warm: is_warm(serving, now),
                };
                let room = self.shared_room(now, job, &job.lanes[lane], serving.gate, kept);
                if alone > 0 {
                    let drains = self.drainer(now, job, &job.lanes[lane]).is_some_and(|(who, _)| who == agent);
                    // Places are kept for those that were not handed back.
                    let all = self.gates.room(serving.gate, now).min(cap_room(job, &job.lanes[lane]));
                    let room = if candidate.refused { room } else { all };
                    found.push(Candidate { room: room.min(1), alone: true, drains, ..candidate });
                }
                if room.min(shared) > 0 {
                    found.push(Candidate { room: room.min(shared), ..candidate });
                }
            }
        }
        found.sort_by_key(|c| (c.job, c.lane));
        found
    }

    /// Makes ready what has waited long enough, in every lane from which an agent could be given cells.
    fn wake_lanes(&mut self, now: Millis, agent: &AgentId) {
        let Some(session) = self.sessions.get(agent) else {
            return;
        };
        for model in session.models.keys() {
            for (no, lane) in self.places.get(&(session.region.clone(), model.clone())).into_iter().flatten() {
                if let Some(job) = self.jobs.get_mut(no) {
                    job.wake(*lane, now);
                }
            }
        }
    }

    fn handing_out(&self, no: JobNo, lane: usize) -> Option<&Job> {
        self.jobs.get(&no).filter(|job| job.hands_out() && job.lanes[lane].pending > 0)
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
