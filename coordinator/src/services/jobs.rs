//! `JobService`: jobs submitted, read and steered. Records and the history are in `executions`.

pub(super) mod pull;
mod watch;

use std::{sync::Arc, time::Duration};

use semel_core::{
    batch::StoredSpec,
    event::{Answer, Event, JobCall, JobView, Query, Submit},
    id::{CallId, Digest, JobId},
};
use semel_proto::v1::{self as pb, job_service_server::JobService};
use semel_spec::{Checked, Fault, INPUT_VERSION, JobSpec};
use tonic::{Request, Response, Status};

use self::pull::Pull;
use super::{
    auth::Caller,
    convert::{self, Check, Listing, MAX_REASON_BYTES},
    errors, executions,
};
use crate::{jobspec, shell::Shell, store::Filter};

/// The least time between two pictures of a job, in milliseconds: its bounds, and what is taken if none is said.
const WATCH_INTERVAL_MS: std::ops::RangeInclusive<u32> = 100..=60_000;
const DEFAULT_WATCH_INTERVAL_MS: u32 = 1_000;

/// The service.
pub struct Jobs {
    shell: Shell,
}

impl Jobs {
    /// Over a shell.
    pub fn new(shell: Shell) -> Self {
        Self { shell }
    }

    /// A call about a job that is answered with the job.
    async fn job_call(
        &self,
        caller: Arc<str>,
        id: JobId,
        reason: String,
        event: fn(JobCall) -> Event,
    ) -> Result<Answer, Status> {
        let named = id.clone();
        let answer = self.shell.call(|call| event(JobCall { call, actor: caller, id, reason })).await?;
        settled(&named, answer)
    }

    async fn view(&self, id: &JobId) -> Result<JobView, Status> {
        let answer = self.shell.call(|call| Event::Query(call, Query::Job(id.clone()))).await?;
        job_of(settled(id, answer)?)
    }

    /// The differences between a job that is there and another specification that was sent for its id.
    async fn differs(&self, id: &JobId, sent: &JobSpec) -> Status {
        let stored = match self.shell.store().job_specs(id).await {
            Ok(Some(stored)) => serde_json::from_slice::<JobSpec>(&stored.sent),
            Ok(None) => return errors::unavailable(format!("job {:?} is being changed; try again", id.as_str())),
            Err(error) => return error.into(),
        };
        match stored {
            Ok(stored) => errors::other_spec(id, &semel_spec::difference(&stored, sent)),
            Err(error) => errors::internal("STORED_SPECIFICATION", format!("job {:?}: {error}", id.as_str())),
        }
    }
}

/// A submission without faults, and what of it is stored.
struct Accepted {
    id: JobId,
    checked: Checked,
}

/// Checks a submission whole. On a thread of its own: a specification may have 64 MiB.
async fn accept(namespace: String, job_id: String, spec: Option<pb::JobSpec>) -> Result<Accepted, Status> {
    convert::namespace(&namespace)?;
    let judged = tokio::task::spawn_blocking(move || {
        let mut check = Check::default();
        let id = check.job("job_id", &job_id);
        let Some(spec) = spec else {
            check.fault(Fault::of_field("spec", None, "is missing", "send the specification of the job"));
            return check.finish().and(Err(Status::invalid_argument("spec is missing")));
        };
        let checked = check.finish_with(semel_spec::wire::check(&spec))?;
        Ok(Accepted { id, checked })
    });
    judged.await.unwrap_or_else(|panic| Err(errors::internal("CHECK", panic.to_string())))
}

/// What a submission makes of its specification: the sent and the resolved text, the matrix.
async fn submission(
    accepted: Accepted,
    actor: Arc<str>,
) -> Result<(impl FnOnce(CallId) -> Event + Send, Checked), Status> {
    let made = tokio::task::spawn_blocking(move || {
        let Accepted { id, checked } = accepted;
        let matrix = jobspec::matrix(&checked.resolved).map_err(|e| errors::internal("MATRIX", e.to_string()))?;
        let policy = jobspec::policy(&checked.resolved);
        let spec = StoredSpec {
            sent: checked.spec.canonical().into(),
            resolved: checked.resolved.to_json().into(),
            input_version: INPUT_VERSION,
        };
        let digest = Digest(checked.digest);
        let (matrix, spec) = (Arc::new(matrix), Arc::new(spec));
        let event = move |call| Event::Submit(Submit { call, actor, id, digest, matrix, policy, spec });
        Ok((event, checked))
    });
    made.await.unwrap_or_else(|panic| Err(errors::internal("SUBMIT", panic.to_string())))
}

/// Who calls. The token layer has put it there; a call without it came around that layer.
fn caller<T>(request: &Request<T>) -> Result<Arc<str>, Status> {
    let caller = request.extensions().get::<Caller>().map(|caller| caller.actor.clone());
    caller.ok_or_else(|| Status::unauthenticated("the caller is not known"))
}

/// The id of a job that is asked about.
pub(super) fn named_job(namespace: &str, id: &str) -> Result<JobId, Status> {
    convert::namespace(namespace)?;
    let mut check = Check::default();
    let id = check.job("job_id", id);
    check.finish().map(|()| id)
}

/// An answer that is one: refusals become statuses.
fn settled(id: &JobId, answer: Answer) -> Result<Answer, Status> {
    match answer {
        Answer::NoSuchJob => Err(errors::no_job(id)),
        Answer::Refused(words) => Err(errors::refused(id, &words)),
        answer => Ok(answer),
    }
}

fn job_of(answer: Answer) -> Result<JobView, Status> {
    match answer {
        Answer::Job(view) => Ok(view),
        other => Err(errors::unexpected(&other)),
    }
}

#[tonic::async_trait]
impl JobService for Jobs {
    async fn submit_job(
        &self,
        request: Request<pb::SubmitJobRequest>,
    ) -> Result<Response<pb::SubmitJobResponse>, Status> {
        let actor = caller(&request)?;
        let pb::SubmitJobRequest { namespace, job_id, spec } = request.into_inner();
        let accepted = accept(namespace, job_id, spec).await?;
        let id = accepted.id.clone();
        let (event, checked) = submission(accepted, actor).await?;
        match self.shell.call(event).await? {
            Answer::Submitted(view, created) => {
                Ok(Response::new(pb::SubmitJobResponse { job: Some(convert::job(&view)), created }))
            }
            Answer::OtherSpec => Err(self.differs(&id, &checked.spec).await),
            other => Err(errors::unexpected(&other)),
        }
    }

    async fn check_job(&self, request: Request<pb::CheckJobRequest>) -> Result<Response<pb::CheckJobResponse>, Status> {
        let pb::CheckJobRequest { namespace, job_id, spec } = request.into_inner();
        let Accepted { id, checked } = accept(namespace, job_id, spec).await?;
        match self.shell.call(|call| Event::Query(call, Query::Job(id.clone()))).await? {
            Answer::Job(view) if view.digest != Digest(checked.digest) => {
                return Err(self.differs(&id, &checked.spec).await);
            }
            Answer::Job(_) | Answer::NoSuchJob => {}
            other => return Err(errors::unexpected(&other)),
        }
        let spec_digest = convert::digest(Digest(checked.digest));
        Ok(Response::new(pb::CheckJobResponse { spec_digest, expected: checked.cells.into() }))
    }

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Result<Response<pb::GetJobResponse>, Status> {
        let request = request.into_inner();
        let id = named_job(&request.namespace, &request.job_id)?;
        let view = self.view(&id).await?;
        let spec = self.shell.spec(&id).await?.ok_or_else(|| errors::no_job(&id))?;
        let spec = semel_spec::wire::to_wire(&spec.resolved.to_spec());
        Ok(Response::new(pb::GetJobResponse { job: Some(convert::job(&view)), spec: Some(spec) }))
    }

    async fn list_jobs(&self, request: Request<pb::ListJobsRequest>) -> Result<Response<pb::ListJobsResponse>, Status> {
        let request = request.into_inner();
        convert::namespace(&request.namespace)?;
        let listing = Listing::new("ListJobs", "", None, 0);
        let mut check = Check::default();
        let rows = check.page_size(request.page_size) as usize;
        let after = check.page_job(&listing, &request.page_token);
        check.finish()?;
        // One more than the page holds tells whether another page follows.
        let query = Query::Jobs { after, limit: rows + 1 };
        let mut jobs = match self.shell.call(|call| Event::Query(call, query)).await? {
            Answer::Jobs(jobs) => jobs,
            other => return Err(errors::unexpected(&other)),
        };
        let more = jobs.len() > rows;
        jobs.truncate(rows);
        let last = jobs.last().filter(|_| more);
        let next_page_token = last.map(|job| listing.token(job.id.as_str().as_bytes())).unwrap_or_default();
        let jobs = jobs.iter().map(convert::job).collect();
        Ok(Response::new(pb::ListJobsResponse { jobs, next_page_token }))
    }

    type WatchJobStream = Pull<pb::WatchJobResponse>;

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        convert::namespace(&request.namespace)?;
        let mut check = Check::default();
        let id = check.job("job_id", &request.job_id);
        let interval = check.range("interval_ms", request.interval_ms, DEFAULT_WATCH_INTERVAL_MS, WATCH_INTERVAL_MS);
        check.finish()?;
        // Said before the stream begins, so that a client sees it as the call's own answer.
        self.view(&id).await?;
        let interval = Duration::from_millis(interval.into());
        Ok(Response::new(watch::watch(self.shell.clone(), id, interval)))
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::CancelJobResponse>, Status> {
        let actor = caller(&request)?;
        let request = request.into_inner();
        convert::namespace(&request.namespace)?;
        let mut check = Check::default();
        let id = check.job("job_id", &request.job_id);
        let reason = check.words("reason", &request.reason, MAX_REASON_BYTES);
        check.finish()?;
        match self.job_call(actor, id, reason, Event::Cancel).await? {
            Answer::Cancelled(view, still_running) => {
                Ok(Response::new(pb::CancelJobResponse { job: Some(convert::job(&view)), still_running }))
            }
            other => Err(errors::unexpected(&other)),
        }
    }

    async fn pause_job(&self, request: Request<pb::PauseJobRequest>) -> Result<Response<pb::PauseJobResponse>, Status> {
        let actor = caller(&request)?;
        let request = request.into_inner();
        let id = named_job(&request.namespace, &request.job_id)?;
        let view = job_of(self.job_call(actor, id, String::new(), Event::Pause).await?)?;
        Ok(Response::new(pb::PauseJobResponse { job: Some(convert::job(&view)) }))
    }

    async fn resume_job(
        &self,
        request: Request<pb::ResumeJobRequest>,
    ) -> Result<Response<pb::ResumeJobResponse>, Status> {
        let actor = caller(&request)?;
        let request = request.into_inner();
        let id = named_job(&request.namespace, &request.job_id)?;
        let view = job_of(self.job_call(actor, id, String::new(), Event::Resume).await?)?;
        Ok(Response::new(pb::ResumeJobResponse { job: Some(convert::job(&view)) }))
    }

    async fn retry_job(&self, request: Request<pb::RetryJobRequest>) -> Result<Response<pb::RetryJobResponse>, Status> {
        let actor = caller(&request)?;
        let request = request.into_inner();
        convert::namespace(&request.namespace)?;
        let mut check = Check::default();
        let id = check.job("job_id", &request.job_id);
        let status = check.named_status(request.status);
        let (check, spec) = executions::spec_of(&self.shell, &id, check).await?;
        let filter = executions::filter_of(check, request.filter.as_ref(), &spec)?;
        let answer = self.shell.retry(actor, id.clone(), request.reopen, Filter { status, ..filter }).await?;
        match settled(&id, answer)? {
            Answer::Retried(view, retried) => {
                Ok(Response::new(pb::RetryJobResponse { job: Some(convert::job(&view)), retried }))
            }
            other => Err(errors::unexpected(&other)),
        }
    }

    async fn list_executions(
        &self,
        request: Request<pb::ListExecutionsRequest>,
    ) -> Result<Response<pb::ListExecutionsResponse>, Status> {
        executions::list(&self.shell, request.into_inner()).await.map(Response::new)
    }

    async fn get_execution(
        &self,
        request: Request<pb::GetExecutionRequest>,
    ) -> Result<Response<pb::GetExecutionResponse>, Status> {
        executions::get(&self.shell, request.into_inner()).await.map(Response::new)
    }

    async fn list_attempts(
        &self,
        request: Request<pb::ListAttemptsRequest>,
    ) -> Result<Response<pb::ListAttemptsResponse>, Status> {
        executions::attempts(&self.shell, request.into_inner()).await.map(Response::new)
    }

    async fn explain_pending(
        &self,
        request: Request<pb::ExplainPendingRequest>,
    ) -> Result<Response<pb::ExplainPendingResponse>, Status> {
        let request = request.into_inner();
        let id = named_job(&request.namespace, &request.job_id)?;
        let answer = self.shell.call(|call| Event::Query(call, Query::Explain(id.clone()))).await?;
        match settled(&id, answer)? {
            Answer::Pending(_, groups) => {
                let groups = groups.into_iter().map(convert::pending_group).collect();
                Ok(Response::new(pb::ExplainPendingResponse { groups }))
            }
            other => Err(errors::unexpected(&other)),
        }
    }

    async fn audit_job(&self, request: Request<pb::AuditJobRequest>) -> Result<Response<pb::AuditJobResponse>, Status> {
        executions::audit(&self.shell, request.into_inner()).await.map(Response::new)
    }

    type ExportJobStream = Pull<pb::ExportJobResponse>;

    async fn export_job(
        &self,
        request: Request<pb::ExportJobRequest>,
    ) -> Result<Response<Self::ExportJobStream>, Status> {
        executions::export(&self.shell, request.into_inner()).await.map(Response::new)
    }
}
