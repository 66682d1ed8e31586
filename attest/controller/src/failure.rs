//! Why a request did not succeed, and what that means for the device.
//!
//! | answer | class | what follows |
//! |---|---|---|
//! | 400, 404 | [`Class::Unknown`] | on config: ask `/uuid`, keep the present config |
//! | 401 | [`Class::Unauthorized`] | log, retry |
//! | 403 | [`Class::Forbidden`] | on config: attest again |
//! | 429 | [`Class::TooMany`] | logs slow down, info is kept |
//! | 503, connection refused, certificate not yet valid | [`Class::Temporary`] | the remote side is away for a while: ports are not touched |
//! | other 4xx | [`Class::Refused`] | info is dropped |
//! | other 5xx | [`Class::ServerError`] | retry |
//! | no answer | [`Class::NoContact`] | retry over the next uplink |
//! | an answer that does not verify | [`Class::BadAnswer`] | ignored; retry |
//! | own key failed | [`Class::Local`] | retry |

use holdfast_api::certs::CertificateError;
use holdfast_api::envelope::EnvelopeError;
use holdfast_api::keys::KeyError;

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No answer over any uplink.
    #[error("{path}: no answer from {server}: {reasons}; it is tried again")]
    NoAnswer {
        /// Path of the API.
        path: String,
        /// The controller.
        server: String,
        /// One reason for each attempt.
        reasons: String,
        /// The remote side is there but not ready: connection refused, certificate not yet valid.
        temporary: bool,
    },
    /// An answer with a status that means failure.
    #[error("{path}: expected success, the controller answered {status}{}", quoted(.text))]
    Status {
        /// Path of the API.
        path: String,
        /// HTTP status.
        status: u16,
        /// Start of the body, if it was text.
        text: String,
    },
    /// A reply larger than allowed.
    #[error("{path}: the reply is larger than {limit} bytes; it is ignored")]
    TooLarge {
        /// Path of the API.
        path: String,
        /// Bound in bytes.
        limit: usize,
    },
    /// The envelope did not verify.
    #[error("{path}: {error}")]
    Envelope {
        /// Path of the API.
        path: String,
        /// Why.
        error: EnvelopeError,
    },
    /// The controller's certificates did not verify.
    #[error("certs: {0}")]
    Certificates(#[from] CertificateError),
    /// A verified payload that cannot be read.
    #[error("{path}: the reply is not what it should be: {reason}")]
    Malformed {
        /// Path of the API.
        path: String,
        /// Why.
        reason: String,
    },
    /// The device's own key failed.
    #[error(transparent)]
    Key(#[from] KeyError),
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text:?}") }
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// 400 or 404.
    Unknown,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 429.
    TooMany,
    /// The remote side is away for a while.
    Temporary,
    /// Other 4xx.
    Refused,
    /// Other 5xx, or a status that is no answer to this request.
    ServerError,
    /// No answer.
    NoContact,
    /// An answer that does not verify or cannot be read.
    BadAnswer,
    /// The device's own key failed.
    Local,
}

impl Failure {
    /// The class of this failure.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NoAnswer { temporary: true, .. } => Class::Temporary,
            Self::NoAnswer { temporary: false, .. } => Class::NoContact,
            Self::Status { status, .. } => Class::of_status(*status),
            Self::TooLarge { .. } | Self::Envelope { .. } | Self::Certificates(_) | Self::Malformed { .. } => {
                Class::BadAnswer
            }
            Self::Key(_) => Class::Local,
        }
    }
}

impl Class {
    /// The class of a status that is no success.
    #[must_use]
    pub fn of_status(status: u16) -> Self {
        match status {
            400 | 404 => Self::Unknown,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            429 => Self::TooMany,
            503 => Self::Temporary,
            402..=499 => Self::Refused,
            _ => Self::ServerError,
        }
    }

    /// True when the controller itself answered, so that the device has contact.
    #[must_use]
    pub fn is_contact(self) -> bool {
        !matches!(self, Self::NoContact | Self::Local | Self::Temporary)
    }

    /// True when another uplink may fare better.
    #[must_use]
    pub fn next_uplink_may_help(self) -> bool {
        matches!(self, Self::NoContact | Self::Refused | Self::ServerError | Self::Temporary)
    }

    /// True when sending the same again cannot succeed: a 4xx other than 429.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Unknown | Self::Unauthorized | Self::Forbidden | Self::Refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_fall_into_their_classes() {
        let cases = [
            (400, Class::Unknown),
            (401, Class::Unauthorized),
            (403, Class::Forbidden),
            (404, Class::Unknown),
            (409, Class::Refused),
            (413, Class::Refused),
            (429, Class::TooMany),
            (500, Class::ServerError),
            (502, Class::ServerError),
            (503, Class::Temporary),
            (302, Class::ServerError),
        ];
        for (status, class) in cases {
            assert_eq!(Class::of_status(status), class, "{status}");
        }
    }

    #[test]
    fn only_refusals_are_final_and_429_is_none() {
        for status in [400, 401, 403, 404, 409] {
            assert!(Class::of_status(status).is_final(), "{status}");
        }
        for status in [429, 500, 503] {
            assert!(!Class::of_status(status).is_final(), "{status}");
        }
    }
}
