//! The command line: one program, one set of commands, exit codes that scripts can rely on.
//!
//! | exit | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | refused, or a check found something wrong |
//! | 2 | unknown: it may have happened |
//! | 64 | bad usage or configuration; nothing was started |
//! | 69 | a needed service is unavailable |
//! | 70 | a bug |

mod alone;
mod asking;
mod audit;
mod calibrate;
mod dlq;
mod drain;
mod healthcheck;
mod load;
mod log;
mod migrate;
mod partition;
mod process;
mod relay;
mod reservation;
mod serve;
mod sku;

use std::fmt::Display;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::config::{Config, Needs, Options};
use crate::http;
use crate::telemetry;

/// `--version`: the package's version and the commit it was built from.
static VERSION: LazyLock<String> = LazyLock::new(|| format!("{} ({})", telemetry::VERSION, telemetry::REVISION));

/// Sells scarce stock to a crowd: one honest answer each, fast, and never more units promised than exist.
#[derive(Parser)]
#[command(name = "flashsale", version = VERSION.as_str(), propagate_version = true, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Serve buyers and operators: HTTP in, log out
    Api,
    /// Decide: the single writer of the partitions that the group gives it
    Consumer,
    /// Publish events; or look after those that can't be published
    Relay(relay::Relay),
    /// Add the stock up by another way than the writers, or that of some SKUs; exits 0 if it adds up, 1 if not, 2 if nobody can say
    Audit(audit::Audit),
    /// All of them in one process
    All,
    /// Decide what is in the log now, and stop; exits 1 if a partition is halted, 69 if nothing moves for --within SECONDS
    Drain(drain::Drain),
    /// Create or upgrade tables and topics; may be run again
    Migrate(migrate::Migrate),
    /// Create, change and show SKUs
    #[command(subcommand)]
    Sku(sku::Sku),
    /// Look at reservations; confirm, cancel and extend them
    #[command(subcommand)]
    Reservation(reservation::Reservation),
    /// Show partitions, resume halted ones, step over what no build can read
    #[command(subcommand)]
    Partition(partition::Partition),
    /// Read the log
    #[command(subcommand)]
    Log(log::Log),
    /// Look after what could not be decided
    #[command(subcommand)]
    Dlq(dlq::Dlq),
    /// Measure on Kafka when publishes should start, by level of pressure, and keep it for the API
    Calibrate(calibrate::Calibrate),
    /// Offer a crowd's requests to an API, follow each to its decision, and check what was told; exits 1 if that can't be true
    Load(load::Load),
    /// Print the OpenAPI document
    Openapi {
        /// That of the admin listener
        #[arg(long)]
        admin: bool,
    },
    /// Print the effective configuration, secrets redacted
    Config,
    /// Ask the running process on this machine whether it is ready
    Healthcheck,
}

/// Why a command did not end well: its exit code and what to tell.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    message: String,
}

impl Failure {
    const REFUSED: u8 = 1;
    const UNKNOWN: u8 = 2;
    const USAGE: u8 = 64;
    const UNAVAILABLE: u8 = 69;
    const BUG: u8 = 70;

    /// The request was refused, or a check found something wrong.
    fn refused(message: impl Into<String>) -> Self {
        Self { exit: Self::REFUSED, message: message.into() }
    }

    /// Nobody knows whether it happened.
    fn unknown(message: impl Into<String>) -> Self {
        Self { exit: Self::UNKNOWN, message: message.into() }
    }

    /// The command line or the configuration is wrong.
    fn usage(message: impl Into<String>) -> Self {
        Self { exit: Self::USAGE, message: message.into() }
    }

    /// A service that is needed does not answer. The whole chain of causes is told.
    fn unavailable(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { exit: Self::UNAVAILABLE, message: chain(error) }
    }

    /// A service that is needed does not answer.
    fn unavailable_because(message: impl Into<String>) -> Self {
        Self { exit: Self::UNAVAILABLE, message: message.into() }
    }

    /// The program contradicts itself.
    fn bug(message: impl Into<String>) -> Self {
        Self { exit: Self::BUG, message: message.into() }
    }
}

/// An error with its causes: `could not read SKUs: connection refused`.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs the program. The one place that turns results into exit codes.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done if the terminal is gone.
            let _ = error.print();
            let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if is_answer { 0 } else { Failure::USAGE });
        }
    };
    let ended = std::panic::catch_unwind(|| run(cli));
    match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(Failure { exit, message })) => {
            for line in message.lines() {
                eprintln!("flashsale: {line}");
            }
            ExitCode::from(exit)
        }
        // The panic's own message is on stderr already.
        Err(_) => ExitCode::from(Failure::BUG),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { command, options, json } = cli;
    let config = |needs: &[Needs]| check(&options, needs);
    match command {
        Command::Api => in_runtime(serve::serve(config(ALL)?, serve::Role::Api)),
        Command::Consumer => in_runtime(serve::serve(config(ALL)?, serve::Role::Consumer)),
        Command::Relay(relay) => {
            let config = config(relay.needs())?;
            in_runtime(relay.run(config, json))
        }
        Command::Audit(audit) => in_runtime(audit.run(config(audit::Audit::NEEDS)?, json)),
        Command::All => in_runtime(serve::serve(config(ALL)?, serve::Role::All)),
        Command::Drain(drain) => in_runtime(drain.run(config(ALL)?, json)),
        Command::Migrate(migrate) => in_runtime(migrate.run(config(&[Needs::Database, Needs::Kafka])?)),
        Command::Sku(sku) => {
            let config = config(sku.needs())?;
            in_runtime(sku.run(config, json))
        }
        Command::Reservation(reservation) => {
            in_runtime(reservation.run(config(reservation::Reservation::NEEDS)?, json))
        }
        Command::Partition(partition) => {
            let config = config(partition.needs())?;
            in_runtime(partition.run(config, json))
        }
        Command::Log(log) => in_runtime(log.run(config(&[Needs::Kafka])?)),
        Command::Dlq(dlq) => {
            let config = config(dlq.needs())?;
            in_runtime(dlq.run(config, json))
        }
        Command::Calibrate(calibrate) => {
            let has_file = config(&[])?.ingress.calibration_file.is_some();
            let config = config(calibrate.needs(has_file))?;
            in_runtime(calibrate.run(config, json))
        }
        Command::Load(load) => in_runtime(load.run()),
        Command::Openapi { admin } => {
            let document = if admin { http::admin_openapi() } else { http::public_openapi() };
            print(document.to_pretty_json().map_err(|e| Failure::bug(e.to_string()))?)
        }
        Command::Config => print(pretty(&config(&[])?.redacted())),
        Command::Healthcheck => in_runtime(healthcheck::run(config(&[])?)),
    }
}

const ALL: &[Needs] = &[Needs::Database, Needs::Redis, Needs::Kafka];

fn check(options: &Options, needs: &[Needs]) -> Result<Config, Failure> {
    Config::check(options, needs).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::usage(lines.join("\n"))
    })
}

/// Runs a future on a runtime of its own; threads that are still blocked at the end are left behind.
fn in_runtime(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unavailable_because(format!("could not start threads: {error}")))?;
    let ended = runtime.block_on(future);
    runtime.shutdown_background();
    ended
}

/// Prints to stdout. A reader that has gone away is no failure of ours: nobody wants to know any more.
fn print(text: impl Display) -> Result<(), Failure> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::unavailable_because(format!("could not write to stdout: {error}"))),
    }
}

/// Indented JSON.
fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain values always become JSON")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_never_shows_a_secret_of_the_environment() {
        let secrets = ["database_url", "redis_url", "admin_token"];
        let command = Cli::command();
        let hidden = |id: &&str| command.get_arguments().any(|a| a.get_id() == *id && a.is_hide_env_values_set());
        assert!(secrets.iter().all(hidden), "every secret hides its value");
    }

    /// `NAME=default`, or `NAME` without one, of every setting of a command and its subcommands.
    fn settings(command: &clap::Command) -> BTreeSet<String> {
        let own = command.get_arguments().filter_map(|argument| {
            let name = argument.get_env()?.to_string_lossy();
            let default = argument.get_default_values().first().map(|value| format!("={}", value.to_string_lossy()));
            Some(format!("{name}{}", default.unwrap_or_default()))
        });
        own.chain(command.get_subcommands().flat_map(settings)).collect()
    }

    #[test]
    fn the_example_and_the_readme_name_every_setting() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("part of the repository");
        let mut expected = settings(&Cli::command());
        expected.insert("RUST_LOG=info".to_owned()); // Read by the library that logs.
        let name_of = |setting: &str| setting.split('=').next().expect("a split has a first part").to_owned();
        let has_default = |name: &str| !expected.contains(name);
        let example = read(".env.example");
        let lines = example.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
        let is_setting = |line: &&str| {
            line.split_once('=').is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        };
        let shown: BTreeSet<String> = lines
            .filter(is_setting)
            .map(|line| if has_default(&name_of(line)) { line.to_owned() } else { name_of(line) })
            .collect();
        assert_eq!(shown, expected, "without a default, the value is an example");
        let readme = read("README.md");
        assert!(expected.iter().all(|setting| readme.contains(&format!("`{}`", name_of(setting)))), "{expected:?}");
    }
}
