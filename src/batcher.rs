//! Natural batching of questions: what gathered while the last call was in flight makes the next one. One call at a time; no timer, but
//! for calls with a fixed price that a crowd asks for, which are paced ([`crate::pace`]).

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::pace::Pace;

/// Where questions are left; cheap to clone. A task takes them from [`Questions`].
pub(crate) struct Batcher<Q, A> {
    queue: mpsc::Sender<Asked<Q, A>>,
}

/// The other end: questions in the order in which they were asked.
pub(crate) struct Questions<Q, A> {
    queued: mpsc::Receiver<Asked<Q, A>>,
}

/// Those who wait for the answers of one call, in the order of its questions.
pub(crate) struct Answers<A> {
    waiting: Vec<oneshot::Sender<A>>,
}

struct Asked<Q, A> {
    question: Q,
    answer: oneshot::Sender<A>,
}

impl<Q, A> Clone for Batcher<Q, A> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

/// A batcher for at most `queue_max` waiting questions.
pub(crate) fn batcher<Q, A>(queue_max: usize) -> (Batcher<Q, A>, Questions<Q, A>) {
    let (queue, queued) = mpsc::channel(queue_max);
    (Batcher { queue }, Questions { queued })
}

impl<Q, A> Batcher<Q, A> {
    /// The answer; `None` at once if too many wait already.
    pub(crate) async fn ask(&self, question: Q) -> Option<A> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Asked { question, answer }).ok()?;
        answered.await.ok()
    }
}

impl<Q, A> Questions<Q, A> {
    /// Waits for a question, and takes what else is there: 1 to `call_max`. `None` when the last [`Batcher`] is gone and all is taken.
    pub(crate) async fn next(&mut self, call_max: usize) -> Option<(Vec<Q>, Answers<A>)> {
        self.next_of(call_max, None).await
    }

    /// The same, no sooner after the last call than the pace says.
    pub(crate) async fn next_paced(&mut self, call_max: usize, pace: &mut Pace) -> Option<(Vec<Q>, Answers<A>)> {
        self.next_of(call_max, Some(pace)).await
    }

    async fn next_of(&mut self, call_max: usize, mut pace: Option<&mut Pace>) -> Option<(Vec<Q>, Answers<A>)> {
        let mut gathered = Vec::with_capacity(call_max);
        while self.queued.recv_many(&mut gathered, call_max).await > 0 {
            if let Some(pace) = pace.as_deref_mut() {
                gather_paced(&mut self.queued, &mut gathered, call_max, pace).await;
            }
            // Whoever went away needs no answer, and nothing may be taken in their name.
            let (questions, waiting): (Vec<_>, Vec<_>) =
                gathered.drain(..).filter(|a| !a.answer.is_closed()).map(|a| (a.question, a.answer)).unzip();
            if !questions.is_empty() {
                return Some((questions, Answers { waiting }));
            }
        }
        None
    }
}

/// Goes on taking from `queue` into `gathered`, which holds what was taken already, for as long as the pace says; at most `call_max` in all.
/// Notes the start of the call. Cancel-safe: nothing is taken unless it ends up in `gathered`.
pub(crate) async fn gather_paced<T>(
    queue: &mut mpsc::Receiver<T>,
    gathered: &mut Vec<T>,
    call_max: usize,
    pace: &mut Pace,
) {
    let mut taken = gathered.len();
    while taken > 0 {
        let now = Instant::now().into_std();
        pace.arrived(taken, now);
        let room = call_max - gathered.len();
        let wait = pace.wait(room == 0, now);
        if wait.is_zero() {
            break;
        }
        // Woken once, not by each that comes. Full or closed ends the wait by itself.
        tokio::time::sleep(wait).await;
        taken = 0;
        while gathered.len() < call_max
            && let Ok(next) = queue.try_recv()
        {
            gathered.push(next);
            taken += 1;
        }
    }
    pace.started(Instant::now().into_std());
}

impl<A> Answers<A> {
    /// Gives each its answer; there is one per question, in the same order.
    pub(crate) fn give(self, answers: Vec<A>) {
        assert_eq!(answers.len(), self.waiting.len(), "one answer per question");
        for (waiting, answer) in self.waiting.into_iter().zip(answers) {
            // Whoever went away meanwhile loses nothing.
            drop(waiting.send(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn what_gathers_during_a_call_makes_the_next_one() {
        let (batcher, mut questions) = batcher::<u32, u32>(100);
        let first = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.ask(1).await }
        });
        let (asked, answers) = questions.next(4).await.expect("one is asked");
        assert_eq!(asked, [1]);
        let others = tokio::spawn(async move { join_all((2..8).map(|n| batcher.ask(n))).await });
        while questions.queued.len() < 6 {
            tokio::task::yield_now().await;
        }
        answers.give(vec![10]);
        let mut sizes = Vec::new();
        while let Some((asked, answers)) = questions.next(4).await {
            sizes.push(asked.len());
            answers.give(asked.into_iter().map(|n| n * 10).collect());
        }
        assert_eq!(sizes, [4, 2]);
        assert_eq!(first.await.expect("it asks"), Some(10));
        assert_eq!(others.await.expect("they ask"), (2..8).map(|n| Some(n * 10)).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_full_queue_answers_at_once_and_the_gone_are_not_asked_for() {
        let (batcher, mut questions) = batcher::<u32, u32>(1);
        drop(tokio::time::timeout(std::time::Duration::ZERO, batcher.ask(1)).await);
        assert_eq!(batcher.ask(2).await, None, "the queue holds one");
        drop(batcher);
        assert!(questions.next(4).await.is_none(), "nobody waits");
    }
}
