//! The picture of a job: one line of counts, the matrix of model × region, and why cells wait.

use std::{collections::BTreeMap, time::Duration};

use semel_proto::v1 as pb;

use crate::{
    rate::{Rate, in_words},
    table::{indented, table},
    terminal::shown,
    words,
};

/// Groups of waiting cells that a picture shows; `semel why` shows all.
const MAX_GROUPS: usize = 5;
/// Characters of a group's words that a picture shows.
const MAX_DETAIL_CHARS: usize = 160;
/// Regions side by side; a job with more is shown a line for each model and region.
const MAX_REGIONS: usize = 8;

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
        (counts.leased, "with agents"),
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

/// The matrix: recorded / expected of each model in each region, and what failed.
pub fn matrix(job: &pb::Job) -> String {
    let mut models: Vec<&str> = Vec::new();
    let mut regions: Vec<&str> = Vec::new();
    let mut cells: BTreeMap<(&str, &str), pb::Counts> = BTreeMap::new();
    for axis in &job.by_axis {
        if !models.contains(&axis.model.as_str()) {
            models.push(&axis.model);
        }
        if !regions.contains(&axis.region.as_str()) {
            regions.push(&axis.region);
        }
        cells.insert((&axis.model, &axis.region), axis.counts.unwrap_or_default());
    }
    if regions.len() > MAX_REGIONS {
        let row = |axis: &pb::AxisCounts| {
            vec![shown(&axis.model), shown(&axis.region), standing_of(axis.counts.unwrap_or_default())]
        };
        return table(&["model", "region", "recorded"], &[2], job.by_axis.iter().map(row));
    }
    let names: Vec<String> = regions.iter().map(|region| shown(region)).collect();
    let headers: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
    let row = |model: &&str| {
        let cell =
            |region: &&str| cells.get(&(*model, *region)).map_or_else(|| "–".to_owned(), |counts| standing_of(*counts));
        std::iter::once(shown(model)).chain(regions.iter().map(cell)).collect()
    };
    let right: Vec<usize> = (1..=regions.len()).collect();
    table(&headers, &right, models.iter().map(row))
}

fn standing_of(counts: pb::Counts) -> String {
    let recorded = format!("{}/{}", counts.recorded, counts.expected);
    if counts.failed > 0 { format!("{recorded} ({} failed)", counts.failed) } else { recorded }
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
    let mut detail: String = group.detail.chars().take(MAX_DETAIL_CHARS).collect();
    if detail.len() < group.detail.len() {
        detail.push('…');
    }
    let words = match detail.as_str() {
        "" => because.to_owned(),
        detail if detail == because => because.to_owned(),
        detail => format!("{because}: {}", shown(detail)),
    };
    format!("{} of {} in {}: {words}{until}", group.cells, shown(&group.model), shown(&group.region))
}

/// The whole picture, line for line.
pub fn lines(job: &pb::Job, groups: &[pb::PendingGroup], rate: Option<&Rate>) -> Vec<String> {
    let mut lines = vec![headline(job, rate)];
    lines.extend(matrix(job).lines().map(|line| format!("  {line}")));
    let waiting = waiting(groups);
    if !waiting.is_empty() {
        lines.push("waiting:".to_owned());
        lines.extend(waiting.iter().map(|line| indented(line, 2)));
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

    #[test]
    fn the_matrix_is_ragged_where_the_job_is() {
        let matrix = matrix(&job());
        let lines: Vec<&str> = matrix.lines().collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[0]), ["us-east", "eu-west"]);
        assert_eq!(words(lines[1]), ["a", "8/8", "3/8", "(1", "failed)"]);
        assert_eq!(words(lines[2]), ["b", "0/8", "–"]);
    }

    #[test]
    fn the_headline_counts_every_kind_of_cell_and_says_how_long() {
        let mut rate = Rate::default();
        rate.look(Duration::ZERO, 0);
        rate.look(Duration::from_secs(11), 11);
        assert_eq!(
            headline(&job(), Some(&rate)),
            "first: open, 11 of 24 recorded, 1 failed, 3 with agents, 10 waiting, 1.0/s, about 13 s left"
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
                "8 of a\\u{1b}[2J in us-east: the agent can't reach the model: agent us-east: \\u{1b}]0;x\\u{7}connection refused"
            ]
        );
    }
}
