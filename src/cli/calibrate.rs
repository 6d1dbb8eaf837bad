//! `flashsale calibrate`: measures on the real brokers what each pressure level should mean here, and keeps it.
//!
//! For each level it offers the middle of its range of arrivals to a lane as the API runs it, once for each cell of a grid (linger times cap
//! of commands), on a topic of its own that goes afterwards. Of the cells that publish few enough records, the one with the lowest P95 from
//! submission to report wins: without that bound the winner would always be not to wait at all, and everybody else on the brokers would
//! pay for it. Levels whose rate is above `--rate-max` keep what they mean. Bounded: a cell takes [`limits::CALIBRATION_CELL`].

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::{Failure, pretty, print};
use crate::config::{Config, Needs};
use crate::ids::{Quantity, SkuId, Ticket, UserId, fresh_id};
use crate::ingress::calibration::{self, Calibrated};
use crate::ingress::levels::{LEVELS, Policy, Pressure, Setting, Table};
use crate::ingress::{Delivery, Ingress};
use crate::inventory::{Command, Reserve};
use crate::kafka::{Producer, topics};
use crate::limits;
use crate::store::Store;
use crate::telemetry::logs;
use crate::wire::Sent;

/// Lingers that are tried, in microseconds: whole milliseconds, because that is what the runtime's timer counts in.
const LINGERS_US: [u64; 5] = [0, 1000, 2000, 4000, 8000];

#[derive(Args)]
pub(super) struct Calibrate {
    /// Offer no more than so many requests a second
    #[arg(long, value_name = "N", default_value_t = limits::CALIBRATION_RATE_MAX,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::CALIBRATION_RATE_SETTING_MAX)))]
    rate_max: u32,
    /// Copies of the topic that is measured on: as many as the log has
    #[arg(long, env = "REPLICATION", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=9))]
    replication: i32,
    /// Only show what was measured
    #[arg(long)]
    dry_run: bool,
}

/// One cell of the grid, measured.
#[derive(Clone, Copy, Debug)]
struct Cell {
    setting: Setting,
    p95_us: u64,
    records_per_second: u64,
}

/// What came back.
#[derive(Default)]
struct Deliveries {
    latencies_us: Vec<u64>,
    first: Option<Ticket>,
    last: Option<Ticket>,
    lost: usize,
}

impl Calibrate {
    /// Postgres only where that is the place to keep it.
    pub(super) fn needs(&self, has_file: bool) -> &'static [Needs] {
        if self.dry_run || has_file { &[Needs::Kafka] } else { &[Needs::Kafka, Needs::Database] }
    }

    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        // Its result goes to stdout.
        logs::install_on_stderr(config.log_format);
        let topic = format!("{}-calibration-{}", config.topic, fresh_id().simple());
        topics::ensure_scratch(config.brokers(), &topic, self.replication)
            .await
            .map_err(|error| Failure::unavailable(&error))?;
        let measured = self.measure(&config, &topic).await;
        let removed = topics::remove(config.brokers(), &topic).await;
        let measured = measured?;
        if let Err(error) = removed {
            tracing::warn!(kafka.topic = topic, error = &error as &dyn std::error::Error, "could not remove the topic");
        }
        if !self.dry_run {
            keep(&config, &measured).await?;
        }
        print(told(&measured, is_json))
    }

    async fn measure(&self, config: &Config, topic: &str) -> Result<Vec<Calibrated>, Failure> {
        let producer = Producer::start_with(config.brokers(), topic, config.ingress.compression)
            .map_err(|error| Failure::unavailable(&error))?;
        let mut measured = Vec::new();
        for level in (1..=LEVELS).filter(|level| rate_of(*level) <= f64::from(self.rate_max)) {
            let mut cells = Vec::new();
            for setting in grid(level) {
                let cell = measure(&producer, setting, rate_of(level)).await;
                tracing::info!(level, rate = rate_of(level), cell = ?cell, "measured");
                cells.extend(cell);
            }
            match best(&cells) {
                Some(cell) => measured.push(calibrated(level, cell)),
                None => tracing::warn!(level, "not everything was delivered, the level keeps what it means"),
            }
        }
        if measured.is_empty() {
            return Err(Failure::unavailable_because("no level could be measured: is Kafka well?"));
        }
        Ok(measured)
    }
}

/// What was measured before, from a file.
pub(super) fn table_in(path: &Path) -> Result<Table, Failure> {
    let measured = calibration::read(path).map_err(|error| Failure::usage(super::chain(&error)))?;
    Ok(calibration::table(&measured))
}

async fn keep(config: &Config, measured: &[Calibrated]) -> Result<(), Failure> {
    match &config.ingress.calibration_file {
        Some(path) => calibration::write(path, measured).map_err(|error| Failure::unavailable(&error)),
        None => {
            let store = Store::new(config.database(), &config.topic).map_err(|error| Failure::unavailable(&error))?;
            store.save_calibration(measured).await.map_err(|error| Failure::unavailable(&error))
        }
    }
}

/// The middle of a level's range: as far from its lower edge as from its upper one, in factors.
fn rate_of(level: usize) -> f64 {
    let edges = limits::LEVEL_EDGES_PER_SECOND;
    match level {
        1 => edges[0] / 2.0,
        LEVELS => edges[LEVELS - 2] * 1.5,
        _ => (edges[level - 2] * edges[level - 1]).sqrt(),
    }
}

/// The cells of a level: every linger, and half, once and twice its cap.
fn grid(level: usize) -> Vec<Setting> {
    let starting = Table::default().setting(level);
    let caps = [starting.commands_max / 2, starting.commands_max, starting.commands_max * 2];
    let cell = |linger_us: u64, commands_max: usize| Setting {
        linger: Duration::from_micros(linger_us),
        commands_max: commands_max.min(limits::PUBLISH_COMMANDS_MAX),
        ..starting
    };
    let mut cells = Vec::new();
    for linger_us in LINGERS_US {
        for commands_max in caps {
            // A cap that fills within the linger would be the pace: that is another cell.
            let gathers = rate_of(level) * Duration::from_micros(linger_us).as_secs_f64();
            if gathers < commands_max as f64 && !cells.contains(&cell(linger_us, commands_max)) {
                cells.push(cell(linger_us, commands_max));
            }
        }
    }
    cells
}

/// Offers `rate` for a cell's time. `None` = something was not delivered.
async fn measure(producer: &Producer, setting: Setting, rate: f64) -> Option<Cell> {
    let policy = Policy { pressure: Pressure::Fixed(setting), ..Policy::default() };
    let ingress = Ingress::start_with(producer.clone(), policy);
    let seen: Arc<Mutex<Deliveries>> = Arc::default();
    let offering = {
        let (ingress, seen, runtime) = (ingress.clone(), Arc::clone(&seen), tokio::runtime::Handle::current());
        // A thread of its own: it sleeps in shorter steps than a task can.
        tokio::task::spawn_blocking(move || {
            let _entered = runtime.enter();
            offer(&ingress, &seen, rate)
        })
    };
    let took = offering.await.expect("offering does not panic and is not aborted");
    ingress.shutdown().await;
    let mut seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    let (first, last) = (seen.first?, seen.last?);
    if seen.lost > 0 {
        return None;
    }
    seen.latencies_us.sort_unstable();
    let p95_us = seen.latencies_us[(seen.latencies_us.len() - 1) * 95 / 100];
    let records = (last.place.offset - first.place.offset + 1) as f64;
    Some(Cell { setting, p95_us, records_per_second: (records / took.as_secs_f64()) as u64 })
}

/// Submits at a steady rate, whatever comes back; how long it took.
fn offer(ingress: &Ingress, seen: &Arc<Mutex<Deliveries>>, rate: f64) -> Duration {
    let sku = SkuId::parse("calibration").expect("a legal id");
    let user = UserId::parse("calibration").expect("a legal id");
    let quantity = Quantity::new(1).expect("a legal quantity");
    let began = Instant::now();
    let mut sent = 0.0;
    while began.elapsed() < limits::CALIBRATION_CELL {
        while sent < began.elapsed().as_secs_f64() * rate {
            let reserve = Reserve { id: fresh_id(), user: user.clone(), sku: sku.clone(), quantity, metadata: None };
            let command = Sent { received_at_us: 0, request_id: String::new(), command: Command::Reserve(reserve) };
            let (submitted_at, seen) = (Instant::now(), Arc::clone(seen));
            // Told by callback: nobody waits for the future.
            drop(ingress.submit_with(0, command, None, move |delivery| {
                seen.lock().unwrap_or_else(PoisonError::into_inner).note(delivery, submitted_at.elapsed());
            }));
            sent += 1.0;
        }
        std::thread::sleep(limits::CALIBRATION_STEP);
    }
    began.elapsed()
}

impl Deliveries {
    fn note(&mut self, delivery: Delivery, after: Duration) {
        let Delivery::Delivered(ticket) = delivery else {
            self.lost += 1;
            return;
        };
        self.latencies_us.push(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
        self.first = Some(self.first.unwrap_or(ticket));
        self.last = Some(ticket);
    }
}

/// The lowest P95 of those that publish few enough records; within 5 % of it, the fewest records. If all publish too many, the fewest.
fn best(cells: &[Cell]) -> Option<Cell> {
    let fewest = |cells: &mut dyn Iterator<Item = &Cell>| cells.min_by_key(|cell| cell.records_per_second).copied();
    let is_modest = |cell: &&Cell| cell.records_per_second <= limits::CALIBRATION_RECORDS_PER_SECOND_MAX;
    match cells.iter().filter(is_modest).map(|cell| cell.p95_us).min() {
        Some(p95_us) => {
            let as_fast = |cell: &&Cell| cell.p95_us * 100 <= p95_us * 105;
            fewest(&mut cells.iter().filter(is_modest).filter(as_fast))
        }
        None => fewest(&mut cells.iter()),
    }
}

fn calibrated(level: usize, cell: Cell) -> Calibrated {
    let Cell { setting: Setting { linger, commands_max, in_flight_max }, p95_us, records_per_second } = cell;
    let linger_us = u64::try_from(linger.as_micros()).expect("a linger is short");
    Calibrated { level, linger_us, commands_max, in_flight_max, p95_us, records_per_second }
}

fn told(measured: &[Calibrated], is_json: bool) -> String {
    if is_json {
        return pretty(&json!({ "levels": measured }));
    }
    let mut text = String::from("level  offered/s  linger ms  commands  in flight  P95 ms  records/s");
    for one in measured {
        text += &format!(
            "\n{:>5}  {:>9.0}  {:>9.1}  {:>8}  {:>9}  {:>6.2}  {:>9}",
            one.level,
            rate_of(one.level),
            one.linger_us as f64 / 1e3,
            one.commands_max,
            one.in_flight_max,
            one.p95_us as f64 / 1e3,
            one.records_per_second
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(p95_us: u64, records_per_second: u64) -> Cell {
        let setting = Setting { linger: Duration::ZERO, commands_max: 1, in_flight_max: 1 };
        Cell { setting, p95_us, records_per_second }
    }

    #[test]
    fn the_fastest_of_the_modest_wins_and_of_equals_the_most_modest() {
        for (cells, won) in [
            (vec![], None),
            (vec![cell(900, 5_000)], Some(900)),
            (vec![cell(900, 5_000), cell(2_000, 900), cell(3_000, 400)], Some(2_000)),
            (vec![cell(2_000, 900), cell(2_090, 400), cell(2_110, 100)], Some(2_090)),
            (vec![cell(900, 5_000), cell(1_000, 4_000)], Some(1_000)),
        ] {
            assert_eq!(best(&cells).map(|cell| cell.p95_us), won, "{cells:?}");
        }
    }

    #[test]
    fn every_level_has_a_rate_of_its_own_and_a_grid_that_is_legal() {
        for level in 1..=LEVELS {
            let (rate, edges) = (rate_of(level), limits::LEVEL_EDGES_PER_SECOND);
            assert!(level == 1 || rate > edges[level - 2], "{level}");
            assert!(level == LEVELS || rate < edges[level - 1], "{level}");
            let cells = grid(level);
            assert!(cells.len() >= LINGERS_US.len(), "{level}: {cells:?}");
            for cell in cells {
                let mut table = Table::default();
                table.set(level, cell);
                assert_eq!(table.setting(level), cell, "cut to bounds");
            }
        }
    }
}
