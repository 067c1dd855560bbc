//! The cells of a job that failed, by what failed them.

use std::collections::{BTreeMap, BTreeSet};

use semel_proto::v1 as pb;
use serde_json::{Value, json};

use crate::{
    json,
    road::{Jobs, failure},
    table::table,
    terminal::{one_line, shown},
    words,
};

/// Records a page; a page also ends before it has more than 2 MiB.
const PAGE: u32 = 1_000;
/// Pages that are read: what failed more often than that is told by a sample.
const MAX_PAGES: usize = 10;
/// Kinds that a person is shown, the most frequent first.
const MAX_KINDS: usize = 12;
/// Characters of a message that a person is shown.
const MAX_MESSAGE_CHARS: usize = 120;

/// What failed a job's cells.
#[derive(Debug, Default)]
pub struct Failures {
    /// The most frequent first.
    kinds: Vec<Kind>,
    /// Records that were read.
    read: u64,
    /// Whether there are more.
    has_more: bool,
}

/// Cells that failed for one reason, with one code.
#[derive(Debug)]
struct Kind {
    reason: pb::FailureReason,
    code: String,
    cells: u64,
    models: BTreeSet<String>,
    regions: BTreeSet<String>,
    /// The first of them.
    example: pb::Execution,
}

impl Failures {
    /// Of a job, as far as it is read.
    ///
    /// # Errors
    /// There is no such job, or it can't be read.
    pub async fn of(jobs: &mut Jobs, job_id: &str) -> anyhow::Result<Self> {
        let mut kinds = BTreeMap::new();
        let (mut read, mut page_token) = (0, String::new());
        for _ in 0..MAX_PAGES {
            let request = pb::ListExecutionsRequest {
                job_id: job_id.to_owned(),
                status: pb::ExecutionStatus::Failed.into(),
                page_size: PAGE,
                page_token,
                ..Default::default()
            };
            let page = jobs.list_executions(request).await.map_err(failure)?.into_inner();
            for execution in page.executions {
                read += 1;
                count(&mut kinds, execution);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let mut kinds: Vec<Kind> = kinds.into_values().collect();
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.cells));
        Ok(Self { kinds, read, has_more: !page_token.is_empty() })
    }

    /// The key of a cell that failed.
    pub fn example(&self) -> Option<&pb::ExecutionKey> {
        self.kinds.first()?.example.key.as_ref()
    }

    /// For people: a table, and what is left out of it.
    pub fn as_lines(&self) -> Vec<String> {
        if self.kinds.is_empty() {
            return Vec::new();
        }
        let rows = self.kinds.iter().take(MAX_KINDS).map(Kind::row);
        let mut lines = vec![table(&["failed", "reason", "model", "region", "one of them says"], &[0], rows)];
        if self.kinds.len() > MAX_KINDS {
            lines.push(format!("and {} more kinds; --output json has them", self.kinds.len() - MAX_KINDS));
        }
        if self.has_more {
            lines.push(format!("of the first {} that failed; `semel export` has all", self.read));
        }
        lines
    }

    /// How many were read, and whether those are all.
    pub fn extent(&self) -> Value {
        json!({ "complete": !self.has_more, "read": self.read })
    }

    /// For scripts.
    pub fn as_json(&self) -> Value {
        self.kinds.iter().map(Kind::as_json).collect()
    }
}

impl Kind {
    fn row(&self) -> Vec<String> {
        let because = words::failed_because(self.reason).to_owned();
        let reason = match words::failure_code(self.reason, &self.code) {
            Some(code) => format!("{because} ({code})"),
            None => because,
        };
        let message = self.example.failure.as_ref().map(|failure| one_line(&failure.message, MAX_MESSAGE_CHARS));
        vec![
            self.cells.to_string(),
            reason,
            one_or_count(&self.models, "models"),
            one_or_count(&self.regions, "regions"),
            message.unwrap_or_default(),
        ]
    }

    fn as_json(&self) -> Value {
        let key = self.example.key.clone().unwrap_or_default();
        json!({
            "reason": words::failure_reason(self.reason),
            "code": json::some(&self.code),
            "cells": self.cells,
            "models": self.models,
            "regions": self.regions,
            "example": {
                "region": key.region,
                "model": key.model,
                "question": key.question,
                "repeat": key.repeat,
                "failure": self.example.failure.as_ref().map(json::failure),
            },
        })
    }
}

fn count(kinds: &mut BTreeMap<(i32, String), Kind>, execution: pb::Execution) {
    let failure = execution.failure.clone().unwrap_or_default();
    let key = execution.key.clone().unwrap_or_default();
    let kind = kinds.entry((failure.reason, failure.code.clone())).or_insert_with(|| Kind {
        reason: failure.reason(),
        code: failure.code.clone(),
        cells: 0,
        models: BTreeSet::new(),
        regions: BTreeSet::new(),
        example: execution,
    });
    kind.cells += 1;
    kind.models.insert(key.model);
    kind.regions.insert(key.region);
}

fn one_or_count(ids: &BTreeSet<String>, what: &str) -> String {
    match ids.first() {
        Some(id) if ids.len() == 1 => shown(id),
        _ => format!("{} {what}", ids.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(model: &str, reason: pb::FailureReason, code: &str, message: &str) -> pb::Execution {
        let failure = pb::Failure {
            reason: reason.into(),
            code: code.to_owned(),
            message: message.to_owned().into(),
            ..Default::default()
        };
        let key = pb::ExecutionKey { model: model.to_owned(), region: "us-east".to_owned(), ..Default::default() };
        pb::Execution { key: Some(key), failure: Some(failure), ..Default::default() }
    }

    #[test]
    fn failures_stand_by_reason_and_code_with_the_words_of_the_first_made_safe() {
        let mut kinds = BTreeMap::new();
        let attack = "no\u{1b}]0;x\u{7} such\nluck\n";
        count(&mut kinds, failed("a", pb::FailureReason::Program, "3", attack));
        count(&mut kinds, failed("b", pb::FailureReason::Program, "3", "other"));
        count(&mut kinds, failed("a", pb::FailureReason::RunTimeout, "", ""));
        let failures = Failures { kinds: kinds.into_values().collect(), read: 3, has_more: false };
        let rows: Vec<Vec<String>> = failures.kinds.iter().map(Kind::row).collect();
        let program =
            ["2", "the program failed (exit status or code 3)", "2 models", "us-east", "no\\u{1b}]0;x\\u{7} such luck"];
        assert!(rows.iter().any(|row| row == &program), "{rows:?}");
        assert!(rows.iter().any(|row| row[..3] == ["1", "the run timeout passed", "a"]), "{rows:?}");
    }
}
