//! Apps: each runs in its own virtual machine.
//!
//! Principles:
//! 1. What is to be done about an app is one pure decision ([`decide`]) over one record ([`record`]).
//! 2. A counter is acted on once: it is on disk before the virtual machine that it orders starts.
//! 3. An app with a fault runs on; nothing of it is forgotten until the config is certain not to have it.
//! 4. PID 1 says what runs. Before it has, nothing is started.
//!
//! Reading order: [`facts`], [`decide`], [`needs`], [`record`], [`kept`], [`vm`] and [`machines`], `acting`.

mod acting;
pub mod decide;
pub mod facts;
pub mod kept;
pub mod machines;
pub mod needs;
pub mod record;
pub mod vm;

use self::decide::{Readiness, Step, World, decide, decide_unsure};
use self::facts::{Guest, Guests, HeldVolumes, Purges, WantedVolumes};
use self::kept::Kept;
use self::machines::{Machines, Units};
use self::needs::Known;
use self::record::{AppRecord, Change};
use self::vm::{Plan, app_of};
use crate::keeper::{Keeper, Said};
use crate::part::{Event, Part, Turn};
use crate::parts::content::facts::Images;
use crate::parts::device::facts::Held;
use crate::parts::network::facts::{AppInterfaces, AppWarnings, Nics};
use crate::parts::volume::facts::Volumes;
use crate::setup::Setup;
use crate::unsure::Unsure;
use holdfast_model::app::App;
use holdfast_model::desired::Desired;
use holdfast_model::observed::{AppState, AppStatus, Observed};
use holdfast_model::trouble::ObjectKind;
use holdfast_supervise::UnitStatus;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// File of the part below the data folder.
pub const FILE: &str = "status/app.json";

/// The part on a real machine.
///
/// # Errors
/// Never.
pub fn new(setup: &Setup, kept: Option<&[u8]>) -> anyhow::Result<Box<dyn Part>> {
    let machines = Units { supervisor: setup.supervisor.clone(), control: setup.paths.control() };
    Ok(Box::new(AppPart::over(Rc::new(machines), setup.kept(FILE, kept))))
}

/// The part.
pub struct AppPart {
    machines: Rc<dyn Machines>,
    apps: BTreeMap<Uuid, AppRecord>,
    keeper: Keeper<Kept>,
    /// PID 1 has said what runs.
    units_known: bool,
    wanted: WantedVolumes,
    purges: Purges,
    status: Vec<AppStatus>,
    said: Said,
}

/// What other parts say, taken once for a pass.
struct Facts {
    images: Images,
    volumes: Volumes,
    nics: Nics,
    interfaces: AppInterfaces,
    warnings: AppWarnings,
    held: Option<String>,
}

/// What a pass over the apps looks at.
#[derive(Clone, Copy)]
struct Pass<'a> {
    desired: &'a Desired,
    facts: &'a Facts,
}

impl Facts {
    fn of(turn: &Turn<'_>) -> Self {
        fn get<T: Clone + Default + 'static>(turn: &Turn<'_>) -> T {
            turn.facts.get::<T>().cloned().unwrap_or_default()
        }
        Self {
            images: get(turn),
            volumes: get(turn),
            nics: get(turn),
            interfaces: get(turn),
            warnings: get(turn),
            held: get::<Held>(turn).0,
        }
    }
}

impl AppPart {
    /// A part that goes on from what was kept.
    #[must_use]
    pub fn over(machines: Rc<dyn Machines>, kept: Kept) -> Self {
        let mut numbered = kept.clone();
        let mut apps = BTreeMap::new();
        for (id, app) in &kept.apps {
            let record = AppRecord::recall(app, numbered.free_number());
            numbered.apps.insert(*id, record.kept());
            apps.insert(*id, record);
        }
        Self {
            machines,
            apps,
            keeper: Keeper::new(FILE, kept),
            units_known: false,
            wanted: WantedVolumes::default(),
            purges: Purges::default(),
            status: Vec::new(),
            said: Said::default(),
        }
    }

    fn kept(&self) -> Kept {
        Kept { apps: self.apps.iter().map(|(id, record)| (*id, record.kept())).collect() }
    }

    /// The record of an app, made when there is none.
    fn record(&mut self, id: Uuid) -> &mut AppRecord {
        if !self.apps.contains_key(&id) {
            let number = self.kept().free_number();
            self.apps.insert(id, AppRecord { name: id.to_string(), number, ..AppRecord::default() });
        }
        self.apps.entry(id).or_default()
    }

    fn unit(&mut self, status: &UnitStatus, turn: &mut Turn<'_>) {
        let Some(id) = app_of(&status.name) else { return };
        let record = self.record(id);
        let change = record.unit(status, turn.now);
        let name = &record.name;
        match change {
            Change::None => {}
            Change::Runs => turn.say("info", format!("app {name}: VM started")),
            Change::Ended(decide::Ending::Clean) => turn.say("info", format!("app {name}: ended")),
            Change::Ended(decide::Ending::Reboot) => turn.say("info", format!("app {name}: the guest restarts")),
            Change::Ended(decide::Ending::Fault(text)) => turn.say("info", format!("app {name}: {text}")),
        }
    }

    /// Everything that PID 1 knows: a virtual machine that is not in the list has ended.
    fn units(&mut self, list: &[UnitStatus], turn: &mut Turn<'_>) {
        self.units_known = true;
        list.iter().for_each(|status| self.unit(status, turn));
        let listed: BTreeSet<Uuid> = list.iter().filter_map(|s| app_of(&s.name)).collect();
        for (id, record) in &mut self.apps {
            if !listed.contains(id) {
                record.vanished(turn.now);
            }
        }
    }

    fn decide_all(&mut self, pass: Pass<'_>, turn: &mut Turn<'_>) {
        let desired = pass.desired;
        for app in &desired.apps {
            self.record(app.id).name.clone_from(&app.name);
        }
        let unsure = Unsure::of(desired, ObjectKind::App);
        let ids: Vec<Uuid> = self.apps.keys().copied().collect();
        self.wanted.0.clear();
        self.purges.0.clear();
        for id in ids {
            let app = desired.apps.iter().find(|a| a.id == id);
            if app.is_none() && unsure.may_want(&id) {
                let text = unsure.fault(&id).unwrap_or("an app of the config has a fault and no id; this one is kept");
                let record = self.record(id);
                let verdict = decide_unsure(text, &record.runtime);
                record.decided(&verdict);
                continue;
            }
            self.decide_one(id, app, pass, turn);
        }
    }

    fn decide_one(&mut self, id: Uuid, app: Option<&App>, pass: Pass<'_>, turn: &mut Turn<'_>) {
        let Pass { desired, facts } = pass;
        let known = Known { desired, images: &facts.images, volumes: &facts.volumes, nics: facts.nics.0.get(&id) };
        let number = self.record(id).number;
        let needs = app.map(|a| needs::of(a, number, &known, a.activate && facts.held.is_none()));
        let (readiness, plan, volumes) = match needs {
            None => (Readiness::Ready, None, Vec::new()),
            Some(needs) => match needs.plan {
                Ok(plan) => (Readiness::Ready, Some(plan), needs.volumes),
                Err(readiness) => (readiness, None, needs.volumes),
            },
        };
        let world = World {
            readiness,
            tag: plan.as_ref().map(Plan::tag).unwrap_or_default(),
            now: turn.now,
            held: facts.held.clone(),
            boot_retry: Duration::from_secs(desired.properties.boot_retry_seconds.into()),
        };
        let record = self.record(id);
        let verdict = decide(app, &record.runtime, &world);
        record.decided(&verdict);
        if verdict.state == AppState::Error && !verdict.error.is_empty() {
            let again = if verdict.retry.is_empty() { "" } else { "; " };
            self.said.once(turn, "error", &format!("{}{again}{}", verdict.error, verdict.retry));
        }
        if app.is_some_and(|a| a.activate) && facts.held.is_none() && verdict.step != Step::Purge {
            self.wanted.0.extend(volumes);
        }
        self.act(id, app, plan, verdict.step, pass, turn);
    }

    fn publish(&mut self, facts: &Facts, turn: &mut Turn<'_>) {
        let guest = |r: &AppRecord| Guest { uid: r.uid(), running: r.runtime.has_vm() };
        turn.facts.publish(Guests(self.apps.iter().map(|(id, r)| (*id, guest(r))).collect()));
        if self.units_known {
            let live = self.apps.values().filter(|r| r.runtime.has_vm());
            turn.facts.publish(HeldVolumes(live.flat_map(|r| r.volumes.iter().copied()).collect()));
        }
        turn.facts.publish(self.wanted.clone());
        turn.facts.publish(self.purges.clone());
        let Some(desired) = turn.config else { return };
        let unsure = Unsure::of(desired, ObjectKind::App);
        self.status.clear();
        for (id, record) in &mut self.apps {
            record.note_boot_time(turn.now, turn.wall);
            let app = desired.apps.iter().find(|a| a.id == *id);
            if app.is_some() || unsure.may_want(id) {
                let interfaces = facts.interfaces.0.get(id).cloned().unwrap_or_default();
                let mut status = record.status(*id, app, interfaces);
                status.troubles.extend(facts.warnings.0.get(id).cloned().unwrap_or_default());
                self.status.push(status);
            }
        }
    }
}

impl Part for AppPart {
    fn name(&self) -> &'static str {
        "app"
    }

    fn event(&mut self, event: &Event, turn: &mut Turn<'_>) {
        self.keeper.event(event, turn);
        match event {
            Event::Units(list) => self.units(list, turn),
            Event::Unit(status) => self.unit(status, turn),
            Event::News(_) => self.acted(event, turn),
            Event::Config(_) | Event::UnitRemoved(_) | Event::Logs => {}
        }
    }

    fn turn(&mut self, turn: &mut Turn<'_>) {
        let facts = Facts::of(turn);
        // Before any config it is not known which apps are wanted: what runs goes on.
        if let Some(desired) = turn.config.cloned().filter(|_| self.units_known) {
            self.decide_all(Pass { desired: &desired, facts: &facts }, turn);
        }
        self.keeper.keep(&self.kept(), turn);
        self.publish(&facts, turn);
    }

    fn observe(&self, observed: &mut Observed) {
        observed.apps.extend(self.status.iter().cloned());
    }
}

#[cfg(test)]
pub(crate) mod tests;
