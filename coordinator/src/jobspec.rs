//! A stored specification as the core sees it: its matrix, its policy, the input of a cell.

use bytes::Bytes;
use semel_core::{
    id::{Cell, ModelId, QuestionId, RegionId},
    job::Policy,
    matrix::{Matrix, MatrixError, ModelAxis},
    words::OnLeaseLost,
};
use semel_spec::Resolved;

/// Why a specification has no matrix.
#[derive(Debug, thiserror::Error)]
pub enum JobSpecError {
    /// It can't be read, or other versions wrote it.
    #[error(transparent)]
    Stored(#[from] semel_spec::StoredSpecError),
    /// Its axes make no matrix.
    #[error("{}", match .0 {
        MatrixError::Empty => "the matrix has no cell: an axis is empty, or repeat is 0",
        MatrixError::TooManyCells => "the matrix has more than 4,294,967,295 cells",
    })]
    Matrix(MatrixError),
}

/// Reads a resolved specification as it is stored.
///
/// # Errors
/// It is unreadable, or of a version whose cells or inputs this one does not run.
pub fn read(resolved: &[u8]) -> Result<Resolved, JobSpecError> {
    Ok(Resolved::from_json(resolved)?)
}

/// The matrix of a specification.
///
/// # Errors
/// An axis is empty, or there are too many cells.
pub fn matrix(spec: &Resolved) -> Result<Matrix, JobSpecError> {
    let model = |model: &semel_spec::ResolvedModel| ModelAxis {
        id: ModelId::new(&*model.id),
        name: (&*model.model).into(),
        accept: model.accept_models.iter().map(|name| (&**name).into()).collect(),
        regions: model.regions.iter().map(|region| RegionId::new(&**region)).collect(),
    };
    let questions = spec.questions.iter().map(|question| QuestionId::new(&*question.id)).collect();
    Matrix::new(spec.models.iter().map(model).collect(), questions, spec.repeat).map_err(JobSpecError::Matrix)
}

/// The policy of a specification.
pub fn policy(spec: &Resolved) -> Policy {
    let policy = &spec.policy;
    Policy {
        attempts: policy.attempts,
        backoff_ms: policy.backoff_ms,
        max_backoff_ms: policy.max_backoff_ms,
        run_timeout_ms: policy.run_timeout_ms,
        cold_timeout_ms: policy.cold_timeout_ms,
        deadline_ms: policy.deadline_ms,
        on_lease_lost: match policy.on_lease_lost {
            semel_spec::OnLeaseLost::Retry => OnLeaseLost::Retry,
            semel_spec::OnLeaseLost::Fail => OnLeaseLost::Fail,
        },
        max_leased: policy.max_leased,
        max_leased_per_model: policy.max_leased_per_model,
        max_leased_per_region: policy.max_leased_per_region,
        require_reported_region: policy.require_reported_region,
        weight: policy.weight,
        priority: policy.priority,
    }
}

/// The frozen input of a cell (promise 8): canonical JSON. `None` beyond the matrix.
pub fn input(spec: &Resolved, matrix: &Matrix, cell: Cell) -> Option<Bytes> {
    let (lane, question, _) = matrix.split(cell)?;
    let lane = matrix.lanes().get(lane)?;
    spec.input(lane.model, lane.region.as_str(), question).map(Bytes::from)
}
