//! What a subcommand needs to ask through the log without a running API, and how it tells what came of it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Failure;
use crate::clock::{Clock, SystemClock};
use crate::commands::{AskError, CommandRefusal, Commands};
use crate::config::Config;
use crate::http;
use crate::ids::{self, Ticket};
use crate::ingress::{Delivery, Ingress};
use crate::kafka::{KafkaError, LogEnds, Producer};
use crate::limits;
use crate::status::StatusReader;
use crate::store::Store;
use crate::waiters::Waiters;
use crate::wire::Sent;

/// The parts; [`Asking::end`] lets what was published end well.
pub(super) struct Asking {
    pub(super) commands: Commands,
    pub(super) status: StatusReader,
    ingress: Ingress,
}

impl Asking {
    pub(super) fn start(config: &Config, store: &Store) -> Result<Self, Failure> {
        let unavailable = |error: KafkaError| Failure::unavailable(&error);
        let producer = Producer::start(config.brokers(), &config.topic).map_err(unavailable)?;
        let log_ends = LogEnds::start(config.brokers(), &config.topic).map_err(unavailable)?;
        let ingress = Ingress::start(producer);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let status = StatusReader::start(store.clone(), log_ends.clone(), Arc::clone(&clock));
        let commands = Commands::new(
            store.clone(),
            ingress.clone(),
            Waiters::default(),
            log_ends,
            clock,
            // Ctrl-C ends this process at once: nobody has to be told to stop waiting.
            CancellationToken::new(),
            limits::COMMAND_POLL_EVERY,
        );
        Ok(Self { commands, status, ingress })
    }

    /// Publishes one command as it is.
    pub(super) async fn publish(&self, partition: i32, sent: Sent) -> Delivery {
        self.ingress.submit(partition, sent).await
    }

    pub(super) async fn end(self) {
        self.ingress.shutdown().await;
    }
}

/// Finds the call in logs.
pub(super) fn request_id() -> String {
    format!("cli-{}", ids::fresh_id())
}

/// Exit 1, or 70 if it is not the operator's mistake.
pub(super) fn refused(refusal: &CommandRefusal) -> Failure {
    match refusal {
        CommandRefusal::Poisoned(reason) => Failure::bug(format!("the change is among the dead letters: {reason}")),
        refusal => Failure::refused(http::told(refusal)),
    }
}

/// Exit 2: it is in the log.
pub(super) fn undecided(id: Uuid, ticket: Ticket) -> Failure {
    Failure::unknown(format!("command {id} is in the log at {ticket}, but not decided yet: is a consumer running?"))
}

/// Exit 69, or 2 if it may be in the log.
pub(super) fn not_asked(error: AskError) -> Failure {
    match error {
        AskError::NotSent(_) => Failure::unavailable(&error),
        AskError::Unknown => Failure::unknown(error.to_string()),
    }
}
