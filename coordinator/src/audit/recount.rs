//! The counting itself: rows go in, one at a time, and a report comes out.

use std::collections::{BTreeMap, HashMap};

use roaring::{RoaringBitmap, RoaringTreemap};
use semel_core::{id::Cell, words::JobState};
use sha2::{Digest as _, Sha256};
use sqlx::{Row, sqlite::SqliteRow};

use super::{AuditAxis, AuditCounts, AuditReport, MAX_FOREIGN_AXES, MAX_VIOLATIONS, Subject};
use crate::{jobspec, store::sqlite::rows::token_of};

/// A key as a row says it.
pub(super) struct KeySeen<'r> {
    region: &'r str,
    model: &'r str,
    question: &'r str,
    repeat: i64,
}

impl<'r> KeySeen<'r> {
    /// The first four columns.
    fn of(row: &'r SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self { region: row.try_get(0)?, model: row.try_get(1)?, question: row.try_get(2)?, repeat: row.try_get(3)? })
    }
}

impl std::fmt::Display for KeySeen<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "(region {:?}, model {:?}, question {:?}, repeat {})",
            self.region, self.model, self.question, self.repeat
        )
    }
}

/// What the recount reads of a record.
pub(super) struct RecordSeen<'r> {
    key: KeySeen<'r>,
    cell: i64,
    token: i64,
    failed: bool,
    /// It failed because another input ran (rule S6).
    wrong_input: bool,
    /// It failed because of what it answered (rule S6): the answer stands in the history, under the same token.
    judged: bool,
    /// The region that served, if it is not the key's and the record does not say so itself (rule S6).
    served_elsewhere: Option<&'r str>,
    input_digest: &'r [u8],
}

impl<'r> RecordSeen<'r> {
    /// The columns of `super::RECORDS`.
    pub(super) fn of(row: &'r SqliteRow) -> Result<Self, sqlx::Error> {
        let failure: i64 = row.try_get(6)?;
        Ok(Self {
            key: KeySeen::of(row)?,
            cell: row.try_get(4)?,
            token: row.try_get(5)?,
            failed: failure != 0,
            wrong_input: failure == 2,
            judged: failure >= 2,
            served_elsewhere: row.try_get(7)?,
            input_digest: row.try_get(8)?,
        })
    }
}

/// What the recount reads of an entry of the history.
pub(super) struct AttemptSeen<'r> {
    key: KeySeen<'r>,
    cell: i64,
    token: i64,
    kind: &'r str,
}

impl<'r> AttemptSeen<'r> {
    pub(super) fn of(row: &'r SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self { key: KeySeen::of(row)?, cell: row.try_get(4)?, token: row.try_get(5)?, kind: row.try_get(6)? })
    }
}

/// What the recount reads of a grant.
pub(super) struct GrantSeen<'r> {
    first: i64,
    cells: &'r str,
}

impl<'r> GrantSeen<'r> {
    pub(super) fn of(row: &'r SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self { first: row.try_get(0)?, cells: row.try_get(1)? })
    }
}

/// A recount under way.
pub(super) struct Recount<'s> {
    subject: &'s Subject,
    lanes: BTreeMap<&'s str, BTreeMap<&'s str, usize>>,
    questions: HashMap<&'s str, u32>,
    counts: Vec<AuditCounts>,
    foreign: BTreeMap<(String, String), AuditCounts>,
    /// Records of axes beyond [`MAX_FOREIGN_AXES`].
    beyond: u64,
    recorded: RoaringBitmap,
    record_tokens: RoaringTreemap,
    judged_tokens: RoaringTreemap,
    leased: RoaringBitmap,
    granted_up_to: i64,
    /// The digest of the last input: repeats of one question come together.
    last_input: Option<(usize, u32, [u8; 32])>,
    violations: Vec<String>,
    violations_found: u64,
}

impl<'s> Recount<'s> {
    pub(super) fn new(subject: &'s Subject) -> Self {
        let matrix = &subject.matrix;
        let mut lanes: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (i, lane) in matrix.lanes().iter().enumerate() {
            let model = matrix.models()[lane.model].id.as_str();
            lanes.entry(model).or_default().insert(lane.region.as_str(), i);
        }
        let expected = u64::from(matrix.lane_len());
        Self {
            subject,
            lanes,
            questions: (0..).zip(matrix.questions()).map(|(i, id)| (id.as_str(), i)).collect(),
            counts: vec![AuditCounts { expected, ..AuditCounts::default() }; matrix.lanes().len()],
            foreign: BTreeMap::new(),
            beyond: 0,
            recorded: RoaringBitmap::new(),
            record_tokens: RoaringTreemap::new(),
            judged_tokens: RoaringTreemap::new(),
            leased: RoaringBitmap::new(),
            granted_up_to: 0,
            last_input: None,
            violations: Vec::new(),
            violations_found: 0,
        }
    }

    fn violated(&mut self, promise: &str, what: impl FnOnce() -> String) {
        self.violations_found += 1;
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(format!("{promise}: {}", what()));
        }
    }

    /// The place of a key in the matrix, from its text alone.
    fn place(&self, key: &KeySeen<'_>) -> Option<(usize, u32, u32)> {
        let lane = self.lane(key)?;
        let question = *self.questions.get(key.question)?;
        let repeat = u32::try_from(key.repeat).ok().filter(|r| *r < self.subject.matrix.repeat())?;
        Some((lane, question, repeat))
    }

    fn lane(&self, key: &KeySeen<'_>) -> Option<usize> {
        self.lanes.get(key.model)?.get(key.region).copied()
    }

    fn cell(&self, (lane, question, repeat): (usize, u32, u32)) -> u32 {
        let matrix = &self.subject.matrix;
        matrix.lanes()[lane].first + question * matrix.repeat() + repeat
    }

    pub(super) fn record(&mut self, row: &RecordSeen<'_>) {
        let RecordSeen { key, token, .. } = row;
        self.token(*token, || format!("the record of {key}"));
        if !self.record_tokens.insert(token.cast_unsigned()) {
            self.violated("promise 3", || format!("fencing token {token} recorded more than once, again for {key}"));
        }
        if row.judged {
            self.judged_tokens.insert(token.cast_unsigned());
        }
        let Some(place) = self.place(key) else { return self.extra(key) };
        let (lane, question, _) = place;
        let cell = self.cell(place);
        if i64::from(cell) != row.cell {
            self.violated("promise 4", || format!("the record of {key} has cell {}, its key is cell {cell}", row.cell));
        }
        if self.recorded.insert(cell) {
            self.counts[lane].recorded += 1;
            self.counts[lane].failed += u64::from(row.failed);
        } else {
            self.counts[lane].duplicate += 1;
            self.violated("promise 1", || format!("{key} has more than one record"));
        }
        self.input(row, lane, question, cell);
        if let Some(served) = row.served_elsewhere {
            self.violated("promise 8", || format!("{key} was served by region {served:?}"));
        }
    }

    fn extra(&mut self, key: &KeySeen<'_>) {
        self.violated("promise 4", || format!("the specification has no {key}, and there is a record of it"));
        if let Some(lane) = self.lane(key) {
            self.counts[lane].extra += 1;
            return;
        }
        let full = self.foreign.len() >= MAX_FOREIGN_AXES;
        let axis = (key.model.to_owned(), key.region.to_owned());
        if full && !self.foreign.contains_key(&axis) {
            self.beyond += 1;
        } else {
            self.foreign.entry(axis).or_default().extra += 1;
        }
    }

    /// Promise 8: what ran is the frozen input. A cell that failed without having run has a digest of
    /// zeros; one that failed because another input ran says so.
    fn input(&mut self, row: &RecordSeen<'_>, lane: usize, question: u32, cell: u32) {
        let nothing_ran = row.input_digest.iter().all(|b| *b == 0);
        if row.wrong_input || row.failed && nothing_ran {
            return;
        }
        let digest = match self.last_input {
            Some((l, q, digest)) if (l, q) == (lane, question) => digest,
            _ => {
                let Subject { spec, matrix, .. } = self.subject;
                let input = jobspec::input(spec, matrix, Cell(cell)).unwrap_or_default();
                let digest = Sha256::digest(&input).into();
                self.last_input = Some((lane, question, digest));
                digest
            }
        };
        if row.input_digest != digest {
            self.violated("promise 8", || format!("{} ran an input other than its frozen one", row.key));
        }
    }

    /// Promise 7: no token is of an epoch that has not led.
    fn token(&mut self, token: i64, of: impl FnOnce() -> String) {
        let epoch = self.subject.epoch;
        if token_of(token).is_none_or(|t| epoch.is_none_or(|led| t.epoch() > led)) {
            self.violated("promise 7", || format!("{} has fencing token {token}, of an epoch that never led", of()));
        }
    }

    pub(super) fn attempt(&mut self, row: &AttemptSeen<'_>) {
        let AttemptSeen { key, token, kind, .. } = row;
        self.token(*token, || format!("the {kind} attempt of {key}"));
        match self.place(key).map(|place| self.cell(place)) {
            Some(cell) if i64::from(cell) == row.cell => {}
            Some(cell) => {
                let said = row.cell;
                self.violated("promise 4", || {
                    format!("the {kind} attempt of {key} has cell {said}, its key is cell {cell}")
                });
            }
            None => {
                self.violated("promise 4", || format!("the specification has no {key}, and there is an attempt at it"))
            }
        }
        // Beside its lease's record there may stand a refused report, another answer under the same token, and
        // the answer for which the record is a failure.
        let beside = *kind == "fenced" || (*kind == "failed" && self.judged_tokens.contains(token.cast_unsigned()));
        if !beside && self.record_tokens.contains(token.cast_unsigned()) {
            self.violated("promise 3", || format!("the lease {token} of {key} ended as {kind}, and it has a record"));
        }
    }

    pub(super) fn grant(&mut self, row: &GrantSeen<'_>) {
        let first = row.first;
        let Ok(slots) = serde_json::from_str::<Vec<Option<u32>>>(row.cells) else {
            return self
                .violated("promise 2", || format!("the cells of grant {first} are no list of cells: {}", row.cells));
        };
        let after = first.saturating_add_unsigned(slots.len() as u64);
        self.token(after - 1, || format!("grant {first}"));
        if first < self.granted_up_to {
            self.violated("promise 7", || format!("grant {first} holds tokens of the grant before it"));
        }
        self.granted_up_to = after;
        for (token, cell) in (first..).zip(slots).filter_map(|(token, slot)| Some((token, slot?))) {
            self.lease(token, cell);
        }
    }

    /// A slot that is not blank is a live lease unless its key has a record (rule C9).
    fn lease(&mut self, token: i64, cell: u32) {
        if self.recorded.contains(cell) {
            return;
        }
        let Some(key) = self.subject.matrix.key(Cell(cell)) else {
            return self.violated("promise 4", || {
                format!("lease {token} is of cell {cell}, which the specification doesn't have")
            });
        };
        let state = self.subject.state;
        if !self.leased.insert(cell) {
            self.violated("promise 2", || format!("{key:?} has more than one live lease, {token} among them"));
        }
        if state != JobState::Open {
            self.violated("promise 4 (J1)", || {
                format!("{key:?} has a live lease, {token}, and the job is {}", state.as_str())
            });
        }
    }

    pub(super) fn finish(mut self) -> AuditReport {
        let Subject { matrix, state, completed_at, .. } = self.subject;
        let expected = u64::from(matrix.expected());
        let recorded = self.recorded.len();
        if completed_at.is_some() != (recorded == expected) {
            let said = if completed_at.is_some() { "complete" } else { "not complete" };
            self.violated("promise 4", || {
                format!("the job is stored as {said}, and {recorded} of {expected} cells are recorded")
            });
        }
        let mut by_axis: Vec<_> = matrix
            .lanes()
            .iter()
            .zip(&self.counts)
            .map(|(lane, counts)| AuditAxis {
                model: matrix.models()[lane.model].id.as_str().to_owned(),
                region: lane.region.as_str().to_owned(),
                counts: AuditCounts { missing: counts.expected - counts.recorded, ..*counts },
            })
            .collect();
        by_axis.extend(self.foreign.into_iter().map(|((model, region), counts)| AuditAxis { model, region, counts }));
        let mut total = AuditCounts { extra: self.beyond, ..AuditCounts::default() };
        for AuditAxis { counts, .. } in &by_axis {
            total.expected += counts.expected;
            total.recorded += counts.recorded;
            total.missing += counts.missing;
            total.extra += counts.extra;
            total.duplicate += counts.duplicate;
            total.failed += counts.failed;
        }
        let leased = self.leased.len();
        let rest = expected - recorded - leased;
        let (pending, not_run) = if *state == JobState::Open { (rest, 0) } else { (0, rest) };
        AuditReport {
            total,
            by_axis,
            state: *state,
            leased,
            pending,
            not_run,
            exact: self.violations_found == 0,
            violations: self.violations,
            violations_found: self.violations_found,
        }
    }
}
