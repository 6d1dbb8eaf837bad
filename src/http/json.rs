//! Strict JSON: the body as a tree in which no key can occur twice, read field by field so that **all** mistakes are told at once.
//!
//! What serde derives would stop at the first mistake and take the last of two equal keys.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value, json};

use super::problem::{Code, Problem};
use crate::limits;

/// A JSON value; members keep their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, exact where it is an integer of 64 bits.
    Number(Number),
    /// A text.
    Text(String),
    /// An array.
    Array(Vec<Json>),
    /// An object; keys are unique.
    Object(Vec<(String, Json)>),
}

/// Reads a body.
///
/// # Errors
/// 400 `MALFORMED_BODY` if it is not exactly one JSON value, has a key twice, or is nested deeper than [`limits::JSON_DEPTH_MAX`].
pub fn parse(body: &[u8]) -> Result<Json, Problem> {
    let malformed = |error: serde_json::Error| {
        Problem::new(Code::MalformedBody, format!("the body is not well-formed JSON: {error}"))
    };
    let value: Json = serde_json::from_slice(body).map_err(malformed)?;
    if depth_of(&value) > limits::JSON_DEPTH_MAX {
        return Err(Problem::new(Code::MalformedBody, "the body is nested too deep"));
    }
    Ok(value)
}

/// Levels of arrays and objects. Recursion is bounded: the parser itself gives up at 128.
fn depth_of(value: &Json) -> usize {
    match value {
        Json::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        Json::Object(members) => 1 + members.iter().map(|(_, v)| depth_of(v)).max().unwrap_or(0),
        _ => 0,
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

/// So many keys of an object are compared one by one, which is cheaper than a set of them.
const COMPARED_KEYS_MAX: usize = 16;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("number out of range"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut members: Vec<(String, Json)> = Vec::new();
        // Of an object with many members, which none of ours is.
        let mut seen = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            let is_seen = match members.len() {
                0..COMPARED_KEYS_MAX => members.iter().any(|(other, _)| *other == key),
                COMPARED_KEYS_MAX => {
                    seen.extend(members.iter().map(|(other, _)| other.clone()));
                    !seen.insert(key.clone())
                }
                _ => !seen.insert(key.clone()),
            };
            if is_seen {
                return Err(A::Error::custom("a key occurs twice"));
            }
            members.push((key, entries.next_value()?));
        }
        Ok(Json::Object(members))
    }
}

/// One mistake: where, and what must be there instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// JSON pointer (RFC 6901); empty = the body itself.
    pub pointer: String,
    /// What it must be; fit for a client.
    pub detail: String,
}

/// The members of the body, taken one by one; what was not taken by the end is unknown.
#[derive(Debug)]
pub struct Fields {
    members: Vec<(String, Json)>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// The members of an object; anything else is a mistake of the body as a whole, told by [`Fields::finish`].
    pub fn of(body: Json) -> Self {
        match body {
            Json::Object(members) => Self { members, errors: Vec::new() },
            _ => {
                let whole = FieldError { pointer: String::new(), detail: "must be an object".into() };
                Self { members: Vec::new(), errors: vec![whole] }
            }
        }
    }

    fn take(&mut self, name: &str) -> Option<Json> {
        let at = self.members.iter().position(|(key, _)| key == name)?;
        Some(self.members.remove(at).1)
    }

    /// Notes a mistake in a member.
    pub fn refuse(&mut self, name: &str, detail: impl Into<String>) {
        let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        self.errors.push(FieldError { pointer, detail: detail.into() });
    }

    /// A member that must be there. `None` = a mistake was noted.
    pub fn required<T>(&mut self, name: &str, read: impl FnOnce(&Json) -> Result<T, String>) -> Option<T> {
        match self.take(name) {
            Some(value) => read(&value).map_err(|detail| self.refuse(name, detail)).ok(),
            // A body that is no object at all is one mistake, not one per member.
            None if self.errors.iter().any(|e| e.pointer.is_empty()) => None,
            None => {
                self.refuse(name, "is required");
                None
            }
        }
    }

    /// A member that may be left out. `None` = left out, or a mistake was noted.
    pub fn optional<T>(&mut self, name: &str, read: impl FnOnce(&Json) -> Result<T, String>) -> Option<T> {
        let value = self.take(name)?;
        read(&value).map_err(|detail| self.refuse(name, detail)).ok()
    }

    /// A member that may be left out or `null`, which mean the same.
    pub fn nullable<T>(&mut self, name: &str, read: impl FnOnce(&Json) -> Result<T, String>) -> Option<T> {
        match self.take(name)? {
            Json::Null => None,
            value => read(&value).map_err(|detail| self.refuse(name, detail)).ok(),
        }
    }

    /// A member of a merge patch. Outer `None` = left out, or a mistake was noted; inner `None` = `null`.
    pub fn patched<T>(&mut self, name: &str, read: impl FnOnce(&Json) -> Result<T, String>) -> Option<Option<T>> {
        match self.take(name)? {
            Json::Null => Some(None),
            value => read(&value).map_err(|detail| self.refuse(name, detail)).ok().map(Some),
        }
    }

    /// An array of `low` to `high` items that must be there, whatever they are. `None` = a mistake was noted.
    pub fn required_items(&mut self, name: &str, low: usize, high: usize) -> Option<Vec<Json>> {
        match self.take(name) {
            Some(Json::Array(items)) if (low..=high).contains(&items.len()) => return Some(items),
            Some(_) => self.refuse(name, format!("must be an array of {low} to {high} items")),
            None if self.errors.iter().any(|e| e.pointer.is_empty()) => {}
            None => self.refuse(name, "is required"),
        }
        None
    }

    /// Whether a member is there and was not taken yet.
    pub fn has(&self, name: &str) -> bool {
        self.members.iter().any(|(key, _)| key == name)
    }

    /// Ends the reading: every member must have been taken.
    ///
    /// # Errors
    /// 422 `INVALID_FIELD` with every mistake noted.
    pub fn finish(self) -> Result<(), Problem> {
        self.finish_at("")
    }

    /// The same for an object inside the body: `pointer` says where it stands.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_at(mut self, pointer: &str) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.members) {
            self.refuse(&name, "is not a known field");
        }
        if self.errors.is_empty() {
            return Ok(());
        }
        self.errors.iter_mut().for_each(|error| error.pointer.insert_str(0, pointer));
        Err(invalid_fields(&self.errors))
    }
}

/// 422 `INVALID_FIELD` with these mistakes.
pub fn invalid_fields(errors: &[FieldError]) -> Problem {
    let list: Vec<Value> = errors.iter().map(|e| json!({"pointer": e.pointer, "detail": e.detail})).collect();
    let detail = match errors.len() {
        1 => "1 field is invalid".to_owned(),
        many => format!("{many} fields are invalid"),
    };
    Problem::new(Code::InvalidField, detail).with("errors", list)
}

/// Reads a text with a checking constructor.
pub fn text<T, E: fmt::Display>(parse: impl Fn(&str) -> Result<T, E>) -> impl Fn(&Json) -> Result<T, String> {
    move |value| match value {
        Json::Text(text) => parse(text).map_err(|e| e.to_string()),
        _ => Err("must be a string".into()),
    }
}

/// Reads an integer from `low` to `high`.
pub fn integer(low: i64, high: i64) -> impl Fn(&Json) -> Result<i64, String> {
    move |value| match value {
        Json::Number(number) if number.as_i64().is_some_and(|n| (low..=high).contains(&n)) => {
            Ok(number.as_i64().expect("an integer, as the guard found"))
        }
        _ => Err(format!("must be an integer of {low} to {high}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;

    fn check(body: &str) -> Value {
        let read = || -> Result<(), Problem> {
            let mut fields = Fields::of(parse(body.as_bytes())?);
            fields.required("user", text(UserId::parse));
            fields.optional("count", integer(1, 10));
            fields.nullable("note", text(UserId::parse));
            fields.finish()
        };
        match read() {
            Ok(()) => json!("good"),
            Err(problem) if problem.code() == Code::MalformedBody => problem.nested_body()["detail"].clone(),
            Err(problem) => problem.nested_body()["errors"].clone(),
        }
    }

    #[test]
    fn bodies_are_read_strictly_and_all_mistakes_told_at_once() {
        let deep = format!("{{\"user\":{}1{}}}", "[".repeat(40), "]".repeat(40));
        let deeper = format!("{}1{}", "[".repeat(4000), "]".repeat(4000));
        let cases = [
            r#"{"user":"u"}"#,
            r#"{"user":"u","count":10,"note":null}"#,
            r#"{"user":"u","user":"u"}"#,
            r#"{"user":"u","x":{"a":1,"a":2}}"#,
            r#"{"user":"u"} x"#,
            r#"{"user":"u""#,
            "",
            "{\"user\":\"\u{0}\"}",
            r#"{"user":"\ud800"}"#,
            r#"{"user":"u","count":1e400}"#,
            &deep,
            &deeper,
            "[]",
            "null",
            r#"{}"#,
            r#"{"user":null}"#,
            r#"{"user":"a b","count":0,"note":7,"a/b~c":1}"#,
            r#"{"user":"u","count":1.0}"#,
            r#"{"user":"u","count":"1"}"#,
            r#"{"user":"u","count":99999999999999999999}"#,
            r#"{"user":"u","count":-1}"#,
            r#"{"user":["u"],"count":true}"#,
        ];
        let table: Vec<Value> =
            cases.iter().map(|body| json!([body.chars().take(60).collect::<String>(), check(body)])).collect();
        insta::assert_json_snapshot!(table);
    }

    #[test]
    fn a_key_that_occurs_twice_is_found_among_few_and_among_many() {
        for count in [2, COMPARED_KEYS_MAX, COMPARED_KEYS_MAX + 1, COMPARED_KEYS_MAX + 2, 1000] {
            let object = |keys: &[usize]| {
                let members: Vec<_> = keys.iter().map(|key| format!("\"k{key}\":1")).collect();
                parse(format!("{{{}}}", members.join(",")).as_bytes()).map_err(|problem| problem.code())
            };
            let mut keys: Vec<usize> = (0..count).collect();
            assert!(matches!(object(&keys), Ok(Json::Object(members)) if members.len() == count), "{count}");
            for again in [0, count / 2, count - 1] {
                keys.push(again);
                assert_eq!(object(&keys), Err(Code::MalformedBody), "{again} of {count}");
                keys.pop();
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_malformed() {
        let problem = parse(b"{\"user\":\"\xff\"}").expect_err("not UTF-8");
        assert_eq!(problem.code(), Code::MalformedBody);
    }
}
