//! The HTTP interface in this process: with servers that are away (parse errors must not need them), or with everything real.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, header};
use flashsale::admin::SkuAdmin;
use flashsale::admission::{Admission, Catalogue, watch_partitions};
use flashsale::cache::Cache;
use flashsale::clock::SystemClock;
use flashsale::commands::Commands;
use flashsale::commands::reservations::ReservationCommands;
use flashsale::config::Secret;
use flashsale::http::sku_reads::SkuReads;
use flashsale::http::{App, Health, Operations, admin_router, public_router};
use flashsale::ingress::Ingress;
use flashsale::kafka::{LogEnds, Producer};
use flashsale::limits;
use flashsale::status::StatusReader;
use flashsale::store::Store;
use flashsale::subscription;
use flashsale::telemetry::metrics;
use flashsale::waiters::{self, Waiters};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::consumer::World;
use super::kafka::{brokers, fresh_name};

/// Nobody listens there.
const AWAY: &str = "127.0.0.1:1";

/// Both listeners' routers over one set of parts.
pub struct Http {
    pub public: Router,
    pub admin: Router,
    /// Places for event streams.
    pub event_streams: Arc<Semaphore>,
    /// Who waits here.
    pub waiters: Waiters,
    stop: CancellationToken,
}

impl Http {
    /// Postgres, Redis and Kafka are away. The admin listener asks for the token `t0ken`.
    pub fn away() -> Self {
        let store = Store::new(&format!("postgres://nobody@{AWAY}/none"), "none").expect("a legal URL");
        let cache = Cache::new(&format!("redis://{AWAY}/"), "none:").expect("a legal URL");
        Self::over(store.clone(), store, cache, AWAY, "none", Some(Secret::new("t0ken")))
    }

    /// Over a world's topic and tables, with a Redis prefix of its own. Who decides is the test's business.
    pub fn over_world(world: &World) -> Self {
        Self::over_world_at(world, &fresh_name("prefix"))
    }

    /// The same below a prefix, which processes of one service share.
    pub fn over_world_at(world: &World, prefix: &str) -> Self {
        let store = world.db.store();
        Self::over(store.clone(), store, cache_at(prefix), &brokers(), &world.topic, None)
    }

    /// The same without Redis.
    pub fn without_redis(world: &World) -> Self {
        let cache = Cache::new(&format!("redis://{AWAY}/"), "none:").expect("a legal URL");
        let store = world.db.store();
        Self::over(store.clone(), store, cache, &brokers(), &world.topic, None)
    }

    /// The same without Kafka.
    pub fn without_kafka(world: &World) -> Self {
        let store = world.db.store();
        Self::over(store.clone(), store, cache_at(&fresh_name("prefix")), AWAY, &world.topic, None)
    }

    /// The same, where no reservation can ever be read: what becomes of a request is only known if somebody tells.
    pub fn over_world_without_reads(world: &World, prefix: &str) -> Self {
        let nowhere = Store::new(&format!("postgres://nobody@{AWAY}/none"), "none").expect("a legal URL");
        Self::over(world.db.store(), nowhere, cache_at(prefix), &brokers(), &world.topic, None)
    }

    /// `reads` is where reservations are read.
    fn over(store: Store, reads: Store, cache: Cache, brokers: &str, topic: &str, token: Option<Secret>) -> Self {
        let waiters = Waiters::default();
        let (stop, services) = (CancellationToken::new(), TaskTracker::new());
        let log_ends = LogEnds::start(brokers, topic).expect("starts");
        let ingress = Ingress::start(Producer::start(brokers, topic).expect("starts"));
        let catalogue = Catalogue::new(store.clone());
        let clock = Arc::new(SystemClock);
        tokio::spawn(catalogue.clone().run(stop.clone()));
        tokio::spawn(waiters::sweep(waiters.clone(), reads.clone(), stop.clone()));
        let watch =
            watch_partitions(catalogue.clone(), store.clone(), log_ends.clone(), topic.to_owned(), stop.clone());
        tokio::spawn(watch);
        let status = StatusReader::start(reads, log_ends.clone(), clock.clone());
        let commands = Commands::new(
            store.clone(),
            ingress.clone(),
            waiters.clone(),
            log_ends,
            clock.clone(),
            stop.clone(),
            limits::COMMAND_POLL_EVERY,
        );
        let admission = Admission::start(Some(cache.clone()), status.clone(), catalogue.clone(), &services);
        let unheard = admission.unheard();
        tokio::spawn(subscription::run(cache, waiters.clone(), catalogue.clone(), unheard, stop.clone()));
        let event_streams = Arc::new(Semaphore::new(limits::EVENT_STREAMS_MAX));
        let app = Arc::new(App {
            admission,
            catalogue,
            ingress: ingress.clone(),
            reservations: ReservationCommands::new(commands.clone(), status.clone()),
            status,
            waiters: waiters.clone(),
            store: store.clone(),
            admin: SkuAdmin::new(store.clone(), commands),
            sku_reads: SkuReads::start(store, &services),
            clock,
            publishes: TaskTracker::new(),
            event_streams: Arc::clone(&event_streams),
            calls_of_many: Arc::new(Semaphore::new(limits::RESERVATIONS_CALLS_MAX)),
            stop_waiting: stop.clone(),
        });
        let health = Health {
            stop: stop.clone(),
            ingress: Some(ingress),
            schema_checked: None,
            catalogue_loaded: None,
            consumer: None,
            relay: None,
            auditor: None,
        };
        let operations = Operations { health, metrics: metrics::recorder().handle() };
        let (public, admin) = (public_router(Arc::clone(&app)), admin_router(operations, Some(app), token));
        Self { public, admin, event_streams, waiters, stop }
    }

    /// As when the process is told to stop: whoever waits for a decision is told what is known now.
    pub fn stop_waiting(&self) {
        self.stop.cancel();
    }

    /// Asks the public listener.
    pub async fn ask(&self, request: Request<Body>) -> Answer {
        answer(&self.public, request).await
    }

    /// Asks the admin listener.
    pub async fn ask_admin(&self, request: Request<Body>) -> Answer {
        answer(&self.admin, request).await
    }
}

/// A handle for the common server, with more patience than a service has: what is compared is what Redis says, not whether it is in time.
pub fn cache_at(prefix: &str) -> Cache {
    const PATIENCE: Duration = Duration::from_secs(5);
    let redis = std::env::var("REDIS_URL").expect("REDIS_URL names the server; `make test` sets it");
    Cache::with_deadline(&redis, prefix, PATIENCE).expect("a legal URL")
}

impl Drop for Http {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Map<String, Value>,
    pub body: Value,
}

impl Answer {
    /// For whole-answer snapshots.
    pub fn whole(&self) -> Value {
        json!({"status": self.status, "headers": self.headers, "body": self.body})
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(Value::as_str)
    }

    /// The problem's code.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or("no code")
    }
}

async fn answer(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.expect("routers are infallible");
    whole(response).await
}

/// Reads an answer to its end.
pub async fn whole(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let text = |value: &header::HeaderValue| value.to_str().expect("our headers are text").to_owned();
    let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), text(value).into())).collect();
    let bytes = body.collect().await.expect("bodies are complete").to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
    Answer { status: parts.status.as_u16(), headers, body }
}

/// `METHOD path`, headers, and a body if there is one, which is declared as JSON. The request id is `r-1`.
pub fn request(line: &str, headers: &[(&str, &str)], body: Option<&str>) -> Request<Body> {
    let (method, path) = line.split_once(' ').expect("METHOD path");
    let mut request = Request::builder().method(method).uri(path).header("x-request-id", "r-1");
    if body.is_some() && !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers.iter().filter(|(_, value)| *value != "(none)") {
        request = request.header(*name, *value);
    }
    request.body(body.map_or(Body::empty(), |body| Body::from(body.to_owned()))).expect("a legal request")
}
