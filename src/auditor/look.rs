//! Looks of the auditor: what is read in one snapshot, and added up in the [`Books`].

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Config;
use super::books::{Balance, Books, Counters, Finding, Recounted};
use crate::limits;
use crate::store::{AuditSession, AuditSnapshot, StoreError};

/// What one look found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// SKUs that were looked at.
    pub skus: Vec<String>,
    /// Contradictions; empty = all is well.
    pub findings: Vec<Finding>,
}

/// One SKU's stock, told three times, and what contradicts itself in it.
#[derive(Clone, Debug)]
pub struct SkuAudit {
    /// The SKU.
    pub sku_id: String,
    /// What its row says; absent = it has none.
    pub counters: Option<Counters>,
    /// The number of its last movement, and what the movements come to.
    pub movements: (i64, Balance),
    /// What its reservations come to.
    pub reservations: Recounted,
    /// Contradictions; empty = all is well.
    pub findings: Vec<Finding>,
}

/// How far back books begin that are begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// With the first row ever written.
    All,
    /// With the last few of each.
    Recent,
}

/// All reservations of one moment, with the counters of that moment.
pub(super) struct Recount {
    pub(super) counters: Vec<Counters>,
    pub(super) recounted: Vec<Recounted>,
    /// The last resume of each SKU then.
    pub(super) resumes: BTreeMap<String, i64>,
    pub(super) took: Duration,
}

/// Looks once at everything that was ever written.
///
/// # Errors
/// [`StoreError`]: nobody knows.
pub async fn look_once(config: &Config) -> Result<Report, StoreError> {
    let mut books = Books::default();
    let recount = recount(config.clone()).await?;
    let mut session = AuditSession::open(&config.database_url, &config.topic).await?;
    let report = look(&mut session, &mut books, Reach::All).await?;
    books.compare(&recount.counters, &recount.recounted);
    Ok(Report { findings: [report.findings, books.recount_findings().to_vec()].concat(), ..report })
}

/// Looks at everything that was ever written of some SKUs, in one snapshot: counters, movements and reservations. Those of which there is
/// nothing at all are left out.
///
/// # Errors
/// [`StoreError`]: nobody knows.
pub async fn look_at(config: &Config, skus: &[String]) -> Result<Vec<SkuAudit>, StoreError> {
    let mut session = AuditSession::open(&config.database_url, &config.topic).await?;
    let mut snapshot = session.snapshot().await?;
    let counters = snapshot.counters(Some(skus)).await?;
    let lost: Vec<_> = snapshot.lost().await?.into_iter().filter(|lost| skus.contains(&lost.sku_id)).collect();
    let mut books = Books::default();
    fold(&mut snapshot, &mut books, &counters, Reach::All).await?;
    let recounted = snapshot.recount(Some(skus)).await?;
    snapshot.end().await?;
    books.compare(&counters, &recounted);
    let findings = [books.judge(&counters, &lost, &[]), books.recount_findings().to_vec()].concat();
    let audit = |sku: &String| {
        let row = counters.iter().find(|row| row.sku_id == *sku);
        let reservations = recounted.iter().find(|recounted| recounted.sku_id == *sku);
        let is_lost = lost.iter().any(|lost| lost.sku_id == *sku);
        (row.is_some() || reservations.is_some() || is_lost).then(|| SkuAudit {
            sku_id: sku.clone(),
            counters: row.cloned(),
            movements: books.folded(sku).unwrap_or_default(),
            reservations: reservations.cloned().unwrap_or(Recounted { sku_id: sku.clone(), reserved: 0, sold: 0 }),
            findings: findings.iter().filter(|finding| finding.is_of_sku(sku)).cloned().collect(),
        })
    };
    Ok(skus.iter().filter_map(audit).collect())
}

/// Adds all reservations up, on a connection of its own: it may take long.
pub(super) async fn recount(config: Config) -> Result<Recount, StoreError> {
    let began = Instant::now();
    let mut session = AuditSession::open(&config.database_url, &config.topic).await?;
    let mut snapshot = session.snapshot().await?;
    let counters = snapshot.counters(None).await?;
    let resumes = snapshot.resumes().await?;
    let recounted = snapshot.recount(None).await?;
    snapshot.end().await?;
    Ok(Recount { counters, recounted, resumes, took: began.elapsed() })
}

/// One snapshot, read and judged.
pub(super) async fn look(session: &mut AuditSession, books: &mut Books, reach: Reach) -> Result<Report, StoreError> {
    let mut snapshot = session.snapshot().await?;
    let counters = snapshot.counters(None).await?;
    let lost = snapshot.lost().await?;
    books.forget_resumed(&snapshot.resumes().await?);
    fold(&mut snapshot, books, &counters, reach).await?;
    let positions = snapshot.positions().await?;
    if reach == Reach::Recent {
        books.begin_tiles(&positions);
    }
    loop {
        let batches = snapshot.batches(&books.batches_behind(&positions)).await?;
        if batches.is_empty() {
            break;
        }
        batches.iter().for_each(|batch| books.tile(batch));
    }
    snapshot.end().await?;
    let findings = books.judge(&counters, &lost, &positions);
    Ok(Report { skus: counters.into_iter().map(|sku| sku.sku_id).collect(), findings })
}

/// Brings the books of these SKUs up to their rows.
async fn fold(
    snapshot: &mut AuditSnapshot<'_>,
    books: &mut Books,
    counters: &[Counters],
    reach: Reach,
) -> Result<(), StoreError> {
    let unread = books.unread(counters);
    if !unread.is_empty() {
        if reach == Reach::Recent {
            for skus in unread.chunks(limits::AUDIT_SKUS_PER_QUERY) {
                books.begin_at(snapshot.recent(skus).await?);
            }
        }
        let names: Vec<String> = unread.into_iter().map(|(sku, _)| sku).collect();
        books.begin_at(snapshot.accepted(&names).await?);
    }
    loop {
        let behind = books.behind(counters);
        let mut has_moved = false;
        for skus in behind.chunks(limits::AUDIT_SKUS_PER_QUERY) {
            for movement in snapshot.movements(skus).await? {
                has_moved = true;
                books.fold(&movement);
            }
        }
        if !has_moved {
            return Ok(());
        }
    }
}
