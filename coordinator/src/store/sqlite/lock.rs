//! The lock file beside the database: the leadership of an embedded store (rule L5).
//!
//! SQLite's own lock ends with each transaction, and its exclusive mode shuts out readers; so one
//! process holds an flock on a file of its own for as long as it lives.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Bytes of a lock file that are read: a process id and its line end, with room.
const MAX_HOLDER_BYTES: u64 = 64;

/// Links that a database's path may lead over.
const MAX_LINKS: usize = 40;

/// Why the store is not this process's.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "{} is in use by {holder}: it holds {}. Stop that process, talk to it instead, or name another store",
        .database.display(), .lock.display()
    )]
    Held {
        /// The database.
        database: PathBuf,
        /// The lock file.
        lock: PathBuf,
        /// The other process, in words.
        holder: String,
    },
    /// Locks there don't hold between machines.
    #[error(
        "{} is on a network file system ({kind}), where neither this store's lock nor SQLite's write-ahead log \
         is safe. Put the store on a local disk",
        .database.display()
    )]
    NetworkFileSystem {
        /// The database.
        database: PathBuf,
        /// The file system's name.
        kind: String,
    },
    /// A file could not be used.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// The lock of a database, held until it is dropped. Not inherited by child processes: std opens
/// files close-on-exec.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock of a database whose path is [`real_path`]'s.
    ///
    /// # Errors
    /// Another process has it, the file system is a network's, or the file can't be opened.
    pub fn take(database: &Path) -> Result<Self, LockError> {
        refuse_network(database)?;
        let lock = lock_path(database);
        let io = |source| LockError::Io { path: lock.clone(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = holder(&mut file);
                return Err(LockError::Held { database: database.into(), lock, holder });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
        Ok(Self { _file: file })
    }
}

/// The lock file of a database.
pub fn lock_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

/// The path of a database without links, so that every road to it leads to one lock. The file need not be there yet.
///
/// # Errors
/// Its folder is not there, or its links lead in a circle.
pub fn real_path(database: &Path) -> Result<PathBuf, LockError> {
    let mut path = database.to_owned();
    for _ in 0..MAX_LINKS {
        let real = real_folder(&path)?;
        // A link whose target is not there yet: the database will be made at its end.
        match std::fs::read_link(&real) {
            Ok(target) => path = real.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(real),
        }
    }
    let source = std::io::Error::other(format!("its links go on for more than {MAX_LINKS}: name the file itself"));
    Err(LockError::Io { path: database.into(), source })
}

/// The path in the real folder; the file itself may be a link.
fn real_folder(database: &Path) -> Result<PathBuf, LockError> {
    let folder = match database.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let real = folder.canonicalize().map_err(|source| LockError::Io { path: folder.into(), source })?;
    let name = database.file_name().ok_or_else(|| LockError::Io {
        path: database.into(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidInput, "names no file"),
    })?;
    Ok(real.join(name))
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(MAX_HOLDER_BYTES).read_to_string(&mut text));
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "another process".into(),
    }
}

/// File systems over a network, by their magic numbers (statfs(2)).
#[cfg(target_os = "linux")]
const NETWORK: &[(u64, &str)] = &[
    (0x6969, "nfs"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb2"),
    (0x517B, "smb"),
    (0x564C, "ncp"),
    (0x7375_7245, "coda"),
    (0x5346_414F, "afs"),
    (0x00C3_6400, "ceph"),
    (0x0BD0_0BD0, "lustre"),
    (0x4750_4653, "gpfs"),
];
/// FUSE: local or not, only its subtype tells.
#[cfg(target_os = "linux")]
const FUSE: u64 = 0x6573_5546;
/// FUSE file systems that are local.
#[cfg(target_os = "linux")]
const LOCAL_FUSE: &[&str] =
    &["fuseblk", "fuse.fuse-overlayfs", "fuse.ext4", "fuse.ntfs-3g", "fuse.gocryptfs", "fuse.encfs"];

#[cfg(target_os = "linux")]
fn refuse_network(database: &Path) -> Result<(), LockError> {
    let folder = database.parent().unwrap_or(Path::new("/"));
    let stat = rustix::fs::statfs(folder).map_err(|e| LockError::Io { path: folder.into(), source: e.into() })?;
    // The field's type differs by architecture, and the numbers of some file systems are beyond an i32.
    #[allow(clippy::unnecessary_cast)]
    let magic = stat.f_type as u64 & 0xFFFF_FFFF;
    let kind = if magic == FUSE {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let kind = mounted_type(&mounts, folder).unwrap_or("fuse").to_owned();
        (!LOCAL_FUSE.contains(&&*kind)).then_some(kind)
    } else {
        NETWORK.iter().find(|(number, _)| *number == magic).map(|(_, name)| (*name).to_owned())
    };
    match kind {
        Some(kind) => Err(LockError::NetworkFileSystem { database: database.into(), kind }),
        None => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn refuse_network(_database: &Path) -> Result<(), LockError> {
    Ok(())
}

/// The type of the file system that holds a folder, from the lines of mountinfo (proc(5)): the mount
/// point is the fifth field, the type the first after the dash. Of two mounts on one point the later one shows.
#[cfg(target_os = "linux")]
fn mounted_type<'m>(mounts: &'m str, folder: &Path) -> Option<&'m str> {
    mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = left.split(' ').nth(4)?.replace("\\040", " ");
            let kind = right.split(' ').next()?;
            folder.starts_with(&point).then_some((point.len(), kind))
        })
        .max_by_key(|(len, _)| *len)
        .map(|(_, kind)| kind)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /home/me/remote\\040disk rw - fuse.sshfs me@host: rw
41 22 0:36 / /home/me rw - ext4 /dev/sdb1 rw
";

    #[test]
    fn l5_the_file_system_of_a_folder_is_that_of_its_nearest_mount() {
        let kind = |folder: &str| mounted_type(MOUNTS, Path::new(folder));
        assert_eq!(kind("/home/me/remote disk/evals"), Some("fuse.sshfs"));
        assert_eq!(kind("/home/me/evals"), Some("ext4"));
        assert_eq!(kind("/srv"), Some("ext4"));
        assert_eq!(mounted_type("nonsense", Path::new("/")), None);
    }

    #[test]
    fn l5_every_road_to_a_database_leads_to_one_lock() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("semel.db");
        std::fs::write(&target, b"").unwrap();
        let link = dir.path().join("link.db");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(real_path(&link).unwrap(), real_path(&target).unwrap());
        let first = StoreLock::take(&real_path(&target).unwrap()).unwrap();
        // flock belongs to the open file, so a second one in this process is refused as another process's is.
        let second = StoreLock::take(&real_path(&link).unwrap()).unwrap_err().to_string();
        assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
        drop(first);
        StoreLock::take(&real_path(&link).unwrap()).unwrap();
    }

    #[test]
    fn l5_a_link_to_a_database_that_is_not_there_yet_leads_to_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, target) = (dir.path().join("disk"), dir.path().join("disk/semel.db"));
        std::fs::create_dir(&folder).unwrap();
        let (link, second) = (dir.path().join("link.db"), dir.path().join("second.db"));
        std::os::unix::fs::symlink("disk/semel.db", &link).unwrap();
        std::os::unix::fs::symlink(&link, &second).unwrap();
        assert_eq!(real_path(&second).unwrap(), real_path(&target).unwrap());
        let circle = dir.path().join("circle.db");
        std::os::unix::fs::symlink(&circle, &circle).unwrap();
        assert!(real_path(&circle).unwrap_err().to_string().contains("circle.db"));
    }

    #[test]
    fn a_store_in_a_folder_that_is_not_there_is_refused_by_name() {
        let error = real_path(Path::new("/nowhere/at/all/semel.db")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
