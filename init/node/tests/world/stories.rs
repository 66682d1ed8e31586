//! Stories of one device, each in milliseconds.

use super::device::Device;
use super::effects::{Cut, CutAt};
use super::wish::{Mistake, Wish, app_id};
use holdfast_model::contract::end::ExitClass;
use holdfast_model::observed::AppState;
use holdfast_model::trouble;
use std::cell::Cell;

/// Two apps come, one is restarted, one purged, one taken away.
async fn life(device: &Device) {
    let both = Wish::of(2);
    device.wants(&both);
    device.becomes(&both, 60).await;
    let changed = both.with(1, |a| a.restart = 1).with(2, |a| a.purge = 1);
    device.wants(&changed);
    device.becomes(&changed, 120).await;
    let one = changed.without(2);
    device.wants(&one);
    device.becomes(&one, 120).await;
}

#[test]
fn apps_come_from_their_registry_change_by_order_and_go_without_a_trace() {
    Device::play(1, |device| async move {
        life(&device).await;
        let times = |what: &str| device.0.effects.times(what);
        assert_eq!((times("start vm app1"), times("start vm app2")), (2, 2));
        assert_eq!((times("begin fetch-"), times("name volume")), (2, 3));
    });
}

#[test]
fn an_agent_or_the_power_cut_at_any_effect_changes_no_outcome() {
    let effects = Cell::new(0);
    Device::play(1, |device| {
        let effects = &effects;
        async move {
            life(&device).await;
            effects.set(device.0.effects.count());
        }
    });
    let mut cuts = 0;
    for effect in 1..=effects.get() {
        for after in [false, true] {
            for what in [Cut::Agent, Cut::Power] {
                Device::play(1, |device| async move {
                    device.0.effects.cut_at(CutAt { effect, after, what });
                    life(&device).await;
                    assert_eq!(device.0.effects.cuts(), 1, "at {effect}");
                });
                cuts += 1;
            }
        }
    }
    assert!(cuts > 100, "{cuts}");
}

#[test]
fn a_reboot_command_is_followed_once_wherever_the_agent_or_the_power_is_cut() {
    let story = |cut: Option<CutAt>| {
        let effects = Cell::new((0, 0));
        Device::play(9, |device| {
            let effects = &effects;
            async move {
                let one = Wish::of(1);
                device.wants(&one);
                device.becomes(&one, 60).await;
                let before = device.0.effects.count();
                if let Some(cut) = cut {
                    device.0.effects.cut_at(cut);
                }
                let rebooted = one.rebooted();
                device.wants(&rebooted);
                device.passes(300).await;
                device.becomes(&rebooted, 60).await;
                let (reboots, boots) = (device.0.effects.times("reboot: "), device.0.boot.get());
                let what = cut.map(|cut| cut.what);
                assert!(
                    reboots == 1 || (reboots == 0 && what == Some(Cut::Power)),
                    "{reboots} reboots, {cut:?}: {:#?}",
                    device.0.lines.borrow()
                );
                assert!(boots >= 2, "the reboot is lost");
                effects.set((before, device.0.effects.count()));
            }
        });
        effects.get()
    };
    let (first, last) = story(None);
    assert!(last > first + 5, "{first} {last}");
    for effect in first + 1..=last {
        for after in [false, true] {
            for what in [Cut::Agent, Cut::Power] {
                story(Some(CutAt { effect, after, what }));
            }
        }
    }
}

#[test]
fn an_operation_that_never_ends_holds_up_only_its_own_app() {
    for never in
        ["copy volume 00000000-0000-0004-4000-800000000001", "begin fetch-", "start vm app1", "TPM", "status/content"]
    {
        Device::play(2, |device| async move {
            let second = Wish::default().with(2, |_| {});
            device.wants(&second);
            device.becomes(&second, 60).await;
            device.0.effects.hang(never);
            let both = second.with(1, |_| {});
            device.wants(&both);
            device.passes(600).await;
            // The heartbeats are checked at the end of each story.
            assert_eq!(device.app(2).unwrap().state, AppState::Running, "{never}");
            device.ends(2, ExitClass::GuestReset);
            device.passes(10).await;
            assert_eq!(device.app(2).unwrap().state, AppState::Running, "restarted beside {never}");
            device.0.effects.heal();
            device.0.effects.cut(Cut::Agent);
            device.becomes(&both, 120).await;
        });
    }
}

#[test]
fn a_typing_mistake_anywhere_disturbs_nothing_that_runs() {
    for mistake in [Mistake::App, Mistake::Volume, Mistake::Content, Mistake::Datastore] {
        for cut in [None, Some(Cut::Agent), Some(Cut::Power)] {
            Device::play(3, |device| async move {
                let both = Wish::of(2);
                device.wants(&both);
                device.becomes(&both, 60).await;
                device.wants(&both.clone().with(1, |a| a.mistake = mistake));
                device.passes(30).await;
                if let Some(cut) = cut {
                    device.0.effects.cut(cut);
                    device.passes(30).await;
                }
                assert!(!trouble::texts(&device.app(1).unwrap().troubles).is_empty(), "{mistake:?}");
                let runs = if cut == Some(Cut::Power) { AppState::Error } else { AppState::Running };
                assert_eq!(device.app(1).unwrap().state, runs, "{mistake:?} {cut:?}");
                assert_eq!(device.app(2).unwrap().state, AppState::Running);
                device.wants(&both);
                device.becomes(&both, 120).await;
                assert_eq!((device.0.effects.times("begin fetch-"), device.0.effects.times("name volume")), (2, 2));
            });
        }
    }
}

#[test]
fn a_registry_that_refuses_one_image_holds_up_only_its_app() {
    Device::play(4, |device| async move {
        device.0.refused.borrow_mut().insert("app1".into());
        let both = Wish::of(2);
        device.wants(&both);
        device.becomes_running(2, 60).await;
        device.passes(60).await;
        assert!(trouble::texts(&device.app(1).unwrap().troubles).contains("connection refused"));
        device.0.refused.borrow_mut().clear();
        device.becomes(&both, 120).await;
    });
}

#[test]
fn an_image_that_is_not_wanted_any_more_while_its_job_begins_leaves_no_half() {
    for milliseconds in (0..400).step_by(10) {
        Device::play(7, |device| async move {
            device.passes(2).await;
            device.wants(&Wish::of(1));
            device.passes_ms(milliseconds).await;
            device.wants(&Wish::default());
            device.becomes(&Wish::default(), 60).await;
        });
    }
}

#[test]
fn a_unit_that_could_not_be_dropped_is_dropped_later() {
    Device::play(8, |device| async move {
        device.0.effects.fail("drop fetch-");
        device.wants(&Wish::of(1));
        device.becomes_running(1, 60).await;
        device.0.effects.heal();
        device.becomes(&Wish::of(1), 60).await;
    });
}

#[test]
fn a_disk_that_takes_no_state_starts_nothing_that_relies_on_it_and_stops_nothing() {
    Device::play(6, |device| async move {
        let one = Wish::of(1);
        device.wants(&one);
        device.becomes(&one, 60).await;
        device.0.effects.fail("write status/");
        device.wants(&one.clone().with(2, |_| {}));
        device.passes(300).await;
        assert_eq!((device.app(1).unwrap().state, device.0.effects.times("start vm app2")), (AppState::Running, 0));
        device.0.effects.heal();
        device.becomes(&one.with(2, |_| {}), 60).await;
    });
}

#[test]
fn a_guest_that_crashes_again_and_again_is_tried_ever_less_often() {
    Device::play(5, |device| async move {
        let one = Wish::of(1);
        device.wants(&one);
        device.becomes(&one, 60).await;
        for _ in 0..600 {
            device.ends(1, ExitClass::GuestFault);
            device.passes(1).await;
        }
        let starts = device.0.effects.times("start vm app1");
        assert!((10..20).contains(&starts), "{starts}");
        device.becomes(&one, 120).await;
        let unit = holdfast_node::parts::app::vm::unit_of(app_id(1));
        assert_eq!(device.0.effects.times(&format!("stop {unit}")), 0);
    });
}
