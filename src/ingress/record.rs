//! Requests grouped into records: one SKU each, at most [`limits::RECORD_COMMANDS_MAX`] commands, order per SKU kept.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::request::Request;
use super::{Delivery, NotSent};
use crate::ids::{Place, SkuId, Ticket};
use crate::kafka::producer::Report;
use crate::kafka::trace_headers::Traced;
use crate::{limits, wire};

/// A record to publish.
pub(super) struct Record {
    /// Its key.
    pub(super) sku: SkuId,
    /// Its bytes.
    pub(super) payload: Vec<u8>,
    /// Its commands that belong to a trace.
    pub(super) traced: Vec<Traced>,
}

/// Those who wait for a record's report, in the order of its commands.
pub(super) struct Waiting(Vec<oneshot::Sender<Delivery>>);

impl Waiting {
    /// Answers all of them.
    pub(super) fn answer(self, partition: i32, report: Report) {
        for (index, answer) in (0..).zip(self.0) {
            let delivery = match report {
                Report::At(offset) => Delivery::Delivered(Ticket { partition, place: Place { offset, index } }),
                Report::Full => Delivery::NotSent(NotSent::Full),
                Report::Refused => Delivery::NotSent(NotSent::Unavailable),
                Report::Open => Delivery::Unknown,
            };
            let _ = answer.send(delivery); // its future was dropped, or its time was over
        }
    }
}

/// Groups requests by SKU, in the order in which they came; a full record is followed by another of the same SKU.
pub(super) fn group(requests: impl Iterator<Item = Request>) -> Vec<Vec<Request>> {
    let mut records: Vec<Vec<Request>> = Vec::new();
    let mut open: HashMap<SkuId, usize> = HashMap::new();
    for request in requests {
        let sku = request.sent.command.sku();
        match open.get(sku) {
            Some(&at) if records[at].len() < limits::RECORD_COMMANDS_MAX => records[at].push(request),
            _ => {
                open.insert(sku.clone(), records.len());
                records.push(vec![request]);
            }
        }
    }
    records
}

/// Writes one group as a record.
pub(super) fn encode(group: Vec<Request>) -> (Record, Waiting) {
    let sku = group.first().expect("a group has a first request").sent.command.sku().clone();
    let payload = wire::encode(&sku, group.iter().map(|request| &request.sent))
        .expect("`group` makes records of one SKU, of 1 to RECORD_COMMANDS_MAX commands");
    let traced = (0..).zip(&group).filter_map(|(index, request)| {
        let context = request.trace?;
        Some(Traced { index, context, request_id: request.sent.request_id.as_str().into() })
    });
    let traced = traced.collect();
    let waiting = group.into_iter().map(Request::into_answer).collect();
    (Record { sku, payload, traced }, Waiting(waiting))
}
