//! Spools whose files aren't what was written: cut, changed, or both, several at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Disk, Folder, files, frame, keep, open, recovered, segments};

/// A spool of these many results (numbered from 1 on through all segments) in each segment.
fn spool_of(results: &[u64]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut number = 0;
    for count in results {
        // Each start writes to a segment of its own.
        let (spool, _) = open(folder.path());
        for _ in 0..*count {
            number += 1;
            keep(&spool, number, 10);
        }
    }
    assert_eq!(segments(folder.path()).len(), results.len());
    folder
}

/// The bytes that one of these results takes.
fn record_bytes(segment: &Path, results: usize) -> usize {
    fs::read(segment).expect("a segment").len() / results
}

fn copy(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for path in segments(from) {
        fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    folder
}

fn set_aside(folder: &Path) -> Vec<PathBuf> {
    files(folder, "corrupt")
}

/// Changes a byte of a file and gives the file as it is then.
fn damage(path: &Path, at: usize) -> Vec<u8> {
    let mut bytes = fs::read(path).expect("a segment");
    bytes[at] ^= 0xff;
    fs::write(path, &bytes).expect("a damaged file");
    bytes
}

/// What is logged while the folder is opened.
fn logged_at_opening(folder: &Path) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || Folder::open(Disk::default(), folder).map(drop))
        .expect("the folder opens");
    let bytes = log.0.lock().expect("no panic").clone();
    String::from_utf8(bytes).expect("text")
}

#[test]
fn two_damaged_segments_are_both_kept_and_reported_and_what_can_be_read_of_them_is_saved() {
    let folder = spool_of(&[1, 1, 3, 1]);
    let paths = segments(folder.path());
    let record = record_bytes(&paths[2], 3);
    // Of the first two nothing can be read, of the third two results can.
    let damaged = [damage(&paths[0], 40), damage(&paths[1], 40), damage(&paths[2], record + 40)];
    // A damaged file of an earlier time has the name already.
    fs::write(paths[1].with_extension("corrupt"), "earlier").expect("a file");

    let log = logged_at_opening(folder.path());
    assert_eq!(log.matches("ERROR").count(), 3, "{log}");
    let aside = set_aside(folder.path());
    assert_eq!(aside.len(), 4);
    for path in aside {
        let bytes = fs::read(&path).expect("a file");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if bytes == b"earlier" {
            assert_eq!(name, "0000000000000002.corrupt");
        } else {
            assert!(damaged.contains(&bytes), "{name} is not what was damaged");
            assert!(log.contains(&name), "{name} is not in {log}");
        }
    }
    // Twice, for what was saved must be on disk.
    for _ in 0..2 {
        assert_eq!(recovered(folder.path()), [3, 5, 6]);
    }
    assert_eq!(logged_at_opening(folder.path()), "", "nothing is left that is damaged");
}

#[test]
fn a_segment_torn_before_the_newest_is_damage_and_gives_back_what_is_whole() {
    let whole = spool_of(&[1, 3, 1]);
    let length = fs::read(&segments(whole.path())[1]).expect("a segment").len();
    let record = length / 3;
    for cut in 0..length {
        let folder = copy(whole.path());
        let middle = &segments(folder.path())[1];
        let bytes = fs::read(middle).expect("a segment")[..cut].to_vec();
        fs::write(middle, &bytes).expect("a cut file");
        let mut expected = vec![1];
        expected.extend((2..5).take(cut / record));
        expected.push(5);
        for _ in 0..2 {
            assert_eq!(recovered(folder.path()), expected, "cut at {cut} of {length}");
        }
        let aside: Vec<_> = set_aside(folder.path()).iter().map(|path| fs::read(path).expect("a file")).collect();
        // Between two records no cut can be seen.
        let visible = if cut % record == 0 { vec![] } else { vec![bytes] };
        assert_eq!(aside, visible, "cut at {cut} of {length}");
    }
}

#[test]
fn the_newest_segment_cut_anywhere_gives_back_all_whole_records_and_is_no_damage_then_or_later() {
    let whole = spool_of(&[1, 3]);
    let length = fs::read(&segments(whole.path())[1]).expect("a segment").len();
    let record = length / 3;
    for cut in 0..length {
        let folder = copy(whole.path());
        let newest = &segments(folder.path())[1];
        fs::write(newest, &fs::read(newest).expect("a segment")[..cut]).expect("a cut file");
        let mut expected: Vec<u64> = (1..=1 + (cut / record) as u64).collect();
        assert_eq!(recovered(folder.path()), expected, "cut at {cut} of {length}");
        // It isn't the newest any more once another start has written.
        let (spool, _) = open(folder.path());
        keep(&spool, 9, 50);
        drop(spool);
        expected.push(9);
        assert_eq!(recovered(folder.path()), expected, "cut at {cut} of {length}, and written on");
        assert_eq!(set_aside(folder.path()), [] as [PathBuf; 0], "cut at {cut} of {length}");
    }
}

#[test]
fn a_damaged_middle_is_set_aside_and_the_rest_is_saved() {
    let folder = spool_of(&[5]);
    let path = &segments(folder.path())[0];
    let bytes = damage(path, record_bytes(path, 5) * 2 + 40);
    // And again: what was saved is on disk.
    for _ in 0..2 {
        assert_eq!(recovered(folder.path()), [1, 2, 4, 5]);
    }
    let aside = path.with_extension("corrupt");
    assert_eq!(fs::read(aside).expect("the file that was set aside"), bytes);
}

#[test]
fn a_damaged_length_in_the_newest_is_not_taken_for_a_torn_end() {
    let folder = spool_of(&[5]);
    let path = &segments(folder.path())[0];
    // The highest byte of a length: it reaches far beyond the file's end.
    let bytes = damage(path, record_bytes(path, 5) * 2 + 3);
    for _ in 0..2 {
        assert_eq!(recovered(folder.path()), [1, 2]);
    }
    let aside = path.with_extension("corrupt");
    assert_eq!(fs::read(aside).expect("the file that was set aside"), bytes, "results 4 and 5 are in it");
}

#[test]
fn numbers_that_come_again_overwrite_no_damaged_file() {
    let folder = tempfile::tempdir().expect("a folder");
    for round in 1..=3 {
        let (spool, found) = open(folder.path());
        assert_eq!(found.len(), 0);
        keep(&spool, round, 50);
        drop(spool);
        let paths = segments(folder.path());
        damage(&paths[0], 40);
        // Its only result can't be read; but a record follows, so it isn't its end that is torn.
        let mut bytes = fs::read(&paths[0]).expect("a segment");
        frame::push_tombstone(&mut bytes, b"no result's");
        fs::write(&paths[0], &bytes).expect("a damaged file");
        assert_eq!(recovered(folder.path()), [] as [u64; 0]);
        assert_eq!(set_aside(folder.path()).len() as u64, round);
    }
}

#[test]
fn a_spool_is_made_with_all_folders_above_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a/b/spool");
    let (spool, _) = open(&path);
    keep(&spool, 1, 50);
    drop(spool);
    assert_eq!(recovered(&path), [1]);
}
