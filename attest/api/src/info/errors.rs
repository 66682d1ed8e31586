//! From [`Trouble`] to `ErrorInfo`: the only place where EVE's errors are made.

use crate::proto::info::{DeviceEntity, Entity, ErrorInfo, Severity as WireSeverity};
use holdfast_model::trouble::{Object, ObjectKind, Severity, Trouble};
use prost_types::Timestamp;

/// A trouble as EVE says it. The entities are the object itself, then the one that causes it.
pub(super) fn error(trouble: &Trouble) -> ErrorInfo {
    ErrorInfo {
        description: trouble.text.clone(),
        timestamp: super::stamp(trouble.since_seconds),
        severity: severity(trouble.severity).into(),
        entities: std::iter::once(&trouble.on).chain(&trouble.cause).map(entity).collect(),
        retry_condition: trouble.retry.as_ref().map(|retry| retry.condition.clone()).unwrap_or_default(),
    }
}

/// All troubles of an object whose message has room for several errors.
pub(super) fn errors<'a>(troubles: impl IntoIterator<Item = &'a Trouble>) -> Vec<ErrorInfo> {
    troubles.into_iter().map(error).collect()
}

/// All troubles of an object whose message has room for one error: the worst one, the texts of the others behind its own, since
/// the earliest.
pub(super) fn merged<'a>(troubles: impl IntoIterator<Item = &'a Trouble>) -> Option<ErrorInfo> {
    let mut all: Vec<&Trouble> = troubles.into_iter().collect();
    all.sort_by_key(|trouble| std::cmp::Reverse(trouble.severity));
    let (worst, others) = all.split_first()?;
    let mut merged = error(worst);
    for other in others {
        let next = error(other);
        merged.description = format!("{}; {}", merged.description, next.description);
        merged.timestamp = [merged.timestamp, next.timestamp].into_iter().flatten().min_by_key(seconds);
        for entity in next.entities {
            if !merged.entities.contains(&entity) {
                merged.entities.push(entity);
            }
        }
        if merged.retry_condition.is_empty() {
            merged.retry_condition = next.retry_condition;
        }
    }
    Some(merged)
}

fn seconds(stamp: &Timestamp) -> i64 {
    stamp.seconds
}

fn severity(severity: Severity) -> WireSeverity {
    match severity {
        Severity::Notice => WireSeverity::Notice,
        Severity::Warning => WireSeverity::Warning,
        Severity::Error => WireSeverity::Error,
    }
}

fn entity(object: &Object) -> DeviceEntity {
    let entity = match object.kind {
        // EVE has no word for these.
        ObjectKind::Device | ObjectKind::Property | ObjectKind::Datastore => Entity::Unspecified,
        ObjectKind::Port => Entity::Port,
        ObjectKind::Adapter => Entity::SystemAdapter,
        ObjectKind::Network => Entity::Network,
        ObjectKind::NetworkInstance => Entity::NetworkInstance,
        ObjectKind::Content => Entity::ContentTree,
        ObjectKind::Volume => Entity::Volume,
        ObjectKind::App => Entity::AppInstance,
        ObjectKind::BaseOs => Entity::BaseOs,
        ObjectKind::Attestation => Entity::Attestation,
        ObjectKind::Vault => Entity::Vault,
    };
    DeviceEntity { entity: entity.into(), entity_id: object.id.clone(), entity_name: object.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(severity: Severity, text: &str, since_seconds: i64) -> Trouble {
        let on = Object::new(ObjectKind::Volume, "v", "data");
        Trouble { severity, since_seconds, ..Trouble::error(on, text) }
    }

    #[test]
    fn severity_time_condition_and_cause_arrive() {
        let cause = Object::new(ObjectKind::Content, "c", "image");
        let said = error(&trouble(Severity::Warning, "slow", 1000).caused_by(cause).retried("when the server answers"));
        assert_eq!(said.severity(), WireSeverity::Warning);
        assert_eq!(said.timestamp, Some(Timestamp { seconds: 1000, nanos: 0 }));
        assert_eq!(said.retry_condition, "when the server answers");
        let entities: Vec<_> = said.entities.iter().map(|e| (e.entity(), e.entity_name.as_str())).collect();
        assert_eq!(entities, [(Entity::Volume, "data"), (Entity::ContentTree, "image")]);
    }

    #[test]
    fn where_there_is_room_for_one_error_the_worst_leads_and_none_is_lost() {
        assert_eq!(merged(&[]), None);
        let all = [trouble(Severity::Warning, "a", 5), trouble(Severity::Error, "b", 9)];
        let said = merged(&all).expect("an error");
        assert_eq!((said.severity(), said.description.as_str()), (WireSeverity::Error, "b; a"));
        assert_eq!(said.timestamp.expect("a time").seconds, 5);
        assert_eq!(said.entities.len(), 1);
    }
}
