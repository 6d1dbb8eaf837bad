//! Status answers against a real Postgres and a real log. The writer is played by SQL: rows and positions as a batch would leave them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use flashsale::clock::{Clock, Millis, SystemClock};
use flashsale::ids::{self, Place, Ticket};
use flashsale::inventory::Status;
use flashsale::kafka::LogEnds;
use flashsale::limits;
use flashsale::status::{Found, Queued, StatusReader};
use flashsale::store::Store;
use uuid::Uuid;

use crate::support::database::Database;
use crate::support::kafka::{brokers, fresh_topic, publish_raw};
use crate::support::services::Services;

const PARTITIONS: i32 = 2;

struct Bench {
    database: Database,
    topic: String,
    status: StatusReader,
    clock: Arc<AheadClock>,
}

/// The machine's clock, so many milliseconds ahead.
#[derive(Default)]
struct AheadClock(AtomicI64);

impl Clock for AheadClock {
    fn now(&self) -> Millis {
        SystemClock.now() + self.0.load(Ordering::SeqCst)
    }
}

impl Bench {
    async fn new() -> Self {
        let topic = fresh_topic(PARTITIONS).await;
        let database = Database::fresh(&topic, PARTITIONS).await;
        let log_ends = LogEnds::start(&brokers(), &topic).expect("starts");
        let clock = Arc::new(AheadClock::default());
        let status = StatusReader::start(database.store(), log_ends, clock.clone());
        Self { database, topic, status, clock }
    }

    /// From now on, ids that were just made are old: nothing of theirs can be on its way into the log.
    fn let_ids_grow_old(&self) {
        let window = i64::try_from(limits::LANDING_WINDOW.as_millis()).expect("seconds");
        self.clock.0.fetch_add(window + 60_000, Ordering::SeqCst);
    }

    /// Puts some records into the log; their content does not matter here.
    fn publish(&self, partition: i32, count: usize) {
        publish_raw(&self.topic, partition, "A", &vec![&b"x"[..]; count]);
    }

    /// Moves a position, as a batch does.
    async fn decide_up_to(&self, partition: i32, position: i64) {
        let sql = format!("UPDATE partition_state SET position = {position} WHERE partition = {partition}");
        self.database.run(&sql).await;
    }

    /// Writes a RESERVED row, as a batch does.
    async fn reserve(&self, id: Uuid, ticket: Ticket) {
        let Ticket { partition, place: Place { offset, index } } = ticket;
        let sql = format!(
            "INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, expires_at, quantity, version, partition, log_index,
               status, user_id, sku_id)
             VALUES ('{id}', 1, {offset}, now(), now(), 1, 1, {partition}, {index}, 1, 'u-1', 'A')"
        );
        self.database.run(&sql).await;
    }

    async fn find(&self, id: Uuid, ticket: Option<Ticket>) -> Found {
        self.status.find(id, ticket).await
    }
}

fn start_reader(store: Store, log_ends: LogEnds) -> StatusReader {
    StatusReader::start(store, log_ends, Arc::new(SystemClock))
}

fn ticket(partition: i32, offset: i64, index: u16) -> Ticket {
    Ticket { partition, place: Place { offset, index } }
}

fn assert_reserved(found: Found, id: Uuid) {
    let Found::Decided(row) = found else { panic!("{found:?}") };
    assert_eq!((row.id, row.status, row.version), (id, Status::Reserved, 1));
}

// ---- with a ticket ------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_ticket_at_or_above_the_position_is_queued_and_below_it_decided_or_absent() {
    let bench = Bench::new().await;
    let id = ids::fresh_id();
    bench.publish(0, 10);
    bench.decide_up_to(0, 4).await;
    let queued = |offset, ahead| {
        let eta = Some(limits::ETA_MIN);
        Found::Queued(Queued { ticket: ticket(0, offset, 0), queue_position: Some(ahead), eta })
    };
    assert_eq!(bench.find(id, Some(ticket(0, 4, 0))).await, queued(4, 0), "next");
    assert_eq!(bench.find(id, Some(ticket(0, 9, 0))).await, queued(9, 5), "the last record of the log");
    assert_eq!(bench.find(id, Some(ticket(0, 3, 0))).await, Found::Absent, "decided without this id");
    assert_eq!(bench.find(id, Some(ticket(0, 10, 0))).await, Found::Absent, "beyond the log's end");
    assert_eq!(bench.find(id, Some(ticket(0, i64::MAX, 0))).await, Found::Absent);
    assert_eq!(bench.find(id, Some(ticket(1, 0, 0))).await, Found::Absent, "an empty partition");
    assert_eq!(bench.find(id, Some(ticket(PARTITIONS, 0, 0))).await, Found::Absent, "no such partition");

    bench.reserve(id, ticket(0, 4, 0)).await;
    bench.decide_up_to(0, 5).await;
    for shown in [ticket(0, 4, 0), ticket(0, 9, 0), ticket(1, 77, 0), ticket(PARTITIONS, 0, 0)] {
        assert_reserved(bench.find(id, Some(shown)).await, id);
    }
    bench.database.drop().await;
}

#[tokio::test]
async fn a_log_that_grew_is_seen_by_the_next_request() {
    let bench = Bench::new().await;
    let id = ids::fresh_id();
    assert_eq!(bench.find(id, Some(ticket(0, 0, 0))).await, Found::Absent);
    bench.publish(0, 1);
    assert!(matches!(bench.find(id, Some(ticket(0, 0, 0))).await, Found::Queued(_)));
    bench.database.drop().await;
}

#[tokio::test]
async fn without_the_log_a_ticket_is_queued_unless_it_was_decided() {
    let topic = crate::support::kafka::fresh_name("away");
    let database = Database::fresh(&topic, PARTITIONS).await;
    let status = start_reader(database.store(), LogEnds::start("127.0.0.1:1", &topic).expect("starts without brokers"));
    database.run("UPDATE partition_state SET position = 4").await;
    let id = ids::fresh_id();
    let unknown = Found::Queued(Queued { ticket: ticket(0, 9, 0), queue_position: None, eta: None });
    assert_eq!(status.find(id, Some(ticket(0, 9, 0))).await, unknown, "nobody can say that it is not in the log");
    assert_eq!(status.find(id, Some(ticket(0, 3, 0))).await, Found::Absent);
    // The delivery report of this process is as good as the leader's word.
    status.observe_delivered(ticket(0, 9, 0));
    let Found::Queued(queued) = status.find(id, Some(ticket(0, 9, 0))).await else { panic!("it is queued") };
    assert_eq!(queued.queue_position, Some(5));
    assert_eq!(status.find(id, None).await, Found::Unavailable, "without a ticket nothing can be proved");
    database.drop().await;
}

#[tokio::test]
async fn a_halted_partition_promises_no_time() {
    let bench = Bench::new().await;
    bench.publish(0, 1);
    bench.database.run("UPDATE partition_state SET halted_reason = 'test' WHERE partition = 0").await;
    let Found::Queued(queued) = bench.find(ids::fresh_id(), Some(ticket(0, 0, 0))).await else { panic!("queued") };
    assert_eq!((queued.queue_position, queued.eta), (Some(0), None));
    bench.database.drop().await;
}

// ---- without a ticket -----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn absence_is_said_when_every_partition_is_decided_up_to_the_end() {
    let bench = Bench::new().await;
    bench.let_ids_grow_old();
    let started = Instant::now();
    assert_eq!(bench.find(ids::fresh_id(), None).await, Found::Absent, "an empty log has nothing");
    assert!(started.elapsed() < limits::ABSENCE_PROOF_WAIT, "and says so at once");

    bench.publish(1, 3);
    bench.decide_up_to(1, 2).await;
    let asked = tokio::spawn({
        let status = bench.status.clone();
        async move { status.find(ids::fresh_id(), None).await }
    });
    // Only the other partition moves: no proof.
    bench.decide_up_to(0, 1_000).await;
    assert_eq!(asked.await.expect("no panic"), Found::Unavailable, "the undecided record might be it");

    let (late, unknown) = (ids::fresh_id(), ids::fresh_id());
    let asked = [late, unknown].map(|id| {
        let status = bench.status.clone();
        tokio::spawn(async move { status.find(id, None).await })
    });
    bench.reserve(late, ticket(1, 2, 0)).await;
    bench.decide_up_to(1, 3).await;
    let [late_found, unknown_found] = asked;
    assert_reserved(late_found.await.expect("no panic"), late);
    assert_eq!(unknown_found.await.expect("no panic"), Found::Absent);
    bench.database.drop().await;
}

#[tokio::test]
async fn what_may_still_land_is_not_called_absent() {
    let bench = Bench::new().await;
    // Made just now: it may be on its way into the log by any process.
    let young = ids::fresh_id();
    assert_eq!(bench.find(young, None).await, Found::Unavailable, "a record of unknown outcome may land later");
    // It does.
    bench.publish(0, 1);
    bench.reserve(young, ticket(0, 0, 0)).await;
    bench.decide_up_to(0, 1).await;
    assert_reserved(bench.find(young, None).await, young);
    // An id made of a key tells no time: the process that said "unknown" remembers it.
    let keyed = Uuid::new_v5(&Uuid::NAMESPACE_OID, b"k");
    assert_eq!(bench.find(keyed, None).await, Found::Absent);
    bench.status.note_unknown(keyed);
    assert_eq!(bench.find(keyed, None).await, Found::Unavailable);
    bench.let_ids_grow_old();
    assert_eq!(bench.find(ids::fresh_id(), None).await, Found::Absent, "an old id can't land any more");
    bench.database.drop().await;
}

#[tokio::test]
async fn proofs_and_reads_are_shared_by_many() {
    let bench = Bench::new().await;
    bench.let_ids_grow_old();
    let known = ids::fresh_id();
    bench.reserve(known, ticket(0, 0, 0)).await;
    bench.decide_up_to(0, 1).await;
    let started = Instant::now();
    let asked: Vec<_> = (0..3_000)
        .map(|n| {
            let status = bench.status.clone();
            let id = if n % 3 == 0 { known } else { ids::fresh_id() };
            tokio::spawn(async move { (id, status.find(id, None).await) })
        })
        .collect();
    for one in asked {
        let (id, found) = one.await.expect("no panic");
        if id == known { assert_reserved(found, known) } else { assert_eq!(found, Found::Absent) }
    }
    assert!(started.elapsed() < limits::ABSENCE_PROOF_WAIT, "one query each would take longer");
    bench.database.drop().await;
}

// ---- Postgres away ----------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn while_postgres_is_away_nothing_is_said_and_afterwards_all_is_as_before() {
    let services = Services::start(&["postgres"]).await;
    let topic = fresh_topic(PARTITIONS).await;
    let url = services.address("DATABASE_URL");
    flashsale::store::migrate(&url, &topic, PARTITIONS).await.expect("migrates");
    let store = Store::new(&url, &topic).expect("a legal URL");
    let status = start_reader(store, LogEnds::start(&brokers(), &topic).expect("starts"));
    publish_raw(&topic, 0, "A", &[b"x"]);
    let id = ids::fresh_id();
    let shown = Some(ticket(0, 0, 0));
    assert!(matches!(status.find(id, shown).await, Found::Queued(_)));
    for (harm, repair) in [("pause", "resume"), ("kill", "start")] {
        services.run(harm, &["postgres"]).await;
        for ticket in [shown, None] {
            let started = Instant::now();
            assert_eq!(status.find(id, ticket).await, Found::Unavailable, "{harm}");
            assert!(started.elapsed() < limits::READ_DEADLINE + Duration::from_millis(500), "{harm}: bounded");
        }
        services.run(repair, &["postgres"]).await;
        let back = async || matches!(status.find(id, shown).await, Found::Queued(_));
        crate::support::wait::wait_for("reads work again", Duration::from_secs(20), back).await;
    }
}
