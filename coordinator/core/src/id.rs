//! Names and numbers, each a type of its own, ordered and bounded.

use std::{fmt, sync::Arc};

/// The longest id that a person may choose, in bytes: five of them fit PostgreSQL's index entry of 2,704 bytes.
pub const MAX_ID_BYTES: usize = 255;

macro_rules! text_id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is; the edge has checked it.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }
            /// The text, compared byte by byte.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }
    )*};
}

text_id! {
    /// The id of a job within its namespace.
    JobId,
    /// The id of an agent within its namespace.
    AgentId,
    /// A region: an axis of the matrix, and where an agent sits.
    RegionId,
    /// A model's id: an axis of the matrix, not the provider's name for it.
    ModelId,
    /// A question's id: an axis of the matrix.
    QuestionId,
    /// The provider account behind a model on an agent: the unit of rate limits.
    ProviderId,
}

/// A cell's index in its job's matrix (`matrix::Matrix` gives the key). A job has at most 2³² − 1 cells.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cell(pub u32);

/// A cell as a person names it, within its job.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CellKey {
    /// The region axis.
    pub region: RegionId,
    /// The model axis.
    pub model: ModelId,
    /// The question axis.
    pub question: QuestionId,
    /// The sample, from 0.
    pub repeat: u32,
}

/// A job's number in one core's memory: never stored, never said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct JobNo(pub u32);

/// The term of the coordinator that leads a namespace: 1 to 2³¹ − 1, rising at each takeover (promise 7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Epoch(u32);

impl Epoch {
    /// The last epoch that a fencing token can hold.
    pub const MAX: Self = Self(i32::MAX as u32);

    /// An epoch, if it is in its bounds.
    pub fn new(number: u32) -> Option<Self> {
        (1..=Self::MAX.0).contains(&number).then_some(Self(number))
    }
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
    /// The epoch after a takeover (rule L2): it jumps with the clock, so that two leaders that a lost
    /// write made neighbours do not meet. `None` when the epochs are used up.
    pub fn next(stored: Option<Self>, seconds_since_2026: u32) -> Option<Self> {
        let after = stored.map_or(1, |e| e.0.saturating_add(1));
        Self::new(after.max(seconds_since_2026))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a commit within its epoch, from 1; 0 is the takeover itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seq(pub u64);

impl Seq {
    /// The one after.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The monotonic number of a lease (rule C8): epoch in the upper 31 bits, counter in the lower 32.
/// Executors see it as a decimal string, because JSON rounds beyond 2⁵³.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The token of a counter in an epoch.
    pub fn new(epoch: Epoch, counter: u32) -> Self {
        Self(u64::from(epoch.0) << 32 | u64::from(counter))
    }
    /// From its number, as stored or as an agent says it.
    pub fn from_u64(number: u64) -> Option<Self> {
        let epoch = u32::try_from(number >> 32).ok()?;
        Epoch::new(epoch).map(|_| Self(number))
    }
    /// The number; fits a signed 64-bit column.
    pub fn get(self) -> u64 {
        self.0
    }
    /// The epoch in which it was granted.
    pub fn epoch(self) -> Epoch {
        Epoch((self.0 >> 32) as u32)
    }
    /// The token of the `slot`-th lease of the grant that begins here.
    pub fn offset(self, slot: u32) -> Self {
        Self(self.0 + u64::from(slot))
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The random part of the lease tokens of one grant. Not shown by `Debug`: it is a secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nonce(pub [u8; 16]);

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// What an agent presents as proof of a lease: the fencing token and its grant's nonce.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LeaseToken {
    /// The number.
    pub fencing: FencingToken,
    /// The secret.
    pub nonce: Nonce,
}

impl LeaseToken {
    /// The token's 24 bytes on the wire.
    pub fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let (number, nonce) = bytes.split_at_mut(8);
        number.copy_from_slice(&self.fencing.0.to_be_bytes());
        nonce.copy_from_slice(&self.nonce.0);
        bytes
    }
    /// From the wire; `None` if these bytes were never a token.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (number, nonce) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            fencing: FencingToken::from_u64(u64::from_be_bytes(*number))?,
            nonce: Nonce(nonce.try_into().ok()?),
        })
    }
}

/// One start of an agent process: random, said in Hello.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation(pub [u8; 16]);

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A stream of one agent: numbered by the shell, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StreamId(pub u64);

/// A unary call that waits for its answer: numbered by the shell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CallId(pub u64);

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A point on the coordinator's monotonic clock, in milliseconds. Never sent, never stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// The point `ms` later.
    pub fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
    /// The milliseconds from `earlier` to here; 0 if it is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A point of wall-clock time, in milliseconds since the Unix epoch: for people, and for what outlives a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct UnixMs(pub i64);

impl UnixMs {
    /// The point `ms` later.
    pub fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add_unsigned(ms))
    }
    /// The milliseconds from `earlier` to here; 0 if it is later.
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

/// The time of an event, on both clocks of the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Decides.
    pub mono: Millis,
    /// Is stored.
    pub wall: UnixMs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promise_7_a_token_of_a_later_epoch_is_greater_than_every_earlier_one() {
        let (one, two) = (Epoch::new(1).unwrap(), Epoch::new(2).unwrap());
        assert!(FencingToken::new(one, u32::MAX) < FencingToken::new(two, 0));
        let last = FencingToken::new(Epoch::MAX, u32::MAX);
        assert!(i64::try_from(last.get()).is_ok(), "fits a signed column");
        assert_eq!(last.epoch(), Epoch::MAX);
    }

    #[test]
    fn l2_an_epoch_jumps_to_the_clock_and_never_stands_still() {
        let at = |n| Epoch::new(n).unwrap();
        assert_eq!(Epoch::next(None, 0), Some(at(1)));
        assert_eq!(Epoch::next(Some(at(7)), 3), Some(at(8)));
        assert_eq!(Epoch::next(Some(at(7)), 900), Some(at(900)));
        assert_eq!(Epoch::next(Some(Epoch::MAX), 0), None);
    }

    #[test]
    fn a_lease_token_survives_the_wire_and_nothing_else_passes_for_one() {
        let token = LeaseToken { fencing: FencingToken::new(Epoch::new(3).unwrap(), 9), nonce: Nonce([7; 16]) };
        assert_eq!(LeaseToken::from_bytes(&token.to_bytes()), Some(token));
        for bad in [&[][..], &[0; 24], &[0xff; 24], &[1; 23], &[1; 25]] {
            assert_eq!(LeaseToken::from_bytes(bad), None, "{bad:?}");
        }
    }
}
