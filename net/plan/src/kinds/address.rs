//! An address of the host.

use super::{ItemKey, Keyed, Kind};
use holdfast_engine::Transition;
use holdfast_model::net::Prefix;
use std::fmt;

/// An address of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub link: String,
    /// Address and prefix length; the address is the host's own, not the network's.
    pub prefix: Prefix,
}

impl Address {
    /// Key of an address on an interface.
    #[must_use]
    pub fn key_of(link: &str, prefix: Prefix) -> ItemKey {
        ItemKey::Address((link.to_owned(), prefix.to_string()))
    }
}

impl Kind for Address {
    fn key(&self) -> ItemKey {
        Self::key_of(&self.link, self.prefix)
    }

    fn needs(&self) -> Vec<ItemKey> {
        vec![ItemKey::Link(self.link.clone())]
    }

    fn transition(&self, _: &Self) -> Transition {
        Transition::Recreate
    }
}

impl Keyed for Address {
    /// Interface, and address with prefix length.
    type Key = (String, String);

    fn describe((link, address): &Self::Key, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {address} on {link}")
    }
}
