//! Every lease that the agent has a word to say about, and where it stands.
//!
//! Invariant: a token is in at most one of `leases`, `results` and `releases`.
//!
//! Invariant: `tally` is the count and XOR of the fencing tokens of all leases, and of those results
//! and releases that are *open*: live at the coordinator, and not yet said on this stream. Both
//! sides take a lease out of the set at the same place in the stream, the agent when it says the
//! report or release, the coordinator when it handles it; so the two sets agree at every heartbeat.

use std::collections::{BTreeMap, VecDeque};

use crate::types::{Held, Lease, ReleaseReason};

/// Count and XOR of the fencing tokens held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub count: u32,
    pub xor: u64,
}

impl Tally {
    fn add(&mut self, fencing: u64) {
        self.count += 1;
        self.xor ^= fencing;
    }

    fn take(&mut self, fencing: u64) {
        assert!(self.count > 0, "more leases were given up than held");
        self.count -= 1;
        self.xor ^= fencing;
    }
}

#[derive(Debug)]
struct Entry<L> {
    fencing: u64,
    /// Its place in the order of arrival.
    arrival: u64,
    stage: Stage<L>,
}

#[derive(Debug)]
enum Stage<L> {
    /// Waits for a slot.
    Queued(L),
    /// A heartbeat of this stream said that it starts; `Start` was not polled yet.
    Announced(L),
    /// `Start` was polled.
    Running,
}

#[derive(Debug)]
struct Finished<R> {
    fencing: u64,
    result: R,
    open: bool,
    /// When it was last said, counted in reports; `None` if never.
    said: Option<u64>,
}

#[derive(Debug)]
struct HandedBack {
    fencing: u64,
    started: bool,
    reason: ReleaseReason,
    message: String,
    open: bool,
}

/// What the end of a lease means for the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its execution runs and must be aborted.
    Running,
    /// Nothing to abort.
    Quiet,
}

#[derive(Debug)]
pub(crate) struct Ledger<T, L, R> {
    leases: BTreeMap<T, Entry<L>>,
    /// The queued leases by arrival.
    queue: BTreeMap<u64, T>,
    arrivals: u64,
    /// Arrived, and not yet acknowledged on this stream. May name leases that have ended since.
    unacknowledged: Vec<T>,
    /// Announced, oldest first. May name leases that have ended since.
    announced: VecDeque<T>,
    /// Leases announced or running: they occupy slots.
    occupied: u32,
    results: BTreeMap<T, Finished<R>>,
    releases: BTreeMap<T, HandedBack>,
    /// Not yet said on this stream, oldest first. May name what has ended since.
    releases_unsaid: VecDeque<T>,
    /// Results never said on any stream, oldest first. May name what has ended since.
    reports_unsaid: VecDeque<T>,
    /// Results said on an earlier stream and not on this one, the one said longest ago first. Their
    /// turn comes after all that were never said, so that a report that is too large for the link
    /// holds up nothing but itself. May name what has ended since.
    reports_again: VecDeque<T>,
    /// How many reports were said so far.
    reports_said: u64,
    tally: Tally,
}

impl<T: Ord + Clone, L, R: Clone> Ledger<T, L, R> {
    pub fn new() -> Self {
        Self {
            leases: BTreeMap::new(),
            queue: BTreeMap::new(),
            arrivals: 0,
            unacknowledged: Vec::new(),
            announced: VecDeque::new(),
            occupied: 0,
            results: BTreeMap::new(),
            releases: BTreeMap::new(),
            releases_unsaid: VecDeque::new(),
            reports_unsaid: VecDeque::new(),
            reports_again: VecDeque::new(),
            reports_said: 0,
            tally: Tally::default(),
        }
    }

    // --- what arrives -----------------------------------------------------------------------

    /// Takes a result of an earlier process. It counts as held only once a Hello has named it.
    pub fn recover(&mut self, token: T, fencing: u64, result: R) {
        self.results.insert(token, Finished { fencing, result, open: false, said: None });
    }

    /// Queues a lease. A token that is known already is a repeat and changes nothing.
    pub fn arrive(&mut self, lease: Lease<T, L>) {
        if self.knows(&lease.token) {
            return;
        }
        let arrival = self.arrivals;
        self.arrivals += 1;
        self.tally.add(lease.fencing);
        self.queue.insert(arrival, lease.token.clone());
        self.unacknowledged.push(lease.token.clone());
        let entry = Entry { fencing: lease.fencing, arrival, stage: Stage::Queued(lease.work) };
        self.leases.insert(lease.token, entry);
    }

    /// The coordinator says that the lease has ended. A result is kept and will be reported all
    /// the same: the coordinator keeps a late answer in its history.
    pub fn end(&mut self, token: &T) -> Ended {
        if let Some(entry) = self.remove(token) {
            self.tally.take(entry.fencing);
            return match entry.stage {
                Stage::Running => Ended::Running,
                Stage::Queued(_) | Stage::Announced(_) => Ended::Quiet,
            };
        }
        if let Some(finished) = self.results.get_mut(token) {
            if std::mem::take(&mut finished.open) {
                self.tally.take(finished.fencing);
            }
        } else if let Some(release) = self.releases.remove(token)
            && release.open
        {
            self.tally.take(release.fencing);
        }
        Ended::Quiet
    }

    /// A run ended with a result. Gives its fencing token; `None` if the run was aborted before,
    /// and then the result is dropped.
    pub fn finish(&mut self, token: &T, result: R) -> Option<u64> {
        if !self.is_running(token) {
            return None;
        }
        let fencing = self.remove(token)?.fencing;
        let finished = Finished { fencing, result, open: true, said: None };
        self.results.insert(token.clone(), finished);
        self.reports_unsaid.push_back(token.clone());
        Some(fencing)
    }

    /// Gives the lease back. An unknown token is one that has ended before.
    pub fn hand_back(&mut self, token: &T, reason: ReleaseReason, message: String) {
        let Some(entry) = self.remove(token) else {
            return;
        };
        let release = HandedBack {
            fencing: entry.fencing,
            started: matches!(entry.stage, Stage::Running),
            reason,
            message,
            open: true,
        };
        self.releases.insert(token.clone(), release);
        self.releases_unsaid.push_back(token.clone());
    }

    /// A receipt came. Gives whether a result was waiting for it.
    pub fn receipt(&mut self, token: &T) -> bool {
        let Some(finished) = self.results.remove(token) else {
            return false;
        };
        if finished.open {
            self.tally.take(finished.fencing);
        }
        true
    }

    // --- what a stream's life does ----------------------------------------------------------

    /// Makes Hello's two lists, held and spooled. From here on all that they name counts as held
    /// until Welcome's verdict, and all reports and releases are to be said again.
    pub fn present(&mut self) -> (Vec<Held<T>>, Vec<T>) {
        for release in self.releases.values_mut() {
            if !std::mem::replace(&mut release.open, true) {
                self.tally.add(release.fencing);
            }
        }
        for finished in self.results.values_mut() {
            if !std::mem::replace(&mut finished.open, true) {
                self.tally.add(finished.fencing);
            }
        }
        self.releases_unsaid = self.releases.keys().cloned().collect();
        let (mut again, never): (Vec<_>, Vec<_>) =
            self.results.iter().partition(|(_, finished)| finished.said.is_some());
        again.sort_by_key(|(_, finished)| finished.said);
        self.reports_again = again.into_iter().map(|(token, _)| token.clone()).collect();
        self.reports_unsaid = never.into_iter().map(|(token, _)| token.clone()).collect();
        self.unacknowledged = self.queue.values().cloned().collect();
        let released =
            self.releases.iter().map(|(token, release)| Held { token: token.clone(), started: release.started });
        let held = self.held_leases().chain(released).collect();
        (held, self.results.keys().cloned().collect())
    }

    /// The stream broke: what was announced on it must be announced again.
    pub fn unannounce(&mut self) {
        for token in std::mem::take(&mut self.announced) {
            let Some(entry) = self.leases.remove(&token) else {
                continue;
            };
            let stage = match entry.stage {
                Stage::Announced(work) => {
                    self.occupied -= 1;
                    self.queue.insert(entry.arrival, token.clone());
                    Stage::Queued(work)
                }
                other => other,
            };
            self.leases.insert(token, Entry { stage, ..entry });
        }
    }

    // --- what is said and done --------------------------------------------------------------

    /// The fencing tokens to acknowledge with the next heartbeat.
    pub fn acknowledge(&mut self) -> Vec<u64> {
        let arrived = std::mem::take(&mut self.unacknowledged);
        let fencing = |token: &T| self.leases.get(token).map(|entry| entry.fencing);
        arrived.iter().filter_map(fencing).collect()
    }

    /// Announces queued leases, oldest first, until `slots` are occupied, and gives their fencing
    /// tokens.
    pub fn announce(&mut self, slots: u32) -> Vec<u64> {
        assert!(self.unacknowledged.is_empty(), "S2: a lease is acknowledged before it starts");
        let mut started = Vec::new();
        while self.occupied < slots {
            let Some((_, token)) = self.queue.pop_first() else {
                break;
            };
            let entry = self.leases.remove(&token);
            let Some(Entry { fencing, arrival, stage: Stage::Queued(work) }) = entry else {
                unreachable!("the queue names queued leases only");
            };
            started.push(fencing);
            let stage = Stage::Announced(work);
            self.leases.insert(token.clone(), Entry { fencing, arrival, stage });
            self.announced.push_back(token);
            self.occupied += 1;
        }
        started
    }

    /// The next announced lease, which runs from now on.
    pub fn start(&mut self) -> Option<(T, L)> {
        while let Some(token) = self.announced.pop_front() {
            let Some(entry) = self.leases.get_mut(&token) else {
                continue;
            };
            match std::mem::replace(&mut entry.stage, Stage::Running) {
                Stage::Announced(work) => return Some((token, work)),
                other => entry.stage = other,
            }
        }
        None
    }

    /// The next report to say on this stream; with it the lease is held no more.
    pub fn say_report(&mut self) -> Option<(T, R)> {
        while let Some(token) = self.reports_unsaid.pop_front().or_else(|| self.reports_again.pop_front()) {
            let Some(finished) = self.results.get_mut(&token) else {
                continue;
            };
            finished.said = Some(self.reports_said);
            self.reports_said += 1;
            if std::mem::take(&mut finished.open) {
                self.tally.take(finished.fencing);
            }
            return Some((token, finished.result.clone()));
        }
        None
    }

    /// The next release to say on this stream; with it the lease is held no more. It is kept, to be
    /// said again on the next stream, until [`Ledger::end`] tells of its durable end.
    pub fn say_release(&mut self) -> Option<(T, ReleaseReason, String)> {
        while let Some(token) = self.releases_unsaid.pop_front() {
            let Some(release) = self.releases.get_mut(&token) else {
                continue;
            };
            if std::mem::take(&mut release.open) {
                self.tally.take(release.fencing);
            }
            return Some((token, release.reason, release.message.clone()));
        }
        None
    }

    // --- what there is ----------------------------------------------------------------------

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// All leases held now: the set that `tally` sums up.
    pub fn held(&self) -> Vec<Held<T>> {
        let results = self.results.iter().filter(|(_, finished)| finished.open);
        let results = results.map(|(token, _)| Held { token: token.clone(), started: true });
        let releases = self.releases.iter().filter(|(_, release)| release.open);
        let releases = releases.map(|(token, release)| Held { token: token.clone(), started: release.started });
        self.held_leases().chain(results).chain(releases).collect()
    }

    fn held_leases(&self) -> impl Iterator<Item = Held<T>> {
        self.leases
            .iter()
            .map(|(token, entry)| Held { token: token.clone(), started: matches!(entry.stage, Stage::Running) })
    }

    /// The tokens of the leases that run, or of those that don't yet.
    pub fn tokens(&self, running: bool) -> Vec<T> {
        let chosen = self.leases.iter().filter(|(_, entry)| matches!(entry.stage, Stage::Running) == running);
        chosen.map(|(token, _)| token.clone()).collect()
    }

    pub fn occupied(&self) -> u32 {
        self.occupied
    }

    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    pub fn results(&self) -> usize {
        self.results.len()
    }

    pub fn releases(&self) -> usize {
        self.releases.len()
    }

    pub fn is_queue_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn has_unacknowledged(&self) -> bool {
        !self.unacknowledged.is_empty()
    }

    /// Whether there is nothing left to do or to hear about.
    pub fn is_idle(&self) -> bool {
        self.leases.is_empty() && self.results.is_empty() && self.releases.is_empty()
    }

    pub fn knows(&self, token: &T) -> bool {
        self.leases.contains_key(token) || self.results.contains_key(token) || self.releases.contains_key(token)
    }

    fn is_running(&self, token: &T) -> bool {
        matches!(self.leases.get(token), Some(entry) if matches!(entry.stage, Stage::Running))
    }

    /// Takes a lease out of everything but the tally.
    fn remove(&mut self, token: &T) -> Option<Entry<L>> {
        let entry = self.leases.remove(token)?;
        match entry.stage {
            Stage::Queued(_) => {
                self.queue.remove(&entry.arrival);
            }
            Stage::Announced(_) | Stage::Running => self.occupied -= 1,
        }
        Some(entry)
    }

    /// Counts everything again and compares. Slow: for tests and the simulator.
    pub fn recount(&self) {
        let mut tally = Tally::default();
        let (mut occupied, mut queued) = (0, 0);
        for (token, entry) in &self.leases {
            tally.add(entry.fencing);
            match entry.stage {
                Stage::Queued(_) => {
                    queued += 1;
                    assert!(self.queue.get(&entry.arrival) == Some(token), "a queued lease has its place in the queue");
                }
                Stage::Announced(_) | Stage::Running => occupied += 1,
            }
            assert!(
                !self.results.contains_key(token) && !self.releases.contains_key(token),
                "a token stands at one place only"
            );
        }
        for (token, finished) in &self.results {
            assert!(!self.releases.contains_key(token), "a token stands at one place only");
            if finished.open {
                tally.add(finished.fencing);
            }
        }
        for release in self.releases.values().filter(|release| release.open) {
            tally.add(release.fencing);
        }
        assert_eq!(tally, self.tally, "S4: the tally is that of the set");
        assert_eq!(occupied, self.occupied, "occupied slots are counted");
        assert_eq!(queued, self.queue.len(), "the queue has no strangers");
    }
}
