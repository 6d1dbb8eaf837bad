//! flashsale reserves scarce stock for a crowd: thousands press *buy* for one SKU in the same second, each gets one honest answer fast,
//! and never are more units promised than exist.
//!
//! # A guided tour, in the order of the flow
//!
//! A request enters through [`http`], alone or with others in one call, which parses it into types that cannot be wrong ([`ids`],
//! [`inventory`]'s commands). [`admission`]
//! refuses what can be refused from memory and from one Redis call for many requests ([`cache`]). [`ingress`] collects what is in flight
//! and publishes it, in the bytes of [`wire`], through [`kafka`]: 202 is said after the broker's delivery report, not before.
//!
//! On the other side the [`consumer`] owns each partition by a claim in Postgres. It gathers up to 250 commands, loads what they may touch
//! ([`store`]), decides them with the pure function [`inventory::decide`], and commits decisions, stock and log position in one transaction
//! whose first statement is the fence. A batch that fails and a COMMIT without an answer are judged in `consumer/worker/judge.rs`; the
//! oracle is its `ask_oracle`. Only after COMMIT [`effects`] tell Redis and wake the [`waiters`]; [`subscription`] does the same in other
//! processes. Reads of a reservation go through [`status`], many ids in one query. What happened is stored with each batch and published by the
//! relay ([`outbox`]).
//!
//! Everything but a reserve is asked through [`commands`], which wait for their decision: confirm, cancel and extend of a reservation, and
//! what [`admin`] asks of a SKU.
//!
//! Around it: [`config`] and [`cli`] turn flags and environment into parts, [`telemetry`]
//! names every log field and metric, [`shutdown`] ends things in order. [`limits`] holds every bound with its reason, [`clock`] is where
//! time enters, [`pace`] keeps batches from becoming many and small, [`ingress::levels`] publishes.
//!
//! # Which kind of failure takes which form
//!
//! | kind | form | who handles it |
//! |---|---|---|
//! | business result (sold out, duplicate) | a [`inventory::Verdict`]: data, never an `Error` | stored, returned, counted |
//! | bad input | a typed refusal of the boundary | HTTP 4xx with a stable code, or poison in the log |
//! | operating, passes by itself (Postgres restarts) | an `Error` enum of the module | bounded waits in one place; 503 with `Retry-After` |
//! | operating, for good (unknown schema) | the same, returned by the component | the process drains and ends |
//! | contradiction (a gap in the log, a violated CHECK) | a stored halt with its reason | that partition stops; a person looks |
//!
//! `docs/architecture.md` lists the invariants and where each is enforced; `docs/style.md` says how the code is written,
//! and what to touch to add a command.
#![forbid(unsafe_code)]

pub mod admin;
pub mod admission;
pub mod auditor;
mod batcher;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod consumer;
pub mod effects;
pub mod http;
pub mod ids;
pub mod ingress;
pub mod inventory;
pub mod kafka;
pub mod limits;
pub mod load;
pub mod origin;
pub mod outbox;
pub mod pace;
pub mod shutdown;
pub mod status;
pub mod store;
pub mod subscription;
pub mod telemetry;
pub mod waiters;
pub mod wire;
