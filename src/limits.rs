//! Every bound of the service: one name, its unit and the reason for its size.
//!
//! Queues, batches, retries and waits elsewhere use these names and nothing else (a test reads the sources and says so). Relations
//! between bounds are asserted at compile time in `relations`; those of Redis stand in `limits/hints.rs`. Values that an operator may change live in `config`;
//! their defaults stand here.
//!
//! # What refuses first
//!
//! A crowd for SKUs that are known meets one of these bounds, each of which answers 503 `OVERLOADED` at once. (A scan of unknown SKUs meets
//! [`SKU_LOOKUPS_MAX`], a crowd that changes undecided reservations [`LOG_RECORDS_READ_AT_ONCE`]. [`ADMISSION_QUEUE_MAX`] refuses nobody:
//! what it can't hold passes unchecked.)
//! - **One hot SKU, and the broker is slow: [`LANE_QUEUE_MAX`].** A lane sends up to [`PUBLISH_COMMANDS_MAX`] in one flight, or as many as its level says, and fills when
//!   flights take too long for the crowd. A third of a second of the peak bridges a hiccup of the broker; a longer queue would only make
//!   answers later. It is under a third of [`HTTP_IN_FLIGHT_MAX`], so that one stuck partition leaves room for the others.
//! - **Many parked clients: [`HTTP_IN_FLIGHT_MAX`].** A `Prefer: wait` holds a place for its whole wait: 30,000 of them at once make every
//!   call of the public listener 503, each GET included. The admin listener has places of its own, so probes go on.
//! - **Many calls of many: [`RESERVATIONS_CALLS_MAX`].** The same for the calls that ask for up to 250 reservations: full, they hold as many.
//! - **The writer is behind: [`INTAKE_LAG_MAX`].** Neither of the others is full then: what was accepted is in the log and has its 202.

use std::time::Duration;

mod hints;
mod relations;

pub use hints::*;

// ---- what a client may send -------------------------------------------------------------------------------------------------

/// Bytes of a request body; the largest legal single reservation is under 2 KiB.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// Reservations that one call may ask for or read: a full batch of the writer, and one call of the admission script.
pub const RESERVATIONS_PER_CALL_MAX: usize = 250;
/// Bytes of the body of a call that asks for many reservations: 250 usual ones are under 32 KiB, 250 of 500 bytes fit.
pub const RESERVATIONS_BODY_BYTES_MAX: usize = 128 * 1024;
/// Bytes of all request headers together: 250 ids in a query string and a few long headers fit.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Characters of a user or SKU id.
pub const ID_CHARS_MAX: usize = 64;
/// Characters of an `Idempotency-Key`.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// Characters of an `X-Request-Id` that is taken over from the caller.
pub const REQUEST_ID_CHARS_MAX: usize = 128;
/// Characters of a `payment_ref` or a `reference`.
pub const REFERENCE_CHARS_MAX: usize = 128;
/// Characters of a person's note.
pub const NOTE_CHARS_MAX: usize = 200;
/// Bytes of a reservation's metadata as JSON.
pub const METADATA_BYTES_MAX: usize = 500;
/// Members of it.
pub const METADATA_MEMBERS_MAX: usize = 10;
/// Units in one request.
pub const QUANTITY_MAX: u32 = 1000;
/// Units of one SKU: sums of a few of them still fit an `i64` a billion times over.
pub const ON_HAND_MAX: i64 = 1_000_000_000;
/// Units of one SKU that one user may hold or own.
pub const USER_LIMIT_MAX: u32 = 1000;
/// Seconds of a hold, lower bound: shorter ones would end while a client still reads its answer.
pub const HOLD_SECONDS_MIN: u32 = 10;
/// Seconds of a hold, upper bound (four hours), also the bound of an extension.
pub const HOLD_SECONDS_MAX: u32 = 14_400;
/// Extensions of one hold.
pub const EXTENSIONS_MAX: u32 = 100;
/// Seconds that all extensions of one hold may add (a day).
pub const EXTENSION_SECONDS_MAX: u32 = 86_400;
/// Seconds that `Prefer: wait=N` may ask for.
pub const PREFER_WAIT_SECONDS_MAX: u64 = 30;

// ---- the log ----------------------------------------------------------------------------------------------------------------

/// Commands in one record: 50 pack the broker's work to 5-7 CPU-us a command; more gains little and makes retries larger.
pub const RECORD_COMMANDS_MAX: usize = 50;
/// Bytes that the producer packs into one request to a partition (`batch.size`): a broker refuses such a pack as a whole, so it stays
/// far below what topics take. A full record of the largest commands is about 14 KiB.
pub const RECORD_PACK_BYTES_MAX: usize = 256 * 1024;
/// Bytes that the topics must take at once (`max.message.bytes`).
pub const TOPIC_MESSAGE_BYTES_MIN: usize = 2 * RECORD_PACK_BYTES_MAX;
/// Commands in one batch. A setting (`--batch-size-max`), this is its default and the size that the measurements are about.
pub const BATCH_SIZE_MAX: usize = 250;
/// Upper bound of that setting: the arrays of one statement stay well under a megabyte.
pub const BATCH_SIZE_SETTING_MAX: usize = 4096;
/// Partitions of the request topic when `flashsale migrate` creates it.
pub const PARTITIONS_DEFAULT: i32 = 10;
/// Partitions that fit the `smallint` columns and a process's worth of workers.
pub const PARTITIONS_MAX: i32 = 1024;
/// How long the request topic keeps records: the replay proof needs the whole sale.
pub const LOG_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// A record further ahead of the owner's clock is not decided: its broker's clock is wrong, and holds would be too long.
pub const LOG_TIME_AHEAD_MAX: Duration = Duration::from_secs(5);
/// How long the owner waits for its clock to reach such a record before it halts the partition.
pub const LOG_TIME_AHEAD_WAIT: Duration = Duration::from_secs(10);
/// How often it looks at its clock meanwhile.
pub const LOG_TIME_AHEAD_LOOK_EVERY: Duration = Duration::from_millis(100);

// ---- Kafka clients ----------------------------------------------------------------------------------------------------------

/// First and largest wait before a lost connection to a broker is tried again: a broker that is back is used within half a second.
pub const BROKER_RECONNECT_WAIT_MIN: Duration = Duration::from_millis(50);
/// See [`BROKER_RECONNECT_WAIT_MIN`].
pub const BROKER_RECONNECT_WAIT_MAX: Duration = Duration::from_millis(500);
/// A request that a broker leaves unanswered for this long costs its connection (a frozen broker, a cut cable).
pub const BROKER_SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one administrative request at set-up: a new topic's partitions get their leaders within a second or two.
pub const TOPIC_SETUP_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two looks whether a new topic is complete.
pub const TOPIC_SETUP_POLL: Duration = Duration::from_millis(50);
/// How often the producer asks a broker whether the topic can be reached, so that readiness is never older than this.
pub const BROKER_PROBE_EVERY: Duration = Duration::from_secs(1);
/// The same while no broker answers.
pub const BROKER_PROBE_EVERY_DOWN: Duration = Duration::from_millis(100);
/// Deadline of that question; well under [`DELIVERY_WAIT`], so that requests held back meanwhile can still be published.
pub const BROKER_PROBE_DEADLINE: Duration = Duration::from_secs(1);
/// How long a broker may wait for its followers before it answers a publish (`request.timeout.ms`); then the library tries again.
pub const PUBLISH_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions about the log that wait for the one thread that asks them; beyond it they are refused at once.
pub const LOG_QUESTIONS_MAX: usize = 4096;
/// Of those, records that are read at once to find the SKU of an undecided reservation that is to be changed; beyond it 503 `OVERLOADED`. Each
/// takes a fetch of a few milliseconds, one after the other, so the last of them is answered well within [`LOG_PROBE_DEADLINE`].
pub const LOG_RECORDS_READ_AT_ONCE: usize = 64;
/// How often that thread serves the client library's events when nobody asks.
pub const LOG_EVENTS_EVERY: Duration = Duration::from_secs(1);

/// Characters of a topic's name (Kafka allows 249; `-dlq` is appended to it).
pub const TOPIC_CHARS_MAX: usize = 245;
/// Characters of a consumer group's name.
pub const GROUP_CHARS_MAX: usize = 255;
/// Characters of the prefix of our Redis keys.
pub const REDIS_PREFIX_CHARS_MAX: usize = 64;

// ---- HTTP -------------------------------------------------------------------------------------------------------------------

/// Levels of arrays and objects in a request body; the deepest legal one has two.
pub const JSON_DEPTH_MAX: usize = 16;
/// Bytes that the HTTP library may buffer of one connection, request line and headers included. Above [`HEADER_BYTES_MAX`], so that we
/// answer 431 in our own form; beyond it the library answers 431 without a body.
pub const CONNECTION_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Open connections of one listener; beyond it new ones wait in the kernel's backlog. Above [`HTTP_IN_FLIGHT_MAX`], so that overload is
/// answered.
pub const CONNECTIONS_MAX: usize = 40_000;
/// HTTP/2 streams of one connection at once.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1000;
/// Requests of the admin listener at once.
pub const ADMIN_IN_FLIGHT_MAX: usize = 256;
/// Wait after a failed accept (no file descriptors left) before the next.
pub const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(50);
/// Requests inside the public listener at once, those that wait included; beyond it 503 `OVERLOADED` at once: "What refuses first", above.
/// Room for three full lanes and more; under [`CONNECTIONS_MAX`]; at most [`STATUS_QUEUE_MAX`], so that each may ask for its status.
pub const HTTP_IN_FLIGHT_MAX: usize = 30_000;
/// Time for a client to send its body; slower ones get 408.
pub const BODY_READ_DEADLINE: Duration = Duration::from_secs(2);
/// Time for a client to send the headers of a request, from its first byte.
pub const HEADER_READ_DEADLINE: Duration = Duration::from_secs(10);
/// How long a kept-alive connection may be idle between two requests, or before the first. Longer than load balancers keep theirs (60 s
/// is usual, 75 s not rare): whoever closes first must be they, or a request meets a connection that is just being closed.
pub const KEEP_ALIVE_IDLE_MAX: Duration = Duration::from_secs(90);
/// How often an HTTP/2 connection is asked for a sign of life.
pub const HTTP2_PING_EVERY: Duration = Duration::from_secs(10);
/// Time for one request, long polls included, after which 503 is answered whatever happened.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(PREFER_WAIT_SECONDS_MAX + 10);
/// How long an admin call waits for its command to be decided before it answers 202.
pub const ADMIN_DECISION_WAIT: Duration = Duration::from_secs(5);
/// How long a confirm, cancel or extend waits for its decision before it answers 202.
pub const RESERVATION_DECISION_WAIT: Duration = Duration::from_secs(2);
/// How often a command that nobody wakes us for (on the command line) is looked for.
pub const COMMAND_POLL_EVERY: Duration = Duration::from_millis(50);
/// Calls that ask for many reservations inside the public listener at once, those that wait included; beyond it 503 `OVERLOADED` at once.
/// Together they hold as many reservations as [`HTTP_IN_FLIGHT_MAX`] single calls.
pub const RESERVATIONS_CALLS_MAX: usize = HTTP_IN_FLIGHT_MAX / RESERVATIONS_PER_CALL_MAX;
/// Items of one page that a list may be asked for.
pub const PAGE_ITEMS_MAX: usize = 500;
/// Items of one page if nothing is said.
pub const PAGE_ITEMS_DEFAULT: usize = 50;
/// Longest list of SKUs whose stock is being read for buyers; beyond it 503 `STATUS_UNAVAILABLE`.
pub const SKU_READ_QUEUE_MAX: usize = 10_000;
/// SKUs read by one query.
pub const SKU_READ_MAX: usize = 250;
/// How long `flashsale healthcheck` waits; under the 3 s that container engines usually give.
pub const HEALTHCHECK_DEADLINE: Duration = Duration::from_secs(2);
/// Bytes of the answer that it reads.
pub const HEALTHCHECK_ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// One wait of `flashsale log tail` for the next record.
pub const LOG_TAIL_WAIT: Duration = Duration::from_millis(250);
/// Silence after which `flashsale log tail` takes the log to be at its end: a first fetch takes a connection and some round trips.
pub const LOG_TAIL_QUIET: Duration = Duration::from_secs(2);
/// Components of one process; each can end by itself once.
pub const COMPONENTS_MAX: usize = 64;
/// A refusal before a sale's start tells its client to come back up to so many seconds after it: a crowd that was told one instant would
/// come as one wave.
pub const SALE_START_JITTER_SECONDS_MAX: u64 = 3;
/// Open event streams of one process; beyond it 503 `OVERLOADED`. Each is read again every [`WAITER_SWEEP_EVERY`], 250 in one query.
pub const EVENT_STREAMS_MAX: usize = 5_000;
/// How often a silent event stream says that it is alive: proxies close what is silent for a minute.
pub const EVENTS_HEARTBEAT_EVERY: Duration = Duration::from_secs(15);
/// How far API clocks may be from the log's: within this margin around a sale's start and end the log decides.
pub const SALE_WINDOW_MARGIN: Duration = Duration::from_secs(2);

// ---- admission --------------------------------------------------------------------------------------------------------------

/// How often the catalogue is read from Postgres: a lost Redis message costs at most this.
pub const CATALOGUE_REFRESH_EVERY: Duration = Duration::from_secs(2);
/// How long the absence of a SKU is believed. A 404 needs a look-up less than a second old.
pub const ABSENCE_BELIEVED_FOR: Duration = Duration::from_millis(900);
/// SKUs whose absence is remembered: a scan of random ids must not fill memory.
pub const ABSENT_SKUS_MAX: usize = 10_000;
/// Unknown SKUs being looked up at once; beyond it 503 `OVERLOADED`.
pub const SKU_LOOKUPS_MAX: usize = 64;
/// Of those, for one call that asks for many reservations: a call of 250 unknown SKUs must not make everybody else's `OVERLOADED`.
pub const SKU_LOOKUPS_PER_CALL: usize = 16;
/// How long a sold-out flag in a process lives without being renewed from Postgres: a restock shows within it.
pub const SOLD_OUT_LEASE: Duration = Duration::from_secs(1);
/// How often flagged SKUs are read again; under the lease, so that a flag does not flicker.
pub const SOLD_OUT_RENEW_EVERY: Duration = Duration::from_millis(400);
/// Age of a partition's oldest undecided request at which intake answers 503 `OVERLOADED` for its SKUs: "What refuses first", above. Under
/// half of the shortest hold.
pub const INTAKE_LAG_MAX: Duration = Duration::from_secs(4);
/// Growth of the log that the lag clock tells apart; finer steps are added to the older one, so the lag is never understated.
pub const LAG_RESOLUTION: Duration = Duration::from_millis(50);
/// Steps of one partition's log that the lag clock remembers: more than [`INTAKE_LAG_MAX`] of growth at full resolution.
pub const LAG_STEPS_MAX: usize = 128;
/// How often positions and log ends are compared for the lag.
pub const LAG_PROBE_EVERY: Duration = Duration::from_millis(500);

// ---- ingress ----------------------------------------------------------------------------------------------------------------

/// Requests collected per partition while a publish is in flight; a full lane answers 503 `OVERLOADED` at once: "What refuses first", above.
/// A third of a second of a peak of 25,000/s.
pub const LANE_QUEUE_MAX: usize = 8192;
/// Commands of one publish, at the highest level; under [`LANE_QUEUE_MAX`]. Upper bound of the setting `INGRESS_COMMANDS_MAX`, and its default.
pub const PUBLISH_COMMANDS_MAX: usize = 4096;
/// Bytes of one publish; a setting (`INGRESS_BYTES_MAX`), this is its default: four packs.
pub const PUBLISH_BYTES_MAX: usize = 4 * RECORD_PACK_BYTES_MAX;
/// Lower bound of that setting: the largest record.
pub const PUBLISH_BYTES_SETTING_MIN: usize = 16 * 1024;
/// Upper bound: half of what the client library's queue holds, so that two publishes fit.
pub const PUBLISH_BYTES_SETTING_MAX: usize = PRODUCER_QUEUE_KIB_MAX * 1024 / 2;
/// Publishes of one lane at once, at low levels: two overlap their round trips, more only make each smaller.
pub const PUBLISHES_IN_FLIGHT_MAX: usize = 2;
/// Arrivals per second and partition that divide the pressure levels.
pub const LEVEL_EDGES_PER_SECOND: [f64; 9] = [1e2, 5e2, 2e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 3e5];
/// So far over its upper edge a lane goes a level up, and
pub const LEVEL_UP: f64 = 1.2;
/// so far under its lower edge down: between the two nothing swings.
pub const LEVEL_DOWN: f64 = 0.6;
/// Least time at a level; longer than [`RATE_WINDOW`], so that a rate is one of this level.
pub const LEVEL_HOLD: Duration = Duration::from_millis(250);
/// Longest time between two publishes that a level or a setting may ask for.
pub const LINGER_MAX: Duration = Duration::from_millis(50);
/// Buffers of published records that a lane keeps for the next ones, about 5 KiB each: those of a full publish.
pub const LANE_SPARE_RECORDS_MAX: usize = PUBLISH_COMMANDS_MAX.div_ceil(RECORD_COMMANDS_MAX);
/// Arrivals per second and partition above which batches are paced.
pub const PACE_ABOVE_PER_SECOND: f64 = 2000.0;
/// Least time between two publishes of a lane without levels (`INGRESS_ADAPTIVE=off`); a setting (`INGRESS_LINGER_MS`), this is its default.
pub const PUBLISH_LINGER: Duration = Duration::from_millis(2);
/// Least time between two batches of a paced partition: a batch has a fixed price, Postgres 0.4 ms of CPU, and messages to Redis and about the outbox.
pub const BATCH_PACE: Duration = Duration::from_millis(4);
/// The same for a crowd of [`CROWD_PER_SECOND`], by what arrives at all partitions of the process: there a batch of one SKU has 200 commands of its 250.
pub const BATCH_PACE_CROWD: Duration = Duration::from_millis(10);
/// And for each partition that is busy: 400 batches a second, together, take a sixth of a core,
pub const BATCH_EVERY_MIN: Duration = Duration::from_micros(2500);
/// up to this, for ten of them and more: what a decision may be late for the sake of others.
pub const BATCH_PACE_MAX: Duration = Duration::from_millis(25);
/// Arrivals per second up to which a pace is as short as it gets,
pub const CROWD_FROM_PER_SECOND: f64 = 10_000.0;
/// and from which on it is as long as it gets, in between in proportion: two cores are full with 20,000 to 25,000, and whoever waits waits for them.
pub const CROWD_PER_SECOND: f64 = 20_000.0;
/// Window over which arrivals are averaged for pacing.
pub const RATE_WINDOW: Duration = Duration::from_millis(100);
/// How long a request waits for its delivery report before it is answered 503 with `outcome`.
pub const DELIVERY_WAIT: Duration = Duration::from_secs(2);
/// After this the client library gives a record up (`message.timeout.ms`): it may still have landed.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(15);
/// Records in the client library's queue (`queue.buffering.max.messages`): lanes publish one flight at a time, so few are ever there.
pub const PRODUCER_QUEUE_RECORDS_MAX: usize = 20_000;
/// Bytes in that queue (`queue.buffering.max.kbytes`).
pub const PRODUCER_QUEUE_KIB_MAX: usize = 32 * 1024;
/// Time the producer gets at shutdown to have its last records acknowledged.
pub const PRODUCER_DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// How long `flashsale calibrate` offers requests to one cell of its grid; all cells of seven levels take a minute.
pub const CALIBRATION_CELL: Duration = Duration::from_millis(500);
/// Its generator's pause between two looks at the clock: a tenth of the shortest linger.
pub const CALIBRATION_STEP: Duration = Duration::from_micros(100);
/// Records per second of one partition that a cell may publish: an eighth of a core of the broker (130 us each).
pub const CALIBRATION_RECORDS_PER_SECOND_MAX: u64 = 1000;
/// Requests per second that it offers; a setting (`--rate-max`), this is its default: levels 1 to 7.
pub const CALIBRATION_RATE_MAX: u32 = 40_000;
/// Upper bound of that setting: level 10.
pub const CALIBRATION_RATE_SETTING_MAX: u32 = 500_000;

// ---- consumer ---------------------------------------------------------------------------------------------------------------

/// Memory of the records that wait for one partition's worker: 20,000 unpacked ones, or 800 of 50 commands. Full = the partition is paused in the
/// client until half of it is taken, and what is left bridges [`FETCH_WAIT`].
pub const PARTITION_BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Their number: each takes more than 64 bytes, so that the bytes are the bound that is met.
pub const PARTITION_BUFFER_RECORDS_MAX: usize = PARTITION_BUFFER_BYTES_MAX / 64;
/// Events from the poll thread that the partition supervisor has not taken yet; a rebalance makes two.
pub const EVENT_QUEUE_MAX: usize = 64;
/// One poll of the client library: how late a command to the poll thread may be seen when the topic is silent.
pub const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// The same while a partition is paused or a claim is awaited.
pub const POLL_TIMEOUT_BUSY: Duration = Duration::from_millis(2);
/// `session.timeout.ms`: after this a dead member's partitions move.
pub const SESSION_TIMEOUT: Duration = Duration::from_millis(6000);
/// `max.poll.interval.ms`.
pub const MAX_POLL_INTERVAL: Duration = Duration::from_secs(30);
/// Silence of the poll thread that is told: there is as much time left before the group gives our partitions away.
pub const POLL_STALL_AFTER: Duration = Duration::from_secs(MAX_POLL_INTERVAL.as_secs() / 2);
/// How long a position may stand still before records that wait until it is told. A batch takes milliseconds; a restarted Postgres, a second.
pub const STALL_AFTER: Duration = Duration::from_secs(5);
/// How often workers are looked at for that, and for the depth of queues.
pub const CONSUMER_WATCH_EVERY: Duration = Duration::from_millis(500);
/// Decided commands after which what came before weighs half in the mix that queue depths are estimated by: four full batches.
pub const QUEUE_MIX_COMMANDS: usize = 4 * BATCH_SIZE_MAX;
/// How long a revoked partition may finish its running transaction.
pub const REVOKE_DEADLINE: Duration = Duration::from_secs(2);
/// Answers to one revocation: it is given once, so that who gives it never waits for room.
pub const REVOKE_ANSWERS: usize = 1;
/// Bytes that the client library fetches ahead, over all partitions (`queued.max.messages.kbytes`).
pub const FETCH_AHEAD_KIB_MAX: usize = 16 * 1024;
/// Claims again after a fence while still assigned, before the process leaves the group.
pub const RECLAIM_ATTEMPTS_MAX: u32 = 3;
/// Base of the jittered wait before such a claim.
pub const RECLAIM_WAIT: Duration = Duration::from_millis(200);
/// How often a halted partition looks whether an operator resumed it.
pub const HALT_RECHECK_EVERY: Duration = Duration::from_secs(1);
/// How long a broker may hold a fetch for which it has nothing. A record that comes is sent at once; but a partition that was paused is fetched
/// only after it, and half a second (the library's default) is longer than a worker's buffer lasts. Twenty empty fetches a second cost under
/// 1 % of a core.
pub const FETCH_WAIT: Duration = Duration::from_millis(50);
/// How soon the client library fetches again after its queue was full (its default of a second would stall a partition).
pub const FETCH_BACKOFF: Duration = Duration::from_millis(5);
/// How soon it fetches again after an error of the broker.
pub const FETCH_ERROR_BACKOFF: Duration = Duration::from_millis(50);
/// How often positions are told to Kafka, for lag tools only.
pub const ACK_EVERY: Duration = Duration::from_secs(1);
/// How long closing the consumer may take before the process goes on without it (closing can hang in the client library).
pub const CONSUMER_CLOSE_DEADLINE: Duration = Duration::from_secs(4);
/// How often the log's ends are compared with the position.
pub const LOG_PROBE_EVERY: Duration = Duration::from_secs(10);
/// Deadline of one question to a broker (log ends, one record).
pub const LOG_PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// What a late one still gets: the client library takes zero for "do not ask at all".
pub const LOG_PROBE_DEADLINE_MIN: Duration = Duration::from_millis(1);
/// Poisoned commands of one batch; more than this is a broken build, not broken records: halt.
pub const POISON_PER_BATCH_MAX: usize = 50;
/// Dead letters published in one round.
pub const DEAD_LETTERS_PER_ROUND: i64 = 100;
/// Bytes of them, so that large ones don't fill memory.
pub const DEAD_LETTER_BYTES_PER_ROUND: usize = 2 * DEAD_LETTER_BYTES_MAX;
/// Bytes of a dead letter that the client library accepts: far above what a broker takes into the log by default (1 MiB). Of a larger one, or
/// one that its topic does not take, only a stub is published.
pub const DEAD_LETTER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a dead letter may add to the record that it keeps: the letter's key and header, and the frame of a pack of one record. Together
/// under 200 bytes.
pub const DEAD_LETTER_OVERHEAD_BYTES: usize = 1024;
/// How often unpublished dead letters are looked for.
pub const DEAD_LETTER_EVERY: Duration = Duration::from_secs(5);

// ---- Postgres ---------------------------------------------------------------------------------------------------------------

/// `statement_timeout` of a writer's connection, and the deadline of each statement on our side: a frozen backend ignores the former.
pub const STATEMENT_DEADLINE: Duration = Duration::from_secs(3);
/// `lock_timeout` of a writer's connection: how long a statement waits for rows that an older writer still holds.
pub const LOCK_TIMEOUT: Duration = Duration::from_millis(1000);
/// `lock_timeout` of a migration: how long it waits for a table that is in use, while everybody who comes later waits behind it. It gives
/// up before a batch does, and is run again.
pub const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// `idle_in_transaction_session_timeout` of a writer's connection: the transaction of a frozen process lets go by itself.
pub const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_millis(3000);
/// Deadline for a new connection.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// First and largest wait between attempts to reach a database that is away.
pub const RECONNECT_WAIT_MIN: Duration = Duration::from_millis(50);
/// See [`RECONNECT_WAIT_MIN`].
pub const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a claim waits for a terminated backend to be gone.
pub const BACKEND_END_WAIT: Duration = Duration::from_secs(2);
/// How often it looks: an end takes a few milliseconds.
pub const BACKEND_END_LOOK_EVERY: Duration = Duration::from_millis(5);
/// Attempts of a batch that a server fails which is well enough to answer, before the partition halts: by its `statement_timeout`, by our
/// [`STATEMENT_DEADLINE`], by `lock_timeout`, deadlock, serialization or an unknown error. A server that is away or in trouble (SQLSTATE
/// classes 08, 53, 57, 58) is waited for and not counted.
pub const BATCH_ATTEMPTS_MAX: u32 = 5;
/// Batches that look their ids up after the primary key refused one: a storm of repeats costs one failed attempt in so many.
pub const CAREFUL_BATCHES: u32 = 64;
/// How soon a tick that released nothing is followed by another: the broker's clock is behind ours, by milliseconds as a rule.
pub const TICK_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long the last tick of a SKU is remembered: longer than clocks may differ ([`LOG_TIME_AHEAD_WAIT`]).
pub const TICK_FORGET_AFTER: Duration = Duration::from_secs(15);
/// How soon a tick that the broker did not take is followed by another.
pub const TICK_LOST_AFTER: Duration = Duration::from_secs(1);
/// How often a worker looks for holds that are due when it knows of none.
pub const TICK_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rows of ended holds that are settled in one transaction: about 5 ms, so that ten thousand ended holds delay nobody.
pub const SETTLE_MAX: usize = 500;
/// Deadline of reading a partition's live reservations at a claim: 300,000 of them take about half a second.
pub const MEMORY_LOAD_DEADLINE: Duration = Duration::from_secs(30);
/// Users with live units whom the writer of one partition remembers, 9 to 21 bytes each: ten full partitions stay below 100 MB. With more
/// of them it looks every user up.
pub const HOLDERS_MAX: usize = 900_000;
/// Connections of one process for reads (status, catalogue, admin).
pub const READ_CONNECTIONS_MAX: u32 = 8;
/// Deadline of a read, waiting for a connection included.
pub const READ_DEADLINE: Duration = Duration::from_secs(2);
/// Reservations read by one query.
pub const STATUS_READ_MAX: usize = 250;
/// Reads waiting for a query; beyond it 503 `STATUS_UNAVAILABLE`.
pub const STATUS_QUEUE_MAX: usize = 30_000;
/// Lists that walk the table of reservations at once, of one process: they must not take the connections of everybody else.
pub const LIST_WALKS_AT_ONCE: usize = 2;
/// Reservations looked at for one page of a list; what was found until then is the page.
pub const LIST_EXAMINED_MAX: usize = 50_000;
/// And by one statement: a table that comes from the slowest disk must not take it to [`READ_DEADLINE`].
pub const LIST_CHUNK: usize = 1_000;
/// No further statement of a page begins after this.
pub const LIST_TIME: Duration = Duration::from_secs(1);
/// Pace of the status reader's queries under load: each costs Postgres and us some 200 us, whatever it reads.
pub const STATUS_READ_PACE: Duration = Duration::from_millis(2);
/// Pace of the proofs that a keyed request is not in its partition, under load: each costs the broker a look at the log's end and Postgres a
/// query, whatever it is for.
pub const PARTITION_PROOF_PACE: Duration = Duration::from_millis(4);
/// Such proofs at once: those of a partition that is behind take [`ABSENCE_PROOF_WAIT`], and must not stop the others.
pub const PARTITION_PROOFS_AT_ONCE: usize = 16;
/// Queries of the status reader at once: a slow one must not stop all others.
pub const STATUS_READS_AT_ONCE: usize = 4;
/// Beside them, those of calls about many reservations, each a query of its own. With both, connections are left for everybody else.
pub const STATUS_READS_OF_MANY_AT_ONCE: usize = 2;

/// How long the thread of a producer waits for reports before it looks whether its producer is gone.
pub const REPORTS_POLL_EVERY: Duration = Duration::from_millis(500);

// ---- events out -------------------------------------------------------------------------------------------------------------

/// Bytes of the largest event as JSON: the longest ids and texts, every character escaped, come to under 7 KiB.
pub const EVENT_BYTES_MAX: usize = 8 * 1024;
/// What its record adds: key, header, and the frame of a pack of one.
pub const EVENT_OVERHEAD_BYTES: usize = 512;
/// Rows of one partition that a relay reads, publishes and deletes at once: what a relay that is killed publishes twice, at most.
pub const RELAY_ROWS_PER_ROUND: i64 = 16;
/// Events that are fired before one wait: three full batches. As many fill one request to the broker ([`EVENT_PACK_BYTES_MAX`]).
pub const RELAY_SLICE_EVENTS: usize = 750;
/// Bytes that the relay's producer packs into one request to a partition (`batch.size`): a slice of usual events, with half as much room again for
/// longer ids, below what the topic takes.
pub const EVENT_PACK_BYTES_MAX: usize = 480 * 1024;
/// How long the client library waits for the rest of a slice, so that it goes as one request (`linger.ms`).
pub const RELAY_LINGER: Duration = Duration::from_millis(2);
/// Events in the client library's queue: a slice of each of a hundred partitions.
pub const EVENT_QUEUE_RECORDS_MAX: usize = 100 * RELAY_SLICE_EVENTS;
/// Bytes in that queue. A full one holds a slice back, no more.
pub const EVENT_QUEUE_KIB_MAX: usize = 64 * 1024;
/// How often a relay looks for rows, unless it knows of more: the age of an event when it is published, at most, while all is well.
pub const RELAY_LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often a relay asks for partitions that nobody leads, and measures the lag. Its session is never idle for longer.
pub const RELAY_LEAD_EVERY: Duration = Duration::from_secs(1);
/// After this the server ends the session of a relay that asks nothing (it is frozen, or its machine is gone), and another one leads.
pub const RELAY_SESSION_IDLE_MAX: Duration = Duration::from_secs(15);
/// First and largest wait before held back events are sent again.
pub const RELAY_RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// See [`RELAY_RETRY_WAIT_MIN`].
pub const RELAY_RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a slice may be on its way. An outage is waited for, in order, by the client library; this is for what it may have lost.
pub const RELAY_FLIGHT_MAX: Duration = Duration::from_secs(300);
/// How long a stopping relay waits for what it fired, before it gives that up.
pub const RELAY_DRAIN_DEADLINE: Duration = Duration::from_secs(3);
/// And for the reports of what it gave up, and for writing down what was published.
pub const RELAY_SETTLE_DEADLINE: Duration = Duration::from_secs(2);
/// Parked events that are listed at once.
pub const PARKED_SHOWN_MAX: i64 = 1000;

// ---- audit ------------------------------------------------------------------------------------------------------------------

/// How often the auditor looks. With [`LAG_PROBE_EVERY`], at which the API reads halts, a SKU that does not add up is refused within 2 s.
pub const AUDIT_EVERY: Duration = Duration::from_secs(1);
/// A recount of all reservations is followed by so many times its own duration without one: 5 % of one core of Postgres.
pub const AUDIT_RECOUNT_SHARE: u32 = 20;
/// But it waits no longer than this.
pub const AUDIT_RECOUNT_WAIT_MAX: Duration = Duration::from_secs(600);
/// One question of the auditor's looks.
pub const AUDIT_DEADLINE: Duration = Duration::from_secs(10);
/// One recount: it walks every live reservation. Longer would keep the server from tidying up behind the writers.
pub const AUDIT_RECOUNT_DEADLINE: Duration = Duration::from_secs(60);
/// Movements of each SKU with which a running auditor begins: some minutes of a hot one, and a second to read.
pub const AUDIT_MOVEMENTS_BACK: i64 = 10_000;
/// Offsets of each partition with which it begins.
pub const AUDIT_OFFSETS_BACK: i64 = 10_000;
/// After this the server ends the session of an auditor that asks nothing (it is frozen, or its machine is gone), and another one leads.
pub const AUDIT_SESSION_IDLE_MAX: Duration = Duration::from_secs(15);
/// SKUs whose movements are read with one question.
pub const AUDIT_SKUS_PER_QUERY: usize = 100;
/// Movements of one SKU that are read at once: a second has a few hundred; a new auditor reads all of them, page by page.
pub const AUDIT_MOVEMENTS_PER_SKU: i64 = 1000;
/// Batches of one partition that are read at once.
pub const AUDIT_BATCHES_PER_PARTITION: i64 = 1000;
/// SKUs with series of their own; all others share one, which shows the worst.
pub const AUDIT_SKUS_SHOWN_MAX: usize = 1000;

// ---- load --------------------------------------------------------------------------------------------------------------------

/// How long one answer is waited for by a made buyer: longer than any answer without `Prefer: wait` takes.
pub const LOAD_ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// What a connection of the generator reads into: any answer to a buyer is smaller.
pub const LOAD_BUFFER_BYTES: usize = 4096;
/// The longest patience of a made buyer, and the longest latency that is told apart.
pub const LOAD_PATIENCE_MAX: Duration = Duration::from_secs(3600);
/// `Prefer: wait` of a made buyer who asks for the decision after the rush.
pub const LOAD_FOLLOW_WAIT: Duration = Duration::from_secs(5);
/// Messages to the one who shows the progress: none is ever sent, it ends with its sender.
pub const LOAD_PROGRESS_MESSAGES: usize = 0;
/// How often a terminal is told how far the rush is.
pub const LOAD_PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Before a made buyer tries again, if nobody says how long to wait, and between two looks at a decision.
pub const LOAD_RETRY_WAIT: Duration = Duration::from_millis(100);

// ---- traces -----------------------------------------------------------------------------------------------------------------

/// Traces in a second that callers may ask for by `traceparent`: anybody who may buy may send one.
pub const TRACES_OF_CALLERS_PER_SECOND: u32 = 100;
/// What is meant by "a second" there.
pub const TRACES_OF_CALLERS_WINDOW: Duration = Duration::from_secs(1);
/// Spans that wait to be sent, about 1 KiB each: at 1 % of 25,000 requests a second, eight seconds of a collector that is away.
pub const TRACE_QUEUE_SPANS_MAX: usize = 8192;
/// Spans in one export.
pub const TRACE_EXPORT_SPANS_MAX: usize = 512;
/// The longest that a span waits to be sent.
pub const TRACE_EXPORT_EVERY: Duration = Duration::from_secs(1);
/// One export; then its spans are lost.
pub const TRACE_EXPORT_DEADLINE: Duration = Duration::from_secs(3);
/// The last exports of a process that ends, after everything else.
pub const TRACE_FLUSH_DEADLINE: Duration = Duration::from_secs(1);
/// Links of one batch's span: every request of a batch of which half is traced.
pub const TRACE_LINKS_MAX: u32 = 128;

// ---- waiting for decisions --------------------------------------------------------------------------------------------------

/// How often the reservations that somebody has waited for at least this long are read, at most [`STATUS_READ_MAX`] in a query: a lost
/// wake-up costs up to twice this.
pub const WAITER_SWEEP_EVERY: Duration = Duration::from_millis(250);
/// How long a read without a ticket waits until absence is proved.
pub const ABSENCE_PROOF_WAIT: Duration = Duration::from_secs(2);
/// How long after it was accepted a request of unknown outcome may still land in the log: it waited for its publish at most
/// [`DELIVERY_WAIT`], and the client library tries for [`MESSAGE_TIMEOUT`]. Before that it is not called absent.
pub const LANDING_WINDOW: Duration = Duration::from_secs(MESSAGE_TIMEOUT.as_secs() + DELIVERY_WAIT.as_secs());
/// Requests of unknown outcome that are remembered for [`LANDING_WINDOW`]; beyond it no id is called absent for as long. A crowd of
/// 25,000/s has about 50 commands in the one publish of its partition whose outcome can be unknown, a full one [`PUBLISH_COMMANDS_MAX`].
pub const UNKNOWN_OUTCOMES_MAX: usize = 50_000;
/// How often positions are read while absence is being proved.
pub const ABSENCE_PROOF_EVERY: Duration = Duration::from_millis(20);

/// The shortest time that a queued request is told to expect: a batch takes a few milliseconds, and a poll sooner would be wasted.
pub const ETA_MIN: Duration = Duration::from_millis(10);
/// How fast the highest rate of decisions seen is forgotten: a rate of an idle minute says nothing about a crowd.
pub const DECISION_RATE_WINDOW: Duration = Duration::from_secs(10);
/// Positions are compared for the rate of decisions no sooner than this: shorter spans measure single batches.
pub const DECISION_RATE_SPAN_MIN: Duration = Duration::from_millis(50);

// ---- dead letters for people ------------------------------------------------------------------------------------------------

/// Dead letters on one page, unless another number is asked for.
pub const POISON_PAGE_DEFAULT: i64 = 100;
/// And at most: rows without their bytes.
pub const POISON_PAGE_MAX: i64 = 1001;
/// Hex digits of a record that are shown in text; JSON has all.
pub const POISON_HEX_SHOWN_MAX: usize = 1024;

// ---- drain ------------------------------------------------------------------------------------------------------------------

/// How often a drain looks how far the partitions are.
pub const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long no partition may move before a drain gives up; a setting (`--within`), this is its default: a dead consumer's partitions come
/// after [`SESSION_TIMEOUT`], and a restarted server takes seconds.
pub const DRAIN_STILL_MAX: Duration = Duration::from_secs(60);
/// Upper bound of that setting.
pub const DRAIN_STILL_SETTING_MAX: Duration = Duration::from_secs(24 * 3600);

// ---- shutdown ---------------------------------------------------------------------------------------------------------------

/// From SIGTERM to exit, at most.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(25);
/// Of which for requests in flight.
pub const HTTP_DRAIN_DEADLINE: Duration = Duration::from_secs(8);
/// Of which for operators' calls and probes, and for tasks that only have to notice the end.
pub const ADMIN_DRAIN_DEADLINE: Duration = Duration::from_millis(500);
/// Of which for the consumer: the running batch, and leaving the group.
pub const CONSUMER_DRAIN_DEADLINE: Duration = Duration::from_secs(8);
/// Of which for what is queued for Redis: two calls.
pub const SERVICES_DRAIN_DEADLINE: Duration = Duration::from_secs(1);
/// How often the metrics recorder tidies its histograms; without it memory grows.
pub const METRICS_UPKEEP_EVERY: Duration = Duration::from_secs(5);
