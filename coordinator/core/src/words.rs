//! The closed enums of the contract, each with the text under which it is stored.

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word as it is stored and shown.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
            /// The value of a stored word.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    )*};
}

words! {
    /// Did the execution run?
    Status {
        /// The model answered.
        Succeeded = "succeeded",
        /// It did not, and will not be asked again by itself.
        Failed = "failed",
    }

    /// The state of a job as it is stored; complete is derived (rule J1).
    JobState {
        /// Cells are or may be handed out.
        Open = "open",
        /// Cancelled by a caller.
        Cancelled = "cancelled",
        /// Its deadline passed.
        Expired = "expired",
    }

    /// Why an attempt failed.
    FailureReason {
        /// An error that another try may not meet.
        ProviderError = "provider_error",
        /// The provider refused the input for good.
        ProviderRefused = "provider_refused",
        /// The link to the provider broke.
        Connection = "connection",
        /// The run timeout passed.
        RunTimeout = "run_timeout",
        /// The cold timeout passed.
        ColdTimeout = "cold_timeout",
        /// The program failed.
        Program = "program",
        /// The output is over the limit.
        ResultTooLarge = "result_too_large",
        /// The answer can't be read.
        BadResponse = "bad_response",
        /// Another input ran (rule S6).
        WrongInput = "wrong_input",
        /// Another region served (rule S6).
        WrongRegion = "wrong_region",
        /// Another model served (rule S6).
        WrongModel = "wrong_model",
        /// The lease was lost.
        LeaseLost = "lease_lost",
        /// The store can't hold the result (rule C7).
        StoreRefused = "store_refused",
        /// The provider said 429.
        RateLimited = "rate_limited",
        /// The agent's own configuration is at fault.
        Misconfigured = "misconfigured",
        /// The job requires a reported region and none was reported.
        RegionUnreported = "region_unreported",
        /// The agent's report breaks the contract.
        BadReport = "bad_report",
    }

    /// Where in its course an attempt failed.
    Stage {
        /// Leased and not started.
        Leased = "leased",
        /// Reaching the provider.
        Connect = "connect",
        /// Waiting for the answer.
        Run = "run",
        /// Making the result.
        Result = "result",
        /// Recording.
        Record = "record",
    }

    /// On what the served region rests.
    RegionBasis {
        /// The endpoint said so.
        Reported = "reported",
        /// The agent's certificate names it.
        Certificate = "certificate",
        /// The agent's configuration names it.
        Configured = "configured",
    }

    /// What an entry of the history is.
    AttemptKind {
        /// The agent reported a failure.
        Failed = "failed",
        /// The lease was lost.
        Lost = "lost",
        /// A report that was refused, with its answer.
        Fenced = "fenced",
        /// A record that a retry replaced.
        Replaced = "replaced",
        /// Handed back after it had started.
        Released = "released",
        /// The job was closed under the lease.
        Closed = "closed",
    }

    /// What became of a report.
    ReceiptKind {
        /// This report is the record.
        Recorded = "recorded",
        /// It was recorded before.
        AlreadyRecorded = "already_recorded",
        /// Noted; the cell runs again.
        Retrying = "retrying",
        /// Refused.
        Fenced = "fenced",
    }

    /// Why a report was fenced, or what else is to be known.
    ReceiptReason {
        /// The lease ended first.
        LeaseLost = "lease_lost",
        /// The job was cancelled.
        JobCancelled = "job_cancelled",
        /// The job's deadline passed.
        JobExpired = "job_expired",
        /// Another answer stands under this token.
        Conflict = "conflict",
        /// The record was later replaced.
        Superseded = "superseded",
        /// Never given out here.
        UnknownToken = "unknown_token",
        /// Handed back, revoked or timed out.
        Revoked = "revoked",
    }

    /// Why a lease ended, as its agent is told.
    RevokeReason {
        /// The job was cancelled.
        JobCancelled = "job_cancelled",
        /// The job's deadline passed.
        JobExpired = "job_expired",
        /// Not acknowledged in time.
        NotAcknowledged = "not_acknowledged",
        /// No report within the timeout and one TTL.
        Timeout = "timeout",
        /// Not known to be live.
        NotLive = "not_live",
        /// The session was lost.
        SessionLost = "session_lost",
        /// By an operator.
        Operator = "operator",
        /// Its agent handed it back.
        Released = "released",
    }

    /// Why a lease is handed back.
    ReleaseReason {
        /// The agent stops.
        Draining = "draining",
        /// The provider said 429.
        RateLimited = "rate_limited",
        /// The agent's configuration is at fault.
        Misconfigured = "misconfigured",
        /// The agent can't take it now.
        Overloaded = "overloaded",
        /// The agent's disk can't take results.
        SpoolFull = "spool_full",
        /// Aborted at the orphan limit.
        Orphaned = "orphaned",
    }

    /// Why an agent is to leave its stream.
    GoAwayReason {
        /// The coordinator stops or does not lead.
        NotLeading = "not_leading",
        /// A newer incarnation is there: stop for good.
        Superseded = "superseded",
        /// A newer stream of the same incarnation is there.
        Replaced = "replaced",
        /// It beats and did not answer a HeldRequest in time.
        Unanswered = "unanswered",
    }

    /// Why a cell is not done.
    ///
    /// Invariant: from the most to the least permanent; of several agents' reasons the last one is told.
    WaitReason {
        /// The job is closed.
        JobClosed = "job_closed",
        /// The job is paused.
        Paused = "paused",
        /// No agent of the region.
        NoAgentInRegion = "no_agent_in_region",
        /// No agent of the region serves the model.
        NoAgentWithModel = "no_agent_with_model",
        /// Those that serve it can't reach it.
        AgentMisconfigured = "agent_misconfigured",
        /// Those that serve it take no more leases.
        Draining = "draining",
        /// Those that serve it rest for a moment: they handed leases back, or did not take them in.
        AgentRests = "agent_rests",
        /// The provider said 429.
        GateClosed = "gate_closed",
        /// A failed attempt waits out its backoff.
        Backoff = "backoff",
        /// A cap is reached.
        CapFull = "cap_full",
        /// Since a 429, the provider's gate lets few calls through at once.
        GateFull = "gate_full",
        /// Must run alone on its agent (rule S7).
        WaitsToRunAlone = "waits_to_run_alone",
        /// A place or an agent is kept for a cell that must run alone (rule S7).
        KeptForALoneCell = "kept_for_a_lone_cell",
        /// Every slot is busy.
        NoFreeSlot = "no_free_slot",
        /// An agent holds its lease.
        Leased = "leased",
    }

    /// How far a lease is; it only goes forward.
    LeaseStage {
        /// Sent, not acknowledged.
        Offered = "offered",
        /// Restored from the tables; its agent has not spoken yet.
        Restored = "restored",
        /// Acknowledged, not started.
        Acknowledged = "acknowledged",
        /// It runs.
        Started = "started",
        /// Its result waits in the agent's spool for the receipt.
        Finished = "finished",
    }

    /// What happens to a cell whose lease is lost.
    OnLeaseLost {
        /// Run again, within the attempts.
        Retry = "retry",
        /// Recorded as failed, never run again.
        Fail = "fail",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_back_as_it_was_stored() {
        for &reason in FailureReason::ALL {
            assert_eq!(FailureReason::parse(reason.as_str()), Some(reason));
        }
        for &kind in AttemptKind::ALL {
            assert_eq!(AttemptKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(JobState::parse("complete"), None, "complete is derived, never stored");
    }
}
