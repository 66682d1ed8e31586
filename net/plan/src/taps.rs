//! Interfaces of apps: the taps that their VMs stand on.

use crate::address::{Space, Wish, allocate, key};
use crate::instances::{InstancePlan, Instances};
use crate::ports::PortPlan;
use crate::{Input, names};
use holdfast_model::app::App;
use holdfast_model::net::{Mac, Rule, RuleAction, mac_text};
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use uuid::Uuid;

/// Queue pairs of one NIC: more than this many processors of a guest rarely wait for the network at once.
const MAX_NIC_PAIRS: u32 = 4;
/// Queue pairs of all NICs of an app: each is two descriptors that travel to the VMM in one packet, which takes 64 in all.
const MAX_APP_PAIRS: u32 = 16;
/// NICs of an app: one more would exceed its queue pairs.
pub(crate) const MAX_APP_NICS: usize = MAX_APP_PAIRS as usize;

/// An app's interface as planned.
#[derive(Debug, Clone, PartialEq)]
pub struct TapPlan {
    /// The app.
    pub app: Uuid,
    /// Number of the interface in the app.
    pub index: usize,
    /// Name used in info and metrics.
    pub name: String,
    /// Instance.
    pub instance: Uuid,
    /// Bridge.
    pub bridge: String,
    /// Tap.
    pub tap: String,
    /// MAC of the guest's NIC.
    pub mac: Mac,
    /// Address that DHCP gives (`Local`).
    pub address: Option<Ipv4Addr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Queue pairs of the guest's NIC, as [`queue_pairs`] says.
    pub queue_pairs: u16,
    /// Access rules in order.
    pub rules: Vec<Rule>,
}

impl TapPlan {
    /// The tap has to be one for several queues.
    #[must_use]
    pub fn multi_queue(&self) -> bool {
        self.queue_pairs > 1
    }
}

/// Queue pairs of each of an app's `nics` virtio-net cards: one for each vCPU up to 4, and all cards alike, so that they have
/// at most 16 together (a card has at least one, an app at most 16 cards).
#[must_use]
pub fn queue_pairs(vcpus: u32, nics: usize) -> u16 {
    let nics = u32::try_from(nics).unwrap_or(u32::MAX).max(1);
    let pairs = vcpus.min(MAX_NIC_PAIRS).min(MAX_APP_PAIRS / nics).max(1);
    u16::try_from(pairs).unwrap_or(1)
}

pub(crate) fn app_fault(app: &App, interface: &str, text: &str) -> Trouble {
    Trouble::error(object(app), format!("app {} interface {interface}: {text}", app.name))
}

fn object(app: &App) -> Object {
    Object::new(ObjectKind::App, app.id, &app.name)
}

/// The interfaces in one instance, and the addresses to keep.
pub(crate) fn plan(
    input: &Input,
    instance: &InstancePlan,
    space: Option<&Space<Ipv4Addr>>,
    faults: &mut Vec<Trouble>,
) -> (Vec<TapPlan>, BTreeMap<String, Ipv4Addr>) {
    let members: Vec<_> = input
        .desired
        .apps
        .iter()
        .flat_map(|app| app.interfaces.iter().enumerate().map(move |(i, f)| (app, i, f)))
        .filter(|(_, _, f)| f.instance == instance.id)
        .collect();
    let wishes: Vec<Wish<Ipv4Addr>> =
        members.iter().map(|(app, index, f)| Wish { key: key(app.id, *index), fixed: f.fixed.v4 }).collect();
    let nothing = BTreeMap::new();
    let kept = input.allocations.v4.get(&instance.id).unwrap_or(&nothing);
    let given = space.map(|space| allocate(space, kept, &wishes)).unwrap_or_default();
    let mut macs: BTreeSet<Mac> = BTreeSet::new();
    let mut taps = Vec::new();
    let mut keep = BTreeMap::new();
    for (app, index, f) in members {
        if index >= MAX_APP_NICS {
            let all = app.interfaces.len();
            let text = format!("interface {} of {all}: an app has at most {MAX_APP_NICS}; merge networks", index + 1);
            faults.push(app_fault(app, &f.name, &text));
            continue;
        }
        let address = match given.get(&key(app.id, index)) {
            None => None,
            Some(Ok(ip)) => Some(*ip),
            Some(Err(text)) => {
                faults.push(app_fault(app, &f.name, text));
                continue;
            }
        };
        let mac = f.mac.unwrap_or_else(|| names::app_mac(app.id, index));
        if mac[0] & 1 != 0 || mac == [0; 6] || !macs.insert(mac) {
            let text = format!("MAC {} is not a unicast address or is used twice", mac_text(mac));
            faults.push(app_fault(app, &f.name, &text));
            continue;
        }
        keep.extend(address.map(|ip| (key(app.id, index), ip)));
        taps.push(TapPlan {
            app: app.id,
            index,
            name: f.name.clone(),
            instance: instance.id,
            bridge: instance.bridge.clone(),
            tap: names::tap(app.id, index),
            mac,
            address,
            mtu: instance.mtu,
            queue_pairs: queue_pairs(app.vcpus, app.interfaces.len()),
            rules: f.rules.clone(),
        });
    }
    (taps, keep)
}

/// Interfaces whose instance is missing, and rules that name an adapter which cannot be theirs.
pub(crate) fn check(input: &Input, ports: &[PortPlan], made: &Instances, faults: &mut Vec<Trouble>) {
    for app in &input.desired.apps {
        for interface in &app.interfaces {
            let Some(instance) = made.instances.iter().find(|i| i.id == interface.instance) else {
                let id = interface.instance;
                let cause = input.desired.instances.iter().find(|i| i.id == id).map_or("", |i| &i.name);
                let fault =
                    app_fault(app, &interface.name, &format!("network instance {id} is missing or has an error"));
                faults.push(fault.caused_by(Object::new(ObjectKind::NetworkInstance, id, cause)));
                continue;
            };
            for rule in &interface.rules {
                if let Some(text) = misplaced(rule, instance, ports) {
                    let text = format!("app {} interface {}: rule {}: {text}", app.name, interface.name, rule.id);
                    faults.push(Trouble::warning(object(app), text));
                }
            }
        }
    }
}

/// Why a rule for one adapter has no effect. One that keeps something out has none where nothing comes in either.
fn misplaced(rule: &Rule, instance: &InstancePlan, ports: &[PortPlan]) -> Option<String> {
    let adapter = Some(&rule.adapter).filter(|adapter| !adapter.is_empty())?;
    let uplink = ports.iter().find(|p| Some(&p.interface) == instance.uplink.as_ref());
    if uplink.is_some_and(|p| p.answers_to(adapter)) {
        return None;
    }
    if !ports.iter().any(|p| p.answers_to(adapter)) {
        return Some(format!("adapter {adapter:?} is not an adapter or label of this device; the rule has no effect"));
    }
    let uplink = uplink.map_or("it has none", |p| p.name.as_str());
    (rule.action != RuleAction::Drop).then(|| {
        format!(
            "adapter {adapter:?} is not the uplink of network instance {} ({uplink}); the rule has no effect",
            instance.name
        )
    })
}
