//! What goes wrong in a world, and how often: all of it drawn from the seed.

use crate::dice::Dice;

/// A fault that strikes at random times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// The coordinator's process ends; in the embedded mode its agents with it.
    CoordinatorCrash,
    /// The coordinator's process stands still (rule L6).
    CoordinatorSleep,
    /// An agent's process ends; its spool's synced entries stay.
    AgentCrash,
    /// An agent's process stands still.
    AgentSleep,
    /// A further process under an agent's id (rule S5).
    SecondProcess,
    /// An agent's process is told to end, with a grace.
    Shutdown,
    /// A stream breaks and both ends hear of it.
    Broken,
    /// What the agent says gets lost from here on, and nobody hears of it.
    LostUp,
    /// What the coordinator says gets lost from here on.
    LostDown,
    /// Both at once: a half-open stream.
    LostBoth,
    /// A stream's messages take long.
    Stalled,
    /// An agent presents a token that it does not have, or another answer under an old one.
    Forgery,
    /// The commit under way takes very long.
    SlowCommits,
    /// The tables as they were earlier: a restored backup.
    Restore,
    /// An agent can't reach a model for a while.
    ModelUnready,
    /// An agent's spool is full for a while.
    SpoolFull,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::CoordinatorCrash,
        Self::CoordinatorSleep,
        Self::AgentCrash,
        Self::AgentSleep,
        Self::SecondProcess,
        Self::Shutdown,
        Self::Broken,
        Self::LostUp,
        Self::LostDown,
        Self::LostBoth,
        Self::Stalled,
        Self::Forgery,
        Self::SlowCommits,
        Self::Restore,
        Self::ModelUnready,
        Self::SpoolFull,
    ];
}

/// The rates of one seed.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Mean time between two faults of a kind, in milliseconds; in the order of [`Fault::ALL`].
    pub every_ms: [u64; Fault::ALL.len()],
    /// Of 1,000 commits: not applied, and tried again.
    pub commit_fails: u64,
    /// Of 1,000 commits: applied, the answer lost.
    pub answer_lost: u64,
    /// Of 1,000 commits: applied on this server alone, the answer lost; it may fail over to one without it (rule C4).
    pub local_only: u64,
    /// Of 1,000 answers to a caller: lost.
    pub call_lost: u64,
    /// Of 1,000 messages on a stream: swallowed by a faulty agent's edge (rule S4).
    pub swallowed: u64,
    /// Of 1,000 runs: never end by themselves.
    pub hangs: u64,
    /// Of 1,000 runs: fail.
    pub fails: u64,
    /// Of 1,000 runs: handed back.
    pub released: u64,
    /// Of 1,000 answers: another input, region or model (rule S6).
    pub wrong: u64,
    /// Of 1,000 cells: end the process that runs them.
    pub poison: u64,
    /// The most a message takes, in milliseconds.
    pub delay_ms: u64,
    /// The most a commit takes, in milliseconds.
    pub commit_ms: u64,
    /// How long a run takes at the most.
    pub run_ms: u64,
}

impl Faults {
    /// The rates of a seed.
    pub fn draw(dice: &mut Dice) -> Self {
        let mut every_ms = [0; Fault::ALL.len()];
        for (every, fault) in every_ms.iter_mut().zip(Fault::ALL) {
            let usual = match fault {
                Fault::Restore => 400_000,
                Fault::CoordinatorCrash | Fault::CoordinatorSleep | Fault::SecondProcess | Fault::Shutdown => 40_000,
                _ => 20_000,
            };
            *every = (usual / 8) << dice.between(0, 6);
        }
        let mut rate = |most: u64| {
            let shift = dice.between(0, 5);
            most >> shift
        };
        Self {
            every_ms,
            commit_fails: rate(100),
            answer_lost: rate(100),
            local_only: rate(60),
            call_lost: rate(300),
            swallowed: rate(30),
            hangs: rate(60),
            fails: rate(300),
            released: rate(200),
            wrong: rate(200),
            poison: rate(80),
            delay_ms: 5 + rate(2_000),
            commit_ms: 2 + rate(200),
            run_ms: 20 + rate(20_000),
        }
    }

    /// Faults are over: what is left is a network and a machine that work.
    pub fn heal(&mut self) {
        self.commit_fails = 0;
        self.answer_lost = 0;
        self.local_only = 0;
        self.call_lost = 0;
        self.swallowed = 0;
        self.hangs = 0;
        self.wrong = 0;
        self.released = 0;
        self.delay_ms = 50;
        self.commit_ms = 10;
        self.run_ms = self.run_ms.min(2_000);
    }

    /// The time until the next fault of a kind.
    pub fn next_in(&self, kind: usize, dice: &mut Dice) -> u64 {
        dice.between(1, 2 * self.every_ms[kind])
    }
}
