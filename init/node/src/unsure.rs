//! Objects of the config that have a fault: what they are to be is not known, and yet they are not deleted.

use holdfast_model::desired::Desired;
use holdfast_model::trouble::{ObjectKind, Severity};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The objects of one kind that have a fault and no usable form in the config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsure {
    by_id: BTreeMap<Uuid, String>,
    /// Some object has a fault and an id that is no UUID, so it may be any.
    unnamed: bool,
}

impl Unsure {
    /// Those of `kind` in the config.
    #[must_use]
    pub fn of(desired: &Desired, kind: ObjectKind) -> Self {
        let mut unsure = Self::default();
        for fault in desired.faults.iter().filter(|f| f.on.kind == kind && f.severity == Severity::Error) {
            match Uuid::try_parse(&fault.on.id) {
                Ok(id) => drop(unsure.by_id.entry(id).or_insert_with(|| fault.text.clone())),
                Err(_) => unsure.unnamed = true,
            }
        }
        unsure
    }

    /// True when an object of this id that the config does not have may still be wanted.
    #[must_use]
    pub fn may_want(&self, id: &Uuid) -> bool {
        self.unnamed || self.by_id.contains_key(id)
    }

    /// The fault of an object that the config names.
    #[must_use]
    pub fn fault(&self, id: &Uuid) -> Option<&str> {
        self.by_id.get(id).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_model::trouble::{Object, Trouble};

    #[test]
    fn an_object_with_a_fault_may_be_wanted_and_one_without_a_name_may_be_any() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let fault = |kind, id: &str| Trouble::error(Object::new(kind, id, "x"), "typo");
        let mut desired = Desired { faults: vec![fault(ObjectKind::App, &a.to_string())], ..Desired::default() };
        let unsure = Unsure::of(&desired, ObjectKind::App);
        assert_eq!((unsure.may_want(&a), unsure.may_want(&b), unsure.fault(&a)), (true, false, Some("typo")));
        assert!(!Unsure::of(&desired, ObjectKind::Volume).may_want(&a));
        desired.faults.push(fault(ObjectKind::App, "not-a-uuid"));
        let unsure = Unsure::of(&desired, ObjectKind::App);
        assert_eq!((unsure.may_want(&b), unsure.fault(&b)), (true, None));
    }
}
