//! What Redis may take: hints are worth little when they are late, so everything here is short.

use std::time::Duration;

use super::RESERVATIONS_PER_CALL_MAX;
#[cfg(doc)]
use super::*;

/// Deadline of the admission script: a hint that is late is worth nothing.
pub const REDIS_DEADLINE: Duration = Duration::from_millis(20);
/// Deadline of everything else said to Redis, off the path of a request.
pub const REDIS_BACKGROUND_DEADLINE: Duration = Duration::from_millis(500);
/// Failures in a row that open the breaker.
pub const BREAKER_FAILURES: u32 = 5;
/// How long the open breaker spares Redis and the requests before one call tries again.
pub const BREAKER_OPEN_FOR: Duration = Duration::from_millis(500);
/// Requests in one call of the admission script: 250 keep Redis busy for 1.2 ms (one SKU) to 2.0 ms (50 SKUs; measured, Redis 7.0 on a
/// busy machine with 2 cores), well under the deadline.
pub const ADMISSION_CALL_MAX: usize = 250;
/// Pace of the admission script under load: a call costs Redis, the API and the kernel about 100 us whatever it carries, so that 25,000
/// requests a second in calls of a dozen cost more than what they ask.
pub const ADMISSION_PACE: Duration = Duration::from_millis(2);
/// The same for a crowd of [`CROWD_PER_SECOND`].
pub const ADMISSION_PACE_CROWD: Duration = Duration::from_millis(6);
/// Requests waiting for the admission script; beyond it they are admitted unchecked and counted.
pub const ADMISSION_QUEUE_MAX: usize = 10_000;
/// Calls of many requests waiting for it; as many requests, full, as [`ADMISSION_QUEUE_MAX`].
pub const ADMISSION_GROUPS_MAX: usize = ADMISSION_QUEUE_MAX / RESERVATIONS_PER_CALL_MAX;
/// Life of the marker of a keyed request: longer than the intake lag plus `MESSAGE_TIMEOUT`, so that Redis can vouch for absence.
pub const KEY_MARKER_TTL: Duration = Duration::from_secs(3600);
/// Life of one minute's hash of undecided units: an API killed in between locks nobody out for longer.
pub const PROVISIONAL_TTL: Duration = Duration::from_secs(120);
/// Life of the hash of decided units per SKU, renewed by every batch.
pub const USER_UNITS_TTL: Duration = Duration::from_secs(24 * 3600);
/// Users about whom Postgres is asked by one query, because Redis' decided units alone would refuse them.
pub const OVER_LIMIT_READ_MAX: usize = 250;
/// Of those waiting for a query; beyond it Redis is believed.
pub const OVER_LIMIT_QUEUE_MAX: usize = 10_000;
/// How long such a request waits for Postgres before Redis is believed: a query takes milliseconds, and a refusal is to be quick.
pub const OVER_LIMIT_CONFIRM_WAIT: Duration = Duration::from_millis(250);
/// How long at most what Postgres said of a user and a SKU is remembered (at least half of it): who hammers against the limit costs a query in
/// so long, and units that Redis can't be told of are found again after it.
pub const OVER_LIMIT_CONFIRMED_FOR: Duration = Duration::from_secs(60);
/// Users and SKUs that are remembered in half of that time, 17 bytes each; two halves are kept, under 5 MB. Beyond it the older are forgotten.
pub const OVER_LIMIT_CONFIRMED_MAX: usize = 100_000;
/// How often it is told at most that Redis' units were too high.
pub const OVER_LIMIT_WARN_EVERY: Duration = Duration::from_secs(60);
/// Batches whose effects may wait for a slow Redis, per partition; beyond it they are dropped and counted.
pub const EFFECTS_BEHIND_MAX: usize = 4;
/// Time that the last effects of a stopping worker get: every batch that may wait, at the deadline of one call each.
pub const EFFECTS_DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// What became of published requests, waiting to be told to Redis; beyond it Redis is not told, and the hints expire by themselves.
pub const SETTLE_QUEUE_MAX: usize = 10_000;
/// Pace of these calls under load: nobody waits for them.
pub const SETTLE_PACE: Duration = Duration::from_millis(5);
/// Of those in one call.
pub const SETTLE_CALL_MAX: usize = 250;
/// How long a decision is waited for before Redis is told that a keyed request is in the log: many times what a decision takes, so that a crowd
/// costs no such call; far below [`INTAKE_LAG_MAX`], so that a writer that is behind leaves no key pending for long.
pub const UNHEARD_FOR: Duration = Duration::from_millis(200);
/// How often it is looked whether that time is over for some.
pub const UNHEARD_LOOK_EVERY: Duration = Duration::from_millis(50);
/// Requests remembered for it, about 250 bytes each: half a second of the peak; beyond it Redis is told at once.
pub const UNHEARD_MAX: usize = 20_000;
/// How often Redis is told again that its memory has a gap, until it hears it; a request that comes sooner tells it on its way.
pub const MEMORY_GAP_TELL_EVERY: Duration = Duration::from_millis(250);
/// Redis' view of one minute reaches back this many minutes: with [`PROVISIONAL_TTL`], all that has not expired. Two reach back a minute at
/// least, far beyond [`INTAKE_LAG_MAX`]; each is a look-up per request.
pub const PROVISIONAL_MINUTES: i64 = 2;
/// Commands on their way through one connection: far more than the callers have, so it only stops a leak.
pub const REDIS_PIPELINE_MAX: usize = 1024;
/// How long bytes sent to Redis may stay unacknowledged by its host before the connection counts as lost (`TCP_USER_TIMEOUT`).
pub const REDIS_UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(1);
/// How often a silent subscription asks for a sign of life: flags and wake-ups depend on it.
pub const SUBSCRIPTION_PING_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a pub/sub message that are read: a full batch of the largest setting needs under 100 KiB.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Wait between two attempts to subscribe again.
pub const RESUBSCRIBE_EVERY: Duration = Duration::from_millis(250);
