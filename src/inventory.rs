//! The pure core: what a single writer knows, what it is asked, and what it says. **PURE.**
//!
//! Nothing here is async, reads a clock, draws a random number, logs, or depends on the order of a hash map; a test reads these files
//! and says so. In the flow: `consumer` gathers commands, `store` loads a [`Snapshot`], [`decide()`] turns both into
//! [`Decision`]s and [`Changes`], `store` commits them. Because decisions depend on the log alone,
//! - **replay** of the log from an empty database gives the same rows,
//! - **cutting the log into other batches** gives the same decisions.
//!
//! Both are property-tested against a second, naive model that shares no code with `decide`.

mod command;
mod decide;
mod decision;
mod event;
mod position;
mod reservation;
mod snapshot;

pub use command::{
    Adjust, Cancel, Command, Configure, Confirm, Extend, LatePayment, Logged, Pause, PoisonReason, Reserve, Settings,
    StockChange, Tick, Unfit,
};
pub use decide::decide;
pub use decision::{Changes, Decision, Outcome, Refusal, Rejection, ReservationChange, SkuChange, Status, Verdict};
pub use event::{Event, Happening, LifeChange, Origin, ReservationEvent, SkuEvent, SkuHappening};
pub use position::{Arrival, arrival_of};
pub use reservation::Reservation;
pub use snapshot::{Holdings, Sku, Snapshot};
