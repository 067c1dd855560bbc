//! Which models this agent can reach, and finding out again when it can't.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use semel_proto::v1 as pb;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::AgentSpec;
use crate::executor::Executor;
use crate::stream::Event;

/// How long a model's last success keeps it warm: within it the run timeout holds, else the cold one.
pub const WARM_FOR: Duration = Duration::from_secs(5 * 60);
/// How long one probe may take.
pub const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// The first wait between two probes of a model that can't be reached; doubled each time.
pub const PROBE_BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest wait between two probes, before its jitter.
pub const PROBE_BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A model as this agent reaches it.
pub(crate) struct Model {
    id: String,
    provider: String,
    pub executor: Arc<dyn Executor>,
    /// Why it can't be reached; `None` while it can.
    trouble: Mutex<Option<String>>,
    is_probed: AtomicBool,
    /// How often in a row it was reached by a probe and then not by an execution.
    relapses: AtomicU32,
    /// When it last answered, in the clock's milliseconds plus one; 0 is never.
    answered_at: AtomicU64,
}

impl Model {
    /// Whether it answered within [`WARM_FOR`].
    pub fn is_warm(&self) -> bool {
        let answered_at = self.answered_at.load(Ordering::Relaxed);
        let age = (clock::now_ms() + 1).saturating_sub(answered_at);
        answered_at > 0 && Duration::from_millis(age) < WARM_FOR
    }

    /// It answered just now.
    pub fn has_answered(&self) {
        self.answered_at.store(clock::now_ms() + 1, Ordering::Relaxed);
        self.relapses.store(0, Ordering::Relaxed);
    }

    /// Why it can't be reached, if so.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    async fn probe(&self) -> Result<(), String> {
        match tokio::time::timeout(PROBE_LIMIT, self.executor.probe()).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer to a probe within {PROBE_LIMIT:?}")),
        }
    }
}

/// All models of an agent.
#[derive(Clone)]
pub(crate) struct Models {
    by_id: Arc<BTreeMap<String, Arc<Model>>>,
    events: mpsc::Sender<Event>,
    ended: CancellationToken,
}

impl Models {
    /// The models of `spec`; changes go to `events` until `ended`.
    pub fn new(spec: &AgentSpec, events: mpsc::Sender<Event>, ended: CancellationToken) -> Self {
        let model = |(id, (provider, executor)): (&String, &(String, Arc<dyn Executor>))| {
            let model = Model {
                id: id.clone(),
                provider: provider.clone(),
                executor: Arc::clone(executor),
                trouble: Mutex::new(None),
                is_probed: AtomicBool::new(false),
                relapses: AtomicU32::new(0),
                answered_at: AtomicU64::new(0),
            };
            (id.clone(), Arc::new(model))
        };
        Self { by_id: Arc::new(spec.models.iter().map(model).collect()), events, ended }
    }

    pub fn get(&self, id: &str) -> Option<&Arc<Model>> {
        self.by_id.get(id)
    }

    /// The models as a Hello lists them; which of them can't be reached comes as events.
    pub fn listed(&self) -> Vec<pb::AgentModel> {
        let model = |model: &Arc<Model>| pb::AgentModel {
            id: model.id.clone(),
            provider: model.provider.clone(),
            unready: None,
        };
        self.by_id.values().map(model).collect()
    }

    /// Probes every model once, all at the same time. Those that can't be reached are reported and
    /// probed on in the background.
    pub async fn probe_all(&self) {
        let mut probes = tokio::task::JoinSet::new();
        for model in self.by_id.values().cloned() {
            probes.spawn(async move {
                let answer = model.probe().await;
                (model, answer)
            });
        }
        let mut failed = Vec::new();
        while let Some(probe) = probes.join_next().await {
            match probe {
                Ok((_, Ok(()))) => {}
                Ok((model, Err(message))) => failed.push((model, message)),
                Err(error) => tracing::error!(%error, "a probe ended by itself"),
            }
        }
        // Only now: the queue of events has room for one of each model before anyone reads it.
        for (model, message) in failed {
            self.has_trouble(&model, &message).await;
        }
    }

    /// The model can't be reached: says so, and probes until it can.
    pub async fn has_trouble(&self, model: &Arc<Model>, message: &str) {
        model.set_trouble(Some(message.to_owned()));
        self.tell(model, false, message).await;
        if !model.is_probed.swap(true, Ordering::AcqRel) {
            tracing::warn!(model = model.id, "a model can't be reached; probing it");
            tokio::spawn(self.clone().probe_until_ready(Arc::clone(model)));
        }
    }

    async fn probe_until_ready(self, model: Arc<Model>) {
        // A probe doesn't see every fault. A model that is reachable for probes only must not be
        // tried once a second for ever.
        let relapses = model.relapses.fetch_add(1, Ordering::Relaxed);
        let first_pause = PROBE_BACKOFF_MIN.saturating_mul(1 << relapses.min(6));
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(first_pause.min(PROBE_BACKOFF_MAX))
            .with_max_delay(PROBE_BACKOFF_MAX)
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            let pause = pauses.next().unwrap_or(PROBE_BACKOFF_MAX);
            tokio::select! {
                () = self.ended.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            match model.probe().await {
                Ok(()) => break,
                Err(message) => {
                    model.set_trouble(Some(message.clone()));
                    self.tell(&model, false, &message).await;
                }
            }
        }
        tracing::info!(model = model.id, "a model can be reached again");
        // In this order, so that trouble that comes in between starts a probe of its own.
        model.is_probed.store(false, Ordering::Release);
        model.set_trouble(None);
        self.tell(&model, true, "").await;
    }

    async fn tell(&self, model: &Model, ready: bool, message: &str) {
        let event = Event::ModelState { id: model.id.clone(), ready, message: message.to_owned() };
        // Nobody listens any more once the session has ended.
        let _ = self.events.send(event).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Echo;

    #[test]
    fn a_model_is_warm_for_five_minutes_after_its_last_answer_and_cold_before_the_first() {
        let echo: Arc<dyn Executor> = Arc::new(Echo);
        let spec = AgentSpec {
            id: String::new(),
            region: String::new(),
            slots: 1,
            prefetch: 0,
            models: [("m".to_owned(), ("p".to_owned(), echo))].into(),
            keep_response: false,
        };
        let models = Models::new(&spec, mpsc::channel(1).0, CancellationToken::new());
        let model = models.get("m").unwrap();
        assert!(!model.is_warm());
        model.has_answered();
        assert!(model.is_warm());
        let millis_ago = |ago: u64| (clock::now_ms() + 1).saturating_sub(ago);
        // A machine that has just started has no such past; 0 would be never.
        model.answered_at.store(millis_ago(4 * 60_000).max(1), Ordering::Relaxed);
        assert!(model.is_warm());
        model.answered_at.store(millis_ago(5 * 60_000), Ordering::Relaxed);
        assert!(!model.is_warm());
    }
}
