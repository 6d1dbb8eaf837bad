//! Values that must not be shown: `Debug` and `Display` redact them, `expose` is easy to search for.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use url::Url;

/// What stands where a secret would.
const REDACTED: &str = "***";

/// A password or token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Keeps a text from being shown.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Whether `other` is the same, in a time that does not tell how much of it is.
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// A URL that may hold a password, as user information or as a query parameter.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl {
    text: Arc<str>,
    shown: Arc<str>,
}

impl SecretUrl {
    /// Takes a URL of one of these schemes with a host; `None` for anything else.
    pub fn parse(text: &str, schemes: &[&str]) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let is_good = schemes.contains(&url.scheme()) && url.has_host();
        is_good.then(|| Self { text: text.into(), shown: shown(url).into() })
    }

    /// The whole URL, for the client library that connects.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

/// Without its password. Of the query only the names are kept: several parameters can hold secrets.
fn shown(mut url: Url) -> String {
    if url.password().is_some() {
        url.set_password(Some(REDACTED)).expect("a URL with a password can have another one");
    }
    let names: Vec<String> = url.query_pairs().map(|(name, _)| format!("{name}={REDACTED}")).collect();
    if !names.is_empty() {
        url.set_query(Some(&names.join("&")));
    }
    url.set_fragment(None);
    url.into()
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
