//! Decisions, as a table of situations.

use super::*;
use holdfast_model::Uuid;

fn app() -> App {
    App {
        id: Uuid::from_u128(1),
        version: "1".into(),
        name: "web".into(),
        activate: true,
        vcpus: 1,
        memory_bytes: 64 << 20,
        volumes: vec![],
        interfaces: vec![],
        user_data: String::new(),
        restart_counter: 0,
        purge_counter: 0,
        start_delay_seconds: 0,
        disable_logs: false,
    }
}

fn world(now: u64) -> World {
    World {
        readiness: Readiness::Ready,
        tag: "t".into(),
        now: Duration::from_secs(now),
        held: None,
        boot_retry: Duration::from_secs(600),
    }
}

fn seen() -> Runtime {
    Runtime { acted: Some(Acted::default()), ..Runtime::default() }
}

fn running() -> Runtime {
    let mut r = seen();
    r.started(Duration::ZERO, "t".into());
    r
}

#[test]
fn a_ready_app_starts_and_then_runs() {
    assert_eq!(decide(Some(&app()), &seen(), &world(1)).step, Step::Start);
    assert_eq!(decide(Some(&app()), &running(), &world(1)), verdict(AppState::Running, Step::Wait));
}

#[test]
fn an_app_seen_first_takes_its_counters_as_done() {
    let mut a = app();
    a.restart_counter = 7;
    assert_eq!(decide(Some(&a), &Runtime::default(), &world(1)).step, Step::NoteCounters);
}

#[test]
fn what_is_missing_is_waited_for_and_what_failed_is_named() {
    let mut w = world(1);
    w.readiness = Readiness::Coming(AppState::Downloading);
    assert_eq!(decide(Some(&app()), &seen(), &w), verdict(AppState::Downloading, Step::Wait));
    w.readiness = Readiness::Failed("content x: digest".into());
    let v = decide(Some(&app()), &seen(), &w);
    assert_eq!((v.state, v.error.as_str()), (AppState::Error, "content x: digest"));
}

#[test]
fn a_restart_counter_stops_notes_and_starts() {
    let mut a = app();
    a.restart_counter = 1;
    let mut r = running();
    assert_eq!(decide(Some(&a), &r, &world(1)), verdict(AppState::Restarting, Step::Stop));
    r.vm = Vm::Stopping;
    assert_eq!(decide(Some(&a), &r, &world(1)), verdict(AppState::Restarting, Step::Wait));
    r.ended(Duration::from_secs(2), Ending::Clean);
    assert_eq!(decide(Some(&a), &r, &world(2)).step, Step::NoteCounters);
    r.acted = Some(Acted { restart: 1, purge: 0 });
    assert_eq!(decide(Some(&a), &r, &world(2)).step, Step::Start, "an ordered end is not waited after");
}

#[test]
fn a_purge_counter_makes_the_layer_anew_even_when_never_started() {
    let mut a = app();
    a.purge_counter = 3;
    assert_eq!(decide(Some(&a), &running(), &world(1)), verdict(AppState::Purging, Step::Stop));
    assert_eq!(decide(Some(&a), &seen(), &world(1)).step, Step::Purge);
}

#[test]
fn an_app_that_ends_by_itself_is_started_again_later_and_later() {
    let mut r = running();
    r.ended(Duration::from_secs(10), Ending::Fault("exit code 3".into()));
    let v = decide(Some(&app()), &r, &world(11));
    assert_eq!(v.state, AppState::Error);
    assert!(v.error.contains("exit code 3"), "{}", v.error);
    assert_eq!(decide(Some(&app()), &r, &world(15)).step, Step::Start);
    r.started(Duration::from_secs(15), "t".into());
    r.ended(Duration::from_secs(16), Ending::Fault("exit code 3".into()));
    assert_eq!(decide(Some(&app()), &r, &world(22)).step, Step::Wait);
    assert_eq!(decide(Some(&app()), &r, &world(26)).step, Step::Start);
}

#[test]
fn an_ordered_restart_does_not_wait_for_the_backoff() {
    let mut r = seen();
    r.start_failed(Duration::from_secs(1), "no memory".into());
    assert_eq!(decide(Some(&app()), &r, &world(2)).step, Step::Wait);
    r.restart_ordered();
    assert_eq!(decide(Some(&app()), &r, &world(2)).step, Step::Start);
}

#[test]
fn a_good_run_forgets_old_failures() {
    let mut r = running();
    r.failures = 9;
    r.ended(Duration::from_secs(1000), Ending::Fault("exit code 3".into()));
    assert_eq!(r.failures, 1);
}

#[test]
fn deactivated_and_held_apps_stop() {
    let mut a = app();
    a.activate = false;
    assert_eq!(decide(Some(&a), &running(), &world(1)).step, Step::Stop);
    assert_eq!(decide(Some(&a), &seen(), &world(1)), verdict(AppState::Installed, Step::Wait));
    let mut w = world(1);
    w.held = Some("maintenance mode".into());
    assert_eq!(decide(Some(&app()), &running(), &w).step, Step::Stop);
    assert_eq!(decide(Some(&app()), &seen(), &w).error, "maintenance mode");
}

#[test]
fn a_deleted_app_stops_then_is_forgotten() {
    let mut r = running();
    assert_eq!(decide(None, &r, &world(1)).step, Step::Stop);
    r.vm = Vm::Stopping;
    assert_eq!(decide(None, &r, &world(1)).step, Step::Wait);
    r.ended(Duration::from_secs(2), Ending::Clean);
    assert_eq!(decide(None, &r, &world(2)).step, Step::Forget);
}

#[test]
fn a_changed_app_without_a_counter_is_reported_and_left_running() {
    let mut w = world(1);
    w.tag = "other".into();
    let v = decide(Some(&app()), &running(), &w);
    assert_eq!((v.state, v.step), (AppState::Running, Step::Wait));
    assert!(v.error.contains("restart or purge counter"));
}

#[test]
fn the_start_delay_counts_from_device_boot_only() {
    let mut a = app();
    a.start_delay_seconds = 60;
    assert_eq!(decide(Some(&a), &seen(), &world(10)).state, AppState::StartDelayed);
    assert_eq!(decide(Some(&a), &seen(), &world(61)).step, Step::Start);
}

#[test]
fn a_fault_of_what_a_running_app_needs_is_said_beside_running() {
    let mut w = world(1);
    w.readiness = Readiness::Failed("app web: port 8080 is taken".into());
    let v = decide(Some(&app()), &running(), &w);
    assert_eq!((v.state, v.error.as_str(), v.step), (AppState::Running, "app web: port 8080 is taken", Step::Wait));
}

#[test]
fn an_app_with_a_fault_runs_on_and_is_not_started() {
    let v = decide_unsure("typo", &running());
    assert_eq!((v.state, v.error.as_str(), v.step), (AppState::Running, "typo", Step::Wait));
    let v = decide_unsure("typo", &seen());
    assert_eq!((v.state, v.error.as_str(), v.step), (AppState::Error, "typo", Step::Wait));
}

#[test]
fn a_guest_that_restarts_itself_is_started_at_once_but_not_for_ever() {
    let mut r = running();
    for n in 1..=FREE_REBOOTS {
        r.ended(Duration::from_secs(10), Ending::Reboot);
        assert_eq!(decide(Some(&app()), &r, &world(10)), verdict(AppState::Booting, Step::Start), "restart {n}");
        r.started(Duration::from_secs(10), "t".into());
    }
    r.ended(Duration::from_secs(10), Ending::Reboot);
    let v = decide(Some(&app()), &r, &world(10));
    assert!(v.step == Step::Wait && v.error.contains("again and again"), "{v:?}");
    assert_eq!(decide(Some(&app()), &r, &world(15)).step, Step::Start);
    assert_eq!(r.failures, 0, "no failure");
    r.started(Duration::from_secs(15), "t".into());
    r.ended(Duration::from_secs(1000), Ending::Reboot);
    assert_eq!(decide(Some(&app()), &r, &world(1000)).step, Step::Start, "after a good run");
}

#[test]
fn a_vm_that_is_being_started_is_waited_for() {
    let mut r = seen();
    r.starting(Duration::from_secs(1), "t".into());
    assert_eq!(decide(Some(&app()), &r, &world(1)), verdict(AppState::Booting, Step::Wait));
    assert_eq!(decide(None, &r, &world(1)), verdict(AppState::Halting, Step::Wait));
    r.start_failed(Duration::from_secs(2), "no tap".into());
    assert_eq!(decide(Some(&app()), &r, &world(2)).step, Step::Wait);
    assert_eq!(decide(None, &r, &world(2)).step, Step::Forget);
}
