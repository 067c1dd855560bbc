//! The failures that more than one executor reports.

use bytes::Bytes;
use semel_proto::v1 as pb;

use super::MAX_ERROR_BYTES;

/// A failed attempt. `message` is cut to [`MAX_ERROR_BYTES`] from its start.
pub(super) fn new(
    reason: pb::FailureReason,
    stage: pb::Stage,
    code: impl Into<String>,
    message: impl Into<Bytes>,
    retryable: bool,
) -> pb::Failure {
    let mut message = message.into();
    message.truncate(MAX_ERROR_BYTES);
    pb::Failure {
        reason: reason.into(),
        stage: stage.into(),
        code: code.into(),
        message,
        retryable,
        retry_after_ms: None,
    }
}

/// The output is over the limit. Another try would meet the same, so there is none.
pub(super) fn too_large(size: &str, limit: u64, stage: pb::Stage) -> pb::Failure {
    let message = format!("the output has {size}; the limit is {limit} bytes");
    new(pb::FailureReason::ResultTooLarge, stage, "", message, false)
}

/// The input can't be made into a call. No try of the same bytes can do better.
pub(super) fn bad_input(fault: String) -> pb::Failure {
    new(pb::FailureReason::ProviderRefused, pb::Stage::Connect, "invalid_input", fault, false)
}
