//! A request's fields, checked all at once: every fault is named, not the first alone.

use std::collections::BTreeSet;

use semel_core::{
    id::{Cell, JobId, ModelId, QuestionId, RegionId},
    words::Status as Ran,
};
use semel_files::nearest;
use semel_proto::v1 as pb;
use semel_spec::{Fault, Faults, check_id};
use tonic::Status;

use super::{DEFAULT_PAGE_ROWS, Listing, words::Word};
use crate::{
    services::errors,
    specs::JobInput,
    store::{Filter, MAX_PAGE_ROWS},
};

/// Bytes of the words that a caller gives for an act, at most.
pub const MAX_REASON_BYTES: usize = 1_024;

/// Collects the faults of one request.
#[derive(Debug, Default)]
pub struct Check {
    faults: Vec<Fault>,
}

impl Check {
    /// Notes a fault.
    pub fn fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// A job's id.
    pub fn job(&mut self, field: &str, id: &str) -> JobId {
        self.faults.extend(check_id(field, id));
        JobId::new(id)
    }

    /// An id of an axis.
    pub fn id(&mut self, field: &str, id: &str) {
        self.faults.extend(check_id(field, id));
    }

    /// A page's rows: 0 is the default.
    pub fn page_size(&mut self, rows: u32) -> u32 {
        match rows {
            0 => DEFAULT_PAGE_ROWS,
            rows if rows <= MAX_PAGE_ROWS => rows,
            rows => {
                let help = format!("write 1 to {MAX_PAGE_ROWS}, or 0 for {DEFAULT_PAGE_ROWS}");
                self.fault(number_fault("page_size", rows.into(), "is over the limit", &help));
                MAX_PAGE_ROWS
            }
        }
    }

    /// Where the last page of a listing ended; `None` for the first.
    pub fn page_token(&mut self, listing: &Listing, token: &str) -> Option<Vec<u8>> {
        listing.cursor(token).unwrap_or_else(|fault| {
            self.fault(*fault);
            None
        })
    }

    /// A cursor that is a number.
    pub fn page_number(&mut self, listing: &Listing, token: &str) -> Option<u64> {
        let cursor = self.page_token(listing, token)?;
        let number = cursor.try_into().ok().map(u64::from_be_bytes);
        if number.is_none() {
            self.fault(Listing::foreign(token));
        }
        number
    }

    /// A cursor that is a cell.
    pub fn page_cell(&mut self, listing: &Listing, token: &str) -> Option<Cell> {
        let number = self.page_number(listing, token)?;
        let cell = u32::try_from(number).ok();
        if cell.is_none() {
            self.fault(Listing::foreign(token));
        }
        cell.map(Cell)
    }

    /// A cursor that is a job.
    pub fn page_job(&mut self, listing: &Listing, token: &str) -> Option<JobId> {
        let cursor = self.page_token(listing, token)?;
        let id = String::from_utf8(cursor).ok();
        if id.is_none() {
            self.fault(Listing::foreign(token));
        }
        id.map(JobId::new)
    }

    /// Whether a field was found wrong.
    pub fn names(&self, field: &str) -> bool {
        self.faults.iter().any(|fault| fault.path == field)
    }

    /// A number within its bounds, where 0 is the default.
    pub fn range(&mut self, field: &str, value: u32, default: u32, bounds: std::ops::RangeInclusive<u32>) -> u32 {
        if value == 0 {
            return default;
        }
        if !bounds.contains(&value) {
            let help = format!("write {} to {}, or 0 for {default}", bounds.start(), bounds.end());
            self.fault(number_fault(field, value.into(), "is out of its range", &help));
        }
        value
    }

    /// Words of the caller's, at most `most` bytes.
    pub fn words(&mut self, field: &str, text: &str, most: usize) -> String {
        if text.len() > most {
            let problem = format!("has {} bytes, and {most} is the most", text.len());
            self.fault(Fault::of_field(field, Some(text), &problem, "shorten it"));
        }
        super::bounded_text(text, most)
    }

    /// A status that may be left out.
    pub fn status(&mut self, number: i32) -> Option<Ran> {
        if number == 0 {
            return None;
        }
        self.named_status(number)
    }

    /// A status that must be named.
    pub fn named_status(&mut self, number: i32) -> Option<Ran> {
        word("status", number).map_err(|fault| self.fault(*fault)).ok()
    }

    /// A choice of a job's cells. A name that the job doesn't have is a fault: it would choose nothing, silently.
    pub fn filter(&mut self, filter: Option<&pb::CellFilter>, spec: &JobInput) -> Filter {
        let Some(filter) = filter else { return Filter::default() };
        let matrix = &spec.matrix;
        self.axis("regions", "region", &filter.regions, matrix.lanes().iter().map(|lane| lane.region.as_str()));
        self.axis("models", "model", &filter.models, matrix.models().iter().map(|model| model.id.as_str()));
        self.axis("questions", "question", &filter.questions, matrix.questions().iter().map(QuestionId::as_str));
        for (i, repeat) in filter.repeats.iter().enumerate().filter(|(_, r)| **r >= matrix.repeat()) {
            let help = format!("write 0 to {}", matrix.repeat() - 1);
            let field = format!("filter.repeats[{i}]");
            self.fault(number_fault(&field, (*repeat).into(), "is no sample of the job", &help));
        }
        Filter {
            regions: filter.regions.iter().map(|id| RegionId::new(id.as_str())).collect(),
            models: filter.models.iter().map(|id| ModelId::new(id.as_str())).collect(),
            questions: filter.questions.iter().map(|id| QuestionId::new(id.as_str())).collect(),
            repeats: filter.repeats.clone(),
            status: None,
        }
    }

    fn axis<'k>(&mut self, list: &str, what: &str, ids: &[String], known: impl Iterator<Item = &'k str>) {
        if ids.is_empty() {
            return;
        }
        let known: BTreeSet<&str> = known.collect();
        for (i, id) in ids.iter().enumerate().filter(|(_, id)| !known.contains(id.as_str())) {
            let problem = format!("is no {what} of the job");
            let help = match nearest(id, known.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("name a {what} of the job, or none for all"),
            };
            self.fault(Fault::of_field(&format!("filter.{list}[{i}]"), Some(id), &problem, &help));
        }
    }

    /// All is well, or what was found.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with every fault.
    pub fn finish(self) -> Result<(), Status> {
        if self.faults.is_empty() { Ok(()) } else { Err(errors::invalid(&Faults(self.faults))) }
    }

    /// As [`Check::finish`], after the specification was checked as well.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with every fault, those of the request's own fields first.
    pub fn finish_with<T>(mut self, checked: Result<T, Faults>) -> Result<T, Status> {
        match checked {
            Ok(checked) => self.finish().map(|()| checked),
            Err(Faults(more)) => {
                self.faults.extend(more);
                Err(errors::invalid(&Faults(self.faults)))
            }
        }
    }
}

/// A word that must be said.
///
/// # Errors
/// It isn't said, or this version doesn't know it.
pub fn word<W: Word>(field: &str, number: i32) -> Result<W, Box<Fault>> {
    W::from_wire(number).ok_or_else(|| {
        let names: Vec<_> = W::ALL.iter().map(|word| word.wire_name()).collect();
        let problem = if number == 0 { "is not said" } else { "is not known to this version" };
        number_fault(field, number.into(), problem, &format!("send one of {}", names.join(", "))).into()
    })
}

fn number_fault(field: &str, value: i64, problem: &str, help: &str) -> Fault {
    Fault { value: Some(value.to_string()), ..Fault::of_field(field, None, problem, help) }
}
