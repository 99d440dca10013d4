//! The four routes.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use super::{Board, HttpOptions, Request, metrics};
use crate::agent::Call;
use crate::fs::{self, FileError};
use crate::knobs_request::KnobsRequest;

/// Shortest token: 16 characters of a random one are beyond guessing at ten a second.
const TOKEN_CHARS_MIN: usize = 16;
/// Longest: it has to fit into the headers.
const TOKEN_CHARS_MAX: usize = 1024;

/// A bearer token, kept as its digest only.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file's content or rights.
    #[error("{}: {what}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: &'static str,
    },
}

impl Token {
    /// The first line of a file that only the agent may read.
    ///
    /// # Errors
    /// [`TokenError`], without a word of the file's content.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        use std::os::unix::fs::PermissionsExt;
        let unfit = |what| TokenError::Unfit { path: path.into(), what };
        let found = std::fs::metadata(path).map_err(fs::at("read", path))?;
        if found.permissions().mode() & 0o007 != 0 {
            return Err(unfit("everyone on this machine may use it: chmod o= it"));
        }
        let bytes = fs::read_there(path)?;
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().next().unwrap_or_default().trim();
        let is_sane = (TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&line.len());
        if !is_sane || !line.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unfit(
                "its first line must be 16 to 1024 characters without blanks, as from `openssl rand -hex 32`",
            ));
        }
        Ok(Self::of(line.as_bytes()))
    }

    fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Takes as long for every wrong one: digests of equal length, compared without a branch.
    fn is(&self, given: &[u8]) -> bool {
        bool::from(self.0.ct_eq(&Self::of(given).0))
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    /// The status code.
    pub status: u16,
    /// A further header line, where there is one.
    header: Option<&'static str>,
    content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Response {
    /// A body of JSON, with the newline that terminals like.
    fn json(status: u16, body: &Value) -> Self {
        let (header, content_type) = (None, "application/json");
        Self { status, header, content_type, body: format!("{body}\n") }
    }

    /// An error in words.
    pub(super) fn plain(status: u16, reason: &str) -> Self {
        Self::json(status, &json!({"status": "error", "reason": reason}))
    }

    fn with(mut self, header: &'static str) -> Self {
        self.header = Some(header);
        self
    }

    /// What goes over the wire.
    #[must_use]
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let header = self.header.map_or(String::new(), |header| format!("{header}\r\n"));
        let (status, reason) = (self.status, reason(self.status));
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{header}Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n{}",
            self.content_type,
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// What the routes need.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) options: HttpOptions,
    pub(super) board: Board,
    pub(super) call: Call,
}

impl Routes {
    pub(super) async fn answer(&self, request: Request) -> Response {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let allowed = match path {
            "/status" | "/healthz" | "/metrics" => "GET",
            "/apply_knobs" => "POST",
            _ => {
                let there =
                    "no such path; there are GET /status, /healthz, /metrics and POST /apply_knobs";
                return Response::plain(404, there);
            }
        };
        if request.method != allowed {
            let header = if allowed == "GET" { "Allow: GET" } else { "Allow: POST" };
            return Response::plain(405, &format!("{path} takes {allowed}")).with(header);
        }
        let is_write = allowed == "POST";
        // From elsewhere, reading needs the token as well.
        if (is_write || !self.options.listen.is_local())
            && let Some(refusal) = self.refusal(request.authorization.as_deref())
        {
            return refusal;
        }
        match path {
            "/status" => self.status(),
            "/healthz" => self.health(),
            "/metrics" => self.metrics(),
            _ => self.apply_knobs(query, &request.body).await,
        }
    }

    /// Why the request may not be made; `None` where it may.
    fn refusal(&self, authorization: Option<&[u8]>) -> Option<Response> {
        let Some(token) = &self.options.token else {
            let what = "there is no token to write with: set http.token_file";
            return Some(Response::plain(403, what));
        };
        let given = authorization.and_then(|value| {
            let (scheme, given) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(given)
        });
        match given {
            Some(given) if token.is(given) => None,
            _ => Some(
                Response::plain(
                    401,
                    "send `Authorization: Bearer TOKEN` with the token of http.token_file",
                )
                .with("WWW-Authenticate: Bearer"),
            ),
        }
    }

    fn status(&self) -> Response {
        self.board.look(|found| match found {
            Some((_, report)) => match serde_json::to_value(report) {
                Ok(report) => Response::json(200, &report),
                Err(error) => Response::plain(500, &error.to_string()),
            },
            None => Response::plain(503, "no decision yet"),
        })
    }

    /// The agent's own health: whether it still ticks. How the broker does is in `/status`.
    fn health(&self) -> Response {
        self.board.look(|found| match found {
            Some((age, _)) if age <= self.options.tick_max => {
                Response::json(200, &json!({"status": "ok"}))
            }
            Some((age, _)) => Response::plain(503, &format!("no decision for {} s", age.as_secs())),
            None => Response::plain(503, "no decision yet"),
        })
    }

    fn metrics(&self) -> Response {
        let body = self.board.look(|found| found.map(|(_, report)| metrics::text(report)));
        match body {
            Some(body) => {
                let content_type = "text/plain; version=0.0.4; charset=utf-8";
                Response { status: 200, header: None, content_type, body }
            }
            None => Response::plain(503, "no decision yet"),
        }
    }

    async fn apply_knobs(&self, query: &str, body: &[u8]) -> Response {
        let skips_locked = match query {
            "" => false,
            "locked=skip" => true,
            _ => return Response::plain(400, "the only query is ?locked=skip"),
        };
        let request = match KnobsRequest::parse(body, skips_locked) {
            Ok(request) => request,
            Err(reason) => return Response::plain(400, &reason),
        };
        match self.call.knobs(request).await {
            Some(answer) => {
                let (status, body) = answer.to_http();
                Response::json(status, &body)
            }
            None => Response::plain(503, "the agent has too much to do; try again"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_comes_from_a_private_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let write = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, mode).unwrap();
            Token::read(&path)
        };
        let secret = "0123456789abcdef";
        let token = write(&format!("{secret}\nmore\n"), 0o640).unwrap();
        assert!(token.is(secret.as_bytes()));
        for wrong in ["", "0123456789abcde", "0123456789abcdeF", "0123456789abcdef "] {
            assert!(!token.is(wrong.as_bytes()), "{wrong}");
        }
        assert!(!format!("{token:?}").contains("0123"));
        for (text, mode, part) in [
            ("0123456789abcdef", 0o644, "chmod o="),
            ("short", 0o600, "openssl rand"),
            ("with a blank in the middle", 0o600, "openssl rand"),
            ("", 0o600, "openssl rand"),
        ] {
            let error = write(text, mode).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("0123"), "{error}");
        }
        assert!(Token::read(Path::new("/nonexistent/token")).is_err());
    }
}
