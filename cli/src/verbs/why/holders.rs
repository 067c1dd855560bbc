//! Which agents have the leases of a job.

use std::{collections::BTreeMap, time::Duration};

use semel_proto::v1 as pb;
use serde_json::{Value, json};

use crate::{
    attendance::Attendance,
    rate::in_words,
    road::{Admin, failure},
    terminal::shown,
};

/// Leases a page.
const PAGE: u32 = 1_000;
/// Pages that are read, of all jobs' leases.
const MAX_PAGES: usize = 20;
/// Agents that are named for one model in one region.
const MAX_AGENTS: usize = 4;

/// The leases of a job: by model and region, by agent.
#[derive(Debug, Default)]
pub struct Holders {
    lanes: BTreeMap<(String, String), BTreeMap<String, Held>>,
    /// Leases that were read, those of other jobs among them.
    read: u64,
    /// Whether there are more.
    has_more: bool,
}

/// What one agent has.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    cells: u64,
    oldest_ms: u64,
}

impl Holders {
    /// Of a job, as far as they are read.
    ///
    /// # Errors
    /// They can't be read.
    pub async fn of(mut admin: Admin, job_id: &str) -> anyhow::Result<Self> {
        let (mut holders, mut page_token) = (Self::default(), String::new());
        for _ in 0..MAX_PAGES {
            let request = pb::ListLeasesRequest { page_size: PAGE, page_token, ..Default::default() };
            let page = admin.list_leases(request).await.map_err(failure)?.into_inner();
            for lease in page.leases {
                holders.count(job_id, lease);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        holders.has_more = !page_token.is_empty();
        Ok(holders)
    }

    fn count(&mut self, job_id: &str, lease: pb::LeaseInfo) {
        self.read += 1;
        let Some(key) = lease.key.filter(|key| key.job_id == job_id) else { return };
        let held = self.lanes.entry((key.model, key.region)).or_default().entry(lease.agent_id).or_default();
        held.cells += 1;
        held.oldest_ms = held.oldest_ms.max(lease.age_ms);
    }

    fn of_group(&self, group: &pb::PendingGroup) -> impl Iterator<Item = (&String, &Held)> {
        let is_leased = group.reason() == pb::WaitReason::Leased;
        let lane = (group.model.clone(), group.region.clone());
        self.lanes.get(&lane).filter(|_| is_leased).into_iter().flatten()
    }

    /// Who has a group's cells, in words; empty where the group is not of leased ones.
    pub fn told(&self, group: &pb::PendingGroup, there: &Attendance) -> Vec<String> {
        let mut words: Vec<String> = self
            .of_group(group)
            .take(MAX_AGENTS)
            .map(|(agent, held)| {
                let (agent_id, since) = (shown(agent), in_words(Duration::from_millis(held.oldest_ms)));
                match there.agent(agent) {
                    _ if !there.is_running() => format!("agent {agent_id} had {}", held.cells),
                    Some(agent) if !agent.connected => {
                        let silent = in_words(Duration::from_millis(agent.last_heard_ms));
                        format!("agent {agent_id} has {}, and was last heard {silent} ago", held.cells)
                    }
                    None if there.has_agents() => {
                        format!("agent {agent_id} has {}, and has not come back", held.cells)
                    }
                    // Connected, or nobody could be asked.
                    _ => format!("agent {agent_id} has {}, the oldest for {since}", held.cells),
                }
            })
            .collect();
        let more = self.of_group(group).count().saturating_sub(MAX_AGENTS);
        if more > 0 {
            words.push(format!("{more} more agents"));
        }
        words
    }

    /// What is said where not all leases were read.
    pub fn left_out(&self) -> Option<String> {
        self.has_more.then(|| format!("agents are named of the first {} leases of all jobs", self.read))
    }

    /// How many leases were read, of all jobs, and whether those are all.
    pub fn extent(&self) -> Value {
        json!({ "complete": !self.has_more, "read": self.read })
    }

    /// For scripts.
    pub fn as_json(&self, group: &pb::PendingGroup) -> Value {
        let one = |(agent, held): (&String, &Held)| json!({ "agent": agent, "cells": held.cells, "oldest_ms": held.oldest_ms });
        self.of_group(group).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_told_with_its_agent_and_how_long_it_has_it() {
        let key = |job: &str| pb::ExecutionKey {
            job_id: job.to_owned(),
            model: "m".to_owned(),
            region: "r".to_owned(),
            ..Default::default()
        };
        let lease = |job: &str, agent: &str, age_ms| pb::LeaseInfo {
            key: Some(key(job)),
            agent_id: agent.to_owned(),
            age_ms,
            ..Default::default()
        };
        let mut holders = Holders::default();
        for held in
            [lease("j", "one", 2_000), lease("j", "one", 12_000), lease("j", "two", 0), lease("other", "one", 0)]
        {
            holders.count("j", held);
        }
        let agent = |id: &str, connected| pb::AgentInfo {
            agent_id: id.to_owned(),
            connected,
            last_heard_ms: 7_000,
            ..Default::default()
        };
        let there = Attendance::Coordinator(Some(vec![agent("one", true), agent("two", false)]));
        let group = |reason: pb::WaitReason| pb::PendingGroup {
            model: "m".to_owned(),
            region: "r".to_owned(),
            reason: reason.into(),
            ..Default::default()
        };
        assert_eq!(
            holders.told(&group(pb::WaitReason::Leased), &there),
            ["agent one has 2, the oldest for 12 s", "agent two has 1, and was last heard 7 s ago"]
        );
        assert_eq!(holders.told(&group(pb::WaitReason::Leased), &Attendance::Nobody)[0], "agent one had 2");
        let unasked = holders.told(&group(pb::WaitReason::Leased), &Attendance::Coordinator(None));
        assert_eq!(unasked[1], "agent two has 1, the oldest for 0 s", "nobody said that it is away");
        let away = holders.told(&group(pb::WaitReason::Leased), &Attendance::Coordinator(Some(Vec::new())));
        assert_eq!(away[1], "agent two has 1, and has not come back");
        assert_eq!(holders.extent(), json!({ "complete": true, "read": 4 }));
        assert!(holders.told(&group(pb::WaitReason::Backoff), &there).is_empty());
    }
}
