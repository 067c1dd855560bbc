//! The embedded store: one SQLite file, one process that writes it (rule L5).
//!
//! Commits and takeovers go over one connection that nothing else uses, each in a task of its own: a
//! caller that goes away does not cut one off, nor leave a transaction open behind it. Reads go over a
//! small pool and never wait for a write.

mod binds;
mod commit;
mod insert;
mod load;
pub mod lock;
mod read;
pub(crate) mod rows;
mod schema;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use semel_core::{
    Committed,
    batch::Batch,
    event::Past,
    id::{Cell, Epoch, FencingToken, JobId, Seq},
    tables::Loaded,
};
use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    error::DatabaseError,
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteError, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{sync::Mutex, task::JoinError};

use self::{lock::StoreLock, read::Page};
pub use self::{
    lock::{LockError, lock_path, real_path},
    schema::SchemaError,
};
use crate::audit::{AuditError, AuditReport, audit_file};

use super::{Attempt, AuditEntry, CommitError, DEFAULT_NAMESPACE, Execution, Filter, JobSpecs, ReadError, Store};

/// Connections that read at the same time; a further reader waits its turn.
const MAX_READERS: u32 = 4;
/// Rows that a reading connection is ahead of its reader: few, as a row holds up to 32 MiB twice.
const READ_AHEAD_ROWS: usize = 2;
/// Rows that an audit's connection is ahead: its rows are narrow, and a million of them pass.
const AUDIT_AHEAD_ROWS: usize = 1 << 10;
/// How long a statement waits for a lock. Only a tool that writes beside the coordinator could hold one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader waits for a connection of the pool.
const READER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pages of 4 KiB in the log at which it is copied into the database: some tens of full batches.
const CHECKPOINT_PAGES: u32 = 16_384;
/// Bytes to which the log is cut back after a burst.
const MAX_IDLE_LOG_BYTES: u32 = 128 << 20;
/// The page cache of the writer, in KiB (SQLite takes it as a negative number).
const WRITER_CACHE_KIB: i32 = 64 << 10;
/// Bytes of the database that readers map instead of copying.
const MAPPED_BYTES: u32 = 1 << 30;

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is another process's, or in a place where it can't be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its tables are not this version's.
    #[error("{}: {source}", .path.display())]
    Schema {
        /// The database.
        path: PathBuf,
        /// Why.
        source: SchemaError,
    },
    /// SQLite can't open it.
    #[error("{} can't be opened as a SQLite database: {source}", .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// There is nothing to read.
    #[error("there is no store at {}: name the file that the coordinator was started with", .0.display())]
    NotThere(PathBuf),
}

/// A SQLite database under this process's lock. Cheap to clone; the lock goes with the last clone.
#[derive(Clone)]
pub struct SqliteStore {
    writer: Arc<Mutex<Writer>>,
    /// For listings and exports, as many as callers ask for.
    readers: SqlitePool,
    /// For the short reads that the coordinator's own progress waits for: no listing can hold them up.
    progress: SqlitePool,
    namespace: &'static str,
    path: Arc<Path>,
}

impl SqliteStore {
    /// Opens a database, makes it if it isn't there, and brings its tables up to date. Takes its lock first.
    ///
    /// # Errors
    /// Another process has the lock, the file system is a network's, a newer version of Semel was
    /// here, or SQLite fails.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let path = lock::real_path(path)?;
        let lock = StoreLock::take(&path)?;
        let database = |source| OpenError::Database { path: path.clone(), source };
        let options = writing(&path);
        let mut conn = options.connect().await.map_err(database)?;
        schema::migrate(&mut conn).await.map_err(|source| OpenError::Schema { path: path.clone(), source })?;
        let pool = |connections| {
            let options = SqlitePoolOptions::new().max_connections(connections).acquire_timeout(READER_TIMEOUT);
            options.connect_lazy_with(reading(&path, READ_AHEAD_ROWS))
        };
        let (readers, progress) = (pool(MAX_READERS), pool(1));
        let writer = Writer { options, conn: Some(conn), _lock: lock };
        let (writer, path) = (Arc::new(Mutex::new(writer)), path.into());
        Ok(Self { writer, readers, progress, namespace: DEFAULT_NAMESPACE, path })
    }

    /// The database's path, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes every connection, which folds the log into the database. A commit under way is waited for.
    /// The lock goes when the last clone is dropped.
    pub async fn close(&self) {
        self.readers.close().await;
        self.progress.close().await;
        if let Some(conn) = self.writer.lock().await.conn.take() {
            // What is durable stays durable; the next opening folds the log.
            conn.close().await.ok();
        }
    }

    async fn reader(&self) -> Result<PoolConnection<sqlx::Sqlite>, ReadError> {
        Ok(self.readers.acquire().await?)
    }
}

/// Opens a database for reading alone: without its lock, changing nothing, whether a coordinator runs or not.
///
/// # Errors
/// There is none, its tables are not this version's, or SQLite fails.
pub async fn open_read_only(path: &Path) -> Result<SqliteConnection, OpenError> {
    if !path.is_file() {
        return Err(OpenError::NotThere(path.into()));
    }
    let path = lock::real_path(path)?;
    let options = reading(&path, AUDIT_AHEAD_ROWS);
    let mut result = connect_and_check(&options).await;
    if let Err(SchemaError::Database(_)) = result
        && !is_written(&path)
    {
        // In a folder that this process may not write, SQLite can't make the files of its log. Nobody
        // has them open either, so the database alone is everything.
        result = connect_and_check(&options.immutable(true)).await;
    }
    result.map_err(|source| match source {
        SchemaError::Database(source) => OpenError::Database { path, source },
        source => OpenError::Schema { path, source },
    })
}

async fn connect_and_check(options: &SqliteConnectOptions) -> Result<SqliteConnection, SchemaError> {
    let mut conn = options.connect().await?;
    schema::check(&mut conn).await?;
    Ok(conn)
}

/// Whether there is a log with something in it beside the database.
fn is_written(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

fn writing(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // Promise 5: the log is synced before a commit returns.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(false)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
        .pragma("journal_size_limit", MAX_IDLE_LOG_BYTES.to_string())
        .pragma("cache_size", (-WRITER_CACHE_KIB).to_string())
        .thread_name(|_| "store-writer".into())
        .disable_statement_logging()
}

fn reading(path: &Path, ahead_rows: usize) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .foreign_keys(false)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(ahead_rows)
        .pragma("mmap_size", MAPPED_BYTES.to_string())
        .thread_name(|n| format!("store-reader-{n}"))
        .disable_statement_logging()
}

/// The one connection that writes. `None` after an error that leaves its state unknown: the next
/// write opens a new one, and SQLite rolls back what the old one left.
struct Writer {
    options: SqliteConnectOptions,
    conn: Option<SqliteConnection>,
    _lock: StoreLock,
}

impl Writer {
    async fn take(&mut self) -> Result<SqliteConnection, sqlx::Error> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => self.options.connect().await,
        }
    }

    // The one place in this store where a commit was acknowledged.
    #[allow(clippy::disallowed_methods)]
    async fn commit(
        &mut self,
        namespace: &str,
        epoch: Epoch,
        seq: Seq,
        batch: &Batch,
    ) -> Result<Committed, CommitError> {
        let mut conn = self.take().await?;
        let result = commit::commit(&mut conn, namespace, epoch, seq, batch).await;
        match &result {
            Ok(()) | Err(CommitError::Refused(_)) => self.conn = Some(conn),
            Err(_) => _ = conn.close().await,
        }
        result.map(|()| Committed::by_store(epoch, seq))
    }

    async fn campaign(&mut self, namespace: &str) -> Result<Epoch, ReadError> {
        let mut conn = self.take().await?;
        let holder = format!("process {}", std::process::id());
        let result = load::campaign(&mut conn, namespace, &holder).await;
        match &result {
            Ok(_) => self.conn = Some(conn),
            Err(_) => _ = conn.close().await,
        }
        result
    }
}

/// What an error of SQLite means for the batch that met it (rule C7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// There is no room: the same batch may succeed once there is.
    DiskFull,
    /// This batch will never go in.
    Lasting,
    /// The same batch may succeed later; so may one that met what is not known here.
    Transient,
}

/// SQLITE_FULL.
const FULL: i32 = 13;
/// SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH, SQLITE_RANGE: classes 54, 23, 22 of SQL.
const LASTING: [i32; 4] = [18, 19, 20, 25];

/// Judges an error by its primary result code; `None` if it is not SQLite's.
pub(super) fn fault(error: &dyn DatabaseError) -> Option<Fault> {
    error.try_downcast_ref::<SqliteError>()?;
    let code: i32 = error.code()?.parse().ok()?;
    Some(match code & 0xFF {
        FULL => Fault::DiskFull,
        code if LASTING.contains(&code) => Fault::Lasting,
        _ => Fault::Transient,
    })
}

/// A task of the store ended without an answer: it panicked, or the runtime stops.
fn ended(error: JoinError) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(error))
}

#[async_trait]
impl Store for SqliteStore {
    async fn campaign(&self) -> Result<Epoch, ReadError> {
        let (writer, namespace) = (self.writer.clone(), self.namespace);
        tokio::spawn(async move { writer.lock().await.campaign(namespace).await }).await.map_err(ended)?
    }

    async fn load(&self, epoch: Epoch) -> Result<Loaded, ReadError> {
        load::load(&mut *self.progress.acquire().await?, self.namespace, epoch).await
    }

    async fn commit(&self, epoch: Epoch, seq: Seq, batch: Arc<Batch>) -> Result<Committed, CommitError> {
        let (writer, namespace) = (self.writer.clone(), self.namespace);
        tokio::spawn(async move { writer.lock().await.commit(namespace, epoch, seq, &batch).await })
            .await
            .map_err(ended)?
    }

    async fn past(&self, token: FencingToken) -> Result<Past, ReadError> {
        load::past(&mut *self.progress.acquire().await?, self.namespace, token).await
    }

    async fn job_specs(&self, job: &JobId) -> Result<Option<JobSpecs>, ReadError> {
        read::job_specs(&mut *self.progress.acquire().await?, self.namespace, job).await
    }

    async fn executions(
        &self,
        job: &JobId,
        after: Option<Cell>,
        limit: u32,
        filter: &Filter,
        with_response: bool,
    ) -> Result<Vec<Execution>, ReadError> {
        let mut conn = self.reader().await?;
        read::executions(&mut conn, self.namespace, job, Page { after, limit }, filter, with_response).await
    }

    async fn execution(&self, job: &JobId, cell: Cell) -> Result<Option<Execution>, ReadError> {
        read::execution_of(&mut *self.reader().await?, self.namespace, job, cell).await
    }

    async fn attempts(
        &self,
        job: &JobId,
        after: Option<u64>,
        limit: u32,
        filter: &Filter,
    ) -> Result<Vec<Attempt>, ReadError> {
        let mut conn = self.reader().await?;
        read::attempts(&mut conn, self.namespace, job, Page { after, limit }, filter).await
    }

    async fn records_for_retry(
        &self,
        job: &JobId,
        after: Option<Cell>,
        limit: u32,
        filter: &Filter,
    ) -> Result<Vec<(Cell, FencingToken, u32)>, ReadError> {
        let mut conn = self.progress.acquire().await?;
        read::records_for_retry(&mut conn, self.namespace, job, Page { after, limit }, filter).await
    }

    async fn audit(&self, job: &JobId) -> Result<Option<AuditReport>, AuditError> {
        // On a connection of its own: it reads for long, and its rows are narrow and many.
        audit_file(&self.path, self.namespace, job).await
    }

    async fn audit_log(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditEntry>, ReadError> {
        let page = Page { after: before, limit };
        read::audit_log(&mut *self.reader().await?, self.namespace, page).await
    }
}
