//! `flashsale load`: a crowd for one SKU, from outside, that checks what it was told.

use std::time::Duration;

use clap::Args;

use super::{Failure, pretty, print};
use crate::load::{self, Plan};

#[derive(Args)]
pub(super) struct Load {
    /// The API: `http://host:port`
    #[arg(long, default_value = "http://127.0.0.1:8080", value_parser = parse_target)]
    url: String,
    /// What everybody wants
    #[arg(long)]
    sku: String,
    /// Requests a second; they come whatever the answers are
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// For so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Kept connections: so many requests are in flight at most
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Seconds that a buyer keeps trying, and then waits for the decision
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
}

fn parse_target(text: &str) -> Result<String, String> {
    let target = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')).unwrap_or_default();
    let is_host = !target.is_empty() && !target.contains(['/', '@', '?', '#']);
    let with_port = if target.contains(':') { target.to_owned() } else { format!("{target}:80") };
    is_host.then_some(with_port).ok_or_else(|| "must be http://host:port".to_owned())
}

impl Load {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let report = load::run(Plan {
            target: self.url,
            sku: self.sku,
            rate: self.rate,
            duration: Duration::from_secs(self.seconds),
            connections: usize::from(self.connections),
            patience: Duration::from_secs(self.patience),
        })
        .await;
        print(pretty(&report.value))?;
        if report.violations.is_empty() { Ok(()) } else { Err(Failure::refused(report.violations.join("\n"))) }
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
}
