//! What the controller is told about the slots: EVE's `ZInfoDevSW`, as plain data.
//!
//! | phase | running slot | other slot |
//! |---|---|---|
//! | Stable | active, UPDATED | unused |
//! | Stable after a failure | active, UPDATED | inprogress, FAILED with the reason |
//! | Dirty | active, UPDATED | updating, UPDATING / installing |
//! | Staged | active, UPDATED | updating, DOWNLOAD_DONE: it waits to be activated |
//! | Armed | active, UPDATED | updating, UPDATING / rebooting |
//! | Trial, Committing | inprogress, UPDATING / testing, seconds left | active, UPDATED |

use crate::record::{Phase, Record};
use holdfast_model::observed::Tens;
use holdfast_model::slot::{BaseOsStatus, BaseOsSubStatus, PartitionState, Slot, SlotStatus};

/// Status of both slots, the running one first. `seconds_left` of the trial comes from [`crate::trial::judge`].
#[must_use]
pub fn status(record: &Record, running: Slot, seconds_left: Option<u32>) -> [SlotStatus; 2] {
    let version = |slot: Slot| record.image(slot).map(|i| i.version.clone()).unwrap_or_default();
    let active = |slot: Slot| SlotStatus {
        slot,
        running: slot == running,
        version: version(slot),
        partition_state: PartitionState::Active,
        status: BaseOsStatus::Updated,
        sub_status: BaseOsSubStatus::None,
        sub_status_progress: Tens::default(),
        reason: String::new(),
    };
    // The committed slot while it is given up as damaged: no good image is known in it any more.
    let committed = match (record.image(record.committed), &record.failure) {
        (None, Some(f)) => SlotStatus {
            version: f.version.clone(),
            status: BaseOsStatus::Failed,
            reason: f.reason.clone(),
            ..active(record.committed)
        },
        _ => active(record.committed),
    };
    let target = record.target();
    let updating = |version: &str, sub_status| SlotStatus {
        version: version.into(),
        partition_state: PartitionState::Updating,
        status: BaseOsStatus::Updating,
        sub_status,
        ..active(target)
    };
    let of_target = match &record.phase {
        Phase::Stable => match &record.failure {
            None => {
                SlotStatus { partition_state: PartitionState::Unused, status: BaseOsStatus::None, ..active(target) }
            }
            Some(f) => SlotStatus {
                version: f.version.clone(),
                partition_state: PartitionState::InProgress,
                status: BaseOsStatus::Failed,
                reason: f.reason.clone(),
                ..active(target)
            },
        },
        Phase::Dirty(image) => updating(&image.version, BaseOsSubStatus::Installing),
        Phase::Staged { image, .. } => {
            SlotStatus { status: BaseOsStatus::DownloadDone, ..updating(&image.version, BaseOsSubStatus::None) }
        }
        Phase::Armed(image) => updating(&image.version, BaseOsSubStatus::Rebooting),
        Phase::Trial { image, reason } => SlotStatus {
            partition_state: PartitionState::InProgress,
            sub_status_progress: Tens::up(seconds_left.unwrap_or(0)),
            reason: reason.clone().unwrap_or_default(),
            ..updating(&image.version, BaseOsSubStatus::Testing)
        },
        Phase::Committing(image) => SlotStatus {
            partition_state: PartitionState::InProgress,
            ..updating(&image.version, BaseOsSubStatus::Testing)
        },
    };
    match running == target {
        true => [of_target, committed],
        false => [committed, of_target],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Failure, Image};

    fn image(v: &str) -> Image {
        Image { version: v.into(), epoch: 0 }
    }

    #[test]
    fn each_phase_is_reported_as_the_table_says() {
        use BaseOsStatus as S;
        use BaseOsSubStatus as U;
        use PartitionState as P;
        let base = Record::initial(Slot::A, image("1"));
        let failed = Record {
            failure: Some(Failure { version: "2".into(), reason: "why".into(), tried: true }),
            ..base.clone()
        };
        let phase = |phase| Record { phase, ..base.clone() };
        let trial = Phase::Trial { image: image("2"), reason: None };
        let cases = [
            (base.clone(), Slot::A, [("1", P::Active, S::Updated, U::None, 0), ("", P::Unused, S::None, U::None, 0)]),
            (failed, Slot::A, [("1", P::Active, S::Updated, U::None, 0), ("2", P::InProgress, S::Failed, U::None, 0)]),
            (
                phase(Phase::Dirty(image("2"))),
                Slot::A,
                [("1", P::Active, S::Updated, U::None, 0), ("2", P::Updating, S::Updating, U::Installing, 0)],
            ),
            (
                phase(Phase::Staged { image: image("2"), forced: false }),
                Slot::A,
                [("1", P::Active, S::Updated, U::None, 0), ("2", P::Updating, S::DownloadDone, U::None, 0)],
            ),
            (
                phase(Phase::Armed(image("2"))),
                Slot::A,
                [("1", P::Active, S::Updated, U::None, 0), ("2", P::Updating, S::Updating, U::Rebooting, 0)],
            ),
            (
                phase(trial),
                Slot::B,
                [("2", P::InProgress, S::Updating, U::Testing, 50), ("1", P::Active, S::Updated, U::None, 0)],
            ),
        ];
        for (record, running, want) in cases {
            let got = status(&record, running, Some(42));
            for (g, w) in got.iter().zip(want) {
                assert_eq!(
                    (g.version.as_str(), g.partition_state, g.status, g.sub_status, g.sub_status_progress.get()),
                    w,
                    "{:?}",
                    record.phase
                );
            }
            assert!(got[0].running && !got[1].running && got[0].slot == running);
        }
    }
}
