//! Questions about the log: where a partition begins and ends, and what stands at one offset.
//!
//! [`LogEnds`] is asked by status reads (is a ticket inside the log?), by the lag and by a claim (is the last decided record still
//! there?). One thread owns a consumer that belongs to no group and answers one question after the other. Whoever asks for the ends of a
//! partition while such a question is already waiting shares its answer: the broker's reply is younger than both questions.
//! Nothing here moves a position or acknowledges anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::sync::oneshot;

use super::KafkaError;
use super::client::{self, LibraryLog};
use crate::clock::Millis;
use crate::{ids, limits};

impl ConsumerContext for LibraryLog {}

type Reader = BaseConsumer<LibraryLog>;

/// One record, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Kafka's partition.
    pub partition: i32,
    /// Kafka's number of the record.
    pub offset: i64,
    /// Log timestamp: the broker's clock at append. 0 if the broker gave none.
    pub at: Millis,
    /// The key, empty if there is none.
    pub key: Vec<u8>,
    /// The bytes, empty if there are none.
    pub payload: Vec<u8>,
}

impl From<&BorrowedMessage<'_>> for LogRecord {
    fn from(message: &BorrowedMessage<'_>) -> Self {
        Self {
            partition: message.partition(),
            offset: message.offset(),
            at: message.timestamp().to_millis().unwrap_or(0),
            key: message.key().unwrap_or_default().to_vec(),
            payload: message.payload().unwrap_or_default().to_vec(),
        }
    }
}

/// Low and high watermark: the first offset that is kept, and the offset that the next record gets.
type Watermarks = (i64, i64);
type Answer<T> = oneshot::Sender<Result<T, KafkaError>>;

const ASK_ENDS: &str = "read the ends of a partition";
const ASK_RECORD: &str = "read a record of the log";

struct Question {
    partition: i32,
    asked: Instant,
    about: About,
}

enum About {
    Ends(Answer<Watermarks>),
    Record(i64, Answer<Option<LogRecord>>),
}

/// Handle to the thread that asks; cheap to clone. The thread ends with the last handle.
#[derive(Clone)]
pub struct LogEnds {
    questions: SyncSender<Question>,
}

impl LogEnds {
    /// Starts the thread for `topic`. Brokers that are away are no error here, only of the questions.
    ///
    /// # Errors
    /// If the settings are refused by the client library, or the system gives no thread.
    pub fn start(brokers: &str, topic: &str) -> Result<Self, KafkaError> {
        let reader = group_less(brokers)?;
        let topic: Arc<str> = topic.into();
        let (questions, asked) = sync_channel(limits::LOG_QUESTIONS_MAX);
        std::thread::Builder::new()
            .name("log-ends".to_owned())
            .spawn(move || answer_all(&reader, &topic, &asked))
            .map_err(|_| KafkaError::Busy { attempt: "start the thread that reads log ends" })?;
        Ok(Self { questions })
    }

    /// The first offset that is kept and the offset that the next record gets, from the partition's leader, read after this call began.
    ///
    /// # Errors
    /// [`KafkaError`], within [`limits::LOG_PROBE_DEADLINE`].
    pub async fn watermarks(&self, partition: i32) -> Result<Watermarks, KafkaError> {
        let (answer, answered) = oneshot::channel();
        self.ask(ASK_ENDS, partition, About::Ends(answer), answered).await
    }

    /// The record at `offset`; `None` if the log does not hold it (not yet, or no longer).
    ///
    /// # Errors
    /// [`KafkaError`], within [`limits::LOG_PROBE_DEADLINE`].
    pub async fn read_record(&self, partition: i32, offset: i64) -> Result<Option<LogRecord>, KafkaError> {
        let (answer, answered) = oneshot::channel();
        self.ask(ASK_RECORD, partition, About::Record(offset, answer), answered).await
    }

    async fn ask<T>(
        &self,
        attempt: &'static str,
        partition: i32,
        about: About,
        answered: oneshot::Receiver<Result<T, KafkaError>>,
    ) -> Result<T, KafkaError> {
        let question = Question { partition, asked: Instant::now(), about };
        self.questions.try_send(question).map_err(|_| KafkaError::Busy { attempt })?;
        match tokio::time::timeout(limits::LOG_PROBE_DEADLINE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(KafkaError::Deadline { attempt }),
        }
    }
}

/// A consumer that belongs to no group: it fetches what it is told to, keeps no offsets, and takes nothing damaged.
fn group_less(brokers: &str) -> Result<Reader, KafkaError> {
    let mut config: ClientConfig = client::config(brokers);
    config
        // The library wants a name to poll at all; as nothing is subscribed or committed, no group of this name ever exists.
        .set("group.id", format!("flashsale-reader-{}", ids::fresh_token().simple()))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        // As the consumer reads: the end is the end of what is decided.
        .set("isolation.level", "read_uncommitted")
        .set("fetch.error.backoff.ms", limits::BROKER_RECONNECT_WAIT_MIN.as_millis().to_string())
        .set("fetch.queue.backoff.ms", limits::BROKER_RECONNECT_WAIT_MIN.as_millis().to_string())
        .set("queued.max.messages.kbytes", limits::FETCH_AHEAD_KIB_MAX.to_string());
    Reader::from_config_and_context(&config, LibraryLog).map_err(KafkaError::because("make a log reader"))
}

/// The thread: takes what has gathered, one broker request for all who ask for the same partition's ends.
fn answer_all(reader: &Reader, topic: &str, asked: &Receiver<Question>) {
    loop {
        let first = match asked.recv_timeout(limits::LOG_EVENTS_EVERY) {
            Ok(question) => Some(question),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // The library's log lines and events wait in a queue that grows unless somebody takes them. No message can be among them: nothing
        // is assigned between two questions.
        while reader.poll(Duration::ZERO).is_some() {}
        let mut ends: HashMap<i32, (Instant, Vec<Answer<Watermarks>>)> = HashMap::new();
        let mut records = Vec::new();
        for question in first.into_iter().chain(asked.try_iter().take(limits::LOG_QUESTIONS_MAX)) {
            match question.about {
                About::Ends(answer) => {
                    ends.entry(question.partition).or_insert((question.asked, Vec::new())).1.push(answer);
                }
                About::Record(offset, answer) => records.push((question.partition, question.asked, offset, answer)),
            }
        }
        for (partition, (asked, waiting)) in ends {
            // Whoever stopped waiting needs no request; an unreachable leader must not cost the others their deadlines one by one.
            if waiting.iter().all(oneshot::Sender::is_closed) {
                continue;
            }
            let read = ends_of(reader, topic, partition, asked);
            for answer in waiting {
                let _ = answer.send(read.clone()); // a caller that is gone needs no answer
            }
        }
        for (partition, asked, offset, answer) in records.into_iter().filter(|(.., answer)| !answer.is_closed()) {
            let _ = answer.send(record_at(reader, topic, partition, offset, asked)); // as above
        }
    }
}

/// What is left of a question's time; never zero, as the library takes that for "just look".
fn time_left(asked: Instant) -> Duration {
    limits::LOG_PROBE_DEADLINE.saturating_sub(asked.elapsed()).max(limits::LOG_PROBE_DEADLINE_MIN)
}

fn ends_of(reader: &Reader, topic: &str, partition: i32, asked: Instant) -> Result<Watermarks, KafkaError> {
    reader.fetch_watermarks(topic, partition, time_left(asked)).map_err(KafkaError::because(ASK_ENDS))
}

fn record_at(
    reader: &Reader,
    topic: &str,
    partition: i32,
    offset: i64,
    asked: Instant,
) -> Result<Option<LogRecord>, KafkaError> {
    let (low, high) = ends_of(reader, topic, partition, asked)?;
    if !(low..high).contains(&offset) {
        return Ok(None);
    }
    let mut from = TopicPartitionList::with_capacity(1);
    from.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(KafkaError::because(ASK_RECORD))?;
    reader.assign(&from).map_err(KafkaError::because(ASK_RECORD))?;
    let record = first_record(reader, partition, offset, asked);
    reader.unassign().map_err(KafkaError::because(ASK_RECORD))?;
    record
}

/// Polls until the record is there. A later offset in its place means that the log lost it between the two requests.
fn first_record(reader: &Reader, partition: i32, offset: i64, asked: Instant) -> Result<Option<LogRecord>, KafkaError> {
    while asked.elapsed() < limits::LOG_PROBE_DEADLINE {
        match reader.poll(time_left(asked)) {
            Some(Ok(message)) if message.partition() == partition && message.offset() >= offset => {
                return Ok((message.offset() == offset).then(|| LogRecord::from(&message)));
            }
            // A rest of an earlier question, or nothing yet.
            Some(Ok(_) | Err(rdkafka::error::KafkaError::PartitionEOF(_))) | None => {}
            // Brokers come and go; the deadline decides. An offset that is gone is an answer.
            Some(Err(rdkafka::error::KafkaError::MessageConsumption(code))) if is_gone(code) => return Ok(None),
            Some(Err(error)) => tracing::debug!(%error, kafka.partition = partition, "log reader met an error"),
        }
    }
    Err(KafkaError::Deadline { attempt: ASK_RECORD })
}

fn is_gone(code: rdkafka::types::RDKafkaErrorCode) -> bool {
    use rdkafka::types::RDKafkaErrorCode::{AutoOffsetReset, OffsetOutOfRange};
    matches!(code, AutoOffsetReset | OffsetOutOfRange)
}

/// Where a [`LogReader`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// At the oldest record that is kept.
    Beginning,
    /// Behind the newest record.
    End,
    /// At this offset (of every partition that is read).
    Offset(i64),
}

/// Reads records one after the other, partition by partition in order: for `flashsale log tail`. Blocks; use it on a thread of its own.
pub struct LogReader {
    reader: Reader,
}

impl LogReader {
    /// Reads `partitions` of `topic` from `start`; all partitions that exist if `partitions` is empty.
    ///
    /// # Errors
    /// [`KafkaError`] if the topic's partitions can't be found out within [`limits::LOG_PROBE_DEADLINE`].
    pub fn open(brokers: &str, topic: &str, partitions: &[i32], start: LogStart) -> Result<Self, KafkaError> {
        let reader = group_less(brokers)?;
        let metadata = reader
            .fetch_metadata(Some(topic), limits::LOG_PROBE_DEADLINE)
            .map_err(KafkaError::because("read a topic's metadata"))?;
        let existing = metadata.topics().iter().flat_map(|t| t.partitions()).map(|p| p.id());
        let wanted = existing.filter(|id| partitions.is_empty() || partitions.contains(id));
        let offset = match start {
            LogStart::Beginning => Offset::Beginning,
            LogStart::End => Offset::End,
            LogStart::Offset(offset) => Offset::Offset(offset),
        };
        let mut from = TopicPartitionList::new();
        for partition in wanted {
            from.add_partition_offset(topic, partition, offset).map_err(KafkaError::because(ASK_RECORD))?;
        }
        reader.assign(&from).map_err(KafkaError::because(ASK_RECORD))?;
        Ok(Self { reader })
    }

    /// The next record; `None` if there is none within `wait`.
    ///
    /// # Errors
    /// [`KafkaError`], e.g. an offset that is not kept any more. Brokers that are away are waited for.
    pub fn next(&mut self, wait: Duration) -> Result<Option<LogRecord>, KafkaError> {
        let asked = Instant::now();
        loop {
            let left = wait.saturating_sub(asked.elapsed());
            match self.reader.poll(left) {
                Some(Ok(message)) => return Ok(Some(LogRecord::from(&message))),
                Some(Err(error @ rdkafka::error::KafkaError::MessageConsumption(code))) if is_gone(code) => {
                    return Err(KafkaError::because(ASK_RECORD)(error));
                }
                Some(Err(_)) | None if left.is_zero() => return Ok(None),
                Some(Err(_)) | None => {}
            }
        }
    }
}
