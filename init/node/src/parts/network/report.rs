//! What is told of the networks: to the app part, to the controller part and in reports.

use super::state::State;
use crate::parts::app::decide::Readiness;
use crate::parts::app::vm::Nic;
use holdfast_engine::State as ItemState;
use holdfast_model::app::App;
use holdfast_model::net::{Prefix, Uplink};
use holdfast_model::observed::{AppInterfaceStatus, AppState, InstanceStatus, PortStatus};
use holdfast_model::trouble::{self, Object, ObjectKind, Severity, Trouble};
use holdfast_plan::kinds::Address;
use holdfast_plan::{ItemKey, TapPlan, path};
use std::net::IpAddr;
use uuid::Uuid;

/// Ways to the controller by addresses that the kernel really has.
#[must_use]
pub fn uplinks(state: &State) -> Vec<Uplink> {
    let Some(plan) = &state.plan else { return Vec::new() };
    let has = |uplink: &Uplink| {
        let (Some(interface), Some(source)) = (&uplink.interface, uplink.source) else { return false };
        let port = plan.ports.iter().find(|port| port.interface == *interface);
        let own = port.and_then(|port| port.addresses.iter().find(|own| own.address == source));
        own.is_some_and(|own: &Prefix| state.states.get(&Address::key_of(interface, *own)) == Some(&ItemState::Created))
    };
    path::controller_uplinks(&plan.ports, state.paths()).into_iter().filter(has).collect()
}

fn taps(state: &State, app: Uuid) -> Vec<&TapPlan> {
    let mut list: Vec<&TapPlan> = state.plan.iter().flat_map(|p| &p.taps).filter(|t| t.app == app).collect();
    list.sort_by_key(|t| t.index);
    list
}

/// The NICs that a start of the app would use.
///
/// # Errors
/// What is missing: a network instance that does not exist yet, or a fault.
pub fn nics(state: &State, app: &App) -> Result<Vec<Nic>, Readiness> {
    let taps = taps(state, app.id);
    let mut nics = Vec::new();
    for (index, interface) in app.interfaces.iter().enumerate() {
        let of_app = error(state, ObjectKind::App, app.id);
        if let Some(fault) = of_app.or_else(|| error(state, ObjectKind::NetworkInstance, interface.instance)) {
            return Err(Readiness::Failed(format!("app {}: {}", app.name, fault.text)));
        }
        let Some(tap) = taps.iter().find(|t| t.index == index) else {
            return Err(Readiness::Coming(AppState::AwaitNetworkInstance));
        };
        let place = ItemKey::BridgePort(tap.tap.clone());
        for key in [ItemKey::Link(tap.tap.clone()), place, ItemKey::Link(tap.bridge.clone())] {
            match state.states.get(&key) {
                // What a running VM pins is made for the next one once this one has ended.
                Some(ItemState::Created | ItemState::Kept(_)) => {}
                Some(ItemState::Failed { error, .. }) => {
                    return Err(Readiness::Failed(format!("app {}: {key}: {error}", app.name)));
                }
                _ => return Err(Readiness::Coming(AppState::AwaitNetworkInstance)),
            }
        }
        nics.push(Nic {
            tap: tap.tap.clone(),
            mac: tap.mac,
            mtu: u16::try_from(tap.mtu).unwrap_or(1500),
            queue_pairs: tap.queue_pairs,
        });
    }
    Ok(nics)
}

fn faults(state: &State, kind: ObjectKind, id: impl ToString) -> impl Iterator<Item = &Trouble> {
    let id = id.to_string();
    state.plan.iter().flat_map(|plan| &plan.faults).filter(move |fault| fault.on.is(kind, &id))
}

/// What keeps an object from its network; warnings do not.
fn error(state: &State, kind: ObjectKind, id: Uuid) -> Option<&Trouble> {
    faults(state, kind, id).find(|fault| fault.severity == Severity::Error)
}

/// What is wrong with an app's network and keeps it from nothing.
#[must_use]
pub fn app_warnings(state: &State, app: Uuid) -> Vec<Trouble> {
    faults(state, ObjectKind::App, app).filter(|fault| fault.severity != Severity::Error).cloned().collect()
}

/// Interfaces of an app as they are reported.
#[must_use]
pub fn app_interfaces(state: &State, app: Uuid) -> Vec<AppInterfaceStatus> {
    let status = |t: &TapPlan| AppInterfaceStatus {
        name: t.name.clone(),
        mac: t.mac,
        addresses: t.address.map(IpAddr::V4).into_iter().collect(),
        tap: t.tap.clone(),
    };
    taps(state, app).into_iter().map(status).collect()
}

/// Adapters as they are reported.
#[must_use]
pub fn ports(state: &State) -> Vec<PortStatus> {
    let Some(plan) = &state.plan else { return Vec::new() };
    let unused = |name: &str| {
        let source = state.fallen_back_to()?.as_str();
        let text = format!("no contact with the controller over the ports as configured: {source} are in use");
        Some(Trouble::warning(Object::new(ObjectKind::Adapter, name, name), text))
    };
    let mut list: Vec<PortStatus> = Vec::new();
    for p in &plan.ports {
        let seen = state.interfaces.get(&p.interface).copied().unwrap_or_default();
        list.push(PortStatus {
            name: p.name.clone(),
            interface: p.interface.clone(),
            mac: seen.mac,
            up: seen.up && seen.carrier,
            management: p.management,
            dhcp: p.dhcp,
            addresses: p.addresses.iter().map(|a| a.address).collect(),
            prefix_length: p.addresses.first().map_or(0, |a| a.length),
            gateways: p.gateway.into_iter().collect(),
            dns: p.dns.clone(),
            domain: p.domain.clone(),
            mtu: p.mtu,
            cost: p.cost,
            troubles: faults(state, ObjectKind::Adapter, &p.name).cloned().chain(unused(&p.name)).collect(),
        });
    }
    for fault in plan.faults.iter().filter(|f| f.on.kind == ObjectKind::Adapter) {
        if !list.iter().any(|p| p.name == fault.on.id) {
            let troubles = vec![fault.clone()];
            list.push(PortStatus { name: fault.on.id.clone(), troubles, ..PortStatus::default() });
        }
    }
    list
}

/// Network instances as they are reported.
#[must_use]
pub fn instances(state: &State) -> Vec<InstanceStatus> {
    let wanted = state.desired.iter().flat_map(|desired| &desired.instances);
    let status = |wanted: &holdfast_model::net::NetworkInstance| {
        let planned = state.plan.iter().flat_map(|p| &p.instances).find(|p| p.id == wanted.id);
        let mut troubles: Vec<Trouble> = faults(state, ObjectKind::NetworkInstance, wanted.id).cloned().collect();
        let mut keys = Vec::new();
        if let Some(p) = planned {
            keys.push(ItemKey::Link(p.bridge.clone()));
            keys.extend(p.service.as_ref().map(|s| ItemKey::Service(s.clone())));
        }
        for key in &keys {
            if let Some(ItemState::Failed { error: text, .. }) = state.states.get(key)
                && trouble::worst(&troubles) != Some(Severity::Error)
            {
                let on = Object::new(ObjectKind::NetworkInstance, wanted.id, &wanted.name);
                troubles.push(Trouble::error(on, format!("network instance {}: {key}: {text}", wanted.name)));
            }
        }
        let exists = !keys.is_empty() && keys.iter().all(|k| state.states.get(k) == Some(&ItemState::Created));
        let taps = state.plan.iter().flat_map(|p| &p.taps).filter(|t| t.instance == wanted.id);
        InstanceStatus {
            id: wanted.id,
            version: wanted.version.clone(),
            name: wanted.name.clone(),
            kind: wanted.kind,
            activated: exists && wanted.activate,
            bridge: planned.map(|p| p.bridge.clone()).unwrap_or_default(),
            address: planned.and_then(|p| p.address).map(|a| a.address),
            uplink: planned.and_then(|p| p.uplink_adapter.clone()).unwrap_or_default(),
            assignments: taps.clone().filter_map(|t| t.address.map(|a| (t.mac, IpAddr::V4(a)))).collect(),
            interfaces: taps.map(|t| (t.tap.clone(), t.mac, t.app)).collect(),
            troubles,
        }
    };
    wanted.map(status).collect()
}
