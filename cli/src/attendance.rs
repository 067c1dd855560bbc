//! Who is there to run a job: asked where a verb tells how one stands, so that nobody is blamed who was never started.

use std::time::Duration;

use semel_proto::v1 as pb;

use crate::rate::in_words;

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

    /// An agent, if it is there.
    pub fn agent(&self, id: &str) -> Option<&pb::AgentInfo> {
        match self {
            Self::Coordinator(Some(agents)) => agents.iter().find(|agent| agent.agent_id == id),
            _ => None,
        }
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
                let mut words = "nothing is running on this store; the same `semel run ...` goes on".to_owned();
                if leased > 0 {
                    let within = in_words(lease_limit());
                    words.push_str(&format!(", and within {within} of its start with the {leased} leased as well"));
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

/// For how long a coordinator that takes over keeps leases for agents that don't come back.
fn lease_limit() -> Duration {
    let semel_core::Config { ttl_ms, margin_ms, .. } = semel_core::Config::default();
    Duration::from_millis(ttl_ms + margin_ms)
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
        assert!(told.contains("within 35 s of its start with the 3 leased") && !told.contains("agent"), "{told}");
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
