//! Records in a segment file.
//!
//! A record is its payload's length (u32, little endian), the first 8 bytes of the SHA-256 of kind
//! and payload, the kind, and the payload: of a result the fencing token (u64, little endian) and
//! the encoded report; of a tombstone the lease token.

use bytes::{Buf, Bytes};
use prost::Message;
use semel_proto::v1 as pb;
use sha2::{Digest, Sha256};

const CHECK_BYTES: usize = 8;
const HEADER_BYTES: usize = 4 + CHECK_BYTES + 1;
const FENCING_BYTES: usize = 8;
const RESULT: u8 = 1;
const TOMBSTONE: u8 = 2;
/// The most bytes of which digests are made in search of a record.
const MAX_SEARCH_BYTES: usize = 256 << 20;

/// One record.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    Result { fencing: u64, report: Box<pb::Report> },
    Tombstone { token: Bytes },
}

/// What stands at the front of a file's rest.
#[derive(Debug, PartialEq)]
pub(super) enum Read {
    /// A whole record.
    Whole(Record),
    /// A record that isn't what was written. The rest goes on behind it, if its length is true.
    Damaged,
    /// The file ends within a record, or its last record isn't what was written: the process that wrote it ended
    /// there, unless whole records stand in this one ([`may_hold_record`]).
    Torn,
    /// The file ends here.
    End,
}

/// How many bytes the record of a result takes.
pub(super) fn result_bytes(report: &pb::Report) -> u64 {
    (HEADER_BYTES + FENCING_BYTES + report.encoded_len()) as u64
}

/// Appends the record of a result.
pub(super) fn push_result(to: &mut Vec<u8>, fencing: u64, report: &pb::Report) {
    let start = open(to, RESULT);
    to.extend_from_slice(&fencing.to_le_bytes());
    // A Vec grows as needed, so this can't fail.
    report.encode_raw(to);
    close(to, start);
}

/// Appends a tombstone.
pub(super) fn push_tombstone(to: &mut Vec<u8>, token: &[u8]) {
    let start = open(to, TOMBSTONE);
    to.extend_from_slice(token);
    close(to, start);
}

fn open(to: &mut Vec<u8>, kind: u8) -> usize {
    let start = to.len();
    to.extend_from_slice(&[0; HEADER_BYTES - 1]);
    to.push(kind);
    start
}

fn close(to: &mut [u8], start: usize) {
    let record = &mut to[start..];
    let length = (record.len() - HEADER_BYTES) as u32;
    let check = check(&record[HEADER_BYTES - 1..]);
    record[..4].copy_from_slice(&length.to_le_bytes());
    record[4..4 + CHECK_BYTES].copy_from_slice(&check);
}

fn check(kind_and_payload: &[u8]) -> [u8; CHECK_BYTES] {
    let digest: [u8; 32] = Sha256::digest(kind_and_payload).into();
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&digest[..CHECK_BYTES]);
    check
}

/// Reads the record at the front of `rest` and takes it off.
pub(super) fn read(rest: &mut Bytes) -> Read {
    if rest.is_empty() {
        return Read::End;
    }
    if rest.len() < HEADER_BYTES {
        rest.clear();
        return Read::Torn;
    }
    let length = rest.get_u32_le() as usize;
    let expected = rest.split_to(CHECK_BYTES);
    if rest.len() < 1 + length {
        rest.clear();
        return Read::Torn;
    }
    let mut record = rest.split_to(1 + length);
    if check(&record)[..] != expected[..] {
        // The length can have reached the disk before the payload.
        return if rest.is_empty() { Read::Torn } else { Read::Damaged };
    }
    match record.get_u8() {
        RESULT if record.len() >= FENCING_BYTES => {
            let fencing = record.get_u64_le();
            match pb::Report::decode(record) {
                Ok(report) => Read::Whole(Record::Result { fencing, report: Box::new(report) }),
                Err(_) => Read::Damaged,
            }
        }
        TOMBSTONE => Read::Whole(Record::Tombstone { token: record }),
        _ => Read::Damaged,
    }
}

/// Whether a whole record stands anywhere in `bytes`. Where that would take too long to deny, it is said to.
pub(super) fn may_hold_record(bytes: &[u8]) -> bool {
    let mut searched_bytes = 0;
    (0..bytes.len()).any(|at| {
        let mut from = &bytes[at..];
        if from.len() < HEADER_BYTES {
            return false;
        }
        let length = from.get_u32_le() as usize;
        let (expected, from) = from.split_at(CHECK_BYTES);
        let Some(record) = from.get(..1 + length).filter(|record| matches!(record[0], RESULT | TOMBSTONE)) else {
            return false;
        };
        searched_bytes += record.len();
        searched_bytes > MAX_SEARCH_BYTES || check(record)[..] == *expected
    })
}
