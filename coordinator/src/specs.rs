//! The frozen specifications of the jobs that are being handed out or asked about.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use semel_core::{
    id::{Cell, Digest, JobId},
    matrix::Matrix,
};
use semel_spec::Resolved;
use sha2::{Digest as _, Sha256};

use crate::{
    jobspec::{self, JobSpecError},
    store::{ReadError, Store},
};

/// Specifications kept in memory at most; one more drops the rest, which are then read again.
const MAX_CACHED: usize = 1_024;

/// A job's specification, as its cells run.
#[derive(Debug)]
pub struct JobInput {
    /// With the defaults written out.
    pub resolved: Resolved,
    /// Its matrix.
    pub matrix: Arc<Matrix>,
}

impl JobInput {
    /// From a resolved specification.
    ///
    /// # Errors
    /// Its axes make no matrix.
    pub fn new(resolved: Resolved) -> Result<Self, JobSpecError> {
        let matrix = Arc::new(jobspec::matrix(&resolved)?);
        Ok(Self { resolved, matrix })
    }
    /// The frozen input of a cell: canonical JSON (promise 8). `None` beyond the matrix.
    pub fn input(&self, cell: Cell) -> Option<Bytes> {
        jobspec::input(&self.resolved, &self.matrix, cell)
    }
    /// SHA-256 of the frozen input, as an agent is to report it.
    pub fn input_digest(&self, cell: Cell) -> Option<Digest> {
        self.input(cell).map(|input| Digest(Sha256::digest(&input).into()))
    }
}

/// Why a specification can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The tables can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What is stored is not a specification that this version runs.
    #[error("job {job:?}: {source}")]
    Stored {
        /// The job.
        job: JobId,
        /// What is wrong.
        source: JobSpecError,
    },
}

impl SpecError {
    /// Whether it may be had in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Read(error) if error.is_transient())
    }
}

/// A cache over the store.
pub struct Specs {
    store: Arc<dyn Store>,
    cached: RwLock<BTreeMap<JobId, Arc<JobInput>>>,
}

impl Specs {
    /// An empty cache.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, cached: RwLock::default() }
    }
    /// What is cached.
    pub fn cached(&self, job: &JobId) -> Option<Arc<JobInput>> {
        self.cached.read().unwrap_or_else(PoisonError::into_inner).get(job).cloned()
    }
    /// The specification of a stored job; `None` if there is no such job.
    ///
    /// # Errors
    /// The tables can't be read, or hold what this version does not run.
    pub async fn get(&self, job: &JobId) -> Result<Option<Arc<JobInput>>, SpecError> {
        if let Some(cached) = self.cached(job) {
            return Ok(Some(cached));
        }
        let Some(specs) = self.store.job_specs(job).await? else { return Ok(None) };
        let stored = |source| SpecError::Stored { job: job.clone(), source };
        let input = jobspec::read(&specs.resolved).and_then(JobInput::new).map_err(stored)?;
        let input = Arc::new(input);
        let mut cached = self.cached.write().unwrap_or_else(PoisonError::into_inner);
        if cached.len() >= MAX_CACHED {
            cached.clear();
        }
        cached.insert(job.clone(), input.clone());
        Ok(Some(input))
    }
}
