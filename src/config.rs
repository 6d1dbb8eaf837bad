//! Configuration: flags and environment from one definition, checked as a whole before anything binds or connects.
//!
//! [`Options`] is what was typed, as text, so that clap never stops at the first mistake; [`Config::check`] turns it into values and
//! tells **every** problem at once. Secrets live in types that don't show them: a configuration can be printed anywhere.

mod ingress;
mod secret;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde_json::{Map, Value};
use url::Url;

pub use secret::{Secret, SecretUrl};

use crate::ingress::levels::Policy;
use crate::kafka::Compression;
use crate::limits;
use crate::telemetry::logs::LogFormat;
use crate::telemetry::traces;

/// Flags and environment variables, as typed. An empty value is as good as none: compose files pass unset variables that way.
#[derive(Args, Clone)]
#[command(next_help_heading = "Configuration")]
pub struct Options {
    /// PostgreSQL: `postgres://user:password@host:5432/database`
    #[arg(long, env = "DATABASE_URL", value_name = "URL", global = true, hide_env_values = true)]
    database_url: Option<String>,
    /// Redis: `redis://host:6379/`
    #[arg(long, env = "REDIS_URL", value_name = "URL", global = true, hide_env_values = true)]
    redis_url: Option<String>,
    /// Kafka: `host:9092,host:9092`
    #[arg(long, env = "KAFKA_BROKERS", value_name = "HOST:PORT,...", global = true)]
    kafka_brokers: Option<String>,
    /// Where buyers are served; port 0 takes any free one
    #[arg(long, env = "HTTP_ADDR", value_name = "ADDR", global = true, default_value = "127.0.0.1:8080")]
    http_addr: String,
    /// Where operators are served; ADMIN_TOKEN is required unless it is a loopback address
    #[arg(long, env = "ADMIN_ADDR", value_name = "ADDR", global = true, default_value = "127.0.0.1:9090")]
    admin_addr: String,
    /// Bearer token of the admin listener
    #[arg(long, env = "ADMIN_TOKEN", value_name = "TOKEN", global = true, hide_env_values = true)]
    admin_token: Option<String>,
    /// Topic of the log; dead letters go to `<TOPIC>-dlq`
    #[arg(long, env = "TOPIC", value_name = "TOPIC", global = true, default_value = "reservation-requests")]
    topic: String,
    /// Topic of events, which the relay publishes
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", global = true, default_value = "reservation-events")]
    events_topic: String,
    /// Kafka consumer group
    #[arg(long, env = "GROUP", value_name = "GROUP", global = true, default_value = "inventory-batch-consumer")]
    group: String,
    /// Prefix of every Redis key
    #[arg(long, env = "REDIS_PREFIX", value_name = "PREFIX", global = true, default_value = "flashsale:")]
    redis_prefix: String,
    /// Commands in one batch
    #[arg(long, env = "BATCH_SIZE_MAX", value_name = "N", global = true, default_value_t = limits::BATCH_SIZE_MAX.to_string())]
    batch_size_max: String,
    /// Publishes: `on` = by ten levels of pressure, as measured; `off` = always by INGRESS_LINGER_MS and INGRESS_COMMANDS_MAX
    #[arg(long, env = "INGRESS_ADAPTIVE", value_name = "ON|OFF", global = true, default_value = "on")]
    ingress_adaptive: String,
    /// Lowest level, 1 to 10
    #[arg(long, env = "INGRESS_LEVEL_MIN", value_name = "N", global = true, default_value = "1")]
    ingress_level_min: String,
    /// Highest level, 1 to 10
    #[arg(long, env = "INGRESS_LEVEL_MAX", value_name = "N", global = true, default_value = "10")]
    ingress_level_max: String,
    /// Milliseconds between two publishes of a partition, without levels
    #[arg(long, env = "INGRESS_LINGER_MS", value_name = "MS", global = true, default_value_t = limits::PUBLISH_LINGER.as_millis().to_string())]
    ingress_linger_ms: String,
    /// Commands in one publish, at any level
    #[arg(long, env = "INGRESS_COMMANDS_MAX", value_name = "N", global = true, default_value_t = limits::PUBLISH_COMMANDS_MAX.to_string())]
    ingress_commands_max: String,
    /// Bytes in one publish, at any level
    #[arg(long, env = "INGRESS_BYTES_MAX", value_name = "N", global = true, default_value_t = limits::PUBLISH_BYTES_MAX.to_string())]
    ingress_bytes_max: String,
    /// Compression of the log: `none`, `gzip`, `snappy` or `lz4`
    #[arg(long, env = "INGRESS_COMPRESSION", value_name = "CODEC", global = true, default_value = "none")]
    ingress_compression: String,
    /// Where measured levels are kept: a file of `flashsale calibrate`; none = in Postgres
    #[arg(long, env = "INGRESS_CALIBRATION_FILE", value_name = "PATH", global = true)]
    ingress_calibration_file: Option<String>,
    /// Log lines: `json` or `pretty`
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT", global = true, default_value = "json")]
    log_format: String,
    /// Where traces are sent: the base URL of a collector that takes OTLP over HTTP, e.g. `http://localhost:4318`; none = no traces
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", global = true)]
    otel_exporter_otlp_endpoint: Option<String>,
    /// Share of requests to trace, 0 to 1, of those whose caller sends no `traceparent`
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE", global = true, default_value = "0.01")]
    otel_traces_sampler_arg: String,
}

/// A service that a subcommand can't do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// PostgreSQL.
    Database,
    /// Redis.
    Redis,
    /// Kafka.
    Kafka,
}

/// One thing that is wrong with the configuration: which setting, and what it must be. Never shows a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The environment variable, by which the flag is found too.
    pub variable: &'static str,
    /// What is wrong, and how it would be right.
    pub detail: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = self.variable.to_ascii_lowercase().replace('_', "-");
        write!(f, "{} (--{flag}): {}", self.variable, self.detail)
    }
}

/// The effective configuration. `Debug` shows it redacted, as JSON.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// PostgreSQL; absent only where the subcommand does not need it.
    pub database_url: Option<SecretUrl>,
    /// Redis; likewise.
    pub redis_url: Option<SecretUrl>,
    /// Kafka's bootstrap servers, comma-separated; likewise.
    pub kafka_brokers: Option<String>,
    /// Public listener.
    pub http_addr: SocketAddr,
    /// Admin listener.
    pub admin_addr: SocketAddr,
    /// Bearer token of the admin listener; absent = everyone who reaches it is an operator.
    pub admin_token: Option<Secret>,
    /// Topic of the log.
    pub topic: String,
    /// Topic of events.
    pub events_topic: String,
    /// Consumer group.
    pub group: String,
    /// Prefix of every Redis key.
    pub redis_prefix: String,
    /// Commands in one batch, 1 to [`limits::BATCH_SIZE_SETTING_MAX`].
    pub batch_size_max: usize,
    /// How requests are collected and published.
    pub ingress: Ingress,
    /// Shape of log lines.
    pub log_format: LogFormat,
    /// Where traces go; absent = nowhere.
    pub traces: Option<traces::Settings>,
}

/// How requests are collected and published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// When a publish starts, and how much it takes. Its table has the starting values.
    pub policy: Policy,
    /// Of records.
    pub compression: Compression,
    /// Where measured levels are kept; absent = in Postgres.
    pub calibration_file: Option<PathBuf>,
}

impl Config {
    /// Checks everything that was typed.
    ///
    /// # Errors
    /// Every problem, in the order of the settings: exit 64.
    pub fn check(options: &Options, needs: &[Needs]) -> Result<Self, Vec<ConfigProblem>> {
        let mut problems = Problems(Vec::new());
        let database_url = options.database_url(&mut problems, needs.contains(&Needs::Database));
        let redis_url = options.redis_url(&mut problems, needs.contains(&Needs::Redis));
        let kafka_brokers = options.kafka_brokers(&mut problems, needs.contains(&Needs::Kafka));
        let http_addr = problems.address("HTTP_ADDR", &options.http_addr);
        let admin_addr = problems.address("ADMIN_ADDR", &options.admin_addr);
        let admin_token = options.admin_token(&mut problems, admin_addr);
        problems.name("TOPIC", &options.topic, limits::TOPIC_CHARS_MAX, "._-");
        problems.name("EVENTS_TOPIC", &options.events_topic, limits::TOPIC_CHARS_MAX, "._-");
        problems.name("GROUP", &options.group, limits::GROUP_CHARS_MAX, "._-");
        problems.name("REDIS_PREFIX", &options.redis_prefix, limits::REDIS_PREFIX_CHARS_MAX, "._-:");
        let batch_size_max = batch_size(&mut problems, &options.batch_size_max);
        let ingress = options.ingress(&mut problems);
        let log_format = LogFormat::parse(options.log_format.trim());
        if log_format.is_none() {
            problems.add::<()>("LOG_FORMAT", "must be json or pretty");
        }
        let traces = options.traces(&mut problems);
        match (http_addr, admin_addr, batch_size_max, ingress, log_format, problems.0.is_empty()) {
            (Some(http_addr), Some(admin_addr), Some(batch_size_max), Some(ingress), Some(log_format), true) => {
                Ok(Self {
                    database_url,
                    redis_url,
                    kafka_brokers,
                    http_addr,
                    admin_addr,
                    admin_token,
                    topic: options.topic.clone(),
                    events_topic: options.events_topic.clone(),
                    group: options.group.clone(),
                    redis_prefix: options.redis_prefix.clone(),
                    batch_size_max,
                    ingress,
                    log_format,
                    traces,
                })
            }
            _ => Err(problems.0),
        }
    }

    /// The effective values by name, secrets redacted: for `flashsale config`, the log line at start, and `Debug`.
    pub fn redacted(&self) -> Map<String, Value> {
        let text = |shown: Option<String>| shown.map_or(Value::Null, Value::from);
        let mut values = Map::new();
        values.insert("database_url".into(), text(self.database_url.as_ref().map(ToString::to_string)));
        values.insert("redis_url".into(), text(self.redis_url.as_ref().map(ToString::to_string)));
        values.insert("kafka_brokers".into(), text(self.kafka_brokers.clone()));
        values.insert("http_addr".into(), self.http_addr.to_string().into());
        values.insert("admin_addr".into(), self.admin_addr.to_string().into());
        values.insert("admin_token".into(), text(self.admin_token.as_ref().map(|t| format!("{t:?}"))));
        values.insert("topic".into(), self.topic.clone().into());
        values.insert("events_topic".into(), self.events_topic.clone().into());
        values.insert("group".into(), self.group.clone().into());
        values.insert("redis_prefix".into(), self.redis_prefix.clone().into());
        values.insert("batch_size_max".into(), self.batch_size_max.into());
        values.extend(self.ingress.values());
        values.insert("log_format".into(), self.log_format.word().into());
        values.insert("otel_exporter_otlp_endpoint".into(), text(self.traces.as_ref().map(|t| t.endpoint.clone())));
        values.insert("otel_traces_sampler_arg".into(), self.traces.as_ref().map_or(Value::Null, |t| t.share.into()));
        values
    }

    /// PostgreSQL's URL, of a subcommand that needs it.
    pub fn database(&self) -> &str {
        self.database_url.as_ref().expect("checked: this subcommand needs Needs::Database").expose()
    }

    /// Redis' URL, of a subcommand that needs it.
    pub fn redis(&self) -> &str {
        self.redis_url.as_ref().expect("checked: this subcommand needs Needs::Redis").expose()
    }

    /// Kafka's brokers, of a subcommand that needs them.
    pub fn brokers(&self) -> &str {
        self.kafka_brokers.as_deref().expect("checked: this subcommand needs Needs::Kafka")
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Value::Object(self.redacted()), f)
    }
}

impl Options {
    fn database_url(&self, problems: &mut Problems, is_needed: bool) -> Option<SecretUrl> {
        let text =
            problems.given("DATABASE_URL", &self.database_url, is_needed, "postgres://user:password@host/database")?;
        let is_good = SecretUrl::parse(text, &["postgres", "postgresql"])
            .filter(|url| sqlx::postgres::PgConnectOptions::from_str(url.expose()).is_ok());
        // The URL itself is not shown: it may hold a password wherever the mistake is.
        is_good
            .or_else(|| problems.add("DATABASE_URL", "must be a URL like postgres://user:password@host:5432/database"))
    }

    fn redis_url(&self, problems: &mut Problems, is_needed: bool) -> Option<SecretUrl> {
        let text = problems.given("REDIS_URL", &self.redis_url, is_needed, "redis://host:6379/")?;
        let is_good =
            SecretUrl::parse(text, &["redis"]).filter(|url| redis::Client::open(url.expose().to_owned()).is_ok());
        is_good.or_else(|| problems.add("REDIS_URL", "must be a URL like redis://host:6379/"))
    }

    fn kafka_brokers(&self, problems: &mut Problems, is_needed: bool) -> Option<String> {
        let text = problems.given("KAFKA_BROKERS", &self.kafka_brokers, is_needed, "host:9092")?;
        let is_broker = |broker: &str| {
            let parts = broker.trim().rsplit_once(':');
            parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
        };
        if text.split(',').all(is_broker) {
            return Some(text.to_owned());
        }
        problems.add("KAFKA_BROKERS", "must be host:port, several separated by commas")
    }

    /// The share is looked at also where nothing is sent: a mistake is told when it is made.
    fn traces(&self, problems: &mut Problems) -> Option<traces::Settings> {
        let share = self.otel_traces_sampler_arg.trim();
        let share = if share.is_empty() { "0.01" } else { share };
        let share = share.parse().ok().filter(|share: &f64| (0.0..=1.0).contains(share));
        let share = share.or_else(|| problems.add("OTEL_TRACES_SAMPLER_ARG", "must be a share from 0 to 1, like 0.01"));
        let endpoint = problems.given("OTEL_EXPORTER_OTLP_ENDPOINT", &self.otel_exporter_otlp_endpoint, false, "")?;
        let is_good = Url::parse(endpoint).is_ok_and(|url| {
            url.scheme() == "http" && url.has_host() && url.query().is_none() && url.username().is_empty()
        });
        if !is_good {
            return problems.add(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "must be a URL like http://localhost:4318, without TLS: send to a collector beside the service, which may forward by TLS",
            );
        }
        Some(traces::Settings { endpoint: endpoint.to_owned(), share: share? })
    }

    fn admin_token(&self, problems: &mut Problems, admin_addr: Option<SocketAddr>) -> Option<Secret> {
        let token = self.admin_token.as_deref().filter(|t| !t.is_empty());
        match token {
            Some(token) if token.bytes().all(|b| b.is_ascii_graphic()) => Some(Secret::new(token)),
            Some(_) => problems.add("ADMIN_TOKEN", "must be printable ASCII without blanks"),
            None if admin_addr.is_some_and(|a| !a.ip().is_loopback()) => problems
                .add("ADMIN_TOKEN", "is required, because ADMIN_ADDR is not a loopback address: others could reach it"),
            None => None,
        }
    }
}

fn batch_size(problems: &mut Problems, text: &str) -> Option<usize> {
    let size = text.trim().parse().ok().filter(|n| (1..=limits::BATCH_SIZE_SETTING_MAX).contains(n));
    size.or_else(|| problems.add("BATCH_SIZE_MAX", format!("must be 1 to {}", limits::BATCH_SIZE_SETTING_MAX)))
}

struct Problems(Vec<ConfigProblem>);

impl Problems {
    /// Notes a problem; returns `None` for the convenience of callers that have no value then.
    fn add<T>(&mut self, variable: &'static str, detail: impl Into<String>) -> Option<T> {
        self.0.push(ConfigProblem { variable, detail: detail.into() });
        None
    }

    fn given<'a>(
        &mut self,
        variable: &'static str,
        value: &'a Option<String>,
        is_needed: bool,
        example: &str,
    ) -> Option<&'a str> {
        let given = value.as_deref().map(str::trim).filter(|text| !text.is_empty());
        if given.is_none() && is_needed {
            return self.add(variable, format!("is required, e.g. {example}"));
        }
        given
    }

    fn address(&mut self, variable: &'static str, text: &str) -> Option<SocketAddr> {
        let address = text.trim().parse().ok();
        address
            .or_else(|| self.add(variable, format!("`{text}` must be an IP address and a port, like 127.0.0.1:8080")))
    }

    fn name(&mut self, variable: &'static str, text: &str, chars_max: usize, also: &str) {
        let is_good = (1..=chars_max).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c));
        if !is_good {
            self.add::<()>(variable, format!("must be 1 to {chars_max} characters of A-Z, a-z, 0-9 and {also}"));
        }
    }
}

#[cfg(test)]
mod tests;
