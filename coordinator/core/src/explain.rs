//! Why cells are not done: for every cell without a record there is a reason, as data.

use std::cmp::Reverse;

use crate::{
    Core,
    event::{PendingGroup, Wait},
    id::{Cell, Millis},
    job::{Job, Lane},
    schedule::cap_room,
    session::{Serving, Session},
    words::{JobState, WaitReason},
};

impl Core {
    /// The cells of a job that are not done, by lane and reason, the largest group first.
    pub(crate) fn explain(&self, job: &Job, now: Millis) -> Vec<PendingGroup> {
        let mut groups = Vec::new();
        for lane in &job.lanes {
            let mut push = |wait: Wait, cells: u32| {
                if cells > 0 {
                    let model = job.row.matrix.models()[lane.model].id.clone();
                    groups.push(PendingGroup { model, region: lane.region.clone(), wait, cells });
                }
            };
            push(wait(WaitReason::Leased, ""), lane.leased);
            if lane.pending == 0 {
                continue;
            }
            if let Some(closed) = job_wait(job) {
                push(closed, lane.pending);
                continue;
            }
            let (backoff, first) = lane.in_backoff();
            push(backoff_wait(first, now), backoff);
            let general = self.lane_wait(job, lane, now);
            push(if is_passing(&general) { alone_wait() } else { general.clone() }, lane.to_run_alone());
            push(general, lane.available());
        }
        groups.sort_by(|a, b| b.cells.cmp(&a.cells).then_with(|| a.wait.cmp(&b.wait)));
        groups
    }

    /// Why one cell is not done; `None` if it is recorded.
    pub(crate) fn explain_cell(&self, job: &Job, cell: Cell, now: Millis) -> Option<Wait> {
        if job.recorded.contains(cell.0) {
            return None;
        }
        if let Some(lease) = job.leased.get(&cell).and_then(|t| self.leases.get(t)) {
            let detail = format!("agent {} holds attempt {} ({})", lease.agent, lease.attempt, lease.stage.as_str());
            return Some(Wait { reason: WaitReason::Leased, detail, until_ms: None });
        }
        let lane = &job.lanes[job.lane_of(cell)];
        if let Some(closed) = job_wait(job) {
            return Some(closed);
        }
        if let Some(at) = lane.ready_at(cell).filter(|at| *at > now) {
            return Some(backoff_wait(Some(at), now));
        }
        let general = self.lane_wait(job, lane, now);
        Some(if lane.waits_alone(cell) && is_passing(&general) { alone_wait() } else { general })
    }

    /// Why no cell of a lane is handed out: what keeps it from the agent that can take one soonest.
    fn lane_wait(&self, job: &Job, lane: &Lane, now: Millis) -> Wait {
        let model = &job.row.matrix.models()[lane.model].id;
        let here: Vec<&Session> =
            self.sessions.values().filter(|s| s.region == lane.region && s.stream.is_some()).collect();
        if here.is_empty() {
            return wait(WaitReason::NoAgentInRegion, "");
        }
        let serving = here.iter().filter_map(|s| Some((*s, s.models.get(model)?)));
        let waits = serving.map(|(session, serving)| self.agent_wait(job, lane, session, serving, now));
        waits.max_by_key(|wait| (wait.reason, Reverse(wait.until_ms))).unwrap_or_else(|| {
            let names: Vec<_> = here.iter().take(3).map(|s| s.agent.as_str()).collect();
            wait(WaitReason::NoAgentWithModel, &format!("{} serves no {model}", names.join(", ")))
        })
    }

    /// Why an agent is given no cell of a lane: the most permanent reason first.
    fn agent_wait(&self, job: &Job, lane: &Lane, session: &Session, serving: &Serving, now: Millis) -> Wait {
        let agent = &session.agent;
        if let Some(why) = serving.trouble(now) {
            return wait(WaitReason::AgentMisconfigured, &format!("agent {agent}: {why}"));
        }
        if session.deaf {
            return wait(WaitReason::Draining, &format!("agent {agent} does not acknowledge its leases"));
        }
        if session.slots == 0 {
            return wait(WaitReason::Draining, &format!("agent {agent} takes no more leases"));
        }
        if now < session.rest_until {
            let detail = format!("agent {agent} rests: {}", session.rests_for);
            let until_ms = Some(session.rest_until.since(now));
            return Wait { reason: WaitReason::AgentRests, detail, until_ms };
        }
        if let Some((left, words)) = self.gates.closed(serving.gate, now) {
            let detail = format!("the provider limits the rate: {words}");
            return Wait { reason: WaitReason::GateClosed, detail, until_ms: Some(left) };
        }
        if cap_room(job, lane) == 0 {
            return wait(WaitReason::CapFull, "a cap of the job's policy is reached");
        }
        if self.gates.room(serving.gate, now) == 0 {
            let detail = "the provider limited the rate; its gate lets one more call through with each that succeeds";
            return wait(WaitReason::GateFull, detail);
        }
        if session.leases.len() < session.slots as usize && self.is_kept(now, job, lane, session, serving) {
            return wait(WaitReason::KeptForALoneCell, &format!("of agent {agent}, of its gate or of the job's caps"));
        }
        wait(WaitReason::NoFreeSlot, "")
    }
}

/// Whether a reason is one that passes before a cell that is to run alone has its agent to itself.
fn is_passing(wait: &Wait) -> bool {
    wait.reason > WaitReason::WaitsToRunAlone
}

fn wait(reason: WaitReason, detail: &str) -> Wait {
    Wait { reason, detail: detail.to_owned(), until_ms: None }
}

fn alone_wait() -> Wait {
    wait(WaitReason::WaitsToRunAlone, "its earlier attempts died with their agent; it waits for an agent to itself")
}

fn backoff_wait(first: Option<Millis>, now: Millis) -> Wait {
    let detail = "an attempt failed; the next one waits".to_owned();
    Wait { reason: WaitReason::Backoff, detail, until_ms: first.map(|at| at.since(now)) }
}

fn job_wait(job: &Job) -> Option<Wait> {
    match job.state {
        JobState::Cancelled => Some(wait(WaitReason::JobClosed, "the job was cancelled")),
        JobState::Expired => Some(wait(WaitReason::JobClosed, "the job's deadline passed")),
        JobState::Open if job.paused => Some(wait(WaitReason::Paused, "the job is paused")),
        JobState::Open => None,
    }
}
