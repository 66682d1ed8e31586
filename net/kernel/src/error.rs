//! Why the kernel did not do it: one error type for all netlink families and the system calls beside them.

use std::io;
use thiserror::Error;

/// Why the kernel did not do it.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel refused.
    #[error("{what}: {errno}{}", .message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Refused {
        /// What was asked.
        what: String,
        /// System error.
        errno: io::Error,
        /// The kernel's own text (extended acknowledgement).
        message: Option<String>,
    },
    /// The socket failed.
    #[error("{what}: netlink socket: {source}")]
    Socket {
        /// What was asked.
        what: String,
        /// System error.
        source: io::Error,
    },
    /// An answer made no sense.
    #[error("{what}: malformed netlink answer")]
    Malformed {
        /// What was asked.
        what: String,
    },
    /// There is no such thing.
    #[error("{what} does not exist{hint}")]
    NotFound {
        /// The thing.
        what: String,
        /// What is there instead, or empty.
        hint: String,
    },
    /// Something of that name exists and is not ours to change.
    #[error("{what}: {found}")]
    Conflict {
        /// The thing.
        what: String,
        /// What is there.
        found: String,
    },
}

impl NetlinkError {
    /// System error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => errno.raw_os_error(),
            _ => None,
        }
    }

    /// A failed system call other than netlink.
    #[must_use]
    pub fn io(what: impl Into<String>, errno: io::Error) -> Self {
        Self::Refused { what: what.into(), errno, message: None }
    }
}

/// `Ok` when the error is one of these numbers: the wanted state is there already.
pub fn tolerate(result: Result<(), NetlinkError>, errnos: &[i32]) -> Result<(), NetlinkError> {
    match result {
        Err(e) if e.errno().is_some_and(|n| errnos.contains(&n)) => Ok(()),
        other => other,
    }
}
