//! What the network part tells others.

use crate::parts::app::decide::Readiness;
use crate::parts::app::vm::Nic;
use holdfast_model::net::Uplink;
use holdfast_model::observed::AppInterfaceStatus;
use holdfast_model::trouble::Trouble;
use std::collections::BTreeMap;
use uuid::Uuid;

/// The NICs of each app of the config, or what they wait for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nics(pub BTreeMap<Uuid, Result<Vec<Nic>, Readiness>>);

/// The NICs of each app as they are reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppInterfaces(pub BTreeMap<Uuid, Vec<AppInterfaceStatus>>);

/// The ways to the controller, best first, by addresses that the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplinks(pub Vec<Uplink>);

/// What is wrong with the networks of apps and keeps them from nothing: a rule without effect, for example.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppWarnings(pub BTreeMap<Uuid, Vec<Trouble>>);
