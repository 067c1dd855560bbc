//! An audit's answer: the incident's own table.

use semel_coordinator::audit::{AuditCounts, AuditReport};
use semel_core::words::JobState;
use semel_proto::v1 as pb;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{table::table, terminal::shown, words};

/// What the recount of a job found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    job: String,
    state: String,
    exact: bool,
    #[serde(flatten)]
    total: Counts,
    by_axis: Vec<Axis>,
    violations: Vec<String>,
    violations_found: u64,
}

/// One model in one region.
#[derive(Clone, Debug, Serialize)]
struct Axis {
    model: String,
    region: String,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Counts {
    expected: u64,
    recorded: u64,
    missing: u64,
    extra: u64,
    duplicate: u64,
    failed: u64,
}

impl From<AuditCounts> for Counts {
    fn from(counts: AuditCounts) -> Self {
        let AuditCounts { expected, recorded, missing, extra, duplicate, failed } = counts;
        Self { expected, recorded, missing, extra, duplicate, failed }
    }
}

impl From<pb::AuditCounts> for Counts {
    fn from(counts: pb::AuditCounts) -> Self {
        let pb::AuditCounts { expected, recorded, missing, extra, duplicate, failed } = counts;
        Self { expected, recorded, missing, extra, duplicate, failed }
    }
}

impl Report {
    /// Of this process's own reading of the tables.
    pub fn of_tables(job: &str, report: &AuditReport) -> Self {
        let axis = |axis: &semel_coordinator::audit::AuditAxis| Axis {
            model: axis.model.clone(),
            region: axis.region.clone(),
            counts: axis.counts.into(),
        };
        Self {
            job: job.to_owned(),
            state: state(report),
            exact: report.exact,
            total: report.total.into(),
            by_axis: report.by_axis.iter().map(axis).collect(),
            violations: report.violations.clone(),
            violations_found: report.violations_found,
        }
    }

    /// Of a coordinator's answer about a job in this state.
    pub fn of_response(job: &str, state: pb::JobState, response: pb::AuditJobResponse) -> Self {
        let axis = |axis: pb::AuditAxis| Axis {
            model: axis.model,
            region: axis.region,
            counts: axis.counts.unwrap_or_default().into(),
        };
        Self {
            job: job.to_owned(),
            state: words::state(state),
            exact: response.exact,
            total: response.total.unwrap_or_default().into(),
            by_axis: response.by_axis.into_iter().map(axis).collect(),
            violations_found: response.violations.len() as u64,
            violations: response.violations,
        }
    }

    /// Whether every number is right: nothing extra, duplicate or otherwise wrong, and of a complete job nothing missing.
    pub fn is_right(&self) -> bool {
        self.exact && !(self.state == words::state(pb::JobState::Complete) && self.total.missing > 0)
    }

    /// How many cells were asked for, and how many of them have a record.
    pub fn recorded_of_expected(&self) -> (u64, u64) {
        (self.total.recorded, self.total.expected)
    }

    /// For scripts.
    pub fn as_json(&self) -> Value {
        json!(self)
    }

    /// For people.
    pub fn as_text(&self) -> String {
        let Counts { expected, recorded, missing, extra, duplicate, failed } = self.total;
        let mut head = format!(
            "{} ({}): {expected} expected, {recorded} recorded, {missing} missing, {extra} extra",
            shown(&self.job),
            self.state
        );
        for (count, what) in [(duplicate, "duplicate"), (failed, "failed")] {
            if count > 0 {
                head.push_str(&format!(", {count} {what}"));
            }
        }
        let headers = ["model", "region", "expected", "recorded", "missing", "extra", "duplicate", "failed"];
        let row = |axis: &Axis| {
            let Counts { expected, recorded, missing, extra, duplicate, failed } = axis.counts;
            let counts = [expected, recorded, missing, extra, duplicate, failed].map(|count| count.to_string());
            [shown(&axis.model), shown(&axis.region)].into_iter().chain(counts).collect()
        };
        let mut lines = vec![head];
        lines.extend(
            table(&headers, &[2, 3, 4, 5, 6, 7], self.by_axis.iter().map(row)).lines().map(|l| format!("  {l}")),
        );
        let verdict = console::style(self.verdict());
        lines.push(if self.is_right() { verdict.green() } else { verdict.red().bold() }.to_string());
        lines.extend(self.violations.iter().map(|words| format!("  {}", shown(words))));
        let more = self.violations_found.saturating_sub(self.violations.len() as u64);
        if more > 0 {
            lines.push(format!("  and {more} more"));
        }
        lines.join("\n")
    }

    fn verdict(&self) -> String {
        let missing = self.total.missing;
        if !self.is_right() {
            "NOT EXACT: the tables break what was promised".to_owned()
        } else if missing == 0 {
            "exact: every cell once, by key".to_owned()
        } else {
            format!(
                "exact so far: no key twice and none too many; {missing} not recorded, as the job is {}",
                self.state
            )
        }
    }
}

/// A job's state as it is said: complete is not stored, it is what the counts say of an open job.
fn state(report: &AuditReport) -> String {
    let is_complete = report.state == JobState::Open && report.total.recorded == report.total.expected;
    if is_complete { words::state(pb::JobState::Complete) } else { report.state.as_str().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(missing: u64, exact: bool) -> pb::AuditJobResponse {
        let counts = pb::AuditCounts { expected: 72, recorded: 72 - missing, missing, ..Default::default() };
        pb::AuditJobResponse { total: Some(counts), exact, ..Default::default() }
    }

    #[test]
    fn a_complete_job_that_misses_a_cell_is_not_right_and_an_open_one_may() {
        for (state, missing, exact, is_right) in [
            (pb::JobState::Complete, 0, true, true),
            (pb::JobState::Complete, 1, true, false),
            (pb::JobState::Open, 1, true, true),
            (pb::JobState::Cancelled, 1, true, true),
            (pb::JobState::Open, 0, false, false),
        ] {
            let report = Report::of_response("j", state, response(missing, exact));
            assert_eq!(report.is_right(), is_right, "{state:?} {missing} {exact}");
            assert_eq!(report.as_text().contains("NOT EXACT"), !is_right);
        }
    }

    #[test]
    fn the_first_line_says_expected_recorded_missing_and_extra() {
        let text = Report::of_response("first", pb::JobState::Complete, response(0, true)).as_text();
        assert!(text.starts_with("first (complete): 72 expected, 72 recorded, 0 missing, 0 extra\n"), "{text}");
    }
}
