//! `flashsale api`, `consumer` and `all`: puts the parts together, runs them, and takes them apart in the right order.
//!
//! Nothing here waits for Postgres, Redis or Kafka: a process starts without them, says so by `/readyz`, and works as soon as they answer.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Failure;
use super::process::{Group, Supervisor};
use crate::admin::SkuAdmin;
use crate::admission::{Admission, Catalogue, watch_partitions};
use crate::auditor;
use crate::cache::Cache;
use crate::clock::{Clock, SystemClock};
use crate::commands::Commands;
use crate::commands::reservations::ReservationCommands;
use crate::config::Config;
use crate::consumer;
use crate::http::sku_reads::SkuReads;
use crate::http::{self, App, Flag, Health, Operations, SharedApp};
use crate::ingress::{Ingress, IngressFailed, calibration};
use crate::kafka::topics::dead_letter_topic;
use crate::kafka::{KafkaError, LogEnds, Producer};
use crate::limits;
use crate::outbox::relay;
use crate::shutdown;
use crate::status::StatusReader;
use crate::store::{SchemaMismatch, Store, StoreError, WriterConfig};
use crate::subscription;
use crate::telemetry::{self, logs, metrics, traces};
use crate::waiters::{self, Waiters};

/// Which parts run in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// HTTP in, log out.
    Api,
    /// The single writers.
    Consumer,
    /// Both, the relay, and the auditor.
    All,
}

impl Role {
    /// What traces call a process of this role, unless `OTEL_SERVICE_NAME` says otherwise.
    fn service_name(self) -> &'static str {
        match self {
            Self::Api => "flashsale-api",
            Self::Consumer => "flashsale-consumer",
            Self::All => "flashsale",
        }
    }
}

/// What both parts use; handles.
pub(super) struct Shared {
    config: Config,
    pub(super) store: Store,
    cache: Cache,
    pub(super) log_ends: LogEnds,
    waiters: Waiters,
    clock: Arc<dyn Clock>,
}

/// The parts of an API, and what must be told to end well.
pub(super) struct Api {
    app: SharedApp,
    ingress: Ingress,
    catalogue_loaded: Flag,
    /// Ends long polls at once, so that the drain is short.
    stop_waiting: CancellationToken,
    /// Tasks that end when the last handle of their part is gone.
    services: TaskTracker,
}

pub(super) async fn serve(config: Config, role: Role) -> Result<(), Failure> {
    logs::install(config.log_format);
    let traces = match &config.traces {
        Some(settings) => {
            let flush = traces::install(settings, role.service_name());
            Some(flush.map_err(|error| Failure::usage(super::chain(&error)))?)
        }
        None => None,
    };
    let recorder = metrics::install().map_err(|error| Failure::bug(error.to_string()))?;
    let stop = shutdown::on_signal()
        .map_err(|e| Failure::unavailable_because(format!("could not listen for signals: {e}")))?;
    tracing::info!(role = ?role, version = telemetry::VERSION, commit = telemetry::REVISION, config = ?config, "starting");
    let public_listener = match role {
        Role::Api | Role::All => Some(bind("HTTP_ADDR", config.http_addr).await?),
        Role::Consumer => None,
    };
    let (admin_listener, admin_addr) = bind("ADMIN_ADDR", config.admin_addr).await?;

    let mut supervisor = Supervisor::new();
    let shared = Shared::new(config)?;
    let background = supervisor.group();
    background.spawn_infallible("metrics upkeep", metrics::run_upkeep(recorder.clone(), background.stop()));
    let schema_checked = Flag::default();
    background.spawn("schema check", check_schema(shared.store.clone(), schema_checked.clone(), background.stop()));

    let public = supervisor.group();
    let api = public_listener.map(|(listener, address)| {
        let api = Api::start(&shared, &background)?;
        let router = http::public_router(Arc::clone(&api.app));
        let serving = http::serve(listener, router, public.stop(), limits::HTTP_DRAIN_DEADLINE);
        public.spawn_infallible("public listener", serving);
        tracing::info!(http.addr = %address, "serving buyers");
        Ok::<Api, Failure>(api)
    });
    let api = api.transpose()?;

    if api.is_none() {
        watch_lag(&shared, &background);
    }

    let consuming = supervisor.group();
    let consumer_health = (role != Role::Api).then(|| start_consumer(&shared, api.as_ref(), &consuming));

    let relaying = supervisor.group();
    if role == Role::All {
        start_relay(&shared.config, relay::Health::default(), &relaying);
        super::audit::start(&shared.config, auditor::Health::default(), &background);
    }

    let health = Health {
        stop: stop.clone(),
        schema_checked: Some(schema_checked),
        ingress: api.as_ref().map(|api| api.ingress.clone()),
        catalogue_loaded: api.as_ref().map(|api| api.catalogue_loaded.clone()),
        consumer: consumer_health,
        relay: None,
        auditor: None,
    };
    let admin = supervisor.group();
    let operations = Operations { health, metrics: recorder };
    let admin_app = api.as_ref().map(|api| Arc::clone(&api.app));
    let router = http::admin_router(operations, admin_app, shared.config.admin_token.clone());
    let serving = http::serve(admin_listener, router, admin.stop(), limits::ADMIN_DRAIN_DEADLINE);
    admin.spawn_infallible("admin listener", serving);
    tracing::info!(admin.addr = %admin_addr, "serving operators");

    let ended = supervisor.watch(&stop).await;
    // Also when a component failed: readiness goes off, the others are drained.
    stop.cancel();
    let groups = Groups { public, consuming, relaying, admin, background };
    if tokio::time::timeout(limits::SHUTDOWN_DEADLINE, take_apart(api, groups)).await.is_err() {
        tracing::warn!("stopped with work left: the shutdown deadline is over");
    }
    if let Some(traces) = traces {
        // It blocks, for its deadline at most. A thread that panicked sends nothing, and that is told by the panic.
        drop(tokio::task::spawn_blocking(|| traces.flush()).await);
    }
    tracing::info!("stopped");
    ended
}

pub(super) async fn bind(variable: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let bound = TcpListener::bind(address).await.and_then(|listener| {
        let real = listener.local_addr()?;
        Ok((listener, real))
    });
    bound.map_err(|error| Failure::unavailable_because(format!("could not listen on {variable} {address}: {error}")))
}

impl Shared {
    pub(super) fn new(config: Config) -> Result<Self, Failure> {
        let store =
            Store::new(config.database(), &config.topic).map_err(|error| Failure::usage(super::chain(&error)))?;
        let cache =
            Cache::new(config.redis(), &config.redis_prefix).map_err(|error| Failure::usage(super::chain(&error)))?;
        let log_ends = LogEnds::start(config.brokers(), &config.topic).map_err(|error| kafka_refused(&error))?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Ok(Self { config, store, cache, log_ends, waiters: Waiters::default(), clock })
    }
}

/// The client library refuses its settings before it connects anywhere.
fn kafka_refused(error: &KafkaError) -> Failure {
    Failure::usage(super::chain(error))
}

impl Api {
    fn start(shared: &Shared, background: &Group) -> Result<Self, Failure> {
        let Shared { config, store, cache, log_ends, waiters, clock } = shared;
        let services = TaskTracker::new();
        let producer = Producer::start_with(config.brokers(), &config.topic, config.ingress.compression)
            .map_err(|error| kafka_refused(&error))?;
        let ingress = Ingress::start_with(producer, config.ingress.policy.clone());
        match &config.ingress.calibration_file {
            Some(path) if path.exists() => ingress.set_table(super::calibrate::table_in(path)?),
            Some(_) => {} // nothing was measured yet
            None => background
                .spawn_infallible("calibration", load_calibration(ingress.clone(), store.clone(), background.stop())),
        }
        let catalogue = Catalogue::new(store.clone());
        let catalogue_loaded = Flag::default();
        let stop_waiting = CancellationToken::new();
        let status = StatusReader::start(store.clone(), log_ends.clone(), Arc::clone(clock));
        let commands = Commands::new(
            store.clone(),
            ingress.clone(),
            waiters.clone(),
            log_ends.clone(),
            Arc::clone(clock),
            stop_waiting.clone(),
            limits::WAITER_SWEEP_EVERY,
        );
        let admission = Admission::start(Some(cache.clone()), status.clone(), catalogue.clone(), &services);
        let unheard = admission.unheard();
        let app = App {
            admission,
            catalogue: catalogue.clone(),
            ingress: ingress.clone(),
            waiters: waiters.clone(),
            store: store.clone(),
            reservations: ReservationCommands::new(commands.clone(), status.clone()),
            admin: SkuAdmin::new(store.clone(), commands),
            status,
            sku_reads: SkuReads::start(store.clone(), &services),
            clock: Arc::clone(clock),
            publishes: TaskTracker::new(),
            event_streams: Arc::new(Semaphore::new(limits::EVENT_STREAMS_MAX)),
            calls_of_many: Arc::new(Semaphore::new(limits::RESERVATIONS_CALLS_MAX)),
            stop_waiting: stop_waiting.clone(),
        };
        let stop = background.stop();
        background.spawn_infallible("catalogue", {
            let (catalogue, loaded, stop) = (catalogue.clone(), catalogue_loaded.clone(), stop.clone());
            async move {
                load_catalogue(&catalogue, &loaded, &stop).await;
                catalogue.run(stop).await;
            }
        });
        let subscribed = subscription::run(cache.clone(), waiters.clone(), catalogue.clone(), unheard, stop.clone());
        background.spawn_infallible("subscription", subscribed);
        background.spawn_infallible("sweep", waiters::sweep(waiters.clone(), store.clone(), stop.clone()));
        let watched = watch_partitions(catalogue, store.clone(), log_ends.clone(), config.topic.clone(), stop.clone());
        background.spawn_infallible("partition watch", watched);
        background.spawn("ingress", ingress_failure(ingress.clone(), stop));
        Ok(Self { app: Arc::new(app), ingress, catalogue_loaded, stop_waiting, services })
    }
}

/// The lag gauges of a process without an API, which has its own watch. The catalogue only carries the lag here; nobody reads its SKUs.
fn watch_lag(shared: &Shared, background: &Group) {
    let Shared { config, store, log_ends, .. } = shared;
    let catalogue = Catalogue::new(store.clone());
    let watched = watch_partitions(catalogue, store.clone(), log_ends.clone(), config.topic.clone(), background.stop());
    background.spawn_infallible("partition watch", watched);
}

/// Loads the catalogue once; until then the process is not ready, and SKUs are looked up one by one.
async fn load_catalogue(catalogue: &Catalogue, loaded: &Flag, stop: &CancellationToken) {
    while let Err(error) = catalogue.refresh().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "could not load the catalogue, trying again");
        if stop.run_until_cancelled(tokio::time::sleep(limits::RECONNECT_WAIT_MAX)).await.is_none() {
            return;
        }
    }
    loaded.set(true);
}

/// Puts measured levels in the places of the starting values, as soon as Postgres answers; nobody waits for it.
async fn load_calibration(ingress: Ingress, store: Store, stop: CancellationToken) {
    let measured = loop {
        match store.load_calibration().await {
            Ok(measured) => break measured,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not read the calibration yet");
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(limits::RECONNECT_WAIT_MAX)).await.is_none() {
            return;
        }
    };
    if !measured.is_empty() {
        tracing::info!(levels = measured.len(), "publishes by measured levels");
        ingress.set_table(calibration::table(&measured));
    }
    stop.cancelled().await; // a component that ends takes the process with it
}

/// Ends when nothing can be published any more, whatever the brokers do.
async fn ingress_failure(ingress: Ingress, stop: CancellationToken) -> Result<(), IngressFailed> {
    match stop.run_until_cancelled(ingress.failed()).await {
        Some(failed) => Err(failed),
        None => Ok(()),
    }
}

/// Refuses to work on tables that this build can't work on, as soon as Postgres can be asked. Waits for tables that are not made yet, or not
/// all of them: in a cluster everything is started at once, and migrations are done one by one. Until `is_checked` the process is not ready.
pub(super) async fn check_schema(store: Store, is_checked: Flag, stop: CancellationToken) -> Result<(), StoreError> {
    let (mut told_away, mut told_waiting) = (false, false);
    loop {
        match store.check_schema().await {
            Ok(found) => {
                if found > Store::schema_version_of_build() {
                    tracing::info!(schema = found, "working on the schema of a newer build, which allows it");
                }
                is_checked.set(true);
                stop.cancelled().await;
                return Ok(());
            }
            Err(error @ (StoreError::NotMigrated | StoreError::OtherSchema(SchemaMismatch::Older { .. }))) => {
                if !told_waiting {
                    tracing::warn!(error = &error as &dyn std::error::Error, "waiting for `flashsale migrate`");
                    told_waiting = true;
                }
            }
            Err(error @ StoreError::OtherSchema(_)) => return Err(error),
            Err(error) if !told_away => {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not check the schema, trying again");
                told_away = true;
            }
            Err(_) => {}
        }
        if stop.run_until_cancelled(tokio::time::sleep(limits::RECONNECT_WAIT_MAX)).await.is_none() {
            return Ok(());
        }
    }
}

/// Starts the writers; they end with their group.
pub(super) fn start_consumer(shared: &Shared, api: Option<&Api>, group: &Group) -> consumer::Health {
    let Shared { config, store, cache, log_ends, waiters, clock } = shared;
    let writer = WriterConfig {
        database_url: config.database().into(),
        topic: config.topic.as_str().into(),
        owner: owner().into(),
        build: format!("{} ({})", telemetry::VERSION, telemetry::REVISION).into(),
    };
    let settings = consumer::Config {
        kafka_brokers: config.brokers().to_owned(),
        topic: config.topic.clone(),
        dead_letter_topic: dead_letter_topic(&config.topic),
        group: config.group.clone(),
        batch_size_max: config.batch_size_max,
        writer,
    };
    let deps = consumer::Deps {
        store: store.clone(),
        cache: cache.clone(),
        waiters: waiters.clone(),
        catalogue: api.map(|api| api.app.catalogue.clone()),
        log_ends: log_ends.clone(),
        clock: Arc::clone(clock),
        decide: consumer::decide,
    };
    let health = consumer::Health::default();
    group.spawn("consumer", consumer::run(settings, deps, health.clone(), group.stop()));
    health
}

/// Starts the relay; it ends with its group.
pub(super) fn start_relay(config: &Config, health: relay::Health, group: &Group) {
    let settings = relay::Config {
        database_url: config.database().into(),
        brokers: config.brokers().to_owned(),
        topic: config.topic.clone(),
        events_topic: config.events_topic.clone(),
    };
    group.spawn_infallible("relay", relay::run(settings, health, group.stop()));
}

/// This process, for people who read `partition_state`.
fn owner() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "localhost".to_owned());
    format!("{host}:{}", std::process::id())
}

/// The groups, in the order in which they end.
struct Groups {
    public: Group,
    consuming: Group,
    relaying: Group,
    admin: Group,
    background: Group,
}

/// Requests first, then what they published, then the writers, which may still decide it; probes and metrics answer almost to the end.
async fn take_apart(api: Option<Api>, groups: Groups) {
    if let Some(api) = &api {
        api.stop_waiting.cancel();
    }
    groups.public.end("public listener", limits::HTTP_DRAIN_DEADLINE + limits::ADMIN_DRAIN_DEADLINE).await;
    if let Some(api) = &api {
        // Answers what is still in a lane; after it every publish knows its outcome.
        api.ingress.shutdown().await;
        api.app.publishes.close();
        end_within("publishes", limits::ADMIN_DRAIN_DEADLINE, api.app.publishes.wait()).await;
    }
    // Side by side: what the consumer still writes is published by whoever leads the outbox next.
    tokio::join!(
        groups.consuming.end("consumer", limits::CONSUMER_DRAIN_DEADLINE),
        groups.relaying.end("relay", limits::CONSUMER_DRAIN_DEADLINE),
    );
    groups.admin.end("admin listener", 2 * limits::ADMIN_DRAIN_DEADLINE).await;
    if let Some(Api { app, services, .. }) = api {
        // The last handles: what they have queued for Redis is said now.
        drop(app);
        services.close();
        end_within("redis", limits::SERVICES_DRAIN_DEADLINE, services.wait()).await;
    }
    groups.background.end("background", limits::ADMIN_DRAIN_DEADLINE).await;
}

/// Each part has its time: one that hangs must not take that of the others.
async fn end_within(what: &'static str, within: std::time::Duration, ended: impl Future<Output = ()>) {
    if tokio::time::timeout(within, ended).await.is_err() {
        tracing::warn!(part = what, "went on without the end of a part");
    }
}
