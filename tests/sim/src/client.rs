//! Callers: what they submit, and what they ask.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use semel_core::{
    batch::StoredSpec,
    id::{CallId, Digest, JobId, ModelId, QuestionId, RegionId},
    job::Policy,
    matrix::{Matrix, ModelAxis},
    words::OnLeaseLost,
};

use crate::dice::{Dice, digest_of};

/// Regions of the world.
pub const REGIONS: [&str; 3] = ["r0", "r1", "r2"];
/// Models of the world.
pub const MODELS: [&str; 3] = ["m0", "m1", "m2"];

/// A specification that somebody submits.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The job's id.
    pub id: JobId,
    /// The specification's digest.
    pub digest: Digest,
    /// Its matrix.
    pub matrix: Arc<Matrix>,
    /// Its policy.
    pub policy: Policy,
    /// As stored.
    pub spec: Arc<StoredSpec>,
}

/// A call.
#[derive(Clone, Debug)]
pub enum Call {
    /// Submits a plan.
    Submit(usize),
    /// Cancels a job.
    Cancel(JobId),
    /// Pauses a job.
    Pause(JobId),
    /// Resumes it.
    Resume(JobId),
    /// Runs failed records, or all, again; opens a closed job or not.
    Retry {
        /// The job.
        job: JobId,
        /// A closed one too.
        reopen: bool,
        /// Only the failed.
        failed: bool,
    },
    /// Asks for a job.
    Job(JobId),
    /// Asks for all jobs.
    Jobs,
    /// Asks why cells wait.
    Explain(JobId),
    /// Asks for the agents.
    Agents,
    /// Asks for the leases.
    Leases,
}

/// The callers of a world.
#[derive(Debug, Default)]
pub struct Clients {
    /// What is submitted; the last of a job's plans with the same id is another specification.
    pub plans: Vec<Plan>,
    /// Whether the plan's submission was answered.
    pub answered: Vec<bool>,
    /// Calls under way.
    pub calls: BTreeMap<CallId, Call>,
    last: u64,
}

impl Clients {
    /// Draws the plans of a seed.
    pub fn draw(dice: &mut Dice) -> Self {
        let mut clients = Self::default();
        for job in 0..dice.between(1, 4) {
            let id = JobId::new(format!("job-{job}"));
            clients.plans.push(plan(id.clone(), dice));
            if dice.one_in(2) {
                clients.plans.push(plan(id, dice));
            }
        }
        clients.answered = vec![false; clients.plans.len()];
        clients
    }
    /// Numbers a call.
    pub fn number(&mut self, call: Call) -> CallId {
        self.last += 1;
        let id = CallId(self.last);
        self.calls.insert(id, call);
        id
    }
}

fn plan(id: JobId, dice: &mut Dice) -> Plan {
    let mut models = Vec::new();
    for (at, model) in MODELS.iter().enumerate().take(dice.between(1, 3) as usize) {
        let mut regions: Vec<RegionId> = REGIONS.iter().filter(|_| dice.one_in(2)).map(|r| (*r).into()).collect();
        if regions.is_empty() {
            regions.push(REGIONS[at].into());
        }
        let accept = vec![format!("{model}-b").into()];
        models.push(ModelAxis { id: ModelId::new(*model), name: (*model).into(), accept, regions });
    }
    let questions = (0..dice.between(1, 6)).map(|q| QuestionId::new(format!("q{q}"))).collect();
    let repeat = dice.between(1, 2) as u32;
    let matrix = Arc::new(Matrix::new(models, questions, repeat).expect("a small matrix"));
    let cap = |dice: &mut Dice| dice.one_in(5).then(|| dice.between(1, 6) as u32);
    let policy = Policy {
        attempts: dice.between(1, 3) as u32,
        backoff_ms: dice.between(0, 2_000),
        max_backoff_ms: dice.between(1_000, 10_000),
        run_timeout_ms: dice.between(2_000, 20_000),
        cold_timeout_ms: dice.between(2_000, 30_000),
        deadline_ms: if dice.one_in(6) { dice.between(10_000, 200_000) } else { 1_000_000_000 },
        on_lease_lost: if dice.one_in(5) { OnLeaseLost::Fail } else { OnLeaseLost::Retry },
        max_leased: cap(dice),
        max_leased_per_model: cap(dice),
        max_leased_per_region: cap(dice),
        require_reported_region: dice.one_in(6),
        weight: dice.between(1, 4) as u32,
        priority: dice.between(0, 1) as i32,
    };
    let digest = Digest(digest_of(dice.draw(), 3));
    let spec = StoredSpec { sent: Bytes::from_static(b"{}"), resolved: Bytes::from_static(b"{}"), input_version: 1 };
    Plan { id, digest, matrix, policy, spec: Arc::new(spec) }
}
