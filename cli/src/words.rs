//! The contract's values as this program writes them.

use semel_proto::v1 as pb;

use crate::terminal::shown;

/// The name of an enum's value without its prefix, in lower case: `JOB_STATE_OPEN` is `open`.
fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// `open`, `complete`, `cancelled`, `expired`.
pub fn state(state: pb::JobState) -> String {
    short(state.as_str_name(), "JOB_STATE_")
}

/// `succeeded`, `failed`.
pub fn status(status: pb::ExecutionStatus) -> String {
    short(status.as_str_name(), "EXECUTION_STATUS_")
}

/// `no_agent_in_region`, `backoff` …
pub fn wait_reason(reason: pb::WaitReason) -> String {
    short(reason.as_str_name(), "WAIT_REASON_")
}

/// `provider_error`, `run_timeout` …
pub fn failure_reason(reason: pb::FailureReason) -> String {
    short(reason.as_str_name(), "FAILURE_REASON_")
}

/// `leased`, `connect`, `run`, `result`, `record`; none where it wasn't said.
pub fn stage(stage: pb::Stage) -> Option<String> {
    (stage != pb::Stage::Unspecified).then(|| short(stage.as_str_name(), "STAGE_"))
}

/// `reported`, `certificate`, `configured`.
pub fn region_basis(basis: pb::RegionBasis) -> String {
    short(basis.as_str_name(), "REGION_BASIS_")
}

/// `failed`, `lost`, `fenced`, `replaced`, `released`, `closed`.
pub fn attempt_kind(kind: pb::AttemptKind) -> String {
    short(kind.as_str_name(), "ATTEMPT_KIND_")
}

/// `lease_lost`, `job_cancelled` …; none where there is nothing to say.
pub fn receipt_reason(reason: pb::ReceiptReason) -> Option<String> {
    (reason != pb::ReceiptReason::Unspecified).then(|| short(reason.as_str_name(), "RECEIPT_REASON_"))
}

/// Why a cell waits, as a person says it.
pub fn waits_because(reason: pb::WaitReason) -> &'static str {
    match reason {
        pb::WaitReason::Unspecified => "not said",
        pb::WaitReason::JobClosed => "the job is closed: they will not run",
        pb::WaitReason::Paused => "the job is paused",
        pb::WaitReason::NoAgentInRegion => "no agent of this region is connected",
        pb::WaitReason::NoAgentWithModel => "no agent of this region serves this model",
        pb::WaitReason::AgentMisconfigured => "the agent can't use the model",
        pb::WaitReason::Draining => "the agents are draining",
        pb::WaitReason::AgentRests => "the agent rests, after it handed leases back",
        pb::WaitReason::GateClosed => "the provider limits the rate",
        pb::WaitReason::Backoff => "a failed attempt waits before the next",
        pb::WaitReason::CapFull => "a cap is reached",
        pb::WaitReason::GateFull => "the provider limited the rate: few calls at once",
        pb::WaitReason::WaitsToRunAlone => "must run alone on its agent",
        pb::WaitReason::KeptForALoneCell => "a place is kept for a cell that must run alone",
        pb::WaitReason::NoFreeSlot => "every slot is busy",
        pb::WaitReason::Leased => "leased to an agent",
    }
}

/// Why a cell failed, as a person says it.
pub fn failed_because(reason: pb::FailureReason) -> &'static str {
    match reason {
        pb::FailureReason::Unspecified => "not said",
        pb::FailureReason::ProviderError => "the provider answered with an error",
        pb::FailureReason::ProviderRefused => "the provider refused the input",
        pb::FailureReason::Connection => "the link to the provider broke",
        pb::FailureReason::RunTimeout => "the run timeout passed",
        pb::FailureReason::ColdTimeout => "the cold timeout passed",
        pb::FailureReason::Program => "the program failed",
        pb::FailureReason::ResultTooLarge => "the output is too large",
        pb::FailureReason::BadResponse => "the answer can't be read",
        pb::FailureReason::WrongInput => "another input ran",
        pb::FailureReason::WrongRegion => "another region served it",
        pb::FailureReason::WrongModel => "another model served it",
        pb::FailureReason::LeaseLost => "the lease was lost",
        pb::FailureReason::StoreRefused => "the store can't hold the result",
        pb::FailureReason::RateLimited => "the provider limits the rate",
        pb::FailureReason::Misconfigured => "the agent's configuration is at fault",
        pb::FailureReason::RegionUnreported => "the endpoint didn't say which region served",
        pb::FailureReason::BadReport => "the agent's report breaks the contract",
    }
}

/// A failure's code, and what it is a code of; none where there is none. A program's own code and the status that it exits
/// with are told apart by nothing.
pub fn failure_code(reason: pb::FailureReason, code: &str) -> Option<String> {
    let number: Option<u16> = code.parse().ok();
    match (reason, number) {
        _ if code.is_empty() => None,
        (pb::FailureReason::Program, Some(0..=255)) => Some(format!("exit status or code {code}")),
        (pb::FailureReason::Program, None) if code.starts_with("signal ") => Some(shown(code)),
        (reason, Some(100..=599)) if reason != pb::FailureReason::Program => Some(format!("HTTP status {code}")),
        _ => Some(format!("code {}", shown(code))),
    }
}

/// A time as RFC 3339, in UTC, to the millisecond.
pub fn time(time: &prost_types::Timestamp) -> Option<String> {
    let time = jiff::Timestamp::new(time.seconds, time.nanos).ok()?;
    Some(format!("{time:.3}"))
}

/// Bytes in hex, as digests are shown.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_said_without_their_prefix() {
        assert_eq!(state(pb::JobState::Complete), "complete");
        assert_eq!(wait_reason(pb::WaitReason::NoAgentInRegion), "no_agent_in_region");
        assert_eq!(stage(pb::Stage::Unspecified), None);
        assert_eq!(stage(pb::Stage::Run).as_deref(), Some("run"));
    }

    #[test]
    fn a_code_is_told_with_what_it_is_of() {
        let code = |reason, code| failure_code(reason, code).unwrap_or_default();
        assert_eq!(code(pb::FailureReason::Program, "3"), "exit status or code 3");
        assert_eq!(code(pb::FailureReason::Program, "signal 9"), "signal 9");
        assert_eq!(code(pb::FailureReason::ProviderError, "503"), "HTTP status 503");
        assert_eq!(code(pb::FailureReason::ProviderRefused, "too\u{1b}_long"), "code too\\u{1b}_long");
        assert_eq!(code(pb::FailureReason::RunTimeout, ""), "");
    }

    #[test]
    fn times_are_rfc_3339_in_utc_to_the_millisecond() {
        let at = prost_types::Timestamp { seconds: 1_767_225_600, nanos: 12_000_000 };
        assert_eq!(time(&at).as_deref(), Some("2026-01-01T00:00:00.012Z"));
        assert_eq!(hex(&[0, 171]), "00ab");
    }
}
