//! What a power cut leaves of a spool. The disk of these tests keeps the least that it may: a name as it was when its
//! folder was last synced, and of a file what was synced and half of what was written after that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::disk::Step;
use super::super::folder::SEGMENT_BYTES;
use super::{Disk, Folder, RecoveredReport, files, frame, report, segments, token};

#[derive(Clone, Default)]
struct Content {
    written: Vec<u8>,
    synced_bytes: usize,
}

/// A spool's folder as it is, and as a power cut would leave it.
#[derive(Default)]
struct Platter {
    contents: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Results that must be there whatever happens.
    promised: BTreeSet<u64>,
    /// The steps, in words.
    steps: Vec<String>,
}

impl Platter {
    fn content(&mut self, path: &Path) -> &mut Content {
        let index = self.names[path];
        &mut self.contents[index]
    }

    fn take(&mut self, step: Step<'_>) {
        let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
        let words = match step {
            Step::Created(path) => {
                self.names.insert(path.to_owned(), self.contents.len());
                self.contents.push(Content::default());
                format!("create {}", name(path))
            }
            Step::Appended(path, bytes) => {
                self.content(path).written.extend_from_slice(bytes);
                format!("append {}", name(path))
            }
            Step::Cut(path, bytes) => {
                let content = self.content(path);
                content.written.truncate(bytes as usize);
                content.synced_bytes = content.synced_bytes.min(content.written.len());
                format!("cut {}", name(path))
            }
            Step::Synced(path) => {
                let content = self.content(path);
                content.synced_bytes = content.written.len();
                format!("sync {}", name(path))
            }
            Step::Renamed(from, to) => {
                let index = self.names.remove(from).expect("a file");
                self.names.insert(to.to_owned(), index);
                format!("rename {} {}", name(from), name(to))
            }
            Step::Removed(path) => {
                self.names.remove(path);
                format!("remove {}", name(path))
            }
            Step::SyncedFolder(path) => {
                let is_within = |file: &Path| file.parent() == Some(path);
                self.durable_names.retain(|file, _| !is_within(file));
                self.durable_names.extend(self.names.clone().into_iter().filter(|(file, _)| is_within(file)));
                format!("sync folder {}", path.display())
            }
        };
        self.steps.push(words);
    }

    /// Looks at what a power cut would leave now.
    fn check(&self) {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, index) in &self.durable_names {
            let content = &self.contents[*index];
            let left = (content.synced_bytes + content.written.len()) / 2;
            fs::write(folder.path().join(path.file_name().expect("a name")), &content.written[..left]).expect("a file");
        }
        let aside = files(folder.path(), "corrupt").len();
        let (_folder, recovered) = Folder::open(Disk::default(), folder.path()).expect("it opens");
        let numbers: BTreeSet<u64> = recovered.iter().map(|one| one.fencing).collect();
        let lost: Vec<_> = self.promised.difference(&numbers).collect();
        assert!(lost.is_empty(), "a power cut loses {lost:?} after {:#?}", self.steps);
        assert_eq!(files(folder.path(), "corrupt").len(), aside, "it damages a segment after {:#?}", self.steps);
    }
}

/// A spool on such a disk.
struct Bench {
    path: tempfile::TempDir,
    platter: Arc<Mutex<Platter>>,
}

impl Bench {
    fn new() -> Self {
        Self { path: tempfile::tempdir().expect("a folder"), platter: Arc::default() }
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().expect("no test failed")
    }

    fn open(&self) -> (Folder, Vec<RecoveredReport>) {
        let platter = Arc::clone(&self.platter);
        let disk = Disk::observed(move |step| {
            let mut platter = platter.lock().expect("no test failed");
            platter.take(step);
            platter.check();
        });
        Folder::open(disk, self.path.path()).expect("the folder opens")
    }

    /// Writes results; that returns promises them.
    fn append(&self, folder: &mut Folder, numbers: &[u64], size: usize) {
        let results: Vec<_> = numbers.iter().map(|number| (token(*number), *number, report(*number, size))).collect();
        folder.append(results.iter().map(|(token, number, report)| (token, *number, report))).expect("written");
        self.platter().promised.extend(numbers);
        self.platter().check();
    }

    fn forget(&self, folder: &mut Folder, number: u64) {
        self.platter().promised.remove(&number);
        folder.forget(&token(number));
    }

    fn steps(&self) -> Vec<String> {
        std::mem::take(&mut self.platter().steps)
    }
}

#[test]
fn what_was_written_outlives_a_power_cut_at_every_later_step() {
    let bench = Bench::new();
    let mut number = 0;
    let mut next = || {
        number += 1;
        number
    };
    for _ in 0..4 {
        // Each start goes on in a segment of its own.
        let (mut folder, before) = bench.open();
        bench.append(&mut folder, &[next(), next(), next()], 100);
        bench.append(&mut folder, &[next()], 100);
        if let Some(oldest) = before.first() {
            bench.forget(&mut folder, oldest.fencing);
        }
        // A tombstone alone, and one that a result follows.
        bench.append(&mut folder, &[], 0);
        for one in before.iter().skip(1).take(3) {
            bench.forget(&mut folder, one.fencing);
        }
        bench.append(&mut folder, &[next()], 100);
    }
    let steps = bench.steps();
    for kind in ["create", "append", "sync", "remove", "cut"] {
        assert!(steps.iter().any(|step| step.starts_with(kind)), "nothing did {kind}: {steps:#?}");
    }
}

#[test]
fn a_full_segment_is_whole_before_another_follows_it() {
    let bench = Bench::new();
    let (mut folder, _) = bench.open();
    bench.append(&mut folder, &[1], 100);
    let so_far = fs::metadata(&segments(bench.path.path())[0]).expect("a segment").len();
    // One byte short of full, which only a tombstone fills: nothing syncs that by itself.
    let room = SEGMENT_BYTES - 1 - so_far;
    let overhead = frame::result_bytes(&report(2, room as usize)) - room;
    bench.append(&mut folder, &[2], (room - overhead) as usize);
    assert_eq!(fs::metadata(&segments(bench.path.path())[0]).expect("a segment").len(), SEGMENT_BYTES - 1);
    bench.forget(&mut folder, 2);
    bench.append(&mut folder, &[], 0);
    bench.append(&mut folder, &[3], 100);
    assert_eq!(segments(bench.path.path()).len(), 2);
}

#[test]
fn a_start_makes_whole_what_its_process_had_not_synced_when_it_ended() {
    let bench = Bench::new();
    let (mut folder, _) = bench.open();
    bench.append(&mut folder, &[1], 100);
    bench.append(&mut folder, &[2], 100);
    drop(folder);
    // As if it had been killed between the second write and its sync.
    let path = segments(bench.path.path()).remove(0);
    bench.platter().content(&path).synced_bytes /= 2;
    bench.platter().promised.remove(&2);
    let (mut folder, recovered) = bench.open();
    assert_eq!(recovered.len(), 2);
    bench.platter().promised.insert(2);
    bench.append(&mut folder, &[3], 100);
}

#[test]
fn a_damaged_segment_goes_aside_once_its_results_are_safe_and_stays_aside() {
    let bench = Bench::new();
    let (mut folder, _) = bench.open();
    bench.append(&mut folder, &[1, 2], 100);
    drop(folder);
    let (mut folder, _) = bench.open();
    bench.append(&mut folder, &[3], 100);
    drop(folder);
    let path = segments(bench.path.path()).remove(0);
    let mut bytes = fs::read(&path).expect("a segment");
    bytes[40] ^= 0xff;
    fs::write(&path, &bytes).expect("a damaged segment");
    let platter = Arc::clone(&bench.platter);
    // Which damage a cut adds to it isn't the subject.
    let disk = Disk::observed(move |step| platter.lock().expect("no test failed").take(step));
    bench.steps();
    let (_folder, recovered) = Folder::open(disk, bench.path.path()).expect("the folder opens");
    assert_eq!(recovered.iter().map(|one| one.fencing).collect::<Vec<_>>(), [2, 3]);
    let synced = format!("sync folder {}", bench.path.path().display());
    let steps = bench.steps();
    let expected = [
        "cut 0000000000000002.results",
        "sync 0000000000000002.results",
        "create 0000000000000003.results",
        &synced,
        "append 0000000000000003.results",
        "sync 0000000000000003.results",
        "rename 0000000000000001.results 0000000000000001.corrupt",
        &synced,
    ];
    assert_eq!(steps[1..], expected, "after the folder's own folder was synced");
}

#[test]
fn folders_that_are_made_for_the_spool_are_there_after_a_power_cut() {
    let top = tempfile::tempdir().expect("a folder");
    let seen: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
    let to = Arc::clone(&seen);
    let disk = Disk::observed(move |step| match step {
        Step::SyncedFolder(path) => to.lock().expect("no panic").push(path.to_owned()),
        other => panic!("an empty spool needs no {other:?}"),
    });
    Folder::open(disk, &top.path().join("a/b/spool")).map(drop).expect("the folder opens");
    assert_eq!(*seen.lock().expect("no panic"), ["a/b", "a", ""].map(|folder| top.path().join(folder)));
}
