//! An object that gets a fault keeps the form in which it was good: a typo stops no app, deletes no image and cuts off no port.

use super::is_about;
use crate::desired::Desired;
use crate::trouble::{ObjectKind, Severity, Trouble};
use uuid::Uuid;

/// How a fault ends whose object goes on as it was.
const STAYS: &str = "the last good configuration stays in force";
/// How faults end whose object is left out.
const LEFT_OUT: [&str; 5] = [" is not run", " is not made", " is not used", " is not fetched", "no update is started"];

/// Puts back into `new` what it lacks because of a fault and `last` had, in the form of `last`, with what that form refers to. What the
/// config has no more is gone, fault or not.
///
/// Counters (restart, purge) that grew together with the fault are part of the new form: they are acted on once it is repaired.
pub fn keep_last_good(last: &Desired, new: &mut Desired) {
    let Desired { faults, ports, links, adapters, instances, datastores, contents, volumes, apps, base_os, .. } = new;
    let by_id = |kind, id: Uuid, name: &str| faults.iter().position(|t| is_error(t) && is_about(t, kind, id, name));
    let by_label = |kind, label: &str| faults.iter().position(|t| is_error(t) && t.on.is(kind, label));
    let mut kept = Vec::new();

    use ObjectKind as K;
    keep(&last.ports, ports, |o| &o.label, |o| by_label(K::Port, &o.label), &mut kept);
    keep(&last.links, links, |o| &o.label, |o| by_label(K::Port, &o.label), &mut kept);
    keep(&last.adapters, adapters, |o| &o.name, |o| by_label(K::Adapter, &o.name), &mut kept);
    keep(&last.instances, instances, |o| &o.id, |o| by_id(K::NetworkInstance, o.id, &o.name), &mut kept);
    keep(&last.datastores, datastores, |o| &o.id, |o| by_id(K::Datastore, o.id, &o.host), &mut kept);
    keep(&last.contents, contents, |o| &o.id, |o| by_id(K::Content, o.id, &o.name), &mut kept);
    keep(&last.volumes, volumes, |o| &o.id, |o| by_id(K::Volume, o.id, &o.name), &mut kept);
    let kept_apps = keep(&last.apps, apps, |o| &o.id, |o| by_id(K::App, o.id, &o.name), &mut kept);
    let of_base_os = faults.iter().position(|t| is_error(t) && t.on.kind == K::BaseOs);
    if let (None, Some(base), Some(fault)) = (&base_os, &last.base_os, of_base_os) {
        *base_os = Some(base.clone());
        kept.push(fault);
    }
    for index in kept {
        let text = &mut faults[index].text;
        let cause = text.rsplit_once("; ").filter(|(_, end)| LEFT_OUT.iter().any(|known| end.ends_with(known)));
        *text = format!("{}; {STAYS}", cause.map_or(text.as_str(), |(cause, _)| cause));
    }

    // What the kept forms refer to.
    for app in apps.iter().filter(|app| kept_apps.contains(&app.id)) {
        for interface in &app.interfaces {
            complete(&last.instances, instances, |o| o.id == interface.instance);
        }
        for reference in &app.volumes {
            let fits = |o: &crate::storage::Volume| o.id == reference.volume && o.generation == reference.generation;
            if !volumes.iter().any(fits)
                && let Some(old) = last.volumes.iter().find(|o| fits(o))
            {
                volumes.retain(|o| o.id != old.id);
                volumes.push(old.clone());
            }
        }
    }
    let wanted = volumes.iter().filter_map(|volume| volume.origin.content()).chain(base_os.as_ref().map(|b| b.content));
    for content in wanted {
        complete(&last.contents, contents, |o| o.id == content);
    }
    for content in contents.iter().filter(|c| last.contents.contains(c)) {
        for store in &content.datastores {
            complete(&last.datastores, datastores, |o| o.id == *store);
        }
    }
}

fn is_error(trouble: &Trouble) -> bool {
    trouble.severity == Severity::Error
}

/// Puts back what `new` lacks and `fault` explains, at its old place; gives the keys of what came back.
fn keep<O: Clone, K: Clone + PartialEq>(
    last: &[O],
    new: &mut Vec<O>,
    key: impl Fn(&O) -> &K,
    fault: impl Fn(&O) -> Option<usize>,
    kept: &mut Vec<usize>,
) -> Vec<K> {
    let mut back = Vec::new();
    for (index, old) in last.iter().enumerate() {
        if new.iter().all(|o| key(o) != key(old))
            && let Some(fault) = fault(old)
        {
            new.insert(index.min(new.len()), old.clone());
            back.push(key(old).clone());
            if !kept.contains(&fault) {
                kept.push(fault);
            }
        }
    }
    back
}

/// Adds the object of `last` that `is` means when `new` has none.
fn complete<O: Clone>(last: &[O], new: &mut Vec<O>, is: impl Fn(&O) -> bool) {
    if !new.iter().any(&is) {
        new.extend(last.iter().find(|o| is(o)).cloned());
    }
}

#[cfg(test)]
mod tests;
