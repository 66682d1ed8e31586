//! From nothing to a UUID: certificates, register, uuid.
//!
//! ```text
//!  Certificates --ok--> Register --ok or any failure--> Uuid --ok--> done
//!       ^ failed: wait                                    | 401: wait, Register again
//!       +--------------- answer not verified -------------+ other: wait, Uuid again
//! ```
//! `/uuid` follows even a failed `/register`: a device that lost power between the two is known already, and a
//! controller may answer 500 to a second registration.

use crate::client::Client;
use crate::failure::{Class, Failure};
use crate::identity::DeviceIdentity;
use crate::timing::ONBOARDING_BACKOFF;
use holdfast_api::proto::uuid::UuidResponse;
use std::time::Duration;
use tokio::time::sleep;
use uuid::Uuid;

/// A step of onboarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Fetch the controller's certificates.
    Certificates,
    /// Register with the onboarding key.
    Register,
    /// Ask who we are.
    Uuid,
}

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// At once.
    Now(Step),
    /// After the backoff.
    AfterBackoff(Step),
    /// Onboarded.
    Done,
}

/// The step that follows `step` with its outcome; `None` = success.
#[must_use]
pub fn next(step: Step, failure: Option<Class>) -> Next {
    match (step, failure) {
        (Step::Certificates, None) => Next::Now(Step::Register),
        (Step::Certificates, Some(_)) => Next::AfterBackoff(Step::Certificates),
        (Step::Register, _) => Next::Now(Step::Uuid),
        (Step::Uuid, None) => Next::Done,
        (Step::Uuid, Some(Class::Unauthorized | Class::Unknown | Class::Forbidden | Class::Refused)) => {
            Next::AfterBackoff(Step::Register)
        }
        (Step::Uuid, Some(Class::BadAnswer)) => Next::AfterBackoff(Step::Certificates),
        (Step::Uuid, Some(_)) => Next::AfterBackoff(Step::Uuid),
    }
}

/// What the caller is told while onboarding goes on.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A step succeeded.
    Did(Step),
    /// A step failed; it is tried again after `wait` if that is not zero, else the next step follows.
    Failed {
        /// Which.
        step: Step,
        /// Why.
        failure: &'a Failure,
        /// Time to the next step.
        wait: Duration,
    },
}

/// The outcome of onboarding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Onboarded {
    /// The device's UUID, to be kept.
    pub uuid: Uuid,
    /// Manufacturer as the controller wants it reported; empty = as the hardware says.
    pub manufacturer: String,
    /// Product name as the controller wants it reported; empty = as the hardware says.
    pub product: String,
}

/// Onboards: tries until it works, with backoff; drop the future to stop.
pub async fn onboard(
    client: &Client,
    identity: &dyn DeviceIdentity,
    mut report: impl FnMut(Progress<'_>),
) -> Onboarded {
    let mut step = Step::Certificates;
    let mut rounds = 0;
    loop {
        let result = match step {
            Step::Certificates => client.fetch_certificates().await.map(|_| None),
            Step::Register => client.register(identity).await.map(|()| None),
            Step::Uuid => client.ask_uuid(identity).await.map(Some),
        };
        let following = next(step, result.as_ref().err().map(Failure::class));
        let wait = match following {
            Next::AfterBackoff(_) => {
                rounds += 1;
                ONBOARDING_BACKOFF.after(rounds)
            }
            Next::Now(_) | Next::Done => Duration::ZERO,
        };
        match &result {
            Ok(_) => report(Progress::Did(step)),
            Err(failure) => report(Progress::Failed { step, failure, wait }),
        }
        if let (Next::Done, Ok(Some(answer))) = (following, result) {
            return onboarded(answer);
        }
        sleep(wait).await;
        step = match following {
            Next::Now(step) | Next::AfterBackoff(step) => step,
            Next::Done => Step::Uuid,
        };
    }
}

fn onboarded(answer: UuidResponse) -> Onboarded {
    // The client has already read the UUID.
    Onboarded {
        uuid: Uuid::try_parse(&answer.uuid).unwrap_or_default(),
        manufacturer: answer.manufacturer,
        product: answer.product_name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Class; 10] = [
        Class::Unknown,
        Class::Unauthorized,
        Class::Forbidden,
        Class::TooMany,
        Class::Temporary,
        Class::Refused,
        Class::ServerError,
        Class::NoContact,
        Class::BadAnswer,
        Class::Local,
    ];

    #[test]
    fn uuid_is_asked_after_register_whatever_it_answered() {
        assert_eq!(next(Step::Register, None), Next::Now(Step::Uuid));
        for class in ALL {
            assert_eq!(next(Step::Register, Some(class)), Next::Now(Step::Uuid), "{class:?}");
        }
    }

    #[test]
    fn device_that_is_not_known_registers_again() {
        assert_eq!(next(Step::Uuid, Some(Class::Unauthorized)), Next::AfterBackoff(Step::Register));
        assert_eq!(next(Step::Uuid, Some(Class::NoContact)), Next::AfterBackoff(Step::Uuid));
        assert_eq!(next(Step::Uuid, Some(Class::BadAnswer)), Next::AfterBackoff(Step::Certificates));
    }

    #[test]
    fn only_a_uuid_ends_onboarding_and_no_failure_loops_without_a_wait() {
        for step in [Step::Certificates, Step::Register, Step::Uuid] {
            for failure in ALL.map(Some) {
                let mut at = step;
                // Whatever always fails comes to a wait within three steps.
                let waits = (0..3).any(|_| match next(at, failure) {
                    Next::AfterBackoff(_) => true,
                    Next::Now(step) => {
                        at = step;
                        false
                    }
                    Next::Done => panic!("{step:?} {failure:?} ended onboarding"),
                });
                assert!(waits, "{step:?} {failure:?}");
            }
        }
        assert_eq!(next(Step::Uuid, None), Next::Done);
    }
}
