//! The events of some rows on their way into the topic.

use std::sync::Arc;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::kafka::EventProducer;
use crate::kafka::event_producer::EventRecord;
use crate::limits;
use crate::outbox::cloud_event::JsonWriter;
use crate::outbox::round::{Held, Round, Row};

/// A flight that ended.
pub(super) struct Landed {
    pub partition: i32,
    pub round: Round,
    /// Reports did not come: what is not known to be published is open.
    pub is_lost: bool,
}

/// Publishes rows of one partition, slice by slice; no new slice after `stop`.
pub(super) async fn fly(
    producer: Arc<EventProducer>,
    source: Arc<str>,
    partition: i32,
    rows: Vec<Row>,
    held: Held,
    stop: CancellationToken,
) -> Landed {
    let mut round = Round::new(partition, rows, held);
    let mut json = JsonWriter::new(&source, partition);
    while !stop.is_cancelled() {
        let slice = round.slice();
        if slice.is_empty() {
            break;
        }
        let record = |at| {
            let event = round.event(at);
            EventRecord { key: event.sku.clone(), value: json.write(event) }
        };
        let records = slice.iter().copied().map(record).collect();
        match timeout(limits::RELAY_FLIGHT_MAX, producer.publish_all(partition, records)).await {
            Ok(reports) => round.report(&slice, reports),
            Err(_) => return Landed { partition, round, is_lost: true },
        }
    }
    Landed { partition, round, is_lost: false }
}
