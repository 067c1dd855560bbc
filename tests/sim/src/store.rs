//! The database: the tables, and the ways in which it fails.

use semel_core::{
    Committed,
    id::{Epoch, Seq},
    log::Sealed,
    tables::{Refused, Tables},
};

use crate::{
    checkers::{Books, Check, Violation, broken},
    coordinator::Fate,
    world::{CommitAnswer, Ev, World, trace},
};

/// The proof of the takeover itself, which is the first commit of its epoch.
#[expect(clippy::disallowed_methods, reason = "this is the simulator's store")]
pub fn takeover(epoch: Epoch) -> Committed {
    Committed::by_store(epoch, Seq(0))
}

/// The tables of the world.
#[derive(Debug, Default)]
pub struct Store {
    /// As they are.
    pub tables: Tables,
    /// As a standby has them that lacks the last writes: those were never acknowledged.
    pub fallback: Option<Box<(Tables, Books)>>,
    /// As they were when a backup was made.
    pub backup: Option<Box<(Tables, Books)>>,
    /// Writes that were acknowledged are gone: the leader has to notice.
    pub lost_writes: bool,
}

impl Store {
    /// Puts a copy away.
    pub fn back_up(&mut self, books: &Books) {
        self.backup = Some(Box::new((self.tables.clone(), books.clone())));
    }
}

impl World {
    /// A commit reaches the database.
    pub(crate) fn applies(&mut self, life: u64, sealed: Sealed, fate: Fate) -> Check {
        if fate == Fate::Fails {
            trace!(self, "commit {}/{} fails", sealed.epoch, sealed.seq.0);
            return self.answer_commit(life, CommitAnswer::Lost(sealed));
        }
        let before = (fate == Fate::LocalOnly && self.store.fallback.is_none())
            .then(|| Box::new((self.store.tables.clone(), self.books.clone())));
        let found = self.store.tables.leadership == Some((sealed.epoch, sealed.seq));
        let answer = match self.store.tables.commit(sealed.epoch, sealed.seq, &sealed.batch) {
            // The tables call it committed though an earlier try had applied it: what comes of that is theirs.
            Ok(proof) if found => CommitAnswer::Proof(proof),
            Ok(proof) => {
                trace!(self, "commit {}/{} applied, {} rows", sealed.epoch, sealed.seq.0, sealed.batch.rows());
                self.applied(sealed.epoch, sealed.seq, &sealed)?;
                match fate {
                    Fate::LocalOnly => {
                        if before.is_some() {
                            self.store.fallback = before;
                            let at = self.dice.between(1, 4_000);
                            self.later(at, Ev::FailsOver);
                        }
                        CommitAnswer::Lost(sealed)
                    }
                    Fate::AnswerLost => {
                        self.store.fallback = None;
                        CommitAnswer::Lost(sealed)
                    }
                    Fate::Succeeds | Fate::Fails => {
                        self.store.fallback = None;
                        CommitAnswer::Proof(proof)
                    }
                }
            }
            Err(Refused::AlreadyApplied) => CommitAnswer::Found,
            Err(Refused::Deposed(_)) if life != self.coordinator.life => return Ok(()),
            Err(Refused::LostWrites) if self.store.lost_writes => CommitAnswer::LostWrites,
            Err(Refused::LostWrites) if life != self.coordinator.life => return Ok(()),
            Err(refused) => return self.wrongly_refused(&sealed, refused),
        };
        self.answer_commit(life, answer)
    }

    fn answer_commit(&mut self, life: u64, answer: CommitAnswer) -> Check {
        let delay = self.dice.skewed(1, self.faults.commit_ms);
        self.later(delay, Ev::CommitAnswered(life, answer));
        Ok(())
    }

    /// What the tables refuse, the core should not have asked for: the books say which promise that is.
    fn wrongly_refused(&mut self, sealed: &Sealed, refused: Refused) -> Check {
        let mut books = self.books.clone();
        books.committed(sealed.epoch, sealed.seq, &sealed.batch, &self.surroundings())?;
        broken("C2", format!("commit {}/{}: {refused:?}", sealed.epoch, sealed.seq.0))
    }

    fn applied(&mut self, epoch: Epoch, seq: Seq, sealed: &Sealed) -> Check {
        let mut books = std::mem::take(&mut self.books);
        let ended = books.committed(epoch, seq, &sealed.batch, &self.surroundings());
        self.books = books;
        for token in ended? {
            if self.running.contains_key(&token) {
                self.later(self.patience_ms(), Ev::MustBeOver(token));
            }
            self.killer_ended(token, &sealed.batch)?;
            self.ran_and_lost(token, &sealed.batch)?;
        }
        for row in &sealed.batch.attempts {
            trace!(
                self,
                "    {} cell {} under {}: {:?}, counted {}, in company {}",
                row.job,
                row.cell.0,
                row.token,
                row.kind,
                row.counted,
                row.in_company
            );
            self.lost_while_running(row)?;
        }
        if seq.0.is_multiple_of(64) {
            self.books.compare(&self.store.tables)?;
        }
        Ok(())
    }

    /// A server that lacks what was never acknowledged takes over.
    pub(crate) fn fails_over(&mut self) -> Check {
        let Some(old) = self.store.fallback.take() else { return Ok(()) };
        trace!(self, "the database fails over to a server at {:?}", old.0.leadership);
        (self.store.tables, self.books) = *old;
        self.store.lost_writes = true;
        self.told.still_true(&self.books)
    }

    /// A backup is restored while no coordinator runs.
    pub(crate) fn restore(&mut self) {
        let Some(old) = self.store.backup.take() else { return };
        trace!(self, "a backup is restored, of {:?}", old.0.leadership);
        (self.store.tables, self.books) = *old;
        self.store.fallback = None;
        self.told.forget();
        self.began.clear();
        // Leases that ended since then are live again, and their agents were told of the end.
        self.processes.iter_mut().for_each(|p| p.witness.received.clear());
        self.clients.answered.iter_mut().for_each(|a| *a = false);
        for plan in 0..self.clients.plans.len() {
            let at = self.dice.between(0, 20_000);
            self.later(at, Ev::Submits(plan));
        }
    }

    /// The leadership is taken. Writes that a standby lacked are acknowledged with it.
    pub(crate) fn take_leadership(&mut self) -> Result<Epoch, Violation> {
        let seconds = (1_000 + self.now / 1_000) as u32;
        let Some(epoch) = self.store.tables.campaign(seconds) else {
            return broken("L2", "the epochs are used up");
        };
        self.store.fallback = None;
        self.store.lost_writes = false;
        self.books.campaigned(epoch)?;
        Ok(epoch)
    }
}
