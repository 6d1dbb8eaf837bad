-- The truth: stock, decisions, and how far each partition of the log is decided. One transaction per batch moves all of it together.
--
-- No foreign keys between the tables that a batch writes: they cost 9.5 us of Postgres CPU per row (measured), and the pin, the fence
-- and the single writer already prove what they would. Kafka's partition fits a smallint; so do statuses.

CREATE TABLE sku_pin (
  sku_id     text        PRIMARY KEY,
  partition  smallint    NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT sku_pin_partition CHECK (partition >= 0)
);
COMMENT ON TABLE sku_pin IS 'Catalogue entry of a SKU, written once, before its configure is published: the partition whose writer owns it.';

CREATE TABLE sku (
  sku_id                text        PRIMARY KEY,
  partition             smallint    NOT NULL,
  on_hand               bigint      NOT NULL,
  reserved              bigint      NOT NULL,
  sold                  bigint      NOT NULL,
  expired_through       timestamptz NOT NULL,
  is_paused             boolean     NOT NULL,
  user_limit            integer     NOT NULL,
  hold_seconds          integer     NOT NULL,
  starts_at             timestamptz,
  ends_at               timestamptz,
  late_payment          smallint    NOT NULL,
  extensions_max        integer     NOT NULL,
  extension_seconds_max integer     NOT NULL,
  settings_version      bigint      NOT NULL,
  movement_count        bigint      NOT NULL,
  CONSTRAINT sku_counters_not_negative CHECK (on_hand >= 0 AND reserved >= 0 AND sold >= 0),
  CONSTRAINT sku_no_oversell CHECK (reserved + sold <= on_hand),
  CONSTRAINT sku_late_payment CHECK (late_payment IN (0, 1))
) WITH (fillfactor = 50);
COMMENT ON TABLE sku IS 'Settings and counters as last decided. Written by the partition''s single writer alone.';
COMMENT ON COLUMN sku.expired_through IS
  'Holds that end at or before this log time are released from reserved. A RESERVED row among them IS expired, whatever it says: read the view reservation_now.';
COMMENT ON COLUMN sku.late_payment IS '0 = rereserve, 1 = reject';
COMMENT ON COLUMN sku.movement_count IS 'Number of the last stock_movement row of this SKU.';

CREATE TABLE reservation (
  reservation_id uuid        PRIMARY KEY,
  user_hash      bigint      NOT NULL,
  log_offset     bigint      NOT NULL,
  log_time       timestamptz NOT NULL,
  expires_at     timestamptz,
  available      bigint,
  quantity       integer     NOT NULL,
  version        integer     NOT NULL,
  user_limit     integer,
  remaining      integer,
  partition      smallint    NOT NULL,
  log_index      smallint    NOT NULL,
  status         smallint    NOT NULL,
  holds_pending  boolean,
  user_id        text        NOT NULL,
  sku_id         text        NOT NULL,
  reason         text,
  metadata       text,
  changed_at     timestamptz,
  extensions     smallint    NOT NULL DEFAULT 0,
  extension_seconds integer  NOT NULL DEFAULT 0,
  is_late        boolean     NOT NULL DEFAULT false,
  payment_ref    text,
  note           text,
  CONSTRAINT reservation_quantity CHECK (quantity > 0),
  CONSTRAINT reservation_status CHECK (status BETWEEN 1 AND 5),
  CONSTRAINT reservation_reason CHECK ((status = 2) = (reason IS NOT NULL)),
  CONSTRAINT reservation_hold CHECK (status <> 1 OR expires_at IS NOT NULL),
  CONSTRAINT reservation_payment CHECK ((status = 3) = (payment_ref IS NOT NULL))
);
COMMENT ON TABLE reservation IS 'One row per decided reserve command: its first decision and its state today.';
COMMENT ON COLUMN reservation.status IS '1 RESERVED, 2 REJECTED, 3 CONFIRMED, 4 CANCELLED, 5 EXPIRED (Status in src/inventory/decision.rs)';
COMMENT ON COLUMN reservation.log_time IS 'Log time of the decision: accepted_at in every answer.';
COMMENT ON COLUMN reservation.changed_at IS 'Log time of the confirm or cancel. A hold expires at expires_at.';
COMMENT ON COLUMN reservation.available IS 'Only SOLD_OUT: units that were left. holds_pending likewise; user_limit and remaining belong to USER_LIMIT.';
-- Finds a user's live units, and nothing else: refused requests must not slow the next decision, however many there are. A partition's
-- part of it is read once per claim. The hash keeps the index narrow; readers compare user_id too.
CREATE INDEX reservation_user_units ON reservation (partition, user_hash) WHERE status IN (1, 3);
-- What a user had, in the order of a list. Only the end of a hold touches it, never the batch that decides a request. There is no further
-- index: each costs a batch of 250 a millisecond.
CREATE INDEX reservation_user_ended ON reservation (user_hash, reservation_id) WHERE status IN (4, 5);

CREATE TYPE new_reservation AS (
  reservation_id uuid,
  user_hash      bigint,
  log_offset     bigint,
  log_time       timestamptz,
  expires_at     timestamptz,
  available      bigint,
  quantity       integer,
  user_limit     integer,
  remaining      integer,
  log_index      smallint,
  status         smallint,
  holds_pending  boolean,
  user_id        text,
  sku_id         text,
  reason         text,
  metadata       text
);
COMMENT ON TYPE new_reservation IS
  'A decided reserve command as the writer sends it (NewReservation in src/store/rows.rs): one array of rows takes half the time of an '
  'array per column. A later build gets a type of its own, so that two builds can write during a roll-out.';

CREATE VIEW reservation_now AS
  SELECT r.reservation_id, r.user_hash, r.user_id, r.sku_id, r.quantity, r.partition, r.log_offset, r.log_index, r.log_time, r.expires_at,
         CASE WHEN ended THEN 5::smallint ELSE r.status END AS status, r.version + ended::integer AS version,
         r.reason, r.available, r.holds_pending, r.user_limit, r.remaining, r.metadata, r.changed_at, r.extensions, r.extension_seconds,
         r.is_late, r.payment_ref, r.note, s.extensions_max
  FROM reservation r
  LEFT JOIN sku s ON s.sku_id = r.sku_id
  CROSS JOIN LATERAL (SELECT coalesce(r.status = 1 AND r.expires_at <= s.expired_through, false)) AS e (ended);
COMMENT ON VIEW reservation_now IS 'What a reservation is: counters of ended holds are released at once, rows afterwards (Reservation::settled says the same).';

CREATE TABLE command (
  command_id       uuid        PRIMARY KEY,
  requested_id     uuid        NOT NULL,
  key_id           uuid,
  reservation_id   uuid,
  kind             text        NOT NULL,
  sku_id           text        NOT NULL,
  result           text        NOT NULL,
  detail_1         bigint,
  detail_2         bigint,
  detail_3         bigint,
  fingerprint      bigint      NOT NULL,
  partition        smallint    NOT NULL,
  log_offset       bigint      NOT NULL,
  log_index        smallint    NOT NULL,
  log_time         timestamptz NOT NULL,
  CONSTRAINT command_place UNIQUE (partition, log_offset, log_index)
);
COMMENT ON TABLE command IS 'One row per decided command that is not a reserve. A refused one is named by its place, so that it burns no id.';
COMMENT ON COLUMN command.requested_id IS 'The id that the command carried.';
COMMENT ON COLUMN command.key_id IS
  'Of a confirm or an adjustment that something else names: the id that its key alone would have given. One namespace with command_id.';
-- Few commands have one.
CREATE UNIQUE INDEX command_key_id ON command (key_id) WHERE key_id IS NOT NULL;
COMMENT ON COLUMN command.fingerprint IS 'Hash of what was asked for: the same key with another body is told so, not "done".';
COMMENT ON COLUMN command.reservation_id IS 'What a confirm, cancel or extend was to change.';
COMMENT ON COLUMN command.result IS 'CREATED, CHANGED, CONFIRMED, CANCELLED, EXTENDED, ADJUSTED, or the code of the refusal.';
COMMENT ON COLUMN command.detail_1 IS
  'settings_version for CREATED, CHANGED and SETTINGS_CHANGED; on_hand for STOCK_CHANGED and ABOVE_MAXIMUM; minimum for BELOW_COMMITTED; '
  'extensions_left and seconds_left (2) for EXTENSION_LIMIT; on_hand, reserved (2) and sold (3) for ADJUSTED.';

CREATE TABLE partition_state (
  topic         text        NOT NULL,
  partition     smallint    NOT NULL,
  epoch         bigint      NOT NULL DEFAULT 0,
  owner         text        NOT NULL DEFAULT '',
  owner_token   uuid,
  backend_pid   integer,
  position      bigint      NOT NULL DEFAULT 0,
  log_time      timestamptz NOT NULL DEFAULT 'epoch',
  last_digest   bigint,
  halted_reason text,
  halted_at     timestamptz,
  PRIMARY KEY (topic, partition),
  CONSTRAINT partition_state_position CHECK (position >= 0)
) WITH (fillfactor = 20);
COMMENT ON TABLE partition_state IS 'Position of the log, fencing epoch and commit oracle in one row per partition.';
COMMENT ON COLUMN partition_state.epoch IS 'Bumped by every claim. A writer with another epoch or token writes nothing.';
COMMENT ON COLUMN partition_state.position IS 'The next offset to decide. Kafka''s committed offset is never the resume point.';
COMMENT ON COLUMN partition_state.last_digest IS 'Digest of the record at position - 1: shows a log that was cut and refilled.';
COMMENT ON COLUMN partition_state.halted_reason IS 'Not null: nobody decides, the API answers 503. Cleared only by `flashsale partition resume`.';

CREATE TABLE partition_resume (
  topic         text        NOT NULL,
  partition     smallint    NOT NULL,
  halted_reason text        NOT NULL,
  note          text        NOT NULL,
  resumed_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE partition_resume IS 'Who cleared a halt and why: append-only.';

CREATE TABLE batch (
  partition       smallint    NOT NULL,
  first_offset    bigint      NOT NULL,
  position        bigint      NOT NULL,
  epoch           bigint      NOT NULL,
  command_count   integer     NOT NULL,
  decided_count   integer     NOT NULL,
  duplicate_count integer     NOT NULL,
  poison_count    integer     NOT NULL,
  tick_count      integer     NOT NULL,
  build           text        NOT NULL,
  decided         uuid[]      NOT NULL,
  committed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (partition, first_offset),
  CONSTRAINT batch_not_empty CHECK (position > first_offset),
  CONSTRAINT batch_counts CHECK (command_count = decided_count + duplicate_count + poison_count + tick_count)
);
-- Ids don't compress; trying takes time.
ALTER TABLE batch ALTER COLUMN decided SET STORAGE EXTERNAL;
COMMENT ON COLUMN batch.decided IS 'Reservations made or changed by it: a claim repeats the effects of the last batch.';
COMMENT ON TABLE batch IS 'One row per committed batch: batches tile the log, epochs never interleave. The only place with wall time.';

CREATE TABLE stock_movement (
  sku_id       text     NOT NULL,
  number       bigint   NOT NULL,
  partition    smallint NOT NULL,
  first_offset bigint   NOT NULL,
  epoch        bigint   NOT NULL,
  d_on_hand    bigint   NOT NULL,
  d_reserved   bigint   NOT NULL,
  d_sold       bigint   NOT NULL,
  on_hand      bigint   NOT NULL,
  reserved     bigint   NOT NULL,
  sold         bigint   NOT NULL,
  PRIMARY KEY (sku_id, number)
);
COMMENT ON TABLE stock_movement IS 'Append-only: what one batch did to one SKU, and the balance after it. The counters are its fold.';

CREATE TABLE outbox (
  partition  smallint    NOT NULL,
  id         bigint      GENERATED ALWAYS AS IDENTITY,
  skus       text[]      NOT NULL,
  events     bytea       NOT NULL,
  written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (partition, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 20000);
-- Ids don't compress; trying takes time.
ALTER TABLE outbox ALTER COLUMN events SET STORAGE EXTERNAL;
COMMENT ON TABLE outbox IS
  'Events that are not published yet: at most one row per batch, written with it, and one per round of settled holds. The relay deletes what it published.';
COMMENT ON COLUMN outbox.id IS 'Rows of a partition are in this order: its single writer takes the numbers under the lock of its partition_state row.';
COMMENT ON COLUMN outbox.skus IS 'The SKUs of its events: a relay steps over rows of SKUs that are held back.';
COMMENT ON COLUMN outbox.events IS 'Packed, see src/outbox/packed.rs.';

CREATE TABLE outbox_parked (
  id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  partition smallint    NOT NULL,
  event_id  text,
  kind      text,
  skus      text[]      NOT NULL,
  reason    text        NOT NULL,
  events    bytea       NOT NULL,
  parked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE outbox_parked IS 'Events that can''t be published, with the reason: for a person. `flashsale relay retry` puts one back.';
COMMENT ON COLUMN outbox_parked.event_id IS 'Absent for a row whose events can''t be read.';

CREATE TABLE poison (
  partition    smallint    NOT NULL,
  log_offset   bigint      NOT NULL,
  log_index    smallint    NOT NULL,
  command_id   uuid,
  reason       text        NOT NULL,
  log_time     timestamptz NOT NULL,
  raw          bytea       NOT NULL,
  published_at timestamptz,
  resolved_at  timestamptz,
  resolution   text,
  note         text,
  replayed_to  text,
  PRIMARY KEY (partition, log_offset, log_index),
  CONSTRAINT poison_resolution CHECK (resolution IN ('replayed', 'dropped')),
  CONSTRAINT poison_resolved CHECK ((resolved_at IS NULL) = (resolution IS NULL)),
  CONSTRAINT poison_replayed CHECK ((replayed_to IS NULL) = (resolution IS DISTINCT FROM 'replayed'))
);
COMMENT ON TABLE poison IS 'Commands that could not be decided, with their bytes; published to the dead-letter topic after COMMIT.';
COMMENT ON COLUMN poison.log_index IS '0 for a record that can''t be read at all.';
COMMENT ON COLUMN poison.resolved_at IS 'When a person dealt with it (`flashsale dlq`). Once set, nothing of the four changes.';
COMMENT ON COLUMN poison.replayed_to IS 'Ticket under which the command stands in the log again.';
CREATE INDEX poison_command_id ON poison (command_id) WHERE command_id IS NOT NULL;
CREATE INDEX poison_unpublished ON poison (partition, log_offset) WHERE published_at IS NULL;

CREATE TABLE sku_halt (
  sku_id    text        PRIMARY KEY,
  reason    text        NOT NULL,
  halted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE sku_halt IS 'SKUs that do not add up: written by the auditor, read by the API, which takes no reserves for them. Cleared only by `flashsale audit resume`.';

CREATE TABLE sku_resume (
  id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  sku_id         text        NOT NULL,
  halted_reason  text        NOT NULL,
  note           text        NOT NULL,
  movement_count bigint      NOT NULL,
  on_hand        bigint      NOT NULL,
  reserved       bigint      NOT NULL,
  sold           bigint      NOT NULL,
  resumed_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE sku_resume IS 'Who cleared a halt and why: append-only. The auditor''s books of the SKU begin at the last one.';

CREATE TABLE schema_floor (
  migration    bigint NOT NULL PRIMARY KEY,
  oldest_build bigint NOT NULL,
  CONSTRAINT schema_floor_oldest_build CHECK (oldest_build BETWEEN 1 AND migration)
);
COMMENT ON TABLE schema_floor IS 'Which builds may run on these tables, as each migration says itself. A build refuses to start below the highest oldest_build.';
COMMENT ON COLUMN schema_floor.oldest_build IS 'A build is numbered by its newest migration.';
INSERT INTO schema_floor (migration, oldest_build) VALUES (1, 1);
