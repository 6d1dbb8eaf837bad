//! `cargo bench --bench policies`: which rule says when to publish, in a model with fixed prices, in virtual time. Needs no server.
//!
//! | arm | rule |
//! |---|---|
//! | fixed 250, 10 ms | 250 commands, or 10 ms after the first one |
//! | fixed 50, 1 ms | likewise |
//! | EMA | 10 ms, and a size that grows by 10 % when it is reached and shrinks by 10 % when it is not (fed by its own output) |
//! | natural | whatever came while the last publish was on its way; one at a time |
//! | levels | the service's own: `flashsale::ingress::levels`, the code that runs in a lane |
//!
//! The model: three parts that work one thing at a time share two cores equally (three that want to work get two thirds of a core each).
//! Prices in CPU-us, fitted to measurements on two cores: the API 12 a command; the broker 130 a publish, 10 a record of up to 50 commands, 4
//! a command; the writer 260 a batch of up to 250 commands, 9 a command; an answer travels for 50 us. Arrivals are random (exponential
//! gaps, always the same ones). Two latencies count, both from the arrival: to the delivery report, and to the decision.
//!
//! A publish costs the cores that everybody needs; a rule that publishes all the time looks best as long as nobody else has work. JSON:
//! `load-tests/results/policies.json`. `BENCH_SECONDS` (10) is the virtual length of a run.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use flashsale::ingress::levels::{Governor, LEVELS, Policy as Wanted, Pressure, Setting, Table};
use flashsale::limits;

#[path = "support/machine.rs"]
mod machine;

const API_US: f64 = 12.0;
const PUBLISH_US: f64 = 130.0;
const RECORD_US: f64 = 10.0;
const COMMAND_US: f64 = 4.0;
const BATCH_US: f64 = 260.0;
const DECIDE_US: f64 = 9.0;
const TRAVEL_US: f64 = 50.0;
const CORES: f64 = 2.0;
/// Publishes that rules without a bound of their own may have on their way: what an idempotent producer allows.
const IN_FLIGHT_MAX: usize = 5;

enum Policy {
    Fixed { size: usize, linger_us: f64 },
    Ema { size: f64, linger_us: f64 },
    Governed(Governor),
}

/// When to publish next.
enum Due {
    Now,
    At(f64),
    AfterALanding,
}

impl Policy {
    fn due(&self, clock: &Clock, waiting: usize, oldest: f64, in_flight: usize) -> Due {
        let now = clock.now;
        let by_size = |size: usize, linger_us: f64| match () {
            () if in_flight >= IN_FLIGHT_MAX => Due::AfterALanding,
            () if waiting >= size || now >= oldest + linger_us => Due::Now,
            () => Due::At(oldest + linger_us),
        };
        match self {
            Self::Fixed { size, linger_us } => by_size(*size, *linger_us),
            Self::Ema { size, linger_us } => by_size(*size as usize, *linger_us),
            Self::Governed(governor) if in_flight >= governor.setting().in_flight_max => Due::AfterALanding,
            Self::Governed(governor) => match governor.wait(waiting, 0, clock.instant()) {
                Duration::ZERO => Due::Now,
                wait => Due::At(now + wait.as_secs_f64() * 1e6),
            },
        }
    }

    /// How many of those that wait go now.
    fn publishes(&mut self, clock: &Clock, waiting: usize) -> usize {
        match self {
            Self::Fixed { size, .. } => waiting.min(*size),
            Self::Ema { size, .. } => {
                let count = waiting.min(*size as usize);
                *size = (*size * if count >= *size as usize { 1.1 } else { 0.9 }).clamp(10.0, 5000.0);
                count
            }
            Self::Governed(governor) => {
                governor.started(clock.instant());
                waiting.min(governor.setting().commands_max)
            }
        }
    }

    fn arrived(&mut self, clock: &Clock) {
        if let Self::Governed(governor) = self {
            governor.arrived(1, clock.instant());
        }
    }
}

/// Virtual microseconds.
struct Clock {
    now: f64,
    base: Instant,
}

impl Clock {
    fn instant(&self) -> Instant {
        self.base + Duration::from_secs_f64(self.now / 1e6)
    }
}

/// A part that works one thing at a time: the work that is left of it, and what it is about.
#[derive(Default)]
struct Part {
    left: f64,
    about: Option<Vec<f64>>,
    worked: f64,
}

/// Random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Arrivals per second at a time.
type Demand = fn(f64, f64) -> f64;

#[derive(Default)]
struct Seen {
    reported_us: Vec<f64>,
    /// With the time of the arrival.
    decided_us: Vec<(f64, f64)>,
    publishes: usize,
    broker_us: f64,
    left_behind: usize,
}

/// `price`: of the broker, in times the usual one.
fn run(mut policy: Policy, rate: f64, demand: Demand, price: f64, seconds: f64) -> Seen {
    let mut clock = Clock { now: 0.0, base: Instant::now() };
    let mut random = Random(7);
    let end = seconds * 1e6;
    let mut seen = Seen::default();
    let (mut api, mut broker, mut writer) = (Part::default(), Part::default(), Part::default());
    let (mut asked, mut collected) = (VecDeque::new(), VecDeque::new());
    let (mut fired, mut travelling, mut logged) =
        (VecDeque::new(), VecDeque::<(f64, Vec<f64>)>::new(), VecDeque::new());
    let mut in_flight = 0;
    let mut next_arrival = 0.0;
    loop {
        // Everybody takes up what there is to do.
        if api.about.is_none()
            && let Some(at) = asked.pop_front()
        {
            api.about = Some(vec![at]);
            api.left = API_US;
        }
        let mut timer = f64::INFINITY;
        while let Some((_, entered)) = collected.front() {
            match policy.due(&clock, collected.len(), *entered, in_flight) {
                Due::Now => {
                    let count = policy.publishes(&clock, collected.len());
                    fired.push_back(collected.drain(..count).map(|(at, _)| at).collect::<Vec<f64>>());
                    in_flight += 1;
                    seen.publishes += 1;
                }
                Due::At(at) => {
                    timer = at;
                    break;
                }
                Due::AfterALanding => break,
            }
        }
        if broker.about.is_none()
            && let Some(publish) = fired.pop_front()
        {
            let records = publish.len().div_ceil(limits::RECORD_COMMANDS_MAX);
            broker.left = price * (PUBLISH_US + RECORD_US * records as f64 + COMMAND_US * publish.len() as f64);
            broker.about = Some(publish);
        }
        if writer.about.is_none() && !logged.is_empty() {
            let batch: Vec<f64> = logged.drain(..logged.len().min(limits::BATCH_SIZE_MAX)).collect();
            writer.left = BATCH_US + DECIDE_US * batch.len() as f64;
            writer.about = Some(batch);
        }
        // Until something happens.
        let active = [&api, &broker, &writer].iter().filter(|part| part.about.is_some()).count();
        let speed = (CORES / active.max(1) as f64).min(1.0);
        let done = |part: &Part| if part.about.is_some() { clock.now + part.left / speed } else { f64::INFINITY };
        let landing = travelling.front().map_or(f64::INFINITY, |(at, _)| *at);
        let next = [done(&api), done(&broker), done(&writer), landing, timer, next_arrival]
            .into_iter()
            .fold(f64::INFINITY, f64::min);
        if next > end {
            break;
        }
        let passed = (next - clock.now) * speed;
        for part in [&mut api, &mut broker, &mut writer] {
            if part.about.is_some() {
                part.left -= passed;
                part.worked += passed;
            }
        }
        clock.now = next;
        let is_done = |part: &Part| part.about.is_some() && part.left <= 1e-6;
        if next_arrival <= next {
            asked.push_back(next);
            next_arrival = next - (1.0 - random.next()).ln() * 1e6 / demand(rate, next / end);
        }
        if is_done(&api) {
            for at in api.about.take().unwrap_or_default() {
                collected.push_back((at, clock.now));
                policy.arrived(&clock);
            }
        }
        if is_done(&broker)
            && let Some(publish) = broker.about.take()
        {
            travelling.push_back((clock.now + TRAVEL_US, publish));
        }
        if landing <= next
            && let Some((_, publish)) = travelling.pop_front()
        {
            in_flight -= 1;
            seen.reported_us.extend(publish.iter().map(|at| clock.now - at));
            logged.extend(publish);
        }
        if is_done(&writer) {
            seen.decided_us.extend(writer.about.take().unwrap_or_default().into_iter().map(|at| (at, clock.now - at)));
        }
    }
    seen.broker_us = broker.worked;
    seen.left_behind = asked.len() + collected.len() + logged.len();
    seen
}

const ARMS: [&str; 5] = ["fixed 250, 10 ms", "fixed 50, 1 ms", "EMA", "natural", "levels"];
/// What the levels could learn from a broker with another price: their lingers times this.
const LINGERS: [f64; 4] = [1.0, 0.5, 2.0, 4.0];

fn with_lingers(times: f64) -> Policy {
    let mut table = Table::default();
    for level in 1..=LEVELS {
        let setting = table.setting(level);
        table.set(level, Setting { linger: setting.linger.mul_f64(times), ..setting });
    }
    let pressure = Pressure::Levels { table, min: 1, max: LEVELS };
    Policy::Governed(Governor::new(Wanted { pressure, ..Wanted::default() }, Instant::now()))
}

fn policy(arm: &str) -> Policy {
    let governed = |pressure| Policy::Governed(Governor::new(Wanted { pressure, ..Wanted::default() }, Instant::now()));
    match arm {
        "fixed 250, 10 ms" => Policy::Fixed { size: 250, linger_us: 10_000.0 },
        "fixed 50, 1 ms" => Policy::Fixed { size: 50, linger_us: 1_000.0 },
        "EMA" => Policy::Ema { size: 50.0, linger_us: 10_000.0 },
        "natural" => governed(Pressure::Fixed(Setting {
            linger: Duration::ZERO,
            commands_max: limits::PUBLISH_COMMANDS_MAX,
            in_flight_max: 1,
        })),
        _ => governed(Wanted::default().pressure),
    }
}

fn p95_ms(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() { f64::NAN } else { machine::quantile(&sorted, 0.95) / 1e3 }
}

fn main() {
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    let steady: Demand = |rate, _| rate;
    let step: Demand = |rate, share| if share < 0.5 { rate / 100.0 } else { rate };
    let loads = [
        ("100/s", 100.0, steady),
        ("1,000/s", 1e3, steady),
        ("5,000/s", 5e3, steady),
        ("25,000/s", 25e3, steady),
        ("50,000/s", 50e3, steady),
        ("250/s, then 25,000/s", 25e3, step),
    ];
    println!("| offered | arm | report P95 ms | decision P95 ms | commands a publish | broker CPU-us a command |");
    println!("|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for (load, rate, demand) in loads {
        for arm in ARMS {
            let seen = run(policy(arm), rate, demand, 1.0, seconds);
            let is_step = load.contains("then");
            // Of a step, those who come in the second after it.
            let (from, to) = if is_step { (seconds * 5e5, seconds * 5e5 + 1e6) } else { (0.0, f64::INFINITY) };
            let counted = seen.decided_us.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, us)| *us);
            let reported = p95_ms(seen.reported_us.iter().copied());
            let decided = p95_ms(counted);
            let count = seen.reported_us.len().max(1) as f64;
            let (each, broker) = (count / seen.publishes.max(1) as f64, seen.broker_us / count);
            let behind = if seen.left_behind > 2000 { " (falls behind)" } else { "" };
            println!("| {load} | {arm}{behind} | {reported:.2} | {decided:.2} | {each:.1} | {broker:.1} |");
            rows.push(serde_json::json!({
                "offered": load, "arm": arm, "report_p95_ms": reported, "decision_p95_ms": decided,
                "commands_per_publish": each, "broker_cpu_us_per_command": broker, "left_behind": seen.left_behind,
            }));
        }
    }
    println!(
        "\n| offered/s | broker's price | decision P95 ms, lingers as they are | x 0.5 | x 2 | x 4 |\n|---|---|---|---|---|---|"
    );
    let mut dear = Vec::new();
    for (rate, price) in [(5e3, 0.25), (5e3, 1.0), (5e3, 4.0), (25e3, 0.25), (25e3, 1.0), (25e3, 4.0)] {
        let p95s = LINGERS.map(|times| {
            let seen = run(with_lingers(times), rate, steady, price, seconds);
            p95_ms(seen.decided_us.iter().map(|(_, us)| *us))
        });
        println!("| {rate} | {price} | {:.2} | {:.2} | {:.2} | {:.2} |", p95s[0], p95s[1], p95s[2], p95s[3]);
        dear.push(
            serde_json::json!({"offered_per_second": rate, "price": price, "lingers_times": LINGERS, "p95_ms": p95s}),
        );
    }
    let report = serde_json::json!({
        "lingers": dear, "command": "make bench ARGS=policies", "machine": machine::describe(), "virtual_seconds": seconds, "rows": rows,
        "prices_us": {"api": API_US, "publish": PUBLISH_US, "record": RECORD_US, "command": COMMAND_US, "batch": BATCH_US,
            "decide": DECIDE_US, "travel": TRAVEL_US, "cores": CORES},
    });
    machine::write_report("policies.json", &report);
}
