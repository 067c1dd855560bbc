//! The schema's versions. Migrations run under the lock file of rule L5, so they need no lock of their own.

use sqlx::{
    Row, SqlSafeStr, SqliteConnection,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

/// Why a database's schema does not fit.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A later version of Semel has been here.
    #[error(
        "the database has schema version {found}, and this version of Semel knows up to {known}: \
         use the version of Semel that last opened it, or a newer one"
    )]
    TooNew {
        /// The database's version.
        found: i64,
        /// The newest known version.
        known: i64,
    },
    /// It has no schema, or an older one, and may not be written here.
    #[error(
        "the database has schema version {found} (0 is none), and this version of Semel reads {known}: \
         open it once with a coordinator of this version"
    )]
    TooOld {
        /// The database's version.
        found: i64,
        /// The newest known version.
        known: i64,
    },
    /// A migration failed.
    #[error("the database's schema can't be brought up to date: {0}")]
    Migrate(#[from] MigrateError),
    /// The database failed.
    #[error("the database's schema can't be read: {0}")]
    Database(#[from] sqlx::Error),
}

fn migrations() -> Vec<Migration> {
    let init = include_str!("../../../../migrations/sqlite/0001_init.sql").into_sql_str();
    vec![Migration::new(1, "init".into(), MigrationType::Simple, init, false)]
}

/// Brings the schema up to date.
///
/// # Errors
/// It is newer than this version knows, or a migration failed.
pub async fn migrate(conn: &mut SqliteConnection) -> Result<(), SchemaError> {
    let migrations = migrations();
    let known = newest(&migrations);
    let found = version(conn).await?;
    if found > known {
        return Err(SchemaError::TooNew { found, known });
    }
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.set_locking(false);
    Ok(migrator.run(conn).await?)
}

/// Checks that the schema is the one that this version reads, and changes nothing.
///
/// # Errors
/// It is another one.
pub async fn check(conn: &mut SqliteConnection) -> Result<(), SchemaError> {
    let known = newest(&migrations());
    match version(conn).await? {
        found if found > known => Err(SchemaError::TooNew { found, known }),
        found if found < known => Err(SchemaError::TooOld { found, known }),
        _ => Ok(()),
    }
}

fn newest(migrations: &[Migration]) -> i64 {
    migrations.iter().map(|m| m.version).max().unwrap_or(0)
}

async fn version(conn: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    let table = sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'")
        .fetch_optional(&mut *conn)
        .await?;
    if table.is_none() {
        return Ok(0);
    }
    let row = sqlx::query("SELECT coalesce(max(version), 0) FROM _sqlx_migrations").fetch_one(conn).await?;
    row.try_get(0)
}
