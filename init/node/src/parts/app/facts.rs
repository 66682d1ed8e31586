//! What the app part tells others.

use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Every app that is known, with what others need to know of its virtual machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guests(pub BTreeMap<Uuid, Guest>);

impl Guests {
    /// The virtual machine of this app lives.
    #[must_use]
    pub fn runs(&self, app: &Uuid) -> bool {
        self.0.get(app).is_some_and(|guest| guest.running)
    }
}

/// The virtual machine of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// uid of its VMM: the owner of its taps. The app's own for as long as it is known.
    pub uid: u32,
    /// It starts, runs or stops: what it uses must stay.
    pub running: bool,
}

/// Generations of volumes that apps are about to start with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedVolumes(pub BTreeSet<(Uuid, i64)>);

/// Generations of volumes that virtual machines hold. Published once it is known which machines run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldVolumes(pub BTreeSet<(Uuid, i64)>);

/// Volumes to be replaced by new ones, each with the app's purge counter. An order stays until the volume part says that it is
/// done ([`VolumeFact::purged`](crate::parts::volume::facts::VolumeFact::purged)); no virtual machine holds the volume meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purges(pub BTreeMap<Uuid, u32>);
