//! Who we are to Kubo (`API.Authorizations` in its config). A secret never shows: not in errors, not in `Debug`, not in logs.

use std::{fmt, str::FromStr};

use data_encoding::BASE64;
use hyper::header::HeaderValue;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text over.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What goes into the Authorization header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Nothing: Kubo's RPC is open to whoever reaches it, which is its default.
    #[default]
    None,
    /// A token.
    Bearer(Secret),
    /// User and password.
    Basic {
        /// User; without a colon.
        user: String,
        /// Password.
        password: Secret,
    },
}

/// A text that is no authorization. It doesn't repeat the text, which may hold the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthError(&'static str);

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the Kubo RPC's authorization (not shown here): {}; write it as Kubo does: bearer:TOKEN or basic:USER:PASSWORD",
            self.0
        )
    }
}

impl std::error::Error for AuthError {}

impl FromStr for Auth {
    type Err = AuthError;

    /// As Kubo's `AuthSecret` has it: `bearer:TOKEN`, `basic:USER:PASSWORD`, `basic:BASE64`; empty is none.
    fn from_str(text: &str) -> Result<Auth, AuthError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Auth::None);
        }
        let auth = match text.split_once(':') {
            Some(("bearer", "")) => return Err(AuthError("the token is empty")),
            Some(("bearer", token)) => Auth::Bearer(Secret::new(token)),
            Some(("basic", credentials)) => {
                let decoded =
                    BASE64.decode(credentials.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                let plain = if credentials.contains(':') { Some(credentials.to_owned()) } else { decoded };
                match plain.as_deref().and_then(|plain| plain.split_once(':')) {
                    Some((user, password)) if !user.is_empty() => {
                        Auth::Basic { user: user.to_owned(), password: Secret::new(password) }
                    }
                    _ => return Err(AuthError("user or password is missing")),
                }
            }
            _ => return Err(AuthError("it begins neither with bearer: nor with basic:")),
        };
        auth.header().map(|_| auth)
    }
}

impl Auth {
    /// The header's value, kept out of logs by `set_sensitive`.
    pub(crate) fn header(&self) -> Result<Option<HeaderValue>, AuthError> {
        let text = match self {
            Auth::None => return Ok(None),
            Auth::Bearer(Secret(token)) => format!("Bearer {token}"),
            Auth::Basic { user, password: Secret(password) } => {
                format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
            }
        };
        let mut value =
            HeaderValue::try_from(text).map_err(|_| AuthError("it has characters that a header can't carry"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_kubo_reads() {
        let header =
            |text: &str| text.parse::<Auth>().unwrap().header().unwrap().map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(header(""), None);
        assert_eq!(header("bearer:t0ken:x\n").as_deref(), Some("Bearer t0ken:x"));
        assert_eq!(header("basic:user:pass").as_deref(), Some("Basic dXNlcjpwYXNz"));
        assert_eq!(header("basic:dXNlcjpwYXNz").as_deref(), Some("Basic dXNlcjpwYXNz"));
    }

    #[test]
    fn a_secret_shows_nowhere() {
        let auth: Auth = "basic:user:hunter2".parse().unwrap();
        assert!(!format!("{auth:?}").contains("hunter2"));
        assert!(!format!("{:?}", auth.header().unwrap()).contains("aHVudGVy"));
        for wrong in ["hunter2", "basic:hunter2", "bearer:", "bearer:hunter2\u{1}", "token:hunter2"] {
            let err = wrong.parse::<Auth>().unwrap_err();
            assert!(!format!("{err} {err:?}").contains("hunter2"), "{err}");
        }
    }
}
