//! Who is there to run a job: asked where a verb tells how one stands, so that nobody is blamed who was never started.

use semel_proto::v1 as pb;

use crate::words;

/// What is true of a store where nobody runs anything.
pub const NOTHING_RUNS: &str = "nothing is running on this store";
/// What goes on there.
pub const GOES_ON: &str = "the same `semel run ...` goes on";

/// The name of that as the reason of a cell that waits, for scripts.
const NOTHING_IS_RUNNING: &str = "nothing_is_running";

/// Who is there.
#[derive(Clone, Debug)]
pub enum Attendance {
    /// Nobody: the coordinator that answers was started for the call.
    Nobody,
    /// A coordinator that runs, and these agents with a live session; none where they couldn't be asked for.
    Coordinator(Option<Vec<pb::AgentInfo>>),
}

impl Attendance {
    /// Whether a coordinator runs.
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Coordinator(_))
    }

    /// Whether a coordinator runs, and said which agents it has.
    pub fn has_agents(&self) -> bool {
        matches!(self, Self::Coordinator(Some(_)))
    }

    /// An agent, if it is there.
    pub fn agent(&self, id: &str) -> Option<&pb::AgentInfo> {
        match self {
            Self::Coordinator(Some(agents)) => agents.iter().find(|agent| agent.agent_id == id),
            _ => None,
        }
    }

    /// Why a cell waits, for scripts: agents that nobody started aren't missing.
    pub fn reason(&self, reason: pb::WaitReason) -> String {
        if self.is_nobody_missing(reason) { NOTHING_IS_RUNNING.to_owned() } else { words::wait_reason(reason) }
    }

    /// As [`Attendance::reason`], for people.
    pub fn because(&self, reason: pb::WaitReason) -> &'static str {
        if self.is_nobody_missing(reason) { NOTHING_RUNS } else { words::waits_because(reason) }
    }

    /// Whether a cell waits for an agent only because nothing was started.
    pub fn is_nobody_missing(&self, reason: pb::WaitReason) -> bool {
        reason == pb::WaitReason::NoAgentInRegion && !self.is_running()
    }

    /// Why nothing of an open job goes on, where it is that nobody is there; and what becomes of its leases.
    pub fn told(&self, job: &pb::Job) -> Option<String> {
        let counts = job.counts.unwrap_or_default();
        if job.state() != pb::JobState::Open || counts.leased + counts.pending == 0 {
            return None;
        }
        let leased = counts.leased;
        match self {
            Self::Nobody => {
                let mut words = format!("{NOTHING_RUNS}; {GOES_ON}");
                if leased > 0 {
                    words.push_str(&format!(", soon after its start with the {leased} leased as well"));
                }
                Some(words)
            }
            Self::Coordinator(Some(agents)) if !agents.iter().any(|agent| agent.connected) => Some(match leased {
                0 => "no agent is connected to the coordinator".to_owned(),
                _ => format!("no agent is connected: the {leased} leased wait for theirs until their leases run out"),
            }),
            Self::Coordinator(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: pb::JobState, leased: u64, pending: u64) -> pb::Job {
        let counts = pb::Counts { expected: 8, leased, pending, ..Default::default() };
        pb::Job { state: state.into(), counts: Some(counts), ..Default::default() }
    }

    #[test]
    fn agents_are_blamed_only_where_a_coordinator_runs() {
        let open = job(pb::JobState::Open, 3, 5);
        let told = Attendance::Nobody.told(&open).expect("told");
        assert!(told.starts_with("nothing is running on this store; the same `semel run ...` goes on"), "{told}");
        assert!(told.contains("soon after its start with the 3 leased") && !told.contains("agent"), "{told}");
        let told = Attendance::Coordinator(Some(Vec::new())).told(&open).expect("told");
        assert!(told.starts_with("no agent is connected: the 3 leased"), "{told}");
    }

    #[test]
    fn of_a_job_that_has_ended_nothing_is_missed() {
        assert_eq!(Attendance::Nobody.told(&job(pb::JobState::Complete, 0, 0)), None);
        assert_eq!(Attendance::Nobody.told(&job(pb::JobState::Cancelled, 0, 0)), None);
        assert_eq!(Attendance::Coordinator(None).told(&job(pb::JobState::Open, 1, 0)), None, "that can't be told");
    }
}
