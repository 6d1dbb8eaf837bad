//! `flashsale load`: a crowd from outside, that checks what it was told.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Failure, pretty, print};
use crate::limits;
use crate::load::{self, Plan, Profile, Schedule, Watched};

#[derive(Args)]
pub(super) struct Load {
    /// The API: `http://host:port`
    #[arg(long, default_value = "http://127.0.0.1:8080", value_parser = parse_target)]
    url: String,
    /// What the crowd wants, the most wanted first
    #[arg(long, value_name = "SKU,...", value_delimiter = ',', required = true)]
    sku: Vec<String>,
    /// The n-th SKU is wanted 1/n^ZIPF times as much as the first
    #[arg(long, default_value_t = 1.0, value_parser = parse_zipf)]
    zipf: f64,
    /// When they come: `steady`, `ramp` (up to the rate), or `burst` (half of them in a tenth of the time)
    #[arg(long, default_value = "steady", value_parser = parse_profile)]
    profile: Profile,
    /// Requests a second; they come whatever the answers are
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// For so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Kept connections: so many requests are in flight at most
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Threads that send
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Seconds that a buyer keeps trying, and then waits for the decision
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=limits::LOAD_PATIENCE_MAX.as_secs()))]
    patience: u64,
    /// Ask for the decision in the answer: `Prefer: wait=SECONDS`; without it, it is asked for after the rush
    #[arg(long, value_name = "SECONDS", value_parser = parse_wait)]
    wait: Option<Duration>,
    /// Ask for so many in one call, as a shop's backend does; a call is due when its last item is
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=limits::RESERVATIONS_PER_CALL_MAX as i64))]
    batch: Option<u16>,
    /// Send no `Idempotency-Key`: then nobody tries again what may have been taken
    #[arg(long)]
    unkeyed: bool,
    /// Others buy these SKUs too: units without a buyer here are no violation
    #[arg(long)]
    shared: bool,
    /// Tell the CPU time of a process and its children, by a name; may be repeated
    #[arg(long, value_name = "NAME=PID", value_parser = parse_watched)]
    watch: Vec<Watched>,
    /// A line about the service's settings for the report; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
    set: Vec<(String, String)>,
    /// Write the report to a file too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn parse_target(text: &str) -> Result<String, String> {
    let target = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')).unwrap_or_default();
    let is_host = !target.is_empty() && !target.contains(['/', '@', '?', '#']);
    let with_port = if target.contains(':') { target.to_owned() } else { format!("{target}:80") };
    is_host.then_some(with_port).ok_or_else(|| "must be http://host:port".to_owned())
}

fn parse_zipf(text: &str) -> Result<f64, String> {
    let exponent = text.parse().ok().filter(|exponent| (0.0..=5.0).contains(exponent));
    exponent.ok_or_else(|| "must be 0 (all alike) to 5".to_owned())
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (1..=limits::PREFER_WAIT_SECONDS_MAX).contains(seconds));
    let seconds = seconds.ok_or_else(|| format!("must be 1 to {} seconds", limits::PREFER_WAIT_SECONDS_MAX))?;
    Ok(Duration::from_secs(seconds))
}

fn parse_profile(text: &str) -> Result<Profile, String> {
    Profile::parse(text).ok_or_else(|| "must be steady, ramp or burst".to_owned())
}

fn parse_watched(text: &str) -> Result<Watched, String> {
    let (name, pid) = text.split_once('=').ok_or("must be name=pid")?;
    let pid = pid.parse().map_err(|_| "must be name=pid")?;
    Ok(Watched { name: name.to_owned(), pid })
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Load {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let (file, plan) = (self.report.clone(), self.plan());
        if plan.connections < plan.threads {
            return Err(Failure::usage("--connections must be at least --threads".to_owned()));
        }
        let report = tokio::task::spawn_blocking(|| load::run(plan)).await;
        let report = report.map_err(|error| Failure::bug(error.to_string()))?;
        if let Some(file) = file {
            let written = std::fs::write(&file, pretty(&report.value) + "\n");
            written.map_err(|error| {
                Failure::unavailable_because(format!("could not write {}: {error}", file.display()))
            })?;
        }
        print(pretty(&report.value))?;
        if report.violations.is_empty() { Ok(()) } else { Err(Failure::refused(report.violations.join("\n"))) }
    }

    fn plan(self) -> Plan {
        Plan {
            target: self.url,
            skus: self.sku,
            zipf: self.zipf,
            schedule: Schedule { profile: self.profile, rate: self.rate, duration: Duration::from_secs(self.seconds) },
            connections: usize::from(self.connections),
            threads: usize::from(self.threads),
            patience: Duration::from_secs(self.patience),
            wait: self.wait,
            batch: self.batch,
            is_keyed: !self.unkeyed,
            is_alone: !self.shared,
            watched: self.watch,
            settings: self.set,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host() {
        assert_eq!(parse_target("http://api:8080/").as_deref(), Ok("api:8080"));
        assert_eq!(parse_target("http://api").as_deref(), Ok("api:80"));
        for wrong in ["api:80", "https://api", "http://", "http://api/v1", "http://a@b"] {
            assert!(parse_target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_watched_and_told_has_a_name() {
        assert_eq!(parse_watched("api=7"), Ok(Watched { name: "api".into(), pid: 7 }));
        assert!(parse_watched("api").is_err() && parse_watched("api=x").is_err() && parse_setting("x").is_err());
        assert_eq!(parse_setting("fsync=on=off"), Ok(("fsync".into(), "on=off".into())));
        assert!(parse_zipf("-1").is_err() && parse_zipf("NaN").is_err() && parse_zipf("0").is_ok());
    }
}
