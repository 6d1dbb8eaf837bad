//! How bounds depend on each other, checked when the program is compiled: whoever changes one is told which other one it breaks.

use super::*;

const _: () = {
    assert!(
        // Between two questions it may look for a broker, see `topics::facts`.
        RELAY_LEAD_EVERY.as_millis() + STATEMENT_DEADLINE.as_millis() + 3 * LOG_PROBE_DEADLINE.as_millis()
            < RELAY_SESSION_IDLE_MAX.as_millis(),
        "the session of a relay that is well would be ended"
    );
    assert!(
        AUDIT_EVERY.as_millis() * 2 < AUDIT_SESSION_IDLE_MAX.as_millis(),
        "the session of an auditor that is well would be ended"
    );
    assert!(
        RELAY_DRAIN_DEADLINE.as_millis() + RELAY_SETTLE_DEADLINE.as_millis() <= CONSUMER_DRAIN_DEADLINE.as_millis(),
        "a relay ends beside the consumer"
    );
    assert!(LIST_TIME.as_millis() < READ_DEADLINE.as_millis(), "a page that ends early must not be too late");
    assert!(
        INTAKE_LAG_MAX.as_millis() * 2 < HOLD_SECONDS_MIN as u128 * 1000,
        "lag must stay under half of the shortest hold"
    );
    assert!(
        KEY_MARKER_TTL.as_secs() > INTAKE_LAG_MAX.as_secs() + MESSAGE_TIMEOUT.as_secs(),
        "Redis could not vouch for absence"
    );
    assert!(
        INTAKE_LAG_MAX.as_secs() + MESSAGE_TIMEOUT.as_secs() >= LANDING_WINDOW.as_secs(),
        "Redis would vouch for requests that may still land"
    );
    assert!(
        OVER_LIMIT_CONFIRM_WAIT.as_millis() < READ_DEADLINE.as_millis(),
        "an answer would wait for a query that is given up"
    );
    assert!(SOLD_OUT_RENEW_EVERY.as_millis() * 2 < SOLD_OUT_LEASE.as_millis(), "a flag would flicker");
    assert!(EVENT_PACK_BYTES_MAX <= TOPIC_MESSAGE_BYTES_MIN, "events would be refused for the company they are in");
    assert!(
        PARTITION_BUFFER_BYTES_MAX >= 2 * BATCH_SIZE_MAX * 2 * METADATA_BYTES_MAX,
        "half a buffer would not be a batch of unpacked records"
    );
    assert!(
        // As `cli::serve` takes the process apart. The operators' part counts five times: the public listener's last answers, publishes
        // that note their end, the admin listener (twice), and the background.
        HTTP_DRAIN_DEADLINE.as_millis()
            + PRODUCER_DRAIN_DEADLINE.as_millis()
            + CONSUMER_DRAIN_DEADLINE.as_millis()
            + SERVICES_DRAIN_DEADLINE.as_millis()
            + 5 * ADMIN_DRAIN_DEADLINE.as_millis()
            < SHUTDOWN_DEADLINE.as_millis(),
        "the parts of the shutdown must fit the whole"
    );
    assert!(
        MIGRATION_LOCK_TIMEOUT.as_millis() < LOCK_TIMEOUT.as_millis(),
        "a migration that waits for a table must not fail the batches behind it"
    );
    assert!(
        STATEMENT_DEADLINE.as_secs() * (BATCH_ATTEMPTS_MAX as u64) < MAX_POLL_INTERVAL.as_secs(),
        "a batch that is tried again must not cost the membership"
    );
    assert!(
        BROKER_PROBE_DEADLINE.as_millis() < DELIVERY_WAIT.as_millis(),
        "held back requests could never be published"
    );
    assert!(PUBLISH_COMMANDS_MAX >= RECORD_COMMANDS_MAX, "a full record must fit one publish");
    assert!(PUBLISH_COMMANDS_MAX <= LANE_QUEUE_MAX, "a full publish could never gather");
    assert!(LINGER_MAX.as_millis() < RATE_WINDOW.as_millis(), "a pace slower than its own measurement would swing");
    assert!(BATCH_PACE.as_millis() <= BATCH_PACE_CROWD.as_millis(), "a crowd would make more batches");
    assert!(BATCH_PACE_CROWD.as_millis() <= BATCH_PACE_MAX.as_millis(), "many partitions would make a crowd faster");
    assert!(BATCH_PACE_MAX.as_millis() < RATE_WINDOW.as_millis(), "a pace slower than its own measurement would swing");
    assert!(ADMISSION_PACE.as_millis() <= ADMISSION_PACE_CROWD.as_millis(), "a crowd would make more calls");
    assert!(RATE_WINDOW.as_millis() < LEVEL_HOLD.as_millis(), "a level would be left by the rate of the one before");
    assert!(3 * LANE_QUEUE_MAX < HTTP_IN_FLIGHT_MAX, "one stuck partition must leave room for the others");
    assert!(RESERVATIONS_PER_CALL_MAX <= ADMISSION_CALL_MAX, "a call of many must be one call to Redis");
    assert!(RESERVATIONS_PER_CALL_MAX <= STATUS_READ_MAX, "a call of many must be one query");
    assert!(RESERVATIONS_PER_CALL_MAX * 38 + 2048 < HEADER_BYTES_MAX, "so many ids must fit a query string");
    assert!(SKU_LOOKUPS_PER_CALL * 2 < SKU_LOOKUPS_MAX, "one call must leave look-ups for others");
    assert!(
        STATUS_READS_AT_ONCE + STATUS_READS_OF_MANY_AT_ONCE < READ_CONNECTIONS_MAX as usize,
        "status reads must leave connections for everybody else"
    );
    assert!(HTTP_IN_FLIGHT_MAX <= STATUS_QUEUE_MAX, "whoever is inside may ask for a status");
    assert!(HTTP_IN_FLIGHT_MAX < CONNECTIONS_MAX, "overload must be answered, not left to the kernel");
};
