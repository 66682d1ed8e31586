//! The device itself: commands, reboots, maintenance, what is said of the machine.
//!
//! Principles:
//! 1. A counter command is on disk before it is acted on, so it is followed once, whatever happens meanwhile.
//! 2. A reboot is orderly: its reason is kept, its report goes out, apps end first; none of these can hold it up for ever.
//! 3. Other parts order nothing of the machine; they say what is due ([`facts`], [`RebootOrder`]).
//!
//! Reading order: [`facts`], [`state`] (pure), [`kept`], [`power`].

pub mod facts;
pub mod kept;
pub mod power;
pub mod state;

use self::facts::{GoingDown, Held};
use self::kept::Kept;
use self::power::{Machine, ThisMachine};
use self::state::{Down, Order, follow, note_last_boot, silence};
use crate::debug;
use crate::keeper::{Keeper, Said};
use crate::machine::{self, seconds_of};
use crate::part::{Event, Part, Turn};
use crate::parts::app::facts::Guests;
use crate::parts::base_os::facts::{Busy, RebootDue};
use crate::parts::controller::facts::Contact;
use crate::parts::vault::facts::Closed;
use crate::setup::Setup;
use holdfast_format::release::Kind;
use holdfast_model::boot::BootFacts;
use holdfast_model::desired::Desired;
use holdfast_model::observed::{BootReason, DeviceState, DeviceStatus, Observed, RebootRecord};
use holdfast_model::trouble::Severity;
use std::rc::Rc;

/// File of the part below the data folder.
pub const FILE: &str = "status/device.json";

/// What the part is about.
pub struct Means {
    /// The machine.
    pub machine: Rc<dyn Machine>,
    /// This boot.
    pub boot: BootFacts,
    /// The vault is open: without it nothing is kept, and the agent has not begun.
    pub vault_open: bool,
    /// A controller is known: without one its silence means nothing.
    pub has_controller: bool,
    /// Kind of the running release: debugging orders are followed by development images only.
    pub kind: Kind,
    /// What does not change while the machine runs: architecture, DMI, memory, disk.
    pub constant: DeviceStatus,
}

/// The part on a real machine.
///
/// # Errors
/// Never.
pub fn new(setup: &Setup, kept: Option<&[u8]>) -> anyhow::Result<Box<dyn Part>> {
    let machine = ThisMachine {
        supervisor: setup.supervisor.clone(),
        identity: setup.identity.clone(),
        mark: setup.paths.run.join("ready"),
    };
    let means = Means {
        machine: Rc::new(machine),
        boot: setup.boot.facts.clone(),
        vault_open: setup.vault_open,
        has_controller: setup.boot.site.is_some() && setup.vault_open,
        kind: setup.boot.release.kind,
        constant: constant(setup),
    };
    let part = DevicePart::over(means, setup.kept(FILE, kept));
    setup.after_crash.set(part.after_crash);
    Ok(Box::new(part))
}

/// What does not change while the machine runs.
fn constant(setup: &Setup) -> DeviceStatus {
    let serial = setup.boot.site.as_ref().and_then(|s| s.serial.clone());
    DeviceStatus {
        architecture: std::env::consts::ARCH.to_owned(),
        manufacturer: machine::dmi("sys_vendor"),
        product: machine::dmi("product_name"),
        serial: serial.unwrap_or_else(|| machine::dmi("product_serial")),
        bios_version: machine::dmi("bios_version"),
        cpus: machine::cpus(),
        memory_bytes: machine::memory().0,
        storage_bytes: if setup.vault_open { machine::storage(&setup.paths.data).0 } else { 0 },
        ..DeviceStatus::default()
    }
}

/// The part.
pub struct DevicePart {
    means: Means,
    kept: Kept,
    keeper: Keeper<Kept>,
    last_reboot: RebootRecord,
    /// The boot before this one ended in a crash that its config may have caused, and no agent has run in this boot before.
    after_crash: bool,
    began: bool,
    down: Option<Down>,
    /// Debugging orders that wait until they are on disk as followed.
    orders: Vec<&'static str>,
    status: DeviceStatus,
    config: Option<Rc<Desired>>,
    said: Said,
}

/// News: a part wants a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebootOrder {
    /// Class.
    pub reason: BootReason,
    /// Text.
    pub text: String,
}

/// News: the beginning of the agent was measured, or not.
struct Measured(Result<(), String>);

/// News: PID 1 was asked for the reboot.
struct Asked(Result<(), String>);

/// News: a debugging order was followed.
struct Debugged(Result<String, String>);

impl DevicePart {
    /// A part that goes on from what was kept.
    #[must_use]
    pub fn over(means: Means, kept: Kept) -> Self {
        let keeper = Keeper::new(FILE, kept.clone());
        let mut kept = kept;
        let (last_reboot, after_crash) = note_last_boot(&mut kept, &means.boot);
        Self {
            means,
            kept,
            keeper,
            last_reboot,
            after_crash,
            began: false,
            down: None,
            orders: Vec::new(),
            status: DeviceStatus::default(),
            config: None,
            said: Said::default(),
        }
    }

    fn begin(&mut self, turn: &mut Turn<'_>) {
        if self.means.vault_open && !std::mem::replace(&mut self.began, true) {
            let ready = self.means.machine.ready();
            turn.start("measure the phase `ready`", async move { Measured(ready.await) });
        }
    }

    fn take(&mut self, config: &Rc<Desired>, turn: &mut Turn<'_>) {
        for fault in &config.faults {
            let severity = match fault.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Notice => "info",
            };
            self.said.once(turn, severity, &fault.text);
        }
        for order in follow(&mut self.kept, config.commands, self.means.boot.boot_count) {
            match order {
                Order::ShutDownApps(counter) => {
                    turn.say("info", format!("all apps are shut down, as the controller ordered (counter {counter})"));
                }
                Order::Reboot(counter) => {
                    let text = format!("reboot ordered by the controller (counter {counter})");
                    self.order_reboot(BootReason::RebootCommand, &text, turn);
                }
            }
        }
        self.orders.extend(debug::due(self.means.kind, &config.properties.unknown, &mut self.kept.debug));
        self.config = Some(config.clone());
    }

    fn order_reboot(&mut self, reason: BootReason, text: &str, turn: &mut Turn<'_>) {
        if self.down.is_some() {
            return;
        }
        let record = RebootRecord { reason, text: text.to_owned(), time_seconds: seconds_of(turn.wall) };
        self.kept.ordered_reboot = Some(record.clone());
        self.down = Some(Down { record, since: turn.now, asked: None });
        turn.say("info", format!("reboot: {text}"));
    }

    fn held(&self) -> Option<String> {
        if let Some(down) = &self.down {
            Some(format!("the device goes down: {}", down.record.text))
        } else if self.config.as_ref().is_some_and(|c| c.maintenance) {
            Some("maintenance mode".to_owned())
        } else if self.kept.shut_down_in_boot == Some(self.means.boot.boot_count) {
            Some("shut down by the controller; apps start again after a reboot of the device".to_owned())
        } else {
            None
        }
    }

    fn reboot_when_due(&mut self, turn: &mut Turn<'_>) {
        // An order that this boot has not followed yet: an agent before this one was cut off between noting and doing it.
        if self.down.is_none()
            && let Some(record) = self.kept.ordered_reboot.clone()
        {
            turn.say("info", format!("reboot: {}", record.text));
            self.down = Some(Down { record, since: turn.now, asked: None });
        }
        if let Some((reason, text)) = turn.facts.get::<RebootDue>().and_then(|due| due.0.clone()) {
            self.order_reboot(reason, &text, turn);
        }
        let contact = turn.facts.get::<Contact>().and_then(|c| c.last);
        if self.means.has_controller
            && let Some((reason, text)) = silence(turn, contact)
        {
            self.order_reboot(reason, &text, turn);
        }
        let apps_run = turn.facts.get::<Guests>().is_some_and(|g| g.0.values().any(|guest| guest.running));
        let saved = *self.keeper.on_disk() == self.kept;
        if let Some(down) = &mut self.down
            && down.due(turn.now, apps_run, saved)
        {
            down.asked = Some(turn.now);
            let reboot = self.means.machine.reboot(down.record.text.clone());
            turn.start("reboot", async move { Asked(reboot.await) });
        }
    }

    /// Debugging orders, once they are on disk as followed: an order is not followed again by the agent that comes after.
    fn debug(&mut self, turn: &mut Turn<'_>) {
        if self.keeper.on_disk().debug != self.kept.debug {
            return;
        }
        for order in std::mem::take(&mut self.orders) {
            if order == debug::ABORT {
                turn.say("warning", "aborting, as the controller ordered (debug.node.abort)");
            }
            let follow = self.means.machine.debug(order);
            turn.start(order, async move { Debugged(follow.await) });
        }
    }

    fn describe(&mut self, turn: &Turn<'_>) {
        let busy = turn.facts.get::<Busy>().is_some_and(|b| b.0);
        let id = turn.facts.get::<Contact>().and_then(|c| c.device);
        let ordered = self.config.as_ref().is_some_and(|c| c.maintenance);
        let closed = turn.facts.get::<Closed>().and_then(|vault| vault.0.clone()).filter(|_| !busy);
        let maintenance = closed.or_else(|| ordered.then(|| "ordered by the controller".to_owned()));
        let state = if self.down.is_some() {
            DeviceState::Rebooting
        } else if maintenance.is_some() {
            DeviceState::Maintenance
        } else if busy {
            DeviceState::Updating
        } else if self.config.is_some() {
            DeviceState::Online
        } else {
            DeviceState::Booting
        };
        let wall = seconds_of(turn.wall);
        let up = i64::try_from(turn.now.as_secs()).unwrap_or(0);
        self.status = DeviceStatus {
            state,
            id: id.unwrap_or_default(),
            host_name: id.map_or_else(|| "holdfast".to_owned(), |id| id.to_string()),
            boot_time_seconds: if wall == 0 { 0 } else { wall - up },
            boot_count: self.means.boot.boot_count,
            last_reboot: self.last_reboot.clone(),
            maintenance: maintenance.unwrap_or_default(),
            reboot_counter: self.kept.reboot_counter.unwrap_or(0),
            shutdown_counter: self.kept.shutdown_counter.unwrap_or(0),
            config_revision: self.config.as_ref().map(|c| c.revision.clone()).unwrap_or_default(),
            ..self.means.constant.clone()
        };
    }
}

impl Part for DevicePart {
    fn name(&self) -> &'static str {
        "device"
    }

    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        self.keeper.event(event, turn);
        if let Event::Config(config) = event {
            self.take(config, turn);
        } else if let Some(RebootOrder { reason, text }) = event.news() {
            self.order_reboot(*reason, text, turn);
        } else if let Some(Measured(Err(e))) = event.news() {
            turn.say("warning", format!("phase `ready` is not measured: {e}"));
        } else if let Some(Asked(Err(e))) = event.news() {
            turn.say("error", format!("reboot: {e}; tried again in {} s", state::PATIENCE.as_secs()));
        } else if let Some(Debugged(result)) = event.news() {
            match result {
                Ok(text) => turn.say("info", text.clone()),
                Err(e) => turn.say("error", format!("a debugging order is not followed: {e}")),
            }
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        self.begin(turn);
        self.reboot_when_due(turn);
        if self.means.vault_open {
            self.keeper.keep(&self.kept, turn);
        }
        self.debug(turn);
        self.describe(turn);
        turn.facts.publish(Held(self.held()));
        turn.facts.publish(GoingDown(self.down.as_ref().map(|d| d.record.clone())));
    }

    fn observe(&self, observed: &mut Observed) {
        // What other parts say of the device stays.
        let others = std::mem::take(&mut observed.device);
        observed.device = DeviceStatus {
            trust: others.trust,
            slots: others.slots,
            attestation: others.attestation,
            troubles: others.troubles,
            ..self.status.clone()
        };
        observed.faults.extend(self.config.iter().flat_map(|config| config.faults.iter().cloned()));
    }
}

#[cfg(test)]
mod tests;
