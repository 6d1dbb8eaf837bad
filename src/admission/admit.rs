//! The decision about one request: from memory, then Redis, then (only to refuse a keyed one) Postgres and the log's end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, poll_immediate};
use uuid::Uuid;

use super::catalogue::Found;
use super::over_limit::Claimed;
use super::publish::{Publish, Settle, Taken};
use super::redis_check::Checked;
use super::{Admission, Admitted, AdmittedMany, Later, Refusal, Replay, ReserveRequest};
use crate::cache::{AdmissionAnswer, AdmissionItem, KeyMarker};
use crate::clock::Millis;
use crate::ids::{self, SkuId};
use crate::inventory::Settings;
use crate::limits;
use crate::status::{self, StatusAnswer};
use crate::store::{CatalogueEntry, UserOfSku};

const MINUTE_US: i64 = 60_000_000;

/// What is known of earlier tries of the request that is published.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Try {
    /// Redis took its units and wrote its marker. `is_proved`: and would remember an earlier one.
    First { is_proved: bool },
    /// An earlier one has a pending marker, and its units, taken in this minute.
    Again { minute: i64 },
    /// Redis was not asked, or can't say: nothing is written there.
    Unchecked,
}

/// One request on its way through admission.
struct Case<'a> {
    admission: &'a Admission,
    request: &'a ReserveRequest,
    /// Absent for a SKU that is not known.
    entry: Option<Arc<CatalogueEntry>>,
    key: Option<KeyMarker>,
}

pub(super) async fn admit(admission: &Admission, request: &ReserveRequest) -> Admitted {
    let found = admission.catalogue.find(&request.sku).await;
    match Case::open(admission, request, found) {
        Ok((case, refusal)) => {
            let checked = match &admission.redis {
                Some(redis) => redis.check(case.item(refusal.is_some())).await,
                None => None,
            };
            case.conclude(checked, refusal).await
        }
        Err(refusal) => Admitted::Refused(refusal),
    }
}

/// The same for many: Redis is asked once for all of them, one after the other in their order.
pub(super) async fn admit_many<'a>(admission: &'a Admission, requests: &'a [ReserveRequest]) -> AdmittedMany<'a> {
    let found = find_skus(admission, requests).await;
    let opened: Vec<_> =
        requests.iter().map(|request| Case::open(admission, request, found[&request.sku].clone())).collect();
    let items = opened.iter().flatten().map(|(case, refusal)| case.item(refusal.is_some())).collect();
    let checked = match &admission.redis {
        Some(redis) => redis.check_many(items).await,
        None => items.iter().map(|_| None).collect(),
    };
    let mut checked = checked.into_iter();
    let (mut now, mut later) = (Vec::with_capacity(requests.len()), Vec::<(usize, Later<'a>)>::new());
    for (at, opened) in opened.into_iter().enumerate() {
        match opened {
            Ok((case, refusal)) => {
                let checked = checked.next().expect("each open case was checked");
                let mut concluded = Box::pin(case.conclude(checked, refusal));
                match poll_immediate(&mut concluded).await {
                    Some(admitted) => now.push((at, admitted)),
                    None => later.push((at, concluded)),
                }
            }
            Err(refusal) => now.push((at, Admitted::Refused(refusal))),
        }
    }
    AdmittedMany { now, later }
}

/// Each SKU once. Of those that are not in memory only a few at once, so that one call leaves look-ups for others.
async fn find_skus<'a>(admission: &Admission, requests: &'a [ReserveRequest]) -> HashMap<&'a SkuId, Found> {
    let (mut found, mut not_in_memory) = (HashMap::new(), Vec::new());
    for ReserveRequest { sku, .. } in requests {
        if found.contains_key(sku) {
            continue;
        }
        // Overwritten below, if it is not in memory.
        let entry = admission.catalogue.get(sku);
        not_in_memory.extend(entry.is_none().then_some(sku));
        found.insert(sku, entry.map_or(Found::Busy, Found::Entry));
    }
    for few in not_in_memory.chunks(limits::SKU_LOOKUPS_PER_CALL) {
        let read = join_all(few.iter().map(|sku| admission.catalogue.find(sku))).await;
        found.extend(few.iter().copied().zip(read));
    }
    found
}

/// What memory alone refuses, by precedence. A halt comes before the lag that it causes.
fn refusal_from_memory(admission: &Admission, request: &ReserveRequest, found: &Found) -> Option<Refusal> {
    let entry = match found {
        Found::Entry(entry) => entry,
        Found::Unknown => return Some(Refusal::UnknownSku),
        Found::Unavailable => return Some(Refusal::Unavailable { maybe_accepted: None }),
        Found::Busy => return Some(Refusal::Overloaded { maybe_accepted: None }),
    };
    let catalogue = &admission.catalogue;
    if catalogue.halted_reason(entry).is_some() {
        return Some(Refusal::Halted { maybe_accepted: None });
    }
    if catalogue.lag().age(entry.partition) > limits::INTAKE_LAG_MAX {
        return Some(Refusal::Overloaded { maybe_accepted: None });
    }
    if entry.sku.is_paused {
        return Some(Refusal::Paused { maybe_accepted: None });
    }
    let settings = &entry.sku.settings;
    refusal_by_window(settings, request.received_at_us / 1000).or_else(|| {
        // Above the limit by itself: Redis is asked, because it knows what remains, and that refusal comes before this one.
        let is_within_limit = request.quantity.get() <= settings.user_limit;
        let sold_out = catalogue.sold_out(&request.sku).filter(|_| is_within_limit)?;
        Some(Refusal::SoldOut { available: 0, holds_pending: sold_out.holds_pending })
    })
}

/// The sale's start and end decide here only outside [`limits::SALE_WINDOW_MARGIN`]: within it the log's clock does.
fn refusal_by_window(settings: &Settings, now: Millis) -> Option<Refusal> {
    let margin = i64::try_from(limits::SALE_WINDOW_MARGIN.as_millis()).expect("a few seconds");
    match (settings.starts_at, settings.ends_at) {
        (Some(starts_at), _) if now.saturating_add(margin) < starts_at => Some(Refusal::SaleNotStarted { starts_at }),
        (_, Some(ends_at)) if now >= ends_at.saturating_add(margin) => Some(Refusal::SaleEnded { ends_at }),
        _ => None,
    }
}

impl<'a> Case<'a> {
    /// A request that Redis is asked about, and why it will be refused unless its key is known.
    ///
    /// # Errors
    /// What memory alone refuses for good: it has no key.
    fn open(
        admission: &'a Admission,
        request: &'a ReserveRequest,
        found: Found,
    ) -> Result<(Self, Option<Refusal>), Refusal> {
        let refusal = refusal_from_memory(admission, request, &found);
        let key = request.key.as_ref().map(|key| KeyMarker {
            name: ids::key_marker_name(&request.user, key),
            id: ids::keyed_reservation_id(&request.user, &request.sku, key),
            fingerprint: ids::fingerprint(&request.sku, request.quantity),
        });
        let entry = if let Found::Entry(entry) = found { Some(entry) } else { None };
        match refusal {
            Some(refusal) if key.is_none() => Err(refusal),
            refusal => Ok((Self { admission, request, entry, key }, refusal)),
        }
    }

    /// What follows from what Redis said.
    async fn conclude(self, checked: Option<Checked>, refusal: Option<Refusal>) -> Admitted {
        let Some(Checked { answer, memory_age }) = checked else {
            return self.without_redis(refusal).await;
        };
        match (answer, refusal) {
            (AdmissionAnswer::Replay { id, ticket }, _) => Admitted::Replay(Replay { id, ticket, is_decided: false }),
            (AdmissionAnswer::KeyReused, _) => Admitted::Refused(Refusal::KeyReused),
            (AdmissionAnswer::Pending { minute }, refusal) => self.go_on(minute, refusal).await,
            (AdmissionAnswer::OverLimit { decided, undecided }, _) => {
                self.over_limit(decided, undecided, memory_age).await
            }
            (AdmissionAnswer::Ok | AdmissionAnswer::Absent, Some(refusal)) => {
                self.refuse_unless_known(refusal, memory_age).await
            }
            (AdmissionAnswer::Ok | AdmissionAnswer::Absent, None) => {
                let is_proved = self.vouches(memory_age);
                self.publish(Try::First { is_proved }).unwrap_or(Admitted::Refused(Refusal::UnknownSku))
            }
        }
    }

    /// An earlier try has a pending marker: a replay if it is known to be in the log, else it is published again. Never refused: its first try
    /// may be in the log. Nor can its SKU be unknown for good: it was known then.
    async fn go_on(self, minute: i64, refusal: Option<Refusal>) -> Admitted {
        if let Some(KeyMarker { id, .. }) = self.key {
            if let Some(ticket) = self.admission.unheard.ticket(id) {
                return Admitted::Replay(Replay { id, ticket: Some(ticket), is_decided: false });
            }
            // Its fingerprint is that of the marker. Who can't read publishes again: that is never wrong.
            if let Ok(StatusAnswer { row: Some(row), .. }) = self.admission.status.read(id).await {
                return Admitted::Replay(Replay { id, ticket: Some(row.ticket), is_decided: true });
            }
        }
        self.publish(Try::Again { minute }).unwrap_or_else(|| {
            let id = self.key.as_ref().map(|key| key.id);
            Admitted::Refused(refusal.unwrap_or(Refusal::UnknownSku).of_maybe_accepted(id))
        })
    }

    /// Redis says that the user would pass the limit. What was asked for and not decided it forgets within minutes. What the writer told it
    /// lives for a day, and is confirmed by Postgres if it alone refuses; if it is too high, the writer decides, who counts exactly.
    async fn over_limit(self, decided: u64, undecided: u64, memory_age: Duration) -> Admitted {
        let (limit, quantity) = (self.limit(), self.request.quantity.get());
        let units = match (limit.checked_sub(quantity), self.entry.as_ref()) {
            (Some(units_max), Some(entry)) if decided > units_max.into() => {
                let of = UserOfSku {
                    partition: entry.partition,
                    user: self.request.user.clone(),
                    sku: self.request.sku.clone(),
                };
                let claimed = Claimed { of, decided, units_max: units_max.into() };
                match self.admission.units_of_user(claimed).await {
                    Some(units) if units <= units_max.into() => {
                        return self.publish(Try::Unchecked).unwrap_or(Admitted::Refused(Refusal::UnknownSku));
                    }
                    // What was confirmed may be a minute old, and a cancel since is known to Redis at once.
                    confirmed => confirmed.map_or(decided, |units| units.min(decided)),
                }
            }
            // Refused for the undecided units as well, or for its quantity alone.
            _ => decided,
        };
        let remaining = u32::try_from(u64::from(limit).saturating_sub(units + undecided)).unwrap_or(limit);
        self.refuse_unless_known(Refusal::UserLimit { limit, remaining }, memory_age).await
    }

    /// Zero for a SKU that is not known.
    fn limit(&self) -> u32 {
        self.entry.as_ref().map_or(0, |entry| entry.sku.settings.user_limit)
    }

    fn item(&self, refused_already: bool) -> AdmissionItem {
        AdmissionItem {
            user: self.request.user.clone(),
            sku: self.request.sku.clone(),
            quantity: self.request.quantity,
            limit: self.limit(),
            minute: self.minute(),
            key: self.key,
            refused_already,
        }
    }

    fn minute(&self) -> i64 {
        self.request.received_at_us.div_euclid(MINUTE_US)
    }

    /// Redis is away: accept, the writer checks everything again. Only what memory knows is refused.
    async fn without_redis(self, refusal: Option<Refusal>) -> Admitted {
        let limit = self.entry.as_ref().map(|entry| entry.sku.settings.user_limit);
        let is_above_limit = limit.is_some_and(|limit| self.request.quantity.get() > limit);
        let over_limit = limit.filter(|_| is_above_limit).map(|limit| Refusal::UserLimit { limit, remaining: limit });
        match refusal.or(over_limit) {
            Some(refusal) => self.refuse_unless_known(refusal, Duration::ZERO).await,
            None => self.publish(Try::Unchecked).unwrap_or(Admitted::Refused(Refusal::UnknownSku)),
        }
    }

    /// The key was not met in Redis. `memory_age`: how far back Redis can say so.
    async fn refuse_unless_known(self, refusal: Refusal, memory_age: Duration) -> Admitted {
        let Some(id) = self.key.as_ref().map(|key| key.id) else { return Admitted::Refused(refusal) };
        let status = &self.admission.status;
        let vouches = self.vouches(memory_age);
        let found = match &self.entry {
            Some(entry) if vouches && !refusal.is_for_now() => status.find_in_partition(id, entry.partition).await,
            // A refusal for now does not wait: its client comes again.
            Some(_) | None => match status.read(id).await.map(|answer| answer.row) {
                Ok(Some(row)) => status::Found::Decided(Box::new(row)),
                Ok(None) if vouches => status::Found::Absent,
                Ok(None) | Err(_) => status::Found::Unavailable,
            },
        };
        match found {
            status::Found::Decided(row) if row.quantity.is_some_and(|q| q != self.request.quantity.get()) => {
                Admitted::Refused(Refusal::KeyReused)
            }
            status::Found::Decided(row) => Admitted::Replay(Replay { id, ticket: Some(row.ticket), is_decided: true }),
            status::Found::Absent => Admitted::Refused(refusal),
            status::Found::Queued(_) | status::Found::Unavailable => self.say_without_proof(refusal, id),
        }
    }

    /// Whether Redis remembers everything that may still be undecided or on its way into the log, so that a key that it does not know was
    /// not tried lately. Only as far as it was told: what a process could not tell it yet is a gap, see `publish`.
    fn vouches(&self, memory_age: Duration) -> bool {
        let lag =
            self.entry.as_ref().map_or(Duration::ZERO, |entry| self.admission.catalogue.lag().age(entry.partition));
        let needed = lag.max(limits::INTAKE_LAG_MAX) + limits::MESSAGE_TIMEOUT;
        // Markers that are older than their life are forgotten, whatever the age of the instance.
        needed < memory_age.min(limits::KEY_MARKER_TTL)
    }

    /// Nobody can say whether the key was accepted before: a final refusal is left to the writer, who knows; a refusal for now says
    /// that it does not know. A SKU that is unknown now was never known, and nothing of it can have been accepted.
    fn say_without_proof(self, refusal: Refusal, id: Uuid) -> Admitted {
        if refusal.is_for_now() {
            return Admitted::Refused(refusal.of_maybe_accepted(Some(id)));
        }
        self.publish(Try::Unchecked).unwrap_or(Admitted::Refused(refusal))
    }

    /// The time of the request, or the nearest one in the minute that its units were taken from, unless that minute has expired. So a
    /// retry's decision looks up to [`limits::PROVISIONAL_MINUTES`] slower than it was.
    fn accounted_at_us(&self, this_try: Try) -> i64 {
        let own = self.request.received_at_us;
        match this_try {
            Try::Again { minute } if self.minute().abs_diff(minute) <= limits::PROVISIONAL_MINUTES.unsigned_abs() => {
                own.clamp(minute * MINUTE_US, (minute + 1) * MINUTE_US - 1)
            }
            Try::Again { .. } | Try::First { .. } | Try::Unchecked => own,
        }
    }

    /// `None` without a SKU.
    fn publish(&self, this_try: Try) -> Option<Admitted> {
        let entry = self.entry.as_ref()?;
        let ReserveRequest { user, sku, quantity, .. } = self.request;
        let keyed_id = self.key.as_ref().map(|key| key.id);
        let taken = || Taken { user: user.clone(), sku: sku.clone(), quantity: *quantity, minute: self.minute() };
        let settle = Settle {
            key: self.key,
            has_marker: this_try != Try::Unchecked,
            taken: matches!(this_try, Try::First { .. }).then(taken),
            minute: self.minute(),
            redis: self.admission.redis.clone(),
            unheard: self.admission.unheard.clone(),
            lag: self.admission.catalogue.lag().clone(),
        };
        Some(Admitted::Publish(Publish {
            id: keyed_id.unwrap_or_else(ids::fresh_id),
            partition: entry.partition,
            is_retry: matches!(this_try, Try::Again { .. }),
            received_at_us: self.accounted_at_us(this_try),
            maybe_accepted: keyed_id.filter(|_| this_try != Try::First { is_proved: true }),
            settle,
        }))
    }
}

impl Refusal {
    /// 503: the same request may be taken a little later. All others are final, as far as anybody can say.
    fn is_for_now(&self) -> bool {
        matches!(self, Self::Overloaded { .. } | Self::Halted { .. } | Self::Unavailable { .. } | Self::Paused { .. })
    }

    /// A refusal for now that has to say that an earlier request with the same key may have been accepted.
    fn of_maybe_accepted(self, id: Option<Uuid>) -> Self {
        match self {
            Self::Overloaded { .. } => Self::Overloaded { maybe_accepted: id },
            Self::Halted { .. } => Self::Halted { maybe_accepted: id },
            Self::Paused { .. } => Self::Paused { maybe_accepted: id },
            Self::Unavailable { .. } => Self::Unavailable { maybe_accepted: id },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_refuse_only_outside_the_margin() {
        let settings = Settings { starts_at: Some(10_000), ends_at: Some(20_000), ..Settings::default() };
        let early = Some(Refusal::SaleNotStarted { starts_at: 10_000 });
        let late = Some(Refusal::SaleEnded { ends_at: 20_000 });
        for (now, expected) in
            [(0, early), (7_999, early), (8_000, None), (15_000, None), (20_000, None), (21_999, None), (22_000, late)]
        {
            assert_eq!(refusal_by_window(&settings, now), expected, "at {now}");
        }
        assert_eq!(refusal_by_window(&Settings::default(), 0), None);
        let far = Settings { starts_at: Some(i64::MIN), ends_at: Some(i64::MAX), ..Settings::default() };
        for now in [i64::MIN, 0, i64::MAX - 1] {
            assert_eq!(refusal_by_window(&far, now), None, "no overflow at {now}");
        }
    }
}
