//! Rows read back: each value is checked, as a row outlives the version that wrote it.

use std::{fmt::Display, sync::Arc};

use bytes::Bytes;
use semel_core::{
    batch::{AttemptRow, Failure, Outcome, ReportBody, Served, Success, Timings},
    id::{AgentId, Cell, CellKey, Digest, Epoch, FencingToken, JobId, ModelId, QuestionId, RegionId, UnixMs},
    words::{AttemptKind, FailureReason, ReceiptReason, RegionBasis, Stage, Status},
};
use sqlx::{Decode, Row, Sqlite, Type, sqlite::SqliteRow};

use crate::store::{Attempt, Execution, ReadError};

/// A row of a table, of which an error says which one it is by one of its columns.
pub struct Columns<'r> {
    row: &'r SqliteRow,
    table: &'static str,
    named_by: &'static str,
}

impl<'r> Columns<'r> {
    /// The row of `table` that the column `named_by` names.
    pub fn new(row: &'r SqliteRow, table: &'static str, named_by: &'static str) -> Self {
        Self { row, table, named_by }
    }

    /// A value as the driver decodes it.
    pub fn get<T: Decode<'r, Sqlite> + Type<Sqlite>>(&self, column: &str) -> Result<T, ReadError> {
        Ok(self.row.try_get(column)?)
    }

    /// That a column holds what it can't.
    pub fn bad(&self, column: &str, what: impl Display) -> ReadError {
        let name = |n: i64| n.to_string();
        let row = self.row.try_get::<i64, _>(self.named_by).map(name).or_else(|_| self.row.try_get(self.named_by));
        let row = row.unwrap_or_else(|_| "?".into());
        ReadError::Row {
            table: self.table,
            row: format!("{} {row}", self.named_by),
            what: format!("column {column}: {what}"),
        }
    }

    /// A number that was unsigned when it was stored.
    pub fn number<N: TryFrom<i64>>(&self, column: &str) -> Result<N, ReadError> {
        let number: i64 = self.get(column)?;
        N::try_from(number).map_err(|_| self.bad(column, format_args!("{number} is out of its bounds")))
    }

    /// A number or NULL.
    pub fn optional(&self, column: &str) -> Result<Option<u64>, ReadError> {
        let number: Option<i64> = self.get(column)?;
        Ok(number.and_then(|n| u64::try_from(n).ok()))
    }

    /// A text.
    pub fn text(&self, column: &str) -> Result<Arc<str>, ReadError> {
        Ok(self.get::<&str>(column)?.into())
    }

    /// A word of a closed enum, or NULL.
    pub fn word<W>(&self, column: &str, parse: fn(&str) -> Option<W>) -> Result<Option<W>, ReadError> {
        let word: Option<&str> = self.get(column)?;
        word.map(|w| parse(w).ok_or_else(|| self.bad(column, format_args!("{w:?} is no word of this version"))))
            .transpose()
    }

    /// What must not be NULL.
    pub fn some<T>(&self, column: &str, value: Option<T>) -> Result<T, ReadError> {
        value.ok_or_else(|| self.bad(column, "is NULL"))
    }

    /// Bytes of a fixed length.
    pub fn array<const N: usize>(&self, column: &str) -> Result<[u8; N], ReadError> {
        let bytes: &[u8] = self.get(column)?;
        bytes.try_into().map_err(|_| self.bad(column, format_args!("has {} bytes, not {N}", bytes.len())))
    }

    /// Bytes.
    pub fn bytes(&self, column: &str) -> Result<Bytes, ReadError> {
        Ok(self.get::<Vec<u8>>(column)?.into())
    }

    /// A fencing token.
    pub fn token(&self, column: &str) -> Result<FencingToken, ReadError> {
        let number: i64 = self.get(column)?;
        token_of(number).ok_or_else(|| self.bad(column, format_args!("{number} is no fencing token")))
    }

    /// A point of time, or NULL.
    pub fn time(&self, column: &str) -> Result<Option<UnixMs>, ReadError> {
        Ok(self.get::<Option<i64>>(column)?.map(UnixMs))
    }

    /// The cell and its key.
    pub fn key(&self) -> Result<(Cell, CellKey), ReadError> {
        let key = CellKey {
            region: RegionId::new(self.text("region")?),
            model: ModelId::new(self.text("model")?),
            question: QuestionId::new(self.text("question")?),
            repeat: self.number("repeat")?,
        };
        Ok((Cell(self.number("cell")?), key))
    }

    /// What was reported; `None` where nothing was.
    pub fn body(&self) -> Result<Option<ReportBody>, ReadError> {
        let Some(status) = self.word("status", Status::parse)? else { return Ok(None) };
        Ok(Some(ReportBody {
            digest: Digest(self.array("digest")?),
            input_digest: Digest(self.array("input_digest")?),
            served: self.served()?,
            timings: Timings {
                waited_ms: self.number("waited_ms")?,
                ran_ms: self.number("ran_ms")?,
                first_byte_ms: self.optional("first_byte_ms")?,
            },
            outcome: match status {
                Status::Succeeded => Outcome::Succeeded(self.success()?),
                Status::Failed => Outcome::Failed(self.failure()?),
            },
        }))
    }

    fn served(&self) -> Result<Option<Served>, ReadError> {
        let Some(region) = self.get::<Option<&str>>("served_region")? else { return Ok(None) };
        Ok(Some(Served {
            region: region.into(),
            basis: self.some("region_basis", self.word("region_basis", RegionBasis::parse)?)?,
            model: self.text("served_model")?,
            request_id: self.text("request_id")?,
            endpoint: self.text("endpoint")?,
            executor: self.text("executor")?,
        }))
    }

    fn success(&self) -> Result<Success, ReadError> {
        Ok(Success {
            output: self.bytes("output")?,
            response: self.bytes("response")?,
            finish_reason: self.text("finish_reason")?,
            prompt_tokens: self.optional("prompt_tokens")?,
            completion_tokens: self.optional("completion_tokens")?,
        })
    }

    fn failure(&self) -> Result<Failure, ReadError> {
        Ok(Failure {
            reason: self.some("failure_reason", self.word("failure_reason", FailureReason::parse)?)?,
            stage: self.some("failure_stage", self.word("failure_stage", Stage::parse)?)?,
            code: self.text("failure_code")?,
            message: self.bytes("error_message")?,
            retryable: self.get("failure_retryable")?,
        })
    }
}

/// A row of `executions`.
pub fn execution(row: &SqliteRow) -> Result<Execution, ReadError> {
    let c = Columns::new(row, "executions", "fencing_token");
    let (cell, key) = c.key()?;
    Ok(Execution {
        cell,
        key,
        token: c.token("fencing_token")?,
        attempt: c.number("attempt")?,
        agent: AgentId::new(c.text("agent_id")?),
        body: c.some("status", c.body()?)?,
        recorded_at: UnixMs(c.get("recorded_at")?),
    })
}

/// A row of `attempts`.
pub fn attempt(row: &SqliteRow) -> Result<Attempt, ReadError> {
    let c = Columns::new(row, "attempts", "number");
    let (cell, key) = c.key()?;
    let row = AttemptRow {
        job: JobId::new(c.text("job_id")?),
        cell,
        key,
        token: c.token("fencing_token")?,
        kind: c.some("kind", c.word("kind", AttemptKind::parse)?)?,
        attempt: c.number("attempt")?,
        counted: c.get("counted")?,
        in_company: c.get("in_company")?,
        agent: AgentId::new(c.text("agent_id")?),
        reason: c.word("reason", FailureReason::parse)?,
        fenced: c.word("fenced", ReceiptReason::parse)?,
        body: c.body()?.map(Arc::new),
        retry_at: c.time("retry_at")?,
        ended_at: UnixMs(c.get("ended_at")?),
    };
    Ok(Attempt { number: c.number("number")?, row, output_bytes: c.optional("output_bytes")? })
}

/// A fencing token as it is stored.
pub fn token_of(number: i64) -> Option<FencingToken> {
    FencingToken::from_u64(u64::try_from(number).ok()?)
}

/// An epoch as it is stored.
pub fn epoch_of(number: i64) -> Option<Epoch> {
    Epoch::new(u32::try_from(number).ok()?)
}
