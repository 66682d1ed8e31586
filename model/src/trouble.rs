//! Trouble: one thing that is wrong, on one object, in the words that reach console, log and info message alike.
//!
//! A text says what was expected, what was found and what happens next. It holds no running numbers (seconds left, attempts):
//! when something is tried again belongs in [`Retry`], so that a trouble that lasts stays the same value.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Kinds of objects that trouble may belong to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// The device as a whole.
    #[default]
    Device,
    /// A device property.
    Property,
    /// A physical port.
    Port,
    /// A system adapter.
    Adapter,
    /// An IP parameter set.
    Network,
    /// A network instance.
    NetworkInstance,
    /// A datastore.
    Datastore,
    /// A content tree.
    Content,
    /// A volume.
    Volume,
    /// An app instance.
    App,
    /// The base OS; the id is that of its content tree, or the letter of a slot.
    BaseOs,
    /// Attestation.
    Attestation,
    /// The vault.
    Vault,
}

/// The object that a trouble is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Object {
    /// What kind of object.
    pub kind: ObjectKind,
    /// Its id as the config gives it: a UUID text, a logical label for ports and adapters, a key for properties; empty for what
    /// the device has one of.
    pub id: String,
    /// Its display name, or the id again.
    pub name: String,
}

impl Object {
    /// An object by id and display name; without a name the id stands in.
    #[must_use]
    pub fn new(kind: ObjectKind, id: impl ToString, name: &str) -> Self {
        let id = id.to_string();
        let name = if name.is_empty() { id.clone() } else { name.to_owned() };
        Self { kind, id, name }
    }

    /// True for the object of this kind and id, whatever its name.
    #[must_use]
    pub fn is(&self, kind: ObjectKind, id: &str) -> bool {
        self.kind == kind && self.id == id
    }
}

/// How bad it is (EVE `Severity`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing; nothing is lost.
    Notice,
    /// The object works, but not all that was asked for is done.
    Warning,
    /// The object does not work, or not as the config asks.
    #[default]
    Error,
}

/// Under which condition the device tries again by itself (EVE `retry_condition`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// The condition in words that do not change while it lasts: "tried again 600 s after the failure".
    pub condition: String,
    /// Seconds since the Unix epoch of the next attempt; 0 when it depends on something else than time. Not reported as a
    /// number of its own by EVE's messages.
    pub at_seconds: i64,
}

/// One trouble.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What it is about.
    pub on: Object,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, the same on console, in the log and in the info message.
    pub text: String,
    /// Seconds since the Unix epoch when it began; 0 = not dated yet. See [`date`].
    #[serde(default)]
    pub since_seconds: i64,
    /// When it is tried again; `None` when only a new config, or the operator, ends it.
    #[serde(default)]
    pub retry: Option<Retry>,
    /// The object whose trouble causes this one.
    #[serde(default)]
    pub cause: Option<Object>,
}

impl Trouble {
    /// An error, not dated yet.
    #[must_use]
    pub fn error(on: Object, text: impl Into<String>) -> Self {
        Self { on, text: text.into(), ..Self::default() }
    }

    /// A warning, not dated yet.
    #[must_use]
    pub fn warning(on: Object, text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(on, text) }
    }

    /// An error for a text that is empty when all is well.
    #[must_use]
    pub fn from_text(on: Object, text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::error(on, text))
    }

    /// The same with an object that causes it.
    #[must_use]
    pub fn caused_by(self, cause: Object) -> Self {
        Self { cause: Some(cause), ..self }
    }

    /// The same with a condition under which it is tried again.
    #[must_use]
    pub fn retried(self, condition: impl Into<String>) -> Self {
        Self { retry: Some(Retry { condition: condition.into(), at_seconds: 0 }), ..self }
    }
}

/// The worst severity among `troubles`; `None` when there are none.
#[must_use]
pub fn worst(troubles: &[Trouble]) -> Option<Severity> {
    troubles.iter().map(|trouble| trouble.severity).max()
}

/// The texts of all, to be shown in one line; empty when there are none.
#[must_use]
pub fn texts(troubles: &[Trouble]) -> String {
    troubles.iter().map(|trouble| trouble.text.as_str()).collect::<Vec<_>>().join("; ")
}

/// Dates `now`: a trouble that is also in `before` (same object, severity and text) keeps the time at which it began, another one
/// begins at `now_seconds` (seconds since the Unix epoch; 0 while the clock is not known, then it is dated later).
pub fn date<'a>(
    before: impl IntoIterator<Item = &'a Trouble>,
    now: impl IntoIterator<Item = &'a mut Trouble>,
    now_seconds: i64,
) {
    let key = |t: &Trouble| (t.on.kind, t.on.id.clone(), t.severity, t.text.clone());
    let began: HashMap<_, _> =
        before.into_iter().filter(|t| t.since_seconds > 0).map(|t| (key(t), t.since_seconds)).collect();
    for trouble in now {
        trouble.since_seconds = began.get(&key(trouble)).copied().unwrap_or(now_seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(id: &str) -> Object {
        Object::new(ObjectKind::App, id, "")
    }

    #[test]
    fn a_trouble_that_lasts_keeps_its_time_and_another_gets_the_present_one() {
        let dated = |text: &str, since_seconds| Trouble { since_seconds, ..Trouble::error(on("a"), text) };
        let before = [dated("no memory", 100), dated("no disk", 120)];
        let mut now = [
            dated("no memory", 0),
            Trouble::error(on("b"), "no memory"),
            Trouble::warning(on("a"), "no disk"),
            dated("no disk", 7),
        ];
        date(&before, &mut now, 200);
        assert_eq!(now.map(|t| t.since_seconds), [100, 200, 200, 120]);
    }

    #[test]
    fn a_trouble_seen_before_the_clock_is_known_is_dated_once_it_is() {
        let mut first = [Trouble::error(on("a"), "x")];
        date(&[], &mut first, 0);
        let mut second = [Trouble::error(on("a"), "x")];
        date(&first, &mut second, 1_800_000_000);
        assert_eq!(second[0].since_seconds, 1_800_000_000);
    }

    #[test]
    fn the_worst_of_several_counts() {
        assert_eq!(worst(&[]), None);
        assert_eq!(worst(&[Trouble::warning(on("a"), "w"), Trouble::error(on("a"), "e")]), Some(Severity::Error));
    }
}
