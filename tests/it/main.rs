//! The integration tests: one binary, one module per topic, so that everything links once.
//!
//! Modules named after pure code (`decide_*`, `wire_*`, `tidy`) and `monitoring` need nothing. All others ask real services, named by `DATABASE_URL`,
//! `REDIS_URL` and `KAFKA_BROKERS` (`make test` sets them); each test makes itself a fresh schema, topic and key prefix.

mod admission_catalogue;
mod admission_flow;
mod admission_hints;
mod alarms;
mod auditor;
mod cli_commands;
mod consumer_effects;
mod consumer_failures;
mod consumer_guards;
mod consumer_holds;
mod consumer_partition;
mod consumer_shared_ids;
mod consumer_watch;
mod decide_keys;
mod decide_life;
mod decide_properties;
mod decide_states;
mod decide_stock;
mod decide_table;
mod e2e_daytwo;
mod e2e_faults;
mod e2e_life;
mod e2e_load;
mod e2e_operators;
mod e2e_sale;
mod http_keys;
mod http_life;
mod http_reads;
mod http_refusals;
mod http_reservations;
mod http_server;
mod ingress_calibration;
mod ingress_publish;
mod kafka_log;
mod monitoring;
mod outbox_brokers;
mod outbox_bytes;
mod outbox_faults;
mod outbox_relay;
mod outbox_session;
mod redis_outage;
mod redis_scripts;
mod status_reads;
mod store_holds;
mod store_lists;
mod store_schema;
mod store_writer;
mod support;
mod tidy;
mod traces;
mod waiters_sweep;
mod wire_bytes;
mod wire_commands;
