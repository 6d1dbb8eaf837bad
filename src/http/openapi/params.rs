//! Parameters that several calls share, for the documents alone: handlers read them with `headers` and `query`.

use utoipa::IntoParams;
use uuid::Uuid;

/// Of calls on one SKU.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "only its description is used")]
pub(in crate::http) struct SkuPath {
    /// The SKU, 1 to 64 characters of `A-Z a-z 0-9 . _ : -`
    sku: String,
}

/// Of changes that are named by nothing else.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "only its description is used")]
pub(in crate::http) struct ChangeKey {
    /// Name of this change
    #[param(rename = "Idempotency-Key")]
    key: Option<String>,
}

/// Of changes of a reservation.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "only its description is used")]
pub(in crate::http) struct ReservationPath {
    /// The reservation
    id: Uuid,
}

/// Of changes of a reservation.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "only its description is used")]
pub(in crate::http) struct TicketQuery {
    /// As the 202 gave it: finds a reservation that is not decided yet
    ticket: Option<String>,
}

/// Of lists.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "only its description is used")]
pub(in crate::http) struct PageQuery {
    /// 1 to 500, default 50
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next_cursor` of the page before
    cursor: Option<String>,
}
