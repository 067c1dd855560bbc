//! Group commit: decisions fill a batch until it is sealed; a sealed batch never changes (rule C2).

use std::sync::Arc;

use crate::{
    batch::{Batch, MAX_BATCH_BYTES, MAX_BATCH_ROWS},
    event::{Decision, Out, Outbox},
    id::{Epoch, Seq},
};

/// A batch under its number, to be committed after the one before and before the one after.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// The epoch.
    pub epoch: Epoch,
    /// Its number: the commit moves `leadership` from `seq − 1` to `seq`.
    pub seq: Seq,
    /// What must be durable.
    pub batch: Arc<Batch>,
}

/// The order of one epoch's commits, and the batch that is filling.
#[derive(Debug)]
pub struct Log {
    epoch: Epoch,
    sealed: Seq,
    filling: Batch,
    waiting: Vec<Out>,
    outboxes: Vec<Outbox>,
}

impl Log {
    /// The log of an epoch in which nothing was committed but its takeover.
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, sealed: Seq(0), filling: Batch::default(), waiting: vec![], outboxes: vec![] }
    }

    /// Takes a decision in. Returns the batch that had to be sealed first: the decision touches a
    /// key that it touches (rule C3), or it is full.
    pub fn add(&mut self, decision: Decision) -> Option<Sealed> {
        let Decision { batch, outbox, .. } = decision;
        let full = self.filling.rows() + batch.rows() > MAX_BATCH_ROWS
            || self.filling.bytes() + batch.bytes() > MAX_BATCH_BYTES;
        let sealed = if !batch.is_empty() && (full || self.filling.conflicts(&batch)) { self.seal() } else { None };
        self.filling.merge(batch);
        if self.filling.is_empty() && !outbox.is_empty() {
            // It adds nothing, but what it saw may still be in flight: it waits for the last sealed batch (rule C5).
            self.outboxes.push(Outbox { epoch: self.epoch, after: self.sealed, items: outbox });
        } else {
            self.waiting.extend(outbox);
        }
        sealed
    }

    /// Closes the batch that is filling, if there is anything in it.
    pub fn seal(&mut self) -> Option<Sealed> {
        (!self.filling.is_empty()).then(|| self.seal_empty())
    }

    /// Closes the batch that is filling, also if nothing is in it: a commit that proves those before
    /// it, after one that was found by reading (rule C4).
    pub fn seal_empty(&mut self) -> Sealed {
        self.sealed = self.sealed.next();
        let items = std::mem::take(&mut self.waiting);
        if !items.is_empty() {
            self.outboxes.push(Outbox { epoch: self.epoch, after: self.sealed, items });
        }
        Sealed { epoch: self.epoch, seq: self.sealed, batch: Arc::new(std::mem::take(&mut self.filling)) }
    }

    /// The outboxes whose batch is sealed, in order; each opens with the proof of its commit.
    pub fn take_outboxes(&mut self) -> Vec<Outbox> {
        std::mem::take(&mut self.outboxes)
    }
    /// Whether anything waits to be sealed.
    pub fn is_filling(&self) -> bool {
        !self.filling.is_empty()
    }
    /// The number of the last sealed batch.
    pub fn sealed(&self) -> Seq {
        self.sealed
    }
    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}
