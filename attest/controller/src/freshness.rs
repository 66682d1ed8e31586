//! Whether a verified config is put in force: the one place that decides it.
//!
//! | the config | in force | |
//! |---|---|---|
//! | is for another device | | refused |
//! | has no `config_timestamp` | any | taken: it claims no order |
//! | has one | has none, or nothing is in force | taken |
//! | has an earlier one | has one | refused: a replay, or a slow second source |
//! | has the same or a later one | has one | taken |

use crate::client::ReceivedConfig;
use uuid::Uuid;

/// Time of a config: seconds since the Unix epoch, and nanoseconds; zero when it carries none.
pub type Timestamp = (i64, i32);

/// Why a config is not put in force. The one in force stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The id in it.
    #[error(
        "the config is for the device {found}, expected {own}: it is not used, the one in force stays until a config for this device comes"
    )]
    OtherDevice {
        /// This device.
        own: Uuid,
        /// The device that it is for.
        found: Uuid,
    },
    /// Its time.
    #[error("the config of {} s is older than the one in force, of {} s: it is not used", found.0, applied.0)]
    Older {
        /// Time of the config in force.
        applied: Timestamp,
        /// Time of this one.
        found: Timestamp,
    },
}

/// Why `config` is not to be put in force after the one of time `applied` on the device `own`; `None` when it is. An id that is no UUID
/// is a fault of the config, which the conversion names.
#[must_use]
pub fn refusal(config: &ReceivedConfig, applied: Option<Timestamp>, own: Option<Uuid>) -> Option<Refusal> {
    judge(config.device(), config.timestamp(), applied.unwrap_or_default(), own)
}

fn judge(device: Option<Uuid>, found: Timestamp, applied: Timestamp, own: Option<Uuid>) -> Option<Refusal> {
    if let (Some(own), Some(found)) = (own, device)
        && own != found
    {
        return Some(Refusal::OtherDevice { own, found });
    }
    (found != (0, 0) && found < applied).then_some(Refusal::Older { applied, found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_refused_for_another_device_and_when_it_is_older() {
        let [own, other] = [1, 2].map(Uuid::from_u128);
        let older = |found, applied| Some(Refusal::Older { applied, found });
        let cases = [
            (Some(own), (0, 0), (9, 0), Some(own), None),
            (Some(own), (5, 0), (0, 0), Some(own), None),
            (Some(own), (9, 0), (9, 0), Some(own), None),
            (Some(own), (9, 1), (9, 0), Some(own), None),
            (Some(own), (8, 5), (9, 0), Some(own), older((8, 5), (9, 0))),
            (None, (8, 0), (9, 0), None, older((8, 0), (9, 0))),
            (Some(other), (9, 0), (0, 0), None, None),
            (None, (9, 0), (0, 0), Some(own), None),
            (Some(other), (9, 0), (0, 0), Some(own), Some(Refusal::OtherDevice { own, found: other })),
        ];
        for (device, found, applied, own, expected) in cases {
            assert_eq!(judge(device, found, applied, own), expected, "{device:?} {found:?} after {applied:?}");
        }
    }
}
