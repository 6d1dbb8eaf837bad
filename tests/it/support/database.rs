//! A fresh schema for one test, migrated, dropped at the end; and the checks from outside that every test may ask for.

use std::str::FromStr;

use flashsale::ids::UserId;
use flashsale::store::{Store, migrate};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row};

use super::kafka::fresh_name;

/// A schema of its own on the server of this test run.
pub struct Database {
    /// A connection string that finds this schema first.
    pub url: String,
    /// The topic that its partition rows are about.
    pub topic: String,
    server: String,
    schema: String,
}

/// The server of this test run.
pub fn server_url() -> String {
    std::env::var("DATABASE_URL").expect("DATABASE_URL names the server; `make test` sets it")
}

impl Database {
    /// Makes the schema and its tables, with `partitions` partition rows for `topic`.
    pub async fn fresh(topic: &str, partitions: i32) -> Self {
        let database = Self::empty_on(&server_url(), topic).await;
        migrate(&database.url, topic, partitions).await.expect("the tables are made");
        database
    }

    /// Makes the schema on some server; the tables are left to `flashsale migrate`.
    pub async fn empty_on(server: &str, topic: &str) -> Self {
        let schema = fresh_name("schema").replace('-', "_");
        run(&mut connect(server).await, &format!("CREATE SCHEMA {schema}")).await;
        let separator = if server.contains('?') { '&' } else { '?' };
        let url = format!("{server}{separator}options=-csearch_path%3D{schema}");
        Self { url, topic: topic.to_owned(), server: server.to_owned(), schema }
    }

    /// A connection to look into the tables.
    pub async fn connect(&self) -> PgConnection {
        connect(&self.url).await
    }

    /// The service's own reads.
    pub fn store(&self) -> Store {
        Store::new(&self.url, &self.topic).expect("a legal URL")
    }

    /// Runs some SQL.
    pub async fn run(&self, sql: &str) {
        run(&mut self.connect().await, sql).await;
    }

    /// One number.
    pub async fn number(&self, sql: &str) -> i64 {
        let row =
            sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut self.connect().await).await.expect("a query of this test");
        row.try_get::<Option<i64>, _>(0).expect("a bigint").unwrap_or(0)
    }

    /// One text.
    pub async fn text(&self, sql: &str) -> Option<String> {
        let row =
            sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut self.connect().await).await.expect("a query of this test");
        row.try_get(0).expect("a text")
    }

    /// So many refused requests of users `u0` to `u9`, as no batch decided them, and after all of them the one that `u1` has paid.
    pub async fn plant_crowd(&self, count: u32) {
        let hash = UserId::parse("u1").expect("a legal user").hash64();
        self.run(&format!(
            "INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, quantity, version, partition, log_index, status,
                                      user_id, sku_id, reason, payment_ref)
             SELECT lpad(to_hex(n), 32, '0')::uuid, CASE n % 10 WHEN 1 THEN {hash} ELSE n % 10 END, n, 'epoch', 1, 1, 0, 0, status, 'u' || n % 10,
                    's', CASE status WHEN 2 THEN 'SOLD_OUT' END, CASE status WHEN 3 THEN 'pay-9' END
             FROM generate_series(1, {count} / 10 * 10 + 1) AS n
             CROSS JOIN LATERAL (SELECT CASE WHEN n > {count} / 10 * 10 THEN 3 ELSE 2 END::smallint AS status) AS s"
        ))
        .await;
    }

    /// Drops the schema; a failed test leaves it behind for a look.
    pub async fn drop(self) {
        run(&mut connect(&self.server).await, &format!("DROP SCHEMA {} CASCADE", self.schema)).await;
    }

    /// Everything that must hold at any moment, asked from outside: each query finds nothing.
    ///
    /// # Panics
    /// Naming the invariants (docs/architecture.md) that are broken.
    pub async fn assert_invariants(&self) {
        let mut conn = self.connect().await;
        let mut broken = Vec::new();
        for (name, sql) in CHECKS {
            let rows = sqlx::query(*sql).fetch_all(&mut conn).await.unwrap_or_else(|e| panic!("{name}: {e}"));
            if !rows.is_empty() {
                broken.push(format!("{name}: {} rows", rows.len()));
            }
        }
        assert!(broken.is_empty(), "invariants broken: {broken:?}");
    }
}

async fn connect(url: &str) -> PgConnection {
    PgConnectOptions::from_str(url).expect("a legal URL").connect().await.expect("the server answers")
}

async fn run(conn: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// Invariants of the tables. Numbers are those of docs/architecture.md.
pub const CHECKS: &[(&str, &str)] = &[
    (
        "2 the decided rows of a batch are as many as it says",
        "SELECT b.first_offset FROM batch b WHERE b.decided_count <>
           (SELECT count(*) FROM reservation r WHERE r.partition = b.partition AND r.log_offset >= b.first_offset AND r.log_offset < b.position)
         + (SELECT count(*) FROM command c WHERE c.partition = b.partition AND c.log_offset >= b.first_offset AND c.log_offset < b.position)",
    ),
    ("4 no oversell now", "SELECT sku_id FROM sku WHERE reserved + sold > on_hand OR reserved < 0 OR sold < 0"),
    (
        "4 no oversell after any movement",
        "SELECT sku_id FROM (SELECT sku_id, sum(d_on_hand) OVER w AS h, sum(d_reserved) OVER w AS r, sum(d_sold) OVER w AS s
         FROM stock_movement WINDOW w AS (PARTITION BY sku_id ORDER BY number)) m WHERE r + s > h OR r < 0 OR s < 0",
    ),
    (
        "5 counters equal the sums of the reservations",
        "SELECT s.sku_id FROM sku s LEFT JOIN LATERAL (
           SELECT coalesce(sum(quantity) FILTER (WHERE status = 1), 0) AS reserved, coalesce(sum(quantity) FILTER (WHERE status = 3), 0) AS sold
           FROM reservation_now WHERE sku_id = s.sku_id) r ON true
         WHERE (s.reserved, s.sold) IS DISTINCT FROM (r.reserved, r.sold)",
    ),
    (
        "5 counters equal the fold of the movements",
        "SELECT s.sku_id FROM sku s LEFT JOIN (
           SELECT sku_id, sum(d_on_hand) AS h, sum(d_reserved) AS r, sum(d_sold) AS o, count(*) AS n, max(number) AS last
           FROM stock_movement GROUP BY 1) m USING (sku_id)
         WHERE (s.on_hand, s.reserved, s.sold, s.movement_count, s.movement_count) IS DISTINCT FROM
               (coalesce(m.h, 0), coalesce(m.r, 0), coalesce(m.o, 0), coalesce(m.n, 0), coalesce(m.last, 0))",
    ),
    (
        "5 each running balance is the one before plus the movement",
        "SELECT sku_id FROM (SELECT *, coalesce(lag(on_hand) OVER w, 0) + d_on_hand AS h, coalesce(lag(reserved) OVER w, 0) + d_reserved AS r,
           coalesce(lag(sold) OVER w, 0) + d_sold AS o FROM stock_movement WINDOW w AS (PARTITION BY sku_id ORDER BY number)) m
         WHERE (on_hand, reserved, sold) IS DISTINCT FROM (h, r, o)",
    ),
    (
        "8 batches tile the log, their end is the position",
        "SELECT partition FROM (SELECT *, lag(position) OVER (PARTITION BY partition ORDER BY first_offset) AS previous FROM batch) b
         WHERE first_offset <> coalesce(previous, first_offset)
         UNION ALL
         SELECT p.partition FROM partition_state p LEFT JOIN (SELECT partition, max(position) AS last FROM batch GROUP BY 1) b USING (partition)
         WHERE b.last IS NOT NULL AND b.last <> p.position",
    ),
    (
        "9 epochs never interleave",
        "SELECT partition FROM (SELECT *, lag(epoch) OVER (PARTITION BY partition ORDER BY first_offset) AS previous FROM batch) b
         WHERE previous > epoch",
    ),
    (
        "12 nobody is above the limit",
        "SELECT r.user_id FROM reservation_now r JOIN sku s USING (sku_id) WHERE status IN (1, 3)
         GROUP BY r.user_id, r.sku_id, s.user_limit HAVING sum(quantity) > s.user_limit",
    ),
    (
        "19 one SKU, one partition",
        "SELECT r.reservation_id FROM reservation r JOIN sku s USING (sku_id) WHERE r.partition <> s.partition
         UNION ALL SELECT gen_random_uuid() FROM sku s JOIN sku_pin p USING (sku_id) WHERE s.partition <> p.partition",
    ),
];
