//! Jobs, rows, and the normal form in which tables and stores are compared.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use semel_coordinator::{
    jobspec,
    store::{Execution, Filter, MAX_PAGE_ROWS, Store, sqlite::open_read_only},
};
use semel_core::{
    batch::{
        AgentRow, AttemptRow, GrantRow, JobRow, MAX_KEPT_ANSWER, Outcome, Record, ReportBody, Served, StoredSpec,
        Success, Timings,
    },
    id::{AgentId, Cell, Digest, Epoch, FencingToken, Incarnation, JobId, LeaseToken, Nonce, Seq, UnixMs},
    tables::{Loaded, StoredJob, Tables},
    words::{AttemptKind, RegionBasis},
};
use semel_spec::{Checked, JobSpec, Model, Question};
use sha2::{Digest as _, Sha256};
use sqlx::Row;

/// A ragged matrix: two models, three lanes, `questions` × `repeat` cells in each.
pub fn spec(questions: usize, repeat: u32) -> Checked {
    let model = |id: &str, regions: &[&str]| Model {
        id: id.into(),
        regions: regions.iter().map(|r| (*r).into()).collect(),
        ..Model::default()
    };
    let question = |n| Question { id: format!("q{n}"), prompt: Some(format!("What is {n}?")), ..Question::default() };
    semel_spec::check(JobSpec {
        questions: (0..questions).map(question).collect(),
        models: vec![model("mistral-7b", &["us-east", "eu-west"]), model("llama3.2-1b", &["us-east"])],
        repeat: Some(repeat),
        ..JobSpec::default()
    })
    .unwrap()
}

pub fn job(id: &str, spec: &Checked) -> JobRow {
    JobRow {
        id: JobId::new(id),
        digest: Digest(spec.digest),
        spec: Arc::new(StoredSpec {
            sent: spec.spec.canonical().into(),
            resolved: spec.resolved.to_json().into(),
            input_version: spec.resolved.input_version,
        }),
        matrix: Arc::new(jobspec::matrix(&spec.resolved).unwrap()),
        policy: jobspec::policy(&spec.resolved),
        submitted_at: UnixMs(1_000),
        deadline_at: UnixMs(2_000),
    }
}

pub fn token(epoch: Epoch, counter: u32) -> FencingToken {
    FencingToken::new(epoch, counter)
}

pub fn grant(job: &JobRow, first: FencingToken, nonce: u8, cells: Vec<Cell>) -> GrantRow {
    GrantRow {
        first,
        nonce: Nonce([nonce; 16]),
        ttl_ms: 30_000,
        agent: AgentId::new("agent-1"),
        incarnation: Incarnation([nonce; 16]),
        job: job.id.clone(),
        cells,
    }
}

/// A record of what the job froze, answered with `output`.
pub fn record(job: &JobRow, grant: &GrantRow, slot: u32, output: &[u8]) -> Record {
    let cell = grant.cells[slot as usize];
    let spec = jobspec::read(&job.spec.resolved).unwrap();
    let input = jobspec::input(&spec, &job.matrix, cell).unwrap();
    let key = job.matrix.key(cell).unwrap();
    Record {
        job: job.id.clone(),
        cell,
        lease: LeaseToken { fencing: grant.first.offset(slot), nonce: grant.nonce },
        grant: grant.first,
        attempt: 1,
        agent: grant.agent.clone(),
        body: Arc::new(ReportBody {
            digest: Digest(Sha256::digest(output).into()),
            input_digest: Digest(Sha256::digest(&input).into()),
            served: Some(Served {
                region: key.region.as_str().into(),
                basis: RegionBasis::Reported,
                model: "m".into(),
                request_id: "".into(),
                endpoint: "localhost:1".into(),
                executor: "openai".into(),
            }),
            timings: Timings { waited_ms: 1, ran_ms: 2, first_byte_ms: None },
            outcome: Outcome::Succeeded(Success {
                output: output.to_vec().into(),
                response: output.repeat(2).into(),
                finish_reason: "stop".into(),
                prompt_tokens: Some(7),
                completion_tokens: None,
            }),
        }),
        key,
        recorded_at: UnixMs(1_500),
    }
}

/// A grant without what its blank slots held.
type Grant = (FencingToken, Nonce, u64, AgentId, Incarnation, JobId, Vec<Option<Cell>>);

/// Everything that tables hold, in one form whichever tables hold it.
#[derive(PartialEq, Debug)]
pub struct Normal {
    leadership: (Epoch, Seq),
    jobs: Vec<StoredJob>,
    executions: BTreeMap<(JobId, Cell), Execution>,
    grants: Vec<Grant>,
    attempts: BTreeMap<(FencingToken, AttemptKind, Digest), AttemptRow>,
    agents: Vec<AgentRow>,
    audit: Vec<(UnixMs, String, String, Option<JobId>, String)>,
}

pub fn grants(loaded: &Loaded) -> Vec<Grant> {
    let normal = |g: &semel_core::tables::StoredGrant| {
        let row = g.row.clone();
        (row.first, row.nonce, row.ttl_ms, row.agent, row.incarnation, row.job, g.slots.clone())
    };
    loaded.grants.iter().map(normal).collect()
}

/// Cuts an entry of the history as a store does.
fn kept(row: &AttemptRow) -> AttemptRow {
    let mut row = row.clone();
    let cut = |bytes: &mut bytes::Bytes| bytes.truncate(MAX_KEPT_ANSWER);
    if row.kind != AttemptKind::Replaced
        && let Some(body) = &mut row.body
    {
        match &mut Arc::make_mut(body).outcome {
            Outcome::Succeeded(s) => {
                cut(&mut s.output);
                cut(&mut s.response);
            }
            Outcome::Failed(f) => cut(&mut f.message),
        }
    }
    row
}

pub fn of_tables(tables: &Tables) -> Normal {
    let loaded = tables.load();
    let execution = |r: &Record| Execution {
        cell: r.cell,
        key: r.key.clone(),
        token: r.lease.fencing,
        attempt: r.attempt,
        agent: r.agent.clone(),
        body: (*r.body).clone(),
        recorded_at: r.recorded_at,
    };
    Normal {
        leadership: tables.leadership.unwrap(),
        grants: grants(&loaded),
        jobs: loaded.jobs.into_iter().map(|j| j.stored).collect(),
        executions: tables.executions.iter().map(|(key, r)| (key.clone(), execution(r))).collect(),
        attempts: tables.attempts.iter().map(|(key, row)| (*key, kept(row))).collect(),
        agents: loaded.agents,
        audit: tables
            .audit
            .iter()
            .map(|a| (a.at, a.actor.to_string(), a.action.to_string(), a.job.clone(), a.detail.clone()))
            .collect(),
    }
}

pub async fn leadership(path: &Path) -> (Epoch, Seq) {
    let mut conn = open_read_only(path).await.unwrap();
    let row = sqlx::query("SELECT epoch, seq FROM leadership").fetch_one(&mut conn).await.unwrap();
    (Epoch::new(row.get(0)).unwrap(), Seq(row.get::<i64, _>(1).try_into().unwrap()))
}

pub async fn of_store(store: &dyn Store, path: &Path) -> Normal {
    let leadership = leadership(path).await;
    let loaded = store.load(leadership.0).await.unwrap();
    let (mut executions, mut attempts) = (BTreeMap::new(), BTreeMap::new());
    let all = Filter::default();
    for job in &loaded.jobs {
        let id = &job.stored.row.id;
        let mut after = None;
        loop {
            let page = store.executions(id, after, 3, &all, true).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.cell);
            executions.extend(page.into_iter().map(|e| ((id.clone(), e.cell), e)));
        }
        let mut after = None;
        loop {
            let page = store.attempts(id, after, 3, &all).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.number);
            attempts.extend(page.into_iter().map(|a| ((a.row.token, a.row.kind, a.row.digest()), a.row)));
        }
    }
    let mut audit = store.audit_log(None, MAX_PAGE_ROWS).await.unwrap();
    audit.reverse();
    Normal {
        leadership,
        grants: grants(&loaded),
        jobs: loaded.jobs.into_iter().map(|j| j.stored).collect(),
        executions,
        attempts,
        agents: loaded.agents,
        audit: audit.into_iter().map(|a| (a.at, a.actor, a.action, a.job, a.detail)).collect(),
    }
}
