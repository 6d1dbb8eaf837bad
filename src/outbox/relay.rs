//! The relay: reads the outbox and publishes it.
//!
//! ```text
//! lead      partitions that nobody leads, one relay each (an advisory lock of its session)
//! load      some rows of each partition that is not in the air
//! fire      all their events, one wait, a report for each ([`super::round`])
//! settle    in the session that leads: rows that are done are deleted, of others only what is left is kept, what can't go is parked
//! ```
//! Partitions fly side by side, each in its own order; the session is asked by one task. A relay that loses its session loses its leads, drops
//! everything and begins again; what it fired and could not settle is published twice. So is what a killed relay had in the air.
//!
//! While a broker is away the client library waits for it and keeps the order; nothing is given up. Other failures hold the SKU back
//! and are tried again from the oldest event on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use metrics::{counter, gauge};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::cloud_event;
use crate::kafka::EventProducer;
use crate::limits;
use crate::store::{OutboxRow, OutboxSession, StoreError};
use crate::telemetry::metrics as names;
use lane::{Lane, Next};

mod flight;
mod lane;

use flight::{Landed, fly};

/// Where a relay reads and publishes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Postgres.
    pub database_url: Arc<str>,
    /// Kafka.
    pub brokers: String,
    /// The log's topic: its partitions are led, its name is the events' source.
    pub topic: String,
    /// Where events go.
    pub events_topic: String,
}

/// What the probes read: whether the relay has a session, leading or standing by.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<AtomicBool>);

impl Health {
    /// True while there is a session.
    pub fn has_session(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a session is dropped.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no report on events for {} s", limits::RELAY_FLIGHT_MAX.as_secs())]
    Lost,
}

/// Publishes until `stop`; then what is in the air is waited for, within [`limits::RELAY_DRAIN_DEADLINE`]. Servers that are away are waited for.
pub async fn run(config: Config, health: Health, stop: CancellationToken) {
    let mut wait = limits::RECONNECT_WAIT_MIN;
    while !stop.is_cancelled() {
        let opening = OutboxSession::open(&config.database_url, &config.topic);
        let broken = match stop.run_until_cancelled(opening).await {
            None => return,
            Some(Err(error)) => Broken::Store(error),
            Some(Ok(session)) => {
                health.0.store(true, Ordering::Relaxed);
                let began = Instant::now();
                let ended = Relay::new(&config, session, stop.clone()).lead().await;
                health.0.store(false, Ordering::Relaxed);
                gauge!(names::RELAY_LEADS).set(0.0);
                // Whoever leads now holds back what it must; a number that nobody corrects would be an alarm for ever.
                gauge!(names::EVENTS_HELD).set(0.0);
                match ended {
                    Ok(()) => return,
                    Err(broken) => {
                        if began.elapsed() > limits::RELAY_LEAD_EVERY {
                            wait = limits::RECONNECT_WAIT_MIN;
                        }
                        broken
                    }
                }
            }
        };
        if wait == limits::RECONNECT_WAIT_MIN {
            tracing::warn!(error = &broken as &dyn std::error::Error, "the relay has no session, trying again");
        }
        stop.run_until_cancelled(sleep(wait)).await;
        wait = (wait * 2).min(limits::RECONNECT_WAIT_MAX);
    }
}

/// A relay with its session.
struct Relay<'c> {
    config: &'c Config,
    source: Arc<str>,
    session: OutboxSession,
    lanes: BTreeMap<i32, Lane>,
    producer: Option<Arc<EventProducer>>,
    /// The producer waits for no company: there were events to be sent alone when it was made, maybe a thousand.
    is_hasty: bool,
    /// When a missing producer is tried again.
    connect_at: Instant,
    /// When lanes are looked at of which nobody knows whether rows wait.
    look_at: Instant,
    was_told: bool,
    stop: CancellationToken,
}

type Flights = FuturesUnordered<BoxFuture<'static, Landed>>;

impl<'c> Relay<'c> {
    fn new(config: &'c Config, session: OutboxSession, stop: CancellationToken) -> Self {
        let source = cloud_event::source(&config.topic).into();
        let (lanes, now) = (BTreeMap::new(), Instant::now());
        Self {
            config,
            source,
            session,
            lanes,
            producer: None,
            is_hasty: false,
            connect_at: now,
            look_at: now,
            was_told: false,
            stop,
        }
    }

    /// Until `stop`, or until the session is broken: then everything in the air is given up, because another relay may lead now.
    async fn lead(mut self) -> Result<(), Broken> {
        let mut flights = Flights::new();
        let led = self.lead_with(&mut flights).await;
        let ended = match led {
            Ok(()) => self.drain(&mut flights).await,
            Err(broken) => Err(broken),
        };
        if let Some(producer) = &self.producer {
            producer.give_up();
        }
        ended
    }

    async fn lead_with(&mut self, flights: &mut Flights) -> Result<(), Broken> {
        let mut ask_at = Instant::now();
        loop {
            if Instant::now() >= ask_at {
                self.take_leads().await?;
                ask_at = Instant::now() + limits::RELAY_LEAD_EVERY;
            }
            self.connect().await;
            self.begin_rounds(flights).await?;
            // Without a producer nothing was looked at, and there is no hurry.
            let now = Instant::now();
            let look_at = if self.look_at > now { self.look_at } else { now + limits::RELAY_LOOK_EVERY };
            let wait = look_at.min(ask_at).saturating_duration_since(now);
            // All arms are cancel-safe.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                Some(landed) = flights.next() => self.end_round(landed).await?,
                () = sleep(wait) => {}
            }
        }
    }

    async fn take_leads(&mut self) -> Result<(), Broken> {
        let led: Vec<i32> = self.lanes.keys().copied().collect();
        let taken = self.session.take_leads(&led).await?;
        if !taken.is_empty() {
            tracing::info!(kafka.partitions = ?taken, "leads partitions of the outbox");
            self.lanes.extend(taken.into_iter().map(|partition| (partition, Lane::new())));
        }
        gauge!(names::RELAY_LEADS).set(self.lanes.len() as f64);
        gauge!(names::EVENTS_HELD).set(self.lanes.values().map(|lane| lane.held().len()).sum::<usize>() as f64);
        let state = self.session.state().await?;
        gauge!(names::EVENTS_LAG).set(state.lag_seconds);
        gauge!(names::EVENTS_PARKED).set(state.parked as f64);
        Ok(())
    }

    /// A producer, if there is none and it is time to try. Whoever leads nothing needs none.
    async fn connect(&mut self) {
        if self.producer.is_some() || self.lanes.is_empty() || Instant::now() < self.connect_at {
            return;
        }
        let Config { brokers, events_topic, .. } = self.config;
        let is_hasty = self.lanes.values().any(Lane::has_suspects);
        let linger = if is_hasty { Duration::ZERO } else { limits::RELAY_LINGER };
        let connecting = EventProducer::connect(brokers, events_topic, cloud_event::CONTENT_TYPE, linger);
        match self.stop.run_until_cancelled(connecting).await {
            None => {}
            Some(Ok(producer)) => {
                self.was_told = false;
                (self.producer, self.is_hasty) = (Some(Arc::new(producer)), is_hasty);
            }
            Some(Err(error)) => {
                if !self.was_told {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        kafka.topic = events_topic,
                        "can't publish events, trying again"
                    );
                }
                self.was_told = true;
                self.connect_at = Instant::now() + limits::RECONNECT_WAIT_MAX;
            }
        }
    }

    /// Reads rows of the lanes that are not in the air, and sends them off. A lane that was emptied waits for the next look, with all others:
    /// what is looked for at once is little, and each handful costs Postgres and the broker as much as a crowd.
    async fn begin_rounds(&mut self, flights: &mut Flights) -> Result<(), Broken> {
        let Some(producer) = self.producer.clone() else { return Ok(()) };
        let now = Instant::now();
        let is_due = now >= self.look_at;
        if is_due {
            self.look_at = now + limits::RELAY_LOOK_EVERY;
        }
        let lanes = self.lanes.iter_mut();
        let asked: Vec<(i32, i64)> =
            lanes.filter_map(|(partition, lane)| Some((*partition, lane.look_from(is_due, now)?))).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let held: Vec<&str> = self.lanes.values().flat_map(|lane| lane.held().iter().map(|sku| sku.as_str())).collect();
        let mut loaded: BTreeMap<i32, Vec<OutboxRow>> = BTreeMap::new();
        for row in self.session.load(&asked, &held).await? {
            loaded.entry(row.partition).or_default().push(row);
        }
        for (partition, rows) in loaded {
            let lane = self.lanes.get_mut(&partition).expect("only lanes were asked for");
            match lane.begin(rows, now) {
                Next::Fly(rows, held) => {
                    let (producer, source) = (Arc::clone(&producer), Arc::clone(&self.source));
                    flights.push(Box::pin(fly(producer, source, partition, rows, held, self.stop.clone())));
                }
                Next::Park(unread) => {
                    tracing::error!(
                        kafka.partition = partition,
                        reason = unread.reason,
                        "parked a row of events that can't be read"
                    );
                    self.session.park_unread(&unread).await?;
                }
                Next::Hold => {}
            }
        }
        Ok(())
    }

    /// Writes down what a flight brought.
    async fn end_round(&mut self, landed: Landed) -> Result<(), Broken> {
        let Landed { partition, round, is_lost } = landed;
        let mut published: BTreeMap<&'static str, u64> = BTreeMap::new();
        round.confirmed().for_each(|event| *published.entry(event.kind()).or_default() += 1);
        for (kind, count) in published {
            counter!(names::EVENTS_PUBLISHED, "type" => kind).increment(count);
        }
        let (settlement, held) = round.end();
        if let Some(parked) = settlement.parked.first() {
            tracing::error!(
                kafka.partition = partition,
                event.count = settlement.parked.len(),
                event.id = parked.event.id(partition),
                reason = parked.reason,
                "parked events that can't be published"
            );
        }
        self.session.settle(partition, &settlement).await?;
        if is_lost {
            return Err(Broken::Lost);
        }
        if self.producer.as_ref().is_some_and(|producer| producer.is_over()) {
            // What it did not confirm is sent by the next one.
            self.producer = None;
        }
        let lane = self.lanes.get_mut(&partition).expect("a lane in the air is still led");
        lane.end(held, Instant::now());
        if self.is_hasty && !self.lanes.values().any(Lane::has_suspects) {
            // What it has in the air for other partitions lands with it; the next rounds get one that lingers.
            (self.producer, self.is_hasty) = (None, false);
        }
        Ok(())
    }

    /// No new events; those in the air land, or are given up.
    async fn drain(&mut self, flights: &mut Flights) -> Result<(), Broken> {
        let landed = timeout(limits::RELAY_DRAIN_DEADLINE, self.land_all(flights)).await;
        if let Ok(landed) = landed {
            return landed;
        }
        if let Some(producer) = &self.producer {
            producer.give_up();
        }
        let landed = timeout(limits::RELAY_SETTLE_DEADLINE, self.land_all(flights)).await;
        landed.unwrap_or(Ok(()))
    }

    async fn land_all(&mut self, flights: &mut Flights) -> Result<(), Broken> {
        while let Some(landed) = flights.next().await {
            self.end_round(landed).await?;
        }
        Ok(())
    }
}

/// The wait after one of `wait`.
fn longer(wait: Duration) -> Duration {
    (wait * 2).min(limits::RELAY_RETRY_WAIT_MAX)
}
