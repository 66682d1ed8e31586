//! Credentials: Basic, and the token flow of container registries (distribution spec, "Token Authentication").
#![forbid(unsafe_code)]

use base64::Engine as _;
use serde::Deserialize;

/// Longest challenge that is read.
const CHALLENGE_MAX: usize = 4096;

/// A challenge in `WWW-Authenticate` (RFC 9110 §11.6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Passed on; may be empty.
        service: String,
        /// Passed on; may be empty.
        scope: String,
    },
}

impl Challenge {
    /// Reads the first challenge; `None` for schemes that we do not speak.
    pub fn parse(header: &str) -> Option<Self> {
        let header = header.get(..header.len().min(CHALLENGE_MAX))?.trim();
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (String::new(), String::new(), String::new());
        let mut rest = rest;
        while let Some((name, value)) = rest.split_once('=') {
            let name = name.trim_matches([' ', ',', '\t']);
            let (value, behind) = match value.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => {
                    let end = value.find(',').unwrap_or(value.len());
                    (value[..end].trim().to_owned(), &value[end..])
                }
            };
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = value,
                "service" => service = value,
                "scope" => scope = value,
                _ => {}
            }
            rest = behind;
        }
        (!realm.is_empty()).then_some(Self::Bearer { realm, service, scope })
    }

    /// The URL to ask for a token; the repository's own scope where the challenge names none.
    pub fn token_url(realm: &str, service: &str, scope: &str) -> String {
        let mut url = realm.to_owned();
        for (name, value) in [("service", service), ("scope", scope)] {
            if !value.is_empty() {
                url.push(if url.contains('?') { '&' } else { '?' });
                url.push_str(name);
                url.push('=');
                url.push_str(&percent_encode(value));
            }
        }
        url
    }
}

/// The answer of a token server: one of the two names.
#[derive(Deserialize)]
pub struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl TokenAnswer {
    /// The value of the Authorization header; `None` when it holds no usable token.
    pub fn authorization(&self) -> Option<String> {
        let token = if self.token.is_empty() { &self.access_token } else { &self.token };
        let usable = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        usable.then(|| format!("Bearer {token}"))
    }
}

/// The value of the Authorization header for a user and password (RFC 7617).
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// Any text as a challenge.
#[doc(hidden)]
pub fn fuzz_challenge(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(Challenge::Bearer { realm, service, scope }) = Challenge::parse(text)
    {
        let _ = Challenge::token_url(&realm, &service, &scope);
    }
}

/// A quoted string without its opening quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~:/,".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_of_real_registries_are_understood() {
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() })
        };
        for (header, wanted) in [
            ("Basic realm=\"Registry\"", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://auth.example/token\",service=\"registry.example\",scope=\"repository:library/nginx:pull\"",
                bearer("https://auth.example/token", "registry.example", "repository:library/nginx:pull"),
            ),
            ("bearer realm=https://a/t, service=b", bearer("https://a/t", "b", "")),
            (r#"Bearer scope="a,b=\"c\"", realm="https://a""#, bearer("https://a", "", "a,b=\"c\"")),
            ("Bearer service=\"x\"", None),
            ("Negotiate", None),
            ("Bearer realm=\"unterminated", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(header), wanted, "{header}");
        }
    }

    #[test]
    fn token_urls_are_encoded() {
        let url = Challenge::token_url("https://a/t?x=1", "my service", "repository:a/b:pull,push");
        assert_eq!(url, "https://a/t?x=1&service=my%20service&scope=repository:a/b:pull,push");
    }

    proptest! {
        #[test]
        fn any_challenge_is_survived(text in "(Bearer )?[a-z=\", \\\\é]{0,60}") {
            fuzz_challenge(text.as_bytes());
        }
    }
}
