//! An error for people: with its causes, in one line.

use std::error::Error;

/// The error and its causes, each once: most messages of this library state their cause themselves.
#[must_use]
pub fn told(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.map(ToString::to_string).fold(error.to_string(), |told, cause| {
        if told.contains(&cause) { told } else { format!("{told}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::FileError;
    use crate::site::SiteError;
    use std::io::ErrorKind;

    #[test]
    fn a_cause_that_the_message_states_is_not_told_twice() {
        let source = FileError {
            what: "read",
            path: "/nonexistent/user".into(),
            source: ErrorKind::PermissionDenied.into(),
        };
        let error = SiteError::File { key: "broker.user_file", source };
        let said = told(&error);
        assert_eq!(said, error.to_string());
        assert_eq!(said.matches("permission denied").count(), 1, "{said}");
        let silent = std::fmt::Error;
        assert_eq!(told(&silent), silent.to_string());
    }
}
