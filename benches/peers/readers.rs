//! Consumers of the same log that decide with the same tables and promises, each as a process of its own, for the time of a run.
//!
//! Two take one message per transaction; the third is a port of a published consumer that takes 250 (sanchit2222/flash-sale-event at
//! 99c723b, `InventoryBatchConsumer.java`): its tables and indexes, its checks of each message, its round trips, in its order.

use std::time::{Duration, Instant};

use flashsale::inventory::Command;
use flashsale::{ids, wire};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use redis::aio::MultiplexedConnection;
use sqlx::postgres::PgConnection;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Acquire, PgTransaction};
use uuid::Uuid;

use super::bench::{address, connect, seconds};
use super::buying::{self, Outcome, Wanted};
use super::commands::{SKU, reader};
use super::server::HOLD_SECONDS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    OneUsual,
    OneBest,
    Port,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::OneUsual, Self::OneBest, Self::Port];

    pub fn name(self) -> &'static str {
        match self {
            Self::OneUsual => "one message, one transaction",
            Self::OneBest => "one message, one statement",
            Self::Port => "250 a batch, checked one by one",
        }
    }

    pub fn what(self) -> &'static str {
        match self {
            Self::OneUsual => "BEGIN, look for id and user, UPDATE, INSERT, COMMIT; then its offset, awaited",
            Self::OneBest => "the conditional UPDATE and INSERT of above; offsets committed in the background",
            Self::Port => "the port: for each message 5 Redis calls and 3 SELECTs, for each batch one transaction",
        }
    }

    /// The servers that it uses.
    pub fn servers(self) -> &'static [&'static str] {
        if self == Self::Port { &["postgres", "redis", "kafka"] } else { &["postgres", "kafka"] }
    }

    /// Its tables.
    pub fn tables(self) -> String {
        let sku =
            format!("INSERT INTO sku (sku_id, on_hand, hold_seconds) VALUES ('{SKU}', 1000000000, {HOLD_SECONDS});");
        match self {
            Self::OneUsual | Self::OneBest => format!("{} {sku}", buying::TABLES),
            Self::Port => PORT_TABLES.to_owned(),
        }
    }
}

/// As the entities of the original say.
const PORT_TABLES: &str = "
    CREATE TABLE inventory (
      inventory_id varchar(36) PRIMARY KEY, sku_id varchar(100) NOT NULL UNIQUE, total_count integer NOT NULL, reserved_count integer NOT NULL,
      sold_count integer NOT NULL, available_count integer NOT NULL, version integer NOT NULL, created_at timestamptz NOT NULL,
      updated_at timestamptz
    );
    CREATE INDEX idx_available_count ON inventory (available_count);
    CREATE TABLE reservations (
      reservation_id varchar(36) PRIMARY KEY, user_id varchar(36) NOT NULL, sku_id varchar(100) NOT NULL, quantity integer NOT NULL,
      status varchar(20) NOT NULL, expires_at timestamptz NOT NULL, idempotency_key varchar(255) NOT NULL UNIQUE,
      created_at timestamptz NOT NULL, confirmed_at timestamptz, expired_at timestamptz, cancelled_at timestamptz
    );
    CREATE INDEX idx_user_status ON reservations (user_id, status);
    CREATE INDEX idx_sku_status ON reservations (sku_id, status);
    CREATE INDEX idx_user_sku_status ON reservations (user_id, sku_id, status);
    CREATE INDEX idx_expires_at ON reservations (expires_at);
    CREATE TABLE user_purchase_tracking (
      tracking_id varchar(36) PRIMARY KEY, user_id varchar(36) NOT NULL, sku_id varchar(100) NOT NULL, flash_sale_event_id varchar(36),
      quantity_purchased integer NOT NULL, order_id varchar(36), reservation_id varchar(36), purchased_at timestamptz NOT NULL,
      created_at timestamptz NOT NULL, UNIQUE (user_id, sku_id)
    );
    CREATE INDEX idx_user_id ON user_purchase_tracking (user_id);
    INSERT INTO inventory VALUES ('1', 'hot', 1000000000, 0, 0, 1000000000, 0, now(), now());";

/// Decides for the time of a run and tells `seconds count`.
pub async fn read(way: Way, topic: &str) {
    let consumer = reader(&address("KAFKA_BROKERS"), topic, &format!("bench-{}", ids::fresh_token().simple()), 1);
    let mut conn = connect(&address("DATABASE_URL")).await;
    let first = consumer.poll(Duration::from_secs(10)).expect("the topic is filled").expect("a record");
    let (began, count) = match way {
        Way::OneUsual => {
            one_by_one(&consumer, first, async |wanted| decide_usual(&mut conn, wanted).await, CommitMode::Sync).await
        }
        Way::OneBest => {
            let decide = async |wanted: &Wanted| buying::conditional(&mut conn, wanted).await;
            one_by_one(&consumer, first, decide, CommitMode::Async).await
        }
        Way::Port => port(&consumer, first, &mut conn).await,
    };
    println!("read {} {count}", began.elapsed().as_secs_f64());
}

/// What the record's only command wants.
fn wanted_of(message: &BorrowedMessage<'_>) -> Wanted {
    let record = wire::decode(message.payload().expect("a payload")).expect("one of ours");
    let envelope = record.commands.into_iter().next().expect("one command");
    let Ok(Command::Reserve(reserve)) = envelope.command else { panic!("only reserves follow the creation") };
    let at = |ms: i64| OffsetDateTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).expect("after 1970"));
    let log_time = message.timestamp().to_millis().expect("the log has times");
    Wanted {
        id: reserve.id,
        user: reserve.user.as_str().to_owned(),
        sku: reserve.sku.as_str().to_owned(),
        quantity: i32::try_from(reserve.quantity.get()).expect("small"),
        accepted_at: at(log_time),
        expires_at: at(log_time + HOLD_SECONDS * 1000),
    }
}

async fn one_by_one(
    consumer: &BaseConsumer,
    first: BorrowedMessage<'_>,
    mut decide: impl AsyncFnMut(&Wanted) -> Result<Outcome, sqlx::Error>,
    mode: CommitMode,
) -> (Instant, u64) {
    let (began, mut count, mut next) = (Instant::now(), 0, Some(first));
    while began.elapsed().as_secs_f64() < seconds() {
        let message = match next.take() {
            Some(message) => message,
            None => match consumer.poll(Duration::from_secs(1)) {
                Some(message) => message.expect("a record"),
                None => break,
            },
        };
        let outcome = decide(&wanted_of(&message)).await.expect("decided");
        assert_eq!(outcome, Outcome::Reserved, "every user is new");
        consumer.commit_message(&message, mode).expect("the broker takes it");
        count += 1;
    }
    (began, count)
}

/// As it is usually written: look first, then write, statement by statement.
async fn decide_usual(conn: &mut PgConnection, wanted: &Wanted) -> Result<Outcome, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let Wanted { id, user, sku, quantity, accepted_at, expires_at } = wanted;
    let is_known: bool =
        sqlx::query_scalar("/* decide_usual */ SELECT EXISTS (SELECT 1 FROM reservation WHERE reservation_id = $1)")
            .bind(id)
            .fetch_one(&mut *tx)
            .await?;
    if is_known {
        return Ok(Outcome::Replayed);
    }
    let held: i64 = sqlx::query_scalar(
        "/* decide_usual */ SELECT coalesce(sum(quantity), 0)::bigint FROM reservation WHERE sku_id = $1 AND user_id = $2 AND status = 1",
    )
    .bind(sku)
    .bind(user)
    .fetch_one(&mut *tx)
    .await?;
    if held + i64::from(*quantity) > 1 {
        return Ok(Outcome::UserLimit);
    }
    let taken =
        sqlx::query("/* decide_usual */ UPDATE sku SET reserved = reserved + $2 WHERE sku_id = $1 AND reserved + sold + $2 <= on_hand")
            .bind(sku)
            .bind(quantity)
            .execute(&mut *tx)
            .await?;
    if taken.rows_affected() == 0 {
        return Ok(Outcome::SoldOut);
    }
    sqlx::query("/* decide_usual */ INSERT INTO reservation VALUES ($1, $2, $3, $4, 1, $5, $6)")
        .bind(id)
        .bind(user)
        .bind(sku)
        .bind(quantity)
        .bind(accepted_at)
        .bind(expires_at)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(Outcome::Reserved)
}

// ---- the port ----

const PORT_BATCH: usize = 250;
/// `hibernate.jdbc.batch_size` of the original.
const PORT_ROWS: usize = 20;

async fn port(consumer: &BaseConsumer, first: BorrowedMessage<'_>, conn: &mut PgConnection) -> (Instant, u64) {
    let client = redis::Client::open(address("REDIS_URL")).expect("a legal URL");
    let mut redis = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let prefix = format!("bench-{}:", ids::fresh_token().simple());
    let put =
        redis::cmd("SET").arg(format!("{prefix}stock:{SKU}")).arg(1_000_000_000).query_async::<()>(&mut redis).await;
    put.expect("Redis answers");
    let (began, mut count, mut next) = (Instant::now(), 0, Some(first));
    while began.elapsed().as_secs_f64() < seconds() {
        let mut batch = Vec::with_capacity(PORT_BATCH);
        let mut last = None;
        while batch.len() < PORT_BATCH {
            let polled = next.take().or_else(|| consumer.poll(Duration::from_millis(100))?.ok());
            let Some(message) = polled else { break };
            batch.push(wanted_of(&message));
            last = Some(message);
        }
        let Some(last) = last else { break };
        let allocated = port_batch(conn, &mut redis, &prefix, &batch).await.expect("decided");
        assert_eq!(allocated, batch.len(), "every user is new");
        // The original acknowledges once per batch.
        consumer.commit_message(&last, CommitMode::Sync).expect("the broker takes it");
        count += allocated as u64;
    }
    (began, count)
}

/// `processBatchForSku`: validate each, take the stock, write the rows, tell Redis, look for an oversell.
async fn port_batch(
    conn: &mut PgConnection,
    redis: &mut MultiplexedConnection,
    prefix: &str,
    batch: &[Wanted],
) -> Result<usize, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let mut valid = Vec::with_capacity(batch.len());
    for wanted in batch {
        if port_validate(&mut tx, redis, prefix, wanted).await? {
            valid.push(wanted);
        }
    }
    let taken = sqlx::query(
        "/* port_batch */ UPDATE inventory SET reserved_count = reserved_count + $2,
           available_count = total_count - (reserved_count + $2) - sold_count, updated_at = now()
         WHERE sku_id = $1 AND available_count >= $2",
    )
    .bind(SKU)
    .bind(i32::try_from(valid.len()).expect("a batch"))
    .execute(&mut *tx)
    .await?;
    assert_eq!(taken.rows_affected(), 1, "the stock never ends here");
    for rows in valid.chunks(PORT_ROWS) {
        port_insert(&mut tx, rows).await?;
    }
    let told =
        redis::cmd("DECRBY").arg(format!("{prefix}stock:{SKU}")).arg(valid.len()).query_async::<i64>(redis).await;
    told.expect("Redis answers");
    for wanted in &valid {
        let key = format!("{prefix}reservation:{}:{SKU}", wanted.user);
        let told =
            redis::cmd("SET").arg(key).arg(wanted.id.to_string()).arg("EX").arg(180).query_async::<()>(redis).await;
        told.expect("Redis answers");
    }
    let oversold: i32 = sqlx::query_scalar(
        "/* port_batch */ SELECT reserved_count + sold_count - total_count FROM inventory WHERE sku_id = $1",
    )
    .bind(SKU)
    .fetch_one(&mut *tx)
    .await?;
    assert!(oversold <= 0, "oversold");
    tx.commit().await?;
    Ok(valid.len())
}

/// `validateRequests`, for one message: is its key known (under a lock), has the user bought, does the user hold one?
async fn port_validate(
    tx: &mut PgTransaction<'_>,
    redis: &mut MultiplexedConnection,
    prefix: &str,
    wanted: &Wanted,
) -> Result<bool, sqlx::Error> {
    let key = format!("{}:{SKU}", wanted.user);
    let (lock, token) =
        (format!("{prefix}lock:idempotency:{key}"), Uuid::from_u128(wanted.id.as_u128() ^ 1).to_string());
    let locked: Option<String> = redis::cmd("SET")
        .arg(&lock)
        .arg(&token)
        .arg("EX")
        .arg(2)
        .arg("NX")
        .query_async(redis)
        .await
        .expect("Redis answers");
    assert!(locked.is_some(), "nobody else consumes");
    let is_known: bool =
        sqlx::query_scalar("/* port_validate */ SELECT EXISTS (SELECT 1 FROM reservations WHERE idempotency_key = $1)")
            .bind(&key)
            .fetch_one(&mut **tx)
            .await?;
    let holder: Option<String> = redis::cmd("GET").arg(&lock).query_async(redis).await.expect("Redis answers");
    if holder.as_deref() == Some(&*token) {
        redis::cmd("DEL").arg(&lock).query_async::<i64>(redis).await.expect("Redis answers");
    }
    let limit: Option<String> =
        redis::cmd("GET").arg(format!("{prefix}user_limit:{key}")).query_async(redis).await.expect("Redis answers");
    let has_bought: bool = sqlx::query_scalar(
        "/* port_validate */ SELECT EXISTS (SELECT 1 FROM user_purchase_tracking WHERE user_id = $1 AND sku_id = $2)",
    )
    .bind(&wanted.user)
    .bind(SKU)
    .fetch_one(&mut **tx)
    .await?;
    let active: Option<String> =
        redis::cmd("GET").arg(format!("{prefix}reservation:{key}")).query_async(redis).await.expect("Redis answers");
    let holds_one: bool = sqlx::query_scalar(
        "/* port_validate */ SELECT count(*) > 0 FROM reservations
         WHERE user_id = $1 AND sku_id = $2 AND status = 'RESERVED' AND expires_at > now()",
    )
    .bind(&wanted.user)
    .bind(SKU)
    .fetch_one(&mut **tx)
    .await?;
    Ok(!is_known && limit.is_none() && !has_bought && active.is_none() && !holds_one)
}

async fn port_insert(tx: &mut PgTransaction<'_>, rows: &[&Wanted]) -> Result<(), sqlx::Error> {
    let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
    let users: Vec<&str> = rows.iter().map(|row| &*row.user).collect();
    let keys: Vec<String> = rows.iter().map(|row| format!("{}:{SKU}", row.user)).collect();
    sqlx::query(
        "/* port_insert */ INSERT INTO reservations (reservation_id, user_id, sku_id, quantity, status, expires_at, idempotency_key, created_at)
         SELECT id, user_id, $4, 1, 'RESERVED', now() + interval '120 seconds', key, now()
         FROM unnest($1::text[], $2::text[], $3::text[]) AS row (id, user_id, key)",
    )
    .bind(ids)
    .bind(users)
    .bind(keys)
    .bind(SKU)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
