//! Rule C7: an event whose batch the database refuses for good is found by committing one event a
//! batch, and then recorded without its output, so that one cell can't take the service down.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use semel_core::{
    batch::{Failure, Outcome, ReportBody},
    id::{CallId, FencingToken},
    words::{FailureReason, Stage},
};

/// Commits of one event each, after a refusal, before batches fill again.
const ALONE: u32 = 1_000;

/// Whose event it was that stood alone in a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Culprit {
    /// The report of this token: it is recorded as failed, without its output.
    Report(FencingToken),
    /// This call: its caller is told.
    Call(CallId),
}

/// What the database has refused so far. Outlives the rebuilds that refusals lead to.
#[derive(Debug, Default)]
pub struct Refused {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    culprits: BTreeSet<FencingToken>,
    alone: u32,
}

impl Refused {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A batch was refused for good; the culprit, once it stood alone in its batch. Gives whether that leads
    /// any further: a batch of one event without a culprit will be refused again.
    pub fn note(&self, culprit: Option<Culprit>) -> bool {
        let mut inner = self.inner();
        let first = inner.alone == 0;
        inner.alone = ALONE;
        match culprit {
            Some(Culprit::Report(token)) => inner.culprits.insert(token),
            Some(Culprit::Call(_)) => true,
            None => first,
        }
    }
    /// Whether each event is to be committed by itself.
    pub fn one_by_one(&self) -> bool {
        self.inner().alone > 0
    }
    /// A batch was committed.
    pub fn committed(&self) {
        let mut inner = self.inner();
        inner.alone = inner.alone.saturating_sub(1);
    }
    /// What is recorded instead of a culprit's report.
    pub fn instead_of(&self, token: FencingToken, body: &ReportBody) -> Option<Arc<ReportBody>> {
        self.inner().culprits.contains(&token).then(|| {
            let words = "the store can't hold this result; its output is left out";
            Arc::new(ReportBody {
                served: None,
                outcome: Outcome::Failed(Failure {
                    reason: FailureReason::StoreRefused,
                    stage: Stage::Record,
                    code: "".into(),
                    message: Bytes::from_static(words.as_bytes()),
                    retryable: false,
                }),
                ..body.clone()
            })
        })
    }
}
