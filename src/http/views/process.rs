//! What a process says of itself: probes and its version.

use serde::Serialize;
use utoipa::ToSchema;

/// Result of a probe.
#[derive(Debug, Serialize, ToSchema)]
pub struct HealthView {
    /// `ok` or `unavailable`.
    pub status: &'static str,
    /// What was looked at.
    pub checks: Vec<CheckView>,
}

/// One thing that a probe looked at.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckView {
    /// Its name.
    pub name: &'static str,
    /// Whether it is fine.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

/// What runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionView {
    /// The package's version.
    pub version: &'static str,
    /// The commit it was built from, `unknown` if the build did not say.
    pub commit: &'static str,
    /// The newest migration that this build knows.
    pub schema: i64,
}
