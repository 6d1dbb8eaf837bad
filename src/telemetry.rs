//! What the process tells about itself: JSON logs on stdout ([`logs`]), Prometheus metrics ([`metrics`]), and spans of sampled requests ([`traces`]).

pub mod logs;
pub mod metrics;
pub mod trace_context;
pub mod traces;

/// The package's version, as `--version`, `/version` and every effective configuration show it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that this binary was built from, where the build said so (`FLASHSALE_GIT_REVISION`).
pub const REVISION: &str = match option_env!("FLASHSALE_GIT_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};
