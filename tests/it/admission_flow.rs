//! Admission on the real Postgres and Redis: what is refused, what is published, and that a known key is never refused.

use std::sync::Arc;
use std::time::Duration;

use flashsale::admission::{Admission, Admitted, AdmittedMany, Catalogue, Publish, Refusal, Replay, ReserveRequest};
use flashsale::cache::Cache;
use flashsale::clock::{Clock, SystemClock};
use flashsale::effects::SkuHint;
use flashsale::ids::{IdempotencyKey, Place, Quantity, Ticket};
use flashsale::ingress::{Delivery, NotSent};
use flashsale::kafka::LogEnds;
use flashsale::limits;
use flashsale::status::StatusReader;
use flashsale::store::{PartitionRow, Store};
use futures_util::future::join_all;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::support::commands::{sku, user};
use crate::support::database::Database;
use crate::support::gate::Gate;
use crate::support::kafka::{brokers, fresh_topic, publish_raw};
use crate::support::redis::{self, Space};
use crate::support::wait::{wait_for, wait_for_value};

const PATIENCE: Duration = Duration::from_secs(20);

/// Admission with everything behind it, and one SKU `s` in partition 0: 10 units, 2 per user.
struct World {
    db: Database,
    space: Space,
    catalogue: Catalogue,
    admission: Admission,
}

impl World {
    async fn start() -> Self {
        let space = Space::fresh().await;
        let cache = space.cache.clone();
        Self::with(space, Some(cache)).await
    }

    /// And a SKU `over` whose sale has ended.
    async fn after_the_sale() -> Self {
        let world = Self::start().await;
        world.configure("over", 10, "NULL, to_timestamp(0)").await;
        world
    }

    async fn with(space: Space, cache: Option<Cache>) -> Self {
        let db = Database::fresh(&fresh_topic(1).await, 1).await;
        let catalogue = Catalogue::new(db.store());
        let admission = Admission::start(cache, reader(db.store(), &db.topic), catalogue.clone(), &TaskTracker::new());
        let world = Self { db, space, catalogue, admission };
        world.configure("s", 10, "NULL, NULL").await;
        world
    }

    /// As the writer leaves a SKU; `window` = starts_at, ends_at.
    async fn configure(&self, name: &str, on_hand: i64, window: &str) {
        let values = format!("'{name}', 0, {on_hand}, 0, 0, 'epoch', false, 2, 120, {window}, 0, 3, 600, 1, 1");
        self.db.run(&format!("INSERT INTO sku VALUES ({values})")).await;
    }

    /// As the writer leaves a decision.
    async fn decide(&self, publish: &Publish, quantity: u32) {
        self.decide_id(publish.id, quantity).await;
    }

    async fn decide_id(&self, id: Uuid, quantity: u32) {
        self.db
            .run(&format!(
                "INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, expires_at, quantity, version, partition,
                   log_index, status, user_id, sku_id)
                 VALUES ('{id}', {}, 7, now(), now(), {quantity}, 1, 0, 1, 1, 'u', 's')",
                user("u").hash64(),
            ))
            .await;
    }

    /// Admission of another process.
    fn another(&self, cache: Option<Cache>) -> Admission {
        let catalogue = Catalogue::new(self.db.store());
        Admission::start(cache, reader(self.db.store(), &self.db.topic), catalogue, &TaskTracker::new())
    }

    async fn admit(&self, request: &ReserveRequest) -> Admitted {
        self.admission.admit(request).await
    }

    async fn published(&self, request: &ReserveRequest) -> Publish {
        match self.admit(request).await {
            Admitted::Publish(publish) => publish,
            other => panic!("not published: {other:?}"),
        }
    }

    async fn refused(&self, request: &ReserveRequest) -> Refusal {
        match self.admit(request).await {
            Admitted::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn replayed(&self, request: &ReserveRequest) -> Replay {
        match self.admit(request).await {
            Admitted::Replay(replay) => replay,
            other => panic!("not replayed: {other:?}"),
        }
    }

    fn flag_sold_out(&self, position: i64) {
        let hint = SkuHint { sku: sku("s"), available: 0, holds_pending: true, is_configured: false };
        self.catalogue.apply(0, 1, position, &[hint]);
    }

    fn halt(&self) {
        let row = PartitionRow { partition: 0, epoch: 1, position: 0, halted_reason: Some("a hole".to_owned()) };
        self.catalogue.replace_halted(&[row]);
    }

    async fn end(self) {
        drop((self.admission, self.catalogue));
        self.db.drop().await;
    }
}

fn reader(store: Store, topic: &str) -> StatusReader {
    let log_ends = LogEnds::start(&brokers(), topic).expect("starts");
    StatusReader::start(store, log_ends, Arc::new(SystemClock))
}

fn request(quantity: u32, key: Option<&str>) -> ReserveRequest {
    ReserveRequest {
        user: user("u"),
        sku: sku("s"),
        quantity: Quantity::new(quantity).expect("legal"),
        key: key.map(|key| IdempotencyKey::parse(key).expect("legal")),
        received_at_us: SystemClock.now() * 1000,
    }
}

fn ticket(offset: i64) -> Ticket {
    Ticket { partition: 0, place: Place { offset, index: 1 } }
}

const SOLD_OUT: Refusal = Refusal::SoldOut { available: 0, holds_pending: true };

#[tokio::test]
async fn a_good_request_is_published_to_its_pin() {
    let world = World::start().await;
    let (first, second) = (world.published(&request(1, None)).await, world.published(&request(1, None)).await);
    assert_eq!((first.partition, first.is_retry, first.maybe_accepted), (0, false, None));
    assert_ne!(first.id, second.id);
    assert_eq!(world.refused(&request(1, None)).await, Refusal::UserLimit { limit: 2, remaining: 0 });
    first.settle(&Delivery::NotSent(NotSent::Full));
    second.settle(&Delivery::Unknown);
    let third = wait_for_value("units are given back", PATIENCE, async || match world.admit(&request(1, None)).await {
        Admitted::Publish(publish) => Some(publish),
        _ => None,
    })
    .await;
    third.settle(&Delivery::Delivered(ticket(1)));
    assert_eq!(world.refused(&request(1, None)).await, Refusal::UserLimit { limit: 2, remaining: 0 });
    world.end().await;
}

#[tokio::test]
async fn more_than_the_limit_allows_is_refused_with_what_remains() {
    let world = World::start().await;
    assert_eq!(world.refused(&request(3, None)).await, Refusal::UserLimit { limit: 2, remaining: 2 });
    world.published(&request(1, None)).await;
    assert_eq!(world.refused(&request(3, None)).await, Refusal::UserLimit { limit: 2, remaining: 1 });
    world.end().await;
}

#[tokio::test]
async fn memory_refuses_by_precedence() {
    let world = World::start().await;
    let now = SystemClock.now();
    world.configure("early", 10, &format!("to_timestamp({}), NULL", now / 1000 + 60)).await;
    world.configure("late", 10, &format!("NULL, to_timestamp({})", now / 1000 - 60)).await;
    world.configure("soon", 10, &format!("to_timestamp({}), NULL", now / 1000 + 1)).await;
    let of = |name: &str| ReserveRequest { sku: sku(name), ..request(1, None) };
    assert_eq!(world.refused(&of("nobody-sells-this")).await, Refusal::UnknownSku);
    let starts_at = (now / 1000 + 60) * 1000;
    assert_eq!(world.refused(&of("early")).await, Refusal::SaleNotStarted { starts_at });
    let ends_at = (now / 1000 - 60) * 1000;
    assert_eq!(world.refused(&of("late")).await, Refusal::SaleEnded { ends_at });
    world.published(&of("soon")).await;
    world.flag_sold_out(1);
    assert_eq!(world.refused(&of("s")).await, SOLD_OUT);
    // Behind: the oldest undecided record is older than the intake takes.
    world.catalogue.lag().observe_log_end(0, 9);
    wait_for("the lag grows", PATIENCE, async || world.catalogue.lag().age(0) > limits::INTAKE_LAG_MAX).await;
    assert_eq!(world.refused(&of("s")).await, Refusal::Overloaded { maybe_accepted: None });
    world.halt();
    assert_eq!(world.refused(&of("s")).await, Refusal::Halted { maybe_accepted: None });
    assert_eq!(world.refused(&of("early")).await, Refusal::Halted { maybe_accepted: None });
    world.catalogue.replace_halted(&[]);
    world.catalogue.lag().observe_position(0, 9);
    assert_eq!(world.refused(&of("early")).await, Refusal::SaleNotStarted { starts_at });
    world.end().await;
}

#[tokio::test]
async fn many_are_admitted_one_after_the_other_and_nobody_waits_for_a_look_up() {
    let world = World::after_the_sale().await;
    world.space.age_memory(60).await;
    let over = |key| ReserveRequest { sku: sku("over"), ..request(1, key) };
    let requests = [
        over(Some("late")),
        request(1, None),
        request(2, None),
        request(1, Some("k")),
        request(1, Some("k")),
        over(None),
        ReserveRequest { sku: sku("nope"), ..request(1, None) },
        request(1, None),
    ];
    let ended = Refusal::SaleEnded { ends_at: 0 };
    let AdmittedMany { now, later } = world.admission.admit_many(&requests).await;
    let word = |(at, admitted)| match admitted {
        Admitted::Publish(_) => (at, "publish".to_owned()),
        Admitted::Refused(refusal) => (at, format!("{refusal:?}")),
        Admitted::Replay(replay) => panic!("{replay:?}"),
    };
    let now: Vec<(usize, String)> = now.into_iter().map(word).collect();
    let limited = |remaining| format!("{:?}", Refusal::UserLimit { limit: 2, remaining });
    let expected = [
        (1, "publish".to_owned()),
        (2, limited(1)),
        (3, "publish".to_owned()),
        (5, format!("{ended:?}")),
        (6, format!("{:?}", Refusal::UnknownSku)),
        (7, limited(0)),
    ];
    assert_eq!(now, expected);
    // The key of one was never used: so much Postgres and the log's end must say first. That of the other is pending: it may have a row.
    let [(0, late), (4, pending)] = <[_; 2]>::try_from(later).ok().expect("two") else { panic!("those with a key") };
    assert!(matches!(late.await, Admitted::Refused(refusal) if refusal == ended));
    assert!(matches!(pending.await, Admitted::Publish(publish) if publish.is_retry));
    world.end().await;
}

#[tokio::test]
async fn of_200_posts_with_one_key_one_is_first_and_none_is_refused() {
    let world = World::start().await;
    world.space.age_memory(60).await;
    let one = request(2, Some("k"));
    let all = join_all((0..200).map(|_| world.admit(&one))).await;
    let publishes = all.into_iter().map(|admitted| match admitted {
        Admitted::Publish(publish) => publish,
        other => panic!("{other:?}"),
    });
    let publishes: Vec<_> = publishes.collect();
    assert_eq!(publishes.iter().filter(|publish| !publish.is_retry).count(), 1);
    assert!(publishes.iter().all(|publish| publish.id == publishes[0].id));
    // "Not sent" is the whole truth for the first one only.
    assert!(publishes.iter().all(|publish| publish.maybe_accepted.is_some() == publish.is_retry));
    for publish in publishes {
        publish.settle(&Delivery::Delivered(ticket(4)));
    }
    let replay = wait_for_value("the key is known", PATIENCE, async || match world.admit(&one).await {
        Admitted::Replay(replay) => Some(replay),
        _ => None,
    })
    .await;
    assert_eq!(replay.ticket, Some(ticket(4)));
    assert_eq!(world.refused(&request(1, Some("k"))).await, Refusal::KeyReused);
    let elsewhere = ReserveRequest { sku: sku("unknown"), ..request(2, Some("k")) };
    assert_eq!(world.refused(&elsewhere).await, Refusal::KeyReused, "also for a SKU that nobody sells");
    world.end().await;
}

#[tokio::test]
async fn a_known_key_is_replayed_whatever_would_refuse_it() {
    let world = World::start().await;
    let one = request(2, Some("k"));
    let publish = world.published(&one).await;
    let id = publish.id;
    world.decide(&publish, 2).await;
    publish.settle(&Delivery::Delivered(ticket(7)));
    wait_for("the key is known", PATIENCE, async || matches!(world.admit(&one).await, Admitted::Replay(_))).await;
    world.flag_sold_out(1);
    assert_eq!(world.replayed(&one).await, Replay { id, ticket: Some(ticket(7)), is_decided: false });
    world.halt();
    assert_eq!(world.replayed(&one).await.id, id);
    // Redis flushed: Postgres knows it.
    world.space.flush().await;
    assert_eq!(world.replayed(&one).await, Replay { id, ticket: Some(ticket(7)), is_decided: true });
    assert_eq!(world.refused(&request(1, Some("k"))).await, Refusal::KeyReused, "stored with another quantity");
    world.end().await;
}

#[tokio::test]
async fn a_new_key_is_refused_only_if_redis_can_vouch() {
    let world = World::start().await;
    let ended = Refusal::SaleEnded { ends_at: 0 };
    world.configure("over", 10, "NULL, to_timestamp(0)").await;
    let one = ReserveRequest { sku: sku("over"), ..request(1, Some("new")) };
    assert_eq!(world.refused(&ReserveRequest { key: None, ..one.clone() }).await, ended);
    // A young Redis may have forgotten it: the writer says.
    let publish = world.published(&one).await;
    assert_eq!((publish.is_retry, publish.maybe_accepted), (false, Some(publish.id)));
    publish.settle(&Delivery::NotSent(NotSent::Unavailable));
    // For now, and nobody knows: it says so.
    world.halt();
    let refusal = world.refused(&one).await;
    assert!(matches!(refusal, Refusal::Halted { maybe_accepted: Some(_) }), "{refusal:?}");
    world.catalogue.replace_halted(&[]);
    // Old enough: refused. A request that was not sent left no gap.
    world.space.age_memory(60).await;
    assert_eq!(world.refused(&one).await, ended);
    world.halt();
    assert_eq!(world.refused(&one).await, Refusal::Halted { maybe_accepted: None });
    world.end().await;
}

#[tokio::test]
async fn a_retry_in_a_later_minute_is_accounted_where_its_units_are() {
    const MINUTE_US: i64 = 60_000_000;
    let world = World::start().await;
    let one = request(2, Some("k"));
    let first = world.published(&one).await;
    assert_eq!(first.received_at_us, one.received_at_us);
    drop(first); // nobody knows what became of it
    for (minutes_later, is_accounted_there) in [(0, true), (1, true), (2, true), (10, false)] {
        let received_at_us = one.received_at_us + minutes_later * MINUTE_US;
        let retry = world.published(&ReserveRequest { received_at_us, ..one.clone() }).await;
        assert!(retry.is_retry);
        let minute = retry.received_at_us.div_euclid(MINUTE_US);
        let first_minute = one.received_at_us.div_euclid(MINUTE_US);
        assert_eq!(minute == first_minute, is_accounted_there, "{minutes_later} minutes later");
        assert!(is_accounted_there || retry.received_at_us == received_at_us, "its units have expired");
    }
    world.end().await;
}

const ENDED: Refusal = Refusal::SaleEnded { ends_at: 0 };

/// For a SKU that everybody's memory refuses.
fn late(key: &str) -> ReserveRequest {
    ReserveRequest { sku: sku("over"), ..request(1, Some(key)) }
}

/// Puts the request's record into the log, as ingress does; what is in it does not matter here.
fn deliver(world: &World, publish: Publish, offset: i64) {
    publish_raw(&world.db.topic, 0, "s", &[b"x"]);
    publish.settle(&Delivery::Delivered(ticket(offset)));
}

#[tokio::test]
async fn what_another_process_accepted_without_a_marker_is_not_refused() {
    let world = World::after_the_sale().await;
    world.space.age_memory(3600).await;
    // The other process can't reach Redis and answers 202.
    let other = world.another(None);
    let one = late("k");
    let Admitted::Publish(accepted) = other.admit(&one).await else { panic!("it can't prove anything") };
    let id = accepted.id;
    deliver(&world, accepted, 0);
    // Redis is old and does not know the key, Postgres neither: only the log tells, and it is not decided.
    let again = world.published(&one).await;
    assert_eq!(again.id, id);
    again.settle(&Delivery::NotSent(NotSent::Full));
    let decide = async {
        world.decide_id(id, 1).await;
        world.db.run("UPDATE partition_state SET position = 1").await;
    };
    let (answer, ()) = tokio::join!(world.replayed(&one), decide);
    assert_eq!((answer.id, answer.is_decided), (id, true), "the refusal waits for what is in the log");
    let stranger = late("another key");
    assert_eq!(world.refused(&stranger).await, ENDED, "everything is decided and nothing is of this key");
    world.end().await;
}

#[tokio::test]
async fn a_keyed_crowd_is_refused_as_soon_as_redis_has_come_of_age() {
    const CROWD: i64 = 50;
    let world = World::after_the_sale().await;
    let of = |n: i64| ReserveRequest { user: user(&format!("u-{n}")), ..late("k") };
    for n in 0..CROWD {
        deliver(&world, world.published(&of(n)).await, n);
    }
    for n in 0..CROWD {
        wait_for("the key is known", PATIENCE, async || matches!(world.admit(&of(n)).await, Admitted::Replay(_))).await;
    }
    world.space.age_memory(60).await;
    // Of age, but the log is not decided.
    deliver(&world, world.published(&of(CROWD)).await, CROWD);
    wait_for("the key is known", PATIENCE, async || matches!(world.admit(&of(CROWD)).await, Admitted::Replay(_))).await;
    world.db.run(&format!("UPDATE partition_state SET position = {}", CROWD + 1)).await;
    // At the first look: none of those publishes made its memory any younger.
    assert_eq!(world.refused(&of(CROWD + 1)).await, ENDED);
    assert_eq!(world.refused(&of(CROWD + 2)).await, ENDED);
    world.end().await;
}

#[tokio::test]
async fn an_unproved_request_of_unknown_outcome_is_not_refused_later() {
    let world = World::after_the_sale().await;
    let one = late("k");
    // Redis is too young to prove anything. Nobody hears what became of the record, which is on its way.
    let first = world.published(&one).await;
    let id = first.id;
    drop(first);
    wait_for("redis is told", PATIENCE, async || world.space.keys().await.len() == 2).await;
    world.space.age_memory(3600).await;
    let again = world.published(&one).await;
    assert_eq!((again.id, again.is_retry, again.maybe_accepted), (id, true, Some(id)));
    world.end().await;
}

#[tokio::test]
async fn redis_is_told_of_a_gap_as_soon_as_it_can_be_reached() {
    let world = World::after_the_sale().await;
    world.space.age_memory(3600).await;
    let gate = Gate::shut(&redis::server_url()).await;
    let cut_off = Cache::with_deadline(&gate.url, &world.space.prefix, PATIENCE).expect("a legal URL");
    let other = world.another(Some(cut_off));
    let one = late("k");
    let Admitted::Publish(first) = other.admit(&one).await else { panic!("it can't prove anything") };
    let id = first.id;
    first.settle(&Delivery::Unknown);
    gate.refuses_a_call().await;
    gate.open();
    // Nobody asks that process anything meanwhile.
    let before: i64 = world.space.ask("GET {}birth").await;
    wait_for("redis counts anew", PATIENCE, async || world.space.ask::<i64>("GET {}birth").await > before).await;
    assert_eq!(world.published(&one).await.id, id);
    world.end().await;
}

#[tokio::test]
async fn without_redis_everything_is_admitted_that_memory_does_not_refuse() {
    let cache = Cache::new("redis://127.0.0.1:1", "t:").expect("a legal URL");
    let world = World::with(Space::fresh().await, Some(cache)).await;
    for _ in 0..20 {
        world.published(&request(2, None)).await;
    }
    assert_eq!(world.refused(&request(3, None)).await, Refusal::UserLimit { limit: 2, remaining: 2 });
    world.flag_sold_out(1);
    assert_eq!(world.refused(&request(1, None)).await, SOLD_OUT);
    world.published(&request(1, Some("k"))).await;
    world.end().await;
}

#[tokio::test]
async fn a_postgres_that_is_away_is_said_so() {
    let db = flashsale::store::Store::new("postgres://nobody@127.0.0.1:1/none", "t").expect("a legal URL");
    let catalogue = Catalogue::new(db.clone());
    let admission = Admission::start(None, reader(db, "t"), catalogue, &TaskTracker::new());
    let refused = admission.admit(&request(1, None)).await;
    assert!(matches!(refused, Admitted::Refused(Refusal::Unavailable { maybe_accepted: None })), "{refused:?}");
    let refused = admission.admit(&request(1, Some("k"))).await;
    assert!(matches!(refused, Admitted::Refused(Refusal::Unavailable { maybe_accepted: Some(_) })), "{refused:?}");
}
