//! The bodies of answers. Absent = no value; `null` is never sent.

mod process;
mod reservation;
mod sku;

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

pub use process::{CheckView, HealthView, VersionView};
pub use reservation::{
    AcceptedView, ReservationCommandView, ReservationListView, ReservationView, ReserveManyItemView, ReserveManyView,
    ToldReservationView, status_url,
};
pub use sku::{
    AdminSkuView, CommandView, LagView, LimitsView, SkuListView, SkuView, StockView, late_payment_word,
    parse_late_payment,
};

/// A command that is not decided yet: the body of a 202.
#[derive(Debug, Serialize, ToSchema)]
pub struct AcceptedCommandView {
    /// The command.
    pub command_id: Uuid,
    /// Always `QUEUED`.
    #[schema(example = "QUEUED")]
    pub status: &'static str,
    /// Where to follow it.
    pub status_url: String,
}

/// Seconds, rounded to milliseconds: more would only look exact.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
