//! A whole job as a stream, in the order of its cells, in the memory of one page.

use std::{collections::VecDeque, sync::Arc};

use semel_core::{
    event::{Answer, Event, Query},
    id::{Cell, JobId},
    words::WaitReason,
};
use semel_proto::v1 as pb;
use tokio::task::JoinSet;
use tonic::Status;

use super::cells::Cells;
use crate::{
    services::{
        convert, errors,
        jobs::pull::{Pull, pull},
    },
    shell::Shell,
    specs::JobInput,
    store::{Execution, Filter, MAX_PAGE_ROWS},
};

/// Cells without a record that are looked at before the tables are read again: so many rows may be
/// as old as the reading before them.
const MAX_MISSING: usize = 1_000;
/// How often a cell is looked at that is recorded and moved away again between two looks.
const LOOKS: usize = 3;

/// What is exported.
pub struct Export {
    /// The shell.
    pub shell: Shell,
    /// The job.
    pub job: JobId,
    /// Its specification.
    pub spec: Arc<JobInput>,
    /// Of which cells.
    pub filter: Filter,
    /// Whether cells without a record come too.
    pub missing: bool,
    /// Whether the provider's bodies are wanted.
    pub with_response: bool,
    /// Whether the inputs are wanted.
    pub with_input: bool,
}

/// A row, before it is written for the wire.
enum Row {
    Record(Box<Execution>),
    Missing(Cell, Option<WaitReason>),
}

struct State {
    export: Export,
    /// The cells still to come, where those without a record are wanted.
    cells: Option<Cells>,
    /// The last cell that was read.
    after: Option<Cell>,
    /// Rows of the last page.
    rows: VecDeque<Row>,
}

impl Export {
    /// The rows.
    pub fn rows(self) -> Pull<pb::ExportJobResponse> {
        let cells = self.missing.then(|| Cells::of(&self.spec.matrix, &self.filter));
        pull(State { export: self, cells, after: None, rows: VecDeque::new() }, State::next)
    }

    fn response(&self, row: Row) -> pb::ExportJobResponse {
        let matrix = &self.spec.matrix;
        let (cell, execution) = match row {
            Row::Record(record) => (record.cell, Some(convert::execution(&self.job, *record))),
            Row::Missing(cell, why) => {
                (cell, matrix.key(cell).map(|key| convert::missing(&self.job, cell.0, &key, why)))
            }
        };
        let question = matrix.split(cell).and_then(|(_, question, _)| self.spec.resolved.questions.get(question));
        let metadata = question.and_then(|question| question.metadata.as_ref());
        pb::ExportJobResponse {
            execution,
            input: self.spec.input(cell).filter(|_| self.with_input).unwrap_or_default(),
            question_metadata_json: metadata.map(super::json_text).unwrap_or_default(),
        }
    }
}

impl State {
    async fn next(mut self) -> Result<Option<(pb::ExportJobResponse, Self)>, Status> {
        if self.rows.is_empty() {
            self.rows = self.read().await?.into();
        }
        let row = self.rows.pop_front();
        Ok(row.map(|row| (self.export.response(row), self)))
    }

    /// The next rows; none at the end.
    async fn read(&mut self) -> Result<Vec<Row>, Status> {
        let Export { shell, job, filter, with_response, .. } = &self.export;
        let page = shell.store().executions(job, self.after, MAX_PAGE_ROWS, filter, *with_response).await?;
        let mut rows = match &mut self.cells {
            None => page.into_iter().map(|record| Row::Record(record.into())).collect(),
            Some(cells) => interleave(page, cells),
        };
        if let Some(last) = rows.last() {
            self.after = Some(last.cell());
        }
        if self.cells.is_some() {
            self.explain(&mut rows).await?;
        }
        Ok(rows)
    }

    /// Says of each cell without a record why it has none.
    async fn explain(&self, rows: &mut [Row]) -> Result<(), Status> {
        if rows.iter().all(|row| matches!(row, Row::Record(_))) {
            return Ok(());
        }
        let lanes = self.lane_reasons().await?;
        let mut asked = JoinSet::new();
        for (index, row) in rows.iter_mut().enumerate() {
            let Row::Missing(cell, why) = row else { continue };
            let lane = self.export.spec.matrix.lane_of(*cell);
            *why = lane.and_then(|lane| lanes.get(lane).copied().flatten());
            if why.is_none() {
                let look = look(self.export.shell.clone(), self.export.job.clone(), *cell);
                asked.spawn(async move { (index, look.await) });
            }
        }
        while let Some(answered) = asked.join_next().await {
            let (index, row) = answered.map_err(|panic| errors::internal("EXPORT", panic.to_string()))?;
            if let Some(place) = rows.get_mut(index) {
                *place = row?;
            }
        }
        Ok(())
    }

    /// For each lane the reason of all its cells, where they have but one.
    async fn lane_reasons(&self) -> Result<Vec<Option<WaitReason>>, Status> {
        let Export { shell, job, spec, .. } = &self.export;
        let groups = match shell.call(|call| Event::Query(call, Query::Explain(job.clone()))).await? {
            Answer::Pending(_, groups) => groups,
            Answer::NoSuchJob => return Err(errors::no_job(job)),
            other => return Err(errors::unexpected(&other)),
        };
        let mut by_lane = std::collections::BTreeMap::new();
        for group in groups {
            let reasons: &mut Vec<WaitReason> = by_lane.entry((group.model, group.region)).or_default();
            reasons.push(group.wait.reason);
        }
        let reason = |lane: &semel_core::matrix::LaneAxis| {
            let model = spec.matrix.models().get(lane.model)?.id.clone();
            match by_lane.get(&(model, lane.region.clone()))?.as_slice() {
                [only] => Some(*only),
                _ => None,
            }
        };
        Ok(spec.matrix.lanes().iter().map(reason).collect())
    }
}

impl Row {
    fn cell(&self) -> Cell {
        match self {
            Self::Record(record) => record.cell,
            Self::Missing(cell, _) => *cell,
        }
    }
}

/// Looks at one cell: why it waits, or the record that it has got since the page was read.
async fn look(shell: Shell, job: JobId, cell: Cell) -> Result<Row, Status> {
    for _ in 0..LOOKS {
        match shell.call(|call| Event::Query(call, Query::Cell(job.clone(), cell))).await? {
            Answer::Cell(Some(wait)) => return Ok(Row::Missing(cell, Some(wait.reason))),
            Answer::Cell(None) => {}
            Answer::NoSuchJob => return Err(errors::no_job(&job)),
            other => return Err(errors::unexpected(&other)),
        }
        if let Some(record) = shell.store().execution(&job, cell).await? {
            return Ok(Row::Record(record.into()));
        }
    }
    Err(errors::unavailable(format!("cell {} of job {:?} is being retried again and again", cell.0, job.as_str())))
}

/// The cells up to the last of a page of records, or up to [`MAX_MISSING`] without one. An empty page
/// has no record of any cell to come.
fn interleave(page: Vec<Execution>, cells: &mut Cells) -> Vec<Row> {
    let is_last = page.is_empty();
    let mut records = VecDeque::from(page);
    let mut rows = Vec::new();
    let mut missing = 0;
    while missing < MAX_MISSING
        && let Some(cell) = cells.peek()
    {
        match records.front().map(|record| record.cell) {
            None if is_last => {}
            None => break,
            Some(recorded) if recorded <= cell => {
                rows.extend(records.pop_front().map(|record| Row::Record(record.into())));
                if recorded == cell {
                    cells.advance();
                }
                continue;
            }
            Some(_) => {}
        }
        rows.push(Row::Missing(cell, None));
        cells.advance();
        missing += 1;
    }
    rows
}
