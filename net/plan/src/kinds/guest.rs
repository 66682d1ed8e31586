//! The VM of an app that runs: the networks know that it stands on them.

use super::{ItemKey, Keyed, Kind, NetItem};
use crate::names;
use holdfast_engine::{Graph, Transition};
use std::collections::BTreeSet;
use std::fmt;
use uuid::Uuid;

/// A running VM. What it needs is removed only when it has ended, also when the app is no longer in the config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The app.
    pub app: Uuid,
    /// Its taps, their places in bridges, the bridges and what serves them.
    pub stands_on: BTreeSet<ItemKey>,
}

impl Guest {
    /// The VM of `app`, on what exists of the app's interfaces. To be told again when what exists has changed.
    #[must_use]
    pub fn of(app: Uuid, current: &Graph<NetItem>) -> Self {
        let mut stands_on = BTreeSet::new();
        for tap in (0..crate::taps::MAX_APP_NICS).map(|index| names::tap(app, index)) {
            let (link, port) = (ItemKey::Link(tap.clone()), ItemKey::BridgePort(tap));
            if let Some(NetItem::BridgePort(place)) = current.get(&port) {
                let bridge = ItemKey::Link(place.bridge.clone());
                let serves = |key: &&ItemKey| matches!(key, ItemKey::Service(_));
                stands_on.extend(current.dependents(&bridge).filter(serves).cloned());
                stands_on.extend([bridge, port]);
            }
            if current.contains(&link) {
                stands_on.insert(link);
            }
        }
        Self { app, stands_on }
    }
}

impl Kind for Guest {
    fn key(&self) -> ItemKey {
        ItemKey::Guest(self.app)
    }

    fn needs(&self) -> Vec<ItemKey> {
        self.stands_on.iter().cloned().collect()
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Modify
    }

    fn owner(&self) -> Option<Uuid> {
        Some(self.app)
    }
}

impl Keyed for Guest {
    type Key = Uuid;

    fn describe(app: &Uuid, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the VM of app {app}")
    }
}
