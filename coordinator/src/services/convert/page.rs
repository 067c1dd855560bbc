//! Page tokens: opaque to callers, and good for the listing that gave them alone.

use semel_proto::v1 as pb;
use semel_spec::Fault;
use sha2::{Digest as _, Sha256};

/// Rows of a page that names no size.
pub const DEFAULT_PAGE_ROWS: u32 = 100;
/// The longest page token, in bytes: of a job's id.
pub const MAX_PAGE_TOKEN_BYTES: usize = 2 * (MARK + semel_spec::MAX_ID_BYTES);

/// Bytes that tell one listing from another.
const MARK: usize = 8;

/// What is listed: the method, and the fields that choose the rows. A token of another listing would
/// go on somewhere in the middle of this one, so it is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listing {
    mark: [u8; MARK],
}

impl Listing {
    /// A listing of a method by these fields.
    pub fn new(method: &str, job: &str, filter: Option<&pb::CellFilter>, status: i32) -> Self {
        let filter = filter.map(prost::Message::encode_to_vec).unwrap_or_default();
        let mut hash = Sha256::new();
        for part in [method.as_bytes(), job.as_bytes(), &filter, &status.to_be_bytes()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut mark = [0; MARK];
        mark.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
        Self { mark }
    }

    /// The token of a page that ended here.
    pub fn token(&self, cursor: &[u8]) -> String {
        self.mark.iter().chain(cursor).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The token of a page that ended at a number.
    pub fn number_token(&self, cursor: u64) -> String {
        self.token(&cursor.to_be_bytes())
    }

    /// Where the page before ended; `None` for the first page.
    ///
    /// # Errors
    /// The token is not one of this listing.
    pub fn cursor(&self, token: &str) -> Result<Option<Vec<u8>>, Box<Fault>> {
        if token.is_empty() {
            return Ok(None);
        }
        let bytes = (token.len() <= MAX_PAGE_TOKEN_BYTES).then(|| bytes_of(token)).flatten();
        let cursor = bytes.as_deref().and_then(|bytes| bytes.strip_prefix(self.mark.as_slice()));
        cursor.map(|cursor| Some(cursor.to_vec())).ok_or_else(|| Self::foreign(token).into())
    }

    /// The fault of a token that this listing did not give.
    pub fn foreign(token: &str) -> Fault {
        let help = "send the next_page_token of the page before, with the same job, filter and status; or none";
        Fault::of_field("page_token", Some(token), "is no token of this listing", help)
    }
}

fn bytes_of(token: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = token.as_bytes().as_chunks::<2>();
    let byte = |&[high, low]: &[u8; 2]| {
        let digit = |d: u8| char::from(d).to_digit(16).filter(|_| !d.is_ascii_uppercase());
        u8::try_from(digit(high)? << 4 | digit(low)?).ok()
    };
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_listing_alone() {
        let filter = pb::CellFilter { regions: vec!["eu".into()], ..pb::CellFilter::default() };
        let listing = Listing::new("ListExecutions", "j", Some(&filter), 0);
        let token = listing.number_token(7);
        assert_eq!(listing.cursor(&token).unwrap().unwrap(), 7u64.to_be_bytes());
        assert_eq!(listing.cursor("").unwrap(), None);
        for other in [
            Listing::new("ListAttempts", "j", Some(&filter), 0),
            Listing::new("ListExecutions", "k", Some(&filter), 0),
            Listing::new("ListExecutions", "j", None, 0),
            Listing::new("ListExecutions", "j", Some(&filter), 2),
        ] {
            assert_eq!(other.cursor(&token).unwrap_err().path, "page_token");
        }
        let long = "0".repeat(MAX_PAGE_TOKEN_BYTES + 2);
        for broken in ["x", "é", "0", "00", &token[1..], &token.to_uppercase(), &long] {
            assert!(listing.cursor(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn the_longest_id_has_a_token() {
        let listing = Listing::new("ListJobs", "", None, 0);
        let id = "é".repeat(semel_spec::MAX_ID_BYTES / 2) + "x";
        assert_eq!(listing.cursor(&listing.token(id.as_bytes())).unwrap().unwrap(), id.as_bytes());
    }
}
