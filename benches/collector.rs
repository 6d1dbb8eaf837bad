//! `cargo bench --bench collector`: how fast commands of 64 bytes get from many hands into records, beside the queues that one would take
//! instead. Needs no server.
//!
//! | tier | what is promised |
//! |---|---|
//! | copy | nothing: what one core of this machine copies, 64 bytes at a time, into its cache and into memory |
//! | T0 | nothing: each thread overwrites a buffer of its own and counts (how a peer's billions of messages were counted) |
//! | T1 | lossless, one thread puts in and takes out, every byte checked |
//! | T2 | the same from one thread to another |
//! | T3 | the same from two threads to a third |
//! | T4 | and whoever put a command in learns what became of it |
//!
//! The collector here is the one that the service runs (`flashsale::ingress::collector`), its consumer does what a lane does: takes whole
//! records, reads them, settles them. "burst" = 64 commands under one lock, as the batch endpoint does. A run whose sums differ ends the
//! benchmark. Arms take turns, `BENCH_ROUNDS` (5) times `BENCH_COMMANDS` (2,000,000) commands; the report has medians, and the least and the
//! most, and CPU time beside wall time, because threads that spin look fast on a clock. JSON: `load-tests/results/collector.json`.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use flashsale::ids::SkuId;
use flashsale::ingress::collector::{Collector, Door, Submitted};
use flashsale::ingress::{Delivery, NotSent};
use flashsale::kafka::producer::Report;
use flashsale::limits;

#[path = "support/machine.rs"]
mod machine;

const COMMAND_BYTES: usize = 64;
const BURST: usize = 64;
/// Room of every queue: what a lane has.
const CAPACITY: usize = limits::LANE_QUEUE_MAX;
/// Deliveries that one producer of tier 4 has open at once.
const WINDOW: usize = 256;

/// Commands of one publish: those of level 7.
const TAKEN_AT_ONCE: usize = 512;

type Command = [u64; COMMAND_BYTES / 8];

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The n-th command of a producer: no two are equal.
fn command(producer: u64, n: u64) -> Command {
    let x = (producer << 56) ^ n;
    [x, !x, x << 1, x ^ 0x55, x.rotate_left(17), x ^ 0x1234_5678_9abc, x << 7, x.wrapping_mul(0x9e37_79b9_7f4a_7c15)]
}

fn checksum(command: &Command) -> u64 {
    let [a, b, c, d, e, f, g, h] = *command;
    let left = a.wrapping_add(b.rotate_left(9)).wrapping_add(c.rotate_left(21)) ^ d.rotate_left(33);
    left.wrapping_add(e.rotate_left(41) ^ f.rotate_left(50)).wrapping_add(g ^ h.rotate_left(3))
}

fn as_bytes(command: &Command) -> [u8; COMMAND_BYTES] {
    let mut bytes = [0; COMMAND_BYTES];
    for (place, word) in bytes.chunks_exact_mut(8).zip(command) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn of_bytes(bytes: &[u8]) -> Command {
    let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    std::array::from_fn(|_| words.next().expect("eight words"))
}

/// What went in or came out: how many, and the sum of their checksums, whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    sum: u64,
}

impl Sum {
    fn add(&mut self, command: &Command) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(checksum(command));
    }

    fn join(self, other: Self) -> Self {
        Self { count: self.count + other.count, sum: self.sum.wrapping_add(other.sum) }
    }
}

// ---- the collector ----------------------------------------------------------------------------------------------------------

fn sku() -> SkuId {
    SkuId::parse("sneaker-42").expect("legal")
}

fn collector() -> Arc<Collector> {
    Arc::new(Collector::new(0, CAPACITY))
}

/// Bytes of a record before its first command.
fn head_bytes() -> usize {
    let mut head = Vec::new();
    flashsale::wire::begin(&mut head, &sku());
    head.len()
}

fn append<'d>(
    door: &'d mut Door,
    sku: &SkuId,
    command: &Command,
) -> Result<flashsale::ingress::collector::Appended<'d>, NotSent> {
    door.room()?;
    Ok(door.append(sku, |bytes| bytes.extend_from_slice(&as_bytes(command))))
}

/// Puts `count` commands in, `burst` under one lock; waits where there is no room.
fn put_all(collector: &Collector, producer: u64, count: u64, burst: usize) -> Sum {
    let (sku, mut sent, mut n) = (sku(), Sum::default(), 0);
    while n < count {
        let before = n;
        collector.enter(|door| {
            for _ in 0..burst.min((count - n) as usize) {
                let next = command(producer, n);
                if append(door, &sku, &next).is_err() {
                    return;
                }
                sent.add(&next);
                n += 1;
            }
        });
        if n == before {
            thread::yield_now();
        }
    }
    sent
}

/// Takes what is there, as a lane does.
fn take_some(collector: &Collector, head: usize, read: &mut Sum, offset: &mut i64) -> usize {
    let mut taken = 0;
    let mut payloads = Vec::new();
    for record in collector.take(TAKEN_AT_ONCE, usize::MAX) {
        for bytes in record.payload[head..].chunks_exact(COMMAND_BYTES) {
            read.add(&of_bytes(bytes));
            taken += 1;
        }
        record.pending.settle(Report::At(*offset));
        *offset += 1;
        payloads.push(record.payload);
    }
    collector.recycle(payloads.into_iter());
    taken
}

fn take_all(collector: &Collector, count: u64) -> Sum {
    let (head, mut read, mut offset) = (head_bytes(), Sum::default(), 0);
    while read.count < count {
        if take_some(collector, head, &mut read, &mut offset) == 0 {
            block_on(poll_fn(|context| collector.poll_news(1, context)));
        }
    }
    read
}

fn collector_alone(count: u64, burst: usize) {
    let collector = collector();
    let (head, mut read, mut offset) = (head_bytes(), Sum::default(), 0);
    let mut sent = Sum::default();
    while sent.count < count {
        sent = sent.join(put_all(&collector, sent.count, 512, burst));
        while take_some(&collector, head, &mut read, &mut offset) > 0 {}
    }
    assert_eq!(sent, read);
}

fn collector_across(producers: u64, count: u64, burst: usize) {
    let collector = collector();
    let each = count / producers;
    let (sent, read) = thread::scope(|scope| {
        let putting: Vec<_> = (0..producers)
            .map(|producer| {
                let collector = &collector;
                scope.spawn(move || put_all(collector, producer, each, burst))
            })
            .collect();
        let read = take_all(&collector, each * producers);
        let sent = putting.into_iter().map(|one| one.join().expect("no panic")).fold(Sum::default(), Sum::join);
        (sent, read)
    });
    assert_eq!(sent, read);
}

/// Each command's delivery is awaited, [`WINDOW`] open at once. `burst` of them are put in under one lock.
fn collector_acked(count: u64, burst: usize) {
    let collector = collector();
    let (sent, read) = thread::scope(|scope| {
        let putting = scope.spawn(|| {
            let (sku, mut sent, mut n) = (sku(), Sum::default(), 0);
            let mut open: Vec<Submitted> = Vec::with_capacity(WINDOW);
            while n < count {
                while open.len() < WINDOW && n < count {
                    collector.enter(|door| {
                        for _ in 0..burst.min((count - n) as usize) {
                            let next = command(0, n);
                            let appended = append(door, &sku, &next).expect("the window is smaller than the room");
                            open.push(appended.watch());
                            sent.add(&next);
                            n += 1;
                        }
                    });
                }
                for submitted in open.drain(..) {
                    assert!(matches!(block_on(submitted), Delivery::Delivered(_)));
                }
            }
            sent
        });
        let read = take_all(&collector, count);
        (putting.join().expect("no panic"), read)
    });
    assert_eq!(sent, read);
}

// ---- peers: one put and one take each; both say false where there is no room, or nothing -------------------------------------

fn alone(count: u64, mut put: impl FnMut(Command) -> bool, mut take: impl FnMut() -> Option<Command>) {
    let (mut sent, mut read) = (Sum::default(), Sum::default());
    while sent.count < count {
        for _ in 0..512 {
            let next = command(0, sent.count);
            assert!(put(next), "there is room");
            sent.add(&next);
        }
        while let Some(command) = take() {
            read.add(&command);
        }
    }
    assert_eq!(sent, read);
}

fn put_into(producer: u64, count: u64, mut put: impl FnMut(Command) -> bool) -> Sum {
    let mut sent = Sum::default();
    while sent.count < count {
        let next = command(producer, sent.count);
        while !put(next) {
            thread::yield_now();
        }
        sent.add(&next);
    }
    sent
}

fn take_from(count: u64, mut take: impl FnMut() -> Option<Command>) -> Sum {
    let mut read = Sum::default();
    while read.count < count {
        match take() {
            Some(command) => read.add(&command),
            None => thread::yield_now(),
        }
    }
    read
}

fn across<P: FnMut(Command) -> bool + Send>(puts: Vec<P>, count: u64, take: impl FnMut() -> Option<Command>) {
    let each = count / puts.len() as u64;
    let producers = puts.len() as u64;
    let (sent, read) = thread::scope(|scope| {
        let putting: Vec<_> =
            (0..).zip(puts).map(|(producer, put)| scope.spawn(move || put_into(producer, each, put))).collect();
        let read = take_from(each * producers, take);
        (putting.into_iter().map(|one| one.join().expect("no panic")).fold(Sum::default(), Sum::join), read)
    });
    assert_eq!(sent, read);
}

fn crossbeam_alone(count: u64) {
    let (put, take) = crossbeam_channel::bounded(CAPACITY);
    alone(count, |command| put.try_send(command).is_ok(), || take.try_recv().ok());
}

fn crossbeam_across(producers: usize, count: u64) {
    let (put, take) = crossbeam_channel::bounded(CAPACITY);
    let puts = vec![put; producers].into_iter().map(|put| move |command| put.try_send(command).is_ok()).collect();
    across(puts, count, || take.try_recv().ok());
}

fn flume_alone(count: u64) {
    let (put, take) = flume::bounded(CAPACITY);
    alone(count, |command| put.try_send(command).is_ok(), || take.try_recv().ok());
}

fn flume_across(producers: usize, count: u64) {
    let (put, take) = flume::bounded(CAPACITY);
    let puts = vec![put; producers].into_iter().map(|put| move |command| put.try_send(command).is_ok()).collect();
    across(puts, count, || take.try_recv().ok());
}

fn mpsc_alone(count: u64) {
    let (put, mut take) = tokio::sync::mpsc::channel(CAPACITY);
    alone(count, |command| put.try_send(command).is_ok(), || take.try_recv().ok());
}

fn mpsc_across(producers: usize, count: u64) {
    let (put, mut take) = tokio::sync::mpsc::channel(CAPACITY);
    let puts = vec![put; producers].into_iter().map(|put| move |command| put.try_send(command).is_ok()).collect();
    across(puts, count, || take.try_recv().ok());
}

fn rtrb_alone(count: u64) {
    let (mut put, mut take) = rtrb::RingBuffer::new(CAPACITY);
    alone(count, |command| put.push(command).is_ok(), || take.pop().ok());
}

fn rtrb_across(count: u64) {
    let (mut put, mut take) = rtrb::RingBuffer::new(CAPACITY);
    across(vec![move |command| put.push(command).is_ok()], count, || take.pop().ok());
}

/// In chunks: two atomics for 64 commands.
fn rtrb_bursts(count: u64) {
    let (mut put, mut take) = rtrb::RingBuffer::new(CAPACITY);
    let (sent, read) = thread::scope(|scope| {
        let putting = scope.spawn(move || {
            let mut sent = Sum::default();
            while sent.count < count {
                let burst = BURST.min((count - sent.count) as usize);
                match put.write_chunk_uninit(burst) {
                    Ok(chunk) => {
                        chunk.fill_from_iter(std::iter::from_fn(|| {
                            let next = command(0, sent.count);
                            sent.add(&next);
                            Some(next)
                        }));
                    }
                    Err(_) => thread::yield_now(),
                }
            }
            sent
        });
        let mut read = Sum::default();
        while read.count < count {
            match take.read_chunk(take.slots()) {
                Ok(chunk) if !chunk.is_empty() => chunk.into_iter().for_each(|command| read.add(&command)),
                _ => thread::yield_now(),
            }
        }
        (putting.join().expect("no panic"), read)
    });
    assert_eq!(sent, read);
}

/// The ring's own consumer thread reads; the sum is compared when it has ended.
fn disruptor_across(producers: u64, count: u64, burst: usize) {
    use disruptor::{BusySpin, MultiProducer, Producer, SingleConsumerBarrier};
    let (said, heard) = std::sync::mpsc::sync_channel(1);
    let each = count / producers;
    let all = each * producers;
    let mut read = Sum::default();
    let producer = disruptor::build_multi_producer(CAPACITY, || [0_u64; 8], BusySpin)
        .handle_events_with(move |command: &Command, _, _| {
            read.add(command);
            if read.count == all {
                said.send(read).expect("somebody waits");
            }
        })
        .build();
    let put = move |mut ring: MultiProducer<Command, SingleConsumerBarrier>, producer: u64| {
        let mut sent = Sum::default();
        while sent.count < each {
            let burst = burst.min((each - sent.count) as usize);
            ring.batch_publish(burst, |places| {
                for place in places {
                    *place = command(producer, sent.count);
                    sent.add(place);
                }
            });
        }
        sent
    };
    let putting: Vec<_> = (0..producers)
        .map(|n| {
            let ring = producer.clone();
            thread::spawn(move || put(ring, n))
        })
        .collect();
    let sent = putting.into_iter().map(|one| one.join().expect("no panic")).fold(Sum::default(), Sum::join);
    assert_eq!(sent, heard.recv().expect("the ring reads all"));
}

/// A channel's slot and a oneshot for each command: how one would write it first. Deliveries are awaited, [`WINDOW`] open at once.
fn mpsc_acked(count: u64) {
    use tokio::sync::{mpsc, oneshot};
    let (put, mut take) = mpsc::channel::<(Command, oneshot::Sender<Delivery>)>(CAPACITY);
    let (sent, read) = thread::scope(|scope| {
        let putting = scope.spawn(move || {
            let mut sent = Sum::default();
            let mut open = Vec::with_capacity(WINDOW);
            while sent.count < count {
                while open.len() < WINDOW && sent.count < count {
                    let next = command(0, sent.count);
                    let (answer, answered) = oneshot::channel();
                    put.try_send((next, answer)).expect("the window is smaller than the room");
                    sent.add(&next);
                    open.push(answered);
                }
                for answered in open.drain(..) {
                    assert!(matches!(block_on(answered).expect("answered"), Delivery::Delivered(_)));
                }
            }
            sent
        });
        let mut read = Sum::default();
        let mut gathered = Vec::with_capacity(TAKEN_AT_ONCE);
        let place = flashsale::ids::Place { offset: 0, index: 0 };
        let ticket = flashsale::ids::Ticket { partition: 0, place };
        while block_on(take.recv_many(&mut gathered, TAKEN_AT_ONCE)) > 0 {
            for (command, answer) in gathered.drain(..) {
                read.add(&command);
                answer.send(Delivery::Delivered(ticket)).expect("somebody waits");
            }
        }
        (putting.join().expect("no panic"), read)
    });
    assert_eq!(sent, read);
}

// ---- limits of the machine --------------------------------------------------------------------------------------------------

/// Copies commands one after the other into `bytes`, from the start again at its end: nothing is read, nothing is kept.
fn overwrite(count: u64, bytes: usize) {
    let mut buffer = vec![0_u8; bytes];
    let source = as_bytes(&command(0, 7));
    let mut left = count;
    while left > 0 {
        for place in buffer.chunks_exact_mut(COMMAND_BYTES).take(usize::try_from(left).unwrap_or(usize::MAX)) {
            place.copy_from_slice(black_box(&source));
            left -= 1;
        }
    }
    black_box(&buffer);
}

fn overwrite_on_threads(threads: usize, count: u64) {
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| overwrite(count / threads as u64, 4 << 20));
        }
    });
}

// ---- the run ----------------------------------------------------------------------------------------------------------------

/// Runs a future on this thread, which sleeps meanwhile.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    thread_local! {
        static WAKER: Waker = Waker::from(Arc::new(Unpark(thread::current())));
    }
    let mut future = pin!(future);
    WAKER.with(|waker| {
        loop {
            match future.as_mut().poll(&mut Context::from_waker(waker)) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park(),
            }
        }
    })
}

type Run = Box<dyn Fn(u64)>;

fn arms() -> Vec<(&'static str, &'static str, Run)> {
    fn arm(tier: &'static str, name: &'static str, run: impl Fn(u64) + 'static) -> (&'static str, &'static str, Run) {
        (tier, name, Box::new(run))
    }
    vec![
        arm("copy", "into 16 KiB, in cache", |count| overwrite(count, 16 << 10)),
        arm("copy", "into 64 MiB, in memory", |count| overwrite(count, 64 << 20)),
        arm("T0", "one thread, buffer of 4 MiB", |count| overwrite_on_threads(1, count)),
        arm("T0", "two threads", |count| overwrite_on_threads(2, count)),
        arm("T1", "collector", |count| collector_alone(count, 1)),
        arm("T1", "collector, burst", |count| collector_alone(count, BURST)),
        arm("T1", "rtrb", rtrb_alone),
        arm("T1", "crossbeam-channel", crossbeam_alone),
        arm("T1", "flume", flume_alone),
        arm("T1", "tokio mpsc", mpsc_alone),
        arm("T2", "collector", |count| collector_across(1, count, 1)),
        arm("T2", "collector, burst", |count| collector_across(1, count, BURST)),
        arm("T2", "rtrb", rtrb_across),
        arm("T2", "rtrb, burst", rtrb_bursts),
        arm("T2", "disruptor", |count| disruptor_across(1, count, 1)),
        arm("T2", "disruptor, burst", |count| disruptor_across(1, count, BURST)),
        arm("T2", "crossbeam-channel", |count| crossbeam_across(1, count)),
        arm("T2", "flume", |count| flume_across(1, count)),
        arm("T2", "tokio mpsc", |count| mpsc_across(1, count)),
        arm("T3", "collector", |count| collector_across(2, count, 1)),
        arm("T3", "collector, burst", |count| collector_across(2, count, BURST)),
        arm("T3", "disruptor", |count| disruptor_across(2, count, 1)),
        arm("T3", "disruptor, burst", |count| disruptor_across(2, count, BURST)),
        arm("T3", "crossbeam-channel", |count| crossbeam_across(2, count)),
        arm("T3", "flume", |count| flume_across(2, count)),
        arm("T3", "tokio mpsc", |count| mpsc_across(2, count)),
        arm("T4", "collector", |count| collector_acked(count, 1)),
        arm("T4", "collector, burst", |count| collector_acked(count, BURST)),
        arm("T4", "tokio mpsc + oneshot", mpsc_acked),
    ]
}

fn main() {
    let (rounds, count) = (setting("BENCH_ROUNDS", 5), setting("BENCH_COMMANDS", 2_000_000) as u64);
    let arms = arms();
    let mut walls: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut cpus: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        for (at, (_, _, run)) in arms.iter().enumerate() {
            let (began, cpu) = (Instant::now(), machine::cpu_ns());
            run(count);
            walls.entry(at).or_default().push(began.elapsed().as_nanos() as f64 / count as f64);
            cpus.entry(at).or_default().push((machine::cpu_ns() - cpu) as f64 / count as f64);
        }
    }
    println!("| tier | | M/s (least to most) | ns | CPU-ns | GB/s |\n|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for (at, (tier, name, _)) in arms.iter().enumerate() {
        let wall = machine::spread(&walls[&at]);
        let cpu = machine::spread(&cpus[&at]);
        let rate = |ns: f64| 1e3 / ns;
        println!(
            "| {tier} | {name} | {:.1} ({:.1} to {:.1}) | {:.1} | {:.1} | {:.2} |",
            rate(wall.median),
            rate(wall.most),
            rate(wall.least),
            wall.median,
            cpu.median,
            COMMAND_BYTES as f64 / wall.median
        );
        rows.push(serde_json::json!({
            "tier": tier, "arm": name, "million_per_second": rate(wall.median),
            "ns": {"median": wall.median, "least": wall.least, "most": wall.most},
            "cpu_ns": {"median": cpu.median, "least": cpu.least, "most": cpu.most},
        }));
    }
    let report = serde_json::json!({
        "command": "make bench ARGS=collector", "machine": machine::describe(), "command_bytes": COMMAND_BYTES,
        "commands": count, "rounds": rounds, "arms": rows,
    });
    machine::write_report("collector.json", &report);
}
