//! Random configs, faults, ends of guests and cuts. Whatever happens, nothing forbidden does, and in the end all is as wanted.

use super::device::Device;
use super::effects::{Cut, CutAt};
use super::wish::{Mistake, Wish};
use holdfast_model::contract::end::ExitClass;
use proptest::prelude::*;

/// What happens to a device.
#[derive(Debug, Clone)]
enum Step {
    /// The config has the app, or has it no more.
    Toggle(u8),
    Activate(u8, bool),
    Restart(u8),
    Purge(u8),
    Image(u8, u32),
    Memory(u8, u32),
    Mistake(u8, Mistake),
    /// The guest ends its virtual machine.
    Ends(u8, ExitClass),
    /// The registry refuses its image, or no more.
    Refuse(u8, bool),
    /// So many of a hundred effects fail.
    Fail(u64),
    Cut(Cut),
}

fn step() -> impl Strategy<Value = Step> {
    let app = 1..=3u8;
    let mistakes = [Mistake::None, Mistake::App, Mistake::Volume, Mistake::Content, Mistake::Datastore];
    let classes = [ExitClass::PowerOff, ExitClass::GuestReset, ExitClass::GuestFault, ExitClass::OutOfMemory];
    prop_oneof![
        2 => app.clone().prop_map(Step::Toggle),
        2 => (app.clone(), any::<bool>()).prop_map(|(n, active)| Step::Activate(n, active)),
        3 => app.clone().prop_map(Step::Restart),
        3 => app.clone().prop_map(Step::Purge),
        1 => (app.clone(), 1..4u32).prop_map(|(n, image)| Step::Image(n, image)),
        1 => (app.clone(), 1..4u32).prop_map(|(n, memory)| Step::Memory(n, 64 * memory)),
        3 => (app.clone(), proptest::sample::select(mistakes.to_vec())).prop_map(|(n, m)| Step::Mistake(n, m)),
        3 => (app.clone(), proptest::sample::select(classes.to_vec())).prop_map(|(n, class)| Step::Ends(n, class)),
        1 => (app, any::<bool>()).prop_map(|(n, refuse)| Step::Refuse(n, refuse)),
        1 => (0..30u64).prop_map(Step::Fail),
        2 => prop_oneof![Just(Cut::Agent), Just(Cut::Power)].prop_map(Step::Cut),
    ]
}

/// A step is taken, and so many milliseconds pass.
fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    let pause = prop_oneof![0..300u64, 300..20_000u64];
    proptest::collection::vec((step(), pause), 1..14)
}

fn cut_at() -> impl Strategy<Value = Option<CutAt>> {
    let what = prop_oneof![Just(Cut::Agent), Just(Cut::Power)];
    proptest::option::of((1..120u32, any::<bool>(), what).prop_map(|(effect, after, what)| CutAt {
        effect,
        after,
        what,
    }))
}

fn take(device: &Device, wish: &mut Wish, step: &Step) {
    let before = wish.clone();
    let mut change = |n: u8, change: &mut dyn FnMut(&mut super::wish::App)| {
        if let Some(app) = wish.0.get_mut(&n) {
            change(app);
        }
    };
    match step {
        Step::Toggle(n) => {
            if wish.0.remove(n).is_none() {
                *wish = wish.clone().with(*n, |_| {});
            }
        }
        Step::Activate(n, active) => change(*n, &mut |a| a.active = *active),
        Step::Restart(n) => change(*n, &mut |a| a.restart += 1),
        Step::Purge(n) => change(*n, &mut |a| a.purge += 1),
        Step::Image(n, image) => change(*n, &mut |a| a.image = *image),
        Step::Memory(n, memory) => change(*n, &mut |a| a.memory_mib = *memory),
        Step::Mistake(n, mistake) => change(*n, &mut |a| a.mistake = *mistake),
        Step::Ends(n, class) => device.ends(*n, *class),
        Step::Refuse(n, true) => drop(device.0.refused.borrow_mut().insert(format!("app{n}"))),
        Step::Refuse(n, false) => drop(device.0.refused.borrow_mut().remove(&format!("app{n}"))),
        Step::Fail(percent) => device.0.effects.fail_percent(*percent),
        Step::Cut(cut) => device.0.effects.cut(*cut),
    }
    if *wish != before {
        device.wants(wish);
    }
}

async fn happens(device: &Device, steps: &[(Step, u64)]) {
    let mut wish = Wish::of(2);
    device.wants(&wish);
    for (step, pause) in steps {
        take(device, &mut wish, step);
        device.passes_ms(*pause).await;
    }
    device.0.effects.heal();
    device.0.refused.borrow_mut().clear();
    let wish = wish.correct();
    device.wants(&wish);
    device.becomes(&wish, 900).await;
    // At rest, another agent finds nothing to do but to look.
    device.passes(120).await;
    let did = || {
        ["start vm", "stop vmm-", "name volume", "begin fetch-", "remove volumes"].map(|e| device.0.effects.times(e))
    };
    let before = did();
    device.0.effects.cut(Cut::Agent);
    device.passes(120).await;
    assert_eq!((did(), device.differs(&wish)), (before, None));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_forbidden_does_and_all_is_as_wanted_in_the_end(
        seed in 1..1000u64,
        steps in steps(),
        cut in cut_at(),
    ) {
        Device::play(seed, |device| async move {
            if let Some(cut) = cut {
                device.0.effects.cut_at(cut);
            }
            happens(&device, &steps).await;
        });
    }
}
