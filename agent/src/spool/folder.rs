//! The spool's folder: segments, and which results in them are still wanted.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, Writer};
use super::frame::{self, Read, Record};
use super::{RecoveredReport, SpoolError};
use crate::wire::SharedReport;

/// A segment that has this many bytes gets no more.
pub(super) const SEGMENT_BYTES: u64 = 16 << 20;
const SUFFIX: &str = "results";
/// The suffix of damaged segments that were set aside. Nothing reads or deletes them.
const ASIDE_SUFFIX: &str = "corrupt";
const LOCK_FILE: &str = "lock";

pub(super) struct Folder {
    disk: Disk,
    path: PathBuf,
    /// Held for the life of the process; the system lets go of it with the process.
    _lock: File,
    segments: BTreeMap<u64, Segment>,
    /// The segment of each result that is still wanted.
    wanted: BTreeMap<Bytes, u64>,
    /// The segment that is written to.
    active: Option<(u64, Writer)>,
    next_segment: u64,
    /// Forgotten, and not yet written down as such: token and its result's segment.
    tombstones: Vec<(Bytes, u64)>,
}

#[derive(Default)]
struct Segment {
    bytes: u64,
    /// Results that are still wanted.
    wanted: u64,
    /// Damaged and not yet set aside: it must not be deleted, whatever is wanted of it.
    is_damaged: bool,
}

/// What reading a segment showed of its file.
struct Condition {
    /// The bytes up to where it is torn; all of them if it isn't.
    whole_bytes: u64,
    /// Its last record isn't whole.
    is_torn: bool,
    /// What stands before its end isn't what was written.
    is_damaged: bool,
}

impl Folder {
    /// Locks and reads the folder.
    pub fn open(disk: Disk, path: &Path) -> Result<(Self, Vec<RecoveredReport>), SpoolError> {
        let failed = |what| move |error| SpoolError::Io { folder: path.to_owned(), what, error };
        disk.make_folder(path).map_err(failed("making it"))?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(path.join(LOCK_FILE)).map_err(failed("opening its lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SpoolError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed("locking it")(error)),
        }
        let mut folder = Self {
            disk,
            path: path.to_owned(),
            _lock: lock,
            segments: BTreeMap::new(),
            wanted: BTreeMap::new(),
            active: None,
            next_segment: 1,
            tombstones: Vec::new(),
        };
        let recovered = folder.load().map_err(failed("reading it, and saving what is damaged in it"))?;
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
        let segment = self.segments.entry(number).or_default();
        let written = self.disk.append(&mut file, &buffer).and_then(|()| {
            // A lost tombstone costs a repeated report and nothing else.
            if has_results { self.disk.sync(&file) } else { Ok(()) }
        });
        if let Err(error) = written {
            // No record may end within a file that others follow. Where this fails as well, the next start takes
            // what is left of the write for damage.
            if self.disk.end_at(&file, segment.bytes).is_err() {
                segment.bytes += buffer.len() as u64;
            }
            return Err(error);
        }
        segment.bytes += buffer.len() as u64;
        self.tombstones.clear();
        for (token, _, _) in results {
            segment.wanted += 1;
            self.wanted.insert(token.clone(), number);
        }
        self.active = Some((number, file));
        Ok(())
    }

    /// The segment to write to, taken out of `active`.
    fn writable(&mut self) -> io::Result<(u64, Writer)> {
        if let Some((number, file)) = self.active.take() {
            if self.segments.get(&number).is_some_and(|segment| segment.bytes < SEGMENT_BYTES) {
                return Ok((number, file));
            }
            // Only the newest file may be torn by a power cut, and its last tombstones may not be on disk yet.
            self.disk.sync(&file)?;
        }
        let number = self.next_segment;
        let file = self.disk.create(self.segment_path(number))?;
        self.next_segment += 1;
        self.segments.insert(number, Segment::default());
        // Without this the file itself can be missing after a power cut.
        self.disk.sync_folder(&self.path)?;
        Ok((number, file))
    }

    /// Deletes segments of which nothing is wanted.
    fn delete_unwanted(&mut self) -> io::Result<()> {
        let is_unwanted = |segment: &Segment| segment.wanted == 0 && !segment.is_damaged;
        let unwanted: Vec<u64> =
            self.segments.iter().filter(|(_, segment)| is_unwanted(segment)).map(|(number, _)| *number).collect();
        for number in unwanted {
            if self.active.as_ref().is_some_and(|(active, _)| *active == number) {
                self.active = None;
            }
            self.disk.remove(&self.segment_path(number))?;
            self.segments.remove(&number);
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
        let newest = numbers.last().copied();
        for number in numbers {
            let condition = self.load_segment(number, &mut found)?;
            let is_newest = Some(number) == newest;
            if condition.is_damaged || (condition.is_torn && !is_newest) {
                damaged.push(number);
            } else if is_newest {
                // Torn or not, its process may have ended while it wrote; from now on others follow it.
                let file = self.disk.open(self.segment_path(number))?;
                self.disk.end_at(&file, condition.whole_bytes)?;
                self.segments.entry(number).or_default().bytes = condition.whole_bytes;
            }
        }
        for (token, (number, _)) in &found {
            if let Some(segment) = self.segments.get_mut(number) {
                segment.wanted += 1;
            }
            self.wanted.insert(token.clone(), *number);
        }
        let recovered: Vec<RecoveredReport> = found.into_values().map(|(_, recovered)| recovered).collect();
        // All are marked before the first is saved, since saving deletes what nothing is wanted of.
        for number in &damaged {
            self.segments.entry(*number).or_default().is_damaged = true;
        }
        for number in damaged {
            self.set_aside(number, &recovered)?;
        }
        self.delete_unwanted()?;
        Ok(recovered)
    }

    /// Reads a segment into `found`.
    fn load_segment(
        &mut self,
        number: u64,
        found: &mut BTreeMap<Bytes, (u64, RecoveredReport)>,
    ) -> io::Result<Condition> {
        let file = Bytes::from(fs::read(self.segment_path(number))?);
        let mut rest = file.clone();
        self.segments.insert(number, Segment { bytes: file.len() as u64, ..Segment::default() });
        let mut is_damaged = false;
        loop {
            let at = file.len() - rest.len();
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
                Read::Damaged => is_damaged = true,
                Read::Torn => {
                    // A length that isn't what was written reaches beyond the end too, but over whole records.
                    is_damaged |= frame::may_hold_record(&file[at..]);
                    return Ok(Condition { whole_bytes: at as u64, is_torn: true, is_damaged });
                }
                Read::End => return Ok(Condition { whole_bytes: at as u64, is_torn: false, is_damaged }),
            }
        }
    }

    /// Writes what could be read of a damaged segment to a new one, and renames the old.
    fn set_aside(&mut self, number: u64, recovered: &[RecoveredReport]) -> io::Result<()> {
        let saved: Vec<&RecoveredReport> =
            recovered.iter().filter(|one| self.wanted.get(&one.token) == Some(&number)).collect();
        self.append(saved.iter().map(|one| (&one.token, one.fencing, &one.result)))?;
        let aside = self.free_name_aside(number);
        self.disk.rename(&self.segment_path(number), &aside)?;
        self.disk.sync_folder(&self.path)?;
        self.segments.remove(&number);
        tracing::error!(
            file = %aside.display(),
            saved = saved.len(),
            "a spool file was damaged: what can be read of it is reported, the file is set aside under this name; \
             delete it once nobody wants to look into it"
        );
        Ok(())
    }

    /// A name for a damaged segment that no other has: numbers of segments come again.
    fn free_name_aside(&self, number: u64) -> PathBuf {
        let mut aside = self.path.join(format!("{number:016x}.{ASIDE_SUFFIX}"));
        let mut copy = 1;
        while aside.exists() {
            copy += 1;
            aside = self.path.join(format!("{number:016x}-{copy}.{ASIDE_SUFFIX}"));
        }
        aside
    }
}
