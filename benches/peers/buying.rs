//! Ways to give one buyer units of a hot SKU: what the peers differ in, and nothing else.
//!
//! Each keeps the same promises: no unit twice, one unit per user (a unique index: the cheapest way there is), and a reservation id only
//! once. All but the two that begin in Redis answer after COMMIT.

use flashsale::ids;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::types::time::OffsetDateTime;
use tokio::sync::mpsc;
use uuid::Uuid;

/// The tables that the peers share: two indexes on what is written, as the service has.
pub const TABLES: &str = "
    CREATE TABLE sku (
      sku_id text PRIMARY KEY, on_hand bigint NOT NULL, reserved bigint NOT NULL DEFAULT 0, sold bigint NOT NULL DEFAULT 0,
      hold_seconds integer NOT NULL, version bigint NOT NULL DEFAULT 0,
      CONSTRAINT sku_no_oversell CHECK (reserved >= 0 AND sold >= 0 AND reserved + sold <= on_hand)
    ) WITH (fillfactor = 50);
    CREATE TABLE reservation (
      reservation_id uuid PRIMARY KEY, user_id text NOT NULL, sku_id text NOT NULL, quantity integer NOT NULL, status smallint NOT NULL,
      accepted_at timestamptz NOT NULL, expires_at timestamptz NOT NULL
    );
    CREATE UNIQUE INDEX reservation_user ON reservation (sku_id, user_id);
    CREATE TABLE free_unit (sku_id text NOT NULL, number bigint NOT NULL, PRIMARY KEY (sku_id, number));";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Optimistic,
    Conditional,
    ForUpdate,
    SkipLocked,
    RedisRows,
    RedisBatches,
    /// Not a peer: wrong, to see that the check sees it.
    Unlocked,
}

impl Way {
    pub const PEERS: [Self; 6] =
        [Self::Optimistic, Self::Conditional, Self::ForUpdate, Self::SkipLocked, Self::RedisRows, Self::RedisBatches];

    pub fn name(self) -> &'static str {
        match self {
            Self::Optimistic => "optimistic locking",
            Self::Conditional => "conditional UPDATE",
            Self::ForUpdate => "SELECT FOR UPDATE",
            Self::SkipLocked => "SKIP LOCKED units",
            Self::RedisRows => "Redis first, rows",
            Self::RedisBatches => "Redis first, batches",
            Self::Unlocked => "negative control",
        }
    }

    pub fn what(self) -> &'static str {
        match self {
            Self::Optimistic => {
                "read the version, then one statement: UPDATE where it is still the same, and INSERT; else again"
            }
            Self::Conditional => "one statement: UPDATE where enough is left, and INSERT",
            Self::ForUpdate => "BEGIN, SELECT FOR UPDATE, UPDATE and INSERT, COMMIT",
            Self::SkipLocked => "one statement: DELETE a free unit that nobody has locked, and INSERT",
            Self::RedisRows => "Lua script, answer, then an INSERT for each",
            Self::RedisBatches => "Lua script, answer, then up to 1000 rows an INSERT",
            Self::Unlocked => "read, then UPDATE and INSERT, without version or lock",
        }
    }

    /// How a child is told which one it is.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::PEERS.into_iter().chain([Self::Unlocked]).find(|way| way.name() == name)
    }

    /// The servers that it uses.
    pub fn servers(self) -> &'static [&'static str] {
        if self.is_behind() { &["postgres", "redis"] } else { &["postgres"] }
    }

    /// It answers before the row is in Postgres.
    pub fn is_behind(self) -> bool {
        matches!(self, Self::RedisRows | Self::RedisBatches)
    }
}

/// What one request wants.
#[derive(Clone)]
pub struct Wanted {
    pub id: Uuid,
    pub user: String,
    pub sku: String,
    pub quantity: i32,
    pub accepted_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Reserved,
    /// This id is there already.
    Replayed,
    UserLimit,
    SoldOut,
}

/// Decides by what the statement did: one row, none, or a unique index that refused it.
fn outcome_of(written: Result<sqlx::postgres::PgQueryResult, sqlx::Error>) -> Result<Outcome, sqlx::Error> {
    match written {
        Ok(result) if result.rows_affected() == 1 => Ok(Outcome::Reserved),
        Ok(_) => Ok(Outcome::SoldOut),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("reservation_pkey") => Ok(Outcome::Replayed),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("reservation_user") => Ok(Outcome::UserLimit),
        Err(error) => Err(error),
    }
}

async fn write(conn: &mut PgConnection, statement: &'static str, wanted: &Wanted) -> Result<Outcome, sqlx::Error> {
    outcome_of(bound(statement, wanted).execute(conn).await)
}

fn bound<'q>(
    statement: &'static str,
    wanted: &'q Wanted,
) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    let Wanted { id, user, sku, quantity, accepted_at, expires_at } = wanted;
    sqlx::query(statement).bind(id).bind(user).bind(sku).bind(quantity).bind(accepted_at).bind(expires_at)
}

/// One transaction of one statement: one exchange with the server, and the row's lock is held for as long as its COMMIT takes.
pub async fn conditional(conn: &mut PgConnection, wanted: &Wanted) -> Result<Outcome, sqlx::Error> {
    let statement = "/* conditional */ WITH taken AS (
        UPDATE sku SET reserved = reserved + $4 WHERE sku_id = $3 AND reserved + sold + $4 <= on_hand RETURNING sku_id)
        INSERT INTO reservation SELECT $1, $2, $3, $4, 1, $5, $6 FROM taken";
    write(conn, statement, wanted).await
}

/// Reads without a lock and writes if nobody was faster; a buyer is patient, so it tries until that is decided. How often it did.
pub async fn optimistic(conn: &mut PgConnection, wanted: &Wanted) -> Result<(Outcome, u64), sqlx::Error> {
    for tries in 1.. {
        let (version, reserved, available): (i64, i64, i64) = sqlx::query_as(
            "/* optimistic */ SELECT version, reserved, on_hand - reserved - sold FROM sku WHERE sku_id = $1",
        )
        .bind(&wanted.sku)
        .fetch_one(&mut *conn)
        .await?;
        if available < i64::from(wanted.quantity) {
            return Ok((Outcome::SoldOut, tries));
        }
        let statement = "/* optimistic */ WITH taken AS (
            UPDATE sku SET reserved = $8, version = version + 1 WHERE sku_id = $3 AND version = $7 RETURNING sku_id)
            INSERT INTO reservation SELECT $1, $2, $3, $4, 1, $5, $6 FROM taken";
        let written = bound(statement, wanted).bind(version).bind(reserved + i64::from(wanted.quantity));
        match outcome_of(written.execute(&mut *conn).await)? {
            Outcome::SoldOut => {} // somebody was faster
            decided => return Ok((decided, tries)),
        }
    }
    unreachable!("it tries until it is decided")
}

/// What was read may be old when it is written: two buyers get the same unit.
pub async fn unlocked(conn: &mut PgConnection, wanted: &Wanted) -> Result<Outcome, sqlx::Error> {
    let reserved: i64 = sqlx::query_scalar("/* unlocked */ SELECT reserved FROM sku WHERE sku_id = $1")
        .bind(&wanted.sku)
        .fetch_one(&mut *conn)
        .await?;
    let statement = "/* unlocked */ WITH taken AS (UPDATE sku SET reserved = $7 WHERE sku_id = $3 RETURNING sku_id)
        INSERT INTO reservation SELECT $1, $2, $3, $4, 1, $5, $6 FROM taken";
    outcome_of(bound(statement, wanted).bind(reserved + i64::from(wanted.quantity)).execute(conn).await)
}

/// The lock is taken first, and the program decides under it.
pub async fn for_update(pool: &PgPool, wanted: &Wanted) -> Result<Outcome, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let available: i64 =
        sqlx::query_scalar("/* for_update */ SELECT on_hand - reserved - sold FROM sku WHERE sku_id = $1 FOR UPDATE")
            .bind(&wanted.sku)
            .fetch_one(&mut *tx)
            .await?;
    if available < i64::from(wanted.quantity) {
        tx.rollback().await?;
        return Ok(Outcome::SoldOut);
    }
    let statement = "/* for_update */ WITH taken AS (
        UPDATE sku SET reserved = reserved + $4 WHERE sku_id = $3 RETURNING sku_id)
        INSERT INTO reservation SELECT $1, $2, $3, $4, 1, $5, $6 FROM taken";
    match write(&mut tx, statement, wanted).await? {
        Outcome::Reserved => {
            tx.commit().await?;
            Ok(Outcome::Reserved)
        }
        refused => {
            tx.rollback().await?;
            Ok(refused)
        }
    }
}

/// A row per free unit: buyers pass each other, there is no hot row. All or nothing: a buyer of two takes no single unit.
pub async fn skip_locked(conn: &mut PgConnection, wanted: &Wanted) -> Result<Outcome, sqlx::Error> {
    let statement = "/* skip_locked */ WITH unit AS MATERIALIZED (
        SELECT number FROM free_unit WHERE sku_id = $3 ORDER BY number LIMIT $4 FOR UPDATE SKIP LOCKED),
        taken AS (DELETE FROM free_unit WHERE sku_id = $3 AND number IN (SELECT number FROM unit)
                  AND (SELECT count(*) FROM unit) = $4 RETURNING number)
        INSERT INTO reservation SELECT $1, $2, $3, $4, 1, $5, $6 WHERE (SELECT count(*) FROM taken) = $4";
    write(conn, statement, wanted).await
}

/// Stock, limit and id in one script. 0 = reserved, 1 = replayed, 2 = limit, 3 = sold out.
const SCRIPT: &str = "
    if redis.call('EXISTS', KEYS[1]) == 1 then return 1 end
    local quantity = tonumber(ARGV[1])
    if tonumber(redis.call('GET', KEYS[2]) or '0') + quantity > 1 then return 2 end
    if tonumber(redis.call('GET', KEYS[3]) or '0') < quantity then return 3 end
    redis.call('DECRBY', KEYS[3], quantity)
    redis.call('SET', KEYS[1], quantity, 'EX', 14400)
    redis.call('SET', KEYS[2], quantity, 'EX', 14400)
    return 0";

/// The decision in Redis, the rows behind it.
#[derive(Clone)]
pub struct RedisFirst {
    connection: redis::aio::MultiplexedConnection,
    script: redis::Script,
    prefix: String,
    /// One writer each, in turns. What waits here is lost with the process: such a peer has said yes before.
    writers: Vec<mpsc::UnboundedSender<Wanted>>,
}

impl RedisFirst {
    pub async fn start(way: Way, url: &str, prefix: &str, pool: &PgPool, writers: u32) -> Self {
        let client = redis::Client::open(url).expect("a legal URL");
        let connection = client.get_multiplexed_async_connection().await.expect("the server answers");
        let count = if way == Way::RedisBatches { 1 } else { writers };
        let writer = |_| {
            let (rows, waiting) = mpsc::unbounded_channel();
            let pool = pool.clone();
            tokio::spawn(async move {
                match way {
                    Way::RedisBatches => write_batches(&pool, waiting).await,
                    _ => write_rows(&pool, waiting).await,
                }
            });
            rows
        };
        let writers = (0..count).map(writer).collect();
        Self { connection, script: redis::Script::new(SCRIPT), prefix: prefix.to_owned(), writers }
    }

    pub async fn reserve(&self, wanted: Wanted) -> Outcome {
        let Wanted { id, user, sku, quantity, .. } = &wanted;
        let prefix = &self.prefix;
        let code: u8 = self
            .script
            .key(format!("{prefix}id:{id}"))
            .key(format!("{prefix}user:{sku}:{user}"))
            .key(self.stock_key(sku))
            .arg(quantity)
            .invoke_async(&mut self.connection.clone())
            .await
            .expect("Redis answers");
        match code {
            0 => {
                let writer = &self.writers[id.as_u128() as usize % self.writers.len()];
                writer.send(wanted).expect("writers end with the process");
                Outcome::Reserved
            }
            1 => Outcome::Replayed,
            2 => Outcome::UserLimit,
            _ => Outcome::SoldOut,
        }
    }

    /// Units left.
    pub async fn available(&self, sku: &str) -> i64 {
        let mut connection = self.connection.clone();
        redis::cmd("GET").arg(self.stock_key(sku)).query_async(&mut connection).await.expect("Redis answers")
    }

    pub async fn put_stock(&self, sku: &str, units: i64) {
        let mut connection = self.connection.clone();
        let put = redis::cmd("SET").arg(self.stock_key(sku)).arg(units).query_async::<()>(&mut connection).await;
        put.expect("Redis answers");
    }

    fn stock_key(&self, sku: &str) -> String {
        format!("{}stock:{sku}", self.prefix)
    }
}

async fn write_rows(pool: &PgPool, mut waiting: mpsc::UnboundedReceiver<Wanted>) {
    let mut conn = pool.acquire().await.expect("the server answers");
    while let Some(wanted) = waiting.recv().await {
        let statement = "/* write_rows */ INSERT INTO reservation VALUES ($1, $2, $3, $4, 1, $5, $6)";
        bound(statement, &wanted).execute(&mut *conn).await.expect("written");
    }
}

async fn write_batches(pool: &PgPool, mut waiting: mpsc::UnboundedReceiver<Wanted>) {
    const ROWS: usize = 1000;
    let mut conn = pool.acquire().await.expect("the server answers");
    let mut rows: Vec<Wanted> = Vec::with_capacity(ROWS);
    while waiting.recv_many(&mut rows, ROWS).await > 0 {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let users: Vec<&str> = rows.iter().map(|row| &*row.user).collect();
        let skus: Vec<&str> = rows.iter().map(|row| &*row.sku).collect();
        let quantities: Vec<i32> = rows.iter().map(|row| row.quantity).collect();
        let accepted: Vec<OffsetDateTime> = rows.iter().map(|row| row.accepted_at).collect();
        let expires: Vec<OffsetDateTime> = rows.iter().map(|row| row.expires_at).collect();
        let statement = "/* write_batches */ INSERT INTO reservation
            SELECT id, user_id, sku_id, quantity, 1, accepted_at, expires_at
            FROM unnest($1::uuid[], $2::text[], $3::text[], $4::integer[], $5::timestamptz[], $6::timestamptz[])
              AS row (id, user_id, sku_id, quantity, accepted_at, expires_at)";
        let written = sqlx::query(statement).bind(ids).bind(users).bind(skus).bind(quantities);
        written.bind(accepted).bind(expires).execute(&mut *conn).await.expect("written");
        rows.clear();
    }
}

/// A request of a key, as the service would name it.
pub fn id_of(user: &str, sku: &str, key: &str) -> Option<Uuid> {
    let user = ids::UserId::parse(user).ok()?;
    let sku = ids::SkuId::parse(sku).ok()?;
    Some(ids::keyed_reservation_id(&user, &sku, &ids::IdempotencyKey::parse(key)?))
}
