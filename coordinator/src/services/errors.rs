//! The one map from what went wrong to a gRPC status with its `google.rpc` details.
//!
//! A status travels in HTTP/2 trailers, and peers refuse long ones (many at 8 KiB, all in all): so
//! messages and details have a budget, and what doesn't fit is counted.

use std::{collections::HashMap, time::Duration};

use semel_core::{event::Answer, id::JobId};
use semel_spec::{Fault, Faults, MAX_FAULTS};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{shell::ShellError, specs::SpecError, store::ReadError};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "semel";
/// Bytes of a status's message, at most, as they travel: what is not ASCII is written as %XX.
const MAX_MESSAGE_BYTES: usize = 900;
/// Bytes of the lines in a status's details, at most; in base64 they are a third longer.
const MAX_LISTED_BYTES: usize = 3_000;
/// When to try again what can't be done now.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Refused input: every fault as a field violation with its path, and the first ones in the message.
pub fn invalid(faults: &Faults) -> Status {
    let mut details = info("INVALID_INPUT", &[]);
    let mut budget = Budget::new();
    for fault in faults.iter() {
        let words = description(fault);
        if budget.takes(fault.path.len() + words.len()) {
            details.add_bad_request_violation(clipped(&fault.path), words);
        }
    }
    if let Some(more) = budget.rest("faults") {
        // Beyond its bound the check itself only counts, in words that are one more fault here.
        let least = if faults.0.len() > MAX_FAULTS { "at least " } else { "" };
        details.add_bad_request_violation("", format!("{least}{more}; put these right first"));
    }
    let lines = faults.iter().map(Fault::to_string);
    Status::with_error_details(Code::InvalidArgument, message("refused", lines), details)
}

/// Refused input with one fault.
pub fn invalid_field(fault: Fault) -> Status {
    invalid(&Faults(vec![fault]))
}

/// This coordinator has no such namespace.
pub fn no_namespace(name: &str) -> Status {
    let words = format!("there is no namespace {:?}; this coordinator has \"default\"", shortened(name));
    not_found("namespace", name, "NAMESPACE_NOT_FOUND", words)
}

/// There is no such job.
pub fn no_job(job: &JobId) -> Status {
    let words = format!("there is no job {:?} in namespace \"default\"; ListJobs has those that are", job.as_str());
    not_found("job", job.as_str(), "JOB_NOT_FOUND", words)
}

/// The job has no such cell.
pub fn no_cell(job: &JobId, why: &str) -> Status {
    let words = format!("job {:?} has no such cell: {why}", job.as_str());
    not_found("execution", job.as_str(), "EXECUTION_NOT_FOUND", words)
}

fn not_found(kind: &str, name: &str, reason: &str, words: String) -> Status {
    let mut details = info(reason, &[]);
    details.set_resource_info(kind, clipped(name), "", words.as_str());
    Status::with_error_details(Code::NotFound, clipped_message(words), details)
}

/// Promise 6: the id names another specification. Each difference is in the details.
pub fn other_spec(job: &JobId, differences: &[String]) -> Status {
    let mut details = info("OTHER_SPECIFICATION", &[("job_id", job.as_str())]);
    details.set_resource_info("job", job.as_str(), "", "accepted before with another specification");
    let mut budget = Budget::new();
    for line in differences {
        if budget.takes(job.as_str().len() + line.len()) {
            details.add_precondition_failure_violation("SPECIFICATION", job.as_str(), line.as_str());
        }
    }
    if let Some(more) = budget.rest("differences") {
        details.add_precondition_failure_violation("SPECIFICATION", job.as_str(), more);
    }
    let head = format!(
        "job {:?} was accepted before with another specification; choose another id, or send the same",
        job.as_str()
    );
    Status::with_error_details(Code::AlreadyExists, message(&head, differences.iter().cloned()), details)
}

/// The call does not fit the job's state.
pub fn refused(job: &JobId, words: &str) -> Status {
    let mut details = info("JOB_STATE", &[("job_id", job.as_str())]);
    details.add_precondition_failure_violation("STATE", job.as_str(), words);
    Status::with_error_details(Code::FailedPrecondition, clipped_message(words.to_owned()), details)
}

/// It can't be done now; later it can.
pub fn unavailable(words: impl Into<String>) -> Status {
    let mut details = info("UNAVAILABLE", &[]);
    details.set_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, clipped_message(words.into()), details)
}

/// Something of this coordinator's own is wrong.
pub fn internal(reason: &str, words: impl Into<String>) -> Status {
    Status::with_error_details(Code::Internal, clipped_message(words.into()), info(reason, &[]))
}

/// The core gave an answer that does not belong to the question: a fault of this program.
pub fn unexpected(answer: &Answer) -> Status {
    // Its content may be long, and is the log's business; its kind is enough.
    let words = format!("{answer:?}");
    let kind = words.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    internal("UNEXPECTED_ANSWER", format!("the core answered {kind}, which does not answer this call"))
}

impl From<ShellError> for Status {
    fn from(error: ShellError) -> Self {
        match error {
            ShellError::NotLeading => unavailable(error.to_string()),
            ShellError::Read(error) => error.into(),
            ShellError::Spec(error) => error.into(),
            ShellError::Refused(_) => Status::internal(error.to_string()),
        }
    }
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Database(_) | ReadError::OtherEpoch { .. } => unavailable(error.to_string()),
            ReadError::Row { .. } | ReadError::EpochsUsedUp => internal("STORE", error.to_string()),
        }
    }
}

impl From<SpecError> for Status {
    fn from(error: SpecError) -> Self {
        match error {
            SpecError::Read(error) => error.into(),
            SpecError::Stored { .. } => internal("STORED_SPECIFICATION", error.to_string()),
        }
    }
}

fn info(reason: &str, metadata: &[(&str, &str)]) -> ErrorDetails {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ErrorDetails::with_error_info(reason, DOMAIN, metadata)
}

/// Room for the lines of a list.
struct Budget {
    left: usize,
    unlisted: usize,
}

impl Budget {
    fn new() -> Self {
        Self { left: MAX_LISTED_BYTES, unlisted: 0 }
    }
    /// Whether a line still fits. After the first that does not, none does: a list has no holes.
    fn takes(&mut self, bytes: usize) -> bool {
        let fits = self.unlisted == 0 && bytes <= self.left;
        if fits {
            self.left -= bytes;
        } else {
            self.unlisted += 1;
        }
        fits
    }
    fn rest(&self, what: &str) -> Option<String> {
        (self.unlisted > 0).then(|| format!("{} more {what} are not listed", self.unlisted))
    }
}

/// A fault without its path, which stands in a field of its own.
fn description(fault: &Fault) -> String {
    let words = Fault { path: String::new(), ..fault.clone() }.to_string();
    clipped(&words)
}

/// A head and as many lines as fit.
fn message(head: &str, lines: impl ExactSizeIterator<Item = String>) -> String {
    let total = lines.len();
    let mut text = head.to_owned();
    for (listed, line) in lines.enumerate() {
        // Room for the words about the rest.
        if travelling(&text) + travelling(&line) + 32 > MAX_MESSAGE_BYTES {
            text.push_str(&format!("\nand {} more", total - listed));
            break;
        }
        text.push(if listed == 0 { ':' } else { '\n' });
        if listed == 0 {
            text.push('\n');
        }
        text.push_str(&line);
    }
    clipped_message(text)
}

/// Bytes of a text in `grpc-message`.
fn travelling(text: &str) -> usize {
    text.bytes().map(|b| if (b' '..=b'~').contains(&b) && b != b'%' { 1 } else { 3 }).sum()
}

fn clipped_message(text: String) -> String {
    if travelling(&text) <= MAX_MESSAGE_BYTES {
        return text;
    }
    let mut room = MAX_MESSAGE_BYTES - "%E2%80%A6".len();
    let mut cut = String::new();
    for c in text.chars() {
        let bytes = travelling(c.encode_utf8(&mut [0; 4]));
        if bytes > room {
            break;
        }
        room -= bytes;
        cut.push(c);
    }
    cut.push('…');
    cut
}

/// A line of the details: at most a fifth of all of them.
fn clipped(text: &str) -> String {
    const MOST: usize = MAX_LISTED_BYTES / 5;
    if text.len() <= MOST {
        return text.to_owned();
    }
    format!("{}…", super::convert::cut(text, MOST))
}

fn shortened(text: &str) -> String {
    clipped(text).chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt;

    fn faults(count: usize, path: &str) -> Faults {
        let fault = |i| Fault::of_field(&format!("{path}[{i}].id"), Some("ä%\n"), "is empty", "give it 1 to 255 bytes");
        Faults((0..count).map(fault).collect())
    }

    /// The trailers of a status as a peer counts them.
    fn trailer_bytes(status: &Status) -> usize {
        travelling(status.message()) + status.details().len() * 4 / 3 + 4 + 3 * 32 + 64
    }

    #[test]
    fn every_fault_is_a_violation_with_its_path() {
        let status = invalid(&faults(3, "spec.questions"));
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        let paths: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(paths, ["spec.questions[0].id", "spec.questions[1].id", "spec.questions[2].id"]);
        assert_eq!(details.error_info().unwrap().domain, DOMAIN);
        assert!(status.message().contains("spec.questions[2].id"), "{}", status.message());
    }

    #[test]
    fn a_status_fits_its_trailers_whatever_is_wrong_and_counts_what_it_leaves_out() {
        for (count, path) in [(1_001, "spec.questions"), (40, &"é".repeat(400))] {
            let status = invalid(&faults(count, path));
            assert!(trailer_bytes(&status) <= 8 << 10, "{} bytes", trailer_bytes(&status));
            let details = status.get_error_details();
            let violations = &details.bad_request().unwrap().field_violations;
            let rest = format!("{} more faults", count - (violations.len() - 1));
            assert!(violations.last().unwrap().description.contains(&rest), "{violations:?}");
        }
        let id = JobId::new("é".repeat(127));
        let lines: Vec<String> = (0..21).map(|i| format!("questions[{i}].prompt: was {}", "x".repeat(120))).collect();
        for status in
            [other_spec(&id, &lines), no_job(&id), no_namespace(&"ü".repeat(4 << 20)), unavailable("ü".repeat(9_000))]
        {
            assert!(trailer_bytes(&status) <= 8 << 10, "{} bytes: {}", trailer_bytes(&status), status.message());
        }
    }

    #[test]
    fn what_may_be_tried_again_says_when() {
        let status = Status::from(ShellError::NotLeading);
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.get_error_details().retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
    }
}
