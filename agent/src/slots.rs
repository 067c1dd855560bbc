//! Running executions: a task for each on the main runtime, from Start to its report.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use semel_proto::v1 as pb;
use semel_session::ReleaseReason;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::config::AgentSpec;
use crate::executor::{Answer, MAX_ERROR_BYTES, Outcome, Task};
use crate::models::{Model, Models};
use crate::stream::Event;
use crate::wire::{SharedReport, Work};

/// The largest output before the first Welcome has said a limit, in bytes.
pub const DEFAULT_MAX_OUTPUT_BYTES: u64 = 32 << 20;
/// Output and provider's body of one report, together, in bytes: 1 MiB under the largest message.
const MAX_CONTENT_BYTES: usize = semel_proto::MAX_MESSAGE_BYTES - (1 << 20);

/// Limits of the coordinator, as the last Welcome said them.
#[derive(Debug)]
pub(crate) struct Limits {
    max_output_bytes: AtomicU64,
    max_error_bytes: AtomicU64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_output_bytes: AtomicU64::new(DEFAULT_MAX_OUTPUT_BYTES),
            max_error_bytes: AtomicU64::new(MAX_ERROR_BYTES as u64),
        }
    }
}

/// Starts and aborts executions. Belongs to the session's thread; what it starts runs on the main
/// runtime.
pub(crate) struct Slots {
    runtime: Handle,
    site: Arc<Site>,
    running: HashMap<Bytes, AbortHandle>,
}

/// What all executions of an agent share.
struct Site {
    region: String,
    keep_response: bool,
    models: Models,
    limits: Limits,
    events: mpsc::Sender<Event>,
}

impl Slots {
    pub fn new(runtime: Handle, spec: &AgentSpec, models: Models, events: mpsc::Sender<Event>) -> Self {
        let site = Site {
            region: spec.region.clone(),
            keep_response: spec.keep_response,
            models,
            limits: Limits::default(),
            events,
        };
        Self { runtime, site: Arc::new(site), running: HashMap::new() }
    }

    /// Takes a Welcome's limits, which only lower that of an error's text.
    pub fn limit(&self, max_output_bytes: u64, max_error_bytes: u64) {
        let limits = &self.site.limits;
        limits.max_output_bytes.store(max_output_bytes, Ordering::Relaxed);
        limits.max_error_bytes.store(max_error_bytes.min(MAX_ERROR_BYTES as u64), Ordering::Relaxed);
    }

    /// Runs an execution; its end comes back as an event.
    pub fn start(&mut self, token: Bytes, work: Work) {
        let run =
            Run { site: Arc::clone(&self.site), token: token.clone(), work, started: Instant::now(), ended: false };
        let task = self.runtime.spawn(run.run());
        self.running.insert(token, task.abort_handle());
    }

    /// Ends an execution: its call is dropped, which closes the connection or ends the program.
    pub fn abort(&mut self, token: &Bytes) {
        if let Some(task) = self.running.remove(token) {
            task.abort();
        }
    }

    /// An execution has ended by itself.
    pub fn ended(&mut self, token: &Bytes) {
        self.running.remove(token);
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for task in self.running.values() {
            task.abort();
        }
    }
}

/// One execution.
struct Run {
    site: Arc<Site>,
    token: Bytes,
    work: Work,
    started: Instant,
    ended: bool,
}

/// How an execution ended.
enum End {
    Report(SharedReport),
    Release(ReleaseReason, String),
}

impl Run {
    async fn run(mut self) {
        let end = self.execute().await;
        let event = self.event(end);
        // Nobody listens any more once the session has ended.
        let _ = self.site.events.send(event).await;
    }

    async fn execute(&self) -> End {
        let lease = &self.work.lease;
        let key = lease.key.clone().unwrap_or_default();
        let Some(model) = self.site.models.get(&key.model).cloned() else {
            let message = format!("this agent doesn't serve the model {:?}", key.model);
            return End::Release(ReleaseReason::Misconfigured, message);
        };
        if let Some(trouble) = model.trouble() {
            return End::Release(ReleaseReason::Misconfigured, trouble);
        }
        let warm = model.is_warm();
        let timeout_ms = if warm { lease.run_timeout_ms } else { lease.cold_timeout_ms };
        let timeout = Duration::from_millis(timeout_ms);
        let task = Task {
            input: lease.input.clone(),
            key,
            attempt: lease.attempt,
            fencing_token: lease.fencing_token,
            remaining: timeout,
            max_output_bytes: self.max_output_bytes(),
        };
        match tokio::time::timeout(timeout, model.executor.execute(task)).await {
            Ok(outcome) => self.judge(&model, outcome).await,
            Err(_) => {
                let failure = timed_out(warm, timeout_ms);
                End::Report(self.failed(&model, failure, None).into())
            }
        }
    }

    async fn judge(&self, model: &Arc<Model>, outcome: Outcome) -> End {
        match outcome {
            Outcome::Success(answer) => {
                model.has_answered();
                End::Report(self.succeeded(model, answer).into())
            }
            Outcome::Failure(failure, served) => End::Report(self.failed(model, failure, served).into()),
            Outcome::RateLimited { retry_after, message } => {
                let retry_after_ms = retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
                End::Release(ReleaseReason::RateLimited { retry_after_ms }, message)
            }
            Outcome::Misconfigured { message } => {
                self.site.models.has_trouble(model, &message).await;
                End::Release(ReleaseReason::Misconfigured, message)
            }
        }
    }

    fn succeeded(&self, model: &Model, answer: Answer) -> pb::Report {
        let limit = self.max_output_bytes();
        let size = answer.output.len() as u64;
        let (region, basis) = match answer.served_region {
            Some(region) => (region, pb::RegionBasis::Reported),
            None => (self.site.region.clone(), pb::RegionBasis::Configured),
        };
        let served = pb::Served {
            region,
            region_basis: basis.into(),
            model: answer.served_model,
            request_id: answer.request_id,
            endpoint: answer.endpoint,
            executor: model.executor.name().to_owned(),
        };
        if size > limit {
            return self.failed(model, too_large(size, limit), Some(served));
        }
        // A report must fit a message: one that did not could never be said.
        let fits = answer.output.len() + answer.response.len() <= MAX_CONTENT_BYTES;
        let keep_response = self.site.keep_response && fits && answer.response.len() as u64 <= limit;
        let success = pb::Success {
            output: answer.output,
            response: if keep_response { answer.response } else { Bytes::new() },
            finish_reason: answer.finish_reason,
            usage: answer.usage,
        };
        let mut report = self.report(served, pb::report::Outcome::Success(success));
        if let Some(timings) = &mut report.timings {
            timings.first_byte_ms = answer.first_byte.map(millis);
        }
        report
    }

    fn failed(&self, model: &Model, mut failure: pb::Failure, served: Option<pb::Served>) -> pb::Report {
        let limit = self.site.limits.max_error_bytes.load(Ordering::Relaxed);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        failure.message.truncate(limit);
        let mut served = served.unwrap_or_default();
        if served.region.is_empty() {
            served.region.clone_from(&self.site.region);
            served.region_basis = pb::RegionBasis::Configured.into();
        }
        model.executor.name().clone_into(&mut served.executor);
        self.report(served, pb::report::Outcome::Failure(failure))
    }

    fn report(&self, served: pb::Served, outcome: pb::report::Outcome) -> pb::Report {
        let lease = &self.work.lease;
        let timings = pb::Timings {
            waited_ms: millis(self.started.saturating_duration_since(self.work.arrived)),
            ran_ms: millis(self.started.elapsed()),
            first_byte_ms: None,
        };
        pb::Report {
            lease_token: self.token.clone(),
            input_digest: Bytes::copy_from_slice(&Sha256::digest(&lease.input)),
            served: Some(served),
            timings: Some(timings),
            outcome: Some(outcome),
        }
    }

    fn max_output_bytes(&self) -> u64 {
        self.site.limits.max_output_bytes.load(Ordering::Relaxed)
    }

    fn event(&mut self, end: End) -> Event {
        self.ended = true;
        let token = self.token.clone();
        match end {
            End::Report(report) => Event::Finished { token, report },
            End::Release(reason, message) => Event::Released { token, reason, message },
        }
    }
}

impl Drop for Run {
    /// An executor that panics must not leave its lease running for ever.
    fn drop(&mut self) {
        if self.ended || !std::thread::panicking() {
            return;
        }
        let failure = pb::Failure {
            reason: pb::FailureReason::Program.into(),
            stage: pb::Stage::Run.into(),
            message: Bytes::from_static(b"the agent's executor panicked; its log says more"),
            retryable: true,
            ..pb::Failure::default()
        };
        let served = pb::Served {
            region: self.site.region.clone(),
            region_basis: pb::RegionBasis::Configured.into(),
            ..pb::Served::default()
        };
        let report = self.report(served, pb::report::Outcome::Failure(failure));
        let event = self.event(End::Report(report.into()));
        let events = self.site.events.clone();
        tokio::spawn(async move {
            let _ = events.send(event).await;
        });
    }
}

fn timed_out(warm: bool, timeout_ms: u64) -> pb::Failure {
    let (reason, name) = if warm {
        (pb::FailureReason::RunTimeout, "run timeout")
    } else {
        (pb::FailureReason::ColdTimeout, "cold timeout")
    };
    pb::Failure {
        reason: reason.into(),
        stage: pb::Stage::Run.into(),
        message: format!("no result within the {name} of {timeout_ms} ms").into(),
        retryable: true,
        ..pb::Failure::default()
    }
}

fn too_large(size: u64, limit: u64) -> pb::Failure {
    pb::Failure {
        reason: pb::FailureReason::ResultTooLarge.into(),
        stage: pb::Stage::Result.into(),
        message: format!("the output has {size} bytes; the limit is {limit} bytes").into(),
        retryable: false,
        ..pb::Failure::default()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
