//! The file beside an embedded store that says where its running coordinator listens, so that every
//! verb of the command line takes the same road: the contract.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::store::sqlite::real_path;

/// Where a coordinator listens, and what it wants to be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port.
    pub address: String,
    /// The bearer token.
    pub token: String,
    /// The coordinator's process.
    pub pid: u32,
}

/// The file of a store: beside the database itself, by whatever link it is named.
pub fn path(store: &Path) -> PathBuf {
    let real = real_path(store).unwrap_or_else(|_| store.to_owned());
    let mut name = real.into_os_string();
    name.push(".endpoint");
    name.into()
}

/// Writes the file, readable by its owner alone, whole or not at all.
///
/// # Errors
/// The file system's.
pub fn write(store: &Path, endpoint: &Endpoint) -> io::Result<()> {
    let target = path(store);
    let mut scratch = target.as_os_str().to_owned();
    scratch.push(format!(".{}", endpoint.pid));
    let scratch = PathBuf::from(scratch);
    // A left-over of a dead process under this pid must not lend its mode to the secret.
    if let Err(error) = fs::remove_file(&scratch)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&scratch)?;
    let Endpoint { address, token, pid } = endpoint;
    writeln!(file, "{}", json!({ "address": address, "token": token, "pid": pid }))?;
    fs::rename(scratch, target)
}

/// Reads the file; `None` if there is none.
///
/// # Errors
/// The file system's, or the file is not what [`write`] writes.
pub fn read(store: &Path) -> io::Result<Option<Endpoint>> {
    let text = match fs::read_to_string(path(store)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let value: Value = serde_json::from_str(&text)?;
    let field = |name| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let pid = value.get("pid").and_then(Value::as_u64).and_then(|p| u32::try_from(p).ok());
    match (field("address"), field("token"), pid) {
        (Some(address), Some(token), Some(pid)) => Ok(Some(Endpoint { address, token, pid })),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} lacks a field", path(store).display()))),
    }
}

/// Removes the file of a coordinator that stops.
///
/// # Errors
/// The file system's.
pub fn remove(store: &Path) -> io::Result<()> {
    match fs::remove_file(path(store)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_token_is_readable_by_its_owner_alone_and_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("s.db");
        assert!(read(&store).unwrap().is_none());
        let written = Endpoint { address: "127.0.0.1:7".into(), token: "t".into(), pid: 7 };
        write(&store, &written).unwrap();
        write(&store, &written).unwrap();
        assert_eq!(fs::metadata(path(&store)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(read(&store).unwrap() == Some(written));
        remove(&store).unwrap();
        remove(&store).unwrap();
        assert!(read(&store).unwrap().is_none());
        fs::write(path(&store), "{}").unwrap();
        assert!(read(&store).is_err());
    }
}
