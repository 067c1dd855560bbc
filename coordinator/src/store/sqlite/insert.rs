//! Inserts of many rows in few statements.
//!
//! Each statement costs a hop to the connection's thread and back, so rows go in chunks. The chunks
//! come in a few fixed sizes, so that their statements are prepared once and cached.

use std::fmt::Write;

use sqlx::{Arguments, Encode, Sqlite, SqliteConnection, Type, error::BoxDynError, sqlite::SqliteArguments};

/// Rows of a chunk; each size is one cached statement. Chosen by measuring (`examples/bench_store.rs`).
pub const CHUNKS: [usize; 4] = [64, 16, 4, 1];

/// The texts of one kind of insert, by the size of its chunk.
pub struct Insert {
    width: usize,
    texts: [String; CHUNKS.len()],
}

impl Insert {
    /// Rows of these columns (separated by commas) behind `head` and before `tail`. Every column is bound.
    pub fn new(head: &str, columns: &str, tail: &str) -> Self {
        let width = columns.split(',').count();
        let marks = vec!["?"; width].join(", ");
        let text = |rows: usize| {
            let mut text = format!("{head} VALUES ({marks})");
            (1..rows).for_each(|_| write!(text, ", ({marks})").unwrap_or_default());
            text.push_str(tail);
            text
        };
        Self { width, texts: CHUNKS.map(text) }
    }

    /// Inserts the rows; `bind` binds one row's columns, `end` what the tail needs. Returns how many were inserted.
    pub async fn run<T: Sync>(
        &'static self,
        conn: &mut SqliteConnection,
        mut rows: &[T],
        bind: impl Fn(&mut Binds, &T) + Send,
        end: impl Fn(&mut Binds) + Send,
    ) -> Result<u64, sqlx::Error> {
        let mut inserted = 0;
        for (size, text) in CHUNKS.iter().zip(&self.texts) {
            while let Some((chunk, rest)) = rows.split_at_checked(*size) {
                let mut binds = Binds::with_capacity(self.width * size + 1);
                for row in chunk {
                    bind(&mut binds, row);
                }
                end(&mut binds);
                inserted += sqlx::query_with(text.as_str(), binds.finish()?).execute(&mut *conn).await?.rows_affected();
                rows = rest;
            }
        }
        Ok(inserted)
    }
}

/// The values of a statement's parameters, in order.
#[derive(Default)]
pub struct Binds {
    arguments: SqliteArguments,
    error: Option<BoxDynError>,
}

impl Binds {
    fn with_capacity(values: usize) -> Self {
        let mut binds = Self::default();
        binds.arguments.reserve(values, 0);
        binds
    }

    /// Binds the next parameter.
    pub fn push<'v>(&mut self, value: impl Encode<'v, Sqlite> + Type<Sqlite>) {
        if let Err(error) = self.arguments.add(value) {
            self.error.get_or_insert(error);
        }
    }

    /// Binds an unsigned number; one beyond SQLite's integers becomes the largest of them.
    pub fn number(&mut self, value: impl Into<u64>) {
        self.push(i64::try_from(value.into()).unwrap_or(i64::MAX));
    }

    /// Binds an unsigned number or NULL, as [`Binds::number`].
    pub fn optional(&mut self, value: Option<u64>) {
        self.push(value.map(|v| i64::try_from(v).unwrap_or(i64::MAX)));
    }

    /// All of them; an error if one could not be encoded.
    pub fn finish(self) -> Result<SqliteArguments, sqlx::Error> {
        self.error.map_or(Ok(self.arguments), |e| Err(sqlx::Error::Encode(e)))
    }
}
