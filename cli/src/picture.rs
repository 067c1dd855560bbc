//! The picture of a job: one line of counts, the matrix of model × region, and why cells wait.

use std::{collections::BTreeMap, time::Duration};

use semel_proto::v1 as pb;

use crate::{
    clock::Heard,
    rate::{Rate, in_words},
    table::{indented, table},
    terminal::{one_line, shown},
    words,
};

/// Groups of waiting cells that a picture shows; `semel why` shows all.
const MAX_GROUPS: usize = 5;
/// Characters of a group's words that a picture shows.
const MAX_DETAIL_CHARS: usize = 160;
/// Pairs of model and region that have a line each; a job with more is shown as a matrix.
const MAX_LANES: usize = 24;
/// Regions of such a matrix side by side; a job with more is shown a line for each pair all the same.
const MAX_REGIONS: usize = 8;
/// Columns that a terminal leaves to the lines of the table after the margin.
const MARGIN: usize = 2;

/// The counts of a job in a line: what is recorded, failed, running, waiting, and with a rate how fast and how long.
pub fn headline(job: &pb::Job, rate: Option<&Rate>) -> String {
    format!("{}: {}", shown(&job.job_id), standing(job, rate))
}

/// As [`headline`], without the job's id.
pub fn standing(job: &pb::Job, rate: Option<&Rate>) -> String {
    let counts = job.counts.unwrap_or_default();
    let state = words::state(job.state());
    let paused = if job.paused && is_pausable(job.state()) { " (paused)" } else { "" };
    let mut parts = vec![format!("{state}{paused}"), format!("{} of {} recorded", counts.recorded, counts.expected)];
    let known = [
        (counts.failed, "failed"),
        (counts.leased, "leased"),
        (counts.pending, "waiting"),
        (counts.not_run, "will not run"),
    ];
    parts.extend(known.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    if let Some(rate) = rate.filter(|_| job.state() == pb::JobState::Open) {
        parts.extend(rate.per_second().map(|rate| format!("{rate:.1}/s")));
        let left = rate.time_for(counts.expected.saturating_sub(counts.recorded));
        parts.extend(left.map(|left| format!("about {} left", in_words(left))));
    }
    parts.join(", ")
}

/// Whether a pause means something: of a complete job it holds back what is retried.
pub fn is_pausable(state: pb::JobState) -> bool {
    matches!(state, pb::JobState::Open | pb::JobState::Complete)
}

/// The matrix, model × region, as the audit shows it: expected, recorded, missing, extra, by key. Of a job with many
/// pairs, and on a terminal of fewer columns than that takes, recorded / expected side by side and the rest in a line.
fn matrix(job: &pb::Job, width: Option<usize>) -> Vec<String> {
    let regions = distinct(job, |axis| &axis.region);
    let rows: Vec<String> = rows(job).lines().map(str::to_owned).collect();
    let fits = |width| rows.iter().all(|row| MARGIN + console::measure_text_width(row) <= width);
    if regions.len() > MAX_REGIONS || (job.by_axis.len() <= MAX_LANES && width.is_none_or(fits)) {
        return rows;
    }
    let mut lines: Vec<String> = side_by_side(job, &regions).lines().map(str::to_owned).collect();
    let Standing { missing, extra } = Standing::of(job.counts.unwrap_or_default());
    lines.push(format!("{missing} missing, {extra} extra"));
    lines
}

/// A line for each model in each region, and one for all.
fn rows(job: &pb::Job) -> String {
    let row = |model: String, region: String, counts: pb::Counts| {
        let Standing { missing, extra } = Standing::of(counts);
        let numbers = [counts.expected, counts.recorded, missing, extra, counts.failed];
        [model, region].into_iter().chain(numbers.map(|number| number.to_string())).collect::<Vec<_>>()
    };
    let axis = |axis: &pb::AxisCounts| row(shown(&axis.model), shown(&axis.region), axis.counts.unwrap_or_default());
    let all = (job.by_axis.len() > 1).then(|| row("all".to_owned(), String::new(), job.counts.unwrap_or_default()));
    let headers = ["model", "region", "expected", "recorded", "missing", "extra", "failed"];
    table(&headers, &[2, 3, 4, 5, 6], job.by_axis.iter().map(axis).chain(all))
}

/// Recorded / expected of each model in each region, and what failed.
fn side_by_side(job: &pb::Job, regions: &[&str]) -> String {
    let cells: BTreeMap<(&str, &str), pb::Counts> = job
        .by_axis
        .iter()
        .map(|axis| ((axis.model.as_str(), axis.region.as_str()), axis.counts.unwrap_or_default()))
        .collect();
    let names: Vec<String> = regions.iter().map(|region| shown(region)).collect();
    let headers: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
    let row = |model: &str| {
        let cell =
            |region: &&str| cells.get(&(model, *region)).map_or_else(|| "–".to_owned(), |counts| standing_of(*counts));
        std::iter::once(shown(model)).chain(regions.iter().map(cell)).collect()
    };
    let right: Vec<usize> = (1..=regions.len()).collect();
    table(&headers, &right, distinct(job, |axis| &axis.model).into_iter().map(row))
}

/// The ids of an axis, each once, in the job's order.
fn distinct<'j>(job: &'j pb::Job, id: impl Fn(&'j pb::AxisCounts) -> &'j String) -> Vec<&'j str> {
    let mut ids: Vec<&str> = Vec::new();
    for id in job.by_axis.iter().map(|axis| id(axis).as_str()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// What conservation (promise 4) leaves to be said: every cell is recorded, leased, pending or not run, and none is more
/// than one of them. The coordinator counts each kind by key; the tables themselves are recounted by `audit`.
struct Standing {
    missing: u64,
    extra: u64,
}

impl Standing {
    fn of(counts: pb::Counts) -> Self {
        let missing = counts.leased + counts.pending + counts.not_run;
        Self { missing, extra: (counts.recorded + missing).saturating_sub(counts.expected) }
    }
}

fn standing_of(counts: pb::Counts) -> String {
    let recorded = format!("{}/{}", counts.recorded, counts.expected);
    if counts.failed > 0 { format!("{recorded} ({} failed)", counts.failed) } else { recorded }
}

/// Whether any cells wait for something that doesn't come of itself: an agent, its configuration, a `resume`.
pub fn is_held(groups: &[pb::PendingGroup]) -> bool {
    groups.iter().any(|group| {
        matches!(
            group.reason(),
            pb::WaitReason::Paused
                | pb::WaitReason::NoAgentInRegion
                | pb::WaitReason::NoAgentWithModel
                | pb::WaitReason::AgentMisconfigured
                | pb::WaitReason::Draining
        )
    })
}

/// Why cells wait: the largest groups, one a line. Cells that agents have don't wait.
pub fn waiting(groups: &[pb::PendingGroup]) -> Vec<String> {
    let waiting: Vec<_> = groups.iter().filter(|group| group.reason() != pb::WaitReason::Leased).collect();
    let mut lines: Vec<String> = waiting.iter().take(MAX_GROUPS).map(|group| reason(group)).collect();
    if waiting.len() > MAX_GROUPS {
        lines.push(format!("and {} more groups; `semel why` has them", waiting.len() - MAX_GROUPS));
    }
    lines
}

fn reason(group: &pb::PendingGroup) -> String {
    let until =
        group.until_ms.map(|ms| format!(", for {} more", in_words(Duration::from_millis(ms)))).unwrap_or_default();
    let because = words::waits_because(group.reason());
    let words = match one_line(group.detail.as_bytes(), MAX_DETAIL_CHARS) {
        detail if detail.is_empty() || detail == because => because.to_owned(),
        detail => format!("{because}: {detail}"),
    };
    format!("{} of {} in {}: {words}{until}", group.cells, shown(&group.model), shown(&group.region))
}

/// The whole picture, line for line, for a terminal of so many columns.
pub fn lines(job: &pb::Job, groups: &[pb::PendingGroup], rate: Option<&Rate>, width: Option<usize>) -> Vec<String> {
    let mut lines = vec![headline(job, rate)];
    lines.extend(matrix(job, width).iter().map(|line| indented(line, MARGIN)));
    let waiting = waiting(groups);
    if !waiting.is_empty() {
        lines.push("waiting:".to_owned());
        lines.extend(waiting.iter().map(|line| indented(line, 2)));
    }
    lines
}

/// The picture of a job that nothing has been heard of since: its first line says so, for nobody to take it for how the
/// job stands.
pub fn heard(job: &pb::Job, heard: Heard, width: Option<usize>) -> Vec<String> {
    let mut lines = lines(job, &[], None, width);
    if let Some(first) = lines.first_mut() {
        *first = format!("{first}, {heard}");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(recorded: u64, failed: u64) -> Option<pb::Counts> {
        Some(pb::Counts { expected: 8, recorded, failed, pending: 8 - recorded, ..Default::default() })
    }

    fn axis(model: &str, region: &str, recorded: u64, failed: u64) -> pb::AxisCounts {
        pb::AxisCounts { model: model.to_owned(), region: region.to_owned(), counts: counts(recorded, failed) }
    }

    fn job() -> pb::Job {
        pb::Job {
            job_id: "first".to_owned(),
            state: pb::JobState::Open.into(),
            counts: Some(pb::Counts { expected: 24, recorded: 11, failed: 1, leased: 3, pending: 10, not_run: 0 }),
            by_axis: vec![axis("a", "us-east", 8, 0), axis("a", "eu-west", 3, 1), axis("b", "us-east", 0, 0)],
            ..Default::default()
        }
    }

    fn words(lines: &[String]) -> Vec<Vec<&str>> {
        lines.iter().map(|line| line.split_whitespace().collect()).collect()
    }

    #[test]
    fn the_matrix_has_expected_recorded_missing_and_extra_of_each_model_in_each_region() {
        let mut job = job();
        // More than the job has cells: what conservation forbids, and what the picture must not hide.
        job.by_axis[0].counts = Some(pb::Counts { expected: 8, recorded: 9, leased: 1, ..Default::default() });
        let lines = matrix(&job, None);
        assert_eq!(
            words(&lines),
            [
                &["model", "region", "expected", "recorded", "missing", "extra", "failed"][..],
                &["a", "us-east", "8", "9", "1", "2", "0"],
                &["a", "eu-west", "8", "3", "5", "0", "1"],
                &["b", "us-east", "8", "0", "8", "0", "0"],
                &["all", "24", "11", "13", "0", "1"],
            ]
        );
        assert_eq!(matrix(&job, Some(80)), lines);
    }

    #[test]
    fn where_that_is_too_wide_or_too_long_the_matrix_stands_side_by_side_and_ragged_where_the_job_is() {
        let mut job = job();
        let narrow = matrix(&job, Some(40));
        assert_eq!(
            words(&narrow),
            [
                &["us-east", "eu-west"][..],
                &["a", "8/8", "3/8", "(1", "failed)"],
                &["b", "0/8", "–"],
                &["13", "missing,", "0", "extra"]
            ]
        );
        job.by_axis.extend((0..MAX_LANES).map(|number| axis(&format!("m{number}"), "us-east", 0, 0)));
        assert_eq!(matrix(&job, None).len(), 1 + 2 + MAX_LANES + 1);
        assert_eq!(words(&matrix(&job, None))[0], ["us-east", "eu-west"]);
        job.by_axis.extend((0..MAX_REGIONS).map(|number| axis("a", &format!("r{number}"), 0, 0)));
        assert!(matrix(&job, Some(40))[0].starts_with("model"), "too many regions stand a line each");
    }

    #[test]
    fn the_headline_counts_every_kind_of_cell_and_says_how_long() {
        let mut rate = Rate::default();
        rate.look(Duration::ZERO, 0);
        rate.look(Duration::from_secs(11), 11);
        assert_eq!(
            headline(&job(), Some(&rate)),
            "first: open, 11 of 24 recorded, 1 failed, 3 leased, 10 waiting, 1.0/s, about 13 s left"
        );
    }

    #[test]
    fn the_providers_words_do_nothing_to_the_terminal() {
        let group = |reason: pb::WaitReason, detail: &str| pb::PendingGroup {
            model: "a\u{1b}[2J".to_owned(),
            region: "us-east".to_owned(),
            reason: reason.into(),
            detail: detail.to_owned(),
            cells: 8,
            until_ms: None,
        };
        let groups = [
            group(pb::WaitReason::AgentMisconfigured, "agent us-east: \u{1b}]0;x\u{7}connection refused"),
            group(pb::WaitReason::Leased, ""),
        ];
        let lines = waiting(&groups);
        assert_eq!(
            lines,
            [
                "8 of a\\u{1b}[2J in us-east: the agent can't use the model: agent us-east: \\u{1b}]0;x\\u{7}connection refused"
            ]
        );
    }
}
