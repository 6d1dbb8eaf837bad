//! `flashsale reservation`: look at reservations and change them, by the same commands as HTTP, without a running API.

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::asking::{self, Asking};
use super::sku::parse_seconds;
use super::{Failure, pretty, print};
use crate::clock::{Clock, Millis, SystemClock};
use crate::commands::reservations::{Change, ChangeError, ChangeReservation, Changed, ReservationCommands};
use crate::config::{Config, Needs};
use crate::http;
use crate::http::views::{ReservationListView, ReservationView};
use crate::ids::{IdempotencyKey, Note, PaymentRef, SkuId, Ticket, UserId};
use crate::inventory::Status;
use crate::limits;
use crate::status::Found;
use crate::store::{ReservationFilter, ReservationPage, Store};

#[derive(Subcommand)]
pub(super) enum Reservation {
    /// Show one reservation
    Show(Which),
    /// It is paid for
    Confirm {
        #[command(flatten)]
        which: Which,
        /// The shop's name of the payment
        #[arg(long, value_parser = PaymentRef::parse)]
        payment_ref: PaymentRef,
    },
    /// Give its units back
    Cancel {
        #[command(flatten)]
        which: Which,
        /// Why, 1 to 200 characters
        #[arg(long, value_parser = Note::parse)]
        note: Option<Note>,
    },
    /// Let its hold last longer
    Extend {
        #[command(flatten)]
        which: Which,
        /// How much longer, e.g. 60s, 2m
        #[arg(long, value_name = "TIME", value_parser = parse_extension)]
        by: u32,
        /// A name for this extension: it is made once
        #[arg(long, value_parser = parse_key)]
        key: Option<IdempotencyKey>,
    },
    /// List reservations in the order of their ids
    List(ListArgs),
}

#[derive(Args)]
pub(super) struct ListArgs {
    /// Only of this user
    #[arg(long, value_parser = UserId::parse)]
    user: Option<UserId>,
    /// Only of this SKU
    #[arg(long, value_parser = SkuId::parse)]
    sku: Option<SkuId>,
    /// Only in this state: RESERVED, REJECTED, CONFIRMED, CANCELLED or EXPIRED (without it all, of a user all but REJECTED)
    #[arg(long, value_parser = http::parse_status)]
    status: Option<Status>,
    /// Only those whose hold ends before this time, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = http::parse_time)]
    expires_before: Option<Millis>,
    /// So many of them
    #[arg(long, value_name = "N", default_value_t = limits::PAGE_ITEMS_DEFAULT, value_parser = parse_limit)]
    limit: usize,
    /// Begin where an earlier page ended
    #[arg(long, value_parser = http::parse_cursor)]
    cursor: Option<Uuid>,
}

fn parse_limit(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|n| (1..=limits::PAGE_ITEMS_MAX).contains(n)).ok_or("must be 1 to 500")
}

#[derive(Args)]
pub(super) struct Which {
    /// The reservation's id
    id: Uuid,
    /// Where its request stands, as the 202 gave it: finds one that is not decided yet
    #[arg(long, value_parser = parse_ticket)]
    ticket: Option<Ticket>,
}

fn parse_ticket(text: &str) -> Result<Ticket, &'static str> {
    Ticket::parse(text).ok_or("must be partition.offset.index")
}

fn parse_key(text: &str) -> Result<IdempotencyKey, &'static str> {
    IdempotencyKey::parse(text).ok_or("must be 1 to 255 printable ASCII characters")
}

fn parse_extension(text: &str) -> Result<u32, &'static str> {
    let seconds = parse_seconds(text)?;
    if (1..=limits::HOLD_SECONDS_MAX).contains(&seconds) { Ok(seconds) } else { Err("must be 1s to 4h") }
}

impl Reservation {
    /// Also a look may have to ask the log.
    pub(super) const NEEDS: &[Needs] = &[Needs::Database, Needs::Kafka];

    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        let store = Store::new(config.database(), &config.topic).map_err(|error| Failure::unavailable(&error))?;
        let asking = Asking::start(&config, &store)?;
        let ended = match self {
            Self::Show(which) => show(&asking, which, is_json).await,
            Self::Confirm { which, payment_ref } => {
                change(&asking, which, Change::Confirm(payment_ref), None, is_json).await
            }
            Self::Cancel { which, note } => change(&asking, which, Change::Cancel(note), None, is_json).await,
            Self::Extend { which, by, key } => change(&asking, which, Change::Extend(by), key, is_json).await,
            Self::List(args) => list(&asking, args, is_json).await,
        };
        asking.end().await;
        ended
    }
}

async fn show(asking: &Asking, which: Which, is_json: bool) -> Result<(), Failure> {
    let view = match asking.status.find(which.id, which.ticket).await {
        Found::Decided(row) => ReservationView::decided(&row, SystemClock.now()),
        Found::Queued(queued) => ReservationView::queued(which.id, queued.ticket, queued.queue_position, queued.eta),
        Found::Absent => return Err(unknown(which.id)),
        Found::Unavailable => return Err(Failure::unavailable_because("the reservation can't be read now")),
    };
    tell_one(view, is_json)
}

async fn list(asking: &Asking, args: ListArgs, is_json: bool) -> Result<(), Failure> {
    let ListArgs { user, sku, status, expires_before, limit, cursor } = args;
    let mut filter = ReservationFilter { user, sku, status, expires_before, after: cursor, limit };
    let mut found = ReservationPage::default();
    // A person has asked for so many: pages that are short because few of the looked at are such are read on.
    loop {
        let page = asking.status.list(&filter).await.map_err(|error| Failure::unavailable(&error))?;
        found.rows.extend(page.rows);
        found.next = page.next;
        if found.next.is_none() || found.rows.len() == limit {
            break;
        }
        filter = ReservationFilter { after: found.next, limit: limit - found.rows.len(), ..filter };
    }
    let page = ReservationListView::of(&found, SystemClock.now());
    if is_json {
        return print(pretty(&page));
    }
    tell(&page.items)?;
    match page.next_cursor {
        Some(cursor) => print(format!("more: --cursor {cursor}")),
        None => Ok(()),
    }
}

async fn change(
    asking: &Asking,
    which: Which,
    change: Change,
    key: Option<IdempotencyKey>,
    is_json: bool,
) -> Result<(), Failure> {
    let commands = ReservationCommands::new(asking.commands.clone(), asking.status.clone());
    let Which { id, ticket } = which;
    let origin = asking::request_id().into();
    match commands.change(ChangeReservation { id, ticket, change, key, origin }).await {
        Ok(Changed::Done(row)) => tell_one(ReservationView::decided(&row, SystemClock.now()), is_json),
        Ok(Changed::Refused(refusal)) => Err(asking::refused(&refusal)),
        Ok(Changed::Undecided { id, ticket }) => Err(asking::undecided(id, ticket)),
        Err(ChangeError::UnknownReservation) => Err(unknown(id)),
        Err(error @ ChangeError::SkuUnknown) => Err(Failure::refused(format!("NOT_RESERVED_YET: {error}"))),
        Err(error @ (ChangeError::Busy | ChangeError::Unreadable)) => Err(Failure::unavailable(&error)),
        Err(error @ ChangeError::Unshown) => Err(Failure::unknown(error.to_string())),
        Err(ChangeError::Ask(error)) => Err(asking::not_asked(error)),
    }
}

fn unknown(id: Uuid) -> Failure {
    Failure::refused(format!("UNKNOWN_RESERVATION: there is no reservation {id}"))
}

fn tell_one(view: ReservationView, is_json: bool) -> Result<(), Failure> {
    if is_json { print(pretty(&view)) } else { tell(&[view]) }
}

/// A table for people.
fn tell(views: &[ReservationView]) -> Result<(), Failure> {
    print(format!("{:<36} {:<9} {:<24} {:<24} {:>5}  {}", "ID", "STATUS", "USER", "SKU", "UNITS", "WHAT"))?;
    for view in views {
        let what = [&view.reason, &view.payment_ref, &view.cancel_note, &view.expires_at, &view.expired_at];
        print(format!(
            "{:<36} {:<9} {:<24} {:<24} {:>5}  {}",
            view.id,
            view.status,
            view.user_id.as_deref().unwrap_or("-"),
            view.sku_id.as_deref().unwrap_or("-"),
            view.quantity.map_or("-".to_owned(), |units| units.to_string()),
            what.into_iter().flatten().next().map_or("", String::as_str)
        ))?;
    }
    Ok(())
}
