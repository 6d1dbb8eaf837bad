//! The auditor: adds the stock up again, by another way than the writers, and stops the sale of a SKU that does not add up.
//!
//! ```text
//! lead      one auditor at a time (an advisory lock of its session)
//! look      every second, one snapshot: counters, what is new of movements and batches, now and then all reservations
//! judge     pure ([`books`])
//! tell      metrics, a log line, and for a SKU a row in `sku_halt`, which only the API reads: 503 for reserves, everything else goes on
//! ```
//! It shares no code with the writers, and no table but by reading. What it finds it first finds again from nothing, so that neither a
//! restored database nor its own memory can make it cry wolf. It repairs nothing: that is for a person.
//!
//! Reservations are recounted as often as that costs [`limits::AUDIT_RECOUNT_SHARE`] of one core of Postgres at most.

pub mod books;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::limits;
use crate::store::{AuditSession, StoreError};
use crate::telemetry::metrics as names;
use books::{Books, Check, Finding, Subject};

/// What the probes read: whether the auditor has a session, leading or standing by.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<AtomicBool>);

impl Health {
    /// True while there is a session.
    pub fn has_session(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where an auditor looks.
#[derive(Clone, Debug)]
pub struct Config {
    /// Postgres.
    pub database_url: Arc<str>,
    /// The log's topic: its partitions are audited.
    pub topic: String,
}

/// What one look found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// SKUs that were looked at.
    pub skus: Vec<String>,
    /// Contradictions; empty = all is well.
    pub findings: Vec<Finding>,
    /// Number of the last time that an operator let a SKU go on.
    pub resumes: i64,
}

/// Looks once, from nothing, at everything.
///
/// # Errors
/// [`StoreError`]: nobody knows.
pub async fn look_once(config: &Config) -> Result<Report, StoreError> {
    let mut session = AuditSession::open(&config.database_url, &config.topic).await?;
    look(&mut session, &mut Books::default(), true).await
}

/// One snapshot, read and judged.
async fn look(session: &mut AuditSession, books: &mut Books, is_recount: bool) -> Result<Report, StoreError> {
    let mut snapshot = session.snapshot().await?;
    let counters = snapshot.counters().await?;
    let (halted, resumes) = snapshot.halted().await?;
    books.forget_resumed(&halted);
    let unread = books.unread(&counters);
    if !unread.is_empty() {
        books.begin_at(snapshot.accepted(&unread).await?);
    }
    loop {
        let behind = books.behind(&counters);
        let mut has_moved = false;
        for skus in behind.chunks(limits::AUDIT_SKUS_PER_QUERY) {
            for movement in snapshot.movements(skus).await? {
                has_moved = true;
                books.fold(&movement);
            }
        }
        if !has_moved {
            break;
        }
    }
    let positions = snapshot.positions().await?;
    loop {
        let batches = snapshot.batches(&books.batches_behind(&positions)).await?;
        if batches.is_empty() {
            break;
        }
        batches.iter().for_each(|batch| books.tile(batch));
    }
    if is_recount {
        books.compare(&counters, &snapshot.recount().await?);
    }
    snapshot.end().await?;
    let findings = books.judge(&counters, &positions);
    Ok(Report { skus: counters.into_iter().map(|sku| sku.sku_id).collect(), findings, resumes })
}

/// Audits until `stop`. Postgres away is waited for.
pub async fn run(config: Config, clock: Arc<dyn Clock>, health: Health, stop: CancellationToken) {
    let mut wait = limits::RECONNECT_WAIT_MIN;
    while !stop.is_cancelled() {
        let broken = match stop.run_until_cancelled(AuditSession::open(&config.database_url, &config.topic)).await {
            None => return,
            Some(Err(error)) => error,
            Some(Ok(session)) => {
                health.0.store(true, Ordering::Relaxed);
                let began = Instant::now();
                let ended = Auditor::new(session, Arc::clone(&clock), stop.clone()).lead().await;
                health.0.store(false, Ordering::Relaxed);
                gauge!(names::AUDIT_LEADS).set(0.0);
                match ended {
                    Ok(()) => return,
                    Err(error) => {
                        if began.elapsed() > 2 * limits::AUDIT_EVERY {
                            wait = limits::RECONNECT_WAIT_MIN;
                        }
                        error
                    }
                }
            }
        };
        if wait == limits::RECONNECT_WAIT_MIN {
            tracing::warn!(error = &broken as &dyn std::error::Error, "the auditor has no session, trying again");
        }
        stop.run_until_cancelled(sleep(wait)).await;
        wait = (wait * 2).min(limits::RECONNECT_WAIT_MAX);
    }
}

/// An auditor with its session.
struct Auditor {
    session: AuditSession,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    books: Books,
    recount_at: Instant,
    /// What was told already and is still so.
    told: BTreeSet<(Subject, Check)>,
    /// SKUs whose gauges were set.
    shown: BTreeSet<String>,
}

impl Auditor {
    fn new(session: AuditSession, clock: Arc<dyn Clock>, stop: CancellationToken) -> Self {
        Self {
            session,
            clock,
            stop,
            books: Books::default(),
            recount_at: Instant::now(),
            told: BTreeSet::new(),
            shown: BTreeSet::new(),
        }
    }

    /// Stands by until nobody else leads, then looks every second. Ends well only when told to stop.
    async fn lead(mut self) -> Result<(), StoreError> {
        while !self.session.take_lead().await? {
            gauge!(names::AUDIT_LEADS).set(0.0);
            if self.stop.run_until_cancelled(sleep(limits::AUDIT_EVERY)).await.is_none() {
                return Ok(());
            }
        }
        gauge!(names::AUDIT_LEADS).set(1.0);
        tracing::info!("this auditor leads");
        loop {
            let began = Instant::now();
            self.audit().await?;
            let pause = limits::AUDIT_EVERY.saturating_sub(began.elapsed());
            if self.stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
    }

    async fn audit(&mut self) -> Result<(), StoreError> {
        let mut report = self.look(Instant::now() >= self.recount_at).await?;
        if report.findings.iter().any(|finding| !self.told.contains(&finding.key())) {
            // Once more, from nothing: a restored database looks like one that lost movements.
            self.books = Books::default();
            report = self.look(true).await?;
        }
        self.session.halt(&halts_of(&report.findings), report.resumes).await?;
        self.tell(&report);
        Ok(())
    }

    async fn look(&mut self, is_recount: bool) -> Result<Report, StoreError> {
        let began = Instant::now();
        let report = look(&mut self.session, &mut self.books, is_recount).await?;
        let took = began.elapsed();
        let phase = if is_recount { "recount" } else { "fold" };
        histogram!(names::AUDIT_DURATION, "phase" => phase).record(took);
        if is_recount {
            self.recount_at = Instant::now() + recount_wait(took);
        }
        Ok(report)
    }

    fn tell(&mut self, report: &Report) {
        let now: BTreeSet<_> = report.findings.iter().map(Finding::key).collect();
        for finding in report.findings.iter().filter(|finding| !self.told.contains(&finding.key())) {
            tracing::error!(
                audit.subject = %finding.subject,
                audit.check = finding.check.name(),
                audit.units = finding.units,
                detail = finding.detail,
                "the books do not add up: the sale of this SKU is halted"
            );
            counter!(names::AUDIT_FINDINGS, "check" => finding.check.name()).increment(1);
        }
        for (subject, check) in self.told.difference(&now) {
            tracing::info!(audit.subject = %subject, audit.check = check.name(), "the books add up again");
        }
        self.told = now;
        self.set_gauges(report);
        gauge!(names::AUDIT_LAST_LOOK).set(self.clock.now() as f64 / 1000.0);
    }

    /// 0 when fine, so that a missing series means a missing auditor. SKUs beyond [`limits::AUDIT_SKUS_SHOWN_MAX`] share one series.
    fn set_gauges(&mut self, report: &Report) {
        for check in Check::ALL {
            counter!(names::AUDIT_FINDINGS, "check" => check.name()).increment(0);
        }
        let worst = |sku: &str, is_oversell: bool| {
            let of_sku = report.findings.iter().filter(|f| f.subject == Subject::Sku(sku.to_owned()));
            of_sku.filter(|f| (f.check == Check::Oversell) == is_oversell).map(|f| f.units).max().unwrap_or(0)
        };
        let (mut other_oversell, mut other_drift, mut has_other) = (0, 0, false);
        for sku in &report.skus {
            let (oversell, drift) = (worst(sku, true), worst(sku, false));
            if self.shown.contains(sku) || self.shown.len() < limits::AUDIT_SKUS_SHOWN_MAX {
                self.shown.insert(sku.clone());
                gauge!(names::INVENTORY_OVERSELL, "sku" => sku.clone()).set(oversell as f64);
                gauge!(names::INVENTORY_DRIFT, "sku" => sku.clone()).set(drift as f64);
            } else {
                has_other = true;
                other_oversell = oversell.max(other_oversell);
                other_drift = drift.max(other_drift);
            }
        }
        // Without any SKU there must be a series, too.
        if has_other || report.skus.is_empty() {
            gauge!(names::INVENTORY_OVERSELL, "sku" => "other").set(other_oversell as f64);
            gauge!(names::INVENTORY_DRIFT, "sku" => "other").set(other_drift as f64);
        }
    }
}

/// A SKU's findings as its halt tells them.
fn halts_of(findings: &[Finding]) -> Vec<(String, String)> {
    let sku_of = |finding: &Finding| match &finding.subject {
        Subject::Sku(sku) => Some((sku.clone(), format!("{}: {}", finding.check.name(), finding.detail))),
        Subject::Partition(_) => None,
    };
    let mut halts: Vec<_> = findings.iter().filter_map(sku_of).collect();
    halts.sort();
    // The first reason of each.
    halts.dedup_by(|later, first| later.0 == first.0);
    halts
}

/// How long to wait with the next recount after one that took so long.
fn recount_wait(took: Duration) -> Duration {
    (took * limits::AUDIT_RECOUNT_SHARE).clamp(limits::AUDIT_EVERY, limits::AUDIT_RECOUNT_WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recount_takes_a_small_share_of_the_time() {
        assert_eq!(recount_wait(Duration::ZERO), limits::AUDIT_EVERY);
        assert_eq!(recount_wait(Duration::from_secs(1)), Duration::from_secs(20));
        assert_eq!(recount_wait(Duration::from_secs(3600)), limits::AUDIT_RECOUNT_WAIT_MAX);
    }

    #[test]
    fn a_halt_tells_one_reason_and_partitions_have_none() {
        let finding =
            |subject: Subject, check, detail: &str| Finding { subject, check, units: 1, detail: detail.into() };
        let sku = |name: &str| Subject::Sku(name.to_owned());
        let findings = [
            finding(sku("b"), Check::Reservations, "x"),
            finding(sku("a"), Check::Oversell, "y"),
            finding(sku("b"), Check::Counters, "z"),
            finding(Subject::Partition(0), Check::Batches, "w"),
        ];
        let expected = [("a".to_owned(), "oversell: y".to_owned()), ("b".to_owned(), "counters: z".to_owned())];
        assert_eq!(halts_of(&findings), expected);
    }
}
