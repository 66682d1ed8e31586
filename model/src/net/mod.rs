//! The network in layers: [`Port`] (1), [`Link`] over ports (2), [`Adapter`] with its addresses over either (3); beside them the
//! networks of apps ([`NetworkInstance`]) with their rules, and the list of port configurations that the controller is tried over.
//!
//! Each layer names the one below by its label. Addresses come in pairs, one for each IP version, so that neither what is kept on
//! disk nor what programs tell each other changes when the second version of a thing comes.

mod adapter;
mod instance;
mod link;
mod port;
mod port_config;
mod prefix;
mod rules;

pub use adapter::{Adapter, Addressing4, Addressing6, Static};
pub use instance::{Addresses, AppInterface, InstanceKind, NetworkInstance, Subnet};
pub use link::{BondMode, Link, LinkKind, Medium};
pub use port::{Port, PortUsage};
pub use port_config::{Layers, PathTest, PortConfig, PortConfigSource, PortConfigs, Tried, Uplink, Verdict};
pub use prefix::Prefix;
pub use rules::{Protocol, RateUnit, Rule, RuleAction};

/// A 48-bit MAC address.
pub type Mac = [u8; 6];

/// Text of a MAC address, lower case with colons.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
