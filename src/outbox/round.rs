//! One round of publishing: some rows of one partition, what may be sent of them now, and what their reports mean. Pure.
//!
//! **In order per SKU**: once an event of a SKU failed, no later event of that SKU is sent before it. Events of other SKUs go on. An event
//! whose bytes can't be published by itself is *parked*: kept apart with the reason, for a person; its SKU goes on without it.
//!
//! A report that refuses bytes is about a whole pack of events. So whoever is refused is only suspected, and sent alone next time;
//! only then a refusal is about the event itself.

use std::collections::BTreeSet;

use crate::ids::SkuId;
use crate::inventory::Event;
use crate::limits;

/// What became of one event that was sent, or should have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// In the topic.
    Confirmed,
    /// Not there, or nobody knows: to be sent again.
    Open,
    /// Its bytes, or those of the pack that it was in, were refused.
    Refused,
    /// It can never be sent, because ...
    Impossible(String),
}

/// A row of `outbox`, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number; rows of a partition are in this order.
    pub id: i64,
    /// What it holds, in order.
    pub events: Vec<Event>,
}

/// An event that was parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// The event.
    pub event: Event,
    /// Why it can't be published.
    pub reason: String,
}

/// What is to be written down after a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Rows of which nothing is left to do.
    pub done: Vec<i64>,
    /// Rows of which something was done, with the events that are left.
    pub rest: Vec<Row>,
    /// Events that were parked.
    pub parked: Vec<Parked>,
}

/// What a lane remembers from round to round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// SKUs of which an event failed: their later events are held back.
    pub skus: BTreeSet<SkuId>,
    /// Ids of events that were refused, maybe for the sake of others.
    pub suspects: BTreeSet<String>,
}

/// The place of an event in a round: which row, which of its events.
pub type At = (usize, usize);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Confirmed,
    Parked(String),
}

/// A round under way.
#[derive(Debug)]
pub struct Round {
    partition: i32,
    rows: Vec<Row>,
    states: Vec<Vec<State>>,
    held: Held,
    /// Events before this place had their turn.
    next: At,
}

impl Round {
    /// Begins with `rows` of one partition, in order.
    pub fn new(partition: i32, rows: Vec<Row>, held: Held) -> Self {
        let states = rows.iter().map(|row| vec![State::Waiting; row.events.len()]).collect();
        Self { partition, rows, states, held, next: (0, 0) }
    }

    /// The events to send next, at once, at most [`limits::RELAY_SLICE_EVENTS`]; a suspect comes alone. Empty = the round is over.
    pub fn slice(&mut self) -> Vec<At> {
        let mut slice = Vec::new();
        while slice.len() < limits::RELAY_SLICE_EVENTS
            && let Some(row) = self.rows.get(self.next.0)
        {
            let Some(event) = row.events.get(self.next.1) else {
                self.next = (self.next.0 + 1, 0);
                continue;
            };
            if !self.held.skus.contains(&event.sku) {
                let is_suspect =
                    !self.held.suspects.is_empty() && self.held.suspects.contains(&event.id(self.partition));
                if is_suspect && !slice.is_empty() {
                    return slice;
                }
                slice.push(self.next);
                if is_suspect {
                    self.next.1 += 1;
                    return slice;
                }
            }
            self.next.1 += 1;
        }
        slice
    }

    /// An event of a slice.
    ///
    /// # Panics
    /// If there is none at this place.
    pub fn event(&self, at: At) -> &Event {
        &self.rows[at.0].events[at.1]
    }

    /// What became of a slice, in its order.
    ///
    /// # Panics
    /// Unless there is one report for each.
    pub fn report(&mut self, slice: &[At], reports: Vec<Sent>) {
        assert_eq!(slice.len(), reports.len(), "one report for each event that was sent");
        for (at, sent) in slice.iter().zip(reports) {
            if sent == Sent::Confirmed && self.held.suspects.is_empty() {
                self.states[at.0][at.1] = State::Confirmed; // nearly always
                continue;
            }
            let event = &self.rows[at.0].events[at.1];
            let id = event.id(self.partition);
            let was_alone = slice.len() == 1;
            let state = match sent {
                Sent::Confirmed => State::Confirmed,
                Sent::Impossible(reason) => State::Parked(reason),
                Sent::Refused if was_alone && self.held.suspects.contains(&id) => {
                    State::Parked("the broker refuses its bytes".to_owned())
                }
                Sent::Refused => {
                    self.held.suspects.insert(id);
                    self.held.skus.insert(event.sku.clone());
                    continue;
                }
                Sent::Open => {
                    self.held.skus.insert(event.sku.clone());
                    continue;
                }
            };
            self.held.suspects.remove(&id);
            self.states[at.0][at.1] = state;
        }
    }

    /// Events that are in the topic.
    pub fn confirmed(&self) -> impl Iterator<Item = &Event> {
        let events = self.rows.iter().zip(&self.states).flat_map(|(row, states)| row.events.iter().zip(states));
        events.filter(|(_, state)| **state == State::Confirmed).map(|(event, _)| event)
    }

    /// What is to be written down, and what the lane remembers.
    pub fn end(self) -> (Settlement, Held) {
        let mut settlement = Settlement::default();
        for (row, states) in self.rows.into_iter().zip(self.states) {
            let (id, count) = (row.id, row.events.len());
            let mut left = Vec::new();
            for (event, state) in row.events.into_iter().zip(states) {
                match state {
                    State::Waiting => left.push(event),
                    State::Confirmed => {}
                    State::Parked(reason) => settlement.parked.push(Parked { event, reason }),
                }
            }
            if left.is_empty() {
                settlement.done.push(id);
            } else if left.len() < count {
                settlement.rest.push(Row { id, events: left });
            }
        }
        (settlement, self.held)
    }
}

#[cfg(test)]
mod tests;
