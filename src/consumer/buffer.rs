//! Records between the poll thread and one partition's worker, bounded by the memory they take: a worker that is behind has thousands of
//! small records before it, or a few hundred packed ones, and either keeps it busy until the client fetches again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::poll::Record;
use crate::limits::{PARTITION_BUFFER_BYTES_MAX, PARTITION_BUFFER_RECORDS_MAX};

const _: () = assert!(PARTITION_BUFFER_RECORDS_MAX * size_of::<Record>() > PARTITION_BUFFER_BYTES_MAX);

/// The poll thread's end. Dropped, the worker takes what is there and then sees the end.
#[derive(Debug)]
pub(super) struct Filler {
    records: mpsc::Sender<Record>,
    bytes: Arc<AtomicUsize>,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Records {
    records: mpsc::Receiver<Record>,
    bytes: Arc<AtomicUsize>,
}

/// An empty buffer of [`PARTITION_BUFFER_BYTES_MAX`].
pub(super) fn buffer() -> (Filler, Records) {
    let (sender, receiver) = mpsc::channel(PARTITION_BUFFER_RECORDS_MAX);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Filler { records: sender, bytes: Arc::clone(&bytes) }, Records { records: receiver, bytes })
}

fn bytes_of(record: &Record) -> usize {
    size_of::<Record>() + record.payload.len()
}

impl Filler {
    /// Adds a record if there is room; the one that fills the buffer may go beyond it. A worker that has gone loses nothing: whoever claims
    /// next begins at the position that is stored.
    ///
    /// # Errors
    /// The record, if the buffer is full.
    pub fn push(&self, record: Record) -> Result<(), Record> {
        // Only this end adds, so what is read here can only have shrunk.
        if self.bytes.load(Ordering::Relaxed) >= PARTITION_BUFFER_BYTES_MAX {
            return Err(record);
        }
        // Added first: the worker must not subtract what is not yet there.
        let bytes = bytes_of(&record);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        match self.records.try_send(record) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(record)) => {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                Err(record)
            }
        }
    }

    /// Whether at least half of it is free.
    pub fn is_half_empty(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) <= PARTITION_BUFFER_BYTES_MAX / 2
    }
}

impl Records {
    /// The next record, when there is one; `None` when the partition is no longer fetched. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Record> {
        let record = self.records.recv().await?;
        Some(self.taken(record))
    }

    /// The next record, if there is one.
    pub fn try_recv(&mut self) -> Result<Record, TryRecvError> {
        let record = self.records.try_recv()?;
        Ok(self.taken(record))
    }

    /// Whether there is none now.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn taken(&self, record: Record) -> Record {
        self.bytes.fetch_sub(bytes_of(&record), Ordering::Relaxed);
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, bytes: usize) -> Record {
        Record { offset, at: None, payload: vec![0; bytes], traces: Vec::new() }
    }

    /// Pushes records of `bytes` until one is refused; how many were taken.
    fn fill(filler: &Filler, bytes: usize) -> usize {
        (0..).take_while(|&offset| filler.push(record(offset, bytes)).is_ok()).count()
    }

    #[test]
    fn it_holds_as_many_as_its_bytes_allow_whatever_their_size() {
        for bytes in [0, 100, 5000, PARTITION_BUFFER_BYTES_MAX, 3 * PARTITION_BUFFER_BYTES_MAX] {
            let (filler, mut records) = buffer();
            let expected = PARTITION_BUFFER_BYTES_MAX.div_ceil(bytes + size_of::<Record>());
            for round in 0..3 {
                assert_eq!(fill(&filler, bytes), expected, "{bytes} bytes, round {round}");
                let taken: Vec<i64> =
                    std::iter::from_fn(|| records.try_recv().ok()).map(|record| record.offset).collect();
                assert!(taken.iter().copied().eq(0..expected as i64), "in their order, and none twice");
            }
        }
    }

    #[test]
    fn half_of_it_must_be_free_before_more_is_fetched() {
        let (filler, mut records) = buffer();
        assert!(filler.is_half_empty());
        let count = fill(&filler, 1000);
        let taken = (0..count).take_while(|_| !filler.is_half_empty() && records.try_recv().is_ok()).count();
        assert!((count / 2..=count / 2 + 1).contains(&taken), "{taken} of {count}");
    }

    #[tokio::test]
    async fn either_end_may_go_first() {
        let (filler, mut records) = buffer();
        filler.push(record(7, 1)).expect("room");
        drop(filler);
        assert!(!records.is_empty());
        assert_eq!(records.recv().await.map(|record| record.offset), Some(7));
        assert_eq!(records.recv().await, None);
        let (filler, records) = buffer();
        drop(records);
        filler.push(record(0, 1)).expect("nobody is told");
    }
}
