//! Query strings of lists: known parameters, each once, each read into a type that cannot be wrong.

use uuid::Uuid;

use super::problem::{Code, Problem};
use crate::inventory::Status;
use crate::limits;

/// The parameters of one query string that were not taken yet.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads a query string.
    ///
    /// # Errors
    /// 400 `INVALID_PARAMETER` for a name that is not among `known`, or one that is there twice.
    pub(super) fn of(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let mut read: Vec<(String, String)> = Vec::new();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !known.contains(&&*name) {
                return Err(invalid(&name, "the query parameter is not known here"));
            }
            if read.iter().any(|(other, _)| *other == name) {
                return Err(invalid(&name, "may be given once"));
            }
            read.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(read))
    }

    /// One of them, if it is there.
    ///
    /// # Errors
    /// 400 `INVALID_PARAMETER` if `parse` says what it must be instead.
    pub(super) fn optional<T, E: std::fmt::Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let Some((_, value)) = self.0.iter().find(|(given, _)| given == name) else { return Ok(None) };
        parse(value).map(Some).map_err(|must| invalid(name, must.to_string()))
    }

    /// One that must be there.
    ///
    /// # Errors
    /// As [`Self::optional`], and without it.
    pub(super) fn required<T, E: std::fmt::Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, Problem> {
        self.optional(name, parse)?.ok_or_else(|| invalid(name, "is required"))
    }

    /// `limit`: 1 to [`limits::PAGE_ITEMS_MAX`].
    ///
    /// # Errors
    /// As [`Self::optional`].
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let parse = |text: &str| {
            text.parse().ok().filter(|n| (1..=limits::PAGE_ITEMS_MAX).contains(n)).ok_or("must be 1 to 500")
        };
        Ok(self.optional("limit", parse)?.unwrap_or(limits::PAGE_ITEMS_DEFAULT))
    }

    /// `cursor`: where the page before ended.
    ///
    /// # Errors
    /// As [`Self::optional`].
    pub(super) fn cursor(&self) -> Result<Option<Uuid>, Problem> {
        self.optional("cursor", parse_cursor)
    }

    /// `status`: a state that is stored.
    ///
    /// # Errors
    /// As [`Self::optional`].
    pub(super) fn status(&self) -> Result<Option<Status>, Problem> {
        self.optional("status", parse_status)
    }
}

/// The cursor behind an item.
pub(super) fn cursor_after(id: Uuid) -> String {
    id.simple().to_string()
}

/// Reads it.
pub(crate) fn parse_cursor(text: &str) -> Result<Uuid, &'static str> {
    Uuid::try_parse(text).ok().filter(|_| text.len() == 32).ok_or("must be next_cursor of an earlier page")
}

/// Reads the word of a decided state.
pub(crate) fn parse_status(word: &str) -> Result<Status, &'static str> {
    [Status::Reserved, Status::Rejected, Status::Confirmed, Status::Cancelled, Status::Expired]
        .into_iter()
        .find(|status| status.word() == word)
        .ok_or("must be RESERVED, REJECTED, CONFIRMED, CANCELLED or EXPIRED")
}

fn invalid(name: &str, detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(Code::InvalidParameter, detail).with("parameter", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_known_and_given_once() {
        let read = |query: &str| -> Result<(usize, Option<Uuid>, Option<Status>), String> {
            let told = |problem: Problem| problem.nested_body()["parameter"].to_string();
            let parameters = Parameters::of(Some(query), &["limit", "cursor", "status"]).map_err(told)?;
            let read = || Ok((parameters.limit()?, parameters.cursor()?, parameters.status()?));
            read().map_err(told)
        };
        let id = Uuid::from_u128(7);
        assert_eq!(read(""), Ok((50, None, None)));
        let good = format!("limit=500&cursor={}&status=EXPIRED", cursor_after(id));
        assert_eq!(read(&good), Ok((500, Some(id), Some(Status::Expired))));
        for (bad, parameter) in [
            ("limit=0", "limit"),
            ("limit=501", "limit"),
            ("limit=1&limit=1", "limit"),
            ("cursor=7", "cursor"),
            ("cursor=00000000-0000-0000-0000-000000000007", "cursor"),
            ("status=QUEUED", "status"),
            ("status=reserved", "status"),
            ("page=2", "page"),
        ] {
            assert_eq!(read(bad), Err(format!("\"{parameter}\"")), "{bad}");
        }
    }
}
