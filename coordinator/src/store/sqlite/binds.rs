//! The columns that `executions` and `attempts` share, bound in one order.

use semel_core::{
    batch::{Failure, MAX_KEPT_ANSWER, Outcome, ReportBody, Success},
    id::{Cell, CellKey},
};

use super::insert::Binds;

/// How much of an answer a table keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// All of it: a record, or one that a retry replaced.
    Whole,
    /// The first [`MAX_KEPT_ANSWER`] bytes of each part; the row's digest is the whole answer's.
    Bounded,
}

impl Kept {
    fn of(self, bytes: &[u8]) -> &[u8] {
        match self {
            Self::Whole => bytes,
            Self::Bounded => bytes.get(..MAX_KEPT_ANSWER).unwrap_or(bytes),
        }
    }
}

/// Binds region, model, question, repeat, cell.
pub fn bind_key(b: &mut Binds, key: &CellKey, cell: Cell) {
    b.push(key.region.as_str());
    b.push(key.model.as_str());
    b.push(key.question.as_str());
    b.push(key.repeat);
    b.push(cell.0);
}

/// Binds what was reported, in the order of `commit::BODY`; NULLs where nothing was.
pub fn bind_body(b: &mut Binds, body: Option<&ReportBody>, kept: Kept) {
    b.push(body.map(|body| body.status().as_str()));
    b.push(body.map(|body| &body.input_digest.0[..]));
    let served = body.and_then(|body| body.served.as_ref());
    b.push(served.map(|s| s.region.clone()));
    b.push(served.map(|s| s.basis.as_str()));
    b.push(served.map(|s| s.model.clone()));
    b.push(served.map(|s| s.request_id.clone()));
    b.push(served.map(|s| s.endpoint.clone()));
    b.push(served.map(|s| s.executor.clone()));
    let timings = body.map(|body| body.timings);
    b.optional(timings.map(|t| t.waited_ms));
    b.optional(timings.map(|t| t.ran_ms));
    b.optional(timings.and_then(|t| t.first_byte_ms));
    let (success, failure) = match body.map(|body| &body.outcome) {
        Some(Outcome::Succeeded(success)) => (Some(success), None),
        Some(Outcome::Failed(failure)) => (None, Some(failure)),
        None => (None, None),
    };
    bind_outcome(b, success, failure, kept);
}

fn bind_outcome(b: &mut Binds, success: Option<&Success>, failure: Option<&Failure>, kept: Kept) {
    b.push(success.map(|s| s.finish_reason.clone()));
    b.optional(success.and_then(|s| s.prompt_tokens));
    b.optional(success.and_then(|s| s.completion_tokens));
    b.push(failure.map(|f| f.reason.as_str()));
    b.push(failure.map(|f| f.stage.as_str()));
    b.push(failure.map(|f| f.code.clone()));
    b.push(failure.map(|f| f.retryable));
    b.push(failure.map(|f| kept.of(&f.message)));
    b.push(success.map(|s| kept.of(&s.output)));
    b.push(success.map(|s| kept.of(&s.response)));
}
