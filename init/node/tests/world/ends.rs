//! The ends that the parts act through, on the simulated machine.

use super::effects::act;
use super::machine::{Kind, Machine, On, Unit, VolumeFile};
use holdfast_model::Uuid;
use holdfast_model::contract::end::{End, ExitClass};
use holdfast_model::contract::fetch::{FailureClass, ImageConfig, Outcome, Phase, Report};
use holdfast_node::fetching::{Fetching, Get, Order, Reports};
use holdfast_node::parts::app::machines::Machines;
use holdfast_node::parts::app::vm::{Plan, unit_of};
use holdfast_node::parts::base_os::slots::{Sent, Slots};
use holdfast_node::parts::content::images::{ImageStore, name_of, partial_name};
use holdfast_node::parts::volume::files::{Listing, VolumeStore, file_of, key_of};
use holdfast_node::world::Local;
use holdfast_node::world::init::Init;
use holdfast_slots::{Effect, Event as SlotEvent, step};
use holdfast_supervise::{Logs, UnitName, UnitState};
use std::cell::Cell;
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;

fn to_io<T: 'static>(result: Local<Result<T, String>>) -> Local<io::Result<T>> {
    Box::pin(async move { result.await.map_err(io::Error::other) })
}

impl Machine {
    /// What must hold when a virtual machine starts.
    fn check_start(&self, plan: &Plan) {
        let name = &plan.app.name;
        let mut volumes = self.volumes.borrow_mut();
        for (n, used) in plan.app.volumes.iter().enumerate() {
            let Some(file) = volumes.get_mut(&(used.volume, used.generation)) else {
                self.note(format!("{name} starts without its volume {}", used.volume));
                continue;
            };
            // A start that was under way when the config dropped the app changes nothing about that.
            file.given_up = self.is_given_up(used.volume);
            if n == 0 {
                if file.used_with.is_some_and(|counter| counter != plan.app.purge_counter) {
                    self.note(format!("{name} starts with data from before its purge"));
                }
                file.used_with = Some(plan.app.purge_counter);
            }
        }
        for disk in &plan.disks {
            if let holdfast_node::parts::app::vm::Disk::Container { rootfs, .. } = disk
                && !self.images.borrow().contains(&rootfs.file_name().unwrap().to_string_lossy().into_owned())
            {
                self.note(format!("{name} starts without its image"));
            }
        }
        if self.units.borrow().values().filter_map(Unit::vm).any(|p| p.number == plan.number && p.app.id != plan.app.id)
        {
            self.note(format!("{name} starts with the uid of another app"));
        }
    }

    fn holds(&self, key: (Uuid, i64)) -> bool {
        let units = self.units.borrow();
        units.values().filter_map(Unit::vm).any(|p| p.app.volumes.iter().any(|v| (v.volume, v.generation) == key))
    }

    fn check_replacement(&self, key: (Uuid, i64), old: VolumeFile) {
        if self.holds(key) {
            self.note(format!("volume {} is replaced under its virtual machine", key.0));
        }
        let config = self.config.borrow();
        let app = config.iter().flat_map(|c| &c.apps).find(|a| a.volumes.first().is_some_and(|v| v.volume == key.0));
        if let (Some(app), Some(used)) = (app, old.used_with)
            && app.purge_counter == used
        {
            self.note(format!("the data of {} is thrown away without an order", app.name));
        }
    }
}

impl Machines for On {
    fn start(&self, plan: Plan) -> Local<Result<(), String>> {
        let machine = self.0.clone();
        act(&self.0.effects, format!("start vm {}", plan.app.name), move || {
            let (unit, tag) = (unit_of(plan.app.id), plan.tag());
            if machine.units.borrow().get(&unit).is_some_and(Unit::lives) {
                return Err(format!("unit {unit}: lives"));
            }
            machine.check_start(&plan);
            machine.start(&unit, Kind::Vm(plan), tag, None)?;
            machine.judge_stops();
            Ok(())
        })
    }

    fn stop(&self, app: Uuid) -> Local<Result<bool, String>> {
        let machine = self.0.clone();
        let unit = unit_of(app);
        act(&self.0.effects, format!("stop {unit}"), move || {
            let grace = Duration::from_millis(200 + machine.effects.random(8000));
            let now = machine.now();
            match machine.units.borrow_mut().get_mut(&unit) {
                None => return Ok(false),
                Some(found) if found.lives() => {
                    if let Some(plan) = found.vm()
                        && !machine.may_stop(found.serial)
                    {
                        machine.note(format!("{} is stopped without a reason", plan.app.name));
                    }
                    (found.state, found.since) = (UnitState::Stopping { pid: 1 }, now);
                    found.due = Some((now + grace, End::new(ExitClass::PowerOff, "the guest powered off")));
                }
                Some(_) => {}
            }
            machine.unit_changed(&unit);
            Ok(true)
        })
    }

    fn remove(&self, app: Uuid) -> Local<Result<(), String>> {
        let machine = self.0.clone();
        act(&self.0.effects, format!("remove vmm-{app}"), move || machine.remove(&unit_of(app)))
    }
}

/// The reports of a job, from the beginning.
struct Reader {
    machine: Rc<Machine>,
    unit: UnitName,
    serial: u64,
    next: Cell<usize>,
}

/// When each report comes after the start of its job, and what it is.
fn script(order: &Order, refused: bool) -> Vec<(Duration, Report)> {
    let Get::Image { reference, repository, .. } = &order.get else { return Vec::new() };
    let half = Report::Progress { phase: Phase::Downloading, bytes: 1 << 20, total: 2 << 20 };
    let last = if refused {
        Report::Failed { class: FailureClass::Transport, text: format!("{repository}: connection refused") }
    } else {
        Report::Done(Outcome::Oci {
            manifest_sha256: format!("{repository}-{reference}").replace('/', "-"),
            size_bytes: 2 << 20,
            config: ImageConfig { cmd: vec!["/app".into()], ..ImageConfig::default() },
        })
    };
    vec![(Duration::from_secs(2), half), (Duration::from_secs(5), last)]
}

impl Reports for Reader {
    fn next(&self) -> Local<Option<Report>> {
        let (machine, unit, serial) = (self.machine.clone(), self.unit.clone(), self.serial);
        let n = self.next.replace(self.next.get() + 1);
        Box::pin(async move {
            loop {
                let wait = {
                    let units = machine.units.borrow();
                    let unit = units.get(&unit).filter(|u| u.serial == serial)?;
                    let Kind::Job(order) = &unit.kind else { return None };
                    let refused =
                        machine.refused.borrow().iter().any(|r| format!("{:?}", order.get).contains(r.as_str()));
                    let (after, report) = script(order, refused).into_iter().nth(n)?;
                    let at = unit.began + after;
                    if at <= machine.now() {
                        return Some(report);
                    }
                    at - machine.now()
                };
                sleep(wait).await;
            }
        })
    }
}

impl Fetching for On {
    fn start(&self, order: Order) -> Local<Result<Rc<dyn Reports>, String>> {
        let machine = self.0.clone();
        act(&self.0.effects, format!("begin {}", order.unit), move || {
            let (unit, tag) = (order.unit.clone(), order.tag.clone());
            let Get::Image { output, .. } = &order.get else { return Err("no slots here".into()) };
            machine.images.borrow_mut().insert(output.file_name().unwrap().to_string_lossy().into_owned());
            let end = (machine.now() + Duration::from_secs(6), End::new(ExitClass::Done, "done"));
            let serial = machine.start(&unit, Kind::Job(order), tag, Some(end))?;
            Ok(Rc::new(Reader { machine: machine.clone(), unit, serial, next: Cell::new(0) }) as Rc<dyn Reports>)
        })
    }

    fn adopt(&self, unit: UnitName) -> Local<Result<Rc<dyn Reports>, String>> {
        let machine = self.0.clone();
        act(&self.0.effects, format!("adopt {unit}"), move || {
            let serial = machine.units.borrow().get(&unit).map(|u| u.serial).ok_or("no such job")?;
            Ok(Rc::new(Reader { machine: machine.clone(), unit, serial, next: Cell::new(0) }) as Rc<dyn Reports>)
        })
    }

    fn stop(&self, unit: UnitName) -> Local<Result<(), String>> {
        let machine = self.0.clone();
        act(&self.0.effects, format!("kill {unit}"), move || {
            if let Some(found) = machine.units.borrow_mut().get_mut(&unit) {
                found.state = UnitState::Ended;
            }
            machine.unit_changed(&unit);
            machine.remove(&unit)
        })
    }

    fn remove(&self, unit: UnitName) -> Local<Result<(), String>> {
        let machine = self.0.clone();
        act(&self.0.effects, format!("drop {unit}"), move || {
            let _ = machine.remove(&unit);
            Ok(())
        })
    }
}

impl ImageStore for On {
    fn file(&self, sha256: &str) -> PathBuf {
        Path::new("/data/images").join(name_of(sha256))
    }

    fn partial(&self, content: Uuid) -> PathBuf {
        Path::new("/data/images").join(partial_name(content))
    }

    fn spool(&self) -> PathBuf {
        "/data/images/spool".into()
    }

    fn look(&self) -> Local<io::Result<Vec<String>>> {
        let machine = self.0.clone();
        to_io(act(&self.0.effects, "list images".into(), move || Ok(machine.images.borrow().iter().cloned().collect())))
    }

    fn keep(&self, content: Uuid, sha256: String) -> Local<io::Result<()>> {
        let machine = self.0.clone();
        to_io(act(&self.0.effects, format!("keep image {sha256}"), move || {
            let mut images = machine.images.borrow_mut();
            if !images.remove(&partial_name(content)) {
                return Err("no such file".into());
            }
            images.insert(name_of(&sha256));
            Ok(())
        }))
    }

    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        let machine = self.0.clone();
        to_io(act(&self.0.effects, format!("remove images {names:?}"), move || {
            machine.images.borrow_mut().retain(|name| !names.contains(name));
            Ok(())
        }))
    }
}

impl VolumeStore for On {
    fn file(&self, volume: Uuid, generation: i64) -> PathBuf {
        file_of(Path::new("/data/volumes"), volume, generation)
    }

    fn look(&self) -> Local<io::Result<Listing>> {
        let machine = self.0.clone();
        to_io(act(&self.0.effects, "list volumes".into(), move || {
            let volumes = machine.volumes.borrow().keys().map(|key| (*key, 4096)).collect();
            Ok(Listing { volumes, strays: machine.strays.borrow().iter().cloned().collect() })
        }))
    }

    fn make(&self, volume: Uuid, generation: i64, _: u64) -> Local<io::Result<u64>> {
        let half = format!("{volume}.{generation}.new");
        let (machine, stray) = (self.0.clone(), half.clone());
        let copied = act(&self.0.effects, format!("copy volume {volume}"), move || {
            machine.strays.borrow_mut().insert(stray);
            Ok(())
        });
        let (at, name, key) = (self.0.clone(), half.clone(), (volume, generation));
        let machine = self.0.clone();
        let named = act(&self.0.effects, format!("name volume {volume}"), move || {
            // One that the config has dropped meanwhile may be removed at once.
            let file = VolumeFile { given_up: at.is_given_up(key.0), ..VolumeFile::default() };
            let old = at.volumes.borrow_mut().insert(key, file);
            if let Some(old) = old {
                at.check_replacement(key, old);
            }
            at.strays.borrow_mut().remove(&name);
            Ok(4096)
        });
        to_io(Box::pin(async move {
            copied.await?;
            let result = named.await;
            if result.is_err() {
                machine.strays.borrow_mut().remove(&half);
            }
            result
        }))
    }

    fn remove(&self, names: Vec<String>) -> Local<io::Result<()>> {
        let machine = self.0.clone();
        to_io(act(&self.0.effects, format!("remove volumes {names:?}"), move || {
            machine.strays.borrow_mut().retain(|name| !names.contains(name));
            for key in names.iter().filter_map(|name| key_of(name)) {
                if machine.holds(key) {
                    machine.note(format!("volume {} is removed under its virtual machine", key.0));
                }
                let removed = machine.volumes.borrow_mut().remove(&key);
                if removed.is_some_and(|file| !file.given_up) {
                    machine.note(format!("volume {} is removed although every config had it", key.0));
                }
            }
            Ok(())
        }))
    }
}

impl Slots for On {
    fn send(&self, events: Vec<SlotEvent>) -> Local<Sent> {
        let machine = self.0.clone();
        let sent = act(&self.0.effects, "write the slots".into(), move || {
            let mut due = None;
            for event in events {
                let (record, effects) = step(&machine.slots.borrow(), event).map_err(|e| e.to_string())?;
                *machine.slots.borrow_mut() = record;
                due = effects.into_iter().find_map(|effect| match effect {
                    Effect::Reboot { reason, text } => Some((reason, text)),
                    _ => None,
                });
            }
            Ok(due)
        });
        let machine = self.0.clone();
        Box::pin(async move {
            let result = sent.await;
            Sent { record: machine.slots.borrow().clone(), result }
        })
    }

    fn commit_epoch(&self, epoch: u32) -> Local<Result<(), String>> {
        act(&self.0.effects, format!("TPM: commit epoch {epoch}"), || Ok(()))
    }
}

impl Init for On {
    fn logs(&self, after: u64) -> Local<Result<Logs, String>> {
        Box::pin(ready(Ok(Logs { lines: Vec::new(), next: after, more: false })))
    }

    fn heartbeat(&self) -> Local<Result<(), String>> {
        self.0.beats.borrow_mut().push(self.0.now());
        Box::pin(ready(Ok(())))
    }

    fn reboot(&self, reason: String) -> Local<Result<(), String>> {
        let machine = self.0.clone();
        act(&self.0.effects, format!("reboot: {reason}"), move || {
            machine.effects.cut(super::effects::Cut::Power);
            Ok(())
        })
    }
}

impl holdfast_node::parts::device::power::Machine for On {
    fn ready(&self) -> Local<Result<(), String>> {
        act(&self.0.effects, "TPM: measure that the agent began".into(), || Ok(()))
    }

    fn reboot(&self, text: String) -> Local<Result<(), String>> {
        Init::reboot(self, text)
    }

    fn debug(&self, order: &'static str) -> Local<Result<String, String>> {
        Box::pin(ready(Ok(order.into())))
    }
}
