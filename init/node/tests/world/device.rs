//! A device: the simulated machine, and agents that PID 1 starts again and again, with the real kernel and the real parts.

use super::effects::Cut;
use super::machine::{Machine, On};
use super::wish::{Wish, app_id, volume_id};
use holdfast_format::release::Kind;
use holdfast_model::boot::BootFacts;
use holdfast_model::contract::end::ExitClass;
use holdfast_model::observed::{AppState, AppStatus, DeviceStatus};
use holdfast_node::kept::decode;
use holdfast_node::kernel::{Kernel, Means};
use holdfast_node::part::{Event, Part};
use holdfast_node::parts::app::vm::unit_of;
use holdfast_node::parts::app::{self, AppPart};
use holdfast_node::parts::base_os::{self, BaseOsPart};
use holdfast_node::parts::content::{self, ContentPart};
use holdfast_node::parts::device::{self, DevicePart};
use holdfast_node::parts::volume::VolumePart;
use holdfast_node::world::init::beat;
use holdfast_supervise::UnitState;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::LocalSet;
use tokio::time::sleep;

/// PID 1 waits so long before it starts an agent again.
const AGENT_AGAIN: Duration = Duration::from_secs(1);
/// Longest time without a heartbeat that is well: they come each 5 s, and an agent that died is back after 1 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(7);

/// A device with an empty disk.
pub struct Device(pub Rc<Machine>);

impl Device {
    /// Runs a script against a device, in virtual time.
    pub fn play<F: Future<Output = ()>>(seed: u64, script: impl FnOnce(Rc<Self>) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let device = Rc::new(Self(Machine::new(seed)));
            tokio::select! {
                () = script(device.clone()) => {}
                () = device.0.live() => {}
                () = agents(device.0.clone()) => {}
            }
            device.nothing_wrong();
        });
    }

    /// The controller wants something else.
    pub fn wants(&self, wish: &Wish) {
        self.0.configure(wish.desired());
    }

    /// Time passes.
    pub async fn passes(&self, seconds: u64) {
        sleep(Duration::from_secs(seconds)).await;
    }

    /// The same in milliseconds.
    pub async fn passes_ms(&self, milliseconds: u64) {
        sleep(Duration::from_millis(milliseconds)).await;
    }

    /// Waits until the device is as wanted, at most so long.
    ///
    /// # Panics
    /// When it is not by then.
    pub async fn becomes(&self, wish: &Wish, seconds: u64) {
        for _ in 0..seconds * 4 {
            if self.differs(wish).is_none() {
                return;
            }
            sleep(Duration::from_millis(250)).await;
        }
        panic!("after {seconds} s: {:?}; said: {:#?}", self.differs(wish), self.0.lines.borrow());
    }

    /// Waits until one app runs, at most so long.
    ///
    /// # Panics
    /// When it does not by then.
    pub async fn becomes_running(&self, n: u8, seconds: u64) {
        for _ in 0..seconds * 4 {
            if self.app(n).is_some_and(|a| a.state == AppState::Running) {
                return;
            }
            sleep(Duration::from_millis(250)).await;
        }
        panic!("app {n} does not run after {seconds} s; said: {:#?}", self.0.lines.borrow());
    }

    /// The app's guest ends its virtual machine.
    pub fn ends(&self, n: u8, class: ExitClass) {
        self.0.ends(app_id(n), class);
    }

    /// The app as it is reported.
    pub fn app(&self, n: u8) -> Option<AppStatus> {
        let report = self.0.report.borrow();
        let observed = report.as_ref()?.borrow();
        observed.apps.iter().find(|a| a.id == app_id(n)).cloned()
    }

    /// What is not as wanted; none when everything is.
    pub fn differs(&self, wish: &Wish) -> Option<String> {
        let machine = &self.0;
        let desired = wish.desired();
        for app in &desired.apps {
            let units = machine.units.borrow();
            let unit = units.get(&unit_of(app.id));
            match (app.activate, unit.and_then(|u| u.vm().map(|plan| (u.state, plan)))) {
                (true, Some((UnitState::Running { .. }, plan))) => {
                    let counters = (app.restart_counter, app.purge_counter);
                    if (plan.app.restart_counter, plan.app.purge_counter) != counters {
                        return Some(format!("{} runs with old counters", app.name));
                    }
                }
                (false, None) => {}
                (true, _) => return Some(format!("{} does not run: {:?}", app.name, unit.map(|u| u.state))),
                (false, Some(_)) => return Some(format!("{} runs", app.name)),
            }
        }
        for (name, unit) in machine.units.borrow().iter() {
            if unit.vm().is_none_or(|plan| !desired.apps.iter().any(|a| a.id == plan.app.id))
                && !desired.apps.iter().any(|a| unit_of(a.id) == *name)
            {
                return Some(format!("unit {name} is left"));
            }
        }
        for (n, wanted) in &wish.0 {
            let expected = if wanted.active { AppState::Running } else { AppState::Halted };
            let state = self.app(*n).map(|a| a.state);
            if state != Some(expected) && !(expected == AppState::Halted && state == Some(AppState::Installed)) {
                return Some(format!("app {n} is reported as {state:?}"));
            }
        }
        let extra = |key: &&(holdfast_model::Uuid, i64)| !wish.0.keys().any(|n| (volume_id(*n), 0) == **key);
        if let Some(key) = machine.volumes.borrow().keys().find(extra) {
            return Some(format!("volume {} is left", key.0));
        }
        let images = machine.images.borrow();
        if images.len() != wish.0.len() || images.iter().any(|name| name.starts_with('.')) {
            return Some(format!("the images are {images:?}"));
        }
        (!machine.strays.borrow().is_empty()).then(|| format!("halves are left: {:?}", machine.strays.borrow()))
    }

    /// Nothing happened that must never happen, and PID 1 heard of the agent all the time.
    ///
    /// # Panics
    /// When it did.
    pub fn nothing_wrong(&self) {
        let wrong = self.0.wrong.borrow();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let mut beats = self.0.beats.borrow().clone();
        beats.push(self.0.now());
        for pair in beats.windows(2) {
            assert!(pair[1] - pair[0] <= LONGEST_PAUSE, "no heartbeat from {:?} to {:?}", pair[0], pair[1]);
        }
    }
}

/// One agent after the other.
async fn agents(machine: Rc<Machine>) {
    loop {
        let local = LocalSet::new();
        let cut = local.run_until(agent(machine.clone())).await;
        drop(local);
        machine.suffer(cut);
        sleep(AGENT_AGAIN).await;
    }
}

/// An agent until it is cut.
async fn agent(machine: Rc<Machine>) -> Cut {
    let on = On(machine.clone());
    let lines = machine.clone();
    let means = Means {
        clock: Rc::new(on.clone()),
        files: Rc::new(on.clone()),
        say: Box::new(move |line| lines.lines.borrow_mut().push(format!("{:?} {}", lines.now(), line.text))),
    };
    let (mut kernel, report) = Kernel::new(parts(&on), means);
    *machine.report.borrow_mut() = Some(report);
    machine.connect(Some(kernel.sender()));
    machine.tell(machine.list());
    if let Some(config) = machine.config.borrow().clone() {
        machine.tell(Event::Config(config));
    }
    tokio::task::spawn_local(beat(Rc::new(on), kernel.progress()));
    tokio::select! {
        () = kernel.run(|_| false) => unreachable!("the kernel runs for ever"),
        cut = machine.effects.wait_for_cut() => cut,
    }
}

fn parts(on: &On) -> Vec<Box<dyn Part>> {
    let machine = &on.0;
    let file = |name: &str| machine.files.borrow().get(Path::new(name)).cloned();
    let end = Rc::new(on.clone());
    let (contents, lost) = decode(content::FILE, file(content::FILE).as_deref());
    assert!(lost.is_empty(), "{lost:?}");
    let (apps, lost) = decode(app::FILE, file(app::FILE).as_deref());
    assert!(lost.is_empty(), "{lost:?}");
    let base_os = base_os::Means {
        slots: end.clone(),
        fetching: end.clone(),
        roots_pem: vec![],
        release_key_pem: String::new(),
        partitions: holdfast_model::boot::Partitions::default(),
        epoch: 1,
    };
    let record = machine.slots.borrow().clone();
    let (kept, lost) = decode(device::FILE, file(device::FILE).as_deref());
    assert!(lost.is_empty(), "{lost:?}");
    let means = device::Means {
        machine: end.clone(),
        boot: boot(machine.boot.get()),
        vault_open: true,
        has_controller: true,
        kind: Kind::Dev,
        constant: DeviceStatus::default(),
    };
    vec![
        Box::new(DevicePart::over(means, kept)),
        Box::new(ContentPart::over(
            content::Means { fetching: end.clone(), images: end.clone(), roots_pem: vec![] },
            contents,
        )),
        Box::new(VolumePart::over(end.clone())),
        Box::new(AppPart::over(end, apps)),
        Box::new(BaseOsPart::over(base_os, record, holdfast_model::slot::Slot::A, true)),
    ]
}

fn boot(boot_count: u64) -> BootFacts {
    serde_json::from_value(serde_json::json!({
        "slot": "A", "version": "1", "epoch": 1, "boot_count": boot_count,
        "partitions": holdfast_model::boot::Partitions::default(), "tpm": true, "secure_boot": true, "watchdog": "",
        "stages": [], "measurements": [], "previous_end": "", "previous_reason": null, "fallback_reason": "",
    }))
    .unwrap()
}
