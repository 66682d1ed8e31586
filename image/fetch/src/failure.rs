//! Why a job failed, and whether trying again can help.
#![forbid(unsafe_code)]

use std::io;

use holdfast_model::contract::fetch::FailureClass;

/// A failure of a job or of a part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// For whoever decides about the next attempt.
    pub class: FailureClass,
    /// Names the object, what was expected, what was found.
    pub text: String,
}

impl Failure {
    /// The network or the server: later it may work.
    pub fn transport(text: impl Into<String>) -> Self {
        Self { class: FailureClass::Transport, text: text.into() }
    }

    /// The server refused.
    pub fn refused(text: impl Into<String>) -> Self {
        Self { class: FailureClass::Refused, text: text.into() }
    }

    /// What came is not what was promised.
    pub fn content(text: impl Into<String>) -> Self {
        Self { class: FailureClass::Content, text: text.into() }
    }

    /// This device.
    pub fn local(text: impl Into<String>) -> Self {
        Self { class: FailureClass::Local, text: text.into() }
    }

    /// An error of a local file.
    pub fn file(what: &str) -> impl Fn(io::Error) -> Self + '_ {
        move |e| {
            let hint = if e.raw_os_error() == Some(libc::ENOSPC) { " (the data partition is full)" } else { "" };
            Self::local(format!("{what}: {e}{hint}"))
        }
    }
}
