//! The spool's folder: segments, and which results in them are still wanted.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{self, Read, Record};
use super::{RecoveredReport, SpoolError};
use crate::wire::SharedReport;

/// A segment that has this many bytes gets no more.
pub(super) const SEGMENT_BYTES: u64 = 16 << 20;
const SUFFIX: &str = "results";
const LOCK_FILE: &str = "lock";

pub(super) struct Folder {
    path: PathBuf,
    /// Held for the life of the process; the system lets go of it with the process.
    _lock: File,
    segments: BTreeMap<u64, Segment>,
    /// The segment of each result that is still wanted.
    wanted: BTreeMap<Bytes, u64>,
    /// The segment that is written to.
    active: Option<(u64, File)>,
    next_segment: u64,
    /// Forgotten, and not yet written down as such: token and its result's segment.
    tombstones: Vec<(Bytes, u64)>,
}

#[derive(Default)]
struct Segment {
    bytes: u64,
    /// Results that are still wanted.
    wanted: u64,
}

impl Folder {
    /// Locks and reads the folder.
    pub fn open(path: &Path) -> Result<(Self, Vec<RecoveredReport>), SpoolError> {
        let failed = |what| move |error| SpoolError::Io { folder: path.to_owned(), what, error };
        // Answers can be confidential: the owner alone may read them.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("making it"))?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(path.join(LOCK_FILE)).map_err(failed("opening its lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SpoolError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed("locking it")(error)),
        }
        let mut folder = Self {
            path: path.to_owned(),
            _lock: lock,
            segments: BTreeMap::new(),
            wanted: BTreeMap::new(),
            active: None,
            next_segment: 1,
            tombstones: Vec::new(),
        };
        let recovered = folder.load().map_err(failed("reading it"))?;
        Ok((folder, recovered))
    }

    /// Bytes of all segments on disk.
    pub fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// A result is wanted no more; written down with the next append.
    pub fn forget(&mut self, token: &Bytes) {
        let Some(number) = self.wanted.remove(token) else {
            return;
        };
        self.tombstones.push((token.clone(), number));
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.wanted -= 1;
        }
    }

    /// Appends tombstones and results and syncs them, in one write. On an error nothing counts as
    /// written, and the next append begins a new segment.
    pub fn append<'a>(
        &mut self,
        results: impl Iterator<Item = (&'a Bytes, u64, &'a SharedReport)> + Clone,
    ) -> io::Result<()> {
        self.delete_unwanted()?;
        let has_results = results.clone().next().is_some();
        if !has_results && (self.tombstones.is_empty() || self.active.is_none()) {
            // Tombstones alone are worth no new segment.
            return Ok(());
        }
        let mut buffer = Vec::new();
        for (token, _) in &self.tombstones {
            frame::push_tombstone(&mut buffer, token);
        }
        for (_, fencing, report) in results.clone() {
            frame::push_result(&mut buffer, fencing, report);
        }
        let (number, mut file) = self.writable()?;
        let written = file.write_all(&buffer).and_then(|()| {
            // A lost tombstone costs a repeated report and nothing else.
            if has_results { file.sync_data() } else { Ok(()) }
        });
        let segment = self.segments.entry(number).or_default();
        segment.bytes += buffer.len() as u64;
        // On an error the file's end is unknown: it is left as it is, torn perhaps.
        written?;
        self.tombstones.clear();
        for (token, _, _) in results {
            segment.wanted += 1;
            self.wanted.insert(token.clone(), number);
        }
        self.active = Some((number, file));
        Ok(())
    }

    /// The segment to write to, taken out of `active`.
    fn writable(&mut self) -> io::Result<(u64, File)> {
        if let Some((number, file)) = self.active.take()
            && self.segments.get(&number).is_some_and(|segment| segment.bytes < SEGMENT_BYTES)
        {
            return Ok((number, file));
        }
        let number = self.next_segment;
        let path = self.segment_path(number);
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)?;
        self.next_segment += 1;
        self.segments.insert(number, Segment::default());
        // Without this the file itself can be missing after a power cut.
        File::open(&self.path)?.sync_all()?;
        Ok((number, file))
    }

    /// Deletes segments of which nothing is wanted.
    fn delete_unwanted(&mut self) -> io::Result<()> {
        let unwanted: Vec<u64> =
            self.segments.iter().filter(|(_, segment)| segment.wanted == 0).map(|(number, _)| *number).collect();
        for number in unwanted {
            if self.active.as_ref().is_some_and(|(active, _)| *active == number) {
                self.active = None;
            }
            match fs::remove_file(self.segment_path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.segments.remove(&number),
            };
        }
        let segments = &self.segments;
        self.tombstones.retain(|(_, number)| segments.contains_key(number));
        Ok(())
    }

    fn segment_path(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:016x}.{SUFFIX}"))
    }

    /// Reads all segments, oldest first.
    fn load(&mut self) -> io::Result<Vec<RecoveredReport>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == SUFFIX)
                && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
                && let Ok(number) = u64::from_str_radix(stem, 16)
            {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        self.next_segment = numbers.last().map_or(1, |last| last + 1);
        let mut found = BTreeMap::new();
        let mut damaged = Vec::new();
        for number in numbers {
            if self.load_segment(number, &mut found)? {
                damaged.push(number);
            }
        }
        for (token, (number, _)) in &found {
            if let Some(segment) = self.segments.get_mut(number) {
                segment.wanted += 1;
            }
            self.wanted.insert(token.clone(), *number);
        }
        let recovered: Vec<RecoveredReport> = found.into_values().map(|(_, recovered)| recovered).collect();
        for number in damaged {
            self.set_aside(number, &recovered)?;
        }
        self.delete_unwanted()?;
        Ok(recovered)
    }

    /// Reads a segment into `found`. Gives whether its middle is damaged.
    fn load_segment(&mut self, number: u64, found: &mut BTreeMap<Bytes, (u64, RecoveredReport)>) -> io::Result<bool> {
        let mut rest = Bytes::from(fs::read(self.segment_path(number))?);
        let segment = Segment { bytes: rest.len() as u64, wanted: 0 };
        self.segments.insert(number, segment);
        let mut damaged = false;
        loop {
            match frame::read(&mut rest) {
                Read::Whole(Record::Result { fencing, report }) => {
                    let token = report.lease_token.clone();
                    let result = Arc::from(report);
                    let recovered = RecoveredReport { token: token.clone(), fencing, result };
                    found.insert(token, (number, recovered));
                }
                Read::Whole(Record::Tombstone { token }) => {
                    found.remove(&token);
                }
                Read::Damaged => damaged = true,
                Read::Torn | Read::End => return Ok(damaged),
            }
        }
    }

    /// Writes what could be read of a damaged segment to a new one, and renames the old.
    fn set_aside(&mut self, number: u64, recovered: &[RecoveredReport]) -> io::Result<()> {
        let path = self.segment_path(number);
        let aside = path.with_extension("corrupt");
        let saved: Vec<&RecoveredReport> =
            recovered.iter().filter(|one| self.wanted.get(&one.token) == Some(&number)).collect();
        tracing::error!(
            file = %aside.display(),
            saved = saved.len(),
            "a spool file is damaged: it is set aside, and what can be read of it is reported"
        );
        if let Some(segment) = self.segments.get_mut(&number) {
            // Kept from deletion while its results are written anew.
            segment.wanted += 1;
        }
        self.append(saved.iter().map(|one| (&one.token, one.fencing, &one.result)))?;
        fs::rename(&path, &aside)?;
        self.segments.remove(&number);
        Ok(())
    }
}
