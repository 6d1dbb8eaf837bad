//! One peer as a process of its own: the same calls, bodies and answers as the service's, over the same kept connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use flashsale::clock::{Clock, SystemClock, rfc3339};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use super::bench::address;
use super::buying::{self, Outcome, RedisFirst, Wanted, Way};

/// Of every SKU here; the service's bench SKUs have the same.
pub const HOLD_SECONDS: i64 = 4 * 3600;

struct Peer {
    way: Way,
    pool: PgPool,
    redis: Option<RedisFirst>,
    /// Attempts of optimistic locking.
    tries: AtomicU64,
}

/// Serves until it is killed; tells its address as its first line.
pub async fn serve(way: Way, connections: u32) {
    // Writers behind Redis keep theirs; whoever asks for the stock needs another one.
    let all = connections + u32::from(way.is_behind());
    let pool = PgPoolOptions::new()
        .min_connections(all)
        .max_connections(all)
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(60))
        .connect(&address("DATABASE_URL"))
        .await
        .expect("the server answers");
    let redis = match way.is_behind() {
        true => Some(RedisFirst::start(way, &address("REDIS_URL"), &address("REDIS_PREFIX"), &pool, connections).await),
        false => None,
    };
    if let Some(redis) = &redis {
        let (sku, units): (String, i64) =
            sqlx::query_as("/* serve */ SELECT sku_id, on_hand FROM sku").fetch_one(&pool).await.expect("one SKU");
        redis.put_stock(&sku, units).await;
    }
    let peer = Arc::new(Peer { way, pool, redis, tries: AtomicU64::new(0) });
    let router = Router::new()
        .route("/v1/reservations", post(reserve))
        .route("/v1/skus/{sku}", get(stock))
        .route(
            "/tries",
            get(|State(peer): State<Arc<Peer>>| async move { peer.tries.load(Ordering::Relaxed).to_string() }),
        )
        .with_state(peer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("listening on {}", listener.local_addr().expect("bound"));
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a TCP socket"));
    axum::serve(listener, router).await.expect("it never ends");
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    user_id: String,
    sku_id: String,
    quantity: u16,
}

/// What the service tells of a decided reservation.
#[derive(Serialize)]
struct View<'a> {
    id: Uuid,
    status: &'a str,
    user_id: &'a str,
    sku_id: &'a str,
    quantity: i32,
    accepted_at: String,
    expires_at: String,
    expires_in_seconds: i64,
    extensions_left: u32,
    version: u32,
}

async fn reserve(State(peer): State<Arc<Peer>>, headers: HeaderMap, Json(body): Json<Body>) -> Response {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    let Some(id) = buying::id_of(&body.user_id, &body.sku_id, key) else {
        return problem(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_FIELD");
    };
    let now = SystemClock.now();
    let at = |ms: i64| OffsetDateTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).expect("after 1970"));
    let wanted = Wanted {
        id,
        user: body.user_id.clone(),
        sku: body.sku_id.clone(),
        quantity: body.quantity.into(),
        accepted_at: at(now),
        expires_at: at(now + HOLD_SECONDS * 1000),
    };
    match peer.decide(wanted).await {
        // A repeat is told today's state, which is the same here: nothing confirms or ends.
        Ok(Outcome::Reserved | Outcome::Replayed) => {
            let view = View {
                id,
                status: "RESERVED",
                user_id: &body.user_id,
                sku_id: &body.sku_id,
                quantity: body.quantity.into(),
                accepted_at: rfc3339(now),
                expires_at: rfc3339(now + HOLD_SECONDS * 1000),
                expires_in_seconds: HOLD_SECONDS,
                extensions_left: 3,
                version: 1,
            };
            (
                StatusCode::OK,
                [(header::ETAG, "\"1\""), (header::HeaderName::from_static("preference-applied"), "wait=10")],
                Json(view),
            )
                .into_response()
        }
        Ok(Outcome::UserLimit) => problem(StatusCode::CONFLICT, "USER_LIMIT"),
        Ok(Outcome::SoldOut) => problem(StatusCode::CONFLICT, "SOLD_OUT"),
        Err(error) => {
            eprintln!("{}: {error}", peer.way.name());
            problem(StatusCode::SERVICE_UNAVAILABLE, "OVERLOADED")
        }
    }
}

impl Peer {
    async fn decide(&self, wanted: Wanted) -> Result<Outcome, sqlx::Error> {
        match self.way {
            Way::Optimistic => {
                let (outcome, tries) = buying::optimistic(&mut *self.pool.acquire().await?, &wanted).await?;
                self.tries.fetch_add(tries, Ordering::Relaxed);
                Ok(outcome)
            }
            Way::Conditional => buying::conditional(&mut *self.pool.acquire().await?, &wanted).await,
            Way::ForUpdate => buying::for_update(&self.pool, &wanted).await,
            Way::SkipLocked => buying::skip_locked(&mut *self.pool.acquire().await?, &wanted).await,
            Way::Unlocked => buying::unlocked(&mut *self.pool.acquire().await?, &wanted).await,
            Way::RedisRows | Way::RedisBatches => {
                let redis = self.redis.as_ref().expect("made for these ways");
                Ok(redis.reserve(wanted).await)
            }
        }
    }

    /// Units promised, as whoever decides knows it.
    async fn reserved(&self, sku: &str) -> i64 {
        if let Some(redis) = &self.redis {
            let on_hand: i64 = self.ask("/* reserved */ SELECT on_hand FROM sku WHERE sku_id = $1", sku).await;
            return on_hand - redis.available(sku).await;
        }
        let statement = match self.way {
            Way::SkipLocked => {
                "/* reserved */ SELECT on_hand - (SELECT count(*) FROM free_unit) FROM sku WHERE sku_id = $1"
            }
            _ => "/* reserved */ SELECT reserved FROM sku WHERE sku_id = $1",
        };
        self.ask(statement, sku).await
    }

    async fn ask(&self, statement: &'static str, sku: &str) -> i64 {
        sqlx::query_scalar(statement).bind(sku).fetch_one(&self.pool).await.expect("the SKU is there")
    }
}

async fn stock(State(peer): State<Arc<Peer>>, Path(sku): Path<String>) -> Response {
    let on_hand = peer.ask("/* stock */ SELECT on_hand FROM sku WHERE sku_id = $1", &sku).await;
    let reserved = peer.reserved(&sku).await;
    Json(json!({"sku_id": sku, "on_hand": on_hand, "reserved": reserved, "sold": 0, "hold_seconds": HOLD_SECONDS}))
        .into_response()
}

fn problem(status: StatusCode, code: &str) -> Response {
    let body =
        json!({"type": format!("/docs/errors.md#{code}"), "title": code, "status": status.as_u16(), "code": code});
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}
