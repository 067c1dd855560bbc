//! What goes in and out of the machine.

/// Numbers the streams that the machine asks for, from 1. Whatever arrives under another number
/// than the current one is dropped (S3).
pub type StreamNumber = u64;

/// What the operator chose for this process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many executions run at once.
    pub slots: u32,
    /// Leases wanted beyond the free slots.
    pub prefetch: u32,
    /// How long work runs on without word from the coordinator, in milliseconds; the session's TTL
    /// if `None`. Longer than the TTL means that a second live call is accepted (S1).
    pub orphan_limit_ms: Option<u64>,
    /// Seeds the jitter of reconnects. Any number; agents should differ in it.
    pub seed: u64,
}

/// A lease as it arrived. `T` is the opaque lease token, `L` is what the execution needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease<T, L> {
    /// The opaque proof; the machine knows the lease by it.
    pub token: T,
    /// The monotonic number inside the token.
    pub fencing: u64,
    /// What runs.
    pub work: L,
}

/// A result found in the spool when the process started.
#[derive(Clone, Debug)]
pub struct Recovered<T, R> {
    /// The lease token of the attempt.
    pub token: T,
    /// Its fencing token.
    pub fencing: u64,
    /// The report.
    pub result: R,
}

/// The coordinator's greeting, as far as the machine needs it.
#[derive(Clone, Debug)]
pub struct Welcome<T> {
    /// How long the session lives after the last acknowledged heartbeat, in milliseconds.
    pub ttl_ms: u64,
    /// How often to send a heartbeat, in milliseconds.
    pub heartbeat_interval_ms: u64,
    /// The tokens of Hello that are not live any more.
    pub lost: Vec<T>,
}

/// A lease in the list of those held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held<T> {
    /// The lease token.
    pub token: T,
    /// Whether its execution has started.
    pub started: bool,
}

/// What is to be sent on the current stream, in the order in which it is polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<T, R> {
    /// First on every stream.
    Hello {
        /// Slots now; 0 drains.
        slots: u32,
        /// Leases held, and those that were handed back and have no Revoke yet.
        held: Vec<Held<T>>,
        /// Leases whose results wait for a receipt.
        spooled: Vec<T>,
    },
    /// A sign of life.
    Heartbeat(Heartbeat),
    /// What became of an attempt; repeated on each new stream until its receipt comes, and then
    /// after those that were never said.
    Report {
        /// The lease token.
        token: T,
        /// The report.
        result: R,
    },
    /// A lease handed back; repeated on each new stream until its Revoke comes.
    Release {
        /// The lease token.
        token: T,
        /// Why.
        reason: ReleaseReason,
        /// More words, for people.
        message: String,
    },
    /// All leases held, as asked for.
    Held {
        /// The number of the last heartbeat before this list.
        number: u64,
        /// The number of the newest request that arrived before this list was made.
        request: u64,
        /// The list.
        leases: Vec<Held<T>>,
    },
    /// Models whose state changed; after a Welcome, all that were ever not ready.
    ModelStates(Vec<ModelState>),
}

/// A sign of life, and what changed since the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Counts up from 1 on each incarnation.
    pub number: u64,
    /// Slots now; 0 drains.
    pub slots: u32,
    /// Fencing tokens of the leases that arrived since the last heartbeat of this stream.
    pub acknowledged: Vec<u64>,
    /// Fencing tokens of the leases that start with this heartbeat.
    pub started: Vec<u64>,
    /// How many leases are held.
    pub held_count: u32,
    /// The exclusive or of their fencing tokens.
    pub held_xor: u64,
}

/// Whether leases of a model are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelState {
    /// The model's id.
    pub id: String,
    /// Whether it can be reached.
    pub ready: bool,
    /// Where not: why.
    pub message: String,
}

/// What the shell is to do on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<T, L, R> {
    /// Dial, and answer with `handle_connected` or `handle_disconnected` under this number. The
    /// stream before it, if any is left, is to be closed.
    Connect {
        /// The number of the new stream.
        stream: StreamNumber,
    },
    /// Close this stream or give up dialling it; nothing more is expected of it.
    Disconnect {
        /// The number of the stream.
        stream: StreamNumber,
    },
    /// Run the execution, and answer with `handle_finished` or `handle_released`.
    Start {
        /// The lease token.
        token: T,
        /// What runs.
        work: L,
    },
    /// End the execution now; what it still brings is dropped.
    Abort {
        /// The lease token.
        token: T,
        /// Why.
        reason: AbortReason,
    },
    /// Write the result to the spool.
    Spool {
        /// The lease token.
        token: T,
        /// Its fencing token.
        fencing: u64,
        /// The report.
        result: R,
    },
    /// The receipt is here: delete the result from the spool, or don't write it.
    Forget {
        /// The lease token.
        token: T,
    },
    /// The machine has ended. No action and no message follows.
    Stop(StopReason),
}

/// Why an execution is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortReason {
    /// The coordinator revoked the lease.
    Revoked,
    /// A Welcome said that the lease is not live any more.
    Lost,
    /// No word from the coordinator for the orphan limit.
    Orphaned,
    /// The grace of a shutdown is over.
    Shutdown,
    /// A newer incarnation of this agent id is there.
    Superseded,
}

/// Why the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A shutdown came to its end. `results_left` wait in the spool for the next start.
    Done {
        /// Results without a receipt.
        results_left: u64,
    },
    /// A newer incarnation of this agent id is there: stop for good.
    Superseded,
}

/// Why a lease is handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseReason {
    /// The agent stops.
    Draining,
    /// The provider said 429.
    RateLimited {
        /// The provider's Retry-After in milliseconds, if it gave one.
        retry_after_ms: Option<u64>,
    },
    /// The agent's own configuration is at fault.
    Misconfigured,
    /// More leases arrived than the agent asked for.
    Overloaded,
    /// The agent's disk can't take results.
    SpoolFull,
    /// No word from the coordinator for the orphan limit.
    Orphaned,
}

/// Why the coordinator closes a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoAway {
    /// It stops or doesn't lead, or the stream was replaced: come back.
    ComeBack,
    /// A newer incarnation of this agent id is there: stop for good.
    Superseded,
}
