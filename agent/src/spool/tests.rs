use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use semel_proto::v1 as pb;

use super::*;

mod damage;
mod power;

fn report(number: u64, size: usize) -> SharedReport {
    let success = pb::Success { output: vec![number as u8; size].into(), ..pb::Success::default() };
    Arc::new(pb::Report {
        lease_token: token(number),
        outcome: Some(pb::report::Outcome::Success(success)),
        ..pb::Report::default()
    })
}

fn token(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn open(folder: &Path) -> (Spool, Vec<RecoveredReport>) {
    Spool::open(folder, DEFAULT_LIMIT_BYTES).expect("the spool opens")
}

/// Opens the spool and gives the numbers of what it has, after checking that it is whole.
fn recovered(folder: &Path) -> Vec<u64> {
    let (_spool, recovered) = open(folder);
    let mut numbers = Vec::new();
    for one in recovered {
        assert_eq!(one.token, token(one.fencing));
        let size = match &one.result.outcome {
            Some(pb::report::Outcome::Success(success)) => success.output.len(),
            _ => panic!("an outcome was lost"),
        };
        assert_eq!(one.result, report(one.fencing, size));
        numbers.push(one.fencing);
    }
    numbers
}

fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|other| other == suffix))
        .collect();
    paths.sort();
    paths
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    files(folder, "results")
}

fn keep(spool: &Spool, number: u64, size: usize) {
    spool.keep(token(number), number, report(number, size));
}

#[test]
fn what_was_kept_comes_back_and_what_was_forgotten_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (spool, none) = open(folder.path());
    assert!(none.is_empty());
    for number in 1..=20 {
        keep(&spool, number, 100);
    }
    drop(spool);
    let (spool, before) = open(folder.path());
    assert_eq!(before.len(), 20);
    for number in 1..=19 {
        spool.forget(token(number));
    }
    // Something written with them carries the tombstones.
    keep(&spool, 21, 100);
    drop(spool);
    assert_eq!(recovered(folder.path()), [20, 21]);
}

#[test]
fn a_result_whose_receipt_comes_first_is_never_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let (spool, _) = open(folder.path());
    for number in 1..=1_000 {
        keep(&spool, number, 10_000);
        spool.forget(token(number));
    }
    drop(spool);
    let bytes: u64 = segments(folder.path()).iter().map(|path| fs::metadata(path).expect("metadata").len()).sum();
    // A batch can end between the two; most are spared.
    assert!(bytes < 1_000_000, "{bytes} bytes were written");
}

#[test]
fn a_second_process_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_spool, _) = open(folder.path());
    let error = Spool::open(folder.path(), 1).err().expect("the folder is locked");
    assert!(matches!(error, SpoolError::Locked(_)));
    assert!(error.to_string().contains("in use by another process"), "{error}");
}

#[test]
fn segments_go_when_all_their_results_are_forgotten() {
    let folder = tempfile::tempdir().expect("a folder");
    let (spool, _) = open(folder.path());
    for number in 1..=8 {
        keep(&spool, number, 5 << 20);
    }
    drop(spool);
    assert!(segments(folder.path()).len() > 1, "the results fill several segments");
    let (spool, before) = open(folder.path());
    for one in before {
        spool.forget(one.token);
    }
    keep(&spool, 9, 10);
    drop(spool);
    assert_eq!(recovered(folder.path()), [9]);
    assert_eq!(segments(folder.path()).len(), 1);
}

/// Waits until the spool has room or hasn't.
fn wait_for_room(spool: &Spool, has_room: bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while spool.has_room() != has_room {
        assert!(Instant::now() < patience, "the room is never {has_room}");
        std::thread::yield_now();
    }
}

#[test]
fn the_room_ends_at_the_limit_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (spool, _) = Spool::open(folder.path(), 1 << 20).expect("opens");
    keep(&spool, 1, 2 << 20);
    assert!(!spool.has_room(), "2 MiB are over the limit of 1 MiB, written or not");
    spool.forget(token(1));
    wait_for_room(&spool, true);
    drop(spool);
    // What a new process finds counts as well.
    let (spool, _) = open(folder.path());
    keep(&spool, 2, 2 << 20);
    drop(spool);
    let (spool, _) = Spool::open(folder.path(), 1 << 20).expect("opens");
    assert!(!spool.has_room());
    spool.forget(token(2));
    wait_for_room(&spool, true);
}

#[test]
fn a_folder_that_can_not_be_written_takes_the_room_away_until_it_can() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("spool");
    let (spool, _) = Spool::open(&path, DEFAULT_LIMIT_BYTES).expect("opens");
    let aside = folder.path().join("aside");
    fs::rename(&path, &aside).expect("the folder goes");
    keep(&spool, 1, 10);
    keep(&spool, 2, 10);
    wait_for_room(&spool, false);
    spool.forget(token(2));
    fs::rename(&aside, &path).expect("the folder is back");
    wait_for_room(&spool, true);
    drop(spool);
    assert_eq!(recovered(&path), [1]);
}
