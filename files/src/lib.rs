//! Files that people write, and how they are read: [`yaml`] and [`json`] give a [`tree`] with the place of each value,
//! so that whoever looks for its meaning can name every fault at once; [`secret`] reads keys and tokens.
//!
//! What a job or an agents file means is none of this crate's business.

pub mod json;
mod nearest;
pub mod secret;
pub mod tree;
pub mod yaml;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use nearest::nearest;

/// The bytes of a file, and never more than `max` and one: enough to see that there are too many.
///
/// # Errors
/// The file isn't there, is a folder, or the system refuses.
pub fn read(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
