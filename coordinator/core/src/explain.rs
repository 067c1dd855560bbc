//! Why cells are not done: for every cell without a record there is a reason, as data.

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
            let alone = if general.reason == WaitReason::NoFreeSlot { alone_wait() } else { general.clone() };
            push(alone, lane.to_run_alone());
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
        let alone = lane.waits_alone(cell) && general.reason == WaitReason::NoFreeSlot;
        Some(if alone { alone_wait() } else { general })
    }

    /// Why no cell of a lane is handed out: the most permanent reason first.
    fn lane_wait(&self, job: &Job, lane: &Lane, now: Millis) -> Wait {
        let model = &job.row.matrix.models()[lane.model].id;
        let here: Vec<&Session> =
            self.sessions.values().filter(|s| s.region == lane.region && s.stream.is_some()).collect();
        if here.is_empty() {
            return wait(WaitReason::NoAgentInRegion, "");
        }
        let serving: Vec<(&Session, &Serving)> =
            here.iter().filter_map(|s| s.models.get(model).map(|m| (*s, m))).collect();
        if serving.is_empty() {
            let names: Vec<_> = here.iter().take(3).map(|s| s.agent.as_str()).collect();
            return wait(WaitReason::NoAgentWithModel, &format!("{} serves no {model}", names.join(", ")));
        }
        if let Some((session, why)) = all(&serving, |(s, m)| m.trouble(now).map(|why| (*s, why))) {
            return wait(WaitReason::AgentMisconfigured, &format!("agent {}: {why}", session.agent));
        }
        if let Some(session) = all(&serving, |(s, _)| (s.slots == 0 || s.deaf).then_some(*s)) {
            let why = if session.deaf { "does not acknowledge its leases" } else { "takes no more leases" };
            return wait(WaitReason::Draining, &format!("agent {} {why}", session.agent));
        }
        if let Some((left, words)) = all(&serving, |(_, m)| self.gates.closed(m.gate, now)) {
            let detail = format!("the provider limits the rate: {words}");
            return Wait { reason: WaitReason::GateClosed, detail, until_ms: Some(left) };
        }
        if cap_room(job, lane) == 0 {
            return wait(WaitReason::CapFull, "a cap of the job's policy is reached");
        }
        wait(WaitReason::NoFreeSlot, "")
    }
}

/// The answer of the first, if all of them have one.
fn all<'a, T, R>(these: &'a [T], answer: impl Fn(&'a T) -> Option<R>) -> Option<R> {
    let mut answers = these.iter().map(answer);
    let first = answers.next()??;
    answers.all(|a| a.is_some()).then_some(first)
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
