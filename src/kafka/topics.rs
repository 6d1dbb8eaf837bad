//! The topics that the service needs: made once by `flashsale migrate`, checked at every run of it.
//!
//! What makes a topic fit: the partition count that Postgres has rows for; `LogAppendTime`, because decisions take their time from the
//! log; no compaction, because offsets must be dense; room for a pack of records, and in the dead-letter topic for the largest record that
//! the request topic takes, because poison can be any size. A topic that does not fit is an error that says what to do, never a silent
//! repair.

use std::collections::HashMap;
use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::types::RDKafkaErrorCode;
use tokio::time::Instant;

use super::KafkaError;
use super::client::{self, LibraryLog};
use crate::limits;

/// Partitions of the dead-letter topic: dead letters are few and people read them, in the order in which they were found.
pub const DEAD_LETTER_PARTITIONS: i32 = 1;

/// The dead-letter topic that belongs to `topic`.
pub fn dead_letter_topic(topic: &str) -> String {
    format!("{topic}-dlq")
}

/// Why the topics are not ready.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// Kafka could not be asked, or refused.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The topic exists and does not fit.
    #[error("topic {topic} does not fit: {what}")]
    Unfit {
        /// Its name.
        topic: String,
        /// What is wrong and what would be right.
        what: String,
    },
}

/// Makes the request topic with `partitions` partitions and its dead-letter topic, or checks them if they are there, and waits until every
/// partition has a leader. `replication` is the number of copies: 1 on a developer's machine, 3 in production. May be run again.
///
/// # Errors
/// [`TopicError`]; nothing is changed on a topic that exists.
pub async fn ensure(brokers: &str, topic: &str, partitions: i32, replication: i32) -> Result<(), TopicError> {
    assert!((1..=limits::PARTITIONS_MAX).contains(&partitions), "the configuration checks the number of partitions");
    let admin = admin(brokers)?;
    let dead_letters = dead_letter_topic(topic);
    create(&admin, topic, partitions, replication, &[]).await?;
    await_leaders(&admin, topic, partitions).await?;
    let largest = check_config(&admin, topic, limits::TOPIC_MESSAGE_BYTES_MIN, "a pack of records").await?;
    // Generous where we may choose: a record that was packed by its producer is larger as a dead letter.
    let letter_min = largest.saturating_add(limits::DEAD_LETTER_OVERHEAD_BYTES);
    let room = letter_min.max(limits::DEAD_LETTER_BYTES_MAX + limits::DEAD_LETTER_OVERHEAD_BYTES).to_string();
    create(&admin, &dead_letters, DEAD_LETTER_PARTITIONS, replication, &[(MESSAGE_BYTES, &room)]).await?;
    await_leaders(&admin, &dead_letters, DEAD_LETTER_PARTITIONS).await?;
    check_config(&admin, &dead_letters, letter_min, "the largest record of the request topic").await.map(drop)
}

/// Makes the topic of events, or checks it if it is there: whoever reads events may own it, so any number of partitions is fine. Each SKU's
/// events go to the partition that its commands come from, modulo that number.
///
/// # Errors
/// [`TopicError`]; nothing is changed on a topic that exists.
pub async fn ensure_events(brokers: &str, topic: &str, partitions: i32, replication: i32) -> Result<(), TopicError> {
    let admin = admin(brokers)?;
    create(&admin, topic, partitions, replication, &[]).await?;
    let found = await_partitions(&admin, topic).await?;
    tracing::debug!(kafka.topic = topic, kafka.partitions = found, "the topic of events is there");
    let settings = settings_of(&admin, topic).await?;
    let wrong: Vec<String> = [
        wrong_cleanup(&settings, "a compacted topic keeps one event per SKU"),
        wrong_size(&settings, limits::EVENT_BYTES_MAX + limits::EVENT_OVERHEAD_BYTES, "the largest event"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if wrong.is_empty() { Ok(()) } else { Err(TopicError::Unfit { topic: topic.to_owned(), what: wrong.join("; ") }) }
}

/// Makes a topic of one partition to measure on; [`remove`] it afterwards.
///
/// # Errors
/// [`TopicError`].
pub async fn ensure_scratch(brokers: &str, topic: &str, replication: i32) -> Result<(), TopicError> {
    let admin = admin(brokers)?;
    create(&admin, topic, 1, replication, &[]).await?;
    await_leaders(&admin, topic, 1).await
}

/// Removes a topic with all that is in it.
///
/// # Errors
/// [`KafkaError`].
pub async fn remove(brokers: &str, topic: &str) -> Result<(), KafkaError> {
    const ATTEMPT: &str = "remove a topic";
    let removed = admin(brokers)?.delete_topics(&[topic], &options()).await.map_err(KafkaError::because(ATTEMPT))?;
    let refused = removed.into_iter().find_map(Result::err);
    refused.map_or(Ok(()), |(_, code)| Err(KafkaError::because(ATTEMPT)(rdkafka::error::KafkaError::AdminOp(code))))
}

/// What a producer must know about a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicFacts {
    /// Its partitions, at least one.
    pub partitions: i32,
    /// Bytes of the largest pack of records that it takes.
    pub message_bytes_max: usize,
}

/// Asks a broker about a topic.
///
/// # Errors
/// [`KafkaError`] if none answers in time, or none knows the topic.
pub async fn facts(brokers: &str, topic: &str) -> Result<TopicFacts, KafkaError> {
    let admin = admin(brokers)?;
    let facts = ask_facts(&admin, topic).await;
    // The end of the library's threads takes up to half a second, and this thread has other tasks.
    tokio::task::spawn_blocking(move || drop(admin));
    facts
}

async fn ask_facts(admin: &Admin, topic: &str) -> Result<TopicFacts, KafkaError> {
    const ATTEMPT: &str = "ask about the topic of events";
    let unanswered = |_| KafkaError::Deadline { attempt: ATTEMPT };
    let leaders = tokio::time::timeout(limits::LOG_PROBE_DEADLINE * 2, leaders_of(admin, topic));
    let partitions = leaders.await.map_err(unanswered)??.len();
    // Who may write to a topic may not always read its settings, and a broker that is not asked for them by others may never answer.
    let settings = tokio::time::timeout(limits::LOG_PROBE_DEADLINE, settings_of(admin, topic)).await;
    let settings = settings.ok().and_then(Result::ok).unwrap_or_default();
    let message_bytes_max = message_bytes(&settings).unwrap_or(limits::TOPIC_MESSAGE_BYTES_MIN);
    match i32::try_from(partitions) {
        Ok(partitions) if partitions > 0 => Ok(TopicFacts { partitions, message_bytes_max }),
        _ => Err(KafkaError::Deadline { attempt: ATTEMPT }),
    }
}

type Admin = Arc<AdminClient<LibraryLog>>;

fn admin(brokers: &str) -> Result<Admin, KafkaError> {
    let admin = AdminClient::from_config_and_context(&client::config(brokers), LibraryLog);
    admin.map(Arc::new).map_err(KafkaError::because("make an admin client"))
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(limits::TOPIC_SETUP_DEADLINE))
        .operation_timeout(Some(limits::TOPIC_SETUP_DEADLINE))
}

/// Creates one topic, with `settings` besides those that all have; that it exists is fine here.
async fn create(
    admin: &Admin,
    topic: &str,
    partitions: i32,
    replication: i32,
    settings: &[(&str, &str)],
) -> Result<(), TopicError> {
    const ATTEMPT: &str = "create a topic";
    let retention = limits::LOG_RETENTION.as_millis().to_string();
    // One copy may be missing for writes to go on, as long as there are three; with two, both must not be needed.
    let in_sync = (replication - 1).clamp(1, 2).to_string();
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication))
        .set("message.timestamp.type", LOG_APPEND_TIME)
        .set("cleanup.policy", DELETE)
        .set("retention.ms", &retention)
        .set("min.insync.replicas", &in_sync);
    let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
    let results = admin.create_topics([&new], &options()).await.map_err(KafkaError::because(ATTEMPT))?;
    for result in results {
        match result {
            Ok(_) => tracing::info!(kafka.topic = topic, kafka.partitions = partitions, "created topic"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => {
                return Err(KafkaError::because(ATTEMPT)(rdkafka::error::KafkaError::AdminOp(code)).into());
            }
        }
    }
    Ok(())
}

/// Waits until the brokers name a leader for each of the `expected` partitions.
async fn await_leaders(admin: &Admin, topic: &str, expected: i32) -> Result<(), TopicError> {
    let found = await_partitions(admin, topic).await?;
    if found == usize::try_from(expected).expect("checked by ensure") {
        return Ok(());
    }
    let what = format!(
        "it has {found} partitions, {expected} are asked for; raise or lower the setting, or use another topic"
    );
    Err(TopicError::Unfit { topic: topic.to_owned(), what })
}

/// Waits until the brokers name a leader for each partition of a topic; how many it has.
async fn await_partitions(admin: &Admin, topic: &str) -> Result<usize, TopicError> {
    let deadline = Instant::now() + limits::TOPIC_SETUP_DEADLINE;
    loop {
        let leaders = leaders_of(admin, topic).await;
        match leaders {
            Ok(leaders) if !leaders.is_empty() && leaders.iter().all(|has_leader| *has_leader) => {
                return Ok(leaders.len());
            }
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Ok(_) if Instant::now() > deadline => {
                return Err(KafkaError::Deadline { attempt: "wait for a leader of every partition" }.into());
            }
            Ok(_) | Err(_) => tokio::time::sleep(limits::TOPIC_SETUP_POLL).await,
        }
    }
}

/// For each partition of the topic whether it has a leader; empty while the brokers don't know the topic.
async fn leaders_of(admin: &Admin, topic: &str) -> Result<Vec<bool>, KafkaError> {
    let (admin, topic) = (Arc::clone(admin), topic.to_owned());
    let ask = move || {
        let metadata = admin.inner().fetch_metadata(Some(&topic), limits::LOG_PROBE_DEADLINE)?;
        let known = metadata.topics().iter().find(|t| t.name() == topic && t.error().is_none());
        Ok(known.map(|t| t.partitions().iter().map(|p| p.leader() >= 0).collect()).unwrap_or_default())
    };
    let asked = tokio::task::spawn_blocking(ask).await.expect("the question does not panic and is not aborted");
    asked.map_err(KafkaError::because("read a topic's metadata"))
}

const LOG_APPEND_TIME: &str = "LogAppendTime";
const DELETE: &str = "delete";
const MESSAGE_BYTES: &str = "max.message.bytes";

/// Refuses a topic whose settings would break a decision, or where `what` of `bytes_min` bytes does not fit. Returns what does fit: bytes of
/// the largest pack of records.
async fn check_config(admin: &Admin, topic: &str, bytes_min: usize, what: &str) -> Result<usize, TopicError> {
    let settings = settings_of(admin, topic).await?;
    let wrong = wrong_settings(&settings, bytes_min, what);
    if wrong.is_empty() {
        Ok(message_bytes(&settings).unwrap_or(bytes_min))
    } else {
        Err(TopicError::Unfit { topic: topic.to_owned(), what: wrong.join("; ") })
    }
}

async fn settings_of(admin: &Admin, topic: &str) -> Result<HashMap<String, String>, TopicError> {
    const ATTEMPT: &str = "read a topic's settings";
    let described = admin
        .describe_configs([&ResourceSpecifier::Topic(topic)], &options())
        .await
        .map_err(KafkaError::because(ATTEMPT))?;
    let mut settings = HashMap::new();
    for resource in described {
        let resource =
            resource.map_err(|code| KafkaError::because(ATTEMPT)(rdkafka::error::KafkaError::AdminOp(code)))?;
        settings.extend(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
    }
    Ok(settings)
}

fn message_bytes(settings: &HashMap<String, String>) -> Option<usize> {
    settings.get(MESSAGE_BYTES)?.parse().ok()
}

/// What is wrong with a topic's settings, with the remedy; empty = it fits.
fn wrong_settings(settings: &HashMap<String, String>, bytes_min: usize, what: &str) -> Vec<String> {
    let value = |name: &str| settings.get(name).map_or("", String::as_str);
    let mut wrong = Vec::new();
    if value("message.timestamp.type") != LOG_APPEND_TIME {
        wrong.push(format!(
            "message.timestamp.type is {}, it must be {LOG_APPEND_TIME}: decisions take their time from the log",
            value("message.timestamp.type")
        ));
    }
    wrong.extend(wrong_cleanup(settings, "offsets must be dense"));
    wrong.extend(wrong_size(settings, bytes_min, what));
    wrong
}

fn wrong_cleanup(settings: &HashMap<String, String>, why: &str) -> Option<String> {
    let policy = settings.get("cleanup.policy").map_or("", String::as_str);
    (policy != DELETE).then(|| format!("cleanup.policy is {policy}, it must be {DELETE}: {why}"))
}

fn wrong_size(settings: &HashMap<String, String>, bytes_min: usize, what: &str) -> Option<String> {
    let found = settings.get(MESSAGE_BYTES).map_or("", String::as_str);
    let is_small = message_bytes(settings).is_none_or(|bytes| bytes < bytes_min);
    is_small.then(|| format!("{MESSAGE_BYTES} is {found}, it must be {bytes_min} or more: {what} must fit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_fits_only_with_log_append_time_no_compaction_and_room_for_records() {
        let good = [
            ("message.timestamp.type", "LogAppendTime"),
            ("cleanup.policy", "delete"),
            ("max.message.bytes", "1048588"),
        ];
        let check = |changed: Option<(&str, &str)>| {
            let settings = good.iter().copied().chain(changed).map(|(name, value)| (name.to_owned(), value.to_owned()));
            wrong_settings(&settings.collect(), 1_048_588, "a record").len()
        };
        assert_eq!(check(None), 0);
        for changed in [
            ("message.timestamp.type", "CreateTime"),
            ("cleanup.policy", "compact"),
            ("cleanup.policy", "compact,delete"),
            ("max.message.bytes", "1048587"),
            ("max.message.bytes", ""),
        ] {
            assert_eq!(check(Some(changed)), 1, "{changed:?}");
        }
        assert_eq!(wrong_settings(&HashMap::new(), 1, "a record").len(), 3, "what can't be read is not believed");
    }
}
