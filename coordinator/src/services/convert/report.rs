//! A report as it is stored: checked, bounded and digested.

use std::sync::Arc;

use super::{bounded_text, check::Check, check::word};
use crate::shell::Limits;
use bytes::Bytes;
use semel_core::{
    batch::{Failure, Outcome, ReportBody, Served, Success, Timings},
    id::Digest,
    words::{FailureReason, RegionBasis, Stage},
};
use semel_proto::v1::{self as pb, report::Outcome as Said};
use semel_spec::Fault;
use sha2::{Digest as _, Sha256};

/// Bytes of a text that an endpoint or an agent says of a call, at most.
pub const MAX_TEXT_BYTES: usize = 1_024;
/// The largest number that a signed 64-bit column holds.
const MAX_STORED: u64 = i64::MAX.unsigned_abs();

/// What a report says, as far as it is stored, and the provider's Retry-After in milliseconds.
///
/// An output over its limit makes a failed attempt of the report, [`FailureReason::ResultTooLarge`]; a
/// long error text is cut, and a provider's body over the output's limit is left out. The digest is
/// that of what was reported, so the same report has one digest whatever the limits are.
///
/// A report with no outcome, no input digest or a word that this version does not know makes a failed attempt
/// as well, [`FailureReason::BadReport`]: refused with an error it would end its stream, and come back on the
/// next one for ever.
pub fn report_body(report: pb::Report, limits: &Limits) -> (Arc<ReportBody>, Option<u64>) {
    let mut check = Check::default();
    let input_digest = input_digest(&report.input_digest, &mut check);
    let served = report.served.and_then(|served| self::served(&served, &mut check));
    let (digest, outcome, retry_after_ms) = match report.outcome {
        Some(Said::Success(success)) => {
            let digest = Digest(Sha256::digest(&success.output).into());
            (digest, succeeded(success, limits), None)
        }
        Some(Said::Failure(failure)) => {
            let retry_after_ms = failure.retry_after_ms;
            let (digest, failure) = failed(failure, limits, &mut check);
            (digest, Outcome::Failed(failure), retry_after_ms)
        }
        None => {
            check.fault(Fault::of_field("outcome", None, "is missing", "send success or failure"));
            let nothing = pb::Success::default();
            (Digest::default(), succeeded(nothing, limits), None)
        }
    };
    let timings = timings(&report.timings.unwrap_or_default());
    if let Err(faults) = check.finish() {
        return (Arc::new(bad_report(faults.message(), input_digest, timings)), None);
    }
    (Arc::new(ReportBody { digest, input_digest, served, timings, outcome }), retry_after_ms)
}

/// Another agent may do better: another attempt follows, if there is one left.
fn bad_report(faults: &str, input_digest: Digest, timings: Timings) -> ReportBody {
    let (reason, stage) = (FailureReason::BadReport, Stage::Result);
    let message = Bytes::from(format!("the agent's report breaks the contract: {faults}"));
    let digest = failure_digest(reason, stage, "", &message);
    let failure = Failure { reason, stage, code: "".into(), message, retryable: true };
    ReportBody { digest, input_digest, served: None, timings, outcome: Outcome::Failed(failure) }
}

fn input_digest(bytes: &[u8], check: &mut Check) -> Digest {
    bytes.try_into().map(Digest).unwrap_or_else(|_| {
        let problem = format!("has {} bytes", bytes.len());
        check.fault(Fault::of_field("input_digest", None, &problem, "send the 32 bytes of the input's SHA-256"));
        Digest::default()
    })
}

/// Who served; nobody where no region is said: the core refuses a success of no region (rule S6).
fn served(served: &pb::Served, check: &mut Check) -> Option<Served> {
    if served.region.is_empty() {
        return None;
    }
    let basis: RegionBasis =
        word("served.region_basis", served.region_basis).map_err(|fault| check.fault(*fault)).ok()?;
    Some(Served {
        region: text(&served.region),
        basis,
        model: text(&served.model),
        request_id: text(&served.request_id),
        endpoint: text(&served.endpoint),
        executor: text(&served.executor),
    })
}

fn succeeded(success: pb::Success, limits: &Limits) -> Outcome {
    let (bytes, limit) = (success.output.len() as u64, limits.max_output_bytes);
    if bytes > limit {
        let words = format!("the output has {bytes} bytes, and {limit} is the limit");
        return Outcome::Failed(Failure {
            reason: FailureReason::ResultTooLarge,
            stage: Stage::Result,
            code: "".into(),
            message: Bytes::from(words),
            // The same input would give as much again.
            retryable: false,
        });
    }
    let usage = success.usage.unwrap_or_default();
    let response = if success.response.len() as u64 > limit { Bytes::new() } else { success.response };
    Outcome::Succeeded(Success {
        output: success.output,
        response,
        finish_reason: text(&success.finish_reason),
        prompt_tokens: usage.prompt_tokens.map(stored),
        completion_tokens: usage.completion_tokens.map(stored),
    })
}

fn failed(failure: pb::Failure, limits: &Limits, check: &mut Check) -> (Digest, Failure) {
    let reason = word("failure.reason", failure.reason).map_err(|fault| check.fault(*fault));
    let stage = word("failure.stage", failure.stage).map_err(|fault| check.fault(*fault));
    // Stand-ins are never stored: a fault makes another failure of the report.
    let (reason, stage) = (reason.unwrap_or(FailureReason::BadResponse), stage.unwrap_or(Stage::Result));
    let digest = failure_digest(reason, stage, &failure.code, &failure.message);
    let limit = usize::try_from(limits.max_error_bytes).unwrap_or(usize::MAX);
    let message = match failure.message.get(..limit) {
        // Copied: a slice would keep the whole message in memory.
        Some(head) if failure.message.len() > limit => Bytes::copy_from_slice(head),
        _ => failure.message,
    };
    (digest, Failure { reason, stage, code: text(&failure.code), message, retryable: failure.retryable })
}

/// SHA-256 over the parts of a failure, each after its length in eight bytes.
fn failure_digest(reason: FailureReason, stage: Stage, code: &str, message: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    for part in [reason.as_str().as_bytes(), stage.as_str().as_bytes(), code.as_bytes(), message] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Digest(hash.finalize().into())
}

fn timings(said: &pb::Timings) -> Timings {
    Timings {
        waited_ms: stored(said.waited_ms),
        ran_ms: stored(said.ran_ms),
        first_byte_ms: said.first_byte_ms.map(stored),
    }
}

fn stored(number: u64) -> u64 {
    number.min(MAX_STORED)
}

fn text(text: &str) -> Arc<str> {
    bounded_text(text, MAX_TEXT_BYTES).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::convert::number;

    const LIMITS: Limits = Limits { max_output_bytes: 8, max_error_bytes: 4 };

    fn report(outcome: Said) -> pb::Report {
        let served = pb::Served {
            region: "eu".into(),
            region_basis: number(Some(RegionBasis::Configured)),
            executor: "echo".into(),
            ..pb::Served::default()
        };
        pb::Report {
            input_digest: Bytes::from_static(&[7; 32]),
            served: Some(served),
            outcome: Some(outcome),
            ..pb::Report::default()
        }
    }

    fn success(output: &'static [u8], response: &'static [u8]) -> Said {
        Said::Success(pb::Success { output: output.into(), response: response.into(), ..pb::Success::default() })
    }

    fn failure(code: &str, message: &[u8]) -> Said {
        Said::Failure(pb::Failure {
            reason: number(Some(FailureReason::Program)),
            stage: number(Some(Stage::Run)),
            code: code.into(),
            message: Bytes::copy_from_slice(message),
            ..pb::Failure::default()
        })
    }

    fn body(outcome: Said) -> ReportBody {
        Arc::unwrap_or_clone(report_body(report(outcome), &LIMITS).0)
    }

    #[test]
    fn an_output_at_the_limit_stays_and_one_byte_more_fails_with_both_sizes() {
        let at = body(success(b"12345678", b"12345678"));
        let Outcome::Succeeded(kept) = &at.outcome else { panic!("{at:?}") };
        assert_eq!((&kept.output[..], &kept.response[..]), (&b"12345678"[..], &b"12345678"[..]));
        let over = body(success(b"123456789", b""));
        let Outcome::Failed(failed) = &over.outcome else { panic!("{over:?}") };
        assert_eq!((failed.reason, failed.retryable), (FailureReason::ResultTooLarge, false));
        let words = String::from_utf8_lossy(&failed.message);
        assert!(words.contains("9 bytes") && words.contains("8 is the limit"), "{words}");
        let sha = Digest(Sha256::digest(b"123456789").into());
        assert_eq!(over.digest, sha, "the same report has one digest whatever the limit");
    }

    #[test]
    fn a_providers_body_over_the_limit_is_left_out_and_an_error_is_cut() {
        let Outcome::Succeeded(kept) = body(success(b"x", b"123456789")).outcome else { panic!() };
        assert_eq!((&kept.output[..], kept.response.len()), (&b"x"[..], 0));
        for (said, kept) in [(&b"\xff\0ab"[..], &b"\xff\0ab"[..]), (b"\xff\0abc", b"\xff\0ab"), (b"", b"")] {
            let Outcome::Failed(failed) = body(failure("", said)).outcome else { panic!() };
            assert_eq!(&failed.message[..], kept);
        }
    }

    #[test]
    fn no_two_failures_have_one_digest_by_moving_bytes_between_their_parts() {
        let one = body(failure("ab", b"c")).digest;
        let other = body(failure("a", b"bc")).digest;
        assert_ne!(one, other);
        assert_eq!(one, body(failure("ab", b"c")).digest);
        assert_ne!(body(failure("", b"abcde")).digest, body(failure("", b"abcdf")).digest, "of the whole message");
    }

    #[test]
    fn what_no_database_takes_is_bounded_before_it_comes_there() {
        let mut said = report(Said::Success(pb::Success {
            finish_reason: "stop\0".repeat(1_000),
            usage: Some(pb::Usage { prompt_tokens: Some(u64::MAX), completion_tokens: None }),
            ..pb::Success::default()
        }));
        said.timings = Some(pb::Timings { waited_ms: u64::MAX, ran_ms: 1, first_byte_ms: Some(u64::MAX) });
        let (body, _) = report_body(said, &LIMITS);
        let Outcome::Succeeded(kept) = &body.outcome else { panic!() };
        assert!(kept.finish_reason.len() <= MAX_TEXT_BYTES && !kept.finish_reason.contains('\0'));
        assert_eq!(kept.prompt_tokens, Some(MAX_STORED));
        let most = Timings { waited_ms: MAX_STORED, ran_ms: 1, first_byte_ms: Some(MAX_STORED) };
        assert_eq!(body.timings, most);
    }

    fn bad(said: pb::Report) -> String {
        let (body, _) = report_body(said, &LIMITS);
        let Outcome::Failed(failed) = &body.outcome else { panic!("{body:?}") };
        assert_eq!((failed.reason, failed.retryable), (FailureReason::BadReport, true));
        assert_ne!(body.digest, Digest::default(), "zero is of a report that nobody made");
        String::from_utf8_lossy(&failed.message).into_owned()
    }

    #[test]
    fn every_fault_of_a_report_is_named_at_once() {
        let said = pb::Report {
            served: Some(pb::Served { region: "eu".into(), region_basis: 99, ..pb::Served::default() }),
            outcome: Some(Said::Failure(pb::Failure::default())),
            ..pb::Report::default()
        };
        let words = bad(said.clone());
        for field in ["input_digest", "served.region_basis", "failure.reason", "failure.stage"] {
            assert!(words.contains(field), "{words}");
        }
        assert_eq!(report_body(said.clone(), &LIMITS).0.digest, report_body(said, &LIMITS).0.digest);
        assert!(bad(pb::Report { outcome: None, ..report(failure("", b"")) }).contains("outcome"));
    }

    #[test]
    fn a_report_without_a_region_comes_through_for_the_core_to_judge() {
        let said = pb::Report { served: Some(pb::Served::default()), ..report(success(b"x", b"")) };
        assert_eq!(report_body(said, &LIMITS).0.served, None);
    }
}
