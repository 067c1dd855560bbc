//! What the spool does to the disk: all that changes a file or a name, a step each. An observer is told of every step
//! once it is done, so that tests can say what a power cut would leave behind at any of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A step that was done. Without the two syncs none of them is sure to outlive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// An empty file was made.
    Created(&'a Path),
    /// Bytes were written at a file's end.
    Appended(&'a Path, &'a [u8]),
    /// A file was cut to so many bytes.
    Cut(&'a Path, u64),
    /// What is in a file is on disk.
    Synced(&'a Path),
    /// A file has another name.
    Renamed(&'a Path, &'a Path),
    /// A file was deleted.
    Removed(&'a Path),
    /// The names in a folder are on disk.
    SyncedFolder(&'a Path),
}

type Observer = Box<dyn Fn(Step<'_>) + Send>;

#[derive(Default)]
pub(super) struct Disk {
    observer: Option<Observer>,
}

/// A file that is open for writing.
pub(super) struct Writer {
    path: PathBuf,
    file: File,
}

impl Disk {
    #[cfg(test)]
    pub fn observed(observer: impl Fn(Step<'_>) + Send + 'static) -> Self {
        Self { observer: Some(Box::new(observer)) }
    }

    fn did(&self, step: Step<'_>) {
        if let Some(observer) = &self.observer {
            observer(step);
        }
    }

    /// Makes a folder and those above it that are missing, and syncs the folders that they stand in: a power cut must
    /// not take it away as a whole.
    pub fn make_folder(&self, path: &Path) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        let parents = || path.ancestors().skip(1);
        let missing = parents().take_while(|folder| !folder.exists()).count();
        // Answers can be confidential: the owner alone may read them.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        for parent in parents().take(missing + 1) {
            match self.sync_folder(parent) {
                // Whoever made the folder there for this process had other rights.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
        }
        Ok(())
    }

    /// Makes a file that isn't there, for its owner alone.
    pub fn create(&self, path: PathBuf) -> io::Result<Writer> {
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)?;
        self.did(Step::Created(&path));
        Ok(Writer { path, file })
    }

    /// Opens a file that is there.
    pub fn open(&self, path: PathBuf) -> io::Result<Writer> {
        let file = OpenOptions::new().append(true).open(&path)?;
        Ok(Writer { path, file })
    }

    pub fn append(&self, to: &mut Writer, bytes: &[u8]) -> io::Result<()> {
        to.file.write_all(bytes)?;
        self.did(Step::Appended(&to.path, bytes));
        Ok(())
    }

    pub fn sync(&self, of: &Writer) -> io::Result<()> {
        of.file.sync_data()?;
        self.did(Step::Synced(&of.path));
        Ok(())
    }

    /// Makes sure that a file has so many bytes and that all of them are on disk.
    pub fn end_at(&self, of: &Writer, bytes: u64) -> io::Result<()> {
        of.file.set_len(bytes)?;
        self.did(Step::Cut(&of.path, bytes));
        of.file.sync_all()?;
        self.did(Step::Synced(&of.path));
        Ok(())
    }

    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        self.did(Step::Renamed(from, to));
        Ok(())
    }

    /// Deletes a file, were it gone already.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.did(Step::Removed(path)),
        }
        Ok(())
    }

    /// Makes names durable that were made, changed or taken away in a folder.
    pub fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()?;
        self.did(Step::SyncedFolder(path));
        Ok(())
    }
}
