//! Bodies of operators' calls, read strictly into types that cannot be wrong.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::json::{self, FieldError, Fields, Json as Body};
use super::problem::Problem;
use super::views::parse_late_payment;
use crate::admin::SettingsPatch;
use crate::clock::{Millis, millis_of};
use crate::ids::{Note, Reference};
use crate::inventory::{Settings, StockChange};
use crate::limits;

fn number(low: u32, high: u32) -> impl Fn(&Body) -> Result<u32, String> {
    let read = json::integer(i64::from(low), i64::from(high));
    move |value: &Body| read(value).map(|n| u32::try_from(n).expect("within bounds of u32"))
}

/// The body of a `PUT`: what is left out gets its default.
pub(super) fn parse_put(body: Body) -> Result<(Option<i64>, Settings), Problem> {
    let defaults = Settings::default();
    let mut fields = Fields::of(body);
    let on_hand = fields.optional("on_hand", json::integer(0, limits::ON_HAND_MAX));
    let settings = Settings {
        user_limit: fields.optional("user_limit", number(1, limits::USER_LIMIT_MAX)).unwrap_or(defaults.user_limit),
        hold_seconds: fields
            .optional("hold_seconds", number(limits::HOLD_SECONDS_MIN, limits::HOLD_SECONDS_MAX))
            .unwrap_or(defaults.hold_seconds),
        starts_at: fields.nullable("starts_at", json::text(parse_time)),
        ends_at: fields.nullable("ends_at", json::text(parse_time)),
        late_payment: fields.optional("late_payment", json::text(parse_late_payment)).unwrap_or(defaults.late_payment),
        extensions_max: fields
            .optional("extensions_max", number(0, limits::EXTENSIONS_MAX))
            .unwrap_or(defaults.extensions_max),
        extension_seconds_max: fields
            .optional("extension_seconds_max", number(0, limits::EXTENSION_SECONDS_MAX))
            .unwrap_or(defaults.extension_seconds_max),
    };
    for (field, detail) in settings.check() {
        fields.refuse(field, detail);
    }
    fields.finish()?;
    Ok((on_hand, settings))
}

/// Reads an RFC 3339 time; fractions of a millisecond are cut off.
pub(crate) fn parse_time(text: &str) -> Result<Millis, &'static str> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map(millis_of)
        .map_err(|_| "must be an RFC 3339 time, like 2026-11-21T10:00:00Z")
}

/// The body of a `PATCH`: what is left out stays, `null` clears, that is: brings the default back.
pub(super) fn parse_patch(body: Body) -> Result<SettingsPatch, Problem> {
    let defaults = Settings::default();
    let mut fields = Fields::of(body);
    let patch = SettingsPatch {
        on_hand: fields.optional("on_hand", json::integer(0, limits::ON_HAND_MAX)),
        user_limit: fields
            .patched("user_limit", number(1, limits::USER_LIMIT_MAX))
            .map(|given| given.unwrap_or(defaults.user_limit)),
        hold_seconds: fields
            .patched("hold_seconds", number(limits::HOLD_SECONDS_MIN, limits::HOLD_SECONDS_MAX))
            .map(|given| given.unwrap_or(defaults.hold_seconds)),
        starts_at: fields.patched("starts_at", json::text(parse_time)),
        ends_at: fields.patched("ends_at", json::text(parse_time)),
        late_payment: fields
            .patched("late_payment", json::text(parse_late_payment))
            .map(|given| given.unwrap_or(defaults.late_payment)),
        extensions_max: fields
            .patched("extensions_max", number(0, limits::EXTENSIONS_MAX))
            .map(|given| given.unwrap_or(defaults.extensions_max)),
        extension_seconds_max: fields
            .patched("extension_seconds_max", number(0, limits::EXTENSION_SECONDS_MAX))
            .map(|given| given.unwrap_or(defaults.extension_seconds_max)),
    };
    fields.finish()?;
    Ok(patch)
}

/// The body of an adjustment: a `delta`, or what was counted with what was believed.
pub(super) fn parse_adjustment(body: Body) -> Result<(StockChange, Note, Option<Reference>), Problem> {
    let stock = || json::integer(0, limits::ON_HAND_MAX);
    let mut fields = Fields::of(body);
    let is_delta = fields.has("delta");
    let change = if is_delta {
        let delta = fields.required("delta", delta_of).map(StockChange::By);
        for name in ["compare_on_hand", "on_hand"].into_iter().filter(|name| fields.has(name)).collect::<Vec<_>>() {
            fields.optional(name, |_| Err::<(), _>("is given instead of delta, not with it".to_owned()));
        }
        delta
    } else {
        let (compare, on_hand) = (fields.required("compare_on_hand", stock()), fields.required("on_hand", stock()));
        compare.zip(on_hand).map(|(compare_on_hand, on_hand)| StockChange::To { compare_on_hand, on_hand })
    };
    let note = fields.required("note", json::text(Note::parse));
    let reference = fields.optional("reference", json::text(Reference::parse));
    fields.finish()?;
    match (change, note) {
        (Some(change), Some(note)) => Ok((change, note, reference)),
        _ => unreachable!("a missing field was refused"),
    }
}

fn delta_of(value: &Body) -> Result<i64, String> {
    let delta = json::integer(-limits::ON_HAND_MAX, limits::ON_HAND_MAX)(value)?;
    if delta == 0 { Err("must not be 0".into()) } else { Ok(delta) }
}

/// The body of a pause or its end: a note, if any.
pub(super) fn parse_note(body: Body) -> Result<Option<Note>, Problem> {
    let mut fields = Fields::of(body);
    let note = fields.optional("note", json::text(Note::parse));
    fields.finish()?;
    Ok(note)
}

/// 422 for settings that are out of bounds only together with those in force.
pub(super) fn out_of_bounds(wrong: &[(&'static str, &'static str)]) -> Problem {
    let error = |(field, detail): &(&str, &str)| FieldError { pointer: format!("/{field}"), detail: (*detail).into() };
    json::invalid_fields(&wrong.iter().map(error).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table<T: std::fmt::Debug>(cases: &[&str], parse: impl Fn(Body) -> Result<T, Problem>) -> Vec<serde_json::Value> {
        let check = |body: &str| match json::parse(body.as_bytes()).and_then(&parse) {
            Ok(read) => format!("{read:?}").into(),
            Err(problem) => problem.nested_body()["errors"].clone(),
        };
        cases.iter().map(|body| serde_json::json!([body, check(body)])).collect()
    }

    #[test]
    fn put_bodies_are_parsed_strictly_with_defaults() {
        let cases = [
            r#"{}"#,
            r#"{"on_hand":100,"user_limit":2,"hold_seconds":120,"starts_at":null,"ends_at":null,"late_payment":"rereserve","extensions_max":3,"extension_seconds_max":600}"#,
            r#"{"on_hand":0,"late_payment":"reject","starts_at":"2026-11-21T10:00:00.0009Z","ends_at":"2026-11-21T12:00:00+01:00"}"#,
            r#"{"on_hand":-1,"user_limit":0,"hold_seconds":9,"starts_at":"soon","ends_at":5,"late_payment":"never","extensions_max":101,"extension_seconds_max":86401,"color":"red"}"#,
            r#"{"on_hand":1000000001,"user_limit":1001,"hold_seconds":14401,"extensions_max":-1,"late_payment":null}"#,
            r#"{"starts_at":"2026-11-21T10:00:00Z","ends_at":"2026-11-21T10:00:00Z"}"#,
        ];
        insta::assert_json_snapshot!(table(&cases, parse_put));
    }

    #[test]
    fn patches_tell_left_out_from_cleared() {
        let cases = [
            r#"{}"#,
            r#"{"hold_seconds":60,"starts_at":null,"ends_at":"2026-11-21T12:00:00+01:00","user_limit":null,"late_payment":null}"#,
            r#"{"extensions_max":0,"extension_seconds_max":null,"on_hand":5}"#,
            r#"{"on_hand":null,"hold_seconds":9,"ends_at":5,"late_payment":"never","color":null}"#,
        ];
        insta::assert_json_snapshot!(table(&cases, parse_patch));
    }

    #[test]
    fn adjustments_are_a_delta_or_a_recount() {
        let cases = [
            r#"{"delta":5,"note":"restock","reference":"po-77"}"#,
            r#"{"delta":-5,"note":"broken"}"#,
            r#"{"compare_on_hand":100,"on_hand":98,"note":"recount"}"#,
            r#"{"delta":0,"note":""}"#,
            r#"{"delta":1,"on_hand":3,"compare_on_hand":2,"note":"both"}"#,
            r#"{"on_hand":3,"note":"blind"}"#,
            r#"{"delta":1000000001,"note":"n","reference":"ü"}"#,
            r#"{}"#,
            r#"[]"#,
        ];
        insta::assert_json_snapshot!(table(&cases, parse_adjustment));
    }
}
