//! The cells that a filter takes, in their order, without a list of them.

use semel_core::{
    id::Cell,
    matrix::{LaneAxis, Matrix},
};

use crate::store::Filter;

/// Cells of a matrix, one after the other. Holds the chosen entries of each axis and never a cell.
pub struct Cells {
    /// First cells of the lanes.
    lanes: Vec<u32>,
    questions: Vec<u32>,
    repeats: Repeats,
    /// Samples of a question in the matrix.
    repeat: u32,
    at: (usize, usize, usize),
}

enum Repeats {
    All,
    Chosen(Vec<u32>),
}

impl Cells {
    /// The cells that a filter takes.
    pub fn of(matrix: &Matrix, filter: &Filter) -> Self {
        let takes = |lane: &&LaneAxis| {
            let model = matrix.models().get(lane.model).is_some_and(|model| chosen(&filter.models, &model.id));
            model && chosen(&filter.regions, &lane.region)
        };
        let asked: std::collections::BTreeSet<_> = filter.questions.iter().collect();
        let questions = (0..).zip(matrix.questions()).filter(|(_, q)| asked.is_empty() || asked.contains(q));
        let repeats = if filter.repeats.is_empty() {
            Repeats::All
        } else {
            let mut repeats = filter.repeats.clone();
            repeats.retain(|r| *r < matrix.repeat());
            repeats.sort_unstable();
            repeats.dedup();
            Repeats::Chosen(repeats)
        };
        Self {
            lanes: matrix.lanes().iter().filter(takes).map(|lane| lane.first).collect(),
            questions: questions.map(|(i, _)| i).collect(),
            repeats,
            repeat: matrix.repeat(),
            at: (0, 0, 0),
        }
    }

    /// The cell that comes next.
    pub fn peek(&mut self) -> Option<Cell> {
        loop {
            let (lane, question, repeat) = self.at;
            let lane = *self.lanes.get(lane)?;
            let Some(question) = self.questions.get(question) else {
                self.at = (self.at.0 + 1, 0, 0);
                continue;
            };
            let Some(repeat) = self.repeat_at(repeat) else {
                self.at = (self.at.0, self.at.1 + 1, 0);
                continue;
            };
            return Some(Cell(lane + question * self.repeat + repeat));
        }
    }

    /// Goes on to the cell after.
    pub fn advance(&mut self) {
        self.at.2 += 1;
    }

    fn repeat_at(&self, index: usize) -> Option<u32> {
        match &self.repeats {
            Repeats::All => u32::try_from(index).ok().filter(|r| *r < self.repeat),
            Repeats::Chosen(repeats) => repeats.get(index).copied(),
        }
    }
}

fn chosen<I: PartialEq>(list: &[I], id: &I) -> bool {
    list.is_empty() || list.contains(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use semel_core::{
        id::{ModelId, QuestionId, RegionId},
        matrix::ModelAxis,
    };

    fn matrix() -> Matrix {
        let model = |id: &str, regions: &[&str]| ModelAxis {
            id: ModelId::new(id),
            name: id.into(),
            accept: vec![],
            regions: regions.iter().map(|r| RegionId::new(*r)).collect(),
        };
        let models = vec![model("a", &["eu", "us"]), model("b", &["us"])];
        Matrix::new(models, vec![QuestionId::new("p"), QuestionId::new("q")], 3).unwrap()
    }

    fn all(filter: &Filter) -> Vec<Cell> {
        let mut cells = Cells::of(&matrix(), filter);
        std::iter::from_fn(|| cells.peek().inspect(|_| cells.advance())).collect()
    }

    #[test]
    fn a_filter_takes_exactly_the_cells_whose_keys_it_names_in_their_order() {
        let matrix = matrix();
        let regions = [vec![], vec![RegionId::new("us")], vec![RegionId::new("eu"), RegionId::new("us")]];
        let models = [vec![], vec![ModelId::new("b")]];
        let questions = [vec![], vec![QuestionId::new("q")], vec![QuestionId::new("q"), QuestionId::new("p")]];
        let repeats = [vec![], vec![2, 0, 2], vec![7]];
        for (((regions, models), questions), repeats) in regions
            .iter()
            .flat_map(|r| models.iter().map(move |m| (r, m)))
            .flat_map(|rm| questions.iter().map(move |q| (rm, q)))
            .flat_map(|rmq| repeats.iter().map(move |n| (rmq, n)))
        {
            let filter = Filter {
                regions: regions.clone(),
                models: models.clone(),
                questions: questions.clone(),
                repeats: repeats.clone(),
                status: None,
            };
            let takes = |cell: &Cell| {
                let key = matrix.key(*cell).unwrap();
                chosen(regions, &key.region)
                    && chosen(models, &key.model)
                    && chosen(questions, &key.question)
                    && chosen(repeats, &key.repeat)
            };
            let expected: Vec<_> = (0..matrix.expected()).map(Cell).filter(takes).collect();
            assert_eq!(all(&filter), expected, "{filter:?}");
        }
    }
}
