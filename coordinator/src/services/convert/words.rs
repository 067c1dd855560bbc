//! The closed enums, both ways. What this version does not know is read as if it had not been said.

use semel_core::words::{
    AttemptKind, FailureReason, GoAwayReason, LeaseStage, ReceiptKind, ReceiptReason, RegionBasis, ReleaseReason,
    RevokeReason, Stage, Status, WaitReason,
};
use semel_proto::v1 as pb;

/// A word that the core and the contract share.
pub trait Word: Copy + 'static {
    /// The contract's enum.
    type Wire: Into<i32>;
    /// Every value.
    const ALL: &'static [Self];
    /// The contract's value; never UNSPECIFIED, which says nothing.
    fn to_wire(self) -> Self::Wire;
    /// Its name in the contract.
    fn wire_name(self) -> &'static str;
    /// The value of a number from the wire; `None` if nothing was said, or what this version does not know.
    fn from_wire(number: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|word| word.to_wire().into() == number)
    }
}

/// The number of a word that may be missing.
pub fn number<W: Word>(word: Option<W>) -> i32 {
    word.map_or(0, |word| word.to_wire().into())
}

macro_rules! words {
    ($($word:ident = $wire:ident { $($variant:ident),* $(,)? })*) => {$(
        impl Word for $word {
            type Wire = pb::$wire;
            const ALL: &'static [Self] = $word::ALL;
            fn to_wire(self) -> pb::$wire {
                // A word that the contract lacks does not compile.
                match self { $($word::$variant => pb::$wire::$variant),* }
            }
            fn wire_name(self) -> &'static str {
                self.to_wire().as_str_name()
            }
        }
    )*};
}

words! {
    Status = ExecutionStatus { Succeeded, Failed }
    FailureReason = FailureReason {
        ProviderError, ProviderRefused, Connection, RunTimeout, ColdTimeout, Program, ResultTooLarge, BadResponse,
        WrongInput, WrongRegion, WrongModel, LeaseLost, StoreRefused, RateLimited, Misconfigured, RegionUnreported,
        BadReport,
    }
    Stage = Stage { Leased, Connect, Run, Result, Record }
    RegionBasis = RegionBasis { Reported, Certificate, Configured }
    AttemptKind = AttemptKind { Failed, Lost, Fenced, Replaced, Released, Closed }
    ReceiptKind = ReceiptKind { Recorded, AlreadyRecorded, Retrying, Fenced }
    ReceiptReason = ReceiptReason {
        LeaseLost, JobCancelled, JobExpired, Conflict, Superseded, UnknownToken, Revoked,
    }
    RevokeReason = RevokeReason {
        JobCancelled, JobExpired, NotAcknowledged, Timeout, NotLive, SessionLost, Operator, Released,
    }
    ReleaseReason = ReleaseReason { Draining, RateLimited, Misconfigured, Overloaded, SpoolFull, Orphaned }
    GoAwayReason = GoAwayReason { NotLeading, Superseded, Replaced, Unanswered }
    WaitReason = WaitReason {
        JobClosed, Paused, NoAgentInRegion, NoAgentWithModel, AgentMisconfigured, Draining, GateClosed, Backoff,
        AgentRests, CapFull, GateFull, WaitsToRunAlone, KeptForALoneCell, NoFreeSlot, Leased,
    }
    LeaseStage = LeaseStage { Offered, Restored, Acknowledged, Started, Finished }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers well beyond the last of any enum.
    const BEYOND: i32 = 100;

    fn covers<W: Word + PartialEq + std::fmt::Debug>(known: impl Fn(i32) -> bool) {
        for number in 1..BEYOND {
            assert_eq!(W::from_wire(number).is_some(), known(number), "{number} of {:?}", W::ALL.first());
        }
        for &word in W::ALL {
            assert_eq!(W::from_wire(number(Some(word))), Some(word));
        }
        assert_eq!(W::from_wire(0), None, "UNSPECIFIED says nothing");
        assert_eq!(W::from_wire(-1), None);
    }

    #[test]
    fn every_word_of_the_contract_is_a_word_of_the_core_and_comes_back() {
        covers::<Status>(|n| pb::ExecutionStatus::try_from(n).is_ok());
        covers::<FailureReason>(|n| pb::FailureReason::try_from(n).is_ok());
        covers::<Stage>(|n| pb::Stage::try_from(n).is_ok());
        covers::<RegionBasis>(|n| pb::RegionBasis::try_from(n).is_ok());
        covers::<AttemptKind>(|n| pb::AttemptKind::try_from(n).is_ok());
        covers::<ReceiptKind>(|n| pb::ReceiptKind::try_from(n).is_ok());
        covers::<ReceiptReason>(|n| pb::ReceiptReason::try_from(n).is_ok());
        covers::<RevokeReason>(|n| pb::RevokeReason::try_from(n).is_ok());
        covers::<ReleaseReason>(|n| pb::ReleaseReason::try_from(n).is_ok());
        covers::<GoAwayReason>(|n| pb::GoAwayReason::try_from(n).is_ok());
        covers::<WaitReason>(|n| pb::WaitReason::try_from(n).is_ok());
        covers::<LeaseStage>(|n| pb::LeaseStage::try_from(n).is_ok());
    }
}
