//! Names what a config asks for and this version does not do: each field that is set and not acted on, as a warning on the nearest
//! object. So nothing that an operator writes is swallowed.
//!
//! The walk goes over the bytes as they came, along the table of field names that `build.rs` makes from the `.proto` files, so fields
//! newer than these are named too, by number.

use super::acted::{ACTED, INERT, REFUSED, VALUES};
use super::wire::{Value, each};
use super::{device_id, limits, quoted};
use crate::proto::config::EdgeDevConfig;
use holdfast_model::trouble::{Object, ObjectKind, Trouble};
use std::collections::BTreeMap;

/// A message of the config.
pub(super) struct Message {
    /// Its name, without package.
    pub(super) name: &'static str,
    /// Number, name, and index in `MESSAGES` of the field's own message.
    pub(super) fields: &'static [(u32, &'static str, Option<usize>)],
}

include!(concat!(env!("OUT_DIR"), "/config_fields.rs"));

/// What this version does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It or all in it is read, refused elsewhere, or not worth a word.
    Known,
    /// Something in it is: look further.
    Partly,
    /// Nothing of it is.
    Unsupported,
}

/// What the lists say about a path.
pub(super) fn treatment(path: &str) -> Treatment {
    let mut listed = ACTED.iter().chain(REFUSED).chain(INERT.iter().map(|(path, _)| path));
    let below = |listed: &&str| listed.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    match listed.clone().any(|listed| *listed == path) {
        true => Treatment::Known,
        false if listed.any(below) => Treatment::Partly,
        false => Treatment::Unsupported,
    }
}

/// The warnings for a config, at most one for each object; `encoded` is the config as it came.
pub(super) fn warnings(config: &EdgeDevConfig, encoded: &[u8]) -> Vec<Trouble> {
    let mut found: BTreeMap<Object, Vec<String>> = BTreeMap::new();
    let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
    each(encoded, |number, value| {
        let count = seen.entry(number).or_default();
        let index = *count;
        *count += 1;
        let mut fields = Vec::new();
        let object = match MESSAGES[0].fields.iter().find(|field| field.0 == number) {
            Some((_, name, _)) if index < limits::OBJECTS => {
                let object = object(config, name, index);
                // The name of the list that the object stands in goes without saying.
                let shown = if object.is_some() { "" } else { name };
                field(0, number, value, "", shown, &mut fields);
                object
            }
            Some(_) => None,
            None => {
                fields.push(unknown(&MESSAGES[0], number));
                None
            }
        };
        if !fields.is_empty() {
            let named = found.entry(object.unwrap_or_else(|| device(config))).or_default();
            for field in fields {
                if !named.contains(&field) {
                    named.push(field);
                }
            }
        }
    });
    found.into_iter().map(|(object, fields)| Trouble::warning(object, text(&fields))).collect()
}

fn text(fields: &[String]) -> String {
    let more = fields.len().saturating_sub(limits::NAMED_FIELDS);
    let and = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{and}: not supported by this version; ignored", fields[..fields.len() - more].join(", "))
}

fn unknown(message: &Message, number: u32) -> String {
    format!("field {number} of {}", message.name)
}

/// Looks at one field of the message at `index`: `path` leads to the message, `shown` is how the field is named.
fn field(index: usize, number: u32, value: Value<'_>, path: &str, shown: &str, found: &mut Vec<String>) {
    let message = &MESSAGES[index];
    if matches!(value, Value::Number(0) | Value::Bytes([])) {
        return; // as if it were not set
    }
    let Some((_, name, below)) = message.fields.iter().find(|field| field.0 == number) else {
        return found.push(unknown(message, number));
    };
    let path = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
    match (treatment(&path), below, value) {
        (Treatment::Known, ..) => found.extend(value_treated_alike(&path, shown, value)),
        (Treatment::Partly, Some(below), Value::Bytes(bytes)) => each(bytes, |number, value| {
            let next = MESSAGES[*below].fields.iter().find(|field| field.0 == number).map_or("", |field| field.1);
            let shown = if shown.is_empty() { next.to_owned() } else { format!("{shown}.{next}") };
            field(*below, number, value, &path, &shown, found);
        }),
        _ => found.push(if shown.is_empty() { (*name).to_owned() } else { shown.to_owned() }),
    }
}

fn value_treated_alike(path: &str, shown: &str, value: Value<'_>) -> Option<String> {
    let Value::Number(number) = value else { return None };
    let (.., instead) = VALUES.iter().find(|(other, values, _)| *other == path && values.contains(&number))?;
    Some(format!("{shown} {number} ({instead})"))
}

fn device(config: &EdgeDevConfig) -> Object {
    Object::new(ObjectKind::Device, quoted(device_id(config)), &quoted(&config.device_name))
}

/// The object that stands at `index` in a list of the config; `None` for what belongs to the device as a whole. Ids and names are those
/// of the object's faults.
fn object(config: &EdgeDevConfig, list: &str, index: usize) -> Option<Object> {
    let uuid = |id: &Option<crate::proto::config::UuiDandVersion>| id.as_ref().map_or("", |id| &id.uuid).to_owned();
    let (kind, id, name) = match list {
        "apps" => config.apps.get(index).map(|o| (ObjectKind::App, uuid(&o.uuidandversion), &o.displayname)),
        "networks" => config.networks.get(index).map(|o| (ObjectKind::Network, o.id.clone(), &o.id)),
        "datastores" => config.datastores.get(index).map(|o| (ObjectKind::Datastore, o.id.clone(), &o.fqdn)),
        "systemAdapterList" => {
            config.system_adapter_list.get(index).map(|o| (ObjectKind::Adapter, o.name.clone(), &o.name))
        }
        "deviceIoList" => {
            let label = super::network::label;
            config.device_io_list.get(index).map(|o| (ObjectKind::Port, label(o).to_owned(), &o.logicallabel))
        }
        "vlans" => config.vlans.get(index).map(|o| (ObjectKind::Port, o.logicallabel.clone(), &o.logicallabel)),
        "bonds" => config.bonds.get(index).map(|o| (ObjectKind::Port, o.logicallabel.clone(), &o.logicallabel)),
        "pnacs" => config.pnacs.get(index).map(|o| (ObjectKind::Port, o.logicallabel.clone(), &o.logicallabel)),
        "networkInstances" => {
            let all = &config.network_instances;
            all.get(index).map(|o| (ObjectKind::NetworkInstance, uuid(&o.uuidandversion), &o.displayname))
        }
        "contentInfo" => config.content_info.get(index).map(|o| (ObjectKind::Content, o.uuid.clone(), &o.display_name)),
        "volumes" => config.volumes.get(index).map(|o| (ObjectKind::Volume, o.uuid.clone(), &o.display_name)),
        "baseos" => {
            config.baseos.as_ref().map(|o| (ObjectKind::BaseOs, o.content_tree_uuid.clone(), &o.base_os_version))
        }
        _ => None,
    }?;
    Some(Object::new(kind, quoted(&id), &quoted(name)))
}

#[cfg(test)]
mod tests;
