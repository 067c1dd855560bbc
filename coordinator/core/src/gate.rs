//! Gates of (provider, model, region): what a 429 closes, and how it opens again.
//!
//! Retry-After is a floor; jitter lies on top, so that agents do not come back in the same instant.
//! After it opens, a gate lets few calls through at once and one more with each success (additive
//! increase, multiplicative decrease), so that a limit once met is not met again at full speed.

use std::{collections::BTreeMap, sync::Arc};

use crate::id::{Millis, ModelId, ProviderId, RegionId};

/// The wait after a 429 without a Retry-After; doubled with each that follows before a call succeeds.
const FIRST_WAIT_MS: u64 = 1_000;
/// The longest such wait.
const MAX_WAIT_MS: u64 = 60_000;
/// The longest Retry-After that is believed.
pub(crate) const MAX_RETRY_AFTER_MS: u64 = 3_600_000;
/// Calls at once beyond which a gate no longer limits.
const WIDE_OPEN: u32 = 1_024;

/// A gate's number in one core's memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct GateNo(usize);

#[derive(Debug)]
struct Gate {
    /// Closed until then.
    until: Millis,
    /// Calls at once, while the provider's limit is being felt for.
    limit: Option<u32>,
    /// The last wait without a Retry-After since a call succeeded.
    wait_ms: u64,
    /// Leases that it has let through and that have not ended.
    running: u32,
    /// The provider's words.
    message: Arc<str>,
}

/// All gates that leases ever went through.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    numbers: BTreeMap<(ProviderId, ModelId, RegionId), GateNo>,
    gates: Vec<Gate>,
}

impl Gates {
    /// The gate of a provider's model in a region.
    pub fn number(&mut self, provider: &ProviderId, model: &ModelId, region: &RegionId) -> GateNo {
        let key = (provider.clone(), model.clone(), region.clone());
        *self.numbers.entry(key).or_insert_with(|| {
            self.gates.push(Gate { until: Millis(0), limit: None, wait_ms: 0, running: 0, message: "".into() });
            GateNo(self.gates.len() - 1)
        })
    }
    /// How many leases may go through now.
    pub fn room(&self, gate: GateNo, now: Millis) -> u32 {
        let gate = &self.gates[gate.0];
        if now < gate.until { 0 } else { gate.limit.map_or(u32::MAX, |limit| limit.saturating_sub(gate.running)) }
    }
    /// Until when it is closed, and the provider's words; `None` if it is open.
    pub fn closed(&self, gate: GateNo, now: Millis) -> Option<(u64, &Arc<str>)> {
        let gate = &self.gates[gate.0];
        (now < gate.until).then(|| (gate.until.since(now), &gate.message))
    }
    pub fn enter(&mut self, gate: GateNo, leases: u32) {
        self.gates[gate.0].running += leases;
    }
    pub fn leave(&mut self, gate: GateNo) {
        self.gates[gate.0].running -= 1;
    }
    /// A call succeeded: one more may go at once. Returns whether the gate has met a limit of late.
    pub fn succeeded(&mut self, gate: GateNo) -> bool {
        let gate = &mut self.gates[gate.0];
        let limited = gate.limit.is_some();
        gate.wait_ms = 0;
        gate.limit = gate.limit.map(|limit| limit + 1).filter(|limit| *limit < WIDE_OPEN);
        limited
    }
    /// The provider said 429. Calls that were under way when the gate closed may say so too: they
    /// prolong it, and do not halve it again.
    pub fn rate_limited(
        &mut self,
        gate: GateNo,
        now: Millis,
        retry_after_ms: Option<u64>,
        message: &Arc<str>,
        chance: u64,
    ) {
        let gate = &mut self.gates[gate.0];
        if now >= gate.until {
            gate.limit = Some((gate.running / 2).max(1));
            if retry_after_ms.is_none() {
                gate.wait_ms = (gate.wait_ms * 2).clamp(FIRST_WAIT_MS, MAX_WAIT_MS);
            }
        }
        let floor = retry_after_ms.unwrap_or(gate.wait_ms.max(FIRST_WAIT_MS)).min(MAX_RETRY_AFTER_MS);
        let jitter = chance % (floor / 4 + 1_000);
        gate.until = gate.until.max(now.after(floor + jitter));
        gate.message = message.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_429_closes_the_gate_for_at_least_retry_after_and_then_opens_it_by_one_more_a_success() {
        let mut gates = Gates::default();
        let gate = gates.number(&"p".into(), &"m".into(), &"r".into());
        assert_eq!(gates.room(gate, Millis(0)), u32::MAX);
        gates.enter(gate, 8);
        for chance in [0, u64::MAX] {
            gates.rate_limited(gate, Millis(10), Some(20_000), &"slow down".into(), chance);
        }
        assert_eq!(gates.room(gate, Millis(20_009)), 0);
        let (left, words) = gates.closed(gate, Millis(20_009)).unwrap();
        assert!(left >= 1 && &**words == "slow down");
        (0..8).for_each(|_| gates.leave(gate));
        assert_eq!(gates.room(gate, Millis(40_000)), 4, "halved once, though two calls were refused");
        gates.succeeded(gate);
        assert_eq!(gates.room(gate, Millis(40_000)), 5);
        gates.enter(gate, 5);
        assert_eq!(gates.room(gate, Millis(40_000)), 0);
    }

    #[test]
    fn a_429_without_retry_after_waits_twice_as_long_each_time_until_a_call_succeeds() {
        let mut gates = Gates::default();
        let gate = gates.number(&"p".into(), &"m".into(), &"r".into());
        let mut now = Millis(0);
        let mut waits = |gates: &mut Gates| {
            gates.rate_limited(gate, now, None, &"no".into(), 0);
            let (wait, _) = gates.closed(gate, now).unwrap();
            now = now.after(wait);
            wait
        };
        assert_eq!([(); 8].map(|()| waits(&mut gates)), [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        gates.succeeded(gate);
        assert_eq!(waits(&mut gates), 1_000);
        // A call that was under way succeeds while the gate is closed, and another is refused.
        gates.rate_limited(gate, now, None, &"no".into(), 0);
        gates.succeeded(gate);
        gates.rate_limited(gate, now.after(999), None, &"no".into(), 0);
        assert_eq!(gates.closed(gate, now).map(|(wait, _)| wait), Some(2_000));
    }
}
