//! `flashsale migrate`: topics and tables, made or checked. May be run again, and by several at once.

use clap::Args;

use super::{Failure, print};
use crate::config::Config;
use crate::kafka::topics;
use crate::limits;
use crate::store;

#[derive(Args)]
pub(super) struct Migrate {
    /// Partitions of the log, when it is created
    #[arg(long, env = "PARTITIONS", default_value_t = limits::PARTITIONS_DEFAULT,
        value_parser = clap::value_parser!(i32).range(1..=i64::from(limits::PARTITIONS_MAX)))]
    partitions: i32,
    /// Copies that Kafka keeps of each partition, when topics are created; 3 in production
    #[arg(long, env = "REPLICATION", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=9))]
    replication: i32,
}

impl Migrate {
    pub(super) async fn run(self, config: Config) -> Result<(), Failure> {
        let (brokers, topic) = (config.brokers(), &config.topic);
        topics::ensure(brokers, topic, self.partitions, self.replication)
            .await
            .map_err(|error| Failure::unavailable(&error))?;
        topics::ensure_events(brokers, &config.events_topic, self.partitions, self.replication)
            .await
            .map_err(|error| Failure::unavailable(&error))?;
        store::migrate(config.database(), topic, self.partitions)
            .await
            .map_err(|error| Failure::unavailable(&error))?;
        print(format!("tables and topics are ready: {topic} has {} partitions", self.partitions))
    }
}
