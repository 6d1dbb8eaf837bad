-- What `flashsale calibrate` measured of the pressure levels of ingress. Only adds: a build before it does not look.

CREATE TABLE ingress_calibration (
  level              smallint    NOT NULL PRIMARY KEY,
  linger_us          bigint      NOT NULL,
  commands_max       integer     NOT NULL,
  in_flight_max      smallint    NOT NULL,
  p95_us             bigint      NOT NULL,
  records_per_second bigint      NOT NULL,
  measured_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT ingress_calibration_level CHECK (level BETWEEN 1 AND 10),
  CONSTRAINT ingress_calibration_positive CHECK (linger_us >= 0 AND commands_max > 0 AND in_flight_max > 0)
);
COMMENT ON TABLE ingress_calibration IS 'Settings of pressure levels as measured on this cluster; a level without a row has its starting values. Read by each API at its start.';
COMMENT ON COLUMN ingress_calibration.p95_us IS 'Measured with them: from submission to delivery report.';

INSERT INTO schema_floor (migration, oldest_build) VALUES (2, 1);
