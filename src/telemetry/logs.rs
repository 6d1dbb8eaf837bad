//! Logs: one line per event on stdout, JSON for machines or pretty for people.
//!
//! `RUST_LOG` chooses levels as usual; without it everything of ours is told from `info` up, and the libraries' own chatter from `warn`.

use time::format_description::well_known::Rfc3339;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::time::UtcTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, fields at the top level.
    Json,
    /// Coloured lines for a terminal.
    Pretty,
}

impl LogFormat {
    /// Reads `json` or `pretty`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "json" => Some(Self::Json),
            "pretty" => Some(Self::Pretty),
            _ => None,
        }
    }

    /// The word for it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Pretty => "pretty",
        }
    }
}

/// Levels when `RUST_LOG` is unset. librdkafka tells every lost connection at `error`; we count and tell them ourselves.
const DEFAULT_FILTER: &str = "info,librdkafka=warn,rdkafka=warn,sqlx=warn,hyper=warn";

/// Starts logging for the whole process. Later calls (tests) change nothing.
pub fn install(format: LogFormat) {
    install_on(format, std::io::stdout);
}

/// The same for a command whose stdout is its result.
pub fn install_on_stderr(format: LogFormat) {
    install_on(format, std::io::stderr);
}

fn install_on<W>(format: LogFormat, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let timer = UtcTime::new(Rfc3339);
    let installed = match format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_timer(timer)).try_init(),
        LogFormat::Pretty => registry.with(layer.with_timer(timer)).try_init(),
    };
    // Already installed: the first caller's choice stands, which is what a second caller in one process wants.
    drop(installed);
}
