//! The auditor: adds the stock up again, by another way than the writers, and stops the sale of a SKU that does not add up.
//!
//! ```text
//! lead      one auditor at a time (an advisory lock of its session)
//! look      every second, one short snapshot: counters, and what is new of movements and batches
//! recount   beside it, on a connection of its own: all reservations, as often as that costs a small share of one core
//! judge     pure ([`books`])
//! tell      metrics, a log line, and for a SKU a row in `sku_halt`, which only the API reads: 503 for reserves, everything else goes on
//! ```
//! It shares no code with the writers, and no table but by reading. What depends on its memory it first finds again without it, so that a
//! restored database does not look like a broken one. It repairs nothing: that is for a person.
//!
//! A running auditor begins with the last [`limits::AUDIT_MOVEMENTS_BACK`] movements of each SKU: it must be there fast when another one died.
//! [`look_once`] reads everything that was ever written, and [`look_at`] all of some SKUs.

pub mod books;
mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::limits;
use crate::store::{AuditSession, Halt, StoreError};
use crate::telemetry::metrics as names;
use books::{Books, Check, Finding, Subject};
use look::{Reach, Recount, look, recount};
pub use look::{Report, SkuAudit, look_at, look_once};

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

/// Audits until `stop`. Postgres away is waited for.
pub async fn run(config: Config, clock: Arc<dyn Clock>, health: Health, stop: CancellationToken) {
    let mut auditor = Auditor::new(config, clock, stop.clone());
    let mut wait = limits::RECONNECT_WAIT_MIN;
    while !stop.is_cancelled() {
        let opening = AuditSession::open(&auditor.config.database_url, &auditor.config.topic);
        let broken = match stop.run_until_cancelled(opening).await {
            None => return,
            Some(Err(error)) => error,
            Some(Ok(session)) => {
                health.0.store(true, Ordering::Relaxed);
                let began = Instant::now();
                let ended = auditor.lead(session).await;
                health.0.store(false, Ordering::Relaxed);
                auditor.step_down();
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

/// What an auditor remembers, over all its sessions.
struct Auditor {
    config: Config,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    books: Books,
    recounting: Option<JoinHandle<Result<Recount, StoreError>>>,
    recount_at: Instant,
    recount_wait: Duration,
    /// What was told already and is still so.
    told: BTreeSet<(Subject, Check)>,
    /// SKUs whose gauges were set.
    shown: BTreeSet<String>,
    /// Whether the gauges of all others were.
    has_others: bool,
}

impl Auditor {
    fn new(config: Config, clock: Arc<dyn Clock>, stop: CancellationToken) -> Self {
        Self {
            config,
            clock,
            stop,
            books: Books::default(),
            recounting: None,
            recount_at: Instant::now(),
            recount_wait: limits::AUDIT_EVERY,
            told: BTreeSet::new(),
            shown: BTreeSet::new(),
            has_others: false,
        }
    }

    /// Stands by until nobody else leads, then looks every second. Ends well only when told to stop.
    async fn lead(&mut self, mut session: AuditSession) -> Result<(), StoreError> {
        while !session.take_lead().await? {
            gauge!(names::AUDIT_LEADS).set(0.0);
            if self.stop.run_until_cancelled(sleep(limits::AUDIT_EVERY)).await.is_none() {
                return Ok(());
            }
        }
        gauge!(names::AUDIT_LEADS).set(1.0);
        tracing::info!("this auditor leads");
        loop {
            let began = Instant::now();
            // Whoever is told to stop in the middle drops the session, and what it was asking.
            let Some(audited) = self.stop.clone().run_until_cancelled(self.audit(&mut session)).await else {
                return Ok(());
            };
            audited?;
            let pause = limits::AUDIT_EVERY.saturating_sub(began.elapsed());
            if self.stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Another one may lead now: what was shown is its business.
    fn step_down(&mut self) {
        if let Some(recounting) = self.recounting.take() {
            recounting.abort();
        }
        for sku in self.shown.iter().map(String::as_str).chain(self.has_others.then_some(OTHERS)) {
            show(sku, (0, 0));
        }
        gauge!(names::AUDIT_LEADS).set(0.0);
        self.books = Books::default();
        self.told.clear();
    }

    async fn audit(&mut self, session: &mut AuditSession) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut report = look(session, &mut self.books, Reach::Recent).await?;
        let news: Vec<Subject> =
            report.findings.iter().filter(|f| self.is_news(f)).map(|f| f.subject.clone()).collect();
        if !news.is_empty() {
            // Once more, without what is remembered of them: a restored database looks like one that lost movements.
            self.books.forget(&news);
            report = look(session, &mut self.books, Reach::Recent).await?;
        }
        histogram!(names::AUDIT_DURATION, "phase" => "fold").record(began.elapsed());
        self.recount_now_and_then().await;
        report.findings.extend_from_slice(self.books.recount_findings());
        session.halt(&self.halts_of(&report.findings)).await?;
        self.tell(&report);
        Ok(())
    }

    fn is_news(&self, finding: &Finding) -> bool {
        !self.told.contains(&finding.key())
    }

    /// Takes over the recount that has ended, if any, and begins the next one when it is time.
    async fn recount_now_and_then(&mut self) {
        if self.recounting.as_ref().is_some_and(JoinHandle::is_finished) {
            let ended = self.recounting.take().expect("it was there").await;
            match ended.expect("a recount does not panic, and is aborted only with its auditor") {
                Ok(recount) => {
                    histogram!(names::AUDIT_DURATION, "phase" => "recount").record(recount.took);
                    gauge!(names::AUDIT_LAST_RECOUNT).set(self.seconds_now());
                    self.recount_wait = recount_wait(recount.took);
                    // Rows of a SKU that was resumed meanwhile may have been mended since.
                    if self.books.knows_resumes(&recount.resumes) {
                        self.books.compare(&recount.counters, &recount.recounted);
                    } else {
                        self.recount_wait = Duration::ZERO;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "could not recount the reservations");
                    self.recount_wait = (self.recount_wait * 2).min(limits::AUDIT_RECOUNT_WAIT_MAX);
                }
            }
            self.recount_at = Instant::now() + self.recount_wait;
        }
        if self.recounting.is_none() && Instant::now() >= self.recount_at {
            self.recounting = Some(tokio::spawn(recount(self.config.clone())));
        }
    }

    fn seconds_now(&self) -> f64 {
        self.clock.now() as f64 / 1000.0
    }

    /// A SKU's findings as its halt tells them.
    fn halts_of(&self, findings: &[Finding]) -> Vec<Halt> {
        let mut halts = BTreeMap::new();
        for finding in findings {
            if let Subject::Sku(sku) = &finding.subject {
                // The first reason of each.
                let reason = || format!("{}: {}", finding.check.name(), finding.detail);
                halts.entry(sku).or_insert_with(reason);
            }
        }
        let resume_of = |sku: &str| self.books.last_resume(sku);
        halts
            .into_iter()
            .map(|(sku, reason)| Halt { sku_id: sku.clone(), reason, seen_resume: resume_of(sku) })
            .collect()
    }

    fn tell(&mut self, report: &Report) {
        let now: BTreeSet<_> = report.findings.iter().map(Finding::key).collect();
        for finding in report.findings.iter().filter(|finding| self.is_news(finding)) {
            tracing::error!(
                audit.subject = %finding.subject,
                audit.check = finding.check.name(),
                audit.units = finding.units,
                audit.is_halted = matches!(finding.subject, Subject::Sku(_)),
                detail = finding.detail,
                "the books do not add up"
            );
            counter!(names::AUDIT_FINDINGS, "check" => finding.check.name()).increment(1);
        }
        for (subject, check) in self.told.difference(&now) {
            tracing::info!(audit.subject = %subject, audit.check = check.name(), "the books add up again");
        }
        self.told = now;
        self.set_gauges(report);
        gauge!(names::AUDIT_LAST_LOOK).set(self.seconds_now());
    }

    /// 0 when fine, so that a missing series means a missing auditor. SKUs beyond [`limits::AUDIT_SKUS_SHOWN_MAX`] share one series.
    fn set_gauges(&mut self, report: &Report) {
        for check in Check::ALL {
            counter!(names::AUDIT_FINDINGS, "check" => check.name()).increment(0);
        }
        let mut worst: BTreeMap<&str, (i64, i64)> = report.skus.iter().map(|sku| (sku.as_str(), (0, 0))).collect();
        for finding in &report.findings {
            let Subject::Sku(sku) = &finding.subject else { continue };
            let (oversell, drift) = worst.entry(sku).or_default();
            let shown = if finding.check == Check::Oversell { oversell } else { drift };
            *shown = finding.units.max(*shown);
        }
        // Without any SKU there must be a series, too.
        let mut others = worst.is_empty().then_some((0, 0));
        for (sku, (oversell, drift)) in &worst {
            if self.shown.contains(*sku) || self.shown.len() < limits::AUDIT_SKUS_SHOWN_MAX {
                self.shown.insert((*sku).to_owned());
            } else {
                let (most, furthest) = others.unwrap_or_default();
                others = Some((most.max(*oversell), furthest.max(*drift)));
            }
        }
        self.has_others |= others.is_some();
        for sku in &self.shown {
            // One that is gone, as after a restore, is 0.
            show(sku, worst.get(sku.as_str()).copied().unwrap_or_default());
        }
        if self.has_others {
            show(OTHERS, others.unwrap_or_default());
        }
    }
}

/// SKUs without a series of their own.
const OTHERS: &str = "other";

fn show(sku: &str, (oversell, drift): (i64, i64)) {
    gauge!(names::INVENTORY_OVERSELL, "sku" => sku.to_owned()).set(oversell as f64);
    gauge!(names::INVENTORY_DRIFT, "sku" => sku.to_owned()).set(drift as f64);
}

/// How long to wait with the next recount after one that took so long.
fn recount_wait(took: Duration) -> Duration {
    (took * limits::AUDIT_RECOUNT_SHARE).clamp(limits::AUDIT_EVERY, limits::AUDIT_RECOUNT_WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn a_recount_takes_a_small_share_of_the_time() {
        assert_eq!(recount_wait(Duration::ZERO), limits::AUDIT_EVERY);
        assert_eq!(recount_wait(Duration::from_secs(1)), Duration::from_secs(20));
        assert_eq!(recount_wait(Duration::from_secs(3600)), limits::AUDIT_RECOUNT_WAIT_MAX);
    }

    #[test]
    fn a_gauge_goes_back_to_zero_with_its_sku_and_with_the_lead() {
        let recorder = crate::telemetry::metrics::recorder();
        let handle = recorder.handle();
        let config = Config { database_url: "".into(), topic: String::new() };
        let mut auditor = Auditor::new(config, Arc::new(SystemClock), CancellationToken::new());
        let oversold = |sku: &str| {
            let detail = String::new();
            let finding = Finding { subject: Subject::Sku(sku.to_owned()), check: Check::Oversell, units: 2, detail };
            Report { skus: vec![sku.to_owned()], findings: vec![finding] }
        };
        let shown = |sku: &str| {
            let series = format!("flashsale_inventory_oversell{{sku=\"{sku}\"}} ");
            handle.render().lines().find_map(|line| Some(line.strip_prefix(&series)?.to_owned()))
        };
        metrics::with_local_recorder(&recorder, || {
            auditor.set_gauges(&oversold("a"));
            assert_eq!(shown("a").as_deref(), Some("2"));
            auditor.set_gauges(&Report::default());
            assert_eq!(
                (shown("a").as_deref(), shown("other").as_deref()),
                (Some("0"), Some("0")),
                "restored without it"
            );
            auditor.shown.extend((0..limits::AUDIT_SKUS_SHOWN_MAX).map(|n| format!("s-{n}")));
            auditor.set_gauges(&oversold("one-more"));
            assert_eq!(shown("other").as_deref(), Some("2"));
            auditor.step_down();
            assert_eq!(shown("other").as_deref(), Some("0"), "another one leads");
        });
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
        let config = Config { database_url: "".into(), topic: String::new() };
        let mut auditor = Auditor::new(config, Arc::new(SystemClock), CancellationToken::new());
        auditor.books.forget_resumed(&BTreeMap::from([("b".to_owned(), 4)]));
        let halts = auditor.halts_of(&findings);
        let told: Vec<_> = halts.iter().map(|h| (h.sku_id.as_str(), h.reason.as_str(), h.seen_resume)).collect();
        assert_eq!(told, [("a", "oversell: y", 0), ("b", "reservations: x", 4)]);
    }
}
