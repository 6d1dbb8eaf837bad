//! Where many threads leave commands and one lane takes them: the only part of ingress in which threads meet.
//!
//! A command is written into the open record of its SKU right here, under a short lock; nobody makes a message, a channel's slot or a task
//! of it. The lane takes whole records, oldest first, so commands of one SKU keep the order in which they came. Whoever submitted shares
//! **one** acknowledgement with all others of the record: a delivery report answers them together.
//!
//! What holds whatever the threads do (`model` checks it by trying their orders, `tests` by properties):
//! - a command that got a place is in exactly one record, and the lane gets that record; one that got none is in none;
//! - every record is settled exactly once, and a [`Pending`] that is dropped instead is settled as [`Report::Open`], which is never a lie;
//! - whoever watches a record is woken when it is settled; who goes away leaves the command where it is.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::sync::{Mutex, MutexGuard};
use super::{Delivery, NotSent};
use crate::ids::{Place, SkuId, Ticket};
use crate::kafka::producer::Report;
use crate::kafka::trace_headers::Traced;
use crate::telemetry::trace_context::TraceContext;
use crate::{limits, wire};

/// Told once what became of a command, by whoever settles its record, outside every lock: must be short, must not panic.
pub type OnDelivery = Box<dyn FnOnce(Delivery) + Send>;

/// One partition's collector.
pub struct Collector {
    partition: i32,
    door: Mutex<Door>,
}

/// What the lock protects.
pub struct Door {
    partition: i32,
    capacity: usize,
    /// Oldest first; numbered without gaps, the first one being `first`.
    records: VecDeque<Record>,
    first: u64,
    /// The record of each SKU that takes more commands.
    open: HashMap<SkuId, u64>,
    /// The record that took the last command: a crowd wants one SKU, and looks no further.
    last: u64,
    commands: usize,
    bytes: usize,
    arrived: usize,
    is_closed: bool,
    is_refusing: bool,
    reports: Vec<(u64, Report)>,
    /// The lane sleeps until so many commands wait, or a report comes.
    wake_at: usize,
    sleeper: Option<Waker>,
    spare: Vec<Vec<u8>>,
}

/// A record: its bytes, and those who wait for its report.
#[derive(Debug)]
pub struct Record {
    /// Its key.
    pub sku: SkuId,
    /// Its bytes; complete when it was taken.
    pub payload: Vec<u8>,
    /// Its commands that belong to a trace.
    pub traced: Vec<Traced>,
    /// Those who wait.
    pub pending: Pending,
    /// How much of `payload` is whole commands.
    whole: usize,
}

/// Those who wait for the report of a record. Dropped unsettled, they are told [`Delivery::Unknown`].
pub struct Pending {
    /// Of the record; one more than the record before it.
    pub number: u64,
    /// When it took its first command.
    pub opened_at: Instant,
    commands: usize,
    ack: Arc<Ack>,
    on_delivery: Vec<(u16, OnDelivery)>,
}

/// One acknowledgement for all commands of a record.
struct Ack {
    partition: i32,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    report: Option<Report>,
    /// By the command's index; as long as the highest one that waits.
    wakers: Vec<Option<Waker>>,
}

/// The delivery of a command, as a future. Dropping it takes nothing back.
#[must_use = "the command is on its way; whoever does not want to know drops this on purpose"]
pub struct Submitted(Answer);

enum Answer {
    Now(Delivery),
    Shared { ack: Arc<Ack>, index: u16, is_waiting: bool },
}

/// Brings the report of one record back, from whatever thread. Dropped without a word, it says [`Report::Open`].
pub struct Reporter {
    collector: Arc<Collector>,
    /// Taken when it has spoken.
    number: Option<u64>,
}

impl Collector {
    /// A collector of `partition` for at most `capacity` waiting commands.
    pub fn new(partition: i32, capacity: usize) -> Self {
        let door = Door {
            partition,
            capacity,
            records: VecDeque::new(),
            first: 0,
            open: HashMap::new(),
            last: 0,
            commands: 0,
            bytes: 0,
            arrived: 0,
            is_closed: false,
            is_refusing: false,
            reports: Vec::new(),
            wake_at: 1,
            sleeper: None,
            spare: Vec::new(),
        };
        Self { partition, door: Mutex::new(door) }
    }

    /// Lets `enter` append commands under one lock, then wakes the lane if it waits for as many.
    pub fn enter<R>(&self, enter: impl FnOnce(&mut Door) -> R) -> R {
        let mut door = self.lock();
        let entered = enter(&mut door);
        let sleeper = if door.has_news() { door.sleeper.take() } else { None };
        drop(door);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
        entered
    }

    /// Takes whole records, oldest first: as many as have `commands_max` commands and `bytes_max` bytes together, at least one if there is
    /// any.
    pub fn take(&self, commands_max: usize, bytes_max: usize) -> Vec<Record> {
        let mut taken = Vec::new();
        let (mut commands, mut bytes) = (0, 0);
        let mut door = self.lock();
        while let Some(record) = door.records.front() {
            commands += record.pending.commands;
            bytes += record.whole;
            if !taken.is_empty() && (commands > commands_max || bytes > bytes_max) {
                break;
            }
            taken.extend(door.pop());
        }
        drop(door);
        taken.iter_mut().for_each(Record::finish);
        taken
    }

    /// Takes the records that were opened at `opened_at_max` or before.
    pub fn take_older(&self, opened_at_max: Instant) -> Vec<Record> {
        let mut taken = Vec::new();
        let mut door = self.lock();
        while door.records.front().is_some_and(|record| record.pending.opened_at <= opened_at_max) {
            taken.extend(door.pop());
        }
        taken
    }

    /// Refuses whatever comes from now on, and takes all that waits.
    pub fn refuse(&self) -> Vec<Record> {
        let mut door = self.lock();
        door.is_refusing = true;
        std::iter::from_fn(|| door.pop()).collect()
    }

    /// Ends [`Collector::refuse`].
    pub fn accept(&self) {
        self.lock().is_refusing = false;
    }

    /// Refuses whatever comes, for good; what waits stays.
    pub fn close(&self) {
        self.lock().is_closed = true;
    }

    /// The reports that came since the last call, in their order.
    pub fn take_reports(&self) -> Vec<(u64, Report)> {
        std::mem::take(&mut self.lock().reports)
    }

    /// What waits, and what came since the last call.
    pub fn look(&self) -> Look {
        let mut door = self.lock();
        let opened_at = door.records.front().map(|record| record.pending.opened_at);
        let arrived = std::mem::take(&mut door.arrived);
        Look { commands: door.commands, bytes: door.bytes, records: door.records.len(), opened_at, arrived }
    }

    /// Commands that wait, and their records.
    pub fn waiting(&self) -> (usize, usize) {
        let door = self.lock();
        (door.commands, door.records.len())
    }

    /// Of which partition it is.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Keeps the memory of records that are on their way, for others.
    pub fn recycle(&self, payloads: impl Iterator<Item = Vec<u8>>) {
        let mut door = self.lock();
        for mut payload in payloads {
            if door.spare.len() < limits::LANE_SPARE_RECORDS_MAX {
                payload.clear();
                door.spare.push(payload);
            }
        }
    }

    /// Ready as soon as `wake_at` commands wait, or a report has come. One lane polls it.
    pub fn poll_news(&self, wake_at: usize, context: &Context<'_>) -> Poll<()> {
        let mut door = self.lock();
        door.wake_at = wake_at;
        if door.has_news() {
            return Poll::Ready(());
        }
        door.sleeper = Some(context.waker().clone());
        Poll::Pending
    }

    /// Who brings back the report of record `number`.
    pub fn reporter(self: &Arc<Self>, number: u64) -> Reporter {
        Reporter { collector: Arc::clone(self), number: Some(number) }
    }

    fn lock(&self) -> MutexGuard<'_, Door> {
        // A panic inside leaves at most half a command, beyond `Record::whole`.
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a lane sees of its collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Commands that wait.
    pub commands: usize,
    /// Bytes of their records.
    pub bytes: usize,
    /// Records that they are in.
    pub records: usize,
    /// When the oldest of those was opened.
    pub opened_at: Option<Instant>,
    /// Commands that came since the last look.
    pub arrived: usize,
}

impl Door {
    /// Whether a command may be appended now.
    ///
    /// # Errors
    /// Why not.
    pub fn room(&self) -> Result<(), NotSent> {
        if self.is_closed || self.is_refusing {
            Err(NotSent::Unavailable)
        } else if self.commands >= self.capacity {
            Err(NotSent::Full)
        } else {
            Ok(())
        }
    }

    /// Appends a command of `sku`, for which there is [`Door::room`]. `write` writes it, and nothing else, at the end of the bytes.
    pub fn append(&mut self, sku: &SkuId, write: impl FnOnce(&mut Vec<u8>)) -> Appended<'_> {
        let number = match self.numbered(self.last) {
            Some(record) if record.takes(sku) => self.last,
            _ => self.record_of(sku),
        };
        self.last = number;
        let at = usize::try_from(number - self.first).expect("records that wait are few");
        let record = &mut self.records[at];
        record.payload.truncate(record.whole);
        write(&mut record.payload);
        self.bytes += record.payload.len() - record.whole;
        record.whole = record.payload.len();
        record.pending.commands += 1;
        self.commands += 1;
        self.arrived += 1;
        Appended(record)
    }

    fn numbered(&self, number: u64) -> Option<&Record> {
        self.records.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// The record of `sku` that takes another command, opened if there is none.
    fn record_of(&mut self, sku: &SkuId) -> u64 {
        if let Some(&number) = self.open.get(sku)
            && self.numbered(number).is_some_and(|record| record.takes(sku))
        {
            return number;
        }
        let number = self.first + self.records.len() as u64;
        let payload = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(wire::RECORD_BYTES_TYPICAL));
        let record = Record::open(self.partition, number, sku.clone(), payload);
        self.bytes += record.whole;
        self.records.push_back(record);
        self.open.insert(sku.clone(), number);
        number
    }

    fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front()?;
        self.first += 1;
        self.commands -= record.pending.commands;
        self.bytes -= record.whole;
        if self.open.get(&record.sku) == Some(&record.pending.number) {
            self.open.remove(&record.sku);
        }
        Some(record)
    }

    fn has_news(&self) -> bool {
        self.commands >= self.wake_at || !self.reports.is_empty()
    }
}

/// The record that has just taken a command.
pub struct Appended<'d>(&'d mut Record);

impl Appended<'_> {
    /// Tells `on_delivery` what became of the command.
    pub fn tell(&mut self, on_delivery: OnDelivery) {
        self.0.pending.on_delivery.push((self.0.index(), on_delivery));
    }

    /// Writes the command's trace beside it.
    pub fn trace(&mut self, context: TraceContext, request_id: &str) {
        self.0.traced.push(Traced { index: self.0.index(), context, request_id: request_id.into() });
    }

    /// Its delivery.
    pub fn watch(&self) -> Submitted {
        let ack = Arc::clone(&self.0.pending.ack);
        Submitted(Answer::Shared { ack, index: self.0.index(), is_waiting: false })
    }
}

impl Record {
    fn open(partition: i32, number: u64, sku: SkuId, mut payload: Vec<u8>) -> Self {
        wire::begin(&mut payload, &sku);
        let ack = Arc::new(Ack { partition, shared: Mutex::default() });
        let pending = Pending { number, opened_at: Instant::now(), commands: 0, ack, on_delivery: Vec::new() };
        let whole = payload.len();
        Self { sku, payload, traced: Vec::new(), pending, whole }
    }

    fn takes(&self, sku: &SkuId) -> bool {
        self.pending.commands < limits::RECORD_COMMANDS_MAX && self.sku == *sku
    }

    /// Index of the last command.
    fn index(&self) -> u16 {
        u16::try_from(self.pending.commands - 1).expect("a record has few commands, and at least one here")
    }

    fn finish(&mut self) {
        self.payload.truncate(self.whole);
        wire::finish(&mut self.payload, self.pending.commands);
    }
}

impl Pending {
    /// How many wait.
    pub fn commands(&self) -> usize {
        self.commands
    }

    /// Tells everybody what became of the record.
    pub fn settle(mut self, report: Report) {
        self.tell(report);
    }

    fn tell(&mut self, report: Report) {
        let mut shared = self.ack.lock();
        if shared.report.is_some() {
            return; // dropped after it was settled
        }
        shared.report = Some(report);
        let wakers = std::mem::take(&mut shared.wakers);
        drop(shared);
        for (index, on_delivery) in self.on_delivery.drain(..) {
            on_delivery(delivery(self.ack.partition, report, index));
        }
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.tell(Report::Open);
    }
}

impl Ack {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing panics while it is held.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the report of a record says about one of its commands.
fn delivery(partition: i32, report: Report, index: u16) -> Delivery {
    match report {
        Report::At(offset) => Delivery::Delivered(Ticket { partition, place: Place { offset, index } }),
        Report::Full => Delivery::NotSent(NotSent::Full),
        Report::Refused => Delivery::NotSent(NotSent::Unavailable),
        Report::Open => Delivery::Unknown,
    }
}

impl Submitted {
    /// Known at once.
    pub fn now(delivery: Delivery) -> Self {
        Self(Answer::Now(delivery))
    }
}

impl Future for Submitted {
    type Output = Delivery;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Delivery> {
        let (ack, index, is_waiting) = match &mut self.0 {
            Answer::Now(delivery) => return Poll::Ready(*delivery),
            Answer::Shared { ack, index, is_waiting } => (ack, *index, is_waiting),
        };
        let mut shared = ack.lock();
        let Some(report) = shared.report else {
            let before = shared.place_of(index).replace(context.waker().clone());
            drop(shared);
            // A waker may take a whole task with it: never under the lock.
            drop(before);
            *is_waiting = true;
            return Poll::Pending;
        };
        drop(shared);
        let delivery = delivery(ack.partition, report, index);
        self.0 = Answer::Now(delivery);
        Poll::Ready(delivery)
    }
}

impl Shared {
    fn place_of(&mut self, index: u16) -> &mut Option<Waker> {
        let index = usize::from(index);
        if self.wakers.len() <= index {
            self.wakers.resize(index + 1, None);
        }
        &mut self.wakers[index]
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        if let Answer::Shared { ack, index, is_waiting: true } = &self.0 {
            let waker = ack.lock().wakers.get_mut(usize::from(*index)).and_then(Option::take);
            drop(waker); // not under the lock
        }
    }
}

impl Reporter {
    /// Says what became of the record.
    pub fn report(mut self, report: Report) {
        self.say(report);
    }

    fn say(&mut self, report: Report) {
        if let Some(number) = self.number.take() {
            self.collector.enter(|door| door.reports.push((number, report)));
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.say(Report::Open);
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, commands, .. } = self;
        f.debug_struct("Pending").field("number", number).field("commands", commands).finish_non_exhaustive()
    }
}
