//! From records to a batch: whole records, in log order, without a hole, as many as fit.
//!
//! No I/O: the worker offers what its channel holds. What can't be part of the present batch is carried over to the next; what can't
//! be part of any is an [`Obstacle`], shown only when everything before it is decided.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::poll::Record;
use crate::clock::Millis;
use crate::ids::Place;
use crate::inventory::{Arrival, Logged, PoisonReason, Unfit, arrival_of};
use crate::store::BatchHead;
use crate::telemetry::trace_context::TraceContext;
use crate::wire::{self, DecodeError};

/// Commands of one partition, to be decided together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In log order.
    pub commands: Vec<Logged>,
    /// When the API accepted each command, microseconds since 1970-01-01 UTC; same length and order.
    pub received_at_us: Vec<i64>,
    /// The records' bytes by offset.
    pub records: BTreeMap<i64, Vec<u8>>,
    /// The latest log timestamp.
    pub at_max: Millis,
    /// Which of `commands` belong to a trace, and to which.
    pub traced: Vec<(usize, TraceContext)>,
    /// Digest of the last record, once it was asked for: hashing a full one takes as long as deciding twenty commands.
    last_digest: OnceLock<i64>,
}

impl Batch {
    /// Where it stands, for the fence; `log_time_before` is the partition's last log time.
    ///
    /// # Panics
    /// If the batch is empty.
    pub fn head(&self, log_time_before: Millis) -> BatchHead {
        let (first, _) = self.records.first_key_value().expect("an empty batch is never decided");
        let (last, bytes) = self.records.last_key_value().expect("it has a first record");
        assert_eq!(self.records.len() as i64, last - first + 1, "a batch has no hole");
        BatchHead {
            first_offset: *first,
            position: last + 1,
            log_time_before,
            log_time: log_time_before.max(self.at_max),
            last_digest: *self.last_digest.get_or_init(|| wire::digest(bytes)),
        }
    }

    /// The records' bytes, as the store wants them.
    pub fn raw(&self) -> BTreeMap<i64, &[u8]> {
        self.records.iter().map(|(offset, bytes)| (*offset, bytes.as_slice())).collect()
    }
}

/// Why the log can't be followed further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Offsets are missing.
    Gap { expected: i64, found: i64 },
    /// Written by a newer build.
    UnknownVersion { offset: i64, version: u8 },
    /// The topic does not give log time.
    NoLogTime { offset: i64 },
}

/// Collects the next batch.
#[derive(Debug)]
pub(super) struct Gather {
    next: i64,
    size_max: usize,
    batch: Batch,
    carried: Option<Record>,
}

impl Gather {
    /// Starts at a position; a batch takes at most `size_max` commands, but at least one record.
    pub fn new(position: i64, size_max: usize) -> Self {
        Self { next: position, size_max, batch: Batch::default(), carried: None }
    }

    /// Whether the batch can take no more.
    pub fn is_full(&self) -> bool {
        self.carried.is_some() || self.batch.commands.len() >= self.size_max
    }

    /// Whether there is nothing to decide.
    pub fn is_empty(&self) -> bool {
        self.batch.commands.is_empty()
    }

    /// Commands collected so far.
    pub fn len(&self) -> usize {
        self.batch.commands.len()
    }

    /// Takes a record, or drops it if it was decided before.
    ///
    /// # Errors
    /// An [`Obstacle`], if nothing is left to decide before it; the record is then gone.
    pub fn offer(&mut self, record: Record) -> Result<(), Obstacle> {
        assert!(self.carried.is_none(), "the batch before is taken first");
        match arrival_of(record.offset, self.next) {
            Arrival::Below => return Ok(()),
            Arrival::Gap => return self.meet(record, |g, r| Obstacle::Gap { expected: g.next, found: r.offset }),
            Arrival::Next => {}
        }
        let Some(at) = record.at else {
            return self.meet(record, |_, r| Obstacle::NoLogTime { offset: r.offset });
        };
        let commands = match wire::decode(&record.payload) {
            Ok(decoded) => decoded.commands,
            Err(DecodeError::UnknownVersion(version)) => {
                return self.meet(record, |_, r| Obstacle::UnknownVersion { offset: r.offset, version });
            }
            // One poisoned command stands for the record.
            Err(DecodeError::Undecodable(_)) => vec![wire::Envelope {
                received_at_us: 0,
                request_id: String::new(),
                command: Err(Unfit { id: None, reason: PoisonReason::Malformed }),
            }],
        };
        if !self.is_empty() && self.batch.commands.len() + commands.len() > self.size_max {
            self.carried = Some(record);
            return Ok(());
        }
        self.put(record, at, commands);
        Ok(())
    }

    /// Hands the batch over; [`Gather::restart`] begins the next one.
    pub fn take(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    /// Offers the carried record to the batch that starts now.
    ///
    /// # Errors
    /// As [`Gather::offer`].
    pub fn restart(&mut self) -> Result<(), Obstacle> {
        match self.carried.take() {
            Some(record) => self.offer(record),
            None => Ok(()),
        }
    }

    /// An obstacle ends the batch before it; alone, it is shown.
    fn meet(&mut self, record: Record, obstacle: impl FnOnce(&Self, &Record) -> Obstacle) -> Result<(), Obstacle> {
        if self.is_empty() {
            return Err(obstacle(self, &record));
        }
        self.carried = Some(record);
        Ok(())
    }

    fn put(&mut self, record: Record, at: Millis, commands: Vec<wire::Envelope>) {
        let (first, count) = (self.batch.commands.len(), commands.len());
        let ours = record.traces.iter().filter(|(index, _)| usize::from(*index) < count);
        self.batch.traced.extend(ours.map(|(index, context)| (first + usize::from(*index), *context)));
        for (index, envelope) in commands.into_iter().enumerate() {
            let index = u16::try_from(index).expect("a record holds at most RECORD_COMMANDS_MAX commands");
            let place = Place { offset: record.offset, index };
            self.batch.commands.push(Logged { place, at, command: envelope.command });
            self.batch.received_at_us.push(envelope.received_at_us);
        }
        self.batch.at_max = self.batch.at_max.max(at);
        self.batch.last_digest = OnceLock::new();
        self.next = record.offset + 1;
        self.batch.records.insert(record.offset, record.payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Quantity, SkuId, UserId};
    use crate::inventory::{Command, Reserve};
    use uuid::Uuid;

    /// A record of `count` good commands.
    fn record(offset: i64, count: usize) -> Record {
        let sku = SkuId::parse("s").unwrap();
        let sent: Vec<wire::Sent> = (0..count)
            .map(|n| wire::Sent {
                received_at_us: n as i64,
                request_id: String::new(),
                command: Command::Reserve(Reserve {
                    id: Uuid::from_u128(offset as u128 * 100 + n as u128),
                    user: UserId::parse("u").unwrap(),
                    sku: sku.clone(),
                    quantity: Quantity::new(1).unwrap(),
                    metadata: None,
                }),
            })
            .collect();
        Record {
            offset,
            at: Some(1000 + offset),
            payload: wire::encode(&sku, sent.iter()).unwrap(),
            traces: Vec::new(),
        }
    }

    fn bytes(offset: i64, payload: &[u8]) -> Record {
        Record { offset, at: Some(1), payload: payload.to_vec(), traces: Vec::new() }
    }

    #[test]
    fn traces_stay_with_their_commands() {
        let of = |trace_id| TraceContext { trace_id, span_id: 1, is_sampled: true };
        let mut gather = Gather::new(7, 5);
        // The header of a command that is not there (a foreign producer's) is nobody's.
        let second = Record { traces: vec![(1, of(81)), (0, of(80)), (2, of(82))], ..record(8, 2) };
        for record in [record(7, 2), second] {
            gather.offer(record).expect("they follow each other");
        }
        assert_eq!(gather.take().traced, [(3, of(81)), (2, of(80))]);
        let unreadable = Record { traces: vec![(0, of(9)), (1, of(10))], ..bytes(9, b"nonsense") };
        gather.offer(unreadable).expect("poison is decided too");
        assert_eq!(gather.take().traced, [(0, of(9))]);
    }

    #[test]
    fn a_batch_takes_whole_records_as_many_as_fit() {
        let mut gather = Gather::new(7, 5);
        for r in [record(7, 2), record(8, 2), record(9, 2)] {
            gather.offer(r).unwrap();
        }
        assert!(gather.is_full());
        let batch = gather.take();
        assert_eq!(batch.commands.len(), 4);
        let head = batch.head(5);
        assert_eq!((head.first_offset, head.position, head.log_time), (7, 9, 1008));
        gather.restart().unwrap();
        assert_eq!(gather.len(), 2, "the third record was carried over");
    }

    #[test]
    fn a_batch_takes_at_least_one_record() {
        let mut gather = Gather::new(0, 1);
        gather.offer(record(0, 50)).unwrap();
        assert_eq!(gather.take().commands.len(), 50);
    }

    #[test]
    fn what_was_decided_is_dropped_and_a_gap_is_an_obstacle() {
        let mut gather = Gather::new(5, 10);
        gather.offer(record(4, 1)).unwrap();
        assert!(gather.is_empty());
        assert_eq!(gather.offer(record(6, 1)), Err(Obstacle::Gap { expected: 5, found: 6 }));
    }

    #[test]
    fn an_obstacle_is_shown_only_after_everything_before_it_is_decided() {
        let newer = [b'F', b'S', 9, 1, 0];
        let mut gather = Gather::new(0, 10);
        gather.offer(record(0, 1)).unwrap();
        gather.offer(bytes(1, &newer)).unwrap();
        assert!(gather.is_full());
        assert_eq!(gather.take().commands.len(), 1);
        assert_eq!(gather.restart(), Err(Obstacle::UnknownVersion { offset: 1, version: 9 }));
    }

    #[test]
    fn undecodable_bytes_are_one_poisoned_command() {
        let mut gather = Gather::new(0, 10);
        gather.offer(bytes(0, b"nonsense")).unwrap();
        let batch = gather.take();
        assert_eq!(batch.commands[0].command, Err(Unfit { id: None, reason: PoisonReason::Malformed }));
    }

    #[test]
    fn a_record_without_log_time_is_not_decided() {
        let mut gather = Gather::new(0, 10);
        let unstamped = Record { at: None, ..record(0, 1) };
        assert_eq!(gather.offer(unstamped), Err(Obstacle::NoLogTime { offset: 0 }));
    }
}
