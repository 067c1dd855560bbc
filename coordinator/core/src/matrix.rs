//! The virtual matrix: cell index ⇄ execution key, without a row or a list of cells anywhere.
//!
//! Enumeration order, version 1: models in the specification's order, within a model its regions,
//! within a region the questions, within a question the repeats. So one model in one region, a
//! **lane**, is a contiguous range of cells; grants and `executions.cell` store indices of this order.

use std::{collections::BTreeMap, sync::Arc};

use crate::id::{Cell, CellKey, ModelId, QuestionId, RegionId};

/// The version of the enumeration order that this module implements; stored with each job.
pub const ENUMERATION_VERSION: u32 = 1;

/// A model axis entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelAxis {
    /// The axis id.
    pub id: ModelId,
    /// The name asked of the provider.
    pub name: Arc<str>,
    /// Other names that may serve it.
    pub accept: Vec<Arc<str>>,
    /// The regions in which it is asked, in order.
    pub regions: Vec<RegionId>,
}

impl ModelAxis {
    /// Whether an answer served by `name` is an answer of this model (promise 8). An endpoint that
    /// does not say is believed to serve what it was asked for.
    pub fn accepts(&self, name: &str) -> bool {
        name.is_empty() || *self.name == *name || self.accept.iter().any(|a| **a == *name)
    }
}

/// One model in one region: cells `first .. first + len`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LaneAxis {
    /// Index into [`Matrix::models`].
    pub model: usize,
    /// The region.
    pub region: RegionId,
    /// Its first cell.
    pub first: u32,
}

/// Why a matrix can't be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MatrixError {
    /// An axis has no entry, or `repeat` is 0.
    Empty,
    /// More than 2³² − 1 cells.
    TooManyCells,
}

/// The matrix of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Matrix {
    models: Vec<ModelAxis>,
    questions: Vec<QuestionId>,
    repeat: u32,
    lanes: Vec<LaneAxis>,
    lane_len: u32,
    by_model: BTreeMap<ModelId, usize>,
    by_question: BTreeMap<QuestionId, u32>,
}

impl Matrix {
    /// The matrix of these axes, whose ids are unique (the edge has checked).
    pub fn new(models: Vec<ModelAxis>, questions: Vec<QuestionId>, repeat: u32) -> Result<Self, MatrixError> {
        let lane_len =
            u32::try_from(questions.len()).ok().and_then(|q| q.checked_mul(repeat)).ok_or(MatrixError::TooManyCells)?;
        let mut lanes = Vec::new();
        let mut first = 0u32;
        for (model, axis) in models.iter().enumerate() {
            for region in &axis.regions {
                lanes.push(LaneAxis { model, region: region.clone(), first });
                first = first.checked_add(lane_len).ok_or(MatrixError::TooManyCells)?;
            }
        }
        if first == 0 || models.iter().any(|m| m.regions.is_empty()) {
            return Err(MatrixError::Empty);
        }
        let by_model = models.iter().enumerate().map(|(i, m)| (m.id.clone(), i)).collect();
        let by_question = (0..).zip(&questions).map(|(i, q)| (q.clone(), i)).collect();
        Ok(Self { models, questions, repeat, lanes, lane_len, by_model, by_question })
    }

    /// How many cells the matrix has.
    pub fn expected(&self) -> u32 {
        // `new` has checked the product.
        self.lanes.len() as u32 * self.lane_len
    }
    /// The models, in order.
    pub fn models(&self) -> &[ModelAxis] {
        &self.models
    }
    /// The questions, in order.
    pub fn questions(&self) -> &[QuestionId] {
        &self.questions
    }
    /// Samples of each question.
    pub fn repeat(&self) -> u32 {
        self.repeat
    }
    /// The lanes, in order.
    pub fn lanes(&self) -> &[LaneAxis] {
        &self.lanes
    }
    /// Cells of each lane.
    pub fn lane_len(&self) -> u32 {
        self.lane_len
    }
    /// The index of the lane of a cell; `None` beyond the matrix.
    pub fn lane_of(&self, cell: Cell) -> Option<usize> {
        let lane = (cell.0 / self.lane_len) as usize;
        (lane < self.lanes.len()).then_some(lane)
    }
    /// The indices of a cell: lane, question, repeat; `None` beyond the matrix.
    pub fn split(&self, cell: Cell) -> Option<(usize, usize, u32)> {
        let lane = self.lane_of(cell)?;
        let within = cell.0 % self.lane_len;
        Some((lane, (within / self.repeat) as usize, within % self.repeat))
    }
    /// The key of a cell; `None` beyond the matrix.
    pub fn key(&self, cell: Cell) -> Option<CellKey> {
        let (lane, question, repeat) = self.split(cell)?;
        let lane = &self.lanes[lane];
        Some(CellKey {
            region: lane.region.clone(),
            model: self.models[lane.model].id.clone(),
            question: self.questions[question].clone(),
            repeat,
        })
    }
    /// The cell of a key; `None` if the matrix has no such key.
    pub fn cell(&self, key: &CellKey) -> Option<Cell> {
        let model = *self.by_model.get(&key.model)?;
        let lane = self.lanes.iter().find(|l| l.model == model && l.region == key.region)?;
        let question = *self.by_question.get(&key.question)?;
        (key.repeat < self.repeat).then(|| Cell(lane.first + question * self.repeat + key.repeat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn axis(id: usize, regions: usize) -> ModelAxis {
        ModelAxis {
            id: ModelId::new(format!("m{id}")),
            name: "n".into(),
            accept: vec![],
            regions: (0..regions).map(|r| RegionId::new(format!("r{r}"))).collect(),
        }
    }

    fn questions(n: u32) -> Vec<QuestionId> {
        (0..n).map(|q| QuestionId::new(format!("q{q}"))).collect()
    }

    proptest! {
        #[test]
        fn every_cell_has_one_key_and_every_key_one_cell(
            ragged in prop::collection::vec(1usize..5, 1..5), q in 1u32..9, repeat in 1u32..4,
        ) {
            let models = ragged.iter().enumerate().map(|(i, &r)| axis(i, r)).collect();
            let matrix = Matrix::new(models, questions(q), repeat).unwrap();
            prop_assert_eq!(matrix.expected() as usize, ragged.iter().sum::<usize>() * (q * repeat) as usize);
            let mut seen = std::collections::BTreeSet::new();
            for cell in (0..matrix.expected()).map(Cell) {
                let key = matrix.key(cell).unwrap();
                prop_assert_eq!(matrix.cell(&key), Some(cell));
                prop_assert!(seen.insert(key));
            }
            prop_assert_eq!(matrix.key(Cell(matrix.expected())), None);
        }
    }

    #[test]
    fn a_matrix_holds_2_to_the_32_minus_1_cells_and_not_one_more() {
        let edge = Matrix::new(vec![axis(0, 3)], questions(5), 286_331_153).unwrap();
        assert_eq!(edge.expected(), u32::MAX);
        assert_eq!(edge.key(Cell(u32::MAX)), None);
        assert!(edge.key(Cell(u32::MAX - 1)).is_some());
        let over = Matrix::new(vec![axis(0, 2)], questions(1), 1 << 31);
        assert_eq!(over, Err(MatrixError::TooManyCells));
        assert_eq!(Matrix::new(vec![axis(0, 0)], questions(1), 1), Err(MatrixError::Empty));
        assert_eq!(Matrix::new(vec![axis(0, 1)], questions(1), 0), Err(MatrixError::Empty));
    }

    #[test]
    fn promise_8_only_the_model_asked_for_or_an_accepted_one_serves() {
        let axis = ModelAxis { accept: vec!["n-2026-01".into()], ..axis(0, 1) };
        assert!(axis.accepts("n") && axis.accepts("n-2026-01") && axis.accepts(""));
        assert!(!axis.accepts("N") && !axis.accepts("n-2026"));
    }
}
